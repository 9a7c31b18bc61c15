//! The same JSON written otherwise: what a body becomes where something reads it and writes it again before, or after, it
//! is signed. Texts and numbers stay as they stand, so nothing is lost that was not lost there too.

use std::collections::BTreeSet;

/// Deeper than any body of ours.
const DEPTH_MAX: usize = 32;
/// Most members whose every order is tried: 720 of them.
const PERMUTED_MAX: usize = 6;

/// A body in another form, and in which.
pub struct Form {
    /// Its bytes.
    pub text: String,
    /// "as compact JSON, slashes escaped".
    pub how: String,
    /// One of very many, so not to be combined with other changes.
    pub rare: bool,
}

#[derive(Clone)]
enum Json {
    /// A text with its quotes, a number, a word.
    Atom(String),
    List(Vec<Json>),
    Map(Vec<(String, Json)>),
}

struct Layout {
    how: &'static str,
    indent: &'static str,
    newline: &'static str,
    colon: &'static str,
    comma: &'static str,
}

const fn layout(
    how: &'static str,
    newline: &'static str,
    indent: &'static str,
    colon: &'static str,
    comma: &'static str,
) -> Layout {
    Layout { how, indent, newline, colon, comma }
}

const LAYOUTS: [Layout; 9] = [
    layout("as compact JSON", "", "", ":", ","),
    layout("on one line with blanks after `:` and `,`, as Python does", "", "", ": ", ", "),
    layout("indented by 2", "\n", "  ", ": ", ","),
    layout("indented by 4", "\n", "    ", ": ", ","),
    layout("indented by 2 with ` : `, as Jackson does", "\n", "  ", " : ", ","),
    layout("indented by tabs", "\n", "\t", ": ", ","),
    layout("indented by tabs without blanks, as fastjson does", "\n", "\t", ":", ","),
    layout("indented by 2, lines ending in CR LF", "\r\n", "  ", ": ", ","),
    layout("indented by 4, lines ending in CR LF", "\r\n", "    ", ": ", ","),
];

/// How texts are spelt.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spelling {
    Kept,
    Slashes(bool),
    Unicode { upper: bool },
    Html { quotes: bool },
    Plain,
}

const SPELLINGS: [(Spelling, &str); 8] = [
    (Spelling::Kept, ""),
    (Spelling::Slashes(true), r"slashes escaped as `\/`"),
    (Spelling::Slashes(false), r"slashes not escaped as `\/`"),
    (Spelling::Unicode { upper: false }, r"all beyond ASCII escaped as `\uxxxx`"),
    (Spelling::Unicode { upper: true }, r"all beyond ASCII escaped as `\uXXXX`"),
    (Spelling::Html { quotes: false }, r"`<`, `>` and `&` escaped, as Go does"),
    (Spelling::Html { quotes: true }, r"`<`, `>`, `&`, `=` and `'` escaped, as Gson does"),
    (Spelling::Plain, r"nothing escaped that need not be"),
];

/// Every other form of a text that is JSON; nothing of one that is not.
pub fn forms(text: &str) -> Vec<Form> {
    let mut seen = BTreeSet::from([text.to_owned()]);
    let mut forms = Vec::new();
    let mut add = |text: String, parts: &[&str], rare| {
        if seen.insert(text.clone()) {
            let how = parts.iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>();
            forms.push(Form { text, how: how.join(", "), rare });
        }
    };
    let Some(json) = parse(text) else { return forms };
    let orders = [
        (json.clone(), ""),
        (sorted(&json), "keys sorted"),
        (without_nulls(&json), "null members left out"),
    ];
    for (spelling, spelt) in SPELLINGS {
        add(respelt(text, spelling), &["texts respelt", spelt], false);
        for (json, order) in &orders {
            for layout in &LAYOUTS {
                let text = respelt(&write(json, layout), spelling);
                add(text, &[layout.how, order, spelt], false);
            }
        }
    }
    for json in permutations(&json) {
        for layout in &LAYOUTS[..2] {
            add(write(&json, layout), &[layout.how, "members in another order"], true);
        }
    }
    forms
}

fn parse(text: &str) -> Option<Json> {
    // our own reader keeps no spelling, so it only judges
    serde_json::from_str::<serde::de::IgnoredAny>(text).ok()?;
    let mut rest = text.trim_start_matches('\u{feff}');
    let json = value(&mut rest, 0)?;
    rest.trim().is_empty().then_some(json)
}

fn value(rest: &mut &str, depth: usize) -> Option<Json> {
    if depth > DEPTH_MAX {
        return None;
    }
    skip(rest);
    match rest.chars().next()? {
        '{' => {
            let mut members = Vec::new();
            each(rest, '}', |rest| {
                let key = atom(rest)?;
                skip(rest);
                take(rest, ':')?;
                members.push((key, value(rest, depth + 1)?));
                Some(())
            })?;
            Some(Json::Map(members))
        }
        '[' => {
            let mut items = Vec::new();
            each(rest, ']', |rest| {
                items.push(value(rest, depth + 1)?);
                Some(())
            })?;
            Some(Json::List(items))
        }
        _ => Some(Json::Atom(atom(rest)?)),
    }
}

/// The items up to the closing bracket; the opening one is next.
fn each(rest: &mut &str, end: char, mut item: impl FnMut(&mut &str) -> Option<()>) -> Option<()> {
    *rest = rest.get(1..)?;
    loop {
        skip(rest);
        if take(rest, end).is_some() {
            return Some(());
        }
        item(rest)?;
        skip(rest);
        if take(rest, ',').is_none() {
            return take(rest, end);
        }
    }
}

fn skip(rest: &mut &str) {
    *rest = rest.trim_start_matches([' ', '\t', '\r', '\n']);
}

fn take(rest: &mut &str, c: char) -> Option<()> {
    *rest = rest.strip_prefix(c)?;
    Some(())
}

fn atom(rest: &mut &str) -> Option<String> {
    let end = if rest.starts_with('"') {
        let mut escaped = false;
        let end = rest.char_indices().skip(1).find(|(_, c)| {
            let ends = *c == '"' && !escaped;
            escaped = *c == '\\' && !escaped;
            ends
        })?;
        end.0 + 1
    } else {
        rest.find([',', '}', ']', ' ', '\t', '\r', '\n', ':']).unwrap_or(rest.len())
    };
    let (atom, after) = rest.split_at_checked(end).filter(|(atom, _)| !atom.is_empty())?;
    *rest = after;
    Some(atom.to_owned())
}

fn sorted(json: &Json) -> Json {
    match json {
        Json::Atom(_) => json.clone(),
        Json::List(items) => Json::List(items.iter().map(sorted).collect()),
        Json::Map(members) => {
            let mut members: Vec<_> =
                members.iter().map(|(key, value)| (key.clone(), sorted(value))).collect();
            members.sort_by(|a, b| a.0.cmp(&b.0));
            Json::Map(members)
        }
    }
}

fn without_nulls(json: &Json) -> Json {
    match json {
        Json::Atom(_) => json.clone(),
        Json::List(items) => Json::List(items.iter().map(without_nulls).collect()),
        Json::Map(members) => {
            let kept =
                members.iter().filter(|(_, value)| !matches!(value, Json::Atom(a) if a == "null"));
            Json::Map(kept.map(|(key, value)| (key.clone(), without_nulls(value))).collect())
        }
    }
}

/// Every order of the outermost members, if they are few.
fn permutations(json: &Json) -> Vec<Json> {
    let Json::Map(members) = json else { return vec![] };
    if members.len() > PERMUTED_MAX {
        return vec![];
    }
    let mut orders: Vec<Vec<usize>> = vec![vec![]];
    for _ in members {
        let longer = |order: Vec<usize>| {
            let free =
                (0..members.len()).filter(|place| !order.contains(place)).collect::<Vec<_>>();
            free.into_iter().map(move |place| [order.clone(), vec![place]].concat())
        };
        orders = orders.into_iter().flat_map(longer).collect();
    }
    let of = |order: Vec<usize>| {
        Json::Map(order.into_iter().filter_map(|place| members.get(place).cloned()).collect())
    };
    orders.into_iter().map(of).collect()
}

fn write(json: &Json, layout: &Layout) -> String {
    let mut text = String::new();
    put(json, layout, 0, &mut text);
    text
}

fn put(json: &Json, layout: &Layout, depth: usize, text: &mut String) {
    let line = |depth: usize, text: &mut String| {
        text.push_str(layout.newline);
        text.push_str(&layout.indent.repeat(depth));
    };
    let (open, close, count) = match json {
        Json::Atom(atom) => return text.push_str(atom),
        Json::List(items) => ('[', ']', items.len()),
        Json::Map(members) => ('{', '}', members.len()),
    };
    text.push(open);
    for place in 0..count {
        if place > 0 {
            text.push_str(layout.comma);
        }
        line(depth + 1, text);
        let item = match json {
            Json::Map(members) => {
                text.push_str(&members[place].0);
                text.push_str(layout.colon);
                &members[place].1
            }
            Json::List(items) => &items[place],
            Json::Atom(_) => continue,
        };
        put(item, layout, depth + 1, text);
    }
    if count > 0 {
        line(depth, text);
    }
    text.push(close);
}

/// The same with every character of its texts spelt so. Outside of texts there is nothing that it would touch.
fn respelt(text: &str, spelling: Spelling) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let (unit, after) = rest.split_at(unit(rest, c));
        out.push_str(&spell(unit, c, spelling));
        rest = after;
    }
    out
}

/// The length of a character or an escape; of a pair of them, where both are halves of one character.
fn unit(rest: &str, c: char) -> usize {
    if c != '\\' {
        return c.len_utf8();
    }
    let Some(high) = code(rest) else {
        return rest.char_indices().nth(2).map_or(rest.len(), |(at, _)| at);
    };
    let pair = (0xd800..0xdc00).contains(&high) && rest.get(6..).and_then(code).is_some();
    if pair { 12 } else { 6 }
}

/// The code of `\uXXXX`.
fn code(rest: &str) -> Option<u32> {
    u32::from_str_radix(rest.strip_prefix("\\u")?.get(..4)?, 16).ok()
}

fn spell(unit: &str, c: char, spelling: Spelling) -> String {
    let escape = |upper: bool| {
        let mut units = [0; 2];
        let escaped = c.encode_utf16(&mut units).iter();
        escaped.map(|u| if upper { format!("\\u{u:04X}") } else { format!("\\u{u:04x}") }).collect()
    };
    match spelling {
        Spelling::Slashes(true) if unit == "/" => "\\/".to_owned(),
        Spelling::Slashes(false) | Spelling::Plain if unit == "\\/" => "/".to_owned(),
        Spelling::Unicode { upper } if !c.is_ascii() => escape(upper),
        Spelling::Html { .. } if matches!(c, '<' | '>' | '&') => escape(false),
        Spelling::Html { quotes: true } if matches!(c, '=' | '\'') => escape(false),
        Spelling::Plain if unit.starts_with("\\u") => {
            plain(unit).unwrap_or_else(|| unit.to_owned())
        }
        Spelling::Kept
        | Spelling::Slashes(_)
        | Spelling::Unicode { .. }
        | Spelling::Html { .. }
        | Spelling::Plain => unit.to_owned(),
    }
}

/// The character that an escape means, unless JSON needs the escape.
fn plain(unit: &str) -> Option<String> {
    let units = [unit.get(..6), unit.get(6..)].into_iter().flatten().filter_map(code);
    let units: Vec<u16> = units.filter_map(|unit| u16::try_from(unit).ok()).collect();
    let text = String::from_utf16(&units).ok()?;
    let needed = |c: char| c.is_control() || matches!(c, '"' | '\\');
    (!text.contains(needed)).then_some(text)
}
