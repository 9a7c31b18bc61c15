//! What batching is worth on PostgreSQL: cancels committed per second by the engine, beside the same work written plainly,
//! one transaction a request, over a pool of the same size in the same database server.
//!
//! `cargo bench --bench batch -- [CALLERS] [SECONDS] [ROUNDS] [WORKERS…]`, by default 256 callers, 5 seconds, 3 rounds,
//! interleaved, for 1 to 4 workers of the engine's, out of a pool of 8 connections on both sides. Starts a PostgreSQL of its own (`initdb` must be installed). Both sides lock the partition's head, load the payment,
//! write payment, event and head, and answer after COMMIT; every key is new. Prints medians and their ratio.
#![allow(missing_docs, dead_code, clippy::pedantic, clippy::restriction, clippy::unwrap_used)]

#[path = "../tests/it/harness/mod.rs"]
mod harness;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use alipayplus_cancel::{
    domain::{
        cancel_payment::CancelPayment,
        id::{AcquirerId, PaymentRequestId, PspId},
        key::{Partitions, PaymentKey},
        policy::Policy,
    },
    engine::{Caller, Engine, HashRing, Limits, SystemClock},
    store::{
        Store,
        postgres::{Dsn, Durability, Options, Postgres},
    },
    telemetry::Telemetry,
};
use harness::postgres::Cluster;
use tokio::sync::{Mutex, Semaphore};

/// Connections of either side.
const POOL: usize = 8;

fn options(url: &str, lanes: usize) -> Options {
    Options {
        dsn: Dsn::parse(url, None).expect("a URL"),
        partitions: Partitions::DEFAULT,
        durability: Durability::Local,
        lanes,
        spare_connections: POOL - lanes,
    }
}

fn command(nth: u64) -> CancelPayment {
    // random, as Alipay+'s ids look to an index
    let id = format!("{:016x}{nth:08}", nth.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let psp = PspId::parse("1022172000000000001").expect("an id");
    let payment_request = PaymentRequestId::parse(&id).expect("an id");
    let acquirer = AcquirerId::parse("1022188000000000001").expect("an id");
    CancelPayment { key: PaymentKey { psp, payment_request }, acquirer }
}

/// Calls `work` from so many tasks for so long; answers how many calls a second were done.
async fn load<F: Future<Output = ()> + Send>(
    callers: usize,
    duration: Duration,
    work: impl Fn(u64) -> F + Send + Sync + 'static,
) -> f64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let (done, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let work = Arc::new(work);
    let begun = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..callers {
        let (done, over, work) = (Arc::clone(&done), Arc::clone(&over), Arc::clone(&work));
        tasks.spawn(async move {
            while !over.load(Ordering::Relaxed) {
                work(NEXT.fetch_add(1, Ordering::Relaxed)).await;
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    tokio::time::sleep(duration).await;
    let rate = done.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64();
    over.store(true, Ordering::Relaxed);
    tasks.join_all().await;
    rate
}

/// Each request a transaction of its own, as one writes it: prepared statements, a pooled connection.
struct Plain {
    pool: Mutex<Vec<Connection>>,
    free: Semaphore,
}

struct Connection {
    client: tokio_postgres::Client,
    lock: tokio_postgres::Statement,
    load: tokio_postgres::Statement,
    save: tokio_postgres::Statement,
    event: tokio_postgres::Statement,
    head: tokio_postgres::Statement,
}

impl Plain {
    async fn open(url: &str) -> Self {
        let mut pool = Vec::new();
        for _ in 0..POOL {
            let connected = tokio_postgres::connect(url, tokio_postgres::NoTls).await;
            let (client, connection) = connected.expect("a connection");
            tokio::spawn(connection);
            let sql = [
                "SELECT position FROM partition_head WHERE partition = $1 FOR UPDATE",
                "SELECT state FROM payment WHERE psp_id = $1 AND payment_request_id = $2",
                "INSERT INTO payment (psp_id, payment_request_id, state, acquirer_id, verdict, verdict_at, money)
                 VALUES ($1, $2, 4, $3, 1, $4, 1)",
                "INSERT INTO event (partition, position, kind, psp_id, subject_id, acquirer_id, cause, decided_at, result)
                 VALUES ($1, $2, 1, $3, $4, $5, 1, $6, 1)",
                "UPDATE partition_head SET position = $2, turn = turn + 1 WHERE partition = $1",
            ];
            let mut statements = Vec::new();
            for sql in sql {
                statements.push(client.prepare(sql).await.expect("a statement"));
            }
            let mut next = statements.into_iter();
            let mut next = || next.next().expect("one each");
            let (lock, load, save, event, head) = (next(), next(), next(), next(), next());
            pool.push(Connection { client, lock, load, save, event, head });
        }
        Self { free: Semaphore::new(pool.len()), pool: Mutex::new(pool) }
    }

    async fn cancel(&self, command: CancelPayment) {
        let _permit = self.free.acquire().await.expect("open");
        let mut connection = self.pool.lock().await.pop().expect("as many as permits");
        let Connection { client, lock, load, save, event, head } = &mut connection;
        let partition = i32::from(command.key.partition(Partitions::DEFAULT));
        let psp = command.key.psp.as_str().as_bytes();
        let id = command.key.payment_request.as_str().as_bytes();
        let (acquirer, now) = (command.acquirer.as_str(), jiff::Timestamp::now().as_millisecond());
        let transaction = client.transaction().await.expect("BEGIN");
        let row = transaction.query_one(&*lock, &[&partition]).await.expect("a head");
        let position: i64 = row.get::<_, i64>(0) + 1;
        let known = transaction.query_opt(&*load, &[&psp, &id]).await.expect("a read");
        assert!(known.is_none());
        let saved = transaction.execute(&*save, &[&psp, &id, &acquirer, &now]).await;
        saved.expect("a payment");
        let announced = transaction
            .execute(&*event, &[&partition, &position, &psp, &id, &acquirer, &now])
            .await;
        announced.expect("an event");
        transaction.execute(&*head, &[&partition, &position]).await.expect("a head");
        transaction.commit().await.expect("COMMIT");
        self.pool.lock().await.push(connection);
    }
}

/// How many transactions were committed so far.
fn commits(telemetry: &Telemetry) -> u64 {
    let text = telemetry.scrape();
    let value = text.lines().find_map(|line| line.strip_prefix("alipayplus_cancel_commits_total "));
    value.expect("it is counted").parse().expect("a number")
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn main() {
    let mut numbers =
        std::env::args().skip(1).filter_map(|argument| argument.parse::<usize>().ok());
    let callers = numbers.next().unwrap_or(256);
    let seconds = Duration::from_secs(numbers.next().unwrap_or(5).try_into().expect("seconds"));
    let rounds = numbers.next().unwrap_or(3);
    let workers: Vec<usize> = numbers.filter(|workers| (1..POOL).contains(workers)).collect();
    let workers = if workers.is_empty() { vec![1, 2, 3, 4] } else { workers };
    let Some(cluster) = harness::postgres::or_skip() else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("tokio");
    for workers in workers {
        runtime.block_on(run(cluster, callers, seconds, rounds, workers));
    }
}

async fn run(cluster: &Cluster, callers: usize, seconds: Duration, rounds: usize, workers: usize) {
    let (batched_url, plain_url) = (cluster.fresh_database(), cluster.fresh_database());
    for url in [&batched_url, &plain_url] {
        Postgres::migrate(&options(url, workers)).await.expect("a schema");
    }
    let (postgres, _) =
        Postgres::open(&options(&batched_url, workers), &[[1; 16]]).await.expect("open");
    let store: Arc<dyn Store> = Arc::new(postgres);
    let complete = alipayplus_cancel::store::StandingChange::ImportComplete;
    store.change_standing(complete).await.expect("a standing");
    let telemetry = Telemetry::local();
    let (engine, _worker) = Engine::start(
        store,
        &alipayplus_cancel::feed::Wake::default(),
        HashRing::new(&[[7u8; 32]]).expect("a ring"),
        Arc::new(Policy::default()),
        Arc::new(SystemClock),
        Limits { queue: 8192, batch: 512, wait: Duration::MAX },
        &telemetry.metrics,
    );
    let plain = Arc::new(Plain::open(&plain_url).await);
    println!(
        "{callers} callers, {workers} workers, {POOL} connections a side, {seconds:?} a round"
    );
    let (mut batched_rates, mut plain_rates) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        let before = commits(&telemetry);
        let batched = {
            let engine = engine.clone();
            load(callers, seconds, move |nth| {
                let engine = engine.clone();
                async move {
                    let deadline = Instant::now() + Duration::from_secs(10);
                    let caller = Caller { deadline, client: None, trace: None };
                    engine.cancel_payment(command(nth), caller).await.expect("an answer");
                }
            })
            .await
        };
        let commits = commits(&telemetry) - before;
        let one_by_one = {
            let plain = Arc::clone(&plain);
            load(callers, seconds, move |nth| {
                let plain = Arc::clone(&plain);
                async move { plain.cancel(command(nth)).await }
            })
            .await
        };
        let size = batched * seconds.as_secs_f64() / commits as f64;
        println!(
            "round {round}: batched {batched:>7.0}/s ({size:.0} a commit)   one by one {one_by_one:>7.0}/s   ratio {:.1}",
            batched / one_by_one
        );
        batched_rates.push(batched);
        plain_rates.push(one_by_one);
    }
    let (batched, plain) = (median(&batched_rates), median(&plain_rates));
    println!(
        "median:  batched {batched:>7.0}/s   one by one {plain:>7.0}/s   ratio {:.1}",
        batched / plain
    );
}
