//! Signed cancelPayments over HTTP, distinct keys, durable: throughput and latency by number of connections.
//!
//! `cargo bench --bench load -- [REQUESTS] [CONNECTIONS…]`, by default 20000 requests over 1, 16, 64 and 256. The service
//! is the real binary with the embedded store in a temporary folder; requests are signed beforehand. Prints the batch
//! sizes that `/metrics` tells. Figures of one machine at one moment: compare within one run.

mod signed;

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use alipayplus_cancel::bridge::keys::PrivateKey;

const CLIENT: &str = "LOAD";

struct Service {
    process: Child,
    bridge: SocketAddr,
    admin: SocketAddr,
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

fn settings(dir: &Path) -> String {
    format!(
        r#"
store.url = "sqlite://{}/state.db"
grpc.listen = "127.0.0.1:0"
bridge.listen = "127.0.0.1:0"
admin.listen = "127.0.0.1:0"
tokens.hash_key_files = ["hash.key"]
[[identity.keys]]
version = "1"
file = "wallet.pem"
[[clients]]
id = "{CLIENT}"
psp_ids = ["*"]
rate = {{ per_second = 1000000, burst = 1000000 }}
[[clients.keys]]
version = "1"
public_key_file = "client.pem"
"#,
        dir.display()
    )
}

fn start(dir: &Path, client: &PrivateKey) -> Service {
    let wallet = PrivateKey::generate(2048).expect("a key");
    fs::write(dir.join("wallet.pem"), wallet.pkcs8_pem().expect("PEM").as_bytes()).expect("a file");
    fs::write(dir.join("client.pem"), client.public().spki_pem()).expect("a file");
    fs::write(dir.join("hash.key"), [b'k'; 64]).expect("a file");
    let file = dir.join("settings.toml");
    fs::write(&file, settings(dir)).expect("a file");

    let binary = env!("CARGO_BIN_EXE_alipayplus-cancel");
    let mut process = Command::new(binary)
        .args(["serve", "--config"])
        .arg(&file)
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary");
    let mut lines = BufReader::new(process.stderr.take().expect("a pipe")).lines();
    let ready = lines
        .by_ref()
        .map_while(Result::ok)
        .find(|line| line.contains("\"ready\""))
        .expect("the service gets ready");
    let ready: serde_json::Value = serde_json::from_str(&ready).expect("a JSON log line");
    let address =
        |name: &str| ready[name].as_str().expect("an address").parse().expect("an address");
    let service = Service { process, bridge: address("bridge"), admin: address("admin") };
    // whatever it logs, somebody must read
    thread::spawn(move || lines.for_each(drop));
    let complete =
        Command::new(binary).args(["import", "complete", "--config"]).arg(&file).output();
    assert!(complete.expect("the binary").status.success());
    service
}

/// Sends a request and reads its answer; the time it took.
fn exchange(socket: &mut TcpStream, request: &[u8], answer: &mut Vec<u8>) -> Duration {
    let begun = Instant::now();
    socket.write_all(request).expect("to send");
    answer.clear();
    let mut part = [0; 4096];
    loop {
        let length = socket.read(&mut part).expect("an answer");
        assert!(length > 0, "the service closed the connection");
        answer.extend_from_slice(part.get(..length).expect("what was read"));
        if answer.ends_with(b"}}") {
            break;
        }
    }
    let took = begun.elapsed();
    let success = answer.windows(9).any(|window| window == b"\"SUCCESS\"");
    assert!(success, "{}", String::from_utf8_lossy(answer));
    took
}

fn round(service: &Service, requests: &Arc<Vec<Vec<u8>>>, connections: usize) {
    let next = Arc::new(AtomicUsize::new(0));
    let begun = Instant::now();
    let workers: Vec<_> = (0..connections)
        .map(|_| {
            let (next, requests, address) =
                (Arc::clone(&next), Arc::clone(requests), service.bridge);
            thread::spawn(move || {
                let mut socket = TcpStream::connect(address).expect("a connection");
                socket.set_nodelay(true).expect("a socket");
                let (mut times, mut answer) = (Vec::new(), Vec::new());
                while let Some(request) = requests.get(next.fetch_add(1, Ordering::Relaxed)) {
                    times.push(exchange(&mut socket, request, &mut answer));
                }
                times
            })
        })
        .collect();
    let mut times: Vec<_> =
        workers.into_iter().flat_map(|worker| worker.join().expect("a worker")).collect();
    let took = begun.elapsed();
    times.sort_unstable();
    let at = |share: usize| times.get(times.len() * share / 1000).copied().unwrap_or_default();
    let rate = u128::try_from(times.len()).unwrap_or(0) * 1_000_000 / took.as_micros().max(1);
    println!(
        "{connections:>11} {rate:>10} {:>10.2?} {:>10.2?} {:>10.2?}",
        at(500),
        at(990),
        at(999)
    );
}

fn main() {
    let numbers: Vec<usize> =
        std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let (count, rounds) = match numbers.split_first() {
        Some((count, [])) => (*count, vec![1, 16, 64, 256]),
        Some((count, rounds)) => (*count, rounds.to_vec()),
        None => (20_000, vec![1, 16, 64, 256]),
    };
    let dir = tempfile::tempdir().expect("a folder");
    let client = PrivateKey::generate(2048).expect("a key");
    let service = start(dir.path(), &client);
    println!(
        "{:>11} {:>10} {:>10} {:>10} {:>10}",
        "connections", "requests/s", "p50", "p99", "p99.9"
    );
    for (nth, connections) in rounds.into_iter().enumerate() {
        // one alone would take the same time for a tenth of the requests
        let count = if connections == 1 { count / 10 } else { count };
        let first = nth * 100_000_000;
        let requests =
            (first..first + count).map(|id| signed::request(CLIENT, &client, id)).collect();
        round(&service, &Arc::new(requests), connections);
    }
    let mut socket = TcpStream::connect(service.admin).expect("a connection");
    socket
        .write_all(b"GET /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        .expect("to send");
    let mut text = String::new();
    socket.read_to_string(&mut text).expect("the metrics");
    text.lines()
        .filter(|line| line.starts_with("alipayplus_cancel_"))
        .for_each(|line| println!("{line}"));
}
