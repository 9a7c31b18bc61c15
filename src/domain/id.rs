//! Checked text: what came from outside becomes one of these at the door, and is not looked at again.
//!
//! Lengths are in characters (Unicode scalar values), as on Alipay+'s pages. Nothing is normalised: two ids are the same
//! if their bytes are.

use std::fmt;

use zeroize::Zeroizing;

/// Longest identifier, in characters. Source: Alipay+ API reference, "Maximum length: 64 characters".
pub const ID_CHARS_MAX: usize = 64;
/// Longest token, in characters. Source: Alipay+ API reference, `accessToken`.
pub const TOKEN_CHARS_MAX: usize = 128;
/// Longest `passThroughInfo`, in characters. Source: Alipay+ API reference, `passThroughInfo`.
pub const PASS_THROUGH_INFO_CHARS_MAX: usize = 20_000;

/// Why a text is not what it should be. Never holds the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Illegal {
    /// Nothing there, where something must be.
    #[error("must be set")]
    Missing,
    /// `""`, which Alipay+ forbids for optional parameters too.
    #[error("must not be empty")]
    Empty,
    /// Too many characters.
    #[error("longer than {0} characters")]
    TooLong(usize),
    /// A control character inside.
    #[error("contains a control character")]
    ControlCharacter,
    /// White space at an end.
    #[error("starts or ends with white space")]
    OuterWhiteSpace,
}

fn check(text: &str, chars_max: usize) -> Result<(), Illegal> {
    check_length(text, chars_max)?;
    if text.chars().any(char::is_control) {
        return Err(Illegal::ControlCharacter);
    }
    if text.starts_with(char::is_whitespace) || text.ends_with(char::is_whitespace) {
        return Err(Illegal::OuterWhiteSpace);
    }
    Ok(())
}

fn check_length(text: &str, chars_max: usize) -> Result<(), Illegal> {
    if text.is_empty() {
        return Err(Illegal::Empty);
    }
    // a character is at least one byte, so short texts need no counting
    if text.len() > chars_max && text.chars().count() > chars_max {
        return Err(Illegal::TooLong(chars_max));
    }
    Ok(())
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Box<str>);

        impl $name {
            /// Checks a text: 1 to 64 characters, no control characters, no white space at either end.
            pub fn parse(text: &str) -> Result<Self, Illegal> {
                check(text, ID_CHARS_MAX)?;
                Ok(Self(text.into()))
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:?})", stringify!($name), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id! {
    /// An acquirer (ACQP), as Alipay+ names it.
    AcquirerId
}
id! {
    /// A wallet (MPP), as Alipay+ names it.
    PspId
}
id! {
    /// Alipay+'s id of a payment request.
    PaymentRequestId
}
id! {
    /// The wallet's id of one consent; never reused.
    AuthorizationId
}
id! {
    /// The wallet's id of one refund, unique within its payment.
    RefundId
}
id! {
    /// The executor's own reference of a fund return.
    FundReturnReference
}

/// Alipay+'s Client-Id: 1 to 64 of `[A-Za-z0-9_-]`, so that it may be reflected in a header.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId(Box<str>);

impl ClientId {
    /// Checks a text.
    pub fn parse(text: &str) -> Option<Self> {
        let fits = (1..=ID_CHARS_MAX).contains(&text.len());
        let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        (fits && plain).then(|| Self(text.into()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An access or refresh token in the clear: wiped when dropped, never printed, never stored.
#[derive(Clone)]
pub struct Token(Zeroizing<String>);

impl Token {
    /// Checks a text: 1 to 128 characters, no control characters, no white space at either end.
    pub fn parse(text: &str) -> Result<Self, Illegal> {
        check(text, TOKEN_CHARS_MAX)?;
        Ok(Self(Zeroizing::new(text.to_owned())))
    }

    /// The secret itself, for hashing it or handing it on.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// The keyed hash of a token: all that is ever kept of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TokenHash(pub [u8; 32]);

impl TokenHash {
    /// The first eight hex digits of a hash: enough to tell one from another in a log, too little to be one.
    pub fn prefix(hash: &[u8]) -> String {
        hash.iter().take(4).fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
    }
}

impl fmt::Display for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&Self::prefix(&self.0))
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenHash({self}…)")
    }
}

/// What one side passes through to the other: opaque, any characters, 1 to 20,000 of them.
#[derive(Clone, PartialEq, Eq)]
pub struct PassThroughInfo(Box<str>);

impl PassThroughInfo {
    /// Checks the length; the content is nobody's business here.
    pub fn parse(text: &str) -> Result<Self, Illegal> {
        check_length(text, PASS_THROUGH_INFO_CHARS_MAX)?;
        Ok(Self(text.into()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for PassThroughInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PassThroughInfo({} bytes)", self.0.len())
    }
}

/// A W3C trace id: sixteen bytes, not all zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId(pub [u8; 16]);

impl TraceId {
    /// Reads 32 lower-case hex digits, not all zero.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        let lower_hex = |b: &u8| b.is_ascii_digit() || (b'a'..=b'f').contains(b);
        if digits.len() != 32 || !digits.iter().all(lower_hex) {
            return None;
        }
        let bits = u128::from_str_radix(text, 16).ok()?;
        (bits != 0).then(|| Self(bits.to_be_bytes()))
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TraceId({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_is_counted_in_characters_not_bytes() {
        assert!(AcquirerId::parse(&"é".repeat(64)).is_ok());
        assert_eq!(AcquirerId::parse(&"é".repeat(65)), Err(Illegal::TooLong(64)));
        assert!(PassThroughInfo::parse(&"𝄞".repeat(20_000)).is_ok());
        assert!(PassThroughInfo::parse(&"x".repeat(20_001)).is_err());
    }

    #[test]
    fn an_id_has_no_control_characters_and_no_outer_white_space() {
        assert_eq!(PspId::parse(""), Err(Illegal::Empty));
        assert_eq!(PspId::parse("a\u{0}b"), Err(Illegal::ControlCharacter));
        assert_eq!(PspId::parse("a\u{85}b"), Err(Illegal::ControlCharacter));
        assert_eq!(PspId::parse(" a"), Err(Illegal::OuterWhiteSpace));
        assert_eq!(PspId::parse("a\u{3000}"), Err(Illegal::OuterWhiteSpace));
        assert!(PspId::parse("a b").is_ok());
    }

    #[test]
    fn what_is_printed_tells_one_from_another_and_no_content() {
        let acquirer = AcquirerId::parse("a").expect("an id");
        assert_eq!(
            (format!("{acquirer:?}"), acquirer.to_string()),
            ("AcquirerId(\"a\")".into(), "a".into())
        );
        assert_eq!(ClientId::parse("c").expect("an id").to_string(), "c");
        let mut hash = [0xff; 32];
        hash[..4].copy_from_slice(&[0x01, 0x23, 0x45, 0x67]);
        assert_eq!(TokenHash(hash).to_string(), "01234567");
        assert_eq!(format!("{:?}", TokenHash(hash)), "TokenHash(01234567…)");
        let info = PassThroughInfo::parse("é").expect("an info");
        assert_eq!(format!("{info:?}"), "PassThroughInfo(2 bytes)");
        let trace = TraceId([0x4b; 16]);
        assert_eq!(trace.to_string(), "4b".repeat(16));
        assert_eq!(format!("{trace:?}"), format!("TraceId({})", "4b".repeat(16)));
    }

    #[test]
    fn a_client_id_may_stand_in_a_header() {
        for good in ["a", "A-z_0", &"x".repeat(64)] {
            assert_eq!(ClientId::parse(good).expect(good).as_str(), good);
        }
        for bad in ["", "a b", "é", "a.b", "a\r\nb", &"x".repeat(65)] {
            assert_eq!(ClientId::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_token_is_never_printed() {
        let token = Token::parse("281010033AB2F588").expect("a token");
        assert_eq!(format!("{token:?}"), "Token(…)");
    }

    #[test]
    fn a_trace_id_is_32_lower_case_hex_digits_and_not_zero() {
        assert!(TraceId::parse("4bf92f3577b34da6a3ce929d0e0e4736").is_some());
        for bad in [
            "",
            "00000000000000000000000000000000",
            "4BF92F3577B34DA6A3CE929D0E0E4736",
            "+bf92f3577b34da6a3ce929d0e0e4736",
        ] {
            assert!(TraceId::parse(bad).is_none(), "{bad}");
        }
    }
}
