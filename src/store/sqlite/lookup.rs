//! Reads of single rows: threads that answer everything that waits from one snapshot.
//!
//! A snapshot and a thread's waking cost more than the rows, so under load they are shared, as commits are. A snapshot is
//! taken after the reads that it answers came in: none of them can miss what was committed before it was asked.

use std::{
    io,
    num::NonZeroUsize,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread::{self, JoinHandle},
};

use rusqlite::Connection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::{
    super::{Error, Granted, chain, record::authorization_key},
    During, connect_reader, failed, payment, standing, token, unless_disk_failed,
};
use crate::domain::{
    key::{PaymentKey, TokenKey},
    payment::Payment,
};

/// Threads, where there are as many cores.
const THREADS_MAX: usize = 4;
/// Reads from one snapshot: a longer one would keep the writer's log from being moved, and its last reads waiting.
const SHARED_MAX: usize = 64;

/// Reads that wait for a thread. Whoever gives up leaves his read behind in the queue, so that on a disk that hangs it would
/// grow without bound; further ones wait outside, and are gone with whoever asked.
const WAITING_MAX: usize = 1_024;

type Answer<T> = oneshot::Sender<Result<Option<T>, Error>>;

/// What somebody waits for.
enum Lookup {
    Payment(PaymentKey, Answer<Payment>),
    /// The first of these that there is, with its authorization.
    Token(Vec<TokenKey>, Answer<Granted>),
}

/// In the queue, in a place of its own.
struct Waiting {
    lookup: Lookup,
    _place: OwnedSemaphorePermit,
}

/// The handle of the threads.
pub(super) struct Lookups {
    queue: Mutex<Option<mpsc::Sender<Waiting>>>,
    places: Arc<Semaphore>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Lookups {
    pub(super) fn start(path: &Path) -> io::Result<Self> {
        let (queue, inbox) = mpsc::channel();
        let inbox = Arc::new(Mutex::new(inbox));
        let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let mut threads = Vec::new();
        for _ in 0..cores.min(THREADS_MAX) {
            let mut reader =
                Reader { path: path.to_owned(), inbox: Arc::clone(&inbox), connection: None };
            let thread = thread::Builder::new().name("sqlite-reader".to_owned());
            threads.push(thread.spawn(move || reader.run())?);
        }
        Ok(Self::over(queue, threads))
    }

    fn over(queue: mpsc::Sender<Waiting>, threads: Vec<JoinHandle<()>>) -> Self {
        let places = Arc::new(Semaphore::new(WAITING_MAX));
        Self { queue: Mutex::new(Some(queue)), places, threads: Mutex::new(threads) }
    }

    pub(super) async fn payment(&self, key: PaymentKey) -> Result<Option<Payment>, Error> {
        self.ask(|answer| Lookup::Payment(key, answer)).await
    }

    pub(super) async fn token(&self, keys: Vec<TokenKey>) -> Result<Option<Granted>, Error> {
        self.ask(|answer| Lookup::Token(keys, answer)).await
    }

    async fn ask<T>(&self, lookup: impl FnOnce(Answer<T>) -> Lookup) -> Result<Option<T>, Error> {
        let place = Arc::clone(&self.places).acquire_owned().await.map_err(|_| Error::Closed)?;
        let (answer, answered) = oneshot::channel();
        if !self.send(Waiting { lookup: lookup(answer), _place: place }) {
            return Err(Error::Closed);
        }
        answered.await.unwrap_or(Err(Error::Closed))
    }

    fn send(&self, waiting: Waiting) -> bool {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.as_ref().is_some_and(|queue| queue.send(waiting).is_ok())
    }

    /// Lets the threads answer what was asked, and waits for them and their connections to end.
    pub(super) fn stop(&self) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        for thread in threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a reader of the database ended in a panic");
            }
        }
    }
}

struct Reader {
    path: PathBuf,
    inbox: Arc<Mutex<mpsc::Receiver<Waiting>>>,
    /// None until the first read, and after one that left it in doubt.
    connection: Option<Connection>,
}

impl Reader {
    fn run(&mut self) {
        while let Some(waiting) = self.wait() {
            self.answer(waiting);
        }
    }

    /// What waits; one of the threads at a time looks.
    fn wait(&self) -> Option<Vec<Waiting>> {
        let inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        let mut waiting = vec![inbox.recv().ok()?];
        waiting.extend(inbox.try_iter().take(SHARED_MAX - 1));
        Some(waiting)
    }

    fn answer(&mut self, waiting: Vec<Waiting>) {
        let path = &self.path;
        let connection = match self.connection.take().map_or_else(|| connect_reader(path), Ok) {
            Ok(connection) => connection,
            Err(source) => return refuse(waiting, source, path),
        };
        let mut is_sound = true;
        match connection.unchecked_transaction() {
            Ok(transaction) => {
                let mut snapshot = Snapshot::of(&transaction, path);
                for Waiting { lookup, _place } in waiting {
                    // a panic is one row's defect, and neither ends the thread nor fails its neighbours
                    let answered = catch_unwind(AssertUnwindSafe(|| snapshot.answer(lookup)));
                    is_sound &= answered.is_ok();
                }
            }
            Err(source) => refuse(waiting, source, path),
        }
        // one whose snapshot did not end would tell of then for ever, or refuse everybody
        self.connection = Some(connection).filter(|it| is_sound && it.is_autocommit());
    }
}

/// Tells everybody the same.
fn refuse(waiting: Vec<Waiting>, source: rusqlite::Error, path: &Path) {
    let error = unless_disk_failed(failed(source), path, During::Commit);
    let text = chain(&error);
    let copy = || match error {
        Error::Damaged(what) => Error::Damaged(what),
        Error::Unavailable(_)
        | Error::CommitUnknown(_)
        | Error::Data(_)
        | Error::Suspect(_)
        | Error::Closed => Error::Unavailable(text.clone().into()),
    };
    for Waiting { lookup, .. } in waiting {
        match lookup {
            Lookup::Payment(_, answer) => drop(answer.send(Err(copy()))),
            Lookup::Token(_, answer) => drop(answer.send(Err(copy()))),
        }
    }
}

/// What was committed when it was taken.
struct Snapshot<'a> {
    connection: &'a Connection,
    path: &'a Path,
    payments: Option<payment::Load<'a>>,
    /// Only of a store that may tell: a revocation that was lost must not look active.
    tokens: Option<token::Load<'a>>,
}

impl<'a> Snapshot<'a> {
    fn of(connection: &'a Connection, path: &'a Path) -> Self {
        Self { connection, path, payments: None, tokens: None }
    }

    /// Nobody may wait any more.
    fn answer(&mut self, lookup: Lookup) {
        match lookup {
            Lookup::Payment(key, answer) if !answer.is_closed() => {
                let found = self.payment(&key);
                drop(answer.send(self.told(found)));
            }
            Lookup::Token(keys, answer) if !answer.is_closed() => {
                let found = self.token(&keys);
                drop(answer.send(self.told(found)));
            }
            Lookup::Payment(..) | Lookup::Token(..) => {}
        }
    }

    fn told<T>(&self, found: Result<T, Error>) -> Result<T, Error> {
        found.map_err(|error| unless_disk_failed(error, self.path, During::Commit))
    }

    fn payment(&mut self, key: &PaymentKey) -> Result<Option<Payment>, Error> {
        let load = match &mut self.payments {
            Some(load) => load,
            none => none.insert(payment::Load::prepare(self.connection)?),
        };
        load.one(key)
    }

    fn token(&mut self, keys: &[TokenKey]) -> Result<Option<Granted>, Error> {
        let load = match &mut self.tokens {
            Some(load) => load,
            none => {
                standing::admit(self.connection)?;
                none.insert(token::Load::prepare(self.connection)?)
            }
        };
        for key in keys {
            let Some(token) = load.token(key)? else { continue };
            let authorization = match authorization_key(key, &token) {
                Some(key) => load.authorization(&key)?,
                None => None,
            };
            return Ok(Some((token, authorization)));
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::domain::id::{PaymentRequestId, PspId};

    /// No thread takes anything, as on a disk that hangs, and everybody gives up at once.
    #[tokio::test]
    async fn who_gives_up_does_not_make_the_queue_longer_than_it_may_be() {
        let (queue, inbox) = mpsc::channel();
        let lookups = Lookups::over(queue, Vec::new());
        let key = PaymentKey {
            psp: PspId::parse("psp").unwrap(),
            payment_request: PaymentRequestId::parse("id").unwrap(),
        };
        for _ in 0..3 * WAITING_MAX {
            let asked = tokio::task::unconstrained(lookups.payment(key.clone()));
            assert!(asked.now_or_never().is_none());
        }
        assert_eq!(inbox.try_iter().count(), WAITING_MAX);
        // those that were taken make room
        assert!(lookups.payment(key).now_or_never().is_none());
        assert_eq!(inbox.try_iter().count(), 1);
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_read_is_told_and_looked_for_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("none.db");
        let lookups = Lookups::start(&path).unwrap();
        let key = || PaymentKey {
            psp: PspId::parse("psp").unwrap(),
            payment_request: PaymentRequestId::parse("id").unwrap(),
        };
        let missing = lookups.payment(key()).await;
        assert!(matches!(missing, Err(Error::Unavailable(_))), "{missing:?}");

        let made = Connection::open(&path).unwrap();
        made.execute_batch(include_str!("schema_1.sql")).unwrap();
        made.execute_batch(include_str!("schema_2.sql")).unwrap();
        assert!(matches!(lookups.payment(key()).await, Ok(None)));
        lookups.stop();
        assert!(matches!(lookups.payment(key()).await, Err(Error::Closed)));
    }
}
