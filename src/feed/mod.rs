//! Committed events in order, for consumers that follow them: replay from a place, then live.
//!
//! A [`Subscription`] is pulled: it reads a page of events when whoever follows has taken the last one, so a consumer
//! that reads slowly, or never, costs one page and nobody else anything. What it passes on is durable: it stops at the
//! heads that the store told of.
//!
//! Live events are heard of in two ways. The engine of this process says so after each commit ([`Wake`]); where other
//! processes commit to the same store, one look at the heads every 40 ms serves all streams together, and only as
//! long as there is one.

mod retention;
mod stream;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    sync::{Notify, Semaphore, watch},
    task::{JoinHandle, JoinSet},
    time,
};
use tokio_util::sync::CancellationToken;

pub use self::stream::{Step, Subscription};
use crate::{
    domain::{
        consumer::{
            CONSUMERS_MAX, Consumer, ConsumerName, Follower, Ground, Head, Place, Refusal,
            StreamId,
            acknowledge::{self, Acknowledge},
            forget::{self, Forget},
            park::{self, Park, Reach, Stood},
            redrive::{self, Redrive},
            subscribe::{self, Subscribe},
        },
        event::EventId,
        key::Partitions,
        time::Timestamp,
    },
    store::{self, Following, Kept, Positioned, StandingChange, Store},
};

/// Consumers' changes stand in the same queue as decisions in the embedded store.
const CHANGES_AT_ONCE: usize = 8;
/// How often the heads of a store are looked at that others commit to.
const LOOK: Duration = Duration::from_millis(40);
/// How often what others may have changed is looked at: the epoch, and who reads what.
const LOOK_ASIDE: Duration = Duration::from_millis(250);
/// How long to wait after the store could not be asked.
const PAUSE: Duration = Duration::from_millis(100);
/// How long after the stop the connection of an open stream may stay: a peer that reads nothing never hears of the end.
const OVERSTAY: Duration = Duration::from_secs(2);
/// Events looked at in one go for what waits behind one that was set aside.
const SCAN: u32 = 1_024;
/// How many of these at most: no consumer has been sent more than it has not answered.
const SCANS: usize = 16;

/// How the feed behaves.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Consumers without whose acknowledgement nothing is purged; if there are none, nothing is.
    pub required: Vec<ConsumerName>,
    /// How old an event is at least when it is purged.
    pub retention: Duration,
    /// How often there is a look at what may be purged.
    pub purge_interval: Duration,
    /// How long a stream is silent at most.
    pub keep_alive: Duration,
}

/// Why a call of a consumer's was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It may not be.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// The service is ending.
    #[error("the service is stopping")]
    Stopping,
    /// The caller's time is over. Whether it was done nobody knows; it may be repeated.
    #[error("deadline passed")]
    DeadlinePassed,
    /// The store failed.
    #[error("feed could not be read or changed")]
    Store(#[source] store::Error),
}

/// Gives up when the caller does.
pub async fn within<T>(
    deadline: Instant,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    time::timeout_at(deadline.into(), work).await.unwrap_or(Err(Error::DeadlinePassed))
}

/// Says that events were committed. Clones wake the same feed.
#[derive(Clone, Debug, Default)]
pub struct Wake(Arc<Notify>);

impl Wake {
    /// Events are there that were not there before.
    pub fn events_committed(&self) {
        self.0.notify_one();
    }
}

/// This moment.
pub type Now = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// The feed's handle; clones share it.
#[derive(Clone)]
pub struct Feed {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<dyn Store>,
    settings: Settings,
    now: Now,
    wake: Wake,
    /// How far each partition is known to go; everything up to there is durable.
    heads: watch::Sender<Arc<[Head]>>,
    /// The feed's epoch; 0 as long as nobody asked.
    epoch: watch::Sender<u64>,
    /// Counts, by consumer that is followed here, how often its streams have to look at it again.
    changes: Mutex<HashMap<ConsumerName, watch::Sender<u64>>>,
    /// Changes of consumers at once: however many are asked for, decisions do not stand behind all of them.
    changing: Semaphore,
    stop: CancellationToken,
}

/// A consumer, and what it is behind of.
#[derive(Clone, Debug)]
pub struct Told {
    /// The consumer.
    pub consumer: Consumer,
    /// Of every partition, by number.
    pub heads: Vec<Head>,
    /// The feed's epoch.
    pub epoch: u64,
}

impl Feed {
    /// Starts what runs beside the streams. It ends after [`Self::stop`]: await the second value then.
    pub fn start(
        store: Arc<dyn Store>,
        wake: Wake,
        settings: Settings,
        now: Now,
    ) -> (Self, JoinHandle<()>) {
        let inner = Arc::new(Inner {
            store,
            settings,
            now,
            wake,
            heads: watch::Sender::new(Arc::default()),
            epoch: watch::Sender::new(0),
            changes: Mutex::default(),
            changing: Semaphore::new(CHANGES_AT_ONCE),
            stop: CancellationToken::new(),
        });
        let mut beside = JoinSet::new();
        beside.spawn(follow_heads(Arc::clone(&inner)));
        beside.spawn(look_aside(Arc::clone(&inner)));
        beside.spawn(retention::run(Arc::clone(&inner)));
        let ended = tokio::spawn(async move {
            while let Some(task) = beside.join_next().await {
                if let Err(error) = task {
                    tracing::error!(%error, "a task of the feed ended before its time");
                }
            }
        });
        (Self { inner }, ended)
    }

    /// Ends every stream and what runs beside them.
    pub fn stop(&self) {
        self.inner.stop.cancel();
    }

    /// How many partitions there are.
    pub fn partitions(&self) -> Partitions {
        self.inner.store.partitions()
    }

    /// Whether the settings demand this consumer.
    pub fn is_required(&self, name: &ConsumerName) -> bool {
        self.inner.settings.required.contains(name)
    }

    /// Begins a stream; `command.stream` is given here, and no partitions are all of them. `cut` ends the connection
    /// under a stream whose peer does not even take the end of it.
    pub async fn subscribe(
        &self,
        name: ConsumerName,
        command: Subscribe,
        cut: impl FnOnce() + Send + 'static,
    ) -> Result<Subscription, Error> {
        if self.inner.stop.is_cancelled() {
            return Err(Error::Stopping);
        }
        let mut command = Subscribe { stream: StreamId(rand::random()), ..command };
        if command.partitions.is_empty() {
            command.partitions = (0..self.partitions().count()).collect();
        }
        let stream = command.stream;
        self.admit(&name).await?;
        // before the claim, so that no later claim is missed
        let changes = self.inner.changes_of(&name);
        let begun = self
            .inner
            .change(&name, move |following| {
                let ground = ground(following);
                let begun = subscribe::decide(following.consumer.as_ref(), &command, &ground)?;
                let kept = begun.consumer.clone();
                Ok(((begun, ground.epoch), Kept::Consumer(kept)))
            })
            .await;
        let (begun, epoch) = match begun {
            Err(Error::Refused(Refusal::Restored(proof))) => {
                return Err(self.suspect(&name, proof).await);
            }
            begun => begun?,
        };
        tracing::info!(consumer = name.as_str(), partitions = begun.places.len(), "subscribed");
        self.inner.nudge(&name);
        let subscription = Subscription::new(&self.inner, name, stream, epoch, begun, changes, cut);
        // once it listens: whatever was committed since its claim is looked for now
        self.inner.wake.events_committed();
        Ok(subscription)
    }

    /// Refuses one name too many: each is kept, and looked at, for ever. Two that come at once may both get in.
    async fn admit(&self, name: &ConsumerName) -> Result<(), Error> {
        match self.inner.told(name).await {
            Err(Error::Refused(Refusal::Unknown)) => {}
            Ok(_) => return Ok(()),
            Err(error) => return Err(error),
        }
        let consumers = self.inner.store.consumers().await.map_err(Error::Store)?;
        if consumers.len() >= CONSUMERS_MAX {
            Err(Refusal::TooManyConsumers.into())
        } else {
            Ok(())
        }
    }

    /// Nothing is decided any more until `reconcile`: whatever was committed and is lost could be decided otherwise.
    async fn suspect(&self, name: &ConsumerName, proof: String) -> Error {
        tracing::error!(
            consumer = name.as_str(),
            proof,
            "a consumer knows more than the store, which was restored from a backup; cancels are answered U until `reconcile`"
        );
        let why = format!("consumer {}: {proof}", name.as_str());
        match self.inner.store.change_standing(StandingChange::Suspect(why)).await {
            Ok(_) => Refusal::Restored(proof).into(),
            Err(error) => Error::Store(error),
        }
    }

    /// See [`acknowledge`]; answers the consumer's places.
    pub async fn acknowledge(
        &self,
        name: &ConsumerName,
        command: Acknowledge,
    ) -> Result<Vec<Place>, Error> {
        let by_id = !command.events.is_empty();
        let positions = self
            .inner
            .change(name, move |following| {
                let decided =
                    acknowledge::decide(following.consumer.as_ref(), &command, &ground(following))?;
                Ok((decided.positions, kept(decided.next)))
            })
            .await?;
        if by_id {
            self.inner.nudge(name);
        }
        Ok(positions)
    }

    /// See [`park`]; answers the places of later events of the same subject, which wait with it. They may have been sent.
    pub async fn park(
        &self,
        name: &ConsumerName,
        follower: Follower,
        epoch: u64,
        (place, id): (Place, EventId),
        reason: Box<str>,
    ) -> Result<Vec<Place>, Error> {
        let event = self.inner.event(place, id).await?;
        let at = (self.inner.now)();
        let event = stood(&event);
        let command = Park {
            follower: follower.clone(),
            epoch,
            event: event.clone(),
            reason: reason.clone(),
            at,
        };
        self.inner
            .change(name, move |following| {
                let consumer =
                    park::decide(following.consumer.as_ref(), &command, &ground(following))?;
                Ok(((), Kept::Consumer(consumer)))
            })
            .await?;
        tracing::warn!(
            consumer = name.as_str(),
            event_id = %event.event,
            subject = event.subject.id(),
            %reason,
            "a consumer parked an event"
        );
        // from here on no stream of this process passes a later one; what was passed before is found here
        self.inner.nudge(name);
        let events = self.inner.later(&event).await?;
        if events.is_empty() {
            return Ok(Vec::new());
        }
        let command = Reach { follower, events, at };
        let waiting = self
            .inner
            .change(name, move |following| {
                let reached =
                    park::reach(following.consumer.as_ref(), &command, &ground(following))?;
                Ok((reached.waiting, kept(reached.next)))
            })
            .await?;
        self.inner.nudge(name);
        Ok(waiting.into_iter().collect())
    }

    /// See [`redrive`]; answers how many events come again.
    pub async fn redrive(&self, name: &ConsumerName, command: Redrive) -> Result<usize, Error> {
        let count = self
            .inner
            .change(name, move |following| {
                let decided =
                    redrive::decide(following.consumer.as_ref(), &command, &ground(following))?;
                Ok((decided.count, kept(decided.next)))
            })
            .await?;
        tracing::info!(consumer = name.as_str(), events = count, "redriven");
        self.inner.nudge(name);
        Ok(count)
    }

    /// See [`forget`].
    pub async fn forget(&self, name: &ConsumerName, command: Forget) -> Result<(), Error> {
        let command = Forget { required: self.is_required(name), ..command };
        self.inner
            .change(name, move |following| {
                forget::decide(following.consumer.as_ref(), &command)?;
                Ok(((), Kept::Nothing))
            })
            .await?;
        tracing::info!(consumer = name.as_str(), "forgotten");
        self.inner.nudge(name);
        Ok(())
    }

    /// One consumer, and what it is behind of.
    pub async fn told(&self, name: &ConsumerName) -> Result<Told, Error> {
        self.inner.told(name).await
    }

    /// The first event in each of these partitions that the consumer has not acknowledged was decided then, the oldest
    /// of them.
    pub async fn oldest(&self, told: &Told) -> Result<Option<Timestamp>, Error> {
        let behind = told.consumer.behind(&told.heads);
        if behind.is_empty() {
            return Ok(None);
        }
        let firsts = self.inner.store.events(behind, 1).await.map_err(Error::Store)?;
        Ok(firsts.iter().map(|first| first.event.at).min())
    }

    /// Every consumer, by name, with the heads they are behind of and the epoch.
    pub async fn consumers(
        &self,
    ) -> Result<(Vec<(ConsumerName, Consumer)>, Vec<Head>, u64), Error> {
        let store = &self.inner.store;
        let heads = store.heads().await.map_err(Error::Store)?;
        let consumers = store.consumers().await.map_err(Error::Store)?;
        let standing = store.standing().await.map_err(Error::Store)?;
        Ok((consumers, heads, standing.epoch))
    }
}

fn ground(following: &Following) -> Ground<'_> {
    Ground { heads: &following.heads, epoch: following.standing.epoch }
}

fn kept(next: Option<Consumer>) -> Kept {
    next.map_or(Kept::AsItIs, Kept::Consumer)
}

fn stood(event: &Positioned) -> Stood {
    Stood {
        place: Place { partition: event.partition, position: event.position },
        event: event.id,
        subject: event.event.subject.clone(),
    }
}

impl Inner {
    /// Changes a consumer by a rule, in one transaction.
    async fn change<T: Send + 'static>(
        &self,
        name: &ConsumerName,
        mut rule: impl FnMut(&Following) -> Result<(T, Kept), Refusal> + Send + 'static,
    ) -> Result<T, Error> {
        let decided = Arc::new(Mutex::new(None));
        let last = Arc::clone(&decided);
        let follow = Box::new(move |following: Following| {
            let (answer, kept) = match rule(&following) {
                Ok((answer, kept)) => (Ok(answer), kept),
                Err(refusal) => (Err(refusal), Kept::AsItIs),
            };
            let ground = (following.heads, following.standing.epoch);
            // asked again, only the last answer counts
            *last.lock().unwrap_or_else(PoisonError::into_inner) = Some((answer, ground));
            kept
        });
        let closed = |_| Error::Store(store::Error::Closed);
        let permit = self.changing.acquire().await.map_err(closed)?;
        self.store.follow(name.clone(), follow).await.map_err(Error::Store)?;
        drop(permit);
        let decided = decided.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((answer, (heads, epoch))) = decided else {
            return Err(Error::Store(store::Error::Closed));
        };
        self.learn_epoch(epoch);
        self.learn(&heads);
        Ok(answer?)
    }

    async fn told(&self, name: &ConsumerName) -> Result<Told, Error> {
        self.change(name, |following| {
            let consumer = following.consumer.clone().ok_or(Refusal::Unknown)?;
            let (heads, epoch) = (following.heads.clone(), following.standing.epoch);
            Ok((Told { consumer, heads, epoch }, Kept::AsItIs))
        })
        .await
    }

    /// Heads only go forward, whichever of two looks at them is heard of first.
    fn learn(&self, heads: &[Head]) {
        self.heads.send_if_modified(|known| {
            let forward = |(at, head): (usize, &Head)| {
                let known = known.get(at).copied().unwrap_or_default();
                Head {
                    position: head.position.max(known.position),
                    purged: head.purged.max(known.purged),
                }
            };
            let next: Arc<[Head]> = heads.iter().enumerate().map(forward).collect();
            let news = next != *known;
            *known = next;
            news
        });
    }

    fn learn_epoch(&self, epoch: u64) {
        let is_new = self.epoch.send_if_modified(|known| {
            let news = epoch > *known;
            *known = epoch.max(*known);
            news
        });
        if is_new {
            // a restored store may end before the one we knew
            self.heads.send_replace(Arc::default());
        }
    }

    fn changes_of(&self, name: &ConsumerName) -> watch::Receiver<u64> {
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        // whom nobody follows any more costs nothing
        changes.retain(|_, sender| sender.receiver_count() > 0);
        changes.entry(name.clone()).or_default().subscribe()
    }

    /// Has the streams of a consumer look at it again.
    fn nudge(&self, name: &ConsumerName) {
        let changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = changes.get(name) {
            sender.send_modify(|count| *count = count.wrapping_add(1));
        }
    }

    /// The event at a place, if it is this one.
    async fn event(&self, place: Place, id: EventId) -> Result<Positioned, Error> {
        let before = place.position.checked_sub(1).ok_or(Refusal::OtherEvent)?;
        let behind = vec![Place { position: before, ..place }];
        let found = self.store.events(behind, 1).await.map_err(Error::Store)?;
        let found = found.into_iter().next().filter(|event| event.position == place.position);
        if let Some(event) = found {
            return if event.id == id { Ok(event) } else { Err(Refusal::OtherEvent.into()) };
        }
        let heads = self.store.heads().await.map_err(Error::Store)?;
        let head = heads.get(usize::from(place.partition)).copied().unwrap_or_default();
        if place.position <= head.purged {
            let least = vec![Place { position: head.purged, ..place }];
            return Err(Refusal::Purged { least }.into());
        }
        Err(Refusal::AheadOfFeed { head: Place { position: head.position, ..place } }.into())
    }

    /// Committed events of the same subject that stand behind this one.
    async fn later(&self, event: &Stood) -> Result<Vec<Stood>, Error> {
        let heads = self.store.heads().await.map_err(Error::Store)?;
        let head = heads.get(usize::from(event.place.partition)).copied().unwrap_or_default();
        let (mut place, mut later) = (event.place, Vec::new());
        for _ in 0..SCANS {
            if place.position >= head.position {
                break;
            }
            let page = self.store.events(vec![place], SCAN).await.map_err(Error::Store)?;
            let Some(last) = page.last() else { break };
            place.position = last.position;
            let durable = page.iter().filter(|later| later.position <= head.position);
            let of_it = durable.filter(|later| later.event.subject == event.subject);
            later.extend(of_it.map(stood));
        }
        Ok(later)
    }
}

/// Keeps the heads up to date while somebody follows.
async fn follow_heads(inner: Arc<Inner>) {
    loop {
        let looked_at = inner.store.shared() && inner.heads.receiver_count() > 0;
        tokio::select! {
            // in order, so that the end comes first and a simulation sees no dice
            biased;
            () = inner.stop.cancelled() => return,
            () = inner.wake.0.notified() => {}
            () = time::sleep(LOOK), if looked_at => {}
        }
        if inner.heads.receiver_count() == 0 {
            continue;
        }
        match inner.store.heads().await {
            Ok(heads) => inner.learn(&heads),
            Err(error) => {
                tracing::debug!(%error, "the feed's heads could not be read");
                time::sleep(PAUSE).await;
                inner.wake.events_committed();
            }
        }
    }
}

/// Notices what was changed past this process while somebody follows: the epoch, and in a store that others have open
/// too, who reads which partition and what is set aside.
async fn look_aside(inner: Arc<Inner>) {
    let mut seen: HashMap<ConsumerName, Consumer> = HashMap::new();
    loop {
        tokio::select! {
            // in order, so that the end comes first and a simulation sees no dice
            biased;
            () = inner.stop.cancelled() => return,
            () = time::sleep(LOOK_ASIDE) => {}
        }
        if inner.heads.receiver_count() == 0 {
            seen.clear();
            continue;
        }
        if let Ok(standing) = inner.store.standing().await {
            inner.learn_epoch(standing.epoch);
        }
        if !inner.store.shared() {
            continue;
        }
        let Ok(consumers) = inner.store.consumers().await else { continue };
        let consumers: HashMap<ConsumerName, Consumer> = consumers.into_iter().collect();
        for name in consumers.keys().chain(seen.keys()) {
            let same = match (seen.get(name), consumers.get(name)) {
                (Some(before), Some(now)) => is_read_alike(before, now),
                (None, _) | (_, None) => false,
            };
            if !same {
                inner.nudge(name);
            }
        }
        seen = consumers;
    }
}

/// Whether a stream of the consumer has nothing to learn: acknowledgements do not concern it.
fn is_read_alike(before: &Consumer, now: &Consumer) -> bool {
    let readers = |consumer: &Consumer| -> Vec<(u16, Option<StreamId>)> {
        consumer.progress.iter().map(|(partition, it)| (*partition, it.stream)).collect()
    };
    before.parked == now.parked && readers(before) == readers(now)
}
