//! What this process has seen itself, whatever the rows say: payments that ended, and payments that
//! somebody else's hand in the database had to be held for.

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use super::HoldReason;

/// A payment that was held because its row is not what we wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alarm {
    /// The payment.
    pub id: Uuid,
    /// Its biller.
    pub target: String,
    /// [`HoldReason::Tampered`] or [`HoldReason::RolledBack`].
    pub reason: HoldReason,
}

/// Bounded: it forgets the oldest.
#[derive(Debug, Default)]
pub(super) struct Memory(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    ended: HashSet<Uuid>,
    in_order: VecDeque<Uuid>,
    alarms: VecDeque<Alarm>,
}

impl Memory {
    /// Whether this process has seen the payment end.
    pub(super) fn has_ended(&self, id: &Uuid) -> bool {
        self.seen().ended.contains(id)
    }

    /// After the commit, never before.
    pub(super) fn learn(&self, ended: Vec<Uuid>, alarms: Vec<Alarm>) {
        for Alarm { id, target, reason } in &alarms {
            let reason = reason.name();
            tracing::error!(payment = %id, biller = target, reason, "held: its row is not ours");
        }
        let mut seen = self.seen();
        for id in ended {
            if seen.ended.insert(id) {
                seen.in_order.push_back(id);
            }
        }
        while seen.in_order.len() > ENDED_MAX {
            if let Some(oldest) = seen.in_order.pop_front() {
                seen.ended.remove(&oldest);
            }
        }
        seen.alarms.extend(alarms);
        while seen.alarms.len() > ALARMS_MAX {
            seen.alarms.pop_front();
        }
    }

    /// The alarms since the last time.
    pub(super) fn take_alarms(&self) -> Vec<Alarm> {
        self.seen().alarms.drain(..).collect()
    }

    /// Held for look-ups only; a panic under it leaves it whole.
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An hour of eighteen payments a second.
const ENDED_MAX: usize = 65_536;

/// They are taken every few seconds, and each is in the log as well.
const ALARMS_MAX: usize = 1_024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_payment_is_forgotten_and_no_other() {
        let memory = Memory::default();
        let ids: Vec<Uuid> = (0..=ENDED_MAX).map(|_| Uuid::now_v7()).collect();

        memory.learn(ids.clone(), Vec::new());
        memory.learn(ids[ENDED_MAX..].to_vec(), Vec::new());

        let known = ids.iter().filter(|id| memory.has_ended(id)).count();
        assert_eq!(known, ENDED_MAX);
        assert!(!memory.has_ended(&ids[0]));
    }
}
