//! The states of a breaker and what leads from one to another. Pure: the caller brings the time and
//! tells the world of the changes.
//!
//! Every change by the clock happens at its own instant, however late somebody looks: two lookers
//! at one time see one state.

use std::time::Duration;

use tokio::time::Instant;

use super::Counted;
use super::config::BreakerConfig;
use super::report::{Forced, ForcedBy, Reason, State};
use super::window::{Figures, Window};
use crate::links::jitter;

/// One breaker without its name, lock and metrics.
#[derive(Debug)]
pub(super) struct Machine {
    config: BreakerConfig,
    /// Each rest is more or less by up to this share.
    jitter: f64,
    phase: Phase,
    since: Instant,
    /// Raised at each change: a result of an older phase changes nothing.
    generation: u64,
    failures: u32,
    window: Window,
    /// Openings without a stable time between them: each has doubled the rest.
    in_row: u32,
    openings: u64,
    /// The last close was the work of heartbeats alone.
    closed_by_probes: bool,
    /// What the heartbeat says counts while this opening lasts.
    trusted: bool,
    reason: Option<Reason>,
    detail: Option<&'static str>,
    forced: Option<ForcedBy>,
    /// What the world has not been told yet.
    changes: Vec<Change>,
}

/// One change of state.
#[derive(Debug, Clone, Copy)]
pub(super) struct Change {
    pub(super) from: State,
    pub(super) to: State,
    pub(super) reason: Reason,
}

/// Where a call came in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    generation: u64,
    probe: bool,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    Closed,
    Open { until: Instant },
    HalfOpen { until: Instant, taken: bool, good: u32, by_probes: bool },
    ForcedOpen,
    Disabled,
}

impl Phase {
    fn state(self) -> State {
        match self {
            Self::Closed => State::Closed,
            Self::Open { .. } => State::Open,
            Self::HalfOpen { .. } => State::HalfOpen,
            Self::ForcedOpen => State::ForcedOpen,
            Self::Disabled => State::Disabled,
        }
    }
}

impl Machine {
    pub(super) fn new(config: BreakerConfig, jitter: f64, now: Instant) -> Self {
        Self {
            config,
            jitter,
            phase: Phase::Closed,
            since: now,
            generation: 0,
            failures: 0,
            window: Window::new(config.window_s, now),
            in_row: 0,
            openings: 0,
            closed_by_probes: false,
            trusted: true,
            reason: None,
            detail: None,
            forced: None,
            changes: Vec::new(),
        }
    }

    /// Makes the changes that the clock has brought.
    pub(super) fn settle(&mut self, now: Instant) {
        loop {
            match self.phase {
                Phase::Open { until } if until <= now => {
                    self.half_open(Reason::RestOver, until);
                }
                Phase::HalfOpen { until, .. } if until <= now => {
                    // Nothing was learnt: the rest is as long as the last one.
                    self.in_row = self.in_row.saturating_sub(1);
                    self.open(Reason::HalfOpenTooLong, until);
                }
                Phase::Closed
                | Phase::Open { .. }
                | Phase::HalfOpen { .. }
                | Phase::ForcedOpen
                | Phase::Disabled => return,
            }
        }
    }

    /// A place for a call of traffic.
    pub(super) fn admit(&mut self) -> Option<Place> {
        match &mut self.phase {
            Phase::Closed | Phase::Disabled => {}
            Phase::HalfOpen { taken: taken @ false, .. } => *taken = true,
            Phase::HalfOpen { .. } | Phase::Open { .. } | Phase::ForcedOpen => return None,
        }
        Some(Place { generation: self.generation, probe: false })
    }

    /// A place for a heartbeat, if it can learn something.
    pub(super) fn admit_probe(&mut self) -> Option<Place> {
        if let Phase::HalfOpen { taken, .. } = &mut self.phase {
            if *taken || !self.trusted {
                return None;
            }
            *taken = true;
        }
        Some(Place { generation: self.generation, probe: true })
    }

    /// A call has ended.
    pub(super) fn record(&mut self, place: Place, counted: Counted, now: Instant) {
        if place.generation != self.generation {
            return;
        }
        match self.phase {
            Phase::Closed => self.count(place.probe, counted, now),
            Phase::HalfOpen { .. } => self.prove(place.probe, counted, now),
            Phase::Open { .. } => {
                let good = matches!(counted, Counted::Success { .. });
                let rested = now.saturating_duration_since(self.since) >= self.config.rest_min();
                if place.probe && good && self.trusted && rested {
                    self.half_open(Reason::ProbeSucceeded, now);
                    self.prove(true, counted, now);
                }
            }
            Phase::ForcedOpen | Phase::Disabled => {}
        }
    }

    /// The health monitor has found the endpoint unwell.
    pub(super) fn trip(&mut self, detail: &'static str, now: Instant) {
        match self.phase {
            Phase::Closed => {
                self.trusted = true;
                self.start_over_if_stable(now);
            }
            Phase::HalfOpen { .. } => {}
            Phase::Open { .. } | Phase::ForcedOpen | Phase::Disabled => return,
        }
        self.open(Reason::Heartbeat, now);
        self.detail = Some(detail);
    }

    /// An operator's order; it holds until [`reset`](Self::reset).
    pub(super) fn force(&mut self, to: Forced, order: ForcedBy, now: Instant) {
        self.forced = Some(order);
        let (phase, reason) = match to {
            Forced::Open => (Phase::ForcedOpen, Reason::ForcedOpen),
            Forced::Disabled => (Phase::Disabled, Reason::Disabled),
        };
        if self.state() != phase.state() {
            self.enter(phase, reason, now);
        }
    }

    /// Closed, as after a start.
    pub(super) fn reset(&mut self, now: Instant) {
        self.forced = None;
        (self.in_row, self.closed_by_probes) = (0, false);
        match self.phase {
            Phase::Closed => self.forget(),
            Phase::Open { .. } | Phase::HalfOpen { .. } | Phase::ForcedOpen | Phase::Disabled => {
                self.enter(Phase::Closed, Reason::Reset, now)
            }
        }
    }

    pub(super) fn state(&self) -> State {
        self.phase.state()
    }

    /// How long no call of traffic may pass; zero when one may.
    pub(super) fn rests_for(&self, now: Instant) -> Duration {
        match self.phase {
            Phase::Open { until } => until.saturating_duration_since(now),
            Phase::HalfOpen { taken: true, .. } => PROBE_MOMENT,
            Phase::ForcedOpen => FORCED_REST,
            Phase::Closed | Phase::HalfOpen { .. } | Phase::Disabled => Duration::ZERO,
        }
    }

    /// When the clock brings the next change.
    pub(super) fn next_change(&self) -> Option<Instant> {
        match self.phase {
            Phase::Open { until } | Phase::HalfOpen { until, .. } => Some(until),
            Phase::Closed | Phase::ForcedOpen | Phase::Disabled => None,
        }
    }

    /// The changes since the last time that this was asked.
    pub(super) fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// The calls of the window, and their shares.
    pub(super) fn figures(&mut self, now: Instant) -> (Figures, Option<(f64, f64)>) {
        let figures = self.window.totals(now);
        (figures, figures.shares(self.config.rate_calls_min))
    }

    pub(super) fn since(&self) -> Instant {
        self.since
    }

    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    pub(super) fn openings(&self) -> u64 {
        self.openings
    }

    pub(super) fn reason(&self) -> (Option<Reason>, Option<&'static str>) {
        (self.reason, self.detail)
    }

    pub(super) fn forced(&self) -> Option<&ForcedBy> {
        self.forced.as_ref()
    }

    /// A call that ended while closed.
    fn count(&mut self, probe: bool, counted: Counted, now: Instant) {
        let (failed, slow) = match counted {
            Counted::Success { slow } => (false, slow),
            Counted::Failure | Counted::Abandoned { late: true } => (true, false),
            Counted::FailedAgain | Counted::Ignored | Counted::Abandoned { late: false } => return,
        };
        // A good heartbeat between payments that fail is no good payment.
        if probe && !failed {
            return;
        }
        self.failures = if failed { self.failures + 1 } else { 0 };
        self.window.add(failed, slow, now);
        let Some(reason) = self.too_much(now) else { return };
        // A heartbeat that was well while payments failed says nothing about payments.
        let stable = self.start_over_if_stable(now);
        self.trusted = probe || stable || !self.closed_by_probes;
        self.open(reason, now);
    }

    fn too_much(&mut self, now: Instant) -> Option<Reason> {
        let config = self.config;
        if self.failures >= config.failures_max {
            return Some(Reason::ConsecutiveFailures);
        }
        let figures = self.window.totals(now);
        if figures.calls < config.rate_calls_min {
            return None;
        }
        if figures.percent(figures.failures) >= config.failure_percent {
            return Some(Reason::FailureRate);
        }
        (figures.percent(figures.slow) >= config.slow_percent).then_some(Reason::SlowRate)
    }

    /// A call that ended while half open.
    fn prove(&mut self, probe: bool, counted: Counted, now: Instant) {
        let Phase::HalfOpen { taken, good, by_probes, .. } = &mut self.phase else { return };
        *taken = false;
        match counted {
            Counted::Success { .. } => {
                *good += 1;
                *by_probes &= probe;
                // A payment has proved it: heartbeats may do the rest where payments are few.
                self.trusted |= !probe;
                if *good >= self.config.probes {
                    self.closed_by_probes = *by_probes;
                    self.enter(Phase::Closed, Reason::ProbesSucceeded, now);
                }
            }
            Counted::Failure | Counted::FailedAgain | Counted::Abandoned { late: true } => {
                self.open(Reason::ProbeFailed, now);
            }
            Counted::Ignored | Counted::Abandoned { late: false } => {}
        }
    }

    /// Whether it was closed for long enough to begin again with the first rest.
    fn start_over_if_stable(&mut self, now: Instant) -> bool {
        let stable = now.saturating_duration_since(self.since) >= self.config.stable();
        if stable {
            self.in_row = 0;
        }
        stable
    }

    fn open(&mut self, reason: Reason, at: Instant) {
        let rest = jitter(self.config.rest(self.in_row), self.jitter);
        self.in_row = self.in_row.saturating_add(1);
        self.openings += 1;
        self.enter(Phase::Open { until: at + rest }, reason, at);
    }

    fn half_open(&mut self, reason: Reason, at: Instant) {
        let until = at + Duration::from_millis(self.config.half_open_ms_max);
        self.enter(Phase::HalfOpen { until, taken: false, good: 0, by_probes: true }, reason, at);
    }

    fn enter(&mut self, phase: Phase, reason: Reason, at: Instant) {
        let from = self.phase.state();
        self.phase = phase;
        self.since = at;
        self.generation += 1;
        (self.reason, self.detail) = (Some(reason), None);
        if let Phase::Closed = phase {
            self.forget();
        }
        self.changes.push(Change { from, to: phase.state(), reason });
    }

    fn forget(&mut self) {
        self.failures = 0;
        self.window.clear();
    }
}

/// When to ask again while an operator keeps it open.
const FORCED_REST: Duration = Duration::from_secs(60);

/// When to look again while a probe runs: nobody knows how long it takes.
const PROBE_MOMENT: Duration = Duration::from_millis(200);
