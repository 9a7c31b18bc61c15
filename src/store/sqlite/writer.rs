//! The one thread that writes: a batch a transaction, checkpoints while nothing waits.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::{
    super::{Batch, Changes, Error, Known, Wanted, record::authorization_key},
    During,
    anchor::Anchor,
    chain, event, failed, payment,
    standing::{self, Entry},
    token, unless_disk_failed,
    write::{self, Write, Written},
};
use crate::domain::key::Partitions;

/// Rows written since the last checkpoint from which a writer that has had nothing to do for [`IDLE`] makes one.
const CHECKPOINT_IDLE_ROWS: usize = 512;
/// From here on it makes one though somebody may wait: the WAL must not grow without bound.
const CHECKPOINT_BUSY_ROWS: usize = 8_192;
/// The engine sends its next batch once the last one is answered, so an empty inbox alone does not mean that nobody waits.
const IDLE: Duration = Duration::from_millis(20);

type Answered = (Box<dyn Batch>, Result<(), Error>);

enum Job {
    Commit(Box<dyn Batch>, oneshot::Sender<Answered>),
    /// Anything else that writes.
    Work(Box<dyn FnOnce(&mut Desk) + Send>),
}

/// The handle of the thread.
pub(super) struct Writer {
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Writer {
    pub(super) fn start(desk: Desk) -> io::Result<Self> {
        let (jobs, inbox) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("sqlite-writer".to_owned())
            .spawn(move || run(desk, &inbox))?;
        Ok(Self { jobs: Mutex::new(Some(jobs)), thread: Mutex::new(Some(thread)) })
    }

    fn send(&self, job: Job) -> Result<(), Job> {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        match jobs.as_ref() {
            Some(jobs) => jobs.send(job).map_err(|mpsc::SendError(job)| job),
            None => Err(job),
        }
    }

    pub(super) async fn commit(&self, batch: Box<dyn Batch>) -> Answered {
        let (answer, answered) = oneshot::channel();
        if let Err(Job::Commit(batch, _)) = self.send(Job::Commit(batch, answer)) {
            return (batch, Err(Error::Closed));
        }
        match answered.await {
            Ok(answered) => answered,
            // the thread is gone with the batch; whether it was committed nobody knows
            Err(_) => (Box::new(Lost), Err(Error::CommitUnknown("the writer is gone".into()))),
        }
    }

    /// Runs work as a transaction of its own.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Write<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (answer, answered) = oneshot::channel();
        // the caller may have gone; what was committed stays so
        let job = move |desk: &mut Desk| drop(answer.send(desk.write(work)));
        if self.send(Job::Work(Box::new(job))).is_err() {
            return Err(Error::Closed);
        }
        let gone = |_| Err(Error::CommitUnknown("the writer is gone".into()));
        answered.await.unwrap_or_else(gone)
    }

    /// Lets the thread finish what was sent, and waits for it.
    pub(super) fn stop(&self) {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the database writer ended in a panic");
        }
    }
}

/// Whoever drops the store without closing it must not leave a thread that writes on while somebody else opens the file.
impl Drop for Writer {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Stands in for a batch that went down with the writer.
struct Lost;

impl Batch for Lost {
    fn wanted(&self) -> Wanted {
        Wanted::default()
    }

    fn decide(&mut self, _: Known) -> Changes {
        Changes::default()
    }

    fn deadline(&self) -> Instant {
        Instant::now()
    }
}

/// What the thread works with.
pub(super) struct Desk {
    path: PathBuf,
    connection: Connection,
    partitions: Partitions,
    anchor: Anchor,
    /// Written since the last checkpoint.
    rows: usize,
}

impl Desk {
    pub(super) fn new(
        path: &Path,
        connection: Connection,
        partitions: Partitions,
        anchor: Anchor,
    ) -> Self {
        Self { path: path.to_owned(), connection, partitions, anchor, rows: 0 }
    }

    /// Runs work as one transaction.
    ///
    /// A panic is one command's defect, and must not end the thread that all others need: the transaction rolls back as
    /// it is unwound, and the engine looks for the culprit by halves.
    fn write<T>(
        &mut self,
        work: impl FnOnce(&mut Write<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let (connection, partitions) = (&mut self.connection, self.partitions);
        let run = AssertUnwindSafe(|| write::transaction(connection, partitions, work));
        let written = catch_unwind(run);
        let written = written.unwrap_or_else(|_| Err(Error::Data("a batch panicked".into())));
        let Written { answer, rows, link } =
            written.map_err(|error| unless_disk_failed(error, &self.path, During::Commit))?;
        self.rows = self.rows.saturating_add(rows);
        if let Some(link) = link {
            self.anchor.note(link);
        }
        Ok(answer)
    }

    /// Moves the WAL into the database, as far as readers let it.
    fn checkpoint(&mut self) {
        self.rows = 0;
        self.anchor.sync();
        let synced = self.anchor.synced();
        let passive = self.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
        // on a full disk the one may succeed and the other not
        for done in [passive, chain::prune(&self.connection, synced)] {
            let Err(source) = done else { continue };
            let error = Error::Unavailable(source.into());
            let error = unless_disk_failed(error, &self.path, During::Checkpoint);
            tracing::warn!(error = %super::super::chain(&error), "checkpoint of the database failed; it will be tried again");
        }
    }

    /// Everything was answered: the next start need not wonder.
    fn close(&mut self) {
        self.checkpoint();
        if let Err(source) = Entry::Running.set(&self.connection, 0) {
            let error = Error::Unavailable(source.into());
            let error = unless_disk_failed(error, &self.path, During::Commit);
            tracing::warn!(error = %super::super::chain(&error), "the database cannot note its orderly stop; the next start will take it for an unclean one");
        }
    }
}

fn run(mut desk: Desk, inbox: &mpsc::Receiver<Job>) {
    loop {
        let waited = if desk.rows >= CHECKPOINT_IDLE_ROWS {
            inbox.recv_timeout(IDLE)
        } else {
            inbox.recv().map_err(|mpsc::RecvError| mpsc::RecvTimeoutError::Disconnected)
        };
        match waited {
            Ok(Job::Commit(mut batch, answer)) => {
                let result = desk.write(|write| commit(write, batch.as_mut()));
                // the caller may have gone; what was committed stays so
                drop(answer.send((batch, result)));
            }
            Ok(Job::Work(work)) => work(&mut desk),
            Err(mpsc::RecvTimeoutError::Timeout) => desk.checkpoint(),
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
        if desk.rows >= CHECKPOINT_BUSY_ROWS {
            desk.checkpoint();
        }
    }
    desk.close();
}

fn commit(write: &mut Write<'_>, batch: &mut dyn Batch) -> Result<(), Error> {
    standing::admit_batch(write.sql, batch)?;
    let known = load(write.sql, batch.wanted())?;
    let changes = batch.decide(known);
    save(write, &changes)
}

fn load(connection: &Connection, wanted: Wanted) -> Result<Known, Error> {
    let onboarding = Entry::Onboarding.get(connection).map_err(failed)? != 0;
    let mut known = Known { onboarding, ..Known::default() };
    if !wanted.payments.is_empty() {
        let mut load = payment::Load::prepare(connection)?;
        for key in wanted.payments {
            if let Some(payment) = load.one(&key)? {
                known.payments.insert(key, payment);
            }
        }
    }
    let mut authorizations = wanted.authorizations;
    if wanted.tokens.is_empty() && authorizations.is_empty() {
        return Ok(known);
    }
    let mut load = token::Load::prepare(connection)?;
    for key in wanted.tokens {
        if let Some(token) = load.token(&key)? {
            authorizations.extend(authorization_key(&key, &token));
            known.tokens.insert(key.hash, token);
        }
    }
    for key in authorizations {
        if let Some(authorization) = load.authorization(&key)? {
            known.authorizations.insert(key, authorization);
        }
    }
    Ok(known)
}

fn save(write: &mut Write<'_>, changes: &Changes) -> Result<(), Error> {
    payment::save(write, &changes.payments)?;
    token::save_authorizations(write, &changes.authorizations)?;
    token::save(write, &changes.tokens)?;
    event::append(write, &changes.events)
}
