#![no_main]

use alipayplus_cancel_fuzz::targets::cursor;

libfuzzer_sys::fuzz_target!(|data: &[u8]| cursor::run(data));
