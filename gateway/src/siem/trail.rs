//! Reads the records behind the writer, from the files that it writes: plain or sealed, one stream after the
//! other.
//!
//! A line may be in a file before its sync, and be taken back: nothing beyond what is durable is read, and
//! what was read beyond it is read again. A file that is gone is opened again under its other name; a position
//! counts bytes of the lines, so that it means the same in both. The last line of a boot that crashed may
//! have no end: nobody got an answer for it.

use std::fs::File;
use std::io::{self, BufRead};
use std::mem;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use compliance::export::{Format, message};
use compliance::{Segment, SegmentName, StreamId, read, segments};
use jiff::Timestamp;
use serde::Deserialize;
use uuid::Uuid;

use crate::audit::followed_by;

/// A record by its place in a stream; number 0 is before the first one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) stream: StreamId,
    pub(super) seq: u64,
}

/// A place and where in the files the next record is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Position {
    /// The last record before it.
    pub(super) place: Place,
    pub(super) segment: SegmentName,
    /// Bytes of whole lines before it.
    pub(super) offset: u64,
}

/// Streams of this replica in order of time, the running one last. Not by their names: a clock that was set
/// back gives a later boot an earlier one.
#[derive(Clone, Debug)]
pub(super) struct Streams {
    dirs: Arc<[PathBuf]>,
    boots: Arc<[Uuid]>,
}

impl Streams {
    /// Goes back from the running stream until every one of `wanted` is found, or no file tells what was before.
    pub(super) fn find(dirs: Arc<[PathBuf]>, running: Uuid, wanted: &[Uuid]) -> Self {
        let (mut boots, mut at) = (vec![running], running);
        while !wanted.iter().all(|boot| boots.contains(boot)) {
            let first = SegmentName { boot: at, number: 1 };
            let before = named(&dirs, first).and_then(|segment| followed_by(&segment));
            let Some(before) = before.filter(|boot| !boots.contains(boot)) else { break };
            boots.push(before);
            at = before;
        }
        boots.reverse();
        Self { dirs, boots: boots.into() }
    }

    /// For comparisons; `None` when the boot is none of them.
    pub(super) fn order(&self, name: SegmentName) -> Option<(usize, u32)> {
        let at = self.boots.iter().position(|boot| *boot == name.boot)?;
        Some((at, name.number))
    }

    pub(super) fn dirs(&self) -> &[PathBuf] {
        &self.dirs
    }

    fn running(&self) -> Uuid {
        self.boots.last().copied().unwrap_or_default()
    }

    fn after(&self, boot: Uuid) -> Option<Uuid> {
        let at = self.boots.iter().position(|one| *one == boot)?;
        self.boots.get(at + 1).copied()
    }

    /// Where the record behind `place` is, and whether its stream is still known.
    pub(super) fn locate(&self, place: Place) -> io::Result<(Position, bool)> {
        let is_known = self.boots.contains(&place.stream.boot());
        let boot = match is_known {
            true => place.stream.boot(),
            false => self.boots.first().copied().unwrap_or_default(),
        };
        let mut found = SegmentName { boot, number: 1 };
        for (at, segment) in self.of(boot)?.into_iter().enumerate() {
            let first = first_seq(&segment);
            if at == 0 || (is_known && first.is_some_and(|first| first <= place.seq + 1)) {
                found = segment.name;
            }
        }
        Ok((Position { place, segment: found, offset: 0 }, is_known))
    }

    /// The segments of a boot, in order.
    fn of(&self, boot: Uuid) -> io::Result<Vec<Segment>> {
        let mut all = Vec::new();
        for dir in self.dirs.iter() {
            all.extend(segments(dir)?.into_iter().filter(|segment| segment.name.boot == boot));
        }
        all.sort_by_key(|segment| segment.name);
        Ok(all)
    }

    /// The segment behind this one, if there is one already.
    fn step(&self, from: SegmentName) -> io::Result<Option<SegmentName>> {
        let later = self.of(from.boot)?.into_iter().map(|segment| segment.name);
        if let Some(next) = later.filter(|name| *name > from).min() {
            return Ok(Some(next));
        }
        let Some(boot) = self.after(from.boot) else { return Ok(None) };
        let first = self.of(boot)?.into_iter().map(|segment| segment.name).min();
        Ok(Some(first.unwrap_or(SegmentName { boot, number: 1 })))
    }
}

/// A reader of one sink.
#[derive(Debug)]
pub(super) struct Trail {
    streams: Streams,
    format: Format,
    at: Position,
    open: Option<Open>,
    buffer: Vec<u8>,
    message: Vec<u8>,
}

enum Open {
    Plain(File),
    Sealed(Box<dyn BufRead + Send>),
}

impl std::fmt::Debug for Open {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Plain(_) => "Plain",
            Self::Sealed(_) => "Sealed",
        })
    }
}

/// Records that are ready to be written.
#[derive(Debug)]
pub(super) struct Batch {
    /// Each with its length before it (RFC 5425, 4.3).
    pub(super) bytes: Vec<u8>,
    pub(super) records: u64,
    /// When the first one was made.
    pub(super) first: Option<Timestamp>,
    /// Behind the last one.
    pub(super) end: Position,
    /// Whether more may be ready.
    pub(super) is_full: bool,
    /// What could not be sent, in words.
    pub(super) trouble: Vec<String>,
}

/// Why reading a segment ended.
enum Stop {
    /// The batch is full.
    Full,
    /// No more lines.
    End,
    /// A line that is not durable.
    Beyond,
}

impl Trail {
    pub(super) fn new(streams: Streams, format: Format, at: Position) -> Self {
        Self { streams, format, at, open: None, buffer: Vec::new(), message: Vec::new() }
    }

    /// Goes back to a position that it had.
    pub(super) fn rewind(&mut self, to: Position) {
        (self.at, self.open) = (to, None);
    }

    /// The next records, as many as fit a batch: none when all that is durable was read. `durable` was
    /// looked up before the call, and is about the running stream. Blocks on the disk.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn next(&mut self, durable: u64) -> io::Result<Batch> {
        let mut batch = Batch {
            bytes: Vec::new(),
            records: 0,
            first: None,
            end: self.at.clone(),
            is_full: false,
            trouble: Vec::new(),
        };
        loop {
            let is_running = self.at.segment.boot == self.streams.running();
            let limit = if is_running { durable } else { u64::MAX };
            if self.seq() >= limit {
                break;
            }
            let stop = self.read_segment(limit, &mut batch)?;
            batch.is_full = matches!(stop, Stop::Full);
            if batch.records > 0 {
                break;
            }
            match stop {
                Stop::Full => {}
                Stop::Beyond => break,
                // What is durable was in the file when it was looked up: what is missing is behind it.
                Stop::End => match self.streams.step(self.at.segment)? {
                    Some(next) => (self.at.segment, self.at.offset, self.open) = (next, 0, None),
                    None => break,
                },
            }
        }
        batch.end = self.at.clone();
        Ok(batch)
    }

    /// The last record read of the stream that is being read.
    fn seq(&self) -> u64 {
        let Place { stream, seq } = &self.at.place;
        if stream.boot() == self.at.segment.boot { *seq } else { 0 }
    }

    fn read_segment(&mut self, limit: u64, batch: &mut Batch) -> io::Result<Stop> {
        if self.open.is_none() {
            self.open = self.reopen()?;
        }
        let mut buffer = mem::take(&mut self.buffer);
        let stop = match self.open.take() {
            None => Ok(Stop::End),
            Some(Open::Plain(file)) => {
                let read = self.read_plain(&file, &mut buffer, limit, batch);
                self.open = Some(Open::Plain(file));
                read
            }
            Some(Open::Sealed(mut lines)) => {
                let read = self.read_sealed(&mut lines, &mut buffer, limit, batch);
                // Behind a line that was not taken it is opened anew.
                if matches!(read, Ok(Stop::Full | Stop::End)) {
                    self.open = Some(Open::Sealed(lines));
                }
                read
            }
        };
        self.buffer = buffer;
        stop
    }

    fn reopen(&mut self) -> io::Result<Option<Open>> {
        let Some(segment) = named(&self.streams.dirs, self.at.segment) else { return Ok(None) };
        if !segment.is_sealed {
            return match File::open(&segment.path) {
                Ok(file) => Ok(Some(Open::Plain(file))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            };
        }
        let mut lines = read(&segment.path)?;
        let mut skip = self.at.offset;
        while skip > 0 {
            let there = lines.fill_buf()?.len();
            if there == 0 {
                break;
            }
            let step = usize::try_from(skip).unwrap_or(there).min(there);
            lines.consume(step);
            skip -= step as u64;
        }
        Ok(Some(Open::Sealed(lines)))
    }

    fn read_plain(
        &mut self,
        file: &File,
        buffer: &mut Vec<u8>,
        limit: u64,
        batch: &mut Batch,
    ) -> io::Result<Stop> {
        buffer.resize(BATCH_BYTES, 0);
        let mut filled = 0;
        while filled < BATCH_BYTES {
            match file.read_at(&mut buffer[filled..], self.at.offset + filled as u64)? {
                0 => break,
                read => filled += read,
            }
        }
        let mut rest = &buffer[..filled];
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (line, behind) = rest.split_at(end + 1);
            if !self.take(line, limit, batch) {
                return Ok(Stop::Beyond);
            }
            rest = behind;
        }
        if rest.len() == BATCH_BYTES {
            batch.trouble.push(format!("{} holds a line without an end", self.at.segment));
            return Ok(Stop::End);
        }
        Ok(if filled == BATCH_BYTES { Stop::Full } else { Stop::End })
    }

    fn read_sealed(
        &mut self,
        lines: &mut Box<dyn BufRead + Send>,
        line: &mut Vec<u8>,
        limit: u64,
        batch: &mut Batch,
    ) -> io::Result<Stop> {
        let begin = self.at.offset;
        while self.at.offset - begin < BATCH_BYTES as u64 {
            line.clear();
            match lines.read_until(b'\n', line) {
                Ok(_) => {}
                Err(error) if is_damage(&error) => {
                    let told = format!("{} is damaged: {error}", self.at.segment);
                    batch.trouble.push(told);
                    return Ok(Stop::End);
                }
                Err(error) => return Err(error),
            }
            if line.last() != Some(&b'\n') {
                return Ok(Stop::End);
            }
            if !self.take(line, limit, batch) {
                return Ok(Stop::Beyond);
            }
        }
        Ok(Stop::Full)
    }

    /// Takes one line, and false when it is not durable.
    fn take(&mut self, line: &[u8], limit: u64, batch: &mut Batch) -> bool {
        #[derive(Deserialize)]
        struct Facts<'r> {
            seq: u64,
            stream: &'r str,
            time: Timestamp,
        }
        let bytes = line.len() as u64;
        let facts: Option<Facts<'_>> = serde_json::from_slice(line).ok();
        let place = facts.and_then(|Facts { seq, stream, time }| {
            let known = &self.at.place.stream;
            let stream =
                if known.as_str() == stream { known.clone() } else { stream.parse().ok()? };
            Some((Place { stream, seq }, time))
        });
        let Some((place, time)) = place else {
            let at = self.at.offset;
            batch.trouble.push(format!("{}: no record at byte {at}", self.at.segment));
            self.at.offset += bytes;
            return true;
        };
        if place.seq > limit {
            return false;
        }
        let before = self.seq();
        self.at.offset += bytes;
        if place.seq <= before {
            return true;
        }
        if place.seq > before + 1 {
            let (from, to) = (before + 1, place.seq - 1);
            batch.trouble.push(format!("records {from} to {to} of {} are gone", place.stream));
        }
        self.message.clear();
        match message(self.format, line, &mut self.message) {
            Ok(()) => {
                batch.bytes.extend_from_slice(self.message.len().to_string().as_bytes());
                batch.bytes.push(b' ');
                batch.bytes.extend_from_slice(&self.message);
                batch.records += 1;
                batch.first.get_or_insert(time);
            }
            Err(error) => {
                batch.trouble.push(format!("record {} of {}: {error}", place.seq, place.stream));
            }
        }
        self.at.place = place;
        true
    }
}

/// A segment under either of its names, in any of the directories.
fn named(dirs: &[PathBuf], name: SegmentName) -> Option<Segment> {
    let found = |dir: &Path, file: String, is_sealed| {
        let path = dir.join(file);
        path.exists().then_some(Segment { name, path, is_sealed })
    };
    dirs.iter()
        .find_map(|dir| found(dir, name.open(), false).or_else(|| found(dir, name.sealed(), true)))
}

fn first_seq(segment: &Segment) -> Option<u64> {
    #[derive(Deserialize)]
    struct First {
        seq: u64,
    }
    let mut line = Vec::new();
    segment.read().ok()?.read_until(b'\n', &mut line).ok()?;
    serde_json::from_slice(&line).ok().map(|First { seq }| seq)
}

/// The file will not be better at the next try.
fn is_damage(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput)
        || error.kind() == io::ErrorKind::UnexpectedEof
}

/// Read at once, and a little more written: some 300 records.
const BATCH_BYTES: usize = 256 * 1024;
