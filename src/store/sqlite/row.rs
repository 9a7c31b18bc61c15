//! Values of the domain as columns, and back. What does not read back is damage, never a guess.

use rusqlite::Row;

use super::super::Error;
use crate::domain::{
    Verdict,
    amount::{Amount, Currency},
    id::{AcquirerId, ClientId, PspId, TraceId},
    result::ResultCode,
    time::Timestamp,
};

/// Reads columns one after the other, in the order of the SELECT.
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
    pub(super) fn get<T: rusqlite::types::FromSql>(&mut self) -> Result<T, Error> {
        let value = self.row.get(self.next).map_err(|_| self.damaged());
        self.next = self.next.saturating_add(1);
        value
    }

    /// The next column, if set, checked.
    pub(super) fn maybe<T>(
        &mut self,
        check: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let text: Option<String> = self.get()?;
        text.map(|text| check(&text).ok_or_else(|| self.damaged())).transpose()
    }

    /// The next column, checked.
    pub(super) fn must<T>(&mut self, check: impl FnOnce(&str) -> Option<T>) -> Result<T, Error> {
        self.maybe(check)?.ok_or_else(|| self.damaged())
    }

    pub(super) fn psp(&mut self) -> Result<PspId, Error> {
        self.must(|text| PspId::parse(text).ok())
    }

    pub(super) fn acquirer(&mut self) -> Result<Option<AcquirerId>, Error> {
        self.maybe(|text| AcquirerId::parse(text).ok())
    }

    pub(super) fn time(&mut self) -> Result<Option<Timestamp>, Error> {
        Ok(self.get::<Option<i64>>()?.map(|unix_ms| Timestamp { unix_ms }))
    }

    /// Two columns.
    pub(super) fn amount(&mut self) -> Result<Option<Amount>, Error> {
        let minor_units: Option<i64> = self.get()?;
        let currency = self.maybe(Currency::parse)?;
        let amount = match (minor_units, currency) {
            (None, None) => return Ok(None),
            (Some(minor_units), Some(currency)) => u64::try_from(minor_units)
                .ok()
                .and_then(|minor_units| Amount::new(minor_units, currency)),
            _ => None,
        };
        amount.map(Some).ok_or_else(|| self.damaged())
    }

    pub(super) fn trace(&mut self) -> Result<Option<TraceId>, Error> {
        Ok(self.get::<Option<[u8; 16]>>()?.map(TraceId))
    }

    pub(super) fn code(&mut self) -> Result<Option<ResultCode>, Error> {
        let number: Option<i64> = self.get()?;
        number.map(|number| code_from(number).ok_or_else(|| self.damaged())).transpose()
    }

    /// Four columns.
    pub(super) fn verdict(&mut self) -> Result<Option<Verdict>, Error> {
        let code = self.code()?;
        let at = self.time()?;
        let by = self.maybe(ClientId::parse)?;
        let trace = self.trace()?;
        match (code, at) {
            (None, None) => Ok(None),
            (Some(code), Some(at)) => Ok(Some(Verdict { code, at, by, trace })),
            _ => Err(self.damaged()),
        }
    }
}

/// The numbers of recorded results: never change one.
pub(super) const fn code_number(code: ResultCode) -> Option<i64> {
    match code {
        ResultCode::Success => Some(1),
        ResultCode::CancelWindowExceed => Some(2),
        ResultCode::ProcessFail => Some(3),
        ResultCode::InvalidToken => Some(4),
        // never recorded
        ResultCode::AccessDenied
        | ResultCode::InvalidClient
        | ResultCode::InvalidSignature
        | ResultCode::KeyNotFound
        | ResultCode::MediaTypeNotAcceptable
        | ResultCode::MethodNotSupported
        | ResultCode::NoInterfaceDef
        | ResultCode::ParamIllegal
        | ResultCode::RequestTrafficExceedLimit
        | ResultCode::UnknownException => None,
    }
}

fn code_from(number: i64) -> Option<ResultCode> {
    ResultCode::ALL.into_iter().find(|code| code_number(*code) == Some(number))
}

/// A count of minor units as SQLite keeps it.
pub(super) fn minor_units(amount: Amount) -> i64 {
    i64::try_from(amount.minor_units()).unwrap_or(i64::MAX) // at most 2^53 by its type
}
