//! What the holder of a lease may report: an ending, a pause, a case for a person.

use std::time::Duration;

use sqlx::sqlite::SqliteConnection;

use super::clock::ms;
use super::lane::{self, Settling};
use super::writer::{Batch, Order};
use super::{Class, HoldReason, Lease, Sealed, StoreError};

/// How a payment ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Answered and accepted.
    Done,
    /// Declined, or given up with nothing sent.
    Failed,
}

impl Outcome {
    fn state(self) -> i64 {
        match self {
            Self::Done => 2,
            Self::Failed => FAILED,
        }
    }

    fn name(self) -> &'static str {
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
}

impl Order for Complete {
    type Answer = Settled;

    async fn run(
        &self,
        db: &mut SqliteConnection,
        batch: &mut Batch,
    ) -> Result<Settled, StoreError> {
        let (lease, what, code) = (&self.held, self.ending.outcome.name(), &*self.ending.code);
        if lane::leased(db, lease).await?.is_none() {
            return stale(db, batch, lease, what, Some(code)).await;
        }
        lane::end(db, batch, lease.seq, self.ending.outcome.state(), code, 1).await?;
        if let Some(answer) = &self.ending.answer {
            sqlx::query(ANSWER)
                .bind(lease.seq)
                .bind(answer.dek_id)
                .bind(answer.nonce.as_slice())
                .bind(answer.bytes.as_slice())
                .execute(&mut *db)
                .await?;
        }
        recorded(db, batch, lease, what, Some(code)).await?;
        lane::settle(db, batch, lease.ord_key, Settling::EndLease).await?;
        Ok(Settled::Recorded)
    }
}

pub(super) struct Withdraw {
    pub(super) held: Lease,
    pub(super) code: String,
    pub(super) key: KeyAfter,
}

impl Order for Withdraw {
    type Answer = Settled;

    async fn run(
        &self,
        db: &mut SqliteConnection,
        batch: &mut Batch,
    ) -> Result<Settled, StoreError> {
        let (lease, what, code) = (&self.held, "withdrawn", Some(&*self.code));
        let Some(item) = lane::leased(db, lease).await? else {
            return stale(db, batch, lease, what, code).await;
        };
        if item.sent_unknown {
            hold(db, batch, lease, HoldReason::Ambiguous).await?;
            return Ok(Settled::Held);
        }
        lane::end(db, batch, lease.seq, FAILED, &self.code, 0).await?;
        if self.key == KeyAfter::Freed {
            sqlx::query("DELETE FROM idem_key WHERE item_seq = ?1")
                .bind(lease.seq)
                .execute(&mut *db)
                .await?;
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

    async fn run(
        &self,
        db: &mut SqliteConnection,
        batch: &mut Batch,
    ) -> Result<Parked, StoreError> {
        let (lease, parking) = (&self.held, &self.parking);
        let (what, code) = (parking.class.name(), parking.code.as_deref());
        let Some(before) = lane::leased(db, lease).await? else {
            if !lane::late(db, batch, lease, what, code).await? {
                return Ok(Parked::Stale);
            }
            let state = sqlx::query_scalar("SELECT state FROM saf_item WHERE seq = ?1")
                .bind(lease.seq)
                .fetch_one(db)
                .await?;
            return Ok(match state {
                0 => Parked::Waiting,
                1 => Parked::Held,
                FAILED => Parked::Failed,
                _ => Parked::Stale,
            });
        };
        let attempts = i64::from(parking.counts);
        let sent = before.sent_unknown || parking.class == Class::SentUnknown;
        let pin = parking.pin.as_ref();
        sqlx::query(WAIT)
            .bind(lease.seq)
            .bind(attempts)
            .bind(sent)
            .bind(code)
            .bind(batch.now)
            .bind(pin.map(|sealed| sealed.dek_id))
            .bind(pin.map(|sealed| sealed.nonce.as_slice()))
            .bind(pin.map(|sealed| sealed.bytes.as_slice()))
            .execute(&mut *db)
            .await?;
        recorded(db, batch, lease, what, code).await?;
        let exhausted = before.attempts + attempts >= batch.attempts_max;
        // Read again: the PIN block that came with the report may be what was missing.
        let sendable = lane::leased(db, lease).await?.is_some_and(|item| item.sendable);
        if sendable && !exhausted {
            lane::park(db, batch, lease.ord_key, batch.steady + ms(parking.retry_in)).await?;
            return Ok(Parked::Waiting);
        }
        if sent {
            hold(db, batch, lease, HoldReason::Ambiguous).await?;
            return Ok(Parked::Held);
        }
        let why = if exhausted { "attempts-exhausted" } else { "not-storable" };
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

    async fn run(
        &self,
        db: &mut SqliteConnection,
        batch: &mut Batch,
    ) -> Result<Settled, StoreError> {
        if lane::leased(db, &self.held).await?.is_none() {
            return stale(db, batch, &self.held, "held", Some(self.reason.name())).await;
        }
        hold(db, batch, &self.held, self.reason).await?;
        Ok(Settled::Recorded)
    }
}

async fn hold(
    db: &mut SqliteConnection,
    batch: &mut Batch,
    lease: &Lease,
    reason: HoldReason,
) -> Result<(), StoreError> {
    lane::hold(db, batch, lease.seq, reason).await?;
    recorded(db, batch, lease, "held", Some(reason.name())).await?;
    lane::settle(db, batch, lease.ord_key, Settling::EndLease).await
}

async fn recorded(
    db: &mut SqliteConnection,
    batch: &Batch,
    lease: &Lease,
    what: &str,
    code: Option<&str>,
) -> Result<(), StoreError> {
    let held = Some((lease.token, lease.leased_at));
    lane::note(db, batch, lease.seq, held, what, code, false).await
}

async fn stale(
    db: &mut SqliteConnection,
    batch: &Batch,
    lease: &Lease,
    what: &str,
    code: Option<&str>,
) -> Result<Settled, StoreError> {
    let repeated = lane::late(db, batch, lease, what, code).await?;
    Ok(if repeated { Settled::Recorded } else { Settled::Stale })
}

const FAILED: i64 = 3;

const ANSWER: &str = "
UPDATE idem_key SET res_dek_id = ?2, res_nonce = ?3, res_ct = ?4 WHERE item_seq = ?1";

const WAIT: &str = "
UPDATE saf_item
SET queued = 1, attempts = attempts + ?2, sent_unknown = ?3, last_code = ?4, updated_at = ?5,
    pin_dek_id = coalesce(?6, pin_dek_id), pin_nonce = coalesce(?7, pin_nonce),
    pin_ct = coalesce(?8, pin_ct)
WHERE seq = ?1";
