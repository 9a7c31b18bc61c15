//! The requests of the day: who makes them when, who sends them, and what comes again.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rand::Rng as _;
use tokio::runtime::Handle;

use super::{
    super::{
        target::{CANCEL_PAYMENT, CANCEL_TOKEN, Target, request_time, unique},
        wire::{Answer, Connection, Request, signature_of},
    },
    day::Day,
    tally::{Came, Tally},
    view::View,
};
use crate::grpc::recorder::{Error, Fact, Recorder};

/// As long as Alipay+ waits, and then sends it again.
const CANCEL_PAYMENT_WAIT: Duration = Duration::from_secs(8);
const CANCEL_TOKEN_WAIT: Duration = Duration::from_secs(5);
/// Between two looks at what is due.
const TICK: Duration = Duration::from_millis(5);
/// Requests that wait for a caller, at most.
const QUEUE: usize = 20_000;
/// Behind an outage, what was due comes so many times as fast as usual.
const BURST: u64 = 4;
const DAY_MS: i64 = 86_400_000;

/// What to play.
pub(super) struct Plan {
    pub(super) day: Day,
    pub(super) time: Duration,
    /// Percent.
    pub(super) tokens: u32,
    /// Percent.
    pub(super) duplicates: u32,
    pub(super) retries: u32,
    pub(super) callers: u16,
}

/// What a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Story {
    Unknown,
    Initiated,
    Succeeded,
    Failed,
    Old,
    Refunded,
    Token,
    UnknownToken,
}

/// A request that is sent until it has a result.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Job {
    number: u64,
    id: String,
    story: Story,
    attempt: u32,
    is_duplicate: bool,
    /// It comes once more, beside the first or behind it.
    twice: bool,
}

impl Job {
    fn wait(&self) -> Duration {
        match self.story {
            Story::Token | Story::UnknownToken => CANCEL_TOKEN_WAIT,
            Story::Unknown
            | Story::Initiated
            | Story::Succeeded
            | Story::Failed
            | Story::Old
            | Story::Refunded => CANCEL_PAYMENT_WAIT,
        }
    }
}

/// What is due when.
struct Later {
    due: Instant,
    job: Job,
}

impl PartialEq for Later {
    fn eq(&self, other: &Self) -> bool {
        self.due == other.due
    }
}

impl Eq for Later {}

impl PartialOrd for Later {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Later {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.due.cmp(&other.due)
    }
}

/// What the callers share.
#[derive(Default)]
struct Shared {
    queue: VecDeque<Job>,
    later: BinaryHeap<Reverse<Later>>,
    under_way: usize,
    tally: Tally,
    ends: bool,
}

/// The day, being played.
pub(super) struct Traffic {
    target: Target,
    plan: Plan,
    runtime: Handle,
    shared: Mutex<Shared>,
    more: Condvar,
    is_cut: AtomicBool,
}

impl Traffic {
    pub(super) fn new(target: Target, plan: Plan, runtime: Handle) -> Self {
        let is_cut = AtomicBool::new(false);
        Self { target, plan, runtime, shared: Mutex::default(), more: Condvar::new(), is_cut }
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Plays it, until its end or until told to stop.
    pub(super) fn play(&self, stop: &AtomicBool, mut view: View) -> Tally {
        let begun = Instant::now();
        thread::scope(|scope| {
            for _ in 0..self.plan.callers {
                scope.spawn(|| self.call());
            }
            self.schedule(begun, stop, &mut view);
            self.finish(begun, stop, &mut view);
            self.shared().ends = true;
            self.more.notify_all();
        });
        view.end();
        let mut shared = self.shared();
        // nobody sends these any more
        let left = shared.queue.len() + shared.later.len();
        shared.tally.undecided += u64::try_from(left).unwrap_or(u64::MAX);
        shared.tally.took = begun.elapsed();
        shared.tally.clone()
    }

    /// Makes the day's requests, each when it is due.
    fn schedule(&self, begun: Instant, stop: &AtomicBool, view: &mut View) {
        let mut random = rand::rng();
        let (mut number, mut last, mut backlog) = (0, Duration::ZERO, 0_u64);
        // in requests of a million
        let (mut due, mut released) = (0_u64, 0_u64);
        loop {
            let elapsed = begun.elapsed();
            if elapsed >= self.plan.time || stop.load(Ordering::Relaxed) {
                break;
            }
            let passed_us = u64::try_from(elapsed.saturating_sub(last).as_micros()).unwrap_or(0);
            last = elapsed;
            let rate = self.plan.day.per_thousand_seconds(elapsed);
            let cut = self.plan.day.is_cut(elapsed);
            self.is_cut.store(cut, Ordering::Relaxed);
            // requests a second, in thousandths, times microseconds are thousands of millionths; a day is never even
            due += rate * passed_us * random.random_range(50..=150) / 100 / 1_000;
            backlog += due / 1_000_000;
            if cut {
                self.shared().tally.held += due / 1_000_000;
            }
            due %= 1_000_000;
            let mut now = if cut { 0 } else { backlog };
            if !cut && backlog > 3 {
                released += rate * passed_us * BURST / 1_000;
                now = (released / 1_000_000).min(backlog);
                released %= 1_000_000;
            }
            backlog -= now;
            for _ in 0..now {
                number += 1;
                self.add(number, &mut random);
            }
            self.wake_later();
            self.tell(elapsed, view);
            thread::sleep(TICK);
        }
        // what an outage held back to the end
        for _ in 0..backlog {
            number += 1;
            self.add(number, &mut random);
        }
    }

    fn tell(&self, elapsed: Duration, view: &mut View) {
        if view.is_due() {
            let shared = self.shared();
            let waiting = shared.queue.len() + shared.later.len() + shared.under_way;
            let cut = self.is_cut.load(Ordering::Relaxed);
            let (clock, tally) = (self.plan.day.clock(elapsed), shared.tally.clone());
            drop(shared);
            view.tell(&clock, &tally, waiting, cut);
        }
    }

    /// The day is over; what is under way gets its result, or its last retry.
    fn finish(&self, begun: Instant, stop: &AtomicBool, view: &mut View) {
        self.is_cut.store(false, Ordering::Relaxed);
        let patience = CANCEL_PAYMENT_WAIT * 2 * (self.plan.retries + 1);
        let until = Instant::now() + patience;
        loop {
            self.wake_later();
            self.tell(begun.elapsed(), view);
            {
                let shared = self.shared();
                let left = shared.queue.len() + shared.later.len() + shared.under_way;
                let over = Instant::now() >= until || stop.load(Ordering::Relaxed);
                if left == 0 || over {
                    return;
                }
            }
            thread::sleep(TICK);
        }
    }

    fn add(&self, number: u64, random: &mut impl rand::Rng) {
        let percent = random.random_range(0..100);
        let story = self.story(random);
        let id = unique(if matches!(story, Story::Token | Story::UnknownToken) {
            "simulate-token"
        } else {
            "simulate"
        });
        let twice = percent < self.plan.duplicates;
        let job = Job { number, id, story, attempt: 0, is_duplicate: false, twice };
        let mut shared = self.shared();
        if shared.queue.len() >= QUEUE {
            shared.tally.unsent += 1;
            return;
        }
        shared.tally.first += 1;
        shared.queue.push_back(job);
        drop(shared);
        self.more.notify_one();
    }

    fn story(&self, random: &mut impl rand::Rng) -> Story {
        let of_token = random.random_range(0..100) < self.plan.tokens;
        let percent = random.random_range(0..100);
        if self.target.recorder.is_none() {
            return if of_token { Story::UnknownToken } else { Story::Unknown };
        }
        if of_token {
            return if percent < 85 { Story::Token } else { Story::UnknownToken };
        }
        match percent {
            0..55 => Story::Succeeded,
            55..70 => Story::Initiated,
            70..80 => Story::Unknown,
            80..88 => Story::Failed,
            88..95 => Story::Old,
            _ => Story::Refunded,
        }
    }

    fn wake_later(&self) {
        if self.is_cut.load(Ordering::Relaxed) {
            return;
        }
        let (now, mut woken) = (Instant::now(), 0);
        let mut shared = self.shared();
        while shared.later.peek().is_some_and(|Reverse(later)| later.due <= now) {
            let Some(Reverse(later)) = shared.later.pop() else { break };
            shared.queue.push_back(later.job);
            woken += 1;
        }
        drop(shared);
        if woken > 0 {
            self.more.notify_all();
        }
    }

    fn next(&self) -> Option<Job> {
        let mut shared = self.shared();
        loop {
            if shared.ends {
                return None;
            }
            if let Some(job) = shared.queue.pop_front() {
                shared.under_way += 1;
                return Some(job);
            }
            shared = self.more.wait(shared).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// One caller: sends what is due, on a connection that it keeps.
    fn call(&self) {
        let mut connection = None;
        while let Some(mut job) = self.next() {
            if job.attempt == 0 && !job.is_duplicate && self.record(&job).is_err() {
                self.shared().tally.unrecorded += 1;
                job.story = Story::Unknown;
            }
            if job.twice {
                self.duplicate(&mut job);
            }
            let (came, took) = self.attempt(&job, &mut connection);
            let mut shared = self.shared();
            shared.under_way -= 1;
            shared.tally.retries += u64::from(job.attempt > 0);
            shared.tally.duplicates += u64::from(job.is_duplicate && job.attempt == 0);
            shared.tally.note(job.number, &came, took);
            let again = match &came {
                Came::Answer { status, .. } => status == "U",
                Came::Bad(_) => false,
                Came::Nothing => true,
            };
            if !again {
                continue;
            }
            if job.attempt >= self.plan.retries {
                shared.tally.undecided += 1;
                continue;
            }
            // counted from when it was sent
            let due = Instant::now() + job.wait().saturating_sub(took);
            job.attempt += 1;
            shared.later.push(Reverse(Later { due, job }));
        }
    }

    /// Has it come again, now that the wallet's own side knows of it: at once, or within some seconds.
    fn duplicate(&self, job: &mut Job) {
        job.twice = false;
        let mut random = rand::rng();
        let ms = if random.random_bool(0.5) { 0 } else { random.random_range(100..3_000) };
        let again = Job { is_duplicate: true, ..job.clone() };
        let due = Instant::now() + Duration::from_millis(ms);
        self.shared().later.push(Reverse(Later { due, job: again }));
    }

    fn request(&self, job: &Job) -> Request {
        let mut request = match job.story {
            Story::Token | Story::UnknownToken => {
                self.target.request(CANCEL_TOKEN, self.target.token_body(&job.id))
            }
            Story::Unknown
            | Story::Initiated
            | Story::Succeeded
            | Story::Failed
            | Story::Old
            | Story::Refunded => {
                self.target.request(CANCEL_PAYMENT, self.target.payment_body(&job.id))
            }
        };
        request.times = vec![request_time()];
        request
    }

    fn attempt(&self, job: &Job, kept: &mut Option<Connection>) -> (Came, Duration) {
        let (request, wait) = (self.request(job), job.wait());
        let bytes = request.bytes();
        let begun = Instant::now();
        // a connection that was kept may have been closed meanwhile: then once more on a new one
        for connection in [kept.take(), None] {
            let is_kept = connection.is_some();
            let connection = connection.map_or_else(|| self.target.endpoint.connect(wait), Ok);
            let Ok(mut connection) = connection else { return (Came::Nothing, begun.elapsed()) };
            connection.write(&bytes);
            let left = wait.saturating_sub(begun.elapsed());
            match connection.answer(true, left) {
                Ok(answer) => {
                    let closes = answer.header("connection") == Some("close");
                    *kept = (!closes).then_some(connection);
                    return (self.came(&request, &answer), begun.elapsed());
                }
                Err(super::super::wire::NoAnswer::Ended(_)) if is_kept => {}
                Err(_) => break,
            }
        }
        (Came::Nothing, begun.elapsed())
    }

    fn came(&self, request: &Request, answer: &Answer) -> Came {
        let result = answer.result("resultCode").zip(answer.result("resultStatus"));
        let Some((code, status)) = result else { return Came::Bad("answers without a result") };
        let Some((header, string)) = signature_of(answer).zip(request.answered_string(answer))
        else {
            return Came::Bad("answers without a signature");
        };
        if !self.target.peer_key.verify(&string, &header.signature) {
            return Came::Bad("answers whose signature does not verify");
        }
        Came::Answer { code, status }
    }

    /// Tells the wallet's own side what the request is about.
    fn record(&self, job: &Job) -> Result<(), Error> {
        let Some(recorder) = &self.target.recorder else { return Ok(()) };
        self.runtime.block_on(self.recorded(recorder, job))
    }

    async fn recorded(&self, recorder: &Recorder, job: &Job) -> Result<(), Error> {
        let now = jiff::Timestamp::now().as_millisecond();
        let began = if job.story == Story::Old { now - 3 * DAY_MS } else { now };
        let mut payment = self.target.new_payment(began);
        payment.id.clone_from(&job.id);
        let refund = "refund-1";
        let facts: &[Fact] = match job.story {
            Story::Unknown | Story::UnknownToken => &[],
            Story::Initiated => &[Fact::Initiated],
            Story::Succeeded | Story::Old => &[Fact::Initiated, Fact::Succeeded],
            Story::Failed => &[Fact::Initiated, Fact::Failed],
            Story::Refunded => {
                &[Fact::Succeeded, Fact::RefundStarted(refund, 500), Fact::RefundSucceeded(refund)]
            }
            Story::Token => {
                let mut token = self.target.new_token();
                token.token.clone_from(&job.id);
                recorder.record_token(&token).await?;
                &[]
            }
        };
        for fact in facts {
            recorder.record(&payment, *fact).await?;
        }
        Ok(())
    }
}
