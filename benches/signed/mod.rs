//! Signed cancelPayments as bytes, made before anything is measured.
#![allow(missing_docs, unreachable_pub)]

use alipayplus_cancel::bridge::{keys::PrivateKey, signature};

pub const PATH: &str = "/aps/api/v1/payments/cancelPayment";

/// A request of a client's; each id is another payment.
pub fn request(client: &str, key: &PrivateKey, id: usize) -> Vec<u8> {
    let body = format!(
        r#"{{"acquirerId":"1022188000000000001","pspId":"1022172000000000001","paymentRequestId":"load-{id}"}}"#
    );
    let time = "2026-05-28T12:12:12+08:00";
    let signed = signature::signed_string("POST", PATH, client, time, body.as_bytes());
    let header = signature::header("1", &key.sign(&signed).expect("a signature"));
    format!(
        "POST {PATH} HTTP/1.1\r\nhost: wallet\r\ncontent-type: application/json; charset=UTF-8\r\n\
         client-id: {client}\r\nrequest-time: {time}\r\nsignature: {header}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}
