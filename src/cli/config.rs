//! `config check` and `config print`: what settings are in effect, and whether the service would start with them.

use std::{
    fmt::Write as _,
    fs::File,
    io::{self, Read as _, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use super::{Out, role::RoleName};
use crate::{
    app,
    config::{ConfigError, Loaded, Role, Settings, environment},
};

/// Exit status of a wrong usage or configuration.
const WRONG_CONFIGURATION: u8 = 2;

/// Checks a settings file, or prints the settings in effect.
#[derive(Clone, Debug, clap::Args)]
pub struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum ConfigCommand {
    /// Checks the settings, and that every file that the role needs can be read; exit status 2 if not
    Check(FileArgs),
    /// Prints the settings in effect as TOML, with where each came from and without secrets
    Print(FileArgs),
}

#[derive(Clone, Debug, clap::Args)]
struct FileArgs {
    /// The settings file; environment variables ALIPAYPLUS_CANCEL__SECTION__KEY win over it
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// What they are for
    #[arg(long, value_enum, default_value_t)]
    role: RoleName,
}

/// What goes to the two outputs.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    out: String,
    /// Does not make it a failure.
    warnings: String,
}

impl ConfigArgs {
    /// Does it, over the environment of this process.
    pub fn run(&self) -> ExitCode {
        let (said, code) = match self.answer(environment()) {
            Ok(Answer { out, warnings }) => {
                let warned = io::stderr().write_all(warnings.as_bytes());
                (warned.and(Out::new().write_all(out.as_bytes())), ExitCode::SUCCESS)
            }
            Err(problems) => {
                let said = writeln!(io::stderr(), "{problems}");
                (said, ExitCode::from(WRONG_CONFIGURATION))
            }
        };
        said.map_or(ExitCode::FAILURE, |()| code)
    }

    fn answer(&self, env: impl Iterator<Item = (String, String)>) -> Result<Answer, String> {
        let told = |error: ConfigError| error.to_string();
        match &self.command {
            ConfigCommand::Check(FileArgs { config, role }) => {
                let role = Role::from(*role);
                let loaded = Settings::load_as(role, Some(config), env, &[]).map_err(told)?;
                let problems = unreadable_files(&loaded);
                if !problems.is_empty() {
                    return Err(problems.join("\n"));
                }
                app::check(&loaded.settings, role)
                    .map_err(|error| format!("{:#}", anyhow::Error::from(error)))?;
                Ok(Answer { out: summary(config, &loaded), warnings: warnings(&loaded) })
            }
            ConfigCommand::Print(FileArgs { config, role }) => {
                let role = Role::from(*role);
                let loaded = Settings::load_as(role, Some(config), env, &[]).map_err(told)?;
                Ok(Answer { out: loaded.print(), warnings: warnings(&loaded) })
            }
        }
    }
}

fn warnings(loaded: &Loaded) -> String {
    loaded.warnings().iter().fold(String::new(), |text, one| format!("{text}warning: {one}\n"))
}

fn unreadable_files(loaded: &Loaded) -> Vec<String> {
    let problem = |(setting, file): (String, &Path)| {
        let why = read(file).err()?;
        let origin = loaded.origin(&setting).or_else(|| {
            // of a list, which has one origin as a whole
            setting.rsplit_once('.').and_then(|(list, _)| loaded.origin(list))
        });
        let mut text = origin.map_or_else(String::new, |origin| format!("{origin}: "));
        // writing to a text cannot fail
        let _written = write!(text, "{setting}: cannot read {}: {why}", file.display());
        Some(text)
    };
    loaded.files().filter_map(problem).collect()
}

/// Reads a little of it: a folder can be opened, too.
fn read(file: &Path) -> io::Result<()> {
    let read = File::open(file)?.read(&mut [0])?;
    if read == 0 { Err(io::Error::other("it is empty")) } else { Ok(()) }
}

fn summary(file: &Path, loaded: &Loaded) -> String {
    let Settings { grpc, bridge, admin, clients, identity, .. } = &loaded.settings;
    let role = loaded.role;
    let grpc = role.has_core().then(|| format!("grpc on {}, ", grpc.listen));
    let bridge = role.has_bridge().then(|| format!("bridge on {}, ", bridge.listen));
    format!(
        "ok: {}: {}{}admin on {}; {} clients, {} signing keys, {} files can be read\n",
        file.display(),
        grpc.unwrap_or_default(),
        bridge.unwrap_or_default(),
        admin.listen,
        clients.len(),
        identity.keys.len(),
        loaded.files().count(),
    )
}

#[cfg(test)]
mod tests {
    use std::fs;

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        config: ConfigArgs,
    }

    const SETTINGS: &str = "tokens.hash_key_files = [\"hash\", \"none\"]\n[[identity.keys]]\n\
                            version = \"1\"\nfile = \"key\"\n";

    fn answer(command: &str, file: &Path, env: &[(&str, &str)]) -> Result<Answer, String> {
        let file = file.to_str().unwrap();
        let cli = Cli::try_parse_from(["config", command, "--config", file]).unwrap();
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        cli.config.answer(env.iter().map(own))
    }

    #[test]
    fn check_names_every_file_that_cannot_be_read_and_says_ok_once_all_can() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("settings.toml");
        fs::write(&file, SETTINGS).unwrap();
        fs::write(folder.path().join("hash"), "").unwrap();
        fs::create_dir(folder.path().join("key")).unwrap();
        let problems = answer("check", &file, &[]).unwrap_err();
        let lines: Vec<_> = problems.lines().collect();
        assert_eq!(lines.len(), 3, "{problems}");
        let shown = file.display();
        for (line, part) in lines.iter().zip([
            format!("{shown}:4: identity.keys.0.file: cannot read "),
            format!("{shown}:1: tokens.hash_key_files.0: cannot read "),
            format!("{shown}:1: tokens.hash_key_files.1: cannot read "),
        ]) {
            assert!(line.starts_with(&part), "{line}");
        }
        assert!(lines[1].ends_with("it is empty"), "{problems}");

        fs::write(folder.path().join("hash"), "x".repeat(32)).unwrap();
        fs::write(folder.path().join("none"), "y".repeat(32)).unwrap();
        fs::write(folder.path().join("good"), "no key").unwrap();
        let env = [(
            "ALIPAYPLUS_CANCEL__IDENTITY__KEYS__0__FILE",
            folder.path().join("good").to_str().unwrap().to_owned(),
        )];
        let env: Vec<_> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let problem = answer("check", &file, &env).unwrap_err();
        assert!(problem.starts_with("identity.keys.0.file: "), "{problem}");
        assert_eq!(problem.matches("not valid base64").count(), 1, "{problem}");

        let key = crate::bridge::keys::PrivateKey::generate(2048).unwrap();
        fs::write(folder.path().join("good"), key.pkcs8_pem().unwrap().as_bytes()).unwrap();
        let Answer { out, warnings } = answer("check", &file, &env).unwrap();
        assert!(out.starts_with(&format!("ok: {shown}: grpc on 127.0.0.1:50051, ")), "{out}");
        assert!(out.ends_with("; 0 clients, 1 signing keys, 3 files can be read\n"), "{out}");
        assert!(warnings.starts_with("warning: clients (default): there is none"), "{warnings}");
    }

    #[test]
    fn print_shows_the_settings_without_reading_the_files_they_name() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("settings.toml");
        fs::write(&file, SETTINGS).unwrap();
        let env = [("ALIPAYPLUS_CANCEL__LIMITS__QUEUE", "5")];
        let Answer { out, .. } = answer("print", &file, &env).unwrap();
        assert!(out.contains("queue = 5  # ALIPAYPLUS_CANCEL__LIMITS__QUEUE\n"), "{out}");
    }

    #[test]
    fn both_tell_what_is_wrong_with_the_settings() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("settings.toml");
        fs::write(&file, format!("{SETTINGS}[limits]\nque = 5")).unwrap();
        for command in ["check", "print"] {
            let problem = answer(command, &file, &[]).unwrap_err();
            assert!(
                problem.ends_with(":6: limits.que: no such setting; did you mean `limits.queue`?")
            );
        }
    }

    #[test]
    fn a_file_must_be_named() {
        assert!(Cli::try_parse_from(["config", "check"]).is_err());
    }
}
