//! Every row of every table of docs/semantics.md, in the order of the tables.
//!
//! A row says what was known, what is asked, and everything that must come of it: the answer, the state that is kept
//! (or that none is), the events, the alarm. [`check`] asks every row twice: a repeat keeps nothing and announces
//! nothing. Precedence has tables of its own: their first row breaks every rule at once, each next row repairs one.
#![expect(
    clippy::needless_pass_by_value,
    clippy::too_many_arguments,
    clippy::unnecessary_wraps,
    clippy::wildcard_enum_match_arm,
    reason = "rows of tables: what a row holds is handed over, and \"any other\" is what is meant"
)]

use std::fmt::Debug;

use alipayplus_cancel::domain::{
    Alarm, Asked, Decision, Verdict,
    amount::{Amount, Currency},
    authorization::{Authorization, Revocation, RevocationCause},
    cancel_payment::{self, CancelPayment},
    cancel_token::{self, CancelToken},
    event::{Event, EventCause, EventKind},
    id::{
        AcquirerId, AuthorizationId, ClientId, FundReturnReference, PassThroughInfo,
        PaymentRequestId, PspId, RefundId, TokenHash, TraceId,
    },
    introspect_token,
    key::{AuthorizationKey, PaymentKey, Subject, TokenKey},
    payment::{
        Cancelled, Funds, Life, Money, ORDER_IS_CLOSED, Payment, REFUNDS_MAX, Refund, RefundState,
        State, Succeeded, Terms, Untouched,
    },
    policy::{AcquirerCheck, Policy},
    record_fund_return::{self, RecordFundReturn},
    record_payment::{self, Conflict, Fact, RecordPayment},
    record_token::{self, RecordToken},
    result::{ResultCode, ResultStatus},
    revoke_authorization::{self, RevokeAuthorization},
    time::Timestamp,
    token::{Recorded, Token, TokenKind},
    window::CancelWindow,
};

// ---------------------------------------------------------------- the one check

/// What must come of a row.
struct Expected<World, Outcome> {
    outcome: Outcome,
    /// What is known afterwards; `None`: nothing is recorded.
    after: Option<World>,
    events: Vec<(EventKind, EventCause)>,
    alarm: Option<Alarm>,
}

fn answers<World, Outcome>(outcome: Outcome) -> Expected<World, Outcome> {
    Expected { outcome, after: None, events: vec![], alarm: None }
}

impl<World, Outcome> Expected<World, Outcome> {
    fn keeps(self, after: World) -> Self {
        Self { after: Some(after), ..self }
    }

    fn announces(mut self, kind: EventKind, cause: EventCause) -> Self {
        self.events.push((kind, cause));
        self
    }

    fn alarms(self, alarm: Alarm) -> Self {
        Self { alarm: Some(alarm), ..self }
    }
}

/// Asks twice. `apply` writes what was decided; `repeated` is the first answer as a repeat tells it.
fn check<World: Clone + PartialEq + Debug, Next: Debug, Outcome: Clone + PartialEq + Debug>(
    name: &str,
    before: &World,
    asked: &Asked,
    subject: &Subject,
    expected: Expected<World, Outcome>,
    decide: impl Fn(&World, &Asked) -> Decision<Next, Outcome>,
    apply: impl Fn(&World, Next) -> World,
    repeated: impl Fn(Outcome) -> Outcome,
) {
    let decision = decide(before, asked);
    assert_eq!(decision.outcome, expected.outcome, "{name}: the answer");
    assert_eq!(decision.alarm, expected.alarm, "{name}: the alarm");
    let events: Vec<_> = decision.events.iter().map(|event| (event.kind, event.cause)).collect();
    assert_eq!(events, expected.events, "{name}: the events");
    for event in &decision.events {
        assert_eq!(event, &told(event, subject, asked), "{name}: the event");
    }
    let after = decision.next.map(|next| apply(before, next));
    assert_eq!(after, expected.after, "{name}: what is recorded");

    let later = Asked { trace: None, by: None, ..asked.clone() };
    let after = after.unwrap_or_else(|| before.clone());
    let again = decide(&after, &later);
    assert_eq!(again.outcome, repeated(expected.outcome), "{name}: the answer to a repeat");
    assert!(again.next.is_none(), "{name}: a repeat recorded {:?}", again.next);
    assert_eq!(again.events, vec![], "{name}: a repeat announced");
}

/// The event with every field as it must be, given its kind and cause.
fn told(event: &Event, subject: &Subject, asked: &Asked) -> Event {
    Event {
        kind: event.kind,
        subject: subject.clone(),
        acquirer: Some(acquirer("A")),
        cause: event.cause,
        at: asked.now,
        result: (event.cause != EventCause::RevokeAuthorization).then_some(ResultCode::Success),
        pass_through_info: (event.cause == EventCause::CancelToken).then(|| info("from acquirer")),
        trace: asked.trace,
    }
}

// ---------------------------------------------------------------- fixtures

fn at(text: &str) -> Timestamp {
    let moment: jiff::Timestamp = text.parse().expect("a time");
    Timestamp { unix_ms: moment.as_millisecond() }
}

/// When every payment here was initiated; its window closes, inclusive, at [`EDGE`].
const INITIATED_AT: &str = "2026-05-28T12:00:00+08:00";
/// 00:30:00 UTC+8 of T+1 and a minute of grace.
const EDGE: &str = "2026-05-29T00:31:00+08:00";
const PAST_EDGE: &str = "2026-05-29T00:31:00.001+08:00";

fn asked_at(now: &str) -> Asked {
    Asked {
        now: at(now),
        clock_agrees: true,
        tombstone_allowed: true,
        onboarding: false,
        by: ClientId::parse("client-1"),
        trace: Some(TraceId([7; 16])),
    }
}

fn in_window() -> Asked {
    asked_at("2026-05-28T13:00:00+08:00")
}

fn past_window() -> Asked {
    asked_at(PAST_EDGE)
}

fn clocks_disagree(asked: Asked) -> Asked {
    Asked { clock_agrees: false, ..asked }
}

fn onboarding(asked: Asked) -> Asked {
    Asked { onboarding: true, ..asked }
}

fn verdict(code: ResultCode, asked: &Asked) -> Verdict {
    Verdict { code, at: asked.now, by: asked.by.clone(), trace: asked.trace }
}

/// A verdict of an earlier request.
fn earlier(code: ResultCode) -> Verdict {
    Verdict {
        code,
        at: at("2026-05-28T12:30:00+08:00"),
        by: ClientId::parse("client-0"),
        trace: None,
    }
}

fn acquirer(name: &str) -> AcquirerId {
    AcquirerId::parse(name).expect("an acquirer")
}

fn info(text: &str) -> PassThroughInfo {
    PassThroughInfo::parse(text).expect("an info")
}

fn money(minor_units: u64, currency: &str) -> Amount {
    Amount::new(minor_units, Currency::parse(currency).expect("a currency")).expect("an amount")
}

fn eur(minor_units: u64) -> Amount {
    money(minor_units, "EUR")
}

fn psp() -> PspId {
    PspId::parse("wallet").expect("a wallet")
}

fn payment_key() -> PaymentKey {
    PaymentKey { psp: psp(), payment_request: PaymentRequestId::parse("payment-1").expect("an id") }
}

fn terms(amount: Amount) -> Terms {
    Terms { amount, initiated_at: at(INITIATED_AT) }
}

fn payment(state: State) -> Payment {
    Payment {
        acquirer: Some(acquirer("A")),
        recorded_at: Some(at("2026-05-28T12:00:01+08:00")),
        state,
    }
}

fn initiated() -> Payment {
    payment(State::Initiated(terms(eur(100))))
}

fn failed() -> Payment {
    payment(State::Failed(Some(terms(eur(100)))))
}

fn succeeded(refunds: Vec<Refund>) -> Payment {
    payment(State::Succeeded(Succeeded { terms: terms(eur(100)), refunds, refused: None }))
}

fn refused(code: ResultCode, refunds: Vec<Refund>) -> Payment {
    let refused = Some(earlier(code));
    payment(State::Succeeded(Succeeded { terms: terms(eur(100)), refunds, refused }))
}

fn refund(id: &str, minor_units: u64, state: RefundState) -> Refund {
    Refund { id: refund_id(id), amount: eur(minor_units), state }
}

fn refund_id(id: &str) -> RefundId {
    RefundId::parse(id).expect("an id")
}

fn cancelled(terms: Option<Terms>, refunds: Vec<Refund>, money: Money) -> Payment {
    let verdict = earlier(ResultCode::Success);
    payment(State::Cancelled(Cancelled { verdict, terms, refunds, money }))
}

fn tombstone() -> Payment {
    Payment { recorded_at: None, ..cancelled(None, vec![], Money::Untouched(Untouched::Unknown)) }
}

fn cancelled_initiated() -> Payment {
    cancelled(Some(terms(eur(100))), vec![], Money::Untouched(Untouched::Initiated))
}

fn cancelled_failed() -> Payment {
    cancelled(Some(terms(eur(100))), vec![], Money::Untouched(Untouched::Failed))
}

fn due(amount: Amount, since: Timestamp) -> Money {
    Money::Due { amount, since }
}

fn cancelled_due() -> Payment {
    cancelled(Some(terms(eur(100))), vec![], due(eur(100), at("2026-05-28T12:30:00+08:00")))
}

fn reference(text: &str) -> FundReturnReference {
    FundReturnReference::parse(text).expect("a reference")
}

fn cancelled_returned() -> Payment {
    cancelled(
        Some(terms(eur(100))),
        vec![],
        Money::Returned {
            amount: eur(100),
            since: at("2026-05-28T12:30:00+08:00"),
            at: at("2026-05-28T12:40:00+08:00"),
            reference: reference("transfer-1"),
        },
    )
}

fn bound_to_b(payment: Payment) -> Payment {
    Payment { acquirer: Some(acquirer("B")), ..payment }
}

// ---------------------------------------------------------------- CancelPayment

type CancelPaymentExpected = Expected<Option<Payment>, cancel_payment::Outcome>;

fn cancel_payment_by(by: &str) -> CancelPayment {
    CancelPayment { key: payment_key(), acquirer: acquirer(by) }
}

fn check_cancel_payment_under(
    policy: &Policy,
    name: &str,
    before: Option<Payment>,
    command: &CancelPayment,
    asked: &Asked,
    expected: CancelPaymentExpected,
) {
    check(
        name,
        &before,
        asked,
        &Subject::Payment(payment_key()),
        expected,
        |payment, asked| cancel_payment::decide(payment.as_ref(), command, asked, policy),
        |_, next| Some(next),
        |outcome| match outcome {
            cancel_payment::Outcome::Decided { verdict, .. } => {
                cancel_payment::Outcome::Decided { verdict, repeated: true }
            }
            other => other,
        },
    );
}

fn check_cancel_payment(
    name: &str,
    before: Option<Payment>,
    asked: &Asked,
    expected: CancelPaymentExpected,
) {
    let (policy, command) = (Policy::default(), cancel_payment_by("A"));
    check_cancel_payment_under(&policy, name, before, &command, asked, expected);
}

fn decided(code: ResultCode, asked: &Asked) -> CancelPaymentExpected {
    answers(cancel_payment::Outcome::Decided { verdict: verdict(code, asked), repeated: false })
}

fn repeated(code: ResultCode) -> CancelPaymentExpected {
    answers(cancel_payment::Outcome::Decided { verdict: earlier(code), repeated: true })
}

/// SUCCESS now, leading to a cancelled payment, announced.
fn success(
    before: Option<&Payment>,
    refunds: Vec<Refund>,
    money: Money,
    asked: &Asked,
) -> CancelPaymentExpected {
    let verdict = verdict(ResultCode::Success, asked);
    let terms = before.and_then(Payment::terms);
    let expected = decided(ResultCode::Success, asked)
        .keeps(Some(Payment {
            acquirer: Some(acquirer("A")),
            recorded_at: before.and_then(|payment| payment.recorded_at),
            state: State::Cancelled(Cancelled { verdict, terms, refunds, money: money.clone() }),
        }))
        .announces(EventKind::PaymentCancelled, EventCause::CancelPayment);
    match money {
        Money::Due { amount, .. } => {
            expected.announces(EventKind::FundReturnDue(amount), EventCause::CancelPayment)
        }
        Money::Untouched(_) | Money::Returned { .. } => expected,
    }
}

/// A final F now, leaving the payment succeeded.
fn final_refusal(code: ResultCode, refunds: Vec<Refund>, asked: &Asked) -> CancelPaymentExpected {
    let refused = Some(verdict(code, asked));
    let state = State::Succeeded(Succeeded { terms: terms(eur(100)), refunds, refused });
    decided(code, asked).keeps(Some(payment(state)))
}

#[test]
fn cancel_payment_answers_every_row_of_its_table() {
    let now = in_window();

    // bound to another acquirerId, by a record or by a tombstone
    for bound in [initiated(), failed(), succeeded(vec![]), tombstone(), cancelled_due()] {
        let expected = answers(cancel_payment::Outcome::NotYours).alarms(Alarm::AcquirerMismatch);
        check_cancel_payment("bound to another", Some(bound_to_b(bound)), &now, expected);
    }

    // a result is recorded: that result, whatever became of the payment since
    for recorded in [
        tombstone(),
        cancelled_initiated(),
        cancelled_failed(),
        cancelled_due(),
        cancelled_returned(),
    ] {
        check_cancel_payment("recorded", Some(recorded), &now, repeated(ResultCode::Success));
    }
    for code in [ResultCode::CancelWindowExceed, ResultCode::ProcessFail] {
        check_cancel_payment("recorded", Some(refused(code, vec![])), &now, repeated(code));
    }

    // life unknown: a tombstone
    let expected = success(None, vec![], Money::Untouched(Untouched::Unknown), &now);
    check_cancel_payment("unknown", None, &now, expected);

    // initiated: unresolved until the core reports
    let before = initiated();
    let expected = success(Some(&before), vec![], Money::Untouched(Untouched::Initiated), &now);
    check_cancel_payment("initiated", Some(before), &now, expected);

    // failed, with and without terms and acquirer
    let untold = Payment { acquirer: None, ..payment(State::Failed(None)) };
    for before in [failed(), untold] {
        let expected = success(Some(&before), vec![], Money::Untouched(Untouched::Failed), &now);
        check_cancel_payment("failed", Some(before), &now, expected);
    }

    // succeeded, now past the window
    let late = past_window();
    let expected = final_refusal(ResultCode::CancelWindowExceed, vec![], &late);
    check_cancel_payment("past the window", Some(succeeded(vec![])), &late, expected);

    // ... which must not hang on one clock
    let uncertain = clocks_disagree(past_window());
    let expected = answers(cancel_payment::Outcome::ClockUncertain).alarms(Alarm::ClockDisagrees);
    check_cancel_payment("clocks disagree", Some(succeeded(vec![])), &uncertain, expected);

    // succeeded, a refund made: the whole or a part
    for minor_units in [1, 100] {
        let refunds = vec![refund("r1", minor_units, RefundState::Done)];
        let expected = final_refusal(ResultCode::ProcessFail, refunds.clone(), &now)
            .alarms(Alarm::CancelOfRefunded);
        check_cancel_payment("a refund made", Some(succeeded(refunds)), &now, expected);
    }

    // succeeded, a refund reserved and undecided
    let before = succeeded(vec![refund("r1", 40, RefundState::Reserved)]);
    let expected = answers(cancel_payment::Outcome::RefundUndecided);
    check_cancel_payment("a refund reserved", Some(before), &now, expected);

    // succeeded, in the window: the full amount, released refunds or not
    for refunds in [vec![], vec![refund("r1", 40, RefundState::Released)]] {
        let before = succeeded(refunds.clone());
        let expected = success(Some(&before), refunds, due(eur(100), now.now), &now);
        check_cancel_payment("in the window", Some(before), &now, expected);
    }
}

#[test]
fn cancel_payment_answers_the_first_rule_that_matches() {
    let both = || {
        vec![
            refund("r1", 10, RefundState::Done),
            refund("r2", 20, RefundState::Reserved),
            refund("r3", 30, RefundState::Released),
        ]
    };
    let reserved = || both().split_off(1);
    let released = || both().split_off(2);
    let uncertain = clocks_disagree(past_window());
    let (late, now) = (past_window(), in_window());
    let code = ResultCode::ProcessFail;

    // another acquirer, recorded, clocks disagree, past the window, a refund made, another reserved
    check_cancel_payment(
        "everything",
        Some(bound_to_b(refused(code, both()))),
        &uncertain,
        answers(cancel_payment::Outcome::NotYours).alarms(Alarm::AcquirerMismatch),
    );
    check_cancel_payment(
        "the right acquirer",
        Some(refused(code, both())),
        &uncertain,
        repeated(code),
    );
    check_cancel_payment(
        "nothing recorded",
        Some(succeeded(both())),
        &uncertain,
        answers(cancel_payment::Outcome::ClockUncertain).alarms(Alarm::ClockDisagrees),
    );
    check_cancel_payment(
        "clocks agree",
        Some(succeeded(both())),
        &late,
        final_refusal(ResultCode::CancelWindowExceed, both(), &late),
    );
    check_cancel_payment(
        "in the window",
        Some(succeeded(both())),
        &now,
        final_refusal(code, both(), &now).alarms(Alarm::CancelOfRefunded),
    );
    check_cancel_payment(
        "no refund made",
        Some(succeeded(reserved())),
        &now,
        answers(cancel_payment::Outcome::RefundUndecided),
    );
    let before = succeeded(released());
    let expected = success(Some(&before), released(), due(eur(100), now.now), &now);
    check_cancel_payment("no refund reserved", Some(before), &now, expected);
}

#[test]
fn cancel_payment_of_an_unknown_payment_waits_for_the_end_of_onboarding() {
    let now = onboarding(in_window());
    check_cancel_payment("unknown", None, &now, answers(cancel_payment::Outcome::Onboarding));
    // what is known is decided, because it is no lie
    let expected =
        success(Some(&initiated()), vec![], Money::Untouched(Untouched::Initiated), &now);
    check_cancel_payment("known", Some(initiated()), &now, expected);
    check_cancel_payment("recorded", Some(tombstone()), &now, repeated(ResultCode::Success));
}

#[test]
fn only_a_succeeded_payment_can_be_outside_the_window() {
    let years_later = clocks_disagree(asked_at("2036-01-01T00:00:00Z"));
    for (before, untouched) in [
        (None, Untouched::Unknown),
        (Some(initiated()), Untouched::Initiated),
        (Some(failed()), Untouched::Failed),
    ] {
        let money = Money::Untouched(untouched);
        let expected = success(before.as_ref(), vec![], money, &years_later);
        check_cancel_payment("unpaid", before, &years_later, expected);
    }
}

#[test]
fn the_cancel_window_closes_to_the_millisecond() {
    for (initiated_at, last) in [
        (INITIATED_AT, EDGE),
        ("2026-05-28T00:00:00.000+08:00", "2026-05-29T00:31:00+08:00"),
        ("2026-05-27T23:59:59.999+08:00", "2026-05-28T00:31:00+08:00"),
        ("2026-05-27T16:00:00.000Z", "2026-05-28T16:31:00Z"), // the first moment of the 28th in UTC+8
        ("2026-05-27T15:59:59.999Z", "2026-05-27T16:31:00Z"), // the last moment of the 27th in UTC+8
        ("2026-12-31T12:00:00+08:00", "2027-01-01T00:31:00+08:00"),
        ("2028-02-28T12:00:00+08:00", "2028-02-29T00:31:00+08:00"),
    ] {
        let terms = Terms { amount: eur(100), initiated_at: at(initiated_at) };
        let before = payment(State::Succeeded(Succeeded { terms, refunds: vec![], refused: None }));
        let code_at = |unix_ms, clock_agrees| {
            let asked =
                Asked { now: Timestamp { unix_ms }, clock_agrees, ..asked_at(INITIATED_AT) };
            let command = cancel_payment_by("A");
            cancel_payment::decide(Some(&before), &command, &asked, &Policy::default())
                .outcome
                .code()
        };
        let last = at(last).unix_ms;
        assert_eq!(code_at(last - 1, true), ResultCode::Success, "{initiated_at}");
        assert_eq!(code_at(last, true), ResultCode::Success, "{initiated_at}");
        assert_eq!(code_at(last + 1, true), ResultCode::CancelWindowExceed, "{initiated_at}");
        // only the verdict that is for ever asks the second clock
        assert_eq!(code_at(last, false), ResultCode::Success, "{initiated_at}");
        assert_eq!(code_at(last + 1, false), ResultCode::UnknownException, "{initiated_at}");
    }
}

#[test]
fn an_acquirer_may_have_a_cancel_window_of_its_own() {
    let hour = CancelWindow::Duration { duration_ms: 3_600_000, grace_ms: 0 };
    let policy = Policy { cancel_windows: [(acquirer("A"), hour)].into(), ..Policy::default() };
    let check = |name, before: Payment, by, asked: &Asked, expected| {
        let command = cancel_payment_by(by);
        check_cancel_payment_under(&policy, name, Some(before), &command, asked, expected);
    };

    let (inside, outside) =
        (asked_at("2026-05-28T13:00:00+08:00"), asked_at("2026-05-28T13:00:00.001+08:00"));
    let paid = || succeeded(vec![]);
    let expected = success(Some(&paid()), vec![], due(eur(100), inside.now), &inside);
    check("inside", paid(), "A", &inside, expected);
    let expected = final_refusal(ResultCode::CancelWindowExceed, vec![], &outside);
    check("outside", paid(), "A", &outside, expected);

    // the other acquirer has the common one
    let command = cancel_payment_by("B");
    let other =
        cancel_payment::decide(Some(&bound_to_b(paid())), &command, &outside, &policy).outcome;
    assert_eq!(other.code(), ResultCode::Success);
}

#[test]
fn a_recorded_result_holds_after_any_change_of_settings_clock_and_window() {
    let years_later = onboarding(clocks_disagree(asked_at("2036-01-01T00:00:00Z")));
    let strict = CancelWindow::Duration { duration_ms: 0, grace_ms: 0 };
    let generous = CancelWindow::Duration { duration_ms: u64::MAX, grace_ms: 0 };
    for cancel_window in [strict, generous] {
        for acquirer_check in [AcquirerCheck::Enforce, AcquirerCheck::Observe] {
            let policy = Policy { cancel_window, acquirer_check, ..Policy::default() };
            let check = |before, expected| {
                let command = cancel_payment_by("A");
                let name = format!("{policy:?}");
                check_cancel_payment_under(
                    &policy,
                    &name,
                    Some(before),
                    &command,
                    &years_later,
                    expected,
                );
            };
            check(cancelled_due(), repeated(ResultCode::Success));
            for code in [ResultCode::CancelWindowExceed, ResultCode::ProcessFail] {
                check(refused(code, vec![]), repeated(code));
            }
        }
    }
}

#[test]
fn a_client_over_its_quota_leaves_no_tombstone_and_cancels_what_is_known_all_the_same() {
    let over = Asked { tombstone_allowed: false, ..in_window() };
    let command = cancel_payment_by("A");
    let decide = |payment: Option<&Payment>| {
        cancel_payment::decide(payment, &command, &over, &Policy::default())
    };
    let refused = decide(None);
    assert_eq!(refused.outcome, cancel_payment::Outcome::TooManyTombstones);
    assert_eq!(refused.outcome.code(), ResultCode::RequestTrafficExceedLimit);
    assert!(refused.next.is_none() && refused.events.is_empty());
    for known in [tombstone(), initiated(), failed(), succeeded(vec![])] {
        assert_eq!(decide(Some(&known)).outcome.code(), ResultCode::Success);
    }
}

#[test]
fn an_observed_acquirer_mismatch_is_counted_and_let_through() {
    let policy = Policy { acquirer_check: AcquirerCheck::Observe, ..Policy::default() };
    let now = in_window();
    let check = |name, before: Payment, expected: CancelPaymentExpected| {
        let expected = expected.alarms(Alarm::AcquirerMismatchObserved);
        let command = cancel_payment_by("B");
        check_cancel_payment_under(&policy, name, Some(before), &command, &now, expected);
    };
    check("recorded", tombstone(), repeated(ResultCode::Success));
    // it stays bound to the first
    let untouched = Money::Untouched(Untouched::Initiated);
    check("initiated", initiated(), success(Some(&initiated()), vec![], untouched, &now));
    let paid = succeeded(vec![]);
    let expected = success(Some(&paid), vec![], due(eur(100), now.now), &now);
    check("succeeded", paid, expected);
}

// ---------------------------------------------------------------- RecordPayment

type RecordPaymentExpected = Expected<Option<Payment>, record_payment::Outcome>;

fn check_record_by(
    by: Option<&str>,
    name: &str,
    before: Option<Payment>,
    fact: Fact,
    expected: RecordPaymentExpected,
) {
    let command = RecordPayment { key: payment_key(), acquirer: by.map(acquirer), fact };
    check(
        name,
        &before,
        &in_window(),
        &Subject::Payment(payment_key()),
        expected,
        |payment, asked| record_payment::decide(payment.as_ref(), &command, asked),
        |_, next| Some(next),
        |outcome| outcome,
    );
}

fn check_record(name: &str, before: Option<Payment>, fact: Fact, expected: RecordPaymentExpected) {
    check_record_by(Some("A"), name, before, fact, expected);
}

fn is_initiated(minor_units: u64) -> Fact {
    Fact::Initiated(terms(eur(minor_units)))
}

fn has_succeeded(minor_units: u64) -> Fact {
    Fact::Succeeded(terms(eur(minor_units)))
}

fn has_failed() -> Fact {
    Fact::Failed { amount: None }
}

fn refund_starts(id: &str, minor_units: u64) -> Fact {
    Fact::RefundStarted { id: refund_id(id), amount: eur(minor_units) }
}

fn refund_is_done(id: &str, amount: Option<Amount>) -> Fact {
    Fact::RefundSucceeded { id: refund_id(id), amount }
}

fn refund_has_failed(id: &str, amount: Option<Amount>) -> Fact {
    Fact::RefundFailed { id: refund_id(id), amount }
}

fn conflicts(conflict: Conflict) -> RecordPaymentExpected {
    let alarm = match conflict {
        Conflict::OtherAcquirer => Alarm::AcquirerMismatch,
        _ => Alarm::RecordConflict,
    };
    answers(record_payment::Outcome::Conflict(conflict)).alarms(alarm)
}

/// The payment in another state, told of now.
fn told_now(state: State) -> Option<Payment> {
    Some(Payment { recorded_at: Some(in_window().now), ..payment(state) })
}

fn cancelled_now(terms: Option<Terms>, money: Money) -> Option<Payment> {
    told_now(cancelled(terms, vec![], money).state)
}

#[test]
fn a_success_after_the_cancel_returns_the_funds_once() {
    use record_payment::Outcome::ReturnFunds;
    let now = in_window().now;
    let unpaid = [tombstone(), cancelled_initiated(), cancelled_failed()];

    for before in unpaid.clone() {
        let expected = answers(ReturnFunds)
            .keeps(cancelled_now(Some(terms(eur(100))), due(eur(100), now)))
            .announces(EventKind::FundReturnDue(eur(100)), EventCause::LateSuccess);
        check_record("first time", Some(before), has_succeeded(100), expected);
    }

    // whatever acquirer or amount: what was debited goes back, what was recorded first stays
    for (by, amount) in [(Some("A"), eur(250)), (Some("B"), eur(100)), (None, money(100, "USD"))] {
        let differs = by == Some("B") || amount != eur(100);
        let fact = Fact::Succeeded(terms(amount));
        let mut expected = answers(ReturnFunds)
            .keeps(cancelled_now(Some(terms(eur(100))), due(amount, now)))
            .announces(EventKind::FundReturnDue(amount), EventCause::LateSuccess);
        expected.alarm = differs.then_some(Alarm::LateSuccessMismatch);
        check_record_by(by, "mismatch", Some(cancelled_initiated()), fact, expected);
    }

    // repeats answer the same, also when due or returned, and announce nothing
    for before in [cancelled_due(), cancelled_returned()] {
        for (by, minor_units) in [(Some("A"), 100), (Some("B"), 100), (Some("A"), 250)] {
            let fact = has_succeeded(minor_units);
            // another amount may be a second debit
            let mut expected = answers(ReturnFunds);
            expected.alarm = (minor_units != 100).then_some(Alarm::LateSuccessMismatch);
            check_record_by(by, "repeat", Some(before.clone()), fact, expected);
        }
    }
}

#[test]
fn a_record_that_contradicts_what_is_recorded_is_a_conflict() {
    let known =
        || vec![initiated(), failed(), succeeded(vec![refund("r1", 40, RefundState::Reserved)])];
    let cancelled_ones = || vec![cancelled_initiated(), cancelled_failed(), cancelled_due()];
    let other_amount = || conflicts(Conflict::OtherAmount);

    for before in known().into_iter().chain(cancelled_ones()).chain([tombstone()]) {
        for fact in [
            is_initiated(100),
            has_failed(),
            refund_starts("r1", 40),
            refund_is_done("r1", None),
            refund_has_failed("r1", None),
        ] {
            let expected = conflicts(Conflict::OtherAcquirer);
            check_record_by(Some("B"), "other acquirer", Some(before.clone()), fact, expected);
        }
    }
    for before in known() {
        let expected = conflicts(Conflict::OtherAcquirer);
        check_record_by(Some("B"), "other acquirer", Some(before), has_succeeded(100), expected);
    }

    for before in known().into_iter().chain(cancelled_ones()) {
        for fact in [
            is_initiated(101),
            Fact::Initiated(terms(money(100, "USD"))),
            Fact::Failed { amount: Some(eur(99)) },
        ] {
            check_record("other amount", Some(before.clone()), fact, other_amount());
        }
        // a refund has an amount of its own, in the payment's currency
        let fact = Fact::RefundStarted { id: refund_id("r9"), amount: money(1, "USD") };
        let expected = conflicts(Conflict::OtherRefundAmount);
        check_record("other currency", Some(before), fact, expected);
    }
    for before in known() {
        for amount in [eur(101), money(100, "USD")] {
            let fact = Fact::Succeeded(terms(amount));
            check_record("other amount", Some(before.clone()), fact, other_amount());
        }
    }

    let before = || Some(succeeded(vec![refund("r1", 40, RefundState::Reserved)]));
    for fact in [
        refund_starts("r1", 41),
        refund_is_done("r1", Some(eur(41))),
        refund_has_failed("r1", Some(money(40, "USD"))),
    ] {
        let expected = conflicts(Conflict::OtherRefundAmount);
        check_record("other refund amount", before(), fact, expected);
    }
}

#[test]
fn an_initiated_payment_may_proceed_only_while_nothing_is_decided() {
    use record_payment::Outcome::{AlreadySucceeded, Proceed, RefusedCancelled, RefusedFailed};

    let after = told_now(State::Initiated(terms(eur(100))));
    check_record("unknown", None, is_initiated(100), answers(Proceed).keeps(after));
    check_record("initiated", Some(initiated()), is_initiated(100), answers(Proceed));

    // a later asking does not move the window
    let moved = Terms { amount: eur(100), initiated_at: at("2026-05-30T12:00:00+08:00") };
    let fact = Fact::Initiated(moved);
    check_record("initiated, later", Some(initiated()), fact, answers(Proceed));

    // cancelled: the facts of a tombstone are kept, its life is not
    let kept = Some(Payment {
        recorded_at: Some(in_window().now),
        ..cancelled(Some(terms(eur(100))), vec![], Money::Untouched(Untouched::Unknown))
    });
    let expected = answers(RefusedCancelled).keeps(kept);
    check_record("tombstone", Some(tombstone()), is_initiated(100), expected);
    let cancelled_before =
        [cancelled_initiated(), cancelled_failed(), cancelled_due(), cancelled_returned()];
    for before in cancelled_before {
        check_record("cancelled", Some(before), is_initiated(100), answers(RefusedCancelled));
    }

    let paid = succeeded(vec![]);
    check_record("succeeded", Some(paid), is_initiated(100), answers(AlreadySucceeded));
    let late = refused(ResultCode::CancelWindowExceed, vec![]);
    check_record("refused", Some(late), is_initiated(100), answers(AlreadySucceeded));
    check_record("failed", Some(failed()), is_initiated(100), answers(RefusedFailed));
}

#[test]
fn a_success_of_a_payment_that_is_not_cancelled_is_accepted_and_the_funds_are_held() {
    use record_payment::Outcome::Accepted;
    let held =
        |terms| told_now(State::Succeeded(Succeeded { terms, refunds: vec![], refused: None }));
    let untold = Payment { acquirer: None, ..payment(State::Failed(None)) };
    for before in [None, Some(initiated()), Some(failed()), Some(untold)] {
        let expected = answers(Accepted).keeps(held(terms(eur(100))));
        check_record("unpaid", before, has_succeeded(100), expected);
    }
    // the first terms stay: the window must not move with a later report
    let moved = Terms { amount: eur(100), initiated_at: at("2026-05-30T12:00:00+08:00") };
    let expected = answers(Accepted).keeps(held(terms(eur(100))));
    check_record("later", Some(initiated()), Fact::Succeeded(moved), expected);

    for before in [
        succeeded(vec![refund("r1", 40, RefundState::Done)]),
        refused(ResultCode::ProcessFail, vec![]),
    ] {
        check_record("succeeded", Some(before), has_succeeded(100), answers(Accepted));
    }
}

#[test]
fn a_failure_is_accepted_unless_the_payment_was_debited() {
    use record_payment::Outcome::Accepted;
    check_record(
        "unknown",
        None,
        has_failed(),
        answers(Accepted).keeps(told_now(State::Failed(None))),
    );
    for fact in [has_failed(), Fact::Failed { amount: Some(eur(100)) }] {
        let after = told_now(State::Failed(Some(terms(eur(100)))));
        check_record("initiated", Some(initiated()), fact, answers(Accepted).keeps(after));
    }
    check_record("failed", Some(failed()), has_failed(), answers(Accepted));

    // cancelled and not debited: resolved
    let resolved = |terms| cancelled_now(terms, Money::Untouched(Untouched::Failed));
    let expected = answers(Accepted).keeps(resolved(None));
    check_record("tombstone", Some(tombstone()), has_failed(), expected);
    let expected = answers(Accepted).keeps(resolved(Some(terms(eur(100)))));
    check_record("unresolved", Some(cancelled_initiated()), has_failed(), expected);
    check_record("resolved", Some(cancelled_failed()), has_failed(), answers(Accepted));

    for debited in [
        succeeded(vec![]),
        refused(ResultCode::CancelWindowExceed, vec![]),
        cancelled_due(),
        cancelled_returned(),
    ] {
        let expected = conflicts(Conflict::AlreadyDebited);
        check_record("debited", Some(debited), has_failed(), expected);
    }
}

#[test]
fn a_payment_is_bound_to_the_acquirer_that_is_named_first() {
    use record_payment::Outcome::{Accepted, RefusedFailed};
    let failed_for =
        |acquirer, recorded_at| Some(Payment { acquirer, recorded_at, state: State::Failed(None) });
    let now = Some(in_window().now);
    let expected = answers(Accepted).keeps(failed_for(None, now));
    check_record_by(None, "nobody is named", None, has_failed(), expected);

    // a failure, or an asking that is refused, may be the first that names one
    let nobodys = || failed_for(None, Some(at(INITIATED_AT)));
    for (fact, outcome) in [(has_failed(), Accepted), (is_initiated(100), RefusedFailed)] {
        let expected = answers(outcome).keeps(failed_for(Some(acquirer("A")), now));
        check_record("named", nobodys(), fact, expected);
    }
    check_record_by(None, "nobody again", nobodys(), has_failed(), answers(Accepted));
}

#[test]
fn a_refund_may_start_only_from_a_succeeded_payment_that_covers_it() {
    use record_payment::Outcome::{Accepted, RefusedCancelled};
    let seen = |state| vec![refund("r1", 40, state)];
    let start = || refund_starts("r1", 40);

    // the same id seen: its earlier answer
    for state in [RefundState::Reserved, RefundState::Done] {
        let before = Some(succeeded(seen(state)));
        check_record("seen", before, start(), answers(Accepted));
    }
    // a released id is used up: money would go without a reservation
    let before = Some(succeeded(seen(RefundState::Released)));
    check_record("released", before, start(), conflicts(Conflict::RefundEnded));
    let released = seen(RefundState::Released);
    let before = cancelled(Some(terms(eur(100))), released, due(eur(100), at(INITIATED_AT)));
    check_record("released, cancelled", Some(before), start(), answers(RefusedCancelled));

    // cancelled
    for before in [
        tombstone(),
        cancelled_initiated(),
        cancelled_failed(),
        cancelled_due(),
        cancelled_returned(),
    ] {
        check_record("cancelled", Some(before), start(), answers(RefusedCancelled));
    }

    // succeeded: the remainder is what is neither refunded nor reserved
    let taken = || {
        vec![
            refund("r2", 10, RefundState::Done),
            refund("r3", 20, RefundState::Reserved),
            refund("r4", 99, RefundState::Released),
        ]
    };
    let reserved = |mut refunds: Vec<Refund>, minor_units| {
        refunds.push(refund("r1", minor_units, RefundState::Reserved));
        Some(succeeded(refunds))
    };
    for (refunds, minor_units) in [(vec![], 1), (vec![], 100), (taken(), 70)] {
        let before = Some(succeeded(refunds.clone()));
        let expected = answers(Accepted).keeps(reserved(refunds, minor_units));
        check_record("covered", before, refund_starts("r1", minor_units), expected);
    }
    for (refunds, minor_units) in [(vec![], 101), (taken(), 71)] {
        let fact = refund_starts("r1", minor_units);
        let expected = conflicts(Conflict::RemainderTooSmall);
        check_record("not covered", Some(succeeded(refunds)), fact, expected);
    }
    // a cancel that was refused refuses no refund
    let before = refused(ResultCode::CancelWindowExceed, vec![]);
    let mut after = before.clone();
    if let State::Succeeded(succeeded) = &mut after.state {
        succeeded.refunds = seen(RefundState::Reserved);
    }
    let expected = answers(Accepted).keeps(Some(after));
    check_record("refused cancel", Some(before), start(), expected);

    // anything else
    for before in [None, Some(initiated()), Some(failed())] {
        check_record("unpaid", before, start(), conflicts(Conflict::NothingToRefund));
    }
}

#[test]
fn a_refund_ends_as_it_was_reserved() {
    use record_payment::Outcome::Accepted;
    let with = |state| {
        let others = refund("r0", 5, RefundState::Reserved);
        Some(succeeded(vec![others, refund("r1", 40, state)]))
    };

    for amount in [None, Some(eur(40))] {
        let expected = answers(Accepted).keeps(with(RefundState::Done));
        let fact = refund_is_done("r1", amount);
        check_record("done", with(RefundState::Reserved), fact.clone(), expected);
        check_record("done again", with(RefundState::Done), fact.clone(), answers(Accepted));
        let expected = conflicts(Conflict::RefundEnded);
        check_record("done, but released", with(RefundState::Released), fact, expected);

        let expected = answers(Accepted).keeps(with(RefundState::Released));
        let fact = refund_has_failed("r1", amount);
        check_record("failed", with(RefundState::Reserved), fact.clone(), expected);
        let before = with(RefundState::Released);
        check_record("failed again", before, fact.clone(), answers(Accepted));
        let expected = conflicts(Conflict::RefundEnded);
        check_record("failed, but done", with(RefundState::Done), fact, expected);
    }

    // a released one, after the cancel
    let released = vec![refund("r1", 40, RefundState::Released)];
    let before =
        || Some(cancelled(Some(terms(eur(100))), released.clone(), due(eur(100), in_window().now)));
    check_record("cancelled", before(), refund_has_failed("r1", None), answers(Accepted));
    let expected = conflicts(Conflict::RefundEnded);
    check_record("cancelled", before(), refund_is_done("r1", None), expected);

    for before in [None, Some(initiated()), Some(succeeded(vec![])), Some(cancelled_due())] {
        for fact in [refund_is_done("r1", None), refund_has_failed("r1", None)] {
            let expected = conflicts(Conflict::RefundNotStarted);
            check_record("never started", before.clone(), fact, expected);
        }
    }
}

#[test]
fn record_payment_answers_the_first_rule_that_matches() {
    use record_payment::Outcome::{Accepted, Proceed, RefusedCancelled, ReturnFunds};
    let now = in_window().now;
    let due_before = || cancelled_initiated();

    // succeeded: cancelled, other acquirer, other amount
    let fact = || has_succeeded(250);
    let expected = answers(ReturnFunds)
        .keeps(cancelled_now(Some(terms(eur(100))), due(eur(250), now)))
        .announces(EventKind::FundReturnDue(eur(250)), EventCause::LateSuccess)
        .alarms(Alarm::LateSuccessMismatch);
    check_record_by(Some("B"), "cancelled", Some(due_before()), fact(), expected);
    let expected = conflicts(Conflict::OtherAcquirer);
    check_record_by(Some("B"), "not cancelled", Some(initiated()), fact(), expected);
    let expected = conflicts(Conflict::OtherAmount);
    check_record("the right acquirer", Some(initiated()), fact(), expected);
    let held =
        State::Succeeded(Succeeded { terms: terms(eur(100)), refunds: vec![], refused: None });
    let expected = answers(Accepted).keeps(told_now(held));
    check_record("the right amount", Some(initiated()), has_succeeded(100), expected);

    // initiated: other acquirer, other amount, cancelled
    let before = || Some(cancelled_initiated());
    let expected = conflicts(Conflict::OtherAcquirer);
    check_record_by(Some("B"), "everything", before(), is_initiated(250), expected);
    let expected = conflicts(Conflict::OtherAmount);
    check_record("the right acquirer", before(), is_initiated(250), expected);
    check_record("the right amount", before(), is_initiated(100), answers(RefusedCancelled));
    check_record("not cancelled", Some(initiated()), is_initiated(100), answers(Proceed));

    // failed: other acquirer, other amount, debited
    let fact = |minor_units| Fact::Failed { amount: Some(eur(minor_units)) };
    let expected = conflicts(Conflict::OtherAcquirer);
    check_record_by(Some("B"), "everything", Some(cancelled_due()), fact(250), expected);
    let expected = conflicts(Conflict::OtherAmount);
    check_record("the right acquirer", Some(cancelled_due()), fact(250), expected);
    let expected = conflicts(Conflict::AlreadyDebited);
    check_record("the right amount", Some(cancelled_due()), fact(100), expected);
    check_record("not debited", Some(cancelled_failed()), fact(100), answers(Accepted));

    // refund started: other acquirer, other amount, cancelled, the id released before, more than the remainder
    let released = || vec![refund("r1", 100, RefundState::Released)];
    let before = || {
        let money = due(eur(100), at(INITIATED_AT));
        Some(cancelled(Some(terms(eur(100))), released(), money))
    };
    let expected = conflicts(Conflict::OtherAcquirer);
    check_record_by(Some("B"), "everything", before(), refund_starts("r1", 101), expected);
    let expected = conflicts(Conflict::OtherRefundAmount);
    check_record("the right acquirer", before(), refund_starts("r1", 101), expected);
    check_record("its amount", before(), refund_starts("r1", 100), answers(RefusedCancelled));
    let expected = conflicts(Conflict::RefundEnded);
    let paid = || Some(succeeded(released()));
    check_record("not cancelled", paid(), refund_starts("r1", 100), expected);
    let expected = conflicts(Conflict::RemainderTooSmall);
    check_record("a new id", paid(), refund_starts("r2", 101), expected);
    let mut refunds = released();
    refunds.push(refund("r2", 100, RefundState::Reserved));
    let expected = answers(Accepted).keeps(Some(succeeded(refunds)));
    check_record("covered", paid(), refund_starts("r2", 100), expected);

    // refund ended: other acquirer, other amount, ended otherwise
    let released = || Some(succeeded(vec![refund("r1", 40, RefundState::Released)]));
    let fact = |minor_units| refund_is_done("r1", Some(eur(minor_units)));
    let expected = conflicts(Conflict::OtherAcquirer);
    check_record_by(Some("B"), "everything", released(), fact(41), expected);
    let expected = conflicts(Conflict::OtherRefundAmount);
    check_record("the right acquirer", released(), fact(41), expected);
    let expected = conflicts(Conflict::RefundEnded);
    check_record("the right amount", released(), fact(40), expected);
    let reserved = Some(succeeded(vec![refund("r1", 40, RefundState::Reserved)]));
    let done = Some(succeeded(vec![refund("r1", 40, RefundState::Done)]));
    check_record("reserved", reserved, fact(40), answers(Accepted).keeps(done));
}

#[test]
fn a_payment_has_no_more_refunds_than_one_may_have() {
    let refunds = |count: usize| -> Vec<Refund> {
        (0..count).map(|n| refund(&format!("r{n}"), 1, RefundState::Released)).collect()
    };
    let before = Some(succeeded(refunds(REFUNDS_MAX)));
    let expected = conflicts(Conflict::TooManyRefunds);
    check_record("full", before, refund_starts("one more", 1), expected);

    let mut after = refunds(REFUNDS_MAX - 1);
    after.push(refund("the last", 1, RefundState::Reserved));
    let expected = answers(record_payment::Outcome::Accepted).keeps(Some(succeeded(after)));
    let before = Some(succeeded(refunds(REFUNDS_MAX - 1)));
    check_record("one left", before, refund_starts("the last", 1), expected);
}

// ---------------------------------------------------------------- RecordFundReturn

#[test]
fn a_fund_return_is_accepted_once_due_and_with_one_reference() {
    use record_fund_return::{
        Conflict::{NothingDue, OtherReference},
        Outcome::{Accepted, Conflict},
    };
    let check_return = |name, before: Option<Payment>, by: &str, expected| {
        let command = RecordFundReturn { key: payment_key(), reference: reference(by) };
        check(
            name,
            &before,
            &in_window(),
            &Subject::Payment(payment_key()),
            expected,
            |payment, asked| record_fund_return::decide(payment.as_ref(), &command, asked),
            |_, next| Some(next),
            |outcome| outcome,
        );
    };

    let State::Cancelled(Cancelled { money: Money::Due { amount, since }, .. }) =
        cancelled_due().state
    else {
        panic!("it is due");
    };
    let reference = reference("transfer-1");
    let money = Money::Returned { amount, since, at: in_window().now, reference };
    let after = cancelled(Some(terms(eur(100))), vec![], money);
    let expected = answers(Accepted).keeps(Some(after));
    check_return("due", Some(cancelled_due()), "transfer-1", expected);
    check_return("the same", Some(cancelled_returned()), "transfer-1", answers(Accepted));
    let expected = answers(Conflict(OtherReference)).alarms(Alarm::ReturnedTwice);
    check_return("another", Some(cancelled_returned()), "transfer-2", expected);
    for before in [
        None,
        Some(initiated()),
        Some(failed()),
        Some(succeeded(vec![])),
        Some(tombstone()),
        Some(cancelled_initiated()),
        Some(cancelled_failed()),
    ] {
        let expected = answers(Conflict(NothingDue)).alarms(Alarm::RecordConflict);
        check_return("nothing due", before, "transfer-1", expected);
    }
}

// ---------------------------------------------------------------- GetPayment

#[test]
fn get_payment_tells_life_and_funds_and_that_a_cancelled_order_is_closed() {
    let closed = Some(ORDER_IS_CLOSED);
    let late_success = cancelled(Some(terms(eur(100))), vec![], due(eur(250), at(INITIATED_AT)));
    for (payment, life, funds, inquiry) in [
        (initiated(), Life::Initiated, Funds::None, None),
        (failed(), Life::Failed, Funds::None, None),
        (succeeded(vec![]), Life::Succeeded, Funds::Held, None),
        (refused(ResultCode::CancelWindowExceed, vec![]), Life::Succeeded, Funds::Held, None),
        (refused(ResultCode::ProcessFail, vec![]), Life::Succeeded, Funds::Held, None),
        (tombstone(), Life::Unknown, Funds::None, closed),
        (cancelled_initiated(), Life::Initiated, Funds::None, closed),
        (cancelled_failed(), Life::Failed, Funds::None, closed),
        (cancelled_due(), Life::Succeeded, Funds::ReturnDue, closed),
        (late_success, Life::Succeeded, Funds::ReturnDue, closed),
        (cancelled_returned(), Life::Succeeded, Funds::Returned, closed),
    ] {
        assert_eq!(payment.life(), life, "{payment:?}");
        assert_eq!(payment.funds(), funds, "{payment:?}");
        assert_eq!(payment.inquiry(), inquiry, "{payment:?}");
    }
    assert_eq!(ORDER_IS_CLOSED, "ORDER_IS_CLOSED");
}

// ---------------------------------------------------------------- tokens: fixtures

/// What is known of one token, of the one it replaces, and of its grant.
#[derive(Clone, Debug, PartialEq)]
struct Granted {
    token: Option<Token>,
    replaced: Option<Token>,
    grant: Option<Authorization>,
}

fn nothing_known() -> Granted {
    Granted { token: None, replaced: None, grant: None }
}

fn with_token(token: Token, grant: Authorization) -> Granted {
    Granted { token: Some(token), grant: Some(grant), ..nothing_known() }
}

fn token_key(number: u8) -> TokenKey {
    TokenKey { psp: psp(), hash: TokenHash([number; 32]) }
}

fn authorization_key(name: &str) -> AuthorizationKey {
    AuthorizationKey { psp: psp(), authorization: AuthorizationId::parse(name).expect("an id") }
}

fn grant() -> Authorization {
    Authorization {
        acquirer: acquirer("A"),
        pass_through_info: Some(info("from wallet")),
        revoked: None,
    }
}

fn grant_of_b(grant: Authorization) -> Authorization {
    Authorization { acquirer: acquirer("B"), ..grant }
}

fn revoked(cause: RevocationCause) -> Authorization {
    let revocation = Revocation { at: at(INITIATED_AT), cause, trace: None };
    Authorization { revoked: Some(revocation), ..grant() }
}

fn revoked_now(cause: RevocationCause) -> Authorization {
    let asked = in_window();
    let revocation = Revocation { at: asked.now, cause, trace: asked.trace };
    Authorization { revoked: Some(revocation), ..grant() }
}

fn recorded() -> Recorded {
    Recorded {
        authorization: authorization_key("grant-1").authorization,
        kind: TokenKind::Access,
        expires_at: None,
        replaced_by: None,
        cancelled: None,
    }
}

fn live() -> Token {
    Token::Recorded(recorded())
}

fn rotated(by: u8) -> Token {
    Token::Recorded(Recorded { replaced_by: Some(token_key(by).hash), ..recorded() })
}

fn elsewhere() -> Token {
    let authorization = authorization_key("grant-2").authorization;
    Token::Recorded(Recorded { authorization, ..recorded() })
}

fn dead() -> Token {
    Token::DeadOnArrival(earlier(ResultCode::InvalidToken))
}

// ---------------------------------------------------------------- CancelToken

type CancelTokenExpected = Expected<Granted, cancel_token::Outcome>;

fn check_cancel_token_by(
    by: &str,
    name: &str,
    before: &Granted,
    asked: &Asked,
    expected: CancelTokenExpected,
) {
    let command = CancelToken {
        key: token_key(1),
        acquirer: acquirer(by),
        pass_through_info: Some(info("from acquirer")),
    };
    check(
        name,
        before,
        asked,
        &Subject::Authorization(authorization_key("grant-1")),
        expected,
        |world, asked| {
            let known = match (&world.token, &world.grant) {
                (None, _) => cancel_token::Known::Unknown,
                (Some(Token::DeadOnArrival(verdict)), _) => cancel_token::Known::Dead(verdict),
                (Some(Token::Recorded(token)), Some(grant)) => {
                    cancel_token::Known::Granted(token, grant)
                }
                (Some(Token::Recorded(_)), None) => panic!("a token without a grant"),
            };
            cancel_token::decide(known, &command, asked)
        },
        |world, next| {
            let grant = match next.authorization {
                Some((key, grant)) => {
                    assert_eq!(key, authorization_key("grant-1"));
                    Some(grant)
                }
                None => world.grant.clone(),
            };
            Granted { token: Some(next.token), grant, ..world.clone() }
        },
        |outcome| match outcome {
            cancel_token::Outcome::Decided { verdict, pass_through_info, .. } => {
                cancel_token::Outcome::Decided { verdict, pass_through_info, repeated: true }
            }
            other => other,
        },
    );
}

fn check_cancel_token(name: &str, before: &Granted, expected: CancelTokenExpected) {
    check_cancel_token_by("A", name, before, &in_window(), expected);
}

fn token_decided(
    verdict: Verdict,
    info: Option<PassThroughInfo>,
    repeated: bool,
) -> CancelTokenExpected {
    answers(cancel_token::Outcome::Decided { verdict, pass_through_info: info, repeated })
}

/// The token once its cancel was answered SUCCESS now.
fn cancelled_token(token: &Token) -> Token {
    let Token::Recorded(token) = token else { panic!("a recorded token") };
    let cancelled = Some(verdict(ResultCode::Success, &in_window()));
    Token::Recorded(Recorded { cancelled, ..token.clone() })
}

/// The token once its cancel was answered SUCCESS before.
fn cancelled_before() -> Token {
    Token::Recorded(Recorded { cancelled: Some(earlier(ResultCode::Success)), ..recorded() })
}

/// Every shape a token of a standing grant may have.
fn any_shape() -> Vec<Token> {
    let refresh = Recorded { kind: TokenKind::Refresh, ..recorded() };
    let expired = Recorded { expires_at: Some(at("2020-01-01T00:00:00Z")), ..recorded() };
    vec![live(), rotated(2), Token::Recorded(refresh), Token::Recorded(expired)]
}

#[test]
fn cancel_token_answers_every_row_of_its_table() {
    let success = || verdict(ResultCode::Success, &in_window());
    let from_wallet = || Some(info("from wallet"));

    // grant known, other acquirerId
    for token in any_shape() {
        let before = with_token(token, grant_of_b(grant()));
        let expected = answers(cancel_token::Outcome::NotYours).alarms(Alarm::AcquirerMismatch);
        check_cancel_token("another's", &before, expected);
    }

    // a result is recorded for this token
    let before = with_token(cancelled_before(), revoked(RevocationCause::CancelToken));
    let expected = token_decided(earlier(ResultCode::Success), from_wallet(), true);
    check_cancel_token("recorded SUCCESS", &before, expected);
    let before = Granted { token: Some(dead()), ..nothing_known() };
    let again = || token_decided(earlier(ResultCode::InvalidToken), None, true);
    check_cancel_token("recorded INVALID_TOKEN", &before, again());
    check_cancel_token_by("B", "to anybody", &before, &onboarding(in_window()), again());

    // token unknown: dead on arrival
    let invalid = || verdict(ResultCode::InvalidToken, &in_window());
    let token = Some(Token::DeadOnArrival(invalid()));
    let expected =
        token_decided(invalid(), None, false).keeps(Granted { token, ..nothing_known() });
    check_cancel_token("unknown", &nothing_known(), expected);

    // grant already revoked, by the wallet side or a sibling: SUCCESS, never INVALID_TOKEN
    for cause in [RevocationCause::RevokeAuthorization, RevocationCause::CancelToken] {
        for token in any_shape() {
            let before = with_token(token.clone(), revoked(cause));
            let after = Granted { token: Some(cancelled_token(&token)), ..before.clone() };
            let expected = token_decided(success(), from_wallet(), false).keeps(after);
            check_cancel_token("revoked already", &before, expected);
        }
    }

    // otherwise the whole grant is revoked: by a live, a rotated, a refresh, an expired token
    for token in any_shape() {
        let before = with_token(token.clone(), grant());
        let after = with_token(cancelled_token(&token), revoked_now(RevocationCause::CancelToken));
        let expected = token_decided(success(), from_wallet(), false)
            .keeps(after)
            .announces(EventKind::AuthorizationRevoked, EventCause::CancelToken);
        check_cancel_token("standing", &before, expected);
    }
}

#[test]
fn cancel_token_answers_the_first_rule_that_matches() {
    let cause = RevocationCause::RevokeAuthorization;
    let success = || verdict(ResultCode::Success, &in_window());
    let from_wallet = || Some(info("from wallet"));

    let before = with_token(cancelled_before(), grant_of_b(revoked(cause)));
    let expected = answers(cancel_token::Outcome::NotYours).alarms(Alarm::AcquirerMismatch);
    check_cancel_token("everything", &before, expected);

    let before = with_token(cancelled_before(), revoked(cause));
    let expected = token_decided(earlier(ResultCode::Success), from_wallet(), true);
    check_cancel_token("the right acquirer", &before, expected);

    let before = with_token(live(), revoked(cause));
    let after = with_token(cancelled_token(&live()), revoked(cause));
    let expected = token_decided(success(), from_wallet(), false).keeps(after);
    check_cancel_token("nothing recorded", &before, expected);

    let before = with_token(live(), grant());
    let after = with_token(cancelled_token(&live()), revoked_now(RevocationCause::CancelToken));
    let expected = token_decided(success(), from_wallet(), false)
        .keeps(after)
        .announces(EventKind::AuthorizationRevoked, EventCause::CancelToken);
    check_cancel_token("not revoked", &before, expected);
}

#[test]
fn cancel_token_of_an_unknown_token_waits_for_the_end_of_onboarding() {
    let now = onboarding(in_window());
    let expected = answers(cancel_token::Outcome::Onboarding);
    check_cancel_token_by("A", "unknown", &nothing_known(), &now, expected);
    assert_eq!(cancel_token::Outcome::Onboarding.code(), ResultCode::UnknownException);
}

#[test]
fn a_client_over_its_quota_declares_no_token_dead_and_cancels_what_is_known_all_the_same() {
    let over = Asked { tombstone_allowed: false, ..in_window() };
    let expected = answers(cancel_token::Outcome::TooManyTombstones);
    check_cancel_token_by("A", "unknown", &nothing_known(), &over, expected);
    let code = cancel_token::Outcome::TooManyTombstones.code();
    assert_eq!(code, ResultCode::RequestTrafficExceedLimit);
    let both = onboarding(over.clone());
    let expected = answers(cancel_token::Outcome::Onboarding);
    check_cancel_token_by("A", "and onboarding", &nothing_known(), &both, expected);
    let known = with_token(cancelled_before(), revoked(RevocationCause::CancelToken));
    let info = known.grant.as_ref().and_then(|grant| grant.pass_through_info.clone());
    let expected = token_decided(earlier(ResultCode::Success), info, true);
    check_cancel_token_by("A", "known", &known, &over, expected);
}

#[test]
fn every_answer_has_the_code_and_the_status_that_alipayplus_expects() {
    use ResultStatus::{F, S, U};
    for (code, wire, status) in [
        (ResultCode::Success, "SUCCESS", S),
        (ResultCode::AccessDenied, "ACCESS_DENIED", F),
        (ResultCode::CancelWindowExceed, "CANCEL_WINDOW_EXCEED", F),
        (ResultCode::ProcessFail, "PROCESS_FAIL", F),
        (ResultCode::InvalidToken, "INVALID_TOKEN", F),
        (ResultCode::UnknownException, "UNKNOWN_EXCEPTION", U),
        (ResultCode::RequestTrafficExceedLimit, "REQUEST_TRAFFIC_EXCEED_LIMIT", U),
    ] {
        assert_eq!((code.wire(), code.status()), (wire, status));
    }
    assert_eq!(cancel_payment::Outcome::NotYours.code(), ResultCode::AccessDenied);
    assert_eq!(cancel_token::Outcome::NotYours.code(), ResultCode::AccessDenied);
    for outcome in [
        cancel_payment::Outcome::Onboarding,
        cancel_payment::Outcome::ClockUncertain,
        cancel_payment::Outcome::RefundUndecided,
    ] {
        assert_eq!(outcome.code(), ResultCode::UnknownException);
    }
}

// ---------------------------------------------------------------- RecordToken

type RecordTokenExpected = Expected<Granted, record_token::Outcome>;

fn record_token_command() -> RecordToken {
    RecordToken {
        key: token_key(1),
        authorization: authorization_key("grant-1"),
        acquirer: acquirer("A"),
        kind: TokenKind::Access,
        expires_at: None,
        replaces: None,
        pass_through_info: None,
    }
}

fn exchange_command() -> RecordToken {
    RecordToken { replaces: Some(token_key(2)), ..record_token_command() }
}

fn check_record_token(
    name: &str,
    before: &Granted,
    command: &RecordToken,
    expected: RecordTokenExpected,
) {
    check(
        name,
        before,
        &in_window(),
        &Subject::Authorization(authorization_key("grant-1")),
        expected,
        |world, _| {
            let replaced = command.replaces.as_ref().and(world.replaced.as_ref());
            record_token::decide(world.token.as_ref(), replaced, world.grant.as_ref(), command)
        },
        |world, next| {
            let replaced = match next.replaced {
                Some((key, token)) => {
                    assert_eq!(Some(key), command.replaces);
                    Some(token)
                }
                None => world.replaced.clone(),
            };
            let grant = next.authorization.or_else(|| world.grant.clone());
            Granted { token: Some(next.token), replaced, grant }
        },
        |outcome| outcome,
    );
}

fn token_conflicts(conflict: record_token::Conflict) -> RecordTokenExpected {
    let alarm = match conflict {
        record_token::Conflict::OtherAcquirer => Alarm::AcquirerMismatch,
        _ => Alarm::RecordConflict,
    };
    answers(record_token::Outcome::Conflict(conflict)).alarms(alarm)
}

#[test]
fn record_token_answers_every_row_of_its_table() {
    use record_token::{
        Conflict::{OtherAcquirer, OtherToken, RecordedOtherwise},
        Conflict::{ReplacedAlready, ReplacedElsewhere, ReplacedUnknown},
        Outcome::{Accepted, RefusedDead, RefusedRevoked},
    };
    let further = record_token_command();
    let exchange = exchange_command();
    let standing = |token, replaced| Granted { token, replaced, grant: Some(grant()) };

    // other acquirerId than the grant's
    let before = Granted { grant: Some(grant_of_b(grant())), ..nothing_known() };
    for command in [&further, &exchange] {
        check_record_token("another's", &before, command, token_conflicts(OtherAcquirer));
    }

    // grant revoked: no record, no exchange, no repeat
    for cause in [RevocationCause::CancelToken, RevocationCause::RevokeAuthorization] {
        for (token, replaced) in [
            (None, None),
            (None, Some(live())),
            (Some(live()), None),
            (Some(live()), Some(rotated(1))),
        ] {
            let before = Granted { token, replaced, grant: Some(revoked(cause)) };
            for command in [&further, &exchange] {
                check_record_token("revoked", &before, command, answers(RefusedRevoked));
            }
        }
    }

    // token dead on arrival, of a known grant or of none
    for grant in [None, Some(grant())] {
        let before = Granted { token: Some(dead()), replaced: Some(live()), grant };
        for command in [&further, &exchange] {
            check_record_token("dead", &before, command, answers(RefusedDead));
        }
    }

    // `replaces` unknown, of another grant, replaced by another already
    for (replaced, conflict) in [
        (None, ReplacedUnknown),
        (Some(dead()), ReplacedUnknown),
        (Some(elsewhere()), ReplacedElsewhere),
        (Some(rotated(3)), ReplacedAlready),
    ] {
        let before = standing(None, replaced);
        check_record_token("replaces", &before, &exchange, token_conflicts(conflict));
    }

    // first of a grant
    let first = RecordToken { pass_through_info: Some(info("from wallet")), ..further.clone() };
    let after = standing(Some(live()), None);
    check_record_token("first", &nothing_known(), &first, answers(Accepted).keeps(after));
    // further of a grant, of another kind, with an end
    let expires_at = Some(at("2027-01-01T00:00:00Z"));
    let command = RecordToken { kind: TokenKind::Refresh, expires_at, ..further.clone() };
    let kept = Recorded { kind: TokenKind::Refresh, expires_at, ..recorded() };
    let after = standing(Some(Token::Recorded(kept)), None);
    check_record_token("further", &standing(None, None), &command, answers(Accepted).keeps(after));
    // repeats; what was recorded first stays
    for (token, command) in [(live(), &further), (live(), &first), (rotated(3), &further)] {
        let before = standing(Some(token), None);
        check_record_token("repeat", &before, command, answers(Accepted));
    }
    // the last info set with a new token is the one that counts
    let newer = RecordToken { pass_through_info: Some(info("newer")), ..further.clone() };
    let after = Granted {
        token: Some(live()),
        replaced: None,
        grant: Some(Authorization { pass_through_info: Some(info("newer")), ..grant() }),
    };
    check_record_token("newer", &standing(None, None), &newer, answers(Accepted).keeps(after));

    // a refresh exchange: old is rotated, new is live, in one commit; the same pair again
    let before = standing(None, Some(live()));
    let after = standing(Some(live()), Some(rotated(1)));
    check_record_token("exchange", &before, &exchange, answers(Accepted).keeps(after.clone()));
    check_record_token("the same pair", &after, &exchange, answers(Accepted));

    // recorded otherwise
    let before = standing(Some(elsewhere()), None);
    check_record_token("elsewhere", &before, &further, token_conflicts(OtherToken));
    let refresh = Token::Recorded(Recorded { kind: TokenKind::Refresh, ..recorded() });
    let before = standing(Some(refresh), None);
    check_record_token("another kind", &before, &further, token_conflicts(OtherToken));
    let before = standing(Some(live()), Some(live()));
    check_record_token("not in its place", &before, &exchange, token_conflicts(RecordedOtherwise));
}

#[test]
fn a_grant_is_written_only_where_a_token_changes_it() {
    let told = |pass_through_info| RecordToken { pass_through_info, ..record_token_command() };
    let written = |command: &RecordToken| {
        let decision = record_token::decide(None, None, Some(&grant()), command);
        decision.next.expect("a new token is kept").authorization
    };
    assert_eq!(written(&told(None)), None);
    assert_eq!(written(&told(grant().pass_through_info)), None);
    let other = Some(info("other"));
    let after = Authorization { pass_through_info: other.clone(), ..grant() };
    assert_eq!(written(&told(other)), Some(after));
}

#[test]
fn record_token_answers_the_first_rule_that_matches() {
    use record_token::{
        Conflict::{OtherAcquirer, OtherToken, RecordedOtherwise},
        Conflict::{ReplacedAlready, ReplacedElsewhere, ReplacedUnknown},
        Outcome::{Accepted, RefusedDead, RefusedRevoked},
    };
    let stands_revoked = || revoked(RevocationCause::RevokeAuthorization);
    let of_another = grant_of_b(stands_revoked());
    let rows: Vec<(&str, Token, Option<Token>, Authorization, RecordTokenExpected)> = vec![
        ("everything", dead(), None, of_another, token_conflicts(OtherAcquirer)),
        ("its acquirer", dead(), None, stands_revoked(), answers(RefusedRevoked)),
        ("standing", dead(), None, grant(), answers(RefusedDead)),
        ("not dead", elsewhere(), None, grant(), token_conflicts(ReplacedUnknown)),
        ("known", elsewhere(), Some(elsewhere()), grant(), token_conflicts(ReplacedElsewhere)),
        ("of the grant", elsewhere(), Some(rotated(3)), grant(), token_conflicts(ReplacedAlready)),
        ("not replaced", elsewhere(), Some(live()), grant(), token_conflicts(OtherToken)),
        ("its own", live(), Some(live()), grant(), token_conflicts(RecordedOtherwise)),
        ("in its place", live(), Some(rotated(1)), grant(), answers(Accepted)),
    ];
    for (name, token, replaced, grant, expected) in rows {
        let before = Granted { token: Some(token), replaced, grant: Some(grant) };
        check_record_token(name, &before, &exchange_command(), expected);
    }
}

// ---------------------------------------------------------------- RevokeAuthorization

#[test]
fn revoke_authorization_is_accepted_and_announced_once() {
    use revoke_authorization::Outcome::{Accepted, Unknown};
    let check_revoke = |name, before: Option<Authorization>, expected| {
        let command = RevokeAuthorization { key: authorization_key("grant-1") };
        check(
            name,
            &before,
            &in_window(),
            &Subject::Authorization(authorization_key("grant-1")),
            expected,
            |grant, asked| revoke_authorization::decide(grant.as_ref(), &command, asked),
            |_, next| Some(next),
            |outcome| outcome,
        );
    };
    check_revoke("unknown", None, answers(Unknown));
    let expected = answers(Accepted)
        .keeps(Some(revoked_now(RevocationCause::RevokeAuthorization)))
        .announces(EventKind::AuthorizationRevoked, EventCause::RevokeAuthorization);
    check_revoke("standing", Some(grant()), expected);
    for cause in [RevocationCause::CancelToken, RevocationCause::RevokeAuthorization] {
        check_revoke("revoked already", Some(revoked(cause)), answers(Accepted));
    }
}

// ---------------------------------------------------------------- IntrospectToken

#[test]
fn introspect_token_says_active_iff_the_grant_stands_and_the_token_is_good() {
    let now = in_window().now;
    let expires = |delta: i64| {
        let expires_at = Some(Timestamp { unix_ms: now.unix_ms + delta });
        Token::Recorded(Recorded { expires_at, ..recorded() })
    };
    let refresh = Token::Recorded(Recorded { kind: TokenKind::Refresh, ..recorded() });
    let stands = || Some(grant());
    let cancel = RevocationCause::CancelToken;
    let wallet = RevocationCause::RevokeAuthorization;
    for (name, token, grant, active) in [
        ("live", live(), stands(), true),
        ("a refresh token", refresh, stands(), true),
        ("a millisecond left", expires(1), stands(), true),
        ("expired this millisecond", expires(0), stands(), false),
        ("expired", expires(-1), stands(), false),
        ("rotated out", rotated(2), stands(), false),
        ("dead on arrival", dead(), stands(), false),
        ("dead on arrival, no grant", dead(), None, false),
        ("no grant", live(), None, false),
        ("revoked by cancelToken", live(), Some(revoked(cancel)), false),
        ("revoked by the wallet", live(), Some(revoked(wallet)), false),
        ("the cancelled token itself", cancelled_before(), Some(revoked(cancel)), false),
    ] {
        let told = introspect_token::decide(Some((token.clone(), grant.clone())), now);
        assert_eq!(told.is_some(), active, "{name}");
        if let Some(told) = told {
            assert_eq!(Token::Recorded(told.token), token, "{name}");
            assert_eq!(Some(told.authorization), grant, "{name}");
        }
    }
    assert_eq!(introspect_token::decide(None, now), None);
}

// ---------------------------------------------------------------- events

#[test]
fn an_event_id_hangs_on_key_and_kind_alone() {
    let event = |kind, subject: &Subject, cause, at| Event {
        kind,
        subject: subject.clone(),
        acquirer: None,
        cause,
        at,
        result: None,
        pass_through_info: None,
        trace: None,
    };
    let one = Subject::Payment(payment_key());
    let other = Subject::Payment(PaymentKey {
        payment_request: PaymentRequestId::parse("payment-2").expect("an id"),
        ..payment_key()
    });
    let (early, late) = (at(INITIATED_AT), at(EDGE));
    let due = |minor_units| EventKind::FundReturnDue(eur(minor_units));
    let first = event(due(100), &one, EventCause::CancelPayment, early).id();

    assert_eq!(first, event(due(250), &one, EventCause::LateSuccess, late).id());
    let cancelled = EventKind::PaymentCancelled;
    assert_ne!(first, event(cancelled, &one, EventCause::CancelPayment, early).id());
    assert_ne!(first, event(due(100), &other, EventCause::CancelPayment, early).id());
}
