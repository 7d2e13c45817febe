//! Changes of the token's keys: proposed by one officer, approved by another, applied once.
//!
//! Dual control is a constraint of the table too: no row can be approved by its proposer. An import
//! carries its key block, enciphered, until it is applied or ends otherwise; then it is wiped.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::StoreError;
use super::clock::ms;
use super::db::{Db, Readers, Row, Sql, locking, query};
use super::order::Order;
use super::writer::Batch;

/// What a change does to a key version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyChangeKind {
    /// Brings a key from a key block, staged.
    Import,
    /// Puts a staged version to use; the one that was active retires.
    Activate,
    /// Takes the active version out of use for anything new.
    Retire,
    /// Takes a version out of all use at once: somebody else may know it.
    Compromise,
}

impl KeyChangeKind {
    const ALL: [Self; 4] = [Self::Import, Self::Activate, Self::Retire, Self::Compromise];

    /// `import`, `activate`, `retire`, `compromise`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Import => "import",
            Self::Activate => "activate",
            Self::Retire => "retire",
            Self::Compromise => "compromise",
        }
    }

    /// Whether a second officer must approve it. A compromise must not wait for one.
    #[must_use]
    pub fn needs_two(self) -> bool {
        self != Self::Compromise
    }
}

/// How far a change has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyChangeState {
    /// It waits for a second officer.
    Proposed,
    /// It waits for the token.
    Approved,
    /// Done.
    Applied,
    /// By an officer, or by the worker: then `error` says why.
    Refused,
    /// By its proposer.
    Withdrawn,
    /// Nobody decided in time.
    Expired,
}

impl KeyChangeState {
    const ALL: [Self; 6] = [
        Self::Proposed,
        Self::Approved,
        Self::Applied,
        Self::Refused,
        Self::Withdrawn,
        Self::Expired,
    ];

    /// `proposed`, `approved`, `applied`, `refused`, `withdrawn`, `expired`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Proposed => "proposed",
            Self::Approved => "approved",
            Self::Applied => "applied",
            Self::Refused => "refused",
            Self::Withdrawn => "withdrawn",
            Self::Expired => "expired",
        }
    }
}

/// What an import brings.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyImport {
    /// The key's profile as JSON.
    pub profile: String,
    /// The label of the key that protects the block.
    pub kbpk: String,
    /// Its version; `None` for the active one.
    pub kbpk_version: Option<u32>,
    /// The key block; `None` once it is wiped.
    pub block: Option<String>,
}

impl fmt::Debug for KeyImport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyImport(under {})", self.kbpk)
    }
}

/// A change that an officer asks for.
#[derive(Debug, Clone)]
pub struct NewKeyChange {
    /// What it does.
    pub kind: KeyChangeKind,
    /// Of the key.
    pub label: String,
    /// Of the key.
    pub version: u32,
    /// For an import, and only there.
    pub import: Option<KeyImport>,
    /// How long the version that retires still verifies and deciphers; no end when absent.
    pub overlap_s: Option<u32>,
    /// Why, in the proposer's words.
    pub reason: String,
    /// Who proposes it.
    pub proposer: String,
    /// How long it may wait for a second officer.
    pub life: Duration,
    /// Changes that may wait for one at a time.
    pub proposals_max: u32,
}

/// A change as the table has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyChange {
    /// Names it among all changes; grows.
    pub number: i64,
    /// What it does.
    pub kind: KeyChangeKind,
    /// Of the key.
    pub label: String,
    /// Of the key.
    pub version: u32,
    /// For an import.
    pub import: Option<KeyImport>,
    /// See [`NewKeyChange::overlap_s`].
    pub overlap_s: Option<u32>,
    /// How far it has come.
    pub state: KeyChangeState,
    /// Why, in the proposer's words.
    pub reason: String,
    /// Who proposed it.
    pub proposer: String,
    /// Epoch milliseconds.
    pub proposed_at: i64,
    /// Epoch milliseconds: without a decision until then it ends.
    pub expires_at: i64,
    /// Who approved, refused or withdrew it.
    pub decider: Option<String>,
    /// In whose words.
    pub decision_reason: Option<String>,
    /// Epoch milliseconds.
    pub decided_at: Option<i64>,
    /// Its number in the workers' registers, once it was tried.
    pub register_change: Option<u64>,
    /// Epoch milliseconds: since when it is in force on a link, and on record. Then it is made on the
    /// others under the same number.
    pub made_at: Option<i64>,
    /// Why the worker refused it.
    pub error: Option<String>,
    /// Epoch milliseconds.
    pub ended_at: Option<i64>,
}

/// What an officer may do with a proposal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Another officer than the proposer.
    Approve,
    /// Another officer than the proposer.
    Refuse,
    /// The proposer alone.
    Withdraw,
}

/// What came of a proposal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proposed {
    /// It stands.
    Made(Box<KeyChange>),
    /// `proposals_max` wait already.
    Full,
}

/// What came of a decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decided {
    /// It holds.
    Done(Box<KeyChange>),
    /// This officer may not decide so: his own proposal, or not his. Nothing changed.
    NotBy(Box<KeyChange>),
    /// It does not wait for a decision any more. Nothing changed.
    NotOpen(Box<KeyChange>),
    /// There is no such change.
    Unknown,
}

impl Order for NewKeyChange {
    type Answer = Proposed;

    async fn run(&self, db: &mut Db<'_>, batch: &mut Batch) -> Result<Proposed, StoreError> {
        let waiting: i64 = query(WAITING).one(db).await?.value()?;
        if self.kind.needs_two() && waiting >= i64::from(self.proposals_max) {
            return Ok(Proposed::Full);
        }
        query(FORGET).bind(KEPT_MAX).execute(db).await?;
        let state = match self.kind.needs_two() {
            true => KeyChangeState::Proposed,
            false => KeyChangeState::Approved,
        };
        let import = self.import.as_ref();
        let row = query(PROPOSE)
            .bind(self.kind.name())
            .bind(&self.label)
            .bind(self.version)
            .bind(import.map(|import| import.profile.as_str()))
            .bind(import.map(|import| import.kbpk.as_str()))
            .bind(import.and_then(|import| import.kbpk_version))
            .bind(import.and_then(|import| import.block.as_deref()))
            .bind(self.overlap_s)
            .bind(state.name())
            .bind(&self.reason)
            .bind(&self.proposer)
            .bind(batch.now)
            .bind(batch.now.saturating_add(ms(self.life)))
            .one(db)
            .await?;
        Ok(Proposed::Made(Box::new(read(&row)?)))
    }
}

pub(super) struct Decide {
    pub(super) number: i64,
    pub(super) decision: Decision,
    pub(super) officer: String,
    pub(super) reason: String,
}

impl Order for Decide {
    type Answer = Decided;

    async fn run(&self, db: &mut Db<'_>, batch: &mut Batch) -> Result<Decided, StoreError> {
        let found = query(ONE_LOCKED).bind(self.number).optional(db).await?;
        let Some(change) = found.as_ref().map(read).transpose()? else {
            return Ok(Decided::Unknown);
        };
        let change = Box::new(change);
        if change.state != KeyChangeState::Proposed || change.expires_at <= batch.now {
            return Ok(Decided::NotOpen(change));
        }
        let own = change.proposer == self.officer;
        let (by_proposer, state, ended) = match self.decision {
            Decision::Approve => (false, KeyChangeState::Approved, None),
            Decision::Refuse => (false, KeyChangeState::Refused, Some(batch.now)),
            Decision::Withdraw => (true, KeyChangeState::Withdrawn, Some(batch.now)),
        };
        if own != by_proposer {
            return Ok(Decided::NotBy(change));
        }
        // The log still holds the block.
        batch.fold |= ended.is_some();
        let row = query(DECIDE)
            .bind(self.number)
            .bind(state.name())
            .bind(&self.officer)
            .bind(&self.reason)
            .bind(batch.now)
            .bind(ended)
            .one(db)
            .await?;
        Ok(Decided::Done(Box::new(read(&row)?)))
    }
}

/// Gives an approved change its number in the registers: above `above` and above all that were given to
/// others. One that it has already and that is so stays.
pub(super) struct NumberKeyChange {
    pub(super) number: i64,
    pub(super) above: u64,
}

impl Order for NumberKeyChange {
    type Answer = u64;

    async fn run(&self, db: &mut Db<'_>, _: &mut Batch) -> Result<u64, StoreError> {
        let above =
            i64::try_from(self.above).map_err(|_| StoreError::Foreign("register_change"))?;
        let given: i64 = query(NUMBER).bind(self.number).bind(above).one(db).await?.value()?;
        Ok(given.unsigned_abs())
    }
}

/// Says that an approved change is in force on a link, and on record.
pub(super) struct NoteKeyChangeMade {
    pub(super) number: i64,
}

impl Order for NoteKeyChangeMade {
    type Answer = ();

    async fn run(&self, db: &mut Db<'_>, batch: &mut Batch) -> Result<(), StoreError> {
        query(MADE).bind(self.number).bind(batch.now).execute(db).await?;
        Ok(())
    }
}

/// Ends an approved change: applied, or refused with the worker's sentence.
pub(super) struct EndKeyChange {
    pub(super) number: i64,
    pub(super) refused: Option<String>,
}

impl Order for EndKeyChange {
    type Answer = KeyChange;

    async fn run(&self, db: &mut Db<'_>, batch: &mut Batch) -> Result<KeyChange, StoreError> {
        let state = match self.refused {
            None => KeyChangeState::Applied,
            Some(_) => KeyChangeState::Refused,
        };
        // The log still holds the block.
        batch.fold = true;
        let row = query(END)
            .bind(self.number)
            .bind(state.name())
            .bind(self.refused.as_deref())
            .bind(batch.now)
            .one(db)
            .await?;
        read(&row)
    }
}

/// Ends the proposals that nobody decided on in time.
pub(super) struct ExpireKeyChanges;

impl Order for ExpireKeyChanges {
    type Answer = Vec<KeyChange>;

    async fn run(&self, db: &mut Db<'_>, batch: &mut Batch) -> Result<Vec<KeyChange>, StoreError> {
        let rows = query(EXPIRE).bind(batch.now).all(db).await?;
        batch.fold |= !rows.is_empty();
        rows.iter().map(read).collect()
    }
}

/// Those that wait for a token: first what is in force somewhere, by its number; then compromises, then
/// the others in the order of approval.
pub(super) async fn approved(readers: &Readers) -> Result<Vec<KeyChange>, StoreError> {
    let mut reader = readers.acquire().await?;
    query(APPROVED).all(&mut reader.db()).await?.iter().map(read).collect()
}

pub(super) async fn one(readers: &Readers, number: i64) -> Result<Option<KeyChange>, StoreError> {
    let mut reader = readers.acquire().await?;
    let row = query(ONE).bind(number).optional(&mut reader.db()).await?;
    row.as_ref().map(read).transpose()
}

/// The latest `rows`, the last first.
pub(super) async fn latest(readers: &Readers, rows: u32) -> Result<Vec<KeyChange>, StoreError> {
    let mut reader = readers.acquire().await?;
    query(LATEST).bind(rows).all(&mut reader.db()).await?.iter().map(read).collect()
}

fn read(row: &Row) -> Result<KeyChange, StoreError> {
    let (kind, state): (String, String) = (row.get("kind")?, row.get("state")?);
    let profile: Option<String> = row.get("profile")?;
    let import = match (profile, row.get("kbpk")?) {
        (Some(profile), Some(kbpk)) => Some(KeyImport {
            profile,
            kbpk,
            kbpk_version: row.maybe("kbpk_version")?,
            block: row.get("block")?,
        }),
        (_, _) => None,
    };
    let register_change: Option<i64> = row.get("register_change")?;
    Ok(KeyChange {
        number: row.get("number")?,
        kind: KeyChangeKind::ALL
            .into_iter()
            .find(|one| one.name() == kind)
            .ok_or(StoreError::Foreign("kind"))?,
        label: row.get("label")?,
        version: row.number("version")?,
        import,
        overlap_s: row.maybe("overlap_s")?,
        state: KeyChangeState::ALL
            .into_iter()
            .find(|one| one.name() == state)
            .ok_or(StoreError::Foreign("state"))?,
        reason: row.get("reason")?,
        proposer: row.get("proposer")?,
        proposed_at: row.get("proposed_at")?,
        expires_at: row.get("expires_at")?,
        decider: row.get("decider")?,
        decision_reason: row.get("decision_reason")?,
        decided_at: row.get("decided_at")?,
        register_change: register_change.map(i64::unsigned_abs),
        made_at: row.get("made_at")?,
        error: row.get("error")?,
        ended_at: row.get("ended_at")?,
    })
}

/// Changes that have ended and are still listed; the audit log has them all.
const KEPT_MAX: i64 = 10_000;

const WAITING: &str = "SELECT count(*) FROM key_change WHERE state = 'proposed'";

const FORGET: &str = "
DELETE FROM key_change WHERE ended_at IS NOT NULL
  AND number <= (SELECT max(number) FROM key_change) - $1";

const PROPOSE: &str = "
INSERT INTO key_change (kind, label, version, profile, kbpk, kbpk_version, block, overlap_s, state,
                        reason, proposer, proposed_at, expires_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) RETURNING *";

const ONE: &str = "SELECT * FROM key_change WHERE number = $1";

const ONE_LOCKED: Sql = locking!("SELECT * FROM key_change WHERE number = $1");

const DECIDE: &str = "
UPDATE key_change
SET state = $2, decider = $3, decision_reason = $4, decided_at = $5, ended_at = $6,
    block = CASE WHEN $6 IS NULL THEN block END
WHERE number = $1 RETURNING *";

const NUMBER: &str = "
WITH above AS (SELECT CASE WHEN $2 > last THEN $2 ELSE last END AS last
               FROM (SELECT coalesce(max(register_change), 0) AS last FROM key_change
                     WHERE number <> $1) others)
UPDATE key_change
SET register_change = CASE WHEN register_change > (SELECT last FROM above) THEN register_change
                           ELSE (SELECT last FROM above) + 1 END
WHERE number = $1 AND state = 'approved' AND made_at IS NULL RETURNING register_change";

const MADE: &str = "
UPDATE key_change SET made_at = $2 WHERE number = $1 AND state = 'approved' AND made_at IS NULL";

const END: &str = "
UPDATE key_change SET state = $2, error = $3, ended_at = $4, block = NULL
WHERE number = $1 AND state = 'approved' RETURNING *";

const EXPIRE: &str = "
UPDATE key_change SET state = 'expired', ended_at = $1, block = NULL
WHERE state = 'proposed' AND expires_at <= $1 RETURNING *";

const APPROVED: &str = "
SELECT * FROM key_change WHERE state = 'approved'
ORDER BY made_at IS NULL, CASE WHEN made_at IS NOT NULL THEN register_change END,
  kind = 'compromise' DESC, decided_at, number
LIMIT 1000";

const LATEST: &str = "SELECT * FROM key_change ORDER BY number DESC LIMIT $1";
