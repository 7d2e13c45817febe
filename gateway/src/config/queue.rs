//! `[queue]`: how many payments may wait, how long, and how long they are remembered.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::within;

/// The `[queue]` section.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct QueueConfig {
    /// Open payments to one biller before new ones to it are refused with `queue-full`: those that
    /// wait and those that are being sent, not those that a person holds. Reversals may pass, up to a
    /// tenth more. Rows; default 10 000.
    pub rows_max: u32,
    /// How long one sender may keep a payment before it counts as lost. Seconds; default 30. An
    /// attempt must end well before it.
    pub lease_s: u32,
    /// Attempts before a waiting payment is given up. Default 25.
    pub attempts_max: u32,
    /// The wait after a payment's first attempt; each further one doubles, more or less by a fifth.
    /// Milliseconds; default 1000.
    pub wait_ms: u64,
    /// The longest such wait. Milliseconds; default 300 000.
    pub wait_ms_max: u64,
    /// How long a payment may wait. Seconds; default 86 400 (24 h).
    pub payment_life_s: u32,
    /// How long a payment with a stored PIN block may wait. Seconds; default 900, at most 3 600.
    pub pin_life_s: u32,
    /// How long a reversal is repeated before a person has to see to it. Seconds; default 604 800 (7 days).
    pub reversal_life_s: u32,
    /// How long after a send without an answer a biller is asked what became of it: by then it has
    /// arrived or it never will. Seconds; default 20.
    pub enquiry_after_s: u32,
    /// Payments of the queue that are sent to one biller at once, when it takes them: one after a
    /// failure, twice as many after each success. Default 16.
    pub senders_max: u32,
    /// How long finished payments can be looked up. Days; default 90; at least `payment_life_s` + 2
    /// days + `idempotency_h`.
    pub retention_days: u32,
    /// How long an idempotency key is remembered; for a payment that may wait, counted from the
    /// end of the day after its life. Hours; default 24.
    pub idempotency_h: u32,
}

impl Default for QueueConfig {
    fn default() -> Self {
        Self {
            rows_max: 10_000,
            lease_s: 30,
            attempts_max: 25,
            wait_ms: 1_000,
            wait_ms_max: 300_000,
            payment_life_s: 86_400,
            pin_life_s: 900,
            reversal_life_s: 604_800,
            enquiry_after_s: 20,
            senders_max: 16,
            retention_days: 90,
            idempotency_h: 24,
        }
    }
}

impl QueueConfig {
    /// Whether every value is within its bounds.
    ///
    /// # Errors
    /// Names the first key that is not, its value and the bounds.
    pub fn check(&self) -> Result<(), String> {
        within("queue.rows_max", self.rows_max, 100..=1_000_000)?;
        within("queue.lease_s", self.lease_s, 5..=300)?;
        within("queue.attempts_max", self.attempts_max, 1..=100)?;
        within("queue.wait_ms", self.wait_ms, 10..=60_000)?;
        within("queue.wait_ms_max", self.wait_ms_max, self.wait_ms..=3_600_000)?;
        within("queue.payment_life_s", self.payment_life_s, 60..=7 * 86_400)?;
        within("queue.pin_life_s", self.pin_life_s, 60..=3_600)?;
        within("queue.reversal_life_s", self.reversal_life_s, 3_600..=30 * 86_400)?;
        within("queue.enquiry_after_s", self.enquiry_after_s, 1..=3_600)?;
        within("queue.senders_max", self.senders_max, 1..=256)?;
        within("queue.idempotency_h", self.idempotency_h, 24..=24 * 31)?;
        let least = self.retention_days_min();
        if self.retention_days < least {
            return Err(format!(
                "queue.retention_days = {}: must be at least {least}, which is queue.payment_life_s + 2 \
                 days + queue.idempotency_h",
                self.retention_days
            ));
        }
        within("queue.retention_days", self.retention_days, least..=3_650)
    }

    /// A payment is remembered for as long as its idempotency key, however long it waited.
    fn retention_days_min(&self) -> u32 {
        let hours = self.payment_life_s.div_ceil(3_600) + 48 + self.idempotency_h;
        hours.div_ceil(24)
    }

    /// `lease_s`.
    #[must_use]
    pub fn lease(&self) -> Duration {
        Duration::from_secs(self.lease_s.into())
    }

    /// How long one sending may take: the lease must outlast it and the recording of what became of it.
    #[must_use]
    pub fn sending_max(&self) -> Duration {
        self.lease().mul_f64(0.8)
    }

    /// How long a payment rests after so many attempts.
    #[must_use]
    pub fn wait_after(&self, attempts: u32) -> Duration {
        let doubled = self.wait_ms.saturating_mul(1 << attempts.min(30));
        Duration::from_millis(doubled.min(self.wait_ms_max))
    }

    /// How long a payment rests at least that is so old and was told to come back: a quarter of its age.
    #[must_use]
    pub fn wait_at_age(&self, age_ms: u64) -> Duration {
        Duration::from_millis((age_ms / 4).min(self.wait_ms_max))
    }

    /// `pin_life_s`.
    #[must_use]
    pub fn pin_life(&self) -> Duration {
        Duration::from_secs(self.pin_life_s.into())
    }

    /// `reversal_life_s`.
    #[must_use]
    pub fn reversal_life(&self) -> Duration {
        Duration::from_secs(self.reversal_life_s.into())
    }

    /// `enquiry_after_s`.
    #[must_use]
    pub fn enquiry_after(&self) -> Duration {
        Duration::from_secs(self.enquiry_after_s.into())
    }

    /// `payment_life_s`.
    #[must_use]
    pub fn payment_life(&self) -> Duration {
        Duration::from_secs(self.payment_life_s.into())
    }

    /// `idempotency_h`.
    #[must_use]
    pub fn idempotency(&self) -> Duration {
        Duration::from_secs(u64::from(self.idempotency_h) * 3_600)
    }

    /// `retention_days`.
    #[must_use]
    pub fn retention(&self) -> Duration {
        Duration::from_secs(u64::from(self.retention_days) * 86_400)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_within_their_own_bounds() {
        let config: QueueConfig = toml::from_str("").unwrap();

        assert_eq!(config.check(), Ok(()));
        assert_eq!((config.rows_max, config.lease_s, config.attempts_max), (10_000, 30, 25));
    }

    #[test]
    fn waits_double_up_to_the_longest() {
        let config = QueueConfig::default();

        let waits = [0, 1, 2, 3, 4, 8, 9, 40].map(|made| config.wait_after(made).as_secs());

        assert_eq!(waits, [1, 2, 4, 8, 16, 256, 300, 300]);
    }

    /// Fifty payments that a biller puts off for ever leave room for all others.
    #[test]
    fn who_is_told_to_come_back_rests_the_longer_the_older_it_is() {
        let config = QueueConfig::default();

        let waits = [0, 4_000, 60_000, 3_600_000].map(|age| config.wait_at_age(age).as_millis());

        assert_eq!(waits, [0, 1_000, 15_000, 300_000]);
    }

    #[test]
    fn a_pin_may_not_wait_longer_than_an_hour() {
        let config: QueueConfig = toml::from_str("pin_life_s = 3601").unwrap();

        let refusal = config.check().unwrap_err();

        assert_eq!(refusal, "queue.pin_life_s = 3601: must be from 60 to 3600");
    }

    #[test]
    fn a_payment_is_not_forgotten_before_its_idempotency_key() {
        let config = |days| QueueConfig {
            payment_life_s: 7 * 86_400,
            idempotency_h: 25,
            retention_days: days,
            ..QueueConfig::default()
        };

        let refusal = config(10).check().unwrap_err();

        assert_eq!(
            refusal,
            "queue.retention_days = 10: must be at least 11, which is queue.payment_life_s + 2 days + \
             queue.idempotency_h"
        );
        assert_eq!(config(11).check(), Ok(()));
    }

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let refusal = toml::from_str::<QueueConfig>("rows = 5").unwrap_err();

        assert!(refusal.to_string().contains("rows"), "{refusal}");
    }
}
