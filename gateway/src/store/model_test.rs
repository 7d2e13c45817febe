//! Random sequences of operations against a model of the promises: one in flight for each account,
//! in order; a lost lease changes nothing; nothing accepted is lost, over any number of crashes; what may
//! have been made is moved by two operators or nobody.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::tests::{LEASE, On, World, new_payment};
use super::*;

#[derive(Debug, Clone)]
enum Step {
    Begin { lane: u8 },
    Claim,
    Complete { lease: prop::sample::Index },
    Release { lease: prop::sample::Index, sent: bool },
    Hold { lease: prop::sample::Index },
    Operate { item: prop::sample::Index, action: Action },
    LoseLeases,
    Expire,
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    let lease = any::<prop::sample::Index>;
    prop_oneof![
        6 => (0_u8..3).prop_map(|lane| Step::Begin { lane }),
        5 => Just(Step::Claim),
        5 => lease().prop_map(|lease| Step::Complete { lease }),
        4 => (lease(), any::<bool>()).prop_map(|(lease, sent)| Step::Release { lease, sent }),
        1 => lease().prop_map(|lease| Step::Hold { lease }),
        4 => (lease(), action()).prop_map(|(item, action)| Step::Operate { item, action }),
        2 => Just(Step::LoseLeases),
        1 => Just(Step::Expire),
        1 => Just(Step::Crash),
    ]
}

fn action() -> impl Strategy<Value = Action> {
    let answer = None;
    let paid = Ending { outcome: Outcome::Done, code: "00".to_owned(), answer };
    let actions = vec![
        Action::Hold,
        Action::Release,
        Action::Retry,
        Action::Cancel,
        Action::Settle(paid),
        Action::Withdraw,
    ];
    prop::sample::select(actions)
}

struct Item {
    id: Uuid,
    lane: u8,
    expires_at: i64,
    status: Status,
    sent: bool,
    abandoned: u8,
}

/// A lease as it was given: for ever, of an item, perhaps lost.
struct Given {
    lease: Lease,
    item: usize,
    valid: bool,
    completed: bool,
    released: bool,
    held: bool,
}

#[derive(Default)]
struct Model {
    items: Vec<Item>,
    given: Vec<Given>,
}

impl Item {
    /// What two operators in a row can make of it; `None`: neither of them anything.
    fn after(&self, action: &Action, now: i64) -> Option<Status> {
        let is_young = self.expires_at > now;
        match (action, self.status) {
            (Action::Hold, Status::Pending) => Some(Status::Held),
            (Action::Retry, Status::Pending) => Some(Status::Pending),
            (Action::Release | Action::Retry, Status::Held) if is_young => Some(Status::Pending),
            (Action::Cancel, Status::Pending | Status::Held) if !self.sent => {
                Some(Status::Cancelled)
            }
            (Action::Settle(_), Status::Held) if self.sent => Some(Status::Success),
            _ => None,
        }
    }
}

impl Model {
    fn head(&self, lane: u8) -> Option<usize> {
        let open =
            |it: &Item| matches!(it.status, Status::Pending | Status::Processing | Status::Held);
        self.items.iter().position(|it| it.lane == lane && open(it))
    }

    fn give(&mut self, item: usize, lease: Lease) {
        let in_flight = self.given.iter().any(|it| it.valid && it.lease.ord_key == lease.ord_key);
        assert!(!in_flight, "two in flight for one account");
        self.items[item].status = Status::Processing;
        let (completed, released, held) = (false, false, false);
        self.given.push(Given { lease, item, valid: true, completed, released, held });
    }

    fn expire(&mut self, now: i64) {
        for item in &mut self.items {
            if item.status == Status::Pending && item.expires_at <= now {
                item.status = if item.sent { Status::Held } else { Status::Expired };
            }
        }
    }

    fn lose_leases(&mut self) {
        for given in &mut self.given {
            if std::mem::take(&mut given.valid) {
                let item = &mut self.items[given.item];
                (item.sent, item.abandoned) = (true, item.abandoned + 1);
                item.status = if item.abandoned < 5 { Status::Pending } else { Status::Held };
            }
        }
    }
}

async fn run(on: On, steps: Vec<Step>) {
    let mut world = World::new(on).await;
    let mut model = Model::default();
    // Longer than any back-off.
    let rest = Duration::from_secs(400);
    for step in steps {
        match step {
            Step::Begin { lane } => {
                let payment = new_payment(world.store.now(), lane);
                let (id, expires_at) = (payment.facts.id, payment.facts.expires_at);
                let behind = model.head(lane).is_some();
                let (status, sent, abandoned) = (Status::Pending, false, 0);
                model.items.push(Item { id, lane, expires_at, status, sent, abandoned });
                let begun = world.store.begin(payment).await.unwrap();
                assert_eq!(matches!(begun, Begun::Queued { .. }), behind, "{begun:?}");
                if let Begun::Forward(lease) = begun {
                    model.give(model.items.len() - 1, lease);
                }
            }
            Step::Claim => {
                model.expire(world.store.now());
                let mut expected: Vec<_> = (0..3)
                    .filter_map(|lane| model.head(lane))
                    .filter(|head| model.items[*head].status == Status::Pending)
                    .collect();
                for claimed in world.claim(100).await {
                    let item = model.items.iter().position(|it| it.id == claimed.facts.id).unwrap();
                    let place = expected.iter().position(|it| *it == item);
                    expected.remove(place.expect("only heads that nobody holds are handed out"));
                    assert_eq!(claimed.sent_unknown, model.items[item].sent);
                    model.give(item, claimed.lease);
                }
                assert!(expected.is_empty(), "not handed out: {expected:?}");
            }
            Step::Complete { lease } if !model.given.is_empty() => {
                let given = lease.get(&model.given).lease.clone();
                let code = "00".to_owned();
                let ending = Ending { outcome: Outcome::Done, code, answer: None };
                let settled = world.store.complete(&given, ending).await.unwrap();
                let given = model.given.iter_mut().find(|it| it.lease == given).unwrap();
                if std::mem::take(&mut given.valid) {
                    given.completed = true;
                    model.items[given.item].status = Status::Success;
                }
                let expected = if given.completed { Settled::Recorded } else { Settled::Stale };
                assert_eq!(settled, expected);
            }
            Step::Release { lease, sent } if !model.given.is_empty() => {
                let given = lease.get(&model.given).lease.clone();
                let class = if sent { Class::SentUnknown } else { Class::NotSent };
                let retry_in = Duration::ZERO;
                let parking = Parking { retry_in, class, code: None, counts: false, pin: None };
                let parked = world.store.release(&given, parking).await.unwrap();
                let given = model.given.iter_mut().find(|it| it.lease == given).unwrap();
                if std::mem::take(&mut given.valid) {
                    given.released = true;
                    let item = &mut model.items[given.item];
                    (item.status, item.sent) = (Status::Pending, item.sent || sent);
                    assert_eq!(parked, Parked::Waiting);
                } else if !given.released {
                    assert_eq!(parked, Parked::Stale);
                }
            }
            Step::Hold { lease } if !model.given.is_empty() => {
                let given = lease.get(&model.given).lease.clone();
                let settled = world.store.hold(&given, HoldReason::Ambiguous).await.unwrap();
                let given = model.given.iter_mut().find(|it| it.lease == given).unwrap();
                if std::mem::take(&mut given.valid) {
                    given.held = true;
                    let item = &mut model.items[given.item];
                    (item.status, item.sent) = (Status::Held, true);
                }
                let expected = if given.held { Settled::Recorded } else { Settled::Stale };
                assert_eq!(settled, expected);
            }
            Step::Operate { item, action } if !model.items.is_empty() => {
                let at = item.index(model.items.len());
                let item = &mut model.items[at];
                let after = item.after(&action, world.store.now());
                let two = item.sent && !matches!(action, Action::Hold);
                for (actor, last) in [("op-1", !two), ("op-2", two)] {
                    let (id, action) = (item.id, action.clone());
                    let (actor, reason) = (actor.to_owned(), "r".to_owned());
                    let word = Operation { id, action, actor, reason };
                    let operated = world.store.operate(word).await.unwrap();
                    let done = matches!(operated, Operated::Done { .. });
                    assert_eq!(done, after.is_some() && last, "{operated:?}");
                    if !two {
                        break;
                    }
                }
                if let Some(status) = after {
                    let is_fresh = matches!(action, Action::Retry) && item.status == Status::Held;
                    item.abandoned = if is_fresh { 0 } else { item.abandoned };
                    item.status = status;
                }
            }
            Step::Complete { .. }
            | Step::Release { .. }
            | Step::Hold { .. }
            | Step::Operate { .. } => {}
            Step::LoseLeases => {
                world.clock.advance(LEASE);
                world.store.rescue().await.unwrap();
                model.lose_leases();
                world.clock.advance(rest);
            }
            Step::Expire => {
                world.clock.advance(Duration::from_secs(1_800));
                // Leases that ran out meanwhile are still their holders' until the rescue.
                world.store.expire().await.unwrap();
                model.expire(world.store.now());
            }
            Step::Crash => {
                world = world.after_a_crash().await;
                model.lose_leases();
                world.clock.advance(rest);
            }
        }
        for item in &model.items {
            assert_eq!(world.view(item.id).await.status, item.status);
        }
    }
}

fn keeps_the_promises(on: On, cases: u32) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut runner = TestRunner::new(Config::with_cases(cases));

    let outcome = runner.run(&prop::collection::vec(step(), 1..60), |steps| {
        let tried = std::panic::AssertUnwindSafe(|| runtime.block_on(run(on, steps)));
        std::panic::catch_unwind(tried).map_err(|_| TestCaseError::fail("see the panic above"))
    });

    if let Err(broken) = outcome {
        panic!("{broken}");
    }
}

#[test]
fn any_sequence_of_operations_keeps_the_promises_on_sqlite() {
    keeps_the_promises(On::Sqlite, 24);
}

#[test]
fn any_sequence_of_operations_keeps_the_promises_on_postgres() {
    keeps_the_promises(On::Postgres, 24);
}
