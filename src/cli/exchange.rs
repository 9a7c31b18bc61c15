//! One exchange as Alipay+ makes it: sign, send, verify the answer.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{HeaderMap, Request, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time,
};
use tokio_rustls::TlsConnector;

use crate::{
    bridge::{
        keys::{PrivateKey, PublicKey},
        request_time,
        signature::{self, SignatureHeader},
    },
    domain::time::Timestamp,
};

/// Longest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// Who asks whom.
pub(super) struct Caller {
    pub(super) client_id: String,
    pub(super) key: PrivateKey,
    pub(super) key_version: String,
    /// The wallet's key, that its answers are verified with.
    pub(super) peer_key: Option<PublicKey>,
    /// An authority to trust beside the system's.
    pub(super) ca_file: Option<PathBuf>,
    pub(super) timeout: Duration,
}

/// A request ready to be sent.
pub(super) struct Signed {
    pub(super) url: Uri,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: String,
}

/// What came back.
pub(super) struct Answered {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: String,
    pub(super) signature: Verdict,
}

/// What the answer's signature is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The wallet's, over this very answer.
    Verified,
    /// There is none.
    Missing,
    /// It is not the wallet's, or not over this answer.
    Wrong,
    /// No key of the wallet's is given.
    Unchecked,
}

impl Verdict {
    pub(super) const fn text(self) -> &'static str {
        match self {
            Self::Verified => "verified",
            Self::Missing => "missing: the answer is not signed",
            Self::Wrong => "WRONG: it does not verify with the wallet's key",
            Self::Unchecked => "not checked: give the wallet's public key with --peer-key",
        }
    }
}

impl Caller {
    /// Signs a body for a URL, at this moment.
    pub(super) fn sign(&self, url: &Uri, body: String) -> anyhow::Result<Signed> {
        let now = Timestamp { unix_ms: jiff::Timestamp::now().as_millisecond() };
        let time = request_time::response_time(now);
        let target = target(url);
        let string =
            signature::signed_string("POST", target, &self.client_id, &time, body.as_bytes());
        let signature = self.key.sign(&string).context("the request could not be signed")?;
        let headers = vec![
            ("content-type", "application/json; charset=UTF-8".to_owned()),
            ("client-id", self.client_id.clone()),
            ("request-time", time),
            ("signature", signature::header(&self.key_version, &signature)),
        ];
        Ok(Signed { url: url.clone(), headers, body })
    }

    /// Sends it and verifies the answer.
    pub(super) async fn send(&self, signed: &Signed) -> anyhow::Result<Answered> {
        let exchange = self.exchange(signed);
        match time::timeout(self.timeout, exchange).await {
            Ok(answered) => answered,
            Err(_) => bail!(
                "no answer within {:?}; Alipay+ would send the same request again",
                self.timeout
            ),
        }
    }

    async fn exchange(&self, signed: &Signed) -> anyhow::Result<Answered> {
        let url = &signed.url;
        let host = url.host().context("the URL has no host")?;
        let tls = url.scheme_str() == Some("https");
        let port = url.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let name = host.trim_start_matches('[').trim_end_matches(']');
        let socket = TcpStream::connect((name, port)).await.with_context(|| {
            format!("cannot connect to {host}:{port}; does the service run there?")
        })?;
        if !tls {
            return self.speak(socket, signed).await;
        }
        let name = ServerName::try_from(name.to_owned())
            .context("the URL's host is no name of a server")?;
        let stream = TlsConnector::from(self::tls(self.ca_file.as_deref())?)
            .connect(name, socket)
            .await
            .context("TLS failed")?;
        self.speak(stream, signed).await
    }

    async fn speak<I>(&self, io: I, signed: &Signed) -> anyhow::Result<Answered>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await?;
        let connection = tokio::spawn(connection);
        let authority = signed.url.authority().context("the URL has no host")?.as_str();
        let mut request = Request::post(target(&signed.url)).header("host", authority);
        for (name, value) in &signed.headers {
            request = request.header(*name, value);
        }
        let request = request.body(Full::new(Bytes::from(signed.body.clone())))?;
        let response =
            sender.send_request(request).await.context("the connection ended without an answer")?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
        let body = body
            .map_err(|error| anyhow::anyhow!(error))
            .context("the answer broke off")?
            .to_bytes();
        connection.abort();

        let verdict = self.verdict(signed, &parts.headers, &body);
        let text =
            |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        Ok(Answered {
            status: parts.status.as_u16(),
            headers: parts
                .headers
                .iter()
                .map(|(name, value)| (name.to_string(), text(value)))
                .collect(),
            body: String::from_utf8_lossy(&body).into_owned(),
            signature: verdict,
        })
    }

    fn verdict(&self, signed: &Signed, headers: &HeaderMap, body: &[u8]) -> Verdict {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let Some(header) = text("signature") else { return Verdict::Missing };
        let Some(key) = &self.peer_key else { return Verdict::Unchecked };
        let (Some(time), Some(client), Ok(header)) =
            (text("response-time"), text("client-id"), SignatureHeader::parse(header))
        else {
            return Verdict::Wrong;
        };
        let string =
            signature::signed_string("POST", target(&signed.url), &self.client_id, time, body);
        let ours = client == self.client_id;
        if ours && key.verify(&string, &header.signature) {
            Verdict::Verified
        } else {
            Verdict::Wrong
        }
    }
}

/// How TLS is spoken: with the system's authorities, and those of a file.
pub(super) fn tls(ca_file: Option<&Path>) -> anyhow::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(file) = ca_file {
        for certificate in CertificateDer::pem_file_iter(file)
            .with_context(|| format!("cannot read {}", file.display()))?
        {
            roots.add(certificate.with_context(|| format!("{} is not PEM", file.display()))?)?;
        }
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let builder = builder.with_safe_default_protocol_versions()?.with_root_certificates(roots);
    Ok(Arc::new(builder.with_no_client_auth()))
}

/// Path and query as they go over the wire.
fn target(url: &Uri) -> &str {
    url.path_and_query().map_or("/", |target| target.as_str())
}

impl Signed {
    /// The request as a person reads it.
    pub(super) fn text(&self, body: &str) -> String {
        let headers = self.headers.iter().map(|(name, value)| format!("{name}: {value}\n"));
        format!("POST {} HTTP/1.1\n{}\n{body}\n", target(&self.url), headers.collect::<String>())
    }

    /// The request as a curl command.
    pub(super) fn curl(&self) -> String {
        let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
        let headers = self
            .headers
            .iter()
            .map(|(name, value)| format!(" \\\n  -H {}", quoted(&format!("{name}: {value}"))));
        let url = quoted(&self.url.to_string());
        format!(
            "curl -i {url}{} \\\n  --data-binary {}",
            headers.collect::<String>(),
            quoted(&self.body)
        )
    }
}

impl Answered {
    /// The answer as a person reads it.
    pub(super) fn text(&self) -> String {
        let headers = self.headers.iter().map(|(name, value)| format!("{name}: {value}\n"));
        format!("HTTP/1.1 {}\n{}\n{}\n", self.status, headers.collect::<String>(), self.body)
    }

    /// `result.resultStatus`, if the answer has one.
    pub(super) fn result_status(&self) -> Option<String> {
        let json: serde_json::Value = serde_json::from_str(&self.body).ok()?;
        Some(json.pointer("/result/resultStatus")?.as_str()?.to_owned())
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The version of the key that signed it, as it says.
    pub(super) fn key_version(&self) -> Option<String> {
        let header = SignatureHeader::parse(self.header("signature")?).ok()?;
        header.key_version.map(Into::into)
    }

    /// Whether this key signed it, as the answer to that request.
    pub(super) fn is_signed_by(&self, key: &PublicKey, signed: &Signed, client: &str) -> bool {
        let header = self.header("signature").map(SignatureHeader::parse);
        let (Some(Ok(header)), Some(time)) = (header, self.header("response-time")) else {
            return false;
        };
        let (target, body) = (target(&signed.url), self.body.as_bytes());
        let string = signature::signed_string("POST", target, client, time, body);
        self.header("client-id") == Some(client) && key.verify(&string, &header.signature)
    }

    /// Done, and proven to be the wallet's word.
    pub(super) fn succeeded(&self) -> bool {
        self.signature == Verdict::Verified && self.result_status().as_deref() == Some("S")
    }
}
