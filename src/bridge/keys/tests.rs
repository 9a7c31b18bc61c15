//! Tests of reading, judging and writing keys.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use pkcs1::{RsaPrivateKey, RsaPublicKey, UintRef};
use pkcs8::der::Encode as _;
use proptest::prelude::*;

use super::{AnyKey, Form, KeyError, PrivateKey, PublicKey, Structure, Wrapping, pem_of};
use crate::bridge::{
    signer::Signer,
    vectors::{self, SIGNERS},
};

fn pem(signer: &str, form: &str) -> &'static str {
    vectors::text(&format!("/keys/{signer}/{form}_pem"))
}

fn bare(signer: &str, form: &str) -> &'static str {
    vectors::text(&format!("/keys/bare/{signer}/{form}"))
}

fn ours() -> PublicKey {
    PublicKey::parse(pem("test_mpp", "spki")).unwrap()
}

/// PKCS#1 of a public key with these numbers.
fn public_of(modulus: &[u8], exponent: &[u8]) -> Vec<u8> {
    let [modulus, public_exponent] =
        [modulus, exponent].map(|number| UintRef::new(number).unwrap());
    RsaPublicKey { modulus, public_exponent }.to_der().unwrap()
}

/// PKCS#1 of a private key with these public numbers, the rest nonsense.
fn private_of(modulus: &[u8], exponent: &[u8]) -> Vec<u8> {
    let [modulus, public_exponent, one] =
        [modulus, exponent, &[1]].map(|number| UintRef::new(number).unwrap());
    let key = RsaPrivateKey {
        modulus,
        public_exponent,
        private_exponent: one,
        prime1: one,
        prime2: one,
        exponent1: one,
        exponent2: one,
        coefficient: one,
        other_prime_infos: None,
    };
    key.to_der().unwrap()
}

const F4: &[u8] = &[1, 0, 1];

fn modulus_of(bytes: usize) -> Vec<u8> {
    vec![0xff; bytes]
}

#[test]
fn every_form_of_the_vectors_is_the_same_key() {
    for signer in SIGNERS {
        let expected = PublicKey::parse(pem(signer, "spki")).unwrap();
        assert_eq!(PublicKey::parse(bare(signer, "spki")).unwrap(), expected);
        for form in ["pkcs8", "pkcs1"] {
            for text in [pem(signer, form), bare(signer, form)] {
                let key = PrivateKey::parse(text).unwrap();
                assert_eq!(key.public(), &expected);
                assert!(expected.verify(b"message", &key.sign(b"message").unwrap()));
            }
        }
        let pkcs1 = expected.pkcs1_pem();
        assert_eq!(PublicKey::parse(pkcs1).unwrap(), expected);
        assert_eq!(PublicKey::parse(expected.pkcs1_base64()).unwrap(), expected);
        assert_eq!(expected.bits(), 2048);
    }
    assert_ne!(PublicKey::parse(pem("test_alipayplus", "spki")).unwrap(), ours());
}

#[test]
fn what_is_written_equals_the_vectors_byte_for_byte() {
    for signer in SIGNERS {
        let key = PrivateKey::parse(bare(signer, "pkcs1")).unwrap();
        assert_eq!(key.pkcs8_pem().unwrap().trim_end(), pem(signer, "pkcs8").trim_end());
        assert_eq!(key.pkcs1_pem().unwrap().trim_end(), pem(signer, "pkcs1").trim_end());
        assert_eq!(key.public().spki_pem().trim_end(), pem(signer, "spki").trim_end());
        assert_eq!(key.pkcs8_base64().unwrap().as_str(), bare(signer, "pkcs8"));
        assert_eq!(key.pkcs1_base64().unwrap().as_str(), bare(signer, "pkcs1"));
        assert_eq!(key.public().spki_base64(), bare(signer, "spki"));
    }
}

#[test]
fn white_space_line_ends_marks_and_lost_padding_do_not_matter() {
    let [in_pem, in_base64] = [pem("test_mpp", "spki"), bare("test_mpp", "spki")];
    let lines: Vec<&str> = in_pem.lines().filter(|line| !line.starts_with('-')).collect();
    for text in [
        in_pem.replace('\n', "\r\n"),
        in_pem.replace('\n', " "),
        format!("\u{feff}{in_pem}"),
        format!("Bag Attributes\n  friendlyName: x\n{in_pem}\n\n"),
        lines.join("\n"),
        lines.join("\r\n"),
        format!("\u{feff}\n  {in_base64}\t\r\n"),
        in_base64.trim_end_matches('=').to_owned(),
    ] {
        assert_eq!(PublicKey::parse(&text), Ok(ours()), "{text:?}");
    }
}

#[test]
fn raw_der_is_read_and_every_form_is_named() {
    let der = |form| STANDARD.decode(bare("test_mpp", form)).unwrap();
    let form = |input: &[u8]| AnyKey::parse(input).unwrap().1;
    for (name, structure) in
        [("pkcs8", Structure::Pkcs8), ("pkcs1", Structure::Pkcs1Private), ("spki", Structure::Spki)]
    {
        assert_eq!(form(&der(name)), Form { structure, wrapping: Wrapping::Der });
        let base64 = bare("test_mpp", name).as_bytes();
        assert_eq!(form(base64), Form { structure, wrapping: Wrapping::Base64 });
        let in_pem = pem("test_mpp", name).as_bytes();
        assert_eq!(form(in_pem), Form { structure, wrapping: Wrapping::Pem });
    }
    let pkcs1 = form(ours().pkcs1_pem().as_bytes());
    assert_eq!(pkcs1.to_string(), "PKCS#1 (public) as PEM");
}

#[test]
fn a_label_on_the_wrong_structure_does_not_matter() {
    let labelled = pem("test_mpp", "pkcs1").replace("RSA PRIVATE KEY", "PRIVATE KEY");
    assert_eq!(PrivateKey::parse(labelled).unwrap().public(), &ours());
}

#[test]
fn the_wrong_half_of_a_pair_is_named() {
    for form in ["pkcs8", "pkcs1"] {
        let refused = PublicKey::parse(pem("test_mpp", form)).unwrap_err();
        assert_eq!(refused, KeyError::PrivateForPublic);
        assert_eq!(PublicKey::parse(bare("test_mpp", form)), Err(KeyError::PrivateForPublic));
    }
    for text in [pem("test_mpp", "spki"), bare("test_mpp", "spki")] {
        assert_eq!(PrivateKey::parse(text).unwrap_err(), KeyError::PublicForPrivate);
    }
}

#[test]
fn what_is_no_rsa_key_is_named() {
    let ec = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
    let ec = ec.to_pkcs8v1().unwrap();
    let certified = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap();
    let ec_public = certified.signing_key.public_key_pem();
    let certificate = certified.cert.der().to_vec();
    // EncryptedPrivateKeyInfo: an algorithm and an octet string
    let encrypted = [0x30, 0x81, 9, 0x30, 3, 6, 1, 42, 4, 2, 0xff, 0xff];
    let encrypted = [&[0x30, 9], &encrypted[3..]].concat();
    for (input, expected) in [
        (ec.as_ref().to_vec(), KeyError::NotRsa),
        (pem_of("PRIVATE KEY", ec.as_ref()).as_bytes().to_vec(), KeyError::NotRsa),
        (ec_public.into_bytes(), KeyError::NotRsa),
        (b"-----BEGIN EC PRIVATE KEY-----\n".to_vec(), KeyError::NotRsa),
        (STANDARD.encode(&certificate).into_bytes(), KeyError::Certificate),
        (certificate, KeyError::Certificate),
        (certified.cert.pem().into_bytes(), KeyError::Certificate),
        (b"-----BEGIN CERTIFICATE REQUEST-----\n".to_vec(), KeyError::Certificate),
        (encrypted, KeyError::Encrypted),
        // SEC 1: a version and the secret
        (vec![0x30, 7, 2, 1, 1, 4, 2, 0xff, 0xff], KeyError::NotRsa),
        (b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nMII=".to_vec(), KeyError::Encrypted),
        (b"-----BEGIN OPENSSH PRIVATE KEY-----\nMII=".to_vec(), KeyError::OpenSsh),
        (b"ssh-rsa AAAAB3 someone@somewhere".to_vec(), KeyError::OpenSsh),
        (b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n".to_vec(), KeyError::UnknownLabel),
    ] {
        assert_eq!(AnyKey::parse(&input).unwrap_err(), expected);
    }
    let legacy = pem("test_mpp", "pkcs1").replacen(
        "-----\n",
        "-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\n",
        1,
    );
    assert_eq!(PrivateKey::parse(legacy).unwrap_err(), KeyError::Encrypted);
}

#[test]
fn garbage_is_named() {
    let good = pem("test_mpp", "spki");
    let trailing = [STANDARD.decode(bare("test_mpp", "spki")).unwrap(), vec![0]].concat();
    for (input, expected) in [
        (b"".to_vec(), KeyError::Empty),
        (b"\xef\xbb\xbf \r\n".to_vec(), KeyError::Empty),
        (b"\xff\xfeM\0I\0".to_vec(), KeyError::NotText),
        (b"not a key!".to_vec(), KeyError::Base64),
        (b"MIIB*".to_vec(), KeyError::Base64),
        (b"bm90IGEga2V5".to_vec(), KeyError::NotAKey),
        (b"0\x82\xff\xff".to_vec(), KeyError::NotAKey),
        (trailing, KeyError::NotAKey),
        (good.as_bytes()[..good.len() / 2].to_vec(), KeyError::BrokenPem),
        (good.replace("END PUBLIC", "END PRIVATE").into_bytes(), KeyError::BrokenPem),
        (good.replacen("MII", "M!I", 1).into_bytes(), KeyError::Base64),
        (good.repeat(2).into_bytes(), KeyError::SeveralBlocks),
        (vec![b'A'; 64 * 1024], KeyError::NotAKey),
        (vec![b'A'; 64 * 1024 + 1], KeyError::TooLong),
    ] {
        assert_eq!(AnyKey::parse(&input).unwrap_err(), expected);
    }
}

#[test]
fn weak_numbers_are_refused_in_both_halves() {
    let mut below = modulus_of(256);
    below[0] = 0x7f;
    let good = modulus_of(256);
    for (modulus, exponent, expected) in [
        (modulus_of(128), F4, KeyError::TooFewBits(1024)),
        (below, F4, KeyError::TooFewBits(2047)),
        (modulus_of(1025), F4, KeyError::TooManyBits(8200)),
        (good.clone(), &[3], KeyError::SmallExponent),
        (good.clone(), &[0xff, 0xff], KeyError::SmallExponent),
        (good.clone(), &[1, 0, 0], KeyError::EvenExponent),
        (good.clone(), &[0], KeyError::EvenExponent),
        (good.clone(), &[3, 0, 0, 0, 1], KeyError::LargeExponent),
        (good, &[1, 0, 0, 0, 0, 0, 0, 0, 1], KeyError::LargeExponent),
    ] {
        assert_eq!(PublicKey::parse(public_of(&modulus, exponent)), Err(expected));
        assert_eq!(PrivateKey::parse(private_of(&modulus, exponent)).unwrap_err(), expected);
    }
    // 2^32 + 1, the largest there is but for its last bits
    assert_eq!(super::check(&modulus_of(256), &[1, 0, 0, 0, 1]), Ok(2048));
    assert_eq!(super::check(&modulus_of(1024), F4), Ok(8192), "the largest modulus there is");
    assert_eq!(KeyError::TooFewBits(1024).to_string(), "has 1024 bits, and at least 2048 are due");
}

#[test]
fn private_numbers_that_contradict_each_other_are_refused() {
    let refused = PrivateKey::parse(private_of(&modulus_of(256), F4)).unwrap_err();
    assert_eq!(refused, KeyError::Rejected);
}

#[test]
fn a_generated_key_signs_and_comes_back_from_every_form() {
    let key = PrivateKey::generate(2048).unwrap();
    let signature = key.sign(b"message").unwrap();
    assert!(key.public().verify(b"message", &signature));
    assert!(!key.public().verify(b"massage", &signature));
    assert!(!key.public().verify(b"message", &signature[1..]));
    assert!(!key.public().verify(b"message", b""));
    let forms = [key.pkcs8_pem(), key.pkcs1_pem(), key.pkcs8_base64(), key.pkcs1_base64()];
    for text in forms.map(Result::unwrap) {
        assert_eq!(
            PrivateKey::parse(text.as_bytes()).unwrap().sign(b"message").unwrap(),
            signature
        );
    }
    assert_eq!(PrivateKey::generate(1024).unwrap_err(), KeyError::NoSuchSize(1024));
}

#[test]
fn a_key_is_made_of_every_size_that_is_offered() {
    for bits in [2048, 3072, 4096] {
        assert_eq!(PrivateKey::generate(bits).unwrap().public().bits(), bits);
    }
    for bits in [0, 1024, 2047, 8192] {
        assert_eq!(PrivateKey::generate(bits).unwrap_err(), KeyError::NoSuchSize(bits));
    }
}

#[test]
fn a_key_in_a_file_signs_for_every_core_at_once() {
    let cores = std::thread::available_parallelism().unwrap().get();
    let key = PrivateKey::parse(pem("test_mpp", "pkcs8")).unwrap();
    assert_eq!(Signer::at_once(&key), cores);
}

#[test]
fn a_key_of_two_numbers_is_the_key_they_are_of() {
    let (modulus, exponent) = ours().numbers().unwrap();
    assert_eq!((modulus.len(), &*exponent), (256, F4));
    assert_eq!(PublicKey::from_numbers(&modulus, &exponent).unwrap(), ours());
    // a token may put zeros before them
    let padded = [&[0, 0], &*modulus].concat();
    assert_eq!(PublicKey::from_numbers(&padded, &[0, 1, 0, 1]).unwrap(), ours());
    assert_eq!(PublicKey::from_numbers(&[], F4).unwrap_err(), KeyError::TooFewBits(0));
}

#[test]
fn debug_prints_the_fingerprint_and_nothing_secret() {
    let key = PrivateKey::parse(pem("test_mpp", "pkcs8")).unwrap();
    let expected = format!("PrivateKey(… of PublicKey(2048 bits, {}))", ours().fingerprint());
    assert_eq!(format!("{key:?}"), expected);
    assert_eq!(ours().fingerprint().to_string().len(), 64);
    let expected = format!("Fingerprint({})", ours().fingerprint());
    assert_eq!(format!("{:?}", ours().fingerprint()), expected);
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(input in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(AnyKey::parse(&input).is_err());
        prop_assert!(AnyKey::parse([b"0\x82".as_slice(), &input].concat()).is_err());
    }

    #[test]
    fn a_key_with_a_changed_byte_never_panics(at in 0..1200_usize, byte: u8) {
        let mut der = STANDARD.decode(bare("test_mpp", "pkcs8")).unwrap();
        der[at] = byte;
        let _outcome = AnyKey::parse(der);
    }
}
