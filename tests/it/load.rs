//! A load from both fronts at a service that is killed and frozen meanwhile, and a ledger of what was heard.
//!
//! Each caller takes one key after the other and asks, as Alipay+ does, until it has an answer to each step. What was
//! answered goes through [`crate::history`], is asked again after every restart, and has to be told by the feed, once. The
//! ledger has a few bytes a key, so that it holds for hours.

use std::{
    collections::{HashMap, HashSet},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use tokio::{
    runtime::Runtime,
    task::JoinSet,
    time::{sleep, timeout},
};
use tonic::{Code, Status, transport::Channel};

use crate::{
    asked::{FRESH, GRANTS, Heard, Key, PSP, TOKENS, Unknown, name},
    harness::{
        PATIENCE, eventually,
        grpc::{
            Grpc, endpoint,
            wire::{
                AcknowledgeRequest, CancellationEvent, EventKind, GetLagRequest, PartitionPosition,
                RecordFundReturnAnswer, RecordFundReturnRequest, SubscribeRequest,
                feed_service_client::FeedServiceClient,
                payment_service_client::PaymentServiceClient,
            },
        },
        json::{self, Api, Connection, Json, payment_body, token_body},
        service::Service,
        unique,
    },
    history::{self, Answer, Command, Operation, PAYMENT},
    oracle::{NewToken, Text, Told},
};

/// Longest that a caller waits over gRPC; less than a service does, so that a frozen one holds nobody for long.
const CALL: Duration = Duration::from_secs(3);
/// A client that got no answer waits as long.
const BACK_OFF: Duration = Duration::from_millis(20);
/// A stream that is silent as long is begun anew.
const SILENCE: Duration = Duration::from_secs(2);
/// Questions at once, where many are asked again.
const AT_ONCE: usize = 32;
/// Who is none of the callers.
const EXECUTOR: usize = usize::MAX;
const ACQUIRER: Text = "A";
const REFERENCE: Text = "ref1";

// ---------------------------------------------------------------- what is asked

/// What is done with a key; the `n`th key is of a kind that `n` tells.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// A payment that nobody knew.
    Unheard,
    /// A payment that was debited.
    Debited,
    /// A payment whose debit is told after its cancel.
    Late,
    /// A token that was recorded.
    Token,
    /// A token that nobody knew.
    Dead,
}

/// What the ledger has of a key, in bits.
const ANSWERED: u8 = 1;
/// The feed told of PaymentCancelled or AuthorizationRevoked.
const TOLD: u8 = 2;
/// The feed told of FundReturnDue.
const DUE: u8 = 4;

impl Kind {
    const fn of(n: usize) -> Self {
        match n % 8 {
            0..3 => Self::Unheard,
            3..5 => Self::Debited,
            5 => Self::Late,
            6 => Self::Token,
            _ => Self::Dead,
        }
    }

    const fn is_payment(self) -> bool {
        matches!(self, Self::Unheard | Self::Debited | Self::Late)
    }

    fn cancel(self) -> Command {
        if self.is_payment() {
            return Command::CancelPayment { acquirer: ACQUIRER, late: false };
        }
        Command::CancelToken { token: TOKENS[0], acquirer: ACQUIRER }
    }

    fn steps(self) -> Vec<Command> {
        let debited = Command::RecordPayment(Told {
            id: PAYMENT,
            fact: "succeeded",
            acquirer: Some(ACQUIRER),
            amount: Some((100, "EUR")),
            initiated_at: Some(FRESH),
            refund: None,
        });
        let (kind, expires_at, replaces, info) = ("access", None, None, None);
        let (token, grant, acquirer) = (TOKENS[0], GRANTS[0], ACQUIRER);
        let new = NewToken { token, grant, acquirer, kind, expires_at, replaces, info };
        let recorded = Command::RecordToken(new);
        match self {
            Self::Unheard => vec![self.cancel()],
            Self::Debited => vec![debited, self.cancel()],
            Self::Late => vec![self.cancel(), debited],
            Self::Token => vec![recorded, self.cancel()],
            Self::Dead => vec![self.cancel(), recorded],
        }
    }

    /// What is asked again after a restart.
    fn again(self) -> [Command; 2] {
        let look = if self.is_payment() {
            Command::GetPayment
        } else {
            Command::Introspect { token: TOKENS[0] }
        };
        [self.cancel(), look]
    }

    const fn code(self) -> Text {
        if matches!(self, Self::Dead) { "INVALID_TOKEN" } else { "SUCCESS" }
    }

    /// What the feed has to tell in the end, and nothing else.
    const fn announced(self) -> u8 {
        match self {
            Self::Unheard | Self::Token => TOLD,
            Self::Debited | Self::Late => TOLD | DUE,
            Self::Dead => 0,
        }
    }
}

/// The same as Alipay+ asks it, on a connection that is kept; it is not told when that was decided.
pub fn ask_over_json(
    key: &Key,
    json: &Json,
    connection: &mut Option<Connection>,
    command: &Command,
) -> Heard {
    let (api, body) = if let Command::CancelPayment { acquirer, .. } = command {
        (Api::CancelPayment, payment_body(PSP, acquirer, &key.id))
    } else if let Command::CancelToken { token, acquirer } = command {
        (Api::CancelToken, token_body(PSP, acquirer, &key.token(token)))
    } else {
        unreachable!("Alipay+ asks nothing else")
    };
    let request = json.request().api(api).body(body);
    let mut wire = match connection.take() {
        Some(wire) => wire,
        None => connect(json.address)?,
    };
    wire.write(&request.bytes());
    let Some(answer) = request.answer_on(&mut wire) else {
        return Err(Unknown("the connection ended".to_owned()));
    };
    *connection = Some(wire);
    convert(&answer)
}

fn connect(address: SocketAddr) -> Result<Connection, Unknown> {
    let told = |error: std::io::Error| Unknown(format!("{error:?}"));
    let socket = TcpStream::connect(address).map_err(told)?;
    for set in [
        socket.set_nodelay(true),
        socket.set_read_timeout(Some(PATIENCE)),
        socket.set_write_timeout(Some(PATIENCE)),
    ] {
        set.map_err(told)?;
    }
    Ok(Connection::over(Box::new(socket)))
}

fn convert(answer: &json::Answer) -> Heard {
    let code = answer.code();
    if answer.result_status() == "U" {
        return Err(Unknown(code));
    }
    let rows =
        ["SUCCESS", "ACCESS_DENIED", "CANCEL_WINDOW_EXCEED", "PROCESS_FAIL", "INVALID_TOKEN"];
    let row = rows.into_iter().find(|row| *row == code);
    let row = row.unwrap_or_else(|| panic!("invariant 10: a fault became final: {code}"));
    answer.expect(row).assert_signed();
    let info = answer.json()["passThroughInfo"].as_str().map(name);
    Ok((Answer::Final { code: row, info }, None))
}

// ---------------------------------------------------------------- the load

/// Where the service is now; it has other ports after a restart.
#[derive(Clone)]
struct Place {
    grpc: SocketAddr,
    json: Json,
    generation: usize,
}

/// A line of the ledger.
#[derive(Clone, Copy, Default)]
struct Entry {
    /// Seconds and nanoseconds; zero: not told yet, as over JSON.
    decided: (i64, i32),
    flags: u8,
}

pub struct Load {
    prefix: String,
    consumer: String,
    begun: Instant,
    /// Of all payments.
    initiated_at: SystemTime,
    place: Mutex<Place>,
    /// From one question to the next, of all callers; none: as fast as it goes.
    every: Option<Duration>,
    slot: Mutex<Instant>,
    stop: AtomicBool,
    next: AtomicUsize,
    book: Mutex<Vec<Entry>>,
    /// Keys that came to their end and were not asked again yet.
    recent: Mutex<Vec<(usize, Arc<Key>)>>,
    answers: AtomicUsize,
    unanswered: AtomicUsize,
    events: AtomicUsize,
    streams: AtomicUsize,
}

/// A load that runs, until it is told to finish.
pub struct Running {
    pub load: Arc<Load>,
    runtime: Runtime,
    callers: Vec<JoinHandle<()>>,
    reader: tokio::task::JoinHandle<()>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Begins a load; `per_second`: at most as many questions.
pub fn start(service: &Service, callers: usize, per_second: Option<u32>) -> Running {
    let begun = Instant::now();
    let place = Place { grpc: service.ports().grpc, json: service.json(), generation: 0 };
    let load = Arc::new(Load {
        prefix: unique("load"),
        consumer: unique("reader"),
        begun,
        // a window that ends meanwhile has tests of its own
        initiated_at: SystemTime::now() + Duration::from_hours(24),
        place: Mutex::new(place),
        every: per_second.map(|rate| Duration::from_secs(1) / rate),
        slot: Mutex::new(begun),
        stop: AtomicBool::new(false),
        next: AtomicUsize::new(0),
        book: Mutex::default(),
        recent: Mutex::default(),
        answers: AtomicUsize::new(0),
        unanswered: AtomicUsize::new(0),
        events: AtomicUsize::new(0),
        streams: AtomicUsize::new(0),
    });
    let runtime = Runtime::new().expect("a runtime");
    let reader = runtime.spawn(read(Arc::clone(&load)));
    let caller = |nth| {
        let load = Arc::clone(&load);
        thread::spawn(move || load.call(nth))
    };
    let callers = (0..callers).map(caller).collect();
    Running { load, runtime, callers, reader }
}

impl Load {
    /// The service has other ports now.
    pub fn moved(&self, service: &Service) {
        let mut place = locked(&self.place);
        let generation = place.generation + 1;
        *place = Place { grpc: service.ports().grpc, json: service.json(), generation };
    }

    /// How many answers were heard.
    pub fn answers(&self) -> usize {
        self.answers.load(Ordering::SeqCst)
    }

    /// How many questions had none.
    pub fn unanswered(&self) -> usize {
        self.unanswered.load(Ordering::SeqCst)
    }

    /// How many keys there are.
    pub fn keys(&self) -> usize {
        self.next.load(Ordering::SeqCst)
    }

    /// How many different events the feed told.
    pub fn events(&self) -> usize {
        self.events.load(Ordering::SeqCst)
    }

    fn now(&self) -> u64 {
        self.begun.elapsed().as_nanos().try_into().expect("a short run")
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Waits for this question's turn; time that was lost is not made up for.
    fn pace(&self) {
        let Some(every) = self.every else { return };
        let now = Instant::now();
        let turn = {
            let mut slot = locked(&self.slot);
            let turn = (*slot).max(now);
            *slot = turn + every;
            turn
        };
        thread::sleep(turn.saturating_duration_since(now));
    }

    fn key(&self, n: usize) -> Key {
        Key::plain(format!("{}-{n}", self.prefix), Kind::of(n).is_payment(), self.initiated_at)
    }

    /// One caller, until the end; it leaves no key half way.
    fn call(&self, caller: usize) {
        let mut place = locked(&self.place).clone();
        let mut grpc = Grpc::new(place.grpc);
        let mut connection = None;
        while !self.is_stopped() {
            let n = {
                let mut book = locked(&self.book);
                book.push(Entry::default());
                self.next.store(book.len(), Ordering::SeqCst);
                book.len() - 1
            };
            let (kind, key) = (Kind::of(n), Arc::new(self.key(n)));
            if kind.announced() & DUE != 0 {
                // the executor may have done it at any time, or not yet
                let command = Command::RecordFundReturn { reference: REFERENCE };
                let (sent, heard, decided) = (0, None, None);
                let done = Operation { caller: EXECUTOR, command, sent, heard, decided };
                locked(&key.history).push(done);
            }
            let cancel = kind.cancel();
            for command in kind.steps() {
                loop {
                    self.pace();
                    let now = locked(&self.place).clone();
                    if now.generation != place.generation {
                        (grpc, connection) = (Grpc::new(now.grpc), None);
                        place = now;
                    }
                    let sent = self.now();
                    let heard = if command == cancel && n / 8 % 2 == 1 {
                        ask_over_json(&key, &place.json, &mut connection, &command)
                    } else {
                        grpc.block_on(key.ask(grpc.channel(), &command, CALL))
                    };
                    if self.note(n, &key, caller, sent, &command, heard) {
                        break;
                    }
                    thread::sleep(BACK_OFF);
                }
            }
            locked(&self.book)[n].flags |= ANSWERED;
            locked(&self.recent).push((n, key));
        }
    }

    /// Keeps what was heard in the key's history and in the ledger; whether it was an answer.
    fn note(
        &self,
        n: usize,
        key: &Key,
        caller: usize,
        sent: u64,
        command: &Command,
        heard: Heard,
    ) -> bool {
        let at = self.now();
        let (heard, decided) = match heard {
            Ok((answer, decided)) => (Some(answer), decided),
            Err(Unknown(_)) => (None, None),
        };
        let is_answer = heard.is_some();
        if let Some(Answer::Cancel { code, .. } | Answer::Final { code, .. }) = heard {
            assert_eq!(code, Kind::of(n).code(), "{}", key.id);
        }
        if let Some(decided) = decided {
            self.decided(n, decided);
        }
        let heard = heard.map(|answer| (at, answer));
        let operation = Operation { caller, command: command.clone(), sent, heard, decided };
        locked(&key.history).push(operation);
        let count = if is_answer { &self.answers } else { &self.unanswered };
        count.fetch_add(1, Ordering::SeqCst);
        is_answer
    }

    /// It was decided then, and never at another time.
    fn decided(&self, n: usize, decided: (i64, i32)) {
        let mut book = locked(&self.book);
        let before = &mut book[n].decided;
        assert!(
            *before == (0, 0) || *before == decided,
            "invariant 1: {}-{n} was decided at {before:?} and at {decided:?}",
            self.prefix,
        );
        *before = decided;
    }

    /// Asks again over gRPC what was answered before; none of it may have no answer now.
    async fn repeat(self: Arc<Self>, n: usize, key: Arc<Key>, channel: Channel) {
        for command in Kind::of(n).again() {
            let sent = self.now();
            let heard = insist(&key, channel.clone(), &command).await;
            if let Ok((Answer::Cancel { repeated, .. }, _)) = &heard {
                assert!(repeated, "invariant 2: {} was forgotten", key.id);
            }
            assert!(self.note(n, &key, EXECUTOR, sent, &command, heard));
        }
    }
}

/// Asks until there is an answer. Nothing is wrong now, but a busy machine may not answer in time.
async fn insist(key: &Key, channel: Channel, command: &Command) -> Heard {
    let begun = Instant::now();
    loop {
        let heard = key.ask(channel.clone(), command, CALL).await;
        if let Err(Unknown(instead)) = &heard {
            assert!(begun.elapsed() < PATIENCE, "invariant 14: {}: {instead}", key.id);
            sleep(BACK_OFF).await;
            continue;
        }
        return heard;
    }
}

impl Running {
    /// Fails if a caller, or the feed's reader, heard something impossible.
    pub fn assert_sound(&mut self) {
        assert!(!self.reader.is_finished(), "the reader ended: {:?}", self.reader_end());
        for nth in 0..self.callers.len() {
            if self.callers[nth].is_finished() {
                self.callers.swap_remove(nth).join().expect("a caller that heard nothing wrong");
                panic!("a caller ended");
            }
        }
    }

    fn reader_end(&mut self) -> Result<(), tokio::task::JoinError> {
        self.runtime.block_on(&mut self.reader)
    }

    /// Waits until so many answers were heard.
    pub fn wait_for(&mut self, answers: usize) {
        let load = Arc::clone(&self.load);
        eventually("the load is answered", || {
            self.assert_sound();
            (load.answers() >= answers).then_some(())
        });
    }

    /// After a restart: every key that came to its end since the last time is asked again and its history is checked,
    /// and so are `older` keys of all before, against the ledger. `recent`: at most as many of the former.
    pub fn ask_again(&mut self, recent: usize, older: usize) {
        let mut keys = std::mem::take(&mut *locked(&self.load.recent));
        let skipped = keys.split_off(recent.min(keys.len()));
        let known = self.load.keys();
        let step = known / older.max(1) + 1;
        let offset = self.load.answers() % step;
        let book = locked(&self.load.book).clone();
        let listed: HashSet<usize> = keys.iter().map(|(n, _)| *n).collect();
        let is_old = |n: &usize| book[*n].flags & ANSWERED != 0 && !listed.contains(n);
        let old = (0..known).skip(offset).step_by(step).filter(is_old);
        let old: Vec<usize> = if older == 0 { vec![] } else { old.collect() };
        let asked = keys.iter().map(|(n, key)| (*n, Arc::clone(key)));
        let asked = asked.chain(old.into_iter().map(|n| (n, Arc::new(self.load.key(n)))));
        self.repeat_all(asked.collect());
        for (_, key) in keys.iter().chain(&skipped) {
            let history = locked(&key.history);
            history::check(&history).unwrap_or_else(|told| panic!("{}: {told}", key.id));
        }
    }

    fn repeat_all(&mut self, asked: Vec<(usize, Arc<Key>)>) {
        let (load, address) = (Arc::clone(&self.load), locked(&self.load.place).grpc);
        self.runtime.block_on(async {
            let channels: Vec<Channel> = (0..4).map(|_| endpoint(address).connect_lazy()).collect();
            let mut asking = JoinSet::new();
            for (nth, (n, key)) in asked.into_iter().enumerate() {
                let channel = channels[nth % channels.len()].clone();
                asking.spawn(Arc::clone(&load).repeat(n, key, channel));
                if asking.len() >= AT_ONCE {
                    asking.join_next().await.expect("one").expect("the same answers again");
                }
            }
            while let Some(asked) = asking.join_next().await {
                asked.expect("the same answers again");
            }
        });
    }

    /// How many events the reader has not acknowledged; none if nobody answers.
    pub fn lag(&self) -> Option<u64> {
        let (consumer, address) = (self.load.consumer.clone(), locked(&self.load.place).grpc);
        let lag = self.runtime.block_on(async {
            let mut client = FeedServiceClient::new(endpoint(address).connect_lazy());
            timeout(CALL, client.get_lag(GetLagRequest { consumer })).await
        });
        Some(lag.ok()?.ok()?.get_ref().events)
    }

    /// No more is asked. At most `most` of all keys are asked again, evenly; every event must have come, and no other.
    pub fn finish(mut self, most: usize) {
        self.load.stop.store(true, Ordering::SeqCst);
        for caller in std::mem::take(&mut self.callers) {
            caller.join().expect("a caller that heard nothing wrong");
        }
        self.ask_again(most, most);
        let load = Arc::clone(&self.load);
        let missing = || {
            let book = locked(&load.book);
            let differs = |(n, entry): (usize, &Entry)| {
                let expected = Kind::of(n).announced() | ANSWERED;
                (entry.flags != expected).then_some((n, entry.flags, expected))
            };
            book.iter().enumerate().filter_map(differs).take(5).collect::<Vec<_>>()
        };
        eventually("every event is told", || {
            (self.reader.is_finished() || missing().is_empty()).then_some(())
        });
        eventually("all of the feed is acknowledged", || {
            (self.reader.is_finished() || self.lag() == Some(0)).then_some(())
        });
        assert!(!self.reader.is_finished(), "the reader ended: {:?}", self.reader_end());
        self.reader.abort();
        assert_eq!(missing(), [], "key, what is of it, what should be");
        println!(
            "{} keys, {} answers, {} questions without one, {} events over {} streams",
            load.keys(),
            load.answers(),
            load.unanswered(),
            load.events(),
            load.streams.load(Ordering::SeqCst),
        );
    }
}

// ---------------------------------------------------------------- the feed

/// What the reader keeps on its own side.
#[derive(Default)]
struct Reader {
    epoch: Option<u64>,
    /// Last position seen, by partition.
    seen: HashMap<u32, u64>,
    /// Payments whose money it has to return.
    due: Vec<usize>,
}

impl Reader {
    fn positions(&self) -> Vec<PartitionPosition> {
        let position = |(partition, position): (&u32, &u64)| PartitionPosition {
            partition: *partition,
            position: *position,
        };
        self.seen.iter().map(position).collect()
    }
}

/// A consumer that is the executor too: it returns the money, then acknowledges. Ends only by failing.
async fn read(load: Arc<Load>) {
    let mut reader = Reader::default();
    loop {
        let address = locked(&load.place).grpc;
        let endpoint = endpoint(address).connect_timeout(Duration::from_secs(1));
        let channel = endpoint.connect_lazy();
        if let Err(status) = stream(&load, &mut reader, channel).await {
            let never = [
                Code::FailedPrecondition, // of another store, of another epoch
                Code::OutOfRange,
                Code::NotFound,
                Code::PermissionDenied,
                Code::InvalidArgument,
                Code::Unimplemented,
            ];
            assert!(!never.contains(&status.code()), "{status:?}");
        }
        sleep(BACK_OFF).await;
    }
}

/// One stream, until it ends or falls silent.
async fn stream(load: &Arc<Load>, reader: &mut Reader, channel: Channel) -> Result<(), Status> {
    let silent = |_| Status::deadline_exceeded("silence");
    let mut client = FeedServiceClient::new(channel.clone());
    let request = SubscribeRequest {
        consumer: load.consumer.clone(),
        epoch: reader.epoch,
        last_seen: if reader.epoch.is_some() { reader.positions() } else { vec![] },
        ..SubscribeRequest::default()
    };
    let mut events =
        timeout(SILENCE, client.subscribe(request)).await.map_err(silent)??.into_inner();
    let first = timeout(SILENCE, events.message()).await.map_err(silent)??;
    let first = first.ok_or_else(|| Status::unavailable("ended at once"))?;
    let before = reader.epoch.replace(first.epoch);
    assert!(before.is_none_or(|before| before == first.epoch), "the epoch changed");
    load.streams.fetch_add(1, Ordering::SeqCst);
    let mut heads = HashMap::new();
    let mut acknowledged_at = Instant::now();
    let mut pending = false;
    loop {
        if let Ok(message) = timeout(Duration::from_millis(50), events.message()).await {
            let message = message?.ok_or_else(|| Status::unavailable("it ended"))?;
            if let Some(event) = message.event {
                load.take(reader, &mut heads, &event);
                pending = true;
            }
        }
        // an idle one asks for a sign of life, too
        let wait = if pending { Duration::from_millis(100) } else { SILENCE };
        if acknowledged_at.elapsed() < wait {
            continue;
        }
        return_funds(load, &mut reader.due, &channel).await?;
        let request = AcknowledgeRequest {
            consumer: load.consumer.clone(),
            positions: reader.positions(),
            subscription_id: Some(first.subscription_id.clone()),
            epoch: first.epoch,
            ..AcknowledgeRequest::default()
        };
        timeout(SILENCE, client.acknowledge(request)).await.map_err(silent)??;
        (pending, acknowledged_at) = (false, Instant::now());
    }
}

async fn return_funds(
    load: &Arc<Load>,
    due: &mut Vec<usize>,
    channel: &Channel,
) -> Result<(), Status> {
    let mut returning = JoinSet::new();
    for n in due.iter().copied() {
        let mut client = PaymentServiceClient::new(channel.clone());
        let request = RecordFundReturnRequest {
            psp_id: PSP.to_owned(),
            payment_request_id: load.key(n).id,
            reference: REFERENCE.to_owned(),
        };
        returning
            .spawn(async move { (n, timeout(CALL, client.record_fund_return(request)).await) });
    }
    let mut end = Ok(());
    while let Some(returned) = returning.join_next().await {
        match returned.expect("no panic") {
            (n, Ok(Ok(answer))) => {
                assert_eq!(answer.get_ref().answer(), RecordFundReturnAnswer::Accepted, "{n}");
                due.retain(|left| *left != n);
            }
            (_, Ok(Err(status))) => end = Err(status),
            (_, Err(_)) => end = Err(Status::deadline_exceeded("silence")),
        }
    }
    end
}

impl Load {
    /// Notes an event; asserts that it may come now, and that it was not told before.
    fn take(&self, reader: &mut Reader, heads: &mut HashMap<u32, u64>, event: &CancellationEvent) {
        let CancellationEvent { partition, position, .. } = *event;
        if let Some(head) = heads.insert(partition, position) {
            assert_eq!(position, head + 1, "invariant 9: a gap in {partition}");
        }
        let seen = reader.seen.entry(partition).or_default();
        let is_new = position > *seen;
        assert!(position <= *seen + 1, "invariant 9: {position} of {partition} after {seen}");
        *seen = position.max(*seen);
        let (flag, subject) = match event.kind() {
            EventKind::PaymentCancelled => (TOLD, &event.payment_request_id),
            EventKind::FundReturnDue => (DUE, &event.payment_request_id),
            EventKind::AuthorizationRevoked => (TOLD, &event.authorization_id),
            EventKind::Unspecified => panic!("never sent"),
        };
        let subject = subject.as_deref().expect("set");
        let n = subject.strip_prefix(&self.prefix).and_then(|rest| rest.strip_prefix('-'));
        let n = n.and_then(|n| n.split('/').next()?.parse::<usize>().ok());
        let n = n.unwrap_or_else(|| panic!("nobody named {subject}"));
        assert!(Kind::of(n).announced() & flag != 0, "without cause: {event:?}");
        if flag == DUE {
            let amount = event.amount.as_ref().map(|amount| (amount.value, &*amount.currency));
            assert_eq!(amount, Some((100, "EUR")), "{event:?}");
        }
        let before = {
            let mut book = locked(&self.book);
            let before = book[n].flags & flag != 0;
            book[n].flags |= flag;
            before
        };
        assert_ne!(before, is_new, "invariant 6: twice, or not the same again: {event:?}");
        if is_new {
            self.events.fetch_add(1, Ordering::SeqCst);
            if flag == DUE {
                reader.due.push(n);
            }
        }
    }
}
