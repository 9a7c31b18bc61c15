//! The binary: arguments, settings, telemetry, run, exit status.

fn main() {}
