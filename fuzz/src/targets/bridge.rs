//! The whole bridge in this process, from a request to its answer, over a core with a store in memory.
//!
//! Whatever comes: an answer that is one, with the status that belongs to its code; signed so that it verifies, and for
//! nobody who chose the text; nothing decided that its client did not sign; `U` for every fault; and to a repeat the first
//! result.
//!
//! An input is a head, an empty line and a body: `POST /path`, then `name: value` or `!directive` a line. What a fuzzer
//! cannot do is signed for it: `!sign NUMBER` signs with the key of that client.

use std::{
    collections::BTreeSet,
    num::NonZeroU32,
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::{Duration, Instant},
};

use alipayplus_cancel::{
    bridge::{
        Api, Bridge, Client, ClientKey, Clients, Identity, Limits, Rates, Setup,
        keys::PrivateKey,
        signature::{self, SignatureHeader},
    },
    domain::{
        amount::{Amount, Currency},
        id::{
            AcquirerId, AuthorizationId, ClientId, PassThroughInfo, PaymentRequestId, PspId,
            RefundId, Token,
        },
        key::{AuthorizationKey, PaymentKey},
        payment::Terms,
        policy::Policy,
        record_payment::{Fact, RecordPayment},
        revoke_authorization::RevokeAuthorization,
        time::Timestamp,
        token::TokenKind,
    },
    engine::{self, Caller, Clock, Engine, HashRing, RecordToken},
    feed::Wake,
    grpc::{
        client,
        server::{Deadlines, Server},
    },
    layer::{overload::InFlight, rate_limit::Rate},
    telemetry::Telemetry,
};
use axum::{Router, body::Body};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Version};
use http_body_util::BodyExt as _;
use serde_json::Value;
use tokio::runtime::Runtime;
use tower::ServiceExt as _;

use super::memory::{Fault, Memory, Rows};

const PSP: &str = "1022172000000000001";
const ACQUIRER: &str = "1022188000000000001";
const CLIENTS: [&str; 2] = ["T_ALIPAYPLUS_0001", "OTHER-1"];
const TIME: &str = "2026-05-28T12:12:12+08:00";
/// 12:12:12 of the day.
const NOW: Timestamp = Timestamp { unix_ms: 1_779_941_532_000 };
const DAY_MS: i64 = 86_400_000;
const BODY_BYTES_MAX: usize = 16 * 1024;

/// Every code with its status, written anew from Alipay+'s pages.
const STATUS_OF: [(&str, &str); 14] = [
    ("SUCCESS", "S"),
    ("ACCESS_DENIED", "F"),
    ("CANCEL_WINDOW_EXCEED", "F"),
    ("INVALID_CLIENT", "F"),
    ("INVALID_SIGNATURE", "F"),
    ("INVALID_TOKEN", "F"),
    ("KEY_NOT_FOUND", "F"),
    ("MEDIA_TYPE_NOT_ACCEPTABLE", "F"),
    ("METHOD_NOT_SUPPORTED", "F"),
    ("NO_INTERFACE_DEF", "F"),
    ("PARAM_ILLEGAL", "F"),
    ("PROCESS_FAIL", "F"),
    ("REQUEST_TRAFFIC_EXCEED_LIMIT", "U"),
    ("UNKNOWN_EXCEPTION", "U"),
];

/// What is decided, and so asked of the store.
const DECIDED: [&str; 4] = ["SUCCESS", "CANCEL_WINDOW_EXCEED", "PROCESS_FAIL", "INVALID_TOKEN"];

struct Noon;

impl Clock for Noon {
    fn now(&self) -> Timestamp {
        NOW
    }
}

/// The bridge with all behind it, made once: every input finds the same rows.
struct Rig {
    runtime: Runtime,
    router: Router,
    store: Arc<Memory>,
    rows: Rows,
    wallet: PrivateKey,
    clients: [PrivateKey; 2],
}

static RIG: LazyLock<Mutex<Rig>> = LazyLock::new(|| Mutex::new(Rig::new()));

/// One request, and its repeat.
pub fn run(data: &[u8]) {
    let Some(input) = Input::read(data) else { return };
    let rig = RIG.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(request) = input.request(&rig) else { return };
    let parts = request.head();
    *rig.store.rows() = rig.rows.clone();
    {
        let mut rows = rig.store.rows();
        rows.fault = input.fault;
        rows.onboarding = input.onboarding;
    }
    let answer = rig.ask(request.clone());
    let after = rig.store.rows().clone();
    if *parts.method() == Method::CONNECT {
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        assert!(answer.body.is_empty());
        return;
    }
    let said = answer.read(&parts, &rig.wallet);
    let (asked, written) = (after.asked - rig.rows.asked, after.written - rig.rows.written);

    // who did not sign it decides nothing, and chooses no text that is signed
    if !input.is_proven() {
        assert_eq!(asked, 0, "asked of the store, and not proven");
        assert!(!DECIDED.contains(&&*said.code), "{said:?}");
        if answer.headers.contains_key("signature") {
            let served = Api::ALL.map(|api| format!("/aps{}", api.tail()));
            assert!(served.contains(&parts.uri().to_string()) && *parts.method() == Method::POST);
        }
    }
    assert!(asked <= 1 && written <= asked);
    if DECIDED.contains(&&*said.code) {
        assert_eq!((asked, input.fault), (1, Fault::None), "decided by nobody: {said:?}");
    }
    if asked == 1 && input.fault != Fault::None {
        assert_eq!(said.status, "U", "a fault: {said:?}");
    }

    // the same again, of a store that is well again
    rig.store.rows().fault = Fault::None;
    let again = rig.ask(request).read(&parts, &rig.wallet);
    let repeated = rig.store.rows().clone();
    if said.status != "U" {
        assert_eq!(again, said, "the first result is that of every repeat");
        assert_eq!(repeated.written, after.written, "and nothing happens a second time");
        assert_eq!(repeated.events, after.events);
    }
    assert!(repeated.events - rig.rows.events <= 2, "of one key");
}

/// What an input says.
struct Input<'a> {
    method: &'a [u8],
    target: &'a [u8],
    headers: Vec<(&'a [u8], &'a [u8])>,
    body: &'a [u8],
    version: Version,
    fault: Fault,
    onboarding: bool,
    bare: bool,
    signer: Option<usize>,
    flipped: Option<usize>,
    signed_target: Option<&'a [u8]>,
    signed_time: Option<&'a [u8]>,
}

impl<'a> Input<'a> {
    fn read(data: &'a [u8]) -> Option<Self> {
        let (head, body) = match data.windows(2).position(|window| window == b"\n\n") {
            Some(at) => (&data[..at], &data[at + 2..]),
            None => (data, &[][..]),
        };
        let mut lines = head.split(|byte| *byte == b'\n');
        let first = lines.next()?;
        let space = first.iter().position(|byte| *byte == b' ')?;
        let mut input = Self {
            method: &first[..space],
            target: &first[space + 1..],
            headers: vec![],
            body,
            version: Version::HTTP_11,
            fault: Fault::None,
            onboarding: false,
            bare: false,
            signer: None,
            flipped: None,
            signed_target: None,
            signed_time: None,
        };
        for line in lines {
            let Some(directive) = line.strip_prefix(b"!") else {
                let colon = line.iter().position(|byte| *byte == b':')?;
                let value = &line[colon + 1..];
                input.headers.push((&line[..colon], value.strip_prefix(b" ").unwrap_or(value)));
                continue;
            };
            let space = directive.iter().position(|byte| *byte == b' ').unwrap_or(directive.len());
            let (name, value) = directive.split_at(space);
            let value = value.get(1..).unwrap_or_default();
            let number = || std::str::from_utf8(value).ok()?.parse::<usize>().ok();
            match name {
                b"sign" => input.signer = Some(number()? % CLIENTS.len()),
                b"flip" => input.flipped = Some(number()?),
                b"for" => input.signed_target = Some(value),
                b"at" => input.signed_time = Some(value),
                b"bare" => input.bare = true,
                b"onboarding" => input.onboarding = true,
                b"http2" => input.version = Version::HTTP_2,
                b"http10" => input.version = Version::HTTP_10,
                b"fault" => {
                    input.fault = [
                        Fault::Unavailable,
                        Fault::AnswerLost,
                        Fault::CommitLost,
                        Fault::Data,
                        Fault::Damaged,
                        Fault::Suspect,
                        Fault::Closed,
                    ][number()? % 7];
                }
                _ => return None,
            }
        }
        Some(input)
    }

    /// Whether what goes out is what was signed.
    fn is_proven(&self) -> bool {
        self.signer.is_some()
            && self.flipped.is_none()
            && self.signed_target.is_none_or(|target| target == self.target)
            && self.signed_time.is_none()
    }

    /// The request as it goes out; `None` if HTTP has no such request.
    fn request(&self, rig: &Rig) -> Option<Request<Vec<u8>>> {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            headers
                .append(HeaderName::from_bytes(name).ok()?, HeaderValue::from_bytes(value).ok()?);
        }
        if !self.bare {
            headers.entry("host").or_insert(HeaderValue::from_static("wallet"));
        }
        let mut body = self.body.to_vec();
        if let Some(signer) = self.signer {
            headers.entry("client-id").or_insert(HeaderValue::from_static(CLIENTS[signer]));
            let time = headers.entry("request-time").or_insert(HeaderValue::from_static(TIME));
            let time = self.signed_time.unwrap_or(time.as_bytes());
            let target = self.signed_target.unwrap_or(self.target);
            // the text is put together here once more, not by what is tested
            let text = [
                self.method,
                b" ",
                target,
                b"\n",
                CLIENTS[signer].as_bytes(),
                b".",
                time,
                b".",
                &body,
            ]
            .concat();
            let signed = signature::header("1", &rig.clients[signer].sign(&text).ok()?);
            headers.append("signature", HeaderValue::try_from(signed).ok()?);
        }
        if let Some(bit) = self.flipped {
            let at = bit / 8 % body.len().max(1);
            if let Some(byte) = body.get_mut(at) {
                *byte ^= 1 << (bit % 8);
            } else {
                body.push(b' ');
            }
        }
        let mut request = Request::builder()
            .method(self.method)
            .uri(self.target)
            .version(self.version)
            .body(body)
            .ok()?;
        *request.headers_mut() = headers;
        Some(request)
    }
}

trait Head {
    fn head(&self) -> Request<()>;
}

impl Head for Request<Vec<u8>> {
    fn head(&self) -> Request<()> {
        self.clone().map(drop)
    }
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

#[derive(Debug, PartialEq, Eq)]
struct Said {
    code: String,
    status: String,
    message: String,
    info: Option<String>,
}

impl Answer {
    /// What it says, if it may say that at all.
    fn read(&self, request: &Request<()>, wallet: &PrivateKey) -> Said {
        assert_eq!(self.status, StatusCode::OK);
        let json = self.headers.get_all("content-type").iter().collect::<Vec<_>>();
        assert_eq!(json, ["application/json; charset=UTF-8"]);
        let body: Value = serde_json::from_slice(&self.body).expect("JSON");
        let object = body.as_object().expect("an object");
        let names: BTreeSet<&str> = object.keys().map(String::as_str).collect();
        assert!(names.is_subset(&["result", "passThroughInfo"].into()), "{names:?}");
        let result = object["result"].as_object().expect("a result");
        assert_eq!(result.len(), 3);
        let text = |name: &str| result[name].as_str().expect("a text").to_owned();
        let said = Said {
            code: text("resultCode"),
            status: text("resultStatus"),
            message: text("resultMessage"),
            info: object
                .get("passThroughInfo")
                .map(|info| info.as_str().expect("a text").to_owned()),
        };
        assert!(STATUS_OF.contains(&(&*said.code, &*said.status)), "{said:?}");
        assert!((1..=256).contains(&said.message.len()), "{said:?}");
        assert!(said.message.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{said:?}");
        assert!(said.info.is_none() || DECIDED.contains(&&*said.code));
        self.check_signature(request, wallet);
        said
    }

    fn check_signature(&self, request: &Request<()>, wallet: &PrivateKey) {
        let once = |name: &str| {
            let values: Vec<_> = self.headers.get_all(name).iter().collect();
            assert!(values.len() <= 1, "{name}: {values:?}");
            values.first().map(|value| value.as_bytes().to_vec())
        };
        let (signature, client, time) =
            (once("signature"), once("client-id"), once("response-time"));
        assert_eq!((signature.is_some(), client.is_some()), (time.is_some(), time.is_some()));
        let (Some(signature), Some(client), Some(time)) = (signature, client, time) else { return };
        let asking: Vec<_> = request.headers().get_all("client-id").iter().collect();
        assert_eq!(asking, [&HeaderValue::from_bytes(&client).expect("a value")]);
        assert!(CLIENTS.iter().any(|known| known.as_bytes() == client));
        let target = request.uri().path_and_query().map_or("", |target| target.as_str());
        let text = [
            request.method().as_str().as_bytes(),
            b" ",
            target.as_bytes(),
            b"\n",
            &client,
            b".",
            &time,
            b".",
            &self.body,
        ]
        .concat();
        let signature = SignatureHeader::parse(signature).expect("a header").signature;
        assert!(wallet.public().verify(&text, &signature), "it does not verify");
    }
}

impl Rig {
    fn new() -> Self {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let key = || PrivateKey::generate(2048).expect("a key");
        let (wallet, clients) = (key(), [key(), key()]);
        let store = Arc::new(Memory::default());
        let telemetry = Telemetry::local();
        let router = runtime.block_on(async {
            let (engine, _) = Engine::start(
                Arc::clone(&store) as _,
                &Wake::default(),
                HashRing::new(&[[7; 32]]).expect("a key"),
                Arc::new(Policy::default()),
                Arc::new(Noon),
                engine::Limits { queue: 64, batch: 8, wait: Duration::from_mins(1) },
                &telemetry.metrics,
            );
            fill(&engine).await;
            let minute = Duration::from_mins(1);
            let deadlines =
                Deadlines { cancel_payment: minute, cancel_token: minute, other: minute };
            let server = Server::new(engine, deadlines, telemetry.clone());
            Bridge::new(
                &["/aps"],
                setup(&wallet, &clients),
                client::Client::in_process(&server),
                &telemetry,
                "http",
            )
            .router()
        });
        let rows = store.rows().clone();
        Self { runtime, router, store, rows, wallet, clients }
    }

    fn ask(&self, request: Request<Vec<u8>>) -> Answer {
        self.runtime.block_on(async {
            let response = self.router.clone().oneshot(request.map(Body::from)).await;
            let (parts, body) = response.expect("it has an answer").into_parts();
            let body = body.collect().await.expect("and all of it").to_bytes().to_vec();
            Answer { status: parts.status, headers: parts.headers, body }
        })
    }
}

fn setup(wallet: &PrivateKey, keys: &[PrivateKey; 2]) -> Setup {
    let many = NonZeroU32::new(1_000_000).expect("many");
    let rate = Rate { per_second: many, burst: many };
    let psp = PspId::parse(PSP).expect("an id");
    let client = |nth: usize, psps| {
        let key =
            ClientKey { version: "1".into(), key: keys[nth].public().clone(), not_after: None };
        let rates = Rates { all: rate, cancel_payment: None, cancel_token: None };
        let id = ClientId::parse(CLIENTS[nth]).expect("an id");
        Client::new(id, psps, None, vec![key], rates)
    };
    let clients = vec![client(0, Some(BTreeSet::from([psp]))), client(1, None)];
    let minute = Duration::from_mins(1);
    let limits = Limits {
        in_flight: InFlight { total: 8, per_source: 8, per_client: 8 },
        unproven: rate,
        trusted_proxies: 1,
        body_bytes: BODY_BYTES_MAX,
        body_bytes_in_flight: 8 * BODY_BYTES_MAX,
        body_bytes_in_flight_per_source: 8 * BODY_BYTES_MAX,
        body_timeout: minute,
        cancel_payment_deadline: minute,
        cancel_token_deadline: minute,
        request_time_skew: None,
    };
    let identity = Identity { version: "9".to_owned(), signer: Arc::new(wallet.clone()) };
    Setup::new(Clients::new(clients).expect("a key each"), identity, limits)
}

/// Payments `p0` to `p5` and tokens `t0` to `t5`, each in another state.
async fn fill(engine: &Engine) {
    let caller =
        || Caller { deadline: Instant::now() + Duration::from_mins(1), client: None, trace: None };
    let psp = || PspId::parse(PSP).expect("an id");
    let acquirer = || AcquirerId::parse(ACQUIRER).expect("an id");
    let money =
        |value| Amount::new(value, Currency::parse("EUR").expect("a currency")).expect("an amount");
    let terms =
        |ago| Terms { amount: money(100), initiated_at: Timestamp { unix_ms: NOW.unix_ms - ago } };
    let refund = |id, amount| Fact::RefundStarted {
        id: RefundId::parse(id).expect("an id"),
        amount: money(amount),
    };
    for (id, fact) in [
        ("p0", Fact::Initiated(terms(1))),
        ("p1", Fact::Succeeded(terms(1))),
        ("p2", Fact::Succeeded(terms(3 * DAY_MS))),
        ("p3", Fact::Failed { amount: None }),
        ("p4", Fact::Succeeded(terms(1))),
        ("p4", refund("r", 40)),
        ("p5", Fact::Initiated(terms(1))),
        ("p5", Fact::Failed { amount: None }),
    ] {
        let payment_request = PaymentRequestId::parse(id).expect("an id");
        let key = PaymentKey { psp: psp(), payment_request };
        let command = RecordPayment { key, acquirer: Some(acquirer()), fact };
        engine.record_payment(command, caller()).await.expect("recorded");
    }
    let token = |id: &str| Token::parse(id).expect("a token");
    for (id, authorization, kind, ago, replaces) in [
        ("t0", "a0", TokenKind::Access, None, None),
        ("t1", "a0", TokenKind::Refresh, None, None),
        ("t2", "a1", TokenKind::Access, Some(1_000), None),
        ("t3", "a2", TokenKind::Access, None, None),
        ("t4", "a2", TokenKind::Access, None, Some("t3")),
        ("t5", "a3", TokenKind::Access, None, None),
    ] {
        let authorization = AuthorizationId::parse(authorization).expect("an id");
        let command = RecordToken {
            authorization: AuthorizationKey { psp: psp(), authorization },
            acquirer: acquirer(),
            token: token(id),
            kind,
            expires_at: ago.map(|ago| Timestamp { unix_ms: NOW.unix_ms - ago }),
            replaces: replaces.map(token),
            pass_through_info: Some(PassThroughInfo::parse("{\"a\":1}").expect("a text")),
        };
        engine.record_token(command, caller()).await.expect("recorded");
    }
    let authorization = AuthorizationId::parse("a3").expect("an id");
    let key = AuthorizationKey { psp: psp(), authorization };
    engine.revoke_authorization(RevokeAuthorization { key }, caller()).await.expect("revoked");
}
