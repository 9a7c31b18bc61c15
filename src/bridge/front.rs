//! The table of paths, and the order in which a request is checked: the first check that fails answers.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::{IpAddr, Ipv4Addr},
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{Router, body::Body, extract::State};
use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header, request::Parts};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use tokio::time;

use super::{
    cancel_payment, cancel_token, envelope,
    envelope::{Address, Verified},
    identity::{Client, Clients, Identity},
    media_type,
    reply::Reply,
    sign_cache::SignCache,
};
use crate::{
    domain::{
        id::{AcquirerId, PspId},
        result::ResultCode,
        time::Timestamp,
    },
    grpc::client::{self, Answer, Call},
    layer::budget::{Budget, Share, Source},
    listen::Peer,
    telemetry::{Span, context::TraceContext},
};

/// One of Alipay+'s APIs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Api {
    CancelPayment,
    CancelToken,
}

impl Api {
    const ALL: [Self; 2] = [Self::CancelPayment, Self::CancelToken];

    /// What Alipay+ publishes of the path; the prefix is the wallet's.
    const fn tail(self) -> &'static str {
        match self {
            Self::CancelPayment => "/v1/payments/cancelPayment",
            Self::CancelToken => "/v1/authorizations/cancelToken",
        }
    }
}

/// What the front takes on, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests at once.
    pub in_flight: usize,
    /// Requests at once from one source.
    pub in_flight_per_source: usize,
    /// Longest body, in bytes.
    pub body_bytes: usize,
    /// Bytes of all bodies at once.
    pub body_bytes_in_flight: usize,
    /// Bytes of all bodies at once from one source.
    pub body_bytes_in_flight_per_source: usize,
    /// For a body, all of it.
    pub body_timeout: Duration,
    /// From the end of a request's head to its answer.
    pub cancel_payment_deadline: Duration,
    /// From the end of a request's head to its answer.
    pub cancel_token_deadline: Duration,
    /// How far `Request-Time` may be from now; `None`: as far as it likes.
    pub request_time_skew: Option<Duration>,
}

/// Longest remainder of a refused body that is read and thrown away so that the peer gets to read the answer, in bytes.
const DRAIN_BYTES: usize = 32 * 1024 * 1024;
/// And the longest time for it.
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// The JSON front.
#[derive(Clone)]
pub struct Bridge {
    inner: Arc<Inner>,
}

struct Inner {
    paths: HashMap<String, Api>,
    clients: Clients,
    signatures: SignCache,
    core: client::Client,
    limits: Limits,
    in_flight: Arc<Budget>,
    body_bytes: Arc<Budget>,
}

/// What the head of a request says.
struct Head {
    parts: Parts,
    /// Path and query exactly as received.
    target: Box<str>,
    api: Option<Api>,
    source: Source,
    arrived: Instant,
}

impl Bridge {
    /// A front that serves every API below each prefix.
    pub fn new(
        prefixes: &[&str],
        clients: Clients,
        identity: Identity,
        core: client::Client,
        limits: Limits,
    ) -> Self {
        let below = |prefix: &&str| Api::ALL.map(|api| (format!("{prefix}{}", api.tail()), api));
        let inner = Inner {
            paths: prefixes.iter().flat_map(below).collect(),
            clients,
            signatures: SignCache::new(identity),
            core,
            limits,
            in_flight: Budget::new(limits.in_flight, limits.in_flight_per_source),
            body_bytes: Budget::new(
                limits.body_bytes_in_flight,
                limits.body_bytes_in_flight_per_source,
            ),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The service. One handler for everything, because paths are compared byte for byte: a router that decodes or
    /// normalises would serve what was not signed for.
    pub fn router(self) -> Router {
        Router::new().fallback(respond).with_state(self)
    }
}

async fn respond(
    State(bridge): State<Bridge>,
    request: Request<Body>,
) -> Result<Response<Body>, Infallible> {
    Ok(bridge.inner.respond(request).await.map(Body::from))
}

impl Inner {
    async fn respond(&self, request: Request<Body>) -> Response<Bytes> {
        if request.method() == Method::CONNECT {
            // no request for a resource: 200 would say that a tunnel is open
            return refuse_tunnel();
        }
        let (parts, body) = request.into_parts();
        let head = self.head(parts);
        let client = envelope::client(&head.parts.headers, &self.clients);
        let mut body = Some(body);
        let mut proven = false;

        let checks = self.check(&head, client, &mut body, &mut proven);
        // a panic is a defect of ours and says nothing of what was decided
        let checked = AssertUnwindSafe(time::timeout_at(self.deadline(&head).into(), checks))
            .catch_unwind()
            .await;
        let reply = match checked {
            Ok(Ok(Ok(reply) | Err(reply))) => reply,
            Ok(Err(_)) | Err(_) => Reply::of(ResultCode::UnknownException),
        };

        let unread = body.filter(|body| !body.is_end_stream());
        let address = client.and_then(|client| self.address(&head, client, proven));
        let mut response = match &address {
            Some(address) => envelope::sealed(&reply, address, now(), &self.signatures).await,
            None => envelope::plain(&reply),
        };
        tracing::debug!(
            result_code = reply.code.wire(),
            client_id = client.map(|client| client.id.as_str()),
            signed = address.is_some(),
            "request answered"
        );
        if let Some(unread) = unread {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            tokio::spawn(drain(unread));
        }
        response
    }

    fn head(&self, parts: Parts) -> Head {
        let target: Box<str> =
            parts.uri.path_and_query().map_or("", |target| target.as_str()).into();
        // a query is signed for, but does not tell APIs apart
        let path = target.split_once('?').map_or(&*target, |(path, _)| path);
        let api = self.paths.get(path).copied();
        let peer = parts
            .extensions
            .get::<Peer>()
            .map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.0.ip());
        Head { target, api, source: peer.into(), arrived: Instant::now(), parts }
    }

    fn deadline(&self, head: &Head) -> Instant {
        let wait = match head.api {
            Some(Api::CancelPayment) => self.limits.cancel_payment_deadline,
            Some(Api::CancelToken) | None => self.limits.cancel_token_deadline,
        };
        head.arrived + wait
    }

    /// Whom an answer is signed for: whoever has proven to be a client; and before that, whoever names one, on what
    /// nobody but us chose: POST, a served path, no query.
    fn address(&self, head: &Head, client: &Client, proven: bool) -> Option<Address> {
        let ours = head.parts.method == Method::POST && self.paths.contains_key(&*head.target);
        (proven || ours).then(|| Address {
            method: head.parts.method.clone(),
            target: head.target.clone(),
            client: client.id.clone(),
        })
    }

    /// The order of checks. `Err` is the first one that failed.
    async fn check(
        &self,
        head: &Head,
        client: Option<&Client>,
        body: &mut Option<Body>,
        proven: &mut bool,
    ) -> Result<Reply, Reply> {
        // Verifying runs to its end on one of the async workers, so there are never more at once than workers.
        let _in_flight = self.in_flight.take(head.source, 1).ok_or_else(too_many)?;
        plain_http(head)?;
        let api = head.api.ok_or_else(|| Reply::of(ResultCode::NoInterfaceDef))?;
        if head.parts.method != Method::POST {
            return Err(Reply::of(ResultCode::MethodNotSupported));
        }
        json_in_utf8(&head.parts)?;
        let mut share = self.body_bytes.take(head.source, 0).ok_or_else(too_many)?;
        let bytes = self.read(body, &mut share).await?;
        let client = client.ok_or_else(|| Reply::of(ResultCode::InvalidClient))?;
        let skew_max = self.limits.request_time_skew;
        let verified = envelope::verify(&head.parts, &head.target, client, bytes, now(), skew_max)?;
        *proven = true;
        if !client.within_rate() {
            return Err(too_many());
        }
        self.decide(head, api, client, &verified).await
    }

    async fn decide(
        &self,
        head: &Head,
        api: Api,
        client: &Client,
        body: &Verified,
    ) -> Result<Reply, Reply> {
        let timeout = self.deadline(head).saturating_duration_since(Instant::now());
        let traceparent =
            head.parts.headers.get("traceparent").and_then(|value| value.to_str().ok());
        let trace = Span::unrecorded(TraceContext::of(traceparent));
        let call = Call { client: client.id.clone(), timeout, trace };
        let answer = match api {
            Api::CancelPayment => {
                let command = cancel_payment::read(body)?;
                allowed(client, &command.key.psp, &command.acquirer)?;
                self.core.cancel_payment(command, &call).await
            }
            Api::CancelToken => {
                let command = cancel_token::read(body)?;
                allowed(client, &command.psp, &command.acquirer)?;
                self.core.cancel_token(command, &call).await
            }
        };
        let Answer { code, message, pass_through_info } = answer;
        Ok(Reply { code, message: message.map(Into::into), pass_through_info })
    }

    /// Reads the whole body, within its limits.
    async fn read(&self, body: &mut Option<Body>, share: &mut Share) -> Result<Bytes, Reply> {
        let too_long = || {
            Reply::saying(
                ResultCode::ParamIllegal,
                format!("body: longer than {} bytes", self.limits.body_bytes),
            )
        };
        let Some(reading) = body.as_mut() else { return Ok(Bytes::new()) };

        let announced = reading.size_hint().exact();
        if announced.is_some_and(|length| {
            usize::try_from(length).map_or(true, |length| length > self.limits.body_bytes)
        }) {
            return Err(too_long());
        }
        // What is announced costs the sender nothing, so only what has arrived counts against the budget.
        let collect = async {
            let mut bytes = BytesMut::new();
            while let Some(frame) = reading.frame().await {
                let Ok(frame) = frame else { return Err(Reply::of(ResultCode::UnknownException)) };
                let Ok(data) = frame.into_data() else { continue };
                let length = bytes.len().saturating_add(data.len());
                if length > self.limits.body_bytes {
                    return Err(too_long());
                }
                if !share.grow(data.len()) {
                    return Err(too_many());
                }
                bytes.extend_from_slice(&data);
            }
            Ok(bytes.freeze())
        };
        match time::timeout(self.limits.body_timeout, collect).await {
            Ok(read) => {
                let bytes = read?;
                *body = None;
                Ok(bytes)
            }
            Err(_) => Err(Reply::of(ResultCode::UnknownException)),
        }
    }
}

fn refuse_tunnel() -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::BAD_REQUEST;
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

fn now() -> Timestamp {
    Timestamp { unix_ms: jiff::Timestamp::now().as_millisecond() }
}

fn too_many() -> Reply {
    Reply::of(ResultCode::RequestTrafficExceedLimit)
}

fn allowed(client: &Client, psp: &PspId, acquirer: &AcquirerId) -> Result<(), Reply> {
    if client.may_act_for(psp, acquirer) {
        Ok(())
    } else {
        Err(Reply::of(ResultCode::AccessDenied))
    }
}

/// What hyper takes and a proxy in front may read otherwise: refused, so that the two never disagree.
fn plain_http(head: &Head) -> Result<(), Reply> {
    let illegal = |what| Err(Reply::saying(ResultCode::ParamIllegal, what));
    let headers = &head.parts.headers;
    match head.parts.version {
        // the target has the host, and framing is HTTP/2's own
        Version::HTTP_2 => return Ok(()),
        Version::HTTP_11 => {}
        _ => return illegal("HTTP: version must be 1.1"),
    }
    if headers.get_all(header::HOST).iter().count() != 1 {
        return illegal("Host: must be set once");
    }
    // beside a Content-Length it never gets here: see `listen`
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let coding = codings.next();
    let chunked = coding.is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
    if !chunked || codings.next().is_some() {
        return illegal("Transfer-Encoding: must be chunked");
    }
    Ok(())
}

fn json_in_utf8(parts: &Parts) -> Result<(), Reply> {
    let types = parts.headers.get_all(header::CONTENT_TYPE);
    let json = types.iter().all(|value| media_type::is_json_utf8(value.as_bytes()));
    let codings = parts.headers.get_all(header::CONTENT_ENCODING);
    let identity = codings.iter().all(|value| value.as_bytes().eq_ignore_ascii_case(b"identity"));
    if json && identity { Ok(()) } else { Err(Reply::of(ResultCode::MediaTypeNotAcceptable)) }
}

/// Reads a while on and forgets: closing at once would reset the connection before the answer is read.
async fn drain(mut body: Body) {
    let read = async {
        let mut left = DRAIN_BYTES;
        while let Some(Ok(frame)) = body.frame().await {
            let length = frame.data_ref().map_or(0, Bytes::len);
            let Some(rest) = left.checked_sub(length) else { break };
            left = rest;
        }
    };
    if time::timeout(DRAIN_TIME, read).await.is_err() {
        tracing::debug!("a refused body did not end in time");
    }
}
