//! A day: how busy each hour is, and when the way to the wallet is cut.

use std::time::Duration;

const DAY_S: u64 = 86_400;

/// Of the busiest hour's rate, in hundredths, at the beginning of each hour: lunch and dinner are when people pay, and
/// cancel.
const BUSY: [u64; 24] =
    [18, 12, 8, 6, 6, 9, 18, 34, 52, 66, 78, 90, 100, 92, 80, 76, 78, 86, 95, 100, 90, 70, 46, 28];

/// A cut of the way to the wallet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outage {
    /// Seconds since midnight.
    begins: u64,
    seconds: u64,
}

/// A time of day as `14:30`, in seconds since midnight.
pub(super) fn time(text: &str) -> Result<u64, String> {
    let parsed = text.split_once(':').and_then(|(hours, minutes)| {
        let (hours, minutes): (u64, u64) = (hours.parse().ok()?, minutes.parse().ok()?);
        (hours < 24 && minutes < 60).then_some(hours * 3_600 + minutes * 60)
    });
    parsed.ok_or_else(|| "expected a time of day, as 14:30".to_owned())
}

impl Outage {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let expected = || "expected a time of day and minutes, as 14:00+20".to_owned();
        let (begins, minutes) = text.split_once('+').ok_or_else(expected)?;
        let minutes = minutes.parse::<u64>().ok().filter(|minutes| (1..=240).contains(minutes));
        Ok(Self { begins: time(begins)?, seconds: minutes.ok_or_else(expected)? * 60 })
    }

    fn covers(&self, second: u64) -> bool {
        (second + DAY_S - self.begins) % DAY_S < self.seconds
    }
}

/// The day that is played.
#[derive(Clone, Debug)]
pub(super) struct Day {
    /// Seconds since midnight.
    pub(super) begins: u64,
    /// Its seconds in one of ours.
    pub(super) speed: u64,
    /// Requests a second in its busiest hour.
    pub(super) rate: u32,
    pub(super) outages: Vec<Outage>,
}

impl Day {
    /// The second of the day, so long after the beginning.
    fn second(&self, elapsed: Duration) -> u64 {
        let passed = elapsed.as_millis() * u128::from(self.speed) / 1_000;
        let passed = u64::try_from(passed % u128::from(DAY_S)).unwrap_or(0);
        (self.begins + passed) % DAY_S
    }

    /// As `14:30`.
    pub(super) fn clock(&self, elapsed: Duration) -> String {
        let second = self.second(elapsed);
        format!("{:02}:{:02}", second / 3_600, second % 3_600 / 60)
    }

    /// Requests in a thousand seconds, at that time.
    pub(super) fn per_thousand_seconds(&self, elapsed: Duration) -> u64 {
        let second = self.second(elapsed);
        let hour = usize::try_from(second / 3_600).unwrap_or(0) % 24;
        let (now, next) = (BUSY[hour], BUSY[(hour + 1) % 24]);
        let into = second % 3_600;
        // hundredths of the rate times 3,600
        let busy = now * (3_600 - into) + next * into;
        u64::from(self.rate) * busy / 360
    }

    /// Whether the way to the wallet is cut.
    pub(super) fn is_cut(&self, elapsed: Duration) -> bool {
        let second = self.second(elapsed);
        self.outages.iter().any(|outage| outage.covers(second))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day(from: &str, outages: &[&str]) -> Day {
        let outages = outages.iter().map(|text| Outage::parse(text).unwrap()).collect();
        Day { begins: time(from).unwrap(), speed: 60, rate: 100, outages }
    }

    #[test]
    fn a_day_is_busiest_at_noon_and_quiet_before_dawn() {
        let rate = |from| day(from, &[]).per_thousand_seconds(Duration::ZERO);
        assert_eq!(rate("12:00"), 100_000);
        assert_eq!(rate("03:00"), 6_000);
        assert_eq!(rate("11:30"), 95_000);
        assert_eq!(rate("23:30"), 23_000);
    }

    #[test]
    fn a_minute_passes_in_a_second_and_the_day_goes_round() {
        let day = day("23:59", &[]);
        assert_eq!(day.clock(Duration::ZERO), "23:59");
        assert_eq!(day.clock(Duration::from_millis(1_500)), "00:00");
        assert_eq!(day.clock(Duration::from_secs(61)), "01:00");
    }

    #[test]
    fn an_outage_begins_and_ends_on_time_also_around_midnight() {
        let cut = |from, outage| day(from, &[outage]).is_cut(Duration::ZERO);
        assert!(cut("14:00", "14:00+20") && cut("14:19", "14:00+20") && cut("00:05", "23:50+20"));
        assert!(
            !cut("13:59", "14:00+20") && !cut("14:20", "14:00+20") && !cut("00:10", "23:50+20")
        );
        for bad in ["14:00", "24:00+5", "14:00+0", "14+5", "14:00+241"] {
            assert!(Outage::parse(bad).is_err(), "{bad}");
        }
    }
}
