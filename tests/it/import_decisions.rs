//! What comes of a line of history to the last field: the payment that is kept, the event, the alarm. `import::` has the
//! table of outcomes; here are the borders between its rows.
#![expect(
    clippy::needless_pass_by_value,
    reason = "rows of tables: what a row holds is handed over"
)]

use alipayplus_cancel::domain::{
    Alarm, Asked, Verdict,
    amount::{Amount, Currency},
    event::{Event, EventCause, EventKind},
    id::{FundReturnReference, RefundId, TraceId},
    import_payment::{
        self, Contradiction, FundReturn, ImportPayment, Incomplete, Outcome, Told, decide,
    },
    key::Subject,
    payment::{
        Cancelled, Life, Money, Payment, REFUNDS_MAX, Refund, RefundState, State, Succeeded, Terms,
        Untouched,
    },
    result::ResultCode,
    time::Timestamp,
};

use crate::values::{acquirer, amount, at, payment_key};

const NOW: i64 = 9_000;
/// When the other side's cancel was answered, and when ours was.
const THERE: i64 = 3_000;
const HERE: i64 = 4_000;

fn asked() -> Asked {
    Asked {
        now: at(NOW),
        clock_agrees: true,
        onboarding: true,
        tombstone_allowed: true,
        by: None,
        trace: Some(TraceId([5; 16])),
    }
}

fn terms() -> Terms {
    Terms { amount: amount(1_999), initiated_at: at(5) }
}

/// The same payment, told with another time.
fn later_terms() -> Terms {
    Terms { initiated_at: at(6), ..terms() }
}

fn refund(id: &str, minor_units: u64, state: RefundState) -> Refund {
    Refund { id: RefundId::parse(id).expect("a legal id"), amount: amount(minor_units), state }
}

fn reference(text: &str) -> FundReturnReference {
    FundReturnReference::parse(text).expect("a legal reference")
}

/// Our verdict has a trace, one that was imported has none.
fn ours(code: ResultCode) -> Verdict {
    Verdict { code, at: at(HERE), by: None, trace: Some(TraceId([7; 16])) }
}

fn theirs(code: ResultCode) -> Verdict {
    Verdict { code, at: at(THERE), by: None, trace: None }
}

fn payment(state: State) -> Payment {
    Payment { acquirer: Some(acquirer("a")), recorded_at: Some(at(7)), state }
}

fn initiated(terms: Terms) -> State {
    State::Initiated(terms)
}

fn succeeded(refunds: Vec<Refund>) -> State {
    State::Succeeded(Succeeded { terms: terms(), refunds, refused: None })
}

fn refused(verdict: Verdict) -> State {
    State::Succeeded(Succeeded { terms: terms(), refunds: vec![], refused: Some(verdict) })
}

fn cancelled(verdict: Verdict, terms: Option<Terms>, money: Money) -> State {
    State::Cancelled(Cancelled { verdict, terms, refunds: vec![], money })
}

fn untouched(untouched: Untouched) -> Money {
    Money::Untouched(untouched)
}

fn due(minor_units: u64, since: i64) -> Money {
    Money::Due { amount: amount(minor_units), since: at(since) }
}

fn returned(minor_units: u64, reference_: &str) -> Money {
    let (since, at) = (at(THERE), at(THERE + 1));
    Money::Returned { amount: amount(minor_units), since, at, reference: reference(reference_) }
}

/// Cancelled by this service, or by the wallet before it.
fn here(terms: Option<Terms>, money: Money) -> State {
    cancelled(ours(ResultCode::Success), terms, money)
}

fn there(terms: Option<Terms>, money: Money) -> State {
    cancelled(theirs(ResultCode::Success), terms, money)
}

/// What must come of a line.
#[derive(Debug, PartialEq)]
struct Expected {
    outcome: Outcome,
    /// With the acquirer of the test, told of now.
    kept: Option<State>,
    due: Option<(EventCause, Amount, Timestamp)>,
    alarm: Option<Alarm>,
}

fn stays(outcome: Outcome) -> Expected {
    Expected { outcome, kept: None, due: None, alarm: None }
}

fn rejects(contradiction: Contradiction) -> Expected {
    stays(Outcome::Rejected(contradiction))
}

fn takes(state: State) -> Expected {
    Expected { kept: Some(state), ..stays(Outcome::Taken) }
}

impl Expected {
    fn announces(self, cause: EventCause, minor_units: u64, since: i64) -> Self {
        Self { due: Some((cause, amount(minor_units), at(since))), ..self }
    }

    fn alarms(self) -> Self {
        Self { alarm: Some(Alarm::LateSuccessMismatch), ..self }
    }
}

/// Both sides name acquirer "a" unless a row says otherwise.
fn check(name: &str, known: State, history: State, expected: Expected) {
    check_payments(name, Some(payment(known)), payment(history), expected);
}

fn check_payments(name: &str, known: Option<Payment>, history: Payment, expected: Expected) {
    let history = Payment { recorded_at: None, ..history };
    let command = ImportPayment { key: payment_key("p"), history };
    let decision = decide(known.as_ref(), &command, &asked());
    assert_eq!(decision.outcome, expected.outcome, "{name}");
    assert_eq!(decision.alarm, expected.alarm, "{name}: the alarm");
    let kept = expected.kept.map(|state| Payment { recorded_at: Some(at(NOW)), ..payment(state) });
    assert_eq!(decision.next, kept, "{name}: what is kept");
    let events: Vec<Event> = expected
        .due
        .map(|(cause, amount, since)| Event {
            kind: EventKind::FundReturnDue(amount),
            subject: Subject::Payment(payment_key("p")),
            acquirer: Some(acquirer("a")),
            cause,
            at: since,
            result: Some(ResultCode::Success),
            pass_through_info: None,
            trace: Some(TraceId([5; 16])),
        })
        .into_iter()
        .collect();
    assert_eq!(decision.events, events, "{name}: what is announced");
}

// ---------------------------------------------------------------- what a line says

fn told(life: Life) -> Told {
    Told {
        acquirer: Some(acquirer("a")),
        amount: Some(amount(1_999)),
        initiated_at: Some(at(5)),
        life,
        refunds: vec![],
        cancel: None,
        fund_return: None,
    }
}

fn success() -> Option<(ResultCode, Timestamp)> {
    Some((ResultCode::Success, at(THERE)))
}

#[test]
fn a_line_is_a_payment_only_if_it_says_all_that_its_state_needs() {
    let made = |told: Told| told.payment().map(|payment| payment.state);
    assert_eq!(made(told(Life::Initiated)), Ok(initiated(terms())));
    assert_eq!(made(told(Life::Failed)), Ok(State::Failed(Some(terms()))));
    assert_eq!(made(told(Life::Succeeded)), Ok(succeeded(vec![])));
    let nameless = |life| Told { acquirer: None, ..told(life) };
    let termless = |life| Told { amount: None, initiated_at: None, ..told(life) };
    for life in [Life::Initiated, Life::Succeeded] {
        assert_eq!(made(nameless(life)), Err(Incomplete::Terms), "{life:?}");
        assert_eq!(made(termless(life)), Err(Incomplete::Terms), "{life:?}");
    }
    assert_eq!(made(nameless(Life::Failed)), Ok(State::Failed(Some(terms()))));
    assert_eq!(made(termless(Life::Failed)), Ok(State::Failed(None)));
    for life in [Life::Initiated, Life::Failed, Life::Unknown] {
        let half = Told { amount: None, ..told(life) };
        assert_eq!(made(half), Err(Incomplete::HalfTerms), "{life:?}");
        let half = Told { initiated_at: None, ..told(life) };
        assert_eq!(made(half), Err(Incomplete::HalfTerms), "{life:?}");
    }
    assert_eq!(made(told(Life::Unknown)), Err(Incomplete::Nothing));
    let unknown = Told { cancel: success(), ..termless(Life::Unknown) };
    assert_eq!(made(unknown), Ok(there(None, untouched(Untouched::Unknown))));
}

#[test]
fn a_line_tells_a_cancel_with_what_became_of_the_money() {
    let made = |told: Told| told.payment().map(|payment| payment.state);
    let with = |life, cancel, fund_return| Told { cancel, fund_return, ..told(life) };
    for (life, money) in
        [(Life::Initiated, Untouched::Initiated), (Life::Failed, Untouched::Failed)]
    {
        let state = there(Some(terms()), untouched(money));
        assert_eq!(made(with(life, success(), None)), Ok(state), "{life:?}");
        let nothing = with(life, success(), Some(FundReturn::Due { since: None }));
        assert_eq!(made(nothing), Err(Incomplete::FundReturnOfNothing), "{life:?}");
    }
    let paid = |fund_return| with(Life::Succeeded, success(), fund_return);
    assert_eq!(made(paid(None)), Err(Incomplete::NoFundReturn));
    for (since, expected) in [(None, THERE), (Some(at(77)), 77)] {
        let state = there(Some(terms()), due(1_999, expected));
        assert_eq!(made(paid(Some(FundReturn::Due { since }))), Ok(state));
        let (at, reference) = (at(88), reference("r"));
        let back = FundReturn::Returned { since, at, reference: reference.clone() };
        let money = Money::Returned {
            amount: amount(1_999),
            since: crate::values::at(expected),
            at,
            reference,
        };
        assert_eq!(made(paid(Some(back))), Ok(there(Some(terms()), money)));
    }
    // a refusal is of a payment that was debited, and leaves the money where it is
    for code in [ResultCode::CancelWindowExceed, ResultCode::ProcessFail] {
        let refusal = Some((code, at(THERE)));
        assert_eq!(made(with(Life::Succeeded, refusal, None)), Ok(refused(theirs(code))));
        for life in [Life::Initiated, Life::Failed, Life::Unknown] {
            let unpaid = with(life, refusal, None);
            assert_eq!(made(unpaid), Err(Incomplete::RefusedUnpaid), "{life:?}");
        }
        let returned = with(Life::Succeeded, refusal, Some(FundReturn::Due { since: None }));
        assert_eq!(made(returned), Err(Incomplete::FundReturnOfNothing));
    }
    let alive = with(Life::Succeeded, None, Some(FundReturn::Due { since: None }));
    assert_eq!(made(alive), Err(Incomplete::FundReturnOfNothing));
    for code in ResultCode::ALL {
        let is_final = matches!(
            code,
            ResultCode::Success | ResultCode::CancelWindowExceed | ResultCode::ProcessFail
        );
        let answered = made(with(Life::Succeeded, Some((code, at(1))), None));
        assert_eq!(answered == Err(Incomplete::Code), !is_final, "{code:?}");
    }
}

#[test]
fn a_line_has_refunds_only_of_what_was_paid_and_no_more_than_that() {
    use RefundState::{Done, Released, Reserved};
    let made = |life, refunds| Told { refunds, ..told(life) }.payment().map(|it| it.state);
    for life in [Life::Initiated, Life::Failed, Life::Unknown] {
        let unpaid = made(life, vec![refund("1", 1, Released)]);
        assert_eq!(unpaid, Err(Incomplete::RefundsOfUnpaid), "{life:?}");
    }
    for (name, refunds, good) in [
        ("all of it", vec![refund("1", 999, Done), refund("2", 1_000, Reserved)], true),
        ("a cent more", vec![refund("1", 999, Done), refund("2", 1_001, Reserved)], false),
        ("released is nothing", vec![refund("1", 1_999, Released), refund("2", 1_999, Done)], true),
    ] {
        let expected = if good { Ok(succeeded(refunds.clone())) } else { Err(Incomplete::Refunds) };
        assert_eq!(made(Life::Succeeded, refunds), expected, "{name}");
    }
    let dollars = Amount::new(1, Currency::parse("USD").expect("a currency")).expect("an amount");
    let elsewhere = Refund { amount: dollars, ..refund("1", 1, Released) };
    assert_eq!(made(Life::Succeeded, vec![elsewhere]), Err(Incomplete::Refunds));
    let twice = vec![refund("1", 1, Done), refund("2", 1, Done), refund("1", 2, Released)];
    assert_eq!(made(Life::Succeeded, twice), Err(Incomplete::RefundTwice));

    let many = |count: usize| (0..count).map(|nth| refund(&nth.to_string(), 1, Done)).collect();
    let all: Vec<Refund> = many(REFUNDS_MAX);
    assert_eq!(made(Life::Succeeded, all.clone()), Ok(succeeded(all.clone())));
    assert_eq!(made(Life::Succeeded, many(REFUNDS_MAX + 1)), Err(Incomplete::Refunds));
    // with one too many nobody looks for those that are there twice
    let twice = [all.clone(), vec![all[0].clone()]].concat();
    assert_eq!(made(Life::Succeeded, twice), Err(Incomplete::Refunds));
    let mut last_twice = all;
    last_twice[REFUNDS_MAX - 1] = last_twice[0].clone();
    assert_eq!(made(Life::Succeeded, last_twice), Err(Incomplete::RefundTwice));
}

#[test]
fn a_cancelled_payment_of_history_has_no_refund_that_was_made() {
    for (state, good) in
        [(RefundState::Reserved, false), (RefundState::Done, false), (RefundState::Released, true)]
    {
        let told = Told {
            refunds: vec![refund("1", 5, state)],
            cancel: success(),
            fund_return: Some(FundReturn::Due { since: None }),
            ..told(Life::Succeeded)
        };
        let made = told.payment();
        if good {
            assert_eq!(made.expect("a payment").refunds().len(), 1);
        } else {
            assert_eq!(made, Err(Incomplete::RefundsOfCancelled), "{state:?}");
        }
    }
}

// ---------------------------------------------------------------- what comes of it

#[test]
fn a_payment_that_nobody_knew_is_kept_as_the_line_says() {
    let new = |state: State, expected| check_payments("new", None, payment(state), expected);
    new(initiated(terms()), takes(initiated(terms())));
    new(State::Failed(None), takes(State::Failed(None)));
    let owed = there(Some(terms()), due(1_999, THERE));
    let cause = EventCause::CancelPayment;
    new(owed.clone(), takes(owed).announces(cause, 1_999, THERE));
    let back = there(Some(terms()), returned(1_999, "r"));
    new(back.clone(), takes(back));
}

#[test]
fn a_success_that_comes_with_history_makes_the_money_of_a_cancelled_payment_due() {
    let late = EventCause::LateSuccess;
    for (before, kept_terms) in [
        (here(None, untouched(Untouched::Unknown)), terms()),
        (here(Some(later_terms()), untouched(Untouched::Initiated)), later_terms()),
        (here(Some(later_terms()), untouched(Untouched::Failed)), later_terms()),
    ] {
        let after = here(Some(kept_terms), due(1_999, NOW));
        for history in [succeeded(vec![]), there(Some(terms()), due(1_999, THERE))] {
            let expected = takes(after.clone()).announces(late, 1_999, NOW);
            check("a late success", before.clone(), history, expected);
        }
        // a refund that was not made takes nothing from what is due
        let released = succeeded(vec![refund("1", 5, RefundState::Released)]);
        let expected = takes(after).announces(late, 1_999, NOW);
        check("released", before.clone(), released, expected);
        for state in [RefundState::Reserved, RefundState::Done] {
            let refunded = succeeded(vec![refund("1", 5, state)]);
            let rejected = rejects(Contradiction::CancelledAndRefunded);
            check("refunded", before.clone(), refunded, rejected);
        }
        // nothing was debited there either, or it is back already
        let history = there(Some(terms()), returned(1_999, "r"));
        let expected = takes(there(Some(kept_terms), returned(1_999, "r")));
        check("returned by the wallet", before, history, expected);
    }
}

#[test]
fn a_late_success_of_another_acquirer_or_amount_is_due_and_alarms() {
    let late = EventCause::LateSuccess;
    let before = here(Some(terms()), untouched(Untouched::Initiated));
    let less = State::Succeeded(Succeeded {
        terms: Terms { amount: amount(1_500), ..terms() },
        refunds: vec![],
        refused: None,
    });
    let expected = takes(here(Some(terms()), due(1_500, NOW))).announces(late, 1_500, NOW);
    check("another amount", before.clone(), less, expected.alarms());
    let other = Payment { acquirer: Some(acquirer("b")), ..payment(succeeded(vec![])) };
    let expected = takes(here(Some(terms()), due(1_999, NOW))).announces(late, 1_999, NOW);
    check_payments("another acquirer", Some(payment(before)), other, expected.alarms());
}

#[test]
fn the_line_of_a_late_success_is_no_contradiction_when_it_comes_again() {
    // what such a line left: due as debited, recorded otherwise
    let line = |minor_units, refunds| {
        let terms = Terms { amount: amount(minor_units), ..terms() };
        State::Succeeded(Succeeded { terms, refunds, refused: None })
    };
    for money in [due(1_500, HERE), returned(1_500, "r")] {
        let before = here(Some(terms()), money);
        check("again", before.clone(), line(1_500, vec![]), stays(Outcome::Kept));
        let refunds = vec![refund("1", 5, RefundState::Done)];
        let rejected = rejects(Contradiction::OtherAmount);
        check("refunded since", before.clone(), line(1_500, refunds), rejected);
        let rejected = rejects(Contradiction::OtherAmount);
        check("yet another amount", before.clone(), line(1_400, vec![]), rejected);
        let other = Payment { acquirer: Some(acquirer("b")), ..payment(line(1_500, vec![])) };
        check_payments("both", Some(payment(before)), other, stays(Outcome::Kept));
    }
    let before = payment(here(Some(terms()), due(1_999, HERE)));
    let of_b = |state| Payment { acquirer: Some(acquirer("b")), ..payment(state) };
    let again = of_b(line(1_999, vec![]));
    check_payments("another acquirer", Some(before.clone()), again, stays(Outcome::Kept));
    let refunded = of_b(line(1_999, vec![refund("1", 5, RefundState::Done)]));
    let rejected = rejects(Contradiction::OtherAcquirer);
    check_payments("and refunded", Some(before), refunded, rejected);
}

#[test]
fn of_both_cancels_the_first_success_stands_and_the_money_is_where_it_went_furthest() {
    let back = |reference| there(Some(later_terms()), returned(1_999, reference));
    // due here and returned by the wallet: our verdict, their return
    let after = cancelled(ours(ResultCode::Success), Some(terms()), returned(1_999, "r"));
    check("returned there", here(Some(terms()), due(1_999, HERE)), back("r"), takes(after));
    let without = here(None, due(1_999, HERE));
    let after = cancelled(ours(ResultCode::Success), Some(later_terms()), returned(1_999, "r"));
    check("and terms", without, back("r"), takes(after));
    // never heard of here: all of it is theirs, and nobody may return it again
    let after = there(Some(terms()), returned(1_999, "r"));
    let before = here(Some(terms()), untouched(Untouched::Initiated));
    check("untouched here", before, back("r"), takes(after));

    let before = here(Some(terms()), returned(1_999, "r"));
    check("with the same reference", before.clone(), back("r"), stays(Outcome::Kept));
    let twice = rejects(Contradiction::ReturnedTwice);
    check("with another reference", before.clone(), back("r2"), twice);
    let owed = there(Some(later_terms()), due(1_999, THERE));
    check("returned here", before, owed.clone(), stays(Outcome::Kept));
    check("due twice", here(Some(terms()), due(1_999, HERE)), owed, stays(Outcome::Kept));
    let nothing = there(Some(later_terms()), untouched(Untouched::Failed));
    check("untouched there", here(Some(terms()), due(1_999, HERE)), nothing, stays(Outcome::Kept));

    // the amounts of the money differ where those of the terms do not: a late success told another
    for (before, line) in [
        (due(1_500, HERE), returned(1_999, "r")),
        (due(1_500, HERE), due(1_999, THERE)),
        (returned(1_500, "r"), returned(1_999, "r")),
        (returned(1_500, "r"), due(1_999, THERE)),
    ] {
        let (known, line) = (here(Some(terms()), before), there(Some(later_terms()), line));
        check("another amount", known, line, rejects(Contradiction::OtherAmount));
    }
}

#[test]
fn a_line_without_a_cancel_adds_only_what_was_not_known_of_a_cancelled_payment() {
    let unknown = || here(None, untouched(Untouched::Unknown));
    let learns = |state| Expected { kept: Some(state), ..stays(Outcome::Kept) };
    let after = here(Some(terms()), untouched(Untouched::Initiated));
    check("initiated", unknown(), initiated(terms()), learns(after.clone()));
    check("once", after.clone(), initiated(later_terms()), stays(Outcome::Kept));
    let failed = State::Failed(Some(later_terms()));
    let both = here(Some(later_terms()), untouched(Untouched::Failed));
    check("failed", unknown(), failed.clone(), learns(both.clone()));
    check("not after all", both, initiated(terms()), stays(Outcome::Kept));
    check(
        "failed later",
        after,
        failed.clone(),
        learns(here(Some(terms()), untouched(Untouched::Failed))),
    );
    let owed = here(Some(terms()), due(1_999, HERE));
    check("debited since", owed.clone(), failed, stays(Outcome::Kept));
    check("debited since", owed.clone(), initiated(later_terms()), stays(Outcome::Kept));
    let nameless = here(None, due(1_999, HERE));
    check("terms", nameless, initiated(terms()), learns(owed.clone()));
    let released = succeeded(vec![refund("1", 5, RefundState::Released)]);
    check("released", owed.clone(), released, stays(Outcome::Kept));
    for state in [RefundState::Reserved, RefundState::Done] {
        let refunded = succeeded(vec![refund("1", 5, state)]);
        let rejected = rejects(Contradiction::CancelledAndRefunded);
        check("refunded", owed.clone(), refunded, rejected);
    }
}

#[test]
fn a_cancel_of_history_is_the_answer_of_a_payment_that_was_not_cancelled_here() {
    let late = EventCause::LateSuccess;
    let of = |terms, money| there(Some(terms), money);
    // debited here, and the wallet's cancel knew nothing of it
    for history in [
        there(None, untouched(Untouched::Unknown)),
        of(later_terms(), untouched(Untouched::Initiated)),
        of(later_terms(), untouched(Untouched::Failed)),
    ] {
        let after = takes(of(terms(), due(1_999, NOW))).announces(late, 1_999, NOW);
        check("debited here", succeeded(vec![]), history, after);
    }
    let owed = of(later_terms(), due(1_999, THERE));
    let after = takes(of(terms(), due(1_999, THERE)));
    let announced = after.announces(EventCause::CancelPayment, 1_999, THERE);
    check("due", succeeded(vec![]), owed, announced);
    let back = of(later_terms(), returned(1_999, "r"));
    check("returned", succeeded(vec![]), back, takes(of(terms(), returned(1_999, "r"))));

    // nothing was debited: the later of two words stands
    for (known, line, after) in [
        (initiated(terms()), Untouched::Unknown, Untouched::Initiated),
        (initiated(terms()), Untouched::Initiated, Untouched::Initiated),
        (initiated(terms()), Untouched::Failed, Untouched::Failed),
        (State::Failed(Some(terms())), Untouched::Unknown, Untouched::Failed),
        (State::Failed(Some(terms())), Untouched::Initiated, Untouched::Failed),
        (State::Failed(Some(terms())), Untouched::Failed, Untouched::Failed),
    ] {
        let line_ = of(later_terms(), untouched(line));
        check(&format!("{line:?}"), known, line_, takes(of(terms(), untouched(after))));
    }
    let back = of(later_terms(), returned(1_999, "r"));
    let failed = State::Failed(None);
    check("failed here", failed, back.clone(), takes(back.clone()));

    for code in [ResultCode::CancelWindowExceed, ResultCode::ProcessFail] {
        let rejected = rejects(Contradiction::AnsweredOtherwise);
        check("refused here", refused(ours(code)), back.clone(), rejected);
    }
    for state in [RefundState::Reserved, RefundState::Done] {
        let refunded = succeeded(vec![refund("1", 5, state)]);
        let rejected = rejects(Contradiction::CancelledAndRefunded);
        check("refunded here", refunded, back.clone(), rejected);
    }
}

#[test]
fn refunds_that_were_not_made_stay_with_a_cancelled_payment() {
    let (ours, theirs) =
        (refund("1", 5, RefundState::Released), refund("2", 6, RefundState::Released));
    let back = |refunds| {
        let (verdict, money) = (self::theirs(ResultCode::Success), returned(1_999, "r"));
        State::Cancelled(Cancelled { verdict, terms: Some(terms()), refunds, money })
    };
    let known = || succeeded(vec![ours.clone()]);
    check("ours", known(), back(vec![]), takes(back(vec![ours.clone()])));
    check("theirs", known(), back(vec![theirs.clone()]), takes(back(vec![theirs.clone()])));
}

#[test]
fn of_two_lives_the_later_one_stands_with_the_first_terms() {
    let failed = |terms| State::Failed(terms);
    let paid = State::Succeeded(Succeeded { terms: later_terms(), refunds: vec![], refused: None });
    let first = succeeded(vec![]);
    check("failed", initiated(terms()), failed(None), takes(failed(Some(terms()))));
    check("failed", initiated(terms()), failed(Some(later_terms())), takes(failed(Some(terms()))));
    check("paid", initiated(terms()), paid.clone(), takes(first.clone()));
    check("paid after all", failed(Some(terms())), paid.clone(), takes(first.clone()));
    check("paid after all", failed(None), paid.clone(), takes(paid.clone()));
    // neither later nor the same
    check("initiated twice", initiated(terms()), initiated(later_terms()), stays(Outcome::Kept));
    check("failed twice", failed(None), failed(Some(terms())), stays(Outcome::Kept));
    check("failed before", first.clone(), failed(Some(terms())), stays(Outcome::Kept));
    check("initiated before", failed(Some(terms())), initiated(terms()), stays(Outcome::Kept));
    check("the same", first.clone(), first.clone(), stays(Outcome::AlreadyThere));
    // the same but for the acquirer, whom one side does not name
    let nameless = Payment { acquirer: None, ..payment(failed(None)) };
    check_payments("nameless", Some(nameless.clone()), payment(failed(None)), stays(Outcome::Kept));
    check_payments("nameless", Some(payment(failed(None))), nameless.clone(), stays(Outcome::Kept));
    // whom only one side names, the payment belongs to
    let later = takes(first.clone());
    check_payments("bound by the line", Some(nameless), payment(first), later);
    let nameless = Payment { acquirer: None, ..payment(failed(Some(terms()))) };
    check_payments(
        "bound here",
        Some(payment(initiated(terms()))),
        nameless,
        takes(failed(Some(terms()))),
    );
}

#[test]
fn what_both_sides_name_differently_is_refused() {
    let of_b = |state| Payment { acquirer: Some(acquirer("b")), ..payment(state) };
    let known = || Some(payment(initiated(terms())));
    let other = rejects(Contradiction::OtherAcquirer);
    check_payments("acquirer", known(), of_b(initiated(terms())), other);
    let other = Terms { amount: amount(2_000), ..terms() };
    check("amount", initiated(terms()), initiated(other), rejects(Contradiction::OtherAmount));
    let dollars = Amount::new(1_999, Currency::parse("USD").expect("one")).expect("an amount");
    let other = Terms { amount: dollars, ..terms() };
    check("currency", initiated(terms()), initiated(other), rejects(Contradiction::OtherAmount));
}

#[test]
fn refunds_of_both_sides_go_as_far_as_they_went() {
    use RefundState::{Done, Released, Reserved};
    let one = |state| succeeded(vec![refund("1", 1_000, state)]);
    for (known, line, after) in [
        (Reserved, Done, Some(Done)),
        (Reserved, Released, Some(Released)),
        (Reserved, Reserved, None),
        (Done, Reserved, None),
        (Done, Done, None),
        (Released, Reserved, None),
        (Released, Released, None),
    ] {
        let line_ = State::Succeeded(Succeeded {
            terms: later_terms(),
            refunds: vec![refund("1", 1_000, line)],
            refused: None,
        });
        let expected = after.map_or(stays(Outcome::Kept), |state| takes(one(state)));
        check(&format!("{known:?}, {line:?}"), one(known), line_, expected);
    }
    for (known, line) in [(Done, Released), (Released, Done)] {
        let rejected = rejects(Contradiction::RefundEndedOtherwise);
        check("ended otherwise", one(known), one(line), rejected);
    }
    let other = succeeded(vec![refund("1", 999, Done)]);
    check("amount", one(Done), other, rejects(Contradiction::OtherRefundAmount));

    // one that was not known comes behind, as long as both are covered
    let both = succeeded(vec![refund("1", 1_000, Done), refund("2", 999, Reserved)]);
    let second = |minor_units| succeeded(vec![refund("2", minor_units, Reserved)]);
    check("another refund", one(Done), second(999), takes(both));
    check("too much", one(Done), second(1_000), rejects(Contradiction::RefundsTooMuch));
    let many = |from: usize, count: usize| {
        (from..from + count).map(|nth| refund(&nth.to_string(), 1, Done)).collect::<Vec<_>>()
    };
    let known = succeeded(many(0, REFUNDS_MAX - 1));
    let last = takes(succeeded(many(0, REFUNDS_MAX)));
    check("the last", known.clone(), succeeded(many(REFUNDS_MAX - 1, 1)), last);
    let rejected = rejects(Contradiction::RefundsTooMuch);
    check("one too many", known, succeeded(many(REFUNDS_MAX - 1, 2)), rejected);

    let (window, fail) = (ResultCode::CancelWindowExceed, ResultCode::ProcessFail);
    check("a refusal", succeeded(vec![]), refused(theirs(window)), takes(refused(theirs(window))));
    check("ours", refused(ours(fail)), refused(theirs(window)), stays(Outcome::Kept));
}

#[test]
fn a_line_that_comes_again_says_nothing_new() {
    for state in [
        initiated(terms()),
        State::Failed(None),
        succeeded(vec![refund("1", 5, RefundState::Done)]),
        refused(theirs(ResultCode::ProcessFail)),
        there(None, untouched(Untouched::Unknown)),
        there(Some(terms()), due(1_999, THERE)),
        there(Some(terms()), returned(1_999, "r")),
    ] {
        let command = ImportPayment {
            key: payment_key("p"),
            history: Payment { recorded_at: None, ..payment(state) },
        };
        let first = import_payment::decide(None, &command, &asked());
        let again = import_payment::decide(first.next.as_ref(), &command, &asked());
        assert_eq!(again.outcome, Outcome::AlreadyThere, "{:?}", command.history);
        assert_eq!((again.next, again.events), (None, vec![]));
    }
}

// ---------------------------------------------------------------- tokens

mod tokens {
    use alipayplus_cancel::domain::{
        Decision, Verdict,
        authorization::{Authorization, Revocation, RevocationCause},
        id::PassThroughInfo,
        import_token::{Contradiction, ImportToken, Next, Outcome, decide},
        result::ResultCode,
        token::{Recorded, Token, TokenKind},
    };

    use crate::values::{acquirer, at, authorization_key, granted, token_key};

    fn command() -> ImportToken {
        ImportToken {
            key: token_key(1, 1),
            authorization: authorization_key("g"),
            acquirer: granted().acquirer,
            kind: TokenKind::Access,
            expires_at: Some(at(50)),
            replaces: None,
            cancelled_at: None,
            revoked_at: None,
            pass_through_info: None,
        }
    }

    fn recorded() -> Recorded {
        Recorded {
            authorization: authorization_key("g").authorization,
            kind: TokenKind::Access,
            expires_at: Some(at(50)),
            replaced_by: None,
            cancelled: None,
        }
    }

    fn success(unix_ms: i64) -> Option<Verdict> {
        Some(Verdict { code: ResultCode::Success, at: at(unix_ms), by: None, trace: None })
    }

    fn revoked(unix_ms: i64, cause: RevocationCause) -> Option<Revocation> {
        Some(Revocation { at: at(unix_ms), cause, trace: None })
    }

    fn info(text: &str) -> Option<PassThroughInfo> {
        Some(PassThroughInfo::parse(text).expect("legal"))
    }

    fn check(
        name: &str,
        (token, replaced, grant): (Option<Recorded>, Option<Recorded>, Option<Authorization>),
        command: &ImportToken,
        expected: Result<Next, Outcome>,
    ) {
        let (token, replaced) = (token.map(Token::Recorded), replaced.map(Token::Recorded));
        let decision = decide(token.as_ref(), replaced.as_ref(), grant.as_ref(), command);
        let (next, outcome) = match expected {
            Ok(next) => (Some(next), Outcome::Taken),
            Err(outcome) => (None, outcome),
        };
        assert_eq!(decision, Decision { next, outcome, events: vec![], alarm: None }, "{name}");
    }

    /// The token and the grant as they are to be written, where they change.
    fn writes(
        token: Option<Recorded>,
        authorization: Option<Authorization>,
    ) -> Result<Next, Outcome> {
        Ok(Next { token: token.map(Token::Recorded), replaced: None, authorization })
    }

    #[test]
    fn a_token_that_nobody_knew_is_kept_with_its_grant_and_never_as_good_as_it_was() {
        use RevocationCause::{CancelToken, RevokeAuthorization};
        for (cancelled_at, revoked_at, cancelled, revoked) in [
            (None, None, None, None),
            (Some(at(30)), None, success(30), revoked(30, CancelToken)),
            (None, Some(at(40)), None, revoked(40, RevokeAuthorization)),
            (Some(at(30)), Some(at(40)), success(30), revoked(40, RevokeAuthorization)),
        ] {
            let pass_through_info = info("told");
            let grant = Authorization { revoked, pass_through_info, ..granted() };
            let command = ImportToken {
                cancelled_at,
                revoked_at,
                pass_through_info: info("told"),
                ..command()
            };
            let token = Recorded { cancelled, ..recorded() };
            let expected = writes(Some(token), Some(grant.clone()));
            check("new", (None, None, None), &command, expected);

            // what is known of a grant stays: whom it is of, what it carries, and that it is revoked
            let known = Authorization { pass_through_info: info("known"), ..granted() };
            let after = Authorization { revoked: grant.revoked.clone(), ..known.clone() };
            let after = (after != known).then_some(after);
            let token = Recorded { cancelled: command.cancelled_at.and(success(30)), ..recorded() };
            let expected = writes(Some(token.clone()), after);
            check("of a known grant", (None, None, Some(known)), &command, expected);
            let bare = (None, None, Some(granted()));
            check(
                "which carries nothing",
                bare,
                &command,
                writes(Some(token.clone()), Some(grant)),
            );
            let gone = Authorization {
                revoked: Some(Revocation { at: at(7), cause: CancelToken, trace: None }),
                ..granted()
            };
            let expected = writes(Some(token), None);
            check("which is revoked", (None, None, Some(gone)), &command, expected);
        }
    }

    #[test]
    fn a_known_token_learns_only_that_it_was_cancelled() {
        let known = || (Some(recorded()), None, Some(granted()));
        let cancelled = ImportToken { cancelled_at: Some(at(30)), ..command() };
        let after = Recorded { cancelled: success(30), ..recorded() };
        let grant =
            Authorization { revoked: revoked(30, RevocationCause::CancelToken), ..granted() };
        check("cancelled", known(), &cancelled, writes(Some(after.clone()), Some(grant.clone())));
        let again = (Some(after.clone()), None, Some(grant.clone()));
        check("again", again.clone(), &cancelled, Err(Outcome::AlreadyThere));
        // the first answer stands
        let later = ImportToken { cancelled_at: Some(at(31)), ..command() };
        check("with another time", again, &later, Err(Outcome::AlreadyThere));
        let expires = ImportToken { expires_at: Some(at(51)), ..command() };
        check("another end", known(), &expires, Err(Outcome::Kept));
        let endless = ImportToken { expires_at: None, ..command() };
        check("no end", known(), &endless, Err(Outcome::Kept));
        check("the same", known(), &command(), Err(Outcome::AlreadyThere));

        // what is known is later than the line
        let of_revoked = (Some(recorded()), None, Some(grant.clone()));
        check("revoked since", of_revoked.clone(), &command(), Err(Outcome::Kept));
        let told = ImportToken { revoked_at: Some(at(40)), ..command() };
        check("revoked before", of_revoked, &told, Err(Outcome::AlreadyThere));
        let cancelled_since = (Some(after), None, Some(grant));
        check("cancelled since", cancelled_since, &told, Err(Outcome::Kept));
    }

    #[test]
    fn a_line_about_a_grant_changes_the_grant_alone() {
        let known = || (Some(recorded()), None, Some(granted()));
        let told = ImportToken { pass_through_info: info("told"), ..command() };
        let grant = Authorization { pass_through_info: info("told"), ..granted() };
        check("info", known(), &told, writes(None, Some(grant)));
        let told = ImportToken { revoked_at: Some(at(40)), ..command() };
        let revoked = revoked(40, RevocationCause::RevokeAuthorization);
        let grant = Authorization { revoked, ..granted() };
        check("revoked", known(), &told, writes(None, Some(grant)));
    }

    #[test]
    fn a_token_takes_the_place_of_one_that_nobody_replaced_yet() {
        let (old, this) = (token_key(9, 9), token_key(1, 1));
        let command = ImportToken { replaces: Some(old.clone()), ..command() };
        let by = |hash| Recorded { replaced_by: hash, cancelled: success(7), ..recorded() };
        let known = |replaced| (Some(recorded()), replaced, Some(granted()));
        let replaced = Some((old, Token::Recorded(by(Some(this.hash)))));
        let expected = Ok(Next { token: None, replaced, authorization: None });
        check("first", known(Some(by(None))), &command, expected);
        check("again", known(Some(by(Some(this.hash)))), &command, Err(Outcome::AlreadyThere));
        let rejected = |why| Err(Outcome::Rejected(why));
        let other = by(Some(token_key(2, 2).hash));
        check("by another", known(Some(other)), &command, rejected(Contradiction::ReplacedAlready));
        check("unknown", known(None), &command, rejected(Contradiction::ReplacedUnknown));
        let authorization = authorization_key("h").authorization;
        let elsewhere = Recorded { authorization, ..by(None) };
        let rejected = rejected(Contradiction::ReplacedElsewhere);
        check("of another grant", known(Some(elsewhere)), &command, rejected);
    }

    #[test]
    fn a_line_that_contradicts_a_token_or_its_grant_is_refused_in_order() {
        let rejected = |why| Err(Outcome::Rejected(why));
        let known = |token| (Some(token), None, Some(granted()));
        let other_grant =
            Recorded { authorization: authorization_key("h").authorization, ..recorded() };
        let other_kind = Recorded { kind: TokenKind::Refresh, ..recorded() };
        let (theirs, other) =
            (ImportToken { acquirer: acquirer("b"), ..command() }, Contradiction::OtherAcquirer);
        check("acquirer", known(other_grant.clone()), &theirs, rejected(other));
        for token in [other_grant, other_kind] {
            check("token", known(token), &command(), rejected(Contradiction::OtherToken));
        }
        let verdict = Verdict { code: ResultCode::InvalidToken, at: at(1), by: None, trace: None };
        let dead = decide(Some(&Token::DeadOnArrival(verdict)), None, Some(&granted()), &command());
        assert_eq!(dead.outcome, Outcome::Rejected(Contradiction::Dead));
        assert_eq!(dead.next, None);
    }
}
