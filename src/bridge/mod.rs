//! The JSON front for Alipay+: the official wire format, verified and signed, translated to and from gRPC.
//!
//! A request meets, in this order: [`front`] (the table of paths and the order of checks), [`envelope`] (headers and
//! signature: bytes become `Verified`, an answer becomes a signed response), one file per API (its JSON, read strictly
//! by [`json`]), and the gRPC client. HTTP status is always 200: official clients never read the body of another one.
//!
//! It knows no store and no engine: what it wants decided, it asks the core for like any other caller of gRPC.

mod cancel_payment;
mod cancel_token;
pub mod envelope;
pub mod front;
pub mod identity;
pub mod json;
pub mod keys;
pub mod media_type;
mod reply;
pub mod request_time;
mod sign_cache;
pub mod signature;
pub mod signer;

pub use self::{
    front::{Bridge, Limits},
    identity::{Client, ClientKey, Clients, Identity, IdentityError},
};

#[cfg(test)]
mod vectors;
