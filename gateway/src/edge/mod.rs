//! Who may speak, and how fast.
//!
//! A connection passes sources (may this address connect), TLS (does an authority vouch for it),
//! identity (whom does it claim to be), registry (do we know that one); each request then asks its
//! client for a permit. Knows sockets, certificates and permits, nothing of orders or answers.

pub mod listener; // accept, handshake, serve, drain
pub mod tls; // certificates, authorities, revocation lists, and their renewal
pub mod identity; // certificate -> the one URI, URI -> client
pub mod peer; // what a request knows of its sender
pub mod permit; // rate and concurrency of a client
mod body; // a request body with a bound and a deadline
mod connection; // one connection until it ends
mod live; // open connections, so that a revoked one can be cut
pub(crate) mod gcra; // the one rate limit algorithm
mod sources; // what one address may do before TLS
#[cfg(test)]
mod test_world;

pub use body::BodyRefused;
pub use identity::{CertificateFacts, IdentityError, Registry};
pub use listener::{Listener, OnRefused, Refusal};
pub use peer::Peer;
pub use permit::{Client, Limited, NotAdmitted, Operation, Permit, RateLimit};
pub use tls::{TlsError, TlsFact, TlsOffer, TlsSource};
