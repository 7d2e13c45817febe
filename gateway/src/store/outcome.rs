//! What the holder of a lease may report: an ending, a pause, a case for a person.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::claim::{self, Claimed};
use super::clock::ms;
use super::db::{Db, Row, Sql, Table, Value, locking, query};
use super::lane::{self, Settling, Taker};
use super::operate;
use super::order::{Job, Order};
use super::writer::Batch;
use super::{Class, HoldReason, Lease, OrdKey, REVERSAL, Sealed, Status, StoreError};

/// How a payment ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Answered and accepted.
    Done,
    /// Declined, given up with nothing sent, or taken back.
    Failed,
}

impl Outcome {
    pub(super) fn state(self) -> i64 {
        match self {
            Self::Done => Status::Success.state(),
            Self::Failed => FAILED,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }
}

/// The end of a payment.
#[derive(Debug, Clone)]
pub struct Ending {
    /// How.
    pub outcome: Outcome,
    /// The response code, or our own word for the cause.
    pub code: String,
    /// What the client is told, for replays.
    pub answer: Option<Sealed>,
}

/// A pause until the next attempt.
#[derive(Debug, Clone)]
pub struct Parking {
    /// When to try again.
    pub retry_in: Duration,
    /// What the attempt proved.
    pub class: Class,
    /// The response code, or our own word for the cause.
    pub code: Option<String>,
    /// Whether it counts: a breaker, a bulkhead or a pause in the way is no attempt.
    pub counts: bool,
    /// The sealed PIN block, at the first pause of a payment whose route stores one.
    pub pin: Option<Sealed>,
}

/// Whether a report was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// It is durable.
    Recorded,
    /// The payment is held for a person instead, since it may have been sent.
    Held,
    /// The lease was lost: only evidence was written.
    Stale,
}

/// What the idempotency key of a payment stands for that was taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyAfter {
    /// Nothing happened under it: the same request may come again.
    Freed,
    /// The failed payment: its client knows of it.
    Kept,
}

/// What became of a payment that was to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parked {
    /// It waits.
    Waiting,
    /// Its attempts are exhausted and nothing was ever sent: failed, `attempts-exhausted`.
    Failed,
    /// It may have been sent, and cannot be sent again: held, `ambiguous`.
    Held,
    /// The lease was lost: only evidence was written.
    Stale,
}

pub(super) struct Complete {
    pub(super) held: Lease,
    pub(super) ending: Ending,
    /// Who takes the next of the lane.
    pub(super) next: Option<Taker>,
}

impl Order for Complete {
    type Answer = (Settled, Option<Claimed>);

    fn key(&self) -> &[u8] {
        &self.held.ord_key.0
    }

    /// Of a payment that nobody forwards nothing was sent.
    fn orphans((_, next): Self::Answer) -> Vec<Box<dyn Job>> {
        next.map(claim::give_back).into_iter().collect()
    }

    async fn run(&self, db: &mut Db<'_>, batch: &mut Batch) -> Result<Self::Answer, StoreError> {
        let mut settled = Self::run_all(std::slice::from_ref(self), db, batch).await?;
        settled.pop().ok_or_else(|| StoreError::unavailable("it was not answered"))
    }

    async fn run_all(
        orders: &[Self],
        db: &mut Db<'_>,
        batch: &mut Batch,
    ) -> Result<Vec<Self::Answer>, StoreError> {
        let mut held = Self::still_held(orders, db).await?;
        let (mut endings, mut lanes) = (Vec::with_capacity(orders.len()), Vec::new());
        let mut settled = Vec::with_capacity(orders.len());
        for order in orders {
            let (lease, ending) = (&order.held, &order.ending);
            // The second report of one ending comes too late for the first.
            if !held.remove(&lease.seq) {
                settled.push(None);
                continue;
            }
            let answer = ending.answer.as_ref();
            let end = [
                lease.seq.into(),
                ending.outcome.state().into(),
                (&ending.code).into(),
                batch.now.into(),
                answer.map(|sealed| sealed.dek_id).into(),
                answer.map(|sealed| sealed.nonce.as_slice()).into(),
                answer.map(|sealed| sealed.bytes.as_slice()).into(),
            ];
            let (token, what) = ((lease.token, lease.leased_at), ending.outcome.name());
            let code = Some(&*ending.code);
            let note = lane::noted(batch, lease.seq, Some(token), what, code, false);
            endings.push((end, note));
            let settling = order.next.clone().map_or(Settling::EndLease, Settling::PassOn);
            lanes.push((lease.ord_key, settling));
            settled.push(Some(Settled::Recorded));
        }
        for row in end(endings, db).await? {
            batch.depth.add(&row.get::<String>("target")?, -1);
            batch.ended.push(row.get("id")?);
        }
        let leases = lane::settle_all(db, batch, lanes).await?;
        let mut next: HashMap<OrdKey, Claimed> = claim::open(leases, db, batch)
            .await?
            .into_iter()
            .map(|claimed| (claimed.lease.ord_key, claimed))
            .collect();
        let mut answers = Vec::with_capacity(orders.len());
        for (order, settled) in orders.iter().zip(settled) {
            let (lease, ending) = (&order.held, &order.ending);
            answers.push(match settled {
                Some(settled) => (settled, next.remove(&lease.ord_key)),
                None => {
                    let (what, code) = (ending.outcome.name(), Some(&*ending.code));
                    (stale(db, batch, lease, what, code).await?, None)
                }
            });
        }
        Ok(answers)
    }
}

impl Complete {
    /// The places of those whose lease still holds; their lanes are locked now.
    async fn still_held(orders: &[Self], db: &mut Db<'_>) -> Result<HashSet<i64>, StoreError> {
        let leases = orders.iter().flat_map(|order| {
            let lease = &order.held;
            [lease.ord_key.0.as_slice().into(), lease.token.into(), lease.seq.into()]
        });
        let rows = HELD.run(leases.collect(), db).await?;
        rows.iter().map(|row| row.get("head_seq")).collect()
    }
}

/// Ends items and writes it down: in one statement where each costs a way to the server and back.
async fn end(
    endings: Vec<([Value; END.columns], [Value; lane::NOTE.columns])>,
    db: &mut Db<'_>,
) -> Result<Vec<Row>, StoreError> {
    match db {
        Db::Sqlite(_) => {
            let (ends, notes): (Vec<_>, Vec<_>) = endings.into_iter().unzip();
            let ended = END.run(ends.into_iter().flatten().collect(), db).await?;
            lane::NOTE.execute(notes.into_iter().flatten().collect(), db).await?;
            Ok(ended)
        }
        Db::Postgres(_) => {
            let both = endings.into_iter().flat_map(|(end, note)| end.into_iter().chain(note));
            END_AND_NOTE.run(both.collect(), db).await
        }
    }
}

pub(super) struct Withdraw {
    pub(super) held: Lease,
    pub(super) code: String,
    pub(super) key: KeyAfter,
}

impl Order for Withdraw {
    type Answer = Settled;

    fn key(&self) -> &[u8] {
        &self.held.ord_key.0
    }

    async fn run(&self, db: &mut Db<'_>, batch: &mut Batch) -> Result<Settled, StoreError> {
        let (lease, what, code) = (&self.held, "withdrawn", Some(&*self.code));
        let Some(item) = lane::leased(db, lease).await? else {
            return stale(db, batch, lease, what, code).await;
        };
        if item.sent_unknown && !item.is_own_mark {
            hold(db, batch, lease, HoldReason::Ambiguous).await?;
            return Ok(Settled::Held);
        }
        lane::end(db, batch, lease.seq, FAILED, &self.code, 0).await?;
        if self.key == KeyAfter::Freed {
            query(FORGET_KEY).bind(lease.seq).execute(db).await?;
            query(FREE_REFERENCE).bind(lease.seq).execute(db).await?;
        }
        recorded(db, batch, lease, what, code).await?;
        lane::settle(db, batch, lease.ord_key, Settling::EndLease).await?;
        Ok(Settled::Recorded)
    }
}

pub(super) struct Release {
    pub(super) held: Lease,
    pub(super) parking: Parking,
}

impl Order for Release {
    type Answer = Parked;

    fn key(&self) -> &[u8] {
        &self.held.ord_key.0
    }

    async fn run(&self, db: &mut Db<'_>, batch: &mut Batch) -> Result<Parked, StoreError> {
        let (lease, parking) = (&self.held, &self.parking);
        let (what, code) = (parking.class.name(), parking.code.as_deref());
        let Some(before) = lane::leased(db, lease).await? else {
            if !lane::late(db, batch, lease, what, code).await? {
                return Ok(Parked::Stale);
            }
            let row =
                query("SELECT state FROM saf_item WHERE seq = $1").bind(lease.seq).one(db).await?;
            return Ok(match row.value::<i64>()? {
                0 => Parked::Waiting,
                1 => Parked::Held,
                FAILED => Parked::Failed,
                _ => Parked::Stale,
            });
        };
        let attempts = i64::from(parking.counts);
        // What this lease marked, and did not send after all, is as it was.
        let was_sent = before.sent_unknown && !before.is_own_mark;
        let sent = was_sent || parking.class == Class::SentUnknown;
        let pin = parking.pin.as_ref();
        query(WAIT)
            .bind(lease.seq)
            .bind(attempts)
            .bind(sent)
            .bind(code)
            .bind(batch.now)
            .bind(pin.map(|sealed| sealed.dek_id))
            .bind(pin.map(|sealed| sealed.nonce.as_slice()))
            .bind(pin.map(|sealed| sealed.bytes.as_slice()))
            .execute(db)
            .await?;
        recorded(db, batch, lease, what, code).await?;
        // A reversal is repeated until it is answered.
        let exhausted = before.kind != REVERSAL && before.attempts + attempts >= batch.attempts_max;
        // Read again: the PIN block that came with the report may be what was missing.
        let workable = lane::leased(db, lease).await?.is_some_and(|item| item.workable);
        if workable && !exhausted {
            lane::park(db, batch, lease.ord_key, batch.now + ms(parking.retry_in)).await?;
            return Ok(Parked::Waiting);
        }
        if sent {
            hold(db, batch, lease, HoldReason::Ambiguous).await?;
            return Ok(Parked::Held);
        }
        let why = if exhausted { "attempts-exhausted" } else { NOT_STORABLE };
        if exhausted {
            operate::keep_dead_letter(db, lease.seq).await?;
        }
        lane::end(db, batch, lease.seq, FAILED, why, 0).await?;
        recorded(db, batch, lease, "failed", Some(why)).await?;
        lane::settle(db, batch, lease.ord_key, Settling::EndLease).await?;
        Ok(Parked::Failed)
    }
}

pub(super) struct Hold {
    pub(super) held: Lease,
    pub(super) reason: HoldReason,
}

impl Order for Hold {
    type Answer = Settled;

    fn key(&self) -> &[u8] {
        &self.held.ord_key.0
    }

    async fn run(&self, db: &mut Db<'_>, batch: &mut Batch) -> Result<Settled, StoreError> {
        if lane::leased(db, &self.held).await?.is_none() {
            return stale(db, batch, &self.held, "held", Some(self.reason.name())).await;
        }
        hold(db, batch, &self.held, self.reason).await?;
        Ok(Settled::Recorded)
    }
}

async fn hold(
    db: &mut Db<'_>,
    batch: &mut Batch,
    lease: &Lease,
    reason: HoldReason,
) -> Result<(), StoreError> {
    lane::hold(db, batch, lease.seq, reason).await?;
    recorded(db, batch, lease, "held", Some(reason.name())).await?;
    lane::settle(db, batch, lease.ord_key, Settling::EndLease).await
}

async fn recorded(
    db: &mut Db<'_>,
    batch: &Batch,
    lease: &Lease,
    what: &str,
    code: Option<&str>,
) -> Result<(), StoreError> {
    let held = Some((lease.token, lease.leased_at));
    lane::note(db, batch, lease.seq, held, what, code, false).await
}

async fn stale(
    db: &mut Db<'_>,
    batch: &Batch,
    lease: &Lease,
    what: &str,
    code: Option<&str>,
) -> Result<Settled, StoreError> {
    let repeated = lane::late(db, batch, lease, what, code).await?;
    Ok(if repeated { Settled::Recorded } else { Settled::Stale })
}

pub(super) const FAILED: i64 = Status::Failed.state();

/// Nothing was sent, and it may not wait.
pub(super) const NOT_STORABLE: &str = "not-storable";

const FORGET_KEY: &str =
    "DELETE FROM idem_key WHERE item_id = (SELECT id FROM saf_item WHERE seq = $1)";

/// The same request makes another payment, under this reference.
const FREE_REFERENCE: &str =
    "UPDATE saf_item SET reference = reference || ':' || seq WHERE seq = $1";

const HELD: Table = Table {
    before: "SELECT l.head_seq FROM",
    columns: 3,
    after: locking!(
        "held JOIN saf_lane l ON l.ord_key = held.column1 AND l.lease_token = held.column2
    AND l.head_seq = held.column3
JOIN saf_item i ON i.seq = l.head_seq
WHERE l.leased AND i.state = 0",
        "FOR UPDATE OF l"
    ),
};

pub(super) const END: Table = Table {
    before: "
UPDATE saf_item
SET state = ending.column2, hold_reason = NULL, last_code = ending.column3, attempts = attempts + 1,
    dek_id = NULL, nonce = NULL, ct = NULL, pin_dek_id = NULL, pin_nonce = NULL, pin_ct = NULL,
    updated_at = ending.column4, terminal_at = ending.column4,
    res_dek_id = ending.column5, res_nonce = ending.column6, res_ct = ending.column7
FROM",
    columns: 7,
    after: Sql::Both(
        "ending WHERE saf_item.seq = ending.column1 AND saf_item.state < 2
RETURNING saf_item.target, saf_item.id",
    ),
};

/// The columns of [`END`], then those of [`lane::NOTE`].
const END_AND_NOTE: Table = Table {
    before: "WITH ending AS MATERIALIZED (SELECT * FROM",
    columns: END.columns + lane::NOTE.columns,
    after: Sql::Both(
        "AS given), ended AS (
UPDATE saf_item
SET state = ending.column2, hold_reason = NULL, last_code = ending.column3,
    attempts = attempts + 1,
    dek_id = NULL, nonce = NULL, ct = NULL, pin_dek_id = NULL, pin_nonce = NULL, pin_ct = NULL,
    updated_at = ending.column4, terminal_at = ending.column4,
    res_dek_id = ending.column5, res_nonce = ending.column6, res_ct = ending.column7
FROM ending WHERE saf_item.seq = ending.column1 AND saf_item.state < 2
RETURNING saf_item.target, saf_item.id), noted AS (
INSERT INTO saf_attempt (item_seq, n, lease_token, started_at, ended_at, what, code, late)
SELECT new.column8,
       1 + coalesce((SELECT max(n) FROM saf_attempt WHERE item_seq = new.column8), 0),
       new.column9, new.column10, new.column11, new.column12, new.column13, new.column14
FROM ending new JOIN saf_item i ON i.seq = new.column8
WHERE coalesce((SELECT max(n) FROM saf_attempt WHERE item_seq = new.column8), 0) < 250)
SELECT target, id FROM ended",
    ),
};

const WAIT: &str = "
UPDATE saf_item
SET queued = TRUE, attempts = attempts + $2, sent_unknown = $3, last_code = $4, updated_at = $5,
    pin_dek_id = coalesce($6, pin_dek_id), pin_nonce = coalesce($7, pin_nonce),
    pin_ct = coalesce($8, pin_ct)
WHERE seq = $1";
