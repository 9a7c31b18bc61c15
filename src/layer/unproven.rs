//! How much a source may cost before it has proven anything: requests whose signature does not verify, or that name no
//! client, are counted by where they come from, and beyond a rate that source is refused before any RSA work.
//!
//! What proves itself is never counted, so a client's own traffic has no limit here; it has its own.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;

use super::{
    Refusal,
    gate::Gate,
    overload::Sourced,
    rate_limit::{Keyed, Rate},
};

/// Most that are remembered as over; beyond, those whose time is over are forgotten.
const OVER_MAX: usize = 4_096;
/// The longest that anybody is over, from the last request that proved nothing.
const DEBT_MAX: Duration = Duration::from_secs(10);

/// The gate; clones share what was counted.
#[derive(Clone)]
pub struct Unproven {
    counted: Arc<ArcSwap<Counted>>,
    /// Who is over, and until when.
    over: Arc<Mutex<HashMap<u64, Instant>>>,
    hasher: RandomState,
}

struct Counted {
    rate: Rate,
    by: Keyed,
}

impl Counted {
    fn new(rate: Rate) -> Arc<Self> {
        Arc::new(Self { rate, by: Keyed::new(rate) })
    }
}

impl Unproven {
    /// So many of one client at one source, and of nobody's at it.
    pub fn new(rate: Rate) -> Self {
        let counted = Arc::new(ArcSwap::new(Counted::new(rate)));
        Self { counted, over: Arc::default(), hasher: RandomState::new() }
    }

    /// Another rate from now on; what was counted is forgotten if it is another one.
    pub fn reload(&self, rate: Rate) {
        if self.counted.load().rate != rate {
            self.counted.store(Counted::new(rate));
            self.over().clear();
        }
    }

    /// Counts a request that proved nothing. What comes all the same while its source is over, having been let in before,
    /// makes it longer: else a flood would be let in again and again between one count and the next.
    pub fn count<R: Sourced>(&self, request: &R) {
        let (counted, key) = (self.counted.load(), self.key(request));
        let Err(Refusal::OverRate { retry_after }) = counted.by.take(key) else { return };
        let one = Duration::from_secs(1) / counted.rate.per_second.get();
        let now = Instant::now();
        let mut over = self.over();
        if over.len() >= OVER_MAX {
            over.retain(|_, until| now < *until);
        }
        let until = match over.get(&key) {
            Some(until) if now < *until => *until + one,
            Some(_) | None => now + retry_after.max(one),
        };
        over.insert(key, until.min(now + DEBT_MAX));
    }

    /// A client at a source, claimed or not: one with a wrong key must not shut out another of the same gateway.
    fn key<R: Sourced>(&self, request: &R) -> u64 {
        self.hasher.hash_one((request.source(), request.claims()))
    }

    fn over(&self) -> MutexGuard<'_, HashMap<u64, Instant>> {
        self.over.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<R: Sourced> Gate<R> for Unproven {
    type Held = ();

    fn enter(&self, request: &R) -> Result<(), Refusal> {
        let mut over = self.over();
        if over.is_empty() {
            return Ok(());
        }
        let key = self.key(request);
        let Some(until) = over.get(&key) else { return Ok(()) };
        let retry_after = until.saturating_duration_since(Instant::now());
        if retry_after == Duration::ZERO {
            over.remove(&key);
            return Ok(());
        }
        Err(Refusal::OverRate { retry_after })
    }
}

#[cfg(test)]
mod tests {
    use std::{net::IpAddr, num::NonZeroU32};

    use super::*;
    use crate::layer::budget::Source;

    struct From(&'static str, Option<&'static str>);

    impl Sourced for From {
        fn source(&self) -> Source {
            self.0.parse::<IpAddr>().unwrap().into()
        }

        fn claims(&self) -> Option<&str> {
            self.1
        }
    }

    #[test]
    fn a_source_that_proves_nothing_is_refused_and_another_is_not() {
        let two = NonZeroU32::new(2).unwrap();
        let gate = Unproven::new(Rate { per_second: NonZeroU32::MIN, burst: two });
        let (here, there) = (From("192.0.2.1", None), From("192.0.2.2", None));
        for _ in 0..2 {
            assert_eq!(gate.enter(&here), Ok(()));
            gate.count(&here);
        }
        assert_eq!(gate.enter(&here), Ok(()), "what was let in was within its rate");
        gate.count(&here);
        assert!(matches!(gate.enter(&here), Err(Refusal::OverRate { .. })));
        assert_eq!(gate.enter(&there), Ok(()));
        assert_eq!(gate.enter(&From("192.0.2.1", Some("a"))), Ok(()), "a client beside it");
    }

    #[test]
    fn what_still_comes_of_who_is_over_makes_it_longer() {
        let rate = Rate { per_second: NonZeroU32::MIN, burst: NonZeroU32::MIN };
        let (gate, here) = (Unproven::new(rate), From("192.0.2.1", None));
        for _ in 0..4 {
            gate.count(&here);
        }
        let Err(Refusal::OverRate { retry_after }) = gate.enter(&here) else {
            panic!("it is over")
        };
        assert!(
            retry_after > Duration::from_secs(2),
            "three too many at one a second: {retry_after:?}"
        );
        gate.reload(Rate { burst: NonZeroU32::new(2).unwrap(), ..rate });
        assert_eq!(gate.enter(&here), Ok(()), "another rate begins anew");
    }
}
