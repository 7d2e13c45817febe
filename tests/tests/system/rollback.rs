//! An old backup is put in the database's place: nothing of it leaves before a person has looked.

use std::process::Command;
use std::time::Duration;

use harness::acquirer::Payment;
use harness::world::World;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Counter, assert_paid_once, assert_refused, post, text, until};

const DRAIN: Duration = Duration::from_secs(20);

/// A copy of the running database, as a backup makes it.
fn back_up(world: &World) {
    let script = "import sqlite3, sys\n\
                  sqlite3.connect(sys.argv[1]).backup(sqlite3.connect(sys.argv[2]))";
    let [database, copy] =
        ["tollgate.sqlite", "copy.sqlite"].map(|name| world.dir().join("data").join(name));
    let made = Command::new("python3").args(["-c", script]).arg(database).arg(copy).status();
    assert!(made.expect("python3 is installed").success());
}

/// Puts the copy in the place of a stopped gateway's database.
fn restore(world: &World) {
    let data = world.dir().join("data");
    for log in ["tollgate.sqlite-wal", "tollgate.sqlite-shm"] {
        let _ = std::fs::remove_file(data.join(log));
    }
    std::fs::copy(data.join("copy.sqlite"), data.join("tollgate.sqlite")).unwrap();
}

async fn readiness(world: &World) -> Option<Value> {
    let monitor = world.admin("monitor").ok()?;
    Some(monitor.send(Method::GET, "/readyz", &[], Vec::new()).await.ok()?.json())
}

/// The gateway runs, and its queue waits for a person.
async fn until_it_waits(world: &World) {
    until("the token is there", DRAIN, async || {
        readiness(world).await.is_some_and(|parts| parts["hsm"] == true)
    })
    .await;
    // Data keys would be there by now.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(readiness(world).await.unwrap()["queue"], false);
}

fn events(world: &World, kind: &str) -> Vec<Value> {
    let events = world.audit().unwrap();
    events.into_iter().filter(|event| event["event"]["type"] == kind).collect()
}

#[tokio::test]
async fn an_old_backup_waits_for_an_operator_and_pays_nothing_twice() {
    let mut world = World::start().await.unwrap();
    let counter = Counter::a(&world);
    let pay = async |counter: &Counter, bill: &str| {
        counter.pay(bill, &counter.body(&Payment::of("pdam", bill))).await
    };
    assert_eq!(pay(&counter, "before").await.status, 200);
    world.kill_billing();
    let waiting = text(&pay(&counter, "waits").await, "id");
    back_up(&world);
    world.start_billing().await.unwrap();
    until("paid", DRAIN, async || counter.status(&waiting).await == "SUCCESS").await;
    assert_eq!(pay(&counter, "after").await.status, 200);
    world.stop_gateway().await.unwrap();
    restore(&world);

    world.spawn_gateway().unwrap();
    until_it_waits(&world).await;
    let counter = Counter::a(&world);
    let refused = pay(&counter, "meanwhile").await;
    let told = events(&world, "queue.rollback");
    world.kill_gateway();
    world.spawn_gateway().unwrap();
    until_it_waits(&world).await;
    let status_then = counter.status(&waiting).await;
    let metric = world.metric("tollgate_queue_rolled_back").await.unwrap();
    let path = "/v1/queue/rollback/acknowledge";
    let reason = json!({ "reason": "compared with the biller" });
    let [monitor, operator] = ["monitor", "operator"].map(|name| world.admin(name).unwrap());
    let monitor = post(&monitor, path, &reason).await;
    let still = readiness(&world).await.unwrap();
    let operator = post(&operator, path, &reason).await;
    world.wait_ready(DRAIN).await.unwrap();
    until("paid again", DRAIN, async || counter.status(&waiting).await == "SUCCESS").await;

    assert_refused(&refused, "backend-unavailable");
    assert!(text(&refused, "detail").contains("operator"), "{refused:?}");
    // Each start that finds it says so: the first may have died before it could.
    assert_eq!((told.len(), events(&world, "queue.rollback").len()), (1, 2), "{told:?}");
    assert_eq!(told[0]["reason"], "rolled-back", "{}", told[0]);
    assert_eq!((&*status_then, metric.to_bits()), ("PENDING", 1f64.to_bits()));
    assert_eq!((monitor.status.as_u16(), &still["queue"]), (403, &json!(false)));
    assert_eq!(operator.json(), json!({ "rolled_back": true, "payments": 1 }));
    assert_eq!(pay(&counter, "meanwhile").await.status, 200);
    let acknowledged = events(&world, "queue.acknowledge");
    let last = acknowledged.last().unwrap();
    assert_eq!((&last["actor"]["id"], &last["outcome"]), (&json!("operator"), &json!("success")));
    assert_eq!(last["note"], "compared with the biller", "{last}");
    let ledger = world.billing_control().unwrap().ledger().await.unwrap();
    assert_paid_once(&ledger);
    assert_eq!(ledger.effects.len(), 4);
}

#[tokio::test]
async fn neither_a_restart_nor_a_kill_is_a_rollback() {
    let mut world = World::start().await.unwrap();
    let counter = Counter::a(&world);

    for round in 0..4 {
        let bill = format!("bill-{round}");
        let answer = counter.pay(&bill, &counter.body(&Payment::of("pdam", &bill))).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        if round % 2 == 0 {
            world.kill_gateway();
        } else {
            world.stop_gateway().await.unwrap();
        }
        world.start_gateway().await.unwrap();
    }

    assert_eq!(events(&world, "queue.rollback").len(), 0);
    let (operator, reason) = (world.admin("operator").unwrap(), json!({ "reason": "nothing" }));
    let idle = post(&operator, "/v1/queue/rollback/acknowledge", &reason).await;
    assert_eq!(idle.json(), json!({ "rolled_back": false, "payments": 0 }));
}

/// The copy is younger than the last checkpoint: the records after it tell.
#[tokio::test]
async fn a_copy_from_the_moment_before_a_crash_is_noticed_by_what_was_answered_after_it() {
    let mut world = World::start().await.unwrap();
    let counter = Counter::a(&world);
    let body = counter.body(&Payment::of("pdam", "before"));
    assert_eq!(counter.pay("before", &body).await.status, 200);
    until("a checkpoint with the queue's state", DRAIN, async || {
        let records = world.audit_records().unwrap();
        records.iter().any(|record| record["queue"]["item_seq"] == 1)
    })
    .await;
    back_up(&world);
    let body = counter.body(&Payment::of("pdam", "after"));
    assert_eq!(counter.pay("after", &body).await.status, 200);
    // No checkpoint and no look comes between.
    world.kill_gateway();
    restore(&world);

    world.spawn_gateway().unwrap();
    until_it_waits(&world).await;

    let told = events(&world, "queue.rollback");
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0]["note"].as_str().unwrap().contains("without a payment"), "{}", told[0]);
}
