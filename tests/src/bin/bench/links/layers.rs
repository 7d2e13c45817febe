//! What the layers of a link add to each call, in CPU time: deadline, budget, choice of the member,
//! breaker, limit, counters.
//!
//! The call itself costs nothing here: its future is ready at once. One thread, a recorder of
//! metrics as in the gateway, and the same closure awaited without the layers beside it.

use std::convert::Infallible;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, ensure};
use gateway::links::breaker::{Breaker, BreakerConfig, Pace, Verdict};
use gateway::links::classify::{Operation, Outcome};
use gateway::links::health::{HealthConfig, Sick};
use gateway::links::limit::LimitOptions;
use gateway::links::pool::{Call, Endpoint, Fault, Member, Pool, PoolOptions, Tried};
use gateway::links::retry::RetryConfig;
use gateway::links::{Patience, Role};
use gateway::telemetry::metrics::Metrics;
use tokio::time::Instant;

use super::super::cpu::Cpu;

/// Microseconds of CPU that the layers add to a call.
pub(crate) struct Layers {
    /// A pool of one member.
    pub(crate) single: f64,
    /// Two primaries and one backup.
    pub(crate) several: f64,
    /// The call itself.
    pub(crate) direct: f64,
}

/// Measures on a thread of its own, while nothing else of this process runs.
pub(crate) async fn measure() -> anyhow::Result<Layers> {
    tokio::task::spawn_blocking(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(compare())
    })
    .await?
}

async fn compare() -> anyhow::Result<Layers> {
    // Before the breakers take their handles.
    let metrics = Metrics::install().context("the recorder of metrics")?;
    let single = pool(&[("one", Role::Primary)]);
    let several =
        pool(&[("first", Role::Primary), ("second", Role::Primary), ("backup", Role::Backup)]);
    for pool in [&single, &several] {
        through(pool, CALLS / 20).await?;
    }
    let direct = beside().await?;
    let [single, several] = [through(&single, CALLS).await?, through(&several, CALLS).await?];
    ensure!(metrics.render().contains("name=\"backup\""), "the counters count nothing");
    Ok(Layers { single: single - direct, several: several - direct, direct })
}

/// CPU of each call through the layers, microseconds.
async fn through(pool: &Pool<Idle>, calls: u64) -> anyhow::Result<f64> {
    let patience = Patience::from(Instant::now() + LONG);
    let call = Call { operation: Operation::Pure, patience, waits: true };
    let before = cpu_s()?;
    for _ in 0..calls {
        let called = pool.call(black_box(call), attempt).await;
        let answered: Result<(), _> = black_box(called).result;
        answered.map_err(|error| anyhow!("{error:?}"))?;
    }
    Ok((cpu_s()? - before) * 1e6 / calls as f64)
}

/// The same without the layers.
async fn beside() -> anyhow::Result<f64> {
    let (member, limit) = (Arc::new(Idle("direct")), Instant::now() + LONG);
    let before = cpu_s()?;
    for _ in 0..CALLS {
        let Ok(()) = black_box(attempt(Arc::clone(black_box(&member)), limit).await).result;
    }
    Ok((cpu_s()? - before) * 1e6 / CALLS as f64)
}

async fn attempt(_: Arc<Idle>, _: Instant) -> Tried<(), Infallibly> {
    Tried { result: Ok(()), verdict: Verdict::Healthy, another: false, took: None }
}

fn cpu_s() -> anyhow::Result<f64> {
    Cpu::of_process(std::process::id())
}

fn pool(members: &[(&'static str, Role)]) -> Pool<Idle> {
    let attempt_max = Duration::from_secs(2);
    let pace = Pace::of_attempt(attempt_max);
    // As in front of an HSM with two workers, by default.
    let limit = LimitOptions {
        max: 512,
        min: 2,
        waiting_max: 1_024,
        wait_max: Duration::from_millis(30),
        queue_max: Some(Duration::from_millis(100)),
    };
    let members = members.iter().map(|(name, role)| {
        let breaker = Breaker::new(*name, BreakerConfig::default(), pace);
        Member::new(Arc::new(Idle(name)), *role, breaker, limit)
    });
    let (retry, ramp) = (RetryConfig::default(), Duration::from_secs(30));
    let health = HealthConfig::default();
    Pool::new(PoolOptions { link: "bench", retry, attempt_max, ramp, health }, members.collect())
}

/// A member that does nothing.
struct Idle(&'static str);

impl Endpoint for Idle {
    fn name(&self) -> &str {
        self.0
    }

    fn is_ready(&self) -> bool {
        true
    }

    async fn heartbeat(&self, _: Instant) -> Result<(), Sick> {
        Ok(())
    }
}

/// No attempt fails here.
#[derive(Debug)]
struct Infallibly(Infallible);

impl Fault for Infallibly {
    fn outcome(&self) -> Outcome {
        match self.0 {}
    }

    fn retry_after(&self) -> Option<Duration> {
        match self.0 {}
    }
}

/// Enough for the operating system's clock ticks of ten milliseconds.
const CALLS: u64 = if cfg!(debug_assertions) { 500_000 } else { 2_000_000 };
/// Longer than a measurement takes.
const LONG: Duration = Duration::from_secs(3_600);
