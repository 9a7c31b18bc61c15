//! Signed requests as bytes, made before anything is measured.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::pedantic, clippy::restriction)]

use std::{
    fs::File,
    io::{BufWriter, Write as _},
    ops::Range,
    path::Path,
    thread,
};

use alipayplus_cancel::bridge::{keys::PrivateKey, signature};

pub const PATH: &str = "/aps/api/v1/payments/cancelPayment";
pub const TOKEN_PATH: &str = "/aps/api/v1/authorizations/cancelToken";
/// Of all requests and imported lines.
pub const PSP: &str = "1022172000000000001";
pub const ACQUIRER: &str = "1022188000000000001";

/// A cancelPayment of a client's; each id is another payment.
pub fn request(client: &str, key: &PrivateKey, id: usize) -> Vec<u8> {
    let body =
        format!(r#"{{"acquirerId":"{ACQUIRER}","pspId":"{PSP}","paymentRequestId":"load-{id}"}}"#);
    signed(client, key, PATH, &body)
}

/// A cancelToken of a client's; each id is another token.
pub fn token_request(client: &str, key: &PrivateKey, id: usize) -> Vec<u8> {
    let body =
        format!(r#"{{"acquirerId":"{ACQUIRER}","pspId":"{PSP}","accessToken":"{}"}}"#, token(id));
    signed(client, key, TOKEN_PATH, &body)
}

/// A token as long as usual ones.
pub fn token(id: usize) -> String {
    format!("2022041318ad{id:020}0000000000000000load")
}

/// Writes what `import tokens` reads: so many tokens, each of a consent of its own.
pub fn write_tokens(file: &Path, ids: Range<usize>) {
    let mut out = BufWriter::new(File::create(file).expect("a file"));
    for id in ids {
        let token = token(id);
        writeln!(
            out,
            r#"{{"pspId":"{PSP}","authorizationId":"consent-{id}","acquirerId":"{ACQUIRER}","token":"{token}","kind":"access"}}"#
        )
        .expect("to write");
    }
    out.flush().expect("to write");
}

fn signed(client: &str, key: &PrivateKey, path: &str, body: &str) -> Vec<u8> {
    let time = "2026-05-28T12:12:12+08:00";
    let signed = signature::signed_string("POST", path, client, time, body.as_bytes());
    let header = signature::header("1", &key.sign(&signed).expect("a signature"));
    format!(
        "POST {path} HTTP/1.1\r\nhost: wallet\r\ncontent-type: application/json; charset=UTF-8\r\n\
         client-id: {client}\r\nrequest-time: {time}\r\nsignature: {header}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// One for each id, made on both cores: nothing is measured now.
pub fn many(ids: Range<usize>, make: impl Fn(usize) -> Vec<u8> + Sync) -> Vec<Vec<u8>> {
    let half = ids.start + ids.len() / 2;
    let make = &make;
    thread::scope(|scope| {
        let halves = [ids.start..half, half..ids.end]
            .map(|ids| scope.spawn(move || ids.map(make).collect::<Vec<_>>()));
        halves.into_iter().flat_map(|half| half.join().expect("signatures")).collect()
    })
}
