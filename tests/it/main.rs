//! What a caller sees: one binary of tests, through public doors.

mod engine;
mod store_contract;
mod values;
