//! Reads one file: an export, which says itself where its runs begin and that it is whole, or one segment.

use std::io::BufRead;
use std::path::Path;

use super::directory::{spot, walk_lines};
use super::links::Log;
use super::record::{Line, next_line};
use super::report::{Finding, Spot};
use super::stream::{Place, Start, Stream};
use super::{Reading, VerifyError, read_error};
use crate::export_set::{END_START, HEADER_START, end_line, read_header};
use crate::{Head, SegmentName};

/// Whether a file is an export by its first line.
pub(crate) fn is_export(path: &Path) -> Result<bool, VerifyError> {
    let mut line = Vec::new();
    let mut input = crate::read(path).map_err(read_error(path))?;
    next_line(&mut *input, &mut line).map_err(read_error(path))?;
    // An export of nothing has only its end.
    Ok(line.starts_with(HEADER_START) || line.starts_with(END_START))
}

/// Reads a segment that stands alone.
pub(crate) fn walk_one(path: &Path, reading: &mut Reading<'_>) -> Result<Log, VerifyError> {
    let name = path.file_name().and_then(|name| name.to_str()).and_then(SegmentName::parse);
    let mut stream = Stream::of(name.map(|(name, _)| name.boot));
    let number = name.map(|(name, _)| name.number);
    let mut input = crate::read(path).map_err(read_error(path))?;
    walk_lines(&mut *input, path, number, true, &mut stream, reading)?;
    stream.finish(&mut reading.anchors);
    Ok(Log { streams: vec![stream], ..Log::default() })
}

/// Reads an export.
pub(crate) fn walk_export(path: &Path, reading: &mut Reading<'_>) -> Result<Log, VerifyError> {
    let mut input = crate::read(path).map_err(read_error(path))?;
    let mut line = std::mem::take(&mut reading.line);
    let mut export = Export { spot: spot(path), ..Export::default() };
    export.read(path, &mut *input, &mut line, reading)?;
    reading.line = line;
    if reading.range.is_some() && export.log.streams.len() != 1 {
        return Err(VerifyError::Range);
    }
    Ok(export.log)
}

#[derive(Debug, Default)]
struct Export {
    log: Log,
    spot: Spot,
    /// The header before the next record.
    start: Option<Start>,
    is_ended: bool,
}

impl Export {
    fn read(
        &mut self,
        path: &Path,
        input: &mut dyn BufRead,
        line: &mut Vec<u8>,
        reading: &mut Reading<'_>,
    ) -> Result<(), VerifyError> {
        loop {
            self.spot.line += 1;
            let next = next_line(input, line).map_err(read_error(path))?;
            let what = match next {
                Line::Whole if self.is_ended => "a line after the end",
                Line::Whole if line.starts_with(HEADER_START) => match self.header(line, reading) {
                    Ok(()) => continue,
                    Err(what) => what,
                },
                Line::Whole if line.starts_with(END_START) => match self.end(line, reading) {
                    Ok(()) => continue,
                    Err(what) => what,
                },
                Line::Whole => match self.record(line, reading) {
                    Ok(true) => continue,
                    Ok(false) => break,
                    Err(what) => what,
                },
                Line::TooLong => "a line longer than any record",
                Line::Damaged => "the compressed file is damaged",
                Line::End if self.is_ended => break,
                Line::Partial | Line::End => {
                    let finding = Finding::incomplete("the export has no end: it was cut off");
                    self.log.findings.push(finding.at(&self.spot));
                    break;
                }
            };
            self.refuse(what);
            break;
        }
        self.finish(reading);
        Ok(())
    }

    fn header(&mut self, line: &[u8], reading: &mut Reading<'_>) -> Result<(), &'static str> {
        let start = read_header(line).ok_or("a header that is none")?;
        if self.start.is_some() {
            return Err("a header without records");
        }
        self.finish(reading);
        if self.log.streams.iter().any(|stream| stream.id.as_ref() == Some(&start.stream)) {
            return Err("a second header of the same stream");
        }
        self.log.streams.push(Stream::default());
        self.start = Some(start);
        Ok(())
    }

    /// Whether to go on.
    fn record(&mut self, line: &[u8], reading: &mut Reading<'_>) -> Result<bool, &'static str> {
        let stream = self.log.streams.last_mut().ok_or("a record before any header")?;
        reading.count();
        if stream.is_broken {
            return Ok(true);
        }
        let start = self.start.take();
        let place = start.as_ref().map_or(Place::Runs, Place::Starts);
        stream.line(line, &self.spot, place, &mut reading.trust, &mut reading.anchors);
        if stream.is_full() {
            let what = "more records wait for a checkpoint than are kept";
            let finding = Finding::incomplete(what).at(&self.spot);
            stream.findings.push(finding.seq(&stream.name(), stream.last_seq()));
            stream.is_broken = true;
        }
        Ok(!reading.is_done(stream))
    }

    fn end(&mut self, line: &[u8], reading: &mut Reading<'_>) -> Result<(), &'static str> {
        if self.start.is_some() {
            return Err("a header without records");
        }
        self.finish(reading);
        self.is_ended = true;
        let runs: Vec<(Head, u64)> = (self.log.streams.iter())
            .filter_map(|stream| {
                let (run, id) = (stream.runs.last()?, stream.id.clone()?);
                let head = Head { hash: run.last_hash, seq: run.last_seq, stream: id };
                Some((head, stream.records))
            })
            .collect();
        let is_broken = self.log.streams.iter().any(|stream| stream.is_broken);
        if is_broken || end_line(&runs) == [line, b"\n"].concat() {
            Ok(())
        } else {
            Err("the end tells of other records")
        }
    }

    fn finish(&mut self, reading: &mut Reading<'_>) {
        if let Some(stream) = self.log.streams.last_mut() {
            stream.finish(&mut reading.anchors);
        }
    }

    fn refuse(&mut self, what: &str) {
        let finding = Finding::tampered(what).at(&self.spot);
        if let Some(start) = &self.start {
            let finding = finding.seq(start.stream.as_str(), start.first_seq);
            self.log.findings.push(finding);
            return;
        }
        match self.log.streams.last_mut() {
            Some(stream) if !stream.runs.is_empty() => {
                let (name, seq) = (stream.name(), stream.next_seq());
                if !stream.is_broken {
                    stream.findings.push(finding.seq(&name, seq));
                }
                stream.is_broken = true;
            }
            _ => self.log.findings.push(finding),
        }
    }
}
