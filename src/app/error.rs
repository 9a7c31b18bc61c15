//! Why the service does not start.

use std::{io, net::SocketAddr, path::PathBuf};

use crate::{
    bridge::{IdentityError, keys, signer::pkcs11},
    engine::HashKeyError,
    grpc::channel::NoName,
    store::{
        postgres::{self, DsnError},
        sqlite,
    },
    telemetry, tls,
};

/// Why the service does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A file that a setting names cannot be read.
    #[error("{setting}: cannot read {path}")]
    Read {
        /// The setting.
        setting: String,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A key is not one.
    #[error("{setting}: {path} {wrong}")]
    Key {
        /// The setting.
        setting: String,
        /// The file.
        path: PathBuf,
        /// What is wrong with it; the end of the sentence.
        wrong: keys::KeyError,
    },
    /// A key cannot be used in its token.
    #[error("{setting}")]
    Token {
        /// The setting.
        setting: String,
        /// Why.
        #[source]
        source: pkcs11::OpenError,
    },
    /// Keys that do not go together.
    #[error("clients: {0}")]
    Identity(IdentityError),
    /// A hash key is unusable.
    #[error("tokens.hash_key_files: {0}")]
    HashKey(HashKeyError),
    /// Certificates or their keys are unusable.
    #[error("{setting}")]
    Tls {
        /// The setting.
        setting: &'static str,
        /// Why.
        #[source]
        source: tls::Error,
    },
    /// A core's name cannot be verified.
    #[error("{setting}: {wrong}")]
    CoreName {
        /// The setting.
        setting: &'static str,
        /// The name; the end of the sentence.
        wrong: NoName,
    },
    /// The URL of the database is not one.
    #[error("store.url: {0}")]
    Dsn(DsnError),
    /// The embedded store cannot be used.
    #[error("store.url")]
    Store(#[source] sqlite::OpenError),
    /// The database cannot be used.
    #[error("store.url")]
    Database(#[source] postgres::OpenError),
    /// Nothing can be told where the settings say.
    #[error("telemetry")]
    Telemetry(#[source] telemetry::Error),
    /// An address cannot be listened on.
    #[error("{setting}: cannot listen on {address}")]
    Bind {
        /// The setting.
        setting: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl StartError {
    /// Whether the operator has to change the settings or what they name, rather than the state of the machine.
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Read { .. }
            | Self::Key { .. }
            | Self::Token { .. }
            | Self::Identity(_)
            | Self::HashKey(_)
            | Self::Tls { .. }
            | Self::CoreName { .. }
            | Self::Dsn(_)
            | Self::Telemetry(_)
            | Self::Store(
                sqlite::OpenError::Partitions { .. } | sqlite::OpenError::HashKeyMissing { .. },
            ) => true,
            Self::Database(error) => error.is_configuration(),
            Self::Store(_) | Self::Bind { .. } => false,
        }
    }
}
