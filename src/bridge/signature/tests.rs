//! Tests of the header and of the signed bytes, most of them over the vectors of the official client.

use std::{fs, io, process::Command};

use proptest::prelude::*;

use super::{HEADER_BYTES_MAX, Malformed, SignatureHeader, header, signed_string};
use crate::bridge::{
    keys::{PrivateKey, PublicKey},
    vectors::{self, Case, SIGNERS},
};

fn private_key(signer: &str) -> PrivateKey {
    PrivateKey::parse(vectors::text(&format!("/keys/{signer}/pkcs8_pem"))).unwrap()
}

fn public_key(signer: &str) -> PublicKey {
    PublicKey::parse(vectors::text(&format!("/keys/{signer}/spki_pem"))).unwrap()
}

fn signed(case: Case) -> Vec<u8> {
    let [method, path, body] = ["method", "path", "body"].map(|name| case.text(name));
    signed_string(method, path, case.header("Client-Id"), case.time(), body.as_bytes())
}

fn verifies(case: Case, header: &str) -> bool {
    let parsed = SignatureHeader::parse(header).unwrap();
    assert_eq!(parsed.key_version.as_deref(), Some("1"));
    public_key(case.text("signer")).verify(&signed(case), &parsed.signature)
}

/// A spelling of the vectors: a whole header, or the value alone.
fn as_header(spelling: &str) -> String {
    if spelling.to_ascii_lowercase().contains("signature=") {
        return spelling.to_owned();
    }
    format!("algorithm=RSA256,keyVersion=1,signature={spelling}")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat()
}

fn why(header: &str) -> Option<Malformed> {
    SignatureHeader::parse(header).err()
}

#[test]
fn every_positive_vector_verifies_in_every_spelling() {
    for case in vectors::cases("positive") {
        let name = case.text("name");
        assert_eq!(hex(&signed(case)), case.text("string_to_sign_hex"), "{name}");
        assert!(verifies(case, case.header("Signature")), "{name}");
        for (spelling, text) in case.accept_also() {
            assert!(verifies(case, &as_header(text)), "{name}: {spelling}");
        }
    }
}

#[test]
fn no_negative_vector_verifies_in_any_spelling() {
    for case in vectors::cases("negative") {
        let name = case.text("name");
        assert!(!verifies(case, case.header("Signature")), "{name}");
        for (spelling, text) in case.accept_also() {
            assert!(!verifies(case, &as_header(text)), "{name}: {spelling}");
        }
    }
}

#[test]
fn our_signature_equals_the_official_clients_byte_for_byte() {
    for case in vectors::cases("positive") {
        let name = case.text("name");
        let signature = private_key(case.text("signer")).sign(&signed(case)).unwrap();
        assert_eq!(hex(&signature), case.text("signature_hex"), "{name}");
        let ours = header("1", &signature);
        assert_eq!(ours, as_header(case.text("signature_urlencoded")), "{name}");
        assert_eq!(ours, case.header("Signature"), "{name}");
        let raw = SignatureHeader::parse(as_header(case.text("signature_base64"))).unwrap();
        assert_eq!(raw.signature, signature, "{name}");
    }
}

#[test]
fn one_signers_message_does_not_verify_with_the_others_key() {
    for case in vectors::cases("positive") {
        let parsed = SignatureHeader::parse(case.header("Signature")).unwrap();
        let other = SIGNERS.into_iter().find(|signer| *signer != case.text("signer")).unwrap();
        assert!(!public_key(other).verify(&signed(case), &parsed.signature));
    }
}

#[test]
fn our_signature_equals_that_of_openssl() {
    let dir = tempfile::tempdir().unwrap();
    let [key, message] = ["key.pem", "message"].map(|name| dir.path().join(name));
    for case in vectors::cases("positive") {
        let signer = case.text("signer");
        fs::write(&key, vectors::text(&format!("/keys/{signer}/pkcs1_pem"))).unwrap();
        fs::write(&message, signed(case)).unwrap();
        let mut openssl = Command::new("openssl");
        openssl.args(["dgst", "-sha256", "-sign"]).arg(&key).arg(&message);
        let output = match openssl.output() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                eprintln!("skipped: no openssl on this machine");
                return;
            }
            output => output.unwrap(),
        };
        assert!(output.status.success());
        assert_eq!(private_key(signer).sign(&signed(case)).unwrap(), output.stdout);
    }
}

#[test]
fn keys_come_in_any_order_and_case_with_white_space_and_strangers() {
    let expected =
        SignatureHeader { key_version: Some("7".into()), signature: b"hello!!".to_vec() };
    for header in [
        "algorithm=RSA256,keyVersion=7,signature=aGVsbG8hIQ%3D%3D",
        "algorithm=RSA256, keyVersion=7,\tsignature=aGVsbG8hIQ==",
        " signature=aGVsbG8hIQ , KEYVERSION=7 , Algorithm=rsa256 ",
        "signature=aGVsbG8hIQ%3d%3d,x=1,keyversion=7,ALGORITHM=Rsa256,x=2,",
    ] {
        assert_eq!(SignatureHeader::parse(header), Ok(expected.clone()), "{header}");
    }
    let absent = SignatureHeader::parse("algorithm=RSA256,signature=aGVsbG8hIQ==").unwrap();
    assert_eq!(absent.key_version, None);
}

#[test]
fn a_value_is_read_in_both_alphabets_with_or_without_padding() {
    for value in [
        "+/+/+w==",
        "%2B%2F%2b%2f%2Bw%3D%3D",
        "-_-_-w==",
        "-_-_-w",
        "+/+/+w",
        "-_-_-w=",
        "%2D_-_-w",
    ] {
        let parsed = SignatureHeader::parse(as_header(value)).unwrap();
        assert_eq!(parsed.signature, [0xfb, 0xff, 0xbf, 0xfb], "{value}");
    }
}

#[test]
fn a_value_that_is_no_base64_is_malformed() {
    for value in [
        "",
        "%",
        "%2",
        "%zz",
        "aGVsbG8hIQ%3",
        "aGVs bG8h",
        "aGVsbG8hIQ===",
        "====",
        "+/-_",
        "a",
        "aGVsbG8hIR==",
        "%252B",
        "\"aGVs\"",
        "aGVs=bG8h",
        "%ff",
        "%00aaa",
    ] {
        assert_eq!(why(&as_header(value)), Some(Malformed::Value), "{value}");
    }
}

#[test]
fn a_header_says_what_is_wrong_with_it() {
    for (header, expected) in [
        ("", Malformed::Algorithm),
        ("keyVersion=1,signature=aGVs", Malformed::Algorithm),
        ("algorithm=RSA512,signature=aGVs", Malformed::Algorithm),
        ("algorithm=,signature=aGVs", Malformed::Algorithm),
        ("algorithm=RSA256", Malformed::Value),
        ("algorithm=RSA256,keyVersion=,signature=aGVs", Malformed::NotPairs),
        ("algorithm=RSA256,hello,signature=aGVs", Malformed::NotPairs),
        ("algorithm=RSA256,signature=aGVs,signature=aGVs", Malformed::Duplicate),
        ("algorithm=RSA256,ALGORITHM=RSA256,signature=aGVs", Malformed::Duplicate),
        ("algorithm=RSA256,keyVersion=1,keyversion=1,signature=aGVs", Malformed::Duplicate),
        ("algorithm=RSA256,signature=aGVs,x=é", Malformed::NotAscii),
    ] {
        assert_eq!(why(header), Some(expected), "{header}");
    }
    let long = as_header(&"A".repeat(HEADER_BYTES_MAX));
    assert_eq!(why(&long), Some(Malformed::TooLong));
    let border = |length| why(&"A".repeat(length));
    assert_eq!(border(HEADER_BYTES_MAX), Some(Malformed::NotPairs));
    assert_eq!(border(HEADER_BYTES_MAX + 1), Some(Malformed::TooLong));
    assert_eq!(SignatureHeader::parse([0xff]), Err(Malformed::NotAscii));
}

proptest! {
    /// As the library that writes them reads them, broken ones too.
    #[test]
    fn escapes_are_read_as_they_are_everywhere(
        pieces in prop::collection::vec(
            prop_oneof![any::<u8>().prop_map(|byte| vec![byte]), "%[0-9a-fA-F]{2}|%|[a-zA-Z0-9+/=]{1,9}".prop_map(String::into_bytes)],
            0..40,
        ),
    ) {
        let value = pieces.concat();
        let read: Vec<u8> = percent_encoding::percent_decode(&value).collect();
        prop_assert_eq!(super::unescaped(&value), read);
    }

    #[test]
    fn our_own_header_is_read_back(signature in prop::collection::vec(any::<u8>(), 1..600)) {
        let parsed = SignatureHeader::parse(header("1", &signature)).unwrap();
        prop_assert_eq!(parsed.signature, signature);
    }

    #[test]
    fn arbitrary_headers_never_panic(header in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(SignatureHeader::parse(header).is_err());
    }
}
