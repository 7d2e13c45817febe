//! An old copy of the database is noticed, and nothing leaves it until an operator has looked.
//!
//! Each look raises the database's epoch; what it has seen stands in the next checkpoint of the audit log, which
//! the HSM signs. A database that is behind it, or is another one, was restored: its open payments may have been
//! sent since, and payments that it does not know were made. So was one that does not know a payment of which
//! the log says more than its last checkpoint. That is written into the database before the log follows it, so
//! that every gateway on it waits.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use compliance::{EventType, Label, Outcome, QueueState, Reason, Resource, ResourceType, Service};
use tokio::sync::Mutex;

use crate::audit::{AuditLog, Payment};
use crate::store::{Epoch, Status, Store, StoreError};
use crate::telemetry::metrics::QUEUE_ROLLED_BACK;

/// Why the database could not be compared with its witness.
#[derive(Debug, thiserror::Error)]
pub enum RollbackError {
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
    seen: Option<Epoch>,
    is_told: bool,
}

/// Compares the database with what the audit log has seen of it.
#[derive(Debug)]
pub struct Rollback {
    store: Store,
    audit: AuditLog,
    last: Mutex<Last>,
    /// Until the first look has found nothing.
    waits: AtomicBool,
    /// Open payments, as they were counted last.
    depth: AtomicU64,
}

impl Rollback {
    /// Reads what the log before this start has seen, and looks for the first time. `remembered_ms`: how long
    /// the database keeps payments that have ended.
    ///
    /// # Errors
    /// [`RollbackError`].
    pub(super) async fn start(
        store: Store,
        audit: AuditLog,
        remembered_ms: i64,
    ) -> Result<Self, RollbackError> {
        let previous = audit.previous();
        let seen = previous.queue().map(epoch);
        let missing = first_missing(&store, previous.payments(), remembered_ms).await?;
        let last = Mutex::new(Last { seen, is_told: false });
        let this = Self { store, audit, last, waits: true.into(), depth: 0.into() };
        let mut last = this.last.lock().await;
        match this.compare(&mut last, missing).await {
            Ok(now) if seen.is_none() && now.item_seq > 0 => {
                tracing::warn!(
                    audit = %this.audit.dir().display(),
                    "the audit log says nothing of the database's age: an old copy would not be noticed now"
                );
            }
            Ok(_) => {}
            // The gateway starts, waits, and looks again.
            Err(RollbackError::Unrecorded) => tracing::error!("{}", RollbackError::Unrecorded),
            Err(error) => return Err(error),
        }
        drop(last);
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
        self.compare(&mut last, None).await
    }

    async fn compare(
        &self,
        last: &mut Last,
        missing: Option<&'static str>,
    ) -> Result<Epoch, RollbackError> {
        let (seen, found) = self.store.raise_epoch(last.seen, missing).await?;
        if seen.rolled_back && (found.is_some() || !last.is_told) {
            self.wait(true);
            last.is_told = false;
            let what = found.unwrap_or("an old copy, found before");
            self.record(what, last.seen.as_ref(), &seen).await?;
        }
        last.is_told = seen.rolled_back;
        self.wait(seen.rolled_back);
        last.seen = Some(seen);
        self.audit.set_queue_state(self.state(&seen));
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
        self.compare(&mut last, None).await?;
        let open = self.store.acknowledge_rollback().await?;
        if open.is_some() {
            self.wait(false);
        }
        drop(last);
        Ok(open)
    }

    fn state(&self, seen: &Epoch) -> QueueState {
        let number = |value: i64| u64::try_from(value).unwrap_or(0);
        let depth = self.depth.load(Ordering::Relaxed);
        let (epoch, item_seq) = (number(seen.number), number(seen.item_seq));
        QueueState { depth, epoch, item_seq, store: seen.store }
    }

    /// How many payments are open, for the next checkpoint.
    pub(super) fn note_depth(&self, rows: u64) {
        self.depth.store(rows, Ordering::Relaxed);
    }

    fn wait(&self, waits: bool) {
        self.waits.store(waits, Ordering::Release);
        metrics::gauge!(QUEUE_ROLLED_BACK).set(f64::from(u8::from(waits)));
    }

    async fn record(
        &self,
        what: &'static str,
        before: Option<&Epoch>,
        seen: &Epoch,
    ) -> Result<(), RollbackError> {
        let before = before.unwrap_or(seen);
        tracing::error!(
            what,
            epoch = seen.number,
            last_epoch = before.number,
            last_payment = seen.item_seq,
            last_payment_before = before.item_seq,
            "the database was rolled back: nothing leaves it until an operator acknowledges"
        );
        let on = Resource::new(ResourceType::Queue, Label::new(&seen.store.to_string()));
        let event = self.audit.own_event(EventType::QueueRollback, Outcome::Error, on);
        let note = format!(
            "{what}: epoch {} after {}, payment {} after {}",
            seen.number, before.number, seen.item_seq, before.item_seq
        );
        let event = event.service(Service::Queue).reason(Reason::RolledBack);
        let recorded = self.audit.append(event.note(Label::new(&note))).await;
        recorded.map(drop).map_err(|_| RollbackError::Unrecorded)
    }
}

/// As the store compares it.
fn epoch(seen: QueueState) -> Epoch {
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    Epoch {
        store: seen.store,
        number: number(seen.epoch),
        item_seq: number(seen.item_seq),
        rolled_back: false,
    }
}

/// When the payment was accepted: its id says so, also in a record of a repeat.
fn began_ms(payment: &Payment) -> i64 {
    let (seconds, _) = payment.id.get_timestamp().map_or((0, 0), |time| time.to_unix());
    i64::try_from(seconds).unwrap_or(0).saturating_mul(1_000)
}

/// Whether the database lacks what was recorded of a payment that it must still have.
async fn first_missing(
    store: &Store,
    payments: &[Payment],
    remembered_ms: i64,
) -> Result<Option<&'static str>, StoreError> {
    let oldest = store.now().saturating_sub(remembered_ms);
    for payment in payments.iter().filter(|payment| began_ms(payment) > oldest) {
        match store.status(payment.id).await? {
            None => return Ok(Some("an old copy, without a payment of the audit log")),
            Some(Status::Success | Status::Failed | Status::Expired | Status::Cancelled) => {}
            Some(Status::Pending | Status::Processing | Status::Held) if payment.is_ended => {
                return Ok(Some("an old copy, before the end of a payment of the audit log"));
            }
            Some(Status::Pending | Status::Processing | Status::Held) => {}
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use uuid::Uuid;

    use super::*;
    use crate::config::AuditConfig;
    use crate::store::tests::{On, World};

    /// A gateway over this database, with its witness in `dir`.
    async fn start(world: &World, dir: &Path) -> Result<Rollback, RollbackError> {
        let audit = AuditLog::open(&AuditConfig::at(dir.into()), "gateway-1", Uuid::now_v7(), None);
        Rollback::start(world.store.clone(), audit.unwrap(), 86_400_000).await
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
}
