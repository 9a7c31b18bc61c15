//! The way of the feed to a tool that shows it to people, as any caller of gRPC has it.

use std::time::Duration;

use tonic::{Code, Request, Status, Streaming, transport::Channel};
use tonic_types::StatusExt as _;

pub use super::wire::{
    CancellationEvent, Consumer, EventKind, GetLagResponse, ListConsumersResponse, ParkedEvent,
    PartitionLag, PartitionPosition, ResultCode, SubscribeRequest, SubscribeResponse,
    SubscribeStart,
};
use super::{
    importer::{self, Tls},
    wire::{self, feed_service_client::FeedServiceClient},
};

/// Why there is no answer, or how a stream ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address or the certificates make no sense.
    #[error(transparent)]
    Address(importer::Error),
    /// The service refuses.
    #[error("{}{}", .0.message(), reason(.0))]
    Status(Box<Status>),
}

fn reason(status: &Status) -> String {
    let reason = status.get_details_error_info().map(|info| info.reason);
    format!(" ({})", reason.unwrap_or_else(|| format!("{:?}", status.code())))
}

impl Error {
    /// Whether it may pass by itself.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Address(_) => false,
            Self::Status(status) => matches!(status.code(), Code::Unavailable),
        }
    }

    /// Whether nobody was there to answer.
    pub fn is_unreachable(&self) -> bool {
        let Self::Status(status) = self else { return false };
        let mut source = std::error::Error::source(&**status);
        while let Some(error) = source {
            if error.is::<tonic::transport::Error>() {
                return true;
            }
            source = error.source();
        }
        false
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        Self::Status(Box::new(status))
    }
}

/// A client of the FeedService.
#[derive(Clone)]
pub struct Follower {
    client: FeedServiceClient<Channel>,
}

/// What a stream says.
pub struct Stream(Streaming<SubscribeResponse>);

impl Stream {
    /// What it says next. A stream that ends without a word was cut.
    pub async fn next(&mut self) -> Result<SubscribeResponse, Error> {
        let said = self.0.message().await?;
        said.ok_or_else(|| Status::unavailable("the stream was cut").into())
    }
}

/// For one call, streams aside.
const TIMEOUT: Duration = Duration::from_secs(10);

fn asking<M>(message: M) -> Request<M> {
    let mut request = Request::new(message);
    request.set_timeout(TIMEOUT);
    request
}

impl Follower {
    /// A client of the service at an address, as `http://core:50051`. Connects with the first call.
    pub fn new(url: &str, tls: Option<Tls>) -> Result<Self, Error> {
        let channel = importer::channel(url, tls).map_err(Error::Address)?;
        Ok(Self { client: FeedServiceClient::new(channel) })
    }

    /// Begins a stream.
    pub async fn subscribe(&self, request: SubscribeRequest) -> Result<Stream, Error> {
        Ok(Stream(self.client.clone().subscribe(request).await?.into_inner()))
    }

    /// Says that events are handled: those up to these positions, and these that came again.
    pub async fn acknowledge(
        &self,
        consumer: String,
        (subscription, epoch): (String, u64),
        positions: Vec<PartitionPosition>,
        event_ids: Vec<String>,
    ) -> Result<(), Error> {
        let subscription_id = Some(subscription);
        let request =
            wire::AcknowledgeRequest { consumer, positions, subscription_id, epoch, event_ids };
        self.client.clone().acknowledge(asking(request)).await?;
        Ok(())
    }

    /// Sets an event aside, with a reason.
    pub async fn park(
        &self,
        consumer: &str,
        (subscription, epoch): (&str, u64),
        event: &CancellationEvent,
        reason: &str,
    ) -> Result<(), Error> {
        let request = wire::ParkRequest {
            consumer: consumer.to_owned(),
            event_id: event.event_id.clone(),
            reason: reason.to_owned(),
            partition: event.partition,
            position: event.position,
            epoch,
            subscription_id: Some(subscription.to_owned()),
        };
        self.client.clone().park(asking(request)).await?;
        Ok(())
    }

    /// How far a consumer is behind.
    pub async fn lag(&self, consumer: String) -> Result<GetLagResponse, Error> {
        let request = asking(wire::GetLagRequest { consumer });
        Ok(self.client.clone().get_lag(request).await?.into_inner())
    }

    /// Every consumer.
    pub async fn consumers(&self) -> Result<ListConsumersResponse, Error> {
        let request = asking(wire::ListConsumersRequest {});
        Ok(self.client.clone().list_consumers(request).await?.into_inner())
    }

    /// Everything that a consumer has parked.
    pub async fn parked(&self, consumer: &str) -> Result<Vec<ParkedEvent>, Error> {
        let (mut all, mut page_token) = (Vec::new(), String::new());
        loop {
            let consumer = consumer.to_owned();
            let request = wire::ListParkedRequest { consumer, page_size: 1_000, page_token };
            let page = self.client.clone().list_parked(asking(request)).await?.into_inner();
            all.extend(page.events);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(all);
            }
        }
    }

    /// Has parked events delivered again, all of them if none is named; answers how many.
    pub async fn redrive(&self, consumer: String, event_ids: Vec<String>) -> Result<u64, Error> {
        let all = event_ids.is_empty();
        let request = asking(wire::RedriveRequest { consumer, event_ids, all });
        Ok(self.client.clone().redrive(request).await?.into_inner().events)
    }

    /// Forgets a consumer.
    pub async fn forget(&self, consumer: String, identity: Option<String>) -> Result<(), Error> {
        let request = asking(wire::DeleteConsumerRequest { consumer, identity });
        self.client.clone().delete_consumer(request).await?;
        Ok(())
    }
}
