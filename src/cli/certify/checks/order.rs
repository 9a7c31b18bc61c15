//! The order of checks, first failure answers: a request that breaks every rule, and each next one repairs one more.

use super::{Checks, Source};
use crate::cli::{
    certify::wallet::{Seal, Stop, Wallet},
    target::unique,
    wire::Request,
};

const ORDER: &str = "docs/wire.md § Order of checks";
const BODY_BYTES_MAX: usize = 512 * 1024;

/// In their order: what is broken, what is answered, what it is called.
const RULES: [(&str, &str, &str); 12] = [
    ("path", "NO_INTERFACE_DEF", "the path"),
    ("method", "METHOD_NOT_SUPPORTED", "the method"),
    ("content-type", "MEDIA_TYPE_NOT_ACCEPTABLE", "the Content-Type"),
    ("content-encoding", "MEDIA_TYPE_NOT_ACCEPTABLE", "the Content-Encoding"),
    ("body-size", "PARAM_ILLEGAL", "the body's size"),
    ("client-id", "INVALID_CLIENT", "the Client-Id"),
    ("request-time", "PARAM_ILLEGAL", "the Request-Time"),
    ("signature-form", "INVALID_SIGNATURE", "the Signature header's form"),
    ("key-version", "KEY_NOT_FOUND", "the keyVersion"),
    ("signature", "INVALID_SIGNATURE", "the signature"),
    ("json", "PARAM_ILLEGAL", "the body's JSON"),
    ("parameter", "PARAM_ILLEGAL", "a parameter"),
];

/// A request whose first `repaired` rules hold and whose others are all broken.
fn broken(wallet: &Wallet, repaired: usize) -> Request {
    let holds = |rule: &str| {
        RULES.iter().position(|(name, ..)| *name == rule).is_none_or(|at| at < repaired)
    };
    let id = if holds("parameter") { unique("certify") } else { "x".repeat(65) };
    let mut body = wallet.target.payment_body(&id);
    if !holds("json") {
        body = format!("[{body}]");
    }
    if !holds("body-size") {
        body.push_str(&" ".repeat(BODY_BYTES_MAX));
    }
    let mut request = wallet.payment().body(body);
    if !holds("path") {
        request = request.target(wallet.target.path("/v1/payments/pay"));
    }
    if !holds("method") {
        request = request.method("PUT");
    }
    if !holds("content-type") {
        request = request.content_types(&["text/plain"]);
    }
    if !holds("content-encoding") {
        request = request.line("Content-Encoding: gzip");
    }
    if !holds("client-id") {
        request = request.client_ids(&["NOBODY_KNOWS_IT"]);
    }
    if !holds("request-time") {
        request = request.times(&["soon"]);
    }
    if !holds("key-version") {
        request = request.key_version(Some("no-such-version"));
    }
    if !holds("signature") {
        // made, and then something else is sent
        let header = request.clone().body("something else").signature();
        request = request.signatures(&[&header]);
    }
    if !holds("signature-form") {
        request = request.signatures(&["algorithm=NONE,keyVersion=no-such-version,signature=AAAA"]);
    }
    request
}

pub(super) fn checks(checks: &mut Checks) {
    checks.rule(Source::Advice, ORDER);
    for (repaired, (name, code, what)) in RULES.into_iter().enumerate() {
        let title = format!("Of all that is wrong, {what} is answered before what comes after it");
        checks.add(name, title, move |wallet| wallet.turns_away(&broken(wallet, repaired), code));
    }
    checks.add("nothing", "With nothing broken, the same request succeeds", |wallet| {
        wallet.succeeds(&broken(wallet, RULES.len())).map(drop)
    });
    checks.rule(Source::Published, ORDER);
    checks.add(
        "access-psp",
        "A pspId that the client may not act for is ACCESS_DENIED, signed",
        |wallet| {
            let needed = || {
                Stop::Skipped(
                    "needs --foreign-psp-id, one that the client may not act for".to_owned(),
                )
            };
            let psp = wallet.foreign_psp.as_ref().ok_or_else(needed)?;
            let mut target = wallet.target.clone();
            target.psp.clone_from(psp);
            let body = target.payment_body(&unique("certify"));
            wallet.expect(&wallet.payment().body(body), "ACCESS_DENIED", Seal::Signed).map(drop)
        },
    );
    checks.add(
        "access-acquirer",
        "An acquirerId that the client may not act for is ACCESS_DENIED, signed",
        |wallet| {
            let needed = || {
                Stop::Skipped(
                    "needs --foreign-acquirer-id, one that the client may not act for".to_owned(),
                )
            };
            let acquirer = wallet.foreign_acquirer.as_ref().ok_or_else(needed)?;
            let mut target = wallet.target.clone();
            target.acquirer.clone_from(acquirer);
            let body = target.token_body(&unique("certify-token"));
            wallet.expect(&wallet.token().body(body), "ACCESS_DENIED", Seal::Signed).map(drop)
        },
    );
    checks.rule(Source::Advice, ORDER);
    checks.add(
        "access-after-parameters",
        "Parameters are looked at before what the client may do",
        |wallet| {
            let needed = || {
                Stop::Skipped(
                    "needs --foreign-psp-id, one that the client may not act for".to_owned(),
                )
            };
            let psp = wallet.foreign_psp.as_ref().ok_or_else(needed)?;
            let mut target = wallet.target.clone();
            target.psp.clone_from(psp);
            let body = target.payment_body(&"x".repeat(65));
            wallet.expect(&wallet.payment().body(body), "PARAM_ILLEGAL", Seal::Signed).map(drop)
        },
    );
}
