//! Many callers race over few keys, at both fronts of replicas that are killed and frozen meanwhile, and so is their
//! database; then
//! [`crate::history`] looks through what each of them heard, and the feed is compared with what is.
//!
//! The suite runs it for some seconds. `ALIPAYPLUS_CANCEL_TESTS_RACE_S=60` is acceptance.

use std::{
    collections::{BTreeMap, HashMap},
    env,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::{runtime::Runtime, task::JoinSet};
use tonic::transport::{Channel, Endpoint};

use crate::{
    asked::{Heard, Key, MARK, Unknown, announcements},
    follower::Follower,
    harness::{
        PATIENCE,
        json::{Connection, Json},
        postgres::{self, Cluster},
        service::{Options, Service},
        unique,
    },
    history::{self, Answer, Command, Operation},
    load::ask_over_json,
    oracle::{self, NewToken, Text},
};

// ---------------------------------------------------------------- what is raced over

const CALLERS: usize = 64;
const LIVE_KEYS: usize = 200;
/// Most of the callers are on this many of them, so that they meet.
const HOT_KEYS: usize = 12;
const CALLERS_OF_A_KEY: usize = 8;
/// Then a key is retired, so that the checker comes to an end with it.
const OPERATIONS_OF_A_KEY: usize = 100;
const OPEN_OF_A_KEY: usize = 12;
/// Longest that a caller waits; less than a service does, so that a frozen one holds nobody for long.
const CALL: Duration = Duration::from_secs(3);

// ---------------------------------------------------------------- the race

/// Where a replica is now; it has other ports after a restart.
#[derive(Clone)]
struct Place {
    address: SocketAddr,
    json: Json,
    generation: usize,
}

/// What all callers share.
struct Race {
    begun: Instant,
    ends: Instant,
    places: Vec<Mutex<Place>>,
    slots: Vec<Mutex<Arc<Key>>>,
    retired: Mutex<Vec<Arc<Key>>>,
}

fn new_key(rng: &mut StdRng) -> Key {
    let days_ago = |days: u64| {
        let age = Duration::from_secs(days * 86_400);
        SystemTime::now().checked_sub(age).expect("a moment")
    };
    Key::new(rng, [days_ago(3), days_ago(0), days_ago(0)], false, unique)
}

fn channel(address: SocketAddr) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    endpoint.connect_timeout(Duration::from_secs(1)).connect_lazy()
}

impl Race {
    fn new(replicas: &[Service], length: Duration) -> Self {
        let mut rng = StdRng::seed_from_u64(1);
        let place = |replica: &Service| {
            let (address, json) = (replica.ports().grpc, replica.json());
            Mutex::new(Place { address, json, generation: 0 })
        };
        let slots = (0..LIVE_KEYS).map(|_| Mutex::new(Arc::new(new_key(&mut rng))));
        let begun = Instant::now();
        Self {
            begun,
            ends: begun + length,
            places: replicas.iter().map(place).collect(),
            slots: slots.collect(),
            retired: Mutex::default(),
        }
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.ends
    }

    fn now(&self) -> u64 {
        self.begun.elapsed().as_nanos().try_into().expect("a short run")
    }

    fn place(&self, replica: usize) -> Place {
        self.places[replica].lock().expect("no panic").clone()
    }

    fn moved(&self, replica: usize, service: &Service) {
        let mut place = self.places[replica].lock().expect("no panic");
        let (address, json) = (service.ports().grpc, service.json());
        *place = Place { address, json, generation: place.generation + 1 };
    }

    /// A key with room for another caller, and how many operations it has had.
    fn take(&self, rng: &mut StdRng) -> (Arc<Key>, usize) {
        loop {
            let second = usize::try_from(self.begun.elapsed().as_secs()).expect("a short run");
            let hot = second * HOT_KEYS + rng.random_range(0..HOT_KEYS);
            let index = if rng.random_bool(0.8) { hot } else { rng.random_range(0..LIVE_KEYS) };
            let mut slot = self.slots[index % LIVE_KEYS].lock().expect("no panic");
            let key = Arc::clone(&slot);
            if key.callers.load(Ordering::SeqCst) >= CALLERS_OF_A_KEY {
                continue;
            }
            let open = key.open.load(Ordering::SeqCst);
            if key.sent.load(Ordering::SeqCst) >= OPERATIONS_OF_A_KEY || open >= OPEN_OF_A_KEY {
                *slot = Arc::new(new_key(rng));
                self.retired.lock().expect("no panic").push(key);
                continue;
            }
            key.callers.fetch_add(1, Ordering::SeqCst);
            let nth = key.sent.fetch_add(1, Ordering::SeqCst);
            return (key, nth);
        }
    }

    /// One operation over gRPC, kept in the key's history. None: no answer.
    async fn operate(
        &self,
        key: &Key,
        caller: usize,
        channel: Channel,
        command: Command,
    ) -> Option<Answer> {
        let index = self.sent(key, caller, &command);
        let told = key.ask(channel, &command, CALL).await;
        self.heard(key, index, told)
    }

    /// A cancel as Alipay+ sends it, on a connection that is kept.
    async fn operate_over_json(
        &self,
        key: &Arc<Key>,
        caller: usize,
        json: Json,
        connection: &mut Option<Connection>,
        command: Command,
    ) -> Option<Answer> {
        let index = self.sent(key, caller, &command);
        let (asked, mut kept) = (Arc::clone(key), connection.take());
        let asking = tokio::task::spawn_blocking(move || {
            let told = ask_over_json(&asked, &json, &mut kept, &command);
            (told, kept)
        });
        let (told, kept) = asking.await.expect("nothing impossible over JSON");
        *connection = kept;
        self.heard(key, index, told)
    }

    fn sent(&self, key: &Key, caller: usize, command: &Command) -> usize {
        let mut history = key.history.lock().expect("no panic");
        let (command, sent) = (command.clone(), self.now());
        history.push(Operation { caller, command, sent, heard: None, decided: None });
        history.len() - 1
    }

    fn heard(&self, key: &Key, index: usize, told: Heard) -> Option<Answer> {
        let heard_at = self.now();
        let Ok((answer, decided)) = told else {
            key.open.fetch_add(1, Ordering::SeqCst);
            return None;
        };
        let mut history = key.history.lock().expect("no panic");
        history[index].heard = Some((heard_at, answer.clone()));
        history[index].decided = decided;
        Some(answer)
    }

    /// One caller, until the end.
    async fn call(self: Arc<Self>, caller: usize) {
        let mut rng = StdRng::seed_from_u64(caller.try_into().expect("few"));
        let mut channels: HashMap<usize, (usize, Channel)> = HashMap::new();
        let mut connections: HashMap<usize, (usize, Option<Connection>)> = HashMap::new();
        while !self.is_over() {
            let (key, nth) = self.take(&mut rng);
            let command = key.command(nth, &mut rng);
            let replica = rng.random_range(0..self.places.len());
            let place = self.place(replica);
            let known = channels.entry(replica).or_insert_with(|| (0, channel(place.address)));
            if known.0 != place.generation {
                *known = (place.generation, channel(place.address));
            }
            let is_cancel =
                matches!(command, Command::CancelPayment { .. } | Command::CancelToken { .. });
            let answer = if is_cancel && rng.random_bool(0.5) {
                let kept = connections.entry(replica).or_insert_with(|| (0, None));
                if kept.0 != place.generation {
                    *kept = (place.generation, None);
                }
                let (json, connection) = (place.json, &mut kept.1);
                self.operate_over_json(&key, caller, json, connection, command).await
            } else {
                self.operate(&key, caller, known.1.clone(), command).await
            };
            key.callers.fetch_sub(1, Ordering::SeqCst);
            if answer.is_none() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    /// When all is over: what each key is, asked of every replica, and once more what was answered before.
    async fn close(self: Arc<Self>, key: Arc<Key>, replicas: Vec<Channel>) {
        for command in key.last_words() {
            for replica in &replicas {
                let answer = self.operate(&key, CALLERS, replica.clone(), command.clone()).await;
                assert!(answer.is_some(), "invariant 14: {command:?} of {} unanswered", key.id);
            }
        }
    }
}

// ---------------------------------------------------------------- what goes wrong meanwhile

#[derive(Debug, Default)]
struct Faults {
    kills: usize,
    freezes: usize,
    /// Of the database itself.
    database_kills: usize,
    database_freezes: usize,
}

/// Kills or freezes a replica from time to time, or the database if it may; in the end all run.
fn trouble(
    race: &Race,
    replicas: &mut [Service],
    database: Option<&Cluster>,
    every: Duration,
) -> Faults {
    let mut rng = StdRng::seed_from_u64(42);
    let mut faults = Faults::default();
    let pause = |length: Duration| thread::sleep(length);
    for nth in 0.. {
        // time to come back in
        if race.begun.elapsed() + every * 2 >= race.ends - race.begun {
            break;
        }
        pause(every.mul_f64(rng.random_range(0.6..0.9)));
        let stands_still = every.mul_f64(rng.random_range(0.2..0.6));
        let index = rng.random_range(0..replicas.len());
        match (nth % 4, database) {
            (0, Some(database)) => {
                database.kill_nine();
                database.start_again();
                faults.database_kills += 1;
            }
            (2, Some(database)) => {
                database.pause();
                pause(stands_still);
                database.resume();
                faults.database_freezes += 1;
            }
            (1, Some(_)) | (0 | 2, None) => {
                replicas[index].kill_nine();
                pause(every.mul_f64(rng.random_range(0.0..0.1)));
                replicas[index].restart();
                race.moved(index, &replicas[index]);
                faults.kills += 1;
            }
            _ => {
                replicas[index].signal("STOP");
                pause(stands_still);
                replicas[index].signal("CONT");
                faults.freezes += 1;
            }
        }
    }
    faults
}

fn seconds() -> u64 {
    let set = env::var("ALIPAYPLUS_CANCEL_TESTS_RACE_S").ok();
    set.map_or(8, |text| text.parse().expect("ALIPAYPLUS_CANCEL_TESTS_RACE_S: whole seconds"))
}

/// Runs the race and checks all of it; `database` is killed and frozen as well.
fn race(replicas: &mut [Service], database: Option<&Cluster>) {
    let length = Duration::from_secs(seconds());
    let every = if length > Duration::from_secs(30) {
        Duration::from_secs(5)
    } else {
        Duration::from_millis(1_500)
    };
    let runtime = Runtime::new().expect("a runtime");
    let race = Arc::new(Race::new(replicas, length));
    let places = Arc::clone(&race);
    let at = move |replica| places.place(replica).address;
    let follower = Follower::start(&runtime, replicas.len(), at);
    let callers: Vec<_> =
        (0..CALLERS).map(|caller| runtime.spawn(Arc::clone(&race).call(caller))).collect();
    let faults = trouble(&race, replicas, database, every);
    for caller in callers {
        let ended = runtime.block_on(async {
            tokio::time::timeout(PATIENCE + length, caller).await.expect("callers come to an end")
        });
        ended.expect("a caller that heard nothing impossible");
    }

    let live = race.slots.iter().map(|slot| Arc::clone(&slot.lock().expect("no panic")));
    let mut keys: Vec<Arc<Key>> = live.collect();
    keys.append(&mut race.retired.lock().expect("no panic"));
    runtime.block_on(async {
        let places = (0..race.places.len()).map(|replica| race.place(replica));
        let channels: Vec<Channel> = places.map(|place| channel(place.address)).collect();
        let mut closing = JoinSet::new();
        for key in &keys {
            closing.spawn(Arc::clone(&race).close(Arc::clone(key), channels.clone()));
            if closing.len() >= CALLERS {
                closing.join_next().await.expect("one").expect("the last answers");
            }
        }
        while let Some(closed) = closing.join_next().await {
            closed.expect("the last answers");
        }
    });
    let ran = race.begun.elapsed();

    let begun = Instant::now();
    check(&keys);
    report(&keys, &faults, replicas.len(), ran, begun.elapsed());
    let mut expected = BTreeMap::new();
    for key in &keys {
        expected.extend(announcements(key));
    }
    let events = follower.finish(&runtime, expected.len());
    history::check_events(&events, &expected).unwrap_or_else(|told| panic!("{told}"));
    for replica in replicas {
        assert!(!replica.stderr().contains(MARK), "invariant 12: a token in the log");
    }
}

fn check(keys: &[Arc<Key>]) {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                while let Some(key) = keys.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let history = key.history.lock().expect("no panic");
                    if let Err(told) = history::check(&history) {
                        panic!("{}: {told}", key.id);
                    }
                }
            });
        }
    });
}

/// What was seen of it all, so that nobody takes an empty race for a good one.
fn report(keys: &[Arc<Key>], faults: &Faults, replicas: usize, ran: Duration, checked: Duration) {
    let mut answers = BTreeMap::<Text, usize>::new();
    let (mut operations, mut unknown, mut met, mut over_json) = (0, 0, 0, 0);
    for key in keys {
        let history = key.history.lock().expect("no panic");
        operations += history.len();
        for (index, operation) in history.iter().enumerate() {
            let Some((heard, answer)) = &operation.heard else {
                unknown += 1;
                continue;
            };
            over_json += usize::from(matches!(answer, Answer::Final { .. }));
            met += usize::from(history.get(index + 1).is_some_and(|next| next.sent < *heard));
            let text = match answer {
                Answer::Cancel { code, .. } | Answer::Final { code, .. } => code,
                Answer::Told(answer, _) | Answer::Token(answer) => answer,
                Answer::Payment(_) => "read",
                Answer::Active(Some(_)) => "active",
                Answer::Active(None) => "not active",
            };
            *answers.entry(text).or_default() += 1;
        }
    }
    let conflicts = answers.get("conflict").copied().unwrap_or_default();
    println!(
        "{replicas} replicas, {} keys, {operations} operations in {ran:.1?}, {met} met another of their key, {over_json} \
         over JSON, {conflicts} conflicts, {unknown} unknown, {faults:?}; checked in {checked:.1?}; {answers:?}",
        keys.len(),
    );
    let Faults { kills, freezes, database_kills, database_freezes } = faults;
    assert!(kills + freezes + database_kills + database_freezes > 0);
    assert!(met > 100, "they did not race");
    assert!(over_json > 0, "nobody heard anything over JSON");
    let common = ["SUCCESS", "INVALID_TOKEN", "proceed", "accepted", "conflict", "active"];
    let rare = [
        "CANCEL_WINDOW_EXCEED",
        "PROCESS_FAIL",
        "ACCESS_DENIED",
        "U",
        "return the funds",
        "refused: cancelled",
        "refused: revoked",
        "refused: dead",
    ];
    // a short race on a busy machine may not come to all of them
    let rare = rare.iter().filter(|_| operations > 40_000);
    for answer in common.iter().chain(rare) {
        assert!(answers.contains_key(answer), "nobody heard {answer}");
    }
}

#[test]
fn callers_who_race_at_two_replicas_on_postgresql_see_one_order_and_every_invariant() {
    let Some(postgres) = postgres::or_skip() else { return };
    let url = postgres.fresh_database();
    let mut replicas = [(); 2].map(|()| Service::start(Options::on(&url)));
    race(&mut replicas, None);
    let dump = postgres.dump(&url);
    assert!(dump.contains("INSERT INTO public.token"), "it is looked through");
    let marks = [MARK.to_owned(), MARK.bytes().map(|byte| format!("{byte:02x}")).collect()];
    for mark in marks {
        assert!(!dump.contains(&mark), "invariant 12: a token in the database");
    }
}

#[test]
fn callers_who_race_while_the_database_itself_is_killed_and_frozen_see_one_order_too() {
    if !postgres::is_there_or_skip() {
        return;
    }
    let database = Cluster::start(postgres::Options::default());
    let url = database.fresh_database();
    race(&mut [(); 2].map(|()| Service::start(Options::on(&url))), Some(&database));
}

#[test]
fn callers_who_race_while_the_embedded_store_is_killed_see_one_order_and_every_invariant() {
    race(&mut [Service::start(Options::embedded())], None);
}

// ---------------------------------------------------------------- the token race

/// Asks until there is an answer, as Alipay+ does; the answer and how often it was asked for.
async fn insist(key: &Key, channel: Channel, command: &Command) -> (Answer, usize) {
    let mut heard = vec![];
    while heard.len() < 10 {
        match key.ask(channel.clone(), command, CALL).await {
            Ok((answer, _)) => return (answer, heard.len() + 1),
            Err(Unknown(instead)) => heard.push(instead),
        }
    }
    panic!("invariant 14: nothing is wrong, and {heard:?}");
}

/// Records and cancels a new token at once; whether it was recorded first, and how often somebody had to ask again.
async fn race_for_a_token(nth: usize, record_at: Channel, cancel_at: Channel) -> (bool, usize) {
    let key = new_key(&mut StdRng::seed_from_u64(0));
    let (token, grant, acquirer, kind) = ("t0", "g1", "A", "access");
    let (expires_at, replaces, info) = (None, None, None);
    let record =
        Command::RecordToken(NewToken { token, grant, acquirer, kind, expires_at, replaces, info });
    let cancel = Command::CancelToken { token, acquirer };
    let recording = insist(&key, record_at, &record);
    let cancelling = insist(&key, cancel_at.clone(), &cancel);
    // either may get a head start
    let ((recorded, one), (cancelled, two)) = if nth.is_multiple_of(2) {
        tokio::join!(recording, cancelling)
    } else {
        let (cancelled, recorded) = tokio::join!(cancelling, recording);
        (recorded, cancelled)
    };
    let (look, three) = insist(&key, cancel_at, &Command::Introspect { token }).await;
    assert_eq!(look, Answer::Active(None), "{recorded:?} and {cancelled:?}");
    let Answer::Cancel { code, repeated, info: None } = cancelled else { panic!("{cancelled:?}") };
    assert!(!repeated || two > 1, "nobody else cancels it");
    let is_recorded = match (recorded, code) {
        (Answer::Token("accepted"), "SUCCESS") => true,
        (Answer::Token("refused: dead"), "INVALID_TOKEN") => false,
        // it was accepted, nobody heard of it, and then it was cancelled
        (Answer::Token("refused: revoked"), "SUCCESS") if one > 1 => true,
        both => panic!("{both:?} of one token"),
    };
    (is_recorded, one + two + three - 3)
}

/// Many of these at a time; whoever is first decides for both.
fn token_race(replicas: &[Service]) {
    const RACES: usize = 10_000;
    const AT_ONCE: usize = 64;
    let runtime = Runtime::new().expect("a runtime");
    let entered = runtime.enter();
    // one connection would keep the order in which they were sent
    let channels: Vec<Channel> = (0..8 * replicas.len())
        .map(|nth| channel(replicas[nth % replicas.len()].ports().grpc))
        .collect();
    drop(entered);
    let of = |nth: usize| channels[nth % channels.len()].clone();
    let (mut recorded, mut again) = (0, 0);
    runtime.block_on(async {
        let mut racing = JoinSet::new();
        for nth in 0..RACES + AT_ONCE {
            if nth < RACES {
                // every pair of connections, and so of replicas
                racing.spawn(race_for_a_token(nth, of(nth), of(nth / channels.len())));
            }
            if nth >= AT_ONCE {
                let (is_recorded, tries) = racing.join_next().await.expect("one").expect("a race");
                recorded += usize::from(is_recorded);
                again += tries;
            }
        }
    });
    println!("{RACES} tokens: {recorded} were recorded first; asked again {again} times");
    assert!((RACES / 100..RACES - RACES / 100).contains(&recorded), "they did not race");
    assert!(again < RACES / 100, "nothing is wrong, and {again} calls had no answer");
}

#[test]
fn a_token_is_recorded_or_dead_whoever_races_on_the_embedded_store() {
    token_race(&[Service::start(Options::embedded())]);
}

#[test]
fn a_token_is_recorded_or_dead_whoever_races_at_two_replicas_on_postgresql() {
    let Some(postgres) = postgres::or_skip() else { return };
    let url = postgres.fresh_database();
    token_race(&[(); 2].map(|()| Service::start(Options::on(&url))));
}

// ---------------------------------------------------------------- the checker sees a broken store

/// How the store of the simulation is broken.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Broken {
    No,
    /// One write that was answered is not there later.
    LosesAWrite,
    /// One answer is what would have been right some time ago.
    AnswersFromThePast,
    /// One caller is answered before it happens.
    AnswersEarly,
}

/// What callers of one key would hear of a store that is right, or broken once. None: it was not broken after all.
fn simulate(seed: u64, broken: Broken) -> Option<Vec<Operation>> {
    let mut rng = StdRng::seed_from_u64(seed);
    let key = new_key(&mut rng);
    let mut operations = vec![];
    for nth in 0..OPERATIONS_OF_A_KEY {
        let sent = u64::try_from(nth).expect("few") * 10 + rng.random_range(0..30);
        let happens = sent + rng.random_range(1..40);
        let heard_at = happens + rng.random_range(1..40);
        operations.push((happens, heard_at, sent, key.command(nth, &mut rng)));
    }
    operations.sort_by_key(|(happens, ..)| *happens);
    let breaks_at = rng.random_range(0..OPERATIONS_OF_A_KEY / 2);
    let (mut is_broken, mut history) = (broken == Broken::No, vec![]);
    let mut state = oracle::Oracle::default();
    let mut past = vec![];
    for (nth, (happens, heard_at, sent, command)) in operations.into_iter().enumerate() {
        let is_open = rng.random_bool(0.03);
        let mut heard_at = heard_at;
        let before = state.clone();
        past.push(before.clone());
        let mut answer = None;
        if !is_open || rng.random_bool(0.5) {
            answer = Some(history::apply(&mut state, &command)).filter(|_| !is_open);
        }
        if !is_broken && nth >= breaks_at && answer.is_some() {
            match broken {
                Broken::LosesAWrite if state != before => {
                    is_broken = true;
                    state = before;
                }
                Broken::AnswersFromThePast if nth >= 20 => {
                    let stale = history::apply(&mut past[nth - 20].clone(), &command);
                    is_broken = answer.as_ref() != Some(&stale);
                    answer = Some(stale);
                }
                Broken::AnswersEarly if state != before => {
                    is_broken = true;
                    heard_at = sent + 1;
                    assert!(heard_at <= happens);
                }
                Broken::No
                | Broken::LosesAWrite
                | Broken::AnswersFromThePast
                | Broken::AnswersEarly => {}
            }
        }
        let heard = answer.map(|answer| (heard_at, answer));
        history.push(Operation { caller: nth, command, sent, heard, decided: None });
    }
    is_broken.then_some(history)
}

#[test]
fn the_checker_finds_nothing_wrong_with_a_right_store_and_most_of_what_a_broken_one_does() {
    for (broken, least_percent) in [
        (Broken::No, 0),
        (Broken::LosesAWrite, 60),
        (Broken::AnswersFromThePast, 60),
        (Broken::AnswersEarly, 10),
    ] {
        let histories: Vec<_> = (0..400).filter_map(|seed| simulate(seed, broken)).collect();
        let found: Vec<String> =
            histories.iter().filter_map(|history| history::check(history).err()).collect();
        let percent = found.len() * 100 / histories.len();
        println!("{broken:?}: {} of {}", found.len(), histories.len());
        assert!(histories.len() > 200, "{broken:?}: {}", histories.len());
        assert!(percent >= least_percent, "{broken:?}: {percent} %");
        if broken == Broken::No {
            assert!(found.is_empty(), "{}", found[0]);
        }
    }
}
