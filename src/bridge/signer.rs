//! What signs our answers: a key in a file, or one that never leaves its device.
//!
//! A signer is asked off the async workers, and may be slow, hang or fail: whoever asks bounds the time and the number
//! at once. No error and no `Debug` of a signer ever holds a key or a PIN.

pub mod pkcs11;

use std::{fmt, num::NonZeroUsize, thread};

use super::keys::{PrivateKey, PublicKey};

/// Something that holds a private key and signs with it.
pub trait Signer: Send + Sync + fmt::Debug {
    /// Signs with RSASSA-PKCS1-v1_5 and SHA-256: the same message always has the same signature. Blocks.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError>;

    /// The public part.
    fn public(&self) -> &PublicKey;

    /// How many signatures at once make sense; more only wait for each other.
    fn at_once(&self) -> usize;
}

/// Why something was not signed. Holds codes, never data.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// The cryptographic library failed.
    #[error("the cryptographic library failed")]
    Library,
    /// The token answered with an error, twice.
    #[error("the token failed: {0}")]
    Token(String),
    /// The token refused the PIN while it was reopened. Not tried again: tokens lock themselves after a few.
    #[error("the token refuses the PIN; it is not tried again before a restart or a reload")]
    PinRefused,
    /// What was found by the key's name when the token was reopened is another key.
    #[error("another key of the token has this name now")]
    AnotherKey,
}

impl Signer for PrivateKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        Self::sign(self, message).map_err(|_| SignError::Library)
    }

    fn public(&self) -> &PublicKey {
        Self::public(self)
    }

    fn at_once(&self) -> usize {
        // arithmetic alone: one a core
        thread::available_parallelism().map_or(1, NonZeroUsize::get)
    }
}
