//! One request on its way in: what its head says, and what became of it so far.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Instant,
};

use axum::body::Body;
use http::{HeaderValue, Method, Request, request::Parts};

use super::{
    envelope::{self, Address, Verified},
    front::{Api, Bridge, Setup},
    identity::Client,
};
use crate::{
    layer::{
        Refusal,
        budget::{Share, Source},
        deadline::Timed,
        gate::Gate,
        overload::{Overload, Sourced},
        rate_limit::{Bucket, Limited},
    },
    listen::Peer,
    telemetry::Span,
};

/// A request of which only the head was read.
pub(super) struct Exchange {
    pub(super) parts: Parts,
    pub(super) api: Option<Api>,
    /// The registered client that it names.
    pub(super) client: Option<Arc<Client>>,
    /// The setup that it found.
    pub(super) setup: Arc<Setup>,
    /// When its answer is due.
    pub(super) deadline: Instant,
    /// Its place in its trace.
    pub(super) span: Span,
    source: Source,
    served: bool,
    /// The version of the client's key that proved it.
    proven: OnceLock<Arc<str>>,
    body: Mutex<Option<Body>>,
    /// The room that it takes, until its answer is made.
    room: Mutex<Option<(Share, Share)>>,
}

/// A request whose signature verified.
pub(super) struct Proven {
    pub(super) exchange: Arc<Exchange>,
    pub(super) api: Api,
    pub(super) client: Arc<Client>,
    pub(super) body: Verified,
}

impl Exchange {
    pub(super) fn new(bridge: &Bridge, request: Request<Body>, span: Span) -> Self {
        let arrived = Instant::now();
        let (parts, body) = request.into_parts();
        let setup = bridge.setup.load_full();
        let target = target(&parts);
        // a query is signed for, but does not tell APIs apart
        let path = target.split_once('?').map_or(target, |(path, _)| path);
        let api = bridge.paths.get(path).copied();
        let wait = match api {
            Some(Api::CancelPayment) => setup.limits.cancel_payment_deadline,
            Some(Api::CancelToken) | None => setup.limits.cancel_token_deadline,
        };
        let peer = parts
            .extensions
            .get::<Peer>()
            .map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.0.ip());
        let lines = parts.headers.get_all(FORWARDED_FOR).iter().map(HeaderValue::as_bytes);
        let source = forwarded_for(lines, setup.limits.trusted_proxies).unwrap_or(peer);
        Self {
            api,
            client: envelope::client(&parts.headers, &setup.clients).cloned(),
            deadline: arrived + wait,
            span,
            source: source.into(),
            served: api.is_some() && path.len() == target.len(),
            proven: OnceLock::new(),
            body: Mutex::new(Some(body)),
            room: Mutex::default(),
            parts,
            setup,
        }
    }

    /// Whom an answer is signed for: whoever has proven to be a client; and before that, whoever names one, on what
    /// nobody but us chose: POST, a served path, no query.
    pub(super) fn address(&self) -> Option<Address<'_>> {
        let ours = self.parts.method == Method::POST && self.served;
        let client = self.client.as_ref().filter(|_| self.is_proven() || ours)?;
        Some(Address { method: &self.parts.method, target: self.target(), client: &client.id })
    }

    /// Path and query exactly as received.
    pub(super) fn target(&self) -> &str {
        target(&self.parts)
    }

    /// Whether its signature verified.
    pub(super) fn is_proven(&self) -> bool {
        self.proven.get().is_some()
    }

    /// By which version of the client's key it was proven, if it was.
    pub(super) fn proven_by(&self) -> Option<&Arc<str>> {
        self.proven.get()
    }

    pub(super) fn set_proven(&self, key_version: &Arc<str>) {
        self.proven.get_or_init(|| Arc::clone(key_version));
    }

    /// The body, as long as nobody has read all of it.
    pub(super) fn lend_body(&self) -> Lent<'_> {
        Lent { body: self.take_body(), exchange: self }
    }

    /// What is left of the body.
    pub(super) fn take_body(&self) -> Option<Body> {
        self.body.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

fn target(parts: &Parts) -> &str {
    parts.uri.path_and_query().map_or("", |target| target.as_str())
}

/// A body that is being read. Given up half-way, it is there again for whoever has to read it away.
pub(super) struct Lent<'a> {
    exchange: &'a Exchange,
    body: Option<Body>,
}

impl Lent<'_> {
    pub(super) fn body(&mut self) -> Option<&mut Body> {
        self.body.as_mut()
    }

    /// All of it was read.
    pub(super) fn finish(mut self) {
        self.body = None;
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        if let Some(body) = self.body.take() {
            *self.exchange.body.lock().unwrap_or_else(PoisonError::into_inner) = Some(body);
        }
    }
}

/// Room for requests, held until the answer is signed: whoever makes us sign much must not do so beside the limit.
#[derive(Clone)]
pub(super) struct Room(pub(super) Overload);

impl Gate<Arc<Exchange>> for Room {
    type Held = ();

    fn enter(&self, exchange: &Arc<Exchange>) -> Result<(), Refusal> {
        let held = self.0.enter(exchange)?;
        *exchange.room.lock().unwrap_or_else(PoisonError::into_inner) = Some(held);
        Ok(())
    }
}

impl Sourced for Arc<Exchange> {
    fn source(&self) -> Source {
        self.source
    }

    fn claims(&self) -> Option<&str> {
        self.client.as_ref().map(|client| client.id.as_str())
    }
}

impl Timed for Arc<Exchange> {
    fn deadline(&self) -> Instant {
        self.deadline
    }
}

impl Limited for Arc<Exchange> {
    fn buckets(&self) -> impl Iterator<Item = &Bucket> {
        let both = self.client.as_ref().zip(self.api);
        both.into_iter().flat_map(|(client, api)| client.buckets(api))
    }
}

impl Limited for Proven {
    fn buckets(&self) -> impl Iterator<Item = &Bucket> {
        self.client.buckets(self.api)
    }
}

/// Where proxies say whom they saw.
pub(super) const FORWARDED_FOR: &str = "x-forwarded-for";

/// Where a request came from, as the outermost of so many proxies of ours saw it: each adds the address that it sees at
/// the end of `X-Forwarded-For`, so that what stands further to the left is anybody's word.
pub(super) fn forwarded_for<'a>(
    lines: impl DoubleEndedIterator<Item = &'a [u8]>,
    trusted_proxies: usize,
) -> Option<IpAddr> {
    let nth = trusted_proxies.checked_sub(1)?;
    let lines = lines.rev().map(|line| std::str::from_utf8(line).unwrap_or_default());
    let addresses = lines.flat_map(|line| line.rsplit(','));
    address(addresses.map(str::trim).nth(nth)?)
}

/// An address, with a port or without.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let with_port = || text.parse().ok().map(|address: std::net::SocketAddr| address.ip());
    bare.parse().ok().or_else(with_port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(trusted: usize, lines: &[&str]) -> Option<String> {
        let lines = lines.iter().map(|line| line.as_bytes());
        forwarded_for(lines, trusted).map(|address| address.to_string())
    }

    #[test]
    fn a_source_is_what_the_outermost_trusted_proxy_saw() {
        let lines = ["203.0.113.9, 192.0.2.1", "198.51.100.7:4711, 10.0.0.1"];
        assert_eq!(source(0, &lines), None, "nobody's word is taken");
        assert_eq!(source(1, &lines).as_deref(), Some("10.0.0.1"));
        assert_eq!(source(2, &lines).as_deref(), Some("198.51.100.7"));
        assert_eq!(source(3, &lines).as_deref(), Some("192.0.2.1"));
        assert_eq!(source(5, &lines), None, "fewer than there should be");
        assert_eq!(source(1, &[]), None);
        assert_eq!(source(1, &["unknown"]), None);
        assert_eq!(source(1, &["[2001:db8::1]"]).as_deref(), Some("2001:db8::1"));
        assert_eq!(source(1, &["[2001:db8::1]:80"]).as_deref(), Some("2001:db8::1"));
    }
}
