//! A store in memory, which fails when it is told to: the contract of `store`, and no rule of the domain.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use alipayplus_cancel::{
    domain::{
        authorization::Authorization,
        consumer::ConsumerName,
        key::{AuthorizationKey, Partitions, PaymentKey, TokenKey},
        payment::Payment,
        time::Timestamp,
        token::Token,
    },
    store::{
        Backlog, Batch, Cursor, Error, Follow, Granted, Head, Known, Outstanding,
        OutstandingPayment, Page, Pending, Place, Positioned, Standing, StandingChange, Store,
        Takeover,
    },
};

/// What is kept.
#[derive(Clone, Default)]
pub struct Rows {
    payments: HashMap<PaymentKey, Payment>,
    authorizations: HashMap<AuthorizationKey, Authorization>,
    tokens: HashMap<TokenKey, Token>,
    /// Events that were announced.
    pub events: usize,
    /// Batches that changed something.
    pub written: usize,
    /// Batches that came.
    pub asked: usize,
    /// True until `import complete`.
    pub onboarding: bool,
    /// How the next batches end.
    pub fault: Fault,
}

/// How a batch ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// It is committed.
    #[default]
    None,
    /// The store cannot be reached.
    Unavailable,
    /// It is committed, and nobody hears of it.
    AnswerLost,
    /// It is not committed, and nobody knows that.
    CommitLost,
    /// It cannot be kept.
    Data,
    /// What was read is damaged.
    Damaged,
    /// The store is suspect.
    Suspect,
    /// It is closing.
    Closed,
}

/// The store.
#[derive(Default)]
pub struct Memory(Mutex<Rows>);

impl Memory {
    /// What is kept, to look at or to change.
    pub fn rows(&self) -> MutexGuard<'_, Rows> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn transact(&self, batch: &mut dyn Batch) -> Result<(), Error> {
        let mut rows = self.rows();
        rows.asked += 1;
        match rows.fault {
            Fault::None | Fault::AnswerLost | Fault::CommitLost => {}
            Fault::Unavailable => return Err(Error::Unavailable("no disk".into())),
            Fault::Data => return Err(Error::Data("not kept".into())),
            Fault::Damaged => return Err(Error::Damaged("payment")),
            Fault::Suspect => return Err(Error::Suspect("a test".to_owned())),
            Fault::Closed => return Err(Error::Closed),
        }
        let wanted = batch.wanted();
        let mut known = Known { onboarding: rows.onboarding, ..Known::default() };
        for key in wanted.payments {
            if let Some(payment) = rows.payments.get(&key) {
                known.payments.insert(key, payment.clone());
            }
        }
        let mut grants = wanted.authorizations;
        for key in wanted.tokens {
            let Some(token) = rows.tokens.get(&key) else { continue };
            if let Token::Recorded(recorded) = token {
                let authorization = recorded.authorization.clone();
                grants.push(AuthorizationKey { psp: key.psp.clone(), authorization });
            }
            known.tokens.insert(key.hash, token.clone());
        }
        for key in grants {
            if let Some(authorization) = rows.authorizations.get(&key) {
                known.authorizations.insert(key, authorization.clone());
            }
        }
        let changes = batch.decide(known);
        if rows.fault == Fault::CommitLost {
            return Err(Error::CommitUnknown("the connection ended".into()));
        }
        let count = changes.payments.len() + changes.authorizations.len() + changes.tokens.len();
        rows.written += usize::from(count > 0);
        rows.payments.extend(changes.payments);
        rows.authorizations.extend(changes.authorizations);
        rows.tokens.extend(changes.tokens);
        rows.events += changes.events.len();
        if rows.fault == Fault::AnswerLost {
            return Err(Error::CommitUnknown("the connection ended".into()));
        }
        Ok(())
    }
}

fn nobody_asks<T: Send + 'static>() -> Pending<'static, Result<T, Error>> {
    Box::pin(async { Err(Error::Closed) })
}

impl Store for Memory {
    fn partitions(&self) -> Partitions {
        Partitions::DEFAULT
    }

    fn lanes(&self) -> usize {
        1
    }

    fn shared(&self) -> bool {
        false
    }

    fn commit(
        &self,
        mut batch: Box<dyn Batch>,
    ) -> Pending<'_, (Box<dyn Batch>, Result<(), Error>)> {
        Box::pin(async move {
            let result = self.transact(&mut *batch);
            (batch, result)
        })
    }

    fn payment(&self, key: PaymentKey) -> Pending<'_, Result<Option<Payment>, Error>> {
        Box::pin(async move { Ok(self.rows().payments.get(&key).cloned()) })
    }

    fn token(&self, _: Vec<TokenKey>) -> Pending<'_, Result<Option<Granted>, Error>> {
        nobody_asks()
    }

    fn heads(&self) -> Pending<'_, Result<Vec<Head>, Error>> {
        nobody_asks()
    }

    fn events(&self, _: Vec<Place>, _: u32) -> Pending<'_, Result<Vec<Positioned>, Error>> {
        nobody_asks()
    }

    fn follow(&self, _: ConsumerName, _: Follow) -> Pending<'_, Result<(), Error>> {
        nobody_asks()
    }

    fn consumers(
        &self,
    ) -> Pending<
        '_,
        Result<Vec<(ConsumerName, alipayplus_cancel::domain::consumer::Consumer)>, Error>,
    > {
        nobody_asks()
    }

    fn standing(&self) -> Pending<'_, Result<Standing, Error>> {
        nobody_asks()
    }

    fn change_standing(&self, _: StandingChange) -> Pending<'_, Result<Standing, Error>> {
        nobody_asks()
    }

    fn backlog(&self, _: Outstanding) -> Pending<'_, Result<Backlog, Error>> {
        nobody_asks()
    }

    fn outstanding(
        &self,
        _: Outstanding,
        _: u32,
    ) -> Pending<'_, Result<Vec<OutstandingPayment>, Error>> {
        nobody_asks()
    }

    fn purge(&self, _: Vec<Place>, _: Timestamp, _: u32) -> Pending<'_, Result<u64, Error>> {
        nobody_asks()
    }

    fn page(&self, _: Cursor, _: u32) -> Pending<'_, Result<Page, Error>> {
        nobody_asks()
    }

    fn fill(&self, _: Page) -> Pending<'_, Result<(), Error>> {
        nobody_asks()
    }

    fn take_over(&self, _: Takeover) -> Pending<'_, Result<(), Error>> {
        nobody_asks()
    }
}
