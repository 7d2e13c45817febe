//! What is known of a payment before its first byte leaves, and what takes it back.
//!
//! A biller that may not be sent a payment twice needs exact knowledge: its payments are marked as
//! possibly sent, durably, before a byte leaves. A payment whose outcome cannot be learnt ends as
//! failed in the transaction that queues its reversal, in the same lane.

use uuid::Uuid;

use super::begin::{INSERT, ITEM_COLUMNS, UNSENT};
use super::db::{Db, Sql, Value, locking, query};
use super::lane::{self, Settling};
use super::order::Order;
use super::outcome::{END, FAILED};
use super::writer::Batch;
use super::{Ending, Lease, Reversal, StoreError};

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

/// Which payment is taken back.
#[derive(Debug, Clone)]
pub(super) enum Whose {
    /// That of the lease.
    Leased(Lease),
    /// One that a person holds.
    Held(Uuid),
}

/// Whether a payment is being taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reversed {
    /// It failed, and its reversal is queued.
    Queued,
    /// As many items of the target are open as may be, reversals included. Nothing was done.
    QueueFull,
    /// It is not there any more as it was. Nothing was done.
    Stale,
}

/// Ends a payment and queues what takes it back.
pub(super) struct Reverse {
    pub(super) whose: Whose,
    pub(super) ending: Ending,
    pub(super) reversal: Reversal,
}

impl Order for Reverse {
    type Answer = Reversed;

    fn key(&self) -> &[u8] {
        &self.reversal.facts.ord_key.0
    }

    async fn run(&self, db: &mut Db<'_>, batch: &mut Batch) -> Result<Reversed, StoreError> {
        let (reversal, ending) = (&self.reversal, &self.ending);
        let (ord_key, target) = (reversal.facts.ord_key, &reversal.facts.target);
        let (seq, id, lease, settling, was_open) = match &self.whose {
            Whose::Leased(lease) => {
                let Some(item) = lane::leased(db, lease).await? else {
                    let code = Some(&*ending.code);
                    let repeated = lane::late(db, batch, lease, REVERSED, code).await?;
                    return Ok(if repeated { Reversed::Queued } else { Reversed::Stale });
                };
                let held = Some((lease.token, lease.leased_at));
                (lease.seq, item.id, held, Settling::EndLease, true)
            }
            Whose::Held(id) => {
                let key = ord_key.0.as_slice();
                let Some(row) = query(HELD).bind(*id).bind(key).optional(db).await? else {
                    return Ok(Reversed::Stale);
                };
                if batch.depth.of(target) >= batch.depth_max + batch.depth_max / RESERVE {
                    return Ok(Reversed::QueueFull);
                }
                (row.value()?, *id, None, Settling::KeepLease, false)
            }
        };
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
        END.execute(end.to_vec(), db).await?;
        lane::note(db, batch, seq, lease, REVERSED, Some(&ending.code), false).await?;
        INSERT.execute(item(reversal, id, batch.now).to_vec(), db).await?;
        lane::settle(db, batch, ord_key, settling).await?;
        batch.depth.add(target, if was_open { 0 } else { 1 });
        batch.wake = true;
        Ok(Reversed::Queued)
    }
}

/// The columns of [`INSERT`].
fn item(reversal: &Reversal, reverses: Uuid, now: i64) -> [Value; ITEM_COLUMNS] {
    let (facts, payload) = (&reversal.facts, &reversal.payload);
    let no_pin = (None::<i64>, None::<&[u8]>, None::<&[u8]>);
    [
        facts.id.into(),
        (&facts.tenant).into(),
        (&facts.kind).into(),
        (&facts.target).into(),
        (&facts.reference).into(),
        facts.ord_key.0.as_slice().into(),
        facts.prio.rank().into(),
        true.into(),
        false.into(),
        facts.created_at.into(),
        facts.expires_at.into(),
        now.into(),
        payload.enc_v.into(),
        payload.dek_id.into(),
        payload.nonce.as_slice().into(),
        payload.bytes.as_slice().into(),
        no_pin.0.into(),
        no_pin.1.into(),
        no_pin.2.into(),
        // It may be sent as often as need be.
        None::<i64>.into(),
        reverses.into(),
    ]
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

const HELD: Sql = locking!(
    "
SELECT i.seq FROM saf_lane l JOIN saf_item i ON i.ord_key = l.ord_key
WHERE i.id = $1 AND l.ord_key = $2 AND i.state = 1",
    "FOR UPDATE OF l"
);
