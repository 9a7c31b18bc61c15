//! The model: every state that a few commands can lead to, and every way there, over the domain's own `decide`.
//!
//! A breadth-first search with hashed states. Written out rather than taken from a crate: the search is forty lines, a
//! shortest path to what is wrong comes with it, and the states can be numbered, which is what makes it small: a state of
//! the store is a number, and what a command does to it is worked out once, by [`plain::Store`], which calls the
//! domain. So there is no second set of rules that could drift from the code, save [`oracle`], which is a second
//! reading of the law on purpose and is compared at every step.
//!
//! Two kinds of [`World`]:
//!
//! - **alone**: one command after the other, every command of a large alphabet in every state, without bounds: the search
//!   ends because there are no more states.
//! - **two replicas**: each takes a command, decides under the lock, commits, answers. Between any two of these steps
//!   it may crash, the commit may fail, the answer may be lost, the other one may do something, the clock may pass the
//!   window's end, onboarding may end. Clients send each command at most so often, at any time, to any replica: a retry,
//!   a duplicate and a request that was delayed are the same thing here.
//!
//! In every state the invariants of docs/semantics.md are asserted: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 13, 14. Of an invariant
//! that speaks of what was answered, "after" means: decided after the answer left. An answer that was under way while the
//! other one left is older, whenever it arrives.
//!
//! `ALIPAYPLUS_CANCEL_MODEL_MORE=1` lets every client send everything once more: minutes, in a release build.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    env, fmt,
    hash::{BuildHasherDefault, Hasher},
    io::{self, Write as _},
    time::Instant,
};

use alipayplus_cancel::domain::{
    self,
    event::EventKind,
    key::Subject,
    payment::{Funds, Life, Payment, RefundState},
    policy::Policy,
    token::Token,
};

use self::{
    oracle::{Money, NewToken, Oracle, Text, Told},
    plain::{Answer, Circumstances, Command, DAY, EDGE, HOUR, NOON, Store, moment, payment_key},
};

#[allow(dead_code, reason = "the properties use more of it")]
#[path = "../it/oracle.rs"]
mod oracle;
#[allow(dead_code, reason = "the properties use more of it")]
#[path = "../it/plain.rs"]
mod plain;

// ---------------------------------------------------------------- worlds

/// Most commands of a world with replicas.
const COMMANDS_MAX: usize = 10;

/// The times at which something is decided: long before the window's end, at its last moment, behind it.
const CLOCK: [i64; 3] = [NOON + HOUR, EDGE, EDGE + 1];
/// When a token expires that does.
const EXPIRY: i64 = EDGE;

/// Whether there is time for more.
fn more() -> bool {
    env::var_os("ALIPAYPLUS_CANCEL_MODEL_MORE").is_some()
}

/// What is wrong with a store or a replica, to see that the model notices.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Broken {
    /// A replica answers before it commits.
    AnswersFirst,
    /// Two replicas may be between load and commit at once.
    NoLock,
    /// A commit writes the state and may lose its events.
    EventsApart,
    /// An answer to a commit that failed.
    FaultIsFinal,
    /// A crash takes back the last commit that was answered.
    Forgets,
}

struct World {
    name: Text,
    /// What can be asked, and how often; how often is of no account where nobody races.
    commands: Vec<(Command, u8)>,
    /// Two, which race, or none.
    replicas: bool,
    /// How many of [`CLOCK`] there are.
    clock: u8,
    /// Whether the store's clock may be another.
    clocks_disagree: bool,
    /// Whether it begins before `import complete`.
    onboarding: bool,
    broken: Option<Broken>,
}

impl World {
    const ALONE: Self = Self {
        name: "",
        commands: vec![],
        replicas: false,
        clock: 3,
        clocks_disagree: true,
        onboarding: true,
        broken: None,
    };
}

const fn cancel(acquirer: Text) -> Command {
    Command::CancelPayment { id: "p1", acquirer }
}

const fn told(fact: Text, acquirer: Option<Text>, amount: Option<Money>) -> Told {
    Told { id: "p1", fact, acquirer, amount, initiated_at: None, refund: None }
}

/// initiated, succeeded
const fn terms(fact: Text, acquirer: Text, amount: Money, initiated_at: i64) -> Command {
    Command::RecordPayment(Told {
        initiated_at: Some(initiated_at),
        ..told(fact, Some(acquirer), Some(amount))
    })
}

const fn refund(fact: Text, id: Text, acquirer: Option<Text>, amount: Option<Money>) -> Command {
    Command::RecordPayment(Told { refund: Some(id), ..told(fact, acquirer, amount) })
}

const PAID: Money = (100, "EUR");

const fn token(token: Text, grant: Text, replaces: Option<Text>) -> NewToken {
    NewToken { token, grant, acquirer: "A", kind: "access", expires_at: None, replaces, info: None }
}

const fn cancel_token(token: Text, acquirer: Text) -> Command {
    Command::CancelToken { token, acquirer }
}

/// One payment, everything that can be said of it, in any order and any number of times.
fn payment_alone() -> World {
    let mut commands = vec![cancel("A"), cancel("B")];
    for fact in ["initiated", "succeeded"] {
        for acquirer in ["A", "B"] {
            for initiated_at in [NOON, NOON + 12 * HOUR] {
                commands.push(terms(fact, acquirer, PAID, initiated_at));
            }
            commands.push(terms(fact, acquirer, (60, "EUR"), NOON));
        }
        commands.push(terms(fact, "A", (100, "USD"), NOON));
    }
    for (acquirer, amount) in
        [(None, None), (Some("A"), None), (Some("B"), Some(PAID)), (None, Some((60, "EUR")))]
    {
        commands.push(Command::RecordPayment(told("failed", acquirer, amount)));
    }
    for id in ["r1", "r2"] {
        commands.push(refund("refund started", id, None, Some((40, "EUR"))));
        commands.push(refund("refund started", id, Some("A"), Some((61, "EUR"))));
        commands.push(refund("refund done", id, None, None));
        commands.push(refund("refund failed", id, None, None));
    }
    commands.push(refund("refund started", "r1", Some("B"), Some((40, "EUR"))));
    commands.push(refund("refund started", "r1", None, Some((40, "USD"))));
    commands.push(refund("refund done", "r1", Some("A"), Some((40, "EUR"))));
    commands.push(refund("refund failed", "r1", Some("A"), Some((61, "EUR"))));
    for reference in ["ref1", "ref2"] {
        commands.push(Command::RecordFundReturn { id: "p1", reference });
    }
    let commands = commands.into_iter().map(|command| (command, 0)).collect();
    World { name: "a payment, alone", commands, ..World::ALONE }
}

/// Tokens of two grants, the same.
fn tokens_alone() -> World {
    let names = if more() { &["t1", "t2", "t3"][..] } else { &["t1", "t2"][..] };
    let mut commands = vec![];
    for name in names.iter().copied() {
        for replaces in [None, Some("t1"), Some("t2"), Some("t3")] {
            commands.push(Command::RecordToken(token(name, "g1", replaces)));
        }
        commands.push(cancel_token(name, "A"));
    }
    for new in [
        token("t1", "g2", None),
        token("t2", "g2", None),
        token("t2", "g2", Some("t1")),
        NewToken { acquirer: "B", ..token("t1", "g1", None) },
        NewToken { kind: "refresh", ..token("t2", "g1", None) },
        NewToken { expires_at: Some(EXPIRY), ..token("t1", "g1", None) },
        NewToken { info: Some("i1"), ..token("t2", "g1", Some("t1")) },
    ] {
        commands.push(Command::RecordToken(new));
    }
    commands.push(cancel_token("t1", "B"));
    for grant in ["g1", "g2"] {
        commands.push(Command::RevokeAuthorization { grant });
    }
    let commands = commands.into_iter().map(|command| (command, 0)).collect();
    let clocks_disagree = false;
    World { name: "tokens, alone", commands, clock: 2, clocks_disagree, ..World::ALONE }
}

/// Alipay+ retries, another acquirer tries, the core asks, debits and tells late, the executor returns the money.
fn late_success() -> World {
    World {
        name: "late success at two replicas",
        commands: vec![
            (cancel("A"), 2),
            (cancel("B"), 1),
            (terms("initiated", "A", PAID, NOON), 1),
            (terms("succeeded", "A", PAID, NOON), 2),
            (Command::RecordPayment(told("failed", Some("A"), None)), 1),
            (Command::RecordFundReturn { id: "p1", reference: "ref1" }, 2),
        ],
        replicas: true,
        clock: 1,
        clocks_disagree: false,
        ..World::ALONE
    }
}

/// A refund and the window's end race with the cancel.
fn refund_and_window() -> World {
    World {
        name: "refunds and the window at two replicas",
        commands: vec![
            (cancel("A"), 3),
            (terms("succeeded", "A", PAID, NOON), 1),
            (refund("refund started", "r1", Some("A"), Some((40, "EUR"))), 2),
            (refund("refund done", "r1", None, None), 1),
            (refund("refund failed", "r1", None, None), 1),
        ],
        replicas: true,
        onboarding: false,
        ..World::ALONE
    }
}

/// An exchange, the wallet's revocation and three cancels race.
fn exchange() -> World {
    World {
        name: "an exchange at two replicas",
        commands: vec![
            (
                Command::RecordToken(NewToken {
                    expires_at: Some(EXPIRY),
                    ..token("t1", "g1", None)
                }),
                1,
            ),
            (Command::RecordToken(token("t2", "g1", Some("t1"))), 2),
            (cancel_token("t1", "A"), 1),
            (cancel_token("t2", "A"), 1),
            (Command::RevokeAuthorization { grant: "g1" }, 1),
        ],
        replicas: true,
        clock: 2,
        clocks_disagree: false,
        onboarding: false,
        broken: None,
    }
}

/// A token's record and its cancel race, before and after `import complete`.
fn dead_on_arrival() -> World {
    World {
        name: "a record and a cancel of one token at two replicas",
        commands: vec![
            (Command::RecordToken(token("t1", "g1", None)), 2),
            (Command::RecordToken(token("t3", "g1", None)), 1),
            (cancel_token("t1", "A"), 2),
            (cancel_token("t1", "B"), 1),
            (cancel_token("t3", "A"), 1),
        ],
        replicas: true,
        clock: 1,
        clocks_disagree: false,
        ..World::ALONE
    }
}

// ---------------------------------------------------------------- states

/// What a replica is at.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Replica {
    Idle,
    /// Decided, nothing committed.
    Deciding {
        command: u8,
        step: u32,
    },
    /// Committed, not answered.
    Answering {
        command: u8,
        step: u32,
    },
    /// Answered, not committed. Of [`Broken::AnswersFirst`] alone.
    Late {
        step: u32,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct State {
    /// What is durable, by number.
    store: u32,
    /// What was answered so far, by number.
    heard: u32,
    clock: u8,
    onboarding: bool,
    left: [u8; COMMANDS_MAX],
    replicas: [Replica; 2],
}

/// All that was answered, and what the core told of debits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Heard {
    /// Definitive results by API, key and acquirer.
    results: BTreeMap<(Text, Text, Text), Text>,
    /// Payments whose cancel was answered SUCCESS.
    cancelled: bool,
    /// Grants of which CancelToken SUCCESS or a revocation was answered.
    revoked: BTreeSet<Text>,
    /// Tokens of which INVALID_TOKEN was answered.
    dead: BTreeSet<Text>,
    /// Tokens whose record was answered ACCEPTED, with their grants.
    accepted: BTreeMap<Text, Text>,
    /// What was debited: the first success that was taken.
    debited: Option<Money>,
}

/// What a command does in one state of the store.
struct Step {
    next: u32,
    answer: Answer,
    /// What it says of a debit.
    debited: Option<Money>,
}

/// How a state was come by.
#[derive(Clone, Copy)]
enum Action {
    Begin(u8, bool),
    Commit(u8),
    /// The commit is not made, and nobody is told more than "ask again"; or the replica crashed before it.
    Fails(u8),
    /// The commit is made and its answer lost; or the replica crashed behind it.
    Unheard(u8),
    Answer(u8),
    Clock,
    ImportComplete,
}

/// What is wrong, and the shortest way to it.
struct Wrong {
    what: String,
    path: Vec<String>,
    states: usize,
    depth: usize,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\nafter {} states, at depth {}:", self.what, self.states, self.depth)?;
        self.path.iter().try_for_each(|line| writeln!(f, "  {line}"))
    }
}

struct Explored {
    states: usize,
    transitions: usize,
    depth: usize,
    stores: usize,
}

type Checked<T = ()> = Result<T, String>;

fn hold(holds: bool, what: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(what()) }
}

/// A hash for millions of small states in a debug build; they come from nobody who would make them collide.
#[derive(Default)]
struct Mix(u64);

impl Hasher for Mix {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u8(*byte);
        }
    }

    fn write_u8(&mut self, byte: u8) {
        self.write_u64(u64::from(byte));
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(u64::from(word));
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }
}

type Fast = BuildHasherDefault<Mix>;

// ---------------------------------------------------------------- the machine

/// Store, command, clock, whether the clocks agree, whether onboarding.
type Question = (u32, u8, u8, bool, bool);

struct Machine<'a> {
    world: &'a World,
    stores: Vec<Store>,
    store_ids: HashMap<String, u32>,
    heards: Vec<Heard>,
    heard_ids: HashMap<Heard, u32>,
    steps: Vec<Step>,
    step_ids: HashMap<Question, u32, Fast>,
    /// Pairs of store and heard, and clock, of which everything holds.
    sound: HashSet<(u32, u32, u8), Fast>,
}

impl<'a> Machine<'a> {
    fn new(world: &'a World) -> Self {
        let mut machine = Self {
            world,
            stores: vec![],
            store_ids: HashMap::new(),
            heards: vec![],
            heard_ids: HashMap::new(),
            steps: vec![],
            step_ids: HashMap::default(),
            sound: HashSet::default(),
        };
        machine.number(Store::default());
        machine.remember(Heard::default());
        machine
    }

    fn number(&mut self, store: Store) -> u32 {
        let id = u32::try_from(self.stores.len()).expect("few");
        // the domain's types have no hash: their text is one, as every field is in it
        let known = *self.store_ids.entry(format!("{store:?}")).or_insert(id);
        if known == id {
            self.stores.push(store);
        }
        known
    }

    fn remember(&mut self, heard: Heard) -> u32 {
        let id = u32::try_from(self.heards.len()).expect("few");
        if let Some(known) = self.heard_ids.get(&heard) {
            return *known;
        }
        self.heard_ids.insert(heard.clone(), id);
        self.heards.push(heard);
        id
    }

    fn store(&self, id: u32) -> &Store {
        &self.stores[usize::try_from(id).expect("small")]
    }

    fn heard(&self, id: u32) -> &Heard {
        &self.heards[usize::try_from(id).expect("small")]
    }

    fn step(&self, id: u32) -> &Step {
        &self.steps[usize::try_from(id).expect("small")]
    }

    fn command(&self, index: u8) -> &'a Command {
        &self.world.commands[usize::from(index)].0
    }

    /// What the command does: worked out once for each state of the store, by the domain and by the oracle.
    fn decide(&mut self, question: Question) -> Checked<u32> {
        if let Some(known) = self.step_ids.get(&question) {
            return Ok(*known);
        }
        let (id, index, clock, clock_agrees, onboarding) = question;
        let command = *self.command(index);
        let now = CLOCK[usize::from(clock)];
        let how = circumstances(now, clock_agrees, onboarding);
        let before = self.store(id).clone();
        let mut after = before.clone();
        let answer = after.execute(command, &how);

        oracle_says_the_same(&before, &after, command, &answer, &how)?;
        hold(after.log.starts_with(&before.log), || "invariant 9: the log was changed".to_owned())?;
        repeats_change_nothing(&after, command, &answer, &how)?;
        refusals_have_a_row(&before, command, &answer, &how)?;

        let debited = if let Command::RecordPayment(told) = command
            && told.fact == "succeeded"
            && answer.text != "conflict"
        {
            told.amount
        } else {
            None
        };
        let next = self.number(after);
        let step = u32::try_from(self.steps.len()).expect("few");
        self.steps.push(Step { next, answer, debited });
        self.step_ids.insert(question, step);
        Ok(step)
    }

    /// What is durable now, and what the core said by it.
    fn commit(&mut self, state: &mut State, step: u32) {
        let Step { next, debited, .. } = *self.step(step);
        state.store = next;
        if let Some(debited) = debited {
            let mut heard = self.heard(state.heard).clone();
            heard.debited.get_or_insert(debited);
            state.heard = self.remember(heard);
        }
    }

    /// The answer leaves.
    fn answer(&mut self, state: &mut State, command: u8, step: u32) -> Checked {
        let text = self.step(step).answer.text;
        let mut heard = self.heard(state.heard).clone();
        let mut result = |api, key, acquirer| -> Checked {
            if text == "U" {
                return Ok(());
            }
            let first = *heard.results.entry((api, key, acquirer)).or_insert(text);
            hold(first == text, || format!("invariant 1: {api} of {key}: {first}, then {text}"))
        };
        match *self.command(command) {
            Command::CancelPayment { id, acquirer } => {
                result("cancelPayment", id, acquirer)?;
                heard.cancelled |= text == "SUCCESS";
            }
            Command::CancelToken { token, acquirer } => {
                result("cancelToken", token, acquirer)?;
                if text == "SUCCESS" {
                    let grant = grant_of(self.store(state.store), token);
                    heard.revoked.insert(grant.ok_or("SUCCESS for a token that is not recorded")?);
                }
                if text == "INVALID_TOKEN" {
                    heard.dead.insert(token);
                }
            }
            Command::RecordToken(new) if text == "accepted" => {
                heard.accepted.insert(new.token, new.grant);
            }
            Command::RevokeAuthorization { grant } if text == "accepted" => {
                heard.revoked.insert(grant);
            }
            Command::RecordToken(_)
            | Command::RevokeAuthorization { .. }
            | Command::RecordPayment(_)
            | Command::RecordFundReturn { .. } => {}
        }
        state.heard = self.remember(heard);
        Ok(())
    }

    /// Invariants 3 and 7, of what is decided after an answer left.
    fn may_be_answered(&self, heard: u32, command: u8, step: u32) -> Checked {
        let heard = self.heard(heard);
        let text = self.step(step).answer.text;
        match self.command(command) {
            Command::RecordPayment(told) if heard.cancelled => {
                let forbidden = text == "proceed"
                    || text == "accepted" && ["succeeded", "refund started"].contains(&told.fact);
                hold(!forbidden, || format!("invariant 3: {text} to {} after SUCCESS", told.fact))
            }
            Command::RecordToken(new) if text == "accepted" => {
                hold(!heard.revoked.contains(new.grant), || {
                    format!("invariant 7: {} was accepted into a revoked grant", new.token)
                })?;
                hold(!heard.dead.contains(new.token), || {
                    format!("invariant 8: {} was accepted, and is dead", new.token)
                })
            }
            Command::CancelToken { token, .. } if text == "INVALID_TOKEN" => {
                let taken = heard.accepted.contains_key(token);
                hold(!taken, || format!("invariant 10: INVALID_TOKEN for {token}, recorded before"))
            }
            Command::RecordPayment(_)
            | Command::RecordToken(_)
            | Command::CancelToken { .. }
            | Command::CancelPayment { .. }
            | Command::RecordFundReturn { .. }
            | Command::RevokeAuthorization { .. } => Ok(()),
        }
    }

    /// Everything that holds in a state.
    fn check(&mut self, state: &State) -> Checked {
        if !self.sound.insert((state.store, state.heard, state.clock)) {
            return Ok(());
        }
        let (store, heard) = (self.store(state.store), self.heard(state.heard));
        what_was_answered_is_durable(store, heard)?;
        payments_are_sound(store, heard)?;
        tokens_are_sound(store, heard)?;
        positions_are_gapless(store)?;
        it_can_be_ended(store, CLOCK[usize::from(state.clock)])
    }

    // ------------------------------------------------------------ what can happen next

    fn begin(&mut self) -> State {
        let mut left = [0; COMMANDS_MAX];
        if self.world.replicas {
            let more = u8::from(more());
            for (place, (_, most)) in left.iter_mut().zip(&self.world.commands) {
                *place = most + more;
            }
        }
        let onboarding = self.world.onboarding;
        State { store: 0, heard: 0, clock: 0, onboarding, left, replicas: [Replica::Idle; 2] }
    }

    fn successors(&mut self, state: &State, visit: &mut Vec<(Action, State)>) -> Checked {
        if state.clock + 1 < self.world.clock {
            visit.push((Action::Clock, State { clock: state.clock + 1, ..*state }));
        }
        if state.onboarding {
            visit.push((Action::ImportComplete, State { onboarding: false, ..*state }));
        }
        let commands = u8::try_from(self.world.commands.len()).expect("few");
        for command in 0..commands {
            for agree in [true, false] {
                // nothing else asks for it
                let asks = matches!(self.command(command), Command::CancelPayment { .. });
                if agree || asks && self.world.clocks_disagree {
                    self.ask(state, command, agree, visit)?;
                }
            }
        }
        for replica in 0..2u8 {
            self.go_on(state, replica, visit)?;
        }
        for (_, state) in visit.iter_mut() {
            // the two are alike
            state.replicas.sort_unstable();
        }
        Ok(())
    }

    fn ask(
        &mut self,
        state: &State,
        command: u8,
        agree: bool,
        visit: &mut Vec<(Action, State)>,
    ) -> Checked {
        let asks_onboarding = matches!(
            self.command(command),
            Command::CancelPayment { .. } | Command::CancelToken { .. }
        );
        let onboarding = state.onboarding && asks_onboarding;
        // the record of a token does not ask for the time
        let timed = !matches!(self.command(command), Command::RecordToken(_));
        let clock = if timed { state.clock } else { 0 };
        let question = (state.store, command, clock, agree, onboarding);
        let mut next = *state;
        if !self.world.replicas {
            let step = self.decide(question)?;
            self.may_be_answered(state.heard, command, step)?;
            self.commit(&mut next, step);
            self.answer(&mut next, command, step)?;
            visit.push((Action::Begin(command, agree), next));
            return Ok(());
        }
        let idle = state.replicas.iter().position(|replica| *replica == Replica::Idle);
        let locked = state
            .replicas
            .iter()
            .any(|replica| matches!(replica, Replica::Deciding { .. } | Replica::Late { .. }));
        let unlocked = !locked || self.world.broken == Some(Broken::NoLock);
        let left = &mut next.left[usize::from(command)];
        let (Some(replica), true, true) = (idle, unlocked, *left > 0) else { return Ok(()) };
        *left -= 1;
        let step = self.decide(question)?;
        self.may_be_answered(state.heard, command, step)?;
        next.replicas[replica] = Replica::Deciding { command, step };
        visit.push((Action::Begin(command, agree), next));
        Ok(())
    }

    fn go_on(&mut self, state: &State, replica: u8, visit: &mut Vec<(Action, State)>) -> Checked {
        let place = usize::from(replica);
        let with = |state: &State, now| {
            let mut next = *state;
            next.replicas[place] = now;
            next
        };
        let broken = self.world.broken;
        match state.replicas[place] {
            Replica::Idle => {}
            Replica::Deciding { command, step } => {
                visit.push((Action::Fails(replica), with(state, Replica::Idle)));
                if broken == Some(Broken::FaultIsFinal) {
                    let mut next = with(state, Replica::Idle);
                    self.answer(&mut next, command, step)?;
                    visit.push((Action::Fails(replica), next));
                }
                if broken == Some(Broken::AnswersFirst) {
                    let mut next = with(state, Replica::Late { step });
                    self.answer(&mut next, command, step)?;
                    visit.push((Action::Answer(replica), next));
                    return Ok(());
                }
                let mut next = with(state, Replica::Answering { command, step });
                self.commit(&mut next, step);
                visit.push((Action::Commit(replica), next));
                let mut next = with(state, Replica::Idle);
                self.commit(&mut next, step);
                visit.push((Action::Unheard(replica), next));
                if broken == Some(Broken::EventsApart) {
                    let mut next = with(state, Replica::Answering { command, step });
                    self.commit(&mut next, step);
                    let log = self.store(state.store).log.clone();
                    next.store = self.number(Store { log, ..self.store(next.store).clone() });
                    visit.push((Action::Commit(replica), next));
                }
            }
            Replica::Answering { command, step } => {
                let mut next = with(state, Replica::Idle);
                self.answer(&mut next, command, step)?;
                visit.push((Action::Answer(replica), next));
                if broken == Some(Broken::Forgets) {
                    visit.push((Action::Fails(replica), State { store: 0, ..next }));
                }
                // the answer is lost, or the replica crashes
                visit.push((Action::Unheard(replica), with(state, Replica::Idle)));
            }
            Replica::Late { step } => {
                let mut next = with(state, Replica::Idle);
                self.commit(&mut next, step);
                visit.push((Action::Commit(replica), next));
                visit.push((Action::Fails(replica), with(state, Replica::Idle)));
            }
        }
        Ok(())
    }

    fn print(&self, action: Action) -> String {
        match action {
            Action::Begin(command, agree) => {
                let doubt = if agree { "" } else { ", the clocks disagree" };
                format!("{:?}{doubt}", self.command(command))
            }
            Action::Commit(replica) => format!("replica {replica} commits"),
            Action::Fails(replica) => format!("replica {replica} does not commit, or crashes"),
            Action::Unheard(replica) => format!("replica {replica} commits; nobody hears of it"),
            Action::Answer(replica) => format!("replica {replica} answers"),
            Action::Clock => "the clock goes on".to_owned(),
            Action::ImportComplete => "import complete".to_owned(),
        }
    }
}

/// Everything, breadth first.
fn explore(world: &World) -> Result<Explored, Box<Wrong>> {
    let mut machine = Machine::new(world);
    let first = machine.begin();
    let mut numbers: HashMap<State, usize, Fast> = HashMap::default();
    numbers.insert(first, 0);
    // where from, how, how deep
    let mut ways: Vec<(usize, Action, usize)> = vec![(0, Action::Clock, 0)];
    let mut waiting = VecDeque::from([(0, first)]);
    let (mut transitions, mut visit) = (0, vec![]);
    while let Some((number, state)) = waiting.pop_front() {
        visit.clear();
        let depth = ways[number].2;
        let stepped = machine.successors(&state, &mut visit);
        transitions += visit.len();
        let wrong = |machine: &Machine<'_>, ways: &[(usize, Action, usize)], last, what| {
            let (mut path, mut at) = (vec![last], number);
            while at > 0 {
                path.push(machine.print(ways[at].1));
                at = ways[at].0;
            }
            path.reverse();
            Box::new(Wrong { what, path, states: ways.len(), depth: depth + 1 })
        };
        if let Err(what) = stepped {
            return Err(wrong(&machine, &ways, "(the next step)".to_owned(), what));
        }
        for (action, next) in visit.drain(..) {
            if numbers.contains_key(&next) {
                continue;
            }
            if let Err(what) = machine.check(&next) {
                return Err(wrong(&machine, &ways, machine.print(action), what));
            }
            let id = ways.len();
            numbers.insert(next, id);
            ways.push((number, action, depth + 1));
            waiting.push_back((id, next));
        }
    }
    let depth = ways.last().map_or(0, |way| way.2);
    Ok(Explored { states: ways.len(), transitions, depth, stores: machine.stores.len() })
}

// ---------------------------------------------------------------- the two readings

fn circumstances(now: i64, clock_agrees: bool, onboarding: bool) -> Circumstances {
    let asked = domain::Asked {
        now: moment(now),
        clock_agrees,
        onboarding,
        tombstone_allowed: true,
        by: None,
        trace: None,
    };
    Circumstances { asked, policy: Policy::default() }
}

/// The oracle answers, announces and keeps the same.
fn oracle_says_the_same(
    before: &Store,
    after: &Store,
    command: Command,
    answer: &Answer,
    how: &Circumstances,
) -> Checked {
    let mut oracle: Oracle = plain::store_view(before);
    let unchanged = oracle.clone();
    let asked = oracle::Asked {
        now: how.asked.now.unix_ms,
        clock_agrees: how.asked.clock_agrees,
        onboarding: how.asked.onboarding,
        enforce: true,
        past_window: plain::past_alipayplus,
    };
    let ((text, events), info) = plain::ask_oracle(&mut oracle, &command, asked);
    let same = answer.text == text
        && answer.events == events
        && answer.info == info
        && answer.recorded == (oracle != unchanged)
        && plain::store_view(after) == oracle;
    hold(same, || {
        format!("the oracle says {text}, {events:?}, {oracle:?}; the domain {answer:?}, {after:?}")
    })
}

/// Invariant 13; what is definitive also outlives the clock, its doubts, onboarding and the settings.
fn repeats_change_nothing(
    after: &Store,
    command: Command,
    answer: &Answer,
    how: &Circumstances,
) -> Checked {
    let expected = Answer { events: vec![], recorded: false, ..answer.clone() };
    let mut ways = vec![how.clone()];
    let cancels = matches!(command, Command::CancelPayment { .. } | Command::CancelToken { .. });
    if cancels && answer.text != "U" {
        for agrees in [true, false] {
            let now = how.asked.now.unix_ms + 3_650 * DAY;
            ways.push(circumstances(now, agrees, agrees));
        }
    }
    for how in ways {
        let mut again = after.clone();
        let repeated = again.execute(command, &how);
        let same = repeated == expected && again == *after;
        hold(same, || format!("invariant 13: {answer:?}, then {repeated:?}"))?;
    }
    Ok(())
}

/// Invariant 10: a refusal that is for ever has its reason in the state.
fn refusals_have_a_row(
    before: &Store,
    command: Command,
    answer: &Answer,
    how: &Circumstances,
) -> Checked {
    let text = answer.text;
    match command {
        Command::CancelPayment { id, acquirer } => {
            let payment = before.payments.get(&payment_key(id));
            if !answer.recorded {
                let reason = match (payment, text) {
                    (Some(payment), "ACCESS_DENIED") => {
                        payment.acquirer.as_ref().is_some_and(|bound| bound.as_str() != acquirer)
                    }
                    (Some(payment), "U") => {
                        payment.life() == Life::Succeeded && payment.verdict().is_none()
                    }
                    (Some(payment), _) => payment.verdict().is_some(),
                    (None, _) => text == "U" && how.asked.onboarding,
                };
                return hold(reason, || format!("invariant 10: {text}, of {payment:?}"));
            }
            let reason = match payment {
                None => text == "SUCCESS" && !how.asked.onboarding,
                Some(payment) => verdict_has_a_row(payment, text, how),
            };
            hold(reason, || format!("invariant 10: {text}, recorded of {payment:?}"))
        }
        Command::CancelToken { token, .. } if text == "INVALID_TOKEN" => {
            let known = before.tokens.get(&plain::token_key(token));
            let reason = match known {
                None => !how.asked.onboarding,
                Some(Token::DeadOnArrival(_)) => true,
                Some(Token::Recorded(_)) => false,
            };
            hold(reason, || format!("invariant 10: INVALID_TOKEN of {known:?}"))
        }
        Command::CancelToken { .. }
        | Command::RecordPayment(_)
        | Command::RecordFundReturn { .. }
        | Command::RecordToken(_)
        | Command::RevokeAuthorization { .. } => Ok(()),
    }
}

fn verdict_has_a_row(payment: &Payment, text: Text, how: &Circumstances) -> bool {
    let succeeded = payment.life() == Life::Succeeded;
    let refund = |state| payment.refunds().iter().any(|refund| refund.state == state);
    let initiated_at = payment.terms().map(|terms| terms.initiated_at.unix_ms);
    let late = initiated_at.is_some_and(|at| plain::past_alipayplus(at, how.asked.now.unix_ms));
    match text {
        "CANCEL_WINDOW_EXCEED" => succeeded && late && how.asked.clock_agrees,
        "PROCESS_FAIL" => succeeded && !late && refund(RefundState::Done),
        "SUCCESS" => {
            !succeeded || !late && !refund(RefundState::Done) && !refund(RefundState::Reserved)
        }
        _ => false,
    }
}

// ---------------------------------------------------------------- the invariants of a state

fn grant_of(store: &Store, token: Text) -> Option<Text> {
    match store.tokens.get(&plain::token_key(token))? {
        Token::Recorded(recorded) => Some(plain::name(recorded.authorization.as_str())),
        Token::DeadOnArrival(_) => None,
    }
}

/// Invariant 2, and 1 with it: whatever was answered for ever is what the store would answer now.
fn what_was_answered_is_durable(store: &Store, heard: &Heard) -> Checked {
    for ((api, key, acquirer), first) in &heard.results {
        let command = match *api {
            "cancelPayment" => Command::CancelPayment { id: key, acquirer },
            _ => Command::CancelToken { token: key, acquirer },
        };
        let answer = store.clone().execute(command, &circumstances(NOON, true, false));
        let same = answer.text == *first && !answer.recorded;
        hold(same, || format!("invariant 2: {first} was answered to {command:?}, now {answer:?}"))?;
    }
    for (token, grant) in &heard.accepted {
        let kept = grant_of(store, token) == Some(grant);
        hold(kept, || format!("invariant 2: {token} was accepted and is not there"))?;
    }
    Ok(())
}

/// Invariants 4, 5 and 6.
fn payments_are_sound(store: &Store, heard: &Heard) -> Checked {
    let payment = store.payments.get(&payment_key("p1"));
    let subject = Subject::Payment(payment_key("p1"));
    let funds = payment.map_or(Funds::None, Payment::funds);
    hold(!(heard.cancelled && funds == Funds::Held), || {
        "invariant 4: the funds are held after SUCCESS".to_owned()
    })?;
    let cancelled = payment.is_some_and(|payment| payment.inquiry().is_some());
    let returns: Vec<Money> = (store.log.iter())
        .filter(|(_, _, event)| event.subject == subject)
        .filter_map(|(_, _, event)| match event.kind {
            EventKind::FundReturnDue(amount) => Some(plain::money(amount)),
            EventKind::PaymentCancelled | EventKind::AuthorizationRevoked => None,
        })
        .collect();
    let owed: Vec<Money> = heard.debited.filter(|_| cancelled).into_iter().collect();
    hold(returns == owed, || format!("invariant 5: returns {returns:?}, owed {owed:?}"))?;
    let owing = matches!(funds, Funds::ReturnDue | Funds::Returned);
    hold(owing != owed.is_empty(), || format!("invariant 5: funds {funds:?}, owed {owed:?}"))?;
    let told = store.count("payment-cancelled", &subject);
    hold(told == usize::from(cancelled), || {
        format!("invariant 6: PaymentCancelled {told} times, cancelled: {cancelled}")
    })
}

/// Invariants 6, 7 and 8.
fn tokens_are_sound(store: &Store, heard: &Heard) -> Checked {
    for grant in ["g1", "g2"] {
        let key = plain::grant_key(grant);
        let revoked = store.grants.get(&key).is_some_and(|grant| grant.revoked.is_some());
        let told = store.count("authorization-revoked", &Subject::Authorization(key));
        hold(told == usize::from(revoked), || {
            format!("invariant 6: AuthorizationRevoked {told} times, revoked: {revoked}")
        })?;
    }
    for token in ["t1", "t2", "t3"] {
        for now in CLOCK {
            if !store.is_active(token, now) {
                continue;
            }
            let grant = grant_of(store, token).ok_or("a token is active and not recorded")?;
            hold(!heard.revoked.contains(grant), || format!("invariant 7: {token} is active"))?;
            hold(!heard.dead.contains(token), || format!("invariant 8: {token} is active"))?;
        }
    }
    Ok(())
}

/// Invariant 9.
fn positions_are_gapless(store: &Store) -> Checked {
    let mut heads = BTreeMap::<u16, u64>::new();
    let mut ids = BTreeSet::new();
    for (partition, position, event) in &store.log {
        let head = heads.entry(*partition).or_default();
        *head += 1;
        hold(position == head, || format!("invariant 9: {position} after {head}"))?;
        hold(ids.insert(event.id().0), || format!("two events have one id: {event:?}"))?;
    }
    Ok(())
}

/// Invariant 14, as far as decisions go: with faults and doubts over, a cancel is answered for ever, at the latest once
/// the refunds that are under way have ended; and money that is due can be returned.
fn it_can_be_ended(store: &Store, now: i64) -> Checked {
    let how = circumstances(now, true, false);
    for acquirer in ["A", "B"] {
        let mut store = store.clone();
        let command = Command::CancelPayment { id: "p1", acquirer };
        if store.execute(command, &how).text != "U" {
            continue;
        }
        for id in ["r1", "r2"] {
            store.execute(refund("refund failed", id, None, None), &how);
        }
        let text = store.execute(command, &how).text;
        hold(text != "U", || "invariant 14: U for ever".to_owned())?;
    }
    for token in ["t1", "t2", "t3"] {
        let text = store.clone().execute(cancel_token(token, "A"), &how).text;
        hold(text != "U", || "invariant 14: U for ever".to_owned())?;
    }
    let due = store.payments.get(&payment_key("p1")).map(Payment::funds) == Some(Funds::ReturnDue);
    let command = Command::RecordFundReturn { id: "p1", reference: "ref1" };
    let text = store.clone().execute(command, &how).text;
    hold(!due || text == "accepted", || format!("invariant 14: a due return: {text}"))
}

// ---------------------------------------------------------------- the tests

/// Explores; tells how much there was.
#[track_caller]
fn assert_sound(world: &World) -> Explored {
    let begun = Instant::now();
    let explored = match explore(world) {
        Ok(explored) => explored,
        Err(wrong) => panic!("{}: {wrong}", world.name),
    };
    let Explored { states, transitions, depth, stores } = &explored;
    // past the capture of the test runner: a count that nobody sees may become 1 and nobody notices
    let line = format!(
        "model: {}: {states} states, {transitions} transitions, depth {depth}, {stores} states of the store, {:.1} s\n",
        world.name,
        begun.elapsed().as_secs_f64()
    );
    drop(io::stderr().write_all(line.as_bytes()));
    explored
}

#[test]
fn one_payment_keeps_every_invariant_in_every_state() {
    let explored = assert_sound(&payment_alone());
    assert!(explored.states > 4_000, "{}", explored.states);
}

#[test]
fn tokens_of_two_grants_keep_every_invariant_in_every_state() {
    let explored = assert_sound(&tokens_alone());
    assert!(explored.states > 4_000, "{}", explored.states);
}

#[test]
fn a_late_success_at_two_replicas_that_crash_keeps_every_invariant() {
    assert_sound(&late_success());
}

#[test]
fn refunds_and_the_window_at_two_replicas_that_crash_keep_every_invariant() {
    assert_sound(&refund_and_window());
}

#[test]
fn an_exchange_of_tokens_at_two_replicas_that_crash_keeps_every_invariant() {
    assert_sound(&exchange());
}

#[test]
fn a_token_is_recorded_or_dead_at_two_replicas_that_crash() {
    assert_sound(&dead_on_arrival());
}

#[test]
fn a_store_or_a_replica_that_is_broken_is_found() {
    for (broken, invariant) in [
        (Broken::AnswersFirst, "invariant 2"),
        (Broken::NoLock, "invariant"),
        (Broken::EventsApart, "invariant"),
        (Broken::FaultIsFinal, "invariant 2"),
        (Broken::Forgets, "invariant 2"),
    ] {
        for world in [late_success(), exchange()] {
            let world = World { broken: Some(broken), ..world };
            let Err(wrong) = explore(&world) else { panic!("{broken:?} is not found") };
            assert!(wrong.what.starts_with(invariant), "{broken:?}: {wrong}");
            let line = format!(
                "model: {broken:?} is found in {} after {} states, at depth {}\n",
                world.name, wrong.states, wrong.depth
            );
            drop(io::stderr().write_all(line.as_bytes()));
        }
    }
}
