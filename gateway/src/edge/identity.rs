//! From a verified certificate to the one URI that it proves, and from there to a client.
//!
//! The TLS library has checked chain, dates, revocation and purpose. Here the name is read: exactly
//! one subject alternative name in total, a URI `spiffe://<domain>/<name>`. The common name is
//! never read. Raw entries are counted, so that an entry no library can read is not skipped but
//! refuses the certificate.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, RwLock},
};

use sha2::{Digest, Sha256};
use tokio::sync::watch;
use x509_parser::{
    prelude::{FromDer, GeneralName, X509Certificate},
    public_key::PublicKey,
};

use super::permit::Client;
use crate::config::{ClientConfig, LimitsConfig};

/// What the audit log keeps of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFacts {
    /// Serial number, lower-case hex.
    pub serial: String,
    /// Distinguished name of the issuer.
    pub issuer: String,
    /// SHA-256 of SubjectPublicKeyInfo, lower-case hex.
    pub spki_sha256: String,
    /// End of validity, seconds since 1970.
    pub not_after_s: i64,
}

/// Why a certificate names nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each error text is the documentation")]
pub enum IdentityError {
    #[error("the certificate cannot be parsed")]
    Unreadable,
    #[error("the certificate needs exactly one subject alternative name")]
    NotOneName,
    #[error("the subject alternative name is not a URI")]
    NotUri,
    #[error("the URI must be spiffe://<domain>/<name>, ASCII, at most 2048 bytes")]
    BadUri,
    #[error("the URI may not have a query, a fragment, a port or a user")]
    UriParts,
    #[error("the certificate must be for digital signatures and client authentication, not a CA")]
    Purpose,
    #[error("the key must be EC P-256, P-384, Ed25519 or RSA of 3072 bits and more")]
    WeakKey,
    #[error("the certificate is valid for more than 398 days")]
    TooLong,
}

impl IdentityError {
    /// The reason as audit and metrics write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unreadable => "certificate-unreadable",
            Self::NotOneName => "san-count",
            Self::NotUri => "san-kind",
            Self::BadUri => "san-uri",
            Self::UriParts => "san-uri-parts",
            Self::Purpose => "certificate-purpose",
            Self::WeakKey => "certificate-key",
            Self::TooLong => "certificate-life",
        }
    }
}

/// Reads the one URI and the facts from a leaf certificate that the TLS library has verified.
///
/// # Errors
/// The first rule that the certificate breaks.
pub fn read_leaf(der: &[u8]) -> Result<(String, CertificateFacts), IdentityError> {
    let (rest, certificate) =
        X509Certificate::from_der(der).map_err(|_| IdentityError::Unreadable)?;
    if !rest.is_empty() {
        return Err(IdentityError::Unreadable);
    }
    check_purpose(&certificate)?;
    check_key(&certificate)?;
    let validity = certificate.validity();
    if validity.not_after.timestamp() - validity.not_before.timestamp() > LIFE_S_MAX {
        return Err(IdentityError::TooLong);
    }
    let uri = single_uri(&certificate)?;
    check_uri(uri)?;
    let facts = CertificateFacts {
        serial: hex::encode(certificate.raw_serial()),
        issuer: certificate.issuer().to_string(),
        spki_sha256: hex::encode(Sha256::digest(certificate.public_key().raw)),
        not_after_s: validity.not_after.timestamp(),
    };
    Ok((uri.to_owned(), facts))
}

/// Checks that a URI has the form of an identity.
///
/// # Errors
/// `BadUri` or `UriParts`.
pub fn check_uri(uri: &str) -> Result<(), IdentityError> {
    if uri.len() > URI_BYTES_MAX || !uri.bytes().all(|c| c.is_ascii_graphic()) {
        return Err(IdentityError::BadUri);
    }
    let rest = uri.strip_prefix("spiffe://").ok_or(IdentityError::BadUri)?;
    if rest.contains(['?', '#', '@', ':', '%', '\\']) {
        return Err(IdentityError::UriParts);
    }
    let (domain, path) = rest.split_once('/').ok_or(IdentityError::BadUri)?;
    let in_domain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"-._".contains(&c);
    let in_segment = |c: u8| c.is_ascii_alphanumeric() || b"-._".contains(&c);
    let is_segment = |s: &str| !s.is_empty() && s != "." && s != ".." && s.bytes().all(in_segment);
    // The SPIFFE alphabet; it also leaves one spelling for one identity.
    if domain.is_empty() || !domain.bytes().all(in_domain) || !path.split('/').all(is_segment) {
        return Err(IdentityError::BadUri);
    }
    Ok(())
}

fn single_uri<'a>(certificate: &'a X509Certificate<'_>) -> Result<&'a str, IdentityError> {
    let names = certificate
        .subject_alternative_name()
        .map_err(|_| IdentityError::NotOneName)?
        .ok_or(IdentityError::NotOneName)?;
    let [name] = names.value.general_names.as_slice() else {
        return Err(IdentityError::NotOneName);
    };
    if let GeneralName::URI(uri) = name { Ok(uri) } else { Err(IdentityError::NotUri) }
}

fn check_purpose(certificate: &X509Certificate<'_>) -> Result<(), IdentityError> {
    let purpose = |_| IdentityError::Purpose;
    let signs = certificate
        .key_usage()
        .map_err(purpose)?
        .is_some_and(|usage| usage.value.digital_signature());
    let authenticates = certificate
        .extended_key_usage()
        .map_err(purpose)?
        .is_some_and(|usage| usage.value.client_auth);
    let is_ca = certificate.basic_constraints().map_err(purpose)?.is_some_and(|c| c.value.ca);
    if signs && authenticates && !is_ca { Ok(()) } else { Err(IdentityError::Purpose) }
}

fn check_key(certificate: &X509Certificate<'_>) -> Result<(), IdentityError> {
    let key = certificate.public_key();
    let algorithm = key.algorithm.algorithm.to_id_string();
    let curve = || {
        let parameters = key.algorithm.parameters.as_ref()?;
        Some(parameters.as_oid().ok()?.to_id_string())
    };
    let strong = match algorithm.as_str() {
        OID_ED25519 => true,
        OID_EC => curve().is_some_and(|oid| oid == OID_P256 || oid == OID_P384),
        OID_RSA => match key.parsed() {
            Ok(PublicKey::RSA(rsa)) => rsa.key_size() >= 3072,
            Ok(_) | Err(_) => false,
        },
        _ => false,
    };
    if strong { Ok(()) } else { Err(IdentityError::WeakKey) }
}

/// The known clients by URI. A reload keeps the permits of clients that did not change, so that
/// nobody's limits refill.
#[derive(Debug)]
pub struct Registry {
    clients: RwLock<Arc<HashMap<String, Arc<Client>>>>,
    changes: watch::Sender<()>,
}

impl Registry {
    /// A registry of the enabled clients.
    ///
    /// # Errors
    /// Two entries with one id or one URI.
    pub fn new(clients: &[ClientConfig], limits: &LimitsConfig) -> Result<Self, String> {
        let clients = by_uri(clients, limits, &HashMap::new())?;
        Ok(Self { clients: RwLock::new(Arc::new(clients)), changes: watch::Sender::new(()) })
    }

    /// Takes a new list of clients. Listeners then cut the open connections of those whose entry
    /// changed or went.
    ///
    /// # Errors
    /// As `new`; the old list then stays.
    pub fn replace(&self, clients: &[ClientConfig], limits: &LimitsConfig) -> Result<(), String> {
        let fresh = by_uri(clients, limits, &self.snapshot())?;
        *self.clients.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = Arc::new(fresh);
        self.changes.send_replace(());
        Ok(())
    }

    /// The client that owns this URI, when it is known and enabled.
    pub fn find(&self, uri: &str) -> Option<Arc<Client>> {
        self.snapshot().get(uri).cloned()
    }

    /// Wakes after each replacement.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    fn snapshot(&self) -> Arc<HashMap<String, Arc<Client>>> {
        // The map is replaced whole, so even a poisoned lock guards a complete one.
        Arc::clone(&self.clients.read().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }
}

fn by_uri(
    clients: &[ClientConfig],
    limits: &LimitsConfig,
    known: &HashMap<String, Arc<Client>>,
) -> Result<HashMap<String, Arc<Client>>, String> {
    let (mut ids, mut uris) = (HashSet::new(), HashSet::new());
    let mut found = HashMap::new();
    for config in clients {
        if !ids.insert(config.id.as_str()) {
            return Err(format!("two clients have the id {:?}: rename one", config.id));
        }
        if !uris.insert(config.uri.as_str()) {
            return Err(format!("two clients have the URI {:?}: keep one", config.uri));
        }
        if config.enabled {
            let client = match known.get(&config.uri) {
                Some(client) if client.is_made_from(config, limits) => Arc::clone(client),
                Some(_) | None => Arc::new(Client::new(config, limits)),
            };
            found.insert(config.uri.clone(), client);
        }
    }
    Ok(found)
}

const URI_BYTES_MAX: usize = 2_048;
/// CA/Browser Forum's longest life of a leaf, taken over here.
const LIFE_S_MAX: i64 = 398 * 86_400;
const OID_RSA: &str = "1.2.840.113549.1.1.1";
const OID_EC: &str = "1.2.840.10045.2.1";
const OID_P256: &str = "1.2.840.10045.3.1.7";
const OID_P384: &str = "1.3.132.0.34";
const OID_ED25519: &str = "1.3.101.112";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_has_one_spelling() {
        for uri in ["spiffe://tollgate.test/acquirer-a", "spiffe://bank.example/unit/terminal_1.2"]
        {
            assert_eq!(check_uri(uri), Ok(()), "{uri}");
        }
    }

    #[test]
    fn what_is_not_exactly_an_identity_is_refused() {
        let long = format!("spiffe://tollgate.test/{}", "a".repeat(URI_BYTES_MAX));
        for (uri, error) in [
            ("", IdentityError::BadUri),
            ("https://tollgate.test/a", IdentityError::BadUri),
            ("SPIFFE://tollgate.test/a", IdentityError::BadUri),
            ("spiffe:///a", IdentityError::BadUri),
            ("spiffe://tollgate.test", IdentityError::BadUri),
            ("spiffe://tollgate.test/", IdentityError::BadUri),
            ("spiffe://tollgate.test//a", IdentityError::BadUri),
            ("spiffe://tollgate.test/a/", IdentityError::BadUri),
            ("spiffe://tollgate.test/../a", IdentityError::BadUri),
            ("spiffe://Tollgate.test/a", IdentityError::BadUri),
            ("spiffe://tollgate.test/a b", IdentityError::BadUri),
            ("spiffe://tollgate.test/a\0", IdentityError::BadUri),
            ("spiffe://tollgate.test/\u{e4}", IdentityError::BadUri),
            ("spiffe://tollgate.test/*", IdentityError::BadUri),
            (long.as_str(), IdentityError::BadUri),
            ("spiffe://tollgate.test/a?b", IdentityError::UriParts),
            ("spiffe://tollgate.test/a#b", IdentityError::UriParts),
            ("spiffe://tollgate.test:1/a", IdentityError::UriParts),
            ("spiffe://me@tollgate.test/a", IdentityError::UriParts),
            ("spiffe://tollgate.test/%61", IdentityError::UriParts),
        ] {
            assert_eq!(check_uri(uri), Err(error), "{uri:?}");
        }
    }

    #[test]
    fn what_is_no_certificate_is_unreadable() {
        assert_eq!(read_leaf(b"").unwrap_err(), IdentityError::Unreadable);
        assert_eq!(read_leaf(&[0x30, 0x82, 0xff, 0xff]).unwrap_err(), IdentityError::Unreadable);
    }

    #[test]
    fn two_clients_cannot_share_an_id_or_a_uri() {
        let client = |id: &str, uri: &str| -> ClientConfig {
            let text = format!("id = \"{id}\"\nuri = \"{uri}\"\nroles = [\"client\"]");
            toml::from_str(&text).unwrap()
        };
        let (a, b) = ("spiffe://tollgate.test/a", "spiffe://tollgate.test/b");
        let new = |clients: &[ClientConfig]| Registry::new(clients, &LimitsConfig::default());

        assert!(new(&[client("a", a), client("b", b)]).is_ok());
        assert!(new(&[client("a", a), client("a", b)]).unwrap_err().contains("id"));
        assert!(new(&[client("a", a), client("b", a)]).unwrap_err().contains("URI"));
    }

    #[test]
    fn a_reload_refills_nobody() {
        let text = "id = \"a\"\nuri = \"spiffe://tollgate.test/a\"\nroles = [\"client\"]";
        let config: ClientConfig = toml::from_str(text).unwrap();
        let limits = LimitsConfig::default();
        let registry = Registry::new(std::slice::from_ref(&config), &limits).unwrap();
        let before = registry.find(&config.uri).unwrap();

        registry.replace(std::slice::from_ref(&config), &limits).unwrap();
        let same = registry.find(&config.uri).unwrap();
        registry.replace(&[ClientConfig { burst: 7, ..config.clone() }], &limits).unwrap();
        let changed = registry.find(&config.uri).unwrap();
        registry.replace(&[ClientConfig { enabled: false, ..config.clone() }], &limits).unwrap();

        assert!(Arc::ptr_eq(&before, &same));
        assert!(!Arc::ptr_eq(&before, &changed));
        assert!(registry.find(&config.uri).is_none());
    }
}
