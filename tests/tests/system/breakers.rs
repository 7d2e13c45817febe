//! An operator forces a breaker open and closes it again: at once, over a restart, on record.

use std::process::Output;
use std::time::Duration;

use harness::acquirer::{Answer, Payment};
use harness::world::{Wanted, World};
use serde_json::{Value, json};

use crate::support::{Counter, assert_refused, get, good, post, telkom, text, tollgate, until};

const TELKOM: &str = "biller.telkom";

#[tokio::test]
async fn a_breaker_that_is_forced_open_stays_so_over_a_restart_until_it_is_reset() {
    let mut world = World::start().await.unwrap();
    let counter = Counter::a(&world);
    let paid = pay(&counter, "before").await;
    assert_eq!(paid.status, 200, "{paid:?}");

    let forced =
        links(&world, "operator", &["force-open", TELKOM, "--reason", "maintenance"]).await;

    assert_eq!(good(&forced), "biller.telkom is forced_open\n");
    let asked = "tollgate_backend_requests_total{backend=\"telkom\"";
    let before = world.metric(asked).await.unwrap();
    assert_refused(&pay(&counter, "forced").await, "backend-unavailable");
    assert_eq!(world.metric(asked).await.unwrap().to_bits(), before.to_bits(), "nobody was asked");
    let other = counter.body(&Payment::of("pln", "other"));
    assert_eq!(counter.pay("other", &other).await.status, 200, "another biller goes on");
    world.stop_gateway().await.unwrap();
    world.start_gateway().await.unwrap();
    let counter = Counter::a(&world);
    assert_refused(&pay(&counter, "restarted").await, "backend-unavailable");
    let listed = good(&links(&world, "monitor", &["list"]).await);
    let row = listed.lines().find(|line| line.starts_with(TELKOM)).unwrap();
    let words: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(words, [TELKOM, "breaker", "forced_open", "by", "operator:", "maintenance"]);
    let reset = links(&world, "operator", &["reset", TELKOM, "--reason", "it is back"]).await;
    assert_eq!(good(&reset), "biller.telkom is closed\n");
    let paid = pay(&counter, "after").await;
    assert_eq!(paid.status, 200, "{paid:?}");
    for (kind, note) in [("breaker.force", "maintenance"), ("link.reset", "it is back")] {
        let event = find(&world, kind, note).unwrap();
        assert_eq!(event["actor"]["id"], "operator", "{event}");
        assert_eq!(event["resource"]["id"], TELKOM, "{event}");
        assert_eq!(event["outcome"], "success", "{event}");
    }
    until("the transition is on record", Duration::from_secs(5), async || {
        find(&world, "breaker.transition", "forced_open to closed: reset").is_some()
    })
    .await;
}

/// Breakers of a biller are named by the position of their URLs: an order outlives its URL.
#[tokio::test]
async fn an_order_whose_url_was_taken_away_is_told_at_the_start_and_ended_by_a_reset() {
    let gone = "biller.telkom.2";
    let add = |table: &mut toml::Table| {
        let backup = toml::Value::from("https://127.0.0.1:1/");
        telkom(table).insert("backup_urls".into(), toml::Value::Array(vec![backup]));
    };
    let wanted = Wanted { edit: Some(Box::new(add)), ..Wanted::default() };
    let mut world = World::start_as(wanted).await.unwrap();
    let forced = links(&world, "operator", &["force-open", gone, "--reason", "maintenance"]).await;
    good(&forced);
    world.stop_gateway().await.unwrap();

    let mut table = toml::from_str(&std::fs::read_to_string(world.config()).unwrap()).unwrap();
    telkom(&mut table).remove("backup_urls");
    std::fs::write(world.config(), toml::to_string(&table).unwrap()).unwrap();
    world.start_gateway().await.unwrap();
    let log = std::fs::read_to_string(world.dir().join("gateway.log")).unwrap();
    let reset = ["reset", gone, "--reason", "its URL is gone"];
    let ended = links(&world, "operator", &reset).await;
    let again = links(&world, "operator", &reset).await;

    let told = log.lines().find(|line| line.contains("does not exist")).unwrap();
    assert!([gone, "maintenance", "operator"].iter().all(|word| told.contains(word)), "{told}");
    assert_eq!(good(&ended), "biller.telkom.2 is no breaker any more; its order is ended\n");
    assert!(String::from_utf8_lossy(&again.stderr).contains("404"), "{again:?}");
    let event = find(&world, "link.reset", "its URL is gone").unwrap();
    assert_eq!((&event["resource"]["id"], &event["outcome"]), (&json!(gone), &json!("success")));
}

#[tokio::test]
async fn every_admin_role_sees_the_breakers_and_operators_alone_change_them() {
    let world = World::start().await.unwrap();
    let force = format!("/v1/breakers/{TELKOM}/force-open");

    for name in ["monitor", "auditor", "key-officer", "acquirer-a"] {
        let client = world.admin(name).unwrap();
        let seen = get(&client, "/v1/breakers").await.status;
        assert_eq!(seen, if name == "acquirer-a" { 403 } else { 200 }, "{name}");
        for order in ["force-open", "disable", "reset"] {
            let path = format!("/v1/breakers/{TELKOM}/{order}");
            let refused = post(&client, &path, &json!({"reason": "r"})).await;
            assert_eq!(refused.slug().as_deref(), Some("not-allowed"), "{name} {order}");
        }
    }

    let operator = world.admin("operator").unwrap();
    for (path, body, status, told) in [
        (force.as_str(), json!({}), 400, "missing field reason"),
        (&force, json!({"reason": " "}), 400, "reason: must be"),
        (&force, json!({"reason": "r", "for_s": 1}), 400, "unknown field for_s"),
        ("/v1/breakers/biller.unknown/force-open", json!({"reason": "r"}), 404, ""),
        ("/v1/breakers/biller.telkom/bless", json!({"reason": "r"}), 404, ""),
    ] {
        let refused = post(&operator, path, &body).await;
        let detail = refused.json()["detail"].as_str().unwrap_or_default().to_owned();
        assert_eq!(refused.status, status, "{path} {body} {refused:?}");
        assert!(detail.starts_with(told), "{detail}");
    }
    assert_eq!(get(&operator, "/v1/breakers/biller.unknown").await.status, 404);
    let shown = get(&operator, "/v1/breakers/biller.telkom").await;
    assert_eq!((text(&shown, "state"), &shown.json()["forced"]), ("closed".into(), &Value::Null));
    let listed = get(&operator, "/v1/breakers").await.json();
    let mut names: Vec<&str> = listed["breakers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|breaker| breaker["name"].as_str().unwrap())
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["biller.pdam", "biller.pln", TELKOM, "hsm"]);
    let silent = links(&world, "operator", &["disable", TELKOM]).await;
    assert_eq!(silent.status.code(), Some(2), "an order needs a reason");
}

async fn pay(counter: &Counter, bill: &str) -> Answer {
    let body = counter.body(&Payment::of("telkom", bill));
    counter.pay(bill, &body).await
}

/// `tollgate links ...` with somebody's certificate.
async fn links(world: &World, name: &str, arguments: &[&str]) -> Output {
    tollgate(world, name, &[&["links"], arguments].concat()).await
}

fn find(world: &World, kind: &str, note: &str) -> Option<Value> {
    let events = world.audit().unwrap();
    events.into_iter().find(|event| event["event"]["type"] == kind && event["note"] == note)
}
