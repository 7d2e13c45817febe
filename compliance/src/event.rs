//! One event, and its record in a chain: one line of canonical JSON (RFC 8785).
//!
//! Absent fields are left out; the others stand in the order of their names, as RFC 8785 wants it.

use std::num::NonZeroU64;

use jiff::Timestamp;
use serde::{Serialize, Serializer};
use uuid::Uuid;

use crate::chain::{Hash, Head, StreamId};
use crate::label::REMOVED;
use crate::{
    Actor, Digests, EventType, Label, Mode, Origin, Outcome, PanLastFour, Protocol, QueueState,
    Reason, Resource, Service, SignedNote,
};

/// What happened, once. Built from the six fields of PCI DSS 10.2.2; the rest is added.
#[derive(Debug, Clone)]
pub struct Event {
    kind: EventType,
    id: Uuid,
    time: Timestamp,
    outcome: Outcome,
    reason: Option<Reason>,
    actor: Actor,
    origin: Origin,
    request_id: Option<Label>,
    resource: Resource,
    service: Option<Service>,
    protocol: Option<Protocol>,
    pan_last4: Option<PanLastFour>,
    mode: Option<Mode>,
    link: Option<Label>,
    status: Option<HttpStatus>,
    proposer: Option<Label>,
    approver: Option<Label>,
    note: Option<Label>,
    /// What few events have; the others are moved about without it.
    rare: Option<Box<Rare>>,
}

/// What the log says about itself.
#[derive(Debug, Clone, Default)]
struct Rare {
    checkpoint: Option<SignedNote>,
    digests: Option<Digests>,
    queue: Option<QueueState>,
    frontier: Option<String>,
    previous: Option<Head>,
}

/// Where a record stands: what the chain adds to its event.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) stream: &'a StreamId,
    pub(crate) seq: NonZeroU64,
    pub(crate) prev_hash: Hash,
}

/// The members of a record before `hash`, sorted.
#[derive(Serialize)]
struct Front<'a> {
    actor: &'a Actor,
    #[serde(skip_serializing_if = "Option::is_none")]
    approver: &'a Option<Label>,
    boot: Uuid,
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoint: &'a Option<SignedNote>,
    #[serde(skip_serializing_if = "Option::is_none")]
    digests: &'a Option<Digests>,
    event: Kind,
    #[serde(skip_serializing_if = "Option::is_none")]
    frontier: &'a Option<String>,
}

/// The members after `hash`, sorted.
#[derive(Serialize)]
struct Back<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    link: &'a Option<Label>,
    #[serde(skip_serializing_if = "Option::is_none")]
    listener: Option<crate::Listener>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<Mode>,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: &'a Option<Label>,
    outcome: Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    pan_last4: Option<PanLastFour>,
    prev_hash: Hash,
    #[serde(skip_serializing_if = "Option::is_none")]
    previous: &'a Option<Head>,
    #[serde(skip_serializing_if = "Option::is_none")]
    proposer: &'a Option<Label>,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<Protocol>,
    #[serde(skip_serializing_if = "Option::is_none")]
    queue: &'a Option<QueueState>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Reason>,
    replica: &'a Label,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: &'a Option<Label>,
    resource: &'a Resource,
    seq: NonZeroU64,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<Service>,
    #[serde(skip_serializing_if = "Option::is_none")]
    src: Option<crate::parties::Source>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<HttpStatus>,
    stream: &'a StreamId,
    #[serde(serialize_with = "microseconds")]
    time: Timestamp,
}

#[derive(Serialize)]
struct Kind {
    id: Uuid,
    #[serde(rename = "type")]
    kind: EventType,
}

impl Event {
    /// Who, what, when, outcome, origin, on what. The event's id is drawn here (UUIDv7).
    #[must_use]
    pub fn new(
        who: Actor,
        what: EventType,
        when: Timestamp,
        outcome: Outcome,
        origin: Origin,
        on_what: Resource,
    ) -> Self {
        Self {
            kind: what,
            id: Uuid::now_v7(),
            time: when,
            outcome,
            reason: None,
            actor: who,
            origin,
            request_id: None,
            resource: on_what,
            service: None,
            protocol: None,
            pan_last4: None,
            mode: None,
            link: None,
            status: None,
            proposer: None,
            approver: None,
            note: None,
            rare: None,
        }
    }

    /// Why it ended so.
    #[must_use]
    pub fn reason(self, reason: Reason) -> Self {
        Self { reason: Some(reason), ..self }
    }

    /// The id that the answer carries too.
    #[must_use]
    pub fn request_id(self, request_id: Label) -> Self {
        Self { request_id: Some(request_id), ..self }
    }

    /// The part of the gateway that was asked.
    #[must_use]
    pub fn service(self, service: Service) -> Self {
        Self { service: Some(service), ..self }
    }

    /// How it was asked.
    #[must_use]
    pub fn protocol(self, protocol: Protocol) -> Self {
        Self { protocol: Some(protocol), ..self }
    }

    /// The last four digits of the card number, where one was part of the request.
    #[must_use]
    pub fn pan_last4(self, pan_last4: PanLastFour) -> Self {
        Self { pan_last4: Some(pan_last4), ..self }
    }

    /// How the PIN was translated.
    #[must_use]
    pub fn mode(self, mode: Mode) -> Self {
        Self { mode: Some(mode), ..self }
    }

    /// The HSM or backend link that did the work.
    #[must_use]
    pub fn link(self, link: Label) -> Self {
        Self { link: Some(link), ..self }
    }

    /// The HTTP status answered.
    #[must_use]
    pub fn status(self, status: HttpStatus) -> Self {
        Self { status: Some(status), ..self }
    }

    /// Who asked for a change that needs a second person.
    #[must_use]
    pub fn proposer(self, proposer: Label) -> Self {
        Self { proposer: Some(proposer), ..self }
    }

    /// The second person.
    #[must_use]
    pub fn approver(self, approver: Label) -> Self {
        Self { approver: Some(approver), ..self }
    }

    /// Why, in the words of the person who acted.
    #[must_use]
    pub fn note(self, note: Label) -> Self {
        Self { note: Some(note), ..self }
    }

    /// The checkpoint that this event tells of: what stands before it in the stream.
    #[must_use]
    pub fn checkpoint(mut self, checkpoint: SignedNote) -> Self {
        self.rare().checkpoint = Some(checkpoint);
        self
    }

    /// What the process runs: its program, configuration and keys.
    #[must_use]
    pub fn digests(mut self, digests: Digests) -> Self {
        self.rare().digests = Some(digests);
        self
    }

    /// How old the database was seen to be.
    #[must_use]
    pub fn queue(mut self, queue: QueueState) -> Self {
        self.rare().queue = Some(queue);
        self
    }

    /// The stream of this replica before this one. Given by the chain at its start.
    pub(crate) fn set_previous(&mut self, previous: Head) {
        self.rare().previous = Some(previous);
    }

    /// The Merkle tree so far, for who has only what comes now. Given by the chain.
    pub(crate) fn set_frontier(&mut self, frontier: String) {
        self.rare().frontier = Some(frontier);
    }

    fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    /// The event's own id.
    #[must_use]
    pub const fn id(&self) -> Uuid {
        self.id
    }

    /// What happened.
    #[must_use]
    pub const fn kind(&self) -> EventType {
        self.kind
    }

    /// How it ended.
    #[must_use]
    pub const fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// Whether a card number was taken out of one of its texts.
    #[must_use]
    pub fn held_a_pan(&self) -> bool {
        let texts = [
            Some(&self.resource.id),
            Some(&self.actor.id),
            self.actor.cert.as_ref().map(|cert| &cert.issuer),
            self.request_id.as_ref(),
            self.link.as_ref(),
            self.proposer.as_ref(),
            self.approver.as_ref(),
            self.note.as_ref(),
        ];
        // Hardly a text has a bracket.
        let held = |text: &str| text.as_bytes().contains(&b'[') && text.contains(REMOVED);
        texts.into_iter().flatten().any(|text| held(text.as_str()))
    }

    /// Appends the record: one canonical JSON object and a line feed, ASCII, at most
    /// [`RECORD_BYTES_MAX`]. Gives its hash.
    pub(crate) fn write(&self, place: Place<'_>, lines: &mut Vec<u8>) -> Hash {
        let none = Rare::default();
        let rare = self.rare.as_deref().unwrap_or(&none);
        let front = Front {
            actor: &self.actor,
            approver: &self.approver,
            boot: self.origin.boot,
            checkpoint: &rare.checkpoint,
            digests: &rare.digests,
            event: Kind { id: self.id, kind: self.kind },
            frontier: &rare.frontier,
        };
        let back = Back {
            link: &self.link,
            listener: self.origin.listener,
            mode: self.mode,
            note: &self.note,
            outcome: self.outcome,
            pan_last4: self.pan_last4,
            prev_hash: place.prev_hash,
            previous: &rare.previous,
            proposer: &self.proposer,
            protocol: self.protocol,
            queue: &rare.queue,
            reason: self.reason,
            replica: &self.origin.replica,
            request_id: &self.request_id,
            resource: &self.resource,
            seq: place.seq,
            service: self.service,
            src: self.origin.src,
            status: self.status,
            stream: place.stream,
            time: self.time,
        };
        const PROOF: &str = "strings, numbers and objects with fixed keys have a JSON form";
        let start = lines.len();
        serde_json::to_writer(&mut *lines, &front).expect(PROOF);
        // The two objects become one, and the hash goes between them.
        lines.pop();
        let between = lines.len();
        serde_json::to_writer(&mut *lines, &back).expect(PROOF);
        lines[between] = b',';
        let hash = place.prev_hash.next(&[&lines[start..]]);
        let member = hash.member();
        lines.splice(between..between, member);
        lines.push(b'\n');
        hash
    }
}

/// The longest record with its line feed. Bytes.
pub const RECORD_BYTES_MAX: usize = 8 * 1024;

/// An HTTP status code, 100 to 599.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct HttpStatus(u16);

impl HttpStatus {
    /// None outside 100 to 599.
    #[must_use]
    pub const fn new(code: u16) -> Option<Self> {
        if code >= 100 && code < 600 { Some(Self(code)) } else { None }
    }
}

fn microseconds<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{time:.6}"))
}

#[cfg(test)]
#[path = "event_tests.rs"]
mod tests;
