//! Around every request: its span, its duration, its result. The outermost layer, so that what is turned away counts too.
//!
//! Names follow the semantic conventions for HTTP. Methods and paths that are none of ours have no name, so that nobody
//! outside chooses how many series there are.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use futures_util::future::BoxFuture;
use http::{Method, Request, Response, StatusCode, Uri};
use tower::{Layer, Service};

use super::front::Api;
use crate::{
    domain::{id::ClientId, result::ResultCode},
    layer::Refusal,
    telemetry::{Metrics, Span, Telemetry, Tracer, context::TraceContext, label, metrics::Label},
};

/// What the layers inside say of a response, for metrics; it goes no further.
#[derive(Clone, Debug)]
pub(super) struct Answered {
    pub(super) code: ResultCode,
    pub(super) api: Option<Api>,
    /// The version of the client's key by which it proved to be who it named, if it did.
    pub(super) proven: Option<Arc<str>>,
    /// The registered client that the request named.
    pub(super) client: Option<ClientId>,
    /// Why it was turned away, if it was.
    pub(super) refusal: Option<Refusal>,
    /// Whether its signature was there already; absent if it has none.
    pub(super) cached: Option<bool>,
}

/// The layer.
#[derive(Clone)]
pub(super) struct ObserveLayer(Arc<Observe>);

struct Observe {
    metrics: Metrics,
    tracer: Tracer,
    scheme: &'static str,
    routes: HashMap<String, Arc<str>>,
}

impl ObserveLayer {
    pub(super) fn new(
        telemetry: &Telemetry,
        scheme: &'static str,
        paths: &HashMap<String, Api>,
    ) -> Self {
        let metrics = telemetry.metrics.clone();
        // a series that is not there yet cannot be seen to grow
        for code in ResultCode::ALL {
            for api in Api::ALL {
                metrics.requests.add(0, &request(Some(api), code));
            }
        }
        metrics.shed.add(0, &[label("front", FRONT), label("reason", "in_flight")]);
        for result in ["hit", "miss"] {
            metrics.signature_cache.add(0, &[label("result", result)]);
        }
        let routes = paths.keys().map(|path| (path.clone(), Arc::from(path.as_str()))).collect();
        let tracer = telemetry.tracer.clone();
        Self(Arc::new(Observe { metrics, tracer, scheme, routes }))
    }
}

impl<S> Layer<S> for ObserveLayer {
    type Service = Observed<S>;

    fn layer(&self, inner: S) -> Observed<S> {
        Observed { inner, observe: Arc::clone(&self.0) }
    }
}

/// The service.
#[derive(Clone)]
pub(super) struct Observed<S> {
    inner: S,
    observe: Arc<Observe>,
}

impl<S, I, O> Service<Request<I>> for Observed<S>
where
    S: Service<Request<I>, Response = Response<O>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<O>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<O>, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<I>) -> Self::Future {
        let watch = Watch::begin(&self.observe, &request);
        request.extensions_mut().insert(watch.span.clone());
        let answer = self.inner.call(request);
        Box::pin(async move {
            let mut answer = answer.await?;
            watch.end(&mut answer);
            Ok(answer)
        })
    }
}

/// A request that is being answered.
struct Watch {
    observe: Arc<Observe>,
    span: Span,
    begun: Instant,
    method: &'static str,
    route: Option<Arc<str>>,
    status: Option<StatusCode>,
    answered: Option<Answered>,
}

const FRONT: &str = "bridge";

impl Watch {
    fn begin<I>(observe: &Arc<Observe>, request: &Request<I>) -> Self {
        let method = method(request.method());
        let route = observe.routes.get(Uri::path(request.uri())).cloned();
        let parent = request.headers().get("traceparent");
        let parent = parent.and_then(|value| value.to_str().ok()).and_then(TraceContext::parse);
        let name = match &route {
            // a name for nobody is a waste
            _ if !observe.tracer.is_exported() => String::new(),
            Some(route) => format!("{method} {route}"),
            None => method.to_owned(),
        };
        let span = observe.tracer.serve(name, parent);
        span.set("http.request.method", method);
        span.set("url.scheme", observe.scheme);
        if let Some(route) = &route {
            // ours, so it tells nothing that a caller chose
            span.set("http.route", Arc::clone(route));
            span.set("url.path", Arc::clone(route));
        }
        observe.metrics.http_active.add(1, &active(method, observe.scheme));
        observe.metrics.in_flight.add(1, &[label("front", FRONT)]);
        Self {
            observe: Arc::clone(observe),
            span,
            begun: Instant::now(),
            method,
            route,
            status: None,
            answered: None,
        }
    }

    fn end<O>(mut self, answer: &mut Response<O>) {
        self.status = Some(answer.status());
        self.answered = answer.extensions_mut().remove();
    }

    fn count(&self, answered: &Answered) {
        let metrics = &self.observe.metrics;
        metrics.requests.add(1, &request(answered.api, answered.code));
        let client = || {
            let known = answered.client.as_ref().map_or("unknown", ClientId::as_str);
            label("client", known.to_owned())
        };
        match answered.refusal {
            Some(Refusal::Busy) => {
                metrics.shed.add(1, &[label("front", FRONT), label("reason", "in_flight")]);
            }
            Some(Refusal::OverRate { .. }) => {
                // nobody makes another's figure grow by naming him
                let who =
                    if answered.proven.is_some() { client() } else { label("client", "unknown") };
                metrics.rate_limited.add(1, &[who, label("front", FRONT)]);
            }
            Some(Refusal::NotAllowed | Refusal::OutOfTime | Refusal::Panicked) | None => {}
        }
        if matches!(
            answered.code,
            ResultCode::InvalidSignature | ResultCode::KeyNotFound | ResultCode::InvalidClient
        ) {
            metrics.signature_failures.add(1, &[client()]);
        }
        if let Some(version) = &answered.proven {
            metrics.signature_verified.add(1, &[client(), label("version", Arc::clone(version))]);
        }
        if let Some(cached) = answered.cached {
            let result = if cached { "hit" } else { "miss" };
            metrics.signature_cache.add(1, &[label("result", result)]);
        }
        self.span.set("alipayplus.result_code", answered.code.wire());
        if let Some(client) = &answered.client {
            self.span.set("alipayplus.client_id", client.as_str().to_owned());
        }
    }
}

impl Drop for Watch {
    /// The answer is made, or its caller has gone.
    fn drop(&mut self) {
        let observe = &self.observe;
        let mut labels: Vec<Label> = active(self.method, observe.scheme).into();
        if let Some(route) = &self.route {
            labels.push(label("http.route", Arc::clone(route)));
        }
        if let Some(status) = self.status {
            labels.push(label("http.response.status_code", i64::from(status.as_u16())));
            self.span.set("http.response.status_code", i64::from(status.as_u16()));
        }
        let failure = match &self.answered {
            Some(answered) if answered.code == ResultCode::UnknownException => {
                Some(answered.code.wire())
            }
            None if self.status.is_none() => Some("cancelled"),
            Some(_) | None => None,
        };
        if let Some(failure) = failure {
            labels.push(label("error.type", failure));
            self.span.failed(failure);
        }
        if let Some(answered) = &self.answered {
            self.count(answered);
        }
        observe.metrics.http_active.add(-1, &active(self.method, observe.scheme));
        observe.metrics.in_flight.add(-1, &[label("front", FRONT)]);
        observe.metrics.http_duration.record(self.begun.elapsed(), &labels);
        self.span.end();
    }
}

fn active(method: &'static str, scheme: &'static str) -> [Label; 2] {
    [label("http.request.method", method), label("url.scheme", scheme)]
}

fn request(api: Option<Api>, code: ResultCode) -> [Label; 3] {
    let api = api.map_or("none", Api::name);
    [label("api", api), label("front", FRONT), label("result_code", code.wire())]
}

/// A method by its name, if everybody knows it.
fn method(method: &Method) -> &'static str {
    match method.as_str() {
        "POST" => "POST",
        "GET" => "GET",
        "HEAD" => "HEAD",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        "CONNECT" => "CONNECT",
        "OPTIONS" => "OPTIONS",
        "TRACE" => "TRACE",
        "PATCH" => "PATCH",
        _ => "_OTHER",
    }
}
