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
use tokio::sync::oneshot;

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

type Answer<T> = oneshot::Sender<Result<Option<T>, Error>>;

/// What somebody waits for.
enum Lookup {
    Payment(PaymentKey, Answer<Payment>),
    /// The first of these that there is, with its authorization.
    Token(Vec<TokenKey>, Answer<Granted>),
}

/// The handle of the threads.
pub(super) struct Lookups {
    queue: Mutex<Option<mpsc::Sender<Lookup>>>,
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
        Ok(Self { queue: Mutex::new(Some(queue)), threads: Mutex::new(threads) })
    }

    pub(super) async fn payment(&self, key: PaymentKey) -> Result<Option<Payment>, Error> {
        self.ask(|answer| Lookup::Payment(key, answer)).await
    }

    pub(super) async fn token(&self, keys: Vec<TokenKey>) -> Result<Option<Granted>, Error> {
        self.ask(|answer| Lookup::Token(keys, answer)).await
    }

    async fn ask<T>(&self, lookup: impl FnOnce(Answer<T>) -> Lookup) -> Result<Option<T>, Error> {
        let (answer, answered) = oneshot::channel();
        if !self.send(lookup(answer)) {
            return Err(Error::Closed);
        }
        answered.await.unwrap_or(Err(Error::Closed))
    }

    fn send(&self, lookup: Lookup) -> bool {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.as_ref().is_some_and(|queue| queue.send(lookup).is_ok())
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
    inbox: Arc<Mutex<mpsc::Receiver<Lookup>>>,
    /// None until the first read, and after one that failed.
    connection: Option<Connection>,
}

impl Reader {
    fn run(&mut self) {
        loop {
            let Some(waiting) = self.wait() else { return };
            // a panic is one row's defect, and must not end the thread that all others need
            if catch_unwind(AssertUnwindSafe(|| self.answer(waiting))).is_err() {
                self.connection = None;
            }
        }
    }

    /// What waits; one of the threads at a time looks.
    fn wait(&self) -> Option<Vec<Lookup>> {
        let inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        let mut waiting = vec![inbox.recv().ok()?];
        waiting.extend(inbox.try_iter().take(SHARED_MAX - 1));
        Some(waiting)
    }

    fn answer(&mut self, waiting: Vec<Lookup>) {
        let path = &self.path;
        let connection = match self.connection.take().map_or_else(|| connect_reader(path), Ok) {
            Ok(connection) => connection,
            Err(source) => return refuse(waiting, source, path),
        };
        match connection.unchecked_transaction() {
            Ok(transaction) => {
                let mut snapshot = Snapshot { connection: &transaction, path, is_admitted: false };
                for lookup in waiting {
                    snapshot.answer(lookup);
                }
            }
            Err(source) => refuse(waiting, source, path),
        }
        self.connection = Some(connection);
    }
}

/// Tells everybody the same.
fn refuse(waiting: Vec<Lookup>, source: rusqlite::Error, path: &Path) {
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
    for lookup in waiting {
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
    /// A revocation that was lost must not look active; asked for once.
    is_admitted: bool,
}

impl Snapshot<'_> {
    /// Nobody may wait any more.
    fn answer(&mut self, lookup: Lookup) {
        match lookup {
            Lookup::Payment(key, answer) if !answer.is_closed() => {
                let found = payment::load(self.connection, &key);
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

    fn token(&mut self, keys: &[TokenKey]) -> Result<Option<Granted>, Error> {
        if !self.is_admitted {
            standing::admit(self.connection)?;
            self.is_admitted = true;
        }
        for key in keys {
            let Some(token) = token::load(self.connection, key)? else { continue };
            let authorization = match authorization_key(key, &token) {
                Some(key) => token::load_authorization(self.connection, &key)?,
                None => None,
            };
            return Ok(Some((token, authorization)));
        }
        Ok(None)
    }
}
