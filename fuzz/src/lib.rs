//! Fuzz targets of alipayplus-cancel: plain functions from bytes, which panic if a promise is broken.
//!
//! `fuzz_targets/` gives each of them to libFuzzer; `tests/it/corpora.rs` of the project runs the same functions on what
//! was found, with the stable compiler.

pub mod targets;
