//! What a list or a value must be beyond its type.

use std::{collections::BTreeSet, path::PathBuf};

use super::{Client, ClientKey, IdentityKey, KeyState, PathPrefix, now, read::Check};
use crate::domain::consumer::ConsumerName;

/// How many keys of a client may be valid at once: the old, the new, and one to spare.
const CLIENT_KEYS_MAX: usize = 3;

pub(super) fn filled() -> Check<Vec<String>> {
    Check::refuse(|list: &Vec<String>| {
        let legal = |text: &String| !text.trim().is_empty() && !text.chars().any(char::is_control);
        (!list.iter().all(legal))
            .then(|| "expected texts that are not empty, without control characters".to_owned())
    })
}

pub(super) fn names() -> Check<Vec<String>> {
    let filled = filled();
    Check::refuse(move |list: &Vec<String>| {
        let none = list.is_empty().then(|| "expected at least one name".to_owned());
        none.or_else(|| filled.why_not(list))
    })
}

/// The first that was there before.
fn repeated<T: Ord>(items: impl IntoIterator<Item = T>) -> Option<T> {
    let mut seen = BTreeSet::new();
    items.into_iter().find_map(|item| seen.replace(item))
}

pub(super) fn distinct_consumers() -> Check<Vec<ConsumerName>> {
    Check::refuse(|names: &Vec<ConsumerName>| {
        let twice = repeated(names.iter().map(ConsumerName::as_str))?;
        Some(format!("`{twice}` stands there twice; take one out"))
    })
}

pub(super) fn distinct_prefixes() -> Check<Vec<PathPrefix>> {
    Check::refuse(|prefixes: &Vec<PathPrefix>| {
        if prefixes.is_empty() {
            return Some("expected at least one; `[\"\"]` serves the bare tails".to_owned());
        }
        let twice = repeated(prefixes.iter().map(PathPrefix::as_str))?;
        Some(format!("`{twice}` stands there twice; take one out"))
    })
}

/// A name in a token.
pub(super) fn named() -> Check<String> {
    let legal = |text: &String| !text.is_empty() && !text.chars().any(char::is_control);
    Check::expect("a text that is not empty, without control characters".to_owned(), legal)
}

/// A header's name.
pub(super) fn header_name() -> Check<String> {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let legal = move |text: &String| !text.is_empty() && text.bytes().all(token);
    Check::expect("a header's name such as \"x-forwarded-email\"".to_owned(), legal)
}

/// Bytes in hex.
pub(super) fn key_id() -> Check<String> {
    let legal = |text: &String| {
        let hex = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        hex && !text.is_empty() && text.len().is_multiple_of(2)
    };
    Check::expect("bytes in hex, as \"01\" or \"a0ff\"".to_owned(), legal)
}

/// Exactly one place for each key, and one name in a token.
fn misplaced(key: &IdentityKey) -> Option<String> {
    let version = &key.version;
    match (&key.file, &key.pkcs11) {
        (Some(_), None) => None,
        (None, None) => Some(format!(
            "key `{version}` is nowhere: set `file`, or `pkcs11` for a key that stays in its token"
        )),
        (Some(_), Some(_)) => Some(format!(
            "key `{version}` has both `file` and `pkcs11`, but is in one place only: take one out"
        )),
        (None, Some(place)) => match (&place.key_label, &place.key_id) {
            (Some(_), None) | (None, Some(_)) => None,
            (None, None) => Some(format!(
                "key `{version}`: set `pkcs11.key_label` or `pkcs11.key_id`, so that it is found in its token"
            )),
            (Some(_), Some(_)) => Some(format!(
                "key `{version}` has both `pkcs11.key_label` and `pkcs11.key_id`: take one out"
            )),
        },
    }
}

pub(super) fn signing_keys() -> Check<Vec<IdentityKey>> {
    Check::refuse(|keys: &Vec<IdentityKey>| {
        if let Some(twice) = repeated(keys.iter().map(|key| key.version.as_str())) {
            return Some(format!("version `{twice}` stands there twice; each key needs its own"));
        }
        if let Some(misplaced) = keys.iter().find_map(misplaced) {
            return Some(misplaced);
        }
        let active = keys.iter().filter(|key| key.state == KeyState::Active);
        let versions: Vec<_> = active.map(|key| format!("`{}`", key.version)).collect();
        match (keys.len(), versions.len()) {
            (_, 1) => None,
            (0, _) => Some(
                "expected at least one `[[identity.keys]]`: without it no answer can be signed; \
                 `alipayplus-cancel keys generate` makes one"
                    .to_owned(),
            ),
            (_, 0) => {
                Some("none is active: set `state = \"active\"` for the one that signs".to_owned())
            }
            _ => Some(format!(
                "{} are active, but only one signs: set `state` of the others to \"staged\" or \"retired\"",
                versions.join(", ")
            )),
        }
    })
}

pub(super) fn distinct_clients() -> Check<Vec<Client>> {
    Check::refuse(|clients: &Vec<Client>| {
        if let Some(twice) = repeated(clients.iter().map(|client| &client.id)) {
            return Some(format!("client `{twice}` stands there twice; take one out"));
        }
        let files = |client: &Client| -> BTreeSet<PathBuf> {
            client.keys.iter().map(|key| key.public_key_file.clone()).collect()
        };
        let twice = repeated(clients.iter().flat_map(files))?;
        Some(format!(
            "two clients have the key {}: either could then speak for the other; each needs its own",
            twice.display()
        ))
    })
}

pub(super) fn client_keys() -> Check<Vec<ClientKey>> {
    Check::refuse(|keys: &Vec<ClientKey>| {
        if keys.is_empty() {
            return Some(
                "expected at least one `[[clients.keys]]`: without it no request can be verified"
                    .to_owned(),
            );
        }
        if let Some(twice) = repeated(keys.iter().map(|key| key.version.as_str())) {
            return Some(format!("version `{twice}` stands there twice; each key needs its own"));
        }
        let now = now();
        let valid = keys.iter().filter(|key| !key.has_ended(now)).count();
        (valid > CLIENT_KEYS_MAX).then(|| {
            format!(
                "{valid} keys have not ended, but at most {CLIENT_KEYS_MAX} may: \
                 take some out, or give them a `not_after` that has passed"
            )
        })
    })
}

/// Parts that no collector has would only be lost, and a password would end in logs.
pub(super) fn collector() -> Check<String> {
    Check::refuse(|url: &String| {
        let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
        let authority = rest.map(|rest| rest.strip_suffix('/').unwrap_or(rest));
        let legal = authority.is_some_and(|authority| {
            let (host, port) = authority.rsplit_once(':').unwrap_or((authority, "4317"));
            let ours = |c: char| c.is_ascii_alphanumeric() || "-._[]:".contains(c);
            !host.is_empty() && host.chars().all(ours) && port.parse::<u16>().is_ok()
        });
        (!legal).then(|| {
            "expected \"http://host:4317\" or \"https://host:4317\", without a path or a password"
                .to_owned()
        })
    })
}

pub(super) fn ratio() -> Check<f64> {
    Check::refuse(|ratio: &f64| {
        (!(0.0..=1.0).contains(ratio)).then(|| "expected a number from 0 to 1".to_owned())
    })
}
