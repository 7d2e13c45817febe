//! Leases the heads of the lanes to a forwarder.

use std::collections::HashMap;
use std::time::Duration;

use sqlx::Row;
use sqlx::sqlite::SqliteConnection;

use super::clock::ms;
use super::lane::{self, Settling};
use super::outcome::Release;
use super::row::bytes;
use super::upkeep::expire_due;
use super::writer::{self, Batch, Job, Order};
use super::{Class, HoldReason, ItemFacts, Lease, OrdKey, Parking, Sealed, StoreError};

/// What a forwarder is ready for.
#[derive(Debug, Clone)]
pub struct Claim {
    /// Targets that are neither paused nor behind an open breaker.
    pub targets: Vec<String>,
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
    /// It may have reached the backend: the same reference again where the backend deduplicates,
    /// an enquiry or a person where it does not.
    pub sent_unknown: bool,
    /// Attempts that counted.
    pub attempts: u32,
}

impl Order for Claim {
    type Answer = Vec<Claimed>;
    const FOR_CALLER: bool = true;

    fn orphans(claimed: Self::Answer) -> Vec<Box<dyn Job>> {
        let pause = |claimed: Claimed| {
            let (retry_in, class, code) = (Duration::ZERO, Class::NotSent, None);
            let parking = Parking { retry_in, class, code, counts: false, pin: None };
            writer::unasked(Release { held: claimed.lease, parking })
        };
        claimed.into_iter().map(pause).collect()
    }

    async fn run(
        &self,
        db: &mut SqliteConnection,
        batch: &mut Batch,
    ) -> Result<Vec<Claimed>, StoreError> {
        // Some of what is past its time leaves the queue here; the statement skips the rest.
        expire_due(db, batch).await?;
        batch.claims += 1;
        let statement = if batch.claims.is_multiple_of(10) { CLAIM_OLDEST } else { CLAIM };
        let targets = serde_json::to_string(&self.targets).unwrap_or_default();
        let lanes = sqlx::query(statement)
            .bind(&self.owner)
            .bind(batch.now)
            .bind(batch.steady + ms(self.lease))
            .bind(batch.steady)
            .bind(targets)
            .bind(self.rows)
            .fetch_all(&mut *db)
            .await?;
        let mut leases = HashMap::with_capacity(lanes.len());
        for lane in &lanes {
            let seq = lane.try_get("head_seq")?;
            let ord_key = OrdKey(bytes(lane, "ord_key")?);
            let token = lane.try_get("lease_token")?;
            leases.insert(seq, Lease { seq, ord_key, token, leased_at: batch.now });
        }
        let heads = serde_json::to_string(&leases.keys().collect::<Vec<_>>()).unwrap_or_default();
        let rows = sqlx::query(ITEMS).bind(heads).fetch_all(&mut *db).await?;
        let mut claimed = Vec::with_capacity(rows.len());
        for row in &rows {
            let enc_v = row.try_get("enc_v")?;
            let payload = Sealed::read(row, enc_v, ["dek_id", "nonce", "ct"])?;
            let pin = Sealed::read(row, enc_v, ["pin_dek_id", "pin_nonce", "pin_ct"])?;
            let needs_pin: bool = row.try_get("needs_pin")?;
            let (Some(payload), true) = (payload, !needs_pin || pin.is_some()) else { continue };
            let Some(lease) = leases.remove(&row.try_get("seq")?) else { continue };
            claimed.push(Claimed {
                lease,
                facts: ItemFacts::read(row)?,
                payload,
                pin,
                sent_unknown: row.try_get("sent_unknown")?,
                attempts: row.try_get::<u32, _>("attempts")?,
            });
        }
        // A head without an open, sendable item: somebody else has written into the database.
        for lease in leases.into_values() {
            lane::hold(db, batch, lease.seq, HoldReason::Tampered).await?;
            lane::note(db, batch, lease.seq, None, "held", Some("tampered"), false).await?;
            lane::settle(db, batch, lease.ord_key, Settling::EndLease).await?;
        }
        Ok(claimed)
    }
}

/// Most urgent lane first, oldest head first among equals. The token is random, so that it
/// stays unique when lanes are deleted and made again.
pub(super) const CLAIM: &str = "
UPDATE saf_lane
SET leased = 1, lease_owner = ?1, lease_token = random() & 0x7FFFFFFFFFFFFFFF, leased_at = ?2,
    lease_until = ?3
WHERE ord_key IN (
    SELECT ord_key FROM saf_lane
    WHERE leased = 0 AND blocked IS NULL AND next_at <= ?4
      AND target IN (SELECT value FROM json_each(?5))
      AND NOT EXISTS (SELECT 1 FROM saf_item WHERE seq = head_seq AND expires_at <= ?2)
    ORDER BY head_prio, head_seq LIMIT ?6)
RETURNING ord_key, head_seq, lease_token";

/// The same by age alone, every tenth time: so that the low ones move while urgent ones keep coming.
const CLAIM_OLDEST: &str = "
UPDATE saf_lane
SET leased = 1, lease_owner = ?1, lease_token = random() & 0x7FFFFFFFFFFFFFFF, leased_at = ?2,
    lease_until = ?3
WHERE ord_key IN (
    SELECT ord_key FROM saf_lane
    WHERE leased = 0 AND blocked IS NULL AND next_at <= ?4
      AND target IN (SELECT value FROM json_each(?5))
      AND NOT EXISTS (SELECT 1 FROM saf_item WHERE seq = head_seq AND expires_at <= ?2)
    ORDER BY head_seq LIMIT ?6)
RETURNING ord_key, head_seq, lease_token";

const ITEMS: &str = "
SELECT i.seq, i.id, i.tenant, i.kind, i.target, i.reference, i.ord_key, i.prio, i.created_at,
       i.expires_at, i.needs_pin, i.sent_unknown, i.attempts, i.enc_v, i.dek_id, i.nonce, i.ct,
       i.pin_dek_id, i.pin_nonce, i.pin_ct
FROM json_each(?1) head JOIN saf_item i ON i.seq = head.value
WHERE i.state = 0
ORDER BY i.prio, i.seq";
