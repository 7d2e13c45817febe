//! A client says how long an answer is of use to it, and is answered by then; whoever finds no room
//! is told so at once.

use std::time::Duration;

use harness::acquirer::{Answer, Payment};
use harness::billing::{Fault, Mode};
use harness::world::{Wanted, World};
use reqwest::Method;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::support::{Counter, assert_refused, text, until};

async fn mac(counter: &Counter, allowed: &str) -> Answer {
    let body = json!({"key": "zak.acquirer-a", "message": "00"}).to_string().into_bytes();
    let headers = [("Request-Timeout", allowed)];
    counter.client.send(Method::POST, "/v1/mac/generate", &headers, body).await.unwrap()
}

#[tokio::test]
async fn a_deadline_that_is_none_is_refused_with_its_name() {
    let world = World::start().await.unwrap();
    let counter = Counter::a(&world);

    for allowed in ["", "0", "-1", "soon", "1e3", "1.2345", "5s"] {
        let refused = mac(&counter, allowed).await;

        assert_eq!(refused.status, 400, "{allowed}: {refused:?}");
        assert!(refused.json()["detail"].as_str().unwrap().contains("Request-Timeout"));
    }
    for allowed in ["5", "0.5", "999999"] {
        assert_eq!(mac(&counter, allowed).await.status, 200, "{allowed}");
    }
    // Whoever may not ask at all learns nothing of how to ask.
    let stranger = Counter { client: world.client("operator").unwrap(), ..counter };
    assert_eq!(mac(&stranger, "soon").await.status, 403);
}

#[tokio::test]
async fn a_client_is_answered_by_its_deadline_when_a_token_hangs_and_closes_the_link_for_nobody() {
    let world = World::start_as(Wanted { shim: true, ..Wanted::default() }).await.unwrap();
    let counter = Counter::a(&world);
    world.shim_control("Encrypt delay 150").await.unwrap();

    let mut slowest = Duration::ZERO;
    for _ in 0..8 {
        let begun = Instant::now();
        let answer = mac(&counter, "0.1").await;
        slowest = slowest.max(begun.elapsed());
        assert_refused(&answer, "hsm-unavailable");
    }
    // It is slow, and well: who has the time gets an answer.
    let patient = mac(&counter, "20").await;

    assert_eq!(patient.status, 200, "{patient:?}");
    assert!(slowest < Duration::from_millis(700), "{slowest:?}");
    let closed = "tollgate_breaker_state{name=\"hsm\",state=\"closed\"}";
    assert!(world.metric(closed).await.unwrap() > 0.5);
}

#[tokio::test]
async fn a_payment_whose_biller_hangs_is_answered_by_its_deadline_and_told_as_open() {
    let world = World::start().await.unwrap();
    let (counter, control) = (Counter::a(&world), world.billing_control().unwrap());
    control.set_mode(Fault::always(Mode::HangAfter)).await.unwrap();
    let body = counter.body(&Payment::of("pln", "hangs"));
    let signature = counter.acquirer.mac_header(&body);
    let headers = [
        ("Request-Timeout", "1"),
        ("Idempotency-Key", "\"hangs\""),
        ("Tollgate-Mac", signature.as_str()),
    ];
    let begun = Instant::now();

    let answer = counter.client.send(Method::POST, "/v1/payments", &headers, body).await.unwrap();
    let took = begun.elapsed();
    control.set_mode(Fault::always(Mode::Normal)).await.unwrap();

    assert_eq!(answer.status, 202, "{answer:?}");
    assert!(took < Duration::from_millis(1_500), "{took:?}");
    assert!(counter.acquirer.proves(&answer));
    let id = text(&answer, "id");
    until("paid once", Duration::from_secs(30), async || counter.status(&id).await == "SUCCESS")
        .await;
    let ledger = control.ledger().await.unwrap();
    assert_eq!(ledger.effects.len(), 1);
}

/// One session, one order at a time, no place to wait.
#[tokio::test]
async fn whoever_finds_no_room_is_told_so_at_once_and_the_queue_goes_on() {
    let edit = |table: &mut toml::Table| {
        let hsm = table["hsm"].as_table_mut().unwrap();
        for (key, value) in [("workers", 1), ("in_flight_max", 4), ("waiting_max", 4)] {
            hsm.insert(key.into(), value.into());
        }
    };
    let wanted = Wanted { shim: true, edit: Some(Box::new(edit)), ..Wanted::default() };
    let mut world = World::start_as(wanted).await.unwrap();
    let counter = Counter::a(&world);
    world.kill_billing();
    let waiting = counter.pay("waits", &counter.body(&Payment::of("pln", "waits"))).await;
    assert_eq!(waiting.status, 202);
    world.shim_control("Encrypt delay 50").await.unwrap();
    world.start_billing().await.unwrap();

    let mut flood = JoinSet::new();
    for _ in 0..40 {
        let counter = counter.clone();
        flood.spawn(async move {
            let mut refused = Vec::new();
            for _ in 0..10 {
                let begun = Instant::now();
                let answer = mac(&counter, "5").await;
                if answer.status != 200 {
                    assert_refused(&answer, "overloaded");
                    refused.push(begun.elapsed());
                }
                sleep(Duration::from_millis(20)).await;
            }
            refused
        });
    }
    let id = text(&waiting, "id");
    let paid = async || counter.status(&id).await == "SUCCESS";
    until("the queue is not shed", Duration::from_secs(20), paid).await;
    let mut refused: Vec<_> = flood.join_all().await.into_iter().flatten().collect();

    refused.sort_unstable();
    assert!(refused.len() > 50, "{}", refused.len());
    // Of a machine that is busy with other tests the median is what can be told.
    let median = refused[refused.len() / 2];
    assert!(median < Duration::from_millis(500), "{median:?}");
    assert_eq!(mac(&counter, "20").await.status, 200);
}
