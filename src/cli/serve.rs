//! `serve`: the service.

use std::{path::PathBuf, process};

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Failure, Usage, role::RoleName, start_error};
use crate::{
    app::{self, Begun, Running, Source},
    config::{Role, Settings},
    telemetry::Telemetry,
};

/// Runs the service until SIGTERM or SIGINT, then drains; a second signal ends it at once. SIGHUP reads the settings again
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Example:
  alipayplus-cancel config check --config /etc/alipayplus-cancel.toml
  alipayplus-cancel serve --config /etc/alipayplus-cancel.toml

A new store starts in onboarding: what is unknown is answered U (ask again) until `import complete` says that the \
wallet's history is loaded, or that there is none.")]
pub struct Serve {
    /// The settings file; environment variables ALIPAYPLUS_CANCEL__SECTION__KEY win over it
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// What runs in this process
    #[arg(long, value_enum, default_value = "all")]
    role: RoleName,
    /// One setting, as `limits.max_in_flight=100`; wins over file and environment; may be repeated
    #[arg(long = "set", value_name = "SETTING=VALUE")]
    set: Vec<String>,
}

impl Serve {
    /// Runs it.
    pub async fn run(self) -> anyhow::Result<()> {
        let role = Role::from(self.role);
        let flags = self
            .set
            .iter()
            .map(|set| match set.split_once('=') {
                Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
                None => {
                    Err(Usage(format!("--set {set}: expected SETTING=VALUE, as limits.batch=64")))
                }
            })
            .collect::<Result<Vec<_>, _>>()?;
        let source = Source { file: self.config, role, flags, environment: true };
        let begun = Begun::read(source).map_err(|error| Usage(error.to_string()))?;
        let loaded = &begun.loaded;
        let telemetry = app::telemetry(&loaded.settings).map_err(start_error)?;
        for warning in loaded.warnings() {
            tracing::warn!("{warning}");
        }
        allow_connections(&loaded.settings);
        let (mut signals, hang_up) = Signals::listen()?;
        // the database may be waited for, and the wait must end when it is told to
        let mut running = tokio::select! {
            biased;
            running = start(&loaded.settings, role, &telemetry) => running?,
            () = signals.told() => return Ok(()),
        };
        if let Some(engine) = running.engine()
            && engine.standing().await.is_ok_and(|standing| standing.onboarding)
        {
            tracing::warn!(
                "the store is in onboarding: unknown payments and tokens are answered U until `alipayplus-cancel import complete`"
            );
        }
        running.follow(begun, hang_up);
        signals.told().await;
        signals.again_ends_at_once();
        running.stop().await;
        tracing::info!("stopped");
        // last, so that the line above goes out too; on a thread of its own, because it waits for the collector
        tokio::task::spawn_blocking(move || telemetry.stop()).await.context("telemetry")?;
        Ok(())
    }
}

/// File handles apart from connections: the store, its readers, listeners, logs.
const OTHER_FILES: u64 = 128;

/// Raises the limit of file handles as far as it may be, and says if that is too little: where none is left, nobody is
/// accepted any more, the probes among them.
fn allow_connections(settings: &Settings) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    // two fronts that may each be full
    let connections = u64::try_from(settings.limits.connections).unwrap_or(u64::MAX);
    let needed = connections.saturating_mul(2).saturating_add(OTHER_FILES);
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of file handles could not be raised");
    }
    if let Some(current) = getrlimit(Resource::Nofile).current.filter(|current| *current < needed) {
        tracing::warn!(
            limit = current,
            needed,
            "fewer file handles than limits.connections may need; raise `ulimit -n` or lower limits.connections"
        );
    }
}

/// Starts the service, and says where it listens.
pub(super) async fn start(
    settings: &Settings,
    role: Role,
    telemetry: &Telemetry,
) -> anyhow::Result<Running> {
    let running = app::start(settings, role, telemetry).await.map_err(start_error)?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        grpc = running.grpc.map(tracing::field::display),
        bridge = running.bridge.map(tracing::field::display),
        admin = %running.admin,
        console = running.console.map(tracing::field::display),
        "ready"
    );
    Ok(running)
}

/// The signals that end the service. Listened for from the beginning, so that none is lost on the way.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From here on none of them ends the process by itself, and neither does SIGHUP, the other one.
    pub(super) fn listen() -> anyhow::Result<(Self, Signal)> {
        let terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        let interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
        let hang_up = signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?;
        Ok((Self { terminate, interrupt }, hang_up))
    }

    /// Waits for SIGTERM or SIGINT.
    pub(super) async fn told(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// From then on another one ends the process at once.
    pub(super) fn again_ends_at_once(mut self) {
        tracing::info!("draining; another signal ends at once");
        tokio::spawn(async move {
            self.told().await;
            process::exit(i32::from(Failure::STATUS));
        });
    }
}
