//! What time does to payments: leases run out, lives end.

use std::collections::HashMap;

use super::db::{Db, Row, Sql, locking, query};
use super::lane::{self, Settling};
use super::order::Order;
use super::outcome::{FAILED, NOT_STORABLE};
use super::writer::Batch;
use super::{HoldReason, OrdKey, REVERSAL, Status, StoreError};

/// What a rescue found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rescued {
    /// Payments that wait again. They count as sent, unless they are marked before and were not.
    pub freed: u32,
    /// Payments left to a person: nothing can be done from what is stored, or poisonous.
    pub held: u32,
    /// Payments of which nothing was sent and that may not wait: failed.
    pub failed: u32,
}

impl Rescued {
    /// Whether there was anything.
    #[must_use]
    pub fn any(self) -> bool {
        self.freed + self.held + self.failed > 0
    }
}

/// What an expiry found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Expired {
    /// Payments of which nothing was ever sent: expired.
    pub expired: u32,
    /// Payments that may have been sent: held, `ambiguous`.
    pub held: u32,
}

/// Frees up to [`BATCH`] leases that have run out, or all of an earlier boot.
pub(super) struct Rescue {
    pub(super) all: bool,
    /// The database is an old copy: nothing in it proves that nothing was sent.
    pub(super) in_doubt: bool,
}

impl Order for Rescue {
    type Answer = Rescued;

    async fn run(&self, db: &mut Db<'_>, batch: &mut Batch) -> Result<Rescued, StoreError> {
        let until = if self.all { i64::MAX } else { batch.now };
        if self.all {
            // The clock may have been set back since: no rest is longer than this.
            query(WAKE).bind(batch.now + REST_MS_MAX).execute(db).await?;
        }
        let lost = query(LOST).bind(until).bind(BATCH).all(db).await?;
        let heads = lost.iter().map(|row| row.get("head_seq")).collect::<Result<Vec<i64>, _>>()?;
        let mut items = by_seq(query(LOST_ITEMS).bind(heads).all(db).await?)?;
        let mut rescued = Rescued::default();
        for row in &lost {
            let seq: i64 = row.get("head_seq")?;
            let ord_key = OrdKey(row.bytes("ord_key")?);
            let lease = Some((row.get("lease_token")?, row.get("leased_at")?));
            let Some(row) = items.remove(&seq) else {
                lane::settle(db, batch, ord_key, Settling::EndLease).await?;
                rescued.freed += 1;
                continue;
            };
            let was_sent: bool = row.get("was_sent")?;
            let is_workable =
                row.get::<bool>("is_kept")? && (was_sent || !row.get::<bool>("lacks_pin")?);
            let abandoned = row.get::<i64>("abandoned")? + 1;
            let tries = row.get::<i64>("attempts")? + abandoned;
            query(ABANDON).bind(seq).bind(batch.now).execute(db).await?;
            lane::note(db, batch, seq, lease, "lease-lost", None, false).await?;
            if !is_workable && !was_sent && !self.in_doubt {
                lane::end(db, batch, seq, FAILED, NOT_STORABLE, 0).await?;
                lane::note(db, batch, seq, None, "failed", Some(NOT_STORABLE), false).await?;
                lane::settle(db, batch, ord_key, Settling::EndLease).await?;
                rescued.failed += 1;
                continue;
            }
            let reason = if !is_workable {
                Some(HoldReason::Ambiguous)
            } else if abandoned >= ABANDONED_MAX {
                Some(HoldReason::Poison)
            } else {
                None
            };
            if let Some(reason) = reason {
                lane::hold(db, batch, seq, reason).await?;
                lane::note(db, batch, seq, None, "held", Some(reason.name()), false).await?;
                lane::settle(db, batch, ord_key, Settling::EndLease).await?;
                rescued.held += 1;
            } else {
                lane::park(db, batch, ord_key, batch.now + back_off_ms(tries)?).await?;
                rescued.freed += 1;
            }
        }
        Ok(rescued)
    }
}

/// Ends what is past its time.
pub(super) struct Expire;

impl Order for Expire {
    type Answer = Expired;

    async fn run(&self, db: &mut Db<'_>, batch: &mut Batch) -> Result<Expired, StoreError> {
        expire_due(db, batch).await
    }
}

/// Expires up to [`BATCH`] open payments that nobody holds.
pub(super) async fn expire_due(db: &mut Db<'_>, batch: &mut Batch) -> Result<Expired, StoreError> {
    let due = query(DUE).bind(batch.now).bind(BATCH).all(db).await?;
    let mut expired = Expired::default();
    if due.is_empty() {
        return Ok(expired);
    }
    let seqs = due.iter().map(|row| row.get("seq")).collect::<Result<Vec<i64>, _>>()?;
    for row in query(DUE_ITEMS).bind(seqs).all(db).await? {
        let seq: i64 = row.get("seq")?;
        // A reversal that was never taken says that the payment may still stand.
        if row.get::<bool>("sent_unknown")? || row.get::<String>("kind")? == REVERSAL {
            let reason = HoldReason::Ambiguous;
            lane::hold(db, batch, seq, reason).await?;
            lane::note(db, batch, seq, None, "held", Some(reason.name()), false).await?;
            expired.held += 1;
        } else {
            lane::end(db, batch, seq, EXPIRED, "expired", 0).await?;
            lane::note(db, batch, seq, None, "expired", None, false).await?;
            expired.expired += 1;
        }
        let ord_key = OrdKey(row.bytes("ord_key")?);
        lane::settle(db, batch, ord_key, Settling::KeepLease).await?;
    }
    Ok(expired)
}

fn by_seq(rows: Vec<Row>) -> Result<HashMap<i64, Row>, StoreError> {
    rows.into_iter().map(|row| Ok((row.get("seq")?, row))).collect()
}

/// 1, 2, 4, 8, 16 s, then 30, 60, 120 and at most 300 s, each 20 % up or down.
fn back_off_ms(tries: i64) -> Result<i64, StoreError> {
    let step = usize::try_from(tries - 1).unwrap_or(0).min(STEPS_S.len() - 1);
    let random =
        getrandom::u64().map_err(|_| StoreError::unavailable("the system gives no randomness"))?;
    Ok(STEPS_S[step] * (800 + (random % 401) as i64))
}

const STEPS_S: [i64; 9] = [1, 2, 4, 8, 16, 30, 60, 120, 300];

/// Rows that one order works through: a transaction must not keep the others waiting.
const BATCH: i64 = 256;

/// A payment that has taken this many senders with it takes no sixth.
const ABANDONED_MAX: i64 = 5;

const EXPIRED: i64 = Status::Expired.state();

/// Locks the lanes. What is in them is read by a statement of its own: on PostgreSQL this one sees the
/// items as they were before it waited for the lock.
const LOST: Sql = locking!(
    "
SELECT ord_key, head_seq, lease_token, leased_at FROM saf_lane
WHERE leased AND lease_until <= $1
ORDER BY lease_until LIMIT $2",
    "FOR UPDATE SKIP LOCKED"
);

macro_rules! of_seqs {
    ($columns:literal) => {
        Sql::Each {
            sqlite: concat!(
                "SELECT seq, ",
                $columns,
                " FROM saf_item
WHERE seq IN (SELECT value FROM json_each($1)) AND state = 0 ORDER BY ord_key, seq"
            ),
            postgres: concat!(
                "SELECT seq, ",
                $columns,
                " FROM saf_item WHERE seq = ANY ($1) AND state = 0 ORDER BY ord_key, seq"
            ),
        }
    };
}

const LOST_ITEMS: Sql = of_seqs!(
    "attempts, abandoned, sent_unknown OR send_mark IS NULL AS was_sent, ct IS NOT NULL AS is_kept,
       needs_pin AND pin_ct IS NULL AS lacks_pin"
);

/// An hour: the longest `queue.wait_ms_max`.
const REST_MS_MAX: i64 = 3_600_000;

const WAKE: &str = "UPDATE saf_lane SET next_at = $1 WHERE next_at > $1";

const ABANDON: &str = "
UPDATE saf_item
SET sent_unknown = (sent_unknown OR send_mark IS NULL), abandoned = abandoned + 1, queued = TRUE, updated_at = $2
WHERE seq = $1";

/// Locks the lanes, likewise.
const DUE: Sql = locking!(
    "
SELECT i.seq FROM saf_item i JOIN saf_lane l ON l.ord_key = i.ord_key
WHERE i.state = 0 AND i.expires_at <= $1 AND NOT (l.leased AND l.head_seq = i.seq)
ORDER BY i.expires_at LIMIT $2",
    "FOR UPDATE OF l SKIP LOCKED"
);

const DUE_ITEMS: Sql = of_seqs!("ord_key, kind, sent_unknown");
