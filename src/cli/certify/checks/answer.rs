//! What an answer looks like, whatever it says: official clients read HTTP 200 alone, and scan headers by hand.

use std::time::Duration;

use super::{Checks, Source};
use crate::{
    bridge::request_time,
    cli::{
        certify::wallet::{Stop, Verdict, Wallet, failed, must},
        target::unique,
        wire::{Answer, Request},
    },
};

const ANSWER: &str = "docs/wire.md § Headers of an answer";
const EXCHANGE: &str = "docs/wire.md § Exchange";
const BODY: &str = "docs/wire.md § The body";
const PAGE: &str = "Alipay+ cancelPayment, cancelToken § Response parameters";

/// Of each kind of answer one.
fn kinds(wallet: &Wallet) -> [(&'static str, &'static str, Request); 8] {
    let path = wallet.target.path("/v1/payments/pay");
    [
        ("done", "that says S", wallet.payment()),
        ("refused", "that refuses what is asked", wallet.payment().body("[]")),
        ("token", "of cancelToken that says F", wallet.token()),
        (
            "unproven",
            "to a wrong signature",
            wallet.payment().sealed().times(&["2019-05-28T12:12:12Z"]),
        ),
        (
            "unknown-client",
            "to a client that nobody knows",
            wallet.payment().client_ids(&["NOBODY_KNOWS_IT"]),
        ),
        ("unknown-path", "to a path that is not served", wallet.payment().target(path)),
        ("method", "to another method", wallet.payment().method("PUT")),
        ("media-type", "to another Content-Type", wallet.payment().content_types(&["text/plain"])),
    ]
}

/// The answer to a request that is right, which the form of answers is read from.
fn usual(wallet: &Wallet) -> Result<Answer, Stop> {
    wallet.send(&wallet.payment())
}

/// The form must hold for an answer that says S, one that says F, and one of cancelToken.
fn each(wallet: &Wallet, look: impl Fn(&Answer) -> Verdict) -> Verdict {
    for request in [wallet.payment(), wallet.payment().body("[]"), wallet.token()] {
        wallet.look(&request, &look)?;
    }
    Ok(())
}

pub(super) fn checks(checks: &mut Checks) {
    checks.rule(Source::Clients, EXCHANGE);
    for (at, name, what) in [
        (0, "done", "that says S"),
        (1, "refused", "that refuses what is asked"),
        (2, "token", "of cancelToken that says F"),
        (3, "unproven", "to a wrong signature"),
        (4, "unknown-client", "to a client that nobody knows"),
        (5, "unknown-path", "to a path that is not served"),
        (6, "method", "to another method"),
        (7, "media-type", "to another Content-Type"),
    ] {
        checks.add(
            format!("status-{name}"),
            format!("An answer {what} has the HTTP status 200"),
            move |wallet| {
                let Some((_, _, request)) = kinds(wallet).into_iter().nth(at) else {
                    return failed("no such kind");
                };
                wallet.look(&request, |answer| {
                    must(answer.status == 200, format!("the HTTP status is {}", answer.status))?;
                    must(answer.result("resultCode").is_some(), "there is no result.resultCode")
                })
            },
        );
    }
    headers(checks);
    bodies(checks);
}

fn headers(checks: &mut Checks) {
    checks.rule(Source::Clients, ANSWER);
    checks.add(
        "content-type",
        "content-type is application/json; charset=UTF-8, without quotes",
        |wallet| {
            each(wallet, |answer| {
                let types = answer.values("content-type");
                must(
                    types == ["application/json; charset=UTF-8"],
                    format!("content-type: {types:?}"),
                )
            })
        },
    );
    checks.add("content-length", "content-length is set and right", |wallet| {
        each(wallet, |answer| {
            let lengths = answer.values("content-length");
            must(lengths == [answer.body.len().to_string()], format!("content-length: {lengths:?}"))
        })
    });
    checks.add("lower-case", "Header names are in lower case", |wallet| {
        each(wallet, |answer| {
            let upper =
                answer.headers.iter().find(|(name, _)| name.chars().any(char::is_uppercase));
            upper.map_or(Ok(()), |(name, _)| failed(format!("a header is called {name}")))
        })
    });
    checks.add(
        "uncompressed",
        "The body is not compressed, whatever Accept-Encoding says",
        |wallet| {
            wallet.look(&wallet.payment().line("Accept-Encoding: gzip, br, deflate"), |answer| {
                let codings = answer.values("content-encoding");
                must(codings.is_empty(), format!("content-encoding: {codings:?}"))?;
                must(answer.json().is_some(), "the body is no JSON")
            })
        },
    );
    for word in ["signature", "response-time"] {
        checks.add(
            format!("one-{word}"),
            format!("`{word}` stands in one header line alone: a client scans for it"),
            move |wallet| {
                each(wallet, |answer| {
                    let lines =
                        answer.headers.iter().map(|(name, value)| format!("{name}: {value}"));
                    let with =
                        lines.filter(|line| line.to_ascii_lowercase().contains(word)).count();
                    must(with == 1, format!("it stands in {with} lines"))
                })
            },
        );
    }
    checks.rule(Source::Published, ANSWER);
    checks.add("client-id", "client-id is the request's", |wallet| {
        each(wallet, |answer| {
            let ids = answer.values("client-id");
            must(ids == [&*wallet.target.client_id], format!("client-id: {ids:?}"))
        })
    });
    checks.add(
        "response-time",
        "response-time is ISO 8601 with an offset, in whole seconds",
        |wallet| {
            each(wallet, |answer| {
                let time = answer.header("response-time").unwrap_or_default();
                let shape = |c: char| if c.is_ascii_digit() { 'd' } else { c };
                let shape: String = time.chars().map(shape).collect();
                let good = [
                    "dddd-dd-ddTdd:dd:dd+dd:dd",
                    "dddd-dd-ddTdd:dd:dd-dd:dd",
                    "dddd-dd-ddTdd:dd:ddZ",
                ];
                must(good.contains(&&*shape), format!("response-time: {time}"))
            })
        },
    );
    checks.add("response-time-now", "response-time is now, give or take five minutes", |wallet| {
        let answer = usual(wallet)?;
        let time = answer.header("response-time").and_then(request_time::parse);
        let Some(time) = time else { return failed("response-time cannot be read") };
        let off = time.unix_ms.abs_diff(jiff::Timestamp::now().as_millisecond());
        let off = Duration::from_millis(off);
        must(off < Duration::from_mins(5), format!("it is {off:?} off this machine's clock"))
    });
    checks.add(
        "signature-form",
        "signature is algorithm=RSA256,keyVersion=…,signature=… in this order, without spaces",
        |wallet| {
            each(wallet, |answer| {
                let header = answer.header("signature").unwrap_or_default();
                let parts: Vec<&str> = header.split(',').collect();
                let [algorithm, version, value] = parts[..] else {
                    return failed(format!("signature: {header}"));
                };
                let good = algorithm == "algorithm=RSA256"
                    && version
                        .strip_prefix("keyVersion=")
                        .is_some_and(|version| !version.is_empty())
                    && value.starts_with("signature=")
                    && !header.contains([' ', '\t']);
                must(good, format!("signature: {header}"))
            })
        },
    );
    checks.add(
        "signature-escapes",
        "The signature's value is percent-encoded base64 with upper-case escapes",
        |wallet| {
            // a signature without `+` or `/` says nothing of it; that of most answers ends in `==`
            each(wallet, |answer| {
                let header = answer.header("signature").unwrap_or_default();
                let value = header.rsplit("signature=").next().unwrap_or_default();
                let plain = value.chars().all(|c| c.is_ascii_alphanumeric() || c == '%');
                let mut escapes = value.split('%').skip(1);
                let upper =
                    escapes.all(|rest| ["2B", "2F", "3D"].iter().any(|e| rest.starts_with(e)));
                must(plain && upper && !value.is_empty(), format!("its value is {value}"))
            })
        },
    );
}

fn bodies(checks: &mut Checks) {
    checks.rule(Source::Published, PAGE);
    checks.add(
        "shape",
        "The body is an object with result.resultCode and resultStatus as strings, and resultMessage, if it is there",
        |wallet| {
            each(wallet, |answer| {
                let Some(json) = answer.json() else { return failed("the body is no JSON") };
                let Some(result) = json.get("result").and_then(|result| result.as_object()) else {
                    return failed("there is no object `result`");
                };
                for field in ["resultCode", "resultStatus", "resultMessage"] {
                    let optional = field == "resultMessage";
                    must(
                        result.get(field).map_or(optional, serde_json::Value::is_string),
                        format!("result.{field} is no string"),
                    )?;
                }
                Ok(())
            })
        },
    );
    checks.add("nothing-more", "cancelPayment's answer has `result` alone", |wallet| {
        for request in [wallet.payment(), wallet.payment().body("[]")] {
            wallet.look(&request, |answer| {
                let fields: Vec<String> = answer
                    .json()
                    .and_then(|json| Some(json.as_object()?.keys().cloned().collect()))
                    .unwrap_or_default();
                must(fields == ["result"], format!("its fields are {fields:?}"))
            })?;
        }
        Ok(())
    });
    checks.add(
        "message-length",
        "resultMessage, where it is there, has 1 to 256 characters",
        |wallet| {
            let long = "x".repeat(70_000);
            for request in [
                wallet.payment(),
                wallet.payment().body("[]"),
                wallet.payment_of(&long),
                wallet.token_of(&long),
            ] {
                wallet.look(&request, |answer| {
                    let Some(message) = answer.result("resultMessage") else { return Ok(()) };
                    let length = message.chars().count();
                    must((1..=256).contains(&length), format!("it has {length}"))
                })?;
            }
            Ok(())
        },
    );
    checks.rule(Source::Advice, BODY);
    checks.add("compact", "The body is compact JSON", |wallet| {
        each(wallet, |answer| {
            let text = String::from_utf8_lossy(&answer.body).into_owned();
            let outside: String = text.split('"').step_by(2).collect();
            must(
                !outside.contains(char::is_whitespace) || text.contains('\\'),
                "it has white space",
            )
        })
    });
    checks.add("message-names", "A refused parameter is named in resultMessage", |wallet| {
        let request = wallet.payment_of(&"x".repeat(65));
        wallet.look(&request, |answer| {
            let message = answer.result("resultMessage").unwrap_or_default();
            must(message.contains("paymentRequestId"), format!("resultMessage: {message}"))
        })
    });
    checks.add(
        "repeats-nothing",
        "An answer never repeats a token or a value that was sent",
        |wallet| {
            let token = unique("certify-secret-token");
            let long = format!("{token}{}", "x".repeat(128));
            let (id, unknown) = (unique("certify"), unique("UNKNOWN"));
            for (value, request) in [
                (&token, wallet.token_of(&token)),
                (&token, wallet.token_of(&long)),
                (&id, wallet.payment_of(&id)),
                (&unknown, wallet.payment().client_ids(&[&unknown])),
            ] {
                wallet.look(&request, |answer| {
                    let repeated = answer.text().contains(value.as_str());
                    must(
                        !repeated,
                        format!(
                            "the value of {} is in the answer",
                            if *value == token { "accessToken" } else { "the request" }
                        ),
                    )
                })?;
            }
            Ok(())
        },
    );
}
