//! A listener on loopback, with certificates of a private authority.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use pki::Leaf;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::edge::test_world::{Session, World, client, uri};

#[tokio::test]
async fn a_registered_client_is_served_under_its_id() {
    let mut world = World::new().await;

    let mut session = world.connect(&Leaf::client(uri("a"))).await;
    let answer = session.ask("/who").await;

    assert!(answer.text.starts_with("HTTP/1.1 200"), "{answer:?}");
    let expected = "a spiffe://tollgate.test/a data X25519MLKEM768";
    assert!(answer.text.ends_with(expected), "{answer:?}");
}

#[tokio::test]
async fn a_valid_certificate_without_an_entry_is_nobody() {
    let mut world = World::new().await;

    let mut session = world.connect(&Leaf::client(uri("stranger"))).await;
    let answer = session.ask("/who").await;

    assert!(answer.text.contains("nobody spiffe://tollgate.test/stranger"), "{answer:?}");
}

#[tokio::test]
async fn http2_is_served_when_both_want_it() {
    let mut world = World::new().await;
    world.authority.issue("client", &Leaf::client(uri("a"))).unwrap();
    let http = reqwest::Client::builder()
        .tls_backend_preconfigured(world.tls_client(&[b"h2", b"http/1.1"]))
        .build()
        .unwrap();
    let url = format!("https://localhost:{}/who", world.address.port());

    let answer = http.get(url).send().await.unwrap();

    assert_eq!(answer.version(), reqwest::Version::HTTP_2);
    assert!(answer.text().await.unwrap().starts_with("a spiffe"));
}

#[tokio::test]
async fn plaintext_is_closed_without_a_byte() {
    let world = World::new().await;
    let mut stream = TcpStream::connect(world.address).await.unwrap();

    stream.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();

    assert_eq!(answer, b"");
    assert_eq!(world.refusals().await, ["not-tls"]);
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let world = World::new().await;
    let config = world.tls_builder().with_no_client_auth();

    let answer = Session::open(world.address, config).await.ask("/who").await;

    assert_eq!((answer.text.as_str(), answer.is_open), ("", false));
    assert_eq!(world.refusals().await, ["no-certificate"]);
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    let mut world = World::new().await;
    world.authority.issue("client", &Leaf::client(uri("a"))).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = "localhost".try_into().unwrap();
    let stream = TcpStream::connect(world.address).await.unwrap();

    let connected =
        tokio_rustls::TlsConnector::from(std::sync::Arc::new(config)).connect(name, stream).await;

    assert!(connected.is_err());
    assert_eq!(world.refusals().await, ["incompatible"]);
}

/// The certificate zoo: each is refused before its first request, and the reason is told.
#[tokio::test]
async fn certificates_that_name_nobody_are_refused() {
    let now = Timestamp::now();
    let day = SignedDuration::from_hours(24);
    let loopback = || ["127.0.0.1".parse().unwrap()];
    for (leaf, reason) in [
        (Leaf::both(["a.test"], loopback(), uri("a")), "san-count"),
        (Leaf::client("https://tollgate.test/a"), "san-uri"),
        (Leaf::client("spiffe://tollgate.test/"), "san-uri"),
        (Leaf::client("spiffe://tollgate.test:8443/a"), "san-uri-parts"),
        (Leaf::client("spiffe://tollgate.test/a?role=admin"), "san-uri-parts"),
        (Leaf::client(uri("a")).between(now - day * 2, now - day), "certificate-expired"),
        (Leaf::client(uri("a")).between(now + day, now + day * 2), "certificate-not-yet-valid"),
        (Leaf::client(uri("a")).lasting(400), "certificate-life"),
        (Leaf::server(["a.test"], []), "certificate-purpose"),
    ] {
        let mut world = World::new().await;

        let answer = world.connect(&leaf).await.ask("/who").await;

        assert_eq!((answer.text.as_str(), answer.is_open), ("", false), "{reason}");
        assert_eq!(world.refusals().await, [reason]);
    }
}

#[tokio::test]
async fn a_revoked_client_is_cut_off_and_not_let_in_again() {
    let mut world = World::new().await;
    let mut session = world.connect(&Leaf::client(uri("a"))).await;
    assert!(session.ask("/who").await.is_open);

    world.authority.revoke("client").unwrap();
    world.tls.reload().unwrap();
    let was_cut = session.closes_within(Duration::from_secs(3)).await;
    let again = world.connect_again().await.ask("/who").await;

    assert!(was_cut);
    assert_eq!((again.text.as_str(), again.is_open), ("", false));
    assert_eq!(world.refusals().await, ["no-longer-accepted", "certificate-revoked"]);
}

#[tokio::test]
async fn a_stale_revocation_list_lets_nobody_in() {
    let mut world = World::new().await;
    let now = Timestamp::now();
    let hour = SignedDuration::from_hours(1);
    world.authority.write_crl_between(now - hour * 2, now - hour).unwrap();
    world.tls.reload().unwrap();

    let answer = world.connect(&Leaf::client(uri("a"))).await.ask("/who").await;

    assert!(!answer.is_open);
    assert_eq!(world.refusals().await, ["crl-expired"]);
}

#[tokio::test]
async fn a_change_of_its_entry_cuts_a_client_and_leaves_the_others() {
    let mut world = World::new().await;
    let limits = crate::config::LimitsConfig::default();
    world.registry.replace(&[client("a"), client("b")], &limits).unwrap();
    let mut a = world.connect(&Leaf::client(uri("a"))).await;
    let mut b = world.connect(&Leaf::client(uri("b"))).await;
    assert!(a.ask("/who").await.is_open && b.ask("/who").await.is_open);

    let disabled = crate::config::ClientConfig { enabled: false, ..client("b") };
    world.registry.replace(&[client("a"), disabled], &limits).unwrap();
    let b_was_cut = b.closes_within(Duration::from_secs(3)).await;
    let a_goes_on = a.ask("/who").await;

    assert!(b_was_cut);
    assert!(a_goes_on.is_open && a_goes_on.text.contains("a spiffe"), "{a_goes_on:?}");
}

#[tokio::test]
async fn a_key_that_is_not_pinned_is_refused() {
    let mut world = World::new().await;
    let pinned = crate::config::ClientConfig { spki_sha256: vec!["ab".repeat(32)], ..client("a") };
    world.registry.replace(&[pinned], &crate::config::LimitsConfig::default()).unwrap();

    let answer = world.connect(&Leaf::client(uri("a"))).await.ask("/who").await;

    assert!(!answer.is_open);
    assert_eq!(world.refusals().await, ["key-not-pinned"]);
}

#[tokio::test]
async fn no_session_is_resumed() {
    let mut world = World::new().await;
    world.authority.issue("client", &Leaf::client(uri("a"))).unwrap();
    let config = world.tls_client(&[b"http/1.1"]);
    let mut first = Session::open(world.address, config.clone()).await;
    first.ask("/who").await;

    let mut second = Session::open(world.address, config).await;
    second.ask("/who").await;

    assert_eq!(second.handshake(), first.handshake());
    assert!(!matches!(second.handshake(), Some(rustls::HandshakeKind::Resumed)));
}

#[tokio::test]
async fn a_half_sent_head_is_cut_and_an_idle_connection_rests_longer() {
    let mut world = World::with(|config, _| {
        config.header_ms_max = 200;
        config.idle_ms_max = 1_500;
    })
    .await;
    let mut half = world.connect(&Leaf::client(uri("a"))).await;
    let mut idle = world.connect_again().await;
    idle.ask("/who").await;

    half.send("GET /who HTTP/1.1\r\nhost:").await;
    let half_was_cut = half.closes_within(Duration::from_millis(1_000)).await;
    let idle_rests = !idle.closes_within(Duration::from_millis(100)).await;
    let idle_ends = idle.closes_within(Duration::from_secs(4)).await;

    assert!(half_was_cut);
    assert!(idle_rests && idle_ends);
}

#[tokio::test]
async fn a_silent_peer_does_not_hold_its_handshake() {
    let world = World::with(|config, _| config.handshake_ms_max = 200).await;
    let mut silent = TcpStream::connect(world.address).await.unwrap();

    let mut sink = Vec::new();
    let closed = tokio::time::timeout(Duration::from_secs(3), silent.read_to_end(&mut sink)).await;

    assert!(closed.is_ok());
    assert_eq!(world.refusals().await, ["handshake-timeout"]);
}

#[tokio::test]
async fn a_body_is_bounded_in_bytes_and_in_time() {
    let mut world = World::with(|config, _| {
        config.body_bytes_max = 1_024;
        config.body_ms_max = 200;
    })
    .await;
    let post = |length: usize, body: &str| {
        format!("POST /body HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n{body}")
    };

    let mut session = world.connect(&Leaf::client(uri("a"))).await;
    session.send(&post(1_024, &"x".repeat(1_024))).await;
    let fits = session.read().await;
    session.send(&post(1_025, "x")).await;
    let too_long = session.read().await;
    let mut session = world.connect_again().await;
    session.send(&post(10, "x")).await;
    let too_slow = session.read().await;

    assert!(fits.text.ends_with("1024 bytes"), "{fits:?}");
    assert!(too_long.text.ends_with("the body is longer than 1024 bytes"), "{too_long:?}");
    assert!(too_slow.text.ends_with("the body did not arrive in time"), "{too_slow:?}");
}

#[tokio::test]
async fn whoever_sends_on_behind_a_refusal_still_hears_it() {
    let mut world = World::with(|config, _| config.body_bytes_max = 1_024).await;
    let body = "x".repeat(900 * 1024);
    let length = body.len();
    let mut session = world.connect(&Leaf::client(uri("a"))).await;

    // Refused by the route that reads, and by a path that reads nothing.
    for (path, words) in [("/body", "longer than 1024 bytes"), ("/nothing", "404 Not Found")] {
        let head = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}");
        session.send_whole(&format!("{head}\r\n\r\n{body}")).await;
        let answer = session.read().await;

        assert!(answer.text.contains(words) && answer.is_open, "{path}: {answer:?}");
    }
}

#[tokio::test]
async fn a_refusal_waits_for_no_body_that_does_not_come() {
    let mut world = World::with(|config, _| config.body_ms_max = 300).await;
    let head = "POST /nothing HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99\r\n";

    let mut silent = world.connect(&Leaf::client(uri("a"))).await;
    silent.send(&format!("{head}\r\n")).await;
    let told = silent.read().await;
    // Whoever asks first is not told to send what nobody will read.
    let mut asking = world.connect_again().await;
    asking.send(&format!("{head}expect: 100-continue\r\n\r\n")).await;
    let refused = asking.read().await;

    assert!(told.text.starts_with("HTTP/1.1 404 Not Found") && !told.is_open, "{told:?}");
    assert!(refused.text.starts_with("HTTP/1.1 404 Not Found"), "{refused:?}");
}

#[tokio::test]
async fn a_head_over_its_bound_is_refused() {
    let mut world = World::with(|config, _| config.header_bytes_max = 1_024).await;
    let mut session = world.connect(&Leaf::client(uri("a"))).await;

    session.send(&format!("GET /who HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(2_000))).await;
    let answer = session.read().await;

    assert!(answer.text.starts_with("HTTP/1.1 431"), "{answer:?}");
    assert!(!answer.is_open);
}

#[tokio::test]
async fn an_address_with_too_many_connections_is_closed_before_tls() {
    let mut world = World::with(|_, limits| limits.connections_per_address = 1).await;
    let mut first = world.connect(&Leaf::client(uri("a"))).await;

    let mut second = TcpStream::connect(world.address).await.unwrap();
    let mut sink = Vec::new();
    second.read_to_end(&mut sink).await.unwrap();

    assert_eq!(sink, b"");
    assert_eq!(world.refusals().await, ["address-connections"]);
    assert!(first.ask("/who").await.is_open);
}

#[tokio::test]
async fn a_shutdown_lets_the_running_request_finish_and_then_ends() {
    let mut world = World::new().await;
    let mut busy = world.connect(&Leaf::client(uri("a"))).await;
    let mut idle = world.connect_again().await;
    busy.send("GET /slow HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    tokio::time::sleep(Duration::from_millis(100)).await;

    world.shutdown.cancel();
    let answer = busy.read().await;
    let idle_ends = idle.closes_within(Duration::from_secs(2)).await;
    let ended = tokio::time::timeout(Duration::from_secs(3), world.serving).await;

    assert!(answer.text.ends_with("slow") && !answer.is_open, "{answer:?}");
    assert!(idle_ends && ended.is_ok());
    assert!(TcpStream::connect(world.address).await.is_err());
}

#[tokio::test]
async fn a_shutdown_does_not_wait_longer_than_the_drain_time() {
    let mut world = World::with(|config, _| config.drain_ms_max = 50).await;
    let mut busy = world.connect(&Leaf::client(uri("a"))).await;
    busy.send("GET /hangs HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    tokio::time::sleep(Duration::from_millis(50)).await;

    world.shutdown.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(2), world.serving).await;

    assert!(ended.is_ok());
    assert_eq!(busy.read().await.text, "");
}

#[tokio::test]
async fn a_connection_ends_with_its_life() {
    let mut world = World::with(|config, _| config.connection_s_max = 1).await;
    let mut session = world.connect(&Leaf::client(uri("a"))).await;

    let lives = session.ask("/who").await.is_open;
    let ends = session.closes_within(Duration::from_secs(3)).await;

    assert!(lives && ends);
}
