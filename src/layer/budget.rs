//! A bounded amount of something (requests, connections, bytes), shared by all and by each source.
//!
//! It never waits: what does not fit is refused at once. A source is an IPv4 address or an IPv6 /64, because that is
//! what one person has.

use std::{
    collections::hash_map::Entry,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use foldhash::HashMap;

/// Where something comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Source(u64);

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self(u64::from(v4.to_bits())),
            IpAddr::V6(v6) => {
                let [a, b, c, d, ..] = v6.segments();
                let net =
                    [a, b, c, d].into_iter().fold(0u64, |net, part| (net << 16) | u64::from(part));
                // apart from every IPv4 address
                Self(net | 1 << 63)
            }
        }
    }
}

impl Source {
    /// Something else that has a share of its own, told from others by a hash.
    pub fn of(hash: u64) -> Self {
        Self(hash)
    }

    /// What tells it from others.
    pub fn number(self) -> u64 {
        self.0
    }
}

/// What there is to take from.
#[derive(Debug)]
pub struct Budget {
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    total_max: usize,
    source_max: usize,
    total: usize,
    by_source: HashMap<Source, usize>,
}

/// What was taken; given back when dropped.
#[derive(Debug)]
#[must_use]
pub struct Share {
    budget: Arc<Budget>,
    source: Source,
    amount: usize,
}

impl Budget {
    /// At most `total_max` in all, and `source_max` for each source.
    pub fn new(total_max: usize, source_max: usize) -> Arc<Self> {
        let taken = Taken { total_max, source_max, ..Taken::default() };
        Arc::new(Self { taken: Mutex::new(taken) })
    }

    /// Another size from now on; what is taken stays taken.
    pub fn resize(&self, total_max: usize, source_max: usize) {
        let mut taken = self.taken();
        (taken.total_max, taken.source_max) = (total_max, source_max);
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an amount, if it fits.
    pub fn take(self: &Arc<Self>, source: Source, amount: usize) -> Option<Share> {
        let mut share = Share { budget: Arc::clone(self), source, amount: 0 };
        share.grow(amount).then_some(share)
    }

    /// Whether an amount would fit now.
    pub fn fits(&self, source: Source, amount: usize) -> bool {
        self.taken().fits(source, amount)
    }

    /// How much is taken now, and how much there is in all.
    pub fn load(&self) -> (usize, usize) {
        let taken = self.taken();
        (taken.total, taken.total_max)
    }

    /// How much is taken now.
    pub fn in_use(&self) -> usize {
        self.taken().total
    }
}

impl Taken {
    fn fits(&self, source: Source, amount: usize) -> bool {
        let of_source = self.by_source.get(&source).copied().unwrap_or(0);
        self.total.saturating_add(amount) <= self.total_max
            && of_source.saturating_add(amount) <= self.source_max
    }
}

impl Share {
    /// Takes more, if it fits.
    pub fn grow(&mut self, more: usize) -> bool {
        let mut taken = self.budget.taken();
        let Taken { total_max, source_max, total, by_source } = &mut *taken;
        let all = total.saturating_add(more);
        if all > *total_max {
            return false;
        }
        match by_source.entry(self.source) {
            Entry::Occupied(mut of_source) => {
                let amount = of_source.get().saturating_add(more);
                if amount > *source_max {
                    return false;
                }
                of_source.insert(amount);
            }
            Entry::Vacant(_) if more > *source_max => return false,
            Entry::Vacant(of_source) => {
                of_source.insert(more);
            }
        }
        *total = all;
        self.amount = self.amount.saturating_add(more);
        true
    }

    /// How much it is.
    pub fn amount(&self) -> usize {
        self.amount
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.budget.taken();
        taken.total = taken.total.saturating_sub(self.amount);
        if let Entry::Occupied(mut of_source) = taken.by_source.entry(self.source) {
            let left = of_source.get().saturating_sub(self.amount);
            if left == 0 {
                // a source that has nothing costs nothing
                of_source.remove();
            } else {
                of_source.insert(left);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(address: &str) -> Source {
        let address: IpAddr = address.parse().unwrap();
        Source::from(address)
    }

    #[test]
    fn a_source_cannot_take_what_is_for_all() {
        let budget = Budget::new(3, 2);
        let (here, there) = (source("192.0.2.1"), source("192.0.2.2"));
        let first = budget.take(here, 2).unwrap();
        assert!(budget.take(here, 1).is_none());
        let mut second = budget.take(there, 1).unwrap();
        assert!(!second.grow(1), "three are taken");
        drop(first);
        assert!(second.grow(1));
        drop(second);
        assert_eq!(budget.in_use(), 0);
        assert!(budget.taken().by_source.is_empty());
    }

    #[test]
    fn an_ipv6_source_is_its_64() {
        assert_eq!(source("2001:db8::1"), source("2001:db8::ffff:1"));
        assert_ne!(source("2001:db8::1"), source("2001:db8:0:1::1"));
        assert_eq!(source("::ffff:192.0.2.1"), source("192.0.2.1"));
        assert_ne!(source("::"), source("0.0.0.0"));
    }
}
