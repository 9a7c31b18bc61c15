//! ImportPayment: the wallet's history of one payment, told at the cut-over beside live traffic.
//!
//! History never takes back what was decided here, and never makes money due twice: where both sides know something,
//! the later of two states stands, a recorded result stays, and what cannot both be true is refused for people to see.

use super::{
    Alarm, Asked, Decision, Verdict,
    amount::Amount,
    event::{Event, EventCause, EventKind},
    id::{AcquirerId, FundReturnReference},
    key::{PaymentKey, Subject},
    payment::{
        Cancelled, Life, Money, Payment, REFUNDS_MAX, Refund, RefundState, State, Succeeded, Terms,
        Untouched,
    },
    result::ResultCode,
    time::Timestamp,
};

/// The request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportPayment {
    /// Which payment.
    pub key: PaymentKey,
    /// What the wallet remembers of it; made by [`Told::payment`].
    pub history: Payment,
}

/// What a line of history tells of a payment, field by field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Whom it belongs to.
    pub acquirer: Option<AcquirerId>,
    /// What was, or was to be, debited.
    pub amount: Option<Amount>,
    /// When it was initiated.
    pub initiated_at: Option<Timestamp>,
    /// What became of it, cancels aside.
    pub life: Life,
    /// Every refund ever started.
    pub refunds: Vec<Refund>,
    /// What a cancel was answered, and when.
    pub cancel: Option<(ResultCode, Timestamp)>,
    /// What became of the money of a cancelled payment.
    pub fund_return: Option<FundReturn>,
}

/// What became of the money of a payment that was debited and cancelled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FundReturn {
    /// Nobody has returned it: this service's executor is to do it.
    Due {
        /// Since when; absent: since the cancel.
        since: Option<Timestamp>,
    },
    /// It is back with the user.
    Returned {
        /// Since when it had been due; absent: since the cancel.
        since: Option<Timestamp>,
        /// When it went back.
        at: Timestamp,
        /// The reference of whoever did it.
        reference: FundReturnReference,
    },
}

/// Why what was told is no payment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Incomplete {
    /// An initiated or succeeded payment without one of them.
    #[error(
        "acquirerId, paymentAmount and initiatedAt must be set of an initiated or succeeded payment"
    )]
    Terms,
    /// One of the two.
    #[error("paymentAmount and initiatedAt must be set together, or neither")]
    HalfTerms,
    /// A payment that was never told of exists only if it was cancelled.
    #[error(
        "a payment of state unknown must have been cancelled: set cancelledAt, or leave the line out"
    )]
    Nothing,
    /// Refunds of a payment that was never debited.
    #[error("only a succeeded payment has refunds")]
    RefundsOfUnpaid,
    /// Two refunds of one id.
    #[error("a refundId is there twice")]
    RefundTwice,
    /// Another currency, more than was paid, or more refunds than may be.
    #[error(
        "refunds must be in the payment's currency, at most 1000, and together at most its amount"
    )]
    Refunds,
    /// A cancelled payment's refunds must all have failed.
    #[error(
        "a payment whose cancel was answered SUCCESS has failed refunds only: a cancel returns all of the money"
    )]
    RefundsOfCancelled,
    /// A result that is never recorded.
    #[error(
        "resultCode must be SUCCESS, CANCEL_WINDOW_EXCEED or PROCESS_FAIL: no other answer is final"
    )]
    Code,
    /// A refused cancel of a payment that was not debited.
    #[error(
        "a cancel is answered CANCEL_WINDOW_EXCEED or PROCESS_FAIL only if the payment succeeded"
    )]
    RefusedUnpaid,
    /// Debited and cancelled, and nothing is said of the money.
    #[error(
        "a succeeded and cancelled payment must say what became of the money: fundReturn with state due or returned"
    )]
    NoFundReturn,
    /// Money that was never taken, or is not to go back.
    #[error("fundReturn is for payments that succeeded and whose cancel was answered SUCCESS")]
    FundReturnOfNothing,
}

impl Told {
    /// The payment that it tells of.
    pub fn payment(self) -> Result<Payment, Incomplete> {
        let terms = match (self.amount, self.initiated_at) {
            (Some(amount), Some(initiated_at)) => Some(Terms { amount, initiated_at }),
            (None, None) => None,
            _ => return Err(Incomplete::HalfTerms),
        };
        let told = matches!(self.life, Life::Initiated | Life::Succeeded);
        if told && (terms.is_none() || self.acquirer.is_none()) {
            return Err(Incomplete::Terms);
        }
        check_refunds(&self.refunds, self.life, terms)?;
        let verdict = |(code, at)| Verdict { code, at, by: None, trace: None };
        let verdict = self.cancel.map(verdict);
        let state = match verdict {
            None => live(self.life, terms, self.refunds, None)?,
            Some(verdict) => match verdict.code {
                ResultCode::Success => {
                    let money = money(self.life, terms, self.fund_return, verdict.at)?;
                    if self.refunds.iter().any(|refund| refund.state != RefundState::Released) {
                        return Err(Incomplete::RefundsOfCancelled);
                    }
                    let state = Cancelled { verdict, terms, refunds: self.refunds, money };
                    let payment = Payment {
                        acquirer: self.acquirer,
                        recorded_at: None,
                        state: State::Cancelled(state),
                    };
                    return Ok(payment);
                }
                ResultCode::CancelWindowExceed | ResultCode::ProcessFail => {
                    live(self.life, terms, self.refunds, Some(verdict))?
                }
                ResultCode::AccessDenied
                | ResultCode::InvalidClient
                | ResultCode::InvalidSignature
                | ResultCode::InvalidToken
                | ResultCode::KeyNotFound
                | ResultCode::MediaTypeNotAcceptable
                | ResultCode::MethodNotSupported
                | ResultCode::NoInterfaceDef
                | ResultCode::ParamIllegal
                | ResultCode::RequestTrafficExceedLimit
                | ResultCode::UnknownException => return Err(Incomplete::Code),
            },
        };
        if self.fund_return.is_some() {
            return Err(Incomplete::FundReturnOfNothing);
        }
        Ok(Payment { acquirer: self.acquirer, recorded_at: None, state })
    }
}

fn live(
    life: Life,
    terms: Option<Terms>,
    refunds: Vec<Refund>,
    refused: Option<Verdict>,
) -> Result<State, Incomplete> {
    match (life, terms) {
        (Life::Succeeded, Some(terms)) => {
            Ok(State::Succeeded(Succeeded { terms, refunds, refused }))
        }
        _ if refused.is_some() => Err(Incomplete::RefusedUnpaid),
        (Life::Initiated, Some(terms)) => Ok(State::Initiated(terms)),
        (Life::Initiated | Life::Succeeded, None) => Err(Incomplete::Terms),
        (Life::Failed, terms) => Ok(State::Failed(terms)),
        (Life::Unknown, _) => Err(Incomplete::Nothing),
    }
}

fn money(
    life: Life,
    terms: Option<Terms>,
    told: Option<FundReturn>,
    cancelled_at: Timestamp,
) -> Result<Money, Incomplete> {
    let untouched = match life {
        Life::Unknown => Untouched::Unknown,
        Life::Initiated => Untouched::Initiated,
        Life::Failed => Untouched::Failed,
        Life::Succeeded => {
            let amount = terms.ok_or(Incomplete::Terms)?.amount;
            return match told.ok_or(Incomplete::NoFundReturn)? {
                FundReturn::Due { since } => {
                    Ok(Money::Due { amount, since: since.unwrap_or(cancelled_at) })
                }
                FundReturn::Returned { since, at, reference } => {
                    let since = since.unwrap_or(cancelled_at);
                    Ok(Money::Returned { amount, since, at, reference })
                }
            };
        }
    };
    if told.is_some() {
        Err(Incomplete::FundReturnOfNothing)
    } else {
        Ok(Money::Untouched(untouched))
    }
}

fn check_refunds(refunds: &[Refund], life: Life, terms: Option<Terms>) -> Result<(), Incomplete> {
    if refunds.is_empty() {
        return Ok(());
    }
    let (Life::Succeeded, Some(terms)) = (life, terms) else {
        return Err(Incomplete::RefundsOfUnpaid);
    };
    let twice = refunds
        .iter()
        .enumerate()
        .any(|(at, refund)| refunds.iter().take(at).any(|earlier| earlier.id == refund.id));
    if refunds.len() <= REFUNDS_MAX && twice {
        return Err(Incomplete::RefundTwice);
    }
    if covered(refunds, terms.amount) { Ok(()) } else { Err(Incomplete::Refunds) }
}

/// Whether refunds are few enough, of one currency, and no more than was paid.
fn covered(refunds: &[Refund], amount: Amount) -> bool {
    let one_currency = refunds.iter().all(|refund| refund.amount.currency() == amount.currency());
    let sum = refunds
        .iter()
        .filter(|refund| refund.state != RefundState::Released)
        .fold(0u64, |sum, refund| sum.saturating_add(refund.amount.minor_units()));
    one_currency && refunds.len() <= REFUNDS_MAX && sum <= amount.minor_units()
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is kept as the line says.
    Taken,
    /// It was there before, with the same content.
    AlreadyThere,
    /// What is known here is later than the line, and stays.
    Kept,
    /// Both cannot be true. Nothing changes.
    Rejected(Contradiction),
}

/// What contradicts what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Contradiction {
    /// Another acquirer.
    #[error("the payment is recorded here with another acquirerId")]
    OtherAcquirer,
    /// Another amount or currency.
    #[error("the payment is recorded here with another amount or currency")]
    OtherAmount,
    /// Another amount of a refund.
    #[error("a refund is recorded here with another amount")]
    OtherRefundAmount,
    /// Done there and released here, or the other way round.
    #[error("a refund succeeded on one side and failed on the other")]
    RefundEndedOtherwise,
    /// Both sides' refunds are more than was paid.
    #[error(
        "the refunds of both sides together are more than the payment, or more than a payment may have"
    )]
    RefundsTooMuch,
    /// A cancel was answered F here and S there.
    #[error("a cancel was answered F here and SUCCESS by the line; both are final")]
    AnsweredOtherwise,
    /// Cancelled on one side, refunded on the other: the user would get money twice.
    #[error(
        "the payment is cancelled on one side and refunded on the other: the user may get the money twice"
    )]
    CancelledAndRefunded,
    /// Two returns of the same money.
    #[error(
        "the money went back on both sides, with different references: it may have gone back twice"
    )]
    ReturnedTwice,
}

type Decided = Decision<Payment, Outcome>;

fn reject(contradiction: Contradiction) -> Decided {
    Decision::answer(Outcome::Rejected(contradiction))
}

/// Decides, in the order of precedence.
pub fn decide(known: Option<&Payment>, command: &ImportPayment, asked: &Asked) -> Decided {
    let history = &command.history;
    let Some(known) = known else {
        return take(command, history.clone(), asked);
    };
    let other_acquirer = differ(known.acquirer.as_ref(), history.acquirer.as_ref());
    let other_amount = differ(amount(known), amount(history));
    if let State::Cancelled(here) = &known.state
        && let Some((debited, refunded)) = debited(history)
    {
        match here.money {
            Money::Untouched(_) => {
                return late_success(known, here, (debited, refunded), command, asked);
            }
            // the same line again
            Money::Due { amount, .. } | Money::Returned { amount, .. }
                if amount == debited && !refunded && (other_acquirer || other_amount) =>
            {
                return Decision::answer(Outcome::Kept);
            }
            Money::Due { .. } | Money::Returned { .. } => {}
        }
    }
    if other_acquirer {
        return reject(Contradiction::OtherAcquirer);
    }
    if other_amount {
        return reject(Contradiction::OtherAmount);
    }
    if known.acquirer == history.acquirer && known.state == history.state {
        return Decision::answer(Outcome::AlreadyThere);
    }
    match (&known.state, &history.state) {
        (State::Cancelled(here), State::Cancelled(there)) => {
            cancelled_twice(known, here, there, command, asked)
        }
        (State::Cancelled(here), _) => cancelled_here(known, here, command, asked),
        (_, State::Cancelled(there)) => cancelled_there(known, there, command, asked),
        (State::Succeeded(here), State::Succeeded(there)) => {
            both_succeeded(known, here, there, command, asked)
        }
        (here, there) if rank(there) > rank(here) => {
            let terms = known.terms().or(history.terms());
            let state = match (there, terms) {
                (State::Failed(_), terms) => State::Failed(terms),
                // the first time of initiation stays
                (State::Succeeded(there), Some(terms)) => {
                    State::Succeeded(Succeeded { terms, ..there.clone() })
                }
                (there, _) => there.clone(),
            };
            take(command, merged(known, history, state), asked)
        }
        _ => Decision::answer(Outcome::Kept),
    }
}

/// Later states have higher numbers; the payment core may report a success after a failure.
const fn rank(state: &State) -> u8 {
    match state {
        State::Initiated(_) => 1,
        State::Failed(_) => 2,
        State::Succeeded(_) => 3,
        State::Cancelled(_) => 4,
    }
}

/// Both are named, and they are not the same.
fn differ<T: PartialEq>(here: Option<T>, there: Option<T>) -> bool {
    here.zip(there).is_some_and(|(here, there)| here != there)
}

fn amount(payment: &Payment) -> Option<Amount> {
    payment.terms().map(|terms| terms.amount)
}

/// A payment of history whose money was taken from the user and did not go back.
fn debited(history: &Payment) -> Option<(Amount, bool)> {
    match &history.state {
        State::Succeeded(succeeded) => {
            let open = |refund: &Refund| refund.state != RefundState::Released;
            Some((succeeded.terms.amount, succeeded.refunds.iter().any(open)))
        }
        State::Cancelled(Cancelled { money: Money::Due { amount, .. }, .. }) => {
            Some((*amount, false))
        }
        State::Initiated(_) | State::Failed(_) | State::Cancelled(_) => None,
    }
}

fn merged(known: &Payment, history: &Payment, state: State) -> Payment {
    let acquirer = known.acquirer.clone().or_else(|| history.acquirer.clone());
    Payment { acquirer, recorded_at: known.recorded_at, state }
}

/// What is due now must be heard of; everything else of history was announced by whoever decided it.
fn take(command: &ImportPayment, next: Payment, asked: &Asked) -> Decided {
    let events = match &next.state {
        State::Cancelled(Cancelled { money: Money::Due { amount, since }, .. }) => {
            vec![due(command, &next, *amount, EventCause::CancelPayment, *since, asked)]
        }
        State::Initiated(_) | State::Failed(_) | State::Succeeded(_) | State::Cancelled(_) => {
            Vec::new()
        }
    };
    Decision::keep(told(next, asked), Outcome::Taken).announce(events)
}

/// The line is the payment core's word, and this is when it came.
fn told(next: Payment, asked: &Asked) -> Payment {
    Payment { recorded_at: Some(asked.now), ..next }
}

fn due(
    command: &ImportPayment,
    next: &Payment,
    amount: Amount,
    cause: EventCause,
    since: Timestamp,
    asked: &Asked,
) -> Event {
    let subject = Subject::Payment(command.key.clone());
    let kind = EventKind::FundReturnDue(amount);
    let event = Event::new(kind, subject, next.acquirer.clone(), cause, asked);
    Event { at: since, ..event }
}

/// The user was debited, and Alipay+ was told that the payment is undone: a fact, whatever else contradicts it.
fn late_success(
    known: &Payment,
    here: &Cancelled,
    (amount, refunded): (Amount, bool),
    command: &ImportPayment,
    asked: &Asked,
) -> Decided {
    if refunded {
        return reject(Contradiction::CancelledAndRefunded);
    }
    let history = &command.history;
    let terms = here.terms.or(history.terms());
    let money = Money::Due { amount, since: asked.now };
    let state = State::Cancelled(Cancelled { terms, money, ..here.clone() });
    let next = told(merged(known, history, state), asked);
    let event = due(command, &next, amount, EventCause::LateSuccess, asked.now, asked);
    let mismatch = differ(known.acquirer.as_ref(), history.acquirer.as_ref())
        || differ(self::amount(known), Some(amount));
    let decision = Decision::keep(next, Outcome::Taken).announce(vec![event]);
    if mismatch { decision.alarm(Alarm::LateSuccessMismatch) } else { decision }
}

/// A SUCCESS of here stays; what the line knows of the payment before it is kept if nothing was known.
fn cancelled_here(
    known: &Payment,
    here: &Cancelled,
    command: &ImportPayment,
    asked: &Asked,
) -> Decided {
    let history = &command.history;
    if history.refunds().iter().any(|refund| refund.state != RefundState::Released) {
        return reject(Contradiction::CancelledAndRefunded);
    }
    let money = match (&here.money, history.life()) {
        (Money::Untouched(Untouched::Unknown), Life::Initiated) => {
            Money::Untouched(Untouched::Initiated)
        }
        (Money::Untouched(_), Life::Failed) => Money::Untouched(Untouched::Failed),
        (money, _) => money.clone(),
    };
    let terms = here.terms.or(history.terms());
    let state = State::Cancelled(Cancelled { terms, money, ..here.clone() });
    let next = merged(known, history, state);
    if next == *known {
        return Decision::answer(Outcome::Kept);
    }
    Decision::keep(told(next, asked), Outcome::Kept)
}

/// Both answered SUCCESS: the one of here stays, and the money is where it went furthest.
fn cancelled_twice(
    known: &Payment,
    here: &Cancelled,
    there: &Cancelled,
    command: &ImportPayment,
    asked: &Asked,
) -> Decided {
    let keep = |verdict: &Verdict, money: &Money| {
        let terms = here.terms.or(there.terms);
        let verdict = verdict.clone();
        let state =
            State::Cancelled(Cancelled { verdict, terms, money: money.clone(), ..here.clone() });
        let next = merged(known, &command.history, state);
        Decision::keep(told(next, asked), Outcome::Taken)
    };
    match (&here.money, &there.money) {
        (Money::Due { amount, .. }, Money::Returned { amount: back, .. }) if amount == back => {
            keep(&here.verdict, &there.money)
        }
        // The wallet cancelled it and returned the money before this service ever heard of it: no event, or an executor
        // would return it again. The first SUCCESS stands; it is the line's.
        (Money::Untouched(_), Money::Returned { .. }) => keep(&there.verdict, &there.money),
        (Money::Returned { reference, .. }, Money::Returned { reference: other, .. })
            if reference != other =>
        {
            reject(Contradiction::ReturnedTwice)
        }
        (
            Money::Due { amount, .. } | Money::Returned { amount, .. },
            Money::Due { amount: other, .. } | Money::Returned { amount: other, .. },
        ) if amount != other => reject(Contradiction::OtherAmount),
        _ => Decision::answer(Outcome::Kept),
    }
}

/// The wallet answered SUCCESS before, so that is the answer for ever.
fn cancelled_there(
    known: &Payment,
    there: &Cancelled,
    command: &ImportPayment,
    asked: &Asked,
) -> Decided {
    if let State::Succeeded(Succeeded { refused: Some(_), .. }) = &known.state {
        return reject(Contradiction::AnsweredOtherwise);
    }
    if known.refunds().iter().any(|refund| refund.state != RefundState::Released) {
        return reject(Contradiction::CancelledAndRefunded);
    }
    let history = &command.history;
    let terms = known.terms().or(there.terms);
    let state = |money| {
        let refunds = if there.refunds.is_empty() { known.refunds() } else { &there.refunds };
        let (verdict, refunds) = (there.verdict.clone(), refunds.to_vec());
        State::Cancelled(Cancelled { verdict, terms, refunds, money })
    };
    let untouched = match (known.life(), &there.money) {
        (Life::Succeeded, Money::Untouched(_)) => {
            // debited after the wallet's cancel, and only this service heard of it
            let Some(Terms { amount, .. }) = known.terms() else {
                return Decision::answer(Outcome::Kept); // a success has terms
            };
            let money = Money::Due { amount, since: asked.now };
            let next = told(merged(known, history, state(money)), asked);
            let event = due(command, &next, amount, EventCause::LateSuccess, asked.now, asked);
            return Decision::keep(next, Outcome::Taken).announce(vec![event]);
        }
        (Life::Failed, Money::Untouched(_)) => Money::Untouched(Untouched::Failed),
        (Life::Initiated, Money::Untouched(Untouched::Unknown)) => {
            Money::Untouched(Untouched::Initiated)
        }
        (_, money) => money.clone(),
    };
    take(command, merged(known, history, state(untouched)), asked)
}

/// Refunds of both sides, each as far as it went; a recorded refusal of here stays.
fn both_succeeded(
    known: &Payment,
    here: &Succeeded,
    there: &Succeeded,
    command: &ImportPayment,
    asked: &Asked,
) -> Decided {
    let mut next = here.clone();
    for refund in &there.refunds {
        let Some(known) = next.refunds.iter_mut().find(|known| known.id == refund.id) else {
            next.refunds.push(refund.clone());
            continue;
        };
        if known.amount != refund.amount {
            return reject(Contradiction::OtherRefundAmount);
        }
        match (known.state, refund.state) {
            (RefundState::Reserved, state) => known.state = state,
            (RefundState::Done, RefundState::Released)
            | (RefundState::Released, RefundState::Done) => {
                return reject(Contradiction::RefundEndedOtherwise);
            }
            (RefundState::Done | RefundState::Released, _) => {}
        }
    }
    if !covered(&next.refunds, next.terms.amount) {
        return reject(Contradiction::RefundsTooMuch);
    }
    next.refused = next.refused.or_else(|| there.refused.clone());
    if next == *here {
        return Decision::answer(Outcome::Kept);
    }
    take(command, merged(known, &command.history, State::Succeeded(next)), asked)
}
