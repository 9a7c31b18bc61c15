//! The table of paths, and what a request meets on its way in, in this order.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use axum::Router;
use foldhash::HashMap;
use tower::ServiceBuilder;

use super::{
    checks::ChecksLayer,
    commands::Commands,
    exchange::Room,
    identity::{Clients, Identity},
    observe::ObserveLayer,
    porter::Doorkeeper,
    proof::ProofLayer,
    seal::SealLayer,
    sign_cache::SignCache,
};
use crate::{
    grpc::client,
    layer::{
        budget::Budget,
        deadline::DeadlineLayer,
        gate::GateLayer,
        overload::{InFlight, Overload},
        panic::CatchPanicLayer,
        rate_limit::{Early, Rate, RateLimit},
        unproven::Unproven,
    },
    listen::Porter,
    telemetry::Telemetry,
};

/// One of Alipay+'s APIs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    /// cancelPayment
    CancelPayment,
    /// cancelToken
    CancelToken,
}

impl Api {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::CancelPayment, Self::CancelToken];

    /// Alipay+'s name of it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CancelPayment => "cancelPayment",
            Self::CancelToken => "cancelToken",
        }
    }

    /// What Alipay+ publishes of the path; the prefix is the wallet's.
    pub const fn tail(self) -> &'static str {
        match self {
            Self::CancelPayment => "/v1/payments/cancelPayment",
            Self::CancelToken => "/v1/authorizations/cancelToken",
        }
    }
}

/// What the front takes on, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests at once.
    pub in_flight: InFlight,
    /// Requests of one source that prove nothing.
    pub unproven: Rate,
    /// Proxies in front of us whose word for where a request comes from is taken.
    pub trusted_proxies: usize,
    /// Longest body, in bytes.
    pub body_bytes: usize,
    /// Bytes of all bodies at once.
    pub body_bytes_in_flight: usize,
    /// Bytes of all bodies at once from one source.
    pub body_bytes_in_flight_per_source: usize,
    /// For a body, all of it.
    pub body_timeout: Duration,
    /// From the end of a request's head to its answer.
    pub cancel_payment_deadline: Duration,
    /// From the end of a request's head to its answer.
    pub cancel_token_deadline: Duration,
    /// How far `Request-Time` may be from now; `None`: as far as it likes.
    pub request_time_skew: Option<Duration>,
}

/// What a reload replaces. A request keeps the one that it found.
pub struct Setup {
    pub(super) clients: Clients,
    pub(super) signatures: SignCache,
    pub(super) limits: Limits,
}

impl Setup {
    /// Who may ask, who answers, and how much.
    pub fn new(clients: Clients, identity: Identity, limits: Limits) -> Self {
        Self { clients, signatures: SignCache::new(identity), limits }
    }
}

/// The JSON front; clones share it.
#[derive(Clone)]
pub struct Bridge {
    pub(super) paths: Arc<HashMap<String, Api>>,
    pub(super) setup: Arc<ArcSwap<Setup>>,
    pub(super) overload: Overload,
    pub(super) unproven: Unproven,
    pub(super) body_bytes: Arc<Budget>,
    observe: ObserveLayer,
    core: client::Client,
}

impl Bridge {
    /// A front that serves every API below each prefix, reached by `http` or `https`.
    pub fn new(
        prefixes: &[&str],
        setup: Setup,
        core: client::Client,
        telemetry: &Telemetry,
        scheme: &'static str,
    ) -> Self {
        let below = |prefix: &&str| Api::ALL.map(|api| (format!("{prefix}{}", api.tail()), api));
        let limits = setup.limits;
        let paths: HashMap<_, _> = prefixes.iter().flat_map(below).collect();
        Self {
            observe: ObserveLayer::new(telemetry, scheme, &paths),
            paths: Arc::new(paths),
            setup: Arc::new(ArcSwap::from_pointee(setup)),
            overload: Overload::new(limits.in_flight),
            unproven: Unproven::new(limits.unproven),
            body_bytes: Budget::new(
                limits.body_bytes_in_flight,
                limits.body_bytes_in_flight_per_source,
            ),
            core,
        }
    }

    /// Another setup from now on. What was taken of a rate stays taken, as far as the rate is the same.
    pub fn reload(&self, setup: Setup) {
        let limits = setup.limits;
        self.overload.resize(limits.in_flight);
        self.unproven.reload(limits.unproven);
        self.body_bytes.resize(limits.body_bytes_in_flight, limits.body_bytes_in_flight_per_source);
        let clients = setup.clients.inheriting(&self.setup.load().clients);
        self.setup.store(Arc::new(Setup { clients, ..setup }));
    }

    /// The keys that clients have now: client, version, and when it ends, in milliseconds since 1970; in order.
    pub fn client_keys(&self) -> Vec<(String, String, Option<i64>)> {
        let setup = self.setup.load();
        let mut keys: Vec<_> = setup
            .clients
            .iter()
            .flat_map(|client| client.keys.iter().map(move |key| (client, key)))
            .map(|(client, key)| {
                let end = key.not_after.map(|end| end.unix_ms);
                (client.id.as_str().to_owned(), key.version.to_string(), end)
            })
            .collect();
        keys.sort();
        keys
    }

    /// Who turns requests away that there is no room for, before they come to the service.
    pub fn porter(&self) -> Arc<dyn Porter> {
        Arc::new(Doorkeeper::new(self.clone(), self.observe.clone()))
    }

    /// The service: what a request meets, from the outside in. One stack for everything, because paths are compared byte
    /// for byte: a router that decodes or normalises would serve what was not signed for.
    pub fn router(self) -> Router {
        let stack = ServiceBuilder::new()
            // what is told of it, whatever becomes of it
            .layer(self.observe.clone())
            // HTTP outside, a request with what its head says inside; a reply becomes a signed response
            .layer(SealLayer(Arc::new(self.clone())))
            .layer(CatchPanicLayer)
            .layer(DeadlineLayer)
            // room for it, before anything of it is read
            .layer(GateLayer(Room(self.overload.clone())))
            .layer(GateLayer(self.unproven.clone()))
            .layer(GateLayer(Early(self.overload.clone())))
            // path, method, media type
            .layer(ChecksLayer)
            // its body, and its signature over that; only what is proven goes further in
            .layer(ProofLayer { body_bytes: Arc::clone(&self.body_bytes) })
            .layer(GateLayer(RateLimit))
            // parameters, permission, and the core
            .service(Commands(self.core));
        Router::new().fallback_service(stack)
    }
}
