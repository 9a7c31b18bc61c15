//! Where the domain meets the messages of `proto/`: requests become checked values, outcomes become responses.

pub(super) mod feed;

use prost_types::Timestamp as WireTime;
use tonic::Status;
use tonic_types::FieldViolation;

pub(super) mod import;

use super::{status, wire};
use crate::{
    domain::{
        Verdict,
        amount::{AMOUNT_MINOR_UNITS_MAX, Amount, Currency},
        authorization::{Authorization, Revocation, RevocationCause},
        cancel_payment::{self, CancelPayment},
        cancel_token,
        id::{
            AcquirerId, AuthorizationId, FundReturnReference, Illegal, PassThroughInfo,
            PaymentRequestId, PspId, RefundId, Token,
        },
        introspect_token::Active,
        key::{AuthorizationKey, PaymentKey},
        payment::{self, Funds, Life, Money, Payment, RefundState, State, Terms},
        record_fund_return::{self, RecordFundReturn},
        record_payment::{self, Fact, RecordPayment},
        record_token,
        result::{ResultCode, ResultStatus},
        revoke_authorization::{self, RevokeAuthorization},
        time::Timestamp,
        token::TokenKind,
    },
    engine,
    store::{Backlog, Outstanding, OutstandingPayment},
};

/// What is wrong with a request, field by field.
#[derive(Default)]
struct Checks(Vec<FieldViolation>);

impl Checks {
    fn fail<T>(&mut self, field: &str, what: impl Into<String>) -> Option<T> {
        self.0.push(FieldViolation::new(field, what));
        None
    }

    /// A text that must be set. Unset and empty are the same in proto3.
    fn must<T>(
        &mut self,
        field: &str,
        text: &str,
        parse: impl FnOnce(&str) -> Result<T, Illegal>,
    ) -> Option<T> {
        if text.is_empty() {
            return self.fail(field, Illegal::Missing.to_string());
        }
        parse(text).map_or_else(|illegal| self.fail(field, illegal.to_string()), Some)
    }

    /// A text that may be left out. The outer `None` is a failed check.
    #[expect(clippy::option_option, reason = "failed, absent and present are three things")]
    fn may<T>(
        &mut self,
        field: &str,
        text: Option<&String>,
        parse: impl FnOnce(&str) -> Result<T, Illegal>,
    ) -> Option<Option<T>> {
        let Some(text) = text else { return Some(None) };
        parse(text)
            .map_or_else(|illegal| self.fail(field, illegal.to_string()), |value| Some(Some(value)))
    }

    fn amount(&mut self, field: &str, amount: Option<&wire::Amount>) -> Option<Amount> {
        let Some(amount) = amount else { return self.fail(field, Illegal::Missing.to_string()) };
        let Some(currency) = Currency::parse(&amount.currency) else {
            return self
                .fail(&format!("{field}.currency"), "not three upper-case letters of ISO 4217");
        };
        let value = u64::try_from(amount.value).ok().and_then(|value| Amount::new(value, currency));
        let range = || format!("not in 1 to {AMOUNT_MINOR_UNITS_MAX} minor units");
        value.or_else(|| self.fail(&format!("{field}.value"), range()))
    }

    #[expect(clippy::option_option, reason = "failed, absent and present are three things")]
    fn may_amount(&mut self, field: &str, amount: Option<&wire::Amount>) -> Option<Option<Amount>> {
        if amount.is_none() {
            return Some(None);
        }
        self.amount(field, amount).map(Some)
    }

    fn time(&mut self, field: &str, time: Option<&WireTime>) -> Option<Timestamp> {
        let Some(time) = time else { return self.fail(field, Illegal::Missing.to_string()) };
        let moment = || {
            let nanos = u32::try_from(time.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
            let unix_ms =
                time.seconds.checked_mul(1_000)?.checked_add(i64::from(nanos / 1_000_000))?;
            Timestamp::from_unix_ms(unix_ms)
        };
        moment().or_else(|| self.fail(field, "not a time of the years 1 to 9999"))
    }

    fn terms(
        &mut self,
        field: &str,
        amount: Option<&wire::Amount>,
        at: Option<&WireTime>,
    ) -> Option<Terms> {
        let amount = self.amount(&format!("{field}.amount"), amount);
        let initiated_at = self.time(&format!("{field}.initiated_at"), at);
        Some(Terms { amount: amount?, initiated_at: initiated_at? })
    }

    /// The value, or everything that was wrong.
    fn end<T>(self, value: Option<T>) -> Result<T, Status> {
        value.filter(|_| self.0.is_empty()).ok_or_else(|| status::illegal(self.0))
    }

    fn payment_key(&mut self, psp_id: &str, payment_request_id: &str) -> Option<PaymentKey> {
        let psp = self.must("psp_id", psp_id, PspId::parse);
        let payment_request =
            self.must("payment_request_id", payment_request_id, PaymentRequestId::parse);
        Some(PaymentKey { psp: psp?, payment_request: payment_request? })
    }

    fn authorization_key(
        &mut self,
        psp_id: &str,
        authorization_id: &str,
    ) -> Option<AuthorizationKey> {
        let psp = self.must("psp_id", psp_id, PspId::parse);
        let authorization = self.must("authorization_id", authorization_id, AuthorizationId::parse);
        Some(AuthorizationKey { psp: psp?, authorization: authorization? })
    }
}

pub(super) fn cancel_payment(
    request: &wire::CancelPaymentRequest,
) -> Result<CancelPayment, Status> {
    let mut checks = Checks::default();
    let acquirer = checks.must("acquirer_id", &request.acquirer_id, AcquirerId::parse);
    let key = checks.payment_key(&request.psp_id, &request.payment_request_id);
    let command = key.zip(acquirer).map(|(key, acquirer)| CancelPayment { key, acquirer });
    checks.end(command)
}

pub(super) fn cancel_token(
    request: &wire::CancelTokenRequest,
) -> Result<engine::CancelToken, Status> {
    let mut checks = Checks::default();
    let psp = checks.must("psp_id", &request.psp_id, PspId::parse);
    let acquirer = checks.must("acquirer_id", &request.acquirer_id, AcquirerId::parse);
    let token = checks.must("access_token", &request.access_token, Token::parse);
    let info = request.pass_through_info.as_ref();
    let info = checks.may("pass_through_info", info, PassThroughInfo::parse);
    let command = || {
        Some(engine::CancelToken {
            psp: psp?,
            acquirer: acquirer?,
            token: token?,
            pass_through_info: info?,
        })
    };
    checks.end(command())
}

pub(super) fn record_payment(
    request: &wire::RecordPaymentRequest,
) -> Result<RecordPayment, Status> {
    use wire::record_payment_request::Fact as F;

    let mut checks = Checks::default();
    let key = checks.payment_key(&request.psp_id, &request.payment_request_id);
    let acquirer = checks.may("acquirer_id", request.acquirer_id.as_ref(), AcquirerId::parse);
    if request.acquirer_id.is_none()
        && matches!(request.fact, Some(F::Initiated(_) | F::Succeeded(_)))
    {
        checks.fail::<()>("acquirer_id", Illegal::Missing.to_string());
    }
    let fact = match &request.fact {
        None => checks.fail("fact", Illegal::Missing.to_string()),
        Some(F::Initiated(fact)) => checks
            .terms("initiated", fact.amount.as_ref(), fact.initiated_at.as_ref())
            .map(Fact::Initiated),
        Some(F::Succeeded(fact)) => checks
            .terms("succeeded", fact.amount.as_ref(), fact.initiated_at.as_ref())
            .map(Fact::Succeeded),
        Some(F::Failed(fact)) => checks
            .may_amount("failed.amount", fact.amount.as_ref())
            .map(|amount| Fact::Failed { amount }),
        Some(F::RefundStarted(fact)) => {
            let id = checks.must("refund_started.refund_id", &fact.refund_id, RefundId::parse);
            let amount = checks.amount("refund_started.amount", fact.amount.as_ref());
            id.zip(amount).map(|(id, amount)| Fact::RefundStarted { id, amount })
        }
        Some(F::RefundSucceeded(fact)) => {
            let id = checks.must("refund_succeeded.refund_id", &fact.refund_id, RefundId::parse);
            let amount = checks.may_amount("refund_succeeded.amount", fact.amount.as_ref());
            id.zip(amount).map(|(id, amount)| Fact::RefundSucceeded { id, amount })
        }
        Some(F::RefundFailed(fact)) => {
            let id = checks.must("refund_failed.refund_id", &fact.refund_id, RefundId::parse);
            let amount = checks.may_amount("refund_failed.amount", fact.amount.as_ref());
            id.zip(amount).map(|(id, amount)| Fact::RefundFailed { id, amount })
        }
    };
    let command = || Some(RecordPayment { key: key?, acquirer: acquirer?, fact: fact? });
    checks.end(command())
}

pub(super) fn get_payment(request: &wire::GetPaymentRequest) -> Result<PaymentKey, Status> {
    let mut checks = Checks::default();
    let key = checks.payment_key(&request.psp_id, &request.payment_request_id);
    checks.end(key)
}

pub(super) fn list_outstanding_payments(
    request: wire::ListOutstandingPaymentsRequest,
) -> Result<(Outstanding, u32), Status> {
    let mut checks = Checks::default();
    let kind = match request.kind() {
        wire::OutstandingKind::Unspecified => checks.fail("kind", Illegal::Missing.to_string()),
        wire::OutstandingKind::FundReturnDue => Some(Outstanding::FundReturnDue),
        wire::OutstandingKind::Unresolved => Some(Outstanding::Unresolved),
    };
    checks.end(kind.map(|kind| (kind, feed::page_size(request.page_size))))
}

pub(super) fn outstanding_told(
    backlog: Backlog,
    payments: Vec<OutstandingPayment>,
) -> wire::ListOutstandingPaymentsResponse {
    let payment = |payment: OutstandingPayment| wire::OutstandingPayment {
        psp_id: payment.key.psp.as_str().to_owned(),
        payment_request_id: payment.key.payment_request.as_str().to_owned(),
        since: Some(time(payment.since)),
        amount: payment.amount.map(amount),
    };
    let payments = payments.into_iter().map(payment).collect();
    wire::ListOutstandingPaymentsResponse { payments, total: backlog.count }
}

pub(super) fn record_fund_return(
    request: &wire::RecordFundReturnRequest,
) -> Result<RecordFundReturn, Status> {
    let mut checks = Checks::default();
    let key = checks.payment_key(&request.psp_id, &request.payment_request_id);
    let reference = checks.must("reference", &request.reference, FundReturnReference::parse);
    let command = key.zip(reference).map(|(key, reference)| RecordFundReturn { key, reference });
    checks.end(command)
}

pub(super) fn record_token(
    request: &wire::RecordTokenRequest,
) -> Result<engine::RecordToken, Status> {
    let mut checks = Checks::default();
    let authorization = checks.authorization_key(&request.psp_id, &request.authorization_id);
    let acquirer = checks.must("acquirer_id", &request.acquirer_id, AcquirerId::parse);
    let token = checks.must("token", &request.token, Token::parse);
    let kind = match request.kind() {
        wire::TokenKind::Unspecified => checks.fail("kind", Illegal::Missing.to_string()),
        wire::TokenKind::Access => Some(TokenKind::Access),
        wire::TokenKind::Refresh => Some(TokenKind::Refresh),
    };
    let expires_at = match &request.expires_at {
        None => Some(None),
        time => checks.time("expires_at", time.as_ref()).map(Some),
    };
    let replaces = checks.may("replaces", request.replaces.as_ref(), Token::parse);
    let info =
        checks.may("pass_through_info", request.pass_through_info.as_ref(), PassThroughInfo::parse);
    let command = || {
        Some(engine::RecordToken {
            authorization: authorization?,
            acquirer: acquirer?,
            token: token?,
            kind: kind?,
            expires_at: expires_at?,
            replaces: replaces?,
            pass_through_info: info?,
        })
    };
    checks.end(command())
}

pub(super) fn introspect_token(
    request: &wire::IntrospectTokenRequest,
) -> Result<(PspId, Token), Status> {
    let mut checks = Checks::default();
    let psp = checks.must("psp_id", &request.psp_id, PspId::parse);
    let token = checks.must("token", &request.token, Token::parse);
    checks.end(psp.zip(token))
}

pub(super) fn revoke_authorization(
    request: &wire::RevokeAuthorizationRequest,
) -> Result<RevokeAuthorization, Status> {
    let mut checks = Checks::default();
    let key = checks.authorization_key(&request.psp_id, &request.authorization_id);
    checks.end(key.map(|key| RevokeAuthorization { key }))
}

pub(super) fn get_authorization(
    request: &wire::GetAuthorizationRequest,
) -> Result<AuthorizationKey, Status> {
    let mut checks = Checks::default();
    let key = checks.authorization_key(&request.psp_id, &request.authorization_id);
    checks.end(key)
}

/// A decided cancelPayment as its response; anything undecided as its status.
pub(super) fn payment_cancelled(
    outcome: cancel_payment::Outcome,
) -> Result<wire::CancelPaymentResponse, Status> {
    use cancel_payment::Outcome;
    match outcome {
        Outcome::Decided { verdict, repeated } => Ok(wire::CancelPaymentResponse {
            result: Some(result(verdict.code)),
            decided_at: Some(time(verdict.at)),
            repeated,
        }),
        Outcome::NotYours => Err(status::refuse(ResultCode::AccessDenied)),
        Outcome::Onboarding => Err(status::undecided(ONBOARDING)),
        Outcome::TooManyTombstones => Err(status::refuse(ResultCode::RequestTrafficExceedLimit)),
        Outcome::ClockUncertain => Err(status::undecided(
            "the clocks of service and store disagree, so the cancel window cannot be judged",
        )),
        Outcome::RefundUndecided => {
            Err(status::undecided("a refund of the payment is under way; ask again once it ended"))
        }
    }
}

const ONBOARDING: &str =
    "nothing is known of it, and the wallet's history is not imported yet (import complete)";

/// A decided cancelToken as its response; anything undecided as its status.
pub(super) fn token_cancelled(
    outcome: cancel_token::Outcome,
) -> Result<wire::CancelTokenResponse, Status> {
    use cancel_token::Outcome;
    match outcome {
        Outcome::Decided { verdict, pass_through_info, repeated } => {
            Ok(wire::CancelTokenResponse {
                result: Some(result(verdict.code)),
                pass_through_info: pass_through_info.map(|info| info.as_str().to_owned()),
                decided_at: Some(time(verdict.at)),
                repeated,
            })
        }
        Outcome::NotYours => Err(status::refuse(ResultCode::AccessDenied)),
        Outcome::TooManyTombstones => Err(status::refuse(ResultCode::RequestTrafficExceedLimit)),
        Outcome::Onboarding => Err(status::undecided(ONBOARDING)),
    }
}

pub(super) fn payment_recorded(
    key: &PaymentKey,
    outcome: record_payment::Outcome,
    payment: Option<&Payment>,
) -> wire::RecordPaymentResponse {
    use record_payment::Outcome;
    use wire::RecordPaymentAnswer as Answer;
    let (answer, conflict) = match outcome {
        Outcome::ReturnFunds => (Answer::ReturnFunds, None),
        Outcome::Conflict(conflict) => (Answer::Conflict, Some(conflict)),
        Outcome::Proceed => (Answer::Proceed, None),
        Outcome::RefusedCancelled => (Answer::RefusedCancelled, None),
        Outcome::AlreadySucceeded => (Answer::AlreadySucceeded, None),
        Outcome::RefusedFailed => (Answer::RefusedFailed, None),
        Outcome::Accepted => (Answer::Accepted, None),
    };
    wire::RecordPaymentResponse {
        answer: answer.into(),
        payment: payment.map(|payment| story(key, payment)),
        conflict: conflict.map(|conflict| conflict.to_string()).unwrap_or_default(),
    }
}

pub(super) fn fund_return_recorded(
    key: &PaymentKey,
    outcome: record_fund_return::Outcome,
    payment: Option<&Payment>,
) -> wire::RecordFundReturnResponse {
    use record_fund_return::Outcome;
    use wire::RecordFundReturnAnswer as Answer;
    let (answer, conflict) = match outcome {
        Outcome::Accepted => (Answer::Accepted, None),
        Outcome::Conflict(conflict) => (Answer::Conflict, Some(conflict)),
    };
    wire::RecordFundReturnResponse {
        answer: answer.into(),
        payment: payment.map(|payment| story(key, payment)),
        conflict: conflict.map(|conflict| conflict.to_string()).unwrap_or_default(),
    }
}

pub(super) fn token_recorded(outcome: record_token::Outcome) -> wire::RecordTokenResponse {
    use record_token::Outcome;
    use wire::RecordTokenAnswer as Answer;
    let (answer, conflict) = match outcome {
        Outcome::Conflict(conflict) => (Answer::Conflict, Some(conflict)),
        Outcome::RefusedRevoked => (Answer::RefusedRevoked, None),
        Outcome::RefusedDead => (Answer::RefusedDead, None),
        Outcome::Accepted => (Answer::Accepted, None),
    };
    wire::RecordTokenResponse {
        answer: answer.into(),
        conflict: conflict.map(|conflict| conflict.to_string()).unwrap_or_default(),
    }
}

pub(super) fn token_introspected(active: Option<Active>) -> wire::IntrospectTokenResponse {
    let Some(Active { token, authorization }) = active else {
        return wire::IntrospectTokenResponse::default();
    };
    let kind = match token.kind {
        TokenKind::Access => wire::TokenKind::Access,
        TokenKind::Refresh => wire::TokenKind::Refresh,
    };
    wire::IntrospectTokenResponse {
        active: true,
        authorization_id: Some(token.authorization.as_str().to_owned()),
        acquirer_id: Some(authorization.acquirer.as_str().to_owned()),
        kind: kind.into(),
        expires_at: token.expires_at.map(time),
    }
}

pub(super) fn authorization_revoked(
    outcome: revoke_authorization::Outcome,
) -> wire::RevokeAuthorizationResponse {
    use revoke_authorization::Outcome;
    use wire::RevokeAuthorizationAnswer as Answer;
    let answer = match outcome {
        Outcome::Unknown => Answer::Conflict,
        Outcome::Accepted => Answer::Accepted,
    };
    wire::RevokeAuthorizationResponse { answer: answer.into() }
}

pub(super) fn authorization_told(
    key: &AuthorizationKey,
    authorization: Authorization,
) -> wire::GetAuthorizationResponse {
    use wire::RevocationCause as Cause;
    let revocation = |it: Revocation| wire::Revocation {
        revoked_at: Some(time(it.at)),
        cause: match it.cause {
            RevocationCause::CancelToken => Cause::CancelToken,
            RevocationCause::RevokeAuthorization => Cause::RevokeAuthorization,
        }
        .into(),
        trace_id: it.trace.map(|trace| trace.to_string()).unwrap_or_default(),
    };
    wire::GetAuthorizationResponse {
        psp_id: key.psp.as_str().to_owned(),
        authorization_id: key.authorization.as_str().to_owned(),
        acquirer_id: authorization.acquirer.as_str().to_owned(),
        revocation: authorization.revoked.map(revocation),
    }
}

pub(super) fn payment_told(key: &PaymentKey, payment: &Payment) -> wire::GetPaymentResponse {
    let inquiry = payment.inquiry().map(|code| wire::InquiryPaymentResult {
        result_code: code.to_owned(),
        result_status: wire::ResultStatus::F.into(),
    });
    wire::GetPaymentResponse { payment: Some(story(key, payment)), inquiry }
}

/// The whole story of a payment.
fn story(key: &PaymentKey, payment: &Payment) -> wire::Payment {
    let life = match payment.life() {
        Life::Unknown => wire::PaymentLife::Unknown,
        Life::Initiated => wire::PaymentLife::Initiated,
        Life::Succeeded => wire::PaymentLife::Succeeded,
        Life::Failed => wire::PaymentLife::Failed,
    };
    let funds = match payment.funds() {
        Funds::None => wire::Funds::None,
        Funds::Held => wire::Funds::Held,
        Funds::ReturnDue => wire::Funds::ReturnDue,
        Funds::Returned => wire::Funds::Returned,
    };
    let terms = payment.terms();
    wire::Payment {
        psp_id: key.psp.as_str().to_owned(),
        payment_request_id: key.payment_request.as_str().to_owned(),
        acquirer_id: payment.acquirer.as_ref().map(|id| id.as_str().to_owned()),
        life: life.into(),
        amount: terms.map(|terms| amount(terms.amount)),
        initiated_at: terms.map(|terms| time(terms.initiated_at)),
        recorded_at: payment.recorded_at.map(time),
        cancellation: payment.verdict().map(cancellation),
        funds: funds.into(),
        fund_return: fund_return(payment),
        refunds: payment.refunds().iter().map(refund).collect(),
    }
}

fn cancellation(verdict: &Verdict) -> wire::Cancellation {
    wire::Cancellation {
        result: Some(result(verdict.code)),
        decided_at: Some(time(verdict.at)),
        client_id: verdict.by.as_ref().map(ToString::to_string).unwrap_or_default(),
        trace_id: verdict.trace.map(|trace| trace.to_string()).unwrap_or_default(),
    }
}

fn fund_return(payment: &Payment) -> Option<wire::FundReturn> {
    let State::Cancelled(cancelled) = &payment.state else { return None };
    match &cancelled.money {
        Money::Untouched(_) => None,
        Money::Due { amount: due, since } => Some(wire::FundReturn {
            amount: Some(amount(*due)),
            due_at: Some(time(*since)),
            returned_at: None,
            reference: None,
        }),
        Money::Returned { amount: due, since, at, reference } => Some(wire::FundReturn {
            amount: Some(amount(*due)),
            due_at: Some(time(*since)),
            returned_at: Some(time(*at)),
            reference: Some(reference.as_str().to_owned()),
        }),
    }
}

fn refund(refund: &payment::Refund) -> wire::Refund {
    let state = match refund.state {
        RefundState::Reserved => wire::RefundState::Reserved,
        RefundState::Done => wire::RefundState::Succeeded,
        RefundState::Released => wire::RefundState::Failed,
    };
    wire::Refund {
        refund_id: refund.id.as_str().to_owned(),
        amount: Some(amount(refund.amount)),
        state: state.into(),
    }
}

/// A decided outcome; every code that is not one was refused before.
fn result(code: ResultCode) -> wire::Result {
    let status = match code.status() {
        ResultStatus::S => wire::ResultStatus::S,
        ResultStatus::F => wire::ResultStatus::F,
        ResultStatus::U => wire::ResultStatus::U,
    };
    wire::Result {
        result_code: result_code(code).into(),
        result_status: status.into(),
        result_message: code.message().to_owned(),
    }
}

const fn result_code(code: ResultCode) -> wire::ResultCode {
    match code {
        ResultCode::Success => wire::ResultCode::Success,
        ResultCode::CancelWindowExceed => wire::ResultCode::CancelWindowExceed,
        ResultCode::ProcessFail => wire::ResultCode::ProcessFail,
        ResultCode::InvalidToken => wire::ResultCode::InvalidToken,
        ResultCode::AccessDenied
        | ResultCode::InvalidClient
        | ResultCode::InvalidSignature
        | ResultCode::KeyNotFound
        | ResultCode::MediaTypeNotAcceptable
        | ResultCode::MethodNotSupported
        | ResultCode::NoInterfaceDef
        | ResultCode::ParamIllegal
        | ResultCode::RequestTrafficExceedLimit
        | ResultCode::UnknownException => wire::ResultCode::Unspecified,
    }
}

/// The code a response carries; `None` if this program does not know it.
pub(super) fn decided(result: Option<&wire::Result>) -> Option<ResultCode> {
    match result?.result_code() {
        wire::ResultCode::Unspecified => None,
        wire::ResultCode::Success => Some(ResultCode::Success),
        wire::ResultCode::CancelWindowExceed => Some(ResultCode::CancelWindowExceed),
        wire::ResultCode::ProcessFail => Some(ResultCode::ProcessFail),
        wire::ResultCode::InvalidToken => Some(ResultCode::InvalidToken),
    }
}

fn amount(amount: Amount) -> wire::Amount {
    wire::Amount {
        value: i64::try_from(amount.minor_units()).unwrap_or(i64::MAX), // at most 2^53 by its type
        currency: amount.currency().as_str().to_owned(),
    }
}

fn time(at: Timestamp) -> WireTime {
    let nanos = i32::try_from(at.unix_ms.rem_euclid(1_000)).unwrap_or(0).saturating_mul(1_000_000);
    WireTime { seconds: at.unix_ms.div_euclid(1_000), nanos }
}
