//! CancelPayment: undo a payment whatever became of it.

use super::{
    Alarm, Asked, Decision, Verdict,
    event::{Event, EventCause, EventKind},
    id::AcquirerId,
    key::{PaymentKey, Subject},
    payment::{Cancelled, Money, Payment, RefundState, State, Succeeded, Untouched},
    policy::{AcquirerCheck, Policy},
    result::ResultCode,
};

/// The request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CancelPayment {
    /// Which payment.
    pub key: PaymentKey,
    /// Who asks for it to be undone.
    pub acquirer: AcquirerId,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The payment belongs to another acquirer. Not recorded.
    NotYours,
    /// Decided, now or by an earlier request.
    Decided {
        /// The recorded result.
        verdict: Verdict,
        /// Recorded by an earlier request.
        repeated: bool,
    },
    /// Nothing is known of the payment, and the wallet's history is not imported yet. Not recorded.
    Onboarding,
    /// Nothing is known of the payment, and the client left as many tombstones as it may for now. Not recorded.
    TooManyTombstones,
    /// It would be too late, but the clocks disagree. Not recorded.
    ClockUncertain,
    /// A refund is under way; the retry finds it decided. Not recorded.
    RefundUndecided,
}

impl Outcome {
    /// What Alipay+ hears.
    pub const fn code(&self) -> ResultCode {
        match self {
            Self::NotYours => ResultCode::AccessDenied,
            Self::Decided { verdict, .. } => verdict.code,
            Self::TooManyTombstones => ResultCode::RequestTrafficExceedLimit,
            Self::Onboarding | Self::ClockUncertain | Self::RefundUndecided => {
                ResultCode::UnknownException
            }
        }
    }
}

/// Decides, in the order of precedence.
pub fn decide(
    payment: Option<&Payment>,
    command: &CancelPayment,
    asked: &Asked,
    policy: &Policy,
) -> Decision<Payment, Outcome> {
    let Some(payment) = payment else {
        if asked.onboarding {
            return Decision::answer(Outcome::Onboarding);
        }
        if !asked.tombstone_allowed {
            return Decision::answer(Outcome::TooManyTombstones);
        }
        return cancel(None, Money::Untouched(Untouched::Unknown), command, asked);
    };

    let mismatch = payment.acquirer.as_ref().is_some_and(|bound| *bound != command.acquirer);
    if mismatch && policy.acquirer_check == AcquirerCheck::Enforce {
        return Decision::answer(Outcome::NotYours).alarm(Alarm::AcquirerMismatch);
    }
    let decision = decide_known(payment, command, asked, policy);
    if mismatch && decision.alarm.is_none() {
        return decision.alarm(Alarm::AcquirerMismatchObserved);
    }
    decision
}

fn decide_known(
    payment: &Payment,
    command: &CancelPayment,
    asked: &Asked,
    policy: &Policy,
) -> Decision<Payment, Outcome> {
    if let Some(verdict) = payment.verdict() {
        return Decision::answer(Outcome::Decided { verdict: verdict.clone(), repeated: true });
    }
    match &payment.state {
        // recorded results were answered above
        State::Cancelled(cancelled) => Decision::answer(Outcome::Decided {
            verdict: cancelled.verdict.clone(),
            repeated: true,
        }),
        State::Initiated(_) => {
            cancel(Some(payment), Money::Untouched(Untouched::Initiated), command, asked)
        }
        State::Failed(_) => {
            cancel(Some(payment), Money::Untouched(Untouched::Failed), command, asked)
        }
        State::Succeeded(succeeded) => cancel_succeeded(payment, succeeded, command, asked, policy),
    }
}

fn cancel_succeeded(
    payment: &Payment,
    succeeded: &Succeeded,
    command: &CancelPayment,
    asked: &Asked,
    policy: &Policy,
) -> Decision<Payment, Outcome> {
    let refund_is = |state| succeeded.refunds.iter().any(|refund| refund.state == state);
    let acquirer = payment.acquirer.as_ref().unwrap_or(&command.acquirer);

    if policy.cancel_window(acquirer).is_past(succeeded.terms.initiated_at, asked.now) {
        // this F is for ever, so it must not hang on one clock
        if !asked.clock_agrees {
            return Decision::answer(Outcome::ClockUncertain).alarm(Alarm::ClockDisagrees);
        }
        return refuse(payment, succeeded, ResultCode::CancelWindowExceed, asked);
    }
    if refund_is(RefundState::Done) {
        // a cancel would vanish from settlement while the refund stays
        return refuse(payment, succeeded, ResultCode::ProcessFail, asked)
            .alarm(Alarm::CancelOfRefunded);
    }
    if refund_is(RefundState::Reserved) {
        return Decision::answer(Outcome::RefundUndecided);
    }
    let due = Money::Due { amount: succeeded.terms.amount, since: asked.now };
    cancel(Some(payment), due, command, asked)
}

/// SUCCESS: from now on the payment is never taken, or its money goes back.
fn cancel(
    payment: Option<&Payment>,
    money: Money,
    command: &CancelPayment,
    asked: &Asked,
) -> Decision<Payment, Outcome> {
    let verdict = asked.verdict(ResultCode::Success);
    let acquirer = payment
        .and_then(|payment| payment.acquirer.clone())
        .unwrap_or_else(|| command.acquirer.clone());
    let event = |kind| {
        let subject = Subject::Payment(command.key.clone());
        Event::new(kind, subject, Some(acquirer.clone()), EventCause::CancelPayment, asked)
    };

    let mut events = vec![event(EventKind::PaymentCancelled)];
    if let Money::Due { amount, .. } = money {
        events.push(event(EventKind::FundReturnDue(amount)));
    }
    let next = Payment {
        acquirer: Some(acquirer),
        recorded_at: payment.and_then(|payment| payment.recorded_at),
        state: State::Cancelled(Cancelled {
            verdict: verdict.clone(),
            terms: payment.and_then(Payment::terms),
            refunds: payment.map(|payment| payment.refunds().to_vec()).unwrap_or_default(),
            money,
        }),
    };
    Decision::keep(next, Outcome::Decided { verdict, repeated: false }).announce(events)
}

/// A final F: recorded, without effect.
fn refuse(
    payment: &Payment,
    succeeded: &Succeeded,
    code: ResultCode,
    asked: &Asked,
) -> Decision<Payment, Outcome> {
    let verdict = asked.verdict(code);
    let state = State::Succeeded(Succeeded { refused: Some(verdict.clone()), ..succeeded.clone() });
    let next = Payment { state, ..payment.clone() };
    Decision::keep(next, Outcome::Decided { verdict, repeated: false })
}
