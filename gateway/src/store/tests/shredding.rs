//! A data key that nothing refers to is destroyed: whatever was sealed under it is noise from then on.

use super::*;

const WRAPPED: &[u8; 40] = b"WRAPPED-KEY-CANARY-0123456789-0123456789";

/// Whether the wrapped key stands anywhere in the file or its log.
fn on_disk(world: &World) -> bool {
    let mut read = Vec::new();
    for file in ["tollgate.db", "tollgate.db-wal"] {
        read.extend(std::fs::read(world.directory.path().join(file)).unwrap_or_default());
    }
    read.windows(WRAPPED.len()).any(|window| window == WRAPPED)
}

async fn a_wrapped_key_is_gone_with_the_last_answer_under_it(on: On) {
    let world = World::new(on).await;
    let class = DekClass::Record;
    let not_after = world.store.now() + 3_600_000;
    let key = NewDek { class, kek_version: 1, wrapped: WRAPPED.to_vec(), not_after };
    let dek_id = world.store.insert_dek(key).await.unwrap();
    let mut payment = world.new_payment(1);
    payment.payload = Some(Sealed { dek_id, ..sealed(b"payload") });
    let lease = world.forward(payment).await;
    let answer = Some(Sealed { dek_id, ..sealed(b"answer") });
    world.store.complete(&lease, Ending { answer, ..done() }).await.unwrap();
    let was_there = on == On::Postgres || on_disk(&world);

    world.clock.advance(Duration::from_secs(3 * 86_400));
    let now = world.store.now();
    let too_soon = world.store.destroy_deks(class, now).await.unwrap();
    while world.store.prune(PruneRule { ended_before: now }).await.unwrap().any() {}
    let destroyed = world.store.destroy_deks(class, now).await.unwrap();

    assert!(was_there && too_soon.is_empty(), "{too_soon:?}");
    assert_eq!(destroyed, [dek_id]);
    assert!(world.store.dek(dek_id).await.unwrap().is_none());
    let left = "SELECT count(*) FROM saf_dek WHERE wrapped = $1";
    let mut db = world.intruder().await;
    let left = query(left).bind(WRAPPED.as_slice()).one(&mut db.db()).await.unwrap();
    assert_eq!(left.value::<i64>().unwrap(), 0);
    assert!(on == On::Postgres || !on_disk(&world), "the file or its log still has it");
}

both! { a_wrapped_key_is_gone_with_the_last_answer_under_it }
