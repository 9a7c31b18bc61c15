//! A request's body, read within its limits, and the proof that its client sent it.

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use http_body::Body as _;
use http_body_util::BodyExt as _;
use tokio::time;
use tower::{Layer, Service};

use super::{
    envelope,
    exchange::{Exchange, Proven},
    front::Limits,
    reply::Reply,
};
use crate::{
    domain::{result::ResultCode, time::Timestamp},
    layer::{
        Refusal, Refuse as _,
        budget::{Budget, Share},
        overload::Sourced as _,
    },
};

/// The layer.
#[derive(Clone)]
pub(super) struct ProofLayer {
    pub(super) body_bytes: Arc<Budget>,
}

impl<S> Layer<S> for ProofLayer {
    type Service = Proof<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Proof { body_bytes: Arc::clone(&self.body_bytes), inner }
    }
}

/// The service.
#[derive(Clone)]
pub(super) struct Proof<S> {
    body_bytes: Arc<Budget>,
    inner: S,
}

impl<S> Service<Arc<Exchange>> for Proof<S>
where
    S: Service<Proven, Response = Reply, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Reply;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Reply, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, exchange: Arc<Exchange>) -> Self::Future {
        // the clone stays for the next one; this one is ready
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        let share = self.body_bytes.take(exchange.source(), 0);
        Box::pin(async move {
            let Some(mut share) = share else { return Ok(Reply::refuse(Refusal::Busy)) };
            match prove(exchange, &mut share).await {
                // what a body takes is taken until its answer is made
                Ok(proven) => inner.call(proven).await,
                Err(reply) => Ok(reply),
            }
        })
    }
}

async fn prove(exchange: Arc<Exchange>, share: &mut Share) -> Result<Proven, Reply> {
    let body = read(&exchange, share).await?;
    let client = exchange.client.clone().ok_or_else(|| Reply::of(ResultCode::InvalidClient))?;
    let skew_max = exchange.setup.limits.request_time_skew;
    // Verifying runs to its end on one of the async workers, so there are never more at once than workers.
    let (parts, target) = (&exchange.parts, exchange.target());
    let body = envelope::verify(parts, target, &client, body, now(), skew_max)?;
    exchange.set_proven(body.key_version());
    let api = exchange.api.ok_or_else(|| Reply::of(ResultCode::NoInterfaceDef))?;
    Ok(Proven { exchange, api, client, body })
}

/// Reads the whole body, within its limits.
async fn read(exchange: &Exchange, share: &mut Share) -> Result<Bytes, Reply> {
    let Limits { body_bytes, body_timeout, .. } = exchange.setup.limits;
    let too_long =
        || Reply::saying(ResultCode::ParamIllegal, format!("body: longer than {body_bytes} bytes"));
    let mut lent = exchange.lend_body();
    let Some(body) = lent.body() else { return Ok(Bytes::new()) };

    let announced = body.size_hint().exact();
    if announced
        .is_some_and(|length| usize::try_from(length).map_or(true, |length| length > body_bytes))
    {
        return Err(too_long());
    }
    // What is announced costs the sender nothing, so only what has arrived counts against the budget.
    let collect = async {
        let mut bytes = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return Err(Reply::of(ResultCode::UnknownException)) };
            let Ok(data) = frame.into_data() else { continue };
            let length = bytes.len().saturating_add(data.len());
            if length > body_bytes {
                return Err(too_long());
            }
            if !share.grow(data.len()) {
                return Err(Reply::refuse(Refusal::Busy));
            }
            bytes.extend_from_slice(&data);
        }
        Ok(bytes.freeze())
    };
    let bytes = time::timeout(body_timeout, collect)
        .await
        .unwrap_or_else(|_| Err(Reply::of(ResultCode::UnknownException)))?;
    lent.finish();
    Ok(bytes)
}

pub(super) fn now() -> Timestamp {
    Timestamp { unix_ms: jiff::Timestamp::now().as_millisecond() }
}

#[cfg(test)]
mod tests {
    use std::{
        future::{Pending, pending},
        task::Waker,
    };

    use super::*;

    /// Never ready.
    #[derive(Clone)]
    struct Busy;

    impl Service<Proven> for Busy {
        type Response = Reply;
        type Error = Infallible;
        type Future = Pending<Result<Reply, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Pending
        }

        fn call(&mut self, _: Proven) -> Self::Future {
            pending()
        }
    }

    #[test]
    fn it_is_ready_when_what_stands_behind_it_is() {
        let mut context = Context::from_waker(Waker::noop());
        let layer = ProofLayer { body_bytes: Budget::new(1, 1) };
        assert!(layer.layer(Busy).poll_ready(&mut context).is_pending());
    }
}
