//! What a caller sees: one binary of tests, through public doors.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::as_conversions,
    clippy::missing_panics_doc,
    clippy::new_without_default,
    clippy::return_self_not_must_use,
    clippy::unused_self
)]

mod harness;

mod crash;
mod engine;
mod harness_works;
mod secrets;
mod store_contract;
mod values;
