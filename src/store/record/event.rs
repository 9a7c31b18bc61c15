//! Events as columns.

use super::{
    Sum, Table,
    authorization::{pass_through_bytes, pass_through_info},
    code_number, minor_units, time,
};
use crate::{
    domain::{
        event::{Event, EventCause, EventKind},
        id::{AcquirerId, AuthorizationId, PaymentRequestId, PspId},
        key::{AuthorizationKey, PaymentKey, Subject},
    },
    store::{Error, Positioned},
};

const TABLE: Table = Table("event");

// the numbers in the columns `kind` and `cause`: never change one
const PAYMENT_CANCELLED: i64 = 1;
const FUND_RETURN_DUE: i64 = 2;
const AUTHORIZATION_REVOKED: i64 = 3;

const fn cause_number(cause: EventCause) -> i64 {
    match cause {
        EventCause::CancelPayment => 1,
        EventCause::LateSuccess => 2,
        EventCause::CancelToken => 3,
        EventCause::RevokeAuthorization => 4,
    }
}

/// An event's columns, its place among them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::store) struct EventRecord {
    pub(in crate::store) partition: i64,
    pub(in crate::store) position: i64,
    pub(in crate::store) kind: i64,
    pub(in crate::store) psp_id: String,
    pub(in crate::store) subject_id: String,
    pub(in crate::store) acquirer_id: Option<String>,
    pub(in crate::store) amount: Option<i64>,
    pub(in crate::store) currency: Option<String>,
    pub(in crate::store) cause: i64,
    pub(in crate::store) decided_at: i64,
    pub(in crate::store) result: Option<i64>,
    pub(in crate::store) pass_through_info: Option<Vec<u8>>,
    pub(in crate::store) trace: Option<Vec<u8>>,
}

impl EventRecord {
    /// As it is written at a place.
    pub(in crate::store) fn of(event: &Event, partition: u16, position: u64) -> Self {
        let (kind, amount) = match event.kind {
            EventKind::PaymentCancelled => (PAYMENT_CANCELLED, None),
            EventKind::FundReturnDue(amount) => (FUND_RETURN_DUE, Some(amount)),
            EventKind::AuthorizationRevoked => (AUTHORIZATION_REVOKED, None),
        };
        Self {
            partition: i64::from(partition),
            position: i64::try_from(position).unwrap_or(i64::MAX),
            kind,
            psp_id: event.subject.psp().as_str().to_owned(),
            subject_id: event.subject.id().to_owned(),
            acquirer_id: event.acquirer.as_ref().map(AcquirerId::as_str).map(str::to_owned),
            amount: amount.map(minor_units),
            currency: amount.map(|amount| amount.currency().as_str().to_owned()),
            cause: cause_number(event.cause),
            decided_at: event.at.unix_ms,
            result: event.result.and_then(code_number),
            pass_through_info: pass_through_bytes(event.pass_through_info.as_ref()),
            trace: event.trace.map(|trace| trace.0.to_vec()),
        }
    }

    /// As it is read.
    pub(in crate::store) fn read(&self) -> Result<Positioned, Error> {
        let partition = u16::try_from(self.partition).map_err(|_| TABLE.damaged())?;
        let position = u64::try_from(self.position).map_err(|_| TABLE.damaged())?;
        let acquirer = TABLE.acquirer(self.acquirer_id.as_deref())?;
        let amount = TABLE.amount(self.amount, self.currency.as_deref())?;
        let (kind, subject) = match (self.kind, amount) {
            (PAYMENT_CANCELLED, None) => {
                (EventKind::PaymentCancelled, payment(&self.psp_id, &self.subject_id))
            }
            (FUND_RETURN_DUE, Some(amount)) => {
                (EventKind::FundReturnDue(amount), payment(&self.psp_id, &self.subject_id))
            }
            (AUTHORIZATION_REVOKED, None) => {
                (EventKind::AuthorizationRevoked, authorization(&self.psp_id, &self.subject_id))
            }
            _ => return Err(TABLE.damaged()),
        };
        let subject = subject.ok_or(TABLE.damaged())?;
        let causes = [
            EventCause::CancelPayment,
            EventCause::LateSuccess,
            EventCause::CancelToken,
            EventCause::RevokeAuthorization,
        ];
        let cause = causes.into_iter().find(|known| cause_number(*known) == self.cause);
        let cause = cause.ok_or(TABLE.damaged())?;
        let at = time(Some(self.decided_at)).ok_or(TABLE.damaged())?;
        let result = TABLE.code(self.result)?;
        let pass_through_info = pass_through_info(TABLE, self.pass_through_info.as_deref())?;
        let trace = TABLE.trace(self.trace.as_deref())?;
        let event = Event { kind, subject, acquirer, cause, at, result, pass_through_info, trace };
        Ok(Positioned { partition, position, id: event.id(), event })
    }

    /// Over all columns.
    pub(in crate::store) fn checksum(&self) -> i64 {
        let mut sum = Sum::new("event");
        sum.number(Some(self.partition));
        sum.number(Some(self.position));
        sum.number(Some(self.kind));
        sum.text(Some(&self.psp_id));
        sum.text(Some(&self.subject_id));
        sum.text(self.acquirer_id.as_deref());
        sum.number(self.amount);
        sum.text(self.currency.as_deref());
        sum.number(Some(self.cause));
        sum.number(Some(self.decided_at));
        sum.number(self.result);
        sum.bytes(self.pass_through_info.as_deref());
        sum.bytes(self.trace.as_deref());
        sum.end()
    }
}

pub(super) fn payment(psp: &str, id: &str) -> Option<Subject> {
    let psp = PspId::parse(psp).ok()?;
    let payment_request = PaymentRequestId::parse(id).ok()?;
    Some(Subject::Payment(PaymentKey { psp, payment_request }))
}

pub(super) fn authorization(psp: &str, id: &str) -> Option<Subject> {
    let psp = PspId::parse(psp).ok()?;
    let authorization = AuthorizationId::parse(id).ok()?;
    Some(Subject::Authorization(AuthorizationKey { psp, authorization }))
}
