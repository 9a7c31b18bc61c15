//! The engine over a real SQLite store, and over one that fails as it is told.

use std::{
    collections::{HashMap, HashSet},
    num::NonZeroU32,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use alipayplus_cancel::{
    domain::{
        cancel_payment::{self, CancelPayment},
        cancel_token,
        consumer::{Consumer, ConsumerName},
        event::EventKind,
        id::{AcquirerId, ClientId, PspId, Token},
        import_payment::ImportPayment,
        key::{AuthorizationKey, Partitions, PaymentKey, TokenKey},
        payment::{Payment, Terms},
        policy::Policy,
        record_fund_return::RecordFundReturn,
        record_payment::{self, Fact, RecordPayment},
        record_token,
        result::ResultCode,
        revoke_authorization::{self, RevokeAuthorization},
        time::Timestamp,
        token::TokenKind,
        window::CancelWindow,
    },
    engine::{Caller, CancelToken, Clock, Engine, Error, HashRing, Limits, RecordToken},
    feed::Wake,
    layer::rate_limit::{Bucket, Rate},
    store::{
        self, Backlog, Batch, Changes, Cursor, Follow, Granted, Head, Known, Outstanding,
        OutstandingPayment, Page, Pending, Place, Positioned, Standing, StandingChange, Store,
        Takeover, Wanted,
    },
    telemetry::{Span, Telemetry, context::TraceContext},
};
use tokio::{sync::Semaphore, task::JoinHandle};

use crate::{
    store_contract::{Fixture as _, embedded::Folder},
    values::{acquirer, amount, at, authorization_key, payment_key, psp},
};

/// What happens to a batch that wants a certain payment.
#[derive(Clone)]
enum Fault {
    /// The store cannot be reached; nothing is committed.
    Unavailable,
    /// The batch is committed, and the answer is lost.
    CommittedUnheard,
    /// The batch is not committed, and nobody knows.
    LostUnheard,
    /// The store refuses the batch for its data.
    Data,
    /// The commit, once made, is answered only when the gate opens.
    Held(Arc<Gate>),
    /// The store cannot be reached, which it says only when the gate opens.
    HeldUnavailable(Arc<Gate>),
    /// The store may have lost commits.
    Suspect,
    /// Committed, says the store, and has asked for no decision.
    Forgotten,
    /// No answer, ever.
    Silence,
}

/// Says when somebody waits behind it, and lets them through when it is opened.
struct Gate {
    arrived: Semaphore,
    open: Semaphore,
}

impl Gate {
    fn new() -> Arc<Self> {
        Arc::new(Self { arrived: Semaphore::new(0), open: Semaphore::new(0) })
    }

    async fn pass(&self) {
        self.arrived.add_permits(1);
        self.open.acquire().await.expect("never closed").forget();
        self.open.add_permits(1);
    }

    /// Waits until somebody waits behind it.
    async fn arrival(&self) {
        self.arrived.acquire().await.expect("never closed").forget();
    }

    fn open(&self) {
        self.open.add_permits(1);
    }
}

/// A real store that fails as it is told, with a clock of its own.
struct Faulty {
    inner: Arc<dyn Store>,
    faults: Mutex<HashMap<PaymentKey, Fault>>,
    clock: Mutex<Option<Timestamp>>,
    /// Commits that the engine was told of.
    told: AtomicUsize,
    /// Payments of each batch that was asked for.
    asked: Mutex<Vec<HashSet<PaymentKey>>>,
    /// Until when each of them might have been tried, and whether in a suspect store too.
    terms: Mutex<Vec<(Instant, bool)>>,
    /// Whether other processes are said to commit to it too.
    shared: AtomicBool,
}

impl Faulty {
    fn over(inner: Arc<dyn Store>) -> Arc<Self> {
        let inner_is_shared = inner.shared();
        Arc::new(Self {
            inner,
            faults: Mutex::default(),
            clock: Mutex::default(),
            told: AtomicUsize::new(0),
            asked: Mutex::default(),
            terms: Mutex::default(),
            shared: AtomicBool::new(inner_is_shared),
        })
    }

    fn fail(&self, key: &str, fault: Fault) {
        self.faults.lock().expect("no panic").insert(payment_key(key), fault);
    }

    fn heal(&self) {
        self.faults.lock().expect("no panic").clear();
    }

    fn batches(&self) -> Vec<HashSet<PaymentKey>> {
        self.asked.lock().expect("no panic").clone()
    }

    async fn run(&self, batch: Box<dyn Batch>) -> (Box<dyn Batch>, Result<(), store::Error>) {
        let wanted: HashSet<PaymentKey> = batch.wanted().payments.into_iter().collect();
        self.asked.lock().expect("no panic").push(wanted.clone());
        let terms = (batch.deadline(), batch.although_suspect());
        self.terms.lock().expect("no panic").push(terms);
        let fault = {
            let faults = self.faults.lock().expect("no panic");
            wanted.iter().find_map(|key| faults.get(key).cloned())
        };
        let clock = *self.clock.lock().expect("no panic");
        let batch: Box<dyn Batch> = Box::new(Clocked { batch, clock });
        let lost = || Err(store::Error::CommitUnknown("connection reset".into()));
        match fault {
            None => self.inner.commit(batch).await,
            Some(Fault::Unavailable) => {
                (batch, Err(store::Error::Unavailable("no route to host".into())))
            }
            Some(Fault::CommittedUnheard) => {
                let (batch, result) = self.inner.commit(batch).await;
                result.expect("the store underneath is sound");
                (batch, lost())
            }
            Some(Fault::LostUnheard) => {
                let mut batch = batch;
                let _never_written = batch.decide(Known::default());
                (batch, lost())
            }
            Some(Fault::Data) => (batch, Err(store::Error::Data("invalid byte sequence".into()))),
            Some(Fault::Held(gate)) => {
                let committed = self.inner.commit(batch).await;
                gate.pass().await;
                committed
            }
            Some(Fault::HeldUnavailable(gate)) => {
                gate.pass().await;
                (batch, Err(store::Error::Unavailable("no route to host".into())))
            }
            Some(Fault::Suspect) => (batch, Err(store::Error::Suspect("commits are lost".into()))),
            Some(Fault::Forgotten) => (batch, Ok(())),
            Some(Fault::Silence) => std::future::pending().await,
        }
    }
}

/// Methods that the inner store has too.
macro_rules! delegate {
    ($($method:ident($($name:ident: $type:ty),*) -> $answer:ty;)*) => {$(
        fn $method(&self, $($name: $type),*) -> Pending<'_, Result<$answer, store::Error>> {
            self.inner.$method($($name),*)
        }
    )*};
}

impl Store for Faulty {
    fn partitions(&self) -> Partitions {
        self.inner.partitions()
    }

    fn lanes(&self) -> usize {
        self.inner.lanes()
    }

    fn shared(&self) -> bool {
        self.shared.load(Ordering::SeqCst)
    }

    fn commit(
        &self,
        batch: Box<dyn Batch>,
    ) -> Pending<'_, (Box<dyn Batch>, Result<(), store::Error>)> {
        Box::pin(async {
            let answered = self.run(batch).await;
            self.told.fetch_add(1, Ordering::SeqCst);
            answered
        })
    }

    delegate! {
        payment(key: PaymentKey) -> Option<Payment>;
        token(keys: Vec<TokenKey>) -> Option<Granted>;
        heads() -> Vec<Head>;
        events(behind: Vec<Place>, limit: u32) -> Vec<Positioned>;
        follow(consumer: ConsumerName, decide: Follow) -> ();
        consumers() -> Vec<(ConsumerName, Consumer)>;
        standing() -> Standing;
        change_standing(change: StandingChange) -> Standing;
        backlog(kind: Outstanding) -> Backlog;
        outstanding(kind: Outstanding, limit: u32) -> Vec<OutstandingPayment>;
        purge(upto: Vec<Place>, before: Timestamp, limit: u32) -> u64;
        page(cursor: Cursor, limit: u32) -> Page;
        fill(page: Page) -> ();
        take_over(takeover: Takeover) -> ();
    }
}

/// A batch that is told the store's own time.
struct Clocked {
    batch: Box<dyn Batch>,
    clock: Option<Timestamp>,
}

impl Batch for Clocked {
    fn wanted(&self) -> Wanted {
        self.batch.wanted()
    }

    fn decide(&mut self, known: Known) -> Changes {
        self.batch.decide(Known { clock: self.clock.or(known.clock), ..known })
    }

    fn deadline(&self) -> Instant {
        self.batch.deadline()
    }

    fn although_suspect(&self) -> bool {
        self.batch.although_suspect()
    }
}

/// A clock that stands until it is moved.
struct Hands(AtomicI64);

impl Clock for Hands {
    fn now(&self) -> Timestamp {
        at(self.0.load(Ordering::SeqCst))
    }
}

/// An engine with what it stands on.
struct House {
    folder: Folder,
    store: Arc<Faulty>,
    clock: Arc<Hands>,
    engine: Engine,
    worker: JoinHandle<()>,
}

/// 2026-05-28T12:00:00+08:00.
const NOON: i64 = 1_779_940_800_000;
const LIMITS: Limits = Limits { queue: 1024, batch: 64, wait: Duration::MAX };

impl House {
    async fn open() -> Self {
        Self::with(LIMITS).await
    }

    async fn with(limits: Limits) -> Self {
        let folder = Folder::open().await;
        let imported = folder.store().change_standing(StandingChange::ImportComplete).await;
        imported.expect("a fresh store");
        let store = Faulty::over(folder.store());
        let clock = Arc::new(Hands(AtomicI64::new(NOON)));
        let shared: Arc<dyn Store> = Arc::<Faulty>::clone(&store);
        let hands: Arc<dyn Clock> = Arc::<Hands>::clone(&clock);
        let ring = HashRing::new(&[[9u8; 32]]).expect("a ring");
        let policy = Arc::new(Policy::default());
        let metrics = Telemetry::local().metrics;
        let wake = Wake::default();
        let (engine, worker) = Engine::start(shared, &wake, ring, policy, hands, limits, &metrics);
        Self { folder, store, clock, engine, worker }
    }

    async fn cancel(&self, key: &str) -> Result<cancel_payment::Outcome, Error> {
        cancel(&self.engine, key, soon()).await
    }

    /// Starts a cancel and lets it run.
    fn start_cancel(&self, key: &str) -> JoinHandle<Result<cancel_payment::Outcome, Error>> {
        let (engine, key) = (self.engine.clone(), key.to_owned());
        tokio::spawn(async move { cancel(&engine, &key, soon()).await })
    }

    async fn record(&self, key: &str, fact: Fact) -> Result<record_payment::Outcome, Error> {
        let acquirer = Some(acquirer(ACQUIRER));
        let command = RecordPayment { key: payment_key(key), acquirer, fact };
        self.engine.record_payment(command, caller(soon())).await.map(|(outcome, _)| outcome)
    }

    /// What the store has of a payment, past all faults.
    async fn kept(&self, key: &str) -> Option<Payment> {
        self.folder.store().payment(payment_key(key)).await.expect("a read")
    }

    /// Kinds of a payment's events in their order.
    async fn events_of(&self, key: &str) -> Vec<EventKind> {
        let store = self.folder.store();
        let subject = alipayplus_cancel::domain::key::Subject::Payment(payment_key(key));
        let partition = subject.partition(store.partitions());
        let events =
            store.events(vec![Place { partition, position: 0 }], u32::MAX).await.expect("events");
        let ours = events.into_iter().filter(|event| event.event.subject == subject);
        ours.map(|event| event.event.kind).collect()
    }

    /// Waits until so many commands are in the queue or being committed.
    async fn queued(&self, limits: Limits, count: usize) {
        while self.engine.queued(limits) < count {
            tokio::task::yield_now().await;
        }
    }
}

const ACQUIRER: &str = "1022188000000000001";

/// Far enough: nobody waits that long in a test that passes.
fn soon() -> Duration {
    Duration::from_mins(1)
}

fn caller(wait: Duration) -> Caller {
    Caller { deadline: Instant::now() + wait, client: None, trace: None }
}

fn command(key: &str) -> CancelPayment {
    CancelPayment { key: payment_key(key), acquirer: acquirer(ACQUIRER) }
}

async fn cancel(
    engine: &Engine,
    key: &str,
    wait: Duration,
) -> Result<cancel_payment::Outcome, Error> {
    engine.cancel_payment(command(key), caller(wait)).await
}

fn terms() -> Terms {
    Terms { amount: amount(1_999), initiated_at: at(NOON) }
}

/// Asserts SUCCESS and says whether it was repeated.
fn success(outcome: &Result<cancel_payment::Outcome, Error>) -> bool {
    match outcome {
        Ok(cancel_payment::Outcome::Decided { verdict, repeated }) => {
            assert_eq!(verdict.code, ResultCode::Success);
            *repeated
        }
        other => panic!("not a decided cancel: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_leaves_only_after_its_commit() {
    let house = House::open().await;
    let gate = Gate::new();
    house.store.fail("p", Fault::Held(Arc::clone(&gate)));
    let asked = house.start_cancel("p");
    gate.arrival().await;
    assert!(house.kept("p").await.is_some(), "it is committed, and the store has not said so");
    assert_eq!(house.store.told.load(Ordering::SeqCst), 0);
    assert!(!asked.is_finished());
    gate.open();
    assert!(!success(&asked.await.expect("no panic")));
    assert_eq!(house.store.told.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_cannot_be_reached_gives_nobody_an_outcome() {
    let house = House::open().await;
    let gate = Gate::new();
    house.store.fail("first", Fault::Held(Arc::clone(&gate)));
    let first = house.start_cancel("first");
    gate.arrival().await;
    // these wait for the same batch, one of them is the reason
    house.store.fail("q3", Fault::Unavailable);
    let asked: Vec<_> = (0..8).map(|nth| house.start_cancel(&format!("q{nth}"))).collect();
    house.queued(LIMITS, 9).await;
    gate.open();
    assert!(!success(&first.await.expect("no panic")));
    for asked in asked {
        let answer = asked.await.expect("no panic");
        let Err(Error::Store(source)) = &answer else { panic!("{answer:?}") };
        assert!(matches!(**source, store::Error::Unavailable(_)));
    }
    for nth in 0..8 {
        assert_eq!(house.kept(&format!("q{nth}")).await, None);
    }
    assert_eq!(house.store.batches().len(), 2, "and the batch is not tried by halves");

    house.store.heal();
    for nth in 0..8 {
        assert!(!success(&house.cancel(&format!("q{nth}")).await), "nothing had happened");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_to_a_commit_gives_nobody_an_outcome_and_the_retry_finds_what_is_true() {
    for (fault, committed) in [(Fault::CommittedUnheard, true), (Fault::LostUnheard, false)] {
        let house = House::open().await;
        let gate = Gate::new();
        house.store.fail("first", Fault::Held(Arc::clone(&gate)));
        let first = house.start_cancel("first");
        gate.arrival().await;
        house.store.fail("q3", fault);
        let asked: Vec<_> = (0..8).map(|nth| house.start_cancel(&format!("q{nth}"))).collect();
        house.queued(LIMITS, 9).await;
        gate.open();
        assert!(!success(&first.await.expect("no panic")));
        for asked in asked {
            let answer = asked.await.expect("no panic");
            let Err(Error::Store(source)) = &answer else { panic!("{answer:?}") };
            assert!(matches!(**source, store::Error::CommitUnknown(_)));
        }
        house.store.heal();
        for nth in 0..8 {
            let key = format!("q{nth}");
            assert_eq!(success(&house.cancel(&key).await), committed);
            assert_eq!(house.events_of(&key).await, [EventKind::PaymentCancelled]);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_batch_refused_for_its_data_only_the_culprits_fail() {
    for culprits in [&["q0"][..], &["q5"], &["q12"], &["q3", "q4"], &["q0", "q12"]] {
        let house = House::open().await;
        let gate = Gate::new();
        house.store.fail("first", Fault::Held(Arc::clone(&gate)));
        let first = house.start_cancel("first");
        gate.arrival().await;
        for culprit in culprits {
            house.store.fail(culprit, Fault::Data);
        }
        let keys: Vec<String> = (0..13).map(|nth| format!("q{nth}")).collect();
        let asked: Vec<_> = keys.iter().map(|key| house.start_cancel(key)).collect();
        house.queued(LIMITS, 14).await;
        gate.open();
        assert!(!success(&first.await.expect("no panic")));
        for (key, asked) in keys.iter().zip(asked) {
            let answer = asked.await.expect("no panic");
            if culprits.contains(&key.as_str()) {
                let Err(Error::Store(source)) = &answer else { panic!("{answer:?}") };
                assert!(matches!(**source, store::Error::Data(_)));
                assert_eq!(house.kept(key).await, None);
            } else {
                assert!(!success(&answer), "{key}: it was committed once");
                assert_eq!(house.events_of(key).await, [EventKind::PaymentCancelled]);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_turns_cancels_away_while_records_still_get_in() {
    const FEW: Limits = Limits { queue: 4, batch: 64, wait: Duration::MAX };
    let house = House::with(FEW).await;
    let gate = Gate::new();
    house.store.fail("first", Fault::Held(Arc::clone(&gate)));
    let first = house.start_cancel("first");
    gate.arrival().await;
    let waiting: Vec<_> = (0..3).map(|nth| house.start_cancel(&format!("w{nth}"))).collect();
    house.queued(FEW, 4).await;

    let turned_away = house.cancel("one more").await;
    assert!(matches!(turned_away, Err(Error::Full)), "{turned_away:?}");
    let revoke = RevokeAuthorization { key: authorization_key("a") };
    let turned_away = house.engine.revoke_authorization(revoke, caller(soon())).await;
    assert!(matches!(turned_away, Err(Error::Full)), "{turned_away:?}");

    let mut record = Box::pin(house.record("paid", Fact::Initiated(terms())));
    assert!(futures_util::poll!(record.as_mut()).is_pending(), "it waits, and is not turned away");
    gate.open();
    assert_eq!(record.await.expect("an answer"), record_payment::Outcome::Proceed);
    success(&first.await.expect("no panic"));
    for waiting in waiting {
        success(&waiting.await.expect("no panic"));
    }
    // every place was given back
    for nth in 0..12 {
        success(&house.cancel(&format!("later{nth}")).await);
    }
    assert_eq!(house.kept("one more").await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waited_too_long_for_a_transaction_is_turned_away_and_nothing_happened() {
    const HASTY: Limits = Limits { queue: 64, batch: 64, wait: Duration::from_millis(1) };
    let house = House::with(HASTY).await;
    let gate = Gate::new();
    house.store.fail("first", Fault::Held(Arc::clone(&gate)));
    // on a machine that is busy enough, even the first one has waited too long
    let first = loop {
        let first = house.start_cancel("first");
        tokio::select! {
            () = gate.arrival() => break first,
            () = tokio::time::sleep(Duration::from_millis(200)) => {}
        }
    };
    let late = house.start_cancel("late");
    house.queued(HASTY, 2).await;
    tokio::time::sleep(2 * HASTY.wait).await;
    gate.open();
    success(&first.await.expect("no panic"));
    let late = late.await.expect("no panic");
    assert!(matches!(late, Err(Error::Full)), "{late:?}");
    assert_eq!(house.kept("late").await, None);
}

/// The clock stands still, so nobody has waited at all.
#[tokio::test]
async fn who_waited_as_long_as_one_may_is_not_turned_away() {
    let house = House::with(Limits { wait: Duration::ZERO, ..LIMITS }).await;
    house.store.fail("p", Fault::Forgotten);
    tokio::time::pause();
    let answer = house.cancel("p").await;
    assert!(matches!(answer, Err(Error::Stopping)), "it came to the store: {answer:?}");
}

/// While the store fails, waiting is its doing: whoever waits behind it gets their try.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waited_for_a_store_that_failed_is_not_turned_away() {
    const HASTY: Limits = Limits { queue: 64, batch: 1, wait: Duration::from_millis(1) };
    for (unavailable, tried) in [(true, true), (false, false)] {
        let house = House::with(HASTY).await;
        let gate = Gate::new();
        let first = loop {
            let fault = if unavailable { Fault::HeldUnavailable } else { Fault::Held };
            house.store.fail("first", fault(Arc::clone(&gate)));
            let first = house.start_cancel("first");
            tokio::select! {
                () = gate.arrival() => break first,
                () = tokio::time::sleep(Duration::from_millis(200)) => {}
            }
        };
        let late = house.start_cancel("late");
        house.queued(HASTY, 2).await;
        tokio::time::sleep(2 * HASTY.wait).await;
        gate.open();
        assert_eq!(first.await.expect("no panic").is_err(), unavailable);
        let late = late.await.expect("no panic");
        if tried {
            assert!(!success(&late));
        } else {
            assert!(matches!(late, Err(Error::Full)), "{late:?}");
        }
    }
}

/// The engine tells no store to try for longer than anybody waits, nor a lane to stand still.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_may_be_tried_until_its_last_caller_leaves_and_seven_seconds_at_most() {
    const PATIENCE: Duration = Duration::from_secs(7);
    let house = House::open().await;
    let terms = |nth: usize| house.store.terms.lock().expect("no panic")[nth].0;
    let before = Instant::now();
    success(&house.cancel("patient").await);
    let after = Instant::now();
    assert!((before + PATIENCE..=after + PATIENCE).contains(&terms(0)));

    let gate = Gate::new();
    house.store.fail("first", Fault::Held(Arc::clone(&gate)));
    let first = house.start_cancel("first");
    gate.arrival().await;
    let (short, long) = (caller(Duration::from_secs(5)), caller(Duration::from_secs(6)));
    let last = long.deadline;
    let mut asked = Vec::new();
    for (key, caller) in [("a", short.clone()), ("b", long), ("c", short)] {
        let mut cancel = Box::pin(house.engine.cancel_payment(command(key), caller));
        assert!(futures_util::poll!(cancel.as_mut()).is_pending());
        asked.push(cancel);
    }
    gate.open();
    success(&first.await.expect("no panic"));
    for asked in asked {
        success(&asked.await);
    }
    assert_eq!(terms(2), last);
}

/// A command whose decision was never asked for has no answer to give.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_asks_for_no_decision_gives_nobody_an_outcome() {
    let house = House::open().await;
    house.store.fail("p", Fault::Forgotten);
    let answer = house.cancel("p").await;
    assert!(matches!(answer, Err(Error::Stopping)), "{answer:?}");
    assert_eq!(house.kept("p").await, None);
}

/// A store that others commit to answers reads in a commit, which proves that it still may.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_may_look_into_a_suspect_store_and_not_into_one_that_cannot_be_reached() {
    let house = House::open().await;
    house.record("p", Fact::Initiated(terms())).await.expect("recorded");
    house.store.shared.store(true, Ordering::SeqCst);
    let look = || house.engine.get_payment(payment_key("p"), caller(soon()));
    let kept = house.kept("p").await;
    assert!(kept.is_some());
    let batches = house.store.batches().len();
    assert_eq!(look().await.expect("an answer"), kept);
    assert_eq!(house.store.batches().len(), batches + 1, "it was read in a commit");
    house.store.fail("p", Fault::Suspect);
    assert_eq!(look().await.expect("an answer"), kept);
    let cancelled = house.cancel("p").await;
    assert!(matches!(cancelled, Err(Error::Store(_))), "and nothing is decided: {cancelled:?}");
    house.store.fail("p", Fault::Unavailable);
    let unreachable = look().await;
    assert!(matches!(unreachable, Err(Error::Store(_))), "{unreachable:?}");
}

/// What mends a suspect store runs in it; a batch in which anything else is does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_batch_of_imports_is_run_in_a_suspect_store() {
    let house = House::open().await;
    let line = |key: &str| {
        let state = alipayplus_cancel::domain::payment::State::Initiated(terms());
        let history = Payment { acquirer: Some(acquirer(ACQUIRER)), recorded_at: None, state };
        vec![ImportPayment { key: payment_key(key), history }]
    };
    let import = |key| house.engine.import_payments(line(key), caller(soon()));
    import("alone").await.expect("taken");
    success(&house.cancel("alone too").await);

    let gate = Gate::new();
    house.store.fail("first", Fault::Held(Arc::clone(&gate)));
    let first = house.start_cancel("first");
    gate.arrival().await;
    let mut imported = Box::pin(import("together"));
    assert!(futures_util::poll!(imported.as_mut()).is_pending());
    let mut cancelled = Box::pin(house.cancel("at the same time"));
    assert!(futures_util::poll!(cancelled.as_mut()).is_pending());
    gate.open();
    success(&first.await.expect("no panic"));
    imported.await.expect("taken");
    success(&cancelled.await);
    let although: Vec<bool> =
        house.store.terms.lock().expect("no panic").iter().map(|(_, although)| *although).collect();
    assert_eq!(although, [true, false, false, false]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_client_took_of_its_tombstones_stays_taken_if_its_quota_is_the_same() {
    let house = House::open().await;
    let client = ClientId::parse("client-1").expect("legal");
    let rate = |burst| Rate {
        per_second: NonZeroU32::MIN,
        burst: NonZeroU32::new(burst).expect("more than none"),
    };
    let set = |burst| {
        let bucket = Bucket::new(rate(burst));
        let tombstones = HashMap::from([(client.clone(), Arc::clone(&bucket))]);
        house.engine.set_tombstones(tombstones);
        bucket
    };
    let cancel = async |key: String| {
        let asker = Caller { client: Some(client.clone()), ..caller(soon()) };
        house.engine.cancel_payment(command(&key), asker).await.expect("an answer")
    };
    let first = set(100);
    let mut refused = None;
    // a second later there is another one, and this machine may be slow
    for nth in 0..100 {
        while first.take().is_ok() {}
        set(100);
        let outcome = cancel(format!("same{nth}")).await;
        if outcome == cancel_payment::Outcome::TooManyTombstones {
            refused = Some(nth);
            break;
        }
    }
    assert_ne!(refused, None, "a quota that was used up came back with a reload");
    set(99);
    let outcome = cancel("other".to_owned()).await;
    assert_eq!(outcome.code(), ResultCode::Success, "another quota is a new one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verdict_remembers_who_asked_first_and_in_which_trace() {
    let house = House::open().await;
    let trace = TraceContext::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00");
    let trace = trace.expect("a traceparent");
    let client = ClientId::parse("client-1");
    let asker =
        Caller { client: client.clone(), trace: Some(Span::unrecorded(trace)), ..caller(soon()) };
    house.engine.cancel_payment(command("p"), asker).await.expect("an answer");
    success(&house.cancel("p").await);
    let kept = house.kept("p").await.expect("kept");
    let verdict = kept.verdict().expect("decided");
    assert_eq!((&verdict.by, verdict.trace), (&client, Some(trace.trace)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_records_leaves_cancels_their_places() {
    const FEW: Limits = Limits { queue: 2, batch: 64, wait: Duration::MAX };
    let house = House::with(FEW).await;
    let gate = Gate::new();
    house.store.fail("first", Fault::Held(Arc::clone(&gate)));
    let mut first = Box::pin(house.record("first", Fact::Initiated(terms())));
    assert!(futures_util::poll!(first.as_mut()).is_pending());
    let mut second = Box::pin(house.record("second", Fact::Initiated(terms())));
    assert!(futures_util::poll!(second.as_mut()).is_pending());
    let third = house.record("third", Fact::Initiated(terms())).await;
    assert!(matches!(third, Err(Error::Full)), "{third:?}");
    let cancel = house.start_cancel("c");
    house.queued(FEW, 3).await;
    gate.open();
    assert!(!success(&cancel.await.expect("no panic")));
    first.await.expect("an answer");
    second.await.expect("an answer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_stops_waiting_is_told_so_and_a_command_that_waited_too_long_is_not_decided() {
    let house = House::open().await;
    let gate = Gate::new();
    house.store.fail("slow", Fault::Held(Arc::clone(&gate)));
    loop {
        let slow = cancel(&house.engine, "slow", Duration::from_millis(50)).await;
        assert!(matches!(slow, Err(Error::DeadlinePassed)), "{slow:?}");
        // on a machine that is busy enough, it may not even have got into a batch
        if house.store.batches().contains(&HashSet::from([payment_key("slow")])) {
            break;
        }
    }
    gate.arrival().await;

    let late = cancel(&house.engine, "late", Duration::from_millis(20)).await;
    assert!(matches!(late, Err(Error::DeadlinePassed)), "{late:?}");
    gate.open();
    success(&house.cancel("next").await);
    assert_eq!(house.kept("late").await, None, "it was left out");
    assert!(house.store.batches().iter().all(|batch| !batch.contains(&payment_key("late"))));

    // what was under way is committed, and the retry finds it
    assert!(success(&house.cancel("slow").await));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_that_is_over_before_the_call_is_told_as_such_every_time() {
    let house = House::open().await;
    let mut tasks = tokio::task::JoinSet::new();
    for nth in 0..400 {
        let engine = house.engine.clone();
        tasks.spawn(async move { cancel(&engine, &format!("p{nth}"), Duration::ZERO).await });
    }
    while let Some(answer) = tasks.join_next().await {
        let answer = answer.expect("no panic");
        assert!(matches!(answer, Err(Error::DeadlinePassed)), "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_never_answers_gives_nobody_an_outcome_and_bounds_who_waits() {
    const FEW: Limits = Limits { queue: 8, batch: 4, wait: Duration::MAX };
    let house = House::with(FEW).await;
    house.store.fail("p0", Fault::Silence);
    let ask = |nth| {
        let engine = house.engine.clone();
        let wait = Duration::from_millis(200);
        tokio::spawn(async move { cancel(&engine, &format!("p{nth}"), wait).await })
    };
    let mut asked = vec![ask(0)];
    // alone, so that the others stand behind its batch and not before it
    while house.store.batches().is_empty() {
        tokio::task::yield_now().await;
    }
    asked.extend((1..8).map(ask));
    for asked in asked {
        let answer = asked.await.expect("no panic");
        assert!(matches!(answer, Err(Error::DeadlinePassed)), "{answer:?}");
    }
    let more = house.cancel("more").await;
    assert!(matches!(more, Err(Error::Full)), "{more:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_ten_concurrent_cancels_exactly_one_decides_and_announces() {
    let house = House::open().await;
    house.record("paid", Fact::Succeeded(terms())).await.expect("recorded");
    for (key, events) in [
        ("unknown", &[EventKind::PaymentCancelled][..]),
        ("paid", &[EventKind::PaymentCancelled, EventKind::FundReturnDue(amount(1_999))]),
    ] {
        let asked: Vec<_> = (0..10).map(|_| house.start_cancel(key)).collect();
        let mut outcomes = Vec::new();
        for asked in asked {
            outcomes.push(asked.await.expect("no panic"));
        }
        assert_eq!(outcomes.iter().filter(|outcome| !success(outcome)).count(), 1);
        let verdicts: Vec<_> = outcomes
            .iter()
            .map(|outcome| match outcome {
                Ok(cancel_payment::Outcome::Decided { verdict, .. }) => verdict.clone(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert!(verdicts.iter().all(|verdict| *verdict == verdicts[0]));
        assert_eq!(house.events_of(key).await, events);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_on_one_payment_in_one_batch_see_each_other() {
    let house = House::open().await;
    let gate = Gate::new();
    house.store.fail("first", Fault::Held(Arc::clone(&gate)));
    let first = house.start_cancel("first");
    gate.arrival().await;
    // in this order, in one batch: each polled once, which queues it
    let mut initiated = Box::pin(house.record("p", Fact::Initiated(terms())));
    assert!(futures_util::poll!(initiated.as_mut()).is_pending());
    let mut succeeded = Box::pin(house.record("p", Fact::Succeeded(terms())));
    assert!(futures_util::poll!(succeeded.as_mut()).is_pending());
    let mut cancelled = Box::pin(house.cancel("p"));
    assert!(futures_util::poll!(cancelled.as_mut()).is_pending());
    let mut again = Box::pin(house.cancel("p"));
    assert!(futures_util::poll!(again.as_mut()).is_pending());
    let returned = RecordFundReturn {
        key: payment_key("p"),
        reference: alipayplus_cancel::domain::id::FundReturnReference::parse("r1").expect("legal"),
    };
    let mut returned = Box::pin(house.engine.record_fund_return(returned, caller(soon())));
    assert!(futures_util::poll!(returned.as_mut()).is_pending());
    let mut initiated_again = Box::pin(house.record("p", Fact::Initiated(terms())));
    assert!(futures_util::poll!(initiated_again.as_mut()).is_pending());
    gate.open();

    assert_eq!(initiated.await.expect("an answer"), record_payment::Outcome::Proceed);
    assert_eq!(succeeded.await.expect("an answer"), record_payment::Outcome::Accepted);
    assert!(!success(&cancelled.await));
    assert!(success(&again.await));
    let (outcome, payment) = returned.await.expect("an answer");
    assert_eq!(outcome, alipayplus_cancel::domain::record_fund_return::Outcome::Accepted);
    assert_eq!(payment, house.kept("p").await);
    let refused = initiated_again.await.expect("an answer");
    assert_eq!(refused, record_payment::Outcome::RefusedCancelled);
    success(&first.await.expect("no panic"));
    assert_eq!(house.store.batches().len(), 2, "the six were one batch");
    let due = EventKind::FundReturnDue(amount(1_999));
    assert_eq!(house.events_of("p").await, [EventKind::PaymentCancelled, due]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_never_holds_more_than_it_may() {
    const NARROW: Limits = Limits { queue: 64, batch: 5, wait: Duration::MAX };
    let house = House::with(NARROW).await;
    let gate = Gate::new();
    house.store.fail("first", Fault::Held(Arc::clone(&gate)));
    let first = house.start_cancel("first");
    gate.arrival().await;
    let asked: Vec<_> = (0..17).map(|nth| house.start_cancel(&format!("p{nth}"))).collect();
    house.queued(NARROW, 18).await;
    gate.open();
    success(&first.await.expect("no panic"));
    for asked in asked {
        success(&asked.await.expect("no panic"));
    }
    let sizes: Vec<usize> = house.store.batches().iter().map(HashSet::len).collect();
    assert_eq!(sizes, [1, 5, 5, 5, 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_worker_ends_with_the_last_handle_and_everything_accepted_is_done() {
    let house = House::open().await;
    let gate = Gate::new();
    house.store.fail("first", Fault::Held(Arc::clone(&gate)));
    let mut asked = vec![house.start_cancel("first")];
    gate.arrival().await;
    asked.extend((0..20).map(|nth| house.start_cancel(&format!("p{nth}"))));
    house.queued(LIMITS, 21).await;
    let House { folder, engine, worker, .. } = house;
    drop(engine);
    gate.open();
    for asked in asked {
        assert!(!success(&asked.await.expect("no panic")));
    }
    worker.await.expect("no panic");
    for nth in 0..20 {
        let kept = folder.store().payment(payment_key(&format!("p{nth}"))).await;
        assert!(kept.expect("a read").is_some());
    }
}

/// Where the verdict would be CANCEL_WINDOW_EXCEED, and nowhere else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clocks_that_disagree_hold_back_only_the_verdict_that_hangs_on_the_time() {
    let house = House::open().await;
    for key in ["early", "late", "verged", "refused"] {
        house.record(key, Fact::Succeeded(terms())).await.expect("recorded");
    }
    let closes = CancelWindow::ALIPAYPLUS.closes_at(at(NOON)).unix_ms;
    let set = |ours: i64, ahead: Option<i64>| {
        house.clock.0.store(ours, Ordering::SeqCst);
        *house.store.clock.lock().expect("no panic") = ahead.map(|ahead| at(ours + ahead));
    };
    for ahead in [-6_000, 6_000, i64::MAX / 2] {
        set(NOON, Some(ahead));
        success(&house.cancel(&format!("unknown{ahead}")).await);
    }
    set(closes, Some(6_000));
    assert!(!success(&house.cancel("early").await), "the last moment is inside, by our clock");

    for ahead in [-6_000, 6_000, -5_001, 5_001] {
        set(closes + 1, Some(ahead));
        let held_back = house.cancel("late").await.expect("an answer");
        assert_eq!(held_back, cancel_payment::Outcome::ClockUncertain);
        assert_eq!(held_back.code(), ResultCode::UnknownException);
    }
    let refused = |outcome: &cancel_payment::Outcome| match outcome {
        cancel_payment::Outcome::Decided { verdict, repeated } => {
            assert_eq!(verdict.code, ResultCode::CancelWindowExceed);
            *repeated
        }
        cancel_payment::Outcome::NotYours
        | cancel_payment::Outcome::Onboarding
        | cancel_payment::Outcome::TooManyTombstones
        | cancel_payment::Outcome::ClockUncertain
        | cancel_payment::Outcome::RefundUndecided => panic!("{outcome:?}"),
    };
    for (key, ahead) in [("late", Some(5_000)), ("verged", Some(-5_000)), ("refused", None)] {
        set(closes + 1, ahead);
        assert!(!refused(&house.cancel(key).await.expect("an answer")), "nothing was recorded");
    }
    // what is recorded does not hang on the time any more
    set(closes + 1, Some(6_000));
    assert!(refused(&house.cancel("late").await.expect("an answer")));
    assert!(success(&house.cancel("early").await));
    assert!(house.events_of("late").await.is_empty());
}

// tokens

const TOKEN_ACQUIRER: &str = "102218800000001234";

fn token_acquirer() -> AcquirerId {
    acquirer(TOKEN_ACQUIRER)
}

fn token_psp() -> PspId {
    psp("102208800000001230")
}

fn token(text: &str) -> Token {
    Token::parse(text).expect("a legal token")
}

fn recording(text: &str, authorization: AuthorizationKey, replaces: Option<&str>) -> RecordToken {
    RecordToken {
        authorization,
        acquirer: token_acquirer(),
        token: token(text),
        kind: TokenKind::Access,
        expires_at: None,
        replaces: replaces.map(token),
        pass_through_info: None,
    }
}

fn cancelling(text: &str) -> CancelToken {
    CancelToken {
        psp: token_psp(),
        acquirer: token_acquirer(),
        token: token(text),
        pass_through_info: None,
    }
}

fn code_of(outcome: &cancel_token::Outcome) -> ResultCode {
    outcome.code()
}

/// Both orders are right; what must not be is a token that is good after it was called invalid, or one called invalid
/// after it was recorded.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_token_is_never_both_recorded_and_invalid_however_the_two_race() {
    const RACES: usize = 2_000;
    const AT_ONCE: usize = 50;
    let house = House::open().await;
    let both = Arc::new(AtomicBool::new(false));
    let (mut recorded_first, mut cancelled_first) = (0, 0);
    for round in 0..RACES / AT_ONCE {
        let mut races = tokio::task::JoinSet::new();
        for nth in 0..AT_ONCE {
            let engine = house.engine.clone();
            let both = Arc::clone(&both);
            races.spawn(async move {
                let name = format!("race-{round}-{nth}");
                let record = tokio::spawn({
                    let (engine, name) = (engine.clone(), name.clone());
                    async move {
                        let command = recording(&name, authorization_key(&name), None);
                        engine.record_token(command, caller(soon())).await.expect("an answer")
                    }
                });
                let cancel = tokio::spawn({
                    let (engine, name) = (engine.clone(), name.clone());
                    async move {
                        let command = cancelling(&name);
                        engine.cancel_token(command, caller(soon())).await.expect("an answer")
                    }
                });
                let record = record.await.expect("no panic");
                let cancelled = cancel.await.expect("no panic");
                let (psp, token) = (token_psp(), token(&name));
                let active = engine.introspect_token(&psp, &token, caller(soon())).await;
                assert_eq!(active.expect("an answer"), None, "cancelled one way or the other");
                let again = engine.cancel_token(cancelling(&name), caller(soon())).await;
                assert_eq!(code_of(&again.expect("an answer")), code_of(&cancelled));
                match (record, code_of(&cancelled)) {
                    (record_token::Outcome::Accepted, ResultCode::Success) => true,
                    (record_token::Outcome::RefusedDead, ResultCode::InvalidToken) => false,
                    other => {
                        both.store(true, Ordering::SeqCst);
                        panic!("{other:?}")
                    }
                }
            });
        }
        while let Some(race) = races.join_next().await {
            if race.expect("no race went wrong") {
                recorded_first += 1;
            } else {
                cancelled_first += 1;
            }
        }
    }
    assert!(!both.load(Ordering::SeqCst));
    assert_eq!(recorded_first + cancelled_first, RACES);
    println!("recorded first: {recorded_first}, cancelled first: {cancelled_first}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_over_its_quota_declares_no_token_dead_and_cancels_those_it_knows() {
    let house = House::open().await;
    let client = ClientId::parse("client-1").expect("legal");
    let rate = Rate { per_second: NonZeroU32::MIN, burst: NonZeroU32::MIN };
    let bucket = Bucket::new(rate);
    house.engine.set_tombstones(HashMap::from([(client.clone(), Arc::clone(&bucket))]));
    let cancel = async |name: &str| {
        while bucket.take().is_ok() {}
        let asker = Caller { client: Some(client.clone()), ..caller(soon()) };
        let cancelled = house.engine.cancel_token(cancelling(name), asker).await;
        code_of(&cancelled.expect("an answer"))
    };
    let command = recording("known", authorization_key("known"), None);
    house.engine.record_token(command, caller(soon())).await.expect("an answer");
    // a second later there is another one, and this machine may be slow
    let mut refused = 0;
    for nth in 0..100 {
        if cancel(&format!("unknown{nth}")).await == ResultCode::RequestTrafficExceedLimit {
            refused += 1;
            break;
        }
    }
    assert_eq!(refused, 1, "a quota that was used up is one");
    assert_eq!(cancel("known").await, ResultCode::Success);
}

/// An exchange in flight either ends before the cancel, which then revokes the new token too, or is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_exchange_that_races_with_a_cancel_leaves_no_token_alive() {
    const RACES: usize = 200;
    const AT_ONCE: usize = 50;
    let house = House::open().await;
    for round in 0..RACES / AT_ONCE {
        let mut races = tokio::task::JoinSet::new();
        for nth in 0..AT_ONCE {
            let engine = house.engine.clone();
            races.spawn(async move {
                let (old, new) = (format!("old-{round}-{nth}"), format!("new-{round}-{nth}"));
                let grant = authorization_key(&old);
                let record = |command| engine.record_token(command, caller(soon()));
                let first = record(recording(&old, grant.clone(), None)).await.expect("answer");
                assert_eq!(first, record_token::Outcome::Accepted);
                let exchange = record(recording(&new, grant.clone(), Some(&old)));
                let cancel = engine.cancel_token(cancelling(&old), caller(soon()));
                let revoke = RevokeAuthorization { key: grant.clone() };
                let revoke = engine.revoke_authorization(revoke, caller(soon()));
                let (exchange, cancel, revoke) = tokio::join!(exchange, cancel, revoke);
                let exchange = exchange.expect("an answer");
                assert!(
                    matches!(
                        exchange,
                        record_token::Outcome::Accepted | record_token::Outcome::RefusedRevoked
                    ),
                    "{exchange:?}"
                );
                assert_eq!(code_of(&cancel.expect("an answer")), ResultCode::Success);
                let revoked = revoke.expect("an answer");
                assert_eq!(revoked, revoke_authorization::Outcome::Accepted);
                for text in [&old, &new] {
                    let (psp, token) = (token_psp(), token(text));
                    let active = engine.introspect_token(&psp, &token, caller(soon())).await;
                    assert_eq!(active.expect("an answer"), None, "{text}");
                }
            });
        }
        while let Some(race) = races.join_next().await {
            race.expect("no race went wrong");
        }
    }
    let store = house.folder.store();
    let mut revocations = Vec::new();
    for partition in 0..store.partitions().count() {
        for event in
            store.events(vec![Place { partition, position: 0 }], u32::MAX).await.expect("events")
        {
            assert_eq!(event.event.kind, EventKind::AuthorizationRevoked);
            revocations.push(event.event.subject);
        }
    }
    assert_eq!(revocations.len(), RACES, "exactly one of each grant");
    assert_eq!(revocations.into_iter().collect::<HashSet<_>>().len(), RACES);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_token_and_its_cancel_in_one_batch_see_each_other() {
    let house = House::open().await;
    let gate = Gate::new();
    house.store.fail("first", Fault::Held(Arc::clone(&gate)));
    let first = house.start_cancel("first");
    gate.arrival().await;
    let engine = &house.engine;
    let grant = || authorization_key("grant");
    let mut record = Box::pin(engine.record_token(recording("old", grant(), None), caller(soon())));
    assert!(futures_util::poll!(record.as_mut()).is_pending());
    let mut exchange =
        Box::pin(engine.record_token(recording("new", grant(), Some("old")), caller(soon())));
    assert!(futures_util::poll!(exchange.as_mut()).is_pending());
    let mut cancel = Box::pin(engine.cancel_token(cancelling("old"), caller(soon())));
    assert!(futures_util::poll!(cancel.as_mut()).is_pending());
    let mut sibling = Box::pin(engine.cancel_token(cancelling("new"), caller(soon())));
    assert!(futures_util::poll!(sibling.as_mut()).is_pending());
    let mut dead = Box::pin(engine.cancel_token(cancelling("unknown"), caller(soon())));
    assert!(futures_util::poll!(dead.as_mut()).is_pending());
    let mut refused = Box::pin(
        engine.record_token(recording("unknown", authorization_key("other"), None), caller(soon())),
    );
    assert!(futures_util::poll!(refused.as_mut()).is_pending());
    gate.open();
    success(&first.await.expect("no panic"));
    assert_eq!(record.await.expect("an answer"), record_token::Outcome::Accepted);
    assert_eq!(exchange.await.expect("an answer"), record_token::Outcome::Accepted);
    assert_eq!(code_of(&cancel.await.expect("an answer")), ResultCode::Success);
    assert_eq!(code_of(&sibling.await.expect("an answer")), ResultCode::Success);
    assert_eq!(code_of(&dead.await.expect("an answer")), ResultCode::InvalidToken);
    assert_eq!(refused.await.expect("an answer"), record_token::Outcome::RefusedDead);
    assert_eq!(house.store.batches().len(), 2, "the six were one batch");
}
