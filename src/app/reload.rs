//! Settings, keys and certificates that change while the service runs, without dropping a request.
//!
//! All or nothing: what was read is checked as at a start, and replaces what runs only if all of it can be used. Whatever
//! is wrong, the old settings keep serving; the log says why, the metrics that it is so, and the next change is tried
//! again.
//!
//! What files hold is compared, not when they were written: Kubernetes swaps symbolic links of whole folders. A change is
//! acted upon once a second look finds the same, so that half of a copy is not taken for the whole.

use std::{
    collections::BTreeMap,
    fs, mem,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use aws_lc_rs::digest;
use tokio::{signal::unix::Signal, task::JoinHandle, time};
use zeroize::Zeroizing;

use super::{
    StartError,
    beside::Beside,
    material::{Material, Tls, observe},
};
use crate::{
    bridge::Bridge,
    config::{ConfigError, Loaded, Role, Settings, environment},
    engine::{Engine, HashRing},
    grpc::{channel::Channel, front::Door},
    layer::{
        caller_rate::{CallerRates, Rule},
        identity::Permissions,
        overload::{InFlight, Overload},
    },
    listen::{Bodies, BodyRoom},
    telemetry::{Metrics, label, metrics::reached},
};

/// Where settings come from, so that they can be read again.
#[derive(Clone, Debug)]
pub struct Source {
    /// The file.
    pub file: PathBuf,
    /// What runs in this process.
    pub role: Role,
    /// What the command line sets.
    pub flags: Vec<(String, String)>,
    /// Whether the environment's variables count.
    pub environment: bool,
}

impl Source {
    /// Reads them.
    pub fn load(&self) -> Result<Loaded, ConfigError> {
        let variables = self.environment.then(environment).into_iter().flatten();
        Settings::load_as(self.role, Some(&self.file), variables, &self.flags)
    }
}

/// Why a reload is refused.
#[derive(Debug, thiserror::Error)]
enum Refused {
    /// The settings are none.
    #[error("{0}")]
    Settings(ConfigError),
    /// What they name cannot be used.
    #[error("{0}")]
    Material(String),
    /// They change what only a start can.
    #[error("only a restart can change {0}; restart, or take the change back")]
    Restart(String),
    /// They, or what they name, do not answer.
    #[error("the settings, a file or a token that they name are not read in {0:?}; trying again")]
    Late(Duration),
    /// They change again and again.
    #[error("the files change while they are read; trying again")]
    Moving,
}

/// What came of reloads, for metrics.
#[derive(Debug, Default)]
pub struct Outcomes {
    /// Reloads that took effect.
    pub applied: AtomicU64,
    /// Reloads that were refused.
    pub refused: AtomicU64,
    /// When the settings that serve were read, in seconds since 1970.
    pub last_success_s: AtomicU64,
    /// Whether there are newer ones that were refused.
    pub stale: AtomicBool,
}

impl Outcomes {
    pub(super) fn begun() -> Arc<Self> {
        let outcomes = Self::default();
        outcomes.last_success_s.store(now_s(), Ordering::Relaxed);
        Arc::new(outcomes)
    }

    fn note(&self, applied: bool) {
        if applied {
            self.applied.fetch_add(1, Ordering::Relaxed);
            self.last_success_s.store(now_s(), Ordering::Relaxed);
        } else {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        self.stale.store(!applied, Ordering::Relaxed);
    }

    /// As metrics.
    pub(super) fn observe(self: &Arc<Self>, metrics: &Metrics) {
        let here = Arc::clone(self);
        metrics.reloads.from(move || {
            vec![
                (vec![label("result", "applied")], reached(&here.applied)),
                (vec![label("result", "refused")], reached(&here.refused)),
            ]
        });
        let here = Arc::clone(self);
        metrics.reload_time.ask(move || {
            let then = here.last_success_s.load(Ordering::Relaxed);
            vec![(Vec::new(), i64::try_from(then).unwrap_or(i64::MAX))]
        });
        let here = Arc::clone(self);
        metrics
            .settings_stale
            .ask(move || vec![(Vec::new(), i64::from(here.stale.load(Ordering::Relaxed)))]);
    }
}

fn now_s() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or(0)
}

/// What a reload replaces under the requests that run.
pub(super) struct Live {
    pub(super) front: Option<LiveFront>,
    pub(super) core: Option<(LiveCore, Engine)>,
    pub(super) channel: Option<Channel>,
    /// The console's certificates, where it has some.
    pub(super) console_tls: Option<Arc<ArcSwap<rustls::ServerConfig>>>,
}

/// Of the JSON front.
pub(super) struct LiveFront {
    pub(super) bridge: Bridge,
    pub(super) tls: Option<Arc<ArcSwap<rustls::ServerConfig>>>,
}

/// Of the gRPC front and the core.
pub(super) struct LiveCore {
    pub(super) door: Door,
    pub(super) bodies: Bodies,
    pub(super) tls: Option<Arc<ArcSwap<rustls::ServerConfig>>>,
    /// What the engine hashes tokens with; a reload does not touch it.
    ring: Vec<[u8; 16]>,
}

impl LiveCore {
    pub(super) fn new(
        permissions: Permissions,
        rates: Vec<Rule>,
        room: InFlight,
        bodies: BodyRoom,
        tls: Tls,
        ring: &HashRing,
    ) -> Self {
        Self {
            door: Door {
                permissions: Arc::new(ArcSwap::from_pointee(permissions)),
                overload: Overload::new(room),
                rates: CallerRates::new(rates),
            },
            bodies: Bodies::new(bodies),
            tls: tls.map(|tls| Arc::new(ArcSwap::new(tls))),
            ring: ring.fingerprints().clone(),
        }
    }
}

impl Live {
    /// Replaces all of it. Nothing here can fail.
    fn replace(&self, material: Material) {
        let Material { front, core, core_tls, console_tls, ends: _ } = material;
        if let (Some(live), Some(front)) = (&self.front, front) {
            live.bridge.reload(front.setup);
            swap(live.tls.as_ref(), front.tls);
        }
        if let (Some((live, engine)), Some(core)) = (&self.core, core) {
            engine.set_tombstones(core.tombstones);
            live.door.permissions.store(Arc::new(core.permissions));
            live.door.rates.reload(core.rates);
            live.door.overload.resize(core.room);
            live.bodies.resize(core.bodies);
            swap(live.tls.as_ref(), core.tls);
        }
        swap(self.console_tls.as_ref(), console_tls);
        if let (Some(channel), Some(tls)) = (&self.channel, core_tls) {
            channel.set_tls(tls);
        }
    }

    /// Whether these hash keys are those that the engine hashes with.
    fn has_ring(&self, material: &Material) -> bool {
        let now = material.core.as_ref().map(|core| core.ring.fingerprints());
        self.core.as_ref().zip(now).is_none_or(|((live, _), now)| *now == live.ring)
    }
}

fn swap(live: Option<&Arc<ArcSwap<rustls::ServerConfig>>>, tls: Tls) {
    // a front does not change between plain text and TLS: that needs a restart
    if let (Some(live), Some(tls)) = (live, tls) {
        live.store(tls);
    }
}

/// Settings whose change takes effect without a restart: by the beginning of their names.
const LIVE: [&str; 16] = [
    "bridge.core_tls.",
    "bridge.tls.",
    "clients.",
    "console.tls.",
    "grpc.callers.",
    "grpc.max_in_flight",
    "grpc.rates.",
    "grpc.tls.",
    "identity.keys.",
    "limits.body_",
    "limits.max_in_flight",
    "limits.replicas",
    "limits.request_time_skew",
    "limits.trusted_proxies",
    "limits.unproven_per_source.",
    "reload.",
];

/// From a change to the second look at it.
const SETTLED: Duration = Duration::from_millis(500);
/// For one reading of everything, tokens and all.
const READ_WAIT: Duration = Duration::from_secs(30);
/// How often files that keep changing are looked at before one goes on without them.
const LOOKS_MAX: usize = 20;

/// What files hold, told apart by digests: absent for one that cannot be read.
type Look = BTreeMap<PathBuf, Option<[u8; 32]>>;

/// The task that keeps the settings up to date.
pub struct Reloader {
    source: Source,
    live: Live,
    running: Loaded,
    outcomes: Arc<Outcomes>,
    metrics: Metrics,
    beside: Beside,
    /// What was last tried, whatever came of it.
    tried: Look,
}

/// Settings that were read, and what tells later whether they changed.
pub struct Begun {
    source: Source,
    /// The settings.
    pub loaded: Loaded,
    look: Look,
}

impl Begun {
    /// Reads the settings of a service that is about to start.
    pub fn read(source: Source) -> Result<Self, ConfigError> {
        // looked at before they are read again: what changes from now on is noticed
        let look = look(&files(&source, &source.load()?, &Look::new()));
        let loaded = source.load()?;
        Ok(Self { source, loaded, look })
    }
}

/// Every file that counts: of these settings, and of those tried before, which may be mended where they are.
fn files(source: &Source, loaded: &Loaded, before: &Look) -> Vec<PathBuf> {
    // what belongs to the store is read at a start alone
    let named = loaded.files().filter(|(setting, _)| !setting.starts_with("store."));
    let mut files: Vec<PathBuf> = named.map(|(_, file)| file.to_owned()).collect();
    files.push(source.file.clone());
    files.extend(before.keys().cloned());
    files.sort();
    files.dedup();
    files
}

fn look(files: &[PathBuf]) -> Look {
    let digest = |file: &PathBuf| {
        let bytes = Zeroizing::new(fs::read(file).ok()?);
        digest::digest(&digest::SHA256, &bytes).as_ref().try_into().ok()
    };
    files.iter().map(|file| (file.clone(), digest(file))).collect()
}

impl Reloader {
    pub(super) fn new(
        begun: Begun,
        live: Live,
        outcomes: Arc<Outcomes>,
        metrics: &Metrics,
    ) -> Self {
        let Begun { source, loaded, look } = begun;
        let metrics = metrics.clone();
        let beside = Beside::new(READ_WAIT);
        Self { source, live, running: loaded, outcomes, metrics, beside, tried: look }
    }

    /// Follows the files, and the signal, until it is aborted.
    pub(super) fn keep(mut self, mut hang_up: Signal) -> JoinHandle<()> {
        tokio::spawn(async move {
            loop {
                let interval = self.running.settings.reload.interval;
                let told = tokio::select! {
                    Some(()) = hang_up.recv() => true,
                    () = pause(interval) => false,
                };
                if told {
                    tracing::info!("SIGHUP: reading the settings again");
                } else if !self.has_changed(interval.min(SETTLED)).await {
                    continue;
                }
                self.reload().await;
            }
        })
    }

    /// Whether there is something new, and it stays the same for a moment.
    async fn has_changed(&self, settled: Duration) -> bool {
        let Some(mut seen) = self.look().await else { return false };
        if seen == self.tried {
            return false;
        }
        for _ in 0..LOOKS_MAX {
            time::sleep(settled).await;
            let Some(again) = self.look().await else { return false };
            if again == seen {
                return seen != self.tried;
            }
            seen = again;
        }
        tracing::warn!(
            "the settings or files they name change all the time; waiting until they do not"
        );
        false
    }

    async fn look(&self) -> Option<Look> {
        let files: Vec<PathBuf> = self.tried.keys().cloned().collect();
        self.beside.run(move || look(&files)).await
    }

    async fn reload(&mut self) {
        let before = self.tried.clone();
        let read = self.read().await;
        let changed: Vec<String> = self
            .tried
            .iter()
            .filter(|(file, digest)| before.get(*file) != Some(digest))
            .map(|(file, _)| file.display().to_string())
            .collect();
        let files = changed.join(", ");
        match read.and_then(|(loaded, material)| self.replace(loaded, material)) {
            Ok(settings) => {
                self.outcomes.note(true);
                tracing::info!(settings, files, "settings were reloaded");
                for warning in self.running.warnings() {
                    tracing::warn!("{warning}");
                }
            }
            Err(refused) => {
                self.outcomes.note(false);
                let reason = refused.to_string();
                tracing::error!(
                    reason,
                    files,
                    "the new settings are refused; the old ones keep serving"
                );
            }
        }
    }

    /// Reads everything, so that all of it is of one time.
    async fn read(&mut self) -> Result<(Loaded, Material), Refused> {
        let late = || Refused::Late(READ_WAIT);
        let mut before = self.look().await.ok_or_else(late)?;
        for _ in 0..LOOKS_MAX {
            let (source, tried) = (self.source.clone(), self.tried.clone());
            let read = self.beside.run(move || {
                let loaded = match source.load() {
                    Ok(loaded) => loaded,
                    Err(error) => {
                        // of the settings file alone it is known that it matters
                        let files: Vec<PathBuf> = tried.keys().cloned().collect();
                        return (look(&files), Err(Refused::Settings(error)));
                    }
                };
                let files = files(&source, &loaded, &tried);
                let material = Material::read(&loaded.settings, source.role)
                    .map_err(|error| Refused::Material(said(&loaded, &error)));
                (look(&files), material.map(|material| (loaded, material)))
            });
            let (after, read) = read.await.ok_or_else(late)?;
            self.tried.clone_from(&after);
            if after == before {
                return read;
            }
            before = after;
        }
        // looks like nothing that was seen, so the next look finds a change
        self.tried.insert(self.source.file.clone(), None);
        Err(Refused::Moving)
    }

    /// Puts them in place; says which settings changed.
    fn replace(&mut self, loaded: Loaded, mut material: Material) -> Result<String, Refused> {
        let changed = loaded.changed_since(&self.running);
        let (now, then) = (&loaded.settings, &self.running.settings);
        let is_live = |name: &str| LIVE.iter().any(|live| name.starts_with(live));
        let mut fixed: Vec<String> = changed
            .iter()
            .filter(|(name, _)| !is_live(name))
            .map(|(name, origin)| format!("{name} ({origin})"))
            .collect();
        let mut fix = |changes: bool, what: &str| {
            if changes && !fixed.iter().any(|name| name.starts_with(what)) {
                fixed.push(what.to_owned());
            }
        };
        // a password in the URL is not printed
        fix(now.store != then.store, "store.");
        fix(now.grpc.tls.is_some() != then.grpc.tls.is_some(), "grpc.tls");
        fix(now.bridge.core_tls.is_some() != then.bridge.core_tls.is_some(), "bridge.core_tls");
        fix(now.bridge.tls.is_some() != then.bridge.tls.is_some(), "bridge.tls");
        fix(!self.live.has_ring(&material), "tokens.hash_key_files");
        if !fixed.is_empty() {
            return Err(Refused::Restart(fixed.join(", ")));
        }
        let changed: Vec<&str> = changed.iter().map(|(name, _)| name.as_str()).collect();
        let changed = changed.join(", ");
        let ends = mem::take(&mut material.ends);
        self.live.replace(material);
        observe(&loaded.settings, self.source.role, &ends, &self.metrics);
        let files = files(&self.source, &loaded, &Look::new());
        self.tried.retain(|file, _| files.contains(file));
        self.running = loaded;
        Ok(changed)
    }
}

/// An error of the material with the line of the setting that names the file.
fn said(loaded: &Loaded, error: &StartError) -> String {
    let text = crate::store::chain(error);
    let setting = text.split_once(':').map_or(&*text, |(setting, _)| setting);
    let of_list = || setting.rsplit_once('.').and_then(|(list, _)| loaded.origin(list));
    match loaded.origin(setting).or_else(of_list) {
        Some(origin) => format!("{origin}: {text}"),
        None => text,
    }
}

async fn pause(interval: Duration) {
    if interval.is_zero() {
        std::future::pending::<()>().await;
    }
    time::sleep(interval).await;
}
