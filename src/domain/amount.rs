//! Money: minor units and an ISO 4217 code.

use std::fmt;

/// Largest amount, in minor units: 2^53 − 1, so that no JSON reader anywhere rounds it, and sums of refunds stay exact.
pub const AMOUNT_MINOR_UNITS_MAX: u64 = 9_007_199_254_740_991;

/// Three upper-case letters of ISO 4217.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Currency([u8; 3]);

impl Currency {
    /// Checks a text.
    pub fn parse(text: &str) -> Option<Self> {
        let code: [u8; 3] = text.as_bytes().try_into().ok()?;
        code.iter().all(u8::is_ascii_uppercase).then_some(Self(code))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("???") // upper-case ASCII by construction
    }
}

impl fmt::Debug for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An amount of money, at least one minor unit.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Amount {
    minor_units: u64,
    currency: Currency,
}

impl Amount {
    /// Checks the range: 1 to [`AMOUNT_MINOR_UNITS_MAX`].
    pub fn new(minor_units: u64, currency: Currency) -> Option<Self> {
        (1..=AMOUNT_MINOR_UNITS_MAX)
            .contains(&minor_units)
            .then_some(Self { minor_units, currency })
    }

    /// In the currency's smallest unit.
    pub const fn minor_units(self) -> u64 {
        self.minor_units
    }

    /// Which currency.
    pub const fn currency(self) -> Currency {
        self.currency
    }
}

impl fmt::Debug for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.minor_units, self.currency.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_is_printed_as_people_write_it() {
        let euro = Currency::parse("EUR").expect("a currency");
        assert_eq!(format!("{euro:?}"), "EUR");
        assert_eq!(format!("{:?}", Amount::new(1_999, euro).expect("an amount")), "1999 EUR");
    }

    #[test]
    fn an_amount_is_at_least_one_unit_and_none_that_a_reader_rounds() {
        let euro = Currency::parse("EUR").expect("a currency");
        let fits = |units| Amount::new(units, euro).map(Amount::minor_units);
        assert_eq!(fits(0), None);
        assert_eq!(fits(1), Some(1));
        assert_eq!(fits(AMOUNT_MINOR_UNITS_MAX), Some(AMOUNT_MINOR_UNITS_MAX));
        assert_eq!(fits(AMOUNT_MINOR_UNITS_MAX + 1), None);
        for bad in ["", "EU", "EURO", "eur", "E R", "ÄÄ"] {
            assert_eq!(Currency::parse(bad), None, "{bad}");
        }
    }
}
