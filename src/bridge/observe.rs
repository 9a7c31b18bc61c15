//! Around every request: its span, its duration, its result. The outermost layer, so that what is turned away counts too.
//!
//! Names follow the semantic conventions for HTTP. Methods and paths that are none of ours have no name, so that nobody
//! outside chooses how many series there are.

use std::{
    convert::Infallible,
    sync::{Arc, PoisonError, RwLock},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use foldhash::HashMap;
use futures_util::future::BoxFuture;
use http::{Method, Request, Response, StatusCode, Uri};
use tower::{Layer, Service};

use super::{front::Api, identity::Client};
use crate::{
    domain::{id::ClientId, result::ResultCode},
    layer::Refusal,
    telemetry::{
        Metrics, Recent, Span, Telemetry, Tracer,
        context::TraceContext,
        label,
        metrics::{BoundCounter, BoundSeconds, BoundUpDownCounter, Label},
    },
};

/// What the layers inside say of a response, for metrics; it goes no further.
pub(super) struct Answered {
    pub(super) code: ResultCode,
    pub(super) api: Option<Api>,
    /// The version of the client's key by which it proved to be who it named, if it did.
    pub(super) proven: Option<Arc<str>>,
    /// The registered client that the request named.
    pub(super) client: Option<Arc<Client>>,
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
    recent: Recent,
    tracer: Tracer,
    scheme: &'static str,
    usual: Usual,
    routes: HashMap<String, Arc<Route>>,
}

/// Series of almost every request, looked up once: under load that would cost more than to turn a request away.
struct Usual {
    active: BoundUpDownCounter<i64>,
    in_flight: BoundUpDownCounter<i64>,
    shed: BoundCounter<u64>,
    cached: BoundCounter<u64>,
    computed: BoundCounter<u64>,
    /// By API and code.
    requests: Vec<(Option<Api>, ResultCode, BoundCounter<u64>)>,
    /// By client and key version, of those that have proven themselves: a few, so that they are walked.
    verified: RwLock<Vec<Verified>>,
}

struct Verified {
    client: ClientId,
    version: Arc<str>,
    counter: BoundCounter<u64>,
}

struct Route {
    path: Arc<str>,
    /// POST, answered with 200, and not for a fault of ours.
    served: BoundSeconds,
}

/// The method of all that is served.
const POST: &str = "POST";

impl Usual {
    fn new(metrics: &Metrics, scheme: &'static str) -> Self {
        let apis = [None, Some(Api::CancelPayment), Some(Api::CancelToken)];
        let series = |api| {
            ResultCode::ALL.map(|code| (api, code, metrics.requests.bind(&request(api, code))))
        };
        let cache = |result| metrics.signature_cache.bind(&[label("result", result)]);
        Self {
            active: metrics.http_active.bind(&active(POST, scheme)),
            in_flight: metrics.in_flight.bind(&[label("front", FRONT)]),
            shed: metrics.shed.bind(&[label("front", FRONT), label("reason", "in_flight")]),
            cached: cache("hit"),
            computed: cache("miss"),
            requests: apis.into_iter().flat_map(series).collect(),
            verified: RwLock::default(),
        }
    }

    /// A request of a client that proved itself by this version of its key.
    fn verified(&self, metrics: &Metrics, client: &ClientId, version: &Arc<str>) {
        let is = |of: &&Verified| of.client == *client && of.version == *version;
        let known = self.verified.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(of) = known.iter().find(is) {
            return of.counter.add(1);
        }
        drop(known);
        let labels =
            [label("client", client.as_str().to_owned()), label("version", Arc::clone(version))];
        let counter = metrics.signature_verified.bind(&labels);
        counter.add(1);
        let (client, version) = (client.clone(), Arc::clone(version));
        // another one may have been as quick: two of the same series count together
        let mut known = self.verified.write().unwrap_or_else(PoisonError::into_inner);
        known.push(Verified { client, version, counter });
    }

    fn requests(&self, api: Option<Api>, code: ResultCode) -> Option<&BoundCounter<u64>> {
        let found = self.requests.iter().find(|(of, result, _)| (*of, *result) == (api, code));
        found.map(|(_, _, counter)| counter)
    }
}

impl ObserveLayer {
    pub(super) fn new(
        telemetry: &Telemetry,
        scheme: &'static str,
        paths: &HashMap<String, Api>,
    ) -> Self {
        let metrics = telemetry.metrics.clone();
        let usual = Usual::new(&metrics, scheme);
        // a series that is not there yet cannot be seen to grow
        for (api, _, counter) in &usual.requests {
            if api.is_some() {
                counter.add(0);
            }
        }
        for counter in [&usual.shed, &usual.cached, &usual.computed] {
            counter.add(0);
        }
        let route = |path: &String| {
            let path: Arc<str> = Arc::from(path.as_str());
            let labels = durations(POST, scheme, Some(&path), Some(StatusCode::OK));
            Arc::new(Route { served: metrics.http_duration.bind(&labels), path })
        };
        let routes = paths.keys().map(|path| (path.clone(), route(path))).collect();
        let tracer = telemetry.tracer.clone();
        let recent = telemetry.recent.clone();
        Self(Arc::new(Observe { metrics, recent, tracer, scheme, usual, routes }))
    }
}

impl ObserveLayer {
    /// Counts a request that was turned away before it came here.
    pub(super) fn turned_away(&self, api: Api, target: &str, refusal: Refusal, took: Duration) {
        let Observe { metrics, recent, usual, routes, .. } = &*self.0;
        recent.answered(ResultCode::RequestTrafficExceedLimit.status());
        if let Some(requests) = usual.requests(Some(api), ResultCode::RequestTrafficExceedLimit) {
            requests.add(1);
        }
        if refusal == Refusal::Busy {
            usual.shed.add(1);
        } else {
            // nobody makes another's figure grow by naming him
            metrics.rate_limited.add(1, &[label("client", "unknown"), label("front", FRONT)]);
        }
        usual.cached.add(1);
        if let Some(route) = routes.get(target) {
            route.served.record(took);
        }
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
    S: Service<(Request<I>, Span), Response = (Response<O>, Option<Answered>), Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<O>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<O>, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<I>) -> Self::Future {
        let watch = Watch::begin(&self.observe, &request);
        let answering = self.inner.call((request, watch.span.clone()));
        Box::pin(async move {
            let (answer, answered) = answering.await?;
            watch.end(&answer, answered);
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
    route: Option<Arc<Route>>,
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
            Some(route) => format!("{method} {}", route.path),
            None => method.to_owned(),
        };
        let span = observe.tracer.serve(name, parent);
        span.set("http.request.method", method);
        span.set("url.scheme", observe.scheme);
        if let Some(route) = &route {
            // ours, so it tells nothing that a caller chose
            span.set("http.route", Arc::clone(&route.path));
            span.set("url.path", Arc::clone(&route.path));
        }
        observe.active(method, 1);
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

    fn end<O>(mut self, answer: &Response<O>, answered: Option<Answered>) {
        self.status = Some(answer.status());
        self.answered = answered;
    }

    fn count(&self, answered: &Answered) {
        let Observe { metrics, recent, usual, .. } = &*self.observe;
        recent.answered(answered.code.status());
        if let Some(requests) = usual.requests(answered.api, answered.code) {
            requests.add(1);
        }
        let client = || {
            let known = answered.client.as_ref().map_or("unknown", |client| client.id.as_str());
            label("client", known.to_owned())
        };
        match answered.refusal {
            Some(Refusal::Busy) => usual.shed.add(1),
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
        if let Some((version, client)) = answered.proven.as_ref().zip(answered.client.as_ref()) {
            usual.verified(metrics, &client.id, version);
            recent.signed(client.id.as_str(), version);
        }
        if let Some(cached) = answered.cached {
            if cached { usual.cached.add(1) } else { usual.computed.add(1) }
        }
        self.span.set("alipayplus.result_code", answered.code.wire());
        if let Some(client) = &answered.client
            && self.span.is_recorded()
        {
            self.span.set("alipayplus.client_id", client.id.as_str().to_owned());
        }
    }
}

impl Drop for Watch {
    /// The answer is made, or its caller has gone.
    fn drop(&mut self) {
        let observe = &self.observe;
        if let Some(status) = self.status {
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
            self.span.failed(failure);
        }
        if let Some(answered) = &self.answered {
            self.count(answered);
        }
        observe.active(self.method, -1);
        self.record(failure);
        self.span.end();
    }
}

impl Watch {
    fn record(&self, failure: Option<&'static str>) {
        let took = self.begun.elapsed();
        let usual = (self.method, self.status, failure) == (POST, Some(StatusCode::OK), None);
        match &self.route {
            Some(route) if usual => route.served.record(took),
            route => {
                let path = route.as_ref().map(|route| &route.path);
                let mut labels = durations(self.method, self.observe.scheme, path, self.status);
                labels.extend(failure.map(|failure| label("error.type", failure)));
                self.observe.metrics.http_duration.record(took, &labels);
            }
        }
    }
}

impl Observe {
    /// A request more or less that is not answered yet.
    fn active(&self, method: &'static str, change: i64) {
        if method == POST {
            self.usual.active.add(change);
        } else {
            self.metrics.http_active.add(change, &active(method, self.scheme));
        }
        self.usual.in_flight.add(change);
    }
}

fn durations(
    method: &'static str,
    scheme: &'static str,
    route: Option<&Arc<str>>,
    status: Option<StatusCode>,
) -> Vec<Label> {
    let mut labels: Vec<Label> = active(method, scheme).into();
    labels.extend(route.map(|route| label("http.route", Arc::clone(route))));
    let status = status.map(|status| i64::from(status.as_u16()));
    labels.extend(status.map(|status| label("http.response.status_code", status)));
    labels
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
        "POST" => POST,
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
