//! The value of a Signature header, in every spelling that somebody may have sent by mistake.

use base64::{
    Engine as _,
    alphabet::{STANDARD, URL_SAFE},
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use percent_encoding::percent_decode_str;

use super::Cause;
use crate::bridge::signature::SignatureHeader;

const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
    .with_decode_padding_mode(DecodePaddingMode::Indifferent)
    .with_decode_allow_trailing_bits(true);
const PLAIN: GeneralPurpose = GeneralPurpose::new(&STANDARD, LENIENT);
const SAFE: GeneralPurpose = GeneralPurpose::new(&URL_SAFE, LENIENT);

/// A signature's bytes, read in one way.
pub(super) struct Reading {
    pub(super) bytes: Vec<u8>,
    /// Why the service does not read it so.
    pub(super) cause: Option<Cause>,
}

/// What a header says, read as kindly as can be.
pub(super) struct Header {
    pub(super) key_version: Option<String>,
    pub(super) readings: Vec<Reading>,
    /// What is wrong whatever the signature is.
    pub(super) causes: Vec<Cause>,
    pub(super) notes: Vec<String>,
}

pub(super) fn read(header: &str) -> Header {
    let mut algorithm = None;
    let mut found = Header { key_version: None, readings: vec![], causes: vec![], notes: vec![] };
    let mut value = None;
    for part in header.split(',').map(str::trim) {
        let Some((name, text)) = part.split_once('=') else { continue };
        let text = text.trim();
        match name.trim().to_ascii_lowercase().as_str() {
            "algorithm" => algorithm = Some(text),
            "keyversion" => found.key_version = Some(text.to_owned()),
            "signature" => value = Some(text),
            _ => {}
        }
    }
    let due = algorithm.is_some_and(|name| name.eq_ignore_ascii_case("RSA256"));
    if !due {
        found.causes.push(Cause::algorithm(algorithm));
    }
    // without any of the keys: the bare signature, as other protocols send it
    let value = value.unwrap_or(header.trim());
    if let Ok(read) = SignatureHeader::parse(format!("algorithm=RSA256,signature={value}")) {
        if value.contains(['+', '/', '=']) {
            found.notes.push(
                "the signature is not percent-encoded; it is taken here, but a `+` is lost where others decode it"
                    .to_owned(),
            );
        }
        found.readings.push(Reading { bytes: read.signature, cause: None });
    }
    for (bytes, says, signer) in mistakes(value) {
        if !found.readings.iter().any(|known| known.bytes == bytes) {
            found.readings.push(Reading { bytes, cause: Some(Cause::encoding(says, signer)) });
        }
    }
    if found.readings.is_empty() {
        found.causes.push(Cause::encoding(
            "the Signature header holds no base64",
            "send `signature=` with the signature in base64, percent-encoded once",
        ));
    }
    found
}

const ONCE: &str = "percent-encode the base64 once, and no more";

fn mistakes(value: &str) -> Vec<(Vec<u8>, &'static str, &'static str)> {
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let (once, twice) = (decoded(value), decoded(&decoded(value)));
    let thrice = decoded(&twice);
    let quoted = value.trim_matches(['"', '\'', ' ']).replace("\\/", "/");
    let hex = || {
        let digits = once.len().is_multiple_of(2) && once.bytes().all(|b| b.is_ascii_hexdigit());
        let bytes = once.as_bytes().chunks(2).filter_map(|pair| std::str::from_utf8(pair).ok());
        digits.then(|| bytes.filter_map(|pair| u8::from_str_radix(pair, 16).ok()).collect())
    };
    let again = base64(&once).and_then(|bytes| base64(std::str::from_utf8(&bytes).ok()?));
    let found = [
        (base64(&twice), "the signature is percent-encoded twice", ONCE),
        (base64(&thrice), "the signature is percent-encoded three times", ONCE),
        (
            base64(&once.replace(' ', "+")),
            "every `+` of the signature became a blank: it was decoded as a form on the way",
            "percent-encode the base64, so that `+` is sent as `%2B`",
        ),
        (
            base64(&decoded(&quoted)),
            "the signature stands in quotes, or with its slashes escaped",
            "send the bare value, percent-encoded once",
        ),
        (hex(), "the signature is in hex, and base64 is due", "encode it in base64"),
        (again, "the signature is encoded in base64 twice", "encode it in base64 once"),
        (
            base64(&once.split_whitespace().collect::<String>()),
            "the signature's base64 is broken into lines",
            "encode it in base64 on one line",
        ),
    ];
    let filled = found.into_iter().filter_map(|(bytes, says, signer)| Some((bytes?, says, signer)));
    filled.filter(|(bytes, _, _): &(Vec<u8>, _, _)| !bytes.is_empty()).collect()
}

fn base64(text: &str) -> Option<Vec<u8>> {
    let engine = if text.contains(['-', '_']) { SAFE } else { PLAIN };
    engine.decode(text.trim()).ok()
}
