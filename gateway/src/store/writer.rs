//! The one task that writes: it commits what waits as one group, then answers everyone in it.
//!
//! At full durability a commit costs milliseconds, a row tens of microseconds; so the group is
//! what makes the store fast. An error of one row repeats the group one by one, so that it cannot
//! fail its neighbours; an error of the database itself fails the group at once, so that nobody
//! waits for a lock two hundred times.

use std::collections::HashMap;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sqlx::Connection;
use sqlx::sqlite::SqliteConnection;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::error::within;
use super::open::{DatabaseFile, Opened, PATIENCE};
use super::{Clock, StoreError};
use crate::config::{QueueConfig, StoreConfig};

/// Something to do in a transaction. It may run twice: only what it writes counts.
pub(super) trait Order: Send + Sync + 'static {
    type Answer: Send + 'static;

    /// Whether it leases something, so that it is pointless once nobody waits for its answer.
    const FOR_CALLER: bool = false;

    /// Whether a commit of such orders alone leaves the write to the operating system: it then
    /// outlives this process, and is on the disk with the next commit of another order, which the
    /// writer's own probe makes every two seconds.
    const RELAXED: bool = false;

    /// What to do at once with an answer that nobody waited for.
    fn orphans(_answer: Self::Answer) -> Vec<Box<dyn Job>> {
        Vec::new()
    }

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
    pub(super) depth: Depths,
    pub(super) depth_max: i64,
    pub(super) attempts_max: i64,
    /// Set when a lane may have become claimable.
    pub(super) wake: bool,
    /// Set when a log that holds deleted pages should be folded into the file.
    pub(super) fold: bool,
    /// Claims so far: each tenth is by age.
    pub(super) claims: u64,
}

/// Open payments of each target, without those that a person holds.
#[derive(Debug, Default)]
pub(super) struct Depths(HashMap<String, i64>);

impl Depths {
    pub(super) fn of(&self, target: &str) -> i64 {
        self.0.get(target).copied().unwrap_or(0)
    }

    pub(super) fn add(&mut self, target: &str, rows: i64) {
        match self.0.get_mut(target) {
            Some(depth) => *depth += rows,
            None => drop(self.0.insert(target.to_owned(), rows)),
        }
    }
}

/// When the database last took a write. A write that fails and one that hangs look the same here.
#[derive(Debug)]
struct Health {
    began: Instant,
    /// Milliseconds from `began`.
    good_at: AtomicU64,
}

impl Health {
    fn record(&self) {
        let at = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.good_at.store(at, Ordering::Release);
    }

    fn is_good(&self) -> bool {
        let good_at = Duration::from_millis(self.good_at.load(Ordering::Acquire));
        self.began.elapsed() <= good_at + HEALTHY_FOR
    }
}

/// The sending side.
#[derive(Debug, Clone)]
pub(super) struct Writer {
    orders: mpsc::Sender<Box<dyn Job>>,
    closing: CancellationToken,
    task: TaskTracker,
    file: Arc<DatabaseFile>,
    health: Arc<Health>,
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
        let health = Arc::new(Health { began: Instant::now(), good_at: AtomicU64::new(0) });
        let mut desk = Desk {
            connection: Some(opened.connection),
            relaxed: false,
            file: opened.file,
            clock,
            wake,
            group_max: store.group_rows_max as usize,
            depth: None,
            depth_max: queue.rows_max.into(),
            attempts_max: queue.attempts_max.into(),
            claims: 0,
            health: Arc::clone(&health),
        };
        let (lock, ending) = (opened.lock, closing.clone());
        task.spawn(async move {
            desk.serve(waiting, ending).await;
            // The lock goes last: the next instance must find the log folded and nobody writing.
            drop(lock);
        });
        task.close();
        Ok(Self { orders, closing, task, file, health })
    }

    /// Queues an order and waits for its group.
    pub(super) async fn ask<O: Order>(&self, order: O) -> Result<O::Answer, StoreError> {
        let (reply, mut answer) = oneshot::channel();
        let job = Box::new(Waiting { order, done: None, reply });
        self.orders.try_send(job).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => StoreError::Busy,
            mpsc::error::TrySendError::Closed(_) => closed(),
        })?;
        let waited = within(async { (&mut answer).await.unwrap_or_else(|_| Err(closed())) }).await;
        // It may have come in the moment of giving up, and may be a lease: then it counts.
        answer.close();
        answer.try_recv().unwrap_or(waited)
    }

    pub(super) async fn close(&self) {
        self.closing.cancel();
        self.task.wait().await;
    }

    pub(super) fn is_healthy(&self) -> bool {
        self.health.is_good() && !self.task.is_empty()
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
    /// Whether the connection's commits do not wait for the disk now.
    relaxed: bool,
    file: DatabaseFile,
    clock: Clock,
    wake: Arc<Notify>,
    group_max: usize,
    /// `None` when it has to be counted again.
    depth: Option<Depths>,
    depth_max: i64,
    attempts_max: i64,
    claims: u64,
    health: Arc<Health>,
}

impl Desk {
    async fn serve(
        &mut self,
        mut waiting: mpsc::Receiver<Box<dyn Job>>,
        closing: CancellationToken,
    ) {
        let mut unfolded = false;
        let mut probes = tokio::time::interval(PROBE_PERIOD);
        probes.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let first = tokio::select! {
                biased;
                () = closing.cancelled(), if !waiting.is_closed() => {
                    waiting.close();
                    continue;
                }
                _ = probes.tick() => {
                    self.probe().await;
                    unfolded = true;
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
            Err(error) if group.len() > 1 && !error.is_transient() => {
                for job in group {
                    let mut alone = vec![job];
                    let outcome = self.transact(&mut alone).await;
                    self.answer(alone, outcome).await;
                }
            }
            outcome => self.answer(group, outcome).await,
        }
    }

    /// Tells everyone; what turns out to have no owner is given back at once.
    async fn answer(&mut self, group: Vec<Box<dyn Job>>, outcome: Result<(), StoreError>) {
        let mut orphans: Vec<_> =
            group.into_iter().flat_map(|job| job.answer(outcome.clone())).collect();
        if let Err(error) = self.transact(&mut orphans).await {
            tracing::warn!(%error, "what nobody waited for stays until its lease runs out");
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
                    self.wake.notify_waiters();
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
            none => {
                self.relaxed = false;
                none.insert(self.file.connect().await?)
            }
        };
        let relaxed = group.iter().all(|job| job.is_relaxed());
        if relaxed != self.relaxed {
            let setting = if relaxed { "NORMAL" } else { "FULL" };
            let statement = format!("PRAGMA synchronous = {setting}");
            sqlx::query(sqlx::AssertSqlSafe(statement)).execute(&mut *connection).await?;
            self.relaxed = relaxed;
        }
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        let depth = match self.depth.take() {
            Some(depth) => depth,
            None => {
                let counted = sqlx::query_as(DEPTHS).fetch_all(&mut *transaction).await?;
                Depths(counted.into_iter().collect())
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
        let committing = Instant::now();
        transaction.commit().await?;
        if !relaxed {
            let commits = metrics::histogram!(crate::telemetry::metrics::QUEUE_COMMIT);
            commits.record(committing.elapsed());
        }
        Ok(batch)
    }

    /// Writes something that changes nothing: a lock, a full disk or a file that is gone must show
    /// before the next payment needs it.
    async fn probe(&mut self) {
        // A lock in the way must not keep orders waiting behind this, too.
        self.set_patience(UPKEEP_PATIENCE).await;
        match self.transact(&mut [unasked(Probe)]).await {
            Ok(()) => self.health.record(),
            Err(error) => tracing::warn!(%error, "the database does not take writes"),
        }
        self.set_patience(PATIENCE).await;
    }

    /// How long the connection, if there is one, waits for a lock.
    async fn set_patience(&mut self, patience: Duration) {
        if let Some(connection) = &mut self.connection {
            let statement = format!("PRAGMA busy_timeout = {}", patience.as_millis());
            if let Err(error) =
                sqlx::query(sqlx::AssertSqlSafe(statement)).execute(connection).await
            {
                tracing::debug!(%error, "the lock's time limit was not set");
                self.connection = None;
            }
        }
    }

    /// Folds the log into the file, so that it neither grows nor keeps what was deleted.
    async fn fold(&mut self) {
        // A reader in the way only delays it to the next idle moment: do not wait for one.
        self.set_patience(UPKEEP_PATIENCE).await;
        if let Some(connection) = &mut self.connection {
            for statement in ["PRAGMA incremental_vacuum(256)", "PRAGMA wal_checkpoint(TRUNCATE)"] {
                if let Err(error) = sqlx::query(statement).execute(&mut *connection).await {
                    tracing::debug!(%error, "the write-ahead log was not folded");
                }
            }
        }
        self.set_patience(PATIENCE).await;
    }
}

/// An order and the one who waits for it, with the type of the answer hidden.
pub(super) trait Job: Send {
    fn is_wanted(&self) -> bool;
    fn is_relaxed(&self) -> bool;
    fn run<'a>(
        &'a mut self,
        db: &'a mut SqliteConnection,
        batch: &'a mut Batch,
    ) -> Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send + 'a>>;
    /// After the commit, never before. Gives what is to be done when nobody waited.
    fn answer(self: Box<Self>, committed: Result<(), StoreError>) -> Vec<Box<dyn Job>>;
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

    fn is_relaxed(&self) -> bool {
        O::RELAXED
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

    fn answer(self: Box<Self>, committed: Result<(), StoreError>) -> Vec<Box<dyn Job>> {
        let Self { done, reply, .. } = *self;
        // Whoever has gone away finds the outcome in the database.
        match reply.send(committed.and_then(|()| done.ok_or_else(closed))) {
            Err(Ok(answer)) => O::orphans(answer),
            Ok(()) | Err(Err(_)) => Vec::new(),
        }
    }
}

/// An order whose answer nobody waits for.
pub(super) fn unasked<O: Order>(order: O) -> Box<dyn Job> {
    Box::new(Waiting { order, done: None, reply: oneshot::channel().0 })
}

struct Probe;

impl Order for Probe {
    type Answer = ();

    async fn run(&self, db: &mut SqliteConnection, _: &mut Batch) -> Result<(), StoreError> {
        // A number that nobody reads, in the file's first page.
        sqlx::query("PRAGMA user_version = 1").execute(db).await?;
        Ok(())
    }
}

const DEPTHS: &str = "SELECT target, count(*) FROM saf_item WHERE state = 0 GROUP BY target";

/// How often the database is written to although nobody asks.
const PROBE_PERIOD: Duration = Duration::from_secs(2);
/// How long one good write speaks for the database.
const HEALTHY_FOR: Duration = Duration::from_secs(5);
/// How long upkeep waits for a lock.
const UPKEEP_PATIENCE: Duration = Duration::from_millis(50);

/// How long nothing must happen before the log is folded.
const IDLE: Duration = Duration::from_secs(1);
