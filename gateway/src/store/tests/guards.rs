//! Counters that keep PINs from being guessed, and DUKPT counters that must grow.

use tokio::task::JoinSet;

use super::*;

const PAN: [u8; 16] = [7; 16];
const ROWS_MAX: u32 = 1_000;
const DAY: Duration = Duration::from_secs(86_400);

fn window(short_max: u32, long_max: u32) -> Window {
    let hour = Duration::from_secs(3_600);
    Window { rule: "pan-translation", short: (hour, short_max), long: (DAY, long_max) }
}

impl World {
    async fn counted(&self, window: Window) -> Counted {
        self.store.count(window, &PAN, ROWS_MAX).await.unwrap()
    }

    async fn begin_try(&self) -> Try {
        begin_try(&self.store).await
    }

    async fn failures(&self) -> i64 {
        let failures = "SELECT tries - cleared FROM pan_tries";
        query(failures).one(&mut self.intruder().await.db()).await.unwrap().value().unwrap()
    }
}

/// Five failures in a row block the card for a day.
async fn begin_try(store: &Store) -> Try {
    let of_client = window(10_000, 10_000);
    store.begin_try(PAN, "acquirer-a", of_client, (5, DAY), ROWS_MAX).await.unwrap()
}

async fn ten_an_hour_are_counted_and_thirty_a_day(on: On) {
    let world = World::new(on).await;
    let mut counted = Vec::new();

    for _ in 0..4 {
        for _ in 0..10 {
            counted.push(world.counted(window(10, 30)).await);
        }
        let over = world.counted(window(10, 30)).await;
        assert!(matches!(over, Counted::Over { .. }), "{over:?}");
        world.clock.advance(Duration::from_secs(3_600));
    }

    let within = counted.iter().filter(|one| **one == Counted::Within).count();
    assert_eq!(within, 30, "{counted:?}");
    world.clock.advance(DAY);
    assert_eq!(world.counted(window(10, 30)).await, Counted::Within);
}

async fn the_first_event_too_many_says_so_and_is_not_counted(on: On) {
    let world = World::new(on).await;
    for _ in 0..2 {
        world.counted(window(2, 3)).await;
    }

    let told: Vec<bool> = [world.counted(window(2, 3)).await, world.counted(window(2, 3)).await]
        .into_iter()
        .map(|over| matches!(over, Counted::Over { first: true, .. }))
        .collect();
    world.store.uncount("pan-translation", &PAN).await.unwrap();

    assert_eq!(told, [true, false]);
    assert_eq!(world.counted(window(2, 3)).await, Counted::Within);
    assert!(matches!(world.counted(window(2, 3)).await, Counted::Over { .. }));
}

/// A thousand guesses at once make as many calls as the limit, and a killed gateway remembers them.
async fn of_a_thousand_tries_at_once_five_are_granted(on: On) {
    let world = World::new(on).await;

    let mut tries = JoinSet::new();
    for _ in 0..1_000 {
        let store = world.store.clone();
        tries.spawn(async move { begin_try(&store).await });
    }
    let tries = tries.join_all().await;
    let next = world.after_a_crash().await;

    let granted = tries.iter().filter(|one| matches!(one, Try::Granted(_))).count();
    assert_eq!((granted, tries.contains(&Try::Blocked)), (5, true));
    assert_eq!(next.begin_try().await, Try::Blocked);
    world.clock.advance(DAY);
    assert!(matches!(next.begin_try().await, Try::Granted(_)));
    assert_eq!(next.failures().await, 1);
}

async fn a_right_pin_clears_what_began_before_it_and_nothing_else(on: On) {
    let world = World::new(on).await;
    let mut numbers = Vec::new();
    for _ in 0..4 {
        let Try::Granted(number) = world.begin_try().await else { panic!("blocked") };
        numbers.push(number);
    }

    world.store.end_try(PAN, numbers[2], TryEnd::Right).await.unwrap();
    let after_right = world.failures().await;
    world.store.end_try(PAN, numbers[1], TryEnd::NotAsked).await.unwrap();
    let after_older = world.failures().await;
    world.store.end_try(PAN, numbers[3], TryEnd::NotAsked).await.unwrap();

    assert_eq!((after_right, after_older, world.failures().await), (1, 1, 0));
}

async fn rows_have_a_bound_and_those_that_ended_make_room(on: On) {
    let world = World::new(on).await;
    let count = async |subject: u8| world.store.count(window(5, 5), &[subject], 2).await.unwrap();
    for subject in [1, 2] {
        assert_eq!(count(subject).await, Counted::Within);
    }

    assert_eq!(count(3).await, Counted::NoRoom);
    assert_eq!(count(2).await, Counted::Within);
    world.clock.advance(DAY + Duration::from_secs(1));
    let pruned = world.store.prune(PruneRule { ended_before: 0 }).await.unwrap();

    assert_eq!(pruned.counters, 2);
    assert_eq!(count(3).await, Counted::Within);
}

async fn a_quarantine_outlives_a_crash_and_not_its_end(on: On) {
    let world = World::new(on).await;
    let until = world.store.now() + 60_000;
    world.store.quarantine(GuardScope::Mac, "zak.a", until).await.unwrap();

    let known = world.after_a_crash().await.store.quarantined().await.unwrap();
    world.clock.advance(Duration::from_secs(60));

    assert_eq!(known, [(GuardScope::Mac, "zak.a".to_owned(), until)]);
    assert_eq!(world.store.quarantined().await.unwrap(), []);
}

fn used(counter: u32, holder: Option<[u8; 32]>) -> DukptUse {
    let (key_label, device) = ("bdk.a".to_owned(), vec![0xFF; 10]);
    DukptUse { key_label, purpose: DukptPurpose::Pin, device, counter, holder }
}

async fn of_any_number_of_uses_of_one_ksn_one_succeeds(on: On) {
    let world = World::new(on).await;

    let mut uses = JoinSet::new();
    for _ in 0..64 {
        let store = world.store.clone();
        uses.spawn(async move { store.advance(used(5, None), ROWS_MAX).await.unwrap() });
    }
    let uses = uses.join_all().await;
    let next = world.after_a_crash().await;

    assert_eq!(uses.iter().filter(|one| **one == Advanced::Grown).count(), 1);
    for (counter, is_new) in [(4, false), (5, false), (6, true)] {
        assert_eq!(next.store.is_new(&used(counter, None)).await.unwrap(), is_new, "{counter}");
        let advanced = next.store.advance(used(counter, None), ROWS_MAX).await.unwrap();
        assert_eq!(advanced == Advanced::Grown, is_new, "{counter}");
    }
}

async fn only_the_request_that_holds_a_ksn_may_bring_it_again(on: On) {
    let world = World::new(on).await;
    let store = &world.store;
    let (own, other) = (Some([1; 32]), Some([2; 32]));
    store.advance(used(5, own), ROWS_MAX).await.unwrap();

    for (counter, holder, wanted) in
        [(5, own, true), (5, other, false), (5, None, false), (4, own, false)]
    {
        assert_eq!(store.is_new(&used(counter, holder)).await.unwrap(), wanted, "{counter}");
        let advanced = store.advance(used(counter, holder), ROWS_MAX).await.unwrap();
        assert_eq!(advanced == Advanced::Grown, wanted, "{counter} {holder:?}");
    }
}

async fn a_mac_and_another_key_count_for_themselves_and_devices_have_a_bound(on: On) {
    let world = World::new(on).await;
    let advance = async |used| world.store.advance(used, 1).await.unwrap();
    assert_eq!(advance(used(5, None)).await, Advanced::Grown);

    let of_mac = DukptUse { purpose: DukptPurpose::Mac, ..used(5, None) };
    let of_key = DukptUse { key_label: "bdk.b".into(), ..used(5, None) };
    let of_device = DukptUse { device: vec![0xAA; 12], ..used(5, None) };

    assert_eq!(advance(of_mac).await, Advanced::Grown);
    assert_eq!(advance(of_key).await, Advanced::Grown);
    assert_eq!(advance(of_device).await, Advanced::NoRoom);
    assert_eq!(advance(used(6, None)).await, Advanced::Grown);
}

both! {
    ten_an_hour_are_counted_and_thirty_a_day,
    the_first_event_too_many_says_so_and_is_not_counted,
    of_a_thousand_tries_at_once_five_are_granted,
    a_right_pin_clears_what_began_before_it_and_nothing_else,
    rows_have_a_bound_and_those_that_ended_make_room,
    a_quarantine_outlives_a_crash_and_not_its_end,
    of_any_number_of_uses_of_one_ksn_one_succeeds,
    only_the_request_that_holds_a_ksn_may_bring_it_again,
    a_mac_and_another_key_count_for_themselves_and_devices_have_a_bound,
}
