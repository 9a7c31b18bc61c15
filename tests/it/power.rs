//! The embedded store on a disk that loses power, and on one that fails: `tests/crash/disk.c` stands between the service
//! and its files.
//!
//! **Power cuts.** The library keeps a journal of what was asked of the disk. [`rebuild`] makes of it a folder as a disk
//! could have it after a cut at any place: what was synced is there; of what was not, each write is there, absent or torn
//! at sectors, and names that were made, changed or removed last may not be, as seeded dice say. The service starts on
//! it, and every answer that a client had before the cut must still be given. Many cuts are made of one recorded run.
//!
//! **Faults.** The k-th write, truncation or sync fails, for every k of a script: whoever asks hears U or nothing, and a
//! start without the fault gives every answer again.
//!
//! `ALIPAYPLUS_CANCEL_TESTS_POWER_CUTS=200 ALIPAYPLUS_CANCEL_TESTS_DISK_FAULTS=all` is acceptance.

use std::{
    collections::{BTreeMap, HashMap},
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tempfile::TempDir;
use tokio::{runtime::Runtime, task::JoinSet};
use tonic::{Code, Status, transport::Channel};

use crate::{
    asked::{Key, status},
    harness::{
        PATIENCE, eventually,
        grpc::{
            Payment, endpoint,
            wire::{
                self, CancelPaymentResponse, GetPaymentRequest, PaymentLife, RecordPaymentAnswer,
                Result as WireResult, ResultCode, cancel_service_client::CancelServiceClient,
                payment_service_client::PaymentServiceClient,
            },
        },
        json::{Api, payment_body},
        service::{Options, Service, run},
    },
    history::Command as Asking,
    load::ask_over_json,
};

type Decided = Option<prost_types::Timestamp>;

// ---------------------------------------------------------------- the library

fn folder() -> TempDir {
    tempfile::Builder::new().prefix("apc-it-").tempdir().expect("a folder")
}

/// Compiles the library; none where there is no C compiler, or nothing can be loaded so.
fn library() -> Option<(TempDir, PathBuf)> {
    let dir = folder();
    let made = dir.path().join("disk.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/crash/disk.c");
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .arg(&made)
        .arg(&source)
        .arg("-ldl")
        .output();
    match compiled {
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            Some((dir, made))
        }
        Err(error) => {
            assert!(env::var("CI").is_err(), "cc: {error}");
            println!("skipped: no C compiler: {error}");
            None
        }
    }
}

/// What the library is told, for a service in this folder.
fn preload(library: &Path, dir: &Path, more: &[(&str, String)]) -> Vec<(String, String)> {
    let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let dir = dir.canonicalize().expect("a folder");
    let usual = [("LD_PRELOAD", text(library)), ("DISK_DIR", text(&dir))];
    let all = usual.iter().chain(more);
    all.map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
}

// ---------------------------------------------------------------- the journal

/// What was asked of the disk.
#[derive(Debug)]
enum Asked {
    Write { at: usize, bytes: Vec<u8> },
    Truncate(usize),
    Create,
    Rename(String),
    Unlink,
    SyncBegins(u64),
    SyncEnds(u64),
}

/// One line of the journal.
#[derive(Debug)]
struct Line {
    /// The file; empty: the folder.
    name: String,
    asked: Asked,
    /// Where it ends in the journal.
    end: u64,
}

impl Line {
    fn is_synced(&self) -> bool {
        matches!(self.asked, Asked::SyncEnds(_))
    }
}

fn read_journal(path: &Path) -> Vec<Line> {
    let bytes = fs::read(path).expect("a journal");
    let (mut lines, mut rest) = (vec![], &bytes[..]);
    // the last line may be half written when the process was killed
    while rest.len() >= 2 && rest.len() >= 14 + usize::from(rest[1]) {
        let (head, tail) = rest.split_at(2);
        let (name, tail) = tail.split_at(head[1].into());
        let (number, tail) = tail.split_at(8);
        let (length, tail) = tail.split_at(4);
        let number = u64::from_le_bytes(number.try_into().expect("8 bytes"));
        let length = u32::from_le_bytes(length.try_into().expect("4 bytes"));
        let Some((data, tail)) = tail.split_at_checked(length.try_into().expect("few")) else {
            break;
        };
        let place = usize::try_from(number);
        let asked = match head[0] {
            b'W' => Asked::Write { at: place.expect("a place"), bytes: data.to_vec() },
            b'T' => Asked::Truncate(place.expect("a size")),
            b'C' => Asked::Create,
            b'R' => Asked::Rename(String::from_utf8(data.to_vec()).expect("a name")),
            b'U' => Asked::Unlink,
            b'B' => Asked::SyncBegins(number),
            b'E' => Asked::SyncEnds(number),
            other => panic!("no such line: {other}"),
        };
        rest = tail;
        let name = String::from_utf8(name.to_vec()).expect("a name");
        lines.push(Line {
            name,
            asked,
            end: (bytes.len() - rest.len()).try_into().expect("short"),
        });
    }
    lines
}

// ---------------------------------------------------------------- what a cut leaves

const SECTOR: usize = 512;

/// A file, whatever it is called: what was asked of it, by line.
#[derive(Default)]
struct Inode {
    asked: Vec<usize>,
    /// Lines before this one are on the disk.
    synced: usize,
}

/// How the dice fall for what was not synced.
#[derive(Clone, Copy, Debug)]
enum Luck {
    Nothing,
    Everything,
    /// Each write is there, absent or torn.
    Dice,
}

/// Makes the files as a disk could have them after these lines. `lies`: its syncs did nothing.
fn rebuild(lines: &[Line], to: &Path, rng: &mut StdRng, lies: bool) {
    let mut inodes: Vec<Inode> = vec![];
    let mut names = HashMap::<&str, usize>::new();
    let mut begun = HashMap::<u64, usize>::new();
    let (mut of_folder, mut folder_synced) = (vec![], 0);
    for (nth, line) in lines.iter().enumerate() {
        let name = line.name.as_str();
        match &line.asked {
            Asked::Create => {
                inodes.push(Inode::default());
                names.insert(name, inodes.len() - 1);
                of_folder.push((nth, Some(inodes.len() - 1)));
            }
            Asked::Rename(other) => {
                let inode = names.remove(name).expect("a file");
                names.insert(other, inode);
                of_folder.push((nth, Some(inode)));
            }
            Asked::Unlink => {
                names.remove(name);
                of_folder.push((nth, None));
            }
            Asked::Write { .. } | Asked::Truncate(_) => {
                inodes[*names.get(name).expect("a file")].asked.push(nth);
            }
            Asked::SyncBegins(id) => {
                begun.insert(*id, nth);
            }
            Asked::SyncEnds(id) if !lies => {
                let from = begun[id];
                if name.is_empty() {
                    folder_synced = from.max(folder_synced);
                } else if let Some(inode) = names.get(name) {
                    inodes[*inode].synced = from.max(inodes[*inode].synced);
                }
            }
            Asked::SyncEnds(_) => {}
        }
    }
    let luck = match rng.random_range(0..6) {
        0 => Luck::Nothing,
        1 => Luck::Everything,
        _ => Luck::Dice,
    };
    // a folder is changed in order; some of the last changes may be missing
    let synced = of_folder.iter().filter(|(nth, _)| *nth < folder_synced).count();
    let kept = match luck {
        Luck::Nothing => synced,
        Luck::Everything => of_folder.len(),
        Luck::Dice => rng.random_range(synced..=of_folder.len()),
    };
    let mut left = BTreeMap::<&str, usize>::new();
    for (nth, inode) in &of_folder[..kept] {
        let line = &lines[*nth];
        left.remove(line.name.as_str());
        if let Some(inode) = inode {
            let name = if let Asked::Rename(other) = &line.asked { other } else { &line.name };
            left.insert(name, *inode);
        }
    }
    for (name, inode) in left {
        let content = content(&inodes[inode], lines, luck, rng);
        fs::write(to.join(name), content).expect("a file");
    }
}

fn content(inode: &Inode, lines: &[Line], luck: Luck, rng: &mut StdRng) -> Vec<u8> {
    let mut content = vec![];
    for nth in &inode.asked {
        let is_there = *nth < inode.synced
            || match luck {
                Luck::Nothing => false,
                Luck::Everything => true,
                Luck::Dice => rng.random_bool(0.6),
            };
        match &lines[*nth].asked {
            Asked::Truncate(size) if is_there => content.resize(*size, 0),
            Asked::Write { at, bytes } if is_there => {
                let is_torn =
                    *nth >= inode.synced && matches!(luck, Luck::Dice) && rng.random_bool(0.3);
                put(&mut content, *at, bytes, |rng| !is_torn || rng.random_bool(0.5), rng);
            }
            Asked::Write { .. }
            | Asked::Truncate(_)
            | Asked::Create
            | Asked::Rename(_)
            | Asked::Unlink
            | Asked::SyncBegins(_)
            | Asked::SyncEnds(_) => {}
        }
    }
    content
}

/// Writes those sectors that are kept.
fn put(
    content: &mut Vec<u8>,
    at: usize,
    bytes: &[u8],
    is_kept: impl Fn(&mut StdRng) -> bool,
    rng: &mut StdRng,
) {
    let (mut place, mut rest) = (at, bytes);
    while !rest.is_empty() {
        let length = rest.len().min(SECTOR - place % SECTOR);
        let (piece, after) = rest.split_at(length);
        if is_kept(rng) {
            if content.len() < place + length {
                content.resize(place + length, 0);
            }
            content[place..place + length].copy_from_slice(piece);
        }
        (place, rest) = (place + length, after);
    }
}

// ---------------------------------------------------------------- what clients heard

/// An answer, and where the journal ended when it was heard.
#[derive(Clone, Debug)]
enum Heard {
    Debited(Payment),
    Cancelled(Payment, Decided),
}

fn code(response: &CancelPaymentResponse) -> ResultCode {
    response.result.as_ref().map_or(ResultCode::Unspecified, WireResult::result_code)
}

/// Every answer is still given; what went wrong, if not. A busy machine may not answer at once.
async fn ask_again(channel: Channel, heard: Heard) -> Result<(), String> {
    let begun = Instant::now();
    loop {
        let status = match ask_once(channel.clone(), &heard).await {
            Ok(is_same) => return is_same,
            Err(status) => status,
        };
        let passes = [Code::Unavailable, Code::DeadlineExceeded, Code::ResourceExhausted];
        if !passes.contains(&status.code()) || begun.elapsed() > PATIENCE {
            return Err(format!("{heard:?}: {status}"));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn ask_once(channel: Channel, heard: &Heard) -> Result<Result<(), String>, Status> {
    let (is_same, told) = match heard {
        Heard::Debited(payment) => {
            let request = GetPaymentRequest {
                psp_id: payment.psp.clone(),
                payment_request_id: payment.request.clone(),
            };
            let told = PaymentServiceClient::new(channel).get_payment(request).await?.into_inner();
            let life = told.payment.as_ref().map(wire::Payment::life);
            (life == Some(PaymentLife::Succeeded), format!("{told:?}"))
        }
        Heard::Cancelled(payment, decided) => {
            let told = CancelServiceClient::new(channel).cancel_payment(payment.cancel()).await?;
            let told = told.into_inner();
            let is_same = code(&told) == ResultCode::Success && told.repeated;
            let is_then = decided.is_none() || *decided == told.decided_at;
            (is_same && is_then, format!("{told:?}"))
        }
    };
    Ok(if is_same { Ok(()) } else { Err(format!("{heard:?}, and now {told}")) })
}

fn ask_all_again(service: &Service, heard: &[Heard]) -> Result<(), String> {
    let runtime = Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let channel = endpoint(service.ports().grpc).connect_lazy();
        let mut asking = JoinSet::new();
        for heard in heard {
            asking.spawn(ask_again(channel.clone(), heard.clone()));
            if asking.len() >= 32 {
                asking.join_next().await.expect("one").expect("no panic")?;
            }
        }
        while let Some(asked) = asking.join_next().await {
            asked.expect("no panic")?;
        }
        Ok(())
    })
}

/// What the store's own check says.
fn verify(service: &Service) -> Result<(), String> {
    let settings = service.settings();
    let verified = run(&["verify", "--config", settings.to_str().expect("UTF-8")]);
    if verified.status.success() {
        return Ok(());
    }
    let text = [verified.stdout, verified.stderr].concat();
    Err(format!("verify: {}", String::from_utf8_lossy(&text)))
}

// ---------------------------------------------------------------- power cuts

/// A run whose disk was watched.
struct Recorded {
    lines: Vec<Line>,
    heard: Vec<(u64, Heard)>,
}

fn record(library: &Path) -> Recorded {
    let dir = folder();
    let journal = dir.path().join("journal");
    let to = journal.to_str().expect("UTF-8").to_owned();
    let env = preload(library, dir.path(), &[("DISK_JOURNAL", to)]);
    let mut service = Service::start_in(dir, Options { env, ..Options::embedded() });
    let heard = Arc::new(Mutex::new(vec![]));
    let length = || fs::metadata(&journal).map_or(0, |journal| journal.len());
    let note = |what: Heard| heard.lock().expect("no panic").push((length(), what));
    let synced = || {
        let lines = read_journal(&journal);
        lines.iter().filter(|line| line.name == "state.db" && line.is_synced()).count()
    };
    for burst in 1..3 {
        let (stop, before) = (AtomicBool::new(false), synced());
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let grpc = service.grpc();
                    for nth in 0.. {
                        if stop.load(Ordering::SeqCst) {
                            return;
                        }
                        let payment = Payment::new();
                        // a busy machine may not answer in time
                        if nth % 3 == 2 {
                            let told = grpc.record_payment(payment.record(payment.succeeded()));
                            let Ok(told) = told else { continue };
                            assert_eq!(told.answer(), RecordPaymentAnswer::Accepted);
                            note(Heard::Debited(payment.clone()));
                        }
                        let Ok(told) = grpc.cancel_payment(payment.cancel()) else { continue };
                        assert_eq!(code(&told), ResultCode::Success);
                        note(Heard::Cancelled(payment, told.decided_at));
                    }
                });
            }
            scope.spawn(|| {
                let json = service.json();
                let mut connection = json.connect();
                while !stop.load(Ordering::SeqCst) {
                    let payment = Payment::new();
                    let body = payment_body(&payment.psp, &payment.acquirer, &payment.request);
                    let request = json.request().api(Api::CancelPayment).body(body);
                    let answer = request.send_on(&mut connection);
                    if answer.result_status() != "U" {
                        answer.expect("SUCCESS");
                        note(Heard::Cancelled(payment, None));
                    }
                }
            });
            let count = || heard.lock().expect("no panic").len();
            eventually("it has answered", || (count() >= burst * 350).then_some(()));
            stop.store(true, Ordering::SeqCst);
        });
        if burst == 1 {
            // an idle writer moves its log into the database; then it goes on at the log's beginning
            eventually("the log is moved", || (synced() > before).then_some(()));
        }
    }
    service.kill_nine();
    let heard = std::mem::take(&mut *heard.lock().expect("no panic"));
    Recorded { lines: read_journal(&journal), heard }
}

/// The service on what a cut left.
fn check_cut(lines: &[Line], heard: &[Heard], rng: &mut StdRng, lies: bool) -> Result<(), String> {
    let dir = folder();
    rebuild(lines, dir.path(), rng, lies);
    let options = Options { onboarding: true, ..Options::embedded() };
    let (mut service, is_ready) = Service::try_start_in(dir, options);
    if !is_ready {
        return Err(format!("refused: {}", service.stderr()));
    }
    ask_all_again(&service, heard)?;
    if !service.terminate().success() {
        return Err(service.stderr());
    }
    verify(&service)
}

fn count(name: &str, usual: usize) -> usize {
    let name = format!("ALIPAYPLUS_CANCEL_TESTS_{name}");
    env::var(&name).map_or(usual, |text| text.parse().unwrap_or_else(|_| panic!("{name}: {text}")))
}

/// Cuts at random places; half of them right behind an answer.
fn cut(recorded: &Recorded, cuts: usize, lies: bool) -> Vec<String> {
    let mut wrong = vec![];
    for nth in 0..cuts {
        let mut rng = StdRng::seed_from_u64(nth.try_into().expect("few"));
        let end = recorded.lines.last().expect("a line").end;
        let at = if nth % 2 == 0 {
            rng.random_range(0..=end)
        } else {
            recorded.heard[rng.random_range(0..recorded.heard.len())].0
        };
        let lines = recorded.lines.partition_point(|line| line.end <= at);
        let before = recorded.heard.iter().filter(|(heard_at, _)| *heard_at <= at);
        let before: Vec<Heard> = before.map(|(_, heard)| heard.clone()).collect();
        if let Err(told) = check_cut(&recorded.lines[..lines], &before, &mut rng, lies) {
            wrong.push(format!("cut {nth} behind line {lines}, {} answers: {told}", before.len()));
        }
    }
    wrong
}

#[test]
fn after_a_power_cut_anywhere_every_answer_is_still_given() {
    let Some((_dir, library)) = library() else { return };
    let recorded = record(&library);
    let synced = |name: &str| {
        let lines = recorded.lines.iter();
        lines.filter(|line| line.name == name && line.is_synced()).count()
    };
    let (log, database) = (synced("state.db-wal"), synced("state.db"));
    let (lines, heard) = (recorded.lines.len(), recorded.heard.len());
    println!("{heard} answers, {lines} lines, {log} syncs of the log, {database} of the database");
    assert!(log > 10 && database > 2, "it was watched");
    let cuts = count("POWER_CUTS", 10);
    let wrong = cut(&recorded, cuts, false);
    assert!(wrong.is_empty(), "{} of {cuts}: {}", wrong.len(), wrong[0]);
    println!("{cuts} cuts");

    // and if syncs did nothing, this would be seen
    let lying = cut(&recorded, 4, true);
    println!("{} of 4 with a disk that lies", lying.len());
    assert!(lying.len() > 1, "a disk that lies goes unnoticed: {lying:?}");
}

// ---------------------------------------------------------------- a disk that fails once

/// EIO and ENOSPC on Linux.
const ERRORS: [(&str, &str); 2] = [("5", "EIO"), ("28", "ENOSPC")];

/// What a script was answered, and what was not.
#[derive(Default)]
struct Told {
    heard: Vec<Heard>,
    open: Vec<Payment>,
}

/// A few requests, one after the other, at a service that may end at any of them. Never F, and S only for what is kept.
fn script(service: &Service) -> Told {
    let mut told = Told::default();
    let grpc = service.grpc();
    for nth in 0..5 {
        let acquirer = "A".to_owned();
        let payment = Payment { acquirer, ..Payment::new() };
        if nth % 2 == 1 {
            match grpc.record_payment(payment.record(payment.succeeded())) {
                Ok(answer) => {
                    assert_eq!(answer.answer(), RecordPaymentAnswer::Accepted);
                    told.heard.push(Heard::Debited(payment.clone()));
                }
                Err(refused) => drop(status(&refused).expect_err("a fault is never final")),
            }
        }
        if nth == 4 {
            let key = Key::plain(payment.request.clone(), true, SystemTime::now());
            let cancel = Asking::CancelPayment { acquirer: "A", late: false };
            match ask_over_json(&key, &service.json(), &mut None, &cancel) {
                Ok(_) => told.heard.push(Heard::Cancelled(payment, None)),
                Err(_) => told.open.push(payment),
            }
            continue;
        }
        match grpc.cancel_payment(payment.cancel()) {
            Ok(answer) => {
                assert_eq!(code(&answer), ResultCode::Success);
                told.heard.push(Heard::Cancelled(payment, answer.decided_at));
            }
            Err(refused) => {
                drop(status(&refused).expect_err("a fault is never final"));
                told.open.push(payment);
            }
        }
    }
    told
}

/// A store that has decided something and was closed; nothing: a new one is made.
fn prepared(is_new: bool) -> TempDir {
    let dir = folder();
    if is_new {
        return dir;
    }
    let mut service = Service::start(Options::embedded());
    drop(script(&service));
    assert!(service.terminate().success(), "{}", service.stderr());
    copy_store(service.dir(), dir.path());
    dir
}

fn copy_store(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| name.starts_with("state.db")) {
            fs::copy(entry.path(), to.join(name)).expect("a copy");
        }
    }
}

/// Runs the script on a copy of that store, with these orders to the library; what it was told, and the service after it
/// has been told to end.
fn run_with(library: &Path, from: &TempDir, orders: &[(&str, String)]) -> (Told, Service) {
    let dir = folder();
    copy_store(from.path(), dir.path());
    let env = preload(library, dir.path(), orders);
    let (mut service, is_ready) =
        Service::try_start_in(dir, Options { env, onboarding: true, ..Options::embedded() });
    // one that refuses to start has said nothing wrong
    let told = if is_ready { script(&service) } else { Told::default() };
    if is_ready && !service.has_ended() {
        service.signal("TERM");
        service.wait();
    } else {
        service.kill_nine();
    }
    service.set_env(vec![]);
    (told, service)
}

/// The disk is well again: all that was answered still is, and the rest can be had.
fn recovers(mut service: Service, told: &Told, is_new: bool) -> Result<(), String> {
    service.restart();
    if is_new {
        service.import_complete();
    }
    ask_all_again(&service, &told.heard)?;
    let grpc = service.grpc();
    for payment in &told.open {
        let answer = grpc.cancel_payment(payment.cancel()).map_err(|status| status.to_string())?;
        if code(&answer) != ResultCode::Success {
            return Err(format!("{payment:?}: {answer:?}"));
        }
    }
    drop(grpc);
    if !service.terminate().success() {
        return Err(service.stderr());
    }
    verify(&service)
}

/// Fails each write, truncation and sync of the script, or a few of them.
fn fail_each(library: &Path, is_new: bool) {
    let from = prepared(is_new);
    let counted = from.path().join("count");
    let to = counted.to_str().expect("UTF-8").to_owned();
    let (told, service) = run_with(library, &from, &[("FAIL_COUNT", to)]);
    // a new store is in onboarding, where unknown is U
    assert_eq!(told.open.len(), if is_new { 3 } else { 0 }, "without a fault");
    drop(service);
    let steps = fs::read_to_string(&counted).expect("a count");
    let steps: usize = steps.trim().parse().expect("a number");
    assert!(steps > 20, "it was watched: {steps}");

    let all = env::var("ALIPAYPLUS_CANCEL_TESTS_DISK_FAULTS").is_ok_and(|set| set == "all");
    let few = if is_new { 2 } else { 5 };
    let stride = if all { 1 } else { steps / few };
    let (mut runs, mut unknown) = (0, 0);
    let (mut refused, mut died) = (0, 0);
    for k in (1..=steps).step_by(stride) {
        for (nth, (number, name)) in ERRORS.iter().enumerate() {
            if !all && nth != k % 2 {
                continue;
            }
            let orders = [("FAIL_AT", k.to_string()), ("FAIL_ERRNO", (*number).to_owned())];
            let (told, service) = run_with(library, &from, &orders);
            let log = service.stderr();
            runs += 1;
            unknown += told.open.len();
            refused += usize::from(!log.contains("\"ready\""));
            died += usize::from(log.contains("the disk failed under the database"));
            recovers(service, &told, is_new)
                .unwrap_or_else(|wrong| panic!("{name} at {k} of {steps}: {wrong}"));
        }
    }
    println!(
        "{steps} steps, {runs} runs with a fault: {refused} did not start, {died} stopped at once, {unknown} unknown"
    );
    assert!(refused + died + unknown > 0, "no fault was noticed");
}

#[test]
fn a_disk_that_fails_once_anywhere_makes_nothing_final_that_is_not_kept() {
    let Some((_dir, library)) = library() else { return };
    fail_each(&library, false);
}

#[test]
fn a_disk_that_fails_while_a_store_is_made_leaves_one_that_can_be_made() {
    let Some((_dir, library)) = library() else { return };
    fail_each(&library, true);
}
