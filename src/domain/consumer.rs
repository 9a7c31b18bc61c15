//! What is known of a follower of the feed: how far it is, and what it set aside.

use std::collections::BTreeMap;

use super::{event::EventId, key::Subject, time::Timestamp};

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
