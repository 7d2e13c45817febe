//! Every certificate, authority and revocation list that the configuration names, and what the listeners offer.

use std::path::Path;

use jiff::Timestamp;
use rustls::pki_types::pem::{PemObject, SectionKind};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};
use x509_parser::public_key::PublicKey;
use x509_parser::time::ASN1Time;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::config::{BillerConfig, Config, TlsConfig};
use crate::edge::TlsSource;

/// `certificates.json`.
pub(super) fn list(config: &Config) -> Value {
    let mut files = Vec::new();
    for (listener, tls) in [("data", &config.tls.data), ("admin", &config.tls.admin)] {
        let TlsConfig { certificate, client_ca, crl, key: _ } = tls;
        files.push(file(&format!("listener {listener}: certificate"), certificate));
        files.push(file(&format!("listener {listener}: client authorities"), client_ca));
        files.push(file(&format!("listener {listener}: revocation lists"), crl));
    }
    for BillerConfig { name, ca, certificate, .. } in &config.biller {
        files.push(file(&format!("biller {name}: authority"), ca));
        files.push(file(&format!("biller {name}: our certificate"), certificate));
    }
    if let Some(probe) = &config.probe {
        files.push(file("probe: authority", &probe.ca));
        files.push(file("probe: certificate", &probe.certificate));
    }
    let database = config.store.postgres.as_ref();
    if let Some(path) = database.and_then(|database| database.ca.as_ref()) {
        files.push(file("database: authority", path));
    }
    if let Some(path) = database.and_then(|database| database.certificate.as_ref()) {
        files.push(file("database: our certificate", path));
    }
    json!({ "now": Timestamp::now(), "files": files })
}

/// `ciphers.json`: what each listener's own configuration has.
pub(super) fn offers(config: &Config) -> Value {
    let listeners = [
        ("data", &config.tls.data, config.data.http2),
        ("admin", &config.tls.admin, config.admin.http2),
    ];
    let told = listeners.map(|(name, files, http2)| match TlsSource::load(name, files, http2) {
        Ok(source) => json!({ "listener": name, "offers": source.offer() }),
        Err(error) => json!({ "listener": name, "error": hsm_adapter::worker::chain(&error) }),
    });
    json!({ "listeners": told })
}

fn file(what: &str, path: &Path) -> Value {
    let mut told = json!({ "use": what, "path": path });
    match std::fs::read(path).map_err(|error| error.to_string()).and_then(|text| read(&text)) {
        Ok((digest, certificates, lists)) => {
            told["sha256"] = digest.into();
            told["certificates"] = certificates.into();
            told["revocation_lists"] = lists.into();
        }
        Err(why) => told["error"] = why.into(),
    }
    told
}

type Found = (String, Vec<Value>, Vec<Value>);

/// Only certificates and lists are looked at: whatever else stands in the file stays there.
fn read(text: &[u8]) -> Result<Found, String> {
    let (mut certificates, mut lists) = (Vec::new(), Vec::new());
    for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(text) {
        let (kind, der) = section.map_err(|error| error.to_string())?;
        if kind == SectionKind::Certificate {
            certificates.push(certificate(&CertificateDer::from(der))?);
        } else if kind == SectionKind::Crl {
            lists.push(list_of(&CertificateRevocationListDer::from(der))?);
        }
    }
    Ok((hex::encode(Sha256::digest(text)), certificates, lists))
}

fn certificate(der: &CertificateDer<'_>) -> Result<Value, String> {
    let (_, certificate) = X509Certificate::from_der(der)
        .map_err(|_| "holds a certificate that cannot be parsed".to_owned())?;
    let validity = certificate.validity();
    let (algorithm, bits) = key(certificate.public_key());
    Ok(json!({
        "subject": certificate.subject().to_string(),
        "issuer": certificate.issuer().to_string(),
        "serial": hex::encode(certificate.raw_serial()),
        "not_before": time(validity.not_before),
        "not_after": time(validity.not_after),
        "days_left": days_left(validity.not_after),
        "is_authority": certificate.is_ca(),
        "key_algorithm": algorithm,
        "key_bits": bits,
        "spki_sha256": hex::encode(Sha256::digest(certificate.public_key().raw)),
        "certificate_sha256": hex::encode(Sha256::digest(der)),
    }))
}

fn list_of(der: &CertificateRevocationListDer<'_>) -> Result<Value, String> {
    let (_, list) = CertificateRevocationList::from_der(der)
        .map_err(|_| "holds a revocation list that cannot be parsed".to_owned())?;
    let next = list.next_update();
    Ok(json!({
        "issuer": list.issuer().to_string(),
        "number": list.crl_number().map(ToString::to_string),
        "this_update": time(list.last_update()),
        "next_update": next.map(time),
        "days_left": next.map(days_left),
        "revoked": list.iter_revoked_certificates().count(),
    }))
}

/// The algorithm by its usual name, and its size in bits where there is one.
fn key(info: &SubjectPublicKeyInfo<'_>) -> (String, Option<usize>) {
    if let Ok(PublicKey::RSA(key)) = info.parsed() {
        return ("RSA".into(), Some(key.key_size()));
    }
    let algorithm = info.algorithm.algorithm.to_id_string();
    let parameters = info.algorithm.parameters.as_ref();
    let curve = parameters.and_then(|any| any.as_oid().ok()).map(|oid| oid.to_id_string());
    let name = curve.unwrap_or(algorithm);
    match NAMES.iter().find(|(oid, ..)| *oid == name) {
        Some((_, name, bits)) => ((*name).into(), Some(*bits)),
        None => (name, None),
    }
}

const NAMES: [(&str, &str, usize); 4] = [
    ("1.2.840.10045.3.1.7", "EC P-256", 256),
    ("1.3.132.0.34", "EC P-384", 384),
    ("1.3.132.0.35", "EC P-521", 521),
    ("1.3.101.112", "Ed25519", 256),
];

fn time(time: ASN1Time) -> Option<String> {
    Timestamp::from_second(time.timestamp()).ok().map(|time| time.to_string())
}

fn days_left(end: ASN1Time) -> i64 {
    (end.timestamp() - Timestamp::now().as_second()).div_euclid(86_400)
}

#[cfg(test)]
mod tests {
    use pki::{Authority, Leaf};

    use super::*;

    #[test]
    fn a_file_is_told_with_its_keys_and_dates_and_nothing_secret() {
        let dir = tempfile::tempdir().unwrap();
        let mut authority = Authority::create(dir.path(), "Test CA").unwrap();
        let issued = authority.issue("gateway", &Leaf::server(["localhost"], [])).unwrap();
        let private = std::fs::read(&issued.key).unwrap();
        let both = [std::fs::read(dir.path().join("gateway.crt")).unwrap(), private].concat();
        std::fs::write(dir.path().join("both.pem"), both).unwrap();

        let told = file("both", &dir.path().join("both.pem"));
        let crl = file("crl", &dir.path().join("crl.pem"));
        let absent = file("absent", &dir.path().join("absent"));

        let certificate = &told["certificates"][0];
        assert_eq!(told["certificates"].as_array().unwrap().len(), 1, "{told}");
        assert_eq!(certificate["spki_sha256"].as_str().unwrap().len(), 64, "{told}");
        assert!(certificate["key_bits"].as_u64().unwrap() >= 256, "{told}");
        assert!(certificate["issuer"].as_str().unwrap().contains("Test CA"), "{told}");
        assert!(!told.to_string().contains("PRIVATE"), "{told}");
        let list = &crl["revocation_lists"][0];
        assert!(list["days_left"].as_i64().is_some() && list["revoked"] == 0, "{crl}");
        assert!(absent["error"].is_string(), "{absent}");
    }
}
