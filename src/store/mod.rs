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

use std::{collections::HashMap, future::Future, pin::Pin};

use crate::domain::{
    authorization::Authorization,
    event::{Event, EventId},
    id::TokenHash,
    key::{AuthorizationKey, Partitions, PaymentKey, TokenKey},
    payment::Payment,
    time::Timestamp,
    token::Token,
};

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

/// What a store does. See the module for what it promises.
pub trait Store: Send + Sync + 'static {
    /// How many partitions it was made with.
    fn partitions(&self) -> Partitions;

    /// Runs a batch as one transaction and gives it back, decided if `Ok`.
    fn commit(&self, batch: Box<dyn Batch>) -> Pending<'_, (Box<dyn Batch>, Result<(), Error>)>;

    /// One payment, as of now.
    fn payment(&self, key: PaymentKey) -> Pending<'_, Result<Option<Payment>, Error>>;

    /// The first of these tokens that is known, with its authorization, as of now.
    fn token(&self, keys: Vec<TokenKey>) -> Pending<'_, Result<Option<Granted>, Error>>;

    /// Events of a partition behind a position, in order, at most `limit`.
    fn events(
        &self,
        partition: u16,
        behind: u64,
        limit: u32,
    ) -> Pending<'_, Result<Vec<Positioned>, Error>>;

    /// From now on, unknown means unknown: the wallet's history is imported. Durable; may be repeated.
    fn complete_import(&self) -> Pending<'_, Result<(), Error>>;

    /// Whether it still is as if the wallet's history were not imported.
    fn onboarding(&self) -> Pending<'_, Result<bool, Error>>;
}
