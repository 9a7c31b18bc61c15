//! Tokens become keyed hashes here, and nothing behind this knows them.

use std::collections::HashSet;

use aws_lc_rs::{digest, hmac};

use crate::domain::{
    id::{PspId, Token, TokenHash},
    key::TokenKey,
};

/// Shortest hash key, in bytes: as long as the hash, so that it adds no weakness.
pub const KEY_BYTES_MIN: usize = 32;

/// What is wrong with a hash key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HashKeyError {
    /// Too short to be a secret.
    #[error("hash key has {0} bytes, at least {KEY_BYTES_MIN} are needed")]
    TooShort(usize),
    /// The same one twice.
    #[error("a hash key is given twice; take one out")]
    Twice,
    /// There is none.
    #[error("no hash key is given")]
    None,
}

/// The keys that token hashes are made with: HMAC-SHA-256 over wallet, NUL, token. A ring only grows, because a token
/// hashed with a key that is gone would look unknown.
pub struct HashRing {
    keys: Vec<hmac::Key>,
    fingerprints: Vec<[u8; 16]>,
    primary: usize,
}

impl HashRing {
    /// Takes the keys in the order of the settings; the store says which one is primary.
    pub fn new<K: AsRef<[u8]>>(keys: &[K]) -> Result<Self, HashKeyError> {
        if keys.is_empty() {
            return Err(HashKeyError::None);
        }
        if let Some(short) =
            keys.iter().map(|key| key.as_ref().len()).find(|length| *length < KEY_BYTES_MIN)
        {
            return Err(HashKeyError::TooShort(short));
        }
        let fingerprints: Vec<_> = keys.iter().map(|key| fingerprint(key.as_ref())).collect();
        let distinct: HashSet<_> = fingerprints.iter().collect();
        if distinct.len() < fingerprints.len() {
            return Err(HashKeyError::Twice);
        }
        let keys = keys.iter().map(|key| hmac::Key::new(hmac::HMAC_SHA256, key.as_ref())).collect();
        Ok(Self { keys, fingerprints, primary: 0 })
    }

    /// What the store knows the keys by.
    pub fn fingerprints(&self) -> &Vec<[u8; 16]> {
        &self.fingerprints
    }

    /// The same ring, with the key at this place as the one that new hashes are made with.
    #[must_use]
    pub fn with_primary(self, primary: usize) -> Self {
        let primary = primary.min(self.keys.len().saturating_sub(1));
        Self { primary, ..self }
    }

    /// The keys a token may be stored under, the one for a new token first.
    pub(super) fn keys(&self, psp: &PspId, token: &Token) -> Vec<TokenKey> {
        let (before, from) = self.keys.split_at(self.primary);
        from.iter()
            .chain(before)
            .map(|key| TokenKey { psp: psp.clone(), hash: hash(key, psp, token) })
            .collect()
    }
}

fn hash(key: &hmac::Key, psp: &PspId, token: &Token) -> TokenHash {
    let mut hmac = hmac::Context::with_key(key);
    hmac.update(psp.as_str().as_bytes());
    hmac.update(&[0]);
    hmac.update(token.expose().as_bytes());
    TokenHash(hmac.sign().as_ref().first_chunk().copied().unwrap_or_default())
}

/// SHA-256 over a label and the key, cut: tells keys apart and says nothing else of them.
fn fingerprint(key: &[u8]) -> [u8; 16] {
    let mut sha = digest::Context::new(&digest::SHA256);
    sha.update(b"alipayplus-cancel token hash key\0");
    sha.update(key);
    sha.finish().as_ref().first_chunk().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_depends_on_wallet_token_and_key_and_the_primary_comes_first() {
        let ring = HashRing::new(&[[1u8; 32], [2u8; 32]]).unwrap();
        let (psp, other) = (PspId::parse("psp").unwrap(), PspId::parse("psq").unwrap());
        let (token, sibling) = (Token::parse("token").unwrap(), Token::parse("tokem").unwrap());
        let first = ring.keys(&psp, &token);
        assert_ne!(first, ring.keys(&psp, &sibling));
        assert_ne!(first[0].hash, ring.keys(&other, &token)[0].hash);
        assert_ne!(first[0].hash, first[1].hash);
        let promoted = ring.with_primary(1).keys(&psp, &token);
        assert_eq!((promoted[0].hash, promoted[1].hash), (first[1].hash, first[0].hash));
    }

    #[test]
    fn a_key_is_known_by_its_fingerprint_in_the_order_of_the_settings() {
        let of = |keys: &[[u8; 32]]| HashRing::new(keys).unwrap().fingerprints().clone();
        // stores in the field hang on these bytes
        let first = [
            0xbc, 0xcb, 0x46, 0x31, 0xfc, 0xd2, 0xcd, 0x21, 0xb3, 0x00, 0xa7, 0x39, 0x46, 0xdc,
            0x1c, 0x7c,
        ];
        assert_eq!(of(&[[1; 32]]), [first]);
        let second = of(&[[2; 32]])[0];
        assert_ne!(first, second);
        assert_eq!(of(&[[1; 32], [2; 32]]), [first, second]);
        assert_eq!(of(&[[2; 32], [1; 32]]), [second, first]);
    }

    #[test]
    fn a_short_key_or_none_or_one_twice_is_refused() {
        assert_eq!(HashRing::new(&[[1u8; 31]]).err(), Some(HashKeyError::TooShort(31)));
        assert_eq!(HashRing::new::<[u8; 32]>(&[]).err(), Some(HashKeyError::None));
        assert_eq!(HashRing::new(&[[1u8; 32], [1u8; 32]]).err(), Some(HashKeyError::Twice));
    }
}
