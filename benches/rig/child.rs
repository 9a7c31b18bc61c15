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
        let program = env::current_exe().expect("this program");
        Self::start(&[program], &[(BE, OsStr::new("1"))])
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }
}

/// Whether this process is to be the server.
pub fn asked() -> bool {
    env::var(BE).is_ok()
}

/// Says where it listens.
pub fn say(address: SocketAddr) {
    println!("{address}");
    std::io::stdout().flush().expect("a pipe");
}
