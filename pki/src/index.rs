//! What was issued and what of it was revoked: `index.json`.

use std::collections::BTreeMap;
use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{PkiError, files};

/// The content of `index.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Index {
    /// The last published revocation list.
    pub crl: Crl,
    /// By serial number, 32 lower-case hex digits.
    pub certificates: BTreeMap<String, Certificate>,
}

/// The last published revocation list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Crl {
    /// Grows with each list (RFC 5280, 5.2.3).
    pub number: u64,
    /// When readers must have the next one.
    pub next_update: Timestamp,
}

/// One issued certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// Its file name without ending, and its common name.
    pub name: String,
    /// The client's identity; a pure server certificate has none.
    pub uri: Option<String>,
    /// When it ends.
    pub not_after: Timestamp,
    /// When it was revoked, if it was.
    pub revoked_at: Option<Timestamp>,
}

impl Index {
    pub(crate) fn new(now: Timestamp) -> Self {
        Self { crl: Crl { number: 0, next_update: now }, certificates: BTreeMap::new() }
    }

    pub(crate) fn read(dir: &Path) -> Result<Self, PkiError> {
        let path = dir.join(INDEX);
        serde_json::from_str(&files::read(&path)?)
            .map_err(|source| PkiError::Unreadable { path, source: source.into() })
    }

    pub(crate) fn write(&self, dir: &Path) -> Result<(), PkiError> {
        let path = dir.join(INDEX);
        let mut text = serde_json::to_string_pretty(self)
            .map_err(|source| PkiError::Unreadable { path: path.clone(), source: source.into() })?;
        text.push('\n');
        files::replace(&path, &text, files::PUBLIC)
    }

    /// Whether it took the certificate. A full index first forgets what has expired.
    pub(crate) fn add(&mut self, serial: String, certificate: Certificate, now: Timestamp) -> bool {
        if self.certificates.len() >= CERTIFICATES_MAX {
            self.certificates.retain(|_, old| old.not_after > now);
        }
        let room = self.certificates.len() < CERTIFICATES_MAX;
        if room {
            self.certificates.insert(serial, certificate);
        }
        room
    }

    /// The serial numbers meant: the one written, or those of all unexpired certificates of that name.
    #[must_use]
    pub fn find(&self, name_or_serial: &str, now: Timestamp) -> Vec<String> {
        let serial = name_or_serial.to_ascii_lowercase();
        if self.certificates.contains_key(&serial) {
            return vec![serial];
        }
        let named =
            |(_, old): &(&String, &Certificate)| old.name == name_or_serial && old.not_after > now;
        self.certificates.iter().filter(named).map(|(serial, _)| serial.clone()).collect()
    }
}

/// Far above any demo; each issue reads the whole file.
pub(crate) const CERTIFICATES_MAX: usize = 10_000;

const INDEX: &str = "index.json";

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(name: &str, not_after: i64) -> Certificate {
        Certificate {
            name: name.into(),
            uri: None,
            not_after: Timestamp::from_second(not_after).unwrap(),
            revoked_at: None,
        }
    }

    #[test]
    fn a_full_index_forgets_only_what_has_expired() {
        let now = Timestamp::from_second(1_000).unwrap();
        let mut index = Index::new(now);
        for serial in 1..CERTIFICATES_MAX {
            index.certificates.insert(format!("{serial:032x}"), certificate("alive", 2_000));
        }
        index.certificates.insert("dead".into(), certificate("dead", 500));

        let first = index.add("next".into(), certificate("next", 2_000), now);
        let second = index.add("more".into(), certificate("more", 2_000), now);

        assert_eq!((first, second), (true, false));
        assert!(!index.certificates.contains_key("dead"));
        assert_eq!(index.certificates.len(), CERTIFICATES_MAX);
    }

    #[test]
    fn a_name_means_its_unexpired_certificates_and_a_serial_means_one() {
        let now = Timestamp::from_second(1_000).unwrap();
        let mut index = Index::new(now);
        index.add("a1".into(), certificate("a", 500), now);
        index.add("a2".into(), certificate("a", 2_000), now);
        index.add("b1".into(), certificate("b", 2_000), now);

        assert_eq!(index.find("a", now), ["a2"]);
        assert_eq!(index.find("A1", now), ["a1"]);
        assert_eq!(index.find("c", now), [""; 0]);
    }
}
