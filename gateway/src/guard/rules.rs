//! The limits as the store counts them.

use std::time::Duration;

use crate::config::LimitsConfig;
use crate::store::Window;

/// From `[limits]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    /// Of one card.
    pub(super) pan_translations: Window,
    /// Failed verifications of one card in a row, and how long they block it.
    pub(super) pan_failures: (u32, Duration),
    /// Of one client.
    pub(super) client_verifies: Window,
    /// Under one key.
    pub(super) malformed_blocks: Window,
    /// Under one key.
    pub(super) mac_failures_day: Window,
    /// Under one key, as long as it is used.
    pub(super) mac_failures_life: Window,
    /// How long a key stays out of use.
    pub(super) quarantine_ms: i64,
    /// Devices of one base derivation key.
    pub(super) devices_max: u32,
    /// Rows of each kind of counter.
    pub(super) counters_max: u32,
}

impl Rules {
    pub(super) fn new(limits: &LimitsConfig) -> Self {
        let window = |rule, short, long| Window { rule, short, long };
        let single = |rule, only| window(rule, only, only);
        Self {
            pan_translations: window(
                "pan-translation",
                (HOUR, limits.pan_translations_per_hour),
                (DAY, limits.pan_translations_per_day),
            ),
            pan_failures: (limits.pan_failures_max, Duration::from_secs(limits.pan_block_s.into())),
            client_verifies: window(
                "client-verification",
                (MINUTE, limits.client_verifies_per_minute),
                (HOUR, limits.client_verifies_per_hour),
            ),
            malformed_blocks: single(
                "malformed-block",
                (MINUTE, limits.malformed_blocks_per_minute),
            ),
            mac_failures_day: single("mac-failure-day", (DAY, limits.mac_failures_per_day)),
            mac_failures_life: single("mac-failure-life", (LIFE, limits.mac_failures_max)),
            quarantine_ms: i64::from(limits.key_quarantine_s) * 1_000,
            devices_max: limits.dukpt_devices_max,
            counters_max: limits.pin_counters_max,
        }
    }
}

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);
/// Longer than any key lives.
const LIFE: Duration = Duration::from_secs(100 * 366 * 86_400);
