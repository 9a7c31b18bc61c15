//! The report for machines.

use serde_json::{Value, json};

use super::{Outcome, Report, Tried};

fn check(tried: &Tried) -> Value {
    let exchanges: Vec<Value> = tried
        .exchanges
        .iter()
        .map(|exchange| {
            json!({
                "request": exchange.request,
                "answer": exchange.answer,
                "ms": u64::try_from(exchange.took.as_millis()).unwrap_or(u64::MAX),
            })
        })
        .collect();
    json!({
        "id": tried.id,
        "chapter": tried.chapter,
        "title": tried.title,
        "rule": tried.rule,
        "source": tried.source,
        "outcome": tried.outcome.word(),
        "why": tried.outcome.why(),
        "seconds": tried.took.as_secs_f64(),
        "exchanges": exchanges,
    })
}

/// All of it.
pub(in super::super) fn written(report: &Report) -> String {
    let json = json!({
        "tool": "alipayplus-cancel certify",
        "version": report.version,
        "url": report.url,
        "clientId": report.client_id,
        "pspId": report.psp,
        "acquirerId": report.acquirer,
        "alipayplusKeySha256": report.alipayplus_key,
        "walletKeySha256": report.wallet_key,
        "begun": report.begun.to_string(),
        "seconds": report.took.as_secs_f64(),
        "requests": report.requests,
        "passed": report.count(Outcome::is_passed),
        "failed": report.count(Outcome::is_failed),
        "skipped": report.count(Outcome::is_skipped),
        "checks": report.tried.iter().map(check).collect::<Vec<_>>(),
    });
    format!("{json:#}\n")
}
