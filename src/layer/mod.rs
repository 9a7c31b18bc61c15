//! What both fronts need around a request, one file each.

pub mod budget;
pub mod deadline;
pub mod identity;
pub mod trace;
