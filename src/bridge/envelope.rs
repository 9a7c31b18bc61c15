//! Headers and signatures: bytes become [`Verified`], an answer becomes a signed response.
//!
//! JSON is read from [`Verified`] alone, and [`Verified`] is made here alone: an unsigned body cannot be parsed, because
//! that does not compile. Who gets a signature is decided here too, so that nobody can have a text of his choosing
//! signed: requests and responses share one shape.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, header, request::Parts};

use super::{
    identity::{Client, Clients},
    reply::Reply,
    request_time,
    sign_cache::SignCache,
    signature::{self, SignatureHeader},
};
use crate::domain::{id::ClientId, result::ResultCode, time::Timestamp};

const CLIENT_ID: HeaderName = HeaderName::from_static("client-id");
const REQUEST_TIME: HeaderName = HeaderName::from_static("request-time");
const RESPONSE_TIME: HeaderName = HeaderName::from_static("response-time");
const SIGNATURE: HeaderName = HeaderName::from_static("signature");
const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=UTF-8");

/// A body whose signature verified: these very bytes were sent by the client.
#[derive(Debug)]
pub struct Verified {
    body: Bytes,
    key_version: Arc<str>,
}

impl Verified {
    /// The bytes as received.
    pub fn bytes(&self) -> &[u8] {
        &self.body
    }

    /// The version of the client's key that proved it.
    pub fn key_version(&self) -> &Arc<str> {
        &self.key_version
    }
}

/// What an answer is addressed to: it repeats these, and signs them.
#[derive(Clone, Copy, Debug)]
pub struct Address<'a> {
    /// The request's method.
    pub method: &'a Method,
    /// The request's path and query, as received.
    pub target: &'a str,
    /// The request's client.
    pub client: &'a ClientId,
}

/// A signed answer, as it goes out.
#[derive(Clone, Debug)]
pub(super) struct Sealed {
    client: HeaderValue,
    time: HeaderValue,
    signature: HeaderValue,
    body: Bytes,
}

impl Sealed {
    fn response(self) -> Response<Bytes> {
        let mut response = Response::new(self.body);
        let headers = response.headers_mut();
        headers.reserve(HEADERS);
        headers.insert(header::CONTENT_TYPE, JSON);
        headers.insert(CLIENT_ID, self.client);
        headers.insert(RESPONSE_TIME, self.time);
        headers.insert(SIGNATURE, self.signature);
        response
    }
}

impl Sealed {
    /// All bytes of it, as hyper would send them on HTTP/1.1 in this second since 1970.
    pub(super) fn http1(&self, second: i64) -> Bytes {
        let mut bytes = b"HTTP/1.1 200 OK\r\n".to_vec();
        let mut line = |name: &HeaderName, value: &[u8]| {
            for part in [name.as_str().as_bytes(), b": ", value, b"\r\n"] {
                bytes.extend_from_slice(part);
            }
        };
        line(&header::CONTENT_TYPE, JSON.as_bytes());
        line(&CLIENT_ID, self.client.as_bytes());
        line(&RESPONSE_TIME, self.time.as_bytes());
        line(&SIGNATURE, self.signature.as_bytes());
        line(&header::CONTENT_LENGTH, self.body.len().to_string().as_bytes());
        line(&header::DATE, request_time::http_date(second).as_bytes());
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(&self.body);
        bytes.into()
    }
}

/// How many headers an answer has, those that hyper adds among them.
const HEADERS: usize = 6;

/// The value of a header that must stand there once.
fn once<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    values.next().is_none().then_some(value)
}

/// The registered client of a request.
pub fn client<'a>(headers: &HeaderMap, clients: &'a Clients) -> Option<&'a Arc<Client>> {
    clients.get(once(headers, &CLIENT_ID)?.to_str().ok()?)
}

/// How far `Request-Time` may be from now.
pub type SkewMax = Option<std::time::Duration>;

/// Proves that the client sent this body, in the order of the checks.
pub fn verify(
    parts: &Parts,
    target: &str,
    client: &Client,
    body: Bytes,
    now: Timestamp,
    skew_max: SkewMax,
) -> Result<Verified, Reply> {
    let illegal_time = |what| Reply::saying(ResultCode::ParamIllegal, what);
    let time = once(&parts.headers, &REQUEST_TIME)
        .ok_or_else(|| illegal_time("Request-Time: must be set once"))?;
    let time = time.to_str().map_err(|_| illegal_time("Request-Time: not a time"))?;
    let asked_at =
        request_time::parse(time).ok_or_else(|| illegal_time("Request-Time: not a time"))?;
    let skew = u128::from(asked_at.unix_ms.abs_diff(now.unix_ms));
    if skew_max.is_some_and(|most| skew > most.as_millis()) {
        return Err(illegal_time("Request-Time: too far from the time it is here"));
    }

    let malformed = |what: &'static str| Reply::saying(ResultCode::InvalidSignature, what);
    let header =
        once(&parts.headers, &SIGNATURE).ok_or_else(|| malformed("Signature: must be set once"))?;
    let header = SignatureHeader::parse(header.as_bytes())
        .map_err(|what| Reply::saying(ResultCode::InvalidSignature, what.to_string()))?;

    let mut keys = client.keys_for(header.key_version.as_deref(), now).peekable();
    if keys.peek().is_none() {
        return Err(Reply::of(ResultCode::KeyNotFound));
    }
    let signed =
        signature::signed_string(parts.method.as_str(), target, client.id.as_str(), time, &body);
    let proves = keys.find(|key| key.key.verify(&signed, &header.signature));
    let proves = proves.ok_or_else(|| Reply::of(ResultCode::InvalidSignature))?;
    Ok(Verified { body, key_version: Arc::clone(&proves.version) })
}

/// A response without signature, for whoever has not proven anything and named no client of ours.
pub fn plain(reply: &Reply) -> Response<Bytes> {
    let body = Bytes::from(reply.json());
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    response
}

/// A response that says, by its signature, that this wallet answered that request so.
///
/// Beside it, whether the signature was there already; `None` if there is none.
///
/// If signing fails the answer is withheld: unsigned, it could be anybody's, and Alipay+ asks again on `U`.
pub(super) async fn sealed(
    reply: &Reply,
    address: Address<'_>,
    now: Timestamp,
    cache: &SignCache,
) -> (Response<Bytes>, Option<bool>) {
    // all that it says is its code, so that this and its address make it
    let code = reply.is_bare().then_some(reply.code);
    let second = now.unix_ms.div_euclid(1_000);
    if let Some(sealed) = code.and_then(|code| cache.answer(second, address, code)) {
        return (sealed.response(), Some(true));
    }
    let body = Bytes::from(reply.json());
    let time = request_time::response_time(now);
    let signed = signature::signed_string(
        address.method.as_str(),
        address.target,
        address.client.as_str(),
        &time,
        &body,
    );
    let signature = cache.header(&time, signed).await.inspect_err(|error| {
        tracing::error!(%error, "an answer could not be signed; the caller is told to ask again");
    });
    let client = HeaderValue::try_from(address.client.as_str()).ok();
    let (Ok((signature, cached)), Some(client), Ok(time)) =
        (signature, client, HeaderValue::try_from(time))
    else {
        return (plain(&Reply::of(ResultCode::UnknownException)), None);
    };
    let sealed = Sealed { client, time, signature, body };
    if let Some(code) = code {
        cache.keep(second, address, code, &sealed);
    }
    (sealed.response(), Some(cached))
}

#[cfg(test)]
mod tests;
