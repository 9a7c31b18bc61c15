//! The store that the settings name: opened for the service or for a tool, watched, closed.

use std::{sync::Arc, thread, time::Duration};

use tokio::{task::JoinHandle, time};

use super::{
    StartError,
    material::{hash_ring, read},
};
use crate::{
    admin::Admin,
    config::{self, Settings, StoreUrl},
    engine::{self, Engine, HashRing, SystemClock},
    feed::Wake,
    store::{
        Store,
        postgres::{self, Dsn, DsnError, Durability, Postgres},
        sqlite::Sqlite,
    },
    telemetry::Telemetry,
};

/// The store, as whoever has to close it knows it.
pub enum Opened {
    /// The embedded one.
    Sqlite(Arc<Sqlite>),
    /// A database elsewhere.
    Postgres(Arc<Postgres>),
}

impl Opened {
    /// The store.
    pub fn store(&self) -> Arc<dyn Store> {
        match self {
            Self::Sqlite(store) => Arc::<Sqlite>::clone(store),
            Self::Postgres(store) => Arc::<Postgres>::clone(store),
        }
    }

    /// Waits until nothing is written any more.
    pub fn close(self) {
        match self {
            Self::Sqlite(store) => store.close(),
            // whatever was asked of it is committed there or not, whether or not we listen
            Self::Postgres(_) => {}
        }
    }
}

/// How the database is used.
pub fn database(settings: &Settings) -> Result<postgres::Options, StartError> {
    let store = &settings.store;
    let password = store.password_file.as_ref().map(|path| read("store.password_file", path));
    let password = password.transpose()?;
    let password = password.as_ref().map(|text| text.trim_ascii_end());
    let url = match &store.url {
        StoreUrl::Postgres(url) => url.expose(),
        StoreUrl::Sqlite { .. } => return Err(StartError::Dsn(DsnError::NoHost)),
    };
    Ok(postgres::Options {
        dsn: Dsn::parse(url, password).map_err(StartError::Dsn)?,
        partitions: store.partitions,
        durability: match store.durability {
            config::Durability::Local => Durability::Local,
            config::Durability::Replicated => Durability::Replicated,
        },
        lanes: store.workers,
        spare_connections: store.spare_connections,
    })
}

/// Longest pause between tries to reach the database at the start.
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Opens the store, and says which key of the ring is primary. A database that cannot be reached, or not be written to,
/// is asked again until it can; only what waiting cannot mend is an error.
pub async fn open_store(
    settings: &Settings,
    ring: &HashRing,
) -> Result<(Opened, usize), StartError> {
    let StoreUrl::Sqlite { path } = &settings.store.url else {
        let options = database(settings)?;
        let mut pause = Duration::from_millis(100);
        loop {
            let error = match open_database(settings, &options, ring).await {
                Ok((store, primary)) => return Ok((Opened::Postgres(Arc::new(store)), primary)),
                Err(error) if error.is_configuration() => return Err(StartError::Database(error)),
                Err(error) => crate::store::chain(&error),
            };
            tracing::warn!(%error, "the database cannot be used yet; trying again");
            time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    };
    let opened = Sqlite::open(path, settings.store.partitions, ring.fingerprints());
    let (store, primary) = opened.map_err(StartError::Store)?;
    Ok((Opened::Sqlite(Arc::new(store)), primary))
}

async fn open_database(
    settings: &Settings,
    options: &postgres::Options,
    ring: &HashRing,
) -> Result<(Postgres, usize), postgres::OpenError> {
    if settings.store.migrate_at_start {
        Postgres::migrate(options).await?;
    }
    Postgres::open(options, ring.fingerprints()).await
}

/// A store that a tool has opened, and what a tool needs beside it.
pub struct Tool {
    opened: Opened,
    hashes: HashRing,
}

/// Opens the store that the settings name for a tool: an embedded one is refused while a service has it, and a database
/// that cannot be reached now is an error.
pub async fn open_tool(settings: &Settings) -> Result<Tool, StartError> {
    let ring = hash_ring(settings)?;
    let (opened, primary) = match &settings.store.url {
        StoreUrl::Sqlite { path } => {
            let opened = Sqlite::open(path, settings.store.partitions, ring.fingerprints());
            let (store, primary) = opened.map_err(StartError::Store)?;
            (Opened::Sqlite(Arc::new(store)), primary)
        }
        StoreUrl::Postgres(_) => {
            let options = database(settings)?;
            let opened = open_database(settings, &options, &ring).await;
            let (store, primary) = opened.map_err(StartError::Database)?;
            (Opened::Postgres(Arc::new(store)), primary)
        }
    };
    Ok(Tool { opened, hashes: ring.with_primary(primary) })
}

impl Tool {
    /// The store.
    pub fn store(&self) -> Arc<dyn Store> {
        self.opened.store()
    }

    /// An engine over the store, for a tool that sends one command after the other; what it leaves is to be closed.
    pub fn engine(self, settings: &Settings) -> (Engine, Closing) {
        let limits = engine::Limits { queue: settings.limits.queue, batch: 1, wait: Duration::MAX };
        let policy = Arc::new(settings.policy.clone());
        let store = self.opened.store();
        // nobody follows the feed of a tool
        let wake = Wake::default();
        let (engine, worker) = Engine::start(
            store,
            &wake,
            self.hashes,
            policy,
            Arc::new(SystemClock),
            limits,
            // nobody asks for the metrics of a tool
            &Telemetry::local().metrics,
        );
        (engine, Closing { worker, opened: self.opened })
    }

    /// Closes it in order.
    pub async fn close(self) {
        close(self.opened).await;
    }
}

/// What is left of a tool's store once its engine is dropped.
pub struct Closing {
    worker: JoinHandle<()>,
    opened: Opened,
}

impl Closing {
    /// Waits for the engine to end, all of its handles being dropped, and closes the store in order.
    pub async fn close(self) {
        if self.worker.await.is_err() {
            tracing::debug!("the engine's worker did not end by itself");
        }
        close(self.opened).await;
    }
}

async fn close(opened: Opened) {
    if tokio::task::spawn_blocking(move || opened.close()).await.is_err() {
        tracing::error!("the store could not be closed in order; its next start recovers");
    }
}

/// Looks for what no start can see, once the process before did not end in order; beside the service, which goes on.
pub(super) fn check_after_unclean_stop(store: &Opened) {
    let Opened::Sqlite(store) = store else { return };
    if !store.stopped_uncleanly() {
        return;
    }
    let path = store.path().to_owned();
    let check = move || match Sqlite::check(&path, |_| {}) {
        Ok(checked) if checked.findings.is_empty() => tracing::info!(
            rows = checked.rows,
            "the database was not closed in order; a check of all of it found nothing wrong"
        ),
        Ok(checked) => {
            for finding in checked.findings.iter().take(FINDINGS_TOLD) {
                tracing::error!(
                    finding,
                    "the database is damaged: stop the service, restore it, and run `reconcile`"
                );
            }
        }
        Err(error) => {
            let error = crate::store::chain(&error);
            tracing::error!(
                error,
                "the database could not be checked after it was not closed in order"
            );
        }
    };
    // a thread of its own, which no drain waits for
    if let Err(error) = thread::Builder::new().name("sqlite-check".to_owned()).spawn(check) {
        tracing::error!(%error, "the database could not be checked: no thread");
    }
}

/// Findings of a check that are logged one by one.
const FINDINGS_TOLD: usize = 20;

/// How often the store is asked whether it still answers, and how long that may take.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Failures in a row from which on requests should go elsewhere: a switch of the primary alone is no reason.
const WATCH_FAILURES: u32 = 3;

/// Readiness follows the store: while it does not answer, every answer of ours would be "ask again".
pub(super) async fn watch_store(store: Arc<dyn Store>, probes: Admin) {
    let mut failures = 0u32;
    loop {
        time::sleep(WATCH_INTERVAL).await;
        if let Ok(Ok(_)) = time::timeout(2 * WATCH_INTERVAL, store.standing()).await {
            if failures >= WATCH_FAILURES {
                tracing::info!("the store answers again");
            }
            failures = 0;
            probes.set_store(true);
            continue;
        }
        failures = failures.saturating_add(1);
        if failures == WATCH_FAILURES {
            tracing::error!("the store does not answer; not ready until it does");
            probes.set_store(false);
        }
    }
}
