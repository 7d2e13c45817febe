//! Carries PIN and MAC operations from mutually authenticated clients to a token, and payments to
//! their billers.
//!
//! A request passes edge, wire, routes, relay, guard, in that order; `audit` wraps them all. Nothing in
//! this crate can name a clear PIN: see `hsm_adapter`.
#![forbid(unsafe_code)]

pub mod app; // Config -> App: the only module that knows every other
pub mod config; // one file a section, refused when a key is unknown
pub mod edge; // who may speak, and how fast
pub mod wire; // bytes -> orders, outcomes -> bytes
pub mod routes; // one handler a file
pub mod relay; // now, later, or never
pub mod guard; // counts what could be guessing, before the token is asked
pub mod key_watch; // the lint of the token, and who is told of it
pub mod officers; // changes of keys: two persons, once
pub mod links; // when to ask again and when to stop
pub mod breaker_desk; // the operator's hand on the breakers
pub mod store; // rows of sealed bytes, leases
pub mod audit; // the outermost layer: one event for each answer
pub mod siem; // copies of each record to who watches
pub mod checkpoint_key; // the token's audit key, and what a start tells of itself
pub mod admin; // the other listener: health, readiness, figures
pub mod telemetry; // every metric name in one table; logs
pub mod check; // preflight: everything that `serve` needs
pub mod operator; // the command line as a client of the admin API
pub mod key_desk; // `tollgate keys`
pub mod queue_desk; // `tollgate queue`
pub mod audit_desk; // `tollgate audit`
mod progress; // a bar for who waits
pub mod probe; // a container's health check
pub mod hardening; // no cores, no ptrace

pub use routes::openapi;
