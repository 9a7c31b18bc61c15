//! The accept loop under every front: TLS, time-outs, caps on connections, drain.
//!
//! `axum::serve` and tonic's own transport have no time-out for a slow head and none for an idle connection, and tonic
//! leaves Nagle's algorithm on. Here each wait has a bound, and a connection counts for its source from the moment it
//! is accepted.

mod chunks;
mod conversation;
mod head;

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use http::{Request, Response};
use http_body::Body;
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    time,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::Service;

pub use self::conversation::Heard;
use self::conversation::{Conversation, Stream};
use crate::{
    layer::{
        budget::{Budget, Share},
        identity::Names,
    },
    tls,
};

/// The other end of a request's connection.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// Whose certificate a request's connection was made with: the first name in it. Absent without a certificate, or one
/// without names.
#[derive(Clone, Debug)]
pub struct Identity(pub Option<Arc<str>>);

/// Ends the connection a request came on, whatever it is in the middle of: for a peer that does not even take the end
/// of what it asked for.
#[derive(Clone, Debug)]
pub struct Cut(CancellationToken);

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
}

impl Front {
    /// Serves until `stop`, then accepts no more; `connections` ends when the last request is answered.
    pub async fn serve<S, B>(self, service: S, stop: CancellationToken, connections: TaskTracker)
    where
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>
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
        let Self { listener, tls, protocol, bounds, connections: budget } = self;
        let speaker = Arc::new(Speaker { tls, protocol, bounds });
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            let (socket, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    pause_after(&error).await;
                    continue;
                }
            };
            // over the cap: closed at once, because even a refusal would cost a handshake
            let Some(share) = budget.take(peer.ip().into(), 1) else { continue };
            let (speaker, service, stop) = (Arc::clone(&speaker), service.clone(), stop.clone());
            connections
                .spawn(async move { speaker.connection(socket, peer, share, service, stop).await });
        }
    }
}

/// What a connection needs of its front.
struct Speaker {
    tls: Option<Arc<ArcSwap<ServerConfig>>>,
    protocol: Protocol,
    bounds: Bounds,
}

impl Speaker {
    async fn connection<S, B>(
        &self,
        socket: TcpStream,
        peer: SocketAddr,
        share: Share,
        service: S,
        stop: CancellationToken,
    ) where
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>
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
                let from = (peer, Identity(None), None);
                self.speak(socket, self.protocol, from, service, stop).await;
            }
            Some(tls) => {
                let handshake = TlsAcceptor::from(tls.load_full()).accept(socket);
                let Ok(Ok(stream)) = time::timeout(self.bounds.first_byte, handshake).await else {
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
                let identity = Identity(first.map(|name| Arc::from(&**name)));
                self.speak(stream, protocol, (peer, identity, names), service, stop).await;
            }
        }
        drop(share);
    }

    async fn speak<I, S, B>(
        &self,
        io: I,
        protocol: Protocol,
        (peer, identity, names): (SocketAddr, Identity, Option<Names>),
        service: S,
        stop: CancellationToken,
    ) where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>
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
        let (heard, watched) = (Arc::clone(&conversation), protocol == Protocol::Http1);
        let stream = TokioIo::new(Stream::new(io, Arc::clone(&conversation), watched));
        let cut = Cut(CancellationToken::new());
        let was_cut = cut.0.clone();
        let answer = hyper::service::service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(Peer(peer));
            request.extensions_mut().insert(identity.clone());
            if let Some(names) = &names {
                request.extensions_mut().insert(names.clone());
            }
            request.extensions_mut().insert(cut.clone());
            let heard = Heard::new(&heard, &request);
            let mut service = service.clone();
            async move {
                let answer = service.call(request).await;
                drop(heard);
                answer
            }
        });
        let result = match protocol {
            Protocol::Http1 => {
                let mut builder = http1::Builder::new();
                builder
                    .timer(TokioTimer::new())
                    .header_read_timeout(None)
                    .max_buf_size(self.bounds.head_bytes)
                    // whoever has said all it has to say is answered all the same
                    .half_close(true);
                let connection = builder.serve_connection(stream, answer);
                tokio::pin!(connection);
                tokio::select! {
                    result = connection.as_mut() => result,
                    () = stop.cancelled() => {
                        connection.as_mut().graceful_shutdown();
                        connection.await
                    }
                }
            }
            Protocol::Http2 => {
                let mut builder = http2::Builder::new(TokioExecutor::new());
                builder
                    .timer(TokioTimer::new())
                    .max_concurrent_streams(STREAMS_MAX)
                    .max_header_list_size(u32::try_from(self.bounds.head_bytes).unwrap_or(u32::MAX))
                    .keep_alive_interval(KEEP_ALIVE)
                    .keep_alive_timeout(KEEP_ALIVE)
                    .initial_stream_window_size(STREAM_WINDOW)
                    .initial_connection_window_size(CONNECTION_WINDOW);
                let connection = builder.serve_connection(stream, answer);
                tokio::pin!(connection);
                tokio::select! {
                    result = connection.as_mut() => result,
                    () = was_cut.cancelled() => Ok(()),
                    () = stop.cancelled() => {
                        connection.as_mut().graceful_shutdown();
                        tokio::select! {
                            result = connection => result,
                            () = was_cut.cancelled() => Ok(()),
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

/// Out of file handles or memory: the next accept would fail as well, so let something end first.
async fn pause_after(error: &io::Error) {
    let kind = error.kind();
    if matches!(kind, io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
        return;
    }
    tracing::warn!(%error, "a connection could not be accepted");
    time::sleep(Duration::from_millis(50)).await;
}
