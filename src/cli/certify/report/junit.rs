//! The report as JUnit XML, which every CI reads: a suite for each chapter, a case for each check.

use super::{Outcome, Report, Tried};

/// A text in an attribute or between tags. XML cannot have most control characters, in no spelling.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

fn proof(tried: &Tried) -> String {
    let mut text = format!("rule: {} ({})\n", tried.rule, tried.source);
    if let Some(exchange) = tried.exchanges.last() {
        text.extend([format!("\n{}\n\n────\n\n{}\n", exchange.request, exchange.answer)]);
    }
    text
}

fn case(tried: &Tried) -> String {
    let head = format!(
        "    <testcase classname=\"{}\" name=\"{}\" time=\"{:.3}\"",
        escaped(&tried.id),
        escaped(&tried.title),
        tried.took.as_secs_f64()
    );
    match &tried.outcome {
        Outcome::Passed => format!("{head}/>\n"),
        Outcome::Failed(why) => format!(
            "{head}>\n      <failure message=\"{}\">{}</failure>\n    </testcase>\n",
            escaped(why),
            escaped(&proof(tried))
        ),
        Outcome::Skipped(_) | Outcome::CutShort(_) => {
            let why = tried.outcome.why().unwrap_or_default();
            format!("{head}>\n      <skipped message=\"{}\"/>\n    </testcase>\n", escaped(why))
        }
    }
}

/// All of it.
pub(in super::super) fn written(report: &Report) -> String {
    let mut text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"alipayplus-cancel certify\" tests=\"{}\" failures=\"{}\" \
         skipped=\"{}\" time=\"{:.3}\">\n",
        report.tried.len(),
        report.count(Outcome::is_failed),
        report.count(Outcome::is_skipped),
        report.took.as_secs_f64()
    );
    for (id, title, tried) in report.chapters() {
        let count =
            |is: fn(&Outcome) -> bool| tried.iter().filter(|tried| is(&tried.outcome)).count();
        let time: f64 = tried.iter().map(|tried| tried.took.as_secs_f64()).sum();
        text.extend([format!(
            "  <testsuite name=\"{id}: {}\" tests=\"{}\" failures=\"{}\" skipped=\"{}\" errors=\"0\" time=\"{time:.3}\">\n",
            escaped(title),
            tried.len(),
            count(Outcome::is_failed),
            count(Outcome::is_skipped),
        )]);
        text.extend(tried.into_iter().map(case));
        text.push_str("  </testsuite>\n");
    }
    text.push_str("</testsuites>\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_can_end_the_tag_it_stands_in() {
        assert_eq!(
            escaped("<a b='c'>&\"\u{0}\u{1b}"),
            "&lt;a b=&#39;c&#39;&gt;&amp;&quot;\u{fffd}\u{fffd}"
        );
    }
}
