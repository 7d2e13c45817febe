//! What a row says, as types: identity, order, sealed bytes, and the lease.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::db::Row;
use super::{Ending, StoreError};

/// The form of the sealed bytes, bound into each of them.
pub const ENC_V: i64 = 1;

/// Length of a request's fingerprint and of an idempotency key's hash.
pub const FINGERPRINT_BYTES: usize = 32;

/// Keyed hash of the account or bill: payments with the same one leave one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OrdKey(pub [u8; 16]);

/// How urgent a payment is among the heads of the lanes.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// Reversals, and what clients call so.
    Critical,
    /// Before the normal ones.
    High,
    /// When nothing is said.
    #[default]
    Normal,
    /// When nothing else waits.
    Low,
}

impl Priority {
    /// Most urgent first.
    pub const ALL: [Self; 4] = [Self::Critical, Self::High, Self::Normal, Self::Low];

    /// `critical` and so on, as in the API and in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::High => "high",
            Self::Normal => "normal",
            Self::Low => "low",
        }
    }

    /// 0 for critical to 3 for low.
    #[must_use]
    pub fn rank(self) -> i64 {
        self as i64
    }

    pub(super) fn of_rank(rank: i64) -> Result<Self, StoreError> {
        Self::ALL.into_iter().find(|it| it.rank() == rank).ok_or(StoreError::Foreign("prio"))
    }
}

/// A payment's status as its client sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "UPPERCASE")]
#[expect(missing_docs, reason = "the contract's own words")]
pub enum Status {
    Pending,
    Processing,
    Success,
    Failed,
    Expired,
    Cancelled,
    Held,
}

impl Status {
    /// Every member.
    pub const ALL: [Self; 7] = [
        Self::Pending,
        Self::Processing,
        Self::Success,
        Self::Failed,
        Self::Expired,
        Self::Cancelled,
        Self::Held,
    ];

    /// `PENDING` and so on, as in the API.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Processing => "PROCESSING",
            Self::Success => "SUCCESS",
            Self::Failed => "FAILED",
            Self::Expired => "EXPIRED",
            Self::Cancelled => "CANCELLED",
            Self::Held => "HELD",
        }
    }

    /// As the database says it; "leased" is the lane's.
    pub(super) const fn state(self) -> i64 {
        match self {
            Self::Pending | Self::Processing => 0,
            Self::Held => 1,
            Self::Success => 2,
            Self::Failed => 3,
            Self::Expired => 4,
            Self::Cancelled => 5,
        }
    }

    pub(super) fn of(state: i64, leased: bool) -> Result<Self, StoreError> {
        Ok(match state {
            0 if leased => Self::Processing,
            0 => Self::Pending,
            1 => Self::Held,
            2 => Self::Success,
            3 => Self::Failed,
            4 => Self::Expired,
            5 => Self::Cancelled,
            _ => return Err(StoreError::Foreign("state")),
        })
    }
}

/// Why a payment waits for a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HoldReason {
    /// It may have been sent and cannot be asked about.
    Ambiguous,
    /// Five senders were lost with it.
    Poison,
    /// Its row was changed: it does not open.
    Tampered,
    /// A reversal that its biller answered and did not take.
    NotAccepted,
    /// An operator wanted it so.
    Operator,
    /// Its row is an old one: it has ended before.
    RolledBack,
}

impl HoldReason {
    /// Every reason.
    pub const ALL: [Self; 6] = [
        Self::Ambiguous,
        Self::Poison,
        Self::Tampered,
        Self::NotAccepted,
        Self::Operator,
        Self::RolledBack,
    ];

    /// `ambiguous` and so on, as in the database and in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ambiguous => "ambiguous",
            Self::Poison => "poison",
            Self::Tampered => "tampered",
            Self::NotAccepted => "not-accepted",
            Self::Operator => "operator",
            Self::RolledBack => "rollback",
        }
    }
}

/// What an attempt without a final answer proved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// Not one byte left.
    NotSent,
    /// A byte left and no final answer came.
    SentUnknown,
    /// An answer that asks to come again.
    AnsweredRetryable,
}

impl Class {
    /// `not-sent` and so on, as in a payment's history.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NotSent => "not-sent",
            Self::SentUnknown => "sent-unknown",
            Self::AnsweredRetryable => "answered-retryable",
        }
    }
}

/// `kind` of a payment.
pub const PAYMENT: &str = "payment";

/// `kind` of what takes a payment back: it is repeated until it is answered.
pub const REVERSAL: &str = "reversal";

/// What never changes in a payment's row. Sealed bytes are bound to all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ItemFacts {
    /// UUIDv7, public.
    pub id: Uuid,
    /// The client.
    pub tenant: String,
    /// What it is: [`PAYMENT`] or [`REVERSAL`].
    pub kind: String,
    /// The biller.
    pub target: String,
    /// What the backend sees, and deduplicates on.
    pub reference: String,
    /// Its lane.
    pub ord_key: OrdKey,
    /// Its urgency.
    pub prio: Priority,
    /// Epoch milliseconds.
    pub created_at: i64,
    /// Epoch milliseconds: after it, nothing is sent.
    pub expires_at: i64,
}

impl ItemFacts {
    /// Reads `id, tenant, kind, target, reference, ord_key, prio, created_at, expires_at`.
    pub(super) fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.get("id")?,
            tenant: row.get("tenant")?,
            kind: row.get("kind")?,
            target: row.get("target")?,
            reference: row.get("reference")?,
            ord_key: OrdKey(row.bytes("ord_key")?),
            prio: Priority::of_rank(row.get("prio")?)?,
            created_at: row.get("created_at")?,
            expires_at: row.get("expires_at")?,
        })
    }
}

/// Bytes under a data key.
#[derive(Clone, PartialEq, Eq)]
pub struct Sealed {
    /// [`ENC_V`], as the row says it.
    pub enc_v: i64,
    /// Which data key.
    pub dek_id: i64,
    /// Drawn at random.
    pub nonce: [u8; 12],
    /// Ciphertext and tag.
    pub bytes: Vec<u8>,
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealed({} bytes under data key {})", self.bytes.len(), self.dek_id)
    }
}

impl Sealed {
    /// Reads a column triple; `None` when it is empty.
    pub(super) fn read(
        row: &Row,
        enc_v: i64,
        [dek_id, nonce, bytes]: [&'static str; 3],
    ) -> Result<Option<Self>, StoreError> {
        let Some(sealed) = row.get::<Option<Vec<u8>>>(bytes)? else { return Ok(None) };
        let dek_id = row.get(dek_id)?;
        Ok(Some(Self { enc_v, dek_id, nonce: row.bytes(nonce)?, bytes: sealed }))
    }
}

/// What an idempotency key is checked by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idempotency {
    /// Whose key it is: the client.
    pub scope: String,
    /// SHA-256 over scope and key.
    pub key_hash: [u8; FINGERPRINT_BYTES],
    /// Keyed hash of the request.
    pub fp: [u8; FINGERPRINT_BYTES],
    /// Epoch milliseconds: until then the key is remembered.
    pub expires_at: i64,
}

/// A payment to make durable.
#[derive(Debug, Clone)]
pub struct NewPayment {
    /// Its identity.
    pub facts: ItemFacts,
    /// Its sealed payload, which has no PIN in it. `None`: once it was sent, nothing can be done about it.
    pub payload: Option<Sealed>,
    /// Whether it is worth nothing without its PIN block.
    pub needs_pin: bool,
    /// The sealed PIN block, where the route stores one. Written only when the payment has to
    /// queue behind another.
    pub pin: Option<Sealed>,
    /// Whether it may wait behind others of its lane.
    pub may_wait: bool,
    /// Whether [`begin_send`](super::Store::begin_send) comes before its first byte, each time. Otherwise
    /// every lease of it counts as sent.
    pub is_marked: bool,
    /// The client's key.
    pub idempotency: Idempotency,
    /// Who forwards it, for the record.
    pub owner: String,
    /// How long the caller may keep it. An attempt must end well before.
    pub lease: Duration,
}

/// What takes a payment back, to make durable in the payment's own lane.
#[derive(Debug, Clone)]
pub struct Reversal {
    /// Its identity; its lane is the payment's.
    pub facts: ItemFacts,
    /// Its sealed payload.
    pub payload: Sealed,
}

/// The end of a payment, and what takes it back.
#[derive(Debug, Clone)]
pub struct TakingBack {
    /// Failed, with the answer that its client gets.
    pub ending: Ending,
    /// Its reversal.
    pub reversal: Reversal,
}

/// The right to send one payment, until it runs out. Its token is unique for ever: whoever comes
/// too late changes nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub(super) seq: i64,
    pub(super) ord_key: OrdKey,
    pub(super) token: i64,
    pub(super) leased_at: i64,
}

impl Lease {
    /// The payment's place in its lane.
    #[must_use]
    pub fn seq(&self) -> i64 {
        self.seq
    }
}

/// A token that no lease has had: 63 random bits.
pub(super) fn new_token() -> Result<i64, StoreError> {
    let random =
        getrandom::u64().map_err(|_| StoreError::unavailable("the system gives no randomness"))?;
    Ok((random >> 1) as i64)
}
