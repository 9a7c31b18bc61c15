//! The settings as they were written: a tree of values, each of which knows where it came from.
//!
//! Knows TOML, but no setting. What a value means is decided in `read`.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use toml::{
    Spanned,
    de::{DeInteger, DeTable, DeValue},
};

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// The settings file.
    File {
        /// The file, as it was named.
        path: PathBuf,
        /// Counted from 1; 0 means the file as a whole.
        line: usize,
    },
    /// An environment variable.
    Environment {
        /// Its name.
        name: String,
    },
    /// The command line.
    Flag,
}

impl fmt::Display for Origin {
    /// `default`, `file:line`, the variable's name, or `flag`; always one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line: 0 } => write!(f, "{}", one_line(&path.to_string_lossy())),
            Self::File { path, line } => {
                write!(f, "{}:{line}", one_line(&path.to_string_lossy()))
            }
            Self::Environment { name } => f.write_str(&one_line(name)),
            Self::Flag => f.write_str("flag"),
        }
    }
}

/// The text with control characters escaped, so that it cannot start a line of its own.
pub(super) fn one_line(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut line, c| {
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
        line
    })
}

/// The text as a TOML basic string, on one line.
pub(super) fn quoted(text: &str) -> String {
    let mut literal = String::with_capacity(text.len().saturating_add(2));
    literal.push('"');
    for c in text.chars() {
        match c {
            '"' => literal.push_str("\\\""),
            '\\' => literal.push_str("\\\\"),
            c if c.is_control() => literal.extend(format!("\\u{:04X}", u32::from(c)).chars()),
            c => literal.push(c),
        }
    }
    literal.push('"');
    literal
}

/// A step on the way to a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Into a table.
    Key(String),
    /// Into a list.
    Index(usize),
}

/// The way to a setting, printed as `clients.0.rate.burst`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Way(pub Vec<Step>);

impl Way {
    pub(super) fn key(&self, name: &str) -> Self {
        self.then(Step::Key(name.to_owned()))
    }

    pub(super) fn index(&self, index: usize) -> Self {
        self.then(Step::Index(index))
    }

    fn then(&self, step: Step) -> Self {
        let mut steps = self.0.clone();
        steps.push(step);
        Self(steps)
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, step) in self.0.iter().enumerate() {
            if place > 0 {
                f.write_str(".")?;
            }
            match step {
                Step::Key(name) => f.write_str(&key(name))?,
                Step::Index(index) => write!(f, "{index}")?,
            }
        }
        Ok(())
    }
}

/// A key as TOML writes it: quoted only if it must be.
pub(super) fn key(name: &str) -> String {
    let bare = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    if !name.is_empty() && name.bytes().all(bare) { name.to_owned() } else { quoted(name) }
}

/// A value, as written.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Text(String),
    /// One that is beyond 128 bits stands at the end of the range, where no setting takes it.
    Integer(i128),
    Float(f64),
    Bool(bool),
    /// An unquoted date or time, as TOML prints it.
    Moment(String),
    List(Vec<Node>),
    Table(BTreeMap<String, Node>),
}

impl Value {
    /// What was found, where the value itself may not be shown: the text at a table's place may be a URL with a password.
    pub(super) const fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "a text",
            Self::Integer(_) | Self::Float(_) => "a number",
            Self::Bool(_) => "true or false",
            Self::Moment(_) => "a date or time",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
        }
    }

    /// What was found, for "expected …, found …".
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Text(text) => {
                let shown: String = text.chars().take(60).collect();
                let cut = if shown.len() < text.len() { "…" } else { "" };
                format!("the text {}{cut}", quoted(&shown))
            }
            Self::Integer(i128::MAX | i128::MIN) => "a number of more than 38 digits".to_owned(),
            Self::Integer(number) => format!("the number {number}"),
            Self::Float(number) => format!("the number {number:?}"),
            Self::Bool(truth) => format!("{truth}"),
            Self::Moment(moment) => format!("the date or time {moment}"),
            Self::List(_) | Self::Table(_) => self.kind().to_owned(),
        }
    }
}

/// A value and where it came from.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) origin: Origin,
}

impl Node {
    pub(super) fn empty_table(origin: Origin) -> Self {
        Self { value: Value::Table(BTreeMap::new()), origin }
    }
}

/// What is wrong with the TOML itself. Never shows the line: there may be a password in it.
#[derive(Debug)]
pub(super) struct Syntax {
    pub(super) line: usize,
    pub(super) message: String,
}

/// Reads a whole file.
pub(super) fn document(text: &str, file: &Path) -> Result<Node, Syntax> {
    let lines = Lines::of(text);
    let root = DeTable::parse(text).map_err(|error| lines.syntax(&error))?;
    let at = |offset| Origin::File { path: file.to_owned(), line: lines.line(offset) };
    let value = Value::Table(table(root.get_ref(), &at));
    Ok(Node { value, origin: Origin::File { path: file.to_owned(), line: 0 } })
}

/// Reads a single TOML value out of an environment variable or a flag.
pub(super) fn inline(text: &str, origin: &Origin) -> Result<Node, Syntax> {
    let found = DeValue::parse(text).map_err(|error| Lines::of(text).syntax(&error))?;
    Ok(Node { value: value(found.get_ref(), &|_| origin.clone()), origin: origin.clone() })
}

fn table(from: &DeTable<'_>, at: &dyn Fn(usize) -> Origin) -> BTreeMap<String, Node> {
    let node = |(key, item): (&Spanned<_>, &Spanned<DeValue<'_>>)| Node {
        value: value(item.get_ref(), at),
        origin: at(key.span().start),
    };
    from.iter().map(|(key, item)| (key.get_ref().clone().into_owned(), node((key, item)))).collect()
}

fn value(from: &DeValue<'_>, at: &dyn Fn(usize) -> Origin) -> Value {
    match from {
        DeValue::String(text) => Value::Text(text.clone().into_owned()),
        DeValue::Integer(number) => Value::Integer(integer(number)),
        DeValue::Float(number) => Value::Float(number.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(truth) => Value::Bool(*truth),
        DeValue::Datetime(moment) => Value::Moment(moment.to_string()),
        DeValue::Array(items) => {
            let node = |item: &Spanned<DeValue<'_>>| Node {
                value: value(item.get_ref(), at),
                origin: at(item.span().start),
            };
            Value::List(items.iter().map(node).collect())
        }
        DeValue::Table(inner) => Value::Table(table(inner, at)),
    }
}

fn integer(number: &DeInteger<'_>) -> i128 {
    let end = if number.as_str().starts_with('-') { i128::MIN } else { i128::MAX };
    i128::from_str_radix(number.as_str(), number.radix()).unwrap_or(end)
}

/// Where the lines of a text start, so that finding a line takes no second walk.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Self {
        Self(text.match_indices('\n').map(|(offset, _)| offset).collect())
    }

    fn line(&self, offset: usize) -> usize {
        self.0.partition_point(|&newline| newline < offset).saturating_add(1)
    }

    fn syntax(&self, error: &toml::de::Error) -> Syntax {
        Syntax {
            line: self.line(error.span().map_or(0, |span| span.start)),
            message: error.message().to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line_of(root: &Node, way: &[&str]) -> String {
        let mut node = root;
        for step in way {
            node = if let Value::Table(inner) = &node.value {
                &inner[*step]
            } else if let Value::List(items) = &node.value {
                &items[step.parse::<usize>().unwrap()]
            } else {
                panic!("{step} is inside {}", node.value.describe())
            };
        }
        node.origin.to_string()
    }

    #[test]
    fn every_value_knows_its_line() {
        let text =
            "a.b = 1\n\n[c]\nd = [\n  1,\n  2,\n]\n[[e]]\nf = 1\n[[e]]\nf = 2\ng = { h = 3 }\n";
        let root = document(text, Path::new("x.toml")).unwrap();
        for (way, line) in [
            (&["a", "b"][..], 1),
            (&["c"], 3),
            (&["c", "d"], 4),
            (&["c", "d", "1"], 6),
            (&["e", "0"], 8),
            (&["e", "1"], 10),
            (&["e", "1", "f"], 11),
            (&["e", "1", "g", "h"], 12),
        ] {
            assert_eq!(line_of(&root, way), format!("x.toml:{line}"), "{way:?}");
        }
    }

    #[test]
    fn a_syntax_error_names_its_line_and_does_not_show_it() {
        let text = "[store]\nurl = \"postgres://u:secret@h/d\n";
        let wrong = document(text, Path::new("x.toml")).unwrap_err();
        assert_eq!(wrong.line, 2);
        assert!(!wrong.message.contains("secret"), "{}", wrong.message);
    }

    #[test]
    fn a_quoted_text_reads_back_and_stays_on_one_line() {
        let nasty = "a\"b\\c\nd\u{7f}\u{85}é𝄞\t";
        let literal = quoted(nasty);
        assert!(!literal.contains('\n'));
        let Value::Text(back) = inline(&literal, &Origin::Flag).unwrap().value else { panic!() };
        assert_eq!(back, nasty);
    }

    #[test]
    fn a_number_beyond_all_bounds_is_still_a_number() {
        let root = document("a = -0\nb = 0xff\nc = 1_000", Path::new("x")).unwrap();
        let Value::Table(root) = root.value else { panic!() };
        for (name, number) in [("a", 0), ("b", 255), ("c", 1000)] {
            assert!(matches!(root[name].value, Value::Integer(n) if n == number), "{name}");
        }
        let huge = document(&format!("a = {}", "9".repeat(60)), Path::new("x"));
        let Value::Table(huge) = huge.unwrap().value else { panic!() };
        assert!(matches!(huge["a"].value, Value::Integer(i128::MAX)));
    }
}
