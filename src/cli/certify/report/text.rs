//! The report as lines, while it is made.

use super::{super::super::target::seconds, Outcome, Report, Tried};

fn coloured(text: &str, code: &str, colours: bool) -> String {
    if colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// A chapter begins.
pub(in super::super) fn heading(title: &str, colours: bool) -> String {
    format!("\n{}\n", coloured(title, "1", colours))
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("        {line}\n")).collect::<Vec<_>>().concat()
}

/// What came of a check; with what proves it, if it failed or if everything is to be shown.
pub(in super::super) fn line(tried: &Tried, verbose: bool, colours: bool) -> String {
    let word = match &tried.outcome {
        Outcome::Passed => coloured("pass", "32", colours),
        Outcome::Failed(_) => coloured("FAIL", "1;31", colours),
        Outcome::Skipped(_) | Outcome::CutShort(_) => coloured("skip", "33", colours),
    };
    let mut text = format!("  {word}  {:<34} {}\n", tried.id, tried.title);
    match &tried.outcome {
        Outcome::Passed => {}
        Outcome::Failed(why) => {
            text.extend([format!("        {}\n", coloured(why, "31", colours))]);
            text.extend([format!("        rule: {} ({})\n", tried.rule, tried.source)]);
        }
        Outcome::Skipped(_) | Outcome::CutShort(_) => {
            let why = tried.outcome.why().unwrap_or_default();
            text.extend([format!("        skipped: {why}\n")]);
        }
    }
    if !verbose && !tried.outcome.is_failed() {
        return text;
    }
    // without all of them, the last is the one that proves it
    let from = if verbose { 0 } else { tried.exchanges.len().saturating_sub(1) };
    for exchange in &tried.exchanges[from..] {
        text.extend([format!("\n{}\n", indented(&exchange.request))]);
        text.push_str(&indented(&format!("──── answered after {}", seconds(exchange.took))));
        text.extend([format!("{}\n", indented(&exchange.answer))]);
    }
    text
}

/// The end of it.
pub(in super::super) fn summary(report: &Report, colours: bool) -> String {
    let code = match report.count(Outcome::is_failed) {
        1.. => "1;31",
        0 if report.is_cut_short() => "1;33",
        0 => "1;32",
    };
    let mut text = format!(
        "\n{}: {} requests to {} in {}\n",
        coloured(&report.verdict(), code, colours),
        report.requests,
        report.url,
        seconds(report.took)
    );
    for tried in report.tried.iter().filter(|tried| tried.outcome.is_failed()) {
        text.extend([format!("  {}  {}\n", tried.id, tried.outcome.why().unwrap_or_default())]);
    }
    text
}
