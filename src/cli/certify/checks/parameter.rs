//! Parameters: what is missing, empty, of another type, too long, or has a character that no id has.

use serde_json::{Value, json};

use super::{Checks, Source, form::with};
use crate::cli::{
    certify::wallet::{ID_MAX, TOKEN_MAX, Wallet},
    target::unique,
    wire::Request,
};

const BODY: &str = "docs/wire.md § The body";
const PAGE: &str = "Alipay+ cancelPayment, cancelToken § Request parameters";

/// cancelToken with further fields.
fn token_with(wallet: &Wallet, more: &Value) -> Request {
    let mut body = json!({
        "pspId": wallet.target.psp,
        "acquirerId": wallet.target.acquirer,
        "accessToken": unique("certify-token"),
    });
    for (name, value) in more.as_object().into_iter().flatten() {
        body[name] = value.clone();
    }
    wallet.token().body(body.to_string())
}

/// The same request without that field.
fn without(mut request: Request, field: &str) -> Request {
    let mut body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    if let Some(fields) = body.as_object_mut() {
        fields.remove(field);
    }
    request.body = body.to_string().into_bytes();
    request
}

/// A request of an API with one field as that.
type Make = fn(&Wallet, &Value) -> Request;

/// Every required parameter, and how a request with another value is made.
const REQUIRED: [(&str, &str, Make); 6] = [
    ("acquirer-id", "acquirerId", with),
    ("psp-id", "pspId", with),
    ("payment-request-id", "paymentRequestId", with),
    ("token-acquirer-id", "acquirerId", token_with),
    ("token-psp-id", "pspId", token_with),
    ("access-token", "accessToken", token_with),
];

pub(super) fn checks(checks: &mut Checks) {
    for (name, field, make) in REQUIRED {
        checks.rule(Source::Published, PAGE);
        checks.add(
            format!("{name}-missing"),
            format!("{field} missing is PARAM_ILLEGAL"),
            move |wallet| {
                wallet.refuses(&without(make(wallet, &json!({})), field), "PARAM_ILLEGAL")
            },
        );
        for (kind, value) in [
            ("null", json!(null)),
            ("empty", json!("")),
            ("number", json!(1)),
            ("boolean", json!(true)),
            ("object", json!({ "id": "x" })),
            ("array", json!(["x"])),
        ] {
            let title = format!("{field} as {value} is PARAM_ILLEGAL");
            checks.add(format!("{name}-{kind}"), title, move |wallet| {
                wallet.refuses(&make(wallet, &json!({ field: value })), "PARAM_ILLEGAL")
            });
        }
        let most = if field == "accessToken" { TOKEN_MAX } else { ID_MAX };
        checks.add(
            format!("{name}-long"),
            format!("{field} of {} characters is PARAM_ILLEGAL", most + 1),
            move |wallet| {
                let long = "x".repeat(most + 1);
                wallet.refuses(&make(wallet, &json!({ field: long })), "PARAM_ILLEGAL")
            },
        );
        checks.rule(Source::Advice, BODY);
        for (kind, value) in [
            ("control", "a\u{0}b"),
            ("blank-before", " a"),
            ("blank-behind", "a\u{3000}"),
            ("line", "a\nb"),
        ] {
            let title = format!("{field} as {} is PARAM_ILLEGAL", json!(value));
            checks.add(format!("{name}-{kind}"), title, move |wallet| {
                wallet.refuses(&make(wallet, &json!({ field: value })), "PARAM_ILLEGAL")
            });
        }
        checks.add(
            format!("{name}-case"),
            format!("{field} in another case is an unknown field, so {field} is missing"),
            move |wallet| {
                let request = make(wallet, &json!({ field.to_ascii_lowercase(): "a" }));
                wallet.refuses(&without(request, field), "PARAM_ILLEGAL")
            },
        );
    }
    checks.rule(Source::Published, PAGE);
    checks.add(
        "payment-request-id-longest",
        "paymentRequestId of 64 characters is read, whatever their bytes",
        |wallet| {
            let begin = unique("c");
            let id = format!("{begin}{}", "🦀".repeat(ID_MAX - begin.len()));
            wallet.succeeds(&wallet.payment_of(&id)).map(drop)
        },
    );
    checks.add("access-token-longest", "accessToken of 128 characters is read", |wallet| {
        let begin = unique("certify");
        let token = format!("{begin}{}", "é".repeat(TOKEN_MAX - begin.len()));
        wallet.refuses(&wallet.token_of(&token), "INVALID_TOKEN")
    });
    for (kind, value) in
        [("empty", json!("")), ("number", json!(1)), ("object", json!({ "a": "b" }))]
    {
        let title = format!("passThroughInfo as {value} is PARAM_ILLEGAL");
        checks.add(format!("pass-through-{kind}"), title, move |wallet| {
            wallet
                .refuses(&token_with(wallet, &json!({ "passThroughInfo": value })), "PARAM_ILLEGAL")
        });
    }
    checks.add(
        "pass-through-long",
        "passThroughInfo of 20,001 characters is PARAM_ILLEGAL",
        |wallet| {
            let long = "x".repeat(20_001);
            wallet
                .refuses(&token_with(wallet, &json!({ "passThroughInfo": long })), "PARAM_ILLEGAL")
        },
    );
    checks.add("other-api", "cancelPayment's body is none for cancelToken", |wallet| {
        let body = wallet.target.payment_body(&unique("certify"));
        wallet.refuses(&wallet.token().body(body), "PARAM_ILLEGAL")
    });
}
