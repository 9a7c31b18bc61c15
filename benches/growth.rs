//! How it behaves once it has grown: the same cancels with few and with millions of payments in the embedded store.
//!
//! `cargo bench --bench growth -- [MILLIONS…]`, by default 0, 1 and 10. For each a store is made by `import payments`;
//! then each has a service, all on the same core, and they take turns: in each round each cancels payments that it knows,
//! chosen all over its store, by signed requests over 64 connections, while the others have nothing to do. The share of the
//! first is the median of the rounds' shares, so that a slower minute of the machine slows both sides of a ratio. Bytes of a
//! cancellation are what the file grew by, after its log was written back; a cancelled payment has two events, its own and the
//! return of its money. `target/bench/growth.json` has the same. 0, 1 and 10 million payments want 4 GB of disk and some
//! minutes, mostly for the import.
#![allow(missing_docs, dead_code, clippy::pedantic, clippy::restriction)]

mod rig;
mod signed;

use std::{
    fs,
    io::{BufWriter, Write as _},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use alipayplus_cancel::bridge::keys::PrivateKey;
use tempfile::TempDir;

use self::rig::{
    at, load, on_its_core,
    report::{Report, median, spread},
    service::{BINARY, CLIENT, Home, Service},
};

/// Of each round; rounds, before which is one that does not count.
const CANCELS: usize = 8_000;
const ROUNDS: usize = 7;
const WANTED: usize = (ROUNDS + 1) * CANCELS;

/// A store of one size, its service, and what was seen of it in each round.
struct Grown {
    dir: TempDir,
    payments: usize,
    imported: f64,
    before: f64,
    ready: Duration,
    service: Service,
    rate: Vec<f64>,
    cpu: Vec<f64>,
    p99: Vec<f64>,
}

impl Grown {
    fn make(millions: usize, client: &PrivateKey) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let home = Home::furnish(dir.path(), None, client, "");
        let payments = (millions * 1_000_000).max(WANTED);
        let imported = import(&home, payments);
        home.tool(&["import", "complete"]);
        let before = size(dir.path());
        let begun = Instant::now();
        let service = home.start();
        let ready = begun.elapsed();
        let (rate, cpu, p99) = (Vec::new(), Vec::new(), Vec::new());
        Self { dir, payments, imported, before, ready, service, rate, cpu, p99 }
    }

    fn round(&mut self, round: usize, client: &PrivateKey) {
        // all over the store, each once
        let id = |nth: usize| nth * (self.payments / WANTED);
        let requests = signed::many(round * CANCELS..(round + 1) * CANCELS, |nth| {
            signed::request(CLIENT, client, id(nth))
        });
        let busy = self.service.cpu();
        let mut seen = on_its_core(load(self.service.bridge, requests, 64, None));
        assert_eq!(seen.successes.len(), CANCELS, "{} others", seen.others);
        if round > 0 {
            self.rate.push(seen.per_second());
            self.cpu.push((self.service.cpu() - busy).as_secs_f64() * 1e6 / CANCELS as f64);
            self.p99.push(at(&mut seen.successes, 990).as_secs_f64() * 1e3);
        }
    }

    /// The share of that one's rate, round by round.
    fn share(&self, of: &[f64]) -> Vec<f64> {
        self.rate.iter().zip(of).map(|(mine, its)| 100.0 * mine / its).collect()
    }

    /// The end of its service; its row.
    fn report(self, report: &mut Report, first: &[f64]) {
        let share = self.share(first);
        let memory = rig::memory_mb(self.service.id());
        self.service.stop();
        let grown = (size(self.dir.path()) - self.before) / WANTED as f64;
        report.row(
            "growth",
            &[
                ("payments", self.payments.into(), 0),
                ("cancels/s", median(&self.rate).into(), 0),
                ("spread %", spread(&self.rate).into(), 0),
                ("% of first", median(&share).into(), 0),
                ("its spread %", spread(&share).into(), 0),
                ("CPU µs/req", median(&self.cpu).into(), 1),
                ("p99 ms", median(&self.p99).into(), 1),
                ("bytes/cancel", grown.into(), 0),
                ("bytes/payment", (self.before / self.payments as f64).into(), 0),
                ("ready after s", self.ready.as_secs_f64().into(), 2),
                ("memory MB", memory.into(), 0),
                ("imported/s", self.imported.into(), 0),
            ],
        );
    }
}

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
    let mut stores: Vec<Grown> = millions.iter().map(|size| Grown::make(*size, &client)).collect();
    for round in 0..=ROUNDS {
        for store in &mut stores {
            store.round(round, &client);
        }
    }
    let mut report = Report::new("growth");
    report.table("signed cancelPayments of known payments, 64 connections, embedded store");
    let first = stores.first().expect("a store").rate.clone();
    for store in stores {
        store.report(&mut report, &first);
    }
    report.write();
}
