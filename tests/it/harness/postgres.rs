//! A real PostgreSQL for tests: a cluster of their own in a temporary folder, with fsync on, that ends with them.
//!
//! A test that needs one begins with `let Some(postgres) = postgres::or_skip() else { return };`. Without PostgreSQL on
//! the machine it is skipped, which is said on stderr; where `CI=true` or
//! `ALIPAYPLUS_CANCEL_TESTS_REQUIRE_POSTGRES=1` is set it fails instead.

use std::{
    cmp::Reverse,
    env,
    fs::{self, OpenOptions},
    io::Write as _,
    net::TcpListener,
    os::unix::{fs::chown, process::CommandExt as _},
    panic::Location,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        Mutex, MutexGuard, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::eventually;

/// The role that owns the tests' databases, as a service's would: no superuser.
const ROLE: &str = "wallet";

/// Where PostgreSQL's programs are, if they are.
fn programs() -> Option<&'static Path> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    FOUND.get_or_init(find_programs).as_deref()
}

/// `initdb` and `postgres` on the PATH, else where Debian puts them, the newest first.
fn find_programs() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path = env::split_paths(&path).collect::<Vec<_>>();
    let installed = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut versions: Vec<PathBuf> = installed.map(|entry| entry.path()).collect();
    versions.sort_by_key(|dir| {
        let version = dir.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok());
        Reverse(version)
    });
    let debian = versions.into_iter().map(|dir| dir.join("bin"));
    let complete = |dir: &PathBuf| {
        ["initdb", "postgres", "psql", "pg_dump"].iter().all(|name| dir.join(name).is_file())
    };
    on_path.into_iter().chain(debian).find(complete)
}

/// Whether a test that cannot run has to fail.
fn required() -> bool {
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|set| set == value);
    is("CI", "true") || is("ALIPAYPLUS_CANCEL_TESTS_REQUIRE_POSTGRES", "1")
}

/// Whether the usual service runs on PostgreSQL: `ALIPAYPLUS_CANCEL_TESTS_STORE=postgres`.
pub fn is_usual() -> bool {
    match env::var("ALIPAYPLUS_CANCEL_TESTS_STORE").as_deref() {
        Err(_) | Ok("" | "sqlite") => false,
        Ok("postgres") => true,
        Ok(other) => panic!("ALIPAYPLUS_CANCEL_TESTS_STORE: neither sqlite nor postgres: {other}"),
    }
}

/// Whether there is PostgreSQL; else says on stderr that this test is skipped.
///
/// # Panics
///
/// Where it is required and not there.
#[track_caller]
pub fn is_there_or_skip() -> bool {
    if programs().is_some() {
        return true;
    }
    let caller = Location::caller().to_string();
    let thread = std::thread::current();
    let test = thread.name().filter(|name| *name != "main").unwrap_or(&caller);
    let told = format!(
        "\nSKIPPED {test}: no PostgreSQL (initdb, postgres, psql) on the PATH or in /usr/lib/postgresql; tests/run \
         installs it on Debian as root\n"
    );
    assert!(!required(), "{told}");
    // not eprintln!, which the test runner keeps to itself when a test passes; in one piece, on lines of its own
    std::io::stderr().write_all(told.as_bytes()).expect("stderr");
    false
}

/// The cluster that all tests of this process share, if there is PostgreSQL; see [`is_there_or_skip`].
#[track_caller]
pub fn or_skip() -> Option<&'static Cluster> {
    is_there_or_skip().then(Cluster::shared)
}

/// How a cluster differs from the usual one.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// `-c` arguments, as `synchronous_commit=off`.
    pub set: Vec<String>,
}

/// A cluster that runs, until it is dropped.
pub struct Cluster {
    dir: TempDir,
    user: Option<(u32, u32)>,
    port: u16,
    options: Options,
    process: Mutex<Option<Postmaster>>,
}

/// The server's first process, and a shell that ends it should this one end without dropping it.
struct Postmaster {
    child: Child,
    watchdog: Child,
}

impl Drop for Postmaster {
    fn drop(&mut self) {
        drop(self.watchdog.kill());
        drop(self.watchdog.wait());
        // an immediate end; a frozen one hears it when it is thawed
        for signal in [Signal::QUIT, Signal::CONT] {
            send(self.child.id(), signal);
        }
        let begun = Instant::now();
        // it kills what does not hear it within 5 s
        while matches!(self.child.try_wait(), Ok(None)) && begun.elapsed() < Duration::from_secs(8)
        {
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn send(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process's number");
    // one that has ended needs no signal
    kill_process(pid, signal).ok();
}

/// State and parent of a process, as `/proc` tells; none if it is gone or only waits to be reaped.
fn status(pid: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    (state != 'Z').then_some((state, parent))
}

fn children(parent: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").expect("/proc: this part of the harness needs Linux");
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| status(*pid).is_some_and(|(_, of)| of == parent)).collect()
}

/// PostgreSQL refuses to run as root; then it runs as the first of these that the machine has.
fn another_user() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").expect("/etc/passwd");
    let find = |name: &str| {
        let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    Some(find("postgres").or_else(|| find("nobody")).expect("a user postgres or nobody"))
}

impl Cluster {
    /// The one that all tests of this process share, each in a database of its own. Never paused, never killed.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(Options::default()))
    }

    /// One of its own, for tests that freeze or kill it.
    pub fn start(options: Options) -> Self {
        let dir = tempfile::Builder::new().prefix("apc-pg-").tempdir().expect("a folder");
        let user = another_user();
        if let Some((uid, gid)) = user {
            chown(dir.path(), Some(uid), Some(gid)).expect("root may");
        }
        let cluster = Self { dir, user, port: 0, options, process: Mutex::new(None) };
        // --no-sync: these files only; what the server writes it syncs
        let made = cluster
            .command("initdb")
            .args(["--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8"])
            .args(["--locale=C", "-D"])
            .arg(cluster.data())
            .output()
            .expect("initdb starts");
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let cluster = cluster.listening();
        cluster.psql("postgres", &format!("CREATE ROLE {ROLE} LOGIN"));
        cluster
    }

    /// Starts on a port that nobody has; somebody else may take it between the look and the bind, so it looks again.
    fn listening(mut self) -> Self {
        for _ in 0..5 {
            let free = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
            self.port = free.expect("a free port").port();
            *self.process() = Some(self.postmaster());
            if self.wait_ready() {
                return self;
            }
        }
        panic!("no port to listen on: {}", self.log());
    }

    /// A program of PostgreSQL, as the user it runs as, free of settings in this environment.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(programs().expect("PostgreSQL").join(program));
        for (name, _) in env::vars().filter(|(name, _)| name.starts_with("PG")) {
            command.env_remove(name);
        }
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        command.current_dir(self.dir.path()).stdin(Stdio::null());
        command
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn postmaster(&self) -> Postmaster {
        let log = OpenOptions::new().create(true).append(true).open(self.dir.path().join("log"));
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.data()).args(["-p", &self.port.to_string()]);
        let sockets = format!("unix_socket_directories={}", self.dir.path().display());
        let usual = ["listen_addresses=127.0.0.1", &sockets, "max_connections=200", "fsync=on"];
        for setting in usual.into_iter().chain(self.options.set.iter().map(String::as_str)) {
            command.args(["-c", setting]);
        }
        let child = command
            .stdout(Stdio::null())
            .stderr(log.expect("a log file"))
            .spawn()
            .expect("postgres starts");
        // bounded, because a process that nobody reaps keeps its number
        let script = r#"trap '' INT TERM HUP; read _; kill -QUIT "$0"; kill -CONT "$0"; n=0
            while kill -0 "$0" && [ $n -lt 80 ]; do sleep 0.1; n=$((n+1)); done; rm -rf "$1""#;
        let watchdog = Command::new("sh")
            .args(["-c", script])
            .arg(child.id().to_string())
            .arg(self.dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("sh");
        Postmaster { child, watchdog }
    }

    /// Waits until it answers; false if somebody else has its port.
    fn wait_ready(&self) -> bool {
        eventually("PostgreSQL answers", || {
            let ended = self.process().as_mut().expect("a process").child.try_wait();
            if let Some(ended) = ended.expect("a child") {
                let log = self.log();
                assert!(log.contains("Address already in use"), "it ended with {ended}: {log}");
                return Some(false);
            }
            self.try_psql("postgres", "SELECT 1").status.success().then_some(true)
        })
    }

    fn process(&self) -> MutexGuard<'_, Option<Postmaster>> {
        self.process.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Its first process and then the others. The first is stopped meanwhile, or it would start more of them.
    fn stopped(&self) -> Vec<u32> {
        let first = self.process().as_ref().expect("a process").child.id();
        let stop = |pids: &[u32]| {
            for pid in pids {
                send(*pid, Signal::STOP);
            }
            let stands = |pid| status(pid).is_none_or(|(state, _)| state == 'T');
            eventually("it stands still", || pids.iter().all(|pid| stands(*pid)).then_some(()));
        };
        stop(&[first]);
        let others = children(first);
        stop(&others);
        [vec![first], others].concat()
    }

    /// SIGSTOP to every process: connections stay, nothing answers.
    pub fn pause(&self) {
        drop(self.stopped());
    }

    /// SIGCONT to every process.
    pub fn resume(&self) {
        let first = self.process().as_ref().expect("a process").child.id();
        for pid in children(first).into_iter().chain([first]) {
            send(pid, Signal::CONT);
        }
    }

    /// SIGKILL to every process, all at once as far as they can tell.
    pub fn kill_nine(&self) {
        let pids = self.stopped();
        for pid in &pids {
            send(*pid, Signal::KILL);
        }
        drop(self.process().take());
        eventually("every process is gone", || {
            pids.iter().all(|pid| status(*pid).is_none()).then_some(())
        });
    }

    /// Starts on the same port with what is on the disk; ends what still runs with SIGQUIT.
    pub fn start_again(&self) {
        drop(self.process().take());
        *self.process() = Some(self.postmaster());
        assert!(self.wait_ready(), "somebody took its port: {}", self.log());
    }

    /// The address of a new, empty database.
    pub fn fresh_database(&self) -> String {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!("test_{}", COUNT.fetch_add(1, Ordering::Relaxed));
        self.psql("postgres", &format!("CREATE DATABASE {name} OWNER {ROLE}"));
        self.url(&name)
    }

    /// The address of a database.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{ROLE}@127.0.0.1:{}/{database}", self.port)
    }

    /// What SQL tells, as the superuser: a line a row, `|` between columns. `database` is a name or an address.
    pub fn psql(&self, database: &str, sql: &str) -> String {
        let output = self.try_psql(database, sql);
        assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8").trim_end().to_owned()
    }

    /// The same where it may fail.
    pub fn try_psql(&self, database: &str, sql: &str) -> Output {
        let database = database.rsplit('/').next().expect("a name");
        self.command("psql")
            .args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1"])
            .args(["-p", &self.port.to_string(), "-U", "postgres", "-d", database, "-c", sql])
            .output()
            .expect("psql starts")
    }

    /// All of a database as text. `database` is a name or an address.
    pub fn dump(&self, database: &str) -> String {
        let output = self
            .command("pg_dump")
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", "postgres"])
            .args(["--inserts", database.rsplit('/').next().expect("a name")])
            .output()
            .expect("pg_dump starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its folder, which is gone with it.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// All that it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).expect("the log")
    }
}
