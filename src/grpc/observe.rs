//! Around every call that is served: its span, its duration, its status.
//!
//! Names follow the semantic conventions for RPC. A method that is none of ours is `_OTHER`, so that nobody outside
//! chooses how many series there are.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    error::Error,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::Bytes;
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tonic::{
    Code,
    body::Body,
    codegen::{
        Service,
        http::{HeaderMap, Request, Response},
    },
};
use tower::Layer;

use super::{TRACEPARENT, wire};
use crate::{
    layer::{Refusal, identity::is_open},
    telemetry::{
        Metrics, Span, Telemetry,
        context::TraceContext,
        label,
        metrics::{BoundSeconds, BoundUpDownCounter, Label},
        span::Tracer,
    },
};

/// Watches the calls of the services below.
#[derive(Clone)]
pub struct Observe {
    methods: Arc<BTreeMap<String, Arc<Method>>>,
    other: Arc<Method>,
    metrics: Metrics,
    in_flight: Arc<BoundUpDownCounter<i64>>,
    tracer: Tracer,
    front: &'static str,
}

/// A method that may be called.
struct Method {
    name: Arc<str>,
    /// Its calls that went well: looked up once, since that costs more than all else of counting one.
    well: OnceLock<BoundSeconds>,
}

impl Method {
    fn new(name: impl Into<Arc<str>>) -> Arc<Self> {
        Arc::new(Self { name: name.into(), well: OnceLock::new() })
    }
}

impl Observe {
    pub(super) fn new(telemetry: &Telemetry, front: &'static str) -> Self {
        let (metrics, tracer) = (telemetry.metrics.clone(), telemetry.tracer.clone());
        let in_flight = Arc::new(metrics.in_flight.bind(&[label("front", front)]));
        let (methods, other) = (Arc::new(methods()), Method::new("_OTHER"));
        Self { methods, other, metrics, in_flight, tracer, front }
    }
}

impl Observe {
    fn method(&self, path: &str) -> Arc<Method> {
        Arc::clone(self.methods.get(path).unwrap_or(&self.other))
    }

    fn serve(&self, method: &Method, parent: Option<TraceContext>) -> Span {
        let name = if self.tracer.is_exported() { method.name.to_string() } else { String::new() };
        let span = self.tracer.serve(name, parent);
        span.set("rpc.system.name", "grpc");
        span.set("rpc.method", Arc::clone(&method.name));
        span
    }

    /// For calls of one method that come without HTTP.
    pub(super) fn watched(&self, path: &str) -> Watched {
        Watched { method: self.method(path), observe: self.clone() }
    }
}

/// Watches calls of a method that come without HTTP.
pub(super) struct Watched {
    observe: Observe,
    method: Arc<Method>,
}

impl Watched {
    /// Serves a call of a caller at this place of its trace.
    pub(super) async fn call<A>(
        &self,
        parent: TraceContext,
        call: impl AsyncFnOnce(Span) -> Result<tonic::Response<A>, tonic::Status>,
    ) -> Result<tonic::Response<A>, tonic::Status> {
        let span = self.observe.serve(&self.method, Some(parent));
        let mut watch = Watch::new(span.clone(), Arc::clone(&self.method), &self.observe);
        let answered = call(span).await;
        watch.status = Some(answered.as_ref().err().map_or(Code::Ok, tonic::Status::code));
        answered
    }
}

/// Every method of ours and of gRPC's own, by path.
fn methods() -> BTreeMap<String, Arc<Method>> {
    let sets = [
        wire::DESCRIPTORS,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    let mut methods = BTreeMap::new();
    for file in sets.iter().filter_map(|set| FileDescriptorSet::decode(*set).ok()) {
        for file in file.file {
            for service in &file.service {
                for method in &service.method {
                    let name = format!("{}.{}/{}", file.package(), service.name(), method.name());
                    methods.insert(format!("/{name}"), Method::new(name));
                }
            }
        }
    }
    methods
}

impl<S> Layer<S> for Observe {
    type Service = Observed<S>;

    fn layer(&self, inner: S) -> Observed<S> {
        Observed { inner, observe: self.clone() }
    }
}

/// See [`Observe`].
#[derive(Clone)]
pub struct Observed<S> {
    inner: S,
    observe: Observe,
}

impl<S, I, B> Service<Request<I>> for Observed<S>
where
    S: Service<Request<I>, Response = Response<B>, Error = Infallible>,
    S::Future: Send + 'static,
    B: http_body::Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>>
        + Send
        + Unpin
        + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<I>) -> Self::Future {
        let observe = &self.observe;
        let parent = request.headers().get(TRACEPARENT);
        let parent = parent.and_then(|value| value.to_str().ok()).and_then(TraceContext::parse);
        let method = observe.method(request.uri().path());
        // a probe every few seconds is no trace that anybody looks for
        let span = match parent {
            None if is_open(request.uri().path()) => Span::unrecorded(TraceContext::begin(0.0)),
            _ => observe.serve(&method, parent),
        };
        request.extensions_mut().insert(span.clone());
        let watch = Watch::new(span, method, observe);
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            Ok(watch.answered(answer))
        })
    }
}

/// A call that is being answered.
struct Watch {
    span: Span,
    method: Arc<Method>,
    metrics: Metrics,
    in_flight: Arc<BoundUpDownCounter<i64>>,
    front: &'static str,
    begun: Instant,
    status: Option<Code>,
}

impl Watch {
    fn new(span: Span, method: Arc<Method>, observe: &Observe) -> Self {
        let (metrics, front) = (observe.metrics.clone(), observe.front);
        let in_flight = Arc::clone(&observe.in_flight);
        in_flight.add(1);
        Self { span, method, metrics, in_flight, front, begun: Instant::now(), status: None }
    }

    fn answered<B>(mut self, answer: Response<B>) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>>
            + Send
            + Unpin
            + 'static,
    {
        match answer.extensions().get::<Refusal>() {
            Some(Refusal::Busy) => {
                let labels = [label("front", self.front), label("reason", "in_flight")];
                self.metrics.shed.add(1, &labels);
            }
            Some(Refusal::OverRate { .. }) => {
                let labels = [label("client", "callers"), label("front", self.front)];
                self.metrics.rate_limited.add(1, &labels);
            }
            Some(Refusal::NotAllowed | Refusal::OutOfTime | Refusal::Panicked) | None => {}
        }
        if let Some(status) = status(answer.headers()) {
            self.status = Some(status);
            return answer.map(Body::new);
        }
        answer.map(|body| Body::new(Told { body, watch: self }))
    }
}

/// The name of a status as gRPC spells it, and whether it says that we failed; what the caller did wrong does not.
pub(super) const fn told(code: Code) -> (&'static str, bool) {
    match code {
        Code::Ok => ("OK", false),
        Code::Cancelled => ("CANCELLED", false),
        Code::Unknown => ("UNKNOWN", true),
        Code::InvalidArgument => ("INVALID_ARGUMENT", false),
        Code::DeadlineExceeded => ("DEADLINE_EXCEEDED", true),
        Code::NotFound => ("NOT_FOUND", false),
        Code::AlreadyExists => ("ALREADY_EXISTS", false),
        Code::PermissionDenied => ("PERMISSION_DENIED", false),
        Code::ResourceExhausted => ("RESOURCE_EXHAUSTED", false),
        Code::FailedPrecondition => ("FAILED_PRECONDITION", false),
        Code::Aborted => ("ABORTED", false),
        Code::OutOfRange => ("OUT_OF_RANGE", false),
        Code::Unimplemented => ("UNIMPLEMENTED", true),
        Code::Internal => ("INTERNAL", true),
        Code::Unavailable => ("UNAVAILABLE", true),
        Code::DataLoss => ("DATA_LOSS", true),
        Code::Unauthenticated => ("UNAUTHENTICATED", false),
    }
}

fn status(headers: &HeaderMap) -> Option<Code> {
    headers.get("grpc-status").map(|status| Code::from_bytes(status.as_bytes()))
}

impl Drop for Watch {
    /// The answer is out, or nobody waits for it any more.
    fn drop(&mut self) {
        let (name, failed) = told(self.status.unwrap_or(Code::Cancelled));
        let took = self.begun.elapsed();
        let labels = || -> Vec<Label> {
            vec![
                label("rpc.system.name", "grpc"),
                label("rpc.method", Arc::clone(&self.method.name)),
                label("rpc.response.status_code", name),
            ]
        };
        let duration = &self.metrics.rpc_duration;
        if self.status == Some(Code::Ok) {
            self.method.well.get_or_init(|| duration.bind(&labels())).record(took);
        } else {
            let mut labels = labels();
            if failed {
                labels.push(label("error.type", name));
                self.span.failed(name);
            }
            duration.record(took, &labels);
        }
        self.in_flight.add(-1);
        self.span.set("rpc.response.status_code", name);
        self.span.end();
    }
}

/// A body whose trailers say how the call ended.
struct Told<B> {
    body: B,
    watch: Watch,
}

impl<B: http_body::Body + Unpin> http_body::Body for Told<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame
            && let Some(code) = frame.trailers_ref().and_then(status)
        {
            self.watch.status = Some(code);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_is_known_by_its_path() {
        let methods = methods();
        let known = |path: &str| methods.get(path).map(|method| &*method.name);
        let cancel = "alipayplus.cancel.v1.CancelService/CancelPayment";
        assert_eq!(known(&format!("/{cancel}")), Some(cancel));
        assert_eq!(known("/grpc.health.v1.Health/Check"), Some("grpc.health.v1.Health/Check"));
        assert!(methods.len() > 20, "{}", methods.len());
    }
}
