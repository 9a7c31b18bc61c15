//! The day as people see it: a view that is drawn anew on a terminal, a line now and then elsewhere.

use std::{
    io::{self, Write as _},
    time::{Duration, Instant},
};

use super::{super::target::seconds, tally::Tally};

/// Between two views on a terminal.
const LIVE: Duration = Duration::from_millis(500);

/// Where it is shown.
pub(super) struct View {
    live: bool,
    every: Duration,
    told: Instant,
    /// Sent, at the last view.
    before: u64,
    /// Lines of the last view, on a terminal.
    lines: usize,
}

impl View {
    pub(super) fn new(live: bool, every: Duration) -> Self {
        let every = if live { LIVE } else { every };
        Self { live, every, told: Instant::now(), before: 0, lines: 0 }
    }

    /// Whether it is time for another one.
    pub(super) fn is_due(&self) -> bool {
        self.told.elapsed() >= self.every
    }

    pub(super) fn tell(&mut self, clock: &str, tally: &Tally, waiting: usize, cut: bool) {
        let ms = u64::try_from(self.told.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
        let tenths = (tally.sent - self.before) * 10_000 / ms;
        (self.told, self.before) = (Instant::now(), tally.sent);
        let text = if self.live {
            let view = drawn(clock, tenths, tally, waiting, cut);
            let up = if self.lines > 0 { format!("\x1b[{}A", self.lines) } else { String::new() };
            self.lines = view.lines().count();
            let drawn =
                view.lines().map(|line| format!("\x1b[2K{line}\n")).collect::<Vec<_>>().concat();
            format!("{up}{drawn}")
        } else {
            line(clock, tenths, tally, waiting, cut)
        };
        // nobody may be reading
        drop(io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()));
    }

    /// The last view stays.
    pub(super) fn end(&mut self) {
        self.lines = 0;
    }
}

fn tenths(tenths: u64) -> String {
    format!("{}.{}", tenths / 10, tenths % 10)
}

fn times(tally: &Tally) -> String {
    let at = |of_thousand| seconds(tally.times.quantile(of_thousand));
    format!("p50 {}, p95 {}, p99 {}", at(500), at(950), at(990))
}

fn line(clock: &str, rate: u64, tally: &Tally, waiting: usize, cut: bool) -> String {
    format!(
        "{clock}  {}/s  S {} F {} U {}  no answer {}  {}  retries {}  duplicates {}  waiting {waiting}{}\n",
        tenths(rate),
        tally.status("S"),
        tally.status("F"),
        tally.status("U"),
        tally.nothing,
        times(tally),
        tally.retries,
        tally.duplicates,
        if cut { "  OUTAGE" } else { "" },
    )
}

fn drawn(clock: &str, rate: u64, tally: &Tally, waiting: usize, cut: bool) -> String {
    let width = usize::try_from(rate / 10).unwrap_or(usize::MAX).min(60);
    format!(
        "  {clock}   {:>7}/s  {}{}\n  answers   S {:<8} F {:<8} U {:<8} none {}\n  time      {}\n  again     \
         retries {:<6} duplicates {:<6} waiting {waiting}\n",
        tenths(rate),
        "▇".repeat(width),
        if cut { " outage: nothing gets through" } else { "" },
        tally.status("S"),
        tally.status("F"),
        tally.status("U"),
        tally.nothing,
        times(tally),
        tally.retries,
        tally.duplicates,
    )
}

/// The end of it.
pub(super) fn summary(tally: &Tally, url: &str) -> String {
    let mut text = format!(
        "\n{} requests to {url} in {}: {} new, {} duplicates, {} retries\n",
        tally.sent,
        seconds(tally.took),
        tally.first,
        tally.duplicates,
        tally.retries
    );
    for (code, count) in &tally.codes {
        text.extend([format!("  {count:>8}  {code}\n")]);
    }
    if tally.held > 0 {
        text.extend([format!(
            "  {:>8}  of them held back by an outage, and sent in a burst after it\n",
            tally.held
        )]);
    }
    if tally.nothing > 0 {
        text.extend([format!("  {:>8}  without an answer\n", tally.nothing)]);
    }
    text.extend([format!("  {}\n", times(tally))]);
    for (what, count) in [
        ("requests that got two different results", tally.contradictions),
        ("requests that were given up without S or F", tally.undecided),
        ("requests that could not be sent in time; give more --callers", tally.unsent),
        ("payments or tokens that the wallet's own side would not record", tally.unrecorded),
    ] {
        if count > 0 {
            text.extend([format!("FAILED: {count} {what}\n")]);
        }
    }
    for (what, count) in &tally.bad {
        text.extend([format!("FAILED: {count} {what}\n")]);
    }
    if tally.is_good() {
        text.push_str("every request got S or F, always the same, signed\n");
    }
    text
}
