//! The way of the wallet's own side into a running service, for tools that play a wallet: records payments and tokens, and
//! asks what became of them.

use std::time::Duration;

use prost_types::Timestamp;
use tonic::{Code, Request, Status, transport::Channel};

pub use super::wire::{Funds, RecordPaymentAnswer, RecordTokenAnswer};
use super::{
    importer::{self, Tls},
    wire::{
        self, payment_service_client::PaymentServiceClient, record_payment_request::Fact as Told,
        token_service_client::TokenServiceClient,
    },
};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address or the certificates make no sense.
    #[error(transparent)]
    Address(importer::Error),
    /// The service refuses.
    #[error("the wallet's gRPC API answered {:?}: {}", .0.code(), .0.message())]
    Status(Box<Status>),
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        Self::Status(Box::new(status))
    }
}

/// A payment as the wallet knows it.
#[derive(Clone, Debug)]
pub struct Payment {
    /// The wallet.
    pub psp: String,
    /// The acquirer.
    pub acquirer: String,
    /// Alipay+'s paymentRequestId.
    pub id: String,
    /// Minor units.
    pub amount: i64,
    /// Of ISO 4217.
    pub currency: &'static str,
    /// When it began, in milliseconds since 1970.
    pub initiated_at_ms: i64,
}

/// What became of a payment.
#[derive(Clone, Copy, Debug)]
pub enum Fact {
    /// It is about to be debited.
    Initiated,
    /// It was debited.
    Succeeded,
    /// It was not.
    Failed,
    /// A refund by this id, of so much, is about to be made.
    RefundStarted(&'static str, i64),
    /// It was made.
    RefundSucceeded(&'static str),
    /// It was not.
    RefundFailed(&'static str),
}

/// All that a tool asks of a payment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Story {
    /// Where its money is.
    pub funds: Funds,
    /// What is due back or was returned, in minor units.
    pub due: Option<i64>,
    /// What inquiryPayment must answer, if the cancel says so.
    pub inquiry: Option<String>,
}

/// A token as the wallet knows it.
#[derive(Clone, Debug, Default)]
pub struct Token {
    /// The wallet.
    pub psp: String,
    /// The acquirer.
    pub acquirer: String,
    /// The consent.
    pub authorization: String,
    /// The token itself.
    pub token: String,
    /// Whether it is a refresh token.
    pub refresh: bool,
    /// The token that it takes the place of.
    pub replaces: Option<String>,
    /// What cancelToken's answer carries back.
    pub pass_through_info: Option<String>,
    /// When it expires, in milliseconds since 1970.
    pub expires_at_ms: Option<i64>,
}

/// A client of PaymentService and TokenService.
#[derive(Clone)]
pub struct Recorder {
    payments: PaymentServiceClient<Channel>,
    tokens: TokenServiceClient<Channel>,
}

/// For one call.
const TIMEOUT: Duration = Duration::from_secs(10);

fn asking<M>(message: M) -> Request<M> {
    let mut request = Request::new(message);
    request.set_timeout(TIMEOUT);
    request
}

fn moment(unix_ms: i64) -> Timestamp {
    let nanos = i32::try_from(unix_ms.rem_euclid(1_000) * 1_000_000).unwrap_or(0);
    Timestamp { seconds: unix_ms.div_euclid(1_000), nanos }
}

fn told(payment: &Payment, fact: Fact) -> Told {
    let amount = |value| Some(wire::Amount { value, currency: payment.currency.to_owned() });
    let initiated_at = Some(moment(payment.initiated_at_ms));
    match fact {
        Fact::Initiated => {
            Told::Initiated(wire::PaymentInitiated { amount: amount(payment.amount), initiated_at })
        }
        Fact::Succeeded => {
            Told::Succeeded(wire::PaymentSucceeded { amount: amount(payment.amount), initiated_at })
        }
        Fact::Failed => Told::Failed(wire::PaymentFailed { amount: None }),
        Fact::RefundStarted(id, value) => Told::RefundStarted(wire::RefundStarted {
            refund_id: id.to_owned(),
            amount: amount(value),
        }),
        Fact::RefundSucceeded(id) => {
            Told::RefundSucceeded(wire::RefundSucceeded { refund_id: id.to_owned(), amount: None })
        }
        Fact::RefundFailed(id) => {
            Told::RefundFailed(wire::RefundFailed { refund_id: id.to_owned(), amount: None })
        }
    }
}

impl Recorder {
    /// A client of the service at an address, as `http://core:50051`. Connects with the first call.
    pub fn new(url: &str, tls: Option<Tls>) -> Result<Self, Error> {
        let channel = importer::channel(url, tls).map_err(Error::Address)?;
        Ok(Self {
            payments: PaymentServiceClient::new(channel.clone()),
            tokens: TokenServiceClient::new(channel),
        })
    }

    /// Tells a fact about a payment.
    pub async fn record(
        &self,
        payment: &Payment,
        fact: Fact,
    ) -> Result<RecordPaymentAnswer, Error> {
        let request = asking(wire::RecordPaymentRequest {
            psp_id: payment.psp.clone(),
            payment_request_id: payment.id.clone(),
            acquirer_id: Some(payment.acquirer.clone()),
            fact: Some(told(payment, fact)),
        });
        Ok(self.payments.clone().record_payment(request).await?.into_inner().answer())
    }

    /// What is known of a payment.
    pub async fn story(&self, payment: &Payment) -> Result<Option<Story>, Error> {
        let request = asking(wire::GetPaymentRequest {
            psp_id: payment.psp.clone(),
            payment_request_id: payment.id.clone(),
        });
        let told = match self.payments.clone().get_payment(request).await {
            Ok(told) => told.into_inner(),
            Err(status) if status.code() == Code::NotFound => return Ok(None),
            Err(status) => return Err(status.into()),
        };
        let known = told.payment.unwrap_or_default();
        let due = known.fund_return.as_ref().and_then(|due| due.amount.as_ref());
        Ok(Some(Story {
            funds: known.funds(),
            due: due.map(|amount| amount.value),
            inquiry: told.inquiry.map(|inquiry| inquiry.result_code),
        }))
    }

    /// Records a token.
    pub async fn record_token(&self, token: &Token) -> Result<RecordTokenAnswer, Error> {
        let kind = if token.refresh { wire::TokenKind::Refresh } else { wire::TokenKind::Access };
        let request = asking(wire::RecordTokenRequest {
            psp_id: token.psp.clone(),
            acquirer_id: token.acquirer.clone(),
            authorization_id: token.authorization.clone(),
            token: token.token.clone(),
            kind: kind.into(),
            expires_at: token.expires_at_ms.map(moment),
            replaces: token.replaces.clone(),
            pass_through_info: token.pass_through_info.clone(),
        });
        Ok(self.tokens.clone().record_token(request).await?.into_inner().answer())
    }

    /// Whether a token is good now.
    pub async fn is_active(&self, token: &Token) -> Result<bool, Error> {
        let request = asking(wire::IntrospectTokenRequest {
            psp_id: token.psp.clone(),
            token: token.token.clone(),
        });
        Ok(self.tokens.clone().introspect_token(request).await?.into_inner().active)
    }

    /// The wallet revokes an authorization by itself.
    pub async fn revoke(&self, token: &Token) -> Result<(), Error> {
        let request = asking(wire::RevokeAuthorizationRequest {
            psp_id: token.psp.clone(),
            authorization_id: token.authorization.clone(),
        });
        self.tokens.clone().revoke_authorization(request).await?;
        Ok(())
    }
}
