//! Four eyes: what one operator wants done with a payment that may have been made waits here until
//! another one says the same.

use super::db::{Db, Row, locking, query};
use super::operate::{Action, Operation};
use super::writer::Batch;
use super::{Outcome, StoreError};

/// What waits for a second operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenDecision {
    /// `release`, `retry`, `cancel` or `settle`.
    pub action: String,
    /// Of a settlement: whether it was found paid, and the code to answer with.
    pub found: Option<(bool, String)>,
    /// Who proposed it.
    pub actor: String,
    /// In the proposer's words.
    pub reason: String,
    /// Epoch milliseconds.
    pub at: i64,
    /// Epoch milliseconds: from then on it counts no more.
    pub expires_at: i64,
}

/// What an operator's word comes to.
pub(super) enum Weighed {
    /// It is the second: do it.
    Second { proposer: String },
    /// It is the first: it waits.
    First(OpenDecision),
    /// It is the first one's again.
    Own(OpenDecision),
    /// Something else is proposed.
    Other(OpenDecision),
}

/// Weighs an operator's word on a payment whose row is locked.
pub(super) async fn weigh(
    db: &mut Db<'_>,
    batch: &Batch,
    seq: i64,
    word: &Operation,
) -> Result<Weighed, StoreError> {
    let (action, found) = (word.action.name(), found(&word.action));
    if let Some(open) = locked(db, seq).await?.filter(|open| open.expires_at > batch.now) {
        return Ok(if (&*open.action, &open.found) != (action, &found) {
            Weighed::Other(open)
        } else if open.actor == word.actor {
            Weighed::Own(open)
        } else {
            Weighed::Second { proposer: open.actor }
        });
    }
    let open = OpenDecision {
        action: action.to_owned(),
        found,
        actor: word.actor.clone(),
        reason: word.reason.clone(),
        at: batch.now,
        expires_at: batch.now + LIFE_MS,
    };
    let (outcome, code) = match &open.found {
        Some((paid, code)) => (Some(if *paid { "paid" } else { "failed" }), Some(code.as_str())),
        None => (None, None),
    };
    query(PROPOSE)
        .bind(seq)
        .bind(action)
        .bind(outcome)
        .bind(code)
        .bind(&open.actor)
        .bind(&open.reason)
        .bind(open.at)
        .bind(open.expires_at)
        .execute(db)
        .await?;
    Ok(Weighed::First(open))
}

/// The decision on a payment whose row is locked, expired or not.
pub(super) async fn locked(db: &mut Db<'_>, seq: i64) -> Result<Option<OpenDecision>, StoreError> {
    let row = query(ONE).bind(seq).optional(db).await?;
    row.as_ref().map(read).transpose()
}

/// Forgets what was proposed: it is done, taken back, or has no object any more.
pub(super) async fn end(db: &mut Db<'_>, seq: i64) -> Result<(), StoreError> {
    query("DELETE FROM saf_decision WHERE item_seq = $1").bind(seq).execute(db).await?;
    Ok(())
}

pub(super) fn read(row: &Row) -> Result<OpenDecision, StoreError> {
    let outcome: Option<String> = row.get("outcome")?;
    let code: Option<String> = row.get("response_code")?;
    Ok(OpenDecision {
        action: row.get("action")?,
        found: outcome.zip(code).map(|(outcome, code)| (outcome == "paid", code)),
        actor: row.get("actor")?,
        reason: row.get("reason")?,
        at: row.get("at")?,
        expires_at: row.get("expires_at")?,
    })
}

fn found(action: &Action) -> Option<(bool, String)> {
    match action {
        Action::Settle(ending) => Some((ending.outcome == Outcome::Done, ending.code.clone())),
        Action::Hold | Action::Release | Action::Retry | Action::Cancel(_) | Action::Withdraw => {
            None
        }
    }
}

/// How long a proposal waits for a second operator: 24 h.
const LIFE_MS: i64 = 24 * 3_600_000;

const ONE: super::db::Sql = locking!(
    "
SELECT action, outcome, response_code, actor, reason, at, expires_at
FROM saf_decision WHERE item_seq = $1"
);

/// One that has expired gives its place.
const PROPOSE: &str = "
INSERT INTO saf_decision (item_seq, action, outcome, response_code, actor, reason, at, expires_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
ON CONFLICT (item_seq) DO UPDATE SET
    action = excluded.action, outcome = excluded.outcome, response_code = excluded.response_code,
    actor = excluded.actor, reason = excluded.reason, at = excluded.at,
    expires_at = excluded.expires_at";
