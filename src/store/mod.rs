//! The contract every store keeps, then its trait.
//!
//! A store keeps payments, authorizations and tokens by key, and events in order. It runs a [`Batch`] as ONE
//! transaction:
//!
//! 1. lock what the batch wants (no other batch can be between its load and its commit for the same key);
//! 2. load the state of every key it names, and the authorization of every token it names;
//! 3. call [`Batch::decide`], once per attempt, which is synchronous and pure;
//! 4. write the [`Changes`]: states by key, and each event at `position = head + 1` of its subject's partition, so that
//!    positions are 1, 2, 3 … without gap, in the order of the commits;
//! 5. commit, and return only when the commit is durable.
//!
//! What a store must promise:
//!
//! - **Atomic**: all of a batch's changes and events are there, or none.
//! - **Durable**: `Ok` means that a crash of the process, the machine or (where replicated) a node loses nothing of it.
//! - **Ordered**: what a reader of a partition has passed never gains an earlier event.
//! - **Fresh**: a read that begins after a commit was answered sees that commit.
//! - **Honest**: an [`Error`] says whether the batch may have been committed. There is no way from an [`Error`] to a
//!   result code but `U`.
//!
//! A store keeps records of its own and converts; stored bytes outlive a renamed field. It never sees a token.

use std::{future::Future, pin::Pin, time::Instant};

use foldhash::HashMap;

use crate::domain::{
    amount::Amount,
    authorization::Authorization,
    consumer::{Consumer, ConsumerName},
    event::{Event, EventId},
    id::TokenHash,
    key::{AuthorizationKey, Partitions, PaymentKey, TokenKey},
    payment::Payment,
    time::Timestamp,
    token::Token,
};

pub use crate::domain::consumer::{Head, Place};

pub mod postgres;
mod record;
pub mod sqlite;

/// Why a store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store cannot be reached, is full or read-only. Nothing was committed.
    #[error("store is unavailable")]
    Unavailable(#[source] Source),
    /// It is not known whether the batch was committed.
    #[error("store lost the answer to a commit")]
    CommitUnknown(#[source] Source),
    /// Something in this batch cannot be kept; its neighbours can. Nothing was committed.
    #[error("store refuses the data of a batch")]
    Data(#[source] Source),
    /// What was read is not what was written. Nothing was committed.
    #[error("stored {0} is damaged")]
    Damaged(&'static str),
    /// The store may have lost commits (it was restored from a backup, say), so it decides nothing until `reconcile`.
    #[error("store is suspect: {0}; nothing is decided until `reconcile`")]
    Suspect(String),
    /// The store is closing. Nothing was committed.
    #[error("store is closing")]
    Closed,
}

/// What the engine underneath said.
pub type Source = Box<dyn std::error::Error + Send + Sync>;

/// A future of a store's.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The keys a batch decides about.
#[derive(Debug, Default)]
pub struct Wanted {
    /// Payments to load.
    pub payments: Vec<PaymentKey>,
    /// Authorizations to load.
    pub authorizations: Vec<AuthorizationKey>,
    /// Tokens to load, each with its authorization.
    pub tokens: Vec<TokenKey>,
}

/// What the store knows of them. A key that is absent is unknown.
#[derive(Debug, Default)]
pub struct Known {
    /// By key.
    pub payments: HashMap<PaymentKey, Payment>,
    /// By key; those of the tokens among them.
    pub authorizations: HashMap<AuthorizationKey, Authorization>,
    /// By keyed hash.
    pub tokens: HashMap<TokenHash, Token>,
    /// True until the wallet's history is imported.
    pub onboarding: bool,
    /// The store's own clock, read in the transaction, if it has one.
    pub clock: Option<Timestamp>,
}

/// What to write.
#[derive(Debug, Default)]
pub struct Changes {
    /// New states.
    pub payments: Vec<(PaymentKey, Payment)>,
    /// New states.
    pub authorizations: Vec<(AuthorizationKey, Authorization)>,
    /// New states.
    pub tokens: Vec<(TokenKey, Token)>,
    /// In order.
    pub events: Vec<Event>,
}

/// Commands that are decided together.
pub trait Batch: Send {
    /// The keys it needs.
    fn wanted(&self) -> Wanted;
    /// Decides. A store that has to try again calls it again, with what it knows then.
    fn decide(&mut self, known: Known) -> Changes;
    /// When nobody waits for it any more: a store tries again until then, not longer.
    fn deadline(&self) -> Instant;
    /// Whether it is run in a suspect store too: only what looks into one, or mends it, says so.
    fn although_suspect(&self) -> bool {
        false
    }
}

/// A token with its authorization; one that was dead on arrival has none.
pub type Granted = (Token, Option<Authorization>);

/// An event with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Positioned {
    /// Which partition.
    pub partition: u16,
    /// 1, 2, 3 … within it.
    pub position: u64,
    /// The event's own id.
    pub id: EventId,
    /// The event.
    pub event: Event,
}

/// What holds for the store as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The feed's epoch: 1, and from the first `reconcile` on the second of 1970's clock at which the last one was, so that
    /// none is ever used twice, whatever was restored.
    pub epoch: u64,
    /// True until the wallet's history is imported.
    pub onboarding: bool,
    /// Why the store decides nothing until `reconcile`, if it does not.
    pub suspect: Option<String>,
}

/// A change of the [`Standing`]; durable, dated and kept in the store's journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StandingChange {
    /// From now on, unknown means unknown: the wallet's history is imported.
    ImportComplete,
    /// Commits may have been lost; why is for people. Changes nothing if the store is suspect already.
    Suspect(String),
    /// A new epoch begins and the store is not suspect any more. What was done is for people.
    Reconciled(String),
}

/// What a change of one consumer is decided by.
#[derive(Clone, Debug)]
pub struct Following {
    /// The consumer; absent if it was never seen, or forgotten.
    pub consumer: Option<Consumer>,
    /// Of every partition, by number.
    pub heads: Vec<Head>,
    /// The store's.
    pub standing: Standing,
}

/// What to keep of a consumer.
#[derive(Clone, Debug)]
pub enum Kept {
    /// Nothing changes.
    AsItIs,
    /// This is the consumer now.
    Consumer(Consumer),
    /// It is forgotten.
    Nothing,
}

/// Decides a change of one consumer, synchronously and purely; called again if the store has to try again.
pub type Follow = Box<dyn FnMut(Following) -> Kept + Send>;

/// Which payments people have to look after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outstanding {
    /// Money is due back to the user. Since it is due.
    FundReturnDue,
    /// Cancelled while initiated, and the payment core never reported since. Since the cancel.
    Unresolved,
}

/// How many payments are outstanding, and since when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// How many.
    pub count: u64,
    /// Since when the oldest of them is.
    pub oldest: Option<Timestamp>,
}

/// One payment that is outstanding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutstandingPayment {
    /// Which.
    pub key: PaymentKey,
    /// Since when.
    pub since: Timestamp,
    /// How much is due, of [`Outstanding::FundReturnDue`].
    pub amount: Option<Amount>,
}

/// Everything a store keeps of one kind, in the order of its keys, for `verify` and `migrate-store`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Page {
    /// Ordered by key.
    Payments(Vec<(PaymentKey, Payment)>),
    /// Ordered by key.
    Authorizations(Vec<(AuthorizationKey, Authorization)>),
    /// Ordered by hash.
    Tokens(Vec<(TokenKey, Token)>),
    /// Ordered by partition and position.
    Events(Vec<Positioned>),
    /// Ordered by name; all of them at once.
    Consumers(Vec<(ConsumerName, Consumer)>),
}

/// Where a walk through a store goes on: behind this key. `None` is the beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cursor {
    /// Payments.
    Payments(Option<PaymentKey>),
    /// Authorizations.
    Authorizations(Option<AuthorizationKey>),
    /// Tokens.
    Tokens(Option<TokenHash>),
    /// Events.
    Events(Option<Place>),
    /// Consumers.
    Consumers,
}

/// What a store is filled with besides its pages, when it takes over from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Takeover {
    /// The other's.
    pub standing: Standing,
    /// The other's, by partition.
    pub heads: Vec<Head>,
}

/// What a store does. See the module for what it promises.
pub trait Store: Send + Sync + 'static {
    /// How many partitions it was made with.
    fn partitions(&self) -> Partitions;

    /// How many batches it commits side by side. Batches of different partitions should go different lanes.
    fn lanes(&self) -> usize;

    /// The database's name in traces, as the semantic conventions have it.
    fn system(&self) -> &'static str {
        "other_sql"
    }

    /// Whether other processes may commit to it too: then nobody here hears of their events, and has to look.
    fn shared(&self) -> bool;

    /// Runs a batch as one transaction and gives it back, decided if `Ok`.
    fn commit(&self, batch: Box<dyn Batch>) -> Pending<'_, (Box<dyn Batch>, Result<(), Error>)>;

    /// One payment, as of now.
    fn payment(&self, key: PaymentKey) -> Pending<'_, Result<Option<Payment>, Error>>;

    /// The first of these tokens that is known, with its authorization, as of now.
    fn token(&self, keys: Vec<TokenKey>) -> Pending<'_, Result<Option<Granted>, Error>>;

    /// How far each partition goes, by number. What it tells is durable.
    fn heads(&self) -> Pending<'_, Result<Vec<Head>, Error>>;

    /// Events behind these places, at most `limit` of each partition, in order within it. May tell of events that are
    /// not durable yet: whoever passes them on stops at the [`Head`] it knows.
    fn events(&self, behind: Vec<Place>, limit: u32)
    -> Pending<'_, Result<Vec<Positioned>, Error>>;

    /// Changes one consumer as one transaction; nobody else changes it meanwhile.
    fn follow(&self, consumer: ConsumerName, decide: Follow) -> Pending<'_, Result<(), Error>>;

    /// Every consumer, by name.
    fn consumers(&self) -> Pending<'_, Result<Vec<(ConsumerName, Consumer)>, Error>>;

    /// What holds for the store as a whole.
    fn standing(&self) -> Pending<'_, Result<Standing, Error>>;

    /// Changes it. May be repeated.
    fn change_standing(&self, change: StandingChange) -> Pending<'_, Result<Standing, Error>>;

    /// How many payments people have to look after.
    fn backlog(&self, kind: Outstanding) -> Pending<'_, Result<Backlog, Error>>;

    /// The first of them, longest outstanding first.
    fn outstanding(
        &self,
        kind: Outstanding,
        limit: u32,
    ) -> Pending<'_, Result<Vec<OutstandingPayment>, Error>>;

    /// Removes events up to and with these places that were decided before `before`, at most `limit` of them in one
    /// transaction; answers how many it removed. A caller repeats it until that is less than `limit`.
    fn purge(
        &self,
        upto: Vec<Place>,
        before: Timestamp,
        limit: u32,
    ) -> Pending<'_, Result<u64, Error>>;

    /// The next page of a walk: at most `limit` entries, none behind the end.
    fn page(&self, cursor: Cursor, limit: u32) -> Pending<'_, Result<Page, Error>>;

    /// Writes a page of another store's. May be repeated. Refused as [`Error::Data`] once this store has decided
    /// anything or was taken over to its end: only a fresh store can be filled.
    fn fill(&self, page: Page) -> Pending<'_, Result<(), Error>>;

    /// Ends filling: takes over the other's heads and standing. From here on it serves.
    fn take_over(&self, takeover: Takeover) -> Pending<'_, Result<(), Error>>;
}

/// An error with all its causes, for a log.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
