#![no_main]

use alipayplus_cancel_fuzz::targets::decoding;

libfuzzer_sys::fuzz_target!(|data: &[u8]| decoding::run(data));
