//! A signature is computed once for equal answers within a second.
//!
//! PKCS#1 v1.5 is deterministic and Response-Time has whole seconds, so two answers with the same signed string and key
//! have the same signature. The signed string holds method, path, query, client, second and body; the key is ours alone
//! and fixed for a cache. Signing costs more than all else together, so most answers under load cost none.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use http::HeaderValue;
use tokio::{sync::OnceCell, task};

use super::{identity::Identity, signature};

/// Most signatures kept: answers of one second that differ.
const ENTRIES_MAX: usize = 4_096;
/// Longest signed string that is kept, in bytes: nobody sends a long answer twice in a second.
const ENTRY_BYTES_MAX: usize = 2_048;

type Slot = Arc<OnceCell<HeaderValue>>;

/// Signs, and keeps what it signed for as long as it can be used.
pub(super) struct SignCache {
    identity: Arc<Identity>,
    second: Mutex<Second>,
}

#[derive(Default)]
struct Second {
    response_time: String,
    slots: HashMap<Box<[u8]>, Slot>,
}

/// Signing failed; the answer must not go out as if it were proven.
#[derive(Debug, thiserror::Error)]
#[error("an answer could not be signed")]
pub(super) struct Unsigned;

impl SignCache {
    pub(super) fn new(identity: Identity) -> Self {
        Self { identity: Arc::new(identity), second: Mutex::default() }
    }

    /// The `signature` header for a signed string of this second, and whether it was there already.
    pub(super) async fn header(
        &self,
        response_time: &str,
        signed: Vec<u8>,
    ) -> Result<(HeaderValue, bool), Unsigned> {
        let slot = self.slot(response_time, &signed);
        let cached = slot.initialized();
        let sign = || async {
            let identity = Arc::clone(&self.identity);
            // hundreds of microseconds of arithmetic have no place among the async workers
            task::spawn_blocking(move || {
                let signature = identity.key.sign(&signed).ok()?;
                HeaderValue::try_from(signature::header(&identity.version, &signature)).ok()
            })
            .await
            .ok()
            .flatten()
            .ok_or(Unsigned)
        };
        slot.get_or_try_init(sign).await.map(|header| (header.clone(), cached))
    }

    fn slot(&self, response_time: &str, signed: &[u8]) -> Slot {
        let mut second = self.second.lock().unwrap_or_else(PoisonError::into_inner);
        if second.response_time != response_time {
            response_time.clone_into(&mut second.response_time);
            second.slots.clear();
        }
        if let Some(slot) = second.slots.get(signed) {
            return Arc::clone(slot);
        }
        let slot = Slot::default();
        if second.slots.len() < ENTRIES_MAX && signed.len() <= ENTRY_BYTES_MAX {
            second.slots.insert(signed.into(), Arc::clone(&slot));
        }
        slot
    }
}
