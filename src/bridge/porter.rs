//! Stands before the front and turns away what there is no room for, by the bytes of its head alone.
//!
//! He knows one kind of request: a whole one, alone, spelt as everybody spells it, of a registered client to a served
//! path; and one answer, if it was made in this second already. Everything else he lets in: the layers of the front have
//! the same limits, and more to say. What he turns away is counted, and has no span.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use bytes::Bytes;
use httparse::{EMPTY_HEADER, Header, Request, Status};

use super::{
    exchange::{FORWARDED_FOR, forwarded_for},
    front::{Api, Bridge},
    identity::Client,
    observe::ObserveLayer,
    proof::now,
};
use crate::{
    layer::{Refusal, budget::Source, rate_limit::Bucket},
    listen::Porter,
};

/// Most headers that he looks at.
const HEADERS_MAX: usize = 32;

/// See above.
pub(super) struct Doorkeeper {
    bridge: Bridge,
    observe: ObserveLayer,
}

/// What he sees of a request.
struct Seen<'a> {
    target: &'a str,
    client: &'a str,
    forwarded_for: Vec<&'a [u8]>,
}

impl Doorkeeper {
    pub(super) fn new(bridge: Bridge, observe: ObserveLayer) -> Self {
        Self { bridge, observe }
    }

    /// Why there is no room for it, in the order of the front's layers.
    fn refusal(&self, source: Source, api: Api, client: &Arc<Client>) -> Option<Refusal> {
        if self.bridge.overload.is_full_for(source, Some(client.id.as_str())) {
            return Some(Refusal::Busy);
        }
        let empty = client.buckets(api).find_map(Bucket::empty_for);
        empty.map(|retry_after| Refusal::OverRate { retry_after })
    }
}

impl Porter for Doorkeeper {
    fn is_pressed(&self) -> bool {
        self.bridge.overload.is_pressed()
    }

    fn turn_away(&self, peer: SocketAddr, request: &[u8]) -> Option<Bytes> {
        let bridge = &self.bridge;
        let begun = Instant::now();
        let mut headers = [EMPTY_HEADER; HEADERS_MAX];
        let seen = see(request, &mut headers)?;
        let api = *bridge.paths.get(seen.target)?;
        let setup = bridge.setup.load();
        let client = setup.clients.get(seen.client)?;
        let lines = seen.forwarded_for.into_iter();
        let proxied = forwarded_for(lines, setup.limits.trusted_proxies);
        let source = Source::from(proxied.unwrap_or(peer.ip()));
        let refusal = self.refusal(source, api, client)?;
        let second = now().unix_ms.div_euclid(1_000);
        let answer = setup.signatures.turned_away(second, seen.target, client.id.as_str())?;
        self.observe.turned_away(api, seen.target, refusal, begun.elapsed());
        Some(answer)
    }
}

/// Exactly one request, without anything in its head that changes how HTTP goes on.
fn see<'a>(request: &'a [u8], headers: &mut [Header<'a>]) -> Option<Seen<'a>> {
    let mut head = Request::new(headers);
    let Ok(Status::Complete(length)) = head.parse(request) else { return None };
    let (Some("POST"), Some(1), Some(target)) = (head.method, head.version, head.path) else {
        return None;
    };
    let (mut host, mut client, mut body) = (None, None, None);
    let mut forwarded_for = Vec::new();
    for Header { name, value } in head.headers.iter() {
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        let once = if is("host") {
            &mut host
        } else if is("client-id") {
            &mut client
        } else if is("content-length") {
            &mut body
        } else if is(FORWARDED_FOR) {
            forwarded_for.push(*value);
            continue;
        } else if ["connection", "expect", "te", "trailer", "transfer-encoding", "upgrade"]
            .into_iter()
            .any(is)
        {
            return None;
        } else {
            continue;
        };
        if once.replace(*value).is_some() {
            return None;
        }
    }
    host?;
    let text = |value: &'a [u8]| std::str::from_utf8(value).ok();
    let digits = text(body?)?;
    let body: usize =
        digits.bytes().all(|digit| digit.is_ascii_digit()).then(|| digits.parse())?.ok()?;
    if length.checked_add(body)? != request.len() {
        return None;
    }
    Some(Seen { target, client: text(client?)?, forwarded_for })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(request: &str) -> Option<(String, String)> {
        let mut headers = [EMPTY_HEADER; HEADERS_MAX];
        let seen = see(request.as_bytes(), &mut headers)?;
        Some((seen.target.to_owned(), seen.client.to_owned()))
    }

    const PLAIN: &str =
        "POST /a HTTP/1.1\r\nHost: w\r\nClient-Id: C\r\nContent-Length: 2\r\n\r\n{}";

    #[test]
    fn a_plain_request_that_is_whole_and_alone_is_seen() {
        assert_eq!(seen(PLAIN), Some(("/a".to_owned(), "C".to_owned())));
    }

    #[test]
    fn whatever_else_is_let_in() {
        for (part, instead) in [
            ("POST", "GET"),
            ("POST", "post"),
            ("1.1", "1.0"),
            ("Host: w\r\n", ""),
            ("Host: w", "Host: w\r\nHost: w"),
            ("Client-Id: C\r\n", ""),
            ("Client-Id: C", "Client-Id: C\r\nclient-id: C"),
            ("Content-Length: 2", "Content-Length: 2\r\nContent-Length: 2"),
            ("Content-Length: 2", "Content-Length: 2\r\nTransfer-Encoding: chunked"),
            ("Content-Length: 2", "Transfer-Encoding: chunked"),
            ("Content-Length: 2", "Content-Length: +2"),
            ("Content-Length: 2", "Content-Length: "),
            ("Content-Length: 2", "Content-Length: 1"),
            ("Content-Length: 2", "Content-Length: 3"),
            ("Content-Length: 2", "Content-Length: 99999999999999999999"),
            ("Content-Length: 2", "Content-Length: 2\r\nConnection: close"),
            ("Content-Length: 2", "Content-Length: 2\r\nExpect: 100-continue"),
            ("{}", "{"),
            ("{}", "{}POST"),
            ("\r\n\r\n", "\r\n"),
        ] {
            let changed = PLAIN.replacen(part, instead, 1);
            assert_ne!(changed, PLAIN);
            assert_eq!(seen(&changed), None, "{changed}");
        }
    }
}
