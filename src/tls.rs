//! TLS set-ups from PEM files.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore,
    ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{CryptoProvider, aws_lc_rs},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject as _};
use x509_cert::{Certificate, der::Decode as _};

/// Why a TLS set-up cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is not there or not readable.
    #[error("cannot read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file holds no PEM of the kind that is due.
    #[error("{path} holds no {what} in PEM")]
    Pem {
        /// Which.
        path: PathBuf,
        /// What is due.
        what: &'static str,
    },
    /// Certificate and key do not make a server.
    #[error("certificate {cert} and its key do not make a TLS server")]
    Server {
        /// The certificate's file.
        cert: PathBuf,
        /// What rustls said.
        #[source]
        source: rustls::Error,
    },
    /// Certificate and key do not make a client.
    #[error("certificate {cert} and its key do not make a TLS client")]
    Client {
        /// The certificate's file.
        cert: PathBuf,
        /// What rustls said.
        #[source]
        source: rustls::Error,
    },
    /// The authorities do not make a verifier of servers.
    #[error("{ca} does not make a verifier of servers")]
    ServerCa {
        /// The authorities' file.
        ca: PathBuf,
        /// What rustls said.
        #[source]
        source: rustls::Error,
    },
    /// The authorities do not make a verifier of clients.
    #[error("{ca} does not make a verifier of client certificates")]
    ClientCa {
        /// The authorities' file.
        ca: PathBuf,
        /// What rustls said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Whose clients a server takes.
#[derive(Clone, Copy, Debug)]
pub struct Clients<'a> {
    /// The authorities one of which must have signed a client's certificate, PEM.
    pub ca: &'a Path,
    /// Subject alternative names (DNS or URI) of which a client must have one; empty takes all of these authorities.
    pub allowed_sans: &'a [String],
}

/// A server's set-up: its chain and key, the clients it takes (`None` asks for no certificate), the protocols it offers.
pub fn server(
    cert: &Path,
    key: &Path,
    clients: Option<Clients<'_>>,
    protocols: &[&str],
) -> Result<Arc<ServerConfig>, Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let failed = |source| Error::Server { cert: cert.to_owned(), source };
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(failed)?;
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(clients) => builder.with_client_cert_verifier(verifier(clients, provider)?),
    };
    let mut config =
        builder.with_single_cert(certificates(cert)?, private_key(key)?).map_err(failed)?;
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    Ok(Arc::new(config))
}

/// A client's set-up that proves itself: the authorities of the servers, its own chain and key, the protocols it offers.
pub fn client(
    ca: &Path,
    cert: &Path,
    key: &Path,
    protocols: &[&str],
) -> Result<Arc<ClientConfig>, Error> {
    let failed = |source| Error::Client { cert: cert.to_owned(), source };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca)? {
        roots.add(certificate).map_err(|source| Error::ServerCa { ca: ca.to_owned(), source })?;
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(failed)?
        .with_root_certificates(roots)
        .with_client_auth_cert(certificates(cert)?, private_key(key)?)
        .map_err(failed)?;
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    Ok(Arc::new(config))
}

fn verifier(
    clients: Clients<'_>,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    let failed = |source| Error::ClientCa { ca: clients.ca.to_owned(), source };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(clients.ca)? {
        roots.add(certificate).map_err(|source| failed(source.into()))?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let issued = builder.build().map_err(|source| failed(source.into()))?;
    if clients.allowed_sans.is_empty() {
        return Ok(issued);
    }
    Ok(Arc::new(Named { issued, allowed_sans: clients.allowed_sans.to_vec() }))
}

/// The subject alternative names of a certificate: DNS names before URIs, each in their order.
pub fn names(certificate: &CertificateDer<'_>) -> Arc<[Box<str>]> {
    let Ok(certificate) = webpki::EndEntityCert::try_from(certificate) else {
        return Arc::default();
    };
    let names = certificate.valid_dns_names().chain(certificate.valid_uri_names());
    names.map(Box::from).collect()
}

/// Takes a certificate that the authorities issued and that has one of these names.
#[derive(Debug)]
struct Named {
    issued: Arc<dyn ClientCertVerifier>,
    allowed_sans: Vec<String>,
}

impl Named {
    fn is_allowed(&self, certificate: &CertificateDer<'_>) -> bool {
        let names = names(certificate);
        names.iter().any(|name| self.allowed_sans.iter().any(|allowed| **allowed == **name))
    }
}

impl ClientCertVerifier for Named {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.issued.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.issued.verify_client_cert(end_entity, intermediates, now)?;
        if self.is_allowed(end_entity) {
            return Ok(verified);
        }
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.issued.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.issued.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.issued.supported_verify_schemes()
    }
}

/// When the first certificate of a chain's file ends, in seconds since 1970: from then on nobody takes the chain.
pub fn first_end(chain: &Path) -> Option<i64> {
    ends(chain).into_iter().min()
}

/// When the last certificate of an authorities' file ends: from then on it proves nobody. Before, one may end that
/// another has taken the place of.
pub fn last_end(authorities: &Path) -> Option<i64> {
    ends(authorities).into_iter().max()
}

fn ends(path: &Path) -> Vec<i64> {
    let end = |certificate: &CertificateDer<'_>| {
        let certificate = Certificate::from_der(certificate).ok()?;
        let end = certificate.tbs_certificate.validity.not_after.to_unix_duration();
        i64::try_from(end.as_secs()).ok()
    };
    certificates(path).unwrap_or_default().iter().filter_map(end).collect()
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let pem = read(path)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    certificates
        .ok()
        .filter(|certificates| !certificates.is_empty())
        .ok_or_else(|| Error::Pem { path: path.to_owned(), what: "certificate" })
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    let pem = zeroize::Zeroizing::new(read(path)?);
    PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|_| Error::Pem { path: path.to_owned(), what: "private key" })
}
