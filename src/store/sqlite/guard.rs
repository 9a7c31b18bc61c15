//! What is asked of a database before anything is answered from it: are these all of its commits?

use std::path::Path;

use rusqlite::{Connection, OptionalExtension as _};

use super::{
    super::{Error, StandingChange},
    OpenError,
    anchor::{self, Anchor, Noted},
    chain, failed, make_durable, opening, row,
    standing::{self, Entry},
    write,
};
use crate::domain::{key::Partitions, time::Timestamp};

/// Refuses a database that has lost commits; answers why it is suspect, if it is for its files.
///
/// It changes nothing, so that whoever looks for what was lost finds every file as it was.
pub(super) fn examine(connection: &Connection, path: &Path) -> Result<Option<String>, OpenError> {
    let noted = anchor::read(path)
        .map_err(|source| OpenError::Open { path: path.to_owned(), source: source.into() })?;
    let sqlite = |source| opening(path, source);
    let snapshot = connection.unchecked_transaction().map_err(sqlite)?;
    compare(&snapshot, path, &noted)?;
    if let Some(at) = restored(&snapshot).map_err(sqlite)? {
        let at = date(at);
        return Ok(Some(format!("it is the backup of {at}, and may lack what was decided since")));
    }
    let anchored = Entry::Anchored.get(&snapshot).map_err(sqlite)? != 0;
    let doubt = match noted {
        Noted::Absent if anchored => {
            "it stands without its anchor file, so it is a copy, and may lack what was decided since"
        }
        // not refused: people have to see what is there, and nothing is decided meanwhile
        Noted::Damaged if anchored => {
            "its anchor file is damaged, so that nothing tells whether commits are lost"
        }
        // one that was never finished is as good as none
        Noted::Absent | Noted::Damaged | Noted::Commit(_) => {
            return ahead(&snapshot).map_err(sqlite);
        }
    };
    Ok(Some(doubt.to_owned()))
}

/// Compares chain and anchor.
pub(super) fn compare(
    connection: &Connection,
    path: &Path,
    noted: &Noted,
) -> Result<(), OpenError> {
    let Noted::Commit(noted) = noted else { return Ok(()) };
    let sqlite = |source| opening(path, source);
    let head = chain::head(connection).map_err(sqlite)?;
    if noted.id > head.id {
        return Err(OpenError::Lost { path: path.to_owned(), last: head.id, noted: noted.id });
    }
    let hash: Option<[u8; 32]> = connection
        .query_row("SELECT hash FROM chain WHERE id = ?1", [noted.id], |row| row.get(0))
        .optional()
        .map_err(sqlite)?;
    if hash == Some(noted.hash) {
        return Ok(());
    }
    Err(OpenError::OtherHistory { path: path.to_owned(), noted: noted.id })
}

/// A consumer that is told to be further than its partition: an event was acknowledged that is not here.
pub(super) fn ahead(connection: &Connection) -> rusqlite::Result<Option<String>> {
    const AHEAD: &str = "SELECT name, partition, acknowledged, position
         FROM consumer_progress JOIN partition_head USING (partition)
         WHERE acknowledged > position ORDER BY name, partition LIMIT 1";
    let tell = |row: &rusqlite::Row<'_>| {
        let (name, partition): (String, u16) = (row.get(0)?, row.get(1)?);
        let (acknowledged, position): (i64, i64) = (row.get(2)?, row.get(3)?);
        Ok(format!(
            "consumer {name} acknowledged event {acknowledged} of partition {partition}, which ends at {position}"
        ))
    };
    connection.query_row(AHEAD, [], tell).optional()
}

/// When the backup was made that this database is, if it is one.
fn restored(connection: &Connection) -> rusqlite::Result<Option<Timestamp>> {
    let at = Entry::RestoredAt.get(connection)?;
    Ok((at != 0).then_some(Timestamp { unix_ms: at }))
}

fn date(at: Timestamp) -> String {
    jiff::Timestamp::from_millisecond(at.unix_ms)
        .map_or_else(|_| format!("{} ms", at.unix_ms), |at| at.to_string())
}

/// Makes a doubt durable, and the anchor once that is.
pub(super) fn moor(
    connection: &mut Connection,
    path: &Path,
    partitions: Partitions,
    doubt: Option<String>,
) -> Result<Anchor, OpenError> {
    let storing = |source: Error| {
        let path = path.to_owned();
        if matches!(source, Error::Damaged(_)) {
            return OpenError::NotSound { path, source: source.into() };
        }
        OpenError::Open { path, source: source.into() }
    };
    if let Some(why) = doubt {
        tracing::warn!(why, "the store is suspect: nothing is decided until `reconcile`");
        let change = StandingChange::Suspect(why);
        write::transaction(connection, partitions, |write| {
            standing::change(write, &change, standing::now()).map(drop)
        })
        .map_err(storing)?;
    }
    let sqlite = |source| opening(path, source);
    let head = chain::head(connection).map_err(sqlite)?;
    let anchor = Anchor::moor(path, head)
        .map_err(|source| OpenError::Open { path: path.to_owned(), source: source.into() })?;
    Entry::RestoredAt.set(connection, 0).map_err(sqlite)?;
    if Entry::Anchored.get(connection).map_err(sqlite)? == 0 {
        // from here on a database without an anchor is a copy, and one without its log too
        Entry::Anchored.set(connection, 1).map_err(sqlite)?;
        make_durable(connection, path)?;
    }
    Ok(anchor)
}

/// Moves consumers back that are ahead of the head: in a new epoch they would never see what is decided up to there.
pub(super) fn bring_back(write: &mut write::Write<'_>) -> Result<(), Error> {
    const BACK: &str = "UPDATE consumer_progress SET acknowledged =
         (SELECT position FROM partition_head WHERE partition_head.partition = consumer_progress.partition)
         WHERE acknowledged >
         (SELECT position FROM partition_head WHERE partition_head.partition = consumer_progress.partition)
         RETURNING name, partition, acknowledged";
    let back = write.sql.prepare_cached(BACK).map_err(failed)?;
    let moved = row::all(back, "consumer's progress", [], |row| {
        Ok((row.get::<String>()?, row.get::<i64>()?, row.get::<i64>()?))
    })?;
    for (name, partition, acknowledged) in moved {
        let parts: [&[u8]; 4] =
            [b"back", name.as_bytes(), &partition.to_le_bytes(), &acknowledged.to_le_bytes()];
        write.changed.parts(chain::Kind::Consumer, &parts);
    }
    Ok(())
}
