//! The decision core: what every command decides, as plain functions.
//!
//! Pure: no clock, no I/O, no async, no wire shapes. `now` is an argument, a decision always has an answer, and an
//! impossible combination is a named outcome. There is one file per command, each with a `decide` whose lines stand in
//! the order of docs/semantics.md, because the first rule that matches answers.
#![warn(clippy::arithmetic_side_effects)]

pub mod amount;
pub mod authorization;
pub mod cancel_payment;
pub mod cancel_token;
pub mod consumer;
pub mod event;
pub mod id;
pub mod import_payment;
pub mod import_token;
pub mod introspect_token;
pub mod key;
pub mod payment;
pub mod policy;
pub mod reconcile;
pub mod record_fund_return;
pub mod record_payment;
pub mod record_token;
pub mod result;
pub mod revoke_authorization;
pub mod time;
pub mod token;
pub mod window;

use self::{
    event::Event,
    id::{ClientId, TraceId},
    result::ResultCode,
    time::Timestamp,
};

/// Who asks, and when: the circumstances of one command, beside its parameters.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Our clock, read once the partition was locked.
    pub now: Timestamp,
    /// False if the store's own clock contradicts ours, so that no verdict may hang on the time.
    pub clock_agrees: bool,
    /// True until `import complete`: what is unknown here may be known to the wallet.
    pub onboarding: bool,
    /// False if the client has left as many tombstones as it may for now.
    pub tombstone_allowed: bool,
    /// Alipay+'s Client-Id; absent for a caller inside the wallet.
    pub by: Option<ClientId>,
    /// W3C trace id of the request.
    pub trace: Option<TraceId>,
}

impl Asked {
    /// A verdict of now.
    pub(crate) fn verdict(&self, code: ResultCode) -> Verdict {
        Verdict { code, at: self.now, by: self.by.clone(), trace: self.trace }
    }
}

/// A recorded result: what every repeat of the command answers, for ever.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What was answered.
    pub code: ResultCode,
    /// When it was decided.
    pub at: Timestamp,
    /// Who asked first.
    pub by: Option<ClientId>,
    /// The trace of the request that was decided.
    pub trace: Option<TraceId>,
}

/// What a command decides: the state to keep, the answer, the events to announce in the same commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision<State, Outcome> {
    /// The state to write; `None` leaves everything as it is.
    pub next: Option<State>,
    /// The answer.
    pub outcome: Outcome,
    /// What others must hear of.
    pub events: Vec<Event>,
    /// What people must hear of.
    pub alarm: Option<Alarm>,
}

impl<State, Outcome> Decision<State, Outcome> {
    /// An answer that changes nothing.
    pub(crate) fn answer(outcome: Outcome) -> Self {
        Self { next: None, outcome, events: Vec::new(), alarm: None }
    }

    /// An answer with a state to keep.
    pub(crate) fn keep(next: State, outcome: Outcome) -> Self {
        Self { next: Some(next), outcome, events: Vec::new(), alarm: None }
    }

    /// The same, announcing `events`.
    pub(crate) fn announce(self, events: Vec<Event>) -> Self {
        Self { events, ..self }
    }

    /// The same, with an alarm.
    pub(crate) fn alarm(self, alarm: Alarm) -> Self {
        Self { alarm: Some(alarm), ..self }
    }
}

/// Something that no caller should have asked for, counted and alerted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Alarm {
    /// A command named another acquirer than the one recorded.
    AcquirerMismatch,
    /// The same, let through because `acquirer_check = "observe"`.
    AcquirerMismatchObserved,
    /// A cancel came for a payment that was refunded.
    CancelOfRefunded,
    /// A success came after the cancel with another acquirer or amount than recorded.
    LateSuccessMismatch,
    /// A record contradicts what is recorded.
    RecordConflict,
    /// A second return of the same money was reported.
    ReturnedTwice,
    /// Our clock and the store's differ by more than they may.
    ClockDisagrees,
}

impl Alarm {
    /// Every alarm, in the order of the variants.
    pub const ALL: [Self; 7] = [
        Self::AcquirerMismatch,
        Self::AcquirerMismatchObserved,
        Self::CancelOfRefunded,
        Self::LateSuccessMismatch,
        Self::RecordConflict,
        Self::ReturnedTwice,
        Self::ClockDisagrees,
    ];

    /// Its name in logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AcquirerMismatch => "acquirer_mismatch",
            Self::AcquirerMismatchObserved => "acquirer_mismatch_observed",
            Self::CancelOfRefunded => "cancel_of_refunded",
            Self::LateSuccessMismatch => "late_success_mismatch",
            Self::RecordConflict => "record_conflict",
            Self::ReturnedTwice => "returned_twice",
            Self::ClockDisagrees => "clock_disagrees",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alarm_has_the_name_that_alerts_and_runbooks_know() {
        let names = [
            "acquirer_mismatch",
            "acquirer_mismatch_observed",
            "cancel_of_refunded",
            "late_success_mismatch",
            "record_conflict",
            "returned_twice",
            "clock_disagrees",
        ];
        assert_eq!(Alarm::ALL.map(Alarm::name), names);
    }
}
