//! One registered client: its identity, its roles and how fast it may speak.

use serde::{Deserialize, Serialize};

use super::{Grants, within};

/// What a client may do at all. Data listeners know `client`, the admin listener the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// PIN, MAC and payment operations.
    Client,
    /// Queue, links, breakers, limits and blocks.
    Operator,
    /// Reads, exports and verifies the audit log.
    Auditor,
    /// Health, metrics, dashboard, events.
    Monitor,
    /// Imports, activates and retires keys.
    KeyOfficer,
}

impl Role {
    /// The role as configuration and audit write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Operator => "operator",
            Self::Auditor => "auditor",
            Self::Monitor => "monitor",
            Self::KeyOfficer => "key-officer",
        }
    }
}

/// An entry of the registry. A valid certificate without one has no rights.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ClientConfig {
    /// Short name in records and figures: lower-case letters, digits, `-` and `.`, at most 64.
    pub id: String,
    /// The one URI in the client's certificate: `spiffe://<domain>/<name>`.
    pub uri: String,
    /// At least one role. Nobody holds both key and audit rights.
    pub roles: Vec<Role>,
    /// False takes every right away at once. Default true.
    #[serde(default = "enabled")]
    pub enabled: bool,
    /// SHA-256 of the allowed public keys (SubjectPublicKeyInfo) in hex: current and next.
    /// Default: any key that the authority certified.
    #[serde(default)]
    pub spki_sha256: Vec<String>,
    /// Requests a minute, sustained. Default 6000.
    #[serde(default = "requests_per_minute")]
    pub requests_per_minute: u32,
    /// Requests at once after a rest. Default 200.
    #[serde(default = "burst")]
    pub burst: u32,
    /// Requests in flight. Default 64.
    #[serde(default = "concurrent")]
    pub concurrent: u32,
    /// `[client.grants]`: what it may ask for. Default nothing.
    #[serde(default)]
    pub grants: Grants,
}

impl ClientConfig {
    /// Checks names, roles and bounds.
    ///
    /// # Errors
    /// The client and the key, and what to write instead.
    pub fn check(&self) -> Result<(), String> {
        self.check_identity()
            .and_then(|()| within("requests_per_minute", self.requests_per_minute, 1..=10_000_000))
            .and_then(|()| within("burst", self.burst, 1..=1_000_000))
            .and_then(|()| within("concurrent", self.concurrent, 1..=100_000))
            .map_err(|error| format!("client {:?}: {error}", self.id))
    }

    fn check_identity(&self) -> Result<(), String> {
        let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-' || c == b'.';
        if self.id.is_empty() || self.id.len() > 64 || !self.id.bytes().all(plain) {
            return Err("id: use 1 to 64 of a-z, 0-9, '-' and '.'".into());
        }
        crate::edge::identity::check_uri(&self.uri)
            .map_err(|reason| format!("uri = {:?}: {reason}", self.uri))?;
        if self.roles.is_empty() {
            return Err("roles is empty: name at least one".into());
        }
        if self.roles.contains(&Role::KeyOfficer) && self.roles.contains(&Role::Auditor) {
            return Err("roles: nobody is both key-officer and auditor; make two clients".into());
        }
        let is_digest = |pin: &String| {
            pin.len() == 64 && pin.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
        };
        if self.spki_sha256.len() > 4 || !self.spki_sha256.iter().all(is_digest) {
            return Err("spki_sha256: at most 4 digests of 64 lower-case hex digits".into());
        }
        Ok(())
    }
}

fn enabled() -> bool {
    true
}
fn requests_per_minute() -> u32 {
    6_000
}
fn burst() -> u32 {
    200
}
fn concurrent() -> u32 {
    64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(extra: &str) -> Result<(), String> {
        let text = format!("id = \"a\"\nuri = \"spiffe://tollgate.test/a\"\n{extra}");
        toml::from_str::<ClientConfig>(&text).unwrap().check()
    }

    #[test]
    fn a_key_officer_cannot_also_audit() {
        let one = client("roles = [\"key-officer\", \"operator\"]");
        let both = client("roles = [\"key-officer\", \"auditor\"]");

        assert_eq!(one, Ok(()));
        assert!(both.unwrap_err().contains("make two clients"));
    }

    #[test]
    fn a_client_without_a_role_is_refused() {
        let error = client("roles = []").unwrap_err();

        assert_eq!(error, "client \"a\": roles is empty: name at least one");
    }

    #[test]
    fn a_pin_must_be_a_digest() {
        let error = client("roles = [\"client\"]\nspki_sha256 = [\"AB\"]").unwrap_err();

        assert!(error.contains("spki_sha256"), "{error}");
    }

    #[test]
    fn a_uri_of_another_scheme_is_refused() {
        let text = "id = \"a\"\nuri = \"https://tollgate.test/a\"\nroles = [\"client\"]";

        let error = toml::from_str::<ClientConfig>(text).unwrap().check().unwrap_err();

        assert!(error.contains("uri"), "{error}");
    }
}
