//! This service beside what one writes with Node or Python in an afternoon: the same signed cancelPayments, distinct keys,
//! durable, every answer signed; a core for the server, a core for the loader.
//!
//! `cargo bench --bench peers -- [REQUESTS] [ROUNDS] [CONNECTIONS…]`, by default 3000 requests, 5 rounds, over 64 and 256
//! connections. The peers are in `benches/peers`: fastify with node:crypto and better-sqlite3 or pg, FastAPI with
//! cryptography and sqlite3 or psycopg, a process each. Their packages come from npm and PyPI into `target/bench`. On
//! SQLite all have `journal_mode = WAL` and `synchronous = FULL`, on PostgreSQL `synchronous_commit = on`; PostgreSQL has
//! the loader's core. Rounds are interleaved; the table has medians. `target/bench/peers.json` has the same.
#![allow(missing_docs, dead_code, clippy::pedantic, clippy::restriction)]

mod rig;
mod signed;

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use alipayplus_cancel::bridge::keys::PrivateKey;

use self::rig::{
    at,
    child::Listening,
    load, on_its_core,
    report::{Report, median, spread},
    service::{CLIENT, Home, Service},
};

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The programs of the peers, with what they need.
fn install() -> [Vec<PathBuf>; 2] {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers");
    let target = rig::target();
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
    Peer(Listening),
}

impl Server {
    fn at(&self) -> (u32, SocketAddr) {
        match self {
            Self::Ours(service) => (service.id(), service.bridge),
            Self::Peer(peer) => (peer.id(), peer.address),
        }
    }
}

fn main() {
    let numbers = rig::numbers();
    let count = numbers.first().copied().unwrap_or(3_000);
    let rounds = numbers.get(1).copied().unwrap_or(5);
    let mut connections = numbers.get(2..).unwrap_or_default().to_vec();
    if connections.is_empty() {
        connections = vec![64, 256];
    }
    let programs = install();
    let dir = tempfile::tempdir().expect("a folder");
    let client = PrivateKey::generate(2048).expect("a key");
    let database = rig::database();

    let mut servers = Vec::new();
    for store in ["SQLite", "PostgreSQL"] {
        if store == "PostgreSQL" && database.is_none() {
            continue;
        }
        let url = || match store {
            "SQLite" => None,
            _ => database.as_ref().map(|it| it.fresh_database()),
        };
        let ours = dir.path().join(store);
        let home = Home::furnish(&ours, url().as_deref(), &client, "");
        home.tool(&["import", "complete"]);
        servers.push((format!("alipayplus-cancel, {store}"), Server::Ours(home.start())));
        for (name, program) in ["Node", "Python"].into_iter().zip(&programs) {
            let file = ours.join(format!("{name}.db")).display().to_string();
            let keys = ["wallet.pem", &format!("{CLIENT}.pem")].map(|name| ours.join(name));
            let database = url().unwrap_or(file);
            let environment = [
                ("PRIVATE_KEY", keys[0].as_os_str()),
                ("PUBLIC_KEY", keys[1].as_os_str()),
                ("CLIENT", CLIENT.as_ref()),
                ("DATABASE", database.as_ref()),
                ("NODE_ENV", "production".as_ref()),
            ];
            let peer = Listening::start(program, &environment);
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
