//! The store beyond one machine: PostgreSQL 13 or later, and what speaks its wire protocol and the common subset of its
//! SQL (CockroachDB, YugabyteDB): no extension, no advisory lock, no sequence, no PL/pgSQL.
//!
//! Any number of replicas write to one database. A transaction first locks the heads of its keys' partitions, so two
//! replicas never decide the same key at the same time, and positions are given under the lock, so they are gapless and
//! in the order of the commits: see transaction.rs.

/// Runs a block, whose value is a `Result<_, Failure>`, on a connection of its own, tried again while that may help. What
/// may have been committed is never run again.
macro_rules! on_connection {
    ($store:expr, $connection:ident => $body:block) => {
        on_connection!($store, $crate::store::postgres::ROUND_TRIP, $connection => $body)
    };
    ($store:expr, $patience:expr, $connection:ident => $body:block) => {{
        let mut tries = $crate::store::postgres::Tries::new($store, $patience);
        loop {
            let lease = tries.lease().await?;
            let done = {
                let $connection: &$crate::store::postgres::connection::Connection = &lease;
                tries.bounded($connection, async $body).await
            };
            if let Some(done) = tries.settle(lease, done).await? {
                break Ok(done);
            }
        }
    }};
}

mod columns;
mod commit;
mod connection;
mod consumer;
mod dsn;
mod failure;
mod migrate;
mod statement;
mod tls;
mod transaction;
mod upkeep;
mod write;

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use deadpool::managed::{Pool, Timeouts};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time,
};

use self::{
    commit::commit,
    connection::{Connector, Lease},
    failure::{Failure, before_commit},
    transaction::{Meta, ROUND_TRIP},
};
pub use self::{
    connection::ConnectError,
    dsn::{Dsn, DsnError, TlsFiles},
    tls::TlsError,
};
use super::{
    Backlog, Batch, Changes, Cursor, Error, Follow, Granted, Head, Known, Outstanding,
    OutstandingPayment, Page, Pending, Place, Positioned, Standing, StandingChange, Store,
    Takeover, Wanted,
};
use crate::domain::{
    consumer::{Consumer, ConsumerName},
    key::{Partitions, PaymentKey, TokenKey},
    payment::Payment,
    time::Timestamp,
};

/// What a commit must have survived before it is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// A crash of the server.
    #[default]
    Local,
    /// The loss of the server: commits wait for a synchronous standby, and where they do not, nothing is decided.
    Replicated,
}

/// How the database is used.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it is.
    pub dsn: Dsn,
    /// How many partitions a new one gets.
    pub partitions: Partitions,
    /// What a commit must survive.
    pub durability: Durability,
    /// Batches side by side.
    pub lanes: usize,
    /// Connections for everything else: the feed, probes, upkeep.
    pub spare_connections: usize,
}

/// For what a start has to write.
const ADMISSION: Duration = Duration::from_secs(10);

/// Why a database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no connection.
    #[error("cannot connect to the database")]
    Connect(#[source] ConnectError),
    /// The files that TLS needs are unusable.
    #[error("TLS to the database")]
    Tls(#[source] TlsError),
    /// It refused what the start needs.
    #[error("the database refused")]
    Database(#[source] tokio_postgres::Error),
    /// It does not commit.
    #[error(
        "the database does not commit within {} s; if synchronous_standby_names is set there, no standby answers",
        ADMISSION.as_secs()
    )]
    Stuck,
    /// It has an older schema than this program needs, or none.
    #[error(
        "the database has schema {found} and this program needs {needed}: run `alipayplus-cancel migrate`"
    )]
    NotMigrated {
        /// 0 for none.
        found: i32,
        /// The newest one this program knows.
        needed: i32,
    },
    /// It was migrated by a newer version.
    #[error(
        "the database has schema {schema}, which needs a newer version of this program (this one knows up to {known})"
    )]
    TooNew {
        /// The least schema a program must know to use it.
        schema: i32,
        /// The newest one this program knows.
        known: i32,
    },
    /// It was made with another number of partitions.
    #[error(
        "the database has {found} partitions and the settings say {wanted}; the number is fixed at the first migration, so set store.partitions = {found}"
    )]
    Partitions {
        /// What it has.
        found: i32,
        /// What was asked for.
        wanted: u16,
    },
    /// A hash key that stored tokens need is not in the ring.
    #[error(
        "the database holds tokens hashed with a key (fingerprint {fingerprint}) that tokens.hash_key_files lacks; without it every such token would look unknown, so put the key back"
    )]
    HashKeyMissing {
        /// First hex digits of the key's fingerprint.
        fingerprint: String,
    },
}

impl OpenError {
    /// Whether somebody has to change settings, here or on the server: waiting will not help.
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Connect(error) => error.is_configuration(),
            Self::Database(_) | Self::Stuck => false,
            Self::Tls(_)
            | Self::NotMigrated { .. }
            | Self::TooNew { .. }
            | Self::Partitions { .. }
            | Self::HashKeyMissing { .. } => true,
        }
    }
}

/// The store over a database.
pub struct Postgres {
    pool: Pool<Connector>,
    /// For everything but decisions: however many ask for something else, these have their connections.
    spare: Semaphore,
    partitions: Partitions,
    lanes: usize,
    heads: Heads,
}

/// The heads that are known to be durable: of our own commits, and of others' behind a barrier.
struct Heads(Mutex<KnownHeads>);

/// The same at one moment, and of which epoch they are.
#[derive(Clone, Debug, Default)]
struct KnownHeads {
    epoch: u64,
    heads: Vec<Head>,
}

impl Heads {
    fn of(partitions: Partitions) -> Self {
        let heads = vec![Head::default(); usize::from(partitions.count())];
        Self(Mutex::new(KnownHeads { epoch: 0, heads }))
    }

    fn durable(&self, epoch: u64, heads: &[(u16, Head)]) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if epoch < known.epoch {
            return;
        }
        if epoch > known.epoch {
            // a restored store may end before the one we knew
            known.epoch = epoch;
            known.heads.fill(Head::default());
        }
        for (partition, head) in heads {
            if let Some(known) = known.heads.get_mut(usize::from(*partition)) {
                known.position = known.position.max(head.position);
                known.purged = known.purged.max(head.purged);
            }
        }
    }

    fn snapshot(&self) -> KnownHeads {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl KnownHeads {
    /// Whether these heads, read after this snapshot was taken, lack something that was durable then: proof that the
    /// database was restored, or that a failover lost commits.
    fn is_ahead_of(&self, epoch: u64, read: &BTreeMap<u16, Head>) -> bool {
        let lost = |(partition, head): (&u16, &Head)| {
            self.heads
                .get(usize::from(*partition))
                .is_some_and(|known| known.position > head.position)
        };
        self.epoch == epoch && read.iter().any(lost)
    }
}

impl Postgres {
    /// The schema of the database and the one this program needs; 0 for none. Changes nothing.
    pub async fn schema(options: &Options) -> Result<(i32, i32), OpenError> {
        let connection = connector(options, false)?.connect().await.map_err(OpenError::Connect)?;
        Ok((migrate::schema(&connection.client).await?, migrate::newest()))
    }

    /// Brings the schema up to date; safe to run from any number of replicas at once.
    pub async fn migrate(options: &Options) -> Result<(), OpenError> {
        let connection = connector(options, false)?.connect().await.map_err(OpenError::Connect)?;
        migrate::run(&connection.client, options.partitions).await
    }

    /// Opens a database whose schema is up to date.
    ///
    /// `hash_keys` are the fingerprints of the configured ring; answers which of them is primary.
    pub async fn open(
        options: &Options,
        hash_keys: &[[u8; 16]],
    ) -> Result<(Self, usize), OpenError> {
        let connection = connector(options, false)?.connect().await.map_err(OpenError::Connect)?;
        let (found, needed) = (migrate::schema(&connection.client).await?, migrate::newest());
        if found < needed {
            return Err(OpenError::NotMigrated { found, needed });
        }
        let admitted = migrate::admit(&connection.client, options.partitions, hash_keys);
        let primary = time::timeout(ADMISSION, admitted).await.map_err(|_| OpenError::Stuck)??;
        let lanes = options.lanes.max(1);
        let pool = Pool::builder(connector(options, true)?)
            .max_size(lanes.saturating_add(options.spare_connections.max(1)))
            .runtime(deadpool::Runtime::Tokio1)
            .build()
            .map_err(|error| OpenError::Connect(ConnectError::NoHost(error.to_string())))?;
        let partitions = options.partitions;
        let heads = Heads::of(partitions);
        let spare = Semaphore::new(options.spare_connections.max(1));
        Ok((Self { pool, spare, partitions, lanes, heads }, primary))
    }

    /// A connection that nobody else uses meanwhile.
    async fn lease(&self, deadline: Instant) -> Result<Lease, Failure> {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeouts = Timeouts { wait: Some(left), create: Some(left), recycle: Some(left) };
        match self.pool.timeout_get(&timeouts).await {
            Ok(object) => Ok(Lease::new(object)),
            Err(error) => Err(Failure::Reconnect(Error::Unavailable(error.into()))),
        }
    }

    /// What was connected to before may be gone or frozen: nobody should wait for it twice.
    fn forget_idle(&self) {
        drop(self.pool.retain(|_, _| false));
    }

    /// Reads under the keys' locks and answers after the commit, as a decision would.
    async fn look<T: Default + Send + 'static>(
        &self,
        wanted: Wanted,
        although_suspect: bool,
        read: impl FnMut(Known) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let _permit = self.spare(Instant::now() + 2 * ROUND_TRIP).await?;
        let mut look = Look { wanted, although_suspect, read, seen: None };
        self.run(&mut look).await?;
        Ok(look.seen.unwrap_or_default())
    }

    /// A permit for one of the connections that decisions do not need.
    async fn spare(&self, end: Instant) -> Result<SemaphorePermit<'_>, Error> {
        match time::timeout_at(end.into(), self.spare.acquire()).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) => Err(Error::Closed),
            Err(_) => Err(Error::Unavailable("too much else is asked of the database".into())),
        }
    }

    async fn read_heads(&self) -> Result<Vec<Head>, Error> {
        let known = self.heads.snapshot();
        let read: Result<_, Error> = on_connection!(self, connection => {
            let (epoch, heads) = heads_now(connection).await?;
            let ahead = |(partition, head): (&u16, &Head)| {
                known.heads.get(usize::from(*partition)).is_none_or(|at| at.position < head.position)
            };
            let news = known.epoch != epoch || heads.iter().any(ahead);
            if !(connection.standby && news) {
                // what can be seen there has been flushed there, and need not be elsewhere
                return Ok((epoch, heads));
            }
            // A transaction that has written something waits for its standby when it commits, and so for everything that
            // was committed before; of the heads it locks none, so nobody waits for it.
            let client = &connection.client;
            client.batch_execute("BEGIN ISOLATION LEVEL READ COMMITTED").await.map_err(before_commit)?;
            let (epoch, heads) = heads_now(connection).await?;
            let barrier = client.query(&connection.statements.barrier, &[]).await;
            barrier.map_err(before_commit)?;
            commit(connection).await?;
            Ok((epoch, heads))
        });
        let (epoch, read) = read?;
        if known.is_ahead_of(epoch, &read) {
            return Err(self.commits_are_lost().await);
        }
        self.heads.durable(epoch, &read.into_iter().collect::<Vec<_>>());
        Ok(self.heads.snapshot().heads)
    }

    /// The database ends before something that was durable: nothing may be decided until people have looked.
    async fn commits_are_lost(&self) -> Error {
        let why = "the database lacks commits that were durable: it was restored, or a failover lost them";
        tracing::error!("{why}; nothing is decided until `reconcile`");
        let change = StandingChange::Suspect(why.to_owned());
        // if it cannot be written now, the next one to look writes it
        if let Err(error) = Box::pin(self.write_standing(change)).await {
            tracing::warn!(error = %super::chain(&error), "the store could not be marked as suspect");
        }
        Error::Suspect(why.to_owned())
    }
}

/// The epoch and all heads, as of now.
async fn heads_now(
    connection: &connection::Connection,
) -> Result<(u64, BTreeMap<u16, Head>), Failure> {
    let connection::Connection { client, statements, .. } = connection;
    let heads = async { client.query(&statements.read_heads, &[]).await };
    let (meta, heads) = futures_util::future::join(meta(connection), heads).await;
    let heads = transaction::heads(&heads.map_err(before_commit)?).map_err(Failure::Final)?;
    Ok((meta?.epoch, heads))
}

/// Tries of a read or of a small transaction, each on a connection of its own, while trying again may help.
struct Tries<'a> {
    store: &'a Postgres,
    permit: Option<SemaphorePermit<'a>>,
    /// For one try, before its COMMIT.
    patience: Duration,
    end: Instant,
    pause: Duration,
}

impl<'a> Tries<'a> {
    fn new(store: &'a Postgres, patience: Duration) -> Self {
        let (end, pause) = (Instant::now() + 2 * patience, Duration::from_millis(2));
        Self { store, permit: None, patience, end, pause }
    }

    async fn lease(&mut self) -> Result<Lease, Error> {
        if self.permit.is_none() {
            self.permit = Some(self.store.spare(self.end).await?);
        }
        loop {
            match self.store.lease(self.end).await {
                Ok(lease) => return Ok(lease),
                Err(failure) => self.again(failure).await?,
            }
        }
    }

    /// Work on a server that may not answer. A COMMIT that is under way has a deadline of its own.
    async fn bounded<T>(
        &self,
        connection: &connection::Connection,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let mut work = std::pin::pin!(work);
        let end = self.end.min(Instant::now() + self.patience);
        if let Ok(done) = time::timeout_at(end.into(), &mut work).await {
            return done;
        }
        if connection.committing.load(Ordering::Acquire) {
            return work.await;
        }
        Err(Failure::Reconnect(Error::Unavailable("the database does not answer".into())))
    }

    /// What was done, unless it has to be done again.
    async fn settle<T>(
        &mut self,
        lease: Lease,
        done: Result<T, Failure>,
    ) -> Result<Option<T>, Error> {
        match done {
            Ok(done) => {
                lease.keep();
                Ok(Some(done))
            }
            Err(failure) => {
                drop(lease);
                self.again(failure).await?;
                Ok(None)
            }
        }
    }

    /// Waits a little, if another try is worth it.
    async fn again(&mut self, failure: Failure) -> Result<(), Error> {
        if matches!(failure, Failure::Reconnect(_)) {
            self.store.forget_idle();
        }
        if matches!(failure, Failure::Final(_)) || Instant::now() + self.pause >= self.end {
            return Err(failure.error());
        }
        time::sleep(self.pause.mul_f64(rand::random_range(0.5..1.0))).await;
        self.pause = (self.pause * 2).min(Duration::from_millis(100));
        Ok(())
    }
}

/// A batch that only reads.
struct Look<T, F> {
    wanted: Wanted,
    /// Of payments: people look at them also while nothing may be decided.
    although_suspect: bool,
    read: F,
    seen: Option<T>,
}

impl<T: Send, F: FnMut(Known) -> T + Send> Batch for Look<T, F> {
    fn wanted(&self) -> Wanted {
        let Wanted { payments, authorizations, tokens } = &self.wanted;
        Wanted {
            payments: payments.clone(),
            authorizations: authorizations.clone(),
            tokens: tokens.clone(),
        }
    }

    fn decide(&mut self, known: Known) -> Changes {
        self.seen = Some((self.read)(known));
        Changes::default()
    }

    fn deadline(&self) -> Instant {
        Instant::now() + 2 * ROUND_TRIP
    }

    fn although_suspect(&self) -> bool {
        self.although_suspect
    }
}

fn connector(options: &Options, prepare: bool) -> Result<Connector, OpenError> {
    let tls = options.dsn.tls.as_ref().map(tls::client).transpose().map_err(OpenError::Tls)?;
    Ok(Connector { hosts: options.dsn.hosts.clone(), tls, durability: options.durability, prepare })
}

impl Store for Postgres {
    fn partitions(&self) -> Partitions {
        self.partitions
    }

    fn lanes(&self) -> usize {
        self.lanes
    }

    fn system(&self) -> &'static str {
        "postgresql"
    }

    fn shared(&self) -> bool {
        true
    }

    fn commit(
        &self,
        mut batch: Box<dyn Batch>,
    ) -> Pending<'_, (Box<dyn Batch>, Result<(), Error>)> {
        Box::pin(async move {
            let result = self.run(batch.as_mut()).await;
            (batch, result)
        })
    }

    fn payment(&self, key: PaymentKey) -> Pending<'_, Result<Option<Payment>, Error>> {
        let wanted = Wanted { payments: vec![key.clone()], ..Wanted::default() };
        Box::pin(self.look(wanted, true, move |mut known| known.payments.remove(&key)))
    }

    fn token(&self, keys: Vec<TokenKey>) -> Pending<'_, Result<Option<Granted>, Error>> {
        let wanted = Wanted { tokens: keys.clone(), ..Wanted::default() };
        Box::pin(self.look(wanted, false, move |known| {
            let key = keys.iter().find(|key| known.tokens.contains_key(&key.hash))?;
            let token = known.tokens.get(&key.hash)?.clone();
            let grant = super::record::authorization_key(key, &token);
            Some((token, grant.and_then(|grant| known.authorizations.get(&grant).cloned())))
        }))
    }

    fn heads(&self) -> Pending<'_, Result<Vec<Head>, Error>> {
        Box::pin(self.read_heads())
    }

    fn events(
        &self,
        behind: Vec<Place>,
        limit: u32,
    ) -> Pending<'_, Result<Vec<Positioned>, Error>> {
        Box::pin(self.load_events(behind, limit))
    }

    fn follow(&self, consumer: ConsumerName, decide: Follow) -> Pending<'_, Result<(), Error>> {
        Box::pin(self.change_consumer(consumer, decide))
    }

    fn consumers(&self) -> Pending<'_, Result<Vec<(ConsumerName, Consumer)>, Error>> {
        Box::pin(self.list_consumers())
    }

    fn standing(&self) -> Pending<'_, Result<Standing, Error>> {
        Box::pin(self.read_standing())
    }

    fn change_standing(&self, change: StandingChange) -> Pending<'_, Result<Standing, Error>> {
        Box::pin(self.write_standing(change))
    }

    fn backlog(&self, kind: Outstanding) -> Pending<'_, Result<Backlog, Error>> {
        Box::pin(self.count_outstanding(kind))
    }

    fn outstanding(
        &self,
        kind: Outstanding,
        limit: u32,
    ) -> Pending<'_, Result<Vec<OutstandingPayment>, Error>> {
        Box::pin(self.list_outstanding(kind, limit))
    }

    fn purge(
        &self,
        upto: Vec<Place>,
        before: Timestamp,
        limit: u32,
    ) -> Pending<'_, Result<u64, Error>> {
        Box::pin(self.remove_events(upto, before, limit))
    }

    fn page(&self, cursor: Cursor, limit: u32) -> Pending<'_, Result<Page, Error>> {
        Box::pin(self.read_page(cursor, limit))
    }

    fn fill(&self, page: Page) -> Pending<'_, Result<(), Error>> {
        Box::pin(self.fill_page(page))
    }

    fn take_over(&self, takeover: Takeover) -> Pending<'_, Result<(), Error>> {
        Box::pin(self.end_filling(takeover))
    }
}

/// Meta, outside a decision.
async fn meta(connection: &connection::Connection) -> Result<Meta, Failure> {
    let rows = connection.client.query(&connection.statements.read_meta, &[]).await;
    Meta::read(&rows.map_err(before_commit)?).map_err(Failure::Final)
}
