//! Tokens and authorizations as rows.

use rusqlite::{Connection, OptionalExtension as _, named_params};

use super::{
    super::{
        Error,
        record::{AuthorizationRecord, TokenRecord},
    },
    failed,
    row::Columns,
};
use crate::domain::{
    authorization::Authorization,
    id::PspId,
    key::{AuthorizationKey, TokenKey},
    token::Token,
};

pub(super) fn load(connection: &Connection, key: &TokenKey) -> Result<Option<Token>, Error> {
    const SELECT: &str = "SELECT psp_id, authorization_id, kind, expires_at, replaced_by,
         verdict, verdict_at, verdict_by, verdict_trace FROM token WHERE hash = ?1";
    let mut select = connection.prepare_cached(SELECT).map_err(failed)?;
    let read = |row: &rusqlite::Row<'_>| Ok(read(Columns::new(row, "token"), &key.psp));
    select.query_row([key.hash.0], read).optional().map_err(failed)?.transpose()
}

fn read(mut row: Columns<'_>, psp: &PspId) -> Result<Token, Error> {
    if row.get::<String>()? != psp.as_str() {
        return Err(row.damaged());
    }
    TokenRecord {
        authorization_id: row.get()?,
        kind: row.get()?,
        expires_at: row.get()?,
        replaced_by: row.get()?,
        verdict: row.verdict()?,
    }
    .read()
}

pub(super) fn save(connection: &Connection, key: &TokenKey, token: &Token) -> rusqlite::Result<()> {
    const UPSERT: &str = "INSERT OR REPLACE INTO token (
         hash, psp_id, authorization_id, kind, expires_at, replaced_by, verdict, verdict_at, verdict_by, verdict_trace)
         VALUES (:hash, :psp_id, :authorization_id, :kind, :expires_at, :replaced_by,
         :verdict, :verdict_at, :verdict_by, :verdict_trace)";
    let record = TokenRecord::of(token);
    connection.prepare_cached(UPSERT)?.execute(named_params! {
        ":hash": key.hash.0,
        ":psp_id": key.psp.as_str(),
        ":authorization_id": record.authorization_id,
        ":kind": record.kind,
        ":expires_at": record.expires_at,
        ":replaced_by": record.replaced_by,
        ":verdict": record.verdict.code,
        ":verdict_at": record.verdict.at,
        ":verdict_by": record.verdict.by,
        ":verdict_trace": record.verdict.trace,
    })?;
    Ok(())
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
    AuthorizationRecord {
        acquirer_id: row.get()?,
        pass_through_info: row.get()?,
        revoked_at: row.get()?,
        revoked_cause: row.get()?,
        revoked_trace: row.get()?,
    }
    .read()
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
    let record = AuthorizationRecord::of(authorization);
    connection.prepare_cached(UPSERT_GRANT)?.execute(named_params! {
        ":psp_id": key.psp.as_str(),
        ":authorization_id": key.authorization.as_str(),
        ":acquirer_id": record.acquirer_id,
        ":pass_through_info": record.pass_through_info,
        ":revoked_at": record.revoked_at,
        ":revoked_cause": record.revoked_cause,
        ":revoked_trace": record.revoked_trace,
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use rusqlite::StatementStatus;

    use super::*;
    use crate::domain::{
        authorization::{Revocation, RevocationCause},
        id::{AcquirerId, AuthorizationId, TokenHash},
        token::{Recorded, TokenKind},
    };

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
