//! The moves that every transition is made of: check the lease, end or hold the item, settle the
//! lane, write down what happened.

use std::collections::HashMap;
use std::time::Duration;

use uuid::Uuid;

use super::clock::ms;
use super::db::{Db, Row, Sql, Table, Value, locking, query};
use super::row::new_token;
use super::writer::Batch;
use super::{Alarm, HoldReason, Lease, OrdKey, StoreError};

/// What a sender needs of an item `i`. It has `ended` when its row says open, and its answer or its
/// history that it was brought to an end before, and no operator has had it retried since.
macro_rules! item_columns {
    () => {
        "
SELECT i.seq, i.id, i.tenant, i.kind, i.target, i.reference, i.ord_key, i.prio, i.created_at,
       i.expires_at, i.needs_pin, i.sent_unknown, i.attempts, i.enc_v, i.dek_id, i.nonce, i.ct,
       i.pin_dek_id, i.pin_nonce, i.pin_ct, i.send_mark, i.updated_at,
       i.res_ct IS NOT NULL
       OR EXISTS (SELECT 1 FROM saf_attempt a WHERE a.item_seq = i.seq AND NOT a.late
                  AND a.what IN
                  ('done', 'failed', 'withdrawn', 'cancelled', 'expired', 'reversed')
                  AND NOT EXISTS (SELECT 1 FROM saf_attempt o WHERE o.item_seq = i.seq
                                  AND o.n > a.n AND NOT o.late AND o.what = 'retried')) AS ended
"
    };
}
pub(super) use item_columns;

/// Whether what is stored of an item `i` is enough to go on with it.
macro_rules! workable {
    () => {
        "
       i.ct IS NOT NULL AND (NOT i.needs_pin OR i.pin_ct IS NOT NULL OR i.sent_unknown) AS workable"
    };
}
pub(super) use workable;

/// The item's row as a transition needs it.
pub(super) struct Item {
    pub(super) id: Uuid,
    pub(super) kind: String,
    pub(super) sent_unknown: bool,
    /// Whether the lease that holds it was the first under which a byte may have left.
    pub(super) is_own_mark: bool,
    pub(super) attempts: i64,
    /// Whether what is stored is enough to go on with it.
    pub(super) workable: bool,
}

/// The item, if this lease still holds it. A lease that has run out holds until it is rescued.
pub(super) async fn leased(db: &mut Db<'_>, lease: &Lease) -> Result<Option<Item>, StoreError> {
    let row = query(LEASED)
        .bind(lease.ord_key.0.as_slice())
        .bind(lease.token)
        .bind(lease.seq)
        .optional(db)
        .await?;
    row.map(|row| {
        Ok(Item {
            id: row.get("id")?,
            kind: row.get("kind")?,
            sent_unknown: row.get("sent_unknown")?,
            is_own_mark: row.get::<Option<i64>>("send_mark")? == Some(lease.token),
            attempts: row.get("attempts")?,
            workable: row.get("workable")?,
        })
    })
    .transpose()
}

/// Makes an open item terminal: nothing of its payload is left.
pub(super) async fn end(
    db: &mut Db<'_>,
    batch: &mut Batch,
    seq: i64,
    state: i64,
    code: &str,
    attempts: i64,
) -> Result<(), StoreError> {
    let ended = query(END)
        .bind(seq)
        .bind(state)
        .bind(code)
        .bind(attempts)
        .bind(batch.now)
        .optional(db)
        .await?;
    leave(batch, ended)
}

/// Leaves an open item to a person. Its payload stays, its PIN block does not.
pub(super) async fn hold(
    db: &mut Db<'_>,
    batch: &mut Batch,
    seq: i64,
    reason: HoldReason,
) -> Result<(), StoreError> {
    let held = query(HOLD).bind(seq).bind(reason.name()).bind(batch.now).optional(db).await?;
    if let (Some(row), HoldReason::Tampered | HoldReason::RolledBack) = (&held, reason) {
        batch.alarms.push(Alarm { id: row.get("id")?, target: row.get("target")?, reason });
    }
    leave(batch, held)
}

/// Counts an item that is no longer open.
fn leave(batch: &mut Batch, left: Option<Row>) -> Result<(), StoreError> {
    if let Some(row) = left {
        batch.depth.add(&row.get::<String>("target")?, -1);
    }
    Ok(())
}

/// Ends the lease of a lane whose head stays, until `next_at`.
pub(super) async fn park(
    db: &mut Db<'_>,
    batch: &mut Batch,
    ord_key: OrdKey,
    next_at: i64,
) -> Result<(), StoreError> {
    query(PARK).bind(ord_key.0.as_slice()).bind(next_at).execute(db).await?;
    // A lane that rests is found when a forwarder looks by itself.
    batch.wake |= next_at <= batch.now;
    Ok(())
}

/// What becomes of a lane's lease when something has left the lane.
#[derive(Debug, Clone)]
pub(super) enum Settling {
    /// The leased item has left the lane.
    EndLease,
    /// Items behind the head have left it.
    KeepLease,
    /// The leased item has left the lane, and the same sender takes the next.
    PassOn(Taker),
}

/// Who takes a lease, and for how long.
#[derive(Debug, Clone)]
pub struct Taker {
    /// Who, for the record.
    pub owner: String,
    /// How long it is kept. Every attempt must end well before.
    pub lease: Duration,
}

/// Points a lane at its oldest open item, blocked when that one is held; deletes an empty lane.
pub(super) async fn settle(
    db: &mut Db<'_>,
    batch: &mut Batch,
    ord_key: OrdKey,
    settling: Settling,
) -> Result<(), StoreError> {
    settle_all(db, batch, vec![(ord_key, settling)]).await.map(drop)
}

/// The same for several lanes, each once, in the order of their keys. Gives the leases that were
/// passed on, with their items' rows.
pub(super) async fn settle_all(
    db: &mut Db<'_>,
    batch: &mut Batch,
    lanes: Vec<(OrdKey, Settling)>,
) -> Result<Vec<(Lease, Row)>, StoreError> {
    let keys = lanes.iter().map(|(ord_key, _)| ord_key.0.as_slice().into()).collect();
    let mut heads = HashMap::with_capacity(lanes.len());
    for row in HEADS.run(keys, db).await? {
        heads.insert(row.bytes::<16>("ord_key")?, row);
    }
    let (mut kept, mut free, mut empty, mut leases) = (vec![], vec![], vec![], vec![]);
    for (ord_key, settling) in lanes {
        let key = Value::from(ord_key.0.as_slice());
        let Some(head) = heads.remove(&ord_key.0) else {
            empty.push(key);
            continue;
        };
        let seq: i64 = head.get("seq")?;
        let hold_reason: Option<String> = head.get("hold_reason")?;
        let is_due = hold_reason.is_none()
            && head.get::<i64>("expires_at")? > batch.now
            && !batch.depth.is_paused(&head.get::<String>("target")?);
        batch.wake |= hold_reason.is_none() && !matches!(settling, Settling::PassOn(_));
        let pointed = [key, seq.into(), head.get::<i64>("lane_prio")?.into(), hold_reason.into()];
        let taker = match settling {
            Settling::KeepLease => {
                kept.extend(pointed);
                continue;
            }
            Settling::PassOn(taker) if is_due => Some(taker),
            Settling::EndLease | Settling::PassOn(_) => None,
        };
        let token = if taker.is_some() { Some(new_token()?) } else { None };
        free.extend(pointed);
        free.extend([
            taker.is_some().into(),
            taker.as_ref().map(|taker| taker.owner.as_str()).into(),
            token.into(),
            taker.as_ref().map(|_| batch.now).into(),
            taker.as_ref().map(|taker| batch.now + ms(taker.lease)).into(),
        ]);
        if let Some(token) = token {
            leases.push((Lease { seq, ord_key, token, leased_at: batch.now }, head));
        }
    }
    POINT.execute(kept, db).await?;
    FREE.execute(free, db).await?;
    DELETE.execute(empty, db).await?;
    Ok(leases)
}

/// One line of an item's history. An item keeps its first 250.
pub(super) async fn note(
    db: &mut Db<'_>,
    batch: &Batch,
    seq: i64,
    lease: Option<(i64, i64)>,
    what: &str,
    code: Option<&str>,
    late: bool,
) -> Result<(), StoreError> {
    NOTE.execute(noted(batch, seq, lease, what, code, late).to_vec(), db).await.map(drop)
}

/// The columns of [`NOTE`].
pub(super) fn noted(
    batch: &Batch,
    seq: i64,
    lease: Option<(i64, i64)>,
    what: &str,
    code: Option<&str>,
    late: bool,
) -> [Value; 7] {
    [
        seq.into(),
        lease.map(|(token, _)| token).into(),
        lease.map(|(_, since)| since).into(),
        batch.now.into(),
        what.into(),
        code.into(),
        late.into(),
    ]
}

/// What to do when a lease holds nothing any more: `true` when this very report was recorded
/// before, and its answer lost; otherwise it is kept as evidence.
pub(super) async fn late(
    db: &mut Db<'_>,
    batch: &Batch,
    lease: &Lease,
    what: &str,
    code: Option<&str>,
) -> Result<bool, StoreError> {
    let reported =
        query(REPORTED).bind(lease.seq).bind(lease.token).bind(what).optional(db).await?;
    if reported.is_none() {
        metrics::counter!(crate::telemetry::metrics::QUEUE_STALE).increment(1);
        let held = Some((lease.token, lease.leased_at));
        note(db, batch, lease.seq, held, what, code, true).await?;
    }
    let was_late = reported.as_ref().map(Row::value::<bool>).transpose()?;
    Ok(was_late == Some(false))
}

const LEASED: Sql = locking!(
    concat!(
        "
SELECT i.id, i.kind, i.sent_unknown, i.send_mark, i.attempts,",
        workable!(),
        "
FROM saf_lane l JOIN saf_item i ON i.seq = l.head_seq
WHERE l.ord_key = $1 AND l.leased AND l.lease_token = $2 AND l.head_seq = $3 AND i.state = 0"
    ),
    "FOR UPDATE OF l"
);

const END: &str = "
UPDATE saf_item
SET state = $2, hold_reason = NULL, last_code = $3, attempts = attempts + $4,
    dek_id = NULL, nonce = NULL, ct = NULL, pin_dek_id = NULL, pin_nonce = NULL, pin_ct = NULL,
    updated_at = $5, terminal_at = $5
WHERE seq = $1 AND state = 0
RETURNING target";

const HOLD: &str = "
UPDATE saf_item
SET state = 1, hold_reason = $2, queued = TRUE, updated_at = $3,
    sent_unknown = (sent_unknown OR $2 IN ('ambiguous', 'not-accepted')),
    pin_dek_id = NULL, pin_nonce = NULL, pin_ct = NULL
WHERE seq = $1 AND state = 0
RETURNING target, id";

const PARK: &str = "
UPDATE saf_lane
SET leased = FALSE, lease_owner = NULL, lease_token = NULL, leased_at = NULL, lease_until = NULL,
    next_at = $2
WHERE ord_key = $1";

const HEADS: Table = Table {
    before: concat!(
        item_columns!(),
        ", i.hold_reason,
       (SELECT min(prio) FROM saf_item WHERE ord_key = i.ord_key AND state < 2) AS lane_prio
FROM"
    ),
    columns: 1,
    after: Sql::Both(
        "lane
JOIN saf_item i ON i.seq = (SELECT seq FROM saf_item WHERE ord_key = lane.column1 AND state < 2
                            ORDER BY seq LIMIT 1)",
    ),
};

/// A new head has no back-off.
const POINT: Table = Table {
    before: "
UPDATE saf_lane
SET next_at = CASE WHEN head_seq = head.column2 THEN next_at ELSE 0 END,
    head_seq = head.column2, head_prio = head.column3, blocked = head.column4
FROM",
    columns: 4,
    after: Sql::Both("head WHERE saf_lane.ord_key = head.column1"),
};

const FREE: Table = Table {
    before: "
UPDATE saf_lane
SET next_at = 0, head_seq = head.column2, head_prio = head.column3, blocked = head.column4,
    leased = head.column5, lease_owner = head.column6, lease_token = head.column7,
    leased_at = head.column8, lease_until = head.column9
FROM",
    columns: 9,
    after: Sql::Both("head WHERE saf_lane.ord_key = head.column1"),
};

const DELETE: Table = Table {
    before: "DELETE FROM saf_lane WHERE ord_key IN (SELECT column1 FROM",
    columns: 1,
    after: Sql::Both("empty)"),
};

pub(super) const NOTE: Table = Table {
    before: "
INSERT INTO saf_attempt (item_seq, n, lease_token, started_at, ended_at, what, code, late)
SELECT new.column1, 1 + coalesce((SELECT max(n) FROM saf_attempt WHERE item_seq = new.column1), 0),
       new.column2, new.column3, new.column4, new.column5, new.column6, new.column7
FROM",
    columns: 7,
    after: Sql::Both(
        "new JOIN saf_item i ON i.seq = new.column1
WHERE coalesce((SELECT max(n) FROM saf_attempt WHERE item_seq = new.column1), 0) < 250",
    ),
};

/// Whether the report was late then, too.
const REPORTED: &str = "
SELECT late FROM saf_attempt WHERE item_seq = $1 AND lease_token = $2 AND what = $3 LIMIT 1";
