//! One stream, record after record: chain, tree, checkpoints.
//!
//! What is read may begin anywhere: then the tree before it is given, in the first record of a segment or in
//! the header of an export, and is believed only because the next signed root is that of a tree that goes on
//! from it.

use std::collections::VecDeque;

use jiff::Timestamp;
use uuid::Uuid;

use super::anchors::Anchors;
use super::record::{Record, event_id};
use super::report::{Finding, Spot};
use super::trust::{Judged, Trust};
use crate::{EventType, Frontier, Hash, Members, SegmentName, SignedNote, StreamId};

/// A stream as far as it is read.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    /// The boot in the file's name.
    boot: Option<Uuid>,
    /// From the first record or the header.
    pub(crate) id: Option<StreamId>,
    /// Pieces without a gap.
    pub(crate) runs: Vec<Run>,
    /// The record of another stream that the first record follows.
    pub(crate) previous: Option<Previous>,
    pub(crate) purges: Vec<Purge>,
    pub(crate) findings: Vec<Finding>,
    /// A tampered record was found: nothing after it was read.
    pub(crate) is_broken: bool,
    pub(crate) records: u64,
    note_size: u64,
}

/// The last record of the stream before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Previous {
    pub(crate) stream: StreamId,
    pub(crate) seq: u64,
    pub(crate) hash: Hash,
}

/// A record that tells of the purge of a segment.
#[derive(Debug)]
pub(crate) struct Purge {
    pub(crate) segment: SegmentName,
    /// The last record of the segment, of a `note` as `<first>-<last>`.
    pub(crate) last: Option<u64>,
    /// The number of the record that tells.
    pub(crate) seq: u64,
}

/// Records that follow one another.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) first_seq: u64,
    pub(crate) last_seq: u64,
    pub(crate) last_hash: Hash,
    /// Where the first and the last record stand.
    pub(crate) first: Spot,
    pub(crate) last: Spot,
    /// The last record under a root that is signed by a key that counts.
    pub(crate) signed: u64,
    /// How many seconds may pass between two checkpoints, as the last of them says.
    pub(crate) interval_s: Option<u64>,
    /// Notes that are signed by other keys, and over which no signature lies so far.
    pub(crate) unvouched: Vec<(u64, Spot)>,
    /// From the last checkpoint that counts, or the first record, to the latest record.
    tail: (Timestamp, Timestamp),
    /// The tree up to the last checkpoint; absent when an export does not give one.
    tree: Option<Frontier>,
    /// The records after it.
    waiting: VecDeque<Hash>,
    ahead: Frontier,
    start_size: u64,
    /// A header gave the tree before it, so that no record speaks for it.
    is_tree_given: bool,
    /// The first record whose note met that tree; 0 when its signature counts.
    met: Option<u64>,
}

impl Run {
    /// Seconds from the last checkpoint that counts, or from the first record, to the latest record.
    pub(crate) fn tail_s(&self) -> u64 {
        u64::try_from(self.tail.1.duration_since(self.tail.0).as_secs()).unwrap_or(0)
    }

    /// Whether a tree was given for what stands before the first record that nothing proves. `is_covered`:
    /// the last record is under the signature of a later stream.
    pub(crate) fn is_start_open(&self, is_covered: bool) -> bool {
        let is_met = self.met.is_some_and(|seq| is_covered || seq <= self.signed);
        self.is_tree_given && !is_met
    }

    /// The tree of all records so far. It goes on from where it was asked for before, so that many such
    /// questions cost no more than one.
    fn whole_tree(&mut self) -> Option<&Frontier> {
        let tree = self.tree.as_ref()?;
        if self.ahead.size() < tree.size() {
            self.ahead.clone_from(tree);
        }
        let known = usize::try_from(self.ahead.size() - tree.size()).ok()?;
        self.waiting.range(known..).for_each(|entry| self.ahead.push(*entry));
        Some(&self.ahead)
    }
}

/// Where a line stands among the others.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place<'s> {
    /// The first of a segment. Of a single file whose name tells none, the number is not known.
    Opens(Option<u32>),
    /// The first of a run in an export, and what its header says.
    Starts(&'s Start),
    /// After another one of a segment.
    Within,
    /// After another one of an export.
    Runs,
}

/// The beginning of a run, as an export's header gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Start {
    pub(crate) stream: StreamId,
    pub(crate) first_seq: u64,
    pub(crate) prev_hash: Hash,
    /// The tree before it, where something in the run needs it.
    pub(crate) frontier: Option<Frontier>,
}

/// What is wrong with a record in its place.
#[derive(Debug)]
struct Wrong {
    what: String,
    range: Option<(u64, u64)>,
    /// Another place than that of the record at hand.
    at: Option<(u64, Spot)>,
}

impl Wrong {
    fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), range: None, at: None }
    }

    fn range(self, first: u64, last: u64) -> Self {
        Self { range: Some((first, last)), ..self }
    }
}

impl Stream {
    /// A stream of which nothing is read so far; `boot` is that of its files' names.
    pub(crate) fn of(boot: Option<Uuid>) -> Self {
        Self { boot, ..Self::default() }
    }

    /// The number that the next record has.
    pub(crate) fn next_seq(&self) -> u64 {
        self.runs.last().map_or(1, |run| run.last_seq + 1)
    }

    /// The number that is right in a place, where it is known.
    fn expected(&self, place: Place<'_>) -> Option<u64> {
        match place {
            Place::Starts(start) => Some(start.first_seq),
            // What stood before the first segment that is here is not known.
            Place::Opens(number) if self.runs.is_empty() && number != Some(1) => None,
            Place::Opens(_) | Place::Within | Place::Runs => Some(self.next_seq()),
        }
    }

    /// Something is in the place of a record that is none.
    pub(crate) fn refuse(&mut self, what: &str, spot: &Spot, place: Place<'_>) {
        let stream = self.id.as_ref().map(ToString::to_string);
        let seq = self.expected(place);
        self.findings.push(Finding { stream, seq, ..Finding::tampered(what).at(spot) });
        self.is_broken = true;
    }

    pub(crate) fn last_seq(&self) -> u64 {
        self.runs.last().map_or(0, |run| run.last_seq)
    }

    pub(crate) fn name(&self) -> String {
        self.id.as_ref().map_or_else(String::new, ToString::to_string)
    }

    /// Takes one line. What is wrong is kept as a finding; after a tampered one nothing more is taken.
    pub(crate) fn line(
        &mut self,
        line: &[u8],
        spot: &Spot,
        place: Place<'_>,
        trust: &mut Trust,
        anchors: &mut Anchors,
    ) {
        let expected = self.expected(place);
        if let Err(wrong) = self.take(line, spot, place, trust, anchors) {
            let finding = Finding { range: wrong.range, ..Finding::tampered(wrong.what) };
            let finding = match wrong.at {
                Some((seq, spot)) => Finding { seq: Some(seq), ..finding.at(&spot) },
                None => Finding { seq: expected, ..finding.at(spot).event(event_id(line)) },
            };
            let stream = self.id.as_ref().map(ToString::to_string);
            self.findings.push(Finding { stream, ..finding });
            self.is_broken = true;
        }
    }

    fn take(
        &mut self,
        line: &[u8],
        spot: &Spot,
        place: Place<'_>,
        trust: &mut Trust,
        anchors: &mut Anchors,
    ) -> Result<(), Wrong> {
        let record = Record::read(line).map_err(|fault| Wrong::new(fault.to_string()))?;
        self.check_stream(&record, place)?;
        let frontier = rotation(&record, place)?;
        self.place(&record, spot, place, frontier)?;
        self.records += 1;
        if record.members.value("checkpoint").is_some() {
            let text = record.members.string("checkpoint").unwrap_or_default();
            let note = SignedNote::from_base64(text)
                .map_err(|error| Wrong::new(format!("its checkpoint is none: {error}")))?;
            self.checkpoint(&note, &record, spot, trust, anchors)?;
        } else if record.kind == EventType::AuditCheckpoint.as_str() {
            return Err(Wrong::new("a checkpoint without a note"));
        }
        if record.kind == EventType::AuditRetentionPurge.as_str() && self.purges.len() < PURGES_MAX
        {
            let last = record.members.string("note").and_then(|note| note.split_once('-'));
            let last = last.and_then(|(_, last)| last.parse().ok());
            let segment = record.inner("resource", "id").and_then(segment);
            self.purges.extend(segment.map(|segment| Purge { segment, last, seq: record.seq }));
        }
        Ok(())
    }

    fn check_stream(&mut self, record: &Record<'_>, place: Place<'_>) -> Result<(), Wrong> {
        if let (None, Place::Starts(start)) = (&self.id, place) {
            self.id = Some(start.stream.clone());
        }
        let id = match &self.id {
            Some(id) if id.as_str() == record.stream => id,
            Some(id) => {
                return Err(Wrong::new(format!(
                    "a record of {} in the stream {id}",
                    record.stream
                )));
            }
            None => {
                let id: StreamId =
                    record.stream.parse().map_err(|error| Wrong::new(format!("{error}")))?;
                if self.boot.is_some_and(|boot| boot != id.boot()) {
                    return Err(Wrong::new("the file's name is that of another boot"));
                }
                self.id.insert(id)
            }
        };
        if id.boot().to_string() != record.boot {
            return Err(Wrong::new("its boot is not that of its stream"));
        }
        Ok(())
    }

    /// Puts a record behind the one before it, or at the beginning of a run.
    fn place(
        &mut self,
        record: &Record<'_>,
        spot: &Spot,
        place: Place<'_>,
        frontier: Option<Frontier>,
    ) -> Result<(), Wrong> {
        let expected = self.next_seq();
        if let Some(run) = self.runs.last_mut() {
            if record.seq == expected {
                if record.prev_hash != run.last_hash {
                    return Err(Wrong::new("it does not follow the record before it"));
                }
                if let Some(given) = frontier
                    && run.tree.is_some()
                    && run.whole_tree() != Some(&given)
                {
                    let what = "the tree that it carries is not that of the records before it";
                    return Err(Wrong::new(what).range(run.signed + 1, record.seq));
                }
                if record.members.value("previous").is_some() {
                    return Err(Wrong::new("only a first record names a stream before"));
                }
                run.last_seq = record.seq;
                run.last_hash = record.hash;
                run.last.clone_from(spot);
                run.tail.1 = run.tail.1.max(record.time);
                run.waiting.push_back(record.hash);
                return Ok(());
            }
            let is_gap = matches!(place, Place::Opens(_)) && record.seq > expected;
            if !is_gap {
                return Err(self.misplaced(record.seq));
            }
        }
        let tree = self.start(record, place, frontier)?;
        let is_tree_given = matches!(place, Place::Starts(start) if start.frontier.is_some());
        self.runs.push(Run {
            first_seq: record.seq,
            last_seq: record.seq,
            last_hash: record.hash,
            first: spot.clone(),
            last: spot.clone(),
            signed: 0,
            interval_s: None,
            unvouched: Vec::new(),
            tail: (record.time, record.time),
            tree,
            waiting: VecDeque::from([record.hash]),
            ahead: Frontier::default(),
            start_size: record.seq - 1,
            is_tree_given,
            met: None,
        });
        Ok(())
    }

    /// A record that does not follow. When the one before it followed none either, that is the wrong one.
    fn misplaced(&self, seq: u64) -> Wrong {
        let what = |seq, place| format!("the record {seq} stands in the place of {place}");
        if let [.., before, run] = self.runs.as_slice()
            && run.first_seq == run.last_seq
        {
            let place = before.last_seq + 1;
            let at = Some((place, run.first.clone()));
            return Wrong { at, ..Wrong::new(what(run.first_seq, place)) };
        }
        Wrong::new(what(seq, self.next_seq()))
    }

    /// The tree before the first record of a run.
    fn start(
        &mut self,
        record: &Record<'_>,
        place: Place<'_>,
        frontier: Option<Frontier>,
    ) -> Result<Option<Frontier>, Wrong> {
        if let Place::Starts(start) = place
            && (start.first_seq != record.seq || start.prev_hash != record.prev_hash)
        {
            return Err(Wrong::new("it is not the record that the header speaks of"));
        }
        if record.seq > 1 {
            if record.members.value("previous").is_some() {
                return Err(Wrong::new("only a first record names a stream before"));
            }
            return match place {
                Place::Starts(start) => Ok(start.frontier.clone()),
                Place::Opens(_) | Place::Within | Place::Runs if frontier.is_some() => Ok(frontier),
                Place::Opens(_) | Place::Within | Place::Runs => {
                    Err(Wrong::new(format!("the record {} stands in the place of 1", record.seq)))
                }
            };
        }
        if record.prev_hash != Hash::ZERO {
            return Err(Wrong::new("the first record follows none"));
        }
        if let Place::Opens(Some(number)) = place
            && number != 1
        {
            return Err(Wrong::new("a first record in a segment that is not the first"));
        }
        if let Some(previous) = record.members.value("previous") {
            let read = read_previous(previous);
            self.previous = Some(read.ok_or_else(|| Wrong::new("it names no stream before it"))?);
        }
        Ok(Some(Frontier::default()))
    }

    fn checkpoint(
        &mut self,
        note: &SignedNote,
        record: &Record<'_>,
        spot: &Spot,
        trust: &mut Trust,
        anchors: &mut Anchors,
    ) -> Result<(), Wrong> {
        let said = note.checkpoint();
        if said.origin != record.stream {
            return Err(Wrong::new(format!("its checkpoint is of {}", said.origin)));
        }
        if said.size >= record.seq {
            return Err(Wrong::new("its checkpoint speaks of records after it"));
        }
        if said.size < self.note_size {
            return Err(Wrong::new("its checkpoint speaks of fewer records than one before"));
        }
        self.note_size = said.size;
        let judged = trust.judge(note);
        if judged == Judged::Wrong {
            return Err(Wrong::new("the signature of its checkpoint is wrong"));
        }
        let name = record.stream;
        let Some(run) = self.runs.last_mut() else { return Ok(()) };
        if judged == Judged::Unvouched {
            if run.unvouched.len() == UNVOUCHED_MAX {
                run.unvouched.pop();
            }
            run.unvouched.push((record.seq, spot.clone()));
        }
        if said.size < run.start_size {
            // It was asked for before the first record that is here: nothing to compare it with.
            return Ok(());
        }
        if run.tree.is_none() {
            return Err(Wrong::new("the header before it gives no tree to go on from"));
        }
        let root = run.advance(said.size, name, anchors);
        if root != Some(said.root) {
            let last = if judged == Judged::Trusted { said.size } else { record.seq };
            let first = (run.signed + 1).max(run.first_seq).min(last);
            let what = "the root of its checkpoint is not that of the records before it";
            return Err(Wrong::new(what).range(first, last));
        }
        run.met.get_or_insert(record.seq);
        if judged == Judged::Trusted {
            run.met = Some(0);
            run.unvouched.retain(|(seq, _)| *seq > said.size);
            if said.size >= run.first_seq {
                run.signed = said.size;
                run.interval_s = Some(said.interval_s);
                run.tail = (record.time, record.time);
            }
        }
        Ok(())
    }

    /// Looks at the anchors that lie after the last checkpoint.
    pub(crate) fn finish(&mut self, anchors: &mut Anchors) {
        let name = self.name();
        if let Some(run) = self.runs.last_mut() {
            run.advance(run.last_seq, &name, anchors);
        }
    }

    /// Whether so many records wait for a root that no more are kept.
    pub(crate) fn is_full(&self) -> bool {
        self.runs.last().is_some_and(|run| run.waiting.len() >= WAITING_MAX)
    }
}

impl Run {
    /// Lets the tree grow to `size`, past the anchors up to there. Gives its root.
    fn advance(&mut self, size: u64, stream: &str, anchors: &mut Anchors) -> Option<Hash> {
        let tree = self.tree.as_mut()?;
        let first = (self.signed + 1).max(self.first_seq);
        loop {
            if anchors.is_at(stream, tree.size()) {
                anchors.meet(stream, tree.size(), tree.root(), first);
            }
            if tree.size() >= size {
                break;
            }
            tree.push(self.waiting.pop_front()?);
        }
        (tree.size() == size).then(|| tree.root())
    }
}

/// The tree that the first record of a segment carries.
fn rotation(record: &Record<'_>, place: Place<'_>) -> Result<Option<Frontier>, Wrong> {
    let is_rotation = record.kind == EventType::AuditRotate.as_str();
    let is_first = match place {
        Place::Opens(Some(number)) => Some(number > 1),
        Place::Opens(None) => Some(record.seq > 1),
        Place::Within => Some(false),
        Place::Starts(_) | Place::Runs => None,
    };
    match is_first {
        Some(true) if !is_rotation => {
            return Err(Wrong::new("a segment that does not begin with audit.rotate"));
        }
        Some(false) if is_rotation => {
            return Err(Wrong::new("audit.rotate where no segment begins"));
        }
        Some(_) | None => {}
    }
    if !is_rotation {
        return Ok(None);
    }
    let frontier = record.members.string("frontier").and_then(Frontier::parse);
    match frontier {
        Some(frontier) if frontier.size() == record.seq - 1 => Ok(Some(frontier)),
        _ => Err(Wrong::new("audit.rotate without the tree of the records before it")),
    }
}

fn read_previous(text: &[u8]) -> Option<Previous> {
    let mut members = Members::default();
    members.read(text).ok()?;
    Some(Previous {
        stream: members.string("stream")?.parse().ok()?,
        seq: members.number("seq").filter(|seq| *seq > 0)?,
        hash: Hash::parse(members.string("hash")?.as_bytes())?,
    })
}

/// A segment as purge records name it.
fn segment(name: &str) -> Option<SegmentName> {
    SegmentName::parse(&format!("{name}.jsonl")).map(|(name, _)| name)
}

/// Records that wait for a root: 32 MB of hashes.
const WAITING_MAX: usize = 1_000_000;
const PURGES_MAX: usize = 100_000;
const UNVOUCHED_MAX: usize = 4_096;
