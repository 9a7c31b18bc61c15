//! Payments as rows.

use rusqlite::{Connection, OptionalExtension as _, named_params};
use serde_json::{Value, json};

use super::{
    super::Error,
    failed,
    row::{Columns, code_number, minor_units},
};
use crate::domain::{
    amount::{Amount, Currency},
    id::{FundReturnReference, RefundId},
    key::PaymentKey,
    payment::{Cancelled, Money, Payment, Refund, RefundState, State, Succeeded, Terms, Untouched},
};

const TABLE: &str = "payment";

// the numbers in the columns `state` and `money`: never change one
const INITIATED: i64 = 1;
const FAILED: i64 = 2;
const SUCCEEDED: i64 = 3;
const CANCELLED: i64 = 4;

const UNTOUCHED_UNKNOWN: i64 = 1;
const UNTOUCHED_INITIATED: i64 = 2;
const UNTOUCHED_FAILED: i64 = 3;
const DUE: i64 = 4;
const RETURNED: i64 = 5;

pub(super) fn load(connection: &Connection, key: &PaymentKey) -> Result<Option<Payment>, Error> {
    const SELECT: &str = "SELECT state, acquirer_id, recorded_at, amount, currency, initiated_at,
         verdict, verdict_at, verdict_by, verdict_trace, refunds,
         money, return_amount, return_currency, return_since, returned_at, return_reference
         FROM payment WHERE psp_id = ?1 AND payment_request_id = ?2";
    let mut select = connection.prepare_cached(SELECT).map_err(failed)?;
    let read = |row: &rusqlite::Row<'_>| Ok(read(Columns::new(row, TABLE)));
    select
        .query_row([key.psp.as_str(), key.payment_request.as_str()], read)
        .optional()
        .map_err(failed)?
        .transpose()
}

fn read(mut row: Columns<'_>) -> Result<Payment, Error> {
    let state: i64 = row.get()?;
    let acquirer = row.acquirer()?;
    let recorded_at = row.time()?;
    let amount = row.amount()?;
    let initiated_at = row.time()?;
    let terms = match (amount, initiated_at) {
        (Some(amount), Some(initiated_at)) => Some(Terms { amount, initiated_at }),
        (None, None) => None,
        _ => return Err(row.damaged()),
    };
    let verdict = row.verdict()?;
    let refunds = read_refunds(&mut row, amount)?;
    let money = read_money(&mut row)?;

    let state = match (state, terms, verdict, money) {
        (INITIATED, Some(terms), None, None) => State::Initiated(terms),
        (FAILED, terms, None, None) => State::Failed(terms),
        (SUCCEEDED, Some(terms), refused, None) => {
            State::Succeeded(Succeeded { terms, refunds, refused })
        }
        (CANCELLED, terms, Some(verdict), Some(money)) => {
            State::Cancelled(Cancelled { verdict, terms, refunds, money })
        }
        _ => return Err(row.damaged()),
    };
    Ok(Payment { acquirer, recorded_at, state })
}

fn read_money(row: &mut Columns<'_>) -> Result<Option<Money>, Error> {
    let money: Option<i64> = row.get()?;
    let amount = row.amount()?;
    let since = row.time()?;
    let at = row.time()?;
    let reference = row.maybe(|text| FundReturnReference::parse(text).ok())?;
    Ok(Some(match (money, amount, since, at, reference) {
        (None, None, None, None, None) => return Ok(None),
        (Some(UNTOUCHED_UNKNOWN), None, None, None, None) => Money::Untouched(Untouched::Unknown),
        (Some(UNTOUCHED_INITIATED), None, None, None, None) => {
            Money::Untouched(Untouched::Initiated)
        }
        (Some(UNTOUCHED_FAILED), None, None, None, None) => Money::Untouched(Untouched::Failed),
        (Some(DUE), Some(amount), Some(since), None, None) => Money::Due { amount, since },
        (Some(RETURNED), Some(amount), Some(since), Some(at), Some(reference)) => {
            Money::Returned { amount, since, at, reference }
        }
        _ => return Err(row.damaged()),
    }))
}

/// Refunds are few and always read whole, so they stand in one column: `[[id, minor units, state], …]`.
fn read_refunds(row: &mut Columns<'_>, amount: Option<Amount>) -> Result<Vec<Refund>, Error> {
    let Some(text) = row.get::<Option<String>>()? else { return Ok(Vec::new()) };
    let currency = amount.map(Amount::currency).ok_or_else(|| row.damaged())?;
    let list: Vec<Value> = serde_json::from_str(&text).map_err(|_| row.damaged())?;
    list.iter()
        .map(|value| refund(value, currency))
        .collect::<Option<_>>()
        .ok_or_else(|| row.damaged())
}

fn refund(value: &Value, currency: Currency) -> Option<Refund> {
    let id = RefundId::parse(value.get(0)?.as_str()?).ok()?;
    let amount = Amount::new(value.get(1)?.as_u64()?, currency)?;
    let state = match value.get(2)?.as_str()? {
        "reserved" => RefundState::Reserved,
        "done" => RefundState::Done,
        "released" => RefundState::Released,
        _ => return None,
    };
    Some(Refund { id, amount, state })
}

fn refunds_text(refunds: &[Refund]) -> Option<String> {
    if refunds.is_empty() {
        return None;
    }
    let list = refunds.iter().map(|refund| {
        let state = match refund.state {
            RefundState::Reserved => "reserved",
            RefundState::Done => "done",
            RefundState::Released => "released",
        };
        json!([refund.id.as_str(), refund.amount.minor_units(), state])
    });
    Some(Value::Array(list.collect()).to_string())
}

pub(super) fn save(
    connection: &Connection,
    key: &PaymentKey,
    payment: &Payment,
) -> rusqlite::Result<()> {
    const UPSERT: &str = "INSERT OR REPLACE INTO payment (
         psp_id, payment_request_id, state, acquirer_id, recorded_at, amount, currency, initiated_at,
         verdict, verdict_at, verdict_by, verdict_trace, refunds,
         money, return_amount, return_currency, return_since, returned_at, return_reference)
         VALUES (:psp_id, :payment_request_id, :state, :acquirer_id, :recorded_at, :amount, :currency, :initiated_at,
         :verdict, :verdict_at, :verdict_by, :verdict_trace, :refunds,
         :money, :return_amount, :return_currency, :return_since, :returned_at, :return_reference)";
    let (state, money) = match &payment.state {
        State::Initiated(_) => (INITIATED, None),
        State::Failed(_) => (FAILED, None),
        State::Succeeded(_) => (SUCCEEDED, None),
        State::Cancelled(cancelled) => (CANCELLED, Some(&cancelled.money)),
    };
    let terms = payment.terms();
    let verdict = payment.verdict();
    let (money, due, returned) = match money {
        None => (None, None, None),
        Some(Money::Untouched(Untouched::Unknown)) => (Some(UNTOUCHED_UNKNOWN), None, None),
        Some(Money::Untouched(Untouched::Initiated)) => (Some(UNTOUCHED_INITIATED), None, None),
        Some(Money::Untouched(Untouched::Failed)) => (Some(UNTOUCHED_FAILED), None, None),
        Some(Money::Due { amount, since }) => (Some(DUE), Some((*amount, *since)), None),
        Some(Money::Returned { amount, since, at, reference }) => {
            (Some(RETURNED), Some((*amount, *since)), Some((*at, reference)))
        }
    };
    connection.prepare_cached(UPSERT)?.execute(named_params! {
        ":psp_id": key.psp.as_str(),
        ":payment_request_id": key.payment_request.as_str(),
        ":state": state,
        ":acquirer_id": payment.acquirer.as_ref().map(crate::domain::id::AcquirerId::as_str),
        ":recorded_at": payment.recorded_at.map(|at| at.unix_ms),
        ":amount": terms.map(|terms| minor_units(terms.amount)),
        ":currency": terms.map(|terms| terms.amount.currency()).as_ref().map(Currency::as_str),
        ":initiated_at": terms.map(|terms| terms.initiated_at.unix_ms),
        ":verdict": verdict.and_then(|verdict| code_number(verdict.code)),
        ":verdict_at": verdict.map(|verdict| verdict.at.unix_ms),
        ":verdict_by": verdict.and_then(|verdict| verdict.by.as_ref()).map(crate::domain::id::ClientId::as_str),
        ":verdict_trace": verdict.and_then(|verdict| verdict.trace).map(|trace| trace.0),
        ":refunds": refunds_text(payment.refunds()),
        ":money": money,
        ":return_amount": due.map(|(amount, _)| minor_units(amount)),
        ":return_currency": due.map(|(amount, _)| amount.currency()).as_ref().map(Currency::as_str),
        ":return_since": due.map(|(_, since)| since.unix_ms),
        ":returned_at": returned.map(|(at, _)| at.unix_ms),
        ":return_reference": returned.map(|(_, reference)| reference.as_str()),
    })?;
    Ok(())
}
