//! `keys generate`, `keys show`, `keys check`: RSA pairs in every form the Alipay+ console shows or takes; and
//! `keys rotate`, which replaces them in a running service.
//!
//! Private material is printed only where `--private` asks for it, and written only to files of mode 0600.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, Subcommand, ValueEnum};
use zeroize::Zeroizing;

mod held;
mod rehearse;
mod rotate;

use self::rotate::Rotate;
use super::{Out, Usage};
use crate::{
    app,
    bridge::{
        keys::{AnyKey, Form, PrivateKey, PublicKey},
        signer::Signer,
    },
    config::{IdentityKey, KeyState},
};

/// The name of the two files where `--out` names a directory.
const DEFAULT_NAME: &str = "alipayplus-cancel";

/// Makes, shows, compares and rotates RSA keys.
///
/// The wallet signs its answers with a private key of its own and registers the public part with Alipay+; Alipay+
/// signs its requests, and the wallet keeps Alipay+'s public key. Keys are read in any form: PEM (PKCS#8, PKCS#1,
/// SPKI), the bare base64 that the Alipay+ console shows, or raw DER.
#[derive(Args, Clone, Debug)]
pub struct Keys {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Clone, Debug)]
enum Command {
    Generate(Generate),
    Show(Show),
    Check(Check),
    Rotate(Box<Rotate>),
}

/// Makes a new pair and prints the line to paste into the Alipay+ console.
///
/// Writes NAME.private.pem (PKCS#8, readable by its owner only) and NAME.public.pem (SPKI).
#[derive(Args, Clone, Debug)]
#[command(after_help = "Example:\n  alipayplus-cancel keys generate --out keys/wallet\n  \
    makes keys/wallet.private.pem and keys/wallet.public.pem")]
struct Generate {
    /// Size of the modulus. A larger key signs several times slower: 3072 about three times, 4096 about six
    #[arg(long, value_enum, default_value = "2048")]
    bits: Bits,
    /// Where to: a directory, or the files' common beginning
    #[arg(long, value_name = "PREFIX|DIR")]
    out: PathBuf,
    /// Overwrite files that are there. A private key that was overwritten is gone
    #[arg(long)]
    force: bool,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
enum Bits {
    #[value(name = "2048")]
    B2048,
    #[value(name = "3072")]
    B3072,
    #[value(name = "4096")]
    B4096,
}

/// Prints the public part of any key file, its size and its fingerprint.
///
/// The fingerprint is SHA-256 over the SPKI in DER: the same key has the same one in every form.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Examples:\n  alipayplus-cancel keys show keys/wallet.private.pem --form bare\n  \
    prints the line for the Alipay+ console\n  \
    alipayplus-cancel keys show from-the-console.txt --form spki-pem > alipayplus.public.pem\n  \
    makes a PEM file of what the console shows"
)]
struct Show {
    /// A key file, public or private, in any form
    #[arg(required_unless_present = "config")]
    file: Option<PathBuf>,
    #[command(flatten)]
    signing: SigningKey,
    /// Print this form alone on standard output; size and fingerprint then go to standard error. All forms by default
    #[arg(long, value_enum)]
    form: Option<ShownForm>,
    /// Print the PRIVATE key instead of its public part
    #[arg(long)]
    private: bool,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum ShownForm {
    /// BEGIN PUBLIC KEY
    SpkiPem,
    /// BEGIN PRIVATE KEY; with --private only
    Pkcs8Pem,
    /// BEGIN RSA PUBLIC KEY or BEGIN RSA PRIVATE KEY
    Pkcs1Pem,
    /// One line of base64: SPKI, or PKCS#8 with --private
    Bare,
    /// One line of base64: PKCS#1
    BarePkcs1,
}

/// A signing key of the settings, in a file or in its token.
#[derive(Args, Clone, Debug)]
struct SigningKey {
    /// The settings file: takes the wallet's signing key from there, also one that stays in an HSM
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Which of them, by its version; the active one by default
    #[arg(long, value_name = "VERSION", requires = "config")]
    key_version: Option<String>,
}

impl SigningKey {
    /// What it is called, and it, if it was asked for.
    fn open(&self) -> Result<Option<(String, Arc<dyn Signer>)>> {
        let Some(config) = &self.config else { return Ok(None) };
        let keys = super::settings_of_signer(config)?.settings.identity.keys;
        let wanted = |key: &IdentityKey| match &self.key_version {
            Some(version) => key.version == *version,
            None => key.state == KeyState::Active,
        };
        let Some(place) = keys.iter().position(wanted) else {
            let versions: Vec<_> = keys.iter().map(|key| format!("`{}`", key.version)).collect();
            bail!(Usage(format!("no such --key-version; there are: {}", versions.join(", "))))
        };
        let key = &keys[place];
        let signer = app::signer(place, key).map_err(super::start_error)?;
        let kept = if key.pkcs11.is_some() { "in its token" } else { "in its file" };
        Ok(Some((format!("identity.keys.{place}, version {}, {kept}", key.version), signer)))
    }
}

/// Says whether a private and a public key belong together, and in which form each of them is.
///
/// Exit status: 0 if they do, 1 if they do not, 2 if one of them cannot be read.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Example:\n  alipayplus-cancel keys check --private keys/wallet.private.pem \\\n    \
    --public from-the-console.txt\n  tells whether the console holds the key that this wallet signs with"
)]
struct Check {
    /// File of the private key
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "config",
        conflicts_with = "config"
    )]
    private: Option<PathBuf>,
    #[command(flatten)]
    signing: SigningKey,
    /// File of the public key
    #[arg(long, value_name = "FILE")]
    public: PathBuf,
}

impl Keys {
    /// Runs the subcommand. An error has the exit status of [`super::exit_status`].
    pub fn run(self) -> Result<()> {
        // not locked: a rehearsal runs a service, whose threads must be able to tell of what goes wrong
        self.print(&mut Out::new(), &mut io::stderr())
    }

    fn print(self, out: &mut impl Write, notes: &mut impl Write) -> Result<()> {
        match self.command {
            Command::Generate(generate) => generate.run(out),
            Command::Show(show) => show.run(out, notes),
            Command::Check(check) => check.run(out),
            Command::Rotate(rotate) => rotate.run(out),
        }
    }
}

impl Generate {
    fn run(&self, out: &mut impl Write) -> Result<()> {
        let [private_file, public_file] = self.files();
        for file in [&private_file, &public_file] {
            // seen before the work; `create_new` then decides
            let in_the_way = !self.force && file.exists();
            ensure!(
                !in_the_way,
                Usage(format!("{} exists; --force overwrites it", file.display()))
            );
        }
        if let Some(folder) = private_file.parent() {
            let wrong = |error| Usage(format!("cannot make {}: {error}", folder.display()));
            fs::create_dir_all(folder).map_err(wrong)?;
        }
        let key = PrivateKey::generate(self.bits.count())?;
        self.write(&private_file, &key.pkcs8_pem()?, 0o600)?;
        self.write(&public_file, &key.public().spki_pem(), 0o644)?;
        writeln!(out, "private key  {}  (keep it secret)", private_file.display())?;
        writeln!(out, "public key   {}", public_file.display())?;
        describe(key.public(), out)?;
        writeln!(out, "\nfor the Alipay+ console:\n{}", key.public().spki_base64())?;
        Ok(())
    }

    fn files(&self) -> [PathBuf; 2] {
        let prefix = if self.out.is_dir() { self.out.join(DEFAULT_NAME) } else { self.out.clone() };
        ["private.pem", "public.pem"].map(|extension| prefix.with_added_extension(extension))
    }

    /// Writes beside the file and renames over it, so that a failure half-way leaves the old key whole.
    fn write(&self, file: &Path, text: &str, mode: u32) -> Result<()> {
        let fresh = if self.force { file.with_added_extension("new") } else { file.to_owned() };
        create(&fresh, text, mode)
            .with_context(|| Usage(format!("{} cannot be written", fresh.display())))?;
        if self.force {
            let failed = || Usage(format!("{} cannot be overwritten", file.display()));
            fs::rename(&fresh, file).with_context(failed)?;
        }
        Ok(())
    }
}

/// A new file: never through a link or into a file that somebody else may read already.
fn create(file: &Path, text: &str, mode: u32) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
    let mut file = options.open(file)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

impl Bits {
    fn count(self) -> usize {
        match self {
            Self::B2048 => 2048,
            Self::B3072 => 3072,
            Self::B4096 => 4096,
        }
    }
}

impl Show {
    fn run(&self, out: &mut impl Write, notes: &mut impl Write) -> Result<()> {
        if let Some((name, signer)) = self.signing.open()? {
            let taken = self.file.is_some() || self.private;
            let told =
                "--config shows the public part of a signing key; leave FILE and --private out";
            ensure!(!taken, Usage(told.to_owned()));
            return Self::show_public(&name, signer.public(), self.form, out, notes);
        }
        let file = self.file.as_deref().context("clap asks for FILE or --config")?;
        let (key, form) = read(file)?;
        let Some(shown) = self.form else { return self.show_all(file, &key, form, out) };
        let text = self.text(file, &key, shown)?;
        describe(key.public(), notes)?;
        writeln!(out, "{}", text.trim_end())?;
        Ok(())
    }

    fn show_public(
        name: &str,
        key: &PublicKey,
        form: Option<ShownForm>,
        out: &mut impl Write,
        notes: &mut impl Write,
    ) -> Result<()> {
        if let Some(form) = form {
            describe(key, notes)?;
            writeln!(out, "{}", public_text(key, form)?.trim_end())?;
            return Ok(());
        }
        writeln!(out, "key          {name}")?;
        describe(key, out)?;
        for form in ShownForm::value_variants().iter().filter(|form| **form != ShownForm::Pkcs8Pem)
        {
            writeln!(out, "\n{}:\n{}", form.name(), public_text(key, *form)?.trim_end())?;
        }
        Ok(())
    }

    fn show_all(&self, file: &Path, key: &AnyKey, form: Form, out: &mut impl Write) -> Result<()> {
        writeln!(out, "file         {}, {form}", file.display())?;
        describe(key.public(), out)?;
        for shown in ShownForm::value_variants() {
            // the forms of the other half
            let other = if self.private { ShownForm::SpkiPem } else { ShownForm::Pkcs8Pem };
            if *shown != other {
                let text = self.text(file, key, *shown)?;
                writeln!(out, "\n{}:\n{}", shown.name(), text.trim_end())?;
            }
        }
        Ok(())
    }

    fn text(&self, file: &Path, key: &AnyKey, form: ShownForm) -> Result<Zeroizing<String>> {
        if !self.private {
            return public_text(key.public(), form);
        }
        match key {
            AnyKey::Private(key) => private_text(key, form),
            AnyKey::Public(_) => {
                bail!(Usage(format!("{} holds no private key", file.display())))
            }
        }
    }
}

impl ShownForm {
    fn name(self) -> &'static str {
        match self {
            Self::SpkiPem => "spki-pem",
            Self::Pkcs8Pem => "pkcs8-pem",
            Self::Pkcs1Pem => "pkcs1-pem",
            Self::Bare => "bare",
            Self::BarePkcs1 => "bare-pkcs1",
        }
    }
}

fn public_text(key: &PublicKey, form: ShownForm) -> Result<Zeroizing<String>> {
    Ok(Zeroizing::new(match form {
        ShownForm::SpkiPem => key.spki_pem(),
        ShownForm::Pkcs1Pem => key.pkcs1_pem(),
        ShownForm::Bare => key.spki_base64(),
        ShownForm::BarePkcs1 => key.pkcs1_base64(),
        ShownForm::Pkcs8Pem => {
            bail!(Usage("pkcs8-pem is a form of private keys; it needs --private".to_owned()))
        }
    }))
}

fn private_text(key: &PrivateKey, form: ShownForm) -> Result<Zeroizing<String>> {
    Ok(match form {
        ShownForm::Pkcs8Pem => key.pkcs8_pem()?,
        ShownForm::Pkcs1Pem => key.pkcs1_pem()?,
        ShownForm::Bare => key.pkcs8_base64()?,
        ShownForm::BarePkcs1 => key.pkcs1_base64()?,
        ShownForm::SpkiPem => {
            bail!(Usage("spki-pem is a form of public keys; leave --private out".to_owned()))
        }
    })
}

impl Check {
    fn run(&self, out: &mut impl Write) -> Result<()> {
        let (public, public_form) = read(&self.public)?;
        let private: Arc<dyn Signer> = if let Some((name, signer)) = self.signing.open()? {
            writeln!(out, "private      {name}")?;
            signer
        } else {
            let file = self.private.as_deref().context("clap asks for --private or --config")?;
            let (private, private_form) = read(file)?;
            writeln!(out, "--private    {}, {private_form}", file.display())?;
            let AnyKey::Private(private) = private else {
                bail!(Usage(format!("{} is a public key, not a private one", file.display())))
            };
            Arc::new(*private)
        };
        describe(private.public(), out)?;
        writeln!(out, "--public     {}, {public_form}", self.public.display())?;
        describe(public.public(), out)?;
        let AnyKey::Public(public) = public else {
            bail!(Usage(format!("{} is a private key, not a public one", self.public.display())))
        };
        // what counts is that one verifies what the other signs, so that is what is tried
        let signature = private.sign(b"alipayplus-cancel keys check")?;
        let together = public.verify(b"alipayplus-cancel keys check", &signature);
        ensure!(together, "the two keys do not belong together");
        writeln!(out, "the two keys belong together")?;
        Ok(())
    }
}

fn describe(key: &PublicKey, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "RSA          {} bits, fingerprint {}", key.bits(), key.fingerprint())
}

fn read(file: &Path) -> Result<(AnyKey, Form)> {
    let bytes = fs::read(file)
        .with_context(|| Usage(format!("key file {} cannot be read", file.display())))?;
    let bytes = Zeroizing::new(bytes);
    AnyKey::parse(&*bytes).with_context(|| Usage(format!("key file {} is no use", file.display())))
}

#[cfg(test)]
mod tests;
