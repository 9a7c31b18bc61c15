//! What people read: amounts, moments, how long ago.

use jiff::{Timestamp, tz::TimeZone};

/// Digits behind the point, where they are not two. Source: ISO 4217, table A.1.
const MINOR_DIGITS: [(&str, u32); 23] = [
    ("BIF", 0),
    ("CLP", 0),
    ("DJF", 0),
    ("GNF", 0),
    ("ISK", 0),
    ("JPY", 0),
    ("KMF", 0),
    ("KRW", 0),
    ("PYG", 0),
    ("RWF", 0),
    ("UGX", 0),
    ("UYI", 0),
    ("VND", 0),
    ("VUV", 0),
    ("XAF", 0),
    ("XOF", 0),
    ("XPF", 0),
    ("BHD", 3),
    ("JOD", 3),
    ("KWD", 3),
    ("LYD", 3),
    ("OMR", 3),
    ("TND", 3),
];

/// `1999`, `EUR` is `19.99 EUR`.
pub(super) fn amount(value: i64, currency: &str) -> String {
    let known = MINOR_DIGITS.iter().find(|(code, _)| *code == currency);
    let digits = known.map_or(2, |(_, digits)| *digits);
    let unit = 10_u64.pow(digits);
    let (sign, value) = (if value < 0 { "-" } else { "" }, value.unsigned_abs());
    let whole = value / unit;
    if digits == 0 {
        return format!("{sign}{whole} {currency}");
    }
    let width = usize::try_from(digits).unwrap_or(2);
    format!("{sign}{whole}.{:0width$} {currency}", value % unit)
}

/// A moment in UTC, to the second, as `2026-11-29 07:20:31 UTC`.
pub(super) fn moment(unix_ms: i64) -> String {
    let Ok(moment) = Timestamp::from_millisecond(unix_ms) else { return format!("{unix_ms} ms") };
    moment.to_zoned(TimeZone::UTC).strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// For machines that read pages, as `2026-11-29T07:20:31.123Z`.
pub(super) fn machine(unix_ms: i64) -> String {
    Timestamp::from_millisecond(unix_ms).map(|moment| moment.to_string()).unwrap_or_default()
}

/// How long ago, or how long still, in one unit.
pub(super) fn ago(unix_ms: i64, now_ms: i64) -> String {
    let distance = now_ms.saturating_sub(unix_ms);
    let length = length(distance.unsigned_abs());
    if distance < 0 { format!("in {length}") } else { format!("{length} ago") }
}

/// A length of time in one unit.
pub(super) fn length(ms: u64) -> String {
    let seconds = ms / 1_000;
    let of =
        |count: u64, unit: &str| format!("{count} {unit}{}", if count == 1 { "" } else { "s" });
    match seconds {
        0..60 => of(seconds, "second"),
        60..3_600 => of(seconds / 60, "minute"),
        3_600..172_800 => of(seconds / 3_600, "hour"),
        172_800.. => of(seconds / 86_400, "day"),
    }
}

/// This moment, in milliseconds since 1970.
pub(super) fn now_ms() -> i64 {
    Timestamp::now().as_millisecond()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_has_as_many_decimals_as_its_currency() {
        for (value, currency, text) in [
            (1_999, "EUR", "19.99 EUR"),
            (5, "USD", "0.05 USD"),
            (1_999, "JPY", "1999 JPY"),
            (1_999, "KWD", "1.999 KWD"),
            (9_007_199_254_740_991, "CNY", "90071992547409.91 CNY"),
        ] {
            assert_eq!(amount(value, currency), text);
        }
    }

    #[test]
    fn a_moment_is_told_in_utc_and_from_now() {
        assert_eq!(moment(1_764_400_831_123), "2025-11-29 07:20:31 UTC");
        assert_eq!(machine(1_764_400_831_123), "2025-11-29T07:20:31.123Z");
        for (then, text) in [
            (0, "2 days ago"),
            (172_740_000, "1 minute ago"),
            (172_799_000, "1 second ago"),
            (172_800_000, "0 seconds ago"),
            (172_800_000 + 7_200_000, "in 2 hours"),
        ] {
            assert_eq!(ago(then, 172_800_000), text);
        }
    }
}
