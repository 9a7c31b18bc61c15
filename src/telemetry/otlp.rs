//! Export over OTLP, beside everything else: on threads and a runtime of its own, from bounded queues.
//!
//! A collector that is down, slow or hangs costs requests nothing. What no longer fits the queue is dropped and counted;
//! a batch that cannot be sent in time is lost and counted; the log says once that it is so, and once that it is over.

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use opentelemetry::{Context, InstrumentationScope, logs::Severity};
use opentelemetry_otlp::{
    ExporterBuildError, LogExporter, MetricExporter, SpanExporter, WithExportConfig as _,
    WithTonicConfig as _,
    tonic_types::transport::{Certificate, ClientTlsConfig},
};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    logs::{self, BatchLogProcessor, LogBatch, LogProcessor, SdkLogRecord, SdkLoggerProvider},
    metrics::{
        PeriodicReader, SdkMeterProvider, Temporality, data::ResourceMetrics,
        exporter::PushMetricExporter,
    },
    trace::{self, BatchSpanProcessor, Sampler, SdkTracerProvider, Span, SpanData, SpanProcessor},
};
use tokio::runtime::{Builder, Runtime};

use super::metrics::{Metrics, label};

/// Where everything goes.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// `http://host:4317` or `https://host:4317`.
    pub url: String,
    /// The authorities of the collector's certificate, PEM; absent: the system's.
    pub ca: Option<Vec<u8>>,
}

/// How long one batch may take.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// Spans, and log records, that wait at most; some kilobytes each.
const QUEUE_MAX: usize = 8_192;
/// How many go at once.
const BATCH_MAX: usize = 512;
/// How long the end waits for what was not sent yet.
const FLUSH_MAX: Duration = Duration::from_millis(2_500);

/// What is exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Signal {
    Traces,
    Metrics,
    Logs,
}

impl Signal {
    const ALL: [Self; 3] = [Self::Traces, Self::Metrics, Self::Logs];

    const fn name(self) -> &'static str {
        match self {
            Self::Traces => "traces",
            Self::Metrics => "metrics",
            Self::Logs => "logs",
        }
    }
}

/// How the export of a signal goes.
#[derive(Debug)]
struct Road {
    signal: Signal,
    /// What waits, or is on its way to the queue.
    queued: AtomicUsize,
    blocked: AtomicBool,
    /// Set once there is a meter; what is counted before is not.
    metrics: Arc<OnceLock<Metrics>>,
}

impl Road {
    /// Whether one more may wait; if not it is counted as dropped.
    fn admit(&self) -> bool {
        let room = |queued| (queued < QUEUE_MAX).then(|| queued + 1);
        let admitted = self.queued.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_ok();
        if let Some(metrics) = self.metrics.get().filter(|_| !admitted) {
            metrics.dropped.add(1, &[label("signal", self.signal.name())]);
        }
        admitted
    }

    fn left(&self, count: usize) {
        let less = |queued: usize| Some(queued.saturating_sub(count));
        // it always has a next value
        let _before = self.queued.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    fn went(&self, result: OTelSdkResult) -> OTelSdkResult {
        let outcome = if result.is_ok() { "ok" } else { "failed" };
        if let Some(metrics) = self.metrics.get() {
            let labels = [label("result", outcome), label("signal", self.signal.name())];
            metrics.exported.add(1, &labels);
        }
        let signal = self.signal.name();
        match &result {
            Ok(()) if self.blocked.swap(false, Ordering::Relaxed) => {
                tracing::info!(signal, "telemetry is exported again");
            }
            Err(error) if !self.blocked.swap(true, Ordering::Relaxed) => {
                tracing::warn!(
                    signal,
                    %error,
                    "telemetry cannot be exported, and is dropped until it can; requests do not wait for it"
                );
            }
            Ok(()) | Err(_) => {}
        }
        result
    }
}

/// An exporter whose results are watched.
#[derive(Debug)]
pub(super) struct Watched<E> {
    exporter: E,
    road: Arc<Road>,
}

impl trace::SpanExporter for Watched<SpanExporter> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.road.left(batch.len());
        self.road.went(self.exporter.export(batch).await)
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

impl logs::LogExporter for Watched<LogExporter> {
    async fn export(&self, batch: LogBatch<'_>) -> OTelSdkResult {
        self.road.left(batch.iter().count());
        self.road.went(self.exporter.export(batch).await)
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

impl PushMetricExporter for Watched<MetricExporter> {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        self.road.went(self.exporter.export(metrics).await)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn temporality(&self) -> Temporality {
        self.exporter.temporality()
    }
}

/// A processor whose queue is bounded here, because the library's own says only at the end how much it dropped.
#[derive(Debug)]
struct Bounded<P> {
    processor: P,
    road: Arc<Road>,
}

impl SpanProcessor for Bounded<BatchSpanProcessor> {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.processor.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if self.road.admit() {
            self.processor.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.processor.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.processor.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.processor.set_resource(resource);
    }
}

impl LogProcessor for Bounded<BatchLogProcessor> {
    fn emit(&self, record: &mut SdkLogRecord, scope: &InstrumentationScope) {
        if self.road.admit() {
            self.processor.emit(record, scope);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.processor.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.processor.shutdown_with_timeout(timeout)
    }

    fn event_enabled(&self, level: Severity, target: &str, name: Option<&str>) -> bool {
        self.processor.event_enabled(level, target, name)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.processor.set_resource(resource);
    }
}

/// The roads to the collector.
pub(super) struct Otlp {
    pub(super) traces: SdkTracerProvider,
    pub(super) logs: SdkLoggerProvider,
    metrics: Arc<OnceLock<Metrics>>,
    /// Where connections are driven: not where requests are.
    runtime: Option<Runtime>,
}

/// What sends metrics.
pub(super) type MetricsReader = PeriodicReader<Watched<MetricExporter>>;

impl Otlp {
    /// Opens them; connects when there is something to send.
    pub(super) fn open(
        endpoint: &Endpoint,
        resource: &Resource,
        ratio: f64,
    ) -> Result<(Self, MetricsReader), ExporterBuildError> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("telemetry")
            .enable_all()
            .build()
            .ok();
        let _entered = runtime.as_ref().map(Runtime::enter);
        let metrics = Arc::new(OnceLock::new());
        let [for_traces, for_metrics, for_logs] = Signal::ALL.map(|signal| {
            let (queued, blocked) = (AtomicUsize::new(0), AtomicBool::new(false));
            Arc::new(Road { signal, queued, blocked, metrics: Arc::clone(&metrics) })
        });
        macro_rules! exporter {
            ($exporter:ident) => {{
                let builder = $exporter::builder()
                    .with_tonic()
                    .with_endpoint(&endpoint.url)
                    .with_timeout(EXPORT_TIMEOUT);
                match endpoint.tls() {
                    Some(tls) => builder.with_tls_config(tls).build()?,
                    None => builder.build()?,
                }
            }};
        }

        let exporter = Watched { exporter: exporter!(SpanExporter), road: Arc::clone(&for_traces) };
        let config = trace::BatchConfigBuilder::default()
            // more than is ever let in, so that nothing is dropped uncounted
            .with_max_queue_size(QUEUE_MAX + BATCH_MAX)
            .with_max_export_batch_size(BATCH_MAX)
            .build();
        let processor = BatchSpanProcessor::builder(exporter).with_batch_config(config).build();
        let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(ratio)));
        let traces = SdkTracerProvider::builder()
            .with_resource(resource.clone())
            .with_sampler(sampler)
            .with_span_processor(Bounded { processor, road: for_traces })
            .build();

        let exporter = Watched { exporter: exporter!(LogExporter), road: Arc::clone(&for_logs) };
        let config = logs::BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE_MAX + BATCH_MAX)
            .with_max_export_batch_size(BATCH_MAX)
            .build();
        let processor = BatchLogProcessor::builder(exporter).with_batch_config(config).build();
        let logs = SdkLoggerProvider::builder()
            .with_resource(resource.clone())
            .with_log_processor(Bounded { processor, road: for_logs })
            .build();

        let exporter = Watched { exporter: exporter!(MetricExporter), road: for_metrics };
        let reader = PeriodicReader::builder(exporter).build();
        Ok((Self { traces, logs, metrics, runtime }, reader))
    }

    /// From now on what happens on the roads is counted.
    pub(super) fn count(&self, metrics: &Metrics) {
        for signal in Signal::ALL {
            for result in ["ok", "failed"] {
                let labels = [label("result", result), label("signal", signal.name())];
                metrics.exported.add(0, &labels);
            }
            if signal != Signal::Metrics {
                metrics.dropped.add(0, &[label("signal", signal.name())]);
            }
        }
        // the first one counts, and there is one
        drop(self.metrics.set(metrics.clone()));
    }

    /// Sends what waits, for a while; blocks.
    pub(super) fn close(&self, meters: &SdkMeterProvider) {
        let (done, wait) = mpsc::channel::<()>();
        let (traces, logs, meters) = (self.traces.clone(), self.logs.clone(), meters.clone());
        let flushes: [Box<dyn FnOnce() -> OTelSdkResult + Send>; 3] = [
            Box::new(move || traces.shutdown_with_timeout(FLUSH_MAX)),
            Box::new(move || logs.shutdown_with_timeout(FLUSH_MAX)),
            Box::new(move || meters.shutdown_with_timeout(FLUSH_MAX)),
        ];
        for flush in flushes {
            let done = done.clone();
            let flushing = thread::Builder::new().name("telemetry-flush".to_owned());
            let started = flushing.spawn(move || {
                let flushed = flush();
                drop(done);
                flushed
            });
            if let Err(error) = started {
                tracing::warn!(%error, "the last telemetry is not sent: no thread");
            }
        }
        drop(done);
        // nobody sends: it ends when the last flush has, and a collector that hangs is left
        if wait.recv_timeout(FLUSH_MAX) == Err(mpsc::RecvTimeoutError::Timeout) {
            tracing::warn!("the collector did not take the last telemetry in time");
        }
    }
}

impl Drop for Otlp {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // it may be dropped where blocking is not allowed
            runtime.shutdown_background();
        }
    }
}

impl Endpoint {
    fn tls(&self) -> Option<ClientTlsConfig> {
        if !self.url.starts_with("https://") {
            return None;
        }
        let config = ClientTlsConfig::new();
        Some(match &self.ca {
            Some(pem) => config.ca_certificate(Certificate::from_pem(pem)),
            None => config.with_native_roots(),
        })
    }
}

impl fmt::Debug for Otlp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Otlp(…)")
    }
}
