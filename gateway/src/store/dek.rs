//! Wrapped data keys. Their clear form never comes here.

use super::db::{Db, Readers, Row, query};
use super::order::Order;
use super::writer::Batch;
use super::{Store, StoreError, error};

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

impl Store {
    /// Data keys that are not destroyed, those under the oldest version of the KEK first.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn oldest_wrapped_deks(&self, rows: u32) -> Result<Vec<DekRow>, StoreError> {
        error::within(oldest_wrapped(&self.readers, rows)).await
    }

    /// How many data keys are wrapped under a version of the KEK.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn deks_under(&self, kek_version: u32) -> Result<i64, StoreError> {
        error::within(under(&self.readers, kek_version)).await
    }

    /// Keeps a data key's form under the version `to` of the KEK in the place of that under `from`.
    ///
    /// # Errors
    /// [`StoreError::Busy`], [`StoreError::Unavailable`].
    pub async fn rewrap_dek(
        &self,
        dek_id: i64,
        from: u32,
        wrapped: Vec<u8>,
        to: u32,
    ) -> Result<(), StoreError> {
        self.writer.ask(Rewrap { dek_id, from, wrapped, to }).await
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

/// Puts another wrapped form in the place of one under this version, if it is still there.
struct Rewrap {
    dek_id: i64,
    from: u32,
    wrapped: Vec<u8>,
    to: u32,
}

impl Order for Rewrap {
    type Answer = ();

    async fn run(&self, db: &mut Db<'_>, batch: &mut Batch) -> Result<(), StoreError> {
        query(REWRAP)
            .bind(self.dek_id)
            .bind(self.from)
            .bind(self.wrapped.as_slice())
            .bind(self.to)
            .execute(db)
            .await?;
        // The log still holds the form under the old KEK.
        batch.fold = true;
        Ok(())
    }
}

/// Those under the oldest versions of the KEK.
async fn oldest_wrapped(readers: &Readers, rows: u32) -> Result<Vec<DekRow>, StoreError> {
    let mut reader = readers.acquire().await?;
    let rows = query(OLDEST).bind(rows).all(&mut reader.db()).await?;
    rows.iter().map(read).collect()
}

/// How many there are under one version.
async fn under(readers: &Readers, kek_version: u32) -> Result<i64, StoreError> {
    let mut reader = readers.acquire().await?;
    query(UNDER).bind(kek_version).one(&mut reader.db()).await?.value()
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

const OLDEST: &str = "
SELECT dek_id, kek_version, wrapped, not_after FROM saf_dek
WHERE wrapped IS NOT NULL ORDER BY kek_version, dek_id LIMIT $1";

const UNDER: &str = "
SELECT count(*) FROM saf_dek WHERE wrapped IS NOT NULL AND kek_version = $1";

const REWRAP: &str = "
UPDATE saf_dek SET wrapped = $3, kek_version = $4
WHERE dek_id = $1 AND kek_version = $2 AND wrapped IS NOT NULL";

const DESTROY: &str = "
UPDATE saf_dek SET wrapped = NULL, destroyed_at = $3
WHERE class = $1 AND not_after < $2 AND wrapped IS NOT NULL
  AND NOT EXISTS (SELECT 1 FROM saf_item i WHERE i.dek_id = saf_dek.dek_id)
  AND NOT EXISTS (SELECT 1 FROM saf_item i WHERE i.pin_dek_id = saf_dek.dek_id)
  AND NOT EXISTS (SELECT 1 FROM saf_item i WHERE i.res_dek_id = saf_dek.dek_id)
  AND NOT EXISTS (SELECT 1 FROM saf_dead_letter d WHERE d.dek_id = saf_dek.dek_id)
RETURNING dek_id";
