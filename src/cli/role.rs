//! `--role`: what runs in a process.

use crate::config::Role;

/// What runs in a process
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum RoleName {
    /// Both fronts and the core
    #[default]
    All,
    /// gRPC and what is behind it, without the signed JSON front
    Core,
    /// The signed JSON front, with cores elsewhere (`bridge.core`)
    Bridge,
}

impl From<RoleName> for Role {
    fn from(name: RoleName) -> Self {
        match name {
            RoleName::All => Self::All,
            RoleName::Core => Self::Core,
            RoleName::Bridge => Self::Bridge,
        }
    }
}
