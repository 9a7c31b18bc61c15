//! HTTP/2 written by hand, so that a test may send what no library would.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::Arc,
};

use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName},
};

use super::{PATIENCE, json::Wire};

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// SETTINGS_INITIAL_WINDOW_SIZE.
pub const INITIAL_WINDOW: u16 = 4;

/// A frame as it stands on the wire.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// HPACK's integer: behind `mark`, in `bits` bits and as many bytes as it takes.
fn integer(mark: u8, bits: u8, value: usize) -> Vec<u8> {
    let most = (1_usize << bits) - 1;
    if value < most {
        return vec![mark | u8::try_from(value).unwrap()];
    }
    let mut bytes = vec![mark | u8::try_from(most).unwrap()];
    let mut rest = value - most;
    while rest >= 128 {
        bytes.push(u8::try_from(rest % 128).unwrap() | 128);
        rest /= 128;
    }
    bytes.push(u8::try_from(rest).unwrap());
    bytes
}

fn text(text: &str) -> Vec<u8> {
    [&integer(0, 7, text.len())[..], text.as_bytes()].concat()
}

/// A field, never indexed.
pub fn field(name: &str, value: &str) -> Vec<u8> {
    [&[0][..], &text(name), &text(value)].concat()
}

/// A field that the peer has to remember.
pub fn remembered(name: &str, value: &str) -> Vec<u8> {
    [&[0x40][..], &text(name), &text(value)].concat()
}

/// The field that was remembered last.
pub fn the_last() -> Vec<u8> {
    integer(0x80, 7, 62)
}

/// The fields of a head.
pub fn fields(fields: &[(&str, &str)]) -> Vec<u8> {
    fields.iter().flat_map(|(name, value)| field(name, value)).collect()
}

/// The head of a gRPC call.
pub fn call(path: &str) -> Vec<u8> {
    fields(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "wallet.example"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ])
}

/// A gRPC message in its frame.
pub fn message(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
    [&[0][..], &length, bytes].concat()
}

/// One that came.
#[derive(Clone, Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// A connection that has said it speaks HTTP/2.
pub struct H2 {
    wire: Box<dyn Wire>,
}

impl H2 {
    /// In plain text, with these settings.
    pub fn plain(address: SocketAddr, settings: &[(u16, u32)]) -> Self {
        Self::begin(Box::new(socket(address)), settings)
    }

    /// Over TLS.
    pub fn tls(address: SocketAddr, root: &[u8], settings: &[(u16, u32)]) -> Self {
        let tls = tls(socket(address), root, &[b"h2"]);
        Self::begin(Box::new(tls.expect("a handshake")), settings)
    }

    fn begin(wire: Box<dyn Wire>, settings: &[(u16, u32)]) -> Self {
        let mut h2 = Self { wire };
        let settings: Vec<u8> = settings
            .iter()
            .flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
            .collect();
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        h2.send(&[&preface[..], &frame(SETTINGS, 0, 0, &settings)].concat());
        h2
    }

    /// Takes the peer's settings, which say how wide the window of a stream is, and how much wider than the first 64 KiB it
    /// makes that of the connection: whoever sends more before it has said so breaks the protocol.
    pub fn settle(&mut self) {
        let (mut settings, mut window) = (false, false);
        while !(settings && window) {
            let Some(next) = self.next() else { return };
            match (next.kind, next.flags & ACK, next.stream) {
                (SETTINGS, 0, _) => settings = self.send(&frame(SETTINGS, ACK, 0, &[])),
                (WINDOW_UPDATE, _, 0) => window = true,
                _ => {}
            }
        }
    }

    /// Sends bytes; false once the peer has closed, or takes nothing more.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        self.wire.write_all(bytes).and_then(|()| self.wire.flush()).is_ok()
    }

    /// The next frame; `None` at the end.
    pub fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.fill(&mut head)?;
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let mut payload = vec![0; length];
        self.fill(&mut payload)?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Option<()> {
        match self.wire.read_exact(bytes) {
            Ok(()) => Some(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                panic!("neither a frame nor the end of the connection within {PATIENCE:?}")
            }
            Err(_) => None,
        }
    }

    /// The next frame, settings and pings being acknowledged as an honest peer would.
    pub fn next_answering(&mut self) -> Option<Frame> {
        loop {
            let next = self.next()?;
            match (next.kind, next.flags & ACK) {
                (SETTINGS, 0) => drop(self.send(&frame(SETTINGS, ACK, 0, &[]))),
                (PING, 0) => drop(self.send(&frame(PING, ACK, 0, &next.payload))),
                (SETTINGS | PING, _) => {}
                _ => return Some(next),
            }
        }
    }

    /// Waits until the peer closes, whatever it says before; the code of its GOAWAY, if it says one.
    pub fn end(&mut self) -> Option<u32> {
        let mut code = None;
        while let Some(next) = self.next() {
            if next.kind == GOAWAY {
                code =
                    next.payload.get(4..8).map(|code| u32::from_be_bytes(code.try_into().unwrap()));
            }
        }
        code
    }
}

/// A socket that waits no longer than a test may.
pub fn socket(address: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(address).expect("the service listens");
    socket.set_nodelay(true).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.set_write_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// TLS over a socket to a service with that self-signed certificate.
pub fn tls(
    socket: TcpStream,
    root: &[u8],
    protocols: &[&[u8]],
) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(root.to_vec())).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let name = ServerName::try_from("wallet.example").unwrap();
    let client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = StreamOwned::new(client, socket);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}
