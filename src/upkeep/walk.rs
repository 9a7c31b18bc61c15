//! A walk through everything of one kind, page by page, that goes as far as it can where a row is damaged.

use std::sync::Arc;

use crate::{
    domain::{
        authorization::Authorization,
        key::{AuthorizationKey, PaymentKey, TokenKey},
        payment::Payment,
        token::Token,
    },
    store::{Cursor, Error, Page, Place, Positioned, Store},
};

/// Entries in one page.
pub(super) const PAGE: u32 = 1_000;

/// What can be walked through.
pub(super) trait Kind: Sized + Send {
    /// Where it stands.
    type Place: Clone + Send;
    /// In messages.
    const NAME: &str;

    fn cursor(behind: Option<Self::Place>) -> Cursor;
    /// The entries of a page of this kind, none of another.
    fn entries(page: Page) -> Vec<Self>;
    fn place(&self) -> Self::Place;
}

impl Kind for (PaymentKey, Payment) {
    type Place = PaymentKey;
    const NAME: &str = "payment";

    fn cursor(behind: Option<PaymentKey>) -> Cursor {
        Cursor::Payments(behind)
    }

    fn entries(page: Page) -> Vec<Self> {
        if let Page::Payments(entries) = page { entries } else { Vec::new() }
    }

    fn place(&self) -> PaymentKey {
        self.0.clone()
    }
}

impl Kind for (AuthorizationKey, Authorization) {
    type Place = AuthorizationKey;
    const NAME: &str = "authorization";

    fn cursor(behind: Option<AuthorizationKey>) -> Cursor {
        Cursor::Authorizations(behind)
    }

    fn entries(page: Page) -> Vec<Self> {
        if let Page::Authorizations(entries) = page { entries } else { Vec::new() }
    }

    fn place(&self) -> AuthorizationKey {
        self.0.clone()
    }
}

impl Kind for (TokenKey, Token) {
    type Place = TokenKey;
    const NAME: &str = "token";

    fn cursor(behind: Option<TokenKey>) -> Cursor {
        Cursor::Tokens(behind.map(|key| key.hash))
    }

    fn entries(page: Page) -> Vec<Self> {
        if let Page::Tokens(entries) = page { entries } else { Vec::new() }
    }

    fn place(&self) -> TokenKey {
        self.0.clone()
    }
}

impl Kind for Positioned {
    type Place = Place;
    const NAME: &str = "event";

    fn cursor(behind: Option<Place>) -> Cursor {
        Cursor::Events(behind)
    }

    fn entries(page: Page) -> Vec<Self> {
        if let Page::Events(entries) = page { entries } else { Vec::new() }
    }

    fn place(&self) -> Place {
        Place { partition: self.partition, position: self.position }
    }
}

/// A walk through one kind.
pub(super) struct Walk<T: Kind> {
    store: Arc<dyn Store>,
    behind: Option<T::Place>,
    limit: u32,
    ended: bool,
}

/// What a step of a walk comes to.
pub(super) enum Step<T: Kind> {
    /// Entries, at least one.
    Entries(Vec<T>),
    /// The entry behind this place cannot be read, so the walk ends here.
    Damaged(Option<T::Place>),
    /// There are no more.
    End,
}

impl<T: Kind> Walk<T> {
    /// Begins behind a place.
    pub(super) fn behind(store: &Arc<dyn Store>, behind: Option<T::Place>) -> Self {
        Self { store: Arc::clone(store), behind, limit: PAGE, ended: false }
    }

    pub(super) async fn step(&mut self) -> Result<Step<T>, Error> {
        while !self.ended {
            let cursor = T::cursor(self.behind.clone());
            let entries = match self.store.page(cursor, self.limit).await {
                Ok(page) => T::entries(page),
                Err(Error::Damaged(_)) if self.limit > 1 => {
                    // what stands before the damaged one is read one by one
                    self.limit = 1;
                    continue;
                }
                Err(Error::Damaged(_)) => {
                    self.ended = true;
                    return Ok(Step::Damaged(self.behind.clone()));
                }
                Err(error) => return Err(error),
            };
            let Some(last) = entries.last() else { break };
            self.behind = Some(last.place());
            return Ok(Step::Entries(entries));
        }
        self.ended = true;
        Ok(Step::End)
    }

    /// The next entries, none at the end; a damaged one is an error.
    pub(super) async fn entries(&mut self) -> Result<Vec<T>, Error> {
        match self.step().await? {
            Step::Entries(entries) => Ok(entries),
            Step::End => Ok(Vec::new()),
            Step::Damaged(_) => Err(Error::Damaged(T::NAME)),
        }
    }
}
