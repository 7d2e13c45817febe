//! Which member is the quickest: calls that run times how long they take.
//!
//! The time is a peak average: a longer one counts at once, shorter ones only as it is forgotten. A
//! failure counts as the time that it might have cost, or a member that fails fast would draw all
//! calls. What is not asked is forgotten too, down to nothing, so that it is asked again.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// One member's load.
#[derive(Debug)]
pub(super) struct Load {
    running: AtomicU32,
    average: Mutex<Average>,
    last_used_ms: AtomicU64,
    begun: Instant,
}

#[derive(Debug)]
struct Average {
    peak_s: f64,
    typical_s: f64,
    at: Instant,
}

/// Counts a call as running until it is dropped.
#[derive(Debug)]
pub(super) struct Running<'l>(&'l Load);

impl Load {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        let average = Average { peak_s: START_S, typical_s: 0.0, at: now };
        Self {
            running: AtomicU32::new(0),
            average: Mutex::new(average),
            last_used_ms: AtomicU64::new(u64::MAX),
            begun: now,
        }
    }

    pub(super) fn enter(&self) -> Running<'_> {
        self.running.fetch_add(1, Ordering::Relaxed);
        let at = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        self.last_used_ms.store(at, Ordering::Relaxed);
        Running(self)
    }

    /// An attempt took that long, or failed and counts as `penalty`.
    pub(super) fn record(&self, took: Duration, penalty: Option<Duration>) {
        let now = Instant::now();
        let mut average = self.average.lock().unwrap_or_else(PoisonError::into_inner);
        let seconds = penalty.map_or(took, |penalty| penalty.max(took)).as_secs_f64();
        let kept = (-(now - average.at).as_secs_f64() / DECAY_S).exp();
        average.at = now;
        average.peak_s = match seconds > average.peak_s {
            true => seconds,
            false => average.peak_s * kept + seconds * (1.0 - kept),
        };
        if penalty.is_none() {
            // A tenth of each answer, whenever it came.
            average.typical_s += (seconds - average.typical_s) * 0.1;
        }
    }

    /// What decides between two members: lower is better.
    pub(super) fn cost(&self) -> f64 {
        let running = f64::from(self.running.load(Ordering::Relaxed));
        let average = self.average.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = (-average.at.elapsed().as_secs_f64() / DECAY_S).exp();
        (running + 1.0) * average.peak_s * kept
    }

    /// How long an answer takes, as a rule.
    pub(super) fn typical(&self) -> Duration {
        let average = self.average.lock().unwrap_or_else(PoisonError::into_inner);
        Duration::from_secs_f64(average.typical_s)
    }

    /// How long ago the last call began; `None` when there was none.
    pub(super) fn last_used(&self) -> Option<Duration> {
        let at = self.last_used_ms.load(Ordering::Relaxed);
        (at != u64::MAX).then(|| self.begun.elapsed().saturating_sub(Duration::from_millis(at)))
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a member that was never asked is believed to take.
const START_S: f64 = 0.030;
const DECAY_S: f64 = 10.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_quicker_and_the_less_busy_costs_less_and_a_failure_is_not_quick() {
        let (quick, slow, failing) = (Load::new(), Load::new(), Load::new());
        for _ in 0..100 {
            tokio::time::advance(Duration::from_secs(1)).await;
            quick.record(Duration::from_millis(1), None);
            slow.record(Duration::from_millis(50), None);
            failing.record(Duration::from_millis(1), Some(Duration::from_secs(2)));
        }

        assert!(quick.cost() < slow.cost() && slow.cost() < failing.cost());
        let busy: Vec<_> = (0..100).map(|_| quick.enter()).collect();
        assert!(quick.cost() > slow.cost());
        drop(busy);
        assert!(quick.cost() < slow.cost());
        assert_eq!(failing.typical(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_failure_is_forgotten() {
        let (failed, other) = (Load::new(), Load::new());
        failed.record(Duration::ZERO, Some(Duration::from_secs(2)));
        let then = failed.cost();

        tokio::time::advance(Duration::from_secs(120)).await;

        assert!(then > 1.0);
        assert!((failed.cost() - other.cost()).abs() < 0.001);
    }
}
