//! Who asks: Alipay+ with its retries, the payment core, the authorization server, resource servers; and who follows the
//! feed.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use alipayplus_cancel::{
    domain::{
        cancel_payment::CancelPayment,
        consumer::{ConsumerName, Follower, Place, acknowledge::Acknowledge, subscribe::Subscribe},
        event::EventKind,
        id::{AcquirerId, ClientId, PaymentRequestId, PspId, Token},
        key::PaymentKey,
        result::{ResultCode, ResultStatus},
    },
    feed::Step,
    grpc::client::{Answer as Told, Call, CancelToken},
    store::Positioned,
    telemetry::{Span, context::TraceContext},
};
use futures_util::StreamExt as _;
use rand::Rng as _;
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

use crate::{
    asked::{Heard, Key, PSP, Unknown},
    history::{Answer, Command, Operation},
    oracle::Text,
    world::{CLOSES, NOON, World},
};

/// As many keys are alive at once: few, so that callers meet.
const LIVE_KEYS: usize = 5;
/// Then a key is retired, so that the checker comes to an end with it.
const OPERATIONS_OF_A_KEY: usize = 60;
const OPEN_OF_A_KEY: usize = 14;
/// Alipay+'s time-outs.
const CANCEL_PAYMENT: Duration = Duration::from_secs(8);
const CANCEL_TOKEN: Duration = Duration::from_secs(5);
/// How long anybody else waits.
const WAIT: Duration = Duration::from_secs(3);
/// Everything else of a caller's is so often tried.
const TRIES: usize = 5;

/// All callers, and what they ask about.
pub struct Callers {
    world: Arc<World>,
    slots: Mutex<Vec<Arc<Key>>>,
    pub keys: Mutex<Vec<Arc<Key>>>,
    left: AtomicUsize,
    named: AtomicUsize,
}

impl Callers {
    pub fn new(world: &Arc<World>, operations: usize) -> Arc<Self> {
        let callers = Arc::new(Self {
            world: Arc::clone(world),
            slots: Mutex::default(),
            keys: Mutex::default(),
            left: AtomicUsize::new(operations),
            named: AtomicUsize::new(0),
        });
        let keys = (0..LIVE_KEYS).map(|_| callers.new_key()).collect();
        *callers.slots.lock().expect("no panic") = keys;
        callers
    }

    fn new_key(&self) -> Arc<Key> {
        let moment = |unix_ms: i64| {
            SystemTime::UNIX_EPOCH + Duration::from_millis(unix_ms.try_into().expect("after 1970"))
        };
        let initiated_at = [moment(NOON - 172_800_000), moment(CLOSES), moment(NOON)];
        let nth = self.named.fetch_add(1, Ordering::Relaxed);
        let key = self
            .world
            .pick(|rng| Key::new(rng, initiated_at, true, |kind| format!("{kind}-{nth}")));
        let key = Arc::new(key);
        self.keys.lock().expect("no panic").push(Arc::clone(&key));
        key
    }

    /// A key, and how many operations it has had.
    fn take(&self) -> (Arc<Key>, usize) {
        let slot = self.world.pick(|rng| rng.random_range(0..LIVE_KEYS));
        let mut slots = self.slots.lock().expect("no panic");
        let key = &slots[slot];
        let tired = key.sent.load(Ordering::Relaxed) >= OPERATIONS_OF_A_KEY
            || key.open.load(Ordering::Relaxed) >= OPEN_OF_A_KEY;
        if tired {
            slots[slot] = self.new_key();
        }
        let key = Arc::clone(&slots[slot]);
        let nth = key.sent.fetch_add(1, Ordering::Relaxed);
        (key, nth)
    }

    fn find(&self, id: &str) -> Option<Arc<Key>> {
        self.keys.lock().expect("no panic").iter().find(|key| key.id == id).cloned()
    }

    /// One operation, kept in the key's history.
    pub async fn operate(
        &self,
        key: &Arc<Key>,
        caller: usize,
        replica: usize,
        command: &Command,
        wait: Duration,
    ) -> Option<Answer> {
        let world = &self.world;
        let through_bridge =
            matches!(command, Command::CancelPayment { .. } | Command::CancelToken { .. })
                && world.pick(|rng| rng.random_bool(0.5));
        let index = open(world, key, caller, command);
        if world.strikes(|odds| odds.request_twice) {
            world.count(|counts| &counts.requests_twice);
            // the copy may come to be long after; what it is answered is told to nobody
            open(world, key, caller, command);
            let (key, command, channel) =
                (Arc::clone(key), command.clone(), world.channel(replica));
            let copy = async move { drop(key.ask(channel, &command, CANCEL_PAYMENT).await) };
            world.copies.lock().expect("no panic").spawn(copy);
        }
        let heard = if through_bridge {
            ask_the_bridge(world, replica, key, command, wait).await
        } else {
            key.ask(world.channel(replica), command, wait).await
        };
        let at = world.moment();
        match heard {
            Ok((answer, decided)) => {
                world.note(|| format!("caller {caller} hears {answer:?} of {}", key.id));
                let mut history = key.history.lock().expect("no panic");
                history[index].heard = Some((at, answer.clone()));
                history[index].decided = decided;
                Some(answer)
            }
            Err(Unknown(why)) => {
                // no text of ours is in it but the status
                let why = why.split('"').next().unwrap_or_default().to_owned();
                world.note(|| format!("caller {caller} hears nothing of {}: {why}", key.id));
                key.open.fetch_add(1, Ordering::Relaxed);
                None
            }
        }
    }

    /// One caller, until everything was asked.
    pub async fn call(self: Arc<Self>, caller: usize) {
        while self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
            .is_ok()
        {
            let (key, nth) = self.take();
            let mut command = self.world.pick(|rng| key.command(nth, rng));
            if let Command::RecordToken(new) = &mut command
                && self.world.pick(|rng| rng.random_bool(0.15))
            {
                // it was never good, and its cancel revokes all the same
                new.expires_at = Some(-1);
            }
            let wait = match command {
                Command::CancelPayment { .. } => CANCEL_PAYMENT,
                Command::CancelToken { .. } => CANCEL_TOKEN,
                Command::RecordPayment(_)
                | Command::RecordFundReturn { .. }
                | Command::GetPayment
                | Command::RecordToken(_)
                | Command::Revoke { .. }
                | Command::Introspect { .. } => WAIT,
            };
            for attempt in 0..TRIES {
                let replica = self.world.pick(|rng| rng.random_range(0..self.world.replicas()));
                let answer = self.operate(&key, caller, replica, &command, wait).await;
                let ended = !matches!(answer, None | Some(Answer::Cancel { code: "U", .. }));
                // whoever was answered may ask once more
                if ended && self.world.pick(|rng| rng.random_bool(0.9)) {
                    break;
                }
                let pause = 50 << attempt;
                sleep(Duration::from_millis(self.world.pick(|rng| rng.random_range(0..pause))))
                    .await;
            }
        }
    }
}

fn open(world: &World, key: &Key, caller: usize, command: &Command) -> usize {
    let mut history = key.history.lock().expect("no panic");
    let (command, sent) = (command.clone(), world.moment());
    world.note(|| format!("caller {caller} asks {command:?} of {}", key.id));
    history.push(Operation { caller, command, sent, heard: None, decided: None });
    history.len() - 1
}

/// As Alipay+ does, from behind signature and JSON on.
async fn ask_the_bridge(
    world: &Arc<World>,
    replica: usize,
    key: &Key,
    command: &Command,
    wait: Duration,
) -> Heard {
    let call = Call {
        client: ClientId::parse("simulated").expect("an id"),
        timeout: wait.saturating_sub(Duration::from_millis(1_500)),
        trace: Span::unrecorded(TraceContext::begin(0.0)),
    };
    let psp = PspId::parse(PSP).expect("an id");
    let acquirer = |name: Text| AcquirerId::parse(name).expect("an id");
    let told = if let Command::CancelToken { token, acquirer: by } = command {
        let token = Token::parse(&key.token(token)).expect("a token");
        let command = CancelToken { psp, acquirer: acquirer(by), token, pass_through_info: None };
        let ask = world
            .bridge(replica, |bridge| async move { bridge.cancel_token(command, &call).await });
        timeout(wait, ask).await
    } else if let Command::CancelPayment { acquirer: by, .. } = command {
        let payment_request = PaymentRequestId::parse(&key.id).expect("an id");
        let command =
            CancelPayment { key: PaymentKey { psp, payment_request }, acquirer: acquirer(by) };
        let ask = world
            .bridge(replica, |bridge| async move { bridge.cancel_payment(command, &call).await });
        timeout(wait, ask).await
    } else {
        unreachable!("Alipay+ asks nothing else")
    };
    let Ok(Ok(Told { code, pass_through_info, .. })) = told else {
        return Err(Unknown("no answer".to_owned()));
    };
    if code.status() == ResultStatus::U {
        return Err(Unknown(code.wire().to_owned()));
    }
    let rows = [
        ResultCode::Success,
        ResultCode::AccessDenied,
        ResultCode::CancelWindowExceed,
        ResultCode::ProcessFail,
        ResultCode::InvalidToken,
    ];
    assert!(rows.contains(&code), "invariant 10: {}", code.wire());
    let info = pass_through_info.map(|info| crate::asked::name(info.as_str()));
    Ok((Answer::Final { code: code.wire(), info }, None))
}

// ---------------------------------------------------------------- the feed

/// What a consumer keeps on its own side, whatever becomes of it: by partition, the events in order.
pub type Kept = Arc<Mutex<BTreeMap<u16, Vec<Positioned>>>>;

/// A consumer of the feed, which crashes now and then and goes on behind what it kept. With callers: the executor, which
/// returns money that is due.
pub async fn follow(
    world: Arc<World>,
    name: &'static str,
    kept: Kept,
    executor: Option<Arc<Callers>>,
) {
    loop {
        let Some((replica, place)) = world.follower_place() else {
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        let name = ConsumerName::parse(name).expect("a name");
        let last_seen: Vec<Place> = {
            let kept = kept.lock().expect("no panic");
            let last = |(partition, events): (&u16, &Vec<Positioned>)| {
                Some(Place { partition: *partition, position: events.last()?.position })
            };
            kept.iter().filter_map(last).collect()
        };
        let command = Subscribe { last_seen, epoch: Some(1), ..Subscribe::default() };
        let (steps, mut stream) = mpsc::channel::<Step>(4);
        let (at_replica, consumer) = (Arc::clone(&world), name.clone());
        let mut serving = tokio::spawn({
            let world = Arc::clone(&world);
            async move {
                let _place = place;
                let served = world.feed(replica, move |feed| async move {
                    let world = at_replica;
                    let mut events = match feed.subscribe(consumer, command, || ()).await {
                        Ok(events) => events,
                        Err(error) => return Some(error.to_string()),
                    };
                    loop {
                        let step = tokio::select! {
                            biased;
                            () = steps.closed() => return None,
                            step = events.next() => step,
                        };
                        let Some(Ok(step)) = step else { return None };
                        let wait = world.pick(|rng| rng.random_range(0..4));
                        sleep(Duration::from_millis(wait)).await;
                        if world.strikes(|odds| odds.stream_cut) {
                            world.count(|counts| &counts.streams_cut);
                            return None;
                        }
                        if steps.send(step).await.is_err() {
                            return None;
                        }
                    }
                });
                served.await
            }
        });
        let mut begun = None;
        // longer silence than a keep-alive: the stream is dead, whether or not anybody says so
        while let Ok(Some(step)) = timeout(Duration::from_secs(4), stream.recv()).await {
            match step {
                Step::Begun { stream, .. } => begun = Some(stream),
                Step::KeepAlive { .. } => {}
                Step::Event { event, .. } => {
                    if world.strikes(|odds| odds.consumer_crashes) {
                        world.count(|counts| &counts.consumer_crashes);
                        break;
                    }
                    let place = Place { partition: event.partition, position: event.position };
                    if keep(&world, &kept, *event.clone()) {
                        world.note(|| {
                            let Positioned { partition, position, id, .. } = &*event;
                            format!("{} keeps {partition}:{position} {id}", name.as_str())
                        });
                    }
                    if let (Some(callers), EventKind::FundReturnDue(_)) =
                        (&executor, event.event.kind)
                    {
                        return_money(&world, callers, event.event.subject.id()).await;
                    }
                    acknowledge(&world, replica, &name, begun, place).await;
                }
            }
        }
        drop(stream);
        // what is refused is a reason to look, but for a store that fails
        let ended = timeout(Duration::from_secs(1), &mut serving).await;
        serving.abort();
        if let Ok(Ok(Ok(Some(why)))) = ended {
            let fault = why.contains("could not be read") || why.contains("stopping");
            assert!(fault, "a consumer is refused: {why}");
        }
        sleep(Duration::from_millis(world.pick(|rng| rng.random_range(0..300)))).await;
    }
}

/// Invariant 9: what comes is next, or was there before and is the same.
fn keep(world: &World, kept: &Kept, event: Positioned) -> bool {
    let mut kept = kept.lock().expect("no panic");
    let events = kept.entry(event.partition).or_default();
    let before = usize::try_from(event.position - 1).expect("few");
    if let Some(known) = events.get(before) {
        assert_eq!(*known, event, "invariant 9, seed {}", world.seed);
        return false;
    }
    assert_eq!(events.len(), before, "invariant 9, seed {}: a gap before {event:?}", world.seed);
    events.push(event);
    true
}

async fn return_money(world: &Arc<World>, callers: &Callers, id: &str) {
    let Some(key) = callers.find(id) else { panic!("an event of {id}, which nobody named") };
    let command = Command::RecordFundReturn { reference: "ref1" };
    for _ in 0..3 {
        let replica = world.pick(|rng| rng.random_range(0..world.replicas()));
        if callers.operate(&key, 1_000, replica, &command, WAIT).await.is_some() {
            return;
        }
    }
}

async fn acknowledge(
    world: &Arc<World>,
    replica: usize,
    name: &ConsumerName,
    stream: Option<alipayplus_cancel::domain::consumer::StreamId>,
    place: Place,
) {
    let command = Acknowledge {
        follower: Follower { identity: None, stream },
        epoch: 1,
        positions: vec![place],
        events: vec![],
    };
    let name = name.clone();
    let told =
        world.feed(replica, |feed| async move { feed.acknowledge(&name, command).await.is_ok() });
    // it goes on either way: what was not taken in comes again
    drop(timeout(Duration::from_secs(1), told).await);
}
