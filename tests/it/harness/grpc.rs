//! The wallet's own services before the gRPC front.

use std::{net::SocketAddr, time::SystemTime};

use tokio::runtime::{Builder, Runtime};
use tonic::{
    Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use super::pki::Issued;

/// The contract, compiled for these tests.
pub mod wire {
    #![allow(clippy::all, clippy::pedantic, clippy::restriction, rust_2018_idioms, dead_code)]
    tonic::include_proto!("alipayplus.cancel.v1");
}

use super::pair;
use wire::{
    cancel_service_client::CancelServiceClient, feed_service_client::FeedServiceClient,
    payment_service_client::PaymentServiceClient, record_payment_request::Fact,
    token_service_client::TokenServiceClient,
};

/// Where the usual service is called: by TLS if it is a pair.
pub fn endpoint(address: SocketAddr) -> Endpoint {
    if pair::is_usual() {
        return endpoint_by_tls(address);
    }
    Endpoint::from_shared(format!("http://{address}")).expect("an address")
}

fn endpoint_by_tls(address: SocketAddr) -> Endpoint {
    let endpoint = Endpoint::from_shared(format!("https://{address}")).expect("an address");
    endpoint.tls_config(pair::wallet_tls()).expect("TLS")
}

/// A connection, with a runtime of its own, so that tests are plain functions.
pub struct Grpc {
    runtime: Runtime,
    channel: Channel,
}

/// One client method as a blocking call.
macro_rules! calls {
    ($($service:ident . $method:ident ( $request:ident ) -> $response:ident;)*) => {
        impl Grpc {
            $(
                pub fn $method(
                    &self,
                    request: impl tonic::IntoRequest<wire::$request>,
                ) -> Result<wire::$response, Status> {
                    let mut client = $service::new(self.channel.clone());
                    let answered = self.runtime.block_on(client.$method(request));
                    answered.map(tonic::Response::into_inner)
                }
            )*
        }
    };
}

calls! {
    CancelServiceClient.cancel_payment(CancelPaymentRequest) -> CancelPaymentResponse;
    CancelServiceClient.cancel_token(CancelTokenRequest) -> CancelTokenResponse;
    PaymentServiceClient.record_payment(RecordPaymentRequest) -> RecordPaymentResponse;
    PaymentServiceClient.get_payment(GetPaymentRequest) -> GetPaymentResponse;
    PaymentServiceClient.record_fund_return(RecordFundReturnRequest) -> RecordFundReturnResponse;
    TokenServiceClient.record_token(RecordTokenRequest) -> RecordTokenResponse;
    TokenServiceClient.introspect_token(IntrospectTokenRequest) -> IntrospectTokenResponse;
    TokenServiceClient.revoke_authorization(RevokeAuthorizationRequest) -> RevokeAuthorizationResponse;
    TokenServiceClient.get_authorization(GetAuthorizationRequest) -> GetAuthorizationResponse;
    PaymentServiceClient.list_outstanding_payments(ListOutstandingPaymentsRequest) -> ListOutstandingPaymentsResponse;
    FeedServiceClient.acknowledge(AcknowledgeRequest) -> AcknowledgeResponse;
    FeedServiceClient.park(ParkRequest) -> ParkResponse;
    FeedServiceClient.list_parked(ListParkedRequest) -> ListParkedResponse;
    FeedServiceClient.redrive(RedriveRequest) -> RedriveResponse;
    FeedServiceClient.get_lag(GetLagRequest) -> GetLagResponse;
    FeedServiceClient.list_consumers(ListConsumersRequest) -> ListConsumersResponse;
    FeedServiceClient.delete_consumer(DeleteConsumerRequest) -> DeleteConsumerResponse;
}

impl Grpc {
    /// As the usual service is called.
    pub fn new(address: SocketAddr) -> Self {
        Self::over(&endpoint(address))
    }

    /// With the certificate of the wallet's services.
    pub fn by_tls(address: SocketAddr) -> Self {
        Self::over(&endpoint_by_tls(address))
    }

    fn over(endpoint: &Endpoint) -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let channel = runtime.block_on(async { endpoint.connect_lazy() });
        Self { runtime, channel }
    }

    /// The same over TLS, trusting this authority, with a certificate or none.
    pub fn over_tls(address: SocketAddr, ca: &str, issued: Option<&Issued>) -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca));
        if let Some(issued) = issued {
            tls = tls.identity(Identity::from_pem(&issued.cert, &issued.key));
        }
        let endpoint = Endpoint::from_shared(format!("https://{address}")).expect("an address");
        let endpoint = endpoint.tls_config(tls).expect("a TLS set-up");
        let channel = runtime.block_on(async { endpoint.connect_lazy() });
        Self { runtime, channel }
    }

    /// For clients that have no verb here.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// RecordPayment, its answer alone.
    #[track_caller]
    pub fn record(&self, payment: &Payment, fact: Fact) -> wire::RecordPaymentAnswer {
        let answered = self.record_payment(payment.record(fact)).expect("an answer");
        answered.answer()
    }

    /// GetPayment.
    #[track_caller]
    pub fn story(&self, payment: &Payment) -> wire::GetPaymentResponse {
        let request = wire::GetPaymentRequest {
            psp_id: payment.psp.clone(),
            payment_request_id: payment.request.clone(),
        };
        self.get_payment(request).expect("a known payment")
    }
}

/// A stream of the feed's that has begun.
pub struct Followed<'g> {
    grpc: &'g Grpc,
    stream: tonic::Streaming<wire::SubscribeResponse>,
    /// Its id.
    pub id: String,
    /// The feed's epoch.
    pub epoch: u64,
}

impl Grpc {
    /// Subscribe, and its first message.
    pub fn subscribe(&self, request: wire::SubscribeRequest) -> Result<Followed<'_>, Status> {
        let mut client = FeedServiceClient::new(self.channel.clone());
        let mut stream = self.runtime.block_on(client.subscribe(request))?.into_inner();
        let first = self.runtime.block_on(stream.message())?.expect("a first message");
        assert_eq!(first.event, None);
        Ok(Followed { grpc: self, stream, id: first.subscription_id, epoch: first.epoch })
    }

    /// Subscribe to everything behind what the consumer acknowledged.
    #[track_caller]
    pub fn follow(&self, consumer: &str) -> Followed<'_> {
        let consumer = consumer.to_owned();
        let request = wire::SubscribeRequest { consumer, ..wire::SubscribeRequest::default() };
        self.subscribe(request).expect("a stream")
    }
}

impl Followed<'_> {
    /// What it says next, or how it ends.
    pub fn next(&mut self) -> Result<wire::SubscribeResponse, Status> {
        let next = self
            .grpc
            .runtime
            .block_on(async { tokio::time::timeout(super::PATIENCE, self.stream.message()).await });
        Ok(next.expect("something is said")?.expect("a stream ends with a status"))
    }

    /// The next event.
    #[track_caller]
    pub fn event(&mut self) -> wire::CancellationEvent {
        loop {
            if let Some(event) = self.next().expect("a stream that goes on").event {
                return event;
            }
        }
    }

    /// How it ends, events aside.
    pub fn end(&mut self) -> Status {
        loop {
            if let Err(end) = self.next() {
                return end;
            }
        }
    }

    /// Asserts that nothing comes now. What it waits is no more than what usually suffices.
    #[track_caller]
    pub fn is_silent(&mut self) {
        let patience = std::time::Duration::from_millis(150);
        let next = self
            .grpc
            .runtime
            .block_on(async { tokio::time::timeout(patience, self.stream.message()).await });
        assert!(next.is_err(), "{next:?}");
    }
}

/// One payment, as the tests name it.
#[derive(Clone, Debug)]
pub struct Payment {
    pub psp: String,
    pub acquirer: String,
    pub request: String,
    /// Minor units of EUR.
    pub amount: i64,
    /// Days before now.
    pub days_ago: u64,
}

impl Payment {
    /// A payment that no other test uses, initiated now.
    pub fn new() -> Self {
        Self {
            psp: "1022172000000000001".to_owned(),
            acquirer: "1022188000000000001".to_owned(),
            request: super::unique("pay"),
            amount: 1_999,
            days_ago: 0,
        }
    }

    fn amount(&self) -> wire::Amount {
        wire::Amount { value: self.amount, currency: "EUR".to_owned() }
    }

    fn initiated_at(&self) -> prost_types::Timestamp {
        let age = std::time::Duration::from_secs(self.days_ago * 86_400);
        SystemTime::now().checked_sub(age).expect("a moment").into()
    }

    pub fn initiated(&self) -> Fact {
        Fact::Initiated(wire::PaymentInitiated {
            amount: Some(self.amount()),
            initiated_at: Some(self.initiated_at()),
        })
    }

    pub fn succeeded(&self) -> Fact {
        Fact::Succeeded(wire::PaymentSucceeded {
            amount: Some(self.amount()),
            initiated_at: Some(self.initiated_at()),
        })
    }

    pub fn failed(&self) -> Fact {
        Fact::Failed(wire::PaymentFailed { amount: None })
    }

    pub fn refund_started(&self, id: &str, value: i64) -> Fact {
        let amount = Some(wire::Amount { value, currency: "EUR".to_owned() });
        Fact::RefundStarted(wire::RefundStarted { refund_id: id.to_owned(), amount })
    }

    pub fn refund_succeeded(&self, id: &str) -> Fact {
        Fact::RefundSucceeded(wire::RefundSucceeded { refund_id: id.to_owned(), amount: None })
    }

    pub fn refund_failed(&self, id: &str) -> Fact {
        Fact::RefundFailed(wire::RefundFailed { refund_id: id.to_owned(), amount: None })
    }

    pub fn record(&self, fact: Fact) -> wire::RecordPaymentRequest {
        wire::RecordPaymentRequest {
            psp_id: self.psp.clone(),
            payment_request_id: self.request.clone(),
            acquirer_id: Some(self.acquirer.clone()),
            fact: Some(fact),
        }
    }

    pub fn cancel(&self) -> wire::CancelPaymentRequest {
        wire::CancelPaymentRequest {
            acquirer_id: self.acquirer.clone(),
            psp_id: self.psp.clone(),
            payment_request_id: self.request.clone(),
        }
    }
}

/// One authorization, as the tests name it, and tokens of it.
#[derive(Clone, Debug)]
pub struct Grant {
    pub psp: String,
    pub acquirer: String,
    pub id: String,
}

impl Grant {
    /// An authorization that no other test uses.
    pub fn new() -> Self {
        Self {
            psp: "102208800000001230".to_owned(),
            acquirer: "102218800000001234".to_owned(),
            id: super::unique("grant"),
        }
    }

    /// RecordToken of an access token without end.
    pub fn token(&self, token: &str) -> wire::RecordTokenRequest {
        wire::RecordTokenRequest {
            psp_id: self.psp.clone(),
            acquirer_id: self.acquirer.clone(),
            authorization_id: self.id.clone(),
            token: token.to_owned(),
            kind: wire::TokenKind::Access.into(),
            expires_at: None,
            replaces: None,
            pass_through_info: None,
        }
    }

    pub fn introspect(&self, token: &str) -> wire::IntrospectTokenRequest {
        wire::IntrospectTokenRequest { psp_id: self.psp.clone(), token: token.to_owned() }
    }

    pub fn revoke(&self) -> wire::RevokeAuthorizationRequest {
        wire::RevokeAuthorizationRequest {
            psp_id: self.psp.clone(),
            authorization_id: self.id.clone(),
        }
    }

    pub fn cancel(&self, token: &str) -> wire::CancelTokenRequest {
        wire::CancelTokenRequest {
            psp_id: self.psp.clone(),
            acquirer_id: self.acquirer.clone(),
            access_token: token.to_owned(),
            pass_through_info: None,
        }
    }
}
