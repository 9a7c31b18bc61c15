//! From the tree to types: each kind of value reads itself, and notes what it read and from where.
//!
//! A problem does not stop the reading, so that the operator hears of all of them at once.

use std::{
    fmt::Display,
    num::NonZeroU32,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    Role,
    error::Problem,
    shape::{Scalar, Shape},
    tree::{Node, Origin, Value, Way, quoted},
};

/// Something that can be set.
pub(super) trait Setting: Sized {
    /// Its keys, for finding what a name means.
    fn shape() -> Shape;

    /// Reads it; `None` means that a problem was reported.
    fn read(place: &Place<'_>, report: &mut Report) -> Option<Self>;
}

/// A single value.
pub(super) trait Leaf: Sized {
    /// What an environment variable's text is taken for.
    const SCALAR: Scalar = Scalar::Text;
    /// Completes "expected …".
    const EXPECTED: &'static str;
    /// Whether a wrong value must not be shown, because a password may be in it.
    const SECRET: bool = false;

    /// Reads a value that stands in the folder `base`.
    fn parse(value: &Value, base: Option<&Path>) -> Result<Self, Refused>;

    /// The value as TOML, without secrets.
    fn print(&self) -> String;

    /// The file that it names, if it does.
    fn file(&self) -> Option<&Path> {
        None
    }
}

/// Why a value is not taken.
#[derive(Debug)]
pub(super) enum Refused {
    /// It is not what is expected.
    Unexpected,
    /// This.
    Because(String),
}

/// A place in the tree, filled or not.
pub(super) struct Place<'t> {
    pub(super) way: Way,
    pub(super) node: Option<&'t Node>,
    /// Origin of what surrounds it: where to point if it is missing.
    pub(super) around: &'t Origin,
    /// Completes "expected …", instead of the type's own.
    pub(super) expected: Option<String>,
}

impl<'t> Place<'t> {
    /// Where to point for a problem with it.
    pub(super) fn origin(&self) -> &'t Origin {
        self.node.map_or(self.around, |node| &node.origin)
    }

    pub(super) fn child(&self, name: &str) -> Option<&'t Node> {
        match &self.node?.value {
            Value::Table(table) => table.get(name),
            Value::Text(_)
            | Value::Integer(_)
            | Value::Float(_)
            | Value::Bool(_)
            | Value::Moment(_)
            | Value::List(_) => None,
        }
    }

    /// Whether a table may be read here: one is there, or nothing is.
    pub(super) fn is_table(&self, report: &mut Report) -> bool {
        match self.node {
            None | Some(Node { value: Value::Table(_), .. }) => true,
            Some(node) => {
                let found = node.value.kind();
                report.problem(
                    self,
                    format!("expected a table `{} = {{ … }}`, found {found}", self.way),
                );
                false
            }
        }
    }
}

/// A value in effect.
#[derive(Clone, Debug)]
pub(super) struct Effective {
    pub(super) way: Way,
    /// As TOML, without secrets.
    pub(super) literal: String,
    pub(super) origin: Origin,
}

/// What was found while reading.
pub(super) struct Report {
    /// What the settings are for.
    pub(super) role: Role,
    /// Folder of the settings file: where the names in it start.
    pub(super) base: Option<PathBuf>,
    /// Where this process was started: where the names in variables and flags start.
    pub(super) here: Option<PathBuf>,
    pub(super) problems: Vec<Problem>,
    pub(super) effective: Vec<Effective>,
    /// Every file that a setting names.
    pub(super) files: Vec<(Way, PathBuf)>,
}

impl Report {
    pub(super) fn problem(&mut self, place: &Place<'_>, text: impl Into<String>) {
        self.problems.push(Problem::new(place.origin(), &place.way, text));
    }
}

/// What is wrong with a value, if anything.
type Refuse<T> = Box<dyn Fn(&T) -> Option<String>>;

/// A rule beyond a value's type.
pub(super) struct Check<T> {
    expected: Option<String>,
    refuse: Refuse<T>,
    /// In which role it is a rule at all.
    of: fn(Role) -> bool,
}

impl<T> Check<T> {
    /// A rule that says what it expects.
    pub(super) fn expect(expected: String, holds: impl Fn(&T) -> bool + 'static) -> Self {
        let text = format!("expected {expected}");
        let refuse = move |value: &T| (!holds(value)).then(|| text.clone());
        Self { expected: Some(expected), refuse: Box::new(refuse), of: |_| true }
    }

    /// What is wrong with a value, if anything.
    pub(super) fn why_not(&self, value: &T) -> Option<String> {
        (self.refuse)(value)
    }

    /// A rule that says what is wrong.
    pub(super) fn refuse(refuse: impl Fn(&T) -> Option<String> + 'static) -> Self {
        Self { expected: None, refuse: Box::new(refuse), of: |_| true }
    }

    /// A rule of processes that have the core.
    pub(super) fn of_cores(self) -> Self {
        Self { of: Role::has_core, ..self }
    }

    /// A rule of processes that have the signed JSON front.
    pub(super) fn of_bridges(self) -> Self {
        Self { of: Role::has_bridge, ..self }
    }
}

/// From one to the other, both included.
pub(super) fn within<T>(least: T, most: T) -> Check<T>
where
    T: Leaf + PartialOrd + 'static,
{
    let noun = T::EXPECTED.split_once(',').map_or(T::EXPECTED, |(noun, _)| noun);
    let expected = format!("{noun} from {} to {}", least.print(), most.print());
    Check::expect(expected, move |value| (&least..=&most).contains(&value))
}

/// [`within`], where there is one.
pub(super) fn if_set<T: 'static>(check: Check<T>) -> Check<Option<T>> {
    let Check { expected, refuse, of } = check;
    Check { expected, refuse: Box::new(move |value| value.as_ref().and_then(&refuse)), of }
}

/// A list that must not be empty.
pub(super) fn at_least_one<T>(what: &'static str) -> Check<Vec<T>> {
    Check::refuse(move |list: &Vec<T>| {
        list.is_empty().then(|| format!("expected at least one: {what}"))
    })
}

/// Reads one key of a table.
pub(super) fn field<T: Setting>(
    place: &Place<'_>,
    name: &str,
    default: Option<&str>,
    check: Option<Check<T>>,
    report: &mut Report,
) -> Option<T> {
    let fallback = match (place.child(name), default) {
        (None, Some(text)) => T::shape().node(text, &Origin::Default).ok(),
        (Some(_), _) | (None, None) => None,
    };
    let inner = Place {
        way: place.way.key(name),
        node: place.child(name).or(fallback.as_ref()),
        around: place.origin(),
        expected: check.as_ref().and_then(|check| check.expected.clone()),
    };
    let value = T::read(&inner, report)?;
    let Some(Check { expected, refuse, of }) = check else { return Some(value) };
    if !of(report.role) {
        return Some(value);
    }
    let Some(why) = refuse(&value) else { return Some(value) };
    let found = expected.and(inner.node).map(|node| format!(", found {}", node.value.describe()));
    report.problem(&inner, format!("{why}{}", found.unwrap_or_default()));
    None
}

/// Declares a table of settings: the type, and how it is read, from one list. A default is written as an environment
/// variable would say it; what has none must be set, unless it is an `Option`.
macro_rules! section {
    (
        $(#[doc = $doc:literal])*
        $name:ident {
            $( $(#[doc = $field_doc:literal])*
               $field:ident: $type:ty $(= $default:literal)? $(where $check:expr)?; )*
        }
    ) => {
        $(#[doc = $doc])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $name {
            $( $(#[doc = $field_doc])* pub $field: $type, )*
        }

        impl $crate::config::read::Setting for $name {
            fn shape() -> $crate::config::shape::Shape {
                $crate::config::shape::Shape::Table(vec![
                    $( $crate::config::shape::Field {
                        name: stringify!($field),
                        shape: <$type as $crate::config::read::Setting>::shape(),
                    }, )*
                ])
            }

            fn read(
                place: &$crate::config::read::Place<'_>,
                report: &mut $crate::config::read::Report,
            ) -> Option<Self> {
                if !place.is_table(report) {
                    return None;
                }
                $(
                    let default = $crate::config::read::section!(@maybe $($default)?);
                    let check = $crate::config::read::section!(@maybe $($check)?);
                    let $field = $crate::config::read::field::<$type>(
                        place, stringify!($field), default, check, report,
                    );
                )*
                Some(Self { $( $field: $field?, )* })
            }
        }
    };
    (@maybe) => { None };
    (@maybe $given:expr) => { Some($given) };
}
pub(super) use section;

/// Makes a [`Leaf`] a [`Setting`].
macro_rules! leaf {
    ($($type:ty),* $(,)?) => { $(
        impl $crate::config::read::Setting for $type {
            fn shape() -> $crate::config::shape::Shape {
                $crate::config::shape::Shape::Leaf(<$type as $crate::config::read::Leaf>::SCALAR)
            }

            fn read(
                place: &$crate::config::read::Place<'_>,
                report: &mut $crate::config::read::Report,
            ) -> Option<Self> {
                $crate::config::read::leaf_value(place, report)
            }
        }
    )* };
}
pub(super) use leaf;

/// Makes an enum of words a setting.
macro_rules! choice {
    ($type:ident: $($word:literal => $variant:ident),+ $(,)?) => {
        impl $crate::config::read::Leaf for $type {
            const EXPECTED: &'static str =
                $crate::config::read::choice!(@list $($word),+);

            fn parse(
                value: &$crate::config::tree::Value,
                _: Option<&std::path::Path>,
            ) -> Result<Self, $crate::config::read::Refused> {
                match $crate::config::read::text(value)? {
                    $( $word => Ok(Self::$variant), )+
                    other => Err($crate::config::read::no_such_word(
                        other, Self::EXPECTED, &[$($word),+],
                    )),
                }
            }

            fn print(&self) -> String {
                $crate::config::tree::quoted(match self { $( Self::$variant => $word, )+ })
            }
        }
        $crate::config::read::leaf!($type);
    };
    (@list $first:literal $(, $more:literal)*) => {
        concat!("\"", $first, "\"" $(, " or \"", $more, "\"")*)
    };
}
pub(super) use choice;

/// A word that is none of the choices.
pub(super) fn no_such_word(found: &str, expected: &str, words: &[&str]) -> Refused {
    match super::shape::nearest(found, words.iter().copied(), 0.5) {
        Some(word) => Refused::Because(format!(
            "expected {expected}, found {}; did you mean `{word}`?",
            Value::Text(found.to_owned()).describe()
        )),
        None => Refused::Unexpected,
    }
}

/// The text of a text.
pub(super) fn text(value: &Value) -> Result<&str, Refused> {
    match value {
        Value::Text(text) => Ok(text),
        Value::Integer(_)
        | Value::Float(_)
        | Value::Bool(_)
        | Value::Moment(_)
        | Value::List(_)
        | Value::Table(_) => Err(Refused::Unexpected),
    }
}

/// The text of a text, or of an unquoted date or time.
pub(super) fn moment(value: &Value) -> Result<&str, Refused> {
    match value {
        Value::Moment(moment) => Ok(moment),
        Value::Text(_)
        | Value::Integer(_)
        | Value::Float(_)
        | Value::Bool(_)
        | Value::List(_)
        | Value::Table(_) => text(value),
    }
}

fn integer<T: TryFrom<i128>>(value: &Value) -> Result<T, Refused> {
    match value {
        Value::Integer(number) => T::try_from(*number).map_err(|_| Refused::Unexpected),
        Value::Text(_)
        | Value::Float(_)
        | Value::Bool(_)
        | Value::Moment(_)
        | Value::List(_)
        | Value::Table(_) => Err(Refused::Unexpected),
    }
}

pub(super) fn leaf_value<T: Leaf>(place: &Place<'_>, report: &mut Report) -> Option<T> {
    let expected = place.expected.as_deref().unwrap_or(T::EXPECTED);
    let Some(node) = place.node else {
        report.problem(place, format!("must be set: expected {expected}"));
        return None;
    };
    let base = match node.origin {
        Origin::File { .. } => report.base.as_deref(),
        Origin::Default | Origin::Environment { .. } | Origin::Flag => report.here.as_deref(),
    };
    match T::parse(&node.value, base) {
        Ok(value) => {
            report.effective.push(Effective {
                way: place.way.clone(),
                literal: value.print(),
                origin: node.origin.clone(),
            });
            report.files.extend(value.file().map(|file| (place.way.clone(), file.to_owned())));
            Some(value)
        }
        Err(Refused::Because(why)) => {
            report.problem(place, why);
            None
        }
        Err(Refused::Unexpected) if T::SECRET => {
            report.problem(place, format!("expected {expected}"));
            None
        }
        Err(Refused::Unexpected) => {
            report.problem(place, format!("expected {expected}, found {}", node.value.describe()));
            None
        }
    }
}

impl<T: Setting> Setting for Option<T> {
    fn shape() -> Shape {
        T::shape()
    }

    fn read(place: &Place<'_>, report: &mut Report) -> Option<Self> {
        if place.node.is_none() {
            return Some(None);
        }
        T::read(place, report).map(Some)
    }
}

impl<T: Setting> Setting for Vec<T> {
    fn shape() -> Shape {
        Shape::Each(Box::new(T::shape()))
    }

    /// A list of values that is missing is a problem, unless it has a default; of tables there may be none.
    fn read(place: &Place<'_>, report: &mut Report) -> Option<Self> {
        let of_leaves = T::shape().is_leaf();
        let items = match place.node {
            None if of_leaves => {
                report.problem(place, "must be set: expected a list `[…]`");
                return None;
            }
            None => return Some(vec![]),
            Some(Node { value: Value::List(items), .. }) => items,
            Some(node) => {
                let found = node.value.kind();
                let expected =
                    if of_leaves { "a list `[…]`" } else { "a list of tables `[[…]]`" };
                report.problem(place, format!("expected {expected}, found {found}"));
                return None;
            }
        };
        let start = report.effective.len();
        let mut all = Some(Self::with_capacity(items.len()));
        for (index, item) in items.iter().enumerate() {
            let (way, around) = (place.way.index(index), place.origin());
            let inner = Place { way, node: Some(item), around, expected: None };
            match (T::read(&inner, report), all.as_mut()) {
                (Some(value), Some(all)) => all.push(value),
                (None, _) | (_, None) => all = None,
            }
        }
        if of_leaves {
            list_of(report, start, place);
        }
        all
    }
}

/// Turns what the items of a list noted into one note, so that the list prints on one line.
fn list_of(report: &mut Report, start: usize, place: &Place<'_>) {
    let items = report.effective.split_off(start);
    let literals: Vec<_> = items.iter().map(|item| item.literal.as_str()).collect();
    report.effective.push(Effective {
        way: place.way.clone(),
        literal: format!("[{}]", literals.join(", ")),
        origin: place.origin().clone(),
    });
}

/// A whole number.
macro_rules! whole_number {
    ($($type:ty),*) => { $(
        impl Leaf for $type {
            const SCALAR: Scalar = Scalar::Integer;
            const EXPECTED: &'static str = "a whole number, without quotes";

            fn parse(value: &Value, _: Option<&Path>) -> Result<Self, Refused> {
                integer(value)
            }

            fn print(&self) -> String {
                self.to_string()
            }
        }
        leaf!($type);
    )* };
}
whole_number!(u16, usize);

impl Leaf for NonZeroU32 {
    const SCALAR: Scalar = Scalar::Integer;
    const EXPECTED: &'static str = "a whole number from 1 to 4294967295";

    fn parse(value: &Value, _: Option<&Path>) -> Result<Self, Refused> {
        Self::new(integer(value)?).ok_or(Refused::Unexpected)
    }

    fn print(&self) -> String {
        self.to_string()
    }
}

impl Leaf for f64 {
    const SCALAR: Scalar = Scalar::Float;
    const EXPECTED: &'static str = "a number, without quotes";

    fn parse(value: &Value, _: Option<&Path>) -> Result<Self, Refused> {
        match value {
            Value::Float(number) => Ok(*number),
            Value::Integer(number) => {
                i32::try_from(*number).map(Self::from).map_err(|_| Refused::Unexpected)
            }
            Value::Text(_)
            | Value::Bool(_)
            | Value::Moment(_)
            | Value::List(_)
            | Value::Table(_) => Err(Refused::Unexpected),
        }
    }

    fn print(&self) -> String {
        format!("{self:?}")
    }
}

impl Leaf for bool {
    const SCALAR: Scalar = Scalar::Bool;
    const EXPECTED: &'static str = "true or false, without quotes";

    fn parse(value: &Value, _: Option<&Path>) -> Result<Self, Refused> {
        match value {
            Value::Bool(truth) => Ok(*truth),
            Value::Text(_)
            | Value::Integer(_)
            | Value::Float(_)
            | Value::Moment(_)
            | Value::List(_)
            | Value::Table(_) => Err(Refused::Unexpected),
        }
    }

    fn print(&self) -> String {
        self.to_string()
    }
}

impl Leaf for String {
    const EXPECTED: &'static str = "a text, in quotes";

    fn parse(value: &Value, _: Option<&Path>) -> Result<Self, Refused> {
        text(value).map(str::to_owned)
    }

    fn print(&self) -> String {
        quoted(self)
    }
}

impl Leaf for PathBuf {
    const EXPECTED: &'static str = "the name of a file, in quotes";

    fn parse(value: &Value, base: Option<&Path>) -> Result<Self, Refused> {
        let named = text(value)?;
        if named.is_empty() || named.contains('\0') {
            return Err(Refused::Unexpected);
        }
        // a name is shown wherever it is about the file, and this may be the secret itself
        if named.contains("-----BEGIN") {
            let why = "expected the name of a file, not what the file is to hold; write it into a file, and name that";
            return Err(Refused::Because(why.to_owned()));
        }
        Ok(base.map_or_else(|| Self::from(named), |base| base.join(named)))
    }

    fn print(&self) -> String {
        quoted(&self.to_string_lossy())
    }

    fn file(&self) -> Option<&Path> {
        Some(self)
    }
}

impl Leaf for std::net::SocketAddr {
    const EXPECTED: &'static str =
        "an address and a port such as \"127.0.0.1:8080\" or \"[::1]:8080\"";

    fn parse(value: &Value, _: Option<&Path>) -> Result<Self, Refused> {
        text(value)?.parse().map_err(|_| Refused::Unexpected)
    }

    fn print(&self) -> String {
        quoted(&self.to_string())
    }
}

impl Leaf for std::net::IpAddr {
    const EXPECTED: &'static str = "an address such as \"127.0.0.1\" or \"::1\"";

    fn parse(value: &Value, _: Option<&Path>) -> Result<Self, Refused> {
        text(value)?.parse().map_err(|_| Refused::Unexpected)
    }

    fn print(&self) -> String {
        quoted(&self.to_string())
    }
}

impl Leaf for Duration {
    const EXPECTED: &'static str =
        "a duration, in quotes, with its unit: \"6500ms\", \"5s\", \"15m\", \"1h\" or \"30d\"";

    fn parse(value: &Value, _: Option<&Path>) -> Result<Self, Refused> {
        let text = text(value)?;
        let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
        let count: u64 = text
            .strip_suffix(unit)
            .and_then(|digits| digits.parse().ok())
            .ok_or(Refused::Unexpected)?;
        let unit_ms: u64 = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(Refused::Unexpected),
        };
        count.checked_mul(unit_ms).map(Self::from_millis).ok_or(Refused::Unexpected)
    }

    fn print(&self) -> String {
        let ms = self.as_millis();
        let shown = |count: u128, unit: &dyn Display| quoted(&format!("{count}{unit}"));
        let units = [(3_600_000, "h"), (60_000, "m"), (1_000, "s")];
        let whole = units.iter().find(|(unit_ms, _)| ms > 0 && ms.is_multiple_of(*unit_ms));
        match whole {
            Some((unit_ms, unit)) => shown(ms.checked_div(*unit_ms).unwrap_or(ms), unit),
            None if ms == 0 => shown(0, &"s"),
            None => shown(ms, &"ms"),
        }
    }
}

leaf!(NonZeroU32, f64, bool, String, PathBuf, std::net::IpAddr, std::net::SocketAddr, Duration);
