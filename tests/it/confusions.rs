//! Confusions: a signature of another kind, a key of another's, a name that looks the same; and whoever wants the wallet's
//! own signature on a text of its choosing.

use std::collections::BTreeSet;

use alipayplus_cancel::bridge::signature::{self, SignatureHeader};
use aws_lc_rs::{
    hmac,
    rand::SystemRandom,
    rsa::KeyPair,
    signature::{
        RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256, RsaEncoding,
    },
};
use base64::{Engine as _, engine::general_purpose::STANDARD};

use crate::harness::{
    grpc::{
        Grant, Payment,
        wire::{GetPaymentRequest, IntrospectTokenRequest},
    },
    json::{Answer, Api, Framing, Request, payment_body, token_body},
    service::{OTHER_CLIENT, Service},
    unique,
    vectors::{self, CLIENT_ID, pem},
};

fn right() -> Request {
    Service::shared().json().request().body(payment_body("psp", "acquirer", &unique("confused")))
}

/// The text that is signed of a request that is right.
fn text(request: &Request) -> Vec<u8> {
    let (client, time) = (&request.client_ids[0], &request.times[0]);
    signature::signed_string(&request.method, &request.target, client, time, &request.body)
}

fn with(request: &Request, algorithm: &str, version: &str, signature: &[u8]) -> Answer {
    let value = STANDARD.encode(signature);
    let header = format!("algorithm={algorithm},keyVersion={version},signature={value}");
    request.clone().signatures(&[&header]).send()
}

/// The client's own key, to sign otherwise than it may.
fn pair() -> KeyPair {
    let pem = pem("test_alipayplus", "pkcs8_pem");
    let base64: String = pem.lines().filter(|line| !line.starts_with("---")).collect();
    KeyPair::from_pkcs8(&STANDARD.decode(base64).unwrap()).unwrap()
}

fn signed_as(encoding: &'static dyn RsaEncoding, text: &[u8]) -> Vec<u8> {
    let pair = pair();
    let mut signature = vec![0; pair.public_modulus_len()];
    pair.sign(encoding, &SystemRandom::new(), text, &mut signature).unwrap();
    signature
}

// ---------------------------------------------------------------- of algorithms

#[test]
fn a_signature_of_another_kind_is_none_whatever_it_calls_itself() {
    let request = right();
    let text = text(&request);
    with(&request, "RSA256", "1", &signed_as(&RSA_PKCS1_SHA256, &text)).expect("SUCCESS");
    let request = right();
    let text = self::text(&request);
    let good = signed_as(&RSA_PKCS1_SHA256, &text);
    // keyed with what everybody knows of the client
    let public = STANDARD.decode(vectors::alipayplus().public().spki_base64()).unwrap();
    let keyed = |key: &[u8]| {
        let key = hmac::Key::new(hmac::HMAC_SHA256, key);
        hmac::sign(&key, &text).as_ref().to_vec()
    };
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &text);
    let others = [
        ("PSS", signed_as(&RSA_PSS_SHA256, &text)),
        ("SHA-384", signed_as(&RSA_PKCS1_SHA384, &text)),
        ("SHA-512", signed_as(&RSA_PKCS1_SHA512, &text)),
        ("a hash of the hash", signed_as(&RSA_PKCS1_SHA256, digest.as_ref())),
        ("HMAC with the public key", keyed(&public)),
        ("HMAC with its PEM", keyed(pem("test_alipayplus", "spki_pem").as_bytes())),
        ("HMAC with nothing", keyed(b"")),
        ("the hash itself", digest.as_ref().to_vec()),
        ("the text itself", text.clone()),
        ("one", [vec![0; 255], vec![1]].concat()),
        ("zeros", vec![0; 256]),
        ("ones", vec![255; 256]),
        ("a zero before it", [&[0], &good[..]].concat()),
        ("a byte behind it", [&good[..], &[0]].concat()),
        ("twice", [&good[..], &good].concat()),
        ("cut off", good[..255].to_vec()),
        ("backwards", good.iter().rev().copied().collect()),
    ];
    for (what, signature) in &others {
        for algorithm in ["RSA256", "HS256", "RS256", "PS256", "RSA384", "RSA512", "none", "SHA256"]
        {
            let answer = with(&request, algorithm, "1", signature);
            assert_eq!(answer.code(), "INVALID_SIGNATURE", "{what}, {algorithm}");
            answer.assert_signed();
        }
    }
    // a right one does not become right by another name
    for algorithm in [
        "RS256",
        "RSA-256",
        "RSA2560",
        "RSA256.",
        "SHA256withRSA",
        "RSA",
        "RSA256 RSA256",
        "\"RSA256\"",
        "RSA%32%35%36",
        "rsa256;none",
        "*",
    ] {
        let answer = with(&request, algorithm, "1", &good);
        assert_eq!(answer.code(), "INVALID_SIGNATURE", "{algorithm}");
    }
}

// ---------------------------------------------------------------- of key versions

#[test]
fn a_key_version_names_one_key_of_this_client_and_nothing_more() {
    for version in [
        "01", "1.0", "+1", "1 1", "1/../1", "../1", "*", "%31", "\\u0031", "\"1\"", "'1'", "1'--",
        "1;ended", "1|ended", "true", "null", "-1", "0", "ENDED", "other-1", "1=1", "1\tended",
    ] {
        right().key_version(Some(version)).send().expect("KEY_NOT_FOUND").assert_signed();
    }
    // white space around it belongs to the list, not to it
    let request = right();
    let value = request.signature().replace("keyVersion=1", "keyVersion=\t 1 ");
    request.signatures(&[&value]).send().expect("SUCCESS");
    // what is not ASCII is no header of ours
    for version in ["\u{ff11}", "1\u{200b}", "\u{a0}1"] {
        right().key_version(Some(version)).send().expect("INVALID_SIGNATURE");
    }
}

#[test]
fn one_clients_key_under_anothers_name_is_nothing() {
    let (ours, theirs) = (Service::shared().json(), Service::shared().other_json());
    let body = payment_body("psp", "acquirer", &unique("confused"));
    for (client, version, key, code) in [
        // its own key under the other's name, and under the other's version
        (&ours.client_id, &ours.key_version, &theirs.key, "INVALID_SIGNATURE"),
        (&ours.client_id, &theirs.key_version, &theirs.key, "KEY_NOT_FOUND"),
        (&theirs.client_id, &theirs.key_version, &ours.key, "INVALID_SIGNATURE"),
        (&theirs.client_id, &ours.key_version, &ours.key, "KEY_NOT_FOUND"),
        // the wallet's own, which signs answers in the same form
        (&ours.client_id, &ours.key_version, vectors::wallet(), "INVALID_SIGNATURE"),
        (&theirs.client_id, &theirs.key_version, vectors::wallet(), "INVALID_SIGNATURE"),
    ] {
        let request = ours.request().body(body.clone()).client_ids(&[client]);
        let answer = request.key_version(Some(version)).key(key).send();
        answer.expect(code).assert_signed();
        let request = ours.request().body(body.clone()).client_ids(&[client]);
        request.key_version(None).key(key).send().expect("INVALID_SIGNATURE");
    }
}

// ---------------------------------------------------------------- of a signature that is not where it should be

#[test]
fn a_signature_counts_in_its_header_alone() {
    let request = right();
    let header = request.signature();
    let stripped = |request: Request| request.signatures(&[]);
    for name in ["X-Signature", "Signature2", "Signatur", "Signature_", "Authorization", "Cookie"] {
        let answer = stripped(request.clone()).header(name, &header).send();
        answer.expect("INVALID_SIGNATURE").assert_signed();
    }
    // in a trailer
    let chunked = stripped(request.clone()).framing(Framing::Chunked(1_000));
    let bytes = chunked.bytes();
    let trailer = format!("0\r\nSignature: {header}\r\n\r\n");
    let bytes = [&bytes[..bytes.len() - 5], trailer.as_bytes()].concat();
    let mut connection = Service::shared().json().connect();
    connection.write(&bytes);
    chunked.answer_on(&mut connection).expect("an answer").expect("INVALID_SIGNATURE");
    // in a query, which is signed for
    let target = format!("{}?signature={}", request.target, &header[header.len() - 100..]);
    stripped(request.clone()).target(&target).send().expect("INVALID_SIGNATURE");
    // in two lines, which some would join
    let (first, rest) = header.split_once(",keyVersion").unwrap();
    let rest = format!("keyVersion{rest}");
    request.clone().signatures(&[first, &rest]).send().expect("INVALID_SIGNATURE");
    request.clone().signatures(&[&header, ""]).send().expect("INVALID_SIGNATURE");
    request.clone().signatures(&["", &header]).send().expect("INVALID_SIGNATURE");
    // and nothing of all that was decided
    request.send().expect("SUCCESS");
}

#[test]
fn no_byte_moves_from_one_part_of_the_signed_text_to_another() {
    // the text joins its parts by dots: what is cut elsewhere has the same text, and must not be read
    let request = right();
    let header = request.signature();
    let (client, time) = (request.client_ids[0].clone(), request.times[0].clone());
    let body = String::from_utf8(request.body.clone()).unwrap();
    let (seconds, rest) = time.split_once('.').expect("a fraction");
    let moved = [
        (format!("{client}.{seconds}"), rest.to_owned(), body.clone()),
        (client.clone(), seconds.to_owned(), format!("{rest}.{body}")),
        (client.clone(), format!("{time}.{}", &body[..1]), body[1..].to_owned()),
        (client.clone(), format!("{time}."), body.clone()),
        (client[..client.len() - 1].to_owned(), time.clone(), body.clone()),
    ];
    for (client, time, body) in moved {
        let request = request.clone().client_ids(&[&client]).times(&[&time]).body(body);
        let answer = request.signatures(&[&header]).send();
        assert_eq!(answer.result_status(), "F", "{client:?}, {time:?}: {}", answer.code());
    }
    // an upper part: of the path to the method, of the client to the path
    for (method, target) in [
        (format!("POST {}", request.target), String::new()),
        ("POST".to_owned(), format!("{}\\n{client}", request.target)),
    ] {
        let request = request.clone().method(&method).target(&target).signatures(&[&header]);
        let mut connection = Service::shared().json().connect();
        connection.write(&request.bytes());
        connection.finish();
        if let Some(answer) = connection.answer(true) {
            assert!(answer.status != 200 || answer.code() != "SUCCESS", "{method}");
        }
    }
}

// ---------------------------------------------------------------- of the service as an oracle

/// What answers may say to whoever did not prove itself: a few sentences, none of them his.
fn body_is_ours(answer: &Answer) {
    let text = String::from_utf8(answer.body.clone()).expect("UTF-8");
    assert!(text.len() < 300 && text.is_ascii(), "{text}");
    let begin = "{\"result\":{\"resultCode\":\"";
    assert!(text.starts_with(begin) && text.ends_with("\"}}"), "{text}");
}

#[test]
fn an_outsider_gets_nothing_signed_of_its_own_choosing() {
    let json = Service::shared().json();
    let served = [Api::CancelPayment.path(), Api::CancelToken.path()];
    let chosen = "CHOSEN-TEXT-7f3a";
    let mut bodies: BTreeSet<Vec<u8>> = BTreeSet::new();
    let (mut signed, mut plain) = (0, 0);
    let targets = [
        served[0].to_owned(),
        served[1].to_owned(),
        format!("{}?{chosen}", served[0]),
        format!("{}/{chosen}", served[0]),
        format!("/{chosen}"),
        format!("{}%00{chosen}", served[0]),
        format!("{};{chosen}", served[0]),
        format!("//{}", served[0]),
    ];
    let clients = [
        CLIENT_ID.to_owned(),
        OTHER_CLIENT.to_owned(),
        chosen.to_owned(),
        format!("{CLIENT_ID}.{chosen}"),
        CLIENT_ID.to_ascii_lowercase(),
        String::new(),
    ];
    let times = ["2025-02-20T08:51:49.09Z", chosen, "2099-01-01T00:00:00+08:00"];
    for method in ["POST", "GET", "PUT", chosen] {
        for target in &targets {
            for client in &clients {
                for time in times {
                    let body = format!("{{\"{chosen}\":\"{chosen}\"}}");
                    let request = json.request().method(method).target(target).body(body);
                    let request = request.client_ids(&[client]).times(&[time]);
                    let answer = request.signatures(&[chosen]).send();
                    assert_ne!(answer.result_status(), "S");
                    body_is_ours(&answer);
                    assert!(!String::from_utf8_lossy(&answer.body).contains(chosen));
                    if answer.header("signature").is_none() {
                        answer.assert_unsigned();
                        plain += 1;
                        continue;
                    }
                    signed += 1;
                    answer.assert_signed();
                    assert_eq!(method, "POST");
                    assert!(served.contains(&&**target), "{target}");
                    assert!([CLIENT_ID, OTHER_CLIENT].contains(&&**client), "{client}");
                    assert_ne!(answer.header("response-time"), Some(time), "the time is ours");
                    bodies.insert(answer.body.clone());
                }
            }
        }
    }
    assert_eq!((signed, plain), (12, 564), "POST to two paths by two clients, at three times");
    assert_eq!(bodies.len(), 2, "a few fixed answers: {bodies:?}");
}

#[test]
fn an_answer_is_no_request() {
    // answers and requests are signed in one form; an answer's signature must not ask anything of us
    let json = Service::shared().json();
    let answer = right().send();
    answer.expect("SUCCESS").assert_signed();
    let (time, header) = (answer.header("response-time"), answer.header("signature"));
    let request = json.request().times(&[time.expect("a time")]).body(answer.body.clone());
    let request = request.signatures(&[header.expect("a signature")]);
    request.send().expect("INVALID_SIGNATURE").assert_signed();
    // nor does what the wallet signs verify as any client's
    let read = SignatureHeader::parse(header.unwrap()).unwrap();
    let text = signature::signed_string(
        "POST",
        &answer.target,
        &answer.client,
        time.unwrap(),
        &answer.body,
    );
    assert!(vectors::wallet().public().verify(&text, &read.signature));
    for key in [&json.key, &Service::shared().other_json().key] {
        assert!(!key.public().verify(&text, &read.signature));
    }
}

// ---------------------------------------------------------------- of names that look the same

/// Ways to write what looks like `a1` and is not.
const LOOKALIKES: [&str; 12] = [
    "\u{430}1",    // Cyrillic
    "a\u{200b}1",  // zero width space
    "a1\u{200d}",  // zero width joiner
    "\u{202e}1a",  // right to left
    "a1\u{202c}",  // and back
    "a\u{ad}1",    // soft hyphen
    "\u{ff41}1",   // full width
    "a\u{ff11}",   // full width
    "a1\u{fe0f}",  // variation selector
    "a\u{2060}1",  // word joiner
    "a\u{e0061}1", // tag
    "a1\u{301}",   // an accent on the digit
];

#[test]
fn what_looks_the_same_is_not_the_same() {
    let (json, grpc) = (Service::shared().json(), Service::shared().grpc());
    let psp = unique("psp");
    json.cancel_payment(&psp, "acquirer", "a1").expect("SUCCESS");
    let known = |id: &str| {
        let (psp_id, payment_request_id) = (psp.clone(), id.to_owned());
        grpc.get_payment(GetPaymentRequest { psp_id, payment_request_id }).is_ok()
    };
    assert!(known("a1"));
    for id in LOOKALIKES {
        assert!(!known(id), "{id:?} is not a1");
        // another payment, so another acquirer's cancel of it is no contradiction
        json.cancel_payment(&psp, "other acquirer", id).expect("SUCCESS");
        json.cancel_payment(&psp, "other acquirer", "a1").expect("ACCESS_DENIED");
    }
    // nor a token, nor a wallet
    let grant = Grant::new();
    let token = unique("token-a1");
    grpc.record_token(grant.token(&token)).expect("recorded");
    for letter in ["\u{430}", "a\u{200b}", "\u{ff41}", "A"] {
        let other = token.replace("a1", &format!("{letter}1"));
        let body = token_body(&grant.psp, &grant.acquirer, &other);
        json.request().api(Api::CancelToken).body(body).send().expect("INVALID_TOKEN");
    }
    let asked = IntrospectTokenRequest { psp_id: grant.psp.clone(), token };
    assert!(grpc.introspect_token(asked).expect("an answer").active, "none of them revoked it");
}

#[test]
fn a_client_is_known_by_the_very_bytes_of_its_name() {
    for name in [
        format!("{CLIENT_ID}\u{200b}"),
        format!("{CLIENT_ID}\u{a0}"),
        CLIENT_ID.replace('A', "\u{410}"),
        CLIENT_ID.to_ascii_lowercase(),
        format!("{CLIENT_ID},{OTHER_CLIENT}"),
        format!("{CLIENT_ID};"),
        format!("\"{CLIENT_ID}\""),
        format!("{CLIENT_ID}%00"),
        CLIENT_ID.replace('_', "%5F"),
        format!("../{CLIENT_ID}"),
    ] {
        let answer = right().client_ids(&[&name]).send();
        answer.expect("INVALID_CLIENT").assert_unsigned();
    }
    // white space around a value is HTTP's, not the name's
    let padded = right();
    let header = padded.signature();
    let padded = padded.client_ids(&[&format!("\t {CLIENT_ID} \t")]).signatures(&[&header]);
    let mut connection = Service::shared().json().connect();
    connection.write(&padded.bytes());
    assert_eq!(connection.answer(true).expect("an answer").code(), "SUCCESS");
    for time in [
        "\u{ff12}025-02-20T08:51:49Z",
        "2025-02-20T08:51:49Z\u{200b}",
        "2025\u{2010}02-20T08:51:49Z",
    ] {
        right().times(&[time]).send().expect("PARAM_ILLEGAL").assert_signed();
    }
}

// ---------------------------------------------------------------- of two readers of one body

#[test]
fn a_decoy_beside_a_parameter_changes_nothing_of_it() {
    let (json, grpc) = (Service::shared().json(), Service::shared().grpc());
    let decoys = [
        r#""paymentRequestId\u0000":"DECOY""#,
        r#""paymentRequestId ":"DECOY""#,
        r#"" paymentRequestId":"DECOY""#,
        r#""paymentRequestID":"DECOY""#,
        r#""PaymentRequestId":"DECOY""#,
        r#""payment_request_id":"DECOY""#,
        r#""paymentRequestId\u200b":"DECOY""#,
        r#""\ufeffpaymentRequestId":"DECOY""#,
        r#""p\u0430ymentRequestId":"DECOY""#,
        r#""paymentRequest\u0131d":"DECOY""#,
        r#""paymentRequestId[]":"DECOY""#,
        r#""paymentRequestId.0":"DECOY""#,
        r#""$.paymentRequestId":"DECOY""#,
        r#""__proto__":{"paymentRequestId":"DECOY"}"#,
        r#""constructor":{"prototype":{"paymentRequestId":"DECOY"}}"#,
        r#""$ref":"DECOY""#,
        r#""@type":"DECOY""#,
        r#""":{"paymentRequestId":"DECOY"}"#,
        r#""x":{"acquirerId":"DECOY","pspId":"DECOY","paymentRequestId":"DECOY"}"#,
        r#""x":[{"paymentRequestId":"DECOY"}]"#,
        r#""x":"\"paymentRequestId\":\"DECOY\"""#,
        r#""x":"\\","y":"paymentRequestId""#,
    ];
    for decoy in decoys {
        let other = unique("decoy");
        let decoy = decoy.replace("DECOY", &other);
        for in_front in [true, false] {
            let payment = Payment::new();
            let body = payment_body(&payment.psp, &payment.acquirer, &payment.request);
            let inner = &body[1..body.len() - 1];
            let body = if in_front {
                format!("{{{decoy},{inner}}}")
            } else {
                format!("{{{inner},{decoy}}}")
            };
            json.request().body(body).send().expect("SUCCESS").assert_signed();
            let known = |id: &str| {
                let (psp_id, payment_request_id) = (payment.psp.clone(), id.to_owned());
                grpc.get_payment(GetPaymentRequest { psp_id, payment_request_id }).is_ok()
            };
            assert!(known(&payment.request) && !known(&other), "{decoy}");
        }
    }
}

#[test]
fn a_body_in_another_encoding_or_dialect_is_refused() {
    let body = payment_body("psp", "acquirer", &unique("dialect"));
    let inner = body[1..body.len() - 1].to_owned();
    let sixteen = |big: bool| -> Vec<u8> {
        let bytes = |unit: u16| if big { unit.to_be_bytes() } else { unit.to_le_bytes() };
        body.encode_utf16().flat_map(bytes).collect()
    };
    let thirty_two: Vec<u8> = body.chars().flat_map(|c| u32::from(c).to_le_bytes()).collect();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("UTF-16, big end first", sixteen(true)),
        ("UTF-16, little end first", sixteen(false)),
        ("UTF-16 with a mark", [&[0xff, 0xfe][..], &sixteen(false)].concat()),
        ("UTF-32", thirty_two),
        ("UTF-7", body.replace('{', "+AHs-").into_bytes()),
        ("gzip", [&[0x1f, 0x8b, 8][..], body.as_bytes()].concat()),
        ("a form", b"acquirerId=a&pspId=p&paymentRequestId=r".to_vec()),
        ("XML", b"<acquirerId>a</acquirerId>".to_vec()),
        ("a comment", format!("{{{inner}/* x */}}").into_bytes()),
        ("a comment to the end of the line", format!("{{{inner}}} // x").into_bytes()),
        ("a hash", format!("{{{inner}}} # x").into_bytes()),
        ("single quotes", body.replace('"', "'").into_bytes()),
        ("names without quotes", body.replace("\"pspId\"", "pspId").into_bytes()),
        ("a comma at the end", format!("{{{inner},}}").into_bytes()),
        ("Infinity", format!("{{{inner},\"x\":Infinity}}").into_bytes()),
        ("hex", format!("{{{inner},\"x\":0x10}}").into_bytes()),
        ("a point without digits", format!("{{{inner},\"x\":1.}}").into_bytes()),
        ("a plus", format!("{{{inner},\"x\":+1}}").into_bytes()),
        ("True", format!("{{{inner},\"x\":True}}").into_bytes()),
        ("undefined", format!("{{{inner},\"x\":undefined}}").into_bytes()),
        ("another space", body.replace(':', ":\u{a0}").into_bytes()),
        ("a vertical tab", body.replace(':', ":\u{b}").into_bytes()),
        ("a line separator", format!("\u{2028}{body}").into_bytes()),
        ("two lines of JSON", format!("{body}\n{body}").into_bytes()),
        ("a record separator", format!("\u{1e}{body}\n").into_bytes()),
        ("a prefix against hijacking", format!(")]}}',\n{body}").into_bytes()),
        ("a name as a number", format!("{{{inner},1:2}}").into_bytes()),
        ("an array with a hole", format!("{{{inner},\"x\":[1,,2]}}").into_bytes()),
        ("an escaped surrogate in halves", body.replace("psp\"", "psp\\ud83d\"").into_bytes()),
        ("a long form of a character", {
            let at = body.find("psp\"").unwrap();
            [&body.as_bytes()[..at], &[0xc1, 0xb0], &body.as_bytes()[at + 1..]].concat()
        }),
    ];
    for (what, body) in cases {
        let answer = Service::shared().json().request().body(body).send();
        assert_eq!(answer.code(), "PARAM_ILLEGAL", "{what}");
        assert!(answer.message().starts_with("body: "), "{what}: {}", answer.message());
        answer.assert_signed();
    }
}
