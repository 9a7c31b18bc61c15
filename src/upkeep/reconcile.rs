//! After a restore from a backup: what consumers kept becomes true again, a thousand events a commit.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    sync::Arc,
};

use super::transact::transact;
use crate::{
    domain::{
        event::{Event, EventKind},
        key::{AuthorizationKey, PaymentKey, Subject},
        payment::{Funds, Payment},
        reconcile::{self, Conflict, Kept, Outcome},
    },
    store::{Changes, Error, Head, Known, Place, Store, Wanted},
};

/// What came of some events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// True already.
    pub already: u64,
    /// Payments cancelled again.
    pub cancels: u64,
    /// Money due again.
    pub due: u64,
    /// Money returned again.
    pub returned: u64,
    /// Authorizations revoked again.
    pub revocations: u64,
    /// Events appended to the feed.
    pub appended: u64,
    /// By place in the list.
    pub conflicts: Vec<(usize, Conflict)>,
}

impl Done {
    /// Adds another's counts; its conflicts are the caller's.
    pub fn add(&mut self, other: &Self) {
        self.already += other.already;
        self.cancels += other.cancels;
        self.due += other.due;
        self.returned += other.returned;
        self.revocations += other.revocations;
        self.appended += other.appended;
    }
}

/// Makes events true again in one commit, or (`dry`) says what would come of it.
pub async fn reconcile(store: &Arc<dyn Store>, kept: Vec<Kept>, dry: bool) -> Result<Done, Error> {
    let mut wanted = Wanted::default();
    for kept in &kept {
        match &kept.event.subject {
            Subject::Payment(key) => wanted.payments.push(key.clone()),
            Subject::Authorization(key) => wanted.authorizations.push(key.clone()),
        }
    }
    wanted.payments.sort_unstable();
    wanted.payments.dedup();
    wanted.authorizations.sort_unstable();
    wanted.authorizations.dedup();
    transact(store, wanted, move |known| {
        let (done, changes) = decide(&kept, known);
        (done, if dry { Changes::default() } else { changes })
    })
    .await
}

fn decide(kept: &[Kept], known: Known) -> (Done, Changes) {
    let Known { mut payments, mut authorizations, .. } = known;
    let (mut changed_payments, mut changed_authorizations) = (HashMap::new(), HashMap::new());
    let (mut done, mut events) = (Done::default(), Vec::<Event>::new());
    for (place, kept) in kept.iter().enumerate() {
        let outcome = match &kept.event.subject {
            Subject::Payment(key) => {
                let before = payments.get(key);
                let decision = reconcile::decide_payment(before, kept);
                if let Some(next) = decision.next {
                    count(&mut done, before, &next);
                    payments.insert(key.clone(), next.clone());
                    changed_payments.insert(key.clone(), next);
                }
                events.extend(decision.events);
                decision.outcome
            }
            Subject::Authorization(key) => {
                let decision = reconcile::decide_authorization(authorizations.get(key), kept);
                if let Some(next) = decision.next {
                    done.revocations += 1;
                    authorizations.insert(key.clone(), next.clone());
                    changed_authorizations.insert(key.clone(), next);
                }
                events.extend(decision.events);
                decision.outcome
            }
        };
        match outcome {
            Outcome::True => done.already += 1,
            Outcome::Restored => {}
            Outcome::Conflict(conflict) => done.conflicts.push((place, conflict)),
        }
    }
    done.appended = u64::try_from(events.len()).unwrap_or(u64::MAX);
    let changes = Changes {
        payments: changed_payments.into_iter().collect::<Vec<(PaymentKey, _)>>(),
        authorizations: changed_authorizations.into_iter().collect::<Vec<(AuthorizationKey, _)>>(),
        tokens: Vec::new(),
        events,
    };
    (done, changes)
}

fn count(done: &mut Done, before: Option<&Payment>, next: &Payment) {
    let cancelled = |payment: &Payment| payment.inquiry().is_some();
    if !before.is_some_and(cancelled) {
        done.cancels += 1;
    }
    let funds = before.map(Payment::funds);
    if funds != Some(next.funds()) {
        match next.funds() {
            Funds::ReturnDue => done.due += 1,
            Funds::Returned => done.returned += 1,
            Funds::None | Funds::Held => {}
        }
    }
}

/// What an event is about, for people.
pub fn name(kept: &Kept) -> String {
    let kind = match kept.event.kind {
        EventKind::PaymentCancelled => "PaymentCancelled",
        EventKind::FundReturnDue(_) => "FundReturnDue",
        EventKind::AuthorizationRevoked => "AuthorizationRevoked",
    };
    let subject = &kept.event.subject;
    format!("{kind} of {} {} of {}", subject.tag(), subject.id(), subject.psp())
}

/// Which of the events behind the restored feed the kept ones are. What is missing before one that was kept was told to
/// a consumer, so it was decided, and answered.
pub struct Coverage {
    epoch: u64,
    heads: Vec<Head>,
    seen: BTreeMap<u16, BTreeSet<u64>>,
}

/// Positions of one partition that no kept event has, though a later one was kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Which partition.
    pub partition: u16,
    /// The first missing position.
    pub first: u64,
    /// The last.
    pub last: u64,
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { partition, first, last } = self;
        write!(f, "partition {partition}: positions {first} to {last} are missing")
    }
}

impl Coverage {
    /// Nothing is known yet behind a store's heads.
    pub async fn behind(store: &Arc<dyn Store>) -> Result<Self, Error> {
        let (epoch, heads) = (store.standing().await?.epoch, store.heads().await?);
        Ok(Self { epoch, heads, seen: BTreeMap::new() })
    }

    /// A kept event, if it tells its place. One of another epoch says nothing about this one.
    pub fn add(&mut self, place: Option<(u64, Place)>) {
        let Some((epoch, Place { partition, position })) = place else { return };
        let head = self.heads.get(usize::from(partition)).map_or(u64::MAX, |head| head.position);
        if epoch == self.epoch && position > head {
            self.seen.entry(partition).or_default().insert(position);
        }
    }

    /// What is missing.
    pub fn gaps(&self) -> Vec<Gap> {
        let mut gaps = Vec::new();
        for (&partition, seen) in &self.seen {
            let head = self.heads.get(usize::from(partition)).copied().unwrap_or_default();
            let mut next = head.position.saturating_add(1);
            for &position in seen {
                if position > next {
                    let last = position.saturating_sub(1);
                    gaps.push(Gap { partition, first: next, last });
                }
                next = position.saturating_add(1);
            }
        }
        gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_that_is_missing_before_one_that_was_kept_is_a_gap() {
        let heads = vec![Head { position: 5, purged: 0 }, Head::default()];
        let mut coverage = Coverage { epoch: 3, heads, seen: BTreeMap::new() };
        let place = |partition, position| Some((3, Place { partition, position }));
        for kept in [place(0, 4), place(0, 6), place(0, 7), place(1, 1), None] {
            coverage.add(kept);
        }
        // another epoch's positions mean nothing here
        coverage.add(Some((2, Place { partition: 1, position: 9 })));
        assert_eq!(coverage.gaps(), []);
        coverage.add(place(0, 10));
        coverage.add(place(1, 3));
        let gap = |partition, first, last| Gap { partition, first, last };
        assert_eq!(coverage.gaps(), [gap(0, 8, 9), gap(1, 2, 2)]);
    }
}
