//! One root, its certificates and its revocation list, in one directory.
//!
//! The directory is the state, and every change happens under a lock on `ca.key`: two handles, in
//! one process or in two, cannot lose each other's revocations. What is written to `index.json`
//! comes before the file that it describes: no certificate exists that cannot be revoked, and no
//! list number is used twice.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    RevokedCertParams, SerialNumber,
};
use serde::Serialize;

use crate::index::{CERTIFICATES_MAX, Certificate, Index};
use crate::leaf::{SKEW, days, time};
use crate::{Leaf, PkiError, files};

/// A root that issues and revokes. Keys are P-256.
#[derive(Debug)]
pub struct Authority {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>, // its Debug form leaves the key out
    crl_days: u16,
}

/// Where a new certificate and its key lie.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Issued {
    /// PEM, the one certificate.
    pub certificate: PathBuf,
    /// PEM, PKCS#8, mode 0600.
    pub key: PathBuf,
    /// 32 lower-case hex digits.
    pub serial: String,
}

impl Authority {
    /// Makes a root that lasts ten years, and its first, empty revocation list.
    ///
    /// # Errors
    /// [`PkiError::Exists`] when the directory holds an authority; else what could not be written.
    pub fn create(dir: &Path, common_name: &str) -> Result<Self, PkiError> {
        if !(1..=64).contains(&common_name.chars().count()) {
            return Err(PkiError::CommonName { name: common_name.into() });
        }
        let made = |source| PkiError::Certificate {
            doing: "make the root",
            name: common_name.into(),
            source,
        };
        let now = now();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(made)?;
        let params = root(common_name, &serial()?, now);
        let certificate = params.self_signed(&key).map_err(made)?;

        fs::create_dir_all(dir).map_err(files::io("create", dir))?;
        let key_path = dir.join(CA_KEY);
        // Of two creators, the one that makes this file wins.
        let mut key_file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(files::PRIVATE)
            .open(&key_path)
            .map_err(|source| {
                if source.kind() == ErrorKind::AlreadyExists {
                    return PkiError::Exists { dir: dir.to_owned() };
                }
                files::io("create", &key_path)(source)
            })?;
        key_file.lock().map_err(files::io("lock", &key_path))?;
        key_file
            .write_all(key.serialize_pem().as_bytes())
            .map_err(files::io("write", &key_path))?;
        files::replace(&dir.join(CA_CERTIFICATE), &certificate.pem(), files::PUBLIC)?;
        let issuer = Issuer::new(params, key);
        let authority = Self { dir: dir.to_owned(), issuer, crl_days: CRL_DAYS };
        authority.publish(Index::new(now), now, now + days(CRL_DAYS))?;
        Ok(authority)
    }

    /// Goes on with the authority in this directory.
    ///
    /// # Errors
    /// [`PkiError::Missing`] when there is none; else the file that cannot be read.
    pub fn open(dir: &Path) -> Result<Self, PkiError> {
        let key_path = dir.join(CA_KEY);
        if !key_path.exists() {
            return Err(PkiError::Missing { dir: dir.to_owned() });
        }
        let certificate_path = dir.join(CA_CERTIFICATE);
        let unreadable = |path: PathBuf| {
            |source: rcgen::Error| PkiError::Unreadable { path, source: source.into() }
        };
        let key = KeyPair::from_pem(&files::read(&key_path)?).map_err(unreadable(key_path))?;
        let issuer = Issuer::from_ca_cert_pem(&files::read(&certificate_path)?, key)
            .map_err(unreadable(certificate_path))?;
        Index::read(dir)?;
        Ok(Self { dir: dir.to_owned(), issuer, crl_days: CRL_DAYS })
    }

    /// Lets the lists that [`Self::revoke`] and [`Self::write_crl`] publish last this many days, at
    /// least one. 7 days otherwise.
    #[must_use]
    pub fn with_crl_days(self, crl_days: u16) -> Self {
        Self { crl_days: crl_days.max(1), ..self }
    }

    /// Makes a key and a certificate, `<name>.key` and `<name>.crt`. An older pair of that name is
    /// replaced, its certificate stays valid.
    ///
    /// # Errors
    /// A refused name, [`PkiError::Leaf`] with the rule that the leaf breaks, or what could not be
    /// written.
    pub fn issue(&mut self, name: &str, leaf: &Leaf) -> Result<Issued, PkiError> {
        if !is_file_name(name) {
            return Err(PkiError::Name { name: name.into() });
        }
        let made = |source| PkiError::Certificate {
            doing: "make the certificate",
            name: name.into(),
            source,
        };
        let now = now();
        let serial = serial()?;
        let (params, not_after) = leaf
            .params(name, &serial, now)
            .map_err(|why| PkiError::Leaf { name: name.into(), why })?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(made)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(made)?;
        let issued = Issued {
            certificate: self.dir.join(format!("{name}.crt")),
            key: self.dir.join(format!("{name}.key")),
            serial: hex::encode(serial),
        };
        let uri = leaf.uri().map(str::to_owned);
        let entry = Certificate { name: name.into(), uri, not_after, revoked_at: None };

        let _lock = files::lock(&self.dir.join(CA_KEY))?;
        let mut index = Index::read(&self.dir)?;
        if !index.add(issued.serial.clone(), entry, now) {
            return Err(PkiError::Full { dir: self.dir.clone(), most: CERTIFICATES_MAX });
        }
        index.write(&self.dir)?;
        files::replace(&issued.key, &key.serialize_pem(), files::PRIVATE)?;
        files::replace(&issued.certificate, &certificate.pem(), files::PUBLIC)?;
        Ok(issued)
    }

    /// Revokes the certificate with this serial number, or all unexpired ones of this name, and
    /// publishes the list. One that was revoked before keeps its date.
    ///
    /// # Errors
    /// [`PkiError::Unknown`] when nothing matches; else what could not be written.
    pub fn revoke(&mut self, name_or_serial: &str) -> Result<(), PkiError> {
        let now = now();
        let _lock = files::lock(&self.dir.join(CA_KEY))?;
        let mut index = Index::read(&self.dir)?;
        let serials = index.find(name_or_serial, now);
        if serials.is_empty() {
            let (dir, wanted) = (self.dir.clone(), name_or_serial.into());
            return Err(PkiError::Unknown { dir, wanted });
        }
        for serial in &serials {
            if let Some(certificate) = index.certificates.get_mut(serial) {
                certificate.revoked_at.get_or_insert(now);
            }
        }
        self.publish(index, now, now + days(self.crl_days))?;
        Ok(())
    }

    /// Publishes a fresh list under the next number, and returns where it lies.
    ///
    /// # Errors
    /// What could not be read or written.
    pub fn write_crl(&self) -> Result<PathBuf, PkiError> {
        let now = now();
        self.write_crl_between(now, now + days(self.crl_days))
    }

    /// As [`Self::write_crl`], with its times given. For tests that need a stale list.
    ///
    /// # Errors
    /// [`PkiError::CrlTimes`] unless it ends after it begins; else what could not be read or written.
    pub fn write_crl_between(
        &self,
        this_update: Timestamp,
        next_update: Timestamp,
    ) -> Result<PathBuf, PkiError> {
        if this_update < Timestamp::UNIX_EPOCH || next_update <= this_update {
            return Err(PkiError::CrlTimes);
        }
        let _lock = files::lock(&self.dir.join(CA_KEY))?;
        self.publish(Index::read(&self.dir)?, this_update, next_update)
    }

    /// All that was issued and revoked, as it stands on the disk.
    ///
    /// # Errors
    /// When `index.json` cannot be read.
    pub fn index(&self) -> Result<Index, PkiError> {
        Index::read(&self.dir)
    }

    /// The root certificate, PEM.
    #[must_use]
    pub fn ca_certificate(&self) -> PathBuf {
        self.dir.join(CA_CERTIFICATE)
    }

    /// The revocation list, PEM.
    #[must_use]
    pub fn crl(&self) -> PathBuf {
        self.dir.join(CRL)
    }

    /// The caller holds the lock.
    fn publish(
        &self,
        mut index: Index,
        this_update: Timestamp,
        next_update: Timestamp,
    ) -> Result<PathBuf, PkiError> {
        let path = self.crl();
        index.crl.number += 1;
        index.crl.next_update = next_update;
        index.write(&self.dir)?;
        let unreadable = |source: Box<_>| PkiError::Unreadable { path: path.clone(), source };
        let mut revoked_certs = Vec::new();
        for (serial, certificate) in &index.certificates {
            let Some(revoked_at) = certificate.revoked_at else { continue };
            let serial = hex::decode(serial).map_err(|source| unreadable(source.into()))?;
            revoked_certs.push(RevokedCertParams {
                serial_number: SerialNumber::from(serial),
                revocation_time: time(revoked_at),
                reason_code: None,
                invalidity_date: None,
            });
        }
        let list = CertificateRevocationListParams {
            this_update: time(this_update),
            next_update: time(next_update),
            crl_number: SerialNumber::from(index.crl.number),
            issuing_distribution_point: None,
            revoked_certs,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let pem = list.signed_by(&self.issuer).and_then(|list| list.pem()).map_err(|source| {
            PkiError::Certificate { doing: "sign the revocation list", name: CRL.into(), source }
        })?;
        files::replace(&path, &pem, files::PUBLIC)?;
        Ok(path)
    }
}

fn root(common_name: &str, serial: &[u8], now: Timestamp) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.serial_number = Some(SerialNumber::from_slice(serial));
    params.not_before = time(now - SKEW);
    params.not_after = time(now + days(ROOT_DAYS));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// Sixteen bytes, the first from 40 to 7f: positive and of one length in DER, so that the hex form
/// is the same for everyone who prints it.
fn serial() -> Result<[u8; 16], PkiError> {
    let mut serial = [0; 16];
    getrandom::fill(&mut serial).map_err(|source| PkiError::Random { source })?;
    serial[0] = serial[0] & 0x7f | 0x40;
    Ok(serial)
}

/// Certificates know whole seconds only.
fn now() -> Timestamp {
    let now = Timestamp::now();
    // A timestamp without its fraction is a timestamp.
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

/// `ca` is the root's own.
fn is_file_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=64).contains(&name.len())
        && name.bytes().all(fits)
        && name.as_bytes()[0].is_ascii_alphanumeric()
        && !name.eq_ignore_ascii_case("ca")
}

const CA_CERTIFICATE: &str = "ca.crt";
const CA_KEY: &str = "ca.key";
const CRL: &str = "crl.pem";
const ROOT_DAYS: u16 = 3653;
const CRL_DAYS: u16 = 7;
