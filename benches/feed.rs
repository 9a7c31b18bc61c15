//! The feed: how fast a backlog is replayed, how long a live event takes, what silent consumers cost.
//!
//! `cargo bench --bench feed -- [EVENTS] [SILENT]`, by default 20000 events and 100 consumers that read nothing. The
//! service is the real binary with the embedded store in a temporary folder. Figures of one machine at one moment:
//! compare within one run.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use alipayplus_cancel::bridge::keys::PrivateKey;
use tonic::transport::{Channel, Endpoint};

/// The contract, compiled for this bench.
mod wire {
    #![allow(clippy::all, clippy::pedantic, clippy::restriction, rust_2018_idioms, dead_code)]
    #![allow(missing_docs)]
    tonic::include_proto!("alipayplus.cancel.v1");
}

use wire::{cancel_service_client::CancelServiceClient, feed_service_client::FeedServiceClient};

struct Service {
    process: Child,
    grpc: SocketAddr,
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

impl Service {
    /// Resident memory, in MiB.
    fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id()));
        let status = status.expect("a process of Linux");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
        let kib: u64 = line.split_whitespace().nth(1).expect("a number").parse().expect("KiB");
        kib / 1024
    }

    fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.grpc)).expect("an address");
        // a consumer's own buffers are not what is measured
        endpoint.initial_stream_window_size(65_535).connect_lazy()
    }
}

fn start(dir: &Path) -> Service {
    let key = PrivateKey::generate(2048).expect("a key");
    fs::write(dir.join("wallet.pem"), key.pkcs8_pem().expect("PEM").as_bytes()).expect("a file");
    fs::write(dir.join("hash.key"), [b'k'; 64]).expect("a file");
    let settings = format!(
        r#"
store.url = "sqlite://{}/state.db"
grpc.listen = "127.0.0.1:0"
bridge.listen = "127.0.0.1:0"
admin.listen = "127.0.0.1:0"
tokens.hash_key_files = ["hash.key"]
telemetry.log_level = "warn,alipayplus_cancel::cli=info"
[[identity.keys]]
version = "1"
file = "wallet.pem"
"#,
        dir.display()
    );
    let file = dir.join("settings.toml");
    fs::write(&file, settings).expect("a file");
    let binary = env!("CARGO_BIN_EXE_alipayplus-cancel");
    let mut process = Command::new(binary)
        .args(["serve", "--config"])
        .arg(&file)
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary");
    let mut lines = BufReader::new(process.stderr.take().expect("a pipe")).lines();
    let ready = lines.by_ref().map_while(Result::ok).find(|line| line.contains("\"ready\""));
    let ready: serde_json::Value =
        serde_json::from_str(&ready.expect("it gets ready")).expect("a JSON log line");
    let grpc = ready["grpc"].as_str().expect("an address").parse().expect("an address");
    // whatever it logs, somebody must read
    thread::spawn(move || lines.for_each(drop));
    let complete =
        Command::new(binary).args(["import", "complete", "--config"]).arg(&file).output();
    assert!(complete.expect("the binary").status.success());
    Service { process, grpc }
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
        let mut client = CancelServiceClient::new(service.channel());
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
        let stream = subscribe(service.channel(), format!("replay-{consumers}-{reader}"));
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
    let mut stream = FeedServiceClient::new(service.channel())
        .subscribe(request)
        .await
        .expect("a stream")
        .into_inner();
    stream.message().await.expect("a message");
    let mut client = CancelServiceClient::new(service.channel());
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
    let before = service.resident();
    let mut streams = Vec::new();
    for consumer in 0..consumers {
        streams.push(subscribe(service.channel(), format!("silent-{consumer}")).await);
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = service.resident();
    println!("{consumers} consumers that read nothing: {before} MiB before, {after} MiB after");
}

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|argument| argument.parse().ok());
    let (events, consumers) = (numbers.next().unwrap_or(20_000), numbers.next().unwrap_or(100));
    let dir = tempfile::tempdir().expect("a folder");
    let service = start(dir.path());
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
