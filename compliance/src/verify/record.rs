//! One line of a log: what it must be by itself, before its place is looked at.

use std::io::{self, BufRead, ErrorKind, Read as _};

use jiff::Timestamp;

use crate::{Hash, Members, NotCanonical, RECORD_BYTES_MAX};

/// A record whose hash is right.
#[derive(Debug)]
pub(crate) struct Record<'t> {
    pub(crate) members: Members<'t>,
    pub(crate) hash: Hash,
    pub(crate) prev_hash: Hash,
    pub(crate) seq: u64,
    pub(crate) stream: &'t str,
    pub(crate) boot: &'t str,
    pub(crate) time: Timestamp,
    pub(crate) kind: &'t str,
    pub(crate) id: &'t str,
}

impl<'t> Record<'t> {
    /// Reads a line, without its line feed.
    pub(crate) fn read(line: &'t [u8]) -> Result<Self, Fault> {
        let mut members = Members::default();
        members.read(line)?;
        let value = members.range("hash").ok_or(Fault::Lacks("hash"))?;
        let hash = members.string("hash").and_then(|text| Hash::parse(text.as_bytes()));
        let hash = hash.ok_or(Fault::Lacks("hash"))?;
        let prev_hash = members.string("prev_hash").and_then(|text| Hash::parse(text.as_bytes()));
        let prev_hash = prev_hash.ok_or(Fault::Lacks("prev_hash"))?;
        let start = value.start.saturating_sub(HASH_NAME.len());
        if line.get(start..value.start) != Some(HASH_NAME)
            || prev_hash.next(&[&line[..start], &line[value.end..]]) != hash
        {
            return Err(Fault::Hash);
        }
        let mut event = Members::default();
        event.read(members.value("event").ok_or(Fault::Lacks("event"))?)?;
        let time = members.string("time").ok_or(Fault::Lacks("time"))?;
        if time.len() != TIME_BYTES || !time.ends_with('Z') {
            return Err(Fault::Lacks("time"));
        }
        Ok(Self {
            hash,
            prev_hash,
            seq: members.number("seq").filter(|seq| *seq > 0).ok_or(Fault::Lacks("seq"))?,
            stream: members.string("stream").ok_or(Fault::Lacks("stream"))?,
            boot: members.string("boot").ok_or(Fault::Lacks("boot"))?,
            time: time.parse().map_err(|_| Fault::Lacks("time"))?,
            kind: event.string("type").ok_or(Fault::Lacks("event.type"))?,
            id: event.string("id").ok_or(Fault::Lacks("event.id"))?,
            members,
        })
    }

    /// The text of a member of a member.
    pub(crate) fn inner(&self, outer: &str, name: &str) -> Option<&'t str> {
        let mut members = Members::default();
        members.read(self.members.value(outer)?).ok()?;
        members.string(name)
    }
}

/// What is wrong with a record by itself.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error(transparent)]
    Form(#[from] NotCanonical),
    #[error("it has no {0}, or not in its form")]
    Lacks(&'static str),
    #[error("its hash is not that of its bytes")]
    Hash,
}

/// The event's id, when a line that may be damaged still shows one.
pub(crate) fn event_id(line: &[u8]) -> Option<String> {
    const BEFORE: &[u8] = b"\"event\":{\"id\":\"";
    let start = line.windows(BEFORE.len()).position(|bytes| bytes == BEFORE)? + BEFORE.len();
    let text = std::str::from_utf8(line.get(start..start + 36)?).ok()?;
    text.parse::<uuid::Uuid>().ok().map(|id| id.to_string())
}

/// What comes next in a file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// A line is in the buffer, without its line feed.
    Whole,
    /// The file ends in the buffer's bytes, without a line feed.
    Partial,
    TooLong,
    /// The compressed form is damaged.
    Damaged,
    End,
}

/// Reads the next line into `line`.
pub(crate) fn next_line(input: &mut dyn BufRead, line: &mut Vec<u8>) -> io::Result<Line> {
    line.clear();
    // A limit of one more byte than is allowed tells a line that is too long.
    let mut limited = input.take(LINE_BYTES_MAX + 1);
    match limited.read_until(b'\n', line) {
        Ok(0) => Ok(Line::End),
        Ok(_) if line.last() == Some(&b'\n') => {
            line.pop();
            Ok(Line::Whole)
        }
        Ok(read) if read as u64 > LINE_BYTES_MAX => Ok(Line::TooLong),
        Ok(_) => Ok(Line::Partial),
        // What the decoder says of bytes that are no gzip.
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::InvalidData | ErrorKind::InvalidInput | ErrorKind::UnexpectedEof
            ) =>
        {
            Ok(Line::Damaged)
        }
        Err(error) => Err(error),
    }
}

/// Whether these bytes may be the beginning of a record, as a crash or a writer at work leaves it.
pub(crate) fn is_beginning(text: &[u8]) -> bool {
    let Err(NotCanonical(at)) = Members::default().read(text) else { return true };
    let rest = &text[at..];
    let is_word = ["true", "false", "null"].iter().any(|word| word.as_bytes().starts_with(rest));
    let is_escape = rest.first() == Some(&b'\\') && rest.len() < 6;
    is_word || is_escape || rest.iter().all(|byte| *byte == b'-' || byte.is_ascii_digit())
}

const HASH_NAME: &[u8] = b",\"hash\":";
/// `2026-01-31T23:59:59.999999Z`
const TIME_BYTES: usize = 27;
const LINE_BYTES_MAX: u64 = RECORD_BYTES_MAX as u64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_of_a_record_is_told_from_other_bytes() {
        let record = br#"{"a":{"b":"x\u001f","c":-12},"d":[true,null],"e":12}"#;
        for length in 0..=record.len() {
            assert!(is_beginning(&record[..length]), "{length}");
        }
        for text in [&b"x"[..], b"{\"a\":1}x", b"{\"a\":1}\r", b"{\"a\" ", b"\0\0", b"{\"a\":x"] {
            assert!(!is_beginning(text), "{text:?}");
        }
    }

    #[test]
    fn a_line_is_whole_partial_or_too_long() {
        let mut line = Vec::new();
        let mut input = &b"one\n\ntwo"[..];
        let mut next = || next_line(&mut input, &mut line).unwrap();

        assert_eq!(
            [next(), next(), next(), next()],
            [Line::Whole, Line::Whole, Line::Partial, Line::End]
        );
        let long = vec![b'x'; RECORD_BYTES_MAX + 1];
        assert_eq!(next_line(&mut long.as_slice(), &mut line).unwrap(), Line::TooLong);
        let mut most = vec![b'x'; RECORD_BYTES_MAX - 1];
        most.push(b'\n');
        assert_eq!(next_line(&mut most.as_slice(), &mut line).unwrap(), Line::Whole);
    }
}
