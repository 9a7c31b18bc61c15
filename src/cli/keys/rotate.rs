//! `keys rotate`: our signing key, or a client's key, is replaced without a gap, step by step.
//!
//! Every step may be repeated: it looks at what the settings say now, changes what is left to change, and says what comes
//! next. It never removes a key's file, and changes the settings only with `--write`; without it, it prints the lines.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum};
use http::Uri;

use super::{
    Usage, create,
    held::{named, place_of, private, public, signed_by, signer},
    rehearse,
};
use crate::{
    app,
    bridge::keys::{PrivateKey, PublicKey},
    cli::role::RoleName,
    config::{
        self, ConfigError, IdentityKey, KeyState, Loaded, Origin, Settings,
        edit::{Edit, difference, edited},
        environment,
    },
    domain::time::Timestamp,
};

/// Replaces our signing key, or with --client a client's key, without a gap: stage, verify, promote, retire.
///
/// Without a step it says where the rotation stands. A step that is repeated changes nothing. What is to be changed in
/// the settings is printed as lines; --write changes the file in place, keeping comments, if the result holds. The
/// service takes it at SIGHUP, or when it notices (reload.interval).
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Our key:
  stage     makes the next pair, and has the service read it; give its public key to Alipay+
  verify    signs and verifies with both; with --url, asks a running service which of them signs
  promote   once Alipay+ has the public key: the new one signs, the old one is kept
  retire    once no answer of the old one is under way: it leaves the settings

A client's (Alipay+'s) key, with --client ID:
  stage     takes --public-key FILE beside the old one; requests may be signed with either
  verify    reads them all
  promote   once Alipay+ signs with the new one: the others end after --overlap-days
  retire    those that have ended leave the settings

Example:
  alipayplus-cancel keys rotate --rehearse
  alipayplus-cancel keys rotate stage --config /etc/alipayplus-cancel.toml --write

Exit status: 0 good, 1 a verification failed, 2 wrong usage or settings.")]
pub(super) struct Rotate {
    /// What to do; without it, where the rotation stands
    #[arg(value_enum)]
    step: Option<Step>,
    /// The settings file; environment variables ALIPAYPLUS_CANCEL__SECTION__KEY win over it
    #[arg(long, value_name = "FILE", required_unless_present = "rehearse")]
    config: Option<PathBuf>,
    /// The role that the settings are for
    #[arg(long, value_enum, default_value = "all")]
    role: RoleName,
    /// Change the settings file instead of printing the lines
    #[arg(long)]
    write: bool,
    /// Rotate this client's key, not ours
    #[arg(long, value_name = "ID")]
    client: Option<String>,
    /// The client's new public key, for stage: PEM or bare base64
    #[arg(long, value_name = "FILE", requires = "client")]
    public_key: Option<PathBuf>,
    /// keyVersion of the new key; by default the next number
    #[arg(long, value_name = "VERSION")]
    key_version: Option<String>,
    /// How long a client's old keys are still taken after promote
    #[arg(long, value_name = "DAYS", default_value_t = 7, requires = "client")]
    overlap_days: u32,
    /// The signed JSON endpoint of a running service (http://HOST:8080/aps/api), for verify of our key
    #[arg(long)]
    url: Option<Uri>,
    /// A certificate authority to trust beside the system's, PEM
    #[arg(long, value_name = "FILE", requires = "url")]
    ca_file: Option<PathBuf>,
    /// Do all of it once in a throw-away folder, with a service under load, and say how it went
    #[arg(long, conflicts_with_all = ["config", "step", "client", "write"])]
    rehearse: bool,
}

/// A step of a rotation.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The new key is read
    Stage,
    /// Both are tried
    Verify,
    /// The new key counts
    Promote,
    /// The old key goes
    Retire,
}

/// What a step says and changes.
#[derive(Debug, Default)]
struct Plan {
    /// What it found and did.
    said: Vec<String>,
    edits: Vec<Edit>,
    next: String,
}

impl Plan {
    fn next(text: impl Into<String>) -> Self {
        Self { next: text.into(), ..Self::default() }
    }

    fn saying(mut self, text: impl Into<String>) -> Self {
        self.said.push(text.into());
        self
    }

    fn changing(mut self, edit: Edit) -> Self {
        self.edits.push(edit);
        self
    }
}

impl Rotate {
    pub(super) fn run(&self, out: &mut impl Write) -> Result<()> {
        let Some(file) = &self.config else { return rehearse::run(out) };
        let loaded = self.load(file).map_err(|error| Usage(error.to_string()))?;
        let plan = match &self.client {
            None => self.ours(file, &loaded)?,
            Some(client) => self.theirs(file, &loaded, client)?,
        };
        for line in &plan.said {
            writeln!(out, "{line}")?;
        }
        if plan.edits.is_empty() {
            writeln!(out, "nothing to change in {}", file.display())?;
        } else {
            self.change(file, &plan.edits, out)?;
        }
        writeln!(out, "next: {}", plan.next)?;
        Ok(())
    }

    fn load(&self, file: &Path) -> Result<Loaded, ConfigError> {
        // a rehearsal is nobody else's business
        let variables = (!self.rehearse).then(environment).into_iter().flatten();
        Settings::load_as(self.role.into(), Some(file), variables, &[])
    }

    fn change(&self, file: &Path, edits: &[Edit], out: &mut impl Write) -> Result<()> {
        let wrong = |what: &str| Usage(format!("{}: {what}", file.display()));
        let before = fs::read_to_string(file).with_context(|| wrong("cannot be read"))?;
        let after = edited(&before, edits).map_err(|error| wrong(&error.to_string()))?;
        let lines = difference(&before, &after);
        if !self.write {
            writeln!(out, "change these lines of {} (or let --write do it):", file.display())?;
            write!(out, "{lines}")?;
            return Ok(());
        }
        let real = fs::symlink_metadata(file).with_context(|| wrong("cannot be read"))?;
        ensure!(!real.is_symlink(), wrong("is a link; change what it is made from"));
        let fresh = file.with_added_extension("new");
        if fresh.exists() {
            bail!(Usage(format!("{} is there already; take it away", fresh.display())));
        }
        create(&fresh, &after, 0o600)
            .with_context(|| format!("{} cannot be written", fresh.display()))?;
        let checked = self.load(&fresh);
        let good = checked.map_err(|error| error.to_string()).and_then(|loaded| {
            app::check(&loaded.settings, loaded.role)
                .map_err(|error| format!("{:#}", anyhow::Error::from(error)))
        });
        let placed = match good {
            Ok(()) => fs::set_permissions(&fresh, real.permissions())
                .and_then(|()| fs::rename(&fresh, file))
                .with_context(|| wrong("cannot be replaced")),
            Err(why) => {
                Err(Usage(format!("with this change the settings would not hold: {why}")).into())
            }
        };
        if placed.is_err()
            && let Err(error) = fs::remove_file(&fresh)
        {
            writeln!(out, "{} is left: {error}", fresh.display())?;
        }
        placed?;
        writeln!(out, "changed {}:", file.display())?;
        write!(out, "{lines}")?;
        Ok(())
    }

    /// A step of our own key.
    fn ours(&self, file: &Path, loaded: &Loaded) -> Result<Plan> {
        let keys = &loaded.settings.identity.keys;
        for place in 0..keys.len() {
            in_the_file(loaded, &format!("identity.keys.{place}.version"))?;
        }
        let of = |state| keys.iter().filter(move |key| key.state == state);
        let active = of(KeyState::Active).next().context("the settings have an active key")?;
        let staged = of(KeyState::Staged).next_back();
        let retired: Vec<&IdentityKey> = of(KeyState::Retired).collect();
        match self.step {
            None => Ok(stands(active, staged, &retired)),
            Some(Step::Stage) => self.stage_ours(file, keys, active, staged),
            Some(Step::Verify) => self.verify_ours(loaded, active),
            Some(Step::Promote) => match staged {
                None => Ok(Plan::next("retire, or stage the next one")
                    .saying(format!("no key is staged; {} signs", active.version))),
                Some(staged) => {
                    signer(keys, staged)?;
                    let set = |version: &str, state| Edit::SetIdentityState {
                        version: version.to_owned(),
                        state,
                    };
                    Ok(Plan::next(
                        "verify with --url until every replica signs with the new key; then retire, a day later at the soonest",
                    )
                    .saying(format!(
                        "{} signs from now on, {} is kept; Alipay+ must have the new public key",
                        staged.version, active.version
                    ))
                    .changing(set(&active.version, "retired"))
                    .changing(set(&staged.version, "active")))
                }
            },
            Some(Step::Retire) => {
                let mut plan = Plan::next(
                    "once the service has reloaded, destroy the files of the keys that went, and have Alipay+ forget their public keys",
                );
                if retired.is_empty() {
                    return Ok(Plan::next("stage, when the next rotation is due")
                        .saying("no key is retired"));
                }
                for key in retired {
                    plan = plan
                        .saying(format!("{} goes; {} stays", key.version, place_of(key)))
                        .changing(Edit::RemoveIdentityKey { version: key.version.clone() });
                }
                Ok(plan)
            }
        }
    }

    fn stage_ours(
        &self,
        file: &Path,
        keys: &[IdentityKey],
        active: &IdentityKey,
        staged: Option<&IdentityKey>,
    ) -> Result<Plan> {
        let next = "give the public key to Alipay+ under that version; verify; and once Alipay+ confirms it, promote";
        if let Some(staged) = staged {
            let key = signer(keys, staged)?;
            return Ok(announced(Plan::next(next), &staged.version, key.public())
                .saying("it was staged before"));
        }
        let versions: Vec<&str> = keys.iter().map(|key| &*key.version).collect();
        let version = self.version(&versions);
        let Some(beside) = &active.file else {
            bail!(Usage(
                "the active key is in a token: make the next one there with the token's own tools, \
                 and add a [[identity.keys]] for it with state = \"staged\""
                    .to_owned()
            ))
        };
        let folder = beside.parent().unwrap_or(Path::new("."));
        let made = folder.join(format!("wallet-{version}.private.pem"));
        // from a stage whose lines did not come into the settings
        let key = if made.exists() {
            private(&made)?
        } else {
            let bits = private(beside)?.public().bits();
            let key = PrivateKey::generate(if bits > 3_072 { 4_096 } else { bits.max(2_048) })?;
            let wrong = || Usage(format!("{} cannot be written", made.display()));
            create(&made, &key.pkcs8_pem()?, 0o600).with_context(wrong)?;
            key
        };
        let edit = Edit::AddIdentityKey {
            version: version.clone(),
            file: named(file, &made)?,
            state: "staged",
        };
        Ok(announced(Plan::next(next), &version, key.public())
            .saying(format!("private key  {}  (keep it secret)", made.display()))
            .changing(edit))
    }

    fn verify_ours(&self, loaded: &Loaded, active: &IdentityKey) -> Result<Plan> {
        let mut plan = Plan::next(
            "promote, once Alipay+ has the new public key; or retire, once it signs everywhere",
        );
        for key in &loaded.settings.identity.keys {
            let pair = signer(&loaded.settings.identity.keys, key)?;
            let signature = pair.sign(b"alipayplus-cancel keys rotate")?;
            let good = pair.public().verify(b"alipayplus-cancel keys rotate", &signature);
            ensure!(good, "{} does not verify what {} signs", key.version, place_of(key));
            plan = plan.saying(format!(
                "{} ({}) signs and verifies; fingerprint {}",
                key.version,
                state(key.state),
                pair.public().fingerprint()
            ));
        }
        let Some(url) = &self.url else { return Ok(plan) };
        let client = loaded.settings.clients.first().context(Usage(
            "without a client no answer is signed; add one to the settings".to_owned(),
        ))?;
        let key = signer(&loaded.settings.identity.keys, active)?.public().clone();
        let version = signed_by(url, client.id.as_str(), key, self.ca_file.clone())?;
        ensure!(
            version == active.version,
            "{url} signs with {version}, not with {} of these settings: has it reloaded?",
            active.version
        );
        Ok(plan.saying(format!("{url} answers, signed with {version}, and its signature verifies")))
    }

    /// A step of a client's key.
    fn theirs(&self, file: &Path, loaded: &Loaded, id: &str) -> Result<Plan> {
        let clients = &loaded.settings.clients;
        let found = clients.iter().position(|client| client.id.as_str() == id);
        let Some((place, client)) = found.and_then(|place| Some((place, clients.get(place)?)))
        else {
            bail!(Usage(format!("--client {id}: there is no such client in the settings")))
        };
        in_the_file(loaded, &format!("clients.{place}.id"))?;
        let now = Timestamp { unix_ms: jiff::Timestamp::now().as_millisecond() };
        let keys = &client.keys;
        let last = keys.last().context("a client has a key")?;
        let version_of = |key: &config::ClientKey| key.version.clone();
        let mut plan = Plan::next(match self.step {
            None | Some(Step::Verify) => "promote, once Alipay+ signs with the new key",
            Some(Step::Stage) => {
                "tell Alipay+ that it may sign with the new key; promote once it does"
            }
            Some(Step::Promote) => "retire, once the old keys have ended",
            Some(Step::Retire) => {
                "once the service has reloaded, the files of these keys are of no use"
            }
        });
        match self.step {
            None | Some(Step::Verify) => {
                for key in keys {
                    let public = public(&key.public_key_file)?;
                    let taken = match (key.has_ended(now), key.not_after) {
                        (true, _) => "has ended".to_owned(),
                        (false, None) => "is taken".to_owned(),
                        (false, Some(end)) => format!("is taken until {}", moment(end)),
                    };
                    let (version, print) = (&key.version, public.fingerprint());
                    plan = plan.saying(format!("{version} {taken}; fingerprint {print}"));
                }
            }
            Some(Step::Stage) => {
                let Some(new) = &self.public_key else {
                    bail!(Usage("stage of a client's key needs --public-key FILE".to_owned()))
                };
                let parsed = public(new)?;
                for key in keys {
                    if public(&key.public_key_file)? == parsed {
                        return Ok(plan.saying(format!("it is there already, as {}", key.version)));
                    }
                }
                let versions: Vec<&str> = keys.iter().map(|key| &*key.version).collect();
                let version = self.version(&versions);
                plan = plan
                    .saying(format!(
                        "{version} is taken beside the others; fingerprint {}",
                        parsed.fingerprint()
                    ))
                    .changing(Edit::AddClientKey {
                        client: id.to_owned(),
                        version,
                        file: named(file, new)?,
                    });
            }
            Some(Step::Promote) => {
                let days = i64::from(self.overlap_days).saturating_mul(86_400_000);
                let end = Timestamp { unix_ms: now.unix_ms.saturating_add(days) };
                let older = keys.iter().filter(|key| key.version != last.version);
                for key in older.filter(|key| key.not_after.is_none()) {
                    plan = plan
                        .saying(format!(
                            "{} ends at {}; {} stays",
                            key.version,
                            moment(end),
                            last.version
                        ))
                        .changing(Edit::EndClientKey {
                            client: id.to_owned(),
                            version: version_of(key),
                            not_after: moment(end),
                        });
                }
                if plan.edits.is_empty() {
                    plan = plan.saying(format!("every key but {} has its end", last.version));
                }
            }
            Some(Step::Retire) => {
                let ended =
                    keys.iter().filter(|key| key.has_ended(now) && key.version != last.version);
                for key in ended {
                    plan = plan.saying(format!("{} has ended and goes", key.version)).changing(
                        Edit::RemoveClientKey { client: id.to_owned(), version: version_of(key) },
                    );
                }
                if plan.edits.is_empty() {
                    plan = plan.saying("no key has ended");
                }
            }
        }
        Ok(plan)
    }

    /// What is said, or the number after the largest.
    fn version(&self, known: &[&str]) -> String {
        if let Some(version) = &self.key_version {
            return version.clone();
        }
        let largest = known.iter().filter_map(|version| version.parse::<u32>().ok()).max();
        let first = u32::try_from(known.len()).unwrap_or(u32::MAX);
        largest.unwrap_or(first).saturating_add(1).to_string()
    }
}

fn stands(active: &IdentityKey, staged: Option<&IdentityKey>, retired: &[&IdentityKey]) -> Plan {
    let next = match (staged, retired) {
        (Some(_), _) => "promote, once Alipay+ has the staged key's public part",
        (None, []) => "stage, when a rotation is due",
        (None, [_, ..]) => "retire, once no answer of the old key is under way",
    };
    let mut plan = Plan::next(next).saying(format!("{} signs", active.version));
    if let Some(staged) = staged {
        plan = plan.saying(format!("{} is staged", staged.version));
    }
    retired.iter().fold(plan, |plan, key| plan.saying(format!("{} is retired", key.version)))
}

fn announced(plan: Plan, version: &str, key: &PublicKey) -> Plan {
    plan.saying(format!("keyVersion   {version}"))
        .saying(format!("RSA          {} bits, fingerprint {}", key.bits(), key.fingerprint()))
        .saying(format!("for the Alipay+ console:\n{}", key.spki_base64()))
}

const fn state(state: KeyState) -> &'static str {
    match state {
        KeyState::Active => "active",
        KeyState::Staged => "staged",
        KeyState::Retired => "retired",
    }
}

/// Only what stands in the file can be changed there.
fn in_the_file(loaded: &Loaded, setting: &str) -> Result<()> {
    match loaded.origin(setting) {
        Some(Origin::File { .. }) => Ok(()),
        Some(origin) => {
            bail!(Usage(format!("{setting} is set by {origin}, not in the file; change it there")))
        }
        None => bail!(Usage(format!("{setting} is not set"))),
    }
}

fn moment(time: Timestamp) -> String {
    let seconds = time.unix_ms.checked_div(1_000).unwrap_or_default();
    jiff::Timestamp::from_second(seconds).map(|time| time.to_string()).unwrap_or_default()
}

impl Rotate {
    /// A step on this file, as the rehearsal does it.
    pub(super) fn rehearsed(step: Step, config: &Path, client: Option<(&str, &Path)>) -> Self {
        Self {
            step: Some(step),
            config: Some(config.to_owned()),
            role: RoleName::All,
            write: true,
            client: client.map(|(id, _)| id.to_owned()),
            public_key: client.map(|(_, file)| file.to_owned()),
            key_version: None,
            // the old one ends at once
            overlap_days: 0,
            url: None,
            ca_file: None,
            rehearse: true,
        }
    }

    /// Does it without a word.
    pub(super) fn quietly(&self) -> Result<()> {
        self.run(&mut io::sink())
    }
}
