//! The world of a schedule: its dice, its clocks, its network, its replicas, and what goes wrong.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    future::{self, Future},
    pin::Pin,
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use alipayplus_cancel::{
    domain::{policy::Policy, time::Timestamp},
    engine::{self, Clock, Engine, HashRing},
    feed::{self, Feed, Wake},
    grpc::{
        client::Client,
        front::{Door, Stack},
        server::{Deadlines, Server},
    },
    layer::{
        caller_rate::CallerRates,
        identity::Permissions,
        overload::{InFlight, Overload},
    },
    store::Store,
    telemetry::Telemetry,
};
use arc_swap::ArcSwap;
use http_body_util::BodyExt as _;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    sync::oneshot,
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep},
};
use tonic::{body::Body, codegen::http};
use tower::{Service, ServiceExt as _};

use crate::{
    Broken,
    disk::{Connection, Disk},
};

/// 2026-05-28T12:00:00+08:00.
pub const NOON: i64 = 1_779_940_800_000;
/// The last moment of the window of a payment of that noon.
pub const CLOSES: i64 = NOON + (12 * 60 + 31) * 60_000;

/// One telemetry for all: nobody reads it, and a registry is not made in no time.
static TELEMETRY: LazyLock<Telemetry> = LazyLock::new(Telemetry::local);

/// How likely each thing is to go wrong, in a thousand. A schedule has some of them.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a kind of trouble that a schedule has or not"
)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Odds {
    pub message_lost: u32,
    pub message_slow: u32,
    pub request_twice: u32,
    pub stream_cut: u32,
    pub commit_refused: u32,
    pub commit_slow: u32,
    pub commit_lost: u32,
    pub commit_unheard: u32,
    pub decides_twice: u32,
    pub read_fails: u32,
    pub crash_at_store: u32,
    pub consumer_crashes: u32,
    /// Whether replicas are killed, cut off and their clocks set from outside.
    pub kills: bool,
    pub cuts: bool,
    pub clocks: bool,
    /// Whether the clock of all jumps past the window's end.
    pub jump: bool,
}

impl Odds {
    fn draw(rng: &mut StdRng) -> Self {
        let mut odds =
            |most: u32| if rng.random_bool(0.6) { rng.random_range(1..=most) } else { 0 };
        Self {
            message_lost: odds(60),
            message_slow: odds(30),
            request_twice: odds(60),
            stream_cut: odds(30),
            commit_refused: odds(30),
            commit_slow: odds(15),
            commit_lost: odds(30),
            commit_unheard: odds(60),
            decides_twice: odds(60),
            read_fails: odds(20),
            crash_at_store: odds(4),
            consumer_crashes: odds(40),
            kills: odds(1) > 0,
            cuts: odds(1) > 0,
            clocks: odds(1) > 0,
            jump: odds(1) > 0,
        }
    }
}

macro_rules! counts {
    ($($name:ident),*) => {
        /// What went wrong, and how often.
        #[derive(Debug, Default)]
        pub struct Counts {
            $(pub $name: AtomicU64,)*
        }

        impl Counts {
            /// By name.
            pub fn told(&self) -> BTreeMap<&'static str, u64> {
                BTreeMap::from([$((stringify!($name), self.$name.load(Ordering::Relaxed)),)*])
            }
        }
    };
}

counts!(
    messages_lost,
    messages_slow,
    requests_twice,
    streams_cut,
    commits_failed,
    commits_slow,
    commits_lost,
    commits_unheard,
    reads_failed,
    crashes,
    consumer_crashes,
    cuts,
    clock_changes,
    jumps
);

/// One life of a replica.
struct Incarnation {
    server: Server,
    stack: Stack,
    feed: Feed,
    /// What it answers just now.
    calls: JoinSet<()>,
    engine: AbortHandle,
    beside_feed: AbortHandle,
}

impl Drop for Incarnation {
    fn drop(&mut self) {
        // as a kill does: nothing is finished, nothing is told
        self.calls.abort_all();
        self.engine.abort();
        self.beside_feed.abort();
    }
}

#[derive(Default)]
struct Replica {
    generation: AtomicU64,
    life: Mutex<Option<Incarnation>>,
    /// From callers, and from the store.
    cut: AtomicBool,
    cut_from_store: AtomicBool,
    /// How far its clock is off, in milliseconds.
    skew: AtomicI64,
    /// Whether somebody follows the feed here. One at a time: who of several is woken first is tokio's dice, not ours.
    followed: AtomicBool,
}

pub struct World {
    pub seed: u64,
    pub broken: Option<Broken>,
    pub odds: Odds,
    pub disk: Disk,
    pub counts: Counts,
    /// Nothing goes wrong any more.
    calm: AtomicBool,
    rng: Mutex<StdRng>,
    begun: Instant,
    moments: AtomicU64,
    /// How far the clock of all is set forward, and where it began.
    clock: AtomicI64,
    replicas: Vec<Replica>,
    /// Calls that nobody waits for.
    pub copies: Mutex<JoinSet<()>>,
    trace: Option<Mutex<Vec<String>>>,
    secret: [u8; 32],
}

/// Our clock at one replica.
struct SkewedClock(Arc<World>, usize);

impl Clock for SkewedClock {
    fn now(&self) -> Timestamp {
        self.0.clock_of(self.1)
    }
}

impl World {
    pub fn new(seed: u64, broken: Option<Broken>, traced: bool) -> Arc<Self> {
        let mut rng = StdRng::seed_from_u64(seed);
        let odds = Odds::draw(&mut rng);
        let replicas = rng.random_range(2..=3usize);
        let before_closing = rng.random_range(5_000..40_000);
        let world = Arc::new(Self {
            seed,
            broken,
            odds,
            disk: Disk::new(),
            counts: Counts::default(),
            calm: AtomicBool::new(false),
            rng: Mutex::new(rng),
            begun: Instant::now(),
            moments: AtomicU64::new(0),
            copies: Mutex::default(),
            clock: AtomicI64::new(CLOSES - before_closing),
            replicas: (0..replicas).map(|_| Replica::default()).collect(),
            trace: traced.then(Mutex::default),
            secret: [7; 32],
        });
        world.note(|| format!("{odds:?}, {replicas} replicas"));
        for replica in 0..replicas {
            world.start(replica);
        }
        world
    }

    // ------------------------------------------------------------ dice, clocks, notes

    /// The only source of chance.
    pub fn pick<T>(&self, pick: impl FnOnce(&mut StdRng) -> T) -> T {
        pick(&mut self.rng.lock().expect("no panic"))
    }

    /// Whether this goes wrong now.
    pub fn strikes(&self, odds: impl FnOnce(&Odds) -> u32) -> bool {
        let odds = odds(&self.odds);
        !self.is_calm() && odds > 0 && self.pick(|rng| rng.random_range(0..1000u32)) < odds
    }

    pub fn is_calm(&self) -> bool {
        self.calm.load(Ordering::Relaxed)
    }

    pub fn count(&self, of: impl FnOnce(&Counts) -> &AtomicU64) {
        of(&self.counts).fetch_add(1, Ordering::Relaxed);
    }

    /// Milliseconds since the beginning.
    pub fn elapsed(&self) -> u64 {
        self.begun.elapsed().as_millis().try_into().expect("a short run")
    }

    /// A number for each moment at which something is sent or heard, in their order: no two are the same.
    pub fn moment(&self) -> u64 {
        self.moments.fetch_add(1, Ordering::Relaxed)
    }

    fn time(&self) -> i64 {
        self.clock.load(Ordering::Relaxed) + i64::try_from(self.elapsed()).expect("a short run")
    }

    pub fn store_clock(&self) -> Timestamp {
        Timestamp { unix_ms: self.time() }
    }

    fn clock_of(&self, replica: usize) -> Timestamp {
        Timestamp { unix_ms: self.time() + self.replicas[replica].skew.load(Ordering::Relaxed) }
    }

    pub fn note(&self, line: impl FnOnce() -> String) {
        if let Some(trace) = &self.trace {
            trace.lock().expect("no panic").push(format!("{:>8} {}", self.elapsed(), line()));
        }
    }

    pub fn trace(&self) -> Vec<String> {
        self.trace.as_ref().map(|trace| trace.lock().expect("no panic").clone()).unwrap_or_default()
    }

    // ------------------------------------------------------------ replicas

    pub fn replicas(&self) -> usize {
        self.replicas.len()
    }

    pub fn is_alive(&self, replica: usize, generation: u64) -> bool {
        self.replicas[replica].generation.load(Ordering::Relaxed) == generation
    }

    pub fn is_cut_from_store(&self, replica: usize) -> bool {
        self.replicas[replica].cut_from_store.load(Ordering::Relaxed)
    }

    /// The engine, the feed and the services, as `app` builds them, over this replica's way to the store.
    fn start(self: &Arc<Self>, replica: usize) {
        let generation = self.replicas[replica].generation.load(Ordering::Relaxed);
        let store: Arc<dyn Store> =
            Arc::new(Connection { world: Arc::clone(self), replica, generation });
        let wake = Wake::default();
        let settings = feed::Settings {
            required: vec![],
            retention: Duration::from_hours(1),
            purge_interval: Duration::from_hours(1),
            keep_alive: Duration::from_secs(1),
        };
        let clock = Arc::clone(self);
        let now = Arc::new(move || clock.clock_of(replica));
        let (feed, beside_feed) = Feed::start(Arc::clone(&store), wake.clone(), settings, now);
        let limits = engine::Limits { queue: 256, batch: 16, wait: Duration::from_secs(2) };
        let (engine, worker) = Engine::start(
            store,
            &wake,
            HashRing::new(&[self.secret]).expect("a key"),
            Arc::new(Policy::default()),
            Arc::new(SkewedClock(Arc::clone(self), replica)),
            limits,
            &TELEMETRY.metrics,
        );
        let deadlines = Deadlines {
            cancel_payment: Duration::from_millis(6_500),
            cancel_token: Duration::from_millis(3_500),
            other: Duration::from_secs(5),
        };
        let server = Server::new(engine, deadlines, TELEMETRY.clone());
        let most = InFlight { total: 10_000, per_source: 10_000, per_client: 10_000 };
        let door = Door {
            permissions: Arc::new(ArcSwap::from_pointee(Permissions::Everybody)),
            overload: Overload::new(most),
            rates: CallerRates::new(vec![]),
        };
        let (stack, _health) = server.stack(feed.clone(), false, door);
        let life = Incarnation {
            server,
            stack,
            feed,
            calls: JoinSet::new(),
            engine: worker.abort_handle(),
            beside_feed: beside_feed.abort_handle(),
        };
        *self.replicas[replica].life.lock().expect("no panic") = Some(life);
    }

    /// Kills a replica; after a while it is there again, on the same data.
    pub fn crash(self: &Arc<Self>, replica: usize) {
        let place = &self.replicas[replica];
        place.generation.fetch_add(1, Ordering::Relaxed);
        let Some(life) = place.life.lock().expect("no panic").take() else { return };
        drop(life);
        self.count(|counts| &counts.crashes);
        self.note(|| format!("replica {replica} is gone"));
        let (world, pause) = (Arc::clone(self), self.pick(|rng| rng.random_range(20..3_000)));
        tokio::spawn(async move {
            sleep(Duration::from_millis(pause)).await;
            world.note(|| format!("replica {replica} is back"));
            world.start(replica);
        });
    }

    /// Runs something at a replica, as long as it lives. None: there is nobody.
    fn at<T: Send + 'static>(
        &self,
        replica: usize,
        ask: impl FnOnce(&Incarnation) -> Pending<T>,
    ) -> Option<oneshot::Receiver<T>> {
        let mut life = self.replicas[replica].life.lock().expect("no panic");
        let life = life.as_mut()?;
        let asked = ask(life);
        let (told, answer) = oneshot::channel();
        while life.calls.try_join_next().is_some() {}
        life.calls.spawn(async move { drop(told.send(asked.await)) });
        Some(answer)
    }

    // ------------------------------------------------------------ the network

    /// One message on its way; false: it does not arrive.
    async fn travels(&self, replica: usize) -> bool {
        let slow = self.strikes(|odds| odds.message_slow);
        if slow {
            self.count(|counts| &counts.messages_slow);
        }
        let most = if slow { 12_000 } else { 15 };
        let wait = self.pick(|rng| rng.random_range(0..most));
        // two that are on their way pass each other
        sleep(Duration::from_millis(wait)).await;
        let lost = self.replicas[replica].cut.load(Ordering::Relaxed)
            || self.strikes(|odds| odds.message_lost);
        if lost {
            self.count(|counts| &counts.messages_lost);
        }
        !lost
    }

    /// Asks a replica over the network. The request goes its way even if nobody waits for its answer any more. What is
    /// lost is never answered; a replica that is not there, or dies, may be noticed.
    async fn call<T: Send + 'static>(
        self: Arc<Self>,
        replica: usize,
        ask: impl FnOnce(&Incarnation) -> Pending<T> + Send + 'static,
    ) -> Result<T, Reset> {
        let (told, answer) = oneshot::channel();
        let world = Arc::clone(&self);
        tokio::spawn(async move {
            if !world.travels(replica).await {
                return future::pending().await;
            }
            let answered = match world.at(replica, ask) {
                Some(answer) => answer.await.map_err(|_| Reset),
                None => Err(Reset),
            };
            if answered.is_err() && world.pick(|rng| rng.random_bool(0.5)) {
                return future::pending().await;
            }
            if !world.travels(replica).await {
                return future::pending().await;
            }
            drop(told.send(answered));
        });
        answer.await.unwrap_or(Err(Reset))
    }

    /// A connection to the gRPC front of a replica.
    pub fn channel(self: &Arc<Self>, replica: usize) -> Channel {
        Channel { world: Arc::clone(self), replica }
    }

    /// Asks the half of the bridge that is behind signature and JSON, at a replica.
    pub async fn bridge<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
        self: &Arc<Self>,
        replica: usize,
        ask: impl FnOnce(Client) -> F + Send + 'static,
    ) -> Result<T, Reset> {
        let ask =
            |life: &Incarnation| -> Pending<T> { Box::pin(ask(Client::in_process(&life.server))) };
        Arc::clone(self).call(replica, ask).await
    }

    /// Asks the feed at a replica.
    pub async fn feed<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
        self: &Arc<Self>,
        replica: usize,
        ask: impl FnOnce(Feed) -> F + Send + 'static,
    ) -> Result<T, Reset> {
        let ask = |life: &Incarnation| -> Pending<T> { Box::pin(ask(life.feed.clone())) };
        Arc::clone(self).call(replica, ask).await
    }

    /// Claims the one place of a follower at some replica; given back when the second value goes.
    pub fn follower_place(self: &Arc<Self>) -> Option<(usize, FollowerPlace)> {
        let free = |replica: &usize| !self.replicas[*replica].followed.load(Ordering::Relaxed);
        let free: Vec<usize> = (0..self.replicas()).filter(free).collect();
        if free.is_empty() {
            return None;
        }
        let replica = free[self.pick(|rng| rng.random_range(0..free.len()))];
        self.replicas[replica].followed.store(true, Ordering::Relaxed);
        Some((replica, FollowerPlace(Arc::clone(self), replica)))
    }

    // ------------------------------------------------------------ trouble from outside

    /// Kills, cuts and changes clocks, until it is calm.
    pub async fn trouble(self: Arc<Self>) {
        let jump_at = self.pick(|rng| rng.random_range(1_000..12_000u64));
        let mut jumped = !self.odds.jump;
        let imported_at = self.pick(|rng| rng.random_range(0..1_500u64));
        let mut imported = false;
        loop {
            sleep(Duration::from_millis(self.pick(|rng| rng.random_range(100..1_500)))).await;
            if self.is_calm() {
                return;
            }
            if !imported && self.elapsed() >= imported_at {
                imported = true;
                self.note(|| "import complete".to_owned());
                self.disk.rows.lock().expect("no panic").standing.onboarding = false;
            }
            if !jumped && self.elapsed() >= jump_at {
                jumped = true;
                self.count(|counts| &counts.jumps);
                let by = self.pick(|rng| rng.random_range(10_000..7_200_000));
                self.note(|| format!("every clock jumps by {by} ms"));
                self.clock.fetch_add(by, Ordering::Relaxed);
            }
            let replica = self.pick(|rng| rng.random_range(0..self.replicas.len()));
            let place = &self.replicas[replica];
            match self.pick(|rng| rng.random_range(0..6)) {
                0 if self.odds.kills => {
                    self.note(|| format!("replica {replica} is killed"));
                    self.crash(replica);
                }
                1 | 2 if self.odds.cuts => {
                    self.count(|counts| &counts.cuts);
                    let from_store = self.pick(|rng| rng.random_bool(0.4));
                    let cut = if from_store { &place.cut_from_store } else { &place.cut };
                    let now = !cut.load(Ordering::Relaxed);
                    cut.store(now, Ordering::Relaxed);
                    self.note(|| format!("replica {replica}: cut {now} (store: {from_store})"));
                }
                3 if self.odds.clocks => {
                    self.count(|counts| &counts.clock_changes);
                    let most = if self.pick(|rng| rng.random_bool(0.3)) { 30_000 } else { 3_000 };
                    let skew = self.pick(|rng| rng.random_range(-most..=most));
                    self.note(|| format!("replica {replica}: clock {skew} ms off"));
                    place.skew.store(skew, Ordering::Relaxed);
                }
                _ => {
                    // it heals
                    place.cut.store(false, Ordering::Relaxed);
                    place.cut_from_store.store(false, Ordering::Relaxed);
                }
            }
        }
    }

    /// Nothing goes wrong from now on, and what is under way comes to its end.
    pub async fn calm(&self) {
        self.note(|| "calm".to_owned());
        self.calm.store(true, Ordering::Relaxed);
        self.disk.rows.lock().expect("no panic").standing.onboarding = false;
        for replica in &self.replicas {
            replica.cut.store(false, Ordering::Relaxed);
            replica.cut_from_store.store(false, Ordering::Relaxed);
            replica.skew.store(0, Ordering::Relaxed);
        }
        // the slowest message, behind the slowest commit
        sleep(Duration::from_secs(25)).await;
    }

    /// Everything ends.
    pub fn end(&self) {
        for replica in &self.replicas {
            replica.generation.fetch_add(1, Ordering::Relaxed);
            drop(replica.life.lock().expect("no panic").take());
        }
    }
}

/// The connection ended.
#[derive(Debug, thiserror::Error)]
#[error("connection reset")]
pub struct Reset;

type Pending<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The one place of a follower at a replica.
pub struct FollowerPlace(Arc<World>, usize);

impl Drop for FollowerPlace {
    fn drop(&mut self) {
        self.0.replicas[self.1].followed.store(false, Ordering::Relaxed);
    }
}

/// A connection to the gRPC front of a replica: bytes in, bytes out, as over HTTP/2, without one.
#[derive(Clone)]
pub struct Channel {
    world: Arc<World>,
    replica: usize,
}

impl Service<http::Request<Body>> for Channel {
    type Response = http::Response<Body>;
    type Error = Reset;
    type Future = Pending<Result<Self::Response, Reset>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Reset>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let (world, replica) = (Arc::clone(&self.world), self.replica);
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            // the whole request is sent before anything is waited for
            let body = body.collect().await.map_err(|_| Reset)?;
            let request = http::Request::from_parts(parts, Body::new(body));
            let ask = |life: &Incarnation| -> Pending<http::Response<Body>> {
                let stack = life.stack.clone();
                Box::pin(async move {
                    let answered: Result<_, Infallible> = stack.oneshot(request).await;
                    let (parts, body) =
                        answered.unwrap_or_else(|never| match never {}).into_parts();
                    // and the whole answer, trailers and all
                    let body = body.collect().await.expect("a body in memory");
                    http::Response::from_parts(parts, Body::new(body))
                })
            };
            world.call(replica, ask).await
        })
    }
}
