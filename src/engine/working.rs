//! The states of a transaction, as the commands of a batch change them one after the other.

use foldhash::HashMap;

use crate::{
    domain::{
        authorization::Authorization,
        event::Event,
        id::{PspId, TokenHash},
        key::{AuthorizationKey, PaymentKey, TokenKey},
        payment::Payment,
        token::Token,
    },
    store::{Changes, Known},
};

/// The states of a transaction: what was loaded, and as the commands of the batch change it one after the other.
pub(super) struct Working {
    known: Known,
    payments: HashMap<PaymentKey, Payment>,
    authorizations: HashMap<AuthorizationKey, Authorization>,
    tokens: HashMap<TokenHash, (PspId, Token)>,
    events: Vec<Event>,
}

impl Working {
    pub(super) fn new(known: Known) -> Self {
        Self {
            known,
            payments: HashMap::default(),
            authorizations: HashMap::default(),
            tokens: HashMap::default(),
            events: Vec::new(),
        }
    }

    pub(super) fn payment(&self, key: &PaymentKey) -> Option<&Payment> {
        self.payments.get(key).or_else(|| self.known.payments.get(key))
    }

    pub(super) fn authorization(&self, key: &AuthorizationKey) -> Option<&Authorization> {
        self.authorizations.get(key).or_else(|| self.known.authorizations.get(key))
    }

    pub(super) fn token(&self, key: &TokenKey) -> Option<&Token> {
        let kept = self.tokens.get(&key.hash).map(|(_, token)| token);
        kept.or_else(|| self.known.tokens.get(&key.hash))
    }

    /// The key a token is known under, or the one for a new token.
    pub(super) fn token_key<'a>(&self, keys: &'a [TokenKey]) -> Option<&'a TokenKey> {
        keys.iter().find(|key| self.token(key).is_some()).or(keys.first())
    }

    pub(super) fn keep_payment(&mut self, key: &PaymentKey, payment: Payment) {
        self.payments.insert(key.clone(), payment);
    }

    pub(super) fn keep_authorization(
        &mut self,
        key: &AuthorizationKey,
        authorization: Authorization,
    ) {
        self.authorizations.insert(key.clone(), authorization);
    }

    pub(super) fn keep_token(&mut self, key: &TokenKey, token: Token) {
        self.tokens.insert(key.hash, (key.psp.clone(), token));
    }

    pub(super) fn announce(&mut self, events: Vec<Event>) {
        self.events.extend(events);
    }

    pub(super) fn changes(self) -> Changes {
        let token = |(hash, (psp, token))| (TokenKey { psp, hash }, token);
        Changes {
            payments: self.payments.into_iter().collect(),
            authorizations: self.authorizations.into_iter().collect(),
            tokens: self.tokens.into_iter().map(token).collect(),
            events: self.events,
        }
    }
}
