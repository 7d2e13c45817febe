//! Reads the segments of one directory, each stream after the one that it follows.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, ErrorKind};
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::links::{Log, Missing};
use super::record::{Line, Record, is_beginning, next_line};
use super::report::{Finding, Spot};
use super::stream::{Place, Stream};
use super::{Reading, VerifyError, read_error};
use crate::ARCHIVE;
use crate::SegmentName;

/// One segment, in each form that is there.
#[derive(Debug, Default)]
struct Forms {
    open: Option<PathBuf>,
    sealed: Option<PathBuf>,
}

impl Forms {
    /// The one that was written first.
    fn path(&self) -> Option<&PathBuf> {
        self.open.as_ref().or(self.sealed.as_ref())
    }
}

/// What a directory holds.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    boots: BTreeMap<Uuid, BTreeMap<u32, Forms>>,
    /// Files of lines whose names are those of no segment.
    pub(crate) others: Vec<PathBuf>,
    findings: Vec<Finding>,
}

impl Listing {
    pub(crate) fn read(dir: &Path) -> Result<Self, VerifyError> {
        let mut this = Self::default();
        this.add(dir)?;
        let archive = dir.join(ARCHIVE);
        if archive.is_dir() {
            this.add(&archive)?;
        }
        this.others.sort();
        Ok(this)
    }

    fn add(&mut self, dir: &Path) -> Result<(), VerifyError> {
        let entries = std::fs::read_dir(dir).map_err(read_error(dir))?;
        for entry in entries {
            let path = entry.map_err(read_error(dir))?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            let segment = SegmentName::parse(name);
            if segment.is_none() && !name.ends_with(".jsonl") && !name.ends_with(".jsonl.gz") {
                continue;
            }
            if !path.is_file() {
                let what = format!("{} is no file that can be read", path.display());
                self.findings.push(Finding::incomplete(what));
            } else if let Some((segment, is_sealed)) = segment {
                let numbers = self.boots.entry(segment.boot).or_default();
                let forms = numbers.entry(segment.number).or_default();
                *(if is_sealed { &mut forms.sealed } else { &mut forms.open }) = Some(path);
            } else {
                self.others.push(path);
            }
        }
        Ok(())
    }

    pub(crate) fn has_segments(&self) -> bool {
        !self.boots.is_empty()
    }

    /// The boots, each after the one whose last record it follows, as far as the links are here.
    fn order(&self) -> Result<Vec<Uuid>, VerifyError> {
        let mut after: BTreeMap<Uuid, Vec<Uuid>> = BTreeMap::new();
        let mut ordered = Vec::new();
        for (boot, numbers) in &self.boots {
            let first = numbers.values().next().and_then(Forms::path);
            let previous = first.map(|path| previous_boot(path)).transpose()?.flatten();
            match previous.filter(|previous| self.boots.contains_key(previous)) {
                Some(previous) => after.entry(previous).or_default().push(*boot),
                None => ordered.push(*boot),
            }
        }
        // Those without a stream before them, and behind each what follows it; a circle comes last.
        let mut stack: Vec<Uuid> = std::mem::take(&mut ordered).into_iter().rev().collect();
        while let Some(boot) = stack.pop() {
            ordered.push(boot);
            stack.extend(after.remove(&boot).into_iter().flatten().rev());
        }
        let found: BTreeSet<Uuid> = ordered.iter().copied().collect();
        ordered.extend(self.boots.keys().filter(|boot| !found.contains(*boot)));
        Ok(ordered)
    }

    pub(crate) fn walk(self, reading: &mut Reading<'_>) -> Result<Log, VerifyError> {
        let mut log = Log { is_whole: true, findings: self.findings.clone(), ..Log::default() };
        for path in &self.others {
            let what = "records in a file whose name is that of no segment";
            log.findings.push(Finding::incomplete(what).at(&spot(path)));
        }
        if reading.range.is_some() && self.boots.len() != 1 {
            return Err(VerifyError::Range);
        }
        for boot in self.order()? {
            let Some(numbers) = self.boots.get(&boot) else { continue };
            let skipped = match &reading.range {
                Some(range) => before(numbers, range.0)?,
                None => 0,
            };
            let mut stream = Stream::of(Some(boot));
            let mut next = if skipped > 0 { None } else { Some(1) };
            let last = numbers.keys().next_back().copied();
            for (number, forms) in numbers.iter().skip(skipped) {
                let lacking = next.filter(|next| next < number);
                if let Some(first) = lacking {
                    let stream = log.streams.len();
                    log.missing.push(Missing { stream, boot, first, last: number - 1 });
                }
                let runs = stream.runs.len();
                walk_segment(*number, forms, Some(*number) == last, &mut stream, reading)?;
                if runs > 0 && stream.runs.len() > runs && lacking.is_none() {
                    let what = "records are missing between two segments";
                    let (seq, at) =
                        (gap(&stream), forms.path().map_or_else(Spot::default, |path| spot(path)));
                    let finding = Finding::incomplete(what).at(&at).seq(&stream.name(), seq);
                    stream.findings.push(finding);
                }
                if stream.is_broken || reading.is_done(&stream) {
                    break;
                }
                next = Some(number + 1);
            }
            stream.finish(&mut reading.anchors);
            log.streams.push(stream);
        }
        Ok(log)
    }
}

/// The first record that is missing before the latest run.
fn gap(stream: &Stream) -> u64 {
    let before = stream.runs.iter().rev().nth(1);
    before.map_or(1, |run| run.last_seq + 1)
}

fn walk_segment(
    number: u32,
    forms: &Forms,
    is_last: bool,
    stream: &mut Stream,
    reading: &mut Reading<'_>,
) -> Result<(), VerifyError> {
    let Some(path) = forms.path() else { return Ok(()) };
    let (path, mut input) = open(path)?;
    walk_lines(&mut *input, &path, Some(number), is_last, stream, reading)?;
    if let (Some(open), Some(sealed)) = (&forms.open, &forms.sealed)
        && !stream.is_broken
        && !is_same(open, sealed)?
    {
        let finding = Finding::tampered("the segment and its sealed form are not the same");
        stream.findings.push(finding.at(&spot(sealed)).seq(&stream.name(), stream.last_seq()));
        stream.is_broken = true;
    }
    Ok(())
}

/// Reads the records of one segment.
pub(crate) fn walk_lines(
    input: &mut dyn BufRead,
    path: &Path,
    number: Option<u32>,
    is_last: bool,
    stream: &mut Stream,
    reading: &mut Reading<'_>,
) -> Result<(), VerifyError> {
    let mut spot = spot(path);
    let mut place = Place::Opens(number);
    let mut line = std::mem::take(&mut reading.line);
    while !stream.is_broken && !reading.is_done(stream) {
        spot.line += 1;
        match next_line(input, &mut line).map_err(read_error(path))? {
            Line::Whole => {
                stream.line(&line, &spot, place, &mut reading.trust, &mut reading.anchors);
                place = Place::Within;
                reading.count();
            }
            Line::Partial => {
                let is_open = path.extension().is_none_or(|extension| extension != "gz");
                if !(is_last && is_open && is_beginning(&line)) {
                    stream.refuse("a line that does not end", &spot, place);
                }
                break;
            }
            Line::TooLong => stream.refuse("a line longer than any record", &spot, place),
            Line::Damaged => stream.refuse("the compressed file is damaged", &spot, place),
            Line::End => break,
        }
        if stream.is_full() {
            let what = "more records wait for a checkpoint than are kept";
            stream
                .findings
                .push(Finding::incomplete(what).at(&spot).seq(&stream.name(), stream.last_seq()));
            stream.is_broken = true;
        }
    }
    reading.line = line;
    Ok(())
}

/// Opens a segment, also when it was sealed or archived since it was listed.
fn open(path: &Path) -> Result<(PathBuf, Box<dyn BufRead + Send>), VerifyError> {
    match crate::read(path) {
        Ok(input) => Ok((path.into(), input)),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let sealed = match path.extension() {
                Some(extension) if extension == "gz" => path.to_owned(),
                _ => path.with_extension("jsonl.gz"),
            };
            let archived = sealed.file_name().map(|name| sealed.with_file_name(ARCHIVE).join(name));
            let input = crate::read(&sealed).or_else(|_| match &archived {
                Some(archived) => crate::read(archived),
                None => Err(error),
            });
            input.map(|input| (sealed, input)).map_err(read_error(path))
        }
        Err(error) => Err(read_error(path)(error)),
    }
}

fn first_line<T>(
    path: &Path,
    what: impl FnOnce(&Record<'_>) -> Option<T>,
) -> Result<Option<T>, VerifyError> {
    let mut line = Vec::new();
    let read = next_line(&mut *open(path)?.1, &mut line).map_err(read_error(path))?;
    let record = (read == Line::Whole).then(|| Record::read(&line).ok()).flatten();
    Ok(record.as_ref().and_then(what))
}

fn previous_boot(path: &Path) -> Result<Option<Uuid>, VerifyError> {
    first_line(path, |record| record.inner("previous", "stream")?.rsplit('/').next()?.parse().ok())
}

/// How many segments lie wholly before a record.
fn before(numbers: &BTreeMap<u32, Forms>, seq: u64) -> Result<usize, VerifyError> {
    let mut skipped = 0;
    for (index, path) in numbers.values().filter_map(Forms::path).enumerate() {
        match first_line(path, |record| Some(record.seq))? {
            Some(first) if first <= seq => skipped = index,
            _ => break,
        }
    }
    Ok(skipped)
}

fn is_same(open: &Path, sealed: &Path) -> Result<bool, VerifyError> {
    // It goes last when it was sealed: then the other is all there is.
    let mut one = match crate::read(open) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(true),
        other => other.map_err(read_error(open))?,
    };
    let mut other = crate::read(sealed).map_err(read_error(sealed))?;
    loop {
        let left = one.fill_buf().map_err(read_error(open))?;
        let right = match other.fill_buf() {
            Ok(right) => right,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            Err(_) => return Ok(false),
        };
        let both = left.len().min(right.len());
        if right.is_empty() && !left.is_empty() {
            // Half a line, as a crash leaves it, is not sealed.
            let mut line = Vec::new();
            let is_half = matches!(next_line(&mut *one, &mut line), Ok(Line::Partial));
            return Ok(is_half && is_beginning(&line));
        }
        if both == 0 {
            return Ok(left.is_empty() && right.is_empty());
        }
        if left[..both] != right[..both] {
            return Ok(false);
        }
        one.consume(both);
        other.consume(both);
    }
}

pub(crate) fn spot(path: &Path) -> Spot {
    Spot { file: path.display().to_string(), line: 0 }
}
