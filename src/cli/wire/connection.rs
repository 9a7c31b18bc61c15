//! A connection that is written to byte by byte, and read answer by answer: each within its time and its length, whatever
//! the peer sends.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    sync::Arc,
    time::{Duration, Instant},
};

use rustls::{ClientConfig, ClientConnection, StreamOwned};
use rustls_pki_types::ServerName;

use super::{Answer, NoAnswer};

/// Longest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// Whom to trust, and the name that the peer's certificate must have.
pub(super) type Tls = (Arc<ClientConfig>, ServerName<'static>);

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
pub(in super::super) struct Connection {
    wire: Wire,
    /// Read, and not of an answer yet.
    read: Vec<u8>,
    /// How long a peer may take to take what is sent.
    wait: Duration,
}

impl Connection {
    /// Over a socket that is connected; with TLS, where that is asked for.
    pub(super) fn over(
        socket: TcpStream,
        tls: Option<&Tls>,
        wait: Duration,
    ) -> Result<Self, NoAnswer> {
        let mut socket = Timed { socket, until: Instant::now() + wait };
        let wire = match tls {
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
        Ok(Self { wire, read: Vec::new(), wait })
    }

    fn timed(&mut self) -> &mut Timed {
        match &mut self.wire {
            Wire::Plain(socket) => socket,
            Wire::Tls(stream) => &mut stream.sock,
        }
    }

    /// Sends bytes. A peer that closed meanwhile is seen when its answer is read.
    pub(in super::super) fn write(&mut self, bytes: &[u8]) {
        self.timed().until = Instant::now() + self.wait;
        let wire: &mut dyn Write = match &mut self.wire {
            Wire::Plain(socket) => socket,
            Wire::Tls(stream) => stream,
        };
        drop(wire.write_all(bytes).and_then(|()| wire.flush()));
    }

    /// Reads more, until then; how much.
    fn more(&mut self, until: Instant, wait: Duration) -> Result<usize, NoAnswer> {
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
    pub(in super::super) fn answer(
        &mut self,
        with_body: bool,
        wait: Duration,
    ) -> Result<Answer, NoAnswer> {
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
