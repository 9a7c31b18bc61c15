//! How much a source may cost before it has proven anything: requests whose signature does not verify, or that name no
//! client, are counted by where they come from, and beyond a rate that source is refused before any RSA work.
//!
//! What proves itself is never counted, so a client's own traffic has no limit here; it has its own.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use governor::{
    Quota, RateLimiter,
    clock::{Clock as _, DefaultClock},
    state::keyed::DefaultKeyedStateStore,
};

use super::{Refusal, budget::Source, gate::Gate, overload::Sourced, rate_limit::Rate};

/// After so many counted requests, sources that have done nothing lately are forgotten: a keyed limiter never shrinks by
/// itself.
const SWEEP_EVERY: usize = 4_096;

/// The gate; clones share what was counted.
#[derive(Clone)]
pub struct Unproven {
    inner: Arc<Inner>,
}

struct Inner {
    limiter: RateLimiter<Source, DefaultKeyedStateStore<Source>, DefaultClock>,
    counted: AtomicUsize,
    /// Who is over, and until when.
    over: Mutex<HashMap<Source, Instant>>,
}

impl Unproven {
    /// So many of one source.
    pub fn new(rate: Rate) -> Self {
        let quota = Quota::per_second(rate.per_second).allow_burst(rate.burst);
        let limiter = RateLimiter::keyed(quota);
        let inner = Inner { limiter, counted: AtomicUsize::new(0), over: Mutex::default() };
        Self { inner: Arc::new(inner) }
    }

    /// Counts a request that proved nothing.
    pub fn count(&self, source: Source) {
        let inner = &self.inner;
        if inner.counted.fetch_add(1, Ordering::Relaxed) % SWEEP_EVERY == SWEEP_EVERY - 1 {
            inner.limiter.retain_recent();
            let now = Instant::now();
            inner.over().retain(|_, until| now < *until);
        }
        let Err(not_until) = inner.limiter.check_key(&source) else { return };
        let wait = not_until.wait_time_from(DefaultClock::default().now());
        if let Some(until) = Instant::now().checked_add(wait) {
            inner.over().insert(source, until);
        }
    }
}

impl Inner {
    fn over(&self) -> MutexGuard<'_, HashMap<Source, Instant>> {
        self.over.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<R: Sourced> Gate<R> for Unproven {
    type Held = ();

    fn enter(&self, request: &R) -> Result<(), Refusal> {
        let mut over = self.inner.over();
        if over.is_empty() {
            return Ok(());
        }
        let source = request.source();
        let Some(until) = over.get(&source) else { return Ok(()) };
        let retry_after = until.saturating_duration_since(Instant::now());
        if retry_after == Duration::ZERO {
            over.remove(&source);
            return Ok(());
        }
        Err(Refusal::OverRate { retry_after })
    }
}

impl std::fmt::Debug for Unproven {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Unproven({} sources)", self.inner.limiter.len())
    }
}

#[cfg(test)]
mod tests {
    use std::{net::IpAddr, num::NonZeroU32};

    use super::*;

    struct From(&'static str);

    impl Sourced for From {
        fn source(&self) -> Source {
            self.0.parse::<IpAddr>().unwrap().into()
        }

        fn claims(&self) -> Option<&str> {
            None
        }
    }

    #[test]
    fn a_source_that_proves_nothing_is_refused_and_another_is_not() {
        let two = NonZeroU32::new(2).unwrap();
        let gate = Unproven::new(Rate { per_second: NonZeroU32::MIN, burst: two });
        let (here, there) = (From("192.0.2.1"), From("192.0.2.2"));
        for _ in 0..2 {
            assert_eq!(gate.enter(&here), Ok(()));
            gate.count(here.source());
        }
        assert_eq!(gate.enter(&here), Ok(()), "what was let in was within its rate");
        gate.count(here.source());
        assert!(matches!(gate.enter(&here), Err(Refusal::OverRate { .. })));
        assert_eq!(gate.enter(&there), Ok(()));
    }

    #[test]
    fn sources_of_the_past_are_forgotten() {
        let many = NonZeroU32::new(1_000_000).unwrap();
        let gate = Unproven::new(Rate { per_second: many, burst: many });
        for n in 0..3 * SWEEP_EVERY {
            gate.count(Source::of(u64::try_from(n).unwrap()));
        }
        assert!(gate.inner.limiter.len() <= 2 * SWEEP_EVERY, "{gate:?}");
    }
}
