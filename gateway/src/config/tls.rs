//! The files of one listener's TLS. Only paths: a secret is never inline.

use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Four PEM files. All are read anew when one of them changes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// The server's certificate, then its intermediates.
    pub certificate: PathBuf,
    /// The server's private key; nobody but the owner and the group may read it.
    pub key: PathBuf,
    /// The authorities that issue client certificates of this listener.
    pub client_ca: PathBuf,
    /// One revocation list for each of those authorities, and for each intermediate in use.
    pub crl: PathBuf,
}

impl TlsConfig {
    /// Checks that every path is named. The files are read by the listener.
    ///
    /// # Errors
    /// The key that is empty.
    pub fn check(&self) -> Result<(), String> {
        for (key, path) in self.files() {
            if path.as_os_str().is_empty() {
                return Err(format!("{key} is empty: name a PEM file"));
            }
        }
        Ok(())
    }

    /// The four files with their keys.
    pub fn files(&self) -> [(&'static str, &Path); 4] {
        [
            ("certificate", &self.certificate),
            ("key", &self.key),
            ("client_ca", &self.client_ca),
            ("crl", &self.crl),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_path_is_refused_by_name() {
        let config = TlsConfig {
            certificate: "gateway.crt".into(),
            key: "gateway.key".into(),
            client_ca: "ca.crt".into(),
            crl: "".into(),
        };

        let error = config.check().unwrap_err();

        assert!(error.starts_with("crl is empty"), "{error}");
    }
}
