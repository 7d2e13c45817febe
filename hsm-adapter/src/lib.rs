//! PIN and MAC operations on a PKCS#11 token, run in a worker process of its own.
//!
//! The gateway holds a [`client::TokenLink`]: it starts `tollgate-hsm`, keeps its deadlines, kills
//! it when it hangs and starts another. The worker holds the token: one thread for each session,
//! one file in `operation` for each composition of C_ calls. A clear PIN exists in `clear` and
//! nowhere else; no type of this crate's public surface can carry one.
#![deny(unsafe_code)] // the one FFI corner, worker/raw.rs, states its SAFETY argument

pub mod vocabulary; // Pan, PinBlock, KeyName, Kcv: safe to pass around
pub mod register; // keys.toml: what each key is for
pub mod protocol; // the orders and answers that cross the socket
pub mod client; // TokenLink: the gateway's side
pub mod worker; // the process: hardening, login, sessions on threads, self-test
mod operation; // translate, mac, seal, check values
mod clear; // the clear PIN types: private to this crate
pub mod error; // function + CKR -> class
pub mod ceremony; // making tokens and keys; never reached from the worker
