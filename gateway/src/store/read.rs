//! What may be read without a key: status, history.

use uuid::Uuid;

use super::db::{Readers, query};
use super::{ItemFacts, Sealed, Status, StoreError};

/// One payment as its client may see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PaymentView {
    /// Its identity.
    pub id: Uuid,
    /// What its biller knows it by.
    pub reference: String,
    /// Its status.
    pub status: Status,
    /// The final answer's code, once there is one.
    pub response_code: Option<String>,
    /// Attempts that counted.
    pub attempts: u32,
    /// Epoch milliseconds.
    pub created_at: i64,
    /// Epoch milliseconds.
    pub updated_at: i64,
    /// What happened, oldest first.
    pub history: Vec<HistoryEntry>,
}

/// One thing that happened to a payment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryEntry {
    /// Epoch milliseconds.
    pub at: i64,
    /// `accepted`, `not-sent`, `sent-unknown`, `answered-retryable`, `lease-lost`, `done`,
    /// `failed`, `reversed`, `withdrawn`, `expired`, `held`; by an operator's hand also `released`,
    /// `retried`, `cancelled`.
    pub what: String,
    /// The response code, or our own word for the cause.
    pub code: Option<String>,
    /// Reported under a lease that was lost: evidence, without effect.
    pub late: bool,
}

pub(super) async fn payment(
    readers: &Readers,
    id: Uuid,
    tenant: &str,
) -> Result<Option<PaymentView>, StoreError> {
    // One snapshot for both statements.
    let mut snapshot = readers.snapshot().await?;
    let db = &mut snapshot.db();
    let row = query(PAYMENT).bind(id).bind(tenant).optional(db).await?;
    let Some(row) = row else { return Ok(None) };
    let seq: i64 = row.get("seq")?;
    let created_at = row.get("created_at")?;
    let mut history =
        vec![HistoryEntry { at: created_at, what: "accepted".into(), code: None, late: false }];
    for entry in query(HISTORY).bind(seq).all(db).await? {
        history.push(HistoryEntry {
            at: entry.get("ended_at")?,
            what: entry.get("what")?,
            code: entry.get("code")?,
            late: entry.get("late")?,
        });
    }
    let state: i64 = row.get("state")?;
    let code: Option<String> = row.get("last_code")?;
    Ok(Some(PaymentView {
        id,
        reference: row.get("reference")?,
        status: Status::of(state, row.get("leased")?)?,
        response_code: code.filter(|_| state >= 2),
        attempts: row.number("attempts")?,
        created_at,
        updated_at: row.get("updated_at")?,
        history,
    }))
}

pub(super) async fn status(readers: &Readers, id: Uuid) -> Result<Option<Status>, StoreError> {
    let mut reader = readers.acquire().await?;
    let row = query(STATUS).bind(id).optional(&mut reader.db()).await?;
    row.map(|row| Status::of(row.get("state")?, row.get("leased")?)).transpose()
}

pub(super) async fn payload(
    readers: &Readers,
    id: Uuid,
) -> Result<Option<(ItemFacts, Sealed)>, StoreError> {
    let mut reader = readers.acquire().await?;
    let Some(row) = query(PAYLOAD).bind(id).optional(&mut reader.db()).await? else {
        return Ok(None);
    };
    let sealed = Sealed::read(&row, row.get("enc_v")?, ["dek_id", "nonce", "ct"])?;
    sealed.map(|sealed| Ok((ItemFacts::read(&row)?, sealed))).transpose()
}

const PAYMENT: &str = "
SELECT i.seq, i.reference, i.state, i.last_code, i.attempts, i.created_at, i.updated_at,
       EXISTS (SELECT 1 FROM saf_lane l
               WHERE l.ord_key = i.ord_key AND l.head_seq = i.seq AND l.leased) AS leased
FROM saf_item i WHERE i.id = $1 AND i.tenant = $2";

const STATUS: &str = "
SELECT i.state, EXISTS (SELECT 1 FROM saf_lane l
                        WHERE l.ord_key = i.ord_key AND l.head_seq = i.seq AND l.leased) AS leased
FROM saf_item i WHERE i.id = $1";

const PAYLOAD: &str = "
SELECT id, tenant, kind, target, reference, ord_key, prio, created_at, expires_at, enc_v, dek_id,
       nonce, ct
FROM saf_item WHERE id = $1 AND state < 2 AND ct IS NOT NULL";

const HISTORY: &str = "
SELECT ended_at, what, code, late FROM saf_attempt WHERE item_seq = $1 ORDER BY n";
