//! TLS to the database: the server proves who it is, always.

use std::path::{Path, PathBuf};

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::dsn::TlsFiles;

/// What is wrong with the files.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// One cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls_pki_types::pem::Error,
    },
    /// The system has no authorities, and none were named.
    #[error("no certificate authority is known: name one with sslrootcert=FILE in store.url")]
    NoRoots,
    /// Certificate and key are unusable.
    #[error("certificate and key cannot be used")]
    Unusable(#[source] rustls::Error),
}

pub(super) fn client(files: &TlsFiles) -> Result<MakeRustlsConnect, TlsError> {
    let mut roots = RootCertStore::empty();
    match &files.root_cert {
        Some(path) => {
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(TlsError::Unusable)?;
            }
        }
        None => {
            // one that the system has and rustls does not take is not worth refusing all others
            let (_added, _ignored) =
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        return Err(TlsError::NoRoots);
    }
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Unusable)?
        .with_root_certificates(roots);
    let config = match &files.client {
        None => config.with_no_client_auth(),
        Some((certificate, key)) => {
            let read = |source| TlsError::Read { path: key.clone(), source };
            let private = PrivateKeyDer::from_pem_file(key).map_err(read)?;
            config
                .with_client_auth_cert(certificates(certificate)?, private)
                .map_err(TlsError::Unusable)?
        }
    };
    Ok(MakeRustlsConnect::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = |source| TlsError::Read { path: path.to_owned(), source };
    CertificateDer::pem_file_iter(path).map_err(read)?.collect::<Result<_, _>>().map_err(read)
}
