//! A walk through everything, and taking over from another store.

use rusqlite::{Connection, params};

use super::{
    super::{Cursor, Error, Page, Positioned, Takeover, record::EventRecord},
    chain::Kind,
    consumer, event, failed, payment, row,
    standing::{self, Entry},
    token,
    write::Write,
};

/// The next page of a walk.
pub(super) fn page(connection: &Connection, cursor: &Cursor, limit: u32) -> Result<Page, Error> {
    Ok(match cursor {
        Cursor::Payments(behind) => {
            Page::Payments(payment::page(connection, behind.as_ref(), limit)?)
        }
        Cursor::Authorizations(behind) => {
            Page::Authorizations(token::page_authorizations(connection, behind.as_ref(), limit)?)
        }
        Cursor::Tokens(behind) => Page::Tokens(token::page(connection, behind.as_ref(), limit)?),
        Cursor::Events(behind) => Page::Events(event::page(connection, *behind, limit)?),
        Cursor::Consumers => Page::Consumers(consumer::all(connection)?),
    })
}

/// Writes a page of another store's. The first one marks the store, so that it decides nothing until the last.
pub(super) fn fill(write: &mut Write<'_>, page: &Page) -> Result<(), Error> {
    begin(write)?;
    match page {
        Page::Payments(payments) => payment::save(write, payments),
        Page::Authorizations(authorizations) => token::save_authorizations(write, authorizations),
        Page::Tokens(tokens) => token::save(write, tokens),
        Page::Events(events) => events.iter().try_for_each(|event| fill_event(write, event)),
        Page::Consumers(consumers) => consumers.iter().try_for_each(|(name, after)| {
            let before = consumer::load(write.sql, name)?;
            consumer::save(write, name, before.as_ref(), after)
        }),
    }
}

fn fill_event(write: &mut Write<'_>, event: &Positioned) -> Result<(), Error> {
    if event.event.subject.partition(write.partitions) != event.partition {
        let other =
            "an event is of another partition here; both stores need the same number of partitions";
        return Err(Error::Data(other.into()));
    }
    row::place(event.position)?;
    event::put(write, &EventRecord::of(&event.event, event.partition, event.position))
}

/// Ends filling.
pub(super) fn take_over(write: &mut Write<'_>, takeover: &Takeover) -> Result<(), Error> {
    const MOVE: &str = "UPDATE partition_head SET position = ?2, purged = ?3 WHERE partition = ?1";
    const PRESENT: &str =
        "SELECT count(*), min(position), max(position) FROM event WHERE partition = ?1";
    begin(write)?;
    if takeover.heads.len() != usize::from(write.partitions.count()) {
        let other = "the other store has another number of partitions";
        return Err(Error::Data(other.into()));
    }
    for (partition, head) in (0u16..).zip(&takeover.heads) {
        let (position, purged) = (row::place(head.position)?, row::place(head.purged)?);
        let mut present = write.sql.prepare_cached(PRESENT).map_err(failed)?;
        let present = row::one(&mut present, "event", [partition], |row| {
            Ok((row.get::<i64>()?, row.get::<Option<i64>>()?, row.get::<Option<i64>>()?))
        })?;
        let wanted = match position.saturating_sub(purged) {
            0 => (0, None, None),
            count => (count, Some(purged.saturating_add(1)), Some(position)),
        };
        if present != Some(wanted) {
            let missing = format!(
                "partition {partition} ends at {position} and is purged to {purged}, and its events are not all here; fill them first"
            );
            return Err(Error::Data(missing.into()));
        }
        write
            .sql
            .prepare_cached(MOVE)
            .and_then(|mut sql| sql.execute(params![partition, position, purged]))
            .map_err(failed)?;
        let parts: [&[u8]; 3] =
            [&partition.to_le_bytes(), &position.to_le_bytes(), &purged.to_le_bytes()];
        write.changed.parts(Kind::Heads, &parts);
    }
    standing::take_over(write, &takeover.standing, standing::now())
}

/// Refuses a store that is not fresh, and marks one that is.
fn begin(write: &mut Write<'_>) -> Result<(), Error> {
    // nothing is ever deleted of what was decided, events aside, and those leave a head behind
    const DECIDED: &str = "SELECT EXISTS (SELECT 1 FROM payment) OR EXISTS (SELECT 1 FROM grants)
         OR EXISTS (SELECT 1 FROM token) OR EXISTS (SELECT 1 FROM consumer)
         OR EXISTS (SELECT 1 FROM partition_head WHERE position > 0)";
    let get = |entry: Entry| entry.get(write.sql).map_err(failed);
    if get(Entry::Filling)? != 0 {
        return Ok(());
    }
    let decided: bool = write.sql.query_row(DECIDED, [], |row| row.get(0)).map_err(failed)?;
    if decided || get(Entry::TakenOver)? != 0 {
        let full = "this store is in use already; only a fresh one can be filled";
        return Err(Error::Data(full.into()));
    }
    Entry::Filling.set(write.sql, 1).map_err(failed)?;
    write.changed.parts(Kind::Standing, &[b"filling"]);
    Ok(())
}
