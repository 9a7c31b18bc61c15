//! What is wrong with the settings, said so that the operator can put it right.

use std::fmt;

use super::tree::{Origin, Way, one_line};

/// The settings cannot be used. Printed, it is one message: every problem on a line of its own, with the file and line
/// (or variable, or flag), the setting's name, what was expected and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// At least one.
    problems: Vec<Problem>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    origin: Origin,
    setting: String,
    text: String,
}

impl Problem {
    pub(super) fn new(origin: &Origin, setting: &Way, text: impl Into<String>) -> Self {
        Self { origin: origin.clone(), setting: setting.to_string(), text: text.into() }
    }

    /// Where it was set; [`Origin::Default`] if nowhere.
    pub const fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The setting's name, as `clients.0.rate.burst`; empty if it is about no single one.
    pub fn setting(&self) -> &str {
        &self.setting
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::Default => {}
            Origin::Flag => write!(f, "command line: ")?,
            origin @ (Origin::File { .. } | Origin::Environment { .. }) => write!(f, "{origin}: ")?,
        }
        if !self.setting.is_empty() {
            write!(f, "{}: ", self.setting)?;
        }
        f.write_str(&one_line(&self.text))
    }
}

impl ConfigError {
    pub(super) fn new(problems: Vec<Problem>) -> Self {
        Self { problems }
    }

    /// Every problem, in the order of the settings.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [only] = self.problems.as_slice() {
            return write!(f, "{only}");
        }
        write!(f, "the settings have {} problems:", self.problems.len())?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for ConfigError {}
