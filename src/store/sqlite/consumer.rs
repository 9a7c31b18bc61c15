//! Followers of the feed as rows.

use std::collections::BTreeMap;

use rusqlite::{Connection, params};

use super::{
    super::{Error, Following, Kept, record::ParkedRecord},
    chain::Kind,
    event, failed,
    row::{self, Columns},
    standing,
    write::Write,
};
use crate::domain::consumer::{Consumer, ConsumerName, Parked, Progress, StreamId};

const CONSUMER: &str = "consumer";
const PROGRESS: &str = "consumer's progress";
const PARKED: &str = "parked event";

/// Asks what becomes of a consumer, and writes that.
pub(super) fn follow(
    write: &mut Write<'_>,
    name: &ConsumerName,
    decide: &mut (dyn FnMut(Following) -> Kept + Send),
) -> Result<(), Error> {
    let before = load(write.sql, name)?;
    let following = Following {
        consumer: before.clone(),
        heads: event::heads(write.sql)?,
        standing: standing::load(write.sql)?,
    };
    match decide(following) {
        Kept::AsItIs => Ok(()),
        Kept::Consumer(after) => save(write, name, before.as_ref(), &after),
        Kept::Nothing if before.is_none() => Ok(()),
        Kept::Nothing => forget(write, name),
    }
}

pub(super) fn load(
    connection: &Connection,
    name: &ConsumerName,
) -> Result<Option<Consumer>, Error> {
    const SELECT: &str = "SELECT owner FROM consumer WHERE name = ?1";
    let mut select = connection.prepare_cached(SELECT).map_err(failed)?;
    let owner = row::one(&mut select, CONSUMER, [name.as_str()], owner)?;
    let Some(owner) = owner else { return Ok(None) };
    Ok(Some(Consumer {
        owner,
        progress: progress(connection, name)?,
        parked: parked(connection, name)?,
    }))
}

/// Every consumer, by name.
pub(super) fn all(connection: &Connection) -> Result<Vec<(ConsumerName, Consumer)>, Error> {
    let select = connection
        .prepare_cached("SELECT name, owner FROM consumer ORDER BY name")
        .map_err(failed)?;
    let named =
        row::all(select, CONSUMER, [], |row| Ok((row.parsed(ConsumerName::parse)?, owner(row)?)))?;
    let whole = |(name, owner)| {
        let (progress, parked) = (progress(connection, &name)?, parked(connection, &name)?);
        Ok((name, Consumer { owner, progress, parked }))
    };
    named.into_iter().map(whole).collect()
}

fn owner(row: &mut Columns<'_>) -> Result<Option<Box<str>>, Error> {
    let Some(owner) = row.get::<Option<Vec<u8>>>()? else { return Ok(None) };
    String::from_utf8(owner).map(|owner| Some(owner.into())).map_err(|_| row.damaged())
}

fn progress(
    connection: &Connection,
    name: &ConsumerName,
) -> Result<BTreeMap<u16, Progress>, Error> {
    const SELECT: &str = "SELECT partition, acknowledged, stream FROM consumer_progress
         WHERE name = ?1 ORDER BY partition";
    let select = connection.prepare_cached(SELECT).map_err(failed)?;
    let all = row::all(select, PROGRESS, [name.as_str()], |row| {
        let partition: u16 = row.get()?;
        let acknowledged = row::count(row.get()?);
        Ok((partition, Progress { acknowledged, stream: row.get::<Option<_>>()?.map(StreamId) }))
    })?;
    Ok(all.into_iter().collect())
}

fn parked(connection: &Connection, name: &ConsumerName) -> Result<Vec<Parked>, Error> {
    const SELECT: &str =
        "SELECT partition, position, event_id, subject_kind, psp_id, subject_id, reason, parked_at, redrive
         FROM parked WHERE consumer = ?1 ORDER BY partition, position";
    let select = connection.prepare_cached(SELECT).map_err(failed)?;
    row::all(select, PARKED, [name.as_str()], |row| {
        let record = ParkedRecord {
            partition: row.get()?,
            position: row.get()?,
            event_id: row.get()?,
            subject_kind: row.get()?,
            psp_id: row.get()?,
            subject_id: row.get()?,
            reason: row.get()?,
            parked_at: row.get()?,
            redrive: row.get()?,
        };
        record.read()
    })
}

/// Writes what differs: an acknowledgement is one row, however many partitions and parked events there are.
pub(super) fn save(
    write: &mut Write<'_>,
    name: &ConsumerName,
    before: Option<&Consumer>,
    after: &Consumer,
) -> Result<(), Error> {
    const UPSERT: &str = "INSERT INTO consumer (name, owner) VALUES (?1, ?2)
         ON CONFLICT (name) DO UPDATE SET owner = excluded.owner";
    if before == Some(after) {
        return Ok(());
    }
    let nobody = Consumer::default();
    let known = before.unwrap_or(&nobody);
    if before.is_none() || known.owner != after.owner {
        let owner = after.owner.as_ref().map(|owner| owner.as_bytes());
        run(write, UPSERT, params![name.as_str(), owner])?;
        let [said, owner] = maybe(owner);
        write.changed.parts(Kind::Consumer, &[b"consumer", name.as_str().as_bytes(), said, owner]);
    }
    save_progress(write, name, &known.progress, &after.progress)?;
    save_parked(write, name, &known.parked, &after.parked)
}

fn save_progress(
    write: &mut Write<'_>,
    name: &ConsumerName,
    before: &BTreeMap<u16, Progress>,
    after: &BTreeMap<u16, Progress>,
) -> Result<(), Error> {
    const DELETE: &str = "DELETE FROM consumer_progress WHERE name = ?1 AND partition = ?2";
    const UPSERT: &str =
        "INSERT OR REPLACE INTO consumer_progress (name, partition, acknowledged, stream)
         VALUES (?1, ?2, ?3, ?4)";
    for partition in before.keys().filter(|partition| !after.contains_key(partition)) {
        run(write, DELETE, params![name.as_str(), partition])?;
        let parts: [&[u8]; 3] =
            [b"no progress", name.as_str().as_bytes(), &partition.to_le_bytes()];
        write.changed.parts(Kind::Consumer, &parts);
    }
    for (partition, progress) in after {
        if before.get(partition) == Some(progress) {
            continue;
        }
        let acknowledged = row::place(progress.acknowledged)?;
        let stream = progress.stream.map(|stream| stream.0);
        run(write, UPSERT, params![name.as_str(), partition, acknowledged, stream])?;
        let [said, stream] = maybe(stream.as_ref().map(<[u8; 16]>::as_slice));
        write.changed.parts(
            Kind::Consumer,
            &[
                b"progress",
                name.as_str().as_bytes(),
                &partition.to_le_bytes(),
                &acknowledged.to_le_bytes(),
                said,
                stream,
            ],
        );
    }
    Ok(())
}

fn save_parked(
    write: &mut Write<'_>,
    name: &ConsumerName,
    before: &[Parked],
    after: &[Parked],
) -> Result<(), Error> {
    const DELETE: &str =
        "DELETE FROM parked WHERE consumer = ?1 AND partition = ?2 AND position = ?3";
    let by_place = |parked: &[Parked]| -> BTreeMap<(u16, u64), Parked> {
        parked.iter().map(|one| ((one.partition, one.position), one.clone())).collect()
    };
    let (before, after) = (by_place(before), by_place(after));
    for place in before.keys().filter(|place| !after.contains_key(place)) {
        let (partition, position) = (place.0, row::place(place.1)?);
        run(write, DELETE, params![name.as_str(), partition, position])?;
        write.changed.parts(
            Kind::Consumer,
            &[
                b"not parked",
                name.as_str().as_bytes(),
                &partition.to_le_bytes(),
                &position.to_le_bytes(),
            ],
        );
    }
    for (place, parked) in &after {
        if before.get(place) != Some(parked) {
            row::place(place.1)?;
            save_one_parked(write, name, &ParkedRecord::of(parked))?;
        }
    }
    Ok(())
}

fn save_one_parked(
    write: &mut Write<'_>,
    name: &ConsumerName,
    record: &ParkedRecord,
) -> Result<(), Error> {
    const UPSERT: &str = "INSERT OR REPLACE INTO parked (
         consumer, partition, position, event_id, subject_kind, psp_id, subject_id, reason, parked_at, redrive)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
    let parameters = params![
        name.as_str(),
        record.partition,
        record.position,
        record.event_id,
        record.subject_kind,
        record.psp_id,
        record.subject_id,
        record.reason,
        record.parked_at,
        record.redrive,
    ];
    run(write, UPSERT, parameters)?;
    let [said, reason] = maybe(record.reason.as_deref());
    write.changed.parts(
        Kind::Consumer,
        &[
            b"parked",
            name.as_str().as_bytes(),
            &record.partition.to_le_bytes(),
            &record.position.to_le_bytes(),
            &record.event_id,
            &record.subject_kind.to_le_bytes(),
            record.psp_id.as_bytes(),
            record.subject_id.as_bytes(),
            said,
            reason,
            &record.parked_at.to_le_bytes(),
            &[u8::from(record.redrive)],
        ],
    );
    Ok(())
}

fn forget(write: &mut Write<'_>, name: &ConsumerName) -> Result<(), Error> {
    for delete in [
        "DELETE FROM parked WHERE consumer = ?1",
        "DELETE FROM consumer_progress WHERE name = ?1",
        "DELETE FROM consumer WHERE name = ?1",
    ] {
        run(write, delete, params![name.as_str()])?;
    }
    write.changed.parts(Kind::Consumer, &[b"forgotten", name.as_str().as_bytes()]);
    Ok(())
}

fn run(write: &Write<'_>, text: &str, parameters: &[&dyn rusqlite::ToSql]) -> Result<(), Error> {
    let mut statement = write.sql.prepare_cached(text).map_err(failed)?;
    statement.execute(parameters).map(drop).map_err(failed)
}

/// Something that may be absent, so that absent and empty differ.
fn maybe(bytes: Option<&[u8]>) -> [&[u8]; 2] {
    match bytes {
        Some(bytes) => [b"some", bytes],
        None => [b"none", b""],
    }
}
