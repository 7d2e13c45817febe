//! HSM workers die, hang and lose their token under load: no wrong answer, no late one, no lost
//! payment; with one worker left nobody notices, and the link comes back without help.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use harness::acquirer::{Answer, Failure, Payment, PinSide};
use harness::demo_keys::DemoKeys;
use harness::soft::pin::{PinFormat, open_pin};
use harness::world::{World, signal};
use rustix::process::Signal;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::support::{
    ANSWER_MAX, Counter, assert_paid_once, assert_refused, effects_by_bill, lives, until,
};

const PAN: &str = "4761737909457820";
/// The biller for which a PIN never waits.
const NEVER_PIN: &str = "pdam";
/// Enough for a dozen orders in each worker: they are lost all at once.
const CLIENTS: usize = 24;
/// From the moment at which a token is there again.
const BACK_WITHIN: Duration = Duration::from_secs(5);

/// What a client saw.
#[derive(Debug, Default)]
struct Seen {
    good: usize,
    wrong: Vec<String>,
    refused: Vec<Failure>,
    /// By bill: the body and what was answered.
    payments: BTreeMap<String, (Vec<u8>, Told)>,
    slowest: Duration,
}

/// What a client knows of a payment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// Made, or waiting to be made.
    Acknowledged,
    /// The token went away before the biller's answer was proved, and the PIN may not wait: a
    /// person has to find out.
    Held,
    /// Nothing: the same request under the same key tells.
    Refused,
}

impl Told {
    fn by(answer: &Answer) -> Self {
        match (answer.status.as_u16(), answer.json()["status"].as_str()) {
            (200, Some("SUCCESS")) | (202, Some("PENDING" | "PROCESSING")) => Self::Acknowledged,
            (202, Some("HELD")) => Self::Held,
            _ => Self::Refused,
        }
    }
}

/// Clients that translate, make and verify MACs and pay, one after the other, until told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    clients: JoinSet<Seen>,
}

impl Load {
    fn begin(world: &World, name: &'static str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut clients = JoinSet::new();
        for number in 0..CLIENTS {
            let (counter, stop) = (Counter::a(world), stop.clone());
            clients.spawn(async move {
                let mut seen = Seen::default();
                let mut turn = number;
                while !stop.load(Relaxed) {
                    let begun = Instant::now();
                    seen.ask(&counter, turn, &format!("{name}-{number}-{turn}")).await;
                    seen.slowest = seen.slowest.max(begun.elapsed());
                    turn += 1;
                }
                seen
            });
        }
        Self { stop, clients }
    }

    async fn end(self) -> Seen {
        self.stop.store(true, Relaxed);
        let mut all = Seen::default();
        for seen in self.clients.join_all().await {
            all.good += seen.good;
            all.wrong.extend(seen.wrong);
            all.refused.extend(seen.refused);
            all.payments.extend(seen.payments);
            all.slowest = all.slowest.max(seen.slowest);
        }
        assert_eq!(all.wrong, [""; 0]);
        assert!(all.slowest < ANSWER_MAX, "{:?}", all.slowest);
        assert!(all.good > 50, "{}", all.good);
        for failure in &all.refused {
            let Failure::Refused(answer) = failure else { panic!("{failure:?}") };
            assert_refused(answer, "hsm-unavailable");
        }
        all
    }
}

impl Seen {
    async fn ask(&mut self, counter: &Counter, turn: usize, name: &str) {
        let outcome = match turn % 4 {
            0 => translate(counter).await,
            1 => generate(counter, name).await,
            2 => verify(counter, name, turn).await,
            _ => self.pay(counter, turn, name).await,
        };
        match outcome {
            Ok(true) => self.good += 1,
            Ok(false) => self.wrong.push(name.to_owned()),
            Err(failure) => {
                self.refused.push(failure);
                sleep(Duration::from_millis(20)).await;
            }
        }
    }

    async fn pay(&mut self, counter: &Counter, turn: usize, name: &str) -> Result<bool, Failure> {
        let biller = if turn % 8 == 3 { "pln" } else { NEVER_PIN };
        let bill = &format!("{name}-{biller}");
        let body = counter.body(&Payment::of(biller, bill).by_card());
        let answer = counter.client.pay(&counter.acquirer, bill, body.clone()).await;
        let answer = answer.map_err(Failure::Transport)?;
        let told = Told::by(&answer);
        self.payments.insert(bill.to_owned(), (body, told));
        if told == Told::Refused {
            return Err(Failure::Refused(answer));
        }
        Ok(counter.acquirer.proves(&answer))
    }
}

async fn translate(counter: &Counter) -> Result<bool, Failure> {
    let block = counter.acquirer.pin_block("271828", PAN, PinFormat::Iso0).unwrap();
    let from = PinSide { key: "zpk.acquirer-a", format: "iso0", ksn: None };
    let to = PinSide { key: "zpk.billing-aes", format: "iso4", ksn: None };
    let translated = counter.client.translate(PAN, &block, from, to).await?;
    let block = hex::decode(&translated.pin_block).unwrap();
    let key = DemoKeys::load().value("zpk.billing-aes");
    Ok(open_pin(PinFormat::Iso4, &key, PAN, &block).as_deref() == Ok("271828"))
}

async fn generate(counter: &Counter, message: &str) -> Result<bool, Failure> {
    let made = counter.client.generate_mac("zak.acquirer-a", message.as_bytes()).await?;
    Ok(counter.acquirer.mac(message.as_bytes()).starts_with(&made.mac))
}

async fn verify(counter: &Counter, message: &str, turn: usize) -> Result<bool, Failure> {
    let right = turn % 8 == 2;
    let signed = if right { message } else { "something else" };
    let mac = counter.acquirer.mac(signed.as_bytes());
    let verified = counter.client.verify_mac("zak.acquirer-a", message.as_bytes(), &mac).await?;
    Ok(verified == right)
}

/// Every payment that was acknowledged is made, every other one is told of under its key now, and
/// none is made twice.
async fn settle(world: &World, seen: &Seen) {
    let counter = Counter::a(world);
    let mut held = BTreeSet::new();
    for (bill, (body, told)) in &seen.payments {
        let mut told = *told;
        until(bill, BACK_WITHIN, async || {
            if told == Told::Refused {
                told = Told::by(&counter.pay(bill, body).await);
            }
            told != Told::Refused
        })
        .await;
        if told == Told::Held {
            assert!(bill.ends_with(NEVER_PIN), "{bill} may wait, and is held");
            held.insert(bill);
        }
    }
    let control = world.billing_control().unwrap();
    until("all are paid", Duration::from_secs(15), async || {
        let paid = effects_by_bill(&control.ledger().await.unwrap());
        seen.payments.keys().all(|bill| held.contains(bill) || paid.contains_key(bill))
    })
    .await;
    assert_paid_once(&control.ledger().await.unwrap());
}

async fn two_new_workers(world: &World, old: &[u32]) {
    until("two workers, none of the old", BACK_WITHIN, async || {
        let now = world.workers();
        now.len() == 2 && !now.iter().any(|id| old.contains(id))
    })
    .await;
}

async fn answers_again(world: &World) {
    let counter = Counter::a(world);
    until("an answer", BACK_WITHIN, async || translate(&counter).await.is_ok()).await;
    let monitor = world.admin("monitor").unwrap();
    until("ready", BACK_WITHIN, async || {
        let answer = monitor.send(reqwest::Method::GET, "/readyz", &[], Vec::new()).await.unwrap();
        answer.status == 200
    })
    .await;
}

#[tokio::test]
async fn the_loss_of_one_worker_is_seen_by_nobody() {
    let world = World::start().await.unwrap();
    let gateway = world.gateway().unwrap().id();
    let load = Load::begin(&world, "one");
    sleep(Duration::from_millis(500)).await;

    for fault in [Signal::KILL, Signal::STOP] {
        let lost = world.workers()[0];
        signal(lost, fault).unwrap();
        // A hung one is found by the orders that it does not answer.
        two_new_workers(&world, &[lost]).await;
        assert!(!lives(lost), "{fault:?}: it was not ended");
        sleep(Duration::from_millis(700)).await;
    }
    let seen = load.end().await;

    assert!(seen.refused.is_empty(), "{} refused: {:?}", seen.refused.len(), seen.refused[0]);
    settle(&world, &seen).await;
    assert_eq!(world.gateway().unwrap().id(), gateway);
    assert!(lives(gateway));
}

#[tokio::test]
async fn the_loss_of_both_workers_is_said_in_time_and_mends_by_itself() {
    let world = World::start().await.unwrap();

    for (name, fault) in [("killed", Signal::KILL), ("stopped", Signal::STOP)] {
        let load = Load::begin(&world, name);
        sleep(Duration::from_millis(400)).await;
        let lost = world.workers();
        assert_eq!(lost.len(), 2);
        for worker in &lost {
            signal(*worker, fault).unwrap();
        }
        two_new_workers(&world, &lost).await;
        answers_again(&world).await;
        let seen = load.end().await;

        // Whether anybody was refused is a matter of luck: new workers may come within the retries.
        assert!(lost.iter().all(|worker| !lives(*worker)), "{name}");
        settle(&world, &seen).await;
    }
}

#[tokio::test]
async fn a_token_that_vanishes_and_comes_back_is_used_again() {
    let world = World::start().await.unwrap();
    let (token, away) = (world.dir().join("token"), world.dir().join("token-away"));
    let load = Load::begin(&world, "vanished");
    sleep(Duration::from_millis(300)).await;

    std::fs::rename(&token, &away).unwrap();
    for worker in world.workers() {
        signal(worker, Signal::KILL).unwrap();
    }
    sleep(Duration::from_millis(1_500)).await;
    let readiness = world.admin("monitor").unwrap();
    let readiness = readiness.send(reqwest::Method::GET, "/readyz", &[], Vec::new()).await.unwrap();
    std::fs::rename(&away, &token).unwrap();
    answers_again(&world).await;
    let seen = load.end().await;

    assert_eq!((readiness.status.as_u16(), readiness.json()["hsm"].as_bool()), (503, Some(false)));
    assert!(!seen.refused.is_empty());
    settle(&world, &seen).await;
}
