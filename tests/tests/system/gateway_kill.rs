//! The gateway ends under load, by force or in good order: what it has acknowledged is made, once,
//! and what it has not can be asked for again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use harness::acquirer::{Answer, Payment};
use harness::billing::{Fault, Mode};
use harness::world::World;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::support::{Counter, assert_paid_once, effects_by_bill, lives, text, until};

const CLIENTS: usize = 8;
const DRAIN: Duration = Duration::from_secs(25);

/// By bill: the body, and the answer where there was one.
type Payments = BTreeMap<String, (Vec<u8>, Option<Answer>)>;

/// Clients that pay, one bill after the other, until told to stop or left without an answer.
struct Load {
    stop: Arc<AtomicBool>,
    clients: JoinSet<Payments>,
}

impl Load {
    fn begin(world: &World, name: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut clients = JoinSet::new();
        for number in 0..CLIENTS {
            let counter = if number % 2 == 0 { Counter::a(world) } else { Counter::b(world) };
            let (stop, name) = (stop.clone(), format!("{name}-{number}"));
            clients.spawn(async move {
                let mut payments = Payments::new();
                for turn in 0.. {
                    if stop.load(Relaxed) {
                        break;
                    }
                    let (biller, pin) = KINDS[(number / 2 + turn) % KINDS.len()];
                    let bill = format!("{name}-{turn}-{biller}-{pin}");
                    let payment = Payment::of(biller, &bill);
                    let payment = if pin == "pin" { payment.by_card() } else { payment };
                    let body = counter.body(&payment);
                    let answer = counter.client.pay(&counter.acquirer, &bill, body.clone()).await;
                    let answered = answer.is_ok();
                    payments.insert(bill, (body, answer.ok()));
                    if !answered {
                        break;
                    }
                }
                payments
            });
        }
        Self { stop, clients }
    }

    async fn end(self) -> Payments {
        self.stop.store(true, Relaxed);
        self.clients.join_all().await.into_iter().flatten().collect()
    }
}

const KINDS: [(&str, &str); 4] =
    [("pln", "plain"), ("pdam", "plain"), ("pln", "pin"), ("telkom", "pin")];

/// What was sent and not answered for, and is not stored in one piece, is left to a person.
fn may_be_held(bill: &str) -> bool {
    bill.ends_with("-pin")
}

fn counter_of(world: &World, bill: &str) -> Counter {
    let number: usize = bill.split('-').nth(1).unwrap().parse().unwrap();
    if number.is_multiple_of(2) { Counter::a(world) } else { Counter::b(world) }
}

/// Asks again for what was not answered, and waits until everything is made. How many are held.
async fn settle(world: &World, payments: &Payments) -> usize {
    let mut held = 0;
    for (bill, (body, answer)) in payments {
        let counter = counter_of(world, bill);
        let told = match answer {
            Some(answer) => answer.clone(),
            None => counter.pay(bill, body).await,
        };
        let mut status = text(&told, "status");
        if told.status == 202 {
            let id = text(&told, "id");
            until(bill, DRAIN, async || {
                status = counter.status(&id).await;
                !["PENDING", "PROCESSING"].contains(&&*status)
            })
            .await;
        }
        match &*status {
            "SUCCESS" => assert!(told.status == 202 || counter.acquirer.proves(&told), "{bill}"),
            "HELD" => {
                assert!(answer.is_none() && may_be_held(bill), "{bill}: {told:?}");
                held += 1;
                continue;
            }
            _ => panic!("{bill}: {status} after {told:?}"),
        }
        // Whatever the client was told, a repeat is told the same from now on.
        let again = counter.pay(bill, body).await;
        assert_eq!((again.status.as_u16(), &*text(&again, "status")), (200, "SUCCESS"), "{bill}");
    }
    held
}

#[tokio::test]
async fn a_gateway_that_is_killed_under_load_loses_nothing_and_pays_nothing_twice() {
    let mut world = World::start().await.unwrap();
    let control = world.billing_control().unwrap();
    let mut all = Payments::new();
    let (mut unanswered, mut held) = (0, 0);

    for (round, moment) in [50, 120, 200, 320, 500].into_iter().enumerate() {
        // In some rounds many payments are on their way to the biller, in some on their way back.
        let delay = Duration::from_millis(if round % 2 == 0 { 60 } else { 1 });
        control.set_mode(Fault::slow(delay)).await.unwrap();
        let load = Load::begin(&world, &format!("round{round}"));
        sleep(Duration::from_millis(moment)).await;
        let workers = world.workers();
        world.kill_gateway();
        let payments = load.end().await;

        assert_eq!(workers.len(), 2);
        until("its workers follow", Duration::from_secs(5), async || {
            !workers.iter().any(|worker| lives(*worker))
        })
        .await;
        world.start_gateway().await.unwrap();
        unanswered += payments.values().filter(|(_, answer)| answer.is_none()).count();
        held += settle(&world, &payments).await;
        all.extend(payments);
    }

    let ledger = control.ledger().await.unwrap();
    assert_paid_once(&ledger);
    let paid = effects_by_bill(&ledger);
    let unpaid: Vec<_> = all.keys().filter(|bill| !paid.contains_key(*bill)).collect();
    assert!(unpaid.len() <= held && unpaid.iter().all(|bill| may_be_held(bill)), "{unpaid:?}");
    assert!(unanswered >= CLIENTS, "{unanswered}: the kills met no payment");
    assert!(all.len() > 3 * CLIENTS, "{}", all.len());
}

#[tokio::test]
async fn a_gateway_that_is_killed_with_a_backlog_forwards_it_after_its_start() {
    let mut world = World::start().await.unwrap();
    let counter = Counter::a(&world);
    world.kill_billing();
    let mut queued = Vec::new();
    for number in 0..12 {
        let bill = format!("bill-{number}");
        let payment = Payment::of("pln", &bill);
        let payment = if number % 2 == 0 { payment.by_card() } else { payment };
        let answer = counter.pay(&bill, &counter.body(&payment)).await;
        assert_eq!(answer.status, 202, "{answer:?}");
        queued.push(text(&answer, "id"));
    }

    world.kill_gateway();
    world.start_billing().await.unwrap();
    world
        .billing_control()
        .unwrap()
        .set_mode(Fault::slow(Duration::from_millis(40)))
        .await
        .unwrap();
    world.start_gateway().await.unwrap();
    sleep(Duration::from_millis(150)).await;
    // Once more, in the middle of the drain.
    world.kill_gateway();
    world.start_gateway().await.unwrap();
    for id in &queued {
        until("paid", DRAIN, async || counter.status(id).await == "SUCCESS").await;
    }

    let ledger = world.billing_control().unwrap().ledger().await.unwrap();
    assert_paid_once(&ledger);
    assert_eq!(ledger.effects.len(), 12);
    assert_eq!(ledger.effects.iter().filter(|effect| effect.pin_seen).count(), 6);
}

#[tokio::test]
async fn a_gateway_that_is_told_to_stop_answers_what_is_in_flight_and_ends_well() {
    let mut world = World::start().await.unwrap();
    let control = world.billing_control().unwrap();
    control.set_mode(Fault::slow(Duration::from_millis(300))).await.unwrap();
    let load = Load::begin(&world, "drain");
    sleep(Duration::from_millis(700)).await;
    let workers = world.workers();

    world.stop_gateway().await.unwrap();
    let payments = load.end().await;
    world.start_gateway().await.unwrap();

    let answered: Vec<_> = payments.values().filter(|(_, answer)| answer.is_some()).collect();
    assert!(answered.len() >= 2 * CLIENTS, "{}", answered.len());
    assert!(!workers.iter().any(|worker| lives(*worker)));
    control.set_mode(Fault::always(Mode::Normal)).await.unwrap();
    // A request that came too late was not begun: it is made now, under its key.
    assert_eq!(settle(&world, &payments).await, 0);
    let ledger = control.ledger().await.unwrap();
    assert_paid_once(&ledger);
    assert_eq!(ledger.effects.len(), payments.len());
    let stops = world.audit().unwrap();
    let stops = stops.iter().filter(|event| event.to_string().contains("audit.stop"));
    assert!(stops.count() > 0);
}

/// A biller that never answers must not keep a gateway from stopping.
#[tokio::test]
async fn a_gateway_that_is_told_to_stop_waits_no_longer_than_its_drain_time() {
    let mut world = World::start().await.unwrap();
    let counter = Counter::a(&world);
    let control = world.billing_control().unwrap();
    control.set_mode(Fault::always(Mode::HangAfter)).await.unwrap();
    let mut paying = JoinSet::new();
    for number in 0..4 {
        let counter = counter.clone();
        paying.spawn(async move {
            let bill = format!("bill-{number}");
            counter.pay(&bill, &counter.body(&Payment::of("pdam", &bill))).await
        });
    }
    sleep(Duration::from_millis(300)).await;

    let begun = tokio::time::Instant::now();
    world.stop_gateway().await.unwrap();
    let took = begun.elapsed();
    let answers = paying.join_all().await;
    control.set_mode(Fault::always(Mode::Normal)).await.unwrap();
    world.start_gateway().await.unwrap();

    assert!(took < Duration::from_secs(10), "{took:?}");
    for answer in &answers {
        assert_eq!((answer.status.as_u16(), &*text(answer, "status")), (202, "PENDING"));
        let id = text(answer, "id");
        until("paid", DRAIN, async || counter.status(&id).await == "SUCCESS").await;
    }
    let ledger = control.ledger().await.unwrap();
    assert_paid_once(&ledger);
    assert_eq!(ledger.effects.len(), 4);
}
