//! The kinds of value that are this service's own: checked here once, and not looked at again.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use zeroize::Zeroizing;

use crate::domain::{
    consumer::ConsumerName,
    id::{AcquirerId, ClientId, PspId},
    key::Partitions,
    policy::{AcquirerCheck, Policy},
    time::Timestamp,
    window::CancelWindow,
};

use super::{
    read::{
        Check, Leaf, Place, Refused, Report, Setting, choice, leaf, moment, section, text, within,
    },
    shape::{Scalar, Shape, nearest},
    tree::{Node, Value, quoted},
};

/// What stands before the tails that Alipay+ publishes, as `/aps/api`; or nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPrefix(Box<str>);

impl PathPrefix {
    /// Checks a text: empty, or segments that each start with a slash, of characters that nobody escapes or normalises,
    /// since a rewritten path breaks every signature.
    pub fn parse(text: &str) -> Option<Self> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@".contains(&b);
        let segment = |s: &str| !matches!(s, "" | "." | "..") && s.bytes().all(plain);
        let legal = match text.strip_prefix('/') {
            Some(segments) => segments.split('/').all(segment),
            None => text.is_empty(),
        };
        legal.then(|| Self(text.into()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PathPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Leaf for PathPrefix {
    const EXPECTED: &'static str = "\"\", or a path that starts with \"/\", does not end with \"/\" \
         and has neither empty segments nor `?`, `#`, `%` or white space, such as \"/aps/api\"";

    fn parse(value: &Value, _: Option<&Path>) -> Result<Self, Refused> {
        Self::parse(text(value)?).ok_or(Refused::Unexpected)
    }

    fn print(&self) -> String {
        quoted(&self.0)
    }
}

/// Where the state is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreUrl {
    /// An embedded database.
    Sqlite {
        /// Its file; absolute.
        path: PathBuf,
    },
    /// PostgreSQL, or what speaks its protocol.
    Postgres(DatabaseUrl),
}

/// The URL of a database; a password may be in it, so it prints without.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseUrl(Zeroizing<String>);

impl DatabaseUrl {
    /// All of it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&masked(&self.0))
    }
}

impl Leaf for StoreUrl {
    const EXPECTED: &'static str = "\"sqlite:///\" and an absolute file name, \
         as \"sqlite:///var/lib/alipayplus-cancel/state.db\", or \"postgres://user@host:5432/database\"";
    const SECRET: bool = true;

    fn parse(value: &Value, _: Option<&Path>) -> Result<Self, Refused> {
        let url = text(value)?;
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            return Ok(Self::Postgres(DatabaseUrl(Zeroizing::new(url.to_owned()))));
        }
        let path = url.strip_prefix("sqlite://").ok_or(Refused::Unexpected)?;
        let file = path.starts_with('/') && !path.ends_with('/');
        if !file || path.contains(['?', '#', '%', '\0']) {
            return Err(Refused::Unexpected);
        }
        Ok(Self::Sqlite { path: path.into() })
    }

    fn print(&self) -> String {
        match self {
            Self::Sqlite { path } => quoted(&masked(&format!("sqlite://{}", path.display()))),
            Self::Postgres(url) => quoted(&masked(url.expose())),
        }
    }
}

/// What a commit must have survived before it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// A crash of the server.
    Local,
    /// The loss of the server.
    Replicated,
}

/// A URL without its password, which may stand in its query too, and may have characters in it that end a part of a URL:
/// in doubt too much is left out.
fn masked(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let (user, rest) = match rest.rsplit_once('@') {
        // a user's name may have such characters in it as well: `CORP/wallet:…@host`
        Some((user_info, rest)) if authority.contains('@') || user_info.contains(':') => {
            (user_info.split([':', '@', '?', '#']).next(), rest)
        }
        Some(_) | None => (None, rest),
    };
    let user = user.map(|user| format!("{user}:***@")).unwrap_or_default();
    let (base, query) = rest.split_once('?').unwrap_or((rest, ""));
    let mut shown = format!("{scheme}://{user}{base}");
    for (place, pair) in query.split('&').enumerate().filter(|(_, pair)| !pair.is_empty()) {
        shown.push(if place == 0 { '?' } else { '&' });
        match pair.split_once('=') {
            // %70assword is one, too
            Some((name, _)) if name.contains("password") || name.contains('%') => {
                shown.push_str(name);
                shown.push_str("=***");
            }
            Some(_) | None => shown.push_str(pair),
        }
    }
    shown
}

/// What one of our signing keys is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// Signs every answer. There is exactly one.
    Active,
    /// Read and checked, so that making it active cannot fail; does not sign.
    Staged,
    /// Was active once; does not sign.
    Retired,
}

choice!(KeyState: "active" => Active, "staged" => Staged, "retired" => Retired);

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line, for machines.
    Json,
    /// For people.
    Text,
}

/// Who may look at the console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsoleAccess {
    /// Nobody: it is not there.
    Off,
    /// Whoever comes from this machine.
    Local,
    /// Whom a proxy names.
    Proxy,
    /// Whoever has a certificate.
    Certificate,
}

choice!(ConsoleAccess: "off" => Off, "local" => Local, "proxy" => Proxy, "certificate" => Certificate);
choice!(Durability: "local" => Local, "replicated" => Replicated);
choice!(LogFormat: "json" => Json, "text" => Text);
choice!(AcquirerCheck: "enforce" => Enforce, "observe" => Observe);

/// Whom a client may act for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allowed<T> {
    /// Anybody: `["*"]`.
    Any,
    /// These; at least one.
    Only(BTreeSet<T>),
}

impl<T: Ord> Allowed<T> {
    /// Whether this one is among them.
    pub fn contains(&self, id: &T) -> bool {
        match self {
            Self::Any => true,
            Self::Only(ids) => ids.contains(id),
        }
    }
}

/// An id, or `*`.
struct Wildcard<T>(Option<T>);

/// Makes an `Allowed<id>` a setting.
macro_rules! allowed {
    ($($id:ident),*) => { $(
        impl Leaf for Wildcard<$id> {
            const EXPECTED: &'static str = "an id of 1 to 64 characters, or \"*\"";

            fn parse(value: &Value, _: Option<&Path>) -> Result<Self, Refused> {
                match text(value)? {
                    "*" => Ok(Self(None)),
                    id => $id::parse(id).map(|id| Self(Some(id))).map_err(|illegal| {
                        Refused::Because(format!("expected {}: it {}", Self::EXPECTED, match illegal {
                            crate::domain::id::Illegal::TooLong(most) => {
                                format!("is longer than {most} characters")
                            }
                            other @ (crate::domain::id::Illegal::Missing
                            | crate::domain::id::Illegal::Empty
                            | crate::domain::id::Illegal::ControlCharacter
                            | crate::domain::id::Illegal::OuterWhiteSpace) => other.to_string(),
                        }))
                    }),
                }
            }

            fn print(&self) -> String {
                quoted(self.0.as_ref().map_or("*", |id| id.as_str()))
            }
        }
        leaf!(Wildcard<$id>);

        impl Setting for Allowed<$id> {
            fn shape() -> Shape {
                Vec::<Wildcard<$id>>::shape()
            }

            fn read(place: &Place<'_>, report: &mut Report) -> Option<Self> {
                let list = Vec::<Wildcard<$id>>::read(place, report)?;
                let (count, any) = (list.len(), list.iter().any(|item| item.0.is_none()));
                if count == 0 {
                    report.problem(place, "expected at least one id; `[\"*\"]` allows any");
                    return None;
                }
                if any && count > 1 {
                    report.problem(place, "`\"*\"` allows any id: let it stand alone, or take it out");
                    return None;
                }
                let ids = list.into_iter().filter_map(|item| item.0).collect();
                Some(if any { Self::Any } else { Self::Only(ids) })
            }
        }
    )* };
}
allowed!(PspId, AcquirerId);

impl Leaf for ClientId {
    const EXPECTED: &'static str = "1 to 64 letters, digits, `_` or `-`, in quotes";

    fn parse(value: &Value, _: Option<&Path>) -> Result<Self, Refused> {
        Self::parse(text(value)?).ok_or(Refused::Unexpected)
    }

    fn print(&self) -> String {
        quoted(self.as_str())
    }
}

impl Leaf for ConsumerName {
    const EXPECTED: &'static str = "1 to 64 letters, digits, `_`, `.` or `-`, in quotes";

    fn parse(value: &Value, _: Option<&Path>) -> Result<Self, Refused> {
        Self::parse(text(value)?).ok_or(Refused::Unexpected)
    }

    fn print(&self) -> String {
        quoted(self.as_str())
    }
}

impl Leaf for PspId {
    const EXPECTED: &'static str = "an id of 1 to 64 characters, in quotes";

    fn parse(value: &Value, _: Option<&Path>) -> Result<Self, Refused> {
        Self::parse(text(value)?).map_err(|_| Refused::Unexpected)
    }

    fn print(&self) -> String {
        quoted(self.as_str())
    }
}

impl Leaf for Partitions {
    const SCALAR: Scalar = Scalar::Integer;
    const EXPECTED: &'static str = "a whole number from 1 to 1024";

    fn parse(value: &Value, base: Option<&Path>) -> Result<Self, Refused> {
        Self::new(<u16 as Leaf>::parse(value, base)?).ok_or(Refused::Unexpected)
    }

    fn print(&self) -> String {
        self.count().to_string()
    }
}

impl Leaf for Timestamp {
    const EXPECTED: &'static str = "a moment with its offset, as \"2027-01-31T00:00:00+08:00\"";

    fn parse(value: &Value, _: Option<&Path>) -> Result<Self, Refused> {
        let moment: jiff::Timestamp = moment(value)?.parse().map_err(|_| Refused::Unexpected)?;
        Self::from_unix_ms(moment.as_millisecond()).ok_or(Refused::Unexpected)
    }

    fn print(&self) -> String {
        let moment = jiff::Timestamp::from_millisecond(self.unix_ms);
        quoted(&moment.map_or_else(|_| String::new(), |moment| moment.to_string()))
    }
}

leaf!(PathPrefix, StoreUrl);
leaf!(ClientId, ConsumerName, Partitions, PspId, Timestamp);

/// Milliseconds after midnight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct TimeOfDay(u32);

impl Leaf for TimeOfDay {
    const EXPECTED: &'static str = "a time of day, as \"00:30:00\"";

    fn parse(value: &Value, _: Option<&Path>) -> Result<Self, Refused> {
        let mut parts = moment(value)?.split(':');
        let mut part = |most| two_digits(parts.next(), most);
        let (hours, minutes, seconds) = (part(23), part(59), part(59));
        match (hours, minutes, seconds, parts.next()) {
            (Some(h), Some(m), Some(s), None) => Ok(Self(milliseconds(h, m, s))),
            _ => Err(Refused::Unexpected),
        }
    }

    fn print(&self) -> String {
        let (h, m, s) = clock(self.0);
        quoted(&format!("{h:02}:{m:02}:{s:02}"))
    }
}

/// Milliseconds east of UTC.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct UtcOffset(i32);

impl Leaf for UtcOffset {
    const EXPECTED: &'static str = "an offset from UTC, as \"+08:00\"";

    fn parse(value: &Value, _: Option<&Path>) -> Result<Self, Refused> {
        let offset = text(value)?;
        let west = offset.starts_with('-');
        let parts = offset.strip_prefix(['+', '-']).and_then(|digits| digits.split_once(':'));
        let (hours, minutes) = parts.ok_or(Refused::Unexpected)?;
        match (two_digits(Some(hours), 18), two_digits(Some(minutes), 59)) {
            (Some(h), Some(m)) => {
                let east = i32::try_from(milliseconds(h, m, 0)).map_err(|_| Refused::Unexpected)?;
                Ok(Self(if west { east.saturating_neg() } else { east }))
            }
            (None, _) | (_, None) => Err(Refused::Unexpected),
        }
    }

    fn print(&self) -> String {
        let (h, m, _) = clock(self.0.unsigned_abs());
        let sign = if self.0 < 0 { '-' } else { '+' };
        quoted(&format!("{sign}{h:02}:{m:02}"))
    }
}

leaf!(TimeOfDay, UtcOffset);

fn two_digits(text: Option<&str>, most: u32) -> Option<u32> {
    let digits = text.filter(|text| text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit()))?;
    digits.parse().ok().filter(|number| *number <= most)
}

/// Of at most a day, so nothing overflows.
const fn milliseconds(hours: u32, minutes: u32, seconds: u32) -> u32 {
    hours
        .saturating_mul(60)
        .saturating_add(minutes)
        .saturating_mul(60)
        .saturating_add(seconds)
        .saturating_mul(1_000)
}

const fn clock(ms: u32) -> (u32, u32, u32) {
    let seconds = ms / 1_000;
    (seconds / 3_600, seconds / 60 % 60, seconds % 60)
}

const DAY: Duration = Duration::from_hours(24);

section! {
    /// A window that ends at a time of day. Defaults are Alipay+'s rule.
    AtTimeOfDay {
        /// Days after the day of initiation.
        day_offset: u16 = "1" where within(0, 365);
        /// When on that day.
        time: TimeOfDay = "00:30:00";
        /// By which days are told apart.
        utc_offset: UtcOffset = "+08:00";
        /// Granted on top.
        grace: Duration = "60s" where within(Duration::ZERO, DAY);
    }
}

section! {
    /// A window of a plain length.
    AfterDuration {
        /// From initiation.
        duration: Duration where within(Duration::from_secs(1), DAY.saturating_mul(366));
        /// Granted on top.
        grace: Duration = "60s" where within(Duration::ZERO, DAY);
    }
}

impl Setting for CancelWindow {
    fn shape() -> Shape {
        match (AtTimeOfDay::shape(), AfterDuration::shape()) {
            (Shape::Table(mut keys), Shape::Table(more)) => {
                keys.extend(more.into_iter().filter(|field| field.name == "duration"));
                Shape::Table(keys)
            }
            (other, _) => other,
        }
    }

    fn read(place: &Place<'_>, report: &mut Report) -> Option<Self> {
        if place.child("duration").is_none() {
            let window = AtTimeOfDay::read(place, report)?;
            return Some(Self::TimeOfDay {
                day_offset: window.day_offset,
                time_ms: window.time.0,
                utc_offset_ms: window.utc_offset.0,
                grace_ms: grace_ms(window.grace),
            });
        }
        let other = ["day_offset", "time", "utc_offset"]
            .into_iter()
            .find_map(|name| Some((name, place.child(name)?)));
        if let Some((name, node)) = other {
            let text = format!(
                "stands beside `duration`, which was set by {}: a window has either a `duration` or \
                 `day_offset`, `time` and `utc_offset`; take one out",
                place.child("duration").map_or(place.around, |duration| &duration.origin)
            );
            let (way, around) = (place.way.key(name), place.around);
            report.problem(&Place { way, node: Some(node), around, expected: None }, text);
            return None;
        }
        let window = AfterDuration::read(place, report)?;
        Some(Self::Duration {
            duration_ms: u64::try_from(window.duration.as_millis()).unwrap_or(u64::MAX),
            grace_ms: grace_ms(window.grace),
        })
    }
}

/// Of at most a day, so it fits.
fn grace_ms(grace: Duration) -> u32 {
    u32::try_from(grace.as_millis()).unwrap_or(u32::MAX)
}

impl Setting for HashMap<AcquirerId, CancelWindow> {
    fn shape() -> Shape {
        Shape::Named(Box::new(CancelWindow::shape()))
    }

    fn read(place: &Place<'_>, report: &mut Report) -> Option<Self> {
        if !place.is_table(report) {
            return None;
        }
        let Some(Node { value: Value::Table(table), .. }) = place.node else {
            return Some(Self::new());
        };
        let mut windows = Some(Self::new());
        for (name, node) in table {
            let (way, around) = (place.way.key(name), place.origin());
            let inner = Place { way, node: Some(node), around, expected: None };
            let acquirer = AcquirerId::parse(name).inspect_err(|why| {
                report.problem(&inner, format!("expected an acquirer's id: {why}"));
            });
            let window = CancelWindow::read(&inner, report);
            match (acquirer, window, windows.as_mut()) {
                (Ok(acquirer), Some(window), Some(windows)) => {
                    windows.insert(acquirer, window);
                }
                (Err(_), _, _) | (_, None, _) | (_, _, None) => windows = None,
            }
        }
        windows
    }
}

section! {
    /// What a wallet may configure about its decisions.
    PolicyTable {
        /// Until when a succeeded payment may be cancelled.
        cancel_window: CancelWindow;
        /// The same, for single acquirers.
        cancel_windows: HashMap<AcquirerId, CancelWindow>;
        /// Whether a cancel by another acquirer is refused.
        acquirer_check: AcquirerCheck = "enforce";
    }
}

impl Setting for Policy {
    fn shape() -> Shape {
        PolicyTable::shape()
    }

    fn read(place: &Place<'_>, report: &mut Report) -> Option<Self> {
        let PolicyTable { cancel_window, cancel_windows, acquirer_check } =
            PolicyTable::read(place, report)?;
        Some(Self { cancel_window, cancel_windows, acquirer_check })
    }
}

/// A key's version: 1 to 64 letters, digits, `_`, `.` or `-`, so that it can stand in a header.
pub(super) fn key_version() -> Check<String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    Check::expect(
        "1 to 64 letters, digits, `_`, `.` or `-`, in quotes".to_owned(),
        move |text: &String| (1..=64).contains(&text.len()) && text.bytes().all(plain),
    )
}

/// A directive such as `info` or `info,alipayplus_cancel::store=debug`.
pub(super) fn log_directive() -> Check<String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    Check::refuse(|directive: &String| {
        let example =
            "expected a level or directives, as \"info\" or \"info,alipayplus_cancel=debug\"";
        // the filter takes a lone word for a module, all of whose lines are then logged: `inof` would log nothing else
        let lone = |part: &&str| part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        let unknown = |part: &&str| !LEVELS.contains(&part.to_ascii_lowercase().as_str());
        if let Some(word) = directive.split(',').map(str::trim).find(|p| lone(p) && unknown(p)) {
            let hint = nearest(word, LEVELS, 0.5)
                .map_or_else(String::new, |level| format!("; did you mean `{level}`?"));
            return Some(format!("{example}, found `{word}`, which is no level{hint}"));
        }
        // the filter's parser cuts texts between bytes, and panics where a character is longer than one
        let legal = directive.is_ascii()
            && tracing_subscriber::EnvFilter::builder().parse(directive).is_ok();
        (!legal).then(|| example.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_prefix_is_what_no_client_and_no_proxy_rewrites() {
        for good in ["", "/aps/api", "/a", "/a.b~c;d=e:f@g"] {
            assert!(PathPrefix::parse(good).is_some(), "{good}");
        }
        for bad in
            ["/", "aps", "/aps/", "//", "/a//b", "/a?b", "/a#", "/%61", "/a b", "/é", "/../a", "/."]
        {
            assert!(PathPrefix::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_password_in_a_url_is_masked() {
        for (url, shown) in [
            ("postgres://u:p@h:5432/d?x=y", "postgres://u:***@h:5432/d?x=y"),
            ("postgres://u:p@ss:w@h/d", "postgres://u:***@h/d"),
            ("postgres://u:p/a@h/d", "postgres://u:***@h/d"),
            ("postgres://u:1?a#@h/d?x=y", "postgres://u:***@h/d?x=y"),
            ("postgres://u:p@s/a@h/d", "postgres://u:***@h/d"),
            ("postgres://u@h/d?password=p&x=y", "postgres://u:***@h/d?password=***&x=y"),
            ("postgres://h/d?x=y&%70assword=p", "postgres://h/d?x=y&%70assword=***"),
            ("postgres://h:1/d", "postgres://h:1/d"),
            ("postgres://h/d@e", "postgres://h/d@e"),
            ("sqlite:///a/b@c", "sqlite:///a/b@c"),
        ] {
            assert_eq!(masked(url), shown);
        }
    }

    #[test]
    fn a_duration_has_digits_and_a_unit_and_prints_back() {
        for (text, ms, shown) in [
            ("6500ms", 6_500, "6500ms"),
            ("5s", 5_000, "5s"),
            ("90s", 90_000, "90s"),
            ("60s", 60_000, "1m"),
            ("24h", 86_400_000, "24h"),
            ("30d", 2_592_000_000, "720h"),
            ("0ms", 0, "0s"),
        ] {
            let read = <Duration as Leaf>::parse(&Value::Text(text.to_owned()), None).unwrap();
            assert_eq!(read, Duration::from_millis(ms), "{text}");
            assert_eq!(read.print(), quoted(shown));
        }
        for bad in
            ["", "5", "s", "-5s", "+5s", "5 s", "1.5s", "5S", "5w", "１s", "18446744073709551615h"]
        {
            let read = <Duration as Leaf>::parse(&Value::Text(bad.to_owned()), None);
            assert!(read.is_err(), "{bad}");
        }
    }

    #[test]
    fn an_offset_and_a_time_of_day_print_as_they_were_written() {
        for text in ["+08:00", "-03:30", "+00:00", "-18:59"] {
            let offset = <UtcOffset as Leaf>::parse(&Value::Text(text.to_owned()), None).unwrap();
            assert_eq!(offset.print(), quoted(text));
        }
        for text in ["00:30:00", "23:59:59"] {
            let time = <TimeOfDay as Leaf>::parse(&Value::Text(text.to_owned()), None).unwrap();
            assert_eq!(time.print(), quoted(text));
        }
        for bad in ["24:00:00", "00:60:00", "0:30:00", "00:30", "00:30:00:00", "00:30:00.5", ""] {
            assert!(
                <TimeOfDay as Leaf>::parse(&Value::Text(bad.to_owned()), None).is_err(),
                "{bad}"
            );
        }
        for bad in ["08:00", "+8:00", "+0800", "+19:00", "+-1:00", "Z", ""] {
            assert!(
                <UtcOffset as Leaf>::parse(&Value::Text(bad.to_owned()), None).is_err(),
                "{bad}"
            );
        }
    }
}
