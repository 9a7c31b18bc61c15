//! The same commands over gRPC: cancels, durable; IntrospectToken; the feed; beside gRPC's own health check, as tonic
//! serves it bare, as tonic serves it behind the layers that every call meets here, and as the service's own listener
//! serves it behind them.
//!
//! `cargo bench --bench grpc -- [CALLS] [ROUNDS] [EVENTS]`, by default 20000 calls, 3 rounds, 50000 events. The service is
//! the real binary on one core; the loader, which only writes and reads frames, has the other, and so has PostgreSQL if
//! `initdb` is installed. Rounds are interleaved; the table has medians. `target/bench/grpc.json` has the same.
//!
//! *Delay* is from the decision, by the service's clock in whole milliseconds, to the event at its consumer, while cancels
//! arrive at half the rate that was reached: so the commit is in it.
#![allow(missing_docs, dead_code, clippy::pedantic, clippy::restriction)]

mod rig;
mod signed;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use alipayplus_cancel::{
    bridge::keys::PrivateKey,
    domain::{key::Partitions, policy::Policy},
    engine::{self, Clock as _, Engine, HashRing, SystemClock},
    feed::{self, Feed, Wake},
    grpc::{
        front::Door,
        server::{Deadlines, Server},
        wire,
    },
    layer::{
        caller_rate::CallerRates,
        identity::Permissions,
        overload::{InFlight, Overload},
    },
    store::sqlite::Sqlite,
    telemetry::Telemetry,
};
use arc_swap::ArcSwap;
use prost::Message as _;
use tonic::transport::Endpoint;
use wire::feed_service_client::FeedServiceClient;

use self::rig::{
    at,
    child::{self, Listening},
    h2::{Method, calls},
    on_its_core,
    report::{Report, median, spread},
    service::{Home, Service},
};

const ALONE: &str = "Check, tonic alone";
const BEHIND_LAYERS: &str = "Check, tonic with layers";

const CONNECTIONS: usize = 4;
const STREAMS: usize = 32;

const CHECK: Method = Method { path: "/grpc.health.v1.Health/Check", answers_with: &[8, 1] };
const CANCEL_PAYMENT: Method =
    Method { path: "/alipayplus.cancel.v1.CancelService/CancelPayment", answers_with: b"Success" };
const CANCEL_TOKEN: Method =
    Method { path: "/alipayplus.cancel.v1.CancelService/CancelToken", answers_with: b"Success" };
/// active: true
const INTROSPECT: Method =
    Method { path: "/alipayplus.cancel.v1.TokenService/IntrospectToken", answers_with: &[8, 1] };

/// Being tonic's health service on tonic's transport, with nothing of ours around it, or with our layers.
fn serve(which: &str) -> ! {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("one");
    if which == LAYERED {
        runtime.block_on(layered())
    } else {
        runtime.block_on(child::bare_health())
    }
    unreachable!("nobody ends it");
}

const LAYERED: &str = "layered";

/// All of our services behind their layers, on tonic's transport.
async fn layered() {
    let dir = tempfile::tempdir().expect("a folder");
    let ring = HashRing::new(&[[1; 32]]).expect("a key");
    let file = dir.path().join("state.db");
    let store = Sqlite::open(&file, Partitions::DEFAULT, ring.fingerprints()).expect("a store").0;
    let (store, wake, telemetry) = (Arc::new(store), Wake::default(), Telemetry::local());
    let hour = Duration::from_secs(3_600);
    let settings = feed::Settings {
        required: vec![],
        retention: hour,
        purge_interval: hour,
        keep_alive: hour,
    };
    let now = Arc::new(|| SystemClock.now());
    let (feed, _beside) = Feed::start(store.clone(), wake.clone(), settings, now);
    let limits = engine::Limits { queue: 4_096, batch: 512, wait: hour };
    let (policy, clock) = (Arc::new(Policy::default()), Arc::new(SystemClock));
    let (engine, _worker) =
        Engine::start(store, &wake, ring, policy, clock, limits, &telemetry.metrics);
    let deadlines = Deadlines { cancel_payment: hour, cancel_token: hour, other: hour };
    let room = InFlight { total: 4_096, per_source: 4_096, per_client: 4_096 };
    let door = Door {
        permissions: Arc::new(ArcSwap::from_pointee(Permissions::Everybody)),
        overload: Overload::new(room),
        rates: CallerRates::new(vec![]),
    };
    let (stack, health) = Server::new(engine, deadlines, telemetry).stack(feed, false, door);
    health.serving().await;

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    child::say(listener.local_addr().expect("an address"));
    let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
    // the stack stands for the routes that tonic would put behind it
    let layers = tower::layer::layer_fn(move |_: tonic::service::Routes| stack.clone());
    let mut server = tonic::transport::Server::builder().layer(layers);
    let server = server.add_routes(tonic::service::Routes::default());
    server.serve_with_incoming(incoming).await.expect("it serves");
}

fn cancel_payment(id: usize) -> Vec<u8> {
    wire::CancelPaymentRequest {
        acquirer_id: signed::ACQUIRER.to_owned(),
        psp_id: signed::PSP.to_owned(),
        payment_request_id: format!("grpc-{id}"),
    }
    .encode_to_vec()
}

fn cancel_token(id: usize) -> Vec<u8> {
    wire::CancelTokenRequest {
        acquirer_id: signed::ACQUIRER.to_owned(),
        psp_id: signed::PSP.to_owned(),
        access_token: signed::token(id),
        ..Default::default()
    }
    .encode_to_vec()
}

fn introspect(id: usize) -> Vec<u8> {
    wire::IntrospectTokenRequest { psp_id: signed::PSP.to_owned(), token: signed::token(id) }
        .encode_to_vec()
}

#[derive(Default)]
struct Rounds {
    rate: Vec<f64>,
    cpu: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
    commits: Vec<f64>,
}

fn measure(
    server: (u32, SocketAddr),
    method: &Method,
    messages: Vec<Vec<u8>>,
    service: Option<&Service>,
    into: &mut Rounds,
) {
    let count = messages.len() as f64;
    let commits =
        || service.map_or(0.0, |it| it.metrics().sum("alipayplus_cancel_commits_total", ""));
    let before = (rig::cpu(server.0), commits());
    let mut seen = on_its_core(calls(server.1, method, messages, CONNECTIONS, STREAMS, None));
    assert_eq!(seen.successes.len() as f64, count, "{}: {} others", method.path, seen.others);
    into.cpu.push((rig::cpu(server.0) - before.0).as_secs_f64() * 1e6 / count);
    into.commits.push((commits() - before.1) / count);
    into.rate.push(seen.per_second());
    into.p50.push(at(&mut seen.successes, 500).as_secs_f64() * 1e3);
    into.p99.push(at(&mut seen.successes, 990).as_secs_f64() * 1e3);
}

/// A consumer that begins now.
async fn subscribe(
    address: SocketAddr,
    name: &str,
    start: wire::SubscribeStart,
) -> tonic::Streaming<wire::SubscribeResponse> {
    let channel = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    let channel = channel.connect().await.expect("a connection");
    let request = wire::SubscribeRequest {
        consumer: name.to_owned(),
        start: start.into(),
        ..Default::default()
    };
    let stream = FeedServiceClient::new(channel).subscribe(request).await.expect("a stream");
    let mut stream = stream.into_inner();
    stream.message().await.expect("a message").expect("a message");
    stream
}

/// How many events a second one consumer gets of what is there.
fn replay(service: &Service, name: &str, events: usize) -> (f64, f64) {
    let before = service.cpu();
    let rate = on_its_core(async {
        let mut stream = subscribe(service.grpc, name, wire::SubscribeStart::Earliest).await;
        let begun = Instant::now();
        let mut got = 0;
        while got < events {
            let message = stream.message().await.expect("a stream").expect("a message");
            got += usize::from(message.event.is_some());
        }
        events as f64 / begun.elapsed().as_secs_f64()
    });
    (rate, (service.cpu() - before).as_secs_f64() * 1e6 / events as f64)
}

/// How long events are on their way while cancels arrive at this rate, in milliseconds.
fn delays(service: &Service, messages: Vec<Vec<u8>>, rate: f64) -> Vec<f64> {
    let count = messages.len();
    let mut delays = on_its_core(async {
        let mut stream = subscribe(service.grpc, "live", wire::SubscribeStart::End).await;
        let address = service.grpc;
        let load = tokio::task::spawn_local(async move {
            calls(address, &CANCEL_PAYMENT, messages, CONNECTIONS, STREAMS, Some(rate)).await
        });
        let mut delays = Vec::new();
        while delays.len() < count {
            let message = stream.message().await.expect("a stream").expect("a message");
            let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time");
            if let Some(decided) = message.event.and_then(|event| event.decided_at) {
                let decided = decided.seconds as f64 * 1e3 + f64::from(decided.nanos) / 1e6;
                delays.push(now.as_secs_f64() * 1e3 - decided);
            }
        }
        load.await.expect("the load");
        delays
    });
    delays.sort_by(f64::total_cmp);
    delays
}

fn main() {
    if let Some(which) = child::asked_for() {
        serve(&which);
    }
    let numbers = rig::numbers();
    let count = numbers.first().copied().unwrap_or(20_000);
    let rounds = numbers.get(1).copied().unwrap_or(3);
    let events = numbers.get(2).copied().unwrap_or(50_000);
    let dir = tempfile::tempdir().expect("a folder");
    let client = PrivateKey::generate(2048).expect("a key");
    let database = rig::database();
    let mut stores = vec![("embedded", None)];
    stores.extend(database.as_ref().map(|it| ("postgres", Some(it.fresh_database()))));

    let lines = dir.path().join("tokens.jsonl");
    // those that are asked about, and those that are cancelled
    signed::write_tokens(&lines, 0..(rounds + 1) * count);
    let services: Vec<_> = stores
        .iter()
        .map(|(name, url)| {
            let home = Home::furnish(&dir.path().join(name), url.as_deref(), &client, "");
            home.tool(&["import", "tokens", lines.to_str().expect("a path")]);
            home.tool(&["import", "complete"]);
            (*name, home.start())
        })
        .collect();
    let bare = Listening::this_program();
    let layers = Listening::this_program_as(LAYERED);

    let mut table: Vec<(String, Rounds)> = Vec::new();
    for round in 0..=rounds {
        let ids = round * count..(round + 1) * count;
        let mut nth = 0;
        let mut run = |name: String, server, method: &Method, messages, service| {
            if table.len() == nth {
                table.push((name, Rounds::default()));
            }
            let mut warm = Rounds::default();
            let into = if round == 0 { &mut warm } else { &mut table[nth].1 };
            measure(server, method, messages, service, into);
            nth += 1;
        };
        let checks = || vec![Vec::new(); count];
        for (name, server) in [(ALONE, &bare), (BEHIND_LAYERS, &layers)] {
            run(name.to_owned(), (server.id(), server.address), &CHECK, checks(), None);
        }
        for (name, service) in &services {
            let server = (service.id(), service.grpc);
            if *name == "embedded" {
                run("Check, the service".to_owned(), server, &CHECK, checks(), None);
            }
            // tokens of the round after this one: they are not cancelled yet
            let known = ids.clone().map(introspect).collect();
            run(format!("IntrospectToken, {name}"), server, &INTROSPECT, known, None);
            let payments = ids.clone().map(cancel_payment).collect();
            run(format!("CancelPayment, {name}"), server, &CANCEL_PAYMENT, payments, Some(service));
            let tokens = ids.clone().map(cancel_token).collect();
            run(format!("CancelToken, {name}"), server, &CANCEL_TOKEN, tokens, Some(service));
        }
    }

    let mut report = Report::new("grpc");
    let cpu = |name: &str| {
        let rounds = table.iter().find(|row| row.0 == name);
        rounds.map_or(f64::NAN, |row| median(&row.1.cpu))
    };
    let (alone, layered) = (cpu(ALONE), cpu(BEHIND_LAYERS));
    report.table(&format!("unary calls, {CONNECTIONS} connections with {STREAMS} calls at once on each; shares are of CPU: what a Check costs, tonic alone and tonic with our layers, over what this costs"));
    for (name, rounds) in &table {
        let cpu = median(&rounds.cpu);
        report.row(
            "calls",
            &[
                (&format!("{:<26}", "call"), format!("{name:<26}").into(), 0),
                ("calls/s", median(&rounds.rate).into(), 0),
                ("spread %", spread(&rounds.rate).into(), 0),
                ("CPU µs/call", cpu.into(), 1),
                ("% of tonic", (100.0 * alone / cpu).into(), 0),
                ("% of layers", (100.0 * layered / cpu).into(), 0),
                ("p50 ms", median(&rounds.p50).into(), 2),
                ("p99 ms", median(&rounds.p99).into(), 2),
                ("commits/call", median(&rounds.commits).into(), 4),
            ],
        );
    }

    report.table("the feed, one consumer");
    for (name, service) in &services {
        let first = (rounds + 1) * count;
        let load: Vec<_> = (first..first + events / 2).map(cancel_payment).collect();
        let peak = table.iter().find(|row| row.0 == format!("CancelPayment, {name}"));
        let half = median(&peak.expect("it was measured").1.rate) / 2.0;
        let delays = delays(service, load, half);
        let at = |share: usize| delays[(delays.len() - 1) * share / 1_000];
        let there = (2 * (rounds + 1) * count + events / 2).min(events);
        let replays: Vec<_> =
            (0..rounds).map(|nth| replay(service, &format!("replay-{nth}"), there)).collect();
        let rates: Vec<_> = replays.iter().map(|it| it.0).collect();
        let cpus: Vec<_> = replays.iter().map(|it| it.1).collect();
        report.row(
            "feed",
            &[
                ("store", (*name).into(), 0),
                ("replayed events/s", median(&rates).into(), 0),
                ("spread %", spread(&rates).into(), 0),
                ("CPU µs/event", median(&cpus).into(), 1),
                ("cancels/s beside", half.into(), 0),
                ("delay p50 ms", at(500).into(), 1),
                ("delay p99 ms", at(990).into(), 1),
            ],
        );
    }
    report.write();
}
