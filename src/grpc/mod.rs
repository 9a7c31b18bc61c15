//! The gRPC front: the contract of `proto/`, served and called.
//!
//! `convert` and `status` are the only places where the domain meets the wire: what comes in is checked there and is a
//! domain value from then on. The bridge uses [`client`], in one process or over a channel; it is never closer to the
//! core than any other caller.

pub mod channel;
pub mod client;
mod convert;
pub mod follower;
pub mod front;
#[doc(hidden)]
pub mod fuzzing;
pub mod importer;
pub mod observe;
pub mod recorder;
pub mod reference;
pub mod server;
mod status;

/// Generated from `proto/`.
pub mod wire {
    #![expect(clippy::pedantic, reason = "generated code")]
    #![allow(missing_docs, reason = "generated code; its documentation is the proto's")]
    #![allow(clippy::as_conversions, clippy::wildcard_enum_match_arm, reason = "generated code")]

    tonic::include_proto!("alipayplus.cancel.v1");

    /// A moment, as messages tell it.
    pub type Time = prost_types::Timestamp;

    /// What reflection answers from.
    pub(super) const DESCRIPTORS: &[u8] =
        include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}

/// Metadata that carries Alipay+'s Client-Id from the bridge to the core. Taken from nobody else.
const CLIENT_ID: &str = "alipayplus-client-id";
/// W3C trace context.
const TRACEPARENT: &str = "traceparent";
/// Largest message of the ImportService, in bytes: so many records that each carry a passThroughInfo of some length.
const IMPORT_BYTES_MAX: usize = 8 * 1024 * 1024;
