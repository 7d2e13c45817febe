//! A database knows how old it is, and remembers that it was rolled back.

use super::*;

/// Finds nothing.
async fn look(world: &World, last: Option<Epoch>) -> Epoch {
    let (epoch, found) = world.store.raise_epoch(last).await.unwrap();
    assert_eq!(found, None);
    epoch
}

async fn each_look_raises_the_epoch_of_the_same_database_also_after_a_crash(on: On) {
    let world = World::new(on).await;

    let first = look(&world, None).await;
    let second = look(&world, None).await;
    let after = look(&world.after_a_crash().await, None).await;
    let other = look(&World::new(on).await, None).await;

    assert!(first.number < second.number && second.number < after.number);
    assert_eq!((first.store, second.store), (after.store, after.store));
    assert_ne!(other.store, first.store);
    assert!(!after.rolled_back);
}

async fn the_last_payment_is_remembered_when_it_is_pruned(on: On) {
    let world = World::new(on).await;
    let empty = look(&world, None).await;
    let lease = world.forward(world.new_payment(1)).await;
    world.store.complete(&lease, done()).await.unwrap();
    let before = look(&world, None).await;

    world.clock.advance(Duration::from_secs(10 * 86_400));
    while world.store.prune(PruneRule { ended_before: world.store.now() }).await.unwrap().any() {}

    assert_eq!((empty.item_seq, before.item_seq), (0, lease.seq()));
    assert_eq!(world.count("saf_item").await, 0);
    assert_eq!(look(&world, None).await.item_seq, lease.seq());
}

async fn a_rollback_is_remembered_until_it_is_acknowledged_and_doubts_what_is_open(on: On) {
    let world = World::new(on).await;
    let (open, ended) = (world.new_payment(1), world.new_payment(2));
    let lease = world.forward(open.clone()).await;
    world.store.release(&lease, parking(Class::NotSent)).await.unwrap();
    let lease = world.forward(ended.clone()).await;
    world.store.complete(&lease, done()).await.unwrap();

    let none = world.store.acknowledge_rollback().await.unwrap();
    let last = Epoch { number: 1_000, ..look(&world, None).await };
    let (rolled, found) = world.store.raise_epoch(Some(last)).await.unwrap();
    // A copy never gets past its witness by being looked at.
    let again = look(&world, Some(last)).await;
    let remembered = look(&world.after_a_crash().await, None).await;
    let open_then = world.store.acknowledge_rollback().await.unwrap();
    let after = look(&world, None).await;
    world.clock.advance(Duration::from_secs(2));
    let claimed = world.claim(10).await;

    assert_eq!((none, open_then), (None, Some(1)));
    assert_eq!(found, Some("an old copy"));
    assert!(rolled.rolled_back && rolled.number > 1_000 && again.rolled_back);
    assert!(remembered.rolled_back && remembered.number > rolled.number);
    assert!(!after.rolled_back && after.number > rolled.number);
    assert_eq!((claimed.len(), claimed[0].sent_unknown), (1, true));
    assert!(claimed[0].by_rollback && claimed[0].is_marked);
    assert_eq!(world.status(ended.facts.id).await, Status::Success);
}

async fn another_database_and_one_that_lacks_payments_are_old_copies(on: On) {
    let world = World::new(on).await;
    let seen = look(&world, None).await;

    let (_, other) =
        world.store.raise_epoch(Some(Epoch { store: Uuid::now_v7(), ..seen })).await.unwrap();
    let (_, behind) = world.store.raise_epoch(Some(Epoch { item_seq: 1, ..seen })).await.unwrap();

    assert_eq!((other, behind), (Some("another database"), Some("an old copy")));
}

/// Longer than a statement of the server may otherwise take.
async fn many_open_payments_are_doubted_however_long_it_takes(on: On) {
    let world = World::new(on).await;
    let mut db = world.intruder().await;
    fill(&mut db.db(), 20_000, 20_000).await;
    if let Session::Postgres(mut server) = db {
        // Six seconds in all, where a statement has five.
        sqlx::raw_sql(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN IF NEW.seq % 4000 = 0 THEN PERFORM pg_sleep(1.2); END IF; RETURN NEW; END';
             CREATE TRIGGER slow BEFORE UPDATE ON saf_item FOR EACH ROW EXECUTE FUNCTION slow()",
        )
        .execute(&mut server)
        .await
        .unwrap();
    }

    // Its caller may have gone by then.
    let seen = Epoch { number: 1_000, ..look(&world, None).await };
    let _ = world.store.raise_epoch(Some(seen)).await;
    let mut rolled = world.store.raise_epoch(None).await;
    for _ in 0..100 {
        if rolled.as_ref().is_ok_and(|(epoch, _)| epoch.rolled_back) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        rolled = world.store.raise_epoch(None).await;
    }

    assert!(rolled.unwrap().0.rolled_back);
    let doubted = query("SELECT count(*) FROM saf_item WHERE sent_unknown");
    let doubted: i64 =
        doubted.one(&mut world.intruder().await.db()).await.unwrap().value().unwrap();
    assert_eq!(doubted, 20_000);
}

both! {
    many_open_payments_are_doubted_however_long_it_takes,
    another_database_and_one_that_lacks_payments_are_old_copies,
    each_look_raises_the_epoch_of_the_same_database_also_after_a_crash,
    the_last_payment_is_remembered_when_it_is_pruned,
    a_rollback_is_remembered_until_it_is_acknowledged_and_doubts_what_is_open,
}
