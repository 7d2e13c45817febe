//! A gateway that starts while something is away says so, and is ready when it comes.

use std::time::Duration;

use harness::acquirer::Payment;
use harness::world::{Wanted, World, program};
use reqwest::Method;
use serde_json::Value;
use tokio::time::sleep;

use crate::support::{Counter, assert_paid_once, assert_refused, text, until};

/// `None` while nobody listens yet.
async fn readiness(world: &World) -> Option<(u16, Value)> {
    let monitor = world.admin("monitor").unwrap();
    let answer = monitor.send(Method::GET, "/readyz", &[], Vec::new()).await.ok()?;
    Some((answer.status.as_u16(), answer.json()))
}

/// Not ready for want of its token, it refuses what needs one; ready, it pays under the same key.
async fn refuses_then_pays(world: &mut World, appear: impl FnOnce()) {
    world.start_billing().await.unwrap();
    world.spawn_gateway().unwrap();
    until("it listens", Duration::from_secs(10), async || readiness(world).await.is_some()).await;
    let counter = Counter::a(world);
    let body = counter.body(&Payment::of("pln", "bill").by_card());

    let (status, parts) = readiness(world).await.unwrap();
    let payment = counter.pay("key", &body).await;
    let mac = counter.client.generate_mac("zak.acquirer-a", b"message").await.unwrap_err();
    sleep(Duration::from_millis(500)).await;
    appear();
    world.wait_ready(Duration::from_secs(20)).await.unwrap();
    let paid = counter.pay("key", &body).await;

    assert_eq!((status, &parts["hsm"], &parts["queue"]), (503, &false.into(), &false.into()));
    assert_refused(&payment, "hsm-unavailable");
    assert_eq!(mac.slug().as_deref(), Some("hsm-unavailable"));
    assert_eq!(paid.status, 200, "{paid:?}");
    assert_paid_once(&world.billing_control().unwrap().ledger().await.unwrap());
}

#[tokio::test]
async fn without_its_token_a_gateway_refuses_until_the_token_comes() {
    let mut world = World::prepare(Wanted::default()).unwrap();
    let (token, away) = (world.dir().join("token"), world.dir().join("token-away"));
    std::fs::rename(&token, &away).unwrap();

    refuses_then_pays(&mut world, || std::fs::rename(&away, &token).unwrap()).await;
}

#[tokio::test]
async fn without_its_worker_program_a_gateway_refuses_until_the_program_comes() {
    fn elsewhere(table: &mut toml::Table) {
        let worker = format!("{}-worker", table["store"]["path"].as_str().unwrap());
        table["hsm"].as_table_mut().unwrap().insert("worker".into(), worker.into());
    }
    let wanted = Wanted { edit: Some(Box::new(elsewhere)), ..Wanted::default() };
    let mut world = World::prepare(wanted).unwrap();
    let place = world.dir().join("data/tollgate.sqlite-worker");

    refuses_then_pays(&mut world, || {
        std::os::unix::fs::symlink(program("tollgate-hsm").unwrap(), &place).unwrap();
    })
    .await;
}

#[tokio::test]
async fn without_its_billers_a_gateway_is_ready_and_stores_what_may_wait() {
    let mut world = World::prepare(Wanted::default()).unwrap();
    world.start_gateway().await.unwrap();
    let counter = Counter::a(&world);

    let stored = counter.pay("pln", &counter.body(&Payment::of("pln", "pln").by_card())).await;
    let refused = counter.pay("telkom", &counter.body(&Payment::of("telkom", "telkom"))).await;
    world.start_billing().await.unwrap();
    let id = text(&stored, "id");
    until("paid", Duration::from_secs(15), async || counter.status(&id).await == "SUCCESS").await;

    assert_eq!(stored.status, 202, "{stored:?}");
    assert_refused(&refused, "backend-unavailable");
    let ledger = world.billing_control().unwrap().ledger().await.unwrap();
    assert_paid_once(&ledger);
    assert_eq!(ledger.effects.len(), 1);
}
