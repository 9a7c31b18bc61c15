//! What holds for the store as a whole: its entries in `meta`, and the journal of their changes.

use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, OptionalExtension as _, params};

use super::{
    super::{Batch, Error, Standing, StandingChange},
    chain::Kind,
    failed, guard,
    write::Write,
};
use crate::domain::time::Timestamp;

// the numbers in the column `change`: never change one
const IMPORT_COMPLETE: i64 = 1;
const SUSPECT: i64 = 2;
const RECONCILED: i64 = 3;
const TAKEN_OVER: i64 = 4;

/// An entry of `meta`; one that is not there is 0, unless said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// From 1.
    Epoch,
    /// 1 until the history is imported.
    Onboarding,
    /// The line of the journal that says why the store is suspect.
    Suspect,
    /// 1 while the store is filled from another.
    Filling,
    /// 1 once it took over from another.
    TakenOver,
    /// 1 once an anchor file was made.
    Anchored,
    /// When the backup was made that this database is; 0 once it was noticed.
    RestoredAt,
    /// 1 while a service has it open.
    Running,
}

impl Entry {
    const fn key(self) -> &'static str {
        match self {
            Self::Epoch => "epoch",
            Self::Onboarding => "onboarding",
            Self::Suspect => "suspect",
            Self::Filling => "filling",
            Self::TakenOver => "taken_over",
            Self::Anchored => "anchored",
            Self::RestoredAt => "restored_at",
            Self::Running => "running",
        }
    }

    pub(super) fn get(self, connection: &Connection) -> rusqlite::Result<i64> {
        let value = connection
            .prepare_cached("SELECT value FROM meta WHERE key = ?1")?
            .query_row([self.key()], |row| row.get(0))
            .optional()?;
        Ok(value.unwrap_or(0))
    }

    pub(super) fn set(self, connection: &Connection, value: i64) -> rusqlite::Result<()> {
        connection
            .prepare_cached("INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)")?
            .execute(params![self.key(), value])
            .map(drop)
    }
}

/// What holds. The caller has a snapshot.
pub(super) fn load(connection: &Connection) -> Result<Standing, Error> {
    let get = |entry: Entry| entry.get(connection).map_err(failed);
    Ok(Standing {
        epoch: super::row::count(get(Entry::Epoch)?),
        onboarding: get(Entry::Onboarding)? != 0,
        suspect: suspect(connection)?,
    })
}

/// Why the store is suspect, if it is.
fn suspect(connection: &Connection) -> Result<Option<String>, Error> {
    let line = Entry::Suspect.get(connection).map_err(failed)?;
    if line == 0 {
        return Ok(None);
    }
    let text: Option<Option<Vec<u8>>> = connection
        .prepare_cached("SELECT text FROM journal WHERE id = ?1")
        .and_then(|mut select| select.query_row([line], |row| row.get(0)).optional())
        .map_err(failed)?;
    // suspect it is, even where the line is lost
    Ok(Some(String::from_utf8_lossy(&text.flatten().unwrap_or_default()).into_owned()))
}

/// Refuses a store that must not decide or tell that a token is active; the caller has a snapshot.
pub(super) fn admit(connection: &Connection) -> Result<(), Error> {
    filled(connection)?;
    suspect(connection)?.map_or(Ok(()), |why| Err(Error::Suspect(why)))
}

/// The same for a batch, which may be one that mends a suspect store.
pub(super) fn admit_batch(connection: &Connection, batch: &dyn Batch) -> Result<(), Error> {
    if batch.although_suspect() { filled(connection) } else { admit(connection) }
}

fn filled(connection: &Connection) -> Result<(), Error> {
    if Entry::Filling.get(connection).map_err(failed)? != 0 {
        let filling = "it is being filled from another store; end that with its take-over";
        return Err(Error::Unavailable(filling.into()));
    }
    Ok(())
}

/// Changes what holds, dated in the journal. A change that is there already changes nothing; a new epoch always begins.
pub(super) fn change(
    write: &mut Write<'_>,
    change: &StandingChange,
    now: Timestamp,
) -> Result<Standing, Error> {
    let is = load(write.sql)?;
    let set = |entry: Entry, value| entry.set(write.sql, value).map_err(failed);
    match change {
        StandingChange::ImportComplete if is.onboarding => {
            set(Entry::Onboarding, 0)?;
            note(write, IMPORT_COMPLETE, None, now)?;
        }
        StandingChange::Suspect(why) if is.suspect.is_none() => {
            let line = note(write, SUSPECT, Some(why), now)?;
            Entry::Suspect.set(write.sql, line).map_err(failed)?;
        }
        StandingChange::Reconciled(what) => {
            set(Entry::Epoch, next(is.epoch, now))?;
            set(Entry::Suspect, 0)?;
            guard::bring_back(write)?;
            note(write, RECONCILED, Some(what), now)?;
        }
        StandingChange::ImportComplete | StandingChange::Suspect(_) => {}
    }
    load(write.sql)
}

/// An epoch that never was: a store that is restored a second time from the same backup must not begin the same epoch
/// again, because a consumer that knows the first one would pass over events of the second.
fn next(epoch: u64, now: Timestamp) -> i64 {
    let next = i64::try_from(epoch.saturating_add(1)).unwrap_or(i64::MAX);
    next.max(now.unix_ms / 1_000)
}

/// Takes over another store's.
pub(super) fn take_over(
    write: &mut Write<'_>,
    standing: &Standing,
    now: Timestamp,
) -> Result<(), Error> {
    let set = |entry: Entry, value| entry.set(write.sql, value).map_err(failed);
    set(Entry::Epoch, super::row::place(standing.epoch)?)?;
    set(Entry::Onboarding, i64::from(standing.onboarding))?;
    set(Entry::Filling, 0)?;
    set(Entry::TakenOver, 1)?;
    set(Entry::Suspect, 0)?;
    note(write, TAKEN_OVER, None, now)?;
    if let Some(why) = &standing.suspect {
        let line = note(write, SUSPECT, Some(why), now)?;
        Entry::Suspect.set(write.sql, line).map_err(failed)?;
    }
    Ok(())
}

/// What the journal of its changes does not explain, each with a sentence for people.
///
/// `meta` has no checksums: a flipped bit would end onboarding, or make a suspect store look sound.
pub(super) fn unexplained(connection: &Connection) -> Result<Vec<String>, Error> {
    // what the store was that this one took over from, the journal does not tell
    let (mut epoch, mut onboarding, mut suspect) = (Some(1), Some(1), 0);
    let mut findings = Vec::new();
    let mut select =
        connection.prepare("SELECT id, at, change FROM journal ORDER BY id").map_err(failed)?;
    let mut lines = select.query([]).map_err(failed)?;
    while let Some(line) = lines.next().map_err(failed)? {
        let read = |column| line.get::<_, i64>(column).map_err(failed);
        let (id, at) = (read(0)?, Timestamp { unix_ms: read(1)? });
        match read(2)? {
            IMPORT_COMPLETE => onboarding = Some(0),
            SUSPECT => suspect = id,
            RECONCILED => {
                epoch = epoch.map(|epoch| next(super::row::count(epoch), at));
                suspect = 0;
            }
            TAKEN_OVER => (epoch, onboarding, suspect) = (None, None, 0),
            change => {
                findings.push(format!(
                    "line {id} of its journal tells of change {change}, which is none"
                ));
            }
        }
    }
    for (entry, told) in
        [(Entry::Epoch, epoch), (Entry::Onboarding, onboarding), (Entry::Suspect, Some(suspect))]
    {
        let is = entry.get(connection).map_err(failed)?;
        if let Some(told) = told.filter(|told| *told != is) {
            let name = entry.key();
            findings.push(format!(
                "its standing: {name} is {is}, and the journal of its changes makes it {told}"
            ));
        }
    }
    Ok(findings)
}

/// The end of onboarding of a store that is older than the journal.
pub(super) fn begin_journal(connection: &Connection) -> rusqlite::Result<()> {
    const INSERT: &str = "INSERT INTO journal (at, change)
         SELECT ?1, ?2 FROM meta WHERE key = 'onboarding' AND value = 0";
    connection.execute(INSERT, params![now().unix_ms, IMPORT_COMPLETE]).map(drop)
}

/// A line of the journal; answers its id.
fn note(
    write: &mut Write<'_>,
    change: i64,
    text: Option<&str>,
    now: Timestamp,
) -> Result<i64, Error> {
    const INSERT: &str = "INSERT INTO journal (at, change, text) VALUES (?1, ?2, ?3) RETURNING id";
    let text = text.map(str::as_bytes);
    let id: i64 = write
        .sql
        .prepare_cached(INSERT)
        .and_then(|mut insert| {
            insert.query_row(params![now.unix_ms, change, text], |row| row.get(0))
        })
        .map_err(failed)?;
    let at = now.unix_ms.to_le_bytes();
    write.changed.parts(Kind::Standing, &[&at, &change.to_le_bytes(), text.unwrap_or_default()]);
    Ok(id)
}

/// Now, for the journal.
pub(super) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp { unix_ms: i64::try_from(since.as_millis()).unwrap_or(i64::MAX) }
}
