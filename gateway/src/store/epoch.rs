//! How old the database is: a number that every look of a gateway raises, so that an old copy shows.

use uuid::Uuid;

use super::db::{Db, Row, Sql, locking, query};
use super::order::Order;
use super::place::BY_ROLLBACK;
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
    /// Raises the database's epoch; durable when this answers. A database that contradicts what was `last`
    /// seen of it is an old copy: in the same transaction every open payment counts as possibly sent, and
    /// every gateway on it waits. Says what contradicts.
    ///
    /// # Errors
    /// [`StoreError::Busy`], [`StoreError::Unavailable`].
    pub async fn raise_epoch(
        &self,
        last: Option<Epoch>,
    ) -> Result<(Epoch, Option<&'static str>), StoreError> {
        self.writer.ask(Raise { last }).await
    }

    /// Ends that wait. How many payments are open; `None` when nobody waited.
    ///
    /// # Errors
    /// [`StoreError::Busy`], [`StoreError::Unavailable`].
    pub async fn acknowledge_rollback(&self) -> Result<Option<u64>, StoreError> {
        self.writer.ask(Acknowledge).await
    }
}

impl Epoch {
    /// What is wrong with a database that looks like this, when it looked like `last` before.
    fn contradicts(&self, last: &Self) -> Option<&'static str> {
        if self.store != last.store {
            return Some("another database");
        }
        let is_behind = self.number < last.number || self.item_seq < last.item_seq;
        is_behind.then_some("an old copy")
    }
}

/// Compares and raises the epoch: an old copy never gets past its witness by being looked at.
struct Raise {
    last: Option<Epoch>,
}

impl Order for Raise {
    type Answer = (Epoch, Option<&'static str>);
    const LONG: bool = true;

    async fn run(&self, db: &mut Db<'_>, batch: &mut Batch) -> Result<Self::Answer, StoreError> {
        let now = read(&query(LOOK).one(db).await?)?;
        let found = self.last.as_ref().and_then(|last| now.contradicts(last));
        if found.is_some() {
            doubt(db, batch).await?;
            let above = self.last.map_or(0, |last| last.number);
            query(ROLL_BACK).bind(above).bind(batch.now).execute(db).await?;
        }
        Ok((read(&query(RAISE).one(db).await?)?, found))
    }
}

/// Lets the payments of an old copy leave again. How many are open; `None` when it is none.
struct Acknowledge;

impl Order for Acknowledge {
    type Answer = Option<u64>;
    const LONG: bool = true;

    async fn run(&self, db: &mut Db<'_>, batch: &mut Batch) -> Result<Option<u64>, StoreError> {
        if query(ACKNOWLEDGE).optional(db).await?.is_none() {
            return Ok(None);
        }
        batch.wake = true;
        doubt(db, batch).await.map(Some)
    }
}

/// Marks every open payment as possibly sent, which takes as long as there are many. Lanes first, as
/// everywhere.
async fn doubt(db: &mut Db<'_>, batch: &Batch) -> Result<u64, StoreError> {
    if let Db::Postgres(_) = db {
        query(NO_LIMIT).execute(db).await?;
    }
    query(LANES).one(db).await?;
    query(DOUBT).bind(batch.now).bind(BY_ROLLBACK).execute(db).await
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

/// Locks it, so that looks come one after another.
const LOOK: Sql = locking!(
    "
SELECT store, epoch,
       (SELECT coalesce(max(known), 0)
        FROM (SELECT e.item_seq AS known UNION ALL SELECT max(seq) FROM saf_item) AS places)
       AS item_seq, rolled_back_at
FROM saf_epoch e",
    "FOR UPDATE OF e"
);

const ROLL_BACK: &str = "
UPDATE saf_epoch
SET epoch = CASE WHEN epoch < $1 THEN $1 ELSE epoch END,
    rolled_back_at = coalesce(rolled_back_at, $2)";

const ACKNOWLEDGE: &str = "
UPDATE saf_epoch SET epoch = epoch + 1, rolled_back_at = NULL WHERE rolled_back_at IS NOT NULL
RETURNING one";

const NO_LIMIT: &str = "SET LOCAL statement_timeout = 0";

/// Counted, so that no row comes here.
const LANES: Sql = Sql::Each {
    sqlite: "SELECT count(*) FROM saf_lane",
    postgres: "
SELECT count(*) FROM (SELECT ord_key FROM saf_lane ORDER BY ord_key FOR UPDATE) AS locked",
};

/// Also of what was given up and may be tried again: it may have been, since.
const DOUBT: &str = "
UPDATE saf_item SET sent_unknown = TRUE, send_mark = $2, updated_at = $1
WHERE state < 2 OR seq IN (SELECT item_seq FROM saf_dead_letter)";
