//! The one task that writes: it commits what waits as one group, then answers everyone in it.
//!
//! At full durability a commit costs milliseconds, a row tens of microseconds; so the group is
//! what makes the store fast. An error of one row repeats the group one by one, so that it cannot
//! fail its neighbours; an error of the database itself fails the group at once, so that nobody
//! waits for a lock two hundred times.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use sqlx::Connection;
use sqlx::sqlite::SqliteConnection;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::error::within;
use super::open::{DatabaseFile, Opened};
use super::{Clock, StoreError};
use crate::config::{QueueConfig, StoreConfig};

/// Something to do in a transaction. It may run twice: only what it writes counts.
pub(super) trait Order: Send + Sync + 'static {
    type Answer: Send + 'static;

    /// Whether it leases something, so that it is pointless once nobody waits for its answer.
    const FOR_CALLER: bool = false;

    fn run(
        &self,
        db: &mut SqliteConnection,
        batch: &mut Batch,
    ) -> impl Future<Output = Result<Self::Answer, StoreError>> + Send;
}

/// What the orders of one transaction share.
#[derive(Debug)]
pub(super) struct Batch {
    /// Epoch milliseconds for people.
    pub(super) now: i64,
    /// Epoch milliseconds for leases.
    pub(super) steady: i64,
    /// Open payments, held ones included.
    pub(super) depth: i64,
    pub(super) depth_max: i64,
    pub(super) attempts_max: i64,
    /// Set when a lane may have become claimable.
    pub(super) wake: bool,
    /// Set when a log that holds deleted pages should be folded into the file.
    pub(super) fold: bool,
    /// Claims so far: each tenth is by age.
    pub(super) claims: u64,
}

/// The sending side.
#[derive(Debug, Clone)]
pub(super) struct Writer {
    orders: mpsc::Sender<Box<dyn Job>>,
    closing: CancellationToken,
    task: TaskTracker,
    file: Arc<DatabaseFile>,
}

impl Writer {
    pub(super) async fn start(
        opened: Opened,
        store: &StoreConfig,
        queue: &QueueConfig,
        clock: Clock,
        wake: Arc<Notify>,
    ) -> Result<Self, StoreError> {
        let (orders, waiting) = mpsc::channel(store.writer_queue_max as usize);
        let closing = CancellationToken::new();
        let task = TaskTracker::new();
        let file = Arc::new(opened.file.clone());
        let mut desk = Desk {
            connection: Some(opened.connection),
            file: opened.file,
            clock,
            wake,
            group_max: store.group_rows_max as usize,
            depth: None,
            depth_max: queue.rows_max.into(),
            attempts_max: queue.attempts_max.into(),
            claims: 0,
        };
        let (lock, ending) = (opened.lock, closing.clone());
        task.spawn(async move {
            desk.serve(waiting, ending).await;
            // The lock goes last: the next instance must find the log folded and nobody writing.
            drop(lock);
        });
        task.close();
        Ok(Self { orders, closing, task, file })
    }

    /// Queues an order and waits for its group.
    pub(super) async fn ask<O: Order>(&self, order: O) -> Result<O::Answer, StoreError> {
        let (reply, answer) = oneshot::channel();
        let job = Box::new(Waiting { order, done: None, reply });
        self.orders.try_send(job).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => StoreError::Busy,
            mpsc::error::TrySendError::Closed(_) => closed(),
        })?;
        within(async { answer.await.unwrap_or_else(|_| Err(closed())) }).await
    }

    pub(super) async fn close(&self) {
        self.closing.cancel();
        self.task.wait().await;
    }

    pub(super) fn path(&self) -> &Path {
        self.file.path()
    }
}

fn closed() -> StoreError {
    StoreError::unavailable("the store is closed")
}

/// The writing side.
struct Desk {
    connection: Option<SqliteConnection>,
    file: DatabaseFile,
    clock: Clock,
    wake: Arc<Notify>,
    group_max: usize,
    /// `None` when it has to be counted again.
    depth: Option<i64>,
    depth_max: i64,
    attempts_max: i64,
    claims: u64,
}

impl Desk {
    async fn serve(
        &mut self,
        mut waiting: mpsc::Receiver<Box<dyn Job>>,
        closing: CancellationToken,
    ) {
        let mut unfolded = false;
        loop {
            let first = tokio::select! {
                biased;
                () = closing.cancelled(), if !waiting.is_closed() => {
                    waiting.close();
                    continue;
                }
                first = waiting.recv() => first,
                () = tokio::time::sleep(IDLE), if unfolded => {
                    self.fold().await;
                    unfolded = false;
                    continue;
                }
            };
            let Some(first) = first else { break };
            let mut group = vec![first];
            while group.len() < self.group_max
                && let Ok(next) = waiting.try_recv()
            {
                group.push(next);
            }
            group.retain(|job| job.is_wanted());
            unfolded = true;
            self.commit(group).await;
        }
        if let Some(connection) = self.connection.take()
            && let Err(error) = connection.close().await
        {
            tracing::warn!(%error, "the database did not close cleanly");
        }
    }

    async fn commit(&mut self, mut group: Vec<Box<dyn Job>>) {
        match self.transact(&mut group).await {
            Ok(()) => group.into_iter().for_each(|job| job.answer(Ok(()))),
            Err(error) if group.len() == 1 || error.is_transient() => {
                for job in group {
                    job.answer(Err(error.clone()));
                }
            }
            Err(_) => {
                for job in group {
                    let mut alone = vec![job];
                    let outcome = self.transact(&mut alone).await;
                    for job in alone {
                        job.answer(outcome.clone());
                    }
                }
            }
        }
    }

    /// One transaction around the group: all of it or nothing.
    async fn transact(&mut self, group: &mut [Box<dyn Job>]) -> Result<(), StoreError> {
        if group.is_empty() {
            return Ok(());
        }
        let outcome = self.try_transact(group).await;
        match outcome {
            Ok(batch) => {
                self.depth = Some(batch.depth);
                self.claims = batch.claims;
                if batch.wake {
                    self.wake.notify_one();
                }
                if batch.fold {
                    self.fold().await;
                }
                Ok(())
            }
            Err(error) => {
                self.depth = None;
                if error.is_transient() {
                    // Whatever state the connection is in, the next group gets a fresh one.
                    self.connection = None;
                }
                Err(error)
            }
        }
    }

    async fn try_transact(&mut self, group: &mut [Box<dyn Job>]) -> Result<Batch, StoreError> {
        self.file.check()?;
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(self.file.connect().await?),
        };
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        let depth = match self.depth {
            Some(depth) => depth,
            None => {
                sqlx::query_scalar("SELECT count(*) FROM saf_item WHERE state < 2")
                    .fetch_one(&mut *transaction)
                    .await?
            }
        };
        let mut batch = Batch {
            now: self.clock.wall(),
            steady: self.clock.steady(),
            depth,
            depth_max: self.depth_max,
            attempts_max: self.attempts_max,
            wake: false,
            fold: false,
            claims: self.claims,
        };
        // Asked again: the lock may have come later than a caller waits, and a lease to a caller who
        // has gone counts as sent.
        for job in group.iter_mut().filter(|job| job.is_wanted()) {
            job.run(&mut transaction, &mut batch).await?;
        }
        let committing = tokio::time::Instant::now();
        transaction.commit().await?;
        metrics::histogram!(crate::telemetry::metrics::QUEUE_COMMIT).record(committing.elapsed());
        Ok(batch)
    }

    /// Folds the log into the file, so that it neither grows nor keeps what was deleted.
    async fn fold(&mut self) {
        if let Some(connection) = &mut self.connection {
            // A reader in the way only delays it to the next idle moment: do not wait for one.
            for statement in [
                "PRAGMA busy_timeout = 50",
                "PRAGMA incremental_vacuum(256)",
                "PRAGMA wal_checkpoint(TRUNCATE)",
                "PRAGMA busy_timeout = 4000",
            ] {
                if let Err(error) = sqlx::query(statement).execute(&mut *connection).await {
                    tracing::debug!(%error, "the write-ahead log was not folded");
                }
            }
        }
    }
}

/// An order and the one who waits for it, with the type of the answer hidden.
trait Job: Send {
    fn is_wanted(&self) -> bool;
    fn run<'a>(
        &'a mut self,
        db: &'a mut SqliteConnection,
        batch: &'a mut Batch,
    ) -> Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send + 'a>>;
    /// After the commit, never before.
    fn answer(self: Box<Self>, committed: Result<(), StoreError>);
}

struct Waiting<O: Order> {
    order: O,
    done: Option<O::Answer>,
    reply: oneshot::Sender<Result<O::Answer, StoreError>>,
}

impl<O: Order> Job for Waiting<O> {
    fn is_wanted(&self) -> bool {
        !(O::FOR_CALLER && self.reply.is_closed())
    }

    fn run<'a>(
        &'a mut self,
        db: &'a mut SqliteConnection,
        batch: &'a mut Batch,
    ) -> Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send + 'a>> {
        Box::pin(async move {
            self.done = Some(self.order.run(db, batch).await?);
            Ok(())
        })
    }

    fn answer(self: Box<Self>, committed: Result<(), StoreError>) {
        let Self { done, reply, .. } = *self;
        // Whoever has gone away finds the outcome in the database.
        let _ = reply.send(committed.and_then(|()| done.ok_or_else(closed)));
    }
}

/// How long nothing must happen before the log is folded.
const IDLE: Duration = Duration::from_secs(1);
