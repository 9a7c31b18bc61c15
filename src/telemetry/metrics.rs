//! Every metric, in one table: its name, kind, unit, labels and meaning. docs/operations.md has the same rows; a test
//! compares them.
//!
//! A label's values are bounded: names of ours, codes, registered clients, configured paths. What a caller chooses
//! freely never becomes one. Should something slip through all the same, an instrument keeps 2000 series and counts the
//! rest under `otel_metric_overflow`.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use opentelemetry::metrics::{
    AsyncInstrument, BoundHistogram, Counter, Histogram, Meter, UpDownCounter,
};
pub use opentelemetry::{
    KeyValue as Label,
    metrics::{BoundCounter, BoundUpDownCounter},
};

/// How an instrument counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Count,
    /// Goes up and down, as things begin and end.
    Level,
    /// Durations, by buckets.
    Seconds,
    /// Numbers of things, by buckets.
    Sizes,
    /// What holds now, as somebody last told.
    Gauge,
    /// Only grows, and is read when asked for.
    Read,
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// OpenTelemetry's name; Prometheus has underscores, the unit, and `_total` after what only grows.
    pub name: &'static str,
    /// How it counts.
    pub kind: Kind,
    /// UCUM; in braces if it is a mere annotation.
    pub unit: &'static str,
    /// What tells its series apart.
    pub labels: &'static [&'static str],
    /// What it is.
    pub help: &'static str,
}

impl Row {
    /// Its name on `/metrics`.
    pub fn prometheus(&self) -> String {
        let unit = match self.unit {
            "s" => "_seconds",
            "By" => "_bytes",
            _ => "",
        };
        let total = if matches!(self.kind, Kind::Count | Kind::Read) { "_total" } else { "" };
        format!("{}{unit}{total}", self.name.replace('.', "_"))
    }
}

/// Upper ends of buckets of durations: a decision takes microseconds, a commit milliseconds, a deadline seconds.
const SECONDS: [f64; 15] =
    [0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 7.5, 10.0];
/// Upper ends of buckets of sizes.
const SIZES: [f64; 11] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1_024.0];

/// The instruments, for whoever tells something; clones are one pointer, because every request makes some.
pub type Metrics = Arc<Instruments>;

macro_rules! table {
    (@type Count) => { Counter<u64> };
    (@type Level) => { UpDownCounter<i64> };
    (@type Seconds) => { Seconds };
    (@type Sizes) => { Histogram<u64> };
    (@type Gauge) => { Gauge };
    (@type Read) => { Read };
    (@make Count $meter:ident $row:expr) => {
        $meter.u64_counter($row.name).with_unit($row.unit).with_description($row.help).build()
    };
    (@make Level $meter:ident $row:expr) => {
        $meter
            .i64_up_down_counter($row.name)
            .with_unit($row.unit)
            .with_description($row.help)
            .build()
    };
    (@make Seconds $meter:ident $row:expr) => {
        Seconds(
            $meter
                .f64_histogram($row.name)
                .with_unit($row.unit)
                .with_description($row.help)
                .with_boundaries(SECONDS.into())
                .build(),
        )
    };
    (@make Sizes $meter:ident $row:expr) => {
        $meter
            .u64_histogram($row.name)
            .with_unit($row.unit)
            .with_description($row.help)
            .with_boundaries(SIZES.into())
            .build()
    };
    (@make Gauge $meter:ident $row:expr) => { Gauge::new($meter, $row) };
    (@make Read $meter:ident $row:expr) => { Read { meter: $meter.clone(), row: $row } };
    ($($field:ident: $kind:ident $name:literal in $unit:literal by [$($label:literal)*] = $help:literal;)*) => {
        /// The instruments.
        #[derive(Debug)]
        pub struct Instruments {
            $(#[doc = $help] pub $field: table!(@type $kind),)*
        }

        /// All of them.
        pub const TABLE: &[Row] = &[
            $(Row { name: $name, kind: Kind::$kind, unit: $unit, labels: &[$($label),*], help: $help },)*
        ];

        impl Instruments {
            pub(super) fn new(meter: &Meter) -> Self {
                let mut rows = TABLE.iter().copied();
                let mut row = || rows.next().expect("the macro made as many rows as fields");
                Self {
                    $($field: {
                        let row = row();
                        table!(@make $kind meter row)
                    },)*
                }
            }
        }
    };
}

table! {
    requests: Count "alipayplus.cancel.requests" in "{request}" by ["api" "front" "result_code"]
        = "Cancels answered, by API, the front they came through, and result code.";
    http_duration: Seconds "http.server.request.duration" in "s"
        by ["http.request.method" "url.scheme" "http.response.status_code" "http.route" "error.type"]
        = "Requests to the JSON front, from the end of the head to the answer; error.type is UNKNOWN_EXCEPTION for faults of ours.";
    http_active: Level "http.server.active_requests" in "{request}" by ["http.request.method" "url.scheme"]
        = "Requests to the JSON front that are not answered yet.";
    rpc_duration: Seconds "rpc.server.call.duration" in "s"
        by ["rpc.system.name" "rpc.method" "rpc.response.status_code" "error.type"]
        = "Calls to the gRPC services, streams to their end; error.type is the status of those that failed through us.";
    in_flight: Level "alipayplus.cancel.in_flight" in "{request}" by ["front"]
        = "Requests and calls that are not answered yet, by front.";
    connections: Level "alipayplus.cancel.connections" in "{connection}" by ["front"]
        = "Connections that are open, by front.";
    shed: Count "alipayplus.cancel.shed" in "{request}" by ["front" "reason"]
        = "Requests, or whole connections, turned away because there were too many, by front and what was full.";
    handshake_failures: Count "alipayplus.cancel.tls.handshake_failures" in "{connection}" by ["front"]
        = "Connections on which no TLS was agreed: no certificate that we trust, another protocol, silence, a port scan.";
    rate_limited: Count "alipayplus.cancel.rate_limited" in "{request}" by ["client" "front"]
        = "Requests turned away because their client, or their address where none is proven, asked too often.";
    signature_failures: Count "alipayplus.cancel.signature.failures" in "{request}" by ["client"]
        = "Requests that did not prove who sends them, by the client they name, unknown if that is none of ours.";
    signature_verified: Count "alipayplus.cancel.signature.verified" in "{request}" by ["client" "version"]
        = "Requests that proved who sends them, by client and the version of its key: who still signs with which.";
    signature_cache: Count "alipayplus.cancel.signature.cache" in "{answer}" by ["result"]
        = "Answers whose signature was there already (hit) or was computed (miss).";
    queue_depth: Gauge "alipayplus.cancel.queue.depth" in "{command}" by ["queue"]
        = "Commands that wait for a commit or its answer: cancels, and everything else.";
    queue_wait: Seconds "alipayplus.cancel.queue.wait" in "s" by []
        = "How long commands waited for their transaction to begin.";
    batch_size: Sizes "alipayplus.cancel.batch.size" in "{command}" by []
        = "Commands in one transaction.";
    commits: Count "alipayplus.cancel.commits" in "{transaction}" by []
        = "Transactions committed, batches of repeats among them.";
    commit_failures: Count "alipayplus.cancel.commit.failures" in "{transaction}" by []
        = "Transactions that failed: alert on any.";
    commit_duration: Seconds "alipayplus.cancel.commit.duration" in "s" by ["result"]
        = "How long transactions took, committed or failed.";
    alarms: Count "alipayplus.cancel.alarms" in "{command}" by ["alarm"]
        = "Commands that no caller should have sent, by what was wrong.";
    outstanding_payments: Gauge "alipayplus.cancel.outstanding.payments" in "{payment}" by ["kind"]
        = "Payments that people have to look after.";
    outstanding_oldest: Gauge "alipayplus.cancel.outstanding.oldest" in "s" by ["kind"]
        = "How long the oldest of them is outstanding.";
    consumer_lag: Gauge "alipayplus.cancel.consumer.lag_events" in "{event}" by ["consumer"]
        = "Events that a consumer of the feed has not acknowledged; of at most 50 consumers, required ones first.";
    consumer_lag_time: Gauge "alipayplus.cancel.consumer.lag" in "s" by ["consumer"]
        = "How long the oldest event that a consumer of the feed has not acknowledged waits; 0 if there is none.";
    consumer_parked: Gauge "alipayplus.cancel.consumer.parked_events" in "{event}" by ["consumer"]
        = "Events that a consumer of the feed has set aside.";
    consumer_missing: Gauge "alipayplus.cancel.consumer.missing" in "{consumer}" by ["consumer"]
        = "1 for a required consumer that never followed: nothing is purged.";
    feed_epoch: Gauge "alipayplus.cancel.feed.epoch" in "{epoch}" by []
        = "The feed's epoch.";
    store_suspect: Gauge "alipayplus.cancel.store.suspect" in "{store}" by []
        = "1 while nothing is decided until reconcile.";
    store_onboarding: Gauge "alipayplus.cancel.store.onboarding" in "{store}" by []
        = "1 until import complete.";
    watch_list_age: Gauge "alipayplus.cancel.watch_list.age" in "s" by []
        = "How old the figures about payments, consumers and the store are.";
    cores: Gauge "alipayplus.cancel.cores" in "{core}" by ["state"]
        = "Cores that this bridge knows, and those of them that are healthy.";
    core_retries: Read "alipayplus.cancel.core.retries" in "{call}" by ["reason"]
        = "Calls of which another core was asked: one had failed, or took long.";
    core_unreachable: Read "alipayplus.cancel.core.unreachable" in "{call}" by []
        = "Calls for which no core was healthy.";
    reloads: Read "alipayplus.cancel.reloads" in "{reload}" by ["result"]
        = "Settings that were read again, by what came of it: applied or refused.";
    reload_time: Gauge "alipayplus.cancel.reload.last_success_timestamp" in "s" by []
        = "When the settings that serve were read, in seconds since 1970.";
    settings_stale: Gauge "alipayplus.cancel.settings.stale" in "{settings}" by []
        = "1 while newer settings are refused and older ones serve.";
    key_not_after: Gauge "alipayplus.cancel.key.not_after" in "s" by ["client" "version"]
        = "When a client's key ends, in seconds since 1970, of those that do.";
    last_key_not_after: Gauge "alipayplus.cancel.key.last_not_after" in "s" by ["client"]
        = "When the last key of a client ends, in seconds since 1970, of clients all of whose keys do.";
    certificate_not_after: Gauge "alipayplus.cancel.certificate.not_after" in "s" by ["setting"]
        = "When the certificates in a file end, in seconds since 1970, by its setting: of a chain the first, of authorities the last.";
    exported: Count "alipayplus.cancel.telemetry.exported" in "{batch}" by ["result" "signal"]
        = "Batches of traces, metrics or logs that the collector took (ok) or that are lost (failed).";
    dropped: Count "alipayplus.cancel.telemetry.dropped" in "{item}" by ["signal"]
        = "Spans and log records dropped because too many wait for the collector.";
    cpu_time: Read "process.cpu.time" in "s" by ["cpu.mode"]
        = "CPU time of this process.";
    memory: Gauge "process.memory.usage" in "By" by []
        = "Memory of this process that is resident.";
    open_files: Gauge "alipayplus.cancel.open_files" in "{file}" by []
        = "File handles this process has open.";
    open_files_max: Gauge "alipayplus.cancel.open_files.max" in "{file}" by []
        = "File handles this process may have open.";
    uptime: Gauge "process.uptime" in "s" by []
        = "How long this process runs.";
}

/// Durations.
#[derive(Clone)]
pub struct Seconds(Histogram<f64>);

impl Seconds {
    /// One more.
    pub fn record(&self, duration: Duration, labels: &[Label]) {
        self.0.record(duration.as_secs_f64(), labels);
    }

    /// Those of one series, which is looked up now and never again.
    pub fn bind(&self, labels: &[Label]) -> BoundSeconds {
        BoundSeconds(self.0.bind(labels))
    }
}

/// Durations of one series.
#[derive(Clone)]
pub struct BoundSeconds(BoundHistogram<f64>);

impl BoundSeconds {
    /// One more.
    pub fn record(&self, duration: Duration) {
        self.0.record(duration.as_secs_f64());
    }
}

impl fmt::Debug for BoundSeconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BoundSeconds(…)")
    }
}

impl fmt::Debug for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seconds(…)")
    }
}

/// A value with its labels.
pub type Told = (Vec<Label>, i64);

type Ask = Box<dyn Fn() -> Vec<Told> + Send + Sync>;

/// What holds now. A series that is not told any more is gone.
#[derive(Clone)]
pub struct Gauge(Arc<Mutex<Ask>>);

impl Gauge {
    fn new(meter: &Meter, row: Row) -> Self {
        let ask: Arc<Mutex<Ask>> = Arc::new(Mutex::new(Box::new(Vec::new)));
        let asked = Arc::clone(&ask);
        let _observed = meter
            .i64_observable_gauge(row.name)
            .with_unit(row.unit)
            .with_description(row.help)
            .with_callback(move |gauge: &dyn AsyncInstrument<i64>| {
                let ask = asked.lock().unwrap_or_else(PoisonError::into_inner);
                for (labels, value) in ask() {
                    gauge.observe(value, &labels);
                }
            })
            .build();
        Self(ask)
    }

    /// Tells all of its series; what was told before is forgotten.
    pub fn tell(&self, told: Vec<Told>) {
        self.ask(move || told.clone());
    }

    /// Has its series asked for at each look: what is asked must be at hand, never a store.
    pub fn ask(&self, ask: impl Fn() -> Vec<Told> + Send + Sync + 'static) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Box::new(ask);
    }
}

impl fmt::Debug for Gauge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gauge(…)")
    }
}

/// What only grows, and is read when asked for.
#[derive(Clone, Debug)]
pub struct Read {
    meter: Meter,
    row: Row,
}

impl Read {
    /// Has it read from now on; once is enough.
    pub fn from(&self, read: impl Fn() -> Vec<(Vec<Label>, f64)> + Send + Sync + 'static) {
        let _observed = self
            .meter
            .f64_observable_counter(self.row.name)
            .with_unit(self.row.unit)
            .with_description(self.row.help)
            .with_callback(move |counter: &dyn AsyncInstrument<f64>| {
                for (labels, value) in read() {
                    counter.observe(value, &labels);
                }
            })
            .build();
    }
}

/// What a counter of ours has reached, for [`Read`].
pub fn reached(counter: &AtomicU64) -> f64 {
    let count = counter.load(Ordering::Relaxed);
    // whatever comes to more than 2^32 has been running long enough
    u32::try_from(count).map_or(f64::from(u32::MAX), f64::from)
}

/// A label.
pub fn label(name: &'static str, value: impl Into<opentelemetry::Value>) -> Label {
    Label::new(name, value)
}
