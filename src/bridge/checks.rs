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

#[cfg(test)]
mod tests {
    use std::{
        future::{Pending, pending},
        task::Waker,
    };

    use http::{HeaderName, Request};

    use super::*;

    fn parts(version: Version, headers: &[(HeaderName, &'static str)]) -> Parts {
        let mut request = Request::post("/a").version(version);
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        request.body(()).expect("a request").into_parts().0
    }

    #[test]
    fn what_a_proxy_may_read_otherwise_is_refused() {
        const H1: Version = Version::HTTP_11;
        let (host, coding) = (header::HOST, header::TRANSFER_ENCODING);
        let host = || (host.clone(), "wallet.example");
        let coded = |value| (coding.clone(), value);
        for (good, version, headers) in [
            (true, H1, vec![host()]),
            (false, H1, vec![]),
            (false, H1, vec![host(), host()]),
            (false, Version::HTTP_10, vec![host()]),
            (false, Version::HTTP_09, vec![host()]),
            (true, H1, vec![host(), coded("chunked")]),
            (true, H1, vec![host(), coded("Chunked")]),
            (false, H1, vec![host(), coded("gzip")]),
            (false, H1, vec![host(), coded("gzip, chunked")]),
            (false, H1, vec![host(), coded("chunked"), coded("chunked")]),
            (false, H1, vec![host(), coded("gzip"), coded("chunked")]),
            // the target has the host, and no coding is HTTP/2's
            (true, Version::HTTP_2, vec![]),
        ] {
            let checked = plain_http(&parts(version, &headers));
            assert_eq!(checked.is_ok(), good, "{version:?} {headers:?}");
            let code = checked.err().map(|reply| reply.code);
            assert!(code.is_none_or(|code| code == ResultCode::ParamIllegal));
        }
    }

    #[test]
    fn every_type_and_every_coding_that_is_named_must_be_ours() {
        let of = |value| (header::CONTENT_TYPE, value);
        let coded = |value| (header::CONTENT_ENCODING, value);
        for (good, headers) in [
            (true, vec![]),
            (true, vec![of("application/json"), of("application/json; charset=UTF-8")]),
            (false, vec![of("application/json"), of("text/plain")]),
            (false, vec![of("text/plain")]),
            (true, vec![of("application/json"), coded("Identity")]),
            (false, vec![of("application/json"), coded("gzip")]),
            (false, vec![coded("identity"), coded("gzip")]),
            (false, vec![of("text/plain"), coded("gzip")]),
        ] {
            let checked = json_in_utf8(&parts(Version::HTTP_11, &headers));
            assert_eq!(checked.is_ok(), good, "{headers:?}");
            let code = checked.err().map(|reply| reply.code);
            assert!(code.is_none_or(|code| code == ResultCode::MediaTypeNotAcceptable));
        }
    }

    /// Never ready.
    struct Busy;

    impl Service<Arc<Exchange>> for Busy {
        type Response = Reply;
        type Error = ();
        type Future = Pending<Result<Reply, ()>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ()>> {
            Poll::Pending
        }

        fn call(&mut self, _: Arc<Exchange>) -> Self::Future {
            pending()
        }
    }

    #[test]
    fn it_is_ready_when_what_stands_behind_it_is() {
        let mut context = Context::from_waker(Waker::noop());
        assert!(ChecksLayer.layer(Busy).poll_ready(&mut context).is_pending());
    }
}
