//! This service beside what one writes with Node or Python in an afternoon: the same signed cancelPayments, distinct keys,
//! durable, every answer signed; a core for the server, a core for the loader.
//!
//! `cargo bench --bench peers -- [REQUESTS] [ROUNDS] [CONNECTIONS…]`, by default 3000 requests, 5 rounds, over 64 and 256
//! connections. The peers are in `benches/peers`: fastify with node:crypto and better-sqlite3 or pg, FastAPI with
//! cryptography and sqlite3 or psycopg, a process each. Their packages come from npm and PyPI into `target/bench`. On
//! SQLite all have `journal_mode = WAL` and `synchronous = FULL`, on PostgreSQL `synchronous_commit = on`; PostgreSQL has
//! the loader's core. Rounds are interleaved; the table has medians. `target/bench/peers.json` has the same.
#![allow(missing_docs, dead_code, clippy::pedantic, clippy::restriction)]

#[path = "../tests/it/harness/mod.rs"]
mod harness;
mod rig;
mod signed;

use std::{
    env, fs,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
};

use alipayplus_cancel::bridge::keys::PrivateKey;
use harness::postgres::Cluster;

use self::rig::{
    at, load, on_its_core,
    report::{Report, median, spread},
    service::{CLIENT, Home, Service},
};

/// A peer that runs, until it is dropped.
struct Peer {
    process: Child,
    address: SocketAddr,
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

impl Peer {
    fn start(program: &[PathBuf], keys: &Path, database: &str) -> Self {
        let mut process = Command::new("taskset")
            .args(["-c", rig::SERVER])
            .args(program)
            .env("PRIVATE_KEY", keys.join("wallet.pem"))
            .env("PUBLIC_KEY", keys.join("client.pem"))
            .env("CLIENT", CLIENT)
            .env("DATABASE", database)
            .env("NODE_ENV", "production")
            .stdout(Stdio::piped())
            .spawn()
            .expect("taskset and a peer");
        let mut lines = BufReader::new(process.stdout.take().expect("a pipe")).lines();
        let address = lines.next().expect("it starts").expect("a line").trim().parse();
        thread::spawn(move || lines.map_while(Result::ok).for_each(|line| eprintln!("{line}")));
        Self { process, address: address.expect("an address") }
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The programs of the peers, with what they need.
fn install() -> [Vec<PathBuf>; 2] {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers");
    let target = env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target"), PathBuf::from);
    let (node, python) = (target.join("bench/peers/node"), target.join("bench/peers/python"));
    fs::create_dir_all(&node).expect("a folder");
    for name in ["package.json", "server.mjs"] {
        fs::copy(here.join("node").join(name), node.join(name)).expect("a file");
    }
    run(Command::new("npm")
        .args(["install", "--silent", "--no-audit", "--no-fund"])
        .current_dir(&node));
    if !python.join("bin/python").exists() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&python));
    }
    run(Command::new(python.join("bin/pip"))
        .args(["install", "--quiet", "--disable-pip-version-check", "-r"])
        .arg(here.join("python/requirements.txt")));
    [
        vec!["node".into(), node.join("server.mjs")],
        vec![python.join("bin/python"), here.join("python/server.py")],
    ]
}

enum Server {
    Ours(Service),
    Peer(Peer),
}

impl Server {
    fn at(&self) -> (u32, SocketAddr) {
        match self {
            Self::Ours(service) => (service.id(), service.bridge),
            Self::Peer(peer) => (peer.process.id(), peer.address),
        }
    }
}

fn main() {
    let numbers: Vec<usize> =
        env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let count = numbers.first().copied().unwrap_or(3_000);
    let rounds = numbers.get(1).copied().unwrap_or(5);
    let mut connections = numbers.get(2..).unwrap_or_default().to_vec();
    if connections.is_empty() {
        connections = vec![64, 256];
    }
    let programs = install();
    let dir = tempfile::tempdir().expect("a folder");
    let client = PrivateKey::generate(2048).expect("a key");
    rig::pin(rig::LOADER);
    let database =
        harness::postgres::is_there_or_skip().then(|| Cluster::start(Default::default()));
    rig::pin("0,1");

    let mut servers = Vec::new();
    for store in ["SQLite", "PostgreSQL"] {
        if store == "PostgreSQL" && database.is_none() {
            continue;
        }
        let url = || match store {
            "SQLite" => None,
            _ => database.as_ref().map(Cluster::fresh_database),
        };
        let ours = dir.path().join(store);
        let home = Home::furnish(&ours, url().as_deref(), &client, "");
        home.tool(&["import", "complete"]);
        servers.push((format!("alipayplus-cancel, {store}"), Server::Ours(home.start())));
        for (name, program) in ["Node", "Python"].into_iter().zip(&programs) {
            let file = ours.join(format!("{name}.db")).display().to_string();
            let peer = Peer::start(program, &ours, &url().unwrap_or(file));
            servers.push((format!("{name}, {store}"), Server::Peer(peer)));
        }
    }

    let mut report = Report::new("peers");
    let mut next = 0;
    for connections in connections {
        let mut seen = vec![[(); 3].map(|()| Vec::new()); servers.len()];
        for round in 0..=rounds {
            for (rounds, (name, server)) in seen.iter_mut().zip(&servers) {
                // the slow ones need no more to be known
                let count = if name.starts_with("alipay") { count * 4 } else { count };
                let requests =
                    signed::many(next..next + count, |id| signed::request(CLIENT, &client, id));
                next += count;
                let (process, address) = server.at();
                let before = rig::cpu(process);
                let mut heard = on_its_core(load(address, requests, connections, None));
                assert_eq!(heard.successes.len(), count, "{name}: {} others", heard.others);
                let cpu = (rig::cpu(process) - before).as_secs_f64() * 1e6 / count as f64;
                if round > 0 {
                    rounds[0].push(heard.per_second());
                    rounds[1].push(cpu);
                    rounds[2].push(at(&mut heard.successes, 990).as_secs_f64() * 1e3);
                }
            }
        }
        report.table(&format!("signed cancelPayments over {connections} connections"));
        for (nth, (rounds, (name, _))) in seen.iter().zip(&servers).enumerate() {
            // the first of its store is ours
            let ours = median(&seen[nth / 3 * 3][0]);
            let rate = median(&rounds[0]);
            report.row(
                "peers",
                &[
                    (&format!("{:<30}", "server"), format!("{name:<30}").into(), 0),
                    ("connections", connections.into(), 0),
                    ("requests/s", rate.into(), 0),
                    ("spread %", spread(&rounds[0]).into(), 0),
                    ("CPU µs/req", median(&rounds[1]).into(), 0),
                    ("p99 ms", median(&rounds[2]).into(), 1),
                    ("ours is × as fast", (ours / rate).into(), 1),
                ],
            );
        }
    }
    report.write();
}
