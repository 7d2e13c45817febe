//! One sink as others see it: where it is, and what it still needs.

use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use metrics::{Counter, counter};

use super::cursor::CursorFile;
use super::trail::Position;
use crate::config::SinkConfig;
use crate::telemetry::metrics as figures;

/// Shared by the task of the sink and who watches it.
#[derive(Debug)]
pub(super) struct Sink {
    pub(super) config: SinkConfig,
    pub(super) cursor: CursorFile,
    state: Mutex<State>,
    sent: Counter,
    failures: Counter,
}

/// As it was last told.
#[derive(Debug, Clone)]
pub(super) struct State {
    /// Everything up to here is confirmed.
    pub(super) confirmed: Position,
    /// The same, as far as it is on disk: after a crash the sink begins here.
    pub(super) saved: Position,
    /// When the oldest record was made that is not confirmed, as far as it was read.
    pub(super) oldest: Option<Timestamp>,
    /// What was wrong last, while there is no connection.
    pub(super) trouble: Option<String>,
}

impl Sink {
    pub(super) fn new(config: SinkConfig, cursor: CursorFile, at: Position) -> Self {
        let name = || config.name.clone();
        let sent = counter!(figures::AUDIT_SINK_SENT, "sink" => name());
        let failures = counter!(figures::AUDIT_SINK_FAILURES, "sink" => name());
        let state = State { confirmed: at.clone(), saved: at, oldest: None, trouble: None };
        Self { config, cursor, state: Mutex::new(state), sent, failures }
    }

    pub(super) fn state(&self) -> State {
        self.lock().clone()
    }

    pub(super) fn confirmed(&self, at: Position) {
        self.lock().confirmed = at;
    }

    pub(super) fn saved(&self, at: Position) {
        self.lock().saved = at;
    }

    pub(super) fn oldest(&self, time: Option<Timestamp>) {
        self.lock().oldest = time;
    }

    pub(super) fn sent(&self, records: u64) {
        self.sent.increment(records);
    }

    /// A connection failed or broke.
    pub(super) fn failed(&self, why: &str) {
        self.failures.increment(1);
        let sink = self.config.name.as_str();
        // Once for each reason: the next tries say the same.
        if self.lock().trouble.replace(why.to_owned()).as_deref() != Some(why) {
            tracing::warn!(sink, why, "an audit sink is away");
        }
    }

    pub(super) fn connected(&self) {
        self.lock().trouble = None;
        tracing::info!(sink = self.config.name, "an audit sink is connected");
    }

    /// A record cannot be sent, now or ever.
    pub(super) fn lost(&self, why: &str) {
        self.failures.increment(1);
        tracing::error!(sink = self.config.name, why, "an audit sink does not get everything");
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change writes one field, so a state is whole even after a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
