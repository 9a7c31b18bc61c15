//! Every form of a right request that was seen of an Alipay+ client. Each must be done, whatever it looks like.

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD},
};
use serde_json::json;

use super::{Checks, Source};
use crate::{
    bridge::signature,
    cli::{
        certify::wallet::{Seal, Stop, Verdict, Wallet, failed, must},
        target::unique,
        wire::{Framing, Request},
    },
};

const HEADERS: &str = "docs/wire.md § Headers of a request";
const SIGNED: &str = "docs/wire.md § What is signed";
const BODY: &str = "docs/wire.md § The body";
const EXCHANGE: &str = "docs/wire.md § Exchange";

/// Writes a header or a body from its parts.
type Write = fn(&str, &[u8]) -> String;
/// Writes a signature's value.
type WriteValue = fn(&[u8]) -> String;

/// A Signature header of one's own making, over a right request.
fn header(wallet: &Wallet, write: impl Fn(&str, &[u8]) -> String) -> Verdict {
    let request = wallet.payment();
    let header = write(&wallet.target.signer.version, &request.signature_bytes());
    wallet.succeeds(&request.signatures(&[&header])).map(drop)
}

/// The value as the header usually has it.
fn usual(bytes: &[u8]) -> String {
    let header = signature::header("1", bytes);
    header.rsplit('=').next().unwrap_or_default().to_owned()
}

/// A request whose signature in base64 has these characters.
fn with_characters(wallet: &Wallet, wanted: &[char]) -> Result<Request, Stop> {
    for _ in 0..200 {
        let request = wallet.payment();
        let base64 = STANDARD.encode(request.signature_bytes());
        if wanted.iter().all(|c| base64.contains(*c)) {
            return Ok(request);
        }
    }
    failed("no signature with these characters was found")
}

pub(super) fn checks(checks: &mut Checks) {
    checks.rule(Source::Published, EXCHANGE);
    checks.add("payment", "A right cancelPayment of an unknown payment succeeds", |wallet| {
        wallet.succeeds(&wallet.payment()).map(drop)
    });
    checks.add(
        "token",
        "A right cancelToken of an unknown token is answered INVALID_TOKEN",
        |wallet| wallet.refuses(&wallet.token(), "INVALID_TOKEN"),
    );
    signatures(checks);
    times(checks);
    headers(checks);
    bodies(checks);
    connections(checks);
}

fn signatures(checks: &mut Checks) {
    checks.rule(Source::Clients, HEADERS);
    let headers: [(&str, &str, Write); 7] = [
        ("signature-spaces", "spaces after its commas", |version, bytes| {
            format!("algorithm=RSA256, keyVersion={version}, signature={}", usual(bytes))
        }),
        ("signature-order", "its keys in another order", |version, bytes| {
            format!("signature={},keyVersion={version},algorithm=RSA256", usual(bytes))
        }),
        ("signature-case", "its keys in another case", |version, bytes| {
            format!("Algorithm=RSA256,KEYVERSION={version},Signature={}", usual(bytes))
        }),
        ("signature-algorithm-case", "its algorithm in another case", |version, bytes| {
            format!("algorithm=rsa256,keyVersion={version},signature={}", usual(bytes))
        }),
        ("signature-unknown-keys", "a key in it that nobody knows", |version, bytes| {
            let value = usual(bytes);
            format!("algorithm=RSA256,keyVersion={version},sdk=java-2.0,signature={value}")
        }),
        ("signature-no-version", "no keyVersion in it", |_, bytes| {
            format!("algorithm=RSA256,signature={}", usual(bytes))
        }),
        ("signature-tabs", "white space around its commas", |version, bytes| {
            format!("algorithm=RSA256 ,\tkeyVersion={version} , signature={}", usual(bytes))
        }),
    ];
    for (name, what, write) in headers {
        let title = format!("A Signature header with {what} is read");
        checks.add(name, title, move |wallet| header(wallet, write));
    }
    checks.rule(Source::Clients, SIGNED);
    let values: [(&str, &str, WriteValue); 5] = [
        ("value-lower-escapes", "with lower-case escapes", |bytes| {
            usual(bytes).replace("%2B", "%2b").replace("%2F", "%2f").replace("%3D", "%3d")
        }),
        ("value-raw", "in base64 without escapes", |bytes| STANDARD.encode(bytes)),
        ("value-unpadded", "in base64 without padding", |bytes| STANDARD_NO_PAD.encode(bytes)),
        ("value-url-safe", "in URL-safe base64", |bytes| URL_SAFE.encode(bytes)),
        ("value-url-safe-unpadded", "in URL-safe base64 without padding", |bytes| {
            URL_SAFE_NO_PAD.encode(bytes)
        }),
    ];
    for (name, what, write) in values {
        checks.add(name, format!("A signature {what} is read"), move |wallet| {
            let request = with_characters(wallet, &['+', '/'])?;
            let version = &wallet.target.signer.version;
            let value = write(&request.signature_bytes());
            let header = format!("algorithm=RSA256,keyVersion={version},signature={value}");
            wallet.succeeds(&request.signatures(&[&header])).map(drop)
        });
    }
}

fn times(checks: &mut Checks) {
    checks.rule(Source::Clients, HEADERS);
    for (name, time) in [
        ("time-offset", "2019-05-28T12:12:12+08:00"),
        ("time-offset-without-colon", "2019-05-28T12:12:12+0000"),
        ("time-utc", "2019-05-28T12:12:12Z"),
        ("time-one-digit", "2019-05-28T12:12:12.1Z"),
        ("time-two-digits", "2025-02-20T08:51:49.09Z"),
        ("time-milliseconds", "2019-05-28T12:12:12.123+08:00"),
        ("time-microseconds", "2019-05-28T12:12:12.123456Z"),
        ("time-seven-digits", "2019-05-28T12:12:12.1234567+08:00"),
        ("time-west", "2019-05-28T12:12:12-05:30"),
        ("time-epoch", "1559016732000"),
    ] {
        checks.add(
            name,
            format!("Request-Time {time} is read, and its age is no matter"),
            move |wallet| wallet.succeeds(&wallet.payment().times(&[time])).map(drop),
        );
    }
}

fn headers(checks: &mut Checks) {
    checks.rule(Source::Clients, HEADERS);
    let types: [(&str, &[&str]); 6] = [
        ("type-absent", &[]),
        ("type-plain", &["application/json"]),
        ("type-lower-case", &["application/json;charset=utf-8"]),
        ("type-upper-case", &["APPLICATION/JSON; CHARSET=UTF-8"]),
        ("type-quoted", &["application/json; charset=\"UTF-8\""]),
        ("type-twice", &["application/json", "application/json; charset=UTF-8"]),
    ];
    for (name, values) in types {
        checks.add(name, format!("Content-Type as {values:?} is read"), move |wallet| {
            wallet.succeeds(&wallet.payment().content_types(values)).map(drop)
        });
    }
    for (name, line, what) in [
        (
            "accept",
            "Accept: text/plain,text/xml,text/javascript,text/html",
            "An Accept without JSON is ignored",
        ),
        ("accept-encoding", "Accept-Encoding: gzip, deflate, br", "An Accept-Encoding is ignored"),
        ("agent-token", "Agent-Token: an-agent-s-token", "An Agent-Token is ignored"),
        ("agent-token-empty", "Agent-Token:", "An empty Agent-Token is ignored"),
        (
            "trace",
            "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "A W3C trace context is taken",
        ),
        (
            "trace-broken",
            "traceparent: 00-no-trace-01",
            "A trace context that cannot be read is no reason to refuse",
        ),
        ("unknown-header", "X-Sdk-Version: 2.0.1", "An unknown header is ignored"),
        (
            "content-encoding-identity",
            "Content-Encoding: identity",
            "Content-Encoding identity is none",
        ),
    ] {
        checks
            .add(name, what, move |wallet| wallet.succeeds(&wallet.payment().line(line)).map(drop));
    }
    checks.add("lower-case-names", "Header names in lower case are read", |wallet| {
        let request = wallet.payment();
        let signature = request.signature();
        let mut lower =
            request.clone().signatures(&[]).client_ids(&[]).times(&[]).content_types(&[]);
        for (name, value) in [
            ("content-type", "application/json; charset=UTF-8"),
            ("client-id", request.client_id()),
            ("request-time", request.times.first().map_or("", String::as_str)),
            ("signature", &signature),
        ] {
            lower = lower.line(format!("{name}: {value}"));
        }
        wallet.look(&lower, |answer| {
            must(answer.result("resultCode").as_deref() == Some("SUCCESS"), "it was not done")?;
            wallet.judge_seal(&request, answer, Seal::Signed)
        })
    });
}

fn bodies(checks: &mut Checks) {
    checks.rule(Source::Clients, BODY);
    let field = |wallet: &Wallet| {
        let target = &wallet.target;
        (target.acquirer.clone(), target.psp.clone(), unique("certify"))
    };
    checks.add("pretty", "A pretty-printed body is verified as it came", move |wallet| {
        let (acquirer, psp, id) = field(wallet);
        let body = format!(
            "{{\n  \"acquirerId\" : \"{acquirer}\",\n  \"pspId\" : \"{psp}\",\n  \"paymentRequestId\" : \"{id}\"\n}}\n"
        );
        wallet.succeeds(&wallet.payment().body(body)).map(drop)
    });
    checks.add("escapes", "\\u escapes in names and values are read", move |wallet| {
        let (acquirer, psp, id) = field(wallet);
        let body = format!(
            r#"{{"acquirerId":"{acquirer}","psp\u0049d":"{psp}","paymentRequestId":"\u0063\ud83d\ude00{id}"}}"#
        );
        wallet.succeeds(&wallet.payment().body(body)).map(drop)
    });
    checks.add("utf-8", "An id in UTF-8 is read", |wallet| {
        wallet.succeeds(&wallet.payment_of(&format!("{}-é-支付-🦀", unique("c")))).map(drop)
    });
    checks.add("unknown-fields", "Unknown fields are ignored", |wallet| {
        let more = json!({ "indirectMpp": { "a": [1, true, null, "x"] }, "n": 3 });
        wallet.succeeds(&with(wallet, &more)).map(drop)
    });
    checks.add("unknown-null", "An unknown field that is null is ignored", |wallet| {
        wallet.succeeds(&with(wallet, &json!({ "extendInfo": null }))).map(drop)
    });
    checks.rule(Source::Published, BODY);
    checks.add("null-optional", "passThroughInfo null is the same as none", |wallet| {
        let body = json!({
            "pspId": wallet.target.psp, "acquirerId": wallet.target.acquirer,
            "accessToken": unique("certify-token"), "passThroughInfo": null,
        });
        wallet.refuses(&wallet.token().body(body.to_string()), "INVALID_TOKEN")
    });
    checks.add("pass-through-longest", "passThroughInfo of 20,000 characters is read", |wallet| {
        let body = json!({
            "pspId": wallet.target.psp, "acquirerId": wallet.target.acquirer,
            "accessToken": unique("certify-token"), "passThroughInfo": "é".repeat(20_000),
        });
        wallet.refuses(&wallet.token().body(body.to_string()), "INVALID_TOKEN")
    });
    checks.rule(Source::Advice, BODY);
    checks.add(
        "pass-through-escaped",
        "20,000 characters that are all escaped, 240 KB, are read",
        |wallet| {
            let info = r"\ud83d\ude00".repeat(20_000);
            let Some(body) = wallet
                .target
                .token_body(&unique("certify-token"))
                .strip_suffix('}')
                .map(|body| format!(r#"{body},"passThroughInfo":"{info}"}}"#))
            else {
                return failed("no body");
            };
            wallet.refuses(&wallet.token().body(body), "INVALID_TOKEN")
        },
    );
}

/// cancelPayment with further fields.
pub(super) fn with(wallet: &Wallet, more: &serde_json::Value) -> Request {
    let mut body = json!({
        "acquirerId": wallet.target.acquirer,
        "pspId": wallet.target.psp,
        "paymentRequestId": unique("certify"),
    });
    for (name, value) in more.as_object().into_iter().flatten() {
        body[name] = value.clone();
    }
    wallet.payment().body(body.to_string())
}

fn connections(checks: &mut Checks) {
    checks.rule(Source::Clients, EXCHANGE);
    checks.add(
        "absolute-target",
        "A target in absolute form is routed and verified by its path",
        |wallet| {
            let request = wallet.payment();
            let absolute = format!("{}{}", wallet.target.endpoint.origin, request.target);
            wallet.succeeds(&request.sent_target(absolute)).map(drop)
        },
    );
    checks.rule(Source::Advice, EXCHANGE);
    checks.add("query", "A query is signed and verified as it came", |wallet| {
        let request = wallet.payment();
        let target = format!("{}?tenant=a%20b&x=", request.target);
        wallet.succeeds(&request.target(target)).map(drop)
    });
    checks.add("chunked", "A chunked body is read", |wallet| {
        wallet.succeeds(&wallet.payment().framing(Framing::Chunked(7))).map(drop)
    });
    checks.add("keep-alive", "A connection serves one request after the other", |wallet| {
        let mut connection = wallet.connect()?;
        for _ in 0..5 {
            let request = wallet.payment();
            let Ok(answer) = wallet.ask_on(&mut connection, &request)? else {
                return failed("the connection ended after an answer that did not say so");
            };
            wallet.judge(&request, &answer, "SUCCESS", Seal::Signed)?;
        }
        Ok(())
    });
    checks.add("keep-alive-refused", "A refusal does not end a connection", |wallet| {
        let mut connection = wallet.connect()?;
        let refused = wallet.payment().body("[]");
        let answer = wallet.ask_on(&mut connection, &refused)?;
        let Ok(answer) = answer else { return failed("no answer") };
        wallet.judge(&refused, &answer, "PARAM_ILLEGAL", Seal::Signed)?;
        let request = wallet.payment();
        match wallet.ask_on(&mut connection, &request)? {
            Ok(answer) => wallet.judge(&request, &answer, "SUCCESS", Seal::Signed),
            Err(_) => failed("the connection ended after a refusal"),
        }
    });
    checks.add("pieces", "A request that comes in small pieces is read", |wallet| {
        let request = wallet.payment();
        wallet
            .in_pieces(&request, 97)
            .and_then(|answer| wallet.judge(&request, &answer, "SUCCESS", Seal::Signed))
    });
}
