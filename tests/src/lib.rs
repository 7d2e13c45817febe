//! The world around the gateway: who pays, who is paid, and a second opinion on every answer.
//!
//! `soft` computes what the token computes, from the standards alone and without a line of the
//! product: when the two agree, the answer is right. The simulators speak real mutual TLS.
#![forbid(unsafe_code)]

pub mod vectors; // known answers, by file and id
pub mod soft; // payment cryptography in plain software
pub mod demo_keys; // the disposable token's keys, in the clear
pub mod mtls; // one private CA, both ends
pub mod billing; // who is paid, and can be told to misbehave
pub mod acquirer; // who sends payments
pub mod accounts; // payers that insist, and the ledger judged by what they were told
pub mod bad_blocks; // PIN blocks with one fault each
pub mod random_orders; // random operations, by worker and by soft
pub mod proxy; // a network that can be told to fail
pub mod load; // many requests at once, and how long each took
pub mod world; // all of it in one call
pub mod demo; // the story of `make demo`
pub mod chaos; // the faults of `make chaos`
pub mod kills; // the deaths of `make kills`
