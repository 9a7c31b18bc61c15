//! The composition root: reads what the settings name, builds every ring, binds, serves, drains.
//!
//! Nothing is bound before all settings, keys and the store are read; readiness turns on last and off first.

use std::{
    fs, io,
    net::SocketAddr,
    num::NonZeroU32,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    thread,
    time::Duration,
};

use governor::{Quota, RateLimiter};
use tokio::{net::TcpListener, task::JoinHandle, time};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use zeroize::Zeroizing;

use crate::{
    admin::Admin,
    bridge::{self, Bridge, Client, ClientKey, Clients, Identity, IdentityError, keys},
    config::{self, Allowed, KeyState, PathPrefix, Settings, StoreUrl},
    domain::Alarm,
    engine::{self, Clock as _, Counters, Engine, HashKeyError, HashRing, SystemClock, Tombstones},
    feed::{self, Feed, Wake},
    grpc::{
        client,
        server::{Deadlines, Health, Origin, Server},
    },
    layer::budget::Budget,
    listen::{Bounds, Front, Protocol},
    store::{
        Store,
        postgres::{self, Dsn, DsnError, Durability, Postgres},
        sqlite::{self, Sqlite},
    },
    tls,
    watch_list::WatchList,
};

/// Why the service does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A file that a setting names cannot be read.
    #[error("{setting}: cannot read {path}")]
    Read {
        /// The setting.
        setting: String,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A key is not one.
    #[error("{setting}: {path} {wrong}")]
    Key {
        /// The setting.
        setting: String,
        /// The file.
        path: PathBuf,
        /// What is wrong with it; the end of the sentence.
        wrong: keys::KeyError,
    },
    /// Keys that do not go together.
    #[error("clients: {0}")]
    Identity(IdentityError),
    /// A hash key is unusable.
    #[error("tokens.hash_key_files: {0}")]
    HashKey(HashKeyError),
    /// Certificates or their keys are unusable.
    #[error("{setting}")]
    Tls {
        /// The setting.
        setting: &'static str,
        /// Why.
        #[source]
        source: tls::Error,
    },
    /// The URL of the database is not one.
    #[error("store.url: {0}")]
    Dsn(DsnError),
    /// The embedded store cannot be used.
    #[error("store.url")]
    Store(#[source] sqlite::OpenError),
    /// The database cannot be used.
    #[error("store.url")]
    Database(#[source] postgres::OpenError),
    /// An address cannot be listened on.
    #[error("{setting}: cannot listen on {address}")]
    Bind {
        /// The setting.
        setting: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl StartError {
    /// Whether the operator has to change the settings or what they name, rather than the state of the machine.
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Read { .. }
            | Self::Key { .. }
            | Self::Identity(_)
            | Self::HashKey(_)
            | Self::Tls { .. }
            | Self::Dsn(_)
            | Self::Store(
                sqlite::OpenError::Partitions { .. } | sqlite::OpenError::HashKeyMissing { .. },
            ) => true,
            Self::Database(error) => error.is_configuration(),
            Self::Store(_) | Self::Bind { .. } => false,
        }
    }
}

/// A service that runs.
pub struct Running {
    /// Where gRPC listens.
    pub grpc: SocketAddr,
    /// Where the JSON front listens.
    pub bridge: SocketAddr,
    /// Where probes are answered.
    pub admin: SocketAddr,
    /// The core, for whoever runs in the same process.
    pub engine: Engine,
    probes: Admin,
    health: Health,
    store: Opened,
    watch: [JoinHandle<()>; 2],
    worker: JoinHandle<()>,
    feed: Feed,
    beside_feed: JoinHandle<()>,
    fronts: Fronts,
    drain_delay: Duration,
    grace: Duration,
}

/// The store, as whoever has to close it knows it.
pub enum Opened {
    /// The embedded one.
    Sqlite(Arc<Sqlite>),
    /// A database elsewhere.
    Postgres(Arc<Postgres>),
}

impl Opened {
    /// The store.
    pub fn store(&self) -> Arc<dyn Store> {
        match self {
            Self::Sqlite(store) => Arc::<Sqlite>::clone(store),
            Self::Postgres(store) => Arc::<Postgres>::clone(store),
        }
    }

    /// Waits until nothing is written any more.
    pub fn close(self) {
        match self {
            Self::Sqlite(store) => store.close(),
            // whatever was asked of it is committed there or not, whether or not we listen
            Self::Postgres(_) => {}
        }
    }
}

/// What listens. The platform's front ends last, so that probes are answered while the others drain.
struct Fronts {
    stop: CancellationToken,
    stop_admin: CancellationToken,
    connections: TaskTracker,
    tasks: TaskTracker,
}

/// Room for probes and scrapes: they are few.
const ADMIN_CONNECTIONS: usize = 64;

/// Reads everything that the settings name, except the store, and uses nothing of it.
pub fn check(settings: &Settings) -> Result<(), StartError> {
    identity(settings)?;
    clients(settings)?;
    grpc_tls(settings)?;
    bridge_tls(settings)?;
    if let StoreUrl::Postgres(_) = settings.store.url {
        database(settings)?;
    }
    hash_ring(settings).map(drop)
}

/// How the database is used.
pub fn database(settings: &Settings) -> Result<postgres::Options, StartError> {
    let store = &settings.store;
    let password = store.password_file.as_ref().map(|path| read("store.password_file", path));
    let password = password.transpose()?;
    let password = password.as_ref().map(|text| text.trim_ascii_end());
    let url = match &store.url {
        StoreUrl::Postgres(url) => url.expose(),
        StoreUrl::Sqlite { .. } => return Err(StartError::Dsn(DsnError::NoHost)),
    };
    Ok(postgres::Options {
        dsn: Dsn::parse(url, password).map_err(StartError::Dsn)?,
        partitions: store.partitions,
        durability: match store.durability {
            config::Durability::Local => Durability::Local,
            config::Durability::Replicated => Durability::Replicated,
        },
        lanes: store.workers,
        spare_connections: store.spare_connections,
    })
}

/// Longest pause between tries to reach the database at the start.
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Opens the store, and says which key of the ring is primary. A database that cannot be reached, or not be written to,
/// is asked again until it can; only what waiting cannot mend is an error.
pub async fn open_store(
    settings: &Settings,
    ring: &HashRing,
) -> Result<(Opened, usize), StartError> {
    let StoreUrl::Sqlite { path } = &settings.store.url else {
        let options = database(settings)?;
        let mut pause = Duration::from_millis(100);
        loop {
            let error = match open_database(settings, &options, ring).await {
                Ok((store, primary)) => return Ok((Opened::Postgres(Arc::new(store)), primary)),
                Err(error) if error.is_configuration() => return Err(StartError::Database(error)),
                Err(error) => crate::store::chain(&error),
            };
            tracing::warn!(%error, "the database cannot be used yet; trying again");
            time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    };
    let opened = Sqlite::open(path, settings.store.partitions, ring.fingerprints());
    let (store, primary) = opened.map_err(StartError::Store)?;
    Ok((Opened::Sqlite(Arc::new(store)), primary))
}

async fn open_database(
    settings: &Settings,
    options: &postgres::Options,
    ring: &HashRing,
) -> Result<(Postgres, usize), postgres::OpenError> {
    if settings.store.migrate_at_start {
        Postgres::migrate(options).await?;
    }
    Postgres::open(options, ring.fingerprints()).await
}

/// A store that a tool has opened, and what a tool needs beside it.
pub struct Tool {
    opened: Opened,
    hashes: HashRing,
}

/// Opens the store that the settings name for a tool: an embedded one is refused while a service has it, and a database
/// that cannot be reached now is an error.
pub async fn open_tool(settings: &Settings) -> Result<Tool, StartError> {
    let ring = hash_ring(settings)?;
    let (opened, primary) = match &settings.store.url {
        StoreUrl::Sqlite { path } => {
            let opened = Sqlite::open(path, settings.store.partitions, ring.fingerprints());
            let (store, primary) = opened.map_err(StartError::Store)?;
            (Opened::Sqlite(Arc::new(store)), primary)
        }
        StoreUrl::Postgres(_) => {
            let options = database(settings)?;
            let opened = open_database(settings, &options, &ring).await;
            let (store, primary) = opened.map_err(StartError::Database)?;
            (Opened::Postgres(Arc::new(store)), primary)
        }
    };
    Ok(Tool { opened, hashes: ring.with_primary(primary) })
}

impl Tool {
    /// The store.
    pub fn store(&self) -> Arc<dyn Store> {
        self.opened.store()
    }

    /// An engine over the store, for a tool that sends one command after the other; what it leaves is to be closed.
    pub fn engine(self, settings: &Settings) -> (Engine, Closing) {
        let limits = engine::Limits { queue: settings.limits.queue, batch: 1 };
        let policy = Arc::new(settings.policy.clone());
        let store = self.opened.store();
        // nobody follows the feed of a tool
        let wake = Wake::default();
        let (engine, worker) =
            Engine::start(store, &wake, self.hashes, policy, Arc::new(SystemClock), limits);
        (engine, Closing { worker, opened: self.opened })
    }

    /// Closes it in order.
    pub async fn close(self) {
        close(self.opened).await;
    }
}

/// What is left of a tool's store once its engine is dropped.
pub struct Closing {
    worker: JoinHandle<()>,
    opened: Opened,
}

impl Closing {
    /// Waits for the engine to end, all of its handles being dropped, and closes the store in order.
    pub async fn close(self) {
        if self.worker.await.is_err() {
            tracing::debug!("the engine's worker did not end by itself");
        }
        close(self.opened).await;
    }
}

async fn close(opened: Opened) {
    if tokio::task::spawn_blocking(move || opened.close()).await.is_err() {
        tracing::error!("the store could not be closed in order; its next start recovers");
    }
}

/// Looks for what no start can see, once the process before did not end in order; beside the service, which goes on.
fn check_after_unclean_stop(store: &Opened) {
    let Opened::Sqlite(store) = store else { return };
    if !store.stopped_uncleanly() {
        return;
    }
    let path = store.path().to_owned();
    let check = move || match Sqlite::check(&path, |_| {}) {
        Ok(checked) if checked.findings.is_empty() => tracing::info!(
            rows = checked.rows,
            "the database was not closed in order; a check of all of it found nothing wrong"
        ),
        Ok(checked) => {
            for finding in checked.findings.iter().take(FINDINGS_TOLD) {
                tracing::error!(
                    finding,
                    "the database is damaged: stop the service, restore it, and run `reconcile`"
                );
            }
        }
        Err(error) => {
            let error = crate::store::chain(&error);
            tracing::error!(
                error,
                "the database could not be checked after it was not closed in order"
            );
        }
    };
    // a thread of its own, which no drain waits for
    if let Err(error) = thread::Builder::new().name("sqlite-check".to_owned()).spawn(check) {
        tracing::error!(%error, "the database could not be checked: no thread");
    }
}

/// Findings of a check that are logged one by one.
const FINDINGS_TOLD: usize = 20;

/// How often the store is asked whether it still answers, and how long that may take.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// Failures in a row from which on requests should go elsewhere: a switch of the primary alone is no reason.
const WATCH_FAILURES: u32 = 3;

/// Readiness follows the store: while it does not answer, every answer of ours would be "ask again".
async fn watch_store(store: Arc<dyn Store>, probes: Admin) {
    let mut failures = 0u32;
    loop {
        time::sleep(WATCH_INTERVAL).await;
        if let Ok(Ok(_)) = time::timeout(2 * WATCH_INTERVAL, store.standing()).await {
            if failures >= WATCH_FAILURES {
                tracing::info!("the store answers again");
            }
            failures = 0;
            probes.set_store(true);
            continue;
        }
        failures = failures.saturating_add(1);
        if failures == WATCH_FAILURES {
            tracing::error!("the store does not answer; not ready until it does");
            probes.set_store(false);
        }
    }
}

/// Starts the whole service in this process.
pub async fn start(settings: &Settings) -> Result<Running, StartError> {
    let identity = identity(settings)?;
    let clients = clients(settings)?;
    let grpc_tls = grpc_tls(settings)?;
    let bridge_tls = bridge_tls(settings)?;
    let ring = hash_ring(settings)?;

    let grpc = bind("grpc.listen", settings.grpc.listen).await?;
    let bridge = bind("bridge.listen", settings.bridge.listen).await?;
    let admin = bind("admin.listen", settings.admin.listen).await?;
    let addresses = [&grpc, &bridge, &admin].map(|(_, address)| *address);

    // alive, and not ready, while the database is waited for
    let fronts = Fronts {
        stop: CancellationToken::new(),
        stop_admin: CancellationToken::new(),
        connections: TaskTracker::new(),
        tasks: TaskTracker::new(),
    };
    let front = |(listener, _), tls, protocol, connections| Front {
        listener,
        tls,
        protocol,
        bounds: bounds(settings),
        connections,
    };
    let probes = Admin::new();
    let platform = Budget::new(ADMIN_CONNECTIONS, ADMIN_CONNECTIONS);
    let admin = front(admin, None, Protocol::Http1, platform);
    fronts.tasks.spawn(admin.serve(
        probes.clone().router(),
        fronts.stop_admin.clone(),
        TaskTracker::new(),
    ));

    let (store, primary) = open_store(settings, &ring).await?;
    check_after_unclean_stop(&store);
    let limits = &settings.limits;
    let wake = Wake::default();
    let (feed, beside_feed) = Feed::start(
        store.store(),
        wake.clone(),
        feed_settings(settings),
        Arc::new(|| SystemClock.now()),
    );
    let (engine, worker) = Engine::start(
        store.store(),
        &wake,
        ring.with_primary(primary),
        Arc::new(settings.policy.clone()),
        Arc::new(SystemClock),
        engine::Limits { queue: limits.queue, batch: limits.batch },
    );
    let engine = engine.with_tombstones(tombstones(settings));
    let deadlines = Deadlines {
        cancel_payment: limits.cancel_payment_deadline,
        cancel_token: limits.cancel_token_deadline,
        other: limits.default_deadline,
    };
    let core = client::Client::in_process(&Server::new(engine.clone(), deadlines, Origin::Bridge));
    let (routes, health) = Server::new(engine.clone(), deadlines, Origin::Network)
        .routes(feed.clone(), settings.grpc.reflection);
    let prefixes: Vec<&str> =
        settings.bridge.path_prefixes.iter().map(PathPrefix::as_str).collect();
    let json = Bridge::new(&prefixes, clients, identity, core, bridge_limits(settings)).router();
    let watch_list = WatchList::new(&settings.feed.required_consumers, || SystemClock.now());
    probes.set_metrics({
        // not the engine: whoever still scrapes must not keep it from ending
        let (counters, watch_list) = (engine.counters(), watch_list.clone());
        move || scrape(&counters) + &watch_list.text()
    });

    let connections = || Budget::new(limits.connections, limits.connections_per_source);
    let (stop, open) = (&fronts.stop, &fronts.connections);
    let grpc = front(grpc, grpc_tls, Protocol::Http2, connections());
    fronts.tasks.spawn(grpc.serve(routes, stop.clone(), open.clone()));
    let bridge = front(bridge, bridge_tls, Protocol::Http1, connections());
    fronts.tasks.spawn(bridge.serve(json, stop.clone(), open.clone()));
    let watch = [
        tokio::spawn(watch_store(store.store(), probes.clone())),
        tokio::spawn(watch_list.keep(store.store())),
    ];
    health.serving().await;
    probes.set_ready(true);
    let [grpc, bridge, admin] = addresses;
    Ok(Running {
        grpc,
        bridge,
        admin,
        engine,
        probes,
        health,
        store,
        watch,
        worker,
        feed,
        beside_feed,
        fronts,
        drain_delay: settings.shutdown.drain_delay,
        grace: settings.shutdown.grace,
    })
}

impl Running {
    /// Drains: not ready, wait for the balancer, accept no more, finish what was accepted, close the store.
    pub async fn stop(self) {
        self.watch.iter().for_each(JoinHandle::abort);
        self.probes.set_ready(false);
        self.health.stopping().await;
        time::sleep(self.drain_delay).await;

        self.fronts.stop.cancel();
        // streams have no end of their own, and must not hold the rest
        self.feed.stop();
        self.fronts.connections.close();
        if time::timeout(self.grace, self.fronts.connections.wait()).await.is_err() {
            tracing::warn!("some connections did not end within shutdown.grace and are dropped");
        }
        self.fronts.stop_admin.cancel();
        self.fronts.tasks.close();
        self.fronts.tasks.wait().await;

        let Self { engine, probes, worker, beside_feed, store, grace, .. } = self;
        if time::timeout(Duration::from_secs(1), beside_feed).await.is_err() {
            tracing::debug!("the feed waits for the store, and is left");
        }
        // the probes count what the engine does, so they have a handle too
        drop((engine, probes));
        // ends by itself once every handle is gone; a dropped connection's may be left
        if time::timeout(Duration::from_secs(1), worker).await.is_err() {
            tracing::debug!("commands of dropped connections are left unanswered");
        }
        // a disk that does not come back must not hold the process
        let closed = tokio::task::spawn_blocking(move || store.close());
        if !matches!(time::timeout(grace, closed).await, Ok(Ok(()))) {
            tracing::error!("the store could not be closed in order; its next start recovers");
        }
    }
}

async fn bind(
    setting: &'static str,
    address: SocketAddr,
) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |source| StartError::Bind { setting, address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

fn feed_settings(settings: &Settings) -> feed::Settings {
    let config = &settings.feed;
    feed::Settings {
        required: config.required_consumers.clone(),
        retention: config.retention,
        purge_interval: config.purge_interval,
        keep_alive: config.keep_alive,
    }
}

fn bounds(settings: &Settings) -> Bounds {
    let limits = &settings.limits;
    Bounds {
        first_byte: limits.first_byte_timeout,
        head: limits.head_timeout,
        idle: limits.idle_timeout,
        write: limits.write_timeout,
        head_bytes: limits.head_bytes,
    }
}

fn bridge_limits(settings: &Settings) -> bridge::Limits {
    let limits = &settings.limits;
    bridge::Limits {
        in_flight: limits.max_in_flight,
        in_flight_per_source: limits.max_in_flight_per_source,
        body_bytes: limits.body_bytes,
        body_bytes_in_flight: limits.body_bytes_in_flight,
        body_bytes_in_flight_per_source: limits.body_bytes_in_flight_per_source,
        body_timeout: limits.body_timeout,
        cancel_payment_deadline: limits.cancel_payment_deadline,
        cancel_token_deadline: limits.cancel_token_deadline,
        request_time_skew: limits.request_time_skew,
    }
}

fn read(setting: &str, path: &Path) -> Result<Zeroizing<Vec<u8>>, StartError> {
    let failed =
        |source| StartError::Read { setting: setting.to_owned(), path: path.to_owned(), source };
    fs::read(path).map(Zeroizing::new).map_err(failed)
}

/// Reads every key of ours, so that a bad staged one is found now and not when it is promoted.
fn identity(settings: &Settings) -> Result<Identity, StartError> {
    let mut active = None;
    for (place, key) in settings.identity.keys.iter().enumerate() {
        let setting = format!("identity.keys.{place}.file");
        let text = read(&setting, &key.file)?;
        let parsed = keys::PrivateKey::parse(&*text).map_err(|wrong| StartError::Key {
            setting,
            path: key.file.clone(),
            wrong,
        })?;
        if key.state == KeyState::Active {
            active = Some(Identity { version: key.version.clone(), key: parsed });
        }
    }
    Ok(active.expect("the settings have exactly one active key: config checks it"))
}

fn clients(settings: &Settings) -> Result<Clients, StartError> {
    let mut clients = Vec::new();
    for (place, client) in settings.clients.iter().enumerate() {
        let mut public = Vec::new();
        for (nth, key) in client.keys.iter().enumerate() {
            let setting = format!("clients.{place}.keys.{nth}.public_key_file");
            let text = read(&setting, &key.public_key_file)?;
            let parsed = keys::PublicKey::parse(&*text).map_err(|wrong| StartError::Key {
                setting,
                path: key.public_key_file.clone(),
                wrong,
            })?;
            public.push(ClientKey {
                version: key.version.clone(),
                key: parsed,
                not_after: key.not_after,
            });
        }
        let rate = quota(client.rate.per_second, client.rate.burst);
        clients.push(Client::new(
            client.id.clone(),
            only(&client.psp_ids),
            only(&client.acquirer_ids),
            public,
            rate,
        ));
    }
    Clients::new(clients).map_err(StartError::Identity)
}

/// Who has a quota of tombstones.
fn tombstones(settings: &Settings) -> Tombstones {
    let limited = |client: &config::Client| {
        let limit = client.tombstones.as_ref()?;
        let limiter = RateLimiter::direct(quota(limit.per_second, limit.burst));
        Some((client.id.clone(), Arc::new(limiter)))
    };
    settings.clients.iter().filter_map(limited).collect()
}

fn quota(per_second: NonZeroU32, burst: NonZeroU32) -> Quota {
    Quota::per_second(per_second).allow_burst(burst)
}

fn only<T: Clone + Ord>(allowed: &Allowed<T>) -> Option<std::collections::BTreeSet<T>> {
    match allowed {
        Allowed::Any => None,
        Allowed::Only(ids) => Some(ids.clone()),
    }
}

/// A hash key's file holds raw bytes, or a line of printable text, which is taken without the line's end.
pub fn hash_ring(settings: &Settings) -> Result<HashRing, StartError> {
    let mut ring = Vec::new();
    for (place, path) in settings.tokens.hash_key_files.iter().enumerate() {
        let bytes = read(&format!("tokens.hash_key_files.{place}"), path)?;
        let line = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let text = line.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' ');
        ring.push(Zeroizing::new(if text { line.to_vec() } else { bytes.to_vec() }));
    }
    HashRing::new(&ring.iter().map(|key| key.as_slice()).collect::<Vec<_>>())
        .map_err(StartError::HashKey)
}

type Tls = Option<Arc<rustls::ServerConfig>>;

fn grpc_tls(settings: &Settings) -> Result<Tls, StartError> {
    let Some(files) = &settings.grpc.tls else { return Ok(None) };
    let clients = tls::Clients { ca: &files.client_ca_file, allowed_sans: &files.allowed_sans };
    let config = tls::server(&files.cert_file, &files.key_file, Some(clients), &["h2"]);
    config.map(Some).map_err(|source| StartError::Tls { setting: "grpc.tls", source })
}

fn bridge_tls(settings: &Settings) -> Result<Tls, StartError> {
    let Some(files) = &settings.bridge.tls else { return Ok(None) };
    let protocols: &[&str] =
        if settings.bridge.http2 { &["h2", "http/1.1"] } else { &["http/1.1"] };
    let clients = files.client_ca_file.as_deref().map(|ca| tls::Clients { ca, allowed_sans: &[] });
    let config = tls::server(&files.cert_file, &files.key_file, clients, protocols);
    config.map(Some).map_err(|source| StartError::Tls { setting: "bridge.tls", source })
}

/// The engine's counters as Prometheus reads them.
fn scrape(counters: &Counters) -> String {
    use std::fmt::Write as _;

    let mut text = String::new();
    let mut counter = |name: &str, help: &str, value: u64| {
        // writing to a text cannot fail
        let _written =
            write!(text, "# HELP {name} {help}\n# TYPE {name} counter\n{name} {value}\n");
    };
    let (commits, commands) =
        (counters.commits.load(Ordering::Relaxed), counters.commands.load(Ordering::Relaxed));
    counter("alipayplus_cancel_commits_total", "Transactions committed.", commits);
    counter(
        "alipayplus_cancel_commit_failures_total",
        "Transactions that failed.",
        counters.failures.load(Ordering::Relaxed),
    );
    let name = "alipayplus_cancel_alarms_total";
    let help = "Commands that no caller should have sent, by what was wrong.";
    let _written = write!(text, "# HELP {name} {help}\n# TYPE {name} counter\n");
    for (alarm, count) in Alarm::ALL.iter().zip(&counters.alarms) {
        let count = count.load(Ordering::Relaxed);
        let _written = writeln!(text, "{name}{{alarm=\"{}\"}} {count}", alarm.name());
    }
    let name = "alipayplus_cancel_batch_size";
    let _written =
        write!(text, "# HELP {name} Commands in one transaction.\n# TYPE {name} histogram\n");
    let mut sum = 0;
    for (log, slot) in counters.batch_sizes.iter().enumerate() {
        sum += slot.load(Ordering::Relaxed);
        let most = (2u64 << log) - 1;
        let _written = writeln!(text, "{name}_bucket{{le=\"{most}\"}} {sum}");
    }
    let _written = writeln!(
        text,
        "{name}_bucket{{le=\"+Inf\"}} {commits}\n{name}_sum {commands}\n{name}_count {commits}"
    );
    text
}
