//! What was answered in the last hour, minute by minute, and who signed when: for people who look at one process.
//!
//! It is a picture and no account: a count that comes in the moment in which a minute begins anew may be lost.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use crate::domain::result::ResultStatus;

/// Minutes that are told, this one among them.
pub const MINUTES: u64 = 60;

/// One more than is told, so that the oldest that is told is not the one being overwritten.
const SLOTS: usize = 61;

/// Answers of one minute by status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Minute {
    /// Successful.
    pub s: u64,
    /// Failed for good.
    pub f: u64,
    /// Not known; asked again.
    pub u: u64,
}

/// The last hour; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Recent(Arc<Inner>);

/// A client, and the version of its key.
type ClientKey = (Box<str>, Box<str>);

#[derive(Debug)]
struct Inner {
    slots: [Slot; SLOTS],
    /// Seconds since 1970 of the last proven request, by client and key version.
    signed: RwLock<BTreeMap<ClientKey, AtomicI64>>,
}

impl Default for Inner {
    fn default() -> Self {
        Self { slots: std::array::from_fn(|_| Slot::default()), signed: RwLock::default() }
    }
}

#[derive(Debug, Default)]
struct Slot {
    /// Which minute since 1970 it counts.
    minute: AtomicU64,
    counts: [AtomicU64; 3],
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn slot_of(minute: u64) -> usize {
    usize::try_from(minute % (MINUTES + 1)).unwrap_or(0)
}

impl Recent {
    /// One more answer.
    pub fn answered(&self, status: ResultStatus) {
        self.answered_at(status, now() / 60);
    }

    fn answered_at(&self, status: ResultStatus, minute: u64) {
        let Some(slot) = self.0.slots.get(slot_of(minute)) else { return };
        let before = slot.minute.load(Ordering::Acquire);
        // whoever comes first in a minute clears what was there an hour ago
        if before < minute
            && slot
                .minute
                .compare_exchange(before, minute, Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
        {
            for count in &slot.counts {
                count.store(0, Ordering::Release);
            }
        }
        let [s, f, u] = &slot.counts;
        let count = match status {
            ResultStatus::S => s,
            ResultStatus::F => f,
            ResultStatus::U => u,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// The last hour, oldest minute first; the last one is not over yet.
    pub fn hour(&self) -> Vec<Minute> {
        self.hour_at(now() / 60)
    }

    fn hour_at(&self, now: u64) -> Vec<Minute> {
        let first = now.saturating_sub(MINUTES - 1);
        let told = |minute: u64| {
            let slot = self.0.slots.get(slot_of(minute))?;
            if slot.minute.load(Ordering::Acquire) != minute {
                return None;
            }
            let [s, f, u] = &slot.counts;
            let [s, f, u] = [s, f, u].map(|count| count.load(Ordering::Relaxed));
            Some(Minute { s, f, u })
        };
        (first..=now).map(|minute| told(minute).unwrap_or_default()).collect()
    }

    /// A client proved itself by this version of its key.
    pub fn signed(&self, client: &str, version: &str) {
        let at = i64::try_from(now()).unwrap_or(i64::MAX);
        let known = self.0.signed.read().unwrap_or_else(PoisonError::into_inner);
        // a map of a few keys is walked sooner than a pair of texts is made to look one up
        let found = known.iter().find(|((of, key), _)| **of == *client && **key == *version);
        if let Some((_, last)) = found {
            last.store(at, Ordering::Relaxed);
            return;
        }
        drop(known);
        let mut known = self.0.signed.write().unwrap_or_else(PoisonError::into_inner);
        known.insert((client.into(), version.into()), AtomicI64::new(at));
    }

    /// When it last did, in seconds since 1970, since this process began.
    pub fn last_signed(&self, client: &str, version: &str) -> Option<i64> {
        let known = self.0.signed.read().unwrap_or_else(PoisonError::into_inner);
        let last = known.get(&(Box::from(client), Box::from(version)))?;
        Some(last.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_ends_with_this_minute_and_forgets_what_is_older() {
        let recent = Recent::default();
        for (minute, status) in [
            (1_000, ResultStatus::S),
            (1_000, ResultStatus::S),
            (1_000, ResultStatus::F),
            (1_059, ResultStatus::U),
        ] {
            recent.answered_at(status, minute);
        }
        let hour = recent.hour_at(1_059);
        assert_eq!(hour.len(), 60);
        assert_eq!(hour.first(), Some(&Minute { s: 2, f: 1, u: 0 }));
        assert_eq!(hour.last(), Some(&Minute { s: 0, f: 0, u: 1 }));
        assert_eq!(hour.iter().map(|minute| minute.s + minute.f + minute.u).sum::<u64>(), 4);

        let later = recent.hour_at(1_060);
        assert_eq!(later.first(), Some(&Minute::default()));
        assert_eq!(later.iter().rev().nth(1), Some(&Minute { s: 0, f: 0, u: 1 }));
        // the slot of minute 1,000 counts another one now
        recent.answered_at(ResultStatus::S, 1_061);
        assert_eq!(recent.hour_at(1_061).last(), Some(&Minute { s: 1, f: 0, u: 0 }));
        assert_eq!(recent.hour_at(5_000).iter().map(|minute| minute.s).sum::<u64>(), 0);
    }

    #[test]
    fn a_key_was_last_used_when_it_was() {
        let recent = Recent::default();
        assert_eq!(recent.last_signed("A", "1"), None);
        recent.signed("A", "1");
        recent.signed("A", "1");
        assert!(recent.last_signed("A", "1").is_some_and(|at| at > 1_700_000_000));
        assert_eq!(recent.last_signed("A", "2"), None);
        assert_eq!(recent.last_signed("B", "1"), None);
    }
}
