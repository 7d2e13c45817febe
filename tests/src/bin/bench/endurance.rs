//! A million operations on one worker: no session object stays, and its memory stays flat.
//!
//! One of 25 orders is of a DUKPT key, whose steps are session objects. A token may keep
//! something of a destroyed object, as SoftHSM does: a second run without DUKPT tells the worker's
//! memory from the token's.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{bail, ensure};
use harness::acquirer::Terminal;
use harness::bad_blocks::{Fault, block};
use harness::demo_keys::DemoKeys;
use harness::soft::pin::PinFormat;
use harness::soft::random::Random;
use hsm_adapter::client::LinkError;
use hsm_adapter::error::Failure;
use hsm_adapter::protocol::{Answer, Order, PinKey};
use hsm_adapter::vocabulary::PinBlockFormat;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::orders::{self, PAN, PIN, mac, offset_of, pvv_of, side, translate, verify};
use super::workers::Bench;
use super::{figure, rss_kib};

const OPERATIONS: usize = 1_000_000;
/// Until the allocator and the token have what they need.
const WARM_UP: usize = 50_000;
const IN_FLIGHT: usize = 64;
/// Per cent, up or down.
const DRIFT_MAX: f64 = 2.0;

/// The right answer to an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Right {
    Block,
    Mac,
    Verified(bool),
    Refused,
}

pub(crate) async fn measure() -> anyhow::Result<Vec<Value>> {
    let pool = pool()?;
    let zone_keys_only: Pool =
        pool.iter().filter(|(order, _)| !order_of_dukpt(order)).cloned().collect();
    println!("\none worker, {} different orders", pool.len());
    let (objects, drift) = endure(pool, OPERATIONS).await?;
    println!("the same without DUKPT");
    let (left, alone) = endure(zone_keys_only, OPERATIONS / 4).await?;
    let objects = objects.max(left) as f64;
    let flat = |drift: f64| Some((DRIFT_MAX, drift.abs() <= DRIFT_MAX));
    Ok(vec![
        figure("session_objects_after_1m", objects, "1", None, Some((0.0, objects == 0.0))),
        figure("worker_rss_drift_percent", drift, "%", None, flat(drift)),
        figure("worker_rss_drift_without_dukpt_percent", alone, "%", None, flat(alone)),
    ])
}

type Pool = Vec<(Order, Right)>;

fn order_of_dukpt(order: &Order) -> bool {
    matches!(order, Order::TranslatePin { from, .. } if from.ksn.is_some())
}

/// Session objects that are left after so many orders on a worker of their own, and how much more
/// memory it has than after the warm-up, per cent.
async fn endure(pool: Pool, operations: usize) -> anyhow::Result<(u64, f64)> {
    let bench = Bench::start(orders::more_keys()?).await?;
    let (pool, begun) = (Arc::new(pool), Instant::now());
    run(&bench, &pool, WARM_UP).await?;
    let before = rss_kib(bench.worker()?)?;
    let mut done = WARM_UP;
    while done < operations {
        run(&bench, &pool, WARM_UP).await?;
        done += WARM_UP;
        if done.is_multiple_of(4 * WARM_UP) {
            let (kib, seconds) = (rss_kib(bench.worker()?)?, begun.elapsed().as_secs_f64());
            println!("{done:>8} operations, {seconds:>5.1} s, worker {kib:.0} KiB");
        }
    }
    let after = rss_kib(bench.worker()?)?;
    let Ok(Answer::Lint(report)) = bench.ask(&Order::Lint).await else { bail!("no lint") };
    bench.stop().await?;
    let drift = (after / before - 1.0) * 100.0;
    println!(
        "{done} operations: session objects left {}; resident {before:.0} KiB after {WARM_UP}, \
         {after:.0} KiB at the end: {drift:+.2} %",
        report.session_objects
    );
    Ok((report.session_objects, drift))
}

/// So many orders of the pool, in turn, each answered as it must be.
async fn run(bench: &Bench, pool: &Arc<Pool>, count: usize) -> anyhow::Result<()> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..IN_FLIGHT {
        let (link, pool, next) = (Arc::clone(&bench.link), Arc::clone(pool), Arc::clone(&next));
        tasks.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok(());
                }
                let (order, right) = &pool[number % pool.len()];
                let limit = Instant::now() + std::time::Duration::from_secs(10);
                let answer = link.call(order, limit).await.1;
                let found = match &answer {
                    Ok(Answer::Block { .. }) => Some(Right::Block),
                    Ok(Answer::Mac { .. }) => Some(Right::Mac),
                    Ok(Answer::PinVerified { verified, .. } | Answer::Verified(verified)) => {
                        Some(Right::Verified(*verified))
                    }
                    Err(LinkError::Answered(Failure::PinBlockRefused)) => Some(Right::Refused),
                    Ok(_) | Err(_) => None,
                };
                ensure!(found == Some(*right), "{right:?} is right, not {answer:?}");
            }
        });
    }
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    Ok(())
}

/// Orders in their shares, 990 of them, shuffled. One of 25 is of a DUKPT key.
fn pool() -> anyhow::Result<Pool> {
    use PinBlockFormat::{Iso0, Iso4};
    let (mut random, keys) = (Random::fresh(), DemoKeys::load());
    let mut pool = Vec::new();
    let zone = |format| -> anyhow::Result<(PinKey, PinFormat, Vec<u8>)> {
        let (key, soft) = if format == Iso4 {
            ("zpk.acquirer-b", PinFormat::Iso4)
        } else {
            ("zpk.acquirer-a", PinFormat::Iso0)
        };
        Ok((side(key, format, None)?, soft, keys.value(key)))
    };
    let out = |format| {
        let key = if format == Iso4 { "zpk.billing-aes" } else { "zpk.billing" };
        side(key, format, None)
    };
    for round in 0..10_u32 {
        for (from, to) in [(Iso0, Iso0), (Iso4, Iso4), (Iso0, Iso4), (Iso4, Iso0)] {
            let (side, soft, key) = zone(from)?;
            for _ in 0..12 {
                let good = block(&mut random, None, soft, &key, PAN)?;
                pool.push((translate(good, side.clone(), out(to)?)?, Right::Block));
            }
            for fault in random_faults(&mut random) {
                let bad = block(&mut random, Some(fault), soft, &key, PAN)?;
                pool.push((translate(bad, side.clone(), out(to)?)?, Right::Refused));
            }
        }
        let (side_a, soft, key) = zone(Iso0)?;
        let sealed = harness::soft::pin::seal_pin(soft, &key, PAN, PIN)?;
        for reference in [pvv_of, offset_of] {
            for pin in [PIN, PIN, PIN, "4321"] {
                let order = verify(sealed.clone(), side_a.clone(), reference(pin)?)?;
                pool.push((order, Right::Verified(pin == PIN)));
            }
            let bad = block(&mut random, Some(Fault::Digit), soft, &key, PAN)?;
            pool.push((verify(bad, side_a.clone(), reference(PIN)?)?, Right::Refused));
        }
        for key in
            ["zak.acquirer-a", "zak.acquirer-b", "zak.acquirer-c", "zak.acquirer-d", "zak.cbc"]
        {
            for _ in 0..5 {
                let many = random.between(1, 300);
                pool.push((mac(key, random.bytes(many))?, Right::Mac));
            }
        }
        for (mut terminal, format) in [
            (Terminal::aes(round), Iso4),
            (Terminal::aes(100 + round), Iso4),
            (Terminal::aes(200 + round), Iso4),
            (Terminal::tdes(round), Iso0),
        ] {
            let sealed = terminal.seal(PIN, PAN)?;
            let from = side(sealed.key, format, Some(&sealed.ksn))?;
            let block = hex::decode(&sealed.pin_block)?;
            pool.push((translate(block, from, out(format)?)?, Right::Block));
        }
    }
    for last in (1..pool.len()).rev() {
        pool.swap(last, random.between(0, last));
    }
    Ok(pool)
}

fn random_faults(random: &mut Random) -> [Fault; 3] {
    std::array::from_fn(|_| random.pick(&Fault::ALL))
}
