//! Asks again: how often, after which wait, and never past the deadline.
//!
//! Two answers are needed before a second attempt: the error must be transient (it belongs to the
//! error) and the operation repeatable (it belongs to the operation; the caller decides by calling
//! this at all). Attempts happen at this one layer; nothing below repeats.

use std::time::Duration;

use tokio::time::{Instant, sleep};

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
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self { attempts: 3, wait_ms: 100, wait_ms_max: 1_000, total_ms_max: 5_000 }
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
        Ok(())
    }

    /// The attempts at one call, of which the first may begin now.
    #[must_use]
    pub fn attempts(&self, link: &'static str, deadline: Instant) -> Attempts {
        Attempts {
            config: *self,
            link,
            limit: deadline.min(Instant::now() + Duration::from_millis(self.total_ms_max)),
            made: 0,
            wait: Duration::from_millis(self.wait_ms),
        }
    }
}

/// One call's attempts: `loop { call; if good, done; if !again(&error), give up }`.
#[derive(Debug)]
pub struct Attempts {
    config: RetryConfig,
    link: &'static str,
    limit: Instant,
    made: u32,
    wait: Duration,
}

impl Attempts {
    /// When the running attempt must have ended.
    #[must_use]
    pub fn limit(&self) -> Instant {
        self.limit
    }

    /// The call succeeded.
    pub fn done(&self) {
        if self.made > 0 {
            self.count("cured");
        }
    }

    /// The attempt failed: waits, and tells whether to make another. False when the error is final,
    /// or attempts or time are used up.
    pub async fn again(&mut self, error: &impl Retryable) -> bool {
        self.made += 1;
        if !error.is_transient() {
            return false;
        }
        // Full jitter, but never less than the other side asked for.
        let rest = jitter(self.wait / 2, 1.0).max(error.retry_after().unwrap_or_default());
        if self.made >= self.config.attempts || Instant::now() + rest >= self.limit {
            self.count("given_up");
            return false;
        }
        self.count("again");
        sleep(rest).await;
        self.wait = (self.wait * 2).min(Duration::from_millis(self.config.wait_ms_max));
        true
    }

    fn count(&self, outcome: &'static str) {
        let link = self.link;
        metrics::counter!("tollgate_retry_attempts_total", "link" => link, "outcome" => outcome)
            .increment(1);
    }
}

/// What retry needs to know of an error.
pub trait Retryable {
    /// Whether the same call may succeed when it is made again.
    fn is_transient(&self) -> bool;
    /// The least wait that the other side asks for.
    fn retry_after(&self) -> Option<Duration>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    struct Trouble {
        transient: bool,
        after: Option<Duration>,
    }

    impl Retryable for Trouble {
        fn is_transient(&self) -> bool {
            self.transient
        }
        fn retry_after(&self) -> Option<Duration> {
            self.after
        }
    }

    const PASSING: Trouble = Trouble { transient: true, after: None };

    async fn run(
        config: RetryConfig,
        deadline: Duration,
        script: Vec<Result<u32, Trouble>>,
    ) -> (Result<u32, Trouble>, usize, Duration) {
        let start = Instant::now();
        let mut calls = 0;
        let mut script = script.into_iter();
        let mut attempts = config.attempts("test", start + deadline);
        loop {
            calls += 1;
            match script.next().unwrap_or(Err(PASSING)) {
                Ok(value) => return (Ok(value), calls, start.elapsed()),
                Err(error) if attempts.again(&error).await => {}
                Err(error) => return (Err(error), calls, start.elapsed()),
            }
        }
    }

    const LONG: Duration = Duration::from_secs(100);

    #[tokio::test(start_paused = true)]
    async fn a_passing_error_is_tried_three_times_within_its_waits() {
        let (outcome, calls, took) = run(RetryConfig::default(), LONG, vec![]).await;

        assert_eq!((outcome, calls), (Err(PASSING), 3));
        assert!(took <= Duration::from_millis(300), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_final_error_is_not_tried_again() {
        let last = Trouble { transient: false, after: None };
        let (outcome, calls, took) = run(RetryConfig::default(), LONG, vec![Err(last)]).await;

        assert!(outcome.is_err_and(|error| !error.transient));
        assert_eq!((calls, took), (1, Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_ends_the_attempts() {
        let config = RetryConfig { attempts: 10, wait_ms: 1000, ..RetryConfig::default() };
        let (outcome, calls, took) = run(config, Duration::from_millis(10), vec![]).await;

        assert!(outcome.is_err());
        assert!(calls <= 3 && took <= Duration::from_millis(10), "{calls} {took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_other_side_may_ask_for_a_longer_wait() {
        let asked = Trouble { transient: true, after: Some(Duration::from_secs(2)) };
        let (outcome, calls, took) =
            run(RetryConfig::default(), LONG, vec![Err(asked), Ok(7)]).await;

        assert_eq!((outcome, calls), (Ok(7), 2));
        assert_eq!(took, Duration::from_secs(2));
    }

    /// A cap on the waits alone lets slow attempts run on and on.
    #[tokio::test(start_paused = true)]
    async fn slow_attempts_count_towards_the_total() {
        let start = Instant::now();
        let mut attempts = RetryConfig::default().attempts("test", start + LONG);
        loop {
            let slow = Instant::now() + Duration::from_secs(4);
            tokio::time::sleep_until(attempts.limit().min(slow)).await;
            if !attempts.again(&PASSING).await {
                break;
            }
        }

        assert!(start.elapsed() <= Duration::from_secs(5), "{:?}", start.elapsed());
    }
}
