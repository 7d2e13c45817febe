//! What a listener refuses to start with, and what a reload may not break.

use std::{fs, os::unix::fs::PermissionsExt as _};

use pki::{Authority, Leaf};

use super::*;
use crate::edge::test_world::tls_files;

fn files() -> (tempfile::TempDir, Authority, TlsConfig) {
    let dir = tempfile::tempdir().unwrap();
    let mut authority = Authority::create(dir.path(), "Test CA").unwrap();
    authority.issue("gateway", &Leaf::server(["localhost"], [])).unwrap();
    let files = tls_files(dir.path());
    (dir, authority, files)
}

#[test]
fn a_listener_without_a_revocation_list_does_not_start() {
    let (_dir, _authority, files) = files();
    fs::write(&files.crl, "").unwrap();

    let refused = TlsSource::load("data", &files, true).unwrap_err();

    assert!(refused.to_string().ends_with("holds no revocation list"), "{refused}");
}

#[test]
fn each_authority_needs_its_own_revocation_list() {
    let (_dir, _authority, files) = files();
    let other = tempfile::tempdir().unwrap();
    let other = Authority::create(other.path(), "Other CA").unwrap();
    let both = [&files.client_ca, &other.ca_certificate()].map(|p| fs::read_to_string(p).unwrap());
    fs::write(&files.client_ca, both.concat()).unwrap();

    let refused = TlsSource::load("data", &files, true).unwrap_err();

    assert!(refused.to_string().contains("CN=Other CA"), "{refused}");
}

#[test]
fn a_key_that_others_may_read_is_refused() {
    let (_dir, _authority, files) = files();
    fs::set_permissions(&files.key, fs::Permissions::from_mode(0o644)).unwrap();

    let refused = TlsSource::load("data", &files, true).unwrap_err();

    assert!(refused.to_string().contains("mode 0644"), "{refused}");
}

#[test]
fn a_key_of_another_certificate_is_refused() {
    let (_dir, mut authority, mut files) = files();
    files.key = authority.issue("other", &Leaf::server(["localhost"], [])).unwrap().key;

    let refused = TlsSource::load("data", &files, true).unwrap_err();

    assert!(matches!(refused, TlsError::Server(_)), "{refused}");
}

#[test]
fn a_failed_reload_leaves_the_old_set_in_use() {
    let (_dir, authority, files) = files();
    let source = TlsSource::load("data", &files, true).unwrap();
    let before = source.current();
    let mut changes = source.changes();

    fs::write(&files.crl, "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n").unwrap();
    let refused = source.reload();
    let kept = Arc::ptr_eq(&source.current(), &before);
    let told = changes.has_changed().unwrap();
    authority.write_crl().unwrap();
    let taken = source.reload();

    assert!(matches!(refused, Err(TlsError::Unreadable { .. })), "{refused:?}");
    assert!(kept && !told);
    assert!(taken.is_ok() && changes.borrow_and_update().eq(&()));
    assert!(!Arc::ptr_eq(&source.current(), &before));
}

#[test]
fn nothing_that_could_outlive_a_revocation_is_kept() {
    let (_dir, _authority, files) = files();

    let server = Arc::clone(&TlsSource::load("data", &files, false).unwrap().current().server);

    assert_eq!((server.send_tls13_tickets, server.max_early_data_size), (0, 0));
    assert!(!server.session_storage.can_cache() && !server.ticketer.enabled());
    assert_eq!(server.alpn_protocols, [b"http/1.1"]);
}

#[test]
fn facts_name_every_date_soonest_first() {
    let (_dir, _authority, files) = files();

    let facts = TlsSource::load("data", &files, true).unwrap().facts();

    let names: Vec<_> = facts.iter().map(|fact| fact.name.as_str()).collect();
    assert_eq!(names, ["data.crl", "data.certificate", "data.client_ca"]);
    assert!(facts[0].expires_s < facts[1].expires_s && facts[1].expires_s < facts[2].expires_s);
}

#[tokio::test]
async fn a_changed_file_is_taken_without_being_asked() {
    let (_dir, authority, files) = files();
    let source = TlsSource::load("data", &files, true).unwrap();
    let before = source.current();
    let (shutdown, mut changes) = (CancellationToken::new(), source.changes());
    let watching = tokio::spawn(Arc::clone(&source).watch(shutdown.clone(), |_| ()));
    tokio::time::sleep(Duration::from_millis(50)).await;

    authority.write_crl().unwrap();
    let told = tokio::time::timeout(Duration::from_secs(6), changes.changed()).await;
    shutdown.cancel();
    watching.await.unwrap();

    assert!(told.is_ok());
    assert!(!Arc::ptr_eq(&source.current(), &before));
}

#[test]
fn what_is_offered_is_read_from_the_configuration_in_use() {
    let (_dir, _authority, files) = files();

    let offer = TlsSource::load("data", &files, false).unwrap().offer();
    let http2 = TlsSource::load("data", &files, true).unwrap().offer();

    assert_eq!(offer.versions, ["TLSv1_3"]);
    assert!(offer.cipher_suites.iter().all(|name| name.starts_with("TLS13_")), "{offer:?}");
    assert!(!offer.cipher_suites.is_empty() && !offer.client_signatures.is_empty(), "{offer:?}");
    assert_eq!(offer.key_exchange[0], "X25519MLKEM768");
    assert_eq!((&offer.alpn[..], http2.alpn.len()), (&["http/1.1".to_owned()][..], 2));
    assert_eq!((offer.tickets, offer.early_data_bytes_max), (0, 0));
    assert!(offer.client_certificate);
}
