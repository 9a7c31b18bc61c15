//! What people do with a whole store, beside the commands that callers send: bring history in, walk through it, copy
//! it, mend it after a restore.
//!
//! Every one works over any [`Store`](crate::store::Store), in bounded memory, and can be stopped and begun again.

pub mod copy;
pub mod lines;
pub mod reconcile;
mod transact;
pub mod verify;
mod walk;
