//! Settings: every text is taken or refused with sentences; what is taken prints so that it reads back; what a program
//! changes in a file changes that and nothing else; and a password is never told.

use std::path::Path;

use alipayplus_cancel::config::{
    ConfigError, ENVIRONMENT_PREFIX, Settings,
    edit::{self, Edit},
};

/// A file that can be used: what is fuzzed stands beside it.
const LEAST: &str =
    "tokens.hash_key_files = [\"h\"]\n[[identity.keys]]\nversion = \"1\"\nfile = \"k\"\n";

const PASSWORD: &str = "Zx7-hidden";

/// The first byte chooses.
pub fn run(data: &[u8]) {
    let Some((choice, data)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(data) else { return };
    match choice % 4 {
        0 => file(text),
        1 => file(&format!("{text}\n{LEAST}")),
        2 => environment(text),
        _ => password(text),
    }
}

fn refused(error: &ConfigError) {
    assert!(!error.problems().is_empty());
    for problem in error.problems() {
        let line = problem.to_string();
        assert!(!line.is_empty() && !line.contains(['\n', '\r', '\u{1b}']), "{line:?}");
    }
}

fn file(text: &str) {
    let settings = match Settings::from_toml_str(text) {
        Ok(settings) => settings,
        Err(error) => return refused(&error),
    };
    if settings.identity.keys.iter().any(|key| key.version == "fuzz-2") {
        return;
    }
    let add = Edit::AddIdentityKey {
        version: "fuzz-2".to_owned(),
        file: "k2".to_owned(),
        state: "staged",
    };
    // inline, and the like: a person can
    let Ok(edited) = edit::edited(text, &[add]) else { return };
    let after = Settings::from_toml_str(&edited)
        .unwrap_or_else(|error| panic!("{error}: {text:?} became {edited:?}"));
    let count = settings.identity.keys.len();
    assert_eq!(after.identity.keys.len(), count + 1);
    assert_eq!(after.identity.keys[..count], settings.identity.keys[..]);
    assert_eq!((&after.clients, &after.limits), (&settings.clients, &settings.limits));
    // every line that was there is there
    let difference = edit::difference(text, &edited);
    let is_gone = |line: &&str| {
        line.trim_start().trim_start_matches(|c: char| c.is_ascii_digit()).starts_with(" - ")
    };
    assert_eq!(difference.lines().filter(is_gone).count(), 0, "{difference}");

    let remove = Edit::RemoveIdentityKey { version: "fuzz-2".to_owned() };
    let back = edit::edited(&edited, &[remove]).expect("what was added can be taken out");
    let back = Settings::from_toml_str(&back).unwrap_or_else(|error| panic!("{error}: {back:?}"));
    assert_eq!(back, settings);
}

/// One variable a line, without the prefix.
fn environment(text: &str) {
    let least = [
        ("TOKENS__HASH_KEY_FILES", "h"),
        ("IDENTITY__KEYS__0__VERSION", "1"),
        ("IDENTITY__KEYS__0__FILE", "k"),
    ];
    let told = text.lines().filter_map(|line| line.split_once('='));
    let variables = least.into_iter().chain(told);
    let environment =
        variables.map(|(name, value)| (format!("{ENVIRONMENT_PREFIX}{name}"), value.to_owned()));
    let loaded = match Settings::load(None, environment, &[]) {
        Ok(loaded) => loaded,
        Err(error) => return refused(&error),
    };
    let printed = loaded.print();
    let again = Settings::from_toml_str(&printed).unwrap_or_else(|e| panic!("{e}\n{printed}"));
    // a password of a URL is printed as stars
    assert!(again == loaded.settings || printed.contains("***"), "{text:?}\n{printed}");
    for (name, _) in loaded.origins() {
        assert!(loaded.origin(&name).is_some(), "{name}");
    }
    assert!(loaded.files().all(|(_, path)| path != Path::new("")));
    assert!(loaded.warnings().iter().all(|warning| !warning.is_empty()));
}

/// A database's URL with a password in it, whatever stands behind that.
fn password(text: &str) {
    let (user, behind) = text.split_once('\n').unwrap_or(("user", text));
    let url = format!("postgres://{user}:{PASSWORD}@{behind}");
    let shown = match Settings::load(
        None,
        [
            (format!("{ENVIRONMENT_PREFIX}TOKENS__HASH_KEY_FILES"), "h".to_owned()),
            (format!("{ENVIRONMENT_PREFIX}IDENTITY__KEYS__0__VERSION"), "1".to_owned()),
            (format!("{ENVIRONMENT_PREFIX}IDENTITY__KEYS__0__FILE"), "k".to_owned()),
            (format!("{ENVIRONMENT_PREFIX}STORE__URL"), url),
        ]
        .into_iter(),
        &[],
    ) {
        Ok(loaded) => format!("{}{:?}{:?}", loaded.print(), loaded.settings, loaded.warnings()),
        Err(error) => {
            refused(&error);
            format!("{error}{error:?}")
        }
    };
    assert!(!shown.contains(PASSWORD), "{shown}");
}
