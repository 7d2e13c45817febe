//! The way of a payment, once.

use harness::acquirer::{Acquirer, Payment};
use harness::world::World;

#[tokio::test]
async fn a_payment_with_pin_and_mac_is_made() {
    let world = World::start().await.unwrap();
    let acquirer = Acquirer::a();
    let client = world.client("acquirer-a").unwrap();
    let body = acquirer.payment_body(&Payment::of("pln", "bill-1").by_card()).unwrap();

    let answer = client.pay(&acquirer, "key-1", body).await.unwrap();

    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()["status"], "SUCCESS");
    assert!(acquirer.proves(&answer));
    let ledger = world.billing_control().unwrap().ledger().await.unwrap();
    assert_eq!(ledger.effects.len(), 1);
    assert!(ledger.effects[0].pin_seen);
}
