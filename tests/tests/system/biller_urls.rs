//! A biller with several URLs: when one is away, or hangs, payments leave by another and are made once.

use std::time::Duration;

use harness::acquirer::Payment;
use harness::proxy::{Behaviour, Door, Passage, Proxy, Way};
use harness::world::{Wanted, World};
use tokio::time::Instant;

use crate::support::{Counter, assert_paid_once, effects_by_bill, text, until};

/// The first URL of telkom runs through a proxy, its backup straight to the biller.
async fn world() -> (World, Proxy) {
    let [port] = harness::world::free_ports::<1>().unwrap();
    let edit = move |table: &mut toml::Table| {
        let billers = table["biller"].as_array_mut().unwrap();
        let telkom = billers.iter_mut().find(|it| it["name"].as_str() == Some("telkom")).unwrap();
        let telkom = telkom.as_table_mut().unwrap();
        let straight = telkom["urls"].clone();
        let through = format!("https://127.0.0.1:{port}/");
        telkom.insert("urls".into(), toml::Value::Array(vec![through.into()]));
        telkom.insert("backup_urls".into(), straight);
    };
    let world = World::prepare(Wanted { edit: Some(Box::new(edit)), ..Wanted::default() }).unwrap();
    let listen = ([127, 0, 0, 1], port).into();
    let proxy = Proxy::start(listen, world.billing_address(), 7).await.unwrap();
    let mut world = world;
    world.start_billing().await.unwrap();
    world.start_gateway().await.unwrap();
    (world, proxy)
}

async fn pay(counter: &Counter, bill: &str) {
    let answer = counter.pay(bill, &counter.body(&Payment::of("telkom", bill).by_card())).await;
    assert_eq!((answer.status.as_u16(), &*text(&answer, "status")), (200, "SUCCESS"), "{answer:?}");
}

#[tokio::test]
async fn a_url_that_is_away_is_left_for_the_other_within_the_same_request() {
    let (world, proxy) = world().await;
    let counter = Counter::a(&world);
    pay(&counter, "well").await;

    for (name, door) in [("closed", Door::Closed), ("resets", Door::Resets)] {
        proxy.set(Behaviour { door, ..Behaviour::default() });
        let _ = proxy.cut_existing();
        for number in 0..20 {
            pay(&counter, &format!("{name}-{number}")).await;
        }
        proxy.set(Behaviour::default());
        let closed = "tollgate_breaker_state{name=\"biller.telkom\",state=\"closed\"}";
        until(closed, Duration::from_secs(10), async || world.metric(closed).await.unwrap() > 0.5)
            .await;
    }

    let ledger = world.billing_control().unwrap().ledger().await.unwrap();
    assert_paid_once(&ledger);
    assert_eq!(effects_by_bill(&ledger).len(), 41);
}

/// The request arrives, its answer does not: the same reference at the other door has no second effect.
#[tokio::test]
async fn an_answer_that_is_lost_is_asked_for_at_the_other_door_and_nothing_is_paid_twice() {
    let (world, proxy) = world().await;
    let counter = Counter::a(&world);
    pay(&counter, "well").await;

    let lost = Way { passage: Passage::Lost, ..Way::default() };
    proxy.set(Behaviour { to_client: lost, ..Behaviour::default() });
    let begun = Instant::now();
    for number in 0..5 {
        pay(&counter, &format!("lost-{number}")).await;
    }
    let took = begun.elapsed();

    assert!(took < Duration::from_secs(20), "{took:?}");
    let ledger = world.billing_control().unwrap().ledger().await.unwrap();
    assert_paid_once(&ledger);
    assert!(ledger.duplicates_suppressed >= 1, "{ledger:?}");
}
