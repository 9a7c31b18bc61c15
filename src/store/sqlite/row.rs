//! Columns one after the other, in the order of the SELECT.

use rusqlite::{Row, types::FromSql};

use super::super::{Error, record::VerdictRecord};

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

    /// Four columns.
    pub(super) fn verdict(&mut self) -> Result<VerdictRecord, Error> {
        Ok(VerdictRecord {
            code: self.get()?,
            at: self.get()?,
            by: self.get()?,
            trace: self.get()?,
        })
    }
}
