//! One stored line, read.
//!
//! Fields that this version does not know are passed over, so that an old exporter reads a newer
//! record. The six fields of PCI DSS 10.2.2 must be there; the rest may be absent.

use jiff::Timestamp;
use serde::{Deserialize, Deserializer};

use super::BYTES_MAX;
use super::text::Text;

/// A record of the audit trail. Borrows its texts from the line unless they had escapes in it.
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of the stored record, under its names")]
pub struct Record<'a> {
    #[serde(borrow)]
    pub event: Kind<'a>,
    #[serde(deserialize_with = "after_1970")]
    pub time: Timestamp,
    pub seq: u64,
    pub outcome: Text<'a>,
    pub reason: Option<Text<'a>>,
    pub actor: Actor<'a>,
    pub src: Option<Src<'a>>,
    pub listener: Option<Text<'a>>,
    pub replica: Text<'a>,
    pub boot: Text<'a>,
    pub request_id: Option<Text<'a>>,
    pub resource: Resource<'a>,
    pub service: Option<Text<'a>>,
    pub protocol: Option<Text<'a>>,
    pub pan_last4: Option<Text<'a>>,
    pub mode: Option<Text<'a>>,
    pub link: Option<Text<'a>>,
    pub status: Option<u16>,
    pub proposer: Option<Text<'a>>,
    pub approver: Option<Text<'a>>,
    pub note: Option<Text<'a>>,
    pub stream: Option<Text<'a>>,
    pub prev_hash: Option<Text<'a>>,
    pub hash: Option<Text<'a>>,
    pub checkpoint: Option<Text<'a>>,
    pub previous: Option<Previous<'a>>,
    pub queue: Option<Queue<'a>>,
    pub digests: Option<Digests<'a>>,
}

/// What happened.
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of the stored record, under its names")]
pub struct Kind<'a> {
    #[serde(rename = "type", borrow)]
    pub kind: Text<'a>,
    pub id: Text<'a>,
}

/// Who acted.
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of the stored record, under its names")]
pub struct Actor<'a> {
    #[serde(borrow)]
    pub id: Text<'a>,
    #[serde(rename = "type")]
    pub kind: Text<'a>,
    #[serde(default)]
    pub roles: Vec<Text<'a>>,
    pub cert: Option<Cert<'a>>,
}

/// The certificate that was shown.
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of the stored record, under its names")]
pub struct Cert<'a> {
    #[serde(borrow)]
    pub serial: Text<'a>,
    pub issuer: Text<'a>,
    pub spki_sha256: Option<Text<'a>>,
}

/// From where.
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of the stored record, under its names")]
pub struct Src<'a> {
    #[serde(borrow)]
    pub ip: Text<'a>,
    pub port: Option<u16>,
}

/// On what.
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of the stored record, under its names")]
pub struct Resource<'a> {
    #[serde(rename = "type", borrow)]
    pub kind: Text<'a>,
    pub id: Text<'a>,
}

/// The end of the replica's stream before this one.
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of the stored record, under its names")]
pub struct Previous<'a> {
    #[serde(borrow)]
    pub stream: Text<'a>,
    pub seq: u64,
    pub hash: Text<'a>,
}

/// How old the database was seen to be.
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of the stored record, under its names")]
pub struct Queue<'a> {
    #[serde(borrow)]
    pub store: Text<'a>,
    pub epoch: u64,
    pub item_seq: u64,
    pub depth: u64,
}

/// What the process runs.
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of the stored record, under its names")]
pub struct Digests<'a> {
    #[serde(borrow)]
    pub configuration: Option<Text<'a>>,
    pub keys: Option<Text<'a>>,
    pub program: Option<Text<'a>>,
}

impl<'a> Record<'a> {
    /// Reads one stored line, with or without its line feed.
    ///
    /// # Errors
    /// [`NotARecord`] says which rule it breaks.
    pub fn parse(line: &'a [u8]) -> Result<Self, NotARecord> {
        let line = without_line_feed(line);
        if line.len() > BYTES_MAX {
            return Err(NotARecord::TooLong);
        }
        // JSON allows them between its tokens; a line does not.
        if line.iter().any(|byte| matches!(byte, b'\n' | b'\r')) {
            return Err(NotARecord::NotOneLine);
        }
        let line = std::str::from_utf8(line).map_err(|_| NotARecord::NotUtf8)?;
        serde_json::from_str(line)
            .map_err(|error| NotARecord::NotTheseFields { column: error.column() })
    }
}

/// The line without its one line feed.
pub(super) fn without_line_feed(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\n").unwrap_or(line)
}

/// Why a line is no record. Says the rule, never the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each error text is the documentation")]
pub enum NotARecord {
    #[error("a record is at most {BYTES_MAX} bytes long")]
    TooLong,
    #[error("a record is one line")]
    NotOneLine,
    #[error("a record is UTF-8")]
    NotUtf8,
    #[error(
        "a record is a JSON object with who, what, when, outcome, origin and on what: column {column}"
    )]
    NotTheseFields { column: usize },
}

/// A time before 1970 has no form in some of the formats, and no gateway has it.
fn after_1970<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
    let text = Text::deserialize(deserializer)?;
    let time: Option<Timestamp> = text.parse().ok();
    time.filter(|time| *time >= Timestamp::UNIX_EPOCH)
        .ok_or_else(|| serde::de::Error::custom("no time"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALLEST: &str = concat!(
        r#"{"actor":{"id":"a","type":"client"},"boot":"b","event":{"id":"e","type":"mac.verify"},"#,
        r#""outcome":"success","replica":"r","resource":{"id":"k","type":"key"},"seq":1,"#,
        r#""time":"2026-03-01T12:00:00.123456Z"}"#
    );

    #[test]
    fn texts_without_escapes_are_borrowed_from_the_line() {
        let record = Record::parse(SMALLEST.as_bytes()).unwrap();

        assert!(record.outcome.is_borrowed() && record.event.kind.is_borrowed());
        assert_eq!(&*record.resource.id, "k");
        let escaped = SMALLEST.replace("\"k\"", r#""\u006b\n""#);
        assert_eq!(&*Record::parse(escaped.as_bytes()).unwrap().resource.id, "k\n");
    }

    #[test]
    fn a_newer_record_is_read_for_what_is_known_of_it() {
        let newer = SMALLEST.replace("\"seq\"", r#""new":{"deep":[1,{"x":null}]},"seq""#);

        assert_eq!(Record::parse(newer.as_bytes()).unwrap().seq, 1);
    }

    #[test]
    fn a_line_without_one_of_the_six_fields_is_refused() {
        let whole: serde_json::Map<_, _> = serde_json::from_str(SMALLEST).unwrap();
        for name in whole.keys() {
            let mut less = whole.clone();
            less.remove(name);
            let line = serde_json::to_vec(&less).unwrap();

            let refusal = Record::parse(&line).unwrap_err();

            assert!(matches!(refusal, NotARecord::NotTheseFields { .. }), "{name}");
        }
    }

    #[test]
    fn what_is_not_one_line_of_utf8_json_is_refused() {
        let parse = |line: &[u8]| Record::parse(line).map(drop);
        let fields = |line: &[u8]| matches!(parse(line), Err(NotARecord::NotTheseFields { .. }));

        assert_eq!(parse(format!("{SMALLEST}\n").as_bytes()), Ok(()));
        assert_eq!(parse(format!("{SMALLEST}\n\n").as_bytes()), Err(NotARecord::NotOneLine));
        assert_eq!(parse(format!("{SMALLEST}\r\n").as_bytes()), Err(NotARecord::NotOneLine));
        assert_eq!(parse(SMALLEST.replace(',', ",\n").as_bytes()), Err(NotARecord::NotOneLine));
        assert_eq!(parse(b"\"\xff\""), Err(NotARecord::NotUtf8));
        let long = SMALLEST.replace("\"k\"", &format!("\"{}\"", "k".repeat(BYTES_MAX)));
        assert_eq!(parse(long.as_bytes()), Err(NotARecord::TooLong));
        assert!(fields(b"") && fields(b"[]") && fields(b"{}") && fields(&SMALLEST.as_bytes()[1..]));
        assert!(fields(format!("{SMALLEST}{SMALLEST}").as_bytes()), "two records");
        assert!(fields(SMALLEST.replace("2026", "1969").as_bytes()), "before 1970");
        assert!(fields(SMALLEST.replace("2026", "26").as_bytes()), "no time");
        assert!(fields(SMALLEST.replace("\"k\"", r#""\ud800""#).as_bytes()), "half a character");
        let twice = SMALLEST.replace("\"seq\":1", "\"seq\":1,\"seq\":2");
        assert!(fields(twice.as_bytes()), "a field twice");
    }
}
