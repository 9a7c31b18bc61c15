//! Alipay+ before the JSON front: HTTP/1.1 written by hand, so that a test controls every byte of it.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
};

use alipayplus_cancel::bridge::{
    keys::{PrivateKey, PublicKey},
    signature::{self, SignatureHeader},
};
use serde_json::Value;

use super::{PATIENCE, vectors};

/// One of the two APIs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    CancelPayment,
    CancelToken,
}

impl Api {
    /// Its path below the usual prefix.
    pub const fn path(self) -> &'static str {
        match self {
            Self::CancelPayment => "/aps/api/v1/payments/cancelPayment",
            Self::CancelToken => "/aps/api/v1/authorizations/cancelToken",
        }
    }
}

/// Every code that an answer may have, with its status. Written anew here, from the API pages.
const STATUS_OF: [(&str, &str); 14] = [
    ("SUCCESS", "S"),
    ("ACCESS_DENIED", "F"),
    ("CANCEL_WINDOW_EXCEED", "F"),
    ("INVALID_CLIENT", "F"),
    ("INVALID_SIGNATURE", "F"),
    ("INVALID_TOKEN", "F"),
    ("KEY_NOT_FOUND", "F"),
    ("MEDIA_TYPE_NOT_ACCEPTABLE", "F"),
    ("METHOD_NOT_SUPPORTED", "F"),
    ("NO_INTERFACE_DEF", "F"),
    ("PARAM_ILLEGAL", "F"),
    ("PROCESS_FAIL", "F"),
    ("REQUEST_TRAFFIC_EXCEED_LIMIT", "U"),
    ("UNKNOWN_EXCEPTION", "U"),
];

/// A client of Alipay+'s at an address.
#[derive(Clone, Debug)]
pub struct Json {
    pub address: SocketAddr,
    pub client_id: String,
    pub key_version: String,
    pub key: PrivateKey,
}

impl Json {
    pub fn new(address: SocketAddr, client_id: &str, key_version: &str, key: &PrivateKey) -> Self {
        let (client_id, key_version) = (client_id.to_owned(), key_version.to_owned());
        Self { address, client_id, key_version, key: key.clone() }
    }

    /// A request that is right in everything but its body.
    pub fn request(&self) -> Request {
        Request {
            address: self.address,
            method: "POST".to_owned(),
            target: Api::CancelPayment.path().to_owned(),
            signed_target: None,
            version: "HTTP/1.1".to_owned(),
            hosts: vec!["wallet.example".to_owned()],
            content_types: vec!["application/json; charset=UTF-8".to_owned()],
            client_ids: vec![self.client_id.clone()],
            times: vec!["2025-02-20T08:51:49.09Z".to_owned()],
            signatures: None,
            key_version: Some(self.key_version.clone()),
            key: self.key.clone(),
            headers: Vec::new(),
            framing: Framing::Length,
            body: Vec::new(),
        }
    }

    /// cancelPayment, signed and sent.
    pub fn cancel_payment(&self, psp: &str, acquirer: &str, payment_request: &str) -> Answer {
        let body = payment_body(psp, acquirer, payment_request);
        self.request().api(Api::CancelPayment).body(body).send()
    }

    /// cancelToken, signed and sent.
    pub fn cancel_token(&self, psp: &str, acquirer: &str, token: &str) -> Answer {
        self.request().api(Api::CancelToken).body(token_body(psp, acquirer, token)).send()
    }

    /// A connection of its own.
    pub fn connect(&self) -> Connection {
        Connection::to(self.address)
    }
}

/// cancelPayment's body.
pub fn payment_body(psp: &str, acquirer: &str, payment_request: &str) -> String {
    serde_json::json!({
        "acquirerId": acquirer, "pspId": psp, "paymentRequestId": payment_request,
    })
    .to_string()
}

/// cancelToken's body.
pub fn token_body(psp: &str, acquirer: &str, token: &str) -> String {
    serde_json::json!({ "acquirerId": acquirer, "pspId": psp, "accessToken": token }).to_string()
}

/// How a body's end is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Content-Length.
    Length,
    /// `Transfer-Encoding: chunked`, in chunks of so many bytes.
    Chunked(usize),
    /// Not at all, or by headers that the test adds.
    Unsaid,
}

/// A request in the making. What is not changed is right, and the signature is made last, over what is there then.
#[derive(Clone, Debug)]
pub struct Request {
    pub address: SocketAddr,
    pub method: String,
    pub target: String,
    /// What is signed instead of `target`.
    pub signed_target: Option<String>,
    pub version: String,
    pub hosts: Vec<String>,
    pub content_types: Vec<String>,
    pub client_ids: Vec<String>,
    pub times: Vec<String>,
    /// Instead of the right one.
    pub signatures: Option<Vec<String>>,
    pub key_version: Option<String>,
    pub key: PrivateKey,
    /// Further lines, as they are.
    pub headers: Vec<(String, String)>,
    pub framing: Framing,
    pub body: Vec<u8>,
}

fn texts(values: &[&str]) -> Vec<String> {
    values.iter().map(|&value| value.to_owned()).collect()
}

impl Request {
    pub fn api(self, api: Api) -> Self {
        self.target(api.path())
    }

    pub fn method(mut self, method: &str) -> Self {
        method.clone_into(&mut self.method);
        self
    }

    /// Path and query, signed too.
    pub fn target(mut self, target: &str) -> Self {
        target.clone_into(&mut self.target);
        self
    }

    /// What is signed as path and query, where it is not what the request line says.
    pub fn signed_target(mut self, target: &str) -> Self {
        self.signed_target = Some(target.to_owned());
        self
    }

    pub fn version(mut self, version: &str) -> Self {
        version.clone_into(&mut self.version);
        self
    }

    pub fn hosts(mut self, values: &[&str]) -> Self {
        self.hosts = texts(values);
        self
    }

    pub fn content_types(mut self, values: &[&str]) -> Self {
        self.content_types = texts(values);
        self
    }

    pub fn client_ids(mut self, values: &[&str]) -> Self {
        self.client_ids = texts(values);
        self
    }

    pub fn times(mut self, values: &[&str]) -> Self {
        self.times = texts(values);
        self
    }

    /// These Signature headers instead of the right one.
    pub fn signatures(mut self, values: &[&str]) -> Self {
        self.signatures = Some(texts(values));
        self
    }

    pub fn key_version(mut self, version: Option<&str>) -> Self {
        self.key_version = version.map(str::to_owned);
        self
    }

    pub fn key(mut self, key: &PrivateKey) -> Self {
        self.key = key.clone();
        self
    }

    /// One more header line.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn framing(mut self, framing: Framing) -> Self {
        self.framing = framing;
        self
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    fn signed_as(&self) -> (String, String, String) {
        let first = |values: &[String]| values.first().cloned().unwrap_or_default();
        let target = self.signed_target.clone().unwrap_or_else(|| self.target.clone());
        (target, first(&self.client_ids), first(&self.times))
    }

    /// The right Signature header.
    pub fn signature(&self) -> String {
        let (target, client, time) = self.signed_as();
        let string = signature::signed_string(&self.method, &target, &client, &time, &self.body);
        let signature = self.key.sign(&string).expect("a signature");
        let header = signature::header(self.key_version.as_deref().unwrap_or("none"), &signature);
        if self.key_version.is_some() { header } else { header.replace("keyVersion=none,", "") }
    }

    /// The head, to its empty line.
    pub fn head(&self) -> Vec<u8> {
        let mut head = format!("{} {} {}\r\n", self.method, self.target, self.version);
        let mut line = |name: &str, value: &str| {
            head.push_str(name);
            head.push_str(": ");
            head.push_str(value);
            head.push_str("\r\n");
        };
        let signatures = self.signatures.clone().unwrap_or_else(|| vec![self.signature()]);
        for (name, values) in [
            ("Host", &self.hosts),
            ("Content-Type", &self.content_types),
            ("Client-Id", &self.client_ids),
            ("Request-Time", &self.times),
            ("Signature", &signatures),
        ] {
            for value in values {
                line(name, value);
            }
        }
        for (name, value) in &self.headers {
            line(name, value);
        }
        match self.framing {
            Framing::Length => line("Content-Length", &self.body.len().to_string()),
            Framing::Chunked(_) => line("Transfer-Encoding", "chunked"),
            Framing::Unsaid => {}
        }
        head.push_str("\r\n");
        head.into_bytes()
    }

    /// All of it.
    pub fn bytes(&self) -> Vec<u8> {
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

    /// Sends it on a connection of its own.
    pub fn send(&self) -> Answer {
        self.send_on(&mut Connection::to(self.address))
    }

    /// Sends it on a connection.
    pub fn send_on(&self, connection: &mut Connection) -> Answer {
        connection.write(&self.bytes());
        self.answer_on(connection).expect("an answer, not the end of the connection")
    }

    /// The next answer on a connection, to this request; `None` if the connection ends instead.
    pub fn answer_on(&self, connection: &mut Connection) -> Option<Answer> {
        let mut answer = connection.answer(self.method != "HEAD")?;
        let (target, client, _) = self.signed_as();
        (answer.method, answer.target, answer.client) = (self.method.clone(), target, client);
        Some(answer)
    }
}

/// Bytes both ways: TCP, or TLS over it.
pub trait Wire: Read + Write + Send {}

impl<T: Read + Write + Send> Wire for T {}

/// A connection.
pub struct Connection {
    wire: Box<dyn Wire>,
    read: Vec<u8>,
    /// Kept to close one direction.
    socket: Option<TcpStream>,
}

impl Connection {
    pub fn to(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).expect("the service listens");
        socket.set_nodelay(true).unwrap();
        // a test that waits longer hangs
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        let kept = socket.try_clone().unwrap();
        Self { wire: Box::new(socket), read: Vec::new(), socket: Some(kept) }
    }

    pub fn over(wire: Box<dyn Wire>) -> Self {
        Self { wire, read: Vec::new(), socket: None }
    }

    /// Sends bytes; a peer that has closed meanwhile is seen when its answer is read.
    pub fn write(&mut self, bytes: &[u8]) {
        match self.wire.write_all(bytes).and_then(|()| self.wire.flush()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => panic!("it takes nothing"),
            Ok(()) | Err(_) => {}
        }
    }

    /// Sends no more.
    pub fn finish(&mut self) {
        if let Some(socket) = &self.socket {
            drop(socket.shutdown(Shutdown::Write));
        }
    }

    /// Reads more; `false` at the end.
    fn more(&mut self) -> bool {
        let mut bytes = [0; 16 * 1024];
        match self.wire.read(&mut bytes) {
            Ok(0) => false,
            Ok(length) => {
                self.read.extend_from_slice(&bytes[..length]);
                true
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                panic!("neither an answer nor the end of the connection within {PATIENCE:?}")
            }
            Err(_) => false,
        }
    }

    /// The next answer; `None` if the connection ends before it has begun.
    pub fn answer(&mut self, with_body: bool) -> Option<Answer> {
        let end = loop {
            if let Some(at) = self.read.windows(4).position(|window| window == b"\r\n\r\n") {
                break at;
            }
            if !self.more() {
                assert!(self.read.is_empty(), "half an answer: {:?}", self.read);
                return None;
            }
        };
        let head: Vec<u8> = self.read.drain(..end + 4).collect();
        let head = String::from_utf8(head).expect("a head is ASCII");
        let mut lines = head.trim_end_matches("\r\n").split("\r\n");
        let status_line = lines.next().unwrap().to_owned();
        let status = status_line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let headers: Vec<(String, String)> = lines
            .map(|line| line.split_once(": ").unwrap_or_else(|| line.split_at(line.len() - 1)))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let length = headers
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            .map(|(_, value)| value.parse::<usize>().expect("a length"));
        // 100 is none yet
        let with_body = with_body && status.is_none_or(|status: u16| status >= 200);
        let length = if with_body { length.expect("content-length is set") } else { 0 };
        while self.read.len() < length {
            assert!(self.more(), "half a body");
        }
        let body = self.read.drain(..length).collect();
        let status = status.expect("a status line");
        let [method, target, client] = [const { String::new() }; 3];
        Some(Answer { status_line, status, headers, body, method, target, client })
    }

    /// Everything until the peer closes, whatever it is.
    pub fn read_to_end(&mut self, bytes: &mut Vec<u8>) {
        while self.more() {}
        bytes.append(&mut self.read);
    }

    /// Whether the peer closes, having sent no more.
    pub fn is_closed(&mut self) -> bool {
        self.read.is_empty() && !self.more()
    }
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status_line: String,
    pub status: u16,
    /// In order and in their own case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Of the request, for the signature.
    pub method: String,
    pub target: String,
    pub client: String,
}

impl Answer {
    /// The values of a header, by its exact name.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(known, _)| known == name);
        let value = values.next().map(|(_, value)| value.as_str());
        assert!(values.next().is_none(), "{name} stands twice");
        value
    }

    /// The body.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    fn result(&self, field: &str) -> String {
        let json = self.json();
        json["result"][field].as_str().unwrap_or_else(|| panic!("no {field}: {json}")).to_owned()
    }

    pub fn code(&self) -> String {
        self.result("resultCode")
    }

    pub fn result_status(&self) -> String {
        self.result("resultStatus")
    }

    pub fn message(&self) -> String {
        self.result("resultMessage")
    }

    /// Fails unless this is HTTP 200 with that code and its status, in the form every answer has.
    #[track_caller]
    pub fn expect(&self, code: &str) -> &Self {
        let text = String::from_utf8_lossy(&self.body);
        assert_eq!(self.status_line, "HTTP/1.1 200 OK", "{text}");
        assert_eq!(self.code(), code, "{text}");
        let status = STATUS_OF.iter().find(|(known, _)| *known == code).expect("a known code").1;
        assert_eq!(self.result_status(), status, "{text}");
        let message = self.message();
        assert!((1..=256).contains(&message.chars().count()), "resultMessage: {message}");
        assert_eq!(self.header("content-type"), Some("application/json; charset=UTF-8"));
        assert_eq!(self.header("content-length"), Some(&*self.body.len().to_string()));
        assert_eq!(self.header("content-encoding"), None);
        for (name, _) in &self.headers {
            assert_eq!(*name, name.to_ascii_lowercase(), "header names are in lower case");
        }
        let outside_strings = text.split('"').step_by(2).collect::<String>();
        assert!(
            text.contains('\\') || !outside_strings.contains(char::is_whitespace),
            "the body is compact: {text}"
        );
        self
    }

    /// Fails unless the wallet signed this answer to this request, in the one form that old clients read.
    #[track_caller]
    pub fn assert_signed(&self) -> &Self {
        self.assert_signed_by("1", vectors::wallet().public())
    }

    /// The same with a key of the test's own.
    #[track_caller]
    pub fn assert_signed_by(&self, version: &str, key: &PublicKey) -> &Self {
        let header = self.header("signature").expect("the answer is signed");
        let prefix = format!("algorithm=RSA256,keyVersion={version},signature=");
        let value = header.strip_prefix(&prefix).expect("the one form of the header");
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '%';
        assert!(value.chars().all(plain), "percent-encoded: {value}");
        assert!(
            value.split('%').skip(1).all(|rest| matches!(&rest[..2], "2B" | "2F" | "3D")),
            "upper-case escapes: {value}"
        );
        let client = self.header("client-id").expect("client-id is echoed");
        assert_eq!(client, self.client);
        let time = self.header("response-time").expect("response-time is set");
        let form = "dddd-dd-ddTdd:dd:dd+dd:dd";
        let shape: String =
            time.chars().map(|c| if c.is_ascii_digit() { 'd' } else { c }).collect();
        assert_eq!(shape, form, "whole seconds with an offset: {time}");
        for word in ["signature", "response-time"] {
            let lines = self.headers.iter().map(|(name, value)| format!("{name}: {value}"));
            let holding: Vec<String> =
                lines.filter(|line| line.to_ascii_lowercase().contains(word)).collect();
            assert_eq!(holding.len(), 1, "{word} in more than its own line: {holding:?}");
        }
        let string = signature::signed_string(&self.method, &self.target, client, time, &self.body);
        let read = SignatureHeader::parse(header).expect("a signature header");
        assert!(key.verify(&string, &read.signature), "the wallet's signature verifies");
        self
    }

    /// Fails if this answer is signed, or looks as if.
    #[track_caller]
    pub fn assert_unsigned(&self) -> &Self {
        for name in ["signature", "client-id", "response-time"] {
            let found = self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
            assert_eq!(found, None, "unproven requests get no {name}");
        }
        self
    }
}
