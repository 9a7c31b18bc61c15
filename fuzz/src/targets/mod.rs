//! One file a target, each with `run`, which panics if a promise is broken.

pub mod bridge;
pub mod bytes;
pub mod config;
pub mod cursor;
pub mod decoding;
pub mod json;
mod memory;
pub mod message;
pub mod signature;

/// A target: its name, which is that of its folders, and what it runs.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const ALL: &[Target] = &[
    ("bridge", bridge::run),
    ("config", config::run),
    ("cursor", cursor::run),
    ("decoding", decoding::run),
    ("json", json::run),
    ("message", message::run),
    ("signature", signature::run),
];
