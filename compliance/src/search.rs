//! Finds records in a directory of segments: what matches, oldest first, a page at a time.

use std::fmt;
use std::io::{self, BufRead};
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use uuid::Uuid;

use crate::export::Record;
use crate::sealing::{Index, Word, block_reader};
use crate::segments::{Segment, segments};

/// What is looked for; absent members match everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Not before.
    pub from: Option<Timestamp>,
    /// Not after.
    pub to: Option<Timestamp>,
    /// The actor's id.
    pub actor: Option<String>,
    /// A type of event, or a family of them: `pin.*`.
    pub event: Option<String>,
    /// The event's own id.
    pub event_id: Option<String>,
    /// The outcome.
    pub outcome: Option<String>,
    /// The resource's id.
    pub resource: Option<String>,
    /// The request's id.
    pub request_id: Option<String>,
}

/// A record's place in a directory: after it the next page begins. Written `<boot>:<seq>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct After {
    /// Its stream's boot.
    pub boot: Uuid,
    /// Its number.
    pub seq: u64,
}

impl fmt::Display for After {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.boot, self.seq)
    }
}

impl FromStr for After {
    type Err = NoPlace;

    fn from_str(text: &str) -> Result<Self, NoPlace> {
        let (boot, seq) = text.split_once(':').ok_or(NoPlace)?;
        let boot = boot.parse().map_err(|_| NoPlace)?;
        Ok(Self { boot, seq: seq.parse().map_err(|_| NoPlace)? })
    }
}

/// This names no place in a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a place is <boot>:<number>, as the page before gave it")]
pub struct NoPlace;

/// A page.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// The records as they are stored, without line feeds.
    pub records: Vec<String>,
    /// Where the search goes on, when this is not all.
    pub next: Option<After>,
}

/// How far one search goes.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Records of a page.
    pub records: usize,
    /// How long it may take; then the page ends where it is.
    pub time: Duration,
}

/// Searches `dir`. A line that is no record is passed over: to tell it is the verifier's.
///
/// # Errors
/// What the system says.
pub fn search(
    dir: &Path,
    filter: &Filter,
    after: Option<After>,
    bounds: Bounds,
) -> io::Result<Found> {
    let (words, until) = (filter.words(), now() + bounds.time);
    let found = Found::default();
    let mut search = Search { filter, words, after, bounds, until, seen: after, found };
    for segment in segments(dir)? {
        if search.segment(&segment)? {
            break;
        }
    }
    Ok(search.found)
}

struct Search<'f> {
    filter: &'f Filter,
    words: Vec<Word>,
    after: Option<After>,
    bounds: Bounds,
    until: Instant,
    /// All up to here was looked at.
    seen: Option<After>,
    found: Found,
}

impl Search<'_> {
    /// Whether the page ends in this segment.
    fn segment(&mut self, segment: &Segment) -> io::Result<bool> {
        let boot = segment.name.boot;
        if self.after.is_some_and(|after| boot < after.boot) {
            return Ok(false);
        }
        let Some(index) = Index::read(segment).ok().filter(|_| segment.is_sealed) else {
            return self.whole(segment);
        };
        if self.is_behind(boot, index.last_seq) || !self.filter.meets(index.from_us, index.to_us) {
            return Ok(false);
        }
        if index.blocks.is_empty() {
            return self.whole(segment);
        }
        for block in &index.blocks {
            if self.is_behind(boot, block.last_seq) {
                continue;
            }
            let may_hold = self.words.iter().all(|word| block.may_hold(*word));
            if may_hold && self.filter.meets(block.from_us, block.to_us) {
                let mut lines = block_reader(segment, block.offset)?;
                if self.lines(boot, &mut lines)? {
                    return Ok(true);
                }
            }
            self.seen = Some(After { boot, seq: block.last_seq });
            if self.is_over() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Reads all of it; it may have been sealed meanwhile, moved or purged.
    fn whole(&mut self, segment: &Segment) -> io::Result<bool> {
        let sealed = segment.path.with_file_name(segment.name.sealed());
        match segment.read().or_else(|_| crate::segments::read(&sealed)) {
            Ok(mut lines) => self.lines(segment.name.boot, &mut lines),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn is_behind(&self, boot: Uuid, last_seq: u64) -> bool {
        self.after.is_some_and(|after| After { boot, seq: last_seq } <= after)
    }

    /// Whether the time is over; then the next page begins behind what was seen.
    fn is_over(&mut self) -> bool {
        let is_over = now() > self.until;
        if is_over {
            self.found.next = self.seen;
        }
        is_over
    }

    fn lines(&mut self, boot: Uuid, lines: &mut dyn BufRead) -> io::Result<bool> {
        let (mut line, mut read) = (Vec::new(), 0u32);
        loop {
            line.clear();
            lines.read_until(b'\n', &mut line)?;
            // The end, or what is being written.
            let Some(text) = line.strip_suffix(b"\n") else { return Ok(false) };
            let Ok(record) = Record::parse(text) else { continue };
            if self.is_behind(boot, record.seq) {
                continue;
            }
            if self.filter.matches(&record) {
                if self.found.records.len() >= self.bounds.records {
                    self.found.next = self.seen;
                    return Ok(true);
                }
                self.found.records.push(String::from_utf8_lossy(text).into_owned());
            }
            self.seen = Some(After { boot, seq: record.seq });
            read += 1;
            if read.is_multiple_of(1_000) && self.is_over() {
                return Ok(true);
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "blocking work, outside of any runtime")]
fn now() -> Instant {
    Instant::now()
}

impl Filter {
    fn words(&self) -> Vec<Word> {
        let event = self.event.as_deref().map(|event| match event.strip_suffix(".*") {
            Some(family) => Word::new("family", family),
            None => Word::new("event", event),
        });
        let fields = [
            ("event_id", &self.event_id),
            ("actor", &self.actor),
            ("outcome", &self.outcome),
            ("resource", &self.resource),
            ("request_id", &self.request_id),
        ];
        let fields =
            fields.into_iter().filter_map(|(name, value)| Some(Word::new(name, value.as_deref()?)));
        event.into_iter().chain(fields).collect()
    }

    fn meets(&self, from_us: i64, to_us: i64) -> bool {
        self.from.is_none_or(|from| from.as_microsecond() <= to_us)
            && self.to.is_none_or(|to| to.as_microsecond() >= from_us)
    }

    /// Whether the record is looked for.
    #[must_use]
    pub fn matches(&self, record: &Record<'_>) -> bool {
        let us = record.time.as_microsecond();
        let same = |wanted: &Option<String>, value: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| Some(wanted) == value)
        };
        let kind = &*record.event.kind;
        let is_event = self.event.as_deref().is_none_or(|event| match event.strip_suffix(".*") {
            Some(family) => kind.split_once('.').is_some_and(|(of, _)| of == family),
            None => kind == event,
        });
        self.meets(us, us)
            && is_event
            && same(&self.event_id, Some(&record.event.id))
            && same(&self.actor, Some(&record.actor.id))
            && same(&self.outcome, Some(&record.outcome))
            && same(&self.resource, Some(&record.resource.id))
            && same(&self.request_id, record.request_id.as_deref())
    }
}

#[cfg(test)]
#[path = "search_tests.rs"]
mod tests;
