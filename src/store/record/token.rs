//! Tokens as columns.

use super::{Sum, Table, VerdictRecord, time};
use crate::{
    domain::{
        id::{AuthorizationId, TokenHash},
        key::{AuthorizationKey, TokenKey},
        token::{Recorded, Token, TokenKind},
    },
    store::Error,
};

const TABLE: Table = Table("token");

// the numbers in the column `kind`: never change one
const ACCESS: i64 = 1;
const REFRESH: i64 = 2;

/// A token's columns, its key aside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::store) struct TokenRecord {
    pub(in crate::store) authorization_id: Option<String>,
    pub(in crate::store) kind: Option<i64>,
    pub(in crate::store) expires_at: Option<i64>,
    pub(in crate::store) replaced_by: Option<Vec<u8>>,
    pub(in crate::store) verdict: VerdictRecord,
}

impl TokenRecord {
    /// As it is written.
    pub(in crate::store) fn of(token: &Token) -> Self {
        match token {
            Token::Recorded(recorded) => Self {
                authorization_id: Some(recorded.authorization.as_str().to_owned()),
                kind: Some(match recorded.kind {
                    TokenKind::Access => ACCESS,
                    TokenKind::Refresh => REFRESH,
                }),
                expires_at: recorded.expires_at.map(|at| at.unix_ms),
                replaced_by: recorded.replaced_by.map(|hash| hash.0.to_vec()),
                verdict: VerdictRecord::of(recorded.cancelled.as_ref()),
            },
            Token::DeadOnArrival(verdict) => {
                Self { verdict: VerdictRecord::of(Some(verdict)), ..Self::default() }
            }
        }
    }

    /// As it is read.
    pub(in crate::store) fn read(&self) -> Result<Token, Error> {
        let authorization = self.authorization_id.as_deref();
        let authorization = TABLE.maybe(authorization, |text| AuthorizationId::parse(text).ok())?;
        let replaced_by = self.replaced_by.as_deref().map(<[u8; 32]>::try_from).transpose();
        let replaced_by = replaced_by.map_err(|_| TABLE.damaged())?.map(TokenHash);
        match (authorization, self.kind, self.verdict.read(TABLE)?) {
            (None, None, Some(verdict)) => Ok(Token::DeadOnArrival(verdict)),
            (Some(authorization), Some(kind), cancelled) => {
                let kind = match kind {
                    ACCESS => TokenKind::Access,
                    REFRESH => TokenKind::Refresh,
                    _ => return Err(TABLE.damaged()),
                };
                let expires_at = time(self.expires_at);
                Ok(Token::Recorded(Recorded {
                    authorization,
                    kind,
                    expires_at,
                    replaced_by,
                    cancelled,
                }))
            }
            _ => Err(TABLE.damaged()),
        }
    }

    /// Over key and columns.
    pub(in crate::store) fn checksum(&self, key: &TokenKey) -> i64 {
        let mut sum = Sum::new("token");
        sum.text(Some(key.psp.as_str()));
        sum.bytes(Some(&key.hash.0));
        sum.text(self.authorization_id.as_deref());
        sum.number(self.kind);
        sum.number(self.expires_at);
        sum.bytes(self.replaced_by.as_deref());
        self.verdict.sum(&mut sum);
        sum.end()
    }
}

/// Where a token's authorization is found; none for one that was dead on arrival.
pub(in crate::store) fn authorization_key(
    key: &TokenKey,
    token: &Token,
) -> Option<AuthorizationKey> {
    match token {
        Token::Recorded(recorded) => Some(AuthorizationKey {
            psp: key.psp.clone(),
            authorization: recorded.authorization.clone(),
        }),
        Token::DeadOnArrival(_) => None,
    }
}
