//! The handlers behind their layers, without sockets.

use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::api::{App, Connection, Identity};
use super::fault::{Fault, Mode};
use super::ledger::LedgerReport;
use crate::demo_keys::DemoKeys;
use crate::soft::mac::cmac_aes;
use crate::soft::pin::{PinFormat, seal_pin};

#[tokio::test]
async fn a_bill_is_paid_once_and_answered_under_the_billers_mac() {
    let biller = Biller::new();
    let body = order(1, "bill-1");

    let first = biller.pay(&body).await;
    let second = biller.pay(&body).await;

    assert_eq!(first.result(), ("SUCCESS", "00", false));
    assert_eq!(second.result(), ("SUCCESS", "00", true));
    assert!(first.has_right_mac() && second.has_right_mac());
    let ledger = biller.ledger().await;
    assert_eq!(ledger.effects.len(), 1);
    assert_eq!(ledger.effects[0].sequence, 1);
    assert_eq!(ledger.effects[0].reference.to_string(), reference(1));
    assert_eq!(ledger.effects[0].amount.value, "127000.00");
    assert_eq!((ledger.requests, ledger.duplicates_suppressed), (2, 1));
}

#[tokio::test]
async fn a_reference_with_another_body_is_a_conflict_without_effect() {
    let biller = Biller::new();
    biller.pay(&order(1, "bill-1")).await;

    let answer = biller.pay(&order(1, "bill-2")).await;

    assert_eq!(answer.status, StatusCode::CONFLICT);
    assert_eq!(answer.json()["type"], "/problems/reference-reused");
    let ledger = biller.ledger().await;
    assert_eq!((ledger.effects.len(), ledger.conflicts), (1, 1));
}

#[tokio::test]
async fn a_missing_wrong_or_foreign_mac_is_refused_without_effect() {
    let biller = Biller::new();
    let body = order(1, "bill-1");
    let key = DemoKeys::load().value("zak.acquirer-b");
    let foreign = hex::encode_upper(&cmac_aes(&key, &body).unwrap()[..8]);
    let headers = [
        None,
        Some(mac_of(b"another body")),
        Some(format!("zak.billing:{foreign}")),
        Some(String::new()),
    ];

    for header in headers {
        let answer = biller.post("/v1/payments", header.as_deref(), &body).await;

        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(answer.json()["type"], "/problems/mac-refused");
    }
    let ledger = biller.ledger().await;
    assert_eq!((ledger.effects.len(), ledger.mac_refused), (0, 4));
}

#[tokio::test]
async fn what_is_no_order_is_refused_without_effect() {
    let biller = Biller::new();
    let defects = [
        ("reference", json!("not-a-uuid")),
        ("biller", json!("")),
        ("surprise", json!(1)),
        ("amount", json!({"value": "-1.00", "currency": "IDR"})),
        ("amount", json!({"value": "0.00", "currency": "IDR"})),
        ("amount", json!({"value": "1.00", "currency": "rp"})),
        ("pin_block", json!("00")),
    ];

    for (field, value) in defects {
        let mut body: Value = serde_json::from_slice(&order(1, "bill-1")).unwrap();
        body[field] = value;
        let answer = biller.pay(&serde_json::to_vec(&body).unwrap()).await;

        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{field}");
    }
    assert!(biller.ledger().await.effects.is_empty());
}

#[tokio::test]
async fn a_bill_that_says_so_is_declined_and_stays_declined() {
    let biller = Biller::new();

    let declined = biller.pay(&order(1, "declined-7")).await;
    let unknown = biller.pay(&order(2, "unknown-7")).await;
    let again = biller.pay(&order(1, "declined-7")).await;

    assert_eq!(declined.result(), ("FAILED", "51", false));
    assert_eq!(unknown.result(), ("FAILED", "14", false));
    assert_eq!(again.result(), ("FAILED", "51", true));
    let ledger = biller.ledger().await;
    assert_eq!((ledger.effects.len(), ledger.declined), (0, 2));
}

#[tokio::test]
async fn a_right_pin_pays_in_every_format_that_binds_a_pan() {
    let biller = Biller::new();

    for (number, format) in [PinFormat::Iso0, PinFormat::Iso3, PinFormat::Iso4].iter().enumerate() {
        let body = order_with_pin(number, "customer-1234", *format, "1234");
        let answer = biller.pay(&body).await;

        assert_eq!(answer.result(), ("SUCCESS", "00", false), "{format}");
    }
    let ledger = biller.ledger().await;
    assert!(ledger.effects.len() == 3 && ledger.effects.iter().all(|effect| effect.pin_seen));
    assert_eq!(ledger.pin_refused, 0);
}

#[tokio::test]
async fn a_customer_without_a_known_pin_may_use_any_that_decodes() {
    let biller = Biller::new();

    let answer = biller.pay(&order_with_pin(1, "customer-9", PinFormat::Iso4, "86420")).await;

    assert_eq!(answer.result(), ("SUCCESS", "00", false));
}

#[tokio::test]
async fn a_wrong_or_undecodable_pin_is_declined_with_55() {
    let biller = Biller::new();
    let wrong = order_with_pin(1, "customer-1234", PinFormat::Iso0, "4321");
    // A block of format 0 announced as format 3, and a format that binds no PAN.
    let other = order_with_pin(2, "customer-9", PinFormat::Iso0, "1234");
    let other = String::from_utf8(other).unwrap().replace("\"iso0\"", "\"iso3\"").into_bytes();
    let unbound = order_with_pin(3, "customer-9", PinFormat::Iso1, "1234");

    for body in [wrong, other, unbound] {
        let answer = biller.pay(&body).await;

        assert_eq!(answer.result(), ("FAILED", "55", false));
    }
    let ledger = biller.ledger().await;
    assert_eq!((ledger.effects.len(), ledger.pin_refused, ledger.declined), (0, 3, 3));
}

#[tokio::test]
async fn an_enquiry_finds_what_was_paid_and_nothing_else() {
    let biller = Biller::new();
    biller.pay(&order(1, "bill-1")).await;

    let known = biller.enquire(&reference(1)).await;
    let unknown = biller.enquire(&reference(2)).await;
    let nonsense = biller.enquire("nonsense").await;

    assert_eq!(
        (&known.json()["status"], &known.json()["response_code"]),
        (&json!("SUCCESS"), &json!("00"))
    );
    assert_eq!(known.json()["enquiry"], ENQUIRY);
    assert_eq!((unknown.status, &unknown.json()["status"]), (StatusCode::OK, &json!("UNKNOWN")));
    assert_eq!(nonsense.status, StatusCode::BAD_REQUEST);
    assert!(known.has_right_mac() && unknown.has_right_mac() && nonsense.has_right_mac());
    assert_eq!(biller.ledger().await.enquiries, 3);
}

#[tokio::test]
async fn a_simulator_that_died_still_knows_every_answer_and_effect() {
    let mut biller = Biller::new();
    biller.pay(&order(1, "bill-1")).await;
    biller.pay(&order(2, "declined-2")).await;
    let before = biller.ledger().await.effects;

    biller.restart();
    let paid = biller.pay(&order(1, "bill-1")).await;
    let declined = biller.pay(&order(2, "declined-2")).await;
    let conflict = biller.pay(&order(2, "bill-2")).await;

    assert_eq!(paid.result(), ("SUCCESS", "00", true));
    assert_eq!(declined.result(), ("FAILED", "51", true));
    assert_eq!(conflict.status, StatusCode::CONFLICT);
    assert_eq!(biller.ledger().await.effects, before);
}

#[tokio::test]
async fn neither_journal_nor_ledger_holds_pan_or_pin_block() {
    let biller = Biller::new();
    let body = order_with_pin(1, "customer-1234", PinFormat::Iso0, "1234");
    let block = serde_json::from_slice::<Value>(&body).unwrap()["pin_block"].clone();

    biller.pay(&body).await;

    let journal = std::fs::read_to_string(biller.folder.path().join("journal")).unwrap();
    let ledger = serde_json::to_string(&biller.ledger().await).unwrap();
    for text in [journal, ledger] {
        assert!(text.contains("bill-1") && !text.contains(PAN));
        assert!(!text.contains(block.as_str().unwrap()));
    }
}

#[tokio::test]
async fn the_same_order_many_times_at_once_takes_effect_once() {
    let biller = Biller::new();
    let body = order(1, "bill-1");

    let answers = futures_of(20, || biller.pay(&body)).await;

    let fresh = answers.iter().filter(|answer| answer.json()["replayed"] == false).count();
    assert_eq!(fresh, 1);
    assert_eq!(biller.ledger().await.effects.len(), 1);
}

#[tokio::test]
async fn a_refusing_mode_answers_its_status_and_has_no_effect() {
    let modes = [
        (Mode::Fail, StatusCode::SERVICE_UNAVAILABLE, Some("1")),
        (Mode::TooMany, StatusCode::TOO_MANY_REQUESTS, Some("1")),
        (Mode::Error500, StatusCode::INTERNAL_SERVER_ERROR, None),
    ];

    for (mode, status, retry_after) in modes {
        let biller = Biller::new();
        biller.set(Fault::next(mode, 1)).await;
        let spoiled = biller.pay(&order(1, "bill-1")).await;
        let retried = biller.pay(&order(1, "bill-1")).await;

        assert_eq!(spoiled.status, status, "{mode:?}");
        let header = spoiled.headers.get("retry-after").map(|value| value.to_str().unwrap());
        assert_eq!(header, retry_after, "{mode:?}");
        assert_eq!(retried.result(), ("SUCCESS", "00", false), "{mode:?} had an effect");
        assert_eq!(biller.ledger().await.requests, 2, "{mode:?}");
    }
}

#[tokio::test]
async fn a_silent_mode_never_answers_and_only_the_later_kind_has_an_effect() {
    let modes = [(Mode::Hang, 0), (Mode::HangAfter, 1), (Mode::CutBefore, 0), (Mode::CutAfter, 1)];

    for (mode, effects) in modes {
        let biller = Biller::new();
        biller.set(Fault::next(mode, 1)).await;
        let body = order(1, "bill-1");
        let answer = timeout(Duration::from_millis(500), biller.pay(&body)).await;

        assert!(answer.is_err(), "{mode:?} answered");
        let cuts = matches!(mode, Mode::CutBefore | Mode::CutAfter);
        assert_eq!(biller.connection.is_cancelled(), cuts, "{mode:?}");
        assert_eq!(biller.ledger().await.effects.len(), effects, "{mode:?}");
    }
}

#[tokio::test]
async fn garbage_is_no_json_has_no_mac_and_comes_after_the_effect() {
    let biller = Biller::new();
    biller.set(Fault::next(Mode::Garbage, 1)).await;

    let answer = biller.pay(&order(1, "bill-1")).await;

    assert_eq!(answer.status, StatusCode::OK);
    assert!(serde_json::from_slice::<Value>(&answer.body).is_err());
    assert!(!answer.headers.contains_key("tollgate-mac"));
    assert_eq!(biller.ledger().await.effects.len(), 1);
}

#[tokio::test]
async fn a_wrong_mac_has_the_right_form_and_comes_after_the_effect() {
    let biller = Biller::new();
    biller.set(Fault::next(Mode::WrongMac, 2)).await;

    let paid = biller.pay(&order(1, "bill-1")).await;
    let found = biller.enquire(&reference(1)).await;

    assert_eq!(paid.result(), ("SUCCESS", "00", false));
    for answer in [paid, found] {
        let header = answer.headers["tollgate-mac"].to_str().unwrap();
        assert!(
            header.starts_with("zak.billing:") && header.len() == 28 && !answer.has_right_mac()
        );
    }
    assert_eq!(biller.ledger().await.effects.len(), 1);
}

#[tokio::test]
async fn a_slow_answer_comes_after_its_delay_and_is_right() {
    let biller = Biller::new();
    biller.set(Fault::slow(Duration::from_millis(120))).await;
    let begun = tokio::time::Instant::now();

    let answer = biller.pay(&order(1, "bill-1")).await;

    assert!(begun.elapsed() >= Duration::from_millis(120));
    assert_eq!(answer.result(), ("SUCCESS", "00", false));
}

#[tokio::test]
async fn control_and_health_stay_up_while_payments_hang() {
    let biller = Biller::new();
    biller.set(Fault::always(Mode::Hang)).await;

    let health = biller.send("operator", Request::get("/healthz").body(Body::empty())).await;
    biller.set(Fault::always(Mode::Normal)).await;

    assert_eq!(health.status, StatusCode::OK);
    assert_eq!(biller.pay(&order(1, "bill-1")).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_fault_that_makes_no_sense_is_refused_and_changes_nothing() {
    let biller = Biller::new();

    for body in [r#"{"mode":"explode"}"#, r#"{"mode":"slow"}"#, r#"{"mode":"fail","count":0}"#] {
        let answer = biller.post("/control", None, body.as_bytes()).await;

        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{body}");
    }
    assert_eq!(biller.pay(&order(1, "bill-1")).await.status, StatusCode::OK);
}

#[tokio::test]
async fn only_the_gateway_may_pay_or_enquire() {
    let biller = Biller::new();
    let body = order(1, "bill-1");
    let payment = || {
        Request::post("/v1/payments")
            .header("tollgate-mac", mac_of(&body))
            .body(body.clone().into())
    };
    let enquiry = Request::post("/v1/enquiries").body(Body::empty());

    let stranger = biller.send("acquirer-a", payment()).await;
    let curious = biller.send("operator", enquiry).await;

    assert_eq!((stranger.status, curious.status), (StatusCode::FORBIDDEN, StatusCode::FORBIDDEN));
    let ledger = biller.ledger().await;
    assert_eq!((ledger.requests, ledger.effects.len()), (0, 0));
}

#[tokio::test]
async fn a_payment_is_taken_back_once_and_not_made_after_its_reversal() {
    let mut biller = Biller::new();
    biller.pay(&order(1, "bill-1")).await;

    let first = biller.reverse(101, 1).await;
    let again = biller.reverse(101, 1).await;
    let unseen = biller.reverse(102, 2).await;
    biller.restart();
    let late = biller.pay(&order(2, "bill-2")).await;

    assert_eq!(first.result(), ("SUCCESS", "00", false));
    assert_eq!(again.result(), ("SUCCESS", "00", true));
    assert_eq!(unseen.result(), ("SUCCESS", "00", false));
    assert_eq!(late.result(), ("FAILED", "12", false));
    let ledger = biller.ledger().await;
    let reversed: Vec<_> =
        ledger.reversals.iter().map(|it| (it.original.to_string(), it.was_paid)).collect();
    assert_eq!(reversed, [(reference(1), true), (reference(2), false)]);
    assert_eq!(ledger.effects.len(), 1);
}

/// A simulator without sockets.
struct Biller {
    router: Router,
    connection: CancellationToken,
    folder: TempDir,
}

impl Biller {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let router = App::open(&folder.path().join("journal")).unwrap().router();
        Self { router, connection: CancellationToken::new(), folder }
    }

    /// What SIGKILL and a new start leave: the journal alone.
    fn restart(&mut self) {
        self.router = App::open(&self.folder.path().join("journal")).unwrap().router();
    }

    async fn pay(&self, body: &[u8]) -> Answer {
        self.post("/v1/payments", Some(&mac_of(body)), body).await
    }

    async fn enquire(&self, reference: &str) -> Answer {
        let body = json!({"enquiry": ENQUIRY, "reference": reference, "biller": "pln"}).to_string();
        self.post("/v1/enquiries", Some(&mac_of(body.as_bytes())), body.as_bytes()).await
    }

    async fn reverse(&self, own: usize, original: usize) -> Answer {
        let body = json!({"reference": reference(own), "original": reference(original),
            "biller": "pln", "bill_id": "bill-1", "customer_id": "customer-1",
            "amount": {"value": "127000.00", "currency": "IDR"}})
        .to_string();
        self.post("/v1/reversals", Some(&mac_of(body.as_bytes())), body.as_bytes()).await
    }

    async fn set(&self, fault: Fault) {
        let answer = self.post("/control", None, &serde_json::to_vec(&fault).unwrap()).await;
        assert_eq!(answer.status, StatusCode::NO_CONTENT);
    }

    async fn ledger(&self) -> LedgerReport {
        let request = Request::get("/control/ledger").body(Body::empty());
        serde_json::from_slice(&self.send("operator", request).await.body).unwrap()
    }

    async fn post(&self, path: &str, mac: Option<&str>, body: &[u8]) -> Answer {
        let mut request = Request::post(path);
        if let Some(mac) = mac {
            request = request.header("tollgate-mac", mac);
        }
        self.send("tollgate", request.body(Body::from(body.to_vec()))).await
    }

    async fn send(&self, name: &str, request: axum::http::Result<Request<Body>>) -> Answer {
        let mut request = request.unwrap();
        request.extensions_mut().insert(Identity(format!("spiffe://tollgate.test/{name}").into()));
        request.extensions_mut().insert(Connection(self.connection.clone()));
        let (head, body) = self.router.clone().oneshot(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer { status: head.status, headers: head.headers, body }
    }
}

const ENQUIRY: &str = "0190a0b0-0000-7000-8000-000000000001";

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn result(&self) -> (&'static str, &'static str, bool) {
        let json = self.json();
        let known = |text: &Value| {
            let words = ["SUCCESS", "FAILED", "00", "12", "51", "14", "55"];
            words.into_iter().find(|word| text == word).unwrap_or("something else")
        };
        let replayed = json["replayed"].as_bool().unwrap();
        (known(&json["status"]), known(&json["response_code"]), replayed)
    }

    fn has_right_mac(&self) -> bool {
        self.headers["tollgate-mac"].to_str().unwrap() == mac_of(&self.body)
    }
}

/// The header, computed here again and not by the code under test.
fn mac_of(body: &[u8]) -> String {
    let code = cmac_aes(&DemoKeys::load().value("zak.billing"), body).unwrap();
    format!("zak.billing:{}", hex::encode_upper(&code[..8]))
}

fn reference(number: usize) -> String {
    format!("01890000-0000-7000-8000-{number:012}")
}

fn order(number: usize, bill_id: &str) -> Vec<u8> {
    let body = json!({"reference": reference(number), "biller": "pln", "bill_id": bill_id,
        "customer_id": "customer-9", "amount": {"value": "127000.00", "currency": "IDR"}});
    serde_json::to_vec(&body).unwrap()
}

fn order_with_pin(number: usize, customer: &str, format: PinFormat, pin: &str) -> Vec<u8> {
    let label = if format == PinFormat::Iso4 { "zpk.billing-aes" } else { "zpk.billing" };
    let block = seal_pin(format, &DemoKeys::load().value(label), PAN, pin).unwrap();
    let mut body: Value = serde_json::from_slice(&order(number, "bill-1")).unwrap();
    body["customer_id"] = json!(customer);
    body["pan"] = json!(PAN);
    body["pin_block"] = json!(hex::encode_upper(block));
    body["pin_format"] = json!(format.to_string());
    serde_json::to_vec(&body).unwrap()
}

/// Runs `count` futures side by side.
async fn futures_of<F: Future<Output = Answer>>(count: usize, make: impl Fn() -> F) -> Vec<Answer> {
    let mut running: Vec<_> = (0..count).map(|_| Box::pin(make())).collect();
    let mut done = Vec::new();
    std::future::poll_fn(|context| {
        running.retain_mut(|future| match future.as_mut().poll(context) {
            std::task::Poll::Ready(answer) => {
                done.push(answer);
                false
            }
            std::task::Poll::Pending => true,
        });
        if running.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    done
}

const PAN: &str = "4761737909457820";
