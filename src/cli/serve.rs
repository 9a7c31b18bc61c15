//! `serve`: the service.

use std::{path::PathBuf, process};

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use super::{Failure, Usage};
use crate::{
    app::{self, Running},
    config::{LogFormat, Settings, environment},
    telemetry,
};

/// Runs the service until SIGTERM or SIGINT, then drains; a second signal ends it at once
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
    role: Role,
    /// One setting, as `limits.max_in_flight=100`; wins over file and environment; may be repeated
    #[arg(long = "set", value_name = "SETTING=VALUE")]
    set: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Role {
    /// Both fronts and the core
    All,
}

impl Serve {
    /// Runs it.
    pub async fn run(self) -> anyhow::Result<()> {
        let Role::All = self.role;
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
        let loaded = Settings::load(Some(&self.config), environment(), &flags)
            .map_err(|error| Usage(error.to_string()))?;
        let format = match loaded.settings.telemetry.log_format {
            LogFormat::Json => telemetry::Format::Json,
            LogFormat::Text => telemetry::Format::Text,
        };
        telemetry::start(format, &loaded.settings.telemetry.log_level);
        for warning in loaded.warnings() {
            tracing::warn!("{warning}");
        }
        let running = start(&loaded.settings).await?;
        if running.engine.onboarding().await.unwrap_or(true) {
            tracing::warn!(
                "the store is in onboarding: unknown payments and tokens are answered U until `alipayplus-cancel import complete`"
            );
        }
        until_told().await?;
        running.stop().await;
        tracing::info!("stopped");
        Ok(())
    }
}

/// Starts the service, and says where it listens.
pub(super) async fn start(settings: &Settings) -> anyhow::Result<Running> {
    let running = app::start(settings).await.map_err(|error| {
        let configuration = error.is_configuration();
        let error = anyhow::Error::from(error);
        // `{:#}` has the whole chain
        if configuration { Usage(format!("{error:#}")).into() } else { error }
    })?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        grpc = %running.grpc,
        bridge = %running.bridge,
        admin = %running.admin,
        "ready"
    );
    Ok(running)
}

/// Waits for SIGTERM or SIGINT; from then on another one ends the process at once.
pub(super) async fn until_told() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("draining; another signal ends at once");
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        process::exit(i32::from(Failure::STATUS));
    });
    Ok(())
}
