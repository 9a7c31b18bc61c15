//! The composition root: reads what the settings name, builds every ring, binds, serves, drains.
//!
//! Nothing is bound before all settings, keys and the store are read; readiness turns on last and off first. Which
//! rings there are is the role's: the core, the signed JSON front before it, or the front alone with cores elsewhere.

mod beside;
mod console;
mod core;
mod error;
mod material;
mod reload;
mod store;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use tokio::{net::TcpListener, signal::unix::Signal, task::JoinHandle, time};
use tokio_util::task::TaskTracker;

use self::{
    core::{Core, watch_cores},
    material::{CoreMaterial, FrontMaterial, Material, channel, observe},
    reload::{Live, LiveCore, LiveFront, Reloader},
};
pub use self::{
    error::StartError,
    material::{check, hash_ring, signer, telemetry},
    reload::{Begun, Outcomes, Source},
    store::{Closing, Opened, Tool, database, open_store, open_tool},
};
use crate::{
    admin::{self, Admin},
    bridge::{Bridge, openapi},
    config::{PathPrefix, Role, Settings},
    engine::Engine,
    grpc::{
        channel::Channel,
        client::{self, look::Look},
        server::Health,
    },
    layer::budget::Budget,
    listen::{self, Bounds, Front, Protocol, Stop},
    telemetry::{Metrics, Telemetry, label, metrics::reached},
};

/// A service that runs.
pub struct Running {
    /// Where gRPC listens; nowhere in the role of a bridge.
    pub grpc: Option<SocketAddr>,
    /// Where the JSON front listens; nowhere in the role of a core.
    pub bridge: Option<SocketAddr>,
    /// Where probes are answered.
    pub admin: SocketAddr,
    /// Where the console is, if it is shown.
    pub console: Option<SocketAddr>,
    /// What a reload replaces, until there is a task that does.
    live: Option<Live>,
    reloads: Arc<Outcomes>,
    metrics: Metrics,
    reloader: Option<JoinHandle<()>>,
    probes: Admin,
    core: Option<(Core, Health)>,
    /// Looks after cores elsewhere.
    watch: Option<JoinHandle<()>>,
    fronts: Fronts,
    drain_delay: Duration,
    grace: Duration,
}

fn swapped<T>(shared: Arc<T>) -> Arc<ArcSwap<T>> {
    Arc::new(ArcSwap::new(shared))
}

/// What listens. The platform's front ends last, so that probes are answered while the others drain.
struct Fronts {
    stop: Stop,
    stop_admin: Stop,
    connections: TaskTracker,
    tasks: TaskTracker,
}

/// Where the core is.
enum Behind {
    /// In this process.
    Here(Box<CoreMaterial>),
    /// Reached over the network.
    Elsewhere(Channel),
}

/// Room for probes and scrapes: they are few.
const ADMIN_CONNECTIONS: usize = 64;

/// Starts what the role says in this process.
pub async fn start(
    settings: &Settings,
    role: Role,
    telemetry: &Telemetry,
) -> Result<Running, StartError> {
    let Material { front, core: of_core, core_tls, console_tls, ends } =
        Material::read(settings, role)?;
    let behind = match of_core {
        Some(material) => Behind::Here(Box::new(material)),
        None => Behind::Elsewhere(channel(settings, core_tls)?),
    };

    let grpc = bind_if(role.has_core(), "grpc.listen", settings.grpc.listen)?;
    let bridge = bind_if(role.has_bridge(), "bridge.listen", settings.bridge.listen)?;
    let admin = bind("admin.listen", settings.admin.listen)?;
    let console = console::listens_at(settings);
    let console = console.map(|address| bind("console.listen", address)).transpose()?;
    observe(settings, role, &ends, &telemetry.metrics);
    let at = |bound: &Option<(TcpListener, SocketAddr)>| bound.as_ref().map(|(_, at)| *at);
    let (grpc_at, bridge_at, admin_at) = (at(&grpc), at(&bridge), admin.1);

    // alive, and not ready, while the database is waited for
    let fronts = Fronts {
        stop: Stop::default(),
        stop_admin: Stop::default(),
        connections: TaskTracker::new(),
        tasks: TaskTracker::new(),
    };
    let listening = |name, (listener, _), tls, protocol, connections| Front {
        listener,
        tls,
        protocol,
        bounds: bounds(settings),
        connections,
        bodies: None,
        porter: None,
        told: (telemetry.metrics.clone(), name),
    };
    let probes = Admin::new();
    probes.set_metrics({
        let telemetry = telemetry.clone();
        move || telemetry.scrape()
    });
    let platform = Budget::new(ADMIN_CONNECTIONS, ADMIN_CONNECTIONS);
    let admin = listening("admin", admin, None, Protocol::Http1, platform);
    fronts.tasks.spawn(admin.serve(
        probes.clone().router(),
        fronts.stop_admin.clone(),
        TaskTracker::new(),
    ));

    let limits = &settings.limits;
    let connections = || Budget::new(limits.connections, limits.connections_per_source);
    let (stop, open) = (&fronts.stop, &fronts.connections);

    let reloads = Outcomes::begun();
    reloads.observe(&telemetry.metrics);
    let mut live = Live { front: None, core: None, channel: None, console_tls: None };
    let (mut core, mut watch, mut look) = (None, None, None);
    let client = match behind {
        Behind::Here(material) => {
            let CoreMaterial { tombstones, permissions, rates, room, bodies, tls, ring } =
                *material;
            let of_core = LiveCore::new(permissions, rates, room, bodies, tls, &ring);
            let started = Core::start(settings, ring, tombstones, &probes, telemetry).await?;
            let server = started.server();
            look =
                Some((Look::in_process(&server, started.feed.clone()), started.watch_list.clone()));
            let (feed, reflection) = (started.feed.clone(), settings.grpc.reflection);
            let (calls, health) = server.stack(feed, reflection, of_core.door.clone());
            if let Some(grpc) = grpc {
                let tls = of_core.tls.clone();
                let mut grpc = listening("grpc", grpc, tls, Protocol::Http2, connections());
                // the generated services read a message whole, however long that takes
                grpc.bodies = Some(of_core.bodies.clone());
                fronts.tasks.spawn(grpc.serve(calls, stop.clone(), open.clone()));
            }
            live.core = Some((of_core, started.engine.clone()));
            let client = client::Client::in_process(&server);
            core = Some((started, health));
            client
        }
        Behind::Elsewhere(channel) => {
            probes.set_core(false);
            observe_channel(&channel, telemetry);
            watch = Some(tokio::spawn(watch_cores(channel.clone(), probes.clone())));
            live.channel = Some(channel.clone());
            client::Client::over(channel)
        }
    };
    if let (Some(FrontMaterial { setup, tls }), Some(bridge)) = (front, bridge) {
        let prefixes: Vec<&str> =
            settings.bridge.path_prefixes.iter().map(PathPrefix::as_str).collect();
        let scheme = if settings.bridge.tls.is_some() { "https" } else { "http" };
        probes.set_openapi(format!("{:#}\n", openapi::document(&prefixes)));
        let json = Bridge::new(&prefixes, setup, client, telemetry, scheme);
        let tls = tls.map(swapped);
        live.front = Some(LiveFront { bridge: json.clone(), tls: tls.clone() });
        let bridge = listening("bridge", bridge, tls, Protocol::Http1, connections());
        let bridge = Front { porter: Some(json.porter()), ..bridge };
        fronts.tasks.spawn(bridge.serve(json.router(), stop.clone(), open.clone()));
    }
    let bridge = live.front.as_ref().map(|front| front.bridge.clone());
    let shown = console::build(settings, look, bridge, telemetry);
    let console_at = console.as_ref().map(|(_, at)| *at).or(shown.is_some().then_some(admin_at));
    match (shown, console) {
        (Some(shown), Some(console)) => {
            let tls = console_tls.map(swapped);
            live.console_tls.clone_from(&tls);
            let room = Budget::new(ADMIN_CONNECTIONS, ADMIN_CONNECTIONS);
            let console = listening("console", console, tls, Protocol::Http1, room);
            let pages = admin::console::router(shown);
            fronts.tasks.spawn(console.serve(pages, fronts.stop_admin.clone(), TaskTracker::new()));
        }
        (Some(shown), None) => probes.set_console(shown),
        (None, _) => {}
    }
    if let Some((_, health)) = &core {
        health.serving().await;
    }
    probes.set_ready(true);
    Ok(Running {
        grpc: grpc_at,
        bridge: bridge_at,
        admin: admin_at,
        console: console_at,
        live: Some(live),
        reloads,
        metrics: telemetry.metrics.clone(),
        reloader: None,
        probes,
        core,
        watch,
        fronts,
        drain_delay: settings.shutdown.drain_delay,
        grace: settings.shutdown.grace,
    })
}

/// The way to the cores, as metrics.
fn observe_channel(channel: &Channel, telemetry: &Telemetry) {
    let metrics = &telemetry.metrics;
    let here = channel.clone();
    metrics.cores.ask(move || {
        let (healthy, known) = here.cores();
        [("healthy", healthy), ("known", known)]
            .map(|(state, cores)| {
                (vec![label("state", state)], i64::try_from(cores).unwrap_or(i64::MAX))
            })
            .into()
    });
    let here = channel.clone();
    metrics.core_retries.from(move || {
        let counters = here.counters();
        vec![
            (vec![label("reason", "failed")], reached(&counters.retries)),
            (vec![label("reason", "slow")], reached(&counters.hedges)),
        ]
    });
    let here = channel.clone();
    metrics.core_unreachable.from(move || vec![(Vec::new(), reached(&here.counters().no_core))]);
}

impl Running {
    /// What came of reloads.
    pub fn reloads(&self) -> &Outcomes {
        &self.reloads
    }

    /// The core, for whoever runs in the same process; there is none in the role of a bridge.
    pub fn engine(&self) -> Option<&Engine> {
        self.core.as_ref().map(|(core, _)| &core.engine)
    }

    /// Follows the settings that it was started with: whenever they or the files they name change, and at each signal,
    /// they are read again and replace what runs.
    pub fn follow(&mut self, begun: Begun, hang_up: Signal) {
        if let Some(live) = self.live.take() {
            let reloader = Reloader::new(begun, live, Arc::clone(&self.reloads), &self.metrics);
            self.reloader = Some(reloader.keep(hang_up));
        }
    }

    /// Drains: not ready, wait for the balancer, accept no more, finish what was accepted, close the store.
    pub async fn stop(self) {
        let Self { live, reloader, probes, core, watch, fronts, drain_delay, grace, .. } = self;
        // what it reloads has handles of the engine, which would not end
        drop(live);
        if let Some(reloader) = reloader {
            reloader.abort();
            if reloader.await.is_ok() {
                tracing::debug!("nothing is reloaded any more");
            }
        }
        if let Some(watch) = watch {
            watch.abort();
        }
        if let Some((core, _)) = &core {
            core.unwatch();
        }
        probes.set_ready(false);
        if let Some((_, health)) = &core {
            health.stopping().await;
        }
        fronts.stop.soon.cancel();
        time::sleep(drain_delay).await;

        fronts.stop.now.cancel();
        if let Some((core, _)) = &core {
            // streams have no end of their own, and must not hold the rest
            core.feed.stop();
        }
        fronts.connections.close();
        let end = time::Instant::now() + grace;
        if time::timeout_at(end, fronts.connections.wait()).await.is_err() {
            tracing::warn!("some connections did not end within shutdown.grace and are dropped");
        }
        fronts.stop_admin.now.cancel();
        fronts.tasks.close();
        // they only have to look up
        let end = end.max(time::Instant::now() + Duration::from_secs(1));
        if time::timeout_at(end, fronts.tasks.wait()).await.is_err() {
            tracing::warn!("a front still accepts, and is dropped");
        }

        drop(probes);
        if let Some((core, _)) = core {
            core.stop(grace).await;
        }
    }
}

fn bind_if(
    is_due: bool,
    setting: &'static str,
    address: SocketAddr,
) -> Result<Option<(TcpListener, SocketAddr)>, StartError> {
    if !is_due {
        return Ok(None);
    }
    bind(setting, address).map(Some)
}

fn bind(
    setting: &'static str,
    address: SocketAddr,
) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |source| StartError::Bind { setting, address, source };
    let listener = listen::bind(address).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
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
