#![no_main]

use alipayplus_cancel_fuzz::targets::config;

libfuzzer_sys::fuzz_target!(|data: &[u8]| config::run(data));
