//! Who is who: the clients with their public keys, and our own key that signs.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

use super::{
    keys::{Fingerprint, PublicKey},
    signer::Signer,
};
use crate::domain::{
    id::{AcquirerId, ClientId, PspId},
    time::Timestamp,
};

/// Why a set of keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Two clients could speak for each other.
    #[error("clients {0} and {1} have the same public key; each needs its own")]
    SharedKey(ClientId, ClientId),
}

/// A client of Alipay+'s, registered with us.
pub struct Client {
    /// Its Client-Id.
    pub id: ClientId,
    /// The wallets it may act for; `None` is any.
    pub psps: Option<BTreeSet<PspId>>,
    /// The acquirers it may act for; `None` is any.
    pub acquirers: Option<BTreeSet<AcquirerId>>,
    /// Its public keys.
    pub keys: Vec<ClientKey>,
    rate: DefaultDirectRateLimiter,
}

/// A public key of a client.
pub struct ClientKey {
    /// The exact `keyVersion`.
    pub version: String,
    /// The key.
    pub key: PublicKey,
    /// From then on it is retired.
    pub not_after: Option<Timestamp>,
}

impl ClientKey {
    fn active(&self, now: Timestamp) -> bool {
        self.not_after.is_none_or(|end| now < end)
    }
}

impl Client {
    /// A client with its rate.
    pub fn new(
        id: ClientId,
        psps: Option<BTreeSet<PspId>>,
        acquirers: Option<BTreeSet<AcquirerId>>,
        keys: Vec<ClientKey>,
        rate: Quota,
    ) -> Self {
        Self { id, psps, acquirers, keys, rate: RateLimiter::direct(rate) }
    }

    /// The keys that may have made a signature: the one of that version, or, without a version, every active one.
    pub fn keys_for(
        &self,
        version: Option<&str>,
        now: Timestamp,
    ) -> impl Iterator<Item = &PublicKey> {
        let fits = move |key: &&ClientKey| version.is_none_or(|version| key.version == version);
        self.keys.iter().filter(move |key| key.active(now)).filter(fits).map(|key| &key.key)
    }

    /// Whether it may act for this wallet and acquirer.
    pub fn may_act_for(&self, psp: &PspId, acquirer: &AcquirerId) -> bool {
        let psp = self.psps.as_ref().is_none_or(|psps| psps.contains(psp));
        psp && self.acquirers.as_ref().is_none_or(|acquirers| acquirers.contains(acquirer))
    }

    /// Counts a request; `false` if there were too many.
    pub fn within_rate(&self) -> bool {
        self.rate.check().is_ok()
    }
}

/// Every client, by id.
pub struct Clients(HashMap<Box<str>, Client>);

impl Clients {
    /// Refuses one public key for two clients.
    pub fn new(clients: Vec<Client>) -> Result<Self, IdentityError> {
        let mut owners: HashMap<Fingerprint, ClientId> = HashMap::new();
        for client in &clients {
            let own: HashSet<Fingerprint> =
                client.keys.iter().map(|key| key.key.fingerprint()).collect();
            for fingerprint in own {
                if let Some(other) = owners.insert(fingerprint, client.id.clone()) {
                    return Err(IdentityError::SharedKey(other, client.id.clone()));
                }
            }
        }
        Ok(Self(clients.into_iter().map(|client| (client.id.as_str().into(), client)).collect()))
    }

    /// The client of this id.
    pub fn get(&self, id: &str) -> Option<&Client> {
        self.0.get(id)
    }
}

/// Our key that signs answers.
pub struct Identity {
    /// Our `keyVersion`.
    pub version: String,
    /// What signs under it.
    pub signer: Arc<dyn Signer>,
}
