//! The table of faults: what a wallet does wrong, and the checks that must turn red, all of them and no other.

use alipayplus_cancel::bridge::signature;
use serde_json::Value;

use super::proxy::{
    Before, Fault, Message, Seen, answer_as, sign_answer, sign_answer_with, sign_request,
    signature_of,
};
use crate::harness::{unique, vectors};

/// What a fault remembers.
#[derive(Default)]
pub struct Memory {
    pub seen: Seen,
}

/// A fault.
pub struct Wrong {
    pub name: &'static str,
    /// Ids; `chapter.*` is all that begin so, and a `!` takes out again.
    pub reds: &'static [&'static str],
    /// Flags of the run.
    pub flags: &'static [&'static str],
    pub before: fn(&Memory, &Message) -> Before,
    pub after: fn(&Memory, &Message, &mut Message) -> bool,
}

/// A fault at work.
pub struct Running {
    memory: Memory,
    fault: &'static Wrong,
}

impl Running {
    pub fn of(fault: &'static Wrong) -> Self {
        Self { memory: Memory::default(), fault }
    }
}

impl Fault for Running {
    fn before(&self, request: &Message) -> Before {
        (self.fault.before)(&self.memory, request)
    }

    fn after(&self, request: &Message, answer: &mut Message) -> bool {
        (self.fault.after)(&self.memory, request, answer)
    }
}

pub const fn wrong(
    name: &'static str,
    after: fn(&Memory, &Message, &mut Message) -> bool,
    reds: &'static [&'static str],
) -> Wrong {
    Wrong { name, reds, flags: &[], before: |_, _| Before::Pass, after }
}

/// It was carried out, so to say.
fn done(request: &Message, answer: &mut Message) -> bool {
    answer_as(request, answer, "SUCCESS", "S");
    true
}

/// It was refused, though it is right.
fn refused(request: &Message, answer: &mut Message, code: &str) -> bool {
    answer_as(request, answer, code, "F");
    true
}

/// A right request, that is done or decided.
fn is_right(answer: &Message) -> bool {
    matches!(&*answer.code(), "SUCCESS" | "INVALID_TOKEN")
}

fn header<'a>(message: &'a Message, name: &str) -> &'a str {
    message.header(name).unwrap_or("")
}

/// The value of the Signature header, as it came.
fn value(request: &Message) -> &str {
    header(request, "signature").rsplit("signature=").next().unwrap_or("")
}

fn is_signed(answer: &Message) -> bool {
    answer.header("signature").is_some()
}

fn of_token(request: &Message) -> bool {
    request.target().contains("cancelToken")
}

/// Whether this key made a request's signature.
fn verifies(request: &Message, key: &alipayplus_cancel::bridge::keys::PublicKey) -> bool {
    let Some(made) = signature_of(request).filter(|_| request.count("signature") == 1) else {
        return false;
    };
    let (client, time) = (header(request, "client-id"), header(request, "request-time"));
    let string =
        signature::signed_string(request.method(), request.target(), client, time, &request.body);
    key.verify(&string, &made.signature)
}

/// Header lines of an answer, changed and not signed anew.
fn with_header(answer: &mut Message, name: &str, change: impl Fn(&str) -> String) -> bool {
    let Some(value) = answer.header(name).map(str::to_owned) else { return false };
    answer.set(name, &change(&value));
    true
}

/// The body of an answer, changed and signed anew.
fn with_body(request: &Message, answer: &mut Message, change: impl Fn(Value) -> Vec<u8>) -> bool {
    let Some(json) = answer.json() else { return false };
    answer.body = change(json);
    sign_answer(request, answer);
    true
}

/// The cancel of something else, in the place of this one.
fn of_another(request: &Message) -> Before {
    let mut other = request.clone();
    let field = if of_token(request) { "accessToken" } else { "paymentRequestId" };
    let Some(mut json) = request.json() else { return Before::Pass };
    let id = json.get(field).and_then(Value::as_str).unwrap_or("");
    // what is wrong in itself stays so
    let usual = id.starts_with("certify") && id.chars().count() <= 64;
    let plain = json.to_string().len() == request.body.len()
        && header(request, "client-id") == vectors::CLIENT_ID
        && header(request, "request-time").ends_with("+08:00")
        && header(request, "signature").starts_with("algorithm=RSA256,keyVersion=1,")
        && ["client-id", "request-time"].iter().all(|name| request.count(name) == 1);
    if !usual || !plain || !verifies(request, vectors::alipayplus().public()) {
        return Before::Pass;
    }

    json[field] = unique("swallowed").into();
    other.body = json.to_string().into_bytes();
    sign_request(&mut other);
    Before::Send(other)
}

/// What must be asked of the wallet's own side, before it is known.
const NEVER_DONE: &[&str] = &[
    "late.begins-after",
    "late.succeeds-after",
    "late.amid",
    "late.fails-then-succeeds",
    "late.succeeded",
    "late.failed",
    "late.amid-then-fails",
    "late.other-acquirer",
    "late.refund*",
    "late.race-*",
    "window.before-last",
    "window.old",
    "window.past-then-refunded",
    "idempotency.other-acquirer",
];

pub const FAULTS: &[Wrong] = &[
    // forms of requests
    wrong(
        "spaces behind commas are not read",
        |_, request, answer| {
            header(request, "signature").contains(", ")
                && is_right(answer)
                && refused(request, answer, "INVALID_SIGNATURE")
        },
        &["form.signature-spaces", "form.signature-tabs"],
    ),
    wrong(
        "epoch milliseconds are not read",
        |_, request, answer| {
            let time = header(request, "request-time");
            time.bytes().all(|byte| byte.is_ascii_digit())
                && is_right(answer)
                && refused(request, answer, "PARAM_ILLEGAL")
        },
        &["form.time-epoch", "retry.new-signature"],
    ),
    wrong(
        "a replay window of a day",
        |_, request, answer| {
            let old = ["2019", "2025", "1559"];
            let is_old = old.iter().any(|year| header(request, "request-time").starts_with(year));
            is_old && is_right(answer) && refused(request, answer, "PARAM_ILLEGAL")
        },
        &["form.time-*", "retry.new-signature"],
    ),
    wrong(
        "base64 without escapes is not read",
        |_, request, answer| {
            value(request).contains(['+', '/'])
                && is_right(answer)
                && refused(request, answer, "INVALID_SIGNATURE")
        },
        &["form.value-raw", "form.value-unpadded"],
    ),
    wrong(
        "URL-safe base64 is not read",
        |_, request, answer| {
            value(request).contains(['-', '_'])
                && is_right(answer)
                && refused(request, answer, "INVALID_SIGNATURE")
        },
        &["form.value-url-safe*"],
    ),
    wrong(
        "keyVersion is required",
        |_, request, answer| {
            let without = !header(request, "signature").to_ascii_lowercase().contains("keyversion");
            without && is_right(answer) && refused(request, answer, "KEY_NOT_FOUND")
        },
        &["form.signature-no-version", "rotation.no-version"],
    ),
    wrong(
        "Accept is obeyed",
        |_, request, answer| {
            let accept = request.header("accept");
            if accept.is_none_or(|accept| accept.contains("json")) {
                return false;
            }
            "HTTP/1.1 406 Not Acceptable".clone_into(&mut answer.start);
            answer.body.clear();
            answer.set("content-length", "0");
            true
        },
        &["form.accept"],
    ),
    wrong(
        "unknown fields are refused",
        |_, request, answer| {
            let known =
                ["acquirerId", "pspId", "paymentRequestId", "accessToken", "passThroughInfo"];
            let json = request.json().unwrap_or_default();
            let unknown = json
                .as_object()
                .is_some_and(|json| json.keys().any(|key| !known.contains(&key.as_str())));
            unknown && is_right(answer) && refused(request, answer, "PARAM_ILLEGAL")
        },
        &["form.unknown-fields", "form.unknown-null"],
    ),
    wrong(
        "chunked bodies are refused",
        |_, request, answer| {
            request.header("transfer-encoding").is_some()
                && is_right(answer)
                && refused(request, answer, "PARAM_ILLEGAL")
        },
        &["form.chunked"],
    ),
    wrong(
        "a target in absolute form is another path",
        |_, request, answer| {
            request.target().starts_with("http")
                && is_right(answer)
                && refused(request, answer, "NO_INTERFACE_DEF")
        },
        &["form.absolute-target"],
    ),
    wrong(
        "the body is parsed and written anew before it is verified",
        |_, request, answer| {
            let compact = request.json().map(|json| json.to_string().len());
            compact != Some(request.body.len())
                && is_right(answer)
                && refused(request, answer, "INVALID_SIGNATURE")
        },
        &[
            "form.pretty",
            "form.escapes",
            "form.pass-through-escaped",
            "json.longest",
            "idempotency.payment-rewritten",
            "idempotency.payment-parallel-bodies",
        ],
    ),
    wrong(
        "the query is left out of the answer's signature",
        |_, request, answer| {
            let Some((path, _)) = request.target().split_once('?') else { return false };
            let mut without = request.clone();
            without.set_target(path);
            sign_answer(&without, answer);
            is_signed(answer)
        },
        &["form.query", "seal.query"],
    ),
    // forms of answers
    wrong(
        "F has the HTTP status 400",
        |_, _, answer| {
            let is_f = answer.text("/result/resultStatus") == "F";
            if is_f {
                "HTTP/1.1 400 Bad Request".clone_into(&mut answer.start);
            }
            is_f
        },
        &["answer.status-*", "!answer.status-done"],
    ),
    wrong(
        "who is unproven gets the HTTP status 401",
        |_, _, answer| {
            let unproven = matches!(&*answer.code(), "INVALID_SIGNATURE" | "INVALID_CLIENT");
            if unproven {
                "HTTP/1.1 401 Unauthorized".clone_into(&mut answer.start);
            }
            unproven
        },
        &["answer.status-unproven", "answer.status-unknown-client"],
    ),
    wrong(
        "header names are capitalised",
        |_, _, answer| {
            for (name, _) in &mut answer.headers {
                name[..1].make_ascii_uppercase();
            }
            true
        },
        &["answer.lower-case"],
    ),
    wrong(
        "the charset is quoted",
        |_, _, answer| {
            with_header(answer, "content-type", |_| {
                "application/json; charset=\"UTF-8\"".to_owned()
            })
        },
        &["answer.content-type"],
    ),
    wrong(
        "the body is pretty-printed",
        |_, request, answer| with_body(request, answer, |json| format!("{json:#}").into_bytes()),
        &["answer.compact"],
    ),
    wrong(
        "response-time has milliseconds",
        |_, request, answer| {
            let has = with_header(answer, "response-time", |time| time.replace('+', ".123+"));
            sign_answer(request, answer);
            has
        },
        &["answer.response-time"],
    ),
    wrong(
        "response-time is an hour off",
        |_, request, answer| {
            let has = with_header(answer, "response-time", |time| time.replace("+08:00", "+07:00"));
            sign_answer(request, answer);
            has
        },
        &["answer.response-time-now"],
    ),
    wrong(
        "the signature header has spaces",
        |_, _, answer| with_header(answer, "signature", |header| header.replace(',', ", ")),
        &["answer.signature-form"],
    ),
    wrong(
        "escapes are in lower case",
        |_, _, answer| {
            with_header(answer, "signature", |header| {
                header.replace("%2B", "%2b").replace("%2F", "%2f").replace("%3D", "%3d")
            })
        },
        &["answer.signature-escapes"],
    ),
    wrong(
        "client-id is not echoed",
        |_, _, answer| {
            let had = answer.header("client-id").is_some();
            answer.remove("client-id");
            had
        },
        &["answer.client-id"],
    ),
    wrong(
        "a header speaks of the signature",
        |_, _, answer| {
            answer.set("x-debug", "signature ok");
            true
        },
        &["answer.one-signature"],
    ),
    wrong(
        "messages are long",
        |_, request, answer| {
            with_body(request, answer, |mut json| {
                json["result"]["resultMessage"] = "x".repeat(257).into();
                json.to_string().into_bytes()
            })
        },
        &["answer.message-length", "answer.message-names"],
    ),
    wrong(
        "the message repeats the token",
        |_, request, answer| {
            let token = request.text("/accessToken");
            !token.is_empty()
                && with_body(request, answer, |mut json| {
                    json["result"]["resultMessage"] = format!("no token {token:.60}").into();
                    json.to_string().into_bytes()
                })
        },
        &["answer.repeats-nothing"],
    ),
    wrong(
        "cancelPayment's answer has a passThroughInfo",
        |_, request, answer| {
            !of_token(request)
                && with_body(request, answer, |mut json| {
                    json["passThroughInfo"] = Value::Null;
                    json.to_string().into_bytes()
                })
        },
        &["answer.nothing-more"],
    ),
    wrong(
        "resultMessage is missing",
        |_, request, answer| {
            with_body(request, answer, |mut json| {
                json["result"].as_object_mut().expect("an object").remove("resultMessage");
                json.to_string().into_bytes()
            })
        },
        // it may be, and yet a person would want it
        &["answer.message-names"],
    ),
    wrong(
        "resultMessage is empty",
        |_, request, answer| {
            with_body(request, answer, |mut json| {
                json["result"]["resultMessage"] = "".into();
                json.to_string().into_bytes()
            })
        },
        &["answer.message-length", "answer.message-names"],
    ),
    wrong(
        "resultMessage is a number",
        |_, request, answer| {
            with_body(request, answer, |mut json| {
                json["result"]["resultMessage"] = 7.into();
                json.to_string().into_bytes()
            })
        },
        &["answer.shape", "answer.message-names"],
    ),
    // signatures of answers
    wrong(
        "INVALID_TOKEN is U",
        |_, request, answer| {
            let is_it = answer.code() == "INVALID_TOKEN";
            if is_it {
                answer_as(request, answer, "INVALID_TOKEN", "U");
            }
            is_it
        },
        &[
            "form.token",
            "form.null-optional",
            "form.pass-through-*",
            "parameter.access-token-longest",
            "idempotency.token",
            "idempotency.token-parallel",
            "retry.abandoned-token",
            "rotation.next-token",
            "token.dead",
        ],
    ),
    wrong(
        "answers are signed with another key",
        |_, request, answer| {
            sign_answer_with(vectors::other(), request, answer);
            is_signed(answer)
        },
        SIGNED,
    ),
    wrong(
        "an F is not signed",
        |_, _, answer| {
            let is_f = answer.text("/result/resultStatus") == "F" && is_signed(answer);
            if is_f {
                for name in ["signature", "response-time", "client-id"] {
                    answer.remove(name);
                }
            }
            is_f
        },
        F_SIGNED,
    ),
    wrong(
        "the request's time is signed",
        |_, request, answer| {
            let time = header(request, "request-time").to_owned();
            let whole = !time.contains('.') && time.ends_with("+08:00");
            if !is_signed(answer) || !whole {
                return false;
            }
            answer.set("response-time", &time);
            sign_answer(request, answer);
            true
        },
        &["seal.own-time"],
    ),
    wrong(
        "whoever asks gets a signature",
        |_, request, answer| {
            if is_signed(answer) {
                return false;
            }
            answer.set("client-id", header(request, "client-id"));
            answer.set("response-time", "2026-11-29T12:00:00+08:00");
            answer.set("signature", "to be made");
            if request.header("client-id").is_none() {
                return true;
            }
            sign_answer(request, answer);
            true
        },
        &["seal.none-*", "refuse.client-absent", "answer.repeats-nothing"],
    ),
    wrong(
        "who is registered and unproven gets no signature",
        |_, _, answer| {
            let is_it = answer.code() == "INVALID_SIGNATURE";
            if is_it {
                for name in ["signature", "response-time", "client-id"] {
                    answer.remove(name);
                }
            }
            is_it
        },
        &["seal.registered"],
    ),
    // what must be refused
    wrong(
        "signatures are not verified",
        |_, request, answer| answer.code() == "INVALID_SIGNATURE" && done(request, answer),
        &[
            "order.signature-form",
            "order.signature",
            "refuse.header-*",
            "!refuse.header-unknown-version",
            "refuse.signature-*",
            "refuse.raw-plus",
            "idempotency.unproven-unrecorded",
            "rotation.old-as-next",
            "rotation.next-as-old",
            "http.smuggled",
        ],
    ),
    wrong(
        "a signature by the wallet's own key will do",
        |_, request, answer| {
            answer.code() == "INVALID_SIGNATURE"
                && verifies(request, vectors::wallet().public())
                && done(request, answer)
        },
        &["refuse.signature-mirrored"],
    ),
    wrong(
        "algorithm none is believed",
        |_, request, answer| {
            header(request, "signature").to_ascii_lowercase().contains("algorithm=none")
                && answer.code() == "INVALID_SIGNATURE"
                && done(request, answer)
        },
        &["refuse.header-algorithm-none", "refuse.header-two-algorithms", "order.signature-form"],
    ),
    wrong(
        "an unknown keyVersion is the first key",
        |_, request, answer| answer.code() == "KEY_NOT_FOUND" && done(request, answer),
        &["order.key-version", "refuse.header-unknown-version"],
    ),
    wrong(
        "a slash behind the path is forgiven",
        |_, request, answer| request.target().ends_with('/') && done(request, answer),
        &["refuse.path-slash"],
    ),
    wrong(
        "get is done",
        |_, request, answer| request.method() == "GET" && done(request, answer),
        &["refuse.method-get"],
    ),
    wrong(
        "Content-Type is not looked at",
        |_, request, answer| {
            answer.code() == "MEDIA_TYPE_NOT_ACCEPTABLE"
                && request.header("content-encoding").is_none()
                && done(request, answer)
        },
        &["refuse.type-*"],
    ),
    wrong(
        "Client-Id is compared in any case",
        |_, request, answer| {
            let id = header(request, "client-id");
            id != vectors::CLIENT_ID
                && id.eq_ignore_ascii_case(vectors::CLIENT_ID)
                && done(request, answer)
        },
        &["refuse.client-case"],
    ),
    wrong(
        "Request-Time is not required",
        |_, request, answer| {
            request.count("request-time") == 0
                && answer.code() == "PARAM_ILLEGAL"
                && done(request, answer)
        },
        &["refuse.time-absent"],
    ),
    wrong(
        "the method is looked at before the path",
        |_, request, answer| {
            answer.code() == "NO_INTERFACE_DEF"
                && request.method() != "POST"
                && refused(request, answer, "METHOD_NOT_SUPPORTED")
        },
        &["order.path"],
    ),
    wrong(
        "JSON is looked at before the signature",
        |_, request, answer| {
            answer.code() == "INVALID_SIGNATURE"
                && request.json().is_none_or(|json| !json.is_object())
                && refused(request, answer, "PARAM_ILLEGAL")
        },
        &["order.signature-form", "order.signature"],
    ),
    // bodies and parameters
    wrong(
        "an array is an object",
        |_, request, answer| {
            answer.code() == "PARAM_ILLEGAL"
                && request.json().is_some_and(|json| json.is_array())
                && verifies(request, vectors::alipayplus().public())
                && done(request, answer)
        },
        &["json.array", "json.array-around", "order.json", "form.keep-alive-refused"],
    ),
    wrong(
        "of a parameter that stands twice the last counts",
        |_, request, answer| {
            let text = String::from_utf8_lossy(&request.body).replace("\\u0064", "d");
            text.matches("\"paymentRequestId\"").count() == 2
                && answer.code() == "PARAM_ILLEGAL"
                && done(request, answer)
        },
        &["json.duplicate", "json.duplicate-escaped"],
    ),
    wrong(
        "a byte order mark is passed over",
        |_, request, answer| request.body.starts_with(b"\xef\xbb\xbf") && done(request, answer),
        &["json.bom"],
    ),
    wrong(
        "bodies may be of a megabyte",
        |_, request, answer| {
            (512 * 1024 + 1..1 << 20).contains(&request.body.len())
                && verifies(request, vectors::alipayplus().public())
                && done(request, answer)
        },
        &["json.too-long", "json.too-long-chunked"],
    ),
    wrong(
        "numbers are taken for texts",
        |_, request, answer| {
            let number = |json: &Value| {
                json.as_object().is_some_and(|json| {
                    ["acquirerId", "pspId", "paymentRequestId", "accessToken", "passThroughInfo"]
                        .iter()
                        .any(|field| json.get(*field).is_some_and(Value::is_number))
                })
            };
            answer.code() == "PARAM_ILLEGAL"
                && request.json().is_some_and(|json| number(&json))
                && done(request, answer)
        },
        &[
            "parameter.acquirer-id-number",
            "parameter.psp-id-number",
            "parameter.payment-request-id-number",
            "parameter.token-acquirer-id-number",
            "parameter.token-psp-id-number",
            "parameter.access-token-number",
            "parameter.pass-through-number",
        ],
    ),
    wrong(
        "an empty passThroughInfo is none",
        |_, request, answer| {
            request.json().is_some_and(|json| json["passThroughInfo"] == "")
                && refused(request, answer, "INVALID_TOKEN")
        },
        &["parameter.pass-through-empty"],
    ),
    wrong(
        "lengths are counted in bytes",
        |_, request, answer| {
            let long = |field: &str, most: usize| request.text(field).len() > most;
            is_right(answer)
                && (long("/paymentRequestId", 64) || long("/accessToken", 128))
                && refused(request, answer, "PARAM_ILLEGAL")
        },
        &["parameter.payment-request-id-longest", "parameter.access-token-longest"],
    ),
    wrong(
        "a client may act for everybody",
        |_, request, answer| answer.code() == "ACCESS_DENIED" && done(request, answer),
        &["idempotency.other-acquirer", "late.other-acquirer", "token.other-acquirer"],
    ),
    // the same request again
    wrong(
        "what is cancelled cannot be cancelled again",
        |memory, request, answer| {
            let id = request.text("/paymentRequestId");
            answer.code() == "SUCCESS"
                && !id.is_empty()
                && memory.seen.before(&id) > 0
                && refused(request, answer, "PROCESS_FAIL")
        },
        AGAIN,
    ),
    wrong(
        "a token can be cancelled once",
        |memory, request, answer| {
            let token = request.text("/accessToken");
            !token.is_empty()
                && is_right(answer)
                && memory.seen.before(&token) > 0
                && refused(request, answer, "PROCESS_FAIL")
        },
        &[
            "idempotency.token",
            "idempotency.token-parallel",
            "retry.abandoned-token",
            "token.granted",
            "token.parallel",
            "token.pass-through",
            "token.dead",
        ],
    ),
    Wrong {
        flags: &[
            "--cancel-token-wait",
            "0.2",
            "--only",
            "form,retry.in-time-token,idempotency.token",
        ],
        before: |_, request| if of_token(request) { Before::Silence } else { Before::Pass },
        ..wrong(
            "cancelToken is never answered",
            |_, _, _| false,
            &[
                "form.token",
                "form.null-optional",
                "form.pass-through-*",
                "retry.in-time-token",
                "idempotency.token",
                "idempotency.token-parallel",
            ],
        )
    },
    // what the wallet's own side sees
    Wrong {
        before: |_, request| if of_token(request) { Before::Pass } else { of_another(request) },
        ..wrong("cancelPayment is answered and not done", |_, _, _| false, NEVER_DONE)
    },
    Wrong {
        before: |_, request| if of_token(request) { of_another(request) } else { Before::Pass },
        ..wrong(
            "cancelToken is answered and not done",
            |_, request, answer| {
                of_token(request) && answer.code() == "INVALID_TOKEN" && done(request, answer)
            },
            TOKENS_NEVER_DONE,
        )
    },
    wrong(
        "the window is not looked at",
        |_, request, answer| answer.code() == "CANCEL_WINDOW_EXCEED" && done(request, answer),
        &["window.before-last", "window.old", "window.past-then-refunded"],
    ),
    wrong(
        "refunds are not looked at",
        |_, request, answer| {
            matches!(&*answer.code(), "PROCESS_FAIL" | "UNKNOWN_EXCEPTION") && done(request, answer)
        },
        &["late.refunded", "late.refund-under-way"],
    ),
    wrong(
        "a refund under way is refused for ever",
        |_, request, answer| {
            answer.code() == "UNKNOWN_EXCEPTION" && refused(request, answer, "PROCESS_FAIL")
        },
        &["late.refund-under-way"],
    ),
    wrong(
        "what the wallet set for the acquirer is lost",
        |_, request, answer| {
            answer.json().is_some_and(|json| json.get("passThroughInfo").is_some())
                && done(request, answer)
        },
        &["token.pass-through"],
    ),
    wrong(
        "the acquirer's passThroughInfo is sent back",
        |_, request, answer| {
            let info = request.text("/passThroughInfo");
            answer.code() == "SUCCESS"
                && !info.is_empty()
                && with_body(request, answer, |mut json| {
                    json["passThroughInfo"] = info.clone().into();
                    json.to_string().into_bytes()
                })
        },
        &["token.no-pass-through"],
    ),
    // keys
    wrong(
        "the next key is not known",
        |_, request, answer| {
            header(request, "signature").contains("keyVersion=2")
                && refused(request, answer, "KEY_NOT_FOUND")
        },
        &["rotation.*", "!rotation.no-version", "!rotation.next-as-old"],
    ),
    wrong(
        "either key will do under either version",
        |_, request, answer| {
            answer.code() == "INVALID_SIGNATURE"
                && [vectors::alipayplus().public(), super::next_key().public()]
                    .iter()
                    .any(|key| verifies(request, key))
                && done(request, answer)
        },
        &["rotation.old-as-next", "rotation.next-as-old"],
    ),
];

/// Whatever looks at a signature.
const SIGNED: &[&str] = &[
    "form.*",
    "seal.*",
    "!seal.none-*",
    "!seal.one-version",
    "order.*",
    "!order.path",
    "!order.method",
    "!order.content-*",
    "!order.body-size",
    "!order.client-id",
    "!order.access-*",
    "refuse.*",
    "!refuse.path-*",
    "!refuse.method-*",
    "!refuse.client-*",
    // not signed before it is proven, and not read by the proxy
    "!refuse.signature-added-query",
    "json.*",
    "!json.far-too-long",
    "parameter.*",
    "idempotency.*",
    "retry.*",
    "!retry.in-time-*",
    "rotation.*",
    "late.*",
    "window.*",
    "token.*",
    "http.*",
    "!http.smuggled",
];

/// Whatever needs a signature of an F.
const F_SIGNED: &[&str] = &[
    "form.token",
    "form.null-optional",
    "form.pass-through-*",
    "form.keep-alive-refused",
    "answer.client-id",
    "answer.response-time*",
    "!answer.response-time-now",
    "answer.signature-*",
    "answer.one-*",
    "seal.token",
    "seal.body",
    "seal.parameter",
    "seal.registered",
    "seal.one-version",
    "json.*",
    "!json.longest",
    "!json.too-long*",
    "!json.far-too-long",
    "parameter.*",
    "!parameter.payment-request-id-longest",
    "idempotency.token*",
    "idempotency.other-acquirer",
    "idempotency.refused-unrecorded",
    "retry.abandoned-token",
    "rotation.next-token",
    "late.other-acquirer",
    "late.refunded",
    "window.before-last",
    "window.old",
    "window.past-then-refunded",
    "token.other-acquirer",
    "token.dead",
];

/// Whatever asks for the same payment twice.
const AGAIN: &[&str] = &[
    "idempotency.payment",
    "idempotency.payment-bytes",
    "idempotency.payment-rewritten",
    "idempotency.payment-parallel",
    "idempotency.payment-parallel-bodies",
    "idempotency.other-acquirer",
    "retry.abandoned",
    "retry.beside",
    "retry.new-signature",
    "retry.storm",
    "rotation.across",
    "late.succeeds-after",
    "late.amid",
    "late.fails-then-succeeds",
    "late.succeeded",
    "window.today",
    "window.old-failed",
    "window.old-under-way",
];

/// Of an unknown token it says SUCCESS, and of a known one that is all.
const TOKENS_NEVER_DONE: &[&str] = &[
    "form.token",
    "form.null-optional",
    "form.pass-through-*",
    "parameter.access-token-longest",
    "idempotency.token*",
    "idempotency.unproven-unrecorded",
    "retry.abandoned-token",
    "rotation.next-token",
    "token.*",
    "!token.no-pass-through",
    "!token.revoked",
    "http.smuggled",
];
