//! How it behaves once it has grown: the same cancels with few and with millions of payments in the embedded store.
//!
//! `cargo bench --bench growth -- [MILLIONS…]`, by default 0, 1 and 10. For each a store is made by `import payments`;
//! then the service starts, on one core, and cancels payments that it knows, chosen all over the store, by signed requests
//! over 64 connections. Bytes of a cancellation are what the file grew by, after its log was written back; a cancelled payment
//! has two events, its own and the return of its money. `target/bench/growth.json` has the same. 10 million payments
//! want 3 GB of disk and some minutes, mostly for the import.
#![allow(missing_docs, dead_code, clippy::pedantic, clippy::restriction)]

mod rig;
mod signed;

use std::{
    fs,
    io::{BufWriter, Write as _},
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use alipayplus_cancel::bridge::keys::PrivateKey;

use self::rig::{
    at, load, on_its_core,
    report::{Report, median, spread},
    service::{BINARY, CLIENT, Home},
};

/// Of each round, and rounds.
const CANCELS: usize = 10_000;
const ROUNDS: usize = 3;

/// Brings in payments `load-0` … of today, through a pipe: no file of gigabytes beside the store. Lines a second.
fn import(home: &Home, payments: usize) -> f64 {
    let now = Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%SZ"]).output().expect("date");
    let now = String::from_utf8(now.stdout).expect("a time");
    let begun = Instant::now();
    let mut process = Command::new(BINARY)
        .args(["import", "payments", "-", "--config"])
        .arg(&home.settings)
        .args(["--rejects", "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("the binary");
    let mut out = BufWriter::with_capacity(1 << 20, process.stdin.take().expect("a pipe"));
    for id in 0..payments {
        let (psp, acquirer, now) = (signed::PSP, signed::ACQUIRER, now.trim());
        writeln!(
            out,
            r#"{{"pspId":"{psp}","paymentRequestId":"load-{id}","acquirerId":"{acquirer}","paymentAmount":{{"value":"1999","currency":"EUR"}},"initiatedAt":"{now}","state":"succeeded"}}"#
        )
        .expect("to write");
    }
    drop(out);
    assert!(process.wait().expect("its end").success());
    payments as f64 / begun.elapsed().as_secs_f64()
}

fn size(dir: &Path) -> f64 {
    let files = fs::read_dir(dir).expect("a folder").flatten();
    let of_store = files.filter(|file| file.file_name().to_string_lossy().starts_with("state.db"));
    of_store.map(|file| file.metadata().expect("a file").len() as f64).sum()
}

fn main() {
    let mut millions = rig::numbers();
    if millions.is_empty() {
        millions = vec![0, 1, 10];
    }
    let client = PrivateKey::generate(2048).expect("a key");
    let mut report = Report::new("growth");
    let mut first = None;
    for millions in millions {
        let dir = tempfile::tempdir().expect("a folder");
        let home = Home::furnish(dir.path(), None, &client, "");
        let wanted = (ROUNDS + 1) * CANCELS;
        let payments = (millions * 1_000_000).max(wanted);
        let imported = import(&home, payments);
        home.tool(&["import", "complete"]);
        let before = size(dir.path());

        let begun = Instant::now();
        let service = home.start();
        let ready = begun.elapsed();
        // all over the store, each once
        let id = |nth: usize| nth * (payments / wanted);
        let (mut rate, mut cpu, mut p99) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..=ROUNDS {
            let requests = signed::many(round * CANCELS..(round + 1) * CANCELS, |nth| {
                signed::request(CLIENT, &client, id(nth))
            });
            let busy = service.cpu();
            let mut seen = on_its_core(load(service.bridge, requests, 64, None));
            assert_eq!(seen.successes.len(), CANCELS, "{} others", seen.others);
            if round > 0 {
                rate.push(seen.per_second());
                cpu.push((service.cpu() - busy).as_secs_f64() * 1e6 / CANCELS as f64);
                p99.push(at(&mut seen.successes, 990).as_secs_f64() * 1e3);
            }
        }
        let memory = rig::memory_mb(service.id());
        service.stop();
        let grown = (size(dir.path()) - before) / wanted as f64;
        let rate_now = median(&rate);
        let base = *first.get_or_insert(rate_now);
        if report.is_empty() {
            report.table("signed cancelPayments of known payments, 64 connections, embedded store");
        }
        report.row(
            "growth",
            &[
                ("payments", payments.into(), 0),
                ("cancels/s", rate_now.into(), 0),
                ("spread %", spread(&rate).into(), 0),
                ("% of first", (100.0 * rate_now / base).into(), 0),
                ("CPU µs/req", median(&cpu).into(), 1),
                ("p99 ms", median(&p99).into(), 1),
                ("bytes/cancel", grown.into(), 0),
                ("bytes/payment", (before / payments as f64).into(), 0),
                ("ready after s", ready.as_secs_f64().into(), 2),
                ("memory MB", memory.into(), 0),
                ("imported/s", imported.into(), 0),
            ],
        );
    }
    report.write();
}
