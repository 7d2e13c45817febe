//! LEEF 2.0 with a tab between attributes: `LEEF:2.0|Tollgate|Tollgate|VERSION|EVENT TYPE|x09|`.
//!
//! Predefined attributes where one means the same, names of the syslog form for the others.
//! `devTime` has milliseconds, because a reader's date pattern knows no finer unit; `time` is exact.
//!
//! LEEF has no escapes, neither in its header nor in its attributes. So what could end a value
//! (the tab, `|`) or look like an escape (`\`) is percent-encoded, with `%` itself and all that
//! `text` names. `=` stays: an attribute's name ends at the first one.

use super::class::Meaning;
use super::fields::{Field, Room};
use super::record::Record;
use super::text::{self, Escapes};
use super::{PRODUCT, VENDOR, VERSION, syslog};

/// Appends one event.
pub(super) fn write(record: &Record<'_>, room: Room, out: &mut Vec<u8>) {
    for part in ["LEEF:2.0", VENDOR, PRODUCT, VERSION] {
        out.extend_from_slice(part.as_bytes());
        out.push(b'|');
    }
    let bound = room.of(Field::EventType);
    PERCENT.text(&record.event.kind, bound, out);
    out.extend_from_slice(b"|x09|devTime=");
    dev_time(record.time, out);
    out.extend_from_slice(b"\tdevTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSX\tsev=");
    let severity = Meaning::of(&record.event.kind).severity(&record.outcome);
    text::push_number(severity.of_ten(), out);
    out.extend_from_slice(b"\tcat=");
    let area = record.event.kind.split_once('.').map_or(&*record.event.kind, |(area, _)| area);
    PERCENT.text(area, bound, out);
    for (field, value) in record.fields() {
        if field == Field::EventType {
            continue; // in the header
        }
        out.push(b'\t');
        out.extend_from_slice(name(field).as_bytes());
        out.push(b'=');
        PERCENT.value(value, room.of(field), out);
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "a name of LEEF's own is the exception")]
const fn name(field: Field) -> &'static str {
    match field {
        Field::Actor => "usrName",
        Field::Roles => "role",
        Field::Outcome => "action",
        Field::SrcIp => "src",
        other => syslog::name(other),
    }
}

/// RFC 3339 in UTC with three decimals, cut and not rounded.
fn dev_time(time: jiff::Timestamp, out: &mut Vec<u8>) {
    text::push_time(time, out);
    out.truncate(out.len() - "456Z".len());
    out.push(b'Z');
}

const PERCENT: Escapes =
    Escapes { native: |_| None, percent: |character| matches!(character, '|' | '\\') };
