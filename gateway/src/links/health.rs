//! Asks each member now and then whether it is well, so that nobody's payment has to find out.
//!
//! A healthy member is asked every half minute, one that is not every second. Two failures in a row
//! open its breaker; a wrong answer does so at once and is an alarm (of a token: when no worker gives
//! the right one), and so does a failure of one that knows itself that it cannot take calls. While the breaker rests, a good
//! heartbeat ends the rest early, and further ones close it: see [`breaker`](super::breaker).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use super::breaker::{State, Verdict};
use super::jitter;
use super::pool::{Endpoint, Member, Pool};
use crate::telemetry::metrics::{heartbeat, wrong_answer};

/// How often members are asked.
#[derive(Debug, Clone, Copy, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HealthConfig {
    /// From one heartbeat of a healthy member to the next, more or less by a tenth. Default 30000.
    pub every_ms: u64,
    /// The same while it is not healthy, more by up to a fifth. Default 1000.
    pub sick_ms: u64,
    /// How long one may take. Default 2000.
    pub limit_ms: u64,
}

impl Default for HealthConfig {
    fn default() -> Self {
        Self { every_ms: 30_000, sick_ms: 1_000, limit_ms: 2_000 }
    }
}

impl HealthConfig {
    /// # Errors
    /// Names the key and its bounds.
    pub fn check(&self) -> Result<(), String> {
        if !(100..=600_000).contains(&self.every_ms) {
            return Err("every_ms: 100 to 600000".into());
        }
        if !(100..=60_000).contains(&self.sick_ms) || self.sick_ms > self.every_ms {
            return Err("sick_ms: 100 to 60000, at most every_ms".into());
        }
        if !(10..=30_000).contains(&self.limit_ms) {
            return Err("limit_ms: 10 to 30000".into());
        }
        Ok(())
    }
}

/// Why a heartbeat is not good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sick {
    /// Whether an answer came that is not the known one.
    pub wrong: bool,
    /// What to tell an operator.
    pub why: String,
}

/// What the monitor knows of a member.
#[derive(Debug, Clone, Default)]
pub struct Health {
    /// When the last heartbeat ended, and how long it took.
    pub last: Option<(Instant, Duration)>,
    /// Why it was not good; `None` when it was.
    pub trouble: Option<String>,
    /// Heartbeats in a row that were not good.
    pub failures: u32,
    /// Since when the last heartbeats are good, or are not.
    pub since: Option<Instant>,
}

/// A member's health, shared with whoever looks.
#[derive(Debug, Default)]
pub struct HealthLog(Mutex<Health>);

impl HealthLog {
    pub(super) fn read(&self) -> Health {
        self.lock().clone()
    }

    /// The number of bad ones in a row.
    fn note(&self, took: Duration, outcome: &Result<(), Sick>) -> u32 {
        let mut health = self.lock();
        let now = Instant::now();
        let was_good = health.trouble.is_none();
        health.last = Some((now, took));
        health.trouble = outcome.as_ref().err().map(|sick| sick.why.clone());
        health.failures = if outcome.is_ok() { 0 } else { health.failures.saturating_add(1) };
        if health.since.is_none() || was_good != outcome.is_ok() {
            health.since = Some(now);
        }
        health.failures
    }

    fn lock(&self) -> MutexGuard<'_, Health> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<E: Endpoint> Pool<E> {
    /// Asks one member again and again until `stop`.
    pub async fn monitor(self: Arc<Self>, at: usize, stop: CancellationToken) {
        let config = self.health();
        let Some(member) = self.members().get(at) else { return };
        loop {
            let asked = tokio::select! {
                () = stop.cancelled() => return,
                asked = member.beat(config) => asked,
            };
            // Asked for before the look, so that no transition is missed.
            let changed = member.breaker().changed();
            let state = member.breaker().state();
            let ready = member.endpoint().is_ready();
            let pause = match (asked, state) {
                // One good answer after another, without a rest between them.
                (Some(true), State::HalfOpen) => Duration::ZERO,
                (Some(true), State::Closed) if ready => {
                    jitter(Duration::from_millis(config.every_ms), 0.1)
                }
                _ => jitter(Duration::from_millis(config.sick_ms).mul_f64(1.1), 0.09),
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(pause) => {}
                () = changed => {}
                () = member.lost(), if ready => {}
            }
        }
    }
}

impl<E: Endpoint> Member<E> {
    /// Ends when the member says itself, twice in a row, that it cannot take a call: no call fails at
    /// it then, and nobody else would tell.
    async fn lost(&self) {
        let mut looks = 0;
        while looks < 2 {
            sleep(LOOK_EVERY).await;
            looks = if self.endpoint().is_ready() { 0 } else { looks + 1 };
        }
    }

    /// One heartbeat: whether it was good; `None` when the breaker wants none.
    async fn beat(&self, config: &HealthConfig) -> Option<bool> {
        let permit = self.breaker().admit_probe()?;
        let begun = Instant::now();
        let limit = begun + Duration::from_millis(config.limit_ms);
        let outcome = match timeout_at(limit, self.endpoint().heartbeat(limit)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Sick { wrong: false, why: "no answer in time".into() }),
        };
        let took = begun.elapsed();
        let name = self.breaker().name();
        heartbeat(name, outcome.is_ok(), took);
        let failures = self.health.note(took, &outcome);
        match outcome {
            Ok(()) => {
                self.load().record(took, None);
                permit.record(Verdict::Healthy);
                Some(true)
            }
            Err(Sick { wrong, why }) => {
                if wrong {
                    tracing::error!(member = name, why, "a wrong answer to a known question");
                    wrong_answer(name);
                } else if failures == 1 {
                    tracing::warn!(member = name, why, "a heartbeat was not good");
                }
                permit.record(Verdict::Failing);
                let lost = !self.endpoint().is_ready();
                let detail = match (wrong, lost) {
                    (true, _) => "a wrong answer to a known question",
                    (false, true) => "not ready",
                    (false, false) => "no good answer, twice in a row",
                };
                if wrong || lost || failures >= FAILURES_MAX {
                    self.breaker().trip(detail);
                }
                Some(false)
            }
        }
    }
}

/// How often a member is looked at without asking it.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Heartbeats in a row that may fail.
const FAILURES_MAX: u32 = 2;
