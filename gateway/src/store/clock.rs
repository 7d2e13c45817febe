//! Two times: the wall's, for what people read, and a steady one, for leases and back-off.
//!
//! The steady time starts at the wall's and ignores its jumps, so that setting the clock by an
//! hour neither frees a lease in use nor wakes a payment early.

use std::fmt;
use std::sync::Arc;
#[cfg(test)]
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
    #[cfg(test)]
    Manual(AtomicI64),
}

impl Clock {
    pub(crate) fn system() -> Self {
        Self(Arc::new(Source::System { began: Instant::now(), began_ms: wall_ms() }))
    }

    /// Epoch milliseconds as the machine shows them.
    pub(crate) fn wall(&self) -> i64 {
        match &*self.0 {
            Source::System { .. } => wall_ms(),
            #[cfg(test)]
            Source::Manual(now) => now.load(Ordering::SeqCst),
        }
    }

    /// Epoch milliseconds that only ever run forward, at a second a second.
    pub(crate) fn steady(&self) -> i64 {
        match &*self.0 {
            Source::System { began, began_ms } => {
                began_ms + i64::try_from(began.elapsed().as_millis()).unwrap_or(i64::MAX / 2)
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
        write!(f, "Clock({})", self.wall())
    }
}

/// A duration in the store's unit.
pub(super) fn ms(duration: std::time::Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 2)
}

fn wall_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}
