//! The `Signature` header, as it comes, against a second reader that goes through it byte by byte.

use alipayplus_cancel::bridge::signature::{self, SignatureHeader};

use super::decoding;

/// What a header may have at most.
const BYTES_MAX: usize = 4096;

/// The input is the header.
pub fn run(data: &[u8]) {
    let read = SignatureHeader::parse(data);
    let slow = slow(data);
    assert_eq!(
        read.as_ref().ok().map(|read| (read.key_version.as_deref(), &read.signature)),
        slow.as_ref().map(|(version, signature)| (version.as_deref(), signature)),
        "two readers of {:?}",
        String::from_utf8_lossy(data)
    );
    let Ok(read) = read else { return };

    assert!(data.len() <= BYTES_MAX && !read.signature.is_empty());
    if let Some(version) = &read.key_version {
        // it is looked up as it stands, so it must be what stood between the commas
        assert!(!version.is_empty() && version.is_ascii() && !version.contains(','));
        assert_eq!(version.trim_matches([' ', '\t']), &**version);
        let ours = signature::header(version, &read.signature);
        if ours.len() <= BYTES_MAX {
            assert_eq!(SignatureHeader::parse(&ours), Ok(read.clone()), "our own form: {ours}");
        }
    }

    // what else may be written around it
    let text = std::str::from_utf8(data).expect("what is read is ASCII");
    let parts: Vec<&str> = text.split(',').collect();
    let backwards: Vec<&str> = parts.iter().rev().copied().collect();
    for same in [parts.join(" ,\t"), backwards.join(","), format!(",{text},")] {
        if same.len() <= BYTES_MAX {
            assert_eq!(SignatureHeader::parse(&same), Ok(read.clone()), "{same:?}");
        }
    }
    // and what must not stand there twice
    let twice = format!("{text},{text}");
    assert!(SignatureHeader::parse(&twice).is_err());
}

/// Key version and signature.
fn slow(data: &[u8]) -> Option<(Option<String>, Vec<u8>)> {
    if data.len() > BYTES_MAX || data.iter().any(|byte| *byte > 127) {
        return None;
    }
    let (mut algorithms, mut versions, mut signatures) = (vec![], vec![], vec![]);
    for part in data.split(|byte| *byte == b',') {
        let part = trim(part);
        if part.is_empty() {
            continue;
        }
        let equals = part.iter().position(|byte| *byte == b'=')?;
        let (key, value) = (trim(&part[..equals]), trim(&part[equals + 1..]));
        match key.to_ascii_lowercase().as_slice() {
            b"algorithm" => algorithms.push(value),
            b"keyversion" => versions.push(value),
            b"signature" => signatures.push(value),
            _ => {}
        }
    }
    if algorithms.len() != 1 || versions.len() > 1 || signatures.len() != 1 {
        return None;
    }
    if !algorithms[0].eq_ignore_ascii_case(b"RSA256") || versions.contains(&&b""[..]) {
        return None;
    }
    let version = versions.first().map(|version| String::from_utf8_lossy(version).into_owned());
    Some((version, decoding::value(signatures[0])?))
}

fn trim(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = text {
        text = rest;
    }
    text
}
