//! RSA keys: the wallet's own, which sign, and Alipay+'s, which verify.
//!
//! aws-lc-rs alone touches private numbers, in constant time; the RustCrypto crates only take DER apart. No error and no
//! `Debug` here ever holds key text.

mod error;
mod form;

use std::fmt;

use aws_lc_rs::{
    digest,
    encoding::{AsDer as _, Pkcs8V1Der},
    rand::SystemRandom,
    rsa::KeySize,
    signature::{
        KeyPair as _, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, RsaKeyPair,
    },
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use pkcs8::{
    LineEnding, PrivateKeyInfo,
    der::{Decode as _, Encode as _, asn1::UintRef, pem},
};
use zeroize::Zeroizing;

pub use self::{
    error::KeyError,
    form::{Form, Structure, Wrapping},
};

/// Least size of a modulus, in bits.
pub const BITS_MIN: usize = 2048;
/// Greatest size of a modulus, in bits.
pub const BITS_MAX: usize = 8192;
/// Least public exponent: F4, which everybody uses.
const EXPONENT_MIN: u64 = 65537;

/// SHA-256 over a public key's SPKI in DER: the same for the same key, in whatever form it came.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint(pub [u8; 32]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

/// A key that verifies, parsed once: verifying then takes 18.5 µs instead of 21.
#[derive(Clone)]
pub struct PublicKey {
    parsed: ParsedPublicKey,
    pkcs1: Box<[u8]>,
    spki: Box<[u8]>,
    bits: usize,
    fingerprint: Fingerprint,
}

impl PublicKey {
    /// Reads a public key in any [`Form`]: PEM, bare base64 or raw DER, of SPKI or PKCS#1.
    pub fn parse(input: impl AsRef<[u8]>) -> Result<Self, KeyError> {
        match AnyKey::parse(input)?.0 {
            AnyKey::Public(key) => Ok(key),
            AnyKey::Private(_) => Err(KeyError::PrivateForPublic),
        }
    }

    /// From its two numbers, big-endian, as a token tells them.
    pub fn from_numbers(modulus: &[u8], exponent: &[u8]) -> Result<Self, KeyError> {
        let significant = |number: &[u8]| {
            let zeros = number.iter().take_while(|byte| **byte == 0).count();
            number.get(zeros..).unwrap_or_default().to_vec()
        };
        let (modulus, exponent) = (significant(modulus), significant(exponent));
        let bits = check(&modulus, &exponent)?;
        let number = |bytes| UintRef::new(bytes).map_err(|_| KeyError::NotAKey);
        let key =
            pkcs1::RsaPublicKey { modulus: number(&modulus)?, public_exponent: number(&exponent)? };
        Self::from_pkcs1(&key.to_der().map_err(|_| KeyError::NotAKey)?, bits)
    }

    /// Modulus and exponent, big-endian, without leading zeros.
    pub fn numbers(&self) -> Option<(Vec<u8>, Vec<u8>)> {
        let key = pkcs1::RsaPublicKey::from_der(&self.pkcs1).ok()?;
        Some((key.modulus.as_bytes().to_vec(), key.public_exponent.as_bytes().to_vec()))
    }

    /// From PKCS#1 in DER, the numbers checked before.
    fn from_pkcs1(pkcs1: &[u8], bits: usize) -> Result<Self, KeyError> {
        let parsed = ParsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, pkcs1)?;
        // written anew, so that optional parts of the form that came cannot make two keys of one
        let spki = parsed.as_der().map_err(|_| KeyError::Library)?;
        let spki: Box<[u8]> = spki.as_ref().into();
        let mut fingerprint = Fingerprint([0; 32]);
        fingerprint.0.copy_from_slice(digest::digest(&digest::SHA256, &spki).as_ref());
        Ok(Self { parsed, pkcs1: pkcs1.into(), spki, bits, fingerprint })
    }

    /// True if `signature` is this key's, over `message`: RSASSA-PKCS1-v1_5 with SHA-256.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        self.parsed.verify_sig(message, signature).is_ok()
    }

    /// What tells this key from every other.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Size of the modulus.
    pub fn bits(&self) -> usize {
        self.bits
    }

    /// `-----BEGIN PUBLIC KEY-----` (SPKI).
    pub fn spki_pem(&self) -> String {
        pem_of("PUBLIC KEY", &self.spki).to_string()
    }

    /// `-----BEGIN RSA PUBLIC KEY-----` (PKCS#1).
    pub fn pkcs1_pem(&self) -> String {
        pem_of("RSA PUBLIC KEY", &self.pkcs1).to_string()
    }

    /// SPKI as one line of base64, which is what the Alipay+ console takes and shows.
    pub fn spki_base64(&self) -> String {
        STANDARD.encode(&self.spki)
    }

    /// PKCS#1 as one line of base64.
    pub fn pkcs1_base64(&self) -> String {
        STANDARD.encode(&self.pkcs1)
    }
}

impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint
    }
}

impl Eq for PublicKey {}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({} bits, {})", self.bits, self.fingerprint)
    }
}

/// A key that signs. Its numbers live in the library, which wipes them; what is written out here is wiped on drop.
#[derive(Clone)]
pub struct PrivateKey {
    pair: RsaKeyPair,
    public: PublicKey,
}

impl PrivateKey {
    /// Reads a private key in any [`Form`]: PEM, bare base64 or raw DER, of PKCS#8 or PKCS#1.
    pub fn parse(input: impl AsRef<[u8]>) -> Result<Self, KeyError> {
        match AnyKey::parse(input)?.0 {
            AnyKey::Private(key) => Ok(*key),
            AnyKey::Public(_) => Err(KeyError::PublicForPrivate),
        }
    }

    /// A new key of 2048, 3072 or 4096 bits. Takes some 40 to 700 ms, by size and luck.
    pub fn generate(bits: usize) -> Result<Self, KeyError> {
        let size = match bits {
            2048 => KeySize::Rsa2048,
            3072 => KeySize::Rsa3072,
            4096 => KeySize::Rsa4096,
            _ => return Err(KeyError::NoSuchSize(bits)),
        };
        let pair = RsaKeyPair::generate(size).map_err(|_| KeyError::Library)?;
        Self::of(pair, bits)
    }

    fn of(pair: RsaKeyPair, bits: usize) -> Result<Self, KeyError> {
        let public = PublicKey::from_pkcs1(pair.public_key().as_ref(), bits)?;
        Ok(Self { pair, public })
    }

    /// Signs with RSASSA-PKCS1-v1_5 and SHA-256: the same message always has the same signature. Some 350 µs at 2048
    /// bits, so not on an async worker.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        let mut signature = vec![0; self.pair.public_modulus_len()];
        let signed =
            self.pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature);
        signed.map(|()| signature).map_err(|_| KeyError::Library)
    }

    /// The public part.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// `-----BEGIN PRIVATE KEY-----` (PKCS#8).
    pub fn pkcs8_pem(&self) -> Result<Zeroizing<String>, KeyError> {
        Ok(pem_of("PRIVATE KEY", self.pkcs8()?.as_ref()))
    }

    /// `-----BEGIN RSA PRIVATE KEY-----` (PKCS#1).
    pub fn pkcs1_pem(&self) -> Result<Zeroizing<String>, KeyError> {
        self.with_pkcs1(|pkcs1| pem_of("RSA PRIVATE KEY", pkcs1))
    }

    /// PKCS#8 as one line of base64.
    pub fn pkcs8_base64(&self) -> Result<Zeroizing<String>, KeyError> {
        Ok(Zeroizing::new(STANDARD.encode(self.pkcs8()?.as_ref())))
    }

    /// PKCS#1 as one line of base64.
    pub fn pkcs1_base64(&self) -> Result<Zeroizing<String>, KeyError> {
        self.with_pkcs1(|pkcs1| Zeroizing::new(STANDARD.encode(pkcs1)))
    }

    fn pkcs8(&self) -> Result<Pkcs8V1Der<'static>, KeyError> {
        self.pair.as_der().map_err(|_| KeyError::Library)
    }

    /// PKCS#8 is an envelope around PKCS#1.
    fn with_pkcs1<T>(&self, write: impl FnOnce(&[u8]) -> T) -> Result<T, KeyError> {
        let pkcs8 = self.pkcs8()?;
        let envelope = PrivateKeyInfo::try_from(pkcs8.as_ref()).map_err(|_| KeyError::Library)?;
        Ok(write(envelope.private_key))
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey(… of {:?})", self.public)
    }
}

/// A key of either kind, for tools that take any file.
#[derive(Clone, Debug)]
pub enum AnyKey {
    /// A private key; boxed, because it holds its public part too.
    Private(Box<PrivateKey>),
    /// A public key.
    Public(PublicKey),
}

impl AnyKey {
    /// Reads a key and says in which form it was.
    pub fn parse(input: impl AsRef<[u8]>) -> Result<(Self, Form), KeyError> {
        let found = form::read(input.as_ref())?;
        let bits = check(&found.modulus, &found.exponent)?;
        let key = match found.form.structure {
            Structure::Pkcs8 | Structure::Pkcs1Private => {
                let pair = RsaKeyPair::from_der(&found.pkcs1)?;
                Self::Private(Box::new(PrivateKey::of(pair, bits)?))
            }
            Structure::Spki | Structure::Pkcs1Public => {
                Self::Public(PublicKey::from_pkcs1(&found.pkcs1, bits)?)
            }
        };
        Ok((key, found.form))
    }

    /// The public part.
    pub fn public(&self) -> &PublicKey {
        match self {
            Self::Private(key) => key.public(),
            Self::Public(key) => key,
        }
    }
}

/// The size of the modulus, if the two public numbers may be used. Both big-endian, without leading zeros.
fn check(modulus: &[u8], exponent: &[u8]) -> Result<usize, KeyError> {
    let top_bits = modulus.first().map_or(0, |top| top.checked_ilog2().map_or(0, |log| log + 1));
    let bits = modulus.len().saturating_sub(1) * 8 + usize::try_from(top_bits).unwrap_or(8);
    if bits < BITS_MIN {
        return Err(KeyError::TooFewBits(bits));
    }
    if bits > BITS_MAX {
        return Err(KeyError::TooManyBits(bits));
    }
    if exponent.len() > 5 {
        return Err(KeyError::LargeExponent);
    }
    let exponent = exponent.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    if exponent.is_multiple_of(2) {
        return Err(KeyError::EvenExponent);
    }
    if exponent < EXPONENT_MIN {
        return Err(KeyError::SmallExponent);
    }
    if exponent >> 33 != 0 {
        return Err(KeyError::LargeExponent);
    }
    Ok(bits)
}

fn pem_of(label: &str, der: &[u8]) -> Zeroizing<String> {
    let pem = pem::encode_string(label, LineEnding::LF, der);
    Zeroizing::new(pem.expect("labels are ours, and the buffer is measured by the encoder"))
}

#[cfg(test)]
mod tests;
