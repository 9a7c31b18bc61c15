//! `keys rotate --rehearse`: both rotations once, in a throw-away folder, with a service under load.

use std::{
    fs,
    io::Write,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use http::Uri;
use tokio::{
    runtime,
    signal::unix::{SignalKind, signal},
    task::JoinSet,
    time,
};

use super::{
    super::{Usage, start_error},
    create,
    rotate::{Rotate, Step},
};
use crate::{
    app::{self, Begun, Running, Source},
    bridge::keys::{PrivateKey, PublicKey},
    cli::exchange::Caller,
    config::Role,
    store::StandingChange,
    telemetry::Telemetry,
};

const CLIENT: &str = "REHEARSAL";
/// How many ask at the same time.
const CALLERS: usize = 4;
/// Answers that each step must see.
const ANSWERS: usize = 40;
/// Longest that a step may take.
const PATIENCE: Duration = Duration::from_mins(1);

/// What the callers share.
struct Load {
    url: Uri,
    /// Alipay+'s old and new key.
    keys: [PrivateKey; 2],
    /// The wallet's old and new key, as Alipay+ knows them.
    wallet: [PublicKey; 2],
    /// Which of its keys Alipay+ signs with.
    moved: AtomicBool,
    over: AtomicBool,
    answers: AtomicUsize,
    /// Of them, signed by our new key.
    by_new: AtomicUsize,
}

/// Runs it.
pub(super) fn run(out: &mut impl Write) -> Result<()> {
    let temporary = std::env::temp_dir();
    let temporary = fs::canonicalize(&temporary).unwrap_or(temporary);
    let folder = temporary.join(format!("alipayplus-cancel-{:016x}", rand::random::<u64>()));
    let wrong = || Usage(format!("{} cannot be made", folder.display()));
    fs::create_dir(&folder).with_context(wrong)?;
    let runtime = runtime::Builder::new_multi_thread().enable_all().build();
    let rehearsed = runtime
        .context("cannot start the runtime")
        .and_then(|runtime| runtime.block_on(rehearse(&folder, out)));
    if let Err(error) = fs::remove_dir_all(&folder) {
        writeln!(out, "{} is left: {error}", folder.display())?;
    }
    rehearsed
}

async fn rehearse(folder: &Path, out: &mut impl Write) -> Result<()> {
    let config = folder.join("settings.toml");
    let theirs = [PrivateKey::generate(2_048)?, PrivateKey::generate(2_048)?];
    let ours = PrivateKey::generate(2_048)?;
    create(&folder.join("wallet-1.private.pem"), &ours.pkcs8_pem()?, 0o600)?;
    let new_public = folder.join("alipayplus-2.pem");
    fs::write(folder.join("alipayplus-1.pem"), theirs[0].public().spki_pem())?;
    fs::write(&new_public, theirs[1].public().spki_pem())?;
    create(&folder.join("token-hash.hex"), &"5a".repeat(32), 0o600)?;
    fs::write(&config, settings(folder))?;

    // a variable may name a store that is no rehearsal's
    let source =
        Source { file: config.clone(), role: Role::All, flags: Vec::new(), environment: false };
    let begun = Begun::read(source).map_err(|error| Usage(error.to_string()))?;
    let telemetry = Telemetry::local();
    let mut running =
        app::start(&begun.loaded.settings, Role::All, &telemetry).await.map_err(start_error)?;
    running.follow(begun, signal(SignalKind::hangup())?);
    let engine = running.engine().context("role all has a core")?;
    engine.change_standing(StandingChange::ImportComplete).await?;
    let bridge = running.bridge.context("role all has a bridge")?;

    // made first, so that the callers know it; the settings do not
    let step = |step, client: Option<(&str, &Path)>| Rotate::rehearsed(step, &config, client);
    let staged = folder.join("wallet-2.private.pem");
    let next = PrivateKey::generate(2_048)?;
    create(&staged, &next.pkcs8_pem()?, 0o600)?;
    let load = Arc::new(Load {
        url: format!("http://{bridge}/aps/api/v1/payments/cancelPayment").parse()?,
        keys: theirs,
        wallet: [ours.public().clone(), next.public().clone()],
        moved: AtomicBool::new(false),
        over: AtomicBool::new(false),
        answers: AtomicUsize::new(0),
        by_new: AtomicUsize::new(0),
    });
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        callers.spawn(call(Arc::clone(&load)));
    }
    let alipayplus = Some((CLIENT, &*new_public));
    let walked = async {
        load.goes_on(&mut callers, false).await?;
        writeln!(out, "ours    the old key signs under load")?;
        change(&running, &step(Step::Stage, None)).await?;
        step(Step::Verify, None).quietly()?;
        load.goes_on(&mut callers, false).await?;
        writeln!(out, "ours    staged and verified: the old key still signs")?;
        change(&running, &step(Step::Stage, alipayplus)).await?;
        step(Step::Verify, alipayplus).quietly()?;
        load.moved.store(true, Ordering::SeqCst);
        load.goes_on(&mut callers, false).await?;
        writeln!(out, "theirs  staged: requests with the new key are taken beside the old one")?;
        change(&running, &step(Step::Promote, None)).await?;
        load.goes_on(&mut callers, true).await?;
        writeln!(out, "ours    promoted: the new key signs")?;
        change(&running, &step(Step::Promote, alipayplus)).await?;
        change(&running, &step(Step::Retire, alipayplus)).await?;
        change(&running, &step(Step::Retire, None)).await?;
        load.goes_on(&mut callers, true).await?;
        writeln!(out, "both    the old keys are retired")?;
        anyhow::Ok(())
    };
    let walked = walked.await;
    load.over.store(true, Ordering::SeqCst);
    let mut failed = None;
    while let Some(ended) = callers.join_next().await {
        if let Err(error) = ended.context("a caller broke").and_then(|ended| ended) {
            failed = Some(error);
        }
    }
    running.stop().await;
    walked?;
    if let Some(error) = failed {
        return Err(error.context("a request failed"));
    }
    let answers = load.answers.load(Ordering::SeqCst);
    writeln!(out, "{answers} requests, every answer S and its signature verified; none failed")?;
    Ok(())
}

/// Takes a step, and waits until the service has what it changed.
async fn change(running: &Running, step: &Rotate) -> Result<()> {
    let applied = || running.reloads().applied.load(Ordering::Relaxed);
    let (before, begun) = (applied(), Instant::now());
    step.quietly()?;
    while applied() == before {
        let refused = running.reloads().refused.load(Ordering::Relaxed);
        ensure!(refused == 0, "the service refused the settings");
        ensure!(begun.elapsed() < PATIENCE, "the service does not take the settings");
        time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

impl Load {
    /// Waits until there are so many more answers, by our new key or by the old one alone.
    async fn goes_on(&self, callers: &mut JoinSet<Result<()>>, by_new: bool) -> Result<()> {
        let begun = Instant::now();
        let counted = || {
            let count = if by_new { &self.by_new } else { &self.answers };
            count.load(Ordering::SeqCst)
        };
        let enough = counted().saturating_add(ANSWERS);
        while counted() < enough {
            if let Some(ended) = callers.try_join_next() {
                ended.context("a caller broke")?.context("a request failed")?;
            }
            ensure!(begun.elapsed() < PATIENCE, "the load does not go on");
            time::sleep(Duration::from_millis(20)).await;
        }
        let early = !by_new && self.by_new.load(Ordering::SeqCst) > 0;
        ensure!(!early, "the new key signed before it was promoted");
        Ok(())
    }
}

/// One of Alipay+'s callers: signs with the old key or the new one, and verifies with the key that the answer names.
async fn call(load: Arc<Load>) -> Result<()> {
    while !load.over.load(Ordering::SeqCst) {
        let [old, new] = &load.keys;
        let moved = load.moved.load(Ordering::SeqCst);
        let caller = Caller {
            client_id: CLIENT.to_owned(),
            key: if moved { new.clone() } else { old.clone() },
            key_version: if moved { "2" } else { "1" }.to_owned(),
            peer_key: None,
            ca_file: None,
            timeout: Duration::from_secs(8),
        };
        let body = format!(
            "{{\"acquirerId\":\"a\",\"pspId\":\"p\",\"paymentRequestId\":\"{:016x}\"}}",
            rand::random::<u64>()
        );
        let signed = caller.sign(&load.url, body)?;
        let answered = caller.send(&signed).await?;
        ensure!(answered.result_status().as_deref() == Some("S"), "answered {}", answered.body);
        let version = answered.key_version().context("an answer is not signed")?;
        let [first, second] = &load.wallet;
        let (key, by_new) = match &*version {
            "1" => (first, false),
            "2" => (second, true),
            other => bail!("an answer is signed by {other}, which was not announced"),
        };
        ensure!(answered.is_signed_by(key, &signed, CLIENT), "an answer's signature is wrong");
        load.answers.fetch_add(1, Ordering::SeqCst);
        if by_new {
            load.by_new.fetch_add(1, Ordering::SeqCst);
        }
    }
    Ok(())
}

fn settings(folder: &Path) -> String {
    format!(
        r#"# A rehearsal: throw-away keys.
grpc.listen = "127.0.0.1:0"
bridge.listen = "127.0.0.1:0"
admin.listen = "127.0.0.1:0"
store.url = "sqlite://{}/state.db"
tokens.hash_key_files = ["token-hash.hex"]
reload.interval = "50ms"

[[identity.keys]]
version = "1"
file = "wallet-1.private.pem"

[[clients]]
id = "{CLIENT}"
psp_ids = ["*"]
rate = {{ per_second = 100000, burst = 100000 }}

[[clients.keys]]
version = "1"
public_key_file = "alipayplus-1.pem"
"#,
        folder.display()
    )
}
