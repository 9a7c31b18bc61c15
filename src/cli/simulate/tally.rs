//! What came of the day, counted.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Came {
    /// A code and its status, signed.
    Answer { code: String, status: String },
    /// An answer whose signature is not the wallet's, or that has none, or that says nothing.
    Bad(&'static str),
    /// None in time, or the connection ended.
    Nothing,
}

/// Ids whose results are remembered, to see whether they stay the same.
const REMEMBERED: usize = 200_000;

/// Times in buckets an eighth of their size wide.
#[derive(Clone, Debug, Default)]
pub(super) struct Times {
    buckets: BTreeMap<(u32, u64), u64>,
    count: u64,
}

impl Times {
    pub(super) fn note(&mut self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(8);
        let power = us.ilog2();
        *self.buckets.entry((power, us >> (power - 3))).or_default() += 1;
        self.count += 1;
    }

    /// What so many of a thousand do not exceed.
    pub(super) fn quantile(&self, of_thousand: u64) -> Duration {
        let mut left = (self.count * of_thousand).div_ceil(1_000);
        for ((power, top), count) in &self.buckets {
            if left <= *count {
                return Duration::from_micros((top + 1) << (power - 3));
            }
            left -= count;
        }
        Duration::ZERO
    }
}

/// All of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    /// Attempts that were sent.
    pub(super) sent: u64,
    /// Of them: requests that came for the first time.
    pub(super) first: u64,
    pub(super) duplicates: u64,
    pub(super) retries: u64,
    /// Requests that were due while the way to the wallet was cut.
    pub(super) held: u64,
    /// By status: S, F, U.
    pub(super) statuses: BTreeMap<String, u64>,
    pub(super) codes: BTreeMap<String, u64>,
    pub(super) nothing: u64,
    pub(super) bad: BTreeMap<&'static str, u64>,
    /// Requests that were given up without S or F.
    pub(super) undecided: u64,
    /// Requests that got two results.
    pub(super) contradictions: u64,
    /// Requests that the callers could not send in time.
    pub(super) unsent: u64,
    /// Payments and tokens that the wallet's own side would not record.
    pub(super) unrecorded: u64,
    pub(super) times: Times,
    pub(super) took: Duration,
    results: HashMap<u64, String>,
}

impl Tally {
    /// An attempt for the request of this number ended.
    pub(super) fn note(&mut self, number: u64, came: &Came, took: Duration) {
        self.sent += 1;
        match came {
            Came::Answer { code, status } => {
                self.times.note(took);
                *self.statuses.entry(status.clone()).or_default() += 1;
                *self.codes.entry(code.clone()).or_default() += 1;
                if status == "U" || self.results.len() >= REMEMBERED {
                    return;
                }
                let first = self.results.entry(number).or_insert_with(|| code.clone());
                self.contradictions += u64::from(first != code);
            }
            Came::Bad(why) => *self.bad.entry(why).or_default() += 1,
            Came::Nothing => self.nothing += 1,
        }
    }

    /// How many had this status.
    pub(super) fn status(&self, status: &str) -> u64 {
        self.statuses.get(status).copied().unwrap_or(0)
    }

    /// Every request got S or F, one of them, signed.
    pub(super) fn is_good(&self) -> bool {
        let wrong = [self.undecided, self.contradictions, self.unsent, self.unrecorded];
        self.sent > 0 && wrong.iter().all(|count| *count == 0) && self.bad.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(code: &str, status: &str) -> Came {
        Came::Answer { code: code.to_owned(), status: status.to_owned() }
    }

    #[test]
    fn two_results_of_one_request_are_a_contradiction_and_u_is_none() {
        let mut tally = Tally::default();
        for (number, came) in [
            (1, answer("UNKNOWN_EXCEPTION", "U")),
            (1, answer("SUCCESS", "S")),
            (1, answer("SUCCESS", "S")),
            (2, answer("PROCESS_FAIL", "F")),
        ] {
            tally.note(number, &came, Duration::from_millis(3));
        }
        assert!(tally.is_good());
        assert_eq!((tally.status("S"), tally.status("F"), tally.status("U")), (2, 1, 1));
        tally.note(2, &answer("SUCCESS", "S"), Duration::from_millis(3));
        assert_eq!(tally.contradictions, 1);
        assert!(!tally.is_good());
    }

    #[test]
    fn quantiles_are_right_to_an_eighth() {
        let mut times = Times::default();
        assert_eq!(times.quantile(500), Duration::ZERO);
        for ms in 1..=1_000 {
            times.note(Duration::from_millis(ms));
        }
        for (of_thousand, ms) in [(500, 500), (990, 990), (1_000, 1_000), (1, 1)] {
            let told = times.quantile(of_thousand).as_millis();
            assert!((ms..=ms + ms / 8 + 1).contains(&told), "{of_thousand}: {told}");
        }
    }
}
