//! A database knows how old it is, and remembers that it was rolled back.

use super::*;

async fn each_look_raises_the_epoch_of_the_same_database_also_after_a_crash(on: On) {
    let world = World::new(on).await;

    let first = world.store.raise_epoch().await.unwrap();
    let second = world.store.raise_epoch().await.unwrap();
    let after = world.after_a_crash().await.store.raise_epoch().await.unwrap();
    let other = World::new(on).await.store.raise_epoch().await.unwrap();

    assert!(first.number < second.number && second.number < after.number);
    assert_eq!((first.store, second.store), (after.store, after.store));
    assert_ne!(other.store, first.store);
    assert!(!after.rolled_back);
}

async fn the_last_payment_is_remembered_when_it_is_pruned(on: On) {
    let world = World::new(on).await;
    let empty = world.store.raise_epoch().await.unwrap();
    let lease = world.forward(world.new_payment(1)).await;
    world.store.complete(&lease, done()).await.unwrap();
    let before = world.store.raise_epoch().await.unwrap();

    world.clock.advance(Duration::from_secs(10 * 86_400));
    while world.store.prune(PruneRule { ended_before: world.store.now() }).await.unwrap().any() {}

    assert_eq!((empty.item_seq, before.item_seq), (0, lease.seq()));
    assert_eq!(world.count("saf_item").await, 0);
    assert_eq!(world.store.raise_epoch().await.unwrap().item_seq, lease.seq());
}

async fn a_rollback_is_remembered_until_it_is_acknowledged_and_doubts_what_is_open(on: On) {
    let world = World::new(on).await;
    let (open, ended) = (world.new_payment(1), world.new_payment(2));
    let lease = world.forward(open.clone()).await;
    world.store.release(&lease, parking(Class::NotSent)).await.unwrap();
    let lease = world.forward(ended.clone()).await;
    world.store.complete(&lease, done()).await.unwrap();

    let none = world.store.acknowledge_rollback().await.unwrap();
    let rolled = world.store.roll_back(1_000).await.unwrap();
    let remembered = world.after_a_crash().await.store.raise_epoch().await.unwrap();
    let open_then = world.store.acknowledge_rollback().await.unwrap();
    let after = world.store.raise_epoch().await.unwrap();
    world.clock.advance(Duration::from_secs(2));
    let claimed = world.claim(10).await;

    assert_eq!((none, open_then), (None, Some(1)));
    assert!(rolled.rolled_back && rolled.number > 1_000);
    assert!(remembered.rolled_back && remembered.number > rolled.number);
    assert!(!after.rolled_back && after.number > rolled.number);
    assert_eq!((claimed.len(), claimed[0].sent_unknown), (1, true));
    assert_eq!(world.status(ended.facts.id).await, Status::Success);
}

both! {
    each_look_raises_the_epoch_of_the_same_database_also_after_a_crash,
    the_last_payment_is_remembered_when_it_is_pruned,
    a_rollback_is_remembered_until_it_is_acknowledged_and_doubts_what_is_open,
}
