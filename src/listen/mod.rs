//! The accept loop under every front: TLS, time-outs, caps on connections, drain.
//!
//! `axum::serve` and tonic's own transport have no time-out for a slow head and none for an idle connection, and tonic
//! leaves Nagle's algorithm on. Here each wait has a bound, and a connection counts for its source from the moment it
//! is accepted.

mod body;
mod chunks;
mod conversation;
mod gather;
mod head;
mod porter;
mod streams;

use std::{
    convert::Infallible,
    future::Future,
    io,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use http::{HeaderValue, Request, Response, header};
use http_body::Body;
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpSocket, TcpStream},
    time,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::Service;

use self::{
    body::Sent,
    conversation::{Conversation, Stream},
    gather::Gathered,
    porter::Posted,
    streams::{Answers, Call, Streams},
};
pub use self::{
    body::{Bodies, BodyRoom, Patient, ReceiveError, Received},
    conversation::Heard,
    porter::Porter,
};
use crate::{
    layer::{
        budget::{Budget, Share},
        identity::Names,
    },
    telemetry::{Metrics, label},
    tls,
};

/// The other end of a request's connection.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// Whose certificate a request's connection was made with: the first name in it. Not there without a certificate, or
/// with one without names.
#[derive(Clone, Debug)]
pub struct Identity(pub Arc<str>);

/// Ends the connection a request came on, whatever it is in the middle of: for a peer that does not even take the end
/// of what it asked for.
#[derive(Clone, Debug)]
pub struct Cut(Arc<CancellationToken>);

impl Cut {
    /// Ends it.
    pub fn now(&self) {
        self.0.cancel();
    }
}

/// Which HTTP a front speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1; HTTP/2 too if TLS agreed on it.
    Http1,
    /// HTTP/2 from the first byte, as gRPC does.
    Http2,
}

/// The bounds of a front.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// From accepting a connection to its first byte, TLS handshake apart, which has the same time.
    pub first_byte: Duration,
    /// For a request's head, from its first byte.
    pub head: Duration,
    /// For the next request on a connection.
    pub idle: Duration,
    /// For the peer to take what is sent.
    pub write: Duration,
    /// Longest head, in bytes.
    pub head_bytes: usize,
}

/// Most streams at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 1_024;
/// What a peer may send on one HTTP/2 stream before we read, in bytes: the largest message at once.
const STREAM_WINDOW: u32 = 256 * 1024;
/// The same of a connection. h2 lets the overhead of small frames that wait to be read be half of it (256 bytes less
/// the payload, each) and closes the connection, with every call on it, beyond: so it must be enough for two frames on
/// each of [`STREAMS_MAX`] streams. An adaptive window starts at 64 KiB, which a burst of 200 calls exceeds.
const CONNECTION_WINDOW: u32 = 2 * 2 * 256 * STREAMS_MAX;
/// HTTP/2 pings an idle peer this often, and gives it the same time to answer.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Most that waits on one HTTP/2 stream for the peer to open its window, in bytes, one frame apart. Beyond, the answer is
/// not asked for its next piece.
const SEND_BUFFER: usize = 64 * 1024;
/// Most streams of one HTTP/2 connection that the peer took back before we looked at them; more close it. An honest one
/// may give up all that it has open while we stand still.
const RESETS_UNSEEN: usize = 1_024;
/// Most streams of one HTTP/2 connection that we reset for the peer's errors; more close it.
const RESETS_OURS: usize = 256;
/// Most answers, or pieces of them, that wait on HTTP/2 for their peers to take them, and of one source. Each costs some
/// 7 KB with its stream; the connection of one that is too many ends. Whoever reads has a few at once.
const ANSWERS_MAX: usize = 32_768;
const ANSWERS_PER_SOURCE: usize = 8_192;
/// What the kernel keeps of answers that a peer does not take, in bytes, of each connection: the largest message. By
/// itself it would keep megabytes.
const KERNEL_SEND_BUFFER: u32 = 256 * 1024;
/// Connections that the kernel keeps for us to accept.
const BACKLOG: u32 = 1_024;
/// How long an idle HTTP/1.1 connection stays open when the front stops: a request may be on its way, and closing would
/// lose it. Its answer says `connection: close`.
const LINGER: Duration = Duration::from_secs(1);
/// How long an HTTP/2 peer that has nothing open, and was told that the connection ends, may leave it open.
const PARTING: Duration = Duration::from_secs(2);

/// How a front ends.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    /// Soon: answers of HTTP/1.1 say `connection: close`, so that clients go elsewhere.
    pub soon: CancellationToken,
    /// Now: nothing more is accepted, and connections end once what they have under way is answered.
    pub now: CancellationToken,
}

/// Listens.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    // accepted sockets have it from here
    socket.set_send_buffer_size(KERNEL_SEND_BUFFER)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// A front that listens.
pub struct Front {
    /// Where.
    pub listener: TcpListener,
    /// With which certificate, each connection with the one that is there when it comes; absent: in plain text.
    pub tls: Option<Arc<ArcSwap<ServerConfig>>>,
    /// What it speaks.
    pub protocol: Protocol,
    /// How long it waits, and for how much.
    pub bounds: Bounds,
    /// How many connections it takes.
    pub connections: Arc<Budget>,
    /// How request bodies are bounded, unless what is behind bounds them itself.
    pub bodies: Option<Bodies>,
    /// Who turns requests of HTTP/1.1 away before they are requests.
    pub porter: Option<Arc<dyn Porter>>,
    /// Where they are counted, and as whose.
    pub told: (Metrics, &'static str),
}

impl Front {
    /// Serves until told to stop, then accepts no more; `connections` ends when the last request is answered.
    pub async fn serve<S, B>(self, service: S, stop: Stop, connections: TaskTracker)
    where
        S: Service<Request<Received>, Response = Response<B>, Error = Infallible>
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        // not shared with the connections: it closes when this loop ends, so that newcomers are refused and go elsewhere
        let Self { listener, tls, protocol, bounds, connections: budget, bodies, porter, told } =
            self;
        // a series that is not there yet cannot be seen to grow
        let (metrics, front) = &told;
        metrics.shed.add(0, &[label("front", *front), label("reason", "connections")]);
        if tls.is_some() {
            metrics.handshake_failures.add(0, &[label("front", *front)]);
        }
        let speaker = Arc::new(Speaker {
            tls,
            protocol,
            bounds,
            bodies,
            answers: Budget::new(ANSWERS_MAX, ANSWERS_PER_SOURCE),
            porter,
            told: told.clone(),
        });
        let leave = CancellationToken::new();
        let take = |socket: TcpStream, peer: SocketAddr| {
            // over the cap: closed at once, because even a refusal would cost a handshake
            let Some(share) = budget.take(peer.ip().into(), 1) else {
                let (metrics, front) = &told;
                metrics.shed.add(1, &[label("front", *front), label("reason", "connections")]);
                return;
            };
            let (speaker, service) = (Arc::clone(&speaker), service.clone());
            let stop = Stop { soon: stop.soon.clone(), now: leave.clone() };
            let open = Open::new(&told);
            connections.spawn(async move {
                speaker.connection(socket, peer, share, service, stop).await;
                drop(open);
            });
        };
        // who waits for the connections waits for those still to be taken
        let accepting = connections.token();
        loop {
            let accepted = tokio::select! {
                () = stop.now.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((socket, peer)) => take(socket, peer),
                Err(error) => pause_after(&error).await,
            }
        }
        // Those whose connect has succeeded are served: closing the listener would reset them. The kernel itself is
        // asked, because the runtime may not have heard of them yet.
        if let Ok(listener) = listener.into_std() {
            // those that were there: a flood that goes on must not hold us
            for _ in 0..=BACKLOG {
                let Ok((socket, peer)) = listener.accept() else { break };
                if socket.set_nonblocking(true).is_ok()
                    && let Ok(socket) = TcpStream::from_std(socket)
                {
                    take(socket, peer);
                }
            }
        }
        // only now: whoever is told to leave must not find the port still open
        leave.cancel();
        drop(accepting);
    }
}

/// A connection that counts as long as it is there.
struct Open(Metrics, &'static str);

impl Open {
    fn new((metrics, front): &(Metrics, &'static str)) -> Self {
        metrics.connections.add(1, &[label("front", *front)]);
        Self(metrics.clone(), front)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.connections.add(-1, &[label("front", self.1)]);
    }
}

/// What a connection needs of its front.
struct Speaker {
    tls: Option<Arc<ArcSwap<ServerConfig>>>,
    protocol: Protocol,
    bounds: Bounds,
    bodies: Option<Bodies>,
    /// Room for answers that are not taken.
    answers: Arc<Budget>,
    porter: Option<Arc<dyn Porter>>,
    told: (Metrics, &'static str),
}

impl Speaker {
    async fn connection<S, B>(
        &self,
        socket: TcpStream,
        peer: SocketAddr,
        share: Share,
        service: S,
        stop: Stop,
    ) where
        S: Service<Request<Received>, Response = Response<B>, Error = Infallible>
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        // without it, small answers wait for the peer's delayed acknowledgement
        if let Err(error) = socket.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY could not be set");
        }
        match &self.tls {
            None => {
                let from = (peer, None, None);
                self.speak(socket, self.protocol, from, service, stop).await;
            }
            Some(tls) => {
                let handshake = TlsAcceptor::from(tls.load_full()).accept(socket);
                let Ok(Ok(stream)) = time::timeout(self.bounds.first_byte, handshake).await else {
                    let (metrics, front) = &self.told;
                    metrics.handshake_failures.add(1, &[label("front", *front)]);
                    tracing::debug!(%peer, "TLS handshake failed");
                    return;
                };
                let protocol = match stream.get_ref().1.alpn_protocol() {
                    Some(b"h2") => Protocol::Http2,
                    Some(_) | None => self.protocol,
                };
                let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
                let names = certificate.map(|certificate| Names(tls::names(certificate)));
                let first = names.as_ref().and_then(|names| names.0.first());
                let identity = first.map(|name| Identity(Arc::from(&**name)));
                self.speak(stream, protocol, (peer, identity, names), service, stop).await;
            }
        }
        drop(share);
    }

    async fn speak<I, S, B>(
        &self,
        io: I,
        protocol: Protocol,
        (peer, identity, names): (SocketAddr, Option<Identity>, Option<Names>),
        service: S,
        stop: Stop,
    ) where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        S: Service<Request<Received>, Response = Response<B>, Error = Infallible>
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let conversation = Conversation::new(self.bounds);
        let watched = protocol == Protocol::Http1;
        let soon = Arc::new(stop.soon);
        let porter =
            self.porter.clone().map(|porter| Posted { porter, peer, soon: Arc::clone(&soon) });
        let stream = Stream::new(io, Arc::clone(&conversation), watched, porter);
        let cut = CancellationToken::new();
        let streams = (!watched).then(|| {
            let room = Arc::clone(&self.answers);
            Streams::new(Answers { room, source: peer.ip().into() }, cut.clone())
        });
        let exchange = Exchange {
            peer,
            identity,
            names,
            // of HTTP/1.1 nothing lasts that would have to be cut
            cut: streams.is_some().then(|| Cut(Arc::new(cut.clone()))),
            bodies: self.bodies.clone(),
            conversation: Arc::clone(&conversation),
            streams: streams.clone(),
            soon,
        };
        let answer = hyper::service::service_fn(move |request| exchange.answer(request, &service));
        let result = match streams {
            None => {
                let mut builder = http1::Builder::new();
                builder
                    .timer(TokioTimer::new())
                    .header_read_timeout(None)
                    .max_buf_size(self.bounds.head_bytes)
                    // whoever has said all it has to say is answered all the same
                    .half_close(true);
                let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), answer));
                tokio::select! {
                    result = connection.as_mut() => result,
                    () = stop.now.cancelled() => {
                        match time::timeout(LINGER, connection.as_mut()).await {
                            Ok(result) => result,
                            Err(_) if conversation.is_silent() => Ok(()),
                            Err(_) => {
                                connection.as_mut().graceful_shutdown();
                                connection.await
                            }
                        }
                    }
                }
            }
            Some(streams) => {
                let mut builder = http2::Builder::new(TokioExecutor::new());
                builder
                    .timer(TokioTimer::new())
                    .max_concurrent_streams(STREAMS_MAX)
                    .max_header_list_size(u32::try_from(self.bounds.head_bytes).unwrap_or(u32::MAX))
                    .max_send_buf_size(SEND_BUFFER)
                    .max_pending_accept_reset_streams(RESETS_UNSEEN)
                    .max_local_error_reset_streams(RESETS_OURS)
                    .keep_alive_interval(KEEP_ALIVE)
                    .keep_alive_timeout(KEEP_ALIVE)
                    .initial_stream_window_size(STREAM_WINDOW)
                    .initial_connection_window_size(CONNECTION_WINDOW);
                let stream = TokioIo::new(Gathered::new(stream, Arc::clone(&streams)));
                let mut connection = pin!(builder.serve_connection(stream, answer));
                let mut ended = pin!(async {
                    tokio::select! {
                        () = cut.cancelled() => {}
                        () = streams.stall(self.bounds.write) => {
                            tracing::debug!(%peer, "it does not take its answers");
                        }
                    }
                });
                tokio::select! {
                    result = connection.as_mut() => result,
                    () = ended.as_mut() => Ok(()),
                    () = async {
                        tokio::select! {
                            () = stop.now.cancelled() => {}
                            () = streams.idle(self.bounds.idle) => {}
                        }
                    } => {
                        connection.as_mut().graceful_shutdown();
                        tokio::select! {
                            result = connection => result,
                            () = ended => Ok(()),
                            () = streams.parted(PARTING) => Ok(()),
                        }
                    }
                }
            }
        };
        if let Err(error) = result {
            tracing::debug!(%error, %peer, "connection ended");
        }
    }
}

/// What the requests of one connection share.
struct Exchange {
    peer: SocketAddr,
    identity: Option<Identity>,
    names: Option<Names>,
    cut: Option<Cut>,
    bodies: Option<Bodies>,
    conversation: Arc<Conversation>,
    /// Of HTTP/2.
    streams: Option<Arc<Streams>>,
    soon: Arc<CancellationToken>,
}

impl Exchange {
    fn answer<S, B>(
        &self,
        request: Request<Incoming>,
        service: &S,
    ) -> impl Future<Output = Result<Response<Sent<B>>, Infallible>> + Send + use<S, B>
    where
        S: Service<Request<Received>, Response = Response<B>, Error = Infallible>
            + Clone
            + Send
            + 'static,
        S::Future: Send,
        B: Send + 'static,
    {
        let heard = Heard::new(&self.conversation, request.headers());
        let answered = Arc::new(AtomicBool::new(false));
        let broken = self.streams.is_some().then(Arc::default);
        let mut request = request.map(|body| {
            let received = match &self.bodies {
                Some(bodies) => Received::bounded(body, bodies, self.peer.ip().into(), &answered),
                None => Received::plain(body),
            };
            received.telling(broken.as_ref())
        });
        request.extensions_mut().insert(Peer(self.peer));
        if let Some(identity) = &self.identity {
            request.extensions_mut().insert(identity.clone());
        }
        if let Some(names) = &self.names {
            request.extensions_mut().insert(names.clone());
        }
        if let Some(cut) = &self.cut {
            request.extensions_mut().insert(cut.clone());
        }
        let under_way = self.streams.as_ref().map(|streams| (Call::new(streams), streams.open()));
        let (mut service, soon) = (service.clone(), Arc::clone(&self.soon));
        async move {
            let mut response = service.call(request).await?;
            answered.store(true, Ordering::Release);
            drop(heard);
            let open = under_way.map(|(call, open)| {
                // whoever takes a request back while its body is read is answered too, for nobody
                if !broken.is_some_and(|broken| broken.load(Ordering::Acquire)) {
                    call.answered();
                }
                open
            });
            if open.is_none() && soon.is_cancelled() {
                response
                    .headers_mut()
                    .insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            let patient = response.extensions_mut().remove::<Patient>().is_some();
            Ok(response.map(|body| Sent::new(body, open, patient)))
        }
    }
}

/// Out of file handles or memory: the next accept would fail as well, so let something end first.
async fn pause_after(error: &io::Error) {
    let kind = error.kind();
    if matches!(kind, io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
        return;
    }
    tracing::warn!(%error, "a connection could not be accepted");
    time::sleep(Duration::from_millis(50)).await;
}
