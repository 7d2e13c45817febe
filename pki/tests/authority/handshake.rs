//! Whom a rustls server lets in: full handshakes in memory, certificates and list from the disk.

use std::io;
use std::path::Path;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use pki::{Authority, Issued, Leaf};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    CertificateError, ClientConfig, ClientConnection, Error, RootCertStore, ServerConfig,
    ServerConnection,
};

use crate::certificates::{URI, authority, localhost};

fn roots(ca: &Path) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    Arc::new(roots)
}

fn pair(issued: &Issued) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let certificate = CertificateDer::from_pem_file(&issued.certificate).unwrap();
    (vec![certificate], PrivateKeyDer::from_pem_file(&issued.key).unwrap())
}

/// A server of `authority` with its present list.
fn server(authority: &mut Authority) -> ServerConfig {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let (dns, addresses) = localhost();
    let issued = authority.issue("gateway", &Leaf::server(dns, addresses)).unwrap();
    let list = CertificateRevocationListDer::from_pem_file(authority.crl()).unwrap();
    let verifier = WebPkiClientVerifier::builder(roots(&authority.ca_certificate()))
        .with_crls([list])
        .enforce_revocation_expiration()
        .build()
        .unwrap();
    let (chain, key) = pair(&issued);
    ServerConfig::builder()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .unwrap()
}

/// What the server says to a client that trusts `ca` and presents `issued`.
fn meet(server: ServerConfig, ca: &Path, issued: &Issued) -> Result<(), Error> {
    let (chain, key) = pair(issued);
    let client = ClientConfig::builder()
        .with_root_certificates(roots(ca))
        .with_client_auth_cert(chain, key)
        .unwrap();
    let mut client =
        ClientConnection::new(Arc::new(client), "127.0.0.1".try_into().unwrap()).unwrap();
    let mut server = ServerConnection::new(Arc::new(server)).unwrap();
    for _ in 0..10 {
        if !client.is_handshaking() && !server.is_handshaking() && !client.wants_write() {
            break;
        }
        carry(|to| client.write_tls(to), |from| server.read_tls(from));
        server.process_new_packets()?;
        carry(|to| server.write_tls(to), |from| client.read_tls(from));
        client.process_new_packets()?;
    }
    assert!(!server.is_handshaking(), "ten turns are enough");
    Ok(())
}

fn carry(
    write: impl FnOnce(&mut Vec<u8>) -> io::Result<usize>,
    read: impl FnOnce(&mut &[u8]) -> io::Result<usize>,
) {
    let mut wire = Vec::new();
    write(&mut wire).unwrap();
    if !wire.is_empty() {
        let mut rest = wire.as_slice();
        read(&mut rest).unwrap();
        assert!(rest.is_empty(), "one flight fits the buffer");
    }
}

fn refusal(server: ServerConfig, ca: &Path, issued: &Issued) -> CertificateError {
    let error = meet(server, ca, issued).unwrap_err();
    let Error::InvalidCertificate(why) = error else { panic!("{error}") };
    why
}

#[test]
fn a_good_client_gets_in_under_an_empty_list() {
    let (_dir, mut authority) = authority();
    let client = authority.issue("acquirer-a", &Leaf::client(URI)).unwrap();

    let met = meet(server(&mut authority), &authority.ca_certificate(), &client);

    met.unwrap();
}

#[test]
fn a_revoked_client_stays_out_and_its_neighbour_gets_in() {
    let (_dir, mut authority) = authority();
    let revoked = authority.issue("acquirer-a", &Leaf::client(URI)).unwrap();
    let neighbour = authority.issue("acquirer-b", &Leaf::client(URI)).unwrap();
    authority.revoke("acquirer-a").unwrap();

    let out = refusal(server(&mut authority), &authority.ca_certificate(), &revoked);
    let met = meet(server(&mut authority), &authority.ca_certificate(), &neighbour);

    assert_eq!(out, CertificateError::Revoked);
    met.unwrap();
}

#[test]
fn a_client_of_another_authority_stays_out() {
    let (_dir, mut ours) = authority();
    let other_dir = tempfile::tempdir().unwrap();
    let mut other = Authority::create(other_dir.path(), "Test CA").unwrap();
    let stranger = other.issue("acquirer-a", &Leaf::client(URI)).unwrap();

    let out = refusal(server(&mut ours), &ours.ca_certificate(), &stranger);

    // The other root has the same name, so it is the signature that tells them apart.
    assert_eq!(out, CertificateError::BadSignature);
}

#[test]
fn an_expired_client_and_a_future_one_stay_out() {
    let (_dir, mut authority) = authority();
    let (now, hour) = (Timestamp::now(), SignedDuration::from_hours(1));
    let expired = Leaf::client(URI).between(now - hour * 2, now - hour);
    let expired = authority.issue("acquirer-a", &expired).unwrap();
    let future = Leaf::client(URI).between(now + hour, now + hour * 2);
    let future = authority.issue("acquirer-b", &future).unwrap();

    let too_late = refusal(server(&mut authority), &authority.ca_certificate(), &expired);
    let too_early = refusal(server(&mut authority), &authority.ca_certificate(), &future);

    assert!(matches!(too_late, CertificateError::ExpiredContext { .. }), "{too_late:?}");
    assert!(matches!(too_early, CertificateError::NotValidYetContext { .. }), "{too_early:?}");
}

#[test]
fn a_server_certificate_is_no_client_certificate() {
    let (_dir, mut authority) = authority();
    let (dns, addresses) = localhost();
    let billing = authority.issue("billing", &Leaf::server(dns, addresses)).unwrap();

    let out = refusal(server(&mut authority), &authority.ca_certificate(), &billing);

    assert!(matches!(out, CertificateError::InvalidPurposeContext { .. }), "{out:?}");
}

#[test]
fn a_stale_list_lets_nobody_in_until_a_fresh_one_is_published() {
    let (_dir, mut authority) = authority();
    let client = authority.issue("acquirer-a", &Leaf::client(URI)).unwrap();
    let (now, hour) = (Timestamp::now(), SignedDuration::from_hours(1));
    authority.write_crl_between(now - hour * 2, now - hour).unwrap();

    let stale = refusal(server(&mut authority), &authority.ca_certificate(), &client);
    authority.write_crl().unwrap();
    let fresh = meet(server(&mut authority), &authority.ca_certificate(), &client);

    assert!(matches!(stale, CertificateError::ExpiredRevocationListContext { .. }), "{stale:?}");
    fresh.unwrap();
}
