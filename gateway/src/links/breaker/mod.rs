//! Stops asking an endpoint that keeps failing, and asks again after a rest.
//!
//! Closed, calls pass. It opens after a number of failures in a row, or when too many of the last
//! minute's calls failed or were slow. Open, no call passes until the rest is over; each further
//! opening doubles the rest, until the breaker was closed for a while. Half open, one call at a time
//! passes: a few good ones in a row close it, a failing one opens it again, and so does the clock
//! when nobody finds out. An operator may force it open or disable it; that holds until a reset,
//! whatever any timer says.
//!
//! Only what speaks of the endpoint's health counts: a refused PIN or a declined payment is a
//! success here, our own limits and bad orders count neither way, and so does a call whose caller
//! allowed less time than the endpoint may fairly take: nobody opens the breaker for all by asking
//! for an answer at once. A result of an older state is counted on `/metrics` alone. A [`Permit`]
//! that is dropped without a record gives its place back, so that a cancelled call never leaves the
//! breaker stuck.
//!
//! The health monitor's heartbeats ask by [`Breaker::admit_probe`], so that no customer's payment
//! need be the one that finds out. A good heartbeat may end a rest early, after its first second.
//! But when heartbeats alone had closed the breaker and payments opened it again soon after, the
//! heartbeat says nothing about payments: that opening does not trust it. The rest is served in
//! full, and a payment must be the first to prove that the endpoint is well; where payments are few,
//! heartbeats may prove the rest. While closed, a good heartbeat changes nothing.
//!
//! The clock brings its changes when anybody looks, and by a timer, so that a dashboard is right
//! without traffic. The pattern is Nygard's, "Release It!", chapter 5.

mod config;
mod machine;
mod meters;
#[cfg(test)]
mod model_test;
mod report;
#[cfg(test)]
mod tests;
mod window;

use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::broadcast;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

pub use self::config::BreakerConfig;
pub use self::report::{Forced, ForcedBy, Reason, Snapshot, State, Transition, WindowSnapshot};

use self::machine::{Machine, Place};
use self::meters::Meters;

/// How a call ended, as far as the endpoint's health goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It answered, whatever it answered.
    Healthy,
    /// It did not answer, or answered that it cannot.
    Failing,
    /// The time ran out. A failure if it was the endpoint's fair time, else nothing.
    TimedOut,
    /// It says nothing about the endpoint: the caller's error, or a limit of our own.
    Ignored,
}

/// How long one call may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// The limit of one attempt. A call that ran so long without an answer has failed.
    pub fair: Duration,
    /// An answer that took longer is slow.
    pub slow: Duration,
}

impl Pace {
    /// For attempts of at most `limit`; slow is what takes more than 80 % of it.
    #[must_use]
    pub fn of_attempt(limit: Duration) -> Self {
        Self { fair: limit, slow: limit.mul_f64(0.8) }
    }

    fn weigh(&self, verdict: Option<Verdict>, took: Duration) -> Counted {
        match verdict {
            Some(Verdict::Healthy) => Counted::Success { slow: took > self.slow },
            Some(Verdict::Failing) => Counted::Failure,
            Some(Verdict::TimedOut) if took >= self.fair.mul_f64(0.8) => Counted::Failure,
            Some(Verdict::TimedOut | Verdict::Ignored) => Counted::Ignored,
            None => Counted::Abandoned { late: took >= self.fair },
        }
    }
}

/// What a verdict and its time come to.
#[derive(Debug, Clone, Copy)]
enum Counted {
    Success {
        slow: bool,
    },
    Failure,
    /// A further one of a call that was counted already: it tells a breaker that waits for proof,
    /// and no other.
    FailedAgain,
    Ignored,
    /// A failure when it is late.
    Abandoned {
        late: bool,
    },
}

/// One endpoint's breaker. Clones share it.
#[derive(Debug, Clone)]
pub struct Breaker {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    name: String,
    pace: Pace,
    inner: Mutex<Inner>,
    meters: Meters,
    transitions: broadcast::Sender<Transition>,
}

#[derive(Debug)]
struct Inner {
    machine: Machine,
    timer: Option<Timer>,
}

/// The task of the next change by the clock; it ends with this.
#[derive(Debug)]
struct Timer(AbortHandle);

impl Drop for Timer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Breaker {
    /// Closed. Needs no runtime; without one the clock's changes wait for somebody to look.
    #[must_use]
    pub fn new(name: impl Into<String>, config: BreakerConfig, pace: Pace) -> Self {
        Self::with_jitter(name.into(), config, pace, JITTER)
    }

    /// A permit for one call; `None` while no call may pass. Ask for it before anything that costs.
    #[must_use]
    pub fn admit(&self) -> Option<Permit> {
        self.with(|machine, now| {
            let place = machine.admit();
            if place.is_none() {
                self.shared.meters.reject();
            }
            place.map(|place| self.permit(place, now))
        })
    }

    /// A permit for a heartbeat; `None` while it cannot help to find out. While an operator's order
    /// holds, and for an opening that does not trust the heartbeat, its record changes nothing.
    #[must_use]
    pub fn admit_probe(&self) -> Option<Permit> {
        self.with(|machine, now| machine.admit_probe().map(|place| self.permit(place, now)))
    }

    /// Whether [`admit`](Self::admit) would pass now. Takes no place.
    #[must_use]
    pub fn admits(&self) -> bool {
        self.rests_for().is_zero()
    }

    /// The state by the clock: an open breaker whose rest is over is half open.
    #[must_use]
    pub fn state(&self) -> State {
        self.with(|machine, _| machine.state())
    }

    /// How long no call may pass; zero when one may. While a probe runs, a moment; forced open, a
    /// minute: nobody knows how long that lasts.
    #[must_use]
    pub fn rests_for(&self) -> Duration {
        self.with(|machine, now| machine.rests_for(now))
    }

    /// For how long it is closed again; `None` while it is not, or never was open.
    #[must_use]
    pub fn back_for(&self) -> Option<Duration> {
        self.with(|machine, now| {
            let back = machine.state() == State::Closed && machine.openings() > 0;
            back.then(|| now.saturating_duration_since(machine.since()))
        })
    }

    /// The endpoint's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Opens it on the health monitor's word: heartbeats failed, or the answer was wrong. Nothing
    /// happens while it is open already, or under an operator's order.
    pub fn trip(&self, detail: &'static str) {
        self.with(|machine, now| machine.trip(detail, now));
    }

    /// An operator's order. It holds until [`reset`](Self::reset).
    pub fn force(&self, state: Forced, by: &str, reason: &str) {
        let order = ForcedBy { by: by.to_owned(), reason: reason.to_owned() };
        self.with(|machine, now| machine.force(state, order, now));
    }

    /// Closes it and ends an operator's order. Counts and rests begin from the start.
    pub fn reset(&self) {
        self.with(|machine, now| machine.reset(now));
    }

    /// All of it at this moment.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.with(|machine, now| {
            let (figures, shares) = machine.figures(now);
            let percent = |part| shares.map(|_| figures.percent(part));
            let state = machine.state();
            let (reason, detail) = machine.reason();
            let waits = matches!(state, State::Open | State::HalfOpen);
            Snapshot {
                name: self.shared.name.clone(),
                state,
                since_s: now.saturating_duration_since(machine.since()).as_secs(),
                reason,
                detail,
                next_probe_s: waits.then(|| machine.rests_for(now).as_secs_f64().ceil() as u64),
                consecutive_failures: machine.failures(),
                window: WindowSnapshot {
                    calls: figures.calls,
                    failures: figures.failures,
                    slow: figures.slow,
                    failure_percent: percent(figures.failures),
                    slow_percent: percent(figures.slow),
                },
                forced: machine.forced().cloned(),
                openings: machine.openings(),
            }
        })
    }

    /// Shows the rates as they are now, on `/metrics`: they change with the clock too.
    pub fn show_rates(&self) {
        self.with(|machine, now| self.shared.meters.show_rates(machine.figures(now).1));
    }

    /// Every transition from now on. Who reads too slowly misses the oldest, and is told so.
    #[must_use]
    pub fn transitions(&self) -> broadcast::Receiver<Transition> {
        self.shared.transitions.subscribe()
    }

    /// Waits for the next transition after this call, not after the first poll: ask for it, look at
    /// the state, then wait, and nothing is missed. Ends with the breaker.
    pub fn changed(&self) -> impl Future<Output = ()> + Send + 'static + use<> {
        let mut transitions = self.transitions();
        async move {
            // An error says that there were many, or that the breaker is gone: news too.
            let _ = transitions.recv().await;
        }
    }

    /// Rests exactly as configured.
    #[cfg(test)]
    pub(crate) fn steady(name: &str, config: BreakerConfig, pace: Pace) -> Self {
        Self::with_jitter(name.into(), config, pace, 0.0)
    }

    fn with_jitter(name: String, config: BreakerConfig, pace: Pace, jitter: f64) -> Self {
        let meters = Meters::new(&name);
        meters.show(State::Closed);
        meters.show_rates(None);
        let machine = Machine::new(config, jitter, Instant::now());
        let inner = Mutex::new(Inner { machine, timer: None });
        let (transitions, _) = broadcast::channel(TRANSITIONS_KEPT);
        Self { shared: Arc::new(Shared { name, pace, inner, meters, transitions }) }
    }

    fn permit(&self, place: Place, now: Instant) -> Permit {
        Permit { breaker: self.clone(), place, admitted: now, again: false, recorded: false }
    }

    /// `took` is `None` for all of the time since it was admitted.
    fn record(&self, permit: &Permit, verdict: Option<Verdict>, took: Option<Duration>) -> Counted {
        self.with(|machine, now| {
            let took = took.unwrap_or_else(|| now.saturating_duration_since(permit.admitted));
            let mut counted = self.shared.pace.weigh(verdict, took);
            if permit.again && matches!(counted, Counted::Failure) {
                counted = Counted::FailedAgain;
            }
            self.shared.meters.count(counted);
            machine.record(permit.place, counted, now);
            counted
        })
    }

    /// Acts on the machine as the clock has it now, and tells the world of what changed.
    fn with<T>(&self, act: impl FnOnce(&mut Machine, Instant) -> T) -> T {
        let mut inner = self.shared.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let now = Instant::now();
        inner.machine.settle(now);
        let outcome = act(&mut inner.machine, now);
        let changes = inner.machine.take_changes();
        if !changes.is_empty() {
            let name = &self.shared.name;
            for machine::Change { from, to, reason } in changes {
                self.tell(Transition { name: name.clone(), from, to, reason });
            }
            let next = inner.machine.next_change();
            inner.timer = next.and_then(|at| alarm(Arc::downgrade(&self.shared), at));
        }
        outcome
    }

    fn tell(&self, transition: Transition) {
        let (from, to) = (transition.from.name(), transition.to.name());
        tracing::info!(breaker = transition.name, from, to, reason = transition.reason.name());
        self.shared.meters.show(transition.to);
        self.shared.meters.count_transition(&transition);
        // An error says that nobody listens.
        let _ = self.shared.transitions.send(transition);
    }
}

/// Looks at the breaker at `at`, unless it is gone.
fn alarm(breaker: Weak<Shared>, at: Instant) -> Option<Timer> {
    let runtime = Handle::try_current().ok()?;
    let task = runtime.spawn(async move {
        sleep_until(at).await;
        if let Some(shared) = breaker.upgrade() {
            Breaker { shared }.with(|_, _| ());
        }
    });
    Some(Timer(task.abort_handle()))
}

/// Rests differ by up to this share, because several replicas share one endpoint.
const JITTER: f64 = 0.2;

/// Transitions that a slow reader may be behind.
const TRANSITIONS_KEPT: usize = 64;

/// Leave for one call. Dropped without a record, it gives its place back.
#[derive(Debug)]
pub struct Permit {
    breaker: Breaker,
    place: Place,
    admitted: Instant,
    again: bool,
    recorded: bool,
}

impl Permit {
    /// The call begins only now: what it waited for was our own.
    pub fn begins_now(&mut self) {
        self.admitted = Instant::now();
    }

    /// Says how the call ended.
    pub fn record(mut self, verdict: Verdict) {
        self.recorded = true;
        self.breaker.record(&self, Some(verdict), None);
    }

    /// The same of one attempt of a call, of which the endpoint itself took so long. `again` says that
    /// the call was counted as a failure before: it is one witness, however often it asks. Whether it
    /// is counted as one now.
    #[must_use]
    pub fn record_attempt(mut self, verdict: Verdict, took: Duration, again: bool) -> bool {
        (self.recorded, self.again) = (true, again);
        matches!(self.breaker.record(&self, Some(verdict), Some(took)), Counted::Failure)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.recorded {
            self.breaker.record(self, None, None);
        }
    }
}
