//! Changes as statements over arrays: one each for payments, authorizations, tokens, events.

use std::collections::HashMap;

use tokio_postgres::{Error, Statement};

use super::{
    super::{
        Positioned,
        record::{AuthorizationRecord, EventRecord, PaymentRecord, TokenRecord},
    },
    columns::{maybe_small, small},
    connection::Connection,
};
use crate::domain::{
    authorization::Authorization,
    key::{AuthorizationKey, PaymentKey, TokenKey},
    payment::Payment,
    token::Token,
};

type Column = Box<dyn tokio_postgres::types::ToSql + Sync + Send>;

/// One array a column.
macro_rules! columns {
    ($rows:expr; $($column:expr),+ $(,)?) => {
        [$(column($rows.iter().map($column).collect::<Vec<_>>())),+]
    };
}

fn column(values: impl tokio_postgres::types::ToSql + Sync + Send + 'static) -> Column {
    Box::new(values)
}

/// The last of each key: one statement cannot change a row twice.
fn distinct<K: std::hash::Hash + Eq, V>(rows: &[(K, V)]) -> Vec<&(K, V)> {
    let last: HashMap<&K, usize> =
        rows.iter().enumerate().map(|(at, (key, _))| (key, at)).collect();
    let kept = |(at, row)| (last.get(&row_key(row)) == Some(&at)).then_some(row);
    rows.iter().enumerate().filter_map(kept).collect()
}

const fn row_key<K, V>(row: &(K, V)) -> &K {
    &row.0
}

async fn run<const N: usize>(
    connection: &Connection,
    statement: &Statement,
    columns: [Column; N],
) -> Result<(), Error> {
    let columns = columns.iter().map(|column| {
        let column: &(dyn tokio_postgres::types::ToSql + Sync) = column.as_ref();
        column
    });
    connection.client.execute_raw(statement, columns).await.map(drop)
}

pub(super) async fn payments(
    connection: &Connection,
    rows: &[(PaymentKey, Payment)],
) -> Result<(), Error> {
    if rows.is_empty() {
        return Ok(());
    }
    let rows: Vec<_> = distinct(rows)
        .into_iter()
        .map(|(key, payment)| (key, PaymentRecord::of(payment)))
        .collect();
    let columns = columns!(rows;
        |(key, _)| key.psp.as_str().as_bytes().to_vec(),
        |(key, _)| key.payment_request.as_str().as_bytes().to_vec(),
        |(_, row)| small(row.state),
        |(_, row)| row.acquirer_id.clone(),
        |(_, row)| row.recorded_at,
        |(_, row)| row.amount,
        |(_, row)| row.currency.clone(),
        |(_, row)| row.initiated_at,
        |(_, row)| maybe_small(row.verdict.code),
        |(_, row)| row.verdict.at,
        |(_, row)| row.verdict.by.clone(),
        |(_, row)| row.verdict.trace.clone(),
        |(_, row)| row.refunds.clone(),
        |(_, row)| maybe_small(row.money),
        |(_, row)| row.return_amount,
        |(_, row)| row.return_currency.clone(),
        |(_, row)| row.return_since,
        |(_, row)| row.returned_at,
        |(_, row)| row.return_reference.clone(),
        |(_, row)| row.outstanding_since(),
    );
    run(connection, &connection.statements.save_payments, columns).await
}

pub(super) async fn grants(
    connection: &Connection,
    rows: &[(AuthorizationKey, Authorization)],
) -> Result<(), Error> {
    if rows.is_empty() {
        return Ok(());
    }
    let rows: Vec<_> = distinct(rows)
        .into_iter()
        .map(|(key, grant)| (key, AuthorizationRecord::of(grant)))
        .collect();
    let columns = columns!(rows;
        |(key, _)| key.psp.as_str().as_bytes().to_vec(),
        |(key, _)| key.authorization.as_str().as_bytes().to_vec(),
        |(_, row)| row.acquirer_id.clone(),
        |(_, row)| row.pass_through_info.clone(),
        |(_, row)| row.revoked_at,
        |(_, row)| maybe_small(row.revoked_cause),
        |(_, row)| row.revoked_trace.clone(),
    );
    run(connection, &connection.statements.save_grants, columns).await
}

pub(super) async fn tokens(
    connection: &Connection,
    rows: &[(TokenKey, Token)],
) -> Result<(), Error> {
    if rows.is_empty() {
        return Ok(());
    }
    let rows: Vec<_> =
        distinct(rows).into_iter().map(|(key, token)| (key, TokenRecord::of(token))).collect();
    let columns = columns!(rows;
        |(key, _)| key.hash.0.to_vec(),
        |(key, _)| key.psp.as_str().as_bytes().to_vec(),
        |(_, row)| row.authorization_id.as_ref().map(|id| id.as_bytes().to_vec()),
        |(_, row)| maybe_small(row.kind),
        |(_, row)| row.expires_at,
        |(_, row)| row.replaced_by.clone(),
        |(_, row)| maybe_small(row.verdict.code),
        |(_, row)| row.verdict.at,
        |(_, row)| row.verdict.by.clone(),
        |(_, row)| row.verdict.trace.clone(),
    );
    run(connection, &connection.statements.save_tokens, columns).await
}

/// Whether events are new, or a store is filled with another's.
#[derive(Clone, Copy)]
pub(super) enum Events {
    New,
    Filled,
}

pub(super) async fn events(
    connection: &Connection,
    rows: &[Positioned],
    kind: Events,
) -> Result<(), Error> {
    if rows.is_empty() {
        return Ok(());
    }
    let rows: Vec<_> =
        rows.iter().map(|row| EventRecord::of(&row.event, row.partition, row.position)).collect();
    let columns = columns!(rows;
        |row| i32::try_from(row.partition).unwrap_or(i32::MAX),
        |row| row.position,
        |row| small(row.kind),
        |row| row.psp_id.as_bytes().to_vec(),
        |row| row.subject_id.as_bytes().to_vec(),
        |row| row.acquirer_id.clone(),
        |row| row.amount,
        |row| row.currency.clone(),
        |row| small(row.cause),
        |row| row.decided_at,
        |row| maybe_small(row.result),
        |row| row.pass_through_info.clone(),
        |row| row.trace.clone(),
    );
    let statements = &connection.statements;
    let statement = match kind {
        Events::New => &statements.save_events,
        Events::Filled => &statements.fill_events,
    };
    run(connection, statement, columns).await
}

/// The heads of all locked partitions.
pub(super) async fn heads(connection: &Connection, heads: &[(u16, u64)]) -> Result<(), Error> {
    let columns = columns!(heads;
        |(partition, _)| i32::from(*partition),
        |(_, position)| super::columns::long(*position),
    );
    run(connection, &connection.statements.save_heads, columns).await
}
