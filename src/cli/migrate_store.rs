//! `migrate-store`: one store into another, of any kind.

use std::{path::PathBuf, sync::Arc};

use anyhow::Context as _;

use super::{Steps, Usage, in_use, open_existing, open_tool, settings_with};
use crate::{
    config::{Settings, StoreUrl},
    store::Store,
    upkeep::copy::{self, Copied},
};

/// Moves a whole store into another one: from the embedded one to PostgreSQL, back, or to another place
///
/// Payments, authorizations, tokens, the feed with its positions, consumers with their places, epoch and onboarding. The
/// service is stopped meanwhile. Everything is compared at the end; then the new store takes over, and the old one decides
/// nothing any more: it is marked as suspect, so that nobody serves from it by mistake.
///
/// If it is interrupted, run it again: it goes on where it ended.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Example:
  alipayplus-cancel migrate-store --config /etc/alipayplus-cancel.toml \\
    --from sqlite:///var/lib/alipayplus-cancel/state.db \\
    --to postgres://cancel@db1:5432,db2:5432/cancel

The settings say the rest: tokens.hash_key_files, store.partitions (both stores have the same number), \
store.password_file for a database's password, which should not stand on a command line.

Exit status: 0 the new store has taken over; 1 it has not; 2 wrong usage or settings.")]
pub struct MigrateStore {
    /// The settings file; environment variables ALIPAYPLUS_CANCEL__SECTION__KEY win over it
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The store as it is, as store.url names it
    #[arg(long, value_name = "URL")]
    from: String,
    /// The new one, fresh or not there yet
    #[arg(long, value_name = "URL")]
    to: String,
}

impl MigrateStore {
    /// Moves it.
    pub async fn run(self) -> anyhow::Result<()> {
        let source = self.settings("--from", &self.from)?;
        let target = self.settings("--to", &self.to)?;
        if source.store.url == target.store.url {
            anyhow::bail!(Usage("--from and --to are the same store".into()));
        }
        let from = open_existing(&source).await.context("--from")?;
        let to = match open_tool(&target).await {
            Ok(to) => to,
            Err(error) => {
                from.close().await;
                let error = if in_use(&error) {
                    error.context("a service runs on the target already; name a fresh store")
                } else {
                    error
                };
                return Err(error.context("--to"));
            }
        };
        let copied = work(&from.store(), &to.store(), &told(&target)).await;
        from.close().await;
        to.close().await;
        let Copied { payments, authorizations, tokens, events, consumers } = copied?;
        say!(
            "moved and compared: {payments} payments, {authorizations} authorizations, {tokens} tokens, {events} events, \
             {consumers} consumers"
        )?;
        say!(
            "Next: set store.url = {} in {}, and start the service.",
            told(&target),
            self.config.display()
        )?;
        say!(
            "The old store, {}, decides nothing any more; keep it until the new one is backed up.",
            told(&source)
        )?;
        Ok(())
    }

    fn settings(&self, flag: &str, url: &str) -> anyhow::Result<Settings> {
        // a new database gets its schema here
        let set = [("store.url", url), ("store.migrate_at_start", "true")];
        let loaded = settings_with(&self.config, &set);
        Ok(loaded.with_context(|| Usage(format!("{flag}: not a store")))?.settings)
    }
}

async fn work(
    from: &Arc<dyn Store>,
    to: &Arc<dyn Store>,
    target: &str,
) -> Result<Copied, copy::Error> {
    let mut steps = Steps::default();
    let left = format!("it was moved to {target} with migrate-store");
    copy::copy(from, to, left, &mut |what, done| steps.tell(what, done, None)).await
}

/// The URL as it may be printed.
fn told(settings: &Settings) -> String {
    match &settings.store.url {
        StoreUrl::Sqlite { path } => format!("\"sqlite://{}\"", path.display()),
        StoreUrl::Postgres(url) => format!("{url:?}"),
    }
}
