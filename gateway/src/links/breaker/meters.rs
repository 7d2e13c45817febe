//! What a breaker shows on `/metrics`. Handles are taken once, because a look-up by name costs more
//! than a call to the breaker.

use metrics::{Counter, Gauge};

use super::Counted;
use super::report::{State, Transition};
use crate::telemetry::metrics as names;

/// The handles of one breaker.
#[derive(Debug)]
pub(super) struct Meters {
    states: [(State, Gauge); State::ALL.len()],
    failure_rate: Gauge,
    slow_rate: Gauge,
    success: Counter,
    failure: Counter,
    slow: Counter,
    ignored: Counter,
    abandoned: Counter,
    rejected: Counter,
}

impl Meters {
    pub(super) fn new(name: &str) -> Self {
        let calls = |kind: &'static str| {
            let labels = [("name", name.to_owned()), ("kind", kind.to_owned())];
            metrics::counter!(names::BREAKER_CALLS, &labels)
        };
        let state = |state: State| {
            let labels = [("name", name.to_owned()), ("state", state.name().to_owned())];
            (state, metrics::gauge!(names::BREAKER_STATE, &labels))
        };
        Self {
            states: State::ALL.map(state),
            failure_rate: metrics::gauge!(names::BREAKER_FAILURE_RATE, "name" => name.to_owned()),
            slow_rate: metrics::gauge!(names::BREAKER_SLOW_RATE, "name" => name.to_owned()),
            success: calls("success"),
            failure: calls("failure"),
            slow: calls("slow"),
            ignored: calls("ignored"),
            abandoned: calls("abandoned"),
            rejected: calls("rejected"),
        }
    }

    /// All states are always shown, as 0 or 1.
    pub(super) fn show(&self, state: State) {
        for (each, gauge) in &self.states {
            gauge.set(if *each == state { 1.0 } else { 0.0 });
        }
    }

    /// Shares of failures and of slow calls; `None` is shown as -1.
    pub(super) fn show_rates(&self, shares: Option<(f64, f64)>) {
        let (failures, slow) = shares.unwrap_or((-1.0, -1.0));
        self.failure_rate.set(failures);
        self.slow_rate.set(slow);
    }

    /// A call that came to its end, one way or another.
    pub(super) fn count(&self, counted: Counted) {
        match counted {
            Counted::Success { slow } => {
                self.success.increment(1);
                self.slow.increment(u64::from(slow));
            }
            Counted::Failure | Counted::FailedAgain => self.failure.increment(1),
            Counted::Ignored => self.ignored.increment(1),
            Counted::Abandoned { late } => {
                self.abandoned.increment(1);
                self.failure.increment(u64::from(late));
            }
        }
    }

    /// A call that was not let pass.
    pub(super) fn reject(&self) {
        self.rejected.increment(1);
    }

    /// Transitions are rare: a look-up for each.
    pub(super) fn count_transition(&self, transition: &Transition) {
        let labels = [
            ("name", transition.name.clone()),
            ("from", transition.from.name().to_owned()),
            ("to", transition.to.name().to_owned()),
            ("reason", transition.reason.name().to_owned()),
        ];
        metrics::counter!(names::BREAKER_TRANSITIONS, &labels).increment(1);
    }
}
