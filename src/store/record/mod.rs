//! What stores keep: plain columns, the same in every database, and the way to the domain and back.
//!
//! Times are milliseconds since 1970 UTC, amounts minor units. What does not read back is damage, never a guess.

mod authorization;
mod consumer;
mod event;
mod payment;
mod token;

use aws_lc_rs::digest;

pub(super) use self::{
    authorization::AuthorizationRecord,
    consumer::ParkedRecord,
    event::EventRecord,
    payment::PaymentRecord,
    token::{TokenRecord, authorization_key},
};
use super::Error;
use crate::domain::{
    Verdict,
    amount::{Amount, Currency},
    id::{AcquirerId, ClientId, TraceId},
    result::ResultCode,
    time::Timestamp,
};

/// Which table a damaged row stands in.
#[derive(Clone, Copy)]
struct Table(&'static str);

impl Table {
    const fn damaged(self) -> Error {
        Error::Damaged(self.0)
    }

    /// A text, if set, checked.
    fn maybe<T>(
        self,
        text: Option<&str>,
        check: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        text.map(|text| check(text).ok_or(self.damaged())).transpose()
    }

    fn acquirer(self, text: Option<&str>) -> Result<Option<AcquirerId>, Error> {
        self.maybe(text, |text| AcquirerId::parse(text).ok())
    }

    fn amount(
        self,
        minor_units: Option<i64>,
        currency: Option<&str>,
    ) -> Result<Option<Amount>, Error> {
        let currency = self.maybe(currency, Currency::parse)?;
        let amount = match (minor_units, currency) {
            (None, None) => return Ok(None),
            (Some(minor_units), Some(currency)) => u64::try_from(minor_units)
                .ok()
                .and_then(|minor_units| Amount::new(minor_units, currency)),
            _ => None,
        };
        amount.map(Some).ok_or(self.damaged())
    }

    fn code(self, number: Option<i64>) -> Result<Option<ResultCode>, Error> {
        number.map(|number| code_from(number).ok_or(self.damaged())).transpose()
    }

    fn trace(self, bytes: Option<&[u8]>) -> Result<Option<TraceId>, Error> {
        bytes.map(|bytes| bytes.try_into().map(TraceId).map_err(|_| self.damaged())).transpose()
    }
}

fn time(unix_ms: Option<i64>) -> Option<Timestamp> {
    unix_ms.map(|unix_ms| Timestamp { unix_ms })
}

/// A recorded result as columns; all of them empty if there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct VerdictRecord {
    pub(super) code: Option<i64>,
    pub(super) at: Option<i64>,
    pub(super) by: Option<String>,
    pub(super) trace: Option<Vec<u8>>,
}

impl VerdictRecord {
    fn of(verdict: Option<&Verdict>) -> Self {
        let Some(verdict) = verdict else { return Self::default() };
        Self {
            code: code_number(verdict.code),
            at: Some(verdict.at.unix_ms),
            by: verdict.by.as_ref().map(|by| by.as_str().to_owned()),
            trace: verdict.trace.map(|trace| trace.0.to_vec()),
        }
    }

    fn read(&self, table: Table) -> Result<Option<Verdict>, Error> {
        let by = table.maybe(self.by.as_deref(), ClientId::parse)?;
        let trace = table.trace(self.trace.as_deref())?;
        match (table.code(self.code)?, time(self.at)) {
            (None, None) => Ok(None),
            (Some(code), Some(at)) => Ok(Some(Verdict { code, at, by, trace })),
            _ => Err(table.damaged()),
        }
    }

    fn sum(&self, sum: &mut Sum) {
        sum.number(self.code);
        sum.number(self.at);
        sum.text(self.by.as_deref());
        sum.bytes(self.trace.as_deref());
    }
}

/// The numbers of recorded results: never change one.
const fn code_number(code: ResultCode) -> Option<i64> {
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

/// A count of minor units as databases keep it.
fn minor_units(amount: Amount) -> i64 {
    i64::try_from(amount.minor_units()).unwrap_or(i64::MAX) // at most 2^53 by its type
}

/// A row's checksum: the first eight bytes of SHA-256 over its key and its columns in their order, each with its length,
/// so that no two rows have the same text. Databases in the field hang on these bytes.
///
/// The text is put together first: a hash that is fed word by word costs a multiple.
pub(super) struct Sum(Vec<u8>);

/// Room for the text of almost every row.
const SUM_BYTES: usize = 512;

impl Sum {
    fn new(table: &str) -> Self {
        let mut sum = Self(Vec::with_capacity(SUM_BYTES));
        sum.text(Some(table));
        sum
    }

    fn bytes(&mut self, bytes: Option<&[u8]>) {
        let Some(bytes) = bytes else { return self.0.push(0) };
        self.0.push(1);
        self.0.extend_from_slice(&u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_le_bytes());
        self.0.extend_from_slice(bytes);
    }

    fn text(&mut self, text: Option<&str>) {
        self.bytes(text.map(str::as_bytes));
    }

    fn number(&mut self, number: Option<i64>) {
        self.bytes(number.map(i64::to_le_bytes).as_ref().map(<[u8; 8]>::as_slice));
    }

    fn end(self) -> i64 {
        let hash = digest::digest(&digest::SHA256, &self.0);
        i64::from_le_bytes(hash.as_ref().first_chunk().copied().unwrap_or_default())
    }
}
