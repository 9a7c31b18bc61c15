//! How many requests a caller may make in a time, by GCRA: so many a second on average, so many at once.

use std::{
    num::NonZeroU32,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use governor::{
    DefaultDirectRateLimiter, NotUntil, Quota, RateLimiter,
    clock::{Clock as _, DefaultClock},
    state::keyed::DefaultKeyedStateStore,
};

use super::{Refusal, gate::Gate, overload::Overload};

/// So many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// A second, on average.
    pub per_second: NonZeroU32,
    /// At once.
    pub burst: NonZeroU32,
}

impl Rate {
    /// What one of so many replicas takes of it, rounded up: together they may take a few more, never fewer.
    #[must_use]
    pub fn shared_by(self, replicas: NonZeroU32) -> Self {
        let share = |whole: NonZeroU32| {
            NonZeroU32::new(whole.get().div_ceil(replicas.get())).unwrap_or(NonZeroU32::MIN)
        };
        Self { per_second: share(self.per_second), burst: share(self.burst) }
    }
}

/// What one caller may still do.
#[derive(Debug)]
pub struct Bucket {
    rate: Rate,
    limiter: DefaultDirectRateLimiter,
    /// Until then nothing is left, as the last refusal said.
    empty_until: Mutex<Option<Instant>>,
}

impl Bucket {
    /// A full one.
    pub fn new(rate: Rate) -> Arc<Self> {
        let quota = Quota::per_second(rate.per_second).allow_burst(rate.burst);
        Arc::new(Self { rate, limiter: RateLimiter::direct(quota), empty_until: Mutex::default() })
    }

    /// What it was made for.
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Takes one.
    pub fn take(&self) -> Result<(), Refusal> {
        let Err(not_until) = self.limiter.check() else { return Ok(()) };
        let retry_after = not_until.wait_time_from(DefaultClock::default().now());
        *self.empty_until() = Instant::now().checked_add(retry_after);
        Err(Refusal::OverRate { retry_after })
    }

    /// For how long it is known to be empty, without taking anything.
    pub fn empty_for(&self) -> Option<Duration> {
        let until = *self.empty_until();
        let left = until?.saturating_duration_since(Instant::now());
        (left > Duration::ZERO).then_some(left)
    }

    fn empty_until(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.empty_until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// After so many counted requests, keys that have done nothing lately are forgotten: a keyed limiter never shrinks by
/// itself.
const SWEEP_EVERY: usize = 4_096;

/// A bucket for each key that shows up.
pub struct Keyed {
    limiter: RateLimiter<u64, DefaultKeyedStateStore<u64>, DefaultClock>,
    counted: AtomicUsize,
}

impl Keyed {
    /// Full ones.
    pub fn new(rate: Rate) -> Self {
        let quota = Quota::per_second(rate.per_second).allow_burst(rate.burst);
        Self { limiter: RateLimiter::keyed(quota), counted: AtomicUsize::new(0) }
    }

    /// Takes one of the key's.
    pub fn take(&self, key: u64) -> Result<(), Refusal> {
        if self.counted.fetch_add(1, Ordering::Relaxed) % SWEEP_EVERY == SWEEP_EVERY - 1 {
            self.limiter.retain_recent();
        }
        let refused = |not_until: NotUntil<_>| {
            let retry_after = not_until.wait_time_from(DefaultClock::default().now());
            Refusal::OverRate { retry_after }
        };
        self.limiter.check_key(&key).map_err(refused)
    }

    /// How many keys are remembered.
    pub fn len(&self) -> usize {
        self.limiter.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.limiter.is_empty()
    }
}

/// A request that counts for somebody.
pub trait Limited {
    /// Every bucket that it takes one from.
    fn buckets(&self) -> impl Iterator<Item = &Bucket>;
}

/// The gate.
#[derive(Clone, Copy, Debug)]
pub struct RateLimit;

impl<R: Limited> Gate<R> for RateLimit {
    type Held = ();

    fn enter(&self, request: &R) -> Result<(), Refusal> {
        request.buckets().try_for_each(Bucket::take)
    }
}

/// The gate that spares work under pressure: whoever's bucket is known to be empty is refused before he has proven who he
/// is. Nothing is taken, so whoever only claims to be somebody takes nothing from him.
#[derive(Clone, Debug)]
pub struct Early(pub Overload);

impl<R: Limited> Gate<R> for Early {
    type Held = ();

    fn enter(&self, request: &R) -> Result<(), Refusal> {
        if !self.0.is_pressed() {
            return Ok(());
        }
        match request.buckets().find_map(Bucket::empty_for) {
            Some(retry_after) => Err(Refusal::OverRate { retry_after }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(per_second: u32, burst: u32) -> Rate {
        let number = |number| NonZeroU32::new(number).unwrap();
        Rate { per_second: number(per_second), burst: number(burst) }
    }

    #[test]
    fn a_burst_is_let_in_and_the_next_is_told_when_to_come_back() {
        let bucket = Bucket::new(rate(1, 3));
        assert_eq!(bucket.empty_for(), None);
        for _ in 0..3 {
            assert_eq!(bucket.take(), Ok(()));
        }
        assert_eq!(bucket.empty_for(), None, "nobody was refused yet");
        let Err(Refusal::OverRate { retry_after }) = bucket.take() else { panic!("a fourth") };
        assert!(retry_after <= Duration::from_secs(1) && retry_after > Duration::ZERO);
        assert!(bucket.empty_for().is_some());
    }

    #[test]
    fn keys_of_the_past_are_forgotten() {
        let keyed = Keyed::new(rate(1_000_000, 1_000_000));
        for key in 0..3 * SWEEP_EVERY {
            assert_eq!(keyed.take(u64::try_from(key).unwrap()), Ok(()));
        }
        assert!(keyed.len() <= 2 * SWEEP_EVERY, "{}", keyed.len());
    }

    #[test]
    fn replicas_together_take_what_one_would() {
        let three = NonZeroU32::new(3).unwrap();
        assert_eq!(rate(500, 1000).shared_by(three), rate(167, 334));
        assert_eq!(rate(1, 1).shared_by(three), rate(1, 1));
        assert_eq!(rate(500, 1000).shared_by(NonZeroU32::MIN), rate(500, 1000));
    }
}
