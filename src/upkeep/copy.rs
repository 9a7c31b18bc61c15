//! One store into another, of any kind: compared while it is filled, compared again at its end, then taken over.
//!
//! Both stores are walked through in the order of their keys. What the target has already is compared with the source,
//! so a copy that was interrupted goes on where it ended, and a target that holds anything else is refused. The target
//! decides nothing until it has taken over.

use std::sync::Arc;

use super::{
    transact::transact,
    verify::Hear,
    walk::{Kind, Walk},
};
use crate::{
    domain::{
        authorization::Authorization,
        consumer::{Consumer, ConsumerName},
        key::{AuthorizationKey, PaymentKey, TokenKey},
        payment::Payment,
        token::Token,
    },
    store::{
        self, Changes, Cursor, Page, Positioned, Standing, StandingChange, Store, Takeover, Wanted,
    },
};

/// Why a store was not copied. It may be tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The stores have different numbers.
    #[error(
        "the source has {from} partitions and the target {to}; both need the same number: make the target anew with store.partitions = {from}"
    )]
    Partitions {
        /// The source's.
        from: u16,
        /// The target's.
        to: u16,
    },
    /// It was taken over before, or holds something else.
    #[error(
        "the target is not fresh: only an empty store can be filled, or one whose filling was interrupted"
    )]
    NotFresh(#[source] store::Error),
    /// It holds what the source does not.
    #[error("the target holds another {0} than the source; make it anew")]
    Differs(&'static str),
    /// Somebody decided meanwhile.
    #[error("the source changed while it was copied: stop every service on it, then try again")]
    Changed,
    /// The source failed.
    #[error("the source cannot be read")]
    Source(#[source] store::Error),
    /// The target failed.
    #[error("the target cannot be written")]
    Target(#[source] store::Error),
}

/// What was copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// How many.
    pub payments: u64,
    /// How many.
    pub authorizations: u64,
    /// How many.
    pub tokens: u64,
    /// How many.
    pub events: u64,
    /// How many.
    pub consumers: u64,
}

/// Copies all of it, compares both, and lets the target take over. The source decides nothing from then on: `left` says
/// why, to whoever asks it.
pub async fn copy(
    from: &Arc<dyn Store>,
    to: &Arc<dyn Store>,
    left: String,
    hear: Hear<'_>,
) -> Result<Copied, Error> {
    let (source, target) = (from.partitions().count(), to.partitions().count());
    if source != target {
        return Err(Error::Partitions { from: source, to: target });
    }
    // marks it, and refuses one that is not fresh
    to.fill(Page::Payments(Vec::new())).await.map_err(|error| {
        if matches!(error, store::Error::Data(_)) {
            return Error::NotFresh(error);
        }
        Error::Target(error)
    })?;
    let standing = from.standing().await.map_err(Error::Source)?;
    let heads = from.heads().await.map_err(Error::Source)?;
    let copied = Copied {
        payments: fill::<(PaymentKey, Payment)>(from, to, Page::Payments, hear).await?,
        authorizations: fill::<(AuthorizationKey, Authorization)>(
            from,
            to,
            Page::Authorizations,
            hear,
        )
        .await?,
        tokens: fill::<(TokenKey, Token)>(from, to, Page::Tokens, hear).await?,
        events: fill::<Positioned>(from, to, Page::Events, hear).await?,
        consumers: consumers(from, to).await?,
    };
    // from here on nobody decides in the source, so that nothing is decided twice, and what is compared stays as it is
    let closed =
        from.change_standing(StandingChange::Suspect(left.clone())).await.map_err(Error::Source)?;
    let after = from.heads().await.map_err(Error::Source)?;
    if after != heads || closed.epoch != standing.epoch {
        return Err(Error::Changed);
    }

    compare::<(PaymentKey, Payment)>(from, to, hear).await?;
    compare::<(AuthorizationKey, Authorization)>(from, to, hear).await?;
    compare::<(TokenKey, Token)>(from, to, hear).await?;
    compare::<Positioned>(from, to, hear).await?;

    // a run before this one may have closed it already
    let suspect = standing.suspect.filter(|why| *why != left);
    let standing = Standing { onboarding: closed.onboarding, suspect, epoch: standing.epoch };
    to.take_over(Takeover { standing, heads }).await.map_err(Error::Target)?;
    // a last look, as the service will look
    let nothing = transact(to, Wanted::default(), |_| ((), Changes::default()));
    nothing.await.map_err(Error::Target)?;
    Ok(copied)
}

/// Fills the target with what it lacks of one kind; what it has is compared.
async fn fill<T: Kind + PartialEq + Clone>(
    from: &Arc<dyn Store>,
    to: &Arc<dyn Store>,
    page: impl Fn(Vec<T>) -> Page,
    hear: Hear<'_>,
) -> Result<u64, Error> {
    let mut source = Walk::<T>::behind(from, None);
    let mut target = Walk::<T>::behind(to, None);
    let mut filled = 0u64;
    let mut has_more = true;
    loop {
        let entries = source.entries().await.map_err(Error::Source)?;
        if entries.is_empty() {
            break;
        }
        filled += u64::try_from(entries.len()).unwrap_or(0);
        let mut missing = entries.as_slice();
        if has_more {
            let there = target.entries().await.map_err(Error::Target)?;
            let (same, rest) = entries.split_at(there.len().min(entries.len()));
            if there != same {
                return Err(Error::Differs(T::NAME));
            }
            has_more = rest.is_empty();
            missing = rest;
        }
        if !missing.is_empty() {
            to.fill(page(missing.to_vec())).await.map_err(Error::Target)?;
        }
        hear(T::NAME, filled);
    }
    if has_more && !target.entries().await.map_err(Error::Target)?.is_empty() {
        return Err(Error::Differs(T::NAME));
    }
    Ok(filled)
}

async fn consumers(from: &Arc<dyn Store>, to: &Arc<dyn Store>) -> Result<u64, Error> {
    let theirs = all(from).await.map_err(Error::Source)?;
    to.fill(Page::Consumers(theirs.clone())).await.map_err(Error::Target)?;
    if all(to).await.map_err(Error::Target)? != theirs {
        return Err(Error::Differs("consumer"));
    }
    Ok(u64::try_from(theirs.len()).unwrap_or(0))
}

async fn all(store: &Arc<dyn Store>) -> Result<Vec<(ConsumerName, Consumer)>, store::Error> {
    match store.page(Cursor::Consumers, super::walk::PAGE).await? {
        Page::Consumers(consumers) => Ok(consumers),
        Page::Payments(_) | Page::Authorizations(_) | Page::Tokens(_) | Page::Events(_) => {
            Ok(Vec::new())
        }
    }
}

/// Compares both, entry by entry.
async fn compare<T: Kind + PartialEq>(
    from: &Arc<dyn Store>,
    to: &Arc<dyn Store>,
    hear: Hear<'_>,
) -> Result<(), Error> {
    let (mut source, mut target) = (Walk::<T>::behind(from, None), Walk::<T>::behind(to, None));
    let mut compared = 0u64;
    loop {
        let theirs = source.entries().await.map_err(Error::Source)?;
        if theirs != target.entries().await.map_err(Error::Target)? {
            return Err(Error::Differs(T::NAME));
        }
        if theirs.is_empty() {
            return Ok(());
        }
        compared += u64::try_from(theirs.len()).unwrap_or(0);
        hear("entries compared", compared);
    }
}
