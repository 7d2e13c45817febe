//! Notes that someone else has kept: what the log said once, it must still say.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

use super::record::Record;
use super::report::{Anchored, Finding};
use super::trust::{Judged, Trust};
use crate::{Hash, NotANote, SignedNote};

#[derive(Debug, Default)]
pub(crate) struct Anchors {
    notes: BTreeMap<(String, u64), Vec<Anchor>>,
    given: usize,
}

#[derive(Debug)]
struct Anchor {
    note: SignedNote,
    met: bool,
    /// Another root, and the first record that may be why.
    other: Option<u64>,
}

impl Anchors {
    pub(crate) fn new(notes: &[SignedNote]) -> Self {
        let mut this = Self { given: notes.len(), ..Self::default() };
        for note in notes {
            let key = (note.checkpoint().origin.clone(), note.checkpoint().size);
            let anchor = Anchor { note: note.clone(), met: false, other: None };
            this.notes.entry(key).or_default().push(anchor);
        }
        this
    }

    pub(crate) fn is_at(&self, stream: &str, size: u64) -> bool {
        !self.notes.is_empty() && self.notes.contains_key(&(stream.to_owned(), size))
    }

    /// The log has this root at this size.
    pub(crate) fn meet(&mut self, stream: &str, size: u64, root: Hash, first: u64) {
        for anchor in self.notes.get_mut(&(stream.to_owned(), size)).into_iter().flatten() {
            if anchor.note.checkpoint().root == root {
                anchor.met = true;
            } else {
                anchor.other = Some(first.min(size.max(1)));
            }
        }
    }

    /// Judges them after all is read. `last` gives the last record of a stream, if the stream is here;
    /// `is_purged` whether a purge is why something is not.
    pub(crate) fn judge(
        &self,
        trust: &mut Trust,
        last: impl Fn(&str) -> Option<u64>,
        is_purged: impl Fn(&str) -> bool,
    ) -> (Vec<Finding>, Vec<String>, Anchored) {
        let (mut findings, mut remarks) = (Vec::new(), Vec::new());
        let mut met = 0;
        for ((stream, size), anchor) in
            self.notes.iter().flat_map(|(key, list)| list.iter().map(move |one| (key, one)))
        {
            if trust.judge(&anchor.note) != Judged::Trusted {
                let what = format!("the anchor at {size} is signed by no key that counts");
                findings.push(Finding::incomplete(what).seq(stream, *size));
            } else if let Some(first) = anchor.other {
                let what = "an anchor has another root than the log";
                findings.push(Finding::tampered(what).seq(stream, *size).range(first, *size));
            } else if anchor.met {
                met += 1;
            } else {
                match last(stream) {
                    None if is_purged(stream) => {
                        remarks.push(format!(
                            "the anchor at {size} of {stream} is of a purged stream"
                        ));
                    }
                    None => {
                        let what = format!("an anchor at {size} is of a stream that is not here");
                        findings.push(Finding::incomplete(what).seq(stream, *size));
                    }
                    Some(last) if last < *size => {
                        let what = format!("the log ends at {last}, before the anchor at {size}");
                        findings.push(Finding::incomplete(what).seq(stream, last + 1));
                    }
                    Some(_) => remarks.push(format!(
                        "the anchor at {size} of {stream} lies where no tree was read"
                    )),
                }
            }
        }
        (findings, remarks, Anchored { given: self.given, met })
    }
}

/// Reads anchors: `audit.checkpoint` records, or notes in base64, one a line; or one note as it is published.
///
/// # Errors
/// What is no anchor, and in which line.
pub fn read_anchors(path: &Path) -> Result<Vec<SignedNote>, NotAnchors> {
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(NotAnchors::Read)?;
    let read = file.take(ANCHORS_BYTES_MAX + 1).read_to_string(&mut text);
    if read.map_err(NotAnchors::Read)? as u64 > ANCHORS_BYTES_MAX {
        return Err(NotAnchors::TooLong);
    }
    if text.contains("\n\n") {
        return Ok(vec![SignedNote::parse(&text).map_err(|error| NotAnchors::Note(1, error))?]);
    }
    let mut notes = Vec::new();
    for (line, number) in text.lines().zip(1..) {
        let note = if line.starts_with('{') {
            let record = Record::read(line.as_bytes()).ok();
            let note = record.and_then(|record| record.members.string("checkpoint"));
            SignedNote::from_base64(note.ok_or(NotAnchors::Record(number))?)
        } else {
            SignedNote::from_base64(line)
        };
        notes.push(note.map_err(|error| NotAnchors::Note(number, error))?);
    }
    Ok(notes)
}

/// This is no file of anchors.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each error text is the documentation")]
pub enum NotAnchors {
    #[error("reading it")]
    Read(#[source] std::io::Error),
    #[error("longer than 64 MiB")]
    TooLong,
    #[error("line {0} is no audit.checkpoint record")]
    Record(u64),
    #[error("the note of line {0}")]
    Note(u64, #[source] NotANote),
}

const ANCHORS_BYTES_MAX: u64 = 64 * 1024 * 1024;
