//! Payments as rows.

use rusqlite::{CachedStatement, Connection, params};

use super::{
    super::{Backlog, Error, Outstanding, OutstandingPayment, record::PaymentRecord},
    chain::Kind,
    failed,
    row::{self, Columns},
    write::Write,
};
use crate::domain::{
    id::{PaymentRequestId, PspId},
    key::PaymentKey,
    payment::{Cancelled, Money, Payment, State, Untouched},
    time::Timestamp,
};

const TABLE: &str = "payment";

macro_rules! columns {
    () => {
        "state, acquirer_id, recorded_at, amount, currency, initiated_at,
         verdict, verdict_at, verdict_by, verdict_trace, refunds,
         money, return_amount, return_currency, return_since, returned_at, return_reference, checksum"
    };
}

/// Those of the partial index: SQLite takes it only if its condition stands in the query word by word.
macro_rules! outstanding {
    () => {
        " FROM payment INDEXED BY payment_outstanding WHERE money IN (2, 4) AND money = ?1"
    };
}

/// Every row, for [`keyed`].
pub(super) const ALL: &str =
    concat!("SELECT psp_id, payment_request_id, ", columns!(), " FROM payment");

/// Loads payments by key; to prepare it costs more than a row.
pub(super) struct Load<'a>(CachedStatement<'a>);

impl<'a> Load<'a> {
    pub(super) fn prepare(connection: &'a Connection) -> Result<Self, Error> {
        const SELECT: &str = concat!(
            "SELECT ",
            columns!(),
            " FROM payment WHERE psp_id = ?1 AND payment_request_id = ?2"
        );
        connection.prepare_cached(SELECT).map(Self).map_err(failed)
    }

    pub(super) fn one(&mut self, key: &PaymentKey) -> Result<Option<Payment>, Error> {
        let key_columns = [key.psp.as_str(), key.payment_request.as_str()];
        row::one(&mut self.0, TABLE, key_columns, |row| read(row, key))
    }
}

/// The first payments behind a key, by key.
pub(super) fn page(
    connection: &Connection,
    behind: Option<&PaymentKey>,
    limit: u32,
) -> Result<Vec<(PaymentKey, Payment)>, Error> {
    const SELECT: &str = concat!(
        "SELECT psp_id, payment_request_id, ",
        columns!(),
        " FROM payment WHERE (psp_id, payment_request_id) > (?1, ?2)
          ORDER BY psp_id, payment_request_id LIMIT ?3"
    );
    let select = connection.prepare_cached(SELECT).map_err(failed)?;
    // no id is empty, so nothing stands before that
    let (psp, id) = behind.map_or(("", ""), |key| (key.psp.as_str(), key.payment_request.as_str()));
    row::all(select, TABLE, params![psp, id, limit], keyed)
}

/// How many are outstanding, and since when.
pub(super) fn backlog(connection: &Connection, kind: Outstanding) -> Result<Backlog, Error> {
    const SELECT: &str =
        concat!("SELECT count(*), min(coalesce(return_since, verdict_at))", outstanding!());
    let mut select = connection.prepare_cached(SELECT).map_err(failed)?;
    let backlog = row::one(&mut select, TABLE, [PaymentRecord::outstanding(kind)], |row| {
        let count = row::count(row.get()?);
        let oldest: Option<i64> = row.get()?;
        Ok(Backlog { count, oldest: oldest.map(|unix_ms| Timestamp { unix_ms }) })
    })?;
    Ok(backlog.unwrap_or_default())
}

/// The first that are outstanding, longest first.
pub(super) fn outstanding(
    connection: &Connection,
    kind: Outstanding,
    limit: u32,
) -> Result<Vec<OutstandingPayment>, Error> {
    const SELECT: &str = concat!(
        "SELECT psp_id, payment_request_id, ",
        columns!(),
        outstanding!(),
        " ORDER BY coalesce(return_since, verdict_at) LIMIT ?2"
    );
    let select = connection.prepare_cached(SELECT).map_err(failed)?;
    row::all(select, TABLE, params![PaymentRecord::outstanding(kind), limit], |row| {
        let (key, payment) = keyed(row)?;
        let (since, amount) = match payment.state {
            State::Cancelled(Cancelled { money: Money::Due { amount, since }, .. }) => {
                (since, Some(amount))
            }
            State::Cancelled(Cancelled {
                verdict,
                money: Money::Untouched(Untouched::Initiated),
                ..
            }) => (verdict.at, None),
            State::Initiated(_) | State::Failed(_) | State::Succeeded(_) | State::Cancelled(_) => {
                return Err(row.damaged());
            }
        };
        Ok(OutstandingPayment { key, since, amount })
    })
}

pub(super) fn keyed(row: &mut Columns<'_>) -> Result<(PaymentKey, Payment), Error> {
    let psp = row.parsed(|text| PspId::parse(text).ok())?;
    let payment_request = row.parsed(|text| PaymentRequestId::parse(text).ok())?;
    let key = PaymentKey { psp, payment_request };
    let payment = read(row, &key)?;
    Ok((key, payment))
}

fn read(row: &mut Columns<'_>, key: &PaymentKey) -> Result<Payment, Error> {
    let record = PaymentRecord {
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
    };
    row.verify(record.checksum(key))?;
    record.read()
}

pub(super) fn save(write: &mut Write<'_>, payments: &[(PaymentKey, Payment)]) -> Result<(), Error> {
    // not a REPLACE: that may fail half-way, so SQLite would copy every page that it changes first
    const UPSERT: &str = concat!(
        "INSERT INTO payment (psp_id, payment_request_id, ",
        columns!(),
        ") VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20)
         ON CONFLICT (psp_id, payment_request_id) DO UPDATE SET state = excluded.state,
         acquirer_id = excluded.acquirer_id, recorded_at = excluded.recorded_at, amount = excluded.amount,
         currency = excluded.currency, initiated_at = excluded.initiated_at, verdict = excluded.verdict,
         verdict_at = excluded.verdict_at, verdict_by = excluded.verdict_by, verdict_trace = excluded.verdict_trace,
         refunds = excluded.refunds, money = excluded.money, return_amount = excluded.return_amount,
         return_currency = excluded.return_currency, return_since = excluded.return_since,
         returned_at = excluded.returned_at, return_reference = excluded.return_reference, checksum = excluded.checksum"
    );
    if payments.is_empty() {
        return Ok(());
    }
    let mut upsert = write.sql.prepare_cached(UPSERT).map_err(failed)?;
    for (key, payment) in payments {
        let record = PaymentRecord::of(payment);
        let checksum = record.checksum(key);
        let parameters = params![
            key.psp.as_str(),
            key.payment_request.as_str(),
            record.state,
            record.acquirer_id,
            record.recorded_at,
            record.amount,
            record.currency,
            record.initiated_at,
            record.verdict.code,
            record.verdict.at,
            record.verdict.by,
            record.verdict.trace,
            record.refunds,
            record.money,
            record.return_amount,
            record.return_currency,
            record.return_since,
            record.returned_at,
            record.return_reference,
            checksum,
        ];
        upsert.execute(parameters).map_err(failed)?;
        write.changed.row(Kind::Payment, checksum);
    }
    Ok(())
}
