//! Who may name whom: reads `src/` and checks it against the two tables of ARCHITECTURE.md.
//!
//! It reads texts, not syntax: paths that begin with `crate::`, `super::`, this crate's name or another crate's. That is
//! enough, because nobody here hides a path from a reader. A new file or folder of `src/` needs a row.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// A room, and what of ours it may name beside itself. `"grpc::client"` is that module alone, `"*"` is everything.
const ROOMS: &[(&str, &[&str])] = &[
    ("domain", &[]),
    ("store", &["domain"]),
    ("feed", &["domain", "store"]),
    (
        "engine",
        &[
            "domain",
            "store",
            "feed::Wake",
            "layer::rate_limit::Bucket",
            "layer::rate_limit::Rate",
            "telemetry",
        ],
    ),
    ("watch_list", &["domain", "store", "telemetry"]),
    ("upkeep", &["domain", "engine", "store"]),
    ("layer", &["domain", "telemetry"]),
    ("listen", &["layer", "telemetry", "tls"]),
    (
        "grpc",
        &[
            "domain",
            "engine",
            "feed",
            "store",
            "layer",
            "listen::Cut",
            "listen::Identity",
            "listen::Patient",
            "listen::Peer",
            "telemetry",
        ],
    ),
    ("bridge", &["domain", "grpc::client", "layer", "listen::Peer", "listen::Porter", "telemetry"]),
    (
        "admin",
        &[
            "domain",
            "grpc::client",
            "grpc::reference",
            "grpc::wire",
            "listen::Identity",
            "listen::Peer",
            "telemetry",
        ],
    ),
    ("config", &["domain"]),
    ("tls", &[]),
    ("telemetry", &["domain"]),
    (
        "app",
        &[
            "admin",
            "bridge",
            "config",
            "domain",
            "engine",
            "feed",
            "grpc",
            "layer",
            "listen",
            "store",
            "telemetry",
            "tls",
            "watch_list",
        ],
    ),
    ("cli", &["*"]),
    ("main", &["cli"]),
    ("lib", &[]),
];

/// A crate, its family (`tokio` is `tokio_util` too), and the rooms that may name it. Who is not there may not.
const CRATES: &[(&str, &[&str])] = &[
    ("tonic", &["grpc", "telemetry"]),
    ("prost", &["grpc"]),
    ("axum", &["bridge", "admin"]),
    ("http", &["bridge", "admin", "layer", "listen", "grpc", "cli"]),
    ("hyper", &["listen", "grpc", "cli"]),
    ("tower", &["layer", "listen", "grpc", "bridge"]),
    ("serde", &["bridge", "store", "upkeep", "cli"]),
    ("rusqlite", &["store"]),
    ("deadpool", &["store"]),
    ("opentelemetry", &["telemetry"]),
    ("prometheus", &["telemetry"]),
    ("toml", &["config"]),
    ("cryptoki", &["bridge"]),
    ("num_bigint", &["bridge"]),
    ("x509_cert", &["tls"]),
    ("rustls", &["listen", "grpc", "store", "tls", "app", "cli"]),
    (
        "tokio",
        &[
            "store",
            "feed",
            "watch_list",
            "engine",
            "layer",
            "listen",
            "grpc",
            "bridge",
            "telemetry",
            "app",
            "cli",
            "main",
        ],
    ),
    (
        "tracing",
        &[
            "store",
            "feed",
            "watch_list",
            "engine",
            "listen",
            "grpc",
            "bridge",
            "admin",
            "config",
            "telemetry",
            "app",
            "cli",
        ],
    ),
    ("maud", &["admin"]),
    ("form_urlencoded", &["admin"]),
    ("clap", &["cli", "main"]),
    ("anyhow", &["cli", "main"]),
];

fn files() -> Vec<(String, PathBuf)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut folders, mut files) = (vec![src.clone()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("src can be listed") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let first = path.strip_prefix(&src).expect("below src").iter().next();
                let name = first.and_then(|first| first.to_str()).expect("a name in UTF-8");
                files.push((name.trim_end_matches(".rs").to_owned(), path));
            }
        }
    }
    files
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).expect("a file of src can be read")
}

/// The text without its comments, so that a doc comment may speak of anything.
fn code(text: &str) -> String {
    let lines = text.lines().map(|line| line.split(" //").next().unwrap_or(line));
    lines.filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// The paths a text begins with: `a::{b, c::D}` is `a::b` and `a::c::D`.
fn paths(text: &str) -> Vec<String> {
    let path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let end = text.find(|c| !path(c)).unwrap_or(text.len());
    let (head, rest) = text.split_at(end);
    let Some(group) = rest.strip_prefix('{').filter(|_| head.is_empty() || head.ends_with("::"))
    else {
        return vec![head.to_owned()];
    };
    let (mut depth, mut start, mut found) = (0usize, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                let inner = paths(group[start..at].trim());
                found.extend(inner.into_iter().map(|inner| format!("{head}{inner}")));
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    found
}

/// What follows `root` wherever a path begins with it.
fn after<'a>(code: &'a str, root: &'a str) -> impl Iterator<Item = &'a str> {
    let inside = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    code.match_indices(root)
        .filter(move |(at, _)| !code[..*at].ends_with(inside))
        .map(|(at, root)| &code[at + root.len()..])
}

/// What a room's code names and may not.
fn offences(room: &str, code: &str) -> BTreeSet<String> {
    let may = ROOMS.iter().find(|(name, _)| *name == room).map_or(&[][..], |(_, may)| may);
    let allowed = |path: &str| {
        let below = |root: &str| path == root || path.starts_with(&format!("{root}::"));
        below(room) || may.iter().any(|root| *root == "*" || below(root))
    };
    let is_room = |path: &str| {
        let first = path.split("::").next().unwrap_or(path);
        ROOMS.iter().any(|(name, _)| *name == first)
    };
    // the binary alone names the library from outside; elsewhere that is a log directive in a text
    let from_outside = if room == "main" { "alipayplus_cancel::" } else { "crate::" };
    let roots = ["crate::", "super::", "super::super::", from_outside];
    let ours = roots.iter().flat_map(|root| after(code, root).flat_map(paths));
    let mut found: BTreeSet<String> = ours.filter(|path| is_room(path) && !allowed(path)).collect();
    for (family, rooms) in CRATES.iter().filter(|(_, rooms)| !rooms.contains(&room)) {
        let of_family = |rest: &str| {
            let name: String =
                rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            let whole = name.is_empty() || name.starts_with('_');
            (whole && rest[name.len()..].starts_with("::")).then_some(name)
        };
        let named = after(code, family).find_map(of_family);
        found.extend(named.map(|name| format!("{family}{name} (only {})", rooms.join(", "))));
    }
    found
}

#[test]
fn a_room_names_only_what_its_row_allows() {
    let mut offenders = BTreeMap::new();
    for (room, path) in files() {
        let found = offences(&room, &code(&text(&path)));
        if !found.is_empty() {
            offenders.insert(path, found);
        }
    }
    assert!(offenders.is_empty(), "not in the tables of tests/it/layering.rs: {offenders:#?}");
}

#[test]
fn every_room_has_a_row_and_every_row_a_room() {
    let rooms: BTreeSet<String> = files().into_iter().map(|(room, _)| room).collect();
    let rows: BTreeSet<String> = ROOMS.iter().map(|(room, _)| (*room).to_owned()).collect();
    assert_eq!(rooms, rows, "left: rooms of src, right: rows of tests/it/layering.rs");
}

#[test]
fn every_file_says_first_what_it_is() {
    let silent: Vec<_> =
        files().into_iter().filter(|(_, path)| !text(path).starts_with("//! ")).collect();
    assert!(silent.is_empty(), "without a first line that begins with `//! `: {silent:#?}");
}

#[test]
fn only_config_reads_the_environment() {
    let readers: BTreeSet<String> = files()
        .into_iter()
        .filter(|(_, path)| code(&text(path)).contains("env::var"))
        .map(|(room, _)| room)
        .collect();
    assert!(readers.iter().all(|room| room == "config"), "{readers:?}");
}

#[test]
fn a_forbidden_name_is_found_in_whatever_form() {
    let offences = |room: &str, text: &str| -> Vec<String> {
        offences(room, &code(text)).into_iter().collect()
    };
    assert_eq!(offences("bridge", "use crate::engine::Engine;"), ["engine::Engine"]);
    assert_eq!(
        offences("bridge", "use crate::{\n    domain::{a, b},\n    grpc::{client, server::S},\n};"),
        ["grpc::server::S"]
    );
    assert_eq!(offences("domain", "fn f(s: super::super::store::Error) {}"), ["store::Error"]);
    assert_eq!(
        offences("listen", "type T = tonic_types::X;"),
        ["tonic_types (only grpc, telemetry)"]
    );
    assert_eq!(offences("main", "use alipayplus_cancel::app;"), ["app"]);
    assert!(offences("domain", "/// as crate::store does\n//! tokio::spawn").is_empty());
    assert!(offences("grpc", "use crate::{engine, store};\ntonic::Status::ok(\"\")").is_empty());
}
