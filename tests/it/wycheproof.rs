//! Wycheproof's vectors of RSASSA-PKCS1-v1_5 with SHA-256 before our own door: signatures whose padding, hash or number is
//! wrong in every way that some library once let pass.

use std::{collections::BTreeMap, fs, path::Path};

use alipayplus_cancel::bridge::{
    keys::{KeyError, PublicKey},
    signature::{self, SignatureHeader},
};
use serde_json::Value;

fn hex(value: &Value) -> Vec<u8> {
    let digits = value.as_str().expect("hex").as_bytes();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

fn groups(bits: usize) -> Vec<Value> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/wycheproof");
    let text = fs::read_to_string(folder.join(format!("rsa_signature_{bits}_sha256_test.json")));
    let all: Value = serde_json::from_str(&text.expect("the vectors")).expect("JSON");
    let groups = all["testGroups"].as_array().expect("groups").clone();
    let count: usize = groups.iter().map(|group| group["tests"].as_array().unwrap().len()).sum();
    assert_eq!(all["numberOfTests"], count, "all of them are here");
    groups
}

/// Whether a signature as a header would bring it is taken.
fn is_taken(key: &PublicKey, message: &[u8], signature: &[u8]) -> bool {
    let header = signature::header("1", signature);
    let Ok(header) = SignatureHeader::parse(&header) else { return false };
    assert_eq!(header.signature, signature, "the header changes nothing of it");
    key.verify(message, &header.signature)
}

#[test]
fn a_signature_is_taken_only_if_it_is_the_one_that_the_standard_makes() {
    let mut by_result: BTreeMap<String, usize> = BTreeMap::new();
    for bits in [2048, 3072, 4096] {
        for group in groups(bits) {
            // keys of exponent 3 are not taken at all, see below
            let Ok(key) = PublicKey::parse(hex(&group["publicKeyDer"])) else { continue };
            assert_eq!(key.bits(), bits);
            for test in group["tests"].as_array().unwrap() {
                let result = test["result"].as_str().unwrap();
                let taken = is_taken(&key, &hex(&test["msg"]), &hex(&test["sig"]));
                // "acceptable" is a legacy that we have no need of
                assert_eq!(taken, result == "valid", "{bits}, test {}: {test}", test["tcId"]);
                *by_result.entry(result.to_owned()).or_default() += 1;
            }
        }
    }
    let counted: Vec<(&str, usize)> = by_result.iter().map(|(k, v)| (&**k, *v)).collect();
    assert_eq!(counted, [("acceptable", 3), ("invalid", 749), ("valid", 21)]);
}

#[test]
fn a_key_whose_exponent_invites_forgery_is_no_key() {
    let mut refused = 0;
    for bits in [2048, 3072, 4096] {
        for group in groups(bits) {
            let small = group["tests"].as_array().unwrap().iter().all(|test| {
                let flags = test["flags"].as_array().unwrap();
                flags.iter().any(|flag| flag == "SmallPublicKey")
            });
            let key = PublicKey::parse(hex(&group["publicKeyDer"]));
            assert_eq!(matches!(key, Err(KeyError::SmallExponent)), small, "{key:?}");
            refused += usize::from(small);
        }
    }
    assert_eq!(refused, 3);
}
