//! What both fronts need around a request: deadlines and trace context, one file each.

pub mod deadline;
pub mod trace;
