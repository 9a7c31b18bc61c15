//! Reads everything there is and compares it with its checksums: what no start and no single read can see.
//!
//! A key that was flipped inside a page makes its row unknown, which looks like a row that never was.

use std::path::Path;

use rusqlite::{Connection, types::ValueRef};

use super::{
    super::{Error, Standing},
    OpenError,
    anchor::{self, Noted},
    chain, connect_reader, event, failed, guard, migrate, opening, payment,
    row::{self, Columns},
    standing::{self, Entry},
    token,
};
use crate::domain::{id::TokenHash, key::Partitions};

/// How often progress is told, in rows.
const TELL_EVERY: u64 = 10_000;
/// More findings than this are not listed: the file is a ruin.
const FINDINGS_MAX: usize = 1_000;

/// How far a long work is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub step: &'static str,
    /// How much of it is done.
    pub done: u64,
    /// How much there is, where that is known.
    pub total: Option<u64>,
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// What is wrong, each with a sentence for people; empty if all is well. At most some hundreds.
    pub findings: Vec<String>,
    /// Rows read.
    pub rows: u64,
    /// Rows of before the checksums: they were read, and nothing tells whether they are what was written.
    pub without_checksum: u64,
    /// Commits whose place in the chain was compared.
    pub commits: u64,
    /// The last commit.
    pub last_commit: u64,
    /// Whether a service runs on it, or the last one did not stop in order.
    pub open_or_stopped_uncleanly: bool,
    /// What holds for the store as a whole.
    pub standing: Standing,
}

/// Checks the database of a running or a stopped store; changes nothing.
pub(super) fn check(path: &Path, progress: &mut dyn FnMut(Progress)) -> Result<Checked, OpenError> {
    let sqlite = |source| opening(path, source);
    if !path.exists() {
        return Err(OpenError::Open {
            path: path.to_owned(),
            source: "there is no such file".into(),
        });
    }
    // before the snapshot: a running service goes on noting commits
    let noted = anchor::read(path)
        .map_err(|source| OpenError::Open { path: path.to_owned(), source: source.into() })?;
    let connection = connect_reader(path).map_err(sqlite)?;
    let partitions = migrate::belongs(&connection, path)?;
    let snapshot = connection.unchecked_transaction().map_err(sqlite)?;
    let mut checked = inspect(&snapshot, path, partitions, progress)?;
    match guard::compare(&snapshot, path, &noted) {
        Ok(()) => {}
        Err(error @ (OpenError::Lost { .. } | OpenError::OtherHistory { .. })) => {
            checked.findings.push(error.to_string());
        }
        Err(error) => return Err(error),
    }
    // a backup has none until it is opened
    let anchored = Entry::Anchored.get(&snapshot).map_err(sqlite)? != 0
        && Entry::RestoredAt.get(&snapshot).map_err(sqlite)? == 0;
    match noted {
        Noted::Damaged => checked.findings.push("its anchor file is damaged".to_owned()),
        Noted::Absent if anchored => checked.findings.push("its anchor file is missing".to_owned()),
        Noted::Absent | Noted::Commit(_) => {}
    }
    Ok(checked)
}

/// The same without the anchor. The caller has a snapshot.
pub(super) fn inspect(
    connection: &Connection,
    path: &Path,
    partitions: Partitions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Checked, OpenError> {
    let sqlite = |source| opening(path, source);
    let broken = |source: Error| OpenError::Open { path: path.to_owned(), source: source.into() };
    let head = chain::head(connection).map_err(sqlite)?;
    let checked = Checked {
        findings: Vec::new(),
        rows: 0,
        without_checksum: 0,
        commits: 0,
        last_commit: row::count(head.id),
        open_or_stopped_uncleanly: Entry::Running.get(connection).map_err(sqlite)? != 0,
        standing: standing::load(connection).map_err(broken)?,
    };
    let mut inspection = Inspection { connection, checked, progress };
    inspection.pages();
    inspection.table("payments", payment::ALL, payment::keyed);
    inspection.table("authorizations", token::ALL_AUTHORIZATIONS, token::keyed_authorization);
    inspection.table("tokens", token::ALL, token::keyed);
    inspection.table("events", event::ALL, |row| {
        let event = event::read(row)?;
        let home = event.event.subject.partition(partitions);
        if home == event.partition { Ok(()) } else { Err(row.damaged()) }
    });
    inspection.places();
    inspection.commits();
    inspection.whole();
    let mut checked = inspection.checked;
    if checked.findings.len() >= FINDINGS_MAX {
        checked.findings.push("there is more than is listed here".to_owned());
    }
    Ok(checked)
}

struct Inspection<'a> {
    connection: &'a Connection,
    checked: Checked,
    progress: &'a mut dyn FnMut(Progress),
}

impl Inspection<'_> {
    fn find(&mut self, finding: String) {
        if self.checked.findings.len() < FINDINGS_MAX {
            self.checked.findings.push(finding);
        }
    }

    fn tell(&mut self, step: &'static str, done: u64) {
        (self.progress)(Progress { step, done, total: None });
    }

    /// SQLite's own look at pages, indexes and references.
    fn pages(&mut self) {
        self.tell("pages", 0);
        let texts = |sql: &str| -> rusqlite::Result<Vec<String>> {
            let mut select = self.connection.prepare(sql)?;
            select.query_map([], |row| row.get(0))?.collect()
        };
        let integrity = texts("PRAGMA integrity_check(100)");
        let references = texts(
            "SELECT 'a row of ' || \"table\" || ' refers to a row that is not there'
             FROM pragma_foreign_key_check LIMIT 100",
        );
        for finding in integrity.unwrap_or_else(|error| vec![error.to_string()]) {
            if finding != "ok" {
                self.find(format!("its pages: {finding}"));
            }
        }
        for finding in references.unwrap_or_else(|error| vec![error.to_string()]) {
            self.find(finding);
        }
    }

    /// Every row of a table.
    fn table<T>(
        &mut self,
        step: &'static str,
        sql: &'static str,
        read: impl Fn(&mut Columns<'_>) -> Result<T, Error>,
    ) {
        if let Err(error) = self.rows(step, sql, read) {
            self.find(format!("{step}: reading ends early: {}", super::super::chain(&error)));
        }
    }

    fn rows<T>(
        &mut self,
        step: &'static str,
        sql: &'static str,
        read: impl Fn(&mut Columns<'_>) -> Result<T, Error>,
    ) -> Result<(), Error> {
        self.tell(step, 0);
        let mut select = self.connection.prepare(sql).map_err(failed)?;
        let checksum = select.column_count().saturating_sub(1);
        let mut rows = select.query([]).map_err(failed)?;
        let mut done = 0u64;
        while let Some(row) = rows.next().map_err(failed)? {
            if read(&mut Columns::new(row, step)).is_err() {
                self.find(format!("{step}: the row {} is not what was written", name(row)));
            }
            if matches!(row.get_ref(checksum), Ok(ValueRef::Null)) {
                self.checked.without_checksum = self.checked.without_checksum.saturating_add(1);
            }
            done = done.saturating_add(1);
            if done.is_multiple_of(TELL_EVERY) {
                self.tell(step, done);
            }
        }
        self.checked.rows = self.checked.rows.saturating_add(done);
        self.tell(step, done);
        Ok(())
    }

    /// Heads against events, and consumers against heads.
    fn places(&mut self) {
        const GAPS: &str = "SELECT 'partition ' || partition_head.partition || ' ends at event '
             || partition_head.position || ' and is purged to ' || purged || ', and has ' || count(event.position)
             || ' events from ' || coalesce(min(event.position), 0) || ' to ' || coalesce(max(event.position), 0)
             FROM partition_head LEFT JOIN event ON event.partition = partition_head.partition
             GROUP BY partition_head.partition
             HAVING count(event.position) <> partition_head.position - purged
             OR (count(event.position) > 0
             AND (min(event.position) <> purged + 1 OR max(event.position) <> partition_head.position))";
        self.tell("places", 0);
        let gaps = self.connection.prepare(GAPS).and_then(|mut select| {
            select.query_map([], |row| row.get(0))?.collect::<Result<Vec<String>, _>>()
        });
        for finding in gaps.unwrap_or_else(|error| vec![error.to_string()]) {
            self.find(finding);
        }
        match guard::ahead(self.connection) {
            Ok(ahead) => ahead.into_iter().for_each(|finding| self.find(finding)),
            Err(error) => self.find(error.to_string()),
        }
        if let Err(error) = super::consumer::all(self.connection) {
            self.find(format!("consumers: {}", super::super::chain(&error)));
        }
    }

    /// The chain over commits, as far as its rows are kept.
    fn commits(&mut self) {
        self.tell("commits", 0);
        match chain::walk(self.connection) {
            Ok(Ok(commits)) => self.checked.commits = commits,
            Ok(Err(id)) => {
                self.find(format!("commit {id} does not continue the chain of the commits before"));
            }
            Err(error) => self.find(format!("the chain of commits: {error}")),
        }
    }
}

impl Inspection<'_> {
    /// What holds for the store as a whole, which no row's checksum covers.
    fn whole(&mut self) {
        self.tell("standing", 0);
        match standing::unexplained(self.connection) {
            Ok(findings) => findings.into_iter().for_each(|finding| self.find(finding)),
            Err(error) => self.find(format!("its journal: {}", super::super::chain(&error))),
        }
        match migrate::lacks_primary(self.connection) {
            Ok(false) => {}
            Ok(true) => self.find("none of its token hash keys is primary".to_owned()),
            Err(error) => self.find(format!("its token hash keys: {error}")),
        }
    }
}

/// A row's name for people: its first two columns are its key, or the hash that begins it.
fn name(row: &rusqlite::Row<'_>) -> String {
    let column = |place: usize| match row.get_ref(place) {
        Ok(ValueRef::Text(text)) => String::from_utf8_lossy(text).escape_debug().to_string(),
        Ok(ValueRef::Integer(number)) => number.to_string(),
        Ok(ValueRef::Blob(blob)) => TokenHash::prefix(blob),
        Ok(ValueRef::Null | ValueRef::Real(_)) | Err(_) => "?".to_owned(),
    };
    format!("{} {}", column(0), column(1))
}
