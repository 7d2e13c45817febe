//! `[hsm.breaker]` and `[biller.breaker]`: when a breaker opens, how long it rests, what closes it.

use std::time::Duration;

/// When a breaker opens and for how long. Units are in the names.
#[derive(Debug, Clone, Copy, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BreakerConfig {
    /// Failures in a row that open it. Default 5.
    pub failures_max: u32,
    /// The share of failures in the window that opens it. Percent; default 50.
    pub failure_percent: u8,
    /// The share of slow calls in the window that opens it. Percent; default 80.
    pub slow_percent: u8,
    /// With fewer calls in the window a share says nothing. Default 20.
    pub rate_calls_min: u32,
    /// How far back the shares look. Seconds; default 60.
    pub window_s: u64,
    /// The first rest. Default 5000.
    pub open_ms: u64,
    /// The longest rest; each further opening doubles the last one. Default 60000.
    pub open_ms_max: u64,
    /// Closed for that long, the next opening takes the first rest again. Default 120000.
    pub stable_ms: u64,
    /// Good calls, one after another, that close a half-open breaker. Default 3.
    pub probes: u32,
    /// The longest stay half open; then it opens again. Default 30000.
    pub half_open_ms_max: u64,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            failures_max: 5,
            failure_percent: 50,
            slow_percent: 80,
            rate_calls_min: 20,
            window_s: 60,
            open_ms: 5_000,
            open_ms_max: 60_000,
            stable_ms: 120_000,
            probes: 3,
            half_open_ms_max: 30_000,
        }
    }
}

impl BreakerConfig {
    /// # Errors
    /// Names the key and its bounds.
    pub fn check(&self) -> Result<(), String> {
        let bounds = [
            ("failures_max", u64::from(self.failures_max), 1..=1_000),
            ("failure_percent", u64::from(self.failure_percent), 1..=100),
            ("slow_percent", u64::from(self.slow_percent), 1..=100),
            ("rate_calls_min", u64::from(self.rate_calls_min), 1..=100_000),
            ("window_s", self.window_s, 1..=600),
            ("stable_ms", self.stable_ms, 1..=3_600_000),
            ("probes", u64::from(self.probes), 1..=100),
            ("half_open_ms_max", self.half_open_ms_max, 100..=600_000),
        ];
        for (key, value, bound) in bounds {
            if !bound.contains(&value) {
                return Err(format!("{key}: {} to {}", bound.start(), bound.end()));
            }
        }
        if self.open_ms < 10 || self.open_ms_max < self.open_ms || self.open_ms_max > 600_000 {
            return Err("open_ms: 10 to open_ms_max, open_ms_max: at most 600000".into());
        }
        Ok(())
    }

    /// The rest after so many openings without a stable time between them, before jitter.
    pub(super) fn rest(&self, openings: u32) -> Duration {
        // Doubled sixteen times, the shortest rest is longer than the longest.
        let rest = self.open_ms.saturating_mul(1 << openings.min(16));
        Duration::from_millis(rest.min(self.open_ms_max))
    }

    /// The part of a rest that not even a good heartbeat cuts short.
    pub(super) fn rest_min(&self) -> Duration {
        Duration::from_millis(self.open_ms.min(1_000))
    }

    /// Closed for that long, a breaker starts from the beginning.
    pub(super) fn stable(&self) -> Duration {
        Duration::from_millis(self.stable_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_out_of_bounds_is_refused_with_its_key() {
        let good = BreakerConfig::default();
        for (key, bad) in [
            ("failures_max", BreakerConfig { failures_max: 0, ..good }),
            ("failure_percent", BreakerConfig { failure_percent: 101, ..good }),
            ("slow_percent", BreakerConfig { slow_percent: 0, ..good }),
            ("rate_calls_min", BreakerConfig { rate_calls_min: 0, ..good }),
            ("window_s", BreakerConfig { window_s: 601, ..good }),
            ("open_ms", BreakerConfig { open_ms: 70_000, ..good }),
            ("stable_ms", BreakerConfig { stable_ms: 0, ..good }),
            ("probes", BreakerConfig { probes: 0, ..good }),
            ("half_open_ms_max", BreakerConfig { half_open_ms_max: 99, ..good }),
        ] {
            let why = bad.check().unwrap_err();

            assert!(why.starts_with(&format!("{key}: ")), "{why}");
        }
        assert_eq!(good.check(), Ok(()));
    }

    #[test]
    fn the_rest_doubles_up_to_its_longest() {
        let config = BreakerConfig::default();

        let rests = [0, 1, 2, 3, 4, 5, u32::MAX].map(|openings| config.rest(openings).as_secs());

        assert_eq!(rests, [5, 10, 20, 40, 60, 60, 60]);
    }
}
