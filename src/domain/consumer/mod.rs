//! What is known of a follower of the feed, and the rules by which that changes: one file per command.
//!
//! The order of a rule's lines is the order of precedence, and of the variants of [`Refusal`].

pub mod acknowledge;
pub mod forget;
pub mod park;
pub mod redrive;
pub mod retention;
pub mod subscribe;

use std::collections::BTreeMap;

use super::{event::EventId, key::Subject, time::Timestamp};

/// A place in one partition: behind the event at `position`; 0 is before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// Which partition.
    pub partition: u16,
    /// The last event passed.
    pub position: u64,
}

/// How far a partition goes. All of it is durable: it survives whatever an answer survives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// The last event; 0 if there never was one.
    pub position: u64,
    /// The last event that was purged; 0 if none was. The earliest there is stands behind it.
    pub purged: u64,
}

/// A consumer's name: 1 to 64 of `[A-Za-z0-9_.-]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConsumerName(Box<str>);

impl ConsumerName {
    /// Longest, in characters.
    pub const MAX: usize = 64;

    /// Checks length and characters.
    pub fn parse(text: &str) -> Option<Self> {
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        let fits = (1..=Self::MAX).contains(&text.len()) && text.chars().all(legal);
        fits.then(|| Self(text.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Names one stream of a consumer: the newest one of a partition is the one that counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct StreamId(pub [u8; 16]);

/// How far a consumer is in one partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Every event up to here is handled or set aside; 0 is before the first.
    pub acknowledged: u64,
    /// The stream that reads the partition; absent if none ever did.
    pub stream: Option<StreamId>,
}

/// A follower of the feed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Consumer {
    /// The identity of the caller that used the name first; absent where callers have none (plaintext).
    pub owner: Option<Box<str>>,
    /// By partition; one that is absent is at its beginning.
    pub progress: BTreeMap<u16, Progress>,
    /// Events set aside, in order of partition and position.
    pub parked: Vec<Parked>,
}

/// An event a consumer set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parked {
    /// Its partition.
    pub partition: u16,
    /// Its position there.
    pub position: u64,
    /// Its id.
    pub event: EventId,
    /// What it is about: later events of the same subject wait with it.
    pub subject: Subject,
    /// Why, for people; absent for one that merely waits behind an earlier one of its subject.
    pub reason: Option<Box<str>>,
    /// Since when.
    pub at: Timestamp,
    /// True once it is to be delivered again.
    pub redrive: bool,
}

/// How many events one consumer may have set aside: each change of it reads them all.
pub const PARKED_MAX: usize = 10_000;

/// How many consumers there may be: a name that a restart makes up each time must not cost for ever.
pub const CONSUMERS_MAX: usize = 256;

/// What a rule is judged by, beside the consumer itself.
#[derive(Clone, Copy, Debug)]
pub struct Ground<'a> {
    /// Of every partition, by number.
    pub heads: &'a [Head],
    /// The feed's epoch.
    pub epoch: u64,
}

impl Ground<'_> {
    fn head(&self, partition: u16) -> Head {
        self.heads.get(usize::from(partition)).copied().unwrap_or_default()
    }
}

/// Why a call about a consumer changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such consumer.
    #[error("there is no consumer of this name; it begins with its first Subscribe")]
    Unknown,
    /// The name belongs to another identity.
    #[error("the consumer belongs to another identity")]
    NotYours,
    /// The settings demand it, so it cannot be forgotten.
    #[error("the settings name this consumer as required (feed.required_consumers)")]
    Required,
    /// The caller was told more than the store knows: it was restored from a backup, and commits are lost.
    #[error("the consumer was told more than the store knows ({0}): it lost commits")]
    Restored(String),
    /// Positions of another epoch mean nothing in this one.
    #[error("the feed's epoch is {epoch}; positions of another one mean nothing")]
    EpochChanged {
        /// The present one.
        epoch: u64,
    },
    /// A newer stream has taken over.
    #[error("a newer stream of this consumer has taken over")]
    Superseded,
    /// A position behind the last event.
    #[error("partition {} ends at position {}", .head.partition, .head.position)]
    AheadOfFeed {
        /// Where the partition ends.
        head: Place,
    },
    /// Events are gone that the caller asks for. The earliest that are left stand behind these places.
    #[error("events were purged that this would begin with")]
    Purged {
        /// Of each partition that lacks any, where one may begin at the earliest.
        least: Vec<Place>,
    },
    /// There is no event of this id at this place.
    #[error("there is no event of this id at this position")]
    OtherEvent,
    /// It set aside as many events as it may.
    #[error(
        "{PARKED_MAX} events are parked, which is as many as may be; redrive or acknowledge some"
    )]
    TooManyParked,
    /// There are as many names as there may be.
    #[error(
        "there are {CONSUMERS_MAX} consumers, which is as many as may be; forget those that are gone"
    )]
    TooManyConsumers,
}

impl Consumer {
    /// How far it is in a partition: of what was purged before it came, it need not know.
    pub fn acknowledged(&self, partition: u16, head: Head) -> u64 {
        self.progress.get(&partition).map_or(head.purged, |progress| progress.acknowledged)
    }

    /// How many events are committed and neither acknowledged nor set aside; purged ones count no more.
    pub fn lag(&self, heads: &[Head]) -> u64 {
        let lag = |(partition, head): (u16, &Head)| {
            head.position.saturating_sub(self.acknowledged(partition, *head).max(head.purged))
        };
        (0u16..).zip(heads).map(lag).fold(0, u64::saturating_add)
    }

    /// Where its first event stands behind, in each partition that has any for it.
    pub fn behind(&self, heads: &[Head]) -> Vec<Place> {
        let place = |(partition, head): (u16, &Head)| {
            let position = self.acknowledged(partition, *head).max(head.purged);
            (position < head.position).then_some(Place { partition, position })
        };
        (0u16..).zip(heads).filter_map(place).collect()
    }

    /// Whether an event waits with an earlier one of its subject that is set aside.
    fn is_held(&self, subject: &Subject) -> bool {
        self.parked.iter().any(|parked| !parked.redrive && parked.subject == *subject)
    }

    fn is_parked(&self, partition: u16, position: u64) -> bool {
        self.parked.iter().any(|it| it.partition == partition && it.position == position)
    }

    fn set_aside(&mut self, parked: Parked) {
        let place = |parked: &Parked| (parked.partition, parked.position);
        match self.parked.binary_search_by_key(&place(&parked), place) {
            Ok(found) => {
                if let Some(before) = self.parked.get_mut(found) {
                    *before = parked;
                }
            }
            Err(at) => self.parked.insert(at, parked),
        }
    }

    /// What is set aside is passed, so a place right before it moves behind it.
    fn pass_parked(&mut self) {
        for parked in &self.parked {
            if let Some(progress) = self.progress.get_mut(&parked.partition)
                && progress.acknowledged.checked_add(1) == Some(parked.position)
            {
                progress.acknowledged = parked.position;
            }
        }
    }
}

/// Who calls, and by which stream: what every rule but the first asks about.
#[derive(Clone, Debug, Default)]
pub struct Follower {
    /// The caller's identity; absent where callers have none (plain text).
    pub identity: Option<Box<str>>,
    /// The stream that the events came by; absent if the caller does not say.
    pub stream: Option<StreamId>,
}

impl Follower {
    /// A name that was used without an identity is free for whoever has one: plain text trusts everybody.
    fn owns(&self, consumer: &Consumer) -> Result<(), Refusal> {
        match &consumer.owner {
            Some(owner) if self.identity.as_ref() != Some(owner) => Err(Refusal::NotYours),
            Some(_) | None => Ok(()),
        }
    }

    fn reads(&self, consumer: &Consumer, partition: u16) -> Result<(), Refusal> {
        let Some(stream) = self.stream else { return Ok(()) };
        let reader = consumer.progress.get(&partition).and_then(|progress| progress.stream);
        if reader == Some(stream) { Ok(()) } else { Err(Refusal::Superseded) }
    }
}

fn same_epoch(epoch: u64, ground: &Ground<'_>) -> Result<(), Refusal> {
    if epoch == ground.epoch {
        return Ok(());
    }
    Err(Refusal::EpochChanged { epoch: ground.epoch })
}

fn within(place: Place, ground: &Ground<'_>) -> Result<(), Refusal> {
    let head = Place { position: ground.head(place.partition).position, ..place };
    if place.position <= head.position {
        return Ok(());
    }
    Err(Refusal::AheadOfFeed { head })
}

#[cfg(test)]
mod fixtures {
    //! A consumer of two partitions and what surrounds it, for the rules' tests.

    use super::*;
    use crate::domain::{
        id::{PaymentRequestId, PspId},
        key::PaymentKey,
    };

    pub(super) const AT: Timestamp = Timestamp { unix_ms: 1_700_000_000_000 };
    pub(super) const EPOCH: u64 = 3;
    pub(super) const HEADS: [Head; 2] =
        [Head { position: 10, purged: 2 }, Head { position: 5, purged: 0 }];
    pub(super) const GROUND: Ground<'static> = Ground { heads: &HEADS, epoch: EPOCH };

    pub(super) fn place(partition: u16, position: u64) -> Place {
        Place { partition, position }
    }

    pub(super) fn stream(number: u8) -> StreamId {
        StreamId([number; 16])
    }

    pub(super) fn subject(name: &str) -> Subject {
        let psp = PspId::parse("psp").expect("an id");
        let payment_request = PaymentRequestId::parse(name).expect("an id");
        Subject::Payment(PaymentKey { psp, payment_request })
    }

    pub(super) fn event(position: u64) -> EventId {
        EventId(u128::from(position).to_be_bytes())
    }

    /// At 4 in partition 0, which stream 1 reads; at 0 in partition 1, which nobody ever read.
    pub(super) fn consumer() -> Consumer {
        let progress = Progress { acknowledged: 4, stream: Some(stream(1)) };
        Consumer {
            owner: Some("executor.wallet".into()),
            progress: BTreeMap::from([(0, progress)]),
            parked: Vec::new(),
        }
    }

    pub(super) fn owner() -> Follower {
        Follower { identity: Some("executor.wallet".into()), stream: Some(stream(1)) }
    }

    pub(super) fn stranger() -> Follower {
        Follower { identity: Some("other.wallet".into()), stream: None }
    }

    pub(super) fn parked(position: u64, name: &str) -> Parked {
        Parked {
            partition: 0,
            position,
            event: event(position),
            subject: subject(name),
            reason: Some("no account".into()),
            at: AT,
            redrive: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{fixtures::*, *};

    #[test]
    fn a_lag_is_what_is_left_of_every_partition_and_purged_events_are_not() {
        assert_eq!(consumer().lag(&HEADS), 6 + 5);
        assert_eq!(consumer().behind(&HEADS), [place(0, 4), place(1, 0)]);
        assert_eq!(Consumer::default().behind(&HEADS), [place(0, 2), place(1, 0)]);
        assert_eq!(Consumer::default().lag(&HEADS), 8 + 5);
        let mut behind = consumer();
        behind.progress.insert(0, Progress { acknowledged: 1, stream: None });
        assert_eq!(behind.lag(&HEADS), 8 + 5);
    }

    #[test]
    fn a_partition_that_is_read_to_its_end_is_not_behind() {
        let mut there = consumer();
        there.progress.insert(0, Progress { acknowledged: 10, stream: None });
        assert_eq!(there.behind(&HEADS), [place(1, 0)]);
        assert_eq!(there.lag(&HEADS), 5);
        let empty = [Head::default(); 2];
        assert_eq!(Consumer::default().behind(&empty), []);
    }

    #[test]
    fn a_name_is_short_and_plain() {
        for good in ["a", "A-z_0.9", &"x".repeat(64)] {
            assert_eq!(ConsumerName::parse(good).expect(good).as_str(), good);
        }
        for bad in ["", "a b", "é", "a/b", "a\n", &"x".repeat(65)] {
            assert_eq!(ConsumerName::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_place_moves_over_what_is_set_aside_right_behind_it() {
        let mut consumer = consumer();
        for (position, name) in [(8, "c"), (5, "a"), (6, "b")] {
            consumer.set_aside(parked(position, name));
        }
        consumer.pass_parked();
        assert_eq!(consumer.progress[&0].acknowledged, 6);
        let positions: Vec<u64> = consumer.parked.iter().map(|parked| parked.position).collect();
        assert_eq!(positions, [5, 6, 8], "in order, whatever order they came in");
    }
}
