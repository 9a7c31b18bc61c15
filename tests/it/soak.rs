//! For hours: a load from both fronts, kills, freezes, and what leaks with time: memory, file handles, the feed's lag.
//! `tests/soak/run` starts it.
//!
//! In the first half the service is killed every other period; in the second it lives, and is frozen only. PostgreSQL is
//! killed and frozen in both. A period is a minute, or a twentieth of a short run.

use std::{
    env, fs, thread,
    time::{Duration, Instant},
};

use crate::{
    harness::{
        eventually,
        postgres::{self, Cluster},
        service::{Options, Service},
    },
    load::{self, Running},
};

const CALLERS: usize = 16;
/// Keys of the last period, and of all before, that are asked again in each.
const ASKED_AGAIN: usize = 500;
/// In the end.
const ASKED_AT_LAST: usize = 200_000;

fn set<T: std::str::FromStr>(name: &str, usual: T) -> T {
    let name = format!("ALIPAYPLUS_CANCEL_SOAK_{name}");
    let Ok(text) = env::var(&name) else { return usual };
    text.parse().unwrap_or_else(|_| panic!("{name}: {text}"))
}

/// What a process holds.
#[derive(Clone, Copy)]
struct Sample {
    /// Bytes in memory, and those of them that are no file's.
    rss: u64,
    anonymous: u64,
    handles: u64,
    lag: u64,
}

/// Its store, where it is, and what breaks it.
struct Soak {
    service: Service,
    database: Option<(Cluster, String)>,
    kills: usize,
    freezes: usize,
    begun: Instant,
}

impl Soak {
    fn start(store: &str) -> Self {
        let database = match store {
            "sqlite" => None,
            "postgres" => {
                assert!(postgres::is_there_or_skip(), "no PostgreSQL");
                let cluster = Cluster::start(postgres::Options::default());
                let url = cluster.fresh_database();
                Some((cluster, url))
            }
            other => panic!("neither sqlite nor postgres: {other}"),
        };
        let options = match &database {
            None => Options::embedded(),
            Some((_, url)) => Options::on(url),
        };
        // its log must not fill the disk
        let quiet = "telemetry.log_level=warn,alipayplus_cancel::cli::serve=info".to_owned();
        let service = Service::start(Options { set: vec![quiet], ..options });
        Self { service, database, kills: 0, freezes: 0, begun: Instant::now() }
    }

    fn kill(&mut self, load: &Running) {
        self.service.kill_nine();
        self.kills += 1;
        self.service.restart();
        load.load.moved(&self.service);
    }

    fn freeze(&mut self, length: Duration) {
        self.service.signal("STOP");
        thread::sleep(length);
        self.service.signal("CONT");
        self.freezes += 1;
    }

    fn trouble_the_database(&mut self, nth: u32, length: Duration) {
        let Some((cluster, _)) = &self.database else { return };
        if nth.is_multiple_of(5) {
            cluster.kill_nine();
            cluster.start_again();
            self.kills += 1;
        } else if nth % 5 == 3 {
            cluster.pause();
            thread::sleep(length);
            cluster.resume();
            self.freezes += 1;
        }
    }

    /// Bytes on the disk.
    fn store_size(&self) -> u64 {
        if let Some((cluster, url)) = &self.database {
            let size = cluster.psql(url, "SELECT pg_database_size(current_database())");
            return size.parse().expect("a number");
        }
        let size = |name: &str| {
            let file = self.service.dir().join(name);
            fs::metadata(file).map_or(0, |file| file.len())
        };
        size("state.db") + size("state.db-wal")
    }

    fn sample(&self, load: &Running) -> Sample {
        let process = format!("/proc/{}", self.service.pid());
        let status = fs::read_to_string(format!("{process}/status")).expect("it runs");
        let kilobytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line");
            line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
        };
        let handles = fs::read_dir(format!("{process}/fd")).expect("it runs").count();
        Sample {
            rss: kilobytes("VmRSS:"),
            anonymous: kilobytes("RssAnon:"),
            handles: handles.try_into().expect("few"),
            lag: eventually("the feed answers", || load.lag()),
        }
    }

    fn say(&self, load: &Running, sample: Sample) {
        let Sample { rss, anonymous, handles, lag } = sample;
        let minutes = self.begun.elapsed().as_secs_f64() / 60.0;
        let mib = |bytes: u64| bytes >> 20;
        println!(
            "{minutes:>6.1} min: {} answers, {} without, {} kills, {} freezes, rss {} MiB ({} anonymous), {handles} handles, \
             lag {lag}, store {} MiB",
            load.load.answers(),
            load.load.unanswered(),
            self.kills,
            self.freezes,
            mib(rss),
            mib(anonymous),
            mib(self.store_size()),
        );
    }
}

/// Fails if the last quarter is, in its middle, more than a quarter and `slack` above the first.
fn assert_flat(what: &str, values: &[u64], slack: u64) {
    let quarter = (values.len() / 4).max(1);
    let middle = |part: &[u64]| {
        let mut part = part.to_vec();
        part.sort_unstable();
        part[part.len() / 2]
    };
    let (first, last) = (middle(&values[..quarter]), middle(&values[values.len() - quarter..]));
    println!("{what}: {first} in the first quarter, {last} in the last, of {}", values.len());
    assert!(last <= first + first / 4 + slack, "{what} grows: {values:?}");
}

#[test]
#[ignore = "takes as long as it is told to: tests/soak/run"]
fn nothing_is_lost_and_nothing_grows_for_as_long_as_it_runs() {
    let hours: f64 = set("HOURS", 0.05);
    let length = Duration::from_secs_f64(hours * 3_600.0);
    let period = Duration::from_mins(1).min(length / 20);
    let periods = u32::try_from(length.as_nanos() / period.as_nanos()).expect("few");
    let rate: u32 = set("RATE", 200);
    let mut soak = Soak::start(&set("STORE", "sqlite".to_owned()));
    let mut load = load::start(&soak.service, CALLERS, Some(rate));

    let (mut lives, mut life) = (vec![], vec![]);
    for nth in 0..periods {
        let middle = soak.begun + period * nth + period / 2;
        let until = |at: Instant| thread::sleep(at.saturating_duration_since(Instant::now()));
        let is_killed = nth < periods / 2 && nth % 2 == 0 || nth == periods / 2;
        if is_killed {
            soak.kill(&load);
        } else {
            soak.freeze((period / 20).min(Duration::from_secs(2)));
        }
        soak.trouble_the_database(nth, (period / 20).min(Duration::from_secs(2)));
        load.assert_sound();
        until(middle);
        load.ask_again(ASKED_AGAIN, ASKED_AGAIN);
        until(middle + period / 2);
        load.assert_sound();
        let sample = soak.sample(&load);
        soak.say(&load, sample);
        if nth > periods / 2 {
            life.push(sample);
        } else if nth % 2 == 1 {
            lives.push(sample);
        }
    }

    let of = |samples: &[Sample], part: fn(&Sample) -> u64| samples.iter().map(part).collect();
    let check = |what: &str, samples: &[Sample], part: fn(&Sample) -> u64, slack: u64| {
        let values: Vec<u64> = of(samples, part);
        assert_flat(what, &values, slack);
    };
    for (when, samples) in [("at the same age", &lives), ("in one life", &life)] {
        let what = |what: &str| format!("{what} {when}");
        check(&what("memory"), samples, |sample| sample.anonymous, 24 << 20);
        check(&what("file handles"), samples, |sample| sample.handles, 16);
        check(&what("lag"), samples, |sample| sample.lag, rate.into());
    }
    load.finish(ASKED_AT_LAST);
    let log = soak.service.stderr();
    assert!(!log.contains("panicked"), "{log}");
    println!("{} kills, {} freezes, {:.0?}", soak.kills, soak.freezes, soak.begun.elapsed());
}
