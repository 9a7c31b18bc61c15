//! The running binary, reached through its ports alone: `Service` runs it, [`json`] speaks to it as Alipay+ does, byte
//! for byte, [`grpc`] as the wallet's own services do. [`postgres`] runs the other store's database.
#![allow(dead_code)] // a fixture offers more than one branch of the suite uses

pub mod collector;
pub mod fake_core;
pub mod grpc;
pub mod h2;
pub mod json;
pub mod pair;
pub mod pki;
pub mod postgres;
pub mod proxy;
pub mod service;
pub mod softhsm;
pub mod vectors;

use std::{
    process,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant, SystemTime},
};

/// Longest that anything may take before a test says that it hangs; never what a test measures.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// An id that no other test uses.
pub fn unique(what: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    format!("{what}-{}-{}-{count}", process::id(), since_1970.as_millis())
}

/// Asks until there is an answer.
pub fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
