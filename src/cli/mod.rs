//! One file per subcommand, and what their errors mean to a shell.

use std::{
    io::{self, Write},
    path::Path,
};

use anyhow::Context as _;

pub use self::core_dumps::no_core_dumps;
use self::progress::Steps;
use crate::{
    app::{self, StartError, Tool},
    config::{Loaded, Role, Settings, StoreUrl, environment},
    store::sqlite::OpenError,
};

/// A line on standard output, as `println!` has it, but for a failure that is no panic: see [`Out`].
macro_rules! say {
    ($($line:tt)*) => { $crate::cli::print_all(format!("{}\n", format_args!($($line)*)).as_bytes()) };
}

pub mod backup;
pub mod call;
pub mod certify;
pub mod config;
mod core_dumps;
pub mod doctor;
mod exchange;
pub mod feed;
pub mod health;
pub mod import;
pub mod keys;
mod lines;
pub mod migrate;
pub mod migrate_store;
pub mod openapi;
mod progress;
pub mod proto;
pub mod reconcile;
mod role;
pub mod sandbox;
pub mod serve;
pub mod simulate;
mod target;
pub mod verify;
mod wire;

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

/// What `bridge.path_prefixes` is where nobody sets it, for what is done without settings.
const USUAL_PREFIX: &str = "/aps/api";

/// Standard output. That whoever reads it has read enough is no failure: the rest is not written.
struct Out(io::StdoutLock<'static>);

impl Out {
    fn new() -> Self {
        Self(io::stdout().lock())
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        unless_read_enough(self.0.write(bytes), bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        unless_read_enough(self.0.flush(), ())
    }
}

fn unless_read_enough<T>(written: io::Result<T>, otherwise: T) -> io::Result<T> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(otherwise),
        Ok(_) | Err(_) => written,
    }
}

/// Prints all of it.
pub fn print_all(bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = Out::new();
    out.write_all(bytes).and_then(|()| out.flush()).context("cannot write to standard output")
}

/// From now on a panic is told without what was being worked on: [`crate::telemetry::panics`].
pub fn panics_tell_no_values() {
    crate::telemetry::panics::tell_no_values();
}

/// Loads the settings of a tool.
fn settings(file: &Path) -> anyhow::Result<Loaded> {
    settings_with(file, &[])
}

/// The same, some of them being said by the tool.
fn settings_with(file: &Path, set: &[(&str, &str)]) -> anyhow::Result<Loaded> {
    let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let set: Vec<_> = set.iter().map(own).collect();
    // tools are about the store, which is the core's
    let loaded = Settings::load_as(Role::Core, Some(file), environment(), &set);
    Ok(loaded.map_err(|error| Usage(error.to_string()))?)
}

/// The settings of a tool that wants the keys that sign: those of a bridge alone are enough, and its file lacks what a
/// core needs.
fn settings_of_signer(file: &Path) -> anyhow::Result<Loaded> {
    let of_bridge = Settings::load_as(Role::Bridge, Some(file), environment(), &[]);
    let loaded = of_bridge.or_else(|_| Settings::load(Some(file), environment(), &[]));
    Ok(loaded.map_err(|error| Usage(error.to_string()))?)
}

/// Opens the store that the settings name.
async fn open_tool(settings: &Settings) -> anyhow::Result<Tool> {
    app::open_tool(settings).await.map_err(start_error)
}

/// The same, of one that must be there: an embedded one is not made.
async fn open_existing(settings: &Settings) -> anyhow::Result<Tool> {
    if let StoreUrl::Sqlite { path } = &settings.store.url
        && !path.exists()
    {
        anyhow::bail!("store.url: there is no file {}", path.display());
    }
    open_tool(settings).await.map_err(|error| {
        if in_use(&error) {
            return error.context(
                "a running service has the store; stop it, or work on a copy made with `backup`",
            );
        }
        error
    })
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
