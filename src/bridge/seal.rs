//! HTTP comes in and becomes an [`Exchange`]; a reply goes out as a signed response.

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use futures_util::{FutureExt as _, future::BoxFuture};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use tokio::time;
use tower::{Layer, Service};

use super::{
    envelope, exchange::Exchange, front::Bridge, observe::Answered, proof::now, reply::Reply,
};
use crate::{
    domain::result::{ResultCode, ResultStatus},
    telemetry::Span,
};

/// Longest remainder of a refused body that is read away within the answer, so that its connection stays, in bytes: of
/// what is turned away under load, a connection made anew would cost more than all else.
const AWAY_BYTES: u64 = 64 * 1024;
/// Longest remainder that is read and thrown away so that the peer gets to read the answer, in bytes.
const DRAIN_BYTES: usize = 32 * 1024 * 1024;
/// And the longest time for it.
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// The layer.
#[derive(Clone)]
pub(super) struct SealLayer(pub(super) Arc<Bridge>);

impl<S> Layer<S> for SealLayer {
    type Service = Seal<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Seal { bridge: Arc::clone(&self.0), inner }
    }
}

/// The service.
#[derive(Clone)]
pub(super) struct Seal<S> {
    bridge: Arc<Bridge>,
    inner: S,
}

impl<S> Service<(Request<Body>, Span)> for Seal<S>
where
    S: Service<Arc<Exchange>, Response = Reply, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = (Response<Body>, Option<Answered>);
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, (request, span): (Request<Body>, Span)) -> Self::Future {
        if request.method() == Method::CONNECT {
            // no request for a resource: 200 would say that a tunnel is open
            return std::future::ready(Ok((refuse_tunnel(), None))).boxed();
        }
        let exchange = Arc::new(Exchange::new(&self.bridge, request, span));
        let answering = self.inner.call(Arc::clone(&exchange));
        let bridge = Arc::clone(&self.bridge);
        Box::pin(async move {
            let Ok(reply) = answering.await;
            if !exchange.is_proven() && reply.code.status() == ResultStatus::F {
                bridge.unproven.count(&exchange);
            }
            let (response, answered) = respond(&exchange, &reply).await;
            Ok((response.map(Body::from), Some(answered)))
        })
    }
}

async fn respond(exchange: &Exchange, reply: &Reply) -> (Response<Bytes>, Answered) {
    let unread = exchange.take_body().filter(|body| !body.is_end_stream());
    let address = exchange.address();
    let (mut response, cached) = match address {
        Some(address) => envelope::sealed(reply, address, now(), &exchange.setup.signatures).await,
        None => (envelope::plain(reply), None),
    };
    // one that could not be signed was withheld
    let is_withheld = address.is_some() && cached.is_none();
    let code = if is_withheld { ResultCode::UnknownException } else { reply.code };
    let answered = Answered {
        code,
        proven: exchange.proven_by().cloned(),
        api: exchange.api,
        client: exchange.client.clone(),
        refusal: reply.refusal,
        cached,
    };
    tracing::debug!(
        result_code = code.wire(),
        client_id = exchange.client.as_ref().map(|client| client.id.as_str()),
        signed = cached.is_some(),
        "request answered"
    );
    if let Some(unread) = unread.and_then(read_away) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        tokio::spawn(drain(unread));
    }
    (response, answered)
}

fn refuse_tunnel() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::BAD_REQUEST;
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Reads and forgets a short body that has arrived already; another one is given back.
fn read_away(mut body: Body) -> Option<Body> {
    if body.size_hint().exact().is_none_or(|length| length > AWAY_BYTES) {
        return Some(body);
    }
    loop {
        match body.frame().now_or_never() {
            Some(Some(Ok(_))) => {}
            Some(None) => return None,
            Some(Some(Err(_))) | None => return Some(body),
        }
    }
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::StreamExt as _;

    use super::*;

    #[test]
    fn a_short_body_that_is_here_is_read_away_and_another_is_left() {
        let of = |bytes: usize| Body::from(vec![b'x'; bytes]);
        assert!(read_away(of(0)).is_none());
        assert!(read_away(of(65_536)).is_none());
        assert!(read_away(of(65_537)).is_some());
        // nobody knows how long it is
        let endless = futures_util::stream::pending::<Result<Bytes, Infallible>>();
        assert!(read_away(Body::from_stream(endless)).is_some());
    }

    /// Whoever sends without end is not read for ever, and a body that ends is read to its end.
    #[tokio::test]
    async fn a_refused_body_is_read_to_its_end_or_to_the_limit() {
        const CHUNK: usize = 1024 * 1024;
        let drained = async |chunks: usize| {
            let taken = Arc::new(AtomicUsize::new(0));
            let count = Arc::clone(&taken);
            let body = futures_util::stream::iter(0..chunks).map(move |_| {
                count.fetch_add(1, Ordering::Relaxed);
                Ok::<_, Infallible>(Bytes::from(vec![0; CHUNK]))
            });
            drain(Body::from_stream(body)).await;
            taken.load(Ordering::Relaxed)
        };
        assert_eq!(drained(3).await, 3);
        assert_eq!(drained(32).await, 32);
        assert_eq!(drained(50).await, 33, "the chunk that is too much is the last one");
    }
}
