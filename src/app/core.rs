//! The core in this process: the store, the engine over it, the feed, their gRPC services. And what watches a core that
//! is elsewhere.

use std::{sync::Arc, time::Duration};

use tokio::{task::JoinHandle, time};

use super::{
    StartError,
    store::{Opened, check_after_unclean_stop, open_store, watch_store},
};
use crate::{
    admin::Admin,
    config::Settings,
    engine::{self, Clock as _, Engine, HashRing, SystemClock, Tombstones},
    feed::{self, Feed, Wake},
    grpc::{
        channel::Channel,
        server::{Deadlines, Server},
    },
    telemetry::Telemetry,
    watch_list::WatchList,
};

/// A core that runs.
pub(super) struct Core {
    pub(super) engine: Engine,
    pub(super) feed: Feed,
    pub(super) watch_list: WatchList,
    deadlines: Deadlines,
    store: Opened,
    watch: [JoinHandle<()>; 2],
    worker: JoinHandle<()>,
    beside_feed: JoinHandle<()>,
    telemetry: Telemetry,
}

impl Core {
    /// Opens the store, which may be waited for, and begins to decide.
    pub(super) async fn start(
        settings: &Settings,
        ring: HashRing,
        tombstones: Tombstones,
        probes: &Admin,
        telemetry: &Telemetry,
    ) -> Result<Self, StartError> {
        let (store, primary) = open_store(settings, &ring).await?;
        check_after_unclean_stop(&store);
        let limits = &settings.limits;
        let wake = Wake::default();
        let (feed, beside_feed) = Feed::start(
            store.store(),
            wake.clone(),
            feed_settings(settings),
            Arc::new(|| SystemClock.now()),
        );
        let (engine, worker) = Engine::start(
            store.store(),
            &wake,
            ring.with_primary(primary),
            Arc::new(settings.policy.clone()),
            Arc::new(SystemClock),
            engine::Limits { queue: limits.queue, batch: limits.batch, wait: limits.queue_wait },
            &telemetry.metrics,
        );
        engine.set_tombstones(tombstones);
        let watch_list = WatchList::new(&settings.feed.required_consumers, || SystemClock.now());
        watch_list.observe(&telemetry.metrics);
        let watch = [
            tokio::spawn(watch_store(store.store(), probes.clone())),
            tokio::spawn(watch_list.clone().keep(store.store())),
        ];
        let deadlines = Deadlines {
            cancel_payment: limits.cancel_payment_deadline,
            cancel_token: limits.cancel_token_deadline,
            other: limits.default_deadline,
        };
        let telemetry = telemetry.clone();
        Ok(Self {
            engine,
            feed,
            watch_list,
            deadlines,
            store,
            watch,
            worker,
            beside_feed,
            telemetry,
        })
    }

    /// Its services.
    pub(super) fn server(&self) -> Server {
        Server::new(self.engine.clone(), self.deadlines, self.telemetry.clone())
    }

    /// No news any more.
    pub(super) fn unwatch(&self) {
        self.watch.iter().for_each(JoinHandle::abort);
    }

    /// Ends the engine and closes the store. Whatever else has a handle of the engine must be gone.
    pub(super) async fn stop(self, grace: Duration) {
        let Self { engine, worker, beside_feed, store, .. } = self;
        drop(engine);
        let moment = Duration::from_secs(1);
        // the worker ends by itself once every handle is gone; a dropped connection's may be left
        let ended = tokio::join!(time::timeout(moment, beside_feed), time::timeout(moment, worker));
        if ended.0.is_err() {
            tracing::debug!("the feed waits for the store, and is left");
        }
        if ended.1.is_err() {
            tracing::debug!("commands of dropped connections are left unanswered");
        }
        // a disk that does not come back must not hold the process
        let closed = tokio::task::spawn_blocking(move || store.close());
        if !matches!(time::timeout(grace, closed).await, Ok(Ok(()))) {
            tracing::error!("the store could not be closed in order; its next start recovers");
        }
    }
}

fn feed_settings(settings: &Settings) -> feed::Settings {
    let config = &settings.feed;
    feed::Settings {
        required: config.required_consumers.clone(),
        retention: config.retention,
        purge_interval: config.purge_interval,
        keep_alive: config.keep_alive,
    }
}

/// How often a bridge looks whether a core is healthy; the channel itself knows at once.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);
/// So many looks in a row without one, and requests should go to another bridge: a core that restarts is no reason.
const WATCH_FAILURES: u32 = 30;

/// Readiness of a bridge follows its cores: while none is reachable, every answer would be "ask again".
pub(super) async fn watch_cores(channel: Channel, probes: Admin) {
    // there has been none yet
    let mut failures = WATCH_FAILURES;
    loop {
        if channel.cores().0 > 0 {
            if failures >= WATCH_FAILURES {
                tracing::info!("a core is reachable");
            }
            failures = 0;
            probes.set_core(true);
        } else {
            failures = failures.saturating_add(1);
            if failures == WATCH_FAILURES {
                tracing::error!("no core is reachable; not ready until one is");
                probes.set_core(false);
            }
        }
        time::sleep(WATCH_INTERVAL).await;
    }
}
