//! What a call meets on its way in, before any service: one stack of layers.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use arc_swap::ArcSwap;
use tonic::{
    body::Body,
    codegen::http::{HeaderName, Request, Response},
    service::Routes,
};
use tower::ServiceBuilder;

use super::{
    CLIENT_ID,
    observe::{Observe, Observed},
    status,
};
use crate::{
    layer::{
        Refusal, Refuse,
        budget::{Share, Source},
        caller_rate::{Called, CallerRates},
        gate::{Gate, GateLayer, Gated},
        identity::{Identified, IdentityLayer, Names, Permissions, is_open},
        overload::{Overload, Sourced},
        panic::{CatchPanic, CatchPanicLayer},
    },
    listen::{Identity, Peer},
};

/// Who gets in, and how many; clones share it. A reload changes it while calls are on their way.
#[derive(Clone)]
pub struct Door {
    /// What each caller may call.
    pub permissions: Arc<ArcSwap<Permissions>>,
    /// How many calls at once.
    pub overload: Overload,
    /// How many calls in a time.
    pub rates: CallerRates,
}

/// The services behind their door.
pub type Stack =
    Observed<CatchPanic<Gated<Room, Identified<Gated<CallerRates, Routes>, RefuseCaller>>>>;

/// Makes the answer to a caller who may not.
pub type RefuseCaller = fn() -> Response<Body>;

impl Door {
    /// What a call meets, from the outside in.
    pub(super) fn before(self, services: Routes, observe: Observe) -> Stack {
        // what only a bridge may say goes before the services, which believe what is left of the headers
        let word = HeaderName::from_static(CLIENT_ID);
        let refuse: RefuseCaller = || Response::refuse(Refusal::NotAllowed);
        ServiceBuilder::new()
            // what is told of it, whatever becomes of it
            .layer(observe)
            .layer(CatchPanicLayer)
            .layer(GateLayer(Room(self.overload)))
            .layer(IdentityLayer::new(self.permissions, word, refuse))
            .layer(GateLayer(self.rates))
            .service(services)
    }
}

/// Room for calls; health and reflection need none, because a full service is not a dead one.
#[derive(Clone, Debug)]
pub struct Room(Overload);

impl<B> Gate<Request<B>> for Room {
    type Held = Option<(Share, Share)>;

    fn enter(&self, call: &Request<B>) -> Result<Self::Held, Refusal> {
        if is_open(call.uri().path()) {
            return Ok(None);
        }
        self.0.enter(call).map(Some)
    }
}

impl<B> Sourced for Request<B> {
    fn source(&self) -> Source {
        let peer = self.extensions().get::<Peer>();
        peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.0.ip()).into()
    }

    fn claims(&self) -> Option<&str> {
        self.extensions().get::<Identity>().map(|identity| &*identity.0)
    }
}

impl<B> Called for Request<B> {
    fn path(&self) -> &str {
        self.uri().path()
    }

    fn has_name(&self, names: &[Box<str>]) -> bool {
        let own = self.extensions().get::<Names>();
        own.is_some_and(|own| own.0.iter().any(|name| names.contains(name)))
    }
}

impl Refuse for Response<Body> {
    fn refuse(refusal: Refusal) -> Self {
        let mut answer = status::turned_away(refusal).into_http();
        // for metrics
        answer.extensions_mut().insert(refusal);
        answer
    }
}
