//! A hostile peer may cost its own connections, and nobody else anything: during each attack the service is ready, an
//! honest client is answered, and memory is bounded; after it, everything is given back.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use prost::Message as _;
use tonic::Code;

use crate::harness::{
    PATIENCE, eventually,
    grpc::{Grant, Grpc, Payment, wire},
    h2::{self, H2, frame},
    json::{Connection, Json, Request, payment_body},
    service::{self, Options, Service},
};

/// What the process may have taken at its worst, of memory, in KB: twice what docs/operations.md tells of.
const MEMORY_MAX: usize = 200_000;

const CANCEL: &str = "/alipayplus.cancel.v1.CancelService/CancelPayment";

/// A service whose waits are short, and honest clients that were there before.
struct Siege {
    service: Service,
    /// Of the bridge's certificate; then it speaks HTTP/2 too.
    root: Option<Vec<u8>>,
    grpc: Grpc,
    sockets: usize,
}

/// Where HTTP/2 is spoken.
#[derive(Clone, Copy, Debug)]
enum Front {
    Grpc,
    Bridge,
}

const FRONTS: [Front; 2] = [Front::Grpc, Front::Bridge];

impl Siege {
    fn begin(set: &[&str], tls: bool) -> Self {
        let dir = tempfile::Builder::new().prefix("apc-it-").tempdir().unwrap();
        let mut options = Options::embedded();
        options.set = [
            "limits.first_byte_timeout=1s",
            "limits.head_timeout=1s",
            "limits.body_timeout=1s",
            "limits.write_timeout=1s",
            "limits.idle_timeout=2s",
        ]
        .iter()
        .chain(set)
        .map(|&setting| setting.to_owned())
        .collect();
        let root = tls.then(|| {
            let made = rcgen::generate_simple_self_signed(["wallet.example".to_owned()]).unwrap();
            fs::write(dir.path().join("bridge.crt"), made.cert.pem()).unwrap();
            fs::write(dir.path().join("bridge.key"), made.signing_key.serialize_pem()).unwrap();
            "[bridge.tls]\ncert_file = \"bridge.crt\"\nkey_file = \"bridge.key\"\n"
                .clone_into(&mut options.toml);
            options.set.push("bridge.http2=true".to_owned());
            made.cert.der().to_vec()
        });
        let service = Service::start_in(dir, options);
        let grpc = service.grpc();
        let mut siege = Self { service, root, grpc, sockets: 0 };
        siege.stands();
        // what the honest ones keep open is open by now
        siege.sockets = siege.sockets();
        siege
    }

    fn json(&self) -> Json {
        self.service.json()
    }

    fn bridge(&self) -> SocketAddr {
        self.service.ports().bridge
    }

    fn h2(&self, front: Front, settings: &[(u16, u32)]) -> H2 {
        match front {
            Front::Grpc => H2::plain(self.service.ports().grpc, settings),
            Front::Bridge => H2::tls(self.bridge(), self.root.as_ref().unwrap(), settings),
        }
    }

    /// The head of a request that is right, but for what follows.
    fn head(&self, front: Front) -> Vec<u8> {
        match front {
            Front::Grpc => h2::call(CANCEL),
            Front::Bridge => h2_head(&self.request()),
        }
    }

    fn request(&self) -> Request {
        let payment = Payment::new();
        let body = payment_body(&payment.psp, &payment.acquirer, &payment.request);
        self.json().request().body(body)
    }

    /// From another address than the attackers', which share caps.
    fn connection(&self) -> Connection {
        let socket = socket_from([127, 0, 0, 9], None, self.bridge());
        match &self.root {
            None => Connection::over(Box::new(socket)),
            Some(root) => {
                let tls = h2::tls(socket, root, &[b"http/1.1"]);
                Connection::over(Box::new(tls.expect("a handshake")))
            }
        }
    }

    /// Ready, answering on both fronts within the deadline, within its memory.
    #[track_caller]
    fn stands(&self) {
        let mut probe = Connection::to(self.service.ports().admin);
        probe.write(b"GET /readyz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        assert_eq!(probe.answer(true).expect("an answer").status, 200, "ready");
        let begun = Instant::now();
        // a machine that stands still may make it U: then it is asked again, as Alipay+ does
        eventually("an honest client is answered S", || {
            let request = self.request().header("Connection", "close");
            let answer = request.send_on(&mut self.connection());
            assert_ne!(answer.result_status(), "F");
            (answer.result_status() == "S").then(|| {
                answer.assert_signed();
            })
        });
        // its connection may have been closed while nobody looked: whoever calls anew has another one
        eventually("an honest caller is answered", || {
            self.grpc.cancel_payment(Payment::new().cancel()).ok()
        });
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        let memory = self.memory();
        assert!(memory < MEMORY_MAX, "{memory} KB");
    }

    /// The most memory that it ever had, in KB.
    fn memory(&self) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.service.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// The store's files apart, which it opens when it needs them. None, if nobody here may look.
    fn sockets(&self) -> usize {
        service::sockets(self.service.pid()).map_or(0, |sockets| sockets.len())
    }

    /// Nothing of the attack is left.
    #[track_caller]
    fn is_over(&self, attack: &str) {
        self.stands();
        let before = self.sockets;
        eventually(&format!("{attack}: as many sockets as before: {before}"), || {
            (self.sockets() <= before).then_some(())
        });
        println!("{attack}: at most {} KB", self.memory());
    }
}

/// A socket from this address, with room for so much that is not read.
fn socket_from(source: [u8; 4], room: Option<u32>, address: SocketAddr) -> TcpStream {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let socket = runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        if let Some(room) = room {
            socket.set_recv_buffer_size(room).unwrap();
        }
        socket.bind(SocketAddr::from((source, 0))).unwrap();
        socket.connect(address).await.expect("the service listens").into_std().unwrap()
    });
    socket.set_nonblocking(false).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// A request's head in HTTP/2.
fn h2_head(request: &Request) -> Vec<u8> {
    let signature = request.signature();
    h2::fields(&[
        (":method", "POST"),
        (":scheme", "https"),
        (":path", &request.target),
        (":authority", "wallet.example"),
        ("content-type", "application/json; charset=UTF-8"),
        ("client-id", &request.client_ids[0]),
        ("request-time", &request.times[0]),
        ("signature", &signature),
    ])
}

/// Many sockets that each send the next byte of their own endless text, slowly, until all are closed.
fn drip(siege: &Siege, count: usize, begin: &[u8], rest: &[u8]) {
    let mut sockets: Vec<TcpStream> = (0..count)
        .map(|_| {
            let mut socket = h2::socket(siege.bridge());
            socket.write_all(begin).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        })
        .collect();
    siege.stands();
    let mut drops = rest.iter().cycle();
    eventually("each dripping connection is closed", || {
        let drop = *drops.next().unwrap();
        sockets.retain_mut(|socket| {
            let wrote = socket.write(&[drop]);
            let read = socket.read(&mut [0; 4096]);
            let closed = matches!(read, Ok(0))
                || [wrote.err(), read.err()]
                    .into_iter()
                    .flatten()
                    .any(|error| error.kind() != ErrorKind::WouldBlock);
            !closed
        });
        thread::sleep(Duration::from_millis(20));
        sockets.is_empty().then_some(())
    });
}

#[test]
fn slow_heads_and_slow_bodies() {
    let siege = Siege::begin(&[], false);
    drip(&siege, 400, b"POST / HTTP/1.1\r\n", b"x-a: b\r\n");
    siege.is_over("slow heads");
    let request = siege.request().body(vec![b' '; 400_000]);
    drip(&siege, 400, &request.head(), b" ");
    siege.is_over("slow bodies");
    let request = request.framing(crate::harness::json::Framing::Chunked(1));
    drip(&siege, 400, &request.head(), b"1\r\n \r\n");
    siege.is_over("slow chunks");
}

#[test]
fn readers_that_never_take_an_answer() {
    let siege = Siege::begin(&[], false);
    // refused early, so that there are many answers
    let flood = b"GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n".repeat(500);
    let mut sockets: Vec<TcpStream> = (0..100)
        .map(|_| {
            let socket = socket_from([127, 0, 0, 1], Some(4_096), siege.bridge());
            socket.set_nonblocking(true).unwrap();
            socket
        })
        .collect();
    let begun = Instant::now();
    eventually("each is closed", || {
        sockets.retain_mut(|socket| {
            loop {
                match socket.write(&flood) {
                    Ok(_) if begun.elapsed() > PATIENCE => return true,
                    Ok(_) => {}
                    Err(error) => return error.kind() == ErrorKind::WouldBlock,
                }
            }
        });
        siege.stands();
        sockets.is_empty().then_some(())
    });
    siege.is_over("slow readers");
}

#[test]
fn readers_that_never_take_what_they_are_told_at_the_door() {
    let set = [
        "limits.max_in_flight=4",
        "limits.max_in_flight_per_source=1",
        "limits.body_timeout=1m",
        "limits.cancel_payment_deadline=1m",
    ];
    let siege = Siege::begin(&set, false);
    // takes all the room that there is for the attacker's address
    let mut inside = Connection::to(siege.bridge());
    inside.write(&siege.request().header("Expect", "100-continue").head());
    assert_eq!(inside.answer(false).expect("100 Continue").status, 100);
    // one at a time, so that each is turned away before it is a request
    let mut socket = socket_from([127, 0, 0, 1], Some(4_096), siege.bridge());
    socket.set_nonblocking(true).unwrap();
    let request = siege.request().bytes();
    let begun = Instant::now();
    let mut taken = 0;
    loop {
        match socket.write(&request) {
            Ok(_) => {
                taken += 1;
                thread::sleep(Duration::from_millis(1));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                thread::sleep(Duration::from_millis(10));
            }
            Err(error) => {
                println!("closed after {taken}, {:?}: {error}", begun.elapsed());
                break;
            }
        }
        assert!(begun.elapsed() < PATIENCE, "it may stay for ever");
    }
    drop(inside);
    siege.is_over("readers at the door");
}

/// Pushes bytes until the service closes; how many it took.
fn push(address: SocketAddr, begin: &[u8], rest: &[u8]) -> usize {
    let mut socket = h2::socket(address);
    if socket.write_all(begin).is_err() {
        return 0;
    }
    let begun = Instant::now();
    let mut pushed = 0;
    while begun.elapsed() < PATIENCE {
        match socket.write(rest) {
            Ok(length) => pushed += length,
            Err(_) => return pushed,
        }
    }
    let mut answer = vec![0; 4096];
    let read = socket.read(&mut answer);
    panic!(
        "it takes bytes for ever: {pushed}, and said {read:?} {:?}",
        String::from_utf8_lossy(&answer).len()
    );
}

#[test]
fn bodies_and_heads_without_end() {
    let siege = Siege::begin(&[], false);
    let (piece, address) = (vec![b'a'; 64 * 1024], siege.bridge());
    let chunk = [b"10000\r\n", &piece[..], b"\r\n"].concat();
    let chunked = siege.request().framing(crate::harness::json::Framing::Chunked(1)).head();
    let lying = String::from_utf8(siege.request().head()).unwrap();
    let length = lying.lines().find(|line| line.starts_with("Content-Length")).unwrap();
    let huge = lying.replace(length, "Content-Length: 1000000000000000000");
    let small = lying.replace(length, "Content-Length: 10");
    let header = b"X-A: b\r\n".repeat(8 * 1024);
    let attacks: [(&str, &[u8], &[u8]); 7] = [
        ("endless chunks", &chunked, &chunk),
        ("an endless body", huge.as_bytes(), &piece),
        ("more than the length says", small.as_bytes(), &piece),
        ("100,000 headers", b"POST / HTTP/1.1\r\n", &header),
        ("an endless header", b"POST / HTTP/1.1\r\nX-A: ", &piece),
        ("an endless target", b"POST /", &piece),
        ("an endless chunk size", &chunked, b"0000000000000000000000000000000"),
    ];
    for (what, begin, rest) in attacks {
        thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|| push(address, begin, rest));
            }
            siege.stands();
        });
        siege.is_over(what);
    }
}

#[test]
fn pipelined_requests_by_the_ten_thousand() {
    let siege = Siege::begin(&[], false);
    let count = 20_000;
    let request = b"GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut socket = h2::socket(siege.bridge());
    let mut reader = socket.try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            for _ in 0..count / 1_000 {
                socket.write_all(&request.repeat(1_000)).unwrap();
            }
            socket.shutdown(std::net::Shutdown::Write).unwrap();
        });
        scope.spawn(|| siege.stands());
        let mut text = Vec::new();
        reader.read_to_end(&mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        // most are told that they are too many, and told
        assert_eq!(text.matches("\"resultCode\"").count(), count);
        assert!(text.contains("NO_INTERFACE_DEF"));
    });
    siege.is_over("a pipelined flood");
}

#[test]
fn silence_up_to_the_cap_harms_nobody_else() {
    let siege = Siege::begin(&["limits.connections_per_source=300"], false);
    // the honest gRPC channel comes from there too, on a front of its own
    let silent: Vec<TcpStream> = (0..600).map(|_| h2::socket(siege.bridge())).collect();
    siege.stands();
    assert!(siege.sockets() <= siege.sockets + 320, "{}", siege.sockets());
    for mut socket in silent {
        assert!(matches!(socket.read(&mut [0]), Ok(0) | Err(_)), "each is closed");
    }
    siege.is_over("silence");
}

#[test]
fn handshakes_that_never_end_and_what_is_no_handshake() {
    let siege = Siege::begin(&[], true);
    // a TLS record that announces more than comes
    let hello = [&[0x16, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc, 3, 3][..], &[7; 100]].concat();
    let noise = vec![0xff; 20_000];
    let begins: [&[u8]; 4] = [&hello, b"", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", &noise];
    for begin in begins {
        let sockets: Vec<TcpStream> = (0..300)
            .map(|_| {
                let mut socket = h2::socket(siege.bridge());
                // it may be closed under the writing
                drop(socket.write_all(begin));
                socket
            })
            .collect();
        siege.stands();
        for mut socket in sockets {
            let end = socket.read_to_end(&mut Vec::new());
            assert!(!end.is_err_and(|error| error.kind() == ErrorKind::WouldBlock), "closed");
        }
        siege.is_over("handshakes");
    }
    // and after the handshake: silence
    let mut silent: Vec<H2> = (0..50).map(|_| siege.h2(Front::Bridge, &[])).collect();
    siege.stands();
    for h2 in &mut silent {
        h2.end();
    }
    siege.is_over("silence behind a handshake");
}

/// Sends what `next` makes until the service closes; what its GOAWAY says. Reads meanwhile, if asked to.
fn flood(
    siege: &Siege,
    front: Front,
    most: usize,
    next: impl Fn(usize) -> Vec<u8> + Sync,
) -> usize {
    let mut h2 = siege.h2(front, &[]);
    let mut sent = 0;
    while sent < most && h2.send(&next(sent)) {
        sent += 1;
    }
    sent
}

/// A stream's number.
fn stream(nth: usize) -> u32 {
    u32::try_from(2 * nth + 1).unwrap()
}

#[test]
fn rapid_reset() {
    let siege = Siege::begin(&[], true);
    for front in FRONTS {
        let head = siege.head(front);
        let reset = 8_u32.to_be_bytes();
        let both = |nth: usize| {
            let id = stream(nth);
            [frame(h2::HEADERS, h2::END_HEADERS, id, &head), frame(h2::RST_STREAM, 0, id, &reset)]
                .concat()
        };
        // in one packet, before anybody looks; TLS cuts them so that the bridge looks, and refuses each by itself
        let most = if matches!(front, Front::Grpc) { 100 } else { 5 };
        let sent = thread::scope(|scope| {
            let floods: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        flood(&siege, front, most, |n| {
                            (0..1_000).flat_map(|m| both(n * 1_000 + m)).collect()
                        })
                    })
                })
                .collect();
            siege.stands();
            floods.into_iter().map(|flood| flood.join().unwrap()).max().unwrap()
        });
        assert!(sent < 100, "{front:?}: {sent},000 were taken");
        siege.is_over("rapid reset");
        // One by one, each seen, so that somebody begins to work for it. The bridge refuses these heads before a body is
        // due, so they are answered, not taken back: it need not close, and has to stand.
        let most = if matches!(front, Front::Grpc) { 50_000 } else { 5_000 };
        let begun = AtomicBool::new(false);
        let sent = thread::scope(|scope| {
            let flood = scope.spawn(|| {
                flood(&siege, front, most, |n| {
                    begun.store(true, Ordering::Release);
                    let id = stream(n);
                    let before =
                        n.checked_sub(3).map(|n| frame(h2::RST_STREAM, 0, stream(n), &reset));
                    thread::sleep(Duration::from_micros(50));
                    [frame(h2::HEADERS, h2::END_HEADERS, id, &head), before.unwrap_or_default()]
                        .concat()
                })
            });
            while !begun.load(Ordering::Acquire) {
                thread::yield_now();
            }
            siege.stands();
            flood.join().unwrap()
        });
        let closed = sent < most;
        assert!(closed || !matches!(front, Front::Grpc), "{front:?}: it takes them for ever");
        siege.is_over("slower reset");
    }
}

#[test]
fn heads_that_never_end_or_swell() {
    let siege = Siege::begin(&[], true);
    for front in FRONTS {
        let begin = frame(h2::HEADERS, 0, 1, &siege.head(front));
        let many = h2::field("x-a", "b").repeat(1_500);
        let huge = h2::field("x-huge", &"x".repeat(10_000));
        // HPACK: 4,000 bytes once, then a byte for each time
        let bomb =
            [h2::remembered("x-bomb", &"x".repeat(3_900)), h2::the_last().repeat(10_000)].concat();
        let continuation = |fields: &[u8]| frame(h2::CONTINUATION, 0, 1, fields);
        let floods: [(&str, Vec<u8>); 4] = [
            ("empty continuations", continuation(&[])),
            ("100,000 header fields", continuation(&many)),
            ("10 MB of header fields", continuation(&huge)),
            ("an HPACK bomb", continuation(&bomb)),
        ];
        for (what, rest) in floods {
            let most = 30_000;
            let sent = thread::scope(|scope| {
                let floods: Vec<_> = (0..4)
                    .map(|_| {
                        scope.spawn(|| {
                            flood(&siege, front, most, |n| {
                                if n == 0 { begin.clone() } else { rest.clone() }
                            })
                        })
                    })
                    .collect();
                siege.stands();
                floods.into_iter().map(|flood| flood.join().unwrap()).max().unwrap()
            });
            assert!(sent < most, "{front:?}, {what}: it takes them for ever");
            siege.is_over(what);
        }
        // swelling heads that do end: each is refused by itself
        let mut h2 = siege.h2(front, &[]);
        let swollen = [siege.head(front), bomb.clone()].concat();
        for n in 0..1_000 {
            if !h2.send(&frame(h2::HEADERS, h2::END_HEADERS | h2::END_STREAM, stream(n), &swollen))
            {
                break;
            }
        }
        siege.stands();
        drop(h2);
        siege.is_over("HPACK bombs");
    }
}

#[test]
fn frames_that_ask_for_nothing() {
    let siege = Siege::begin(&[], true);
    for front in FRONTS {
        let head = frame(h2::HEADERS, h2::END_HEADERS, 1, &siege.head(front));
        let floods: [(&str, Vec<u8>); 7] = [
            ("pings", frame(h2::PING, 0, 0, &[7; 8])),
            ("settings", frame(h2::SETTINGS, 0, 0, &[0, 3, 0, 0, 1, 0])),
            ("priorities", frame(h2::PRIORITY, 0, 1, &[0, 0, 0, 0, 7])),
            (
                "window updates",
                frame(h2::WINDOW_UPDATE, 0, 0, &0_u32.wrapping_add(1).to_be_bytes()),
            ),
            ("empty data", frame(h2::DATA, 0, 1, &[])),
            ("bytes of data", frame(h2::DATA, 0, 1, b" ")),
            ("frames of no known kind", frame(0x77, 0, 0, &[7; 100])),
        ];
        for (what, one) in floods {
            let pack = one.repeat(500);
            let stop = AtomicBool::new(false);
            thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        let mut h2 = siege.h2(front, &[]);
                        let mut going = h2.send(&head);
                        // none of the answers is ever read
                        while going && !stop.load(Ordering::Acquire) {
                            going = h2.send(&pack);
                        }
                    });
                }
                for _ in 0..3 {
                    siege.stands();
                }
                stop.store(true, Ordering::Release);
            });
            siege.is_over(what);
        }
    }
}

#[test]
fn a_window_that_never_opens() {
    let siege = Siege::begin(&[], true);
    for front in FRONTS {
        for window in [0, 1] {
            let mut peers: Vec<H2> =
                (0..20).map(|_| siege.h2(front, &[(h2::INITIAL_WINDOW, window)])).collect();
            for h2 in &mut peers {
                for n in 0..500 {
                    let (head, body) = match front {
                        Front::Grpc => {
                            let cancel = Payment::new().cancel().encode_to_vec();
                            (siege.head(front), h2::message(&cancel))
                        }
                        // unsigned, which is quicker and no less of an answer
                        Front::Bridge => (
                            h2::fields(&[
                                (":method", "POST"),
                                (":scheme", "https"),
                                (":path", "/nothing"),
                                (":authority", "a"),
                            ]),
                            b"{}".to_vec(),
                        ),
                    };
                    let id = stream(n);
                    let sent = h2.send(
                        &[
                            frame(h2::HEADERS, h2::END_HEADERS, id, &head),
                            frame(h2::DATA, h2::END_STREAM, id, &body),
                        ]
                        .concat(),
                    );
                    if !sent {
                        break;
                    }
                }
            }
            siege.stands();
            for h2 in &mut peers {
                // it answers pings, and takes nothing
                while h2.next_answering().is_some() {}
            }
            siege.is_over(&format!("a window of {window} on {front:?}"));
        }
    }
}

#[test]
fn a_consumer_that_does_not_read_keeps_its_stream_and_costs_little() {
    let siege = Siege::begin(&[], false);
    for _ in 0..300 {
        siege.grpc.record(&Payment::new(), Payment::new().initiated());
    }
    for _ in 0..100 {
        siege.grpc.cancel_payment(Payment::new().cancel()).expect("S");
    }
    let mut peers: Vec<H2> = (0..20)
        .map(|n| {
            let settings = [(h2::INITIAL_WINDOW, 0)];
            let mut h2 = H2::plain(siege.service.ports().grpc, &settings);
            for m in 0..20 {
                let consumer = format!("lazy-{n}-{m}");
                let subscribe = wire::SubscribeRequest { consumer, ..Default::default() };
                let id = stream(m);
                let head = h2::call("/alipayplus.cancel.v1.FeedService/Subscribe");
                h2.send(&frame(h2::HEADERS, h2::END_HEADERS, id, &head));
                let message = h2::message(&subscribe.encode_to_vec());
                h2.send(&frame(h2::DATA, h2::END_STREAM, id, &message));
            }
            h2
        })
        .collect();
    // longer than an ordinary answer may wait
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(5) {
        siege.stands();
        thread::sleep(Duration::from_millis(100));
    }
    for h2 in &mut peers {
        let window = 1_000_000_u32.to_be_bytes();
        for m in 0..20 {
            h2.send(&frame(h2::WINDOW_UPDATE, 0, stream(m), &window));
        }
        let data = std::iter::from_fn(|| h2.next_answering()).find(|next| next.kind == h2::DATA);
        assert!(data.is_some(), "it is given what there was all along");
    }
    drop(peers);
    siege.is_over("consumers that do not read");
}

#[test]
fn more_streams_than_allowed_and_messages_that_drip() {
    let siege = Siege::begin(&[], true);
    for front in FRONTS {
        let head = siege.head(front);
        let mut peers: Vec<H2> = (0..10).map(|_| siege.h2(front, &[])).collect();
        for h2 in &mut peers {
            for n in 0..3_000 {
                let id = stream(n);
                // a message is announced, and half of it comes
                let mut bytes = frame(h2::HEADERS, h2::END_HEADERS, id, &head);
                let part = [&[0, 0, 3, 0, 0][..], &[b' '; 500]].concat();
                bytes.extend(frame(h2::DATA, 0, id, &part));
                if !h2.send(&bytes) {
                    break;
                }
            }
        }
        siege.stands();
        for (nth, h2) in peers.iter_mut().enumerate() {
            let (mut refused, mut answered) = (0, 0);
            while let Some(next) = h2.next_answering() {
                match next.kind {
                    h2::RST_STREAM if next.payload == 7_u32.to_be_bytes() => refused += 1,
                    h2::HEADERS => answered += 1,
                    _ => {}
                }
            }
            if nth == 0 {
                println!("{front:?}: {refused} refused, {answered} answered, then it closed");
            }
        }
        siege.is_over(&format!("too many streams on {front:?}"));
        // one that is merely too eager keeps its connection
        let mut eager = siege.h2(front, &[]);
        eager.settle();
        for n in 0..1_100 {
            assert!(eager.send(&frame(h2::HEADERS, h2::END_HEADERS, stream(n), &head)));
        }
        let refused = std::iter::from_fn(|| eager.next_answering())
            .find(|next| next.kind == h2::RST_STREAM && next.payload == 7_u32.to_be_bytes());
        assert!(refused.is_some(), "{front:?}");
        drop(eager);
    }
}

#[test]
fn messages_in_many_pieces_of_many_callers_fit_into_a_budget() {
    let siege = Siege::begin(&["limits.body_timeout=1m"], true);
    let head = siege.head(Front::Grpc);
    // 190 KB of a message of 240 KB, 5 times on each of 200 connections, would be 190 MB
    let piece = frame(h2::DATA, 0, 1, &[b' '; 16_000]);
    let mut peers = Vec::new();
    for _ in 0..200 {
        // not before its turn: whoever asks nothing for two seconds is told to leave
        let mut h2 = siege.h2(Front::Grpc, &[]);
        h2.settle();
        for n in 0..5 {
            let mut bytes = frame(h2::HEADERS, h2::END_HEADERS, stream(n), &head);
            bytes.extend(frame(h2::DATA, 0, stream(n), &[0, 0, 3, 0xa9, 0x80]));
            let id = bytes.len() + 5;
            for at in 0..12 {
                bytes.extend(&piece);
                let id = id + at * piece.len();
                bytes[id..id + 4].copy_from_slice(&stream(n).to_be_bytes());
            }
            assert!(h2.send(&bytes));
        }
        peers.push(h2);
    }
    // the budget of this address is taken, so what came last was refused
    let refused = peers.last_mut().unwrap();
    let mut said = Vec::new();
    let answer = eventually("an answer or the end", || match refused.next_answering() {
        None => Some(None),
        Some(next) if next.kind == h2::HEADERS => Some(Some(next)),
        Some(next) => {
            said.push(next);
            None
        }
    });
    assert!(answer.is_some(), "{said:?}");
    let memory = siege.memory();
    assert!(memory < MEMORY_MAX, "{memory} KB");
    drop(peers);
    siege.is_over("halves of messages");
}

#[test]
fn an_http_2_connection_that_asks_nothing_is_told_to_leave() {
    let siege = Siege::begin(&[], true);
    for front in FRONTS {
        let mut h2 = siege.h2(front, &[]);
        let goaway =
            std::iter::from_fn(|| h2.next_answering()).find(|next| next.kind == h2::GOAWAY);
        assert!(goaway.is_some(), "{front:?}");
        // one that does not listen is left
        while h2.next_answering().is_some() {}
        // and whoever does, and comes again, is served: the honest clients were idle as long
        siege.is_over("idleness");
    }
}

#[test]
fn honest_peers_notice_nothing_of_the_bounds() {
    let siege = Siege::begin(&[], false);
    let calls = |count: usize, token: &str| {
        let channel = siege.grpc.channel();
        let token = token.to_owned();
        siege.grpc.block_on(async move {
            let calls: Vec<_> = (0..count)
                .map(|_| {
                    let mut client =
                        wire::cancel_service_client::CancelServiceClient::new(channel.clone());
                    let pass_through_info = Some(token.clone());
                    let request = wire::CancelTokenRequest {
                        pass_through_info,
                        ..Grant::new().cancel("honest")
                    };
                    tokio::spawn(async move { client.cancel_token(request).await })
                })
                .collect();
            for call in calls {
                call.await.unwrap().expect("an answer");
            }
        });
    };
    calls(200, "x");
    // 240 KB each
    calls(40, &"💳".repeat(20_000));
    // two hundred that all give up at once, three times, then one that does not
    for _ in 0..3 {
        let channel = siege.grpc.channel();
        siege.grpc.block_on(async move {
            let calls: Vec<_> = (0..200)
                .map(|_| {
                    let mut client =
                        wire::cancel_service_client::CancelServiceClient::new(channel.clone());
                    let request = Payment::new().cancel();
                    tokio::spawn(async move {
                        tokio::time::timeout(
                            Duration::from_millis(2),
                            client.cancel_payment(request),
                        )
                        .await
                    })
                })
                .collect();
            for call in calls {
                if let Ok(answered) = call.await.unwrap() {
                    answered.expect("an answer");
                }
            }
        });
    }
    siege.grpc.cancel_payment(Payment::new().cancel()).expect("S");
    // a stream beyond every bound of a single answer
    let other = siege.service.grpc();
    let mut followed = other.follow("honest");
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(6) {
        siege.grpc.cancel_payment(Payment::new().cancel()).expect("S");
        followed.event();
        thread::sleep(Duration::from_millis(1_500));
    }
    // and whoever was idle, and told so, comes again
    siege.grpc.block_on(async { tokio::time::sleep(Duration::from_secs(5)).await });
    let story = siege.grpc.get_payment(wire::GetPaymentRequest {
        psp_id: "p".to_owned(),
        payment_request_id: "unknown".to_owned(),
    });
    let status = story.unwrap_err();
    assert_eq!(status.code(), Code::NotFound, "{status:?}");
}
