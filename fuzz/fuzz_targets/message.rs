#![no_main]

use alipayplus_cancel_fuzz::targets::message;

libfuzzer_sys::fuzz_target!(|data: &[u8]| message::run(data));
