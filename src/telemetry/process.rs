//! What the system says of this process, from /proc; nothing where there is none.

use std::{fs, time::Instant};

use rustix::{
    param::{clock_ticks_per_second, page_size},
    process::{Resource, getrlimit},
};

use super::metrics::{Label, Metrics, label};

/// Has them read from now on.
pub(super) fn observe(metrics: &Metrics) {
    let started = Instant::now();
    metrics.uptime.ask(move || {
        let seconds = i64::try_from(started.elapsed().as_secs()).unwrap_or(i64::MAX);
        vec![(Vec::new(), seconds)]
    });
    metrics.memory.ask(|| resident_bytes().map(|bytes| (Vec::new(), bytes)).into_iter().collect());
    metrics.open_files.ask(|| {
        let open = fs::read_dir("/proc/self/fd").map(Iterator::count);
        open.ok()
            .and_then(|open| i64::try_from(open).ok())
            .map(|open| (Vec::new(), open))
            .into_iter()
            .collect()
    });
    metrics.open_files_max.ask(|| {
        // without a limit there is nothing to come near to
        let most = getrlimit(Resource::Nofile).current.and_then(|most| i64::try_from(most).ok());
        most.map(|most| (Vec::new(), most)).into_iter().collect()
    });
    metrics.cpu_time.from(|| cpu_seconds().unwrap_or_default());
}

fn resident_bytes() -> Option<i64> {
    let text = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: i64 = text.split_whitespace().nth(1)?.parse().ok()?;
    pages.checked_mul(i64::try_from(page_size()).ok()?)
}

fn cpu_seconds() -> Option<Vec<(Vec<Label>, f64)>> {
    let text = fs::read_to_string("/proc/self/stat").ok()?;
    // the name in parentheses may hold anything; state is the first field behind it, utime the twelfth
    let (_, fields) = text.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let ticks = f64::from(u32::try_from(clock_ticks_per_second()).ok()?);
    let mut seconds = || Some(fields.next()?.parse::<f64>().ok()? / ticks);
    let (user, system) = (seconds()?, seconds()?);
    Some(vec![(vec![label("cpu.mode", "user")], user), (vec![label("cpu.mode", "system")], system)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_tells_of_this_process() {
        assert!(resident_bytes().expect("statm") > 1_000_000);
        let seconds = cpu_seconds().expect("stat");
        assert_eq!(seconds.len(), 2);
        assert!(seconds.iter().all(|(_, seconds)| (0.0..100_000.0).contains(seconds)));
    }
}
