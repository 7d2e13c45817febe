//! A biller with several URLs: when one is away, or hangs, payments leave by another and are made once.

use std::time::Duration;

use harness::acquirer::Payment;
use harness::proxy::{Behaviour, Door, Passage, Proxy, Way};
use harness::world::World;
use tokio::time::Instant;

use crate::support::{
    Counter, assert_paid_once, effects_by_bill, telkom, telkom_behind_proxy, text, until,
};

/// The first URL of telkom runs through a proxy, its backup straight to the biller.
async fn world() -> (World, Proxy) {
    let straight = |table: &mut toml::Table| {
        let telkom = telkom(table);
        let straight = telkom["urls"].clone();
        telkom.insert("backup_urls".into(), straight);
    };
    telkom_behind_proxy(straight).await
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
