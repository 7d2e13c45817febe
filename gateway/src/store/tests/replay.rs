//! Old rows put back: what has ended is held and never sent.

use super::*;

/// Makes the payment's row an open one again, sealed as it was, with a lane that leads to it.
async fn put_back(world: &World, seq: i64) {
    let open = "
UPDATE saf_item
SET state = 0, terminal_at = NULL, dek_id = 1, nonce = $2, ct = $3 WHERE seq = $1";
    let lane = "
INSERT INTO saf_lane (ord_key, target, head_seq, head_prio, next_at, leased)
SELECT ord_key, target, seq, prio, 0, FALSE FROM saf_item WHERE seq = $1";
    let mut db = world.intruder().await;
    let (nonce, ct): (&[u8], &[u8]) = (&[9; 12], b"payload");
    query(open).bind(seq).bind(nonce).bind(ct).execute(&mut db.db()).await.unwrap();
    query(lane).bind(seq).execute(&mut db.db()).await.unwrap();
}

async fn ended(world: &World) -> (Uuid, i64) {
    let payment = world.new_payment(1);
    let lease = world.forward(payment.clone()).await;
    world.store.complete(&lease, done()).await.unwrap();
    (payment.facts.id, lease.seq())
}

/// What an editor of rows forgets: the answer; the history; what the gateway remembers itself.
const TRACES: [&str; 3] = [
    "UPDATE saf_attempt SET what = what",
    "UPDATE saf_item SET res_dek_id = NULL, res_nonce = NULL, res_ct = NULL",
    "DELETE FROM saf_attempt",
];

async fn a_payment_that_has_ended_is_held_whatever_its_row_was_made_to_say(on: On) {
    let world = World::new(on).await;
    let (id, seq) = ended(&world).await;
    put_back(&world, seq).await;

    for trace in TRACES {
        world.tamper(trace).await;
        let claimed = world.claim(10).await;

        assert_eq!((claimed.len(), world.status(id).await), (0, Status::Held), "{trace}");
        assert_eq!(world.held().await, [("rollback".to_owned(), 1)], "{trace}");
        let reason = HoldReason::RolledBack;
        assert_eq!(world.store.take_alarms(), [Alarm { id, target: "pln".into(), reason }]);
        let free = "
UPDATE saf_item SET state = 0, hold_reason = NULL; UPDATE saf_lane SET blocked = NULL";
        world.tamper(free).await;
    }
}

/// Not even the next process, as long as the row or its history says so.
async fn a_restart_forgets_nothing_that_the_database_knows(on: On) {
    let world = World::new(on).await;
    let (id, seq) = ended(&world).await;
    put_back(&world, seq).await;
    let world = world.after_a_crash().await;

    let claimed = world.claim(10).await;

    assert_eq!((claimed.len(), world.status(id).await), (0, Status::Held));
}

/// The same lane: whoever ends one payment takes the next.
async fn the_next_of_a_lane_is_not_taken_when_it_has_ended_before(on: On) {
    let world = World::new(on).await;
    let (id, seq) = ended(&world).await;
    let lease = world.forward(world.new_payment(1)).await;
    let open = "
UPDATE saf_item SET state = 0, terminal_at = NULL, dek_id = 1, nonce = res_nonce, ct = res_ct";
    world.tamper(&format!("{open} WHERE seq = {seq}")).await;

    let taker = Taker { owner: "forwarder".into(), lease: LEASE };
    let (settled, next) = world.store.complete_and_take(&lease, done(), taker).await.unwrap();

    assert_eq!((settled, next.is_none()), (Settled::Recorded, true));
    assert_eq!(world.status(id).await, Status::Held);
}

/// An attempt that failed, and an answer that came after its lease was lost, end nothing.
async fn a_payment_that_was_only_tried_is_sent_again(on: On) {
    let world = World::new(on).await;
    let payment = world.new_payment(1);
    let lost = world.forward(payment.clone()).await;
    world.clock.advance(LEASE);
    world.store.rescue().await.unwrap();
    world.store.complete(&lost, done()).await.unwrap();
    world.clock.advance(Duration::from_secs(2));
    let again = world.claim(10).await.remove(0).lease;
    world.store.release(&again, parking(Class::SentUnknown)).await.unwrap();
    world.clock.advance(Duration::from_secs(2));

    let claimed = world.claim(10).await;

    assert_eq!(claimed[0].facts.id, payment.facts.id);
    assert_eq!(world.store.take_alarms(), []);
}

/// Its attempts were spent, and an operator has it tried anew: its history says both.
async fn what_an_operator_has_retried_since_is_sent(on: On) {
    let world = World::new(on).await;
    let (payment, seq) = {
        let payment = world.new_payment(1);
        let lease = world.forward(payment.clone()).await;
        world.store.release(&lease, parking(Class::NotSent)).await.unwrap();
        (payment, lease.seq())
    };
    let history = "INSERT INTO saf_attempt (item_seq, n, ended_at, what) VALUES";
    world.tamper(&format!("{history} ({seq}, 8, 0, 'failed'), ({seq}, 9, 0, 'retried')")).await;
    world.clock.advance(Duration::from_secs(2));

    let claimed = world.claim(10).await;

    assert_eq!(claimed[0].facts.id, payment.facts.id);
}

both! {
    what_an_operator_has_retried_since_is_sent,
    a_payment_that_has_ended_is_held_whatever_its_row_was_made_to_say,
    a_restart_forgets_nothing_that_the_database_knows,
    the_next_of_a_lane_is_not_taken_when_it_has_ended_before,
    a_payment_that_was_only_tried_is_sent_again,
}
