//! The generic cell rate algorithm with one stored number: the theoretical arrival time.
//!
//! `new = max(TAT, now) + T`; a call is allowed iff `new - now <= burst * T`. Own code rather than
//! a crate's, because several limits are one transaction here: what the first granted is given
//! back when the second refuses. The clock is monotonic, so no change of time refills anything.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::Instant;

/// One limit for one subject. Any number of threads may spend from it.
#[derive(Debug)]
pub(crate) struct Gcra {
    born: Instant,
    /// T: nanoseconds that one call costs.
    cost_ns: u64,
    /// burst * T.
    tolerance_ns: u64,
    /// Nanoseconds after `born`.
    arrival_ns: AtomicU64,
}

impl Gcra {
    /// `count` calls each `period`, `burst` of them at once after a rest. Neither may be zero;
    /// configuration sees to it, and one is assumed here.
    pub(crate) fn new(count: u32, period: Duration, burst: u32) -> Self {
        let cost_ns = (nanos(period) / u64::from(count.max(1))).max(1);
        let tolerance_ns = cost_ns.saturating_mul(u64::from(burst.max(1)));
        Self { born: Instant::now(), cost_ns, tolerance_ns, arrival_ns: AtomicU64::new(0) }
    }

    /// Spends one call at `now` and says how many more could follow at once.
    ///
    /// # Errors
    /// How long until one call would be allowed. Nothing was spent.
    pub(crate) fn spend(&self, now: Instant) -> Result<u32, Duration> {
        let now_ns = nanos(now.saturating_duration_since(self.born));
        let mut seen = self.arrival_ns.load(Ordering::Relaxed);
        loop {
            let new = seen.max(now_ns).saturating_add(self.cost_ns);
            let ahead = new - now_ns;
            if ahead > self.tolerance_ns {
                return Err(Duration::from_nanos(ahead - self.tolerance_ns));
            }
            match self.arrival_ns.compare_exchange_weak(
                seen,
                new,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => {
                    let left = (self.tolerance_ns - ahead) / self.cost_ns;
                    return Ok(u32::try_from(left).unwrap_or(u32::MAX));
                }
                Err(changed) => seen = changed,
            }
        }
    }

    /// Gives one spent call back.
    pub(crate) fn give_back(&self) {
        // The closure always answers, so the update cannot fail.
        let _ = self.arrival_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |at| {
            Some(at.saturating_sub(self.cost_ns))
        });
    }

    /// Whether nothing is spent at `now`: forgetting this limit would change nothing.
    pub(crate) fn is_rested(&self, now: Instant) -> bool {
        self.arrival_ns.load(Ordering::Relaxed) <= nanos(now.saturating_duration_since(self.born))
    }

    /// Time until everything is refilled.
    pub(crate) fn reset(&self, now: Instant) -> Duration {
        let now_ns = nanos(now.saturating_duration_since(self.born));
        Duration::from_nanos(self.arrival_ns.load(Ordering::Relaxed).saturating_sub(now_ns))
    }
}

/// Nanoseconds in 64 bits: enough for 584 years.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_granted_and_the_next_call_waits_for_its_turn() {
        let limit = Gcra::new(10, SECOND, 3);

        let granted: Vec<_> = (0..3).map(|_| limit.spend(Instant::now())).collect();
        let refused = limit.spend(Instant::now());
        tokio::time::advance(Duration::from_millis(100)).await;
        let later = limit.spend(Instant::now());

        assert_eq!(granted, [Ok(2), Ok(1), Ok(0)]);
        assert_eq!(refused, Err(Duration::from_millis(100)));
        assert_eq!(later, Ok(0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_given_back_can_be_spent_again() {
        let limit = Gcra::new(1, SECOND, 1);
        limit.spend(Instant::now()).unwrap();

        limit.give_back();

        assert!(limit.is_rested(Instant::now()));
        assert_eq!(limit.spend(Instant::now()), Ok(0));
    }

    #[tokio::test(start_paused = true)]
    async fn an_earlier_clock_refills_nothing() {
        let early = Instant::now();
        tokio::time::advance(SECOND).await;
        let limit = Gcra::new(1, SECOND, 1);
        limit.spend(Instant::now()).unwrap();

        let refused = limit.spend(early);

        assert_eq!(refused, Err(SECOND));
    }
}
