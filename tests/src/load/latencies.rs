//! How long each request took, in bounded space: 64 steps for each doubling, error below 2 %.

use std::time::Duration;

/// A histogram of microseconds.
#[derive(Debug, Clone)]
pub struct Latencies {
    steps: Vec<u64>,
    count: u64,
    max_us: u64,
}

impl Latencies {
    /// Counts one.
    pub fn record(&mut self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.steps[step_of(us)] += 1;
        self.count += 1;
        self.max_us = self.max_us.max(us);
    }

    /// Counts what another has counted.
    pub fn add(&mut self, other: &Self) {
        for (step, more) in self.steps.iter_mut().zip(&other.steps) {
            *step += more;
        }
        self.count += other.count;
        self.max_us = self.max_us.max(other.max_us);
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The longest, exactly.
    pub fn max(&self) -> Duration {
        Duration::from_micros(self.max_us)
    }

    /// What this share (0 to 1) of them did not exceed; zero when nothing was counted.
    pub fn quantile(&self, share: f64) -> Duration {
        let wanted = (share * self.count as f64).ceil() as u64;
        let mut seen = 0;
        let step = self.steps.iter().position(|count| {
            seen += count;
            seen >= wanted.max(1)
        });
        Duration::from_micros(step.map_or(0, top_of).min(self.max_us))
    }
}

impl Default for Latencies {
    fn default() -> Self {
        Self { steps: vec![0; step_of(u64::MAX) + 1], count: 0, max_us: 0 }
    }
}

/// Below 128 one step for each value; above, the top seven bits of the value choose the step.
fn step_of(us: u64) -> usize {
    let shift = 57_u32.saturating_sub(us.leading_zeros());
    (u64::from(shift) * 64 + (us >> shift)) as usize
}

/// The largest value of a step.
fn top_of(step: usize) -> u64 {
    let shift = (step as u64 / 64).saturating_sub(1);
    let low = (step as u64 - shift * 64) << shift;
    low + ((1 << shift) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_two_percent() {
        let mut latencies = Latencies::default();
        for us in 1..=100_000 {
            latencies.record(Duration::from_micros(us));
        }

        for share in [0.01, 0.5, 0.9, 0.99, 1.0] {
            let found = latencies.quantile(share).as_micros() as f64;

            assert!((found / (share * 100_000.0) - 1.0).abs() < 0.02, "{share}: {found}");
        }
        assert_eq!(latencies.max(), Duration::from_micros(100_000));
    }

    #[test]
    fn every_value_lies_in_its_step_up_to_the_largest() {
        for us in [0, 1, 127, 128, 129, 255, 256, 1_000_000, u64::MAX / 3, u64::MAX] {
            let step = step_of(us);

            assert!(top_of(step) >= us, "{us}");
            assert!(step == 0 || top_of(step - 1) < us, "{us}");
        }
    }

    #[test]
    fn nothing_counted_is_zero() {
        assert_eq!(Latencies::default().quantile(0.99), Duration::ZERO);
    }
}
