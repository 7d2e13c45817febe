//! The two links and when to ask again and when to stop. One implementation serves both.
//!
//! Order, outer to inner: deadline, retry with budget, choice of the member, its breaker, its
//! limit, the attempt's time, the call. A breaker's refusal is no failure of the member, a limit's
//! refusal is load, and nothing below these layers repeats a call.

pub mod backend; // a biller's URLs
pub mod breaker; // stops asking a member that keeps failing
pub mod classify; // what may be done after an attempt
pub mod health; // asks members that nobody asks
pub mod hsm; // one token and its workers
pub mod limit; // how many at once
mod load; // which member is the quickest
pub mod pool; // the layers in their order
pub mod retry; // how often, when
pub mod token; // typed questions to whichever token answers

use std::time::Duration;

use tokio::time::Instant;

/// What a call is shed after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// New work of a client.
    Live,
    /// What ends work that was begun: forwarding from the queue, the MAC of an answer that has
    /// arrived, data keys, changes of keys. Shed last.
    Vital,
}

/// How long a call may take, and what it is shed after.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// The absolute deadline.
    pub until: Instant,
    /// Live or vital.
    pub urgency: Urgency,
}

impl Patience {
    /// For what ends work that was begun.
    #[must_use]
    pub fn vital(until: Instant) -> Self {
        Self { until, urgency: Urgency::Vital }
    }
}

impl From<Instant> for Patience {
    /// For new work of a client.
    fn from(until: Instant) -> Self {
        Self { until, urgency: Urgency::Live }
    }
}

/// When a request must be answered, and when the links are left for that.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    /// The answer has left by then.
    pub answer_by: Instant,
    /// What the answer says is known by then, or that it is not known: what is left is for the
    /// answer's MAC and its record.
    pub tell_by: Instant,
    /// Links are not waited for any longer.
    pub work_by: Instant,
}

impl Deadline {
    /// For a request that may take that long from now on.
    #[must_use]
    pub fn after(allowed: Duration) -> Self {
        let answer_by = Instant::now() + allowed;
        let reserve = RESERVE_MAX.min(allowed / 5);
        Self { answer_by, tell_by: answer_by - reserve / 2, work_by: answer_by - reserve }
    }
}

/// What is kept for the audit record and the answer.
const RESERVE_MAX: Duration = Duration::from_millis(200);

/// Which members are asked first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Always.
    Primary,
    /// When no primary can take a call; a small share of what repeats freely keeps it warm.
    Backup,
}

impl Role {
    /// `primary` or `backup`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Backup => "backup",
        }
    }
}

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
