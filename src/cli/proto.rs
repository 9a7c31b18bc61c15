//! `proto`: the contract of gRPC as a page, for whoever reads before calling.

use super::print_all;
use crate::grpc::reference::Reference;

/// Prints the reference of the gRPC services as Markdown
///
/// It is made from the descriptors that the program serves by. A running service shows it at its admin port, /reference.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Example: alipayplus-cancel proto >docs/grpc.md")]
pub struct Proto {}

impl Proto {
    /// Prints it.
    pub fn run(self) -> anyhow::Result<()> {
        print_all(Reference::of_this_program().markdown().as_bytes())
    }
}
