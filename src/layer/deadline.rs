//! How long a caller waits, as gRPC says it: the `grpc-timeout` header.
//!
//! tonic reads it too, but ends such a call as CANCELLED; ours ends as DEADLINE_EXCEEDED, where the wait is.

use std::time::Duration;

/// Longest wait that is honoured: a caller that asks for more gets this.
pub const LONGEST: Duration = Duration::from_mins(1);

/// Reads at most eight digits and a unit (`H`, `M`, `S`, `m`, `u`, `n`); `None` if it is not that.
///
/// Source: "gRPC over HTTP2", Timeout.
pub fn parse(value: &str) -> Option<Duration> {
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|digit| digit.is_ascii_digit())
    {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    let wait = match unit {
        "H" => Duration::from_secs(count.checked_mul(3_600)?),
        "M" => Duration::from_secs(count.checked_mul(60)?),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    };
    Some(wait.min(LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_digits_and_a_unit() {
        assert_eq!(parse("100m"), Some(Duration::from_millis(100)));
        assert_eq!(parse("5S"), Some(Duration::from_secs(5)));
        assert_eq!(parse("99999999n"), Some(Duration::from_nanos(99_999_999)));
        assert_eq!(parse("99999999H"), Some(LONGEST));
        for bad in ["", "S", "5", "-5S", "5s", "123456789S", "5é", "é"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
