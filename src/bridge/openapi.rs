//! The JSON endpoint as an OpenAPI 3.1 document, made from what the code enforces: limits, codes, paths.

use serde_json::{Map, Value, json};

use super::{
    front::Api,
    json::{DEPTH_MAX, KEYS_MAX},
    reply::MESSAGE_CHARS_MAX,
};
use crate::domain::{
    id::{ID_CHARS_MAX, PASS_THROUGH_INFO_CHARS_MAX, TOKEN_CHARS_MAX},
    result::ResultCode,
};

/// No control character, no white space at either end.
const TEXT: &str = r"^(?!\s)[^\u0000-\u001f\u007f-\u009f]*(?<!\s)$";
/// `Client-Id`, because it is reflected in a header.
const CLIENT: &str = "^[A-Za-z0-9_-]{1,64}$";
/// What an answer's `signature` looks like; `=`, `+` and `/` of the base64 are escaped.
const SIGNATURE: &str =
    "^algorithm=RSA256,keyVersion=[A-Za-z0-9_.-]{1,64},signature=([A-Za-z0-9]|%2B|%2F|%3D)+$";

/// The document, for a service that serves below these prefixes.
pub fn document(prefixes: &[&str]) -> Value {
    let servers: Vec<Value> = prefixes
        .iter()
        .map(|prefix| json!({ "url": if prefix.is_empty() { "/" } else { prefix } }))
        .collect();
    let paths: Map<String, Value> =
        Api::ALL.map(|api| (api.tail().to_owned(), path(api))).into_iter().collect();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "alipayplus-cancel",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "Alipay+'s cancelPayment and cancelToken, as a wallet answers them.",
            "description": "Called by Alipay+ with signed JSON. The HTTP status is 200 whatever the result; the result is in the body: S is done and survives everything, F is final and is never asked again, U is not known and is asked again with the same parameters. Sources: Alipay+'s API reference of the two APIs and its documentation of message signatures.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": servers,
        "paths": paths,
        "components": {
            "schemas": {
                "CancelPaymentRequest": {
                    "type": "object",
                    "description": body_says(),
                    "required": ["acquirerId", "pspId", "paymentRequestId"],
                    "properties": {
                        "acquirerId": id("The acquirer (ACQP), as Alipay+ names it."),
                        "pspId": id("The wallet (MPP), as Alipay+ names it."),
                        "paymentRequestId": id("Alipay+'s id of the payment request. With pspId the key of idempotency."),
                    },
                },
                "CancelTokenRequest": {
                    "type": "object",
                    "description": body_says(),
                    "required": ["pspId", "acquirerId", "accessToken"],
                    "properties": {
                        "pspId": id("The wallet (MPP), as Alipay+ names it."),
                        "acquirerId": id("The acquirer (ACQP), as Alipay+ names it."),
                        "accessToken": text("A token of the authorization. With pspId the key of idempotency.", TOKEN_CHARS_MAX),
                        "passThroughInfo": pass_through_info(&json!(["string", "null"]), "What Alipay+ passes to the wallet, opaque."),
                    },
                },
                "CancelPaymentResponse": response(Api::CancelPayment),
                "CancelTokenResponse": response(Api::CancelToken),
            },
        },
    })
}

fn body_says() -> String {
    format!(
        "One JSON object in UTF-8. Every parameter is a string. Unknown fields are ignored; in all at most {DEPTH_MAX} levels and {KEYS_MAX} keys, and no key twice in an object."
    )
}

fn id(description: &str) -> Value {
    text(description, ID_CHARS_MAX)
}

fn text(description: &str, most: usize) -> Value {
    json!({
        "type": "string",
        "description": description,
        "minLength": 1,
        "maxLength": most,
        "pattern": TEXT,
    })
}

fn pass_through_info(kind: &Value, description: &str) -> Value {
    json!({
        "type": kind,
        "description": description,
        "minLength": 1,
        "maxLength": PASS_THROUGH_INFO_CHARS_MAX,
    })
}

/// Whether an API has the code in its table: each lacks the one that only the other has a use for.
const fn answers(api: Api, code: ResultCode) -> bool {
    !matches!(
        (api, code),
        (Api::CancelPayment, ResultCode::InvalidToken)
            | (Api::CancelToken, ResultCode::CancelWindowExceed)
    )
}

/// One branch for each code, so that a code never goes with another status.
fn response(api: Api) -> Value {
    let codes = ResultCode::ALL.into_iter().filter(|code| answers(api, *code));
    let results: Vec<Value> = codes
        .map(|code| {
            json!({
                "title": code.wire(),
                "description": code.message(),
                "properties": {
                    "resultCode": { "const": code.wire() },
                    "resultStatus": { "const": code.status().wire() },
                },
            })
        })
        .collect();
    let mut properties = json!({
        "result": {
            "type": "object",
            "required": ["resultCode", "resultStatus", "resultMessage"],
            "additionalProperties": false,
            "properties": {
                "resultCode": { "type": "string" },
                "resultStatus": { "type": "string" },
                "resultMessage": {
                    "type": "string",
                    "description": "For people. Never repeats what was sent.",
                    "maxLength": MESSAGE_CHARS_MAX,
                },
            },
            "oneOf": results,
        },
    });
    if let (Api::CancelToken, Some(properties)) = (api, properties.as_object_mut()) {
        let says = "What the wallet passes to the acquirer, if it set anything with the grant.";
        let info = pass_through_info(&json!("string"), says);
        properties.insert("passThroughInfo".to_owned(), info);
    }
    json!({
        "type": "object",
        "required": ["result"],
        "additionalProperties": false,
        "properties": properties,
    })
}

fn path(api: Api) -> Value {
    let (says, request, answer, example) = match api {
        Api::CancelPayment => (
            "Undoes a payment whatever became of it: what was debited goes back, what was not is never debited.",
            "CancelPaymentRequest",
            "CancelPaymentResponse",
            json!({
                "acquirerId": "1022188000000000001",
                "pspId": "1022172000000000001",
                "paymentRequestId": "20200101234567890132",
            }),
        ),
        Api::CancelToken => (
            "Revokes the authorization that the token belongs to: none of its tokens is good any more.",
            "CancelTokenRequest",
            "CancelTokenResponse",
            json!({
                "acquirerId": "102218800000001234",
                "pspId": "102208800000001230",
                "accessToken": "281010033AB2F588D14B43238637264FCA5A1234",
            }),
        ),
    };
    let header = |name: &str, says: &str, schema: Value| json!({ "name": name, "in": "header", "required": true, "description": says, "schema": schema });
    let signed =
        "RSASSA-PKCS1-v1_5 with SHA-256 over `<method> <path>\\n<Client-Id>.<time>.<body>`";
    json!({
        "post": {
            "operationId": api.name(),
            "summary": says,
            "parameters": [
                header("Client-Id", "Alipay+'s id of the client, as registered.", json!({ "type": "string", "pattern": CLIENT })),
                header(
                    "Request-Time",
                    "When it was signed, as it is signed: ISO 8601 with an offset, or epoch milliseconds.",
                    json!({ "type": "string" }),
                ),
                header(
                    "Signature",
                    &format!("`algorithm=RSA256,keyVersion=1,signature=<value>`: {signed}, with Request-Time, in base64, percent-encoded."),
                    json!({ "type": "string" }),
                ),
            ],
            "requestBody": {
                "required": true,
                "content": {
                    "application/json": {
                        "schema": { "$ref": format!("#/components/schemas/{request}") },
                        "example": example,
                    },
                },
            },
            "responses": {
                "200": {
                    "description": "The result. Signed once the request has proven itself, and before that if its client is registered and its path has no query.",
                    "headers": {
                        "client-id": { "description": "The request's.", "schema": { "type": "string", "pattern": CLIENT } },
                        "response-time": { "description": "When it was signed, in whole seconds.", "schema": { "type": "string", "format": "date-time" } },
                        "signature": {
                            "description": format!("{signed}, with response-time and the method and path of the request."),
                            "schema": { "type": "string", "pattern": SIGNATURE },
                        },
                    },
                    "content": {
                        "application/json": {
                            "schema": { "$ref": format!("#/components/schemas/{answer}") },
                            "example": { "result": { "resultCode": "SUCCESS", "resultStatus": "S", "resultMessage": "Success" } },
                        },
                    },
                },
            },
        },
    })
}
