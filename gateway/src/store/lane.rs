//! The moves that every transition is made of: check the lease, end or hold the item, settle the
//! lane, write down what happened.

use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::writer::Batch;
use super::{HoldReason, Lease, OrdKey, StoreError};

/// The item's row as a transition needs it.
pub(super) struct Item {
    pub(super) sent_unknown: bool,
    pub(super) attempts: i64,
    /// Whether what is stored is enough to send it.
    pub(super) sendable: bool,
}

/// The item, if this lease still holds it. A lease that has run out holds until it is rescued.
pub(super) async fn leased(
    db: &mut SqliteConnection,
    lease: &Lease,
) -> Result<Option<Item>, StoreError> {
    let row = sqlx::query(LEASED)
        .bind(lease.ord_key.0.as_slice())
        .bind(lease.token)
        .bind(lease.seq)
        .fetch_optional(db)
        .await?;
    row.map(|row| {
        Ok(Item {
            sent_unknown: row.try_get("sent_unknown")?,
            attempts: row.try_get("attempts")?,
            sendable: row.try_get("sendable")?,
        })
    })
    .transpose()
}

/// Makes an open item terminal: nothing of its payload is left.
pub(super) async fn end(
    db: &mut SqliteConnection,
    batch: &mut Batch,
    seq: i64,
    state: i64,
    code: &str,
    attempts: i64,
) -> Result<(), StoreError> {
    let ended = sqlx::query(END)
        .bind(seq)
        .bind(state)
        .bind(code)
        .bind(attempts)
        .bind(batch.now)
        .fetch_optional(db)
        .await?;
    leave(batch, ended)
}

/// Leaves an open item to a person. Its payload stays, its PIN block does not.
pub(super) async fn hold(
    db: &mut SqliteConnection,
    batch: &mut Batch,
    seq: i64,
    reason: HoldReason,
) -> Result<(), StoreError> {
    let held =
        sqlx::query(HOLD).bind(seq).bind(reason.name()).bind(batch.now).fetch_optional(db).await?;
    leave(batch, held)
}

/// Counts an item that is no longer open.
fn leave(batch: &mut Batch, left: Option<SqliteRow>) -> Result<(), StoreError> {
    if let Some(row) = left {
        batch.depth.add(row.try_get("target")?, -1);
    }
    Ok(())
}

/// Ends the lease of a lane whose head stays, until `next_at`.
pub(super) async fn park(
    db: &mut SqliteConnection,
    batch: &mut Batch,
    ord_key: OrdKey,
    next_at: i64,
) -> Result<(), StoreError> {
    sqlx::query(PARK).bind(ord_key.0.as_slice()).bind(next_at).execute(db).await?;
    batch.wake = true;
    Ok(())
}

/// Whether settling a lane ends its lease too.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Settling {
    /// The leased item has left the lane.
    EndLease,
    /// Items behind the head have left it.
    KeepLease,
}

/// Points the lane at its oldest open item, blocked when that one is held; deletes an empty lane.
pub(super) async fn settle(
    db: &mut SqliteConnection,
    batch: &mut Batch,
    ord_key: OrdKey,
    settling: Settling,
) -> Result<(), StoreError> {
    let head = sqlx::query(HEAD).bind(ord_key.0.as_slice()).fetch_optional(&mut *db).await?;
    let Some(head) = head else {
        sqlx::query("DELETE FROM saf_lane WHERE ord_key = ?1")
            .bind(ord_key.0.as_slice())
            .execute(db)
            .await?;
        return Ok(());
    };
    if settling == Settling::EndLease {
        sqlx::query(PARK).bind(ord_key.0.as_slice()).bind(0).execute(&mut *db).await?;
    }
    sqlx::query(SETTLE)
        .bind(ord_key.0.as_slice())
        .bind(head.try_get::<i64, _>("seq")?)
        .bind(head.try_get::<i64, _>("prio")?)
        .bind(head.try_get::<Option<String>, _>("hold_reason")?)
        .execute(db)
        .await?;
    batch.wake = true;
    Ok(())
}

/// One line of an item's history. An item keeps its first 250.
pub(super) async fn note(
    db: &mut SqliteConnection,
    batch: &Batch,
    seq: i64,
    lease: Option<(i64, i64)>,
    what: &str,
    code: Option<&str>,
    late: bool,
) -> Result<(), StoreError> {
    sqlx::query(NOTE)
        .bind(seq)
        .bind(lease.map(|(token, _)| token))
        .bind(lease.map(|(_, since)| since))
        .bind(batch.now)
        .bind(what)
        .bind(code)
        .bind(late)
        .execute(db)
        .await?;
    Ok(())
}

/// What to do when a lease holds nothing any more: `true` when this very report was recorded
/// before, and its answer lost; otherwise it is kept as evidence.
pub(super) async fn late(
    db: &mut SqliteConnection,
    batch: &Batch,
    lease: &Lease,
    what: &str,
    code: Option<&str>,
) -> Result<bool, StoreError> {
    let reported: Option<bool> = sqlx::query_scalar(REPORTED)
        .bind(lease.seq)
        .bind(lease.token)
        .bind(what)
        .fetch_optional(&mut *db)
        .await?;
    if reported.is_none() {
        let held = Some((lease.token, lease.leased_at));
        note(db, batch, lease.seq, held, what, code, true).await?;
    }
    Ok(reported == Some(false))
}

const LEASED: &str = "
SELECT i.sent_unknown, i.attempts,
       i.ct IS NOT NULL AND (i.needs_pin = 0 OR i.pin_ct IS NOT NULL) AS sendable
FROM saf_lane l JOIN saf_item i ON i.seq = l.head_seq
WHERE l.ord_key = ?1 AND l.leased = 1 AND l.lease_token = ?2 AND l.head_seq = ?3 AND i.state = 0";

const END: &str = "
UPDATE saf_item
SET state = ?2, hold_reason = NULL, last_code = ?3, attempts = attempts + ?4,
    dek_id = NULL, nonce = NULL, ct = NULL, pin_dek_id = NULL, pin_nonce = NULL, pin_ct = NULL,
    updated_at = ?5, terminal_at = ?5
WHERE seq = ?1 AND state = 0
RETURNING target";

const HOLD: &str = "
UPDATE saf_item
SET state = 1, hold_reason = ?2, queued = 1, updated_at = ?3,
    pin_dek_id = NULL, pin_nonce = NULL, pin_ct = NULL
WHERE seq = ?1 AND state = 0
RETURNING target";

const PARK: &str = "
UPDATE saf_lane
SET leased = 0, lease_owner = NULL, lease_token = NULL, leased_at = NULL, lease_until = NULL,
    next_at = ?2
WHERE ord_key = ?1";

const HEAD: &str = "
SELECT seq, hold_reason,
       (SELECT min(prio) FROM saf_item WHERE ord_key = ?1 AND state < 2) AS prio
FROM saf_item WHERE ord_key = ?1 AND state < 2 ORDER BY seq LIMIT 1";

const SETTLE: &str = "
UPDATE saf_lane
SET next_at = CASE WHEN head_seq = ?2 THEN next_at ELSE 0 END,
    head_seq = ?2, head_prio = ?3, blocked = ?4
WHERE ord_key = ?1";

const NOTE: &str = "
INSERT INTO saf_attempt (item_seq, n, lease_token, started_at, ended_at, what, code, late)
SELECT ?1, 1 + coalesce(max(n), 0), ?2, ?3, ?4, ?5, ?6, ?7
FROM saf_attempt WHERE item_seq = ?1
HAVING coalesce(max(n), 0) < 250 AND EXISTS (SELECT 1 FROM saf_item WHERE seq = ?1)";

/// Whether the report was late then, too.
const REPORTED: &str = "
SELECT late FROM saf_attempt WHERE item_seq = ?1 AND lease_token = ?2 AND what = ?3 LIMIT 1";
