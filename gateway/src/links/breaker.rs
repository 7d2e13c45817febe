//! Stops asking an endpoint that keeps failing, and asks once more after a rest.
//!
//! States go Closed -> Open -> HalfOpen -> Closed. Only outcomes that speak of the endpoint's health
//! count: a refused PIN or a declined payment is a success here. A [`Permit`] that is dropped
//! without a record gives its place back, so that a cancelled call never leaves the breaker stuck.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use metrics::Counter;
use serde::Serialize;
use tokio::time::Instant;

use super::jitter;

/// When a breaker opens and for how long. Units are in the names.
#[derive(Debug, Clone, Copy, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BreakerConfig {
    /// Failures in a row that open it. Default 5.
    pub failures_max: u32,
    /// The first rest. Default 5000.
    pub open_ms: u64,
    /// The longest rest; each failed probe doubles the last one. Default 60000.
    pub open_ms_max: u64,
    /// Good probes in a row that close it. Default 1.
    pub probes: u32,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self { failures_max: 5, open_ms: 5_000, open_ms_max: 60_000, probes: 1 }
    }
}

impl BreakerConfig {
    /// # Errors
    /// Names the key and its bounds.
    pub fn check(&self) -> Result<(), String> {
        if !(1..=1000).contains(&self.failures_max) {
            return Err("failures_max: 1 to 1000".into());
        }
        if self.open_ms < 10 || self.open_ms_max < self.open_ms || self.open_ms_max > 600_000 {
            return Err("open_ms: 10 to open_ms_max, open_ms_max: at most 600000".into());
        }
        if !(1..=100).contains(&self.probes) {
            return Err("probes: 1 to 100".into());
        }
        Ok(())
    }
}

/// Whether calls pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Calls pass.
    Closed,
    /// No call passes until the rest is over.
    Open,
    /// One call at a time passes, to find out.
    HalfOpen,
}

impl State {
    /// Every state: the gauge shows all of them.
    pub const ALL: [Self; 3] = [Self::Closed, Self::Open, Self::HalfOpen];

    /// `closed`, `open`, `half_open`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// How an admitted call ended, as far as the endpoint's health goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It answered, whatever it answered.
    Healthy,
    /// It did not answer, or answered that it cannot.
    Failing,
}

/// One endpoint's breaker. Clones share it.
#[derive(Debug, Clone)]
pub struct Breaker {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    name: String,
    config: BreakerConfig,
    inner: Mutex<Inner>,
    calls: Calls,
}

/// One counter for each kind of call: taken once, because a look-up by name costs more than a call
/// to the breaker.
#[derive(Debug)]
struct Calls {
    success: Counter,
    failure: Counter,
    abandoned: Counter,
    rejected: Counter,
}

impl Calls {
    fn new(name: &str) -> Self {
        let counter = |kind: &'static str| {
            let labels = [("name", name.to_owned()), ("kind", kind.to_owned())];
            metrics::counter!("tollgate_breaker_calls_total", &labels)
        };
        Self {
            success: counter("success"),
            failure: counter("failure"),
            abandoned: counter("abandoned"),
            rejected: counter("rejected"),
        }
    }
}

#[derive(Debug)]
struct Inner {
    phase: Phase,
    /// Raised at each transition: a result of an older phase changes nothing.
    generation: u64,
    since: Instant,
    failures: u32,
    /// The rest that the next opening takes.
    rest: Duration,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    Closed,
    Open { until: Instant },
    HalfOpen { probing: bool, good: u32 },
}

impl Breaker {
    /// Closed.
    #[must_use]
    pub fn new(name: impl Into<String>, config: BreakerConfig) -> Self {
        let inner = Inner {
            phase: Phase::Closed,
            generation: 0,
            since: Instant::now(),
            failures: 0,
            rest: Duration::from_millis(config.open_ms),
        };
        let name = name.into();
        let calls = Calls::new(&name);
        let shared = Shared { name, config, inner: Mutex::new(inner), calls };
        let breaker = Self { shared: Arc::new(shared) };
        breaker.show(State::Closed);
        breaker
    }

    /// A permit for one call. Errors: how long the endpoint rests still; zero while a probe runs.
    ///
    /// # Errors
    /// [`Resting`] while no call may pass.
    pub fn admit(&self) -> Result<Permit, Resting> {
        let mut inner = self.inner();
        if let Phase::Open { until } = inner.phase {
            let now = Instant::now();
            if now < until {
                self.shared.calls.rejected.increment(1);
                return Err(Resting { left: until - now });
            }
            self.enter(&mut inner, Phase::HalfOpen { probing: false, good: 0 });
        }
        if let Phase::HalfOpen { probing, .. } = &mut inner.phase {
            if *probing {
                self.shared.calls.rejected.increment(1);
                return Err(Resting { left: Duration::ZERO });
            }
            *probing = true;
        }
        Ok(Permit { breaker: self.clone(), generation: inner.generation, recorded: false })
    }

    /// The state by the clock: an open breaker whose rest is over is half open.
    #[must_use]
    pub fn state(&self) -> State {
        match self.inner().phase {
            Phase::Closed => State::Closed,
            Phase::Open { until } if Instant::now() < until => State::Open,
            Phase::Open { .. } | Phase::HalfOpen { .. } => State::HalfOpen,
        }
    }

    /// How long no call may pass; zero when one may. While a probe runs, a moment: nobody knows how
    /// long it takes.
    #[must_use]
    pub fn rests_for(&self) -> Duration {
        match self.inner().phase {
            Phase::Open { until } => until.saturating_duration_since(Instant::now()),
            Phase::HalfOpen { probing: true, .. } => PROBE_MOMENT,
            Phase::Closed | Phase::HalfOpen { probing: false, .. } => Duration::ZERO,
        }
    }

    /// The endpoint's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    fn record(&self, generation: u64, verdict: Option<Verdict>) {
        let mut inner = self.inner();
        let calls = &self.shared.calls;
        match verdict {
            Some(Verdict::Healthy) => calls.success.increment(1),
            Some(Verdict::Failing) => calls.failure.increment(1),
            None => calls.abandoned.increment(1),
        }
        if generation != inner.generation {
            return;
        }
        let config = &self.shared.config;
        match (inner.phase, verdict) {
            (Phase::Closed, Some(Verdict::Healthy)) => {
                inner.failures = 0;
                // Two quiet minutes, and the next opening starts with the first rest again.
                if inner.since.elapsed() > Duration::from_secs(120) {
                    inner.rest = Duration::from_millis(config.open_ms);
                }
            }
            (Phase::Closed, Some(Verdict::Failing)) => {
                inner.failures += 1;
                if inner.failures >= config.failures_max {
                    self.open(&mut inner);
                }
            }
            (Phase::HalfOpen { good, .. }, Some(Verdict::Healthy)) => {
                let good = good + 1;
                if good >= config.probes {
                    self.enter(&mut inner, Phase::Closed);
                } else {
                    inner.phase = Phase::HalfOpen { probing: false, good };
                }
            }
            (Phase::HalfOpen { .. }, Some(Verdict::Failing)) => self.open(&mut inner),
            (Phase::HalfOpen { good, .. }, None) => {
                inner.phase = Phase::HalfOpen { probing: false, good };
            }
            (Phase::Closed, None) | (Phase::Open { .. }, _) => {}
        }
    }

    fn open(&self, inner: &mut Inner) {
        let rest = jitter(inner.rest, 0.2);
        let longest = Duration::from_millis(self.shared.config.open_ms_max);
        inner.rest = (inner.rest * 2).min(longest);
        self.enter(inner, Phase::Open { until: Instant::now() + rest });
    }

    fn enter(&self, inner: &mut Inner, phase: Phase) {
        let state = match phase {
            Phase::Closed => State::Closed,
            Phase::Open { .. } => State::Open,
            Phase::HalfOpen { .. } => State::HalfOpen,
        };
        inner.phase = phase;
        inner.generation += 1;
        inner.failures = 0;
        inner.since = Instant::now();
        tracing::info!(breaker = self.shared.name, state = state.name(), "breaker");
        self.show(state);
    }

    /// All states are always shown, as 0 or 1.
    fn show(&self, state: State) {
        for each in State::ALL {
            let value = if each == state { 1.0 } else { 0.0 };
            let labels = [("name", self.shared.name.clone()), ("state", each.name().to_owned())];
            metrics::gauge!("tollgate_breaker_state", &labels).set(value);
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.shared.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// When to look again while a probe runs.
const PROBE_MOMENT: Duration = Duration::from_millis(200);

/// Leave for one call. Dropped without a record, it gives its place back.
#[derive(Debug)]
pub struct Permit {
    breaker: Breaker,
    generation: u64,
    recorded: bool,
}

impl Permit {
    /// Says how the call ended.
    pub fn record(mut self, verdict: Verdict) {
        self.recorded = true;
        self.breaker.record(self.generation, Some(verdict));
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.recorded {
            self.breaker.record(self.generation, None);
        }
    }
}

/// No call may pass now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the breaker is open for {left:?} more")]
pub struct Resting {
    /// Until the next probe; zero while one runs.
    pub left: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaker() -> Breaker {
        Breaker::new("test", BreakerConfig { open_ms: 1000, ..BreakerConfig::default() })
    }

    fn fail(breaker: &Breaker, times: u32) {
        for _ in 0..times {
            breaker.admit().unwrap().record(Verdict::Failing);
        }
    }

    async fn rest() {
        tokio::time::advance(Duration::from_millis(1201)).await;
    }

    /// A dead endpoint must cost its callers nothing until it has rested.
    #[tokio::test(start_paused = true)]
    async fn five_failures_open_it_until_it_has_rested() {
        let breaker = breaker();
        fail(&breaker, 4);
        assert_eq!(breaker.state(), State::Closed);

        fail(&breaker, 1);

        assert!(breaker.admit().is_err());
        rest().await;
        breaker.admit().unwrap().record(Verdict::Healthy);
        assert_eq!(breaker.state(), State::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_between_failures_keeps_it_closed() {
        let breaker = breaker();
        for _ in 0..20 {
            fail(&breaker, 4);
            breaker.admit().unwrap().record(Verdict::Healthy);
        }
        assert_eq!(breaker.state(), State::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn one_probe_at_a_time_and_a_dropped_one_gives_its_place_back() {
        let breaker = breaker();
        fail(&breaker, 5);
        rest().await;

        let probe = breaker.admit().unwrap();
        assert!(breaker.admit().is_err());
        drop(probe);

        breaker.admit().unwrap().record(Verdict::Healthy);
        assert_eq!(breaker.state(), State::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_probe_doubles_the_rest_up_to_the_cap() {
        let breaker = breaker();
        fail(&breaker, 5);
        let mut rests = Vec::new();
        for _ in 0..8 {
            let left = breaker.admit().unwrap_err().left;
            rests.push(left.as_secs_f64());
            tokio::time::advance(left).await;
            breaker.admit().unwrap().record(Verdict::Failing);
        }
        for (rest, wanted) in rests.iter().zip([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]) {
            assert!((rest / wanted - 1.0).abs() <= 0.21, "{rests:?}");
        }
    }

    /// A slow call admitted before the breaker opened says nothing about the half-open state.
    #[tokio::test(start_paused = true)]
    async fn a_late_result_of_an_older_state_changes_nothing() {
        let breaker = breaker();
        let late = breaker.admit().unwrap();
        fail(&breaker, 5);
        rest().await;
        let probe = breaker.admit().unwrap();

        late.record(Verdict::Failing);

        assert_eq!(breaker.state(), State::HalfOpen);
        probe.record(Verdict::Healthy);
        assert_eq!(breaker.state(), State::Closed);
    }
}
