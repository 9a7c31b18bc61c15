//! After a restore from a backup: what consumers kept becomes true again, a thousand events a commit.

use std::{collections::HashMap, sync::Arc};

use super::transact::transact;
use crate::{
    domain::{
        event::{Event, EventKind},
        key::{AuthorizationKey, PaymentKey, Subject},
        payment::{Funds, Payment},
        reconcile::{self, Conflict, Kept, Outcome},
    },
    store::{Changes, Error, Known, Store, Wanted},
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
