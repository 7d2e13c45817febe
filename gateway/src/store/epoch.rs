//! How old the database is: a number that every look of a gateway raises, so that an old copy shows.

use uuid::Uuid;

use super::db::{Db, Row, Sql, Table, locking, query};
use super::depth::ALL;
use super::order::Order;
use super::place::BY_ROLLBACK;
use super::writer::Batch;
use super::{OrdKey, Store, StoreError};

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
    /// Raises the database's epoch; durable when this answers. One that contradicts what was `last` seen of
    /// it, or in which something is `missing`, is an old copy: this says so, and no gateway leases anything of it (others follow within a second)
    /// until an operator acknowledges.
    ///
    /// # Errors
    /// [`StoreError::Busy`], [`StoreError::Unavailable`].
    pub async fn raise_epoch(
        &self,
        last: Option<Epoch>,
        missing: Option<&'static str>,
    ) -> Result<(Epoch, Option<&'static str>), StoreError> {
        self.writer.ask(Raise { last, missing }).await
    }

    /// Ends that, when all that the copy has open, or has given up and may try again, counts as possibly sent:
    /// it may have been, since. That is done in steps, and repeated after an error; what was done stays.
    /// How many payments are open; `None` when it was no old copy.
    ///
    /// # Errors
    /// [`StoreError::Busy`], [`StoreError::Unavailable`].
    pub async fn acknowledge_rollback(&self) -> Result<Option<u64>, StoreError> {
        // Those that were given up first: one that is tried again meanwhile is among the open ones then.
        let mut after = Some(0);
        while let Some(seq) = after {
            after = self.writer.ask(DoubtDead { after: seq }).await?;
        }
        let mut after = Some((OrdKey([0; 16]), 0));
        while let Some(place) = after {
            after = self.writer.ask(DoubtOpen { after: place }).await?;
        }
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
    missing: Option<&'static str>,
}

impl Order for Raise {
    type Answer = (Epoch, Option<&'static str>);

    async fn run(&self, db: &mut Db<'_>, batch: &mut Batch) -> Result<Self::Answer, StoreError> {
        let now = read(&query(LOOK).one(db).await?)?;
        let contradiction = self.last.as_ref().and_then(|last| now.contradicts(last));
        let found = contradiction.or(self.missing);
        if found.is_some() {
            // For what else this transaction does, too.
            batch.depth.pause(ALL, true);
            let above = self.last.map_or(0, |last| last.number);
            query(ROLL_BACK).bind(above).bind(batch.now).execute(db).await?;
        }
        Ok((read(&query(RAISE).one(db).await?)?, found))
    }
}

/// Some of what an old copy has given up and keeps for another try. The last of them; `None` after the last.
struct DoubtDead {
    after: i64,
}

impl Order for DoubtDead {
    type Answer = Option<i64>;

    async fn run(&self, db: &mut Db<'_>, batch: &mut Batch) -> Result<Option<i64>, StoreError> {
        let rows = query(DEAD).bind(self.after).bind(STEP).all(db).await?;
        let seqs = rows.iter().map(Row::value).collect::<Result<Vec<i64>, _>>()?;
        let last = seqs.last().copied();
        doubt(DOUBT, seqs, db, batch).await?;
        Ok(last)
    }
}

/// Some of what an old copy has open, likewise, lane by lane. Lanes are locked first, as everywhere.
struct DoubtOpen {
    after: (OrdKey, i64),
}

impl Order for DoubtOpen {
    type Answer = Option<(OrdKey, i64)>;

    async fn run(&self, db: &mut Db<'_>, batch: &mut Batch) -> Result<Self::Answer, StoreError> {
        let (ord_key, seq) = self.after;
        let rows = query(OPEN).bind(ord_key.0.as_slice()).bind(seq).bind(STEP).all(db).await?;
        let (mut seqs, mut lanes) = (Vec::with_capacity(rows.len()), Vec::<OrdKey>::new());
        for row in &rows {
            seqs.push(row.get::<i64>("seq")?);
            lanes.push(OrdKey(row.bytes("ord_key")?));
        }
        let last = lanes.last().copied().zip(seqs.last().copied());
        lanes.dedup();
        LANES.run(lanes.iter().map(|lane| lane.0.as_slice().into()).collect(), db).await?;
        doubt(DOUBT_OPEN, seqs, db, batch).await?;
        Ok(last)
    }
}

async fn doubt(
    statement: Sql,
    seqs: Vec<i64>,
    db: &mut Db<'_>,
    batch: &Batch,
) -> Result<(), StoreError> {
    let doubted = query(statement).bind(batch.now).bind(BY_ROLLBACK).bind(seqs).execute(db).await;
    doubted.map(drop)
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
        batch.depth.pause(ALL, false);
        query(COUNT).one(db).await?.number("n").map(Some)
    }
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

/// Rows of one step: it takes much less than a statement may.
const STEP: i64 = 2_000;

const DEAD: &str = "
SELECT item_seq FROM saf_dead_letter
WHERE item_seq > $1 AND EXISTS (SELECT 1 FROM saf_epoch WHERE rolled_back_at IS NOT NULL)
ORDER BY item_seq LIMIT $2";

pub(super) const OPEN: &str = "
SELECT ord_key, seq FROM saf_item
WHERE state < 2 AND (ord_key, seq) > ($1, $2)
  AND EXISTS (SELECT 1 FROM saf_epoch WHERE rolled_back_at IS NOT NULL)
ORDER BY ord_key, seq LIMIT $3";

const LANES: Table = Table {
    before: "SELECT l.ord_key FROM saf_lane l WHERE l.ord_key IN (SELECT column1 FROM",
    columns: 1,
    after: Sql::Each { sqlite: "keys)", postgres: "keys) ORDER BY l.ord_key FOR UPDATE" },
};

macro_rules! doubt {
    ($also:literal) => {
        Sql::Each {
            sqlite: concat!(
                "
UPDATE saf_item SET sent_unknown = TRUE, send_mark = $2, updated_at = $1
WHERE seq IN (SELECT value FROM json_each($3))",
                $also
            ),
            postgres: concat!(
                "
UPDATE saf_item SET sent_unknown = TRUE, send_mark = $2, updated_at = $1
WHERE seq = ANY ($3)",
                $also
            ),
        }
    };
}

const DOUBT: Sql = doubt!("");

const DOUBT_OPEN: Sql = doubt!(" AND state < 2");

const COUNT: &str = "SELECT count(*) AS n FROM saf_item WHERE state < 2";
