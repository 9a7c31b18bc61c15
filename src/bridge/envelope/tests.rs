//! What proves a request, to the border of each check; and what a signed answer is made of.

use std::{collections::BTreeSet, num::NonZeroU32, sync::LazyLock, time::Duration};

use http::Request;

use super::*;
use crate::{
    bridge::{
        identity::{ClientKey, Identity, Rates},
        keys::PrivateKey,
    },
    domain::id::{AcquirerId, PspId},
    layer::rate_limit::Rate,
};

static KEYS: LazyLock<[PrivateKey; 3]> =
    LazyLock::new(|| std::array::from_fn(|_| PrivateKey::generate(2048).unwrap()));

const TARGET: &str = "/v1/payments/cancelPayment";
const BODY: &[u8] = b"{}";
const TIME: &str = "2026-11-23T08:00:00+08:00";
const ASKED_AT: i64 = 1_795_392_000_000;
/// When the second key of the client is retired.
const RETIRED_AT: i64 = ASKED_AT + 60_000;

fn at(unix_ms: i64) -> Timestamp {
    Timestamp { unix_ms }
}

fn id() -> ClientId {
    ClientId::parse("FIRST").unwrap()
}

/// It has two keys, "1" and "2", of which the second is retired at its time.
fn client_of(psps: Option<&str>, acquirers: Option<&str>) -> Client {
    let key = |version: &str, key: &PrivateKey, not_after| ClientKey {
        version: version.into(),
        key: key.public().clone(),
        not_after,
    };
    let keys = vec![key("1", &KEYS[0], None), key("2", &KEYS[1], Some(at(RETIRED_AT)))];
    let rate = Rate { per_second: NonZeroU32::MIN, burst: NonZeroU32::MIN };
    let rates = Rates { all: rate, cancel_payment: None, cancel_token: None };
    let psps = psps.map(|psp| BTreeSet::from([PspId::parse(psp).unwrap()]));
    let acquirers = acquirers.map(|it| BTreeSet::from([AcquirerId::parse(it).unwrap()]));
    Client::new(id(), psps, acquirers, keys, rates)
}

/// A request; `None` leaves a header out.
struct Asking {
    times: Vec<&'static str>,
    signatures: Vec<String>,
}

fn signed_by(key: &PrivateKey) -> Vec<u8> {
    key.sign(&signature::signed_string("POST", TARGET, "FIRST", TIME, BODY)).unwrap()
}

fn asking(version: &str, key: &PrivateKey) -> Asking {
    Asking { times: vec![TIME], signatures: vec![signature::header(version, &signed_by(key))] }
}

impl Asking {
    fn verified(&self, now: i64, skew_max: SkewMax) -> Result<Verified, Reply> {
        let mut request = Request::post(TARGET);
        for time in &self.times {
            request = request.header(REQUEST_TIME, *time);
        }
        for signature in &self.signatures {
            request = request.header(SIGNATURE, signature);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let client = client_of(None, None);
        verify(&parts, TARGET, &client, Bytes::from_static(BODY), at(now), skew_max)
    }

    fn refused(&self, now: i64, skew_max: SkewMax) -> ResultCode {
        self.verified(now, skew_max).expect_err("it proves nothing").code
    }
}

#[test]
fn a_body_is_verified_by_the_key_of_the_version_that_is_named() {
    for (version, key) in [("1", &KEYS[0]), ("2", &KEYS[1])] {
        let verified = asking(version, key).verified(ASKED_AT, None).unwrap();
        assert_eq!(verified.bytes(), BODY);
        assert_eq!(&**verified.key_version(), version);
    }
    assert_eq!(asking("2", &KEYS[0]).refused(ASKED_AT, None), ResultCode::InvalidSignature);
    assert_eq!(asking("3", &KEYS[0]).refused(ASKED_AT, None), ResultCode::KeyNotFound);
    assert_eq!(asking("1", &KEYS[2]).refused(ASKED_AT, None), ResultCode::InvalidSignature);
}

#[test]
fn without_a_version_every_active_key_is_tried() {
    let nameless = |key| {
        let header = signature::header("1", &signed_by(key)).replace("keyVersion=1,", "");
        Asking { signatures: vec![header], ..asking("1", key) }
    };
    for (version, key) in [("1", &KEYS[0]), ("2", &KEYS[1])] {
        let verified = nameless(key).verified(ASKED_AT, None).unwrap();
        assert_eq!(&**verified.key_version(), version);
    }
    assert_eq!(nameless(&KEYS[2]).refused(ASKED_AT, None), ResultCode::InvalidSignature);
    assert_eq!(nameless(&KEYS[1]).refused(RETIRED_AT, None), ResultCode::InvalidSignature);
}

#[test]
fn a_key_is_retired_at_its_moment() {
    let by_second = asking("2", &KEYS[1]);
    assert!(by_second.verified(RETIRED_AT - 1, None).is_ok());
    assert_eq!(by_second.refused(RETIRED_AT, None), ResultCode::KeyNotFound);
    assert!(asking("1", &KEYS[0]).verified(RETIRED_AT, None).is_ok());
}

#[test]
fn a_request_time_may_be_as_far_away_as_is_configured_and_no_further() {
    let by_first = asking("1", &KEYS[0]);
    let most = Some(Duration::from_millis(1_500));
    for (now, good) in [
        (ASKED_AT - 1_501, false),
        (ASKED_AT - 1_500, true),
        (ASKED_AT, true),
        (ASKED_AT + 1_500, true),
        (ASKED_AT + 1_501, false),
    ] {
        assert_eq!(by_first.verified(now, most).is_ok(), good, "{}", now - ASKED_AT);
        if !good {
            assert_eq!(by_first.refused(now, most), ResultCode::ParamIllegal);
        }
    }
    assert!(by_first.verified(ASKED_AT + 86_400_000, None).is_ok(), "it is no replay window");
}

#[test]
fn what_must_stand_once_stands_once() {
    let right = || asking("1", &KEYS[0]);
    for times in [vec![], vec![TIME, TIME], vec!["yesterday"]] {
        let asking = Asking { times, ..right() };
        assert_eq!(asking.refused(ASKED_AT, None), ResultCode::ParamIllegal, "{:?}", asking.times);
    }
    let twice = vec![right().signatures[0].clone(); 2];
    for signatures in [vec![], twice, vec!["algorithm=RSA256".to_owned()]] {
        let asking = Asking { signatures, ..right() };
        assert_eq!(asking.refused(ASKED_AT, None), ResultCode::InvalidSignature);
    }

    let clients = Clients::new(vec![client_of(None, None)]).unwrap();
    let named = |names: &[&'static str]| {
        let mut headers = HeaderMap::new();
        for name in names {
            headers.append(CLIENT_ID, HeaderValue::from_static(name));
        }
        client(&headers, &clients).map(|client| client.id.clone())
    };
    assert_eq!(named(&["FIRST"]), Some(id()));
    for nobody in [&[][..], &["FIRST", "FIRST"], &["SECOND"], &["first"]] {
        assert_eq!(named(nobody), None, "{nobody:?}");
    }
}

#[test]
fn a_client_acts_for_its_wallets_and_its_acquirers() {
    let may = |psps, acquirers, psp, acquirer| {
        let (psp, acquirer) = (PspId::parse(psp).unwrap(), AcquirerId::parse(acquirer).unwrap());
        client_of(psps, acquirers).may_act_for(&psp, &acquirer)
    };
    assert!(may(None, None, "p", "a"));
    assert!(may(Some("p"), None, "p", "a") && !may(Some("p"), None, "q", "a"));
    assert!(may(None, Some("a"), "p", "a") && !may(None, Some("a"), "p", "b"));
    assert!(may(Some("p"), Some("a"), "p", "a"));
    assert!(!may(Some("p"), Some("a"), "p", "b") && !may(Some("p"), Some("a"), "q", "a"));
}

// ---------------------------------------------------------------- answers

fn cache() -> SignCache {
    SignCache::new(Identity { version: "w".to_owned(), signer: Arc::new(KEYS[2].clone()) })
}

fn to<'a>(target: &'a str, client: &'a ClientId) -> Address<'a> {
    Address { method: &Method::POST, target, client }
}

async fn answer(
    cache: &SignCache,
    reply: &Reply,
    (method, target): (&Method, &str),
    now: i64,
) -> (Response<Bytes>, Option<bool>) {
    let client = id();
    let address = Address { method, target, client: &client };
    sealed(reply, address, at(now), cache).await
}

fn header<'a>(response: &'a Response<Bytes>, name: &str) -> &'a str {
    response.headers()[name].to_str().unwrap()
}

/// By our key, over what the answer says it is.
fn verifies(response: &Response<Bytes>, method: &str, target: &str) -> bool {
    let time = header(response, "response-time");
    let signed = signature::signed_string(method, target, "FIRST", time, response.body());
    let said = SignatureHeader::parse(header(response, "signature")).unwrap();
    assert_eq!(said.key_version.as_deref(), Some("w"));
    KEYS[2].public().verify(&signed, &said.signature)
}

const POST: (&Method, &str) = (&Method::POST, TARGET);

#[tokio::test]
async fn an_answer_names_client_and_time_and_is_signed_for_its_address() {
    let reply = Reply::of(ResultCode::Success);
    let (response, cached) = answer(&cache(), &reply, POST, ASKED_AT + 999).await;
    assert_eq!(cached, Some(false));
    assert_eq!(header(&response, "content-type"), "application/json; charset=UTF-8");
    assert_eq!(header(&response, "client-id"), "FIRST");
    assert_eq!(header(&response, "response-time"), "2026-11-23T08:00:00+08:00");
    assert_eq!(response.body(), &Bytes::from(reply.json()));
    assert!(verifies(&response, "POST", TARGET));
    assert!(!verifies(&response, "POST", "/other") && !verifies(&response, "GET", TARGET));
}

#[tokio::test]
async fn equal_answers_of_a_second_are_signed_once() {
    let cache = cache();
    let success = Reply::of(ResultCode::Success);
    let get = (&Method::GET, TARGET);
    let (first, cached) = answer(&cache, &success, POST, ASKED_AT).await;
    assert_eq!(cached, Some(false));
    let (again, cached) = answer(&cache, &success, POST, ASKED_AT + 999).await;
    assert_eq!(cached, Some(true));
    assert_eq!((again.headers(), again.body()), (first.headers(), first.body()));
    // by everything that is signed
    let saying = Reply::saying(ResultCode::Success, "more");
    for (reply, line) in [
        (&Reply::of(ResultCode::InvalidToken), POST),
        (&saying, POST),
        (&success, (&Method::POST, "/other")),
        (&success, get),
    ] {
        let (response, cached) = answer(&cache, reply, line, ASKED_AT).await;
        assert_eq!(cached, Some(false), "{reply:?} {line:?}");
        assert_eq!(response.body(), &Bytes::from(reply.json()));
        assert!(verifies(&response, line.0.as_str(), line.1));
        let (_, cached) = answer(&cache, reply, line, ASKED_AT).await;
        assert_eq!(cached, Some(true), "{reply:?} {line:?}");
    }
    let (later, cached) = answer(&cache, &success, POST, ASKED_AT + 1_000).await;
    assert_eq!(cached, Some(false), "in another second it has another time");
    assert_eq!(header(&later, "response-time"), "2026-11-23T08:00:01+08:00");
    assert!(verifies(&later, "POST", TARGET));
}

#[tokio::test]
async fn an_answer_to_who_is_turned_away_is_the_same_in_bytes() {
    let cache = cache();
    let second = ASKED_AT / 1_000;
    let kept = |at| cache.turned_away(at, TARGET, "FIRST");
    let success = Reply::of(ResultCode::Success);
    answer(&cache, &success, POST, ASKED_AT).await;
    assert_eq!(kept(second), None, "only one that says so is kept for it");

    let busy = Reply::of(ResultCode::RequestTrafficExceedLimit);
    let (response, _) = answer(&cache, &busy, POST, ASKED_AT).await;
    let bytes = kept(second).expect("it is kept");
    let mut headers = [httparse::EMPTY_HEADER; 8];
    let mut read = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head) = read.parse(&bytes).unwrap() else { panic!("a head") };
    assert_eq!((read.version, read.code, read.reason), (Some(1), Some(200), Some("OK")));
    assert_eq!(&bytes[head..], &response.body()[..]);
    let read: Vec<(&str, &str)> =
        read.headers.iter().map(|it| (it.name, std::str::from_utf8(it.value).unwrap())).collect();
    let length = response.body().len().to_string();
    let mut expected: Vec<(&str, &str)> =
        ["content-type", "client-id", "response-time", "signature"]
            .map(|name| (name, header(&response, name)))
            .into();
    expected.push(("content-length", &length));
    expected.push(("date", "Mon, 23 Nov 2026 00:00:00 GMT"));
    assert_eq!(read, expected);
    assert_eq!(expected.len(), HEADERS);

    for (at, target, client) in [
        (second + 1, TARGET, "FIRST"),
        (second - 1, TARGET, "FIRST"),
        (second, "/other", "FIRST"),
        (second, TARGET, "SECOND"),
    ] {
        assert_eq!(cache.turned_away(at, target, client), None);
    }
}

#[tokio::test]
async fn what_was_long_in_signing_takes_no_answer_of_now_away() {
    let client = id();
    let address = to(TARGET, &client);
    let cache = cache();
    let success = Reply::of(ResultCode::Success);
    answer(&cache, &success, POST, ASKED_AT).await;
    let second = ASKED_AT / 1_000;
    let sealed = cache.answer(second, address, ResultCode::Success).expect("it is kept");
    let is_kept = |second| cache.answer(second, address, ResultCode::Success).is_some();
    for late in [1, 2] {
        cache.keep(second - late, address, ResultCode::Success, &sealed);
        assert!(is_kept(second) && !is_kept(second - late), "{late} s late");
    }
    // the clock was set back
    cache.keep(second - 3, address, ResultCode::Success, &sealed);
    assert!(!is_kept(second) && is_kept(second - 3));
    cache.keep(second, address, ResultCode::Success, &sealed);
    assert!(is_kept(second) && !is_kept(second - 3));
}

#[tokio::test]
async fn there_is_an_end_to_what_is_kept_of_a_second() {
    const ENTRIES_MAX: usize = 4_096;
    const ENTRY_BYTES_MAX: usize = 2_048;
    let client = id();
    let cache = cache();
    let second = ASKED_AT / 1_000;
    answer(&cache, &Reply::of(ResultCode::Success), POST, ASKED_AT).await;
    let sealed = cache.answer(second, to(TARGET, &client), ResultCode::Success);
    let sealed = sealed.expect("it is kept");
    let kept = |target: &str| {
        cache.keep(second, to(target, &client), ResultCode::Success, &sealed);
        cache.answer(second, to(target, &client), ResultCode::Success).is_some()
    };
    assert!(kept(&"x".repeat(ENTRY_BYTES_MAX)));
    assert!(!kept(&"x".repeat(ENTRY_BYTES_MAX + 1)));
    // the same one again takes no room
    assert!(kept(TARGET) && kept(TARGET));
    let fit = (0..ENTRIES_MAX).filter(|nth| kept(&nth.to_string())).count();
    assert_eq!(fit, ENTRIES_MAX - 2);
    // a GET is nobody's who is turned away
    let get = Address { method: &Method::GET, ..to(TARGET, &client) };
    assert!(cache.answer(second, get, ResultCode::Success).is_none());
}
