//! The room over a store in memory.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicUsize, Ordering},
};

use futures_util::StreamExt as _;

use super::*;
use crate::{
    domain::{
        event::{Event, EventCause, EventKind},
        id::{PaymentRequestId, PspId},
        key::{PaymentKey, Subject},
        payment::Payment,
    },
    store::{
        Backlog, Batch, Cursor, Error as StoreError, Follow, Granted, Outstanding,
        OutstandingPayment, Page, Pending, Standing, Takeover,
    },
};

const NOW: Timestamp = Timestamp { unix_ms: 1_700_000_000_000 };
const PATIENCE: Duration = Duration::from_secs(20);

/// What a store keeps of events and consumers, in memory, and nothing else.
#[derive(Default)]
struct Memory {
    kept: Mutex<Memories>,
    shared: bool,
    /// Pages that were read.
    pages: AtomicUsize,
}

#[derive(Default)]
struct Memories {
    /// By partition; those behind the head are not durable.
    events: BTreeMap<u16, Vec<Positioned>>,
    heads: Vec<Head>,
    consumers: BTreeMap<ConsumerName, Consumer>,
    standing: Option<Standing>,
}

impl Memory {
    fn kept(&self) -> std::sync::MutexGuard<'_, Memories> {
        self.kept.lock().unwrap()
    }

    /// Appends an event about a payment; whether it is durable, the test says.
    fn append(&self, partition: u16, payment: &str, durable: bool) {
        let mut kept = self.kept();
        kept.heads.resize(2, Head::default());
        let subject = Subject::Payment(PaymentKey {
            psp: PspId::parse("psp").unwrap(),
            payment_request: PaymentRequestId::parse(payment).unwrap(),
        });
        let event = Event {
            kind: EventKind::PaymentCancelled,
            subject,
            acquirer: None,
            cause: EventCause::CancelPayment,
            at: NOW,
            result: None,
            pass_through_info: None,
            trace: None,
        };
        let events = kept.events.entry(partition).or_default();
        let position = events.last().map_or(1, |last| last.position + 1);
        // of one payment there may be several here, so the place makes the id
        let mut id = [0; 16];
        id[..2].copy_from_slice(&partition.to_be_bytes());
        id[8..].copy_from_slice(&position.to_be_bytes());
        events.push(Positioned { partition, position, id: EventId(id), event });
        if durable {
            kept.heads[usize::from(partition)].position = position;
        }
    }

    fn purge_to(&self, partition: u16, position: u64) {
        let mut kept = self.kept();
        kept.heads[usize::from(partition)].purged = position;
        kept.events.entry(partition).or_default().retain(|event| event.position > position);
    }
}

fn ready<'a, T: Send + 'a>(value: T) -> Pending<'a, Result<T, StoreError>> {
    Box::pin(std::future::ready(Ok(value)))
}

fn none<'a, T: Send + 'a>() -> Pending<'a, Result<T, StoreError>> {
    Box::pin(std::future::ready(Err(StoreError::Closed)))
}

impl Store for Memory {
    fn partitions(&self) -> Partitions {
        Partitions::new(2).unwrap()
    }
    fn lanes(&self) -> usize {
        1
    }
    fn shared(&self) -> bool {
        self.shared
    }
    fn commit(
        &self,
        batch: Box<dyn Batch>,
    ) -> Pending<'_, (Box<dyn Batch>, Result<(), StoreError>)> {
        Box::pin(std::future::ready((batch, Err(StoreError::Closed))))
    }
    fn payment(&self, _: PaymentKey) -> Pending<'_, Result<Option<Payment>, StoreError>> {
        none()
    }
    fn token(
        &self,
        _: Vec<crate::domain::key::TokenKey>,
    ) -> Pending<'_, Result<Option<Granted>, StoreError>> {
        none()
    }
    fn heads(&self) -> Pending<'_, Result<Vec<Head>, StoreError>> {
        let mut kept = self.kept();
        kept.heads.resize(2, Head::default());
        ready(kept.heads.clone())
    }
    fn events(
        &self,
        behind: Vec<Place>,
        limit: u32,
    ) -> Pending<'_, Result<Vec<Positioned>, StoreError>> {
        self.pages.fetch_add(1, Ordering::Relaxed);
        let kept = self.kept();
        let limit = usize::try_from(limit).unwrap();
        let page = behind.iter().flat_map(|place| {
            let events = kept.events.get(&place.partition).into_iter().flatten();
            events.filter(|event| event.position > place.position).take(limit).cloned()
        });
        ready(page.collect())
    }
    fn follow(
        &self,
        consumer: ConsumerName,
        mut decide: Follow,
    ) -> Pending<'_, Result<(), StoreError>> {
        let mut kept = self.kept();
        kept.heads.resize(2, Head::default());
        let following = Following {
            consumer: kept.consumers.get(&consumer).cloned(),
            heads: kept.heads.clone(),
            standing: kept.standing.clone().unwrap_or(STANDING),
        };
        match decide(following) {
            Kept::AsItIs => {}
            Kept::Consumer(next) => {
                kept.consumers.insert(consumer, next);
            }
            Kept::Nothing => {
                kept.consumers.remove(&consumer);
            }
        }
        ready(())
    }
    fn consumers(&self) -> Pending<'_, Result<Vec<(ConsumerName, Consumer)>, StoreError>> {
        ready(self.kept().consumers.clone().into_iter().collect())
    }
    fn standing(&self) -> Pending<'_, Result<Standing, StoreError>> {
        ready(self.kept().standing.clone().unwrap_or(STANDING))
    }
    fn change_standing(&self, change: StandingChange) -> Pending<'_, Result<Standing, StoreError>> {
        let mut kept = self.kept();
        let mut standing = kept.standing.clone().unwrap_or(STANDING);
        match change {
            StandingChange::ImportComplete => standing.onboarding = false,
            StandingChange::Suspect(why) => standing.suspect = Some(why),
            StandingChange::Reconciled(_) => {
                standing = Standing { epoch: standing.epoch + 1, suspect: None, ..standing };
            }
        }
        kept.standing = Some(standing.clone());
        ready(standing)
    }
    fn backlog(&self, _: Outstanding) -> Pending<'_, Result<Backlog, StoreError>> {
        none()
    }
    fn outstanding(
        &self,
        _: Outstanding,
        _: u32,
    ) -> Pending<'_, Result<Vec<OutstandingPayment>, StoreError>> {
        none()
    }
    fn purge(
        &self,
        upto: Vec<Place>,
        before: Timestamp,
        limit: u32,
    ) -> Pending<'_, Result<u64, StoreError>> {
        let mut left = u64::from(limit);
        let mut kept = self.kept();
        for place in upto {
            let events = kept.events.entry(place.partition).or_default();
            let old =
                |event: &&Positioned| event.position <= place.position && event.event.at < before;
            let gone = events.iter().take_while(old).count().min(usize::try_from(left).unwrap());
            let last = events.drain(..gone).next_back().map(|last| last.position);
            left -= u64::try_from(gone).unwrap();
            if let Some(last) = last {
                kept.heads[usize::from(place.partition)].purged = last;
            }
        }
        ready(u64::from(limit) - left)
    }
    fn page(&self, _: Cursor, _: u32) -> Pending<'_, Result<Page, StoreError>> {
        none()
    }
    fn fill(&self, _: Page) -> Pending<'_, Result<(), StoreError>> {
        none()
    }
    fn take_over(&self, _: Takeover) -> Pending<'_, Result<(), StoreError>> {
        none()
    }
}

const STANDING: Standing = Standing { epoch: 1, onboarding: false, suspect: None };

fn name() -> ConsumerName {
    ConsumerName::parse("executor").unwrap()
}

fn settings() -> Settings {
    Settings {
        required: vec![],
        retention: Duration::ZERO,
        purge_interval: Duration::from_millis(5),
        keep_alive: Duration::from_mins(1),
    }
}

fn room_with(store: &Arc<Memory>, settings: Settings) -> Feed {
    let store: Arc<dyn Store> = Arc::<Memory>::clone(store);
    Feed::start(store, Wake::default(), settings, Arc::new(|| NOW)).0
}

fn room(store: &Arc<Memory>) -> Feed {
    room_with(store, settings())
}

/// A stream that says what comes next, as `partition:position`, with `*` if it comes again.
struct Heard(Subscription, StreamId);

impl Heard {
    async fn step(&mut self) -> Result<Step, Error> {
        let step = time::timeout(PATIENCE, self.0.next()).await.expect("something is said");
        step.expect("a stream ends with an error")
    }

    async fn next(&mut self) -> String {
        match self.step().await {
            Ok(Step::Event { event, redriven, .. }) => {
                let again = if redriven { "*" } else { "" };
                format!("{}:{}{again}", event.partition, event.position)
            }
            Ok(Step::KeepAlive { .. }) => "alive".to_owned(),
            Ok(Step::Begun { .. }) => "begun".to_owned(),
            Err(end) => format!("{end}"),
        }
    }

    async fn many(&mut self, count: usize) -> Vec<String> {
        let mut heard = Vec::new();
        for _ in 0..count {
            heard.push(self.next().await);
        }
        heard
    }

    async fn says_nothing(&mut self) {
        let silence = time::timeout(Duration::from_millis(60), self.0.next()).await;
        assert!(silence.is_err(), "{:?}", silence.ok().flatten().map(Result::ok));
    }
}

async fn subscribe_by(feed: &Feed, command: Subscribe) -> Result<Heard, Error> {
    let mut subscription = feed.subscribe(name(), command, || {}).await?;
    let Some(Ok(Step::Begun { stream, .. })) = subscription.next().await else {
        panic!("a stream begins with its id")
    };
    Ok(Heard(subscription, stream))
}

async fn subscribe(feed: &Feed) -> Heard {
    subscribe_by(feed, Subscribe::default()).await.unwrap()
}

fn place(partition: u16, position: u64) -> Place {
    Place { partition, position }
}

async fn acknowledge(feed: &Feed, positions: Vec<Place>, events: Vec<EventId>) {
    let follower = Follower::default();
    let command = Acknowledge { follower, epoch: 1, positions, events };
    feed.acknowledge(&name(), command).await.unwrap();
}

fn id(store: &Memory, partition: u16, position: u64) -> EventId {
    let kept = store.kept();
    let events = &kept.events[&partition];
    events.iter().find(|event| event.position == position).unwrap().id
}

async fn park(feed: &Feed, store: &Memory, at: Place) -> Vec<Place> {
    let id = id(store, at.partition, at.position);
    let parked = feed.park(&name(), Follower::default(), 1, (at, id), "no account".into()).await;
    parked.unwrap()
}

#[tokio::test]
async fn what_is_committed_comes_first_and_then_what_is_committed_meanwhile() {
    let store = Arc::new(Memory::default());
    for count in 0..300 {
        store.append(count % 2, &format!("p{count}"), true);
    }
    let feed = room(&store);
    let mut heard = subscribe(&feed).await;
    let mut places = [0u64; 2];
    for _ in 0..300 {
        let Ok(Step::Event { event, redriven: false, epoch: 1 }) = heard.step().await else {
            panic!("an event")
        };
        let place = &mut places[usize::from(event.partition)];
        *place += 1;
        assert_eq!(event.position, *place);
    }
    heard.says_nothing().await;
    store.append(1, "live", true);
    feed.inner.wake.events_committed();
    assert_eq!(heard.next().await, "1:151");
}

#[tokio::test]
async fn what_is_not_durable_is_not_passed_on() {
    let store = Arc::new(Memory::default());
    store.append(0, "a", true);
    store.append(0, "b", false);
    let feed = room(&store);
    let mut heard = subscribe(&feed).await;
    assert_eq!(heard.next().await, "0:1");
    heard.says_nothing().await;
    store.kept().heads[0].position = 2;
    feed.inner.wake.events_committed();
    assert_eq!(heard.next().await, "0:2");
}

#[tokio::test]
async fn what_another_process_commits_is_heard_without_a_word() {
    let store = Arc::new(Memory { shared: true, ..Memory::default() });
    let feed = room(&store);
    let mut heard = subscribe(&feed).await;
    store.append(0, "a", true);
    assert_eq!(heard.next().await, "0:1");
    // and a claim of another process ends this one
    store.kept().consumers.get_mut(&name()).unwrap().progress.get_mut(&1).unwrap().stream =
        Some(StreamId([7; 16]));
    assert_eq!(heard.next().await, Refusal::Superseded.to_string());
}

#[tokio::test]
async fn who_takes_nothing_costs_one_page() {
    let store = Arc::new(Memory::default());
    for count in 0..10_000 {
        store.append(0, &format!("p{count}"), true);
    }
    let feed = room(&store);
    let mut heard = subscribe(&feed).await;
    assert_eq!(store.pages.load(Ordering::Relaxed), 0);
    heard.next().await;
    time::sleep(Duration::from_millis(50)).await;
    assert_eq!(store.pages.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_newer_stream_ends_the_older_and_other_partitions_go_on() {
    let store = Arc::new(Memory::default());
    let feed = room(&store);
    let of = |partition| Subscribe { partitions: vec![partition], ..Subscribe::default() };
    let mut zero = subscribe_by(&feed, of(0)).await.unwrap();
    let mut one = subscribe_by(&feed, of(1)).await.unwrap();
    let mut newer = subscribe_by(&feed, of(0)).await.unwrap();
    assert_eq!(zero.next().await, Refusal::Superseded.to_string());
    assert!(zero.0.next().await.is_none());
    for partition in [0, 1] {
        store.append(partition, "p", true);
    }
    feed.inner.wake.events_committed();
    assert_eq!((newer.next().await, one.next().await), ("0:1".to_owned(), "1:1".to_owned()));
    let follower = Follower { identity: None, stream: Some(zero.1) };
    let late = Acknowledge { follower, epoch: 1, positions: vec![place(0, 1)], events: vec![] };
    let refused = feed.acknowledge(&name(), late).await.unwrap_err();
    assert!(matches!(refused, Error::Refused(Refusal::Superseded)));
}

#[tokio::test]
async fn what_is_parked_holds_up_its_subject_alone_until_it_is_redriven() {
    let store = Arc::new(Memory::default());
    for payment in ["a", "b", "a"] {
        store.append(0, payment, true);
    }
    let feed = room(&store);
    let mut heard = subscribe(&feed).await;
    assert_eq!(heard.next().await, "0:1");
    // 2 and 3 were read in the same page; 3 waits all the same
    assert_eq!(park(&feed, &store, place(0, 1)).await, [place(0, 3)]);
    store.append(0, "a", true);
    store.append(0, "c", true);
    feed.inner.wake.events_committed();
    assert_eq!(heard.many(2).await, ["0:2", "0:5"]);
    let parked = store.kept().consumers[&name()].parked.clone();
    let told: Vec<_> = parked.iter().map(|it| (it.position, it.reason.as_deref())).collect();
    assert_eq!(told, [(1, Some("no account")), (3, None), (4, None)]);
    // a stream that begins later does not see them either
    acknowledge(&feed, vec![place(0, 2)], vec![]).await;
    assert_eq!(store.kept().consumers[&name()].progress[&0].acknowledged, 4);
    let mut heard = subscribe(&feed).await;
    assert_eq!(heard.next().await, "0:5");

    let first = Redrive::Events(vec![id(&store, 0, 1)]);
    assert_eq!(feed.redrive(&name(), first.clone()).await.unwrap(), 3);
    store.append(0, "a", true);
    feed.inner.wake.events_committed();
    assert_eq!(heard.many(4).await, ["0:1*", "0:3*", "0:4*", "0:6"]);
    // set aside once more, it comes once more
    assert_eq!(park(&feed, &store, place(0, 1)).await, [place(0, 3), place(0, 4), place(0, 6)]);
    feed.redrive(&name(), first).await.unwrap();
    assert_eq!(heard.many(4).await, ["0:1*", "0:3*", "0:4*", "0:6*"]);
    let ids = [1, 3, 4, 6].map(|position| id(&store, 0, position));
    acknowledge(&feed, vec![], ids.to_vec()).await;
    assert_eq!(store.kept().consumers[&name()].parked, []);
    heard.says_nothing().await;
}

#[tokio::test]
async fn an_event_is_parked_by_its_place_and_its_id() {
    let store = Arc::new(Memory::default());
    for payment in ["a", "b", "c"] {
        store.append(0, payment, true);
    }
    store.purge_to(0, 1);
    let feed = room(&store);
    subscribe(&feed).await;
    let right = id(&store, 0, 2);
    for (position, refusal) in [
        (0, Refusal::OtherEvent),
        (1, Refusal::Purged { least: vec![place(0, 1)] }),
        (3, Refusal::OtherEvent),
        (4, Refusal::AheadOfFeed { head: place(0, 3) }),
    ] {
        let follower = Follower::default();
        let at = (place(0, position), right);
        let refused = feed.park(&name(), follower, 1, at, "why".into()).await.unwrap_err();
        assert!(matches!(&refused, Error::Refused(it) if *it == refusal), "{refused}");
    }
}

#[tokio::test]
async fn a_gap_that_was_purged_is_told_and_any_other_is_damage() {
    for purged in [true, false] {
        let store = Arc::new(Memory::default());
        for payment in ["a", "b", "c"] {
            store.append(0, payment, true);
        }
        let feed = room(&store);
        let mut heard = subscribe(&feed).await;
        store.purge_to(0, 2);
        store.kept().heads[0].purged = if purged { 2 } else { 0 };
        let end = heard.step().await.unwrap_err();
        if purged {
            let least = vec![place(0, 2)];
            assert!(matches!(end, Error::Refused(refusal) if refusal == Refusal::Purged { least }));
        } else {
            assert!(matches!(end, Error::Store(StoreError::Damaged("event"))));
        }
    }
}

#[tokio::test]
async fn who_knows_more_than_the_store_makes_it_suspect() {
    let store = Arc::new(Memory::default());
    store.append(0, "a", true);
    let feed = room(&store);
    let command =
        || Subscribe { epoch: Some(1), last_seen: vec![place(0, 2)], ..Subscribe::default() };
    for _ in 0..2 {
        let refused = subscribe_by(&feed, command()).await.err().unwrap();
        assert!(matches!(refused, Error::Refused(Refusal::Restored(_))), "{refused}");
    }
    let suspect = store.kept().standing.clone().unwrap().suspect;
    let told = "consumer executor: partition 0: it was told of 2, the store ends at 1";
    assert_eq!(suspect.as_deref(), Some(told));
}

#[tokio::test]
async fn a_new_epoch_ends_the_streams_of_the_old_one() {
    let store = Arc::new(Memory::default());
    let feed = room(&store);
    let mut heard = subscribe(&feed).await;
    store.change_standing(StandingChange::Reconciled("done".to_owned())).await.unwrap();
    assert_eq!(heard.next().await, Refusal::EpochChanged { epoch: 2 }.to_string());
}

#[tokio::test]
async fn a_stop_ends_streams_and_cuts_the_one_that_nobody_reads() {
    let store = Arc::new(Memory::default());
    let feed = room(&store);
    let mut heard = subscribe(&feed).await;
    let (cut, was_cut) = tokio::sync::oneshot::channel();
    let other = ConsumerName::parse("silent").unwrap();
    let silent = feed.subscribe(other, Subscribe::default(), move || {
        cut.send(()).expect("somebody waits");
    });
    let silent = silent.await.unwrap();
    let begun = Instant::now();
    feed.stop();
    assert_eq!(heard.next().await, Error::Stopping.to_string());
    time::timeout(PATIENCE, was_cut).await.unwrap().unwrap();
    assert!(begun.elapsed() >= OVERSTAY);
    drop(silent);
    let refused = subscribe_by(&feed, Subscribe::default()).await.err().unwrap();
    assert!(matches!(refused, Error::Stopping));
}

#[tokio::test]
async fn a_silent_stream_says_that_it_lives() {
    let store = Arc::new(Memory::default());
    let feed = room_with(&store, Settings { keep_alive: Duration::from_millis(20), ..settings() });
    let mut heard = subscribe(&feed).await;
    assert_eq!(heard.many(2).await, ["alive", "alive"]);
}

#[tokio::test]
async fn events_go_once_every_required_consumer_has_them_behind_it() {
    let store = Arc::new(Memory::default());
    for count in 0..2_500 {
        store.append(0, &format!("p{count}"), true);
    }
    let required = vec![name(), ConsumerName::parse("audit").unwrap()];
    let old = Arc::new(|| Timestamp { unix_ms: NOW.unix_ms + 1 });
    let shared: Arc<dyn Store> = Arc::<Memory>::clone(&store);
    let settings = Settings { required, ..settings() };
    let (feed, ended) = Feed::start(shared, Wake::default(), settings, old);
    subscribe(&feed).await;
    acknowledge(&feed, vec![place(0, 2_400)], vec![]).await;
    time::sleep(Duration::from_millis(50)).await;
    assert_eq!(store.kept().heads[0].purged, 0, "the other does not exist");
    let other = ConsumerName::parse("audit").unwrap();
    drop(feed.subscribe(other.clone(), Subscribe::default(), || {}).await.unwrap());
    let command = Acknowledge { epoch: 1, positions: vec![place(0, 2_300)], ..Default::default() };
    let suspect = StandingChange::Suspect("why".to_owned());
    store.change_standing(suspect).await.unwrap();
    feed.acknowledge(&other, command).await.unwrap();
    time::sleep(Duration::from_millis(50)).await;
    assert_eq!(store.kept().heads[0].purged, 0, "a suspect store keeps what it has");
    store.kept().standing = None;
    let begun = Instant::now();
    while store.kept().heads[0].purged != 2_300 {
        assert!(begun.elapsed() < PATIENCE);
        time::sleep(Duration::from_millis(5)).await;
    }
    let refused = feed.forget(&other, Forget::default()).await.unwrap_err();
    assert!(matches!(refused, Error::Refused(Refusal::Required)));
    feed.stop();
    time::timeout(PATIENCE, ended).await.unwrap().unwrap();
}
