//! The two times on the wire: `Request-Time`, read in every form met in the wild, and our `response-time`.
//!
//! Reading is no replay window: a time is readable or not, however old.

use jiff::tz::Offset;

use crate::domain::time::Timestamp;

/// Longest text that is looked at. The longest form met has 33 characters; a zone in brackets fits as well.
const TEXT_BYTES_MAX: usize = 64;
/// A bare number below this many milliseconds (2000-01-01) is no time of a payment: a count of seconds, most likely.
const UNIX_MS_MIN: i64 = 946_684_800_000;

/// Reads ISO 8601 with an offset (`+08:00`, `+0000`, `Z`; up to nine fraction digits) or bare epoch milliseconds.
pub fn parse(text: &str) -> Option<Timestamp> {
    if text.is_empty() || text.len() > TEXT_BYTES_MAX {
        return None;
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        let unix_ms = text.parse().ok().filter(|unix_ms| *unix_ms >= UNIX_MS_MIN)?;
        return Timestamp::from_unix_ms(unix_ms);
    }
    let moment: jiff::Timestamp = text.parse().ok()?;
    Timestamp::from_unix_ms(moment.as_millisecond())
}

/// The moment as Alipay+'s samples spell it: `2019-05-28T12:12:14+08:00`. The fraction is cut off, so that equal answers
/// within a second have equal signatures.
pub fn response_time(now: Timestamp) -> String {
    let seconds = now.unix_ms.div_euclid(1000);
    // jiff ends a day before year 10000, so that any offset can be applied
    let moment = jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::MAX);
    let civil = Offset::constant(8).to_datetime(moment);
    format!("{}+08:00", civil.strftime("%Y-%m-%dT%H:%M:%S"))
}

/// A second since 1970 as HTTP's `date` spells it (RFC 9110, IMF-fixdate).
pub(super) fn http_date(second: i64) -> String {
    let moment = jiff::Timestamp::from_second(second).unwrap_or(jiff::Timestamp::MAX);
    let civil = Offset::UTC.to_datetime(moment);
    civil.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn unix_ms(text: &str) -> Option<i64> {
        parse(text).map(|moment| moment.unix_ms)
    }

    #[test]
    fn every_form_met_in_the_wild_is_read() {
        for (text, expected) in [
            ("2019-05-28T12:12:12+08:00", 1_559_016_732_000),
            ("2019-05-28T04:12:12+0000", 1_559_016_732_000),
            ("2019-05-28T04:12:12Z", 1_559_016_732_000),
            ("2019-05-28T04:12:12.5Z", 1_559_016_732_500),
            ("2019-05-28T04:12:12.09Z", 1_559_016_732_090),
            ("2019-05-28T04:12:12.123+00:00", 1_559_016_732_123),
            ("2019-05-28T04:12:12.1234567Z", 1_559_016_732_123),
            ("2019-05-28T04:12:12.123456789-0000", 1_559_016_732_123),
            ("2019-05-27T22:42:12-05:30", 1_559_016_732_000),
            ("1685599933871", 1_685_599_933_871),
        ] {
            assert_eq!(unix_ms(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_moment_is_not_read() {
        for text in [
            "",
            "now",
            "2019-05-28",
            "2019-05-28T12:12:12",
            "2019-02-29T12:12:12Z",
            "2019-13-01T12:12:12Z",
            "2019-05-28T24:12:12Z",
            "2019-05-28T12:61:12Z",
            "2019-05-28T12:12:12+99:00",
            "2019-05-28T12:12:12.1234567890Z",
            "2019-05-28T12:12:12Z ",
            " 1685599933871",
            "-1685599933871",
            "1685599933",
            "999999999999999",
            "99999999999999999999999999",
            "１６８５５９９９３３８７１",
        ] {
            assert_eq!(unix_ms(text), None, "{text}");
        }
        assert_eq!(unix_ms(&format!("2019-05-28T12:12:12Z{}", "[a]".repeat(40))), None);
        // nor is what is longer than any of them looked at
        let padded = |length| format!("{:0>length$}", "1685599933871");
        assert_eq!(unix_ms(&padded(64)), Some(1_685_599_933_871));
        assert_eq!(unix_ms(&padded(65)), None);
    }

    #[test]
    fn a_response_time_has_whole_seconds_in_china_time() {
        let at = |unix_ms| response_time(Timestamp { unix_ms });
        assert_eq!(at(1_559_016_734_000), "2019-05-28T12:12:14+08:00");
        assert_eq!(at(1_559_016_734_999), "2019-05-28T12:12:14+08:00");
        assert_eq!(at(-1), "1970-01-01T07:59:59+08:00");
        assert_eq!(response_time(Timestamp::MIN), "0001-01-01T08:00:00+08:00");
        assert!(response_time(Timestamp::MAX).starts_with("9999-12-31T"));
    }

    #[test]
    fn a_date_is_the_one_of_the_rfc() {
        assert_eq!(http_date(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
    }

    proptest! {
        #[test]
        fn our_own_times_are_read_back(unix_ms in 0_i64..4_102_444_800_000) {
            let read = parse(&response_time(Timestamp { unix_ms }));
            prop_assert_eq!(read, Some(Timestamp { unix_ms: unix_ms / 1000 * 1000 }));
        }

        #[test]
        fn no_text_panics(text in ".{0,70}") {
            parse(&text);
        }
    }
}
