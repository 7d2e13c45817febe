//! The first transaction of a payment: is its key known, is there room, is its lane free.

use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{Row, SqlitePool};
use std::time::Duration;

use super::clock::ms;
use super::outcome::{KeyAfter, Withdraw};
use super::row::{bytes, new_token};
use super::writer::{self, Batch, Job, Order};
use super::{
    FINGERPRINT_BYTES, Idempotency, ItemFacts, Lease, NewPayment, Sealed, Status, StoreError,
};

/// What became of a new payment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Begun {
    /// It is durable and first in its lane: forward it now, under this lease.
    Forward(Lease),
    /// It is durable and waits behind others of its lane: answer "pending".
    Queued {
        /// Its place in the lane.
        seq: i64,
    },
    /// The key stands for this payment, which is finished or waits: answer again.
    Replay {
        /// The payment of that key.
        facts: Box<ItemFacts>,
        /// Its status now.
        status: Status,
        /// The final answer, once there is one. Bound to `facts`.
        answer: Option<Sealed>,
    },
    /// The first request with this key is still being answered.
    Running {
        /// When to ask again.
        retry_after: Duration,
    },
    /// The key came with another request before. Nothing was done.
    KeyReused,
    /// As many payments to this target are open as may be. Nothing was stored.
    QueueFull,
    /// It would have to wait behind others of its lane, and it may not wait. Nothing was stored.
    Busy,
}

pub(super) struct Begin(pub(super) NewPayment);

impl Order for Begin {
    type Answer = Begun;
    const FOR_CALLER: bool = true;

    /// Of a payment that nobody forwards nothing was sent: its lease must not run out as if it was.
    fn orphans(begun: Begun) -> Vec<Box<dyn Job>> {
        match begun {
            Begun::Forward(held) => {
                let (code, key) = ("not-forwarded".into(), KeyAfter::Freed);
                vec![writer::unasked(Withdraw { held, code, key })]
            }
            Begun::Queued { .. }
            | Begun::Replay { .. }
            | Begun::Running { .. }
            | Begun::KeyReused
            | Begun::QueueFull
            | Begun::Busy => Vec::new(),
        }
    }

    async fn run(&self, db: &mut SqliteConnection, batch: &mut Batch) -> Result<Begun, StoreError> {
        let payment = &self.0;
        let found = sqlx::query(FIND)
            .bind(&payment.idempotency.scope)
            .bind(payment.idempotency.key_hash.as_slice())
            .bind(payment.facts.ord_key.0.as_slice())
            .fetch_one(&mut *db)
            .await?;
        if let Some(known) = standing(&payment.idempotency, &found, batch.steady)? {
            return Ok(known);
        }
        if batch.depth.of(&payment.facts.target) >= batch.depth_max {
            return Ok(Begun::QueueFull);
        }
        let behind: bool = found.try_get("lane_open")?;
        if behind && !payment.may_wait() {
            return Ok(Begun::Busy);
        }
        let seq = insert_item(payment, behind, db, batch.now).await?;
        let begun = if behind {
            sqlx::query(RAISE)
                .bind(payment.facts.ord_key.0.as_slice())
                .bind(payment.facts.prio.rank())
                .execute(&mut *db)
                .await?;
            Begun::Queued { seq }
        } else {
            Begun::Forward(open_lane(payment, seq, db, batch).await?)
        };
        sqlx::query(REMEMBER)
            .bind(&payment.idempotency.scope)
            .bind(payment.idempotency.key_hash.as_slice())
            .bind(payment.idempotency.fp.as_slice())
            .bind(seq)
            .bind(payment.idempotency.expires_at)
            .execute(&mut *db)
            .await?;
        batch.depth.add(&payment.facts.target, 1);
        Ok(begun)
    }
}

/// What a key stands for, without storing anything.
pub(super) async fn known(
    readers: &SqlitePool,
    idempotency: &Idempotency,
    steady: i64,
) -> Result<Option<Begun>, StoreError> {
    let no_lane: &[u8] = &[];
    let found = sqlx::query(FIND)
        .bind(&idempotency.scope)
        .bind(idempotency.key_hash.as_slice())
        .bind(no_lane)
        .fetch_one(readers)
        .await?;
    standing(idempotency, &found, steady)
}

/// The answer of a key that was used before.
fn standing(
    idempotency: &Idempotency,
    row: &SqliteRow,
    steady: i64,
) -> Result<Option<Begun>, StoreError> {
    if row.try_get::<Option<Vec<u8>>, _>("fp")?.is_none() {
        return Ok(None);
    }
    if bytes::<FINGERPRINT_BYTES>(row, "fp")? != idempotency.fp {
        return Ok(Some(Begun::KeyReused));
    }
    let lease_until: Option<i64> = row.try_get("lease_until")?;
    let queued: bool = row.try_get("queued")?;
    if let Some(until) = lease_until
        && !queued
    {
        let left = u64::try_from(until - steady).unwrap_or(0).max(1_000);
        return Ok(Some(Begun::Running { retry_after: Duration::from_millis(left) }));
    }
    let enc_v = row.try_get("enc_v")?;
    Ok(Some(Begun::Replay {
        facts: Box::new(ItemFacts::read(row)?),
        status: Status::of(row.try_get("state")?, lease_until.is_some())?,
        answer: Sealed::read(row, enc_v, ["res_dek_id", "res_nonce", "res_ct"])?,
    }))
}

async fn insert_item(
    payment: &NewPayment,
    behind: bool,
    db: &mut SqliteConnection,
    now: i64,
) -> Result<i64, StoreError> {
    let facts = &payment.facts;
    let payload = payment.payload.as_ref();
    // A PIN block that need not wait is not stored at all.
    let pin = payment.pin.as_ref().filter(|_| behind);
    let seq = sqlx::query_scalar(INSERT)
        .bind(facts.id)
        .bind(&facts.tenant)
        .bind(&facts.kind)
        .bind(&facts.target)
        .bind(&facts.reference)
        .bind(facts.ord_key.0.as_slice())
        .bind(facts.prio.rank())
        .bind(behind)
        .bind(payment.needs_pin)
        .bind(facts.created_at)
        .bind(facts.expires_at)
        .bind(now)
        .bind(super::ENC_V)
        .bind(payload.map(|sealed| sealed.dek_id))
        .bind(payload.map(|sealed| sealed.nonce.as_slice()))
        .bind(payload.map(|sealed| sealed.bytes.as_slice()))
        .bind(pin.map(|sealed| sealed.dek_id))
        .bind(pin.map(|sealed| sealed.nonce.as_slice()))
        .bind(pin.map(|sealed| sealed.bytes.as_slice()))
        .fetch_one(db)
        .await?;
    Ok(seq)
}

async fn open_lane(
    payment: &NewPayment,
    seq: i64,
    db: &mut SqliteConnection,
    batch: &Batch,
) -> Result<Lease, StoreError> {
    let ord_key = payment.facts.ord_key;
    let lease = Lease { seq, ord_key, token: new_token()?, leased_at: batch.now };
    sqlx::query(OPEN_LANE)
        .bind(ord_key.0.as_slice())
        .bind(&payment.facts.target)
        .bind(seq)
        .bind(payment.facts.prio.rank())
        .bind(&payment.owner)
        .bind(lease.token)
        .bind(lease.leased_at)
        .bind(batch.steady + ms(payment.lease))
        .execute(db)
        .await?;
    Ok(lease)
}

/// Always one row: what the key stands for, if anything, and whether the lane is in use.
const FIND: &str = "
SELECT k.fp, k.res_dek_id, k.res_nonce, k.res_ct, i.id, i.tenant, i.kind, i.target, i.reference,
       i.ord_key, i.prio, i.created_at, i.expires_at, i.enc_v, i.state, i.queued, l.lease_until,
       EXISTS (SELECT 1 FROM saf_lane WHERE ord_key = ?3) AS lane_open
FROM (SELECT 1)
LEFT JOIN idem_key k ON k.scope = ?1 AND k.key_hash = ?2
LEFT JOIN saf_item i ON i.seq = k.item_seq
LEFT JOIN saf_lane l ON l.ord_key = i.ord_key AND l.head_seq = i.seq AND l.leased = 1";

const INSERT: &str = "
INSERT INTO saf_item (id, tenant, kind, target, reference, ord_key, prio, queued, needs_pin,
                      created_at, expires_at, updated_at, enc_v, dek_id, nonce, ct,
                      pin_dek_id, pin_nonce, pin_ct)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19)
RETURNING seq";

const RAISE: &str = "UPDATE saf_lane SET head_prio = min(head_prio, ?2) WHERE ord_key = ?1";

const OPEN_LANE: &str = "
INSERT INTO saf_lane (ord_key, target, head_seq, head_prio, leased, lease_owner, lease_token,
                      leased_at, lease_until)
VALUES (?1, ?2, ?3, ?4, 1, ?5, ?6, ?7, ?8)";

const REMEMBER: &str = "
INSERT INTO idem_key (scope, key_hash, fp, item_seq, expires_at) VALUES (?1, ?2, ?3, ?4, ?5)";
