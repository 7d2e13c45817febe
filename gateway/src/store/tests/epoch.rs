//! A database knows how old it is, and remembers that it was rolled back.

use super::*;

/// Finds nothing.
async fn look(world: &World, last: Option<Epoch>) -> Epoch {
    let (epoch, found) = world.store.raise_epoch(last, None).await.unwrap();
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
    let (rolled, found) = world.store.raise_epoch(Some(last), None).await.unwrap();
    // A copy never gets past its witness by being looked at.
    let again = look(&world, Some(last)).await;
    let remembered = look(&world.after_a_crash().await, None).await;
    world.clock.advance(Duration::from_secs(2));
    let waits = world.claim(10).await;
    let new = world.store.begin(world.new_payment(3)).await.unwrap();
    let open_then = world.store.acknowledge_rollback().await.unwrap();
    let after = look(&world, None).await;
    let claimed = world.claim(10).await;

    assert_eq!((none, open_then), (None, Some(2)));
    assert_eq!(found, Some("an old copy"));
    assert!(rolled.rolled_back && rolled.number > 1_000 && again.rolled_back);
    assert!(remembered.rolled_back && remembered.number > rolled.number);
    assert!(!after.rolled_back && after.number > rolled.number);
    assert!(waits.is_empty() && matches!(new, Begun::Queued { .. }), "{waits:?} {new:?}");
    assert!(claimed.len() == 2 && claimed.iter().all(|one| one.sent_unknown && one.by_rollback));
    assert_eq!(world.status(ended.facts.id).await, Status::Success);
}

async fn another_database_and_one_that_lacks_payments_are_old_copies(on: On) {
    let world = World::new(on).await;
    let seen = look(&world, None).await;

    let (_, other) =
        world.store.raise_epoch(Some(Epoch { store: Uuid::now_v7(), ..seen }), None).await.unwrap();
    let (_, behind) =
        world.store.raise_epoch(Some(Epoch { item_seq: 1, ..seen }), None).await.unwrap();

    assert_eq!((other, behind), (Some("another database"), Some("an old copy")));
}

/// Months of payments that were made are not read for the few that are open.
async fn what_is_open_is_doubted_without_reading_what_has_ended(on: On) {
    let world = World::new(on).await;
    let mut session = world.intruder().await;
    let db = &mut session.db();
    fill(db, 5_000, 500).await;
    let ended = "UPDATE saf_item SET state = 2, terminal_at = 0 WHERE seq > 1000";
    for statement in [ended, "ANALYZE"] {
        query(statement).execute(db).await.unwrap();
    }

    let values = vec![[0_u8; 16].as_slice().into(), 0_i64.into(), 200_i64.into()];
    let plan = plan(on, &Sql::Both(crate::store::epoch::OPEN), values, db).await;

    // Both of these indexes are of open payments alone, and go by lanes.
    assert!(plan.contains("saf_item_open") || plan.contains("saf_item_urgent"), "{plan}");
    assert!(!plan.contains("Seq Scan on saf_item") && !plan.contains("FOR ORDER BY"), "{plan}");
}

/// In steps, over the borders of lanes and within one.
async fn all_that_is_open_is_doubted_however_much_it_is(on: On) {
    let world = World::new(on).await;
    let mut session = world.intruder().await;
    fill(&mut session.db(), 5_000, 1).await;
    fill(&mut session.db(), 5_000, 5_000).await;
    let last = Epoch { number: 1_000, ..look(&world, None).await };

    let healthy = world.store.acknowledge_rollback().await.unwrap();
    let before = doubted(&mut session).await;
    world.store.raise_epoch(Some(last), None).await.unwrap();
    let open = world.store.acknowledge_rollback().await.unwrap();

    assert_eq!((healthy, before), (None, 0));
    assert_eq!((open, doubted(&mut session).await), (Some(10_000), 10_000));
}

async fn doubted(session: &mut Session) -> i64 {
    let doubted = query("SELECT count(*) FROM saf_item WHERE sent_unknown AND send_mark = -1");
    doubted.one(&mut session.db()).await.unwrap().value().unwrap()
}

both! {
    all_that_is_open_is_doubted_however_much_it_is,
    another_database_and_one_that_lacks_payments_are_old_copies,
    what_is_open_is_doubted_without_reading_what_has_ended,
    each_look_raises_the_epoch_of_the_same_database_also_after_a_crash,
    the_last_payment_is_remembered_when_it_is_pruned,
    a_rollback_is_remembered_until_it_is_acknowledged_and_doubts_what_is_open,
}
