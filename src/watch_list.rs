//! The watch list: what people have to look at, asked of the store now and then, told to `/metrics` and the log.
//!
//! It is asked in the background and never by a scrape: whoever scrapes often must not slow the store down.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time;

use crate::{
    domain::{
        consumer::{Consumer, ConsumerName, Head},
        time::Timestamp,
    },
    store::{Backlog, Error, Outstanding, Place, Standing, Store},
    telemetry::{
        Metrics, label,
        metrics::{Gauge, Label, Told},
    },
};

/// How often the store is asked.
const EVERY: Duration = Duration::from_secs(5);
/// From then on an unresolved payment is worth a line: until then the payment core is about to report.
const WARN_AFTER_MS: i64 = 60_000;
/// From then on it wakes somebody.
const ALARM_AFTER_MS: i64 = 15 * 60_000;
/// Between two lines about the same.
const SAY_EVERY_MS: i64 = 60_000;
/// Consumers that metrics tell of, the required ones first: each is a series.
const CONSUMERS_MAX: usize = 50;
/// For how many events the store is asked at a look: each costs a read of a row. Consumers behind in more partitions
/// than that, together, are told by the events alone.
const OLDEST_MAX: usize = 4_096;

/// What was seen last.
#[derive(Debug)]
struct Seen {
    at: Timestamp,
    due: Backlog,
    unresolved: Backlog,
    heads: Vec<Head>,
    consumers: BTreeMap<ConsumerName, Consumer>,
    /// When the first event was decided that a consumer has not acknowledged, of those that have any.
    oldest: BTreeMap<ConsumerName, Timestamp>,
    standing: Standing,
}

/// The list; clones share it.
#[derive(Clone)]
pub struct WatchList {
    required: Arc<[ConsumerName]>,
    now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    seen: Arc<Mutex<Option<Seen>>>,
}

impl WatchList {
    /// A list of nothing yet.
    pub fn new(
        required: &[ConsumerName],
        now: impl Fn() -> Timestamp + Send + Sync + 'static,
    ) -> Self {
        Self { required: required.into(), now: Arc::new(now), seen: Arc::default() }
    }

    /// What holds for the store, as it was last seen; absent until it was.
    pub fn standing(&self) -> Option<Standing> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.as_ref().map(|seen| seen.standing.clone())
    }

    /// Asks the store for ever.
    pub async fn keep(self, store: Arc<dyn Store>) {
        let mut said = Said::default();
        loop {
            match self.look(&*store).await {
                Ok(seen) => {
                    said.say(&seen);
                    *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen);
                }
                // the age of what is told shows it
                Err(error) => tracing::debug!(%error, "the watch list could not be read"),
            }
            time::sleep(EVERY).await;
        }
    }

    async fn look(&self, store: &dyn Store) -> Result<Seen, Error> {
        // the heads before the places, so that nobody seems to be ahead
        let heads = store.heads().await?;
        let consumers = store.consumers().await?.into_iter().collect();
        Ok(Seen {
            at: (self.now)(),
            due: store.backlog(Outstanding::FundReturnDue).await?,
            unresolved: store.backlog(Outstanding::Unresolved).await?,
            oldest: self.oldest(store, &consumers, &heads).await?,
            heads,
            consumers,
            standing: store.standing().await?,
        })
    }

    /// When the first event was decided that each consumer has not acknowledged: one question to the store for all.
    async fn oldest(
        &self,
        store: &dyn Store,
        consumers: &BTreeMap<ConsumerName, Consumer>,
        heads: &[Head],
    ) -> Result<BTreeMap<ConsumerName, Timestamp>, Error> {
        let mut behind = BTreeMap::new();
        let mut places = BTreeSet::new();
        for (name, consumer) in self.told(consumers) {
            let of_this = consumer.behind(heads);
            if places.len().saturating_add(of_this.len()) <= OLDEST_MAX {
                places.extend(of_this.iter().copied());
                behind.insert(name.clone(), of_this);
            }
        }
        if places.is_empty() {
            return Ok(BTreeMap::new());
        }
        let firsts = store.events(places.into_iter().collect(), 1).await?;
        // the event right behind a place; whatever was purged meanwhile is nobody's any more
        let at: BTreeMap<Place, Timestamp> = firsts
            .into_iter()
            .map(|first| {
                let position = first.position.saturating_sub(1);
                (Place { partition: first.partition, position }, first.event.at)
            })
            .collect();
        let oldest = |places: Vec<Place>| places.iter().filter_map(|it| at.get(it)).min().copied();
        let told = behind.into_iter().filter_map(|(name, places)| Some((name, oldest(places)?)));
        Ok(told.collect())
    }

    /// Has the gauges tell what was seen last; nothing as long as nothing was.
    pub fn observe(&self, metrics: &Metrics) {
        let each = |gauge: &Gauge, tell: fn(&Self, &Seen) -> Vec<Told>| {
            let list = self.clone();
            gauge.ask(move || {
                let seen = list.seen.lock().unwrap_or_else(PoisonError::into_inner);
                seen.as_ref().map(|seen| tell(&list, seen)).unwrap_or_default()
            });
        };
        each(&metrics.outstanding_payments, |_, seen| seen.kinds(|it| number(it.count)));
        each(&metrics.outstanding_oldest, |list, seen| {
            let now = (list.now)();
            seen.kinds(|it| it.oldest.map_or(0, |oldest| elapsed(oldest, now) / 1_000))
        });
        each(&metrics.consumer_lag, |list, seen| {
            list.consumers(seen, |_, it| Some(number(it.lag(&seen.heads))))
        });
        each(&metrics.consumer_lag_time, |list, seen| {
            let now = (list.now)();
            list.consumers(seen, |name, it| match seen.oldest.get(name) {
                Some(oldest) => Some(elapsed(*oldest, now) / 1_000),
                None => (it.lag(&seen.heads) == 0).then_some(0),
            })
        });
        each(&metrics.consumer_parked, |list, seen| {
            list.consumers(seen, |_, it| Some(i64::try_from(it.parked.len()).unwrap_or(i64::MAX)))
        });
        each(&metrics.consumer_missing, |list, seen| {
            let missing = |name| (of(name), i64::from(!seen.consumers.contains_key(name)));
            list.required.iter().take(CONSUMERS_MAX).map(missing).collect()
        });
        each(&metrics.feed_epoch, |_, seen| one(number(seen.standing.epoch)));
        each(&metrics.store_suspect, |_, seen| one(i64::from(seen.standing.suspect.is_some())));
        each(&metrics.store_onboarding, |_, seen| one(i64::from(seen.standing.onboarding)));
        each(&metrics.watch_list_age, |list, seen| one(elapsed(seen.at, (list.now)()) / 1_000));
    }

    fn consumers(
        &self,
        seen: &Seen,
        value: impl Fn(&ConsumerName, &Consumer) -> Option<i64>,
    ) -> Vec<Told> {
        let told = self.told(&seen.consumers).into_iter();
        told.filter_map(|(name, it)| Some((of(name), value(name, it)?))).collect()
    }

    /// Those that metrics tell of.
    fn told<'a>(
        &self,
        consumers: &'a BTreeMap<ConsumerName, Consumer>,
    ) -> Vec<(&'a ConsumerName, &'a Consumer)> {
        let is_required = |name: &ConsumerName| self.required.contains(name);
        let (mut told, others): (Vec<_>, Vec<_>) =
            consumers.iter().partition(|(name, _)| is_required(name));
        told.extend(others);
        told.truncate(CONSUMERS_MAX);
        told
    }
}

impl Seen {
    fn kinds(&self, value: impl Fn(Backlog) -> i64) -> Vec<Told> {
        [("fund_return_due", self.due), ("unresolved", self.unresolved)]
            .map(|(kind, backlog)| (vec![label("kind", kind)], value(backlog)))
            .into()
    }
}

fn of(name: &ConsumerName) -> Vec<Label> {
    vec![label("consumer", name.as_str().to_owned())]
}

fn one(value: i64) -> Vec<Told> {
    vec![(Vec::new(), value)]
}

/// When a line was last logged.
#[derive(Default)]
struct Said {
    unresolved: Option<Timestamp>,
    suspect: Option<Timestamp>,
}

impl Said {
    fn say(&mut self, seen: &Seen) {
        let Backlog { count, oldest } = seen.unresolved;
        let due = self.unresolved.is_none_or(|last| elapsed(last, seen.at) >= SAY_EVERY_MS);
        let age_ms = oldest.map_or(0, |oldest| elapsed(oldest, seen.at));
        if due && age_ms >= WARN_AFTER_MS {
            self.unresolved = Some(seen.at);
            let oldest_seconds = age_ms / 1_000;
            let what = "payments were cancelled while initiated, and the payment core does not say what became of them";
            if age_ms >= ALARM_AFTER_MS {
                tracing::error!(count, oldest_seconds, "{what}");
            } else {
                tracing::warn!(count, oldest_seconds, "{what}");
            }
        }
        let due = self.suspect.is_none_or(|last| elapsed(last, seen.at) >= SAY_EVERY_MS);
        if let Some(why) = seen.standing.suspect.as_ref().filter(|_| due) {
            self.suspect = Some(seen.at);
            tracing::error!(
                why,
                "the store is suspect; everything is answered U until `reconcile`"
            );
        }
    }
}

/// In milliseconds; never negative.
fn elapsed(from: Timestamp, to: Timestamp) -> i64 {
    to.unix_ms.saturating_sub(from.unix_ms).max(0)
}

fn number(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Telemetry;

    #[test]
    fn the_gauges_tell_what_was_seen_and_how_old_it_is() {
        let name = |name: &str| ConsumerName::parse(name).expect("a name");
        let at = |unix_ms| Timestamp { unix_ms };
        let list = WatchList::new(&[name("executor"), name("audit")], move || at(100_000));
        let telemetry = Telemetry::local();
        list.observe(&telemetry.metrics);
        let text = || {
            let text = telemetry.scrape();
            let ours = text.lines().filter(|line| line.starts_with("alipayplus_cancel_"));
            // the process's own
            let ours = ours.filter(|line| !line.starts_with("alipayplus_cancel_open_files"));
            ours.map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(text(), [""; 0], "nothing was seen");
        *list.seen.lock().unwrap() = Some(Seen {
            at: at(97_000),
            due: Backlog { count: 2, oldest: Some(at(40_000)) },
            unresolved: Backlog::default(),
            heads: vec![Head { position: 7, purged: 2 }],
            consumers: BTreeMap::from([
                (name("a"), Consumer::default()),
                (name("executor"), Consumer::default()),
            ]),
            oldest: BTreeMap::from([(name("executor"), at(30_500))]),
            standing: Standing { epoch: 3, onboarding: false, suspect: Some("why".to_owned()) },
        });
        let mut expected = [
            "alipayplus_cancel_outstanding_payments{kind=\"fund_return_due\"} 2",
            "alipayplus_cancel_outstanding_payments{kind=\"unresolved\"} 0",
            "alipayplus_cancel_outstanding_oldest_seconds{kind=\"fund_return_due\"} 60",
            "alipayplus_cancel_outstanding_oldest_seconds{kind=\"unresolved\"} 0",
            "alipayplus_cancel_consumer_lag_events{consumer=\"executor\"} 5",
            "alipayplus_cancel_consumer_lag_events{consumer=\"a\"} 5",
            // nothing is told of the other: it is behind, and nobody knows since when
            "alipayplus_cancel_consumer_lag_seconds{consumer=\"executor\"} 69",
            "alipayplus_cancel_consumer_parked_events{consumer=\"executor\"} 0",
            "alipayplus_cancel_consumer_parked_events{consumer=\"a\"} 0",
            "alipayplus_cancel_consumer_missing{consumer=\"executor\"} 0",
            "alipayplus_cancel_consumer_missing{consumer=\"audit\"} 1",
            "alipayplus_cancel_feed_epoch 3",
            "alipayplus_cancel_store_suspect 1",
            "alipayplus_cancel_store_onboarding 0",
            "alipayplus_cancel_watch_list_age_seconds 3",
        ];
        expected.sort_unstable();
        let mut values = text();
        values.sort_unstable();
        assert_eq!(values, expected);
    }
}
