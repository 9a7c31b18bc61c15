//! Spans: the parts of a trace that happen here.
//!
//! Whether a trace is recorded is decided where it begins: by the caller's flag, else by `sample_ratio` over its id. A
//! span that is not recorded is a [`TraceContext`] and nothing else, so it costs next to nothing, and what goes out is
//! the caller's context as it came in.

use std::{borrow::Cow, fmt, time::SystemTime};

pub use opentelemetry::trace::SpanKind as Kind;
use opentelemetry::{
    Context, ContextGuard, KeyValue, Value,
    trace::{
        SpanBuilder, SpanContext, SpanId, Status, TraceContextExt as _, TraceFlags,
        TraceId as OtelTraceId, TraceState, Tracer as _,
    },
};
use opentelemetry_sdk::trace::SdkTracer;

use super::context::TraceContext;

/// Makes spans; clones share where they go.
#[derive(Clone, Debug)]
pub struct Tracer {
    /// Absent where nobody collects.
    exported: Option<SdkTracer>,
    ratio: f64,
}

/// A span, or a place in a trace that nobody records; clones are the same span.
#[derive(Clone)]
pub struct Span {
    context: TraceContext,
    recorded: Option<Recorded>,
}

#[derive(Clone)]
struct Recorded {
    tracer: SdkTracer,
    span: Context,
}

impl Tracer {
    pub(super) fn new(exported: Option<SdkTracer>, ratio: f64) -> Self {
        Self { exported, ratio }
    }

    /// Whether spans go anywhere: if not, spare making names for them.
    pub fn is_exported(&self) -> bool {
        self.exported.is_some()
    }

    /// The span of a request that came in, continuing its caller's trace.
    pub fn serve(&self, name: impl Into<Cow<'static, str>>, parent: Option<TraceContext>) -> Span {
        let tracer = match (&self.exported, parent) {
            (Some(tracer), None) => tracer,
            (Some(tracer), Some(parent)) if parent.sampled => tracer,
            (_, Some(context)) => return Span { context, recorded: None },
            (None, None) => {
                let context = TraceContext::begin(self.ratio);
                return Span { context, recorded: None };
            }
        };
        let builder = SpanBuilder::from_name(name).with_kind(Kind::Server);
        let parent = parent.map_or_else(Context::new, remote);
        Span::start(tracer, builder, &parent)
    }
}

impl Default for Tracer {
    /// Nobody collects.
    fn default() -> Self {
        Self { exported: None, ratio: 1.0 }
    }
}

impl Span {
    /// Of a trace that nobody records.
    pub fn unrecorded(context: TraceContext) -> Self {
        Self { context, recorded: None }
    }

    fn start(tracer: &SdkTracer, builder: SpanBuilder, parent: &Context) -> Self {
        let span = tracer.build_with_context(builder, parent);
        let span = Context::new().with_span(span);
        let id = span.span().span_context().clone();
        let context = TraceContext {
            trace: crate::domain::id::TraceId(id.trace_id().to_bytes()),
            span: id.span_id().to_bytes(),
            sampled: id.is_sampled(),
        };
        let recorded = id.is_sampled().then(|| Recorded { tracer: tracer.clone(), span });
        Self { context, recorded }
    }

    /// Where in which trace it is; what is called from here gets it as its `traceparent`.
    pub fn context(&self) -> TraceContext {
        self.context
    }

    /// Whether anybody sees what is set: if not, spare the work.
    pub fn is_recorded(&self) -> bool {
        self.recorded.is_some()
    }

    /// A span of something that this one waits for.
    #[must_use]
    pub fn child(&self, kind: Kind, name: impl Into<Cow<'static, str>>) -> Self {
        let Some(Recorded { tracer, span }) = &self.recorded else { return self.clone() };
        Self::start(tracer, SpanBuilder::from_name(name).with_kind(kind), span)
    }

    /// A child that has been.
    pub fn past(
        &self,
        (kind, name): (Kind, &'static str),
        (begun, ended): (SystemTime, SystemTime),
        attributes: Vec<KeyValue>,
        failure: Option<&'static str>,
    ) {
        let Some(Recorded { tracer, span }) = &self.recorded else { return };
        let builder = SpanBuilder::from_name(name)
            .with_kind(kind)
            .with_start_time(begun)
            .with_attributes(attributes);
        let mut span = tracer.build_with_context(builder, span);
        if let Some(failure) = failure {
            opentelemetry::trace::Span::set_attribute(
                &mut span,
                KeyValue::new("error.type", failure),
            );
            opentelemetry::trace::Span::set_status(&mut span, Status::error(failure));
        }
        opentelemetry::trace::Span::end_with_timestamp(&mut span, ended);
    }

    /// Notes something about it.
    pub fn set(&self, name: &'static str, value: impl Into<Value>) {
        if let Some(Recorded { span, .. }) = &self.recorded {
            span.span().set_attribute(KeyValue::new(name, value));
        }
    }

    /// Notes that it failed, and how.
    pub fn failed(&self, how: impl Into<Cow<'static, str>>) {
        if let Some(Recorded { span, .. }) = &self.recorded {
            let how: Cow<'static, str> = how.into();
            span.span().set_attribute(KeyValue::new("error.type", how.clone()));
            span.span().set_status(Status::error(how));
        }
    }

    /// It is over. A span that is dropped is over too.
    pub fn end(&self) {
        if let Some(Recorded { span, .. }) = &self.recorded {
            span.span().end();
        }
    }

    /// As long as the value lives, log lines of this thread belong to the span. Never across an await.
    pub fn lines(&self) -> Lines {
        Lines(remote(self.context).attach())
    }
}

/// See [`Span::lines`].
#[must_use]
pub struct Lines(#[expect(dead_code, reason = "its drop is what counts")] ContextGuard);

fn remote(context: TraceContext) -> Context {
    let flags = if context.sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
    Context::new().with_remote_span_context(SpanContext::new(
        OtelTraceId::from_bytes(context.trace.0),
        SpanId::from_bytes(context.span),
        flags,
        true,
        TraceState::NONE,
    ))
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Span({}, recorded: {})", self.context, self.is_recorded())
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::TracerProvider as _;
    use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};

    use super::*;

    const SAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn tracer(ratio: f64) -> Tracer {
        let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(ratio)));
        let provider = SdkTracerProvider::builder().with_sampler(sampler).build();
        Tracer::new(Some(provider.tracer("test")), ratio)
    }

    #[test]
    fn a_sampled_trace_is_continued_and_handed_on() {
        let span = tracer(0.0).serve("a", TraceContext::parse(SAMPLE));
        assert!(span.is_recorded(), "the caller decided");
        assert_eq!(span.context().trace.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_ne!(span.context().to_string(), SAMPLE, "the callee's parent is our span");
        let child = span.child(Kind::Client, "b");
        assert_eq!(child.context().trace, span.context().trace);
        assert_ne!(child.context().span, span.context().span);
        assert!(child.context().to_string().ends_with("-01"));
    }

    #[test]
    fn an_unsampled_trace_passes_through_as_it_came() {
        let unsampled = SAMPLE.replace("-01", "-00");
        let span = tracer(1.0).serve("a", TraceContext::parse(&unsampled));
        assert!(!span.is_recorded());
        assert_eq!(span.child(Kind::Client, "b").context().to_string(), unsampled);
    }

    #[test]
    fn without_a_collector_a_trace_passes_through_too() {
        let span = Tracer::default().serve("a", TraceContext::parse(SAMPLE));
        assert!(!span.is_recorded());
        assert_eq!(span.child(Kind::Client, "b").context().to_string(), SAMPLE);
    }

    #[test]
    fn the_ratio_decides_where_a_trace_begins() {
        for (ratio, sampled) in [(0.0, false), (1.0, true)] {
            let span = tracer(ratio).serve("a", None);
            assert_eq!((span.is_recorded(), span.context().sampled), (sampled, sampled));
            let span = Tracer::new(None, ratio).serve("a", None);
            assert_eq!((span.is_recorded(), span.context().sampled), (false, sampled));
        }
        let half = tracer(0.5);
        let kept = (0..1_000).filter(|_| half.serve("a", None).is_recorded()).count();
        assert!((350..650).contains(&kept), "{kept} of 1000");
    }
}
