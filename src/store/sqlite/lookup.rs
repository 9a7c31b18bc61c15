//! Reads of single rows: threads that answer everything that waits from one snapshot.
//!
//! A snapshot and a thread's waking cost more than the rows, so under load they are shared, as commits are. A snapshot is
//! taken after the reads that it answers came in: none of them can miss what was committed before it was asked.

use std::{
    collections::VecDeque,
    io,
    num::NonZeroUsize,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread::{self, JoinHandle},
};

use rusqlite::Connection;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    task,
};

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

/// What became of it.
enum Found {
    Payment(Answer<Payment>, Result<Option<Payment>, Error>),
    Token(Answer<Granted>, Result<Option<Granted>, Error>),
}

impl Found {
    fn tell(self) {
        // nobody may wait any more
        match self {
            Self::Payment(answer, found) => drop(answer.send(found)),
            Self::Token(answer, found) => drop(answer.send(found)),
        }
    }
}

/// In the queue, in a place of its own.
struct Waiting {
    lookup: Lookup,
    _place: OwnedSemaphorePermit,
}

/// Reads for one snapshot, and where to tell what was found.
struct Errand {
    lookups: Vec<Waiting>,
    back: oneshot::Sender<Vec<Found>>,
}

/// The handle of the threads.
pub(super) struct Lookups {
    desk: Arc<Desk>,
    places: Arc<Semaphore>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// Where reads wait for a thread.
///
/// A thread that is woken for one read and wakes its caller for one answer costs more than the read. So a task gathers what
/// all others that can run at this moment ask for, sends it to a thread as one errand, and tells the answers when it is back:
/// two changes of threads an errand, however many reads it has.
struct Desk {
    state: Mutex<State>,
}

struct State {
    /// None once it is closed.
    threads: Option<mpsc::Sender<Errand>>,
    waiting: VecDeque<Waiting>,
    /// Whether a task is about to take what waits.
    gathers: bool,
    /// How many more errands threads are free for.
    free: usize,
}

impl Lookups {
    pub(super) fn start(path: &Path) -> io::Result<Self> {
        let (errands, inbox) = mpsc::channel();
        let inbox = Arc::new(Mutex::new(inbox));
        let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let mut threads = Vec::new();
        for _ in 0..cores.min(THREADS_MAX) {
            let mut reader =
                Reader { path: path.to_owned(), inbox: Arc::clone(&inbox), connection: None };
            let thread = thread::Builder::new().name("sqlite-reader".to_owned());
            threads.push(thread.spawn(move || reader.run())?);
        }
        let free = threads.len();
        Ok(Self { threads: Mutex::new(threads), ..Self::over(errands, free) })
    }

    fn over(errands: mpsc::Sender<Errand>, free: usize) -> Self {
        let state =
            State { threads: Some(errands), waiting: VecDeque::new(), gathers: false, free };
        Self {
            desk: Arc::new(Desk { state: Mutex::new(state) }),
            places: Arc::new(Semaphore::new(WAITING_MAX)),
            threads: Mutex::default(),
        }
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
        self.desk.put(Waiting { lookup: lookup(answer), _place: place });
        answered.await.unwrap_or(Err(Error::Closed))
    }

    /// Lets the threads answer what was sent to them, and waits for them and their connections to end.
    pub(super) fn stop(&self) {
        self.desk.close();
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        for thread in threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a reader of the database ended in a panic");
            }
        }
    }
}

impl Desk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What waits is not answered.
    fn close(&self) {
        let mut state = self.state();
        state.threads = None;
        state.waiting.clear();
    }

    fn put(self: &Arc<Self>, waiting: Waiting) {
        let mut state = self.state();
        if state.threads.is_none() {
            return;
        }
        state.waiting.push_back(waiting);
        if let Some(turn) = Turn::take(self, &mut state) {
            drop(state);
            tokio::spawn(turn.run());
        }
    }
}

/// One errand less that threads are free for. Given back when it is dropped, as a task is with its runtime.
struct Turn {
    desk: Arc<Desk>,
    /// Whether it is the one that gathers.
    gathers: bool,
}

impl Turn {
    /// If something waits, nobody is about to take it, and a thread is free.
    fn take(desk: &Arc<Desk>, state: &mut State) -> Option<Self> {
        if state.gathers || state.waiting.is_empty() {
            return None;
        }
        state.free = state.free.checked_sub(1)?;
        state.gathers = true;
        Some(Self { desk: Arc::clone(desk), gathers: true })
    }

    async fn run(mut self) {
        loop {
            // until every other task that can run has run, and asked what it asks
            task::yield_now().await;
            let Some(found) = self.send() else { return };
            for found in found.await.unwrap_or_default() {
                found.tell();
            }
            let mut state = self.desk.state();
            if state.gathers || state.waiting.is_empty() {
                return;
            }
            state.gathers = true;
            self.gathers = true;
        }
    }

    /// Sends what waits to the threads.
    fn send(&mut self) -> Option<oneshot::Receiver<Vec<Found>>> {
        let mut state = self.desk.state();
        self.gathers = false;
        state.gathers = false;
        let many = state.waiting.len().min(SHARED_MAX);
        let lookups = state.waiting.drain(..many).collect();
        let (back, found) = oneshot::channel();
        state.threads.as_ref()?.send(Errand { lookups, back }).ok()?;
        // what is left is the next one's
        if let Some(next) = Turn::take(&self.desk, &mut state) {
            drop(state);
            tokio::spawn(next.run());
        }
        Some(found)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.desk.state();
        state.free = state.free.saturating_add(1);
        if self.gathers {
            state.gathers = false;
        }
    }
}

struct Reader {
    path: PathBuf,
    inbox: Arc<Mutex<mpsc::Receiver<Errand>>>,
    /// None until the first read, and after one that left it in doubt.
    connection: Option<Connection>,
}

impl Reader {
    fn run(&mut self) {
        while let Some(Errand { lookups, back }) = self.wait() {
            let found = self.answer(lookups);
            // the task that sent it went with its runtime
            if let Err(found) = back.send(found) {
                found.into_iter().for_each(Found::tell);
            }
        }
    }

    /// The next errand; one of the threads at a time looks.
    fn wait(&self) -> Option<Errand> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
    }

    fn answer(&mut self, waiting: Vec<Waiting>) -> Vec<Found> {
        let path = &self.path;
        let connection = match self.connection.take().map_or_else(|| connect_reader(path), Ok) {
            Ok(connection) => connection,
            Err(source) => return refuse(waiting, source, path),
        };
        let mut is_sound = true;
        let found = match connection.unchecked_transaction() {
            Ok(transaction) => {
                let mut snapshot = Snapshot::of(&transaction, path);
                let answers = waiting.into_iter().filter_map(|Waiting { lookup, _place }| {
                    // a panic is one row's defect, and neither ends the thread nor fails its neighbours
                    let answered = catch_unwind(AssertUnwindSafe(|| snapshot.answer(lookup)));
                    is_sound &= answered.is_ok();
                    answered.ok().flatten()
                });
                answers.collect()
            }
            Err(source) => refuse(waiting, source, path),
        };
        // one whose snapshot did not end would tell of then for ever, or refuse everybody
        self.connection = Some(connection).filter(|it| is_sound && it.is_autocommit());
        found
    }
}

/// Tells everybody the same.
fn refuse(waiting: Vec<Waiting>, source: rusqlite::Error, path: &Path) -> Vec<Found> {
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
    let refused = waiting.into_iter().map(|Waiting { lookup, .. }| match lookup {
        Lookup::Payment(_, answer) => Found::Payment(answer, Err(copy())),
        Lookup::Token(_, answer) => Found::Token(answer, Err(copy())),
    });
    refused.collect()
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

    /// None if nobody waits for it any more.
    fn answer(&mut self, lookup: Lookup) -> Option<Found> {
        match lookup {
            Lookup::Payment(key, answer) if !answer.is_closed() => {
                let found = self.payment(&key);
                Some(Found::Payment(answer, self.told(found)))
            }
            Lookup::Token(keys, answer) if !answer.is_closed() => {
                let found = self.token(&keys);
                Some(Found::Token(answer, self.told(found)))
            }
            Lookup::Payment(..) | Lookup::Token(..) => None,
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
    use futures_util::{FutureExt as _, future};

    use super::*;
    use crate::domain::id::{PaymentRequestId, PspId};

    fn key(id: &str) -> PaymentKey {
        PaymentKey {
            psp: PspId::parse("psp").unwrap(),
            payment_request: PaymentRequestId::parse(id).unwrap(),
        }
    }

    /// Finds nothing, for everybody.
    fn run(errand: Errand) {
        let nothing = errand.lookups.into_iter().map(|waiting| match waiting.lookup {
            Lookup::Payment(_, answer) => Found::Payment(answer, Ok(None)),
            Lookup::Token(_, answer) => Found::Token(answer, Ok(None)),
        });
        drop(errand.back.send(nothing.collect()));
    }

    /// No thread takes anything, as on a disk that hangs, and everybody gives up at once.
    #[tokio::test]
    async fn who_gives_up_does_not_make_the_queue_longer_than_it_may_be() {
        let (errands, _inbox) = mpsc::channel();
        let lookups = Lookups::over(errands, 0);
        for _ in 0..3 * WAITING_MAX {
            let asked = tokio::task::unconstrained(lookups.payment(key("id")));
            assert!(asked.now_or_never().is_none());
        }
        assert_eq!(lookups.desk.state().waiting.drain(..).count(), WAITING_MAX);
        // those that were taken make room
        assert!(lookups.payment(key("id")).now_or_never().is_none());
        assert_eq!(lookups.desk.state().waiting.len(), 1);
    }

    #[tokio::test]
    async fn what_is_asked_at_once_goes_in_one_errand_and_each_thread_has_one_at_a_time() {
        let (errands, inbox) = mpsc::channel();
        let lookups = Arc::new(Lookups::over(errands, 2));
        let ask = |many: usize| {
            let asked = (0..many).map(|nth| {
                let lookups = Arc::clone(&lookups);
                tokio::spawn(async move { lookups.payment(key(&format!("id-{nth}"))).await })
            });
            future::join_all(asked.collect::<Vec<_>>())
        };
        let sent = async || {
            for _ in 0..10 {
                task::yield_now().await;
            }
            inbox.try_iter().collect::<Vec<_>>()
        };
        // as many as a snapshot is shared by, and the others
        let first = ask(SHARED_MAX + 5);
        let mut under_way = sent().await;
        let sizes: Vec<_> = under_way.iter().map(|errand| errand.lookups.len()).collect();
        assert_eq!(sizes, [SHARED_MAX, 5]);
        // whoever asks now waits for one of the two to come back
        let second = ask(3);
        assert_eq!(sent().await.len(), 0);
        run(under_way.remove(0));
        let third = sent().await;
        assert_eq!(third.iter().map(|errand| errand.lookups.len()).collect::<Vec<_>>(), [3]);
        under_way.into_iter().chain(third).for_each(run);
        for answer in first.await.into_iter().chain(second.await) {
            assert!(matches!(answer, Ok(Ok(None))), "{answer:?}");
        }
        assert_eq!(lookups.desk.state().free, 2);
    }

    #[tokio::test]
    async fn whoever_can_run_at_that_moment_comes_along_also_behind_the_task_that_gathers() {
        let (errands, inbox) = mpsc::channel();
        let lookups = Arc::new(Lookups::over(errands, 1));
        let other = Arc::clone(&lookups);
        // the first has the task begin that gathers, and the second is a task behind it
        let asked = future::join(lookups.payment(key("first")), async move {
            tokio::spawn(async move { other.payment(key("second")).await }).await
        });
        let told = async {
            for _ in 0..10 {
                task::yield_now().await;
            }
            let errand = inbox.try_recv().unwrap();
            assert_eq!(errand.lookups.len(), 2);
            run(errand);
        };
        let ((first, second), ()) = future::join(asked, told).await;
        assert!(matches!((first, second), (Ok(None), Ok(Ok(None)))));
    }

    #[test]
    fn a_runtime_that_ends_takes_nobodys_turn_with_it() {
        let (errands, inbox) = mpsc::channel();
        let lookups = Lookups::over(errands, 1);
        let runtime = || tokio::runtime::Builder::new_current_thread().build().unwrap();
        for under_way in [false, true] {
            runtime().block_on(async {
                assert!(lookups.payment(key("id")).now_or_never().is_none());
                for _ in 0..if under_way { 10 } else { 0 } {
                    task::yield_now().await;
                }
            });
            assert_eq!(inbox.try_iter().count(), usize::from(under_way));
        }
        runtime().block_on(async {
            let asked = async {
                for _ in 0..10 {
                    task::yield_now().await;
                }
                inbox.try_iter().for_each(run);
            };
            let (answer, ()) = future::join(lookups.payment(key("id")), asked).await;
            assert!(matches!(answer, Ok(None)), "{answer:?}");
        });
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_read_is_told_and_looked_for_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("none.db");
        let lookups = Lookups::start(&path).unwrap();
        let missing = lookups.payment(key("id")).await;
        assert!(matches!(missing, Err(Error::Unavailable(_))), "{missing:?}");

        let made = Connection::open(&path).unwrap();
        made.execute_batch(include_str!("schema_1.sql")).unwrap();
        made.execute_batch(include_str!("schema_2.sql")).unwrap();
        assert!(matches!(lookups.payment(key("id")).await, Ok(None)));
        lookups.stop();
        assert!(matches!(lookups.payment(key("id")).await, Err(Error::Closed)));
    }
}
