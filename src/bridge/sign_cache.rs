//! A signature is computed once for equal answers within a second.
//!
//! PKCS#1 v1.5 is deterministic and Response-Time has whole seconds, so two answers with the same signed string and key
//! have the same signature. The signed string holds method, path, query, client, second and body; the key is ours alone
//! and fixed for a cache. Signing costs more than all else together, so most answers under load cost none.
//!
//! Answers that say no more than their code are kept whole, so that a refusal under load is not even put together again.
//!
//! What signs may be a device that is slow, or hangs: so no more signatures are computed at once than it is good for,
//! and nobody waits for one longer than [`PATIENCE`]. A thread that hangs keeps its place, so there are never more of them.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use foldhash::HashMap;
use http::{HeaderValue, Method};
use tokio::{
    sync::{OnceCell, Semaphore},
    task, time,
};

use super::{
    envelope::{Address, Sealed},
    identity::Identity,
    signature,
    signer::SignError,
};
use crate::domain::result::ResultCode;

/// Longest wait for a signature, its place in the queue included. An answer is signed after its deadline, 1.5 s before
/// Alipay+ gives up.
const PATIENCE: Duration = Duration::from_millis(1_200);

/// Most signatures kept: answers of one second that differ.
const ENTRIES_MAX: usize = 4_096;
/// Longest signed string that is kept, in bytes: nobody sends a long answer twice in a second.
const ENTRY_BYTES_MAX: usize = 2_048;

type Slot = Arc<OnceCell<HeaderValue>>;
/// By target, client, and code. Nested, so that looking one up makes no key.
type Answers = HashMap<Box<str>, HashMap<Box<str>, Vec<(ResultCode, Sealed)>>>;

/// Signs, and keeps what it signed for as long as it can be used.
pub(super) struct SignCache {
    identity: Arc<Identity>,
    /// Signatures at once.
    places: Arc<Semaphore>,
    second: Mutex<Second>,
    answers: Mutex<WholeAnswers>,
}

/// Answers to POST of one second.
#[derive(Default)]
struct WholeAnswers {
    /// Since 1970.
    second: i64,
    count: usize,
    answers: Answers,
    /// Of those that say [`ResultCode::RequestTrafficExceedLimit`], all bytes; by target and client.
    turned_away: HashMap<Box<str>, HashMap<Box<str>, Bytes>>,
}

#[derive(Default)]
struct Second {
    response_time: String,
    slots: HashMap<Box<[u8]>, Slot>,
}

/// Signing failed; the answer must not go out as if it were proven.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unsigned {
    #[error("no signature within {PATIENCE:?}")]
    TooLate,
    #[error(transparent)]
    Failed(#[from] SignError),
    #[error("signing panicked")]
    Panicked,
}

impl SignCache {
    pub(super) fn new(identity: Identity) -> Self {
        let places = Arc::new(Semaphore::new(identity.signer.at_once().max(1)));
        let (second, answers) = (Mutex::default(), Mutex::default());
        Self { identity: Arc::new(identity), places, second, answers }
    }

    /// An answer of this second, if it was made before.
    pub(super) fn answer(
        &self,
        second: i64,
        address: Address<'_>,
        code: ResultCode,
    ) -> Option<Sealed> {
        if address.method != Method::POST {
            return None;
        }
        let whole = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if whole.second != second {
            return None;
        }
        let of_client = whole.answers.get(address.target)?.get(address.client.as_str())?;
        of_client.iter().find(|(of, _)| *of == code).map(|(_, sealed)| sealed.clone())
    }

    /// The bytes of the answer of this second to a request that is turned away, if it was made before.
    pub(super) fn turned_away(&self, second: i64, target: &str, client: &str) -> Option<Bytes> {
        let whole = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if whole.second != second {
            return None;
        }
        whole.turned_away.get(target)?.get(client).cloned()
    }

    /// Keeps it for the rest of its second.
    pub(super) fn keep(
        &self,
        second: i64,
        address: Address<'_>,
        code: ResultCode,
        sealed: &Sealed,
    ) {
        if address.method != Method::POST || address.target.len() > ENTRY_BYTES_MAX {
            return;
        }
        let mut whole = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        // one that was long in signing is no reason to forget those of now; a clock that was set back is
        if (1..=2).contains(&whole.second.saturating_sub(second)) {
            return;
        }
        if second != whole.second {
            *whole = WholeAnswers { second, ..WholeAnswers::default() };
        }
        if whole.count >= ENTRIES_MAX {
            return;
        }
        let of_target = whole.answers.entry(address.target.into()).or_default();
        let of_client = of_target.entry(address.client.as_str().into()).or_default();
        // another request with the same answer may have been first
        if of_client.iter().all(|(of, _)| *of != code) {
            of_client.push((code, sealed.clone()));
            whole.count += 1;
            if code == ResultCode::RequestTrafficExceedLimit {
                let of_target = whole.turned_away.entry(address.target.into()).or_default();
                of_target.insert(address.client.as_str().into(), sealed.http1(second));
            }
        }
    }

    /// The `signature` header for a signed string of this second, and whether it was there already.
    pub(super) async fn header(
        &self,
        response_time: &str,
        signed: Vec<u8>,
    ) -> Result<(HeaderValue, bool), Unsigned> {
        let slot = self.slot(response_time, &signed);
        let cached = slot.initialized();
        // around the whole wait: callers of one slot stand behind each other's attempts
        let sign = slot.get_or_try_init(|| self.sign(signed));
        let header = time::timeout(PATIENCE, sign).await.map_err(|_| Unsigned::TooLate)??;
        Ok((header.clone(), cached))
    }

    async fn sign(&self, signed: Vec<u8>) -> Result<HeaderValue, Unsigned> {
        let place = Arc::clone(&self.places).acquire_owned().await;
        let identity = Arc::clone(&self.identity);
        // hundreds of microseconds of arithmetic, or a wait for a device, have no place among the async workers
        let signing = task::spawn_blocking(move || {
            // given back by the thread, not by who waits for it: he may have gone
            let _place = place;
            let signature = identity.signer.sign(&signed)?;
            Ok(HeaderValue::try_from(signature::header(&identity.version, &signature))
                .expect("a version is plain ASCII by its setting, and the rest is percent-encoded"))
        });
        signing.await.unwrap_or(Err(Unsigned::Panicked))
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

#[cfg(test)]
mod tests {
    use std::sync::{
        Condvar,
        atomic::{AtomicUsize, Ordering},
    };

    use futures_util::future::join_all;

    use super::*;
    use crate::bridge::{
        keys::{PrivateKey, PublicKey},
        signer::Signer,
    };

    /// A device that hangs until it is let go.
    #[derive(Debug)]
    struct Hung {
        key: PrivateKey,
        asked: AtomicUsize,
        free: Mutex<bool>,
        freed: Condvar,
    }

    impl Signer for Hung {
        fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            drop(self.freed.wait_while(self.free.lock().unwrap(), |free| !*free).unwrap());
            Signer::sign(&self.key, message)
        }

        fn public(&self) -> &PublicKey {
            self.key.public()
        }

        fn at_once(&self) -> usize {
            2
        }
    }

    /// Signs everything with the same few bytes.
    #[derive(Debug)]
    struct Quick(PublicKey);

    impl Signer for Quick {
        fn sign(&self, _: &[u8]) -> Result<Vec<u8>, SignError> {
            Ok(vec![7; 8])
        }

        fn public(&self) -> &PublicKey {
            &self.0
        }

        fn at_once(&self) -> usize {
            1
        }
    }

    #[tokio::test]
    async fn signatures_of_a_second_are_kept_as_long_as_it_lasts_and_there_is_room() {
        let signer = Arc::new(Quick(PrivateKey::generate(2048).unwrap().public().clone()));
        let cache = SignCache::new(Identity { version: "1".to_owned(), signer });
        let cached = async |second: &str, signed: &[u8]| {
            cache.header(second, signed.to_vec()).await.unwrap().1
        };
        assert!(!cached("one", b"a").await && cached("one", b"a").await);
        assert!(!cached("one", b"b").await);
        assert!(!cached("two", b"a").await && cached("two", b"a").await, "another second");
        let long = [b'x'; ENTRY_BYTES_MAX + 1];
        assert!(!cached("two", &long).await && !cached("two", &long).await);
        let fits = &long[1..];
        assert!(!cached("two", fits).await && cached("two", fits).await);
        // two are there
        for nth in 2..ENTRIES_MAX {
            assert!(!cached("two", nth.to_string().as_bytes()).await);
        }
        let last = (ENTRIES_MAX - 1).to_string();
        assert!(cached("two", last.as_bytes()).await && cached("two", b"a").await);
        assert!(!cached("two", b"one more").await && !cached("two", b"one more").await);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_device_that_hangs_holds_its_few_threads_and_nobody_for_long() {
        let hung = Arc::new(Hung {
            key: PrivateKey::generate(2048).unwrap(),
            asked: AtomicUsize::new(0),
            free: Mutex::new(false),
            freed: Condvar::new(),
        });
        let signer = Arc::clone(&hung);
        let cache = SignCache::new(Identity { version: "1".to_owned(), signer });
        let begun = std::time::Instant::now();
        // two equal answers among them, which wait for one signature
        let answers = ["a", "a", "b", "c", "d", "e"].map(|body| cache.header("now", body.into()));
        for answer in join_all(answers).await {
            assert!(matches!(answer, Err(Unsigned::TooLate)), "{answer:?}");
        }
        assert!(begun.elapsed() < 2 * PATIENCE, "{:?}", begun.elapsed());
        assert_eq!(hung.asked.load(Ordering::SeqCst), 2);

        *hung.free.lock().unwrap() = true;
        hung.freed.notify_all();
        let (header, cached) = cache.header("now", b"a".into()).await.unwrap();
        assert!(!cached, "nobody got it before");
        let read = signature::SignatureHeader::parse(header.as_bytes()).unwrap();
        assert!(hung.public().verify(b"a", &read.signature));
    }
}
