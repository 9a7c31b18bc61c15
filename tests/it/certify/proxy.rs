//! A wallet with a fault: our service, and before it a proxy that does one thing wrong. It has both sides' private keys, so
//! that it can make a wrong request right (and so let it through) and sign an answer that it changed.
//!
//! What it does not want to change goes both ways byte for byte.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use alipayplus_cancel::bridge::{
    keys::PrivateKey,
    signature::{self, SignatureHeader},
};
use serde_json::Value;

use crate::harness::vectors;

/// A head and a body.
#[derive(Clone, Debug)]
pub struct Message {
    /// The first line.
    pub start: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Message {
    pub fn header(&self, name: &str) -> Option<&str> {
        let named = |(known, _): &&(String, String)| known.eq_ignore_ascii_case(name);
        self.headers.iter().find(named).map(|(_, value)| value.as_str())
    }

    pub fn count(&self, name: &str) -> usize {
        self.headers.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name)).count()
    }

    pub fn remove(&mut self, name: &str) {
        self.headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
    }

    pub fn set(&mut self, name: &str, value: &str) {
        match self.headers.iter_mut().find(|(known, _)| known.eq_ignore_ascii_case(name)) {
            Some((_, old)) => value.clone_into(old),
            None => self.headers.push((name.to_owned(), value.to_owned())),
        }
    }

    fn word(&self, at: usize) -> &str {
        self.start.split(' ').nth(at).unwrap_or("")
    }

    /// Of a request.
    pub fn method(&self) -> &str {
        self.word(0)
    }

    /// Of a request: as it came.
    pub fn target(&self) -> &str {
        self.word(1)
    }

    pub fn set_target(&mut self, target: &str) {
        self.start = format!("{} {target} {}", self.word(0), self.word(2));
    }

    pub fn json(&self) -> Option<Value> {
        serde_json::from_slice(&self.body).ok()
    }

    /// A text of the body's object, or of `result`.
    pub fn text(&self, pointer: &str) -> String {
        let json = self.json().unwrap_or_default();
        json.pointer(pointer).and_then(Value::as_str).unwrap_or("").to_owned()
    }

    /// Of an answer.
    pub fn code(&self) -> String {
        self.text("/result/resultCode")
    }

    fn bytes(&self) -> Vec<u8> {
        let mut head = format!("{}\r\n", self.start);
        for (name, value) in &self.headers {
            head.extend([format!("{name}: {value}\r\n")]);
        }
        [head.as_bytes(), b"\r\n", &self.body].concat()
    }
}

/// What is said of a request to sign it.
fn path_of(target: &str) -> &str {
    match target.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("/", |at| &rest[at..]),
        None => target,
    }
}

/// Signs a request as Alipay+ does, whatever was wrong with it.
pub fn sign_request(request: &mut Message) {
    request.remove("signature");
    request.remove("content-length");
    request.remove("transfer-encoding");
    let (client, time) = (vectors::CLIENT_ID, "2025-02-20T08:51:49+08:00");
    request.remove("client-id");
    request.remove("request-time");
    request.set("Client-Id", client);
    request.set("Request-Time", time);
    let target = path_of(request.target()).to_owned();
    let string = signature::signed_string(request.method(), &target, client, time, &request.body);
    let signature = vectors::alipayplus().sign(&string).expect("a signature");
    request.set("Signature", &signature::header("1", &signature));
    request.set("Content-Length", &request.body.len().to_string());
}

/// Signs an answer as the wallet does, with this key.
pub fn sign_answer_with(key: &PrivateKey, request: &Message, answer: &mut Message) {
    answer.set("content-length", &answer.body.len().to_string());
    if answer.header("signature").is_none() {
        return;
    }
    let time = answer.header("response-time").expect("a signed answer").to_owned();
    let client = request.header("client-id").expect("a client").to_owned();
    let target = path_of(request.target());
    let string = signature::signed_string(request.method(), target, &client, &time, &answer.body);
    let signature = key.sign(&string).expect("a signature");
    answer.set("signature", &signature::header("1", &signature));
}

/// The same, with the wallet's own key.
pub fn sign_answer(request: &Message, answer: &mut Message) {
    sign_answer_with(vectors::wallet(), request, answer);
}

/// Another result, signed.
pub fn answer_as(request: &Message, answer: &mut Message, code: &str, status: &str) {
    answer.body = format!(
        r#"{{"result":{{"resultCode":"{code}","resultStatus":"{status}","resultMessage":"a fault"}}}}"#
    )
    .into_bytes();
    sign_answer(request, answer);
}

/// The signature's bytes of a request, if its header can be read.
pub fn signature_of(request: &Message) -> Option<SignatureHeader> {
    SignatureHeader::parse(request.header("signature")?).ok()
}

/// What a faulty wallet does with a request, before its service sees it.
pub enum Before {
    /// As it is.
    Pass,
    /// The service gets this instead.
    Send(Message),
    /// It is never answered.
    Silence,
}

/// What is wrong with a wallet.
pub trait Fault: Send + Sync {
    fn before(&self, _request: &Message) -> Before {
        Before::Pass
    }

    /// May change the answer; `true` if it did.
    fn after(&self, _request: &Message, _answer: &mut Message) -> bool {
        false
    }
}

/// A proxy that runs until it is dropped.
pub struct Proxy {
    pub address: SocketAddr,
    ends: Arc<AtomicBool>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        // its accept waits
        drop(TcpStream::connect(self.address));
    }
}

/// Runs `work` with a proxy that has this fault.
impl Proxy {
    pub fn start(service: SocketAddr, fault: Arc<dyn Fault>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let ends = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&ends);
        thread::spawn(move || {
            for socket in listener.incoming() {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                let (Ok(socket), fault) = (socket, Arc::clone(&fault)) else { continue };
                thread::spawn(move || serve(socket, service, &*fault));
            }
        });
        Self { address, ends }
    }
}

/// Bytes of one side, read as far as they were needed.
struct Side {
    socket: TcpStream,
    read: Vec<u8>,
}

impl Side {
    fn more(&mut self) -> bool {
        let mut bytes = [0; 16 * 1024];
        match self.socket.read(&mut bytes) {
            Ok(length) if length > 0 => {
                self.read.extend_from_slice(&bytes[..length]);
                true
            }
            Ok(_) | Err(_) => false,
        }
    }

    fn take(&mut self, length: usize) -> Option<Vec<u8>> {
        while self.read.len() < length {
            if !self.more() {
                return None;
            }
        }
        Some(self.read.drain(..length).collect())
    }

    fn line(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.read.windows(2).position(|window| window == b"\r\n") {
                return self.take(at + 2);
            }
            if !self.more() {
                return None;
            }
        }
    }

    /// A whole message, and its bytes as they came; none, if it is one that only the service can judge.
    fn message(&mut self) -> Option<(Message, Vec<u8>)> {
        let end = loop {
            if let Some(at) = self.read.windows(4).position(|window| window == b"\r\n\r\n") {
                break at;
            }
            if self.read.len() > 100_000 || self.read.windows(2).any(|window| window == b"\n\n") {
                return None;
            }
            if !self.more() {
                return None;
            }
        };
        let head = std::str::from_utf8(&self.read[..end]).ok()?.to_owned();
        let strange = |line: &str| {
            line.contains(['\n', '\0']) || line.starts_with(' ') || line.contains(" :")
        };
        if head.split("\r\n").skip(1).any(strange) {
            return None;
        }
        let mut lines = head.split("\r\n");
        let start = lines.next()?.to_owned();
        let headers: Option<Vec<(String, String)>> = lines
            .map(|line| {
                let (name, value) = line.split_once(':')?;
                Some((name.to_owned(), value.trim().to_owned()))
            })
            .collect();
        let mut message = Message { start, headers: headers?, body: Vec::new() };
        let (lengths, codings) =
            (message.count("content-length"), message.count("transfer-encoding"));
        let length = match (lengths, codings) {
            (1, 0) => {
                let length = message.header("content-length").and_then(|text| {
                    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
                })?;
                if length > 2 << 20 {
                    return None;
                }
                Some(length)
            }
            (0, 1) if message.header("transfer-encoding") == Some("chunked") => None,
            // an answer to HEAD is not asked for
            _ => return None,
        };
        let mut raw: Vec<u8> = self.read.drain(..end + 4).collect();
        if let Some(length) = length {
            message.body = self.take(length)?;
            raw.extend_from_slice(&message.body);
            return Some((message, raw));
        }
        loop {
            let line = self.line()?;
            let size = std::str::from_utf8(&line).ok()?.trim();
            let size = usize::from_str_radix(size, 16).ok()?;
            let chunk = self.take(size + 2)?;
            raw.extend_from_slice(&line);
            raw.extend_from_slice(&chunk);
            if size == 0 {
                return Some((message, raw));
            }
            message.body.extend_from_slice(&chunk[..size]);
        }
    }
}

/// Both ways until one side ends.
fn pipe(client: Side, service: Side) {
    let (mut from, mut to) = (client.socket, service.socket);
    drop(to.write_all(&client.read));
    drop(from.write_all(&service.read));
    let (mut back_from, mut back_to) =
        (to.try_clone().expect("a socket"), from.try_clone().expect("a socket"));
    thread::spawn(move || {
        drop(std::io::copy(&mut back_from, &mut back_to));
        drop(back_to.shutdown(Shutdown::Both));
    });
    drop(std::io::copy(&mut from, &mut to));
    drop(to.shutdown(Shutdown::Write));
}

fn serve(client: TcpStream, service: SocketAddr, fault: &dyn Fault) {
    let Ok(server) = TcpStream::connect(service) else { return };
    for socket in [&client, &server] {
        drop(socket.set_nodelay(true));
    }
    let mut client = Side { socket: client, read: Vec::new() };
    let mut server = Side { socket: server, read: Vec::new() };
    loop {
        let Some((request, raw)) = client.message() else {
            return pipe(client, server);
        };
        let sent = match fault.before(&request) {
            Before::Pass => server.socket.write_all(&raw),
            Before::Send(message) => server.socket.write_all(&message.bytes()),
            Before::Silence => {
                while client.more() {}
                return;
            }
        };
        if sent.is_err() {
            return;
        }
        let Some((mut answer, raw)) = server.message() else {
            return pipe(client, server);
        };
        let bytes = if fault.after(&request, &mut answer) { answer.bytes() } else { raw };
        if client.socket.write_all(&bytes).is_err() {
            return;
        }
        if answer.header("connection") == Some("close") {
            drop(client.socket.shutdown(Shutdown::Both));
            return;
        }
    }
}

/// Counts what it has seen.
#[derive(Default)]
pub struct Seen(Mutex<std::collections::BTreeMap<String, usize>>);

impl Seen {
    /// How often this was seen before.
    pub fn before(&self, what: &str) -> usize {
        let mut seen = self.0.lock().expect("no panic");
        let count = seen.entry(what.to_owned()).or_default();
        *count += 1;
        *count - 1
    }
}
