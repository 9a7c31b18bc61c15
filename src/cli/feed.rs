//! `feed`: the events of a running service for people, and what its consumers are behind of.

mod line;
mod tail;

use std::{fs, path::PathBuf};

use anyhow::Context as _;
use serde_json::json;

use self::tail::Tail;
use super::{Usage, feed::line::time, sandbox};
use crate::grpc::{
    follower::{self, Follower, ParkedEvent, PartitionLag},
    importer::Tls,
};

/// Shows the feed of a running service, and looks after its consumers
///
/// The feed is what the wallet's own services have to do: return money, notify Alipay+. Each of them follows it as a
/// consumer with a name of its own, over gRPC (FeedService), and acknowledges what it has done.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Who is behind, and what of?
  alipayplus-cancel feed consumers
  alipayplus-cancel feed lag --consumer fund-return-executor
An event could not be handled; it was parked, the cause is mended:
  alipayplus-cancel feed parked --consumer fund-return-executor
  alipayplus-cancel feed redrive --consumer fund-return-executor --event 0f1e…
Look at what happens from now on, as text, under a name that nobody else uses:
  alipayplus-cancel feed tail --consumer me --from end
  alipayplus-cancel feed forget --consumer me")]
pub struct Feed {
    #[command(subcommand)]
    what: What,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum What {
    Tail(Tail),
    /// Tells how far a consumer is behind, in each partition
    Lag(Lag),
    /// Lists every consumer: how many events it is behind, how many it has parked, whether it is required
    Consumers(Consumers),
    /// Lists the events that a consumer could not handle, why, and what waits with them
    Parked(Parked),
    Redrive(Redrive),
    Forget(Forget),
}

/// Where the service is.
#[derive(Clone, Debug, clap::Args)]
struct Service {
    /// The service's gRPC address: http://HOST:PORT, or https://HOST:PORT
    #[arg(long, default_value = "http://127.0.0.1:50051")]
    url: String,
    /// Take it from the sandbox's folder; without a DIR, from .sandbox
    #[arg(long, value_name = "DIR", num_args = 0..=1, default_missing_value = ".sandbox", conflicts_with = "url")]
    sandbox: Option<PathBuf>,
    /// With an https URL: the authorities of the service's certificate, PEM
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// With an https URL: our certificate chain, PEM; its first name is who we are
    #[arg(long, value_name = "FILE", requires = "key_file")]
    cert_file: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, value_name = "FILE", requires = "cert_file")]
    key_file: Option<PathBuf>,
}

impl Service {
    fn url(&self) -> anyhow::Result<String> {
        let Some(dir) = &self.sandbox else {
            return Ok(self.url.clone());
        };
        let noted = sandbox::Made::read(dir)?.grpc;
        let missing = || Usage(format!("--sandbox {}: it has no gRPC address", dir.display()));
        Ok(noted.ok_or_else(missing)?)
    }

    fn follower(&self) -> anyhow::Result<Follower> {
        let url = self.url()?;
        let read = |flag: &str, file: &PathBuf| {
            let wrong = || Usage(format!("{flag} {}: cannot be read", file.display()));
            fs::read(file).with_context(wrong)
        };
        let tls = match (&self.ca_file, url.starts_with("https://")) {
            (None, false) => None,
            (None, true) => {
                let needed = "an https URL needs --ca-file, the authorities of its certificate";
                return Err(Usage(needed.to_owned()).into());
            }
            (Some(_), false) => {
                return Err(Usage("--ca-file needs an https URL".to_owned()).into());
            }
            (Some(ca), true) => {
                let identity = match self.cert_file.as_ref().zip(self.key_file.as_ref()) {
                    None => None,
                    Some((cert, key)) => {
                        Some((read("--cert-file", cert)?, read("--key-file", key)?))
                    }
                };
                Some(Tls { ca: read("--ca-file", ca)?, identity })
            }
        };
        let wrong =
            || Usage(format!("--url {url}: expected http://HOST:PORT or https://HOST:PORT"));
        if !url.starts_with("http://") && !url.starts_with("https://") {
            return Err(wrong().into());
        }
        Follower::new(&url, tls).with_context(wrong)
    }
}

#[derive(Clone, Debug, clap::Args)]
struct Lag {
    /// The consumer
    #[arg(long, value_name = "NAME")]
    consumer: String,
    /// Print JSON for machines
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    service: Service,
}

#[derive(Clone, Debug, clap::Args)]
struct Consumers {
    /// Print JSON for machines, one consumer a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    service: Service,
}

#[derive(Clone, Debug, clap::Args)]
struct Parked {
    /// The consumer
    #[arg(long, value_name = "NAME")]
    consumer: String,
    /// Print JSON for machines, one event a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    service: Service,
}

/// Has parked events delivered to their consumer again
///
/// They come in their order, each with all of its payment or authorization that waits with it, and stay parked until the
/// consumer acknowledges them by id. It may park them again.
#[derive(Clone, Debug, clap::Args)]
struct Redrive {
    /// The consumer
    #[arg(long, value_name = "NAME")]
    consumer: String,
    /// The event's id, as `feed parked` tells it; may be repeated
    #[arg(long = "event", value_name = "ID", required_unless_present = "all")]
    events: Vec<String>,
    /// Everything that is parked
    #[arg(long, conflicts_with = "events")]
    all: bool,
    #[command(flatten)]
    service: Service,
}

/// Forgets a consumer and its place, for good
///
/// If the name is used again it begins at the earliest event there is. One that the settings require
/// (feed.required_consumers) cannot be forgotten.
#[derive(Clone, Debug, clap::Args)]
struct Forget {
    /// The consumer
    #[arg(long, value_name = "NAME")]
    consumer: String,
    /// If it is bound to another identity than ours: that one, as `feed consumers` tells it
    #[arg(long, value_name = "NAME")]
    identity: Option<String>,
    #[command(flatten)]
    service: Service,
}

impl Feed {
    /// Does it.
    pub async fn run(self) -> anyhow::Result<()> {
        let url = self.service().url()?;
        self.what.run().await.map_err(|error| {
            if error.downcast_ref().is_some_and(follower::Error::is_unreachable) {
                return error
                    .context(format!("cannot connect to {url}; does the service run there?"));
            }
            error
        })
    }

    fn service(&self) -> &Service {
        match &self.what {
            What::Tail(tail) => &tail.service,
            What::Lag(lag) => &lag.service,
            What::Consumers(consumers) => &consumers.service,
            What::Parked(parked) => &parked.service,
            What::Redrive(redrive) => &redrive.service,
            What::Forget(forget) => &forget.service,
        }
    }
}

impl What {
    async fn run(self) -> anyhow::Result<()> {
        match self {
            What::Tail(tail) => tail.run().await,
            What::Lag(lag) => lag.run().await,
            What::Consumers(consumers) => consumers.run().await,
            What::Parked(parked) => parked.run().await,
            What::Redrive(Redrive { consumer, events, service, .. }) => {
                let count = service.follower()?.redrive(consumer, events).await?;
                say!("{count} events are delivered again")?;
                Ok(())
            }
            What::Forget(Forget { consumer, identity, service }) => {
                service.follower()?.forget(consumer.clone(), identity).await?;
                say!("{consumer} is forgotten")?;
                Ok(())
            }
        }
    }
}

impl Lag {
    async fn run(self) -> anyhow::Result<()> {
        let lag = self.service.follower()?.lag(self.consumer).await?;
        let oldest = lag.oldest_decided_at.as_ref().map(|at| time(at.seconds, at.nanos));
        if self.json {
            let partition = |it: &PartitionLag| {
                json!({
                    "partition": it.partition,
                    "head": it.head.to_string(),
                    "acknowledged": it.acknowledged.to_string(),
                    "purged": it.purged.to_string(),
                })
            };
            let partitions: Vec<_> = lag.partitions.iter().map(partition).collect();
            let told = json!({
                "events": lag.events.to_string(),
                "oldestDecidedAt": oldest,
                "parkedEvents": lag.parked_events.to_string(),
                "epoch": lag.epoch.to_string(),
                "partitions": partitions,
            });
            say!("{told}")?;
            return Ok(());
        }
        say!("{} events behind, {} parked, epoch {}", lag.events, lag.parked_events, lag.epoch)?;
        if let Some(oldest) = oldest {
            say!("the oldest was decided at {oldest}")?;
        }
        let behind: Vec<_> =
            lag.partitions.iter().filter(|it| it.acknowledged.max(it.purged) < it.head).collect();
        if !behind.is_empty() {
            say!("\npartition acknowledged       head")?;
        }
        for it in behind {
            say!("{:>9} {:>12} {:>10}", it.partition, it.acknowledged, it.head)?;
        }
        Ok(())
    }
}

impl Consumers {
    async fn run(self) -> anyhow::Result<()> {
        let told = self.service.follower()?.consumers().await?;
        if self.json {
            for it in told.consumers {
                let line = json!({
                    "name": it.name,
                    "required": it.required,
                    "lagEvents": it.lag_events.to_string(),
                    "parkedEvents": it.parked_events.to_string(),
                    "identity": it.identity,
                });
                say!("{line}")?;
            }
            return Ok(());
        }
        if told.consumers.is_empty() {
            say!("nobody follows the feed yet")?;
            return Ok(());
        }
        say!("{:>10} {:>7}  {:<8}  consumer", "behind", "parked", "required")?;
        for it in told.consumers {
            let required = if it.required { "yes" } else { "no" };
            let identity = it.identity.map(|name| format!("  of {name}")).unwrap_or_default();
            say!(
                "{:>10} {:>7}  {required:<8}  {}{identity}",
                it.lag_events,
                it.parked_events,
                it.name
            )?;
        }
        Ok(())
    }
}

impl Parked {
    async fn run(self) -> anyhow::Result<()> {
        let parked = self.service.follower()?.parked(&self.consumer).await?;
        if parked.is_empty() && !self.json {
            say!("nothing is parked")?;
        }
        for it in parked {
            say!("{}", if self.json { parked_json(&it) } else { parked_text(&it) })?;
        }
        Ok(())
    }
}

fn parked_at(parked: &ParkedEvent) -> String {
    parked.parked_at.as_ref().map(|at| time(at.seconds, at.nanos)).unwrap_or_default()
}

fn parked_json(parked: &ParkedEvent) -> String {
    let mut line = json!({
        "eventId": parked.event_id,
        "partition": parked.partition,
        "position": parked.position.to_string(),
        "pspId": parked.psp_id,
        "parkedAt": parked_at(parked),
        "redriven": parked.redriven,
    });
    let others = [
        ("paymentRequestId", &parked.payment_request_id),
        ("authorizationId", &parked.authorization_id),
        ("reason", &parked.reason),
    ];
    for (name, value) in others {
        if let Some(value) = value {
            line[name] = value.as_str().into();
        }
    }
    line.to_string()
}

fn parked_text(parked: &ParkedEvent) -> String {
    let payment = parked.payment_request_id.as_ref().map(|id| format!("payment {id}"));
    let authorization = parked.authorization_id.as_ref().map(|id| format!("authorization {id}"));
    format!(
        "{}  {}  {}:{}  {}  {}{}",
        parked.event_id,
        parked_at(parked),
        parked.partition,
        parked.position,
        payment.or(authorization).unwrap_or_default(),
        parked.reason.as_deref().unwrap_or("(waits with an earlier one)"),
        if parked.redriven { "  (is delivered again)" } else { "" },
    )
}
