//! A client does not wait for its answer: what was refused is counted and on record all the same,
//! and what it was told last stays true.

use std::net::TcpListener;
use std::time::Duration;

use harness::acquirer::Payment;
use harness::demo_keys::DemoKeys;
use harness::soft::pin::{PinFormat, seal_pin};
use harness::world::{Wanted, World};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::support::{Counter, telkom, text, until};
use crate::terminal::{PAN, PIN, ask, refusal};

const RECORDED: Duration = Duration::from_secs(5);

/// A token that takes half a second for a PIN block, and what a test changes.
async fn slow_world(limits: &'static [(&'static str, i64)]) -> World {
    let edit = move |table: &mut toml::Table| {
        for (key, value) in limits {
            table["limits"].as_table_mut().unwrap().insert((*key).into(), (*value).into());
        }
    };
    let wanted = Wanted { shim: true, edit: Some(Box::new(edit)), ..Wanted::default() };
    let world = World::start_as(wanted).await.unwrap();
    world.shim_control("Decrypt delay 500").await.unwrap();
    world
}

fn find(world: &World, kind: &str, found: impl Fn(&Value) -> bool) -> Option<Value> {
    let events = world.audit().unwrap();
    events.into_iter().find(|event| event["event"]["type"] == kind && found(event))
}

/// Or whoever hangs up learns from the time that it takes, and is never stopped.
#[tokio::test]
async fn bad_pin_blocks_of_a_client_that_hangs_up_are_counted() {
    let world = slow_world(&[("malformed_blocks_per_minute", 2)]).await;
    let client = world.client("acquirer-a").unwrap();
    let key = DemoKeys::load().value("zpk.acquirer-a");
    let good = hex::encode(seal_pin(PinFormat::Iso0, &key, PAN, PIN).unwrap());
    let body = |block: &str| {
        json!({"pan": PAN, "pin_block": block,
            "from": {"key": "zpk.acquirer-a", "format": "iso0"},
            "to": {"key": "zpk.billing", "format": "iso0"}})
    };

    for bad in 0..3u8 {
        let bad = body(&hex::encode([bad; 8]));
        let asked = ask(&client, "/v1/pin/translate", &bad);
        assert!(timeout(Duration::from_millis(250), asked).await.is_err());
    }

    until("the third one takes the key out of use", RECORDED, async || {
        find(&world, "pin.sanity_burst", |_| true).is_some()
    })
    .await;
    let after = ask(&client, "/v1/pin/translate", &body(&good)).await;
    assert_eq!(refusal(&after), (403, "not-allowed".into()));
}

#[tokio::test]
async fn a_pin_block_that_a_payment_is_refused_for_is_on_record_when_its_client_has_gone() {
    let world = slow_world(&[]).await;
    let counter = Counter::a(&world);
    let mut body: Value =
        serde_json::from_slice(&counter.body(&Payment::of("pln", "bad-block").by_card())).unwrap();
    body["pin_block"] = json!("0000000000000000");

    let asked = counter.client.pay(&counter.acquirer, "bad-block", body.to_string().into_bytes());
    assert!(timeout(Duration::from_millis(250), asked).await.is_err());

    let refused = |event: &Value| event["reason"] == "refused";
    until("its refusal", RECORDED, async || find(&world, "pin.translate", refused).is_some()).await;
    let event = find(&world, "pin.translate", refused).unwrap();
    assert_eq!(event["outcome"], "failure", "{event}");
    assert_eq!(event["actor"]["id"], "acquirer-a", "{event}");
    assert_eq!(event["resource"]["id"], "zpk.acquirer-a>zpk.billing-aes", "{event}");
}

/// Told as underway it is known by its id. Made anew under its key it would be paid after its client
/// was told that it failed.
#[tokio::test]
async fn a_payment_that_was_told_as_underway_and_fails_stays_failed_under_its_key() {
    let edit = |table: &mut toml::Table| {
        // One heartbeat: the second one would open the breaker before the payment is sent.
        let rare = [("every_ms", 60_000), ("sick_ms", 60_000)];
        let rare = rare.map(|(key, value)| (key.to_owned(), toml::Value::Integer(value)));
        telkom(table).insert("health".into(), toml::Table::from_iter(rare).into());
    };
    let mut world =
        World::prepare(Wanted { edit: Some(Box::new(edit)), ..Wanted::default() }).unwrap();
    let silent = TcpListener::bind(("127.0.0.1", world.ports.billing)).unwrap();
    world.start_gateway().await.unwrap();
    let counter = Counter::a(&world);
    let body = counter.body(&Payment::of("telkom", "underway"));
    let signature = counter.acquirer.mac_header(&body);
    let headers = [
        ("Request-Timeout", "0.5"),
        ("Idempotency-Key", "\"underway\""),
        ("Tollgate-Mac", signature.as_str()),
    ];

    let told = counter.client.send(Method::POST, "/v1/payments", &headers, body.clone()).await;
    let told = told.unwrap();
    assert_eq!((told.status.as_u16(), text(&told, "status")), (202, "PROCESSING".into()));
    let id = text(&told, "id");
    until("given up", Duration::from_secs(20), async || counter.status(&id).await == "FAILED")
        .await;
    drop(silent);
    world.start_billing().await.unwrap();

    let again = counter.pay("underway", &body).await;
    assert_eq!((again.status.as_u16(), text(&again, "status")), (200, "FAILED".into()));
    assert_eq!(
        (text(&again, "id"), again.header("idempotency-replayed")),
        (id.clone(), Some("true"))
    );
    assert_eq!(counter.status(&id).await, "FAILED");
    assert!(world.billing_control().unwrap().ledger().await.unwrap().effects.is_empty());
    let of_it = |event: &Value| event["resource"]["id"] == id.as_str();
    until("its end", RECORDED, async || find(&world, "queue.deliver", of_it).is_some()).await;
    let event = find(&world, "queue.deliver", of_it).unwrap();
    assert_eq!((&event["outcome"], &event["link"]), (&json!("failure"), &json!("telkom")));
    assert_eq!(event["reason"], "backend-unavailable", "{event}");
    let failed = "tollgate_payments_total{biller=\"telkom\",status=\"FAILED\"}";
    assert!((world.metric(failed).await.unwrap() - 1.0).abs() < 0.5);
}
