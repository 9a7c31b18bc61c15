//! The `Signature` header, read in every form met in the wild and written in one, and the bytes that are signed.

use base64::{
    Engine as _,
    alphabet::{STANDARD as STANDARD_ALPHABET, URL_SAFE as URL_SAFE_ALPHABET},
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::STANDARD},
};
use memchr::{memchr, memchr2};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

/// Longest header that is looked at. The signature of an 8192-bit key has 1,368 characters before escaping.
const HEADER_BYTES_MAX: usize = 4096;

/// With, without or with half a padding; stray last bits are refused either way.
const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const PLAIN: GeneralPurpose = GeneralPurpose::new(&STANDARD_ALPHABET, LENIENT);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&URL_SAFE_ALPHABET, LENIENT);

/// Why a header is not read. Never holds what the header said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Longer than any signature needs.
    #[error("signature header: longer than {HEADER_BYTES_MAX} bytes")]
    TooLong,
    /// A byte that no header of ours has.
    #[error("signature header: not ASCII")]
    NotAscii,
    /// A part between commas without `=`, or without a value.
    #[error("signature header: not a list of key=value")]
    NotPairs,
    /// `algorithm`, `keyVersion` or `signature` twice.
    #[error("signature header: a key stands twice")]
    Duplicate,
    /// No `algorithm`, or another than RSA256.
    #[error("signature header: algorithm must be RSA256")]
    Algorithm,
    /// No `signature`, or one that is not base64.
    #[error("signature header: signature must be base64, percent-encoded")]
    Value,
}

/// What a `Signature` header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignatureHeader {
    /// The exact `keyVersion`; absent, if every active key of the client is to be tried.
    pub key_version: Option<Box<str>>,
    /// The signature's bytes; not verified, of any length.
    pub signature: Vec<u8>,
}

impl SignatureHeader {
    /// Reads a header: `algorithm=RSA256,keyVersion=1,signature=…`, in any order and case of the keys, with or without
    /// white space around commas, unknown keys ignored.
    pub fn parse(header: impl AsRef<[u8]>) -> Result<Self, Malformed> {
        let header = header.as_ref();
        if header.len() > HEADER_BYTES_MAX {
            return Err(Malformed::TooLong);
        }
        let header = std::str::from_utf8(header).map_err(|_| Malformed::NotAscii)?;
        if !header.is_ascii() {
            return Err(Malformed::NotAscii);
        }
        let [mut algorithm, mut key_version, mut signature] = [None; 3];
        for part in header.split(',').map(trim).filter(|part| !part.is_empty()) {
            // at the first `=` only: raw base64 ends in more of them
            let (key, value) = part.split_once('=').ok_or(Malformed::NotPairs)?;
            let key = trim(key);
            let place = if key.eq_ignore_ascii_case("algorithm") {
                &mut algorithm
            } else if key.eq_ignore_ascii_case("keyVersion") {
                &mut key_version
            } else if key.eq_ignore_ascii_case("signature") {
                &mut signature
            } else {
                continue;
            };
            if place.replace(trim(value)).is_some() {
                return Err(Malformed::Duplicate);
            }
        }
        if !algorithm.is_some_and(|name| name.eq_ignore_ascii_case("RSA256")) {
            return Err(Malformed::Algorithm);
        }
        if key_version == Some("") {
            return Err(Malformed::NotPairs);
        }
        let signature = signature.and_then(decode).ok_or(Malformed::Value)?;
        Ok(Self { key_version: key_version.map(Box::from), signature })
    }
}

/// Percent-encoded or raw; standard or URL-safe base64; padded or not.
fn decode(value: &str) -> Option<Vec<u8>> {
    let base64 = unescaped(value.as_bytes());
    let engine = if memchr2(b'-', b'_', &base64).is_some() { URL_SAFE } else { PLAIN };
    engine.decode(base64).ok().filter(|signature| !signature.is_empty())
}

/// Without its percent escapes. A `+` stays a plus, and a broken escape stays as it is: `%` is in no alphabet, so the next
/// step refuses it. Almost all of it has no escape, and is copied at once.
fn unescaped(value: &[u8]) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value;
    while let Some((before, escape)) = memchr(b'%', rest).and_then(|at| rest.split_at_checked(at)) {
        bytes.extend_from_slice(before);
        let escaped = match escape {
            [_, high, low, after @ ..] => {
                digit(*high).zip(digit(*low)).map(|(high, low)| (high << 4 | low, after))
            }
            _ => None,
        };
        let (byte, after) = escaped.unwrap_or((b'%', escape.get(1..).unwrap_or_default()));
        bytes.push(byte);
        rest = after;
    }
    bytes.extend_from_slice(rest);
    bytes
}

fn trim(text: &str) -> &str {
    text.trim_matches([' ', '\t'])
}

/// The bytes that are signed, of a request and of its response alike:
///
/// ```text
/// <method> <path[?query]>\n<Client-Id>.<Request-Time or Response-Time>.<body>
/// ```
///
/// A response names the method, path and query and the Client-Id of its request. Nothing may be normalised: every part
/// is what stood on the wire.
pub fn signed_string(
    method: &str,
    path_and_query: &str,
    client_id: &str,
    time: &str,
    body: &[u8],
) -> Vec<u8> {
    let head = [method, " ", path_and_query, "\n", client_id, ".", time, "."].map(str::as_bytes);
    let length = head.iter().map(|part| part.len()).sum::<usize>().saturating_add(body.len());
    let mut signed = Vec::with_capacity(length);
    for part in head {
        signed.extend_from_slice(part);
    }
    signed.extend_from_slice(body);
    signed
}

/// The header as we send it, with a response or, in `call`, with a request: this order, no spaces, upper-case escapes.
pub fn header(key_version: &str, signature: &[u8]) -> String {
    let base64 = STANDARD.encode(signature);
    let value = utf8_percent_encode(&base64, NON_ALPHANUMERIC);
    format!("algorithm=RSA256,keyVersion={key_version},signature={value}")
}

#[cfg(test)]
mod tests;
