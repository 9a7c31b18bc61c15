//! What one HTTP/2 connection has under way, because hyper tells of none of it: how many streams are open, how many the
//! peer took back, whether it takes what it asked for.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;

use crate::layer::budget::{Budget, Share, Source};

/// How many requests a peer may take back in one go: an honest one may give up all that it has open, and then all that it
/// asked again.
const RESETS_BURST: usize = 2_048;
/// How many more a second; and as many as were answered. Whoever takes back more lets us work for nothing.
const RESETS_PER_SECOND: usize = 100;

/// Counts of one connection, shared by its streams and by whoever watches over it.
#[derive(Debug)]
pub(super) struct Streams {
    /// Requests and pieces of answers.
    open: AtomicUsize,
    /// All that there ever were.
    ever: AtomicUsize,
    /// Told when nothing is open any more.
    none_open: Notify,
    /// What the peer has not taken: since this look, and since the look before. `look` says which is which.
    due: [AtomicUsize; 2],
    look: AtomicUsize,
    resets: Mutex<Resets>,
    answers: Answers,
    cut: CancellationToken,
}

/// Room for answers that are not taken, and who asks for it.
#[derive(Clone, Debug)]
pub(super) struct Answers {
    pub(super) room: Arc<Budget>,
    pub(super) source: Source,
}

#[derive(Debug)]
struct Resets {
    left: usize,
    since: Instant,
}

impl Streams {
    /// None yet. `cut` ends the connection.
    pub(super) fn new(answers: Answers, cut: CancellationToken) -> Arc<Self> {
        let resets = Mutex::new(Resets { left: RESETS_BURST, since: Instant::now() });
        Arc::new(Self {
            open: AtomicUsize::default(),
            ever: AtomicUsize::default(),
            none_open: Notify::new(),
            due: Default::default(),
            look: AtomicUsize::default(),
            resets,
            answers,
            cut,
        })
    }

    /// A request begins, or a piece of its answer leaves.
    pub(super) fn open(self: &Arc<Self>) -> Open {
        self.open.fetch_add(1, Ordering::AcqRel);
        self.ever.fetch_add(1, Ordering::AcqRel);
        Open(Arc::clone(self))
    }

    /// Whether more than one thing is open.
    pub(super) fn several(&self) -> bool {
        self.open.load(Ordering::Acquire) > 1
    }

    /// From now on something waits for the peer to take it. Without room for more of its source, the connection ends.
    pub(super) fn due(self: &Arc<Self>) -> Due {
        let share = self.answers.room.take(self.answers.source, 1);
        if share.is_none() && !self.cut.is_cancelled() {
            tracing::debug!("too many answers are not taken");
            self.cut.cancel();
        }
        let look = self.look.load(Ordering::Acquire) % 2;
        if let Some(due) = self.due.get(look) {
            due.fetch_add(1, Ordering::AcqRel);
        }
        Due { streams: Arc::clone(self), look, _share: share }
    }

    /// A request was answered.
    pub(super) fn answered(&self) {
        let mut resets = self.resets.lock().unwrap_or_else(PoisonError::into_inner);
        resets.left = resets.left.saturating_add(1).min(RESETS_BURST);
    }

    /// The peer took a request back before it was answered.
    pub(super) fn taken_back(&self) {
        let mut resets = self.resets.lock().unwrap_or_else(PoisonError::into_inner);
        let seconds = usize::try_from(resets.since.elapsed().as_secs()).unwrap_or(usize::MAX);
        if seconds > 0 {
            resets.since = Instant::now();
            let more = seconds.saturating_mul(RESETS_PER_SECOND);
            resets.left = resets.left.saturating_add(more).min(RESETS_BURST);
        }
        match resets.left.checked_sub(1) {
            Some(left) => resets.left = left,
            None if self.cut.is_cancelled() => {}
            None => {
                tracing::debug!("a peer takes back more requests than it lets be answered");
                self.cut.cancel();
            }
        }
    }

    /// Waits until the peer has not taken something for that long, or up to twice as long.
    pub(super) async fn stall(&self, patience: Duration) {
        loop {
            time::sleep(patience).await;
            let before = self.look.fetch_add(1, Ordering::AcqRel).wrapping_add(1) % 2;
            // what is counted there now was there before the last look
            if self.due.get(before).is_some_and(|due| due.load(Ordering::Acquire) > 0) {
                return;
            }
        }
    }

    /// Waits until nothing was asked for that long, or somewhat longer.
    pub(super) async fn idle(&self, patience: Duration) {
        let mut ever = 0;
        loop {
            time::sleep(patience).await;
            let now = self.ever.load(Ordering::Acquire);
            if self.open.load(Ordering::Acquire) == 0 && now == ever {
                return;
            }
            ever = now;
        }
    }

    /// Waits until nothing has been open for a moment: a peer that was told to leave would have left by then.
    pub(super) async fn parted(&self, moment: Duration) {
        loop {
            let ever = self.ever.load(Ordering::Acquire);
            if self.open.load(Ordering::Acquire) > 0 {
                self.none_open.notified().await;
                continue;
            }
            time::sleep(moment).await;
            if self.open.load(Ordering::Acquire) == 0 && self.ever.load(Ordering::Acquire) == ever {
                return;
            }
        }
    }
}

/// Something is open; until it is dropped.
#[derive(Debug)]
pub(super) struct Open(Arc<Streams>);

impl Open {
    pub(super) fn streams(&self) -> &Arc<Streams> {
        &self.0
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if self.0.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.none_open.notify_one();
        }
    }
}

/// Something waits for the peer; until it is dropped.
#[derive(Debug)]
pub(super) struct Due {
    streams: Arc<Streams>,
    look: usize,
    _share: Option<Share>,
}

impl Due {
    /// The peer took some of it.
    pub(super) fn renew(&mut self) {
        let now = self.streams.look.load(Ordering::Acquire) % 2;
        if self.look != now {
            self.count(|due| due.fetch_sub(1, Ordering::AcqRel));
            self.look = now;
            self.count(|due| due.fetch_add(1, Ordering::AcqRel));
        }
    }

    fn count(&self, change: impl FnOnce(&AtomicUsize) -> usize) {
        if let Some(due) = self.streams.due.get(self.look) {
            change(due);
        }
    }
}

impl Drop for Due {
    fn drop(&mut self) {
        self.count(|due| due.fetch_sub(1, Ordering::AcqRel));
    }
}

/// A request that is being answered: dropped before [`Call::answered`], the peer has taken it back.
#[derive(Debug)]
pub(super) struct Call {
    streams: Arc<Streams>,
    answered: bool,
}

impl Call {
    pub(super) fn new(streams: &Arc<Streams>) -> Self {
        Self { streams: Arc::clone(streams), answered: false }
    }

    /// It is answered.
    pub(super) fn answered(mut self) {
        self.answered = true;
        self.streams.answered();
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.answered {
            self.streams.taken_back();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn streams() -> (Arc<Streams>, CancellationToken) {
        let cut = CancellationToken::new();
        let source = Source::from(std::net::IpAddr::from([127, 0, 0, 1]));
        let answers = Answers { room: Budget::new(2, 2), source };
        (Streams::new(answers, cut.clone()), cut)
    }

    #[tokio::test]
    async fn a_peer_that_takes_nothing_stalls_and_one_that_takes_a_little_does_not() {
        let (streams, _) = streams();
        let patience = Duration::from_millis(500);
        let mut due = streams.due();
        tokio::select! {
            () = streams.stall(patience) => panic!("it takes a little"),
            () = async {
                for _ in 0..30 {
                    time::sleep(Duration::from_millis(50)).await;
                    due.renew();
                }
            } => {}
        }
        let begun = Instant::now();
        streams.stall(patience).await;
        assert!(begun.elapsed() >= patience / 2, "{:?}", begun.elapsed());
        drop(due);
        assert!(time::timeout(4 * patience, streams.stall(patience)).await.is_err());
    }

    #[tokio::test]
    async fn requests_taken_back_beyond_the_measure_cut_the_connection() {
        let open = usize::try_from(super::super::STREAMS_MAX).unwrap();
        assert_eq!(RESETS_BURST, 2 * open);
        let (streams, cut) = streams();
        for _ in 0..RESETS_BURST {
            drop(Call::new(&streams));
        }
        assert!(!cut.is_cancelled());
        // what is answered makes up for as many
        Call::new(&streams).answered();
        drop(Call::new(&streams));
        assert!(!cut.is_cancelled());
        // and time for some
        for _ in 0..=2 * RESETS_PER_SECOND {
            drop(Call::new(&streams));
        }
        assert!(cut.is_cancelled());
    }

    #[tokio::test]
    async fn a_peer_has_parted_when_nothing_was_open_for_a_moment() {
        let (streams, _) = streams();
        let (open, moment) = (streams.open(), Duration::from_millis(50));
        assert!(time::timeout(4 * moment, streams.parted(moment)).await.is_err());
        drop(open);
        streams.parted(moment).await;
    }

    #[tokio::test]
    async fn answers_that_find_no_room_cut_the_connection() {
        let (streams, cut) = streams();
        let _waiting = [streams.due(), streams.due()];
        drop(streams.open());
        assert!(!cut.is_cancelled());
        drop(streams.due());
        assert!(cut.is_cancelled());
    }
}
