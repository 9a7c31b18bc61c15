//! How far a long work is, on standard error: now and then a line, none for a short one.

use std::{
    io::{self, Write as _},
    time::{Duration, Instant},
};

/// Between two lines.
const EVERY: Duration = Duration::from_secs(2);

/// Tells how far a work is.
pub(super) struct Progress {
    what: &'static str,
    begun: Instant,
    told: Instant,
}

impl Progress {
    /// Of a work that counts these.
    pub(super) fn new(what: &'static str) -> Self {
        let now = Instant::now();
        Self { what, begun: now, told: now }
    }

    /// So many are done. `part` is how much that is of the whole, in any unit, where the whole is known.
    pub(super) fn tell(&mut self, done: u64, part: Option<(u64, u64)>) {
        if self.told.elapsed() < EVERY {
            return;
        }
        self.told = Instant::now();
        // nobody may be reading
        drop(writeln!(io::stderr(), "{}", line(self.what, done, self.begun.elapsed(), part)));
    }

    /// How many a second until now.
    pub(super) fn rate(&self, done: u64) -> u64 {
        rate(done, self.begun.elapsed())
    }
}

/// The same of a work of several steps, each with counts of its own.
#[derive(Default)]
pub(super) struct Steps(Option<Progress>);

impl Steps {
    /// So many of a step are done.
    pub(super) fn tell(&mut self, what: &'static str, done: u64, part: Option<(u64, u64)>) {
        let progress = match &mut self.0 {
            Some(progress) if progress.what == what => progress,
            step => step.insert(Progress::new(what)),
        };
        progress.tell(done, part);
    }
}

fn rate(done: u64, elapsed: Duration) -> u64 {
    let ms = elapsed.as_millis().max(1);
    u64::try_from(u128::from(done) * 1_000 / ms).unwrap_or(u64::MAX)
}

fn line(what: &str, done: u64, elapsed: Duration, part: Option<(u64, u64)>) -> String {
    let mut text = format!("{done} {what}, {} a second", rate(done, elapsed));
    if let Some((passed, whole)) = part.filter(|(passed, whole)| *passed > 0 && passed <= whole) {
        let percent = u128::from(passed) * 100 / u128::from(whole);
        let left = elapsed.as_secs() * (whole - passed) / passed;
        text = format!("{text}, {percent} %, about {left} s left");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_how_many_how_fast_and_how_long_yet() {
        let elapsed = Duration::from_secs(10);
        assert_eq!(
            line("lines", 5_000, elapsed, Some((25, 100))),
            "5000 lines, 500 a second, 25 %, about 30 s left"
        );
        assert_eq!(line("lines", 5_000, elapsed, None), "5000 lines, 500 a second");
        assert_eq!(line("lines", 0, Duration::ZERO, Some((0, 9))), "0 lines, 0 a second");
    }
}
