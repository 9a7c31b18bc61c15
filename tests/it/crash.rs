//! The binary under load while it is killed, told to end, or left without room on its disk. Where a test looks into the
//! embedded store's file, it runs on that store alone.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use rusqlite::{Connection, OpenFlags};
use tokio::runtime::Runtime;
use tonic::{Code, transport::Channel};

use crate::harness::{
    PATIENCE, eventually,
    grpc::{
        Payment, endpoint,
        wire::{
            self, CancelPaymentResponse, RecordPaymentAnswer, ResultCode,
            cancel_service_client::CancelServiceClient,
            payment_service_client::PaymentServiceClient,
        },
    },
    json::{Api, payment_body},
    service::{Options, Service, Store},
};

/// When a result was decided, as gRPC tells it.
type Decided = Option<prost_types::Timestamp>;

/// What clients heard.
#[derive(Default)]
struct Heard {
    /// SUCCESS over gRPC, and when it was decided.
    successes: Mutex<HashMap<String, (Payment, Decided)>>,
    /// SUCCESS over JSON, which does not say when.
    signed: Mutex<HashMap<String, Payment>>,
    /// No answer.
    unanswered: Mutex<Vec<Payment>>,
    /// Payments that the core was told to have been debited.
    debited: Mutex<HashSet<String>>,
    count: AtomicUsize,
}

impl Heard {
    fn success(&self, payment: &Payment, decided: Decided) {
        let kept = (payment.clone(), decided);
        let before = self.successes.lock().expect("no panic").insert(payment.request.clone(), kept);
        assert!(before.is_none(), "every payment is its own");
        self.count.fetch_add(1, Ordering::SeqCst);
    }

    fn signed(&self, payment: &Payment) {
        self.signed.lock().expect("no panic").insert(payment.request.clone(), payment.clone());
        self.count.fetch_add(1, Ordering::SeqCst);
    }

    fn nothing(&self, payment: &Payment) {
        self.unanswered.lock().expect("no panic").push(payment.clone());
    }

    fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    fn all(&self) -> HashSet<String> {
        let successes = self.successes.lock().expect("no panic");
        let signed = self.signed.lock().expect("no panic");
        successes.keys().chain(signed.keys()).cloned().collect()
    }
}

/// A connection of its own.
fn channel(address: SocketAddr) -> Channel {
    endpoint(address).connect_lazy()
}

fn code(response: &CancelPaymentResponse) -> ResultCode {
    response.result.as_ref().map_or(ResultCode::Unspecified, wire::Result::result_code)
}

/// Cancels one payment after the other over gRPC until it gets no answer; every third was debited before.
async fn cancel_over_grpc(address: SocketAddr, heard: Arc<Heard>, most: usize) {
    let channel = channel(address);
    let mut cancels = CancelServiceClient::new(channel.clone());
    let mut payments = PaymentServiceClient::new(channel);
    for nth in 0..most {
        let payment = Payment::new();
        if nth % 3 == 2 {
            let recorded = payments.record_payment(payment.record(payment.succeeded())).await;
            let Ok(recorded) = recorded else { return };
            assert_eq!(recorded.get_ref().answer(), RecordPaymentAnswer::Accepted);
            heard.debited.lock().expect("no panic").insert(payment.request.clone());
        }
        match cancels.cancel_payment(payment.cancel()).await {
            Ok(response) => {
                let response = response.into_inner();
                assert_eq!(code(&response), ResultCode::Success);
                assert!(!response.repeated, "nobody else cancels it");
                assert!(response.decided_at.is_some());
                heard.success(&payment, response.decided_at);
            }
            Err(status) => {
                // a connection that ends has many names; none of them is a final answer
                let final_answers =
                    [Code::InvalidArgument, Code::PermissionDenied, Code::FailedPrecondition];
                assert!(!final_answers.contains(&status.code()), "{status:?}");
                heard.nothing(&payment);
                return;
            }
        }
    }
}

/// The same as Alipay+ does it.
fn cancel_over_json(service: &crate::harness::json::Json, heard: &Heard, stop: &AtomicBool) {
    let mut connection = service.connect();
    while !stop.load(Ordering::SeqCst) {
        let payment = Payment::new();
        let body = payment_body(&payment.psp, &payment.acquirer, &payment.request);
        let request = service.request().api(Api::CancelPayment).body(body);
        connection.write(&request.bytes());
        let Some(answer) = request.answer_on(&mut connection) else {
            heard.nothing(&payment);
            return;
        };
        answer.expect("SUCCESS").assert_signed();
        heard.signed(&payment);
    }
}

/// Runs a load until `end` was called and every client noticed.
fn under_load(service: &mut Service, heard: &Arc<Heard>, end: impl FnOnce(&mut Service)) {
    const GRPC: usize = 20;
    const JSON: usize = 4;
    let runtime = Runtime::new().expect("a runtime");
    let address = service.ports().grpc;
    let loads: Vec<_> = (0..GRPC)
        .map(|_| runtime.spawn(cancel_over_grpc(address, Arc::clone(heard), usize::MAX)))
        .collect();
    let stop = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> = (0..JSON)
        .map(|_| {
            let (json, heard, stop) = (service.json(), Arc::clone(heard), Arc::clone(&stop));
            thread::spawn(move || cancel_over_json(&json, &heard, &stop))
        })
        .collect();
    end(service);
    stop.store(true, Ordering::SeqCst);
    for thread in threads {
        thread.join().expect("no wrong answer over JSON");
    }
    for load in loads {
        let load = runtime.block_on(async { tokio::time::timeout(PATIENCE, load).await });
        load.expect("clients notice the end").expect("no wrong answer over gRPC");
    }
}

/// The database of a service that has ended, or runs.
fn database(path: &Path) -> Connection {
    Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).expect("a database")
}

/// How many events of a kind each payment has; asserts that positions have no gap.
fn events(path: &Path) -> (HashMap<String, usize>, HashMap<String, usize>) {
    let database = database(path);
    let check: String =
        database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("a check");
    assert_eq!(check, "ok");
    let (mut cancelled, mut due) = (HashMap::new(), HashMap::new());
    let mut heads: BTreeMap<i64, i64> = BTreeMap::new();
    let mut select = database
        .prepare("SELECT partition, position, kind, subject_id FROM event ORDER BY 1, 2")
        .expect("a table of events");
    let mut rows = select.query([]).expect("events");
    while let Some(row) = rows.next().expect("an event") {
        let (partition, position): (i64, i64) = (row.get(0).unwrap(), row.get(1).unwrap());
        let head = heads.entry(partition).or_default();
        assert_eq!(position, *head + 1, "a gap in partition {partition}");
        *head = position;
        let kind: i64 = row.get(2).unwrap();
        let counts = if kind == 1 { &mut cancelled } else { &mut due };
        *counts.entry(row.get(3).unwrap()).or_default() += 1;
    }
    drop(rows);
    let mut select =
        database.prepare("SELECT partition, position FROM partition_head").expect("heads");
    let mut rows = select.query([]).expect("heads");
    while let Some(row) = rows.next().expect("a head") {
        let (partition, position): (i64, i64) = (row.get(0).unwrap(), row.get(1).unwrap());
        assert_eq!(heads.get(&partition).copied().unwrap_or(0), position);
    }
    drop(rows);
    drop(select);
    (cancelled, due)
}

/// Every success that was heard is told again, in the same words.
fn assert_remembered(service: &Service, heard: &Heard) {
    let runtime = Runtime::new().expect("a runtime");
    let successes = heard.successes.lock().expect("no panic").clone();
    let signed = heard.signed.lock().expect("no panic").clone();
    let asked = successes
        .into_values()
        .map(|(payment, decided)| (payment, Some(decided)))
        .chain(signed.into_values().map(|payment| (payment, None)));
    runtime.block_on(async {
        let channel = channel(service.ports().grpc);
        let mut tasks = tokio::task::JoinSet::new();
        for (payment, decided) in asked {
            let mut client = CancelServiceClient::new(channel.clone());
            tasks.spawn(async move {
                let response = client.cancel_payment(payment.cancel()).await;
                let response = response.expect("an answer").into_inner();
                assert_eq!(code(&response), ResultCode::Success);
                assert!(response.repeated, "{} was forgotten", payment.request);
                if let Some(decided) = decided {
                    assert_eq!(response.decided_at, decided, "{}", payment.request);
                }
            });
        }
        while let Some(task) = tasks.join_next().await {
            task.expect("a lost success");
        }
    });
}

/// Those that got no answer ask again, as Alipay+ does, and get one.
fn ask_again(service: &Service, heard: &Heard) -> usize {
    let unanswered = std::mem::take(&mut *heard.unanswered.lock().expect("no panic"));
    let grpc = service.grpc();
    let mut found = 0;
    for payment in unanswered {
        let response = grpc.cancel_payment(payment.cancel()).expect("an answer");
        assert_eq!(code(&response), ResultCode::Success);
        found += usize::from(response.repeated);
        heard.success(&payment, response.decided_at);
    }
    found
}

#[test]
fn no_success_that_a_client_heard_is_lost_or_decided_twice_by_a_dozen_kills() {
    const KILLS: usize = 12;
    let mut service = Service::start(Options::embedded());
    let heard = Arc::new(Heard::default());
    let mut found = 0;
    for kill in 0..KILLS {
        let before = heard.count();
        // now early, now late in the load
        let enough = before + 40 + kill * 37 % 200;
        under_load(&mut service, &heard, |service| {
            eventually("the load is under way", || (heard.count() >= enough).then_some(()));
            service.kill_nine();
        });
        service.restart();
        found += ask_again(&service, &heard);
        assert_remembered(&service, &heard);
    }
    println!("{} successes heard, {found} decided unheard", heard.count());
    assert!(service.terminate().success());

    let (cancelled, due) = events(&service.db_path());
    let all = heard.all();
    assert_eq!(cancelled.keys().cloned().collect::<HashSet<_>>(), all);
    assert!(cancelled.values().all(|count| *count == 1), "decided once, announced once");
    let debited = heard.debited.lock().expect("no panic");
    let debited: HashSet<String> = debited.intersection(&all).cloned().collect();
    assert_eq!(due.keys().cloned().collect::<HashSet<_>>(), debited);
    assert!(due.values().all(|count| *count == 1), "money goes back once");
}

#[test]
fn a_service_that_is_told_to_end_answers_what_it_decided_and_ends_well() {
    for round in 0..3 {
        let debug = Options::set(["telemetry.log_level=info,alipayplus_cancel=debug"]);
        let mut service = Service::start(Options { store: Store::Embedded, ..debug });
        let heard = Arc::new(Heard::default());
        under_load(&mut service, &heard, |service| {
            let enough = 60 + round * 100;
            eventually("the load is under way", || (heard.count() >= enough).then_some(()));
            let status = service.terminate();
            assert!(status.success(), "{status:?}: {}", service.stderr());
        });
        // the engine's worker ended by itself; it was not given up on
        assert!(!service.stderr().contains("left unanswered"));
        let (cancelled, _) = events(&service.db_path());
        let decided: HashSet<String> = cancelled.into_keys().collect();
        let heard = heard.all();
        let unheard: Vec<_> = decided.difference(&heard).collect();
        assert!(unheard.is_empty(), "decided, and nobody was told: {unheard:?}");
        assert_eq!(decided, heard);
    }
}

/// GET of the platform's front.
fn get(address: SocketAddr, path: &str) -> String {
    let mut socket = TcpStream::connect(address).expect("it listens");
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(socket, "GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).expect("an answer");
    text
}

fn metric(scrape: &str, name: &str) -> u64 {
    let line = scrape.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {scrape}")).parse().expect("a number")
}

/// A wallet's service has one connection and all its calls on it; a burst must not end them all.
#[test]
fn a_burst_of_calls_on_one_connection_is_answered_whole() {
    const CALLS: usize = 3_000;
    let service = Service::start(Options::default());
    let runtime = Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let channel = channel(service.ports().grpc);
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..CALLS {
            let mut client = CancelServiceClient::new(channel.clone());
            calls.spawn(async move { client.cancel_payment(Payment::new().cancel()).await });
        }
        while let Some(call) = calls.join_next().await {
            let response = call.expect("no panic").expect("an answer").into_inner();
            assert_eq!(code(&response), ResultCode::Success);
        }
    });
}

#[test]
fn cancels_of_many_connections_share_their_commits() {
    const CONNECTIONS: usize = 64;
    const EACH: usize = 16;
    let service = Service::start(Options::default());
    let heard = Arc::new(Heard::default());
    let runtime = Runtime::new().expect("a runtime");
    let address = service.ports().grpc;
    let loads: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let heard = Arc::clone(&heard);
            runtime.spawn(async move {
                let mut client = CancelServiceClient::new(channel(address));
                for _ in 0..EACH {
                    let payment = Payment::new();
                    let response = client.cancel_payment(payment.cancel()).await;
                    let response = response.expect("an answer").into_inner();
                    assert_eq!(code(&response), ResultCode::Success);
                    heard.success(&payment, response.decided_at);
                }
            })
        })
        .collect();
    for load in loads {
        runtime.block_on(load).expect("every cancel was answered");
    }
    let scrape = get(service.ports().admin, "/metrics");
    let requests = metric(&scrape, "alipayplus_cancel_batch_size_sum");
    let commits = metric(&scrape, "alipayplus_cancel_commits_total");
    for line in scrape.lines().filter(|line| line.starts_with("alipayplus_cancel_batch_size")) {
        println!("{line}");
    }
    assert_eq!(requests, u64::try_from(CONNECTIONS * EACH).expect("few"));
    assert!(commits < requests / 2, "{commits} commits for {requests} requests");
    assert_eq!(metric(&scrape, "alipayplus_cancel_commit_failures_total"), 0);
}

/// A small file system of its own, where the machine allows it.
struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    fn mount(at: &Path) -> Option<Self> {
        fs::create_dir(at).expect("a folder");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=3m", "tmpfs"])
            .arg(at)
            .output()
            .ok()?;
        if !mounted.status.success() {
            println!("skipped: no mount here: {}", String::from_utf8_lossy(&mounted.stderr));
            return None;
        }
        Some(Self { at: at.to_owned() })
    }

    /// Takes all the room there is.
    fn fill(&self) {
        let mut file = fs::File::create(self.at.join("filler")).expect("a file");
        for size in [64 * 1024, 4 * 1024, 1] {
            let bytes = vec![0u8; size];
            while file.write_all(&bytes).is_ok() {}
        }
    }

    fn make_room(&self) {
        fs::remove_file(self.at.join("filler")).expect("the filler");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(&self.at).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || thread::panicking());
    }
}

#[test]
fn a_full_disk_makes_cancels_unknown_and_never_final_and_room_heals_it() {
    let dir = tempfile::Builder::new().prefix("apc-it-").tempdir().expect("a folder");
    let small = dir.path().join("small");
    let Some(disk) = SmallDisk::mount(&small) else { return };
    // the log stays outside: a log that cannot be written is another story
    std::os::unix::fs::symlink(small.join("state.db"), dir.path().join("state.db")).unwrap();
    let mut service = Service::start_in(dir, Options::embedded());
    let heard = Heard::default();
    let (grpc, json) = (service.grpc(), service.json());

    for round in 0..3 {
        let cancel = || {
            let payment = Payment::new();
            match grpc.cancel_payment(payment.cancel()) {
                Ok(response) => {
                    assert_eq!(code(&response), ResultCode::Success);
                    heard.success(&payment, response.decided_at);
                    true
                }
                Err(status) => {
                    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                    heard.nothing(&payment);
                    false
                }
            }
        };
        assert!(cancel(), "there is room in round {round}");
        disk.fill();
        // the log of the database may have some room of its own left
        while cancel() {}
        for _ in 0..20 {
            cancel();
            let payment = Payment::new();
            let answer = json.cancel_payment(&payment.psp, &payment.acquirer, &payment.request);
            match answer.code().as_str() {
                "SUCCESS" => heard.signed(&payment),
                "UNKNOWN_EXCEPTION" => {
                    assert_eq!(answer.result_status(), "U");
                    heard.nothing(&payment);
                }
                other => panic!("{other} is no answer of a full disk"),
            }
        }
        let unheard = heard.unanswered.lock().expect("no panic").len();
        assert!(unheard > 0, "the disk was full");
        // what was answered before is known all the while
        let (payment, decided) =
            heard.successes.lock().expect("no panic").values().next().expect("one").clone();
        if let Ok(response) = grpc.cancel_payment(payment.cancel()) {
            assert_eq!((response.repeated, response.decided_at), (true, decided));
        }
        disk.make_room();
        assert_eq!(ask_again(&service, &heard), 0, "nothing of it had been kept");
    }
    assert_remembered(&service, &heard);
    drop((grpc, json));
    assert!(service.terminate().success(), "{}", service.stderr());
    let (cancelled, _) = events(&small.join("state.db"));
    assert_eq!(cancelled.keys().cloned().collect::<HashSet<_>>(), heard.all());
    assert!(cancelled.values().all(|count| *count == 1));
    drop(disk);
}

/// A file system that turns read-only under whoever writes to it, as one does that found an error.
struct SickDisk {
    at: PathBuf,
    image: PathBuf,
}

impl SickDisk {
    fn make(dir: &Path) -> Option<Self> {
        let disk = Self { at: dir.join("sick"), image: dir.join("sick.img") };
        fs::create_dir(&disk.at).expect("a folder");
        let file = fs::File::create(&disk.image).expect("a file");
        file.set_len(16 << 20).expect("room");
        let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&disk.image).output();
        let made = made.is_ok_and(|made| made.status.success());
        if !made || !disk.mount() {
            println!("skipped: no ext4 on a loop device here");
            // nothing to unmount
            std::mem::forget(disk);
            return None;
        }
        if disk.switch().is_none_or(|switch| !switch.exists()) {
            println!("skipped: this ext4 cannot be told to find an error");
            return None;
        }
        Some(disk)
    }

    fn mount(&self) -> bool {
        let options = ["-o", "loop,errors=remount-ro"];
        let mounted = Command::new("mount").args(options).arg(&self.image).arg(&self.at).output();
        mounted.is_ok_and(|mounted| mounted.status.success())
    }

    /// Where the kernel is told to find an error.
    fn switch(&self) -> Option<PathBuf> {
        let mounts = fs::read_to_string("/proc/mounts").ok()?;
        let at = self.at.to_str()?;
        let line = mounts.lines().find(|line| line.split(' ').nth(1) == Some(at))?;
        let device = line.split(' ').next()?.strip_prefix("/dev/")?;
        Some(Path::new("/sys/fs/ext4").join(device).join("trigger_fs_error"))
    }

    fn sicken(&self) {
        let switch = self.switch().expect("it is mounted");
        fs::write(switch, "a test").expect("the kernel is told");
        let written = fs::write(self.at.join("anything"), "x").expect_err("it is read-only");
        assert_eq!(written.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    }

    /// As after a check by people: nobody has it open meanwhile.
    fn heal(&self) {
        let unmounted = Command::new("umount").arg(&self.at).status();
        assert!(unmounted.is_ok_and(|status| status.success()));
        assert!(self.mount());
    }
}

impl Drop for SickDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(&self.at).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || thread::panicking());
    }
}

#[test]
fn a_disk_that_turns_read_only_makes_cancels_unknown_and_loses_nothing() {
    let dir = tempfile::Builder::new().prefix("apc-it-").tempdir().expect("a folder");
    let Some(disk) = SickDisk::make(dir.path()) else { return };
    std::os::unix::fs::symlink(disk.at.join("state.db"), dir.path().join("state.db")).unwrap();
    let mut service = Service::start_in(dir, Options::embedded());
    let heard = Heard::default();
    {
        let grpc = service.grpc();
        for _ in 0..20 {
            let payment = Payment::new();
            let response = grpc.cancel_payment(payment.cancel()).expect("an answer");
            assert_eq!(code(&response), ResultCode::Success);
            heard.success(&payment, response.decided_at);
        }
        disk.sicken();
        for _ in 0..20 {
            let payment = Payment::new();
            let status = grpc.cancel_payment(payment.cancel()).expect_err("it cannot be kept");
            assert_eq!(status.code(), Code::Unavailable, "{status:?}");
            heard.nothing(&payment);
            let answer =
                service.json().cancel_payment(&payment.psp, &payment.acquirer, &payment.request);
            assert_eq!(answer.code(), "UNKNOWN_EXCEPTION");
            assert_eq!(answer.result_status(), "U");
        }
        // what was answered before is known all the while
        assert_remembered(&service, &heard);
    }
    assert!(!service.has_ended(), "{}", service.stderr());
    assert!(service.terminate().success(), "{}", service.stderr());
    disk.heal();
    service.restart();
    assert_eq!(ask_again(&service, &heard), 0, "nothing of it had been kept");
    assert_remembered(&service, &heard);
    assert!(service.terminate().success(), "{}", service.stderr());
    let (cancelled, _) = events(&disk.at.join("state.db"));
    assert_eq!(cancelled.keys().cloned().collect::<HashSet<_>>(), heard.all());
    drop(disk);
}

#[test]
fn after_a_kill_all_of_the_file_is_checked_and_what_was_changed_is_told() {
    let mut service = Service::start(Options::embedded());
    let payment = Payment::new();
    service.grpc().cancel_payment(payment.cancel()).expect("SUCCESS");
    service.kill_nine();
    service.restart();
    let says = |service: &Service, what: &str| service.stderr().contains(what).then_some(());
    eventually("it was checked", || says(&service, "a check of all of it found nothing wrong"));

    service.kill_nine();
    let database = Connection::open(service.db_path()).expect("a database");
    let changed = database.execute("UPDATE payment SET verdict_at = verdict_at + 1", []);
    assert_eq!(changed.expect("a row"), 1);
    drop(database);
    service.restart();
    eventually("the damage is told", || says(&service, "the database is damaged"));
}
