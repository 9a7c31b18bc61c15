//! FeedService over the room of the feed: check, ask, answer; and streams.

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use tonic::{Extensions, Request, Response, Status, codegen::BoxStream, metadata::MetadataMap};

use super::super::{
    convert::feed as convert,
    status,
    wire::{self, feed_service_server::FeedService},
};
use crate::{
    engine,
    feed::{self, Error, Feed},
    layer::deadline,
    listen::{Cut, Identity, Patient},
};

/// What the service holds.
#[derive(Clone)]
pub(super) struct Server {
    feed: Feed,
    /// How long a call takes at most if its caller says nothing. A stream takes as long as it likes.
    deadline: Duration,
}

impl Server {
    pub(super) fn new(feed: Feed, deadline: Duration) -> Self {
        Self { feed, deadline }
    }

    fn until(&self, metadata: &MetadataMap) -> Instant {
        let wait = metadata.get("grpc-timeout").and_then(|value| value.to_str().ok());
        engine::now() + wait.and_then(deadline::parse).unwrap_or(self.deadline)
    }
}

/// Who the certificate says that the caller is.
fn identity(extensions: &Extensions) -> Option<Box<str>> {
    let Identity(name) = extensions.get::<Identity>()?;
    Some(Box::from(&**name))
}

/// The log gets the cause, the peer the code's text.
#[expect(clippy::needless_pass_by_value, reason = "stands in map_err")]
fn failed(error: Error) -> Status {
    if let Error::Store(source) = &error {
        tracing::warn!(error = %error, cause = %source, "a call of a consumer's failed");
    }
    status::feed_failed(&error)
}

#[tonic::async_trait]
impl FeedService for Server {
    type SubscribeStream = BoxStream<wire::SubscribeResponse>;

    async fn subscribe(
        &self,
        request: Request<wire::SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let until = self.until(request.metadata());
        let identity = identity(request.extensions());
        let cut = request.extensions().get::<Cut>().cloned();
        let (name, command) =
            convert::subscribe(request.get_ref(), identity, self.feed.partitions())?;
        let cut = move || {
            if let Some(cut) = cut {
                cut.now();
            }
        };
        let begun = self.feed.subscribe(name, command, cut);
        let stream = feed::within(until, begun).await.map_err(failed)?;
        let steps = stream.map(|step| step.map(convert::step).map_err(failed));
        let mut response: Response<Self::SubscribeStream> = Response::new(Box::pin(steps));
        // a consumer takes the next event once it is done with the one before
        response.extensions_mut().insert(Patient);
        Ok(response)
    }

    async fn acknowledge(
        &self,
        request: Request<wire::AcknowledgeRequest>,
    ) -> Result<Response<wire::AcknowledgeResponse>, Status> {
        let until = self.until(request.metadata());
        let identity = identity(request.extensions());
        let (name, command) =
            convert::acknowledge(request.get_ref(), identity, self.feed.partitions())?;
        let acknowledged = self.feed.acknowledge(&name, command);
        let positions = feed::within(until, acknowledged).await.map_err(failed)?;
        let positions = convert::places(positions);
        Ok(Response::new(wire::AcknowledgeResponse { positions }))
    }

    async fn park(
        &self,
        request: Request<wire::ParkRequest>,
    ) -> Result<Response<wire::ParkResponse>, Status> {
        let until = self.until(request.metadata());
        let identity = identity(request.extensions());
        let park = convert::park(request.get_ref(), identity, self.feed.partitions())?;
        let convert::Park { consumer, follower, epoch, place, event, reason } = park;
        let parked = self.feed.park(&consumer, follower, epoch, (place, event), reason);
        let waiting = feed::within(until, parked).await.map_err(failed)?;
        Ok(Response::new(wire::ParkResponse { waiting: convert::places(waiting) }))
    }

    async fn list_parked(
        &self,
        request: Request<wire::ListParkedRequest>,
    ) -> Result<Response<wire::ListParkedResponse>, Status> {
        let until = self.until(request.metadata());
        let (name, behind, size) = convert::list_parked(request.get_ref())?;
        let told = feed::within(until, self.feed.told(&name)).await.map_err(failed)?;
        Ok(Response::new(convert::parked_told(&told.consumer.parked, behind, size)))
    }

    async fn redrive(
        &self,
        request: Request<wire::RedriveRequest>,
    ) -> Result<Response<wire::RedriveResponse>, Status> {
        let until = self.until(request.metadata());
        let (name, command) = convert::redrive(request.get_ref())?;
        let redriven = self.feed.redrive(&name, command);
        let events = feed::within(until, redriven).await.map_err(failed)?;
        Ok(Response::new(wire::RedriveResponse { events: convert::count(events) }))
    }

    async fn get_lag(
        &self,
        request: Request<wire::GetLagRequest>,
    ) -> Result<Response<wire::GetLagResponse>, Status> {
        let until = self.until(request.metadata());
        let name = convert::consumer(&request.get_ref().consumer)?;
        let told = feed::within(until, self.feed.told(&name)).await.map_err(failed)?;
        let oldest = feed::within(until, self.feed.oldest(&told)).await.map_err(failed)?;
        Ok(Response::new(convert::lag(&told, oldest)))
    }

    async fn list_consumers(
        &self,
        request: Request<wire::ListConsumersRequest>,
    ) -> Result<Response<wire::ListConsumersResponse>, Status> {
        let until = self.until(request.metadata());
        let (consumers, heads, epoch) =
            feed::within(until, self.feed.consumers()).await.map_err(failed)?;
        let consumers = consumers
            .iter()
            .map(|(name, consumer)| {
                convert::consumer_told(name, consumer, &heads, self.feed.is_required(name))
            })
            .collect();
        Ok(Response::new(wire::ListConsumersResponse { consumers, epoch }))
    }

    async fn delete_consumer(
        &self,
        request: Request<wire::DeleteConsumerRequest>,
    ) -> Result<Response<wire::DeleteConsumerResponse>, Status> {
        let until = self.until(request.metadata());
        let identity = identity(request.extensions());
        let (name, command) = convert::forget(request.get_ref(), identity)?;
        feed::within(until, self.feed.forget(&name, command)).await.map_err(failed)?;
        Ok(Response::new(wire::DeleteConsumerResponse {}))
    }
}
