//! Payments that may not be sent twice: what is known of them, and how they are taken back.

use super::*;

both! {
    a_mark_is_durable_before_the_first_byte_and_taken_back_when_none_left,
    a_lost_lease_without_a_mark_sent_nothing,
    what_was_never_sent_and_may_not_wait_has_failed_when_its_sender_is_lost,
    one_operator_alone_does_not_end_a_reversal,
    what_was_given_up_in_an_old_copy_is_in_doubt,
    a_mark_stands_when_another_lease_sent_nothing,
    what_the_biller_never_saw_is_as_good_as_unsent,
    who_lost_the_lease_may_send_nothing,
    a_payment_ends_and_its_reversal_waits_in_one_transaction,
    a_reversal_takes_its_payments_place_in_a_full_queue,
    operators_reversals_pass_the_limit_by_a_tenth,
    a_held_payment_is_taken_back_by_two_operators_and_frees_its_lane,
    a_reversal_is_repeated_without_end_and_never_expires_silently,
    a_freed_key_makes_a_new_payment_under_the_same_reference,
    a_payment_whose_key_was_forgotten_is_found_by_its_reference,
}

fn marked(now: i64, lane: u8) -> NewPayment {
    NewPayment { is_marked: true, ..new_payment(now, lane) }
}

fn reversal(of: &ItemFacts) -> Reversal {
    let id = Uuid::now_v7();
    let facts = ItemFacts {
        id,
        kind: REVERSAL.into(),
        reference: id.to_string(),
        prio: Priority::Critical,
        ..of.clone()
    };
    Reversal { facts, payload: sealed(b"reversal") }
}

fn taking_back(of: &ItemFacts) -> TakingBack {
    let answer = Some(sealed(b"answer"));
    let ending = Ending { outcome: Outcome::Failed, code: "68".into(), answer };
    TakingBack { ending, reversal: reversal(of) }
}

/// Puts a leased payment back as unsent, and leases it again.
async fn again(world: &World, lease: &Lease, class: Class) -> Claimed {
    let now = Parking { retry_in: Duration::ZERO, ..parking(class) };
    assert_eq!(world.store.release(lease, now).await.unwrap(), Parked::Waiting);
    world.claim(1).await.remove(0)
}

async fn a_mark_is_durable_before_the_first_byte_and_taken_back_when_none_left(on: On) {
    let world = World::new(on).await;
    let lease = world.forward(marked(world.store.now(), 1)).await;
    let second = world.forward(marked(world.store.now(), 2)).await;

    let mark = world.store.begin_send(&lease, false).await.unwrap();
    world.store.begin_send(&second, false).await.unwrap();
    let unsent = again(&world, &lease, Class::NotSent).await;
    let sent = again(&world, &second, Class::SentUnknown).await;

    assert_eq!(mark, Marked::Marked);
    assert_eq!((unsent.sent_unknown, sent.sent_unknown), (false, true));
}

async fn a_lost_lease_without_a_mark_sent_nothing(on: On) {
    let world = World::new(on).await;
    world.forward(marked(world.store.now(), 1)).await;
    let begun = world.forward(marked(world.store.now(), 2)).await;
    world.store.begin_send(&begun, false).await.unwrap();
    world.forward(new_payment(world.store.now(), 3)).await;

    let world = world.after_a_crash().await;
    world.clock.advance(Duration::from_secs(5));
    let mut claimed = world.claim(3).await;

    claimed.sort_by_key(|one| one.lease.ord_key);
    let sent: Vec<_> = claimed.iter().map(|one| one.sent_unknown).collect();
    assert_eq!(sent, [false, true, true]);
}

async fn what_was_never_sent_and_may_not_wait_has_failed_when_its_sender_is_lost(on: On) {
    let world = World::new(on).await;
    let mut payment = marked(world.store.now(), 1);
    (payment.payload, payment.may_wait) = (None, false);
    world.forward(payment.clone()).await;

    world.clock.advance(LEASE);
    let rescued = world.store.rescue().await.unwrap();

    assert_eq!(rescued, Rescued { freed: 0, held: 0, failed: 1 });
    assert_eq!(world.status(payment.facts.id).await, Status::Failed);
}

/// In an old copy, "nothing was sent" proves nothing.
#[tokio::test]
async fn what_a_copy_says_was_not_sent_is_left_to_a_person() {
    let world = World::new(On::Sqlite).await;
    let mut payment = marked(world.store.now(), 1);
    (payment.payload, payment.may_wait) = (None, false);
    world.forward(payment.clone()).await;

    world.store.recover(true).await.unwrap();

    assert_eq!(world.status(payment.facts.id).await, Status::Held);
}

/// Its client was told that the payment failed.
async fn one_operator_alone_does_not_end_a_reversal(on: On) {
    let world = World::new(on).await;
    let payment = marked(world.store.now(), 1);
    let lease = world.forward(payment.clone()).await;
    let taking = taking_back(&payment.facts);
    let id = taking.reversal.facts.id;
    world.store.reverse(&lease, taking).await.unwrap();
    let does = async |actor: &str, action: Action| {
        let (actor, reason) = (actor.to_owned(), "tired of it".to_owned());
        world.store.operate(Operation { id, action, actor, reason }).await.unwrap()
    };

    let cancelled = does("op-1", Action::Cancel(None)).await;
    let retried = does("op-1", Action::Retry).await;
    let lease = world.claim(1).await.remove(0).lease;
    world.store.hold(&lease, HoldReason::NotAccepted).await.unwrap();
    let settled = does("op-1", Action::Settle(done())).await;

    assert_eq!(cancelled, Operated::NeedsReversal);
    assert!(matches!(retried, Operated::Done { status: Status::Pending, .. }), "{retried:?}");
    assert!(matches!(settled, Operated::Proposed(_)), "{settled:?}");
}

/// In the time that the copy has lost, it may have been tried again and paid.
async fn what_was_given_up_in_an_old_copy_is_in_doubt(on: On) {
    let queue = QueueConfig { attempts_max: 1, ..QueueConfig::default() };
    let world = World::with(on, queue).await;
    let payment = marked(world.store.now(), 1);
    let lease = world.forward(payment.clone()).await;
    let parked = world.store.release(&lease, parking(Class::NotSent)).await.unwrap();
    let seen = world.store.raise_epoch(None, None).await.unwrap().0;
    world.store.raise_epoch(Some(Epoch { number: 1_000, ..seen }), None).await.unwrap();
    world.store.acknowledge_rollback().await.unwrap();
    let does = async |actor: &str| {
        let (actor, reason, id) = (actor.to_owned(), "again".to_owned(), payment.facts.id);
        world.store.operate(Operation { id, action: Action::Retry, actor, reason }).await.unwrap()
    };

    let first = does("op-1").await;
    let second = does("op-2").await;
    let claimed = world.claim(1).await.remove(0);

    assert_eq!(parked, Parked::Failed);
    assert!(matches!(first, Operated::Proposed(_)), "{first:?}");
    assert!(matches!(second, Operated::Done { .. }), "{second:?}");
    assert!(claimed.sent_unknown && claimed.by_rollback);
}

async fn a_mark_stands_when_another_lease_sent_nothing(on: On) {
    let world = World::new(on).await;
    let lease = world.forward(marked(world.store.now(), 1)).await;
    world.store.begin_send(&lease, false).await.unwrap();
    let sent = again(&world, &lease, Class::SentUnknown).await;

    world.store.begin_send(&sent.lease, false).await.unwrap();
    let still = again(&world, &sent.lease, Class::NotSent).await;

    assert!(still.sent_unknown);
}

async fn what_the_biller_never_saw_is_as_good_as_unsent(on: On) {
    let world = World::new(on).await;
    let lease = world.forward(marked(world.store.now(), 1)).await;
    world.store.begin_send(&lease, false).await.unwrap();
    let sent = again(&world, &lease, Class::SentUnknown).await;

    world.store.begin_send(&sent.lease, true).await.unwrap();
    let unsent = again(&world, &sent.lease, Class::NotSent).await;

    assert!(!unsent.sent_unknown);
}

async fn who_lost_the_lease_may_send_nothing(on: On) {
    let world = World::new(on).await;
    let lease = world.forward(marked(world.store.now(), 1)).await;
    world.clock.advance(LEASE);
    world.store.rescue().await.unwrap();

    let mark = world.store.begin_send(&lease, false).await.unwrap();

    assert_eq!(mark, Marked::Stale);
}

async fn a_payment_ends_and_its_reversal_waits_in_one_transaction(on: On) {
    let world = World::new(on).await;
    let (payment, behind) = (marked(world.store.now(), 1), new_payment(world.store.now(), 1));
    let lease = world.forward(payment.clone()).await;
    world.queue(behind.clone()).await;
    world.store.begin_send(&lease, false).await.unwrap();
    let taking = taking_back(&payment.facts);

    let reversed = world.store.reverse(&lease, taking.clone()).await.unwrap();
    let repeated = world.store.reverse(&lease, taking.clone()).await.unwrap();

    assert_eq!((reversed, repeated), (Reversed::Queued, Reversed::Queued));
    let view = world.view(payment.facts.id).await;
    assert_eq!((view.status, view.response_code.as_deref()), (Status::Failed, Some("68")));
    // First come, first served within the lane; the lane itself is as urgent as its reversal.
    let first = world.claim(5).await.remove(0);
    assert_eq!(first.facts.id, behind.facts.id);
    world.store.complete(&first.lease, done()).await.unwrap();
    let second = world.claim(5).await.remove(0);
    assert_eq!((second.facts.kind.as_str(), second.facts.id), (REVERSAL, taking.reversal.facts.id));
    world.store.complete(&second.lease, done()).await.unwrap();
    assert_eq!(world.count("saf_lane").await, 0);
}

async fn a_reversal_takes_its_payments_place_in_a_full_queue(on: On) {
    let queue = QueueConfig { rows_max: 2, ..QueueConfig::default() };
    let world = World::with(on, queue).await;
    let payment = marked(world.store.now(), 1);
    let lease = world.forward(payment.clone()).await;
    world.forward(new_payment(world.store.now(), 2)).await;
    let full = world.store.begin(new_payment(world.store.now(), 3)).await.unwrap();

    let reversed = world.store.reverse(&lease, taking_back(&payment.facts)).await.unwrap();

    assert_eq!((full, reversed), (Begun::QueueFull, Reversed::Queued));
    let still_full = world.store.begin(new_payment(world.store.now(), 4)).await.unwrap();
    assert_eq!(still_full, Begun::QueueFull);
}

async fn operators_reversals_pass_the_limit_by_a_tenth(on: On) {
    let queue = QueueConfig { rows_max: 10, ..QueueConfig::default() };
    let world = World::with(on, queue).await;
    let mut held = Vec::new();
    for lane in [1, 2] {
        let payment = marked(world.store.now(), lane);
        let lease = world.forward(payment.clone()).await;
        world.store.hold(&lease, HoldReason::Ambiguous).await.unwrap();
        held.push(payment.facts);
    }
    let mut leases = Vec::new();
    for lane in 3..13 {
        leases.push(world.forward(new_payment(world.store.now(), lane)).await);
    }
    let full = world.store.begin(new_payment(world.store.now(), 13)).await.unwrap();
    let cancel = async |of: &ItemFacts, actor: &str| {
        let action = Action::Cancel(Some(Box::new(taking_back(of))));
        let (actor, reason) = (actor.to_owned(), "the biller takes it back".to_owned());
        world.store.operate(Operation { id: of.id, action, actor, reason }).await.unwrap()
    };

    let proposed = cancel(&held[0], "op-1").await;
    let first = cancel(&held[0], "op-2").await;
    let refused = cancel(&held[1], "op-1").await;
    world.store.complete(&leases[0], done()).await.unwrap();
    let again = cancel(&held[1], "op-1").await;

    assert_eq!(full, Begun::QueueFull);
    assert!(matches!(proposed, Operated::Proposed(_)), "{proposed:?}");
    assert!(matches!(first, Operated::Done { status: Status::Failed, .. }), "{first:?}");
    assert!(matches!(refused, Operated::Refused(why) if why.contains("no room")), "{refused:?}");
    assert!(matches!(again, Operated::Proposed(_)), "{again:?}");
}

async fn a_held_payment_is_taken_back_by_two_operators_and_frees_its_lane(on: On) {
    let world = World::new(on).await;
    let (payment, behind) = (marked(world.store.now(), 1), new_payment(world.store.now(), 1));
    let lease = world.forward(payment.clone()).await;
    world.queue(behind.clone()).await;
    world.store.hold(&lease, HoldReason::Ambiguous).await.unwrap();
    assert!(world.claim(5).await.is_empty(), "its lane is blocked");
    let id = payment.facts.id;
    let cancel = |actor: &str| Operation {
        id,
        action: Action::Cancel(Some(Box::new(taking_back(&payment.facts)))),
        actor: actor.to_owned(),
        reason: "the biller takes it back".to_owned(),
    };

    let first = world.store.operate(cancel("op-1")).await.unwrap();
    let alone = world.store.operate(cancel("op-1")).await.unwrap();
    let second = world.store.operate(cancel("op-2")).await.unwrap();

    assert!(matches!(first, Operated::Proposed(_)), "{first:?}");
    assert!(matches!(alone, Operated::NotBy(_)), "{alone:?}");
    let (target, proposer) = ("pln".to_owned(), Some("op-1".to_owned()));
    assert_eq!(second, Operated::Done { status: Status::Failed, target, proposer });
    assert_eq!(world.status(id).await, Status::Failed);
    let next = world.claim(5).await.remove(0);
    assert_eq!(next.facts.id, behind.facts.id);
    world.store.complete(&next.lease, done()).await.unwrap();
    assert_eq!(world.claim(5).await.remove(0).facts.kind, REVERSAL);
}

async fn a_reversal_is_repeated_without_end_and_never_expires_silently(on: On) {
    let queue = QueueConfig { attempts_max: 2, ..QueueConfig::default() };
    let world = World::with(on, queue).await;
    let payment = marked(world.store.now(), 1);
    let lease = world.forward(payment.clone()).await;
    let taking = taking_back(&payment.facts);
    let id = taking.reversal.facts.id;
    world.store.reverse(&lease, taking).await.unwrap();
    let mut lease = world.claim(1).await.remove(0).lease;
    for _ in 0..5 {
        lease = again(&world, &lease, Class::NotSent).await.lease;
    }
    world.store.release(&lease, parking(Class::NotSent)).await.unwrap();

    world.clock.advance(Duration::from_secs(3_601));
    let expired = world.store.expire().await.unwrap();

    assert_eq!(expired, Expired { expired: 0, held: 1 });
    assert_eq!(world.status(id).await, Status::Held);
}

async fn a_freed_key_makes_a_new_payment_under_the_same_reference(on: On) {
    let world = World::new(on).await;
    let first = world.new_payment(1);
    let lease = world.forward(first.clone()).await;
    world.store.withdraw(&lease, "backend-unavailable", KeyAfter::Freed).await.unwrap();
    let facts = ItemFacts { id: Uuid::now_v7(), ..first.facts.clone() };

    let begun = world.store.begin(NewPayment { facts, ..first.clone() }).await.unwrap();

    assert!(matches!(begun, Begun::Forward(_)), "{begun:?}");
    assert_eq!(world.status(first.facts.id).await, Status::Failed);
}

async fn a_payment_whose_key_was_forgotten_is_found_by_its_reference(on: On) {
    let world = World::new(on).await;
    let first = world.new_payment(1);
    let lease = world.forward(first.clone()).await;
    world.store.complete(&lease, done()).await.unwrap();
    let db = &mut world.intruder().await;
    query("DELETE FROM idem_key").execute(&mut db.db()).await.unwrap();
    let facts = ItemFacts { id: Uuid::now_v7(), ..first.facts.clone() };

    let begun = world.store.begin(NewPayment { facts, ..first.clone() }).await.unwrap();

    let Begun::Replay { facts, status, .. } = begun else { panic!("{begun:?}") };
    assert_eq!((facts.id, status), (first.facts.id, Status::Success));
    assert_eq!(world.count("saf_item").await, 1);
}
