//! What a signature holds: opened with a public key, it is a padded block, and the block says who signed and what.
//!
//! A block of the right form proves that this key made the signature, whatever was signed; noise proves that it did not.
//! Public numbers only, so nothing here need be constant in time.

use aws_lc_rs::digest::{self, Algorithm};
use num_bigint::BigUint;

use crate::bridge::keys::PublicKey;

/// A hash that a block may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hash {
    /// What is due.
    Sha256,
    /// What Java calls `SHA1withRSA`, and older SDKs of Alipay `RSA`.
    Sha1,
    /// `SHA384withRSA`
    Sha384,
    /// `SHA512withRSA`
    Sha512,
}

/// What precedes the digest in a block (RFC 8017, 9.2, note 1).
const INFOS: [(Hash, &[u8]); 4] = [
    (Hash::Sha256, b"\x30\x31\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00\x04\x20"),
    (Hash::Sha1, b"\x30\x21\x30\x09\x06\x05\x2b\x0e\x03\x02\x1a\x05\x00\x04\x14"),
    (Hash::Sha384, b"\x30\x41\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00\x04\x30"),
    (Hash::Sha512, b"\x30\x51\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x03\x05\x00\x04\x40"),
];
/// The same of MD5, which is only named.
const MD5_INFO: &[u8] = b"\x30\x20\x30\x0c\x06\x08\x2a\x86\x48\x86\xf7\x0d\x02\x05\x05\x00\x04\x10";

impl Hash {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "SHA-256",
            Self::Sha1 => "SHA-1",
            Self::Sha384 => "SHA-384",
            Self::Sha512 => "SHA-512",
        }
    }

    fn algorithm(self) -> &'static Algorithm {
        match self {
            Self::Sha256 => &digest::SHA256,
            Self::Sha1 => &digest::SHA1_FOR_LEGACY_USE_ONLY,
            Self::Sha384 => &digest::SHA384,
            Self::Sha512 => &digest::SHA512,
        }
    }

    /// The digest of these bytes.
    pub fn of(self, bytes: &[u8]) -> Vec<u8> {
        digest::digest(self.algorithm(), bytes).as_ref().to_vec()
    }
}

/// What a signature opens to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Block {
    /// PKCS#1 v1.5 with a digest.
    Digest(Hash, Vec<u8>),
    /// PKCS#1 v1.5 around MD5.
    Md5,
    /// PKCS#1 v1.5 around bare bytes, where the name of a hash is due.
    Bare(Vec<u8>),
    /// PSS, with its hash and salt.
    Pss(Hash, Vec<u8>, Vec<u8>),
    /// The signature is not as long as this key's are.
    OtherLength,
    /// This key did not make it.
    Noise,
}

impl Block {
    /// Whether this key made the signature.
    pub fn is_made(&self) -> bool {
        !matches!(self, Self::OtherLength | Self::Noise)
    }

    /// Whether these bytes are what was signed.
    pub fn is_over(&self, message: &[u8]) -> bool {
        match self {
            Self::Digest(hash, digest) => hash.of(message) == *digest,
            Self::Bare(bytes) => {
                let digest = Hash::Sha256.of(message);
                *bytes == digest || *bytes == super::hex(&digest).into_bytes() || bytes == message
            }
            Self::Pss(hash, found, salt) => {
                let padded = [[0; 8].as_slice(), &hash.of(message), salt].concat();
                hash.of(&padded) == *found
            }
            Self::Md5 | Self::OtherLength | Self::Noise => false,
        }
    }
}

/// Opens a signature with a key.
pub fn open(key: &PublicKey, signature: &[u8]) -> Block {
    let Some((modulus, exponent)) = key.numbers() else { return Block::Noise };
    if signature.len() != modulus.len() {
        return Block::OtherLength;
    }
    let [n, e, s] = [&modulus, &exponent, signature].map(BigUint::from_bytes_be);
    let opened = s.modpow(&e, &n).to_bytes_be();
    let mut block = vec![0; modulus.len().saturating_sub(opened.len())];
    block.extend(opened);
    version_1_5(&block).or_else(|| pss(&block, key.bits())).unwrap_or(Block::Noise)
}

/// `00 01 ff … ff 00` and what follows.
fn version_1_5(block: &[u8]) -> Option<Block> {
    let rest = block.strip_prefix(&[0, 1])?;
    let filler = rest.iter().take_while(|byte| **byte == 0xff).count();
    let content = rest.get(filler..)?.strip_prefix(&[0])?;
    if filler < 8 {
        return None;
    }
    for (hash, info) in INFOS {
        if let Some(digest) = content.strip_prefix(info) {
            return Some(Block::Digest(hash, digest.to_vec()));
        }
    }
    if content.starts_with(MD5_INFO) {
        Some(Block::Md5)
    } else {
        Some(Block::Bare(content.to_vec()))
    }
}

/// The form of EMSA-PSS (RFC 8017, 9.1.2) with one hash throughout.
fn pss(block: &[u8], bits: usize) -> Option<Block> {
    let encoded = if bits % 8 == 1 { block.get(1..)? } else { block };
    let encoded = encoded.strip_suffix(&[0xbc])?;
    [Hash::Sha256, Hash::Sha1, Hash::Sha512, Hash::Sha384].into_iter().find_map(|hash| {
        let at = encoded.len().checked_sub(hash.of(b"").len())?;
        let (masked, found) = encoded.split_at(at);
        let mut data: Vec<u8> =
            masked.iter().zip(mask(hash, found, masked.len())).map(|(a, b)| a ^ b).collect();
        // the bits that do not fit under the modulus
        let unused = (8 - (bits + 7) % 8) % 8;
        if let Some(first) = data.first_mut() {
            *first &= 0xff_u8.checked_shr(u32::try_from(unused).ok()?)?;
        }
        let zeros = data.iter().take_while(|byte| **byte == 0).count();
        let salt = data.get(zeros..)?.strip_prefix(&[1])?;
        Some(Block::Pss(hash, found.to_vec(), salt.to_vec()))
    })
}

/// MGF1
fn mask(hash: Hash, seed: &[u8], length: usize) -> Vec<u8> {
    let blocks = (0_u32..).map(|count| hash.of(&[seed, &count.to_be_bytes()].concat()));
    blocks.flatten().take(length).collect()
}
