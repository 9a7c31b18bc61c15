//! What comes of an event that a consumer kept, to the last field. `upkeep::` has the table of outcomes; here is what the
//! restored store holds afterwards, and what is appended to its feed.

use alipayplus_cancel::domain::{
    Verdict,
    amount::Amount,
    authorization::{Authorization, Revocation, RevocationCause},
    event::{Event, EventCause, EventKind},
    id::{FundReturnReference, PassThroughInfo, RefundId, TraceId},
    key::Subject,
    payment::{Cancelled, Money, Payment, Refund, RefundState, State, Succeeded, Terms, Untouched},
    reconcile::{Conflict, Decision, Kept, Outcome, decide_authorization, decide_payment},
    result::ResultCode,
    time::Timestamp,
};

use crate::values::{acquirer, amount, at, authorization_key, granted, payment_key};

/// When the cancel was decided that the store forgot, and when the money went back.
const DECIDED: i64 = 5_000;
const BACK: i64 = 6_000;

fn terms() -> Terms {
    Terms { amount: amount(1_999), initiated_at: at(5) }
}

fn payment(state: State) -> Payment {
    Payment { acquirer: Some(acquirer("a")), recorded_at: Some(at(7)), state }
}

fn refund(state: RefundState) -> Refund {
    Refund { id: RefundId::parse("1").expect("a legal id"), amount: amount(5), state }
}

fn succeeded(refunds: Vec<Refund>, refused: Option<ResultCode>) -> State {
    let refused = refused.map(|code| Verdict { code, at: at(1), by: None, trace: None });
    State::Succeeded(Succeeded { terms: terms(), refunds, refused })
}

fn cancelled(terms: Option<Terms>, refunds: Vec<Refund>, money: Money) -> State {
    let trace = Some(TraceId([3; 16]));
    let verdict = Verdict { code: ResultCode::Success, at: at(DECIDED), by: None, trace };
    State::Cancelled(Cancelled { verdict, terms, refunds, money })
}

fn untouched(untouched: Untouched) -> Money {
    Money::Untouched(untouched)
}

fn due(minor_units: u64) -> Money {
    Money::Due { amount: amount(minor_units), since: at(DECIDED) }
}

fn reference(text: &str) -> FundReturnReference {
    FundReturnReference::parse(text).expect("a legal reference")
}

fn returned(minor_units: u64) -> Money {
    let (since, at) = (at(DECIDED), at(BACK));
    Money::Returned { amount: amount(minor_units), since, at, reference: reference("r") }
}

fn event(kind: EventKind, cause: EventCause) -> Event {
    Event {
        kind,
        subject: Subject::Payment(payment_key("p")),
        acquirer: Some(acquirer("a")),
        cause,
        at: at(DECIDED),
        result: Some(ResultCode::Success),
        pass_through_info: None,
        trace: Some(TraceId([3; 16])),
    }
}

fn cancelled_event() -> Event {
    event(EventKind::PaymentCancelled, EventCause::CancelPayment)
}

fn due_event(amount: Amount, cause: EventCause) -> Event {
    event(EventKind::FundReturnDue(amount), cause)
}

fn kept(event: Event) -> Kept {
    Kept { event, returned: None }
}

fn and_returned(event: Event, by: &str, when: i64) -> Kept {
    Kept { event, returned: Some((reference(by), Timestamp { unix_ms: when })) }
}

fn restored(state: State, events: Vec<Event>) -> Decision<Payment> {
    Decision { outcome: Outcome::Restored, next: Some(payment(state)), events }
}

fn conflict<S>(conflict: Conflict) -> Decision<S> {
    Decision { outcome: Outcome::Conflict(conflict), next: None, events: vec![] }
}

fn nothing<S>() -> Decision<S> {
    Decision { outcome: Outcome::True, next: None, events: vec![] }
}

fn check(name: &str, before: State, kept: &Kept, expected: &Decision<Payment>) {
    assert_eq!(decide_payment(Some(&payment(before)), kept), *expected, "{name}");
}

#[test]
fn a_forgotten_cancel_is_recorded_with_the_time_and_trace_of_its_event() {
    let cancel = kept(cancelled_event());
    let announced = || vec![cancelled_event()];
    let known = |state, money, terms| {
        check("known", state, &cancel, &restored(cancelled(terms, vec![], money), announced()));
    };
    known(State::Initiated(terms()), untouched(Untouched::Initiated), Some(terms()));
    known(State::Failed(Some(terms())), untouched(Untouched::Failed), Some(terms()));
    known(State::Failed(None), untouched(Untouched::Failed), None);

    let never = decide_payment(None, &cancel);
    let state = cancelled(None, vec![], untouched(Untouched::Unknown));
    let payment = Payment { recorded_at: None, ..payment(state.clone()) };
    assert_eq!(never, Decision { next: Some(payment), ..restored(state, announced()) });
}

#[test]
fn a_payment_that_was_debited_owes_its_money_once_its_cancel_is_known_again() {
    let owed = || cancelled(Some(terms()), vec![], due(1_999));
    let both = || {
        let money = due_event(amount(1_999), EventCause::CancelPayment);
        vec![cancelled_event(), money]
    };
    let paid = || succeeded(vec![], None);
    check("cancelled", paid(), &kept(cancelled_event()), &restored(owed(), both()));
    // the event at hand is appended as it was, and not a second one like it
    let late = due_event(amount(1_999), EventCause::LateSuccess);
    let appended = vec![cancelled_event(), late.clone()];
    check("due", paid(), &kept(late.clone()), &restored(owed(), appended.clone()));
    let back = cancelled(Some(terms()), vec![], returned(1_999));
    check("returned", paid(), &and_returned(late, "r", BACK), &restored(back, appended));

    let told = Event {
        pass_through_info: PassThroughInfo::parse("of the event at hand").ok(),
        ..cancelled_event()
    };
    check("info", paid(), &kept(told), &restored(owed(), both()));
    let less = due_event(amount(5), EventCause::CancelPayment);
    check("another amount", paid(), &kept(less), &conflict(Conflict::OtherAmount));
}

#[test]
fn a_refund_that_the_backup_has_reserved_was_released_before_the_cancel() {
    let cancel = kept(cancelled_event());
    for state in [RefundState::Reserved, RefundState::Released] {
        let after = cancelled(Some(terms()), vec![refund(RefundState::Released)], due(1_999));
        let money = due_event(amount(1_999), EventCause::CancelPayment);
        let expected = restored(after, vec![cancelled_event(), money]);
        check("released", succeeded(vec![refund(state)], None), &cancel, &expected);
    }
    let done = succeeded(vec![refund(RefundState::Done)], None);
    check("made", done, &cancel, &conflict(Conflict::Refunded));
    // both are wrong, and the recorded answer is told first
    let refused = succeeded(vec![refund(RefundState::Done)], Some(ResultCode::ProcessFail));
    check("refused", refused, &cancel, &conflict(Conflict::AnsweredOtherwise));
}

#[test]
fn money_that_fell_due_is_due_again_and_an_event_that_is_there_is_not_appended() {
    let late = |minor_units| due_event(amount(minor_units), EventCause::LateSuccess);
    for money in [Untouched::Unknown, Untouched::Initiated, Untouched::Failed] {
        let before = cancelled(Some(terms()), vec![], untouched(money));
        let after = cancelled(Some(terms()), vec![], due(1_999));
        let expected = restored(after, vec![late(1_999)]);
        check("due", before.clone(), &kept(late(1_999)), &expected);
        check("cancelled", before, &kept(cancelled_event()), &nothing());
    }
    let never = decide_payment(None, &kept(late(1_999)));
    let after = cancelled(None, vec![], due(1_999));
    let after = Payment { recorded_at: None, ..payment(after) };
    assert_eq!(never.next, Some(after));
    assert_eq!(never.events, [cancelled_event(), late(1_999)]);

    for money in [due(1_999), returned(1_999)] {
        let before = cancelled(Some(terms()), vec![], money);
        check("again", before.clone(), &kept(late(1_999)), &nothing());
        check("less", before, &kept(late(5)), &conflict(Conflict::OtherAmount));
    }
}

#[test]
fn a_return_that_the_executor_made_is_recorded_once() {
    let late = due_event(amount(1_999), EventCause::LateSuccess);
    let before = |money| cancelled(Some(terms()), vec![], money);
    let after = restored(before(returned(1_999)), vec![]);
    check("made", before(due(1_999)), &and_returned(late.clone(), "r", BACK), &after);
    // the first word of when stands
    let again = and_returned(late.clone(), "r", BACK + 1);
    check("again", before(returned(1_999)), &again, &nothing());
    let twice = and_returned(late, "r2", BACK);
    check("twice", before(returned(1_999)), &twice, &conflict(Conflict::ReturnedTwice));
    // of a payment of which nothing is due nothing was returned
    let odd = and_returned(cancelled_event(), "r", BACK);
    check("nothing due", before(untouched(Untouched::Failed)), &odd, &nothing());
}

#[test]
fn an_acquirer_is_bound_by_whoever_names_it() {
    let nameless = Payment { acquirer: None, ..payment(State::Initiated(terms())) };
    let event =
        |name: Option<&str>| kept(Event { acquirer: name.map(acquirer), ..cancelled_event() });
    let bound = |known: &Payment, name| {
        decide_payment(Some(known), &event(name)).next.expect("restored").acquirer
    };
    let named = payment(State::Initiated(terms()));
    assert_eq!(bound(&nameless, Some("b")), Some(acquirer("b")));
    assert_eq!(bound(&nameless, None), None);
    assert_eq!(bound(&named, None), Some(acquirer("a")));
    assert_eq!(bound(&named, Some("a")), Some(acquirer("a")));
    let other = decide_payment(Some(&named), &event(Some("b")));
    assert_eq!(other, conflict(Conflict::OtherAcquirer));
}

#[test]
fn a_forgotten_revocation_is_recorded_with_its_cause() {
    let revoked = |cause| {
        let at = at(DECIDED);
        Some(Revocation { at, cause, trace: Some(TraceId([3; 16])) })
    };
    let mine = granted().acquirer;
    let event = |cause, acquirer| Event {
        kind: EventKind::AuthorizationRevoked,
        subject: Subject::Authorization(authorization_key("g")),
        acquirer,
        ..event(EventKind::AuthorizationRevoked, cause)
    };
    let info = PassThroughInfo::parse("kept").ok();
    let known = Authorization { pass_through_info: info, ..granted() };
    for (cause, recorded) in [
        (EventCause::CancelToken, RevocationCause::CancelToken),
        (EventCause::RevokeAuthorization, RevocationCause::RevokeAuthorization),
    ] {
        let kept = kept(event(cause, Some(mine.clone())));
        let after = Authorization { revoked: revoked(recorded), ..known.clone() };
        let events = vec![kept.event.clone()];
        let expected = Decision { outcome: Outcome::Restored, next: Some(after.clone()), events };
        assert_eq!(decide_authorization(Some(&known), &kept), expected);
        assert_eq!(decide_authorization(Some(&after), &kept), nothing());

        let unknown = Authorization { revoked: revoked(recorded), ..granted() };
        let expected = Decision { next: Some(unknown), ..expected };
        assert_eq!(decide_authorization(None, &kept), expected);
    }
    let others = kept(event(EventCause::CancelToken, Some(acquirer("b"))));
    let contradicted = conflict(Conflict::OtherAcquirer);
    assert_eq!(decide_authorization(Some(&known), &others), contradicted);
    let already = Authorization { revoked: revoked(RevocationCause::CancelToken), ..known.clone() };
    assert_eq!(
        decide_authorization(Some(&already), &others),
        contradicted,
        "even if it is revoked"
    );
    let nobodys = kept(event(EventCause::CancelToken, None));
    assert_eq!(decide_authorization(None, &nobodys), conflict(Conflict::NobodysAuthorization));
    assert!(decide_authorization(Some(&known), &nobodys).next.is_some());
    assert_eq!(decide_authorization(Some(&already), &nobodys), nothing());
}
