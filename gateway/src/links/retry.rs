//! Asks again: how often, after which wait, within which budget, and never past the deadline.
//!
//! Attempts happen at this one layer; nothing below repeats and no caller above does: five layers of
//! three attempts are 243 calls. What may be repeated at all says [`classify`](super::classify).

use std::time::Duration;

use tokio::time::Instant;
use tower::retry::budget::{Budget as _, TpsBudget};

use super::jitter;

/// How often and after which waits.
#[derive(Debug, Clone, Copy, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetryConfig {
    /// Attempts in all. Default 3.
    pub attempts: u32,
    /// The first wait; each further one doubles. Default 100.
    pub wait_ms: u64,
    /// The longest wait. Default 1000.
    pub wait_ms_max: u64,
    /// From the first attempt to the end of the last. Default 5000.
    pub total_ms_max: u64,
    /// Further attempts of all requests together, in percent of the requests of the last ten
    /// seconds. Default 20.
    pub budget_percent: u8,
    /// Further attempts that are allowed however few requests there were, a second. Default 3.
    pub budget_per_s_min: u32,
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self {
            attempts: 3,
            wait_ms: 100,
            wait_ms_max: 1_000,
            total_ms_max: 5_000,
            budget_percent: 20,
            budget_per_s_min: 3,
        }
    }
}

impl RetryConfig {
    /// # Errors
    /// Names the key and its bounds.
    pub fn check(&self) -> Result<(), String> {
        if !(1..=10).contains(&self.attempts) {
            return Err("attempts: 1 to 10".into());
        }
        if self.wait_ms > self.wait_ms_max || self.wait_ms_max > 60_000 {
            return Err("wait_ms: at most wait_ms_max, wait_ms_max: at most 60000".into());
        }
        if !(100..=60_000).contains(&self.total_ms_max) {
            return Err("total_ms_max: 100 to 60000".into());
        }
        if self.budget_percent > 100 {
            return Err("budget_percent: 0 to 100".into());
        }
        if !(1..=1_000).contains(&self.budget_per_s_min) {
            return Err("budget_per_s_min: 1 to 1000".into());
        }
        Ok(())
    }

    /// `total_ms_max`.
    #[must_use]
    pub fn total_max(&self) -> Duration {
        Duration::from_millis(self.total_ms_max)
    }

    /// The budget of one kind of traffic to one link.
    #[must_use]
    pub fn budget(&self) -> Budget {
        let percent = f32::from(self.budget_percent) / 100.0;
        Budget(TpsBudget::new(BUDGET_WINDOW, self.budget_per_s_min, percent))
    }

    /// The attempts at one call, of which the first may begin now. `deadline` is the request's.
    #[must_use]
    pub fn attempts(&self, deadline: Instant) -> Attempts {
        self.attempts_until(deadline.min(Instant::now() + self.total_max()))
    }

    /// The same, for what nobody waits for: only `limit` ends them.
    #[must_use]
    pub fn attempts_until(&self, limit: Instant) -> Attempts {
        Attempts { config: *self, limit, made: 0, wait: Duration::from_millis(self.wait_ms) }
    }
}

/// What keeps a link that fails from being asked by everybody three times: all requests share it.
#[derive(Debug)]
pub struct Budget(TpsBudget);

impl Budget {
    /// A request begins.
    pub fn earn(&self) {
        self.0.deposit();
    }

    /// Whether a further attempt may be made. It is then spent.
    pub fn spend(&self) -> bool {
        self.0.withdraw()
    }
}

/// One call's attempts: what is left of their number and their time.
#[derive(Debug)]
pub struct Attempts {
    config: RetryConfig,
    limit: Instant,
    made: u32,
    wait: Duration,
}

impl Attempts {
    /// When the last attempt must have ended.
    #[must_use]
    pub fn limit(&self) -> Instant {
        self.limit
    }

    /// How many were made and failed.
    #[must_use]
    pub fn made(&self) -> u32 {
        self.made
    }

    /// An attempt failed: how long to wait before the next; `None` when there is to be none.
    /// `at_once` says that somebody else can take it, so that waiting helps nobody; `typical` is how
    /// long an attempt takes, for what cannot end in time is not begun.
    pub fn next(
        &mut self,
        at_once: bool,
        retry_after: Option<Duration>,
        typical: Duration,
    ) -> Option<Duration> {
        self.made += 1;
        if self.made >= self.config.attempts {
            return None;
        }
        // Full jitter, but never less than the other side asked for.
        let mut rest = Duration::ZERO;
        if !at_once {
            let asked = retry_after.unwrap_or_default();
            rest = jitter(self.wait / 2, 1.0).max(asked);
            self.wait = (self.wait * 2).min(Duration::from_millis(self.config.wait_ms_max));
        }
        (Instant::now() + rest + typical < self.limit).then_some(rest)
    }
}

/// Over how long requests count towards further attempts.
const BUDGET_WINDOW: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(100);
    const SHORT: Duration = Duration::from_millis(1);

    fn waits(config: RetryConfig, deadline: Duration, after: Option<Duration>) -> Vec<Duration> {
        let mut attempts = config.attempts(Instant::now() + deadline);
        std::iter::from_fn(|| attempts.next(false, after, SHORT)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn three_attempts_have_two_waits_that_double_with_full_jitter() {
        let mut sums = Duration::ZERO;
        for _ in 0..200 {
            let waits = waits(RetryConfig::default(), LONG, None);
            assert_eq!(waits.len(), 2);
            assert!(waits[0] <= Duration::from_millis(100), "{waits:?}");
            assert!(waits[1] <= Duration::from_millis(200), "{waits:?}");
            sums += waits[0] + waits[1];
        }

        let mean = sums / 200;
        assert!((100..200).contains(&mean.as_millis()), "{mean:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_end_before_the_deadline_is_not_begun() {
        let config = RetryConfig { attempts: 10, wait_ms: 1_000, ..RetryConfig::default() };
        let deadline = Instant::now() + Duration::from_secs(3);

        let typical = config.attempts(deadline).next(true, None, Duration::from_secs(4));
        let asked = waits(config, Duration::from_secs(3), Some(Duration::from_secs(5)));

        assert_eq!(typical, None);
        assert!(asked.is_empty(), "{asked:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_other_side_may_ask_for_a_longer_wait_and_somebody_else_is_asked_at_once() {
        let after = Some(Duration::from_secs(2));
        let mut attempts = RetryConfig::default().attempts(Instant::now() + LONG);

        let asked = attempts.next(false, after, SHORT);
        let other = attempts.next(true, after, SHORT);

        assert_eq!((asked, other), (after, Some(Duration::ZERO)));
    }

    /// A cap on the waits alone lets slow attempts run on and on.
    #[tokio::test(start_paused = true)]
    async fn slow_attempts_count_towards_the_total() {
        let start = Instant::now();
        let mut attempts = RetryConfig::default().attempts(start + LONG);
        loop {
            let slow = Instant::now() + Duration::from_secs(4);
            tokio::time::sleep_until(attempts.limit().min(slow)).await;
            let Some(rest) = attempts.next(false, None, SHORT) else { break };
            tokio::time::sleep(rest).await;
        }

        assert!(start.elapsed() <= Duration::from_secs(5), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn further_attempts_are_a_fifth_of_the_requests_and_three_a_second_at_least() {
        let budget = RetryConfig::default().budget();
        let spent = |most: u32| (0..most).take_while(|_| budget.spend()).count();

        let at_rest = spent(1_000);
        (0..2_000).for_each(|_| budget.earn());
        let under_load = spent(1_000);
        tokio::time::advance(Duration::from_secs(11)).await;
        let later = spent(1_000);

        assert!((29..=31).contains(&at_rest), "{at_rest}");
        assert!((399..=401).contains(&under_load), "{under_load}");
        assert!((29..=31).contains(&later), "{later}");
    }
}
