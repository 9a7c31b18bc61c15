//! Payments as rows.

use rusqlite::{Connection, OptionalExtension as _, named_params};

use super::{
    super::{Error, record::PaymentRecord},
    failed,
    row::Columns,
};
use crate::domain::{key::PaymentKey, payment::Payment};

pub(super) fn load(connection: &Connection, key: &PaymentKey) -> Result<Option<Payment>, Error> {
    const SELECT: &str = "SELECT state, acquirer_id, recorded_at, amount, currency, initiated_at,
         verdict, verdict_at, verdict_by, verdict_trace, refunds,
         money, return_amount, return_currency, return_since, returned_at, return_reference
         FROM payment WHERE psp_id = ?1 AND payment_request_id = ?2";
    let mut select = connection.prepare_cached(SELECT).map_err(failed)?;
    let read = |row: &rusqlite::Row<'_>| Ok(read(Columns::new(row, "payment")));
    select
        .query_row([key.psp.as_str(), key.payment_request.as_str()], read)
        .optional()
        .map_err(failed)?
        .transpose()
}

fn read(mut row: Columns<'_>) -> Result<Payment, Error> {
    PaymentRecord {
        state: row.get()?,
        acquirer_id: row.get()?,
        recorded_at: row.get()?,
        amount: row.get()?,
        currency: row.get()?,
        initiated_at: row.get()?,
        verdict: row.verdict()?,
        refunds: row.get()?,
        money: row.get()?,
        return_amount: row.get()?,
        return_currency: row.get()?,
        return_since: row.get()?,
        returned_at: row.get()?,
        return_reference: row.get()?,
    }
    .read()
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
    let record = PaymentRecord::of(payment);
    connection.prepare_cached(UPSERT)?.execute(named_params! {
        ":psp_id": key.psp.as_str(),
        ":payment_request_id": key.payment_request.as_str(),
        ":state": record.state,
        ":acquirer_id": record.acquirer_id,
        ":recorded_at": record.recorded_at,
        ":amount": record.amount,
        ":currency": record.currency,
        ":initiated_at": record.initiated_at,
        ":verdict": record.verdict.code,
        ":verdict_at": record.verdict.at,
        ":verdict_by": record.verdict.by,
        ":verdict_trace": record.verdict.trace,
        ":refunds": record.refunds,
        ":money": record.money,
        ":return_amount": record.return_amount,
        ":return_currency": record.return_currency,
        ":return_since": record.return_since,
        ":returned_at": record.returned_at,
        ":return_reference": record.return_reference,
    })?;
    Ok(())
}
