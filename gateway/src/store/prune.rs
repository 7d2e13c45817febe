//! Forgetting: idempotency keys first, then the payments that no key points at, then the
//! tombstones of data keys. Small batches, so that nobody waits for the broom.

use uuid::Uuid;

use super::StoreError;
use super::db::{Db, Sql, Table, query};
use super::order::Order;
use super::pin_counters;
use super::writer::Batch;

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
    /// Sealed payloads of payments whose attempts are used up and whose time is over.
    pub dead_letters: u64,
    /// Tombstones of data keys.
    pub deks: u64,
    /// Counters of PINs and MACs whose windows have ended.
    pub counters: u64,
}

impl Pruned {
    /// Whether anything went: then there may be more.
    #[must_use]
    pub fn any(self) -> bool {
        self.keys + self.payments + self.dead_letters + self.deks + self.counters > 0
    }
}

impl Order for PruneRule {
    type Answer = Pruned;

    async fn run(&self, db: &mut Db<'_>, batch: &mut Batch) -> Result<Pruned, StoreError> {
        let keys = query(KEYS).bind(batch.now).all(db).await?;
        let answered = keys.iter().map(|row| Ok(row.get::<Uuid>("item_id")?.into()));
        EMPTY.execute(answered.collect::<Result<_, StoreError>>()?, db).await?;
        let payments = query(PAYMENTS).bind(self.ended_before).execute(db).await?;
        let dead_letters = query(DEAD_LETTERS).bind(batch.now).execute(db).await?;
        let deks = query(DEKS).bind(self.ended_before).execute(db).await?;
        let pruned = Pruned {
            keys: keys.len() as u64,
            payments,
            dead_letters,
            deks,
            counters: pin_counters::prune(db, batch).await?,
        };
        query(INSTANCES).bind(batch.now - DAY_MS).execute(db).await?;
        batch.fold |= pruned.any();
        Ok(pruned)
    }
}

/// A key outlives its payment's open life, whatever its date says: pruned earlier, a delayed
/// repeat would be a second charge.
const KEYS: &str = "
DELETE FROM idem_key WHERE (scope, key_hash) IN (
    SELECT k.scope, k.key_hash FROM idem_key k JOIN saf_item i ON i.id = k.item_id
    WHERE k.expires_at < $1 AND i.state >= 2 ORDER BY k.expires_at LIMIT 256)
RETURNING item_id";

/// Nobody can ask for the answer any more.
const EMPTY: Table = Table {
    before: "UPDATE saf_item SET res_dek_id = NULL, res_nonce = NULL, res_ct = NULL FROM",
    columns: 1,
    after: Sql::Both("forgotten WHERE saf_item.id = forgotten.column1"),
};

const PAYMENTS: &str = "
DELETE FROM saf_item WHERE seq IN (
    SELECT seq FROM saf_item
    WHERE state >= 2 AND terminal_at < $1
      AND NOT EXISTS (SELECT 1 FROM idem_key k WHERE k.item_id = saf_item.id)
    ORDER BY terminal_at LIMIT 256)";

/// Nobody may try them again.
const DEAD_LETTERS: &str = "
DELETE FROM saf_dead_letter WHERE item_seq IN (
    SELECT d.item_seq FROM saf_dead_letter d JOIN saf_item i ON i.seq = d.item_seq
    WHERE i.expires_at <= $1 LIMIT 256)";

/// A gateway is a new one with each start.
const INSTANCES: &str = "DELETE FROM gateway_instance WHERE seen_at < $1";

const DAY_MS: i64 = 86_400_000;

const DEKS: &str = "
DELETE FROM saf_dek WHERE dek_id IN (
    SELECT dek_id FROM saf_dek WHERE destroyed_at < $1 LIMIT 256)";
