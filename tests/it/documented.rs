//! What the documents say is tried by a test, is: every test that they name is there.

use std::{collections::BTreeSet, fs, path::Path};

const DOCUMENTS: [&str; 2] = ["SECURITY.md", "docs/reliability.md"];

/// Names of all tests below this folder, `module::name`, by the files that hold them.
fn tests(folder: &Path, module: &str, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).expect("a name").to_owned();
        let inner = if module.is_empty() { stem } else { format!("{module}::{stem}") };
        if path.is_dir() {
            tests(&path, &inner, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            // some make their tests by macros, and are named as a whole
            found.insert(format!("{inner}::"));
            let text = fs::read_to_string(&path).expect("a text");
            let mut is_test = false;
            for line in text.lines().map(str::trim) {
                is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
                let rest = line.trim_start_matches("async ").strip_prefix("fn ");
                if let Some(rest) = rest.filter(|_| is_test) {
                    let name = rest.split('(').next().expect("a name");
                    found.insert(format!("{inner}::{name}"));
                    is_test = false;
                }
            }
        }
    }
}

/// What stands between backticks and looks like a test of this suite: `module::`, `module::name` or
/// `module::beginning…`.
fn named<'a>(text: &'a str, modules: &BTreeSet<&str>) -> Vec<&'a str> {
    let spans = text.split('`').skip(1).step_by(2);
    spans
        .filter(|span| {
            span.split_once("::").is_some_and(|(module, _)| modules.contains(module))
                && !span.contains(|c: char| c.is_whitespace() || c == '(')
        })
        .collect()
}

fn is_there(name: &str, tests: &BTreeSet<String>) -> bool {
    if let Some(beginning) = name.strip_suffix('…') {
        return tests.iter().any(|test| test.starts_with(beginning));
    }
    if name.ends_with("::") {
        return tests.iter().any(|test| test.starts_with(name));
    }
    tests.contains(name)
}

#[test]
fn every_test_that_a_document_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = BTreeSet::new();
    tests(&root.join("tests/it"), "", &mut all);
    let modules: BTreeSet<&str> = all.iter().filter_map(|test| test.split("::").next()).collect();
    assert!(modules.len() > 30 && all.len() > 300, "{} of {}", all.len(), modules.len());
    assert!(!is_there("crash::no_such_test", &all) && !is_there("crash::no_such_…", &all));
    let mut missing = Vec::new();
    for document in DOCUMENTS {
        let text = fs::read_to_string(root.join(document)).expect("a document");
        // a fence's backticks would turn inside and outside round
        let text: String = text.split("```").step_by(2).collect();
        let names = named(&text, &modules);
        assert!(!names.is_empty(), "{document} names no test: this one sees nothing");
        let gone = names.into_iter().filter(|name| !is_there(name, &all));
        missing.extend(gone.map(|name| format!("{document}: {name}")));
    }
    assert!(missing.is_empty(), "tests that are not there: {missing:#?}");
}
