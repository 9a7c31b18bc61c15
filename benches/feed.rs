//! The feed: how fast a backlog is replayed, how long a live event takes, what silent consumers cost.
//!
//! `cargo bench --bench feed -- [EVENTS] [SILENT]`, by default 20000 events and 100 consumers that read nothing. The
//! service is the real binary with the embedded store in a temporary folder. Figures of one machine at one moment:
//! compare within one run.

#![allow(missing_docs, dead_code, clippy::pedantic, clippy::restriction)]

mod rig;

use std::time::{Duration, Instant};

use alipayplus_cancel::grpc::wire;
use tonic::transport::{Channel, Endpoint};
use wire::{cancel_service_client::CancelServiceClient, feed_service_client::FeedServiceClient};

use self::rig::service::{Home, Service};

fn channel(service: &Service) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{}", service.grpc)).expect("an address");
    // a consumer's own buffers are not what is measured
    endpoint.initial_stream_window_size(65_535).connect_lazy()
}

async fn cancel(client: &mut CancelServiceClient<Channel>, id: String) {
    let request = wire::CancelPaymentRequest {
        acquirer_id: "1022188000000000001".to_owned(),
        psp_id: "1022172000000000001".to_owned(),
        payment_request_id: id,
    };
    client.cancel_payment(request).await.expect("a result");
}

async fn subscribe(
    channel: Channel,
    consumer: String,
) -> tonic::Streaming<wire::SubscribeResponse> {
    let request = wire::SubscribeRequest { consumer, ..wire::SubscribeRequest::default() };
    let stream = FeedServiceClient::new(channel).subscribe(request).await.expect("a stream");
    let mut stream = stream.into_inner();
    stream.message().await.expect("a message").expect("a message");
    stream
}

async fn fill(service: &Service, events: usize) {
    let begun = Instant::now();
    let workers = (0..64).map(|worker| {
        let mut client = CancelServiceClient::new(channel(service));
        tokio::spawn(async move {
            for id in (worker..events).step_by(64) {
                cancel(&mut client, format!("backlog-{id}")).await;
            }
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        worker.await.expect("a worker");
    }
    let rate = per_second(events, begun.elapsed());
    println!("{events} payments cancelled, {rate} a second, by 64 callers");
}

fn per_second(count: usize, took: Duration) -> u128 {
    u128::try_from(count).unwrap_or(0) * 1_000_000 / took.as_micros().max(1)
}

async fn replay(service: &Service, events: usize, consumers: usize) {
    let begun = Instant::now();
    let readers = (0..consumers).map(|reader| {
        let stream = subscribe(channel(service), format!("replay-{consumers}-{reader}"));
        tokio::spawn(async move {
            let mut stream = stream.await;
            for _ in 0..events {
                stream.message().await.expect("an event").expect("an event");
            }
        })
    });
    for reader in readers.collect::<Vec<_>>() {
        reader.await.expect("a reader");
    }
    let rate = per_second(events * consumers, begun.elapsed());
    println!("replay to {consumers} consumers: {rate} events a second in all");
}

/// From the answer of a cancel, which leaves after its commit, to its event.
async fn live(service: &Service, events: usize) {
    let end = wire::SubscribeStart::End;
    let request = wire::SubscribeRequest {
        consumer: "live".to_owned(),
        start: end.into(),
        ..wire::SubscribeRequest::default()
    };
    let mut stream = FeedServiceClient::new(channel(service))
        .subscribe(request)
        .await
        .expect("a stream")
        .into_inner();
    stream.message().await.expect("a message");
    let mut client = CancelServiceClient::new(channel(service));
    let mut times = Vec::new();
    for id in 0..events {
        let asked = Instant::now();
        let event = async {
            while stream.message().await.expect("a stream").expect("a message").event.is_none() {}
            asked.elapsed()
        };
        let answer = async {
            cancel(&mut client, format!("live-{id}")).await;
            asked.elapsed()
        };
        let (heard, answered) = tokio::join!(event, answer);
        times.push((heard, heard.saturating_sub(answered)));
    }
    let mut print = |what: &str, time: fn(&(Duration, Duration)) -> Duration| {
        times.sort_unstable_by_key(time);
        let at =
            |share: usize| times.get(times.len() * share / 1_000).map(time).unwrap_or_default();
        println!("{what}: p50 {:.2?}, p99 {:.2?}, p99.9 {:.2?}", at(500), at(990), at(999));
    };
    print("live, from the request to its event", |time| time.0);
    print("live, from the answer to its event", |time| time.1);
}

async fn silent(service: &Service, consumers: usize) {
    let before = rig::memory_mb(service.id());
    let mut streams = Vec::new();
    for consumer in 0..consumers {
        streams.push(subscribe(channel(service), format!("silent-{consumer}")).await);
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = rig::memory_mb(service.id());
    println!("{consumers} consumers that read nothing: {before} MB before, {after} MB after");
}

fn main() {
    let numbers = rig::numbers();
    let events = numbers.first().copied().unwrap_or(20_000);
    let consumers = numbers.get(1).copied().unwrap_or(100);
    let dir = tempfile::tempdir().expect("a folder");
    let home = Home::with_clients(dir.path(), None, &[], "");
    home.tool(&["import", "complete"]);
    let service = home.start();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        live(&service, 1_000).await;
        fill(&service, events).await;
        for readers in [1, 8] {
            replay(&service, events, readers).await;
        }
        silent(&service, consumers).await;
    });
}
