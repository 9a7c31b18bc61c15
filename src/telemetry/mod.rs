//! What is told of what happens: log lines, metrics, traces.
//!
//! One meter provider feeds `/metrics` and, where `telemetry.otlp_endpoint` is set, OTLP; traces and log lines go there
//! as well. A [`Telemetry`] belongs to one service: several in one process count apart. Only log lines are the whole
//! process's.
//!
//! Nothing here may hold up a request, and nothing secret may be told.

pub mod context;
pub(crate) mod log;
pub mod metrics;
mod otlp;
pub mod panics;
mod process;
pub mod recent;
pub mod span;

use std::{borrow::Cow, sync::Arc};

use opentelemetry::{KeyValue, metrics::MeterProvider as _, trace::TracerProvider as _};
use opentelemetry_otlp::ExporterBuildError;
use opentelemetry_sdk::{Resource, metrics::SdkMeterProvider};
use prometheus::{Registry, TextEncoder};

use self::otlp::Otlp;
pub use self::{
    log::{Format, start},
    metrics::{Instruments, Metrics, label},
    otlp::Endpoint,
    recent::Recent,
    span::{Span, Tracer},
};

/// The name of the service, and of its instrumentation.
const NAME: &str = "alipayplus-cancel";
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What is told, and where to.
#[derive(Clone, Debug)]
pub struct Settings<'a> {
    /// How log lines look.
    pub format: Format,
    /// Which are told.
    pub directives: &'a str,
    /// The collector; absent: only `/metrics` and standard error.
    pub endpoint: Option<Endpoint>,
    /// Which share of the traces that begin here is recorded.
    pub sample_ratio: f64,
}

/// Telemetry could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("telemetry.otlp_endpoint cannot be used")]
pub struct Error(#[source] ExporterBuildError);

/// The telemetry of one service; clones share it.
#[derive(Clone, Debug)]
pub struct Telemetry {
    /// The instruments.
    pub metrics: Metrics,
    /// Makes spans.
    pub tracer: Tracer,
    /// The last hour, for people.
    pub recent: Recent,
    registry: Registry,
    meters: SdkMeterProvider,
    otlp: Option<Arc<Otlp>>,
}

impl Telemetry {
    /// Starts it, and the process's log lines.
    pub fn start(settings: &Settings<'_>) -> Result<Self, Error> {
        let resource = resource();
        let opened = settings
            .endpoint
            .as_ref()
            .map(|endpoint| Otlp::open(endpoint, &resource, settings.sample_ratio));
        let (otlp, reader) = opened.transpose().map_err(Error)?.unzip();
        log::start_exported(
            settings.format,
            settings.directives,
            otlp.as_ref().map(|otlp| &otlp.logs),
        );
        Ok(Self::assemble(resource, otlp, reader, settings.sample_ratio))
    }

    /// Metrics alone, told to nobody but `/metrics`.
    pub fn local() -> Self {
        Self::assemble(resource(), None, None, 1.0)
    }

    fn assemble(
        resource: Resource,
        otlp: Option<Otlp>,
        reader: Option<otlp::MetricsReader>,
        ratio: f64,
    ) -> Self {
        let registry = Registry::new();
        let mut meters = SdkMeterProvider::builder().with_resource(resource);
        let exporter = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .scope_info_enabled(false)
            .build();
        match exporter {
            Ok(exporter) => meters = meters.with_reader(exporter),
            Err(error) => tracing::error!(%error, "there are no metrics"),
        }
        if let Some(reader) = reader {
            meters = meters.with_reader(reader);
        }
        let meters = meters.build();
        let metrics = Metrics::new(Instruments::new(&meters.meter(NAME)));
        process::observe(&metrics);
        if let Some(otlp) = &otlp {
            otlp.count(&metrics);
        }
        let tracer = Tracer::new(otlp.as_ref().map(|otlp| otlp.traces.tracer(NAME)), ratio);
        Self {
            metrics,
            tracer,
            recent: Recent::default(),
            registry,
            meters,
            otlp: otlp.map(Arc::new),
        }
    }

    /// All metrics, as Prometheus reads them.
    pub fn scrape(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_else(|error| {
            tracing::error!(%error, "the metrics could not be written");
            String::new()
        })
    }

    /// Sends what was not sent yet, for at most some seconds; blocks. What is told afterwards may be lost.
    pub fn stop(&self) {
        if let Some(otlp) = &self.otlp {
            otlp.close(&self.meters);
        }
    }
}

/// Who tells. `OTEL_RESOURCE_ATTRIBUTES` and `OTEL_SERVICE_NAME` may say it otherwise; the library reads them.
fn resource() -> Resource {
    let instance = format!("{:032x}", rand::random::<u128>());
    let attributes = [
        KeyValue::new("service.name", NAME),
        KeyValue::new("service.version", VERSION),
        KeyValue::new("service.instance.id", instance),
    ];
    let given = Resource::builder().build();
    let unset = |attribute: &KeyValue| {
        let given: Option<Cow<'_, str>> =
            given.get_ref(&attribute.key).map(opentelemetry::Value::as_str);
        // the library's own word for "nobody said"
        given.is_none_or(|name| name.starts_with("unknown_service"))
    };
    Resource::builder().with_attributes(attributes.into_iter().filter(unset)).build()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_metric_has_the_name_that_its_row_says() {
        let telemetry = Telemetry::local();
        let metrics = &telemetry.metrics;
        metrics.commits.add(1, &[]);
        metrics.in_flight.add(1, &[label("front", "bridge")]);
        metrics.commit_duration.record(Duration::from_millis(3), &[label("result", "ok")]);
        metrics.batch_size.record(3, &[]);
        metrics.outstanding_oldest.tell(vec![(vec![label("kind", "unresolved")], 7)]);
        let text = telemetry.scrape();
        for line in [
            "alipayplus_cancel_commits_total 1",
            "alipayplus_cancel_in_flight{front=\"bridge\"} 1",
            "alipayplus_cancel_commit_duration_seconds_bucket{result=\"ok\",le=\"0.0025\"} 0",
            "alipayplus_cancel_commit_duration_seconds_bucket{result=\"ok\",le=\"0.005\"} 1",
            "alipayplus_cancel_batch_size_bucket{le=\"4\"} 1",
            "alipayplus_cancel_batch_size_sum 3",
            "alipayplus_cancel_outstanding_oldest_seconds{kind=\"unresolved\"} 7",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in:\n{text}");
        }
        for row in metrics::TABLE {
            let told = text.lines().filter(|line| line.starts_with("# TYPE "));
            let known = told.filter_map(|line| line.split(' ').nth(2)).collect::<Vec<_>>();
            if row.name.starts_with("process.") {
                assert!(known.contains(&row.prometheus().as_str()), "{row:?} in {known:?}");
            }
        }
    }

    #[test]
    fn a_gauge_forgets_what_is_not_told_any_more() {
        let telemetry = Telemetry::local();
        let lag = &telemetry.metrics.consumer_lag;
        let of = |name: &'static str| (vec![label("consumer", name)], 5);
        lag.tell(vec![of("a"), of("b")]);
        assert!(telemetry.scrape().contains("consumer_lag_events{consumer=\"b\"} 5"));
        lag.tell(vec![of("a")]);
        let text = telemetry.scrape();
        assert!(text.contains("consumer_lag_events{consumer=\"a\"} 5"), "{text}");
        assert!(!text.contains("consumer=\"b\""), "{text}");
    }

    #[test]
    fn services_in_one_process_count_apart() {
        let (here, there) = (Telemetry::local(), Telemetry::local());
        here.metrics.commits.add(1, &[]);
        assert!(here.scrape().contains("commits_total 1"));
        assert!(!there.scrape().contains("commits_total 1"));
    }
}
