//! Billers that may not be sent a payment twice: what may have arrived is asked about, taken back, or
//! left to a person, and never sent again in the dark.

use std::time::Duration;

use harness::acquirer::Payment;
use harness::billing::{Fault, LedgerReport, Mode};
use harness::world::{Wanted, World};

use crate::support::{Counter, assert_paid_once, query, telkom, text, until};

/// telkom, as it promises to be.
async fn telkom_that(promises: &'static [(&'static str, bool)]) -> (World, Counter) {
    telkom_asked_after(1, promises).await
}

async fn telkom_asked_after(
    seconds: i64,
    promises: &'static [(&'static str, bool)],
) -> (World, Counter) {
    let edit = move |table: &mut toml::Table| {
        let queue = table["queue"].as_table_mut().unwrap();
        queue.insert("enquiry_after_s".into(), seconds.into());
        let telkom = telkom(table);
        telkom.insert("deduplicates".into(), false.into());
        for (promise, kept) in promises {
            telkom.insert((*promise).into(), (*kept).into());
        }
    };
    let wanted = Wanted { edit: Some(Box::new(edit)), ..Wanted::default() };
    let world = World::start_as(wanted).await.unwrap();
    let counter = Counter::a(&world);
    (world, counter)
}

async fn spoil(world: &World, mode: Mode) {
    world.billing_control().unwrap().set_mode(Fault::next(mode, 1)).await.unwrap();
}

async fn ledger(world: &World) -> LedgerReport {
    let ledger = world.billing_control().unwrap().ledger().await.unwrap();
    assert_paid_once(&ledger);
    assert_eq!(ledger.duplicates_suppressed, 0, "a payment was sent twice");
    ledger
}

const DRAIN: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_payment_whose_answer_was_lost_is_asked_about_and_not_sent_again() {
    let (world, counter) = telkom_that(&[("store", true), ("enquiry", true)]).await;
    spoil(&world, Mode::CutAfter).await;

    let answer = counter.pay("k1", &counter.body(&Payment::of("telkom", "bill-1"))).await;
    let id = text(&answer, "id");
    until("its outcome", DRAIN, async || counter.status(&id).await == "SUCCESS").await;

    assert_eq!((answer.status.as_u16(), &*text(&answer, "status")), (202, "PENDING"));
    let ledger = ledger(&world).await;
    assert_eq!((ledger.effects.len(), ledger.requests, ledger.enquiries), (1, 1, 1));
}

#[tokio::test]
async fn a_payment_that_never_arrived_is_sent_once_it_is_known() {
    let (world, counter) = telkom_that(&[("store", true), ("enquiry", true)]).await;
    spoil(&world, Mode::CutBefore).await;

    let answer = counter.pay("k1", &counter.body(&Payment::of("telkom", "bill-1"))).await;
    let id = text(&answer, "id");
    until("its outcome", DRAIN, async || counter.status(&id).await == "SUCCESS").await;

    let ledger = ledger(&world).await;
    assert_eq!((ledger.effects.len(), ledger.requests, ledger.enquiries), (1, 2, 1));
}

#[tokio::test]
async fn a_payment_that_never_arrived_and_may_not_wait_has_failed() {
    let (world, counter) = telkom_that(&[("enquiry", true)]).await;
    spoil(&world, Mode::CutBefore).await;
    let body = counter.body(&Payment::of("telkom", "bill-1").by_card());

    let answer = counter.pay("k1", &body).await;
    let id = text(&answer, "id");
    until("its outcome", DRAIN, async || counter.status(&id).await == "FAILED").await;
    let again = counter.pay("k1", &body).await;

    assert_eq!((again.status.as_u16(), &*text(&again, "status")), (200, "FAILED"));
    let ledger = ledger(&world).await;
    assert_eq!((ledger.effects.len(), ledger.requests, ledger.enquiries), (0, 1, 1));
}

#[tokio::test]
async fn a_payment_that_cannot_be_asked_about_is_taken_back_until_that_is_answered() {
    let (world, counter) = telkom_that(&[("reversal", true)]).await;
    spoil(&world, Mode::CutAfter).await;
    let body = counter.body(&Payment::of("telkom", "bill-1").by_card());

    let answer = counter.pay("k1", &body).await;
    // The reversal's answer is lost, too: it is sent again, which has no further effect.
    let control = world.billing_control().unwrap();
    let reversed = async || control.ledger().await.unwrap().reversals.len() == 1;
    until("its reversal", DRAIN, reversed).await;
    let open = "SELECT count(*) FROM saf_item WHERE state < 2";
    until("its end", DRAIN, async || query(&world, open) == "0").await;
    let again = counter.pay("k1", &body).await;

    assert_eq!((answer.status.as_u16(), &*text(&answer, "status")), (200, "FAILED"));
    assert_eq!(text(&answer, "response_code"), "68");
    assert_eq!(again.json(), answer.json());
    let ledger = ledger(&world).await;
    assert_eq!((ledger.effects.len(), ledger.requests), (1, 1));
    assert!(ledger.reversals[0].was_paid);
    assert_eq!(ledger.reversals[0].original, ledger.effects[0].reference);
}

#[tokio::test]
async fn a_reversal_is_repeated_until_it_is_answered_and_has_one_effect() {
    let (world, counter) = telkom_that(&[("reversal", true)]).await;
    let control = world.billing_control().unwrap();
    control.set_mode(Fault::next(Mode::CutAfter, 2)).await.unwrap();

    let answer = counter.pay("k1", &counter.body(&Payment::of("telkom", "bill-1"))).await;
    let open = "SELECT count(*) FROM saf_item WHERE state < 2";
    until("its end", DRAIN, async || query(&world, open) == "0").await;

    assert_eq!(text(&answer, "status"), "FAILED");
    let ledger = control.ledger().await.unwrap();
    assert_eq!((ledger.reversals.len(), ledger.requests), (1, 1));
    assert!(ledger.reversal_requests >= 2, "{ledger:?}");
}

#[tokio::test]
async fn a_reversal_that_is_not_accepted_waits_for_a_person() {
    let (world, counter) = telkom_that(&[("reversal", true)]).await;
    spoil(&world, Mode::CutAfter).await;

    counter.pay("k1", &counter.body(&Payment::of("telkom", "irreversible-1"))).await;

    let held = "SELECT kind || ' ' || hold_reason FROM saf_item WHERE state = 1";
    until("held", DRAIN, async || query(&world, held) == "reversal not-accepted").await;
}

#[tokio::test]
async fn without_any_promise_a_person_finds_out_and_nothing_is_sent_again() {
    let (world, counter) = telkom_that(&[("store", true)]).await;
    spoil(&world, Mode::CutAfter).await;

    let answer = counter.pay("k1", &counter.body(&Payment::of("telkom", "bill-1"))).await;
    tokio::time::sleep(Duration::from_secs(3)).await;

    assert_eq!((answer.status.as_u16(), &*text(&answer, "status")), (202, "HELD"));
    assert_eq!(counter.status(&text(&answer, "id")).await, "HELD");
    let ledger = ledger(&world).await;
    assert_eq!((ledger.effects.len(), ledger.requests), (1, 1));
}

/// Nothing is in doubt of what a biller that is away has never heard.
#[tokio::test]
async fn what_was_not_sent_waits_and_is_sent_once() {
    let (mut world, counter) = telkom_that(&[("store", true)]).await;
    world.kill_billing();

    let answer = counter.pay("k1", &counter.body(&Payment::of("telkom", "bill-1"))).await;
    let id = text(&answer, "id");
    world.start_billing().await.unwrap();
    until("paid", DRAIN, async || counter.status(&id).await == "SUCCESS").await;

    assert_eq!((answer.status.as_u16(), &*text(&answer, "status")), (202, "PENDING"));
    let ledger = ledger(&world).await;
    assert_eq!((ledger.effects.len(), ledger.requests), (1, 1));
}

/// The mark is durable before the first byte: the next process knows.
#[tokio::test]
async fn a_gateway_that_dies_while_it_sends_leaves_the_payment_to_a_person() {
    let (mut world, counter) = telkom_that(&[("store", true)]).await;
    spoil(&world, Mode::HangAfter).await;
    let body = counter.body(&Payment::of("telkom", "bill-1"));
    let control = world.billing_control().unwrap();

    let sending = tokio::spawn({
        let (counter, body) = (counter.clone(), body.clone());
        async move { counter.client.pay(&counter.acquirer, "k1", body).await }
    });
    until("sent", DRAIN, async || control.ledger().await.unwrap().effects.len() == 1).await;
    world.kill_gateway();
    world.start_gateway().await.unwrap();
    drop(sending.await);
    let counter = Counter::a(&world);
    until("held", DRAIN, async || text(&counter.pay("k1", &body).await, "status") == "HELD").await;

    let ledger = ledger(&world).await;
    assert_eq!((ledger.effects.len(), ledger.requests), (1, 1));
}

/// The biller is slow, not deaf: asked at once after the restart, it would not know of the payment yet.
#[tokio::test]
async fn a_gateway_that_restarts_does_not_ask_before_the_payment_can_have_arrived() {
    let (mut world, counter) = telkom_asked_after(6, &[("store", true), ("enquiry", true)]).await;
    let control = world.billing_control().unwrap();
    let stubborn = Fault { delay_ms: Some(4_000), ..Fault::next(Mode::Stubborn, 1) };
    control.set_mode(stubborn).await.unwrap();
    let body = counter.body(&Payment::of("telkom", "bill-1"));

    let sending = tokio::spawn({
        let (counter, body) = (counter.clone(), body.clone());
        async move { counter.client.pay(&counter.acquirer, "k1", body).await }
    });
    until("sent", DRAIN, async || control.ledger().await.unwrap().requests == 1).await;
    world.kill_gateway();
    world.start_gateway().await.unwrap();
    drop(sending.await);
    let counter = Counter::a(&world);
    until("paid", DRAIN, async || text(&counter.pay("k1", &body).await, "status") == "SUCCESS")
        .await;

    let ledger = ledger(&world).await;
    assert_eq!((ledger.effects.len(), ledger.requests), (1, 1));
}
