//! What is checked of a head: HTTP as both ends read it, path, method, media type. In this order.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::{Either, Ready, ready};
use http::{Method, Version, header, request::Parts};
use tower::{Layer, Service};

use super::{exchange::Exchange, media_type, reply::Reply};
use crate::domain::result::ResultCode;

/// The layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChecksLayer;

impl<S> Layer<S> for ChecksLayer {
    type Service = Checks<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Checks(inner)
    }
}

/// The service.
#[derive(Clone, Copy, Debug)]
pub(super) struct Checks<S>(S);

impl<S> Service<Arc<Exchange>> for Checks<S>
where
    S: Service<Arc<Exchange>, Response = Reply>,
{
    type Response = Reply;
    type Error = S::Error;
    type Future = Either<Ready<Result<Reply, S::Error>>, S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, exchange: Arc<Exchange>) -> Self::Future {
        match head(&exchange) {
            Ok(()) => Either::Right(self.0.call(exchange)),
            Err(reply) => Either::Left(ready(Ok(reply))),
        }
    }
}

fn head(exchange: &Exchange) -> Result<(), Reply> {
    plain_http(&exchange.parts)?;
    if exchange.api.is_none() {
        return Err(Reply::of(ResultCode::NoInterfaceDef));
    }
    if exchange.parts.method != Method::POST {
        return Err(Reply::of(ResultCode::MethodNotSupported));
    }
    json_in_utf8(&exchange.parts)
}

/// What hyper takes and a proxy in front may read otherwise: refused, so that the two never disagree.
fn plain_http(parts: &Parts) -> Result<(), Reply> {
    let illegal = |what| Err(Reply::saying(ResultCode::ParamIllegal, what));
    match parts.version {
        // the target has the host, and framing is HTTP/2's own
        Version::HTTP_2 => return Ok(()),
        Version::HTTP_11 => {}
        _ => return illegal("HTTP: version must be 1.1"),
    }
    if parts.headers.get_all(header::HOST).iter().count() != 1 {
        return illegal("Host: must be set once");
    }
    // beside a Content-Length it never gets here: see `listen`
    let mut codings = parts.headers.get_all(header::TRANSFER_ENCODING).iter();
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
