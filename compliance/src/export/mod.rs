//! Stored records in the formats that other systems read.
//!
//! JSON Lines is the reference: the stored line, byte for byte, and all that the verifier needs.
//! The other four are projections: each carries the six fields of PCI DSS 10.2.2 and the record's
//! place in the chain, so that a reader gets them back exactly.
//!
//! The encoders trust no text. Whatever a record holds, a projection is one line of UTF-8 of at
//! most [`BYTES_MAX`], and no text becomes a field, a header or a line of its own: see `text`. A
//! value that is too long ends in `[cut]`. The six fields are never cut below the 128 characters
//! of a [`Label`](crate::Label): other values go first.
//!
//! ```
//! use compliance::export::{Format, write};
//!
//! let line = br#"{"actor":{"id":"a","type":"client"},"boot":"b","event":{"id":"e","type":"mac.verify"},
//! "outcome":"success","replica":"gateway-1","resource":{"id":"mac.a@1","type":"key"},"seq":1,
//! "time":"2026-03-01T12:00:00.123456Z"}"#;
//! let line: Vec<u8> = line.iter().copied().filter(|byte| *byte != b'\n').collect();
//! let mut out = Vec::new();
//! write(Format::Cef, &line, &mut out)?;
//! assert!(out.starts_with(b"CEF:0|Tollgate|Tollgate|"));
//! # Ok::<(), compliance::export::NotARecord>(())
//! ```

use std::fmt;
use std::str::FromStr;

mod record; // one stored line, read
mod fields; // its values, one by one, and how long each may be
mod text; // text that cannot leave its place
mod class; // what an event type means to others: class, activity, severity
mod syslog;
mod cef;
mod leef;
mod ocsf;

pub use record::{Actor, Cert, Digests, Kind, NotARecord, Previous, Queue, Record, Resource, Src};
pub use syslog::SD_ID;
pub use text::Text;

use fields::Room;

/// A form of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// The stored line.
    Jsonl,
    /// RFC 5424.
    Syslog,
    /// ArcSight Common Event Format, version 0.
    Cef,
    /// IBM Log Event Extended Format, 2.0.
    Leef,
    /// Open Cybersecurity Schema Framework, 1.3.0, as JSON.
    Ocsf,
}

impl Format {
    /// Every format.
    pub const ALL: &[Self] = &[Self::Jsonl, Self::Syslog, Self::Cef, Self::Leef, Self::Ocsf];

    /// The name on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Jsonl => "jsonl",
            Self::Syslog => "syslog",
            Self::Cef => "cef",
            Self::Leef => "leef",
            Self::Ocsf => "ocsf",
        }
    }

    /// The media type of a file of such records, one a line.
    #[must_use]
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::Jsonl | Self::Ocsf => "application/x-ndjson",
            Self::Syslog | Self::Cef | Self::Leef => "text/plain; charset=utf-8",
        }
    }
}

impl serde::Serialize for Format {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Format {
    type Err = NotAFormat;

    fn from_str(name: &str) -> Result<Self, NotAFormat> {
        Self::ALL.iter().copied().find(|format| format.as_str() == name).ok_or(NotAFormat)
    }
}

/// No such format. Says the rule, never the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a format is one of jsonl, syslog, cef, leef, ocsf")]
pub struct NotAFormat;

/// Appends one record without framing: no line feed, no length. A file adds a line feed behind it,
/// syslog counts its octets (RFC 5425, 4.3). One line of UTF-8, at most [`BYTES_MAX`].
///
/// `line` is one stored line, with or without its line feed.
///
/// # Errors
/// [`NotARecord`]; then `out` is as it was.
pub fn write(format: Format, line: &[u8], out: &mut Vec<u8>) -> Result<(), NotARecord> {
    project(format, &Record::parse(line)?, line, out)
}

/// Appends one record as a message of RFC 5424, for receivers that speak syslog and read another format:
/// the syslog form itself, or the same header, no structured data (`-`), and the record in this format as MSG. Without
/// framing; at most [`MESSAGE_BYTES_MAX`].
///
/// # Errors
/// [`NotARecord`]; then `out` is as it was.
pub fn message(format: Format, line: &[u8], out: &mut Vec<u8>) -> Result<(), NotARecord> {
    let record = Record::parse(line)?;
    let start = out.len();
    if format != Format::Syslog {
        syslog::header(&record, out);
        out.extend_from_slice(b"- ");
    }
    let projected = project(format, &record, line, out);
    if projected.is_err() {
        out.truncate(start);
    }
    projected
}

fn project(
    format: Format,
    record: &Record<'_>,
    line: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), NotARecord> {
    if format == Format::Jsonl {
        out.extend_from_slice(record::without_line_feed(line));
        return Ok(());
    }
    let start = out.len();
    for room in Room::ALL {
        match format {
            Format::Jsonl | Format::Syslog => syslog::write(record, room, out),
            Format::Cef => cef::write(record, room, out),
            Format::Leef => leef::write(record, room, out),
            Format::Ocsf => ocsf::write(record, room, out),
        }
        if out.len() - start <= BYTES_MAX {
            return Ok(());
        }
        out.truncate(start);
    }
    Err(NotARecord::TooLong)
}

/// The longest stored line, and the longest projection. Bytes; what RFC 5425, 4.3.1, asks a
/// receiver to take.
pub const BYTES_MAX: usize = 8192;

/// The longest [`message`]. Bytes: RFC 5425 lets a receiver cut what is beyond 8192, and only a record near the bound
/// gets there, in a format other than syslog.
pub const MESSAGE_BYTES_MAX: usize = BYTES_MAX + 512;

/// Who made the record, as headers say it.
const VENDOR: &str = "Tollgate";
const PRODUCT: &str = "Tollgate";
const VERSION: &str = env!("CARGO_PKG_VERSION");
