//! Who acted, from where, and on what.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::Serialize;
use uuid::Uuid;

use crate::{ActorType, Label, Listener, ResourceType, Role};

/// Who acted.
#[derive(Debug, Clone, Serialize)]
pub struct Actor {
    // Members stand in the order of their names: see `event`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cert: Option<CertificateId>,
    pub(crate) id: Label,
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    roles: BTreeSet<Role>,
    #[serde(rename = "type")]
    kind: ActorType,
}

impl Actor {
    /// A client of the data or ISO 8583 listener, proved by its certificate.
    #[must_use]
    pub fn client(id: Label) -> Self {
        Self::of(ActorType::Client, id, [])
    }

    /// A person or program on the admin listener, proved by its certificate.
    #[must_use]
    pub fn admin(id: Label, roles: impl IntoIterator<Item = Role>) -> Self {
        Self::of(ActorType::Admin, id, roles)
    }

    /// The gateway itself: start, stop, the forwarder.
    #[must_use]
    pub fn system() -> Self {
        Self::of(ActorType::System, Label::new("tollgate"), [])
    }

    /// Someone who never proved who it is; the address is all that is known.
    #[must_use]
    pub fn unknown() -> Self {
        Self::of(ActorType::Unknown, Label::new("unknown"), [])
    }

    /// Adds the certificate that was presented, also a refused one.
    #[must_use]
    pub fn with_certificate(self, certificate: CertificateId) -> Self {
        Self { cert: Some(certificate), ..self }
    }

    fn of(kind: ActorType, id: Label, roles: impl IntoIterator<Item = Role>) -> Self {
        Self { id, kind, roles: roles.into_iter().collect(), cert: None }
    }
}

/// Which certificate.
#[derive(Debug, Clone, Serialize)]
pub struct CertificateId {
    pub(crate) issuer: Label,
    serial: Arc<str>,
    /// 64 hex digits.
    spki_sha256: Arc<str>,
}

impl CertificateId {
    /// `serial` in hex, either case, colons allowed; `issuer` is the issuer's distinguished name.
    ///
    /// # Errors
    /// [`NotASerial`] unless it has 1 to 21 whole bytes.
    pub fn new(serial: &str, issuer: Label, spki_sha256: SpkiSha256) -> Result<Self, NotASerial> {
        let hex = || serial.bytes().filter(|byte| *byte != b':');
        let digits = hex().take(SERIAL_DIGITS_MAX + 1).count();
        if digits == 0
            || digits > SERIAL_DIGITS_MAX
            || digits % 2 == 1
            || !hex().all(|byte| byte.is_ascii_hexdigit())
        {
            return Err(NotASerial);
        }
        let serial: String = hex().map(|byte| char::from(byte.to_ascii_lowercase())).collect();
        let (serial, spki_sha256) = (serial.into(), spki_sha256.to_string().into());
        Ok(Self { serial, issuer, spki_sha256 })
    }
}

/// A serial number is written in hex. Says the rule, never the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a certificate's serial number is 1 to 21 bytes in hex")]
pub struct NotASerial;

/// SHA-256 of a certificate's SubjectPublicKeyInfo. Written in lower-case hex.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpkiSha256([u8; 32]);

impl SpkiSha256 {
    /// The digest.
    #[must_use]
    pub const fn new(digest: [u8; 32]) -> Self {
        Self(digest)
    }
}

impl fmt::Display for SpkiSha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// The writing process: one for each start of a replica.
#[derive(Debug, Clone)]
pub struct Host {
    replica: Label,
    boot: Uuid,
}

impl Host {
    /// `boot` is new at each start.
    #[must_use]
    pub const fn new(replica: Label, boot: Uuid) -> Self {
        Self { replica, boot }
    }
}

/// Where an event came from.
#[derive(Debug, Clone)]
pub struct Origin {
    pub(crate) src: Option<Source>,
    pub(crate) listener: Option<Listener>,
    pub(crate) replica: Label,
    pub(crate) boot: Uuid,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Source {
    ip: IpAddr,
    port: u16,
}

impl Origin {
    /// A peer, through a listener of this host.
    #[must_use]
    pub fn remote(host: &Host, peer: SocketAddr, listener: Listener) -> Self {
        let src = Source { ip: peer.ip().to_canonical(), port: peer.port() };
        Self { src: Some(src), listener: Some(listener), ..Self::inside(host) }
    }

    /// This host itself.
    #[must_use]
    pub fn inside(host: &Host) -> Self {
        Self { src: None, listener: None, replica: host.replica.clone(), boot: host.boot }
    }
}

/// What was acted on.
#[derive(Debug, Clone, Serialize)]
pub struct Resource {
    pub(crate) id: Label,
    #[serde(rename = "type")]
    kind: ResourceType,
}

impl Resource {
    /// A key by label and version, a payment by its id, a route by method and path.
    #[must_use]
    pub const fn new(kind: ResourceType, id: Label) -> Self {
        Self { kind, id }
    }
}

/// 20 bytes (RFC 5280, 4.1.2.2) and the zero byte that DER may put first.
const SERIAL_DIGITS_MAX: usize = 42;

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(serial: &str) -> Result<CertificateId, NotASerial> {
        CertificateId::new(serial, Label::new("CN=CA"), SpkiSha256::new([0x0f; 32]))
    }

    #[test]
    fn a_certificate_is_named_by_serial_issuer_and_key() {
        // Digits alone that pass Luhn: a serial number is not searched for card numbers.
        let json = serde_json::to_value(certificate("41:11111111111111").unwrap()).unwrap();

        assert_eq!(json["serial"], "4111111111111111");
        assert_eq!(json["issuer"], "CN=CA");
        assert_eq!(json["spki_sha256"], "0f".repeat(32));
        assert_eq!(&*certificate("00AB").unwrap().serial, "00ab");
    }

    #[test]
    fn what_is_no_serial_number_is_refused() {
        for serial in ["", ":", "abc", "0g", "a b0", "é1", "00".repeat(22).as_str()] {
            assert_eq!(certificate(serial).unwrap_err(), NotASerial, "{serial:?}");
        }
    }

    #[test]
    fn an_address_mapped_into_ipv6_is_written_as_ipv4() {
        let host = Host::new(Label::new("gateway-1"), Uuid::nil());
        let peer = "[::ffff:10.1.2.3]:5000".parse().unwrap();

        let json = serde_json::to_value(Origin::remote(&host, peer, Listener::Admin).src).unwrap();

        assert_eq!(json, serde_json::json!({"ip": "10.1.2.3", "port": 5000}));
    }
}
