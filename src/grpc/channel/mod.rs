//! The way to cores elsewhere: one connection to each, calls spread over the healthy ones, another core asked when one
//! does not answer.
//!
//! - **Healthy** is a core whose `grpc.health.v1` Watch says so on the very connection that carries the calls. It ends
//!   with the connection, so a killed core is known at once; a frozen one by HTTP/2 keep-alive; a draining one says so.
//! - **Spread**: the core with the fewest calls in flight. One that answers nothing keeps what it has and gets no more.
//! - **Asked again**, of another core, is only what failed on the way or was answered UNAVAILABLE, and what has had no
//!   answer by half of its time. The commands of this channel are idempotent: whichever core decides, the result is one.
//!   A budget bounds it, so that trouble of the cores is not multiplied by their callers.
//! - **Without a healthy core** a call fails within `NO_CORE_WAIT`.
//!
//! It never makes a final refusal: whatever goes wrong here is "not known".

mod member;
mod resolve;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    sync::{Notify, watch},
    task::AbortHandle,
    time::{self, Instant},
};
use tonic::{Code, Status};
use tower::retry::budget::{Budget as _, TpsBudget};

pub(super) use self::member::Connection;
use self::member::Member;

/// How long a call waits for a core to become healthy: as long as a lost connection takes to be made anew.
const NO_CORE_WAIT: Duration = Duration::from_millis(50);
/// How many cores one call asks at most.
const TRIES_MAX: usize = 3;
/// Of the calls of the last ten seconds this share may be asked again …
const RETRIES_SHARE: f32 = 0.2;
/// … and so many a second on top, for whoever calls rarely.
const RETRIES_PER_SECOND: u32 = 10;
/// How long a call counts for the budget.
const RETRIES_WINDOW: Duration = Duration::from_secs(10);

/// Where a core is, or many behind one name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// A name or an address.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// How the cores and we know each other.
#[derive(Clone)]
pub struct Tls {
    /// Their authorities, our certificate; offers h2.
    pub config: Arc<ClientConfig>,
    /// The name that a core's certificate must have; unset: its place's host.
    pub server_name: Option<ServerName<'static>>,
}

/// A place cannot be verified by its name.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no name that a certificate can have")]
pub struct NoName(pub String);

/// What was seen so far.
#[derive(Debug, Default)]
pub struct Counters {
    /// Calls that asked another core, because one failed.
    pub retries: AtomicU64,
    /// Calls that asked another core, because one took long.
    pub hedges: AtomicU64,
    /// Calls for which there was no core.
    pub no_core: AtomicU64,
}

/// The cores. Clones share it; the connections end with the last one.
#[derive(Clone)]
pub struct Channel {
    shared: Arc<Shared>,
    _tasks: Arc<EndWithUs>,
}

struct Shared {
    tls: watch::Sender<Option<Tls>>,
    members: ArcSwap<Vec<Arc<Member>>>,
    /// Who is first among equals.
    turn: AtomicUsize,
    /// Told when a core becomes healthy.
    healthy: Notify,
    retries: TpsBudget,
    counters: Counters,
}

struct EndWithUs(AbortHandle);

impl Drop for EndWithUs {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel").field("members", &self.shared.members).finish_non_exhaustive()
    }
}

impl Channel {
    /// Begins to look for the cores and to connect; by TLS if there is any, else in plain text. Needs a runtime.
    pub fn start(places: Vec<Place>, tls: Option<Tls>) -> Result<Self, NoName> {
        if tls.as_ref().is_some_and(|tls| tls.server_name.is_none()) {
            for Place { host, .. } in &places {
                let name = ServerName::try_from(host.as_str());
                name.map_err(|_| NoName(host.clone()))?;
            }
        }
        let shared = Arc::new(Shared {
            tls: watch::Sender::new(tls),
            members: ArcSwap::default(),
            turn: AtomicUsize::new(0),
            healthy: Notify::new(),
            retries: TpsBudget::new(RETRIES_WINDOW, RETRIES_PER_SECOND, RETRIES_SHARE),
            counters: Counters::default(),
        });
        let keeping = tokio::spawn(resolve::keep(places, resolve::ask, Arc::clone(&shared)));
        Ok(Self { shared, _tasks: Arc::new(EndWithUs(keeping.abort_handle())) })
    }

    /// From now on connects so. A connection there is serves on until its successor is healthy; where the new set-up
    /// does not get one, it stays.
    pub fn set_tls(&self, tls: Tls) {
        self.shared.tls.send_replace(Some(tls));
    }

    /// How many cores are healthy, of how many that are known.
    pub fn cores(&self) -> (usize, usize) {
        let members = self.shared.members.load();
        (members.iter().filter(|member| member.is_healthy()).count(), members.len())
    }

    /// What was seen so far.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Asks a core, and others if need be. `ask` is given a connection and what is left of the time.
    pub(super) async fn call<T, F>(
        &self,
        wait: Duration,
        ask: impl Fn(Connection, Duration) -> F,
    ) -> Result<T, Status>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let shared = &*self.shared;
        let begun = Instant::now();
        let end = begun + wait;
        shared.retries.deposit();
        let Some(first) = shared.first(NO_CORE_WAIT.min(wait)).await else {
            shared.counters.no_core.fetch_add(1, Ordering::Relaxed);
            return Err(Status::unavailable("no core is reachable"));
        };
        let attempt = |(member, connection): (Arc<Member>, Connection)| {
            let left = end.saturating_duration_since(Instant::now());
            let asked = ask(connection, left);
            async move {
                let _in_flight = member.begin();
                let attempt = Attempt::new(&member, left);
                let answer = asked.await;
                attempt.answered(answer.as_ref().err());
                answer
            }
        };
        let mut asked = vec![Arc::clone(&first.0)];
        let mut tries = FuturesUnordered::from_iter([attempt(first)]);
        let mut another = |counter: &AtomicU64| {
            let next = shared.another(&asked)?;
            counter.fetch_add(1, Ordering::Relaxed);
            asked.push(Arc::clone(&next.0));
            Some(next)
        };
        let patience = time::sleep_until(begun + wait / 2);
        let over = time::sleep_until(end);
        tokio::pin!(patience, over);
        let (mut patient, mut late) = (true, None);
        loop {
            tokio::select! {
                biased;
                Some(answer) = tries.next() => {
                    let failed = match answer {
                        Err(status) if may_pass(&status) => status,
                        // no time is left to ask anew, but the other that was asked may still know
                        Err(status) if is_late(&status) && !tries.is_empty() => {
                            late = Some(status);
                            continue;
                        }
                        answer => return answer,
                    };
                    match another(&shared.counters.retries) {
                        Some(next) => tries.push(attempt(next)),
                        None if tries.is_empty() => return Err(late.unwrap_or(failed)),
                        None => {}
                    }
                }
                () = &mut patience, if patient => {
                    patient = false;
                    if let Some(next) = another(&shared.counters.hedges) {
                        tries.push(attempt(next));
                    }
                }
                () = &mut over => return Err(Status::deadline_exceeded("no core answered in time")),
            }
        }
    }
}

/// Whether another core may know better: this one was lost, is stopping, or cannot reach its store. Everything else is
/// an answer, a full queue too: asking elsewhere would carry the flood there.
fn may_pass(status: &Status) -> bool {
    status.code() == Code::Unavailable
}

/// Whether the core says that the time was over before it knew.
fn is_late(status: &Status) -> bool {
    status.code() == Code::DeadlineExceeded
}

/// A call that a core was asked.
struct Attempt<'m> {
    member: &'m Member,
    /// When half of its time is over.
    due: Instant,
    is_answered: bool,
}

impl<'m> Attempt<'m> {
    fn new(member: &'m Member, left: Duration) -> Self {
        Self { member, due: Instant::now() + left / 2, is_answered: false }
    }

    fn answered(mut self, refused: Option<&Status>) {
        self.is_answered = true;
        self.member.seen(!refused.is_some_and(|status| may_pass(status) || is_late(status)));
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        // whoever asked may have gone early, which is not the core's fault
        if !self.is_answered && Instant::now() >= self.due {
            self.member.seen(false);
        }
    }
}

impl Shared {
    /// The core with the fewest calls in flight, of those not asked yet; equals take turns. One that fails again and
    /// again is passed over as long as there is another.
    fn pick(&self, asked: &[Arc<Member>]) -> Option<(Arc<Member>, Connection)> {
        let members = self.members.load();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed).checked_rem(members.len())?;
        let (later, now) = members.split_at(turn);
        let unasked = |member: &&Arc<Member>| !asked.iter().any(|other| Arc::ptr_eq(other, member));
        let healthy = now.iter().chain(later).filter(unasked).filter_map(|member| {
            let connection = member.connection()?;
            Some(((member.is_passed_over(), member.in_flight()), member, connection))
        });
        let best = healthy.min_by_key(|(rank, ..)| *rank);
        best.map(|(_, member, connection)| (Arc::clone(member), connection))
    }

    async fn first(&self, wait: Duration) -> Option<(Arc<Member>, Connection)> {
        if let Some(found) = self.pick(&[]) {
            return Some(found);
        }
        let look = async {
            loop {
                let told = self.healthy.notified();
                tokio::pin!(told);
                // before the look, so that nothing is missed between the two
                told.as_mut().enable();
                if let Some(found) = self.pick(&[]) {
                    return found;
                }
                told.await;
            }
        };
        time::timeout(wait, look).await.ok()
    }

    fn another(&self, asked: &[Arc<Member>]) -> Option<(Arc<Member>, Connection)> {
        if asked.len() >= TRIES_MAX {
            return None;
        }
        let found = self.pick(asked)?;
        self.retries.withdraw().then_some(found)
    }
}
