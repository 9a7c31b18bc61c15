//! Tokens and their authorizations as rows.

use rusqlite::{CachedStatement, Connection, params};

use super::{
    super::{
        Error,
        record::{AuthorizationRecord, TokenRecord},
    },
    chain::Kind,
    failed,
    row::{self, Columns},
    write::Write,
};
use crate::domain::{
    authorization::Authorization,
    id::{AuthorizationId, PspId, TokenHash},
    key::{AuthorizationKey, TokenKey},
    token::Token,
};

const TOKEN: &str = "token";
const AUTHORIZATION: &str = "authorization";

macro_rules! token_columns {
    () => {
        "authorization_id, kind, expires_at, replaced_by,
         verdict, verdict_at, verdict_by, verdict_trace, checksum"
    };
}

macro_rules! grant_columns {
    () => {
        "acquirer_id, pass_through_info, revoked_at, revoked_cause, revoked_trace, checksum"
    };
}

/// Every row, for [`keyed`].
pub(super) const ALL: &str = concat!("SELECT hash, psp_id, ", token_columns!(), " FROM token");

/// Every row, for [`keyed_authorization`].
pub(super) const ALL_AUTHORIZATIONS: &str =
    concat!("SELECT psp_id, authorization_id, ", grant_columns!(), " FROM grants");

/// Loads tokens and authorizations by key; to prepare it costs more than a row.
pub(super) struct Load<'a> {
    token: CachedStatement<'a>,
    authorization: CachedStatement<'a>,
}

impl<'a> Load<'a> {
    pub(super) fn prepare(connection: &'a Connection) -> Result<Self, Error> {
        const TOKENS: &str =
            concat!("SELECT psp_id, ", token_columns!(), " FROM token WHERE hash = ?1");
        // `authorization` is a word of SQL's
        const GRANTS: &str = concat!(
            "SELECT ",
            grant_columns!(),
            " FROM grants WHERE psp_id = ?1 AND authorization_id = ?2"
        );
        let prepare = |text| connection.prepare_cached(text).map_err(failed);
        Ok(Self { token: prepare(TOKENS)?, authorization: prepare(GRANTS)? })
    }

    pub(super) fn token(&mut self, key: &TokenKey) -> Result<Option<Token>, Error> {
        row::one(&mut self.token, TOKEN, [key.hash.0], |row| {
            // the hash covers the wallet, so another one is not another token
            row.parsed(|psp| (psp == key.psp.as_str()).then_some(()))?;
            read(row, key)
        })
    }

    pub(super) fn authorization(
        &mut self,
        key: &AuthorizationKey,
    ) -> Result<Option<Authorization>, Error> {
        let key_columns = [key.psp.as_str(), key.authorization.as_str()];
        row::one(&mut self.authorization, AUTHORIZATION, key_columns, |row| {
            read_authorization(row, key)
        })
    }
}

/// The first tokens behind a hash, by hash.
pub(super) fn page(
    connection: &Connection,
    behind: Option<&TokenHash>,
    limit: u32,
) -> Result<Vec<(TokenKey, Token)>, Error> {
    const SELECT: &str = concat!(
        "SELECT hash, psp_id, ",
        token_columns!(),
        " FROM token WHERE hash > ?1 ORDER BY hash LIMIT ?2"
    );
    let select = connection.prepare_cached(SELECT).map_err(failed)?;
    // no hash is empty, so nothing stands before that
    let behind: &[u8] = behind.map_or(&[], |hash| &hash.0);
    row::all(select, TOKEN, params![behind, limit], keyed)
}

pub(super) fn keyed(row: &mut Columns<'_>) -> Result<(TokenKey, Token), Error> {
    let hash = TokenHash(row.get()?);
    let psp = row.parsed(|text| PspId::parse(text).ok())?;
    let key = TokenKey { psp, hash };
    let token = read(row, &key)?;
    Ok((key, token))
}

fn read(row: &mut Columns<'_>, key: &TokenKey) -> Result<Token, Error> {
    let record = TokenRecord {
        authorization_id: row.get()?,
        kind: row.get()?,
        expires_at: row.get()?,
        replaced_by: row.get()?,
        verdict: row.verdict()?,
    };
    row.verify(record.checksum(key))?;
    record.read()
}

pub(super) fn save(write: &mut Write<'_>, tokens: &[(TokenKey, Token)]) -> Result<(), Error> {
    const UPSERT: &str = concat!(
        "INSERT OR REPLACE INTO token (hash, psp_id, ",
        token_columns!(),
        ") VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)"
    );
    if tokens.is_empty() {
        return Ok(());
    }
    let mut upsert = write.sql.prepare_cached(UPSERT).map_err(failed)?;
    for (key, token) in tokens {
        let record = TokenRecord::of(token);
        let checksum = record.checksum(key);
        let parameters = params![
            key.hash.0,
            key.psp.as_str(),
            record.authorization_id,
            record.kind,
            record.expires_at,
            record.replaced_by,
            record.verdict.code,
            record.verdict.at,
            record.verdict.by,
            record.verdict.trace,
            checksum,
        ];
        upsert.execute(parameters).map_err(failed)?;
        write.changed.row(Kind::Token, checksum);
    }
    Ok(())
}

/// The first authorizations behind a key, by key.
pub(super) fn page_authorizations(
    connection: &Connection,
    behind: Option<&AuthorizationKey>,
    limit: u32,
) -> Result<Vec<(AuthorizationKey, Authorization)>, Error> {
    const SELECT: &str = concat!(
        "SELECT psp_id, authorization_id, ",
        grant_columns!(),
        " FROM grants WHERE (psp_id, authorization_id) > (?1, ?2)
          ORDER BY psp_id, authorization_id LIMIT ?3"
    );
    let select = connection.prepare_cached(SELECT).map_err(failed)?;
    // no id is empty, so nothing stands before that
    let (psp, id) = behind.map_or(("", ""), |key| (key.psp.as_str(), key.authorization.as_str()));
    row::all(select, AUTHORIZATION, params![psp, id, limit], keyed_authorization)
}

pub(super) fn keyed_authorization(
    row: &mut Columns<'_>,
) -> Result<(AuthorizationKey, Authorization), Error> {
    let psp = row.parsed(|text| PspId::parse(text).ok())?;
    let authorization = row.parsed(|text| AuthorizationId::parse(text).ok())?;
    let key = AuthorizationKey { psp, authorization };
    let authorization = read_authorization(row, &key)?;
    Ok((key, authorization))
}

fn read_authorization(
    row: &mut Columns<'_>,
    key: &AuthorizationKey,
) -> Result<Authorization, Error> {
    let record = AuthorizationRecord {
        acquirer_id: row.get()?,
        pass_through_info: row.get()?,
        revoked_at: row.get()?,
        revoked_cause: row.get()?,
        revoked_trace: row.get()?,
    };
    row.verify(record.checksum(key))?;
    record.read()
}

/// Not a REPLACE: that deletes the row first, and SQLite then looks through every token for one that refers to it.
const UPSERT_GRANT: &str = "INSERT INTO grants (
     psp_id, authorization_id, acquirer_id, pass_through_info, revoked_at, revoked_cause, revoked_trace, checksum)
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
     ON CONFLICT (psp_id, authorization_id) DO UPDATE SET acquirer_id = excluded.acquirer_id,
     pass_through_info = excluded.pass_through_info, revoked_at = excluded.revoked_at,
     revoked_cause = excluded.revoked_cause, revoked_trace = excluded.revoked_trace, checksum = excluded.checksum";

pub(super) fn save_authorizations(
    write: &mut Write<'_>,
    authorizations: &[(AuthorizationKey, Authorization)],
) -> Result<(), Error> {
    if authorizations.is_empty() {
        return Ok(());
    }
    let mut upsert = write.sql.prepare_cached(UPSERT_GRANT).map_err(failed)?;
    for (key, authorization) in authorizations {
        let record = AuthorizationRecord::of(authorization);
        let checksum = record.checksum(key);
        let parameters = params![
            key.psp.as_str(),
            key.authorization.as_str(),
            record.acquirer_id,
            record.pass_through_info,
            record.revoked_at,
            record.revoked_cause,
            record.revoked_trace,
            checksum,
        ];
        upsert.execute(parameters).map_err(failed)?;
        write.changed.row(Kind::Authorization, checksum);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rusqlite::StatementStatus;

    use super::*;
    use crate::domain::{
        authorization::{Revocation, RevocationCause},
        id::AcquirerId,
        key::Partitions,
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
        connection.execute_batch(include_str!("schema_2.sql")).unwrap();
        let mut write = Write::of(&connection, Partitions::DEFAULT);
        let standing = Authorization {
            acquirer: AcquirerId::parse("acquirer").unwrap(),
            pass_through_info: None,
            revoked: None,
        };
        let at = crate::domain::time::Timestamp { unix_ms: 1 };
        let revoked = Revocation { at, cause: RevocationCause::CancelToken, trace: None };
        let revoked = Authorization { revoked: Some(revoked), ..standing.clone() };
        let steps_of_a_revocation = |write: &mut Write<'_>, nth| {
            connection.prepare_cached(UPSERT_GRANT).unwrap().reset_status(StatementStatus::VmStep);
            save_authorizations(write, &[(grant(nth), revoked.clone())]).unwrap();
            connection.prepare_cached(UPSERT_GRANT).unwrap().get_status(StatementStatus::VmStep)
        };
        let record = |write: &mut Write<'_>, nth| {
            let token = Token::Recorded(Recorded {
                authorization: grant(nth).authorization,
                kind: TokenKind::Access,
                expires_at: None,
                replaced_by: None,
                cancelled: None,
            });
            let key = TokenKey { psp: grant(nth).psp, hash: hash(nth) };
            save_authorizations(write, &[(grant(nth), standing.clone())]).unwrap();
            save(write, &[(key, token)]).unwrap();
        };
        record(&mut write, 0);
        let alone = steps_of_a_revocation(&mut write, 0);
        (1..=2_000).for_each(|nth| record(&mut write, nth));
        assert_eq!(steps_of_a_revocation(&mut write, 1), alone);
        let mut load = Load::prepare(&connection).unwrap();
        assert_eq!(load.authorization(&grant(1)).unwrap(), Some(revoked.clone()));
        assert_eq!(load.authorization(&grant(2)).unwrap(), Some(standing.clone()));
    }
}
