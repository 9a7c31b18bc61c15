//! Who is who: the clients with their public keys, and our own key that signs.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use super::{
    front::Api,
    keys::{Fingerprint, PublicKey},
    signer::Signer,
};
use crate::{
    domain::{
        id::{AcquirerId, ClientId, PspId},
        time::Timestamp,
    },
    layer::rate_limit::{Bucket, Rate},
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
    buckets: Buckets,
}

/// How many requests a client may make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rates {
    /// Of all APIs together.
    pub all: Rate,
    /// Of cancelPayment, beside that.
    pub cancel_payment: Option<Rate>,
    /// Of cancelToken, beside that.
    pub cancel_token: Option<Rate>,
}

/// What a client may still do.
struct Buckets {
    all: Arc<Bucket>,
    cancel_payment: Option<Arc<Bucket>>,
    cancel_token: Option<Arc<Bucket>>,
}

impl Buckets {
    fn new(rates: Rates) -> Self {
        Self {
            all: Bucket::new(rates.all),
            cancel_payment: rates.cancel_payment.map(Bucket::new),
            cancel_token: rates.cancel_token.map(Bucket::new),
        }
    }

    /// As far as the rates are the same, what was taken stays taken.
    fn inherit(&mut self, before: &Self) {
        let keep = |now: &mut Arc<Bucket>, before: &Arc<Bucket>| {
            if now.rate() == before.rate() {
                *now = Arc::clone(before);
            }
        };
        keep(&mut self.all, &before.all);
        for (now, before) in [
            (&mut self.cancel_payment, &before.cancel_payment),
            (&mut self.cancel_token, &before.cancel_token),
        ] {
            if let (Some(now), Some(before)) = (now, before) {
                keep(now, before);
            }
        }
    }
}

/// A public key of a client.
pub struct ClientKey {
    /// The exact `keyVersion`.
    pub version: Arc<str>,
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
    /// A client with its rates.
    pub fn new(
        id: ClientId,
        psps: Option<BTreeSet<PspId>>,
        acquirers: Option<BTreeSet<AcquirerId>>,
        keys: Vec<ClientKey>,
        rates: Rates,
    ) -> Self {
        Self { id, psps, acquirers, keys, buckets: Buckets::new(rates) }
    }

    /// The keys that may have made a signature: the one of that version, or, without a version, every active one.
    pub fn keys_for(
        &self,
        version: Option<&str>,
        now: Timestamp,
    ) -> impl Iterator<Item = &ClientKey> {
        let fits = move |key: &&ClientKey| version.is_none_or(|version| *key.version == *version);
        self.keys.iter().filter(move |key| key.active(now)).filter(fits)
    }

    /// Whether it may act for this wallet and acquirer.
    pub fn may_act_for(&self, psp: &PspId, acquirer: &AcquirerId) -> bool {
        let psp = self.psps.as_ref().is_none_or(|psps| psps.contains(psp));
        psp && self.acquirers.as_ref().is_none_or(|acquirers| acquirers.contains(acquirer))
    }

    /// What a request takes one from each of.
    pub(super) fn buckets(&self, api: Api) -> impl Iterator<Item = &Bucket> {
        let of_api = match api {
            Api::CancelPayment => &self.buckets.cancel_payment,
            Api::CancelToken => &self.buckets.cancel_token,
        };
        of_api.iter().chain([&self.buckets.all]).map(|bucket| &**bucket)
    }
}

/// Every client, by id.
pub struct Clients(foldhash::HashMap<Box<str>, Arc<Client>>);

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
        let by_id = |client: Client| (client.id.as_str().into(), Arc::new(client));
        Ok(Self(clients.into_iter().map(by_id).collect()))
    }

    /// What each client took, as far as its rates are the same.
    #[must_use]
    pub(super) fn inheriting(self, before: &Self) -> Self {
        let inherit = |(id, mut client): (Box<str>, Arc<Client>)| {
            if let (Some(client), Some(before)) = (Arc::get_mut(&mut client), before.get(&id)) {
                client.buckets.inherit(&before.buckets);
            }
            (id, client)
        };
        Self(self.0.into_iter().map(inherit).collect())
    }

    /// All of them, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Client> {
        self.0.values().map(|client| &**client)
    }

    /// The client of this id.
    pub fn get(&self, id: &str) -> Option<&Arc<Client>> {
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
