//! Records as the arrays that statements take, and rows as records.

use tokio_postgres::{Row, types::FromSql};

use super::super::{
    Error,
    record::{
        AuthorizationRecord, EventRecord, ParkedRecord, PaymentRecord, TokenRecord, VerdictRecord,
    },
};
use crate::domain::{
    authorization::Authorization,
    consumer::Parked,
    id::{AuthorizationId, PaymentRequestId, PspId, TokenHash},
    key::{AuthorizationKey, PaymentKey, TokenKey},
    payment::Payment,
    token::Token,
};

/// Columns one after the other, in the order of the SELECT; one of another type than it should have is damage.
pub(super) struct Columns<'a> {
    row: &'a Row,
    next: usize,
    table: &'static str,
}

impl<'a> Columns<'a> {
    pub(super) fn new(row: &'a Row, table: &'static str) -> Self {
        Self { row, next: 0, table }
    }

    pub(super) fn damaged(&self) -> Error {
        Error::Damaged(self.table)
    }

    pub(super) fn get<T: FromSql<'a>>(&mut self) -> Result<T, Error> {
        let value = self.row.try_get(self.next).map_err(|_| self.damaged());
        self.next = self.next.saturating_add(1);
        value
    }

    fn small(&mut self) -> Result<i64, Error> {
        self.get::<i16>().map(i64::from)
    }

    fn maybe_small(&mut self) -> Result<Option<i64>, Error> {
        Ok(self.get::<Option<i16>>()?.map(i64::from))
    }

    /// A text that is kept as bytes.
    fn text(&mut self) -> Result<String, Error> {
        let bytes: Vec<u8> = self.get()?;
        String::from_utf8(bytes).map_err(|_| self.damaged())
    }

    fn maybe_text(&mut self) -> Result<Option<String>, Error> {
        let Some(bytes) = self.get::<Option<Vec<u8>>>()? else { return Ok(None) };
        String::from_utf8(bytes).map(Some).map_err(|_| self.damaged())
    }

    pub(super) fn hash(&mut self) -> Result<TokenHash, Error> {
        let bytes: &[u8] = self.get()?;
        bytes.try_into().map(TokenHash).map_err(|_| self.damaged())
    }

    pub(super) fn partition(&mut self) -> Result<u16, Error> {
        u16::try_from(self.get::<i32>()?).map_err(|_| self.damaged())
    }

    pub(super) fn position(&mut self) -> Result<u64, Error> {
        u64::try_from(self.get::<i64>()?).map_err(|_| self.damaged())
    }

    fn verdict(&mut self) -> Result<VerdictRecord, Error> {
        Ok(VerdictRecord {
            code: self.maybe_small()?,
            at: self.get()?,
            by: self.get()?,
            trace: self.get()?,
        })
    }

    pub(super) fn payment_key(&mut self) -> Result<PaymentKey, Error> {
        let (psp, id) = (self.text()?, self.text()?);
        match (PspId::parse(&psp), PaymentRequestId::parse(&id)) {
            (Ok(psp), Ok(payment_request)) => Ok(PaymentKey { psp, payment_request }),
            _ => Err(self.damaged()),
        }
    }

    pub(super) fn authorization_key(&mut self) -> Result<AuthorizationKey, Error> {
        let (psp, id) = (self.text()?, self.text()?);
        match (PspId::parse(&psp), AuthorizationId::parse(&id)) {
            (Ok(psp), Ok(authorization)) => Ok(AuthorizationKey { psp, authorization }),
            _ => Err(self.damaged()),
        }
    }
}

pub(super) fn payment(row: &Row) -> Result<(PaymentKey, Payment), Error> {
    let mut row = Columns::new(row, "payment");
    let key = row.payment_key()?;
    let record = PaymentRecord {
        state: row.small()?,
        acquirer_id: row.get()?,
        recorded_at: row.get()?,
        amount: row.get()?,
        currency: row.get()?,
        initiated_at: row.get()?,
        verdict: row.verdict()?,
        refunds: row.get()?,
        money: row.maybe_small()?,
        return_amount: row.get()?,
        return_currency: row.get()?,
        return_since: row.get()?,
        returned_at: row.get()?,
        return_reference: row.get()?,
    };
    Ok((key, record.read()?))
}

pub(super) fn authorization(row: &Row) -> Result<(AuthorizationKey, Authorization), Error> {
    let mut row = Columns::new(row, "authorization");
    let key = row.authorization_key()?;
    let record = AuthorizationRecord {
        acquirer_id: row.get()?,
        pass_through_info: row.get()?,
        revoked_at: row.get()?,
        revoked_cause: row.maybe_small()?,
        revoked_trace: row.get()?,
    };
    Ok((key, record.read()?))
}

pub(super) fn token(row: &Row) -> Result<(TokenKey, Token), Error> {
    let mut row = Columns::new(row, "token");
    let hash = row.hash()?;
    let psp = PspId::parse(&row.text()?).map_err(|_| row.damaged())?;
    let record = TokenRecord {
        authorization_id: row.maybe_text()?,
        kind: row.maybe_small()?,
        expires_at: row.get()?,
        replaced_by: row.get()?,
        verdict: row.verdict()?,
    };
    Ok((TokenKey { psp, hash }, record.read()?))
}

pub(super) fn event(row: &Row) -> Result<super::super::Positioned, Error> {
    let mut row = Columns::new(row, "event");
    EventRecord {
        partition: i64::from(row.get::<i32>()?),
        position: row.get()?,
        kind: row.small()?,
        psp_id: row.text()?,
        subject_id: row.text()?,
        acquirer_id: row.get()?,
        amount: row.get()?,
        currency: row.get()?,
        cause: row.small()?,
        decided_at: row.get()?,
        result: row.maybe_small()?,
        pass_through_info: row.get()?,
        trace: row.get()?,
    }
    .read()
}

pub(super) fn parked(row: &Row) -> Result<Parked, Error> {
    let mut row = Columns::new(row, "parked event");
    ParkedRecord {
        partition: i64::from(row.get::<i32>()?),
        position: row.get()?,
        event_id: row.get()?,
        subject_kind: row.small()?,
        psp_id: row.text()?,
        subject_id: row.text()?,
        reason: row.get()?,
        parked_at: row.get()?,
        redrive: row.get()?,
    }
    .read()
}

/// Our numbers of states and kinds are small.
pub(super) fn small(number: i64) -> i16 {
    i16::try_from(number).unwrap_or(i16::MAX)
}

pub(super) fn maybe_small(number: Option<i64>) -> Option<i16> {
    number.map(small)
}

/// A position as the database keeps it.
pub(super) fn long(position: u64) -> i64 {
    i64::try_from(position).unwrap_or(i64::MAX)
}
