//! An OTLP collector: keeps all that a service sends, for tests to look into.

use std::{
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex},
};

use opentelemetry_proto::tonic::{
    collector::{
        logs::v1::{
            ExportLogsServiceRequest, ExportLogsServiceResponse,
            logs_service_server::{LogsService, LogsServiceServer},
        },
        metrics::v1::{
            ExportMetricsServiceRequest, ExportMetricsServiceResponse,
            metrics_service_server::{MetricsService, MetricsServiceServer},
        },
        trace::v1::{
            ExportTraceServiceRequest, ExportTraceServiceResponse,
            trace_service_server::{TraceService, TraceServiceServer},
        },
    },
    common::v1::{AnyValue, KeyValue, any_value::Value},
    logs::v1::LogRecord,
    metrics::v1::Metric,
    resource::v1::Resource,
    trace::v1::Span,
};
use tokio::runtime::Runtime;
use tonic::{
    Request, Response, Status,
    transport::{Identity, Server, ServerTlsConfig, server::TcpIncoming},
};

/// All that was sent.
#[derive(Debug, Default)]
pub struct Received {
    pub resources: Vec<Resource>,
    pub spans: Vec<Span>,
    pub logs: Vec<LogRecord>,
    pub metrics: Vec<Metric>,
    /// The metadata of each call.
    pub heads: Vec<String>,
}

/// A collector, until it is dropped.
pub struct Collector {
    pub address: SocketAddr,
    received: Arc<Mutex<Received>>,
    _runtime: Runtime,
}

#[derive(Clone)]
struct Keep(Arc<Mutex<Received>>);

impl Collector {
    /// One at a free port.
    pub fn start() -> Self {
        Self::listening(TcpListener::bind("127.0.0.1:0").expect("a free port"))
    }

    /// One with a certificate, PEM, and its key.
    pub fn secure((certificate, key): (String, String)) -> Self {
        let tls = ServerTlsConfig::new().identity(Identity::from_pem(certificate, key));
        Self::serve(TcpListener::bind("127.0.0.1:0").expect("a free port"), Some(tls))
    }

    /// One that takes over a listener.
    pub fn listening(listener: TcpListener) -> Self {
        Self::serve(listener, None)
    }

    fn serve(listener: TcpListener, tls: Option<ServerTlsConfig>) -> Self {
        let address = listener.local_addr().expect("an address");
        listener.set_nonblocking(true).expect("a listener");
        let received = Arc::<Mutex<Received>>::default();
        let keep = Keep(Arc::clone(&received));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            let mut server = Server::builder();
            if let Some(tls) = tls {
                server = server.tls_config(tls).expect("a certificate and its key");
            }
            server
                .add_service(TraceServiceServer::new(keep.clone()))
                .add_service(MetricsServiceServer::new(keep.clone()))
                .add_service(LogsServiceServer::new(keep))
                .serve_with_incoming(TcpIncoming::from(listener))
                .await
        });
        Self { address, received, _runtime: runtime }
    }

    /// As a setting.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Looks into what was sent so far.
    pub fn look<T>(&self, look: impl FnOnce(&Received) -> T) -> T {
        look(&self.received.lock().expect("no panic in a handler"))
    }
}

#[tonic::async_trait]
impl TraceService for Keep {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut received = self.0.lock().expect("no panic");
        received.heads.push(format!("{:?}", request.metadata()));
        for group in request.into_inner().resource_spans {
            received.resources.extend(group.resource);
            received.spans.extend(group.scope_spans.into_iter().flat_map(|scope| scope.spans));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl LogsService for Keep {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        let mut received = self.0.lock().expect("no panic");
        received.heads.push(format!("{:?}", request.metadata()));
        for group in request.into_inner().resource_logs {
            received.resources.extend(group.resource);
            received.logs.extend(group.scope_logs.into_iter().flat_map(|scope| scope.log_records));
        }
        Ok(Response::new(ExportLogsServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Keep {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        let mut received = self.0.lock().expect("no panic");
        received.heads.push(format!("{:?}", request.metadata()));
        for group in request.into_inner().resource_metrics {
            received.resources.extend(group.resource);
            received
                .metrics
                .extend(group.scope_metrics.into_iter().flat_map(|scope| scope.metrics));
        }
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

/// An attribute as text; empty if it is not there.
pub fn attribute(attributes: &[KeyValue], name: &str) -> String {
    let found = attributes.iter().find(|attribute| attribute.key == name);
    found.and_then(|attribute| attribute.value.as_ref()).map(text).unwrap_or_default()
}

/// A value as text.
pub fn text(value: &AnyValue) -> String {
    match &value.value {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(truth)) => truth.to_string(),
        Some(Value::DoubleValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    }
}

/// Bytes of an id.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
