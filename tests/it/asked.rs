//! One key, what callers ask of it over gRPC, and how the answers read as plain data: what the race at real replicas
//! ([`crate::history`] looks through it) and the simulation have in common.

use std::{
    sync::{Mutex, atomic::AtomicUsize},
    time::{Duration, SystemTime},
};

use rand::{Rng as _, rngs::StdRng, seq::IndexedRandom as _};
use tonic::{
    Code, Status,
    body::Body,
    client::GrpcService,
    codegen::{Body as HttpBody, Bytes, StdError},
};

use crate::{
    history::{Answer, Command, OLD, Operation, PAYMENT, TURN},
    oracle::{self, Money, NewToken, Text, Told},
    wire::{
        self, CancelPaymentRequest, CancelTokenRequest, GetPaymentRequest, IntrospectTokenRequest,
        RecordFundReturnAnswer, RecordFundReturnRequest, RecordPaymentAnswer, RecordPaymentRequest,
        RecordTokenAnswer, RecordTokenRequest, ResultCode, ResultStatus, RevokeAuthorizationAnswer,
        RevokeAuthorizationRequest, TokenKind, cancel_service_client::CancelServiceClient,
        payment_service_client::PaymentServiceClient, record_payment_request::Fact,
        token_service_client::TokenServiceClient,
    },
};

pub const PSP: &str = "1022172000000000001";
/// In every token, so that it can be looked for.
pub const MARK: &str = "IN-CLEAR-TOKEN";
pub const TOKENS: [Text; 10] = ["t0", "t1", "t2", "t3", "t4", "t5", "t6", "t7", "t8", "t9"];
pub const GRANTS: [Text; 2] = ["g1", "g2"];
/// Tells in the end whether a grant stands.
pub const LAST_TOKENS: [Text; 2] = ["last1", "last2"];
const REFUNDS: [Text; 4] = ["r0", "r1", "r2", "r3"];
const NAMES: [Text; 8] = ["A", "B", "EUR", "USD", "ref1", "ref2", "i1", "i2"];
/// Initiated in the window; [`OLD`] is not.
pub const FRESH: i64 = 2;

/// The name of what a service told, which may have the key's id before it.
pub fn name(text: &str) -> Text {
    let bare = text.rsplit_once('/').map_or(text, |(_, bare)| bare);
    let names = TOKENS.iter().chain(&GRANTS).chain(&LAST_TOKENS).chain(&REFUNDS).chain(&NAMES);
    names.copied().find(|name| *name == bare).unwrap_or_else(|| panic!("nobody named {text}"))
}

/// One payment or one family of authorizations, and all that was asked about it.
pub struct Key {
    pub id: String,
    pub is_payment: bool,
    /// [`OLD`], [`FRESH`] or [`TURN`].
    pub initiated: i64,
    /// What these are on the wire.
    initiated_at: [(i64, prost_types::Timestamp); 3],
    /// From which operation on it is cancelled, and refunded; before that others have their turn.
    cancel_from: usize,
    refund_from: usize,
    pub history: Mutex<Vec<Operation>>,
    pub sent: AtomicUsize,
    pub callers: AtomicUsize,
    pub open: AtomicUsize,
}

impl Key {
    /// A key with an id of its own. `initiated_at` tells when [`OLD`], [`FRESH`] and [`TURN`] were.
    pub fn new(
        rng: &mut StdRng,
        initiated_at: [SystemTime; 3],
        turns: bool,
        id: impl FnOnce(Text) -> String,
    ) -> Self {
        let [old, fresh, turn] = initiated_at.map(prost_types::Timestamp::from);
        let is_payment = rng.random_bool(0.6);
        let (cancel_from, refund_from) =
            *[(0, 60), (2, 60), (5, 60), (10, 60), (20, 60), (25, 10), (40, 5), (90, 15)]
                .choose(rng)
                .expect("some");
        Self {
            id: id(if is_payment { "payment" } else { "family" }),
            is_payment,
            initiated: match rng.random_range(0..10) {
                0 => OLD,
                1..5 if turns => TURN,
                _ => FRESH,
            },
            initiated_at: [(OLD, old), (FRESH, fresh), (TURN, turn)],
            cancel_from,
            refund_from,
            history: Mutex::default(),
            sent: AtomicUsize::new(0),
            callers: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
        }
    }

    /// A key whose commands the caller makes up itself; if it is a payment, it was initiated then.
    pub fn plain(id: String, is_payment: bool, initiated_at: SystemTime) -> Self {
        let never = SystemTime::UNIX_EPOCH.into();
        Self {
            id,
            is_payment,
            initiated: FRESH,
            initiated_at: [(OLD, never), (FRESH, initiated_at.into()), (TURN, never)],
            cancel_from: 0,
            refund_from: 0,
            history: Mutex::default(),
            sent: AtomicUsize::new(0),
            callers: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
        }
    }

    /// The name with this key's id before it.
    pub fn full(&self, name: Text) -> String {
        format!("{}/{name}", self.id)
    }

    /// The token in clear.
    pub fn token(&self, name: Text) -> String {
        format!("{MARK}-{}", self.full(name))
    }

    /// What somebody asks as the `nth` of this key.
    pub fn command(&self, nth: usize, rng: &mut StdRng) -> Command {
        let acquirer = if rng.random_bool(0.05) { "B" } else { "A" };
        let may_cancel = nth >= self.cancel_from;
        if !self.is_payment {
            return family_command(nth, may_cancel, acquirer, rng);
        }
        let amount = if rng.random_bool(0.05) { (70, "EUR") } else { (100, "EUR") };
        let told = Told {
            id: PAYMENT,
            fact: "initiated",
            acquirer: Some(acquirer),
            amount: Some(amount),
            initiated_at: Some(self.initiated),
            refund: None,
        };
        let refund = |fact, rng: &mut StdRng| {
            let (refund, value) =
                *[("r0", 40), ("r1", 60), ("r2", 30), ("r3", 100)].choose(rng).expect("some");
            let amount = (fact == "refund started").then_some((value, "EUR"));
            let refund = Some(refund);
            Command::RecordPayment(Told { fact, amount, initiated_at: None, refund, ..told })
        };
        let refunds = nth >= self.refund_from;
        match rng.random_range(0..100) {
            0..22 if may_cancel => Command::CancelPayment { acquirer, late: false },
            22..40 => Command::RecordPayment(told),
            40..58 => Command::RecordPayment(Told { fact: "succeeded", ..told }),
            58..64 => {
                let failed = Told { fact: "failed", amount: None, initiated_at: None, ..told };
                Command::RecordPayment(failed)
            }
            64..72 if refunds => refund("refund started", rng),
            72..76 if refunds => refund("refund done", rng),
            76..80 if refunds => refund("refund failed", rng),
            64..84 => {
                let reference = if rng.random_bool(0.2) { "ref2" } else { "ref1" };
                Command::RecordFundReturn { reference }
            }
            _ => Command::GetPayment,
        }
    }
}

/// Of authorizations and tokens; the later, the more tokens there are.
fn family_command(nth: usize, may_cancel: bool, acquirer: Text, rng: &mut StdRng) -> Command {
    let known = (1 + nth / 8).min(TOKENS.len() - 1);
    let index = rng.random_range(0..=known);
    let token = TOKENS[index];
    let grant = if rng.random_bool(0.1) { "g2" } else { "g1" };
    let even = index % 2 == 0;
    let new = NewToken {
        token,
        grant,
        acquirer,
        kind: if even == rng.random_bool(0.04) { "refresh" } else { "access" },
        // one that was never good
        expires_at: (index == TOKENS.len() - 1).then_some(-1),
        replaces: None,
        info: *[None, None, Some("i1"), Some("i2")].choose(rng).expect("some"),
    };
    match rng.random_range(0..100) {
        0..25 => Command::RecordToken(new),
        25..42 => {
            let replaces = Some(TOKENS[rng.random_range(0..=index)]).filter(|old| *old != token);
            Command::RecordToken(NewToken { replaces, ..new })
        }
        42..57 if may_cancel => Command::CancelToken { token, acquirer },
        57..60 if may_cancel => Command::Revoke { grant },
        // most likely nobody has recorded it yet, or somebody does right now
        60..63 => Command::CancelToken { token: TOKENS[TOKENS.len() - 2 - nth % 2], acquirer },
        _ => Command::Introspect { token },
    }
}

// ---------------------------------------------------------------- one operation over gRPC

/// Not known whether it happened; what was heard instead of an answer.
#[derive(Debug)]
pub struct Unknown(pub String);

/// The answer, and when a result was decided.
pub type Heard = Result<(Answer, Option<(i64, i32)>), Unknown>;

/// Final answers are answers; whatever else is a status leaves open what happened.
pub fn status(status: &Status) -> Result<Answer, Unknown> {
    let refused = |code| Ok(Answer::Cancel { code, repeated: false, info: None });
    match status.code() {
        Code::PermissionDenied => refused("ACCESS_DENIED"),
        Code::Aborted if status.message().starts_with("a refund of the payment") => refused("U"),
        Code::NotFound => Ok(Answer::Payment(None)),
        Code::Unavailable
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::Internal
        | Code::ResourceExhausted
        // what tonic makes of a connection that ends
        | Code::Unknown
        | Code::Cancelled => Err(Unknown(format!("{status:?}"))),
        Code::Ok
        | Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::Unimplemented
        | Code::Unauthenticated
        | Code::AlreadyExists
        | Code::OutOfRange
        | Code::DataLoss => panic!("invariant 10: a fault became final: {status:?}"),
    }
}

fn result_code(result: Option<&wire::Result>) -> Text {
    let result = result.expect("always set");
    let (code, is_final) = match result.result_code() {
        ResultCode::Success => ("SUCCESS", ResultStatus::S),
        ResultCode::CancelWindowExceed => ("CANCEL_WINDOW_EXCEED", ResultStatus::F),
        ResultCode::ProcessFail => ("PROCESS_FAIL", ResultStatus::F),
        ResultCode::InvalidToken => ("INVALID_TOKEN", ResultStatus::F),
        ResultCode::Unspecified => panic!("never sent"),
    };
    assert_eq!(result.result_status(), is_final);
    code
}

fn money(amount: &wire::Amount) -> Money {
    (amount.value.try_into().expect("minor units"), name(&amount.currency))
}

impl Key {
    fn payment(&self, told: Option<wire::Payment>) -> Option<oracle::Payment> {
        let told = told?;
        let initiated_at = |at: prost_types::Timestamp| {
            // a service keeps milliseconds
            let same = |other: &prost_types::Timestamp| {
                other.seconds == at.seconds && other.nanos / 1_000_000 == at.nanos / 1_000_000
            };
            let known = self.initiated_at.iter().find(|(_, moment)| same(moment));
            known.unwrap_or_else(|| panic!("nobody said {at}")).0
        };
        let mut refunds: Vec<(Text, Money, Text)> = told
            .refunds
            .iter()
            .map(|refund| {
                let state = match refund.state() {
                    wire::RefundState::Reserved => "reserved",
                    wire::RefundState::Succeeded => "done",
                    wire::RefundState::Failed => "released",
                    wire::RefundState::Unspecified => panic!("never sent"),
                };
                (name(&refund.refund_id), money(refund.amount.as_ref().expect("set")), state)
            })
            .collect();
        refunds.sort_unstable();
        let due = told.fund_return.as_ref();
        Some(oracle::Payment {
            acquirer: told.acquirer_id.as_deref().map(name),
            life: match told.life() {
                wire::PaymentLife::Unknown => "unknown",
                wire::PaymentLife::Initiated => "initiated",
                wire::PaymentLife::Succeeded => "succeeded",
                wire::PaymentLife::Failed => "failed",
                wire::PaymentLife::Unspecified => panic!("never sent"),
            },
            cancel: told
                .cancellation
                .as_ref()
                .map(|cancellation| result_code(cancellation.result.as_ref())),
            funds: match told.funds() {
                wire::Funds::None => "none",
                wire::Funds::Held => "held",
                wire::Funds::ReturnDue => "return due",
                wire::Funds::Returned => "returned",
                wire::Funds::Unspecified => panic!("never sent"),
            },
            amount: told.amount.as_ref().map(money),
            initiated_at: told.initiated_at.map(initiated_at),
            refunds,
            due: due.map(|due| money(due.amount.as_ref().expect("set"))),
            reference: due.and_then(|due| due.reference.as_deref()).map(name),
        })
    }

    fn fact(&self, told: &Told) -> Fact {
        let amount = told.amount.map(|(value, currency)| wire::Amount {
            value: value.try_into().expect("few"),
            currency: currency.to_owned(),
        });
        let moment =
            |at: i64| self.initiated_at.iter().find(|(name, _)| *name == at).expect("named").1;
        let at = told.initiated_at.map(moment);
        let refund_id = told.refund.unwrap_or_default().to_owned();
        match told.fact {
            "initiated" => Fact::Initiated(wire::PaymentInitiated { amount, initiated_at: at }),
            "succeeded" => Fact::Succeeded(wire::PaymentSucceeded { amount, initiated_at: at }),
            "failed" => Fact::Failed(wire::PaymentFailed { amount }),
            "refund started" => Fact::RefundStarted(wire::RefundStarted { refund_id, amount }),
            "refund done" => Fact::RefundSucceeded(wire::RefundSucceeded { refund_id, amount }),
            "refund failed" => Fact::RefundFailed(wire::RefundFailed { refund_id, amount }),
            other => unreachable!("no such fact: {other}"),
        }
    }

    /// Asks a replica and waits so long; the answer, and when a result was decided.
    pub async fn ask<S>(&self, channel: S, command: &Command, wait: Duration) -> Heard
    where
        S: GrpcService<
                Body,
                ResponseBody: HttpBody<Data = Bytes, Error: Into<StdError> + Send> + Send + 'static,
                Error: Into<StdError>,
            >,
    {
        match tokio::time::timeout(wait, self.call(channel, command)).await {
            Ok(Ok(told)) => Ok(told),
            Ok(Err(refused)) => Ok((status(&refused)?, None)),
            Err(_) => Err(Unknown(format!("nothing within {wait:?}"))),
        }
    }

    async fn call<S>(
        &self,
        channel: S,
        command: &Command,
    ) -> Result<(Answer, Option<(i64, i32)>), Status>
    where
        S: GrpcService<
                Body,
                ResponseBody: HttpBody<Data = Bytes, Error: Into<StdError> + Send> + Send + 'static,
                Error: Into<StdError>,
            >,
    {
        let psp_id = PSP.to_owned();
        let payment_request_id = self.id.clone();
        let moment = |at: Option<prost_types::Timestamp>| at.map(|at| (at.seconds, at.nanos));
        let answer = match *command {
            Command::CancelPayment { acquirer, .. } => {
                let acquirer_id = acquirer.to_owned();
                let request = CancelPaymentRequest { acquirer_id, psp_id, payment_request_id };
                let told = CancelServiceClient::new(channel).cancel_payment(request).await?;
                let told = told.into_inner();
                let code = result_code(told.result.as_ref());
                let answer = Answer::Cancel { code, repeated: told.repeated, info: None };
                return Ok((answer, moment(told.decided_at)));
            }
            Command::CancelToken { token, acquirer } => {
                let request = CancelTokenRequest {
                    psp_id,
                    acquirer_id: acquirer.to_owned(),
                    access_token: self.token(token),
                    pass_through_info: None,
                };
                let told = CancelServiceClient::new(channel).cancel_token(request).await?;
                let told = told.into_inner();
                let code = result_code(told.result.as_ref());
                let info = told.pass_through_info.as_deref().map(name);
                let answer = Answer::Cancel { code, repeated: told.repeated, info };
                return Ok((answer, moment(told.decided_at)));
            }
            Command::RecordPayment(told) => {
                let request = RecordPaymentRequest {
                    psp_id,
                    payment_request_id,
                    acquirer_id: told.acquirer.map(str::to_owned),
                    fact: Some(self.fact(&told)),
                };
                let told = PaymentServiceClient::new(channel).record_payment(request).await?;
                let told = told.into_inner();
                let answer = match told.answer() {
                    RecordPaymentAnswer::Proceed => "proceed",
                    RecordPaymentAnswer::Accepted => "accepted",
                    RecordPaymentAnswer::AlreadySucceeded => "already succeeded",
                    RecordPaymentAnswer::ReturnFunds => "return the funds",
                    RecordPaymentAnswer::RefusedCancelled => "refused: cancelled",
                    RecordPaymentAnswer::RefusedFailed => "refused: failed",
                    RecordPaymentAnswer::Conflict => "conflict",
                    RecordPaymentAnswer::Unspecified => panic!("never sent"),
                };
                Answer::Told(answer, self.payment(told.payment))
            }
            Command::RecordFundReturn { reference } => {
                let reference = reference.to_owned();
                let request = RecordFundReturnRequest { psp_id, payment_request_id, reference };
                let told = PaymentServiceClient::new(channel).record_fund_return(request).await?;
                let told = told.into_inner();
                let answer = match told.answer() {
                    RecordFundReturnAnswer::Accepted => "accepted",
                    RecordFundReturnAnswer::Conflict => "conflict",
                    RecordFundReturnAnswer::Unspecified => panic!("never sent"),
                };
                Answer::Told(answer, self.payment(told.payment))
            }
            Command::GetPayment => {
                let request = GetPaymentRequest { psp_id, payment_request_id };
                let told = PaymentServiceClient::new(channel).get_payment(request).await?;
                let told = told.into_inner();
                let payment = self.payment(told.payment);
                let cancelled = payment.as_ref().and_then(|payment| payment.cancel);
                let closed = told.inquiry.map(|inquiry| inquiry.result_code);
                let expected = (cancelled == Some("SUCCESS")).then(|| "ORDER_IS_CLOSED".to_owned());
                assert_eq!(closed, expected, "{payment:?}");
                Answer::Payment(payment)
            }
            Command::RecordToken(new) => {
                let kind =
                    if new.kind == "access" { TokenKind::Access } else { TokenKind::Refresh };
                // no run is so long ago
                let expired = prost_types::Timestamp { seconds: 1_577_836_800, nanos: 0 };
                let request = RecordTokenRequest {
                    psp_id,
                    acquirer_id: new.acquirer.to_owned(),
                    authorization_id: self.full(new.grant),
                    token: self.token(new.token),
                    kind: kind.into(),
                    expires_at: new.expires_at.map(|_| expired),
                    replaces: new.replaces.map(|old| self.token(old)),
                    pass_through_info: new.info.map(str::to_owned),
                };
                let told = TokenServiceClient::new(channel).record_token(request).await?;
                Answer::Token(match told.get_ref().answer() {
                    RecordTokenAnswer::Accepted => "accepted",
                    RecordTokenAnswer::RefusedRevoked => "refused: revoked",
                    RecordTokenAnswer::RefusedDead => "refused: dead",
                    RecordTokenAnswer::Conflict => "conflict",
                    RecordTokenAnswer::Unspecified => panic!("never sent"),
                })
            }
            Command::Revoke { grant } => {
                let authorization_id = self.full(grant);
                let request = RevokeAuthorizationRequest { psp_id, authorization_id };
                let told = TokenServiceClient::new(channel).revoke_authorization(request).await?;
                Answer::Token(match told.get_ref().answer() {
                    RevokeAuthorizationAnswer::Accepted => "accepted",
                    RevokeAuthorizationAnswer::Conflict => "conflict",
                    RevokeAuthorizationAnswer::Unspecified => panic!("never sent"),
                })
            }
            Command::Introspect { token } => {
                let request = IntrospectTokenRequest { psp_id, token: self.token(token) };
                let told = TokenServiceClient::new(channel).introspect_token(request).await?;
                let told = told.into_inner();
                let active = told.active.then(|| {
                    let grant = told.authorization_id.as_deref().expect("set when active");
                    let kind = match told.kind() {
                        TokenKind::Access => "access",
                        TokenKind::Refresh => "refresh",
                        TokenKind::Unspecified => panic!("set when active"),
                    };
                    (name(grant), kind)
                });
                Answer::Active(active)
            }
        };
        Ok((answer, None))
    }
}

// ---------------------------------------------------------------- the end of a key

impl Key {
    /// What is asked of every replica when all is over: what the key is, and once more what was answered before.
    pub fn last_words(&self) -> Vec<Command> {
        let mut last = vec![];
        if self.is_payment {
            let history = self.history.lock().expect("no panic").clone();
            let commands: Vec<Command> = history.into_iter().map(|past| past.command).collect();
            // invariant 13: the last one of each again
            for command in commands {
                if !last.contains(&command) && matches!(command, Command::CancelPayment { .. }) {
                    last.push(command);
                }
            }
            last.push(Command::GetPayment);
        } else {
            // the acquirer it was granted to hears whether it stands
            for (grant, token) in GRANTS.into_iter().zip(LAST_TOKENS) {
                for acquirer in ["A", "B"] {
                    let (kind, expires_at, replaces, info) = ("access", None, None, None);
                    let new = NewToken { token, grant, acquirer, kind, expires_at, replaces, info };
                    last.push(Command::RecordToken(new));
                }
            }
            last.extend(TOKENS.map(|token| Command::Introspect { token }));
        }
        last
    }
}

/// What the feed has to tell of a key, by what it is in the end.
pub fn announcements(key: &Key) -> Vec<((Text, String), Option<Money>)> {
    let history = key.history.lock().expect("no panic");
    let last = |is: &dyn Fn(&Command) -> bool| {
        let told = history.iter().rev().find(|operation| is(&operation.command));
        told.and_then(|operation| operation.heard.clone()).map(|(_, answer)| answer)
    };
    if !key.is_payment {
        let of = |grant: Text| {
            let refused = Answer::Token("refused: revoked");
            let is_revoked = history.iter().any(|operation| {
                matches!(operation.command, Command::RecordToken(new) if new.grant == grant)
                    && operation.heard.as_ref().is_some_and(|(_, answer)| *answer == refused)
            });
            is_revoked.then(|| (("AuthorizationRevoked", key.full(grant)), None))
        };
        return GRANTS.into_iter().filter_map(of).collect();
    }
    let Some(Answer::Payment(Some(payment))) = last(&|command| *command == Command::GetPayment)
    else {
        return vec![];
    };
    let mut announced = vec![];
    if payment.cancel == Some("SUCCESS") {
        announced.push((("PaymentCancelled", key.id.clone()), None));
    }
    if payment.due.is_some() {
        assert_eq!(payment.cancel, Some("SUCCESS"), "{payment:?}");
        announced.push((("FundReturnDue", key.id.clone()), payment.due));
    }
    announced
}
