//! How many payments are open, without counting them each time.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Open payments of each target, without those that a person holds.
#[derive(Debug, Default)]
pub(super) struct Depths {
    pub(super) counted: HashMap<String, i64>,
    /// By this transaction.
    pub(super) added: HashMap<String, i64>,
}

impl Depths {
    pub(super) fn of(&self, target: &str) -> i64 {
        let of = |rows: &HashMap<String, i64>| rows.get(target).copied().unwrap_or(0);
        of(&self.counted) + of(&self.added)
    }

    pub(super) fn add(&mut self, target: &str, rows: i64) {
        add(&mut self.added, target, rows);
    }
}

fn add(depths: &mut HashMap<String, i64>, target: &str, rows: i64) {
    match depths.get_mut(target) {
        Some(depth) => *depth += rows,
        None => drop(depths.insert(target.to_owned(), rows)),
    }
}

/// The depths as the writers know them, and since when. Other gateways change them too.
#[derive(Debug, Default)]
pub(super) struct Known(Mutex<Option<(Instant, HashMap<String, i64>)>>);

impl Known {
    pub(super) fn get(&self, fresh_for: Option<Duration>) -> Option<HashMap<String, i64>> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, depths) = known.as_ref()?;
        let is_fresh = fresh_for.is_none_or(|limit| since.elapsed() < limit);
        is_fresh.then(|| depths.clone())
    }

    pub(super) fn set(&self, depths: HashMap<String, i64>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), depths));
    }

    pub(super) fn add(&self, added: &HashMap<String, i64>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, depths)) = known.as_mut() {
            for (target, rows) in added {
                add(depths, target, *rows);
            }
        }
    }

    /// They have to be counted again.
    pub(super) fn forget(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
