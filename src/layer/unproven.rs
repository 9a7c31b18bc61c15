//! How much a source may cost before it has proven anything: requests whose signature does not verify, or that name no
//! client, are counted by where they come from, and beyond a rate that source is refused before any RSA work.
//!
//! What proves itself is never counted, so a client's own traffic has no limit here; it has its own.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{
    Refusal,
    budget::Source,
    gate::Gate,
    overload::Sourced,
    rate_limit::{Keyed, Rate},
};

/// Most sources that are remembered as over; beyond, those whose time is over are forgotten.
const OVER_MAX: usize = 4_096;

/// The gate; clones share what was counted.
#[derive(Clone)]
pub struct Unproven {
    counted: Arc<Keyed>,
    /// Who is over, and until when.
    over: Arc<Mutex<HashMap<Source, Instant>>>,
}

impl Unproven {
    /// So many of one source.
    pub fn new(rate: Rate) -> Self {
        Self { counted: Arc::new(Keyed::new(rate)), over: Arc::default() }
    }

    /// Counts a request that proved nothing.
    pub fn count(&self, source: Source) {
        let Err(Refusal::OverRate { retry_after }) = self.counted.take(source.number()) else {
            return;
        };
        let now = Instant::now();
        let mut over = self.over();
        if over.len() >= OVER_MAX {
            over.retain(|_, until| now < *until);
        }
        if let Some(until) = now.checked_add(retry_after) {
            over.insert(source, until);
        }
    }

    fn over(&self) -> MutexGuard<'_, HashMap<Source, Instant>> {
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
}
