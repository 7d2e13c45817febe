//! One event for every answer, on disk before the answer; and no secret in what is written.

use std::collections::HashSet;

use harness::acquirer::{Acquirer, Answer, Card, Client, Payment};
use harness::demo_keys::DemoKeys;
use harness::soft::pin::{PinFormat, clear_block};
use harness::world::World;
use reqwest::Method;
use serde_json::{Value, json};

use crate::canary::{Canaries, files_under};

#[tokio::test]
async fn every_answer_leaves_exactly_one_event_with_its_six_fields_before_it_arrives() {
    let mut world = World::start().await.unwrap();
    let mut seen = 0;
    let mut asked = Vec::new();

    for Asked { what, client, answer, event } in ask_everything(&mut world).await {
        let (answer, on_disk) = answer;
        let id = answer.header("x-request-id").unwrap().to_owned();
        let own: Vec<&Value> = on_disk.iter().filter(|event| event["request_id"] == *id).collect();
        assert_eq!(own.len(), 1, "{what}: {own:?}");
        let found = own[0];

        let Expected { status, kind, outcome, reason, resource } = event;
        assert_eq!(answer.status, status, "{what}: {answer:?}");
        assert_eq!(found["status"], status, "{what}");
        assert_eq!(found["event"]["type"], kind, "{what}: {found}");
        assert_eq!(found["outcome"], outcome, "{what}: {found}");
        assert_eq!(found["reason"].as_str().unwrap_or(""), reason, "{what}: {found}");
        let text = found["resource"]["type"].as_str().zip(found["resource"]["id"].as_str());
        let text = text.map(|(kind, id)| format!("{kind} {id}")).unwrap_or_default();
        assert!(text.starts_with(resource), "{what}: {text}");
        assert_six_fields(&what, client, found);
        seen = on_disk.len();
        asked.push(id);
    }

    let events = world.audit().unwrap();
    assert_eq!(events.len(), seen);
    let known: HashSet<_> = asked.iter().map(String::as_str).collect();
    assert_eq!(known.len(), asked.len(), "a request id came twice");
    let recorded: Vec<_> = events.iter().filter_map(|event| event["request_id"].as_str()).collect();
    assert_eq!(recorded, asked, "the order of the log is that of the answers");
    for (at, record) in world.audit_records().unwrap().iter().enumerate() {
        assert_eq!(record["seq"], at + 1, "{record}");
    }
}

/// Probes and figures would drown the trail; who may not look there is in it.
#[tokio::test]
async fn probes_leave_no_event_and_refused_probes_do() {
    let world = World::start().await.unwrap();
    let before = world.audit().unwrap().len();

    for path in ["/healthz", "/readyz", "/metrics"] {
        let good = send(&world.admin("monitor").unwrap(), Method::GET, path, &[], "").await;
        assert_eq!((good.status.as_u16(), world.audit().unwrap().len()), (200, before), "{path}");
    }
    let refused = send(&world.admin("acquirer-a").unwrap(), Method::GET, "/metrics", &[], "").await;

    let events = world.audit().unwrap();
    assert_eq!((refused.status.as_u16(), events.len()), (403, before + 1));
    assert_eq!(events[before]["event"]["type"], "authz.deny");
    assert_eq!(events[before]["request_id"].as_str(), refused.header("x-request-id"));
}

#[tokio::test]
async fn no_secret_stands_in_audit_logs_figures_database_or_its_write_ahead_log() {
    let mut world = World::start().await.unwrap();
    let (client, acquirer) = (world.client("acquirer-a").unwrap(), Acquirer::a());
    let card = Card { pan: PAN.to_owned(), pin: PIN.to_owned() };
    let block = acquirer.pin_block(PIN, PAN, PinFormat::Iso0).unwrap();
    let message = hex::decode("7B1FC5D0937E4A2286E35FA104BD69C8").unwrap();
    let mut canaries = canaries(&world)
        .bytes("PIN block", &hex::decode(&block).unwrap())
        .bytes("message", &message)
        .bytes("MAC", &hex::decode(acquirer.mac(&message)).unwrap());

    // PIN and MAC operations, good and bad.
    let translation = translation(&block);
    let good = send(&client, Method::POST, "/v1/pin/translate", &[], &translation).await;
    let translated = good.json()["pin_block"].as_str().unwrap().to_owned();
    canaries = canaries.bytes("translated block", &hex::decode(translated).unwrap());
    let other = translation.replace("zpk.acquirer-a", "zpk.acquirer-b");
    send(&client, Method::POST, "/v1/pin/translate", &[], &other).await;
    send(&client, Method::POST, "/v1/pin/translate", &[], &translation.replace("iso0", "iso3"))
        .await;
    send(&client, Method::POST, "/v1/pin/translate", &[], &translation[1..]).await;
    let made = client.generate_mac("zak.acquirer-a", &message).await.unwrap();
    assert!(client.verify_mac("zak.acquirer-a", &message, &made.mac).await.unwrap());
    assert!(!client.verify_mac("zak.acquirer-c", &message, &made.mac).await.unwrap());
    // Payments by card: paid, stored while the biller is away, and delivered later.
    let payment = |bill: &str| Payment { card: Some(card.clone()), ..Payment::of("pln", bill) };
    let mut ids = Vec::new();
    for bill in ["paid", "stored"] {
        let body = acquirer.payment_body(&payment(bill)).unwrap();
        let sent: Value = serde_json::from_slice(&body).unwrap();
        canaries = canaries
            .bytes(&format!("MAC, {bill}"), &hex::decode(acquirer.mac(&body)).unwrap())
            .bytes(
                &format!("block, {bill}"),
                &hex::decode(sent["pin_block"].as_str().unwrap()).unwrap(),
            );
        let answer = client.pay(&acquirer, bill, body).await.unwrap();
        canaries = canaries.bytes(
            &format!("answer's MAC, {bill}"),
            &hex::decode(acquirer.mac(&answer.body)).unwrap(),
        );
        ids.push(answer.json()["id"].as_str().unwrap().to_owned());
        world.kill_billing();
    }

    let stored = client.payment(&ids[1]).await.unwrap().json();
    assert_eq!(stored["status"], "PENDING", "{stored}");
    assert_clean(&world, &canaries).await;
    world.start_billing().await.unwrap();
    let limit = tokio::time::Instant::now() + std::time::Duration::from_secs(15);
    while client.payment(&ids[1]).await.unwrap().json()["status"] == "PENDING" {
        assert!(tokio::time::Instant::now() < limit, "not delivered");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_clean(&world, &canaries).await;
    world.stop_gateway().await.unwrap();
    assert_eq!(canaries.found_under(world.dir()), [""; 0]);
}

/// Every form of every secret, planted where the gateway writes, is found there.
#[tokio::test]
async fn the_search_for_secrets_finds_each_that_is_planted() {
    let world = World::start().await.unwrap();
    let canaries = canaries(&world);
    assert_eq!(canaries.found_under(world.dir()), [""; 0]);

    for (at, form) in canaries.forms().iter().enumerate() {
        let place = ["data/planted", "planted.log", "audit.planted"][at % 3];
        let file = world.dir().join(place);
        std::fs::write(&file, [b"before ", form.bytes.as_slice(), b" behind"].concat()).unwrap();

        let found = canaries.found_under(world.dir());

        let line = format!("{}: {}", file.display(), form.name);
        assert!(found.contains(&line), "{} is not among {found:?}", form.name);
        std::fs::remove_file(&file).unwrap();
    }
}

/// One request, its answer with the log as it was when the answer came, and what must stand there.
struct Asked {
    what: String,
    client: &'static str,
    answer: (Answer, Vec<Value>),
    event: Expected,
}

struct Expected {
    status: u16,
    kind: &'static str,
    outcome: &'static str,
    /// Empty for none.
    reason: &'static str,
    /// How the resource's type and id begin.
    resource: &'static str,
}

async fn ask_everything(world: &mut World) -> Vec<Asked> {
    let acquirer = Acquirer::a();
    let block = acquirer.pin_block("1234", PAN, PinFormat::Iso0).unwrap();
    let good = translation(&block);
    let mac = |key: &str| format!(r#"{{"key":"{key}","message":"00112233"}}"#);
    let code = acquirer.mac(&[0x00, 0x11, 0x22, 0x33]);
    let verify =
        |mac: &str| format!(r#"{{"key":"zak.acquirer-a","message":"00112233","mac":"{mac}"}}"#);
    let body = |biller: &str| {
        let body = acquirer.payment_body(&Payment::of(biller, "bill-1").by_card()).unwrap();
        String::from_utf8(body).unwrap()
    };
    let paid = body("pln");
    let pay = |key: &'static str, body: &str| {
        vec![
            ("idempotency-key", key.to_owned()),
            ("tollgate-mac", acquirer.mac_header(body.as_bytes())),
        ]
    };
    let unsigned = vec![("idempotency-key", "\"e\"".to_owned())];
    let text = vec![("content-type", "text/plain".to_owned())];
    let zones = "key zpk.acquirer-a>zpk.billing";
    let (post, get) = (Method::POST, Method::GET);
    let (translate, generate, check, payments) =
        ("/v1/pin/translate", "/v1/mac/generate", "/v1/mac/verify", "/v1/payments");
    let unknown = "/v1/payments/01890a5d-ac96-774b-bcce-b302099a8057";
    let a = "acquirer-a";
    let none = String::new();
    let at_translate = "route POST /v1/pin/translate";
    let (at_payments, at_document) = ("route POST /v1/payments", "route GET /openapi.json");
    #[rustfmt::skip]
    let rows = [
        ("a translation", a, &post, translate, vec![], good.clone(),
            (200, "pin.translate", "success", "", zones)),
        ("a bad block", a, &post, translate, vec![], good.replace(PAN, "4761737909457820"),
            (422, "pin.translate", "failure", "refused", zones)),
        ("no zone of his", a, &post, translate, vec![], good.replace("zpk.acquirer-a", "zpk.acquirer-b"),
            (403, "pin.translate", "denied", "not-allowed", "key zpk.acquirer-b>zpk.billing")),
        ("no JSON", a, &post, translate, vec![], good[1..].to_owned(),
            (400, "pin.translate", "failure", "malformed-request", at_translate)),
        ("a long body", a, &post, translate, vec![], " ".repeat(100_000),
            (400, "request.malformed", "failure", "malformed-request", at_translate)),
        ("text", a, &post, translate, text, good.clone(),
            (415, "http.reject", "failure", "unsupported-media-type", at_translate)),
        ("no grant", "terminal-1", &post, translate, vec![], good.clone(),
            (403, "pin.translate", "denied", "not-allowed", zones)),
        ("no client", "operator", &post, translate, vec![], good.clone(),
            (403, "authz.deny", "denied", "not-allowed", at_translate)),
        ("a MAC", a, &post, generate, vec![], mac("zak.acquirer-a"),
            (200, "mac.generate", "success", "", "key zak.acquirer-a")),
        ("no key of his", a, &post, generate, vec![], mac("zak.acquirer-b"),
            (403, "mac.generate", "denied", "not-allowed", "key zak.acquirer-b")),
        ("a right MAC", a, &post, check, vec![], verify(&code),
            (200, "mac.verify", "success", "", "key zak.acquirer-a")),
        ("a wrong MAC", a, &post, check, vec![], verify("0011223344556677"),
            (200, "mac.verify", "failure", "mac-wrong", "key zak.acquirer-a")),
        ("a payment", a, &post, payments, pay("\"p\"", &paid), paid.clone(),
            (200, "payment.accept", "success", "", "payment ")),
        ("the same again", a, &post, payments, pay("\"p\"", &paid), paid.clone(),
            (200, "payment.accept", "success", "", "payment ")),
        ("its key reused", a, &post, payments, pay("\"p\"", &body("pdam")), body("pdam"),
            (422, "payment.accept", "failure", "idempotency-key-reused", at_payments)),
        ("no MAC", a, &post, payments, unsigned, paid.clone(),
            (422, "payment.accept", "failure", "mac-wrong", at_payments)),
        ("no key", a, &post, payments, vec![], paid.clone(),
            (400, "payment.accept", "failure", "malformed-request", at_payments)),
        ("an unknown payment", a, &get, unknown, vec![], none.clone(),
            (404, "payment.read", "failure", "unknown-payment", "payment 01890a5d")),
        ("no path", a, &get, "/v1/nothing", vec![], none.clone(),
            (404, "http.reject", "failure", "unknown-route", "route GET (unknown)")),
        ("another method", a, &get, translate, vec![], none.clone(),
            (405, "http.reject", "failure", "method-not-allowed", "route GET /v1/pin/translate")),
        ("the document", "auditor", &get, "admin/openapi.json", vec![], none.clone(),
            (200, "admin.read", "success", "", at_document)),
        ("no admin", a, &get, "admin/openapi.json", vec![], none.clone(),
            (403, "authz.deny", "denied", "not-allowed", at_document)),
        ("a biller away", a, &post, payments, pay("\"t\"", &body("telkom")), body("telkom"),
            (503, "payment.accept", "error", "backend-unavailable", at_payments)),
    ];
    let mut asked = Vec::new();
    for (what, client, method, path, headers, body, event) in rows {
        if what == "a biller away" {
            world.kill_billing();
        }
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let http = match path.strip_prefix("admin") {
            Some(_) => world.admin(client),
            None => world.client(client),
        };
        let path = path.trim_start_matches("admin");
        let answer = send(&http.unwrap(), method.clone(), path, &headers, &body).await;
        let on_disk = world.audit().unwrap();
        let (status, kind, outcome, reason, resource) = event;
        let event = Expected { status, kind, outcome, reason, resource };
        asked.push(Asked { what: what.to_owned(), client, answer: (answer, on_disk), event });
    }
    asked
}

/// PCI DSS 10.2.2: who, what, when, how it ended, from where, on what.
fn assert_six_fields(what: &str, client: &str, event: &Value) {
    assert_eq!(event["actor"]["id"], client, "{what}");
    assert!(event["actor"]["cert"]["serial"].is_string(), "{what}: {event}");
    assert!(event["event"]["type"].is_string() && event["event"]["id"].is_string(), "{what}");
    let time: jiff::Timestamp = event["time"].as_str().unwrap().parse().unwrap();
    let age = jiff::Timestamp::now().duration_since(time);
    assert!(age < jiff::SignedDuration::from_mins(1), "{what}: {time}");
    assert!(event["outcome"].is_string(), "{what}");
    assert_eq!(event["src"]["ip"], "127.0.0.1", "{what}");
    assert!(event["src"]["port"].as_u64() > Some(0) && event["replica"].is_string(), "{what}");
    assert!(event["resource"]["type"].is_string() && event["resource"]["id"].is_string(), "{what}");
}

/// What no file, figure or command line may hold: card, PIN, clear blocks, keys, the HSM PIN.
pub(crate) fn canaries(world: &World) -> Canaries {
    let mut canaries = Canaries::default()
        .digits("PAN", PAN)
        .digits("PIN", PIN)
        .bytes("clear field", &hex::decode(format!("0C{PIN}FF")).unwrap())
        .bytes("clear block", &clear_block(PinFormat::Iso0, PIN, PAN, "").unwrap());
    let keys = DemoKeys::load();
    for key in keys.iter() {
        canaries = canaries.bytes(&key.label, &keys.value(&key.label));
    }
    let pin = std::fs::read_to_string(world.dir().join("token/user-pin")).unwrap();
    canaries.bytes("HSM PIN", pin.trim_end().as_bytes())
}

/// Files, figures and command lines, while the gateway runs.
async fn assert_clean(world: &World, canaries: &Canaries) {
    let names: Vec<String> =
        files_under(world.dir()).iter().map(|path| path.display().to_string()).collect();
    for end in ["gateway.log", ".jsonl", "tollgate.sqlite", "tollgate.sqlite-wal"] {
        assert!(names.iter().any(|name| name.ends_with(end)), "{end} is not among {names:?}");
    }
    assert_eq!(canaries.found_under(world.dir()), [""; 0]);
    let figures = send(&world.admin("monitor").unwrap(), Method::GET, "/metrics", &[], "").await;
    assert_eq!(canaries.found_in(&figures.body), [""; 0], "/metrics");
    let processes = world.workers().into_iter().chain([world.gateway().unwrap().id()]);
    for process in processes {
        let line = std::fs::read(format!("/proc/{process}/cmdline")).unwrap();
        assert_eq!(canaries.found_in(&line), [""; 0], "the command line of {process}");
    }
}

pub(crate) async fn send(
    client: &Client,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Answer {
    client.send(method, path, headers, body.as_bytes().to_vec()).await.unwrap()
}

pub(crate) fn translation(block: &str) -> String {
    let body = json!({"pan": PAN, "pin_block": block,
        "from": {"key": "zpk.acquirer-a", "format": "iso0"},
        "to": {"key": "zpk.billing", "format": "iso0"}});
    body.to_string()
}

pub(crate) const PAN: &str = "5186732198046537";
pub(crate) const PIN: &str = "918273645546";
