//! What consumers set aside, as columns.

use super::{
    Table,
    event::{authorization, payment},
    time,
};
use crate::{
    domain::{consumer::Parked, event::EventId, key::Subject},
    store::Error,
};

const TABLE: Table = Table("parked event");

// the numbers in the column `subject_kind`: never change one
const PAYMENT: i64 = 1;
const AUTHORIZATION: i64 = 2;

/// A parked event's columns, its consumer aside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::store) struct ParkedRecord {
    pub(in crate::store) partition: i64,
    pub(in crate::store) position: i64,
    pub(in crate::store) event_id: Vec<u8>,
    pub(in crate::store) subject_kind: i64,
    pub(in crate::store) psp_id: String,
    pub(in crate::store) subject_id: String,
    /// For people, so it may hold anything: bytes, as NUL is no text everywhere.
    pub(in crate::store) reason: Option<Vec<u8>>,
    pub(in crate::store) parked_at: i64,
    pub(in crate::store) redrive: bool,
}

impl ParkedRecord {
    /// As it is written.
    pub(in crate::store) fn of(parked: &Parked) -> Self {
        Self {
            partition: i64::from(parked.partition),
            position: i64::try_from(parked.position).unwrap_or(i64::MAX),
            event_id: parked.event.0.to_vec(),
            subject_kind: match parked.subject {
                Subject::Payment(_) => PAYMENT,
                Subject::Authorization(_) => AUTHORIZATION,
            },
            psp_id: parked.subject.psp().as_str().to_owned(),
            subject_id: parked.subject.id().to_owned(),
            reason: parked.reason.as_ref().map(|reason| reason.as_bytes().to_vec()),
            parked_at: parked.at.unix_ms,
            redrive: parked.redrive,
        }
    }

    /// As it is read.
    pub(in crate::store) fn read(&self) -> Result<Parked, Error> {
        let partition = u16::try_from(self.partition).map_err(|_| TABLE.damaged())?;
        let position = u64::try_from(self.position).map_err(|_| TABLE.damaged())?;
        let event =
            self.event_id.as_slice().try_into().map(EventId).map_err(|_| TABLE.damaged())?;
        let subject = match self.subject_kind {
            PAYMENT => payment(&self.psp_id, &self.subject_id),
            AUTHORIZATION => authorization(&self.psp_id, &self.subject_id),
            _ => None,
        };
        let subject = subject.ok_or(TABLE.damaged())?;
        let reason = match &self.reason {
            None => None,
            Some(bytes) => Some(std::str::from_utf8(bytes).map_err(|_| TABLE.damaged())?.into()),
        };
        let at = time(Some(self.parked_at)).ok_or(TABLE.damaged())?;
        Ok(Parked { partition, position, event, subject, reason, at, redrive: self.redrive })
    }
}
