//! Events as rows, and the heads of their partitions.

use std::collections::BTreeMap;

use rusqlite::{Connection, Statement, params};

use super::{
    super::{Error, Head, Place, Positioned, record::EventRecord},
    chain::Kind,
    failed,
    row::{self, Columns},
    write::Write,
};
use crate::domain::{event::Event, time::Timestamp};

const TABLE: &str = "event";

macro_rules! columns {
    () => {
        "partition, position, kind, psp_id, subject_id, acquirer_id, amount, currency,
         cause, decided_at, result, pass_through_info, trace, checksum"
    };
}

macro_rules! insert {
    () => {
        concat!(
            "INTO event (",
            columns!(),
            ") VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)"
        )
    };
}

/// Every row, for [`read`].
pub(super) const ALL: &str = concat!("SELECT ", columns!(), " FROM event");

/// Writes events, each at the next position of its partition.
pub(super) fn append(write: &mut Write<'_>, events: &[Event]) -> Result<(), Error> {
    // where one stands already is no place for another
    const ADD: &str = concat!("INSERT ", insert!());
    const HEAD: &str = "SELECT position FROM partition_head WHERE partition = ?1";
    const MOVE: &str = "UPDATE partition_head SET position = ?2 WHERE partition = ?1";
    if events.is_empty() {
        return Ok(());
    }
    let sql = write.sql;
    let mut add = sql.prepare_cached(ADD).map_err(failed)?;
    // of those partitions that have events; nobody else moves them as long as the transaction lasts
    let mut heads = BTreeMap::<u16, i64>::new();
    let mut head = sql.prepare_cached(HEAD).map_err(failed)?;
    for event in events {
        let partition = event.subject.partition(write.partitions);
        let last = match heads.get(&partition) {
            Some(last) => *last,
            None => head.query_row([partition], |row| row.get(0)).map_err(failed)?,
        };
        let position = last.saturating_add(1);
        let record = EventRecord::of(event, partition, row::count(position));
        insert(&mut add, write, &record)?;
        heads.insert(partition, position);
    }
    let mut advance = sql.prepare_cached(MOVE).map_err(failed)?;
    for (partition, position) in heads {
        advance.execute(params![partition, position]).map_err(failed)?;
    }
    Ok(())
}

/// Writes an event at its place. One that is there already is written again.
pub(super) fn put(write: &mut Write<'_>, record: &EventRecord) -> Result<(), Error> {
    const PUT: &str = concat!("INSERT OR REPLACE ", insert!());
    let mut put = write.sql.prepare_cached(PUT).map_err(failed)?;
    insert(&mut put, write, record)
}

fn insert(
    insert: &mut Statement<'_>,
    write: &mut Write<'_>,
    record: &EventRecord,
) -> Result<(), Error> {
    let checksum = record.checksum();
    let parameters = params![
        record.partition,
        record.position,
        record.kind,
        record.psp_id,
        record.subject_id,
        record.acquirer_id,
        record.amount,
        record.currency,
        record.cause,
        record.decided_at,
        record.result,
        record.pass_through_info,
        record.trace,
        checksum,
    ];
    insert.execute(parameters).map_err(failed)?;
    write.changed.row(Kind::Event, checksum);
    Ok(())
}

pub(super) fn load(
    connection: &Connection,
    behind: &[Place],
    limit: u32,
) -> Result<Vec<Positioned>, Error> {
    const SELECT: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM event WHERE partition = ?1 AND position > ?2 ORDER BY position LIMIT ?3"
    );
    let mut events = Vec::new();
    for place in behind {
        let select = connection.prepare_cached(SELECT).map_err(failed)?;
        let position = i64::try_from(place.position).unwrap_or(i64::MAX);
        events.extend(row::all(select, TABLE, params![place.partition, position, limit], read)?);
    }
    Ok(events)
}

/// The first events behind a place, by partition and position.
pub(super) fn page(
    connection: &Connection,
    behind: Option<Place>,
    limit: u32,
) -> Result<Vec<Positioned>, Error> {
    const SELECT: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM event WHERE (partition, position) > (?1, ?2) ORDER BY partition, position LIMIT ?3"
    );
    let select = connection.prepare_cached(SELECT).map_err(failed)?;
    let behind = behind.unwrap_or(Place { partition: 0, position: 0 });
    let position = i64::try_from(behind.position).unwrap_or(i64::MAX);
    row::all(select, TABLE, params![behind.partition, position, limit], read)
}

pub(super) fn read(row: &mut Columns<'_>) -> Result<Positioned, Error> {
    let record = EventRecord {
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
    };
    row.verify(record.checksum())?;
    record.read()
}

pub(super) fn heads(connection: &Connection) -> Result<Vec<Head>, Error> {
    const SELECT: &str = "SELECT position, purged FROM partition_head ORDER BY partition";
    let select = connection.prepare_cached(SELECT).map_err(failed)?;
    row::all(select, "partition head", [], |row| {
        Ok(Head { position: row::count(row.get()?), purged: row::count(row.get()?) })
    })
}

/// Removes the oldest events of these partitions, up to these places and decided before a time; at most `limit`.
///
/// A partition stops at the first event that may not go, so that what is left has no gap.
pub(super) fn purge(
    write: &mut Write<'_>,
    upto: &[Place],
    before: Timestamp,
    limit: u32,
) -> Result<u64, Error> {
    const OLDEST: &str =
        "SELECT position, decided_at FROM event WHERE partition = ?1 AND position <= ?2
         ORDER BY position LIMIT ?3";
    const DELETE: &str = "DELETE FROM event WHERE partition = ?1 AND position <= ?2";
    const MOVE: &str = "UPDATE partition_head SET purged = ?2 WHERE partition = ?1";
    let mut removed = 0u64;
    for place in upto {
        let left = u64::from(limit).saturating_sub(removed);
        if left == 0 {
            break;
        }
        let position = i64::try_from(place.position).unwrap_or(i64::MAX);
        let left = i64::try_from(left).unwrap_or(i64::MAX);
        let oldest = write.sql.prepare_cached(OLDEST).map_err(failed)?;
        let oldest = row::all(oldest, TABLE, params![place.partition, position, left], |row| {
            Ok((row.get::<i64>()?, row.get::<i64>()?))
        })?;
        let may_go = oldest.iter().take_while(|(_, decided_at)| *decided_at < before.unix_ms);
        let count = may_go.clone().count();
        let Some((last, _)) = may_go.last() else { continue };
        let sql = write.sql;
        let run = |text: &str, parameters: &[&dyn rusqlite::ToSql]| {
            sql.prepare_cached(text).and_then(|mut sql| sql.execute(parameters)).map_err(failed)
        };
        run(DELETE, &[&place.partition, last])?;
        run(MOVE, &[&place.partition, last])?;
        write.changed.parts(Kind::Purge, &[&place.partition.to_le_bytes(), &last.to_le_bytes()]);
        removed = removed.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        event::{EventCause, EventKind},
        id::{PaymentRequestId, PspId},
        key::{Partitions, PaymentKey, Subject},
    };

    fn cancelled(id: &str, unix_ms: i64) -> Event {
        let psp = PspId::parse("psp").unwrap();
        let payment_request = PaymentRequestId::parse(id).unwrap();
        Event {
            kind: EventKind::PaymentCancelled,
            subject: Subject::Payment(PaymentKey { psp, payment_request }),
            acquirer: None,
            cause: EventCause::CancelPayment,
            at: Timestamp { unix_ms },
            result: None,
            pass_through_info: None,
            trace: None,
        }
    }

    #[test]
    fn an_event_is_not_written_over_another_one_that_a_head_does_not_know_of() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(include_str!("schema_1.sql")).unwrap();
        connection.execute_batch(include_str!("schema_2.sql")).unwrap();
        let one = Partitions::new(1).unwrap();
        connection
            .execute("INSERT OR IGNORE INTO partition_head (partition, position) VALUES (0, 0)", [])
            .unwrap();
        let mut write = Write::of(&connection, one);
        append(&mut write, &[cancelled("a", 1), cancelled("b", 2)]).unwrap();
        connection
            .execute("UPDATE partition_head SET position = 1 WHERE partition = 0", [])
            .unwrap();
        let refused = append(&mut write, &[cancelled("c", 3)]);
        assert!(matches!(refused, Err(Error::Data(_))), "{refused:?}");
        let kept = page(&connection, None, 10).unwrap();
        let kept: Vec<_> = kept.iter().map(|it| (it.position, it.event.at.unix_ms)).collect();
        assert_eq!(kept, [(1, 1), (2, 2)]);
    }
}
