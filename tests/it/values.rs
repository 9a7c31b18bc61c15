//! Values of the domain for tests: the plain ones by name, and hostile ones by the thousand.

use std::collections::HashMap;

use alipayplus_cancel::domain::{
    Verdict,
    amount::{AMOUNT_MINOR_UNITS_MAX, Amount, Currency},
    authorization::{Authorization, Revocation, RevocationCause},
    consumer::{Consumer, ConsumerName, Parked, Progress, StreamId},
    event::{Event, EventCause, EventId, EventKind},
    id::{
        AcquirerId, AuthorizationId, ClientId, FundReturnReference, ID_CHARS_MAX,
        PASS_THROUGH_INFO_CHARS_MAX, PassThroughInfo, PaymentRequestId, PspId, RefundId, TokenHash,
        TraceId,
    },
    key::{AuthorizationKey, PaymentKey, Subject, TokenKey},
    payment::{Cancelled, Money, Payment, Refund, RefundState, State, Succeeded, Terms, Untouched},
    result::ResultCode,
    time::Timestamp,
    token::{Recorded, Token, TokenKind},
};
use proptest::{collection::vec, option, prelude::*};

pub fn psp(text: &str) -> PspId {
    PspId::parse(text).expect("a legal id")
}

pub fn acquirer(text: &str) -> AcquirerId {
    AcquirerId::parse(text).expect("a legal id")
}

pub fn payment_key(text: &str) -> PaymentKey {
    let payment_request = PaymentRequestId::parse(text).expect("a legal id");
    PaymentKey { psp: psp("1022172000000000001"), payment_request }
}

pub fn authorization_key(text: &str) -> AuthorizationKey {
    let authorization = AuthorizationId::parse(text).expect("a legal id");
    AuthorizationKey { psp: psp("102208800000001230"), authorization }
}

pub fn token_key(first: u8, second: u8) -> TokenKey {
    let mut hash = [7; 32];
    hash[..2].copy_from_slice(&[first, second]);
    TokenKey { psp: psp("102208800000001230"), hash: TokenHash(hash) }
}

pub fn at(unix_ms: i64) -> Timestamp {
    Timestamp { unix_ms }
}

pub fn amount(minor_units: u64) -> Amount {
    Amount::new(minor_units, Currency::parse("EUR").expect("a currency")).expect("an amount")
}

pub fn verdict(code: ResultCode) -> Verdict {
    Verdict { code, at: at(1_000), by: None, trace: None }
}

/// A payment that tells by its time which write it was.
pub fn initiated(recorded_at: i64) -> Payment {
    Payment {
        acquirer: Some(acquirer("1022188000000000001")),
        recorded_at: Some(at(recorded_at)),
        state: State::Initiated(Terms { amount: amount(1_999), initiated_at: at(5) }),
    }
}

pub fn granted() -> Authorization {
    Authorization {
        acquirer: acquirer("102218800000001234"),
        pass_through_info: None,
        revoked: None,
    }
}

pub fn live(authorization: &AuthorizationKey) -> Token {
    Token::Recorded(Recorded {
        authorization: authorization.authorization.clone(),
        kind: TokenKind::Access,
        expires_at: None,
        replaced_by: None,
        cancelled: None,
    })
}

/// Cancelled after it was debited: money is due since then.
pub fn due(since: i64) -> Payment {
    returning(Money::Due { amount: amount(1_999), since: at(since) })
}

/// The same, and the money is back.
pub fn returned(since: i64) -> Payment {
    let reference = FundReturnReference::parse("return-1").expect("a legal reference");
    let (since, at) = (at(since), at(since + 1));
    returning(Money::Returned { amount: amount(1_999), since, at, reference })
}

/// Cancelled while initiated.
pub fn unresolved(cancelled_at: i64) -> Payment {
    let mut payment = returning(Money::Untouched(Untouched::Initiated));
    if let State::Cancelled(cancelled) = &mut payment.state {
        cancelled.verdict.at = at(cancelled_at);
    }
    payment
}

fn returning(money: Money) -> Payment {
    let Payment { acquirer, recorded_at, state } = initiated(1);
    let State::Initiated(terms) = state else { unreachable!("it was initiated") };
    let cancelled = Cancelled {
        verdict: verdict(ResultCode::Success),
        terms: Some(terms),
        refunds: Vec::new(),
        money,
    };
    Payment { acquirer, recorded_at, state: State::Cancelled(cancelled) }
}

pub fn consumer_name(text: &str) -> ConsumerName {
    ConsumerName::parse(text).expect("a legal name")
}

pub fn cancelled(key: &PaymentKey) -> Event {
    Event {
        kind: EventKind::PaymentCancelled,
        subject: Subject::Payment(key.clone()),
        acquirer: Some(acquirer("1022188000000000001")),
        cause: EventCause::CancelPayment,
        at: at(2_000),
        result: Some(ResultCode::Success),
        pass_through_info: None,
        trace: None,
    }
}

/// Texts that some layer below might take for something else.
const HOSTILE: [&str; 10] = [
    "'; DROP TABLE payment; --",
    "%_\\\"'`",
    "\u{feff}bom\u{202e}",
    "ＡＢＣ",
    "e\u{301}",
    "é",
    "𝄞𝄞𝄞",
    "null",
    "0x00",
    "1e309",
];

/// Legal ids, most of them unpleasant.
fn id_text() -> BoxedStrategy<String> {
    let any = vec(any::<char>(), 1..=ID_CHARS_MAX).prop_map(|chars| {
        let plain = |c: char| if c.is_control() { 'é' } else { c };
        let text: String = chars.into_iter().map(plain).collect();
        let inner = text.trim();
        if inner.is_empty() { "x".to_owned() } else { inner.to_owned() }
    });
    prop_oneof![
        4 => any,
        2 => prop::sample::select(&HOSTILE[..]).prop_map(str::to_owned),
        1 => Just("𝄞".repeat(ID_CHARS_MAX)),
        1 => "[0-9A-Za-z]{1,64}",
    ]
    .boxed()
}

macro_rules! ids {
    ($($name:ident: $type:ident,)*) => {$(
        fn $name() -> BoxedStrategy<$type> {
            id_text().prop_map(|text| $type::parse(&text).expect("a legal id")).boxed()
        }
    )*};
}

ids! {
    any_psp: PspId,
    any_acquirer: AcquirerId,
    any_payment_request: PaymentRequestId,
    any_authorization_id: AuthorizationId,
    any_refund_id: RefundId,
    any_reference: FundReturnReference,
}

fn any_client() -> BoxedStrategy<ClientId> {
    "[A-Za-z0-9_-]{1,64}"
        .prop_map(|text| ClientId::parse(&text).expect("a legal client id"))
        .boxed()
}

/// Opaque text of any length, NULs and all.
pub fn any_pass_through_info() -> BoxedStrategy<PassThroughInfo> {
    let text = prop_oneof![
        6 => vec(any::<char>(), 1..200).prop_map(String::from_iter),
        2 => Just("\u{0}".to_owned()),
        1 => Just("a\u{0}b\u{1}\u{7f}\u{85}\r\n\t ".to_owned()),
        1 => Just("𝄞".repeat(PASS_THROUGH_INFO_CHARS_MAX)),
        1 => Just("\u{0}".repeat(PASS_THROUGH_INFO_CHARS_MAX)),
    ];
    text.prop_map(|text| PassThroughInfo::parse(&text).expect("a legal passThroughInfo")).boxed()
}

fn any_time() -> BoxedStrategy<Timestamp> {
    let (first, last) = (Timestamp::MIN.unix_ms, Timestamp::MAX.unix_ms);
    prop_oneof![4 => first..=last, 1 => Just(first), 1 => Just(last), 1 => Just(0), 1 => Just(-1)]
        .prop_map(at)
        .boxed()
}

fn any_amount_in(currency: Currency) -> BoxedStrategy<Amount> {
    prop_oneof![
        3 => 1..=AMOUNT_MINOR_UNITS_MAX,
        1 => Just(1),
        1 => Just(AMOUNT_MINOR_UNITS_MAX),
    ]
    .prop_map(move |minor_units| Amount::new(minor_units, currency).expect("an amount"))
    .boxed()
}

fn any_currency() -> BoxedStrategy<Currency> {
    "[A-Z]{3}".prop_map(|code| Currency::parse(&code).expect("a currency")).boxed()
}

fn any_amount() -> BoxedStrategy<Amount> {
    any_currency().prop_flat_map(any_amount_in).boxed()
}

fn any_trace() -> BoxedStrategy<TraceId> {
    any::<[u8; 16]>().prop_map(TraceId).boxed()
}

fn any_verdict(code: ResultCode) -> BoxedStrategy<Verdict> {
    (any_time(), option::of(any_client()), option::of(any_trace()))
        .prop_map(move |(at, by, trace)| Verdict { code, at, by, trace })
        .boxed()
}

fn any_terms() -> BoxedStrategy<Terms> {
    (any_amount(), any_time())
        .prop_map(|(amount, initiated_at)| Terms { amount, initiated_at })
        .boxed()
}

fn any_refunds(currency: Currency) -> BoxedStrategy<Vec<Refund>> {
    let state =
        prop::sample::select(vec![RefundState::Reserved, RefundState::Done, RefundState::Released]);
    let refund = (any_refund_id(), any_amount_in(currency), state)
        .prop_map(|(id, amount, state)| Refund { id, amount, state });
    vec(refund, 0..4).boxed()
}

fn any_succeeded() -> BoxedStrategy<Succeeded> {
    let refused = prop_oneof![
        any_verdict(ResultCode::CancelWindowExceed),
        any_verdict(ResultCode::ProcessFail),
    ];
    (any_terms(), option::of(refused))
        .prop_flat_map(|(terms, refused)| {
            any_refunds(terms.amount.currency()).prop_map(move |refunds| Succeeded {
                terms,
                refunds,
                refused: refused.clone(),
            })
        })
        .boxed()
}

fn any_money() -> BoxedStrategy<Money> {
    let returned = (any_amount(), any_time(), any_time(), any_reference()).prop_map(
        |(amount, since, at, reference)| Money::Returned { amount, since, at, reference },
    );
    prop_oneof![
        prop::sample::select(vec![Untouched::Unknown, Untouched::Initiated, Untouched::Failed])
            .prop_map(Money::Untouched),
        (any_amount(), any_time()).prop_map(|(amount, since)| Money::Due { amount, since }),
        returned,
    ]
    .boxed()
}

fn any_cancelled() -> BoxedStrategy<Cancelled> {
    let terms = option::of(any_terms()).prop_flat_map(|terms| {
        let refunds = match terms {
            None => Just(Vec::new()).boxed(),
            Some(terms) => any_refunds(terms.amount.currency()).boxed(),
        };
        (Just(terms), refunds)
    });
    (any_verdict(ResultCode::Success), terms, any_money())
        .prop_map(|(verdict, (terms, refunds), money)| Cancelled { verdict, terms, refunds, money })
        .boxed()
}

/// Every kind of payment.
pub fn any_payment() -> BoxedStrategy<Payment> {
    let state = prop_oneof![
        any_terms().prop_map(State::Initiated),
        option::of(any_terms()).prop_map(State::Failed),
        any_succeeded().prop_map(State::Succeeded),
        any_cancelled().prop_map(State::Cancelled),
    ];
    (option::of(any_acquirer()), option::of(any_time()), state)
        .prop_map(|(acquirer, recorded_at, state)| Payment { acquirer, recorded_at, state })
        .boxed()
}

pub fn any_payment_key() -> BoxedStrategy<PaymentKey> {
    (any_psp(), any_payment_request())
        .prop_map(|(psp, payment_request)| PaymentKey { psp, payment_request })
        .boxed()
}

pub fn any_authorization_key() -> BoxedStrategy<AuthorizationKey> {
    (any_psp(), any_authorization_id())
        .prop_map(|(psp, authorization)| AuthorizationKey { psp, authorization })
        .boxed()
}

pub fn any_authorization() -> BoxedStrategy<Authorization> {
    let cause = prop::sample::select(vec![
        RevocationCause::CancelToken,
        RevocationCause::RevokeAuthorization,
    ]);
    let revoked = (any_time(), cause, option::of(any_trace()))
        .prop_map(|(at, cause, trace)| Revocation { at, cause, trace });
    (any_acquirer(), option::of(any_pass_through_info()), option::of(revoked))
        .prop_map(|(acquirer, pass_through_info, revoked)| Authorization {
            acquirer,
            pass_through_info,
            revoked,
        })
        .boxed()
}

/// A grant with tokens of every kind, and the same wallet's tokens that were dead on arrival.
#[derive(Clone, Debug)]
pub struct Family {
    pub key: AuthorizationKey,
    pub authorization: Authorization,
    pub tokens: HashMap<TokenKey, Token>,
}

pub fn any_family() -> BoxedStrategy<Family> {
    (any_authorization_key(), any_authorization())
        .prop_flat_map(|(key, authorization)| {
            let owner = key.authorization.clone();
            let hash = || any::<[u8; 32]>().prop_map(TokenHash);
            let recorded = (
                prop::sample::select(vec![TokenKind::Access, TokenKind::Refresh]),
                option::of(any_time()),
                option::of(hash()),
                option::of(any_verdict(ResultCode::Success)),
            )
                .prop_map(move |(kind, expires_at, replaced_by, cancelled)| {
                    let authorization = owner.clone();
                    Token::Recorded(Recorded {
                        authorization,
                        kind,
                        expires_at,
                        replaced_by,
                        cancelled,
                    })
                });
            let token = prop_oneof![
                3 => recorded,
                1 => any_verdict(ResultCode::InvalidToken).prop_map(Token::DeadOnArrival),
            ];
            let wallet = key.psp.clone();
            vec((hash(), token), 1..6).prop_map(move |tokens| Family {
                key: key.clone(),
                authorization: authorization.clone(),
                tokens: tokens
                    .into_iter()
                    .map(|(hash, token)| (TokenKey { psp: wallet.clone(), hash }, token))
                    .collect(),
            })
        })
        .boxed()
}

/// Every kind of event.
pub fn any_event() -> BoxedStrategy<Event> {
    let what = prop_oneof![
        any_payment_key().prop_map(|key| (EventKind::PaymentCancelled, Subject::Payment(key))),
        (any_payment_key(), any_amount())
            .prop_map(|(key, amount)| (EventKind::FundReturnDue(amount), Subject::Payment(key))),
        any_authorization_key()
            .prop_map(|key| (EventKind::AuthorizationRevoked, Subject::Authorization(key))),
    ];
    let cause = prop::sample::select(vec![
        EventCause::CancelPayment,
        EventCause::LateSuccess,
        EventCause::CancelToken,
        EventCause::RevokeAuthorization,
    ]);
    let circumstances = (
        option::of(any_acquirer()),
        any_time(),
        option::of(Just(ResultCode::Success)),
        option::of(any_pass_through_info()),
        option::of(any_trace()),
    );
    (what, cause, circumstances)
        .prop_map(|((kind, subject), cause, (acquirer, at, result, pass_through_info, trace))| {
            Event { kind, subject, acquirer, cause, at, result, pass_through_info, trace }
        })
        .boxed()
}

const SPECIAL_NAMES: [&str; 11] = ["-", ".", "..", "--", "NULL", "null", "0", "1e3", "_", "A", "a"];

/// Every legal name, those among them that look like something else.
pub fn any_consumer_name() -> BoxedStrategy<ConsumerName> {
    let text = prop_oneof![
        2 => "[A-Za-z0-9_.-]{1,64}",
        1 => "[A-Za-z0-9_.-]{64}",
        1 => prop::sample::select(&SPECIAL_NAMES[..]).prop_map(str::to_owned),
    ];
    text.prop_map(|text| consumer_name(&text)).boxed()
}

/// Text that a caller chose: anything, NULs too.
fn any_text() -> BoxedStrategy<Box<str>> {
    prop_oneof![
        4 => vec(any::<char>(), 0..80).prop_map(String::from_iter),
        1 => Just("\u{0}".to_owned()),
        1 => Just("a\u{0}b\u{1}\u{7f}\r\n ".to_owned()),
        1 => Just("𝄞".repeat(500)),
        1 => prop::sample::select(&HOSTILE[..]).prop_map(str::to_owned),
    ]
    .prop_map(String::into_boxed_str)
    .boxed()
}

/// The furthest a position goes: databases count in signed numbers.
const POSITION_MAX: u64 = u64::MAX >> 1;

fn any_position() -> BoxedStrategy<u64> {
    prop_oneof![4 => 0..1_000u64, 1 => Just(POSITION_MAX)].boxed()
}

fn any_subject() -> BoxedStrategy<Subject> {
    prop_oneof![
        any_payment_key().prop_map(Subject::Payment),
        any_authorization_key().prop_map(Subject::Authorization),
    ]
    .boxed()
}

/// Every kind of consumer of a store with that many partitions.
pub fn any_consumer(partitions: u16) -> BoxedStrategy<Consumer> {
    let stream = option::of(any::<[u8; 16]>().prop_map(StreamId));
    let progress = (any_position(), stream)
        .prop_map(|(acknowledged, stream)| Progress { acknowledged, stream });
    let parked =
        (
            (0..partitions, any_position()),
            any::<[u8; 16]>().prop_map(EventId),
            any_subject(),
            option::of(any_text()),
            any_time(),
            any::<bool>(),
        )
            .prop_map(|((partition, position), event, subject, reason, at, redrive)| {
                Parked { partition, position, event, subject, reason, at, redrive }
            });
    (
        option::of(any_text()),
        prop::collection::btree_map(0..partitions, progress, 0..5),
        vec(parked, 0..5),
    )
        .prop_map(|(owner, progress, mut parked)| {
            parked.sort_by_key(|parked| (parked.partition, parked.position));
            parked.dedup_by_key(|parked| (parked.partition, parked.position));
            Consumer { owner, progress, parked }
        })
        .boxed()
}
