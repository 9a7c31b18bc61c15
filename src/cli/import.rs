//! `import`: the wallet's history, at the cut-over.

use std::path::PathBuf;

use super::Usage;
use crate::{
    app,
    config::{Settings, StoreUrl, environment},
    store::{StandingChange, Store as _, postgres::Postgres, sqlite::Sqlite},
};

/// The cut-over: makes unknown mean unknown
#[derive(Clone, Debug, clap::Args)]
pub struct Import {
    #[command(subcommand)]
    step: Step,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Step {
    /// Says that everything the wallet knew is recorded, or that it had nothing
    ///
    /// Until then a cancel of an unknown payment or token is answered U (ask again) and recorded nowhere, because
    /// "unknown" could be a lie: a payment of last week would be answered SUCCESS with no money returned. From then on
    /// it is decided. Durable, may be repeated, cannot be undone; a running service notices at once.
    Complete(Complete),
}

#[derive(Clone, Debug, clap::Args)]
struct Complete {
    /// The settings file; environment variables ALIPAYPLUS_CANCEL__SECTION__KEY win over it
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

impl Import {
    /// Does the step.
    pub async fn run(self) -> anyhow::Result<()> {
        let Step::Complete(Complete { config }) = self.step;
        let loaded = Settings::load(Some(&config), environment(), &[])
            .map_err(|error| Usage(error.to_string()))?;
        match &loaded.settings.store.url {
            StoreUrl::Sqlite { path } => Sqlite::complete_import_of(path)?,
            StoreUrl::Postgres(_) => complete_in_database(&loaded.settings).await?,
        }
        println!("import complete: unknown payments and tokens are decided from now on");
        Ok(())
    }
}

async fn complete_in_database(settings: &Settings) -> anyhow::Result<()> {
    let options = app::database(settings).map_err(|error| Usage(error.to_string()))?;
    let ring = app::hash_ring(settings).map_err(|error| Usage(error.to_string()))?;
    let (store, _) = Postgres::open(&options, ring.fingerprints()).await?;
    store.change_standing(StandingChange::ImportComplete).await?;
    Ok(())
}
