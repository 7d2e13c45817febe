//! What is known of a payment before its first byte leaves, and what takes it back.
//!
//! A biller that may not be sent a payment twice needs exact knowledge: its payments are marked as
//! possibly sent, durably, before a byte leaves. A payment whose outcome cannot be learnt ends as
//! failed in the transaction that queues its reversal, in the same lane.

use uuid::Uuid;

use super::db::{Db, query};
use super::lane::{self, Settling};
use super::order::Order;
use super::outcome::{END, FAILED};
use super::place::{Beside, UNSENT, insert, item};
use super::writer::Batch;
use super::{Lease, StoreError, TakingBack};

/// Whether a payment may be sent now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marked {
    /// It is marked: send it.
    Marked,
    /// The lease was lost: send nothing.
    Stale,
}

/// Marks a payment before its first byte.
pub(super) struct BeginSend {
    pub(super) held: Lease,
    /// The biller has said that no earlier attempt arrived.
    pub(super) is_absent: bool,
}

impl Order for BeginSend {
    type Answer = Marked;
    const FOR_CALLER: bool = true;

    fn key(&self) -> &[u8] {
        &self.held.ord_key.0
    }

    async fn run(&self, db: &mut Db<'_>, batch: &mut Batch) -> Result<Marked, StoreError> {
        let Some(item) = lane::leased(db, &self.held).await? else { return Ok(Marked::Stale) };
        let own = self.is_absent || !item.sent_unknown || item.is_own_mark;
        query(MARK)
            .bind(self.held.seq)
            .bind(if own { self.held.token } else { UNSENT })
            .bind(batch.now)
            .execute(db)
            .await?;
        Ok(Marked::Marked)
    }
}

/// Whether a payment is being taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reversed {
    /// It failed, and its reversal is queued.
    Queued,
    /// The lease was lost: only evidence was written.
    Stale,
}

/// Ends a leased payment and queues what takes it back.
pub(super) struct Reverse {
    pub(super) held: Lease,
    pub(super) taking: TakingBack,
}

impl Order for Reverse {
    type Answer = Reversed;

    fn key(&self) -> &[u8] {
        &self.held.ord_key.0
    }

    async fn run(&self, db: &mut Db<'_>, batch: &mut Batch) -> Result<Reversed, StoreError> {
        let (lease, code) = (&self.held, Some(&*self.taking.ending.code));
        let Some(item) = lane::leased(db, lease).await? else {
            let repeated = lane::late(db, batch, lease, REVERSED, code).await?;
            return Ok(if repeated { Reversed::Queued } else { Reversed::Stale });
        };
        let held = Some((lease.token, lease.leased_at));
        lane::note(db, batch, lease.seq, held, REVERSED, code, false).await?;
        take_back(lease.seq, item.id, &self.taking, db, batch).await?;
        lane::settle(db, batch, lease.ord_key, Settling::EndLease).await?;
        Ok(Reversed::Queued)
    }
}

/// Ends a payment, open or held, and puts its reversal behind it. Its lane is locked, and is settled by the
/// caller.
pub(super) async fn take_back(
    seq: i64,
    id: Uuid,
    taking: &TakingBack,
    db: &mut Db<'_>,
    batch: &mut Batch,
) -> Result<(), StoreError> {
    let TakingBack { ending, reversal } = taking;
    let answer = ending.answer.as_ref();
    let end = [
        seq.into(),
        FAILED.into(),
        (&ending.code).into(),
        batch.now.into(),
        answer.map(|sealed| sealed.dek_id).into(),
        answer.map(|sealed| sealed.nonce.as_slice()).into(),
        answer.map(|sealed| sealed.bytes.as_slice()).into(),
    ];
    END.run(end.to_vec(), db).await?;
    batch.ended.push(id);
    let beside = Beside {
        queued: true,
        needs_pin: false,
        payload: Some(&reversal.payload),
        pin: None,
        // It may be sent as often as need be.
        send_mark: None,
        reverses: Some(id),
        seq: None,
    };
    let row = item(&reversal.facts, beside, batch.now);
    insert(db).execute(row.to_vec(), db).await?;
    batch.wake = true;
    Ok(())
}

/// Whether there is room for the reversal of a payment that is open no more.
pub(super) fn has_room(target: &str, batch: &Batch) -> bool {
    batch.depth.of(target) < batch.depth_max + batch.depth_max / RESERVE
}

/// In a payment's history.
const REVERSED: &str = "reversed";

/// Beyond the room for payments, a tenth of it is for reversals.
const RESERVE: i64 = 10;

const MARK: &str = "
UPDATE saf_item
SET sent_unknown = TRUE, updated_at = $3,
    send_mark = CASE WHEN $2 > 0 THEN $2 ELSE send_mark END
WHERE seq = $1";
