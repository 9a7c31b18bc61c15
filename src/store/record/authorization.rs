//! Authorizations as columns.

use super::{Sum, Table, time};
use crate::{
    domain::{
        authorization::{Authorization, Revocation, RevocationCause},
        id::PassThroughInfo,
        key::AuthorizationKey,
    },
    store::Error,
};

const TABLE: Table = Table("authorization");

// the numbers in the column `revoked_cause`: never change one
const BY_CANCEL_TOKEN: i64 = 1;
const BY_REVOKE_AUTHORIZATION: i64 = 2;

/// An authorization's columns, its key aside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::store) struct AuthorizationRecord {
    pub(in crate::store) acquirer_id: String,
    /// Opaque text is kept as bytes: it may hold NUL.
    pub(in crate::store) pass_through_info: Option<Vec<u8>>,
    pub(in crate::store) revoked_at: Option<i64>,
    pub(in crate::store) revoked_cause: Option<i64>,
    pub(in crate::store) revoked_trace: Option<Vec<u8>>,
}

impl AuthorizationRecord {
    /// As it is written.
    pub(in crate::store) fn of(authorization: &Authorization) -> Self {
        let revoked = authorization.revoked.as_ref();
        Self {
            acquirer_id: authorization.acquirer.as_str().to_owned(),
            pass_through_info: pass_through_bytes(authorization.pass_through_info.as_ref()),
            revoked_at: revoked.map(|revoked| revoked.at.unix_ms),
            revoked_cause: revoked.map(|revoked| match revoked.cause {
                RevocationCause::CancelToken => BY_CANCEL_TOKEN,
                RevocationCause::RevokeAuthorization => BY_REVOKE_AUTHORIZATION,
            }),
            revoked_trace: revoked.and_then(|revoked| revoked.trace).map(|trace| trace.0.to_vec()),
        }
    }

    /// As it is read.
    pub(in crate::store) fn read(&self) -> Result<Authorization, Error> {
        let acquirer = TABLE.acquirer(Some(&self.acquirer_id))?.ok_or(TABLE.damaged())?;
        let pass_through_info = pass_through_info(TABLE, self.pass_through_info.as_deref())?;
        let trace = TABLE.trace(self.revoked_trace.as_deref())?;
        let revoked = match (time(self.revoked_at), self.revoked_cause) {
            (None, None) => None,
            (Some(at), Some(BY_CANCEL_TOKEN)) => {
                Some(Revocation { at, cause: RevocationCause::CancelToken, trace })
            }
            (Some(at), Some(BY_REVOKE_AUTHORIZATION)) => {
                Some(Revocation { at, cause: RevocationCause::RevokeAuthorization, trace })
            }
            _ => return Err(TABLE.damaged()),
        };
        Ok(Authorization { acquirer, pass_through_info, revoked })
    }

    /// Over key and columns.
    pub(in crate::store) fn checksum(&self, key: &AuthorizationKey) -> i64 {
        let mut sum = Sum::new("authorization");
        sum.text(Some(key.psp.as_str()));
        sum.text(Some(key.authorization.as_str()));
        sum.text(Some(&self.acquirer_id));
        sum.bytes(self.pass_through_info.as_deref());
        sum.number(self.revoked_at);
        sum.number(self.revoked_cause);
        sum.bytes(self.revoked_trace.as_deref());
        sum.end()
    }
}

pub(super) fn pass_through_bytes(info: Option<&PassThroughInfo>) -> Option<Vec<u8>> {
    info.map(|info| info.as_str().as_bytes().to_vec())
}

pub(super) fn pass_through_info(
    table: Table,
    bytes: Option<&[u8]>,
) -> Result<Option<PassThroughInfo>, Error> {
    let Some(bytes) = bytes else { return Ok(None) };
    let text = std::str::from_utf8(bytes).map_err(|_| table.damaged())?;
    PassThroughInfo::parse(text).map(Some).map_err(|_| table.damaged())
}
