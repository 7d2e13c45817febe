//! A private certificate authority for the demo and for CI: it makes the certificates that every
//! listener and every client of the gateway must hold, and the revocation list that goes with them.
//!
//! The authority is one directory: `ca.crt`, `ca.key`, `crl.pem`, `index.json`, and `<name>.crt` and
//! `<name>.key` of each certificate. Each file is replaced whole, so a reader never meets half of one.
//! The root key lies unprotected on the disk: this is no authority for production.
#![forbid(unsafe_code)]

mod authority; // create, open, issue, revoke, publish the list
mod leaf; // what a certificate may be used for, and how long
mod index; // what was issued, and what of it was revoked
mod demo; // the certificates of the demo world
mod files; // whole-file replacement and the lock
mod error;

pub use authority::{Authority, Issued};
pub use demo::issue_demo;
pub use error::PkiError;
pub use index::{Certificate, Crl, Index};
pub use leaf::Leaf;
