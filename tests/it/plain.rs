//! The domain in plain data, and a store of maps that decides by the domain: what the properties, the model and the
//! simulation have in common.
//!
//! A command, an answer and a state are texts and numbers here, as in [`crate::oracle`], so that the two can be
//! compared. [`Store`] loads, calls the domain's `decide`, writes what is next and appends the events, in one step: it
//! has no rule of its own.

use std::collections::BTreeMap;

use alipayplus_cancel::domain::{
    self,
    amount::{Amount, Currency},
    authorization::Authorization,
    cancel_payment::{self, CancelPayment},
    cancel_token::{self, CancelToken},
    event::{Event, EventCause, EventKind},
    id::{
        AcquirerId, AuthorizationId, FundReturnReference, PassThroughInfo, PaymentRequestId, PspId,
        RefundId, TokenHash,
    },
    introspect_token,
    key::{AuthorizationKey, Partitions, PaymentKey, Subject, TokenKey},
    payment::{Funds, Life, Money as Returning, Payment, RefundState, State, Terms},
    policy::Policy,
    record_fund_return::{self, RecordFundReturn},
    record_payment::{self, Fact, RecordPayment},
    record_token::{self, RecordToken},
    result::ResultStatus,
    revoke_authorization::{self, RevokeAuthorization},
    time::Timestamp,
    token::{Recorded, Token, TokenKind},
};
use jiff::{ToSpan as _, civil, tz};

use crate::oracle::{self, Money, NewToken, Oracle, Text, Told};

// ---------------------------------------------------------------- what can be asked

#[derive(Clone, Copy, Debug)]
pub enum Command {
    CancelPayment { id: Text, acquirer: Text },
    RecordPayment(Told),
    RecordFundReturn { id: Text, reference: Text },
    CancelToken { token: Text, acquirer: Text },
    RecordToken(NewToken),
    RevokeAuthorization { grant: Text },
}

/// Every name there is, so that a domain's text can be read back.
pub const NAMES: [Text; 22] = [
    "p1", "p2", "A", "B", "r1", "r2", "r3", "ref1", "ref2", "g1", "g2", "t1", "t2", "t3", "t4",
    "EUR", "USD", "i1", "i2", "access", "refresh", "wallet",
];
pub const PAYMENTS: [Text; 2] = ["p1", "p2"];
pub const TOKENS: [Text; 4] = ["t1", "t2", "t3", "t4"];

pub const HOUR: i64 = 3_600_000;
pub const DAY: i64 = 24 * HOUR;
/// 2026-05-28T12:00:00+08:00.
pub const NOON: i64 = 1_779_940_800_000;
/// 00:31:00+08:00 of the next day: the last moment of the window.
pub const EDGE: i64 = NOON + 12 * HOUR + 31 * 60_000;

// ---------------------------------------------------------------- plain data to domain and back

pub fn acquirer(name: Text) -> AcquirerId {
    AcquirerId::parse(name).expect("an acquirer")
}

pub fn psp() -> PspId {
    PspId::parse("wallet").expect("a wallet")
}

pub fn payment_key(id: Text) -> PaymentKey {
    PaymentKey { psp: psp(), payment_request: PaymentRequestId::parse(id).expect("an id") }
}

pub fn grant_key(id: Text) -> AuthorizationKey {
    AuthorizationKey { psp: psp(), authorization: AuthorizationId::parse(id).expect("an id") }
}

pub fn token_key(name: Text) -> TokenKey {
    let mut hash = [0; 32];
    for (place, byte) in hash.iter_mut().zip(name.bytes()) {
        *place = byte;
    }
    TokenKey { psp: psp(), hash: TokenHash(hash) }
}

pub fn amount((minor_units, currency): Money) -> Amount {
    let currency = Currency::parse(currency).expect("a currency");
    Amount::new(minor_units, currency).expect("an amount")
}

pub fn info(name: Text) -> PassThroughInfo {
    PassThroughInfo::parse(name).expect("an info")
}

pub fn moment(unix_ms: i64) -> Timestamp {
    Timestamp { unix_ms }
}

pub fn fact(told: &Told) -> Fact {
    let terms = || Terms {
        amount: amount(told.amount.expect("required")),
        initiated_at: moment(told.initiated_at.expect("required")),
    };
    let id = || RefundId::parse(told.refund.expect("required")).expect("an id");
    let amount = told.amount.map(amount);
    match told.fact {
        "initiated" => Fact::Initiated(terms()),
        "succeeded" => Fact::Succeeded(terms()),
        "failed" => Fact::Failed { amount },
        "refund started" => Fact::RefundStarted { id: id(), amount: amount.expect("required") },
        "refund done" => Fact::RefundSucceeded { id: id(), amount },
        "refund failed" => Fact::RefundFailed { id: id(), amount },
        other => unreachable!("no such fact: {other}"),
    }
}

pub fn name(text: &str) -> Text {
    NAMES.into_iter().find(|name| *name == text).expect("one of the names")
}

pub fn token_name(hash: TokenHash) -> Text {
    TOKENS.into_iter().find(|name| token_key(name).hash == hash).expect("one of the tokens")
}

pub fn money(amount: Amount) -> Money {
    (amount.minor_units(), name(amount.currency().as_str()))
}

pub fn recorded_answer(outcome: record_payment::Outcome) -> Text {
    use record_payment::Outcome as O;
    match outcome {
        O::ReturnFunds => "return the funds",
        O::Conflict(_) => "conflict",
        O::Proceed => "proceed",
        O::RefusedCancelled => "refused: cancelled",
        O::AlreadySucceeded => "already succeeded",
        O::RefusedFailed => "refused: failed",
        O::Accepted => "accepted",
    }
}

pub fn code(code: domain::result::ResultCode) -> Text {
    if code.status() == ResultStatus::U { "U" } else { code.wire() }
}

/// The event as the oracle writes it.
pub fn event_text(event: &Event) -> String {
    let id = event.subject.id();
    let by = match event.cause {
        EventCause::CancelPayment => "cancelPayment",
        EventCause::LateSuccess => "late success",
        EventCause::CancelToken => "cancelToken",
        EventCause::RevokeAuthorization => "the wallet",
    };
    match event.kind {
        EventKind::PaymentCancelled => format!("PaymentCancelled {id} by {by}"),
        EventKind::FundReturnDue(amount) => {
            format!("FundReturnDue {id} {:?} by {by}", Some(money(amount)))
        }
        EventKind::AuthorizationRevoked => format!("AuthorizationRevoked {id} by {by}"),
    }
}

/// The payment as the oracle keeps it.
pub fn payment_view(payment: &Payment) -> oracle::Payment {
    let (due, reference) = match &payment.state {
        State::Cancelled(cancelled) => match &cancelled.money {
            Returning::Untouched(_) => (None, None),
            Returning::Due { amount, .. } => (Some(money(*amount)), None),
            Returning::Returned { amount, reference, .. } => {
                (Some(money(*amount)), Some(name(reference.as_str())))
            }
        },
        State::Initiated(_) | State::Failed(_) | State::Succeeded(_) => (None, None),
    };
    oracle::Payment {
        acquirer: payment.acquirer.as_ref().map(|acquirer| name(acquirer.as_str())),
        life: match payment.life() {
            Life::Unknown => "unknown",
            Life::Initiated => "initiated",
            Life::Succeeded => "succeeded",
            Life::Failed => "failed",
        },
        cancel: payment.verdict().map(|verdict| verdict.code.wire()),
        funds: match payment.funds() {
            Funds::None => "none",
            Funds::Held => "held",
            Funds::ReturnDue => "return due",
            Funds::Returned => "returned",
        },
        amount: payment.terms().map(|terms| money(terms.amount)),
        initiated_at: payment.terms().map(|terms| terms.initiated_at.unix_ms),
        refunds: payment
            .refunds()
            .iter()
            .map(|refund| {
                let state = match refund.state {
                    RefundState::Reserved => "reserved",
                    RefundState::Done => "done",
                    RefundState::Released => "released",
                };
                (name(refund.id.as_str()), money(refund.amount), state)
            })
            .collect(),
        due,
        reference,
    }
}

pub fn token_view(token: &Token) -> oracle::Token {
    match token {
        Token::DeadOnArrival(verdict) => oracle::Token {
            grant: None,
            kind: "dead",
            expires_at: None,
            replaced_by: None,
            cancel: Some(verdict.code.wire()),
        },
        Token::Recorded(token) => oracle::Token {
            grant: Some(name(token.authorization.as_str())),
            kind: match token.kind {
                TokenKind::Access => "access",
                TokenKind::Refresh => "refresh",
            },
            expires_at: token.expires_at.map(|expires_at| expires_at.unix_ms),
            replaced_by: token.replaced_by.map(token_name),
            cancel: token.cancelled.as_ref().map(|verdict| verdict.code.wire()),
        },
    }
}

pub fn grant_view(grant: &Authorization) -> oracle::Grant {
    oracle::Grant {
        acquirer: name(grant.acquirer.as_str()),
        info: grant.pass_through_info.as_ref().map(|info| name(info.as_str())),
        revoked: grant.revoked.is_some(),
    }
}

// ---------------------------------------------------------------- the model of a store

/// Positions are given per partition, as a store does.
pub const PARTITIONS: u16 = 3;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Store {
    pub payments: BTreeMap<PaymentKey, Payment>,
    pub grants: BTreeMap<AuthorizationKey, Authorization>,
    pub tokens: BTreeMap<TokenKey, Token>,
    /// Partition, position, event; only ever appended to.
    pub log: Vec<(u16, u64, Event)>,
}

/// What a caller saw of a command.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    pub text: Text,
    /// What the wallet passes through; of CancelToken only.
    pub info: Option<Text>,
    pub events: Vec<String>,
    pub recorded: bool,
}

/// The circumstances of a step.
#[derive(Clone)]
pub struct Circumstances {
    pub asked: domain::Asked,
    pub policy: Policy,
}

impl Store {
    pub fn append(&mut self, events: Vec<Event>) -> Vec<String> {
        let partitions = Partitions::new(PARTITIONS).expect("in range");
        let texts = events.iter().map(event_text).collect();
        for event in events {
            let partition = event.subject.partition(partitions);
            let head = self.log.iter().rev().find(|entry| entry.0 == partition);
            let position = head.map_or(1, |entry| entry.1 + 1);
            self.log.push((partition, position, event));
        }
        texts
    }

    pub fn execute(&mut self, command: Command, how: &Circumstances) -> Answer {
        match command {
            Command::CancelPayment { id, acquirer: by } => self.cancel_payment(id, by, how),
            Command::RecordPayment(told) => self.record_payment(&told, how),
            Command::RecordFundReturn { id, reference } => {
                self.record_fund_return(id, reference, how)
            }
            Command::CancelToken { token, acquirer: by } => self.cancel_token(token, by, how),
            Command::RecordToken(new) => self.record_token(&new),
            Command::RevokeAuthorization { grant } => self.revoke_authorization(grant, how),
        }
    }

    pub fn cancel_payment(&mut self, id: Text, by: Text, how: &Circumstances) -> Answer {
        let command = CancelPayment { key: payment_key(id), acquirer: acquirer(by) };
        let known = self.payments.get(&command.key);
        let decision = cancel_payment::decide(known, &command, &how.asked, &how.policy);
        let recorded = decision.next.is_some();
        self.payments.extend(decision.next.map(|next| (command.key, next)));
        let events = self.append(decision.events);
        Answer { text: code(decision.outcome.code()), info: None, events, recorded }
    }

    pub fn record_payment(&mut self, told: &Told, how: &Circumstances) -> Answer {
        let (key, by) = (payment_key(told.id), told.acquirer.map(acquirer));
        let command = RecordPayment { key, acquirer: by, fact: fact(told) };
        let known = self.payments.get(&command.key);
        let decision = record_payment::decide(known, &command, &how.asked);
        let recorded = decision.next.is_some();
        self.payments.extend(decision.next.map(|next| (command.key, next)));
        let events = self.append(decision.events);
        Answer { text: recorded_answer(decision.outcome), info: None, events, recorded }
    }

    pub fn record_fund_return(&mut self, id: Text, reference: Text, how: &Circumstances) -> Answer {
        let reference = FundReturnReference::parse(reference).expect("a reference");
        let command = RecordFundReturn { key: payment_key(id), reference };
        let known = self.payments.get(&command.key);
        let decision = record_fund_return::decide(known, &command, &how.asked);
        let recorded = decision.next.is_some();
        self.payments.extend(decision.next.map(|next| (command.key, next)));
        let events = self.append(decision.events);
        let text = match decision.outcome {
            record_fund_return::Outcome::Accepted => "accepted",
            record_fund_return::Outcome::Conflict(_) => "conflict",
        };
        Answer { text, info: None, events, recorded }
    }

    pub fn grant_of(&self, token: &Recorded) -> Option<&Authorization> {
        self.grants
            .get(&AuthorizationKey { psp: psp(), authorization: token.authorization.clone() })
    }

    pub fn cancel_token(&mut self, token: Text, by: Text, how: &Circumstances) -> Answer {
        let pass_through_info = None;
        let command =
            CancelToken { key: token_key(token), acquirer: acquirer(by), pass_through_info };
        let known = match self.tokens.get(&command.key) {
            None => cancel_token::Known::Unknown,
            Some(Token::DeadOnArrival(verdict)) => cancel_token::Known::Dead(verdict),
            Some(Token::Recorded(token)) => {
                cancel_token::Known::Granted(token, self.grant_of(token).expect("its grant"))
            }
        };
        let decision = cancel_token::decide(known, &command, &how.asked);
        let recorded = decision.next.is_some();
        if let Some(next) = decision.next {
            self.tokens.insert(command.key, next.token);
            self.grants.extend(next.authorization);
        }
        let events = self.append(decision.events);
        let info = match &decision.outcome {
            cancel_token::Outcome::Decided { pass_through_info, .. } => pass_through_info.as_ref(),
            cancel_token::Outcome::NotYours
            | cancel_token::Outcome::TooManyTombstones
            | cancel_token::Outcome::Onboarding => None,
        };
        let info = info.map(|info| name(info.as_str()));
        Answer { text: code(decision.outcome.code()), info, events, recorded }
    }

    pub fn record_token(&mut self, new: &NewToken) -> Answer {
        use record_token::Outcome as O;
        let command = RecordToken {
            key: token_key(new.token),
            authorization: grant_key(new.grant),
            acquirer: acquirer(new.acquirer),
            kind: if new.kind == "access" { TokenKind::Access } else { TokenKind::Refresh },
            expires_at: new.expires_at.map(moment),
            replaces: new.replaces.map(token_key),
            pass_through_info: new.info.map(info),
        };
        let decision = record_token::decide(
            self.tokens.get(&command.key),
            command.replaces.as_ref().and_then(|replaces| self.tokens.get(replaces)),
            self.grants.get(&command.authorization),
            &command,
        );
        let recorded = decision.next.is_some();
        if let Some(next) = decision.next {
            self.tokens.insert(command.key, next.token);
            self.tokens.extend(next.replaced);
            self.grants.extend(next.authorization.map(|grant| (command.authorization, grant)));
        }
        let events = self.append(decision.events);
        let text = match decision.outcome {
            O::Conflict(_) => "conflict",
            O::RefusedRevoked => "refused: revoked",
            O::RefusedDead => "refused: dead",
            O::Accepted => "accepted",
        };
        Answer { text, info: None, events, recorded }
    }

    pub fn revoke_authorization(&mut self, grant: Text, how: &Circumstances) -> Answer {
        let command = RevokeAuthorization { key: grant_key(grant) };
        let known = self.grants.get(&command.key);
        let decision = revoke_authorization::decide(known, &command, &how.asked);
        let recorded = decision.next.is_some();
        self.grants.extend(decision.next.map(|next| (command.key, next)));
        let events = self.append(decision.events);
        let text = match decision.outcome {
            revoke_authorization::Outcome::Accepted => "accepted",
            revoke_authorization::Outcome::Unknown => "conflict",
        };
        Answer { text, info: None, events, recorded }
    }

    pub fn is_active(&self, token: Text, now: i64) -> bool {
        let found = self.tokens.get(&token_key(token)).map(|token| {
            let grant = match token {
                Token::Recorded(token) => self.grant_of(token).cloned(),
                Token::DeadOnArrival(_) => None,
            };
            (token.clone(), grant)
        });
        introspect_token::decide(found, moment(now)).is_some()
    }

    /// How many events of this kind tell of this subject.
    pub fn count(&self, tag: &str, subject: &Subject) -> usize {
        let told = |event: &Event| event.kind.tag() == tag && event.subject == *subject;
        self.log.iter().filter(|(_, _, event)| told(event)).count()
    }
}

// ---------------------------------------------------------------- the oracle's side

/// 00:31:00 UTC+8 of the day after, inclusive, worked out with a calendar instead of arithmetic.
pub fn past_alipayplus(initiated_at: i64, now: i64) -> bool {
    let zone = tz::TimeZone::fixed(tz::offset(8));
    let at = |unix_ms| {
        let moment = jiff::Timestamp::from_millisecond(unix_ms).expect("in range");
        zone.to_datetime(moment)
    };
    let next_day = at(initiated_at).date().checked_add(1.day()).expect("in range");
    at(now) > next_day.to_datetime(civil::time(0, 31, 0, 0))
}

pub fn past_hour(initiated_at: i64, now: i64) -> bool {
    now - initiated_at > HOUR
}

/// Answer, events, info.
pub fn ask_oracle(
    oracle: &mut Oracle,
    command: &Command,
    asked: oracle::Asked,
) -> (oracle::Answer, Option<Text>) {
    let answer = match *command {
        Command::CancelToken { token, acquirer } => {
            return oracle.cancel_token(token, acquirer, asked.onboarding);
        }
        Command::CancelPayment { id, acquirer } => oracle.cancel_payment(id, acquirer, asked),
        Command::RecordPayment(told) => oracle.record_payment(told),
        Command::RecordFundReturn { id, reference } => oracle.record_fund_return(id, reference),
        Command::RecordToken(new) => oracle.record_token(new),
        Command::RevokeAuthorization { grant } => oracle.revoke_authorization(grant),
    };
    (answer, None)
}

/// The whole state of the model store, as the oracle would keep it.
pub fn store_view(store: &Store) -> Oracle {
    let payments = store
        .payments
        .iter()
        .map(|(key, payment)| (name(key.payment_request.as_str()), payment_view(payment)));
    let grants = store
        .grants
        .iter()
        .map(|(key, grant)| (name(key.authorization.as_str()), grant_view(grant)));
    let tokens = store.tokens.iter().map(|(key, token)| (token_name(key.hash), token_view(token)));
    Oracle { payments: payments.collect(), grants: grants.collect(), tokens: tokens.collect() }
}
