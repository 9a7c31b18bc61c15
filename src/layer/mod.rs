//! What both fronts need around a request, one file each, as tower layers.
//!
//! A layer is generic over its front: it asks a request by a trait what it needs to know of it ([`overload::Sourced`],
//! [`rate_limit::Limited`], [`deadline::Timed`]), and says no by [`Refuse`], which each front turns into its own words.
//! Nothing here has decided anything, so a refusal is never more than "ask again" or "you may not".

pub mod budget;
pub mod caller_rate;
pub mod deadline;
pub mod gate;
pub mod identity;
pub mod overload;
pub mod panic;
pub mod rate_limit;
pub mod unproven;

use std::time::Duration;

/// Why a request is turned away before anything was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Too many at once, of this caller or of all.
    Busy,
    /// Too many in this time.
    OverRate {
        /// When there is room again.
        retry_after: Duration,
    },
    /// The caller may not ask for this.
    NotAllowed,
    /// Its time is over; it is not known what happened.
    OutOfTime,
    /// A defect of ours; it is not known what happened.
    Panicked,
}

/// An answer that says no.
pub trait Refuse {
    /// The answer to a request that was turned away.
    fn refuse(refusal: Refusal) -> Self;
}
