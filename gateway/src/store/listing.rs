//! The queue as operators see it: lists, one payment with all that happened to it, figures.
//!
//! Only clear columns are read: no payload, no PIN, no card number. Each read is bounded.

use uuid::Uuid;

use super::db::{Readers, Row, Sql, query};
use super::decision::{self, OpenDecision};
use super::error::within;
use super::{ItemFacts, Priority, Status, Store, StoreError};

/// What is listed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListFilter {
    /// Only these; all when empty.
    pub statuses: Vec<Status>,
    /// Only of this biller.
    pub target: Option<String>,
    /// Only of this kind: `payment`.
    pub kind: Option<String>,
    /// Only of this urgency.
    pub priority: Option<Priority>,
    /// Only those held for this reason.
    pub hold_reason: Option<String>,
    /// Only those created before. Epoch milliseconds.
    pub created_before: Option<i64>,
    /// Behind this one, in the order of the list: the `seq` of the last page's last.
    pub after: Option<i64>,
    /// Oldest first; else the newest is.
    pub oldest_first: bool,
    /// At most so many, up to [`LIST_MAX`].
    pub limit: u32,
}

/// The longest page.
pub const LIST_MAX: u32 = 500;

/// One payment in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its place among all.
    pub seq: i64,
    /// Its identity.
    pub facts: ItemFacts,
    /// How it is.
    pub status: Status,
    /// Why a person holds it.
    pub hold_reason: Option<String>,
    /// Whether it may have been made.
    pub sent_unknown: bool,
    /// It failed because its attempts were used up, and may be tried again.
    pub dead_letter: bool,
    /// Attempts that counted.
    pub attempts: u32,
    /// The last response code, or our own word.
    pub last_code: Option<String>,
    /// Epoch milliseconds.
    pub updated_at: i64,
}

/// One payment with all that is known of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// As in a list.
    pub listed: Listed,
    /// Payments of its bill that leave before it.
    pub before: u32,
    /// Who sends it now.
    pub lease_owner: Option<String>,
    /// Senders that were lost with it.
    pub abandoned: u32,
    /// What happened, oldest first.
    pub history: Vec<Told>,
    /// What waits for a second operator.
    pub decision: Option<OpenDecision>,
}

/// One thing that happened to a payment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Epoch milliseconds.
    pub at: i64,
    /// As in a payment's history.
    pub what: String,
    /// The response code, or our own word for the cause.
    pub code: Option<String>,
    /// Reported under a lease that was lost.
    pub late: bool,
    /// The operator who did it.
    pub actor: Option<String>,
    /// The operator whose proposal it was.
    pub proposer: Option<String>,
    /// In the operator's words.
    pub reason: Option<String>,
}

/// Open payments of one status, urgency, biller and reason.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Cell {
    pub status: Status,
    pub priority: Priority,
    pub target: String,
    pub hold_reason: Option<String>,
    pub rows: u64,
    /// Age of the oldest.
    pub oldest_ms: i64,
}

/// What waits, and what should not wait much longer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct QueueStats {
    /// Every cell that is not empty.
    pub cells: Vec<Cell>,
    /// Age of the oldest payment that waits or is being sent. Milliseconds.
    pub oldest_ms: Option<i64>,
    /// Payments that wait and expire within the hour.
    pub expiring: u64,
}

impl Store {
    /// A page of payments. One look at a time: payments need the other readers.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn list(&self, filter: &ListFilter) -> Result<Vec<Listed>, StoreError> {
        within(async {
            let _turn = self.looks.lock().await;
            list(&self.readers, filter).await
        })
        .await
    }

    /// One payment. One look at a time, likewise.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn show(&self, id: Uuid) -> Result<Option<Shown>, StoreError> {
        within(async {
            let _turn = self.looks.lock().await;
            show(&self.readers, id, self.clock.now()).await
        })
        .await
    }

    /// What waits, by biller.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn queue_stats(&self) -> Result<QueueStats, StoreError> {
        within(queue_stats(&self.readers, self.clock.now())).await
    }
}

async fn list(readers: &Readers, filter: &ListFilter) -> Result<Vec<Listed>, StoreError> {
    let states: Vec<i64> = filter.statuses.iter().map(|status| status.state()).collect();
    let wants = |status| filter.statuses.contains(&status);
    // Both are open rows; the lane tells them apart.
    let leased = match (wants(Status::Pending), wants(Status::Processing)) {
        (true, false) => Some(false),
        (false, true) => Some(true),
        (true, true) | (false, false) => None,
    };
    let is_open = |status: &Status| status.state() < 2;
    let is_unpaid = |status: &Status| !matches!(status.state(), 0 | 2);
    let statement = match &filter.statuses {
        none if none.is_empty() => EVERY,
        open if open.iter().all(is_open) => OPEN,
        unpaid if unpaid.iter().all(is_unpaid) => UNPAID,
        _ => SOME,
    };
    let statement = if filter.oldest_first { statement.0 } else { statement.1 };
    let mut reader = readers.acquire().await?;
    let rows = query(statement)
        .bind(states)
        .bind(leased)
        .bind(filter.target.as_deref())
        .bind(filter.kind.as_deref())
        .bind(filter.priority.map(Priority::rank))
        .bind(filter.hold_reason.as_deref())
        .bind(filter.created_before)
        .bind(filter.after)
        .bind(filter.limit.min(LIST_MAX))
        .all(&mut reader.db())
        .await?;
    rows.iter().map(listed).collect()
}

async fn show(readers: &Readers, id: Uuid, now: i64) -> Result<Option<Shown>, StoreError> {
    let mut snapshot = readers.snapshot().await?;
    let db = &mut snapshot.db();
    let Some(row) = query(SHOW).bind(id).optional(db).await? else { return Ok(None) };
    let listed = listed(&row)?;
    let mut history = Vec::new();
    for entry in query(HISTORY).bind(listed.seq).all(db).await? {
        history.push(Told {
            at: entry.get("ended_at")?,
            what: entry.get("what")?,
            code: entry.get("code")?,
            late: entry.get("late")?,
            actor: entry.get("actor")?,
            proposer: entry.get("proposer")?,
            reason: entry.get("reason")?,
        });
    }
    let decision = match listed.status.state() {
        0 | 1 => query(DECISION).bind(listed.seq).bind(now).optional(db).await?,
        _ => None,
    };
    Ok(Some(Shown {
        before: row.number("before")?,
        lease_owner: row.get("lease_owner")?,
        abandoned: row.number("abandoned")?,
        decision: decision.as_ref().map(decision::read).transpose()?,
        history,
        listed,
    }))
}

async fn queue_stats(readers: &Readers, now: i64) -> Result<QueueStats, StoreError> {
    let mut reader = readers.acquire().await?;
    let mut stats = QueueStats::default();
    for row in query(STATS).bind(now + HOUR_MS).all(&mut reader.db()).await? {
        let status = Status::of(row.get("state")?, row.get("leased")?)?;
        let oldest: i64 = row.get("oldest")?;
        if status != Status::Held {
            stats.oldest_ms = stats.oldest_ms.max(Some((now - oldest).max(0)));
        }
        if status == Status::Pending {
            stats.expiring += row.number::<u64>("expiring")?;
        }
        stats.cells.push(Cell {
            status,
            priority: Priority::of_rank(row.get("prio")?)?,
            target: row.get("target")?,
            hold_reason: row.get("hold_reason")?,
            rows: row.number("n")?,
            oldest_ms: (now - oldest).max(0),
        });
    }
    Ok(stats)
}

fn listed(row: &Row) -> Result<Listed, StoreError> {
    let hold_reason: Option<String> = row.get("hold_reason")?;
    let is_ambiguous = hold_reason.as_deref() == Some("ambiguous");
    Ok(Listed {
        seq: row.get("seq")?,
        facts: ItemFacts::read(row)?,
        status: Status::of(row.get("state")?, row.get("leased")?)?,
        sent_unknown: is_ambiguous || row.get("sent_unknown")?,
        hold_reason,
        dead_letter: row.get("dead")?,
        attempts: row.number("attempts")?,
        last_code: row.get("last_code")?,
        updated_at: row.get("updated_at")?,
    })
}

const HOUR_MS: i64 = 3_600_000;

/// What is told of a payment, and where it stands.
macro_rules! listed_columns {
    () => {
        "
SELECT i.seq, i.id, i.tenant, i.kind, i.target, i.reference, i.ord_key, i.prio, i.created_at,
       i.expires_at, i.state, i.hold_reason, i.sent_unknown, i.attempts, i.last_code,
       i.updated_at, l.leased IS NOT NULL AS leased,
       EXISTS (SELECT 1 FROM saf_dead_letter d WHERE d.item_seq = i.seq) AS dead"
    };
}

macro_rules! from_items {
    () => {
        "
FROM saf_item i
LEFT JOIN saf_lane l ON l.ord_key = i.ord_key AND l.head_seq = i.seq AND l.leased"
    };
}

/// A page in either order. `$which` lets a partial index be used; `$by` keeps from using another.
macro_rules! page {
    ($sqlite:literal, $postgres:literal, $by:literal) => {
        (
            page!($sqlite, $postgres, $by, ">", " LIMIT $9"),
            page!($sqlite, $postgres, $by, "<", " DESC LIMIT $9"),
        )
    };
    ($sqlite:literal, $postgres:literal, $by:literal, $than:literal, $order:literal) => {
        Sql::Each {
            sqlite: page!(@text $sqlite, $by, $than, $order),
            postgres: page!(@text $postgres, $by, $than, $order),
        }
    };
    (@text $which:literal, $by:literal, $than:literal, $order:literal) => {
        concat!(
            listed_columns!(),
            from_items!(),
            "
WHERE (",
            $which,
            ") AND ($2 IS NULL OR i.state <> 0 OR (l.leased IS NOT NULL) = $2)
  AND ($3 IS NULL OR i.target = $3) AND ($4 IS NULL OR i.kind = $4)
  AND ($5 IS NULL OR i.prio = $5) AND ($6 IS NULL OR i.hold_reason = $6)
  AND ($7 IS NULL OR i.created_at < $7) AND ($8 IS NULL OR i.seq ",
            $than,
            " $8)
ORDER BY ",
            $by,
            $order
        )
    };
}

type Page = (Sql, Sql);

const EVERY: Page = page!("$1 IS NOT NULL", "$1::bigint[] IS NOT NULL", "i.seq");

const SOME: Page =
    page!("i.state IN (SELECT value FROM json_each($1))", "i.state = ANY ($1)", "i.seq");

/// Few among many: the index says which.
pub(super) const UNPAID: Page = page!(
    "i.state NOT IN (0, 2) AND i.state IN (SELECT value FROM json_each($1))",
    "i.state NOT IN (0, 2) AND i.state = ANY ($1)",
    "i.seq"
);

/// Few among many.
const OPEN: Page = page!(
    "i.state < 2 AND i.state IN (SELECT value FROM json_each($1))",
    "i.state < 2 AND i.state = ANY ($1)",
    "i.seq + 0"
);

const SHOW: &str = concat!(
    listed_columns!(),
    ", i.abandoned, l.lease_owner,
       (SELECT count(*) FROM saf_item o
        WHERE o.ord_key = i.ord_key AND o.seq < i.seq AND o.state < 2) AS before",
    from_items!(),
    "
WHERE i.id = $1"
);

const HISTORY: &str = "
SELECT ended_at, what, code, late, actor, proposer, reason
FROM saf_attempt WHERE item_seq = $1 ORDER BY n";

const DECISION: &str = "
SELECT action, outcome, response_code, actor, reason, at, expires_at
FROM saf_decision WHERE item_seq = $1 AND expires_at > $2";

const STATS: &str = "
SELECT i.state, i.prio, i.target, i.hold_reason, l.leased IS NOT NULL AS leased, count(*) AS n,
       min(i.created_at) AS oldest,
       sum(CASE WHEN i.expires_at <= $1 THEN 1 ELSE 0 END) AS expiring
FROM saf_item i
LEFT JOIN saf_lane l ON l.ord_key = i.ord_key AND l.head_seq = i.seq AND l.leased
WHERE i.state < 2
GROUP BY 1, 2, 3, 4, 5 ORDER BY 3, 1, 5, 2, 4";
