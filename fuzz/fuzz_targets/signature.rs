#![no_main]

use alipayplus_cancel_fuzz::targets::signature;

libfuzzer_sys::fuzz_target!(|data: &[u8]| signature::run(data));
