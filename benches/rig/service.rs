//! The real binary on the server's core, and what it tells of itself.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use alipayplus_cancel::bridge::keys::PrivateKey;

use super::{SERVER, cpu};

pub const BINARY: &str = env!("CARGO_BIN_EXE_alipayplus-cancel");
/// The client whose requests are measured.
pub const CLIENT: &str = "BENCH";

/// A folder with keys and settings, out of which a service starts.
pub struct Home {
    pub dir: PathBuf,
    pub settings: PathBuf,
}

impl Home {
    /// One that [`CLIENT`] alone may ask.
    pub fn furnish(dir: &Path, store: Option<&str>, client: &PrivateKey, more: &str) -> Self {
        Self::with_clients(dir, store, &[(CLIENT, client)], more)
    }

    /// `store` is a URL; without one the embedded store in this folder. `more` is more of the settings' top level.
    pub fn with_clients(
        dir: &Path,
        store: Option<&str>,
        clients: &[(&str, &PrivateKey)],
        more: &str,
    ) -> Self {
        fs::create_dir_all(dir).expect("a folder");
        let write = |name: &str, text: &[u8]| fs::write(dir.join(name), text).expect("a file");
        let wallet = PrivateKey::generate(2048).expect("a key");
        write("wallet.pem", wallet.pkcs8_pem().expect("PEM").as_bytes());
        write("hash.key", &[b'k'; 64]);
        let embedded = format!("sqlite://{}/state.db", dir.display());
        let mut text = format!(
            r#"
store.url = "{}"
grpc.listen = "127.0.0.1:0"
bridge.listen = "127.0.0.1:0"
admin.listen = "127.0.0.1:0"
tokens.hash_key_files = ["hash.key"]
telemetry.log_level = "warn,alipayplus_cancel::cli=info"
limits.connections = 9900
limits.connections_per_source = 9900
{more}
[[identity.keys]]
version = "1"
file = "wallet.pem"
"#,
            store.unwrap_or(&embedded),
        );
        for (id, key) in clients {
            write(&format!("{id}.pem"), key.public().spki_pem().as_bytes());
            text.push_str(&format!(
                r#"
[[clients]]
id = "{id}"
psp_ids = ["*"]
rate = {{ per_second = 1000000, burst = 1000000 }}
[[clients.keys]]
version = "1"
public_key_file = "{id}.pem"
"#
            ));
        }
        let settings = dir.join("settings.toml");
        fs::write(&settings, text).expect("a file");
        Self { dir: dir.to_owned(), settings }
    }

    /// A command of the binary with these settings; what it printed.
    pub fn tool(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(BINARY);
        let output =
            command.args(arguments).arg("--config").arg(&self.settings).output().expect("it");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {told}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn start(&self) -> Service {
        self.start_with(&[])
    }

    /// With these `--set`.
    pub fn start_with(&self, set: &[&str]) -> Service {
        let mut process = Command::new("taskset")
            .args(["-c", SERVER, BINARY, "serve", "--config"])
            .arg(&self.settings)
            .args(set.iter().flat_map(|set| ["--set", set]))
            .stderr(Stdio::piped())
            .spawn()
            .expect("taskset and the binary");
        let mut lines = BufReader::new(process.stderr.take().expect("a pipe")).lines();
        let ready = lines.by_ref().map_while(Result::ok).find(|line| line.contains("\"ready\""));
        let ready: serde_json::Value =
            serde_json::from_str(&ready.expect("it gets ready")).expect("a JSON log line");
        let address =
            |name: &str| ready[name].as_str().expect("an address").parse().expect("an address");
        let (bridge, grpc, admin) = (address("bridge"), address("grpc"), address("admin"));
        // whatever it logs, somebody must read
        thread::spawn(move || lines.for_each(drop));
        Service { process, bridge, grpc, admin }
    }
}

/// One that runs, until it is dropped.
pub struct Service {
    process: Child,
    pub bridge: SocketAddr,
    pub grpc: SocketAddr,
    pub admin: SocketAddr,
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

impl Service {
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    pub fn cpu(&self) -> Duration {
        cpu(self.id())
    }

    /// Ends it in order, so that its file is what it is without a log.
    pub fn stop(mut self) {
        let told = Command::new("kill").args(["-s", "TERM", &self.id().to_string()]).status();
        assert!(told.expect("kill").success());
        assert!(self.process.wait().expect("its end").success());
    }

    /// All that `/metrics` tells.
    pub fn metrics(&self) -> Metrics {
        let mut socket = TcpStream::connect(self.admin).expect("a connection");
        socket
            .write_all(b"GET /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            .expect("to send");
        let mut text = String::new();
        socket.read_to_string(&mut text).expect("the metrics");
        Metrics(text)
    }
}

/// The text of Prometheus.
pub struct Metrics(String);

impl Metrics {
    /// The sum of all series of this name whose labels hold this text.
    pub fn sum(&self, name: &str, labels: &str) -> f64 {
        let of_name =
            |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        let lines = self.0.lines().filter(of_name).filter(|line| line.contains(labels));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }
}
