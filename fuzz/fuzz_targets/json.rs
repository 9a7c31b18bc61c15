#![no_main]

use alipayplus_cancel_fuzz::targets::json;

libfuzzer_sys::fuzz_target!(|data: &[u8]| json::run(data));
