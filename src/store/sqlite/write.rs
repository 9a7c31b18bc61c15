//! One transaction that writes: everything that is changed goes through here, so that the chain covers it.

use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior};

use super::{
    super::Error,
    chain::{self, Changed, Link},
    failed,
};
use crate::domain::key::Partitions;

/// A transaction, and what it has changed so far.
pub(super) struct Write<'a> {
    pub(super) sql: &'a Connection,
    pub(super) partitions: Partitions,
    pub(super) changed: Changed,
}

impl<'a> Write<'a> {
    /// What begins with nothing changed.
    pub(super) fn of(sql: &'a Connection, partitions: Partitions) -> Self {
        Self { sql, partitions, changed: Changed::nothing() }
    }
}

/// What a transaction came to.
pub(super) struct Written<T> {
    pub(super) answer: T,
    /// How many rows it wrote.
    pub(super) rows: usize,
    /// Its place in the chain; none if it changed nothing.
    pub(super) link: Option<Link>,
}

/// Runs work as one transaction, which is durable when this returns.
pub(super) fn transaction<T>(
    connection: &mut Connection,
    partitions: Partitions,
    work: impl FnOnce(&mut Write<'_>) -> Result<T, Error>,
) -> Result<Written<T>, Error> {
    let transaction =
        connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
    let mut write = Write::of(&transaction, partitions);
    let answer = work(&mut write)?;
    let changed = write.changed;
    let rows = changed.rows();
    if rows == 0 {
        // everything was answered from durable rows; there is nothing to make durable
        return Ok(Written { answer, rows, link: None });
    }
    let link = chain::append(&transaction, changed).map_err(failed)?;
    commit(transaction)?;
    Ok(Written { answer, rows, link: Some(link) })
}

fn commit(transaction: Transaction<'_>) -> Result<(), Error> {
    transaction.commit().map_err(|source| match source.sqlite_error_code() {
        // the log was not written to its end, and what has no end is no commit
        Some(ErrorCode::DiskFull) => Error::Unavailable(source.into()),
        _ => Error::CommitUnknown(source.into()),
    })
}
