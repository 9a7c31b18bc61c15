//! Tokens and authorizations as rows.

use rusqlite::{Connection, OptionalExtension as _, named_params};

use super::{
    super::Error,
    failed,
    row::{Columns, code_number},
};
use crate::domain::{
    authorization::{Authorization, Revocation, RevocationCause},
    id::{AuthorizationId, PassThroughInfo, TokenHash},
    key::{AuthorizationKey, TokenKey},
    token::{Recorded, Token, TokenKind},
};

// the numbers in the columns `kind` and `revoked_cause`: never change one
const ACCESS: i64 = 1;
const REFRESH: i64 = 2;

const BY_CANCEL_TOKEN: i64 = 1;
const BY_REVOKE_AUTHORIZATION: i64 = 2;

pub(super) fn load(connection: &Connection, key: &TokenKey) -> Result<Option<Token>, Error> {
    const SELECT: &str = "SELECT psp_id, authorization_id, kind, expires_at, replaced_by,
         verdict, verdict_at, verdict_by, verdict_trace FROM token WHERE hash = ?1";
    let mut select = connection.prepare_cached(SELECT).map_err(failed)?;
    let read = |row: &rusqlite::Row<'_>| Ok(read(Columns::new(row, "token"), key));
    select.query_row([key.hash.0], read).optional().map_err(failed)?.transpose()
}

fn read(mut row: Columns<'_>, key: &TokenKey) -> Result<Token, Error> {
    let psp = row.psp()?;
    let authorization = row.maybe(|text| AuthorizationId::parse(text).ok())?;
    let kind: Option<i64> = row.get()?;
    let expires_at = row.time()?;
    let replaced_by = row.get::<Option<[u8; 32]>>()?.map(TokenHash);
    let verdict = row.verdict()?;
    if psp != key.psp {
        return Err(row.damaged());
    }
    match (authorization, kind, verdict) {
        (None, None, Some(verdict)) => Ok(Token::DeadOnArrival(verdict)),
        (Some(authorization), Some(kind), cancelled) => {
            let kind = match kind {
                ACCESS => TokenKind::Access,
                REFRESH => TokenKind::Refresh,
                _ => return Err(row.damaged()),
            };
            Ok(Token::Recorded(Recorded {
                authorization,
                kind,
                expires_at,
                replaced_by,
                cancelled,
            }))
        }
        _ => Err(row.damaged()),
    }
}

pub(super) fn save(connection: &Connection, key: &TokenKey, token: &Token) -> rusqlite::Result<()> {
    const UPSERT: &str = "INSERT OR REPLACE INTO token (
         hash, psp_id, authorization_id, kind, expires_at, replaced_by, verdict, verdict_at, verdict_by, verdict_trace)
         VALUES (:hash, :psp_id, :authorization_id, :kind, :expires_at, :replaced_by,
         :verdict, :verdict_at, :verdict_by, :verdict_trace)";
    let (recorded, verdict) = match token {
        Token::Recorded(recorded) => (Some(recorded), recorded.cancelled.as_ref()),
        Token::DeadOnArrival(verdict) => (None, Some(verdict)),
    };
    let kind = recorded.map(|recorded| match recorded.kind {
        TokenKind::Access => ACCESS,
        TokenKind::Refresh => REFRESH,
    });
    connection.prepare_cached(UPSERT)?.execute(named_params! {
        ":hash": key.hash.0,
        ":psp_id": key.psp.as_str(),
        ":authorization_id": recorded.map(|recorded| recorded.authorization.as_str()),
        ":kind": kind,
        ":expires_at": recorded.and_then(|recorded| recorded.expires_at).map(|at| at.unix_ms),
        ":replaced_by": recorded.and_then(|recorded| recorded.replaced_by).map(|hash| hash.0),
        ":verdict": verdict.and_then(|verdict| code_number(verdict.code)),
        ":verdict_at": verdict.map(|verdict| verdict.at.unix_ms),
        ":verdict_by": verdict.and_then(|verdict| verdict.by.as_ref()).map(crate::domain::id::ClientId::as_str),
        ":verdict_trace": verdict.and_then(|verdict| verdict.trace).map(|trace| trace.0),
    })?;
    Ok(())
}

/// Where a token's authorization is found; none for one that was dead on arrival.
pub(super) fn authorization_key(key: &TokenKey, token: &Token) -> Option<AuthorizationKey> {
    match token {
        Token::Recorded(recorded) => Some(AuthorizationKey {
            psp: key.psp.clone(),
            authorization: recorded.authorization.clone(),
        }),
        Token::DeadOnArrival(_) => None,
    }
}

pub(super) fn load_authorization(
    connection: &Connection,
    key: &AuthorizationKey,
) -> Result<Option<Authorization>, Error> {
    // `authorization` is a word of SQL's
    const SELECT: &str =
        "SELECT acquirer_id, pass_through_info, revoked_at, revoked_cause, revoked_trace
         FROM grants WHERE psp_id = ?1 AND authorization_id = ?2";
    let mut select = connection.prepare_cached(SELECT).map_err(failed)?;
    let read = |row: &rusqlite::Row<'_>| Ok(read_authorization(Columns::new(row, "authorization")));
    select
        .query_row([key.psp.as_str(), key.authorization.as_str()], read)
        .optional()
        .map_err(failed)?
        .transpose()
}

fn read_authorization(mut row: Columns<'_>) -> Result<Authorization, Error> {
    let acquirer = row.acquirer()?.ok_or_else(|| row.damaged())?;
    let pass_through_info = pass_through_info(&mut row)?;
    let at = row.time()?;
    let cause: Option<i64> = row.get()?;
    let trace = row.trace()?;
    let revoked = match (at, cause) {
        (None, None) => None,
        (Some(at), Some(BY_CANCEL_TOKEN)) => {
            Some(Revocation { at, cause: RevocationCause::CancelToken, trace })
        }
        (Some(at), Some(BY_REVOKE_AUTHORIZATION)) => {
            Some(Revocation { at, cause: RevocationCause::RevokeAuthorization, trace })
        }
        _ => return Err(row.damaged()),
    };
    Ok(Authorization { acquirer, pass_through_info, revoked })
}

/// Opaque text is kept as bytes: it may hold NUL.
pub(super) fn pass_through_info(row: &mut Columns<'_>) -> Result<Option<PassThroughInfo>, Error> {
    let Some(bytes) = row.get::<Option<Vec<u8>>>()? else { return Ok(None) };
    let text = std::str::from_utf8(&bytes).map_err(|_| row.damaged())?;
    PassThroughInfo::parse(text).map(Some).map_err(|_| row.damaged())
}

/// Not a REPLACE: that deletes the row first, and SQLite then looks through every token for one that refers to it.
const UPSERT_GRANT: &str = "INSERT INTO grants (
     psp_id, authorization_id, acquirer_id, pass_through_info, revoked_at, revoked_cause, revoked_trace)
     VALUES (:psp_id, :authorization_id, :acquirer_id, :pass_through_info, :revoked_at, :revoked_cause, :revoked_trace)
     ON CONFLICT (psp_id, authorization_id) DO UPDATE SET acquirer_id = excluded.acquirer_id,
     pass_through_info = excluded.pass_through_info, revoked_at = excluded.revoked_at,
     revoked_cause = excluded.revoked_cause, revoked_trace = excluded.revoked_trace";

pub(super) fn save_authorization(
    connection: &Connection,
    key: &AuthorizationKey,
    authorization: &Authorization,
) -> rusqlite::Result<()> {
    let mut upsert = connection.prepare_cached(UPSERT_GRANT)?;
    let revoked = authorization.revoked.as_ref();
    let cause = revoked.map(|revoked| match revoked.cause {
        RevocationCause::CancelToken => BY_CANCEL_TOKEN,
        RevocationCause::RevokeAuthorization => BY_REVOKE_AUTHORIZATION,
    });
    upsert.execute(named_params! {
        ":psp_id": key.psp.as_str(),
        ":authorization_id": key.authorization.as_str(),
        ":acquirer_id": authorization.acquirer.as_str(),
        ":pass_through_info": authorization.pass_through_info.as_ref().map(|info| info.as_str().as_bytes()),
        ":revoked_at": revoked.map(|revoked| revoked.at.unix_ms),
        ":revoked_cause": cause,
        ":revoked_trace": revoked.and_then(|revoked| revoked.trace).map(|trace| trace.0),
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use rusqlite::StatementStatus;

    use super::*;
    use crate::domain::id::{AcquirerId, PspId};

    fn grant(nth: u32) -> AuthorizationKey {
        let authorization = AuthorizationId::parse(&format!("grant-{nth}")).unwrap();
        AuthorizationKey { psp: PspId::parse("psp").unwrap(), authorization }
    }

    fn hash(nth: u32) -> TokenHash {
        let mut hash = [0; 32];
        hash[..4].copy_from_slice(&nth.to_be_bytes());
        TokenHash(hash)
    }

    #[test]
    fn revoking_a_grant_costs_the_same_however_many_tokens_there_are() {
        let connection = Connection::open_in_memory().unwrap();
        connection.pragma_update(None, "foreign_keys", true).unwrap();
        connection.execute_batch(include_str!("schema_1.sql")).unwrap();
        let standing = Authorization {
            acquirer: AcquirerId::parse("acquirer").unwrap(),
            pass_through_info: None,
            revoked: None,
        };
        let at = crate::domain::time::Timestamp { unix_ms: 1 };
        let revoked = Revocation { at, cause: RevocationCause::CancelToken, trace: None };
        let revoked = Authorization { revoked: Some(revoked), ..standing.clone() };
        let steps_of_a_revocation = |nth| {
            connection.prepare_cached(UPSERT_GRANT).unwrap().reset_status(StatementStatus::VmStep);
            save_authorization(&connection, &grant(nth), &revoked).unwrap();
            connection.prepare_cached(UPSERT_GRANT).unwrap().get_status(StatementStatus::VmStep)
        };
        let record = |nth| {
            let token = Token::Recorded(Recorded {
                authorization: grant(nth).authorization,
                kind: TokenKind::Access,
                expires_at: None,
                replaced_by: None,
                cancelled: None,
            });
            let key = TokenKey { psp: grant(nth).psp, hash: hash(nth) };
            save_authorization(&connection, &grant(nth), &standing).unwrap();
            save(&connection, &key, &token).unwrap();
        };
        record(0);
        let alone = steps_of_a_revocation(0);
        (1..=2_000).for_each(record);
        assert_eq!(steps_of_a_revocation(1), alone);
        assert_eq!(load_authorization(&connection, &grant(1)).unwrap(), Some(revoked.clone()));
        assert_eq!(load_authorization(&connection, &grant(2)).unwrap(), Some(standing.clone()));
    }
}
