//! Reading, forgetting, waking.

use super::*;

async fn a_client_sees_its_own_payments_and_their_history(on: On) {
    let world = World::new(on).await;
    let payment = world.new_payment(1);
    let id = payment.facts.id;
    let lease = world.forward(payment).await;
    world.store.release(&lease, parking(Class::AnsweredRetryable)).await.unwrap();
    world.clock.advance(Duration::from_secs(1));
    let lease = world.claim(1).await.remove(0).lease;
    world.store.complete(&lease, done()).await.unwrap();

    let view = world.view(id).await;

    assert_eq!((view.status, view.attempts), (Status::Success, 2));
    assert_eq!(view.response_code.as_deref(), Some("00"));
    assert_eq!(view.updated_at - view.created_at, 1_000);
    let history: Vec<_> = view.history.iter().map(|it| (&*it.what, it.code.as_deref())).collect();
    let told = [("accepted", None), ("answered-retryable", Some("91")), ("done", Some("00"))];
    assert_eq!(history, told);
    assert_eq!(world.store.payment(id, "acquirer-b").await.unwrap(), None);
}

async fn the_depth_is_told_by_status_and_priority(on: On) {
    let world = World::new(on).await;
    world.forward(world.new_payment(1)).await;
    let mut behind = world.new_payment(1);
    behind.facts.prio = Priority::High;
    world.queue(behind).await;
    let held = world.forward(world.new_payment(2)).await;
    world.store.hold(&held, HoldReason::Ambiguous).await.unwrap();
    world.clock.advance(Duration::from_secs(7));

    let stats = world.store.queue_stats().await.unwrap();

    let filled: HashSet<_> =
        stats.cells.iter().map(|it| (it.status, it.priority, it.rows)).collect();
    let expected = [
        (Status::Processing, Priority::Normal, 1),
        (Status::Pending, Priority::High, 1),
        (Status::Held, Priority::Normal, 1),
    ];
    assert_eq!(filled, HashSet::from(expected));
    assert!(stats.cells.iter().all(|cell| cell.oldest_ms == 7_000));
    assert_eq!(stats.oldest_ms, Some(7_000));
}

async fn retention_forgets_keys_then_payments_and_never_what_is_open(on: On) {
    let world = World::new(on).await;
    let (ended, open) = (world.new_payment(1), world.new_payment(2));
    let lease = world.forward(ended.clone()).await;
    let mut held = open.clone();
    held.facts.expires_at = i64::MAX;
    let stays = world.forward(held).await;
    world.store.complete(&lease, done()).await.unwrap();
    world.store.hold(&stays, HoldReason::Ambiguous).await.unwrap();

    let too_early = world.store.prune(PruneRule { ended_before: world.store.now() + 1 }).await;
    world.clock.advance(Duration::from_secs(86_401));
    let later = world.store.prune(PruneRule { ended_before: world.store.now() }).await;

    assert_eq!(too_early.unwrap(), Pruned::default(), "its key still refers to it");
    assert_eq!(later.unwrap(), Pruned { keys: 1, payments: 1, ..Pruned::default() });
    assert_eq!((world.count("saf_item").await, world.count("idem_key").await), (1, 1));
}

async fn a_data_key_is_destroyed_when_nothing_refers_to_it_and_then_forgotten(on: On) {
    let world = World::new(on).await;
    let lease = world.forward(world.new_payment(1)).await;
    let end = i64::MAX;

    let in_use = world.store.destroy_deks(DekClass::Record, end).await.unwrap();
    world.store.complete(&lease, Ending { answer: None, ..done() }).await.unwrap();
    let unused = world.store.destroy_deks(DekClass::Record, end).await.unwrap();

    assert!(in_use.is_empty());
    assert!(unused.is_empty(), "not before its time");
    let mut db = world.intruder().await;
    query("UPDATE saf_dek SET not_after = 5").execute(&mut db.db()).await.unwrap();
    assert_eq!(world.store.destroy_deks(DekClass::Record, end).await.unwrap(), [1]);
    assert!(world.store.dek(1).await.unwrap().is_none());
    world.clock.advance(Duration::from_secs(1));
    let pruned = world.store.prune(PruneRule { ended_before: world.store.now() }).await;
    assert_eq!(pruned.unwrap().deks, 1);
    assert_eq!(world.count("saf_dek").await, 0);
}

async fn everybody_who_waits_is_woken_when_a_lane_can_move(on: On) {
    let world = World::new(on).await;
    let lease = world.forward(world.new_payment(1)).await;
    world.queue(world.new_payment(1)).await;
    let woken = tokio::time::timeout(Duration::from_millis(20), world.store.wake().notified());
    let before = woken.await;
    let (one, other) = (world.store.wake().notified(), world.store.wake().notified());

    world.store.complete(&lease, done()).await.unwrap();

    let both = async { tokio::join!(one, other) };
    assert!(before.is_err());
    assert!(tokio::time::timeout(Duration::from_secs(5), both).await.is_ok());
}

/// What has failed is a few rows in months of what was paid: a list of them reads no others.
async fn what_has_failed_is_listed_from_an_index_of_its_own(on: On) {
    let world = World::new(on).await;
    let mut session = world.intruder().await;
    let db = &mut session.db();
    fill(db, 5_000, 1).await;
    let ended = "
UPDATE saf_item SET state = CASE WHEN seq % 1000 = 0 THEN 3 ELSE 2 END, terminal_at = 0";
    for statement in ["DELETE FROM saf_lane", ended, "ANALYZE"] {
        query(statement).execute(db).await.unwrap();
    }
    let none = || Value::Text(None);
    let values = vec![
        vec![1_i64, 3, 4].into(),
        Value::Bool(None),
        none(),
        none(),
        Value::Int(None),
        none(),
        Value::Int(None),
        Value::Int(None),
        100_i64.into(),
    ];
    let statuses = vec![Status::Held, Status::Failed, Status::Expired];
    let filter = ListFilter { statuses, limit: 100, ..ListFilter::default() };

    let listed = world.store.list(&filter).await.unwrap();
    let (oldest, newest) = crate::store::listing::UNPAID;
    let plans = [plan(on, &oldest, values.clone(), db).await, plan(on, &newest, values, db).await];

    assert_eq!(
        listed.iter().map(|it| it.seq).collect::<Vec<_>>(),
        [5_000, 4_000, 3_000, 2_000, 1_000]
    );
    for plan in plans {
        assert!(plan.contains("saf_item_unpaid"), "{plan}");
        assert!(!plan.contains("Sort") && !plan.contains("FOR ORDER BY"), "{plan}");
    }
}

async fn a_gateway_is_known_by_its_host_and_forgotten_a_day_after_its_end(on: On) {
    let world = World::new(on).await;
    let names = async || {
        let names = query("SELECT name FROM gateway_instance ORDER BY name");
        let rows = names.all(&mut world.intruder().await.db()).await.unwrap();
        rows.iter().map(|row| row.value::<String>().unwrap()).collect::<Vec<_>>()
    };
    let seen = "INSERT INTO gateway_instance (name, started_at, seen_at) VALUES ('gone', 0, $1)";
    world.edit(seen, world.store.now() - 86_400_001).await;
    while names().await.len() < 2 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    world.store.prune(PruneRule { ended_before: 0 }).await.unwrap();

    let names = names().await;
    let (host, id) = names[0].rsplit_once(':').unwrap();
    assert_eq!(names.len(), 1, "{names:?}");
    assert!(!host.is_empty() && Uuid::parse_str(id).is_ok(), "{names:?}");
}

both! {
    what_has_failed_is_listed_from_an_index_of_its_own,
    a_gateway_is_known_by_its_host_and_forgotten_a_day_after_its_end,
    a_client_sees_its_own_payments_and_their_history,
    the_depth_is_told_by_status_and_priority,
    retention_forgets_keys_then_payments_and_never_what_is_open,
    a_data_key_is_destroyed_when_nothing_refers_to_it_and_then_forgotten,
    everybody_who_waits_is_woken_when_a_lane_can_move,
}
