//! What is known of a payment.
//!
//! States that must not exist cannot be written down: money that is due belongs to a cancelled payment, a refused
//! cancel to a debited one, a refund to one that succeeded.

use super::{
    Verdict,
    amount::Amount,
    id::{AcquirerId, FundReturnReference, RefundId},
    time::Timestamp,
};

/// Most refunds a payment may have had, released ones among them: a bound on what one key can grow to.
pub const REFUNDS_MAX: usize = 1_000;

/// What the payment core says of a payment when it starts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// What is to be debited.
    pub amount: Amount,
    /// When the payment was initiated; the window counts from its day.
    pub initiated_at: Timestamp,
}

/// A payment that was recorded, or cancelled before it ever was (a tombstone).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payment {
    /// Bound by the first that named one, a record or a cancel.
    pub acquirer: Option<AcquirerId>,
    /// When the payment core last told of it; absent if it never did.
    pub recorded_at: Option<Timestamp>,
    /// What became of it.
    pub state: State,
}

/// What became of a payment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Asked for, not reported since.
    Initiated(Terms),
    /// Nothing was debited. A core that reports a failure out of the blue names no terms.
    Failed(Option<Terms>),
    /// The user was debited and the wallet holds the money, less refunds.
    Succeeded(Succeeded),
    /// A cancel was answered SUCCESS.
    Cancelled(Cancelled),
}

/// A payment that was debited and not cancelled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Succeeded {
    /// What was debited.
    pub terms: Terms,
    /// Every refund ever started.
    pub refunds: Vec<Refund>,
    /// A cancel that was refused for ever (`CANCEL_WINDOW_EXCEED`, `PROCESS_FAIL`).
    pub refused: Option<Verdict>,
}

/// A cancelled payment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cancelled {
    /// The recorded SUCCESS.
    pub verdict: Verdict,
    /// As far as the payment core ever told them.
    pub terms: Option<Terms>,
    /// Refunds of the time before; all of them released.
    pub refunds: Vec<Refund>,
    /// Where the money is.
    pub money: Money,
}

/// Where a cancelled payment's money is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Money {
    /// Nothing was debited, as far as is known.
    Untouched(Untouched),
    /// It must go back to the user.
    Due {
        /// All that was debited.
        amount: Amount,
        /// Since when.
        since: Timestamp,
    },
    /// It is back with the user.
    Returned {
        /// All that was debited.
        amount: Amount,
        /// Since when it had been due.
        since: Timestamp,
        /// When the executor reported it.
        at: Timestamp,
        /// The executor's reference.
        reference: FundReturnReference,
    },
}

/// Why nothing was debited, as far as is known, of a cancelled payment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Untouched {
    /// The core never told of it.
    Unknown,
    /// The core was about to debit when the cancel came, and never reported: unresolved.
    Initiated,
    /// The core reported a failure.
    Failed,
}

/// One refund.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refund {
    /// The wallet's id of it.
    pub id: RefundId,
    /// How much, in the payment's currency.
    pub amount: Amount,
    /// How it stands.
    pub state: RefundState,
}

/// How a refund stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefundState {
    /// Started, undecided.
    Reserved,
    /// Made.
    Done,
    /// Not made after all.
    Released,
}

/// What became of the payment itself, cancels aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// The payment core never told of it.
    Unknown,
    /// Asked for.
    Initiated,
    /// Debited.
    Succeeded,
    /// Not debited.
    Failed,
}

/// Where the money is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Funds {
    /// Nothing was taken.
    None,
    /// Taken from the user.
    Held,
    /// Must go back.
    ReturnDue,
    /// Went back.
    Returned,
}

/// What inquiryPayment must answer once a payment is cancelled: `F` with this code.
pub const ORDER_IS_CLOSED: &str = "ORDER_IS_CLOSED";

impl Payment {
    /// A recorded result of CancelPayment, if there is one.
    pub fn verdict(&self) -> Option<&Verdict> {
        match &self.state {
            State::Initiated(_) | State::Failed(_) => None,
            State::Succeeded(succeeded) => succeeded.refused.as_ref(),
            State::Cancelled(cancelled) => Some(&cancelled.verdict),
        }
    }

    /// Amount and time of initiation, as far as known.
    pub fn terms(&self) -> Option<Terms> {
        match &self.state {
            State::Initiated(terms) => Some(*terms),
            State::Failed(terms) => *terms,
            State::Succeeded(succeeded) => Some(succeeded.terms),
            State::Cancelled(cancelled) => cancelled.terms,
        }
    }

    /// Every refund ever started.
    pub fn refunds(&self) -> &[Refund] {
        match &self.state {
            State::Initiated(_) | State::Failed(_) => &[],
            State::Succeeded(succeeded) => &succeeded.refunds,
            State::Cancelled(cancelled) => &cancelled.refunds,
        }
    }

    /// What became of the payment itself, cancels aside.
    pub fn life(&self) -> Life {
        match &self.state {
            State::Initiated(_) => Life::Initiated,
            State::Failed(_) => Life::Failed,
            State::Succeeded(_) => Life::Succeeded,
            State::Cancelled(cancelled) => match cancelled.money {
                Money::Untouched(Untouched::Unknown) => Life::Unknown,
                Money::Untouched(Untouched::Initiated) => Life::Initiated,
                Money::Untouched(Untouched::Failed) => Life::Failed,
                Money::Due { .. } | Money::Returned { .. } => Life::Succeeded,
            },
        }
    }

    /// Where the money is.
    pub fn funds(&self) -> Funds {
        match &self.state {
            State::Initiated(_) | State::Failed(_) => Funds::None,
            State::Succeeded(_) => Funds::Held,
            State::Cancelled(cancelled) => match cancelled.money {
                Money::Untouched(_) => Funds::None,
                Money::Due { .. } => Funds::ReturnDue,
                Money::Returned { .. } => Funds::Returned,
            },
        }
    }

    /// What inquiryPayment must answer; `None` while the payment core's own answer stands.
    pub fn inquiry(&self) -> Option<&'static str> {
        match self.state {
            State::Cancelled(_) => Some(ORDER_IS_CLOSED),
            State::Initiated(_) | State::Failed(_) | State::Succeeded(_) => None,
        }
    }
}
