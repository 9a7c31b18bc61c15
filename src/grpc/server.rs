//! The services over the engine, the feed in a file of its own: check, decide, answer.

use std::{convert::Infallible, time::Duration};

use tonic::{Request, Response, Status, body::Body, codegen::http, service::Routes};
use tower::util::BoxCloneSyncService;

mod feed;
mod import;

use super::{
    CLIENT_ID, IMPORT_BYTES_MAX, convert,
    front::{Door, Stack},
    observe::{Observe, Watched},
    status,
    wire::{
        self,
        cancel_service_server::{CancelService, CancelServiceServer},
        feed_service_server::FeedServiceServer,
        import_service_server::ImportServiceServer,
        payment_service_server::PaymentServiceServer,
        token_service_server::TokenServiceServer,
    },
};
use crate::{
    domain::{id::ClientId, result::ResultCode},
    engine::{self, Caller, Engine, Error},
    feed::Feed,
    layer::deadline,
    listen::Peer,
    telemetry::{Span, Telemetry, context::TraceContext, label},
};

/// How long a call takes at most if its caller says nothing.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// CancelPayment.
    pub cancel_payment: Duration,
    /// CancelToken.
    pub cancel_token: Duration,
    /// Everything else.
    pub other: Duration,
}

/// What each service holds.
#[derive(Clone)]
pub struct Server {
    engine: Engine,
    deadlines: Deadlines,
    telemetry: Telemetry,
}

/// One service of gRPC's own to answer health.
pub struct Health {
    reporter: tonic_health::server::HealthReporter,
}

impl Health {
    /// Says that the services answer.
    pub async fn serving(&self) {
        self.set(tonic_health::ServingStatus::Serving).await;
    }

    /// Says that they will not much longer.
    pub async fn stopping(&self) {
        self.set(tonic_health::ServingStatus::NotServing).await;
    }

    async fn set(&self, status: tonic_health::ServingStatus) {
        for name in [
            "",
            "alipayplus.cancel.v1.CancelService",
            "alipayplus.cancel.v1.ImportService",
            "alipayplus.cancel.v1.PaymentService",
            "alipayplus.cancel.v1.TokenService",
            "alipayplus.cancel.v1.FeedService",
        ] {
            self.reporter.set_service_status(name, status).await;
        }
    }
}

/// Largest message a caller may send, in bytes: what the longest passThroughInfo needs, and some room.
const MESSAGE_BYTES_MAX: usize = 256 * 1024;

impl Server {
    /// The services over an engine.
    pub fn new(engine: Engine, deadlines: Deadlines, telemetry: Telemetry) -> Self {
        Self { engine, deadlines, telemetry }
    }

    fn bare_cancel_service(&self) -> CancelServiceServer<Self> {
        CancelServiceServer::new(self.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// The CancelService for the bridge in this process.
    pub(super) fn in_process(&self) -> InProcess {
        let observe = Observe::new(&self.telemetry, IN_PROCESS);
        let method = |name| observe.watched(&format!("/alipayplus.cancel.v1.CancelService/{name}"));
        InProcess {
            cancel_payment: method("CancelPayment"),
            cancel_token: method("CancelToken"),
            server: self.clone(),
        }
    }

    /// What people look at: payments, tokens and the feed, without a door. Not counted, since no caller asks.
    pub(super) fn services_to_look_at(&self, feed: Feed) -> [Unseen; 3] {
        let feed = feed::Server::new(feed, self.deadlines.other);
        [
            BoxCloneSyncService::new(PaymentServiceServer::new(self.clone())),
            BoxCloneSyncService::new(TokenServiceServer::new(self.clone())),
            BoxCloneSyncService::new(FeedServiceServer::new(feed)),
        ]
    }

    /// What the network may call, behind its door: all services as routes by path, with health per service and, if asked
    /// for, reflection.
    pub fn stack(&self, feed: Feed, reflection: bool, door: Door) -> (Stack, Health) {
        let (routes, health) = self.routes(feed, reflection);
        self.count_from_the_start();
        (door.before(routes, Observe::new(&self.telemetry, NETWORK)), health)
    }

    fn routes(&self, feed: Feed, reflection: bool) -> (Routes, Health) {
        let (reporter, health) = tonic_health::server::health_reporter();
        let payments =
            PaymentServiceServer::new(self.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let tokens =
            TokenServiceServer::new(self.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let feed = FeedServiceServer::new(feed::Server::new(feed, self.deadlines.other))
            .max_decoding_message_size(MESSAGE_BYTES_MAX);
        let imports =
            ImportServiceServer::new(self.clone()).max_decoding_message_size(IMPORT_BYTES_MAX);
        let mut routes = Routes::new(self.bare_cancel_service())
            .add_service(payments)
            .add_service(tokens)
            .add_service(imports)
            .add_service(feed)
            .add_service(health);
        if reflection {
            let builder = || {
                tonic_reflection::server::Builder::configure()
                    .register_encoded_file_descriptor_set(wire::DESCRIPTORS)
                    .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            };
            // v1alpha too: older tools know nothing else
            if let (Ok(v1), Ok(v1alpha)) = (builder().build_v1(), builder().build_v1alpha()) {
                routes = routes.add_service(v1).add_service(v1alpha);
            }
        }
        (routes.prepare(), Health { reporter })
    }

    /// A series that is not there yet cannot be seen to grow.
    fn count_from_the_start(&self) {
        for api in ["cancelPayment", "cancelToken"] {
            for code in ResultCode::ALL {
                self.count(0, api, code);
            }
        }
    }

    fn count(&self, more: u64, api: &'static str, code: ResultCode) {
        let labels =
            [label("api", api), label("front", NETWORK), label("result_code", code.wire())];
        self.telemetry.metrics.requests.add(more, &labels);
    }
}

/// The CancelService as the bridge in this process calls it: by its generated trait, watched like every other call. What a
/// wire would carry, message and metadata, is handed over as it is: nothing is encoded and decoded for nobody.
pub(super) struct InProcess {
    server: Server,
    cancel_payment: Watched,
    cancel_token: Watched,
}

impl InProcess {
    /// For a caller at this place of its trace.
    pub(super) async fn cancel_payment(
        &self,
        message: wire::CancelPaymentRequest,
        caller: Caller,
        parent: TraceContext,
    ) -> Result<Response<wire::CancelPaymentResponse>, Status> {
        let call =
            |span| CancelService::cancel_payment(&self.server, on_behalf_of(caller, span, message));
        self.cancel_payment.call(parent, call).await
    }

    /// For a caller at this place of its trace.
    pub(super) async fn cancel_token(
        &self,
        message: wire::CancelTokenRequest,
        caller: Caller,
        parent: TraceContext,
    ) -> Result<Response<wire::CancelTokenResponse>, Status> {
        let call =
            |span| CancelService::cancel_token(&self.server, on_behalf_of(caller, span, message));
        self.cancel_token.call(parent, call).await
    }
}

/// A request with its caller as an extension, for [`caller`]: nothing that comes in can hold one.
fn on_behalf_of<T>(caller: Caller, span: Span, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(Caller { trace: Some(span), ..caller });
    request
}

/// A service that is called without a socket before it.
pub(super) type Unseen = BoxCloneSyncService<http::Request<Body>, http::Response<Body>, Infallible>;

/// The front of a call from the network, in metrics.
const NETWORK: &str = "grpc";
/// And of one that the bridge in this process makes.
const IN_PROCESS: &str = "core";

/// On whose behalf a request is.
fn caller<T>(request: &Request<T>, default: Duration) -> Caller {
    if let Some(caller) = request.extensions().get::<Caller>() {
        return caller.clone();
    }
    let metadata = request.metadata();
    let text = |name| metadata.get(name).and_then(|value| value.to_str().ok());
    let wait = text("grpc-timeout").and_then(deadline::parse).unwrap_or(default);
    // on its way here it was taken off, unless a bridge says it
    let client = text(CLIENT_ID).and_then(ClientId::parse);
    let trace = request.extensions().get::<Span>().cloned();
    Caller { deadline: engine::now() + wait, client, trace }
}

/// Whether it came over the network: the bridge in this process tells of its own answers itself.
fn came_in<T>(request: &Request<T>) -> bool {
    request.extensions().get::<Peer>().is_some()
}

/// The log gets the cause, the peer the code's text.
fn failed(error: &Error) -> Status {
    tracing::debug!(%error, "call was not answered");
    status::failed(error)
}

#[tonic::async_trait]
impl CancelService for Server {
    async fn cancel_payment(
        &self,
        request: Request<wire::CancelPaymentRequest>,
    ) -> Result<Response<wire::CancelPaymentResponse>, Status> {
        let caller = caller(&request, self.deadlines.cancel_payment);
        // a bridge counts its own, wherever it is
        let direct = caller.client.is_none();
        let came_in = came_in(&request);
        let decided = self.decide_payment(request.get_ref(), caller).await;
        if direct {
            self.count(1, "cancelPayment", code(&decided));
        }
        if came_in {
            self.telemetry.recent.answered(code(&decided).status());
        }
        decided.map(|(_, answer)| answer)
    }

    async fn cancel_token(
        &self,
        request: Request<wire::CancelTokenRequest>,
    ) -> Result<Response<wire::CancelTokenResponse>, Status> {
        let caller = caller(&request, self.deadlines.cancel_token);
        let direct = caller.client.is_none();
        let came_in = came_in(&request);
        let decided = self.decide_token(request.get_ref(), caller).await;
        if direct {
            self.count(1, "cancelToken", code(&decided));
        }
        if came_in {
            self.telemetry.recent.answered(code(&decided).status());
        }
        decided.map(|(_, answer)| answer)
    }
}

/// An answer with the code that metrics know it by.
type Coded<T> = Result<(ResultCode, Response<T>), Status>;

fn code<T>(decided: &Coded<T>) -> ResultCode {
    match decided {
        Ok((code, _)) => *code,
        Err(status) => {
            status::refusal(status).map_or(ResultCode::UnknownException, |(code, _)| code)
        }
    }
}

impl Server {
    async fn decide_payment(
        &self,
        request: &wire::CancelPaymentRequest,
        caller: Caller,
    ) -> Coded<wire::CancelPaymentResponse> {
        let command = convert::cancel_payment(request)?;
        let decided = self.engine.cancel_payment(command, caller).await;
        let outcome = decided.map_err(|error| failed(&error))?;
        let code = outcome.code();
        convert::payment_cancelled(outcome).map(|answer| (code, Response::new(answer)))
    }

    async fn decide_token(
        &self,
        request: &wire::CancelTokenRequest,
        caller: Caller,
    ) -> Coded<wire::CancelTokenResponse> {
        let command = convert::cancel_token(request)?;
        let decided = self.engine.cancel_token(command, caller).await;
        let outcome = decided.map_err(|error| failed(&error))?;
        let code = outcome.code();
        convert::token_cancelled(outcome).map(|answer| (code, Response::new(answer)))
    }
}

#[tonic::async_trait]
impl wire::payment_service_server::PaymentService for Server {
    async fn record_payment(
        &self,
        request: Request<wire::RecordPaymentRequest>,
    ) -> Result<Response<wire::RecordPaymentResponse>, Status> {
        let caller = caller(&request, self.deadlines.other);
        let command = convert::record_payment(request.get_ref())?;
        let key = command.key.clone();
        let decided = self.engine.record_payment(command, caller).await;
        let (outcome, payment) = decided.map_err(|error| failed(&error))?;
        Ok(Response::new(convert::payment_recorded(&key, outcome, payment.as_ref())))
    }

    async fn get_payment(
        &self,
        request: Request<wire::GetPaymentRequest>,
    ) -> Result<Response<wire::GetPaymentResponse>, Status> {
        let caller = caller(&request, self.deadlines.other);
        let key = convert::get_payment(request.get_ref())?;
        let payment =
            self.engine.get_payment(key.clone(), caller).await.map_err(|error| failed(&error))?;
        let payment =
            payment.ok_or_else(|| Status::not_found("nothing is known of this payment"))?;
        Ok(Response::new(convert::payment_told(&key, &payment)))
    }

    async fn record_fund_return(
        &self,
        request: Request<wire::RecordFundReturnRequest>,
    ) -> Result<Response<wire::RecordFundReturnResponse>, Status> {
        let caller = caller(&request, self.deadlines.other);
        let command = convert::record_fund_return(request.get_ref())?;
        let key = command.key.clone();
        let decided = self.engine.record_fund_return(command, caller).await;
        let (outcome, payment) = decided.map_err(|error| failed(&error))?;
        Ok(Response::new(convert::fund_return_recorded(&key, outcome, payment.as_ref())))
    }

    async fn list_outstanding_payments(
        &self,
        request: Request<wire::ListOutstandingPaymentsRequest>,
    ) -> Result<Response<wire::ListOutstandingPaymentsResponse>, Status> {
        let caller = caller(&request, self.deadlines.other);
        let (kind, limit) = convert::list_outstanding_payments(*request.get_ref())?;
        let listed = self.engine.outstanding(kind, limit, caller).await;
        let (backlog, payments) = listed.map_err(|error| failed(&error))?;
        Ok(Response::new(convert::outstanding_told(backlog, payments)))
    }
}

#[tonic::async_trait]
impl wire::token_service_server::TokenService for Server {
    async fn record_token(
        &self,
        request: Request<wire::RecordTokenRequest>,
    ) -> Result<Response<wire::RecordTokenResponse>, Status> {
        let caller = caller(&request, self.deadlines.other);
        let command = convert::record_token(request.get_ref())?;
        let outcome =
            self.engine.record_token(command, caller).await.map_err(|error| failed(&error))?;
        Ok(Response::new(convert::token_recorded(outcome)))
    }

    async fn introspect_token(
        &self,
        request: Request<wire::IntrospectTokenRequest>,
    ) -> Result<Response<wire::IntrospectTokenResponse>, Status> {
        let caller = caller(&request, self.deadlines.other);
        let (psp, token) = convert::introspect_token(request.get_ref())?;
        let active = self
            .engine
            .introspect_token(&psp, &token, caller)
            .await
            .map_err(|error| failed(&error))?;
        Ok(Response::new(convert::token_introspected(active)))
    }

    async fn revoke_authorization(
        &self,
        request: Request<wire::RevokeAuthorizationRequest>,
    ) -> Result<Response<wire::RevokeAuthorizationResponse>, Status> {
        let caller = caller(&request, self.deadlines.other);
        let command = convert::revoke_authorization(request.get_ref())?;
        let outcome = self
            .engine
            .revoke_authorization(command, caller)
            .await
            .map_err(|error| failed(&error))?;
        Ok(Response::new(convert::authorization_revoked(outcome)))
    }

    async fn get_authorization(
        &self,
        request: Request<wire::GetAuthorizationRequest>,
    ) -> Result<Response<wire::GetAuthorizationResponse>, Status> {
        let caller = caller(&request, self.deadlines.other);
        let key = convert::get_authorization(request.get_ref())?;
        let told = self.engine.get_authorization(key.clone(), caller).await;
        let authorization = told.map_err(|error| failed(&error))?;
        let authorization = authorization
            .ok_or_else(|| Status::not_found("nothing is known of this authorization"))?;
        Ok(Response::new(convert::authorization_told(&key, authorization)))
    }
}
