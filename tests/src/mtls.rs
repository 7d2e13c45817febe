//! Mutual TLS for simulators and tests: one folder of PEM files, one CA, both ends.
//!
//! A folder holds `ca.crt` and for each name `<name>.crt` and `<name>.key`. Only TLS 1.3 and only
//! HTTP/1.1 are offered: one request at a time on a connection, so that cutting a connection
//! harms exactly one. Revocation is the gateway's business and not looked at here.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

/// Makes aws-lc-rs the process's provider; harmless when it is already.
pub fn install_provider() {
    // An error says that another caller was first, with the same provider.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// A client's side: trusts `ca.crt` alone and shows `<name>.crt`.
///
/// # Errors
/// A file that is missing or is not what its name says.
pub fn client_config(pki: &Path, name: &str) -> anyhow::Result<ClientConfig> {
    install_provider();
    let (chain, key) = credentials(pki, name)?;
    let mut config = ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
        .with_root_certificates(roots(pki)?)
        .with_client_auth_cert(chain, key)
        .with_context(|| format!("{name}.crt and {name}.key do not belong together"))?;
    config.alpn_protocols = vec![HTTP_1_1.to_vec()];
    Ok(config)
}

/// A server's side: shows `<name>.crt` and wants a certificate of `ca.crt` from every client.
///
/// # Errors
/// A file that is missing or is not what its name says.
pub fn server_config(pki: &Path, name: &str) -> anyhow::Result<ServerConfig> {
    install_provider();
    let (chain, key) = credentials(pki, name)?;
    let clients = WebPkiClientVerifier::builder(Arc::new(roots(pki)?))
        .build()
        .context("ca.crt cannot vouch for clients")?;
    let mut config = ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key)
        .with_context(|| format!("{name}.crt and {name}.key do not belong together"))?;
    config.alpn_protocols = vec![HTTP_1_1.to_vec()];
    Ok(config)
}

/// An HTTP client that shows `<name>.crt`; it gives up after a minute.
///
/// # Errors
/// Those of [`client_config`].
pub fn http_client(pki: &Path, name: &str) -> anyhow::Result<reqwest::Client> {
    reqwest::Client::builder()
        .tls_backend_preconfigured(client_config(pki, name)?)
        .http1_only()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(Duration::from_secs(60))
        .build()
        .with_context(|| format!("no HTTP client for {name}"))
}

/// The URI name of a certificate, `spiffe://tollgate.test/<name>`, when it has exactly one.
pub fn uri_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = parse_x509_certificate(certificate).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    let mut uris = names.value.general_names.iter().filter_map(|name| {
        let GeneralName::URI(uri) = name else { return None };
        Some((*uri).to_owned())
    });
    let first = uris.next()?;
    uris.next().is_none().then_some(first)
}

fn roots(pki: &Path) -> anyhow::Result<RootCertStore> {
    let path = pki.join("ca.crt");
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&path)? {
        roots.add(certificate).with_context(|| format!("{} is no CA", path.display()))?;
    }
    Ok(roots)
}

fn credentials(
    pki: &Path,
    name: &str,
) -> anyhow::Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let path = pki.join(format!("{name}.key"));
    let key = PrivateKeyDer::from_pem_file(&path)
        .with_context(|| format!("{} cannot be read as a private key", path.display()))?;
    Ok((certificates(&pki.join(format!("{name}.crt")))?, key))
}

fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let read = || CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>();
    let found = read().with_context(|| format!("{} cannot be read", path.display()))?;
    anyhow::ensure!(!found.is_empty(), "{} holds no certificate", path.display());
    Ok(found)
}

const HTTP_1_1: &[u8] = b"http/1.1";
