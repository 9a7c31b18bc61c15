//! What is left of the service when too much comes, and what one client's flood does to another.
//!
//! `cargo bench --bench overload -- [SECONDS]`, by default 10. The service is the real binary with the embedded store,
//! with its default limits, pinned to one core, the loader to another (`taskset`). Requests are signed beforehand, distinct, durable; they arrive
//! at a rate of their own, whether or not answers come.
//!
//! 1. *Peak*: 3000 connections, each asking as fast as it is answered.
//! 2. *r*: what a refused request costs the service, over what an accepted one costs (CPU time of its process).
//! 3. *Goodput* at 1, 2 and 3 times the peak, beside the goal: 90 % of (1 − k·r)/(1 − r).
//! 4. *Fairness*: p99 of a client within its rate, alone and while another one sends 20 times its own rate; five rounds
//!    of each, interleaved, medians.
#![allow(missing_docs, clippy::pedantic, clippy::restriction)]

mod rig;
mod signed;

use std::{
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use alipayplus_cancel::bridge::keys::PrivateKey;
use tokio::{io::AsyncWriteExt as _, net::TcpStream, time};

use self::rig::{
    at, load, on_its_core,
    service::{Home, Service},
};

/// The client that floods, and the one that does not.
const CLIENTS: [&str; 2] = ["FLOOD", "OTHER"];
/// Requests a second that [`CLIENTS`] may make in the part about fairness, and that the second one makes.
const FAIR_RATE: usize = 200;
const CONNECTIONS: usize = 6_000;

/// Starts one on core 0, with these `--set`.
fn start(dir: &Path, keys: &[PrivateKey; 2], set: &[&str]) -> Service {
    let clients = [(CLIENTS[0], &keys[0]), (CLIENTS[1], &keys[1])];
    let home = Home::with_clients(dir, None, &clients, "");
    home.tool(&["import", "complete"]);
    home.start_with(set)
}

/// So many requests of a client's, none of them made before. Signed on both cores: nothing is measured now.
fn requests(client: usize, keys: &[PrivateKey; 2], count: usize) -> Vec<Vec<u8>> {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let first = NEXT.fetch_add(count, Ordering::Relaxed);
    let key = &keys[client];
    signed::many(first..first + count, |id| signed::request(CLIENTS[client], key, id))
}

fn main() {
    let seconds = rig::numbers().first().copied().unwrap_or(10);
    let dir = tempfile::tempdir().expect("a folder");
    let keys = [(); 2].map(|()| PrivateKey::generate(2048).expect("a key"));
    // held beside the measurements
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let run = |address, requests, connections, rate| {
        on_its_core(load(address, requests, connections, rate))
    };

    // 1. the peak
    let service = start(&dir.path().join("all"), &keys, &[]);
    // memory that is touched for the first time costs more than a request
    run(service.bridge, requests(0, &keys, 9_000), 3_000, None);
    let before = service.cpu();
    let mut peak = run(service.bridge, requests(0, &keys, 4_000 * seconds), 3_000, None);
    assert!(peak.refusals.is_empty(), "3000 fit");
    let accepted_cpu = (service.cpu() - before).as_secs_f64() / peak.successes.len() as f64;
    let rate = peak.per_second();
    println!(
        "peak: {rate:.0} a second, p50 {:?}, p99 {:?}",
        at(&mut peak.successes, 500),
        at(&mut peak.successes, 990)
    );

    // 2. r: a second service with room for one, which an unfinished request takes
    let full = start(
        &dir.path().join("full"),
        &keys,
        &[
            "limits.max_in_flight=1",
            "limits.body_timeout=10m",
            "limits.cancel_payment_deadline=10m",
        ],
    );
    let whole = signed::request(CLIENTS[0], &keys[0], usize::MAX);
    let _held = runtime.block_on(async {
        let mut socket = TcpStream::connect(full.bridge).await.expect("a connection");
        socket.write_all(&whole[..whole.len() - 1]).await.expect("to send");
        time::sleep(Duration::from_millis(200)).await;
        socket
    });
    run(full.bridge, requests(0, &keys, 9_000), 3_000, None);
    let before = full.cpu();
    let refused = run(full.bridge, requests(0, &keys, 4_000 * seconds), 3_000, None);
    assert!(refused.successes.is_empty(), "there is no room");
    let refused_cpu = (full.cpu() - before).as_secs_f64() / refused.refusals.len() as f64;
    let r = refused_cpu / accepted_cpu;
    println!(
        "CPU: {:.1} µs accepted, {:.1} µs refused, r = {r:.3}",
        accepted_cpu * 1e6,
        refused_cpu * 1e6
    );
    drop(full);

    // 3. goodput
    println!(
        "\n  k   arrivals/s  goodput/s  of peak   goal   refused  unsent  other  p50 S     p99 S     p99 refused  memory   its core"
    );
    for k in [1usize, 2, 3] {
        let arrivals = rate * k as f64;
        let count = (arrivals * seconds as f64) as usize;
        let wave = requests(0, &keys, count);
        let before = service.cpu();
        let mut seen = run(service.bridge, wave, CONNECTIONS, Some(arrivals));
        let busy = (service.cpu() - before).as_secs_f64() / seen.took.as_secs_f64();
        let goal = (0.9 * (1.0 - k as f64 * r) / (1.0 - r)).max(if k == 3 { 0.6 } else { 0.0 });
        println!(
            "{k:>3}   {arrivals:>10.0} {:>10.0} {:>7.0} % {:>5.0} % {:>8} {:>7} {:>6}  {:<9.1?} {:<9.1?} {:<9.1?} {:>7} MB {:>7.0} %",
            seen.per_second(),
            100.0 * seen.per_second() / rate,
            100.0 * goal,
            seen.refusals.len(),
            seen.unsent,
            seen.others,
            at(&mut seen.successes, 500),
            at(&mut seen.successes, 990),
            at(&mut seen.refusals, 990),
            rig::memory_mb(service.id()),
            100.0 * busy,
        );
    }
    drop(service);

    // 4. fairness
    let limits: Vec<String> = (0..2)
        .flat_map(|client| {
            ["per_second", "burst"].map(|it| format!("clients.{client}.rate.{it}={FAIR_RATE}"))
        })
        .collect();
    let limits: Vec<&str> = limits.iter().map(String::as_str).collect();
    let service = start(&dir.path().join("fair"), &keys, &limits);
    let mut rounds: Vec<[Duration; 2]> = Vec::new();
    println!("\nround  quiet p99   beside 20 times its rate p99");
    for round in 1..=5 {
        let quiet = requests(1, &keys, FAIR_RATE * seconds);
        let beside = requests(1, &keys, FAIR_RATE * seconds);
        let flood = requests(0, &keys, 20 * FAIR_RATE * seconds);
        let steady = FAIR_RATE as f64 * 0.9;
        let mut alone = run(service.bridge, quiet, 64, Some(steady));
        let (mut beside, flooded) = on_its_core(async {
            tokio::join!(
                load(service.bridge, beside, 64, Some(steady)),
                load(service.bridge, flood, 256, Some(20.0 * FAIR_RATE as f64)),
            )
        });
        assert!(flooded.refusals.len() > 10 * flooded.successes.len(), "it is refused");
        assert!(alone.refusals.len() + beside.refusals.len() == 0, "within its rate");
        let p99 = [at(&mut alone.successes, 990), at(&mut beside.successes, 990)];
        println!("{round:>5}  {:<10.2?}  {:<10.2?}", p99[0], p99[1]);
        rounds.push(p99);
    }
    let median = |which: usize| {
        let mut all: Vec<_> = rounds.iter().map(|round| round[which]).collect();
        at(&mut all, 500)
    };
    println!(
        "medians: {:.2?} and {:.2?}, ratio {:.2}",
        median(0),
        median(1),
        median(1).as_secs_f64() / median(0).as_secs_f64()
    );
}
