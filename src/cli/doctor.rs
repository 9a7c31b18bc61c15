//! `doctor signature`: says why a captured message does not verify.
//!
//! Reads files and prints. Asks nobody, and never prints a body or a key: a body may hold tokens.

use std::{
    fs,
    io::{self, Read as _, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, Subcommand};
use serde_json::json;

use super::{Failure, Out, USUAL_PREFIX, Usage};
use crate::{
    app,
    bridge::{
        diagnose::{Capture, Cause, Diagnosis, NamedKey, Owner, Question, Start, diagnose},
        keys::PublicKey,
    },
    config::{PathPrefix, Settings},
    domain::time::Timestamp,
};

/// Where Alipay+'s APIs are, unless the settings say otherwise.
const USUAL_PREFIXES: [&str; 2] = [USUAL_PREFIX, ""];

/// Finds out why something does not work.
#[derive(Args, Clone, Debug)]
pub struct Doctor {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Clone, Debug)]
enum Command {
    Signature(Box<Signature>),
}

/// Says why the signature of a captured request does not verify, and what to do at which side.
///
/// It finds the key that made the signature, then tries every usual change of what was signed, alone and in pairs: another
/// path, a rewritten body, another spelling of the time, and so on. The body and the keys are never printed.
///
/// Exit status: 0 if it verifies, 1 if not, 2 for wrong usage.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  alipayplus-cancel doctor signature --request refused.http \\
    --config /etc/alipayplus-cancel.toml
    tries the keys of every client and our own, and the configured path prefixes
  alipayplus-cancel doctor signature --request refused.http --key alipayplus.pem
    tries that key alone
  alipayplus-cancel doctor signature --response --request answer.http \\
    --path /aps/api/v1/payments/cancelPayment --key wallet.public.pem
    verifies an answer of ours, for the path that was asked
  alipayplus-cancel doctor signature --path /aps/api/v1/payments/cancelPayment \\
    --body-file body.json --header 'Client-Id: …' --header 'Request-Time: …' \\
    --header 'Signature: …' --key alipayplus.pem
    the same from parts

refused.http is the message as HTTP has it, every byte of the body as it was sent:
  POST /aps/api/v1/payments/cancelPayment HTTP/1.1
  Client-Id: SANDBOX_5YC47N2ZQHJ004124
  Request-Time: 2026-11-23T08:00:00+08:00
  Signature: algorithm=RSA256,keyVersion=1,signature=…

  {\"pspId\":\"1022172000000000001\",…}")]
struct Signature {
    /// The message: request line, headers, an empty line, the body; `-` is standard input
    #[arg(long, value_name = "FILE", required_unless_present = "header")]
    request: Option<PathBuf>,
    /// It is an answer of ours; --path then names what was asked
    #[arg(long, requires = "path")]
    response: bool,
    /// Instead of the message's own: the method
    #[arg(long)]
    method: Option<String>,
    /// Instead of the message's own: path and query
    #[arg(long, value_name = "PATH")]
    path: Option<String>,
    /// A header, as `Client-Id: X`, beside or instead of the message's own; may be repeated
    #[arg(long, value_name = "NAME: VALUE")]
    header: Vec<String>,
    /// Instead of the message's own: a file with the body, byte for byte
    #[arg(long, value_name = "FILE")]
    body_file: Option<PathBuf>,
    /// The public key that should verify it, in any form
    #[arg(long, value_name = "FILE", required_unless_present = "config")]
    key: Option<PathBuf>,
    /// The keyVersion under which --key is registered
    #[arg(long, value_name = "VERSION", requires = "key")]
    version: Option<String>,
    /// The settings file: clients, their keys, our own keys, path prefixes
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// As if it were then, in RFC 3339: keys end
    #[arg(long, value_name = "TIME")]
    at: Option<jiff::Timestamp>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What the settings know.
#[derive(Default)]
struct Known {
    keys: Vec<NamedKey>,
    prefixes: Vec<String>,
    clients: Vec<String>,
    notes: Vec<String>,
}

impl Doctor {
    /// Runs it.
    pub fn run(self) -> Result<()> {
        match self.command {
            Command::Signature(signature) => signature.run(&mut Out::new()),
        }
    }
}

impl Signature {
    fn run(&self, out: &mut impl Write) -> Result<()> {
        let capture = self.capture()?;
        let (method, path) = self.line(&capture)?;
        let known = self.known()?;
        let mut diagnosis = diagnose(&Question {
            capture: &capture,
            line: (&method, &path),
            keys: &known.keys,
            prefixes: &known.prefixes,
            clients: &known.clients,
        });
        diagnosis.notes.extend(known.notes);
        if self.json {
            writeln!(out, "{}", as_json(&diagnosis))?;
        } else {
            print(&diagnosis, out)?;
        }
        if diagnosis.verifies { Ok(()) } else { Err(Failure.into()) }
    }

    fn capture(&self) -> Result<Capture> {
        let mut capture = match &self.request {
            Some(file) => {
                let bytes = if file.as_os_str() == "-" {
                    let mut bytes = Vec::new();
                    io::stdin().read_to_end(&mut bytes).context("cannot read standard input")?;
                    bytes
                } else {
                    read(file)?
                };
                Capture::parse(&bytes)
                    .map_err(|wrong| Usage(format!("--request {} {wrong}", file.display())))?
            }
            None => self.parts()?,
        };
        for header in &self.header {
            let (name, value) = header.split_once(':').ok_or_else(|| {
                Usage("--header: expected NAME: VALUE, as 'Client-Id: X'".to_owned())
            })?;
            capture.headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name.trim()));
            capture.headers.push((name.trim().to_owned(), value.trim().to_owned()));
        }
        if let Some(file) = &self.body_file {
            capture.body = read(file)?;
            capture.notes.clear();
        }
        Ok(capture)
    }

    fn parts(&self) -> Result<Capture> {
        let path = self.path.clone();
        let path = path.ok_or_else(|| Usage("without --request, --path is due".to_owned()))?;
        ensure!(
            self.body_file.is_some(),
            Usage(
                "without --request, --body-file is due; an empty file is an empty body".to_owned()
            )
        );
        let method = self.method.clone().unwrap_or_else(|| "POST".to_owned());
        let start = if self.response { Start::Response } else { Start::Request(method, path) };
        Ok(Capture { start, headers: vec![], body: vec![], notes: vec![] })
    }

    /// Method and path that were asked.
    fn line(&self, capture: &Capture) -> Result<(String, String)> {
        let (method, path) = match (&capture.start, self.response) {
            (Start::Request(method, path), false) => (method.clone(), path.clone()),
            (Start::Response, true) => ("POST".to_owned(), String::new()),
            (Start::Response, false) => bail!(Usage(
                "this is an answer: verify it with --response and the --path that was asked"
                    .to_owned()
            )),
            (Start::Request(..), true) => bail!(Usage(
                "this is a request: --response is for answers, which begin with `HTTP/1.1 200 OK`"
                    .to_owned()
            )),
        };
        Ok((self.method.clone().unwrap_or(method), self.path.clone().unwrap_or(path)))
    }

    fn known(&self) -> Result<Known> {
        let mut known = match &self.config {
            Some(file) => of_settings(&super::settings(file)?.settings, self.now())?,
            None => {
                Known { prefixes: USUAL_PREFIXES.map(str::to_owned).into(), ..Known::default() }
            }
        };
        if let Some(file) = &self.key {
            let key = public(file).with_context(|| Usage("--key".to_owned()))?;
            let given =
                NamedKey { owner: Owner::Given, version: self.version.clone(), key, ended: false };
            known.keys.insert(0, given);
        }
        Ok(known)
    }

    fn now(&self) -> Timestamp {
        Timestamp { unix_ms: self.at.unwrap_or_else(jiff::Timestamp::now).as_millisecond() }
    }
}

fn of_settings(settings: &Settings, now: Timestamp) -> Result<Known> {
    let mut known = Known {
        prefixes: settings
            .bridge
            .path_prefixes
            .iter()
            .map(PathPrefix::as_str)
            .map(str::to_owned)
            .collect(),
        ..Known::default()
    };
    for client in &settings.clients {
        known.clients.push(client.id.as_str().to_owned());
        for key in &client.keys {
            known.keys.push(NamedKey {
                owner: Owner::Client(client.id.as_str().to_owned()),
                version: Some(key.version.clone()),
                key: public(&key.public_key_file)?,
                ended: key.has_ended(now),
            });
        }
    }
    for (place, key) in settings.identity.keys.iter().enumerate() {
        // who looks into a refused request need not be one who may read private keys
        match app::signer(place, key) {
            Ok(signer) => known.keys.push(NamedKey {
                owner: Owner::Us,
                version: Some(key.version.clone()),
                key: signer.public().clone(),
                ended: false,
            }),
            Err(error) => {
                let error = anyhow::Error::from(error);
                known.notes.push(format!("our own key {} was not tried: {error:#}", key.version));
            }
        }
    }
    Ok(known)
}

fn public(file: &Path) -> Result<PublicKey> {
    let key = PublicKey::parse(read(file)?);
    Ok(key.map_err(|wrong| Usage(format!("{} {wrong}", file.display())))?)
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| Usage(format!("{} cannot be read", file.display())))
}

fn print(diagnosis: &Diagnosis, out: &mut impl Write) -> io::Result<()> {
    let begin = if diagnosis.verifies { "" } else { "does not verify: " };
    writeln!(out, "{begin}{}", diagnosis.verdict)?;
    writeln!(out)?;
    for (name, text) in &diagnosis.evidence {
        writeln!(out, "{name:<16}{text}")?;
    }
    for note in &diagnosis.notes {
        writeln!(out, "{:<16}{note}", "note")?;
    }
    let todo: Vec<&Cause> = diagnosis.causes.iter().collect();
    if !todo.is_empty() {
        writeln!(out, "\nwhat to do")?;
    }
    for cause in todo {
        writeln!(out, "{:<16}{}", "  the signer", cause.signer)?;
        if !cause.receiver.is_empty() {
            writeln!(out, "{:<16}{}", "  the receiver", cause.receiver)?;
        }
    }
    Ok(())
}

fn as_json(diagnosis: &Diagnosis) -> serde_json::Value {
    let cause = |cause: &Cause| {
        json!({
            "code": cause.code,
            "says": cause.says,
            "signer": cause.signer,
            "receiver": cause.receiver,
        })
    };
    let evidence =
        diagnosis.evidence.iter().map(|(name, text)| json!({"name": name, "text": text}));
    json!({
        "verifies": diagnosis.verifies,
        "verdict": diagnosis.verdict,
        "causes": diagnosis.causes.iter().map(cause).collect::<Vec<_>>(),
        "evidence": evidence.collect::<Vec<_>>(),
        "notes": diagnosis.notes,
    })
}
