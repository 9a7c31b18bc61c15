//! Signed cancelPayment and cancelToken over HTTP/1.1: distinct keys, durable, on both stores, beside what the same core
//! can sign and verify at all.
//!
//! `cargo bench --bench json -- [REQUESTS] [ROUNDS] [CONNECTIONS…] [NAME…]`, by default 8000 requests, 3 rounds, over 1, 16,
//! 64 and 256 connections; with names only the store `embedded` or `postgres`, only `cancelPayment` or `cancelToken`; with
//! `logged` the embedded store a second time, at the log level `info`: a line of JSON for each cancel, which the loader's
//! core reads. The service is the real binary with default limits, pinned to one core; the loader, and PostgreSQL if
//! `initdb` is installed, have the other. Requests are signed, and tokens imported, beforehand. Rounds are interleaved;
//! the table has medians and the spread of the rate, (max − min) / median. `target/bench/json.json` has the same.
#![allow(missing_docs, dead_code, clippy::pedantic, clippy::restriction)]

mod rig;
mod signed;

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

use alipayplus_cancel::bridge::keys::PrivateKey;

use self::rig::{
    at, load, on_its_core,
    report::{Report, median, spread},
    service::{CLIENT, Home, Service},
};

/// What one round of one configuration was like.
#[derive(Default)]
struct Rounds {
    rate: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
    p999: Vec<f64>,
    cpu: Vec<f64>,
    commits: Vec<f64>,
    hits: Vec<f64>,
}

fn per_second(duration: Duration, mut work: impl FnMut()) -> f64 {
    let (begun, mut done) = (Instant::now(), 0u64);
    while begun.elapsed() < duration {
        work();
        done += 1;
    }
    done as f64 / begun.elapsed().as_secs_f64()
}

/// Signatures and verifications a second, on the server's core.
fn rsa(key: &PrivateKey) -> [f64; 2] {
    rig::pin(rig::SERVER);
    let message = [b'm'; 300];
    let signature = key.sign(&message).expect("a signature");
    let second = Duration::from_secs(1);
    let sign = per_second(second, || drop(key.sign(&message)));
    let verify = per_second(second, || assert!(key.public().verify(&message, &signature)));
    rig::pin("0,1");
    [sign, verify]
}

fn measure(service: &Service, requests: Vec<Vec<u8>>, connections: usize, into: &mut Rounds) {
    let count = requests.len() as f64;
    let before = (service.cpu(), service.metrics());
    let mut seen = on_its_core(load(service.bridge, requests, connections, None));
    let (cpu, after) = (service.cpu() - before.0, service.metrics());
    assert_eq!(seen.successes.len() as f64, count, "all succeed: {:?} others", seen.others);
    let delta = |name: &str, labels: &str| after.sum(name, labels) - before.1.sum(name, labels);
    let hits = delta("alipayplus_cancel_signature_cache_total", "result=\"hit\"");
    into.rate.push(seen.per_second());
    let ms = |nth, seen: &mut Vec<Duration>| at(seen, nth).as_secs_f64() * 1e3;
    into.p50.push(ms(500, &mut seen.successes));
    into.p99.push(ms(990, &mut seen.successes));
    into.p999.push(ms(999, &mut seen.successes));
    into.cpu.push(cpu.as_secs_f64() * 1e6 / count);
    into.commits.push(delta("alipayplus_cancel_commits_total", "") / count);
    into.hits.push(100.0 * hits / count);
}

fn main() {
    let numbers = rig::numbers();
    let count = numbers.first().copied().unwrap_or(8_000);
    let rounds = numbers.get(1).copied().unwrap_or(3);
    let mut connections = numbers.get(2..).unwrap_or_default().to_vec();
    if connections.is_empty() {
        connections = vec![1, 16, 64, 256];
    }
    let dir = tempfile::tempdir().expect("a folder");
    let client = PrivateKey::generate(2048).expect("a key");
    let is_asked = |name: &str, other: &str| {
        let names: Vec<_> = std::env::args().skip(1).collect();
        names.iter().any(|it| it == name) || names.iter().all(|it| it != other)
    };
    let apis: Vec<_> = [("cancelPayment", "cancelToken"), ("cancelToken", "cancelPayment")]
        .into_iter()
        .filter(|(name, other)| is_asked(name, other))
        .map(|(name, _)| name)
        .collect();
    let database = is_asked("postgres", "embedded").then(rig::database).flatten();
    let mut stores = Vec::new();
    if is_asked("embedded", "postgres") {
        stores.push(("embedded", None, "warn"));
    }
    if std::env::args().any(|it| it == "logged") {
        stores.push(("logged", None, "info"));
    }
    stores.extend(database.as_ref().map(|it| ("postgres", Some(it.fresh_database()), "warn")));

    // one would take the same time for a tenth of the requests
    let of = |connections: usize| if connections == 1 { count / 10 } else { count };
    // and as many once, before anything is measured
    let all = (rounds + 1) * connections.iter().map(|it| of(*it)).sum::<usize>();
    let lines = dir.path().join("tokens.jsonl");
    signed::write_tokens(&lines, 0..all);
    let services: Vec<_> = stores
        .iter()
        .map(|(name, url, level)| {
            let home = Home::furnish(&dir.path().join(name), url.as_deref(), &client, "");
            home.tool(&["import", "tokens", lines.to_str().expect("a path")]);
            home.tool(&["import", "complete"]);
            let level = format!("telemetry.log_level={level},alipayplus_cancel::cli=info");
            (*name, home.start_with(&[&level]))
        })
        .collect();
    drop(fs::remove_file(&lines));

    let mut seen: BTreeMap<(usize, &str, usize), Rounds> = BTreeMap::new();
    let mut limits = [Vec::new(), Vec::new()];
    let mut next = BTreeMap::new();
    for round in 0..=rounds {
        if round > 0 {
            for (all, one) in limits.iter_mut().zip(rsa(&client)) {
                all.push(one);
            }
        }
        for (of_store, (name, service)) in services.iter().enumerate() {
            for api in apis.iter().copied() {
                for connections in &connections {
                    let next: &mut usize = next.entry((*name, api)).or_default();
                    let ids = *next..*next + of(*connections);
                    *next = ids.end;
                    let requests = signed::many(ids, |id| match api {
                        "cancelToken" => signed::token_request(CLIENT, &client, id),
                        _ => signed::request(CLIENT, &client, id),
                    });
                    // memory that is touched for the first time costs more than a request
                    let mut warm = Rounds::default();
                    let into = match round {
                        0 => &mut warm,
                        _ => seen.entry((of_store, api, *connections)).or_default(),
                    };
                    measure(service, requests, *connections, into);
                }
            }
        }
    }

    let mut report = Report::new("json");
    let [sign, verify] = limits.map(|all| median(&all));
    report.table("RSA-2048 on the server's core");
    report.row("limit", &[("sign/s", sign.into(), 0), ("verify/s", verify.into(), 0)]);
    for (of_store, (name, _)) in services.iter().enumerate() {
        for api in apis.iter().copied() {
            report.table(&format!("{api}, {name}"));
            for connections in &connections {
                let rounds = &seen[&(of_store, api, *connections)];
                let rate = median(&rounds.rate);
                report.row(
                    &format!("{api} {name}"),
                    &[
                        ("connections", (*connections).into(), 0),
                        ("requests/s", rate.into(), 0),
                        ("spread %", spread(&rounds.rate).into(), 0),
                        ("of sign/s", (rate / sign).into(), 2),
                        ("of verify/s", (rate / verify).into(), 2),
                        ("p50 ms", median(&rounds.p50).into(), 2),
                        ("p99 ms", median(&rounds.p99).into(), 2),
                        ("p99.9 ms", median(&rounds.p999).into(), 2),
                        ("CPU µs/req", median(&rounds.cpu).into(), 1),
                        ("commits/req", median(&rounds.commits).into(), 4),
                        ("cache hits %", median(&rounds.hits).into(), 1),
                    ],
                );
            }
        }
    }
    report.write();
}
