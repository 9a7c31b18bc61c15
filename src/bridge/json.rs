//! Strict reading of a verified body: one JSON object, within limits that hold for unknown fields too.
//!
//! No derived struct and no `IgnoredAny` here: the first accept an array for an object, the second skips the checks of
//! what it ignores (UTF-8, surrogates, duplicates, depth). The limits hold while reading, so a hostile body costs no
//! more than one pass over its bytes. Messages never repeat what the caller sent.

use std::{borrow::Cow, cell::Cell, fmt};

use serde::de::{DeserializeSeed, Deserializer as _, MapAccess, SeqAccess, Visitor};

use crate::domain::id;

/// Deepest nesting; the body's own object is the first level.
pub const DEPTH_MAX: usize = 8;
/// Most keys, over all objects of the body.
pub const KEYS_MAX: usize = 64;

/// Why a body is not read at all. Its text is a `resultMessage`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Illegal {
    /// A byte sequence that is no UTF-8.
    #[error("body: not UTF-8")]
    NotUtf8,
    /// U+FEFF in front, which JSON forbids.
    #[error("body: starts with a byte order mark")]
    ByteOrderMark,
    /// Not JSON: syntax, a lone surrogate, a number beyond a double.
    #[error("body: not valid JSON")]
    NotJson,
    /// JSON, but an array or a scalar.
    #[error("body: not a JSON object")]
    NotObject,
    /// Something other than white space behind the object.
    #[error("body: something follows the JSON object")]
    Trailing,
    /// The same key twice in one object, escapes resolved.
    #[error("body: duplicate key")]
    DuplicateKey,
    /// Nested too deeply.
    #[error("body: nested deeper than {DEPTH_MAX} levels")]
    TooDeep,
    /// Too many keys.
    #[error("body: more than {KEYS_MAX} keys")]
    TooManyKeys,
}

/// Why one parameter is refused. Its text is a `resultMessage`: our name of the parameter and what is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {fault}")]
pub struct ParamError {
    /// The parameter, as Alipay+ spells it.
    pub name: &'static str,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What is wrong with a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A number, a boolean, an array or an object.
    #[error("must be a string")]
    NotText,
    /// A string, or nothing, where another string must be.
    #[error(transparent)]
    Text(#[from] id::Illegal),
}

/// The fields of a body's object, by exact name.
#[derive(Default)]
pub struct Fields<'a>(Vec<(Cow<'a, str>, Found<'a>)>);

enum Found<'a> {
    Null,
    Text(Cow<'a, str>),
    Other,
}

/// Reads a body. Every check of the table holds for unknown fields as well.
pub fn parse(body: &[u8]) -> Result<Fields<'_>, Illegal> {
    let text = std::str::from_utf8(body).map_err(|_| Illegal::NotUtf8)?;
    if text.starts_with('\u{feff}') {
        return Err(Illegal::ByteOrderMark);
    }
    let limits = Limits::default();
    let mut json = serde_json::Deserializer::from_str(text);
    let fields = json.deserialize_any(Object(&limits)).map_err(|error| limits.why(&error))?;
    json.end().map_err(|_| Illegal::Trailing)?;
    Ok(fields)
}

impl Fields<'_> {
    /// A parameter that must be there: a string, not empty.
    pub fn required(&self, name: &'static str) -> Result<&str, ParamError> {
        self.optional(name)?.ok_or(ParamError { name, fault: id::Illegal::Missing.into() })
    }

    /// A parameter that may be absent or, the same, null; a string, not empty, if it is there.
    pub fn optional(&self, name: &'static str) -> Result<Option<&str>, ParamError> {
        let refuse = |fault| Err(ParamError { name, fault });
        match self.0.iter().find(|(key, _)| key == name).map(|(_, found)| found) {
            None | Some(Found::Null) => Ok(None),
            Some(Found::Other) => refuse(Fault::NotText),
            Some(Found::Text(text)) if text.is_empty() => refuse(id::Illegal::Empty.into()),
            Some(Found::Text(text)) => Ok(Some(text)),
        }
    }

    /// [`Self::required`], made into a checked type: `fields.required_as("pspId", PspId::parse)`.
    pub fn required_as<T>(
        &self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, id::Illegal>,
    ) -> Result<T, ParamError> {
        parse(self.required(name)?).map_err(|illegal| ParamError { name, fault: illegal.into() })
    }

    /// [`Self::optional`], made into a checked type.
    pub fn optional_as<T>(
        &self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, id::Illegal>,
    ) -> Result<Option<T>, ParamError> {
        let parsed = self.optional(name)?.map(parse).transpose();
        parsed.map_err(|illegal| ParamError { name, fault: illegal.into() })
    }
}

impl fmt::Debug for Fields<'_> {
    /// Only how many: names and values are the caller's, and one of them is a token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fields({})", self.0.len())
    }
}

/// What the visitors share: the keys so far, and the reason why one of them stopped.
#[derive(Default)]
struct Limits {
    keys: Cell<usize>,
    reason: Cell<Option<Illegal>>,
}

impl Limits {
    /// Stops the reading; serde's own error cannot carry a type.
    fn stop<E: serde::de::Error>(&self, reason: Illegal) -> E {
        self.reason.set(Some(reason));
        E::custom(reason)
    }

    fn why(&self, error: &serde_json::Error) -> Illegal {
        // only the outermost visitor leaves a type of value unanswered
        let otherwise = if error.is_data() { Illegal::NotObject } else { Illegal::NotJson };
        self.reason.get().unwrap_or(otherwise)
    }

    /// Reads one object's keys and values.
    fn object<'de, A: MapAccess<'de>>(
        &self,
        mut map: A,
        depth: usize,
    ) -> Result<Vec<(Cow<'de, str>, Found<'de>)>, A::Error> {
        let mut fields: Vec<(Cow<'de, str>, Found<'de>)> = Vec::new();
        while let Some(key) = map.next_key_seed(Key)? {
            self.keys.set(self.keys.get() + 1);
            if self.keys.get() > KEYS_MAX {
                return Err(self.stop(Illegal::TooManyKeys));
            }
            if fields.iter().any(|(earlier, _)| *earlier == key) {
                return Err(self.stop(Illegal::DuplicateKey));
            }
            let value = map.next_value_seed(Value { limits: self, depth: depth + 1 })?;
            fields.push((key, value));
        }
        Ok(fields)
    }
}

/// The body itself: takes an object only.
struct Object<'l>(&'l Limits);

impl<'de> Visitor<'de> for Object<'_> {
    type Value = Fields<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        self.0.object(map, 1).map(Fields)
    }
}

struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = Cow<'de, str>;

    fn deserialize<D: serde::Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Key {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_borrowed_str<E>(self, key: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(key))
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(key.to_owned()))
    }
}

/// Any value, which would open level `depth` if it is an array or an object.
#[derive(Clone, Copy)]
struct Value<'l> {
    limits: &'l Limits,
    depth: usize,
}

impl Value<'_> {
    fn check_depth<E: serde::de::Error>(self) -> Result<(), E> {
        if self.depth > DEPTH_MAX { Err(self.limits.stop(Illegal::TooDeep)) } else { Ok(()) }
    }
}

impl<'de> DeserializeSeed<'de> for Value<'_> {
    type Value = Found<'de>;

    fn deserialize<D: serde::Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value<'_> {
    type Value = Found<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Found::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(Found::Other)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(Found::Other)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(Found::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Found::Other)
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Found::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Found::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        self.check_depth()?;
        let element = Value { depth: self.depth + 1, ..self };
        while seq.next_element_seed(element)?.is_some() {}
        Ok(Found::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        self.check_depth()?;
        self.limits.object(map, self.depth).map(|_| Found::Other)
    }
}

#[cfg(test)]
mod tests;
