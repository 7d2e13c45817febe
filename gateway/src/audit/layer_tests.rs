//! The layer around small routes, on a real log.

use std::{fs, net::SocketAddr, path::Path, sync::OnceLock};

use axum::{
    Router,
    routing::{get, post},
};
use compliance::PanLastFour;
use http_body_util::BodyExt as _;
use serde_json::Value;
use tower::ServiceExt as _;

use super::*;
use crate::{audit::writer::tests::records, config::AuditConfig};

struct World {
    dir: tempfile::TempDir,
    log: AuditLog,
    router: Router,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = AuditConfig::at(dir.path().into());
        let log = AuditLog::open(&config, "gateway-1", Uuid::now_v7(), None).unwrap();
        let router = Router::new()
            .route("/v1/pin/translate", post(translate))
            .route("/v1/pin/verify", post(|| async { Problem::new(Slug::PinBlockRefused) }))
            .route("/v1/mac/{key}", get(|| async { "read" }))
            .route("/v1/denied", get(|| async { Problem::new(Slug::NotAllowed) }))
            .route("/v1/panic", get(panics))
            .route("/v1/hangs", get(hangs))
            .route("/healthz", get(|| async { "alive" }))
            .layer(AuditLayer::new(log.clone(), Listener::Data, &["/healthz"]));
        Self { dir, log, router }
    }

    async fn ask(&self, method: &str, path: &str) -> (axum::http::response::Parts, String) {
        let answer = self.router.clone().oneshot(request(method, path)).await.unwrap();
        let (parts, body) = answer.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        (parts, String::from_utf8(bytes.to_vec()).unwrap())
    }

    fn last(&self) -> Value {
        records(self.dir.path()).pop().unwrap()
    }
}

async fn translate(entry: AuditEntry) -> &'static str {
    entry
        .event(EventType::PinTranslate)
        .resource(ResourceType::Key, "zpk.billing@1")
        .pan_last4(PanLastFour::parse("1111").unwrap())
        .mode(compliance::Mode::InWorker)
        .link("primary");
    "translated"
}

async fn panics(entry: AuditEntry) -> &'static str {
    entry.event(EventType::MacGenerate);
    panic!("with a secret in its text")
}

async fn hangs(entry: AuditEntry) -> &'static str {
    entry.event(EventType::PaymentAccept);
    std::future::pending().await
}

fn request(method: &str, path: &str) -> Request<Body> {
    let address: SocketAddr = "192.0.2.7:5000".parse().unwrap();
    let certificate = CertificateFacts {
        serial: "0a1b".into(),
        issuer: "CN=Test CA".into(),
        spki_sha256: "ab".repeat(32),
        not_after_s: 0,
    };
    let peer = Peer {
        client: None,
        uri: "spiffe://tollgate.test/stranger".into(),
        certificate,
        address,
        listener: "data",
        tls_group: "X25519MLKEM768".into(),
        audited: OnceLock::new(),
    };
    let request = Request::builder().method(method).uri(path).extension(Arc::new(peer));
    request.header("x-request-id", "from-outside").body(Body::empty()).unwrap()
}

#[tokio::test]
async fn an_answer_leaves_with_its_record_in_the_file() {
    let world = World::new();

    let (parts, body) = world.ask("POST", "/v1/pin/translate").await;

    assert_eq!((parts.status.as_u16(), body.as_str()), (200, "translated"));
    let record = world.last();
    assert_eq!(record["event"]["type"], "pin.translate");
    assert_eq!(record["outcome"], "success");
    assert_eq!(record["request_id"], parts.headers["x-request-id"].to_str().unwrap());
    assert_eq!(record["resource"]["id"], "zpk.billing@1");
    assert_eq!(record["pan_last4"], "1111");
    assert_eq!(record["mode"], "in_worker");
    assert_eq!(record["link"], "primary");
    assert_eq!(record["service"], "pin");
    assert_eq!(record["actor"]["id"], "spiffe://tollgate.test/stranger");
    assert_eq!(record["actor"]["cert"]["serial"], "0a1b");
    assert_eq!(record["src"]["port"], 5000);
}

#[tokio::test]
async fn a_refusal_is_recorded_under_the_id_that_its_body_shows() {
    let world = World::new();

    let (parts, body) = world.ask("GET", "/v1/denied").await;

    let body: Value = serde_json::from_str(&body).unwrap();
    let record = world.last();
    assert_eq!(parts.status, 403);
    assert_eq!(body["type"], "/problems/not-allowed");
    assert_eq!(body["request_id"], parts.headers["x-request-id"].to_str().unwrap());
    assert_eq!(record["request_id"], body["request_id"]);
    assert_eq!(record["event"]["type"], "authz.deny");
    assert_eq!((&record["outcome"], &record["reason"]), (&"denied".into(), &"not-allowed".into()));
    assert_eq!(record["resource"]["id"], "GET /v1/denied");
}

#[tokio::test]
async fn an_id_from_outside_is_ignored() {
    let world = World::new();

    let (parts, _) = world.ask("GET", "/v1/denied").await;

    let id = parts.headers["x-request-id"].to_str().unwrap();
    assert_eq!(Uuid::parse_str(id).unwrap().get_version_num(), 7);
}

#[tokio::test]
async fn a_pin_failure_is_only_ever_refused() {
    let world = World::new();

    world.ask("POST", "/v1/pin/verify").await;

    assert_eq!(world.last()["reason"], "refused");
}

#[tokio::test]
async fn what_the_router_refuses_is_a_problem_and_on_record() {
    let world = World::new();

    let (unknown, _) = world.ask("GET", "/v1/4111111111111111").await;
    let unknown_record = world.last();
    let (method, body) = world.ask("DELETE", "/v1/denied").await;
    let method_record = world.last();

    assert_eq!((unknown.status.as_u16(), method.status.as_u16()), (404, 405));
    assert_eq!(method.headers["allow"], "GET,HEAD");
    assert!(body.contains("/problems/method-not-allowed"));
    assert_eq!(unknown_record["event"]["type"], "http.reject");
    assert_eq!(unknown_record["resource"]["id"], "GET (unknown)", "never the path as sent");
    assert_eq!(method_record["reason"], "method-not-allowed");
}

#[tokio::test]
async fn a_path_is_recorded_as_its_template() {
    let world = World::new();

    world.ask("GET", "/v1/mac/zak.acquirer-a").await;

    assert_eq!(world.last()["resource"]["id"], "GET /v1/mac/{key}");
}

#[tokio::test]
async fn a_panic_is_answered_and_recorded_without_its_text() {
    let world = World::new();

    let (parts, body) = world.ask("GET", "/v1/panic").await;

    let record = world.last();
    assert_eq!(parts.status, 500);
    assert!(body.contains("/problems/internal") && !body.contains("secret"), "{body}");
    assert_eq!(record["event"]["type"], "mac.generate");
    assert_eq!((&record["outcome"], &record["status"]), (&"error".into(), &500.into()));
    assert!(!record.to_string().contains("secret"));
}

#[tokio::test]
async fn a_client_that_hangs_up_leaves_an_abandoned_record() {
    let world = World::new();
    let mut running = Box::pin(world.router.clone().oneshot(request("GET", "/v1/hangs")));
    let waited = tokio::time::timeout(std::time::Duration::from_millis(20), &mut running).await;

    drop(running);
    world.log.close().await;

    assert!(waited.is_err());
    let records = records(world.dir.path());
    let record = &records[1];
    assert_eq!(record["event"]["type"], "payment.accept");
    assert_eq!(record["outcome"], "abandoned");
    assert_eq!(record["reason"], "client-gone");
    assert_eq!(records.len(), 3, "start, abandoned, stop");
}

#[tokio::test]
async fn without_a_log_no_answer_leaves_and_health_still_does() {
    let world = World::new();
    world.log.close().await;

    let (withheld, body) = world.ask("POST", "/v1/pin/translate").await;
    let (alive, _) = world.ask("GET", "/healthz").await;

    assert_eq!(withheld.status, 503);
    assert_eq!(withheld.headers["retry-after"], "1");
    assert!(body.contains("/problems/audit-unavailable") && !body.contains("translated"), "{body}");
    assert_eq!(alive.status, 200);
}

#[tokio::test]
async fn while_the_log_fails_no_work_begins() {
    let world = World::new();
    fs::remove_dir_all(world.dir.path()).unwrap();
    world.ask("POST", "/v1/pin/translate").await;
    assert!(!world.log.is_healthy());

    // The handler would hang for ever.
    let (parts, _) = world.ask("GET", "/v1/hangs").await;

    assert_eq!(parts.status, 503);
}

#[tokio::test]
async fn health_is_not_recorded() {
    let world = World::new();

    world.ask("GET", "/healthz").await;
    world.log.close().await;

    let kinds: Vec<_> = records(Path::new(world.dir.path()))
        .iter()
        .map(|record| record["event"]["type"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(kinds, ["audit.start", "audit.stop"]);
}

#[tokio::test]
async fn every_answer_wears_the_security_headers() {
    let world = World::new();

    for (method, path) in [
        ("POST", "/v1/pin/translate"),
        ("GET", "/v1/denied"),
        ("GET", "/v1/panic"),
        ("GET", "/nowhere"),
        ("DELETE", "/v1/denied"),
        ("GET", "/healthz"),
    ] {
        let (parts, _) = world.ask(method, path).await;
        for (name, value) in &SECURITY_HEADERS {
            assert_eq!(parts.headers.get(name), Some(value), "{method} {path}");
        }
        assert!(!parts.headers.contains_key("server"));
    }
}
