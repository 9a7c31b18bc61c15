//! The one thread that writes: a batch a transaction, checkpoints while nothing waits.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Mutex, PoisonError, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::oneshot;

use super::{
    super::{Batch, Changes, Error, Known, Wanted, record::authorization_key},
    die, disk_failed, event, failed, migrate, payment, token,
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
    CompleteImport(oneshot::Sender<Result<(), Error>>),
}

/// The handle of the thread.
pub(super) struct Writer {
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Writer {
    pub(super) fn start(connection: Connection, partitions: Partitions) -> io::Result<Self> {
        let (jobs, inbox) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("sqlite-writer".to_owned())
            .spawn(move || run(connection, &inbox, partitions))?;
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

    pub(super) async fn complete_import(&self) -> Result<(), Error> {
        let (answer, answered) = oneshot::channel();
        if self.send(Job::CompleteImport(answer)).is_err() {
            return Err(Error::Closed);
        }
        answered.await.unwrap_or(Err(Error::Closed))
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

fn run(mut connection: Connection, inbox: &mpsc::Receiver<Job>, partitions: Partitions) {
    let mut rows = 0usize;
    loop {
        let waited = if rows >= CHECKPOINT_IDLE_ROWS {
            inbox.recv_timeout(IDLE)
        } else {
            inbox.recv().map_err(|mpsc::RecvError| mpsc::RecvTimeoutError::Disconnected)
        };
        let job = match waited {
            Ok(job) => job,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                checkpoint(&connection);
                rows = 0;
                continue;
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        };
        match job {
            Job::Commit(mut batch, answer) => {
                let result = guarded(&mut connection, batch.as_mut(), partitions);
                rows = rows.saturating_add(*result.as_ref().unwrap_or(&0));
                // the caller may have gone; what was committed stays so
                drop(answer.send((batch, result.map(drop))));
            }
            Job::CompleteImport(answer) => {
                drop(answer.send(migrate::complete_import(&connection).map_err(failed)));
            }
        }
        if rows >= CHECKPOINT_BUSY_ROWS {
            checkpoint(&connection);
            rows = 0;
        }
    }
    checkpoint(&connection);
}

/// A panic is one command's defect, and must not end the thread that all others need: the transaction rolls back as
/// it is unwound, and the engine looks for the culprit by halves.
fn guarded(
    connection: &mut Connection,
    batch: &mut dyn Batch,
    partitions: Partitions,
) -> Result<usize, Error> {
    catch_unwind(AssertUnwindSafe(|| commit(connection, batch, partitions)))
        .unwrap_or_else(|_| Err(Error::Data("a batch panicked".into())))
}

/// One transaction; answers how many rows it wrote.
fn commit(
    connection: &mut Connection,
    batch: &mut dyn Batch,
    partitions: Partitions,
) -> Result<usize, Error> {
    let transaction =
        connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
    let known = load(&transaction, batch.wanted())?;
    let changes = batch.decide(known);
    let rows = save(&transaction, &changes, partitions).map_err(failed)?;
    if rows == 0 {
        // everything was answered from durable rows; there is nothing to make durable
        return Ok(0);
    }
    transaction.commit().map_err(|source| {
        if disk_failed(&source) {
            die(&source);
        }
        Error::CommitUnknown(source.into())
    })?;
    Ok(rows)
}

fn load(connection: &Connection, wanted: Wanted) -> Result<Known, Error> {
    let mut known =
        Known { onboarding: migrate::onboarding(connection).map_err(failed)?, ..Known::default() };
    for key in wanted.payments {
        if let Some(payment) = payment::load(connection, &key)? {
            known.payments.insert(key, payment);
        }
    }
    let mut authorizations = wanted.authorizations;
    for key in wanted.tokens {
        if let Some(token) = token::load(connection, &key)? {
            authorizations.extend(authorization_key(&key, &token));
            known.tokens.insert(key.hash, token);
        }
    }
    for key in authorizations {
        if let Some(authorization) = token::load_authorization(connection, &key)? {
            known.authorizations.insert(key, authorization);
        }
    }
    Ok(known)
}

fn save(
    connection: &Connection,
    changes: &Changes,
    partitions: Partitions,
) -> rusqlite::Result<usize> {
    for (key, payment) in &changes.payments {
        payment::save(connection, key, payment)?;
    }
    for (key, authorization) in &changes.authorizations {
        token::save_authorization(connection, key, authorization)?;
    }
    for (key, token) in &changes.tokens {
        token::save(connection, key, token)?;
    }
    event::append(connection, &changes.events, partitions)?;
    let lists = [
        changes.payments.len(),
        changes.authorizations.len(),
        changes.tokens.len(),
        changes.events.len(),
    ];
    Ok(lists.into_iter().sum())
}

/// Moves the WAL into the database, as far as readers let it.
fn checkpoint(connection: &Connection) {
    let passive = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
    if let Err(source) = passive {
        if disk_failed(&source) {
            die(&source);
        }
        tracing::warn!(error = %source, "checkpoint of the database failed; it will be tried again");
    }
}
