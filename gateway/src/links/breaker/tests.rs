//! What the breaker promises, case by case. Time is paused, rests have no jitter.

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::time::advance;

use super::*;

const PACE: Pace = Pace { fair: ms(1_000), slow: ms(800) };

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn breaker() -> Breaker {
    with(BreakerConfig::default())
}

fn with(config: BreakerConfig) -> Breaker {
    Breaker::steady("test", config, PACE)
}

fn pass(breaker: &Breaker, verdict: Verdict, times: u32) {
    for _ in 0..times {
        breaker.admit().unwrap().record(verdict);
    }
}

fn beat(breaker: &Breaker, verdict: Verdict) {
    breaker.admit_probe().unwrap().record(verdict);
}

/// Opened by traffic, rested, and closed by heartbeats alone.
async fn closed_by_heartbeats(breaker: &Breaker) {
    pass(breaker, Verdict::Failing, 5);
    advance(ms(1_000)).await;
    for _ in 0..3 {
        beat(breaker, Verdict::Healthy);
    }
    assert_eq!(breaker.state(), State::Closed);
}

/// Runs `story` on paused time with a recorder of its own, and gives the recorder.
fn recorded<F: Future<Output = ()>>(story: impl FnOnce(PrometheusHandle) -> F) {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().unwrap();
    metrics::with_local_recorder(&recorder, || runtime.block_on(story(handle)));
}

/// The one state that the gauges show.
fn shown(handle: &PrometheusHandle) -> String {
    let text = handle.render();
    let states = text.lines().filter(|line| line.starts_with("tollgate_breaker_state{"));
    let states: Vec<&str> = states.collect();
    assert_eq!(states.len(), State::ALL.len(), "{text}");
    let mut on = states.iter().filter_map(|line| line.strip_suffix(" 1"));
    let (state, more) = (on.next().unwrap(), on.next());
    assert_eq!(more, None, "{text}");
    state.split('"').nth(3).unwrap().to_owned()
}

/// A dead endpoint must cost its callers nothing until it has rested.
#[tokio::test(start_paused = true)]
async fn five_failures_open_it_until_it_has_rested() {
    let breaker = breaker();
    pass(&breaker, Verdict::Failing, 4);
    assert_eq!(breaker.state(), State::Closed);

    pass(&breaker, Verdict::Failing, 1);

    assert!(breaker.admit().is_none());
    assert_eq!(breaker.rests_for(), ms(5_000));
    advance(ms(4_999)).await;
    assert!(!breaker.admits());
    advance(ms(1)).await;
    assert!(breaker.admits());
    pass(&breaker, Verdict::Healthy, 3);
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn an_answer_between_failures_keeps_it_closed() {
    let breaker = with(BreakerConfig { failure_percent: 90, ..BreakerConfig::default() });
    for _ in 0..20 {
        pass(&breaker, Verdict::Failing, 4);
        pass(&breaker, Verdict::Healthy, 1);
    }
    assert_eq!(breaker.state(), State::Closed);
}

/// A long good past must not hide that the endpoint is dead now.
#[tokio::test(start_paused = true)]
async fn after_5000_successes_five_failures_still_open_it() {
    let breaker = breaker();
    pass(&breaker, Verdict::Healthy, 5_000);

    pass(&breaker, Verdict::Failing, 5);

    assert_eq!(breaker.state(), State::Open);
    assert_eq!(breaker.snapshot().reason, Some(Reason::ConsecutiveFailures));
}

#[tokio::test(start_paused = true)]
async fn half_open_one_call_at_a_time_passes_and_a_cancelled_one_gives_its_place_back() {
    let breaker = breaker();
    pass(&breaker, Verdict::Failing, 5);
    advance(ms(5_000)).await;

    let call = breaker.admit().unwrap();
    assert!(breaker.admit().is_none() && breaker.admit_probe().is_none());
    assert_eq!(breaker.rests_for(), ms(200));
    let cancelled = tokio::time::timeout(ms(10), async move {
        let _call = call;
        std::future::pending::<()>().await;
    });
    assert!(cancelled.await.is_err());

    pass(&breaker, Verdict::Healthy, 3);
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_was_dropped_after_its_fair_time_is_a_failure() {
    let breaker = breaker();
    pass(&breaker, Verdict::Failing, 4);
    let (early, late) = (breaker.admit().unwrap(), breaker.admit().unwrap());

    advance(ms(999)).await;
    drop(early);
    assert_eq!(breaker.state(), State::Closed);
    advance(ms(1)).await;
    drop(late);

    assert_eq!(breaker.state(), State::Open);
}

/// The rests are these, each twice as long as the last, up to the longest.
#[tokio::test(start_paused = true)]
async fn a_failed_probe_doubles_the_rest_and_two_stable_minutes_start_it_over() {
    let breaker = breaker();
    pass(&breaker, Verdict::Failing, 5);
    for rest in [5, 10, 20, 40, 60, 60] {
        assert_eq!(breaker.rests_for(), ms(rest * 1_000));
        advance(ms(rest * 1_000)).await;
        pass(&breaker, Verdict::Failing, 1);
    }
    advance(ms(60_000)).await;
    pass(&breaker, Verdict::Healthy, 3);

    advance(ms(119_999)).await;
    pass(&breaker, Verdict::Failing, 5);
    assert_eq!(breaker.rests_for(), ms(60_000));
    advance(ms(60_000)).await;
    pass(&breaker, Verdict::Healthy, 3);
    advance(ms(120_000)).await;
    pass(&breaker, Verdict::Failing, 5);

    assert_eq!(breaker.rests_for(), ms(5_000));
}

#[tokio::test(start_paused = true)]
async fn a_rest_differs_by_a_fifth_at_most() {
    for _ in 0..100 {
        let breaker = Breaker::new("test", BreakerConfig::default(), PACE);
        pass(&breaker, Verdict::Failing, 5);

        let left = breaker.rests_for();

        assert!((ms(4_000)..=ms(6_000)).contains(&left), "{left:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn half_of_twenty_calls_failing_opens_it_and_of_nineteen_does_not() {
    let breaker = breaker();
    for _ in 0..9 {
        pass(&breaker, Verdict::Failing, 1);
        pass(&breaker, Verdict::Healthy, 1);
    }
    pass(&breaker, Verdict::Failing, 1);
    pass(&breaker, Verdict::Ignored, 10);
    assert_eq!(breaker.state(), State::Closed);
    assert_eq!(breaker.snapshot().window.failure_percent, None);

    pass(&breaker, Verdict::Healthy, 1);

    let snapshot = breaker.snapshot();
    assert_eq!((snapshot.state, snapshot.reason), (State::Open, Some(Reason::FailureRate)));
    assert_eq!(snapshot.window.failure_percent, Some(50));
}

#[tokio::test(start_paused = true)]
async fn failures_of_more_than_a_minute_ago_are_forgotten() {
    let breaker = breaker();
    for _ in 0..9 {
        pass(&breaker, Verdict::Failing, 1);
        pass(&breaker, Verdict::Healthy, 1);
    }

    advance(ms(60_000)).await;
    pass(&breaker, Verdict::Healthy, 2);

    assert_eq!(breaker.state(), State::Closed);
    assert_eq!(breaker.snapshot().window.calls, 2);
}

#[tokio::test(start_paused = true)]
async fn four_slow_answers_of_five_open_it() {
    let breaker = breaker();
    let slow = |number| (0..number).map(|_| breaker.admit().unwrap()).collect::<Vec<_>>();

    let (on_time, calls) = (slow(4), slow(16));
    advance(ms(800)).await;
    on_time.into_iter().for_each(|call| call.record(Verdict::Healthy));
    advance(ms(1)).await;
    calls.into_iter().for_each(|call| call.record(Verdict::Healthy));

    let snapshot = breaker.snapshot();
    assert_eq!((snapshot.state, snapshot.reason), (State::Open, Some(Reason::SlowRate)));
    assert_eq!((snapshot.window.calls, snapshot.window.slow), (20, 16));
}

/// A client that asks for an answer at once must not be able to open the breaker for everybody.
#[tokio::test(start_paused = true)]
async fn a_time_out_counts_only_when_the_endpoint_had_its_fair_time() {
    let breaker = breaker();
    let calls = |number| (0..number).map(|_| breaker.admit().unwrap()).collect::<Vec<_>>();

    let (short, fair) = (calls(100), calls(5));
    advance(ms(799)).await;
    short.into_iter().for_each(|call| call.record(Verdict::TimedOut));
    assert_eq!(breaker.state(), State::Closed);
    advance(ms(1)).await;
    fair.into_iter().for_each(|call| call.record(Verdict::TimedOut));

    assert_eq!(breaker.state(), State::Open);
}

/// A slow call admitted before the breaker opened says nothing about the half-open state.
#[tokio::test(start_paused = true)]
async fn a_late_result_of_an_older_state_changes_nothing() {
    let breaker = breaker();
    let (late, later) = (breaker.admit().unwrap(), breaker.admit().unwrap());
    pass(&breaker, Verdict::Failing, 5);
    advance(ms(5_000)).await;
    let probe = breaker.admit().unwrap();

    late.record(Verdict::Failing);

    assert_eq!(breaker.state(), State::HalfOpen);
    probe.record(Verdict::Healthy);
    pass(&breaker, Verdict::Healthy, 2);
    later.record(Verdict::Failing);
    assert_eq!(breaker.state(), State::Closed);
    assert_eq!(breaker.snapshot().window.calls, 0);
}

#[tokio::test(start_paused = true)]
async fn half_open_for_too_long_it_opens_again_for_the_same_rest() {
    let breaker = breaker();
    pass(&breaker, Verdict::Failing, 5);
    advance(ms(5_000)).await;
    let stuck = breaker.admit().unwrap();

    advance(ms(29_999)).await;
    assert_eq!(breaker.state(), State::HalfOpen);
    advance(ms(1)).await;

    assert_eq!(breaker.rests_for(), ms(5_000));
    assert_eq!(breaker.snapshot().reason, Some(Reason::HalfOpenTooLong));
    stuck.record(Verdict::Healthy);
    assert_eq!(breaker.state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn a_good_heartbeat_ends_the_rest_after_its_first_second_and_a_bad_one_does_not() {
    let breaker = breaker();
    pass(&breaker, Verdict::Failing, 5);
    advance(ms(999)).await;
    beat(&breaker, Verdict::Healthy);
    assert_eq!(breaker.rests_for(), ms(4_001));

    advance(ms(1)).await;
    beat(&breaker, Verdict::Failing);
    assert_eq!(breaker.rests_for(), ms(4_000));
    beat(&breaker, Verdict::Healthy);

    assert_eq!(breaker.snapshot().reason, Some(Reason::ProbeSucceeded));
    pass(&breaker, Verdict::Healthy, 1);
    beat(&breaker, Verdict::Healthy);
    assert_eq!(breaker.state(), State::Closed);
}

/// The biller answers heartbeats and takes no payment: the heartbeat must not open the way again
/// and again.
#[tokio::test(start_paused = true)]
async fn a_heartbeat_that_was_well_while_payments_failed_is_not_trusted_any_more() {
    let breaker = breaker();
    closed_by_heartbeats(&breaker).await;
    advance(ms(60_000)).await;

    pass(&breaker, Verdict::Failing, 5);

    advance(ms(9_999)).await;
    beat(&breaker, Verdict::Healthy);
    assert_eq!(breaker.state(), State::Open);
    advance(ms(1)).await;
    assert_eq!(breaker.state(), State::HalfOpen);
    assert!(breaker.admit_probe().is_none());
    pass(&breaker, Verdict::Failing, 1);
    advance(ms(19_999)).await;
    beat(&breaker, Verdict::Healthy);
    assert_eq!(breaker.rests_for(), ms(1));
    advance(ms(1)).await;
    pass(&breaker, Verdict::Healthy, 3);
    // Traffic closed it, and so the heartbeat has another chance.
    pass(&breaker, Verdict::Failing, 5);
    advance(ms(1_000)).await;
    beat(&breaker, Verdict::Healthy);
    assert_eq!(breaker.state(), State::HalfOpen);
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_is_trusted_again_after_a_stable_time() {
    let breaker = breaker();
    closed_by_heartbeats(&breaker).await;
    advance(ms(120_000)).await;
    pass(&breaker, Verdict::Failing, 5);

    advance(ms(1_000)).await;
    beat(&breaker, Verdict::Healthy);

    assert_eq!(breaker.state(), State::HalfOpen);
}

#[tokio::test(start_paused = true)]
async fn the_health_monitor_opens_it_but_not_against_an_order() {
    let breaker = breaker();
    breaker.trip("wrong answer");
    let snapshot = breaker.snapshot();
    assert_eq!((snapshot.state, snapshot.reason), (State::Open, Some(Reason::Heartbeat)));
    assert_eq!(snapshot.detail, Some("wrong answer"));

    breaker.force(Forced::Disabled, "operator-1", "the heartbeat is wrong");
    breaker.trip("two heartbeats failed");

    assert_eq!(breaker.state(), State::Disabled);
}

#[tokio::test(start_paused = true)]
async fn forced_open_it_survives_an_hour_and_every_heartbeat_until_it_is_reset() {
    let breaker = breaker();
    pass(&breaker, Verdict::Failing, 5);
    breaker.force(Forced::Open, "operator-1", "maintenance");

    for _ in 0..3_600 {
        advance(ms(1_000)).await;
        beat(&breaker, Verdict::Healthy);
        assert!(breaker.admit().is_none());
    }

    let snapshot = breaker.snapshot();
    assert_eq!((snapshot.state, snapshot.since_s), (State::ForcedOpen, 3_600));
    let (by, reason) = ("operator-1".to_owned(), "maintenance".to_owned());
    assert_eq!(snapshot.forced, Some(ForcedBy { by, reason }));
    assert_eq!(breaker.rests_for(), ms(60_000));
    breaker.reset();
    assert_eq!(breaker.state(), State::Closed);
    pass(&breaker, Verdict::Failing, 5);
    assert_eq!(breaker.rests_for(), ms(5_000));
}

#[tokio::test(start_paused = true)]
async fn disabled_it_lets_everything_pass_and_counts_nothing() {
    let breaker = breaker();
    breaker.force(Forced::Disabled, "operator-1", "it is wrong");

    pass(&breaker, Verdict::Failing, 1_000);

    let snapshot = breaker.snapshot();
    assert_eq!(snapshot.state, State::Disabled);
    assert_eq!((snapshot.window.calls, snapshot.consecutive_failures), (0, 0));
}

#[test]
fn the_state_gauges_show_one_state_after_every_transition() {
    recorded(async |handle| {
        let breaker = breaker();
        assert_eq!(shown(&handle), "closed");

        pass(&breaker, Verdict::Failing, 5);
        assert_eq!(shown(&handle), "open");
        advance(ms(1_000)).await;
        beat(&breaker, Verdict::Healthy);
        assert_eq!(shown(&handle), "half_open");
        pass(&breaker, Verdict::Healthy, 2);
        assert_eq!(shown(&handle), "closed");
        breaker.force(Forced::Open, "operator-1", "maintenance");
        assert_eq!(shown(&handle), "forced_open");
        breaker.force(Forced::Disabled, "operator-1", "it is wrong");
        assert_eq!(shown(&handle), "disabled");
        breaker.reset();
        assert_eq!(shown(&handle), "closed");
    });
}

/// A dashboard must be right although nobody asks the breaker anything.
#[test]
fn the_gauges_follow_the_clock_without_traffic() {
    recorded(async |handle| {
        let breaker = breaker();
        pass(&breaker, Verdict::Failing, 5);

        for (after, state) in [
            (4_990, "open"),
            (20, "half_open"),
            (29_980, "half_open"),
            (20, "open"),
            (4_980, "open"),
            (20, "half_open"),
        ] {
            tokio::time::sleep(ms(after)).await;
            assert_eq!(shown(&handle), state, "{after}");
        }
    });
}

#[test]
fn every_call_is_counted_by_what_became_of_it() {
    recorded(async |handle| {
        let breaker = breaker();
        let (slow, abandoned) = (breaker.admit().unwrap(), breaker.admit().unwrap());
        advance(ms(900)).await;
        slow.record(Verdict::Healthy);
        drop(abandoned);
        pass(&breaker, Verdict::Ignored, 2);
        pass(&breaker, Verdict::TimedOut, 1);
        pass(&breaker, Verdict::Failing, 5);
        assert!(breaker.admit().is_none());

        let text = handle.render();

        for (kind, count) in [
            ("success", 1),
            ("slow", 1),
            ("abandoned", 1),
            ("ignored", 3),
            ("failure", 5),
            ("rejected", 1),
        ] {
            let line =
                format!("tollgate_breaker_calls_total{{name=\"test\",kind=\"{kind}\"}} {count}");
            assert!(text.contains(&line), "{line} in\n{text}");
        }
        assert!(text.contains(
            "tollgate_breaker_transitions_total{name=\"test\",from=\"closed\",to=\"open\",\
             reason=\"consecutive_failures\"} 1"
        ));
        assert!(text.contains("tollgate_breaker_failure_rate{name=\"test\"} -1"), "{text}");
    });
}

#[tokio::test(start_paused = true)]
async fn who_listens_hears_each_transition_in_order() {
    let breaker = breaker();
    let (mut heard, changed) = (breaker.transitions(), breaker.changed());

    pass(&breaker, Verdict::Failing, 5);
    changed.await;
    breaker.reset();

    let mut next = || {
        let Transition { name, from, to, reason } = heard.try_recv().unwrap();
        (name, from, to, reason)
    };
    let (closed, open) = (State::Closed, State::Open);
    assert_eq!(next(), ("test".to_owned(), closed, open, Reason::ConsecutiveFailures));
    assert_eq!(next(), ("test".to_owned(), open, closed, Reason::Reset));
}

#[tokio::test(start_paused = true)]
async fn a_breaker_that_is_dropped_leaves_no_task_behind() {
    let breaker = breaker();
    pass(&breaker, Verdict::Failing, 5);
    assert_eq!(Handle::current().metrics().num_alive_tasks(), 1);

    drop(breaker);
    tokio::task::yield_now().await;

    assert_eq!(Handle::current().metrics().num_alive_tasks(), 0);
}

#[test]
fn it_needs_no_runtime() {
    let breaker = breaker();

    pass(&breaker, Verdict::Failing, 5);

    assert_eq!(breaker.state(), State::Open);
}
