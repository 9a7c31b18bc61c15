//! The schema, its numbered migrations, and what is fixed at the first one.
//!
//! Forward only. `user_version` is the schema; `meta.least_schema` is what a program must at least know to use it, so
//! that an older program runs beside a newer one until a migration really forbids it.

use std::path::Path;

use rusqlite::{
    Connection, ErrorCode, OptionalExtension as _, Transaction, TransactionBehavior, params,
};

use super::{
    super::Error,
    HashKeyFingerprints, OpenError,
    chain::{self, Changed, Kind},
    opening, standing,
};
use crate::domain::{id::TokenHash, key::Partitions};

/// "AP+C": tells our files from other programs'.
const APPLICATION_ID: i32 = 0x4150_2b43;

/// One step each; the number is the place in the list, from 1. Never change one that was released.
const MIGRATIONS: [&str; 2] = [include_str!("schema_1.sql"), include_str!("schema_2.sql")];

/// The newest schema this program knows.
pub(super) fn newest() -> u32 {
    u32::try_from(MIGRATIONS.len()).unwrap_or(u32::MAX)
}

/// Brings the schema up to date and checks what is fixed.
pub(super) fn run(
    connection: &mut Connection,
    path: &Path,
    partitions: Partitions,
) -> Result<(), OpenError> {
    let sqlite = |source| opening(path, source);
    let transaction =
        connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(sqlite)?;
    let schema: u32 = pragma(&transaction, "user_version").map_err(sqlite)?;
    if is_foreign(&transaction).map_err(sqlite)? {
        return Err(OpenError::Foreign(path.to_owned()));
    }
    if schema == 0 {
        transaction.pragma_update(None, "application_id", APPLICATION_ID).map_err(sqlite)?;
    } else {
        let least = number(&transaction, "least_schema").map_err(sqlite)?;
        if least > newest() {
            return Err(OpenError::TooNew {
                path: path.to_owned(),
                schema: least,
                known: newest(),
            });
        }
    }
    for (step, sql) in
        MIGRATIONS.iter().enumerate().skip(usize::try_from(schema).unwrap_or(usize::MAX))
    {
        transaction.execute_batch(sql).map_err(sqlite)?;
        let version = step.saturating_add(1);
        transaction
            .pragma_update(None, "user_version", u32::try_from(version).unwrap_or(u32::MAX))
            .map_err(sqlite)?;
        match version {
            1 => first(&transaction, partitions).map_err(sqlite)?,
            2 => standing::begin_journal(&transaction).map_err(sqlite)?,
            _ => {}
        }
    }
    let found = number(&transaction, "partitions").map_err(sqlite)?;
    transaction.commit().map_err(sqlite)?;

    if found != u32::from(partitions.count()) {
        let found = u16::try_from(found).unwrap_or(u16::MAX);
        return Err(OpenError::Partitions {
            path: path.to_owned(),
            found,
            wanted: partitions.count(),
        });
    }
    Ok(())
}

/// Whether a file is ours and has a chain over its commits: it came with schema 2.
pub(super) fn has_chain(connection: &Connection) -> rusqlite::Result<bool> {
    let application: i32 = pragma(connection, "application_id")?;
    let schema: u32 = pragma(connection, "user_version")?;
    Ok(application == APPLICATION_ID && schema >= 2)
}

/// Whether a file is some other program's; an empty one is nobody's.
pub(super) fn is_foreign(connection: &Connection) -> rusqlite::Result<bool> {
    let application: i32 = pragma(connection, "application_id")?;
    let schema: u32 = pragma(connection, "user_version")?;
    let tables: u32 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    Ok(application != APPLICATION_ID && (tables > 0 || schema > 0))
}

/// Refuses a file that is not a store of ours, or of another schema than this program's; answers its partitions.
///
/// It migrates nothing: an older service may be running on it.
pub(super) fn belongs(connection: &Connection, path: &Path) -> Result<Partitions, OpenError> {
    let sqlite = |source| opening(path, source);
    let application: i32 = pragma(connection, "application_id").map_err(sqlite)?;
    if application != APPLICATION_ID {
        return Err(OpenError::Foreign(path.to_owned()));
    }
    let least = number(connection, "least_schema").map_err(sqlite)?;
    if least > newest() {
        return Err(OpenError::TooNew { path: path.to_owned(), schema: least, known: newest() });
    }
    let schema: u32 = pragma(connection, "user_version").map_err(sqlite)?;
    if schema < newest() {
        return Err(OpenError::TooOld { path: path.to_owned(), schema, known: newest() });
    }
    let found = number(connection, "partitions").map_err(sqlite)?;
    u16::try_from(found).ok().and_then(Partitions::new).ok_or_else(|| {
        let damaged = Error::Damaged("number of partitions");
        OpenError::NotSound { path: path.to_owned(), source: damaged.into() }
    })
}

/// The schema of a file of ours and the newest one; 0 for an empty file.
pub(super) fn schema(connection: &Connection, path: &Path) -> Result<(u32, u32), OpenError> {
    let sqlite = |source| opening(path, source);
    if is_foreign(connection).map_err(sqlite)? {
        return Err(OpenError::Foreign(path.to_owned()));
    }
    let found = pragma(connection, "user_version").map_err(sqlite)?;
    if found > 0 {
        let least = number(connection, "least_schema").map_err(sqlite)?;
        if least > newest() {
            return Err(OpenError::TooNew {
                path: path.to_owned(),
                schema: least,
                known: newest(),
            });
        }
    }
    Ok((found, newest()))
}

fn pragma<T: rusqlite::types::FromSql>(connection: &Connection, name: &str) -> rusqlite::Result<T> {
    connection.pragma_query_value(None, name, |row| row.get(0))
}

/// What a new store starts with.
fn first(transaction: &Transaction<'_>, partitions: Partitions) -> rusqlite::Result<()> {
    for (key, value) in
        [("least_schema", 1), ("partitions", partitions.count()), ("epoch", 1), ("onboarding", 1)]
    {
        transaction
            .execute("INSERT INTO meta (key, value) VALUES (?1, ?2)", params![key, value])?;
    }
    let mut insert =
        transaction.prepare("INSERT INTO partition_head (partition, position) VALUES (?1, 0)")?;
    for partition in 0..partitions.count() {
        insert.execute(params![partition])?;
    }
    Ok(())
}

fn number(connection: &Connection, key: &str) -> rusqlite::Result<u32> {
    connection.query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0))
}

/// The fingerprint of a key in use that a ring lacks, for people.
pub(super) fn missing_hash_key(
    connection: &Connection,
    ring: &HashKeyFingerprints,
) -> rusqlite::Result<Option<String>> {
    let missing = hash_keys(connection)?.into_iter().find(|key| !ring.contains(key));
    Ok(missing.map(|key| TokenHash::prefix(&key)))
}

fn hash_keys(connection: &Connection) -> rusqlite::Result<Vec<[u8; 16]>> {
    connection
        .prepare("SELECT fingerprint FROM hash_key")?
        .query_map([], |row| row.get(0))?
        .collect()
}

/// Whether tokens were hashed, and with no key that is the one to hash with: such a store is refused at start.
pub(super) fn lacks_primary(connection: &Connection) -> rusqlite::Result<bool> {
    const SELECT: &str = "SELECT (EXISTS (SELECT 1 FROM hash_key) OR EXISTS (SELECT 1 FROM token))
         AND NOT EXISTS (SELECT 1 FROM hash_key WHERE is_primary = 1)";
    connection.query_row(SELECT, [], |row| row.get(0))
}

/// Refuses a ring that lacks a key in use, admits new keys, and answers which one is primary.
///
/// The first key of a new store becomes primary and stays it until a promotion: a key that is merely put first in the
/// settings must not change how tokens are hashed, because another replica may not have it yet.
pub(super) fn admit_hash_keys(
    connection: &mut Connection,
    path: &Path,
    ring: &HashKeyFingerprints,
) -> Result<usize, OpenError> {
    let sqlite = |source: rusqlite::Error| opening(path, source);
    let transaction =
        connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(sqlite)?;
    let in_use = hash_keys(&transaction).map_err(sqlite)?;
    if let Some(fingerprint) = missing_hash_key(&transaction, ring).map_err(sqlite)? {
        return Err(OpenError::HashKeyMissing { path: path.to_owned(), fingerprint });
    }
    let mut changed = Changed::nothing();
    for (place, key) in ring.iter().enumerate().filter(|(_, key)| !in_use.contains(key)) {
        let primary = in_use.is_empty() && place == 0;
        transaction
            .execute(
                "INSERT INTO hash_key (fingerprint, is_primary) VALUES (?1, ?2)",
                params![key, primary],
            )
            .map_err(sqlite)?;
        changed.parts(Kind::HashKey, &[key]);
    }
    if changed.rows() > 0 {
        chain::append(&transaction, changed).map_err(sqlite)?;
    }
    let primary: Option<[u8; 16]> = transaction
        .query_row("SELECT fingerprint FROM hash_key WHERE is_primary", [], |row| row.get(0))
        .optional()
        .map_err(sqlite)?;
    transaction.commit().map_err(sqlite)?;
    primary.and_then(|primary| ring.iter().position(|key| *key == primary)).ok_or_else(|| {
        OpenError::NotSound {
            path: path.to_owned(),
            source: rusqlite::Error::SqliteFailure(
                rusqlite::ffi::Error {
                    code: ErrorCode::DatabaseCorrupt,
                    extended_code: rusqlite::ffi::SQLITE_CORRUPT,
                },
                Some("no token hash key is primary".to_owned()),
            )
            .into(),
        }
    })
}
