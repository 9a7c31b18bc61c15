//! Events as rows, and the heads of their partitions.

use rusqlite::{Connection, named_params, params};

use super::{
    super::{Error, Positioned},
    failed,
    row::{Columns, code_number, minor_units},
    token::pass_through_info,
};
use crate::domain::{
    amount::Currency,
    event::{Event, EventCause, EventKind},
    id::{AuthorizationId, PaymentRequestId},
    key::{AuthorizationKey, Partitions, PaymentKey, Subject},
};

const TABLE: &str = "event";

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

/// Writes events, each at the next position of its partition. The caller holds the write lock.
pub(super) fn append(
    connection: &Connection,
    events: &[Event],
    partitions: Partitions,
) -> rusqlite::Result<()> {
    const NEXT: &str =
        "UPDATE partition_head SET position = position + 1 WHERE partition = ?1 RETURNING position";
    const INSERT: &str = "INSERT INTO event (partition, position, kind, psp_id, subject_id, acquirer_id, amount, currency,
         cause, decided_at, result, pass_through_info, trace)
         VALUES (:partition, :position, :kind, :psp_id, :subject_id, :acquirer_id, :amount, :currency,
         :cause, :decided_at, :result, :pass_through_info, :trace)";
    if events.is_empty() {
        return Ok(());
    }
    let mut next = connection.prepare_cached(NEXT)?;
    let mut insert = connection.prepare_cached(INSERT)?;
    for event in events {
        let partition = event.subject.partition(partitions);
        let position: i64 = next.query_row(params![partition], |row| row.get(0))?;
        let (kind, amount) = match event.kind {
            EventKind::PaymentCancelled => (PAYMENT_CANCELLED, None),
            EventKind::FundReturnDue(amount) => (FUND_RETURN_DUE, Some(amount)),
            EventKind::AuthorizationRevoked => (AUTHORIZATION_REVOKED, None),
        };
        insert.execute(named_params! {
            ":partition": partition,
            ":position": position,
            ":kind": kind,
            ":psp_id": event.subject.psp().as_str(),
            ":subject_id": event.subject.id(),
            ":acquirer_id": event.acquirer.as_ref().map(crate::domain::id::AcquirerId::as_str),
            ":amount": amount.map(minor_units),
            ":currency": amount.map(crate::domain::amount::Amount::currency).as_ref().map(Currency::as_str),
            ":cause": cause_number(event.cause),
            ":decided_at": event.at.unix_ms,
            ":result": event.result.and_then(code_number),
            ":pass_through_info": event.pass_through_info.as_ref().map(|info| info.as_str().as_bytes()),
            ":trace": event.trace.map(|trace| trace.0),
        })?;
    }
    Ok(())
}

pub(super) fn load(
    connection: &Connection,
    partition: u16,
    behind: u64,
    limit: u32,
) -> Result<Vec<Positioned>, Error> {
    const SELECT: &str = "SELECT position, kind, psp_id, subject_id, acquirer_id, amount, currency,
         cause, decided_at, result, pass_through_info, trace
         FROM event WHERE partition = ?1 AND position > ?2 ORDER BY position LIMIT ?3";
    let mut select = connection.prepare_cached(SELECT).map_err(failed)?;
    let behind = i64::try_from(behind).unwrap_or(i64::MAX);
    let mut rows = select.query(params![partition, behind, limit]).map_err(failed)?;
    let mut events = Vec::new();
    while let Some(row) = rows.next().map_err(failed)? {
        events.push(read(Columns::new(row, TABLE), partition)?);
    }
    Ok(events)
}

fn read(mut row: Columns<'_>, partition: u16) -> Result<Positioned, Error> {
    let position = u64::try_from(row.get::<i64>()?).map_err(|_| row.damaged())?;
    let kind: i64 = row.get()?;
    let psp = row.psp()?;
    let subject: String = row.get()?;
    let acquirer = row.acquirer()?;
    let amount = row.amount()?;
    let payment = || {
        let payment_request = PaymentRequestId::parse(&subject).ok()?;
        Some(Subject::Payment(PaymentKey { psp: psp.clone(), payment_request }))
    };
    let authorization = || {
        let authorization = AuthorizationId::parse(&subject).ok()?;
        Some(Subject::Authorization(AuthorizationKey { psp: psp.clone(), authorization }))
    };
    let (kind, subject) = match (kind, amount) {
        (PAYMENT_CANCELLED, None) => (EventKind::PaymentCancelled, payment()),
        (FUND_RETURN_DUE, Some(amount)) => (EventKind::FundReturnDue(amount), payment()),
        (AUTHORIZATION_REVOKED, None) => (EventKind::AuthorizationRevoked, authorization()),
        _ => return Err(row.damaged()),
    };
    let subject = subject.ok_or_else(|| row.damaged())?;
    let cause: i64 = row.get()?;
    let causes = [
        EventCause::CancelPayment,
        EventCause::LateSuccess,
        EventCause::CancelToken,
        EventCause::RevokeAuthorization,
    ];
    let cause = causes
        .into_iter()
        .find(|known| cause_number(*known) == cause)
        .ok_or_else(|| row.damaged())?;
    let at = row.time()?.ok_or_else(|| row.damaged())?;
    let result = row.code()?;
    let pass_through_info = pass_through_info(&mut row)?;
    let trace = row.trace()?;
    let event = Event { kind, subject, acquirer, cause, at, result, pass_through_info, trace };
    Ok(Positioned { partition, position, id: event.id(), event })
}
