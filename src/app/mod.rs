//! The composition root: reads what the settings name, builds every ring, binds, serves, drains.
//!
//! Nothing is bound before all settings, keys and the store are read; readiness turns on last and off first.

mod error;
mod material;
mod reload;
mod scrape;
mod store;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use tokio::{net::TcpListener, signal::unix::Signal, task::JoinHandle, time};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::{
    error::StartError,
    material::{check, hash_ring},
    reload::{Begun, Outcomes, Source},
    store::{Closing, Opened, Tool, database, open_store, open_tool},
};
use self::{
    material::Material,
    reload::{Live, Reloader},
    scrape::scrape,
    store::{check_after_unclean_stop, watch_store},
};
use crate::{
    admin::Admin,
    bridge::Bridge,
    config::{PathPrefix, Settings},
    engine::{self, Clock as _, Engine, SystemClock},
    feed::{self, Feed, Wake},
    grpc::{
        client,
        server::{Deadlines, Health, Server},
    },
    layer::budget::Budget,
    listen::{Bounds, Front, Protocol},
    watch_list::WatchList,
};

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
    /// What a reload replaces, until there is a task that does.
    live: Option<Live>,
    reloads: Arc<Outcomes>,
    reloader: Option<JoinHandle<()>>,
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

fn swapped<T>(shared: Arc<T>) -> Arc<ArcSwap<T>> {
    Arc::new(ArcSwap::new(shared))
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

/// Starts the whole service in this process.
pub async fn start(settings: &Settings) -> Result<Running, StartError> {
    let Material { setup, tombstones, permissions, grpc_tls, bridge_tls, ring } =
        Material::read(settings)?;
    let fingerprints = ring.fingerprints().clone();

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
    engine.set_tombstones(tombstones);
    let deadlines = Deadlines {
        cancel_payment: limits.cancel_payment_deadline,
        cancel_token: limits.cancel_token_deadline,
        other: limits.default_deadline,
    };
    let server = Server::new(engine.clone(), deadlines);
    let core = client::Client::in_process(&server);
    let permissions = Arc::new(ArcSwap::from_pointee(permissions));
    let (calls, health) =
        server.stack(feed.clone(), settings.grpc.reflection, Arc::clone(&permissions));
    let prefixes: Vec<&str> =
        settings.bridge.path_prefixes.iter().map(PathPrefix::as_str).collect();
    let (grpc_tls, bridge_tls) = (grpc_tls.map(swapped), bridge_tls.map(swapped));
    let json = Bridge::new(&prefixes, setup, core);
    let live = Live {
        bridge: json.clone(),
        engine: engine.clone(),
        permissions,
        grpc_tls: grpc_tls.clone(),
        bridge_tls: bridge_tls.clone(),
        ring: fingerprints,
    };
    let reloads = Outcomes::begun();
    let watch_list = WatchList::new(&settings.feed.required_consumers, || SystemClock.now());
    probes.set_metrics({
        // not the engine: whoever still scrapes must not keep it from ending
        let (counters, watch_list) = (engine.counters(), watch_list.clone());
        let reloads = Arc::clone(&reloads);
        move || scrape(&counters) + &watch_list.text() + &reloads.text()
    });

    let connections = || Budget::new(limits.connections, limits.connections_per_source);
    let (stop, open) = (&fronts.stop, &fronts.connections);
    let grpc = front(grpc, grpc_tls, Protocol::Http2, connections());
    fronts.tasks.spawn(grpc.serve(calls, stop.clone(), open.clone()));
    let bridge = front(bridge, bridge_tls, Protocol::Http1, connections());
    fronts.tasks.spawn(bridge.serve(json.router(), stop.clone(), open.clone()));
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
        live: Some(live),
        reloads,
        reloader: None,
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
    /// What came of reloads.
    pub fn reloads(&self) -> &Outcomes {
        &self.reloads
    }

    /// Follows the settings that it was started with: whenever they or the files they name change, and at each signal,
    /// they are read again and replace what runs.
    pub fn follow(&mut self, begun: Begun, hang_up: Signal) {
        if let Some(live) = self.live.take() {
            let reloader = Reloader::new(begun, live, Arc::clone(&self.reloads));
            self.reloader = Some(reloader.keep(hang_up));
        }
    }

    /// Drains: not ready, wait for the balancer, accept no more, finish what was accepted, close the store.
    pub async fn stop(mut self) {
        self.watch.iter().for_each(JoinHandle::abort);
        // what it reloads has handles of the engine, which would not end
        self.live = None;
        if let Some(reloader) = self.reloader.take() {
            reloader.abort();
            if reloader.await.is_ok() {
                tracing::debug!("nothing is reloaded any more");
            }
        }
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
