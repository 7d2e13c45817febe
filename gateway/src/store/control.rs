//! Billers that an operator has paused: nothing of theirs is claimed, by any replica, until they are
//! resumed.

use super::db::{Db, Readers, query};
use super::error::within;
use super::order::Order;
use super::writer::Batch;
use super::{Store, StoreError};

/// What an operator last said of a biller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Control {
    /// The biller.
    pub target: String,
    /// Whether it is paused.
    pub paused: bool,
    /// The operator.
    pub actor: String,
    /// In the operator's words.
    pub reason: String,
}

/// The same, with its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StandingControl {
    /// What was said.
    pub control: Control,
    /// When. Epoch milliseconds.
    pub at: i64,
}

impl Store {
    /// Pauses or resumes a biller. While it is paused nothing of it is claimed: here from now on, by
    /// other gateways within a second. What is being sent is brought to its end.
    ///
    /// # Errors
    /// [`StoreError::Busy`], [`StoreError::Unavailable`].
    pub async fn control(&self, control: Control) -> Result<(), StoreError> {
        self.writer.ask(control).await
    }

    /// What operators last said of each biller, by name.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn controls(&self) -> Result<Vec<StandingControl>, StoreError> {
        within(all(&self.readers)).await
    }
}

impl Order for Control {
    type Answer = ();

    async fn run(&self, db: &mut Db<'_>, batch: &mut Batch) -> Result<(), StoreError> {
        query(SET)
            .bind(&self.target)
            .bind(self.paused)
            .bind(&self.actor)
            .bind(&self.reason)
            .bind(batch.now)
            .execute(db)
            .await?;
        batch.depth.pause(&self.target, self.paused);
        batch.wake |= !self.paused;
        Ok(())
    }
}

async fn all(readers: &Readers) -> Result<Vec<StandingControl>, StoreError> {
    let mut reader = readers.acquire().await?;
    let mut controls = Vec::new();
    for row in query(ALL).bind(CONTROLS_MAX).all(&mut reader.db()).await? {
        let (target, paused) = (row.get("target")?, row.get("paused")?);
        let (actor, reason) = (row.get("actor")?, row.get("reason")?);
        let control = Control { target, paused, actor, reason };
        controls.push(StandingControl { control, at: row.get("at")? });
    }
    Ok(controls)
}

/// More than a configuration has billers.
const CONTROLS_MAX: i64 = 1_024;

/// By operators; in an old copy that nobody has acknowledged: all, which is [`ALL`](super::depth::ALL).
pub(super) const PAUSED: &str = "
SELECT target FROM saf_control WHERE paused
UNION ALL
SELECT '*' FROM saf_epoch WHERE rolled_back_at IS NOT NULL";

const SET: &str = "
INSERT INTO saf_control (target, paused, actor, reason, at) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (target) DO UPDATE SET
    paused = excluded.paused, actor = excluded.actor, reason = excluded.reason, at = excluded.at";

const ALL: &str = "
SELECT target, paused, actor, reason, at FROM saf_control ORDER BY target LIMIT $1";
