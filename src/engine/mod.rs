//! From a command to its answer: queue → batch → store transaction that runs `decide` → answer after the commit.
//!
//! A commit costs an fsync or round trips, a decision microseconds. So commands queue, and a worker takes everything that
//! waits into one transaction: alone, a command waits for nobody; under load, the batch grows by itself. An answer leaves only
//! once its commit is known to be durable, and an [`Error`] is never an answer: whoever gets one asks again.

mod batch;
mod command;
mod hash_ring;
mod import;
mod working;

use std::{
    collections::HashMap,
    panic::AssertUnwindSafe,
    process,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use futures_util::FutureExt as _;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    task::{JoinHandle, JoinSet},
    time,
};

use self::{
    batch::{Attempt, Entry, Waiting},
    command::{
        Command, LookUpAuthorization, LookUpPayment, LookUpToken, QuotedCancelPayment, Tombstone,
    },
};
pub use self::{
    command::{CancelToken, RecordToken},
    hash_ring::{HashKeyError, HashRing},
    import::ImportToken,
};
use crate::{
    domain::{
        Alarm,
        authorization::Authorization,
        cancel_payment::{self, CancelPayment},
        cancel_token,
        id::{ClientId, PspId, Token},
        import_payment::{self, ImportPayment},
        import_token,
        introspect_token::{self, Active},
        key::{AuthorizationKey, PaymentKey},
        payment::Payment,
        policy::Policy,
        record_fund_return::{self, RecordFundReturn},
        record_payment::{self, RecordPayment},
        record_token,
        revoke_authorization::{self, RevokeAuthorization},
        time::Timestamp,
    },
    feed::Wake,
    layer::rate_limit::Bucket,
    store::{self, Backlog, Outstanding, OutstandingPayment, Standing, StandingChange, Store},
    telemetry::{
        Metrics, Span, label,
        log::Together,
        metrics::{BoundSeconds, Told},
    },
};

/// Why there is no answer. Whoever gets one does not know whether anything happened, unless a variant says so.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Too many commands wait for a commit, or this one waited too long for it. Nothing happened.
    #[error("queue of commands is full")]
    Full,
    /// The caller's time is over.
    #[error("deadline passed before the commit was known")]
    DeadlinePassed,
    /// The service is ending. Nothing happened.
    #[error("engine is stopping")]
    Stopping,
    /// The store failed.
    #[error("command could not be committed")]
    Store(#[source] Arc<store::Error>),
}

/// On whose behalf a command runs.
#[derive(Clone, Debug)]
pub struct Caller {
    /// When the caller stops waiting.
    pub deadline: Instant,
    /// Alipay+'s Client-Id; absent for a caller inside the wallet.
    pub client: Option<ClientId>,
    /// The request's place in its trace.
    pub trace: Option<Span>,
}

/// Our clock.
pub trait Clock: Send + Sync + 'static {
    /// This moment.
    fn now(&self) -> Timestamp;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let unix_ms = jiff::Timestamp::now().as_millisecond();
        Timestamp { unix_ms }
    }
}

/// How much the engine takes at once.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Commands waiting for a commit, cancels and records each: a flood of the one must not stop the other.
    pub queue: usize,
    /// Commands in one transaction.
    pub batch: usize,
    /// How long one may wait for its transaction to begin: who waited longer is turned away.
    pub wait: Duration,
}

/// How many tombstones each client may leave; who is not in it may leave any number.
pub type Tombstones = HashMap<ClientId, Arc<Bucket>>;

/// The engine's handle; clones share the workers.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
    tombstones: Arc<ArcSwap<Tombstones>>,
}

struct Inner {
    store: Arc<dyn Store>,
    hashes: HashRing,
    clock: Arc<dyn Clock>,
    /// One queue a lane of the store's.
    queues: Vec<mpsc::UnboundedSender<Waiting>>,
    cancels: Arc<Semaphore>,
    records: Arc<Semaphore>,
    metrics: Metrics,
}

impl Engine {
    /// Starts the workers, one a lane of the store's, which wake the feed after each commit of events. They end, all
    /// accepted commands done, when the last handle is gone: await the second value.
    pub fn start(
        store: Arc<dyn Store>,
        wake: &Wake,
        hashes: HashRing,
        policy: Arc<Policy>,
        clock: Arc<dyn Clock>,
        limits: Limits,
        metrics: &Metrics,
    ) -> (Self, JoinHandle<()>) {
        let worker = Worker {
            store: Arc::clone(&store),
            wake: wake.clone(),
            policy,
            clock: Arc::clone(&clock),
            metrics: metrics.clone(),
            queue_wait: metrics.queue_wait.bind(&[]),
            batch_max: limits.batch.max(1),
            wait_max: limits.wait,
        };
        let (mut queues, mut workers) = (Vec::new(), JoinSet::new());
        for _ in 0..store.lanes().max(1) {
            // unbounded in name only: what may wait is bounded by the two semaphores
            let (queue, inbox) = mpsc::unbounded_channel();
            queues.push(queue);
            let worker = worker.clone();
            workers.spawn(async move {
                // without it nothing is answered any more, while the process looks well: a restart is better
                if AssertUnwindSafe(worker.run(inbox)).catch_unwind().await.is_err() {
                    tracing::error!(
                        "the engine's worker panicked; stopping at once, nothing unanswered is lost"
                    );
                    process::abort();
                }
            });
        }
        let (cancels, records) =
            (Arc::new(Semaphore::new(limits.queue)), Arc::new(Semaphore::new(limits.queue)));
        let shares = [("cancels", Arc::clone(&cancels)), ("records", Arc::clone(&records))];
        metrics.queue_depth.ask(move || {
            let depth = |(queue, share): &(&'static str, Arc<Semaphore>)| -> Told {
                let waiting = limits.queue.saturating_sub(share.available_permits());
                (vec![label("queue", *queue)], i64::try_from(waiting).unwrap_or(i64::MAX))
            };
            shares.iter().map(depth).collect()
        });
        for reason in ["queue", "queue_wait"] {
            metrics.shed.add(0, &[label("front", "core"), label("reason", reason)]);
        }
        for alarm in Alarm::ALL {
            metrics.alarms.add(0, &[label("alarm", alarm.name())]);
        }
        metrics.commits.add(0, &[]);
        metrics.commit_failures.add(0, &[]);
        let metrics = metrics.clone();
        (
            Self {
                inner: Arc::new(Inner { store, hashes, clock, queues, cancels, records, metrics }),
                tombstones: Arc::default(),
            },
            tokio::spawn(workers.join_all().map(drop)),
        )
    }

    /// Other quotas of tombstones from now on, for every clone of this handle. What was taken stays taken, as far as a
    /// client's quota is the same.
    pub fn set_tombstones(&self, mut tombstones: Tombstones) {
        let before = self.tombstones.load();
        for (client, now) in &mut tombstones {
            if let Some(before) = before.get(client).filter(|before| before.rate() == now.rate()) {
                *now = Arc::clone(before);
            }
        }
        self.tombstones.store(Arc::new(tombstones));
    }

    /// Commands that wait for a commit, or for its answer, now.
    pub fn queued(&self, limits: Limits) -> usize {
        let (cancels, records) = (&self.inner.cancels, &self.inner.records);
        let free = cancels.available_permits().saturating_add(records.available_permits());
        limits.queue.saturating_mul(2).saturating_sub(free)
    }

    /// See [`cancel_payment`].
    pub async fn cancel_payment(
        &self,
        command: CancelPayment,
        caller: Caller,
    ) -> Result<cancel_payment::Outcome, Error> {
        let command =
            QuotedCancelPayment { command, tombstone: Tombstone::of(self.quota(&caller)) };
        self.decide(&self.inner.cancels, command, caller).await
    }

    /// See [`cancel_token`].
    pub async fn cancel_token(
        &self,
        command: CancelToken,
        caller: Caller,
    ) -> Result<cancel_token::Outcome, Error> {
        let command = command.hashed(&self.inner.hashes, self.quota(&caller));
        self.decide(&self.inner.cancels, command, caller).await
    }

    /// See [`record_payment`].
    pub async fn record_payment(
        &self,
        command: RecordPayment,
        caller: Caller,
    ) -> Result<(record_payment::Outcome, Option<Payment>), Error> {
        self.decide(&self.inner.records, command, caller).await
    }

    /// See [`record_fund_return`].
    pub async fn record_fund_return(
        &self,
        command: RecordFundReturn,
        caller: Caller,
    ) -> Result<(record_fund_return::Outcome, Option<Payment>), Error> {
        self.decide(&self.inner.records, command, caller).await
    }

    /// See [`record_token`].
    pub async fn record_token(
        &self,
        command: RecordToken,
        caller: Caller,
    ) -> Result<record_token::Outcome, Error> {
        let command = command.hashed(&self.inner.hashes);
        self.decide(&self.inner.records, command, caller).await
    }

    /// See [`revoke_authorization`].
    pub async fn revoke_authorization(
        &self,
        command: RevokeAuthorization,
        caller: Caller,
    ) -> Result<revoke_authorization::Outcome, Error> {
        self.decide(&self.inner.cancels, command, caller).await
    }

    /// See [`import_payment`]: some hundred at a time, in one transaction, answered in their order.
    pub async fn import_payments(
        &self,
        payments: Vec<ImportPayment>,
        caller: Caller,
    ) -> Result<Vec<import_payment::Outcome>, Error> {
        self.decide(&self.inner.records, import::ImportPayments(payments), caller).await
    }

    /// See [`import_token`]: some hundred at a time, in one transaction, answered in their order.
    pub async fn import_tokens(
        &self,
        tokens: Vec<ImportToken>,
        caller: Caller,
    ) -> Result<Vec<import_token::Outcome>, Error> {
        let hashes = &self.inner.hashes;
        let tokens = tokens.into_iter().map(|token| token.hashed(hashes)).collect();
        self.decide(&self.inner.records, import::ImportTokens(tokens), caller).await
    }

    /// See [`introspect_token`].
    pub async fn introspect_token(
        &self,
        psp: &PspId,
        token: &Token,
        caller: Caller,
    ) -> Result<Option<Active>, Error> {
        let keys = self.inner.hashes.keys(psp, token);
        if self.inner.store.shared() {
            return self.decide(&self.inner.records, LookUpToken(keys), caller).await;
        }
        let found = within(caller.deadline, self.inner.store.token(keys)).await?;
        Ok(introspect_token::decide(found, self.inner.clock.now()))
    }

    /// One payment, as of now.
    pub async fn get_payment(
        &self,
        key: PaymentKey,
        caller: Caller,
    ) -> Result<Option<Payment>, Error> {
        if self.inner.store.shared() {
            let deadline = caller.deadline;
            return match self.decide(&self.inner.records, LookUpPayment(key.clone()), caller).await
            {
                // nothing is decided, but people may look
                Err(Error::Store(error)) if matches!(*error, store::Error::Suspect(_)) => {
                    within(deadline, self.inner.store.payment(key)).await
                }
                answered => answered,
            };
        }
        within(caller.deadline, self.inner.store.payment(key)).await
    }

    /// One authorization, as of now. A store that is suspect does not tell it.
    pub async fn get_authorization(
        &self,
        key: AuthorizationKey,
        caller: Caller,
    ) -> Result<Option<Authorization>, Error> {
        self.decide(&self.inner.records, LookUpAuthorization(key), caller).await
    }

    /// What holds for the store as a whole.
    pub async fn standing(&self) -> Result<Standing, Error> {
        self.inner.store.standing().await.map_err(stored)
    }

    /// Changes it.
    pub async fn change_standing(&self, change: StandingChange) -> Result<Standing, Error> {
        self.inner.store.change_standing(change).await.map_err(stored)
    }

    /// How many payments people have to look after, and the first of them, longest outstanding first.
    pub async fn outstanding(
        &self,
        kind: Outstanding,
        limit: u32,
        caller: Caller,
    ) -> Result<(Backlog, Vec<OutstandingPayment>), Error> {
        let backlog = within(caller.deadline, self.inner.store.backlog(kind)).await?;
        let first = within(caller.deadline, self.inner.store.outstanding(kind, limit)).await?;
        Ok((backlog, first))
    }

    fn quota(&self, caller: &Caller) -> Option<Arc<Bucket>> {
        self.tombstones.load().get(caller.client.as_ref()?).cloned()
    }

    async fn decide<C: Command>(
        &self,
        share: &Arc<Semaphore>,
        command: C,
        caller: Caller,
    ) -> Result<C::Answer, Error> {
        let permit = Arc::clone(share).try_acquire_owned().map_err(|_| {
            self.inner.metrics.shed.add(1, &[label("front", "core"), label("reason", "queue")]);
            Error::Full
        })?;
        let deadline = caller.deadline;
        let (answer, answered) = oneshot::channel();
        let queue = match self.inner.queues.as_slice() {
            [queue] => queue,
            // the same partition goes the same lane, so that lanes wait for each other as little as may be
            queues => {
                let partition = command.partition(self.inner.store.partitions());
                let lane = usize::from(partition).checked_rem(queues.len()).unwrap_or(0);
                queues.get(lane).ok_or(Error::Stopping)?
            }
        };
        if let Some(span) = caller.trace.as_ref().filter(|span| span.is_recorded()) {
            command.mark(span);
        }
        let entry = Box::new(Entry::new(command, caller.client, caller.trace, answer));
        queue.send(Waiting { entry, deadline, permit }).map_err(|_| Error::Stopping)?;
        match time::timeout_at(deadline.into(), answered).await {
            Ok(Ok(answer)) => answer,
            // the worker leaves out whoever's deadline has passed, and may notice that first
            Ok(Err(_)) if deadline <= now() => Err(Error::DeadlinePassed),
            Ok(Err(_)) => Err(Error::Stopping),
            Err(_) => Err(Error::DeadlinePassed),
        }
    }
}

/// This moment, by the clock that tokio's timers run on, so that who holds that clock (a simulation) holds deadlines too.
pub(crate) fn now() -> Instant {
    time::Instant::now().into_std()
}

fn stored(source: store::Error) -> Error {
    Error::Store(Arc::new(source))
}

async fn within<T>(
    deadline: Instant,
    read: store::Pending<'_, Result<T, store::Error>>,
) -> Result<T, Error> {
    match time::timeout_at(deadline.into(), read).await {
        Ok(answer) => answer.map_err(stored),
        Err(_) => Err(Error::DeadlinePassed),
    }
}

/// Takes what waits and has it committed.
#[derive(Clone)]
struct Worker {
    store: Arc<dyn Store>,
    wake: Wake,
    policy: Arc<Policy>,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    /// Of each command, so looked up once.
    queue_wait: BoundSeconds,
    batch_max: usize,
    wait_max: Duration,
}

/// How long a transaction may take: a caller who would wait longer must not keep a whole lane on a server that hangs.
const PATIENCE: Duration = Duration::from_secs(7);

/// How far our clock and the store's may be apart.
const CLOCK_SKEW_MAX: Duration = Duration::from_secs(5);

impl Worker {
    async fn run(self, mut inbox: mpsc::UnboundedReceiver<Waiting>) {
        let mut waiting = Vec::with_capacity(self.batch_max);
        // while the store fails, waiting is its doing and not that of too many callers
        let mut commits = true;
        while inbox.recv_many(&mut waiting, self.batch_max).await > 0 {
            let now = now();
            let deadline = waiting.iter().map(|waiting| waiting.deadline).max().unwrap_or(now);
            let deadline = deadline.min(now + PATIENCE);
            let (mut entries, mut permits) = (Vec::new(), Vec::<OwnedSemaphorePermit>::new());
            for Waiting { entry, deadline, permit } in waiting.drain(..) {
                // whoever stopped waiting was told "unknown"; leaving it out keeps a backlog from growing
                if deadline <= now {
                    continue;
                }
                // nor does it help to answer everybody just in time, and the next of them too late
                if commits && now.saturating_duration_since(entry.queued()) > self.wait_max {
                    self.metrics
                        .shed
                        .add(1, &[label("front", "core"), label("reason", "queue_wait")]);
                    entry.turn_away();
                    continue;
                }
                entries.push(entry);
                permits.push(permit);
            }
            if !entries.is_empty() {
                commits = self.commit(entries, deadline).await;
            }
            drop(permits);
        }
    }

    /// Commits a batch; one that the store refuses for its data is tried again by halves, so that only the culprit fails.
    /// Whether the store could be used.
    async fn commit(&self, entries: Vec<Box<dyn batch::AnyEntry>>, deadline: Instant) -> bool {
        let mut usable = true;
        let mut batches = vec![entries];
        while let Some(entries) = batches.pop().filter(|entries| !entries.is_empty()) {
            let size = entries.len();
            let (clock, policy) = (Arc::clone(&self.clock), Arc::clone(&self.policy));
            let batch = batch::Decisions::new(entries, clock, policy, deadline);
            let (shared, eventful) = (batch.entries(), batch.eventful());
            let begun = now();
            let (_, result) = self.store.commit(Box::new(batch)).await;
            let mut entries = batch::reclaim(&shared);
            let system = self.store.system();
            let attempt = Attempt { begun, ended: now(), size, system, good: result.is_ok() };
            self.observe(&attempt, &entries);
            // what may have been committed too: the feed looks for itself
            if eventful.load(Ordering::Relaxed) {
                self.wake.events_committed();
            }
            match result {
                Ok(()) => {
                    let _lines = Together::begin();
                    for entry in entries {
                        entry.answer(&self.metrics);
                    }
                }
                Err(store::Error::Data(_) | store::Error::Damaged(_)) if size > 1 => {
                    let second = entries.split_off(size / 2);
                    batches.push(second);
                    batches.push(entries);
                }
                Err(error) => {
                    tracing::error!(error = %store::chain(&error), commands = size, "commit failed; its callers are told to ask again");
                    usable =
                        usable && matches!(error, store::Error::Data(_) | store::Error::Damaged(_));
                    let error = Arc::new(error);
                    for entry in entries {
                        entry.fail(&error);
                    }
                }
            }
        }
        usable
    }

    fn observe(&self, attempt: &Attempt, entries: &[Box<dyn batch::AnyEntry>]) {
        let metrics = &self.metrics;
        if attempt.good {
            metrics.commits.add(1, &[]);
            metrics.batch_size.record(u64::try_from(attempt.size).unwrap_or(u64::MAX), &[]);
        } else {
            metrics.commit_failures.add(1, &[]);
        }
        let result = if attempt.good { "ok" } else { "failed" };
        let took = attempt.ended.saturating_duration_since(attempt.begun);
        metrics.commit_duration.record(took, &[label("result", result)]);
        for entry in entries {
            self.queue_wait.record(attempt.begun.saturating_duration_since(entry.queued()));
            entry.trace(attempt);
        }
    }
}
