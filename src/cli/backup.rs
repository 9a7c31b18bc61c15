//! `backup`: a copy of the embedded store, beside the running service.

use std::path::PathBuf;

use anyhow::{Context as _, bail};

use super::{Steps, Usage, settings};
use crate::{app::hash_ring, config::StoreUrl, store::sqlite::Sqlite};

/// Copies the embedded store (SQLite) into one file, beside the running service
///
/// The copy is complete up to one moment, durable and checked when this ends; no file is overwritten. It holds hashes of
/// tokens, not tokens; the files of tokens.hash_key_files belong into a backup of their own, for without them it is of no
/// use. A key that it needs and the settings lack is an error; the copy stays.
///
/// Whoever serves from a copy serves from the past, so a store that is opened from it is suspect and decides nothing:
/// cancels are answered U (ask again) until `reconcile` has brought in what consumers of the feed kept since.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Example:
  alipayplus-cancel backup --config /etc/alipayplus-cancel.toml \\
    --to /backups/state-$(date +%F).db

To restore: stop the service, move state.db, state.db-wal, state.db-shm and state.db.anchor away, put the copy in the \
place of state.db, and see `reconcile --help`.

A database (PostgreSQL) is backed up with its own tools: pg_basebackup or pgBackRest, with the write-ahead log archived, \
so that it can be restored up to the last commit. A restore to an earlier moment needs `reconcile` as well, before any \
service starts on it.

Exit status: 0 the copy is good; 1 there is none; 2 wrong usage or settings.")]
pub struct Backup {
    /// The settings file; environment variables ALIPAYPLUS_CANCEL__SECTION__KEY win over it
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The copy; must not be there yet
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
}

impl Backup {
    /// Copies it.
    pub async fn run(self) -> anyhow::Result<()> {
        let settings = settings(&self.config)?.settings;
        let StoreUrl::Sqlite { path } = &settings.store.url else {
            bail!(Usage(
                "store.url is a database: back it up with its own tools, pg_basebackup or pgBackRest; see `backup --help`"
                    .into()
            ));
        };
        let (from, path, to) = (path.clone(), path.clone(), self.to.clone());
        let copied = tokio::task::spawn_blocking(move || {
            let mut steps = Steps::default();
            Sqlite::backup(&path, &to, |at| {
                let part = at.total.map(|total| (at.done, total));
                steps.tell(at.step, at.done, part);
            })
        });
        copied.await??;
        // the copy stands, but nobody should rely on it with the files that are named here
        let to = self.to.display();
        let ring = hash_ring(&settings).with_context(|| {
            format!("{to} is a complete copy, and of no use without the keys of its tokens")
        })?;
        if let Some(fingerprint) = Sqlite::missing_hash_key(&from, ring.fingerprints())? {
            bail!(
                "{to} is a complete copy, but tokens of it are hashed with a key (fingerprint {fingerprint}) that \
                 tokens.hash_key_files lacks; back that key up too"
            );
        }
        say!("{} is a complete and checked copy", self.to.display())?;
        Ok(())
    }
}
