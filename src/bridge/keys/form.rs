//! In which form a key was handed over, and the way from there to the numbers.
//!
//! The wrapping (PEM, bare base64, raw DER) is told by the bytes, the structure inside by the tags of its DER: labels of
//! PEM are wrong too often, because people wrap what the Alipay+ console shows by hand.

use std::fmt;

use base64::{
    Engine as _,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use pkcs1::{RsaPrivateKey, RsaPublicKey};
use pkcs8::{
    ObjectIdentifier, PrivateKeyInfo, SubjectPublicKeyInfoRef,
    der::{self, Decode as _, Reader as _, SliceReader, Tag, Tagged as _, asn1::AnyRef},
};
use zeroize::Zeroizing;

use super::KeyError;

/// More than any key needs: 8192 bits in PEM are 6.5 KiB.
const INPUT_BYTES_MAX: usize = 64 * 1024;
/// rsaEncryption (RFC 8017). Keys marked for PSS only have another.
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");

/// Spare bits are ignored because some tools write them; padding too, because copying loses it.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// The form of a key: `SPKI (public) as bare base64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// What is inside.
    pub structure: Structure,
    /// What is around it.
    pub wrapping: Wrapping,
}

/// What is around a key's DER.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrapping {
    /// Base64 between BEGIN and END.
    Pem,
    /// Base64 without markers, as the Alipay+ console shows it.
    Base64,
    /// Nothing: the DER itself.
    Der,
}

/// The structure of a key's DER.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Structure {
    /// PKCS#8 `PrivateKeyInfo`.
    Pkcs8,
    /// PKCS#1 `RSAPrivateKey`.
    Pkcs1Private,
    /// X.509 `SubjectPublicKeyInfo`.
    Spki,
    /// PKCS#1 `RSAPublicKey`.
    Pkcs1Public,
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} as {}", self.structure, self.wrapping)
    }
}

impl fmt::Display for Wrapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pem => "PEM",
            Self::Base64 => "bare base64",
            Self::Der => "raw DER",
        })
    }
}

impl fmt::Display for Structure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pkcs8 => "PKCS#8 (private)",
            Self::Pkcs1Private => "PKCS#1 (private)",
            Self::Spki => "SPKI (public)",
            Self::Pkcs1Public => "PKCS#1 (public)",
        })
    }
}

/// An RSA key, taken out of its form but not yet judged.
pub(super) struct Found {
    pub(super) form: Form,
    /// PKCS#1 in DER, of the private or the public key.
    pub(super) pkcs1: Zeroizing<Vec<u8>>,
    /// n, big-endian, without leading zeros.
    pub(super) modulus: Vec<u8>,
    /// e, likewise.
    pub(super) exponent: Vec<u8>,
}

/// Takes a key out of whatever form it is in.
pub(super) fn read(input: &[u8]) -> Result<Found, KeyError> {
    let (wrapping, der) = unwrap(input)?;
    let structure = structure(&der)?;
    let pkcs1 = match structure {
        Structure::Pkcs8 => pkcs1_in_pkcs8(&der)?,
        Structure::Spki => pkcs1_in_spki(&der)?,
        Structure::Pkcs1Private | Structure::Pkcs1Public => der,
    };
    let public = match structure {
        Structure::Pkcs8 | Structure::Pkcs1Private => public_numbers(&pkcs1)?,
        Structure::Spki | Structure::Pkcs1Public => {
            RsaPublicKey::from_der(&pkcs1).map_err(|_| KeyError::NotAKey)?
        }
    };
    let modulus = public.modulus.as_bytes().to_vec();
    let exponent = public.public_exponent.as_bytes().to_vec();
    Ok(Found { form: Form { structure, wrapping }, pkcs1, modulus, exponent })
}

fn public_numbers(pkcs1: &[u8]) -> Result<RsaPublicKey<'_>, KeyError> {
    let private = RsaPrivateKey::from_der(pkcs1).map_err(|_| KeyError::NotAKey)?;
    if private.other_prime_infos.is_some() {
        return Err(KeyError::MultiPrime);
    }
    Ok(private.public_key())
}

fn pkcs1_in_pkcs8(der: &[u8]) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let envelope = PrivateKeyInfo::try_from(der).map_err(|_| KeyError::NotAKey)?;
    if envelope.algorithm.oid != RSA {
        return Err(KeyError::NotRsa);
    }
    Ok(Zeroizing::new(envelope.private_key.to_vec()))
}

fn pkcs1_in_spki(der: &[u8]) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let envelope = SubjectPublicKeyInfoRef::try_from(der).map_err(|_| KeyError::NotAKey)?;
    if envelope.algorithm.oid != RSA {
        return Err(KeyError::NotRsa);
    }
    let pkcs1 = envelope.subject_public_key.as_bytes().ok_or(KeyError::NotAKey)?;
    Ok(Zeroizing::new(pkcs1.to_vec()))
}

/// Tells the structure by the tags inside the outer sequence, which differ for everything a key is mistaken for.
fn structure(der: &[u8]) -> Result<Structure, KeyError> {
    use Tag::{BitString, Integer, OctetString, Sequence};
    match tags(der).map_err(|_| KeyError::NotAKey)?.as_slice() {
        [Integer, Sequence, OctetString, ..] => Ok(Structure::Pkcs8),
        [Integer, Integer, Integer, ..] => Ok(Structure::Pkcs1Private),
        [Sequence, BitString] => Ok(Structure::Spki),
        [Integer, Integer] => Ok(Structure::Pkcs1Public),
        [Sequence, Sequence, BitString] => Err(KeyError::Certificate),
        [Sequence, OctetString] => Err(KeyError::Encrypted),
        // SEC 1, an EC key outside PKCS#8
        [Integer, OctetString, ..] => Err(KeyError::NotRsa),
        _ => Err(KeyError::NotAKey),
    }
}

fn tags(der: &[u8]) -> der::Result<Vec<Tag>> {
    let mut reader = SliceReader::new(der)?;
    let tags = reader.sequence(|inside| {
        let mut tags = Vec::new();
        while !inside.is_finished() {
            tags.push(AnyRef::decode(inside)?.tag());
        }
        Ok(tags)
    })?;
    reader.finish(tags)
}

/// Down to the DER.
fn unwrap(input: &[u8]) -> Result<(Wrapping, Zeroizing<Vec<u8>>), KeyError> {
    if input.len() > INPUT_BYTES_MAX {
        return Err(KeyError::TooLong);
    }
    let input = input.strip_prefix(b"\xef\xbb\xbf").unwrap_or(input);
    let Ok(text) = std::str::from_utf8(input) else {
        // the length of an RSA key's sequence is no UTF-8, so no DER of one is taken for text
        return match input {
            [0x30, ..] => Ok((Wrapping::Der, Zeroizing::new(input.to_vec()))),
            _ => Err(KeyError::NotText),
        };
    };
    if text.trim().is_empty() {
        return Err(KeyError::Empty);
    }
    if text.trim_start().starts_with("ssh-") {
        return Err(KeyError::OpenSsh);
    }
    match text.split_once("-----BEGIN ") {
        Some((_, block)) => Ok((Wrapping::Pem, decode(pem_body(block)?)?)),
        None => Ok((Wrapping::Base64, decode(text)?)),
    }
}

/// What stands between the markers; `block` starts with the label.
fn pem_body(block: &str) -> Result<&str, KeyError> {
    let (label, rest) = block.split_once("-----").ok_or(KeyError::BrokenPem)?;
    check_label(label)?;
    let (body, rest) = rest.split_once("-----END ").ok_or(KeyError::BrokenPem)?;
    let (end_label, rest) = rest.split_once("-----").ok_or(KeyError::BrokenPem)?;
    if end_label != label {
        return Err(KeyError::BrokenPem);
    }
    if rest.contains("-----BEGIN ") {
        return Err(KeyError::SeveralBlocks);
    }
    // how OpenSSL encrypts PKCS#1: two header lines inside the block
    if body.contains("Proc-Type:") {
        return Err(KeyError::Encrypted);
    }
    Ok(body)
}

fn check_label(label: &str) -> Result<(), KeyError> {
    match label {
        "PRIVATE KEY" | "RSA PRIVATE KEY" | "PUBLIC KEY" | "RSA PUBLIC KEY" => Ok(()),
        "ENCRYPTED PRIVATE KEY" => Err(KeyError::Encrypted),
        "EC PRIVATE KEY" | "EC PARAMETERS" | "DSA PRIVATE KEY" | "DSA PARAMETERS" => {
            Err(KeyError::NotRsa)
        }
        "OPENSSH PRIVATE KEY" => Err(KeyError::OpenSsh),
        "CERTIFICATE"
        | "X509 CERTIFICATE"
        | "TRUSTED CERTIFICATE"
        | "CERTIFICATE REQUEST"
        | "NEW CERTIFICATE REQUEST" => Err(KeyError::Certificate),
        _ => Err(KeyError::UnknownLabel),
    }
}

fn decode(base64: &str) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    // its full size at once: a vector that grows leaves copies of a secret behind
    let mut packed = Zeroizing::new(Vec::with_capacity(base64.len()));
    packed.extend(base64.bytes().filter(|byte| !byte.is_ascii_whitespace()));
    let der = BASE64.decode(packed.as_slice()).map_err(|_| KeyError::Base64)?;
    Ok(Zeroizing::new(der))
}
