//! Reconcile: makes a store that was restored from a backup remember an event that its consumers kept.
//!
//! An event tells of a decision that was answered, so it is true, whatever the backup says. What follows from it is
//! recorded again with the event's own time, and an event that the restored feed lacks is appended with the same id. A
//! contradiction that no sequence of commands explains is told to people and changes nothing.

use super::{
    Verdict,
    amount::Amount,
    authorization::{Authorization, Revocation, RevocationCause},
    event::{Event, EventCause, EventKind},
    id::FundReturnReference,
    payment::{Cancelled, Money, Payment, Refund, RefundState, State, Succeeded, Untouched},
    result::ResultCode,
    time::Timestamp,
};

/// An event as a consumer kept it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The event.
    pub event: Event,
    /// What the executor did about a FundReturnDue: its reference, and when.
    pub returned: Option<(FundReturnReference, Timestamp)>,
}

/// What came of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was true already.
    True,
    /// The store forgot it, and knows it again.
    Restored,
    /// Both cannot be true. Nothing changes.
    Conflict(Conflict),
}

/// What contradicts what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// Another acquirer.
    #[error("it is recorded with another acquirerId")]
    OtherAcquirer,
    /// Another amount is due, was returned or was debited.
    #[error("another amount is recorded as debited, due or returned")]
    OtherAmount,
    /// The cancel was answered F.
    #[error("its cancel is recorded with an F, which is final, and the event says SUCCESS")]
    AnsweredOtherwise,
    /// A refund was made, which a cancel does not pass.
    #[error(
        "it is recorded with a refund that was made, and the event says that all of the money goes back"
    )]
    Refunded,
    /// The money went back with another reference.
    #[error(
        "its money is recorded as returned with another reference: it may have gone back twice"
    )]
    ReturnedTwice,
    /// An authorization that is unknown, and the event does not say whose it is.
    #[error("the authorization is unknown, and the event has no acquirerId to record it with")]
    NobodysAuthorization,
}

/// What to write, and what to append to the feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision<S> {
    /// What came of it.
    pub outcome: Outcome,
    /// The state to keep, if it changes.
    pub next: Option<S>,
    /// Events that the feed lacks.
    pub events: Vec<Event>,
}

fn conflict<S>(conflict: Conflict) -> Decision<S> {
    Decision { outcome: Outcome::Conflict(conflict), next: None, events: Vec::new() }
}

/// Decides about a payment, from a PaymentCancelled or a FundReturnDue, in the order of precedence.
pub fn decide_payment(known: Option<&Payment>, kept: &Kept) -> Decision<Payment> {
    let event = &kept.event;
    let recorded = known.and_then(|payment| payment.acquirer.as_ref());
    if recorded.zip(event.acquirer.as_ref()).is_some_and(|(here, there)| here != there) {
        return conflict(Conflict::OtherAcquirer);
    }
    let due = match event.kind {
        EventKind::FundReturnDue(amount) => Some(amount),
        EventKind::PaymentCancelled | EventKind::AuthorizationRevoked => None,
    };
    let (mut cancelled, mut events) = match known.map(|payment| &payment.state) {
        Some(State::Cancelled(cancelled)) => (cancelled.clone(), Vec::new()),
        state => match cancel(state, due, event) {
            Ok(done) => done,
            Err(contradiction) => return conflict(contradiction),
        },
    };
    if let Some(due) = due {
        match &cancelled.money {
            Money::Untouched(_) => {
                cancelled.money = Money::Due { amount: due, since: event.at };
                events.push(event.clone());
            }
            Money::Due { amount, .. } | Money::Returned { amount, .. } if *amount != due => {
                return conflict(Conflict::OtherAmount);
            }
            Money::Due { .. } | Money::Returned { .. } => {}
        }
    }
    if let Some((reference, at)) = &kept.returned {
        match &cancelled.money {
            Money::Due { amount, since } => {
                let (amount, since, at) = (*amount, *since, *at);
                cancelled.money =
                    Money::Returned { amount, since, at, reference: reference.clone() };
            }
            Money::Returned { reference: known, .. } if known != reference => {
                return conflict(Conflict::ReturnedTwice);
            }
            Money::Returned { .. } | Money::Untouched(_) => {}
        }
    }
    let next = Payment {
        acquirer: recorded.or(event.acquirer.as_ref()).cloned(),
        recorded_at: known.and_then(|payment| payment.recorded_at),
        state: State::Cancelled(cancelled),
    };
    if known == Some(&next) {
        return Decision { outcome: Outcome::True, next: None, events: Vec::new() };
    }
    Decision { outcome: Outcome::Restored, next: Some(next), events }
}

/// The cancel that the store forgot, with the events of its commit but the one at hand about money.
fn cancel(
    state: Option<&State>,
    due: Option<Amount>,
    event: &Event,
) -> Result<(Cancelled, Vec<Event>), Conflict> {
    let verdict = Verdict { code: ResultCode::Success, at: event.at, by: None, trace: event.trace };
    let announced = |kind, cause| Event { kind, cause, pass_through_info: None, ..event.clone() };
    let mut events = vec![announced(EventKind::PaymentCancelled, EventCause::CancelPayment)];
    let untouched = |untouched| Money::Untouched(untouched);
    let (terms, refunds, money) = match state {
        None => (None, Vec::new(), untouched(Untouched::Unknown)),
        Some(State::Initiated(terms)) => {
            (Some(*terms), Vec::new(), untouched(Untouched::Initiated))
        }
        Some(State::Failed(terms)) => (*terms, Vec::new(), untouched(Untouched::Failed)),
        // the caller knows it better
        Some(State::Cancelled(cancelled)) => return Ok((cancelled.clone(), Vec::new())),
        Some(State::Succeeded(succeeded)) => {
            let refunds = released(succeeded)?;
            let amount = succeeded.terms.amount;
            if due.is_some_and(|due| due != amount) {
                return Err(Conflict::OtherAmount);
            }
            let kind = EventKind::FundReturnDue(amount);
            let own = due.is_some();
            events.push(if own {
                event.clone()
            } else {
                announced(kind, EventCause::CancelPayment)
            });
            (Some(succeeded.terms), refunds, Money::Due { amount, since: event.at })
        }
    };
    Ok((Cancelled { verdict, terms, refunds, money }, events))
}

/// A cancel passes no reserved refund and no refund that was made. It was answered SUCCESS, so a refund that is reserved
/// in the backup was released before it.
fn released(succeeded: &Succeeded) -> Result<Vec<Refund>, Conflict> {
    if succeeded.refused.is_some() {
        return Err(Conflict::AnsweredOtherwise);
    }
    if succeeded.refunds.iter().any(|refund| refund.state == RefundState::Done) {
        return Err(Conflict::Refunded);
    }
    let release = |refund: &Refund| Refund { state: RefundState::Released, ..refund.clone() };
    Ok(succeeded.refunds.iter().map(release).collect())
}

/// Decides about an authorization, from an AuthorizationRevoked, in the order of precedence.
pub fn decide_authorization(known: Option<&Authorization>, kept: &Kept) -> Decision<Authorization> {
    let event = &kept.event;
    let cause = match event.cause {
        EventCause::RevokeAuthorization => RevocationCause::RevokeAuthorization,
        EventCause::CancelToken | EventCause::CancelPayment | EventCause::LateSuccess => {
            RevocationCause::CancelToken
        }
    };
    let revoked = Some(Revocation { at: event.at, cause, trace: event.trace });
    let next = match known {
        Some(known) if event.acquirer.as_ref().is_some_and(|named| *named != known.acquirer) => {
            return conflict(Conflict::OtherAcquirer);
        }
        Some(Authorization { revoked: Some(_), .. }) => {
            return Decision { outcome: Outcome::True, next: None, events: Vec::new() };
        }
        Some(known) => Authorization { revoked, ..known.clone() },
        None => match &event.acquirer {
            None => return conflict(Conflict::NobodysAuthorization),
            Some(acquirer) => {
                Authorization { acquirer: acquirer.clone(), pass_through_info: None, revoked }
            }
        },
    };
    Decision { outcome: Outcome::Restored, next: Some(next), events: vec![event.clone()] }
}
