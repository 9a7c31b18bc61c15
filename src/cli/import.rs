//! `import`: the wallet's history, at the cut-over.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

use super::{
    Failure, Usage, in_use,
    lines::{Line, Lines},
    open_tool,
    progress::Progress,
    settings,
};
use crate::{
    app::Closing,
    config::StoreUrl,
    domain::{import_payment, import_payment::ImportPayment, import_token},
    engine::{Caller, Engine, ImportToken},
    grpc::importer::{self, Answer, Importer, Tls},
    store::{StandingChange, sqlite::Sqlite},
    upkeep::lines,
};

/// The cut-over: brings in what the wallet knew, and makes unknown mean unknown
///
/// A new store is in onboarding: a cancel of what is unknown is answered U (ask again) and recorded nowhere, because it
/// may be known to the wallet. Bring in its payments and tokens, beside live traffic if you like, then say `import
/// complete`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Example, beside a running service:
  alipayplus-cancel import payments payments.jsonl --url http://127.0.0.1:50051
  alipayplus-cancel import tokens tokens.jsonl --url http://127.0.0.1:50051
  alipayplus-cancel import complete --config /etc/alipayplus-cancel.toml

Without --url the store is opened directly, which an embedded one (SQLite) allows while no service runs only.")]
pub struct Import {
    #[command(subcommand)]
    step: Step,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Step {
    Payments(Payments),
    Tokens(Tokens),
    /// Says that everything the wallet knew is recorded, or that it had nothing
    ///
    /// Until then a cancel of an unknown payment or token is answered U (ask again) and recorded nowhere, because
    /// "unknown" could be a lie: a payment of last week would be answered SUCCESS with no money returned. From then on
    /// it is decided. Durable, kept in the store's journal, may be repeated, cannot be undone; a running service notices
    /// at once.
    Complete(Complete),
}

/// Brings in payments, one JSON object a line
///
/// What is there already changes nothing, so the same file may be brought in again, and after an interruption as a whole.
/// What was decided here since stays; where a line contradicts it, the line is rejected and the status is 1.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
A line, here broken to be read:
  {\"pspId\": \"1022172000000000001\",               the wallet; 1 to 64 characters
   \"paymentRequestId\": \"20200101234567890132\",   Alipay+'s; 1 to 64 characters
   \"acquirerId\": \"1022188000000000001\",          needed with state initiated and succeeded
   \"paymentAmount\": {\"value\": \"1999\", \"currency\": \"EUR\"},   minor units (cents); needed with the same
   \"initiatedAt\": \"2026-05-28T12:12:12+08:00\",   when it began: the cancel window counts from its day
   \"state\": \"succeeded\",                         initiated, succeeded, failed; unknown if a cancel is all there is
   \"refunds\": [{\"refundId\": \"r1\",
                \"amount\": {\"value\": \"500\", \"currency\": \"EUR\"},
                \"state\": \"succeeded\"}],           reserved, succeeded or failed

   and if a cancel was answered finally:
   \"cancelledAt\": \"2026-05-28T13:00:00+08:00\",   when it was decided
   \"resultCode\": \"SUCCESS\",                      or CANCEL_WINDOW_EXCEED, PROCESS_FAIL; SUCCESS if left out
   \"fundReturn\": {\"state\": \"returned\",           needed with succeeded and SUCCESS: where the money is
                  \"returnedAt\": \"2026-05-28T13:00:05+08:00\", \"reference\": \"T-1\", \"dueAt\": \"…\"}}
   or \"fundReturn\": {\"state\": \"due\"}             nobody returned it: this service's executor is told to do it

Example:
  alipayplus-cancel import payments payments.jsonl --config /etc/alipayplus-cancel.toml
  zcat payments.jsonl.gz | alipayplus-cancel import payments - --url http://127.0.0.1:50051

Exit status: 0 all are in; 1 some were rejected, or it was interrupted; 2 wrong usage or settings.")]
struct Payments {
    #[command(flatten)]
    source: Source,
}

/// Brings in tokens, one JSON object a line
///
/// The tokens stand in the file in clear, because they are kept as hashes under a key of this service's alone; no message,
/// log or rejects file holds one. Delete the file afterwards.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
A line, here broken to be read:
  {\"pspId\": \"1022172000000000001\",            the wallet; 1 to 64 characters
   \"authorizationId\": \"consent-1\",            the wallet's id of the consent; never reused
   \"acquirerId\": \"1022188000000000001\",       whom it was granted to
   \"token\": \"281010033AB2F588\",               1 to 128 characters
   \"kind\": \"access\",                          or refresh
   \"expiresAt\": \"2027-05-28T12:12:12+08:00\",  left out: it never expires by itself
   \"replaces\": \"281010033AB2F587\",            the token whose place it took; that one's line stands before this one
   \"cancelledAt\": \"2026-05-28T12:12:12+08:00\",  if a cancel of this very token was answered SUCCESS
   \"revokedAt\": \"2026-05-28T12:12:12+08:00\",  if the authorization was revoked
   \"passThroughInfo\": \"…\"}                    what the answer to cancelToken carries back; 1 to 20000 characters

Bring in every token that Alipay+ may still cancel, revoked and expired ones too: an unknown one is answered \
INVALID_TOKEN after `import complete`. Of a token that was rotated out and whose successor is not known any more, say \
so with the time of its rotation as expiresAt.

Example:
  alipayplus-cancel import tokens tokens.jsonl --url https://core:50051 --ca-file ca.pem \\
    --cert-file client.pem --key-file client.key

Exit status: 0 all are in; 1 some were rejected, or it was interrupted; 2 wrong usage or settings.")]
struct Tokens {
    #[command(flatten)]
    source: Source,
}

#[derive(Clone, Debug, clap::Args)]
struct Source {
    /// The file, or `-` for standard input
    file: PathBuf,
    /// The settings file that names the store; environment variables ALIPAYPLUS_CANCEL__SECTION__KEY win over it
    #[arg(long, value_name = "FILE", required_unless_present = "url", conflicts_with = "url")]
    config: Option<PathBuf>,
    /// A running service's gRPC address, as http://core:50051, instead of the store itself
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// With an https URL: the authorities of the service's certificate, PEM
    #[arg(long, value_name = "FILE", requires = "url")]
    ca_file: Option<PathBuf>,
    /// With an https URL: our certificate chain, PEM
    #[arg(long, value_name = "FILE", requires = "url", requires = "key_file")]
    cert_file: Option<PathBuf>,
    /// With an https URL: its private key, PEM
    #[arg(long, value_name = "FILE", requires = "url", requires = "cert_file")]
    key_file: Option<PathBuf>,
    /// Begin with this line; those before it are passed over
    #[arg(long, value_name = "N", default_value = "1")]
    from_line: u64,
    /// Where rejected lines are told of, by number and reason; FILE.rejects.jsonl by default
    #[arg(long, value_name = "FILE")]
    rejects: Option<PathBuf>,
}

#[derive(Clone, Debug, clap::Args)]
struct Complete {
    /// The settings file; environment variables ALIPAYPLUS_CANCEL__SECTION__KEY win over it
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

impl Import {
    /// Does the step.
    pub async fn run(self) -> anyhow::Result<()> {
        match self.step {
            Step::Payments(Payments { source }) => source.run::<ImportPayment>().await,
            Step::Tokens(Tokens { source }) => source.run::<ImportToken>().await,
            Step::Complete(complete) => complete.run().await,
        }
    }
}

impl Complete {
    async fn run(self) -> anyhow::Result<()> {
        let settings = settings(&self.config)?.settings;
        match open_tool(&settings).await {
            Ok(tool) => {
                let changed = tool.store().change_standing(StandingChange::ImportComplete).await;
                tool.close().await;
                changed?;
            }
            // the service has the file open, and notices with its next commit
            Err(error) => match &settings.store.url {
                StoreUrl::Sqlite { path } if in_use(&error) => Sqlite::complete_import_of(path)?,
                StoreUrl::Sqlite { .. } | StoreUrl::Postgres(_) => return Err(error),
            },
        }
        say!("import complete: unknown payments and tokens are decided from now on")?;
        Ok(())
    }
}

/// Lines in one commit.
const RECORDS: usize = 1_000;
/// Bytes of lines in one commit.
const BYTES: usize = 2 * 1024 * 1024;
/// For one commit.
const PATIENCE: Duration = Duration::from_mins(1);
/// How often a call that was not answered is made again, and how long is waited before each.
const RETRIES_MS: [u64; 6] = [100, 300, 1_000, 3_000, 10_000, 10_000];

/// What a line of a file is.
trait Record: Sized + Send + Sync + 'static {
    /// For people.
    const WHAT: &str;

    fn read(text: &str) -> Result<Self, lines::Wrong>;
    fn import(
        sink: &Sink,
        records: Vec<Self>,
    ) -> impl Future<Output = anyhow::Result<Vec<Answer>>> + Send;
}

impl Record for ImportPayment {
    const WHAT: &str = "payments";

    fn read(text: &str) -> Result<Self, lines::Wrong> {
        lines::payment(text)
    }

    async fn import(sink: &Sink, records: Vec<Self>) -> anyhow::Result<Vec<Answer>> {
        use import_payment::Outcome;
        let outcomes = match sink {
            Sink::Service(importer) => return again(|| importer.payments(&records)).await,
            Sink::Store(engine) => engine.import_payments(records, caller()).await?,
        };
        let answer = |outcome| match outcome {
            Outcome::Taken => Answer::Taken,
            Outcome::AlreadyThere => Answer::AlreadyThere,
            Outcome::Kept => Answer::Kept,
            Outcome::Rejected(contradiction) => Answer::Rejected(contradiction.to_string()),
        };
        Ok(outcomes.into_iter().map(answer).collect())
    }
}

impl Record for ImportToken {
    const WHAT: &str = "tokens";

    fn read(text: &str) -> Result<Self, lines::Wrong> {
        lines::token(text)
    }

    async fn import(sink: &Sink, records: Vec<Self>) -> anyhow::Result<Vec<Answer>> {
        use import_token::Outcome;
        let outcomes = match sink {
            Sink::Service(importer) => return again(|| importer.tokens(&records)).await,
            Sink::Store(engine) => engine.import_tokens(records, caller()).await?,
        };
        let answer = |outcome| match outcome {
            Outcome::Taken => Answer::Taken,
            Outcome::AlreadyThere => Answer::AlreadyThere,
            Outcome::Kept => Answer::Kept,
            Outcome::Rejected(contradiction) => Answer::Rejected(contradiction.to_string()),
        };
        Ok(outcomes.into_iter().map(answer).collect())
    }
}

fn caller() -> Caller {
    Caller { deadline: Instant::now() + PATIENCE, client: None, trace: None }
}

/// Calls again what may pass by itself: a repeat changes nothing of what was taken.
async fn again<F: Future<Output = Result<Vec<Answer>, importer::Error>>>(
    call: impl Fn() -> F,
) -> anyhow::Result<Vec<Answer>> {
    for wait in RETRIES_MS {
        match call().await {
            Err(error) if error.may_pass() => {
                tokio::time::sleep(Duration::from_millis(wait)).await;
            }
            answered => return Ok(answered?),
        }
    }
    Ok(call().await?)
}

/// Where records go.
enum Sink {
    /// Into a running service.
    Service(Importer),
    /// Into the store itself.
    Store(Engine),
}

/// What became of the lines.
#[derive(Default)]
struct Counts {
    lines: u64,
    taken: u64,
    already_there: u64,
    kept: u64,
    rejected: u64,
}

impl Source {
    async fn run<R: Record>(self) -> anyhow::Result<()> {
        let (sink, closing) = self.sink().await?;
        let mut counts = Counts::default();
        let mut rejects = Rejects::new(self.rejects_file());
        let done = self.import::<R>(&sink, &mut counts, &mut rejects).await;
        drop(sink);
        if let Some(closing) = closing {
            closing.close().await;
        }
        let Counts { lines, taken, already_there, kept, rejected } = counts;
        let told = say!(
            "{}: {lines} lines, {taken} taken, {already_there} already there, {kept} kept as known here, {rejected} rejected",
            R::WHAT
        );
        done.and(told)?;
        if rejected == 0 {
            return Ok(());
        }
        eprintln!(
            "rejected lines and why: {}; put them right and bring in the file again: what is there already changes nothing",
            rejects.path.display()
        );
        Err(Failure.into())
    }

    fn rejects_file(&self) -> PathBuf {
        if let Some(file) = &self.rejects {
            return file.clone();
        }
        if self.file.as_os_str() == "-" {
            return PathBuf::from("import.rejects.jsonl");
        }
        let mut name = self.file.clone().into_os_string();
        name.push(".rejects.jsonl");
        name.into()
    }

    async fn sink(&self) -> anyhow::Result<(Sink, Option<Closing>)> {
        if let Some(url) = &self.url {
            return Ok((Sink::Service(self.importer(url)?), None));
        }
        let Some(config) = &self.config else {
            bail!(Usage("--config or --url must be set".into()))
        };
        let settings = settings(config)?.settings;
        let tool = open_tool(&settings).await.map_err(|error| {
            if in_use(&error) {
                error.context(
                    "a running service has the store: bring the file in through it, with --url http://HOST:PORT of its \
                     grpc.listen instead of --config, or stop it first",
                )
            } else {
                error
            }
        })?;
        let (engine, closing) = tool.engine(&settings);
        Ok((Sink::Store(engine), Some(closing)))
    }

    fn importer(&self, url: &str) -> anyhow::Result<Importer> {
        let read = |path: &Path| {
            fs::read(path).with_context(|| Usage(format!("cannot read {}", path.display())))
        };
        let uri: http::Uri =
            url.parse().with_context(|| Usage(format!("--url {url}: not a URL")))?;
        let tls = match (uri.scheme_str(), &self.ca_file) {
            (Some("http"), None) => {
                if !uri.host().is_some_and(is_loopback) {
                    eprintln!(
                        "warning: {url} is not encrypted; tokens go over the network in clear"
                    );
                }
                None
            }
            (Some("http"), Some(_)) => bail!(Usage("--ca-file needs an https URL".into())),
            (Some("https"), Some(ca)) => {
                let identity = match (&self.cert_file, &self.key_file) {
                    (Some(chain), Some(key)) => Some((read(chain)?, read(key)?)),
                    _ => None,
                };
                Some(Tls { ca: read(ca)?, identity })
            }
            (Some("https"), None) => bail!(Usage(
                "an https URL needs --ca-file, the authorities of the service's certificate".into()
            )),
            _ => {
                bail!(Usage(format!("--url {url}: expected http://HOST:PORT or https://HOST:PORT")))
            }
        };
        Importer::new(url, tls)
            .map_err(|error| anyhow::Error::from(error).context(Usage(format!("--url {url}"))))
    }

    /// Reads while the last commit is under way.
    async fn import<R: Record>(
        &self,
        sink: &Sink,
        counts: &mut Counts,
        rejects: &mut Rejects,
    ) -> anyhow::Result<()> {
        let mut lines = Lines::open(&self.file, self.from_line)
            .with_context(|| Usage(format!("cannot read {}", self.file.display())))?;
        let mut progress = Progress::new("lines");
        loop {
            let chunk = read_chunk::<R>(&mut lines)
                .with_context(|| format!("cannot read {}", self.file.display()))?;
            let Some(last) = chunk.last else { break };
            counts.lines += chunk.lines;
            for (line, wrong) in chunk.wrong {
                counts.rejected += 1;
                rejects.note(line, &wrong.to_string())?;
            }
            let (numbers, records): (Vec<u64>, Vec<R>) = chunk.records.into_iter().unzip();
            if !records.is_empty() {
                let first = numbers.first().copied().unwrap_or(last);
                let answers = R::import(sink, records).await.with_context(|| {
                    format!(
                        "{}: lines before {first} are dealt with; bring in the file again, or go on with --from-line {first}",
                        self.file.display()
                    )
                })?;
                for (line, answer) in numbers.into_iter().zip(answers) {
                    match answer {
                        Answer::Taken => counts.taken += 1,
                        Answer::AlreadyThere => counts.already_there += 1,
                        Answer::Kept => counts.kept += 1,
                        Answer::Rejected(why) => {
                            counts.rejected += 1;
                            rejects.note(line, &why)?;
                        }
                    }
                }
            }
            progress.tell(last, lines.part());
        }
        if counts.lines > 0 {
            eprintln!("{} lines a second", progress.rate(counts.lines));
        }
        Ok(())
    }
}

fn is_loopback(host: &str) -> bool {
    let host = host.trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Lines that go into one commit.
struct Chunk<R> {
    lines: u64,
    /// The number of the last one; none at the end of the file.
    last: Option<u64>,
    records: Vec<(u64, R)>,
    wrong: Vec<(u64, lines::Wrong)>,
}

fn read_chunk<R: Record>(lines: &mut Lines) -> io::Result<Chunk<R>> {
    let mut chunk = Chunk { lines: 0, last: None, records: Vec::new(), wrong: Vec::new() };
    let mut bytes = 0usize;
    // wrong lines count as well: a file that is no text at all has nothing else
    while chunk.records.len() + chunk.wrong.len() < RECORDS && bytes < BYTES {
        let Some((number, line)) = lines.next()? else { break };
        chunk.last = Some(number);
        let text = match line {
            Line::Text(text) if text.trim().is_empty() => continue,
            Line::Text(text) => text,
            Line::Wrong(wrong) => {
                chunk.lines += 1;
                chunk.wrong.push((number, wrong));
                continue;
            }
        };
        chunk.lines += 1;
        bytes = bytes.saturating_add(text.len());
        match R::read(text) {
            Ok(record) => chunk.records.push((number, record)),
            Err(wrong) => chunk.wrong.push((number, wrong)),
        }
    }
    Ok(chunk)
}

/// The file of rejected lines: made with the first one, readable by its owner only. It holds no line, which may hold a
/// token, but its number.
struct Rejects {
    path: PathBuf,
    file: Option<File>,
}

impl Rejects {
    fn new(path: PathBuf) -> Self {
        Self { path, file: None }
    }

    fn note(&mut self, line: u64, reason: &str) -> anyhow::Result<()> {
        let written = |path: &Path| format!("cannot write {}", path.display());
        let file = if let Some(file) = &mut self.file {
            file
        } else {
            let mut options = OpenOptions::new();
            options.create(true).truncate(true).write(true);
            #[cfg(unix)]
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
            let file = options.open(&self.path).with_context(|| written(&self.path))?;
            self.file.insert(file)
        };
        let told = serde_json::json!({ "line": line, "reason": reason });
        writeln!(file, "{told}").with_context(|| written(&self.path))
    }
}
