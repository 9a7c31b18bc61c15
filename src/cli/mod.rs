//! One file per subcommand, and what their errors mean to a shell.

pub mod call;
pub mod config;
mod exchange;
pub mod import;
pub mod keys;
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
