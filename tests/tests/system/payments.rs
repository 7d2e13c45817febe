//! The way of a payment, every fork of it: paid, declined, refused, repeated.

use std::time::Duration;

use harness::acquirer::{Acquirer, Answer, Card, Payment};
use harness::world::World;
use reqwest::Method;

use crate::support::{Counter, assert_paid_once, effects_by_bill, text, until};

const PAN: &str = "4761737909457820";
const PIN_CALLS: &str = "tollgate_hsm_operations_total{operation=\"pin_translate\"";

/// Formats, keys and MAC methods differ in all six ways; the simulator opens what it is sent.
#[tokio::test]
async fn every_biller_is_paid_for_both_acquirers_with_and_without_a_pin() {
    let world = World::start().await.unwrap();
    let mut paid = Vec::new();

    for counter in [Counter::a(&world), Counter::b(&world)] {
        for biller in ["pln", "pdam", "telkom"] {
            for pin in [true, false] {
                let bill = format!("{}-{biller}-{pin}", counter.acquirer.name());
                let payment = Payment::of(biller, &bill);
                let payment = if pin { payment.by_card() } else { payment };
                let answer = counter.pay(&bill, &counter.body(&payment)).await;
                paid.push((counter.clone(), bill, biller, pin, answer));
            }
        }
    }

    let ledger = world.billing_control().unwrap().ledger().await.unwrap();
    assert_paid_once(&ledger);
    assert_eq!(ledger.effects.len(), 12);
    for (counter, bill, biller, pin, answer) in paid {
        assert_eq!(answer.status, 200, "{bill}: {answer:?}");
        assert_eq!(
            (&*text(&answer, "status"), &*text(&answer, "response_code")),
            ("SUCCESS", "00")
        );
        assert!(counter.acquirer.proves(&answer), "{bill}");
        let effect = ledger.effects.iter().find(|effect| effect.bill_id == bill).unwrap();
        assert_eq!((&*effect.biller, effect.pin_seen), (biller, pin), "{bill}");
        assert_eq!((&*effect.amount.value, &*effect.amount.currency), ("127000.00", "IDR"));
        assert_eq!(effect.reference.to_string(), text(&answer, "reference"));
    }
}

#[tokio::test]
async fn a_payment_is_shown_to_its_client_and_to_nobody_else() {
    let world = World::start().await.unwrap();
    let (a, b) = (Counter::a(&world), Counter::b(&world));
    let paid = a.pay("key", &a.body(&Payment::of("pln", "bill").by_card())).await;
    let id = text(&paid, "id");

    let own = a.client.payment(&id).await.unwrap();
    let foreign = b.client.payment(&id).await.unwrap();
    let unknown = a.client.payment("0190c2a4-0000-7000-8000-000000000000").await.unwrap();
    let no_id = a.client.payment("not-an-id").await.unwrap();

    assert_eq!(own.status, 200, "{own:?}");
    let shown = own.json();
    assert_eq!((&shown["id"], &shown["status"]), (&id.into(), &"SUCCESS".into()));
    assert_eq!(shown["response_code"], "00");
    assert_eq!(shown["attempts"], 1);
    assert!(!shown["history"].as_array().unwrap().is_empty(), "{shown}");
    for refused in [foreign, unknown, no_id] {
        assert_eq!(refused.status, 404, "{refused:?}");
        assert_eq!(refused.slug().as_deref(), Some("unknown-payment"));
    }
}

#[tokio::test]
async fn a_declined_payment_is_final_carries_the_billers_code_and_pays_nothing() {
    let world = World::start().await.unwrap();
    let counter = Counter::a(&world);
    let wrong_pin = Card { pan: PAN.to_owned(), pin: "9999".to_owned() };
    let cases = [
        ("no-money", Payment::of("pln", "declined-1"), "51"),
        ("no-bill", Payment::of("telkom", "unknown-1"), "14"),
        ("wrong-pin", Payment { card: Some(wrong_pin), ..Payment::of("pdam", "bill-1") }, "55"),
    ];

    for (key, payment, code) in cases {
        let body = counter.body(&payment);
        let answer = counter.pay(key, &body).await;
        let again = counter.pay(key, &body).await;

        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!((&*text(&answer, "status"), &*text(&answer, "response_code")), ("FAILED", code));
        assert!(counter.acquirer.proves(&answer));
        assert_eq!(again.body, answer.body);
        assert_eq!(counter.status(&text(&answer, "id")).await, "FAILED");
    }
    let ledger = world.billing_control().unwrap().ledger().await.unwrap();
    assert_eq!((ledger.effects.len(), ledger.declined, ledger.pin_refused), (0, 3, 1));
}

#[tokio::test]
async fn a_payment_under_a_wrong_mac_reaches_neither_the_pin_keys_nor_the_biller() {
    let world = World::start().await.unwrap();
    let counter = Counter::a(&world);
    let body = counter.body(&Payment::of("pln", "bill").by_card());
    let right = counter.acquirer.mac_header(&body);
    let (label, mac) = right.split_once(':').unwrap();
    let last = if mac.ends_with('0') { "1" } else { "0" };
    let changed = [&body[..body.len() - 1], b" }"].concat();
    let cases = [
        ("missing", None, &body),
        ("wrong", Some(format!("{label}:{}{last}", &mac[..15])), &body),
        ("over other bytes", Some(right.clone()), &changed),
        ("under another key of this client", Some(format!("zak.acquirer-c:{mac}")), &body),
        ("another client's", Some(Acquirer::b().mac_header(&body)), &body),
        ("empty", Some(format!("{label}:")), &body),
        ("too short to be one", Some(format!("{label}:{}", &mac[..2])), &body),
        ("not hex", Some(format!("{label}:{}", "Z".repeat(16))), &body),
        ("without its key", Some(mac.to_owned()), &body),
    ];

    for (case, mac, body) in cases {
        let mut headers = vec![("Idempotency-Key", "\"key\"")];
        headers.extend(mac.as_deref().map(|mac| ("Tollgate-Mac", mac)));
        let answer = counter
            .client
            .send(Method::POST, "/v1/payments", &headers, body.clone())
            .await
            .unwrap();

        assert_eq!(answer.status, 422, "{case}: {answer:?}");
        assert_eq!(answer.slug().as_deref(), Some("mac-refused"), "{case}");
    }
    let translated = world.metric(PIN_CALLS).await.unwrap();
    assert!(translated.abs() < f64::EPSILON, "{translated} PIN calls");
    assert_eq!(world.billing_control().unwrap().ledger().await.unwrap().requests, 0);
    // The key is as free as if nobody had ever asked.
    assert_eq!(counter.pay("key", &body).await.status, 200);
    let translated = world.metric(PIN_CALLS).await.unwrap();
    assert!((translated - 1.0).abs() < f64::EPSILON, "{translated} PIN calls");
}

#[tokio::test]
async fn a_refused_pin_block_pays_nothing_and_leaves_its_key_free() {
    let world = World::start().await.unwrap();
    let counter = Counter::a(&world);
    let payment = Payment::of("pln", "bill").by_card();
    let good = counter.body(&payment);
    let mut bad: serde_json::Value = serde_json::from_slice(&good).unwrap();
    bad["pin_block"] = "0123456789ABCDEF".into();
    let mut short = bad.clone();
    short["pin_block"] = "0123".into();

    for body in [bad, short] {
        let refused = counter.pay("key", body.to_string().as_bytes()).await;

        assert_eq!(refused.status, 422, "{refused:?}");
        assert_eq!(refused.slug().as_deref(), Some("pin-block-refused"));
    }
    let paid = counter.pay("key", &good).await;

    assert_eq!(paid.status, 200, "{paid:?}");
    let ledger = world.billing_control().unwrap().ledger().await.unwrap();
    assert_eq!((ledger.requests, ledger.effects.len()), (1, 1));
}

#[tokio::test]
async fn an_idempotency_key_is_a_quoted_string_of_1_to_255_characters() {
    let world = World::start().await.unwrap();
    let counter = Counter::a(&world);
    let body = counter.body(&Payment::of("pln", "bill"));
    let mac = counter.acquirer.mac_header(&body);
    let send = async |keys: &[&str]| {
        let mut headers = vec![("Tollgate-Mac", mac.as_str())];
        headers.extend(keys.iter().map(|key| ("Idempotency-Key", *key)));
        counter.client.send(Method::POST, "/v1/payments", &headers, body.clone()).await.unwrap()
    };
    let (longest, too_long) =
        (format!("\"{}\"", "k".repeat(255)), format!("\"{}\"", "k".repeat(256)));

    for keys in [&[][..], &["unquoted"], &["\"\""], &["\"half"], &[&too_long], &["\"a\"", "\"b\""]]
    {
        let answer = send(keys).await;

        assert_eq!(answer.status, 400, "{keys:?}: {answer:?}");
        assert_eq!(answer.slug().as_deref(), Some("malformed-request"));
    }
    assert_eq!(world.billing_control().unwrap().ledger().await.unwrap().requests, 0);
    assert_eq!(send(&[&longest]).await.status, 200);
}

#[tokio::test]
async fn a_repeat_gets_the_same_bytes_and_another_body_is_refused() {
    let world = World::start().await.unwrap();
    let (a, b) = (Counter::a(&world), Counter::b(&world));
    let body = a.body(&Payment::of("pln", "bill-1").by_card());
    let other = a.body(&Payment::of("pln", "bill-2").by_card());

    let first = a.pay("key", &body).await;
    let again = a.pay("key", &body).await;
    let reused = a.pay("key", &other).await;
    let foreign = b.pay("key", &b.body(&Payment::of("pln", "bill-3"))).await;

    assert_eq!((first.status.as_u16(), first.header("idempotency-replayed")), (200, None));
    assert_eq!((again.status.as_u16(), &again.body), (200, &first.body));
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    assert!(a.acquirer.proves(&again));
    assert_eq!(reused.status, 422, "{reused:?}");
    assert_eq!(reused.slug().as_deref(), Some("idempotency-key-reused"));
    // A key belongs to its client.
    assert_eq!((foreign.status.as_u16(), foreign.header("idempotency-replayed")), (200, None));
    let bills = effects_by_bill(&world.billing_control().unwrap().ledger().await.unwrap());
    assert_eq!(bills.into_iter().collect::<Vec<_>>(), [("bill-1".into(), 1), ("bill-3".into(), 1)]);
}

#[tokio::test]
async fn the_same_request_many_times_at_once_pays_once() {
    let world = World::start().await.unwrap();
    let counter = Counter::a(&world);
    for (round, payment) in [Payment::of("pln", "pin").by_card(), Payment::of("telkom", "plain")]
        .into_iter()
        .enumerate()
    {
        let (key, body) = (format!("key-{round}"), counter.body(&payment));
        let mut asking = tokio::task::JoinSet::new();
        for _ in 0..12 {
            let (counter, key, body) = (counter.clone(), key.clone(), body.clone());
            asking.spawn(async move { counter.pay(&key, &body).await });
        }

        let answers: Vec<Answer> = asking.join_all().await;
        let last = counter.pay(&key, &body).await;

        assert_eq!(last.status, 200, "{last:?}");
        for answer in answers {
            match answer.status.as_u16() {
                200 => assert_eq!(answer.body, last.body),
                409 => {
                    assert_eq!(answer.slug().as_deref(), Some("request-in-progress"));
                    assert!(answer.header("retry-after").is_some());
                }
                other => panic!("{other}: {answer:?}"),
            }
        }
    }
    let ledger = world.billing_control().unwrap().ledger().await.unwrap();
    assert_eq!(ledger.requests, 2);
    assert_paid_once(&ledger);
}

#[tokio::test]
async fn a_repeat_of_what_waits_names_the_same_payment_until_it_is_paid() {
    let mut world = World::start().await.unwrap();
    let counter = Counter::a(&world);
    let body = counter.body(&Payment::of("pln", "bill").by_card());
    world.kill_billing();
    let first = counter.pay("key", &body).await;

    let waiting = counter.pay("key", &body).await;
    world.start_billing().await.unwrap();
    let id = text(&first, "id");
    until("paid", Duration::from_secs(15), async || counter.status(&id).await == "SUCCESS").await;
    let paid = counter.pay("key", &body).await;
    let again = counter.pay("key", &body).await;

    assert_eq!((first.status.as_u16(), waiting.status.as_u16()), (202, 202), "{first:?}");
    assert_eq!(text(&waiting, "id"), id);
    assert_eq!(waiting.header("location"), Some(&*format!("/v1/payments/{id}")));
    assert_eq!(waiting.header("idempotency-replayed"), Some("true"));
    assert_eq!(paid.status, 200, "{paid:?}");
    assert_eq!((text(&paid, "id"), text(&paid, "status")), (id, "SUCCESS".into()));
    assert_eq!(again.body, paid.body);
    assert!(counter.acquirer.proves(&paid) && counter.acquirer.proves(&waiting));
    assert_paid_once(&world.billing_control().unwrap().ledger().await.unwrap());
}
