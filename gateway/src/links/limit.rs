//! How many calls may run at one endpoint at once, and how many may wait for how long.
//!
//! Whoever finds no room is told so at once or after a short wait: a queue in front of a slow
//! endpoint only makes every answer late. What must not be shed (the queue's own forwarding, the
//! MAC of an answer that has arrived, data keys) has room of its own and waits longer. In front of
//! an HSM the number follows the response time: it shrinks by a fifth when orders take too long,
//! and grows by one when it is used and they do not.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::Urgency;

/// Bounds of one endpoint's limit.
#[derive(Debug, Clone, Copy)]
pub struct LimitOptions {
    /// Calls at once at most, live ones; as many as a quarter of it more may be vital ones.
    pub max: u32,
    /// Never fewer than that.
    pub min: u32,
    /// Live calls that may wait.
    pub waiting_max: usize,
    /// How long a live call waits.
    pub wait_max: Duration,
    /// How much longer than at its best an endpoint may take before the limit shrinks; `None` keeps
    /// it at `max`.
    pub queue_max: Option<Duration>,
}

/// One endpoint's limit.
#[derive(Debug)]
pub struct Limit {
    options: LimitOptions,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    limit: f64,
    running: u32,
    live: VecDeque<oneshot::Sender<Slot>>,
    vital: VecDeque<oneshot::Sender<Slot>>,
    best: Duration,
    best_since: Instant,
    shrunk: Instant,
    refused: u64,
}

/// Room for one call; dropping it makes room for the next.
#[derive(Debug)]
pub struct Slot {
    /// `None` once nobody wants it.
    limit: Option<Arc<Limit>>,
    taken: Instant,
    /// Whether its time tells how busy the endpoint is.
    tells: bool,
}

/// There is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// A limit at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Occupancy {
    /// Calls that run.
    pub running: u32,
    /// Calls that wait.
    pub waiting: usize,
    /// Calls that may run now.
    pub limit: u32,
    /// Calls refused for want of room since the start.
    pub refused: u64,
}

impl Limit {
    /// Nothing runs.
    #[must_use]
    pub fn new(options: LimitOptions) -> Arc<Self> {
        let now = Instant::now();
        let state = State {
            limit: options.max.into(),
            running: 0,
            live: VecDeque::new(),
            vital: VecDeque::new(),
            best: Duration::MAX,
            best_since: now,
            shrunk: now,
            refused: 0,
        };
        Arc::new(Self { options, state: Mutex::new(state) })
    }

    /// Room for one call, at once or after a wait: a live one waits `wait_max`, a vital one until
    /// `deadline`.
    ///
    /// # Errors
    /// [`Full`] when no room came free in time, or too many wait already.
    pub async fn take(self: &Arc<Self>, urgency: Urgency, deadline: Instant) -> Result<Slot, Full> {
        let (waiting, until) = {
            let state = &mut *self.state();
            if state.has_room(urgency) {
                state.running += 1;
                return Ok(self.slot());
            }
            let soon = || deadline.min(Instant::now() + self.options.wait_max);
            let (queue, most, until) = match urgency {
                Urgency::Live => (&mut state.live, self.options.waiting_max, soon()),
                Urgency::Vital => (&mut state.vital, VITAL_WAITING_MAX, deadline),
            };
            queue.retain(|waiting| !waiting.is_closed());
            if queue.len() >= most {
                state.refused += 1;
                return Err(Full);
            }
            let (sender, receiver) = oneshot::channel();
            queue.push_back(sender);
            (receiver, until)
        };
        match timeout_at(until, waiting).await {
            Ok(Ok(slot)) => Ok(slot),
            Ok(Err(_)) | Err(_) => {
                self.state().refused += 1;
                Err(Full)
            }
        }
    }

    /// How full it is.
    #[must_use]
    pub fn occupancy(&self) -> Occupancy {
        let state = self.state();
        let waiting = state.live.iter().chain(&state.vital);
        Occupancy {
            running: state.running,
            waiting: waiting.filter(|waiting| !waiting.is_closed()).count(),
            limit: state.limit as u32,
            refused: state.refused,
        }
    }

    /// Whether a live call would have room now.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.state().has_room(Urgency::Live)
    }

    fn slot(self: &Arc<Self>) -> Slot {
        Slot { limit: Some(Arc::clone(self)), taken: Instant::now(), tells: false }
    }

    fn give_back(self: &Arc<Self>, took: Option<Duration>) {
        let mut state = self.state();
        if let (Some(took), Some(queue_max)) = (took, self.options.queue_max) {
            state.learn(took, queue_max, &self.options);
        }
        state.running -= 1;
        while let Some(waiting) = state.next_with_room() {
            state.running += 1;
            if let Err(mut unwanted) = waiting.send(self.slot()) {
                // Whoever waited has gone. Given back by itself it would lock the state anew.
                unwanted.limit = None;
                state.running -= 1;
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn has_room(&self, urgency: Urgency) -> bool {
        let limit = self.limit as u32;
        match urgency {
            Urgency::Live => self.running < limit,
            Urgency::Vital => self.running < limit + (limit / 4).max(1),
        }
    }

    /// Who is next, if there is room: what is vital first.
    fn next_with_room(&mut self) -> Option<oneshot::Sender<Slot>> {
        let vital = self.has_room(Urgency::Vital).then(|| self.vital.pop_front()).flatten();
        vital.or_else(|| self.has_room(Urgency::Live).then(|| self.live.pop_front()).flatten())
    }

    fn learn(&mut self, took: Duration, queue_max: Duration, options: &LimitOptions) {
        let now = Instant::now();
        // Forgotten only while there is no crowd, or its own queue would become the measure.
        // The call that ends is still counted, so at least one: without it, or at the floor it would be
        // its own crowd.
        let quiet = f64::from(self.running - 1) < self.limit / 2.0;
        if took <= self.best || (quiet && now - self.best_since > BEST_FOR) {
            (self.best, self.best_since) = (took, now);
        }
        if took > self.best + queue_max {
            // Once for each time that it takes to see the effect.
            if now - self.shrunk >= took {
                self.limit = (self.limit * 0.8).max(options.min.into());
                self.shrunk = now;
            }
        } else if f64::from(self.running) >= self.limit.floor() * 0.8 {
            self.limit = (self.limit + 1.0).min(options.max.into());
        }
    }
}

impl Slot {
    /// The call came to an answer, so that its time tells how busy the endpoint is.
    pub fn answered(&mut self) {
        self.tells = true;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let Some(limit) = self.limit.take() else { return };
        limit.give_back(self.tells.then(|| self.taken.elapsed()));
    }
}

/// Vital calls that may wait: more than the queue's forwarders and the answers under way.
const VITAL_WAITING_MAX: usize = 4_096;

/// How long the best time is remembered: an endpoint may become slower for good.
const BEST_FOR: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(max: u32, queue_max: Option<Duration>) -> Arc<Limit> {
        let wait_max = Duration::from_millis(30);
        Limit::new(LimitOptions { max, min: 2, waiting_max: 2, wait_max, queue_max })
    }

    fn later(ms: u64) -> Instant {
        Instant::now() + Duration::from_millis(ms)
    }

    #[tokio::test(start_paused = true)]
    async fn a_live_call_waits_a_moment_and_is_then_refused() {
        let limit = limit(1, None);
        let _held = limit.take(Urgency::Live, later(1_000)).await.unwrap();
        let begun = Instant::now();

        let refused = limit.take(Urgency::Live, later(1_000)).await;

        assert!(refused.is_err());
        assert_eq!(begun.elapsed(), Duration::from_millis(30));
        assert_eq!(limit.occupancy(), Occupancy { running: 1, waiting: 0, limit: 1, refused: 1 });
    }

    #[tokio::test(start_paused = true)]
    async fn room_goes_to_who_waits_longest_and_to_what_is_vital_before_all() {
        let limit = limit(1, None);
        let held = limit.take(Urgency::Live, later(1_000)).await.unwrap();
        let own_room = limit.take(Urgency::Vital, later(1_000)).await.unwrap();
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for (name, urgency) in
            [("first", Urgency::Live), ("second", Urgency::Live), ("vital", Urgency::Vital)]
        {
            let (limit, order) = (Arc::clone(&limit), Arc::clone(&order));
            tasks.push(tokio::spawn(async move {
                let slot = limit.take(urgency, later(1_000)).await;
                order.lock().unwrap().push((name, slot.is_ok()));
                tokio::time::sleep(Duration::from_millis(1)).await;
            }));
            tokio::task::yield_now().await;
        }

        drop(own_room);
        drop(held);
        for task in tasks {
            task.await.unwrap();
        }

        let order = order.lock().unwrap().clone();
        assert_eq!(order, [("vital", true), ("first", true), ("second", true)]);
        assert_eq!(limit.occupancy().running, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn too_many_who_wait_are_refused_at_once_and_one_who_left_leaves_room() {
        let limit = limit(1, None);
        let _held = limit.take(Urgency::Live, later(1_000)).await.unwrap();
        let wait = |limit: &Arc<Limit>| {
            let limit = Arc::clone(limit);
            tokio::spawn(async move { limit.take(Urgency::Live, later(1_000)).await.is_ok() })
        };
        let (gone, _waits) = (wait(&limit), wait(&limit));
        tokio::task::yield_now().await;
        let begun = Instant::now();

        let third = limit.take(Urgency::Live, later(1_000)).await;
        let at_once = begun.elapsed();
        gone.abort();
        tokio::task::yield_now().await;
        let waits_in_its_place = wait(&limit);
        tokio::task::yield_now().await;

        assert!(third.is_err());
        assert_eq!(at_once, Duration::ZERO);
        assert_eq!(limit.occupancy().waiting, 2);
        assert!(!waits_in_its_place.await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn the_limit_shrinks_while_orders_are_slow_and_grows_again() {
        let limit = limit(10, Some(Duration::from_millis(100)));
        let run = async |took_ms| {
            let mut slots = Vec::new();
            while limit.has_room() {
                slots.push(limit.take(Urgency::Live, later(1_000)).await.unwrap());
            }
            tokio::time::advance(Duration::from_millis(took_ms)).await;
            for slot in &mut slots {
                slot.answered();
            }
            drop(slots);
            limit.occupancy().limit
        };

        let fast = run(5).await;
        let mut slow = Vec::new();
        for _ in 0..12 {
            slow.push(run(300).await);
        }
        let mut again = 0;
        for _ in 0..20 {
            again = run(5).await;
        }

        assert_eq!(fast, 10);
        assert!(slow.windows(2).all(|pair| pair[1] <= pair[0]), "{slow:?}");
        assert_eq!(slow.last(), Some(&2), "{slow:?}");
        assert_eq!(again, 10);
    }

    /// What was its best half a minute ago says nothing of an endpoint that moved to another place.
    #[tokio::test(start_paused = true)]
    async fn an_endpoint_that_became_slower_for_good_leaves_the_floor() {
        let limit = limit(10, Some(Duration::from_millis(100)));
        let mut limits = Vec::new();

        for took_ms in [5].into_iter().chain([300; 150]) {
            let mut slots = Vec::new();
            while limit.has_room() {
                slots.push(limit.take(Urgency::Live, later(1_000)).await.unwrap());
            }
            tokio::time::advance(Duration::from_millis(took_ms)).await;
            slots.iter_mut().for_each(Slot::answered);
            drop(slots);
            limits.push(limit.occupancy().limit);
        }

        assert!(limits.contains(&2), "{limits:?}");
        assert_eq!(limits.last(), Some(&10), "{limits:?}");
    }
}
