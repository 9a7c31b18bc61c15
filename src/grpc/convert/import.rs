//! Records of the wallet's history, in both directions: the tool that reads a file of them is a client too.
//!
//! What is wrong with one record is that record's answer, not the call's.

use super::{Checks, story, time, wire};
use crate::{
    domain::{
        id::{AcquirerId, FundReturnReference, Illegal, PassThroughInfo, RefundId, Token},
        import_payment::{self, FundReturn, ImportPayment, Told},
        import_token,
        payment::{Life, Refund, RefundState},
        time::Timestamp,
        token::TokenKind,
    },
    engine::ImportToken,
};

/// A payment of history, or why it is none.
pub(in crate::grpc) fn payment(payment: &wire::Payment) -> Result<ImportPayment, String> {
    let mut checks = Checks::default();
    let key = checks.payment_key(&payment.psp_id, &payment.payment_request_id);
    let acquirer = checks.may("acquirer_id", payment.acquirer_id.as_ref(), AcquirerId::parse);
    let life = match payment.life() {
        wire::PaymentLife::Unspecified => checks.fail("life", Illegal::Missing.to_string()),
        wire::PaymentLife::Unknown => Some(Life::Unknown),
        wire::PaymentLife::Initiated => Some(Life::Initiated),
        wire::PaymentLife::Succeeded => Some(Life::Succeeded),
        wire::PaymentLife::Failed => Some(Life::Failed),
    };
    let amount = checks.may_amount("amount", payment.amount.as_ref());
    let initiated_at = checks.may_time("initiated_at", payment.initiated_at.as_ref());
    let refunds: Vec<_> =
        payment.refunds.iter().filter_map(|refund| read_refund(&mut checks, refund)).collect();
    let cancel = match &payment.cancellation {
        None => Some(None),
        Some(cancellation) => {
            let code = super::decided(cancellation.result.as_ref()).or_else(|| {
                checks.fail("cancellation.result.result_code", Illegal::Missing.to_string())
            });
            let at = checks.time("cancellation.decided_at", cancellation.decided_at.as_ref());
            code.zip(at).map(Some)
        }
    };
    let fund_return = match &payment.fund_return {
        None => Some(None),
        Some(fund_return) => read_fund_return(&mut checks, fund_return).map(Some),
    };
    let told = || {
        let (amount, initiated_at, cancel, fund_return) =
            (amount?, initiated_at?, cancel?, fund_return?);
        let (acquirer, life) = (acquirer?, life?);
        let told = Told { acquirer, amount, initiated_at, life, refunds, cancel, fund_return };
        Some((key?, told))
    };
    let told = told();
    let (key, told) = checks.all(told)?;
    let history = told.payment().map_err(|incomplete| incomplete.to_string())?;
    Ok(ImportPayment { key, history })
}

fn read_refund(checks: &mut Checks, refund: &wire::Refund) -> Option<Refund> {
    let id = checks.must("refunds.refund_id", &refund.refund_id, RefundId::parse);
    let amount = checks.amount("refunds.amount", refund.amount.as_ref());
    let state = match refund.state() {
        wire::RefundState::Unspecified => {
            checks.fail("refunds.state", Illegal::Missing.to_string())
        }
        wire::RefundState::Reserved => Some(RefundState::Reserved),
        wire::RefundState::Succeeded => Some(RefundState::Done),
        wire::RefundState::Failed => Some(RefundState::Released),
    };
    Some(Refund { id: id?, amount: amount?, state: state? })
}

fn read_fund_return(checks: &mut Checks, told: &wire::FundReturn) -> Option<FundReturn> {
    let since = checks.may_time("fund_return.due_at", told.due_at.as_ref());
    let at = checks.may_time("fund_return.returned_at", told.returned_at.as_ref());
    let reference = told.reference.as_ref();
    let reference = checks.may("fund_return.reference", reference, FundReturnReference::parse);
    let since = since?;
    match (at?, reference?) {
        (Some(at), Some(reference)) => Some(FundReturn::Returned { since, at, reference }),
        (None, None) => Some(FundReturn::Due { since }),
        _ => checks.fail("fund_return", "returned_at and reference must be set together"),
    }
}

/// A token of history, or why it is none.
pub(in crate::grpc) fn token(token: &wire::HistoricToken) -> Result<ImportToken, String> {
    let mut checks = Checks::default();
    let authorization = checks.authorization_key(&token.psp_id, &token.authorization_id);
    let acquirer = checks.must("acquirer_id", &token.acquirer_id, AcquirerId::parse);
    let kind = match token.kind() {
        wire::TokenKind::Unspecified => checks.fail("kind", Illegal::Missing.to_string()),
        wire::TokenKind::Access => Some(TokenKind::Access),
        wire::TokenKind::Refresh => Some(TokenKind::Refresh),
    };
    let replaces = checks.may("replaces", token.replaces.as_ref(), Token::parse);
    let expires_at = checks.may_time("expires_at", token.expires_at.as_ref());
    let cancelled_at = checks.may_time("cancelled_at", token.cancelled_at.as_ref());
    let revoked_at = checks.may_time("revoked_at", token.revoked_at.as_ref());
    let info =
        checks.may("pass_through_info", token.pass_through_info.as_ref(), PassThroughInfo::parse);
    let token = checks.must("token", &token.token, Token::parse);
    let told = || {
        Some(ImportToken {
            authorization: authorization?,
            acquirer: acquirer?,
            token: token?,
            kind: kind?,
            expires_at: expires_at?,
            replaces: replaces?,
            cancelled_at: cancelled_at?,
            revoked_at: revoked_at?,
            pass_through_info: info?,
        })
    };
    let told = told();
    checks.all(told)
}

impl Checks {
    #[expect(clippy::option_option, reason = "failed, absent and present are three things")]
    fn may_time(
        &mut self,
        field: &str,
        at: Option<&prost_types::Timestamp>,
    ) -> Option<Option<Timestamp>> {
        if at.is_none() {
            return Some(None);
        }
        self.time(field, at).map(Some)
    }

    /// The value, or everything that was wrong in one line.
    fn all<T>(self, value: Option<T>) -> Result<T, String> {
        value.filter(|_| self.0.is_empty()).ok_or_else(|| {
            let wrong =
                self.0.iter().map(|wrong| format!("{}: {}", wrong.field, wrong.description));
            wrong.collect::<Vec<_>>().join("; ")
        })
    }
}

/// What became of a payment.
pub(in crate::grpc) fn payment_outcome(outcome: import_payment::Outcome) -> wire::ImportResult {
    use import_payment::Outcome;
    match outcome {
        Outcome::Taken => result(wire::ImportAnswer::Taken),
        Outcome::AlreadyThere => result(wire::ImportAnswer::AlreadyThere),
        Outcome::Kept => result(wire::ImportAnswer::Kept),
        Outcome::Rejected(contradiction) => rejected(contradiction.to_string()),
    }
}

/// What became of a token.
pub(in crate::grpc) fn token_outcome(outcome: import_token::Outcome) -> wire::ImportResult {
    use import_token::Outcome;
    match outcome {
        Outcome::Taken => result(wire::ImportAnswer::Taken),
        Outcome::AlreadyThere => result(wire::ImportAnswer::AlreadyThere),
        Outcome::Kept => result(wire::ImportAnswer::Kept),
        Outcome::Rejected(contradiction) => rejected(contradiction.to_string()),
    }
}

fn result(answer: wire::ImportAnswer) -> wire::ImportResult {
    wire::ImportResult { answer: answer.into(), reason: String::new() }
}

/// An answer to a record that is none, or contradicts what is known.
pub(in crate::grpc) fn rejected(reason: String) -> wire::ImportResult {
    wire::ImportResult { answer: wire::ImportAnswer::Rejected.into(), reason }
}

/// A payment of history as a request tells it.
pub(in crate::grpc) fn payment_asked(payment: &ImportPayment) -> wire::Payment {
    story(&payment.key, &payment.history)
}

/// A token of history as a request tells it.
pub(in crate::grpc) fn token_asked(token: &ImportToken) -> wire::HistoricToken {
    let kind = match token.kind {
        TokenKind::Access => wire::TokenKind::Access,
        TokenKind::Refresh => wire::TokenKind::Refresh,
    };
    wire::HistoricToken {
        psp_id: token.authorization.psp.as_str().to_owned(),
        authorization_id: token.authorization.authorization.as_str().to_owned(),
        acquirer_id: token.acquirer.as_str().to_owned(),
        token: token.token.expose().to_owned(),
        kind: kind.into(),
        expires_at: token.expires_at.map(time),
        replaces: token.replaces.as_ref().map(|token| token.expose().to_owned()),
        cancelled_at: token.cancelled_at.map(time),
        revoked_at: token.revoked_at.map(time),
        pass_through_info: token.pass_through_info.as_ref().map(|info| info.as_str().to_owned()),
    }
}
