//! The two links and when to ask again and when to stop: retry, breaker, HSM link, backend link.
//!
//! Order, outer to inner: deadline, retry, breaker, time limit of the attempt, call. A breaker's
//! refusal is no failure of the endpoint, and nothing below these layers repeats a call.

pub mod backend;
pub mod breaker;
pub mod retry;
pub mod token;

use std::time::Duration;

/// `wait`, more or less by up to the given share.
#[must_use]
pub(crate) fn jitter(wait: Duration, share: f64) -> Duration {
    let mut bytes = [0; 4];
    // Without a random number there is no jitter, which only costs smoothness.
    if getrandom::fill(&mut bytes).is_err() {
        return wait;
    }
    let unit = f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX);
    wait.mul_f64(1.0 + share * (2.0 * unit - 1.0))
}
