//! The simulated store: what is durable, whatever becomes of the replicas, and each replica's way to it, which fails.
//!
//! It keeps the contract of `alipayplus_cancel::store` and no rule of the domain. A commit is in three steps, as over a
//! network to a database: load and decide under the lock, in the replica's own task; then the transaction is with the
//! database, in a task of its own that a crash of the replica does not end; then the answer comes back, or does not.

use std::{
    collections::BTreeMap,
    future,
    sync::{Arc, Mutex},
    time::Duration,
};

use alipayplus_cancel::{
    domain::{
        authorization::Authorization,
        consumer::{Consumer, ConsumerName},
        key::{AuthorizationKey, Partitions, PaymentKey, TokenKey},
        payment::{Money, Payment, State, Untouched},
        time::Timestamp,
        token::Token,
    },
    store::{
        Backlog, Batch, Changes, Cursor, Error, Follow, Following, Granted, Head, Kept, Known,
        Outstanding, OutstandingPayment, Page, Pending, Place, Positioned, Standing,
        StandingChange, Store, Takeover, Wanted,
    },
};
use tokio::{
    sync::{Mutex as Lock, OwnedMutexGuard, oneshot},
    time::{sleep, timeout_at},
};

use crate::{Broken, world::World};

/// Few, so that keys share one.
pub const PARTITIONS: u16 = 4;

/// Everything that is durable.
#[derive(Clone, Debug)]
pub struct Rows {
    pub payments: BTreeMap<PaymentKey, Payment>,
    pub authorizations: BTreeMap<AuthorizationKey, Authorization>,
    pub tokens: BTreeMap<TokenKey, Token>,
    pub events: Vec<Vec<Positioned>>,
    pub consumers: BTreeMap<ConsumerName, Consumer>,
    pub standing: Standing,
}

/// The disk, and the lock that a transaction holds from its load to its commit.
pub struct Disk {
    pub rows: Mutex<Rows>,
    lock: Arc<Lock<()>>,
}

impl Disk {
    pub fn new() -> Self {
        let rows = Rows {
            payments: BTreeMap::new(),
            authorizations: BTreeMap::new(),
            tokens: BTreeMap::new(),
            events: vec![vec![]; usize::from(PARTITIONS)],
            consumers: BTreeMap::new(),
            standing: Standing { epoch: 1, onboarding: true, suspect: None },
        };
        Self { rows: Mutex::new(rows), lock: Arc::default() }
    }

    fn read<T>(&self, read: impl FnOnce(&mut Rows) -> T) -> T {
        read(&mut self.rows.lock().expect("no panic"))
    }
}

impl Rows {
    fn known(&self, wanted: &Wanted, clock: Timestamp) -> Known {
        let mut known =
            Known { onboarding: self.standing.onboarding, clock: Some(clock), ..Known::default() };
        let payments = wanted.payments.iter();
        known.payments = payments
            .filter_map(|key| Some((key.clone(), self.payments.get(key)?.clone())))
            .collect();
        let mut grants = wanted.authorizations.clone();
        for key in &wanted.tokens {
            let Some(token) = self.tokens.get(key) else { continue };
            if let Token::Recorded(recorded) = token {
                let authorization = recorded.authorization.clone();
                grants.push(AuthorizationKey { psp: key.psp.clone(), authorization });
            }
            known.tokens.insert(key.hash, token.clone());
        }
        let grants = grants.into_iter();
        known.authorizations = grants
            .filter_map(|key| {
                let grant = self.authorizations.get(&key)?.clone();
                Some((key, grant))
            })
            .collect();
        known
    }

    fn write(&mut self, changes: Changes, partitions: Partitions) {
        self.payments.extend(changes.payments);
        self.authorizations.extend(changes.authorizations);
        self.tokens.extend(changes.tokens);
        for event in changes.events {
            let partition = event.subject.partition(partitions);
            let events = &mut self.events[usize::from(partition)];
            let position = u64::try_from(events.len()).expect("few") + 1;
            events.push(Positioned { partition, position, id: event.id(), event });
        }
    }

    fn heads(&self) -> Vec<Head> {
        let head = |events: &Vec<Positioned>| Head {
            position: u64::try_from(events.len()).expect("few"),
            purged: 0,
        };
        self.events.iter().map(head).collect()
    }
}

/// One replica's way to the store, as long as the replica lives.
pub struct Connection {
    pub world: Arc<World>,
    pub replica: usize,
    pub generation: u64,
}

/// What a commit comes to.
type Committed = (Box<dyn Batch>, Result<(), Error>);

fn lost() -> Error {
    Error::CommitUnknown("the connection ended".into())
}

fn unreachable() -> Error {
    Error::Unavailable("no way to the database".into())
}

impl Connection {
    fn partitions() -> Partitions {
        Partitions::new(PARTITIONS).expect("in range")
    }

    /// A point at which the replica may crash. What is dead waits for ever, until its task is ended.
    async fn point(&self, name: &'static str) {
        let (world, replica) = (&self.world, self.replica);
        let alive = world.is_alive(replica, self.generation);
        if alive && world.strikes(|odds| odds.crash_at_store) {
            world.note(|| format!("replica {replica} crashes {name}"));
            world.crash(replica);
        } else if alive {
            return;
        }
        future::pending::<()>().await;
    }

    /// The way there or back.
    async fn trip(&self) {
        let wait = self.world.pick(|rng| rand::Rng::random_range(rng, 0..3u64));
        sleep(Duration::from_millis(wait)).await;
        while self.world.is_cut_from_store(self.replica) {
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn commit(&self, mut batch: Box<dyn Batch>) -> Committed {
        let world = &self.world;
        self.point("before it asks the store").await;
        let deadline = batch.deadline();
        let locked = async {
            self.trip().await;
            Arc::clone(&world.disk.lock).lock_owned().await
        };
        let Ok(guard) = timeout_at(deadline.into(), locked).await else {
            return (batch, Err(unreachable()));
        };
        if world.strikes(|odds| odds.commit_refused) {
            world.count(|counts| &counts.commits_failed);
            return (batch, Err(unreachable()));
        }
        let wanted = batch.wanted();
        let known = || world.disk.read(|rows| rows.known(&wanted, world.store_clock()));
        if world.strikes(|odds| odds.decides_twice) {
            // the database wants it tried again; what it knows is the same, as the lock is held
            let _undone = batch.decide(known());
        }
        let changes = batch.decide(known());
        self.point("with its decisions made").await;
        let (told, answered) = oneshot::channel();
        tokio::spawn(transact(Arc::clone(world), guard, changes, told));
        // it does not wait longer than its callers: what it does not hear of, nobody knows
        let result = match timeout_at(deadline.into(), answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) | Err(_) => Err(lost()),
        };
        self.point("with its commit made").await;
        if timeout_at(deadline.into(), self.trip()).await.is_err() {
            return (batch, Err(lost()));
        }
        (batch, result)
    }

    /// A read, or a small change, that is one step.
    async fn step<T>(&self, step: impl FnOnce(&mut Rows) -> T) -> Result<T, Error> {
        self.point("before it asks the store").await;
        self.trip().await;
        if self.world.strikes(|odds| odds.read_fails) {
            self.world.count(|counts| &counts.reads_failed);
            return Err(unreachable());
        }
        let told = self.world.disk.read(step);
        self.point("with the store's answer").await;
        Ok(told)
    }
}

/// The transaction, once it is with the database.
async fn transact(
    world: Arc<World>,
    guard: OwnedMutexGuard<()>,
    changes: Changes,
    told: oneshot::Sender<Result<(), Error>>,
) {
    let slow = world.strikes(|odds| odds.commit_slow);
    let most = if slow { 9_000 } else { 4 };
    let wait = world.pick(|rng| rand::Rng::random_range(rng, 0..most));
    if slow {
        world.count(|counts| &counts.commits_slow);
    }
    let broken = world.broken;
    if broken == Some(Broken::NoLock) {
        drop(guard);
        sleep(Duration::from_millis(wait)).await;
    } else {
        let _locked = guard;
        if broken == Some(Broken::AnswersFirst) && world.strikes(|odds| odds.commit_lost) {
            // it says so, and does not come to it
            drop(told.send(Ok(())));
            return;
        }
        sleep(Duration::from_millis(wait)).await;
        if world.strikes(|odds| odds.commit_lost) {
            world.count(|counts| &counts.commits_lost);
            world.note(|| "a commit is not made, and nobody is told".to_owned());
            drop(told.send(Err(lost())));
            return;
        }
        finish(&world, changes, told);
        return;
    }
    finish(&world, changes, told);
}

fn finish(world: &World, mut changes: Changes, told: oneshot::Sender<Result<(), Error>>) {
    if world.broken == Some(Broken::EventsApart) && world.strikes(|odds| odds.commit_lost) {
        changes.events.clear();
    }
    world.disk.read(|rows| rows.write(changes, Connection::partitions()));
    let unheard = world.strikes(|odds| odds.commit_unheard);
    if unheard {
        world.count(|counts| &counts.commits_unheard);
        world.note(|| "a commit is made, and nobody is told".to_owned());
    }
    drop(told.send(if unheard { Err(lost()) } else { Ok(()) }));
}

fn is_outstanding(payment: &Payment, kind: Outstanding) -> bool {
    let State::Cancelled(cancelled) = &payment.state else { return false };
    match kind {
        Outstanding::FundReturnDue => matches!(cancelled.money, Money::Due { .. }),
        Outstanding::Unresolved => cancelled.money == Money::Untouched(Untouched::Initiated),
    }
}

impl Store for Connection {
    fn partitions(&self) -> Partitions {
        Self::partitions()
    }

    fn lanes(&self) -> usize {
        2
    }

    fn shared(&self) -> bool {
        true
    }

    fn commit(&self, batch: Box<dyn Batch>) -> Pending<'_, Committed> {
        Box::pin(Self::commit(self, batch))
    }

    fn payment(&self, key: PaymentKey) -> Pending<'_, Result<Option<Payment>, Error>> {
        Box::pin(self.step(move |rows| rows.payments.get(&key).cloned()))
    }

    fn token(&self, keys: Vec<TokenKey>) -> Pending<'_, Result<Option<Granted>, Error>> {
        Box::pin(self.step(move |rows| {
            let token = keys.iter().find_map(|key| Some((key, rows.tokens.get(key)?)));
            token.map(|(key, token)| {
                let grant = match token {
                    Token::Recorded(recorded) => rows.authorizations.get(&AuthorizationKey {
                        psp: key.psp.clone(),
                        authorization: recorded.authorization.clone(),
                    }),
                    Token::DeadOnArrival(_) => None,
                };
                (token.clone(), grant.cloned())
            })
        }))
    }

    fn heads(&self) -> Pending<'_, Result<Vec<Head>, Error>> {
        Box::pin(self.step(|rows| rows.heads()))
    }

    fn events(
        &self,
        behind: Vec<Place>,
        limit: u32,
    ) -> Pending<'_, Result<Vec<Positioned>, Error>> {
        Box::pin(self.step(move |rows| {
            let limit = usize::try_from(limit).expect("small");
            let mut found = vec![];
            for place in behind {
                let events = rows.events[usize::from(place.partition)].iter();
                let later = events.filter(|event| event.position > place.position);
                found.extend(later.take(limit).cloned());
            }
            found
        }))
    }

    fn follow(&self, consumer: ConsumerName, mut decide: Follow) -> Pending<'_, Result<(), Error>> {
        Box::pin(self.step(move |rows| {
            let following = Following {
                consumer: rows.consumers.get(&consumer).cloned(),
                heads: rows.heads(),
                standing: rows.standing.clone(),
            };
            match decide(following) {
                Kept::AsItIs => {}
                Kept::Consumer(kept) => {
                    rows.consumers.insert(consumer, kept);
                }
                Kept::Nothing => {
                    rows.consumers.remove(&consumer);
                }
            }
        }))
    }

    fn consumers(&self) -> Pending<'_, Result<Vec<(ConsumerName, Consumer)>, Error>> {
        Box::pin(self.step(|rows| rows.consumers.clone().into_iter().collect()))
    }

    fn standing(&self) -> Pending<'_, Result<Standing, Error>> {
        Box::pin(self.step(|rows| rows.standing.clone()))
    }

    fn change_standing(&self, change: StandingChange) -> Pending<'_, Result<Standing, Error>> {
        Box::pin(self.step(move |rows| {
            match change {
                StandingChange::ImportComplete => rows.standing.onboarding = false,
                StandingChange::Suspect(why) => {
                    rows.standing.suspect.get_or_insert(why);
                }
                StandingChange::Reconciled(_) => rows.standing.suspect = None,
            }
            rows.standing.clone()
        }))
    }

    fn backlog(&self, kind: Outstanding) -> Pending<'_, Result<Backlog, Error>> {
        Box::pin(self.step(move |rows| {
            let outstanding = rows.payments.values().filter(|it| is_outstanding(it, kind));
            Backlog { count: u64::try_from(outstanding.count()).expect("few"), oldest: None }
        }))
    }

    fn outstanding(
        &self,
        _: Outstanding,
        _: u32,
    ) -> Pending<'_, Result<Vec<OutstandingPayment>, Error>> {
        // nobody in the simulation asks
        Box::pin(future::ready(Err(unreachable())))
    }

    fn purge(&self, _: Vec<Place>, _: Timestamp, _: u32) -> Pending<'_, Result<u64, Error>> {
        Box::pin(future::ready(Err(unreachable())))
    }

    fn page(&self, _: Cursor, _: u32) -> Pending<'_, Result<Page, Error>> {
        Box::pin(future::ready(Err(unreachable())))
    }

    fn fill(&self, _: Page) -> Pending<'_, Result<(), Error>> {
        Box::pin(future::ready(Err(unreachable())))
    }

    fn take_over(&self, _: Takeover) -> Pending<'_, Result<(), Error>> {
        Box::pin(future::ready(Err(unreachable())))
    }
}
