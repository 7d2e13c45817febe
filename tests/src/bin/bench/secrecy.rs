//! Whether the time of a refusal tells what was wrong with a PIN block.
//!
//! One order at a time over one worker link, the kinds in random order, every block another one
//! and all made before the clock runs. Welch's t between the latencies of each two kinds, over
//! all, and over those below the 99th and the 90th percentile of all kinds together: interrupts and
//! neighbours of the machine are among the slowest, and would hide a small difference.
//! Reparaz, Balasch and Verbauwhede, "Dude, is my code constant time?", take |t| below 4.5 for no
//! evidence of a leak.

use std::time::Duration;

use anyhow::{bail, ensure};
use harness::bad_blocks::{Fault, block};
use harness::demo_keys::DemoKeys;
use harness::soft::pin::PinFormat;
use harness::soft::random::Random;
use hsm_adapter::client::LinkError;
use hsm_adapter::error::Failure;
use hsm_adapter::protocol::{Answer, Order};
use hsm_adapter::vocabulary::PinBlockFormat;
use serde_json::Value;
use tokio::time::Instant;

use super::figure;
use super::orders::{PAN, side, translate};
use super::workers::Bench;

/// Of each kind, so that each two kinds make as many pairs.
const SAMPLES: usize = 100_000;
/// Of each kind, made at once between measurements.
const BATCH: usize = 1_000;
const TARGET: f64 = 4.5;
/// The share of all latencies that is looked at.
const SHARES: [f64; 3] = [1.0, 0.99, 0.9];

pub(crate) async fn measure() -> anyhow::Result<Vec<Value>> {
    let bench = Bench::start(Vec::new()).await?;
    let mut t_max = 0.0_f64;
    for format in [PinFormat::Iso0, PinFormat::Iso4] {
        let latencies = latencies(&bench, format).await?;
        t_max = t_max.max(compare(format, &latencies));
    }
    bench.stop().await?;
    println!("largest |t| between kinds of failure: {t_max:.2}");
    let met = Some((TARGET, t_max < TARGET));
    Ok(vec![figure("pin_failure_t_max", t_max, "|t|", None, met)])
}

/// Nanoseconds of each answer, by kind: the faults, then no fault.
async fn latencies(bench: &Bench, format: PinFormat) -> anyhow::Result<Vec<Vec<f64>>> {
    let kinds: Vec<Option<Fault>> = Fault::ALL.into_iter().map(Some).chain([None]).collect();
    let mut random = Random::fresh();
    let mut latencies = vec![Vec::with_capacity(SAMPLES); kinds.len()];
    for batch in 0..=SAMPLES / BATCH {
        let mut orders = Vec::with_capacity(kinds.len() * BATCH);
        for (kind, fault) in kinds.iter().enumerate() {
            for _ in 0..BATCH {
                orders.push((kind, order(&mut random, *fault, format)?));
            }
        }
        for last in (1..orders.len()).rev() {
            orders.swap(last, random.between(0, last));
        }
        for (kind, order) in &orders {
            let begun = Instant::now();
            let answer = bench.link.call(order, Instant::now() + Duration::from_secs(5)).await.1;
            let ns = begun.elapsed().as_nanos() as f64;
            match (answer, kinds[*kind]) {
                (Ok(Answer::Block { .. }), None) => {}
                (Err(LinkError::Answered(Failure::PinBlockRefused)), Some(_)) => {}
                (answer, fault) => bail!("{format}, {fault:?}: {answer:?}"),
            }
            // The first batch warms up.
            if batch > 0 {
                latencies[*kind].push(ns);
            }
        }
    }
    ensure!(latencies.iter().all(|kind| kind.len() == SAMPLES), "samples");
    Ok(latencies)
}

fn order(random: &mut Random, fault: Option<Fault>, format: PinFormat) -> anyhow::Result<Order> {
    let (from, to, format_in) = match format {
        PinFormat::Iso4 => ("zpk.acquirer-b", "zpk.billing-aes", PinBlockFormat::Iso4),
        PinFormat::Iso0 | PinFormat::Iso1 | PinFormat::Iso3 => {
            ("zpk.acquirer-a", "zpk.billing", PinBlockFormat::Iso0)
        }
    };
    let block = block(random, fault, format, &DemoKeys::load().value(from), PAN)?;
    translate(block, side(from, format_in, None)?, side(to, format_in, None)?)
}

/// Prints |t| of each two kinds; gives the largest between two failures. A success tells itself
/// apart by its answer, so that its time is no secret: it is printed and not counted.
fn compare(format: PinFormat, latencies: &[Vec<f64>]) -> f64 {
    let mut all: Vec<f64> = latencies.iter().flatten().copied().collect();
    all.sort_by(f64::total_cmp);
    let limits = SHARES.map(|share| all[((all.len() - 1) as f64 * share) as usize]);
    println!(
        "\n|t| of latencies, {format}, {SAMPLES} of each kind, median {:.1} us\n\
         {:<20} {:>7} {:>9} {:>9}",
        all[all.len() / 2] / 1000.0,
        "kinds",
        "all",
        "below 99%",
        "below 90%"
    );
    let name = |kind: usize| Fault::ALL.get(kind).map_or("success", |fault| fault.name());
    let mut t_max = 0.0_f64;
    for one in 0..latencies.len() {
        for other in one + 1..latencies.len() {
            let t = limits.map(|limit| {
                welch_t(cropped(&latencies[one], limit), cropped(&latencies[other], limit)).abs()
            });
            let kinds = format!("{} / {}", name(one), name(other));
            println!("{kinds:<20} {:>7.2} {:>9.2} {:>9.2}", t[0], t[1], t[2]);
            if other < Fault::ALL.len() {
                t_max = t.into_iter().fold(t_max, f64::max);
            }
        }
    }
    t_max
}

fn cropped(latencies: &[f64], limit: f64) -> impl Iterator<Item = f64> {
    latencies.iter().copied().filter(move |ns| *ns <= limit)
}

/// Welch's t: the difference of the means over its standard error.
fn welch_t(one: impl Iterator<Item = f64>, other: impl Iterator<Item = f64>) -> f64 {
    let ((mean_one, error_one), (mean_other, error_other)) = (moments(one), moments(other));
    (mean_one - mean_other) / (error_one + error_other).sqrt()
}

/// The mean and its squared standard error. Welford's way.
fn moments(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (mut count, mut mean, mut squares) = (0.0, 0.0, 0.0);
    for value in values {
        count += 1.0;
        let off = value - mean;
        mean += off / count;
        squares += off * (value - mean);
    }
    (mean, squares / (count - 1.0) / count)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand: means 3 and 4, variances 2.5 and 10, five of each: -1 / sqrt(0.5 + 2).
    #[test]
    fn welch_t_is_the_textbooks() {
        let t =
            welch_t([1.0, 2.0, 3.0, 4.0, 5.0].into_iter(), [0.0, 2.0, 4.0, 6.0, 8.0].into_iter());

        assert!((t + 1.0 / 2.5_f64.sqrt()).abs() < 1e-12, "{t}");
    }

    #[test]
    fn a_difference_of_a_hundredth_shows_in_a_hundred_thousand() {
        let mut random = Random::of(1);
        let mut drawn = |mean: f64| -> Vec<f64> {
            (0..SAMPLES).map(|_| mean + random.between(0, 1000) as f64 / 1000.0).collect()
        };
        let (one, same, other) = (drawn(10.0), drawn(10.0), drawn(10.01));

        let t = |a: &[f64], b: &[f64]| welch_t(a.iter().copied(), b.iter().copied()).abs();

        assert!(t(&one, &same) < TARGET && t(&one, &other) > TARGET);
    }
}
