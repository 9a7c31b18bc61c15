//! Bodies that are signed and still not what they should be: wire.md § Parameters, and the row about JSON.

use crate::harness::{
    json::{Answer, Api},
    service::Service,
    unique,
};

/// In some value of every refused body; no answer may repeat it.
const SECRET: &str = "s3cr3t-VALUE";

fn send(api: Api, body: impl Into<Vec<u8>>) -> Answer {
    let answer = Service::shared().json().request().api(api).body(body).send();
    answer.assert_signed();
    assert!(!String::from_utf8_lossy(&answer.body).contains(SECRET), "a value is repeated");
    answer
}

#[track_caller]
fn refused(api: Api, body: impl Into<Vec<u8>>, message: &str) {
    let answer = send(api, body);
    answer.expect("PARAM_ILLEGAL");
    let said = answer.message();
    assert!(said.starts_with(message), "expected {message:?}, got {said:?}");
}

/// cancelPayment's three fields as JSON text, in braces or not.
fn fields(id: &str) -> String {
    format!(r#""acquirerId":"a","pspId":"p","paymentRequestId":"{id}""#)
}

fn payment(more: &str) -> String {
    format!("{{{}{more}}}", fields(&unique("json")))
}

fn token(fields: &str) -> String {
    format!(r#"{{"acquirerId":"a","pspId":"p",{fields}}}"#)
}

#[test]
fn a_body_is_one_json_object_and_nothing_else() {
    let good = payment("");
    for body in [
        String::new(),
        " ".to_owned(),
        "null".to_owned(),
        "true".to_owned(),
        "1".to_owned(),
        format!("\"{SECRET}\""),
        "[]".to_owned(),
        format!(r#"["a","p","{SECRET}"]"#),
        format!("[{good}]"),
        format!("{good}{good}"),
        format!("{good},"),
        format!("{good}x"),
        format!("{good}\0"),
        format!("\u{feff}{good}"),
        format!("\0{good}"),
        format!("{good}//"),
        "{".to_owned(),
        "{}}".to_owned(),
        good[..good.len() - 1].to_owned(),
        good.replace("\"a\"", "'a'"),
        good.replace("\"pspId\"", "pspId"),
        good.replace('}', ",}"),
        good.replace("\"a\"", "\"a\u{1}\""),
        good.replace("\"a\"", "\"a\n\""),
        good.replace("\"a\"", r#""\x41""#),
        good.replace("\"a\"", r#""\u00g0""#),
        payment(",\"x\":NaN"),
        payment(",\"x\":01"),
        payment(",\"x\":+1"),
        payment(",\"x\":1e999"),
        payment(",\"x\":/**/1"),
    ] {
        refused(Api::CancelPayment, body, "body: ");
    }
    for body in [
        format!(" \t\r\n{good}\r\n\t "),
        good.replace(',', " ,\n").replace(':', "\t: "),
        good.replace("\"a\"", r#""\u0061""#),
    ] {
        send(Api::CancelPayment, body).expect("SUCCESS");
    }
}

#[test]
fn every_byte_of_a_body_is_utf8_in_unknown_fields_too() {
    let with = |value: &[u8], known: bool| {
        let body = if known { payment("") } else { payment(r#","memo":"a""#) };
        let at = if known { "\"a\"" } else { "\"memo\":\"a\"" };
        let at = body.find(at).unwrap() + at.len() - 2;
        [&body.as_bytes()[..at], value, &body.as_bytes()[at + 1..]].concat()
    };
    for known in [true, false] {
        for invalid in [
            &b"\xff"[..],
            b"\xc3",
            b"\xc0\xaf",
            b"\xed\xa0\x80",
            b"\xf4\x90\x80\x80",
            b"\xe9",
            br"\ud800",
            br"\udc00",
            br"\ud800\ud800",
            br"\udc00\ud800",
            br"\ud83dx",
        ] {
            refused(Api::CancelPayment, with(invalid, known), "body: ");
        }
        send(Api::CancelPayment, with(br"\ud83d\udcb3", known)).expect("SUCCESS");
        send(Api::CancelPayment, with("💳".as_bytes(), known)).expect("SUCCESS");
    }
    // in a key, too
    refused(Api::CancelPayment, payment(r#","\ud800":"x""#), "body: ");
    let key = payment(r#","k":"x""#).replace("\"k\"", "\"K\"").into_bytes();
    let key: Vec<u8> = key.into_iter().map(|byte| if byte == b'K' { 0xff } else { byte }).collect();
    refused(Api::CancelPayment, key, "body: ");
}

#[test]
fn no_key_stands_twice_in_an_object_however_it_is_spelled() {
    for more in [
        r#","pspId":"p""#,
        r#","pspId":null"#,
        r#","p\u0073pId":"p""#,
        r#","\u0070\u0073\u0070\u0049\u0064":"p""#,
        r#","x":1,"x":1"#,
        r#","x":1,"\u0078":2"#,
        r#","x":{"y":1,"y":2}"#,
        r#","x":[{"y":1,"\u0079":2}]"#,
    ] {
        refused(Api::CancelPayment, payment(more), "body: duplicate key");
    }
    // the same key in different objects is not twice
    let nested = r#","x":{"pspId":"q","x":{"x":1}},"y":[{"z":1},{"z":2}]"#;
    send(Api::CancelPayment, payment(nested)).expect("SUCCESS");
}

#[test]
fn a_body_nests_eight_levels_and_not_nine() {
    let arrays = |levels: usize| format!(r#","x":{}{}"#, "[".repeat(levels), "]".repeat(levels));
    let objects =
        |levels: usize| format!(r#","x":{}1{}"#, r#"{"y":"#.repeat(levels), "}".repeat(levels));
    for make in [&arrays as &dyn Fn(usize) -> String, &objects] {
        send(Api::CancelPayment, payment(&make(7))).expect("SUCCESS");
        refused(Api::CancelPayment, payment(&make(8)), "body: nested deeper");
        refused(Api::CancelPayment, payment(&make(200)), "body: nested deeper");
        refused(Api::CancelPayment, payment(&make(50_000)), "body: ");
    }
}

#[test]
fn a_body_has_64_keys_and_not_65() {
    let keys = |count: usize| (0..count).map(|n| format!(r#","k{n}":{n}"#)).collect::<String>();
    send(Api::CancelPayment, payment(&keys(61))).expect("SUCCESS");
    refused(Api::CancelPayment, payment(&keys(62)), "body: more than 64 keys");
    let nested = |count: usize| {
        let keys = keys(count);
        format!(r#","x":{{{}}}"#, &keys[1..])
    };
    send(Api::CancelPayment, payment(&nested(60))).expect("SUCCESS");
    refused(Api::CancelPayment, payment(&nested(61)), "body: more than 64 keys");
}

#[test]
fn every_parameter_is_a_string() {
    for value in ["1", "1.5", "true", "false", "{}", "[]", r#"["a"]"#, r#"{"a":"b"}"#] {
        for name in ["acquirerId", "pspId", "paymentRequestId"] {
            let body = serde_body(&[("acquirerId", "\"a\""), ("pspId", "\"p\"")], name, value);
            refused(Api::CancelPayment, body, &format!("{name}: must be a string"));
        }
        refused(
            Api::CancelToken,
            token(&format!(r#""accessToken":{value}"#)),
            "accessToken: must be a string",
        );
        let body = token(&format!(r#""accessToken":"{SECRET}","passThroughInfo":{value}"#));
        refused(Api::CancelToken, body, "passThroughInfo: must be a string");
    }
}

/// A cancelPayment with one field's JSON replaced.
fn serde_body(others: &[(&str, &str)], name: &str, value: &str) -> String {
    let id = format!("\"{SECRET}\"");
    let mut all: Vec<(&str, &str)> = others.to_vec();
    all.push(("paymentRequestId", &id));
    let fields = all
        .iter()
        .map(|&(known, own)| format!(r#""{known}":{}"#, if known == name { value } else { own }));
    format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
}

#[test]
fn a_required_parameter_is_there_and_neither_null_nor_empty() {
    let others = [("acquirerId", "\"a\""), ("pspId", "\"p\"")];
    for name in ["acquirerId", "pspId", "paymentRequestId"] {
        for value in ["null", "\"\""] {
            refused(Api::CancelPayment, serde_body(&others, name, value), &format!("{name}: must"));
        }
        let absent = serde_body(&others, name, "1").replace(name, "another");
        refused(Api::CancelPayment, absent, &format!("{name}: must be set"));
        // names are case-sensitive
        let body = serde_body(&others, "", "");
        let upper = body.replace(name, &name.to_ascii_uppercase());
        refused(Api::CancelPayment, upper, &format!("{name}: must be set"));
    }
    refused(Api::CancelPayment, "{}", "");
    for value in [r#""accessToken":null"#, r#""accessToken":"""#, r#""AccessToken":"t""#] {
        refused(Api::CancelToken, token(value), "accessToken: must");
    }
}

#[test]
fn an_optional_parameter_may_be_absent_or_null_but_not_empty() {
    let access = || format!(r#""accessToken":"{}""#, unique("t"));
    send(Api::CancelToken, token(&access())).expect("INVALID_TOKEN");
    let null = format!(r#"{},"passThroughInfo":null"#, access());
    send(Api::CancelToken, token(&null)).expect("INVALID_TOKEN");
    let empty = format!(r#"{},"passThroughInfo":"""#, access());
    refused(Api::CancelToken, token(&empty), "passThroughInfo: must not be empty");
}

#[test]
fn unknown_fields_are_ignored_whatever_they_hold() {
    let more = r#","":0,"resultCode":"F","PSPID":5,"pspid":null,"a":{"b":[1,2.5e-3,true,null,"x"]},"é":"é","psp\u0000Id":"x""#;
    send(Api::CancelPayment, payment(more)).expect("SUCCESS");
    // cancelPayment has no accessToken and no passThroughInfo
    let more = r#","accessToken":1,"passThroughInfo":"""#;
    send(Api::CancelPayment, payment(more)).expect("SUCCESS");
}

#[test]
fn lengths_are_counted_in_characters() {
    for character in ["x", "é", "付", "💳", r"\u4ed8", r"\ud83d\udcb3"] {
        let others = [("acquirerId", "\"a\""), ("pspId", "\"p\"")];
        for name in ["acquirerId", "pspId", "paymentRequestId"] {
            let value = |count: usize| format!("\"{}\"", character.repeat(count));
            let answer = send(Api::CancelPayment, serde_body(&others, name, &value(64)));
            // 64 of them may be bound to another acquirer by now; they are not too long
            assert!(["SUCCESS", "ACCESS_DENIED"].contains(&&*answer.code()), "{}", answer.code());
            let body = serde_body(&others, name, &value(65));
            refused(Api::CancelPayment, body, &format!("{name}: longer than 64 characters"));
        }
        let access = |count| token(&format!(r#""accessToken":"{}""#, character.repeat(count)));
        send(Api::CancelToken, access(128)).expect("INVALID_TOKEN");
        refused(Api::CancelToken, access(129), "accessToken: longer than 128 characters");
    }
}

#[test]
fn pass_through_info_has_20000_characters_and_not_20001_however_they_are_escaped() {
    for character in ["x", "é", "💳", r"\u0041", r"\u4ed8", r"\ud83d\udcb3", r"\u0000", r"\n"] {
        let body = |count: usize| {
            let info = character.repeat(count);
            token(&format!(r#""accessToken":"{}","passThroughInfo":"{info}""#, unique("t")))
        };
        send(Api::CancelToken, body(20_000)).expect("INVALID_TOKEN");
        refused(Api::CancelToken, body(20_001), "passThroughInfo: longer than 20000 characters");
    }
}

#[test]
fn pass_through_info_is_opaque() {
    for info in [r"\u0000", " x ", r"\u0007\u001b[31m", "{", r#"{\"a\":[}"#, r"\u202e", "'; --"] {
        let access = unique("t");
        let body = token(&format!(r#""accessToken":"{access}","passThroughInfo":"{info}""#));
        let answer = send(Api::CancelToken, body);
        answer.expect("INVALID_TOKEN");
        // never echoed
        assert!(answer.json().get("passThroughInfo").is_none());
    }
}

#[test]
fn ids_and_tokens_hold_no_control_characters_and_no_outer_white_space() {
    let others = [("acquirerId", "\"a\""), ("pspId", "\"p\"")];
    for value in [
        r"\u0000",
        r"a\u0000b",
        r"a\nb",
        r"a\tb",
        r"a\u007f",
        r"\u0085",
        r"a\u009fb",
        " a",
        "a ",
        " ",
        r"\ta",
        r"a\r\n",
        r"\u00a0a",
        r"a\u3000",
        r"a\u2028",
    ] {
        for name in ["acquirerId", "pspId", "paymentRequestId"] {
            let body = serde_body(&others, name, &format!("\"{value}\""));
            refused(Api::CancelPayment, body, &format!("{name}: "));
        }
        let body = token(&format!(r#""accessToken":"{value}""#));
        refused(Api::CancelToken, body, "accessToken: ");
    }
}

#[test]
fn ids_are_compared_byte_for_byte() {
    // one letter, composed and not: two payments, each with an acquirer of its own
    let id = unique("json");
    let (composed, apart) = (format!("{id}-\u{e9}"), format!("{id}-e\u{301}"));
    let json = Service::shared().json();
    json.cancel_payment("p", "a", &composed).expect("SUCCESS");
    json.cancel_payment("p", "b", &apart).expect("SUCCESS");
    json.cancel_payment("p", "b", &composed).expect("ACCESS_DENIED");
    json.cancel_payment("p", "b", &id.to_ascii_uppercase()).expect("SUCCESS");
}

#[test]
fn a_message_never_repeats_a_token_or_a_value() {
    for body in [
        format!(r#"{{"accessToken":"{SECRET}"}}"#),
        token(&format!(r#""accessToken":" {SECRET}""#)),
        token(&format!(r#""accessToken":"{}""#, SECRET.repeat(20))),
        token(&format!(r#""accessToken":"{SECRET}","{SECRET}":1,"{SECRET}":2"#)),
        token(&format!(r#""accessToken":"{SECRET}","x":{SECRET}"#)),
        format!(r#"{{"pspId":"{SECRET}\n","acquirerId":"a","accessToken":"t"}}"#),
    ] {
        send(Api::CancelToken, body).expect("PARAM_ILLEGAL");
    }
    send(Api::CancelToken, token(&format!(r#""accessToken":"{SECRET}""#))).expect("INVALID_TOKEN");
}
