//! Log lines: one JSON object a line for machines, or text for people, on standard error; by OTLP too where it is set.

use std::io::{self, IsTerminal as _};

use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_sdk::logs::SdkLoggerProvider;
use tracing::Metadata;
use tracing_subscriber::{
    EnvFilter, Layer as _, filter::filter_fn, fmt, layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// Starts logging for the whole process, at a level or by directives such as `info,alipayplus_cancel::store=debug`.
///
/// A second start changes nothing: a test may run several services in one process.
pub fn start(format: Format, directives: &str) {
    start_exported(format, directives, None);
}

pub(super) fn start_exported(
    format: Format,
    directives: &str,
    exported: Option<&SdkLoggerProvider>,
) {
    let filter = EnvFilter::try_new(directives).unwrap_or_else(|_| EnvFilter::new("info"));
    // at `debug` the database's client tells every parameter of every statement
    let filter = match "tokio_postgres=info".parse() {
        Ok(directive) => filter.add_directive(directive),
        Err(_) => filter,
    };
    let exported = exported
        .map(|provider| OpenTelemetryTracingBridge::new(provider).with_filter(filter_fn(is_ours)));
    let registry = tracing_subscriber::registry().with(filter).with(exported);
    let started = match format {
        Format::Json => {
            let lines = fmt::layer()
                .json()
                .flatten_event(true)
                .with_current_span(false)
                .with_span_list(false);
            registry.with(lines.with_writer(io::stderr)).try_init()
        }
        Format::Text => {
            let lines = fmt::layer();
            // what is redirected has no colours; on a terminal NO_COLOR decides
            let lines = if io::stderr().is_terminal() { lines } else { lines.with_ansi(false) };
            registry.with(lines.with_writer(io::stderr).with_target(false)).try_init()
        }
    };
    if started.is_err() {
        tracing::debug!("logging was started before");
    }
}

/// What goes to the collector: lines of ours. Those of h2, hyper, tonic and the exporter itself come of sending, so each
/// would make more of them.
fn is_ours(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    target == "alipayplus_cancel" || target.starts_with("alipayplus_cancel::")
}
