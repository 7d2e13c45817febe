//! How this replica's log ended before this start: the record that the new stream follows, and what it said of
//! the queue.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, BufRead},
    path::Path,
};

use compliance::{
    Actor, Event, EventType, Hash, Head, Host, Label, Members, Origin, Outcome, QueueState,
    Resource, ResourceType, Segment, Signed, SignedNote, StreamId, VerifierKey, segments,
};
use jiff::Timestamp;
use serde::Deserialize;
use uuid::Uuid;

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Previous {
    /// The last record that is whole.
    pub(super) head: Option<Head>,
    /// The queue as the last checkpoint saw it.
    pub(super) queue: Option<QueueState>,
    /// The keys that the last signed checkpoint names.
    pub(super) keys: Vec<VerifierKey>,
    /// What was recorded of payments that it may not have seen.
    payments: Vec<Payment>,
    /// How many of them stood before the last two states that were new.
    marks: [usize; 2],
    /// Whether `audit.stop` is the last record.
    is_closed: bool,
    /// What is no record.
    damage: Option<String>,
}

/// A payment of which the log says more than the last checkpoint knew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payment {
    /// Its id.
    pub id: Uuid,
    /// Whether it was told as ended.
    pub is_ended: bool,
    /// When, as the record says.
    pub time: Timestamp,
}

/// What is read of a record, beside its place.
#[derive(Deserialize)]
struct Facts<'r> {
    #[serde(borrow)]
    event: Kind<'r>,
    outcome: &'r str,
    resource: On<'r>,
    status: Option<u16>,
    time: Timestamp,
    queue: Option<State>,
    checkpoint: Option<&'r str>,
}

#[derive(Deserialize)]
struct Kind<'r> {
    #[serde(rename = "type")]
    kind: &'r str,
}

#[derive(Deserialize)]
struct On<'r> {
    id: &'r str,
}

#[derive(Clone, Copy, Deserialize)]
struct State {
    depth: u64,
    epoch: u64,
    item_seq: u64,
    store: Uuid,
}

impl Previous {
    /// Reads the end of the log in `dir`. What is damaged ends it before.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn read(dir: &Path) -> io::Result<Self> {
        let mut all = segments(dir)?;
        let Some(last) = last_boot(&all) else { return Ok(Self::default()) };
        // The stream that ended last, its last segment first; then what came before it, as names say.
        all.sort_by_key(|segment| (segment.name.boot == last, segment.name));
        // From the end back as far as the bound allows, then forwards.
        let (mut bytes, mut first) = (0, all.len());
        for (at, segment) in all.iter().enumerate().rev() {
            bytes += std::fs::metadata(&segment.path)?.len();
            if bytes > BYTES_READ && first < all.len() {
                break;
            }
            first = at;
        }
        if let Some(last) = all.last().filter(|segment| !segment.is_sealed) {
            // What is read as its end must not go with a loss of power.
            File::open(&last.path)?.sync_all()?;
        }
        let mut this = Self::default();
        for segment in &all[first..] {
            (this.is_closed, this.damage) = (false, None);
            this.read_segment(segment)?;
        }
        Ok(this)
    }

    /// What a start after this one tells: after a crash, or with a damaged end.
    pub(super) fn recovered(&self, host: &Host) -> Option<Event> {
        let head = self.head.as_ref()?;
        let (outcome, note) = match &self.damage {
            Some(damage) => (Outcome::Error, damage.clone()),
            None if self.is_closed => return None,
            None => (Outcome::Success, format!("ended at {} without audit.stop", head.seq)),
        };
        let on = Resource::new(ResourceType::AuditStream, Label::new(head.stream.as_str()));
        let (now, origin) = (Timestamp::now(), Origin::inside(host));
        let event =
            Event::new(Actor::system(), EventType::AuditRecovered, now, outcome, origin, on);
        Some(event.note(Label::new(&note)))
    }

    /// The queue as the last checkpoint saw it.
    #[must_use]
    pub fn queue(&self) -> Option<QueueState> {
        self.queue
    }

    /// What was recorded of payments after that, oldest first.
    #[must_use]
    pub fn payments(&self) -> &[Payment] {
        &self.payments
    }

    /// A state is that of a look some time before its record. One that is new was seen after the state before it
    /// was read, and so after what stood before the record of that: with a record between to be sure.
    fn see(&mut self, state: QueueState) {
        if self.queue.is_some_and(|seen| seen.store == state.store && seen.epoch >= state.epoch) {
            return;
        }
        let [older, newer] = self.marks;
        self.payments.drain(..older);
        self.marks = [newer - older, self.payments.len()];
        self.queue = Some(state);
    }

    fn read_segment(&mut self, segment: &Segment) -> io::Result<()> {
        let (mut lines, mut line, mut number) = (segment.read()?, Vec::new(), 0);
        loop {
            line.clear();
            if let Err(error) = lines.read_until(b'\n', &mut line) {
                self.damage = Some(format!("{} cannot be read: {error}", segment.name));
                return Ok(());
            }
            // The end, or a line whose end was not written: nobody got an answer for it.
            let Some(record) = line.strip_suffix(b"\n") else { return Ok(()) };
            number += 1;
            if self.read_record(record).is_none() {
                self.damage = Some(format!("line {number} of {} is no record", segment.name));
                return Ok(());
            }
        }
    }

    fn read_record(&mut self, record: &[u8]) -> Option<()> {
        let mut members = Members::default();
        members.read(record).ok()?;
        let stream: StreamId = members.string("stream")?.parse().ok()?;
        let hash = Hash::parse(members.string("hash")?.as_bytes())?;
        let seq = members.number("seq")?;
        let facts: Facts<'_> = serde_json::from_slice(record).ok()?;
        self.is_closed = facts.event.kind == EventType::AuditStop.as_str();
        self.head = Some(Head { hash, seq, stream });
        if let Some(State { depth, epoch, item_seq, store }) = facts.queue {
            self.see(QueueState { depth, epoch, item_seq, store });
        } else if let Some(payment) = payment(&facts) {
            self.payments.push(payment);
        } else if facts.event.kind == EventType::QueueAcknowledge.as_str() {
            // What the copy lacks was looked at.
            self.payments.clear();
            self.marks = [0; 2];
        } else if REOPENS.iter().any(|kind| kind.as_str() == facts.event.kind) {
            // What an operator did since says more than its end.
            self.payments.retain(|payment| payment.id.to_string() != facts.resource.id);
            self.marks = self.marks.map(|mark| mark.min(self.payments.len()));
        }
        if let Some(note) = facts.checkpoint.and_then(|note| SignedNote::from_base64(note).ok()) {
            // At a rollover the old key stands there too, and signs no more.
            let signers = note.checkpoint().keys.iter();
            let signed: Vec<_> =
                signers.filter(|key| note.signed_by([*key]) == Signed::ByOne).cloned().collect();
            if !signed.is_empty() {
                self.keys = signed;
            }
        }
        Some(())
    }
}

/// By these a payment that had ended may be open again.
const REOPENS: [EventType; 2] = [EventType::QueueRetry, EventType::QueueRelease];

/// What a record says about a payment that the database must know.
fn payment(facts: &Facts<'_>) -> Option<Payment> {
    let is_ended = match facts.event.kind {
        kind if kind == EventType::PaymentAccept.as_str() => facts.status == Some(200),
        kind if kind == EventType::QueueDeliver.as_str() => true,
        _ => return None,
    };
    let id = facts.resource.id.parse().ok().filter(|_| facts.outcome == "success")?;
    Some(Payment { id, is_ended, time: facts.time })
}

/// The boot that no other follows.
fn last_boot(all: &[Segment]) -> Option<Uuid> {
    let mut boots: HashSet<Uuid> = all.iter().map(|segment| segment.name.boot).collect();
    let newest = boots.iter().max().copied();
    for segment in all.iter().filter(|segment| segment.name.number == 1) {
        if let Some(followed) = followed_by(segment) {
            boots.remove(&followed);
        }
    }
    boots.into_iter().max().or(newest)
}

/// The boot that the first record of a stream names as the one before.
pub(crate) fn followed_by(segment: &Segment) -> Option<Uuid> {
    #[derive(Deserialize)]
    struct First<'r> {
        #[serde(borrow)]
        previous: Option<Stream<'r>>,
    }
    #[derive(Deserialize)]
    struct Stream<'r> {
        stream: &'r str,
    }
    let mut line = Vec::new();
    segment.read().ok()?.read_until(b'\n', &mut line).ok()?;
    let first: First<'_> = serde_json::from_slice(&line).ok()?;
    let stream: StreamId = first.previous?.stream.parse().ok()?;
    Some(stream.boot())
}

/// Enough to find a checkpoint, unless the HSM was away for as long as this was written. Bytes of files, of
/// which the last is always read.
const BYTES_READ: u64 = 128 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn state(epoch: u64) -> QueueState {
        QueueState { depth: 0, epoch, item_seq: epoch, store: Uuid::nil() }
    }

    fn payment(id: u128) -> Payment {
        Payment { id: Uuid::from_u128(id), is_ended: true, time: Timestamp::UNIX_EPOCH }
    }

    fn ids(previous: &Previous) -> Vec<u128> {
        previous.payments.iter().map(|payment| payment.id.as_u128()).collect()
    }

    /// A checkpoint tells of a look that may be older than the payments before it.
    #[test]
    fn a_state_takes_away_only_what_it_must_have_seen() {
        let mut previous = Previous::default();
        let mut next = 0;
        let mut pay = |previous: &mut Previous| {
            next += 1;
            previous.payments.push(payment(next));
        };

        previous.see(state(1));
        pay(&mut previous); // 1
        previous.see(state(1)); // the same look, told once more
        assert_eq!(ids(&previous), [1]);
        pay(&mut previous); // 2
        previous.see(state(2)); // may have looked before 2, not before the last new state's record
        pay(&mut previous); // 3
        assert_eq!(ids(&previous), [1, 2, 3]);
        previous.see(state(3));
        assert_eq!(ids(&previous), [1, 2, 3]);
        previous.see(state(4));
        assert_eq!(ids(&previous), [3]);
        previous.see(state(5));
        assert_eq!((ids(&previous), previous.queue.unwrap().epoch), (vec![], 5));
    }
}
