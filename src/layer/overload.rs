//! How many requests are inside at once: in all, of one source, and of one client at one source.
//!
//! What does not fit is refused at once, before anything is read or verified: shedding must be cheap, or it is no help.
//! A client is only claimed here, so its share counts for each source apart: whoever claims to be another takes nothing
//! of what that other one sends from elsewhere.

use std::{collections::hash_map::RandomState, hash::BuildHasher as _, sync::Arc};

use super::{
    Refusal,
    budget::{Budget, Share, Source},
    gate::Gate,
};

/// A request that comes from somewhere, on somebody's behalf.
pub trait Sourced {
    /// Where it comes from.
    fn source(&self) -> Source;

    /// Who it claims to be, if that is somebody we know.
    fn claims(&self) -> Option<&str>;
}

/// How many at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InFlight {
    /// In all.
    pub total: usize,
    /// Of one source.
    pub per_source: usize,
    /// Of one client at one source.
    pub per_client: usize,
}

/// The gate; clones share what is taken.
#[derive(Clone, Debug)]
pub struct Overload {
    all: Arc<Budget>,
    clients: Arc<Budget>,
    hasher: RandomState,
}

impl Overload {
    /// A gate with so much room.
    pub fn new(most: InFlight) -> Self {
        Self {
            all: Budget::new(most.total, most.per_source),
            clients: Budget::new(most.total, most.per_client),
            hasher: RandomState::new(),
        }
    }

    /// Gives it another size; who is inside stays.
    pub fn resize(&self, most: InFlight) {
        self.all.resize(most.total, most.per_source);
        self.clients.resize(most.total, most.per_client);
    }

    /// How many are inside.
    pub fn in_flight(&self) -> usize {
        self.all.in_use()
    }

    /// Whether so many are inside that work should be spared: an eighth of what there is room for.
    pub fn is_pressed(&self) -> bool {
        let (inside, most) = self.all.load();
        inside > most / 8
    }

    /// Whether there is no room for another one from there, of who it claims to be.
    pub fn is_full_for(&self, source: Source, claims: Option<&str>) -> bool {
        !self.all.fits(source, 1) || !self.clients.fits(self.client(source, claims), 1)
    }

    fn client(&self, source: Source, claims: Option<&str>) -> Source {
        Source::of(self.hasher.hash_one((source, claims)))
    }
}

impl<R: Sourced> Gate<R> for Overload {
    type Held = (Share, Share);

    fn enter(&self, request: &R) -> Result<Self::Held, Refusal> {
        let source = request.source();
        let client = self.client(source, request.claims());
        let all = self.all.take(source, 1).ok_or(Refusal::Busy)?;
        let client = self.clients.take(client, 1).ok_or(Refusal::Busy)?;
        Ok((all, client))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct From(&'static str, Option<&'static str>);

    impl Sourced for From {
        fn source(&self) -> Source {
            self.0.parse::<std::net::IpAddr>().unwrap().into()
        }

        fn claims(&self) -> Option<&str> {
            self.1
        }
    }

    #[test]
    fn one_client_leaves_room_for_another_of_the_same_source() {
        let gate = Overload::new(InFlight { total: 10, per_source: 3, per_client: 2 });
        let enter = |address, client| gate.enter(&From(address, client));
        let _first = enter("192.0.2.1", Some("a")).unwrap();
        let second = enter("192.0.2.1", Some("a")).unwrap();
        assert_eq!(enter("192.0.2.1", Some("a")).unwrap_err(), Refusal::Busy);
        let _other = enter("192.0.2.1", Some("b")).unwrap();
        assert_eq!(enter("192.0.2.1", Some("b")).unwrap_err(), Refusal::Busy, "the source's share");
        let _elsewhere = enter("192.0.2.2", Some("a")).expect("nobody takes a's share elsewhere");
        drop(second);
        let _again = enter("192.0.2.1", Some("a")).unwrap();
        assert_eq!(gate.in_flight(), 4);
    }

    #[test]
    fn who_is_inside_stays_when_the_room_shrinks() {
        let gate = Overload::new(InFlight { total: 3, per_source: 3, per_client: 3 });
        let held: Vec<_> = (0..3).map(|_| gate.enter(&From("192.0.2.1", None)).unwrap()).collect();
        gate.resize(InFlight { total: 1, per_source: 1, per_client: 1 });
        assert!(gate.enter(&From("192.0.2.1", None)).is_err());
        drop(held);
        assert_eq!(gate.in_flight(), 0);
        let _one = gate.enter(&From("192.0.2.1", None)).unwrap();
        assert!(gate.enter(&From("192.0.2.2", None)).is_err());
    }
}
