//! The highest transaction counter of each DUKPT device: it must grow.
//!
//! Looking comes before the token is asked, and is only cheap; recording comes after, is one
//! compare-and-set, and is durable before the answer leaves: of any number of requests with one
//! KSN, one succeeds. There is no window for lost messages: a counter that was passed over is spent.

use super::StoreError;
use super::db::{Db, Readers, query};
use super::order::Order;
use super::writer::Batch;

/// What a KSN is used for. A PIN block and the MAC around it carry the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DukptPurpose {
    /// A PIN block.
    Pin,
    /// A request's MAC.
    Mac,
}

/// One use of a KSN.
#[derive(Debug, Clone)]
pub struct DukptUse {
    /// The base derivation key's label.
    pub key_label: String,
    /// For what.
    pub purpose: DukptPurpose,
    /// The KSN with its counter at zero: 10 or 12 bytes.
    pub device: Vec<u8>,
    /// The transaction counter.
    pub counter: u32,
    /// The idempotent request that uses it: the same request may come again with its KSN.
    pub holder: Option<[u8; 32]>,
}

/// What became of one use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advanced {
    /// The counter grew, and is recorded; or its holder came again.
    Grown,
    /// This counter or a higher one was used before.
    Replayed,
    /// As many devices of this key are known as may be.
    NoRoom,
}

impl DukptPurpose {
    fn name(self) -> &'static str {
        match self {
            Self::Pin => "pin",
            Self::Mac => "mac",
        }
    }
}

pub(super) struct Advance {
    pub(super) used: DukptUse,
    pub(super) devices_max: u32,
}

impl Order for Advance {
    type Answer = Advanced;
    const FOR_CALLER: bool = true;

    async fn run(&self, db: &mut Db<'_>, batch: &mut Batch) -> Result<Advanced, StoreError> {
        let DukptUse { key_label, purpose, device, counter, holder } = &self.used;
        let holder = holder.as_ref().map(<[u8; 32]>::as_slice);
        let grown = query(GROW)
            .bind(key_label)
            .bind(purpose.name())
            .bind(device.as_slice())
            .bind(*counter)
            .bind(holder)
            .bind(batch.now)
            .execute(db)
            .await?;
        if grown == 1 {
            return Ok(Advanced::Grown);
        }
        let added = query(ADD)
            .bind(key_label)
            .bind(purpose.name())
            .bind(device.as_slice())
            .bind(*counter)
            .bind(holder)
            .bind(batch.now)
            .bind(self.devices_max)
            .execute(db)
            .await?;
        if added == 1 {
            return Ok(Advanced::Grown);
        }
        let known = query(KNOWN)
            .bind(key_label)
            .bind(purpose.name())
            .bind(device.as_slice())
            .one(db)
            .await?;
        Ok(if known.value()? { Advanced::Replayed } else { Advanced::NoRoom })
    }
}

/// Whether the counter was not used yet, as far as is recorded now.
pub(super) async fn is_new(readers: &Readers, used: &DukptUse) -> Result<bool, StoreError> {
    let mut reader = readers.acquire().await?;
    let spent = query(SPENT)
        .bind(&used.key_label)
        .bind(used.purpose.name())
        .bind(used.device.as_slice())
        .bind(used.counter)
        .bind(used.holder.as_ref().map(<[u8; 32]>::as_slice))
        .one(&mut reader.db())
        .await?;
    Ok(!spent.value::<bool>()?)
}

const GROW: &str = "
UPDATE dukpt_device SET counter = $4, holder = $5, seen_at = $6
WHERE key_label = $1 AND purpose = $2 AND device = $3
  AND (counter < $4 OR (counter = $4 AND holder = $5))";

const ADD: &str = "
INSERT INTO dukpt_device (key_label, purpose, device, counter, holder, seen_at)
SELECT $1, $2, $3, $4, $5, $6
WHERE NOT EXISTS (SELECT 1 FROM dukpt_device
                  WHERE key_label = $1 AND purpose = $2 AND device = $3)
  AND coalesce((SELECT size FROM guard_size WHERE name = $2 || ' ' || $1), 0) < $7";

const KNOWN: &str = "
SELECT EXISTS (SELECT 1 FROM dukpt_device WHERE key_label = $1 AND purpose = $2 AND device = $3)";

// Without a holder the comparison is NULL, which is not true: the counter is spent.
const SPENT: &str = "
SELECT EXISTS (SELECT 1 FROM dukpt_device
               WHERE key_label = $1 AND purpose = $2 AND device = $3
                 AND (counter > $4 OR (counter = $4 AND (holder = $5) IS NOT TRUE)))";
