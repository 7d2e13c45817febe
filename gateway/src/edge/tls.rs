//! One listener's TLS: 1.3 only, a client certificate always, revocation always.
//!
//! rustls checks no revocation with an empty list of CRLs and accepts an expired one, both without
//! a word: here each authority must have its CRL and an expired one refuses. A resumed session
//! would carry an identity past its revocation, so there is no resumption. A renewal builds
//! everything anew and takes effect only as a whole; what fails leaves the old one in place.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, RwLock},
    time::Duration,
};

use rustls::{
    RootCertStore, ServerConfig, SupportedProtocolVersion,
    crypto::aws_lc_rs,
    pki_types::{
        CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime,
        pem::{self, PemObject},
    },
    server::{
        NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier,
        danger::ClientCertVerifier,
    },
};
use serde::Serialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use crate::{config::TlsConfig, telemetry::metrics as figures};

/// Why a listener's TLS could not be built.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each error text is the documentation")]
pub enum TlsError {
    #[error("reading {}: check that it is PEM and readable", path.display())]
    Read { path: PathBuf, source: pem::Error },
    #[error("reading {}: check that it exists and is readable", path.display())]
    Open { path: PathBuf, source: std::io::Error },
    #[error("{} is open to others (mode {mode:04o}): chmod 0600 it", path.display())]
    KeyMode { path: PathBuf, mode: u32 },
    #[error("{} holds no {what}", path.display())]
    Empty { path: PathBuf, what: &'static str },
    #[error("{} holds a {what} that cannot be parsed", path.display())]
    Unreadable { path: PathBuf, what: &'static str },
    #[error(
        "no revocation list of {issuer:?} in {}: publish one, revocation is not optional",
        path.display()
    )]
    NoCrl { path: PathBuf, issuer: String },
    #[error("the client authorities or their revocation lists are not usable")]
    Verifier(#[from] VerifierBuilderError),
    #[error("certificate and key are not usable together")]
    Server(#[from] rustls::Error),
    #[error("a parser panicked over the new files; the old ones stay in use")]
    Panicked,
}

/// One dated thing of a listener, for `tollgate check` and the expiry metric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFact {
    /// `<listener>.certificate`, `<listener>.client_ca` or `<listener>.crl`.
    pub name: String,
    /// Whose: the subject, or the issuer of a CRL.
    pub subject: String,
    /// End of validity or next update, seconds since 1970.
    pub expires_s: i64,
}

/// What a listener offers, as its configuration in use has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TlsOffer {
    /// Protocol versions.
    pub versions: Vec<String>,
    /// Cipher suites of those versions, the preferred first.
    pub cipher_suites: Vec<String>,
    /// Groups of the key exchange, the preferred first.
    pub key_exchange: Vec<String>,
    /// How clients may sign.
    pub client_signatures: Vec<String>,
    /// Protocols inside.
    pub alpn: Vec<String>,
    /// Session tickets after a handshake.
    pub tickets: usize,
    /// Bytes of early data.
    pub early_data_bytes_max: u32,
    /// Whether no handshake without a client certificate succeeds.
    pub client_certificate: bool,
    /// Whether all of it is in the provider's FIPS mode.
    pub fips: bool,
}

/// The current TLS of one listener, renewed while it runs.
#[derive(Debug)]
pub struct TlsSource {
    listener: &'static str,
    files: TlsConfig,
    http2: bool,
    current: RwLock<Arc<Loaded>>,
    changes: watch::Sender<()>,
}

/// One complete set; a connection keeps the one that it began with.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) server: Arc<ServerConfig>,
    verifier: Arc<dyn ClientCertVerifier>,
    facts: Vec<TlsFact>,
}

impl TlsSource {
    /// Reads the files of the listener named so. Offers HTTP/2 beside HTTP/1.1 when asked to.
    ///
    /// # Errors
    /// The file that is not usable, and what to do.
    pub fn load(
        listener: &'static str,
        files: &TlsConfig,
        http2: bool,
    ) -> Result<Arc<Self>, TlsError> {
        let loaded = load(listener, files, http2)?;
        Ok(Arc::new(Self {
            listener,
            files: files.clone(),
            http2,
            current: RwLock::new(Arc::new(loaded)),
            changes: watch::Sender::new(()),
        }))
    }

    /// Reads all files anew and takes them when every one of them is usable. Open connections
    /// whose certificate no longer holds are cut by their listener. Blocks on the disk.
    ///
    /// # Errors
    /// As `load`; the old set then stays in use.
    pub fn reload(&self) -> Result<(), TlsError> {
        let loaded = load(self.listener, &self.files, self.http2)?;
        // The set is replaced whole, so even a poisoned lock guards a complete one.
        *self.current.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = Arc::new(loaded);
        self.changes.send_replace(());
        Ok(())
    }

    /// The dated things in use, soonest expiry first.
    pub fn facts(&self) -> Vec<TlsFact> {
        self.current().facts.clone()
    }

    /// What a client is offered now.
    pub fn offer(&self) -> TlsOffer {
        let Loaded { server, verifier, .. } = &*self.current();
        let provider = server.crypto_provider();
        let suites = provider.cipher_suites.iter();
        let suites = suites.filter(|suite| VERSIONS.contains(&suite.version()));
        let alpn = server.alpn_protocols.iter();
        let signatures = verifier.supported_verify_schemes();
        TlsOffer {
            versions: VERSIONS.iter().map(|one| format!("{:?}", one.version)).collect(),
            cipher_suites: suites.map(|suite| format!("{:?}", suite.suite())).collect(),
            key_exchange: provider.kx_groups.iter().map(|kx| format!("{:?}", kx.name())).collect(),
            client_signatures: signatures.iter().map(|one| format!("{one:?}")).collect(),
            alpn: alpn.map(|name| String::from_utf8_lossy(name).into_owned()).collect(),
            tickets: server.send_tls13_tickets,
            early_data_bytes_max: server.max_early_data_size,
            client_certificate: verifier.client_auth_mandatory(),
            fips: server.fips(),
        }
    }

    /// Looks at the files every five seconds, reloads when one changed, and keeps the expiry
    /// metric. Ends with the token. `heard` hears of each set, taken or not.
    pub async fn watch(
        self: Arc<Self>,
        shutdown: CancellationToken,
        heard: impl Fn(Result<(), &TlsError>) + Send,
    ) {
        let mut seen = stamps(&self.files);
        let mut ticks = tokio::time::interval(WATCH_PERIOD);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let now = stamps(&self.files);
            if now != seen {
                seen = now;
                // On a thread of its own: parsing has panicked in the past, before any signature
                // was checked, and a panic here must not end the watch.
                let source = Arc::clone(&self);
                let reloaded = tokio::task::spawn_blocking(move || source.reload())
                    .await
                    .unwrap_or(Err(TlsError::Panicked));
                match &reloaded {
                    Ok(()) => tracing::info!(listener = self.listener, "TLS files reloaded"),
                    Err(error) => {
                        figures::count_tls_reload_failure(self.listener);
                        tracing::error!(%error, "TLS files not taken");
                    }
                }
                heard(reloaded.as_ref().copied());
            }
            figures::set_expiries(self.facts().iter().map(|f| (f.name.as_str(), f.expires_s)));
        }
    }

    /// The set for a connection that begins now.
    pub(super) fn current(&self) -> Arc<Loaded> {
        Arc::clone(&self.current.read().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }

    /// Wakes after each reload.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }
}

impl Loaded {
    /// Whether a chain that was accepted once would be accepted now: not revoked, not expired, its
    /// authority still trusted.
    pub(super) fn still_accepts(&self, chain: &[CertificateDer<'static>]) -> bool {
        let Some((leaf, intermediates)) = chain.split_first() else { return false };
        self.verifier.verify_client_cert(leaf, intermediates, UnixTime::now()).is_ok()
    }
}

fn load(listener: &'static str, files: &TlsConfig, http2: bool) -> Result<Loaded, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let authorities = read_all::<CertificateDer<'static>>(&files.client_ca, "certificate")?;
    let crls = read_all::<CertificateRevocationListDer<'static>>(&files.crl, "revocation list")?;
    let chain = read_all::<CertificateDer<'static>>(&files.certificate, "certificate")?;
    check_key_mode(&files.key)?;
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|source| TlsError::Read { path: files.key.clone(), source })?;

    let facts = facts(listener, files, &chain, &authorities, &crls)?;
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority)?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
        .with_crls(crls)
        .enforce_revocation_expiration()
        .build()?;
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(VERSIONS)?
        .with_client_cert_verifier(verifier.clone())
        .with_single_cert(chain, key)?;
    server.send_tls13_tickets = 0;
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.max_early_data_size = 0;
    if http2 {
        server.alpn_protocols.push(ALPN_HTTP2.to_vec());
    }
    server.alpn_protocols.push(b"http/1.1".to_vec());
    Ok(Loaded { server: Arc::new(server), verifier, facts })
}

fn read_all<T: PemObject>(path: &Path, what: &'static str) -> Result<Vec<T>, TlsError> {
    let read = |source| TlsError::Read { path: path.to_owned(), source };
    let items =
        T::pem_file_iter(path).map_err(read)?.collect::<Result<Vec<_>, _>>().map_err(read)?;
    if items.is_empty() {
        return Err(TlsError::Empty { path: path.to_owned(), what });
    }
    Ok(items)
}

/// Reads every date, and refuses an authority without a revocation list of its own.
fn facts(
    listener: &str,
    files: &TlsConfig,
    chain: &[CertificateDer<'_>],
    authorities: &[CertificateDer<'_>],
    crls: &[CertificateRevocationListDer<'_>],
) -> Result<Vec<TlsFact>, TlsError> {
    let mut facts = Vec::new();
    let mut fact = |part: &str, subject: String, expires_s| {
        facts.push(TlsFact { name: format!("{listener}.{part}"), subject, expires_s });
    };
    for (part, path, certificates) in
        [("certificate", &files.certificate, chain), ("client_ca", &files.client_ca, authorities)]
    {
        for der in certificates {
            let certificate = parse_certificate(der, path)?;
            let expires_s = certificate.validity().not_after.timestamp();
            fact(part, certificate.subject().to_string(), expires_s);
        }
    }
    let unreadable = || TlsError::Unreadable { path: files.crl.clone(), what: "revocation list" };
    let mut issuers = Vec::new();
    for der in crls {
        let (_, crl) = CertificateRevocationList::from_der(der).map_err(|_| unreadable())?;
        let next_update = crl.next_update().ok_or_else(unreadable)?;
        fact("crl", crl.issuer().to_string(), next_update.timestamp());
        issuers.push(crl.issuer().as_raw().to_vec());
    }
    for der in authorities {
        let authority = parse_certificate(der, &files.client_ca)?;
        if !issuers.iter().any(|issuer| issuer == authority.subject().as_raw()) {
            let issuer = authority.subject().to_string();
            return Err(TlsError::NoCrl { path: files.crl.clone(), issuer });
        }
    }
    facts.sort_by_key(|fact| fact.expires_s);
    Ok(facts)
}

fn parse_certificate<'a>(der: &'a [u8], path: &Path) -> Result<X509Certificate<'a>, TlsError> {
    let (_, certificate) = X509Certificate::from_der(der)
        .map_err(|_| TlsError::Unreadable { path: path.to_owned(), what: "certificate" })?;
    Ok(certificate)
}

/// The group may read (a cluster mounts secrets so), nobody else may do anything.
fn check_key_mode(path: &Path) -> Result<(), TlsError> {
    let metadata =
        fs::metadata(path).map_err(|source| TlsError::Open { path: path.to_owned(), source })?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o037 != 0 {
        return Err(TlsError::KeyMode { path: path.to_owned(), mode });
    }
    Ok(())
}

/// What changes when a file is replaced or rewritten. A file that is absent for a moment is a
/// change too; the next look finds the new one.
fn stamps(files: &TlsConfig) -> Vec<Option<(u64, u64, i64, i64)>> {
    let stamp = |path: &Path| {
        let m = fs::metadata(path).ok()?;
        Some((m.ino(), m.size(), m.mtime(), m.mtime_nsec()))
    };
    files.files().map(|(_, path)| stamp(path)).to_vec()
}

/// The versions that are spoken.
const VERSIONS: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];
/// The ALPN name of HTTP/2.
pub(super) const ALPN_HTTP2: &[u8] = b"h2";
/// A new revocation list takes effect in less than this and the time to read it.
const WATCH_PERIOD: Duration = Duration::from_secs(4);

#[cfg(test)]
#[path = "tls_tests.rs"]
mod tests;
