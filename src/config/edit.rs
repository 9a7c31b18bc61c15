//! Changes of a settings file in place, for rotating keys: comments, order and everything else stay as they are.

use std::fmt::Write as _;

use toml_edit::{ArrayOfTables, DocumentMut, Item, Table, TableLike, value};

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// Another of our keys, at the end.
    AddIdentityKey {
        /// Its `keyVersion`.
        version: String,
        /// Its file, as the settings name it.
        file: String,
        /// `staged`, `active` or `retired`.
        state: &'static str,
    },
    /// What one of our keys is for.
    SetIdentityState {
        /// Which.
        version: String,
        /// `staged`, `active` or `retired`.
        state: &'static str,
    },
    /// One of our keys goes.
    RemoveIdentityKey {
        /// Which.
        version: String,
    },
    /// Another key of a client, at the end.
    AddClientKey {
        /// Whose.
        client: String,
        /// Its `keyVersion`.
        version: String,
        /// Its file, as the settings name it.
        file: String,
    },
    /// A key of a client ends.
    EndClientKey {
        /// Whose.
        client: String,
        /// Which.
        version: String,
        /// From then on.
        not_after: String,
    },
    /// A key of a client goes.
    RemoveClientKey {
        /// Whose.
        client: String,
        /// Which.
        version: String,
    },
}

/// Why a file cannot be changed by a program; a person can.
#[derive(Debug, thiserror::Error)]
pub enum CannotEdit {
    /// It is not TOML.
    #[error("this is not TOML")]
    Syntax,
    /// It is written otherwise.
    #[error("{0} does not stand there as tables of its own ([[{0}]]); change it by hand")]
    Form(&'static str),
    /// There is no such row.
    #[error("there is no {0} in this file; it may come from the environment")]
    Missing(String),
}

/// The text with these changes.
pub fn edited(text: &str, edits: &[Edit]) -> Result<String, CannotEdit> {
    let mut document: DocumentMut = text.parse().map_err(|_| CannotEdit::Syntax)?;
    for edit in edits {
        apply(&mut document, edit)?;
    }
    Ok(document.to_string())
}

const IDENTITY_KEYS: &str = "identity.keys";
const CLIENTS: &str = "clients";
const CLIENT_KEYS: &str = "clients.keys";

fn apply(document: &mut DocumentMut, edit: &Edit) -> Result<(), CannotEdit> {
    match edit {
        Edit::AddIdentityKey { version, file, state } => {
            let rows = identity_keys(document)?;
            let mut row = Table::new();
            row["version"] = value(version);
            row["file"] = value(file);
            row["state"] = value(*state);
            push(rows, row);
        }
        Edit::SetIdentityState { version, state } => {
            let rows = identity_keys(document)?;
            let place = place(rows, "version", version, IDENTITY_KEYS)?;
            if let Some(row) = rows.get_mut(place) {
                set(row, "state", state);
            }
        }
        Edit::RemoveIdentityKey { version } => {
            let rows = identity_keys(document)?;
            let place = place(rows, "version", version, IDENTITY_KEYS)?;
            remove(rows, place);
        }
        Edit::AddClientKey { client, version, file } => {
            let rows = client_keys(document, client)?;
            let mut row = Table::new();
            row["version"] = value(version);
            row["public_key_file"] = value(file);
            push(rows, row);
        }
        Edit::EndClientKey { client, version, not_after } => {
            let rows = client_keys(document, client)?;
            let place = place(rows, "version", version, CLIENT_KEYS)?;
            if let Some(row) = rows.get_mut(place) {
                set(row, "not_after", not_after);
            }
        }
        Edit::RemoveClientKey { client, version } => {
            let rows = client_keys(document, client)?;
            let place = place(rows, "version", version, CLIENT_KEYS)?;
            remove(rows, place);
        }
    }
    Ok(())
}

fn identity_keys(document: &mut DocumentMut) -> Result<&mut ArrayOfTables, CannotEdit> {
    let identity = document.get_mut("identity").and_then(Item::as_table_like_mut);
    let keys = identity.and_then(|identity| identity.get_mut("keys"));
    keys.and_then(Item::as_array_of_tables_mut).ok_or(CannotEdit::Form(IDENTITY_KEYS))
}

fn client_keys<'d>(
    document: &'d mut DocumentMut,
    client: &str,
) -> Result<&'d mut ArrayOfTables, CannotEdit> {
    let clients = document.get_mut(CLIENTS).and_then(Item::as_array_of_tables_mut);
    let clients = clients.ok_or(CannotEdit::Form(CLIENTS))?;
    let place = place(clients, "id", client, CLIENTS)?;
    let keys = clients.get_mut(place).and_then(|client| client.get_mut("keys"));
    keys.and_then(Item::as_array_of_tables_mut).ok_or(CannotEdit::Form(CLIENT_KEYS))
}

fn place(rows: &ArrayOfTables, key: &str, wanted: &str, what: &str) -> Result<usize, CannotEdit> {
    let is = |row: &Table| row.get(key).and_then(Item::as_str) == Some(wanted);
    let missing = || CannotEdit::Missing(format!("{what} with {key} = \"{wanted}\""));
    rows.iter().position(is).ok_or_else(missing)
}

/// Sets a value and keeps the comment behind it.
fn set(row: &mut dyn TableLike, key: &str, text: &str) {
    let mut new = toml_edit::Value::from(text);
    if let Some(old) = row.get(key).and_then(Item::as_value) {
        *new.decor_mut() = old.decor().clone();
    }
    row.insert(key, Item::Value(new));
}

fn push(rows: &mut ArrayOfTables, mut row: Table) {
    row.decor_mut().set_prefix("\n");
    rows.push(row);
}

/// What stands above the row may be about all of them, so it stays, above the next.
fn remove(rows: &mut ArrayOfTables, place: usize) {
    let removed = rows.remove(place);
    let above = |row: &Table| row.decor().prefix().and_then(|it| it.as_str()).map(str::to_owned);
    let Some(prefix) = above(&removed).filter(|prefix| prefix.contains('#')) else { return };
    if let Some(next) = rows.get_mut(place) {
        let own = above(next).unwrap_or_default();
        next.decor_mut().set_prefix(format!("{prefix}{}", own.trim_start_matches('\n')));
    }
}

/// The lines that differ, each with its number: what goes with `-`, what comes with `+`.
pub fn difference(before: &str, after: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    // longest common rest of `old[i..]` and `new[j..]`
    let width = new.len().saturating_add(1);
    let mut common = vec![0usize; old.len().saturating_add(1).saturating_mul(width)];
    let at = |i: usize, j: usize| i.saturating_mul(width).saturating_add(j);
    let read = |common: &[usize], i: usize, j: usize| common.get(at(i, j)).copied().unwrap_or(0);
    for (i, one) in old.iter().enumerate().rev() {
        for (j, other) in new.iter().enumerate().rev() {
            let (below, right) = (i.saturating_add(1), j.saturating_add(1));
            let longest = if one == other {
                read(&common, below, right).saturating_add(1)
            } else {
                read(&common, below, j).max(read(&common, i, right))
            };
            if let Some(slot) = common.get_mut(at(i, j)) {
                *slot = longest;
            }
        }
    }
    let (mut i, mut j, mut text) = (0usize, 0usize, String::new());
    loop {
        let (below, right) = (i.saturating_add(1), j.saturating_add(1));
        // writing to a text cannot fail
        let _written = match (old.get(i), new.get(j)) {
            (Some(one), Some(other)) if one == other => {
                (i, j) = (below, right);
                Ok(())
            }
            (Some(one), other)
                if other.is_none() || read(&common, below, j) >= read(&common, i, right) =>
            {
                i = below;
                writeln!(text, "{below:>5} - {one}")
            }
            (_, Some(other)) => {
                j = right;
                writeln!(text, "{right:>5} + {other}")
            }
            (Some(_) | None, None) => return text,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# all of our keys\n[[identity.keys]] # the first\nversion = \"1\"  # old\n\
                        file = \"a.pem\"\nstate = \"active\" # signs\n\n[[clients]]\nid = \"C\"\n\n\
                        [[clients.keys]]\nversion = \"1\"\npublic_key_file = \"c.pub\"\n\n[store]\n# end\n";

    #[test]
    fn what_is_not_changed_stays_as_it_is_comments_too() {
        let staged = Edit::AddIdentityKey {
            version: "2".to_owned(),
            file: "b.pem".to_owned(),
            state: "staged",
        };
        let text = edited(TEXT, &[staged]).unwrap();
        assert_eq!(
            difference(TEXT, &text).lines().map(str::trim_start).collect::<Vec<_>>(),
            [
                "7 + [[identity.keys]]",
                "8 + version = \"2\"",
                "9 + file = \"b.pem\"",
                "10 + state = \"staged\"",
                "11 + "
            ]
        );
        let set =
            |version: &str, state| Edit::SetIdentityState { version: version.to_owned(), state };
        let text = edited(&text, &[set("1", "retired"), set("2", "active")]).unwrap();
        assert!(text.contains("state = \"retired\" # signs"), "{text}");
        let text = edited(&text, &[Edit::RemoveIdentityKey { version: "1".to_owned() }]).unwrap();
        assert!(
            text.starts_with("# all of our keys\n[[identity.keys]]\nversion = \"2\"\n"),
            "{text}"
        );
        assert!(text.ends_with("[store]\n# end\n"));
    }

    #[test]
    fn a_clients_key_comes_ends_and_goes() {
        let (client, version) = ("C".to_owned(), "2".to_owned());
        let add = Edit::AddClientKey { client: client.clone(), version, file: "d.pub".to_owned() };
        let version = "1".to_owned();
        let end = Edit::EndClientKey {
            client: client.clone(),
            version: version.clone(),
            not_after: "2027-01-01T00:00:00Z".to_owned(),
        };
        let text = edited(TEXT, &[add, end]).unwrap();
        assert!(
            text.contains("public_key_file = \"c.pub\"\nnot_after = \"2027-01-01T00:00:00Z\"\n")
        );
        let gone = edited(&text, &[Edit::RemoveClientKey { client, version }]).unwrap();
        assert!(gone.contains("version = \"2\"\npublic_key_file = \"d.pub\"\n"), "{gone}");
        assert!(!gone.contains("c.pub"));
    }

    #[test]
    fn what_is_written_otherwise_is_left_to_a_person() {
        let remove = [Edit::RemoveIdentityKey { version: "1".to_owned() }];
        let inline = "identity.keys = [{ version = \"1\", file = \"a\" }]\n";
        assert!(edited(inline, &remove).unwrap_err().to_string().contains("by hand"));
        assert!(edited("", &remove).is_err());
        let absent = [Edit::RemoveIdentityKey { version: "9".to_owned() }];
        assert!(edited(TEXT, &absent).unwrap_err().to_string().contains("version = \"9\""));
    }
}
