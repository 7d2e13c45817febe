//! How old the database is: a number that every look of a gateway raises, so that an old copy shows.

use uuid::Uuid;

use super::db::{Db, Row, Sql, locking, query};
use super::order::Order;
use super::writer::Batch;
use super::{Store, StoreError};

/// The database's age, as one look has left it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Epoch {
    /// Which database: a copy has the same.
    pub store: Uuid,
    /// Looks so far, of all gateways.
    pub number: i64,
    /// The last place that a payment was given, in line of all payments ever.
    pub item_seq: i64,
    /// Whether it is an old copy that nobody has acknowledged.
    pub rolled_back: bool,
}

impl Store {
    /// Raises the database's epoch; durable when this answers.
    ///
    /// # Errors
    /// [`StoreError::Busy`], [`StoreError::Unavailable`].
    pub async fn raise_epoch(&self) -> Result<Epoch, StoreError> {
        self.writer.ask(Raise).await
    }

    /// Takes the database for an old copy, whose epoch was `seen` before: every open payment counts as
    /// possibly sent, and every gateway on it waits.
    ///
    /// # Errors
    /// [`StoreError::Busy`], [`StoreError::Unavailable`].
    pub async fn roll_back(&self, seen: i64) -> Result<Epoch, StoreError> {
        self.writer.ask(RollBack { seen }).await
    }

    /// Ends that wait. How many payments are open; `None` when nobody waited.
    ///
    /// # Errors
    /// [`StoreError::Busy`], [`StoreError::Unavailable`].
    pub async fn acknowledge_rollback(&self) -> Result<Option<u64>, StoreError> {
        self.writer.ask(Acknowledge).await
    }
}

/// Raises the epoch.
struct Raise;

impl Order for Raise {
    type Answer = Epoch;

    async fn run(&self, db: &mut Db<'_>, _: &mut Batch) -> Result<Epoch, StoreError> {
        read(&query(RAISE).one(db).await?)
    }
}

/// Takes the database for an old copy: raises its epoch above `seen`, and whatever is open may have
/// been sent.
struct RollBack {
    seen: i64,
}

impl Order for RollBack {
    type Answer = Epoch;

    async fn run(&self, db: &mut Db<'_>, batch: &mut Batch) -> Result<Epoch, StoreError> {
        doubt(db, batch).await?;
        read(&query(ROLL_BACK).bind(self.seen).bind(batch.now).one(db).await?)
    }
}

/// Lets the payments of an old copy leave again. How many are open; `None` when it is none.
struct Acknowledge;

impl Order for Acknowledge {
    type Answer = Option<u64>;

    async fn run(&self, db: &mut Db<'_>, batch: &mut Batch) -> Result<Option<u64>, StoreError> {
        if query(ACKNOWLEDGE).optional(db).await?.is_none() {
            return Ok(None);
        }
        batch.wake = true;
        doubt(db, batch).await.map(Some)
    }
}

/// Marks every open payment as possibly sent. Lanes first, as everywhere.
async fn doubt(db: &mut Db<'_>, batch: &Batch) -> Result<u64, StoreError> {
    query(LANES).all(db).await?;
    query(DOUBT).bind(batch.now).execute(db).await
}

fn read(row: &Row) -> Result<Epoch, StoreError> {
    Ok(Epoch {
        store: row.get("store")?,
        number: row.get("epoch")?,
        item_seq: row.get("item_seq")?,
        rolled_back: row.get::<Option<i64>>("rolled_back_at")?.is_some(),
    })
}

const RAISE: &str = "
UPDATE saf_epoch
SET epoch = epoch + 1,
    item_seq = (SELECT coalesce(max(known), 0)
                FROM (SELECT item_seq AS known UNION ALL SELECT max(seq) FROM saf_item) AS places)
RETURNING store, epoch, item_seq, rolled_back_at";

const ROLL_BACK: &str = "
UPDATE saf_epoch
SET epoch = CASE WHEN epoch < $1 THEN $1 ELSE epoch END + 1,
    rolled_back_at = coalesce(rolled_back_at, $2)
RETURNING store, epoch, item_seq, rolled_back_at";

const ACKNOWLEDGE: &str = "
UPDATE saf_epoch SET epoch = epoch + 1, rolled_back_at = NULL WHERE rolled_back_at IS NOT NULL
RETURNING one";

const LANES: Sql = locking!("SELECT ord_key FROM saf_lane ORDER BY ord_key");

const DOUBT: &str = "
UPDATE saf_item SET sent_unknown = TRUE, updated_at = $1 WHERE state < 2";
