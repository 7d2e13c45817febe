//! The data keys that this process has: the active one, its successors, and those that opened something
//! lately.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use hsm_adapter::protocol::ClearDataKey;

use super::sealing::Cipher;
use crate::store::DekRow;

#[derive(Default)]
pub(super) struct Ring {
    pub(super) index: Option<ClearDataKey>,
    pub(super) active: Option<Active>,
    /// Its successors, in the order in which they take over.
    pub(super) spares: VecDeque<Arc<Dek>>,
    /// Keys that opened something lately, the latest last.
    pub(super) opened: VecDeque<Arc<Dek>>,
}

pub(super) struct Active {
    pub(super) dek: Arc<Dek>,
    pub(super) since: i64,
    pub(super) sealed: u64,
}

pub(super) struct Dek {
    pub(super) id: i64,
    pub(super) cipher: Cipher,
    /// Epoch milliseconds: from then on it seals no more.
    pub(super) not_after: i64,
}

impl Ring {
    /// Whether a key has to be made, when those that are due have taken over.
    pub(super) fn lacks(&mut self, now: i64) -> bool {
        self.advance(now);
        self.active.is_none() || self.spares.len() < SPARES
    }

    /// Lets the successor take over when the active key is due, or there is none.
    pub(super) fn advance(&mut self, now: i64) {
        // One that has waited for a day of outage seals nothing any more.
        self.spares.retain(|dek| now < dek.not_after);
        if self.active.as_ref().is_none_or(|active| active.is_due(now))
            && let Some(dek) = self.spares.pop_front()
        {
            self.active = Some(Active { dek, since: now, sealed: 0 });
        }
    }

    pub(super) fn find(&mut self, dek_id: i64) -> Option<Arc<Dek>> {
        let place = self.opened.iter().position(|dek| dek.id == dek_id)?;
        let dek = self.opened.remove(place)?;
        self.opened.push_back(dek.clone());
        Some(dek)
    }

    pub(super) fn remember(&mut self, dek: Arc<Dek>) {
        if self.opened.len() == OPENED_MAX {
            self.opened.pop_front();
        }
        self.opened.push_back(dek);
    }
}

impl Active {
    /// Its successor should take over.
    pub(super) fn is_due(&self, now: i64) -> bool {
        now - self.since >= millis(RECORD_LIFE) || !self.seals(now)
    }

    pub(super) fn seals(&self, now: i64) -> bool {
        now < self.dek.not_after && self.sealed < RECORDS_MAX
    }
}

/// How well the queue is off for keys.
#[derive(Debug, Clone, Copy)]
pub(super) struct Figures {
    /// Keys that are ready to take over.
    pub(super) spares: usize,
    /// For how long the active one seals.
    pub(super) age: Duration,
}

impl Figures {
    /// Whether the active key seals for want of a successor.
    pub(super) fn is_stretched(self) -> bool {
        self.age >= STRETCHED
    }
}

impl Dek {
    pub(super) fn of(row: &DekRow, clear: &ClearDataKey) -> Self {
        Self { id: row.dek_id, cipher: Cipher::new(clear), not_after: row.not_after }
    }
}

/// For the store's times.
pub(super) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 4)
}

/// When a successor takes over.
pub(super) const RECORD_LIFE: Duration = Duration::from_secs(3_600);

/// Under random 96-bit nonces: chance of a repeated one about 2^-57.
const RECORDS_MAX: u64 = 1 << 20;

/// Keys kept for opening: more than two days of hours.
const OPENED_MAX: usize = 64;

/// Keys made ahead.
pub(super) const SPARES: usize = 2;

/// When the want of a successor is told.
const STRETCHED: Duration = Duration::from_secs(2 * 3_600);
