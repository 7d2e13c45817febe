//! Two gateways' stores on one server: many workers, abandoned leases, a worker that was cut off;
//! a history of what each was told, and the rules of the lanes held against it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use tokio::task::JoinSet;

use super::*;

const LANES: u8 = 6;
const ENQUEUERS: u32 = 4;
const WORKERS: u32 = 10;
const ITEMS: u32 = 5_000;
/// Of a hundred leases so many are abandoned.
const ABANDONED: u32 = 5;

/// Who may be sending what, and what was sent, as the senders saw it.
struct History {
    clock: Clock,
    /// By lane: a lease's token, and until when it cannot have been given to another.
    sending: Mutex<HashMap<OrdKey, (i64, i64)>>,
    /// By lane: what was sent, in order.
    sent: Mutex<HashMap<OrdKey, Vec<i64>>>,
    /// By lane and enqueuer: places, in the order in which they were acknowledged.
    placed: Mutex<BTreeMap<(OrdKey, u32), Vec<i64>>>,
    violations: Mutex<Vec<String>>,
    recorded: AtomicU32,
    abandoned: AtomicU32,
    late_and_rejected: AtomicU32,
    late_and_recorded: AtomicU32,
}

impl History {
    fn new(clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            clock,
            sending: Mutex::default(),
            sent: Mutex::default(),
            placed: Mutex::default(),
            violations: Mutex::default(),
            recorded: AtomicU32::new(0),
            abandoned: AtomicU32::new(0),
            late_and_rejected: AtomicU32::new(0),
            late_and_recorded: AtomicU32::new(0),
        })
    }

    /// A lease that was asked for at `asked`. Whether it can be relied on still.
    fn begins(&self, lease: &Lease, asked: i64) -> bool {
        let (now, until) = (self.clock.now(), asked + super::super::clock::ms(LEASE));
        if now >= until {
            return false;
        }
        let before = self.sending.lock().unwrap().insert(lease.ord_key, (lease.token, until));
        if let Some((token, until)) = before
            && now < until
        {
            let two = format!("{}: {token} and {} at once", lease.ord_key.0[0], lease.token);
            self.violations.lock().unwrap().push(two);
        }
        self.sent.lock().unwrap().entry(lease.ord_key).or_default().push(lease.seq);
        true
    }

    /// Its sender has done what it does: from now on another may have the lane.
    fn ends(&self, lease: &Lease) {
        let mut sending = self.sending.lock().unwrap();
        if sending.get(&lease.ord_key).is_some_and(|(token, _)| *token == lease.token) {
            sending.remove(&lease.ord_key);
        }
    }

    fn violations(&self) -> Vec<String> {
        let mut found = self.violations.lock().unwrap().clone();
        for (lane, sent) in &*self.sent.lock().unwrap() {
            if let Some(pair) = sent.windows(2).find(|pair| pair[1] < pair[0]) {
                found.push(format!("{}: {} was sent before {}", lane.0[0], pair[0], pair[1]));
            }
        }
        for ((lane, _), placed) in &*self.placed.lock().unwrap() {
            if let Some(pair) = placed.windows(2).find(|pair| pair[1] < pair[0]) {
                found.push(format!(
                    "{}: {} was acknowledged before {}",
                    lane.0[0], pair[0], pair[1]
                ));
            }
        }
        found
    }
}

/// Sends what was leased, or dies with it and is heard of when it is too late.
async fn send(
    store: &Store,
    history: &Arc<History>,
    lease: Lease,
    asked: i64,
    late: &mut JoinSet<()>,
) {
    if !history.begins(&lease, asked) {
        return;
    }
    if getrandom::u32().unwrap() % 100 >= ABANDONED {
        tokio::task::yield_now().await;
        history.ends(&lease);
        if store.complete(&lease, done()).await.unwrap() == Settled::Recorded {
            history.recorded.fetch_add(1, SeqCst);
        }
        return;
    }
    history.abandoned.fetch_add(1, SeqCst);
    let (store, history) = (store.clone(), history.clone());
    late.spawn(async move {
        let until = history.clock.now() + 2 * super::super::clock::ms(LEASE);
        while history.clock.now() < until {
            tokio::time::sleep(TICK).await;
        }
        let counter = match store.complete(&lease, done()).await.unwrap() {
            Settled::Stale => &history.late_and_rejected,
            // Nobody had looked for lost leases in the meantime.
            Settled::Recorded | Settled::Held => &history.late_and_recorded,
        };
        counter.fetch_add(1, SeqCst);
    });
}

/// Returns when nothing was recorded for a long time.
async fn stands_still(history: &History) {
    let recorded = || history.recorded.load(SeqCst) + history.late_and_recorded.load(SeqCst);
    loop {
        let before = recorded();
        tokio::time::sleep(Duration::from_secs(20)).await;
        if recorded() == before {
            return;
        }
    }
}

/// The clock of everybody runs two hundred times as fast as ours, so that a lease is a sixth of
/// a second.
const TICK: Duration = Duration::from_millis(5);

async fn second_store(world: &World) -> Store {
    Store::open_at(&world.config(), &world.queue, world.clock.clone()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_workers_of_two_gateways_keep_each_account_in_order_and_one_in_flight() {
    let world =
        World::with(On::Postgres, QueueConfig { rows_max: 100_000, ..QueueConfig::default() })
            .await;
    let stores = [world.store.clone(), second_store(&world).await];
    let history = History::new(world.clock.clone());
    let running = Arc::new(AtomicU32::new(1));
    let mut upkeep = JoinSet::new();
    for store in stores.clone() {
        let (clock, running) = (world.clock.clone(), running.clone());
        upkeep.spawn(async move {
            let mut ticks = 0_u32;
            while running.load(SeqCst) > 0 {
                tokio::time::sleep(TICK).await;
                // Both tick: together a second in five milliseconds.
                clock.advance(Duration::from_millis(500));
                ticks += 1;
                if ticks.is_multiple_of(5) {
                    store.rescue().await.unwrap();
                }
            }
        });
    }

    let mut tasks = JoinSet::new();
    for enqueuer in 0..ENQUEUERS {
        let (store, history) = (stores[enqueuer as usize % 2].clone(), history.clone());
        tasks.spawn(async move {
            let mut late = JoinSet::new();
            for turn in 0..ITEMS / ENQUEUERS {
                let lane = (getrandom::u32().unwrap() % u32::from(LANES)) as u8;
                let mut payment = new_payment(store.now(), lane);
                // The clock runs through a payment's usual life in seconds.
                payment.facts.expires_at = i64::MAX / 2;
                let (asked, ord_key) = (history.clock.now(), payment.facts.ord_key);
                let begun = store.begin(payment).await.unwrap();
                let (seq, lease) = if let Begun::Queued { seq } = begun {
                    (seq, None)
                } else {
                    let Begun::Forward(lease) = begun else { panic!("{begun:?}") };
                    (lease.seq, Some(lease))
                };
                history.placed.lock().unwrap().entry((ord_key, enqueuer)).or_default().push(seq);
                if let Some(lease) = lease {
                    send(&store, &history, lease, asked, &mut late).await;
                }
                if turn % 8 == 0 {
                    // Time for the workers.
                    tokio::time::sleep(TICK).await;
                }
            }
            late.join_all().await;
        });
    }
    for worker in 0..WORKERS {
        let (store, history) = (stores[worker as usize % 2].clone(), history.clone());
        tasks.spawn(async move {
            let mut late = JoinSet::new();
            let ended = || {
                let late = history.late_and_recorded.load(SeqCst);
                history.recorded.load(SeqCst) + late >= ITEMS
            };
            while !ended() {
                let asked = history.clock.now();
                let (target, owner) = ("pln".to_owned(), worker.to_string());
                let claim = Claim { target, rows: 2, owner, lease: LEASE };
                let claimed = store.claim(claim).await.unwrap();
                if claimed.is_empty() {
                    tokio::time::sleep(TICK).await;
                }
                for one in claimed {
                    send(&store, &history, one.lease, asked, &mut late).await;
                }
            }
            late.join_all().await;
        });
    }
    tokio::select! {
        _ = tasks.join_all() => {}
        () = stands_still(&history) => panic!("nothing moves: {:?}", history.violations()),
    }
    running.store(0, SeqCst);
    upkeep.join_all().await;

    assert_eq!(history.violations(), Vec::<String>::new());
    assert_eq!(world.count("saf_item").await, i64::from(ITEMS));
    assert_eq!(world.count("saf_lane").await, 0, "nothing is left");
    assert_eq!(world.held().await, []);
    let (abandoned, rejected) =
        (history.abandoned.load(SeqCst), history.late_and_rejected.load(SeqCst));
    assert!(abandoned > ITEMS / 50 && rejected > 0, "{abandoned} abandoned, {rejected} rejected");
}

/// It comes back and reports, when its payment is somebody else's.
#[tokio::test]
async fn a_gateway_that_was_cut_off_for_two_leases_changes_nothing() {
    let world = World::new(On::Postgres).await;
    let other = second_store(&world).await;
    let payment = world.new_payment(1);
    let lost = world.forward(payment.clone()).await;
    world.clock.advance(LEASE * 2);
    let rescued = other.rescue().await.unwrap();
    world.clock.advance(Duration::from_secs(2));
    let (target, owner) = ("pln".to_owned(), "other".to_owned());
    let claim = Claim { target, rows: 1, owner, lease: LEASE };
    let holder = other.claim(claim).await.unwrap().remove(0);

    let late = world.store.complete(&lost, done()).await.unwrap();
    let before = world.status(payment.facts.id).await;
    let ended = other.complete(&holder.lease, done()).await.unwrap();

    assert_eq!((rescued, late), (Rescued { freed: 1, held: 0, failed: 0 }, Settled::Stale));
    assert!(holder.sent_unknown, "a lost lease counts as sent");
    assert_eq!((before, ended), (Status::Processing, Settled::Recorded));
    assert_eq!(world.status(payment.facts.id).await, Status::Success);
}

/// A machine whose clock is an hour ahead, or behind.
#[tokio::test]
async fn a_gateway_whose_clock_is_an_hour_off_claims_nothing_twice_and_ends_no_life() {
    for off_ms in [-3_600_000, 3_600_000] {
        let world = World::new(On::Postgres).await;
        let right = Store::open(&world.config(), &world.queue).await.unwrap();
        let clock = Clock::of_server_on(right.now() + off_ms);
        let off = Store::open_at(&world.config(), &world.queue, clock).await.unwrap();
        let begin = async |lane: u8| {
            let mut payment = new_payment(right.now(), lane);
            payment.facts.expires_at = right.now() + 600_000;
            let begun = right.begin(payment).await.unwrap();
            let Begun::Forward(lease) = begun else { panic!("{begun:?}") };
            lease
        };
        let (sending, resting, due) = (begin(1).await, begin(2).await, begin(3).await);
        let parking = |rest| Parking { retry_in: rest, ..parking(Class::NotSent) };
        right.release(&resting, parking(Duration::from_secs(1_800))).await.unwrap();
        right.release(&due, parking(Duration::ZERO)).await.unwrap();

        let upkeep = (off.rescue().await.unwrap(), off.expire().await.unwrap());
        let claim = |owner: &str| {
            let (target, owner) = ("pln".to_owned(), owner.to_owned());
            Claim { target, rows: 10, owner, lease: LEASE }
        };
        let claimed = off.claim(claim("off")).await.unwrap();
        let again = right.claim(claim("right")).await.unwrap();
        let ended = right.complete(&sending, done()).await.unwrap();

        assert_eq!(upkeep, (Rescued::default(), Expired::default()), "{off_ms}");
        assert_eq!((claimed.len(), again.len()), (1, 0), "{off_ms}");
        assert_eq!(claimed[0].lease.seq, due.seq);
        assert_eq!(ended, Settled::Recorded, "nobody else had it");
        assert!((off.now() - right.now()).abs() < 2_000, "{off_ms}");
    }
}
