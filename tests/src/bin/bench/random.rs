//! A hundred thousand random operations of a worker, each compared with `soft`.

use std::sync::Arc;

use anyhow::ensure;
use harness::random_orders::{RandomKeys, compare};
use harness::soft::random::Random;
use serde_json::Value;
use tokio::time::Instant;

use super::figure;
use super::workers::Bench;

const CASES: usize = 100_000;

pub(crate) async fn measure() -> anyhow::Result<Vec<Value>> {
    let mut random = Random::fresh();
    println!("\nrandom operations, worker beside software: {CASES}, {random}");
    let keys = RandomKeys::of(&mut random)?;
    let bench = Bench::start(keys.planned()).await?;
    let begun = Instant::now();

    let compared = compare(&bench.link, &Arc::new(keys), &mut random, CASES).await?;

    bench.stop().await?;
    println!(
        "{} translated, {} refused, {} MACs, {} differences, {:.1} s",
        compared.translated,
        compared.refused,
        compared.macs,
        compared.differences.len(),
        begun.elapsed().as_secs_f64()
    );
    for difference in compared.differences.iter().take(5) {
        println!("{difference}");
    }
    ensure!(compared.cases() == CASES, "{} cases", compared.cases());
    let differences = compared.differences.len() as f64;
    let met = Some((0.0, differences == 0.0));
    Ok(vec![
        figure("random_cases", CASES as f64, "1", None, None),
        figure("random_differences", differences, "1", None, met),
    ])
}
