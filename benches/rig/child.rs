//! A server that is another process: it says where it listens in the first line of its output.

use std::{
    env,
    ffi::OsStr,
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    thread,
};

use super::SERVER;

/// How this program is told to be a server, and which.
const BE: &str = "ALIPAYPLUS_CANCEL_BENCH_SERVER";

/// One that runs on the server's core, until it is dropped.
pub struct Listening {
    process: Child,
    pub address: SocketAddr,
}

impl Drop for Listening {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

impl Listening {
    pub fn start(program: &[impl AsRef<OsStr>], environment: &[(&str, &OsStr)]) -> Self {
        let mut process = Command::new("taskset")
            .args(["-c", SERVER])
            .args(program)
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .spawn()
            .expect("taskset and a server");
        let mut lines = BufReader::new(process.stdout.take().expect("a pipe")).lines();
        let address = lines.next().expect("it starts").expect("a line").trim().parse();
        thread::spawn(move || lines.map_while(Result::ok).for_each(|line| eprintln!("{line}")));
        Self { process, address: address.expect("an address") }
    }

    /// This program, which then finds [`asked`].
    pub fn this_program() -> Self {
        Self::this_program_as("1")
    }

    /// The same, which finds what it is [`asked_for`].
    pub fn this_program_as(server: &str) -> Self {
        let program = env::current_exe().expect("this program");
        Self::start(&[program], &[(BE, OsStr::new(server))])
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }
}

/// Whether this process is to be the server.
pub fn asked() -> bool {
    asked_for().is_some()
}

/// Which server this process is to be, if one.
pub fn asked_for() -> Option<String> {
    env::var(BE).ok()
}

/// Is tonic's health service on a port of its own, with nothing of ours around it.
pub async fn bare_health() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    say(listener.local_addr().expect("an address"));
    let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
    let (_reporter, health) = tonic_health::server::health_reporter();
    let server = tonic::transport::Server::builder().add_service(health);
    server.serve_with_incoming(incoming).await.expect("it serves");
}

/// Says where it listens.
pub fn say(address: SocketAddr) {
    println!("{address}");
    std::io::stdout().flush().expect("a pipe");
}
