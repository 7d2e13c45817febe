//! Leases the heads of the lanes to a forwarder.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::clock::ms;
use super::db::{Db, Row, Sql, query};
use super::lane::{self, Settling, item_columns};
use super::order::{self, Job, Order};
use super::outcome::Release;
use super::place::BY_ROLLBACK;
use super::upkeep::expire_due;
use super::writer::Batch;
use super::{Class, HoldReason, ItemFacts, Lease, OrdKey, Parking, Sealed, StoreError};

/// What a forwarder is ready for.
#[derive(Debug, Clone)]
pub struct Claim {
    /// Whose payments: nothing is leased while it is paused.
    pub target: String,
    /// At most this many.
    pub rows: u32,
    /// Who, for the record.
    pub owner: String,
    /// How long they are kept. Every attempt must end well before.
    pub lease: Duration,
}

/// A payment to send now.
#[derive(Debug, Clone)]
pub struct Claimed {
    /// The right to send it.
    pub lease: Lease,
    /// What the sealed bytes are bound to.
    pub facts: ItemFacts,
    /// The sealed payload.
    pub payload: Sealed,
    /// The sealed PIN block, where one waits.
    pub pin: Option<Sealed>,
    /// It cannot be sent without one.
    pub needs_pin: bool,
    /// It may have reached the backend: the same reference again where the backend deduplicates,
    /// an enquiry or a person where it does not.
    pub sent_unknown: bool,
    /// Attempts that counted.
    pub attempts: u32,
    /// Epoch milliseconds: nothing was sent of it since.
    pub changed_at: i64,
    /// [`begin_send`](super::Store::begin_send) has to come before its first byte, whatever its biller
    /// promises now.
    pub is_marked: bool,
    /// It is in doubt because an old copy of the database was restored: it may have been made and told.
    pub by_rollback: bool,
}

impl Order for Claim {
    type Answer = Vec<Claimed>;
    const FOR_CALLER: bool = true;

    fn orphans(claimed: Self::Answer) -> Vec<Box<dyn Job>> {
        claimed.into_iter().map(give_back).collect()
    }

    async fn run(&self, db: &mut Db<'_>, batch: &mut Batch) -> Result<Vec<Claimed>, StoreError> {
        // Some of what is past its time leaves the queue here; the statement skips the rest.
        expire_due(db, batch).await?;
        if batch.depth.is_paused(&self.target) {
            return Ok(Vec::new());
        }
        let claims = batch.claims.fetch_add(1, Ordering::Relaxed) + 1;
        let statement = if claims.is_multiple_of(10) { CLAIM_OLDEST } else { CLAIM };
        let lanes = query(statement)
            .bind(&self.owner)
            .bind(batch.now)
            .bind(batch.now + ms(self.lease))
            .bind(&self.target)
            .bind(self.rows)
            .all(db)
            .await?;
        let mut leases = Vec::with_capacity(lanes.len());
        for lane in &lanes {
            leases.push(Lease {
                seq: lane.get("head_seq")?,
                ord_key: OrdKey(lane.bytes("ord_key")?),
                token: lane.get("lease_token")?,
                leased_at: batch.now,
            });
        }
        if leases.is_empty() {
            return Ok(Vec::new());
        }
        let heads: Vec<i64> = leases.iter().map(|lease| lease.seq).collect();
        let mut rows = HashMap::with_capacity(leases.len());
        for row in query(ITEMS).bind(heads).all(db).await? {
            rows.insert(row.get::<i64>("seq")?, row);
        }
        let (mut found, mut missing) = (Vec::new(), Vec::new());
        for lease in leases {
            match rows.remove(&lease.seq) {
                Some(row) => found.push((lease, row)),
                None => missing.push(lease),
            }
        }
        for lease in missing {
            hold(lease, HoldReason::Tampered, db, batch).await?;
        }
        let mut claimed = open(found, db, batch).await?;
        claimed.sort_by_key(|one| (one.facts.prio, one.lease.seq));
        Ok(claimed)
    }
}

/// Nothing was sent of a payment that nobody waited for.
pub(super) fn give_back(claimed: Claimed) -> Box<dyn Job> {
    let (retry_in, class, code) = (Duration::ZERO, Class::NotSent, None);
    let parking = Parking { retry_in, class, code, counts: false, pin: None };
    order::unasked(Release { held: claimed.lease, parking })
}

/// What was leased, from its rows.
pub(super) async fn open(
    leased: Vec<(Lease, Row)>,
    db: &mut Db<'_>,
    batch: &mut Batch,
) -> Result<Vec<Claimed>, StoreError> {
    let mut claimed = Vec::with_capacity(leased.len());
    for (lease, row) in leased {
        // What has ended is not sent again, whoever made its row an open one.
        if row.get::<bool>("ended")? || batch.memory.has_ended(&row.get("id")?) {
            hold(lease, HoldReason::RolledBack, db, batch).await?;
            continue;
        }
        let enc_v = row.get("enc_v")?;
        let payload = Sealed::read(&row, enc_v, ["dek_id", "nonce", "ct"])?;
        let pin = Sealed::read(&row, enc_v, ["pin_dek_id", "pin_nonce", "pin_ct"])?;
        let sent_unknown: bool = row.get("sent_unknown")?;
        let mark: Option<i64> = row.get("send_mark")?;
        let needs_pin: bool = row.get("needs_pin")?;
        let is_workable = !needs_pin || pin.is_some() || sent_unknown;
        let (Some(payload), true) = (payload, is_workable) else {
            hold(lease, HoldReason::Tampered, db, batch).await?;
            continue;
        };
        claimed.push(Claimed {
            lease,
            facts: ItemFacts::read(&row)?,
            payload,
            pin,
            needs_pin,
            sent_unknown,
            attempts: row.number("attempts")?,
            changed_at: row.get("updated_at")?,
            is_marked: mark.is_some(),
            by_rollback: mark == Some(BY_ROLLBACK),
        });
    }
    Ok(claimed)
}

/// A head without an open, sendable item: somebody else has written into the database.
async fn hold(
    lease: Lease,
    reason: HoldReason,
    db: &mut Db<'_>,
    batch: &mut Batch,
) -> Result<(), StoreError> {
    lane::hold(db, batch, lease.seq, reason).await?;
    lane::note(db, batch, lease.seq, None, "held", Some(reason.name()), false).await?;
    lane::settle(db, batch, lease.ord_key, Settling::EndLease).await
}

/// One claim, in an order of the lanes. The token is random, so that it stays unique when lanes
/// are deleted and made again.
macro_rules! claim_by {
    ($order:literal) => {
        Sql::Each {
            sqlite: concat!(
                "
UPDATE saf_lane
SET leased = TRUE, lease_owner = $1, lease_token = random() & 0x7FFFFFFFFFFFFFFF, leased_at = $2,
    lease_until = $3
WHERE ord_key IN (
    SELECT ord_key FROM saf_lane
    WHERE target = $4 AND NOT leased AND blocked IS NULL AND next_at <= $2
      AND NOT EXISTS (SELECT 1 FROM saf_item
                      WHERE seq = head_seq AND state = 0 AND expires_at <= $2)
    ORDER BY ",
                $order,
                " LIMIT $5)
RETURNING ord_key, head_seq, lease_token"
            ),
            postgres: concat!(
                "
WITH heads AS MATERIALIZED (
    SELECT ord_key FROM saf_lane
    WHERE target = $4 AND NOT leased AND blocked IS NULL AND next_at <= $2
      AND NOT EXISTS (SELECT 1 FROM saf_item
                      WHERE seq = head_seq AND state = 0 AND expires_at <= $2)
    ORDER BY ",
                $order,
                " LIMIT $5 FOR UPDATE SKIP LOCKED)
UPDATE saf_lane l
SET leased = TRUE, lease_owner = $1, leased_at = $2, lease_until = $3,
    lease_token = CAST(CAST('x' || substr(md5(gen_random_uuid()::text), 1, 16) AS bit(64)) AS bigint)
                  & 9223372036854775807
FROM heads h WHERE l.ord_key = h.ord_key
RETURNING l.ord_key, l.head_seq, l.lease_token"
            ),
        }
    };
}

/// Most urgent lane first, oldest head first among equals.
pub(super) const CLAIM: Sql = claim_by!("head_prio, head_seq");

/// The same by age alone, every tenth time: so that the low ones move while urgent ones keep coming.
const CLAIM_OLDEST: Sql = claim_by!("head_seq");

const ITEMS: Sql = Sql::Each {
    sqlite: concat!(
        item_columns!(),
        "FROM saf_item i
WHERE i.seq IN (SELECT value FROM json_each($1)) AND i.state = 0"
    ),
    postgres: concat!(
        item_columns!(),
        "FROM saf_item i
WHERE i.seq = ANY ($1) AND i.state = 0"
    ),
};
