//! Work that blocks, beside the async workers, within a time.

use std::{sync::Arc, time::Duration};

use tokio::{sync::Semaphore, task, time};

/// Reads beside the async workers: a network file system or a token may take its time, or hang. What hangs holds one
/// thread, however often it is tried again.
pub(super) struct Beside {
    one: Arc<Semaphore>,
    wait: Duration,
}

impl Beside {
    pub(super) fn new(wait: Duration) -> Self {
        Self { one: Arc::new(Semaphore::new(1)), wait }
    }

    /// `None` if it is not done in time, or that before it still is not.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let one = Arc::clone(&self.one);
        let done = async move {
            let alone = one.acquire_owned().await.ok()?;
            let done = task::spawn_blocking(move || {
                let done = work();
                drop(alone);
                done
            });
            let done = done.await;
            done.inspect_err(|error| tracing::error!(%error, "settings could not be read")).ok()
        };
        let Ok(done) = time::timeout(self.wait, done).await else {
            tracing::error!("the settings, or what they name, are not read in time");
            return None;
        };
        done
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn what_hangs_is_given_up_and_holds_one_thread_until_it_ends() {
        let beside = Beside::new(Duration::from_millis(100));
        let (release, held) = mpsc::channel::<()>();
        assert_eq!(beside.run(move || held.recv().is_ok()).await, None);
        assert_eq!(beside.run(|| -> bool { panic!("the first one has not ended") }).await, None);
        release.send(()).unwrap();
        let patient = Beside { one: Arc::clone(&beside.one), wait: Duration::from_secs(20) };
        assert_eq!(patient.run(|| true).await, Some(true));
    }
}
