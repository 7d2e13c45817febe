//! Where a PIN block is stored, and when it is wiped.

use super::*;

fn with_pin(now: i64, lane: u8) -> NewPayment {
    let mut payment = new_payment(now, lane);
    payment.facts.expires_at = now + 900_000;
    payment.needs_pin = true;
    payment.pin = Some(sealed(b"pin block"));
    payment
}

/// Whether payload and PIN block of a payment are stored.
async fn stored(world: &World, payment: &NewPayment) -> (bool, bool) {
    let row = query("SELECT ct, pin_ct, pin_nonce FROM saf_item WHERE id = $1")
        .bind(payment.facts.id)
        .one(&mut world.intruder().await.db())
        .await
        .unwrap();
    let is_stored = |column| row.get::<Option<Vec<u8>>>(column).unwrap().is_some();
    assert_eq!(is_stored("pin_ct"), is_stored("pin_nonce"));
    (is_stored("ct"), is_stored("pin_ct"))
}

async fn a_block_is_stored_only_where_it_has_to_wait(on: On) {
    let world = World::new(on).await;
    let (at_once, behind) = (with_pin(world.store.now(), 1), with_pin(world.store.now(), 1));
    let lease = world.forward(at_once.clone()).await;
    world.queue(behind.clone()).await;

    assert_eq!(stored(&world, &at_once).await, (true, false));
    assert_eq!(stored(&world, &behind).await, (true, true));
    let pin = at_once.pin.clone();
    let parked =
        world.store.release(&lease, Parking { pin, ..parking(Class::NotSent) }).await.unwrap();
    assert_eq!(parked, Parked::Waiting);
    assert_eq!(stored(&world, &at_once).await, (true, true));
}

async fn a_payment_that_needs_its_block_waits_without_it_only_if_it_may_have_been_sent(on: On) {
    let world = World::new(on).await;
    let (unsent, maybe_sent) = (with_pin(world.store.now(), 1), with_pin(world.store.now(), 2));
    let leases = [world.forward(unsent).await, world.forward(maybe_sent).await];

    let parked = [
        world.store.release(&leases[0], parking(Class::NotSent)).await.unwrap(),
        world.store.release(&leases[1], parking(Class::SentUnknown)).await.unwrap(),
    ];

    assert_eq!(parked, [Parked::Failed, Parked::Waiting]);
}

async fn every_outcome_wipes_the_block_in_its_own_transaction(on: On) {
    for outcome in ["done", "failed", "withdrawn", "held", "expired", "poison"] {
        let world = World::new(on).await;
        let first = world.forward(world.new_payment(1)).await;
        let payment = with_pin(world.store.now(), 1);
        world.queue(payment.clone()).await;
        world.store.complete(&first, done()).await.unwrap();
        let before = stored(&world, &payment).await;

        match outcome {
            "expired" => {
                world.clock.advance(Duration::from_secs(900));
                world.store.expire().await.unwrap();
            }
            "poison" => {
                for _ in 0..5 {
                    assert_eq!(world.claim(1).await.len(), 1);
                    world.clock.advance(LEASE);
                    world.store.rescue().await.unwrap();
                    world.clock.advance(Duration::from_secs(20));
                }
            }
            _ => {
                let lease = world.claim(1).await.remove(0).lease;
                let failed = Ending { outcome: Outcome::Failed, ..done() };
                let settled = match outcome {
                    "done" => world.store.complete(&lease, done()).await,
                    "failed" => world.store.complete(&lease, failed).await,
                    "withdrawn" => world.store.withdraw(&lease, "x", KeyAfter::Freed).await,
                    _ => world.store.hold(&lease, HoldReason::Ambiguous).await,
                };
                assert_eq!(settled.unwrap(), Settled::Recorded);
            }
        }

        assert_eq!(before, (true, true), "{outcome}");
        let held = matches!(outcome, "held" | "poison");
        assert_eq!(stored(&world, &payment).await, (held, false), "{outcome}");
    }
}

async fn no_block_waits_longer_than_an_hour(on: On) {
    let world = World::new(on).await;
    world.forward(world.new_payment(1)).await;
    let mut long = with_pin(world.store.now(), 1);
    long.facts.expires_at = long.facts.created_at + 3_600_001;

    let refused = world.store.begin(long).await;

    assert!(matches!(refused, Err(StoreError::Refused(_))), "{refused:?}");
}

both! {
    a_block_is_stored_only_where_it_has_to_wait,
    a_payment_that_needs_its_block_waits_without_it_only_if_it_may_have_been_sent,
    every_outcome_wipes_the_block_in_its_own_transaction,
    no_block_waits_longer_than_an_hour,
}
