//! Two tiers: certificates by which a bridge and its cores know each other, and the whole suite through such a pair.
//!
//! With `ALIPAYPLUS_CANCEL_TESTS_ROLES=pair` every usual service is two processes over mTLS, `--role core` and
//! `--role bridge`, so that the suite sees what Alipay+ and the wallet's services see. Tests about one process, or with
//! connections of their own in plain text, are named in `.ci/run`.

use std::{fs, path::Path, sync::OnceLock};

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

/// Whether a usual service is a pair.
pub fn is_usual() -> bool {
    std::env::var("ALIPAYPLUS_CANCEL_TESTS_ROLES").is_ok_and(|roles| roles == "pair")
}

/// The name in a bridge's certificate.
pub const BRIDGE: &str = "bridge.dmz.wallet.example";
/// The name in the certificate of the wallet's services.
pub const WALLET: &str = "core.wallet.example";

/// An authority, and what it issued.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub ca_pem: String,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec![]).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_pem = params.self_signed(&key).expect("a certificate").pem();
        Self { issuer: Issuer::new(params, key), ca_pem }
    }

    /// The one that pairs of the suite share.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Authority> = OnceLock::new();
        SHARED.get_or_init(Self::new)
    }

    /// A certificate and its key, PEM.
    pub fn issue(&self, names: &[&str]) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let names = names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let mut params = CertificateParams::new(names).expect("names");
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    }

    /// Writes `NAME.ca`, `NAME.crt` and `NAME.key`.
    pub fn write(&self, dir: &Path, name: &str, names: &[&str]) {
        let (certificate, key) = self.issue(names);
        for (ending, pem) in [("ca", &self.ca_pem), ("crt", &certificate), ("key", &key)] {
            fs::write(dir.join(format!("{name}.{ending}")), pem).expect("a writable folder");
        }
    }
}

/// The names by which a core on this machine is called.
pub const CORE: [&str; 2] = ["127.0.0.1", "localhost"];

/// A core's `--set` for files of [`Authority::write`] in this folder.
pub fn core_settings(dir: &Path, name: &str) -> Vec<String> {
    let file = |ending: &str| dir.join(format!("{name}.{ending}")).display().to_string();
    vec![
        format!("grpc.tls.cert_file={}", file("crt")),
        format!("grpc.tls.key_file={}", file("key")),
        format!("grpc.tls.client_ca_file={}", file("ca")),
    ]
}

/// Who may call the core of a pair, and that the bridge's word for Alipay+'s client is believed.
pub fn callers() -> Vec<String> {
    vec![
        format!("grpc.callers.0.sans={BRIDGE}"),
        "grpc.callers.0.methods=CancelService/*".to_owned(),
        "grpc.callers.0.bridge=true".to_owned(),
        format!("grpc.callers.1.sans={WALLET}"),
        "grpc.callers.1.methods=*".to_owned(),
    ]
}

/// A bridge's `--set` for such files, and the cores that it calls.
pub fn bridge_settings(dir: &Path, name: &str, cores: &str) -> Vec<String> {
    let file = |ending: &str| dir.join(format!("{name}.{ending}")).display().to_string();
    vec![
        format!("bridge.core={cores}"),
        format!("bridge.core_tls.ca_file={}", file("ca")),
        format!("bridge.core_tls.cert_file={}", file("crt")),
        format!("bridge.core_tls.key_file={}", file("key")),
    ]
}

/// The certificate and the key of the wallet's services.
fn wallet() -> &'static (String, String) {
    static IDENTITY: OnceLock<(String, String)> = OnceLock::new();
    IDENTITY.get_or_init(|| Authority::shared().issue(&[WALLET]))
}

/// The same as files for a command: `--ca-file` and so on.
pub fn wallet_arguments(dir: &Path) -> Vec<String> {
    let (certificate, key) = wallet();
    let texts = [("ca", &Authority::shared().ca_pem), ("cert", certificate), ("key", key)];
    let file = |(name, pem): (&str, &String)| {
        let file = dir.join(format!("pair-wallet.{name}"));
        fs::write(&file, pem).expect("a writable folder");
        [format!("--{name}-file"), file.display().to_string()]
    };
    texts.into_iter().flat_map(file).collect()
}

/// The wallet's services before the core of a pair.
pub fn wallet_tls() -> ClientTlsConfig {
    let (authority, (certificate, key)) = (Authority::shared(), wallet());
    ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(&authority.ca_pem))
        .identity(Identity::from_pem(certificate, key))
}
