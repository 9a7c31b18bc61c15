//! `reconcile`: after a restore from a backup, what consumers of the feed kept becomes true again.

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context as _, bail};

use super::{
    Failure, Usage,
    lines::{Line, Lines},
    open_existing,
    progress::Progress,
    settings,
};
use crate::{
    domain::reconcile::Kept,
    store::{StandingChange, Store},
    upkeep::{
        lines,
        reconcile::{self, Coverage, Done},
    },
};

/// After a restore from a backup: makes everything that consumers of the feed kept true again, and begins a new epoch
///
/// A restored store has forgotten what was decided since the backup. Its file of kept events (JSON Lines, as `feed tail
/// --json` prints them) tells: every cancel that was answered SUCCESS is answered so again, with the time it was decided;
/// money that was announced as due is due, or returned where the executor says so; revoked authorizations are revoked.
/// Events that the restored feed lacks are appended with their old ids. Then the store is not suspect any more.
///
/// It may be repeated. Before anything is written all lines are compared: one that contradicts the store stops it.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
A line, here broken to be read; more fields than these may be there:
  {\"kind\": \"EVENT_KIND_FUND_RETURN_DUE\",       or …_PAYMENT_CANCELLED, …_AUTHORIZATION_REVOKED
   \"pspId\": \"1022172000000000001\",
   \"paymentRequestId\": \"20200101234567890132\", authorizationId with AUTHORIZATION_REVOKED
   \"acquirerId\": \"1022188000000000001\",
   \"amount\": {\"value\": \"1999\", \"currency\": \"EUR\"},   minor units; with FUND_RETURN_DUE
   \"cause\": \"EVENT_CAUSE_CANCEL_PAYMENT\",      or …_LATE_SUCCESS, …_CANCEL_TOKEN, …_REVOKE_AUTHORIZATION
   \"decidedAt\": \"2026-05-28T13:00:00.123Z\", \"traceId\": \"…\", \"eventId\": \"…\",
   \"fundReturn\": {\"reference\": \"T-1\", \"returnedAt\": \"2026-05-28T13:00:05Z\"}}   if the executor returned it

In this order, the service being stopped:
  1. restore the backup
  2. import payments, import tokens: what the wallet's own books say of the time since the backup
  3. alipayplus-cancel reconcile --config FILE --events events.jsonl --dry-run
  4. alipayplus-cancel reconcile --config FILE --events events.jsonl --yes
  5. alipayplus-cancel verify --config FILE, and start the service; its consumers begin anew

Exit status: 0 done; 1 lines contradict the store and nothing was written, or the store cannot be used; 2 wrong usage \
or settings.")]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag that a person sets")]
pub struct Reconcile {
    /// The settings file; environment variables ALIPAYPLUS_CANCEL__SECTION__KEY win over it
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The events that consumers kept. Of several consumers: one file after the other in one
    #[arg(long, value_name = "FILE")]
    events: PathBuf,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Do it
    #[arg(long, conflicts_with = "dry_run")]
    yes: bool,
    /// Go on although lines contradict the store or cannot be read; they are told and passed over
    #[arg(long)]
    accept_conflicts: bool,
    /// Go on although the file holds no event, or lacks some before others that it has; the journal says so
    #[arg(long)]
    accept_gaps: bool,
}

/// Gaps that are told one by one.
const GAPS_TOLD: usize = 20;
/// Events in one commit.
const EVENTS: usize = 1_000;
/// Contradictions told one by one.
const CONFLICTS_TOLD: u64 = 100;

impl Reconcile {
    /// Reconciles.
    pub async fn run(self) -> anyhow::Result<()> {
        if !self.dry_run && !self.yes {
            bail!(Usage(
                "say --dry-run to see what would be done, and --yes to do it: it begins a new epoch of the feed".into()
            ));
        }
        let settings = settings(&self.config)?.settings;
        let tool = open_existing(&settings).await?;
        let store = tool.store();
        let done = self.work(&store).await;
        drop(store);
        tool.close().await;
        done
    }

    async fn work(&self, store: &Arc<dyn Store>) -> anyhow::Result<()> {
        let suspect = store.standing().await?.suspect;
        let is = suspect
            .map_or("not suspect; a new epoch of its feed begins nevertheless".to_owned(), |why| {
                format!("suspect: {why}")
            });
        eprintln!("the store is {is}");
        let mut coverage = Coverage::behind(store).await?;
        let (lines, done, conflicts) =
            self.pass(store, Some(&mut coverage), "events compared").await?;
        let gaps = coverage.gaps();
        if conflicts > 0 && !self.accept_conflicts {
            eprintln!(
                "{conflicts} lines contradict the store or cannot be read; nothing was written. Look into each; \
                 --accept-conflicts passes over them"
            );
            return Err(Failure.into());
        }
        let missing = gaps.len();
        if (missing > 0 || lines == 0) && !self.accept_gaps {
            for gap in gaps.iter().take(GAPS_TOLD) {
                eprintln!("{gap}");
            }
            eprintln!(
                "the file lacks {}; nothing was written. A cancel that is not in it is forgotten, with its money. Put \
                 together what all consumers kept; --accept-gaps goes on without",
                if lines == 0 {
                    "every event".to_owned()
                } else {
                    format!("events in {missing} places")
                }
            );
            return Err(Failure.into());
        }
        if self.dry_run {
            say!("would do: {}", told(lines, &done, conflicts))?;
            return Ok(());
        }
        let (lines, done, written) = self.pass(store, None, "events").await?;
        if written > conflicts && !self.accept_conflicts {
            eprintln!(
                "lines contradict each other; what stands before them is written, the store stays as it is otherwise. \
                 Look into each, then run it again"
            );
            return Err(Failure.into());
        }
        let mut told = told(lines, &done, written);
        if missing > 0 || lines == 0 {
            told.push_str(", although kept events were missing");
        }
        let standing = store.change_standing(StandingChange::Reconciled(told.clone())).await?;
        say!("{told}")?;
        say!("epoch {} of the feed begins; the store decides again", standing.epoch)?;
        Ok(())
    }

    /// Goes through the file once: lines, what came of them, contradictions.
    async fn pass(
        &self,
        store: &Arc<dyn Store>,
        mut coverage: Option<&mut Coverage>,
        what: &'static str,
    ) -> anyhow::Result<(u64, Done, u64)> {
        let dry = coverage.is_some();
        let name = self.events.display();
        let mut lines =
            Lines::open(&self.events, 1).with_context(|| Usage(format!("cannot read {name}")))?;
        let mut progress = Progress::new(what);
        let (mut count, mut all, mut conflicts) = (0u64, Done::default(), 0u64);
        let mut tell = |number: u64, what: &str| {
            conflicts += 1;
            // what was told by the first pass, and accepted, is not told again
            if conflicts <= CONFLICTS_TOLD && (dry || !self.accept_conflicts) {
                eprintln!("{name}:{number}: {what}");
            }
        };
        loop {
            let (mut numbers, mut kept): (Vec<u64>, Vec<Kept>) = (Vec::new(), Vec::new());
            let mut ended = true;
            while let Some((number, line)) =
                lines.next().with_context(|| format!("cannot read {name}"))?
            {
                let read = match line {
                    Line::Text(text) if text.trim().is_empty() => continue,
                    Line::Text(text) => {
                        if let Some(coverage) = &mut coverage {
                            coverage.add(lines::place(text));
                        }
                        lines::event(text)
                    }
                    Line::Wrong(wrong) => Err(wrong),
                };
                count += 1;
                match read {
                    Ok(event) => {
                        numbers.push(number);
                        kept.push(event);
                    }
                    Err(wrong) => tell(number, &wrong.to_string()),
                }
                if kept.len() >= EVENTS {
                    ended = false;
                    break;
                }
            }
            let names: Vec<String> = kept.iter().map(reconcile::name).collect();
            let done = reconcile::reconcile(store, kept, dry).await?;
            all.add(&done);
            for (place, conflict) in &done.conflicts {
                let (number, name) = (numbers.get(*place).copied(), names.get(*place));
                let name = name.map_or("", String::as_str);
                tell(number.unwrap_or(0), &format!("{name}: {conflict}"));
            }
            progress.tell(count, lines.part());
            if ended {
                break;
            }
        }
        Ok((count, all, conflicts))
    }
}

fn told(lines: u64, done: &Done, conflicts: u64) -> String {
    let Done { already, cancels, due, returned, revocations, appended, .. } = done;
    format!(
        "{lines} kept events: {already} were true, {cancels} cancels, {due} fund returns due, {returned} fund returns made \
         and {revocations} revocations restored, {appended} events appended, {conflicts} passed over"
    )
}
