//! The deterministic simulation: replicas of the real engine, feed and gRPC services over a store, a network and clocks
//! that fail as dice say; then a checker looks at all that callers heard and consumers were sent.
//!
//! **How.** Everything of a schedule is on one thread, in a tokio `current_thread` runtime whose clock is paused: time
//! goes on when nobody can do anything, to the next timer. All chance comes from one generator, whose seed is the
//! schedule's name, so a seed gives the same trace of events, byte for byte; a test asserts it. turmoil and madsim were
//! looked at: turmoil simulates hosts and TCP, which is more than is needed to lose, delay and repeat a message, and says
//! nothing of stores; madsim needs its own tokio and tonic, which are not the ones that are shipped. The network here is
//! a tower service between the generated clients and the whole gRPC front, below it bytes, as HTTP/2 would have carried
//! them ([`world`]).
//!
//! **What is real**: [`alipayplus_cancel::engine`], `feed`, `domain`, the gRPC front with its layers, the
//! generated clients, and the bridge's half from the parsed command on (`grpc::client`). **What is not**: the stores
//! ([`disk`] keeps their contract), sockets, and the bridge's signatures and JSON, which sign on threads of their own.
//!
//! **What goes wrong** ([`world::Odds`]; a schedule has some of it): messages are lost, late, passed by others and
//! repeated; replicas are cut off from callers or from the store; commits are refused, slow, lost, or made without
//! anybody hearing of it; the store wants a decision made twice; replicas are killed at any time and around every call of
//! the store, and come back on the old data; their clocks go wrong; all clocks jump past the window's end; streams are
//! cut and consumers crash. Callers retry as Alipay+ does, 8 s and 5 s, with the same parameters.
//!
//! **What is asserted**: per key, that the answers are linearizable and keep the invariants ([`history`]); of the feed,
//! that it is gapless and tells of what is, once; of the store, that windows were judged by the clock and that no token is
//! in it; and, once the faults stop, that every cancel is answered for ever and every event reaches its consumers.
//!
//! ```sh
//! cargo test --test simulation                                                 # some fixed seeds, some fresh ones
//! ALIPAYPLUS_CANCEL_SIMULATION_SEED=7 cargo test --test simulation             # one, with its trace
//! ALIPAYPLUS_CANCEL_SIMULATION_SCHEDULES=10000 ALIPAYPLUS_CANCEL_SIMULATION_OPERATIONS=460 \
//!     cargo test --release --test simulation schedules                         # acceptance
//! ```
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::missing_panics_doc)]

use std::{
    collections::BTreeMap,
    env,
    fmt::Write as _,
    io::{self, Write as _},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use alipayplus_cancel::{
    domain::{
        event::{EventCause, EventKind},
        payment::State,
        result::ResultCode,
    },
    store::Positioned,
};
use tokio::{
    runtime::Builder,
    task::{JoinError, JoinSet},
    time::sleep,
};

use self::{
    actors::{Callers, Kept, follow},
    asked::{Key, MARK, announcements},
    disk::Rows,
    history::{Answer, Command, Operation},
    oracle::Told,
    world::{CLOSES, World},
};

mod actors;
#[allow(dead_code, reason = "the race at real replicas uses more of it")]
#[path = "../it/asked.rs"]
mod asked;
mod disk;
#[allow(dead_code, reason = "the race at real replicas uses more of it")]
#[path = "../it/history.rs"]
mod history;
#[allow(dead_code, reason = "the properties use more of it")]
#[path = "../it/oracle.rs"]
mod oracle;
mod world;

/// The contract, compiled for these tests.
mod wire {
    #![allow(clippy::all, clippy::pedantic, clippy::restriction, rust_2018_idioms, dead_code)]
    tonic::include_proto!("alipayplus.cancel.v1");
}

/// What is wrong with the store, to see that the checker notices.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Broken {
    /// It says that a commit was made before it is, and then may not come to it.
    AnswersFirst,
    /// It lets go of the lock before it commits.
    NoLock,
    /// It may lose the events of a commit.
    EventsApart,
}

const CALLERS: usize = 8;
/// Invariant 14: from the end of faults, or the commit, to the event.
const SOON: Duration = Duration::from_secs(5);
/// Invariant 14: one deadline.
const DEADLINE: Duration = Duration::from_millis(6_500);

/// What a schedule came to.
struct Outcome {
    operations: u64,
    unknown: u64,
    events: u64,
    simulated: Duration,
    faults: BTreeMap<&'static str, u64>,
    trace: Vec<String>,
    /// What is wrong.
    wrong: Option<String>,
}

fn run(seed: u64, operations: usize, broken: Option<Broken>, traced: bool) -> Outcome {
    let runtime =
        Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    runtime.block_on(async {
        let world = World::new(seed, broken, traced);
        let callers = Callers::new(&world, operations);
        let wrong = schedule(&world, &callers).await.err();
        world.end();
        let keys = callers.keys.lock().expect("no panic").clone();
        let count = |of: &dyn Fn(&[Operation]) -> usize| -> u64 {
            let counts = keys.iter().map(|key| of(&key.history.lock().expect("no panic")));
            counts.sum::<usize>().try_into().expect("few")
        };
        let rows = world.disk.rows.lock().expect("no panic").clone();
        Outcome {
            operations: count(&|history| history.len()),
            unknown: count(&|history| history.iter().filter(|it| it.heard.is_none()).count()),
            events: rows.events.iter().map(Vec::len).sum::<usize>().try_into().expect("few"),
            simulated: Duration::from_millis(world.elapsed()),
            faults: world.counts.told(),
            trace: world.trace(),
            wrong,
        }
    })
}

type Checked = Result<(), String>;

fn panicked(error: JoinError) -> String {
    match error.try_into_panic() {
        Ok(panic) => match panic.downcast::<String>() {
            Ok(text) => *text,
            Err(_) => "a panic".to_owned(),
        },
        Err(error) => error.to_string(),
    }
}

async fn schedule(world: &Arc<World>, callers: &Arc<Callers>) -> Checked {
    let mut asking = JoinSet::new();
    for caller in 0..CALLERS {
        asking.spawn(Arc::clone(callers).call(caller));
    }
    let trouble = tokio::spawn(Arc::clone(world).trouble());
    let (returned, notified) = (Kept::default(), Kept::default());
    let mut following = JoinSet::new();
    let executor = Some(Arc::clone(callers));
    following.spawn(follow(Arc::clone(world), "executor", Arc::clone(&returned), executor));
    following.spawn(follow(Arc::clone(world), "notifier", Arc::clone(&notified), None));

    while let Some(ended) = asking.join_next().await {
        ended.map_err(panicked)?;
    }
    world.calm().await;
    trouble.await.map_err(panicked)?;
    close(world, callers).await?;
    sleep(SOON).await;
    // they follow for ever
    if let Some(ended) = following.try_join_next() {
        ended.map_err(panicked)?;
    }
    let mut copies = std::mem::take(&mut *world.copies.lock().expect("no panic"));
    while let Some(ended) = copies.try_join_next() {
        ended.map_err(panicked)?;
    }

    let rows = world.disk.rows.lock().expect("no panic").clone();
    let keys = callers.keys.lock().expect("no panic").clone();
    for kept in [returned, notified] {
        everything_arrived(&rows, &kept.lock().expect("no panic"))?;
    }
    the_feed_tells_what_is(&rows, &keys)?;
    windows_were_kept(&rows, &keys)?;
    if let Some(why) = &rows.standing.suspect {
        return Err(format!("the store is suspect: {why}"));
    }
    if world.seed.is_multiple_of(8) && format!("{rows:?}").contains(MARK) {
        return Err("invariant 12: a token in the store".to_owned());
    }
    for key in keys {
        let history = with_lateness(&key.history.lock().expect("no panic"));
        history::check(&history).map_err(|told| format!("{}: {told}", key.id))?;
    }
    Ok(())
}

/// Invariant 14: with nothing wrong any more, everybody is answered, and cancels for ever.
async fn close(world: &Arc<World>, callers: &Arc<Callers>) -> Checked {
    let keys = callers.keys.lock().expect("no panic").clone();
    for key in &keys {
        let mut commands = vec![];
        if key.is_payment {
            // a refund that is under way keeps a cancel waiting
            for refund in ["r0", "r1", "r2", "r3"] {
                commands.push(Command::RecordPayment(Told {
                    id: history::PAYMENT,
                    fact: "refund failed",
                    acquirer: None,
                    amount: None,
                    initiated_at: None,
                    refund: Some(refund),
                }));
            }
            commands.push(Command::CancelPayment { acquirer: "A", late: false });
        }
        commands.extend(key.last_words());
        for command in commands {
            for replica in 0..world.replicas() {
                let answer = callers.operate(key, CALLERS, replica, &command, DEADLINE).await;
                let ended = !matches!(answer, None | Some(Answer::Cancel { code: "U", .. }));
                if !ended {
                    return Err(format!("invariant 14: {command:?} of {}: {answer:?}", key.id));
                }
            }
        }
    }
    Ok(())
}

/// Whether a cancel of a payment whose window ends meanwhile came after its end. Only of one that was refused for it is
/// that told; of one without an answer both may be, and [`windows_were_kept`] compares the clocks.
fn with_lateness(history: &[Operation]) -> Vec<Operation> {
    let mut told = vec![];
    for operation in history {
        let mut operation = operation.clone();
        if let Command::CancelPayment { acquirer, .. } = operation.command {
            let late = matches!(
                operation.heard,
                Some((
                    _,
                    Answer::Cancel { code: "CANCEL_WINDOW_EXCEED", .. }
                        | Answer::Final { code: "CANCEL_WINDOW_EXCEED", .. }
                ))
            );
            if operation.heard.is_none() {
                told.push(operation.clone());
            }
            let late = late || operation.heard.is_none();
            operation.command = Command::CancelPayment { acquirer, late };
        }
        told.push(operation);
    }
    told
}

/// Invariant 14: what was committed was sent.
fn everything_arrived(rows: &Rows, kept: &BTreeMap<u16, Vec<Positioned>>) -> Checked {
    for (partition, events) in (0u16..).zip(&rows.events) {
        let arrived = kept.get(&partition).map(Vec::as_slice).unwrap_or_default();
        if arrived != events {
            let (came, there) = (arrived.len(), events.len());
            return Err(format!("invariant 14: partition {partition}: {came} of {there} events"));
        }
    }
    Ok(())
}

/// Invariants 5, 6 and 9.
fn the_feed_tells_what_is(rows: &Rows, keys: &[Arc<Key>]) -> Checked {
    let events: Vec<history::Event> = (rows.events.iter().flatten())
        .map(|positioned| {
            let (kind, amount) = match positioned.event.kind {
                EventKind::PaymentCancelled => ("PaymentCancelled", None),
                EventKind::AuthorizationRevoked => ("AuthorizationRevoked", None),
                EventKind::FundReturnDue(amount) => {
                    let currency = asked::name(amount.currency().as_str());
                    ("FundReturnDue", Some((amount.minor_units(), currency)))
                }
            };
            history::Event {
                partition: positioned.partition.into(),
                position: positioned.position,
                id: positioned.id.to_string(),
                kind,
                subject: positioned.event.subject.id().to_owned(),
                amount,
            }
        })
        .collect();
    let expected = keys.iter().flat_map(|key| announcements(key)).collect();
    history::check_events(&events, &expected)
}

/// A cancel in time has its money back, one after the window's end has not: by the clock of whoever decided.
fn windows_were_kept(rows: &Rows, keys: &[Arc<Key>]) -> Checked {
    let closes = |id: &str| {
        let key = keys.iter().find(|key| key.id == id).expect("every key is there");
        match key.initiated {
            history::OLD => CLOSES - 172_800_000,
            history::TURN => CLOSES,
            _ => CLOSES + 86_400_000,
        }
    };
    for positioned in rows.events.iter().flatten() {
        let event = &positioned.event;
        let moves = matches!(event.kind, EventKind::FundReturnDue(_));
        if moves && event.cause == EventCause::CancelPayment {
            let id = event.subject.id();
            if event.at.unix_ms > closes(id) {
                return Err(format!("{id} was cancelled in its window, and after it: {event:?}"));
            }
        }
    }
    for (key, payment) in &rows.payments {
        let State::Succeeded(succeeded) = &payment.state else { continue };
        let Some(refused) = &succeeded.refused else { continue };
        let id = key.payment_request.as_str();
        let late = refused.at.unix_ms > closes(id);
        if late != (refused.code == ResultCode::CancelWindowExceed) {
            return Err(format!("{id} closed at {}, and {refused:?}", closes(id)));
        }
    }
    Ok(())
}

// ---------------------------------------------------------------- the tests

fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// Past the capture of the test runner: a count that nobody sees may become 0 and nobody notices.
fn say(line: &str) {
    drop(writeln!(io::stderr(), "simulation: {line}"));
}

fn operations(default: u64) -> usize {
    let operations = number("ALIPAYPLUS_CANCEL_SIMULATION_OPERATIONS").unwrap_or(default);
    operations.try_into().expect("small")
}

const OPERATIONS: u64 = 250;

fn fail(seed: u64, operations: usize, wrong: &str) -> ! {
    panic!(
        "seed {seed}: {wrong}\nagain, with its trace: ALIPAYPLUS_CANCEL_SIMULATION_SEED={seed} \
         ALIPAYPLUS_CANCEL_SIMULATION_OPERATIONS={operations} cargo test --test simulation schedules -- --nocapture"
    );
}

#[test]
fn schedules_with_faults_keep_every_invariant() {
    let operations = operations(OPERATIONS);
    if let Some(seed) = number("ALIPAYPLUS_CANCEL_SIMULATION_SEED") {
        let outcome = run(seed, operations, None, true);
        let mut text = String::new();
        for line in &outcome.trace {
            writeln!(text, "{line}").expect("a text");
        }
        drop(io::stdout().write_all(text.as_bytes()));
        if let Some(wrong) = outcome.wrong {
            fail(seed, operations, &wrong);
        }
        return;
    }
    // one half is the same everywhere, the other never was before
    let schedules = number("ALIPAYPLUS_CANCEL_SIMULATION_SCHEDULES").unwrap_or(40);
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    let fresh = since_1970.as_secs() * 1_000_000;
    say(&format!("{schedules} schedules; fresh seeds from {fresh} on"));
    let (next, begun) = (AtomicU64::new(0), Instant::now());
    let total = Mutex::new((0, 0, 0, Duration::ZERO, BTreeMap::<&str, u64>::new()));
    let found = Mutex::new(None);
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                loop {
                    let nth = next.fetch_add(1, Ordering::Relaxed);
                    if nth >= schedules || found.lock().expect("no panic").is_some() {
                        return;
                    }
                    let seed = if nth % 2 == 0 { nth / 2 } else { fresh + nth / 2 };
                    let outcome = run(seed, operations, None, false);
                    if let Some(wrong) = outcome.wrong {
                        say(&format!("seed {seed}, schedule {}: something is wrong", nth + 1));
                        *found.lock().expect("no panic") = Some((seed, wrong));
                        return;
                    }
                    let mut total = total.lock().expect("no panic");
                    total.0 += outcome.operations;
                    total.1 += outcome.unknown;
                    total.2 += outcome.events;
                    total.3 += outcome.simulated;
                    for (name, count) in outcome.faults {
                        *total.4.entry(name).or_default() += count;
                    }
                }
            });
        }
    });
    if let Some((seed, wrong)) = found.into_inner().expect("no panic") {
        fail(seed, operations, &wrong);
    }
    let (asked, unknown, events, simulated, faults) = total.into_inner().expect("no panic");
    let took = begun.elapsed();
    let a_second = u128::from(asked) * 1_000 / took.as_millis().max(1);
    say(&format!(
        "{schedules} schedules, {asked} operations ({unknown} without an answer), {events} events, {:.1} simulated hours, \
         {took:.1?}, {a_second} operations a second; {} faults: {faults:?}",
        simulated.as_secs_f64() / 3_600.0,
        faults.values().sum::<u64>()
    ));
    let missing: Vec<_> = faults.iter().filter(|(_, count)| **count == 0).collect();
    assert!(schedules < 20 || missing.is_empty(), "never went wrong: {missing:?}");
}

#[test]
fn the_same_seed_gives_the_same_trace_byte_for_byte() {
    for seed in [3, 17, 101, 2_026] {
        let (one, two) = (run(seed, 120, None, true), run(seed, 120, None, true));
        assert!(one.trace.len() > 300, "{}", one.trace.len());
        let differ = one.trace.iter().zip(&two.trace).position(|(one, two)| one != two);
        if let Some(line) = differ {
            let before = &one.trace[line.saturating_sub(5)..line];
            panic!(
                "seed {seed}, line {line}, after {before:#?}: {} and {}",
                one.trace[line], two.trace[line]
            );
        }
        assert_eq!(one.trace.len(), two.trace.len());
        assert_ne!(run(seed + 1, 120, None, true).trace, one.trace);
    }
}

#[test]
fn a_store_that_breaks_its_contract_is_found() {
    for broken in [Broken::AnswersFirst, Broken::NoLock, Broken::EventsApart] {
        let wrong =
            (0..200).find_map(|seed| Some((seed, run(seed, 250, Some(broken), false).wrong?)));
        let Some((seed, wrong)) = wrong else { panic!("{broken:?} is not found") };
        let first = wrong.lines().next().unwrap_or_default();
        say(&format!("{broken:?} is found in schedule {}: {first:.120}", seed + 1));
    }
}
