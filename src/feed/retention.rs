//! Events that every required consumer has behind it, and that are old enough, go.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time;

use super::{Error, Inner};
use crate::domain::{consumer::retention::purgeable, time::Timestamp};

/// Events in one transaction.
const BATCH: u32 = 1_000;
/// Between two of them, so that commits come through.
const PAUSE: Duration = Duration::from_millis(50);

pub(super) async fn run(inner: Arc<Inner>) {
    if inner.settings.required.is_empty() {
        return;
    }
    loop {
        tokio::select! {
            () = inner.stop.cancelled() => return,
            () = time::sleep(inner.settings.purge_interval) => {}
        }
        match purge(&inner).await {
            Ok(0) => {}
            Ok(events) => tracing::info!(events, "purged"),
            Err(error) => {
                tracing::warn!(%error, "events could not be purged; it will be tried again");
            }
        }
    }
}

/// Answers how many events went.
async fn purge(inner: &Inner) -> Result<u64, Error> {
    // what was lost is found by comparing with what is left
    if inner.store.standing().await.map_err(Error::Store)?.suspect.is_some() {
        return Ok(0);
    }
    let heads = inner.store.heads().await.map_err(Error::Store)?;
    let consumers: BTreeMap<_, _> =
        inner.store.consumers().await.map_err(Error::Store)?.into_iter().collect();
    let upto = purgeable(&inner.settings.required, &consumers, &heads);
    let age = i64::try_from(inner.settings.retention.as_millis()).unwrap_or(i64::MAX);
    let before = Timestamp { unix_ms: (inner.now)().unix_ms.saturating_sub(age) };
    let mut all = 0u64;
    while !upto.is_empty() && !inner.stop.is_cancelled() {
        let gone = inner.store.purge(upto.clone(), before, BATCH).await.map_err(Error::Store)?;
        all = all.saturating_add(gone);
        if gone < u64::from(BATCH) {
            break;
        }
        time::sleep(PAUSE).await;
    }
    Ok(all)
}
