//! Forgetting: idempotency keys first, then the payments that no key points at, then the
//! tombstones of data keys. Small batches, so that nobody waits for the broom.

use sqlx::sqlite::SqliteConnection;

use super::StoreError;
use super::pin_counters;
use super::writer::{Batch, Order};

/// What may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PruneRule {
    /// Epoch milliseconds: payments that ended before it, and tombstones from before it.
    pub ended_before: i64,
}

/// What went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pruned {
    /// Idempotency keys, with their answers.
    pub keys: u64,
    /// Payments, with their history.
    pub payments: u64,
    /// Tombstones of data keys.
    pub deks: u64,
    /// Counters of PINs and MACs whose windows have ended.
    pub counters: u64,
}

impl Pruned {
    /// Whether anything went: then there may be more.
    #[must_use]
    pub fn any(self) -> bool {
        self.keys + self.payments + self.deks + self.counters > 0
    }
}

impl Order for PruneRule {
    type Answer = Pruned;

    async fn run(
        &self,
        db: &mut SqliteConnection,
        batch: &mut Batch,
    ) -> Result<Pruned, StoreError> {
        let keys = sqlx::query(KEYS).bind(batch.now).execute(&mut *db).await?;
        let payments = sqlx::query(PAYMENTS).bind(self.ended_before).execute(&mut *db).await?;
        let deks = sqlx::query(DEKS).bind(self.ended_before).execute(&mut *db).await?;
        let pruned = Pruned {
            keys: keys.rows_affected(),
            payments: payments.rows_affected(),
            deks: deks.rows_affected(),
            counters: pin_counters::prune(db, batch).await?,
        };
        batch.fold |= pruned.any();
        Ok(pruned)
    }
}

/// A key outlives its payment's open life, whatever its date says: pruned earlier, a delayed
/// repeat would be a second charge.
const KEYS: &str = "
DELETE FROM idem_key WHERE (scope, key_hash) IN (
    SELECT k.scope, k.key_hash FROM idem_key k JOIN saf_item i ON i.seq = k.item_seq
    WHERE k.expires_at < ?1 AND i.state >= 2 ORDER BY k.expires_at LIMIT 256)";

const PAYMENTS: &str = "
DELETE FROM saf_item WHERE seq IN (
    SELECT seq FROM saf_item
    WHERE state >= 2 AND terminal_at < ?1
      AND NOT EXISTS (SELECT 1 FROM idem_key k WHERE k.item_seq = seq)
    ORDER BY terminal_at LIMIT 256)";

const DEKS: &str = "
DELETE FROM saf_dek WHERE dek_id IN (
    SELECT dek_id FROM saf_dek WHERE destroyed_at < ?1 LIMIT 256)";
