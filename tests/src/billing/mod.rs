//! The billing simulator: a biller's payment API over mutual TLS, which can be told to misbehave.
//!
//! It pays each reference at most once, also over its own sudden death: an answer leaves only
//! when its line is on the disk, and the journal is read again at the next start. It checks what
//! it is sent with `soft`, so a wrong MAC or PIN block of the gateway cannot go unnoticed.

mod api; // a request passes identity, fault, handler
mod order; // bytes -> order -> verdict
mod ledger; // who was paid, once
mod journal; // the ledger on the disk
mod fault; // how to misbehave
mod server; // sockets and TLS
mod control; // the client that sets faults and reads the ledger

pub use control::Control;
pub use fault::{Fault, Mode};
pub use ledger::{Effect, LedgerReport, Reversal};
pub use order::{Amount, CUSTOMER_PINS};
pub use server::{Options, Server, serve};

#[cfg(test)]
mod tests;
