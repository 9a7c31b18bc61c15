//! What the benches share: processes on cores of their own, and a loader that sends what was made beforehand.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::pedantic, clippy::restriction)]

pub mod child;
pub mod h2;
#[path = "../../tests/it/harness/mod.rs"]
pub mod harness;
pub mod report;
pub mod service;

use std::{
    cell::RefCell,
    fs,
    net::SocketAddr,
    process::Command,
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
    task::LocalSet,
    time,
};

/// The core of the server, and of the loader.
pub const SERVER: &str = "0";
pub const LOADER: &str = "1";

/// Moves this process, all of its threads, to these cores.
pub fn pin(cores: &str) {
    let me = std::process::id().to_string();
    let pinned = Command::new("taskset").args(["-a", "-c", "-p", cores, &me]).output();
    assert!(pinned.expect("taskset").status.success());
}

/// The CPU time that a process has taken.
pub fn cpu(process: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).expect("its times");
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let times = after_name.split_whitespace().skip(11).take(2);
    let ticks: u64 = times.filter_map(|n| n.parse::<u64>().ok()).sum();
    // USER_HZ is 100 on every Linux
    Duration::from_millis(ticks * 10)
}

/// How many megabytes of memory a process has.
pub fn memory_mb(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("its memory");
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kb| kb.parse::<u64>().ok()).unwrap_or(0) / 1024
}

/// Runs something on this thread alone, on the loader's core.
pub fn on_its_core<T>(work: impl Future<Output = T>) -> T {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    pin(LOADER);
    let done = LocalSet::new().block_on(&runtime, work);
    pin("0,1");
    done
}

/// The numbers among the arguments, in their order.
pub fn numbers() -> Vec<usize> {
    std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect()
}

/// A PostgreSQL on the loader's core, where it stays; if it is installed.
pub fn database() -> Option<harness::postgres::Cluster> {
    use harness::postgres::{Cluster, Options, is_there_or_skip};
    pin(LOADER);
    let database = is_there_or_skip().then(|| Cluster::start(Options::default()));
    pin("0,1");
    database
}

/// Where cargo puts what it makes.
pub fn target() -> std::path::PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target"),
        std::path::PathBuf::from,
    )
}

/// What came back.
#[derive(Default)]
pub struct Seen {
    pub successes: Vec<Duration>,
    pub refusals: Vec<Duration>,
    pub others: usize,
    /// Arrivals for which no connection was free: the service is that far behind.
    pub unsent: usize,
    /// Successes that were heard while requests still arrived.
    pub in_time: usize,
    pub took: Duration,
}

impl Seen {
    pub fn per_second(&self) -> f64 {
        self.in_time as f64 / self.took.as_secs_f64()
    }
}

pub fn at(times: &mut [Duration], thousandth: usize) -> Duration {
    times.sort_unstable();
    times.get(times.len() * thousandth / 1000).copied().unwrap_or_default()
}

/// A connection that sends what it is given, one after the other, and says when it is free.
async fn speak(
    address: SocketAddr,
    me: usize,
    mut work: mpsc::UnboundedReceiver<(Instant, Rc<[u8]>)>,
    free: mpsc::UnboundedSender<usize>,
    seen: Rc<RefCell<Seen>>,
) {
    let mut socket: Option<TcpStream> = None;
    let mut answer = Vec::new();
    while let Some((due, request)) = work.recv().await {
        if socket.is_none() {
            let Ok(fresh) = TcpStream::connect(address).await else { continue };
            fresh.set_nodelay(true).expect("a socket");
            socket = Some(fresh);
        }
        let Some(open) = socket.as_mut() else { continue };
        answer.clear();
        let mut ended = open.write_all(&request).await.is_err();
        while !ended && !answer.ends_with(b"}}") {
            ended = !matches!(open.read_buf(&mut answer).await, Ok(1..));
        }
        let mut seen = seen.borrow_mut();
        let has = |code: &[u8]| answer.windows(code.len()).any(|window| window == code);
        if has(b"\"SUCCESS\"") {
            seen.successes.push(due.elapsed());
        } else if has(b"\"REQUEST_TRAFFIC_EXCEED_LIMIT\"") {
            assert!(has(b"\r\nsignature: "), "a refusal is signed too");
            seen.refusals.push(due.elapsed());
        } else {
            seen.others += 1;
        }
        drop(seen);
        if ended || has(b"connection: close") {
            socket = None;
        }
        if free.send(me).is_err() {
            break;
        }
    }
}

/// Sends all requests at so many a second; without a rate, as fast as answers come.
pub async fn load(
    address: SocketAddr,
    requests: Vec<Vec<u8>>,
    connections: usize,
    per_second: Option<f64>,
) -> Seen {
    let seen = Rc::new(RefCell::new(Seen::default()));
    let (free, mut frees) = mpsc::unbounded_channel();
    let mut to = Vec::new();
    for me in 0..connections {
        let (work, works) = mpsc::unbounded_channel();
        to.push(work);
        tokio::task::spawn_local(speak(address, me, works, free.clone(), Rc::clone(&seen)));
        free.send(me).expect("we listen");
    }
    drop(free);
    let begun = Instant::now();
    let count = requests.len();
    for (nth, request) in requests.into_iter().enumerate() {
        let due = match per_second {
            Some(rate) => begun + Duration::from_secs_f64(nth as f64 / rate),
            None => Instant::now(),
        };
        if due > Instant::now() + Duration::from_micros(500) {
            time::sleep_until(due.into()).await;
        } else if nth % 16 == 0 {
            tokio::task::yield_now().await;
        }
        let next = match per_second {
            Some(_) => frees.try_recv().ok(),
            None => frees.recv().await,
        };
        match next {
            Some(me) => {
                // at a rate it is due whether or not somebody is free; else it is not asked before
                let asked = per_second.map_or_else(Instant::now, |_| due.max(begun));
                to[me].send((asked, request.into())).expect("it works");
            }
            None => seen.borrow_mut().unsent += 1,
        }
    }
    {
        let mut seen = seen.borrow_mut();
        (seen.took, seen.in_time) = (begun.elapsed(), seen.successes.len());
    }
    // the rest is waited for, and does not count as throughput
    drop(to);
    while frees.recv().await.is_some() {}
    let mut seen = Rc::try_unwrap(seen).ok().expect("all are done").into_inner();
    if per_second.is_none() {
        (seen.took, seen.in_time) = (begun.elapsed(), seen.successes.len());
    }
    let answered = seen.successes.len() + seen.refusals.len() + seen.others + seen.unsent;
    assert!(answered <= count, "nothing is answered twice");
    seen
}
