//! Wrapped data keys. Their clear form never comes here.

use super::StoreError;
use super::db::{Db, Readers, Row, query};
use super::order::Order;
use super::writer::Batch;

/// What a data key seals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DekClass {
    /// Payloads and answers.
    Record,
    /// PIN blocks, of one short window.
    Pin,
    /// Nothing: it keys the hashes of accounts and requests. There is one.
    Index,
}

impl DekClass {
    /// `record`, `pin`, `index`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Record => "record",
            Self::Pin => "pin",
            Self::Index => "index",
        }
    }
}

/// A data key to keep.
#[derive(Debug, Clone)]
pub struct NewDek {
    /// What it seals.
    pub class: DekClass,
    /// The version of the KEK that wraps it.
    pub kek_version: u32,
    /// Under the KEK.
    pub wrapped: Vec<u8>,
    /// Epoch milliseconds: from then on it only opens.
    pub not_after: i64,
}

/// A data key that is kept.
#[derive(Debug, Clone)]
pub struct DekRow {
    /// What sealed rows refer to.
    pub dek_id: i64,
    /// The version of the KEK that wraps it.
    pub kek_version: u32,
    /// Under the KEK.
    pub wrapped: Vec<u8>,
    /// Epoch milliseconds: from then on it only opens.
    pub not_after: i64,
}

impl Order for NewDek {
    type Answer = i64;

    async fn run(&self, db: &mut Db<'_>, batch: &mut Batch) -> Result<i64, StoreError> {
        let row = query(INSERT)
            .bind(self.class.name())
            .bind(self.kek_version)
            .bind(self.wrapped.as_slice())
            .bind(batch.now)
            .bind(self.not_after)
            .one(db)
            .await?;
        row.value()
    }
}

pub(super) struct Destroy {
    pub(super) class: DekClass,
    pub(super) before: i64,
}

impl Order for Destroy {
    type Answer = Vec<i64>;

    async fn run(&self, db: &mut Db<'_>, batch: &mut Batch) -> Result<Vec<i64>, StoreError> {
        let destroyed = query(DESTROY)
            .bind(self.class.name())
            .bind(self.before)
            .bind(batch.now)
            .all(db)
            .await?;
        // The log still holds the wrapped key.
        batch.fold |= !destroyed.is_empty();
        destroyed.iter().map(Row::value).collect()
    }
}

pub(super) async fn one(readers: &Readers, dek_id: i64) -> Result<Option<DekRow>, StoreError> {
    let mut reader = readers.acquire().await?;
    let row = query(ONE).bind(dek_id).optional(&mut reader.db()).await?;
    row.as_ref().map(read).transpose()
}

pub(super) async fn of_class(
    readers: &Readers,
    class: DekClass,
) -> Result<Vec<DekRow>, StoreError> {
    let mut reader = readers.acquire().await?;
    let rows = query(OF_CLASS).bind(class.name()).all(&mut reader.db()).await?;
    rows.iter().map(read).collect()
}

fn read(row: &Row) -> Result<DekRow, StoreError> {
    Ok(DekRow {
        dek_id: row.get("dek_id")?,
        kek_version: row.number("kek_version")?,
        wrapped: row.get("wrapped")?,
        not_after: row.get("not_after")?,
    })
}

const INSERT: &str = "
INSERT INTO saf_dek (class, kek_version, wrapped, created_at, not_after)
VALUES ($1, $2, $3, $4, $5) RETURNING dek_id";

const ONE: &str = "
SELECT dek_id, kek_version, wrapped, not_after FROM saf_dek
WHERE dek_id = $1 AND wrapped IS NOT NULL";

const OF_CLASS: &str = "
SELECT dek_id, kek_version, wrapped, not_after FROM saf_dek
WHERE class = $1 AND wrapped IS NOT NULL ORDER BY dek_id";

const DESTROY: &str = "
UPDATE saf_dek SET wrapped = NULL, destroyed_at = $3
WHERE class = $1 AND not_after < $2 AND wrapped IS NOT NULL
  AND NOT EXISTS (SELECT 1 FROM saf_item i WHERE i.dek_id = saf_dek.dek_id)
  AND NOT EXISTS (SELECT 1 FROM saf_item i WHERE i.pin_dek_id = saf_dek.dek_id)
  AND NOT EXISTS (SELECT 1 FROM saf_item i WHERE i.res_dek_id = saf_dek.dek_id)
  AND NOT EXISTS (SELECT 1 FROM saf_dead_letter d WHERE d.dek_id = saf_dek.dek_id)
RETURNING dek_id";
