//! CEF, version 0: `CEF:0|Tollgate|Tollgate|VERSION|EVENT TYPE|NAME|SEVERITY|EXTENSION`.
//!
//! Keys are those of ArcSight's dictionary where one means the same; the others begin with our
//! name, as the standard asks. `rt` counts milliseconds, so `cs3` holds the exact time. `src` is
//! an IPv4 address by definition: any other stands in `c6a2`. `externalId` is the place in the
//! chain, `deviceExternalId` the chain's stream, and a checkpoint goes where it fits.
//!
//! The header escapes `|` and `\` with `\`; the extension `\` and `=`, and writes CR and LF as
//! `\r` and `\n`. What else could do harm is percent-encoded: see `text`.

use std::net::Ipv4Addr;

use super::class::Meaning;
use super::fields::{Field, Room, Value};
use super::record::Record;
use super::text::{self, Bound, Escapes};
use super::{PRODUCT, VENDOR, VERSION};

/// Appends one event.
pub(super) fn write(record: &Record<'_>, room: Room, out: &mut Vec<u8>) {
    for part in ["CEF:0", VENDOR, PRODUCT, VERSION] {
        out.extend_from_slice(part.as_bytes());
        out.push(b'|');
    }
    let bound = room.of(Field::EventType);
    HEADER.text(&record.event.kind, bound, out);
    out.push(b'|');
    words(&record.event.kind, bound, out);
    out.push(b'|');
    let severity = Meaning::of(&record.event.kind).severity(&record.outcome);
    text::push_number(severity.of_ten(), out);
    out.extend_from_slice(b"|rt=");
    text::push_number(record.time.as_millisecond(), out);
    for (field, value) in record.fields() {
        if field == Field::EventType {
            continue; // in the header
        }
        let (mut key, mut label) = key(field);
        if field == Field::SrcIp
            && record.src.as_ref().is_some_and(|src| src.ip.parse::<Ipv4Addr>().is_err())
        {
            (key, label) = ("c6a2", Some("Source IPv6 Address"));
        }
        let bound = room.of(field);
        pair(key, value, bound, out);
        if let Some(label) = label {
            out.push(b' ');
            out.extend_from_slice(key.as_bytes());
            out.extend_from_slice(b"Label=");
            out.extend_from_slice(label.as_bytes());
        }
        if field == Field::Actor {
            pair("suid", value, bound, out);
        }
    }
}

/// The event type once more, for people: `pin translate`.
fn words(event_type: &str, bound: Bound, out: &mut Vec<u8>) {
    let start = out.len();
    HEADER.text(event_type, bound, out);
    for byte in &mut out[start..] {
        if matches!(byte, b'.' | b'_') {
            *byte = b' ';
        }
    }
}

fn pair(key: &str, value: Value<'_>, bound: Bound, out: &mut Vec<u8>) {
    out.push(b' ');
    out.extend_from_slice(key.as_bytes());
    out.push(b'=');
    EXTENSION.value(value, bound, out);
}

/// A value's key, and its label where the key means what a label says.
const fn key(field: Field) -> (&'static str, Option<&'static str>) {
    let key = match field {
        Field::Actor => "suser",
        Field::ActorType => "spriv",
        Field::Roles => "TollgateRoles",
        Field::CertSerial => "TollgateCertSerial",
        Field::CertIssuer => "TollgateCertIssuer",
        Field::CertSpki => "TollgateCertSpki",
        Field::EventType => "TollgateEventType",
        Field::EventId => return ("cs4", Some("eventId")),
        Field::Time => return ("cs3", Some("time")),
        Field::Seq => "externalId",
        Field::Outcome => "outcome",
        Field::Reason => "reason",
        Field::SrcIp => "src",
        Field::SrcPort => "spt",
        Field::Listener => "deviceInboundInterface",
        Field::Replica => "dvchost",
        Field::Boot => "TollgateBoot",
        Field::RequestId => "TollgateRequestId",
        Field::ResourceType => return ("cs2", Some("resourceType")),
        Field::Resource => return ("cs1", Some("resource")),
        Field::Service => "destinationServiceName",
        Field::Protocol => "app",
        Field::PanLast4 => "TollgatePanLast4",
        Field::Mode => "TollgateMode",
        Field::Link => "deviceOutboundInterface",
        Field::Status => return ("cn1", Some("status")),
        Field::Proposer => "TollgateProposer",
        Field::Approver => "TollgateApprover",
        Field::Note => "msg",
        Field::Stream => "deviceExternalId",
        Field::PrevHash => return ("cs5", Some("prevHash")),
        Field::Hash => return ("cs6", Some("hash")),
        Field::Checkpoint => "TollgateCheckpoint",
        Field::PreviousStream => "TollgatePreviousStream",
        Field::PreviousSeq => "TollgatePreviousSeq",
        Field::PreviousHash => "TollgatePreviousHash",
        Field::QueueStore => "TollgateQueueStore",
        Field::QueueEpoch => "TollgateQueueEpoch",
        Field::QueueItemSeq => "TollgateQueueItemSeq",
        Field::QueueDepth => "TollgateQueueDepth",
        Field::DigestConfiguration => "TollgateDigestConfiguration",
        Field::DigestKeys => "TollgateDigestKeys",
        Field::DigestProgram => "TollgateDigestProgram",
    };
    (key, None)
}

const HEADER: Escapes = Escapes {
    native: |character| match character {
        '|' => Some("\\|"),
        '\\' => Some("\\\\"),
        _ => None,
    },
    percent: |_| false,
};

const EXTENSION: Escapes = Escapes {
    native: |character| match character {
        '\\' => Some("\\\\"),
        '=' => Some("\\="),
        '\n' => Some("\\n"),
        '\r' => Some("\\r"),
        _ => None,
    },
    percent: |_| false,
};
