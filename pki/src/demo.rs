//! The certificates of the demo world: two servers, the gateway as a client of its backends, and
//! every client that the contract names.

use std::net::{IpAddr, Ipv4Addr};

use crate::{Authority, Issued, Leaf, PkiError};

/// Issues the servers `gateway` and `billing` (localhost, 127.0.0.1) and the clients `tollgate` (the
/// gateway towards its backends), `acquirer-a`, `acquirer-b`, `terminal-1`, the two operators,
/// `operator` and `operator-2`, `auditor`, `monitor` and the two key officers, `key-officer` and
/// `key-officer-2`, each known as `spiffe://tollgate.test/<name>`; in this order.
///
/// # Errors
/// As [`Authority::issue`].
pub fn issue_demo(authority: &mut Authority) -> Result<Vec<Issued>, PkiError> {
    let server = Leaf::server(["localhost"], [IpAddr::V4(Ipv4Addr::LOCALHOST)]);
    let servers = SERVERS.map(|name| (name, server.clone()));
    let clients = CLIENTS.map(|name| (name, Leaf::client(format!("{TRUST_DOMAIN}/{name}"))));
    servers.into_iter().chain(clients).map(|(name, leaf)| authority.issue(name, &leaf)).collect()
}

const SERVERS: [&str; 2] = ["gateway", "billing"];

const CLIENTS: [&str; 10] = [
    "tollgate",
    "acquirer-a",
    "acquirer-b",
    "terminal-1",
    "operator",
    "operator-2",
    "auditor",
    "monitor",
    "key-officer",
    "key-officer-2",
];

const TRUST_DOMAIN: &str = "spiffe://tollgate.test";
