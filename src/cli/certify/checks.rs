//! Every check, by chapter. A check is a small value; its id never changes its meaning, since reports are compared.

mod answer;
mod form;
mod http;
mod idempotency;
mod json;
mod late;
mod order;
mod parameter;
mod refuse;
mod retry;
mod rotation;
mod seal;
mod token;
mod window;

use super::wallet::{Verdict, Wallet};

/// Who says that it must be so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// Alipay+'s documentation.
    Published,
    /// What Alipay+'s official clients send or can read.
    Clients,
    /// Nobody publishes it: a wallet that does otherwise is not wrong, and this is what we hold to be safe.
    Advice,
}

impl Source {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Published => "published",
            Self::Clients => "clients",
            Self::Advice => "advice",
        }
    }
}

type Run = Box<dyn Fn(&Wallet) -> Verdict + Send + Sync>;

/// One thing that is looked at.
pub(super) struct Check {
    /// `chapter.name`
    pub(super) id: String,
    pub(super) chapter: &'static str,
    /// A sentence that is true when it passes.
    pub(super) title: String,
    /// Where the rule stands.
    pub(super) rule: &'static str,
    pub(super) source: Source,
    pub(super) run: Run,
}

/// Checks that belong together.
pub(super) struct Chapter {
    /// What ids begin with.
    pub(super) id: &'static str,
    pub(super) title: &'static str,
    checks: fn(&mut Checks),
}

/// The checks of a chapter in the making.
pub(super) struct Checks {
    chapter: &'static str,
    rule: &'static str,
    source: Source,
    made: Vec<Check>,
}

impl Checks {
    /// The checks from here on follow from that rule.
    fn rule(&mut self, source: Source, rule: &'static str) {
        (self.source, self.rule) = (source, rule);
    }

    fn add(
        &mut self,
        name: impl AsRef<str>,
        title: impl Into<String>,
        run: impl Fn(&Wallet) -> Verdict + Send + Sync + 'static,
    ) {
        self.made.push(Check {
            id: format!("{}.{}", self.chapter, name.as_ref()),
            chapter: self.chapter,
            title: title.into(),
            rule: self.rule,
            source: self.source,
            run: Box::new(run),
        });
    }
}

/// In the order of a report.
pub(super) const CHAPTERS: [Chapter; 14] = [
    Chapter {
        id: "form",
        title: "Requests in every form that Alipay+'s clients send",
        checks: form::checks,
    },
    Chapter { id: "answer", title: "The answer's form", checks: answer::checks },
    Chapter { id: "seal", title: "The answer's signature", checks: seal::checks },
    Chapter { id: "order", title: "The order of checks", checks: order::checks },
    Chapter {
        id: "refuse",
        title: "Requests that do not prove themselves",
        checks: refuse::checks,
    },
    Chapter { id: "json", title: "Signed bodies that are no JSON object", checks: json::checks },
    Chapter { id: "parameter", title: "Parameters", checks: parameter::checks },
    Chapter {
        id: "idempotency",
        title: "The same request gets the same result",
        checks: idempotency::checks,
    },
    Chapter { id: "retry", title: "Time-outs and retries", checks: retry::checks },
    Chapter { id: "rotation", title: "A change of Alipay+'s key", checks: rotation::checks },
    Chapter { id: "late", title: "Late successes and refunds", checks: late::checks },
    Chapter { id: "window", title: "The cancel window's edges", checks: window::checks },
    Chapter { id: "token", title: "Tokens that the wallet granted", checks: token::checks },
    Chapter { id: "http", title: "What is no HTTP, or two requests in one", checks: http::checks },
];

/// All of them.
pub(super) fn all() -> Vec<Check> {
    let of_chapter = |chapter: &Chapter| {
        let rule = "docs/wire.md";
        let mut checks =
            Checks { chapter: chapter.id, rule, source: Source::Advice, made: Vec::new() };
        (chapter.checks)(&mut checks);
        checks.made
    };
    CHAPTERS.iter().flat_map(of_chapter).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_check_has_an_id_of_its_own_below_its_chapter_and_a_rule_of_a_document() {
        let checks = all();
        let ids: BTreeSet<&str> = checks.iter().map(|check| check.id.as_str()).collect();
        assert_eq!(ids.len(), checks.len());
        for check in &checks {
            let name = check.id.strip_prefix(check.chapter).and_then(|rest| rest.strip_prefix('.'));
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            assert!(
                name.is_some_and(|name| !name.is_empty() && name.chars().all(plain)),
                "{}",
                check.id
            );
            assert!(check.rule.contains(" § "), "{}: {}", check.id, check.rule);
        }
        assert!(checks.len() > 200, "{}", checks.len());
    }

    #[test]
    fn a_rule_names_a_section_that_is_there() {
        let root = env!("CARGO_MANIFEST_DIR");
        for check in all() {
            let (file, section) = check.rule.split_once(" § ").expect("a section");
            // Alipay+'s own pages are not here
            let Some(file) = file.strip_prefix("docs/") else { continue };
            let text = std::fs::read_to_string(format!("{root}/docs/{file}")).expect("a document");
            let there = |line: &str| line.trim_start_matches('#').trim() == section;
            let section_is_there = text.lines().filter(|line| line.starts_with('#')).any(there);
            let bold = text.contains(&format!("**{section}"));
            assert!(section_is_there || bold, "{}: {file} has no section {section}", check.id);
        }
    }

    #[test]
    fn the_documents_table_has_each_chapter_with_the_number_of_its_checks() {
        let root = env!("CARGO_MANIFEST_DIR");
        let text = std::fs::read_to_string(format!("{root}/docs/certify.md")).expect("a document");
        let checks = all();
        for chapter in &CHAPTERS {
            let count = checks.iter().filter(|check| check.chapter == chapter.id).count();
            let begin = format!("| `{}` |", chapter.id);
            let row = text.lines().find(|line| line.starts_with(&begin)).expect("a row");
            assert!(row.ends_with(&format!("| {count} |")), "{count}: {row}");
        }
    }
}
