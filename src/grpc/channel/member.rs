//! One core: its connection, whether it is healthy, what it has in flight.

use std::{
    fmt, future,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use http_body_util::BodyExt as _;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{self, Instant},
};
use tokio_rustls::TlsConnector;
use tonic::{
    Code, Status, Streaming,
    body::Body,
    codegen::http::{
        Request, Response, Uri,
        uri::{Authority, Scheme},
    },
};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_client::HealthClient,
};
use tower::Service;

use super::{Place, Shared, Tls};

/// For a connection, TLS and all, and then once more for its first word about health.
const CONNECT_WAIT: Duration = Duration::from_secs(1);
/// How often a core that says nothing is asked for a sign of life …
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// … and how long it may take for it. Together less than any deadline, so that another core can still answer.
const KEEP_ALIVE_WAIT: Duration = Duration::from_millis(1_500);
/// Between two tries to reach a core: from here, doubling, to there.
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// So many failures in a row …
const FAILURES_MAX: u32 = 5;
/// … and a core is passed over so long.
const PASSED_OVER: Duration = Duration::from_secs(5);
/// The service whose health counts.
const SERVICE: &str = "alipayplus.cancel.v1.CancelService";

/// A core at one address.
pub(super) struct Member {
    address: SocketAddr,
    authority: Authority,
    host: String,
    /// Of a core that is healthy.
    connection: Mutex<Option<Connection>>,
    in_flight: AtomicUsize,
    failures: AtomicU32,
    passed_over: Mutex<Option<Instant>>,
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.authority, self.address)
    }
}

/// A call in flight.
pub(super) struct InFlight<'m>(&'m AtomicUsize);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Member {
    /// A core that is not connected yet; `None` if the place is none.
    pub(super) fn new(place: &Place, address: SocketAddr) -> Option<Self> {
        let Place { host, port } = place;
        let authority =
            if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        Some(Self {
            address,
            authority: authority.parse().ok()?,
            host: host.clone(),
            connection: Mutex::default(),
            in_flight: AtomicUsize::new(0),
            failures: AtomicU32::new(0),
            passed_over: Mutex::default(),
        })
    }

    /// Whether it was found by this place's name: the one it is verified by.
    pub(super) fn is_of(&self, place: &Place) -> bool {
        (&self.host, self.address.port()) == (&place.host, place.port)
    }

    /// Its connection, if it is healthy.
    pub(super) fn connection(&self) -> Option<Connection> {
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        connection.as_ref().filter(|connection| !connection.send.is_closed()).cloned()
    }

    /// Whether calls may go there.
    pub(super) fn is_healthy(&self) -> bool {
        self.connection().is_some()
    }

    fn set(&self, connection: Option<Connection>) {
        *self.connection.lock().unwrap_or_else(PoisonError::into_inner) = connection;
    }

    /// How many calls it has.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Counts a call until it is dropped.
    pub(super) fn begin(&self) -> InFlight<'_> {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(&self.in_flight)
    }

    /// How a call went.
    pub(super) fn seen(&self, answered: bool) {
        if answered {
            self.failures.store(0, Ordering::Relaxed);
            return;
        }
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if failures >= FAILURES_MAX {
            self.failures.store(0, Ordering::Relaxed);
            *self.passed_over.lock().unwrap_or_else(PoisonError::into_inner) =
                Some(Instant::now() + PASSED_OVER);
        }
    }

    /// Whether others are better.
    pub(super) fn is_passed_over(&self) -> bool {
        let until = *self.passed_over.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }

    /// Connects, watches its health, connects again, for ever.
    pub(super) async fn keep(self: Arc<Self>, shared: Arc<Shared>) {
        // whoever stops looking here must not leave a connection that is taken for healthy
        let _end = Forget(Arc::clone(&self));
        let mut tls = shared.tls.subscribe();
        let mut pause = Duration::ZERO;
        let mut was_told = false;
        loop {
            let set_up = tls.borrow_and_update().clone();
            let opened = self.open(set_up).await;
            match opened {
                Ok(watched) => {
                    (pause, was_told) = (Duration::ZERO, false);
                    tracing::info!(core = ?self, "a core is healthy");
                    let end = self.serve(watched, &mut tls, &shared).await;
                    self.set(None);
                    tracing::warn!(core = ?self, %end, "a core is lost");
                }
                Err(error) => {
                    // each second would be too often
                    if !was_told {
                        tracing::warn!(core = ?self, %error, "a core cannot be reached");
                    }
                    was_told = true;
                }
            }
            tokio::select! {
                () = time::sleep(pause) => {}
                changed = tls.changed() => if changed.is_err() { return },
            }
            pause = (pause * 2).clamp(PAUSE, PAUSE_MAX);
        }
    }

    /// Lets calls go there until its health ends. A change of TLS makes the next connection before it lets go of this.
    async fn serve(
        &self,
        mut watched: Watched,
        tls: &mut tokio::sync::watch::Receiver<Option<Tls>>,
        shared: &Shared,
    ) -> NotHealthy {
        let mut retry: Option<Instant> = None;
        loop {
            self.set(Some(watched.connection.clone()));
            shared.healthy.notify_waiters();
            let due = async {
                match retry {
                    Some(at) => time::sleep_until(at).await,
                    None => future::pending().await,
                }
            };
            tokio::select! {
                biased;
                end = watched.end() => return end,
                changed = tls.changed() => if changed.is_err() {
                    return NotHealthy::Lost("nobody asks any more".to_owned());
                },
                () = due => {}
            }
            let set_up = tls.borrow_and_update().clone();
            match self.open(set_up).await {
                Ok(next) => {
                    tracing::info!(core = ?self, "connected anew, with the new certificates");
                    (watched, retry) = (next, None);
                }
                Err(error) => {
                    tracing::error!(
                        core = ?self, %error,
                        "no connection with the new certificates; the one there is serves on"
                    );
                    retry = Some(Instant::now() + PAUSE_MAX * 5);
                }
            }
        }
    }

    /// A connection whose core says that it is healthy.
    async fn open(&self, tls: Option<Tls>) -> Result<Watched, NotHealthy> {
        let lost = |error: &dyn fmt::Display| NotHealthy::Lost(error.to_string());
        let connection = time::timeout(CONNECT_WAIT, self.connect(tls)).await;
        let connection = connection.map_err(|_| lost(&"no connection in time"))??;
        let mut client = HealthClient::new(connection.clone());
        let asked = async {
            let request = HealthCheckRequest { service: SERVICE.to_owned() };
            let stream = client.watch(request).await.map_err(|status| NotHealthy::of(&status))?;
            let mut watched = Watched { connection, stream: stream.into_inner() };
            watched.next().await?;
            Ok(watched)
        };
        let asked = time::timeout(CONNECT_WAIT, asked).await;
        asked.map_err(|_| lost(&"no word about its health in time"))?
    }

    async fn connect(&self, tls: Option<Tls>) -> Result<Connection, NotHealthy> {
        let lost = |error: &dyn fmt::Display| NotHealthy::Lost(error.to_string());
        let socket = TcpStream::connect(self.address).await.map_err(|error| lost(&error))?;
        // without it, small requests wait for the peer's delayed acknowledgement
        socket.set_nodelay(true).map_err(|error| lost(&error))?;
        let Some(Tls { config, server_name }) = tls else {
            return self.speak(socket, Scheme::HTTP).await;
        };
        let named = || ServerName::try_from(self.host.clone());
        let name = server_name.map_or_else(named, Ok).map_err(|error| lost(&error))?;
        let stream = TlsConnector::from(config).connect(name, socket).await;
        self.speak(stream.map_err(|error| lost(&error))?, Scheme::HTTPS).await
    }

    async fn speak<I>(&self, io: I, scheme: Scheme) -> Result<Connection, NotHealthy>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (send, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE_WAIT)
            .keep_alive_while_idle(true)
            .handshake(TokioIo::new(io))
            .await
            .map_err(|error| NotHealthy::Lost(error.to_string()))?;
        // ends with the last call on it, once nobody can begin another
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to a core ended");
            }
        });
        Ok(Connection { send, scheme, authority: self.authority.clone() })
    }
}

struct Forget(Arc<Member>);

impl Drop for Forget {
    fn drop(&mut self) {
        self.0.set(None);
    }
}

/// Why a core gets no calls.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotHealthy {
    /// It says so: it drains, or has not begun.
    #[error("it says that it does not serve")]
    NotServing,
    /// It does not take us for a bridge.
    #[error("it refuses us: {0}")]
    Refused(String),
    /// There is no connection.
    #[error("{0}")]
    Lost(String),
}

impl NotHealthy {
    fn of(status: &Status) -> Self {
        if status.code() == Code::Unavailable {
            return Self::Lost(status.message().to_owned());
        }
        Self::Refused(format!("{:?}: {}", status.code(), status.message()))
    }
}

/// A connection, and what its core says of its health.
struct Watched {
    connection: Connection,
    stream: Streaming<HealthCheckResponse>,
}

impl Watched {
    async fn next(&mut self) -> Result<(), NotHealthy> {
        match self.stream.message().await {
            Ok(Some(said)) if said.status() == ServingStatus::Serving => Ok(()),
            Ok(Some(_)) => Err(NotHealthy::NotServing),
            Ok(None) => Err(NotHealthy::Lost("it ended the connection".to_owned())),
            Err(status) => Err(NotHealthy::of(&status)),
        }
    }

    /// Waits until it is not healthy any more.
    async fn end(&mut self) -> NotHealthy {
        loop {
            if let Err(end) = self.next().await {
                return end;
            }
        }
    }
}

/// A connection that calls go over.
#[derive(Clone)]
pub struct Connection {
    send: http2::SendRequest<Body>,
    scheme: Scheme,
    authority: Authority,
}

type Answering = Pin<Box<dyn Future<Output = Result<Response<Body>, Status>> + Send>>;

impl Service<Request<Body>> for Connection {
    type Response = Response<Body>;
    // whatever fails on the way is UNAVAILABLE, not what HTTP/2's error codes make of it
    type Error = Status;
    type Future = Answering;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Answering {
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(self.authority.clone());
        match Uri::from_parts(parts) {
            Ok(uri) => *request.uri_mut() = uri,
            Err(error) => return Box::pin(future::ready(Err(lost(&error)))),
        }
        let answer = self.send.send_request(request);
        Box::pin(async move {
            let answer = answer.await.map_err(|error| lost(&error))?;
            Ok(answer.map(|body| Body::new(body.map_err(|error| lost(&error)))))
        })
    }
}

fn lost(error: &dyn fmt::Display) -> Status {
    Status::unavailable(format!("the connection to the core failed: {error}"))
}
