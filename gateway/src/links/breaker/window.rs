//! What became of the calls of the last seconds: a ring of one-second buckets and their totals.
//!
//! The totals are kept beside the buckets, so that a look costs the same however long the window
//! is. A bucket leaves the totals as a whole when its second is out of the window, and the next
//! look or call takes it out: nothing has to come by in time.

use tokio::time::Instant;

/// The window of one breaker.
#[derive(Debug)]
pub(super) struct Window {
    buckets: Box<[Figures]>,
    totals: Figures,
    /// Where seconds begin.
    origin: Instant,
    /// The second that the newest bucket counts.
    second: u64,
}

/// So many calls, of which so many failed and so many were slow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Figures {
    pub(super) calls: u32,
    pub(super) failures: u32,
    pub(super) slow: u32,
}

impl Window {
    /// Empty; seconds are counted from `now`.
    pub(super) fn new(window_s: u64, now: Instant) -> Self {
        let buckets = usize::try_from(window_s.max(1)).unwrap_or(1);
        let buckets = vec![Figures::default(); buckets].into_boxed_slice();
        Self { buckets, totals: Figures::default(), origin: now, second: 0 }
    }

    /// Adds one call.
    pub(super) fn add(&mut self, failed: bool, slow: bool, now: Instant) {
        self.turn(now);
        let newest = self.place(self.second);
        for figures in [&mut self.buckets[newest], &mut self.totals] {
            figures.calls += 1;
            figures.failures += u32::from(failed);
            figures.slow += u32::from(slow);
        }
    }

    /// The calls of the last seconds.
    pub(super) fn totals(&mut self, now: Instant) -> Figures {
        self.turn(now);
        self.totals
    }

    /// Forgets every call.
    pub(super) fn clear(&mut self) {
        self.buckets.fill(Figures::default());
        self.totals = Figures::default();
    }

    /// Makes the bucket of `now` the newest.
    fn turn(&mut self, now: Instant) {
        let second = now.saturating_duration_since(self.origin).as_secs();
        let passed = second.saturating_sub(self.second);
        if passed >= self.buckets.len() as u64 {
            self.clear();
        } else {
            for second in self.second + 1..=second {
                let place = self.place(second);
                let gone = std::mem::take(&mut self.buckets[place]);
                self.totals.calls -= gone.calls;
                self.totals.failures -= gone.failures;
                self.totals.slow -= gone.slow;
            }
        }
        self.second = self.second.max(second);
    }

    fn place(&self, second: u64) -> usize {
        (second % self.buckets.len() as u64) as usize
    }
}

impl Figures {
    /// The share of failures and of slow calls; `None` with fewer calls than that.
    pub(super) fn shares(self, calls_min: u32) -> Option<(f64, f64)> {
        let share = |part: u32| f64::from(part) / f64::from(self.calls);
        (self.calls >= calls_min).then(|| (share(self.failures), share(self.slow)))
    }

    /// What `part` of the calls is in percent, rounded down; of no calls nothing.
    pub(super) fn percent(self, part: u32) -> u8 {
        let percent = (u64::from(part) * 100).checked_div(u64::from(self.calls)).unwrap_or(0);
        u8::try_from(percent).unwrap_or(100)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_call_is_in_the_window_until_its_second_has_left_it() {
        let start = Instant::now();
        let mut window = Window::new(60, start);
        window.add(true, false, start + SECOND / 2);
        window.add(false, true, start + SECOND);

        let full = window.totals(start + 60 * SECOND - SECOND / 1000);
        let one = window.totals(start + 60 * SECOND);
        let none = window.totals(start + 61 * SECOND);

        assert_eq!(full, Figures { calls: 2, failures: 1, slow: 1 });
        assert_eq!(one, Figures { calls: 1, failures: 0, slow: 1 });
        assert_eq!(none, Figures::default());
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_silence_empties_it_and_it_counts_on() {
        let start = Instant::now();
        let mut window = Window::new(3, start);
        for second in 0..3 {
            window.add(true, false, start + second * SECOND);
        }

        window.add(false, false, start + 1_000 * SECOND);

        let totals = window.totals(start + 1_002 * SECOND);
        assert_eq!(totals, Figures { calls: 1, failures: 0, slow: 0 });
    }

    #[test]
    fn a_share_is_undefined_below_the_least_number_of_calls() {
        let figures = Figures { calls: 20, failures: 10, slow: 5 };

        assert_eq!(figures.shares(20), Some((0.5, 0.25)));
        assert_eq!(figures.shares(21), None);
        assert_eq!(figures.percent(figures.failures), 50);
        assert_eq!(Figures { calls: 21, ..figures }.percent(10), 47);
    }
}
