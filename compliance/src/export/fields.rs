//! The values of a record, one by one, and how long each may be.
//!
//! Every projection but OCSF walks this list and names each member in a `match`, so that none can
//! forget one. `frontier` is not in it: only the verifier reads it, from JSON Lines.

use super::record::Record;
use super::text::{Bound, Text};

/// A value of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    Actor,
    ActorType,
    Roles,
    CertSerial,
    CertIssuer,
    CertSpki,
    EventType,
    EventId,
    Time,
    Seq,
    Outcome,
    Reason,
    SrcIp,
    SrcPort,
    Listener,
    Replica,
    Boot,
    RequestId,
    ResourceType,
    Resource,
    Service,
    Protocol,
    PanLast4,
    Mode,
    Link,
    Status,
    Proposer,
    Approver,
    Note,
    Stream,
    PrevHash,
    Hash,
    Checkpoint,
    PreviousStream,
    PreviousSeq,
    PreviousHash,
    QueueStore,
    QueueEpoch,
    QueueItemSeq,
    QueueDepth,
    DigestConfiguration,
    DigestKeys,
    DigestProgram,
}

/// What stands in it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value<'r> {
    Text(&'r str),
    List(&'r [Text<'r>]),
    Number(u64),
    Time(jiff::Timestamp),
}

impl Record<'_> {
    /// The values that are there: who, what, when, outcome, origin, on what, chain, the rest.
    pub(super) fn fields(&self) -> impl Iterator<Item = (Field, Value<'_>)> {
        fn text<'r>(text: Option<&'r Text<'_>>) -> Option<Value<'r>> {
            text.map(|text| Value::Text(text))
        }
        fn number(number: Option<impl Into<u64>>) -> Option<Value<'static>> {
            number.map(|number| Value::Number(number.into()))
        }
        let roles = (!self.actor.roles.is_empty()).then_some(Value::List(&self.actor.roles));
        let cert = self.actor.cert.as_ref();
        let src = self.src.as_ref();
        let previous = self.previous.as_ref();
        let queue = self.queue.as_ref();
        let digests = self.digests.as_ref();
        let all = [
            (Field::Actor, text(Some(&self.actor.id))),
            (Field::ActorType, text(Some(&self.actor.kind))),
            (Field::Roles, roles),
            (Field::CertSerial, text(cert.map(|cert| &cert.serial))),
            (Field::CertIssuer, text(cert.map(|cert| &cert.issuer))),
            (Field::CertSpki, text(cert.and_then(|cert| cert.spki_sha256.as_ref()))),
            (Field::EventType, text(Some(&self.event.kind))),
            (Field::EventId, text(Some(&self.event.id))),
            (Field::Time, Some(Value::Time(self.time))),
            (Field::Outcome, text(Some(&self.outcome))),
            (Field::Reason, text(self.reason.as_ref())),
            (Field::SrcIp, text(src.map(|src| &src.ip))),
            (Field::SrcPort, number(src.and_then(|src| src.port))),
            (Field::Listener, text(self.listener.as_ref())),
            (Field::Replica, text(Some(&self.replica))),
            (Field::Boot, text(Some(&self.boot))),
            (Field::ResourceType, text(Some(&self.resource.kind))),
            (Field::Resource, text(Some(&self.resource.id))),
            (Field::Stream, text(self.stream.as_ref())),
            (Field::Seq, number(Some(self.seq))),
            (Field::PrevHash, text(self.prev_hash.as_ref())),
            (Field::Hash, text(self.hash.as_ref())),
            (Field::RequestId, text(self.request_id.as_ref())),
            (Field::Service, text(self.service.as_ref())),
            (Field::Protocol, text(self.protocol.as_ref())),
            (Field::PanLast4, text(self.pan_last4.as_ref())),
            (Field::Mode, text(self.mode.as_ref())),
            (Field::Link, text(self.link.as_ref())),
            (Field::Status, number(self.status)),
            (Field::Proposer, text(self.proposer.as_ref())),
            (Field::Approver, text(self.approver.as_ref())),
            (Field::Note, text(self.note.as_ref())),
            (Field::Checkpoint, text(self.checkpoint.as_ref())),
            (Field::PreviousStream, text(previous.map(|previous| &previous.stream))),
            (Field::PreviousSeq, number(previous.map(|previous| previous.seq))),
            (Field::PreviousHash, text(previous.map(|previous| &previous.hash))),
            (Field::QueueStore, text(queue.map(|queue| &queue.store))),
            (Field::QueueEpoch, number(queue.map(|queue| queue.epoch))),
            (Field::QueueItemSeq, number(queue.map(|queue| queue.item_seq))),
            (Field::QueueDepth, number(queue.map(|queue| queue.depth))),
            (
                Field::DigestConfiguration,
                text(digests.and_then(|digests| digests.configuration.as_ref())),
            ),
            (Field::DigestKeys, text(digests.and_then(|digests| digests.keys.as_ref()))),
            (Field::DigestProgram, text(digests.and_then(|digests| digests.program.as_ref()))),
        ];
        all.into_iter().filter_map(|(field, value)| Some((field, value?)))
    }
}

/// How much room a record's values get. What the gateway writes fits [`Room::Full`]; a hostile
/// line may need the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// 128 characters for each value; 294 for a stream, 5464 for a checkpoint.
    Full,
    /// 24 characters for what is neither one of the six fields nor the chain.
    Less,
    /// Nothing for those; what is ASCII and short by its nature is held to that in bytes.
    Least,
}

impl Room {
    /// From the widest.
    pub(super) const ALL: [Self; 3] = [Self::Full, Self::Less, Self::Least];

    /// What this value may take.
    pub(super) const fn of(self, field: Field) -> Bound {
        match (field, self) {
            // Labels: who, from where, on what.
            (Field::Actor | Field::Replica | Field::Resource, _) => Bound::chars(LABEL),
            // Two labels, a UUID and two slashes.
            (Field::Stream, Self::Full | Self::Less) => Bound::chars(STREAM),
            (Field::Stream, Self::Least) => Bound::bytes(STREAM),
            (
                Field::EventType
                | Field::EventId
                | Field::ActorType
                | Field::Outcome
                | Field::ResourceType
                | Field::SrcIp
                | Field::Listener
                | Field::Boot
                | Field::PrevHash
                | Field::Hash,
                Self::Full | Self::Less,
            ) => Bound::chars(LABEL),
            (
                Field::EventType
                | Field::EventId
                | Field::ActorType
                | Field::Outcome
                | Field::ResourceType
                | Field::SrcIp
                | Field::Listener
                | Field::Boot
                | Field::PrevHash
                | Field::Hash,
                Self::Least,
            ) => Bound::bytes(WORD),
            (Field::Checkpoint, Self::Full) => Bound::chars(CHECKPOINT),
            (Field::PreviousStream, Self::Full) => Bound::chars(STREAM),
            (_, Self::Full) => Bound::chars(LABEL),
            (_, Self::Less) => Bound::chars(FEW),
            (_, Self::Least) => Bound::chars(0),
        }
    }
}

const LABEL: usize = 128;
const STREAM: usize = 2 * LABEL + 36 + 2;
/// A note of 4 KiB in base64.
const CHECKPOINT: usize = 5464;
const FEW: usize = 24;
/// A SHA-256 digest in hex, which is longer than any name in the closed lists.
const WORD: usize = 64;
