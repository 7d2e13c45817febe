//! One event for each answer, also for refusals, and no answer before its record is durable.
//!
//! `layer` wraps all routes of a listener; `rejects` hears of connections that never sent a
//! request; both hand events to `writer`, which numbers them and makes them durable in batches.

mod layer; // request id, event, panic, security headers
mod entry; // what a handler says about its event
mod rejects; // connections that were refused, sampled
mod writer; // one thread, one sync a batch
mod segment; // the files

pub use entry::{AuditEntry, RequestId};
pub use layer::{AuditLayer, AuditService};
pub use rejects::record_refusals;
pub use writer::{AuditLog, AuditOpenError, AuditUnavailable, Receipt};
