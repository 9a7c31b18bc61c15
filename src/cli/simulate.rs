//! `simulate`: a day of Alipay+'s traffic against an endpoint, steady and as uneven as a day is: its rates by the hour,
//! duplicates, retries after 8 s and 5 s, and the burst behind an outage.
//!
//! It is bounded in time and rate, and goes to this machine alone unless it is told otherwise: it is a load, and another
//! one's wallet is no place for it.

mod day;
mod tally;
mod traffic;
mod view;

use std::{
    io::IsTerminal as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use tokio::runtime::Handle;

use self::{
    day::{Day, Outage},
    traffic::{Plan, Traffic},
    view::View,
};
use super::{
    Failure, Usage,
    target::{TargetArgs, length},
};

/// Plays a day of Alipay+'s traffic against an endpoint, with its rush hours, retries, duplicates and outages
///
/// A day passes in a minute unless told otherwise: --speed is how many of its seconds pass in one. Rates and time-outs stay
/// those of real time. With --wallet-grpc (or --sandbox) it records payments and tokens first, so that the answers are as
/// varied as a wallet's: most succeed, some are past the window, refunded, failed, or of nobody's knowledge.
///
/// A request without an answer, or with U, is sent again as Alipay+ does. In the end each must have got S or F, always the
/// same one, signed.
///
/// Exit status: 0 if so, 1 if not, 2 for wrong usage.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  alipayplus-cancel simulate --sandbox
    a day in a minute against the sandbox of this folder
  alipayplus-cancel simulate --sandbox --for 600 --rate 200 --outage 12:00+30 --outage 20:00+5
    ten minutes, 200 requests a second in the rush hours, two outages
  alipayplus-cancel simulate --sandbox --speed 1 --from 11:30 --for 3600
    an hour at noon, as it is")]
pub struct Simulate {
    #[command(flatten)]
    target: TargetArgs,
    /// How long it takes, in seconds, or as 10m; at most a day
    #[arg(long = "for", value_name = "SECONDS", default_value = "60", value_parser = length)]
    time: Duration,
    /// Requests a second in the busiest hour, without what comes again
    #[arg(long, value_name = "COUNT", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=2_000))]
    rate: u32,
    /// Seconds of the day in a second; without it, so many that --for is a whole day
    #[arg(long, value_name = "FACTOR", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    speed: Option<u64>,
    /// When on the day it begins
    #[arg(long, value_name = "HH:MM", default_value = "00:00", value_parser = day::time)]
    from: u64,
    /// The way to the wallet is cut then, for so many minutes of the day; what was due comes in a burst. May be repeated
    #[arg(long, value_name = "HH:MM+MINUTES", default_value = "14:00+20", value_parser = Outage::parse)]
    outage: Vec<Outage>,
    /// No outage
    #[arg(long, conflicts_with = "outage")]
    no_outage: bool,
    /// Requests of a hundred that are of cancelToken
    #[arg(long, value_name = "PERCENT", default_value_t = 15, value_parser = clap::value_parser!(u32).range(0..=100))]
    tokens: u32,
    /// Requests of a hundred that come twice, at once or later
    #[arg(long, value_name = "PERCENT", default_value_t = 4, value_parser = clap::value_parser!(u32).range(0..=100))]
    duplicates: u32,
    /// How often a request without S or F is sent again
    #[arg(long, value_name = "COUNT", default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=20))]
    retries: u32,
    /// Requests at once
    #[arg(long, value_name = "COUNT", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=512))]
    callers: u16,
    /// Where the output is no terminal: seconds between two lines
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    every: u64,
    /// The endpoint is not on this machine, and its owner wants this load
    #[arg(long)]
    allow_remote: bool,
}

impl Simulate {
    /// Does it.
    pub async fn run(self) -> anyhow::Result<()> {
        let target = self.target.target()?;
        if !target.endpoint.is_loopback() && !self.allow_remote {
            let refused = "is not on this machine; --allow-remote if its owner wants this load";
            return Err(Usage(format!("--url {}: {refused}", target.url)).into());
        }
        // nobody there is told at once, not by a day of failures
        let there = target.clone();
        let reached = tokio::task::spawn_blocking(move || {
            there.endpoint.connect(Duration::from_secs(8)).map(drop)
        });
        let reached = reached.await.context("the look for it broke off")?;
        reached.map_err(|_| Usage(self.target.nobody(&target.url)))?;
        let plan = Plan {
            day: Day {
                begins: self.from,
                speed: self.speed.unwrap_or(86_400_u64.div_ceil(self.time.as_secs().max(1))),
                rate: self.rate,
                outages: if self.no_outage { Vec::new() } else { self.outage },
            },
            time: self.time,
            tokens: self.tokens,
            duplicates: self.duplicates,
            retries: self.retries,
            callers: self.callers,
        };
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let signal = tokio::spawn(async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                told.store(true, Ordering::Relaxed);
            }
        });
        let view = View::new(std::io::stdout().is_terminal(), Duration::from_secs(self.every));
        let (runtime, url) = (Handle::current(), target.url.to_string());
        let played = tokio::task::spawn_blocking(move || {
            Traffic::new(target, plan, runtime).play(&stop, view)
        });
        let tally = played.await.context("the day broke off")?;
        signal.abort();
        super::print_all(view::summary(&tally, &url).as_bytes())?;
        if tally.is_good() { Ok(()) } else { Err(Failure.into()) }
    }
}
