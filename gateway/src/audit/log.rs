//! The audit log of this process, as the rest of it sees it: hand in an event, wait until it is durable.

use std::{
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
    task::{Context, Poll},
    time::Duration,
};

use compliance::{
    Actor, Chain, Digests, Event, EventType, Host, Label, NotAStream, Origin, Outcome, QueueState,
    Reason, Resource, ResourceType, SegmentName, SignedNote, StreamId,
};
use jiff::Timestamp;
use metrics::Gauge;
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, Timeout, timeout},
};
use uuid::Uuid;

use super::{
    checkpoints::Due,
    previous::Previous,
    segment::{Store, Taken},
    writer::{CheckpointPace, Writer},
};
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
    #[error("audit.dir {} is not usable: check that it is writable and has room", dir.display())]
    Open { dir: PathBuf, source: std::io::Error },
    #[error("audit.dir {}: the log before cannot be read", dir.display())]
    Previous { dir: PathBuf, source: std::io::Error },
    #[error("audit.dir {} cannot take the first record: {cause}", dir.display())]
    FirstRecord { dir: PathBuf, cause: &'static str },
    #[error("audit.deployment and replica name the stream")]
    Name(#[from] NotAStream),
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
pub(super) struct Shared {
    /// False from a failure until the failure itself is on record.
    healthy: AtomicBool,
    /// True while a copy of the log that must not fall behind has: no new work.
    blocked: AtomicBool,
    /// Set by an answer that waited too long, cleared by the writer once that is on record.
    pub(super) stalled: AtomicBool,
    gauge: Gauge,
    dir: PathBuf,
    /// Requests that run and have not queued their record yet.
    pub(super) coming: AtomicUsize,
    pub(super) stream: StreamId,
    pub(super) previous: Previous,
    pub(super) due: watch::Receiver<Option<Due>>,
    /// Records that a checkpoint covers, signed or not.
    pub(super) covered: watch::Sender<u64>,
    /// The last checkpoint that was signed.
    pub(super) signed: watch::Sender<Option<SignedNote>>,
    durable: watch::Receiver<u64>,
    /// The number of the segment that is written.
    pub(super) segment: AtomicU32,
    /// As the queue was last seen.
    queue_state: Mutex<Option<QueueState>>,
}

/// A request on its way to its record. Dropped when the record is queued.
#[derive(Debug)]
pub(super) struct Coming(Arc<Shared>);

impl Drop for Coming {
    fn drop(&mut self) {
        self.0.coming.fetch_sub(1, Ordering::Relaxed);
    }
}

pub(super) enum Message {
    Record(Box<Event>, Instant, oneshot::Sender<u64>),
    /// Answered with the size that the checkpoint will have.
    CheckpointNow(oneshot::Sender<u64>),
    Close(oneshot::Sender<()>),
}

/// Waits until one record is durable; its value is the record's number.
#[derive(Debug)]
pub struct Receipt {
    durable: Pin<Box<Timeout<oneshot::Receiver<u64>>>>,
    shared: Arc<Shared>,
}

impl AuditLog {
    /// Opens the stream of one boot in `config.dir`, behind the one before, and writes `audit.start`. Blocks
    /// on the disk.
    ///
    /// # Errors
    /// When the directory is another's, or not usable, or the log before cannot be read.
    pub fn open(
        config: &AuditConfig,
        replica: &str,
        boot: Uuid,
        digests: Option<Digests>,
    ) -> Result<Self, AuditOpenError> {
        let dir = || config.dir.clone();
        let stream = StreamId::new(&config.deployment, replica, boot)?;
        let taken = Taken::new(&config.dir).map_err(|source| {
            if source.kind() == std::io::ErrorKind::WouldBlock {
                AuditOpenError::Shared { dir: dir() }
            } else {
                AuditOpenError::Open { dir: dir(), source }
            }
        })?;
        let previous = Previous::read(&config.dir)
            .map_err(|source| AuditOpenError::Previous { dir: dir(), source })?;
        let store = taken
            .begin(boot, config.segment_bytes_max)
            .map_err(|source| AuditOpenError::Open { dir: dir(), source })?;
        Self::start(store, config, Host::new(Label::new(replica), boot), stream, previous, digests)
    }

    pub(super) fn start(
        store: impl Store,
        config: &AuditConfig,
        host: Host,
        stream: StreamId,
        previous: Previous,
        digests: Option<Digests>,
    ) -> Result<Self, AuditOpenError> {
        let (queue, messages) = sync_channel(QUEUE_RECORDS);
        let gauge = metrics::gauge!(figures::AUDIT_HEALTHY);
        let (due, is_due) = watch::channel(None);
        let (durable, is_durable) = watch::channel(0);
        let chain = Chain::new(stream.clone(), previous.head.clone());
        let on = Resource::new(ResourceType::AuditStream, Label::new("start"));
        let (now, origin) = (Timestamp::now(), Origin::inside(&host));
        let begin =
            Event::new(Actor::system(), EventType::AuditStart, now, Outcome::Success, origin, on);
        let begin = match digests {
            Some(digests) => begin.digests(digests),
            None => begin,
        };
        let recovered = previous.recovered(&host);
        let shared = Arc::new(Shared {
            healthy: AtomicBool::new(true),
            blocked: AtomicBool::new(false),
            stalled: AtomicBool::new(false),
            gauge: gauge.clone(),
            dir: config.dir.clone(),
            coming: AtomicUsize::new(0),
            stream,
            queue_state: Mutex::new(None),
            previous,
            due: is_due,
            covered: watch::Sender::new(0),
            signed: watch::Sender::new(None),
            durable: is_durable,
            segment: AtomicU32::new(1),
        });
        let every = Duration::from_secs(config.checkpoint_s);
        let mut writer = Writer {
            store,
            host: host.clone(),
            chain,
            failed: None,
            shared: Arc::clone(&shared),
            records_max: config.batch_records_max,
            batch_time: Duration::from_millis(config.batch_ms_max),
            lines: Vec::new(),
            waiting: Vec::new(),
            pace: CheckpointPace::new(every, config.checkpoint_records, due),
            durable,
            records: metrics::counter!(figures::AUDIT_RECORDS),
            lag: metrics::gauge!(figures::AUDIT_LAG),
        };
        for event in [begin].into_iter().chain(recovered) {
            writer.write_alone(event).map_err(|error| AuditOpenError::FirstRecord {
                dir: config.dir.clone(),
                cause: error.as_str(),
            })?;
        }
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

    /// The stream of this process.
    #[must_use]
    pub fn stream(&self) -> &StreamId {
        &self.shared.stream
    }

    /// Whether the segment is the one that is written.
    #[must_use]
    pub fn is_current(&self, name: SegmentName) -> bool {
        let number = self.shared.segment.load(Ordering::Acquire);
        name == SegmentName { boot: self.shared.stream.boot(), number }
    }

    /// Whether a signed checkpoint covers this record of this process.
    #[must_use]
    pub fn is_signed(&self, seq: u64) -> bool {
        let signed = self.shared.signed.borrow();
        signed.as_ref().is_some_and(|note| note.checkpoint().size >= seq)
    }

    /// How the log before this start ended.
    #[must_use]
    pub fn previous(&self) -> &Previous {
        &self.shared.previous
    }

    /// What checkpoints say of the queue from now on.
    pub fn set_queue_state(&self, state: QueueState) {
        *self.shared.queue_state.lock().unwrap_or_else(PoisonError::into_inner) = Some(state);
    }

    /// The number of the last record that is durable, and of those that come.
    #[must_use]
    pub fn durable(&self) -> watch::Receiver<u64> {
        self.shared.durable.clone()
    }

    /// An event of the gateway itself, now.
    #[must_use]
    pub fn own_event(&self, kind: EventType, outcome: Outcome, on: Resource) -> Event {
        let (now, origin) = (Timestamp::now(), Origin::inside(&self.host));
        Event::new(Actor::system(), kind, now, outcome, origin, on)
    }

    /// A control that fails, or works again (PCI DSS 10.7.2). Told in the log too, when it cannot be recorded.
    pub async fn control(&self, fails: bool, control: &str, reason: Option<Reason>, note: &str) {
        let (kind, outcome) = match fails {
            true => (EventType::ControlFail, Outcome::Error),
            false => (EventType::ControlRecover, Outcome::Success),
        };
        let on = Resource::new(ResourceType::AuditStream, Label::new(control));
        let event = self.own_event(kind, outcome, on).note(Label::new(note));
        let event = match reason {
            Some(reason) => event.reason(reason),
            None => event,
        };
        let recorded = self.append(event).await.is_ok();
        tracing::warn!(control, fails, recorded, note, "a control of the audit log");
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
        // Not `is_healthy`: while new work is refused, what is in flight and the refusals are recorded.
        if !self.shared.healthy.load(Ordering::Acquire) {
            return Err(AuditUnavailable);
        }
        let (done, durable) = oneshot::channel();
        let message = Message::Record(Box::new(event), Instant::now(), done);
        self.queue.try_send(message).map_err(|_| AuditUnavailable)?;
        Ok(durable)
    }

    /// Has a checkpoint made of all that is durable, and waits for its record, two seconds at most. Whether it
    /// came.
    pub async fn checkpoint_now(&self) -> bool {
        let (size, asked) = oneshot::channel();
        let mut covered = self.shared.covered.subscribe();
        if self.queue.try_send(Message::CheckpointNow(size)).is_err() {
            return false;
        }
        let came = async {
            let size = asked.await.ok()?;
            covered.wait_for(|covered| *covered >= size).await.ok().map(drop)
        };
        matches!(timeout(CHECKPOINT_WAIT, came).await, Ok(Some(())))
    }

    /// Says that a record will come: the writer may wait for it a moment.
    pub(super) fn coming(&self) -> Coming {
        self.shared.coming.fetch_add(1, Ordering::Relaxed);
        Coming(Arc::clone(&self.shared))
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Whether answers may leave. Readiness asks here.
    pub fn is_healthy(&self) -> bool {
        self.is_writable() && !self.is_blocked()
    }

    /// Whether records become durable.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.shared.healthy.load(Ordering::Acquire)
    }

    /// Whether a sink has fallen so far behind that new work is refused.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        self.shared.blocked.load(Ordering::Acquire)
    }

    /// Refuses new work, or takes it again. Records are written all the same.
    pub fn set_blocked(&self, blocked: bool) {
        self.shared.blocked.store(blocked, Ordering::Release);
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
    pub(super) fn queue_state(&self) -> Option<QueueState> {
        *self.queue_state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_healthy(&self, healthy: bool) {
        self.healthy.store(healthy, Ordering::Release);
        self.gauge.set(f64::from(u8::from(healthy)));
    }
}

/// Records that may wait; far more than clients may have in flight.
const QUEUE_RECORDS: usize = 8_192;
const CHECKPOINT_WAIT: Duration = Duration::from_secs(2);
const CLOSE_ATTEMPTS: u32 = 100;
const CLOSE_REST: Duration = Duration::from_millis(10);
