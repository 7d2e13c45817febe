//! Operators at the queue: they look, hold, release, retry, cancel and settle, alone or two together,
//! and keep a biller paused; over the admin API and the command line, and on record.

use std::process::Output;
use std::time::Duration;

use harness::acquirer::{Answer, Client, Payment};
use harness::billing::{Fault, Mode};
use harness::world::World;
use serde_json::{Value, json};

use crate::support::{
    Counter, assert_paid_once, assert_refused, get, good, post, query, text, tollgate, until,
};

const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn two_operators_settle_what_may_have_been_paid_and_one_alone_does_not() {
    let world = World::start().await.unwrap();
    let counter = Counter::a(&world);
    let (first, second) = (world.admin("operator").unwrap(), world.admin("operator-2").unwrap());
    let control = world.billing_control().unwrap();
    control.set_mode(Fault::always(Mode::CutAfter)).await.unwrap();
    let body = counter.body(&Payment::of("telkom", "in-doubt"));
    let held = counter.pay("in-doubt", &body).await;
    assert_eq!((held.status.as_u16(), &*text(&held, "status")), (202, "HELD"), "{held:?}");
    let id = text(&held, "id");
    let paid = json!({"outcome": "paid", "response_code": "00", "reason": "their report"});
    let failed = json!({"outcome": "failed", "reason": "their report"});

    let cancelled = act(&first, &id, "cancel", &because("a mistake")).await;
    let proposed = act(&first, &id, "settle", &paid).await;
    let alone = act(&first, &id, "settle", &paid).await;
    let otherwise = act(&second, &id, "settle", &failed).await;
    let shown = get(&second, &format!("/v1/queue/{id}")).await.json();
    let settled = act(&second, &id, "settle", &paid).await;

    assert_state(&cancelled, "not-in-this-state", "it may have been paid");
    assert_eq!((proposed.status.as_u16(), &*text(&proposed, "decision")), (202, "proposed"));
    let told = alone.json()["detail"].as_str().unwrap_or_default().to_owned();
    assert_eq!((alone.status.as_u16(), alone.slug().as_deref()), (403, Some("not-allowed")));
    assert!(told.contains("another operator must confirm"), "{told}");
    assert_state(&otherwise, "not-in-this-state", "settle (paid, 00) is proposed by operator");
    assert_eq!(shown["decision"]["proposer"], "operator", "{shown}");
    assert_eq!((&shown["status"], &shown["sent_unknown"]), (&json!("HELD"), &json!(true)));
    assert_eq!((settled.status.as_u16(), &*text(&settled, "status")), (200, "SUCCESS"));
    let repeat = counter.pay("in-doubt", &body).await;
    assert_eq!((repeat.status.as_u16(), &*text(&repeat, "status")), (200, "SUCCESS"));
    assert_eq!(text(&repeat, "response_code"), "00");
    assert_eq!(repeat.header("idempotency-replayed"), Some("true"));
    assert!(counter.acquirer.proves(&repeat));
    let again = act(&second, &id, "settle", &paid).await;
    assert_state(&again, "not-in-this-state", "it has ended");
    let steps: Vec<[String; 5]> = events(&world, &id).iter().map(step).collect();
    let row = |row: [&str; 5]| row.map(str::to_owned);
    let (one, two) = ("operator", "operator-2");
    assert_eq!(
        steps,
        [
            row(["queue.cancel", "not-in-this-state", one, "", "a mistake"]),
            row(["queue.settle", "proposed", one, "", "their report"]),
            row(["queue.settle", "not-allowed", one, one, "their report"]),
            row(["queue.settle", "not-in-this-state", two, one, "their report"]),
            row(["queue.settle", "approved", two, one, "their report"]),
            row(["queue.settle", "not-in-this-state", two, "", "their report"]),
        ]
    );
}

#[tokio::test]
async fn a_paused_biller_gets_nothing_over_a_restart_until_it_is_resumed() {
    let mut world = World::start().await.unwrap();
    let counter = Counter::a(&world);
    let paused = queue(&world, "operator", &["pause", "pdam", "--reason", "their move"]).await;
    assert_eq!(row_of(&good(&paused), "pdam")[..2], ["pdam", "true"]);

    let waits = counter.pay("waits", &counter.body(&Payment::of("pdam", "waits"))).await;
    let may_not_wait = counter.body(&Payment::of("pdam", "pin").by_card());
    assert_refused(&counter.pay("pin", &may_not_wait).await, "backend-unavailable");
    let other = counter.pay("other", &counter.body(&Payment::of("pln", "other"))).await;
    let figure = "tollgate_queue_paused{biller=\"pdam\"}";
    until("the pause shows", SOON, async || world.metric(figure).await.unwrap() > 0.5).await;
    world.stop_gateway().await.unwrap();
    world.start_gateway().await.unwrap();
    let counter = Counter::a(&world);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let id = text(&waits, "id");
    let after_a_restart = counter.status(&id).await;
    let sent = world.billing_control().unwrap().ledger().await.unwrap().effects.len();
    let stats = queue(&world, "monitor", &["stats"]).await;
    let resume = ["resume", "pdam", "--reason", "they are back", "--wait"];
    let resumed = queue(&world, "operator", &resume).await;

    assert_eq!((waits.status.as_u16(), other.status.as_u16()), (202, 200), "{waits:?} {other:?}");
    assert_eq!((after_a_restart.as_str(), sent), ("PENDING", 1));
    assert_eq!(row_of(&good(&stats), "pdam")[..3], ["pdam", "PENDING", "normal"]);
    assert_eq!(row_of(&good(&resumed), "pdam")[..2], ["pdam", "false"]);
    assert_eq!(counter.status(&id).await, "SUCCESS");
    for (kind, note) in [("queue.pause", "their move"), ("queue.resume", "they are back")] {
        let events = world.audit().unwrap();
        let event = events.iter().find(|event| event["event"]["type"] == kind).unwrap();
        assert_eq!((&event["actor"]["id"], &event["note"]), (&json!("operator"), &json!(note)));
        assert_eq!(event["resource"], json!({"type": "queue", "id": "pdam"}));
    }
    let unknown = queue(&world, "operator", &["pause", "nobody", "--reason", "r"]).await;
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("404"), "{unknown:?}");
}

#[tokio::test]
async fn the_command_line_lists_holds_releases_cancels_and_follows_a_payment() {
    let mut world = World::start().await.unwrap();
    let counter = Counter::a(&world);
    world.kill_billing();
    let pay = async |bill: &str| {
        let payment = Payment::of("pdam", bill);
        text(&counter.pay(bill, &counter.body(&payment)).await, "id")
    };
    let (kept, dropped, again) = (pay("kept").await, pay("dropped").await, pay("again").await);
    let with_pin = counter.body(&Payment::of("pln", "with-pin").by_card());
    let with_pin = text(&counter.pay("with-pin", &with_pin).await, "id");
    let does = async |action: &str, id: &str| {
        queue(&world, "operator", &[action, id, "--reason", "as agreed"]).await
    };
    // It may be leased in this moment.
    let insists = async |action: &str, id: &str| {
        let mut done = None;
        until(action, SOON, async || {
            let output = does(action, id).await;
            let is_done = output.status.success();
            assert!(
                is_done || String::from_utf8_lossy(&output.stderr).contains("request-in-progress"),
                "{output:?}"
            );
            done = Some(output);
            is_done
        })
        .await;
        done.unwrap()
    };

    for id in [&kept, &with_pin, &again] {
        assert_eq!(row_of(&good(&insists("hold", id).await), id)[1..], ["hold", "made", "HELD"]);
    }
    let blocks = query(&world, "SELECT count(*) FROM saf_item WHERE pin_ct IS NOT NULL");
    let without_its_block = does("release", &with_pin).await;
    let cancelled = insists("cancel", &dropped).await;
    let twice = does("cancel", &dropped).await;
    let table = queue(&world, "monitor", &["list", "--biller", "pdam", "--oldest-first"]).await;
    let held = queue(&world, "auditor", &["list", "--dead", "--json"]).await;
    let shown = queue(&world, "monitor", &["show", &kept]).await;
    world.start_billing().await.unwrap();
    let back = ["--reason", "they are back", "--wait", "--timeout", "30"];
    let released = queue(&world, "operator", &[&["release", &kept][..], &back].concat()).await;
    let retried = queue(&world, "operator", &[&["retry", &again][..], &back].concat()).await;
    let missing = queue(&world, "operator", &["retry", &kept]).await;

    assert_eq!(blocks, "0", "a PIN block outlived its hold");
    assert_eq!(without_its_block.status.code(), Some(1));
    let told = String::from_utf8_lossy(&without_its_block.stderr).into_owned();
    assert!(told.contains("cancel it"), "{told}");
    assert_eq!(row_of(&good(&cancelled), &dropped)[1..], ["cancel", "made", "CANCELLED"]);
    assert!(String::from_utf8_lossy(&twice.stderr).contains("it has ended"), "{twice:?}");
    let table = good(&table);
    assert!(table.starts_with("SEQ  ID "), "{table}");
    let rows: Vec<Vec<&str>> =
        table.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0][1..6], [&*kept, "pdam", "normal", "HELD", "operator"]);
    assert_eq!(rows[1][1..5], [&*dropped, "pdam", "normal", "CANCELLED"]);
    let held: Value = serde_json::from_str(&good(&held)).unwrap();
    let reasons: Vec<&Value> =
        held.as_array().unwrap().iter().map(|row| &row["hold_reason"]).collect();
    assert_eq!(reasons, ["operator"; 3]);
    let shown = good(&shown);
    assert!(shown.contains("as agreed") && !shown.contains("pan"), "{shown}");
    assert_eq!(row_of(&good(&released), &kept)[1..], ["release", "made", "PENDING"]);
    assert_eq!(row_of(&good(&retried), &again)[1..], ["retry", "made", "PENDING"]);
    for followed in [&released, &retried] {
        assert!(String::from_utf8_lossy(&followed.stderr).ends_with("SUCCESS\n"), "{followed:?}");
    }
    assert_eq!(missing.status.code(), Some(2), "a change needs a reason");
    assert_eq!(counter.status(&kept).await, "SUCCESS");
    let repeat = counter.pay("dropped", &counter.body(&Payment::of("pdam", "dropped"))).await;
    assert_eq!((repeat.status.as_u16(), &*text(&repeat, "status")), (200, "CANCELLED"));
    let ledger = world.billing_control().unwrap().ledger().await.unwrap();
    assert_paid_once(&ledger);
    assert_eq!(ledger.effects.len(), 2);
}

#[tokio::test]
async fn a_command_that_needs_a_second_operator_ends_with_3_until_he_says_the_same() {
    let world = World::start().await.unwrap();
    let counter = Counter::a(&world);
    let control = world.billing_control().unwrap();
    control.set_mode(Fault::always(Mode::CutAfter)).await.unwrap();
    let held = counter.pay("in-doubt", &counter.body(&Payment::of("telkom", "in-doubt"))).await;
    let id = text(&held, "id");
    let settle = ["settle", &id, "--outcome", "failed", "--reason", "not in their report"];

    let first = queue(&world, "operator", &settle).await;
    let alone = queue(&world, "operator", &settle).await;
    let withdrawn = queue(&world, "operator", &["withdraw", &id, "--reason", "wrong bill"]).await;
    let anew = queue(&world, "operator-2", &[&settle[..], &["--json"]].concat()).await;
    let second = queue(&world, "operator", &settle).await;

    assert_eq!(first.status.code(), Some(3), "{first:?}");
    assert_eq!(alone.status.code(), Some(1), "{alone:?}");
    assert_eq!(row_of(&good(&withdrawn), &id)[1..4], ["withdraw", "withdrawn", "HELD"]);
    assert_eq!(anew.status.code(), Some(3), "{anew:?}");
    let anew: Value = serde_json::from_slice(&anew.stdout).unwrap();
    assert_eq!(
        (&anew[0]["decision"], &anew[0]["proposer"]),
        (&json!("proposed"), &json!("operator-2"))
    );
    assert_eq!(row_of(&good(&second), &id)[1..4], ["settle", "made", "FAILED"]);
    assert_eq!(counter.status(&id).await, "FAILED");
}

#[tokio::test]
async fn every_admin_role_sees_the_queue_and_operators_alone_change_it() {
    let world = World::start().await.unwrap();
    let id = uuid::Uuid::now_v7().to_string();
    let paths = ["/v1/queue", "/v1/queue/stats", "/v1/queue/targets"];

    for name in ["monitor", "auditor", "key-officer", "operator", "acquirer-a"] {
        let client = world.admin(name).unwrap();
        for path in paths {
            let seen = get(&client, path).await.status;
            assert_eq!(seen, if name == "acquirer-a" { 403 } else { 200 }, "{name} {path}");
        }
        if name == "operator" {
            continue;
        }
        for action in ["hold", "release", "retry", "cancel", "settle", "withdraw"] {
            let refused = act(&client, &id, action, &because("r")).await;
            assert_eq!(refused.slug().as_deref(), Some("not-allowed"), "{name} {action}");
        }
        for order in ["pause", "resume"] {
            let path = format!("/v1/queue/targets/pln/{order}");
            let refused = post(&client, &path, &because("r")).await;
            assert_eq!(refused.slug().as_deref(), Some("not-allowed"), "{name} {order}");
        }
    }

    let operator = world.admin("operator").unwrap();
    for (path, body, status, told) in [
        (format!("/v1/queue/{id}/hold"), json!({}), 400, "missing field reason"),
        (format!("/v1/queue/{id}/hold"), json!({"reason": "r", "x": 1}), 400, "unknown field x"),
        (format!("/v1/queue/{id}/settle"), because("r"), 400, "missing field outcome"),
        (format!("/v1/queue/{id}/hold"), because("r"), 404, ""),
        ("/v1/queue/1/hold".into(), because("r"), 404, ""),
        (format!("/v1/queue/{id}/bless"), because("r"), 404, ""),
        ("/v1/queue/targets/nobody/pause".into(), because("r"), 404, ""),
        ("/v1/queue/targets/pln/bless".into(), because("r"), 404, ""),
    ] {
        let refused = post(&operator, &path, &body).await;
        let detail = refused.json()["detail"].as_str().unwrap_or_default().to_owned();
        assert_eq!(refused.status, status, "{path} {body} {refused:?}");
        assert!(detail.starts_with(told), "{detail}");
    }
    for (query, status) in
        [("status=open", 400), ("limit=501", 400), ("x=1", 400), ("dead=true", 200)]
    {
        assert_eq!(get(&operator, &format!("/v1/queue?{query}")).await.status, status, "{query}");
    }
    assert_eq!(get(&operator, &format!("/v1/queue/{id}")).await.status, 404);
}

fn because(reason: &str) -> Value {
    json!({ "reason": reason })
}

async fn act(client: &Client, id: &str, action: &str, body: &Value) -> Answer {
    post(client, &format!("/v1/queue/{id}/{action}"), body).await
}

/// A 409 of this slug, whose detail begins so.
fn assert_state(answer: &Answer, slug: &str, told: &str) {
    assert_eq!((answer.status.as_u16(), answer.slug().as_deref()), (409, Some(slug)), "{answer:?}");
    let detail = text(answer, "detail");
    assert!(detail.starts_with(told), "{detail}");
}

/// What operators did to a payment.
fn events(world: &World, id: &str) -> Vec<Value> {
    let mut events = world.audit().unwrap();
    events.retain(|event| event["resource"]["id"] == id && event["actor"]["type"] == "admin");
    events.retain(|event| event["event"]["type"] != "admin.read");
    events
}

fn step(event: &Value) -> [String; 5] {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    [
        &event["event"]["type"],
        &event["reason"],
        &event["actor"]["id"],
        &event["proposer"],
        &event["note"],
    ]
    .map(text)
}

async fn queue(world: &World, name: &str, arguments: &[&str]) -> Output {
    tollgate(world, name, &[&["queue"], arguments].concat()).await
}

/// The words of the line that begins with this one.
fn row_of(table: &str, first: &str) -> Vec<String> {
    let row =
        table.lines().find(|line| line.starts_with(first)).unwrap_or_else(|| panic!("{table}"));
    row.split_whitespace().map(str::to_owned).collect()
}
