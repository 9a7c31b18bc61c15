//! Signatures on the wire: what official clients made is taken, what is wrong is not, ours are openssl's.

use std::{
    fs,
    process::{Command, Stdio},
};

use alipayplus_cancel::bridge::signature::SignatureHeader;
use serde_json::Value;

use crate::harness::{
    json::{Api, Json, Request, payment_body},
    service::Service,
    unique,
    vectors::{self, vectors},
};

fn cases(kind: &str) -> impl Iterator<Item = &'static Value> {
    let cases = vectors()[kind].as_array().expect("cases");
    cases.iter().filter(|case| case["kind"] == "request")
}

fn text(value: &'static Value) -> &'static str {
    value.as_str().expect("a text")
}

/// Its Signature header in every spelling.
fn spellings(case: &'static Value) -> Vec<(String, String)> {
    let own = text(&case["headers"]["Signature"]).to_owned();
    let also = case["accept_also"].as_object().expect("spellings").iter().map(|(name, value)| {
        let value = text(value);
        let whole = value.to_ascii_lowercase().contains("algorithm=");
        let header = if whole {
            value.to_owned()
        } else {
            format!("algorithm=RSA256,keyVersion=1,signature={value}")
        };
        (name.clone(), header)
    });
    also.chain([("as made".to_owned(), own)]).collect()
}

fn request(json: &Json, case: &'static Value, signature: &str) -> Request {
    json.request()
        .method(text(&case["method"]))
        .target(text(&case["path"]))
        .content_types(&[text(&case["headers"]["Content-Type"])])
        .client_ids(&[text(&case["headers"]["Client-Id"])])
        .times(&[text(&case["headers"]["Request-Time"])])
        .signatures(&[signature])
        .body(text(&case["body"]))
}

#[test]
fn every_signature_of_an_official_client_is_taken_in_every_spelling() {
    let json = Service::shared().json();
    let mut count = 0;
    for case in cases("positive") {
        // the payment is unknown and its cancel succeeds; the token is unknown and stays so
        let token = text(&case["path"]).contains("cancelToken");
        let code = if token { "INVALID_TOKEN" } else { "SUCCESS" };
        for (spelling, signature) in spellings(case) {
            let answer = request(&json, case, &signature).send();
            assert_eq!(answer.code(), code, "{}, {spelling}", case["name"]);
            answer.expect(code).assert_signed();
            count += 1;
        }
    }
    assert_eq!(count, 60, "ten requests in six spellings");
}

#[test]
fn no_signature_over_something_else_is_taken_in_any_spelling() {
    let json = Service::shared().json();
    for case in cases("negative") {
        for (_, signature) in spellings(case) {
            let answer = request(&json, case, &signature).send();
            answer.expect(text(&case["expect"])).assert_signed();
        }
    }
}

#[test]
fn our_signature_is_byte_for_byte_the_one_that_openssl_makes() {
    if Command::new("openssl").arg("version").stdout(Stdio::null()).status().is_err() {
        eprintln!("SKIPPED: no openssl on this machine");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (key, message) = (dir.path().join("key.pem"), dir.path().join("message"));
    fs::write(&key, vectors::pem("test_mpp", "pkcs8_pem")).unwrap();
    let json = Service::shared().json();
    for target in [Api::CancelPayment.path().to_owned(), format!("{}?a=b", Api::CancelToken.path())]
    {
        let answer = json.request().target(&target).body("{}").send();
        answer.expect("PARAM_ILLEGAL").assert_signed();
        let (client, time) = (vectors::CLIENT_ID, answer.header("response-time").unwrap());
        let mut string = format!("POST {target}\n{client}.{time}.").into_bytes();
        string.extend_from_slice(&answer.body);
        fs::write(&message, string).unwrap();
        let made = Command::new("openssl")
            .args(["dgst", "-sha256", "-sign"])
            .args([&key, &message])
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let ours = SignatureHeader::parse(answer.header("signature").unwrap()).unwrap();
        assert_eq!(ours.signature, made.stdout);
    }
}

fn right() -> Request {
    Service::shared().json().request().body(payment_body("psp", "acquirer", &unique("signed")))
}

/// The value of the right signature.
fn value(request: &Request) -> String {
    request.signature().rsplit_once("signature=").unwrap().1.to_owned()
}

#[test]
fn the_signature_header_is_read_in_any_order_case_and_spacing() {
    for form in [
        "algorithm=RSA256,keyVersion=1,signature=%",
        "algorithm=RSA256, keyVersion=1, signature=%",
        "algorithm=RSA256 ,\tkeyVersion=1 ,\tsignature=%",
        "signature=%,keyVersion=1,algorithm=RSA256",
        "SIGNATURE=%,KEYVERSION=1,ALGORITHM=rsa256",
        "Algorithm=Rsa256,keyversion=1,Signature=%",
        "algorithm=RSA256,keyVersion=1,more=less,signature=%,version=2",
        "algorithm=RSA256,signature=%",
    ] {
        let request = right();
        let header = form.replace('%', &value(&request));
        request.signatures(&[&header]).send().expect("SUCCESS").assert_signed();
    }
}

#[test]
fn a_signature_header_that_is_missing_doubled_or_malformed_is_refused() {
    let request = right();
    let value = value(&request);
    let header = request.signature();
    for form in [
        "",
        "nonsense",
        "%",
        "signature=%",
        "keyVersion=1,signature=%",
        "algorithm=RSA512,keyVersion=1,signature=%",
        "algorithm=none,keyVersion=1,signature=%",
        "algorithm=HS256,keyVersion=1,signature=%",
        "algorithm=RSA256,keyVersion=1",
        "algorithm=RSA256,keyVersion=1,signature=",
        "algorithm=RSA256,keyVersion=1,signature=*",
        "algorithm=RSA256,keyVersion=1,signature=%,signature=%",
        "algorithm=RSA256,algorithm=RSA256,keyVersion=1,signature=%",
        "algorithm=RSA256,keyVersion=1,keyVersion=1,signature=%",
        "algorithm=RSA256;keyVersion=1;signature=%",
        "algorithm=RSA256,keyVersion=1,signature=AAAA",
        "algorithm=RSA256,keyVersion=1,signature=\"%\"",
    ] {
        let form = form.replace('%', &value);
        let answer = request.clone().signatures(&[&form]).send();
        answer.expect("INVALID_SIGNATURE").assert_signed();
        assert!(!answer.message().contains(&value));
    }
    request.clone().signatures(&[]).send().expect("INVALID_SIGNATURE").assert_signed();
    let twice = request.clone().signatures(&[&header, &header]).send();
    twice.expect("INVALID_SIGNATURE").assert_signed();
    let long = format!("{header},pad={}", "x".repeat(5_000));
    request.signatures(&[&long]).send().expect("INVALID_SIGNATURE").assert_signed();
}

#[test]
fn a_key_version_that_is_unknown_or_ended_is_not_found() {
    for version in ["2", "01", "ONE", "1.0", "other-1"] {
        right().key_version(Some(version)).send().expect("KEY_NOT_FOUND").assert_signed();
    }
    // even with the very key that has ended
    let ended = right().key_version(Some("ended")).key(vectors::ended());
    ended.send().expect("KEY_NOT_FOUND").assert_signed();
}

#[test]
fn without_a_key_version_every_active_key_is_tried_and_no_ended_one() {
    right().key_version(None).send().expect("SUCCESS").assert_signed();
    let ended = right().key_version(None).key(vectors::ended());
    ended.send().expect("INVALID_SIGNATURE").assert_signed();
}

#[test]
fn the_key_of_another_client_does_not_verify() {
    right().key(vectors::other()).send().expect("INVALID_SIGNATURE").assert_signed();
    right().key(vectors::wallet()).send().expect("INVALID_SIGNATURE").assert_signed();
    let none = right().key_version(None).key(vectors::other());
    none.send().expect("INVALID_SIGNATURE").assert_signed();
}

#[test]
fn a_signature_covers_method_path_query_client_time_and_every_byte_of_the_body() {
    let changed: [fn(Request) -> Request; 6] = [
        |request| request.api(Api::CancelToken),
        |request| request.target("/aps/api/v1/payments/cancelPayment?x=1"),
        |request| request.times(&["2025-02-20T08:51:49.090Z"]),
        |request| {
            let body = [&request.body[..], b" "].concat();
            request.body(body)
        },
        |request| {
            let body = [b" ", &request.body[..]].concat();
            request.body(body)
        },
        |request| request.body(""),
    ];
    for change in changed {
        let request = right();
        let header = request.signature();
        change(request).signatures(&[&header]).send().expect("INVALID_SIGNATURE");
    }
    // signed with another name of the same client
    let other = Service::shared().other_json();
    let request = right();
    let header = request.signature();
    let answer = request.client_ids(&[&other.client_id]).key_version(None).signatures(&[&header]);
    // its keyVersion is none of the other's
    answer.send().expect("KEY_NOT_FOUND");
}

#[test]
fn one_flipped_bit_of_the_signature_is_one_too_many() {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let request = right();
    let parsed = SignatureHeader::parse(request.signature()).unwrap();
    for (byte, bit) in [(0, 7), (100, 0), (255, 0)] {
        let mut signature = parsed.signature.clone();
        signature[byte] ^= 1 << bit;
        let header =
            format!("algorithm=RSA256,keyVersion=1,signature={}", STANDARD.encode(&signature));
        request.clone().signatures(&[&header]).send().expect("INVALID_SIGNATURE").assert_signed();
    }
}
