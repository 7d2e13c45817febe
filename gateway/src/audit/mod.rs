//! One event for each answer, also for refusals, and no answer before its record is durable.
//!
//! `layer` wraps all routes of a listener; `rejects` hears of connections that never sent a
//! request; both hand events to `writer`, which chains them and makes them durable in batches. Behind it
//! `checkpoints` has the HSM sign what was written.

mod layer; // request id, event, panic, security headers
mod entry; // what a handler says about its event
mod rejects; // connections that were refused, sampled
mod log; // the log as the rest of the process sees it
mod writer; // one thread, one sync a batch
mod segment; // the files
mod previous; // how the log ended before this start
mod checkpoints; // size and root, signed inside the HSM
mod keeper; // sealed, archived, purged
mod desk; // what an auditor asks of it

pub use checkpoints::{CheckpointSignature, Checkpoints, Signs};
pub use desk::{AuditDesk, AuditStatus, DeskError};
pub use entry::{AuditEntry, RequestId};
pub use keeper::Keeper;
pub use layer::{AuditLayer, AuditService};
pub use log::{AuditLog, AuditOpenError, AuditUnavailable, Receipt};
pub(crate) use previous::followed_by;
pub use previous::{Payment, Previous};
pub use rejects::record_refusals;
