//! A connection to the biller that is reset at every byte boundary of a payment and of its answer: the
//! client sees nothing of it, and no bill is paid twice.

use std::time::Duration;

use harness::acquirer::Payment;
use harness::proxy::{End, Proxy, Side, Trap};
use harness::world::{Wanted, World, free_ports};
use reqwest::Method;
use tokio::time::timeout;

use crate::support::{Counter, assert_paid_once, effects_by_bill, text};

/// telkom stores nothing: what it does not answer for is refused or held.
async fn world() -> (World, Proxy) {
    let [port] = free_ports::<1>().unwrap();
    let edit = move |table: &mut toml::Table| {
        let billers = table["biller"].as_array_mut().unwrap();
        let telkom = billers.iter_mut().find(|it| it["name"].as_str() == Some("telkom")).unwrap();
        let through = format!("https://127.0.0.1:{port}/");
        let telkom = telkom.as_table_mut().unwrap();
        telkom.insert("urls".into(), toml::Value::Array(vec![through.into()]));
        let retry = table["retry"].as_table_mut().unwrap();
        for (key, value) in [("wait_ms", 1), ("wait_ms_max", 1), ("budget_per_s_min", 1_000)] {
            retry.insert(key.into(), value.into());
        }
    };
    let wanted = Wanted { edit: Some(Box::new(edit)), ..Wanted::default() };
    let mut world = World::prepare(wanted).unwrap();
    let listen = ([127, 0, 0, 1], port).into();
    let proxy = Proxy::start(listen, world.billing_address(), 7).await.unwrap();
    world.start_billing().await.unwrap();
    world.start_gateway().await.unwrap();
    let body = br#"{"reason":"every payment meets a reset"}"#.to_vec();
    let path = "/v1/breakers/biller.telkom/disable";
    let operator = world.admin("operator").unwrap();
    let disabled = operator.send(Method::POST, path, &[], body).await.unwrap();
    assert_eq!(disabled.status, 200, "{disabled:?}");
    (world, proxy)
}

async fn pay(counter: &Counter, bill: &str) {
    let answer = counter.pay(bill, &counter.body(&Payment::of("telkom", bill))).await;
    assert_eq!((answer.status.as_u16(), &*text(&answer, "status")), (200, "SUCCESS"), "{bill}");
}

/// How many boundaries one side of an exchange has.
async fn every_byte(proxy: &Proxy, counter: &Counter, side: Side) -> u64 {
    for after in 0..LONGEST {
        let mut sprung = proxy.arm(Trap { side, after, end: End::Reset });
        pay(counter, &format!("{side:?}-{after}")).await;
        let sprung = timeout(Duration::ZERO, &mut sprung).await;
        proxy.disarm();
        if !matches!(sprung, Ok(Ok(()))) {
            return after;
        }
    }
    panic!("an exchange of more than {LONGEST} bytes");
}

const LONGEST: u64 = 4_000;

#[tokio::test]
async fn a_reset_at_any_byte_of_a_payment_or_its_answer_is_seen_by_nobody() {
    let (world, proxy) = world().await;
    let counter = Counter::a(&world);
    pay(&counter, "well").await;

    let request = every_byte(&proxy, &counter, Side::Request).await;
    let answer = every_byte(&proxy, &counter, Side::Answer).await;

    // The TLS records of both are longer than their bodies.
    assert!(request > 300 && answer > 200, "{request} {answer}");
    let ledger = world.billing_control().unwrap().ledger().await.unwrap();
    assert_paid_once(&ledger);
    // Each boundary has its own bill, and so has the end of each side.
    assert_eq!(effects_by_bill(&ledger).len() as u64, 1 + request + 1 + answer + 1);
    assert!(ledger.duplicates_suppressed > 100, "{}", ledger.duplicates_suppressed);
}
