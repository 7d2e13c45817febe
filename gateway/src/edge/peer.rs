//! What a request knows of its sender, proved by the TLS handshake and shared by all requests of
//! one connection. The listener puts an `Arc<Peer>` into each request's extensions.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
};

use super::{
    identity::CertificateFacts,
    permit::{Client, NotAdmitted, Operation, Permit},
};

/// The other end of one connection.
#[derive(Debug)]
pub struct Peer {
    /// The registry entry; `None` has a valid certificate and no rights.
    pub client: Option<Arc<Client>>,
    /// The one URI of the certificate.
    pub uri: String,
    /// What the audit log keeps of the certificate.
    pub certificate: CertificateFacts,
    /// Where the connection comes from.
    pub address: SocketAddr,
    /// The listener that accepted it.
    pub listener: &'static str,
    /// The negotiated key exchange group, such as `X25519MLKEM768`.
    pub tls_group: String,
    /// The sender as audit records write it; made with the first record.
    pub audited: OnceLock<(compliance::Actor, compliance::Origin)>,
}

impl Peer {
    /// Asks for a permit to run one operation. Hold the permit while the request runs.
    ///
    /// # Errors
    /// `NotAdmitted::Unknown` without a registry entry, else the limit that is used up.
    pub fn admit(&self, operation: Operation) -> Result<Permit, NotAdmitted> {
        let client = self.client.as_ref().ok_or(NotAdmitted::Unknown)?;
        Ok(client.admit(operation)?)
    }

    /// The name that records give the sender: the client's id, or the URI of an unknown one.
    pub fn actor(&self) -> &str {
        self.client.as_ref().map_or(&self.uri, |client| client.id())
    }
}
