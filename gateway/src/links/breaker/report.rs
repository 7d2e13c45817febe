//! The words in which a breaker reports: its state, why it changed, and all of it at a glance.

use serde::Serialize;

/// Whether calls pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Calls pass.
    Closed,
    /// No call passes until the rest is over.
    Open,
    /// One call at a time passes, to find out.
    HalfOpen,
    /// An operator lets no call pass.
    ForcedOpen,
    /// An operator lets every call pass, whatever becomes of them.
    Disabled,
}

impl State {
    /// Every state: the gauge shows all of them.
    pub const ALL: [Self; 5] =
        [Self::Closed, Self::Open, Self::HalfOpen, Self::ForcedOpen, Self::Disabled];

    /// `closed`, `open`, `half_open`, `forced_open`, `disabled`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
            Self::ForcedOpen => "forced_open",
            Self::Disabled => "disabled",
        }
    }
}

/// What an operator may force a breaker to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forced {
    /// No call passes.
    Open,
    /// Every call passes.
    Disabled,
}

impl Forced {
    /// The state that it makes.
    #[must_use]
    pub fn state(self) -> State {
        match self {
            Self::Open => State::ForcedOpen,
            Self::Disabled => State::Disabled,
        }
    }
}

/// Why a breaker went from one state to another. A closed list: it is a label of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "each name is the documentation")]
pub enum Reason {
    ConsecutiveFailures,
    FailureRate,
    SlowRate,
    ProbeFailed,
    Heartbeat,
    HalfOpenTooLong,
    RestOver,
    ProbeSucceeded,
    ProbesSucceeded,
    ForcedOpen,
    Disabled,
    Reset,
}

impl Reason {
    /// As metrics and snapshots write it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ConsecutiveFailures => "consecutive_failures",
            Self::FailureRate => "failure_rate",
            Self::SlowRate => "slow_rate",
            Self::ProbeFailed => "probe_failed",
            Self::Heartbeat => "heartbeat",
            Self::HalfOpenTooLong => "half_open_too_long",
            Self::RestOver => "rest_over",
            Self::ProbeSucceeded => "probe_succeeded",
            Self::ProbesSucceeded => "probes_succeeded",
            Self::ForcedOpen => "forced_open",
            Self::Disabled => "disabled",
            Self::Reset => "reset",
        }
    }
}

/// One change of state, as the channel of transitions tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition {
    /// The breaker.
    pub name: String,
    /// Before.
    pub from: State,
    /// After.
    pub to: State,
    /// Why.
    pub reason: Reason,
}

/// A breaker at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// The endpoint's name.
    pub name: String,
    /// By the clock.
    pub state: State,
    /// How long it has been so. Seconds.
    pub since_s: u64,
    /// Why it last changed; nothing before the first change.
    pub reason: Option<Reason>,
    /// What the health monitor found, when it made that change.
    pub detail: Option<&'static str>,
    /// Until a call may find out how the endpoint is. Seconds; nothing while nobody waits for that.
    pub next_probe_s: Option<u64>,
    /// Failures since the last answer.
    pub consecutive_failures: u32,
    /// The last seconds.
    pub window: WindowSnapshot,
    /// The operator's order, while there is one.
    pub forced: Option<ForcedBy>,
    /// How often it has opened by itself since the start.
    pub openings: u64,
}

/// The calls of the last seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct WindowSnapshot {
    /// Those that were a success or a failure.
    pub calls: u32,
    /// Those without a good answer.
    pub failures: u32,
    /// Those with an answer that took too long.
    pub slow: u32,
    /// Rounded down; nothing when there are too few calls to say.
    pub failure_percent: Option<u8>,
    /// Likewise.
    pub slow_percent: Option<u8>,
}

/// Who forced the state, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ForcedBy {
    /// The operator.
    pub by: String,
    /// In the operator's words.
    pub reason: String,
}
