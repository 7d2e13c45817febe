//! Wrapped data keys. Their clear form never comes here.

use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqlitePool, SqliteRow};

use super::StoreError;
use super::writer::{Batch, Order};

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

    async fn run(&self, db: &mut SqliteConnection, batch: &mut Batch) -> Result<i64, StoreError> {
        let dek_id = sqlx::query_scalar(INSERT)
            .bind(self.class.name())
            .bind(self.kek_version)
            .bind(self.wrapped.as_slice())
            .bind(batch.now)
            .bind(self.not_after)
            .fetch_one(db)
            .await?;
        Ok(dek_id)
    }
}

pub(super) struct Destroy {
    pub(super) class: DekClass,
    pub(super) before: i64,
}

impl Order for Destroy {
    type Answer = Vec<i64>;

    async fn run(
        &self,
        db: &mut SqliteConnection,
        batch: &mut Batch,
    ) -> Result<Vec<i64>, StoreError> {
        let destroyed = sqlx::query_scalar(DESTROY)
            .bind(self.class.name())
            .bind(self.before)
            .bind(batch.now)
            .fetch_all(db)
            .await?;
        // The log still holds the wrapped key.
        batch.fold |= !destroyed.is_empty();
        Ok(destroyed)
    }
}

pub(super) async fn one(readers: &SqlitePool, dek_id: i64) -> Result<Option<DekRow>, StoreError> {
    let row = sqlx::query(ONE).bind(dek_id).fetch_optional(readers).await?;
    row.as_ref().map(read).transpose()
}

pub(super) async fn of_class(
    readers: &SqlitePool,
    class: DekClass,
) -> Result<Vec<DekRow>, StoreError> {
    let rows = sqlx::query(OF_CLASS).bind(class.name()).fetch_all(readers).await?;
    rows.iter().map(read).collect()
}

fn read(row: &SqliteRow) -> Result<DekRow, StoreError> {
    Ok(DekRow {
        dek_id: row.try_get("dek_id")?,
        kek_version: row.try_get("kek_version")?,
        wrapped: row.try_get("wrapped")?,
        not_after: row.try_get("not_after")?,
    })
}

const INSERT: &str = "
INSERT INTO saf_dek (class, kek_version, wrapped, created_at, not_after)
VALUES (?1, ?2, ?3, ?4, ?5) RETURNING dek_id";

const ONE: &str = "
SELECT dek_id, kek_version, wrapped, not_after FROM saf_dek
WHERE dek_id = ?1 AND wrapped IS NOT NULL";

const OF_CLASS: &str = "
SELECT dek_id, kek_version, wrapped, not_after FROM saf_dek
WHERE class = ?1 AND wrapped IS NOT NULL ORDER BY dek_id";

const DESTROY: &str = "
UPDATE saf_dek SET wrapped = NULL, destroyed_at = ?3
WHERE class = ?1 AND not_after < ?2 AND wrapped IS NOT NULL
  AND NOT EXISTS (SELECT 1 FROM saf_item i WHERE i.dek_id = saf_dek.dek_id)
  AND NOT EXISTS (SELECT 1 FROM saf_item i WHERE i.pin_dek_id = saf_dek.dek_id)
  AND NOT EXISTS (SELECT 1 FROM idem_key k WHERE k.res_dek_id = saf_dek.dek_id)
RETURNING dek_id";
