//! The lane protocol: order, mutual exclusion, lost leases, ends of lives.

use super::*;

async fn one_payment_of_an_account_is_in_flight_and_the_others_follow_in_order(on: On) {
    let world = World::new(on).await;
    let payments: Vec<_> = (0..4).map(|_| world.new_payment(1)).collect();
    let first = world.forward(payments[0].clone()).await;
    for payment in &payments[1..] {
        world.queue(payment.clone()).await;
    }

    let while_in_flight = world.claim(10).await;
    world.store.complete(&first, done()).await.unwrap();
    let mut order = Vec::new();
    for _ in 1..4 {
        let claimed = world.claim(10).await;
        assert_eq!(claimed.len(), 1);
        assert!(world.claim(10).await.is_empty());
        order.push(claimed[0].facts.id);
        world.store.complete(&claimed[0].lease, done()).await.unwrap();
    }

    assert!(while_in_flight.is_empty());
    assert_eq!(order, payments[1..].iter().map(|it| it.facts.id).collect::<Vec<_>>());
    assert_eq!(world.count("saf_lane").await, 0);
}

/// A reversal pulls its own lane forward; it does not overtake the payment that it reverses.
async fn urgent_lanes_leave_first_and_inside_a_lane_only_age_counts(on: On) {
    let world = World::new(on).await;
    let mut waiting = Vec::new();
    for lane in 1..=3 {
        let payment = world.new_payment(lane);
        waiting.push(payment.facts.id);
        let lease = world.forward(payment).await;
        let now = Parking { retry_in: Duration::ZERO, ..parking(Class::NotSent) };
        world.store.release(&lease, now).await.unwrap();
    }
    let mut urgent = world.new_payment(3);
    urgent.facts.prio = Priority::Critical;
    world.queue(urgent.clone()).await;

    let first = world.claim(1).await.remove(0);
    world.store.complete(&first.lease, done()).await.unwrap();
    let second = world.claim(1).await.remove(0);
    let third = world.claim(1).await.remove(0);

    assert_eq!(first.facts.id, waiting[2]);
    assert_eq!(second.facts.id, urgent.facts.id);
    assert_eq!(third.facts.id, waiting[0]);
}

async fn every_tenth_claim_takes_the_oldest_so_that_low_ones_move(on: On) {
    let world = World::new(on).await;
    let mut low = world.new_payment(0);
    low.facts.prio = Priority::Low;
    let now = Parking { retry_in: Duration::ZERO, ..parking(Class::NotSent) };
    let lease = world.forward(low.clone()).await;
    world.store.release(&lease, now.clone()).await.unwrap();
    for lane in 1..=20 {
        let lease = world.forward(world.new_payment(lane)).await;
        world.store.release(&lease, now.clone()).await.unwrap();
    }

    let mut claims = Vec::new();
    for _ in 0..10 {
        claims.push(world.claim(1).await.remove(0).facts.id);
    }

    assert_eq!(claims.iter().position(|id| *id == low.facts.id), Some(9));
}

async fn a_lost_lease_changes_nothing_and_leaves_evidence(on: On) {
    let world = World::new(on).await;
    let payment = world.new_payment(1);
    let lost = world.forward(payment.clone()).await;
    world.clock.advance(LEASE);
    let rescued = world.store.rescue().await.unwrap();
    world.clock.advance(LEASE);
    let holder = world.claim(1).await.remove(0);

    let late = [
        world.store.complete(&lost, done()).await.unwrap(),
        world.store.withdraw(&lost, "x", KeyAfter::Freed).await.unwrap(),
        world.store.hold(&lost, HoldReason::Ambiguous).await.unwrap(),
    ];
    let released = world.store.release(&lost, parking(Class::NotSent)).await.unwrap();

    assert_eq!(rescued, Rescued { freed: 1, held: 0, failed: 0 });
    assert_eq!(late, [Settled::Stale; 3]);
    assert_eq!(released, Parked::Stale);
    let view = world.view(payment.facts.id).await;
    assert_eq!((view.status, view.attempts), (Status::Processing, 0));
    assert_eq!(view.history.iter().filter(|entry| entry.late).count(), 4);
    assert!(holder.sent_unknown, "a lost lease counts as sent");
    let ended = world.store.complete(&holder.lease, done()).await.unwrap();
    assert_eq!(ended, Settled::Recorded);
}

async fn a_report_may_be_repeated_when_its_answer_was_lost(on: On) {
    let world = World::new(on).await;
    let payment = world.new_payment(1);
    let lease = world.forward(payment.clone()).await;

    let first = world.store.complete(&lease, done()).await.unwrap();
    let again = world.store.complete(&lease, done()).await.unwrap();

    assert_eq!((first, again), (Settled::Recorded, Settled::Recorded));
    let view = world.view(payment.facts.id).await;
    assert_eq!((view.status, view.attempts), (Status::Success, 1));
    assert_eq!(view.history.len(), 2, "{:?}", view.history);
}

async fn the_fifth_lost_sender_is_the_last(on: On) {
    let world = World::new(on).await;
    let payment = world.new_payment(1);
    world.forward(payment.clone()).await;

    let mut rescues = Vec::new();
    for _ in 0..5 {
        world.clock.advance(LEASE);
        rescues.push(world.store.rescue().await.unwrap());
        world.clock.advance(Duration::from_secs(20));
        world.claim(1).await;
    }

    assert_eq!(rescues[..4], [Rescued { freed: 1, held: 0, failed: 0 }; 4]);
    assert_eq!(rescues[4], Rescued { freed: 0, held: 1, failed: 0 });
    assert_eq!(world.status(payment.facts.id).await, Status::Held);
    assert_eq!(world.held().await, [("poison".to_owned(), 1)]);
}

/// One without its PIN block can still be asked about or taken back.
async fn a_lost_payment_of_which_nothing_is_stored_is_left_to_a_person(on: On) {
    let world = World::new(on).await;
    let mut bare = world.new_payment(1);
    bare.payload = None;
    let mut without_its_pin = world.new_payment(2);
    without_its_pin.needs_pin = true;
    world.forward(bare.clone()).await;
    world.forward(without_its_pin.clone()).await;
    world.clock.advance(LEASE);

    let rescued = world.store.rescue().await.unwrap();

    assert_eq!(rescued, Rescued { freed: 1, held: 1, failed: 0 });
    assert_eq!(world.held().await, [("ambiguous".to_owned(), 1)]);
    world.clock.advance(LEASE);
    let claimed = world.claim(10).await.remove(0);
    assert_eq!(claimed.facts.id, without_its_pin.facts.id);
    assert!(claimed.needs_pin && claimed.sent_unknown && claimed.pin.is_none());
}

async fn a_held_payment_stops_its_own_lane_and_no_other(on: On) {
    let world = World::new(on).await;
    let lease = world.forward(world.new_payment(1)).await;
    world.queue(world.new_payment(1)).await;
    let other = world.forward(world.new_payment(2)).await;
    let now = Parking { retry_in: Duration::ZERO, ..parking(Class::NotSent) };
    world.store.release(&other, now).await.unwrap();

    world.store.hold(&lease, HoldReason::Ambiguous).await.unwrap();

    let claimed = world.claim(10).await;
    assert_eq!(claimed.len(), 1);
    assert_eq!(claimed[0].facts.ord_key, OrdKey([2; 16]));
    assert_eq!(world.held().await, [("ambiguous".to_owned(), 1)]);
}

async fn attempts_come_to_an_end(on: On) {
    let queue = QueueConfig { attempts_max: 2, ..QueueConfig::default() };
    let world = World::with(on, queue).await;
    let (unsent, maybe_sent) = (world.new_payment(1), world.new_payment(2));
    let mut leases =
        vec![world.forward(unsent.clone()).await, world.forward(maybe_sent.clone()).await];

    let mut parked = Vec::new();
    for _ in 0..2 {
        for (lease, class) in leases.iter().zip([Class::NotSent, Class::SentUnknown]) {
            parked.push(world.store.release(lease, parking(class)).await.unwrap());
        }
        world.clock.advance(Duration::from_secs(1));
        leases = world.claim(10).await.into_iter().map(|it| it.lease).collect();
    }

    assert_eq!(parked[..2], [Parked::Waiting; 2]);
    assert_eq!(parked[2..], [Parked::Failed, Parked::Held]);
    let view = world.view(unsent.facts.id).await;
    assert_eq!(view.status, Status::Failed);
    assert_eq!(view.response_code.as_deref(), Some("attempts-exhausted"));
    assert_eq!(world.status(maybe_sent.facts.id).await, Status::Held);
}

async fn a_breaker_in_the_way_is_no_attempt_and_a_pause_is_kept(on: On) {
    let world = World::new(on).await;
    let payment = world.new_payment(1);
    let lease = world.forward(payment.clone()).await;
    let pause = Parking { counts: false, ..parking(Class::NotSent) };

    world.store.release(&lease, pause).await.unwrap();

    assert!(world.claim(1).await.is_empty());
    world.clock.advance(Duration::from_secs(1));
    let claimed = world.claim(1).await;
    assert_eq!((claimed[0].attempts, claimed[0].sent_unknown), (0, false));
}

async fn nothing_is_claimed_for_a_target_that_is_not_allowed(on: On) {
    let world = World::new(on).await;
    let lease = world.forward(world.new_payment(1)).await;
    let now = Parking { retry_in: Duration::ZERO, ..parking(Class::NotSent) };
    world.store.release(&lease, now).await.unwrap();
    let (target, owner) = ("pdam".to_owned(), "forwarder".to_owned());

    let claimed = world.store.claim(Claim { target, rows: 10, owner, lease: LEASE }).await.unwrap();

    assert!(claimed.is_empty());
    assert_eq!(world.claim(10).await.len(), 1);
}

async fn what_was_never_sent_expires_and_what_may_have_been_is_held(on: On) {
    let world = World::new(on).await;
    let (in_flight, behind) = (world.new_payment(1), world.new_payment(1));
    let (unsent, maybe_sent) = (world.new_payment(2), world.new_payment(3));
    let held = world.forward(in_flight.clone()).await;
    world.queue(behind.clone()).await;
    for (payment, class) in [(&unsent, Class::NotSent), (&maybe_sent, Class::SentUnknown)] {
        let lease = world.forward(payment.clone()).await;
        world.store.release(&lease, parking(class)).await.unwrap();
    }
    world.clock.advance(Duration::from_secs(3_600));

    let expired = world.store.expire().await.unwrap();

    assert_eq!(expired, Expired { expired: 2, held: 1 });
    assert_eq!(world.status(in_flight.facts.id).await, Status::Processing);
    assert_eq!(world.status(behind.facts.id).await, Status::Expired);
    assert_eq!(world.status(unsent.facts.id).await, Status::Expired);
    assert_eq!(world.status(maybe_sent.facts.id).await, Status::Held);
    let settled = world.store.complete(&held, done()).await.unwrap();
    assert_eq!(settled, Settled::Recorded);
    assert_eq!(world.count("saf_lane").await, 1, "the held one's");
}

async fn a_claim_gives_nothing_that_is_past_its_time(on: On) {
    let world = World::new(on).await;
    let payment = world.new_payment(1);
    let lease = world.forward(payment.clone()).await;
    world.store.release(&lease, parking(Class::NotSent)).await.unwrap();
    world.clock.advance(Duration::from_secs(3_600));

    let claimed = world.claim(10).await;

    assert!(claimed.is_empty());
    assert_eq!(world.status(payment.facts.id).await, Status::Expired);
}

/// A database writer can empty a payload, or point a lane at nothing; neither is sent.
async fn a_head_that_was_emptied_or_taken_away_is_never_handed_out(on: On) {
    let world = World::new(on).await;
    let (emptied, removed) = (world.new_payment(1), world.new_payment(2));
    for payment in [&emptied, &removed] {
        let lease = world.forward(payment.clone()).await;
        let now = Parking { retry_in: Duration::ZERO, ..parking(Class::NotSent) };
        world.store.release(&lease, now).await.unwrap();
    }
    let mut intruder = world.intruder().await;
    query("UPDATE saf_item SET ct = NULL, nonce = NULL, dek_id = NULL WHERE id = $1")
        .bind(emptied.facts.id)
        .execute(&mut intruder.db())
        .await
        .unwrap();
    query("UPDATE saf_lane SET head_seq = 999 WHERE ord_key = $1")
        .bind([2; 16].as_slice())
        .execute(&mut intruder.db())
        .await
        .unwrap();

    let claimed = world.claim(10).await;

    assert!(claimed.is_empty());
    assert_eq!(world.status(emptied.facts.id).await, Status::Held);
    assert_eq!(world.claim(10).await[0].facts.id, removed.facts.id, "the lane has healed");
}

/// T0: a claim walks the lanes in their order; it neither scans items nor sorts. First with 10 000
/// payments of one account, then with 10 000 accounts beside it.
async fn a_claim_is_planned_on_the_index_of_ready_lanes(on: On) {
    let world = World::new(on).await;
    let mut session = world.intruder().await;
    let db = &mut session.db();

    for accounts in [1, 10_000] {
        fill(db, 10_000, accounts).await;
        let values =
            vec!["forwarder".into(), 1_i64.into(), 2_i64.into(), "pln".into(), 50_i64.into()];
        let plan = plan(on, &crate::store::claim::CLAIM, values, db).await;

        // PostgreSQL reads a table of one page whole.
        let is_indexed = plan.contains("saf_lane_ready");
        assert!(is_indexed || (on == On::Postgres && accounts == 1), "{plan}");
        assert!(!plan.contains("TEMP B-TREE FOR ORDER BY"), "{plan}");
        assert!(accounts == 1 || !plan.contains("Sort"), "{plan}");
        assert!(!plan.contains("Seq Scan on saf_item"), "{plan}");
    }
}

async fn what_is_past_its_time_is_not_claimed_however_much_of_it_there_is(on: On) {
    let world = World::new(on).await;
    let mut sending = tokio::task::JoinSet::new();
    for number in 0..600_u32 {
        let (store, mut payment) = (world.store.clone(), world.new_payment(0));
        payment.facts.ord_key.0[..4].copy_from_slice(&number.to_le_bytes());
        sending.spawn(async move {
            let Begun::Forward(lease) = store.begin(payment).await.unwrap() else { panic!() };
            let now = Parking { retry_in: Duration::ZERO, ..parking(Class::NotSent) };
            store.release(&lease, now).await.unwrap()
        });
    }
    sending.join_all().await;
    let in_time = world.claim(1).await.len();
    world.clock.advance(Duration::from_secs(3_600));

    let late = world.claim(600).await.len();

    assert_eq!((in_time, late), (1, 0));
}

both! {
    a_claim_is_planned_on_the_index_of_ready_lanes,
    one_payment_of_an_account_is_in_flight_and_the_others_follow_in_order,
    urgent_lanes_leave_first_and_inside_a_lane_only_age_counts,
    every_tenth_claim_takes_the_oldest_so_that_low_ones_move,
    a_lost_lease_changes_nothing_and_leaves_evidence,
    a_report_may_be_repeated_when_its_answer_was_lost,
    the_fifth_lost_sender_is_the_last,
    a_lost_payment_of_which_nothing_is_stored_is_left_to_a_person,
    a_held_payment_stops_its_own_lane_and_no_other,
    attempts_come_to_an_end,
    a_breaker_in_the_way_is_no_attempt_and_a_pause_is_kept,
    nothing_is_claimed_for_a_target_that_is_not_allowed,
    what_was_never_sent_expires_and_what_may_have_been_is_held,
    a_claim_gives_nothing_that_is_past_its_time,
    a_head_that_was_emptied_or_taken_away_is_never_handed_out,
    what_is_past_its_time_is_not_claimed_however_much_of_it_there_is,
}
