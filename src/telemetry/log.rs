//! Log lines: one JSON object a line for machines, or text for people, on standard error; by OTLP too where it is set.

use std::{
    cell::RefCell,
    io::{self, IsTerminal as _},
};

use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_sdk::logs::SdkLoggerProvider;
use tracing::Metadata;
use tracing_subscriber::{
    EnvFilter, Layer as _, filter::filter_fn, fmt, layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

thread_local! {
    /// Lines of this thread that are not written yet, while there is a [`Together`].
    static HELD: RefCell<Option<Held>> = const { RefCell::new(None) };
}

/// As long as it lives, lines of this thread are written together: a write for each costs more than to make it. It is to
/// be dropped soon, and never held across an await; a panic drops it too.
#[must_use]
pub struct Together(bool);

impl Together {
    /// From now on.
    pub fn begin() -> Self {
        // one inside another ends nothing
        let is_first = HELD.with_borrow_mut(|held| {
            let is_first = held.is_none();
            held.get_or_insert_default();
            is_first
        });
        Self(is_first)
    }
}

impl Drop for Together {
    fn drop(&mut self) {
        if self.0
            && let Some(mut held) = HELD.with_borrow_mut(Option::take)
        {
            held.write(&mut io::stderr());
        }
    }
}

/// Most bytes of lines that are held.
const HELD_BYTES_MAX: usize = 64 * 1024;

/// Lines that are to be written together.
#[derive(Default)]
struct Held(Vec<u8>);

impl Held {
    fn add(&mut self, line: &[u8], out: &mut impl io::Write) {
        if self.0.len().saturating_add(line.len()) > HELD_BYTES_MAX {
            self.write(out);
        }
        self.0.extend_from_slice(line);
    }

    fn write(&mut self, out: &mut impl io::Write) {
        // most batches log nothing below `info`; whoever has standard error must not be waited for in vain
        if self.0.is_empty() {
            return;
        }
        // where lines go to is gone: there is nobody to tell
        drop(out.write_all(&self.0));
        self.0.clear();
    }
}

/// Standard error, line by line, or [`Together`].
struct Lines;

impl io::Write for Lines {
    /// A whole line at once, as the formatter does.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // a thread that ends has nowhere to hold them
        let is_held = HELD.try_with(|held| {
            let mut held = held.borrow_mut();
            held.as_mut().map(|held| held.add(line, &mut io::stderr())).is_some()
        });
        if is_held.unwrap_or(false) { Ok(line.len()) } else { io::stderr().write(line) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

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
            registry.with(lines.with_writer(|| Lines)).try_init()
        }
        Format::Text => {
            let lines = fmt::layer();
            // what is redirected has no colours; on a terminal NO_COLOR decides
            let lines = if io::stderr().is_terminal() { lines } else { lines.with_ansi(false) };
            registry.with(lines.with_writer(|| Lines).with_target(false)).try_init()
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What was written, write by write.
    #[derive(Default)]
    struct Writes(Vec<Vec<u8>>);

    impl io::Write for Writes {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.push(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_are_held_come_out_together_whole_and_in_order() {
        let (mut held, mut out) = (Held::default(), Writes::default());
        let lines: Vec<String> = (0..1_000).map(|nth| format!("{nth:0200}\n")).collect();
        for line in &lines {
            held.add(line.as_bytes(), &mut out);
        }
        held.write(&mut out);
        assert_eq!(out.0.concat(), lines.concat().as_bytes());
        assert_eq!(out.0.len(), 4, "so few writes: 201,000 bytes by 64 KiB");
        assert!(out.0.iter().all(|write| write.ends_with(b"\n") && write.len() <= HELD_BYTES_MAX));
    }

    #[test]
    fn only_the_outermost_ends_it() {
        let is_held = || HELD.with_borrow(Option::is_some);
        let outer = Together::begin();
        drop(Together::begin());
        assert!(is_held());
        drop(outer);
        assert!(!is_held());
        let panicked = std::panic::catch_unwind(|| {
            let _together = Together::begin();
            std::panic::resume_unwind(Box::new(()));
        });
        assert!(panicked.is_err() && !is_held());
    }
}
