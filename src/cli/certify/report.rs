//! What came of a run, and the forms it is written in. Nothing here has a private key, so nothing can be written of one.

pub(super) mod html;
pub(super) mod json;
pub(super) mod junit;
pub(super) mod text;

use std::time::Duration;

use super::{super::target::Target, checks::CHAPTERS, wallet::Exchange};

/// How a check ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Passed,
    /// Why.
    Failed(String),
    /// What it needs.
    Skipped(String),
    /// Which bound of the run left it out: so nobody knows.
    CutShort(&'static str),
}

impl Outcome {
    pub(super) const fn word(&self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed(_) => "failed",
            Self::Skipped(_) | Self::CutShort(_) => "skipped",
        }
    }

    pub(super) const fn is_passed(&self) -> bool {
        matches!(self, Self::Passed)
    }

    pub(super) const fn is_failed(&self) -> bool {
        matches!(self, Self::Failed(_))
    }

    pub(super) const fn is_skipped(&self) -> bool {
        matches!(self, Self::Skipped(_) | Self::CutShort(_))
    }

    /// Why it failed, or what it needs.
    pub(super) fn why(&self) -> Option<&str> {
        match self {
            Self::Passed => None,
            Self::Failed(why) | Self::Skipped(why) => Some(why),
            Self::CutShort(why) => Some(why),
        }
    }
}

/// A check that was run.
#[derive(Clone, Debug)]
pub(super) struct Tried {
    pub(super) id: String,
    pub(super) chapter: &'static str,
    pub(super) title: String,
    pub(super) rule: &'static str,
    pub(super) source: &'static str,
    pub(super) outcome: Outcome,
    pub(super) took: Duration,
    pub(super) exchanges: Vec<Exchange>,
}

/// All of them.
#[derive(Clone, Debug)]
pub(super) struct Report {
    pub(super) version: &'static str,
    pub(super) url: String,
    pub(super) client_id: String,
    pub(super) psp: String,
    pub(super) acquirer: String,
    /// Of the keys that were used: SHA-256 of their public parts.
    pub(super) alipayplus_key: String,
    pub(super) wallet_key: String,
    pub(super) begun: jiff::Timestamp,
    pub(super) took: Duration,
    pub(super) requests: u64,
    pub(super) tried: Vec<Tried>,
}

impl Report {
    pub(super) fn of(target: &Target) -> Self {
        Self {
            version: env!("ALIPAYPLUS_CANCEL_VERSION"),
            url: target.url.to_string(),
            client_id: target.client_id.clone(),
            psp: target.psp.clone(),
            acquirer: target.acquirer.clone(),
            alipayplus_key: target.signer.key.public().fingerprint().to_string(),
            wallet_key: target.peer_key.fingerprint().to_string(),
            begun: jiff::Timestamp::now(),
            took: Duration::ZERO,
            requests: 0,
            tried: Vec::new(),
        }
    }

    pub(super) fn count(&self, is: impl Fn(&Outcome) -> bool) -> usize {
        self.tried.iter().filter(|tried| is(&tried.outcome)).count()
    }

    /// Chapters that were tried, with their checks.
    pub(super) fn chapters(&self) -> Vec<(&'static str, &'static str, Vec<&Tried>)> {
        let of = |id| self.tried.iter().filter(|tried| tried.chapter == id).collect::<Vec<_>>();
        let chapters = CHAPTERS.iter().map(|chapter| (chapter.id, chapter.title, of(chapter.id)));
        chapters.filter(|(_, _, tried)| !tried.is_empty()).collect()
    }

    /// When it began, to the second.
    pub(super) fn begun_text(&self) -> String {
        self.begun.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
    }

    /// Whether a bound of the run left checks out.
    pub(super) fn is_cut_short(&self) -> bool {
        self.count(|outcome| matches!(outcome, Outcome::CutShort(_))) > 0
    }

    /// In a sentence.
    pub(super) fn verdict(&self) -> String {
        let (failed, skipped) = (self.count(Outcome::is_failed), self.count(Outcome::is_skipped));
        let skipped = if skipped > 0 { format!(", {skipped} skipped") } else { String::new() };
        let passed = self.count(Outcome::is_passed);
        if failed > 0 {
            return format!("{failed} of {} checks failed{skipped}", passed + failed);
        }
        if self.is_cut_short() {
            return format!(
                "incomplete: {passed} checks passed{skipped}, as --time-limit or --max-requests were reached"
            );
        }
        if passed == 0 {
            return format!("nothing was checked{skipped}");
        }
        format!("all {passed} checks passed{skipped}")
    }
}
