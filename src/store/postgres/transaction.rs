//! A batch as one transaction: lock, load, decide, write, commit, in two round trips; a third in front of them where
//! tokens must be resolved to their authorizations first.
//!
//! Answers, repeated ones too, come from a transaction that took its partitions' locks: it has written something, so its
//! own COMMIT waits for whatever replication the server waits for, and what was answered is as durable as an answer must
//! be: see commit.rs.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use futures_util::{FutureExt as _, future};
use tokio::time;
use tokio_postgres::Row;

use super::{
    super::{Batch, Changes, Error, Head, Known, Positioned, Wanted, record::authorization_key},
    Postgres,
    columns::{self, Columns},
    commit::{COMMIT, commit_behind},
    connection::{Connection, Lease},
    failure::{Failure, before_commit},
    write::{self, Events},
};
use crate::domain::{
    id::TokenHash,
    key::{AuthorizationKey, Partitions},
    time::Timestamp,
};

/// For a round trip before COMMIT. A frozen server's host still acknowledges packets, so only a deadline of our own ends
/// the wait.
pub(super) const ROUND_TRIP: Duration = Duration::from_millis(2_200);
/// How often tokens may become known between being resolved and being locked.
const RESOLVES: u32 = 64;
/// Longest pause before a transaction is tried again.
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// What meta says, read after the locks.
pub(super) struct Meta {
    pub(super) epoch: u64,
    pub(super) onboarding: bool,
    pub(super) filling: bool,
    pub(super) suspect: Option<String>,
    pub(super) clock: Timestamp,
    /// Whether commits wait for a standby; absent where the engine does not know the question.
    commits_wait: Option<bool>,
}

impl Meta {
    pub(super) fn read(rows: &[Row]) -> Result<Self, Error> {
        let row = rows.first().ok_or(Error::Damaged("meta"))?;
        let mut row = Columns::new(row, "meta");
        Ok(Self {
            epoch: row.position()?,
            onboarding: row.get()?,
            filling: row.get()?,
            suspect: row
                .get::<Option<Vec<u8>>>()?
                .map(|text| String::from_utf8_lossy(&text).into_owned()),
            clock: Timestamp { unix_ms: row.get()? },
            commits_wait: row.get()?,
        })
    }

    /// Whether commits wait for a standby, where they have to.
    pub(super) fn check_durability(&self, connection: &Connection) -> Result<(), Error> {
        if connection.standby && self.commits_wait != Some(true) {
            let why = "commits do not wait for a standby now (synchronous_standby_names is empty), and \
                 store.durability = \"replicated\"";
            return Err(Error::Unavailable(why.into()));
        }
        Ok(())
    }

    /// Whether anything may be decided.
    fn check(&self, connection: &Connection, batch: &dyn Batch) -> Result<(), Error> {
        self.check_durability(connection)?;
        if let Some(why) = self.suspect.as_ref().filter(|_| !batch.although_suspect()) {
            return Err(Error::Suspect(why.clone()));
        }
        if self.filling {
            let why = "another store is being moved into it; see migrate-store";
            return Err(Error::Unavailable(why.into()));
        }
        Ok(())
    }
}

/// What came of an attempt.
enum Attempt {
    /// In this epoch, with the heads of its partitions.
    Committed(u64, Vec<(u16, Head)>),
    /// A token became known since the tokens were resolved, so its authorization must be locked as well.
    ResolveAgain,
}

impl Postgres {
    /// Runs a batch until it is committed, its deadline has passed, or trying again is of no use.
    pub(super) async fn run(&self, batch: &mut dyn Batch) -> Result<(), Error> {
        let deadline = batch.deadline();
        let mut pause = Duration::from_millis(2);
        let mut resolved_again = 0;
        loop {
            let failure = match Box::pin(self.attempt(batch, deadline)).await {
                Ok(Attempt::Committed(epoch, heads)) => {
                    self.heads.durable(epoch, &heads);
                    return Ok(());
                }
                // what is known stays known, so this ends, unless the authorization is not there at all
                Ok(Attempt::ResolveAgain) if resolved_again < RESOLVES => {
                    resolved_again += 1;
                    continue;
                }
                Ok(Attempt::ResolveAgain) => return Err(Error::Damaged("authorization")),
                Err(failure) => failure,
            };
            if matches!(failure, Failure::Reconnect(_)) {
                self.forget_idle();
            }
            if matches!(failure, Failure::Final(_)) || Instant::now() + pause >= deadline {
                return Err(failure.error());
            }
            let error = failure.error();
            tracing::debug!(error = %super::super::chain(&error), "a transaction is tried again");
            // nobody else should come back at the same moment
            time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn attempt(&self, batch: &mut dyn Batch, deadline: Instant) -> Result<Attempt, Failure> {
        let wanted = guarded(|| batch.wanted())?;
        let connection = self.lease(deadline).await?;
        let transaction = Transaction { connection, partitions: self.partitions, deadline };
        // before anything is read: what others commit meanwhile is no proof of a loss
        let known_heads = self.heads.snapshot();
        let resolved = transaction.within(transaction.resolve(&wanted)).await?;
        let locked = lock_set(&wanted, &resolved, self.partitions);
        let loading = transaction.load(&wanted, &resolved, &locked);
        let loaded = transaction.within(loading).await?;
        if loaded.lacks_an_authorization(&wanted) {
            transaction.within(transaction.rollback()).await?;
            transaction.connection.keep();
            return Ok(Attempt::ResolveAgain);
        }
        if known_heads.is_ahead_of(loaded.meta.epoch, &loaded.heads) {
            transaction.within(transaction.rollback()).await?;
            transaction.connection.keep();
            return Err(Failure::Final(self.commits_are_lost().await));
        }
        let refused = loaded.meta.check(&transaction.connection, batch);
        let Loaded { known, heads, meta } = loaded;
        if let Err(error) = refused {
            transaction.within(transaction.rollback()).await?;
            transaction.connection.keep();
            return Err(Failure::Final(error));
        }
        let changes = match guarded(|| batch.decide(known)) {
            Ok(changes) => changes,
            Err(failure) => {
                transaction.within(transaction.rollback()).await?;
                transaction.connection.keep();
                return Err(failure);
            }
        };
        let heads = transaction.finish(&changes, heads).await?;
        transaction.connection.keep();
        Ok(Attempt::Committed(meta.epoch, heads))
    }
}

/// A panic is one command's defect: the engine looks for the culprit by halves.
pub(super) fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(work))
        .map_err(|_| Failure::Final(Error::Data("a batch panicked".into())))
}

/// Partitions of everything that is wanted, in ascending order.
fn lock_set(
    wanted: &Wanted,
    resolved: &[AuthorizationKey],
    partitions: Partitions,
) -> BTreeSet<u16> {
    let payments = wanted.payments.iter().map(|key| key.partition(partitions));
    let tokens = wanted.tokens.iter().map(|key| key.partition(partitions));
    let grants = wanted.authorizations.iter().chain(resolved).map(|key| key.partition(partitions));
    payments.chain(tokens).chain(grants).collect()
}

/// One attempt on a connection of its own.
struct Transaction {
    connection: Lease,
    partitions: Partitions,
    deadline: Instant,
}

/// What was read under the locks.
struct Loaded {
    known: Known,
    meta: Meta,
    heads: BTreeMap<u16, Head>,
}

impl Loaded {
    /// Whether a token became known after the tokens were resolved and before they were locked: its authorization was
    /// neither locked nor loaded then.
    fn lacks_an_authorization(&self, wanted: &Wanted) -> bool {
        wanted.tokens.iter().any(|key| {
            let token = self.known.tokens.get(&key.hash);
            let grant = token.and_then(|token| authorization_key(key, token));
            grant.is_some_and(|grant| !self.known.authorizations.contains_key(&grant))
        })
    }
}

/// Rows that were read under the locks.
struct Rows {
    lock: Vec<Row>,
    meta: Vec<Row>,
    payments: Vec<Row>,
    grants: Vec<Row>,
    tokens: Vec<Row>,
}

impl Rows {
    fn read(&self, wanted: &Wanted, partitions: usize) -> Result<Loaded, Error> {
        let meta = Meta::read(&self.meta)?;
        let mut known =
            Known { onboarding: meta.onboarding, clock: Some(meta.clock), ..Known::default() };
        for row in &self.payments {
            let (key, payment) = columns::payment(row)?;
            known.payments.insert(key, payment);
        }
        for row in &self.grants {
            let (key, grant) = columns::authorization(row)?;
            known.authorizations.insert(key, grant);
        }
        let wallets: HashMap<TokenHash, _> =
            wanted.tokens.iter().map(|key| (key.hash, &key.psp)).collect();
        for row in &self.tokens {
            let (key, token) = columns::token(row)?;
            if wallets.get(&key.hash) != Some(&&key.psp) {
                return Err(Error::Damaged("token"));
            }
            known.tokens.insert(key.hash, token);
        }
        let heads = heads(&self.lock)?;
        // a partition without a head cannot be locked, and nothing may be decided without a lock
        if heads.len() != partitions {
            return Err(Error::Damaged("partition_head"));
        }
        Ok(Loaded { known, meta, heads })
    }
}

impl Transaction {
    /// A round trip before COMMIT, bounded.
    async fn within<T>(
        &self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let end = self.deadline.min(Instant::now() + ROUND_TRIP);
        time::timeout_at(end.into(), work).await.unwrap_or_else(|_| {
            Err(Failure::Reconnect(Error::Unavailable("the database does not answer".into())))
        })
    }

    /// Where the tokens' authorizations are, before anything is locked.
    async fn resolve(&self, wanted: &Wanted) -> Result<Vec<AuthorizationKey>, Failure> {
        if wanted.tokens.is_empty() {
            return Ok(Vec::new());
        }
        let Connection { client, statements, .. } = &*self.connection;
        let hashes = hashes(wanted);
        let rows = client.query(&statements.resolve_tokens, &[&hashes]).await;
        let rows = rows.map_err(before_commit)?;
        let read = |row| {
            let mut row = Columns::new(row, "token");
            row.hash()?;
            row.authorization_key()
        };
        rows.iter().map(read).collect::<Result<_, _>>().map_err(Failure::Final)
    }

    /// Locks and loads. Each statement sees what was committed before it began, so those behind the lock see everything
    /// that its earlier holders did.
    async fn load(
        &self,
        wanted: &Wanted,
        resolved: &[AuthorizationKey],
        locked: &BTreeSet<u16>,
    ) -> Result<Loaded, Failure> {
        let Connection { client, statements, .. } = &*self.connection;
        let partitions: Vec<i32> = locked.iter().copied().map(i32::from).collect();
        let (payment_psps, payment_ids): (Vec<_>, Vec<_>) = wanted
            .payments
            .iter()
            .map(|key| (key.psp.as_str().as_bytes(), key.payment_request.as_str().as_bytes()))
            .collect::<BTreeSet<_>>()
            .into_iter()
            .unzip();
        let (grant_psps, grant_ids): (Vec<_>, Vec<_>) = wanted
            .authorizations
            .iter()
            .chain(resolved)
            .map(|key| (key.psp.as_str().as_bytes(), key.authorization.as_str().as_bytes()))
            .collect::<BTreeSet<_>>()
            .into_iter()
            .unzip();
        let hashes = hashes(wanted);

        let begin = client.batch_execute("BEGIN");
        let lock = async { client.query(&statements.lock_heads, &[&partitions]).await };
        let meta = client.query(&statements.read_meta, &[]);
        let payments = async {
            if payment_psps.is_empty() {
                return Ok(Vec::new());
            }
            client.query(&statements.load_payments, &[&payment_psps, &payment_ids]).await
        };
        let grants = async {
            if grant_psps.is_empty() {
                return Ok(Vec::new());
            }
            client.query(&statements.load_grants, &[&grant_psps, &grant_ids]).await
        };
        let tokens = async {
            if hashes.is_empty() {
                return Ok(Vec::new());
            }
            client.query(&statements.load_tokens, &[&hashes]).await
        };
        // polled in this order, and so sent in it, all before the first answer
        let ((begin, lock, meta), (payments, grants, tokens)) =
            future::join(future::join3(begin, lock, meta), future::join3(payments, grants, tokens))
                .await;
        begin.map_err(before_commit)?;
        let lock = lock.map_err(before_commit)?;
        let rows = Rows {
            lock,
            meta: meta.map_err(before_commit)?,
            payments: payments.map_err(before_commit)?,
            grants: grants.map_err(before_commit)?,
            tokens: tokens.map_err(before_commit)?,
        };
        rows.read(wanted, locked.len()).map_err(Failure::Final)
    }

    async fn rollback(&self) -> Result<(), Failure> {
        self.connection.client.batch_execute("ROLLBACK").await.map_err(before_commit)
    }

    /// Writes and commits in one round trip; answers the heads that now hold.
    async fn finish(
        &self,
        changes: &Changes,
        heads: BTreeMap<u16, Head>,
    ) -> Result<Vec<(u16, Head)>, Failure> {
        let mut heads = heads;
        let mut events = Vec::with_capacity(changes.events.len());
        for event in &changes.events {
            let partition = event.subject.partition(self.partitions);
            let head = heads.get_mut(&partition).ok_or_else(|| {
                let why = "an event's subject is none of the keys that its batch wanted";
                Failure::Final(Error::Data(why.into()))
            })?;
            head.position = head.position.saturating_add(1);
            let (position, id) = (head.position, event.id());
            events.push(Positioned { partition, position, id, event: event.clone() });
        }
        let positions: Vec<_> =
            heads.iter().map(|(partition, head)| (*partition, head.position)).collect();
        let nothing = changes.payments.is_empty()
            && changes.authorizations.is_empty()
            && changes.tokens.is_empty()
            && events.is_empty();

        let connection = &*self.connection;
        let heads_saved = async {
            if nothing {
                return Ok(());
            }
            write::heads(connection, &positions).await
        };
        let writes = future::join5(
            write::payments(connection, &changes.payments),
            write::grants(connection, &changes.authorizations),
            write::tokens(connection, &changes.tokens),
            write::events(connection, &events, Events::New),
            heads_saved,
        );
        let writes = writes.map(|(payments, grants, tokens, events, heads)| {
            [payments, grants, tokens, events, heads]
        });
        let end = self.deadline.min(Instant::now() + COMMIT);
        commit_behind(connection, writes, end).await?;
        Ok(heads.into_iter().collect())
    }
}

fn hashes(wanted: &Wanted) -> Vec<&[u8]> {
    let distinct: BTreeSet<&[u8]> = wanted.tokens.iter().map(|key| &key.hash.0[..]).collect();
    distinct.into_iter().collect()
}

/// Rows of partitions with their heads.
pub(super) fn heads(rows: &[Row]) -> Result<BTreeMap<u16, Head>, Error> {
    let read = |row| {
        let mut row = Columns::new(row, "partition_head");
        let partition = row.partition()?;
        Ok((partition, Head { position: row.position()?, purged: row.position()? }))
    };
    rows.iter().map(read).collect()
}
