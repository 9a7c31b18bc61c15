//! Until when a succeeded payment may be cancelled.
//!
//! Alipay+'s rule: until 00:30:00 UTC+8, inclusive, of the day after the payment was initiated. The offset is fixed, so
//! no time-zone database is involved and the verdict is the same on every machine.

use super::time::Timestamp;

const DAY_MS: i64 = 86_400_000;

/// A rule for the end of the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelWindow {
    /// A time of day, some days after the day of initiation.
    TimeOfDay {
        /// Days after the day of initiation: 1 is T+1.
        day_offset: u16,
        /// Milliseconds after midnight.
        time_ms: u32,
        /// Milliseconds east of UTC, by which days are told apart.
        utc_offset_ms: i32,
        /// Milliseconds granted on top.
        grace_ms: u32,
    },
    /// A plain duration from initiation.
    Duration {
        /// Milliseconds from initiation.
        duration_ms: u64,
        /// Milliseconds granted on top.
        grace_ms: u32,
    },
}

impl CancelWindow {
    /// Alipay+'s rule, with a minute of grace.
    pub const ALIPAYPLUS: Self = Self::TimeOfDay {
        day_offset: 1,
        time_ms: 30 * 60_000,
        utc_offset_ms: 8 * 3_600_000,
        grace_ms: 60_000,
    };

    /// The last moment, inclusive, at which a payment initiated then may be cancelled.
    pub fn closes_at(self, initiated_at: Timestamp) -> Timestamp {
        match self {
            Self::TimeOfDay { day_offset, time_ms, utc_offset_ms, grace_ms } => {
                let offset = i64::from(utc_offset_ms);
                let local = initiated_at.unix_ms.saturating_add(offset);
                let day = local.div_euclid(DAY_MS).saturating_add(i64::from(day_offset));
                let local_end = day.saturating_mul(DAY_MS).saturating_add(i64::from(time_ms));
                let end = local_end.saturating_sub(offset).saturating_add(i64::from(grace_ms));
                Timestamp { unix_ms: end }
            }
            Self::Duration { duration_ms, grace_ms } => Timestamp {
                unix_ms: initiated_at
                    .unix_ms
                    .saturating_add_unsigned(duration_ms)
                    .saturating_add(i64::from(grace_ms)),
            },
        }
    }

    /// Whether it is too late.
    pub fn is_past(self, initiated_at: Timestamp, now: Timestamp) -> bool {
        now > self.closes_at(initiated_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        let moment: jiff::Timestamp = text.parse().expect("a time");
        Timestamp { unix_ms: moment.as_millisecond() }
    }

    #[test]
    fn the_window_closes_at_half_past_midnight_of_the_next_day_in_utc_plus_8_and_a_minute_of_grace()
    {
        for (initiated, closes) in [
            ("2026-05-28T12:12:12+08:00", "2026-05-29T00:31:00+08:00"),
            ("2026-05-28T00:00:00+08:00", "2026-05-29T00:31:00+08:00"),
            ("2026-05-27T23:59:59.999+08:00", "2026-05-28T00:31:00+08:00"),
            ("2026-05-27T16:00:00Z", "2026-05-29T00:31:00+08:00"), // already the 28th in UTC+8
            ("1969-12-31T23:00:00+08:00", "1970-01-01T00:31:00+08:00"),
        ] {
            assert_eq!(
                CancelWindow::ALIPAYPLUS.closes_at(at(initiated)),
                at(closes),
                "{initiated}"
            );
        }
    }

    #[test]
    fn the_last_moment_is_inside() {
        let initiated = at("2026-05-28T12:00:00+08:00");
        let last = CancelWindow::ALIPAYPLUS.closes_at(initiated);
        assert!(!CancelWindow::ALIPAYPLUS.is_past(initiated, last));
        assert!(
            CancelWindow::ALIPAYPLUS.is_past(initiated, Timestamp { unix_ms: last.unix_ms + 1 })
        );
    }

    #[test]
    fn a_plain_duration_counts_from_initiation() {
        let window = CancelWindow::Duration { duration_ms: 3_600_000, grace_ms: 1_000 };
        assert_eq!(window.closes_at(at("2026-05-28T12:00:00Z")), at("2026-05-28T13:00:01Z"));
    }

    #[test]
    fn no_time_overflows() {
        for initiated in [i64::MIN, i64::MAX] {
            let initiated = Timestamp { unix_ms: initiated };
            for window in [
                CancelWindow::ALIPAYPLUS,
                CancelWindow::TimeOfDay {
                    day_offset: u16::MAX,
                    time_ms: u32::MAX,
                    utc_offset_ms: i32::MIN,
                    grace_ms: u32::MAX,
                },
                CancelWindow::Duration { duration_ms: u64::MAX, grace_ms: u32::MAX },
            ] {
                let _closes = window.closes_at(initiated);
            }
        }
    }
}
