//! What a caller sees: one binary of tests, through public doors.

mod decisions;
mod layering;
mod oracle;
mod properties;
