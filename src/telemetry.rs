//! Log lines: one JSON object a line for machines, or text for people, on standard error.

use std::io;

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

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
    let filter = EnvFilter::try_new(directives).unwrap_or_else(|_| EnvFilter::new("info"));
    // at `debug` the database's client tells every parameter of every statement
    let filter = match "tokio_postgres=info".parse() {
        Ok(directive) => filter.add_directive(directive),
        Err(_) => filter,
    };
    let registry = tracing_subscriber::registry().with(filter);
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
            registry.with(fmt::layer().with_writer(io::stderr).with_target(false)).try_init()
        }
    };
    if started.is_err() {
        tracing::debug!("logging was started before");
    }
}
