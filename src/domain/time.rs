//! A moment, as the core sees it.

/// Milliseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Timestamp {
    /// The count; negative before 1970.
    pub unix_ms: i64,
}

impl Timestamp {
    /// First moment a caller may name: year 1.
    pub const MIN: Self = Self { unix_ms: -62_135_596_800_000 };
    /// Last moment a caller may name: year 9999. Also keeps every sum in the core far from overflow.
    pub const MAX: Self = Self { unix_ms: 253_402_300_799_999 };

    /// A moment within [`Self::MIN`] and [`Self::MAX`].
    pub fn from_unix_ms(unix_ms: i64) -> Option<Self> {
        let moment = Self { unix_ms };
        (Self::MIN..=Self::MAX).contains(&moment).then_some(moment)
    }
}
