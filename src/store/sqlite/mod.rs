//! The embedded store: SQLite, one writer thread that commits batches, readers beside it.
//!
//! WAL with `synchronous=FULL`: a commit is on the disk before anybody sees it, so a reader's snapshot holds durable
//! commits only. Only the writer checkpoints, while nothing waits for it. An I/O error ends the process at once: after
//! a failed fsync nobody knows what the disk holds, and trying again would only hide it.

mod anchor;
mod backup;
mod chain;
mod check;
mod consumer;
mod event;
mod guard;
mod lock;
mod lookup;
mod migrate;
mod payment;
mod row;
mod standing;
mod takeover;
mod token;
mod write;
mod writer;

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use rusqlite::{Connection, ErrorCode, OpenFlags, config::DbConfig, ffi};
use tokio::{sync::Semaphore, task};

pub use self::{
    backup::BackupError,
    check::{Checked, Progress},
};
use self::{lock::Lock, standing::Entry, write::Write};

use super::{
    Backlog, Batch, Cursor, Error, Follow, Granted, Head, Outstanding, OutstandingPayment, Page,
    Pending, Place, Positioned, Standing, StandingChange, Store, Takeover,
};
use crate::domain::{
    consumer::{Consumer, ConsumerName},
    key::{Partitions, PaymentKey, TokenKey},
    payment::Payment,
    time::Timestamp,
};

/// Readers kept open; more are opened while more are needed, and closed again.
const READERS_KEPT: usize = 4;
/// Reads at once: a burst of them must not take every blocking thread and file handle.
const READS_MAX: usize = 32;
/// How long reads that are under way have to end when the store closes.
const READS_END: Duration = Duration::from_secs(1);

/// Why a database file cannot be used. Always fatal at start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder is not there or not writable, or the file is not readable.
    #[error("cannot open the database {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// What SQLite or the system said.
        #[source]
        source: super::Source,
    },
    /// Another process has it.
    #[error(
        "the database {0} is in use by another process; one process at a time may have it open"
    )]
    InUse(PathBuf),
    /// It is not SQLite, or damaged.
    #[error("the file {path} is not a sound database; restore it from a backup, do not delete it")]
    NotSound {
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        #[source]
        source: super::Source,
    },
    /// It belongs to some other program.
    #[error("the file {0} is a database of another program")]
    Foreign(PathBuf),
    /// It was written by a newer version.
    #[error(
        "the database {path} has schema {schema}, which needs a newer version of this program (this one reads up to {known})"
    )]
    TooNew {
        /// The file.
        path: PathBuf,
        /// The least schema version a program must know to use the file.
        schema: u32,
        /// The newest one this program knows.
        known: u32,
    },
    /// It was written by an older version, and only a start may bring it up to date.
    #[error(
        "the database {path} has schema {schema} and this command needs {known}; start this version of the service on it once, which brings it up to date"
    )]
    TooOld {
        /// The file.
        path: PathBuf,
        /// What it has.
        schema: u32,
        /// What the command needs.
        known: u32,
    },
    /// The last of its commits are gone.
    #[error(
        "the database {path} ends with commit {last}, and its anchor notes commit {noted}: commits that may have been answered are lost (its log is missing, cut or damaged, or it is an older copy); keep a copy of all its files, then put back a complete set, or, if there is none, move {path}.anchor away: the store then opens as suspect and decides nothing until `reconcile`"
    )]
    Lost {
        /// The file.
        path: PathBuf,
        /// The last commit it has.
        last: i64,
        /// The last commit it had.
        noted: i64,
    },
    /// Database and anchor are not of one history.
    #[error(
        "the database {path} and its anchor differ about commit {noted}, so they are not of the same moment or not of the same store; keep a copy of all files, then put back a complete set, or, if there is none, move {path}.anchor away: the store then opens as suspect and decides nothing until `reconcile`"
    )]
    OtherHistory {
        /// The file.
        path: PathBuf,
        /// The last commit of the anchor.
        noted: i64,
    },
    /// It was made with another number of partitions.
    #[error(
        "the database {path} has {found} partitions and the settings say {wanted}; the number is fixed at the first start, so set store.partitions = {found}"
    )]
    Partitions {
        /// The file.
        path: PathBuf,
        /// What it has.
        found: u16,
        /// What was asked for.
        wanted: u16,
    },
    /// A hash key that stored tokens need is not in the ring.
    #[error(
        "the database {path} holds tokens hashed with a key (fingerprint {fingerprint}) that tokens.hash_key_files lacks; without it every such token would look unknown, so put the key back"
    )]
    HashKeyMissing {
        /// The file.
        path: PathBuf,
        /// First hex digits of the key's fingerprint.
        fingerprint: String,
    },
}

/// The embedded store.
pub struct Sqlite {
    path: PathBuf,
    partitions: Partitions,
    writer: writer::Writer,
    lookups: lookup::Lookups,
    /// For everything else that is read.
    readers: Arc<Mutex<Vec<Connection>>>,
    /// Reads at once.
    reading: Arc<Semaphore>,
    stopped_uncleanly: bool,
    /// Held as long as the store is open: one process at a time.
    _lock: Lock,
}

/// Fingerprints of the token hash keys, primary first.
pub type HashKeyFingerprints = Vec<[u8; 16]>;

impl Sqlite {
    /// Opens the database, makes it if it is not there, and brings its schema up to date.
    ///
    /// `hash_keys` are the fingerprints of the configured ring; answers which of them is primary.
    pub fn open(
        path: &Path,
        partitions: Partitions,
        hash_keys: &HashKeyFingerprints,
    ) -> Result<(Self, usize), OpenError> {
        let sqlite = |source| opening(path, source);
        let lock = Lock::take(path)?;
        make(path)?;
        let mut connection = connect(path).map_err(sqlite)?;
        // a database that is refused keeps its log, in which people may look for what is lost
        keep_log(&connection, true).map_err(sqlite)?;
        if migrate::has_chain(&connection).map_err(sqlite)? {
            guard::examine(&connection, path)?;
        }
        migrate::run(&mut connection, path, partitions)?;
        let doubt = guard::examine(&connection, path)?;
        make_durable(&connection, path)?;
        keep_log(&connection, false).map_err(sqlite)?;
        let anchor = guard::moor(&mut connection, path, partitions, doubt)?;
        let primary = migrate::admit_hash_keys(&mut connection, path, hash_keys)?;
        let stopped_uncleanly = Entry::Running.get(&connection).map_err(sqlite)? != 0;
        Entry::Running.set(&connection, 1).map_err(sqlite)?;
        let desk = writer::Desk::new(path, connection, partitions, anchor);
        let writer = writer::Writer::start(desk)
            .map_err(|source| OpenError::Open { path: path.to_owned(), source: source.into() })?;
        let lookups = lookup::Lookups::start(path)
            .map_err(|source| OpenError::Open { path: path.to_owned(), source: source.into() })?;
        let (readers, reading) = (Arc::default(), Arc::new(Semaphore::new(READS_MAX)));
        let path = path.to_owned();
        let store = Self {
            path,
            partitions,
            writer,
            lookups,
            readers,
            reading,
            stopped_uncleanly,
            _lock: lock,
        };
        Ok((store, primary))
    }

    /// Whether the process that had it open before did not close it: it was killed, or the machine stopped. Nothing is
    /// lost by that; it is the time to [`check`](Self::check) what no start can see.
    pub fn stopped_uncleanly(&self) -> bool {
        self.stopped_uncleanly
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for the writer to end: everything accepted before is committed or refused when this returns.
    pub fn close(&self) {
        // the last connection to close takes the WAL with it, and that should be the writer's
        self.reading.close();
        self.lookups.stop();
        let patience = Instant::now() + READS_END;
        while self.reading.available_permits() < READS_MAX && Instant::now() < patience {
            thread::sleep(Duration::from_millis(1));
        }
        self.readers.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.writer.stop();
    }

    /// Ends onboarding in a database that a running service may have open: it notices with its next commit.
    pub fn complete_import_of(path: &Path) -> Result<(), OpenError> {
        Self::change_standing_of(path, &StandingChange::ImportComplete).map(drop)
    }

    /// Changes the standing of a database that a running service may have open: it notices with its next commit.
    pub fn change_standing_of(path: &Path, change: &StandingChange) -> Result<Standing, OpenError> {
        if !path.exists() {
            let missing = "there is no such file; the service makes it at its first start";
            return Err(OpenError::Open { path: path.to_owned(), source: missing.into() });
        }
        let sqlite = |source| opening(path, source);
        let mut connection = connect(path).map_err(sqlite)?;
        let partitions = migrate::belongs(&connection, path)?;
        // while no service runs, nobody has looked yet whether all commits are here: a copy must become suspect before
        // it can be reconciled
        let _lock = match Lock::take(path) {
            Ok(lock) => {
                keep_log(&connection, true).map_err(sqlite)?;
                let doubt = guard::examine(&connection, path)?;
                make_durable(&connection, path)?;
                keep_log(&connection, false).map_err(sqlite)?;
                guard::moor(&mut connection, path, partitions, doubt)?;
                Some(lock)
            }
            Err(OpenError::InUse(_)) => None,
            Err(error) => return Err(error),
        };
        let change = |write: &mut Write<'_>| standing::change(write, change, standing::now());
        let written = write::transaction(&mut connection, partitions, change)
            .map_err(|source| OpenError::Open { path: path.to_owned(), source: source.into() })?;
        Ok(written.answer)
    }

    /// Copies the database of a running or a stopped store to a file that is not there yet; never overwrites one.
    ///
    /// The copy is one file, durable and checked when this returns. Opened as a store it is suspect until it is
    /// reconciled, because it lacks what was decided since. A long copy keeps the log of a busy service long.
    pub fn backup(
        path: &Path,
        to: &Path,
        mut progress: impl FnMut(Progress),
    ) -> Result<(), BackupError> {
        backup::backup(path, to, &mut progress)
    }

    /// The fingerprint, for people, of a key that tokens of the database are hashed with and that a ring lacks: with it
    /// the database is of no use.
    pub fn missing_hash_key(
        path: &Path,
        ring: &HashKeyFingerprints,
    ) -> Result<Option<String>, OpenError> {
        let sqlite = |source| opening(path, source);
        let connection = connect_reader(path).map_err(sqlite)?;
        migrate::missing_hash_key(&connection, ring).map_err(sqlite)
    }

    /// Reads everything in the database of a running or a stopped store and compares it with its checksums, the chain of
    /// commits and the anchor; changes nothing. A long check keeps the log of a busy service long.
    pub fn check(path: &Path, mut progress: impl FnMut(Progress)) -> Result<Checked, OpenError> {
        check::check(path, &mut progress)
    }

    /// The schema of a database and the one this program knows; 0 for none. Changes nothing.
    pub fn schema(path: &Path) -> Result<(u32, u32), OpenError> {
        if !path.exists() {
            return Ok((0, migrate::newest()));
        }
        let connection = connect_reader(path).map_err(|source| opening(path, source))?;
        migrate::schema(&connection, path)
    }

    /// Runs a query on a reader's snapshot taken now.
    async fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let permit = Arc::clone(&self.reading).acquire_owned().await.map_err(|_| Error::Closed)?;
        let readers = Arc::clone(&self.readers);
        let path = self.path.clone();
        let run = move || {
            // held to the end of the work, also if nobody waits for it any more
            let _permit = permit;
            let kept = readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let connection = match kept {
                Some(connection) => connection,
                None => connect_reader(&path).map_err(failed)?,
            };
            let answer = query(&connection)
                .map_err(|error| unless_disk_failed(error, &path, During::Commit));
            let mut readers = readers.lock().unwrap_or_else(PoisonError::into_inner);
            if readers.len() < READERS_KEPT {
                readers.push(connection);
            }
            answer
        };
        task::spawn_blocking(run).await.unwrap_or(Err(Error::Closed))
    }

    /// The same for several queries, all of them on one snapshot.
    async fn snapshot<T: Send + 'static>(
        &self,
        queries: impl FnOnce(&Connection) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.read(|connection| {
            let snapshot = connection.unchecked_transaction().map_err(failed)?;
            queries(&snapshot)
        })
        .await
    }
}

impl Drop for Sqlite {
    /// The lock must not go before the writer does: whoever opens the store next would meet it.
    fn drop(&mut self) {
        self.close();
    }
}

impl Store for Sqlite {
    fn partitions(&self) -> Partitions {
        self.partitions
    }

    fn commit(&self, batch: Box<dyn Batch>) -> Pending<'_, (Box<dyn Batch>, Result<(), Error>)> {
        Box::pin(self.writer.commit(batch))
    }

    fn payment(&self, key: PaymentKey) -> Pending<'_, Result<Option<Payment>, Error>> {
        Box::pin(self.lookups.payment(key))
    }

    fn token(&self, keys: Vec<TokenKey>) -> Pending<'_, Result<Option<Granted>, Error>> {
        Box::pin(self.lookups.token(keys))
    }

    fn lanes(&self) -> usize {
        1
    }

    fn system(&self) -> &'static str {
        "sqlite"
    }

    fn shared(&self) -> bool {
        false
    }

    fn heads(&self) -> Pending<'_, Result<Vec<Head>, Error>> {
        Box::pin(self.read(event::heads))
    }

    fn events(
        &self,
        behind: Vec<Place>,
        limit: u32,
    ) -> Pending<'_, Result<Vec<Positioned>, Error>> {
        Box::pin(self.read(move |connection| event::load(connection, &behind, limit)))
    }

    fn follow(&self, name: ConsumerName, mut decide: Follow) -> Pending<'_, Result<(), Error>> {
        Box::pin(self.writer.run(move |write| consumer::follow(write, &name, &mut decide)))
    }

    fn consumers(&self) -> Pending<'_, Result<Vec<(ConsumerName, Consumer)>, Error>> {
        Box::pin(self.snapshot(consumer::all))
    }

    fn standing(&self) -> Pending<'_, Result<Standing, Error>> {
        Box::pin(self.snapshot(standing::load))
    }

    fn change_standing(&self, change: StandingChange) -> Pending<'_, Result<Standing, Error>> {
        Box::pin(self.writer.run(move |write| standing::change(write, &change, standing::now())))
    }

    fn backlog(&self, kind: Outstanding) -> Pending<'_, Result<Backlog, Error>> {
        Box::pin(self.read(move |connection| payment::backlog(connection, kind)))
    }

    fn outstanding(
        &self,
        kind: Outstanding,
        limit: u32,
    ) -> Pending<'_, Result<Vec<OutstandingPayment>, Error>> {
        Box::pin(self.read(move |connection| payment::outstanding(connection, kind, limit)))
    }

    fn purge(
        &self,
        upto: Vec<Place>,
        before: Timestamp,
        limit: u32,
    ) -> Pending<'_, Result<u64, Error>> {
        Box::pin(self.writer.run(move |write| event::purge(write, &upto, before, limit)))
    }

    fn page(&self, cursor: Cursor, limit: u32) -> Pending<'_, Result<Page, Error>> {
        Box::pin(self.snapshot(move |connection| takeover::page(connection, &cursor, limit)))
    }

    fn fill(&self, page: Page) -> Pending<'_, Result<(), Error>> {
        Box::pin(self.writer.run(move |write| takeover::fill(write, &page)))
    }

    fn take_over(&self, takeover: Takeover) -> Pending<'_, Result<(), Error>> {
        Box::pin(self.writer.run(move |write| takeover::take_over(write, &takeover)))
    }
}

/// Brings everything that can be read onto the disk, before any of it is answered from.
///
/// A process that was killed between writing the WAL and syncing it leaves commits that recovery reads back from the
/// page cache and a power loss would still take. A repeat answered from them would be a SUCCESS that can vanish.
fn make_durable(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let checkpoint = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0));
    let busy: i64 = checkpoint.map_err(|source| opening(path, source))?;
    if busy == 0 {
        return Ok(());
    }
    // somebody reads it, a backup perhaps, and the log cannot be moved away under them: then it is synced where it is
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    let sync = |name: &Path| File::open(name).and_then(|file| file.sync_all());
    let synced = sync(Path::new(&log)).and_then(|()| sync(path));
    synced.map_err(|source| OpenError::Open { path: path.to_owned(), source: source.into() })
}

/// Makes the file, if it is not there, readable by its owner only: SQLite's own files beside it get the same mode.
fn make(path: &Path) -> Result<(), OpenError> {
    let mut options = File::options();
    options.create(true).truncate(false).write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let failed =
        |source: std::io::Error| OpenError::Open { path: path.to_owned(), source: source.into() };
    options.open(path).map(drop).map_err(failed)
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    settle(&connection)?;
    if migrate::is_foreign(&connection)? {
        // not touched: even the change to WAL would be one
        return Ok(connection);
    }
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    Ok(connection)
}

/// Whether the log stays when the last connection closes; else it is moved into the database and removed.
fn keep_log(connection: &Connection, keep: bool) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, keep).map(drop)
}

fn connect_reader(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    settle(&connection)?;
    Ok(connection)
}

fn settle(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.set_prepared_statement_cache_capacity(64);
    connection.pragma_update(None, "trusted_schema", false)
}

fn opening(path: &Path, source: rusqlite::Error) -> OpenError {
    let path = path.to_owned();
    match source.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            OpenError::NotSound { path, source: source.into() }
        }
        _ => OpenError::Open { path, source: source.into() },
    }
}

/// What a failure before COMMIT means.
fn failed(source: rusqlite::Error) -> Error {
    match source.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            Error::Damaged("database page")
        }
        Some(ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch | ErrorCode::TooBig) => {
            Error::Data(source.into())
        }
        _ => Error::Unavailable(source.into()),
    }
}

/// What an I/O error came in the middle of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum During {
    /// The log is written, then synced: a sync that failed leaves a commit of which nobody knows.
    Commit,
    /// Everything was synced before, and is done again if it does not come to its end.
    Checkpoint,
}

/// Gives an error back, unless it says that the disk failed: then it does not return.
fn unless_disk_failed(error: Error, path: &Path, during: During) -> Error {
    let (Error::Unavailable(source) | Error::CommitUnknown(source)) = &error else { return error };
    let Some(source) = source.downcast_ref::<rusqlite::Error>() else { return error };
    if !disk_failed(source) {
        return error;
    }
    // a file system that became read-only refuses a write and forgets nothing that was synced before
    let code = source.sqlite_error().map(|error| error.extended_code);
    let harmless = during == During::Checkpoint || code == Some(ffi::SQLITE_IOERR_WRITE);
    if harmless && anchor::is_read_only(path) {
        return Error::Unavailable("the disk is read-only".into());
    }
    die(source)
}

/// Whether an I/O error is the disk's. The index of the WAL is shared memory beside the database: where it cannot grow,
/// the disk is full, and nothing is lost.
fn disk_failed(source: &rusqlite::Error) -> bool {
    let shared_memory = [
        ffi::SQLITE_IOERR_SHMOPEN,
        ffi::SQLITE_IOERR_SHMSIZE,
        ffi::SQLITE_IOERR_SHMLOCK,
        ffi::SQLITE_IOERR_SHMMAP,
        ffi::SQLITE_IOERR_NOMEM,
        ffi::SQLITE_IOERR_BLOCKED,
    ];
    let Some(error) = source.sqlite_error() else { return false };
    error.code == ErrorCode::SystemIoFailure && !shared_memory.contains(&error.extended_code)
}

/// Ends the process: the disk failed, and an answer given from here on might not be true.
fn die(source: &rusqlite::Error) -> ! {
    tracing::error!(error = %source, "the disk failed under the database; stopping at once, nothing unanswered is lost");
    std::process::abort()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_read_that_is_under_way_ends_before_the_store_closes_which_leaves_one_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("state.db");
        let (store, _) = Sqlite::open(&file, Partitions::DEFAULT, &vec![[1; 16]]).unwrap();
        let store = Arc::new(store);
        let (begun, has_begun) = mpsc::channel();
        let reads = Arc::clone(&store);
        let read = tokio::spawn(async move {
            let slow = move |connection: &Connection| {
                let count =
                    connection.query_row("SELECT count(*) FROM payment", [], |row| row.get(0));
                begun.send(()).unwrap();
                thread::sleep(Duration::from_millis(200));
                count.map_err(failed)
            };
            reads.read::<i64>(slow).await
        });
        task::spawn_blocking(move || has_begun.recv()).await.unwrap().unwrap();
        assert!(dir.path().join("state.db-wal").exists());
        let closes = Arc::clone(&store);
        task::spawn_blocking(move || closes.close()).await.unwrap();
        assert!(!dir.path().join("state.db-wal").exists());
        assert_eq!(read.await.unwrap().unwrap(), 0);
        assert!(matches!(store.read(|_| Ok(())).await, Err(Error::Closed)));
    }
}
