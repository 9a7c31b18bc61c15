//! Many callers race over few keys at replicas that are killed and frozen meanwhile, and so is their database; then
//! [`crate::history`] looks through what each of them heard, and the feed is compared with what is.
//!
//! The suite runs it for some seconds. `ALIPAYPLUS_CANCEL_TESTS_RACE_S=60` is acceptance.

use std::{
    collections::{BTreeMap, HashMap},
    env,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use tokio::{runtime::Runtime, task::JoinSet};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

use crate::{
    follower::Follower,
    harness::{
        PATIENCE,
        grpc::wire::{
            self, CancelPaymentRequest, CancelTokenRequest, GetPaymentRequest,
            IntrospectTokenRequest, RecordFundReturnAnswer, RecordFundReturnRequest,
            RecordPaymentAnswer, RecordPaymentRequest, RecordTokenAnswer, RecordTokenRequest,
            ResultCode, ResultStatus, RevokeAuthorizationAnswer, RevokeAuthorizationRequest,
            TokenKind, cancel_service_client::CancelServiceClient,
            payment_service_client::PaymentServiceClient, record_payment_request::Fact,
            token_service_client::TokenServiceClient,
        },
        postgres::{self, Cluster},
        service::{Options, Service},
        unique,
    },
    history::{self, Answer, Command, OLD, Operation, PAYMENT},
    oracle::{self, Money, NewToken, Text, Told},
};

// ---------------------------------------------------------------- what is raced over

const CALLERS: usize = 64;
const LIVE_KEYS: usize = 200;
/// Most of the callers are on this many of them, so that they meet.
const HOT_KEYS: usize = 12;
const CALLERS_OF_A_KEY: usize = 8;
/// Then a key is retired, so that the checker comes to an end with it.
const OPERATIONS_OF_A_KEY: usize = 100;
const OPEN_OF_A_KEY: usize = 12;
/// Longest that a caller waits; less than a service does, so that a frozen one holds nobody for long.
const CALL: Duration = Duration::from_secs(3);

const PSP: &str = "1022172000000000001";
/// In every token, so that it can be looked for.
const MARK: &str = "IN-CLEAR-TOKEN";
const TOKENS: [Text; 10] = ["t0", "t1", "t2", "t3", "t4", "t5", "t6", "t7", "t8", "t9"];
const GRANTS: [Text; 2] = ["g1", "g2"];
/// Tells in the end whether a grant stands.
const LAST_TOKENS: [Text; 2] = ["last1", "last2"];
const REFUNDS: [Text; 4] = ["r0", "r1", "r2", "r3"];
const NAMES: [Text; 8] = ["A", "B", "EUR", "USD", "ref1", "ref2", "i1", "i2"];
/// Initiated in the window; [`OLD`] is not.
const FRESH: i64 = 2;

/// The name of what a service told, which may have the key's id before it.
fn name(text: &str) -> Text {
    let bare = text.rsplit_once('/').map_or(text, |(_, bare)| bare);
    let names = TOKENS.iter().chain(&GRANTS).chain(&LAST_TOKENS).chain(&REFUNDS).chain(&NAMES);
    names.copied().find(|name| *name == bare).unwrap_or_else(|| panic!("nobody named {text}"))
}

/// One payment or one family of authorizations, and all that was asked about it.
struct Key {
    id: String,
    is_payment: bool,
    /// Past the window.
    is_old: bool,
    initiated_at: [prost_types::Timestamp; 2],
    /// From which operation on it is cancelled, and refunded; before that others have their turn.
    cancel_from: usize,
    refund_from: usize,
    history: Mutex<Vec<Operation>>,
    sent: AtomicUsize,
    callers: AtomicUsize,
    open: AtomicUsize,
}

impl Key {
    fn new(rng: &mut StdRng) -> Self {
        let days_ago = |days: u64| {
            let age = Duration::from_secs(days * 86_400);
            SystemTime::now().checked_sub(age).expect("a moment").into()
        };
        let is_payment = rng.random_bool(0.6);
        let (cancel_from, refund_from) =
            *[(0, 60), (2, 60), (5, 60), (10, 60), (20, 60), (25, 10), (40, 5), (90, 15)]
                .choose(rng)
                .expect("some");
        Self {
            id: unique(if is_payment { "payment" } else { "family" }),
            is_payment,
            is_old: rng.random_bool(0.1),
            initiated_at: [days_ago(3), days_ago(0)],
            cancel_from,
            refund_from,
            history: Mutex::default(),
            sent: AtomicUsize::new(0),
            callers: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
        }
    }

    /// The name with this key's id before it.
    fn full(&self, name: Text) -> String {
        format!("{}/{name}", self.id)
    }

    /// The token in clear.
    fn token(&self, name: Text) -> String {
        format!("{MARK}-{}", self.full(name))
    }

    /// What somebody asks as the `nth` of this key.
    fn command(&self, nth: usize, rng: &mut StdRng) -> Command {
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
            initiated_at: Some(if self.is_old { OLD } else { FRESH }),
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
            0..22 if may_cancel => Command::CancelPayment { acquirer },
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
struct Unknown(String);

/// Final answers are answers; whatever else is a status leaves open what happened.
fn status(status: &Status) -> Result<Answer, Unknown> {
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
            let [old, fresh] = &self.initiated_at;
            if same(old) {
                OLD
            } else if same(fresh) {
                FRESH
            } else {
                panic!("nobody said {at}")
            }
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
        let at = told.initiated_at.map(|at| self.initiated_at[usize::from(at != OLD)]);
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

    /// Asks a replica; the answer, and when a result was decided.
    async fn ask(
        &self,
        channel: Channel,
        command: &Command,
    ) -> Result<(Answer, Option<(i64, i32)>), Unknown> {
        let told = match tokio::time::timeout(CALL, self.call(channel, command)).await {
            Ok(Ok(told)) => told,
            Ok(Err(refused)) => (status(&refused)?, None),
            Err(_) => return Err(Unknown(format!("nothing within {CALL:?}"))),
        };
        Ok(told)
    }

    async fn call(
        &self,
        channel: Channel,
        command: &Command,
    ) -> Result<(Answer, Option<(i64, i32)>), Status> {
        let psp_id = PSP.to_owned();
        let payment_request_id = self.id.clone();
        let moment = |at: Option<prost_types::Timestamp>| at.map(|at| (at.seconds, at.nanos));
        let answer = match *command {
            Command::CancelPayment { acquirer } => {
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

// ---------------------------------------------------------------- the race

/// Where a replica is now; it has other ports after a restart.
#[derive(Clone, Copy)]
struct Place {
    address: SocketAddr,
    generation: usize,
}

/// What all callers share.
struct Race {
    begun: Instant,
    ends: Instant,
    places: Vec<Mutex<Place>>,
    slots: Vec<Mutex<Arc<Key>>>,
    retired: Mutex<Vec<Arc<Key>>>,
}

fn channel(address: SocketAddr) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    endpoint.connect_timeout(Duration::from_secs(1)).connect_lazy()
}

impl Race {
    fn new(replicas: &[Service], length: Duration) -> Self {
        let mut rng = StdRng::seed_from_u64(1);
        let place =
            |replica: &Service| Mutex::new(Place { address: replica.ports().grpc, generation: 0 });
        let slots = (0..LIVE_KEYS).map(|_| Mutex::new(Arc::new(Key::new(&mut rng))));
        let begun = Instant::now();
        Self {
            begun,
            ends: begun + length,
            places: replicas.iter().map(place).collect(),
            slots: slots.collect(),
            retired: Mutex::default(),
        }
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.ends
    }

    fn now(&self) -> u64 {
        self.begun.elapsed().as_nanos().try_into().expect("a short run")
    }

    fn place(&self, replica: usize) -> Place {
        *self.places[replica].lock().expect("no panic")
    }

    fn moved(&self, replica: usize, address: SocketAddr) {
        let mut place = self.places[replica].lock().expect("no panic");
        *place = Place { address, generation: place.generation + 1 };
    }

    /// A key with room for another caller, and how many operations it has had.
    fn take(&self, rng: &mut StdRng) -> (Arc<Key>, usize) {
        loop {
            let second = usize::try_from(self.begun.elapsed().as_secs()).expect("a short run");
            let hot = second * HOT_KEYS + rng.random_range(0..HOT_KEYS);
            let index = if rng.random_bool(0.8) { hot } else { rng.random_range(0..LIVE_KEYS) };
            let mut slot = self.slots[index % LIVE_KEYS].lock().expect("no panic");
            let key = Arc::clone(&slot);
            if key.callers.load(Ordering::SeqCst) >= CALLERS_OF_A_KEY {
                continue;
            }
            let open = key.open.load(Ordering::SeqCst);
            if key.sent.load(Ordering::SeqCst) >= OPERATIONS_OF_A_KEY || open >= OPEN_OF_A_KEY {
                *slot = Arc::new(Key::new(rng));
                self.retired.lock().expect("no panic").push(key);
                continue;
            }
            key.callers.fetch_add(1, Ordering::SeqCst);
            let nth = key.sent.fetch_add(1, Ordering::SeqCst);
            return (key, nth);
        }
    }

    /// One operation, kept in the key's history. None: no answer.
    async fn operate(
        &self,
        key: &Key,
        caller: usize,
        channel: Channel,
        command: Command,
    ) -> Option<Answer> {
        let index = {
            let mut history = key.history.lock().expect("no panic");
            let command = command.clone();
            let sent = self.now();
            history.push(Operation { caller, command, sent, heard: None, decided: None });
            history.len() - 1
        };
        let told = key.ask(channel, &command).await;
        let heard_at = self.now();
        let Ok((answer, decided)) = told else {
            key.open.fetch_add(1, Ordering::SeqCst);
            return None;
        };
        let mut history = key.history.lock().expect("no panic");
        history[index].heard = Some((heard_at, answer.clone()));
        history[index].decided = decided;
        Some(answer)
    }

    /// One caller, until the end.
    async fn call(self: Arc<Self>, caller: usize) {
        let mut rng = StdRng::seed_from_u64(caller.try_into().expect("few"));
        let mut channels: HashMap<usize, (usize, Channel)> = HashMap::new();
        while !self.is_over() {
            let (key, nth) = self.take(&mut rng);
            let command = key.command(nth, &mut rng);
            let replica = rng.random_range(0..self.places.len());
            let place = self.place(replica);
            let known = channels.entry(replica).or_insert_with(|| (0, channel(place.address)));
            if known.0 != place.generation {
                *known = (place.generation, channel(place.address));
            }
            let answer = self.operate(&key, caller, known.1.clone(), command).await;
            key.callers.fetch_sub(1, Ordering::SeqCst);
            if answer.is_none() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    /// When all is over: what each key is, asked of every replica, and once more what was answered before.
    async fn close(self: Arc<Self>, key: Arc<Key>, replicas: Vec<Channel>) {
        let mut last = vec![];
        if key.is_payment {
            let history = key.history.lock().expect("no panic").clone();
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
        for command in last {
            for replica in &replicas {
                let answer = self.operate(&key, CALLERS, replica.clone(), command.clone()).await;
                assert!(answer.is_some(), "invariant 14: {command:?} of {} unanswered", key.id);
            }
        }
    }
}

// ---------------------------------------------------------------- what goes wrong meanwhile

#[derive(Debug, Default)]
struct Faults {
    kills: usize,
    freezes: usize,
    /// Of the database itself.
    database_kills: usize,
    database_freezes: usize,
}

/// Kills or freezes a replica from time to time, or the database if it may; in the end all run.
fn trouble(
    race: &Race,
    replicas: &mut [Service],
    database: Option<&Cluster>,
    every: Duration,
) -> Faults {
    let mut rng = StdRng::seed_from_u64(42);
    let mut faults = Faults::default();
    let pause = |length: Duration| thread::sleep(length);
    for nth in 0.. {
        // time to come back in
        if race.begun.elapsed() + every * 2 >= race.ends - race.begun {
            break;
        }
        pause(every.mul_f64(rng.random_range(0.6..0.9)));
        let stands_still = every.mul_f64(rng.random_range(0.2..0.6));
        let index = rng.random_range(0..replicas.len());
        match (nth % 4, database) {
            (0, Some(database)) => {
                database.kill_nine();
                database.start_again();
                faults.database_kills += 1;
            }
            (2, Some(database)) => {
                database.pause();
                pause(stands_still);
                database.resume();
                faults.database_freezes += 1;
            }
            (1, Some(_)) | (0 | 2, None) => {
                replicas[index].kill_nine();
                pause(every.mul_f64(rng.random_range(0.0..0.1)));
                replicas[index].restart();
                race.moved(index, replicas[index].ports().grpc);
                faults.kills += 1;
            }
            _ => {
                replicas[index].signal("STOP");
                pause(stands_still);
                replicas[index].signal("CONT");
                faults.freezes += 1;
            }
        }
    }
    faults
}

fn seconds() -> u64 {
    let set = env::var("ALIPAYPLUS_CANCEL_TESTS_RACE_S").ok();
    set.map_or(8, |text| text.parse().expect("ALIPAYPLUS_CANCEL_TESTS_RACE_S: whole seconds"))
}

/// Runs the race and checks all of it; `database` is killed and frozen as well.
fn race(replicas: &mut [Service], database: Option<&Cluster>) {
    let length = Duration::from_secs(seconds());
    let every = if length > Duration::from_secs(30) {
        Duration::from_secs(5)
    } else {
        Duration::from_millis(1_500)
    };
    let runtime = Runtime::new().expect("a runtime");
    let race = Arc::new(Race::new(replicas, length));
    let places = Arc::clone(&race);
    let at = move |replica| places.place(replica).address;
    let follower = Follower::start(&runtime, replicas.len(), at);
    let callers: Vec<_> =
        (0..CALLERS).map(|caller| runtime.spawn(Arc::clone(&race).call(caller))).collect();
    let faults = trouble(&race, replicas, database, every);
    for caller in callers {
        let ended = runtime.block_on(async {
            tokio::time::timeout(PATIENCE + length, caller).await.expect("callers come to an end")
        });
        ended.expect("a caller that heard nothing impossible");
    }

    let live = race.slots.iter().map(|slot| Arc::clone(&slot.lock().expect("no panic")));
    let mut keys: Vec<Arc<Key>> = live.collect();
    keys.append(&mut race.retired.lock().expect("no panic"));
    runtime.block_on(async {
        let places = (0..race.places.len()).map(|replica| race.place(replica));
        let channels: Vec<Channel> = places.map(|place| channel(place.address)).collect();
        let mut closing = JoinSet::new();
        for key in &keys {
            closing.spawn(Arc::clone(&race).close(Arc::clone(key), channels.clone()));
            if closing.len() >= CALLERS {
                closing.join_next().await.expect("one").expect("the last answers");
            }
        }
        while let Some(closed) = closing.join_next().await {
            closed.expect("the last answers");
        }
    });
    let ran = race.begun.elapsed();

    let begun = Instant::now();
    check(&keys);
    report(&keys, &faults, replicas.len(), ran, begun.elapsed());
    let mut expected = BTreeMap::new();
    for key in &keys {
        expected.extend(announcements(key));
    }
    let events = follower.finish(&runtime, expected.len());
    history::check_events(&events, &expected).unwrap_or_else(|told| panic!("{told}"));
    for replica in replicas {
        assert!(!replica.stderr().contains(MARK), "invariant 12: a token in the log");
    }
}

fn check(keys: &[Arc<Key>]) {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                while let Some(key) = keys.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let history = key.history.lock().expect("no panic");
                    if let Err(told) = history::check(&history) {
                        panic!("{}: {told}", key.id);
                    }
                }
            });
        }
    });
}

/// What the feed has to tell of a key, by what it is in the end.
fn announcements(key: &Key) -> Vec<((Text, String), Option<Money>)> {
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

/// What was seen of it all, so that nobody takes an empty race for a good one.
fn report(keys: &[Arc<Key>], faults: &Faults, replicas: usize, ran: Duration, checked: Duration) {
    let mut answers = BTreeMap::<Text, usize>::new();
    let (mut operations, mut unknown, mut met) = (0, 0, 0);
    for key in keys {
        let history = key.history.lock().expect("no panic");
        operations += history.len();
        for (index, operation) in history.iter().enumerate() {
            let Some((heard, answer)) = &operation.heard else {
                unknown += 1;
                continue;
            };
            met += usize::from(history.get(index + 1).is_some_and(|next| next.sent < *heard));
            let text = match answer {
                Answer::Cancel { code, .. } => code,
                Answer::Told(answer, _) | Answer::Token(answer) => answer,
                Answer::Payment(_) => "read",
                Answer::Active(Some(_)) => "active",
                Answer::Active(None) => "not active",
            };
            *answers.entry(text).or_default() += 1;
        }
    }
    let conflicts = answers.get("conflict").copied().unwrap_or_default();
    println!(
        "{replicas} replicas, {} keys, {operations} operations in {ran:.1?}, {met} met another of their key, {conflicts} \
         conflicts, {unknown} unknown, {faults:?}; checked in {checked:.1?}; {answers:?}",
        keys.len(),
    );
    let Faults { kills, freezes, database_kills, database_freezes } = faults;
    assert!(kills + freezes + database_kills + database_freezes > 0);
    assert!(met > 100, "they did not race");
    let common = ["SUCCESS", "INVALID_TOKEN", "proceed", "accepted", "conflict", "active"];
    let rare = [
        "CANCEL_WINDOW_EXCEED",
        "PROCESS_FAIL",
        "ACCESS_DENIED",
        "U",
        "return the funds",
        "refused: cancelled",
        "refused: revoked",
        "refused: dead",
    ];
    // a short race on a busy machine may not come to all of them
    let rare = rare.iter().filter(|_| operations > 40_000);
    for answer in common.iter().chain(rare) {
        assert!(answers.contains_key(answer), "nobody heard {answer}");
    }
}

#[test]
fn callers_who_race_at_two_replicas_on_postgresql_see_one_order_and_every_invariant() {
    let Some(postgres) = postgres::or_skip() else { return };
    let url = postgres.fresh_database();
    let mut replicas = [(); 2].map(|()| Service::start(Options::on(&url)));
    race(&mut replicas, None);
    let dump = postgres.dump(&url);
    assert!(dump.contains("INSERT INTO public.token"), "it is looked through");
    let marks = [MARK.to_owned(), MARK.bytes().map(|byte| format!("{byte:02x}")).collect()];
    for mark in marks {
        assert!(!dump.contains(&mark), "invariant 12: a token in the database");
    }
}

#[test]
fn callers_who_race_while_the_database_itself_is_killed_and_frozen_see_one_order_too() {
    if !postgres::is_there_or_skip() {
        return;
    }
    let database = Cluster::start(postgres::Options::default());
    let url = database.fresh_database();
    race(&mut [(); 2].map(|()| Service::start(Options::on(&url))), Some(&database));
}

#[test]
fn callers_who_race_while_the_embedded_store_is_killed_see_one_order_and_every_invariant() {
    race(&mut [Service::start(Options::embedded())], None);
}

// ---------------------------------------------------------------- the token race

/// Asks until there is an answer, as Alipay+ does; the answer and how often it was asked for.
async fn insist(key: &Key, channel: Channel, command: &Command) -> (Answer, usize) {
    let mut heard = vec![];
    while heard.len() < 10 {
        match key.ask(channel.clone(), command).await {
            Ok((answer, _)) => return (answer, heard.len() + 1),
            Err(Unknown(instead)) => heard.push(instead),
        }
    }
    panic!("invariant 14: nothing is wrong, and {heard:?}");
}

/// Records and cancels a new token at once; whether it was recorded first, and how often somebody had to ask again.
async fn race_for_a_token(nth: usize, record_at: Channel, cancel_at: Channel) -> (bool, usize) {
    let key = Key::new(&mut StdRng::seed_from_u64(0));
    let (token, grant, acquirer, kind) = ("t0", "g1", "A", "access");
    let (expires_at, replaces, info) = (None, None, None);
    let record =
        Command::RecordToken(NewToken { token, grant, acquirer, kind, expires_at, replaces, info });
    let cancel = Command::CancelToken { token, acquirer };
    let recording = insist(&key, record_at, &record);
    let cancelling = insist(&key, cancel_at.clone(), &cancel);
    // either may get a head start
    let ((recorded, one), (cancelled, two)) = if nth.is_multiple_of(2) {
        tokio::join!(recording, cancelling)
    } else {
        let (cancelled, recorded) = tokio::join!(cancelling, recording);
        (recorded, cancelled)
    };
    let (look, three) = insist(&key, cancel_at, &Command::Introspect { token }).await;
    assert_eq!(look, Answer::Active(None), "{recorded:?} and {cancelled:?}");
    let Answer::Cancel { code, repeated, info: None } = cancelled else { panic!("{cancelled:?}") };
    assert!(!repeated || two > 1, "nobody else cancels it");
    let is_recorded = match (recorded, code) {
        (Answer::Token("accepted"), "SUCCESS") => true,
        (Answer::Token("refused: dead"), "INVALID_TOKEN") => false,
        // it was accepted, nobody heard of it, and then it was cancelled
        (Answer::Token("refused: revoked"), "SUCCESS") if one > 1 => true,
        both => panic!("{both:?} of one token"),
    };
    (is_recorded, one + two + three - 3)
}

/// Many of these at a time; whoever is first decides for both.
fn token_race(replicas: &[Service]) {
    const RACES: usize = 10_000;
    const AT_ONCE: usize = 64;
    let runtime = Runtime::new().expect("a runtime");
    let entered = runtime.enter();
    // one connection would keep the order in which they were sent
    let channels: Vec<Channel> = (0..8 * replicas.len())
        .map(|nth| channel(replicas[nth % replicas.len()].ports().grpc))
        .collect();
    drop(entered);
    let of = |nth: usize| channels[nth % channels.len()].clone();
    let (mut recorded, mut again) = (0, 0);
    runtime.block_on(async {
        let mut racing = JoinSet::new();
        for nth in 0..RACES + AT_ONCE {
            if nth < RACES {
                // every pair of connections, and so of replicas
                racing.spawn(race_for_a_token(nth, of(nth), of(nth / channels.len())));
            }
            if nth >= AT_ONCE {
                let (is_recorded, tries) = racing.join_next().await.expect("one").expect("a race");
                recorded += usize::from(is_recorded);
                again += tries;
            }
        }
    });
    println!("{RACES} tokens: {recorded} were recorded first; asked again {again} times");
    assert!((RACES / 100..RACES - RACES / 100).contains(&recorded), "they did not race");
    assert!(again < RACES / 100, "nothing is wrong, and {again} calls had no answer");
}

#[test]
fn a_token_is_recorded_or_dead_whoever_races_on_the_embedded_store() {
    token_race(&[Service::start(Options::embedded())]);
}

#[test]
fn a_token_is_recorded_or_dead_whoever_races_at_two_replicas_on_postgresql() {
    let Some(postgres) = postgres::or_skip() else { return };
    let url = postgres.fresh_database();
    token_race(&[(); 2].map(|()| Service::start(Options::on(&url))));
}

// ---------------------------------------------------------------- the checker sees a broken store

/// How the store of the simulation is broken.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Broken {
    No,
    /// One write that was answered is not there later.
    LosesAWrite,
    /// One answer is what would have been right some time ago.
    AnswersFromThePast,
    /// One caller is answered before it happens.
    AnswersEarly,
}

/// What callers of one key would hear of a store that is right, or broken once. None: it was not broken after all.
fn simulate(seed: u64, broken: Broken) -> Option<Vec<Operation>> {
    let mut rng = StdRng::seed_from_u64(seed);
    let key = Key::new(&mut rng);
    let mut operations = vec![];
    for nth in 0..OPERATIONS_OF_A_KEY {
        let sent = u64::try_from(nth).expect("few") * 10 + rng.random_range(0..30);
        let happens = sent + rng.random_range(1..40);
        let heard_at = happens + rng.random_range(1..40);
        operations.push((happens, heard_at, sent, key.command(nth, &mut rng)));
    }
    operations.sort_by_key(|(happens, ..)| *happens);
    let breaks_at = rng.random_range(0..OPERATIONS_OF_A_KEY / 2);
    let (mut is_broken, mut history) = (broken == Broken::No, vec![]);
    let mut state = oracle::Oracle::default();
    let mut past = vec![];
    for (nth, (happens, heard_at, sent, command)) in operations.into_iter().enumerate() {
        let is_open = rng.random_bool(0.03);
        let mut heard_at = heard_at;
        let before = state.clone();
        past.push(before.clone());
        let mut answer = None;
        if !is_open || rng.random_bool(0.5) {
            answer = Some(history::apply(&mut state, &command)).filter(|_| !is_open);
        }
        if !is_broken && nth >= breaks_at && answer.is_some() {
            match broken {
                Broken::LosesAWrite if state != before => {
                    is_broken = true;
                    state = before;
                }
                Broken::AnswersFromThePast if nth >= 20 => {
                    let stale = history::apply(&mut past[nth - 20].clone(), &command);
                    is_broken = answer.as_ref() != Some(&stale);
                    answer = Some(stale);
                }
                Broken::AnswersEarly if state != before => {
                    is_broken = true;
                    heard_at = sent + 1;
                    assert!(heard_at <= happens);
                }
                Broken::No
                | Broken::LosesAWrite
                | Broken::AnswersFromThePast
                | Broken::AnswersEarly => {}
            }
        }
        let heard = answer.map(|answer| (heard_at, answer));
        history.push(Operation { caller: nth, command, sent, heard, decided: None });
    }
    is_broken.then_some(history)
}

#[test]
fn the_checker_finds_nothing_wrong_with_a_right_store_and_most_of_what_a_broken_one_does() {
    for (broken, least_percent) in [
        (Broken::No, 0),
        (Broken::LosesAWrite, 60),
        (Broken::AnswersFromThePast, 60),
        (Broken::AnswersEarly, 10),
    ] {
        let histories: Vec<_> = (0..400).filter_map(|seed| simulate(seed, broken)).collect();
        let found: Vec<String> =
            histories.iter().filter_map(|history| history::check(history).err()).collect();
        let percent = found.len() * 100 / histories.len();
        println!("{broken:?}: {} of {}", found.len(), histories.len());
        assert!(histories.len() > 200, "{broken:?}: {}", histories.len());
        assert!(percent >= least_percent, "{broken:?}: {percent} %");
        if broken == Broken::No {
            assert!(found.is_empty(), "{}", found[0]);
        }
    }
}
