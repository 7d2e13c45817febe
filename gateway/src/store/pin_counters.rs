//! Counters that keep PINs and MACs from being guessed, and the keys that they took out of use.
//!
//! What is limited is counted before the token is asked, so that any number of requests at once
//! make as many calls as the limit allows; what turned out not to have been asked is given back.
//! A window runs from its first event, and a refused event is not counted in it.
//!
//! These writes do not wait for the disk (see [`Order::RELAXED`]): a process that is killed loses
//! none of them, a machine that loses power those of its last two seconds.

use std::time::Duration;

use super::StoreError;
use super::clock::ms;
use super::db::{Db, Readers, Row, query};
use super::order::Order;
use super::writer::Batch;

/// How often something may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// The counter's name.
    pub rule: &'static str,
    /// The short window, and events in it.
    pub short: (Duration, u32),
    /// The long one, and events in it.
    pub long: (Duration, u32),
}

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    /// It is counted.
    Within,
    /// It is one too many, and not counted.
    Over {
        /// The first one since the short window began.
        first: bool,
        /// Until a window ends.
        retry_after: Duration,
    },
    /// As many counters are kept as may be.
    NoRoom,
}

/// The right to verify one PIN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Try {
    /// Counted as a failure until it is settled. Its number among the card's.
    Granted(i64),
    /// Too many failures in a row.
    Blocked,
    /// This client verifies too much.
    Throttled {
        /// Until a window ends.
        retry_after: Duration,
    },
    /// As many counters are kept as may be.
    NoRoom,
}

/// How a try ended that is no failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TryEnd {
    /// The PIN was right: this and all earlier tries are forgotten.
    Right,
    /// The token was not asked, or its answer is told to nobody.
    NotAsked,
}

/// What a key is out of use for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GuardScope {
    /// PIN blocks under it.
    Pin,
    /// MACs under it.
    Mac,
}

impl GuardScope {
    /// `pin` or `mac`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pin => "pin",
            Self::Mac => "mac",
        }
    }
}

pub(super) struct Count {
    pub(super) window: Window,
    pub(super) subject: Vec<u8>,
    pub(super) rows_max: u32,
}

impl Order for Count {
    type Answer = Counted;
    const FOR_CALLER: bool = true;
    const RELAXED: bool = true;

    fn key(&self) -> &[u8] {
        &self.subject
    }

    async fn run(&self, db: &mut Db<'_>, batch: &mut Batch) -> Result<Counted, StoreError> {
        count(&self.window, &self.subject, self.rows_max, db, batch).await
    }
}

async fn count(
    window: &Window,
    subject: &[u8],
    rows_max: u32,
    db: &mut Db<'_>,
    batch: &Batch,
) -> Result<Counted, StoreError> {
    let (now, short_ms, long_ms) = (batch.now, ms(window.short.0), ms(window.long.0));
    let row = query(COUNT)
        .bind(window.rule)
        .bind(subject)
        .bind(now)
        .bind(short_ms)
        .bind(long_ms)
        .optional(db)
        .await?;
    let Some(row) = row else {
        let added = query(FIRST)
            .bind(window.rule)
            .bind(subject)
            .bind(now)
            .bind(now.saturating_add(short_ms.max(long_ms)))
            .bind(rows_max)
            .execute(db)
            .await?;
        return Ok(if added == 1 { Counted::Within } else { Counted::NoRoom });
    };
    let left = |since: &'static str, length: i64| -> Result<i64, StoreError> {
        Ok(row.get::<i64>(since)?.saturating_add(length).saturating_sub(now))
    };
    let over_short = row.get::<i64>("short_count")? > window.short.1.into();
    let over_long = row.get::<i64>("long_count")? > window.long.1.into();
    let left = match (over_short, over_long) {
        (false, false) => return Ok(Counted::Within),
        (_, true) => left("long_since", long_ms)?,
        (true, false) => left("short_since", short_ms)?,
    };
    let first = !row.get::<bool>("told")?;
    uncount(window.rule, subject, true, db).await?;
    let retry_after = Duration::from_millis(u64::try_from(left).unwrap_or(0).max(1_000));
    Ok(Counted::Over { first, retry_after })
}

async fn uncount(
    rule: &str,
    subject: &[u8],
    told: bool,
    db: &mut Db<'_>,
) -> Result<(), StoreError> {
    query(UNCOUNT).bind(rule).bind(subject).bind(told).execute(db).await?;
    Ok(())
}

pub(super) struct Uncount {
    pub(super) rule: &'static str,
    pub(super) subject: Vec<u8>,
}

impl Order for Uncount {
    type Answer = ();
    const RELAXED: bool = true;

    fn key(&self) -> &[u8] {
        &self.subject
    }

    async fn run(&self, db: &mut Db<'_>, _: &mut Batch) -> Result<(), StoreError> {
        uncount(self.rule, &self.subject, false, db).await
    }
}

pub(super) struct BeginTry {
    pub(super) pan: [u8; 16],
    pub(super) client: Vec<u8>,
    pub(super) of_client: Window,
    pub(super) failures_max: u32,
    /// How long a card is blocked, and how long its failures are remembered.
    pub(super) block: Duration,
    pub(super) rows_max: u32,
}

impl Order for BeginTry {
    type Answer = Try;
    const FOR_CALLER: bool = true;
    const RELAXED: bool = true;

    fn key(&self) -> &[u8] {
        &self.client
    }

    async fn run(&self, db: &mut Db<'_>, batch: &mut Batch) -> Result<Try, StoreError> {
        let now = batch.now;
        if self.is_blocked(db, now).await? {
            return Ok(Try::Blocked);
        }
        match count(&self.of_client, &self.client, self.rows_max, db, batch).await? {
            Counted::Within => {}
            Counted::Over { retry_after, .. } => return Ok(Try::Throttled { retry_after }),
            Counted::NoRoom => return Ok(Try::NoRoom),
        }
        let number = query(TRY)
            .bind(self.pan.as_slice())
            .bind(now)
            .bind(now.saturating_add(ms(self.block)))
            .bind(self.rows_max)
            .bind(self.failures_max)
            .optional(db)
            .await?;
        if let Some(number) = number {
            return Ok(Try::Granted(number.value()?));
        }
        uncount(self.of_client.rule, &self.client, false, db).await?;
        // Another gateway may have taken the last try since we looked.
        let is_blocked = self.is_blocked(db, now).await?;
        Ok(if is_blocked { Try::Blocked } else { Try::NoRoom })
    }
}

impl BeginTry {
    async fn is_blocked(&self, db: &mut Db<'_>, now: i64) -> Result<bool, StoreError> {
        let failures = query(FAILURES).bind(self.pan.as_slice()).bind(now).optional(db).await?;
        let failures: i64 = failures.map_or(Ok(0), |row| row.value())?;
        Ok(failures >= self.failures_max.into())
    }
}

pub(super) struct EndTry {
    pub(super) pan: [u8; 16],
    pub(super) number: i64,
    pub(super) end: TryEnd,
}

impl Order for EndTry {
    type Answer = ();
    const RELAXED: bool = true;

    fn key(&self) -> &[u8] {
        &self.pan
    }

    async fn run(&self, db: &mut Db<'_>, _: &mut Batch) -> Result<(), StoreError> {
        let statement = match self.end {
            TryEnd::Right => CLEAR,
            TryEnd::NotAsked => GIVE_BACK,
        };
        query(statement).bind(self.pan.as_slice()).bind(self.number).execute(db).await?;
        Ok(())
    }
}

pub(super) struct Quarantine {
    pub(super) scope: GuardScope,
    pub(super) key_label: String,
    pub(super) expires_at: i64,
}

impl Order for Quarantine {
    type Answer = ();

    async fn run(&self, db: &mut Db<'_>, _: &mut Batch) -> Result<(), StoreError> {
        query(QUARANTINE)
            .bind(self.scope.name())
            .bind(&self.key_label)
            .bind(self.expires_at)
            .execute(db)
            .await?;
        Ok(())
    }
}

/// Keys that are out of use, each with its end.
pub(super) async fn quarantined(
    readers: &Readers,
    now: i64,
) -> Result<Vec<(GuardScope, String, i64)>, StoreError> {
    let mut reader = readers.acquire().await?;
    let rows = query(QUARANTINED).bind(now).all(&mut reader.db()).await?;
    let read = |row: &Row| {
        let scope = match row.get::<String>("scope")?.as_str() {
            "pin" => GuardScope::Pin,
            "mac" => GuardScope::Mac,
            _ => return Err(StoreError::Foreign("scope")),
        };
        Ok((scope, row.get("key_label")?, row.get("expires_at")?))
    };
    rows.iter().map(read).collect()
}

/// Forgets what has ended. Gives the number of rows that went.
pub(super) async fn prune(db: &mut Db<'_>, batch: &Batch) -> Result<u64, StoreError> {
    let mut rows = 0;
    for statement in [PRUNE_WINDOWS, PRUNE_TRIES, PRUNE_QUARANTINE] {
        rows += query(statement).bind(batch.now).execute(db).await?;
    }
    Ok(rows)
}

const COUNT: &str = "
UPDATE guard_window SET
    short_count = CASE WHEN $3 - short_since >= $4 THEN 1 ELSE short_count + 1 END,
    told        = CASE WHEN $3 - short_since >= $4 THEN FALSE ELSE told END,
    short_since = CASE WHEN $3 - short_since >= $4 THEN $3 ELSE short_since END,
    long_count  = CASE WHEN $3 - long_since >= $5 THEN 1 ELSE long_count + 1 END,
    long_since  = CASE WHEN $3 - long_since >= $5 THEN $3 ELSE long_since END,
    expires_at  = $3 + CASE WHEN $4 > $5 THEN $4 ELSE $5 END
WHERE rule = $1 AND subject = $2
RETURNING short_since, short_count, long_since, long_count, told";

const FIRST: &str = "
INSERT INTO guard_window (rule, subject, short_since, short_count, long_since, long_count, expires_at)
SELECT $1, $2, $3, 1, $3, 1, $4
WHERE coalesce((SELECT size FROM guard_size WHERE name = 'window ' || $1), 0) < $5";

const UNCOUNT: &str = "
UPDATE guard_window
SET short_count = CASE WHEN short_count > 1 THEN short_count - 1 ELSE 0 END,
    long_count = CASE WHEN long_count > 1 THEN long_count - 1 ELSE 0 END,
    told = (told OR $3)
WHERE rule = $1 AND subject = $2";

const FAILURES: &str = "
SELECT tries - cleared FROM pan_tries WHERE pan = $1 AND expires_at > $2";

// Failures whose time has passed are cleared by the next try.
const TRY: &str = "
INSERT INTO pan_tries (pan, tries, expires_at)
SELECT $1, 1, $3
WHERE coalesce((SELECT size FROM guard_size WHERE name = 'pan_tries'), 0) < $4
   OR EXISTS (SELECT 1 FROM pan_tries WHERE pan = $1)
ON CONFLICT (pan) DO UPDATE SET
    cleared = CASE WHEN pan_tries.expires_at <= $2 THEN pan_tries.tries
                   ELSE pan_tries.cleared END,
    tries = pan_tries.tries + 1,
    expires_at = excluded.expires_at
WHERE pan_tries.expires_at <= $2 OR pan_tries.tries - pan_tries.cleared < $5
RETURNING tries";

const CLEAR: &str = "UPDATE pan_tries SET cleared = CASE WHEN $2 < tries THEN $2 ELSE tries END
WHERE pan = $1 AND cleared < $2";

// When in doubt a failure too many stays counted, never one too few.
const GIVE_BACK: &str = "
UPDATE pan_tries SET cleared = cleared + 1 WHERE pan = $1 AND $2 > cleared AND cleared < tries";

const QUARANTINE: &str = "
INSERT INTO guard_quarantine (scope, key_label, expires_at) VALUES ($1, $2, $3)
ON CONFLICT (scope, key_label) DO UPDATE SET expires_at = excluded.expires_at";

const QUARANTINED: &str = "
SELECT scope, key_label, expires_at FROM guard_quarantine WHERE expires_at > $1";

const PRUNE_WINDOWS: &str = "
DELETE FROM guard_window WHERE (rule, subject) IN (
    SELECT rule, subject FROM guard_window WHERE expires_at < $1 LIMIT 4096)";

const PRUNE_TRIES: &str = "
DELETE FROM pan_tries WHERE pan IN (SELECT pan FROM pan_tries WHERE expires_at < $1 LIMIT 4096)";

const PRUNE_QUARANTINE: &str = "DELETE FROM guard_quarantine WHERE expires_at < $1";
