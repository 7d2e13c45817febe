//! The layers in their order, on paused time, with members that do as they are told.

use std::collections::HashMap;
use std::sync::Mutex;

use super::*;
use crate::links::breaker::{BreakerConfig, Pace, State};
use tokio_util::sync::{CancellationToken, DropGuard};

/// What a member does with each call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Does {
    Answers,
    /// Not connected.
    Refuses,
    /// Sent, and no answer until the attempt's time is over.
    Hangs,
    /// It wants to be asked again later, for a reason that is not its own.
    SaysTooMany,
    /// Its last word.
    Declines,
    /// It knows itself that it cannot.
    Lost,
}

#[derive(Debug)]
struct Fake {
    name: &'static str,
    does: Mutex<Does>,
    calls: AtomicU32,
    beats: AtomicU32,
}

impl Fake {
    fn set(&self, does: Does) {
        *self.does.lock().unwrap() = does;
    }

    fn does(&self) -> Does {
        *self.does.lock().unwrap()
    }

    fn calls(&self) -> u32 {
        self.calls.load(Ordering::Relaxed)
    }

    async fn call(&self, limit: Instant) -> Tried<&'static str, Trouble> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        sleep(Duration::from_millis(1)).await;
        let (result, verdict) = match self.does() {
            Does::Answers => (Ok(self.name), Verdict::Healthy),
            Does::Refuses => (Err(Trouble(Outcome::NotSent)), Verdict::Failing),
            Does::Hangs => {
                tokio::time::sleep_until(limit).await;
                (Err(Trouble(Outcome::SentUnknown)), Verdict::TimedOut)
            }
            Does::SaysTooMany => (Err(Trouble(Outcome::AnsweredRetryable)), Verdict::Ignored),
            Does::Declines => (Err(Trouble(Outcome::AnsweredFinal)), Verdict::Healthy),
            Does::Lost => (Err(Trouble(Outcome::NotSent)), Verdict::Failing),
        };
        Tried { result, verdict, another: false, took: None }
    }
}

impl Endpoint for Fake {
    fn name(&self) -> &str {
        self.name
    }

    fn is_ready(&self) -> bool {
        self.does() != Does::Lost
    }

    async fn heartbeat(&self, limit: Instant) -> Result<(), Sick> {
        self.beats.fetch_add(1, Ordering::Relaxed);
        match self.does() {
            Does::Answers | Does::SaysTooMany | Does::Declines => Ok(()),
            Does::Refuses | Does::Lost => Err(Sick { wrong: false, why: "refused".into() }),
            Does::Hangs => {
                tokio::time::sleep_until(limit).await;
                Err(Sick { wrong: false, why: "hung".into() })
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Trouble(Outcome);

impl Fault for Trouble {
    fn outcome(&self) -> Outcome {
        self.0
    }

    fn retry_after(&self) -> Option<Duration> {
        None
    }
}

/// Its health monitor, until this is dropped.
fn monitored(pool: &Arc<Pool<Fake>>, at: usize) -> DropGuard {
    let stop = CancellationToken::new();
    tokio::spawn(Arc::clone(pool).monitor(at, stop.clone()));
    stop.drop_guard()
}

fn pool(roles: &[(&'static str, Role)]) -> Arc<Pool<Fake>> {
    let attempt_max = Duration::from_secs(2);
    let members = roles.iter().map(|(name, role)| {
        let (does, calls, beats) =
            (Mutex::new(Does::Answers), AtomicU32::new(0), AtomicU32::new(0));
        let fake = Arc::new(Fake { name, does, calls, beats });
        let breaker = Breaker::new(*name, BreakerConfig::default(), Pace::of_attempt(attempt_max));
        let limit = LimitOptions {
            max: 4,
            min: 1,
            waiting_max: 4,
            wait_max: Duration::from_millis(30),
            queue_max: None,
        };
        Member::new(fake, *role, breaker, limit)
    });
    let ramp = Duration::from_secs(30);
    let retry = RetryConfig::default();
    let health = HealthConfig::default();
    let options = PoolOptions { link: "test", retry, attempt_max, ramp, health };
    Arc::new(Pool::new(options, members.collect()))
}

const PRIMARY: (&str, Role) = ("primary", Role::Primary);
const BACKUP: (&str, Role) = ("backup", Role::Backup);

type Outcomes = Result<&'static str, CallError<Trouble>>;

async fn ask(pool: &Pool<Fake>, operation: Operation, allowed: Duration) -> Outcomes {
    let patience = (Instant::now() + allowed).into();
    let call = Call { operation, patience, waits: true };
    pool.call(call, |fake, limit| async move { fake.call(limit).await }).await.result
}

async fn pay(pool: &Pool<Fake>) -> Outcomes {
    ask(pool, Operation::Payment, Duration::from_secs(25)).await
}

fn fake(pool: &Pool<Fake>, at: usize) -> &Fake {
    pool.members()[at].endpoint()
}

/// How often each member answered.
async fn answers(pool: &Pool<Fake>, calls: u32, operation: Operation) -> HashMap<&str, u32> {
    let mut counts = HashMap::new();
    for _ in 0..calls {
        let by = ask(pool, operation, Duration::from_secs(25)).await.unwrap();
        *counts.entry(by).or_default() += 1;
    }
    counts
}

#[tokio::test(start_paused = true)]
async fn a_call_that_its_primary_refuses_is_the_backups_at_once() {
    let pool = pool(&[PRIMARY, BACKUP]);
    fake(&pool, 0).set(Does::Refuses);
    let begun = Instant::now();

    for _ in 0..20 {
        assert_eq!(pay(&pool).await, Ok("backup"));
    }

    assert!(begun.elapsed() < Duration::from_millis(100), "{:?}", begun.elapsed());
    // Five failures, and it is asked no more.
    assert_eq!(fake(&pool, 0).calls(), 5);
    assert_eq!(pool.members()[0].breaker().state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn a_member_that_hangs_costs_at_most_half_of_the_time_when_another_is_there() {
    let pool = pool(&[PRIMARY, BACKUP]);
    fake(&pool, 0).set(Does::Hangs);
    let begun = Instant::now();

    let answer = ask(&pool, Operation::Payment, Duration::from_secs(1)).await;

    assert_eq!(answer, Ok("backup"));
    assert!(begun.elapsed() <= Duration::from_millis(510), "{:?}", begun.elapsed());
}

/// A member whose other part could take the call at once is asked again only when nobody else is there.
#[tokio::test(start_paused = true)]
async fn another_member_goes_before_another_part_of_the_one_that_failed() {
    let attempt = |fake: Arc<Fake>, limit| async move {
        let mut tried = fake.call(limit).await;
        if tried.result.is_err() {
            (tried.verdict, tried.another) = (Verdict::Ignored, true);
        }
        tried
    };
    for (members, calls) in [(vec![PRIMARY, BACKUP], [1, 1]), (vec![PRIMARY], [3, 0])] {
        let pool = pool(&members);
        fake(&pool, 0).set(Does::Refuses);
        let patience = (Instant::now() + Duration::from_secs(20)).into();
        let call = Call { operation: Operation::Payment, patience, waits: true };

        let called = pool.call(call, attempt).await;

        assert_eq!(called.result.is_ok(), members.len() == 2);
        let made: Vec<_> = pool.members().iter().map(|member| member.endpoint().calls()).collect();
        assert_eq!(made, calls[..members.len()]);
    }
}

#[tokio::test(start_paused = true)]
async fn the_deadline_ends_a_call_to_a_member_that_hangs_and_opens_no_breaker() {
    let pool = pool(&[PRIMARY]);
    fake(&pool, 0).set(Does::Hangs);

    for _ in 0..20 {
        let begun = Instant::now();
        let answer = ask(&pool, Operation::Pure, Duration::from_millis(100)).await;
        assert!(answer.is_err());
        assert!(begun.elapsed() <= Duration::from_millis(110), "{:?}", begun.elapsed());
    }

    // A client that asks for an answer at once must not close the link for all.
    assert_eq!(pool.members()[0].breaker().state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_last_word_is_not_asked_for_twice() {
    let pool = pool(&[PRIMARY, BACKUP]);
    fake(&pool, 0).set(Does::Declines);

    let declined = pay(&pool).await;

    assert_eq!(declined, Err(CallError::Failed(Trouble(Outcome::AnsweredFinal))));
    assert_eq!((fake(&pool, 0).calls(), fake(&pool, 1).calls()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn every_fiftieth_call_that_repeats_freely_keeps_a_backup_warm_and_no_payment_does() {
    let pool = pool(&[PRIMARY, BACKUP]);

    let payments = answers(&pool, 500, Operation::Payment).await;
    let pure = answers(&pool, 500, Operation::Pure).await;

    assert_eq!(payments, HashMap::from([("primary", 500)]));
    assert_eq!(pure, HashMap::from([("primary", 490), ("backup", 10)]));
}

#[tokio::test(start_paused = true)]
async fn primaries_share_the_calls() {
    let pool = pool(&[("a", Role::Primary), ("b", Role::Primary), ("c", Role::Primary)]);

    let counts = answers(&pool, 300, Operation::Payment).await;

    assert!(counts.len() == 3 && counts.values().all(|count| *count > 50), "{counts:?}");
}

#[tokio::test(start_paused = true)]
async fn when_nobody_has_room_it_is_load_and_no_failure() {
    let pool = pool(&[PRIMARY]);
    fake(&pool, 0).set(Does::Hangs);
    let busy: Vec<_> = (0..4)
        .map(|_| {
            let pool = Arc::clone(&pool);
            tokio::spawn(async move { pay(&pool).await })
        })
        .collect();
    sleep(Duration::from_millis(5)).await;
    let begun = Instant::now();

    let refused = pay(&pool).await;
    let took = begun.elapsed();
    let vital = Call {
        operation: Operation::Payment,
        patience: Patience::vital(Instant::now() + Duration::from_millis(200)),
        waits: false,
    };
    let vital = pool.call(vital, |fake, limit| async move { fake.call(limit).await }).await;

    assert_eq!(refused, Err(CallError::Overloaded));
    assert!(took < Duration::from_millis(50), "{took:?}");
    // What is vital has room of its own.
    assert_eq!(vital.result, Err(CallError::Failed(Trouble(Outcome::SentUnknown))));
    assert!(vital.may_have_arrived);
    busy.into_iter().for_each(|task| task.abort());
}

/// The queue's waits are in the database: under a lease nothing sleeps.
#[tokio::test(start_paused = true)]
async fn what_may_not_wait_is_given_up_where_a_wait_would_be() {
    let pool = pool(&[PRIMARY]);
    fake(&pool, 0).set(Does::Refuses);
    let patience = Patience::vital(Instant::now() + Duration::from_secs(20));
    let call = Call { operation: Operation::Payment, patience, waits: false };
    let begun = Instant::now();

    let called = pool.call(call, |fake, limit| async move { fake.call(limit).await }).await;

    assert_eq!(called.result, Err(CallError::Failed(Trouble(Outcome::NotSent))));
    assert!(!called.may_have_arrived);
    assert!(begun.elapsed() <= Duration::from_millis(2), "{:?}", begun.elapsed());
}

/// A link that is down for two minutes at 200 requests a second is not asked three times by each.
#[tokio::test(start_paused = true)]
async fn a_long_outage_costs_few_further_attempts_and_one_probe_a_second() {
    let pool = pool(&[PRIMARY]);
    let _monitor = monitored(&pool, 0);
    for _ in 0..1_000 {
        pay(&pool).await.unwrap();
    }
    fake(&pool, 0).set(Does::Refuses);
    let (calls, beats) = (fake(&pool, 0).calls(), fake(&pool, 0).beats.load(Ordering::Relaxed));
    let mut tasks = Vec::new();
    let requests = 24_000;

    for _ in 0..requests {
        let pool = Arc::clone(&pool);
        tasks.push(tokio::spawn(async move { pay(&pool).await }));
        sleep(Duration::from_millis(5)).await;
    }
    for task in tasks {
        assert!(task.await.unwrap().is_err());
    }
    let made = fake(&pool, 0).calls() - calls;
    let probes = fake(&pool, 0).beats.load(Ordering::Relaxed) - beats;
    let back = Instant::now();
    fake(&pool, 0).set(Does::Answers);
    while pay(&pool).await.is_err() {
        sleep(Duration::from_millis(10)).await;
    }
    let recovered = back.elapsed();

    assert!(made < 100, "{made} attempts at a dead member by {requests} requests");
    assert!(probes <= 125, "{probes} probes in two minutes");
    assert!(recovered <= Duration::from_secs(5), "{recovered:?}");
}

/// Nobody's call fails at a member that is not asked: its breaker must open all the same.
#[tokio::test(start_paused = true)]
async fn a_member_that_knows_itself_that_it_is_lost_is_open_within_a_second() {
    let pool = pool(&[PRIMARY]);
    let _monitor = monitored(&pool, 0);
    sleep(Duration::from_secs(5)).await;
    fake(&pool, 0).set(Does::Lost);

    sleep(Duration::from_secs(1)).await;
    let lost = pool.members()[0].breaker().state();
    let refused = pay(&pool).await;
    fake(&pool, 0).set(Does::Answers);
    sleep(Duration::from_secs(3)).await;
    let back = pool.members()[0].breaker().state();

    assert_eq!((lost, back), (State::Open, State::Closed));
    assert!(matches!(refused, Err(CallError::NoneReady { .. })), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn a_member_that_nobody_asks_is_found_dead_and_found_well_again() {
    let pool = pool(&[PRIMARY, BACKUP]);
    let _monitor = monitored(&pool, 1);
    sleep(Duration::from_secs(1)).await;
    fake(&pool, 1).set(Does::Refuses);

    sleep(Duration::from_secs(36)).await;
    let dead = pool.members()[1].breaker().state();
    fake(&pool, 1).set(Does::Answers);
    sleep(Duration::from_secs(5)).await;
    let well = pool.members()[1].breaker().state();

    assert_ne!(dead, State::Closed);
    assert_eq!(well, State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_primary_that_came_back_gets_its_share_bit_by_bit() {
    let pool = pool(&[PRIMARY, BACKUP]);
    let _monitor = monitored(&pool, 0);
    fake(&pool, 0).set(Does::Refuses);
    for _ in 0..10 {
        pay(&pool).await.unwrap();
    }
    fake(&pool, 0).set(Does::Answers);
    while pool.members()[0].breaker().state() != State::Closed {
        sleep(Duration::from_millis(100)).await;
    }

    let mut shares = Vec::new();
    for _ in 0..4 {
        let counts = answers(&pool, 100, Operation::Payment).await;
        shares.push(counts.get("primary").copied().unwrap_or(0));
        sleep(Duration::from_secs(10)).await;
    }

    assert!(shares[0] <= 15 && shares[1] > shares[0] && shares[2] > shares[1], "{shares:?}");
    assert_eq!(shares[3], 100, "{shares:?}");
}

/// A biller is not slow because the token is that makes the MACs between us.
#[tokio::test(start_paused = true)]
async fn time_that_an_attempt_spends_elsewhere_is_not_the_members() {
    let pool = pool(&[PRIMARY]);
    let attempt = |fake: Arc<Fake>, limit: Instant| async move {
        tokio::time::sleep_until(limit - Duration::from_millis(50)).await;
        let begun = Instant::now();
        let tried = fake.call(limit).await;
        Tried { took: Some(begun.elapsed()), ..tried }
    };
    let answers = async || {
        let patience = (Instant::now() + Duration::from_secs(2)).into();
        let call = Call { operation: Operation::Payment, patience, waits: true };
        pool.call(call, attempt).await.result.is_ok()
    };

    for _ in 0..25 {
        assert!(answers().await);
    }
    let member = &pool.members()[0];
    let answered = member.breaker().snapshot();
    fake(&pool, 0).set(Does::Hangs);
    for _ in 0..10 {
        assert!(!answers().await);
    }

    assert_eq!((answered.window.calls, answered.window.slow), (25, 0));
    let timed_out = member.breaker().snapshot();
    assert_eq!((timed_out.state, timed_out.consecutive_failures), (State::Closed, 0));
    assert!(member.load().typical() < Duration::from_millis(10), "{:?}", member.load().typical());
}

#[tokio::test(start_paused = true)]
async fn one_call_is_one_witness_against_a_member_however_often_it_asks() {
    let pool = pool(&[PRIMARY]);
    fake(&pool, 0).set(Does::Refuses);

    for _ in 0..4 {
        assert!(pay(&pool).await.is_err());
    }
    let doubted = pool.members()[0].breaker().snapshot();
    assert!(pay(&pool).await.is_err());

    assert_eq!((doubted.state, doubted.consecutive_failures), (State::Closed, 4));
    assert_eq!(pool.members()[0].breaker().state(), State::Open);
    // Three attempts of each of the four; the fifth call's first one opened it.
    assert_eq!(fake(&pool, 0).calls(), 4 * 3 + 1);
}

/// A breaker that waits for proof has it, whoever's call it was.
#[tokio::test(start_paused = true)]
async fn a_further_failure_of_one_call_ends_a_half_open_breakers_proof() {
    let pool = pool(&[PRIMARY]);
    let breaker = pool.members()[0].breaker();
    breaker.trip("test");
    sleep(breaker.rests_for()).await;
    assert_eq!(breaker.state(), State::HalfOpen);

    let permit = breaker.admit().unwrap();
    let counted = permit.record_attempt(Verdict::Failing, Duration::ZERO, true);

    assert_eq!((counted, breaker.state()), (false, State::Open));
}

#[tokio::test(start_paused = true)]
async fn who_says_too_many_is_asked_again_within_the_budget_and_opens_no_breaker() {
    let pool = pool(&[PRIMARY]);
    fake(&pool, 0).set(Does::SaysTooMany);

    let asked_again = pay(&pool).await;
    let of_one = fake(&pool, 0).calls();
    for _ in 0..99 {
        assert!(pay(&pool).await.is_err());
    }

    assert_eq!(asked_again, Err(CallError::Failed(Trouble(Outcome::AnsweredRetryable))));
    assert_eq!((of_one, pool.members()[0].breaker().state()), (3, State::Closed));
    assert!(fake(&pool, 0).calls() < 200, "{}", fake(&pool, 0).calls());
}
