//! The layers of one link in their order, and the choice among its members.
//!
//! A call gets a deadline, a budget of further attempts, a member, that member's permit and room,
//! and a time of its own. Primaries are asked first, the quicker of two; a backup when no primary
//! can take the call, and for every fiftieth call that repeats freely, so that a dead backup is
//! found before it is needed. A member that failed is left for another one at once. One that has
//! come back gets its share back bit by bit.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use metrics::Counter;
use tokio::time::{Instant, sleep};

use super::breaker::{Breaker, Verdict};
use super::classify::{Decision, Operation, Outcome, decide};
use super::health::{Health, HealthConfig, HealthLog, Sick};
use super::limit::{Limit, LimitOptions, Occupancy};
use super::load::Load;
use super::retry::{Budget, RetryConfig};
use super::{Patience, Role, Urgency};
use crate::telemetry::metrics::RETRY_ATTEMPTS;

/// What a pool holds: something that can be called.
pub trait Endpoint: Send + Sync + 'static {
    /// In metrics and for operators.
    fn name(&self) -> &str;

    /// Whether it can take a call, as far as it knows itself.
    fn is_ready(&self) -> bool;

    /// One harmless call on the way that traffic takes, which proves that the right answers come.
    fn heartbeat(&self, limit: Instant) -> impl Future<Output = Result<(), Sick>> + Send;
}

/// Why an attempt failed, as far as these layers need to know.
pub trait Fault {
    /// How far it came.
    fn outcome(&self) -> Outcome;
    /// The least wait that the other side asks for.
    fn retry_after(&self) -> Option<Duration>;
}

/// One attempt at one member.
#[derive(Debug)]
pub struct Tried<T, X> {
    /// What came of it.
    pub result: Result<T, X>,
    /// What it says of the member's health.
    pub verdict: Verdict,
    /// Whether another part of the same member (a worker) can take the call at once.
    pub another: bool,
    /// How much of its time was the member's own; `None` for all of it.
    pub took: Option<Duration>,
}

/// One call.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// What it is, for the table of what may be repeated.
    pub operation: Operation,
    /// Until when, and what it is shed after.
    pub patience: Patience,
    /// Whether it may sleep between attempts. The queue does not: its waits are in the database, and
    /// nothing sleeps under a lease.
    pub waits: bool,
}

/// What came of a call.
#[derive(Debug)]
pub struct Called<E, T, X> {
    /// The answer, or why there is none.
    pub result: Result<T, CallError<X>>,
    /// Who gave it, or failed last.
    pub by: Option<Arc<E>>,
    /// Whether an attempt that failed may have had its effect.
    pub may_have_arrived: bool,
}

/// Why a call has no answer.
#[derive(Debug, PartialEq, Eq)]
pub enum CallError<X> {
    /// No member takes calls now; when one may.
    NoneReady {
        /// The shortest rest.
        retry_after: Duration,
    },
    /// Every member has all that it can do.
    Overloaded,
    /// No time is left.
    TooLate,
    /// The last attempt failed.
    Failed(X),
}

/// One member and what stands before it.
#[derive(Debug)]
pub struct Member<E> {
    endpoint: Arc<E>,
    role: Role,
    breaker: Breaker,
    limit: Arc<Limit>,
    load: Load,
    pub(super) health: HealthLog,
}

/// What an operator configures for a pool.
#[derive(Debug, Clone, Copy)]
pub struct PoolOptions {
    /// The link's name in metrics.
    pub link: &'static str,
    /// Attempts.
    pub retry: RetryConfig,
    /// One attempt at one member.
    pub attempt_max: Duration,
    /// How long a member that has come back takes to get its whole share.
    pub ramp: Duration,
    /// How often a member is asked whether it is well.
    pub health: HealthConfig,
}

/// The members of one link.
#[derive(Debug)]
pub struct Pool<E> {
    options: PoolOptions,
    members: Vec<Member<E>>,
    live: Budget,
    vital: Budget,
    turn: AtomicU32,
    counts: Counts,
}

/// Taken once: a look-up by name costs more than all layers.
#[derive(Debug)]
struct Counts {
    again: Counter,
    cured: Counter,
    given_up: Counter,
    budget: Counter,
}

/// A member as an operator sees it.
#[derive(Debug, Clone)]
pub struct MemberView {
    /// Its name.
    pub name: String,
    /// Primary or backup.
    pub role: Role,
    /// Whether a call would be given to it.
    pub usable: bool,
    /// What its breaker does.
    pub breaker: Breaker,
    /// How full it is.
    pub occupancy: Occupancy,
    /// How long an answer takes, as a rule.
    pub typical: Duration,
    /// How long ago the last call began.
    pub last_used: Option<Duration>,
    /// What the monitor knows.
    pub health: Health,
}

impl<E: Endpoint> Member<E> {
    /// Unused and healthy so far.
    #[must_use]
    pub fn new(endpoint: Arc<E>, role: Role, breaker: Breaker, limit: LimitOptions) -> Self {
        let (limit, load, health) = (Limit::new(limit), Load::new(), HealthLog::default());
        Self { endpoint, role, breaker, limit, load, health }
    }

    /// What is called.
    #[must_use]
    pub fn endpoint(&self) -> &Arc<E> {
        &self.endpoint
    }

    /// What stops calls to it.
    #[must_use]
    pub fn breaker(&self) -> &Breaker {
        &self.breaker
    }

    fn is_usable(&self) -> bool {
        self.endpoint.is_ready() && self.breaker.admits()
    }

    pub(super) fn load(&self) -> &Load {
        &self.load
    }

    fn view(&self) -> MemberView {
        MemberView {
            name: self.endpoint.name().to_owned(),
            role: self.role,
            usable: self.is_usable(),
            breaker: self.breaker.clone(),
            occupancy: self.limit.occupancy(),
            typical: self.load.typical(),
            last_used: self.load.last_used(),
            health: self.health.read(),
        }
    }
}

impl<E: Endpoint> Pool<E> {
    /// Of at least one member; more than 32 are not looked at.
    #[must_use]
    pub fn new(options: PoolOptions, members: Vec<Member<E>>) -> Self {
        let counter = |outcome: &'static str| metrics::counter!(RETRY_ATTEMPTS, "link" => options.link, "outcome" => outcome);
        let counts = Counts {
            again: counter("again"),
            cured: counter("cured"),
            given_up: counter("given_up"),
            budget: counter("budget"),
        };
        let (live, vital) = (options.retry.budget(), options.retry.budget());
        Self { options, members, live, vital, turn: AtomicU32::new(0), counts }
    }

    pub(super) fn health(&self) -> &HealthConfig {
        &self.options.health
    }

    /// The members.
    #[must_use]
    pub fn members(&self) -> &[Member<E>] {
        &self.members
    }

    /// The members as an operator sees them.
    #[must_use]
    pub fn views(&self) -> Vec<MemberView> {
        self.members.iter().map(Member::view).collect()
    }

    /// Whether any member takes calls.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.members.iter().any(Member::is_usable)
    }

    /// How long no member takes a call; zero when one does.
    #[must_use]
    pub fn rests_for(&self) -> Duration {
        if self.is_usable() {
            return Duration::ZERO;
        }
        let rests = self.members.iter().map(|member| member.breaker.rests_for());
        rests.min().unwrap_or_default().max(NOT_READY_MOMENT)
    }

    /// Calls one member after another as far as operation, time and budget allow.
    pub async fn call<T, X, F, Fut>(&self, call: Call, attempt: F) -> Called<E, T, X>
    where
        X: Fault,
        F: Fn(Arc<E>, Instant) -> Fut,
        Fut: Future<Output = Tried<T, X>>,
    {
        let budget = match call.patience.urgency {
            Urgency::Live => &self.live,
            Urgency::Vital => &self.vital,
        };
        budget.earn();
        let mut attempts = match call.waits {
            true => self.options.retry.attempts(call.patience.until),
            // Nobody waits for it: it has all of its lease.
            false => self.options.retry.attempts_until(call.patience.until),
        };
        let mut left = Members::all(self.members.len());
        let (mut by, mut may_have_arrived) = (None, false);
        let mut blamed = Members::none();
        let mut last: Option<CallError<X>> = None;
        let result = loop {
            let Some(at) = self.choose(call.operation, left) else {
                let rests = || CallError::NoneReady { retry_after: self.rests_for() };
                break Err(last.unwrap_or_else(rests));
            };
            let member = &self.members[at];
            left.remove(at);
            let Some(mut permit) = member.breaker.admit() else { continue };
            let Ok(mut slot) = member.limit.take(call.patience.urgency, attempts.limit()).await
            else {
                permit.record(Verdict::Ignored);
                last.get_or_insert(CallError::Overloaded);
                continue;
            };
            let begun = Instant::now();
            let others = self.any_usable(&left);
            let Some(limit) = self.attempt_limit(begun, attempts.limit(), others) else {
                permit.record(Verdict::Ignored);
                break Err(last.unwrap_or(CallError::TooLate));
            };
            permit.begins_now();
            let running = member.load.enter();
            let Tried { result, verdict, another, took } =
                attempt(Arc::clone(&member.endpoint), limit).await;
            drop(running);
            let lasted = begun.elapsed();
            let took = took.unwrap_or(lasted);
            by = Some(Arc::clone(&member.endpoint));
            match verdict {
                Verdict::Healthy => {
                    member.load.record(took, None);
                    slot.answered();
                }
                Verdict::Failing => member.load.record(took, Some(self.options.attempt_max)),
                // Whatever its caller allowed, it took at least that long.
                Verdict::TimedOut => member.load.record(took, Some(took)),
                Verdict::Ignored => {}
            }
            drop(slot);
            if permit.record_attempt(verdict, took, blamed.has(at)) {
                blamed.add(at);
            }
            let error = match result {
                Ok(answer) => {
                    if attempts.made() > 0 {
                        self.counts.cured.increment(1);
                    }
                    break Ok(answer);
                }
                Err(error) => error,
            };
            let outcome = error.outcome();
            may_have_arrived |= outcome == Outcome::SentUnknown;
            if decide(call.operation, outcome) == Decision::GiveUp {
                break Err(CallError::Failed(error));
            }
            // What says nothing of the member is repeated only where another part of it is there, or
            // when it asks for that. And a caller in a hurry must not use up the budget of all.
            let hasty = verdict == Verdict::TimedOut && lasted < HASTY;
            let asks = outcome == Outcome::AnsweredRetryable;
            if hasty || (verdict == Verdict::Ignored && !another && !asks) {
                break Err(CallError::Failed(error));
            }
            // Whoever has failed is asked again only when nobody else is left.
            let at_once = another || self.any_usable(&left);
            let next = attempts.next(at_once, error.retry_after(), member.load.typical());
            let Some(rest) = next.filter(|rest| call.waits || rest.is_zero()) else {
                self.counts.given_up.increment(1);
                break Err(CallError::Failed(error));
            };
            // No retry of a failing link: an order whose worker died simply moves to the other one.
            if !another && !budget.spend() {
                self.counts.budget.increment(1);
                break Err(CallError::Failed(error));
            }
            self.counts.again.increment(1);
            if another && !self.any_usable(&left) {
                left.add(at);
            }
            if !rest.is_zero() {
                sleep(rest).await;
            }
            if !self.any_usable(&left) {
                left = Members::all(self.members.len());
            }
            last = Some(CallError::Failed(error));
        };
        Called { result, by, may_have_arrived }
    }

    /// When an attempt that begins now must end: at most half of what is left when somebody else
    /// could still be asked.
    fn attempt_limit(&self, now: Instant, limit: Instant, others: bool) -> Option<Instant> {
        let left = limit.checked_duration_since(now).filter(|left| !left.is_zero())?;
        let share = if others { left / 2 } else { left };
        Some(now + share.min(self.options.attempt_max))
    }

    fn any_usable(&self, among: &Members) -> bool {
        among.iter().any(|at| self.members[at].is_usable())
    }

    /// The member for the next attempt among those that are left.
    fn choose(&self, operation: Operation, left: Members) -> Option<usize> {
        if let [only] = &self.members[..] {
            return (left.has(0) && only.is_usable()).then_some(0);
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let usable = |role| {
            let mut found = Members::none();
            for at in left.iter() {
                let member = &self.members[at];
                if member.role == role && member.is_usable() {
                    found.add(at);
                }
            }
            found
        };
        let (primaries, backups) = (usable(Role::Primary), usable(Role::Backup));
        let warms = operation == Operation::Pure && turn % WARM_EVERY == WARM_EVERY - 1;
        if warms && let Some(backup) = self.quickest(backups, turn / WARM_EVERY) {
            return Some(backup);
        }
        let mut eager = Members::none();
        for at in primaries.iter() {
            let member = &self.members[at];
            if member.limit.has_room() && self.has_its_turn(member, turn) {
                eager.add(at);
            }
        }
        [eager, backups, primaries].into_iter().find_map(|some| self.quickest(some, turn))
    }

    /// The quicker of two, which turn with every call when there are more.
    fn quickest(&self, among: Members, turn: u32) -> Option<usize> {
        let count = among.iter().count();
        let first = among.iter().nth(turn as usize % count.max(1))?;
        if count == 1 {
            return Some(first);
        }
        // Any other one: the second is as far from the first as the turns have gone round.
        let step = 1 + (turn as usize / count) % (count - 1);
        let second = among.iter().nth((turn as usize + step) % count)?;
        let (one, other) = (&self.members[first].load, &self.members[second].load);
        Some(if one.cost() <= other.cost() { first } else { second })
    }

    /// Whether a member that came back not long ago gets this call: its share grows with the time.
    fn has_its_turn(&self, member: &Member<E>, turn: u32) -> bool {
        let ramp = self.options.ramp.as_secs_f64();
        let Some(back) = member.breaker.back_for().filter(|_| ramp > 0.0) else { return true };
        let share = (back.as_secs_f64() / ramp).max(0.05);
        f64::from(turn.wrapping_mul(37) % 100) < share * 100.0
    }
}

/// Which members of a pool: one bit each.
#[derive(Debug, Clone, Copy)]
struct Members(u32);

impl Members {
    fn none() -> Self {
        Self(0)
    }

    fn all(count: usize) -> Self {
        Self(u32::MAX.checked_shr(32 - count.min(32) as u32).unwrap_or(0))
    }

    fn add(&mut self, at: usize) {
        self.0 |= 1 << at;
    }

    fn remove(&mut self, at: usize) {
        self.0 &= !(1 << at);
    }

    fn has(&self, at: usize) -> bool {
        self.0 & (1 << at) != 0
    }

    fn iter(self) -> impl Iterator<Item = usize> {
        (0..32).filter(move |at| self.has(*at))
    }
}

/// Of calls that repeat freely, one in so many goes to a backup while the primaries are well.
const WARM_EVERY: u32 = 50;

/// A time-out after less is the caller's: no member has shown that it does not answer.
const HASTY: Duration = Duration::from_millis(100);

/// When to look again at members that are not ready for a reason of their own.
const NOT_READY_MOMENT: Duration = Duration::from_secs(1);

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
