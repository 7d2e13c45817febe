//! Who may not even speak: each is refused without a byte of HTTP, the reason is on record, and
//! everybody else goes on.

use std::sync::Arc;
use std::time::Duration;

use harness::mtls::client_config;
use harness::world::World;
use jiff::{SignedDuration, Timestamp};
use pki::{Authority, Leaf};
use reqwest::Method;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::canary::Canaries;

/// The zoo of certificates, each shown to both listeners.
#[tokio::test]
async fn a_certificate_that_proves_nobody_gets_no_answer_from_either_listener() {
    let world = World::start().await.unwrap();
    let (now, day) = (Timestamp::now(), SignedDuration::from_hours(24));
    let uri = "spiffe://tollgate.test/acquirer-a";
    let server = || Leaf::server(["acquirer-a.test"], []);
    let issued = [
        ("expired", Leaf::client(uri).between(now - day * 2, now - day), "certificate-expired"),
        ("too-early", Leaf::client(uri).between(now + day, now + day * 2), "certificate-untrusted"),
        ("server", server(), "certificate-untrusted"),
        ("two-names", Leaf::both(["a.test"], [], uri), "certificate-unnamed"),
        ("no-spiffe", Leaf::client("https://tollgate.test/acquirer-a"), "certificate-unnamed"),
        ("too-long", Leaf::client(uri).lasting(400), "certificate-untrusted"),
    ];
    let mut shown: Vec<(&str, ClientConfig, &str)> = Vec::new();
    for (name, leaf, reason) in issued {
        world.issue(name, &leaf).unwrap();
        shown.push((name, client_config(&world.pki(), name).unwrap(), reason));
    }
    shown.push(("none", anonymous(&world), "certificate-missing"));
    shown.push(("another authority's", of_another_authority(&world, uri), "certificate-untrusted"));
    shown.push(("TLS 1.2", tls12(&world), "handshake"));

    for (name, config, reason) in shown {
        for (listener, port) in [("data", world.ports.data), ("admin", world.ports.admin)] {
            let before = world.audit().unwrap().len();

            let answer = ask(&config, port, "GET", "/healthz").await;

            assert_eq!(answer, "", "{name} at {listener}");
            let event = event_after(&world, before).await;
            assert_eq!(event["event"]["type"], "tls.reject", "{name}: {event}");
            assert_eq!(event["outcome"], "denied", "{name}");
            assert_eq!(event["reason"], reason, "{name} at {listener}: {event}");
            assert_eq!(event["listener"], listener, "{name}");
            assert_eq!(event["actor"]["type"], "unknown", "{name}");
        }
    }
    assert!(status(&world, "acquirer-a", world.ports.data, "/v1/pin/translate").await == 405);
}

#[tokio::test]
async fn plaintext_gets_no_byte_and_the_connection_ends() {
    let world = World::start().await.unwrap();
    let spoken = [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".as_slice(),
        b"PRI * HTTP/2.0\r\n\r\n",
        b"\x00\x00\x00\x00",
        b"SSH-2.0-x\r\n",
    ];

    for (port, listener) in [(world.ports.data, "data"), (world.ports.admin, "admin")] {
        for bytes in spoken {
            let before = world.audit().unwrap().len();
            let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            stream.write_all(bytes).await.unwrap();
            let mut answer = Vec::new();

            let read = timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await;

            assert!(read.is_ok() && answer.is_empty(), "{read:?} {answer:?}");
            let event = event_after(&world, before).await;
            assert_eq!(event["resource"]["id"], format!("{listener}: not-tls"), "{event}");
        }
    }
}

/// What the HTTP library refuses by itself, before any route, is on record too.
#[tokio::test]
async fn what_is_no_request_at_all_leaves_one_event_and_none_of_its_text() {
    let world = World::start().await.unwrap();
    let config = client_config(&world.pki(), "acquirer-a").unwrap();
    let pan = "4556737586899855";
    let length = "content-length: 5\r\n";

    for (head, status) in [
        (format!("{pan}\r\n\r\n"), "400"),
        (format!("GET /v1/payments/x HTTP/1.1\r\nno header {pan}\r\n\r\n"), "400"),
        (
            format!(
                "POST /v1/payments HTTP/1.1\r\n{length}{length}{}\r\n",
                "content-length: 6\r\n"
            ),
            "400",
        ),
        (format!("GET /v1/payments/x HTTP/1.1\r\nx: {}\r\n\r\n", pan.repeat(2_000)), "431"),
        (format!("GET /{} HTTP/1.1\r\n\r\n", pan.repeat(4_500)), "431"),
    ] {
        let before = world.audit().unwrap().len();
        let mut stream = connect(&config, world.ports.data).await.unwrap();

        let answer = speak(&mut stream, head.as_bytes()).await;

        // The answer to a head that is too long can be lost: what is not read of it resets.
        let is_lost = answer.is_empty() && status == "431";
        assert!(is_lost || answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        let event = event_after(&world, before).await;
        assert_eq!(event["event"]["type"], "http.reject", "{event}");
        assert_eq!(
            (&event["outcome"], &event["reason"]),
            (&json!("denied"), &json!("malformed-request"))
        );
        assert_eq!(event["actor"]["id"], "spiffe://tollgate.test/acquirer-a", "{event}");
        assert_eq!(event["resource"]["id"], "data: not-http", "{event}");
        assert!(!answer.contains(pan) && !event.to_string().contains(pan), "{answer} {event}");
    }
    assert_eq!(Canaries::default().digits("pan", pan).found_under(world.dir()), [""; 0]);
}

/// A revocation list takes effect without a restart, on new connections and on open ones.
#[tokio::test]
async fn a_revoked_client_is_cut_off_within_seconds_and_nobody_else_is() {
    let world = World::start().await.unwrap();
    let process = world.gateway().unwrap().id();
    let config = |name| client_config(&world.pki(), name).unwrap();
    let mut revoked = connect(&config("acquirer-b"), world.ports.data).await.unwrap();
    let mut other = connect(&config("acquirer-a"), world.ports.data).await.unwrap();
    assert!(exchange(&mut revoked, "GET", "/v1/payments/x").await.starts_with("HTTP/1.1 404"));
    assert!(exchange(&mut other, "GET", "/v1/payments/x").await.starts_with("HTTP/1.1 404"));

    let began = Instant::now();
    world.revoke("acquirer-b").unwrap();
    let cut = timeout(Duration::from_secs(10), revoked.read(&mut [0; 64])).await;

    let took = began.elapsed();
    assert!(matches!(cut, Ok(Ok(0) | Err(_))), "an open connection lives on: {cut:?}");
    assert!(took < Duration::from_secs(6), "{took:?}");
    assert_eq!(ask(&config("acquirer-b"), world.ports.data, "GET", "/v1/payments/x").await, "");
    assert!(exchange(&mut other, "GET", "/v1/payments/x").await.starts_with("HTTP/1.1 404"));
    assert_eq!(world.gateway().unwrap().id(), process);
    let events = world.audit().unwrap();
    let told = |reason: &str| events.iter().any(|event| event["reason"] == reason);
    assert!(told("not-allowed") && told("certificate-revoked"));
    let cut = events.iter().find(|event| event["reason"] == "not-allowed").unwrap();
    assert_eq!(cut["actor"]["id"], "spiffe://tollgate.test/acquirer-b", "{cut}");
}

/// A certificate alone gives no right, and no listener serves the other's paths.
#[tokio::test]
async fn a_client_reaches_its_own_listener_and_its_own_paths_alone() {
    let world = World::start().await.unwrap();
    world.issue("stranger", &Leaf::client("spiffe://tollgate.test/stranger")).unwrap();
    let (data, admin) = (world.ports.data, world.ports.admin);

    for (name, port, path, expected) in [
        ("stranger", data, "/v1/payments/x", 403),
        ("stranger", admin, "/healthz", 403),
        ("stranger", admin, "/metrics", 403),
        ("acquirer-a", data, "/v1/payments/x", 404),
        ("acquirer-a", data, "/healthz", 404),
        ("acquirer-a", data, "/readyz", 404),
        ("acquirer-a", data, "/metrics", 404),
        ("acquirer-a", data, "/openapi.json", 404),
        ("acquirer-a", admin, "/healthz", 403),
        ("acquirer-a", admin, "/readyz", 403),
        ("acquirer-a", admin, "/metrics", 403),
        ("acquirer-a", admin, "/openapi.json", 403),
        ("operator", admin, "/v1/payments/x", 404),
        ("operator", admin, "/v1/pin/translate", 404),
        ("operator", admin, "/healthz", 200),
        ("operator", data, "/v1/payments/x", 403),
        ("monitor", admin, "/metrics", 200),
    ] {
        assert_eq!(status(&world, name, port, path).await, expected, "{name} {port} {path}");
    }
}

async fn status(world: &World, name: &str, port: u16, path: &str) -> u16 {
    let client =
        harness::acquirer::Client::new(&world.pki(), name, &format!("https://127.0.0.1:{port}"));
    let answer = client.unwrap().send(Method::GET, path, &[], Vec::new()).await.unwrap();
    answer.status.as_u16()
}

/// The event that follows, which is written after the refusal can be seen.
async fn event_after(world: &World, before: usize) -> serde_json::Value {
    let limit = Instant::now() + Duration::from_secs(5);
    loop {
        if let [event] = &world.audit().unwrap()[before..] {
            return event.clone();
        }
        assert!(Instant::now() < limit, "no event, or several");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What a connection of its own brings, empty when it is refused. Under TLS 1.3 a client learns
/// that at its first read, not in its handshake.
async fn ask(config: &ClientConfig, port: u16, method: &str, path: &str) -> String {
    match connect(config, port).await {
        Ok(mut stream) => exchange(&mut stream, method, path).await,
        Err(_) => String::new(),
    }
}

async fn connect(config: &ClientConfig, port: u16) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let name = "localhost".try_into().unwrap();
    TlsConnector::from(Arc::new(config.clone())).connect(name, stream).await
}

/// One request and the first bytes of its answer.
async fn exchange(stream: &mut TlsStream<TcpStream>, method: &str, path: &str) -> String {
    let request = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    speak(stream, request.as_bytes()).await
}

async fn speak(stream: &mut TlsStream<TcpStream>, request: &[u8]) -> String {
    let mut answer = vec![0; 8192];
    // Writing may succeed or fail when the other side has closed: reading tells.
    let _ = stream.write_all(request).await;
    let read = timeout(Duration::from_secs(5), stream.read(&mut answer)).await.unwrap();
    String::from_utf8_lossy(&answer[..read.unwrap_or(0)]).into_owned()
}

fn roots(world: &World) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(world.pki().join("ca.crt")).unwrap()).unwrap();
    roots
}

fn anonymous(world: &World) -> ClientConfig {
    ClientConfig::builder().with_root_certificates(roots(world)).with_no_client_auth()
}

/// Trusts the gateway, and shows a certificate of the same name that another CA has issued.
fn of_another_authority(world: &World, uri: &str) -> ClientConfig {
    let dir = world.dir().join("pki/other");
    let mut other = Authority::create(&dir, "Tollgate demo CA").unwrap();
    other.issue("acquirer-a", &Leaf::client(uri)).unwrap();
    std::fs::copy(world.pki().join("ca.crt"), dir.join("ca.crt")).unwrap();
    client_config(&dir, "acquirer-a").unwrap()
}

fn tls12(world: &World) -> ClientConfig {
    ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS12])
        .with_root_certificates(roots(world))
        .with_no_client_auth()
}
