//! The strict reader of a body against a second one that is slow and plain: they agree on every input, about what is
//! refused, for which reason, and about every value of what is taken.

use alipayplus_cancel::bridge::json::{self, DEPTH_MAX, Fault, Illegal, KEYS_MAX};

/// What a value is to the bridge.
#[derive(Clone, Debug, PartialEq)]
enum Kind {
    Null,
    Text(String),
    Other,
}

/// The parameters that the bridge asks for, and some that it does not.
const NAMES: &[&str] =
    &["acquirerId", "pspId", "paymentRequestId", "accessToken", "passThroughInfo", "", "a", "é"];

/// The input is the body.
pub fn run(data: &[u8]) {
    let mut reader = Reader::default();
    let slow = reader.document(data);
    if reader.at_the_edge {
        return;
    }
    let said = || String::from_utf8_lossy(data);
    match (json::parse(data), slow) {
        (Err(fast), Err(slow)) => assert_eq!(fast, slow, "two reasons for {:?}", said()),
        (Ok(fields), Ok(slow)) => {
            assert_eq!(format!("{fields:?}"), format!("Fields({})", slow.len()), "{:?}", said());
            for name in NAMES {
                let found = slow.iter().find(|(key, _)| key == name).map(|(_, value)| value);
                match (fields.optional(name), found) {
                    (Ok(None), None | Some(Kind::Null)) => {}
                    (Ok(Some(text)), Some(Kind::Text(slow))) => assert_eq!(text, slow),
                    (Err(refused), Some(Kind::Other)) => assert_eq!(refused.fault, Fault::NotText),
                    (Err(_), Some(Kind::Text(slow))) if slow.is_empty() => {}
                    (fast, slow) => panic!("{name}: {fast:?}, and {slow:?} in {:?}", said()),
                }
            }
        }
        (fast, slow) => {
            panic!("{:?}, and {:?} of {:?}", fast.is_ok(), slow.map(|slow| slow.len()), said())
        }
    }
}

/// RFC 8259 with our limits, character by character.
#[derive(Default)]
struct Reader {
    text: Vec<char>,
    at: usize,
    keys: usize,
    /// A number so near to the largest double that rounding decides: there, two right readers may differ.
    at_the_edge: bool,
}

type Fields = Vec<(String, Kind)>;

impl Reader {
    fn document(&mut self, data: &[u8]) -> Result<Fields, Illegal> {
        let text = String::from_utf8(data.to_vec()).map_err(|_| Illegal::NotUtf8)?;
        self.text = text.chars().collect();
        if self.peek() == Some('\u{feff}') {
            return Err(Illegal::ByteOrderMark);
        }
        self.space();
        let fields = match self.peek() {
            Some('{') => self.object(1)?,
            Some('[') => return Err(Illegal::NotObject),
            Some(_) => {
                // a whole value first, if it is one
                self.value(1)?;
                return Err(Illegal::NotObject);
            }
            None => return Err(Illegal::NotJson),
        };
        self.space();
        if self.peek().is_some() { Err(Illegal::Trailing) } else { Ok(fields) }
    }

    fn peek(&self) -> Option<char> {
        self.text.get(self.at).copied()
    }

    fn eat(&mut self, expected: char) -> Result<(), Illegal> {
        if self.peek() != Some(expected) {
            return Err(Illegal::NotJson);
        }
        self.at += 1;
        Ok(())
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(' ' | '\t' | '\r' | '\n')) {
            self.at += 1;
        }
    }

    /// What would open level `depth` if it is an array or an object.
    fn value(&mut self, depth: usize) -> Result<Kind, Illegal> {
        match self.peek().ok_or(Illegal::NotJson)? {
            '{' | '[' if depth > DEPTH_MAX => return Err(Illegal::TooDeep),
            '{' => drop(self.object(depth)?),
            '[' => self.array(depth)?,
            '"' => return self.string().map(Kind::Text),
            't' => self.word("true")?,
            'f' => self.word("false")?,
            'n' => {
                self.word("null")?;
                return Ok(Kind::Null);
            }
            '-' | '0'..='9' => self.number()?,
            _ => return Err(Illegal::NotJson),
        }
        Ok(Kind::Other)
    }

    fn word(&mut self, word: &str) -> Result<(), Illegal> {
        word.chars().try_for_each(|c| self.eat(c))
    }

    fn object(&mut self, depth: usize) -> Result<Fields, Illegal> {
        self.eat('{')?;
        self.space();
        let mut fields: Fields = vec![];
        while self.peek() != Some('}') {
            if !fields.is_empty() {
                self.eat(',')?;
                self.space();
            }
            let key = self.string()?;
            self.keys += 1;
            if self.keys > KEYS_MAX {
                return Err(Illegal::TooManyKeys);
            }
            if fields.iter().any(|(earlier, _)| *earlier == key) {
                return Err(Illegal::DuplicateKey);
            }
            self.space();
            self.eat(':')?;
            self.space();
            let value = self.value(depth + 1)?;
            fields.push((key, value));
            self.space();
        }
        self.eat('}')?;
        Ok(fields)
    }

    fn array(&mut self, depth: usize) -> Result<(), Illegal> {
        self.eat('[')?;
        self.space();
        let mut first = true;
        while self.peek() != Some(']') {
            if !first {
                self.eat(',')?;
                self.space();
            }
            first = false;
            self.value(depth + 1)?;
            self.space();
        }
        self.eat(']')
    }

    fn string(&mut self) -> Result<String, Illegal> {
        self.eat('"')?;
        let mut string = String::new();
        loop {
            let c = self.peek().ok_or(Illegal::NotJson)?;
            self.at += 1;
            match c {
                '"' => return Ok(string),
                '\\' => string.push(self.escape()?),
                '\0'..='\u{1f}' => return Err(Illegal::NotJson),
                c => string.push(c),
            }
        }
    }

    fn escape(&mut self) -> Result<char, Illegal> {
        let c = self.peek().ok_or(Illegal::NotJson)?;
        self.at += 1;
        Ok(match c {
            '"' | '\\' | '/' => c,
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => {
                let first = self.four()?;
                if !(0xd800..0xdc00).contains(&first) {
                    return char::from_u32(first).ok_or(Illegal::NotJson);
                }
                self.eat('\\')?;
                self.eat('u')?;
                let second = self.four()?;
                if !(0xdc00..0xe000).contains(&second) {
                    return Err(Illegal::NotJson);
                }
                let both = 0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00);
                char::from_u32(both).ok_or(Illegal::NotJson)?
            }
            _ => return Err(Illegal::NotJson),
        })
    }

    fn four(&mut self) -> Result<u32, Illegal> {
        (0..4).try_fold(0, |number, _| {
            let digit = self.peek().and_then(|c| c.to_digit(16)).ok_or(Illegal::NotJson)?;
            self.at += 1;
            Ok(number * 16 + digit)
        })
    }

    fn number(&mut self) -> Result<(), Illegal> {
        let start = self.at;
        if self.peek() == Some('-') {
            self.at += 1;
        }
        let zero = self.peek() == Some('0');
        if self.digits()? > 1 && zero {
            return Err(Illegal::NotJson);
        }
        if self.peek() == Some('.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some('e' | 'E')) {
            self.at += 1;
            if matches!(self.peek(), Some('+' | '-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        let text: String = self.text[start..self.at].iter().collect();
        let number: f64 = text.parse().map_err(|_| Illegal::NotJson)?;
        self.at_the_edge |= (number.is_finite() && number.abs() >= 1.797e308) || edge(&text);
        if number.is_finite() { Ok(()) } else { Err(Illegal::NotJson) }
    }

    fn digits(&mut self) -> Result<usize, Illegal> {
        let start = self.at;
        while matches!(self.peek(), Some('0'..='9')) {
            self.at += 1;
        }
        let count = self.at - start;
        if count == 0 { Err(Illegal::NotJson) } else { Ok(count) }
    }
}

/// Whether a tenth of it is that near.
fn edge(text: &str) -> bool {
    let tenth = match text.split_once(['e', 'E']) {
        None => format!("{text}e-1"),
        Some((digits, exponent)) => {
            let Ok(exponent) = exponent.parse::<i64>() else { return false };
            format!("{digits}e{}", exponent.saturating_sub(1))
        }
    };
    let tenth: f64 = tenth.parse().unwrap_or(f64::INFINITY);
    (1.797e307..1.799e307).contains(&tenth.abs())
}
