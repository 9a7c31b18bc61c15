//! The states of a transaction, as the commands of a batch change them one after the other.

use std::collections::{HashMap, HashSet};

use crate::{
    domain::{
        authorization::Authorization,
        event::Event,
        id::TokenHash,
        key::{AuthorizationKey, PaymentKey, TokenKey},
        payment::Payment,
        token::Token,
    },
    store::{Changes, Known},
};

/// The states of a transaction: what was loaded, as the commands of the batch change it one after the other.
pub(super) struct Working {
    payments: HashMap<PaymentKey, Payment>,
    authorizations: HashMap<AuthorizationKey, Authorization>,
    tokens: HashMap<TokenHash, Token>,
    changed_payments: HashSet<PaymentKey>,
    changed_authorizations: HashSet<AuthorizationKey>,
    changed_tokens: HashSet<TokenKey>,
    events: Vec<Event>,
}

impl Working {
    pub(super) fn new(known: Known) -> Self {
        let Known { payments, authorizations, tokens, onboarding: _, clock: _ } = known;
        Self {
            payments,
            authorizations,
            tokens,
            changed_payments: HashSet::new(),
            changed_authorizations: HashSet::new(),
            changed_tokens: HashSet::new(),
            events: Vec::new(),
        }
    }

    pub(super) fn payment(&self, key: &PaymentKey) -> Option<&Payment> {
        self.payments.get(key)
    }

    pub(super) fn authorization(&self, key: &AuthorizationKey) -> Option<&Authorization> {
        self.authorizations.get(key)
    }

    pub(super) fn token(&self, key: &TokenKey) -> Option<&Token> {
        self.tokens.get(&key.hash)
    }

    /// The key a token is known under, or the one for a new token.
    pub(super) fn token_key<'a>(&self, keys: &'a [TokenKey]) -> Option<&'a TokenKey> {
        keys.iter().find(|key| self.tokens.contains_key(&key.hash)).or(keys.first())
    }

    pub(super) fn keep_payment(&mut self, key: &PaymentKey, payment: Payment) {
        self.payments.insert(key.clone(), payment);
        self.changed_payments.insert(key.clone());
    }

    pub(super) fn keep_authorization(
        &mut self,
        key: &AuthorizationKey,
        authorization: Authorization,
    ) {
        self.authorizations.insert(key.clone(), authorization);
        self.changed_authorizations.insert(key.clone());
    }

    pub(super) fn keep_token(&mut self, key: &TokenKey, token: Token) {
        self.tokens.insert(key.hash, token);
        self.changed_tokens.insert(key.clone());
    }

    pub(super) fn announce(&mut self, events: Vec<Event>) {
        self.events.extend(events);
    }

    pub(super) fn changes(mut self) -> Changes {
        let payments = self
            .changed_payments
            .into_iter()
            .filter_map(|key| self.payments.remove(&key).map(|state| (key, state)))
            .collect();
        let authorizations = self
            .changed_authorizations
            .into_iter()
            .filter_map(|key| self.authorizations.remove(&key).map(|state| (key, state)))
            .collect();
        let tokens = self
            .changed_tokens
            .into_iter()
            .filter_map(|key| self.tokens.remove(&key.hash).map(|state| (key, state)))
            .collect();
        Changes { payments, authorizations, tokens, events: self.events }
    }
}
