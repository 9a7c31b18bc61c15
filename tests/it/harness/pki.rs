//! Certificates made for one test: an authority, and what it issues.

use std::{
    fs,
    io::{self, Read as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::Arc,
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType, date_time_ymd,
};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, IpAddr, PrivateKeyDer, ServerName, pem::PemObject as _};

use super::PATIENCE;

/// An authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate.
    pub pem: String,
}

/// A chain and its key, PEM.
#[derive(Clone, Debug)]
pub struct Issued {
    pub cert: String,
    pub key: String,
}

/// When a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Valid {
    Now,
    /// No more.
    Expired,
    /// Not yet.
    Future,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec![]).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate for these names: those with a colon are URIs, the others DNS names or addresses.
    pub fn issue(&self, names: &[&str]) -> Issued {
        self.issue_valid(names, Valid::Now)
    }

    pub fn issue_valid(&self, names: &[&str], valid: Valid) -> Issued {
        let key = KeyPair::generate().expect("a key");
        let (uris, others): (Vec<&str>, Vec<&str>) =
            names.iter().partition(|name| name.contains("://"));
        let others: Vec<String> = others.into_iter().map(str::to_owned).collect();
        let mut params = CertificateParams::new(others).expect("names");
        for uri in uris {
            params.subject_alt_names.push(SanType::URI(uri.try_into().expect("a URI")));
        }
        match valid {
            Valid::Now => {}
            Valid::Expired => params.not_after = date_time_ymd(2020, 1, 1),
            Valid::Future => params.not_before = date_time_ymd(2100, 1, 1),
        }
        let cert = params.signed_by(&key, &self.issuer).expect("a certificate").pem();
        Issued { cert, key: key.serialize_pem() }
    }
}

impl Issued {
    /// Writes `NAME.pem` and `NAME.key`.
    pub fn write(&self, dir: &Path, name: &str) {
        fs::write(dir.join(format!("{name}.pem")), &self.cert).expect("a writable dir");
        fs::write(dir.join(format!("{name}.key")), &self.key).expect("a writable dir");
    }
}

/// A client's set-up: whom it trusts, what it shows, what it wants to speak.
pub fn tls(ca: &str, issued: Option<&Issued>, protocol: &str) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    let builder = builder.with_root_certificates(roots);
    let mut config = match issued {
        None => builder.with_no_client_auth(),
        Some(issued) => {
            let chain = vec![CertificateDer::from_pem_slice(issued.cert.as_bytes()).unwrap()];
            let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    };
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    config
}

/// A TLS connection that the service has taken, and the certificate it showed: over HTTP/2 it speaks first. Otherwise the
/// error has its alert.
pub fn handshake(
    address: SocketAddr,
    ca: &str,
    issued: Option<&Issued>,
) -> io::Result<(StreamOwned<ClientConnection, TcpStream>, Vec<u8>)> {
    let config = tls(ca, issued, "h2");
    let name = ServerName::IpAddress(IpAddr::from(address.ip()));
    let client = ClientConnection::new(Arc::new(config), name).unwrap();
    let socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut stream = StreamOwned::new(client, socket);
    // nothing is sent, so that no reset overtakes the alert
    stream.read_exact(&mut [0; 9])?;
    let shown = stream.conn.peer_certificates().and_then(<[_]>::first).unwrap().to_vec();
    Ok((stream, shown))
}
