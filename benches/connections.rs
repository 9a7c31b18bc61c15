//! What an idle connection costs in memory: of the JSON front in plain text and over TLS, of the gRPC front.
//!
//! `cargo bench --bench connections -- [CONNECTIONS] [ROUNDS]`, by default 9500 and 3. Each connection of HTTP/1.1 has had
//! an answer, each of HTTP/2 its settings; then it is silent. Each round begins with a fresh process: resident memory
//! once a few hundred connections came and went, and once all of them are there, through their number. The
//! machine's limit of file handles has to be above 20000, of which the service wants two a connection.
//! `target/bench/connections.json` has the same.
#![allow(missing_docs, dead_code, clippy::pedantic, clippy::restriction)]

mod rig;
mod signed;

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use alipayplus_cancel::bridge::keys::PrivateKey;

use self::rig::{
    harness::h2::tls,
    report::{Report, median, spread},
    service::{CLIENT, Home, Service},
};

trait Wire: Read + Write + Send {}
impl<T: Read + Write + Send> Wire for T {}

/// What is said on a connection before it is silent.
#[derive(Clone, Copy)]
struct Kind {
    name: &'static str,
    tls: bool,
    h2: bool,
    /// On the gRPC front.
    grpc: bool,
}

/// The bridge speaks HTTP/1.1 alone.
const KINDS: [Kind; 3] = [
    Kind { name: "HTTP/1.1", tls: false, h2: false, grpc: false },
    Kind { name: "gRPC (HTTP/2)", tls: false, h2: true, grpc: true },
    Kind { name: "HTTP/1.1 over TLS", tls: true, h2: false, grpc: false },
];

fn open(kind: Kind, address: SocketAddr, root: &[u8], request: &[u8]) -> Box<dyn Wire> {
    let socket = TcpStream::connect(address).expect("a connection");
    socket.set_nodelay(true).expect("a socket");
    let protocols: &[&[u8]] = if kind.h2 { &[b"h2"] } else { &[b"http/1.1"] };
    let mut wire: Box<dyn Wire> = match kind.tls {
        true => Box::new(tls(socket, root, protocols).expect("a handshake")),
        false => Box::new(socket),
    };
    if kind.h2 {
        wire.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").expect("to send");
        let mut head = [0; 9];
        wire.read_exact(&mut head).expect("settings");
        let mut payload = vec![0; usize::from(head[2])];
        wire.read_exact(&mut payload).expect("settings");
        assert_eq!(head[3], 4, "settings come first");
        wire.write_all(b"\0\0\0\x04\x01\0\0\0\0").expect("to send");
    } else {
        wire.write_all(request).expect("to send");
        let (mut answer, mut part) = (Vec::new(), [0; 2048]);
        while !answer.ends_with(b"}}") {
            let length = wire.read(&mut part).expect("an answer");
            assert!(length > 0, "it ended");
            answer.extend_from_slice(&part[..length]);
        }
        assert!(answer.windows(9).any(|window| window == b"\"SUCCESS\""));
    }
    wire
}

/// Bytes of memory that the process has.
fn resident(service: &Service) -> f64 {
    let status = fs::read_to_string(format!("/proc/{}/status", service.id())).expect("its memory");
    let line = status.lines().find(|line| line.starts_with("VmRSS")).expect("VmRSS");
    let kb: f64 = line.split_whitespace().nth(1).and_then(|it| it.parse().ok()).expect("a number");
    kb * 1024.0
}

fn main() {
    let numbers = rig::numbers();
    let count = numbers.first().copied().unwrap_or(9_500);
    let rounds = numbers.get(1).copied().unwrap_or(3);
    let dir = tempfile::tempdir().expect("a folder");
    let client = PrivateKey::generate(2048).expect("a key");
    let made = rcgen::generate_simple_self_signed(["wallet.example".to_owned()]).expect("one");
    let root = made.cert.der().to_vec();
    let request = signed::request(CLIENT, &client, 1);

    let mut report = Report::new("connections");
    let mut idle = Vec::new();
    let mut rows = Vec::new();
    for kind in KINDS {
        let mut each = Vec::new();
        for round in 0..rounds {
            let home = dir.path().join(format!("{}{round}", kind.name.replace('/', "")));
            fs::create_dir_all(&home).expect("a folder");
            fs::write(home.join("tls.crt"), made.cert.pem()).expect("a file");
            fs::write(home.join("tls.key"), made.signing_key.serialize_pem()).expect("a file");
            let tls = match kind.tls {
                true => "bridge.tls.cert_file = \"tls.crt\"\nbridge.tls.key_file = \"tls.key\"",
                false => "",
            };
            let home = Home::furnish(&home, None, &client, tls);
            home.tool(&["import", "complete"]);
            let service = home.start();
            thread::sleep(Duration::from_millis(300));
            idle.push(resident(&service) / 1e6);
            let address = if kind.grpc { service.grpc } else { service.bridge };
            let open = || open(kind, address, &root, &request);
            drop((0..300).map(|_| open()).collect::<Vec<_>>());
            thread::sleep(Duration::from_millis(500));
            let before = resident(&service);
            let all: Vec<_> = (0..count).map(|_| open()).collect();
            thread::sleep(Duration::from_millis(500));
            each.push((resident(&service) - before) / count as f64);
            drop(all);
        }
        rows.push((kind.name, each));
    }
    report.table("a process that has served nothing");
    report.row("idle", &[("MB", median(&idle).into(), 1)]);
    report.table(&format!("{count} silent connections"));
    for (name, each) in rows {
        report.row(
            "connections",
            &[
                (&format!("{:<18}", "connection"), format!("{name:<18}").into(), 0),
                ("KB each", (median(&each) / 1e3).into(), 1),
                ("spread %", spread(&each).into(), 0),
            ],
        );
    }
    report.write();
}
