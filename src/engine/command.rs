//! How each command gets its state and keeps its decision: load, `decide`, keep, announce.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use super::{hash_ring::HashRing, working::Working};
use crate::{
    domain::{
        Alarm, Asked,
        authorization::Authorization,
        cancel_payment::{self, CancelPayment},
        cancel_token::{self, Known},
        id::{AcquirerId, ClientId, PassThroughInfo, PspId, Token},
        introspect_token::{self, Active},
        key::{AuthorizationKey, Partitions, PaymentKey, TokenKey},
        payment::Payment,
        policy::Policy,
        record_fund_return::{self, RecordFundReturn},
        record_payment::{self, RecordPayment},
        record_token,
        revoke_authorization::{self, RevokeAuthorization},
        time::Timestamp,
        token::{self, TokenKind},
    },
    layer::rate_limit::Bucket,
    store::Wanted,
    telemetry::{Span, context::TraceContext},
};

/// What a line about an answer tells beside the command.
pub(super) struct Answered<'a> {
    pub(super) client: Option<&'a ClientId>,
    pub(super) trace: Option<TraceContext>,
    /// From queue to commit.
    pub(super) took: Duration,
}

impl Answered<'_> {
    fn trace_id(&self) -> Option<String> {
        self.trace.map(|trace| trace.trace.to_string())
    }

    fn span_id(&self) -> Option<String> {
        self.trace.map(TraceContext::span_id)
    }

    /// In milliseconds, to the microsecond.
    fn duration_ms(&self) -> f64 {
        (self.took.as_secs_f64() * 1e6).round() / 1e3
    }
}

/// A command that changes state.
pub(super) trait Command: Send + 'static {
    /// What the caller gets.
    type Answer: Send;
    /// Its name in logs.
    const NAME: &str;

    fn wanted(&self, wanted: &mut Wanted);
    /// Where its state lives; of a command about tokens, one of the places.
    fn partition(&self, partitions: Partitions) -> u16;
    fn decide(
        &self,
        working: &mut Working,
        asked: &Asked,
        policy: &Policy,
    ) -> (Self::Answer, Option<Alarm>);
    /// Whether it is run in a suspect store too; see [`crate::store::Batch::although_suspect`].
    const ALTHOUGH_SUSPECT: bool = false;
    /// One line for each cancellation; nothing for the rest.
    fn log(&self, _: &Self::Answer, _: &Answered<'_>) {}
    /// Notes on its request's span what it is about: what people search traces for.
    fn mark(&self, _: &Span) {}
    /// And how it was answered.
    fn mark_answer(&self, _: &Self::Answer, _: &Span) {}
}

fn token_partition(keys: &[TokenKey], partitions: Partitions) -> u16 {
    keys.first().map_or(0, |key| key.partition(partitions))
}

/// A CancelPayment with its client's quota of tombstones.
pub(super) struct QuotedCancelPayment {
    pub(super) command: CancelPayment,
    pub(super) tombstone: Tombstone,
}

/// A client's quota of tombstones, of which a command takes at most one, however often it is decided.
pub(super) struct Tombstone {
    /// Absent for whoever has none.
    quota: Option<Arc<Bucket>>,
    taken: OnceLock<bool>,
}

impl Tombstone {
    pub(super) const fn of(quota: Option<Arc<Bucket>>) -> Self {
        Self { quota, taken: OnceLock::new() }
    }

    /// Takes one, where the command would leave a tombstone.
    fn allowed(&self, known: bool, asked: &Asked) -> bool {
        let Some(quota) = &self.quota else { return true };
        known || asked.onboarding || *self.taken.get_or_init(|| quota.take().is_ok())
    }
}

impl Command for QuotedCancelPayment {
    type Answer = cancel_payment::Outcome;
    const NAME: &str = "cancel_payment";

    fn wanted(&self, wanted: &mut Wanted) {
        wanted.payments.push(self.command.key.clone());
    }

    fn partition(&self, partitions: Partitions) -> u16 {
        self.command.key.partition(partitions)
    }

    fn decide(
        &self,
        working: &mut Working,
        asked: &Asked,
        policy: &Policy,
    ) -> (Self::Answer, Option<Alarm>) {
        let payment = working.payment(&self.command.key);
        let tombstone_allowed = self.tombstone.allowed(payment.is_some(), asked);
        let asked = Asked { tombstone_allowed, ..asked.clone() };
        let decision = cancel_payment::decide(payment, &self.command, &asked, policy);
        if let Some(next) = decision.next {
            working.keep_payment(&self.command.key, next);
        }
        working.announce(decision.events);
        (decision.outcome, decision.alarm)
    }

    fn log(&self, outcome: &Self::Answer, about: &Answered<'_>) {
        tracing::info!(
            psp_id = self.command.key.psp.as_str(),
            payment_request_id = self.command.key.payment_request.as_str(),
            acquirer_id = self.command.acquirer.as_str(),
            api = "cancelPayment",
            result_code = outcome.code().wire(),
            repeated = matches!(outcome, cancel_payment::Outcome::Decided { repeated: true, .. }),
            client_id = about.client.map(ClientId::as_str),
            trace_id = about.trace_id(),
            span_id = about.span_id(),
            duration_ms = about.duration_ms(),
            "cancel_payment answered"
        );
    }

    fn mark(&self, span: &Span) {
        let key = &self.command.key;
        span.set("alipayplus.psp_id", key.psp.as_str().to_owned());
        span.set("alipayplus.payment_request_id", key.payment_request.as_str().to_owned());
        span.set("alipayplus.acquirer_id", self.command.acquirer.as_str().to_owned());
    }

    fn mark_answer(&self, outcome: &Self::Answer, span: &Span) {
        span.set("alipayplus.result_code", outcome.code().wire());
    }
}

impl Command for RecordPayment {
    type Answer = (record_payment::Outcome, Option<Payment>);
    const NAME: &str = "record_payment";

    fn wanted(&self, wanted: &mut Wanted) {
        wanted.payments.push(self.key.clone());
    }

    fn partition(&self, partitions: Partitions) -> u16 {
        self.key.partition(partitions)
    }

    fn decide(
        &self,
        working: &mut Working,
        asked: &Asked,
        _: &Policy,
    ) -> (Self::Answer, Option<Alarm>) {
        let decision = record_payment::decide(working.payment(&self.key), self, asked);
        if let Some(next) = decision.next {
            working.keep_payment(&self.key, next);
        }
        working.announce(decision.events);
        ((decision.outcome, working.payment(&self.key).cloned()), decision.alarm)
    }
}

impl Command for RecordFundReturn {
    type Answer = (record_fund_return::Outcome, Option<Payment>);
    const NAME: &str = "record_fund_return";

    fn wanted(&self, wanted: &mut Wanted) {
        wanted.payments.push(self.key.clone());
    }

    fn partition(&self, partitions: Partitions) -> u16 {
        self.key.partition(partitions)
    }

    fn decide(
        &self,
        working: &mut Working,
        asked: &Asked,
        _: &Policy,
    ) -> (Self::Answer, Option<Alarm>) {
        let decision = record_fund_return::decide(working.payment(&self.key), self, asked);
        if let Some(next) = decision.next {
            working.keep_payment(&self.key, next);
        }
        ((decision.outcome, working.payment(&self.key).cloned()), decision.alarm)
    }
}

impl Command for RevokeAuthorization {
    type Answer = revoke_authorization::Outcome;
    const NAME: &str = "revoke_authorization";

    fn wanted(&self, wanted: &mut Wanted) {
        wanted.authorizations.push(self.key.clone());
    }

    fn partition(&self, partitions: Partitions) -> u16 {
        self.key.partition(partitions)
    }

    fn decide(
        &self,
        working: &mut Working,
        asked: &Asked,
        _: &Policy,
    ) -> (Self::Answer, Option<Alarm>) {
        let decision = revoke_authorization::decide(working.authorization(&self.key), self, asked);
        if let Some(next) = decision.next {
            working.keep_authorization(&self.key, next);
        }
        working.announce(decision.events);
        (decision.outcome, decision.alarm)
    }

    fn log(&self, outcome: &Self::Answer, about: &Answered<'_>) {
        tracing::info!(
            psp_id = self.key.psp.as_str(),
            authorization_id = self.key.authorization.as_str(),
            outcome = ?outcome,
            client_id = about.client.map(ClientId::as_str),
            trace_id = about.trace_id(),
            span_id = about.span_id(),
            duration_ms = about.duration_ms(),
            "revoke_authorization answered"
        );
    }
}

/// A CancelToken with the token still in the clear.
#[derive(Clone, Debug)]
pub struct CancelToken {
    /// The wallet.
    pub psp: PspId,
    /// Who asks.
    pub acquirer: AcquirerId,
    /// The token.
    pub token: Token,
    /// What the acquirer tells the wallet.
    pub pass_through_info: Option<PassThroughInfo>,
}

impl CancelToken {
    pub(super) fn hashed(self, hashes: &HashRing, quota: Option<Arc<Bucket>>) -> HashedCancelToken {
        let keys = hashes.keys(&self.psp, &self.token);
        HashedCancelToken {
            keys,
            acquirer: self.acquirer,
            pass_through_info: self.pass_through_info,
            tombstone: Tombstone::of(quota),
        }
    }
}

/// The same, with the keys the token may be stored under.
pub(super) struct HashedCancelToken {
    keys: Vec<TokenKey>,
    acquirer: AcquirerId,
    pass_through_info: Option<PassThroughInfo>,
    tombstone: Tombstone,
}

impl Command for HashedCancelToken {
    type Answer = cancel_token::Outcome;
    const NAME: &str = "cancel_token";

    fn wanted(&self, wanted: &mut Wanted) {
        wanted.tokens.extend(self.keys.iter().cloned());
    }

    fn partition(&self, partitions: Partitions) -> u16 {
        token_partition(&self.keys, partitions)
    }

    fn decide(
        &self,
        working: &mut Working,
        asked: &Asked,
        _: &Policy,
    ) -> (Self::Answer, Option<Alarm>) {
        let key =
            working.token_key(&self.keys).cloned().expect("a hash ring holds at least one key");
        let known = match working.token(&key) {
            None => Known::Unknown,
            Some(token::Token::DeadOnArrival(verdict)) => Known::Dead(verdict),
            Some(token::Token::Recorded(recorded)) => {
                let psp = key.psp.clone();
                let grant = AuthorizationKey { psp, authorization: recorded.authorization.clone() };
                let grant = working
                    .authorization(&grant)
                    .expect("the store has a foreign key from token to grant");
                Known::Granted(recorded, grant)
            }
        };
        let command = cancel_token::CancelToken {
            key: key.clone(),
            acquirer: self.acquirer.clone(),
            pass_through_info: self.pass_through_info.clone(),
        };
        let is_known = !matches!(known, Known::Unknown);
        let tombstone_allowed = self.tombstone.allowed(is_known, asked);
        let asked = Asked { tombstone_allowed, ..asked.clone() };
        let decision = cancel_token::decide(known, &command, &asked);
        if let Some(next) = decision.next {
            working.keep_token(&key, next.token);
            if let Some((key, authorization)) = next.authorization {
                working.keep_authorization(&key, authorization);
            }
        }
        working.announce(decision.events);
        (decision.outcome, decision.alarm)
    }

    fn log(&self, outcome: &Self::Answer, about: &Answered<'_>) {
        let key = self.keys.first();
        tracing::info!(
            psp_id = key.map(|key| key.psp.as_str()),
            token_hash = key.map(|key| tracing::field::display(key.hash)),
            acquirer_id = self.acquirer.as_str(),
            api = "cancelToken",
            result_code = outcome.code().wire(),
            repeated = matches!(outcome, cancel_token::Outcome::Decided { repeated: true, .. }),
            client_id = about.client.map(ClientId::as_str),
            trace_id = about.trace_id(),
            span_id = about.span_id(),
            duration_ms = about.duration_ms(),
            "cancel_token answered"
        );
    }

    fn mark(&self, span: &Span) {
        if let Some(key) = self.keys.first() {
            span.set("alipayplus.psp_id", key.psp.as_str().to_owned());
            // the first eight digits: a token is found by them, and cannot be guessed from them
            span.set("alipayplus.token_hash", key.hash.to_string());
        }
        span.set("alipayplus.acquirer_id", self.acquirer.as_str().to_owned());
    }

    fn mark_answer(&self, outcome: &Self::Answer, span: &Span) {
        span.set("alipayplus.result_code", outcome.code().wire());
    }
}

/// A RecordToken with the tokens still in the clear.
#[derive(Clone, Debug)]
pub struct RecordToken {
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
    /// The token whose place it takes.
    pub replaces: Option<Token>,
    /// What the answer to cancelToken will carry back.
    pub pass_through_info: Option<PassThroughInfo>,
}

impl RecordToken {
    pub(super) fn hashed(self, hashes: &HashRing) -> HashedRecordToken {
        let psp = &self.authorization.psp;
        let keys = hashes.keys(psp, &self.token);
        let replaces = self.replaces.map(|token| hashes.keys(psp, &token));
        HashedRecordToken {
            keys,
            replaces,
            authorization: self.authorization,
            acquirer: self.acquirer,
            kind: self.kind,
            expires_at: self.expires_at,
            pass_through_info: self.pass_through_info,
        }
    }
}

/// The same, with the keys the tokens may be stored under.
pub(super) struct HashedRecordToken {
    keys: Vec<TokenKey>,
    replaces: Option<Vec<TokenKey>>,
    authorization: AuthorizationKey,
    acquirer: AcquirerId,
    kind: TokenKind,
    expires_at: Option<Timestamp>,
    pass_through_info: Option<PassThroughInfo>,
}

impl Command for HashedRecordToken {
    type Answer = record_token::Outcome;
    const NAME: &str = "record_token";

    fn wanted(&self, wanted: &mut Wanted) {
        wanted.tokens.extend(self.keys.iter().cloned());
        wanted.tokens.extend(self.replaces.iter().flatten().cloned());
        wanted.authorizations.push(self.authorization.clone());
    }

    fn partition(&self, partitions: Partitions) -> u16 {
        token_partition(&self.keys, partitions)
    }

    fn decide(
        &self,
        working: &mut Working,
        _: &Asked,
        _: &Policy,
    ) -> (Self::Answer, Option<Alarm>) {
        let key =
            working.token_key(&self.keys).cloned().expect("a hash ring holds at least one key");
        let replaces = self.replaces.as_ref().and_then(|keys| working.token_key(keys)).cloned();
        let command = record_token::RecordToken {
            key: key.clone(),
            authorization: self.authorization.clone(),
            acquirer: self.acquirer.clone(),
            kind: self.kind,
            expires_at: self.expires_at,
            replaces: replaces.clone(),
            pass_through_info: self.pass_through_info.clone(),
        };
        let decision = record_token::decide(
            working.token(&key),
            replaces.as_ref().and_then(|key| working.token(key)),
            working.authorization(&self.authorization),
            &command,
        );
        if let Some(next) = decision.next {
            working.keep_token(&key, next.token);
            if let Some((key, token)) = next.replaced {
                working.keep_token(&key, token);
            }
            if let Some(authorization) = next.authorization {
                working.keep_authorization(&self.authorization, authorization);
            }
        }
        working.announce(decision.events);
        (decision.outcome, decision.alarm)
    }
}

/// An IntrospectToken that rides in a transaction: where a deposed server may still answer plain reads, only a commit
/// proves that what was read holds.
pub(super) struct LookUpToken(pub(super) Vec<TokenKey>);

impl Command for LookUpToken {
    type Answer = Option<Active>;
    const NAME: &str = "introspect_token";

    fn wanted(&self, wanted: &mut Wanted) {
        wanted.tokens.extend(self.0.iter().cloned());
    }

    fn partition(&self, partitions: Partitions) -> u16 {
        token_partition(&self.0, partitions)
    }

    fn decide(
        &self,
        working: &mut Working,
        asked: &Asked,
        _: &Policy,
    ) -> (Self::Answer, Option<Alarm>) {
        let found = working.token_key(&self.0).and_then(|key| {
            let token = working.token(key)?;
            let authorization = match token {
                token::Token::Recorded(recorded) => working.authorization(&AuthorizationKey {
                    psp: key.psp.clone(),
                    authorization: recorded.authorization.clone(),
                }),
                token::Token::DeadOnArrival(_) => None,
            };
            Some((token.clone(), authorization.cloned()))
        });
        (introspect_token::decide(found, asked.now), None)
    }
}

/// A GetPayment that rides in a transaction, for the same reason.
pub(super) struct LookUpPayment(pub(super) PaymentKey);

impl Command for LookUpPayment {
    type Answer = Option<Payment>;
    const NAME: &str = "get_payment";

    fn wanted(&self, wanted: &mut Wanted) {
        wanted.payments.push(self.0.clone());
    }

    fn partition(&self, partitions: Partitions) -> u16 {
        self.0.partition(partitions)
    }

    fn decide(
        &self,
        working: &mut Working,
        _: &Asked,
        _: &Policy,
    ) -> (Self::Answer, Option<Alarm>) {
        (working.payment(&self.0).cloned(), None)
    }
}

/// A GetAuthorization. It rides in a transaction on every store: nobody asks for it often.
pub(super) struct LookUpAuthorization(pub(super) AuthorizationKey);

impl Command for LookUpAuthorization {
    type Answer = Option<Authorization>;
    const NAME: &str = "get_authorization";

    fn wanted(&self, wanted: &mut Wanted) {
        wanted.authorizations.push(self.0.clone());
    }

    fn partition(&self, partitions: Partitions) -> u16 {
        self.0.partition(partitions)
    }

    fn decide(
        &self,
        working: &mut Working,
        _: &Asked,
        _: &Policy,
    ) -> (Self::Answer, Option<Alarm>) {
        (working.authorization(&self.0).cloned(), None)
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::{
        domain::{
            amount::{Amount, Currency},
            id::{AuthorizationId, FundReturnReference, PaymentRequestId, TraceId},
            import_payment::ImportPayment,
            key::Subject,
            payment::{self, Terms},
            record_payment::Fact,
            time::Timestamp,
        },
        engine::import,
        layer::rate_limit::Rate,
    };

    const PARTITIONS: Partitions = Partitions::DEFAULT;

    fn psp() -> PspId {
        PspId::parse("1022172000000000001").unwrap()
    }

    fn acquirer() -> AcquirerId {
        AcquirerId::parse("1022188000000000001").unwrap()
    }

    fn token() -> Token {
        Token::parse("token").unwrap()
    }

    /// A ring whose primary key stands behind another.
    fn ring() -> HashRing {
        HashRing::new(&[[1u8; 32], [2u8; 32]]).unwrap().with_primary(1)
    }

    fn terms() -> Terms {
        let amount = Amount::new(1, Currency::parse("EUR").unwrap()).unwrap();
        Terms { amount, initiated_at: Timestamp { unix_ms: 1 } }
    }

    /// Lanes of a store are chosen by it: what shares a row must not run in two of them.
    #[test]
    fn a_command_goes_where_its_state_lives() {
        let payment_request = PaymentRequestId::parse("20200101234567890132").unwrap();
        let key = PaymentKey { psp: psp(), payment_request };
        let place = Subject::Payment(key.clone()).partition(PARTITIONS);
        assert!(place > 1, "a place that no constant is");
        let command = CancelPayment { key: key.clone(), acquirer: acquirer() };
        let cancel = QuotedCancelPayment { command, tombstone: Tombstone::of(None) };
        assert_eq!(cancel.partition(PARTITIONS), place);
        let fact = Fact::Initiated(terms());
        let record = RecordPayment { key: key.clone(), acquirer: None, fact };
        assert_eq!(record.partition(PARTITIONS), place);
        let reference = FundReturnReference::parse("r").unwrap();
        let returned = RecordFundReturn { key: key.clone(), reference };
        assert_eq!(returned.partition(PARTITIONS), place);
        assert_eq!(LookUpPayment(key.clone()).partition(PARTITIONS), place);
        let state = payment::State::Initiated(terms());
        let history = Payment { acquirer: None, recorded_at: None, state };
        let other = PaymentRequestId::parse("another").unwrap();
        let other = ImportPayment {
            key: PaymentKey { payment_request: other, ..key.clone() },
            history: history.clone(),
        };
        assert_ne!(other.key.partition(PARTITIONS), place);
        let line = ImportPayment { key, history };
        let lines = import::ImportPayments(vec![line, other]);
        assert_eq!(lines.partition(PARTITIONS), place, "the first line's");

        let authorization = AuthorizationId::parse("consent-1").unwrap();
        let grant = AuthorizationKey { psp: psp(), authorization };
        let place = Subject::Authorization(grant.clone()).partition(PARTITIONS);
        assert!(place > 1, "a place that no constant is");
        let revoke = RevokeAuthorization { key: grant.clone() };
        assert_eq!(revoke.partition(PARTITIONS), place);
        assert_eq!(LookUpAuthorization(grant.clone()).partition(PARTITIONS), place);

        // under the key that new tokens are hashed with
        let keys = ring().keys(&psp(), &token());
        let place = keys[0].partition(PARTITIONS);
        assert!(place > 1 && place != keys[1].partition(PARTITIONS), "a place of its own");
        let cancel = CancelToken {
            psp: psp(),
            acquirer: acquirer(),
            token: token(),
            pass_through_info: None,
        };
        assert_eq!(cancel.hashed(&ring(), None).partition(PARTITIONS), place);
        let record = RecordToken {
            authorization: grant.clone(),
            acquirer: acquirer(),
            token: token(),
            kind: TokenKind::Access,
            expires_at: None,
            replaces: None,
            pass_through_info: None,
        };
        assert_eq!(record.hashed(&ring()).partition(PARTITIONS), place);
        assert_eq!(LookUpToken(keys).partition(PARTITIONS), place);
        let line = import::ImportToken {
            authorization: grant,
            acquirer: acquirer(),
            token: token(),
            kind: TokenKind::Access,
            expires_at: None,
            replaces: None,
            cancelled_at: None,
            revoked_at: None,
            pass_through_info: None,
        };
        let lines = import::ImportTokens(vec![line.hashed(&ring())]);
        assert_eq!(lines.partition(PARTITIONS), place);
    }

    #[test]
    fn a_line_about_an_answer_names_its_trace_and_how_long_it_took() {
        let trace = TraceContext { trace: TraceId([0xab; 16]), span: [0xcd; 8], sampled: true };
        let took = Duration::from_nanos(12_345_678);
        let about = Answered { client: None, trace: Some(trace), took };
        assert_eq!(about.trace_id(), Some("ab".repeat(16)));
        assert_eq!(about.span_id(), Some("cd".repeat(8)));
        assert!((about.duration_ms() - 12.346).abs() < 1e-9, "{}", about.duration_ms());
        let about = Answered { trace: None, ..about };
        assert_eq!((about.trace_id(), about.span_id()), (None, None));
    }

    #[test]
    fn a_tombstone_is_taken_once_a_command_and_only_where_one_would_be_left() {
        let asked = |onboarding| Asked {
            now: Timestamp { unix_ms: 1 },
            clock_agrees: true,
            onboarding,
            tombstone_allowed: true,
            by: None,
            trace: None,
        };
        let one = NonZeroU32::MIN;
        let quota = Bucket::new(Rate { per_second: one, burst: one });
        let of_quota = || Tombstone::of(Some(Arc::clone(&quota)));
        let command = of_quota();
        assert!(command.allowed(true, &asked(false)), "what is known needs none");
        assert!(command.allowed(false, &asked(true)), "nothing is left while onboarding");
        assert!(command.allowed(false, &asked(false)));
        assert!(command.allowed(false, &asked(false)), "decided again, it has its one");
        // a second later there is another one, and this machine may be slow
        let over = (0..1_000).map(|_| of_quota()).find(|it| !it.allowed(false, &asked(false)));
        let over = over.expect("a quota has an end");
        assert!(!over.allowed(false, &asked(false)), "refused is refused");
        assert!(over.allowed(true, &asked(false)) && over.allowed(false, &asked(true)));
        assert!(Tombstone::of(None).allowed(false, &asked(false)), "who has no quota has no end");
    }
}
