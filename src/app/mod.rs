//! The composition root: reads what the settings name, builds every ring, binds, serves, drains.
//!
//! Nothing is bound before all settings, keys and the store are read; readiness turns on last and off first. Which
//! rings there are is the role's: the core, the signed JSON front before it, or the front alone with cores elsewhere.

mod core;
mod error;
mod material;
mod scrape;
mod store;

use std::{net::SocketAddr, time::Duration};

use tokio::{net::TcpListener, task::JoinHandle, time};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    core::{Core, watch_cores},
    material::{Tls, bridge_tls, channel, clients, grpc_tls, identity},
    scrape::scrape_channel,
};
pub use self::{
    error::StartError,
    material::{check, hash_ring},
    store::{Closing, Opened, Tool, database, open_store, open_tool},
};
use crate::{
    admin::Admin,
    bridge::{self, Bridge},
    config::{PathPrefix, Role, Settings},
    engine::{Engine, HashRing},
    grpc::{
        channel::Channel,
        client,
        server::{Health, Origin},
    },
    layer::budget::Budget,
    listen::{Bounds, Front, Protocol},
};

/// A service that runs.
pub struct Running {
    /// Where gRPC listens; nowhere in the role of a bridge.
    pub grpc: Option<SocketAddr>,
    /// Where the JSON front listens; nowhere in the role of a core.
    pub bridge: Option<SocketAddr>,
    /// Where probes are answered.
    pub admin: SocketAddr,
    probes: Admin,
    core: Option<(Core, Health)>,
    /// Looks after cores elsewhere.
    watch: Option<JoinHandle<()>>,
    fronts: Fronts,
    drain_delay: Duration,
    grace: Duration,
}

/// What listens. The platform's front ends last, so that probes are answered while the others drain.
struct Fronts {
    stop: CancellationToken,
    stop_admin: CancellationToken,
    connections: TaskTracker,
    tasks: TaskTracker,
}

/// Where the core is.
enum Behind {
    /// In this process.
    Here(HashRing, Tls),
    /// Reached over the network.
    Elsewhere(Channel),
}

/// Room for probes and scrapes: they are few.
const ADMIN_CONNECTIONS: usize = 64;

/// Starts what the role says in this process.
pub async fn start(settings: &Settings, role: Role) -> Result<Running, StartError> {
    let front = if role.has_bridge() {
        Some((identity(settings)?, clients(settings)?, bridge_tls(settings)?))
    } else {
        None
    };
    let behind = if role.has_core() {
        Behind::Here(hash_ring(settings)?, grpc_tls(settings)?)
    } else {
        Behind::Elsewhere(channel(settings)?)
    };

    let grpc = bind_if(role.has_core(), "grpc.listen", settings.grpc.listen).await?;
    let bridge = bind_if(role.has_bridge(), "bridge.listen", settings.bridge.listen).await?;
    let admin = bind("admin.listen", settings.admin.listen).await?;
    let at = |bound: &Option<(TcpListener, SocketAddr)>| bound.as_ref().map(|(_, at)| *at);
    let (grpc_at, bridge_at, admin_at) = (at(&grpc), at(&bridge), admin.1);

    // alive, and not ready, while the database is waited for
    let fronts = Fronts {
        stop: CancellationToken::new(),
        stop_admin: CancellationToken::new(),
        connections: TaskTracker::new(),
        tasks: TaskTracker::new(),
    };
    let listening = |(listener, _), tls, protocol, connections| Front {
        listener,
        tls,
        protocol,
        bounds: bounds(settings),
        connections,
    };
    let probes = Admin::new();
    let platform = Budget::new(ADMIN_CONNECTIONS, ADMIN_CONNECTIONS);
    let admin = listening(admin, None, Protocol::Http1, platform);
    fronts.tasks.spawn(admin.serve(
        probes.clone().router(),
        fronts.stop_admin.clone(),
        TaskTracker::new(),
    ));

    let limits = &settings.limits;
    let connections = || Budget::new(limits.connections, limits.connections_per_source);
    let (stop, open) = (&fronts.stop, &fronts.connections);

    let (mut core, mut watch) = (None, None);
    let client = match behind {
        Behind::Here(ring, tls) => {
            let started = Core::start(settings, ring, &probes).await?;
            let server = started.server(Origin::Network);
            let (routes, health) = server.routes(started.feed.clone(), settings.grpc.reflection);
            if let Some(grpc) = grpc {
                let grpc = listening(grpc, tls, Protocol::Http2, connections());
                fronts.tasks.spawn(grpc.serve(routes, stop.clone(), open.clone()));
            }
            let client = client::Client::in_process(&started.server(Origin::Bridge));
            core = Some((started, health));
            client
        }
        Behind::Elsewhere(channel) => {
            probes.set_core(false);
            probes.set_metrics({
                let channel = channel.clone();
                move || scrape_channel(&channel)
            });
            watch = Some(tokio::spawn(watch_cores(channel.clone(), probes.clone())));
            client::Client::over(channel)
        }
    };
    if let (Some((identity, clients, tls)), Some(bridge)) = (front, bridge) {
        let prefixes: Vec<&str> =
            settings.bridge.path_prefixes.iter().map(PathPrefix::as_str).collect();
        let limits = bridge_limits(settings);
        let json = Bridge::new(&prefixes, clients, identity, client, limits).router();
        let bridge = listening(bridge, tls, Protocol::Http1, connections());
        fronts.tasks.spawn(bridge.serve(json, stop.clone(), open.clone()));
    }
    if let Some((_, health)) = &core {
        health.serving().await;
    }
    probes.set_ready(true);
    Ok(Running {
        grpc: grpc_at,
        bridge: bridge_at,
        admin: admin_at,
        probes,
        core,
        watch,
        fronts,
        drain_delay: settings.shutdown.drain_delay,
        grace: settings.shutdown.grace,
    })
}

impl Running {
    /// The core, for whoever runs in the same process; there is none in the role of a bridge.
    pub fn engine(&self) -> Option<&Engine> {
        self.core.as_ref().map(|(core, _)| &core.engine)
    }

    /// Drains: not ready, wait for the balancer, accept no more, finish what was accepted, close the store.
    pub async fn stop(self) {
        let Self { probes, core, watch, fronts, drain_delay, grace, .. } = self;
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
        time::sleep(drain_delay).await;

        fronts.stop.cancel();
        if let Some((core, _)) = &core {
            // streams have no end of their own, and must not hold the rest
            core.feed.stop();
        }
        fronts.connections.close();
        if time::timeout(grace, fronts.connections.wait()).await.is_err() {
            tracing::warn!("some connections did not end within shutdown.grace and are dropped");
        }
        fronts.stop_admin.cancel();
        fronts.tasks.close();
        fronts.tasks.wait().await;

        // the probes count what the engine does, so they have a handle too
        drop(probes);
        if let Some((core, _)) = core {
            core.stop(grace).await;
        }
    }
}

async fn bind_if(
    is_due: bool,
    setting: &'static str,
    address: SocketAddr,
) -> Result<Option<(TcpListener, SocketAddr)>, StartError> {
    if !is_due {
        return Ok(None);
    }
    bind(setting, address).await.map(Some)
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
