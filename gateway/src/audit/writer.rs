//! Chains events and makes them durable: one thread, one sync for all that is queued.
//!
//! While a sync runs the next records gather, and while other requests are on their way to theirs the
//! writer rests a moment for them: the batch grows with the load, and a record alone waits for nobody. When
//! the disk fails, nothing is answered; the failure is written at once where the reserve allows it, and the
//! writer tries a new file until one works, in which it tells start, end and cause (PCI DSS 10.7.3).

use std::{
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::Duration,
};

use compliance::{
    Actor, Chain, Event, EventType, Host, Label, Origin, Outcome, Resource, ResourceType,
};
use jiff::Timestamp;
use metrics::{Counter, Gauge};
use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};

use super::{
    checkpoints::Due,
    log::{Message, Shared},
    segment::{Store, StoreError},
};

/// The state of the thread.
pub(super) struct Writer<S> {
    pub(super) store: S,
    pub(super) host: Host,
    /// What is durable.
    pub(super) chain: Chain,
    pub(super) failed: Option<Failure>,
    pub(super) shared: Arc<Shared>,
    pub(super) records_max: usize,
    pub(super) batch_time: Duration,
    pub(super) lines: Vec<u8>,
    pub(super) waiting: Vec<oneshot::Sender<u64>>,
    pub(super) pace: CheckpointPace,
    /// Tells who reads behind the writer what is durable.
    pub(super) durable: watch::Sender<u64>,
    pub(super) records: Counter,
    pub(super) lag: Gauge,
}

/// When the next checkpoint is due.
pub(super) struct CheckpointPace {
    pub(super) every: Duration,
    pub(super) records: u64,
    pub(super) due: watch::Sender<Option<Due>>,
    last: Instant,
    /// Records up to the last one.
    size: u64,
}

impl CheckpointPace {
    pub(super) fn new(every: Duration, records: u64, due: watch::Sender<Option<Due>>) -> Self {
        Self { every, records, due, last: Instant::now(), size: 0 }
    }

    /// Asks for a checkpoint, when it is time. One that never came is asked for again.
    fn look(&mut self, chain: &Chain) {
        let (rest, size) = (self.last.elapsed(), chain.head().seq);
        let is_due = rest >= self.every || (size - self.size >= self.records && rest >= SIGN_REST);
        if is_due {
            self.ask(chain);
        }
    }

    /// Asks for a checkpoint of what is durable; gives its size.
    fn ask(&mut self, chain: &Chain) -> u64 {
        let size = chain.head().seq;
        (self.last, self.size) = (Instant::now(), size);
        self.due.send_replace(Some(Due { size, root: chain.root() }));
        size
    }
}

/// Since when nothing becomes durable, and why.
pub(super) struct Failure {
    since: Timestamp,
    cause: &'static str,
}

impl<S: Store> Writer<S> {
    pub(super) fn run(mut self, messages: &Receiver<Message>) {
        loop {
            match messages.recv_timeout(LOOK_PERIOD) {
                Ok(message) => {
                    if let Some(closed) = self.take(message, messages) {
                        self.write_stop();
                        // The directory is free before the caller hears of it.
                        drop(self);
                        let _ = closed.send(());
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) => self.look(),
                Err(RecvTimeoutError::Disconnected) => {
                    self.write_stop();
                    return;
                }
            }
            if self.failed.is_none() {
                self.pace.look(&self.chain);
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
        let (mut oldest, mut close) = (begun, None);
        self.rotate();
        let (mut chain, before) = (self.chain.clone(), self.chain.head().seq);
        let mut message = first;
        loop {
            match message {
                Message::Record(event, queued, done) => {
                    let pan = event.held_a_pan().then(|| event.id());
                    chain.append(*event, &mut self.lines);
                    self.waiting.push(done);
                    oldest = oldest.min(queued);
                    if let Some(of) = pan {
                        chain.append(self.pan_found(of), &mut self.lines);
                        // Nobody waits for this one; its place in the row of those who wait is taken.
                        self.waiting.push(oneshot::channel().0);
                    }
                }
                Message::CheckpointNow(size) => {
                    let _ = size.send(self.pace.ask(&self.chain));
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
            self.commit(chain, before, began, oldest);
        }
        close
    }

    /// Begins a new file when the last one is full, with the tree so far in its first record.
    fn rotate(&mut self) {
        if self.failed.is_some() || !self.store.is_full() {
            return;
        }
        let rotated = self.store.renew().and_then(|_| self.begin_file());
        if let Err(error) = rotated {
            self.fail(&error);
        }
    }

    fn begin_file(&mut self) -> Result<(), StoreError> {
        self.shared.segment.store(self.store.name().number, Ordering::Release);
        self.write_own(EventType::AuditRotate, Outcome::Success, &self.store.name().to_string())
    }

    /// Makes the gathered lines durable and wakes who waits for them, or drops both.
    fn commit(&mut self, chain: Chain, before: u64, began: Timestamp, oldest: Instant) {
        let committed = match &self.failed {
            // Queued before the failure was seen; nothing may be written before its record.
            Some(_) => Ok(false),
            None => self.store.append(&self.lines).map(|()| true),
        };
        self.lines.clear();
        match committed {
            Ok(true) => {
                self.lag.set(oldest.elapsed().as_secs_f64());
                self.records.increment(chain.head().seq - before);
                for (done, seq) in self.waiting.drain(..).zip(before + 1..) {
                    // Who hung up does not listen; the record stands all the same.
                    let _ = done.send(seq);
                }
                self.durable.send_replace(chain.head().seq);
                self.chain = chain;
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
        if self.failed.is_some() {
            return;
        }
        let (since, cause) = (Timestamp::now(), error.as_str());
        self.failed = Some(Failure { since, cause });
        // A full disk leaves the reserve of the file that is open. Others leave nothing to write to.
        if matches!(error, StoreError::DiskFull | StoreError::Create(_)) {
            let told = format!("{cause} from {since:.3}");
            let _ = self.write_own(EventType::AuditFailure, Outcome::Error, &told);
        }
    }

    /// A new file, the failure as its second record, and only then is the log healthy.
    fn recover(&mut self) {
        let Some(failure) = &self.failed else { return };
        let told = told(failure.since, failure.cause);
        let is_new = self.store.renew();
        let begun = is_new.and_then(|_| self.begin_file());
        let recovered =
            begun.and_then(|()| self.write_own(EventType::AuditFailure, Outcome::Error, &told));
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

    /// The last record, with the queue as it was seen last.
    fn write_stop(&mut self) {
        if self.failed.is_some() {
            return;
        }
        let event =
            self.own(EventType::AuditStop, Outcome::Success, ResourceType::AuditStream, "stop");
        let _ = self.write_alone(self.shared.queue_state().into_iter().fold(event, Event::queue));
    }

    /// Writes one record about the log itself.
    fn write_own(
        &mut self,
        kind: EventType,
        outcome: Outcome,
        what: &str,
    ) -> Result<(), StoreError> {
        self.write_alone(self.own(kind, outcome, ResourceType::AuditStream, what))
    }

    /// Writes one record that nobody waits for.
    pub(super) fn write_alone(&mut self, event: Event) -> Result<(), StoreError> {
        let (mut chain, mut line) = (self.chain.clone(), Vec::new());
        chain.append(event, &mut line);
        self.store.append(&line)?;
        self.chain = chain;
        self.records.increment(1);
        self.durable.send_replace(self.chain.head().seq);
        Ok(())
    }

    fn own(&self, kind: EventType, outcome: Outcome, on: ResourceType, what: &str) -> Event {
        let (now, origin) = (Timestamp::now(), Origin::inside(&self.host));
        let resource = Resource::new(on, Label::new(what));
        Event::new(Actor::system(), kind, now, outcome, origin, resource)
    }

    /// A text of that event had a card number, which was taken out: somebody sends it where none belongs.
    fn pan_found(&self, of: uuid::Uuid) -> Event {
        tracing::error!(event = %of, "a card number was taken out of an audit event");
        self.own(EventType::DlpPanFound, Outcome::Denied, ResourceType::Event, &of.to_string())
    }
}

/// A rest in which the records of other requests arrive.
#[expect(clippy::disallowed_methods, reason = "the writer's own thread, not one of the runtime's")]
fn gather() {
    std::thread::sleep(GATHER);
}

fn told(since: Timestamp, cause: &str) -> String {
    format!("{cause} from {since:.3} to {:.3}", Timestamp::now())
}

/// Long enough for the requests of a busy moment, short against a sync on a busy disk.
const GATHER: Duration = Duration::from_millis(1);
/// A deleted file is noticed, and a failed log tried again, this often.
pub(super) const LOOK_PERIOD: Duration = Duration::from_millis(250);
/// However many records there are, the HSM signs no more often.
const SIGN_REST: Duration = Duration::from_secs(1);

#[cfg(test)]
#[path = "writer_tests.rs"]
pub(super) mod tests;
