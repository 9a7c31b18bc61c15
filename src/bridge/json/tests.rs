//! Tests of the strict reading.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{DEPTH_MAX, Fault, Illegal, KEYS_MAX, ParamError, parse};
use crate::domain::id::{self, AcquirerId, Token};

fn why(body: &[u8]) -> Option<Illegal> {
    parse(body).err()
}

/// `{"a":` and arrays to a total of `depth` levels.
fn nested(depth: usize) -> String {
    let arrays = depth - 1;
    format!("{{\"a\":{}{}}}", "[".repeat(arrays), "]".repeat(arrays))
}

fn with_keys(count: usize) -> String {
    let keys: Vec<_> = (0..count).map(|key| format!("\"{key}\":null")).collect();
    format!("{{{}}}", keys.join(","))
}

#[test]
fn a_pretty_printed_body_with_nulls_and_escapes_is_read() {
    let body = " {\n \"pspId\" : \"102\\u0032\", \"acquirerId\":\"a\",\"extra\":[1,{\"x\":true}],\"n\":null}\r\n\t";
    let fields = parse(body.as_bytes()).unwrap();
    assert_eq!(fields.required("pspId"), Ok("1022"));
    assert_eq!(fields.required("acquirerId"), Ok("a"));
    assert_eq!(fields.optional("n"), Ok(None));
    assert_eq!(fields.optional("absent"), Ok(None));
}

#[test]
fn an_escaped_name_is_the_same_name_and_case_matters() {
    let fields = parse(br#"{"psp\u0049d":"1","acquirerid":"2"}"#).unwrap();
    assert_eq!(fields.required("pspId"), Ok("1"));
    assert!(fields.required("acquirerId").is_err());
}

#[test]
fn a_body_that_is_no_object_is_refused() {
    for body in ["[]", "[{}]", "\"x\"", "1", "-1", "1.5", "true", "null"] {
        assert_eq!(why(body.as_bytes()), Some(Illegal::NotObject), "{body}");
    }
    for body in ["", " ", "{", "{a:1}", "{\"a\":1,}", "{'a':1}", "nul", "{1:2}", "{\"a\":01}"] {
        assert_eq!(why(body.as_bytes()), Some(Illegal::NotJson), "{body}");
    }
}

#[test]
fn nothing_but_white_space_may_follow() {
    for body in ["{}{}", "{} x", "{}\0", "{}\u{a0}", "{},"] {
        assert_eq!(why(body.as_bytes()), Some(Illegal::Trailing), "{body:?}");
    }
}

#[test]
fn text_that_is_no_unicode_is_refused_in_unknown_fields_too() {
    assert_eq!(why(b"{\"x\":\"\xff\"}"), Some(Illegal::NotUtf8));
    assert_eq!(why(b"{\"x\":[{\"\xed\xa0\x80\":1}]}"), Some(Illegal::NotUtf8));
    assert_eq!(why(b"\xef\xbb\xbf{}"), Some(Illegal::ByteOrderMark));
    assert_eq!(why(b"\xff\xfe{\0}\0"), Some(Illegal::NotUtf8));
    for body in [
        r#"{"x":"\ud800"}"#,
        r#"{"x":["\udc00"]}"#,
        r#"{"\ud800":1}"#,
        r#"{"x":{"y":"\ud800\ud800"}}"#,
        r#"{"x":"\ud83dA"}"#,
    ] {
        assert_eq!(why(body.as_bytes()), Some(Illegal::NotJson), "{body}");
    }
    assert_eq!(why(br#"{"x":"\ud83d\ude00"}"#), None);
}

#[test]
fn a_control_character_must_be_escaped() {
    assert_eq!(why(b"{\"x\":\"a\nb\"}"), Some(Illegal::NotJson));
    assert_eq!(parse(br#"{"x":"a\u0000b"}"#).unwrap().required("x"), Ok("a\0b"));
}

#[test]
fn a_key_stands_once_in_its_object_escapes_resolved() {
    for body in [
        r#"{"a":1,"a":2}"#,
        r#"{"a":1,"\u0061":2}"#,
        r#"{"x":{"a":1,"b":2,"a":1}}"#,
        r#"{"x":[[{"":1,"":2}]]}"#,
    ] {
        assert_eq!(why(body.as_bytes()), Some(Illegal::DuplicateKey), "{body}");
    }
    assert_eq!(why(br#"{"a":{"a":{"a":1}},"A":1,"b":[{"a":1},{"a":2}]}"#), None);
}

#[test]
fn eight_levels_pass_and_nine_do_not() {
    assert_eq!(why(nested(DEPTH_MAX).as_bytes()), None);
    assert_eq!(why(nested(DEPTH_MAX + 1).as_bytes()), Some(Illegal::TooDeep));
    assert_eq!(why("{\"a\":".repeat(9).as_bytes()), Some(Illegal::TooDeep));
}

#[test]
fn half_a_megabyte_of_brackets_is_refused_at_once() {
    let brackets = "[".repeat(512 * 1024);
    assert_eq!(why(brackets.as_bytes()), Some(Illegal::NotObject));
    assert_eq!(why(format!("{{\"a\":{brackets}").as_bytes()), Some(Illegal::TooDeep));
    assert_eq!(why("{\"a\":".repeat(100_000).as_bytes()), Some(Illegal::TooDeep));
}

#[test]
fn sixty_four_keys_pass_and_one_more_does_not() {
    assert_eq!(why(with_keys(KEYS_MAX).as_bytes()), None);
    assert_eq!(why(with_keys(KEYS_MAX + 1).as_bytes()), Some(Illegal::TooManyKeys));
    let inside = format!("{{\"x\":[{},{}]}}", with_keys(32), with_keys(32));
    assert_eq!(why(inside.as_bytes()), Some(Illegal::TooManyKeys));
}

#[test]
fn a_required_parameter_is_a_string_that_is_not_empty() {
    let fields = parse(br#"{"e":"","n":null,"u":1,"f":-1.5,"b":false,"l":["x"],"o":{}}"#).unwrap();
    let refused = |name| fields.required(name).unwrap_err().to_string();
    assert_eq!(refused("absent"), "absent: must be set");
    assert_eq!(refused("n"), "n: must be set");
    assert_eq!(refused("e"), "e: must not be empty");
    for name in ["u", "f", "b", "l", "o"] {
        assert_eq!(refused(name), format!("{name}: must be a string"));
        assert_eq!(fields.optional(name), Err(ParamError { name, fault: Fault::NotText }));
    }
    assert_eq!(
        fields.optional("e"),
        Err(ParamError { name: "e", fault: Fault::Text(id::Illegal::Empty) })
    );
}

#[test]
fn a_checked_type_says_what_is_wrong_without_the_value() {
    let body = json!({ "accessToken": "s3cret".repeat(30), "acquirerId": "a" }).to_string();
    let fields = parse(body.as_bytes()).unwrap();
    let refused = fields.required_as("accessToken", Token::parse).unwrap_err();
    assert_eq!(refused.to_string(), "accessToken: longer than 128 characters");
    assert!(fields.required_as("acquirerId", AcquirerId::parse).is_ok());
    assert_eq!(fields.optional_as("pspId", AcquirerId::parse), Ok(None));
    let named = parse(br#"{"acquirerId":"a"}"#).unwrap();
    let acquirer = AcquirerId::parse("a").unwrap();
    assert_eq!(named.optional_as("acquirerId", AcquirerId::parse), Ok(Some(acquirer)));
    assert_eq!(format!("{fields:?}"), "Fields(2)");
}

#[test]
fn big_numbers_of_unknown_fields_pass_as_far_as_a_double_reaches() {
    assert_eq!(why(br#"{"x":123456789012345678901234567890,"y":1e300,"z":-0}"#), None);
    assert_eq!(why(br#"{"x":1e400}"#), Some(Illegal::NotJson));
}

/// Levels and keys of a document, counted the plain way.
fn measure(value: &Value) -> (usize, usize) {
    let children: Vec<&Value> = match value {
        Value::Array(values) => values.iter().collect(),
        Value::Object(fields) => fields.values().collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => return (0, 0),
    };
    let own_keys = value.as_object().map_or(0, serde_json::Map::len);
    children
        .into_iter()
        .map(measure)
        .fold((1, own_keys), |(depth, keys), child| (depth.max(child.0 + 1), keys + child.1))
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(10, 100, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map("\\PC{0,4}", inner, 0..12)
                .prop_map(|fields| fields.into_iter().collect()),
        ]
    })
}

/// Every character of every string as a `\u` escape.
fn escaped(value: &Value) -> String {
    let text = |text: &str| {
        let units: Vec<_> = text.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect();
        format!("\"{}\"", units.concat())
    };
    match value {
        Value::String(string) => text(string),
        Value::Array(values) => {
            format!("[{}]", values.iter().map(escaped).collect::<Vec<_>>().join(","))
        }
        Value::Object(fields) => {
            let pair =
                |(key, value): (&String, &Value)| format!("{}:{}", text(key), escaped(value));
            format!("{{{}}}", fields.iter().map(pair).collect::<Vec<_>>().join(","))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

proptest! {
    #[test]
    fn a_document_is_accepted_exactly_if_it_is_an_object_within_the_limits(document in any_json()) {
        let (depth, keys) = measure(&document);
        let fits = document.is_object() && depth <= DEPTH_MAX && keys <= KEYS_MAX;
        let pretty = serde_json::to_string_pretty(&document).unwrap();
        for body in [document.to_string(), pretty, escaped(&document)] {
            prop_assert_eq!(parse(body.as_bytes()).is_ok(), fits, "{}", body);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(parse(&body).is_err() || serde_json::from_slice::<Value>(&body).is_ok());
    }

    #[test]
    fn what_is_accepted_is_json_for_others_too(body in r#"[{}\[\]:,"a\\u0-9 etrunlfs]{0,60}"#) {
        if parse(body.as_bytes()).is_ok() {
            prop_assert!(serde_json::from_str::<Value>(&body).unwrap().is_object());
        }
    }

    #[test]
    fn a_message_fits_its_field(body in prop::collection::vec(any::<u8>(), 0..60)) {
        if let Err(illegal) = parse(&body) {
            prop_assert!(illegal.to_string().chars().count() <= 256);
        }
    }
}
