//! Columns one after the other, in the order of the SELECT.

use rusqlite::{CachedStatement, Params, Row, Statement, types::FromSql};

use super::{
    super::{Error, record::VerdictRecord},
    failed,
};

/// Reads columns; one that has another type than it should is damage.
pub(super) struct Columns<'a> {
    row: &'a Row<'a>,
    next: usize,
    table: &'static str,
}

impl<'a> Columns<'a> {
    pub(super) fn new(row: &'a Row<'a>, table: &'static str) -> Self {
        Self { row, next: 0, table }
    }

    pub(super) fn damaged(&self) -> Error {
        Error::Damaged(self.table)
    }

    /// The next column.
    pub(super) fn get<T: FromSql>(&mut self) -> Result<T, Error> {
        let value = self.row.get(self.next).map_err(|_| self.damaged());
        self.next = self.next.saturating_add(1);
        value
    }

    /// The next column, which is a text that was checked before it was written.
    pub(super) fn parsed<T>(&mut self, parse: impl FnOnce(&str) -> Option<T>) -> Result<T, Error> {
        let text: String = self.get()?;
        parse(&text).ok_or_else(|| self.damaged())
    }

    /// Four columns.
    pub(super) fn verdict(&mut self) -> Result<VerdictRecord, Error> {
        Ok(VerdictRecord {
            code: self.get()?,
            at: self.get()?,
            by: self.get()?,
            trace: self.get()?,
        })
    }

    /// The next column is the row's checksum; a row of before the checksums has none.
    pub(super) fn verify(&mut self, checksum: i64) -> Result<(), Error> {
        match self.get::<Option<i64>>()? {
            Some(written) if written != checksum => Err(self.damaged()),
            Some(_) | None => Ok(()),
        }
    }
}

/// Reads every row of an answer.
pub(super) fn all<T>(
    mut select: CachedStatement<'_>,
    table: &'static str,
    parameters: impl Params,
    mut read: impl FnMut(&mut Columns<'_>) -> Result<T, Error>,
) -> Result<Vec<T>, Error> {
    let mut rows = select.query(parameters).map_err(failed)?;
    let mut all = Vec::new();
    while let Some(row) = rows.next().map_err(failed)? {
        all.push(read(&mut Columns::new(row, table))?);
    }
    Ok(all)
}

/// Reads the only row of an answer, if there is one.
pub(super) fn one<T>(
    select: &mut Statement<'_>,
    table: &'static str,
    parameters: impl Params,
    read: impl FnOnce(&mut Columns<'_>) -> Result<T, Error>,
) -> Result<Option<T>, Error> {
    let mut rows = select.query(parameters).map_err(failed)?;
    let Some(row) = rows.next().map_err(failed)? else { return Ok(None) };
    read(&mut Columns::new(row, table)).map(Some)
}

/// A count as SQLite keeps it; never negative by a CHECK.
pub(super) fn count(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// A position or a count as a parameter.
pub(super) fn place(value: u64) -> Result<i64, Error> {
    i64::try_from(value)
        .map_err(|_| Error::Data(format!("{value} is no position of an event").into()))
}
