//! `certify`: plays Alipay+ against a wallet's endpoint in every way, right and wrong, and tells what the wallet does with it.
//!
//! It talks to the URL that it is given and to the wallet's own gRPC API, if there is one, and to nobody else. What it makes
//! up there, payments and tokens with names of chance, stays there. No private key is ever in what it prints or writes.

mod checks;
mod report;
mod wallet;

use std::{
    fs,
    io::{self, IsTerminal as _, Write as _},
    path::PathBuf,
    sync::LazyLock,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use tokio::runtime::Handle;

use self::{
    checks::{CHAPTERS, Check, Source},
    report::{Outcome, Report, Tried},
    wallet::{Bounds, Stop, Wallet, told},
};
use super::{
    Failure, Usage, print_all,
    target::{self, Target, TargetArgs},
    wire::in_a_line,
};
use crate::bridge::keys::PrivateKey;

/// Plays Alipay+ against a wallet's endpoint, this one or any other, and reports what it does right and wrong
///
/// It sends some seven hundred signed requests: in every form that Alipay+'s clients use, in the order of checks, again and
/// again and at once, with wrong signatures, hostile bodies and broken HTTP; and looks at the form and the signature of each
/// answer. Checks that need payments or tokens that the wallet knows need its own side, too: --wallet-grpc; without it they
/// are skipped, and say so.
///
/// Use a test environment: each run leaves some hundred cancelled payments and tokens with names of chance behind.
///
/// Exit status: 0 if every check passed or was skipped for want of something, 1 if one failed or the run was cut short, 2 if
/// it could not be run.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  alipayplus-cancel certify --sandbox
    the sandbox of this folder (`alipayplus-cancel sandbox` runs in another terminal)
  alipayplus-cancel certify --sandbox --only window,late --verbose
    two chapters, with every request and answer
  alipayplus-cancel certify --url https://wallet.example/aps/api --client-id T_ALIPAYPLUS_0001 \\
    --key alipayplus-test.pem --peer-key wallet.public.pem \\
    --psp-id 1022172000000000001 --acquirer-id 1022188000000000001 \\
    --html report.html --junit report.xml
    any wallet's; the report is one file to hand on
  alipayplus-cancel certify --list
    what is checked, by what rule

Rules are `published` (by Alipay+), of its `clients` (what they send, what they can read), or `advice`: nobody publishes
them, and a wallet may do otherwise; --skip-advice leaves those out.")]
pub struct Certify {
    #[command(flatten)]
    target: TargetArgs,
    /// A second private key of Alipay+'s, which the wallet knows as well: tries a change of keys
    #[arg(long, value_name = "FILE")]
    next_key: Option<PathBuf>,
    /// keyVersion of --next-key
    #[arg(long, value_name = "VERSION", default_value = "2")]
    next_key_version: String,
    /// A pspId that the client may not act for
    #[arg(long, value_name = "ID")]
    foreign_psp_id: Option<String>,
    /// An acquirerId that the client may not act for
    #[arg(long, value_name = "ID")]
    foreign_acquirer_id: Option<String>,
    /// How long an answer to cancelPayment may take, in seconds: as long as Alipay+ waits
    #[arg(long, value_name = "SECONDS", default_value = "8", value_parser = target::length)]
    cancel_payment_wait: Duration,
    /// The same of cancelToken
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = target::length)]
    cancel_token_wait: Duration,
    /// Requests at most; what does not fit is skipped
    #[arg(long, value_name = "COUNT", default_value_t = 5_000)]
    max_requests: u64,
    /// Seconds at most; what does not fit is skipped
    #[arg(long, value_name = "SECONDS", default_value = "600", value_parser = target::length)]
    time_limit: Duration,
    /// Only these checks: ids, beginnings of ids or chapters, as window,form.time
    #[arg(long, value_name = "ID,…", value_delimiter = ',')]
    only: Vec<String>,
    /// Not these checks
    #[arg(long, value_name = "ID,…", value_delimiter = ',')]
    skip: Vec<String>,
    /// Not what nobody publishes
    #[arg(long)]
    skip_advice: bool,
    /// List the checks instead of running them
    #[arg(long)]
    list: bool,
    /// Show the requests and answers of checks that pass, too
    #[arg(long, short)]
    verbose: bool,
    /// Write a report for machines
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a JUnit XML report, for CI
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Write a report to hand on: one HTML file that needs nothing else
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// A key that nobody knows; made once.
fn stranger() -> &'static PrivateKey {
    static STRANGER: LazyLock<PrivateKey> =
        LazyLock::new(|| PrivateKey::generate(2048).expect("AWS-LC makes keys of 2048 bits"));
    &STRANGER
}

/// Whether a check is meant by `form`, `form.time` or `form.time-utc`.
fn is_meant(check: &Check, words: &[String]) -> bool {
    words
        .iter()
        .any(|word| check.chapter == word || check.id == *word || check.id.starts_with(word))
}

impl Certify {
    /// Does it.
    pub async fn run(self) -> anyhow::Result<()> {
        let checks = self.chosen()?;
        if self.list {
            return print_all(listed(&checks).as_bytes());
        }
        let target = self.target.target()?;
        let mut wallet = Wallet::new(target, self.bounds(), Handle::current());
        if let Some(file) = &self.next_key {
            wallet.next = Some(target::signer("--next-key", file, &self.next_key_version)?);
        }
        wallet.foreign_psp.clone_from(&self.foreign_psp_id);
        wallet.foreign_acquirer.clone_from(&self.foreign_acquirer_id);
        // files that cannot be written are told before the work, not after it
        for file in [&self.json, &self.junit, &self.html].into_iter().flatten() {
            let writable = fs::OpenOptions::new().append(true).create(true).open(file);
            writable.with_context(|| Usage(format!("cannot write {}", file.display())))?;
        }
        let verbose = self.verbose;
        let tried = tokio::task::spawn_blocking(move || {
            is_there(&wallet, &self.target)?;
            Ok::<_, anyhow::Error>(run_all(&wallet, &checks, verbose))
        });
        let report = tried.await.context("the checks broke off")??;
        let write = |file: &Option<PathBuf>, text: &dyn Fn() -> String| {
            let Some(file) = file else { return Ok(()) };
            fs::write(file, text())
                .with_context(|| Usage(format!("cannot write {}", file.display())))
        };
        write(&self.json, &|| report::json::written(&report))?;
        write(&self.junit, &|| report::junit::written(&report))?;
        write(&self.html, &|| report::html::written(&report))?;
        let summary = report::text::summary(&report, io::stdout().is_terminal() && colours());
        print_all(summary.as_bytes())?;
        let good = report.count(Outcome::is_failed) == 0 && !report.is_cut_short();
        if good { Ok(()) } else { Err(Failure.into()) }
    }

    fn chosen(&self) -> Result<Vec<Check>, Usage> {
        let all = checks::all();
        for word in self.only.iter().chain(&self.skip) {
            if word.is_empty()
                || !all.iter().any(|check| is_meant(check, std::slice::from_ref(word)))
            {
                return Err(Usage(format!("there is no check `{word}`; --list tells them all")));
            }
        }
        let chosen = all.into_iter().filter(|check| {
            (self.only.is_empty() || is_meant(check, &self.only))
                && !is_meant(check, &self.skip)
                && !(self.skip_advice && check.source == Source::Advice)
        });
        let chosen: Vec<Check> = chosen.collect();
        if chosen.is_empty() {
            return Err(Usage("no check is left".to_owned()));
        }
        Ok(chosen)
    }

    fn bounds(&self) -> Bounds {
        Bounds {
            requests: self.max_requests,
            until: Instant::now() + self.time_limit,
            cancel_payment_wait: self.cancel_payment_wait,
            cancel_token_wait: self.cancel_token_wait,
        }
    }
}

/// Whether colours may be used, on a terminal.
fn colours() -> bool {
    !crate::config::wants_no_colour()
}

fn listed(checks: &[Check]) -> String {
    let mut text = String::new();
    for chapter in &CHAPTERS {
        let of_chapter: Vec<_> =
            checks.iter().filter(|check| check.chapter == chapter.id).collect();
        if of_chapter.is_empty() {
            continue;
        }
        text.extend([format!("{}  {}\n", chapter.id, chapter.title)]);
        for check in of_chapter {
            text.extend([format!(
                "  {}  {}\n      {}: {}\n",
                check.id,
                check.title,
                check.source.name(),
                check.rule
            )]);
        }
    }
    format!("{text}{} checks\n", checks.len())
}

/// Whether there is a wallet to play against at all.
fn is_there(wallet: &Wallet, asked: &TargetArgs) -> anyhow::Result<()> {
    let target: &Target = &wallet.target;
    let reached = target.endpoint.connect(wallet.bounds.cancel_payment_wait);
    reached.map_err(|error| Usage(format!("{} ({})", asked.nobody(&target.url), told(&error))))?;
    if let Some(recorder) = &target.recorder {
        let nobody = target.new_payment(0);
        let asked = wallet.runtime.block_on(recorder.story(&nobody));
        asked.map_err(|error| Usage(format!("--wallet-grpc: {error}")))?;
    }
    Ok(())
}

/// Says on a terminal what is being done, and takes it back.
struct Progress {
    shown: bool,
}

impl Progress {
    fn tell(&self, text: &str) {
        if self.shown {
            // nobody may be reading
            drop(write!(io::stderr(), "\r\x1b[K{text}").and_then(|()| io::stderr().flush()));
        }
    }
}

fn run_all(wallet: &Wallet, checks: &[Check], verbose: bool) -> Report {
    let progress = Progress { shown: io::stderr().is_terminal() };
    let colours = io::stdout().is_terminal() && colours();
    let mut report = Report::of(&wallet.target);
    let begun = Instant::now();
    let mut chapter = "";
    for (at, check) in checks.iter().enumerate() {
        progress.tell(&format!("{}/{}  {}", at + 1, checks.len(), check.title));
        let check_begun = Instant::now();
        let verdict = (check.run)(wallet);
        let outcome = match verdict {
            Ok(()) => Outcome::Passed,
            // what came from the wallet may stand in it
            Err(Stop::Failed(why)) => Outcome::Failed(in_a_line(&why)),
            Err(Stop::Skipped(why)) => Outcome::Skipped(why),
            Err(Stop::CutShort(why)) => Outcome::CutShort(why),
        };
        let tried = Tried {
            id: check.id.clone(),
            chapter: check.chapter,
            title: check.title.clone(),
            rule: check.rule,
            source: check.source.name(),
            outcome,
            took: check_begun.elapsed(),
            exchanges: wallet.take_exchanges(),
        };
        progress.tell("");
        let mut text = String::new();
        if chapter != check.chapter {
            chapter = check.chapter;
            let title =
                CHAPTERS.iter().find(|known| known.id == chapter).map_or("", |known| known.title);
            text.push_str(&report::text::heading(title, colours));
        }
        text.push_str(&report::text::line(&tried, verbose, colours));
        // whoever reads it may have read enough
        drop(print_all(text.as_bytes()));
        report.tried.push(tried);
    }
    report.took = begun.elapsed();
    report.requests = wallet.sent();
    report
}
