//! One process of the service, its folder and its ports.

use std::{
    env,
    ffi::OsString,
    fmt::Write as _,
    fs::{self, File, OpenOptions},
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::OnceLock,
};

use serde_json::Value;
use tempfile::TempDir;

use super::{
    eventually,
    grpc::Grpc,
    json::{Answer, Connection, Json},
    pair,
    postgres::{self, Cluster},
    vectors::{self, CLIENT_ID, pem},
};

/// The binary under test: what `ALIPAYPLUS_CANCEL_TESTS_BINARY` names, so that the suite can try a build as it ships; else the
/// one that was built with the suite.
pub fn binary() -> OsString {
    env::var_os("ALIPAYPLUS_CANCEL_TESTS_BINARY")
        .unwrap_or_else(|| env!("CARGO_BIN_EXE_alipayplus-cancel").into())
}

/// A second client, which may act for [`OTHER_PSP`] and [`OTHER_ACQUIRER`] alone.
pub const OTHER_CLIENT: &str = "OTHER_CLIENT-2";
/// The one wallet of [`OTHER_CLIENT`].
pub const OTHER_PSP: &str = "1022172000000000001";
/// The one acquirer of [`OTHER_CLIENT`].
pub const OTHER_ACQUIRER: &str = "ONLY-THIS-ACQUIRER";

/// Where a service keeps its state.
#[derive(Clone, Debug, Default)]
pub enum Store {
    /// A file in its folder; with `ALIPAYPLUS_CANCEL_TESTS_STORE=postgres` a new database of the shared cluster, so that
    /// the suite runs on both.
    #[default]
    Usual,
    /// A file in its folder, always: for tests that are about that file.
    Embedded,
    /// The database at this address, which several services may share.
    Postgres(String),
}

impl Store {
    /// What `store.url` is for a service in this folder.
    fn url(&self, dir: &Path) -> String {
        let file = || format!("sqlite://{}", dir.join("state.db").display());
        match self {
            Self::Usual if postgres::is_usual() => Cluster::shared().fresh_database(),
            Self::Usual | Self::Embedded => file(),
            Self::Postgres(url) => url.clone(),
        }
    }
}

/// What runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Everything: one process, or a pair of them where the suite runs through pairs.
    #[default]
    All,
    /// `--role core`
    Core,
    /// `--role bridge`; the test says where its cores are.
    Bridge,
}

/// How a service differs from the usual one.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub role: Role,
    pub store: Store,
    /// Leaves the new store in onboarding, where unknown answers U; otherwise `import complete` is run first.
    pub onboarding: bool,
    /// Appended to the settings file: whole tables that it does not have, as `[limits]` and `[policy]`.
    pub toml: String,
    /// `--set` arguments, as `limits.batch=1`; `clients.0` is [`CLIENT_ID`], `clients.1` is [`OTHER_CLIENT`].
    pub set: Vec<String>,
    /// Environment variables of the process.
    pub env: Vec<(String, String)>,
}

impl Options {
    /// The usual service with some `--set`.
    pub fn set<const N: usize>(settings: [&str; N]) -> Self {
        Self { set: settings.map(str::to_owned).into(), ..Self::default() }
    }

    /// The usual service, on the embedded store whatever the suite runs on.
    pub fn embedded() -> Self {
        Self { store: Store::Embedded, ..Self::default() }
    }

    /// The usual service on this database.
    pub fn on(url: &str) -> Self {
        Self { store: Store::Postgres(url.to_owned()), ..Self::default() }
    }
}

/// Where a process listens.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    pub grpc: SocketAddr,
    pub bridge: SocketAddr,
    pub admin: SocketAddr,
}

/// A service that runs, until it is dropped or told to end.
pub struct Service {
    dir: TempDir,
    options: Options,
    process: Option<Process>,
    /// The bridge of a pair, whose core is `process`.
    front: Option<Process>,
    ports: Ports,
}

/// The process, and a shell that kills it should this one end without dropping it (statics are never dropped).
struct Process {
    child: Child,
    watchdog: Child,
}

impl Process {
    fn start(dir: &Path, options: &Options, role: &str, more: &[String]) -> Self {
        let log = OpenOptions::new().create(true).append(true).open(dir.join("stderr.log"));
        let mut command = command(&["serve", "--config"]);
        command.arg(dir.join("settings.toml"));
        command.args(["--role", role]);
        for setting in options.set.iter().chain(more) {
            command.args(["--set", setting]);
        }
        let child = command
            .envs(options.env.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.expect("a log file"))
            .spawn()
            .expect("the binary starts");
        let watchdog = Command::new("sh")
            .args(["-c", r#"read _; kill -9 "$0"; rm -rf "$1""#])
            .arg(child.id().to_string())
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("sh");
        Self { child, watchdog }
    }
}

impl Process {
    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &pid]).status().expect("kill");
        assert!(sent.success(), "kill -s {name} {pid}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // the watchdog first: it must not outlive the process whose number it holds
        for process in [&mut self.watchdog, &mut self.child] {
            drop(process.kill());
            drop(process.wait());
        }
    }
}

/// The binary with arguments, free of settings in this environment.
pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    for (name, _) in env::vars().filter(|(name, _)| name.starts_with("ALIPAYPLUS_CANCEL__")) {
        command.env_remove(name);
    }
    command.args(arguments);
    command
}

/// The binary, run to its end.
pub fn run(arguments: &[&str]) -> Output {
    command(arguments).stdin(Stdio::null()).output().expect("the binary starts")
}

/// A folder with keys and a settings file: what `serve --config DIR/settings.toml` needs. The store is a file in it.
pub fn furnish(dir: &Path, toml: &str) {
    furnish_on(dir, toml, &Store::Embedded.url(dir));
}

/// The same with its store elsewhere.
pub fn furnish_on(dir: &Path, toml: &str, store_url: &str) {
    let write = |name: &str, text: &str| fs::write(dir.join(name), text).expect("a writable dir");
    write("wallet.pem", pem("test_mpp", "pkcs8_pem"));
    write("wallet.pub", pem("test_mpp", "spki_pem"));
    write("alipayplus.pem", pem("test_alipayplus", "pkcs8_pem"));
    write("alipayplus.pub", pem("test_alipayplus", "spki_pem"));
    write("other.pub", &vectors::other().public().spki_pem());
    write("ended.pub", &vectors::ended().public().spki_pem());
    write("token-hash.hex", &"5a".repeat(32));
    let mut settings = format!(
        r#"
grpc.listen = "127.0.0.1:0"
bridge.listen = "127.0.0.1:0"
admin.listen = "127.0.0.1:0"
store.url = "{store_url}"
tokens.hash_key_files = ["token-hash.hex"]
telemetry.log_format = "json"

[[identity.keys]]
version = "1"
file = "wallet.pem"

[[clients]]
id = "{CLIENT_ID}"
psp_ids = ["*"]
rate = {{ per_second = 100000, burst = 100000 }}
[[clients.keys]]
version = "1"
public_key_file = "alipayplus.pub"
[[clients.keys]]
version = "ended"
public_key_file = "ended.pub"
not_after = "2020-01-01T00:00:00+08:00"

[[clients]]
id = "{OTHER_CLIENT}"
psp_ids = ["{OTHER_PSP}"]
acquirer_ids = ["{OTHER_ACQUIRER}"]
[[clients.keys]]
version = "other-1"
public_key_file = "other.pub"

"#,
    );
    settings.write_str(toml).expect("a text");
    write("settings.toml", &settings);
}

/// The same for a bridge: nothing of the core's is there.
fn furnish_bridge(dir: &Path, toml: &str) {
    furnish(dir, toml);
    let settings = fs::read_to_string(dir.join("settings.toml")).expect("just written");
    let of_core = ["grpc.listen", "store.url", "tokens.hash_key_files"];
    let is_ours = |line: &&str| !of_core.iter().any(|name| line.starts_with(name));
    let settings = settings.lines().filter(is_ours).collect::<Vec<_>>().join("\n");
    fs::write(dir.join("settings.toml"), settings).expect("a writable dir");
    fs::remove_file(dir.join("token-hash.hex")).expect("just written");
}

/// The sockets that a process has open, by the kernel's names; `None` if only root may look: it is not dumpable.
pub fn sockets(pid: u32) -> Option<Vec<String>> {
    let folder = match fs::read_dir(format!("/proc/{pid}/fd")) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            eprintln!("skipped: only root sees what process {pid} has open");
            return None;
        }
        folder => folder.expect("Linux"),
    };
    let names = folder.filter_map(|file| file.ok()?.path().read_link().ok());
    let names = names.map(|name| name.to_string_lossy().into_owned());
    Some(names.filter(|name| name.starts_with("socket:")).collect())
}

/// What the platform is answered.
pub fn admin(address: SocketAddr, path: &str) -> Answer {
    let mut connection = Connection::to(address);
    connection.write(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
    connection.answer(true).expect("an answer")
}

impl Drop for Service {
    /// What it complained of may be why the test fails.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let log = fs::read_to_string(self.dir.path().join("stderr.log")).unwrap_or_default();
        // an alarm is about what a caller told
        let complains = |line: &&str| {
            let level = ["\"WARN\"", "\"ERROR\"", "panicked"];
            level.iter().any(|level| line.contains(level)) && !line.contains("\"alarm\"")
        };
        let lines: Vec<&str> = log.lines().filter(complains).collect();
        for line in &lines[lines.len().saturating_sub(10)..] {
            println!("the service on {}: {line}", self.ports.grpc);
        }
    }
}

impl Service {
    /// The usual service, shared by all tests that only use ids of their own.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Service> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(Options::default()))
    }

    /// A service of its own, ready.
    pub fn start(options: Options) -> Self {
        let dir = tempfile::Builder::new().prefix("apc-it-").tempdir().expect("a folder");
        Self::start_in(dir, options)
    }

    /// The same in a folder that a test has put files into.
    pub fn start_in(dir: TempDir, options: Options) -> Self {
        if options.role == Role::Bridge {
            furnish_bridge(dir.path(), &options.toml);
        } else {
            furnish_on(dir.path(), &options.toml, &options.store.url(dir.path()));
        }
        File::create(dir.path().join("stderr.log")).expect("a log file");
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let ports = Ports { grpc: nowhere, bridge: nowhere, admin: nowhere };
        let mut service = Self { dir, options, process: None, front: None, ports };
        service.begin();
        if !service.options.onboarding && service.options.role != Role::Bridge {
            service.import_complete();
        }
        service
    }

    /// The usual start in a folder that has a store's files already. False: the process ended before it was ready.
    pub fn try_start_in(dir: TempDir, options: Options) -> (Self, bool) {
        furnish_on(dir.path(), &options.toml, &options.store.url(dir.path()));
        File::create(dir.path().join("stderr.log")).expect("a log file");
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let ports = Ports { grpc: nowhere, bridge: nowhere, admin: nowhere };
        let mut service = Self { dir, options, process: None, front: None, ports };
        let is_ready = service.try_begin();
        (service, is_ready)
    }

    /// Environment variables of its process from the next start on.
    pub fn set_env(&mut self, env: Vec<(String, String)>) {
        self.options.env = env;
    }

    /// Starts its process, or both of them.
    fn begin(&mut self) {
        assert!(self.try_begin(), "it ended: {}", self.stderr());
    }

    /// The same; false if the one process ends before it is ready.
    fn try_begin(&mut self) -> bool {
        let (dir, from) = (self.dir.path().to_owned(), self.stderr().len());
        let start = |role, more: &[String]| Process::start(&dir, &self.options, role, more);
        if self.options.role != Role::All || !pair::is_usual() {
            let role = match self.options.role {
                Role::All => "all",
                Role::Core => "core",
                Role::Bridge => "bridge",
            };
            let mut process = start(role, &[]);
            let Some(ports) = self.try_ready(&mut process, from, "admin") else { return false };
            self.ports = ports;
            self.process = Some(process);
            return true;
        }
        let authority = pair::Authority::shared();
        authority.write(&dir, "pair-core", &pair::CORE);
        authority.write(&dir, "pair-bridge", &[pair::BRIDGE]);
        let of_core = [pair::core_settings(&dir, "pair-core"), pair::callers()].concat();
        let mut core = start("core", &of_core);
        let of_core = self.wait_ready(&mut core, from, "grpc");
        let cores = format!("https://{}", of_core.grpc);
        // the core has their ports, if a test says which they are
        let mut bridge = start("bridge", &pair::bridge_settings(&dir, "pair-bridge", &cores));
        let of_bridge = self.wait_ready(&mut bridge, from, "bridge");
        eventually("the bridge reaches its core", || {
            (admin(of_bridge.admin, "/readyz").status == 200).then_some(())
        });
        self.ports = Ports { bridge: of_bridge.bridge, ..of_core };
        (self.process, self.front) = (Some(core), Some(bridge));
        true
    }

    fn wait_ready(&self, process: &mut Process, from: usize, listener: &str) -> Ports {
        let ready = self.try_ready(process, from, listener);
        ready.unwrap_or_else(|| panic!("it ended: {}", self.stderr()))
    }

    /// Waits for the "ready" line behind what the log had before: of the process that has this listener. None: it ended.
    fn try_ready(&self, process: &mut Process, from: usize, listener: &str) -> Option<Ports> {
        let log = self.dir.path().join("stderr.log");
        let child = &mut process.child;
        eventually("the service is ready", || {
            let text = fs::read_to_string(&log).expect("the log");
            let ended = child.try_wait().expect("a child");
            let ready =
                text.get(from..).unwrap_or_default().split_inclusive('\n').find_map(|line| {
                    let line: Value = serde_json::from_str(line).ok()?;
                    if line["message"] != "ready" || line[listener].is_null() {
                        return None;
                    }
                    let nowhere = "127.0.0.1:0";
                    let port = |name: &str| line[name].as_str().unwrap_or(nowhere).parse().unwrap();
                    Some(Ports { grpc: port("grpc"), bridge: port("bridge"), admin: port("admin") })
                });
            match (ready, ended) {
                (Some(ready), _) => Some(Some(ready)),
                (None, Some(_)) => Some(None),
                (None, None) => None,
            }
        })
    }

    /// `import complete`, beside the running service.
    pub fn import_complete(&self) {
        let settings = self.settings();
        let mut import = command(&["import", "complete", "--config", settings.to_str().unwrap()]);
        import.envs(self.options.env.iter().cloned());
        // it has no --set, and has to find the store as it was made
        for setting in self.options.set.iter().filter(|setting| setting.starts_with("store.")) {
            let (name, value) = setting.split_once('=').expect("a name and a value");
            let name = name.to_uppercase().replace('.', "__");
            import.env(format!("ALIPAYPLUS_CANCEL__{name}"), value);
        }
        let output = import.stdin(Stdio::null()).output().expect("the binary starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// SIGKILL: no drain, no goodbye.
    pub fn kill_nine(&mut self) {
        for mut process in [self.front.take(), self.process.take()].into_iter().flatten() {
            process.child.kill().expect("it runs");
            process.child.wait().expect("it ends");
        }
    }

    /// Sends a signal by name: `TERM`, `STOP`, `CONT`.
    pub fn signal(&self, name: &str) {
        let process = self.process.as_ref().expect("a process");
        match &self.front {
            // the core outlives what its bridge still answers: see `wait`
            Some(front) if matches!(name, "TERM" | "INT") => front.signal(name),
            Some(front) => {
                front.signal(name);
                process.signal(name);
            }
            None => process.signal(name),
        }
    }

    /// Whether the process has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        let first = self.front.as_mut().or(self.process.as_mut()).expect("a process");
        first.child.try_wait().expect("a child").is_some()
    }

    /// Waits until the process ends by itself.
    pub fn wait(&mut self) -> ExitStatus {
        let mut process = self.process.take().expect("a process");
        let ends = |process: &mut Process| {
            eventually("the service ends", || process.child.try_wait().expect("a child"))
        };
        let Some(mut front) = self.front.take() else { return ends(&mut process) };
        let ended = ends(&mut front);
        process.signal("TERM");
        let core_ended = ends(&mut process);
        if ended.success() { core_ended } else { ended }
    }

    /// SIGTERM, and how it ended.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.wait()
    }

    /// Starts again on the same folder, on other ports; ends what still runs with SIGTERM.
    pub fn restart(&mut self) {
        if self.process.is_some() {
            self.terminate();
        }
        self.begin();
    }

    /// [`Self::restart`], with other options from then on (`onboarding` and `toml` stay as they were).
    pub fn restart_with(&mut self, set: &[&str]) {
        self.options.set = set.iter().map(|&setting| setting.to_owned()).collect();
        self.restart();
    }

    /// All that it has logged.
    pub fn stderr(&self) -> String {
        fs::read_to_string(self.dir.path().join("stderr.log")).expect("the log")
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Its store's file, if it is embedded.
    pub fn db_path(&self) -> PathBuf {
        self.dir.path().join("state.db")
    }

    /// Its settings file.
    pub fn settings(&self) -> PathBuf {
        self.dir.path().join("settings.toml")
    }

    /// Where it listens.
    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// The process's number.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("a process").child.id()
    }

    /// Alipay+ before the signed JSON front.
    pub fn json(&self) -> Json {
        Json::new(self.ports.bridge, CLIENT_ID, "1", vectors::alipayplus())
    }

    /// The client that may act for one wallet and one acquirer only.
    pub fn other_json(&self) -> Json {
        Json::new(self.ports.bridge, OTHER_CLIENT, "other-1", vectors::other())
    }

    /// What a command needs to call the gRPC front: `--url`, and certificates before a pair.
    pub fn grpc_arguments(&self) -> Vec<String> {
        let at = self.ports.grpc;
        if self.front.is_none() {
            return vec!["--url".to_owned(), format!("http://{at}")];
        }
        let url = ["--url".to_owned(), format!("https://{at}")];
        url.into_iter().chain(pair::wallet_arguments(self.dir())).collect()
    }

    /// The wallet's own services before the gRPC front.
    pub fn grpc(&self) -> Grpc {
        Grpc::new(self.ports.grpc)
    }
}
