//! How many payments are open and which billers are paused, without asking each time.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
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
        self.paused.contains(target) || self.paused.contains(ALL)
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

/// Paused, it stands for every target. None has such a name.
pub(super) const ALL: &str = "*";

fn add(depths: &mut HashMap<String, i64>, target: &str, rows: i64) {
    match depths.get_mut(target) {
        Some(depth) => *depth += rows,
        None => drop(depths.insert(target.to_owned(), rows)),
    }
}

/// What the writers know without asking, and since when. Other gateways change it too.
#[derive(Debug, Default)]
pub(super) struct Known(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    facts: Option<(Instant, Facts)>,
    /// How often it was forgotten.
    generation: u64,
}

/// Open payments and paused targets.
type Facts = (HashMap<String, i64>, HashSet<String>);

/// A question to the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Asked {
    generation: u64,
    /// What it says is as old as this.
    at: Instant,
}

impl Known {
    /// What is known; else the database has to be asked, for [`Self::set`].
    pub(super) fn get(&self, fresh_for: Option<Duration>) -> Result<Facts, Asked> {
        let known = self.lock();
        match &known.facts {
            Some((since, facts)) if fresh_for.is_none_or(|limit| since.elapsed() < limit) => {
                Ok(facts.clone())
            }
            _ => Err(Asked { generation: known.generation, at: Instant::now() }),
        }
    }

    /// What the database has said. Of no effect when it was forgotten since it was asked: that may have
    /// been before what was forgotten, a pause for one, was written.
    pub(super) fn set(&self, asked: Asked, facts: Facts) {
        let mut known = self.lock();
        if known.generation == asked.generation {
            known.facts = Some((asked.at, facts));
        }
    }

    pub(super) fn add(&self, added: &HashMap<String, i64>) {
        if let Some((_, (depths, _))) = self.lock().facts.as_mut() {
            for (target, rows) in added {
                add(depths, target, *rows);
            }
        }
    }

    /// It has to be asked again.
    pub(super) fn forget(&self) {
        let mut known = self.lock();
        known.facts = None;
        known.generation += 1;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One writer reads, another pauses and forgets, and only then the first says what it has read.
    #[test]
    fn what_was_read_before_a_pause_does_not_undo_it() {
        let (known, running) = (Known::default(), Facts::default());
        let paused = (HashMap::new(), HashSet::from(["pln".to_owned()]));

        let before = known.get(None).unwrap_err();
        known.forget();
        known.set(before, running);
        let late = known.get(None);
        known.set(late.clone().unwrap_err(), paused.clone());

        assert_eq!(late.unwrap_err().generation, before.generation + 1);
        assert_eq!(known.get(None), Ok(paused));
    }

    #[test]
    fn an_old_copy_pauses_what_no_operator_has_paused_and_gives_back_the_rest() {
        let mut depths = Depths::default();
        depths.pause("pln", true);

        depths.pause(ALL, true);
        let then = (depths.is_paused("pln"), depths.is_paused("pdam"));
        depths.pause(ALL, false);

        assert_eq!(then, (true, true));
        assert!(depths.is_paused("pln") && !depths.is_paused("pdam") && depths.moved);
    }

    #[test]
    fn what_is_known_holds_for_its_time_and_is_added_to() {
        let known = Known::default();
        let one = HashMap::from([("pln".to_owned(), 1)]);
        known.set(known.get(None).unwrap_err(), (one.clone(), HashSet::new()));

        known.add(&one);

        assert_eq!(known.get(None).unwrap().0["pln"], 2);
        assert!(known.get(Some(Duration::ZERO)).is_err());
    }
}
