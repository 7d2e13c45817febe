//! Numbers events and makes them durable: one thread, one sync for all that is queued.
//!
//! While a sync runs the next records gather, and while other requests are on their way to theirs the
//! writer rests a moment for them: the batch grows with the load, and a record alone waits for
//! nobody. The numbers start at 1 with each boot and have no gaps. When the disk fails,
//! nothing is answered; the writer tries a new file until one works, and its first record there is
//! the failure with start, end and cause (PCI DSS 10.7.3).

use std::{
    num::NonZeroU64,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    task::{Context, Poll},
    time::Duration,
};

use compliance::{Actor, Event, EventType, Host, Label, Origin, Outcome, Resource, ResourceType};
use jiff::Timestamp;
use metrics::{Counter, Gauge};
use tokio::{
    sync::oneshot,
    time::{Instant, Timeout, timeout},
};
use uuid::Uuid;

use super::segment::{Segments, Store, StoreError};
use crate::{config::AuditConfig, telemetry::metrics as figures};

/// A record did not become durable in time, so the answer may not leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the audit log cannot be written")]
pub struct AuditUnavailable;

/// Why the log could not be opened.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each error text is the documentation")]
pub enum AuditOpenError {
    #[error("{} belongs to a running gateway: give each replica its own audit.dir", dir.display())]
    Shared { dir: PathBuf },
    #[error("audit.dir {} is not usable: check that it is writable", dir.display())]
    Open { dir: PathBuf, source: std::io::Error },
    #[error("audit.dir {} cannot take the first record: {cause}", dir.display())]
    FirstRecord { dir: PathBuf, cause: &'static str },
    #[error("starting the audit thread")]
    Thread(#[source] std::io::Error),
}

/// The audit log of this process. Clones write to the same stream. It ends when the last clone is
/// dropped, or with `close`.
#[derive(Clone, Debug)]
pub struct AuditLog {
    queue: SyncSender<Message>,
    shared: Arc<Shared>,
    stall: Duration,
    host: Host,
}

#[derive(Debug)]
struct Shared {
    /// False from a failure until the failure itself is on record.
    healthy: AtomicBool,
    /// Set by an answer that waited too long, cleared by the writer once that is on record.
    stalled: AtomicBool,
    gauge: Gauge,
    dir: PathBuf,
    /// Requests that run and have not queued their record yet.
    coming: AtomicUsize,
}

/// A request on its way to its record. Dropped when the record is queued.
#[derive(Debug)]
pub(super) struct Coming(Arc<Shared>);

impl Drop for Coming {
    fn drop(&mut self) {
        self.0.coming.fetch_sub(1, Ordering::Relaxed);
    }
}

enum Message {
    Record(Box<Event>, Instant, oneshot::Sender<u64>),
    Close(oneshot::Sender<()>),
}

/// Waits until one record is durable; its value is the record's number.
#[derive(Debug)]
pub struct Receipt {
    durable: Pin<Box<Timeout<oneshot::Receiver<u64>>>>,
    shared: Arc<Shared>,
}

impl AuditLog {
    /// Opens the stream of one boot in `config.dir` and writes `audit.start`. Blocks on the disk.
    ///
    /// # Errors
    /// When the directory is another's, or not usable.
    pub fn open(config: &AuditConfig, replica: &str, boot: Uuid) -> Result<Self, AuditOpenError> {
        let dir = || config.dir.clone();
        let segments =
            Segments::open(&config.dir, boot, config.segment_bytes_max).map_err(|source| {
                if source.kind() == std::io::ErrorKind::WouldBlock {
                    AuditOpenError::Shared { dir: dir() }
                } else {
                    AuditOpenError::Open { dir: dir(), source }
                }
            })?;
        Self::start(segments, config, Host::new(Label::new(replica), boot), &config.dir)
    }

    fn start(
        store: impl Store,
        config: &AuditConfig,
        host: Host,
        dir: &Path,
    ) -> Result<Self, AuditOpenError> {
        let (queue, messages) = sync_channel(QUEUE_RECORDS);
        let gauge = metrics::gauge!(figures::AUDIT_HEALTHY);
        let shared = Arc::new(Shared {
            healthy: AtomicBool::new(true),
            stalled: AtomicBool::new(false),
            gauge: gauge.clone(),
            dir: dir.to_owned(),
            coming: AtomicUsize::new(0),
        });
        let mut writer = Writer {
            store,
            host: host.clone(),
            next: NonZeroU64::MIN,
            failed: None,
            shared: Arc::clone(&shared),
            records_max: config.batch_records_max,
            batch_time: Duration::from_millis(config.batch_ms_max),
            lines: Vec::new(),
            waiting: Vec::new(),
            records: metrics::counter!(figures::AUDIT_RECORDS),
            lag: metrics::gauge!(figures::AUDIT_LAG),
        };
        writer.write_own(EventType::AuditStart, Outcome::Success, "start").map_err(|error| {
            AuditOpenError::FirstRecord { dir: dir.to_owned(), cause: error.as_str() }
        })?;
        gauge.set(1.0);
        std::thread::Builder::new()
            .name("audit-writer".into())
            .spawn(move || writer.run(&messages))
            .map_err(AuditOpenError::Thread)?;
        let stall = Duration::from_millis(config.stall_ms_max);
        Ok(Self { queue, shared, stall, host })
    }

    /// Appends one event and waits until it is durable. Gives its number in the stream.
    ///
    /// # Errors
    /// When it is not durable within the stall limit, or the log is failing or closed.
    pub async fn append(&self, event: Event) -> Result<u64, AuditUnavailable> {
        self.submit(event)?.await
    }

    /// Where the files are.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// An event of the gateway itself, now.
    #[must_use]
    pub fn own_event(&self, kind: EventType, outcome: Outcome, on: Resource) -> Event {
        let (now, origin) = (Timestamp::now(), Origin::inside(&self.host));
        Event::new(Actor::system(), kind, now, outcome, origin, on)
    }

    /// Queues one event without waiting. Within a runtime: the receipt has a time limit.
    ///
    /// # Errors
    /// When the log is failing, closed, or its queue is full, which is the same to a caller.
    pub fn submit(&self, event: Event) -> Result<Receipt, AuditUnavailable> {
        let durable = Box::pin(timeout(self.stall, self.enqueue(event)?));
        Ok(Receipt { durable, shared: Arc::clone(&self.shared) })
    }

    /// Queues one event that no answer waits for: a client that hung up, a refused connection.
    /// Also outside a runtime.
    ///
    /// # Errors
    /// As `submit`.
    pub fn note(&self, event: Event) -> Result<(), AuditUnavailable> {
        self.enqueue(event).map(drop)
    }

    fn enqueue(&self, event: Event) -> Result<oneshot::Receiver<u64>, AuditUnavailable> {
        if !self.is_healthy() {
            return Err(AuditUnavailable);
        }
        let (done, durable) = oneshot::channel();
        let message = Message::Record(Box::new(event), Instant::now(), done);
        self.queue.try_send(message).map_err(|_| AuditUnavailable)?;
        Ok(durable)
    }

    /// Says that a record will come: the writer may wait for it a moment.
    pub(super) fn coming(&self) -> Coming {
        self.shared.coming.fetch_add(1, Ordering::Relaxed);
        Coming(Arc::clone(&self.shared))
    }

    /// Whether answers may leave. Readiness asks here.
    pub fn is_healthy(&self) -> bool {
        self.shared.healthy.load(Ordering::Acquire)
    }

    /// The writing process, for the origin of events.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Writes what is queued, then `audit.stop`, and gives the directory free. Later appends fail.
    pub async fn close(&self) {
        let (done, closed) = oneshot::channel();
        let mut message = Message::Close(done);
        // A full queue empties within a batch; a writer that hangs is not waited for.
        for _ in 0..CLOSE_ATTEMPTS {
            match self.queue.try_send(message) {
                Ok(()) => {
                    let _ = timeout(self.stall, closed).await;
                    return;
                }
                Err(std::sync::mpsc::TrySendError::Full(back)) => message = back,
                Err(std::sync::mpsc::TrySendError::Disconnected(_)) => return,
            }
            tokio::time::sleep(CLOSE_REST).await;
        }
    }
}

impl Future for Receipt {
    type Output = Result<u64, AuditUnavailable>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.durable.as_mut().poll(cx).map(|waited| match waited {
            Ok(Ok(number)) => Ok(number),
            // The writer dropped the record: it could not be written.
            Ok(Err(_)) => Err(AuditUnavailable),
            Err(_) => {
                // In this order: the writer sets healthy only after it has cleared `stalled`, so
                // whatever comes between, a later look finds `stalled` and heals.
                self.shared.set_healthy(false);
                self.shared.stalled.store(true, Ordering::Release);
                Err(AuditUnavailable)
            }
        })
    }
}

impl Shared {
    fn set_healthy(&self, healthy: bool) {
        self.healthy.store(healthy, Ordering::Release);
        self.gauge.set(if healthy { 1.0 } else { 0.0 });
    }
}

/// The state of the thread.
struct Writer<S> {
    store: S,
    host: Host,
    /// The number of the next record.
    next: NonZeroU64,
    failed: Option<Failure>,
    shared: Arc<Shared>,
    records_max: usize,
    batch_time: Duration,
    lines: Vec<u8>,
    waiting: Vec<oneshot::Sender<u64>>,
    records: Counter,
    lag: Gauge,
}

/// A rest in which the records of other requests arrive.
#[expect(clippy::disallowed_methods, reason = "the writer's own thread, not one of the runtime's")]
fn gather() {
    std::thread::sleep(GATHER);
}

/// Since when nothing becomes durable, and why.
struct Failure {
    since: Timestamp,
    cause: &'static str,
}

impl<S: Store> Writer<S> {
    fn run(mut self, messages: &Receiver<Message>) {
        loop {
            match messages.recv_timeout(LOOK_PERIOD) {
                Ok(message) => {
                    if let Some(closed) = self.take(message, messages) {
                        let _ = self.write_own(EventType::AuditStop, Outcome::Success, "stop");
                        // The directory is free before the caller hears of it.
                        drop(self);
                        let _ = closed.send(());
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) => self.look(),
                Err(RecvTimeoutError::Disconnected) => {
                    let _ = self.write_own(EventType::AuditStop, Outcome::Success, "stop");
                    return;
                }
            }
        }
    }

    /// Writes one batch that begins with `first`; gives the sender of a close that came with it.
    fn take(
        &mut self,
        first: Message,
        messages: &Receiver<Message>,
    ) -> Option<oneshot::Sender<()>> {
        // One sync for many costs each of them less than it waits here; nobody is woken for it.
        if self.shared.coming.load(Ordering::Relaxed) > 0 {
            gather();
        }
        let (begun, began) = (Instant::now(), Timestamp::now());
        let (mut oldest, mut close, mut next) = (begun, None, self.next);
        let mut message = first;
        loop {
            match message {
                Message::Record(mut event, queued, done) => {
                    event.set_seq(next);
                    next = next.saturating_add(1);
                    self.lines.extend_from_slice(&event.to_json_line());
                    self.waiting.push(done);
                    oldest = oldest.min(queued);
                }
                Message::Close(done) => {
                    close = Some(done);
                    break;
                }
            }
            if self.waiting.len() >= self.records_max || begun.elapsed() >= self.batch_time {
                break;
            }
            let Ok(another) = messages.try_recv() else { break };
            message = another;
        }
        if !self.waiting.is_empty() {
            self.commit(began, oldest);
        }
        close
    }

    /// Makes the gathered lines durable and wakes who waits for them, or drops both.
    fn commit(&mut self, began: Timestamp, oldest: Instant) {
        let committed = match &self.failed {
            // Queued before the failure was seen; nothing may be written before its record.
            Some(_) => Ok(false),
            None => self.store.append(&self.lines).map(|()| true),
        };
        self.lines.clear();
        match committed {
            Ok(true) => {
                self.lag.set(oldest.elapsed().as_secs_f64());
                self.records.increment(u64::try_from(self.waiting.len()).unwrap_or(u64::MAX));
                for done in self.waiting.drain(..) {
                    // Who hung up does not listen; the record stands all the same.
                    let _ = done.send(self.next.get());
                    self.next = self.next.saturating_add(1);
                }
                if self.shared.stalled.load(Ordering::Acquire) {
                    self.recover_from_stall(began);
                }
            }
            Ok(false) => self.waiting.clear(),
            Err(error) => {
                self.fail(&error);
                self.waiting.clear();
            }
        }
    }

    /// Between batches: is the file still there, and can a failed log go on?
    fn look(&mut self) {
        if self.failed.is_some() {
            self.recover();
        } else if let Err(error) = self.store.verify() {
            self.fail(&error);
        } else if self.shared.stalled.load(Ordering::Acquire) {
            self.recover_from_stall(Timestamp::now());
        }
    }

    fn fail(&mut self, error: &StoreError) {
        self.shared.set_healthy(false);
        tracing::error!(error = error as &dyn std::error::Error, "the audit log failed");
        if self.failed.is_none() {
            self.failed = Some(Failure { since: Timestamp::now(), cause: error.as_str() });
        }
    }

    /// A new file, the failure as its first record, and only then is the log healthy.
    fn recover(&mut self) {
        let Some(failure) = &self.failed else { return };
        let told = told(failure.since, failure.cause);
        let recovered = self
            .store
            .renew()
            .and_then(|()| self.write_own(EventType::AuditFailure, Outcome::Error, &told));
        match recovered {
            Ok(()) => {
                self.failed = None;
                self.shared.stalled.store(false, Ordering::Release);
                self.shared.set_healthy(true);
                tracing::warn!(failure = told, "the audit log works again");
            }
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "still no audit log");
            }
        }
    }

    /// Answers were withheld because a sync took too long, but it ended well.
    fn recover_from_stall(&mut self, began: Timestamp) {
        self.shared.stalled.store(false, Ordering::Release);
        let told = told(began, "stalled");
        match self.write_own(EventType::AuditFailure, Outcome::Error, &told) {
            Ok(()) => self.shared.set_healthy(true),
            Err(error) => self.fail(&error),
        }
    }

    /// Writes one record about the log itself.
    fn write_own(
        &mut self,
        kind: EventType,
        outcome: Outcome,
        what: &str,
    ) -> Result<(), StoreError> {
        let resource = Resource::new(ResourceType::AuditStream, Label::new(what));
        let origin = Origin::inside(&self.host);
        let mut event =
            Event::new(Actor::system(), kind, Timestamp::now(), outcome, origin, resource);
        event.set_seq(self.next);
        self.store.append(&event.to_json_line())?;
        self.next = self.next.saturating_add(1);
        self.records.increment(1);
        Ok(())
    }
}

fn told(since: Timestamp, cause: &str) -> String {
    format!("{cause} from {since:.3} to {:.3}", Timestamp::now())
}

/// Records that may wait; far more than clients may have in flight.
const QUEUE_RECORDS: usize = 8_192;
/// Long enough for the requests of a busy moment, short against a sync on a busy disk.
const GATHER: Duration = Duration::from_millis(1);
/// A deleted file is noticed, and a failed log tried again, this often.
const LOOK_PERIOD: Duration = Duration::from_millis(250);
const CLOSE_ATTEMPTS: u32 = 100;
const CLOSE_REST: Duration = Duration::from_millis(10);

#[cfg(test)]
#[path = "writer_tests.rs"]
pub(super) mod tests;
