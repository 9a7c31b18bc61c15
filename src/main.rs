//! The binary: arguments → settings → telemetry → run → exit status.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use alipayplus_cancel::cli::{
    Failure, backup::Backup, call::Call, certify::Certify, config::ConfigArgs, doctor::Doctor,
    exit_status, feed::Feed, health::Health, import::Import, keys::Keys, migrate::Migrate,
    migrate_store::MigrateStore, no_core_dumps, openapi::OpenApi, panics_tell_no_values, print_all,
    proto::Proto, reconcile::Reconcile, sandbox::Sandbox, serve::Serve, simulate::Simulate,
    verify::Verify,
};
use anyhow::Context as _;
use clap::{CommandFactory as _, Parser};
use clap_complete::Shell;
use tokio::runtime::Builder;

/// An e-wallet's service for Alipay+ cancelPayment and cancelToken
#[derive(Debug, Parser)]
#[command(
    version = env!("ALIPAYPLUS_CANCEL_VERSION"),
    about,
    max_term_width = 110,
    after_help = "\
Begin with:
  alipayplus-cancel sandbox

Exit status: 0 good, 1 failed, 2 wrong usage or configuration."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Sandbox(Sandbox),
    Serve(Serve),
    Call(Box<Call>),
    Certify(Box<Certify>),
    Simulate(Box<Simulate>),
    Keys(Keys),
    Config(ConfigArgs),
    Doctor(Doctor),
    Health(Health),
    Import(Import),
    Migrate(Migrate),
    Backup(Backup),
    Verify(Verify),
    MigrateStore(MigrateStore),
    Reconcile(Reconcile),
    Feed(Feed),
    #[command(name = "openapi")]
    OpenApi(OpenApi),
    Proto(Proto),
    /// Prints a shell's completions
    #[command(after_help = COMPLETIONS_HELP)]
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// Writes manual pages, one for each command
    #[command(after_help = MAN_HELP)]
    Man {
        /// The folder to write them to; made if it is not there
        #[arg(long, value_name = "DIR", default_value = ".")]
        out: PathBuf,
    },
}

const COMPLETIONS_HELP: &str = "\
Examples:
  alipayplus-cancel completions bash >/etc/bash_completion.d/alipayplus-cancel
  alipayplus-cancel completions zsh >~/.zfunc/_alipayplus-cancel
  alipayplus-cancel completions fish >~/.config/fish/completions/alipayplus-cancel.fish";

const MAN_HELP: &str = "\
Example:
  alipayplus-cancel man --out /usr/local/share/man/man1 && man alipayplus-cancel-serve";

/// A request makes and drops some hundred small things, on one thread and another; glibc's
/// allocator took a fifth of a request's time, and mimalloc three times the memory under a flood of streams.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    no_core_dumps();
    panics_tell_no_values();
    let result = match Arguments::parse().command {
        Command::Config(config) => return config.run(),
        Command::Keys(keys) => keys.run(),
        Command::Doctor(doctor) => doctor.run(),
        Command::Health(health) => block_on(health.run()),
        Command::Import(import) => block_on(import.run()),
        Command::Verify(verify) => block_on(verify.run()),
        Command::Reconcile(reconcile) => block_on(reconcile.run()),
        Command::Migrate(migrate) => block_on(migrate.run()),
        Command::Backup(backup) => block_on(backup.run()),
        Command::MigrateStore(move_it) => block_on(move_it.run()),
        Command::Feed(feed) => block_on(feed.run()),
        Command::Sandbox(sandbox) => block_on(sandbox.run()),
        Command::Serve(serve) => block_on(serve.run()),
        Command::Call(call) => block_on(call.run()),
        Command::Certify(certify) => block_on(certify.run()),
        Command::Simulate(simulate) => block_on(simulate.run()),
        Command::OpenApi(openapi) => openapi.run(),
        Command::Proto(proto) => proto.run(),
        Command::Completions { shell } => {
            let mut command = Arguments::command();
            let (name, mut script) = (command.get_name().to_owned(), Vec::new());
            clap_complete::generate(shell, &mut command, name, &mut script);
            print_all(&script)
        }
        Command::Man { out } => man(&out),
    };
    let Err(error) = result else { return ExitCode::SUCCESS };
    if !error.is::<Failure>() {
        eprintln!("error: {error:#}");
    }
    ExitCode::from(exit_status(&error))
}

fn man(out: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    clap_mangen::generate_to(Arguments::command(), out)
        .with_context(|| format!("cannot write to {}", out.display()))
}

fn block_on(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime =
        Builder::new_multi_thread().enable_all().build().context("cannot start the runtime")?;
    let result = runtime.block_on(work);
    // whatever still hangs in the disk or a peer must not hold the process
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}
