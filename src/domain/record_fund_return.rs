//! RecordFundReturn: the feed's executor reports that the money of a cancelled payment went back.

use super::{
    Alarm, Asked, Decision,
    id::FundReturnReference,
    key::PaymentKey,
    payment::{Cancelled, Money, Payment, State},
};

/// The request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordFundReturn {
    /// Which payment.
    pub key: PaymentKey,
    /// The executor's own reference of the transfer.
    pub reference: FundReturnReference,
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Recorded, or recorded before with the same reference.
    Accepted,
    /// It contradicts what is recorded.
    Conflict(Conflict),
}

/// What contradicts what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// The money went back before, with another reference: perhaps twice.
    #[error("the return is recorded with another reference: the money may have gone back twice")]
    OtherReference,
    /// Nothing has to go back.
    #[error("no return is due for this payment")]
    NothingDue,
}

/// Decides, in the order of precedence.
pub fn decide(
    payment: Option<&Payment>,
    command: &RecordFundReturn,
    asked: &Asked,
) -> Decision<Payment, Outcome> {
    let nothing_due =
        || Decision::answer(Outcome::Conflict(Conflict::NothingDue)).alarm(Alarm::RecordConflict);

    let Some(payment) = payment else { return nothing_due() };
    let State::Cancelled(cancelled) = &payment.state else { return nothing_due() };
    match &cancelled.money {
        Money::Due { amount, since } => {
            let money = Money::Returned {
                amount: *amount,
                since: *since,
                at: asked.now,
                reference: command.reference.clone(),
            };
            let state = State::Cancelled(Cancelled { money, ..cancelled.clone() });
            Decision::keep(Payment { state, ..payment.clone() }, Outcome::Accepted)
        }
        Money::Returned { reference, .. } if *reference == command.reference => {
            Decision::answer(Outcome::Accepted)
        }
        Money::Returned { .. } => Decision::answer(Outcome::Conflict(Conflict::OtherReference))
            .alarm(Alarm::ReturnedTwice),
        Money::Untouched(_) => nothing_due(),
    }
}
