//! Everything that is decoded before a signature is known to be good: escapes and base64, keys, times, media types.
//!
//! The value of a signature is read a second time by [`value`], slowly, bit by bit; the two must agree on every input.
//! What is read of a key or a time must be what is read of it once it is written out again.

use std::time::Duration;

use alipayplus_cancel::{
    bridge::{
        keys::{AnyKey, PublicKey},
        media_type, request_time,
        signature::SignatureHeader,
    },
    domain::time::Timestamp,
};

/// The first byte chooses the decoder.
pub fn run(data: &[u8]) {
    let Some((choice, data)) = data.split_first() else { return };
    match choice % 4 {
        0 => signature_value(data),
        1 => key(data),
        2 => time(data),
        _ => media(data),
    }
}

fn signature_value(data: &[u8]) {
    // a comma would begin another part, and white space at the ends belongs to none
    let inside = data.iter().all(|byte| byte.is_ascii() && *byte != b',');
    let blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    if !inside || blank(data.first()) || blank(data.last()) || data.len() > 4000 {
        return;
    }
    let header = [b"algorithm=RSA256,signature=", data].concat();
    let read = SignatureHeader::parse(header).ok().map(|header| header.signature);
    assert_eq!(read, value(data), "two readers of {:?}", String::from_utf8_lossy(data));
}

/// A signature's value: escapes, then base64 in either alphabet, at least one byte.
pub fn value(text: &[u8]) -> Option<Vec<u8>> {
    let decoded = base64(&percent(text))?;
    (!decoded.is_empty()).then_some(decoded)
}

/// `%2B` is a plus; a `%` before anything else is a `%`.
fn percent(text: &[u8]) -> Vec<u8> {
    let digit = |at: usize| text.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let mut bytes = Vec::new();
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        if let (b'%', Some(high), Some(low)) = (byte, digit(at + 1), digit(at + 2)) {
            bytes.push(u8::try_from(high * 16 + low).expect("two digits are a byte"));
            at += 3;
        } else {
            bytes.push(*byte);
            at += 1;
        }
    }
    bytes
}

/// RFC 4648, one alphabet or the other; whole, half or no padding; no stray bits.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let url_safe = text.contains(&b'-') || text.contains(&b'_');
    let symbols = text.iter().position(|byte| *byte == b'=').unwrap_or(text.len());
    let (symbols, padding) = text.split_at(symbols);
    let padding_max = match symbols.len() % 4 {
        0 => 0,
        2 => 2,
        3 => 1,
        _ => return None,
    };
    if padding.len() > padding_max || padding.iter().any(|byte| *byte != b'=') {
        return None;
    }
    let mut bits: Vec<u8> = Vec::new();
    for symbol in symbols {
        let six = match (symbol, url_safe) {
            (b'A'..=b'Z', _) => symbol - b'A',
            (b'a'..=b'z', _) => symbol - b'a' + 26,
            (b'0'..=b'9', _) => symbol - b'0' + 52,
            (b'+', false) | (b'-', true) => 62,
            (b'/', false) | (b'_', true) => 63,
            _ => return None,
        };
        bits.extend((0..6).rev().map(|bit| six >> bit & 1));
    }
    let whole = bits.len() / 8 * 8;
    if bits.split_off(whole).contains(&1) {
        return None;
    }
    let byte = |bits: &[u8]| bits.iter().fold(0, |byte, bit| byte << 1 | bit);
    Some(bits.chunks(8).map(byte).collect())
}

fn key(data: &[u8]) {
    match AnyKey::parse(data) {
        Ok((AnyKey::Public(key), _)) => {
            assert!((2048..=8192).contains(&key.bits()), "{key:?}");
            for again in [key.spki_pem(), key.pkcs1_pem(), key.spki_base64(), key.pkcs1_base64()] {
                let again = PublicKey::parse(again).expect("what is written can be read");
                assert_eq!(again.fingerprint(), key.fingerprint());
            }
            let (modulus, exponent) = key.numbers().expect("it has two");
            let again = PublicKey::from_numbers(&modulus, &exponent).expect("they make a key");
            assert_eq!(again.fingerprint(), key.fingerprint());
            assert!(!key.verify(b"", b""), "nothing is no signature");
        }
        Ok((AnyKey::Private(key), _)) => {
            let signature = key.sign(b"text").expect("a key signs");
            assert!(key.public().verify(b"text", &signature));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn time(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Some(moment) = request_time::parse(text) else { return };
    assert!(text.len() <= 64);
    assert_eq!(Timestamp::from_unix_ms(moment.unix_ms), Some(moment), "in the years 1 to 9999");
    let written = request_time::response_time(moment);
    assert_eq!(written.len(), "2019-05-28T12:12:14+08:00".len());
    // the last hours of 9999 have no +08:00 in the library
    let last =
        Timestamp::MAX.unix_ms - i64::try_from(Duration::from_hours(48).as_millis()).expect("few");
    if moment.unix_ms < last {
        let again = request_time::parse(&written).expect("our own form");
        assert_eq!(again.unix_ms, moment.unix_ms.div_euclid(1000) * 1000);
    }
}

fn media(data: &[u8]) {
    if media_type::is_json_utf8(data) {
        let text = std::str::from_utf8(data).expect("what passes is text").to_ascii_lowercase();
        let bare = text.trim_start_matches([' ', '\t']);
        assert!(bare.starts_with("application/json"), "{text:?}");
        let utf16 = [data, b"; charset=utf-16"].concat();
        assert!(!media_type::is_json_utf8(&utf16), "one charset that is none stays one: {text:?}");
    }
}
