//! What this machine can do at all, so that other figures are ratios: signatures, durable writes, bare echoes.
//!
//! `cargo bench --bench limit -- [SECONDS]`, by default 3. RSA-2048 by the library that the service uses and by `openssl
//! speed`; `fdatasync` of 4 KiB at the end of a file in the temporary folder; a bare axum POST echo and a bare tonic unary
//! call (gRPC's health check), server on one core and loader on the other.
#![allow(missing_docs, clippy::pedantic, clippy::restriction)]

mod rig;

use std::{
    io::Write as _,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use alipayplus_cancel::bridge::keys::PrivateKey;
use axum::{Router, body::Bytes, routing::post};
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};

use self::rig::{
    Seen, at,
    child::{self, Listening},
    h2::{Method, calls},
    load, on_its_core,
};

/// What tonic is asked.
const CHECK: Method = Method { path: "/grpc.health.v1.Health/Check", answers_with: &[8, 1] };
/// Of each gRPC connection.
const STREAMS: usize = 32;

/// Being the server.
fn serve(which: &str) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("one");
    if which == "tonic" {
        return runtime.block_on(child::bare_health());
    }
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        child::say(listener.local_addr().expect("an address"));
        let echo = Router::new().route("/", post(|body: Bytes| async { body }));
        loop {
            let (socket, _) = listener.accept().await.expect("a connection");
            socket.set_nodelay(true).expect("a socket");
            let echo = TowerToHyperService::new(echo.clone());
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(socket), echo));
        }
    })
}

fn per_second(seconds: u64, mut work: impl FnMut()) -> f64 {
    let (begun, mut done) = (Instant::now(), 0u64);
    while begun.elapsed() < Duration::from_secs(seconds) {
        work();
        done += 1;
    }
    done as f64 / begun.elapsed().as_secs_f64()
}

fn row(connections: usize, mut seen: Seen, micros: f64) {
    println!(
        "{connections:>11} {:>12.0} {micros:>10.1} µs   {:<10.1?} {:<10.1?}",
        seen.per_second(),
        at(&mut seen.successes, 500),
        at(&mut seen.successes, 990)
    );
}

fn main() {
    if let Some(which) = child::asked_for() {
        return serve(&which);
    }
    let seconds = rig::numbers().first().map_or(3, |seconds| *seconds as u64);
    rig::pin(rig::SERVER);
    let key = PrivateKey::generate(2048).expect("a key");
    let message = [b'm'; 300];
    let signature = key.sign(&message).expect("a signature");
    println!(
        "RSA-2048 sign    {:>10.0} a second",
        per_second(seconds, || drop(key.sign(&message)))
    );
    println!(
        "RSA-2048 verify  {:>10.0} a second",
        per_second(seconds, || assert!(key.public().verify(&message, &signature)))
    );
    let openssl = Command::new("openssl")
        .args(["speed", "-seconds", &seconds.to_string(), "rsa2048"])
        .stderr(Stdio::null())
        .output();
    if let Ok(openssl) = openssl {
        let text = String::from_utf8_lossy(&openssl.stdout);
        println!("openssl speed    {}", text.lines().last().unwrap_or_default());
    }
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    let synced = per_second(seconds, || {
        file.write_all(&[0; 4096]).expect("to write");
        file.as_file().sync_data().expect("to sync");
    });
    println!("fdatasync        {synced:>10.0} a second");
    rig::pin("0,1");

    let body =
        r#"{"result":{"resultCode":"SUCCESS","resultStatus":"S","resultMessage":"Success"}}"#;
    let request = format!(
        "POST / HTTP/1.1\r\nhost: wallet\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    println!("\naxum POST echo\nconnections   requests/s   CPU/request   p50        p99");
    for connections in [1usize, 64, 256, 3_000] {
        let echo = Listening::this_program_as("axum");
        let wave = |count| vec![request.clone().into_bytes(); count];
        on_its_core(load(echo.address, wave(3_000), connections, None));
        let before = rig::cpu(echo.id());
        let count = if connections == 1 { 20_000 } else { 100_000 };
        let seen = on_its_core(load(echo.address, wave(count), connections, None));
        let busy = (rig::cpu(echo.id()) - before).as_secs_f64();
        row(connections, seen, busy * 1e6 / count as f64);
    }

    println!("\ntonic unary call, {STREAMS} at once on each connection");
    println!("connections      calls/s   CPU/call      p50        p99");
    for connections in [1usize, 4] {
        let bare = Listening::this_program_as("tonic");
        let ask = |count| {
            let messages = vec![Vec::new(); count];
            on_its_core(calls(bare.address, &CHECK, messages, connections, STREAMS, None))
        };
        ask(10_000);
        let (before, count) = (rig::cpu(bare.id()), 100_000);
        let seen = ask(count);
        let busy = (rig::cpu(bare.id()) - before).as_secs_f64();
        row(connections, seen, busy * 1e6 / count as f64);
    }
}
