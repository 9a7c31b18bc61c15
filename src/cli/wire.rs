//! A request as exactly the bytes that somebody wants to send, and what came back byte for byte: for tools that play
//! Alipay+ and must also send what no HTTP library would.
//!
//! It blocks: a tool that sends one request after the other, or some at once from threads, needs no more.

mod connection;

use std::{
    io,
    net::{SocketAddr, TcpStream, ToSocketAddrs as _},
    path::Path,
    time::Duration,
};

use http::Uri;
use rustls_pki_types::ServerName;
use serde_json::Value;

pub(super) use self::connection::Connection;
use self::connection::Tls;

use super::{Usage, exchange};
use crate::bridge::{
    keys::PrivateKey,
    signature::{self, SignatureHeader},
};

/// Where the wallet is.
#[derive(Clone)]
pub(super) struct Endpoint {
    addresses: Vec<SocketAddr>,
    /// `Host` of a request.
    pub(super) host: String,
    /// `http://host` or `https://host`, for a target in absolute form.
    pub(super) origin: String,
    /// What stands before Alipay+'s paths; without a `/` at its end.
    pub(super) prefix: String,
    tls: Option<Tls>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoAnswer {
    /// Nobody is there.
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    /// It took longer.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// The peer closed, or the connection broke, before an answer was whole.
    #[error("the connection ended {0}")]
    Ended(&'static str),
    /// What came is not HTTP.
    #[error("what came back is not HTTP: {0}")]
    NotHttp(&'static str),
}

impl Endpoint {
    /// From `http://host/prefix` or `https://host/prefix`.
    pub(super) fn of(url: &Uri, ca_file: Option<&Path>) -> anyhow::Result<Self> {
        let bad = |what: &str| Usage(format!("--url {url}: {what}"));
        let tls = match url.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            Some(_) | None => {
                return Err(bad("expected http://host/prefix or https://host/prefix").into());
            }
        };
        let (Some(authority), Some(host)) = (url.authority(), url.host()) else {
            return Err(bad("has no host").into());
        };
        if url.query().is_some() || authority.as_str().contains('@') {
            return Err(bad("expected no query and no user").into());
        }
        let name = host.trim_start_matches('[').trim_end_matches(']');
        let port = url.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let addresses = (name, port).to_socket_addrs().map(Iterator::collect::<Vec<_>>);
        let addresses =
            addresses.map_err(|error| bad(&format!("its host is not found: {error}")))?;
        let tls = if tls {
            let name = ServerName::try_from(name.to_owned())
                .map_err(|_| bad("its host is no name of a server"))?;
            let config = exchange::tls(ca_file).map_err(|error| Usage(format!("{error:#}")))?;
            Some((config, name))
        } else {
            None
        };
        let scheme = if tls.is_some() { "https" } else { "http" };
        Ok(Self {
            addresses,
            host: authority.as_str().to_owned(),
            origin: format!("{scheme}://{authority}"),
            prefix: url.path().trim_end_matches('/').to_owned(),
            tls,
        })
    }

    /// Whether it is on this machine.
    pub(super) fn is_loopback(&self) -> bool {
        self.addresses.iter().all(|address| address.ip().is_loopback())
    }

    /// A new connection.
    pub(super) fn connect(&self, wait: Duration) -> Result<Connection, NoAnswer> {
        let mut failed = io::Error::from(io::ErrorKind::AddrNotAvailable);
        let connected = self.addresses.iter().find_map(|address| {
            TcpStream::connect_timeout(address, wait).map_err(|error| failed = error).ok()
        });
        let Some(socket) = connected else { return Err(NoAnswer::Connect(failed)) };
        socket.set_nodelay(true).map_err(NoAnswer::Connect)?;
        Connection::over(socket, self.tls.as_ref(), wait)
    }
}

/// What came back.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status_line: String,
    pub(super) status: u16,
    /// In order and in their own case.
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    pub(super) took: Duration,
}

impl Answer {
    /// The values of a header, its name in any case.
    pub(super) fn values(&self, name: &str) -> Vec<&str> {
        let named = self.headers.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_str()).collect()
    }

    /// The first value of a header.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.values(name).first().copied()
    }

    /// The body.
    pub(super) fn json(&self) -> Option<Value> {
        serde_json::from_slice(&self.body).ok()
    }

    /// A text of `result`.
    pub(super) fn result(&self, field: &str) -> Option<String> {
        Some(self.json()?.get("result")?.get(field)?.as_str()?.to_owned())
    }

    /// As a person reads it.
    pub(super) fn text(&self) -> String {
        let mut text = format!("{}\n", self.status_line);
        for (name, value) in &self.headers {
            text.extend([format!("{name}: {value}\n")]);
        }
        format!("{}\n{}", up_to(HEAD_MOST, text.as_bytes()), shortened(&self.body))
    }
}

/// Most of an answer's head that is shown, in bytes.
const HEAD_MOST: usize = 8_192;

/// Bytes as a person may read them: not all of a long body, and nothing that steers a terminal.
pub(super) fn shortened(bytes: &[u8]) -> String {
    up_to(1_500, bytes)
}

/// The same in one line.
pub(super) fn in_a_line(text: &str) -> String {
    shortened(text.as_bytes()).replace('\n', "\\n")
}

fn up_to(most: usize, bytes: &[u8]) -> String {
    let visible = |c: char| match c {
        '\n' | '\t' => c.to_string(),
        '\r' => "\\r".to_owned(),
        // marks that turn the direction of writing are no control characters to Unicode
        c if c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') =>
        {
            format!("\\u{{{:x}}}", u32::from(c))
        }
        c => c.to_string(),
    };
    let shown = &bytes[..bytes.len().min(most)];
    let text: String = String::from_utf8_lossy(shown).chars().map(visible).collect();
    if bytes.len() > most {
        return format!("{text}… ({} bytes in all)", bytes.len());
    }
    text
}

/// How a body's end is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// Content-Length.
    Length,
    /// `Transfer-Encoding: chunked`, in chunks of so many bytes.
    Chunked(usize),
    /// Not at all, or by further lines.
    Unsaid,
}

/// A request in the making. What is not changed is right, and the signature is made last, over what is there then.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) target: String,
    /// What goes over the wire as target, where that is not what is signed.
    pub(super) sent_target: Option<String>,
    pub(super) version: &'static str,
    pub(super) hosts: Vec<String>,
    pub(super) content_types: Vec<String>,
    pub(super) client_ids: Vec<String>,
    pub(super) times: Vec<String>,
    /// These instead of the right one.
    pub(super) signatures: Option<Vec<String>>,
    pub(super) key: PrivateKey,
    pub(super) key_version: Option<String>,
    /// Further lines as they are, each without its end.
    pub(super) lines: Vec<String>,
    pub(super) framing: Framing,
    pub(super) body: Vec<u8>,
}

impl Request {
    pub(super) fn target(mut self, target: impl Into<String>) -> Self {
        self.target = target.into();
        self
    }

    /// Path and query as they go over the wire, if something else is signed.
    pub(super) fn sent_target(mut self, target: impl Into<String>) -> Self {
        self.sent_target = Some(target.into());
        self
    }

    pub(super) fn method(mut self, method: &str) -> Self {
        method.clone_into(&mut self.method);
        self
    }

    pub(super) fn content_types(mut self, values: &[&str]) -> Self {
        self.content_types = texts(values);
        self
    }

    pub(super) fn client_ids(mut self, values: &[&str]) -> Self {
        self.client_ids = texts(values);
        self
    }

    pub(super) fn times(mut self, values: &[&str]) -> Self {
        self.times = texts(values);
        self
    }

    pub(super) fn signatures(mut self, values: &[&str]) -> Self {
        self.signatures = Some(texts(values));
        self
    }

    /// The signature as it is now, whatever is changed from here on.
    pub(super) fn sealed(mut self) -> Self {
        self.signatures = Some(vec![self.signature()]);
        self
    }

    pub(super) fn key(mut self, key: &PrivateKey) -> Self {
        self.key = key.clone();
        self
    }

    pub(super) fn key_version(mut self, version: Option<&str>) -> Self {
        self.key_version = version.map(str::to_owned);
        self
    }

    /// One more line of the head.
    pub(super) fn line(mut self, line: impl Into<String>) -> Self {
        self.lines.push(line.into());
        self
    }

    pub(super) fn framing(mut self, framing: Framing) -> Self {
        self.framing = framing;
        self
    }

    pub(super) fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// The Client-Id that is signed.
    pub(super) fn client_id(&self) -> &str {
        self.client_ids.first().map_or("", String::as_str)
    }

    /// What is signed.
    pub(super) fn signed_string(&self) -> Vec<u8> {
        let time = self.times.first().map_or("", String::as_str);
        signature::signed_string(&self.method, &self.target, self.client_id(), time, &self.body)
    }

    /// The signature over what is there, as bytes.
    pub(super) fn signature_bytes(&self) -> Vec<u8> {
        self.key.sign(&self.signed_string()).unwrap_or_default()
    }

    /// The right Signature header.
    pub(super) fn signature(&self) -> String {
        let header = |version: &str| signature::header(version, &self.signature_bytes());
        match &self.key_version {
            Some(version) => header(version),
            None => header("").replace("keyVersion=,", ""),
        }
    }

    /// The head, to its empty line.
    pub(super) fn head(&self) -> Vec<u8> {
        let target = self.sent_target.as_ref().unwrap_or(&self.target);
        let mut head = format!("{} {target} {}\r\n", self.method, self.version);
        let signatures = self.signatures.clone().unwrap_or_else(|| vec![self.signature()]);
        for (name, values) in [
            ("Host", &self.hosts),
            ("Content-Type", &self.content_types),
            ("Client-Id", &self.client_ids),
            ("Request-Time", &self.times),
            ("Signature", &signatures),
        ] {
            for value in values {
                head.extend([format!("{name}: {value}\r\n")]);
            }
        }
        for line in &self.lines {
            head.extend([format!("{line}\r\n")]);
        }
        match self.framing {
            Framing::Length => head.extend([format!("Content-Length: {}\r\n", self.body.len())]),
            Framing::Chunked(_) => head.push_str("Transfer-Encoding: chunked\r\n"),
            Framing::Unsaid => {}
        }
        head.push_str("\r\n");
        head.into_bytes()
    }

    /// All of it.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.head();
        let Framing::Chunked(size) = self.framing else {
            bytes.extend_from_slice(&self.body);
            return bytes;
        };
        for chunk in self.body.chunks(size) {
            bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            bytes.extend_from_slice(chunk);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"0\r\n\r\n");
        bytes
    }

    /// Whether the answer to it has a body.
    pub(super) fn has_answer_body(&self) -> bool {
        self.method != "HEAD"
    }

    /// What an answer's signature must be over.
    pub(super) fn answered_string(&self, answer: &Answer) -> Option<Vec<u8>> {
        let (client, time) = (self.client_id(), answer.header("response-time")?);
        Some(signature::signed_string(&self.method, &self.target, client, time, &answer.body))
    }
}

/// The signature of an answer, read as lavishly as any client reads it.
pub(super) fn signature_of(answer: &Answer) -> Option<SignatureHeader> {
    SignatureHeader::parse(answer.header("signature")?).ok()
}

fn texts(values: &[&str]) -> Vec<String> {
    values.iter().map(|&value| value.to_owned()).collect()
}
