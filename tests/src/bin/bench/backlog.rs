//! A biller that comes back to a long queue: how long it takes to be paid all of it, in order, without
//! being felled again; and what the queue's length costs in memory.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use harness::acquirer::{Acquirer, Payment};
use harness::world::World;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::{figure, rss_kib};

/// Payments that wait.
const BACKLOG: u32 = 10_000;

/// Payments of one bill, which leave in their order.
const EACH: u32 = 5;

const CLIENTS: u32 = 64;

/// Prints a line and gives the figures.
pub(crate) async fn measure() -> anyhow::Result<Vec<Value>> {
    let mut world = World::start().await?;
    let gateway = world.gateway().context("the gateway")?.id();
    // What grows with use and not with the queue has grown by then.
    pay(&world, "warm", BACKLOG / 2).await?;
    until_paid(&world, BACKLOG / 2).await?;
    // Of the gateway itself: its workers know nothing of the queue.
    let empty = rss_kib(gateway)? / 1_024.0;
    world.kill_billing();
    let begun = Instant::now();
    pay(&world, "bill", BACKLOG).await?;
    let enqueued_s = begun.elapsed().as_secs_f64();
    let waiting = seen(&world).await?;
    let full = rss_kib(gateway)? / 1_024.0;
    world.start_billing().await?;
    let opened = world.metric(OPENED).await.unwrap_or_default();
    let begun = Instant::now();
    until_paid(&world, BACKLOG / 2 + BACKLOG).await?;
    let drained_s = begun.elapsed().as_secs_f64();
    let trips = world.metric(OPENED).await.unwrap_or_default() - opened;
    let (twice, inversions) = check(&world).await?;
    let grown = full - empty;
    println!(
        "\na queue of {BACKLOG} ({waiting} seen), {CLIENTS} clients, {EACH} a bill: taken in {enqueued_s:.1} s, \
         paid in {drained_s:.1} s after the biller is back; breaker trips {trips}, paid twice {twice}, out of \
         order {inversions}; gateway {empty:.1} MiB empty, {full:.1} MiB full"
    );
    let parts = json!({"enqueued_s": enqueued_s, "breaker_trips": trips, "paid_twice": twice,
        "inversions": inversions});
    let clean = trips == 0.0 && twice == 0 && inversions == 0;
    let met = Some((30.0, drained_s <= 30.0 && clean));
    Ok(vec![
        figure("backlog_10000_s", drained_s, "s", Some(parts), met),
        figure(
            "backlog_10000_rss_growth_mib",
            grown,
            "MiB",
            Some(json!({"empty_mib": empty, "full_mib": full})),
            Some((10.0, grown.abs() <= 10.0)),
        ),
    ])
}

/// The queue's length in the gateway's own figures, as soon as they show all of it: within seconds.
async fn seen(world: &World) -> anyhow::Result<f64> {
    let begun = Instant::now();
    loop {
        let waiting = world.metric(DEPTH).await?;
        if waiting >= f64::from(BACKLOG) {
            return Ok(waiting);
        }
        ensure!(begun.elapsed() < Duration::from_secs(20), "{waiting} of {BACKLOG} seen");
        sleep(Duration::from_millis(200)).await;
    }
}

/// Pays so many, [`EACH`] to a bill, one after the other within it.
async fn pay(world: &World, name: &'static str, payments: u32) -> anyhow::Result<()> {
    let mut clients = JoinSet::new();
    let bills = payments / EACH;
    for client in 0..CLIENTS {
        let (acquirer, to) = (Acquirer::a(), world.client("acquirer-a")?);
        clients.spawn(async move {
            for bill in (client..bills).step_by(CLIENTS as usize) {
                for turn in 1..=EACH {
                    let bill_id = format!("{name}-{bill}");
                    let payment =
                        Payment { value: format!("{turn}.00"), ..Payment::of("pdam", &bill_id) };
                    let body = acquirer
                        .payment_body(&payment)
                        .map_err(|error| anyhow::anyhow!("{error:?}"))?;
                    let key = format!("{bill_id}-{turn}");
                    let answer = to.pay(&acquirer, &key, body).await?;
                    ensure!(matches!(answer.status.as_u16(), 200 | 202), "{key}: {answer:?}");
                }
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = clients.join_next().await {
        done??;
    }
    Ok(())
}

/// Until the biller has made so many, or nothing moves any more.
async fn until_paid(world: &World, payments: u32) -> anyhow::Result<()> {
    let control = world.billing_control()?;
    let (mut before, mut since) = (0, Instant::now());
    loop {
        let now = control.ledger().await?.effects.len();
        if now >= payments as usize {
            return Ok(());
        }
        if now != before {
            (before, since) = (now, Instant::now());
        }
        ensure!(since.elapsed() < Duration::from_secs(20), "{now} of {payments} after 20 s more");
        sleep(Duration::from_millis(200)).await;
    }
}

/// Bills paid more than once in one turn, and turns that came before an earlier one.
async fn check(world: &World) -> anyhow::Result<(usize, usize)> {
    let ledger = world.billing_control()?.ledger().await?;
    ensure!(
        ledger.effects.len() == (BACKLOG + BACKLOG / 2) as usize,
        "{} effects of {}",
        ledger.effects.len(),
        BACKLOG + BACKLOG / 2
    );
    let mut bills: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for effect in &ledger.effects {
        bills.entry(&effect.bill_id).or_default().push(&effect.amount.value);
    }
    let (mut twice, mut inversions) = (0, 0);
    for turns in bills.values() {
        twice += turns.len().saturating_sub(EACH as usize);
        inversions += turns.windows(2).filter(|pair| pair[0] > pair[1]).count();
    }
    Ok((twice, inversions))
}

const DEPTH: &str = "tollgate_queue_depth{";
const OPENED: &str =
    "tollgate_breaker_transitions_total{name=\"biller.pdam\",from=\"closed\",to=\"open\"";
