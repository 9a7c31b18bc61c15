//! A consumer of the feed that follows it while replicas come and go, acknowledges, and notes what it was sent.
//!
//! It asserts as it goes: within a stream positions are gapless, a new stream begins behind what was acknowledged and
//! not beyond what was seen, a repeat is the same event, and the feed never takes it for one of another store.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{runtime::Runtime, task::JoinHandle, time::timeout};
use tonic::{Code, Status, transport::Channel};

use crate::{
    harness::{
        eventually,
        grpc::{
            endpoint,
            wire::{
                AcknowledgeRequest, CancellationEvent, EventKind, GetLagRequest, PartitionPosition,
                SubscribeRequest, feed_service_client::FeedServiceClient,
            },
        },
        unique,
    },
    history::Event,
};

/// A stream that is silent as long is begun anew elsewhere: its replica may be frozen.
const SILENCE: Duration = Duration::from_secs(2);

/// Invariant 14: longest from a commit to its event, with nothing wrong.
const SOON: Duration = Duration::from_secs(5);

/// What it was sent, by partition and position.
type Seen = BTreeMap<(u32, u64), Event>;

/// Where a replica is now.
type At = Arc<dyn Fn(usize) -> SocketAddr + Send + Sync>;

pub struct Follower {
    consumer: String,
    at: At,
    notes: Arc<Notes>,
    task: JoinHandle<()>,
}

/// What it keeps on its own side.
#[derive(Default)]
struct Notes {
    seen: Mutex<Seen>,
    repeats: AtomicUsize,
    streams: AtomicUsize,
    stop: AtomicBool,
}

/// The state between streams.
struct Place {
    consumer: String,
    epoch: Option<u64>,
    /// Last position seen, by partition.
    seen: HashMap<u32, u64>,
    /// Last position whose acknowledgement was answered, by partition.
    acknowledged: HashMap<u32, u64>,
}

/// What it knew when a stream began.
struct Begun {
    seen: HashMap<u32, u64>,
    acknowledged: HashMap<u32, u64>,
}

impl Follower {
    /// Follows at one of these and then another; asks where it is each time.
    pub fn start(
        runtime: &Runtime,
        replicas: usize,
        at: impl Fn(usize) -> SocketAddr + Send + Sync + 'static,
    ) -> Self {
        let (consumer, at, notes) = (unique("follower"), Arc::new(at), Arc::new(Notes::default()));
        let following = follow(consumer.clone(), Arc::clone(&notes), replicas, at.clone());
        Self { consumer, at, notes, task: runtime.spawn(following) }
    }

    /// Waits until it has been sent as many different events and the feed says that it has no more; then all of them,
    /// in order.
    pub fn finish(self, runtime: &Runtime, enough: usize) -> Vec<Event> {
        let Self { consumer, at, notes, task } = self;
        let begun = Instant::now();
        let count = || notes.seen.lock().expect("no panic").len();
        eventually("the follower has seen the events", || {
            (count() >= enough || task.is_finished() || begun.elapsed() > 2 * SOON).then_some(())
        });
        let took = begun.elapsed();
        eventually("all of the feed is acknowledged", || {
            let endpoint = endpoint(at(0));
            let lag = runtime.block_on(async {
                let mut client = FeedServiceClient::new(endpoint.connect_lazy());
                client.get_lag(GetLagRequest { consumer: consumer.clone() }).await
            });
            (task.is_finished() || lag.expect("an answer").get_ref().events == 0).then_some(())
        });
        notes.stop.store(true, Ordering::SeqCst);
        runtime.block_on(task).expect("the follower was sent nothing impossible");
        println!(
            "the feed: {} events, {} repeats, {} streams, the last {took:.1?} after the end",
            count(),
            notes.repeats.load(Ordering::SeqCst),
            notes.streams.load(Ordering::SeqCst),
        );
        assert!(took < SOON, "invariant 14: {} of {enough} events within {took:?}", count());
        notes.seen.lock().expect("no panic").values().cloned().collect()
    }
}

async fn follow(consumer: String, notes: Arc<Notes>, replicas: usize, at: At) {
    let (epoch, seen, acknowledged) = (None, HashMap::new(), HashMap::new());
    let mut place = Place { consumer, epoch, seen, acknowledged };
    for nth in 0.. {
        if notes.stop.load(Ordering::SeqCst) {
            return;
        }
        let endpoint = endpoint(at(nth % replicas)).connect_timeout(Duration::from_secs(1));
        if let Err(status) = stream(&notes, &mut place, endpoint.connect_lazy()).await {
            let never = [
                Code::FailedPrecondition, // of another store, of another epoch
                Code::OutOfRange,
                Code::NotFound,
                Code::PermissionDenied,
                Code::InvalidArgument,
                Code::ResourceExhausted,
                Code::Unimplemented,
            ];
            assert!(!never.contains(&status.code()), "{status:?}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// One stream, until it ends or falls silent.
async fn stream(notes: &Notes, place: &mut Place, channel: Channel) -> Result<(), Status> {
    let mut client = FeedServiceClient::new(channel);
    let positions = |positions: &HashMap<u32, u64>| {
        let all = positions.iter();
        all.map(|(partition, position)| PartitionPosition {
            partition: *partition,
            position: *position,
        })
        .collect::<Vec<_>>()
    };
    let request = SubscribeRequest {
        consumer: place.consumer.clone(),
        epoch: place.epoch,
        last_seen: place.epoch.map(|_| positions(&place.seen)).unwrap_or_default(),
        ..SubscribeRequest::default()
    };
    let silent = |_| Status::deadline_exceeded("silence");
    let mut events =
        timeout(SILENCE, client.subscribe(request)).await.map_err(silent)??.into_inner();
    let first = timeout(SILENCE, events.message()).await.map_err(silent)??;
    let first = first.ok_or_else(|| Status::unavailable("ended at once"))?;
    assert!(first.event.is_none() && !first.subscription_id.is_empty(), "{first:?}");
    let before = place.epoch.replace(first.epoch);
    assert!(before.is_none_or(|before| before == first.epoch), "the epoch changed");
    notes.streams.fetch_add(1, Ordering::SeqCst);

    // as of now: what earlier streams brought may be acknowledged before this one has come to it again
    let begun = Begun { seen: place.seen.clone(), acknowledged: place.acknowledged.clone() };
    let mut heads = HashMap::<u32, u64>::new();
    let (mut pending, mut acknowledged_at) = (0, Instant::now());
    loop {
        if notes.stop.load(Ordering::SeqCst) {
            return Ok(());
        }
        let next = timeout(Duration::from_millis(50), events.message()).await;
        if let Ok(message) = next {
            let message = message?.ok_or_else(|| Status::unavailable("it ended"))?;
            let Some(event) = message.event else { continue };
            take(notes, place, &begun, &mut heads, &event);
            pending += 1;
        }
        // now and then, and when nothing comes
        let is_due = pending >= 100 || next_is_late(acknowledged_at, pending);
        if is_due {
            let request = AcknowledgeRequest {
                consumer: place.consumer.clone(),
                positions: positions(&place.seen),
                subscription_id: Some(first.subscription_id.clone()),
                epoch: first.epoch,
                ..AcknowledgeRequest::default()
            };
            let answer = timeout(SILENCE, client.acknowledge(request)).await.map_err(silent)??;
            for answered in answer.into_inner().positions {
                place.acknowledged.insert(answered.partition, answered.position);
            }
            (pending, acknowledged_at) = (0, Instant::now());
        }
    }
}

/// An idle stream is asked for a sign of life, too: an acknowledgement is answered, or the replica is left.
fn next_is_late(acknowledged_at: Instant, pending: usize) -> bool {
    let wait = if pending > 0 { SILENCE / 10 } else { SILENCE };
    acknowledged_at.elapsed() >= wait
}

/// Notes an event; asserts that it may come now.
fn take(
    notes: &Notes,
    place: &mut Place,
    begun: &Begun,
    heads: &mut HashMap<u32, u64>,
    event: &CancellationEvent,
) {
    let CancellationEvent { partition, position, .. } = *event;
    let of = |places: &HashMap<u32, u64>| places.get(&partition).copied().unwrap_or_default();
    let (seen, acknowledged) = (of(&begun.seen), of(&begun.acknowledged));
    match heads.insert(partition, position) {
        Some(head) => assert_eq!(position, head + 1, "invariant 9: a gap in {partition}"),
        None => assert!(
            (acknowledged + 1..=seen + 1).contains(&position),
            "invariant 9: a stream begins {partition} at {position}; seen {seen}, acknowledged {acknowledged}",
        ),
    }
    let seen = place.seen.entry(partition).or_default();
    *seen = position.max(*seen);
    let noted = convert(event);
    let before = notes.seen.lock().expect("no panic").insert((partition, position), noted.clone());
    if let Some(before) = before {
        assert_eq!(before, noted, "a repeat is the same event");
        notes.repeats.fetch_add(1, Ordering::SeqCst);
    }
}

fn convert(event: &CancellationEvent) -> Event {
    let (kind, subject) = match event.kind() {
        EventKind::PaymentCancelled => ("PaymentCancelled", &event.payment_request_id),
        EventKind::FundReturnDue => ("FundReturnDue", &event.payment_request_id),
        EventKind::AuthorizationRevoked => ("AuthorizationRevoked", &event.authorization_id),
        EventKind::Unspecified => panic!("never sent"),
    };
    let amount = event.amount.as_ref().map(|amount| {
        assert_eq!(amount.currency, "EUR");
        (amount.value.try_into().expect("minor units"), "EUR")
    });
    Event {
        partition: event.partition,
        position: event.position,
        id: event.event_id.clone(),
        kind,
        subject: subject.clone().expect("set"),
        amount,
    }
}
