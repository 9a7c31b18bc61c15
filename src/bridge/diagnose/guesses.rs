//! What may have been signed instead: every usual change of one part of the signed string.

use jiff::{Timestamp, tz::Offset};
use percent_encoding::percent_decode_str;

use super::{Cause, json_forms::forms};
use crate::bridge::{request_time, signature};

/// The parts of a signed string.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Parts {
    pub(super) method: String,
    pub(super) target: String,
    pub(super) client: String,
    pub(super) time: String,
    pub(super) body: Vec<u8>,
    pub(super) shape: Shape,
}

/// How the parts were put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Due,
    BodyAlone,
    NoLine,
    NoMethod,
    NoClient,
    NoTime,
    Newline(&'static str),
    Separator(&'static str),
    TrailingNewline,
    HexOfDigest,
    UpperHexOfDigest,
    Digest,
}

const SHAPES: [(Shape, &str); 16] = [
    (Shape::BodyAlone, "the body alone was signed, without the line and the three parts before it"),
    (Shape::NoLine, "the first line (method, blank, path) was left out"),
    (Shape::NoMethod, "the method was left out of the first line"),
    (Shape::NoClient, "the Client-Id was left out of the second line"),
    (Shape::NoTime, "the time was left out of the second line"),
    (Shape::Newline(""), "the line feed between the two lines was left out"),
    (Shape::Newline("\r\n"), "the first line ended in CR LF, and a line feed alone is due"),
    (Shape::Newline("\\n"), "a backslash and an `n` stood where a line feed is due"),
    (Shape::Newline(" "), "a blank stood where a line feed is due"),
    (Shape::Separator(""), "the dots between Client-Id, time and body were left out"),
    (Shape::Separator("\n"), "line feeds stood where dots are due"),
    (Shape::Separator(" . "), "there were blanks around the dots"),
    (Shape::TrailingNewline, "a line feed stood behind the body"),
    (
        Shape::HexOfDigest,
        "the digest in hex was signed, instead of the string: it was hashed twice",
    ),
    (Shape::UpperHexOfDigest, "the digest in upper-case hex was signed, instead of the string"),
    (Shape::Digest, "the digest was signed, instead of the string: it was hashed twice"),
];

impl Parts {
    /// The bytes.
    pub(super) fn string(&self) -> Vec<u8> {
        let Self { method, target, client, time, body, shape } = self;
        let due = || signature::signed_string(method, target, client, time, body);
        let join = |head: String| [head.as_bytes(), body].concat();
        match shape {
            Shape::Due => due(),
            Shape::BodyAlone => body.clone(),
            Shape::NoLine => join(format!("{client}.{time}.")),
            Shape::NoMethod => join(format!("{target}\n{client}.{time}.")),
            Shape::NoClient => join(format!("{method} {target}\n{time}.")),
            Shape::NoTime => join(format!("{method} {target}\n{client}.")),
            Shape::Newline(line) => join(format!("{method} {target}{line}{client}.{time}.")),
            Shape::Separator(dot) => join(format!("{method} {target}\n{client}{dot}{time}{dot}")),
            Shape::TrailingNewline => [due().as_slice(), b"\n"].concat(),
            Shape::HexOfDigest => super::hex(&super::Hash::Sha256.of(&due())).into_bytes(),
            Shape::UpperHexOfDigest => {
                super::hex(&super::Hash::Sha256.of(&due())).to_ascii_uppercase().into_bytes()
            }
            Shape::Digest => super::Hash::Sha256.of(&due()),
        }
    }

    /// The same with one part changed.
    pub(super) fn with(&self, change: &Change) -> Self {
        let mut parts = self.clone();
        match change.clone() {
            Change::Method(method) => parts.method = method,
            Change::Target(target) => parts.target = target,
            Change::Client(client) => parts.client = client,
            Change::Time(time) => parts.time = time,
            Change::Body(body) => parts.body = body,
            Change::Shape(shape) => parts.shape = shape,
        }
        parts
    }
}

/// Another value of one part.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Change {
    Method(String),
    Target(String),
    Client(String),
    Time(String),
    Body(Vec<u8>),
    Shape(Shape),
}

/// A change, and what it means if it fits.
pub(super) struct Guess {
    pub(super) change: Change,
    pub(super) cause: Cause,
    /// One of very many: not tried together with another.
    pub(super) rare: bool,
}

fn guess(change: Change, cause: Cause) -> Guess {
    Guess { change, cause, rare: false }
}

/// What the settings say of this endpoint.
pub(super) struct Known<'a> {
    pub(super) prefixes: &'a [String],
    pub(super) tails: &'a [&'a str],
    pub(super) clients: &'a [String],
    pub(super) host: Option<&'a str>,
}

/// Every change, the likely ones first.
pub(super) fn guesses(parts: &Parts, known: &Known<'_>) -> Vec<Guess> {
    let mut all = bodies(&parts.body);
    all.extend(targets(&parts.target, known));
    all.extend(times(&parts.time));
    all.extend(SHAPES.map(|(shape, says)| guess(Change::Shape(shape), Cause::composition(says))));
    all.extend(methods(&parts.method));
    all.extend(clients(&parts.client, known));
    all
}

fn methods(method: &str) -> impl Iterator<Item = Guess> {
    let others =
        ["POST", "post", "GET", "PUT", ""].into_iter().filter(move |other| *other != method);
    others.map(|other| guess(Change::Method(other.to_owned()), Cause::method(other)))
}

fn clients(client: &str, known: &Known<'_>) -> Vec<Guess> {
    let blanks = [format!(" {client}"), format!("{client} ")];
    let cases = [client.to_ascii_lowercase(), client.to_ascii_uppercase(), String::new()];
    let others = known.clients.iter().cloned();
    let others = blanks.into_iter().chain(cases).chain(others).filter(|other| other != client);
    others.map(|other| guess(Change::Client(other.clone()), Cause::client(&other))).collect()
}

fn targets(target: &str, known: &Known<'_>) -> Vec<Guess> {
    let mut found: Vec<(String, &str)> = Vec::new();
    let path = target
        .split_once("://")
        .map_or(target, |(_, rest)| rest.find('/').map_or("/", |slash| &rest[slash..]));
    if path != target {
        found.push((path.to_owned(), "without scheme and host"));
    }
    let (bare, query) =
        path.split_once('?').map_or((path, None), |(bare, query)| (bare, Some(query)));
    if query.is_some() {
        found.push((bare.to_owned(), "without the query"));
    }
    let slashes = bare.match_indices('/').map(|(at, _)| at).skip(1);
    found.extend(slashes.map(|at| (path[at..].to_owned(), "without a prefix")));
    for tail in known.tails.iter().filter(|tail| bare.ends_with(**tail)) {
        for prefix in known.prefixes {
            found.push((format!("{prefix}{tail}"), "with another prefix"));
        }
        let own = &bare[..bare.len() - tail.len()];
        found.extend(known.tails.iter().map(|other| (format!("{own}{other}"), "of the other API")));
    }
    for prefix in known.prefixes {
        found.push((format!("{prefix}{path}"), "with a prefix before it"));
    }
    let turned = if bare.ends_with('/') {
        (bare.trim_end_matches('/').to_owned(), "without the slash at its end")
    } else {
        (format!("{bare}/"), "with a slash at its end")
    };
    found.push(turned);
    found.push((bare.trim_start_matches('/').to_owned(), "without the slash at its beginning"));
    if let Ok(decoded) = percent_decode_str(path).decode_utf8() {
        found.push((decoded.into_owned(), "percent-decoded"));
    }
    found.push((bare.replace("//", "/"), "without doubled slashes"));
    found.push((path.to_ascii_lowercase(), "in lower case"));
    if let Some(host) = known.host {
        found.extend(
            ["https://", "http://", ""]
                .map(|scheme| (format!("{scheme}{host}{path}"), "with its host")),
        );
    }
    found.push((String::new(), "left out"));
    found.retain(|(other, _)| other != target);
    found
        .into_iter()
        .map(|(other, how)| guess(Change::Target(other.clone()), Cause::target(&other, how)))
        .collect()
}

/// The same moment in other spellings; where it has no fraction, every fraction that it may have had.
fn times(time: &str) -> Vec<Guess> {
    let rare = |other: String, rare| {
        let cause = Cause::time(&other);
        Guess { change: Change::Time(other), cause, rare }
    };
    let mut all = vec![rare(time.trim().to_owned(), false), rare(String::new(), false)];
    let Some(moment) = request_time::parse(time) else { return all };
    let unix_ms = moment.unix_ms;
    all.extend(spellings(unix_ms).into_iter().map(|other| rare(other, false)));
    all.push(rare(unix_ms.to_string(), false));
    all.push(rare(unix_ms.div_euclid(1000).to_string(), false));
    if unix_ms.rem_euclid(1000) == 0 {
        for ms in (1..1000).map(|more| unix_ms.saturating_add(more)) {
            all.push(rare(ms.to_string(), true));
            all.extend(
                spellings(ms)
                    .into_iter()
                    .filter(|text| text.contains('.'))
                    .map(|text| rare(text, true)),
            );
        }
    }
    all.retain(|guess| guess.change != Change::Time(time.to_owned()));
    all
}

/// Two offsets, four ways to write them, with and without a fraction.
fn spellings(unix_ms: i64) -> Vec<String> {
    let Ok(moment) = Timestamp::from_millisecond(unix_ms) else { return vec![] };
    let mut all = Vec::new();
    for (hours, zones) in [(8, &["+08:00", "+0800", "+08"][..]), (0, &["Z", "+00:00", "+0000"])] {
        let civil = Offset::constant(hours).to_datetime(moment);
        for zone in zones {
            for form in [
                "%Y-%m-%dT%H:%M:%S",
                "%Y-%m-%dT%H:%M:%S%.3f",
                "%Y-%m-%dT%H:%M:%S%.6f",
                "%Y-%m-%d %H:%M:%S",
            ] {
                all.push(format!("{}{zone}", civil.strftime(form)));
            }
        }
    }
    all
}

fn bodies(body: &[u8]) -> Vec<Guess> {
    let mut found: Vec<(Vec<u8>, String)> = Vec::new();
    let mut add = |bytes: Vec<u8>, how: &str| found.push((bytes, how.to_owned()));
    let ends: [&[u8]; 2] = [b"\n", b"\r\n"];
    for end in ends {
        add([body, end].concat(), "with a line's end behind it");
    }
    add(body.trim_ascii().to_vec(), "without white space around it");
    let bom: &[u8] = b"\xef\xbb\xbf";
    add(body.strip_prefix(bom).unwrap_or(body).to_vec(), "without a byte order mark");
    add([bom, body].concat(), "with a byte order mark");
    add(vec![], "left out");
    let mut rare = Vec::new();
    if let Ok(text) = std::str::from_utf8(body) {
        let unix = text.replace("\r\n", "\n");
        add(unix.replace('\n', "\r\n").into_bytes(), "with its lines ending in CR LF");
        add(unix.into_bytes(), "with its lines ending in a line feed");
        if !text.is_ascii() {
            let latin: Option<Vec<u8>> = text.chars().map(|c| u8::try_from(c).ok()).collect();
            if let Some(latin) = latin {
                add(latin, "in ISO-8859-1, instead of UTF-8");
            }
            let lost = text.chars().map(|c| if c.is_ascii() { c } else { '?' });
            add(lost.collect::<String>().into_bytes(), "in ASCII, with `?` for all else");
            let twice = body.iter().map(|byte| char::from(*byte));
            add(twice.collect::<String>().into_bytes(), "encoded as UTF-8 twice");
        }
        for form in forms(text) {
            if form.rare {
                rare.push((form.text.into_bytes(), form.how));
            } else {
                add(form.text.into_bytes(), &form.how);
            }
        }
    }
    let of = |rare: bool| {
        move |(bytes, how): (Vec<u8>, String)| Guess {
            cause: Cause::body(&how),
            change: Change::Body(bytes),
            rare,
        }
    };
    let all = found.into_iter().map(of(false)).chain(rare.into_iter().map(of(true)));
    all.filter(|guess| guess.change != Change::Body(body.to_vec())).collect()
}
