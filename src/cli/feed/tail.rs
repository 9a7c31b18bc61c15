//! `feed tail`: events as they come.

use std::{
    collections::BTreeMap,
    io::{self, Write as _},
    time::Duration,
};

use tokio::time;

use super::{
    Service,
    line::{machine, text},
};
use crate::grpc::follower::{
    Error, Follower, PartitionPosition, SubscribeRequest, SubscribeResponse, SubscribeStart,
};

/// Shows events as they come, first those that are there
///
/// It follows the feed as a consumer of the name given, which the service remembers with its place: choose one that nobody
/// else uses, since a second stream of one name ends the first, and forget it afterwards (`feed forget`). Without --ack
/// the place stays where it is, and the next `tail` shows the same events again.
///
/// What parks and waits is not shown. Where the service goes away, tail waits for it and goes on behind the last event.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Everything there is, for machines, then end:
  alipayplus-cancel feed tail --consumer audit --from start --json --once > events.jsonl
From certain positions on:
  alipayplus-cancel feed tail --consumer me --from 3:17,5:0

A JSON line is the CancellationEvent of the proto in its JSON form (64-bit numbers are texts), with the feed's epoch:
  {\"eventId\":\"0f1e…\",\"epoch\":\"1\",\"partition\":3,\"position\":\"17\",\"kind\":\"EVENT_KIND_FUND_RETURN_DUE\",
   \"pspId\":\"…\",\"acquirerId\":\"…\",\"paymentRequestId\":\"…\",\"amount\":{\"value\":\"1999\",\"currency\":\"EUR\"},
   \"cause\":\"EVENT_CAUSE_CANCEL_PAYMENT\",\"decidedAt\":\"…Z\",\"resultCode\":\"RESULT_CODE_SUCCESS\",\"traceId\":\"…\"}")]
pub(super) struct Tail {
    /// The consumer to follow as
    #[arg(long, value_name = "NAME")]
    consumer: String,
    /// Where to begin: start (the earliest there is), end (only what comes), or behind PARTITION:POSITION,…; without it,
    /// behind what the consumer acknowledged
    #[arg(long, value_name = "PLACE", value_parser = From::parse)]
    from: Option<From>,
    /// The partitions to follow; without it, all
    #[arg(long, value_name = "NUMBER,…", value_delimiter = ',')]
    partitions: Vec<u32>,
    /// Print JSON, one event a line
    #[arg(long)]
    json: bool,
    /// Acknowledge what was printed, so that the next tail goes on behind it
    #[arg(long)]
    ack: bool,
    /// End once nothing came for a second
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    pub(super) service: Service,
}

#[derive(Clone, Debug)]
enum From {
    Start,
    End,
    Behind(Vec<(u32, u64)>),
}

impl From {
    fn parse(text: &str) -> Result<Self, String> {
        let place = |text: &str| {
            let (partition, position) = text.split_once(':')?;
            Some((partition.trim().parse().ok()?, position.trim().parse().ok()?))
        };
        match text {
            "start" => Ok(Self::Start),
            "end" => Ok(Self::End),
            places => {
                places.split(',').map(place).collect::<Option<_>>().map(Self::Behind).ok_or_else(
                    || "expected start, end or PARTITION:POSITION,… as 3:17,5:0".to_owned(),
                )
            }
        }
    }
}

/// How long --once waits for another event.
const SILENCE: Duration = Duration::from_secs(1);
/// How long printed events wait to be acknowledged together.
const ACKNOWLEDGE_AFTER: Duration = Duration::from_millis(200);
/// How many do at most.
const ACKNOWLEDGE_MANY: usize = 1_000;
/// How long to wait before another try.
const PAUSE: Duration = Duration::from_secs(1);

/// Where it is.
#[derive(Default)]
struct At {
    /// Of the last stream.
    subscription: (String, u64),
    /// The last position printed, by partition.
    places: BTreeMap<u32, u64>,
    /// Printed and not acknowledged: positions, and ids of events that came again.
    printed: BTreeMap<u32, u64>,
    again: Vec<String>,
    count: usize,
}

impl Tail {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let follower = self.service.follower()?;
        let mut at = At::default();
        loop {
            match self.stream(&follower, &mut at).await {
                Ok(()) => return Ok(()),
                Err(error) => match error.downcast_ref::<Error>() {
                    Some(passing) if passing.may_pass() && !at.subscription.0.is_empty() => {
                        eprintln!("{passing}; trying again");
                        time::sleep(PAUSE).await;
                    }
                    Some(_) | None => return Err(error),
                },
            }
        }
    }

    fn request(&self, at: &At) -> SubscribeRequest {
        let (start, mut from) = match &self.from {
            None => (SubscribeStart::Acknowledged, BTreeMap::new()),
            Some(From::Start) => (SubscribeStart::Earliest, BTreeMap::new()),
            Some(From::End) => (SubscribeStart::End, BTreeMap::new()),
            Some(From::Behind(places)) => {
                (SubscribeStart::Acknowledged, places.iter().copied().collect())
            }
        };
        // begun anew, it goes on behind what was shown
        from.extend(&at.places);
        SubscribeRequest {
            consumer: self.consumer.clone(),
            partitions: self.partitions.clone(),
            from: positions(&from),
            epoch: (at.subscription.1 > 0).then_some(at.subscription.1),
            start: start.into(),
            ..SubscribeRequest::default()
        }
    }

    async fn stream(&self, follower: &Follower, at: &mut At) -> anyhow::Result<()> {
        let mut stream = follower.subscribe(self.request(at)).await?;
        let begun = stream.next().await?;
        at.subscription = (begun.subscription_id, begun.epoch);
        loop {
            let next = stream.next();
            tokio::pin!(next);
            let soon = time::timeout(ACKNOWLEDGE_AFTER, next.as_mut()).await.ok().transpose()?;
            let said = if soon.is_some() {
                soon
            } else {
                self.acknowledge(follower, at).await?;
                let patience = if self.once { SILENCE } else { Duration::MAX };
                time::timeout(patience, next).await.ok().transpose()?
            };
            let Some(said) = said else { return Ok(()) };
            if !self.print(&said, at)? {
                return Ok(());
            }
            if at.count >= ACKNOWLEDGE_MANY {
                self.acknowledge(follower, at).await?;
            }
        }
    }

    /// Prints what was said; `false` if nobody reads any more.
    fn print(&self, said: &SubscribeResponse, at: &mut At) -> anyhow::Result<bool> {
        let Some(event) = &said.event else { return Ok(true) };
        let line = if self.json {
            machine(event, said.epoch, said.redriven)
        } else {
            text(event, said.redriven)
        };
        let mut out = io::stdout().lock();
        match writeln!(out, "{line}").and_then(|()| out.flush()) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        at.count = at.count.saturating_add(1);
        if said.redriven {
            at.again.push(event.event_id.clone());
        } else {
            at.places.insert(event.partition, event.position);
            at.printed.insert(event.partition, event.position);
        }
        Ok(true)
    }

    async fn acknowledge(&self, follower: &Follower, at: &mut At) -> anyhow::Result<()> {
        if !self.ack || at.count == 0 {
            return Ok(());
        }
        let printed = positions(&at.printed);
        let (consumer, again) = (self.consumer.clone(), at.again.clone());
        follower.acknowledge(consumer, at.subscription.clone(), printed, again).await?;
        at.printed.clear();
        at.again.clear();
        at.count = 0;
        Ok(())
    }
}

fn positions(places: &BTreeMap<u32, u64>) -> Vec<PartitionPosition> {
    let position =
        |(&partition, &position): (&u32, &u64)| PartitionPosition { partition, position };
    places.iter().map(position).collect()
}
