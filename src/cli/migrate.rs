//! `migrate`: the schema of the store, brought up to date or only looked at.

use std::path::PathBuf;

use super::{Failure, open_tool, settings_with, start_error};
use crate::{
    app::{self, StartError},
    config::{Settings, StoreUrl},
    store::{postgres::Postgres, sqlite::Sqlite},
};

/// Brings the schema of the store up to date, or makes a new store
///
/// Forward only, and safe to run from several machines at once. An embedded store (SQLite) is also brought up to date
/// whenever the service starts; a database (PostgreSQL) only where store.migrate_at_start says so.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Example, before the new version of the service starts:
  alipayplus-cancel migrate --config /etc/alipayplus-cancel.toml --check || \\
    alipayplus-cancel migrate --config /etc/alipayplus-cancel.toml

Exit status: 0 the schema is up to date; 1 it is not (--check), or the store cannot be used; 2 wrong usage or settings.")]
pub struct Migrate {
    /// The settings file; environment variables ALIPAYPLUS_CANCEL__SECTION__KEY win over it
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Only say whether it is up to date; change nothing
    #[arg(long)]
    check: bool,
}

impl Migrate {
    /// Migrates.
    pub async fn run(self) -> anyhow::Result<()> {
        let set: &[(&str, &str)] =
            if self.check { &[] } else { &[("store.migrate_at_start", "true")] };
        let settings = settings_with(&self.config, set)?.settings;
        let (found, needed) = schema(&settings).await?;
        if found >= needed {
            say!("the schema is up to date: {found}")?;
            return Ok(());
        }
        let is = if found == 0 {
            "there is no schema yet".to_owned()
        } else {
            format!("the schema is {found}")
        };
        if self.check {
            say!("{is}, and this version needs {needed}: run `alipayplus-cancel migrate`")?;
            return Err(Failure.into());
        }
        open_tool(&settings).await?.close().await;
        let (found, _) = schema(&settings).await?;
        say!("{is}; it is {found} now")?;
        Ok(())
    }
}

/// What the store has and what this version needs; 0 for none.
async fn schema(settings: &Settings) -> anyhow::Result<(u32, u32)> {
    let (found, needed) = match &settings.store.url {
        StoreUrl::Sqlite { path } => {
            return Sqlite::schema(path).map_err(|error| start_error(StartError::Store(error)));
        }
        StoreUrl::Postgres(_) => {
            let options = app::database(settings).map_err(start_error)?;
            let found = Postgres::schema(&options).await;
            found.map_err(|error| start_error(StartError::Database(error)))?
        }
    };
    let count = |number| u32::try_from(number).unwrap_or(0); // counts from 1
    Ok((count(found), count(needed)))
}
