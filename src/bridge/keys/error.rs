//! What can be wrong with a key: said so that it can be mended, without ever holding key text.
//!
//! Texts go on after the name of the file or setting: `clients[0].keys[0].public_key_file has 1024 bits, …`.

use aws_lc_rs::error::KeyRejected;

use super::{BITS_MAX, BITS_MIN, EXPONENT_MIN};

/// Why something is not the key that is due. Never holds key text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Nothing, or white space.
    #[error("holds no key: it is empty")]
    Empty,
    /// More bytes than any key has.
    #[error("is too long for a key")]
    TooLong,
    /// Binary, but no DER.
    #[error("is neither text nor DER")]
    NotText,
    /// PEM with markers that do not match, or a marker cut off.
    #[error("has broken PEM markers")]
    BrokenPem,
    /// A second PEM block after the first.
    #[error("holds more than one PEM block where a single key is due")]
    SeveralBlocks,
    /// The markers name something that is no RSA key.
    #[error("has PEM markers of something other than an RSA key")]
    UnknownLabel,
    /// No markers, and no base64 either; or no base64 between the markers.
    #[error("is not valid base64, neither between PEM markers nor bare")]
    Base64,
    /// An X.509 certificate or a request for one.
    #[error("is a certificate, or a request for one, where a bare key is due")]
    Certificate,
    /// A private key behind a passphrase.
    #[error("is an encrypted private key; decrypt it first, as with `openssl pkey`")]
    Encrypted,
    /// The format of ssh-keygen.
    #[error(
        "is in OpenSSH's format; convert it with `ssh-keygen -m pkcs8`, -e (public) or -p (private)"
    )]
    OpenSsh,
    /// An EC, Ed25519 or DSA key, or an RSA key for PSS only.
    #[error("is a key of another algorithm than RSA (PKCS#1 v1.5)")]
    NotRsa,
    /// DER or base64 of anything else.
    #[error("is not an RSA key in PKCS#8, PKCS#1 or SPKI")]
    NotAKey,
    /// A public key where a private one is due.
    #[error("is a public key where a private key is due")]
    PublicForPrivate,
    /// A private key where a public one is due.
    #[error("is a private key where a public key is due")]
    PrivateForPublic,
    /// Too few bits.
    #[error("has {0} bits, and at least {BITS_MIN} are due")]
    TooFewBits(usize),
    /// Too many bits.
    #[error("has {0} bits, and at most {BITS_MAX} are due")]
    TooManyBits(usize),
    /// Exponent 3, 17 and the like.
    #[error("has a public exponent below {EXPONENT_MIN}")]
    SmallExponent,
    /// No RSA exponent is even.
    #[error("has an even public exponent")]
    EvenExponent,
    /// Beyond what the library computes with.
    #[error("has a public exponent of more than 33 bits")]
    LargeExponent,
    /// Made of more than two primes.
    #[error("has more than two primes")]
    MultiPrime,
    /// The numbers do not belong together.
    #[error("holds numbers that make no RSA key")]
    Rejected,
    /// A size that is not generated.
    #[error("cannot be made with {0} bits; choose 2048, 3072 or 4096")]
    NoSuchSize(usize),
    /// The cryptographic library failed.
    #[error("could not be processed by the cryptographic library")]
    Library,
}

impl From<KeyRejected> for KeyError {
    fn from(_: KeyRejected) -> Self {
        // the library's reasons name its own internals, and the telling ones were checked before
        Self::Rejected
    }
}
