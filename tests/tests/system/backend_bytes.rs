//! A connection to the biller that is reset at every byte boundary of a payment and of its answer: the
//! client sees nothing of it, and no bill is paid twice.

use std::time::Duration;

use harness::acquirer::Payment;
use harness::proxy::{End, Proxy, Side, Trap};
use harness::world::World;
use serde_json::json;
use tokio::time::timeout;

use crate::support::{Counter, assert_paid_once, effects_by_bill, post, telkom_behind_proxy, text};

/// telkom stores nothing: what it does not answer for is refused or held.
async fn world() -> (World, Proxy) {
    let quick = |table: &mut toml::Table| {
        let retry = table["retry"].as_table_mut().unwrap();
        for (key, value) in [("wait_ms", 1), ("wait_ms_max", 1), ("budget_per_s_min", 1_000)] {
            retry.insert(key.into(), value.into());
        }
    };
    let (world, proxy) = telkom_behind_proxy(quick).await;
    let body = json!({"reason": "every payment meets a reset"});
    let operator = world.admin("operator").unwrap();
    let disabled = post(&operator, "/v1/breakers/biller.telkom/disable", &body).await;
    assert_eq!(disabled.status, 200, "{disabled:?}");
    (world, proxy)
}

async fn pay(counter: &Counter, bill: &str) {
    let answer = counter.pay(bill, &counter.body(&Payment::of("telkom", bill))).await;
    assert_eq!((answer.status.as_u16(), &*text(&answer, "status")), (200, "SUCCESS"), "{bill}");
}

/// How many boundaries one side of an exchange has. The trap takes the first connection that carries a
/// byte, which can be one that the client's pool still opens beside the payment: so the end of an exchange
/// is where no payment of several springs it.
async fn every_byte(proxy: &Proxy, counter: &Counter, side: Side) -> Walk {
    let mut walk = Walk { boundaries: 0, payments: 0 };
    while walk.boundaries < LONGEST {
        let mut has_sprung = false;
        for attempt in 0..ATTEMPTS {
            let mut sprung = proxy.arm(Trap { side, after: walk.boundaries, end: End::Reset });
            pay(counter, &format!("{side:?}-{}-{attempt}", walk.boundaries)).await;
            walk.payments += 1;
            has_sprung = matches!(timeout(Duration::ZERO, &mut sprung).await, Ok(Ok(())));
            proxy.disarm();
            if has_sprung {
                break;
            }
        }
        if !has_sprung {
            return walk;
        }
        walk.boundaries += 1;
    }
    panic!("an exchange of more than {LONGEST} bytes");
}

struct Walk {
    boundaries: u64,
    payments: u64,
}

const ATTEMPTS: u32 = 5;
const LONGEST: u64 = 4_000;

#[tokio::test]
async fn a_reset_at_any_byte_of_a_payment_or_its_answer_is_seen_by_nobody() {
    let (world, proxy) = world().await;
    let counter = Counter::a(&world);
    pay(&counter, "well").await;

    let request = every_byte(&proxy, &counter, Side::Request).await;
    let answer = every_byte(&proxy, &counter, Side::Answer).await;

    // The TLS records of both are longer than their bodies.
    let boundaries = (request.boundaries, answer.boundaries);
    assert!(boundaries.0 > 300 && boundaries.1 > 200, "{boundaries:?}");
    let ledger = world.billing_control().unwrap().ledger().await.unwrap();
    assert_paid_once(&ledger);
    assert_eq!(effects_by_bill(&ledger).len() as u64, 1 + request.payments + answer.payments);
    assert!(ledger.duplicates_suppressed > 100, "{}", ledger.duplicates_suppressed);
}
