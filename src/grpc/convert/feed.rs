//! The same for the feed.

use tonic::Status;

use super::{Checks, amount, result_code, time};
use crate::{
    domain::{
        consumer::{
            Consumer, ConsumerName, Follower, Head, Parked, Place, StreamId,
            acknowledge::Acknowledge,
            forget::Forget,
            redrive::Redrive,
            subscribe::{Start, Subscribe},
        },
        event::{EventCause, EventId, EventKind},
        id::Illegal,
        key::{Partitions, Subject},
        time::Timestamp,
    },
    feed::{Step, Told},
    grpc::wire,
    store::Positioned,
};

/// Longest reason of a parked event, in characters.
const REASON_CHARS_MAX: usize = 256;
/// Entries of a page if the caller does not say.
const PAGE_DEFAULT: u32 = 100;
/// Entries of a page at most.
const PAGE_MAX: u32 = 1_000;

/// How long a page of a listing is.
pub(in crate::grpc) fn page_size(asked: u32) -> u32 {
    if asked == 0 { PAGE_DEFAULT } else { asked.min(PAGE_MAX) }
}

impl Checks {
    fn consumer(&mut self, text: &str) -> Option<ConsumerName> {
        if text.is_empty() {
            return self.fail("consumer", Illegal::Missing.to_string());
        }
        let name = ConsumerName::parse(text);
        name.or_else(|| self.fail("consumer", "not 1 to 64 characters of A-Z a-z 0-9 _ . -"))
    }

    fn partition(&mut self, field: &str, number: u32, partitions: Partitions) -> Option<u16> {
        let known = u16::try_from(number).ok().filter(|number| *number < partitions.count());
        let last = partitions.count().saturating_sub(1);
        known.or_else(|| self.fail(field, format!("not in 0 to {last}")))
    }

    fn places(
        &mut self,
        field: &str,
        places: &[wire::PartitionPosition],
        partitions: Partitions,
    ) -> Option<Vec<Place>> {
        let place = |place: &wire::PartitionPosition| {
            let partition = self.partition(field, place.partition, partitions)?;
            Some(Place { partition, position: place.position })
        };
        places.iter().map(place).collect()
    }

    #[expect(clippy::option_option, reason = "failed, absent and present are three things")]
    fn stream(&mut self, text: Option<&String>) -> Option<Option<StreamId>> {
        let Some(text) = text else { return Some(None) };
        let id = sixteen(text).map(|id| Some(StreamId(id)));
        id.or_else(|| self.fail("subscription_id", "not the id of a stream"))
    }

    fn event(&mut self, field: &str, text: &str) -> Option<EventId> {
        sixteen(text).map(EventId).or_else(|| self.fail(field, "not 32 hex digits"))
    }

    fn epoch(&mut self, epoch: u64) -> Option<u64> {
        if epoch == 0 {
            return self.fail("epoch", Illegal::Missing.to_string());
        }
        Some(epoch)
    }

    fn reason(&mut self, text: &str) -> Option<Box<str>> {
        if text.is_empty() {
            return self.fail("reason", Illegal::Missing.to_string());
        }
        if text.chars().count() > REASON_CHARS_MAX {
            return self.fail("reason", Illegal::TooLong(REASON_CHARS_MAX).to_string());
        }
        // it is shown on terminals
        if text.chars().any(char::is_control) {
            return self.fail("reason", Illegal::ControlCharacter.to_string());
        }
        Some(text.into())
    }
}

/// 32 lower-case hex digits.
fn sixteen(text: &str) -> Option<[u8; 16]> {
    let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if text.len() != 32 || !text.bytes().all(digit) {
        return None;
    }
    u128::from_str_radix(text, 16).ok().map(u128::to_be_bytes)
}

fn hex(bytes: [u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(bytes))
}

pub(in crate::grpc) fn subscribe(
    request: &wire::SubscribeRequest,
    identity: Option<Box<str>>,
    all: Partitions,
) -> Result<(ConsumerName, Subscribe), Status> {
    let mut checks = Checks::default();
    let consumer = checks.consumer(&request.consumer);
    let mut partitions: Vec<u16> = request
        .partitions
        .iter()
        .filter_map(|number| checks.partition("partitions", *number, all))
        .collect();
    partitions.sort_unstable();
    partitions.dedup();
    let from = checks.places("from", &request.from, all);
    let last_seen = checks.places("last_seen", &request.last_seen, all);
    if !request.last_seen.is_empty() && request.epoch.is_none() {
        checks.fail::<()>(
            "epoch",
            "must be set with last_seen: positions mean something in an epoch",
        );
    }
    let start = match request.start() {
        wire::SubscribeStart::Unspecified | wire::SubscribeStart::Acknowledged => {
            Start::Acknowledged
        }
        wire::SubscribeStart::Earliest => Start::Earliest,
        wire::SubscribeStart::End => Start::End,
    };
    let stream = StreamId::default();
    let command = || {
        let command = Subscribe {
            identity,
            stream,
            partitions,
            start,
            from: from?,
            epoch: request.epoch,
            last_seen: last_seen?,
        };
        Some((consumer?, command))
    };
    let command = command();
    checks.end(command)
}

pub(in crate::grpc) fn acknowledge(
    request: &wire::AcknowledgeRequest,
    identity: Option<Box<str>>,
    all: Partitions,
) -> Result<(ConsumerName, Acknowledge), Status> {
    let mut checks = Checks::default();
    let consumer = checks.consumer(&request.consumer);
    let positions = checks.places("positions", &request.positions, all);
    let stream = checks.stream(request.subscription_id.as_ref());
    let epoch = checks.epoch(request.epoch);
    let events: Option<Vec<EventId>> =
        request.event_ids.iter().map(|id| checks.event("event_ids", id)).collect();
    let command = || {
        let follower = Follower { identity, stream: stream? };
        let (epoch, positions, events) = (epoch?, positions?, events?);
        Some((consumer?, Acknowledge { follower, epoch, positions, events }))
    };
    let command = command();
    checks.end(command)
}

/// What Park asks for.
pub(in crate::grpc) struct Park {
    pub(in crate::grpc) consumer: ConsumerName,
    pub(in crate::grpc) follower: Follower,
    pub(in crate::grpc) epoch: u64,
    pub(in crate::grpc) place: Place,
    pub(in crate::grpc) event: EventId,
    pub(in crate::grpc) reason: Box<str>,
}

pub(in crate::grpc) fn park(
    request: &wire::ParkRequest,
    identity: Option<Box<str>>,
    all: Partitions,
) -> Result<Park, Status> {
    let mut checks = Checks::default();
    let consumer = checks.consumer(&request.consumer);
    let event = checks.event("event_id", &request.event_id);
    let reason = checks.reason(&request.reason);
    let partition = checks.partition("partition", request.partition, all);
    let position = match request.position {
        0 => checks.fail("position", Illegal::Missing.to_string()),
        position => Some(position),
    };
    let epoch = checks.epoch(request.epoch);
    let stream = checks.stream(request.subscription_id.as_ref());
    let command = || {
        Some(Park {
            consumer: consumer?,
            follower: Follower { identity, stream: stream? },
            epoch: epoch?,
            place: Place { partition: partition?, position: position? },
            event: event?,
            reason: reason?,
        })
    };
    let command = command();
    checks.end(command)
}

pub(in crate::grpc) fn redrive(
    request: &wire::RedriveRequest,
) -> Result<(ConsumerName, Redrive), Status> {
    let mut checks = Checks::default();
    let consumer = checks.consumer(&request.consumer);
    let events: Option<Vec<EventId>> =
        request.event_ids.iter().map(|id| checks.event("event_ids", id)).collect();
    let command = match (request.event_ids.is_empty(), request.all) {
        (true, true) => Some(Redrive::All),
        (false, false) => events.map(Redrive::Events),
        (true, false) | (false, true) => {
            checks.fail("event_ids", "exactly one of event_ids and all must be set")
        }
    };
    checks.end(consumer.zip(command))
}

pub(in crate::grpc) fn forget(
    request: &wire::DeleteConsumerRequest,
    identity: Option<Box<str>>,
) -> Result<(ConsumerName, Forget), Status> {
    let mut checks = Checks::default();
    let consumer = checks.consumer(&request.consumer);
    let follower = Follower { identity, stream: None };
    let identity = request.identity.as_deref().map(Box::from);
    checks.end(consumer.map(|name| (name, Forget { follower, identity, required: false })))
}

/// The name of a request that has nothing else.
pub(in crate::grpc) fn consumer(name: &str) -> Result<ConsumerName, Status> {
    let mut checks = Checks::default();
    let consumer = checks.consumer(name);
    checks.end(consumer)
}

pub(in crate::grpc) fn list_parked(
    request: &wire::ListParkedRequest,
) -> Result<(ConsumerName, Option<Place>, usize), Status> {
    let mut checks = Checks::default();
    let consumer = checks.consumer(&request.consumer);
    let behind = match request.page_token.as_str() {
        "" => Some(None),
        token => token
            .split_once(':')
            .and_then(|(partition, position)| {
                let (partition, position) = (partition.parse().ok()?, position.parse().ok()?);
                Some(Some(Place { partition, position }))
            })
            .or_else(|| checks.fail("page_token", "not one of a page before")),
    };
    let size = usize::try_from(page_size(request.page_size)).unwrap_or(usize::MAX);
    checks.end(consumer.zip(behind).map(|(consumer, behind)| (consumer, behind, size)))
}

pub(in crate::grpc) fn step(step: Step) -> wire::SubscribeResponse {
    match step {
        Step::Begun { stream, epoch } => wire::SubscribeResponse {
            subscription_id: hex(stream.0),
            epoch,
            ..wire::SubscribeResponse::default()
        },
        Step::Event { event, redriven, epoch } => wire::SubscribeResponse {
            event: Some(cancellation_event(&event)),
            epoch,
            redriven,
            ..wire::SubscribeResponse::default()
        },
        Step::KeepAlive { epoch } => {
            wire::SubscribeResponse { epoch, ..wire::SubscribeResponse::default() }
        }
    }
}

fn cancellation_event(positioned: &Positioned) -> wire::CancellationEvent {
    let event = &positioned.event;
    let (kind, due) = match event.kind {
        EventKind::PaymentCancelled => (wire::EventKind::PaymentCancelled, None),
        EventKind::FundReturnDue(due) => (wire::EventKind::FundReturnDue, Some(due)),
        EventKind::AuthorizationRevoked => (wire::EventKind::AuthorizationRevoked, None),
    };
    let cause = match event.cause {
        EventCause::CancelPayment => wire::EventCause::CancelPayment,
        EventCause::LateSuccess => wire::EventCause::LateSuccess,
        EventCause::CancelToken => wire::EventCause::CancelToken,
        EventCause::RevokeAuthorization => wire::EventCause::RevokeAuthorization,
    };
    let (payment_request_id, authorization_id) = ids(&event.subject);
    let info = event.pass_through_info.as_ref();
    wire::CancellationEvent {
        event_id: positioned.id.to_string(),
        partition: u32::from(positioned.partition),
        position: positioned.position,
        kind: kind.into(),
        psp_id: event.subject.psp().as_str().to_owned(),
        acquirer_id: event.acquirer.as_ref().map(|id| id.as_str().to_owned()),
        payment_request_id,
        authorization_id,
        amount: due.map(amount),
        cause: cause.into(),
        decided_at: Some(time(event.at)),
        result_code: event.result.map_or(wire::ResultCode::Unspecified, result_code).into(),
        pass_through_info: info.map(|info| info.as_str().to_owned()),
        trace_id: event.trace.map(|trace| trace.to_string()).unwrap_or_default(),
    }
}

/// The payment's id, or the authorization's.
fn ids(subject: &Subject) -> (Option<String>, Option<String>) {
    let id = subject.id().to_owned();
    match subject {
        Subject::Payment(_) => (Some(id), None),
        Subject::Authorization(_) => (None, Some(id)),
    }
}

pub(in crate::grpc) fn places(places: Vec<Place>) -> Vec<wire::PartitionPosition> {
    let place = |Place { partition, position }| wire::PartitionPosition {
        partition: u32::from(partition),
        position,
    };
    places.into_iter().map(place).collect()
}

pub(in crate::grpc) fn lag(told: &Told, oldest: Option<Timestamp>) -> wire::GetLagResponse {
    let partition = |(partition, head): (u16, &Head)| wire::PartitionLag {
        partition: u32::from(partition),
        head: head.position,
        acknowledged: told.consumer.acknowledged(partition, *head),
        purged: head.purged,
    };
    wire::GetLagResponse {
        events: told.consumer.lag(&told.heads),
        oldest_decided_at: oldest.map(time),
        partitions: (0u16..).zip(&told.heads).map(partition).collect(),
        parked_events: count(told.consumer.parked.len()),
        epoch: told.epoch,
    }
}

pub(in crate::grpc) fn count(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

pub(in crate::grpc) fn consumer_told(
    name: &ConsumerName,
    consumer: &Consumer,
    heads: &[Head],
    required: bool,
) -> wire::Consumer {
    wire::Consumer {
        name: name.as_str().to_owned(),
        required,
        lag_events: consumer.lag(heads),
        parked_events: count(consumer.parked.len()),
        identity: consumer.owner.as_deref().map(str::to_owned),
    }
}

pub(in crate::grpc) fn parked_told(
    parked: &[Parked],
    behind: Option<Place>,
    size: usize,
) -> wire::ListParkedResponse {
    let place = |it: &Parked| Place { partition: it.partition, position: it.position };
    let mut rest = parked.iter().filter(|it| behind.is_none_or(|behind| place(it) > behind));
    let page: Vec<&Parked> = rest.by_ref().take(size).collect();
    let last = page.last().filter(|_| rest.next().is_some());
    wire::ListParkedResponse {
        next_page_token: last
            .map(|it| format!("{}:{}", it.partition, it.position))
            .unwrap_or_default(),
        events: page.into_iter().map(parked_event).collect(),
    }
}

fn parked_event(parked: &Parked) -> wire::ParkedEvent {
    let (payment_request_id, authorization_id) = ids(&parked.subject);
    wire::ParkedEvent {
        event_id: parked.event.to_string(),
        partition: u32::from(parked.partition),
        position: parked.position,
        psp_id: parked.subject.psp().as_str().to_owned(),
        payment_request_id,
        authorization_id,
        reason: parked.reason.as_deref().map(str::to_owned),
        parked_at: Some(time(parked.at)),
        redriven: parked.redrive,
    }
}
