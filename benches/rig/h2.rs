//! A loader of gRPC that costs little: heads are encoded once, and only frames are read.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time,
};

use super::Seen;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const WINDOW: usize = 65_535;

fn frame(into: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    into.extend_from_slice(&length[1..]);
    into.extend_from_slice(&[kind, flags]);
    into.extend_from_slice(&stream.to_be_bytes());
    into.extend_from_slice(payload);
}

/// The head of a call, in HPACK without a table.
fn head(path: &str) -> Vec<u8> {
    let text = |text: &str| {
        let length = u8::try_from(text.len()).ok().filter(|length| *length < 127);
        [&[length.expect("a short text")][..], text.as_bytes()].concat()
    };
    [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "wallet"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ]
    .iter()
    .flat_map(|(name, value)| [&[0][..], &text(name), &text(value)].concat())
    .collect()
}

/// What is to be called, and what its answers have to hold.
#[derive(Clone)]
pub struct Method {
    pub path: &'static str,
    pub answers_with: &'static [u8],
}

struct Work {
    method: Method,
    messages: Vec<Vec<u8>>,
    next: Cell<usize>,
    begun: Instant,
    per_second: Option<f64>,
    seen: RefCell<Seen>,
}

impl Work {
    /// The next message, if it is due; else when it will be.
    fn take(&self) -> Result<Option<(Instant, &[u8])>, Instant> {
        let nth = self.next.get();
        let Some(message) = self.messages.get(nth) else { return Ok(None) };
        let now = Instant::now();
        let due = match self.per_second {
            Some(rate) => self.begun + Duration::from_secs_f64(nth as f64 / rate),
            None => now,
        };
        if due > now {
            return Err(due);
        }
        self.next.set(nth + 1);
        Ok(Some((due, message)))
    }
}

async fn connection(address: SocketAddr, work: Rc<Work>, streams: usize) {
    let mut socket = TcpStream::connect(address).await.expect("a connection");
    socket.set_nodelay(true).expect("a socket");
    let head = head(work.method.path);
    let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    frame(&mut out, SETTINGS, 0, 0, &[]);
    // so wide that it lasts
    frame(&mut out, WINDOW_UPDATE, 0, 0, &0x4000_0000u32.to_be_bytes());
    let (mut room, mut stream, mut read) = (WINDOW, 1u32, Vec::new());
    let mut open: HashMap<u32, (Instant, bool)> = HashMap::new();
    loop {
        let mut wait = None;
        let mut over = false;
        while open.len() < streams && room > 1_024 {
            match work.take() {
                Ok(Some((due, message))) => {
                    frame(&mut out, HEADERS, END_HEADERS, stream, &head);
                    let length = u32::try_from(message.len()).expect("short").to_be_bytes();
                    let data = [&[0][..], &length, message].concat();
                    frame(&mut out, DATA, END_STREAM, stream, &data);
                    room -= data.len();
                    open.insert(stream, (due, false));
                    stream += 2;
                }
                Ok(None) => {
                    over = true;
                    break;
                }
                Err(due) => {
                    wait = Some(due);
                    break;
                }
            }
        }
        if !out.is_empty() {
            socket.write_all(&out).await.expect("to send");
            out.clear();
        }
        if over && open.is_empty() {
            return;
        }
        let read_some = socket.read_buf(&mut read);
        let length = match wait {
            Some(due) => match time::timeout_at(due.into(), read_some).await {
                Ok(length) => length,
                Err(_) => continue,
            },
            None => read_some.await,
        };
        assert!(length.expect("an answer") > 0, "the service closed the connection");
        let mut rest = &read[..];
        while let Some((head, after)) = rest.split_first_chunk::<9>() {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            if after.len() < length {
                break;
            }
            let (payload, after) = after.split_at(length);
            let (kind, flags) = (head[3], head[4]);
            let of = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            match kind {
                DATA => {
                    let wanted = work.method.answers_with;
                    let has = payload.windows(wanted.len()).any(|window| window == wanted);
                    if let Some(call) = open.get_mut(&of) {
                        call.1 |= has;
                    }
                }
                SETTINGS if flags & ACK == 0 => frame(&mut out, SETTINGS, ACK, 0, &[]),
                PING if flags & ACK == 0 => frame(&mut out, PING, ACK, 0, payload),
                WINDOW_UPDATE if of == 0 => {
                    let more: [u8; 4] = payload.try_into().expect("four bytes");
                    room += u32::from_be_bytes(more) as usize;
                }
                GOAWAY => panic!("the service says goodbye: {payload:?}"),
                _ => {}
            }
            let ended = kind == RST_STREAM || kind == HEADERS && flags & END_STREAM != 0;
            if ended && let Some((due, good)) = open.remove(&of) {
                let mut seen = work.seen.borrow_mut();
                match good {
                    true => seen.successes.push(due.elapsed()),
                    false => seen.others += 1,
                }
            }
            rest = after;
        }
        let done = read.len() - rest.len();
        read.drain(..done);
    }
}

/// Makes all calls over so many connections, with so many at once on each; at so many a second, or as fast as answers come.
pub async fn calls(
    address: SocketAddr,
    method: &Method,
    messages: Vec<Vec<u8>>,
    connections: usize,
    streams: usize,
    per_second: Option<f64>,
) -> Seen {
    let work = Rc::new(Work {
        method: method.clone(),
        messages,
        next: Cell::new(0),
        begun: Instant::now(),
        per_second,
        seen: RefCell::default(),
    });
    let tasks: Vec<_> = (0..connections)
        .map(|_| tokio::task::spawn_local(connection(address, Rc::clone(&work), streams)))
        .collect();
    for task in tasks {
        task.await.expect("a connection");
    }
    let took = work.begun.elapsed();
    let mut seen = work.seen.take();
    (seen.took, seen.in_time) = (took, seen.successes.len());
    seen
}
