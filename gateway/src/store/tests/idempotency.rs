//! The idempotency table, row by row.

use super::*;

/// The same request again: a new row, the old key.
fn again(first: &NewPayment) -> NewPayment {
    let mut payment = new_payment(first.facts.created_at, 99);
    payment.idempotency = first.idempotency.clone();
    payment
}

async fn a_running_key_is_told_to_wait(on: On) {
    let world = World::new(on).await;
    let first = world.new_payment(1);
    world.forward(first.clone()).await;
    world.clock.advance(Duration::from_secs(10));

    let begun = world.store.begin(again(&first)).await.unwrap();

    assert_eq!(begun, Begun::Running { retry_after: Duration::from_secs(20) });
    assert_eq!(world.count("saf_item").await, 1);
}

async fn a_finished_key_gets_its_answer_again(on: On) {
    let world = World::new(on).await;
    let first = world.new_payment(1);
    let lease = world.forward(first.clone()).await;
    world.store.complete(&lease, done()).await.unwrap();

    let begun = world.store.begin(again(&first)).await.unwrap();

    let (facts, answer) = (Box::new(first.facts), Some(sealed(b"answer")));
    assert_eq!(begun, Begun::Replay { facts, status: Status::Success, answer });
}

async fn a_queued_key_gets_its_payments_status(on: On) {
    let world = World::new(on).await;
    let first = world.new_payment(1);
    let lease = world.forward(first.clone()).await;
    world.store.release(&lease, parking(Class::NotSent)).await.unwrap();

    let waiting = world.store.begin(again(&first)).await.unwrap();
    world.clock.advance(Duration::from_secs(1));
    world.claim(1).await;
    let in_flight = world.store.begin(again(&first)).await.unwrap();

    let replay =
        |status| Begun::Replay { facts: Box::new(first.facts.clone()), status, answer: None };
    assert_eq!(waiting, replay(Status::Pending));
    assert_eq!(in_flight, replay(Status::Processing));
}

async fn a_key_with_another_request_is_refused_without_effect(on: On) {
    let world = World::new(on).await;
    let first = world.new_payment(1);
    world.forward(first.clone()).await;
    let mut other = again(&first);
    other.idempotency.fp = [2; 32];

    let begun = world.store.begin(other).await.unwrap();

    assert_eq!(begun, Begun::KeyReused);
    assert_eq!(world.count("saf_item").await, 1);
}

async fn two_clients_may_choose_the_same_key(on: On) {
    let world = World::new(on).await;
    let first = world.new_payment(1);
    world.forward(first.clone()).await;
    let mut other = again(&first);
    other.idempotency.scope = "acquirer-b".into();

    let begun = world.store.begin(other).await.unwrap();

    assert!(matches!(begun, Begun::Forward(_)), "{begun:?}");
}

/// After a crash nobody knows whether it was sent: the key never executes it a second time.
async fn a_key_whose_sender_was_lost_is_never_executed_again(on: On) {
    let world = World::new(on).await;
    let mut first = world.new_payment(1);
    first.payload = None;
    world.forward(first.clone()).await;

    let world = world.after_a_crash().await;
    let begun = world.store.begin(again(&first)).await.unwrap();

    let (facts, answer) = (Box::new(first.facts), None);
    assert_eq!(begun, Begun::Replay { facts, status: Status::Held, answer });
}

async fn a_withdrawn_payment_frees_its_key_unless_it_may_have_been_sent(on: On) {
    let world = World::new(on).await;
    let (unsent, maybe_sent) = (world.new_payment(1), world.new_payment(2));
    let lease = world.forward(unsent.clone()).await;
    world.forward(maybe_sent.clone()).await;

    let withdrawn =
        world.store.withdraw(&lease, "backend-unavailable", KeyAfter::Freed).await.unwrap();
    world.clock.advance(LEASE);
    world.store.rescue().await.unwrap();
    world.clock.advance(Duration::from_secs(2));
    let second = world.claim(1).await.remove(0);
    let held =
        world.store.withdraw(&second.lease, "backend-unavailable", KeyAfter::Freed).await.unwrap();

    assert_eq!((withdrawn, held), (Settled::Recorded, Settled::Held));
    let freed = world.store.begin(again(&unsent)).await.unwrap();
    assert!(matches!(freed, Begun::Forward(_)), "{freed:?}");
    let kept = world.store.begin(again(&maybe_sent)).await.unwrap();
    assert!(matches!(kept, Begun::Replay { status: Status::Held, .. }), "{kept:?}");
}

/// Its client was told its id: the key must not make another payment of it.
async fn a_withdrawn_payment_that_its_client_knows_keeps_its_key(on: On) {
    let world = World::new(on).await;
    let known = world.new_payment(1);
    let lease = world.forward(known.clone()).await;

    let withdrawn = world.store.withdraw(&lease, "not_sent", KeyAfter::Kept).await.unwrap();
    let begun = world.store.begin(again(&known)).await.unwrap();

    assert_eq!(withdrawn, Settled::Recorded);
    let (facts, answer) = (Box::new(known.facts), None);
    assert_eq!(begun, Begun::Replay { facts, status: Status::Failed, answer });
}

async fn a_full_queue_refuses_new_keys_and_still_knows_the_old(on: On) {
    let queue = QueueConfig { rows_max: 2, ..QueueConfig::default() };
    let world = World::with(on, queue).await;
    let first = world.new_payment(1);
    let lease = world.forward(first.clone()).await;
    world.forward(world.new_payment(2)).await;

    let refused = world.store.begin(world.new_payment(3)).await.unwrap();
    let mut elsewhere = world.new_payment(4);
    elsewhere.facts.target = "pdam".into();
    let other = world.store.begin(elsewhere).await.unwrap();
    let known = world.store.begin(again(&first)).await.unwrap();
    world.store.complete(&lease, done()).await.unwrap();
    let room = world.store.begin(world.new_payment(3)).await.unwrap();
    let full = world.store.begin(world.new_payment(5)).await.unwrap();

    assert_eq!(refused, Begun::QueueFull);
    assert!(matches!(known, Begun::Running { .. }), "{known:?}");
    assert!(matches!(other, Begun::Forward(_)), "one target closes no other: {other:?}");
    assert!(matches!(room, Begun::Forward(_)), "{room:?}");
    assert_eq!(full, Begun::QueueFull);
}

async fn what_a_person_holds_takes_no_room(on: On) {
    let queue = QueueConfig { rows_max: 1, ..QueueConfig::default() };
    let world = World::with(on, queue).await;
    let lease = world.forward(world.new_payment(1)).await;
    world.store.hold(&lease, HoldReason::Ambiguous).await.unwrap();

    let room = world.store.begin(world.new_payment(2)).await.unwrap();
    let full = world.store.begin(world.new_payment(3)).await.unwrap();
    let counted_again = world.after_a_crash().await;
    let still_full = counted_again.store.begin(world.new_payment(3)).await.unwrap();

    assert!(matches!(room, Begun::Forward(_)), "{room:?}");
    assert_eq!((full, still_full), (Begun::QueueFull, Begun::QueueFull));
}

async fn what_may_not_wait_is_refused_behind_another_and_nothing_is_stored(on: On) {
    let world = World::new(on).await;
    world.forward(world.new_payment(1)).await;
    let mut bare = world.new_payment(1);
    (bare.payload, bare.may_wait) = (None, false);
    let mut without_its_pin = world.new_payment(1);
    (without_its_pin.needs_pin, without_its_pin.may_wait) = (true, false);

    let refused =
        [world.store.begin(bare).await.unwrap(), world.store.begin(without_its_pin).await.unwrap()];

    assert_eq!(refused, [Begun::Busy, Begun::Busy]);
    assert_eq!((world.count("saf_item").await, world.count("idem_key").await), (1, 1));
}

both! {
    a_running_key_is_told_to_wait,
    a_finished_key_gets_its_answer_again,
    a_queued_key_gets_its_payments_status,
    a_key_with_another_request_is_refused_without_effect,
    two_clients_may_choose_the_same_key,
    a_key_whose_sender_was_lost_is_never_executed_again,
    a_withdrawn_payment_frees_its_key_unless_it_may_have_been_sent,
    a_withdrawn_payment_that_its_client_knows_keeps_its_key,
    a_full_queue_refuses_new_keys_and_still_knows_the_old,
    what_a_person_holds_takes_no_room,
    what_may_not_wait_is_refused_behind_another_and_nothing_is_stored,
}
