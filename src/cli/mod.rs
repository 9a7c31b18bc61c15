//! One file per subcommand, and what their errors mean to a shell.

use std::path::Path;

use crate::{
    app::{self, StartError, Tool},
    config::{Loaded, Settings, environment},
    store::sqlite::OpenError,
};

pub mod call;
pub mod config;
mod exchange;
pub mod feed;
pub mod import;
pub mod keys;
mod progress;
pub mod sandbox;
pub mod serve;

/// Marks an error as wrong usage or configuration: exit status 2 where others have 1.
///
/// It stands in the chain of an `anyhow::Error`, as the error itself (`Usage(…).into()`) or as the context of another
/// (`.context(Usage(…))`).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// A subcommand that did its work, and the answer is no: exit status 1 without another word, it was said already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("failed")]
pub struct Failure;

impl Failure {
    /// The exit status.
    pub const STATUS: u8 = 1;
}

/// The exit status of a subcommand that ended with this error: 2 for [`Usage`], 1 for everything else.
pub fn exit_status(error: &anyhow::Error) -> u8 {
    if error.downcast_ref::<Usage>().is_some() { 2 } else { Failure::STATUS }
}

/// Loads the settings of a tool.
fn settings(file: &Path) -> anyhow::Result<Loaded> {
    let loaded = Settings::load(Some(file), environment(), &[]);
    Ok(loaded.map_err(|error| Usage(error.to_string()))?)
}

/// Opens the store that the settings name.
async fn open_tool(settings: &Settings) -> anyhow::Result<Tool> {
    app::open_tool(settings).await.map_err(start_error)
}

/// Whether an embedded store could not be opened because a service has it.
fn in_use(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(StartError::Store(OpenError::InUse(_))))
}

fn start_error(error: StartError) -> anyhow::Error {
    let configuration = error.is_configuration();
    let error = anyhow::Error::from(error);
    // `{:#}` has the whole chain
    if configuration { Usage(format!("{error:#}")).into() } else { error }
}
