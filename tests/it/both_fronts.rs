//! semantics.md, row by row, through Alipay+'s signed JSON and through gRPC: the same command has the same result.

use tonic::Status;
use tonic_types::StatusExt as _;

use crate::harness::{
    grpc::{
        Grant, Grpc, Payment,
        wire::{
            self, Funds, PaymentLife, RecordFundReturnAnswer, RecordPaymentAnswer as Answer,
            RecordTokenAnswer, RefundState, ResultCode, ResultStatus, RevokeAuthorizationAnswer,
            TokenKind, record_payment_request::Fact,
        },
    },
    json::Json,
    service::{Options, Service, Store},
    unique,
};

/// The two ways in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Front {
    Json,
    Grpc,
}

const BOTH: [Front; 2] = [Front::Json, Front::Grpc];

/// A result's code as Alipay+ spells it, after a check that its status goes with it.
fn code_of(result: Option<&wire::Result>) -> String {
    let result = result.expect("the result is always set");
    let code = result.result_code();
    let status = if code == ResultCode::Success { ResultStatus::S } else { ResultStatus::F };
    assert_eq!(result.result_status(), status);
    assert!((1..=256).contains(&result.result_message.chars().count()));
    code.as_str_name().strip_prefix("RESULT_CODE_").unwrap().to_owned()
}

/// The Alipay+ code that a refusal carries.
fn reason_of(status: &Status) -> String {
    let info = status.get_details_error_info().unwrap_or_else(|| panic!("no ErrorInfo: {status}"));
    assert_eq!(info.domain, "cancel.alipayplus");
    info.reason
}

struct Wallet {
    json: Json,
    grpc: Grpc,
}

impl Wallet {
    fn of(service: &Service) -> Self {
        Self { json: service.json(), grpc: service.grpc() }
    }

    fn shared() -> Self {
        Self::of(Service::shared())
    }

    /// cancelPayment's code.
    fn cancel(&self, front: Front, payment: &Payment) -> String {
        match front {
            Front::Json => {
                let answer =
                    self.json.cancel_payment(&payment.psp, &payment.acquirer, &payment.request);
                let code = answer.code();
                answer.expect(&code).assert_signed();
                assert!(answer.json().get("passThroughInfo").is_none());
                code
            }
            Front::Grpc => match self.grpc.cancel_payment(payment.cancel()) {
                Ok(response) => {
                    assert!(response.decided_at.is_some());
                    code_of(response.result.as_ref())
                }
                Err(status) => reason_of(&status),
            },
        }
    }

    /// cancelToken's code, and the passThroughInfo of its answer.
    fn cancel_token(&self, front: Front, grant: &Grant, token: &str) -> (String, Option<String>) {
        match front {
            Front::Json => {
                let answer = self.json.cancel_token(&grant.psp, &grant.acquirer, token);
                let code = answer.code();
                answer.expect(&code).assert_signed();
                let info = answer.json().get("passThroughInfo").cloned();
                (code, info.map(|info| info.as_str().expect("a text").to_owned()))
            }
            Front::Grpc => match self.grpc.cancel_token(grant.cancel(token)) {
                Ok(response) => {
                    assert!(response.decided_at.is_some());
                    (code_of(response.result.as_ref()), response.pass_through_info)
                }
                Err(status) => (reason_of(&status), None),
            },
        }
    }

    #[track_caller]
    fn records(&self, payment: &Payment, fact: Fact, expected: Answer) {
        assert_eq!(self.grpc.record(payment, fact), expected);
    }

    #[track_caller]
    fn records_token(&self, request: wire::RecordTokenRequest, expected: RecordTokenAnswer) {
        let answered = self.grpc.record_token(request).expect("an answer");
        assert_eq!(answered.answer(), expected, "{}", answered.conflict);
        assert_eq!(answered.conflict.is_empty(), expected != RecordTokenAnswer::Conflict);
    }

    fn is_active(&self, grant: &Grant, token: &str) -> bool {
        let told = self.grpc.introspect_token(grant.introspect(token)).expect("an answer");
        if !told.active {
            assert_eq!(told, wire::IntrospectTokenResponse::default(), "nothing else is told");
        }
        told.active
    }
}

/// What happened to a payment before its cancel, and what the cancel answers.
type PaymentRow = (&'static str, fn(&Grpc, &mut Payment), &'static str);

const ACCEPTED: Answer = Answer::Accepted;

fn paid(grpc: &Grpc, payment: &Payment) {
    assert_eq!(grpc.record(payment, payment.initiated()), Answer::Proceed);
    assert_eq!(grpc.record(payment, payment.succeeded()), ACCEPTED);
}

const PAYMENTS: [PaymentRow; 18] = [
    ("unknown", |_, _| (), "SUCCESS"),
    (
        "initiated",
        |grpc, payment| assert_eq!(grpc.record(payment, payment.initiated()), Answer::Proceed),
        "SUCCESS",
    ),
    ("succeeded", |grpc, payment| paid(grpc, payment), "SUCCESS"),
    (
        "succeeded, never initiated",
        |grpc, payment| assert_eq!(grpc.record(payment, payment.succeeded()), ACCEPTED),
        "SUCCESS",
    ),
    (
        "failed",
        |grpc, payment| {
            grpc.record(payment, payment.initiated());
            assert_eq!(grpc.record(payment, payment.failed()), ACCEPTED);
        },
        "SUCCESS",
    ),
    (
        "failed, never initiated",
        |grpc, payment| assert_eq!(grpc.record(payment, payment.failed()), ACCEPTED),
        "SUCCESS",
    ),
    (
        "succeeded after it failed",
        |grpc, payment| {
            grpc.record(payment, payment.failed());
            assert_eq!(grpc.record(payment, payment.succeeded()), ACCEPTED);
        },
        "SUCCESS",
    ),
    (
        "refunded whole",
        |grpc, payment| {
            paid(grpc, payment);
            let all = payment.amount;
            assert_eq!(grpc.record(payment, payment.refund_started("r", all)), ACCEPTED);
            assert_eq!(grpc.record(payment, payment.refund_succeeded("r")), ACCEPTED);
        },
        "PROCESS_FAIL",
    ),
    (
        "refunded in part",
        |grpc, payment| {
            paid(grpc, payment);
            assert_eq!(grpc.record(payment, payment.refund_started("r", 1)), ACCEPTED);
            assert_eq!(grpc.record(payment, payment.refund_succeeded("r")), ACCEPTED);
        },
        "PROCESS_FAIL",
    ),
    (
        "one refund made, one reserved",
        |grpc, payment| {
            paid(grpc, payment);
            grpc.record(payment, payment.refund_started("r", 1));
            grpc.record(payment, payment.refund_started("s", 1));
            assert_eq!(grpc.record(payment, payment.refund_succeeded("r")), ACCEPTED);
        },
        "PROCESS_FAIL",
    ),
    (
        "a refund reserved",
        |grpc, payment| {
            paid(grpc, payment);
            assert_eq!(grpc.record(payment, payment.refund_started("r", 1)), ACCEPTED);
        },
        "UNKNOWN_EXCEPTION",
    ),
    (
        "a refund that failed",
        |grpc, payment| {
            paid(grpc, payment);
            grpc.record(payment, payment.refund_started("r", 1));
            assert_eq!(grpc.record(payment, payment.refund_failed("r")), ACCEPTED);
        },
        "SUCCESS",
    ),
    (
        "succeeded, past the window",
        |grpc, payment| {
            payment.days_ago = 3;
            paid(grpc, payment);
        },
        "CANCEL_WINDOW_EXCEED",
    ),
    (
        "refunded and past the window",
        |grpc, payment| {
            payment.days_ago = 3;
            paid(grpc, payment);
            grpc.record(payment, payment.refund_started("r", 1));
            grpc.record(payment, payment.refund_succeeded("r"));
        },
        "CANCEL_WINDOW_EXCEED",
    ),
    (
        "initiated, past the window",
        |grpc, payment| {
            payment.days_ago = 3;
            assert_eq!(grpc.record(payment, payment.initiated()), Answer::Proceed);
        },
        "SUCCESS",
    ),
    (
        "failed, past the window",
        |grpc, payment| {
            payment.days_ago = 3;
            grpc.record(payment, payment.initiated());
            assert_eq!(grpc.record(payment, payment.failed()), ACCEPTED);
        },
        "SUCCESS",
    ),
    (
        "of another acquirer",
        |grpc, payment| {
            paid(grpc, payment);
            payment.acquirer = "somebody else".to_owned();
        },
        "ACCESS_DENIED",
    ),
    (
        "cancelled by another acquirer",
        |grpc, payment| {
            grpc.cancel_payment(payment.cancel()).expect("a result");
            payment.acquirer = "somebody else".to_owned();
        },
        "ACCESS_DENIED",
    ),
];

#[test]
fn a_payments_cancel_has_the_same_result_through_both_fronts_and_keeps_it() {
    let wallet = Wallet::shared();
    for (what, happens, expected) in PAYMENTS {
        for first in BOTH {
            let mut payment = Payment::new();
            happens(&wallet.grpc, &mut payment);
            for front in [first, Front::Json, Front::Grpc] {
                let code = wallet.cancel(front, &payment);
                assert_eq!(code, expected, "{what}, first by {first:?}, now by {front:?}");
            }
        }
    }
}

#[test]
fn only_the_first_request_of_a_key_decides() {
    let wallet = Wallet::shared();
    let payment = Payment::new();
    let first = wallet.grpc.cancel_payment(payment.cancel()).unwrap();
    let second = wallet.grpc.cancel_payment(payment.cancel()).unwrap();
    assert!(!first.repeated && second.repeated);
    assert_eq!((first.decided_at, first.result), (second.decided_at, second.result));
    let grant = Grant::new();
    let first = wallet.grpc.cancel_token(grant.cancel(&grant.id)).unwrap();
    let second = wallet.grpc.cancel_token(grant.cancel(&grant.id)).unwrap();
    assert!(!first.repeated && second.repeated);
    assert_eq!((first.decided_at, first.result), (second.decided_at, second.result));
}

#[test]
fn after_a_tombstone_a_pay_is_refused_and_a_late_success_goes_back() {
    let wallet = Wallet::shared();
    for front in BOTH {
        let payment = Payment::new();
        assert_eq!(wallet.cancel(front, &payment), "SUCCESS");
        let story = wallet.grpc.story(&payment);
        let told = story.payment.unwrap();
        assert_eq!((told.life(), told.funds()), (PaymentLife::Unknown, Funds::None));
        assert_eq!(told.acquirer_id.as_deref(), Some(&*payment.acquirer));
        for _ in 0..2 {
            wallet.records(&payment, payment.initiated(), Answer::RefusedCancelled);
        }
        for _ in 0..2 {
            wallet.records(&payment, payment.succeeded(), Answer::ReturnFunds);
            let told = wallet.grpc.story(&payment).payment.unwrap();
            assert_eq!(told.funds(), Funds::ReturnDue);
            let amount = told.fund_return.unwrap().amount.unwrap();
            assert_eq!((amount.value, &*amount.currency), (payment.amount, "EUR"));
        }
        // whatever acquirer or amount: it is a fact
        let mut other = payment.clone();
        other.acquirer = "somebody else".to_owned();
        wallet.records(&other, other.succeeded(), Answer::ReturnFunds);
        assert_eq!(wallet.cancel(front, &payment), "SUCCESS");
    }
}

#[test]
fn a_payment_cancelled_while_it_is_debited_goes_back_when_its_success_is_reported() {
    let wallet = Wallet::shared();
    for front in BOTH {
        let payment = Payment::new();
        wallet.records(&payment, payment.initiated(), Answer::Proceed);
        wallet.records(&payment, payment.initiated(), Answer::Proceed);
        assert_eq!(wallet.cancel(front, &payment), "SUCCESS");
        wallet.records(&payment, payment.initiated(), Answer::RefusedCancelled);
        wallet.records(&payment, payment.succeeded(), Answer::ReturnFunds);
        let started = payment.refund_started("r", 1);
        wallet.records(&payment, started, Answer::RefusedCancelled);
    }
}

#[test]
fn a_payment_tells_its_whole_story() {
    let wallet = Wallet::shared();
    for front in BOTH {
        let payment = Payment::new();
        let get = wire::GetPaymentRequest {
            psp_id: payment.psp.clone(),
            payment_request_id: payment.request.clone(),
        };
        let unknown = wallet.grpc.get_payment(get).unwrap_err();
        assert_eq!(unknown.code(), tonic::Code::NotFound);

        wallet.records(&payment, payment.initiated(), Answer::Proceed);
        let story = wallet.grpc.story(&payment);
        assert_eq!(story.inquiry, None, "the core's own answer stands");
        let told = story.payment.unwrap();
        assert_eq!((&told.psp_id, &told.payment_request_id), (&payment.psp, &payment.request));
        assert_eq!((told.life(), told.funds()), (PaymentLife::Initiated, Funds::None));

        wallet.records(&payment, payment.succeeded(), Answer::Accepted);
        wallet.records(&payment, payment.initiated(), Answer::AlreadySucceeded);
        wallet.records(&payment, payment.refund_started("r-1", 100), Answer::Accepted);
        wallet.records(&payment, payment.refund_failed("r-1"), Answer::Accepted);
        let told = wallet.grpc.story(&payment).payment.unwrap();
        assert_eq!((told.life(), told.funds()), (PaymentLife::Succeeded, Funds::Held));
        assert_eq!(told.refunds.len(), 1);
        assert_eq!(told.refunds[0].state(), RefundState::Failed);
        assert_eq!(told.amount.as_ref().map(|amount| amount.value), Some(payment.amount));

        assert_eq!(wallet.cancel(front, &payment), "SUCCESS");
        let story = wallet.grpc.story(&payment);
        let inquiry = story.inquiry.expect("inquiryPayment has an answer now");
        assert_eq!(inquiry.result_code, "ORDER_IS_CLOSED");
        assert_eq!(inquiry.result_status(), ResultStatus::F);
        let told = story.payment.unwrap();
        assert_eq!((told.life(), told.funds()), (PaymentLife::Succeeded, Funds::ReturnDue));
        let cancellation = told.cancellation.expect("it is cancelled");
        assert_eq!(code_of(cancellation.result.as_ref()), "SUCCESS");

        let returned = |reference: &str| {
            let request = wire::RecordFundReturnRequest {
                psp_id: payment.psp.clone(),
                payment_request_id: payment.request.clone(),
                reference: reference.to_owned(),
            };
            wallet.grpc.record_fund_return(request).expect("an answer")
        };
        for _ in 0..2 {
            assert_eq!(returned("transfer-1").answer(), RecordFundReturnAnswer::Accepted);
        }
        let twice = returned("transfer-2");
        assert_eq!(twice.answer(), RecordFundReturnAnswer::Conflict);
        assert!(!twice.conflict.is_empty());
        let story = wallet.grpc.story(&payment);
        assert_eq!(story.inquiry.expect("still").result_code, "ORDER_IS_CLOSED");
        let told = story.payment.unwrap();
        assert_eq!(told.funds(), Funds::Returned);
        assert_eq!(told.fund_return.unwrap().reference.as_deref(), Some("transfer-1"));
        wallet.records(&payment, payment.succeeded(), Answer::ReturnFunds);
        assert_eq!(wallet.grpc.story(&payment).payment.unwrap().funds(), Funds::Returned);
    }
}

#[test]
fn a_payment_that_was_not_cancelled_leaves_inquiry_to_the_core() {
    let wallet = Wallet::shared();
    let mut payment = Payment::new();
    payment.days_ago = 3;
    paid(&wallet.grpc, &payment);
    assert_eq!(wallet.cancel(Front::Json, &payment), "CANCEL_WINDOW_EXCEED");
    let story = wallet.grpc.story(&payment);
    assert_eq!(story.inquiry, None);
    let told = story.payment.unwrap();
    assert_eq!(told.funds(), Funds::Held);
    assert_eq!(code_of(told.cancellation.unwrap().result.as_ref()), "CANCEL_WINDOW_EXCEED");
    // a refund is the way back now
    wallet.records(&payment, payment.refund_started("r", 1), Answer::Accepted);
}

#[test]
fn facts_that_contradict_what_is_recorded_are_conflicts_and_change_nothing() {
    let wallet = Wallet::shared();
    let payment = Payment::new();
    paid(&wallet.grpc, &payment);
    let other_amount = Payment { amount: payment.amount + 1, ..payment.clone() };
    let other_acquirer = Payment { acquirer: "somebody else".to_owned(), ..payment.clone() };
    for (by, fact) in [
        (&other_amount, other_amount.succeeded()),
        (&other_amount, other_amount.initiated()),
        (&other_acquirer, other_acquirer.succeeded()),
        (&other_acquirer, other_acquirer.refund_started("r", 1)),
        (&payment, payment.failed()),
        (&payment, payment.refund_started("r", payment.amount + 1)),
        (&payment, payment.refund_succeeded("never started")),
        (&payment, payment.refund_failed("never started")),
    ] {
        let before = wallet.grpc.story(&payment);
        let answered = wallet.grpc.record_payment(by.record(fact.clone())).unwrap();
        assert_eq!(answered.answer(), Answer::Conflict, "{fact:?}");
        assert!(!answered.conflict.is_empty());
        assert_eq!(wallet.grpc.story(&payment), before, "{fact:?}");
    }
}

#[test]
fn the_client_and_the_trace_of_a_cancel_are_kept_and_only_the_bridge_may_name_a_client() {
    let wallet = Wallet::shared();
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let parent = format!("00-{trace}-b7ad6b7169203331-01");
    let cancellation = |payment: &Payment| {
        wallet.grpc.story(payment).payment.unwrap().cancellation.expect("it is cancelled")
    };

    let payment = Payment::new();
    let body =
        crate::harness::json::payment_body(&payment.psp, &payment.acquirer, &payment.request);
    let request = wallet.json.request().header("traceparent", &parent).body(body);
    request.header("alipayplus-client-id", "FORGED").send().expect("SUCCESS");
    let told = cancellation(&payment);
    assert_eq!((&*told.client_id, &*told.trace_id), (&*wallet.json.client_id, trace));

    let payment = Payment::new();
    let mut request = tonic::Request::new(payment.cancel());
    request.metadata_mut().insert("alipayplus-client-id", wallet.json.client_id.parse().unwrap());
    request.metadata_mut().insert("client-id", wallet.json.client_id.parse().unwrap());
    request.metadata_mut().insert("traceparent", parent.parse().unwrap());
    wallet.grpc.cancel_payment(request).unwrap();
    let told = cancellation(&payment);
    assert_eq!((&*told.client_id, &*told.trace_id), ("", trace));
}

/// A grant and the token that is cancelled.
type TokenRow = (&'static str, fn(&Wallet, &mut Grant) -> String, &'static str);

const TAKEN: RecordTokenAnswer = RecordTokenAnswer::Accepted;

fn granted(wallet: &Wallet, grant: &Grant) -> String {
    let token = unique("token");
    wallet.records_token(grant.token(&token), TAKEN);
    token
}

fn rotated(wallet: &Wallet, grant: &Grant) -> [String; 2] {
    let old = granted(wallet, grant);
    let new = unique("token");
    let exchange = wire::RecordTokenRequest { replaces: Some(old.clone()), ..grant.token(&new) };
    wallet.records_token(exchange.clone(), TAKEN);
    // the same pair again is the same exchange
    wallet.records_token(exchange, TAKEN);
    [old, new]
}

fn seconds_from_now(seconds: i64) -> Option<prost_types::Timestamp> {
    let now = prost_types::Timestamp::from(std::time::SystemTime::now());
    Some(prost_types::Timestamp { seconds: now.seconds + seconds, nanos: 0 })
}

fn refresh(wallet: &Wallet, grant: &Grant) -> String {
    let token = unique("refresh");
    let kind = TokenKind::Refresh.into();
    wallet.records_token(wire::RecordTokenRequest { kind, ..grant.token(&token) }, TAKEN);
    token
}

const TOKENS: [TokenRow; 10] = [
    ("unknown", |_, _| unique("token"), "INVALID_TOKEN"),
    ("live", |wallet, grant| granted(wallet, grant), "SUCCESS"),
    (
        "expired",
        |wallet, grant| {
            let token = unique("token");
            let expires_at = seconds_from_now(-60);
            let request = wire::RecordTokenRequest { expires_at, ..grant.token(&token) };
            wallet.records_token(request, TAKEN);
            assert!(!wallet.is_active(grant, &token), "it has expired");
            token
        },
        "SUCCESS",
    ),
    (
        "rotated out",
        |wallet, grant| {
            let [old, new] = rotated(wallet, grant);
            assert!(!wallet.is_active(grant, &old) && wallet.is_active(grant, &new));
            old
        },
        "SUCCESS",
    ),
    ("the one rotated in", |wallet, grant| rotated(wallet, grant)[1].clone(), "SUCCESS"),
    ("a refresh token", |wallet, grant| refresh(wallet, grant), "SUCCESS"),
    (
        "a sibling of a cancelled one",
        |wallet, grant| {
            let [sibling, token] = [granted(wallet, grant), granted(wallet, grant)];
            assert_eq!(wallet.cancel_token(Front::Json, grant, &sibling).0, "SUCCESS");
            token
        },
        "SUCCESS",
    ),
    (
        "revoked by the wallet before",
        |wallet, grant| {
            let token = granted(wallet, grant);
            for _ in 0..2 {
                let answered = wallet.grpc.revoke_authorization(grant.revoke()).unwrap();
                assert_eq!(answered.answer(), RevokeAuthorizationAnswer::Accepted);
            }
            token
        },
        "SUCCESS",
    ),
    (
        "of another acquirer",
        |wallet, grant| {
            let token = granted(wallet, grant);
            grant.acquirer = "somebody else".to_owned();
            token
        },
        "ACCESS_DENIED",
    ),
    (
        "of another wallet",
        |wallet, grant| {
            let token = granted(wallet, grant);
            grant.psp = "another wallet".to_owned();
            token
        },
        "INVALID_TOKEN",
    ),
];

#[test]
fn a_tokens_cancel_has_the_same_result_through_both_fronts_and_keeps_it() {
    let wallet = Wallet::shared();
    for (what, happens, expected) in TOKENS {
        for first in BOTH {
            let mut grant = Grant::new();
            let token = happens(&wallet, &mut grant);
            for front in [first, Front::Json, Front::Grpc] {
                let (code, info) = wallet.cancel_token(front, &grant, &token);
                assert_eq!(code, expected, "{what}, first by {first:?}, now by {front:?}");
                assert_eq!(info, None);
            }
            if expected != "ACCESS_DENIED" {
                assert!(!wallet.is_active(&grant, &token), "{what}");
            }
        }
    }
}

#[test]
fn cancelling_any_token_revokes_every_token_of_its_grant_and_of_no_other() {
    let wallet = Wallet::shared();
    for front in BOTH {
        for cancelled in 0..4 {
            let grant = Grant::new();
            let [old, new] = rotated(&wallet, &grant);
            let tokens = [old, new, granted(&wallet, &grant), refresh(&wallet, &grant)];
            let stranger = Grant::new();
            let strangers = granted(&wallet, &stranger);
            for live in &tokens[1..] {
                let told = wallet.grpc.introspect_token(grant.introspect(live)).unwrap();
                assert!(told.active);
                assert_eq!(told.authorization_id.as_deref(), Some(&*grant.id));
                assert_eq!(told.acquirer_id.as_deref(), Some(&*grant.acquirer));
                assert_ne!(told.kind(), TokenKind::Unspecified);
            }
            let (code, _) = wallet.cancel_token(front, &grant, &tokens[cancelled]);
            assert_eq!(code, "SUCCESS");
            for token in &tokens {
                assert!(!wallet.is_active(&grant, token));
            }
            assert!(wallet.is_active(&stranger, &strangers));
            // nothing is added to it any more
            let late = unique("late");
            wallet.records_token(grant.token(&late), RecordTokenAnswer::RefusedRevoked);
            let exchange = wire::RecordTokenRequest {
                replaces: Some(tokens[1].clone()),
                ..grant.token(&late)
            };
            wallet.records_token(exchange, RecordTokenAnswer::RefusedRevoked);
            assert!(!wallet.is_active(&grant, &late));
        }
    }
}

#[test]
fn a_token_declared_invalid_is_dead_on_arrival() {
    let wallet = Wallet::shared();
    for front in BOTH {
        let grant = Grant::new();
        let token = unique("token");
        assert_eq!(wallet.cancel_token(front, &grant, &token).0, "INVALID_TOKEN");
        wallet.records_token(grant.token(&token), RecordTokenAnswer::RefusedDead);
        assert!(!wallet.is_active(&grant, &token));
        assert_eq!(wallet.cancel_token(front, &grant, &token).0, "INVALID_TOKEN");
        // the grant itself is not
        let other = granted(&wallet, &grant);
        assert!(wallet.is_active(&grant, &other));
    }
}

#[test]
fn the_answer_to_a_cancel_token_carries_what_the_wallet_set_for_it() {
    let wallet = Wallet::shared();
    let info = "{\"memo\":\"取消 💳 \\\\ \\u0000\"}\n";
    for first in BOTH {
        let grant = Grant::new();
        let token = unique("token");
        let pass_through_info = Some(info.to_owned());
        let request = wire::RecordTokenRequest { pass_through_info, ..grant.token(&token) };
        wallet.records_token(request, TAKEN);
        for front in [first, Front::Json, Front::Grpc] {
            let (code, carried) = wallet.cancel_token(front, &grant, &token);
            assert_eq!((&*code, carried.as_deref()), ("SUCCESS", Some(info)));
        }
    }
}

#[test]
fn what_the_acquirer_passes_through_is_taken_by_both_fronts_and_not_echoed() {
    let wallet = Wallet::shared();
    let grant = Grant::new();
    let [token, other] = [granted(&wallet, &grant), granted(&wallet, &Grant::new())];
    let info = "x".repeat(20_000);
    let request =
        wire::CancelTokenRequest { pass_through_info: Some(info.clone()), ..grant.cancel(&token) };
    assert_eq!(wallet.grpc.cancel_token(request).unwrap().pass_through_info, None);
    let body = serde_json::json!({
        "pspId": grant.psp, "acquirerId": grant.acquirer, "accessToken": other,
        "passThroughInfo": info, "acquirerName": null,
    });
    let api = crate::harness::json::Api::CancelToken;
    let answer = wallet.json.request().api(api).body(body.to_string()).send();
    answer.expect("SUCCESS").assert_signed();
    assert!(answer.json().get("passThroughInfo").is_none());
}

#[test]
fn json_tells_in_the_cores_words_why_a_cancel_cannot_be_decided() {
    let wallet = Wallet::of(Service::shared());
    let payment = Payment::new();
    paid(&wallet.grpc, &payment);
    wallet.records(&payment, payment.refund_started("r", 1), Answer::Accepted);
    let answer = wallet.json.cancel_payment(&payment.psp, &payment.acquirer, &payment.request);
    answer.expect("UNKNOWN_EXCEPTION").assert_signed();
    assert!(answer.message().starts_with("a refund of the payment"), "{}", answer.message());
}

#[test]
fn in_onboarding_the_unknown_is_answered_u_and_recorded_nowhere_until_the_import_is_complete() {
    let service = Service::start(Options { onboarding: true, ..Options::default() });
    let wallet = Wallet::of(&service);
    let (unknown, grant) = (Payment::new(), Grant::new());
    for front in BOTH {
        assert_eq!(wallet.cancel(front, &unknown), "UNKNOWN_EXCEPTION");
        assert_eq!(wallet.cancel_token(front, &grant, "a token").0, "UNKNOWN_EXCEPTION");
    }
    let get = wire::GetPaymentRequest {
        psp_id: unknown.psp.clone(),
        payment_request_id: unknown.request.clone(),
    };
    assert_eq!(wallet.grpc.get_payment(get).unwrap_err().code(), tonic::Code::NotFound);
    // nothing was declared dead or cancelled
    wallet.records_token(grant.token("a token"), TAKEN);
    assert!(wallet.is_active(&grant, "a token"));
    wallet.records(&unknown, unknown.initiated(), Answer::Proceed);
    // what is known is decided
    let known = Payment::new();
    paid(&wallet.grpc, &known);
    assert_eq!(wallet.cancel(Front::Json, &known), "SUCCESS");

    let (before, token_before) = (Payment::new(), Grant::new());
    assert_eq!(wallet.cancel(Front::Json, &before), "UNKNOWN_EXCEPTION");
    service.import_complete();
    assert_eq!(wallet.cancel(Front::Json, &before), "SUCCESS");
    assert_eq!(wallet.cancel_token(Front::Json, &token_before, "b").0, "INVALID_TOKEN");
    service.import_complete();
}

#[test]
fn an_acquirer_that_is_only_observed_may_cancel_what_is_anothers() {
    let service = Service::start(Options::set(["policy.acquirer_check=observe"]));
    let wallet = Wallet::of(&service);
    for front in BOTH {
        let mut payment = Payment::new();
        paid(&wallet.grpc, &payment);
        payment.acquirer = "somebody else".to_owned();
        assert_eq!(wallet.cancel(front, &payment), "SUCCESS");
    }
}

#[test]
fn what_was_decided_holds_after_a_kill_and_after_the_window_is_changed() {
    let mut service = Service::start(Options::default());
    let mut late = Payment::new();
    late.days_ago = 3;
    let (undone, grant) = (Payment::new(), Grant::new());
    let token = {
        let wallet = Wallet::of(&service);
        paid(&wallet.grpc, &late);
        assert_eq!(wallet.cancel(Front::Json, &late), "CANCEL_WINDOW_EXCEED");
        assert_eq!(wallet.cancel(Front::Json, &undone), "SUCCESS");
        let token = granted(&wallet, &grant);
        assert_eq!(wallet.cancel_token(Front::Json, &grant, &token).0, "SUCCESS");
        token
    };
    service.kill_nine();
    service.restart_with(&["policy.cancel_window.duration=240h"]);
    let wallet = Wallet::of(&service);
    for front in BOTH {
        assert_eq!(wallet.cancel(front, &late), "CANCEL_WINDOW_EXCEED");
        assert_eq!(wallet.cancel(front, &undone), "SUCCESS");
        assert_eq!(wallet.cancel_token(front, &grant, &token).0, "SUCCESS");
    }
    // the change itself holds for what comes
    let mut in_time = Payment::new();
    in_time.days_ago = 3;
    paid(&wallet.grpc, &in_time);
    assert_eq!(wallet.cancel(Front::Json, &in_time), "SUCCESS");
}

#[test]
fn no_token_is_in_clear_in_the_log_or_in_the_store() {
    let trace = Options::set(["telemetry.log_level=debug,alipayplus_cancel=trace"]);
    let mut service = Service::start(Options { store: Store::Embedded, ..trace });
    let wallet = Wallet::of(&service);
    let grant = Grant::new();
    let [live, unknown, replaced] =
        ["LIVE", "UNKNOWN", "REPLACED"].map(|kind| unique(&format!("TOP-SECRET-{kind}")));
    wallet.records_token(grant.token(&replaced), TAKEN);
    let replaces = Some(replaced.clone());
    wallet.records_token(wire::RecordTokenRequest { replaces, ..grant.token(&live) }, TAKEN);
    assert!(wallet.is_active(&grant, &live));
    for front in BOTH {
        wallet.cancel_token(front, &grant, &live);
        wallet.cancel_token(front, &grant, &unknown);
    }
    let too_long = grant.cancel(&"TOP-SECRET-LONG".repeat(20));
    let refused = wallet.grpc.cancel_token(too_long).unwrap_err();
    assert!(!refused.message().contains("TOP-SECRET"), "{refused}");
    drop(wallet);
    let store = |service: &Service| {
        let files = std::fs::read_dir(service.dir()).unwrap().map(|file| file.unwrap().path());
        let state = files.filter(|file| {
            file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("state"))
        });
        state.flat_map(|file| std::fs::read(file).unwrap()).collect::<Vec<u8>>()
    };
    for bytes in [store(&service), {
        service.terminate();
        store(&service)
    }] {
        assert!(!bytes.is_empty());
        assert!(!bytes.windows(10).any(|window| window == b"TOP-SECRET"));
    }
    assert!(!service.stderr().contains("TOP-SECRET"), "{}", service.stderr());
}
