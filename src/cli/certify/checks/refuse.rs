//! Requests that do not prove themselves: other paths and methods, headers that say nothing or too much, and signatures of
//! something else. None of them may be carried out.

use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{Checks, Source};
use crate::{
    bridge::signature,
    cli::{
        certify::wallet::{Stop, Verdict, Wallet, failed},
        target::unique,
        wire::Request,
    },
};

const EXCHANGE: &str = "docs/wire.md § Exchange";
const HEADERS: &str = "docs/wire.md § Headers of a request";
const SIGNED: &str = "docs/wire.md § What is signed";
const CODES: &str = "Alipay+ cancelPayment, cancelToken § Result/Error codes";

/// Another path.
type Change = fn(&str) -> String;
/// What stands as Client-Id instead of the right one.
type Ids = fn(&str) -> Vec<String>;
/// Writes a header or a body from its parts.
type Write = fn(&str, &str) -> Vec<String>;
/// The request that was signed instead.
type Of = fn(Request) -> Request;
/// Another signature.
type Bytes = fn(Vec<u8>) -> Vec<u8>;

pub(super) fn checks(checks: &mut Checks) {
    paths(checks);
    methods(checks);
    media(checks);
    clients(checks);
    times(checks);
    signature_headers(checks);
    signatures(checks);
}

fn paths(checks: &mut Checks) {
    checks.rule(Source::Published, CODES);
    checks.add("path-other", "A path that is no API is NO_INTERFACE_DEF", |wallet| {
        let path = wallet.target.path("/v1/payments/certify-no-such-api");
        wallet.turns_away(&wallet.payment().target(path), "NO_INTERFACE_DEF")
    });
    checks.rule(Source::Advice, HEADERS);
    let changes: [(&str, Change); 8] = [
        ("slash", |path| format!("{path}/")),
        ("two-slashes", |path| path.replace("/v1/", "//v1/")),
        ("semicolon", |path| format!("{path};v=1")),
        ("escaped-letter", |path| path.replace("cancelPayment", "%63ancelPayment")),
        ("escaped-slash", |path| path.replace("/cancelPayment", "%2FcancelPayment")),
        ("dot", |path| path.replace("/v1/", "/./v1/")),
        ("dots", |path| path.replace("/payments/", "/authorizations/../payments/")),
        ("case", |path| path.replace("cancelPayment", "cancelpayment")),
    ];
    for (name, change) in changes {
        checks.add(
            format!("path-{name}"),
            format!("Paths are compared byte for byte: {}", change("/v1/payments/cancelPayment")),
            move |wallet| {
                let request = wallet.payment();
                let path = change(&request.target);
                wallet.turns_away(&request.target(path), "NO_INTERFACE_DEF")
            },
        );
    }
}

fn methods(checks: &mut Checks) {
    checks.rule(Source::Published, CODES);
    for method in ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"] {
        let name = format!("method-{}", method.to_ascii_lowercase());
        checks.add(name, format!("{method} is METHOD_NOT_SUPPORTED"), move |wallet| {
            wallet.turns_away(&wallet.payment().method(method), "METHOD_NOT_SUPPORTED")
        });
    }
    checks.rule(Source::Advice, EXCHANGE);
    checks.add("method-lower-case", "A method is POST in capitals", |wallet| {
        wallet.turns_away(&wallet.payment().method("post"), "METHOD_NOT_SUPPORTED")
    });
}

fn media(checks: &mut Checks) {
    checks.rule(Source::Published, CODES);
    let types: [(&str, &[&str]); 6] = [
        ("text", &["text/plain"]),
        ("form", &["application/x-www-form-urlencoded"]),
        ("gbk", &["application/json; charset=GBK"]),
        ("empty", &[""]),
        ("second", &["application/json", "text/plain"]),
        ("boundary", &["multipart/form-data; boundary=application/json"]),
    ];
    for (name, values) in types {
        checks.add(
            format!("type-{name}"),
            format!("Content-Type as {values:?} is MEDIA_TYPE_NOT_ACCEPTABLE"),
            move |wallet| {
                wallet.turns_away(
                    &wallet.payment().content_types(values),
                    "MEDIA_TYPE_NOT_ACCEPTABLE",
                )
            },
        );
    }
    for coding in ["gzip", "deflate", "br"] {
        checks.add(
            format!("coding-{coding}"),
            format!("Content-Encoding {coding} is MEDIA_TYPE_NOT_ACCEPTABLE"),
            move |wallet| {
                let request = wallet.payment().line(format!("Content-Encoding: {coding}"));
                wallet.turns_away(&request, "MEDIA_TYPE_NOT_ACCEPTABLE")
            },
        );
    }
}

fn clients(checks: &mut Checks) {
    checks.rule(Source::Published, CODES);
    let ids: [(&str, &str, Ids); 7] = [
        ("absent", "No Client-Id", |_| vec![]),
        ("empty", "An empty Client-Id", |_| vec![String::new()]),
        ("unknown", "An unknown Client-Id", |_| vec![unique("NOBODY")]),
        ("twice", "Client-Id twice", |own| vec![own.to_owned(), own.to_owned()]),
        ("other-second", "Another Client-Id behind the right one", |own| {
            vec![own.to_owned(), "NOBODY".to_owned()]
        }),
        ("case", "A Client-Id in another case", |own| {
            vec![
                own.chars()
                    .map(|c| {
                        if c.is_ascii_lowercase() {
                            c.to_ascii_uppercase()
                        } else {
                            c.to_ascii_lowercase()
                        }
                    })
                    .collect(),
            ]
        }),
        ("list", "A Client-Id with another behind a comma", |own| vec![format!("{own}, NOBODY")]),
    ];
    for (name, what, ids) in ids {
        checks.add(format!("client-{name}"), format!("{what} is INVALID_CLIENT"), move |wallet| {
            let ids = ids(&wallet.target.client_id);
            if ids == [&*wallet.target.client_id] {
                return Err(Stop::Skipped("needs a Client-Id with letters".to_owned()));
            }
            let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
            wallet.turns_away(&wallet.payment().client_ids(&ids), "INVALID_CLIENT")
        });
    }
}

fn times(checks: &mut Checks) {
    checks.rule(Source::Published, CODES);
    let times: [(&str, &[&str]); 9] = [
        ("absent", &[]),
        ("empty", &[""]),
        ("words", &["soon"]),
        ("date", &["2019-05-28"]),
        ("no-offset", &["2019-05-28T12:12:12"]),
        ("no-such-day", &["2019-02-30T12:12:12Z"]),
        ("negative", &["-1559016732000"]),
        ("http-date", &["Tue, 28 May 2019 12:12:12 GMT"]),
        ("twice", &["2019-05-28T12:12:12+08:00", "2019-05-28T12:12:12+08:00"]),
    ];
    for (name, values) in times {
        checks.add(
            format!("time-{name}"),
            format!("Request-Time as {values:?} is PARAM_ILLEGAL"),
            move |wallet| wallet.turns_away(&wallet.payment().times(values), "PARAM_ILLEGAL"),
        );
    }
}

/// A request with a Signature header made of its version and value.
fn header(wallet: &Wallet, code: &str, write: impl Fn(&str, &str) -> Vec<String>) -> Verdict {
    let request = wallet.payment();
    let right = request.signature();
    let value = right.rsplit("signature=").next().unwrap_or_default();
    let headers = write(&wallet.target.signer.version, value);
    let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
    wallet.turns_away(&request.signatures(&headers), code)
}

fn signature_headers(checks: &mut Checks) {
    checks.rule(Source::Published, CODES);
    let headers: [(&str, &str, &str, Write); 14] = [
        ("absent", "No Signature", "INVALID_SIGNATURE", |_, _| vec![]),
        ("empty", "An empty Signature", "INVALID_SIGNATURE", |_, _| vec![String::new()]),
        ("twice", "Signature twice", "INVALID_SIGNATURE", |version, value| {
            let one = format!("algorithm=RSA256,keyVersion={version},signature={value}");
            vec![one.clone(), one]
        }),
        ("bare", "A value without its keys", "INVALID_SIGNATURE", |_, value| {
            vec![value.to_owned()]
        }),
        ("no-value", "A Signature without a value", "INVALID_SIGNATURE", |version, _| {
            vec![format!("algorithm=RSA256,keyVersion={version}")]
        }),
        ("empty-value", "A Signature with an empty value", "INVALID_SIGNATURE", |version, _| {
            vec![format!("algorithm=RSA256,keyVersion={version},signature=")]
        }),
        ("two-values", "A Signature with two values", "INVALID_SIGNATURE", |version, value| {
            vec![format!("algorithm=RSA256,keyVersion={version},signature=AAAA,signature={value}")]
        }),
        ("no-base64", "A value that is no base64", "INVALID_SIGNATURE", |version, _| {
            vec![format!("algorithm=RSA256,keyVersion={version},signature=***")]
        }),
        ("broken-escape", "A value with a broken escape", "INVALID_SIGNATURE", |version, value| {
            vec![format!("algorithm=RSA256,keyVersion={version},signature={value}%3")]
        }),
        ("no-algorithm", "A Signature without algorithm", "INVALID_SIGNATURE", |version, value| {
            vec![format!("keyVersion={version},signature={value}")]
        }),
        ("algorithm-none", "Algorithm none", "INVALID_SIGNATURE", |version, value| {
            vec![format!("algorithm=none,keyVersion={version},signature={value}")]
        }),
        ("algorithm-other", "Another algorithm", "INVALID_SIGNATURE", |version, value| {
            vec![format!("algorithm=RSA512,keyVersion={version},signature={value}")]
        }),
        ("two-algorithms", "Two algorithms", "INVALID_SIGNATURE", |version, value| {
            vec![format!("algorithm=none,algorithm=RSA256,keyVersion={version},signature={value}")]
        }),
        ("unknown-version", "A keyVersion that nobody knows", "KEY_NOT_FOUND", |_, value| {
            vec![format!("algorithm=RSA256,keyVersion=no-such-version,signature={value}")]
        }),
    ];
    for (name, what, code, write) in headers {
        checks.add(format!("header-{name}"), format!("{what} is {code}"), move |wallet| {
            header(wallet, code, write)
        });
    }
}

/// A request whose signature was made of something else.
fn stolen(wallet: &Wallet, of: impl Fn(Request) -> Request) -> Verdict {
    let request = wallet.payment();
    let signature = of(request.clone()).signature();
    wallet.turns_away(&request.signatures(&[&signature]), "INVALID_SIGNATURE")
}

fn value(wallet: &Wallet, bytes: &[u8]) -> String {
    signature::header(&wallet.target.signer.version, bytes)
}

fn signatures(checks: &mut Checks) {
    checks.rule(Source::Published, SIGNED);
    let stolen_ones: [(&str, &str, Of); 8] = [
        ("body", "another body", |request| {
            request.body(r#"{"acquirerId":"a","pspId":"p","paymentRequestId":"r"}"#)
        }),
        ("body-longer", "the body with a line's end behind it", |mut request| {
            request.body.push(b'\n');
            request
        }),
        ("body-empty", "an empty body", |request| request.body("")),
        ("path", "another path", |request| request.target("/v1/payments/cancelPayment/other")),
        ("method", "another method", |request| request.method("GET")),
        ("client", "another Client-Id", |request| request.client_ids(&["ANOTHER_CLIENT"])),
        ("time", "another Request-Time", |request| request.times(&["2019-05-28T12:12:12Z"])),
        ("query", "a query that was not sent", |request| {
            let target = format!("{}?x=1", request.target);
            request.target(target)
        }),
    ];
    for (name, what, of) in stolen_ones {
        checks.add(
            format!("signature-{name}"),
            format!("A signature over {what} is INVALID_SIGNATURE"),
            move |wallet| stolen(wallet, of),
        );
    }
    checks.add(
        "signature-other-api",
        "A signature for cancelToken does not do for cancelPayment",
        |wallet| {
            let path = wallet.token().target;
            stolen(wallet, |request| request.target(path.clone()))
        },
    );
    checks.add(
        "signature-added-query",
        "A query added behind the signature is INVALID_SIGNATURE",
        |wallet| {
            let request = wallet.payment().sealed();
            let target = format!("{}?admin=true", request.target);
            wallet.turns_away(&request.target(target), "INVALID_SIGNATURE")
        },
    );
    checks.add(
        "signature-reformatted",
        "The body is verified as it came, not as it would be written",
        |wallet| {
            let request = wallet.payment().sealed();
            let pretty = serde_json::from_slice::<serde_json::Value>(&request.body)
                .and_then(|json| serde_json::to_vec_pretty(&json));
            let Ok(pretty) = pretty else { return failed("the body is no JSON") };
            wallet.turns_away(&request.body(pretty), "INVALID_SIGNATURE")
        },
    );
    checks.add(
        "signature-other-string",
        "CR LF in what is signed is INVALID_SIGNATURE",
        |wallet| {
            let request = wallet.payment();
            let string =
                String::from_utf8_lossy(&request.signed_string()).replacen('\n', "\r\n", 1);
            let bytes = request.key.sign(string.as_bytes()).unwrap_or_default();
            let header = value(wallet, &bytes);
            wallet.turns_away(&request.signatures(&[&header]), "INVALID_SIGNATURE")
        },
    );
    let bytes: [(&str, &str, Bytes); 5] = [
        ("cut", "A signature without its last byte", |mut bytes| {
            bytes.pop();
            bytes
        }),
        ("longer", "A signature with a byte more", |mut bytes| {
            bytes.push(0);
            bytes
        }),
        ("flipped", "A signature with one bit flipped", |mut bytes| {
            if let Some(byte) = bytes.get_mut(100) {
                *byte ^= 1;
            }
            bytes
        }),
        ("zeros", "A signature of zeros", |bytes| vec![0; bytes.len()]),
        ("one", "A signature that is the number one", |bytes| {
            let mut one = vec![0; bytes.len()];
            if let Some(last) = one.last_mut() {
                *last = 1;
            }
            one
        }),
    ];
    for (name, what, change) in bytes {
        checks.add(
            format!("signature-{name}"),
            format!("{what} is INVALID_SIGNATURE"),
            move |wallet| {
                let request = wallet.payment();
                let header = value(wallet, &change(request.signature_bytes()));
                wallet.turns_away(&request.signatures(&[&header]), "INVALID_SIGNATURE")
            },
        );
    }
    checks.add(
        "signature-hmac",
        "An HMAC with the public key as its secret is INVALID_SIGNATURE",
        |wallet| {
            let request = wallet.payment();
            let pem = request.key.public().spki_pem();
            let key = hmac::Key::new(hmac::HMAC_SHA256, pem.as_bytes());
            let tag = hmac::sign(&key, &request.signed_string());
            let header = value(wallet, tag.as_ref());
            wallet.turns_away(&request.signatures(&[&header]), "INVALID_SIGNATURE")
        },
    );
    checks.add(
        "signature-mirrored",
        "An answer of the wallet's, sent back as a request, is INVALID_SIGNATURE",
        |wallet| {
            let answer = wallet.send(&wallet.payment())?;
            let (Some(time), Some(header)) =
                (answer.header("response-time"), answer.header("signature"))
            else {
                return failed("the answer is not signed");
            };
            // it is right as it stands, but for whose it is; the version is made one that the client has
            let version = &wallet.target.signer.version;
            let signature = header.rsplit("signature=").next().unwrap_or_default();
            let header = format!("algorithm=RSA256,keyVersion={version},signature={signature}");
            let mirrored = wallet.payment().times(&[time]).body(answer.body.clone());
            wallet.turns_away(&mirrored.signatures(&[&header]), "INVALID_SIGNATURE")
        },
    );
    checks.add(
        "signature-own-key",
        "A signature by a key that nobody registered is INVALID_SIGNATURE",
        |wallet| {
            let request = wallet.payment().key(super::super::stranger());
            wallet.turns_away(&request, "INVALID_SIGNATURE")
        },
    );
    checks.add("signature-token", "The same holds of cancelToken", |wallet| {
        let request = wallet.token().sealed().times(&["2019-05-28T12:12:12Z"]);
        wallet.turns_away(&request, "INVALID_SIGNATURE")
    });
    checks.add("raw-plus", "A blank for a plus in the signature is INVALID_SIGNATURE", |wallet| {
        for _ in 0..200 {
            let request = wallet.payment();
            let base64 = STANDARD.encode(request.signature_bytes());
            if base64[1..base64.len() - 3].contains('+') {
                let version = &wallet.target.signer.version;
                let header = format!(
                    "algorithm=RSA256,keyVersion={version},signature={}",
                    base64.replace('+', " ")
                );
                return wallet.turns_away(&request.signatures(&[&header]), "INVALID_SIGNATURE");
            }
        }
        failed("no signature with a plus was found")
    });
}
