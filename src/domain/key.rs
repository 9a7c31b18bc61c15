//! What a state is found by, and the partition it lives in.

use aws_lc_rs::digest;

use super::id::{AuthorizationId, PaymentRequestId, PspId, TokenHash};

/// A payment. The client is not part of it: clients are rotated, the wallet stays.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PaymentKey {
    /// The wallet.
    pub psp: PspId,
    /// Alipay+'s id of the payment request.
    pub payment_request: PaymentRequestId,
}

/// An authorization.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AuthorizationKey {
    /// The wallet.
    pub psp: PspId,
    /// The wallet's id of the consent.
    pub authorization: AuthorizationId,
}

/// A token: the hash covers the wallet too, which stands here so that the token's authorization can be found.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TokenKey {
    /// The wallet.
    pub psp: PspId,
    /// Keyed hash of wallet and token.
    pub hash: TokenHash,
}

impl PaymentKey {
    /// The partition it lives in.
    pub fn partition(&self, partitions: Partitions) -> u16 {
        partitions.of(PAYMENT, &self.psp, self.payment_request.as_str())
    }
}

impl AuthorizationKey {
    /// The partition it lives in.
    pub fn partition(&self, partitions: Partitions) -> u16 {
        partitions.of(AUTHORIZATION, &self.psp, self.authorization.as_str())
    }
}

impl TokenKey {
    /// The partition under whose lock it is recorded and cancelled, because its authorization's is not known before the
    /// token is: the first four bytes of the hash, big-endian, modulo the number of partitions.
    pub fn partition(&self, partitions: Partitions) -> u16 {
        partitions.place(self.hash.0.first_chunk().copied().unwrap_or_default())
    }
}

/// What a payment's and an authorization's keys have in common: a partition of the store, and events.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// A payment.
    Payment(PaymentKey),
    /// An authorization.
    Authorization(AuthorizationKey),
}

impl Subject {
    /// The kind's tag in hashes and in the database: never change one.
    pub const fn tag(&self) -> &'static str {
        match self {
            Self::Payment(_) => PAYMENT,
            Self::Authorization(_) => AUTHORIZATION,
        }
    }

    /// The wallet.
    pub const fn psp(&self) -> &PspId {
        match self {
            Self::Payment(key) => &key.psp,
            Self::Authorization(key) => &key.psp,
        }
    }

    /// The id within the wallet.
    pub fn id(&self) -> &str {
        match self {
            Self::Payment(key) => key.payment_request.as_str(),
            Self::Authorization(key) => key.authorization.as_str(),
        }
    }

    pub(super) fn digest(&self, salt: &str) -> digest::Digest {
        digest_of(self.tag(), self.psp(), self.id(), salt)
    }

    /// The partition: the first four bytes of the digest, big-endian, modulo the number of partitions.
    pub fn partition(&self, partitions: Partitions) -> u16 {
        partitions.of(self.tag(), self.psp(), self.id())
    }
}

const PAYMENT: &str = "payment";
const AUTHORIZATION: &str = "authorization";

/// SHA-256 over tag, wallet and id, each ended by a NUL (which no id can hold), then `salt`.
///
/// Partitions and event ids of every database in the field hang on these bytes.
fn digest_of(tag: &str, psp: &PspId, id: &str, salt: &str) -> digest::Digest {
    let text = [tag, "\0", psp.as_str(), "\0", id, "\0", salt].concat();
    digest::digest(&digest::SHA256, text.as_bytes())
}

/// How many partitions a store has: 1 to 1024, fixed at its first migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partitions(u16);

impl Partitions {
    /// Sixty-four: enough for that many parallel commits, few enough to lock all of them at once.
    pub const DEFAULT: Self = Self(64);
    /// The most there can be.
    pub const MAX: u16 = 1024;

    /// Checks the range.
    pub fn new(count: u16) -> Option<Self> {
        (1..=Self::MAX).contains(&count).then_some(Self(count))
    }

    /// The number.
    pub const fn count(self) -> u16 {
        self.0
    }

    fn of(self, tag: &str, psp: &PspId, id: &str) -> u16 {
        let digest = digest_of(tag, psp, id, "");
        self.place(digest.as_ref().first_chunk().copied().unwrap_or_default())
    }

    fn place(self, head: [u8; 4]) -> u16 {
        let place = u32::from_be_bytes(head).checked_rem(u32::from(self.0)).unwrap_or(0);
        u16::try_from(place).unwrap_or(0) // below a u16 by the remainder
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_never_changes_for_a_key() {
        let payment = Subject::Payment(PaymentKey {
            psp: PspId::parse("1022172000000000001").expect("an id"),
            payment_request: PaymentRequestId::parse("20200101234567890132").expect("an id"),
        });
        let authorization = Subject::Authorization(AuthorizationKey {
            psp: PspId::parse("102208800000001230").expect("an id"),
            authorization: AuthorizationId::parse("consent-1").expect("an id"),
        });
        // databases in the field hang on these numbers
        assert_eq!(payment.partition(Partitions::DEFAULT), 61);
        assert_eq!(authorization.partition(Partitions::DEFAULT), 56);
        let (Subject::Payment(payment), Subject::Authorization(authorization)) =
            (payment, authorization)
        else {
            unreachable!("they were made so")
        };
        assert_eq!(payment.partition(Partitions::DEFAULT), 61);
        assert_eq!(authorization.partition(Partitions::DEFAULT), 56);
        let mut hash = [9; 32];
        hash[..4].copy_from_slice(&[0, 0, 1, 5]);
        let token = TokenKey { psp: payment.psp, hash: TokenHash(hash) };
        assert_eq!(token.partition(Partitions::DEFAULT), 5, "261 modulo 64");
    }
}
