//! Commands that are decided in one transaction.

use std::{
    mem,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{
    CLOCK_SKEW_MAX, Clock, Error,
    command::{Answered, Command},
    now,
    working::Working,
};
use crate::{
    domain::{Alarm, Asked, id::ClientId, policy::Policy, time::Timestamp},
    store::{self, Batch, Changes, Known, Wanted},
    telemetry::{Metrics, Span, label, span::Kind},
};

/// A command in the queue.
pub(super) struct Waiting {
    pub(super) entry: Box<dyn AnyEntry>,
    pub(super) deadline: Instant,
    /// Its place in the queue, given back when it is answered.
    pub(super) permit: OwnedSemaphorePermit,
}

/// A transaction that was tried.
pub(super) struct Attempt {
    pub(super) begun: Instant,
    pub(super) ended: Instant,
    /// Commands in it.
    pub(super) size: usize,
    /// The database.
    pub(super) system: &'static str,
    pub(super) good: bool,
}

/// A command with whoever waits for its answer.
pub(super) struct Entry<C: Command> {
    command: C,
    client: Option<ClientId>,
    trace: Option<Span>,
    queued: Instant,
    decided: Option<(C::Answer, Option<Alarm>)>,
    answer: oneshot::Sender<Result<C::Answer, Error>>,
}

impl<C: Command> Entry<C> {
    pub(super) fn new(
        command: C,
        client: Option<ClientId>,
        trace: Option<Span>,
        answer: oneshot::Sender<Result<C::Answer, Error>>,
    ) -> Self {
        Self { command, client, trace, queued: now(), decided: None, answer }
    }
}

/// An entry of any command.
pub(super) trait AnyEntry: Send {
    fn wanted(&self, wanted: &mut Wanted);
    fn although_suspect(&self) -> bool;
    fn decide(&mut self, working: &mut Working, asked: Asked, policy: &Policy);
    /// Since when it waits.
    fn queued(&self) -> Instant;
    /// Tells its trace of a transaction it was in.
    fn trace(&self, attempt: &Attempt);
    /// The commit is durable.
    fn answer(self: Box<Self>, metrics: &Metrics);
    /// It waited too long, and nothing happened.
    fn turn_away(self: Box<Self>);
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
        let asked = Asked {
            by: self.client.clone(),
            trace: self.trace.as_ref().map(|span| span.context().trace),
            ..asked
        };
        self.decided = Some(self.command.decide(working, &asked, policy));
    }

    fn queued(&self) -> Instant {
        self.queued
    }

    fn trace(&self, attempt: &Attempt) {
        let Some(span) = self.trace.as_ref().filter(|span| span.is_recorded()) else { return };
        let (queued, begun, ended) =
            (moment(self.queued), moment(attempt.begun), moment(attempt.ended));
        // an attempt after a failed one of the same command waited for that
        span.past((Kind::Internal, "engine wait"), (queued, begun), Vec::new(), None);
        let size = i64::try_from(attempt.size).unwrap_or(i64::MAX);
        let attributes =
            vec![label("db.system.name", attempt.system), label("db.operation.batch.size", size)];
        let failure = (!attempt.good).then_some("commit_failed");
        span.past((Kind::Client, "store commit"), (begun, ended), attributes, failure);
    }

    fn answer(self: Box<Self>, metrics: &Metrics) {
        let Some((answer, alarm)) = self.decided else { return };
        let _lines = self.trace.as_ref().map(Span::lines);
        let trace = self.trace.as_ref().map(Span::context);
        if let Some(alarm) = alarm {
            metrics.alarms.add(1, &[label("alarm", alarm.name())]);
            tracing::warn!(
                alarm = alarm.name(),
                trace_id = trace.map(|trace| tracing::field::display(trace.trace)),
                "{}",
                C::NAME
            );
        }
        let took: Duration = now().saturating_duration_since(self.queued);
        let about = Answered { client: self.client.as_ref(), trace, took };
        self.command.log(&answer, &about);
        if let Some(span) = self.trace.as_ref().filter(|span| span.is_recorded()) {
            self.command.mark_answer(&answer, span);
        }
        // whoever stopped waiting finds the same answer when asking again
        drop(self.answer.send(Ok(answer)));
    }

    fn turn_away(self: Box<Self>) {
        drop(self.answer.send(Err(Error::Full)));
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

/// The time of day it was then.
fn moment(then: Instant) -> SystemTime {
    let ago = now().saturating_duration_since(then);
    let now = SystemTime::now();
    now.checked_sub(ago).unwrap_or(now)
}

fn agree(ours: Timestamp, theirs: Timestamp) -> bool {
    u128::from(ours.unix_ms.abs_diff(theirs.unix_ms)) <= CLOCK_SKEW_MAX.as_millis()
}
