//! An old copy of the database is noticed, and nothing leaves it until an operator has looked.
//!
//! Each look raises the database's epoch and writes what it has seen into a small file beside the audit
//! log: the witness. A database that is behind its witness, or is another one, was restored: its open
//! payments may have been sent since, and payments that it does not know were made. That is written into
//! the database before the witness follows it, so that every gateway on it waits.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use compliance::{EventType, Label, Outcome, Reason, Resource, ResourceType, Service};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use uuid::Uuid;

use crate::audit::AuditLog;
use crate::store::{Epoch, Store, StoreError};
use crate::telemetry::metrics::QUEUE_ROLLED_BACK;

/// What this gateway has last seen of its database, outside of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Witness {
    store: Uuid,
    epoch: i64,
    item_seq: i64,
}

impl Witness {
    fn of(seen: &Epoch) -> Self {
        Self { store: seen.store, epoch: seen.number, item_seq: seen.item_seq }
    }

    /// As the store compares it.
    fn epoch(self) -> Epoch {
        let Self { store, epoch: number, item_seq } = self;
        Epoch { store, number, item_seq, rolled_back: false }
    }
}

/// Why the database could not be compared with its witness.
#[derive(Debug, thiserror::Error)]
pub enum RollbackError {
    /// The witness is there and says nothing.
    #[error(
        "{path} is not readable: it tells an old database; when the database is the right one, \
         remove it",
        path = path.display()
    )]
    Witness {
        /// The file.
        path: PathBuf,
        /// The operating system's word.
        #[source]
        source: io::Error,
    },
    /// The database does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The finding is not on record, and will be looked for again.
    #[error("a rollback of the database is not in the audit log")]
    Unrecorded,
}

/// What was seen last, and whether a rollback that stands is on record.
#[derive(Debug, Default)]
struct Last {
    seen: Option<Witness>,
    is_told: bool,
}

/// Compares the database with its witness.
#[derive(Debug)]
pub struct Rollback {
    store: Store,
    audit: AuditLog,
    path: PathBuf,
    last: Mutex<Last>,
    /// Until the first look has found nothing.
    waits: AtomicBool,
}

impl Rollback {
    /// Reads the witness and looks for the first time.
    ///
    /// # Errors
    /// [`RollbackError`].
    pub(super) async fn start(store: Store, audit: AuditLog) -> Result<Self, RollbackError> {
        let path = audit.dir().join(WITNESS);
        let last =
            read(&path).map_err(|source| RollbackError::Witness { path: path.clone(), source })?;
        let is_first = last.is_none();
        let this = Self {
            store,
            audit,
            path,
            last: Mutex::new(Last { seen: last, is_told: false }),
            waits: true.into(),
        };
        match this.look().await {
            Ok(seen) if is_first && seen.item_seq > 0 => {
                tracing::warn!(
                    witness = %this.path.display(),
                    "no witness of the database's age: an old copy would not have been noticed now"
                );
            }
            Ok(_) => {}
            // The gateway starts, waits, and looks again.
            Err(RollbackError::Unrecorded) => tracing::error!("{}", RollbackError::Unrecorded),
            Err(error) => return Err(error),
        }
        Ok(this)
    }

    /// Whether nothing may leave the database, nor be added to it.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.waits.load(Ordering::Acquire)
    }

    /// Compares, and raises the epoch. Call every few seconds.
    ///
    /// # Errors
    /// [`RollbackError`].
    pub(super) async fn look(&self) -> Result<Epoch, RollbackError> {
        let mut last = self.last.lock().await;
        self.compare(&mut last).await
    }

    async fn compare(&self, last: &mut Last) -> Result<Epoch, RollbackError> {
        let (seen, found) = self.store.raise_epoch(last.seen.map(Witness::epoch)).await?;
        if seen.rolled_back && (found.is_some() || !last.is_told) {
            self.wait(true);
            last.is_told = false;
            let what = found.unwrap_or("an old copy, found before");
            self.record(what, last.seen.as_ref(), &seen).await?;
        }
        last.is_told = seen.rolled_back;
        self.wait(seen.rolled_back);
        let witness = Witness::of(&seen);
        last.seen = Some(witness);
        let (path, text) = (self.path.clone(), serde_json::to_vec(&witness).unwrap_or_default());
        let written = tokio::task::spawn_blocking(move || write(&path, &text)).await;
        if let Err(error) = written.unwrap_or_else(|error| Err(io::Error::other(error))) {
            tracing::error!(%error, witness = %self.path.display(), "the witness is not written");
        }
        Ok(seen)
    }

    /// An operator has looked: the queue goes on, and what is open counts as possibly sent.
    /// How many are open; `None` when nothing waited.
    ///
    /// # Errors
    /// [`RollbackError`]. What was done of it stays: repeat it.
    pub async fn acknowledge(&self) -> Result<Option<u64>, RollbackError> {
        let mut last = self.last.lock().await;
        // Else what was not compared yet, or is not on record, would be found only afterwards.
        self.compare(&mut last).await?;
        let open = self.store.acknowledge_rollback().await?;
        if open.is_some() {
            self.wait(false);
        }
        drop(last);
        Ok(open)
    }

    fn wait(&self, waits: bool) {
        self.waits.store(waits, Ordering::Release);
        metrics::gauge!(QUEUE_ROLLED_BACK).set(f64::from(u8::from(waits)));
    }

    async fn record(
        &self,
        what: &'static str,
        witness: Option<&Witness>,
        seen: &Epoch,
    ) -> Result<(), RollbackError> {
        let before = witness.copied().unwrap_or_else(|| Witness::of(seen));
        tracing::error!(
            what,
            epoch = seen.number,
            last_epoch = before.epoch,
            last_payment = seen.item_seq,
            last_payment_before = before.item_seq,
            "the database was rolled back: nothing leaves it until an operator acknowledges"
        );
        let on = Resource::new(ResourceType::Queue, Label::new(&seen.store.to_string()));
        let event = self.audit.own_event(EventType::QueueRollback, Outcome::Error, on);
        let note = format!(
            "{what}: epoch {} after {}, payment {} after {}",
            seen.number, before.epoch, seen.item_seq, before.item_seq
        );
        let event = event.service(Service::Queue).reason(Reason::RolledBack);
        let recorded = self.audit.append(event.note(Label::new(&note))).await;
        recorded.map(drop).map_err(|_| RollbackError::Unrecorded)
    }
}

/// `None` when there is no such file yet.
fn read(path: &Path) -> io::Result<Option<Witness>> {
    match std::fs::read(path) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Puts the whole text in the file's place, durably, or leaves the file as it was.
fn write(path: &Path, text: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(text)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

/// In the directory of the audit log: outside of the database, and outside of its backups.
const WITNESS: &str = "database.witness";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::AuditConfig;
    use crate::store::tests::{On, World};

    /// A gateway over this database, with its witness in `dir`.
    async fn start(world: &World, dir: &Path) -> Result<Rollback, RollbackError> {
        let audit = AuditLog::open(&AuditConfig::at(dir.into()), "gateway-1", Uuid::now_v7());
        Rollback::start(world.store.clone(), audit.unwrap()).await
    }

    async fn stop(rollback: Rollback) {
        rollback.audit.close().await;
    }

    /// Puts the database back to where it was some looks ago.
    async fn restore(world: &World, epoch: i64) {
        let earlier = "UPDATE saf_epoch SET epoch = $1";
        world.edit(earlier, epoch).await;
    }

    async fn on(on: On) -> (World, tempfile::TempDir) {
        (World::new(on).await, tempfile::tempdir().unwrap())
    }

    #[tokio::test]
    async fn a_restart_is_no_rollback_and_an_older_copy_is_one() {
        for kind in [On::Sqlite, On::Postgres] {
            let (world, dir) = on(kind).await;
            let first = start(&world, dir.path()).await.unwrap();
            let copied = first.look().await.unwrap().number;
            first.look().await.unwrap();
            let new = first.waits();
            stop(first).await;

            let second = start(&world, dir.path()).await.unwrap();
            let restarted = second.waits();
            restore(&world, copied).await;
            let seen = second.look().await.unwrap();
            let noticed = second.waits();
            stop(second).await;
            let third = start(&world, dir.path()).await.unwrap();
            let remembered = third.waits();
            let acknowledged = third.acknowledge().await.unwrap();

            assert!(!new && !restarted && noticed && remembered && seen.rolled_back, "{kind:?}");
            assert_eq!(acknowledged, Some(0));
            assert!(!third.waits());
            third.look().await.unwrap();
            assert!(!third.waits());
        }
    }

    /// The other gateway has seen less, or nothing at all.
    #[tokio::test]
    async fn what_one_gateway_notices_keeps_every_other_one_waiting() {
        let (world, dir) = on(On::Postgres).await;
        let new = tempfile::tempdir().unwrap();
        let one = start(&world, dir.path()).await.unwrap();
        one.look().await.unwrap();
        restore(&world, 0).await;

        one.look().await.unwrap();
        let other = start(&world, new.path()).await.unwrap();
        let waited = other.waits();
        one.acknowledge().await.unwrap();
        other.look().await.unwrap();

        assert!(waited && !other.waits() && !one.waits());
    }

    #[tokio::test]
    async fn another_database_is_none_of_ours_until_it_is_acknowledged() {
        let ((world, dir), (other, _)) = (on(On::Sqlite).await, on(On::Sqlite).await);
        stop(start(&world, dir.path()).await.unwrap()).await;

        let rollback = start(&other, dir.path()).await.unwrap();

        assert!(rollback.waits());
        assert_eq!(rollback.acknowledge().await.unwrap(), Some(0));
        stop(rollback).await;
        assert!(!start(&other, dir.path()).await.unwrap().waits());
    }

    #[tokio::test]
    async fn a_witness_that_says_nothing_stops_the_start_and_a_missing_one_does_not() {
        let (world, dir) = on(On::Sqlite).await;
        stop(start(&world, dir.path()).await.unwrap()).await;
        let witness = dir.path().join(WITNESS);

        std::fs::write(&witness, "{}").unwrap();
        let refused = start(&world, dir.path()).await.unwrap_err();
        // The refused one's log is closed by its own thread.
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        std::fs::remove_file(&witness).unwrap();
        let made_anew = start(&world, dir.path()).await.unwrap();

        assert!(refused.to_string().contains(WITNESS), "{refused}");
        assert!(!made_anew.waits() && witness.exists());
    }
}
