//! Takes a range of a replica's log out as one stream of lines that verifies by itself.
//!
//! ```text
//! {"export":{"first_seq":1,"format":"tollgate-audit-export/1","prev_hash":"00…","stream":"tollgate/g-1/0189…"}}
//! …records, as they stand in the log…
//! {"export":{…}}
//! …
//! {"end":{"streams":[{"hash":"…","last_seq":4711,"records":4711,"stream":"tollgate/g-1/0189…"}]}}
//! ```
//!
//! A header stands before the records of each stream. It gives `frontier`, the tree before the first of them,
//! where they do not begin with 1 and hold a checkpoint. Nothing in it is believed: the records and the signed
//! roots prove each member. The last line shows that nothing was cut off on the way.
//!
//! The records are those from the first whose time is in the range to the last, in the order of the log, and
//! go on to the first signed checkpoint that covers them.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use crate::export::{self, Format};
use crate::verify::Start;
use crate::verify::record::{Line, Record, next_line};
use crate::{Frontier, Hash, Head, Members, Segment, SignedNote, StreamId, segments};

/// A piece of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece<'l> {
    /// The line before a stream's records. With its line feed, as all of them.
    Header(&'l [u8]),
    /// A record.
    Record(&'l [u8]),
    /// The last line.
    End(&'l [u8]),
}

/// What was exported.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// One for each stream, in the order of the log.
    pub streams: Vec<Exported>,
    /// Records in all.
    pub records: u64,
    /// Whether a signed checkpoint covers the last record that was asked for.
    pub is_covered: bool,
}

/// What was exported of one stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Exported {
    /// `<deployment>/<replica>/<boot>`.
    pub stream: StreamId,
    /// The first record.
    pub first_seq: u64,
    /// The last record.
    pub last_seq: u64,
}

/// Why a log cannot be exported.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each error text is the documentation")]
pub enum ExportError {
    #[error("reading {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path}, line {line}: {what}; `verify` says more")]
    NotALog { path: PathBuf, line: u64, what: String },
    #[error("writing the export")]
    Write(#[source] io::Error),
}

/// Writes the records of `dir`, the log of one replica, with times `from..=to`: as JSON Lines one export, in
/// another format a record a line.
///
/// # Errors
/// [`ExportError`]. The log may grow meanwhile; a record that is being written is left out.
pub fn write_set(
    dir: &Path,
    format: Format,
    from: Option<Timestamp>,
    to: Option<Timestamp>,
    out: &mut dyn Write,
) -> Result<Summary, ExportError> {
    let mut projected = Vec::new();
    export_pieces(dir, from, to, &mut |piece| match (format, piece) {
        (Format::Jsonl, Piece::Header(line) | Piece::Record(line) | Piece::End(line)) => {
            out.write_all(line)
        }
        (_, Piece::Header(_) | Piece::End(_)) => Ok(()),
        (_, Piece::Record(line)) => {
            projected.clear();
            export::write(format, line, &mut projected).map_err(io::Error::other)?;
            projected.push(b'\n');
            out.write_all(&projected)
        }
    })
}

/// Those records as one export, piece by piece.
///
/// # Errors
/// [`ExportError`]; what `take` returns is [`ExportError::Write`].
fn export_pieces(
    dir: &Path,
    from: Option<Timestamp>,
    to: Option<Timestamp>,
    take: &mut dyn FnMut(Piece<'_>) -> io::Result<()>,
) -> Result<Summary, ExportError> {
    let streams = Log::read(dir)?;
    let range = (from.unwrap_or(Timestamp::MIN), to.unwrap_or(Timestamp::MAX));
    let selected = select(&streams, range)?;
    let mut summary = Summary { is_covered: selected.is_covered, ..Summary::default() };
    let mut ends = Vec::new();
    for run in &selected.runs {
        take(Piece::Header(&header_line(&run.start))).map_err(ExportError::Write)?;
        let mut head = Head { hash: Hash::ZERO, seq: 0, stream: run.start.stream.clone() };
        let mut records = 0;
        for_each(&streams[run.stream], run.segment, &mut |record, line| {
            if record.seq >= run.start.first_seq && record.seq <= run.last_seq {
                take(Piece::Record(line)).map_err(ExportError::Write)?;
                (head.seq, head.hash) = (record.seq, record.hash);
                records += 1;
            }
            Ok(record.seq < run.last_seq)
        })?;
        let (stream, first_seq) = (run.start.stream.clone(), run.start.first_seq);
        summary.streams.push(Exported { stream, first_seq, last_seq: head.seq });
        summary.records += records;
        ends.push((head, records));
    }
    take(Piece::End(&end_line(&ends))).map_err(ExportError::Write)?;
    Ok(summary)
}

/// The segments of each stream, each stream after the one that it follows.
struct Log;

impl Log {
    fn read(dir: &Path) -> Result<Vec<Vec<Segment>>, ExportError> {
        let all = segments(dir).map_err(|source| ExportError::Read { path: dir.into(), source })?;
        let mut boots: BTreeMap<Uuid, Vec<Segment>> = BTreeMap::new();
        for segment in all {
            boots.entry(segment.name.boot).or_default().push(segment);
        }
        let mut after: BTreeMap<Uuid, Vec<Uuid>> = BTreeMap::new();
        let mut stack = Vec::new();
        for (boot, list) in &boots {
            let mut previous: Option<Uuid> = None;
            for_each(list, 0, &mut |record, _| {
                let stream = record.inner("previous", "stream");
                previous = stream.and_then(|name| name.rsplit('/').next()?.parse().ok());
                Ok(false)
            })?;
            match previous.filter(|previous| boots.contains_key(previous)) {
                Some(previous) => after.entry(previous).or_default().push(*boot),
                None => stack.push(*boot),
            }
        }
        stack.reverse();
        let mut ordered = Vec::new();
        while let Some(boot) = stack.pop() {
            stack.extend(after.remove(&boot).into_iter().flatten().rev());
            ordered.extend(boots.remove(&boot));
        }
        ordered.extend(boots.into_values());
        Ok(ordered)
    }
}

#[derive(Default)]
struct Selected {
    runs: Vec<Run>,
    is_covered: bool,
}

/// A stream's part.
struct Run {
    stream: usize,
    /// Index of the segment to begin at.
    segment: usize,
    start: Start,
    last_seq: u64,
    /// The first record with a note that the tree before the run is needed for.
    note_seq: Option<u64>,
}

/// Finds where the range begins, where it ends, and the signature behind it.
fn select(
    streams: &[Vec<Segment>],
    (from, to): (Timestamp, Timestamp),
) -> Result<Selected, ExportError> {
    let mut runs: Vec<Run> = Vec::new();
    // The last record in the range: index of its run, and its number.
    let mut last: Option<(usize, u64)> = None;
    // The first signature over it: where the export ends.
    let mut cover: Option<(usize, u64)> = None;
    for (stream, list) in streams.iter().enumerate() {
        let segment = if runs.is_empty() { first_segment(list, from)? } else { 0 };
        let mut tree = Frontier::default();
        let mut run: Option<Run> = None;
        let index = runs.len();
        for_each(list, segment, &mut |record, _| {
            if run.is_none() && (!runs.is_empty() || (from..=to).contains(&record.time)) {
                let prev_hash = record.prev_hash;
                let id: Result<StreamId, _> = record.stream.parse();
                let id = id.map_err(|error| error.to_string())?;
                let frontier = restart(&tree, record);
                let start = Start { stream: id, first_seq: record.seq, prev_hash, frontier };
                run = Some(Run { stream, segment, start, last_seq: record.seq, note_seq: None });
            }
            if let Some(run) = &mut run {
                run.last_seq = record.seq;
                if (from..=to).contains(&record.time) {
                    (last, cover) = (Some((index, record.seq)), None);
                }
                if let Some(note) = record.members.string("checkpoint") {
                    let note = SignedNote::from_base64(note).map_err(|error| error.to_string())?;
                    let size = note.checkpoint().size;
                    let is_over = match last {
                        Some((of, seq)) if of == index => size >= seq,
                        Some(_) => size > 0,
                        None => false,
                    };
                    if is_over && cover.is_none() && note.is_signed() {
                        cover = Some((index, record.seq));
                    }
                    if size + 1 >= run.start.first_seq {
                        run.note_seq.get_or_insert(record.seq);
                    }
                }
            } else {
                tree = restart(&tree, record).unwrap_or_default();
                tree.push(record.hash);
            }
            Ok(true)
        })?;
        runs.extend(run);
    }
    let end = cover.or(last);
    runs.truncate(end.map_or(0, |(run, _)| run + 1));
    if let Some((run, (_, seq))) = runs.last_mut().zip(end) {
        run.last_seq = seq;
    }
    for run in &mut runs {
        let is_needed = run.note_seq.is_some_and(|seq| seq <= run.last_seq);
        run.start.frontier =
            run.start.frontier.take().filter(|_| is_needed && run.start.first_seq > 1);
    }
    Ok(Selected { runs, is_covered: cover.is_some() })
}

/// The tree before a record: as it has grown, or as the first record of a segment carries it.
fn restart(tree: &Frontier, record: &Record<'_>) -> Option<Frontier> {
    if tree.size() + 1 == record.seq {
        return Some(tree.clone());
    }
    record.members.string("frontier").and_then(Frontier::parse)
}

/// The last segment before any that begins at or after `from`.
fn first_segment(list: &[Segment], from: Timestamp) -> Result<usize, ExportError> {
    for next in 1..list.len() {
        let mut is_after = false;
        for_each(list, next, &mut |record, _| {
            is_after = record.time >= from;
            Ok(false)
        })?;
        if is_after {
            return Ok(next - 1);
        }
    }
    Ok(list.len().saturating_sub(1))
}

/// What stops reading: a text is what is wrong with the record.
enum Stop {
    Export(ExportError),
    What(String),
}

impl From<ExportError> for Stop {
    fn from(error: ExportError) -> Self {
        Self::Export(error)
    }
}

impl From<String> for Stop {
    fn from(what: String) -> Self {
        Self::What(what)
    }
}

/// Is given each record and its line; says whether to go on.
type Take<'t> = &'t mut dyn FnMut(&Record<'_>, &[u8]) -> Result<bool, Stop>;

/// Reads the records from a segment on, until `take` says that it has enough.
fn for_each(list: &[Segment], from: usize, take: Take<'_>) -> Result<(), ExportError> {
    let mut bytes = Vec::new();
    for segment in list.iter().skip(from) {
        let mut path = segment.path.clone();
        let mut input = match crate::read(&path) {
            // Sealed since it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                path.set_file_name(segment.name.sealed());
                crate::read(&path)
            }
            opened => opened,
        }
        .map_err(|source| ExportError::Read { path: path.clone(), source })?;
        for number in 1.. {
            let next = next_line(&mut *input, &mut bytes)
                .map_err(|source| ExportError::Read { path: path.clone(), source })?;
            let refused = |what: String| {
                let path = path.clone();
                ExportError::NotALog { path, line: number, what }
            };
            match next {
                Line::Whole => {}
                Line::Partial | Line::End => break,
                Line::TooLong => return Err(refused("longer than any record".into())),
                Line::Damaged => return Err(refused("the compressed file is damaged".into())),
            }
            bytes.push(b'\n');
            let record = Record::read(&bytes[..bytes.len() - 1]);
            let record = record.map_err(|fault| refused(fault.to_string()))?;
            match take(&record, &bytes) {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(Stop::Export(error)) => return Err(error),
                Err(Stop::What(what)) => return Err(refused(what)),
            }
        }
    }
    Ok(())
}

/// A header, with its line feed.
fn header_line(start: &Start) -> Vec<u8> {
    #[derive(Serialize)]
    struct Header<'s> {
        first_seq: u64,
        format: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        frontier: Option<String>,
        prev_hash: Hash,
        stream: &'s StreamId,
    }
    let frontier = start.frontier.as_ref().map(Frontier::to_text);
    let Start { stream, first_seq, prev_hash, .. } = start;
    let header =
        Header { first_seq: *first_seq, format: FORMAT, frontier, prev_hash: *prev_hash, stream };
    format!("{}\n", serde_json::json!({ "export": header })).into_bytes()
}

/// What [`header_line`] has written, without the line feed; `None` for any other text.
pub(crate) fn read_header(line: &[u8]) -> Option<Start> {
    let (mut outer, mut header) = (Members::default(), Members::default());
    outer.read(line).ok()?;
    header.read(outer.value("export")?).ok()?;
    let frontier = match header.value("frontier") {
        Some(_) => Some(Frontier::parse(header.string("frontier")?)?),
        None => None,
    };
    let start = Start {
        stream: header.string("stream")?.parse().ok()?,
        first_seq: header.number("first_seq").filter(|seq| *seq > 0)?,
        prev_hash: Hash::parse(header.string("prev_hash")?.as_bytes())?,
        frontier,
    };
    let is_of_size = start.frontier.as_ref().is_none_or(|tree| tree.size() + 1 == start.first_seq);
    let is_needed = start.first_seq > 1 || start.frontier.is_none();
    (is_of_size && is_needed && header_line(&start) == [line, b"\n"].concat()).then_some(start)
}

/// The last line: the last record of each stream, and how many there are.
pub(crate) fn end_line(runs: &[(Head, u64)]) -> Vec<u8> {
    #[derive(Serialize)]
    struct Run<'r> {
        hash: Hash,
        last_seq: u64,
        records: u64,
        stream: &'r StreamId,
    }
    let runs = runs.iter().map(|(head, records)| Run {
        hash: head.hash,
        last_seq: head.seq,
        records: *records,
        stream: &head.stream,
    });
    let streams: Vec<_> = runs.collect();
    format!("{}\n", serde_json::json!({ "end": { "streams": streams } })).into_bytes()
}

const FORMAT: &str = "tollgate-audit-export/1";
/// How a header begins; no record begins so.
pub(crate) const HEADER_START: &[u8] = b"{\"export\":";
/// How the last line begins.
pub(crate) const END_START: &[u8] = b"{\"end\":";
