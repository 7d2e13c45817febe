//! What operators see of the queue, and billers that they keep paused.

use super::operators::{drain, held, waits};
use super::*;

async fn a_paused_biller_gets_nothing_until_it_is_resumed(on: On) {
    let world = World::new(on).await;
    let waiting = waits(&world, 1).await;
    let [first, second] = [0; 2].map(|_| world.new_payment(2));
    let lease = world.forward(first).await;
    world.queue(second.clone()).await;

    pause(&world, true).await;
    let new = world.new_payment(3);
    world.queue(new.clone()).await;
    let mut may_not_wait = world.new_payment(4);
    (may_not_wait.payload, may_not_wait.may_wait) = (None, false);
    let refused = world.store.begin(may_not_wait).await.unwrap();
    let taker = Taker { owner: "forwarder".into(), lease: LEASE };
    let in_flight = world.store.complete_and_take(&lease, done(), taker).await.unwrap();
    let while_paused = drain(&world).await;
    let world = world.after_a_crash().await;
    let after_a_restart = drain(&world).await;
    let paused = world.store.controls().await.unwrap();
    pause(&world, false).await;

    assert_eq!(refused, Begun::Busy);
    assert_eq!((in_flight.0, in_flight.1.is_some()), (Settled::Recorded, false));
    assert!(while_paused.is_empty() && after_a_restart.is_empty());
    let [StandingControl { control, .. }] = paused.try_into().unwrap();
    assert!(control.paused && control.actor == "op-1" && control.reason == "their database");
    assert_eq!(drain(&world).await, [waiting, second.facts.id, new.facts.id]);
    assert_eq!(world.count("saf_lane").await, 0);
}

/// A file has one gateway.
#[tokio::test]
async fn a_pause_of_another_gateway_is_followed_within_a_second() {
    let world = World::new(On::Postgres).await;
    let other = Store::open_at(&world.config(), &world.queue, world.clock.clone()).await.unwrap();
    waits(&world, 1).await;
    let claim = |store: Store| async move {
        let (target, owner) = ("pln".to_owned(), "other".to_owned());
        store.claim(Claim { target, rows: 1, owner, lease: LEASE }).await.unwrap().len()
    };
    assert_eq!(claim(other.clone()).await, 1);
    world.clock.advance(LEASE);
    world.store.rescue().await.unwrap();
    world.clock.advance(Duration::from_secs(2));

    pause(&world, true).await;
    tokio::time::sleep(Duration::from_secs(1)).await;

    assert_eq!(claim(other.clone()).await, 0);
    other.close().await;
}

async fn pause(world: &World, paused: bool) {
    let (target, actor, reason) = ("pln".into(), "op-1".into(), "their database".into());
    world.store.control(Control { target, paused, actor, reason }).await.unwrap();
}

async fn lists_are_filtered_and_turned_page_by_page(on: On) {
    let world = World::new(on).await;
    let waiting = waits(&world, 1).await;
    let in_flight = world.new_payment(2);
    world.forward(in_flight.clone()).await;
    let ambiguous = held(&world, 3, HoldReason::Ambiguous).await;
    let mut urgent = world.new_payment(1);
    urgent.facts.prio = Priority::High;
    world.clock.advance(Duration::from_secs(1));
    urgent.facts.created_at = world.store.now();
    world.queue(urgent.clone()).await;
    let (urgent, in_flight) = (urgent.facts.id, in_flight.facts.id);
    let all = ListFilter { limit: 500, ..ListFilter::default() };
    let list = async |filter: ListFilter| -> Vec<Uuid> {
        let rows = world.store.list(&filter).await.unwrap();
        rows.iter().map(|row| row.facts.id).collect()
    };
    let of = |statuses: &[Status]| ListFilter { statuses: statuses.to_vec(), ..all.clone() };

    assert_eq!(list(all.clone()).await, [urgent, ambiguous, in_flight, waiting]);
    assert_eq!(list(of(&[Status::Pending])).await, [urgent, waiting]);
    assert_eq!(list(of(&[Status::Processing])).await, [in_flight]);
    assert_eq!(list(of(&[Status::Held, Status::Failed])).await, [ambiguous]);
    let high = ListFilter { priority: Some(Priority::High), ..all.clone() };
    assert_eq!(list(high).await, [urgent]);
    let held = ListFilter { hold_reason: Some("ambiguous".into()), ..all.clone() };
    assert_eq!(list(held).await, [ambiguous]);
    let old = ListFilter { created_before: Some(world.store.now()), ..all.clone() };
    assert_eq!(list(old).await, [ambiguous, in_flight, waiting]);
    for (target, kind, rows) in [("pln", "payment", 4), ("pdam", "payment", 0), ("pln", "x", 0)] {
        let (target, kind) = (Some(target.into()), Some(kind.into()));
        assert_eq!(list(ListFilter { target, kind, ..all.clone() }).await.len(), rows);
    }
    let page = ListFilter { oldest_first: true, limit: 3, ..ListFilter::default() };
    let first = world.store.list(&page).await.unwrap();
    let rest = ListFilter { after: first.last().map(|row| row.seq), ..page };
    let first: Vec<Uuid> = first.iter().map(|row| row.facts.id).collect();
    assert_eq!((first, list(rest).await), (vec![waiting, in_flight, ambiguous], vec![urgent]));
}

async fn one_payment_is_shown_with_its_place_and_the_figures_count_all(on: On) {
    let world = World::new(on).await;
    let first = world.new_payment(1);
    world.forward(first.clone()).await;
    let second = world.new_payment(1);
    world.queue(second.clone()).await;
    held(&world, 2, HoldReason::Poison).await;
    world.clock.advance(Duration::from_secs(5));

    let [leased, behind] = [first.facts.id, second.facts.id].map(|id| {
        let store = world.store.clone();
        async move { store.show(id).await }
    });
    let (leased, behind) = (leased.await.unwrap().unwrap(), behind.await.unwrap().unwrap());
    let stats = world.store.queue_stats().await.unwrap();

    assert_eq!((leased.before, leased.lease_owner.as_deref()), (0, Some("front")));
    assert_eq!(leased.listed.status, Status::Processing);
    assert_eq!((behind.before, behind.lease_owner), (1, None));
    assert_eq!(behind.listed.facts, second.facts);
    let cells: Vec<_> = stats
        .cells
        .iter()
        .map(|cell| (cell.status, &*cell.target, cell.hold_reason.as_deref(), cell.rows))
        .collect();
    assert_eq!(
        cells,
        [
            (Status::Pending, "pln", None, 1),
            (Status::Processing, "pln", None, 1),
            (Status::Held, "pln", Some("poison"), 1)
        ]
    );
    assert_eq!((stats.oldest_ms, stats.expiring), (Some(5_000), 1));
    assert_eq!(world.store.show(Uuid::now_v7()).await.unwrap(), None);
}

both! {
    a_paused_biller_gets_nothing_until_it_is_resumed,
    lists_are_filtered_and_turned_page_by_page,
    one_payment_is_shown_with_its_place_and_the_figures_count_all,
}
