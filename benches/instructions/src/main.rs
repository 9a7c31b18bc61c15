//! One hot path so many times, to be counted by callgrind: `benches/instructions/run` takes the difference of two counts.
//!
//! `PATH COUNT [KEY]` runs a path; `send COUNT KEY ADDRESS` makes signed cancelPayments, one after the other over one
//! connection, of a service that is counted itself.
#![allow(missing_docs)]

use std::{
    collections::BTreeSet,
    env, fs,
    hint::black_box,
    io::{Read as _, Write as _},
    net::TcpStream,
    num::NonZeroU32,
    sync::Arc,
    time::Duration,
};

use alipayplus_cancel::{
    bridge::{
        Bridge, Client, ClientKey, Clients, Identity, Limits, Rates, Setup, json,
        keys::PrivateKey,
        signature::{self, SignatureHeader},
    },
    domain::{
        Asked, cancel_payment,
        cancel_payment::CancelPayment,
        id::{AcquirerId, ClientId, PaymentRequestId, PspId},
        key::PaymentKey,
        policy::Policy,
        time::Timestamp,
    },
    engine::{self, Clock, Engine, HashRing},
    feed::Wake,
    grpc::{
        client,
        server::{Deadlines, Server},
    },
    layer::{overload::InFlight, rate_limit::Rate},
    telemetry::Telemetry,
};
use axum::{Router, body::Body};
use http::Request;
use http_body_util::BodyExt as _;
use tokio::runtime::Runtime;
use tower::ServiceExt as _;

/// A store that answers at once.
#[path = "../../../fuzz/src/targets/memory.rs"]
#[allow(dead_code)]
mod memory;

const PSP: &str = "1022172000000000001";
const ACQUIRER: &str = "1022188000000000001";
const CLIENT: &str = "BENCH";
const PATH: &str = "/aps/api/v1/payments/cancelPayment";
const TIME: &str = "2026-05-28T12:12:12+08:00";
const NOW: Timestamp = Timestamp { unix_ms: 1_779_941_532_000 };

struct Noon;

impl Clock for Noon {
    fn now(&self) -> Timestamp {
        NOW
    }
}

fn body(id: usize) -> String {
    format!(
        r#"{{"acquirerId":"{ACQUIRER}","pspId":"{PSP}","paymentRequestId":"counted-{id:012}"}}"#
    )
}

fn signature_of(key: &PrivateKey, body: &str) -> String {
    let text = signature::signed_string("POST", PATH, CLIENT, TIME, body.as_bytes());
    signature::header("1", &key.sign(&text).expect("a signature"))
}

/// Made beforehand: to look for primes takes now more, now less.
fn key(file: &str) -> PrivateKey {
    PrivateKey::parse(fs::read(file).expect("a file")).expect("a key")
}

/// The header's parts, the text that was signed, the signature.
fn verify(key: &PrivateKey, count: usize) {
    let body = body(0);
    let header = signature_of(key, &body);
    for _ in 0..count {
        let parsed = SignatureHeader::parse(black_box(header.as_bytes())).expect("a header");
        let text = signature::signed_string("POST", PATH, CLIENT, TIME, black_box(body.as_bytes()));
        assert!(key.public().verify(&text, &parsed.signature));
    }
}

fn read_json(count: usize) {
    let body = body(0);
    for _ in 0..count {
        let fields = json::parse(black_box(body.as_bytes())).expect("an object");
        let read = (
            fields.required_as("acquirerId", AcquirerId::parse),
            fields.required_as("pspId", PspId::parse),
            fields.required_as("paymentRequestId", PaymentRequestId::parse),
        );
        black_box(read).2.expect("an id");
    }
}

fn decide(count: usize) {
    let command = CancelPayment {
        key: PaymentKey {
            psp: PspId::parse(PSP).expect("an id"),
            payment_request: PaymentRequestId::parse("counted").expect("an id"),
        },
        acquirer: AcquirerId::parse(ACQUIRER).expect("an id"),
    };
    let asked = Asked {
        now: NOW,
        clock_agrees: true,
        tombstone_allowed: true,
        onboarding: false,
        by: None,
        trace: None,
    };
    let policy = Policy::default();
    for _ in 0..count {
        black_box(cancel_payment::decide(black_box(None), &command, &asked, &policy));
    }
}

fn setup(key: &PrivateKey) -> Setup {
    let many = NonZeroU32::new(1_000_000).expect("many");
    let rate = Rate { per_second: many, burst: many };
    let psp = PspId::parse(PSP).expect("an id");
    let known = ClientKey { version: "1".into(), key: key.public().clone(), not_after: None };
    let rates = Rates { all: rate, cancel_payment: None, cancel_token: None };
    let id = ClientId::parse(CLIENT).expect("an id");
    let client = Client::new(id, Some(BTreeSet::from([psp])), None, vec![known], rates);
    let minute = Duration::from_mins(1);
    let limits = Limits {
        in_flight: InFlight { total: 8, per_source: 8, per_client: 8 },
        unproven: rate,
        trusted_proxies: 0,
        body_bytes: 16 * 1024,
        body_bytes_in_flight: 128 * 1024,
        body_bytes_in_flight_per_source: 128 * 1024,
        body_timeout: minute,
        cancel_payment_deadline: minute,
        cancel_token_deadline: minute,
        request_time_skew: None,
    };
    let identity = Identity { version: "1".to_owned(), signer: Arc::new(key.clone()) };
    Setup::new(Clients::new(vec![client]).expect("a key"), identity, limits)
}

/// All of the bridge and the core, from a request to its answer, without sockets and without a disk.
fn bridge(key: &PrivateKey, count: usize) {
    let telemetry = Telemetry::local();
    let runtime: Runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let router: Router = runtime.block_on(async {
        let (engine, _) = Engine::start(
            Arc::new(memory::Memory::default()) as _,
            &Wake::default(),
            HashRing::new(&[[7; 32]]).expect("a key"),
            Arc::new(Policy::default()),
            Arc::new(Noon),
            engine::Limits { queue: 64, batch: 8, wait: Duration::from_mins(1) },
            &telemetry.metrics,
        );
        let minute = Duration::from_mins(1);
        let deadlines = Deadlines { cancel_payment: minute, cancel_token: minute, other: minute };
        let server = Server::new(engine, deadlines, telemetry.clone());
        let core = client::Client::in_process(&server);
        Bridge::new(&["/aps/api"], setup(key), core, &telemetry, "http").router()
    });
    // one request, always: its payment is cancelled already, and its RSA is not made here
    let body = body(0);
    let header = signature_of(key, &body);
    for _ in 0..count {
        let request = Request::post(PATH)
            .header("host", "wallet")
            .header("content-type", "application/json; charset=UTF-8")
            .header("client-id", CLIENT)
            .header("request-time", TIME)
            .header("signature", &header)
            .body(Body::from(body.clone()))
            .expect("a request");
        runtime.block_on(async {
            let answer = router.clone().oneshot(request).await.expect("an answer");
            let bytes = answer.into_body().collect().await.expect("all of it").to_bytes();
            assert!(bytes.windows(9).any(|window| window == b"\"SUCCESS\""));
        });
    }
}

fn send(address: &str, key: &PrivateKey, count: usize) {
    let mut socket = TcpStream::connect(address).expect("a connection");
    socket.set_nodelay(true).expect("a socket");
    let (mut answer, mut part) = (Vec::new(), [0; 2048]);
    let mut succeeds = |id: usize| {
        let body = body(id);
        let header = signature_of(key, &body);
        let request = format!(
            "POST {PATH} HTTP/1.1\r\nhost: wallet\r\ncontent-type: application/json; charset=UTF-8\r\nclient-id: {CLIENT}\r\n\
             request-time: {TIME}\r\nsignature: {header}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        socket.write_all(request.as_bytes()).expect("to send");
        answer.clear();
        while !answer.ends_with(b"}}") {
            let length = socket.read(&mut part).expect("an answer");
            assert!(length > 0, "it ended");
            answer.extend_from_slice(&part[..length]);
        }
        answer.windows(9).any(|window| window == b"\"SUCCESS\"")
    };
    // the library gathers entropy for its first signature: fifty times as slowly, it has no patience for that
    assert!((0..30).any(|_| succeeds(count)), "never");
    assert!((0..count).all(succeeds), "not each of them");
}

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let number = |text: &str| text.parse::<usize>().expect("a number");
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["json", count] => read_json(number(count)),
        ["decide", count] => decide(number(count)),
        ["verify", count, file] => verify(&key(file), number(count)),
        ["bridge", count, file] => bridge(&key(file), number(count)),
        ["send", count, file, address] => send(address, &key(file), number(count)),
        _ => panic!("json|decide COUNT, verify|bridge COUNT KEY, or send COUNT KEY ADDRESS"),
    }
}
