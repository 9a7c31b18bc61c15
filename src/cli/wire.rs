//! A request as exactly the bytes that somebody wants to send, and what came back byte for byte: for tools that play
//! Alipay+ and must also send what no HTTP library would.
//!
//! It blocks: a tool that sends one request after the other, or some at once from threads, needs no more.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream, ToSocketAddrs as _},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use http::Uri;
use rustls::{ClientConnection, StreamOwned};
use rustls_pki_types::ServerName;
use serde_json::Value;

use super::{Usage, exchange};
use crate::bridge::{
    keys::PrivateKey,
    signature::{self, SignatureHeader},
};

/// Longest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

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
    tls: Option<(Arc<rustls::ClientConfig>, ServerName<'static>)>,
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
        let set = || socket.set_nodelay(true);
        set().map_err(NoAnswer::Connect)?;
        let mut socket = Timed { socket, until: Instant::now() + wait };
        let wire = match &self.tls {
            None => Wire::Plain(socket),
            Some((config, name)) => {
                let mut tls = ClientConnection::new(Arc::clone(config), name.clone())
                    .map_err(|error| NoAnswer::Connect(io::Error::other(error)))?;
                while tls.is_handshaking() {
                    tls.complete_io(&mut socket).map_err(NoAnswer::Connect)?;
                }
                Wire::Tls(Box::new(StreamOwned::new(tls, socket)))
            }
        };
        Ok(Connection { wire, read: Vec::new(), wait })
    }
}

/// A socket that ends in time: also where TLS or a long text takes many reads or writes.
struct Timed {
    socket: TcpStream,
    until: Instant,
}

impl Timed {
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }
}

impl Read for Timed {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(self.left()?)?;
        self.socket.read(into)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(self.left()?)?;
        self.socket.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}

enum Wire {
    Plain(Timed),
    Tls(Box<StreamOwned<ClientConnection, Timed>>),
}

/// A connection, of which several requests may be asked.
pub(super) struct Connection {
    wire: Wire,
    /// Read, and not of an answer yet.
    read: Vec<u8>,
    /// How long a peer may take to take what is sent.
    wait: Duration,
}

impl Connection {
    fn timed(&mut self) -> &mut Timed {
        match &mut self.wire {
            Wire::Plain(socket) => socket,
            Wire::Tls(stream) => &mut stream.sock,
        }
    }

    /// Sends bytes. A peer that closed meanwhile is seen when its answer is read.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        self.timed().until = Instant::now() + self.wait;
        let wire: &mut dyn Write = match &mut self.wire {
            Wire::Plain(socket) => socket,
            Wire::Tls(stream) => stream,
        };
        drop(wire.write_all(bytes).and_then(|()| wire.flush()));
    }

    /// Reads more, until then; how much.
    fn more(&mut self, until: Instant, wait: Duration) -> Result<usize, NoAnswer> {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(NoAnswer::TimedOut(wait));
        }
        let mut bytes = [0; 16 * 1024];
        self.timed().until = until;
        let read = match &mut self.wire {
            Wire::Plain(socket) => socket.read(&mut bytes),
            Wire::Tls(stream) => stream.read(&mut bytes),
        };
        match read {
            Ok(length) => {
                self.read.extend_from_slice(&bytes[..length]);
                Ok(length)
            }
            Err(error)
                if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) =>
            {
                Err(NoAnswer::TimedOut(wait))
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => self.more(until, wait),
            // a reset, or TLS without its goodbye
            Err(_) => Err(NoAnswer::Ended("without an answer")),
        }
    }

    /// The next answer; without a body, where the request was a HEAD.
    pub(super) fn answer(&mut self, with_body: bool, wait: Duration) -> Result<Answer, NoAnswer> {
        let until = Instant::now() + wait;
        loop {
            let answer = self.one(with_body, until, wait)?;
            // 100 Continue and its like
            if answer.status >= 200 {
                return Ok(answer);
            }
        }
    }

    fn one(&mut self, with_body: bool, until: Instant, wait: Duration) -> Result<Answer, NoAnswer> {
        let end = loop {
            if let Some(at) = self.read.windows(4).position(|window| window == b"\r\n\r\n") {
                break at;
            }
            self.bounded()?;
            if self.more(until, wait)? == 0 {
                let began = !self.read.is_empty();
                return Err(NoAnswer::Ended(if began {
                    "amid a head"
                } else {
                    "without an answer"
                }));
            }
        };
        let head: Vec<u8> = self.read.drain(..end + 4).collect();
        let head = String::from_utf8_lossy(&head[..end]).into_owned();
        let mut lines = head.split("\r\n");
        let status_line = lines.next().unwrap_or_default().to_owned();
        let status = status_line.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1));
        let status = status.and_then(|status| status.parse::<u16>().ok());
        let status = status.ok_or(NoAnswer::NotHttp("no status line"))?;
        let mut headers = Vec::new();
        for line in lines {
            let (name, value) =
                line.split_once(':').ok_or(NoAnswer::NotHttp("a header line without a colon"))?;
            headers.push((name.to_owned(), value.trim_matches([' ', '\t']).to_owned()));
        }
        let mut answer = Answer { status_line, status, headers, body: Vec::new(), took: wait };
        if with_body && status >= 200 && !matches!(status, 204 | 304) {
            answer.body = self.body(&answer, until, wait)?;
        }
        answer.took = wait.saturating_sub(until.saturating_duration_since(Instant::now()));
        Ok(answer)
    }

    fn bounded(&self) -> Result<(), NoAnswer> {
        if self.read.len() > ANSWER_BYTES_MAX {
            return Err(NoAnswer::NotHttp("longer than a megabyte"));
        }
        Ok(())
    }

    fn body(
        &mut self,
        answer: &Answer,
        until: Instant,
        wait: Duration,
    ) -> Result<Vec<u8>, NoAnswer> {
        let codings = answer.values("transfer-encoding");
        if codings.last().is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
            return self.chunks(until, wait);
        }
        let Some(length) = answer.values("content-length").first().copied().map(str::to_owned)
        else {
            // to the connection's end
            while self.more(until, wait)? > 0 {
                self.bounded()?;
            }
            return Ok(std::mem::take(&mut self.read));
        };
        let length: usize = length.parse().map_err(|_| NoAnswer::NotHttp("content-length"))?;
        if length > ANSWER_BYTES_MAX {
            return Err(NoAnswer::NotHttp("longer than a megabyte"));
        }
        self.fill(length, until, wait)?;
        Ok(self.read.drain(..length).collect())
    }

    fn fill(&mut self, length: usize, until: Instant, wait: Duration) -> Result<(), NoAnswer> {
        while self.read.len() < length {
            if self.more(until, wait)? == 0 {
                return Err(NoAnswer::Ended("amid a body"));
            }
        }
        Ok(())
    }

    fn chunks(&mut self, until: Instant, wait: Duration) -> Result<Vec<u8>, NoAnswer> {
        let mut body = Vec::new();
        loop {
            let end = loop {
                if let Some(at) = self.read.windows(2).position(|window| window == b"\r\n") {
                    break at;
                }
                self.bounded()?;
                self.fill(self.read.len() + 1, until, wait)?;
            };
            let line: Vec<u8> = self.read.drain(..end + 2).collect();
            let size = String::from_utf8_lossy(&line[..end]).into_owned();
            let size = size.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(size, 16).map_err(|_| NoAnswer::NotHttp("a chunk"))?;
            if size.saturating_add(body.len()) > ANSWER_BYTES_MAX {
                return Err(NoAnswer::NotHttp("longer than a megabyte"));
            }
            self.fill(size + 2, until, wait)?;
            body.extend(self.read.drain(..size));
            self.read.drain(..2);
            if size == 0 {
                return Ok(body);
            }
        }
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
