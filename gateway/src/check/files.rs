//! Files that are read long before they fail: certificates, authorities, private keys.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{EXPIRY_S_MIN, Row, row};
use crate::config::{BillerConfig, Config};

/// A row for each biller and one for the probe.
pub(super) fn look(config: &Config, rows: &mut Vec<Row>) {
    for BillerConfig { name, ca, certificate, key, .. } in &config.biller {
        rows.push(row("biller tls", set(&format!("biller {name:?}"), ca, certificate, key)));
    }
    if let Some(probe) = &config.probe {
        rows.push(row("probe tls", set("[probe]", &probe.ca, &probe.certificate, &probe.key)));
    }
}

/// Our certificate towards somebody, its key, and the authority of the other side.
pub(super) fn set(
    whose: &str,
    ca: &Path,
    certificate: &Path,
    key: &Path,
) -> Result<String, String> {
    let mut soonest = i64::MAX;
    for path in [ca, certificate] {
        let left = end_of(path).map_err(|why| format!("{whose}: {why}"))?
            - jiff::Timestamp::now().as_second();
        if left <= EXPIRY_S_MIN {
            return Err(format!("{whose}: {}: {} hours left", path.display(), left / 3_600));
        }
        soonest = soonest.min(left);
    }
    private_key(key).map_err(|why| format!("{whose}: {why}"))?;
    Ok(format!("{whose}: {} days left", soonest / 86_400))
}

/// When the first certificate of a PEM file to end does so. Seconds since 1970.
pub(crate) fn end_of(path: &Path) -> Result<i64, String> {
    let told = |what: String| format!("{}: {what}", path.display());
    let mut soonest = None;
    for der in CertificateDer::pem_file_iter(path).map_err(|error| told(error.to_string()))? {
        let der = der.map_err(|error| told(error.to_string()))?;
        let (_, certificate) = X509Certificate::from_der(&der)
            .map_err(|_| told("holds a certificate that cannot be parsed".into()))?;
        let end = certificate.validity().not_after.timestamp();
        soonest = Some(soonest.map_or(end, |soonest: i64| soonest.min(end)));
    }
    soonest.ok_or_else(|| told("holds no certificate".into()))
}

/// The group may read (a cluster mounts secrets so), nobody else may do anything.
fn private_key(path: &Path) -> Result<(), String> {
    let told = |what: String| format!("{}: {what}", path.display());
    let metadata = std::fs::metadata(path).map_err(|error| told(error.to_string()))?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o037 != 0 {
        return Err(told(format!("is open to others (mode {mode:04o}): chmod 0600 it")));
    }
    PrivateKeyDer::from_pem_file(path).map_err(|error| told(error.to_string()))?;
    Ok(())
}
