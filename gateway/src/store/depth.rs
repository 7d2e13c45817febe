//! How many payments are open and which billers are paused, without asking each time.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Open payments of each target, without those that a person holds.
#[derive(Debug, Default)]
pub(super) struct Depths {
    pub(super) counted: HashMap<String, i64>,
    /// By this transaction.
    pub(super) added: HashMap<String, i64>,
    /// Targets of which nothing is leased.
    pub(super) paused: HashSet<String>,
    /// This transaction pauses or resumes some.
    pub(super) moved: bool,
}

impl Depths {
    pub(super) fn of(&self, target: &str) -> i64 {
        let of = |rows: &HashMap<String, i64>| rows.get(target).copied().unwrap_or(0);
        of(&self.counted) + of(&self.added)
    }

    pub(super) fn add(&mut self, target: &str, rows: i64) {
        add(&mut self.added, target, rows);
    }

    pub(super) fn is_paused(&self, target: &str) -> bool {
        self.paused.contains(target)
    }

    pub(super) fn pause(&mut self, target: &str, paused: bool) {
        self.moved = true;
        if paused {
            self.paused.insert(target.to_owned());
        } else {
            self.paused.remove(target);
        }
    }
}

fn add(depths: &mut HashMap<String, i64>, target: &str, rows: i64) {
    match depths.get_mut(target) {
        Some(depth) => *depth += rows,
        None => drop(depths.insert(target.to_owned(), rows)),
    }
}

/// What the writers know without asking, and since when. Other gateways change it too.
#[derive(Debug, Default)]
pub(super) struct Known(Mutex<Option<(Instant, Facts)>>);

/// Open payments and paused targets.
type Facts = (HashMap<String, i64>, HashSet<String>);

impl Known {
    pub(super) fn get(&self, fresh_for: Option<Duration>) -> Option<Facts> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, facts) = known.as_ref()?;
        let is_fresh = fresh_for.is_none_or(|limit| since.elapsed() < limit);
        is_fresh.then(|| facts.clone())
    }

    pub(super) fn set(&self, facts: Facts) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), facts));
    }

    pub(super) fn add(&self, added: &HashMap<String, i64>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, (depths, _))) = known.as_mut() {
            for (target, rows) in added {
                add(depths, target, *rows);
            }
        }
    }

    /// It has to be asked again.
    pub(super) fn forget(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
