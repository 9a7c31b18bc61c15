//! The wallet's history as commands: some hundred lines at a time, decided one after the other like any other command.

use super::{command::Command, hash_ring::HashRing, working::Working};
use crate::{
    domain::{
        Alarm, Asked,
        id::{AcquirerId, PassThroughInfo, Token},
        import_payment::{self, ImportPayment},
        import_token,
        key::{AuthorizationKey, Partitions, TokenKey},
        policy::Policy,
        time::Timestamp,
        token::TokenKind,
    },
    store::Wanted,
};

/// Payments of the wallet's history.
pub(super) struct ImportPayments(pub(super) Vec<ImportPayment>);

impl Command for ImportPayments {
    type Answer = Vec<import_payment::Outcome>;
    const NAME: &str = "import_payments";
    // what was recorded since the backup has to be there before `reconcile`
    const ALTHOUGH_SUSPECT: bool = true;

    fn wanted(&self, wanted: &mut Wanted) {
        wanted.payments.extend(self.0.iter().map(|payment| payment.key.clone()));
    }

    fn partition(&self, partitions: Partitions) -> u16 {
        self.0.first().map_or(0, |payment| payment.key.partition(partitions))
    }

    fn decide(
        &self,
        working: &mut Working,
        asked: &Asked,
        _: &Policy,
    ) -> (Self::Answer, Option<Alarm>) {
        let (mut answers, mut alarm) = (Vec::with_capacity(self.0.len()), None);
        for command in &self.0 {
            let known = working.payment(&command.key);
            let decision = import_payment::decide(known, command, asked);
            if let Some(next) = decision.next {
                working.keep_payment(&command.key, next);
            }
            working.announce(decision.events);
            answers.push(decision.outcome);
            alarm = alarm.or(decision.alarm);
        }
        (answers, alarm)
    }
}

/// An ImportToken with the tokens still in the clear.
#[derive(Clone, Debug)]
pub struct ImportToken {
    /// The authorization it belongs to.
    pub authorization: AuthorizationKey,
    /// Whom that was granted to.
    pub acquirer: AcquirerId,
    /// The token.
    pub token: Token,
    /// What it is good for.
    pub kind: TokenKind,
    /// When it expires by itself.
    pub expires_at: Option<Timestamp>,
    /// The token whose place it took.
    pub replaces: Option<Token>,
    /// When a cancel that named this very token was answered SUCCESS.
    pub cancelled_at: Option<Timestamp>,
    /// When the authorization was revoked.
    pub revoked_at: Option<Timestamp>,
    /// What the answer to cancelToken will carry back.
    pub pass_through_info: Option<PassThroughInfo>,
}

impl ImportToken {
    pub(super) fn hashed(self, hashes: &HashRing) -> HashedImportToken {
        let psp = &self.authorization.psp;
        let keys = hashes.keys(psp, &self.token);
        let replaces = self.replaces.as_ref().map(|token| hashes.keys(psp, token));
        HashedImportToken { keys, replaces, told: self }
    }
}

/// The same, with the keys the tokens may be stored under.
pub(super) struct HashedImportToken {
    keys: Vec<TokenKey>,
    replaces: Option<Vec<TokenKey>>,
    told: ImportToken,
}

/// Tokens of the wallet's history.
pub(super) struct ImportTokens(pub(super) Vec<HashedImportToken>);

impl Command for ImportTokens {
    type Answer = Vec<import_token::Outcome>;
    const NAME: &str = "import_tokens";
    const ALTHOUGH_SUSPECT: bool = true;

    fn wanted(&self, wanted: &mut Wanted) {
        for token in &self.0 {
            wanted.tokens.extend(token.keys.iter().cloned());
            wanted.tokens.extend(token.replaces.iter().flatten().cloned());
            wanted.authorizations.push(token.told.authorization.clone());
        }
    }

    fn partition(&self, partitions: Partitions) -> u16 {
        let first = self.0.first().and_then(|token| token.keys.first());
        first.map_or(0, |key| key.partition(partitions))
    }

    fn decide(
        &self,
        working: &mut Working,
        _: &Asked,
        _: &Policy,
    ) -> (Self::Answer, Option<Alarm>) {
        (self.0.iter().map(|token| token.decide(working)).collect(), None)
    }
}

impl HashedImportToken {
    fn decide(&self, working: &mut Working) -> import_token::Outcome {
        let told = &self.told;
        let key =
            working.token_key(&self.keys).cloned().expect("a hash ring holds at least one key");
        let replaces = self.replaces.as_ref().and_then(|keys| working.token_key(keys)).cloned();
        let command = import_token::ImportToken {
            key: key.clone(),
            authorization: told.authorization.clone(),
            acquirer: told.acquirer.clone(),
            kind: told.kind,
            expires_at: told.expires_at,
            replaces: replaces.clone(),
            cancelled_at: told.cancelled_at,
            revoked_at: told.revoked_at,
            pass_through_info: told.pass_through_info.clone(),
        };
        let decision = import_token::decide(
            working.token(&key),
            replaces.as_ref().and_then(|key| working.token(key)),
            working.authorization(&told.authorization),
            &command,
        );
        if let Some(next) = decision.next {
            if let Some(token) = next.token {
                working.keep_token(&key, token);
            }
            if let Some((key, token)) = next.replaced {
                working.keep_token(&key, token);
            }
            if let Some(authorization) = next.authorization {
                working.keep_authorization(&told.authorization, authorization);
            }
        }
        working.announce(decision.events);
        decision.outcome
    }
}
