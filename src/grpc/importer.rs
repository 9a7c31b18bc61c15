//! The way of the wallet's history into a running service, for the tool that reads it from a file.

use std::time::Duration;

use tonic::{
    Code, Request, Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use super::{
    IMPORT_BYTES_MAX,
    convert::import,
    wire::{self, import_service_client::ImportServiceClient},
};
use crate::{domain::import_payment::ImportPayment, engine::ImportToken};

/// Why records did not get there. They may be sent again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address or the certificates make no sense.
    #[error("{0} cannot be called")]
    Address(String, #[source] tonic::transport::Error),
    /// The service does not take them.
    #[error("the service answered {:?}: {}", .0.code(), .0.message())]
    Status(Box<Status>),
    /// It answered something that this program does not know.
    #[error("the service answered {got} results to {sent} records; is it of another version?")]
    Results {
        /// Records sent.
        sent: usize,
        /// Results that came back.
        got: usize,
    },
}

/// The files of a connection by TLS, PEM.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// The authorities of the service's certificate.
    pub ca: Vec<u8>,
    /// Our own chain and its key.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

/// What became of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is kept as told.
    Taken,
    /// It was there before.
    AlreadyThere,
    /// What is known is later, and stays.
    Kept,
    /// People have to look; why.
    Rejected(String),
}

/// A client of the ImportService.
#[derive(Clone)]
pub struct Importer {
    client: ImportServiceClient<Channel>,
}

/// For one call; a commit of a thousand records takes a fraction of it.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A way to the service at an address. Connects with the first call.
pub(super) fn channel(url: &str, tls: Option<Tls>) -> Result<Channel, Error> {
    let failed = |source| Error::Address(url.to_owned(), source);
    let mut endpoint = Endpoint::from_shared(url.to_owned()).map_err(failed)?;
    if let Some(Tls { ca, identity }) = tls {
        let mut config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca));
        if let Some((chain, key)) = identity {
            config = config.identity(Identity::from_pem(chain, key));
        }
        endpoint = endpoint.tls_config(config).map_err(failed)?;
    }
    Ok(endpoint.connect_timeout(Duration::from_secs(5)).connect_lazy())
}

impl Importer {
    /// A client of the service at an address, as `http://core:50051`. Connects with the first call.
    pub fn new(url: &str, tls: Option<Tls>) -> Result<Self, Error> {
        let channel = channel(url, tls)?;
        let client = ImportServiceClient::new(channel).max_encoding_message_size(IMPORT_BYTES_MAX);
        Ok(Self { client })
    }

    /// Payments, at most a thousand.
    pub async fn payments(&self, payments: &[ImportPayment]) -> Result<Vec<Answer>, Error> {
        let payments: Vec<_> = payments.iter().map(import::payment_asked).collect();
        let sent = payments.len();
        let request = asking(wire::ImportPaymentsRequest { payments });
        let answered = self.client.clone().import_payments(request).await;
        answers(sent, answered.map_err(status)?.into_inner().results)
    }

    /// Tokens, at most a thousand.
    pub async fn tokens(&self, tokens: &[ImportToken]) -> Result<Vec<Answer>, Error> {
        let tokens: Vec<_> = tokens.iter().map(import::token_asked).collect();
        let sent = tokens.len();
        let request = asking(wire::ImportTokensRequest { tokens });
        let answered = self.client.clone().import_tokens(request).await;
        answers(sent, answered.map_err(status)?.into_inner().results)
    }
}

fn asking<M>(message: M) -> Request<M> {
    let mut request = Request::new(message);
    request.set_timeout(TIMEOUT);
    request
}

fn status(status: Status) -> Error {
    Error::Status(Box::new(status))
}

impl Error {
    /// Whether it may pass by itself: a repeat changes nothing of what was taken.
    pub fn may_pass(&self) -> bool {
        let Self::Status(status) = self else { return false };
        let passing = [
            Code::Unavailable,
            Code::DeadlineExceeded,
            Code::Aborted,
            Code::ResourceExhausted,
            Code::Cancelled,
        ];
        passing.contains(&status.code())
    }
}

fn answers(sent: usize, results: Vec<wire::ImportResult>) -> Result<Vec<Answer>, Error> {
    let got = results.len();
    let answer = |result: wire::ImportResult| match result.answer() {
        wire::ImportAnswer::Unspecified => None,
        wire::ImportAnswer::Taken => Some(Answer::Taken),
        wire::ImportAnswer::AlreadyThere => Some(Answer::AlreadyThere),
        wire::ImportAnswer::Kept => Some(Answer::Kept),
        wire::ImportAnswer::Rejected => Some(Answer::Rejected(result.reason)),
    };
    let answers: Option<Vec<_>> = results.into_iter().map(answer).collect();
    answers.filter(|answers| answers.len() == sent).ok_or(Error::Results { sent, got })
}
