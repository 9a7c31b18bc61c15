//! `verify`: whether a store's states and its feed tell the same story.

use std::path::PathBuf;

use anyhow::Context as _;
use serde_json::json;

use super::{Failure, Steps, open_existing, print_all, settings, start_error};
use crate::{
    app::StartError,
    config::{Settings, StoreUrl},
    store::sqlite::Sqlite,
    upkeep::verify::{self, FINDINGS_TOLD, Report, Wrong},
};

/// Walks through a whole store and its feed, and says whether they tell the same story
///
/// Of an embedded store the file first: its pages, the checksum of every row, the chain of its commits. Then:
/// every cancelled payment has exactly one PaymentCancelled, all money due or returned exactly one FundReturnDue with its
/// amount, every revoked authorization exactly one AuthorizationRevoked; no event tells of what no state knows; positions
/// have no gap; every token's authorization is there. Events that were purged cannot be compared one by one: as many
/// states as events were purged may lack theirs, and no more. What was cancelled or revoked before it was imported has no
/// event. It mends nothing.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Example:
  alipayplus-cancel verify --config /etc/alipayplus-cancel.toml

An embedded store (SQLite) is verified while no service runs, or as a copy: make one with `backup` beside the running \
service, and verify it with
  ALIPAYPLUS_CANCEL__STORE__URL=sqlite:///backups/state.db \\
    alipayplus-cancel verify --config …

Exit status: 0 nothing is wrong; 1 something is, or the store cannot be read; 2 wrong usage or settings.")]
pub struct Verify {
    /// The settings file; environment variables ALIPAYPLUS_CANCEL__SECTION__KEY win over it
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Print one JSON object for machines
    #[arg(long)]
    json: bool,
}

impl Verify {
    /// Verifies.
    pub async fn run(self) -> anyhow::Result<()> {
        let settings = settings(&self.config)?.settings;
        let damages = check_file(&settings).await?;
        let tool = open_existing(&settings).await?;
        let store = tool.store();
        let mut steps = Steps::default();
        let report = verify::verify(&store, &mut |what, done| steps.tell(what, done, None)).await;
        drop(store);
        tool.close().await;
        let mut report = report.context("the store cannot be walked through")?;
        for damage in damages {
            report.find(Wrong::File, damage);
        }
        if self.json {
            say!("{}", for_machines(&report))?;
        } else {
            print_all(for_people(&report).as_bytes())?;
        }
        if report.is_clean() { Ok(()) } else { Err(Failure.into()) }
    }
}

/// What is wrong with the file of an embedded store: its pages, the checksums of its rows, its chain of commits.
async fn check_file(settings: &Settings) -> anyhow::Result<Vec<String>> {
    let StoreUrl::Sqlite { path } = &settings.store.url else { return Ok(Vec::new()) };
    let path = path.clone();
    let checked = tokio::task::spawn_blocking(move || {
        let mut steps = Steps::default();
        Sqlite::check(&path, |at| {
            let part = at.total.map(|total| (at.done, total));
            steps.tell(at.step, at.done, part);
        })
    });
    let checked = checked.await?.map_err(|error| start_error(StartError::Store(error)))?;
    Ok(checked.findings)
}

fn for_people(report: &Report) -> String {
    let Report { payments, authorizations, tokens, events, consumers, purged, .. } = report;
    let mut text = format!(
        "{payments} payments, {authorizations} authorizations, {tokens} tokens, {events} events ({purged} more were purged), {consumers} consumers\n"
    );
    if let Some(why) = &report.suspect {
        text =
            format!("{text}the store is suspect, so it decides nothing until `reconcile`: {why}\n");
    }
    for finding in &report.findings {
        text = format!("{text}{}: {}\n", finding.wrong.name(), finding.told);
    }
    if report.is_clean() {
        return format!("{text}nothing is wrong\n");
    }
    let all: u64 = report.counts.iter().map(|(_, count)| count).sum();
    text = format!("{text}{all} findings");
    if all > u64::try_from(FINDINGS_TOLD).unwrap_or(u64::MAX) {
        text = format!("{text}, the first {FINDINGS_TOLD} of them above");
    }
    let counts: Vec<_> =
        report.counts.iter().map(|(wrong, count)| format!("{count} {}", wrong.name())).collect();
    format!("{text}: {}\n", counts.join(", "))
}

fn for_machines(report: &Report) -> serde_json::Value {
    let findings: Vec<_> = report
        .findings
        .iter()
        .map(|finding| json!({ "kind": finding.wrong.name(), "told": finding.told }))
        .collect();
    let counts: serde_json::Map<_, _> = report
        .counts
        .iter()
        .map(|(wrong, count)| (wrong.name().to_owned(), json!(count)))
        .collect();
    json!({
        "clean": report.is_clean(),
        "payments": report.payments,
        "authorizations": report.authorizations,
        "tokens": report.tokens,
        "events": report.events,
        "purgedEvents": report.purged,
        "consumers": report.consumers,
        "suspect": report.suspect,
        "counts": counts,
        "findings": findings,
    })
}
