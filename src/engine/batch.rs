//! Commands that are decided in one transaction.

use std::{
    mem,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{CLOCK_SKEW_MAX, Clock, Counters, Error, command::Command, working::Working};
use crate::{
    domain::{
        Alarm, Asked,
        id::{ClientId, TraceId},
        policy::Policy,
        time::Timestamp,
    },
    store::{self, Batch, Changes, Known, Wanted},
};

/// A command in the queue.
pub(super) struct Waiting {
    pub(super) entry: Box<dyn AnyEntry>,
    pub(super) deadline: Instant,
    /// Its place in the queue, given back when it is answered.
    pub(super) permit: OwnedSemaphorePermit,
}

/// A command with whoever waits for its answer.
pub(super) struct Entry<C: Command> {
    command: C,
    client: Option<ClientId>,
    trace: Option<TraceId>,
    decided: Option<(C::Answer, Option<Alarm>)>,
    answer: oneshot::Sender<Result<C::Answer, Error>>,
}

impl<C: Command> Entry<C> {
    pub(super) fn new(
        command: C,
        client: Option<ClientId>,
        trace: Option<TraceId>,
        answer: oneshot::Sender<Result<C::Answer, Error>>,
    ) -> Self {
        Self { command, client, trace, decided: None, answer }
    }
}

/// An entry of any command.
pub(super) trait AnyEntry: Send {
    fn wanted(&self, wanted: &mut Wanted);
    fn although_suspect(&self) -> bool;
    fn decide(&mut self, working: &mut Working, asked: Asked, policy: &Policy);
    /// The commit is durable.
    fn answer(self: Box<Self>, counters: &Counters);
    /// There was none, or nobody knows.
    fn fail(self: Box<Self>, error: &Arc<store::Error>);
}

impl<C: Command> AnyEntry for Entry<C> {
    fn wanted(&self, wanted: &mut Wanted) {
        self.command.wanted(wanted);
    }

    fn although_suspect(&self) -> bool {
        C::ALTHOUGH_SUSPECT
    }

    fn decide(&mut self, working: &mut Working, asked: Asked, policy: &Policy) {
        let asked = Asked { by: self.client.clone(), trace: self.trace, ..asked };
        self.decided = Some(self.command.decide(working, &asked, policy));
    }

    fn answer(self: Box<Self>, counters: &Counters) {
        let Some((answer, alarm)) = self.decided else { return };
        if let Some(alarm) = alarm {
            counters.alarmed(alarm);
            tracing::warn!(
                alarm = alarm.name(),
                trace_id = self.trace.map(tracing::field::display),
                "{}",
                C::NAME
            );
        }
        self.command.log(&answer, self.client.as_ref(), self.trace);
        // whoever stopped waiting finds the same answer when asking again
        drop(self.answer.send(Ok(answer)));
    }

    fn fail(self: Box<Self>, error: &Arc<store::Error>) {
        drop(self.answer.send(Err(Error::Store(Arc::clone(error)))));
    }
}

type Entries = Arc<Mutex<Vec<Box<dyn AnyEntry>>>>;

/// The batch as the store sees it.
///
/// The entries are shared with the worker, which gets them back even if the store loses the batch.
pub(super) struct Decisions {
    entries: Entries,
    /// Whether the last decision announced events.
    eventful: Arc<AtomicBool>,
    clock: Arc<dyn Clock>,
    policy: Arc<Policy>,
    deadline: Instant,
}

impl Decisions {
    pub(super) fn new(
        entries: Vec<Box<dyn AnyEntry>>,
        clock: Arc<dyn Clock>,
        policy: Arc<Policy>,
        deadline: Instant,
    ) -> Self {
        let (entries, eventful) = (Arc::new(Mutex::new(entries)), Arc::default());
        Self { entries, eventful, clock, policy, deadline }
    }

    pub(super) fn eventful(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.eventful)
    }

    pub(super) fn entries(&self) -> Entries {
        Arc::clone(&self.entries)
    }
}

/// Takes the entries back once the store is done with them.
pub(super) fn reclaim(entries: &Entries) -> Vec<Box<dyn AnyEntry>> {
    mem::take(&mut *entries.lock().unwrap_or_else(PoisonError::into_inner))
}

impl Batch for Decisions {
    fn wanted(&self) -> Wanted {
        let mut wanted = Wanted::default();
        for entry in self.entries.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            entry.wanted(&mut wanted);
        }
        wanted
    }

    fn decide(&mut self, known: Known) -> Changes {
        let now = self.clock.now();
        let clock_agrees = known.clock.is_none_or(|theirs| agree(now, theirs));
        let onboarding = known.onboarding;
        let asked =
            Asked { now, clock_agrees, onboarding, tombstone_allowed: true, by: None, trace: None };
        let mut working = Working::new(known);
        for entry in self.entries.lock().unwrap_or_else(PoisonError::into_inner).iter_mut() {
            entry.decide(&mut working, asked.clone(), &self.policy);
        }
        let changes = working.changes();
        self.eventful.store(!changes.events.is_empty(), Ordering::Relaxed);
        changes
    }

    fn deadline(&self) -> Instant {
        self.deadline
    }

    fn although_suspect(&self) -> bool {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.iter().all(|entry| entry.although_suspect())
    }
}

fn agree(ours: Timestamp, theirs: Timestamp) -> bool {
    u128::from(ours.unix_ms.abs_diff(theirs.unix_ms)) <= CLOCK_SKEW_MAX.as_millis()
}
