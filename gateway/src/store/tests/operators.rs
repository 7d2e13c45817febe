//! The operators' hand on payments: what each act does, what each refuses, and that no act changes
//! the order of a lane or the count of what is open.

use super::*;

const ACTS: [&str; 4] = ["hold", "release", "retry", "cancel"];

fn act(name: &str) -> Action {
    match name {
        "hold" => Action::Hold,
        "release" => Action::Release,
        "retry" => Action::Retry,
        "cancel" => Action::Cancel(None),
        "paid" => settle(Outcome::Done, "00"),
        "failed" => settle(Outcome::Failed, "05"),
        "withdraw" => Action::Withdraw,
        other => panic!("{other}"),
    }
}

fn settle(outcome: Outcome, code: &str) -> Action {
    let answer = Some(sealed(b"by hand"));
    Action::Settle(Ending { outcome, code: code.into(), answer })
}

async fn does(world: &World, actor: &str, action: &str, id: Uuid) -> Operated {
    let (actor, reason) = (actor.to_owned(), "as agreed".to_owned());
    world.store.operate(Operation { id, action: act(action), actor, reason }).await.unwrap()
}

fn done(status: Status) -> Operated {
    Operated::Done { status, target: "pln".into(), proposer: None }
}

fn seconded(status: Status) -> Operated {
    Operated::Done { status, target: "pln".into(), proposer: Some("op-1".into()) }
}

fn is_refused(operated: &Operated) -> bool {
    matches!(operated, Operated::Refused(_))
}

/// Between an operator's first look and the lane's lock, the payment is given up and its lane goes.
#[tokio::test]
async fn what_is_given_up_in_this_moment_is_not_touched_without_its_lane() {
    let world = World::new(On::Postgres).await;
    let id = waits(&world, 1).await;
    let Session::Postgres(mut sender) = world.intruder().await else { panic!("a server") };
    let lock = "BEGIN; SELECT 1 FROM saf_lane FOR UPDATE";
    sqlx::raw_sql(lock).execute(&mut sender).await.unwrap();

    let store = world.store.clone();
    let (actor, reason) = ("op-1".to_owned(), "now".to_owned());
    let operation = Operation { id, action: Action::Retry, actor, reason };
    let operator = tokio::spawn(async move { store.operate(operation).await.unwrap() });
    let mut waiting = 0_i64;
    while waiting == 0 {
        let sessions = query(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'
                              AND datname = current_database()",
        );
        waiting = sessions.one(&mut world.intruder().await.db()).await.unwrap().value().unwrap();
    }
    let given_up = "
INSERT INTO saf_dead_letter (item_seq, dek_id, nonce, ct)
SELECT seq, dek_id, nonce, ct FROM saf_item;
UPDATE saf_item SET state = 3, terminal_at = 1, dek_id = NULL, nonce = NULL, ct = NULL;
DELETE FROM saf_lane; COMMIT";
    sqlx::raw_sql(given_up).execute(&mut sender).await.unwrap();
    let at_once = operator.await.unwrap();
    let then = does(&world, "op-1", "retry", id).await;

    assert_eq!(at_once, Operated::InFlight);
    assert_eq!(then, done(Status::Pending));
    assert_eq!(world.claim(10).await.len(), 1);
}

/// A payment that waits, due now, of which nothing was sent.
pub(super) async fn waits(world: &World, lane: u8) -> Uuid {
    waits_after(world, lane, Class::NotSent).await
}

async fn waits_after(world: &World, lane: u8, class: Class) -> Uuid {
    let payment = world.new_payment(lane);
    let lease = world.forward(payment.clone()).await;
    let now = Parking { retry_in: Duration::ZERO, ..parking(class) };
    assert_eq!(world.store.release(&lease, now).await.unwrap(), Parked::Waiting);
    payment.facts.id
}

/// The same, of a queue that gives one attempt.
async fn waits_long(world: &World, lane: u8) -> Uuid {
    let payment = world.new_payment(lane);
    let lease = world.forward(payment.clone()).await;
    let uncounted = Parking { counts: false, ..parking(Class::NotSent) };
    assert_eq!(world.store.release(&lease, uncounted).await.unwrap(), Parked::Waiting);
    payment.facts.id
}

pub(super) async fn held(world: &World, lane: u8, reason: HoldReason) -> Uuid {
    let payment = world.new_payment(lane);
    let lease = world.forward(payment.clone()).await;
    world.store.hold(&lease, reason).await.unwrap();
    payment.facts.id
}

/// A payment whose attempts are used up, nothing sent.
async fn exhausted(world: &World, lane: u8) -> Uuid {
    exhausted_of(world, world.new_payment(lane)).await
}

async fn exhausted_of(world: &World, payment: NewPayment) -> Uuid {
    let mut lease = world.forward(payment.clone()).await;
    loop {
        let now = Parking { retry_in: Duration::ZERO, ..parking(Class::NotSent) };
        match world.store.release(&lease, now).await.unwrap() {
            Parked::Failed => return payment.facts.id,
            Parked::Waiting => lease = world.claim(1).await.remove(0).lease,
            other @ (Parked::Held | Parked::Stale) => panic!("{other:?}"),
        }
    }
}

/// Sends everything that can be sent, and gives the order.
pub(super) async fn drain(world: &World) -> Vec<Uuid> {
    let mut sent = Vec::new();
    loop {
        let claimed = world.claim(10).await;
        if claimed.is_empty() {
            return sent;
        }
        for one in claimed {
            sent.push(one.facts.id);
            world.store.complete(&one.lease, super::done()).await.unwrap();
        }
    }
}

async fn history(world: &World, id: Uuid) -> Vec<Told> {
    world.store.show(id).await.unwrap().unwrap().history
}

async fn a_held_payment_blocks_its_lane_until_it_is_released_in_its_old_place(on: On) {
    let world = World::new(on).await;
    let first = waits(&world, 1).await;
    let second = world.new_payment(1);
    world.queue(second.clone()).await;
    let other = waits(&world, 2).await;

    assert_eq!(does(&world, "op-1", "hold", first).await, done(Status::Held));
    let while_held = drain(&world).await;
    assert_eq!(does(&world, "op-1", "release", first).await, done(Status::Pending));

    assert_eq!(while_held, [other]);
    assert_eq!(drain(&world).await, [first, second.facts.id]);
    assert_eq!(world.count("saf_lane").await, 0);
    let told = history(&world, first).await;
    let acts: Vec<_> = told
        .iter()
        .filter(|one| one.actor.is_some())
        .map(|one| (&*one.what, one.code.as_deref(), one.actor.as_deref(), one.reason.as_deref()))
        .collect();
    let (by, why) = (Some("op-1"), Some("as agreed"));
    assert_eq!(acts, [("held", Some("operator"), by, why), ("released", None, by, why)]);
}

async fn one_that_is_held_behind_a_lease_stops_the_lane_when_its_turn_comes(on: On) {
    let world = World::new(on).await;
    let [first, second, third] = [0; 3].map(|_| world.new_payment(1));
    let lease = world.forward(first).await;
    world.queue(second.clone()).await;
    world.queue(third.clone()).await;

    assert_eq!(does(&world, "op-1", "hold", second.facts.id).await, done(Status::Held));
    let taker = Taker { owner: "forwarder".into(), lease: LEASE };
    let (settled, next) =
        world.store.complete_and_take(&lease, super::done(), taker).await.unwrap();

    assert_eq!((settled, next.is_some()), (Settled::Recorded, false));
    assert!(drain(&world).await.is_empty());
    assert_eq!(does(&world, "op-1", "release", second.facts.id).await, done(Status::Pending));
    assert_eq!(drain(&world).await, [second.facts.id, third.facts.id]);
}

async fn a_cancelled_payment_leaves_the_lane_its_payload_and_keeps_its_key(on: On) {
    let world = World::new(on).await;
    let first = waits(&world, 1).await;
    let [second, third] = [0; 2].map(|_| world.new_payment(1));
    world.queue(second.clone()).await;
    world.queue(third.clone()).await;
    let held_back = held(&world, 2, HoldReason::Poison).await;

    for id in [first, second.facts.id, held_back] {
        assert_eq!(does(&world, "op-1", "cancel", id).await, done(Status::Cancelled));
        assert_eq!(world.status(id).await, Status::Cancelled);
    }

    assert_eq!(drain(&world).await, [third.facts.id]);
    assert_eq!(world.count("saf_lane").await, 0);
    let left = "SELECT count(*) FROM saf_item WHERE ct IS NOT NULL OR pin_ct IS NOT NULL";
    let left = query(left).one(&mut world.intruder().await.db()).await.unwrap();
    assert_eq!(left.value::<i64>().unwrap(), 0);
    let repeat = NewPayment { facts: world.new_payment(1).facts, ..second.clone() };
    let begun = world.store.begin(repeat).await.unwrap();
    let Begun::Replay { facts, status, .. } = begun else { panic!("{begun:?}") };
    assert_eq!((facts.id, status), (second.facts.id, Status::Cancelled));
}

async fn a_retry_makes_due_what_rests_and_gives_its_attempts_back_to_what_was_held(on: On) {
    let world = World::new(on).await;
    let payment = world.new_payment(1);
    let lease = world.forward(payment.clone()).await;
    let long = Parking { retry_in: Duration::from_secs(300), ..parking(Class::NotSent) };
    world.store.release(&lease, long).await.unwrap();
    let poison = held(&world, 2, HoldReason::Poison).await;

    let resting = world.claim(10).await.len();
    assert_eq!(does(&world, "op-1", "retry", payment.facts.id).await, done(Status::Pending));
    let [due] = world.claim(10).await.try_into().unwrap();
    world.store.complete(&due.lease, super::done()).await.unwrap();
    assert_eq!(does(&world, "op-1", "retry", poison).await, done(Status::Pending));

    assert_eq!((resting, due.facts.id, due.attempts), (0, payment.facts.id, 1));
    let [due] = world.claim(10).await.try_into().unwrap();
    assert_eq!((due.facts.id, due.attempts), (poison, 0));
}

async fn what_failed_with_its_attempts_used_up_is_tried_again_in_its_old_place(on: On) {
    let queue = QueueConfig { attempts_max: 2, ..QueueConfig::default() };
    let world = World::with(on, queue).await;
    let dead = exhausted(&world, 1).await;
    let younger = world.new_payment(1);
    let lease = world.forward(younger.clone()).await;

    let while_another_is_sent = does(&world, "op-1", "retry", dead).await;
    let now = Parking { retry_in: Duration::ZERO, ..parking(Class::NotSent) };
    world.store.release(&lease, now).await.unwrap();
    assert_eq!(does(&world, "op-1", "retry", dead).await, done(Status::Pending));

    assert!(is_refused(&while_another_is_sent), "{while_another_is_sent:?}");
    let [first] = world.claim(10).await.try_into().unwrap();
    assert_eq!((first.facts.id, first.attempts), (dead, 0));
    assert_eq!(first.payload, sealed(b"payload"));
    world.store.complete(&first.lease, super::done()).await.unwrap();
    assert_eq!(drain(&world).await, [younger.facts.id]);
    assert_eq!(world.count("saf_lane").await, 0);
    assert_eq!(dead_letters(&world).await, 0);
}

/// Its lane is gone, and made again.
async fn a_dead_letter_alone_in_its_lane_comes_back_or_is_cancelled(on: On) {
    let queue = QueueConfig { attempts_max: 1, ..QueueConfig::default() };
    let world = World::with(on, queue).await;
    let [back, gone, late] =
        [exhausted(&world, 1).await, exhausted(&world, 2).await, exhausted(&world, 3).await];
    let listed = world.store.show(back).await.unwrap().unwrap().listed;
    let before = dead_letters(&world).await;

    assert_eq!(does(&world, "op-1", "retry", back).await, done(Status::Pending));
    assert_eq!(does(&world, "op-1", "cancel", gone).await, done(Status::Cancelled));
    assert_eq!(drain(&world).await, [back]);
    world.clock.advance(Duration::from_secs(3_600));
    let refused = does(&world, "op-1", "retry", late).await;
    let left = dead_letters(&world).await;
    let pruned = world.store.prune(PruneRule { ended_before: 0 }).await.unwrap();

    assert_eq!((left, pruned.dead_letters), (1, 1));
    assert_eq!((listed.status, listed.dead_letter, before), (Status::Failed, true, 3));
    assert!(is_refused(&refused), "{refused:?}");
    assert_eq!((world.count("saf_lane").await, dead_letters(&world).await), (0, 0));
}

/// What a person holds takes no room; what comes back does, and finds it.
async fn every_act_counts_what_is_open(on: On) {
    let queue = QueueConfig { rows_max: 2, attempts_max: 1, ..QueueConfig::default() };
    let world = World::with(on, queue).await;
    let has_room = async |lane| {
        let begun = world.store.begin(world.new_payment(lane)).await.unwrap();
        let Begun::Forward(lease) = begun else { return begun != Begun::QueueFull };
        world.store.withdraw(&lease, "x", KeyAfter::Freed).await.unwrap();
        true
    };
    let dead = exhausted(&world, 1).await;
    let first = waits_long(&world, 2).await;
    let second = waits_long(&world, 3).await;

    for (action, id, room) in [
        ("hold", first, true),
        ("release", first, false),
        ("hold", first, true),
        ("cancel", first, true),
        ("retry", dead, false),
        ("retry", second, false),
        ("cancel", second, true),
    ] {
        assert!(
            matches!(does(&world, "op-1", action, id).await, Operated::Done { .. }),
            "{action}"
        );
        assert_eq!(has_room(9).await, room, "after {action}");
    }
}

async fn a_declined_payment_is_never_tried_again(on: On) {
    let world = World::new(on).await;
    let payment = world.new_payment(1);
    let lease = world.forward(payment.clone()).await;
    let declined = Ending { outcome: Outcome::Failed, ..super::done() };
    world.store.complete(&lease, declined).await.unwrap();

    for action in ACTS {
        let refused = does(&world, "op-1", action, payment.facts.id).await;
        assert!(is_refused(&refused), "{action}: {refused:?}");
    }
    assert_eq!(world.status(payment.facts.id).await, Status::Failed);
    assert_eq!(world.count("saf_lane").await, 0);
}

async fn nobody_touches_what_is_being_sent(on: On) {
    let world = World::new(on).await;
    let payment = world.new_payment(1);
    let lease = world.forward(payment.clone()).await;

    for action in ACTS.into_iter().chain(["paid", "failed"]) {
        let operated = does(&world, "op-1", action, payment.facts.id).await;
        assert_eq!(operated, Operated::InFlight, "{action}");
    }
    assert_eq!(world.store.complete(&lease, super::done()).await.unwrap(), Settled::Recorded);
}

async fn acts_that_do_not_fit_the_state_change_nothing(on: On) {
    let world = World::new(on).await;
    let waiting = waits(&world, 1).await;
    let tampered = held(&world, 2, HoldReason::Tampered).await;
    let poison = held(&world, 3, HoldReason::Poison).await;
    let paid = world.new_payment(4);
    let lease = world.forward(paid.clone()).await;
    world.store.complete(&lease, super::done()).await.unwrap();

    for (id, actions) in [
        (waiting, ["release", "paid", "withdraw"].as_slice()),
        (tampered, &["release", "retry", "hold", "paid"]),
        (poison, &["hold", "failed"]),
        (paid.facts.id, &["hold", "release", "retry", "cancel", "paid", "withdraw"]),
    ] {
        let before = world.store.show(id).await.unwrap();
        for action in actions {
            let refused = does(&world, "op-1", action, id).await;
            assert!(is_refused(&refused), "{action}: {refused:?}");
        }
        assert_eq!(world.store.show(id).await.unwrap(), before);
    }
    assert_eq!(does(&world, "op-1", "cancel", Uuid::now_v7()).await, Operated::Unknown);
}

async fn a_payment_without_its_pin_block_or_payload_is_not_released(on: On) {
    let world = World::new(on).await;
    world.forward(world.new_payment(1)).await;
    let mut with_pin = world.new_payment(1);
    (with_pin.needs_pin, with_pin.pin) = (true, Some(sealed(b"pin block")));
    world.queue(with_pin.clone()).await;
    let mut bare = world.new_payment(2);
    bare.payload = None;
    let lease = world.forward(bare.clone()).await;
    world.store.hold(&lease, HoldReason::Ambiguous).await.unwrap();

    assert_eq!(does(&world, "op-1", "hold", with_pin.facts.id).await, done(Status::Held));
    let blocks = "SELECT count(*) FROM saf_item WHERE pin_ct IS NOT NULL";
    let blocks = query(blocks).one(&mut world.intruder().await.db()).await.unwrap();

    assert_eq!(blocks.value::<i64>().unwrap(), 0, "a block outlived its hold");
    for id in [with_pin.facts.id, bare.facts.id] {
        for action in ["release", "retry"] {
            let refused = does(&world, "op-1", action, id).await;
            assert!(is_refused(&refused), "{action}: {refused:?}");
        }
    }
    let cancelled = does(&world, "op-1", "cancel", with_pin.facts.id).await;
    assert_eq!(cancelled, done(Status::Cancelled));
}

async fn what_is_past_its_time_is_not_released(on: On) {
    let world = World::new(on).await;
    let id = held(&world, 1, HoldReason::Poison).await;
    world.clock.advance(Duration::from_secs(3_600));

    let refused = does(&world, "op-1", "release", id).await;

    assert!(is_refused(&refused), "{refused:?}");
    assert_eq!(does(&world, "op-1", "cancel", id).await, done(Status::Cancelled));
}

async fn what_may_have_been_made_is_not_cancelled_without_a_reversal(on: On) {
    let world = World::new(on).await;
    let waiting = waits_after(&world, 1, Class::SentUnknown).await;
    let ambiguous = held(&world, 2, HoldReason::Ambiguous).await;

    for id in [waiting, ambiguous] {
        for operator in ["op-1", "op-2"] {
            let operated = does(&world, operator, "cancel", id).await;
            assert_eq!(operated, Operated::NeedsReversal);
        }
    }
    assert_eq!(world.status(waiting).await, Status::Pending);
    assert_eq!(world.status(ambiguous).await, Status::Held);
}

async fn what_may_have_been_made_moves_when_two_operators_say_the_same(on: On) {
    let world = World::new(on).await;
    for (lane, action, status) in [
        (1, "release", Status::Pending),
        (2, "retry", Status::Pending),
        (3, "paid", Status::Success),
        (4, "failed", Status::Failed),
    ] {
        let id = held(&world, lane, HoldReason::Ambiguous).await;

        let first = does(&world, "op-1", action, id).await;
        let again = does(&world, "op-1", action, id).await;
        let other = does(&world, "op-2", "paid", id).await;
        let unchanged = world.status(id).await;
        let shown = world.store.show(id).await.unwrap().unwrap();
        let second = does(&world, "op-2", action, id).await;

        let Operated::Proposed(open) = first else { panic!("{action}: {first:?}") };
        assert_eq!((&*open.actor, &*open.reason), ("op-1", "as agreed"));
        assert_eq!(open.expires_at - open.at, 86_400_000);
        assert_eq!(again, Operated::NotBy(open.clone()));
        if action == "paid" {
            assert_eq!(
                other,
                Operated::Done { status, target: "pln".into(), proposer: Some("op-1".into()) }
            );
            continue;
        }
        assert_eq!(other, Operated::Taken(open.clone()), "{action}");
        assert_eq!((unchanged, shown.decision), (Status::Held, Some(open)), "{action}");
        assert_eq!(second, seconded(status), "{action}");
        let shown = world.store.show(id).await.unwrap().unwrap();
        assert_eq!((shown.listed.status, shown.decision), (status, None), "{action}");
        let last = shown.history.last().unwrap();
        let names = (last.actor.as_deref(), last.proposer.as_deref());
        assert_eq!(names, (Some("op-2"), Some("op-1")), "{action}");
    }
    // What came back still counts as sent.
    let sent = world.claim(10).await;
    assert!(sent.len() == 2 && sent.iter().all(|one| one.sent_unknown), "{sent:?}");
}

async fn a_proposal_ends_by_its_proposer_or_with_its_day(on: On) {
    let world = World::new(on).await;
    let mut long = world.new_payment(1);
    long.facts.expires_at += 2 * 86_400_000;
    let lease = world.forward(long.clone()).await;
    world.store.hold(&lease, HoldReason::Ambiguous).await.unwrap();
    let id = long.facts.id;

    does(&world, "op-1", "release", id).await;
    let not_his = does(&world, "op-2", "withdraw", id).await;
    let taken_back = does(&world, "op-1", "withdraw", id).await;
    let nothing_left = does(&world, "op-1", "withdraw", id).await;
    does(&world, "op-1", "release", id).await;
    world.clock.advance(Duration::from_secs(86_400));
    let too_late = does(&world, "op-2", "release", id).await;
    let by_the_first = does(&world, "op-1", "release", id).await;

    assert!(matches!(not_his, Operated::NotBy(_)), "{not_his:?}");
    assert_eq!(taken_back, seconded(Status::Held));
    assert!(is_refused(&nothing_left), "{nothing_left:?}");
    assert!(matches!(too_late, Operated::Proposed(_)), "{too_late:?}");
    assert_eq!(
        by_the_first,
        Operated::Done {
            status: Status::Pending,
            target: "pln".into(),
            proposer: Some("op-2".into())
        }
    );
}

async fn a_settled_payment_answers_its_repeats_and_frees_its_lane(on: On) {
    let world = World::new(on).await;
    let payment = world.new_payment(1);
    let lease = world.forward(payment.clone()).await;
    let behind = world.new_payment(1);
    world.queue(behind.clone()).await;
    world.store.hold(&lease, HoldReason::Ambiguous).await.unwrap();
    let id = payment.facts.id;

    does(&world, "op-1", "paid", id).await;
    assert_eq!(does(&world, "op-2", "paid", id).await, seconded(Status::Success));

    let repeat = NewPayment { facts: world.new_payment(1).facts, ..payment };
    let begun = world.store.begin(repeat).await.unwrap();
    let Begun::Replay { status, answer, .. } = begun else { panic!("{begun:?}") };
    assert_eq!((status, answer), (Status::Success, Some(sealed(b"by hand"))));
    assert_eq!(world.view(id).await.response_code.as_deref(), Some("00"));
    assert_eq!(drain(&world).await, [behind.facts.id]);
}

/// Its payload may be needed again.
async fn a_dead_letter_keeps_its_data_key(on: On) {
    let queue = QueueConfig { attempts_max: 1, ..QueueConfig::default() };
    let world = World::with(on, queue).await;
    let (class, wrapped) = (DekClass::Record, vec![2; 40]);
    let dek = NewDek { class, kek_version: 1, wrapped, not_after: 1 };
    let dek_id = world.store.insert_dek(dek).await.unwrap();
    let payload = Some(Sealed { dek_id, ..sealed(b"payload") });
    let dead = exhausted_of(&world, NewPayment { payload, ..world.new_payment(1) }).await;

    let kept = world.store.destroy_deks(class, i64::MAX).await.unwrap();
    does(&world, "op-1", "cancel", dead).await;
    let destroyed = world.store.destroy_deks(class, i64::MAX).await.unwrap();

    assert_eq!((kept, destroyed), (vec![], vec![dek_id]));
}

async fn dead_letters(world: &World) -> i64 {
    let count = "SELECT count(*) FROM saf_dead_letter";
    query(count).one(&mut world.intruder().await.db()).await.unwrap().value().unwrap()
}

both! {
    a_held_payment_blocks_its_lane_until_it_is_released_in_its_old_place,
    one_that_is_held_behind_a_lease_stops_the_lane_when_its_turn_comes,
    a_cancelled_payment_leaves_the_lane_its_payload_and_keeps_its_key,
    a_retry_makes_due_what_rests_and_gives_its_attempts_back_to_what_was_held,
    what_failed_with_its_attempts_used_up_is_tried_again_in_its_old_place,
    a_dead_letter_alone_in_its_lane_comes_back_or_is_cancelled,
    every_act_counts_what_is_open,
    a_declined_payment_is_never_tried_again,
    nobody_touches_what_is_being_sent,
    acts_that_do_not_fit_the_state_change_nothing,
    a_payment_without_its_pin_block_or_payload_is_not_released,
    what_is_past_its_time_is_not_released,
    what_may_have_been_made_is_not_cancelled_without_a_reversal,
    what_may_have_been_made_moves_when_two_operators_say_the_same,
    a_proposal_ends_by_its_proposer_or_with_its_day,
    a_settled_payment_answers_its_repeats_and_frees_its_lane,
    a_dead_letter_keeps_its_data_key,
}
