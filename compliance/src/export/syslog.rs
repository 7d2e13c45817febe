//! RFC 5424: `<PRI>1 TIMESTAMP HOSTNAME APP-NAME PROCID MSGID [SD] MSG`.
//!
//! Facility 13 (log audit). The structured data carry every value of the record under its own
//! name; the header and the sentence repeat some of them in graphic ASCII, for people and routers:
//! HOSTNAME is the replica, PROCID the boot, MSGID the event type. In PARAM-VALUEs `"`, `\` and
//! `]` are escaped with `\` (6.3.3), and what else could do harm is percent-encoded: see `text`.

use super::class::Meaning;
use super::fields::{Field, Room};
use super::record::Record;
use super::text::{self, Escapes};

/// Our structured data. 32473 is the number that RFC 5612 keeps for documentation: an operator
/// who has a number of his own rewrites it in his collector.
pub const SD_ID: &str = "tollgate@32473";

/// Appends one message.
pub(super) fn write(record: &Record<'_>, room: Room, out: &mut Vec<u8>) {
    header(record, out);
    out.push(b'[');
    out.extend_from_slice(SD_ID.as_bytes());
    for (field, value) in record.fields() {
        out.push(b' ');
        out.extend_from_slice(name(field).as_bytes());
        out.extend_from_slice(b"=\"");
        PARAM_VALUE.value(value, room.of(field), out);
        out.push(b'"');
    }
    out.extend_from_slice(b"] ");
    sentence(record, out);
}

/// Everything before the structured data, with the space behind it: less than 512 bytes.
pub(super) fn header(record: &Record<'_>, out: &mut Vec<u8>) {
    let severity = Meaning::of(&record.event.kind).severity(&record.outcome);
    out.push(b'<');
    text::push_number(FACILITY * 8 + severity.syslog(), out);
    out.extend_from_slice(b">1 ");
    text::push_time(record.time, out);
    out.push(b' ');
    text::push_plain(&record.replica, 255, out);
    out.extend_from_slice(b" tollgate ");
    text::push_plain(&record.boot, 128, out);
    out.push(b' ');
    text::push_plain(&record.event.kind, 32, out);
    out.push(b' ');
}

/// `pin.translate failure (refused)`: graphic ASCII, no name that a client chose.
pub(super) fn sentence(record: &Record<'_>, out: &mut Vec<u8>) {
    text::push_plain(&record.event.kind, 32, out);
    out.push(b' ');
    text::push_plain(&record.outcome, 32, out);
    if let Some(reason) = &record.reason {
        out.extend_from_slice(b" (");
        text::push_plain(reason, 32, out);
        out.push(b')');
    }
}

/// The name of a value, also in LEEF where it has no name of its own there.
pub(super) const fn name(field: Field) -> &'static str {
    match field {
        Field::Actor => "actor",
        Field::ActorType => "actorType",
        Field::Roles => "roles",
        Field::CertSerial => "certSerial",
        Field::CertIssuer => "certIssuer",
        Field::CertSpki => "certSpki",
        Field::EventType => "eventType",
        Field::EventId => "eventId",
        Field::Time => "time",
        Field::Seq => "seq",
        Field::Outcome => "outcome",
        Field::Reason => "reason",
        Field::SrcIp => "srcIp",
        Field::SrcPort => "srcPort",
        Field::Listener => "listener",
        Field::Replica => "replica",
        Field::Boot => "boot",
        Field::RequestId => "requestId",
        Field::ResourceType => "resourceType",
        Field::Resource => "resource",
        Field::Service => "service",
        Field::Protocol => "protocol",
        Field::PanLast4 => "panLast4",
        Field::Mode => "mode",
        Field::Link => "link",
        Field::Status => "status",
        Field::Proposer => "proposer",
        Field::Approver => "approver",
        Field::Note => "note",
        Field::Stream => "stream",
        Field::PrevHash => "prevHash",
        Field::Hash => "hash",
        Field::Checkpoint => "checkpoint",
        Field::PreviousStream => "previousStream",
        Field::PreviousSeq => "previousSeq",
        Field::PreviousHash => "previousHash",
        Field::QueueStore => "queueStore",
        Field::QueueEpoch => "queueEpoch",
        Field::QueueItemSeq => "queueItemSeq",
        Field::QueueDepth => "queueDepth",
        Field::DigestConfiguration => "digestConfiguration",
        Field::DigestKeys => "digestKeys",
        Field::DigestProgram => "digestProgram",
    }
}

const PARAM_VALUE: Escapes = Escapes {
    native: |character| match character {
        '"' => Some("\\\""),
        '\\' => Some("\\\\"),
        ']' => Some("\\]"),
        _ => None,
    },
    percent: |_| false,
};

/// "log audit" (RFC 5424, table 1).
const FACILITY: u8 = 13;

#[cfg(test)]
mod tests {
    use crate::EventType;

    #[test]
    fn every_event_type_fits_a_message_id_whole() {
        for event in EventType::ALL {
            assert!(event.as_str().len() <= 32, "{event}");
        }
    }
}
