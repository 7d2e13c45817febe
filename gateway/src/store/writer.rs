//! The tasks that write: each commits what waits as one group, then answers everyone in it.
//!
//! At full durability a commit costs milliseconds, a row tens of microseconds; so the group is
//! what makes the store fast. An error of one row repeats the group one by one, so that it cannot
//! fail its neighbours; an error of the database itself fails the group at once, so that nobody
//! waits for a lock two hundred times.
//!
//! SQLite has one writer, and a group is one transaction. PostgreSQL has a few, and each kind of
//! order in a group has a transaction of its own: in it, rows are locked in the order of their
//! keys, so that no two writers wait for each other.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hsm_adapter::worker::chain;
use rustix::system::uname;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::control::PAUSED;
use super::db::{Db, Readers, Row, Session, Sql, query};
use super::depth::{Depths, Known};
use super::error::{in_time, within};
use super::memory::{Alarm, Memory};
use super::order::{Group, Job, Order, Waiting, merge, orders_in};
use super::postgres::{self, Server};
use super::sqlite::{self, DatabaseFile, PATIENCE};
use super::{Clock, StoreError};
use crate::config::{Place, QueueConfig, StoreConfig};

/// What the orders of one transaction share.
#[derive(Debug)]
pub(super) struct Batch {
    /// Epoch milliseconds, by the store's [`Clock`].
    pub(super) now: i64,
    pub(super) depth: Depths,
    pub(super) depth_max: i64,
    pub(super) attempts_max: i64,
    /// Set when a lane may have become claimable.
    pub(super) wake: bool,
    /// Set when a log that holds deleted pages should be folded into the file.
    pub(super) fold: bool,
    /// Claims so far: each tenth is by age.
    pub(super) claims: Arc<AtomicU64>,
    /// What this process has seen before.
    pub(super) memory: Arc<Memory>,
    /// Payments that end by this transaction.
    pub(super) ended: Vec<Uuid>,
    /// Payments that it holds for a row that is not ours.
    pub(super) alarms: Vec<Alarm>,
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
    tasks: TaskTracker,
    home: Home,
    health: Arc<Health>,
    memory: Arc<Memory>,
}

/// Where the rows are.
#[derive(Debug, Clone)]
pub(super) enum Home {
    Sqlite(DatabaseFile),
    Postgres(Server),
}

impl Home {
    /// Opens or makes it: the connections that write, those that read, and the lock of a file.
    async fn open(
        store: &StoreConfig,
    ) -> Result<(Self, Vec<Session>, Readers, Option<File>), StoreError> {
        match store.place().map_err(StoreError::NoPlace)? {
            Place::Sqlite(path) => {
                let (file, session, readers, lock) = sqlite::open(path, store.readers).await?;
                Ok((Self::Sqlite(file), vec![session], readers, Some(lock)))
            }
            Place::Postgres(config) => {
                let (server, sessions, readers) = postgres::open(config, store.readers).await?;
                Ok((Self::Postgres(server), sessions, readers, None))
            }
        }
    }

    async fn connect(&self) -> Result<Session, StoreError> {
        Ok(match self {
            Self::Sqlite(file) => Session::Sqlite(file.connect().await?),
            Self::Postgres(server) => Session::Postgres(server.connect().await?),
        })
    }

    /// How long a transaction may take before its connection counts as lost: a server whose host has
    /// vanished says nothing, ever. A file always answers.
    fn answers_within(&self) -> Option<Duration> {
        match self {
            Self::Sqlite(_) => None,
            Self::Postgres(_) => Some(TRANSACTION_MAX),
        }
    }

    /// For how long a count of the open payments holds. In a file, nobody else writes.
    fn depth_holds(&self) -> Option<Duration> {
        match self {
            Self::Sqlite(_) => None,
            Self::Postgres(_) => Some(Duration::from_secs(1)),
        }
    }
}

impl Writer {
    pub(super) async fn start(
        store: &StoreConfig,
        queue: &QueueConfig,
        clock: &Clock,
        wake: &Arc<Notify>,
    ) -> Result<(Self, Readers), StoreError> {
        let (home, sessions, readers, lock) = Home::open(store).await?;
        let (orders, waiting) = mpsc::channel(store.writer_queue_max as usize);
        let waiting = Arc::new(tokio::sync::Mutex::new(waiting));
        let (closing, tasks) = (CancellationToken::new(), TaskTracker::new());
        let health = Arc::new(Health { began: Instant::now(), good_at: AtomicU64::new(0) });
        let known = Arc::new(Known::default());
        let claims = Arc::new(AtomicU64::new(0));
        let memory = Arc::new(Memory::default());
        let lock = Arc::new(lock);
        let instance = instance();
        for (number, session) in sessions.into_iter().enumerate() {
            let mut desk = Desk {
                session: Some(session),
                relaxed: false,
                home: home.clone(),
                clock: clock.clone(),
                wake: Arc::clone(wake),
                group_max: store.group_rows_max as usize,
                known: Arc::clone(&known),
                depth_max: queue.rows_max.into(),
                attempts_max: queue.attempts_max.into(),
                claims: Arc::clone(&claims),
                memory: Arc::clone(&memory),
                health: Arc::clone(&health),
                instance: instance.clone(),
                probes: number == 0,
            };
            let (waiting, ending, lock) = (waiting.clone(), closing.clone(), Arc::clone(&lock));
            tasks.spawn(async move {
                desk.serve(&waiting, ending).await;
                // The lock goes last: the next instance must find the log folded and nobody writing.
                drop(lock);
            });
        }
        if let Home::Postgres(server) = &home {
            let (server, wake, ending) = (server.clone(), Arc::clone(wake), closing.clone());
            tasks.spawn(async move {
                tokio::select! {
                    () = ending.cancelled() => {}
                    () = server.listen(&wake) => {}
                }
            });
        }
        tasks.close();
        Ok((Self { orders, closing, tasks, home, health, memory }, readers))
    }

    /// Queues an order and waits for its group.
    pub(super) async fn ask<O: Order>(&self, order: O) -> Result<O::Answer, StoreError> {
        let (reply, mut answer) = oneshot::channel();
        self.orders.try_send(Waiting::of(order, reply)).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => StoreError::Busy,
            mpsc::error::TrySendError::Closed(_) => StoreError::closed(),
        })?;
        let waited =
            within(async { (&mut answer).await.unwrap_or_else(|_| Err(StoreError::closed())) })
                .await;
        // It may have come in the moment of giving up, and may be a lease: then it counts.
        answer.close();
        answer.try_recv().unwrap_or(waited)
    }

    /// Ends after what it has accepted, or at the deadline.
    pub(super) async fn close(&self, deadline: Instant) {
        self.closing.cancel();
        if timeout_at(deadline, self.tasks.wait()).await.is_err() {
            tracing::warn!("the database does not answer: what was not committed is given up");
        }
    }

    pub(super) fn is_healthy(&self) -> bool {
        self.health.is_good() && !self.tasks.is_empty()
    }

    pub(super) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The file, where it is one.
    pub(super) fn path(&self) -> Option<&Path> {
        match &self.home {
            Home::Sqlite(file) => Some(file.path()),
            Home::Postgres(_) => None,
        }
    }
}

/// What waits for the writers.
type Queue = tokio::sync::Mutex<mpsc::Receiver<Box<dyn Job>>>;

/// The writing side.
struct Desk {
    session: Option<Session>,
    /// Whether the commits of SQLite's connection do not wait for the disk now.
    relaxed: bool,
    home: Home,
    clock: Clock,
    wake: Arc<Notify>,
    group_max: usize,
    known: Arc<Known>,
    depth_max: i64,
    attempts_max: i64,
    claims: Arc<AtomicU64>,
    memory: Arc<Memory>,
    health: Arc<Health>,
    instance: String,
    /// One of the writers sees whether the database takes writes.
    probes: bool,
}

impl Desk {
    async fn serve(&mut self, queue: &Queue, closing: CancellationToken) {
        let (mut unfolded, mut ending) = (false, false);
        let mut probes = tokio::time::interval(PROBE_PERIOD);
        probes.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let group = tokio::select! {
                biased;
                () = closing.cancelled(), if !ending => {
                    queue.lock().await.close();
                    ending = true;
                    continue;
                }
                _ = probes.tick(), if self.probes => {
                    self.probe().await;
                    unfolded = true;
                    continue;
                }
                group = next_group(queue, self.group_max) => group,
                () = tokio::time::sleep(IDLE), if unfolded => {
                    self.fold().await;
                    unfolded = false;
                    continue;
                }
            };
            let Some(group) = group else { break };
            unfolded = true;
            match self.home {
                Home::Sqlite(_) => self.commit(group).await,
                Home::Postgres(_) => {
                    for kind in group {
                        self.commit(vec![kind]).await;
                    }
                }
            }
        }
        if let Some(session) = self.session.take()
            && let Err(error) = session.close().await
        {
            tracing::warn!(error = chain(&error), "the database did not close cleanly");
        }
    }

    async fn commit(&mut self, mut group: Group) {
        match self.insist(&mut group).await {
            Err(error) if orders_in(&group) > 1 && !error.is_transient() => {
                for job in group.into_iter().flat_map(Job::split) {
                    let mut alone = vec![job];
                    let outcome = self.insist(&mut alone).await;
                    self.answer(alone, outcome).await;
                }
            }
            outcome => self.answer(group, outcome).await,
        }
    }

    /// Tells everyone; what turns out to have no owner is given back at once.
    async fn answer(&mut self, group: Group, outcome: Result<(), StoreError>) {
        let mut orphans = Vec::new();
        for job in group.into_iter().flat_map(|job| job.answer(outcome.clone())) {
            merge(&mut orphans, job);
        }
        for orphan in orphans {
            if let Err(error) = self.insist(&mut [orphan]).await {
                let error = chain(&error);
                tracing::warn!(error, "what nobody waited for stays until its lease runs out");
            }
        }
    }

    /// One transaction around the group, again when another writer undid it.
    async fn insist(&mut self, group: &mut [Box<dyn Job>]) -> Result<(), StoreError> {
        for _ in 1..CONFLICTS_MAX {
            match self.transact(group).await {
                Err(error) if error.is_conflict() => {
                    tracing::debug!(error = chain(&error), "a group again");
                }
                outcome => return outcome,
            }
        }
        self.transact(group).await
    }

    /// One transaction around the group: all of it or nothing.
    async fn transact(&mut self, group: &mut [Box<dyn Job>]) -> Result<(), StoreError> {
        let done = match self.home.answers_within() {
            Some(limit) => in_time(limit, self.try_transact(group)).await,
            None => self.try_transact(group).await,
        };
        match done {
            Ok(batch) => {
                self.known.add(&batch.depth.added);
                if batch.depth.moved {
                    self.known.forget();
                }
                self.memory.learn(batch.ended, batch.alarms);
                if batch.wake {
                    self.wake.notify_waiters();
                }
                if batch.fold {
                    self.fold().await;
                }
                Ok(())
            }
            Err(error) => {
                self.known.forget();
                if error.is_transient() && !error.is_conflict() {
                    // Whatever state the connection is in, the next group gets a fresh one.
                    self.session = None;
                }
                Err(error)
            }
        }
    }

    async fn try_transact(&mut self, group: &mut [Box<dyn Job>]) -> Result<Batch, StoreError> {
        if let Home::Sqlite(file) = &self.home {
            file.check()?;
        }
        let relaxed = group.iter().all(|job| job.is_relaxed());
        let session = match &mut self.session {
            Some(session) => session,
            none => {
                self.relaxed = false;
                none.insert(self.home.connect().await?)
            }
        };
        if let (Session::Sqlite(connection), true) = (&mut *session, relaxed != self.relaxed) {
            let setting = if relaxed { "NORMAL" } else { "FULL" };
            let statement = format!("PRAGMA synchronous = {setting}");
            sqlx::query(sqlx::AssertSqlSafe(statement)).execute(connection).await?;
            self.relaxed = relaxed;
        }
        let mut transaction = session.begin(relaxed).await?;
        let db = &mut transaction.db();
        if self.clock.is_stale() {
            self.clock.set(query(CLOCK).one(db).await?.value()?);
        }
        let (counted, paused) = match self.known.get(self.home.depth_holds()) {
            Ok(known) => known,
            Err(asked) => {
                let mut counted = HashMap::new();
                for row in query(DEPTHS).all(db).await? {
                    counted.insert(row.get("target")?, row.get("open")?);
                }
                let paused = query(PAUSED).all(db).await?;
                let paused = paused.iter().map(Row::value).collect::<Result<_, _>>()?;
                let known = (counted, paused);
                self.known.set(asked, known.clone());
                known
            }
        };
        let mut batch = Batch {
            now: self.clock.now(),
            depth: Depths { counted, paused, ..Depths::default() },
            depth_max: self.depth_max,
            attempts_max: self.attempts_max,
            wake: false,
            fold: false,
            claims: Arc::clone(&self.claims),
            memory: Arc::clone(&self.memory),
            ended: Vec::new(),
            alarms: Vec::new(),
        };
        // Asked again: the lock may have come later than a caller waits, and a lease to a caller who
        // has gone counts as sent.
        for job in group.iter_mut() {
            job.run(db, &mut batch).await?;
        }
        if batch.wake
            && let Home::Postgres(_) = self.home
        {
            query(TELL).execute(db).await?;
        }
        let committing = Instant::now();
        transaction.commit().await?;
        if !relaxed {
            let commits = metrics::histogram!(crate::telemetry::metrics::QUEUE_COMMIT);
            commits.record(committing.elapsed());
        }
        Ok(batch)
    }

    /// Writes something that nobody reads: a lock, a full disk or a file that is gone must show
    /// before the next payment needs it.
    async fn probe(&mut self) {
        // A lock in the way must not keep orders waiting behind this, too.
        self.set_patience(UPKEEP_PATIENCE).await;
        let probe = Waiting::unasked(Probe { instance: self.instance.clone() });
        match self.insist(&mut [probe]).await {
            Ok(()) => self.health.record(),
            Err(error) => {
                tracing::warn!(error = chain(&error), "the database does not take writes");
            }
        }
        self.set_patience(PATIENCE).await;
    }

    /// How long SQLite's connection, if there is one, waits for a lock.
    async fn set_patience(&mut self, patience: Duration) {
        if let Some(Session::Sqlite(connection)) = &mut self.session {
            let statement = format!("PRAGMA busy_timeout = {}", patience.as_millis());
            if let Err(error) =
                sqlx::query(sqlx::AssertSqlSafe(statement)).execute(connection).await
            {
                tracing::debug!(%error, "the lock's time limit was not set");
                self.session = None;
            }
        }
    }

    /// Folds SQLite's log into the file, so that it neither grows nor keeps what was deleted.
    async fn fold(&mut self) {
        // A reader in the way only delays it to the next idle moment: do not wait for one.
        self.set_patience(UPKEEP_PATIENCE).await;
        if let Some(Session::Sqlite(connection)) = &mut self.session {
            for statement in ["PRAGMA incremental_vacuum(256)", "PRAGMA wal_checkpoint(TRUNCATE)"] {
                if let Err(error) = sqlx::query(statement).execute(&mut *connection).await {
                    tracing::debug!(%error, "the write-ahead log was not folded");
                }
            }
        }
        self.set_patience(PATIENCE).await;
    }
}

/// A name for this process, of 255 characters at most: its host's, and one that nobody else has.
fn instance() -> String {
    let host = uname().nodename().to_string_lossy().chars().take(200).collect::<String>();
    format!("{host}:{}", Uuid::now_v7())
}

/// All that waits, by kind, up to a number of orders; `None` when nothing will come any more.
async fn next_group(queue: &Queue, orders_max: usize) -> Option<Group> {
    let mut queue = queue.lock().await;
    let mut group = Vec::new();
    merge(&mut group, queue.recv().await?);
    let mut orders = 1;
    while orders < orders_max
        && let Ok(next) = queue.try_recv()
    {
        merge(&mut group, next);
        orders += 1;
    }
    Some(group)
}

struct Probe {
    instance: String,
}

impl Order for Probe {
    type Answer = ();

    async fn run(&self, db: &mut Db<'_>, batch: &mut Batch) -> Result<(), StoreError> {
        query(SEEN).bind(&self.instance).bind(batch.now).execute(db).await?;
        Ok(())
    }
}

const DEPTHS: &str = "
SELECT target, count(*) AS open FROM saf_item WHERE state = 0 GROUP BY target";

const SEEN: &str = "
INSERT INTO gateway_instance (name, started_at, seen_at) VALUES ($1, $2, $2)
ON CONFLICT (name) DO UPDATE SET seen_at = excluded.seen_at";

/// The server's clock moves on within a transaction, too.
const CLOCK: &str = "SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint)";

const TELL: Sql = Sql::Each { sqlite: "", postgres: "NOTIFY lanes_moved" };

/// How often a group is tried that other writers undo.
const CONFLICTS_MAX: u32 = 4;

/// How long a transaction on a server may take: longer than a statement may (`statement_timeout`).
const TRANSACTION_MAX: Duration = Duration::from_secs(10);

/// How often the database is written to although nobody asks.
const PROBE_PERIOD: Duration = Duration::from_secs(2);
/// How long one good write speaks for the database.
const HEALTHY_FOR: Duration = Duration::from_secs(5);
/// How long upkeep waits for a lock.
const UPKEEP_PATIENCE: Duration = Duration::from_millis(50);

/// How long nothing must happen before the log is folded.
const IDLE: Duration = Duration::from_secs(1);
