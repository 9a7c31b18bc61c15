//! Why a signature does not verify: from a captured message and the keys at hand to a cause, by trying.
//!
//! A signature opened with a public key shows whether that key made it, and the digest of what was signed. So the key is
//! found first, by itself; then every usual change of the signed string is tried, alone and in pairs, until one has that
//! digest. If none has, it is still known which of the two is wrong, key or content.
//!
//! Pure: no clock, no files, no network. Never tells a body, since it may hold tokens, nor a key.

mod block;
mod capture;
mod cause;
mod guesses;
mod json_forms;
mod reading;

use std::{fmt::Write as _, mem::discriminant};

use self::{
    block::Block,
    guesses::{Guess, Known, Parts, Shape, guesses},
    reading::Reading,
};
pub use self::{
    block::Hash,
    capture::{Capture, CaptureError, Start},
    cause::Cause,
};
use super::{front::Api, keys::PublicKey};

/// Longest body with which changes are tried in pairs, in bytes.
const PAIRED_BYTES_MAX: usize = 64 * 1024;

/// Whose a key is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Named on the command line as the one that should fit.
    Given,
    /// A client's.
    Client(String),
    /// Ours.
    Us,
}

/// A public key, and what is known of it.
#[derive(Clone, Debug)]
pub struct NamedKey {
    /// Whose it is.
    pub owner: Owner,
    /// Its `keyVersion`, if known.
    pub version: Option<String>,
    /// The key.
    pub key: PublicKey,
    /// Whether it has ended: nothing that it signs is taken any more.
    pub ended: bool,
}

/// What is asked.
pub struct Question<'a> {
    /// The message.
    pub capture: &'a Capture,
    /// Method and target: the capture's own of a request, the request's of a response.
    pub line: (&'a str, &'a str),
    /// Every key at hand.
    pub keys: &'a [NamedKey],
    /// What may stand before the tails of the APIs.
    pub prefixes: &'a [String],
    /// The registered clients; none, if no settings are at hand.
    pub clients: &'a [String],
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnosis {
    /// Whether the service takes it.
    pub verifies: bool,
    /// In one sentence.
    pub verdict: String,
    /// What is wrong, each enough for a refusal. Empty where it verifies, or where nothing tried explains it.
    pub causes: Vec<Cause>,
    /// What was seen, each with its name.
    pub evidence: Vec<(&'static str, String)>,
    /// What is worth knowing besides.
    pub notes: Vec<String>,
}

/// A signature as it was read, opened with a key.
struct Opened<'a> {
    reading: &'a Reading,
    key: &'a NamedKey,
    block: Block,
}

/// Finds out.
pub fn diagnose(question: &Question<'_>) -> Diagnosis {
    let capture = question.capture;
    let mut diagnosis = Diagnosis {
        verifies: false,
        verdict: String::new(),
        causes: vec![],
        evidence: vec![],
        notes: capture.notes.clone(),
    };
    let time_header = if is_response(question) { "Response-Time" } else { "Request-Time" };
    diagnosis.causes = missing(capture, time_header);
    if !diagnosis.causes.is_empty() {
        diagnosis.verdict = sentence(&diagnosis.causes);
        return diagnosis;
    }
    let header = |name| capture.header(name).unwrap_or_default();
    let parts = Parts {
        method: question.line.0.to_owned(),
        target: question.line.1.to_owned(),
        client: header("client-id").to_owned(),
        time: header(time_header).to_owned(),
        body: capture.body.clone(),
        shape: Shape::Due,
    };
    let header = reading::read(header("signature"));
    diagnosis.notes.extend(header.notes.iter().cloned());
    let opened: Vec<Opened<'_>> = header
        .readings
        .iter()
        .flat_map(|reading| question.keys.iter().map(move |key| (reading, key)))
        .map(|(reading, key)| Opened { reading, key, block: block::open(&key.key, &reading.bytes) })
        .collect();
    describe(&mut diagnosis, &parts, &header);
    let made = |opened: &&Opened<'_>| opened.block.is_made();
    let mut by: Vec<&Opened<'_>> = opened.iter().filter(made).collect();
    // one key may stand there under several names: the one that is due first
    by.sort_by_key(|opened| key_cause(question, &header, opened.key).is_some());

    let Some(first) = by.first() else {
        diagnosis.causes = header.causes;
        noise(&mut diagnosis, question, &opened);
        return diagnosis;
    };
    diagnosis.evidence.push(("made by", first.key.name()));
    diagnosis.evidence.push(("it holds", told(&first.block)));
    let fits = |string: &[u8]| by.iter().find(|opened| opened.block.is_over(string)).copied();
    let found = search(&parts, question, fits);
    let explained = found.is_some();
    let (opened, changes) = found.unwrap_or((first, vec![]));
    let mut causes = header.causes.clone();
    causes.extend(key_cause(question, &header, opened.key));
    causes.extend(opened.reading.cause.clone());
    causes.extend(block_cause(&opened.block));
    causes.extend(changes.iter().map(|guess| guess.cause.clone()));
    diagnosis.verifies = explained && causes.is_empty();
    diagnosis.causes = causes;
    if !explained {
        differs(&mut diagnosis, &parts, opened);
    } else if diagnosis.verifies {
        diagnosis.verdict = format!("verifies with {}", opened.key.name());
    } else {
        diagnosis.verdict = sentence(&diagnosis.causes);
        let fitting = changes.iter().fold(parts, |parts, guess| parts.with(&guess.change));
        diagnosis.evidence.push(("was signed", visible(&fitting)));
    }
    diagnosis
}

fn is_response(question: &Question<'_>) -> bool {
    question.capture.start == Start::Response
}

fn missing(capture: &Capture, time: &'static str) -> Vec<Cause> {
    let wrong = |name: &&'static str| capture.count(name) != 1;
    let of = |name| Cause::header(name, capture.count(name));
    ["Signature", "Client-Id", time].into_iter().filter(wrong).map(of).collect()
}

/// What to change so that the string has the digest: nothing, one part, or two.
fn search<'a>(
    parts: &Parts,
    question: &Question<'_>,
    fits: impl Fn(&[u8]) -> Option<&'a Opened<'a>>,
) -> Option<(&'a Opened<'a>, Vec<Guess>)> {
    if let Some(opened) = fits(&parts.string()) {
        return Some((opened, vec![]));
    }
    let tails = Api::ALL.map(Api::tail);
    let known = Known {
        prefixes: question.prefixes,
        tails: &tails,
        clients: question.clients,
        host: question.capture.header("host"),
    };
    let mut all = guesses(parts, &known);
    let single = |guess: &Guess| fits(&parts.with(&guess.change).string());
    if let Some((place, opened)) =
        all.iter().enumerate().find_map(|(place, guess)| Some((place, single(guess)?)))
    {
        return Some((opened, vec![all.swap_remove(place)]));
    }
    if parts.body.len() > PAIRED_BYTES_MAX {
        return None;
    }
    all.retain(|guess| !guess.rare);
    let pair = all.iter().enumerate().find_map(|(a, first)| {
        let parts = parts.with(&first.change);
        let others = all.iter().enumerate().skip(a + 1);
        let mut others = others
            .filter(|(_, second)| discriminant(&first.change) != discriminant(&second.change));
        others.find_map(|(b, second)| Some((a, b, fits(&parts.with(&second.change).string())?)))
    });
    let (a, b, opened) = pair?;
    // the later one first, so that the earlier one keeps its place
    let second = all.swap_remove(b);
    Some((opened, vec![all.swap_remove(a), second]))
}

/// Why this key, which made the signature, is not the one that is due.
fn key_cause(question: &Question<'_>, header: &reading::Header, key: &NamedKey) -> Option<Cause> {
    let response = is_response(question);
    let client = question.capture.header("client-id").unwrap_or_default();
    let sent = header.key_version.as_deref();
    let of_version = sent.is_none() || key.version.is_none() || key.version.as_deref() == sent;
    match &key.owner {
        Owner::Us if !response => Some(Cause::own_key(&key.name())),
        Owner::Client(_) if response => Some(Cause::clients_key(&key.name())),
        Owner::Client(id) if id != client => {
            let known = question.clients.iter().any(|known| known == client);
            Some(if known {
                Cause::swapped_key(id, client)
            } else {
                Cause::unknown_client(client, id)
            })
        }
        Owner::Given | Owner::Us | Owner::Client(_) if of_version && key.ended && !response => {
            Some(Cause::ended_key(&key.name()))
        }
        Owner::Given | Owner::Us | Owner::Client(_) if of_version => None,
        owner @ (Owner::Given | Owner::Us | Owner::Client(_)) => {
            let has = |other: &NamedKey| other.owner == *owner && other.version.as_deref() == sent;
            let there = question.keys.iter().any(has);
            Some(Cause::version(sent.unwrap_or_default(), &key.name(), there))
        }
    }
}

fn block_cause(block: &Block) -> Option<Cause> {
    match block {
        Block::Digest(Hash::Sha256, _) | Block::OtherLength | Block::Noise => None,
        Block::Digest(hash, _) => Some(Cause::hash(hash.name())),
        Block::Md5 => Some(Cause::hash("MD5")),
        Block::Bare(_) => Some(Cause::bare()),
        Block::Pss(..) => Some(Cause::pss()),
    }
}

fn describe(diagnosis: &mut Diagnosis, parts: &Parts, header: &reading::Header) {
    let body = &parts.body;
    let version = header.key_version.as_deref().unwrap_or("not told");
    let length = header.readings.first().map_or(0, |reading| reading.bytes.len());
    diagnosis.evidence.extend([
        ("must be signed", visible(parts)),
        ("its digest", format!("SHA-256 {}", hex(&Hash::Sha256.of(&parts.string())))),
        ("the body", format!("{} bytes, SHA-256 {}", body.len(), hex(&Hash::Sha256.of(body)))),
        ("the signature", format!("{length} bytes, keyVersion {}", one_line(version))),
    ]);
}

/// Nobody at hand made it.
fn noise(diagnosis: &mut Diagnosis, question: &Question<'_>, opened: &[Opened<'_>]) {
    let count = question.keys.len();
    let lengths: Vec<usize> = opened.iter().map(|opened| opened.reading.bytes.len()).collect();
    let other = |opened: &Opened<'_>| opened.block == Block::OtherLength;
    diagnosis.verdict = if opened.is_empty() {
        "the signature cannot be read, so no key could be tried".to_owned()
    } else if opened.iter().all(other) {
        let bits = lengths.first().unwrap_or(&0) * 8;
        format!(
            "wrong key, or a signature cut off: it has {bits} bits, and no key at hand has as many"
        )
    } else if count == 1 {
        "wrong key: the one at hand did not make this signature, whatever was signed".to_owned()
    } else {
        format!("wrong key: none of the {count} at hand made this signature, whatever was signed")
    };
    let names = question.keys.iter().map(NamedKey::name).collect::<Vec<_>>();
    diagnosis.evidence.push(("tried", names.join("; ")));
    if !opened.is_empty() {
        diagnosis.causes.push(Cause::wrong_key());
    }
}

/// The key is known, but not what it signed.
fn differs(diagnosis: &mut Diagnosis, parts: &Parts, opened: &Opened<'_>) {
    let right = diagnosis.causes.is_empty();
    let key = if right { "the key is right" } else { "the key is known" };
    diagnosis.verdict = format!(
        "{key}, the content differs: {} signed something else than what was captured, and no usual change explains it",
        opened.key.name()
    );
    if parts.body.len() > PAIRED_BYTES_MAX {
        diagnosis.notes.push("the body is long, so changes were tried one by one only".to_owned());
    }
    diagnosis.causes.push(Cause::content());
}

fn told(block: &Block) -> String {
    match block {
        Block::Digest(hash, digest) => format!("PKCS#1 v1.5, {} {}", hash.name(), hex(digest)),
        Block::Md5 => "PKCS#1 v1.5, MD5".to_owned(),
        Block::Bare(bytes) => {
            format!("PKCS#1 v1.5, {} bytes without the name of a hash", bytes.len())
        }
        Block::Pss(hash, _, salt) => format!("PSS, {}, {} bytes of salt", hash.name(), salt.len()),
        Block::OtherLength | Block::Noise => "noise".to_owned(),
    }
}

fn sentence(causes: &[Cause]) -> String {
    causes.iter().map(|cause| cause.says.as_str()).collect::<Vec<_>>().join("; and ")
}

impl NamedKey {
    /// "the key of client X, version 1".
    pub fn name(&self) -> String {
        let whose = match &self.owner {
            Owner::Given => "the given key".to_owned(),
            Owner::Client(id) => format!("the key of client {id}"),
            Owner::Us => "our own key".to_owned(),
        };
        let version = self
            .version
            .as_ref()
            .map_or_else(String::new, |version| format!(", version {version}"));
        let print = self.key.fingerprint().to_string();
        format!("{whose}{version} ({} bits, fingerprint {}…)", self.key.bits(), &print[..16])
    }
}

/// The signed string with its line feeds seen, and its body not.
fn visible(parts: &Parts) -> String {
    let body = format!("{{body of {} bytes}}", parts.body.len());
    let shown = Parts { body: body.clone().into_bytes(), ..parts.clone() };
    match parts.shape {
        Shape::HexOfDigest | Shape::UpperHexOfDigest | Shape::Digest => {
            let due = Parts { shape: Shape::Due, ..shown };
            format!("digest of {}", one_line(&String::from_utf8_lossy(&due.string())))
        }
        Shape::Due
        | Shape::BodyAlone
        | Shape::NoLine
        | Shape::NoMethod
        | Shape::NoClient
        | Shape::NoTime
        | Shape::Newline(_)
        | Shape::Separator(_)
        | Shape::TrailingNewline => one_line(&String::from_utf8_lossy(&shown.string())),
    }
}

/// Without control characters, which are escaped, and not too long.
fn one_line(text: &str) -> String {
    let shown: String = text
        .chars()
        .take(400)
        .flat_map(|c| {
            let escaped = c.is_control().then(|| c.escape_default());
            let plain = (!c.is_control()).then_some(c);
            escaped.into_iter().flatten().chain(plain)
        })
        .collect();
    shown
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // writing to a text cannot fail
        let _written = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests;
