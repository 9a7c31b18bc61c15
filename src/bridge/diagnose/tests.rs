//! Every cause, from a message that was made with it.

use std::sync::LazyLock;

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{RSA_PKCS1_SHA512, RSA_PSS_SHA256, RsaEncoding, RsaKeyPair},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::*;
use crate::bridge::{keys::PrivateKey, signature};

static KEYS: LazyLock<[PrivateKey; 4]> =
    LazyLock::new(|| std::array::from_fn(|_| PrivateKey::generate(2048).unwrap()));

const PATH: &str = "/aps/api/v1/payments/cancelPayment";
const TIME: &str = "2026-11-23T08:00:00+08:00";
const BODY: &str = r#"{"pspId":"1022","paymentRequestId":"a/b é","passThroughInfo":null}"#;

/// A message; what of it was signed is another question.
#[derive(Clone)]
struct Message {
    target: String,
    client: &'static str,
    time: &'static str,
    body: Vec<u8>,
    header: String,
}

fn message(signature: &[u8]) -> Message {
    Message {
        target: PATH.to_owned(),
        client: "FIRST",
        time: TIME,
        body: BODY.as_bytes().to_vec(),
        header: signature::header("1", signature),
    }
}

fn named(owner: Owner, version: &str, key: &PrivateKey) -> NamedKey {
    NamedKey { owner, version: Some(version.to_owned()), key: key.public().clone(), ended: false }
}

impl Message {
    fn capture(&self) -> Capture {
        let head = format!(
            "POST {} HTTP/1.1\r\nHost: wallet.example\r\nclient-id: {}\r\nRequest-Time: {}\r\nSignature: {}\r\n\r\n",
            self.target, self.client, self.time, self.header
        );
        Capture::parse(&[head.as_bytes(), &self.body].concat()).unwrap()
    }

    fn diagnosed(&self) -> Diagnosis {
        let client = |id: &str| Owner::Client(id.to_owned());
        let ended = NamedKey { ended: true, ..named(client("FIRST"), "0", &KEYS[3]) };
        let keys = [
            named(client("FIRST"), "1", &KEYS[0]),
            ended,
            named(client("SECOND"), "s", &KEYS[1]),
            named(Owner::Us, "w", &KEYS[2]),
        ];
        diagnose(&Question {
            capture: &self.capture(),
            line: ("POST", &self.target),
            keys: &keys,
            prefixes: &["/aps/api".to_owned(), "/public".to_owned()],
            clients: &["FIRST".to_owned(), "SECOND".to_owned()],
        })
    }
}

fn string(method: &str, target: &str, client: &str, time: &str, body: &str) -> Vec<u8> {
    signature::signed_string(method, target, client, time, body.as_bytes())
}

fn due() -> Vec<u8> {
    string("POST", PATH, "FIRST", TIME, BODY)
}

fn signed(string: &[u8]) -> Message {
    message(&KEYS[0].sign(string).unwrap())
}

#[track_caller]
fn assert_cause(diagnosis: &Diagnosis, code: &str, part: &str) {
    let codes: Vec<_> = diagnosis.causes.iter().map(|cause| cause.code).collect();
    assert_eq!(codes, [code], "{diagnosis:#?}");
    assert!(!diagnosis.verifies);
    assert!(diagnosis.causes[0].says.contains(part), "{part}: {}", diagnosis.causes[0].says);
}

#[test]
fn what_verifies_is_told_with_its_key() {
    let diagnosis = signed(&due()).diagnosed();
    assert!(diagnosis.verifies, "{diagnosis:#?}");
    assert!(diagnosis.verdict.starts_with("verifies with the key of client FIRST, version 1"));
    assert_eq!(diagnosis.causes, []);
}

#[test]
fn another_string_is_found_by_what_it_was() {
    let body = |text: &str| string("POST", PATH, "FIRST", TIME, text);
    let of = |head: &str| [head, BODY].concat().into_bytes();
    let pretty = "{\n  \"pspId\": \"1022\",\n  \"paymentRequestId\": \"a/b é\",\n  \"passThroughInfo\": null\n}";
    for (signed_string, code, part) in [
        (body(pretty), "body-rewritten", "indented by 2"),
        (body(&pretty.replace('\n', "\r\n")), "body-rewritten", "CR LF"),
        (body(&BODY.replace('/', "\\/")), "body-rewritten", "slashes escaped"),
        (body(&BODY.replace('é', "\\u00e9")), "body-rewritten", "escaped as `\\uxxxx`"),
        (
            body(&BODY.replace('é', "\\u00E9").replace(':', ": ").replace(',', ", ")),
            "body-rewritten",
            "as Python does",
        ),
        (
            body(r#"{"pspId":"1022","paymentRequestId":"a/b é"}"#),
            "body-rewritten",
            "null members left out",
        ),
        (
            body(r#"{"passThroughInfo":null,"paymentRequestId":"a/b é","pspId":"1022"}"#),
            "body-rewritten",
            "keys sorted",
        ),
        (
            body(r#"{"paymentRequestId":"a/b é","pspId":"1022","passThroughInfo":null}"#),
            "body-rewritten",
            "another order",
        ),
        (body(&format!("{BODY}\n")), "body-rewritten", "a line's end behind it"),
        (body(&format!("\u{feff}{BODY}")), "body-rewritten", "a byte order mark"),
        (body(""), "body-rewritten", "left out"),
        (body(&BODY.replace('é', "?")), "body-rewritten", "in ASCII"),
        (body(&BODY.replace('é', "Ã©")), "body-rewritten", "UTF-8 twice"),
        (
            string("POST", "/v1/payments/cancelPayment", "FIRST", TIME, BODY),
            "path",
            "without a prefix: `/v1/",
        ),
        (
            string("POST", "/public/v1/payments/cancelPayment", "FIRST", TIME, BODY),
            "path",
            "another prefix",
        ),
        (
            string("POST", &format!("/public{PATH}"), "FIRST", TIME, BODY),
            "path",
            "a prefix before it",
        ),
        (
            string("POST", &format!("https://wallet.example{PATH}"), "FIRST", TIME, BODY),
            "path",
            "with its host",
        ),
        (string("POST", &format!("{PATH}/"), "FIRST", TIME, BODY), "path", "a slash at its end"),
        (
            string("POST", "/aps/api/v1/authorizations/cancelToken", "FIRST", TIME, BODY),
            "path",
            "the other API",
        ),
        (string("GET", PATH, "FIRST", TIME, BODY), "method", "`GET`"),
        (string("post", PATH, "FIRST", TIME, BODY), "method", "`post`"),
        (string("POST", PATH, "first", TIME, BODY), "client-id", "`first`"),
        (string("POST", PATH, "SECOND", TIME, BODY), "client-id", "`SECOND`"),
        (string("POST", PATH, "FIRST", "2026-11-23T08:00:00+0800", BODY), "time", "+0800`"),
        (string("POST", PATH, "FIRST", "2026-11-23T00:00:00Z", BODY), "time", "00Z`"),
        (string("POST", PATH, "FIRST", "2026-11-23T00:00:00.123Z", BODY), "time", ".123Z`"),
        (string("POST", PATH, "FIRST", "1795392000000", BODY), "time", "`1795392000000`"),
        (string("POST", PATH, "FIRST", "1795392000417", BODY), "time", "`1795392000417`"),
        (string("POST", PATH, "FIRST", "", BODY), "time", "no time"),
        (BODY.as_bytes().to_vec(), "composition", "body alone"),
        (of(&format!("POST {PATH}FIRST.{TIME}.")), "composition", "line feed between"),
        (of(&format!("POST {PATH}\r\nFIRST.{TIME}.")), "composition", "CR LF"),
        (of(&format!("POST {PATH}\\nFIRST.{TIME}.")), "composition", "backslash"),
        (of(&format!("FIRST.{TIME}.")), "composition", "first line"),
        (of(&format!("POST {PATH}\n{TIME}.")), "composition", "Client-Id was left out"),
        (hex(&Hash::Sha256.of(&due())).into_bytes(), "composition", "digest in hex"),
        (Hash::Sha256.of(&due()), "composition", "hashed twice"),
    ] {
        assert_cause(&signed(&signed_string).diagnosed(), code, part);
    }
}

#[test]
fn two_changes_at_once_are_both_named() {
    let time = "2026-11-23T00:00:00Z";
    let diagnosis =
        signed(&string("POST", "/v1/payments/cancelPayment", "FIRST", time, BODY)).diagnosed();
    let codes: Vec<_> = diagnosis.causes.iter().map(|cause| cause.code).collect();
    assert_eq!(codes, ["path", "time"], "{diagnosis:#?}");
}

#[test]
fn a_key_that_is_not_due_is_named() {
    let by = |place: usize| message(&KEYS[place].sign(&due()).unwrap()).diagnosed();
    assert_cause(&by(1), "swapped-key", "signed with the key of client SECOND");
    assert_cause(&by(2), "own-key", "the wallet's key");
    let with = |version: &str, message: Message| {
        let header = message.header.replace("keyVersion=1", &format!("keyVersion={version}"));
        Message { header, ..message }.diagnosed()
    };
    assert_cause(&with("7", signed(&due())), "unknown-version", "keyVersion 7 is not known");
    assert_cause(&with("0", signed(&due())), "other-version", "the key of client FIRST, version 1");
    let ended = message(&KEYS[3].sign(&due()).unwrap());
    assert_cause(&with("0", ended), "ended-key", "has ended");

    let stranger = Message {
        client: "NOBODY",
        ..message(&KEYS[0].sign(&string("POST", PATH, "NOBODY", TIME, BODY)).unwrap())
    };
    assert_cause(&stranger.diagnosed(), "unknown-client", "NOBODY is not registered");

    let nobodys = message(&PrivateKey::generate(2048).unwrap().sign(&due()).unwrap()).diagnosed();
    assert_cause(&nobodys, "wrong-key", "no key at hand");
    assert!(nobodys.verdict.contains("none of the 4 at hand"), "{}", nobodys.verdict);
    let longer = message(&PrivateKey::generate(3072).unwrap().sign(&due()).unwrap()).diagnosed();
    assert!(longer.verdict.contains("it has 3072 bits"), "{}", longer.verdict);
}

#[test]
fn a_right_key_over_other_content_is_told_from_a_wrong_key() {
    let diagnosis = signed(b"something else entirely").diagnosed();
    assert_cause(&diagnosis, "content", "not what was captured");
    assert!(
        diagnosis.verdict.starts_with("the key is right, the content differs"),
        "{}",
        diagnosis.verdict
    );
    let held = hex(&Hash::Sha256.of(b"something else entirely"));
    assert!(diagnosis.evidence.iter().any(|(_, text)| text.ends_with(&held)), "{diagnosis:#?}");
}

#[test]
fn another_hash_or_padding_is_read_out_of_the_signature() {
    let pkcs8 = STANDARD.decode(KEYS[0].pkcs8_base64().unwrap().as_bytes()).unwrap();
    let pair = RsaKeyPair::from_pkcs8(&pkcs8).unwrap();
    let sign = |encoding: &'static dyn RsaEncoding, string: &[u8]| {
        let mut signature = vec![0; 256];
        pair.sign(encoding, &SystemRandom::new(), string, &mut signature).unwrap();
        message(&signature).diagnosed()
    };
    assert_cause(&sign(&RSA_PKCS1_SHA512, &due()), "hash", "SHA-512");
    assert_cause(&sign(&RSA_PSS_SHA256, &due()), "padding", "PSS");
    // and what was signed is seen through it all the same
    let other = sign(&RSA_PSS_SHA256, &string("GET", PATH, "FIRST", TIME, BODY));
    let codes: Vec<_> = other.causes.iter().map(|cause| cause.code).collect();
    assert_eq!(codes, ["padding", "method"], "{other:#?}");
}

#[test]
fn the_value_of_the_header_is_read_as_it_was_meant() {
    // with a `+` and a `/`, whatever the key
    let signature = (0..).map(|n| format!("2026-11-23T08:00:00.{n:03}+08:00")).find_map(|time| {
        let signature = KEYS[0].sign(&string("POST", PATH, "FIRST", &time, BODY)).unwrap();
        let base64 = STANDARD.encode(&signature);
        (base64.contains('+') && base64.contains('/')).then_some((time, base64, signature))
    });
    let (time, base64, bytes) = signature.unwrap();
    let time: &'static str = time.leak();
    let with = |header: String| Message { time, header, ..message(b"") }.diagnosed();
    let value = |value: &str| with(format!("algorithm=RSA256,keyVersion=1,signature={value}"));
    let once = base64.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");

    assert!(value(&once).verifies);
    let raw = value(&base64);
    assert!(raw.verifies && raw.notes[0].contains("not percent-encoded"), "{raw:#?}");
    assert!(value(&base64.replace('+', "-").replace('/', "_")).verifies);
    for (text, part) in [
        (once.replace('%', "%25"), "percent-encoded twice"),
        (base64.replace('+', " "), "became a blank"),
        (hex(&bytes), "in hex"),
        (STANDARD.encode(&base64), "base64 twice"),
        (format!("\"{base64}\""), "in quotes"),
        ("*".to_owned(), "holds no base64"),
    ] {
        assert_cause(&value(&text), "signature-encoding", part);
    }
    assert_cause(&with(format!("algorithm=RSA2,signature={once}")), "algorithm", "`RSA2`");
    assert_cause(&with(once), "algorithm", "algorithm none");
}

#[test]
fn a_header_that_is_missing_or_doubled_is_told_first() {
    let mut capture = signed(&due()).capture();
    capture.headers.retain(|(name, _)| name != "Request-Time");
    let diagnosed = |capture: &Capture| {
        let (line, keys) = (("POST", PATH), &[named(Owner::Given, "1", &KEYS[0])]);
        diagnose(&Question { capture, line, keys, prefixes: &[], clients: &[] })
    };
    assert_cause(&diagnosed(&capture), "header", "no Request-Time");
    capture.headers.extend(["a", "b"].map(|time| ("request-time".to_owned(), time.to_owned())));
    assert_cause(&diagnosed(&capture), "header", "2 times");
}

#[test]
fn an_answer_is_verified_by_the_line_of_its_request() {
    let body = r#"{"result":{}}"#;
    let string = string("POST", PATH, "FIRST", TIME, body);
    let answered = |key: usize, path: &str| {
        let header = signature::header("w", &KEYS[key].sign(&string).unwrap());
        let text = format!(
            "HTTP/1.1 200 OK\nclient-id: FIRST\nresponse-time: {TIME}\nsignature: {header}\n\n{body}"
        );
        let owners = [Owner::Client("FIRST".to_owned()), Owner::Us];
        let keys =
            [named(owners[0].clone(), "1", &KEYS[0]), named(owners[1].clone(), "w", &KEYS[2])];
        let capture = Capture::parse(text.as_bytes()).unwrap();
        let line = ("POST", path);
        diagnose(&Question { capture: &capture, line, keys: &keys, prefixes: &[], clients: &[] })
    };
    assert!(answered(2, PATH).verifies);
    assert_cause(&answered(0, PATH), "swapped-key", "which only signs requests");
    assert_cause(&answered(2, &format!("/proxy{PATH}")), "path", "without a prefix");
}

#[test]
fn captures_are_read_as_people_have_them() {
    let chunked =
        b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x\r\nde\r\n0\r\n\r\n";
    assert_eq!(Capture::parse(chunked).unwrap().body, b"abcde");
    let edited = b"POST /x HTTP/1.1\nContent-Length: 3\n\nabc\n";
    let capture = Capture::parse(edited).unwrap();
    assert_eq!((capture.body.as_slice(), capture.notes.len()), (&b"abc"[..], 1));
    let cut = Capture::parse(b"POST /x HTTP/1.1\nContent-Length: 9\n\nabc").unwrap();
    assert!(cut.notes[0].contains("Content-Length is 9, but the body has 3"), "{:?}", cut.notes);
    let curl =
        b"* Connected to x\n> POST /x HTTP/1.1\n> Client-Id: A\n> \n* done\n< HTTP/1.1 200 OK\n";
    let capture = Capture::parse(curl).unwrap();
    assert_eq!(capture.start, Start::Request("POST".to_owned(), "/x".to_owned()));
    assert_eq!(capture.header("client-id"), Some("A"));
    for (wrong, error) in [
        (&b" \n"[..], CaptureError::Empty),
        (b"{\"a\": 1}", CaptureError::FirstLine),
        (b"POST /x HTTP/1.1\n{\"a\"}", CaptureError::Header),
        (b"POST /\xff HTTP/1.1\n\n", CaptureError::NotText),
    ] {
        assert_eq!(Capture::parse(wrong).err(), Some(error));
    }
}

#[test]
fn nothing_of_a_body_is_told() {
    let body = r#"{"accessToken":"SECRET-TOKEN"}"#;
    for string in [due(), string("POST", PATH, "FIRST", TIME, body), b"other".to_vec()] {
        let message = Message { body: body.into(), ..signed(&string) };
        let told = format!("{:?}", message.diagnosed());
        assert!(!told.contains("SECRET") && !told.contains("accessToken"), "{told}");
    }
}
