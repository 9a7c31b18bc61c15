//! The front toward Alipay+: signed JSON over HTTP.
//!
//! Nothing is decided here. A request is checked in the order of docs/wire.md, and every room below is pure: bytes in,
//! a checked value or the reason why not out.

pub mod json;
pub mod keys;
pub mod media_type;
pub mod request_time;
pub mod signature;

#[cfg(test)]
mod vectors;
