//! What a record says about the process and its database.

use serde::Serialize;
use uuid::Uuid;

use crate::chain::Hash;

/// What a process runs (PCI DSS 11.5.2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Digests {
    /// SHA-256 of its configuration file.
    pub configuration: Hash,
    /// SHA-256 of the names, states and check values of the keys that the token told of; absent when it did
    /// not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keys: Option<Hash>,
    /// SHA-256 of its own program file.
    pub program: Hash,
}

/// How old the database was seen to be, so that an old copy of it shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct QueueState {
    /// Payments that are open.
    pub depth: u64,
    /// Looks of all gateways at the database so far.
    pub epoch: u64,
    /// The last place that a payment was given, in line of all payments ever.
    pub item_seq: u64,
    /// Which database: a copy has the same.
    pub store: Uuid,
}
