//! The store's time: the machine's when the store was opened, and steady from then on; where several
//! gateways share a server, the server's.
//!
//! It ignores jumps, so that setting the machine's clock by an hour neither frees a lease in use,
//! nor wakes a payment early, nor ends the lives of all that wait. What people read of rows follows
//! a clock that was set with the next start. Of a shared server, what one leases another frees.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use tokio::time::Instant;

/// Where the store takes its time from.
#[derive(Clone)]
pub(crate) struct Clock(Arc<Source>);

enum Source {
    System {
        began: Instant,
        began_ms: i64,
    },
    /// A server's, which several gateways share, as it was last seen.
    Server {
        began: Instant,
        /// What its clock was ahead of ours when we began, in milliseconds since 1970.
        began_ms: AtomicI64,
        /// When it was last asked, in milliseconds since we began.
        seen_ms: AtomicI64,
    },
    #[cfg(test)]
    Manual(AtomicI64),
}

impl Clock {
    pub(crate) fn system() -> Self {
        Self(Arc::new(Source::System { began: Instant::now(), began_ms: wall_ms() }))
    }

    /// A server's clock; this machine's until the server has been seen.
    pub(crate) fn of_server() -> Self {
        Self::of_server_on(wall_ms())
    }

    /// The same on a machine whose clock shows this, in epoch milliseconds.
    pub(super) fn of_server_on(wall_ms: i64) -> Self {
        let (began_ms, seen_ms) = (AtomicI64::new(wall_ms), AtomicI64::new(NEVER));
        Self(Arc::new(Source::Server { began: Instant::now(), began_ms, seen_ms }))
    }

    /// Whether the server has to be asked.
    pub(super) fn is_stale(&self) -> bool {
        match &*self.0 {
            Source::Server { began, seen_ms, .. } => {
                let seen_ms = seen_ms.load(Ordering::Relaxed);
                seen_ms == NEVER || ms(began.elapsed()) >= seen_ms + FRESH_MS
            }
            Source::System { .. } => false,
            #[cfg(test)]
            Source::Manual(_) => false,
        }
    }

    /// Takes over what the server's clock says now.
    pub(super) fn set(&self, now_ms: i64) {
        if let Source::Server { began, began_ms, seen_ms } = &*self.0 {
            let since_ms = ms(began.elapsed());
            began_ms.store(now_ms - since_ms, Ordering::Relaxed);
            seen_ms.store(since_ms, Ordering::Relaxed);
        }
    }

    /// Epoch milliseconds: a second a second, whatever is set; only [`set`](Self::set) moves it to
    /// what a shared server says.
    pub(crate) fn now(&self) -> i64 {
        match &*self.0 {
            Source::System { began, began_ms } => began_ms + ms(began.elapsed()),
            Source::Server { began, began_ms, .. } => {
                began_ms.load(Ordering::Relaxed) + ms(began.elapsed())
            }
            #[cfg(test)]
            Source::Manual(now) => now.load(Ordering::SeqCst),
        }
    }

    /// A clock that moves by [`advance`](Self::advance) only.
    #[cfg(test)]
    pub(crate) fn manual() -> Self {
        Self(Arc::new(Source::Manual(AtomicI64::new(1_800_000_000_000))))
    }

    #[cfg(test)]
    pub(crate) fn advance(&self, by: std::time::Duration) {
        let Source::Manual(now) = &*self.0 else { panic!("only a manual clock can be moved") };
        now.fetch_add(ms(by), Ordering::SeqCst);
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clock({})", self.now())
    }
}

/// A duration in the store's unit.
pub(super) fn ms(duration: std::time::Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 2)
}

fn wall_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

/// For so long the two clocks run side by side well enough.
const FRESH_MS: i64 = 1_000;

const NEVER: i64 = -1;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Time that is paused is, to the machine's clock, one that was set back by an hour.
    #[tokio::test(start_paused = true)]
    async fn a_clock_that_is_set_moves_neither_leases_nor_lives() {
        let clock = Clock::system();
        let before = (clock.now(), clock.now());

        tokio::time::advance(Duration::from_secs(3_600)).await;

        assert_eq!((clock.now() - before.0, clock.now() - before.1), (3_600_000, 3_600_000));
    }

    #[tokio::test(start_paused = true)]
    async fn a_servers_clock_is_followed_whatever_the_machine_shows() {
        let clock = Clock::of_server_on(5_000_000);
        assert!(clock.is_stale());

        clock.set(1_000_000);
        tokio::time::advance(Duration::from_millis(FRESH_MS as u64)).await;

        assert_eq!((clock.now(), clock.is_stale()), (1_000_000 + FRESH_MS, true));
    }
}
