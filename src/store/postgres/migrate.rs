//! The schema, its numbered migrations, and what is fixed at the first one.
//!
//! Forward only. Any number of replicas may run them at once, without a lock that all engines would have to know: every
//! statement may be repeated, so whoever loses a race for one runs all of them again.

use std::time::{Duration, Instant};

use tokio::time;
use tokio_postgres::Client;

use super::{OpenError, connection::ConnectError};
use crate::domain::{id::TokenHash, key::Partitions};

/// One step each; the number is the place in the list, from 1. Never change one that was released.
const MIGRATIONS: [&str; 1] = [include_str!("schema_1.sql")];
/// What a program must at least know to use a database that this one has migrated.
const LEAST: i32 = 1;
/// For losing races.
const PATIENCE: Duration = Duration::from_mins(1);

/// The newest schema this program knows.
pub(super) fn newest() -> i32 {
    i32::try_from(MIGRATIONS.len()).unwrap_or(i32::MAX)
}

/// The schema of a database; 0 if it has none.
pub(super) async fn schema(client: &Client) -> Result<i32, OpenError> {
    let there = client.query_opt("SELECT schema, least_schema FROM meta WHERE only_row = 1", &[]);
    match there.await {
        Ok(None) => Ok(0),
        // no such table
        Err(error) if error.code().is_some_and(|code| code.code() == "42P01") => Ok(0),
        Err(error) => Err(failed(error)),
        Ok(Some(row)) => {
            let (schema, least): (i32, i32) =
                (row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?);
            if least > newest() {
                return Err(OpenError::TooNew { schema: least, known: newest() });
            }
            Ok(schema)
        }
    }
}

/// Brings the schema up to date.
pub(super) async fn run(client: &Client, partitions: Partitions) -> Result<(), OpenError> {
    let end = Instant::now() + PATIENCE;
    // DDL takes its time, and waits for its turn
    client.batch_execute("SET statement_timeout = 0").await.map_err(failed)?;
    client.batch_execute("SET lock_timeout = '5s'").await.map_err(failed)?;
    loop {
        match attempt(client, partitions).await {
            Err(OpenError::Database(error)) if lost_a_race(&error) && Instant::now() < end => {
                time::sleep(Duration::from_millis(rand::random_range(20..200))).await;
            }
            done => return done,
        }
    }
}

async fn attempt(client: &Client, partitions: Partitions) -> Result<(), OpenError> {
    let from = schema(client).await?;
    let steps = MIGRATIONS.iter().zip(1i32..).filter(|(_, number)| *number > from);
    for (sql, number) in steps {
        for statement in statements(sql) {
            client.batch_execute(statement).await.map_err(failed)?;
        }
        if number == 1 {
            first(client, partitions).await?;
        }
        client
            .execute(
                "UPDATE meta SET schema = $1, least_schema = $2 WHERE only_row = 1 AND schema < $1",
                &[&number, &LEAST],
            )
            .await
            .map_err(failed)?;
    }
    Ok(())
}

/// A file's statements, which end in a semicolon at a line's end.
fn statements(sql: &str) -> impl Iterator<Item = &str> {
    let comment = |line: &str| line.trim_start().starts_with("--") || line.trim().is_empty();
    sql.split_inclusive(";\n").filter(move |text| !text.lines().all(comment))
}

/// What a new store starts with. The first writer's number of partitions counts.
async fn first(client: &Client, partitions: Partitions) -> Result<(), OpenError> {
    let count = i32::from(partitions.count());
    client
        .execute(
            "INSERT INTO meta (only_row, schema, least_schema, partitions, epoch, onboarding, filling, suspect)
             VALUES (1, 0, 0, $1, 1, true, false, NULL) ON CONFLICT (only_row) DO NOTHING",
            &[&count],
        )
        .await
        .map_err(failed)?;
    let row = client.query_one("SELECT partitions FROM meta WHERE only_row = 1", &[]).await;
    let count: i32 = row.and_then(|row| row.try_get(0)).map_err(failed)?;
    client
        .execute(
            "INSERT INTO partition_head (partition, position, purged, turn)
             SELECT w, 0, 0, 0 FROM unnest($1::integer[]) AS w ON CONFLICT (partition) DO NOTHING",
            &[&(0..count).collect::<Vec<_>>()],
        )
        .await
        .map_err(failed)?;
    Ok(())
}

/// Checks what is fixed, and admits the ring's keys; answers which of them is primary.
///
/// The first key of a new store becomes primary and stays it until a promotion: a key that is merely put first in the
/// settings must not change how tokens are hashed, because another replica may not have it yet.
pub(super) async fn admit(
    client: &Client,
    partitions: Partitions,
    ring: &[[u8; 16]],
) -> Result<usize, OpenError> {
    let row = client.query_one("SELECT partitions FROM meta WHERE only_row = 1", &[]).await;
    let found: i32 = row.and_then(|row| row.try_get(0)).map_err(failed)?;
    if found != i32::from(partitions.count()) {
        return Err(OpenError::Partitions { found, wanted: partitions.count() });
    }
    for attempt in 0u32.. {
        let rows = client.query("SELECT fingerprint, is_primary FROM hash_key", &[]).await;
        let mut in_use: Vec<(Vec<u8>, bool)> = Vec::new();
        for row in rows.map_err(failed)? {
            in_use.push((row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?));
        }
        let lacks = |key: &&(Vec<u8>, bool)| !ring.iter().any(|known| known[..] == key.0[..]);
        if let Some((missing, _)) = in_use.iter().find(lacks) {
            return Err(OpenError::HashKeyMissing { fingerprint: TokenHash::prefix(missing) });
        }
        for (place, key) in ring.iter().enumerate() {
            let primary = in_use.is_empty() && place == 0;
            let admitted = client
                .execute(
                    "INSERT INTO hash_key (fingerprint, is_primary) VALUES ($1, $2)
                     ON CONFLICT (fingerprint) DO NOTHING",
                    &[&&key[..], &primary],
                )
                .await;
            match admitted {
                // somebody else's key is primary since: look again
                Err(error) if lost_a_race(&error) && attempt < 100 => break,
                admitted => admitted.map_err(failed)?,
            };
        }
        let primary = client.query_opt("SELECT fingerprint FROM hash_key WHERE is_primary", &[]);
        let Some(row) = primary.await.map_err(failed)? else { continue };
        let primary: Vec<u8> = row.try_get(0).map_err(failed)?;
        return match ring.iter().position(|key| key[..] == primary[..]) {
            Some(place) => Ok(place),
            None => Err(OpenError::HashKeyMissing { fingerprint: TokenHash::prefix(&primary) }),
        };
    }
    Err(OpenError::Connect(ConnectError::NoHost("no token hash key is primary".to_owned())))
}

fn failed(source: tokio_postgres::Error) -> OpenError {
    OpenError::Database(source)
}

/// Another replica did the same at the same moment: unique violations in the catalogue, conflicts, deadlocks, time-outs
/// of locks, objects that exist already or not quite yet.
fn lost_a_race(error: &tokio_postgres::Error) -> bool {
    let code = error.code().map(tokio_postgres::error::SqlState::code);
    code.is_some_and(|code| {
        matches!(
            code,
            "23505" | "40001" | "40P01" | "55P03" | "42P07" | "42710" | "42P01" | "XX000"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_migration_is_taken_apart_into_statements() {
        let found: Vec<_> = statements(MIGRATIONS[0]).collect();
        assert_eq!(found.len(), 13, "{found:#?}");
        assert!(found.iter().all(|sql| sql.contains("IF NOT EXISTS")));
    }
}
