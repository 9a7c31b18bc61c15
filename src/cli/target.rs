//! Whom a tool that plays Alipay+ plays it against, and with which keys: from flags, or from what `sandbox` made.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use anyhow::Context as _;
use http::Uri;
use serde_json::json;
use zeroize::Zeroizing;

use super::{
    Usage, sandbox,
    wire::{Endpoint, Framing, Request},
};
use crate::{
    bridge::{
        keys::{PrivateKey, PublicKey},
        request_time,
    },
    domain::time::Timestamp,
    grpc::{
        importer::Tls,
        recorder::{Payment, Recorder, Token},
    },
};

/// cancelPayment's path below the prefix.
pub(super) const CANCEL_PAYMENT: &str = "/v1/payments/cancelPayment";
/// cancelToken's.
pub(super) const CANCEL_TOKEN: &str = "/v1/authorizations/cancelToken";

/// Whom to play Alipay+ against.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct TargetArgs {
    /// The endpoint: what stands before /v1/payments/cancelPayment, as http://127.0.0.1:8080/aps/api
    #[arg(long)]
    url: Option<Uri>,
    /// Take whatever is not given from the sandbox's folder; without a DIR, from .sandbox
    #[arg(long, value_name = "DIR", num_args = 0..=1, default_missing_value = ".sandbox")]
    sandbox: Option<PathBuf>,
    /// The Client-Id to ask with
    #[arg(long)]
    client_id: Option<String>,
    /// Alipay+'s private key, which signs requests: PEM or bare base64. A key of a test, never a real one
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// keyVersion of --key
    #[arg(long, value_name = "VERSION", default_value = "1")]
    key_version: String,
    /// The wallet's public key, which verifies answers: PEM or bare base64
    #[arg(long, value_name = "FILE")]
    peer_key: Option<PathBuf>,
    /// The wallet's id
    #[arg(long)]
    psp_id: Option<String>,
    /// The acquirer's id
    #[arg(long)]
    acquirer_id: Option<String>,
    /// A certificate authority to trust beside the system's, PEM
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Where the wallet's own side can record payments and tokens: the gRPC address of an alipayplus-cancel, as
    /// http://127.0.0.1:50051
    #[arg(long, value_name = "URL")]
    wallet_grpc: Option<String>,
    /// With an https --wallet-grpc: the authorities of its certificate, PEM
    #[arg(long, value_name = "FILE", requires = "wallet_grpc")]
    wallet_ca_file: Option<PathBuf>,
    /// With an https --wallet-grpc: our certificate chain, PEM
    #[arg(long, value_name = "FILE", requires = "wallet_key_file")]
    wallet_cert_file: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, value_name = "FILE", requires = "wallet_cert_file")]
    wallet_key_file: Option<PathBuf>,
}

/// A key of Alipay+'s, by the version that the wallet knows it by.
#[derive(Clone)]
pub(super) struct Signer {
    pub(super) key: PrivateKey,
    pub(super) version: String,
}

/// Whom, and with which keys.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) url: Uri,
    pub(super) endpoint: Endpoint,
    pub(super) client_id: String,
    pub(super) signer: Signer,
    /// From the sandbox: the next one, registered beside it.
    pub(super) next: Option<Signer>,
    pub(super) peer_key: PublicKey,
    pub(super) psp: String,
    pub(super) acquirer: String,
    pub(super) recorder: Option<Recorder>,
}

/// Reads a file that a flag names.
pub(super) fn read(flag: &str, file: &Path) -> Result<Zeroizing<Vec<u8>>, Usage> {
    let bytes = fs::read(file).map(Zeroizing::new);
    bytes.map_err(|error| Usage(format!("{flag} {}: {error}", file.display())))
}

/// Reads a key of Alipay+'s.
pub(super) fn signer(flag: &str, file: &Path, version: &str) -> Result<Signer, Usage> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if version.is_empty() || !version.chars().all(plain) {
        return Err(Usage(format!("{flag}-version: expected letters, digits, `_`, `.`, `-`")));
    }
    let key = PrivateKey::parse(read(flag, file)?)
        .map_err(|error| Usage(format!("{flag} {} {error}", file.display())))?;
    Ok(Signer { key, version: version.to_owned() })
}

impl TargetArgs {
    /// That nobody answers, and what to do.
    pub(super) fn nobody(&self, url: &Uri) -> String {
        match &self.sandbox {
            Some(dir) if self.url.is_none() => format!(
                "--sandbox {}: nobody answers at {url}, where it served last; start it with `alipayplus-cancel sandbox`",
                dir.display()
            ),
            Some(_) | None => format!("--url {url}: nobody is there"),
        }
    }

    /// Reads all that they name.
    pub(super) fn target(&self) -> anyhow::Result<Target> {
        let made = self.sandbox.as_deref().map(sandbox::Made::read).transpose()?;
        let made = made.as_ref();
        let missing = |flag: &str| Usage(format!("{flag} is missing; give it, or --sandbox"));
        let url = self.url.clone().or_else(|| made.map(|made| made.url.clone()));
        let url = url.ok_or_else(|| missing("--url"))?;
        let text = |given: &Option<String>, made: Option<&str>, flag| {
            given.clone().or_else(|| made.map(str::to_owned)).ok_or_else(|| missing(flag))
        };
        let client_id = text(&self.client_id, made.map(|made| made.client_id), "--client-id")?;
        let psp = text(&self.psp_id, made.map(|made| made.psp), "--psp-id")?;
        let acquirer = text(&self.acquirer_id, made.map(|made| made.acquirer), "--acquirer-id")?;
        if !client_id.chars().all(|c| c.is_ascii_graphic()) || client_id.is_empty() {
            return Err(Usage("--client-id: expected letters, digits, `_`, `-`".to_owned()).into());
        }
        let file = |given: &Option<PathBuf>, made: Option<&PathBuf>, flag| {
            given.clone().or_else(|| made.cloned()).ok_or_else(|| missing(flag))
        };
        let key = file(&self.key, made.map(|made| &made.key), "--key")?;
        let signer = self::signer("--key", &key, &self.key_version)?;
        let next = match made.and_then(|made| made.next_key.as_ref()) {
            // what the sandbox knows of is no use with another wallet's client
            Some((file, version)) if self.key.is_none() => {
                Some(self::signer("--next-key", file, version)?)
            }
            Some(_) | None => None,
        };
        let peer_key = file(&self.peer_key, made.map(|made| &made.peer_key), "--peer-key")?;
        let peer_key = PublicKey::parse(read("--peer-key", &peer_key)?)
            .map_err(|error| Usage(format!("--peer-key {} {error}", peer_key.display())))?;
        let endpoint = Endpoint::of(&url, self.ca_file.as_deref())?;
        let grpc = self.wallet_grpc.clone();
        let grpc = grpc.or_else(|| made.filter(|_| self.url.is_none())?.grpc.clone());
        let recorder = grpc.map(|grpc| self.recorder(&grpc)).transpose()?;
        Ok(Target { url, endpoint, client_id, signer, next, peer_key, psp, acquirer, recorder })
    }

    fn recorder(&self, url: &str) -> anyhow::Result<Recorder> {
        let tls = match (&self.wallet_ca_file, url.starts_with("https://")) {
            (None, false) => None,
            (Some(ca), true) => {
                let identity =
                    match self.wallet_cert_file.as_ref().zip(self.wallet_key_file.as_ref()) {
                        None => None,
                        Some((cert, key)) => Some((
                            read("--wallet-cert-file", cert)?.to_vec(),
                            read("--wallet-key-file", key)?.to_vec(),
                        )),
                    };
                Some(Tls { ca: read("--wallet-ca-file", ca)?.to_vec(), identity })
            }
            (None, true) | (Some(_), false) => {
                let needed =
                    "--wallet-ca-file belongs to an https --wallet-grpc, and is needed with one";
                return Err(Usage(needed.to_owned()).into());
            }
        };
        let wrong = || Usage(format!("--wallet-grpc {url}: expected http://HOST:PORT"));
        Recorder::new(url, tls).with_context(wrong)
    }
}

/// An id that nobody used before.
pub(super) fn unique(what: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let chance: u64 = rand::random();
    format!("{what}-{chance:016x}-{count}")
}

/// This moment, as Alipay+ writes it.
pub(super) fn request_time() -> String {
    request_time::response_time(Timestamp { unix_ms: jiff::Timestamp::now().as_millisecond() })
}

impl Target {
    /// The path of an API.
    pub(super) fn path(&self, tail: &str) -> String {
        format!("{}{tail}", self.endpoint.prefix)
    }

    /// A request of that API, right in everything.
    pub(super) fn request(&self, tail: &str, body: impl Into<Vec<u8>>) -> Request {
        Request {
            method: "POST".to_owned(),
            target: self.path(tail),
            sent_target: None,
            version: "HTTP/1.1",
            hosts: vec![self.endpoint.host.clone()],
            content_types: vec!["application/json; charset=UTF-8".to_owned()],
            client_ids: vec![self.client_id.clone()],
            times: vec![request_time()],
            signatures: None,
            key: self.signer.key.clone(),
            key_version: Some(self.signer.version.clone()),
            lines: Vec::new(),
            framing: Framing::Length,
            body: body.into(),
        }
    }

    /// cancelPayment's body.
    pub(super) fn payment_body(&self, id: &str) -> String {
        let body =
            json!({ "acquirerId": self.acquirer, "pspId": self.psp, "paymentRequestId": id });
        body.to_string()
    }

    /// cancelToken's.
    pub(super) fn token_body(&self, token: &str) -> String {
        let body = json!({ "pspId": self.psp, "acquirerId": self.acquirer, "accessToken": token });
        body.to_string()
    }

    /// A payment of the wallet's, of 19.99, begun at that moment.
    pub(super) fn new_payment(&self, initiated_at_ms: i64) -> Payment {
        Payment {
            psp: self.psp.clone(),
            acquirer: self.acquirer.clone(),
            id: unique("certify"),
            amount: 1_999,
            currency: "EUR",
            initiated_at_ms,
        }
    }

    /// A token of a new authorization.
    pub(super) fn new_token(&self) -> Token {
        Token {
            psp: self.psp.clone(),
            acquirer: self.acquirer.clone(),
            authorization: unique("certify-consent"),
            token: unique("certify-token"),
            ..Token::default()
        }
    }
}

/// A length of time that a flag gives: seconds, or with a unit.
pub(super) fn length(text: &str) -> Result<Duration, String> {
    let bare = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let length =
        bare.or_else(|| Duration::try_from(text.parse::<jiff::SignedDuration>().ok()?).ok());
    let within =
        |length: &Duration| (Duration::from_millis(50)..=Duration::from_hours(24)).contains(length);
    length.filter(within).ok_or_else(|| {
        "expected seconds, or a length of time up to a day: 8, 0.5, 90s, 2m".to_owned()
    })
}

/// A time as it is told to people.
pub(super) fn seconds(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        return format!("{} ms", time.as_millis());
    }
    format!("{:.1} s", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_is_seconds_or_has_a_unit() {
        for (text, ms) in
            [("8", 8_000), ("0.5", 500), ("90s", 90_000), ("2m", 120_000), ("50ms", 50)]
        {
            assert_eq!(length(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "0", "-1", "inf", "NaN", "soon", "25h", "86401", "0.01"] {
            assert!(length(text).is_err(), "{text}");
        }
    }
}
