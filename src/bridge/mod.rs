//! The JSON front for Alipay+: the official wire format, verified and signed, translated to and from gRPC.
//!
//! [`front`] has the table of paths and, as one stack of tower layers, what a request meets in this order: `observe` (what is
//! told of it), `seal` (a
//! reply becomes a signed response), room and time (`layer`), `checks` (of its head), `proof` (its body becomes
//! [`envelope::Verified`]), its client's rate, `commands` (one file per API for its JSON, read strictly by [`json`]; then
//! the gRPC client). HTTP status is always 200: official clients never read the body of another one.
//!
//! It knows no store and no engine: what it wants decided, it asks the core for like any other caller of gRPC.

mod cancel_payment;
mod cancel_token;
mod checks;
mod commands;
pub mod diagnose;
pub mod envelope;
mod exchange;
pub mod front;
pub mod identity;
pub mod json;
pub mod keys;
pub mod media_type;
mod observe;
pub mod openapi;
mod porter;
mod proof;
mod reply;
pub mod request_time;
mod seal;
mod sign_cache;
pub mod signature;
pub mod signer;

pub use self::{
    front::{Api, Bridge, Limits, Setup},
    identity::{Client, ClientKey, Clients, Identity, IdentityError, Rates},
};

#[cfg(test)]
mod vectors;
