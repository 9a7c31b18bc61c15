//! What fuzzing kept and what it broke: every input of `fuzz/corpus` and `fuzz/finds` runs again here, through the same
//! functions, with the stable compiler.

use std::{collections::BTreeSet, fs, panic, path::PathBuf};

#[path = "../../fuzz/src/targets/mod.rs"]
#[allow(clippy::arithmetic_side_effects)]
mod targets;

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(name)
}

/// The files of a folder; none if it is not there.
fn files(folder: PathBuf) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return vec![] };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    files
}

fn run(name: &str) {
    let (_, target) = targets::ALL.iter().find(|(target, _)| *target == name).expect("a target");
    let kept = files(folder("corpus").join(name));
    assert!(kept.len() >= 5, "{name} has a corpus");
    let found = files(folder("finds").join(name));
    for path in kept.into_iter().chain(found) {
        let input = fs::read(&path).expect("an input");
        let passed = panic::catch_unwind(|| target(&input)).is_ok();
        assert!(passed, "{name} breaks on {}, see above", path.display());
    }
}

#[test]
fn signature() {
    run("signature");
}

#[test]
fn decoding() {
    run("decoding");
}

#[test]
fn json() {
    run("json");
}

#[test]
fn message() {
    run("message");
}

#[test]
fn config() {
    run("config");
}

#[test]
fn cursor() {
    run("cursor");
}

#[test]
fn bridge() {
    run("bridge");
}

#[test]
fn every_target_is_fuzzed_and_has_a_test_here() {
    let names = |folder: PathBuf| -> BTreeSet<String> {
        let stems = files(folder).into_iter();
        stems.map(|path| path.file_stem().unwrap().to_string_lossy().into_owned()).collect()
    };
    let targets: BTreeSet<String> =
        targets::ALL.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names(folder("fuzz_targets")), targets);
    assert_eq!(names(folder("corpus")), targets);
    let here = fs::read_to_string(file!()).expect("this file");
    for name in &targets {
        assert!(here.contains(&format!("fn {name}() {{\n    run(\"{name}\")")), "{name}");
    }
}
