//! The engine's counters, or those of the way to a core elsewhere, as Prometheus reads them.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::{domain::Alarm, engine::Counters, grpc::channel::Channel};

/// The engine's counters as Prometheus reads them.
pub(super) fn scrape(counters: &Counters) -> String {
    let mut text = String::new();
    let mut counter = |name: &str, help: &str, value: u64| {
        // writing to a text cannot fail
        let _written =
            write!(text, "# HELP {name} {help}\n# TYPE {name} counter\n{name} {value}\n");
    };
    let (commits, commands) =
        (counters.commits.load(Ordering::Relaxed), counters.commands.load(Ordering::Relaxed));
    counter("alipayplus_cancel_commits_total", "Transactions committed.", commits);
    counter(
        "alipayplus_cancel_commit_failures_total",
        "Transactions that failed.",
        counters.failures.load(Ordering::Relaxed),
    );
    let name = "alipayplus_cancel_alarms_total";
    let help = "Commands that no caller should have sent, by what was wrong.";
    let _written = write!(text, "# HELP {name} {help}\n# TYPE {name} counter\n");
    for (alarm, count) in Alarm::ALL.iter().zip(&counters.alarms) {
        let count = count.load(Ordering::Relaxed);
        let _written = writeln!(text, "{name}{{alarm=\"{}\"}} {count}", alarm.name());
    }
    let name = "alipayplus_cancel_batch_size";
    let _written =
        write!(text, "# HELP {name} Commands in one transaction.\n# TYPE {name} histogram\n");
    let mut sum = 0;
    for (log, slot) in counters.batch_sizes.iter().enumerate() {
        sum += slot.load(Ordering::Relaxed);
        let most = (2u64 << log) - 1;
        let _written = writeln!(text, "{name}_bucket{{le=\"{most}\"}} {sum}");
    }
    let _written = writeln!(
        text,
        "{name}_bucket{{le=\"+Inf\"}} {commits}\n{name}_sum {commands}\n{name}_count {commits}"
    );
    text
}

/// The way to the cores as Prometheus reads it.
pub(super) fn scrape_channel(channel: &Channel) -> String {
    let mut text = String::new();
    let mut metric = |name: &str, kind: &str, help: &str, values: &[(&str, String)]| {
        let name = format!("alipayplus_cancel_{name}");
        // writing to a text cannot fail
        let _written = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        for (labels, value) in values {
            let _written = writeln!(text, "{name}{labels} {value}");
        }
    };
    let (healthy, known) = channel.cores();
    metric(
        "cores",
        "gauge",
        "Cores that this bridge knows, and those of them that are healthy.",
        &[("{state=\"known\"}", known.to_string()), ("{state=\"healthy\"}", healthy.to_string())],
    );
    let counters = channel.counters();
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed).to_string();
    metric(
        "core_retries_total",
        "counter",
        "Calls of which another core was asked: one had failed, or took long.",
        &[
            ("{reason=\"failed\"}", count(&counters.retries)),
            ("{reason=\"slow\"}", count(&counters.hedges)),
        ],
    );
    metric(
        "core_unreachable_total",
        "counter",
        "Calls for which no core was healthy.",
        &[("", count(&counters.no_core))],
    );
    text
}
