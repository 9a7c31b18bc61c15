//! Events as rows, and the heads of their partitions.

use rusqlite::{Connection, named_params, params};

use super::{
    super::{Error, Head, Place, Positioned, record::EventRecord},
    failed,
    row::Columns,
};
use crate::domain::{event::Event, key::Partitions};

const TABLE: &str = "event";

/// Writes events, each at the next position of its partition. The caller holds the write lock.
pub(super) fn append(
    connection: &Connection,
    events: &[Event],
    partitions: Partitions,
) -> rusqlite::Result<()> {
    const NEXT: &str =
        "UPDATE partition_head SET position = position + 1 WHERE partition = ?1 RETURNING position";
    if events.is_empty() {
        return Ok(());
    }
    let mut next = connection.prepare_cached(NEXT)?;
    for event in events {
        let partition = event.subject.partition(partitions);
        let position: i64 = next.query_row(params![partition], |row| row.get(0))?;
        insert(connection, &EventRecord::of(event, partition, number(position)))?;
    }
    Ok(())
}

fn insert(connection: &Connection, record: &EventRecord) -> rusqlite::Result<()> {
    const INSERT: &str = "INSERT INTO event (partition, position, kind, psp_id, subject_id, acquirer_id, amount, currency,
         cause, decided_at, result, pass_through_info, trace)
         VALUES (:partition, :position, :kind, :psp_id, :subject_id, :acquirer_id, :amount, :currency,
         :cause, :decided_at, :result, :pass_through_info, :trace)";
    connection.prepare_cached(INSERT)?.execute(named_params! {
        ":partition": record.partition,
        ":position": record.position,
        ":kind": record.kind,
        ":psp_id": record.psp_id,
        ":subject_id": record.subject_id,
        ":acquirer_id": record.acquirer_id,
        ":amount": record.amount,
        ":currency": record.currency,
        ":cause": record.cause,
        ":decided_at": record.decided_at,
        ":result": record.result,
        ":pass_through_info": record.pass_through_info,
        ":trace": record.trace,
    })?;
    Ok(())
}

pub(super) fn load(
    connection: &Connection,
    behind: &[Place],
    limit: u32,
) -> Result<Vec<Positioned>, Error> {
    const SELECT: &str =
        "SELECT partition, position, kind, psp_id, subject_id, acquirer_id, amount, currency,
         cause, decided_at, result, pass_through_info, trace
         FROM event WHERE partition = ?1 AND position > ?2 ORDER BY position LIMIT ?3";
    let mut select = connection.prepare_cached(SELECT).map_err(failed)?;
    let mut events = Vec::new();
    for place in behind {
        let position = i64::try_from(place.position).unwrap_or(i64::MAX);
        let mut rows = select.query(params![place.partition, position, limit]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            events.push(read(Columns::new(row, TABLE))?);
        }
    }
    Ok(events)
}

fn read(mut row: Columns<'_>) -> Result<Positioned, Error> {
    EventRecord {
        partition: row.get()?,
        position: row.get()?,
        kind: row.get()?,
        psp_id: row.get()?,
        subject_id: row.get()?,
        acquirer_id: row.get()?,
        amount: row.get()?,
        currency: row.get()?,
        cause: row.get()?,
        decided_at: row.get()?,
        result: row.get()?,
        pass_through_info: row.get()?,
        trace: row.get()?,
    }
    .read()
}

pub(super) fn heads(connection: &Connection) -> Result<Vec<Head>, Error> {
    const SELECT: &str = "SELECT position FROM partition_head ORDER BY partition";
    let mut select = connection.prepare_cached(SELECT).map_err(failed)?;
    let read = |row: &rusqlite::Row<'_>| Ok(Head { position: number(row.get(0)?), purged: 0 });
    select.query_map([], read).map_err(failed)?.collect::<Result<_, _>>().map_err(failed)
}

/// A count as SQLite keeps it; never negative by a CHECK.
fn number(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}
