//! A biller goes away and comes back: what may wait waits, in order, and nothing is paid twice.

use std::time::Duration;

use harness::acquirer::Payment;
use harness::world::{Wanted, World, sum_of};
use reqwest::Method;

use crate::support::{
    Counter, assert_paid_once, assert_refused, effects_by_bill, query, text, until,
};

const DRAIN: Duration = Duration::from_secs(20);

/// What waits, the cells that say so, and the age of the oldest in seconds.
async fn figures(world: &World) -> (f64, usize, f64) {
    let admin = world.admin("monitor").unwrap();
    let answer = admin.send(Method::GET, "/metrics", &[], Vec::new()).await.unwrap();
    let text = String::from_utf8_lossy(&answer.body);
    let of = |name: &str| sum_of(&text, name);
    let cells = text.matches("\ntollgate_queue_depth{").count();
    (of("tollgate_queue_depth{"), cells, of("tollgate_queue_oldest_seconds"))
}

#[tokio::test]
async fn what_waits_is_in_the_figures_and_goes_from_them() {
    let mut world = World::start().await.unwrap();
    let counter = Counter::a(&world);
    until("shown", DRAIN, async || figures(&world).await == (0.0, 12, 0.0)).await;
    world.kill_billing();

    for bill in ["one", "two"] {
        let answer = counter.pay(bill, &counter.body(&Payment::of("pdam", bill))).await;
        assert_eq!(answer.status, 202, "{answer:?}");
    }
    until("seen", DRAIN, async || {
        let (rows, _, oldest_s) = figures(&world).await;
        rows == 2.0 && oldest_s > 0.0 && oldest_s < 60.0
    })
    .await;
    world.start_billing().await.unwrap();

    until("gone", DRAIN, async || figures(&world).await == (0.0, 12, 0.0)).await;
}

#[tokio::test]
async fn what_may_wait_is_paid_later_and_the_rest_is_refused_with_its_key_free() {
    let mut world = World::start().await.unwrap();
    let counter = Counter::a(&world);
    let waits = [
        ("pin", counter.body(&Payment::of("pln", "pin").by_card())),
        ("plain", counter.body(&Payment::of("pln", "plain"))),
        ("never-pin", counter.body(&Payment::of("pdam", "never-pin"))),
    ];
    let refused = [
        ("pdam-pin", counter.body(&Payment::of("pdam", "pdam-pin").by_card())),
        ("telkom-pin", counter.body(&Payment::of("telkom", "telkom-pin").by_card())),
        ("telkom", counter.body(&Payment::of("telkom", "telkom"))),
    ];
    world.kill_billing();

    let mut ids = Vec::new();
    for (key, body) in &waits {
        let answer = counter.pay(key, body).await;
        let id = text(&answer, "id");
        assert_eq!((answer.status.as_u16(), &*text(&answer, "status")), (202, "PENDING"), "{key}");
        assert_eq!(answer.header("location"), Some(&*format!("/v1/payments/{id}")));
        assert!(counter.acquirer.proves(&answer));
        assert!(["PENDING", "PROCESSING"].contains(&&*counter.status(&id).await));
        ids.push(id);
    }
    for (key, body) in &refused {
        assert_refused(&counter.pay(key, body).await, "backend-unavailable");
    }
    let blocks_waiting = query(&world, "SELECT count(*) FROM saf_item WHERE pin_ct IS NOT NULL");
    let lives = query(
        &world,
        "SELECT (expires_at - created_at) / 1000 FROM saf_item WHERE state = 0 ORDER BY seq",
    );
    world.start_billing().await.unwrap();
    for id in &ids {
        until("paid", DRAIN, async || counter.status(id).await == "SUCCESS").await;
    }

    // A PIN block waits for a quarter of an hour at most, and not a moment after its outcome.
    assert_eq!((&*blocks_waiting, &*lives), ("1", "900\n86400\n86400"));
    let sealed = "SELECT count(*) FROM saf_item WHERE pin_ct IS NOT NULL OR ct IS NOT NULL";
    assert_eq!(query(&world, sealed), "0");
    for (key, body) in &refused {
        // The breaker may still rest.
        until(key, DRAIN, async || {
            let answer = counter.pay(key, body).await;
            answer.status == 200 && text(&answer, "status") == "SUCCESS"
        })
        .await;
    }
    let ledger = world.billing_control().unwrap().ledger().await.unwrap();
    assert_paid_once(&ledger);
    assert_eq!(ledger.effects.len(), 6);
    let with_pin = ledger.effects.iter().filter(|effect| effect.pin_seen).count();
    assert_eq!(with_pin, 3);
}

#[tokio::test]
async fn a_backlog_leaves_by_priority_and_then_in_the_order_of_arrival() {
    let one_at_a_time = |table: &mut toml::Table| {
        let queue = table["queue"].as_table_mut().unwrap();
        queue.insert("senders_max".into(), 1.into());
    };
    let wanted = Wanted { edit: Some(Box::new(one_at_a_time)), ..Wanted::default() };
    let mut world = World::start_as(wanted).await.unwrap();
    let counter = Counter::a(&world);
    world.kill_billing();
    let mut queued = Vec::new();
    for (number, priority) in
        ["low", "normal", "high", "critical", "low", "normal", "high", "critical"]
            .iter()
            .enumerate()
    {
        let bill = format!("{priority}-{number}");
        let priority = Some((*priority).to_owned());
        let payment = Payment { priority, ..Payment::of("pdam", &bill) };
        let answer = counter.pay(&bill, &counter.body(&payment)).await;
        assert_eq!(answer.status, 202, "{answer:?}");
        queued.push(text(&answer, "id"));
    }

    // The first ones were tried and rest for a second: order is between those that are ready.
    tokio::time::sleep(Duration::from_millis(1_300)).await;
    world.start_billing().await.unwrap();
    for id in &queued {
        until("paid", DRAIN, async || counter.status(id).await == "SUCCESS").await;
    }

    let ledger = world.billing_control().unwrap().ledger().await.unwrap();
    assert_paid_once(&ledger);
    let paid: Vec<&str> = ledger.effects.iter().map(|effect| &*effect.bill_id).collect();
    let wanted =
        ["critical-3", "critical-7", "high-2", "high-6", "normal-1", "normal-5", "low-0", "low-4"];
    // Every tenth claim takes the oldest, so that the low ones move too: one may be out of place.
    let in_order = (0..paid.len()).any(|apart| {
        let left = |bills: &[&str]| {
            bills
                .iter()
                .filter(|bill| **bill != paid[apart])
                .map(|bill| (*bill).to_owned())
                .collect()
        };
        let (paid, wanted): (Vec<String>, Vec<String>) = (left(&paid), left(&wanted));
        paid == wanted
    });
    assert!(in_order, "{paid:?}");
}

#[tokio::test]
async fn payments_of_one_bill_leave_one_after_the_other() {
    let mut world = World::start().await.unwrap();
    let counter = Counter::a(&world);
    world.kill_billing();
    let mut ids = Vec::new();
    for value in ["1.00", "2.00", "3.00", "4.00"] {
        let payment = Payment { value: value.into(), ..Payment::of("pdam", "same-bill") };
        let answer = counter.pay(value, &counter.body(&payment)).await;
        assert_eq!(answer.status, 202, "{answer:?}");
        ids.push(text(&answer, "id"));
    }

    world.start_billing().await.unwrap();
    for id in &ids {
        until("paid", DRAIN, async || counter.status(id).await == "SUCCESS").await;
    }

    let ledger = world.billing_control().unwrap().ledger().await.unwrap();
    let paid: Vec<&str> = ledger.effects.iter().map(|effect| &*effect.amount.value).collect();
    assert_eq!(paid, ["1.00", "2.00", "3.00", "4.00"]);
}

#[tokio::test]
async fn a_full_queue_refuses_and_takes_payments_again_when_it_has_drained() {
    fn small(table: &mut toml::Table) {
        table["queue"]["rows_max"] = 100.into();
    }
    let mut world =
        World::start_as(Wanted { edit: Some(Box::new(small)), ..Wanted::default() }).await.unwrap();
    let counter = Counter::a(&world);
    world.kill_billing();
    let mut queued = Vec::new();
    let mut asking = tokio::task::JoinSet::new();
    for number in 0..100 {
        let counter = counter.clone();
        asking.spawn(async move {
            let bill = format!("bill-{number}");
            let answer = counter.pay(&bill, &counter.body(&Payment::of("pdam", &bill))).await;
            assert_eq!(answer.status, 202, "{answer:?}");
            text(&answer, "id")
        });
    }
    queued.extend(asking.join_all().await);

    let over = counter.body(&Payment::of("pdam", "one-too-many"));
    let refused = counter.pay("over", &over).await;
    let repeated = counter.pay("bill-7", &counter.body(&Payment::of("pdam", "bill-7"))).await;
    world.start_billing().await.unwrap();
    for id in &queued {
        until("paid", DRAIN, async || counter.status(id).await == "SUCCESS").await;
    }
    let taken = counter.pay("over", &over).await;

    assert_refused(&refused, "queue-full");
    assert_eq!(repeated.status, 202, "a repeat takes no room: {repeated:?}");
    assert_eq!(taken.status, 200, "{taken:?}");
    let ledger = world.billing_control().unwrap().ledger().await.unwrap();
    assert_paid_once(&ledger);
    assert_eq!(effects_by_bill(&ledger).len(), 101);
}
