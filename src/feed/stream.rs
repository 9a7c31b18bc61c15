//! One stream: what is set aside and comes again, the backlog page by page, then what is committed meanwhile.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet, VecDeque},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::stream::{self, Stream};
use tokio::{sync::watch, time};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Error, Inner, OVERSTAY, ground, kept, stood};
use crate::{
    domain::{
        consumer::{
            ConsumerName, Follower, Head, Parked, Place, Refusal, StreamId,
            park::{self, Reach, Stood},
            subscribe::Subscribed,
        },
        event::EventId,
        key::Subject,
        time::Timestamp,
    },
    store::{self, Positioned},
};

/// Most events that a stream holds at once.
const PAGE: usize = 128;
/// Most bytes of them, one event more or less: a `passThroughInfo` may have 80 KB.
const PAGE_BYTES: usize = 256 * 1024;
/// What an event is taken to need beside its `passThroughInfo`, in bytes.
const EVENT_BYTES: usize = 512;

/// One thing that a stream says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// It begins. Always first, and once.
    Begun {
        /// Its id.
        stream: StreamId,
        /// The feed's epoch.
        epoch: u64,
    },
    /// An event.
    Event {
        /// The event.
        event: Box<Positioned>,
        /// Whether it was set aside before and comes again.
        redriven: bool,
        /// The feed's epoch.
        epoch: u64,
    },
    /// Nothing happened for a while.
    KeepAlive {
        /// The feed's epoch.
        epoch: u64,
    },
}

/// A stream of a consumer's; the error is its end.
pub struct Subscription {
    steps: Pin<Box<dyn Stream<Item = Result<Step, Error>> + Send>>,
}

impl Stream for Subscription {
    type Item = Result<Step, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.steps.as_mut().poll_next(cx)
    }
}

impl Subscription {
    pub(super) fn new(
        inner: &Arc<Inner>,
        name: ConsumerName,
        id: StreamId,
        epoch: u64,
        begun: Subscribed,
        changes: watch::Receiver<u64>,
        cut: impl FnOnce() + Send + 'static,
    ) -> Self {
        let gone = CancellationToken::new();
        tokio::spawn(overstay(inner.stop.clone(), gone.clone(), cut));
        let reader = Reader {
            name,
            id,
            epoch,
            places: begun.places.iter().map(|place| (place.partition, place.position)).collect(),
            heads: inner.heads.subscribe(),
            epochs: inner.epoch.subscribe(),
            changes,
            parked: begun.consumer.parked,
            again: HashSet::new(),
            ready: VecDeque::from([Step::Begun { stream: id, epoch }]),
            turn: 0,
            _gone: gone.drop_guard(),
            inner: Arc::clone(inner),
        };
        let steps = stream::unfold(Some(reader), |reader| async {
            let mut reader = reader?;
            match reader.next().await {
                Ok(step) => Some((Ok(step), Some(reader))),
                Err(end) => {
                    reader.ended(&end);
                    Some((Err(end), None))
                }
            }
        });
        Self { steps: Box::pin(steps) }
    }
}

/// A peer that reads nothing is not told of the end either, nor does it end its connection: after a while that is cut.
async fn overstay(stop: CancellationToken, gone: CancellationToken, cut: impl FnOnce()) {
    tokio::select! {
        // in order, so that the end comes first and a simulation sees no dice
        biased;
        () = gone.cancelled() => return,
        () = stop.cancelled() => {}
    }
    time::sleep(OVERSTAY).await;
    cut();
}

struct Reader {
    inner: Arc<Inner>,
    name: ConsumerName,
    id: StreamId,
    epoch: u64,
    /// The last event of each partition that was sent, or need not be.
    places: BTreeMap<u16, u64>,
    heads: watch::Receiver<Arc<[Head]>>,
    epochs: watch::Receiver<u64>,
    changes: watch::Receiver<u64>,
    /// What the consumer has set aside, as of the last look.
    parked: Vec<Parked>,
    /// Of these, what this stream has sent again, and since when it was set aside then.
    again: HashSet<(EventId, Timestamp)>,
    /// What is to be sent next.
    ready: VecDeque<Step>,
    /// The partition that a page begins with, so that each has its turn.
    turn: u16,
    /// Tells that the stream is gone.
    _gone: DropGuard,
}

impl Reader {
    async fn next(&mut self) -> Result<Step, Error> {
        let silent_until = time::Instant::now() + self.inner.settings.keep_alive;
        loop {
            self.may_go_on().await?;
            if let Some(step) = self.ready.pop_front() {
                return Ok(step);
            }
            if self.fill_again().await? || self.fill().await? {
                continue;
            }
            let stop = self.inner.stop.clone();
            let closed = tokio::select! {
                // in order, so that the end comes first and a simulation sees no dice
                biased;
                () = stop.cancelled() => return Err(Error::Stopping),
                changed = self.heads.changed() => changed,
                changed = self.changes.changed() => {
                    // to be seen again by whoever looks
                    self.changes.mark_changed();
                    changed
                }
                changed = self.epochs.changed() => {
                    self.epochs.mark_changed();
                    changed
                }
                () = time::sleep_until(silent_until) => {
                    return Ok(Step::KeepAlive { epoch: self.epoch });
                }
            };
            closed.map_err(|_| Error::Stopping)?;
        }
    }

    /// Ends the stream if it may not go on, and sees what is set aside if that changed.
    async fn may_go_on(&mut self) -> Result<(), Error> {
        if self.inner.stop.is_cancelled() {
            return Err(Error::Stopping);
        }
        let epoch = *self.epochs.borrow_and_update();
        if epoch != self.epoch {
            return Err(Refusal::EpochChanged { epoch }.into());
        }
        if self.changes.has_changed().unwrap_or(true) {
            self.look().await?;
        }
        Ok(())
    }

    /// Looks at the consumer: does it still read its partitions by this stream, and what is set aside?
    async fn look(&mut self) -> Result<(), Error> {
        self.changes.borrow_and_update();
        let told = self.inner.told(&self.name).await?;
        for partition in self.places.keys() {
            let reader = told.consumer.progress.get(partition).and_then(|it| it.stream);
            if reader != Some(self.id) {
                return Err(Refusal::Superseded.into());
            }
        }
        self.see(told.consumer.parked);
        Ok(())
    }

    fn see(&mut self, parked: Vec<Parked>) {
        self.parked = parked;
        let redriven: HashSet<EventId> =
            self.parked.iter().filter(|it| it.redrive).map(|it| it.event).collect();
        self.again.retain(|(id, _)| redriven.contains(id));
        let held: HashSet<EventId> =
            self.parked.iter().filter(|it| !it.redrive).map(|it| it.event).collect();
        self.ready.retain(|step| match step {
            Step::Event { event, redriven: true, .. } => redriven.contains(&event.id),
            Step::Event { event, redriven: false, .. } => !held.contains(&event.id),
            Step::Begun { .. } | Step::KeepAlive { .. } => true,
        });
    }

    /// Makes ready what was set aside and is to come again: before anything that stands behind it.
    async fn fill_again(&mut self) -> Result<bool, Error> {
        let due = |parked: &&Parked| {
            parked.redrive
                && self.places.contains_key(&parked.partition)
                // what is set aside once more comes once more
                && !self.again.contains(&(parked.event, parked.at))
        };
        let due: Vec<(Place, EventId, Timestamp)> = self
            .parked
            .iter()
            .filter(due)
            .take(PAGE)
            .map(|parked| {
                let Parked { partition, position, event, at, .. } = *parked;
                (Place { partition, position }, event, at)
            })
            .collect();
        let mut bytes = 0usize;
        for (place, id, at) in &due {
            if bytes > PAGE_BYTES {
                break;
            }
            self.again.insert((*id, *at));
            match self.inner.event(*place, *id).await {
                Ok(event) => {
                    bytes = bytes.saturating_add(size(&event));
                    self.make_ready(event, true);
                }
                Err(Error::Refused(refusal)) => {
                    tracing::error!(
                        consumer = self.name.as_str(), event_id = %id, %refusal,
                        "a parked event cannot be delivered again"
                    );
                }
                Err(error) => return Err(error),
            }
        }
        Ok(!due.is_empty())
    }

    /// Makes a page ready, of the partitions whose turn it is.
    async fn fill(&mut self) -> Result<bool, Error> {
        let heads = Arc::clone(&self.heads.borrow_and_update());
        let head = |partition: u16| heads.get(usize::from(partition)).copied().unwrap_or_default();
        let behind = |(&partition, &position): (&u16, &u64)| {
            (position < head(partition).position).then_some(Place { partition, position })
        };
        let turn = self.turn;
        let (before, rest): (Vec<Place>, Vec<Place>) =
            self.places.iter().filter_map(behind).partition(|place| place.partition < turn);
        let mut chosen: Vec<Place> = rest.into_iter().chain(before).take(PAGE).collect();
        let Some(last) = chosen.last() else { return Ok(false) };
        self.turn = last.partition.saturating_add(1);
        chosen.sort_unstable();
        let limit = PAGE.checked_div(chosen.len()).unwrap_or(1);
        let limit = u32::try_from(limit).unwrap_or(1);
        let mut page =
            self.inner.store.events(chosen.clone(), limit).await.map_err(Error::Store)?;
        // a store may tell of events that are not durable yet
        page.retain(|event| event.position <= head(event.partition).position);
        self.gapless(&chosen, &page).await?;
        let mut bytes = 0usize;
        page.retain(|event| {
            let fits = bytes <= PAGE_BYTES;
            bytes = bytes.saturating_add(size(event));
            fits
        });
        let waiting = self.hold(&page).await?;
        for event in page {
            let place = Place { partition: event.partition, position: event.position };
            self.places.insert(place.partition, place.position);
            if !waiting.contains(&place) {
                self.make_ready(event, false);
            }
        }
        Ok(true)
    }

    fn make_ready(&mut self, event: Positioned, redriven: bool) {
        let (event, epoch) = (Box::new(event), self.epoch);
        self.ready.push_back(Step::Event { event, redriven, epoch });
    }

    /// Positions are 1, 2, 3 …: whatever is missing was purged, or the store is damaged.
    async fn gapless(&self, chosen: &[Place], page: &[Positioned]) -> Result<(), Error> {
        let mut missing = None;
        for place in chosen {
            let mut due = place.position;
            let mut found = page.iter().filter(|event| event.partition == place.partition);
            let gapless = found.clone().next().is_some()
                && found.all(|event| {
                    due = due.saturating_add(1);
                    event.position == due
                });
            if !gapless {
                missing =
                    Some(Place { position: due.max(place.position.saturating_add(1)), ..*place });
            }
        }
        let Some(missing) = missing else { return Ok(()) };
        let heads = self.inner.store.heads().await.map_err(Error::Store)?;
        let purged = heads.get(usize::from(missing.partition)).map_or(0, |head| head.purged);
        if missing.position <= purged {
            let least = vec![Place { position: purged, ..missing }];
            return Err(Refusal::Purged { least }.into());
        }
        let Place { partition, position } = missing;
        tracing::error!(partition, position, "an event is missing from the feed");
        Err(Error::Store(store::Error::Damaged("event")))
    }

    /// Which of a page are not to be sent, because they are set aside or wait; those that wait are recorded first.
    async fn hold(&mut self, page: &[Positioned]) -> Result<BTreeSet<Place>, Error> {
        // an event that was set aside after the last look may have let this page come
        if self.changes.has_changed().unwrap_or(true) {
            self.look().await?;
        }
        if self.parked.is_empty() {
            return Ok(BTreeSet::new());
        }
        let mut parked = BTreeSet::new();
        let mut subjects: HashSet<&Subject> = HashSet::new();
        for it in &self.parked {
            parked.insert(Place { partition: it.partition, position: it.position });
            if !it.redrive {
                subjects.insert(&it.subject);
            }
        }
        let events: Vec<Stood> = page
            .iter()
            .map(stood)
            .filter(|event| !parked.contains(&event.place) && subjects.contains(&event.subject))
            .collect();
        if events.is_empty() {
            return Ok(parked);
        }
        let follower = Follower { identity: None, stream: Some(self.id) };
        let command = Reach { follower, events, at: (self.inner.now)() };
        let (waiting, consumer) = self
            .inner
            .change(&self.name, move |following| {
                let consumer = following.consumer.as_ref();
                let reached = park::reach(consumer, &command, &ground(following))?;
                let now = reached.next.clone().or_else(|| consumer.cloned()).unwrap_or_default();
                Ok(((reached.waiting, now), kept(reached.next)))
            })
            .await?;
        parked.extend(waiting);
        self.see(consumer.parked);
        Ok(parked)
    }

    fn ended(&self, end: &Error) {
        tracing::info!(consumer = self.name.as_str(), %end, "a stream ended");
    }
}

fn size(event: &Positioned) -> usize {
    let info = event.event.pass_through_info.as_ref();
    info.map_or(0, |info| info.as_str().len()).saturating_add(EVENT_BYTES)
}
