//! Random sequences of calls, waits and orders, against a model of the rules: every outcome with
//! its time in a list, every sum by counting.

use std::fmt;

use proptest::prelude::*;
use proptest::test_runner::Config;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};
use tokio::runtime::{Builder, Runtime};
use tokio::time::advance;

use super::*;

/// Small numbers, so that every rule has its say within sixty steps.
const CONFIG: BreakerConfig = BreakerConfig {
    failures_max: 3,
    failure_percent: 50,
    slow_percent: 80,
    rate_calls_min: 4,
    window_s: 10,
    open_ms: 2_000,
    open_ms_max: 9_000,
    stable_ms: 20_000,
    probes: 2,
    half_open_ms_max: 8_000,
};
const PACE: Pace = Pace { fair: Duration::from_millis(1_000), slow: Duration::from_millis(700) };

#[derive(Debug, Clone)]
enum Step {
    /// Admitted, and recorded or dropped after so many milliseconds.
    Call {
        beat: bool,
        verdict: Option<Verdict>,
        took: u64,
    },
    /// Admitted, and kept for later.
    Take,
    /// The oldest kept permit is recorded, or dropped.
    Give(Option<Verdict>),
    Wait(u64),
    Trip,
    Force(Forced),
    Reset,
}

fn verdict() -> impl Strategy<Value = Verdict> {
    prop_oneof![
        3 => Just(Verdict::Healthy),
        2 => Just(Verdict::Failing),
        1 => Just(Verdict::TimedOut),
        1 => Just(Verdict::Ignored),
    ]
}

fn call() -> impl Strategy<Value = Step> {
    let verdict = prop::option::weighted(0.9, verdict());
    let took = prop_oneof![3 => Just(0), 2 => Just(701), 1 => Just(799), 2 => 800_u64..1_100];
    let call = (prop::bool::weighted(0.3), verdict, took);
    call.prop_map(|(beat, verdict, took)| Step::Call { beat, verdict, took })
}

/// A permit: when it was given, in which era, and whether to a heartbeat.
#[derive(Debug, Clone, Copy)]
struct Kept {
    at: u64,
    era: u32,
    beat: bool,
}

#[derive(Debug, Clone)]
struct Model {
    now: u64,
    state: State,
    since: u64,
    /// When the state ends by itself.
    until: u64,
    /// Permits of another era are late.
    era: u32,
    row: u32,
    /// Of this era: when, failed, slow.
    ended: Vec<(u64, bool, bool)>,
    /// Half open: whether each good call was a heartbeat.
    good: Vec<bool>,
    taken: bool,
    beats_closed_it: bool,
    trusted: bool,
    kept: Vec<Kept>,
}

impl Model {
    fn enter(&mut self, state: State, at: u64) {
        let row = self.row.min(10);
        self.until = match state {
            State::Open => at + (CONFIG.open_ms << row).min(CONFIG.open_ms_max),
            State::HalfOpen => at + CONFIG.half_open_ms_max,
            State::Closed | State::ForcedOpen | State::Disabled => u64::MAX,
        };
        self.row += u32::from(state == State::Open);
        (self.state, self.since, self.taken) = (state, at, false);
        self.era += 1;
        self.good.clear();
        self.ended.clear();
    }

    fn wait(&mut self, ms: u64) {
        self.now += ms;
        while self.until <= self.now {
            if self.state == State::Open {
                self.enter(State::HalfOpen, self.until);
            } else {
                self.row -= 1;
                self.enter(State::Open, self.until);
            }
        }
    }

    fn passes(&self) -> bool {
        match self.state {
            State::Closed | State::Disabled => true,
            State::HalfOpen => !self.taken,
            State::Open | State::ForcedOpen => false,
        }
    }

    fn admit(&mut self, beat: bool) -> Option<Kept> {
        let may = match self.state {
            State::HalfOpen if beat => self.trusted && !self.taken,
            State::Closed | State::Open | State::HalfOpen | State::ForcedOpen | State::Disabled => {
                beat || self.passes()
            }
        };
        self.taken |= may;
        may.then_some(Kept { at: self.now, era: self.era, beat })
    }

    fn record(&mut self, kept: Kept, verdict: Option<Verdict>) {
        let took = self.now - kept.at;
        let failed = match verdict {
            Some(Verdict::Healthy) => false,
            Some(Verdict::Failing) => true,
            Some(Verdict::TimedOut) if took >= 800 => true,
            None if took >= 1_000 => true,
            None | Some(Verdict::TimedOut | Verdict::Ignored) => {
                self.taken &= kept.era != self.era;
                return;
            }
        };
        if kept.era != self.era {
            return;
        }
        match self.state {
            State::Closed if kept.beat && !failed => {}
            State::Closed => {
                self.ended.push((self.now, failed, took > 700));
                if self.is_too_much() {
                    let stable = self.now - self.since >= CONFIG.stable_ms;
                    self.trusted = kept.beat || stable || !self.beats_closed_it;
                    self.row = if stable { 0 } else { self.row };
                    self.enter(State::Open, self.now);
                }
            }
            State::HalfOpen if failed => self.enter(State::Open, self.now),
            State::HalfOpen => {
                self.taken = false;
                self.trusted |= !kept.beat;
                self.good.push(kept.beat);
                if self.good.len() == 2 {
                    self.beats_closed_it = self.good == [true, true];
                    self.enter(State::Closed, self.now);
                }
            }
            State::Open if kept.beat && !failed && self.trusted => {
                if self.now - self.since >= 1_000 {
                    self.enter(State::HalfOpen, self.now);
                    self.good.push(true);
                }
            }
            State::Open | State::ForcedOpen | State::Disabled => {}
        }
    }

    fn is_too_much(&self) -> bool {
        let in_row = self.ended.iter().rev().take_while(|(_, failed, _)| *failed).count();
        // A call is in the window while its second is one of the last ten.
        let recent = |(at, ..): &&(u64, bool, bool)| at / 1_000 + 10 > self.now / 1_000;
        let calls: Vec<_> = self.ended.iter().filter(recent).collect();
        let failed = calls.iter().filter(|(_, failed, _)| *failed).count();
        let slow = calls.iter().filter(|(_, failed, slow)| *slow && !failed).count();
        let rates = failed * 2 >= calls.len() || slow * 10 >= calls.len() * 8;
        in_row >= 3 || calls.len() >= 4 && rates
    }
}

impl ReferenceStateMachine for Model {
    type State = Self;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Self> {
        let (now, since, until, state) = (0, 0, u64::MAX, State::Closed);
        let (era, row, trusted, taken, beats_closed_it) = (0, 0, true, false, false);
        let (ended, good, kept) = (Vec::new(), Vec::new(), Vec::new());
        #[rustfmt::skip]
        let model = Self {
            now, state, since, until, era, row, ended, good, taken, beats_closed_it, trusted, kept,
        };
        Just(model).boxed()
    }

    fn transitions(_: &Self) -> BoxedStrategy<Step> {
        prop_oneof![
            18 => call(),
            4 => Just(Step::Take),
            4 => prop::option::weighted(0.7, verdict()).prop_map(Step::Give),
            4 => (1_u64..2_500).prop_map(Step::Wait),
            1 => (1_u64..70_000).prop_map(Step::Wait),
            1 => Just(Step::Trip),
            1 => prop_oneof![Just(Forced::Open), Just(Forced::Disabled)].prop_map(Step::Force),
            2 => Just(Step::Reset),
        ]
        .boxed()
    }

    fn apply(mut self_: Self, step: &Step) -> Self {
        let model = &mut self_;
        match step {
            Step::Call { beat, verdict, took } => {
                let kept = model.admit(*beat);
                model.wait(*took);
                kept.into_iter().for_each(|kept| model.record(kept, *verdict));
            }
            Step::Take => {
                let kept = model.admit(false);
                model.kept.extend(kept);
            }
            Step::Give(verdict) => {
                if !model.kept.is_empty() {
                    let kept = model.kept.remove(0);
                    model.record(kept, *verdict);
                }
            }
            Step::Wait(ms) => model.wait(*ms),
            Step::Trip if model.state == State::Closed => {
                let stable = model.now - model.since >= CONFIG.stable_ms;
                (model.trusted, model.row) = (true, if stable { 0 } else { model.row });
                model.enter(State::Open, model.now);
            }
            Step::Trip if model.state == State::HalfOpen => model.enter(State::Open, model.now),
            Step::Trip => {}
            Step::Force(forced) if model.state != forced.state() => {
                model.enter(forced.state(), model.now);
            }
            Step::Force(_) => {}
            Step::Reset => {
                (model.row, model.beats_closed_it) = (0, false);
                if model.state == State::Closed {
                    model.ended.clear();
                } else {
                    model.enter(State::Closed, model.now);
                }
            }
        }
        self_
    }
}

/// The breaker, its time, and the permits that were kept.
struct World {
    runtime: Runtime,
    breaker: Breaker,
    kept: Vec<Permit>,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.breaker.fmt(f)
    }
}

fn end(permit: Option<Permit>, verdict: Option<Verdict>) {
    match (permit, verdict) {
        (Some(permit), Some(verdict)) => permit.record(verdict),
        (dropped, _) => drop(dropped),
    }
}

struct AgainstTheModel;

impl StateMachineTest for AgainstTheModel {
    type SystemUnderTest = World;
    type Reference = Model;

    fn init_test(_: &Model) -> World {
        let mut runtime = Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build().unwrap();
        let breaker = runtime.block_on(async { Breaker::steady("test", CONFIG, PACE) });
        World { runtime, breaker, kept: Vec::new() }
    }

    fn apply(mut world: World, _: &Model, step: Step) -> World {
        let World { runtime, breaker, kept } = &mut world;
        runtime.block_on(async {
            match step {
                Step::Call { beat, verdict, took } => {
                    let permit = if beat { breaker.admit_probe() } else { breaker.admit() };
                    advance(Duration::from_millis(took)).await;
                    end(permit, verdict);
                }
                Step::Take => kept.extend(breaker.admit()),
                Step::Give(verdict) => {
                    let oldest = (!kept.is_empty()).then(|| kept.remove(0));
                    end(oldest, verdict);
                }
                Step::Wait(ms) => advance(Duration::from_millis(ms)).await,
                Step::Trip => breaker.trip("test"),
                Step::Force(forced) => breaker.force(forced, "operator-1", "test"),
                Step::Reset => breaker.reset(),
            }
        });
        world
    }

    fn check_invariants(world: &World, model: &Model) {
        let _context = world.runtime.enter();
        let snapshot = world.breaker.snapshot();
        assert_eq!(snapshot.state, model.state);
        assert_eq!(world.breaker.admits(), model.passes());
        assert_eq!(snapshot.since_s, (model.now - model.since) / 1_000);
        assert_eq!(world.kept.len(), model.kept.len());
        if model.state == State::Open {
            let left = Duration::from_millis(model.until - model.now);
            assert_eq!(world.breaker.rests_for(), left);
        }
    }
}

prop_state_machine! {
    // 256 cases; a nightly run asks for more by PROPTEST_CASES.
    #![proptest_config(Config { failure_persistence: None, ..Config::default() })]

    #[test]
    fn the_breaker_does_what_its_model_does(sequential 60 => AgainstTheModel);
}
