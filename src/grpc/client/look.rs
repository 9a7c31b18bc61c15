//! What people look at: one payment, one authorization, what is outstanding, who follows the feed. Over the generated
//! clients, in one process, and reading only.

use std::{convert::Infallible, time::Duration};

use tonic::{Code, Request, Status, body::Body, codegen::http};
use tower::{ServiceExt, util::BoxCloneSyncService};

use super::super::{
    server::{Server, Unseen},
    wire::{
        self, feed_service_client::FeedServiceClient, payment_service_client::PaymentServiceClient,
        token_service_client::TokenServiceClient,
    },
};
use crate::feed::Feed;

/// How long anybody who looks waits.
const PATIENCE: Duration = Duration::from_secs(4);
/// Most entries of a list at once.
const ENTRIES_MAX: u32 = 200;

/// Why there is nothing to look at, for people.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Blind(String);

/// Why a call could not even be answered with a status. In one process that cannot happen.
#[derive(Debug, thiserror::Error)]
#[error("the core cannot be reached")]
pub struct Unreachable;

type Transport = BoxCloneSyncService<http::Request<Body>, http::Response<Body>, Unreachable>;

/// A client that reads.
#[derive(Clone)]
pub struct Look {
    payments: PaymentServiceClient<Transport>,
    tokens: TokenServiceClient<Transport>,
    feed: FeedServiceClient<Transport>,
}

impl Look {
    /// A look into the core of this process.
    pub fn in_process(server: &Server, feed: Feed) -> Self {
        let [payments, tokens, feed] = server.services_to_look_at(feed).map(transport);
        Self {
            payments: PaymentServiceClient::new(payments),
            tokens: TokenServiceClient::new(tokens),
            feed: FeedServiceClient::new(feed),
        }
    }

    /// The whole story of a payment, if anything is known of it.
    pub async fn payment(
        &self,
        psp_id: &str,
        payment_request_id: &str,
    ) -> Result<Option<wire::GetPaymentResponse>, Blind> {
        let request = wire::GetPaymentRequest {
            psp_id: psp_id.to_owned(),
            payment_request_id: payment_request_id.to_owned(),
        };
        known(self.payments.clone().get_payment(asking(request)).await)
    }

    /// The whole story of an authorization, if anything is known of it.
    pub async fn authorization(
        &self,
        psp_id: &str,
        authorization_id: &str,
    ) -> Result<Option<wire::GetAuthorizationResponse>, Blind> {
        let request = wire::GetAuthorizationRequest {
            psp_id: psp_id.to_owned(),
            authorization_id: authorization_id.to_owned(),
        };
        known(self.tokens.clone().get_authorization(asking(request)).await)
    }

    /// What is outstanding, oldest first.
    pub async fn outstanding(
        &self,
        kind: wire::OutstandingKind,
    ) -> Result<wire::ListOutstandingPaymentsResponse, Blind> {
        let request =
            wire::ListOutstandingPaymentsRequest { kind: kind.into(), page_size: ENTRIES_MAX };
        told(self.payments.clone().list_outstanding_payments(asking(request)).await)
    }

    /// Everybody who follows the feed.
    pub async fn consumers(&self) -> Result<wire::ListConsumersResponse, Blind> {
        let request = wire::ListConsumersRequest {};
        told(self.feed.clone().list_consumers(asking(request)).await)
    }

    /// How far one of them is behind.
    pub async fn lag(&self, consumer: &str) -> Result<wire::GetLagResponse, Blind> {
        let request = wire::GetLagRequest { consumer: consumer.to_owned() };
        told(self.feed.clone().get_lag(asking(request)).await)
    }

    /// What one of them has set aside.
    pub async fn parked(&self, consumer: &str) -> Result<wire::ListParkedResponse, Blind> {
        let request = wire::ListParkedRequest {
            consumer: consumer.to_owned(),
            page_size: ENTRIES_MAX,
            page_token: String::new(),
        };
        told(self.feed.clone().list_parked(asking(request)).await)
    }
}

/// A service of this process without a socket before it.
fn transport(service: Unseen) -> Transport {
    BoxCloneSyncService::new(service.map_err(|never: Infallible| match never {}))
}

fn asking<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(PATIENCE);
    request
}

fn told<T>(answered: Result<tonic::Response<T>, Status>) -> Result<T, Blind> {
    answered.map(tonic::Response::into_inner).map_err(|status| blind(&status))
}

/// What is not legal was never recorded either.
fn known<T>(answered: Result<tonic::Response<T>, Status>) -> Result<Option<T>, Blind> {
    match answered {
        Ok(response) => Ok(Some(response.into_inner())),
        Err(status) if matches!(status.code(), Code::NotFound | Code::InvalidArgument) => Ok(None),
        Err(status) => Err(blind(&status)),
    }
}

fn blind(status: &Status) -> Blind {
    let message = status.message();
    Blind(if message.is_empty() { status.code().to_string() } else { message.to_owned() })
}
