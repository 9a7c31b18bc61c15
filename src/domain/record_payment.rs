//! RecordPayment: the payment core tells what became of a payment, and learns whether it may go on.

use super::{
    Alarm, Asked, Decision,
    amount::Amount,
    event::{Event, EventCause, EventKind},
    id::{AcquirerId, RefundId},
    key::{PaymentKey, Subject},
    payment::{
        Cancelled, Money, Payment, REFUNDS_MAX, Refund, RefundState, State, Succeeded, Terms,
        Untouched,
    },
};

/// The request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordPayment {
    /// Which payment.
    pub key: PaymentKey,
    /// The acquirer; the wire requires it with [`Fact::Initiated`] and [`Fact::Succeeded`].
    pub acquirer: Option<AcquirerId>,
    /// What happened.
    pub fact: Fact,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// The core is about to debit.
    Initiated(Terms),
    /// The user was debited.
    Succeeded(Terms),
    /// Nothing was debited.
    Failed {
        /// The payment's amount, if the core names it.
        amount: Option<Amount>,
    },
    /// The core is about to refund.
    RefundStarted {
        /// Its id.
        id: RefundId,
        /// How much.
        amount: Amount,
    },
    /// The refund was made.
    RefundSucceeded {
        /// Its id.
        id: RefundId,
        /// How much, if the core names it.
        amount: Option<Amount>,
    },
    /// The refund was not made.
    RefundFailed {
        /// Its id.
        id: RefundId,
        /// How much, if the core names it.
        amount: Option<Amount>,
    },
}

/// The answer. Anything but [`Outcome::Proceed`] means: do not debit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// To a success after the cancel: the money goes back through the feed's executor.
    ReturnFunds,
    /// It contradicts what is recorded.
    Conflict(Conflict),
    /// Debit.
    Proceed,
    /// The payment was cancelled.
    RefusedCancelled,
    /// It succeeded before.
    AlreadySucceeded,
    /// It failed before.
    RefusedFailed,
    /// Recorded, or recorded before.
    Accepted,
}

/// What contradicts what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// Another acquirer.
    #[error("the payment is recorded with another acquirer_id")]
    OtherAcquirer,
    /// Another amount or currency.
    #[error("the payment is recorded with another amount or currency")]
    OtherAmount,
    /// A failure of a payment that was debited.
    #[error("the payment is recorded as debited, so it cannot have failed")]
    AlreadyDebited,
    /// The refund has another amount or currency.
    #[error("the refund is recorded with another amount, or the payment has another currency")]
    OtherRefundAmount,
    /// A refund of a payment that is not recorded as succeeded.
    #[error("the payment is not recorded as succeeded, so there is nothing to refund")]
    NothingToRefund,
    /// More than what is left.
    #[error("the refund is more than what is left of the payment")]
    RemainderTooSmall,
    /// More refunds than a payment may have.
    #[error("the payment has as many refunds as one may have")]
    TooManyRefunds,
    /// An end of a refund that was never started.
    #[error("no refund was started with this refund_id")]
    RefundNotStarted,
    /// An end of a refund that ended otherwise, or a second start of one that failed.
    #[error(
        "the refund of this refund_id has ended otherwise; start a new one with a new refund_id"
    )]
    RefundEnded,
}

type Decided = Decision<Payment, Outcome>;

fn conflict(conflict: Conflict) -> Decided {
    Decision::answer(Outcome::Conflict(conflict)).alarm(match conflict {
        Conflict::OtherAcquirer => Alarm::AcquirerMismatch,
        Conflict::OtherAmount
        | Conflict::AlreadyDebited
        | Conflict::OtherRefundAmount
        | Conflict::NothingToRefund
        | Conflict::RemainderTooSmall
        | Conflict::TooManyRefunds
        | Conflict::RefundNotStarted
        | Conflict::RefundEnded => Alarm::RecordConflict,
    })
}

/// Decides, in the order of precedence.
pub fn decide(payment: Option<&Payment>, command: &RecordPayment, asked: &Asked) -> Decided {
    // a fact comes before every contradiction: the user was debited, and the money must go back
    if let Fact::Succeeded(terms) = &command.fact
        && let Some(payment) = payment
        && let State::Cancelled(cancelled) = &payment.state
    {
        return succeeded_after_cancel(payment, cancelled, *terms, command, asked);
    }
    if let Some(contradiction) = payment.and_then(|payment| contradiction(payment, command)) {
        return conflict(contradiction);
    }
    match &command.fact {
        Fact::Initiated(terms) => initiated(payment, *terms, command, asked),
        Fact::Succeeded(terms) => succeeded(payment, *terms, command, asked),
        Fact::Failed { .. } => failed(payment, command, asked),
        Fact::RefundStarted { id, amount } => refund_started(payment, id, *amount),
        Fact::RefundSucceeded { id, .. } => refund_ended(payment, id, RefundState::Done),
        Fact::RefundFailed { id, .. } => refund_ended(payment, id, RefundState::Released),
    }
}

fn contradiction(payment: &Payment, command: &RecordPayment) -> Option<Conflict> {
    if differ(payment.acquirer.as_ref(), command.acquirer.as_ref()) {
        return Some(Conflict::OtherAcquirer);
    }
    let recorded = payment.terms().map(|terms| terms.amount);
    match &command.fact {
        Fact::Initiated(terms) | Fact::Succeeded(terms) => {
            differ(recorded, Some(terms.amount)).then_some(Conflict::OtherAmount)
        }
        Fact::Failed { amount } => differ(recorded, *amount).then_some(Conflict::OtherAmount),
        Fact::RefundStarted { id, amount } => refund_contradiction(payment, id, Some(*amount)),
        Fact::RefundSucceeded { id, amount } | Fact::RefundFailed { id, amount } => {
            refund_contradiction(payment, id, *amount)
        }
    }
}

fn refund_contradiction(
    payment: &Payment,
    id: &RefundId,
    amount: Option<Amount>,
) -> Option<Conflict> {
    let amount = amount?;
    let reserved = find(payment.refunds(), id).map(|refund| refund.amount);
    let currency = payment.terms().map(|terms| terms.amount.currency());
    let other = differ(reserved, Some(amount)) || differ(currency, Some(amount.currency()));
    other.then_some(Conflict::OtherRefundAmount)
}

/// Both are named, and they are not the same.
fn differ<T: PartialEq>(recorded: Option<T>, named: Option<T>) -> bool {
    recorded.zip(named).is_some_and(|(recorded, named)| recorded != named)
}

fn find<'a>(refunds: &'a [Refund], id: &RefundId) -> Option<&'a Refund> {
    refunds.iter().find(|refund| refund.id == *id)
}

fn succeeded_after_cancel(
    payment: &Payment,
    cancelled: &Cancelled,
    terms: Terms,
    command: &RecordPayment,
    asked: &Asked,
) -> Decided {
    if let Money::Due { amount, .. } | Money::Returned { amount, .. } = &cancelled.money {
        let repeat = Decision::answer(Outcome::ReturnFunds);
        // another amount may be a second debit, of which nothing goes back: people must look
        let same = *amount == terms.amount;
        return if same { repeat } else { repeat.alarm(Alarm::LateSuccessMismatch) };
    }
    let mismatch = contradiction(payment, command).is_some();
    let acquirer = payment.acquirer.clone().or_else(|| command.acquirer.clone());
    let event = Event::new(
        EventKind::FundReturnDue(terms.amount),
        Subject::Payment(command.key.clone()),
        acquirer.clone(),
        EventCause::LateSuccess,
        asked,
    );
    let state = State::Cancelled(Cancelled {
        terms: cancelled.terms.or(Some(terms)),
        money: Money::Due { amount: terms.amount, since: asked.now },
        ..cancelled.clone()
    });
    let next = Payment { acquirer, recorded_at: Some(asked.now), state };
    let decision = Decision::keep(next, Outcome::ReturnFunds).announce(vec![event]);
    if mismatch {
        return decision.alarm(Alarm::LateSuccessMismatch);
    }
    decision
}

/// The payment with a new state, bound to the command's acquirer if it was to none.
fn told(
    payment: Option<&Payment>,
    state: State,
    command: &RecordPayment,
    asked: &Asked,
) -> Payment {
    let bound = payment.and_then(|payment| payment.acquirer.clone());
    Payment {
        acquirer: bound.or_else(|| command.acquirer.clone()),
        recorded_at: Some(asked.now),
        state,
    }
}

/// Of a failed payment nothing new is told, unless it is the first acquirer: whoever is named first binds, or a cancel
/// by another would take the payment from it.
fn nothing_new(
    known: &Payment,
    command: &RecordPayment,
    asked: &Asked,
    outcome: Outcome,
) -> Decided {
    if known.acquirer.is_some() || command.acquirer.is_none() {
        return Decision::answer(outcome);
    }
    Decision::keep(told(Some(known), known.state.clone(), command, asked), outcome)
}

fn initiated(
    payment: Option<&Payment>,
    terms: Terms,
    command: &RecordPayment,
    asked: &Asked,
) -> Decided {
    let Some(known) = payment else {
        return Decision::keep(
            told(None, State::Initiated(terms), command, asked),
            Outcome::Proceed,
        );
    };
    match &known.state {
        State::Initiated(_) => Decision::answer(Outcome::Proceed),
        State::Cancelled(cancelled) if cancelled.terms.is_none() => {
            let state = State::Cancelled(Cancelled { terms: Some(terms), ..cancelled.clone() });
            Decision::keep(told(payment, state, command, asked), Outcome::RefusedCancelled)
        }
        State::Cancelled(_) => Decision::answer(Outcome::RefusedCancelled),
        State::Succeeded(_) => Decision::answer(Outcome::AlreadySucceeded),
        State::Failed(_) => nothing_new(known, command, asked, Outcome::RefusedFailed),
    }
}

fn succeeded(
    payment: Option<&Payment>,
    terms: Terms,
    command: &RecordPayment,
    asked: &Asked,
) -> Decided {
    if let Some(Payment { state: State::Succeeded(_), .. }) = payment {
        return Decision::answer(Outcome::Accepted);
    }
    // the first terms stay: the window must not move with a later report
    let terms = payment.and_then(Payment::terms).unwrap_or(terms);
    let state = State::Succeeded(Succeeded { terms, refunds: Vec::new(), refused: None });
    Decision::keep(told(payment, state, command, asked), Outcome::Accepted)
}

fn failed(payment: Option<&Payment>, command: &RecordPayment, asked: &Asked) -> Decided {
    let Some(known) = payment else {
        // an amount without a time of initiation says nothing that a later report could contradict
        return Decision::keep(told(None, State::Failed(None), command, asked), Outcome::Accepted);
    };
    let state = match &known.state {
        State::Initiated(terms) => State::Failed(Some(*terms)),
        State::Failed(_) => return nothing_new(known, command, asked, Outcome::Accepted),
        State::Succeeded(_) => return conflict(Conflict::AlreadyDebited),
        State::Cancelled(cancelled) => match cancelled.money {
            Money::Untouched(Untouched::Failed) => return Decision::answer(Outcome::Accepted),
            Money::Untouched(Untouched::Unknown | Untouched::Initiated) => {
                State::Cancelled(Cancelled {
                    money: Money::Untouched(Untouched::Failed),
                    ..cancelled.clone()
                })
            }
            Money::Due { .. } | Money::Returned { .. } => {
                return conflict(Conflict::AlreadyDebited);
            }
        },
    };
    Decision::keep(told(payment, state, command, asked), Outcome::Accepted)
}

fn refund_started(payment: Option<&Payment>, id: &RefundId, amount: Amount) -> Decided {
    let Some(payment) = payment else { return conflict(Conflict::NothingToRefund) };

    // A released id is used up: its first start was accepted, but accepting it again would let money go without a
    // reservation that a cancel could see.
    match find(payment.refunds(), id).map(|refund| refund.state) {
        Some(RefundState::Reserved | RefundState::Done) => {
            return Decision::answer(Outcome::Accepted);
        }
        Some(RefundState::Released) if matches!(payment.state, State::Succeeded(_)) => {
            return conflict(Conflict::RefundEnded);
        }
        Some(RefundState::Released) | None => {}
    }
    let succeeded = match &payment.state {
        State::Cancelled(_) => return Decision::answer(Outcome::RefusedCancelled),
        State::Initiated(_) | State::Failed(_) => return conflict(Conflict::NothingToRefund),
        State::Succeeded(succeeded) => succeeded,
    };
    if amount.minor_units() > remainder(succeeded) {
        return conflict(Conflict::RemainderTooSmall);
    }
    if succeeded.refunds.len() >= REFUNDS_MAX {
        return conflict(Conflict::TooManyRefunds);
    }
    let mut next = succeeded.clone();
    next.refunds.push(Refund { id: id.clone(), amount, state: RefundState::Reserved });
    Decision::keep(Payment { state: State::Succeeded(next), ..payment.clone() }, Outcome::Accepted)
}

/// What is neither refunded nor reserved, in minor units.
fn remainder(succeeded: &Succeeded) -> u64 {
    let taken = succeeded
        .refunds
        .iter()
        .filter(|refund| refund.state != RefundState::Released)
        .fold(0u64, |sum, refund| sum.saturating_add(refund.amount.minor_units()));
    succeeded.terms.amount.minor_units().saturating_sub(taken)
}

fn refund_ended(payment: Option<&Payment>, id: &RefundId, end: RefundState) -> Decided {
    let Some(payment) = payment else { return conflict(Conflict::RefundNotStarted) };
    let Some(refund) = find(payment.refunds(), id) else {
        return conflict(Conflict::RefundNotStarted);
    };
    if refund.state == end {
        return Decision::answer(Outcome::Accepted);
    }
    // a cancelled payment has released refunds only: no cancel passes a reserved one
    let (RefundState::Reserved, State::Succeeded(succeeded)) = (refund.state, &payment.state)
    else {
        return conflict(Conflict::RefundEnded);
    };
    let mut next = succeeded.clone();
    for refund in next.refunds.iter_mut().filter(|refund| refund.id == *id) {
        refund.state = end;
    }
    Decision::keep(Payment { state: State::Succeeded(next), ..payment.clone() }, Outcome::Accepted)
}
