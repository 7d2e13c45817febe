//! What certificates and revocation lists hold, read back by a parser that is not ours.

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use pki::{Authority, Leaf, PkiError, issue_demo};
use x509_parser::pem::Pem;
use x509_parser::prelude::*;

pub(crate) const URI: &str = "spiffe://tollgate.test/acquirer-a";

fn pem(path: &Path) -> Pem {
    let bytes = std::fs::read(path).unwrap();
    let (rest, pem) = parse_x509_pem(&bytes).unwrap();
    assert!(rest.is_empty(), "{}: one PEM block and nothing else", path.display());
    pem
}

/// Alternative names as text, in the order of the certificate.
fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let extension = certificate.subject_alternative_name().unwrap().unwrap();
    extension.value.general_names.iter().map(|name| name.to_string()).collect()
}

fn usages(certificate: &X509Certificate<'_>) -> (bool, bool) {
    let usage = certificate.extended_key_usage().unwrap().unwrap().value;
    let others = usage.any
        || usage.code_signing
        || usage.email_protection
        || usage.time_stamping
        || usage.ocsp_signing
        || !usage.other.is_empty();
    assert!(!others, "no third extended key usage");
    (usage.server_auth, usage.client_auth)
}

fn key_identifiers(certificate: &X509Certificate<'_>) -> (Option<Vec<u8>>, Option<Vec<u8>>) {
    let (mut subject, mut authority) = (None, None);
    for extension in certificate.extensions() {
        if let ParsedExtension::SubjectKeyIdentifier(id) = extension.parsed_extension() {
            subject = Some(id.0.to_vec());
        } else if let ParsedExtension::AuthorityKeyIdentifier(id) = extension.parsed_extension() {
            authority = id.key_identifier.as_ref().map(|id| id.0.to_vec());
        }
    }
    (subject, authority)
}

/// Number, revoked serials in hex, seconds from this to next update.
fn crl(authority: &Authority) -> (u64, Vec<String>, i64) {
    let pem = pem(&authority.crl());
    let (_, list) = parse_x509_crl(&pem.contents).unwrap();
    let number = list.crl_number().unwrap().to_string().parse().unwrap();
    let serials =
        list.iter_revoked_certificates().map(|entry| hex::encode(entry.raw_serial())).collect();
    let lasts = list.next_update().unwrap().timestamp() - list.last_update().timestamp();
    (number, serials, lasts)
}

pub(crate) fn authority() -> (tempfile::TempDir, Authority) {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::create(&dir.path().join("pki"), "Test CA").unwrap();
    (dir, authority)
}

pub(crate) fn localhost() -> (Vec<String>, Vec<IpAddr>) {
    (vec!["localhost".into()], vec!["127.0.0.1".parse().unwrap()])
}

#[test]
fn the_root_signs_certificates_and_lists_and_nothing_below_it_may() {
    let (_dir, authority) = authority();

    let pem = pem(&authority.ca_certificate());
    let root = pem.parse_x509().unwrap();

    let constraints = root.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && constraints.value.ca);
    assert_eq!(constraints.value.path_len_constraint, Some(0));
    assert_eq!(root.key_usage().unwrap().unwrap().value.flags, 0b110_0000);
    let validity = root.validity();
    let days = (validity.not_after.timestamp() - validity.not_before.timestamp()) / 86_400;
    assert_eq!(days, 3653);
    root.verify_signature(None).unwrap();
    assert_eq!(root.subject().to_string(), "CN=Test CA");
}

#[test]
fn a_client_holds_its_uri_and_client_auth_only() {
    let (_dir, mut authority) = authority();

    let issued = authority.issue("acquirer-a", &Leaf::client(URI)).unwrap();

    let (root, leaf) = (pem(&authority.ca_certificate()), pem(&issued.certificate));
    let (root, leaf) = (root.parse_x509().unwrap(), leaf.parse_x509().unwrap());
    assert_eq!(names(&leaf), [format!("URI({URI})")]);
    assert_eq!(usages(&leaf), (false, true));
    let constraints = leaf.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && !constraints.value.ca);
    assert_eq!(leaf.key_usage().unwrap().unwrap().value.flags, 1, "digitalSignature alone");
    assert_eq!(leaf.subject().to_string(), "CN=acquirer-a");
    assert_eq!(hex::encode(leaf.raw_serial()), issued.serial);
    assert_eq!(issued.serial.len(), 32);
    let (own, above) = key_identifiers(&leaf);
    assert_eq!(above, key_identifiers(&root).0);
    assert!(own.is_some() && above.is_some() && own != above);
    leaf.verify_signature(Some(root.public_key())).unwrap();
    let lasts = leaf.validity().not_after.timestamp() - Timestamp::now().as_second();
    assert!((29 * 86_400..=30 * 86_400).contains(&lasts), "{lasts}");
}

#[test]
fn a_server_holds_its_names_and_one_that_is_both_holds_all() {
    let (_dir, mut authority) = authority();
    let (dns, addresses) = localhost();

    let server = authority.issue("gateway", &Leaf::server(dns.clone(), addresses.clone())).unwrap();
    let both = authority.issue("billing", &Leaf::both(dns, addresses, URI)).unwrap();

    let (server, both) = (pem(&server.certificate), pem(&both.certificate));
    let (server, both) = (server.parse_x509().unwrap(), both.parse_x509().unwrap());
    assert_eq!(names(&server), ["DNSName(localhost)", "IPAddress(7f:00:00:01)"]);
    assert_eq!(usages(&server), (true, false));
    let uri = format!("URI({URI})");
    assert_eq!(names(&both), ["DNSName(localhost)", "IPAddress(7f:00:00:01)", &uri]);
    assert_eq!(usages(&both), (true, true));
}

#[test]
fn keys_are_pkcs8_and_for_their_owner_only() {
    let (dir, mut authority) = authority();
    let issued = authority.issue("acquirer-a", &Leaf::client(URI)).unwrap();

    let mode = |path: PathBuf| path.metadata().unwrap().permissions().mode() & 0o777;

    assert_eq!(mode(dir.path().join("pki/ca.key")), 0o600);
    assert_eq!(mode(issued.key.clone()), 0o600);
    assert_eq!(pem(&issued.key).label, "PRIVATE KEY");
    let left_over = dir.path().join("pki").read_dir().unwrap();
    let endings = left_over.map(|entry| entry.unwrap().path().extension().unwrap().to_owned());
    assert!(endings.into_iter().all(|ending| ending != "tmp"));
}

#[test]
fn a_second_authority_in_one_place_is_refused() {
    let (dir, _authority) = authority();
    let place = dir.path().join("pki");

    let second = Authority::create(&place, "Other CA").unwrap_err();
    let missing = Authority::open(dir.path()).unwrap_err();

    assert!(matches!(second, PkiError::Exists { .. }), "{second}");
    assert!(second.to_string().contains(&place.display().to_string()), "{second}");
    assert!(matches!(missing, PkiError::Missing { .. }), "{missing}");
    let pem = pem(&place.join("ca.crt"));
    assert_eq!(pem.parse_x509().unwrap().subject().to_string(), "CN=Test CA");
}

#[test]
fn names_and_leaves_that_break_a_rule_are_refused_and_leave_nothing_behind() {
    let (dir, mut authority) = authority();
    let now = Timestamp::now();
    let client = || Leaf::client(URI);

    let long = "a".repeat(65);
    for name in ["", "ca", "CA", ".hidden", "../up", "a/b", "a b", "ä", long.as_str()] {
        let error = authority.issue(name, &client()).unwrap_err();
        assert!(matches!(error, PkiError::Name { .. }), "{name}: {error}");
    }
    let leaves = [
        Leaf::server([""; 0], []),
        Leaf::server(["local host"], []),
        Leaf::client("acquirer-a"),
        Leaf::client("spiffe://tollgate.test/a b"),
        client().lasting(0),
        client().between(now, now),
        client().between(Timestamp::MIN, now),
    ];
    for leaf in leaves {
        let error = authority.issue("x", &leaf).unwrap_err();
        assert!(matches!(error, PkiError::Leaf { .. }), "{leaf:?}: {error}");
    }

    assert!(authority.index().unwrap().certificates.is_empty());
    assert_eq!(dir.path().join("pki").read_dir().unwrap().count(), 4);
}

#[test]
fn revoking_a_name_lists_all_its_unexpired_certificates_and_a_serial_only_one() {
    let (_dir, mut authority) = authority();
    let now = Timestamp::now();
    let past = now - SignedDuration::from_hours(48);
    let expired = Leaf::client(URI).between(past, past + SignedDuration::from_hours(1));
    authority.issue("a", &expired).unwrap();
    let mut of_name = [
        authority.issue("a", &Leaf::client(URI)).unwrap().serial,
        authority.issue("a", &Leaf::client(URI)).unwrap().serial,
    ];
    let other = authority.issue("b", &Leaf::client(URI)).unwrap().serial;
    of_name.sort();
    assert_eq!(crl(&authority), (1, vec![], 7 * 86_400));

    authority.revoke("a").unwrap();
    let first = crl(&authority);
    authority.revoke(&other.to_ascii_uppercase()).unwrap();
    let second = crl(&authority);
    let unknown = authority.revoke("c").unwrap_err();

    assert_eq!((first.0, first.1), (2, of_name.to_vec()));
    assert_eq!((second.0, second.1.len()), (3, 3));
    assert!(second.1.contains(&other));
    assert!(matches!(unknown, PkiError::Unknown { .. }), "{unknown}");
    assert_eq!(crl(&authority).0, 3, "a refused revocation publishes nothing");
}

#[test]
fn a_certificate_revoked_twice_keeps_its_first_date() {
    let (_dir, mut authority) = authority();
    let serial = authority.issue("a", &Leaf::client(URI)).unwrap().serial;
    authority.revoke("a").unwrap();
    let first = authority.index().unwrap().certificates[&serial].revoked_at;

    authority.revoke(&serial).unwrap();

    assert!(first.is_some());
    assert_eq!(authority.index().unwrap().certificates[&serial].revoked_at, first);
}

#[test]
fn an_opened_authority_is_the_same_root_and_goes_on_counting() {
    let (dir, mut created) = authority();
    created.issue("a", &Leaf::client(URI)).unwrap();
    created.revoke("a").unwrap();
    let mut opened = Authority::open(&dir.path().join("pki")).unwrap().with_crl_days(1);

    let issued = opened.issue("b", &Leaf::client(URI)).unwrap();
    opened.write_crl().unwrap();

    let (number, serials, lasts) = crl(&opened);
    assert_eq!((number, serials.len(), lasts), (3, 1, 86_400));
    let (root, leaf) = (pem(&created.ca_certificate()), pem(&issued.certificate));
    let (root, leaf) = (root.parse_x509().unwrap(), leaf.parse_x509().unwrap());
    leaf.verify_signature(Some(root.public_key())).unwrap();
    assert_eq!(leaf.issuer(), root.subject());
    assert_eq!(key_identifiers(&leaf).1, key_identifiers(&root).0);
    let list = pem(&opened.crl());
    let (_, list) = parse_x509_crl(&list.contents).unwrap();
    assert_eq!(list.issuer(), root.subject());
    list.verify_signature(root.public_key()).unwrap();
    created.write_crl().unwrap();
    assert_eq!(crl(&created).0, 4, "the older handle sees what the newer one wrote");
}

#[test]
fn handles_at_work_together_lose_no_certificate_and_no_revocation() {
    let (dir, _authority) = authority();
    let place = dir.path().join("pki");

    std::thread::scope(|scope| {
        for worker in 0..4 {
            let mut authority = Authority::open(&place).unwrap();
            scope.spawn(move || {
                for turn in 0..5 {
                    let name = format!("client-{worker}-{turn}");
                    authority.issue(&name, &Leaf::client(URI)).unwrap();
                    authority.revoke(&name).unwrap();
                }
            });
        }
    });

    let authority = Authority::open(&place).unwrap();
    let (number, serials, _) = crl(&authority);
    assert_eq!((number, serials.len()), (21, 20));
    assert_eq!(authority.index().unwrap().certificates.len(), 20);
}

#[test]
fn the_demo_set_holds_every_name_of_the_contract() {
    let (_dir, mut authority) = authority();

    let issued = issue_demo(&mut authority).unwrap();

    let mut expected = vec![
        ("gateway", "DNSName(localhost) IPAddress(7f:00:00:01)".to_owned(), (true, false)),
        ("billing", "DNSName(localhost) IPAddress(7f:00:00:01)".to_owned(), (true, false)),
    ];
    let clients = "tollgate acquirer-a acquirer-b terminal-1 operator operator-2 auditor monitor \
        key-officer key-officer-2";
    for name in clients.split(' ') {
        expected.push((name, format!("URI(spiffe://tollgate.test/{name})"), (false, true)));
    }
    assert_eq!(issued.len(), expected.len());
    for (issued, (name, alternative, usage)) in issued.iter().zip(expected) {
        assert!(issued.certificate.ends_with(format!("{name}.crt")));
        assert!(issued.key.ends_with(format!("{name}.key")));
        let pem = pem(&issued.certificate);
        let certificate = pem.parse_x509().unwrap();
        assert_eq!(names(&certificate).join(" "), alternative);
        assert_eq!(usages(&certificate), usage);
    }
}
