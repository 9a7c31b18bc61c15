//! The report as one HTML file: no script, nothing from elsewhere, readable in the dark and on paper.

use super::{super::super::target::seconds, Outcome, Report, Tried, junit::escaped};

const STYLE: &str = include_str!("report.css");

fn pill(word: &str) -> String {
    format!("<span class=\"pill {word}\">{word}</span>")
}

fn check(tried: &Tried) -> String {
    let word = tried.outcome.word();
    // what failed is what people came to see
    let open = if tried.outcome.is_failed() { " open" } else { "" };
    let why = tried
        .outcome
        .why()
        .map_or_else(String::new, |why| format!("<p class=\"why\">{}</p>", escaped(why)));
    let exchanges = tried
        .exchanges
        .iter()
        .map(|exchange| {
            format!(
                "<div class=\"exchange\"><figure><figcaption>request</figcaption><pre>{}</pre></figure>\
                 <figure><figcaption>answer, after {}</figcaption><pre>{}</pre></figure></div>",
                escaped(&exchange.request),
                seconds(exchange.took),
                escaped(&exchange.answer)
            )
        })
        .collect::<Vec<_>>()
        .concat();
    format!(
        "<details id=\"{id}\" class=\"check {word}\"{open}><summary>{pill}<span class=\"title\">{title}</span>\
         <code>{id}</code></summary><div class=\"inside\">{why}<p class=\"rule\">Rule: {rule} <span class=\"source\">{source}</span></p>\
         {exchanges}</div></details>\n",
        id = escaped(&tried.id),
        pill = pill(word),
        title = escaped(&tried.title),
        rule = escaped(tried.rule),
        source = tried.source,
    )
}

fn count(tried: &[&Tried], is: fn(&Outcome) -> bool) -> usize {
    tried.iter().filter(|tried| is(&tried.outcome)).count()
}

/// A number that is worth nothing if it is none.
fn number(count: usize, class: &str) -> String {
    let class = if count == 0 { "none" } else { class };
    format!("<td class=\"number {class}\">{count}</td>")
}

fn table(report: &Report) -> String {
    let rows = report
        .chapters()
        .iter()
        .map(|(id, title, tried)| {
            format!(
                "<tr><td><a href=\"#{id}\">{}</a></td>{}{}{}</tr>\n",
                escaped(title),
                number(count(tried, Outcome::is_passed), "passed"),
                number(count(tried, Outcome::is_failed), "failed"),
                number(count(tried, Outcome::is_skipped), "skipped"),
            )
        })
        .collect::<Vec<_>>()
        .concat();
    let total = |is: fn(&Outcome) -> bool| report.count(is);
    format!(
        "<table class=\"chapters\"><thead><tr><th>Chapter</th><th>passed</th><th>failed</th><th>skipped</th></tr></thead>\
         <tbody>{rows}</tbody><tfoot><tr><td>All</td>{}{}{}</tr></tfoot></table>",
        number(total(Outcome::is_passed), "passed"),
        number(total(Outcome::is_failed), "failed"),
        number(total(Outcome::is_skipped), "skipped"),
    )
}

fn facts(report: &Report) -> String {
    [
        ("Endpoint", report.url.clone()),
        ("Client-Id", report.client_id.clone()),
        ("pspId, acquirerId", format!("{}, {}", report.psp, report.acquirer)),
        ("Begun", format!("{}, took {}", report.begun_text(), seconds(report.took))),
        ("Requests", report.requests.to_string()),
        ("Key of Alipay+, SHA-256", report.alipayplus_key.clone()),
        ("Key of the wallet, SHA-256", report.wallet_key.clone()),
        ("By", format!("alipayplus-cancel certify {}", report.version)),
    ]
    .iter()
    .map(|(name, value)| format!("<dt>{name}</dt><dd>{}</dd>", escaped(value)))
    .collect::<Vec<_>>()
    .concat()
}

/// All of it.
pub(in super::super) fn written(report: &Report) -> String {
    let verdict = if report.count(Outcome::is_failed) > 0 {
        "failed"
    } else if report.count(Outcome::is_passed) == 0 || report.is_cut_short() {
        "skipped"
    } else {
        "passed"
    };
    let failed = report
        .tried
        .iter()
        .filter(|tried| tried.outcome.is_failed())
        .map(|tried| {
            format!(
                "<li><a href=\"#{0}\">{0}</a> {1}</li>",
                escaped(&tried.id),
                escaped(&tried.title)
            )
        })
        .collect::<Vec<_>>()
        .concat();
    let failed =
        if failed.is_empty() { failed } else { format!("<ul class=\"failures\">{failed}</ul>") };
    let chapters = report
        .chapters()
        .iter()
        .map(|(id, title, tried)| {
            let checks = tried.iter().map(|tried| check(tried)).collect::<Vec<_>>().concat();
            format!("<section id=\"{id}\"><h2>{}</h2>\n{checks}</section>\n", escaped(title))
        })
        .collect::<Vec<_>>()
        .concat();
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>cancelPayment, cancelToken: {sentence}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n\
         <header><p class=\"kind\">Alipay+ cancelPayment and cancelToken: certification of a wallet's endpoint</p>\n\
         <h1 class=\"verdict {verdict}\">{sentence}</h1>{failed}\n<dl class=\"facts\">{facts}</dl></header>\n\
         {table}\n<p class=\"legend\">A rule is <b>published</b> by Alipay+; or of its official <b>clients</b>: what they send, and what \
         they can read; or <b>advice</b>: nobody publishes it, and a wallet may do otherwise.</p>\n{chapters}</main>\n</body>\n</html>\n",
        sentence = escaped(&capital(&report.verdict())),
        facts = facts(report),
        table = table(report),
    )
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}
