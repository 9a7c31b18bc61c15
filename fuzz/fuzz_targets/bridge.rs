#![no_main]

use alipayplus_cancel_fuzz::targets::bridge;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bridge::run(data));
