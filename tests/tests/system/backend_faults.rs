//! A biller misbehaves in every way that the simulator knows: answers stay truthful, whatever may
//! wait is paid in the end, nothing is paid twice, and the breaker opens and closes by itself.

use std::collections::BTreeMap;
use std::time::Duration;

use harness::acquirer::{Answer, Payment};
use harness::billing::{Fault, Mode};
use harness::world::{Wanted, World};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::support::{Counter, assert_paid_once, assert_refused, effects_by_bill, text, until};

/// What went to one biller while it misbehaved.
type Burst = BTreeMap<String, (Vec<u8>, Answer)>;

const BURST: usize = 8;
const RECOVERED: Duration = Duration::from_secs(25);

/// Payments at once, to the biller that stores and to the one that does not.
async fn burst(counter: &Counter, name: &str) -> (Burst, Burst) {
    let mut paying = JoinSet::new();
    for number in 0..BURST {
        for biller in ["pln", "telkom"] {
            let (counter, bill) = (counter.clone(), format!("{name}-{biller}-{number}"));
            paying.spawn(async move {
                // Some arrive when the breaker has made up its mind.
                sleep(Duration::from_millis(number as u64 * 40)).await;
                let payment = Payment::of(biller, &bill);
                let payment = if number % 2 == 0 { payment.by_card() } else { payment };
                let body = counter.body(&payment);
                let answer = counter.pay(&bill, &body).await;
                (biller, bill, body, answer)
            });
        }
    }
    let (mut storing, mut other) = (Burst::new(), Burst::new());
    for (biller, bill, body, answer) in paying.join_all().await {
        let burst = if biller == "pln" { &mut storing } else { &mut other };
        burst.insert(bill, (body, answer));
    }
    (storing, other)
}

/// After the fault: everything that may wait is paid without help, refused payments can be made
/// under their old keys, and what is in doubt stays in doubt, and none of it is paid twice.
async fn settle(world: &World, counter: &Counter, storing: &Burst, other: &Burst) -> usize {
    for (bill, (_, answer)) in storing {
        match answer.status.as_u16() {
            200 => assert_eq!(text(answer, "status"), "SUCCESS", "{bill}"),
            202 => {
                assert_eq!(text(answer, "status"), "PENDING", "{bill}");
                let id = text(answer, "id");
                until(bill, RECOVERED, async || counter.status(&id).await == "SUCCESS").await;
            }
            _ => panic!("{bill}: {answer:?}"),
        }
    }
    let mut held = 0;
    let mut refused = Vec::new();
    for (bill, (body, answer)) in other {
        match answer.status.as_u16() {
            200 => assert_eq!(text(answer, "status"), "SUCCESS", "{bill}"),
            202 => {
                assert_eq!(text(answer, "status"), "HELD", "{bill}");
                assert_eq!(counter.status(&text(answer, "id")).await, "HELD");
                held += 1;
            }
            _ => {
                assert_refused(answer, "backend-unavailable");
                refused.push((bill, body));
            }
        }
    }
    let control = world.billing_control().unwrap();
    let before = effects_by_bill(&control.ledger().await.unwrap());
    for (bill, body) in refused {
        assert!(!before.contains_key(bill), "refused, and yet paid: {bill}");
        until(bill, RECOVERED, async || counter.pay(bill, body).await.status == 200).await;
    }
    let ledger = control.ledger().await.unwrap();
    assert_paid_once(&ledger);
    let paid = effects_by_bill(&ledger);
    let unpaid = storing.keys().filter(|bill| !paid.contains_key(*bill));
    assert_eq!(unpaid.count(), 0);
    for (bill, (_, answer)) in other {
        let in_doubt = answer.status == 202;
        assert!(in_doubt || paid.contains_key(bill), "{bill} was acknowledged and not paid");
    }
    held
}

/// Both breakers close without help, at the latest with the next payments after their rest.
async fn breakers_close(world: &World, counter: &Counter, name: &str) {
    for biller in ["pln", "telkom"] {
        let closed = breaker_is(biller, "closed");
        // A repeat would be answered from the store: only another bill asks the biller.
        let mut bills = 0;
        until(&closed, RECOVERED, async || {
            bills += 1;
            let bill = format!("{name}-{biller}-after-{bills}");
            let body = counter.body(&Payment::of(biller, &bill));
            counter.pay(&bill, &body).await.status == 200
                && world.metric(&closed).await.unwrap() > 0.5
        })
        .await;
    }
}

fn breaker_is(biller: &str, state: &str) -> String {
    format!("tollgate_breaker_state{{name=\"biller.{biller}\",state=\"{state}\"}}")
}

/// A story of one fault: trouble, burst, peace, settlement. How many payments are held.
async fn suffer(world: &World, counter: &Counter, mode: Mode) -> (usize, Burst) {
    let (control, name) = (world.billing_control().unwrap(), format!("{mode:?}"));
    control.set_mode(Fault::always(mode)).await.unwrap();
    let (storing, other) = burst(counter, &name).await;
    let opened = "tollgate_breaker_transitions_total{name=\"biller.telkom\",from=\"closed\"";
    let opened = world.metric(opened).await.unwrap();
    assert!(opened > 0.5, "{name}: the breaker has not opened");
    control.set_mode(Fault::always(Mode::Normal)).await.unwrap();
    let held = settle(world, counter, &storing, &other).await;
    breakers_close(world, counter, &name).await;
    (held, other)
}

#[tokio::test]
async fn a_biller_that_says_no_for_now_leaves_nothing_in_doubt() {
    let world = World::start().await.unwrap();
    let counter = Counter::a(&world);

    let (held, other) = suffer(&world, &counter, Mode::Fail).await;

    assert_eq!(held, 0);
    let refused = other.values().filter(|(_, answer)| answer.status == 503);
    assert_eq!(refused.count(), BURST);
}

/// "Too many" is said of us or of a customer. One client's bills must not close the biller for all.
#[tokio::test]
async fn a_biller_that_says_too_many_leaves_nothing_in_doubt_and_is_closed_for_nobody() {
    let world = World::start().await.unwrap();
    let (counter, control) = (Counter::a(&world), world.billing_control().unwrap());
    control.set_mode(Fault::always(Mode::TooMany)).await.unwrap();

    let (storing, other) = burst(&counter, "too-many").await;

    for biller in ["pln", "telkom"] {
        assert!(world.metric(&breaker_is(biller, "closed")).await.unwrap() > 0.5, "{biller}");
    }
    let refused = other.values().filter(|(_, answer)| answer.status == 503);
    assert_eq!(refused.count(), BURST);
    // Its Retry-After is kept: one of three attempts a second at most.
    assert!(control.ledger().await.unwrap().requests > 2 * BURST as u64, "asked again");
    control.set_mode(Fault::always(Mode::Normal)).await.unwrap();
    let held = settle(&world, &counter, &storing, &other).await;
    assert_eq!(held, 0);
}

/// A payment that is held because its answer could not be proved is no riddle to whoever looks.
#[tokio::test]
async fn an_hsm_that_does_not_verify_a_billers_answer_is_in_the_log() {
    let world = World::start_as(Wanted { shim: true, ..Wanted::default() }).await.unwrap();
    let (counter, control) = (Counter::a(&world), world.billing_control().unwrap());
    control.set_mode(Fault::slow(Duration::from_millis(1_200))).await.unwrap();
    let body = counter.body(&Payment::of("telkom", "unproved"));

    let paying = tokio::spawn({
        let counter = counter.clone();
        async move { counter.pay("unproved", &body).await }
    });
    // Its own MAC is made. KEY_FUNCTION_NOT_PERMITTED from now on.
    sleep(Duration::from_millis(500)).await;
    world.shim_control("Sign fail 0x68\nEncrypt fail 0x68").await.unwrap();
    paying.await.unwrap();

    let log = std::fs::read_to_string(world.dir().join("gateway.log")).unwrap();
    let told = log.lines().find(|line| line.contains("the MAC of its answer"));
    let told = told.unwrap_or_else(|| panic!("{log}"));
    for what in
        ["ERROR", "\"biller\":\"telkom\"", "\"key\":\"zak.billing\"", "KeyFunctionNotPermitted"]
    {
        assert!(told.contains(what), "{what}: {told}");
    }
}

#[tokio::test]
async fn a_biller_that_died_leaves_nothing_in_doubt() {
    let mut world = World::start().await.unwrap();
    let counter = Counter::a(&world);
    world.kill_billing();

    let (storing, other) = burst(&counter, "killed").await;
    world.start_billing().await.unwrap();
    let held = settle(&world, &counter, &storing, &other).await;

    assert_eq!(held, 0);
    assert!(storing.values().all(|(_, answer)| answer.status == 202));
    assert!(other.values().all(|(_, answer)| answer.status == 503));
    breakers_close(&world, &counter, "killed").await;
}

#[tokio::test]
async fn an_answer_that_says_nothing_certain_leaves_in_doubt_what_cannot_wait() {
    let world = World::start().await.unwrap();
    let counter = Counter::a(&world);

    for mode in [Mode::Error500, Mode::CutBefore, Mode::CutAfter] {
        let (held, _) = suffer(&world, &counter, mode).await;

        assert!(held > 0, "{mode:?}");
    }
}

/// An answer without the biller's MAC is no answer.
#[tokio::test]
async fn an_answer_that_is_not_the_billers_own_is_not_believed() {
    let world = World::start().await.unwrap();
    let counter = Counter::a(&world);

    for mode in [Mode::Garbage, Mode::WrongMac, Mode::StaleRefusal] {
        let (held, other) = suffer(&world, &counter, mode).await;

        assert!(held > 0, "{mode:?}");
        assert!(other.values().all(|(_, answer)| answer.status != 200), "{mode:?}");
    }
}

#[tokio::test]
async fn a_biller_that_never_answers_costs_its_callers_no_more_than_their_patience() {
    let world = World::start().await.unwrap();
    let counter = Counter::a(&world);

    for mode in [Mode::Hang, Mode::HangAfter] {
        let (held, _) = suffer(&world, &counter, mode).await;

        assert!(held > 0, "{mode:?}");
    }
}

#[tokio::test]
async fn a_slow_biller_is_waited_for_and_a_passing_fault_is_seen_by_nobody() {
    let world = World::start().await.unwrap();
    let counter = Counter::a(&world);
    let control = world.billing_control().unwrap();

    control.set_mode(Fault::slow(Duration::from_millis(600))).await.unwrap();
    let (storing, other) = burst(&counter, "slow").await;
    let mut passing = Vec::new();
    for mode in [Mode::Error500, Mode::CutBefore, Mode::CutAfter, Mode::Garbage, Mode::WrongMac] {
        control.set_mode(Fault::next(mode, 1)).await.unwrap();
        let bill = format!("passing-{mode:?}");
        let payment = Payment::of("telkom", &bill).by_card();
        passing.push(counter.pay(&bill, &counter.body(&payment)).await);
    }

    let slow = storing.values().chain(other.values()).map(|(_, answer)| answer);
    for answer in slow.chain(&passing) {
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(text(answer, "status"), "SUCCESS");
    }
    let ledger = control.ledger().await.unwrap();
    assert_paid_once(&ledger);
    assert_eq!(ledger.effects.len(), 2 * BURST + 5);
    assert!(ledger.duplicates_suppressed >= 3, "{ledger:?}");
}

/// A proxy that lost its upstream says 503 although the payment was made. Its word is no proof: what
/// may wait is asked about again, and what may not is left to a person. Nobody is told "not taken".
#[tokio::test]
async fn a_refusal_without_the_billers_mac_is_not_believed() {
    let world = World::start().await.unwrap();
    let (counter, control) = (Counter::a(&world), world.billing_control().unwrap());
    control.set_mode(Fault::always(Mode::Proxy503)).await.unwrap();

    let (storing, other) = burst(&counter, "proxy").await;
    control.set_mode(Fault::always(Mode::Normal)).await.unwrap();

    let held = settle(&world, &counter, &storing, &other).await;
    assert!(held > 0, "{other:?}");
}

/// While it is not even connected, not one byte has left: a biller that accepts and stays silent in
/// the handshake makes no payment doubtful.
#[tokio::test]
async fn a_biller_that_never_finishes_its_handshake_leaves_nothing_in_doubt() {
    let mut world = World::prepare(Wanted::default()).unwrap();
    let silent = std::net::TcpListener::bind(("127.0.0.1", world.ports.billing)).unwrap();
    world.start_gateway().await.unwrap();
    let counter = Counter::a(&world);

    let stored = counter.pay("pln", &counter.body(&Payment::of("pln", "pln"))).await;
    let refused = counter.pay("telkom", &counter.body(&Payment::of("telkom", "telkom"))).await;
    drop(silent);
    world.start_billing().await.unwrap();
    let id = text(&stored, "id");
    until("paid", RECOVERED, async || counter.status(&id).await == "SUCCESS").await;

    assert_eq!(stored.status, 202, "{stored:?}");
    assert_refused(&refused, "backend-unavailable");
    assert_paid_once(&world.billing_control().unwrap().ledger().await.unwrap());
}
