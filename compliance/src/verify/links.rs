//! Judges what only several streams together show: which follows which, what is missing, and how far
//! signatures reach.
//!
//! The first record of a stream names the last one of the stream before. So a signed root over that first
//! record covers the whole stream before, and all before it, as far as no gap lies between.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::report::{Earlier, Finding, StreamReport};
use super::stream::{Purge, Stream};
use crate::SegmentName;

/// Streams that may be linked: those of a directory, or of one file.
#[derive(Debug, Default)]
pub(crate) struct Log {
    /// A replica's directory: what is missing must have been purged.
    pub(crate) is_whole: bool,
    /// Each after the one that it follows.
    pub(crate) streams: Vec<Stream>,
    pub(crate) missing: Vec<Missing>,
    pub(crate) findings: Vec<Finding>,
}

/// Segments that are not here.
#[derive(Debug)]
pub(crate) struct Missing {
    /// Index of the stream.
    pub(crate) stream: usize,
    pub(crate) boot: Uuid,
    pub(crate) first: u32,
    pub(crate) last: u32,
}

/// Segments that were purged, and the last record of each, where that is told.
pub(crate) type Purged = BTreeMap<SegmentName, Option<u64>>;

/// The verdict on a log.
#[derive(Debug, Default)]
pub(crate) struct Judgement {
    pub(crate) findings: Vec<Finding>,
    pub(crate) streams: Vec<StreamReport>,
    pub(crate) purged: Purged,
    /// What each stream follows, back to the last signature.
    pub(crate) earlier: BTreeMap<String, Vec<Earlier>>,
}

impl Log {
    pub(crate) fn judge(&self, is_range: bool) -> Judgement {
        let mut links = Links::new(self);
        links.find();
        let covered: Vec<bool> =
            (0..self.streams.len()).map(|index| links.is_covered(index)).collect();
        let purged = self.purged(&covered);
        let mut judgement = Judgement::default();
        let mut findings = self.findings.clone();
        for (index, stream) in self.streams.iter().enumerate() {
            let earlier = links.earlier(index);
            let named = std::mem::take(&mut links.findings[index]);
            findings.extend(stream.findings.iter().cloned().chain(named).map(|finding| {
                let earlier = finding.range.filter(|range| range.0 == 1).map(|_| earlier.clone());
                Finding { earlier: earlier.unwrap_or_default(), ..finding }
            }));
            judgement.earlier.insert(stream.name(), earlier);
            if !stream.is_broken {
                self.judge_end(index, &links, &covered, &mut findings);
            }
            if !is_range {
                self.judge_missing(index, &links, &purged, &mut findings);
            }
            judgement.streams.extend(report(stream, covered[index]));
        }
        if !is_range {
            self.judge_beginnings(&links, &mut findings);
        }
        judgement.findings = findings;
        judgement.purged = purged;
        judgement
    }

    /// The segments whose purge stands under a signature.
    fn purged(&self, covered: &[bool]) -> Purged {
        let mut purged = Purged::new();
        for (stream, covered) in self.streams.iter().zip(covered) {
            for Purge { segment, last, seq } in &stream.purges {
                let mut runs = stream.runs.iter().enumerate();
                let is_signed = runs.any(|(index, run)| {
                    let is_last = index + 1 == stream.runs.len();
                    (run.first_seq..=run.last_seq).contains(seq)
                        && (*seq <= run.signed || is_last && *covered)
                });
                if is_signed {
                    let known = purged.entry(*segment).or_default();
                    *known = (*known).max(*last);
                }
            }
        }
        purged
    }

    /// How far signatures reach in each run of a stream.
    fn judge_end(
        &self,
        index: usize,
        links: &Links<'_>,
        covered: &[bool],
        findings: &mut Vec<Finding>,
    ) {
        let stream = &self.streams[index];
        let name = stream.name();
        for (number, run) in stream.runs.iter().enumerate() {
            let is_last = number + 1 == stream.runs.len();
            if run.is_start_open(is_last && covered[index]) {
                let what = "no signed checkpoint proves the tree before the first record";
                findings.push(Finding::incomplete(what).at(&run.first).seq(&name, run.first_seq));
                continue;
            }
            if is_last && covered[index] {
                continue;
            }
            let is_followed_by_broken =
                is_last && links.next[index].is_some_and(|next| self.streams[next].is_broken);
            if let Some((seq, spot)) = run.unvouched.first() {
                let what = "a checkpoint signed by a key that nothing vouches for";
                let finding = if is_followed_by_broken {
                    Finding::incomplete(what)
                } else {
                    Finding::tampered(what)
                };
                findings.push(finding.at(spot).seq(&name, *seq));
                continue;
            }
            let Some((tail_s, interval_s)) = self.tail(index, number, links) else {
                let what = "no checkpoint is signed by a key that counts";
                findings.push(Finding::incomplete(what).at(&run.first).seq(&name, run.first_seq));
                continue;
            };
            if tail_s > interval_s.saturating_mul(INTERVALS_MAX) {
                let what = format!(
                    "the last {} records are under no signature: {tail_s} s, and a checkpoint is due \
                     every {interval_s} s",
                    run.last_seq - run.signed.max(run.first_seq - 1)
                );
                findings.push(Finding::incomplete(what).at(&run.last).seq(&name, run.signed + 1));
            }
        }
    }

    /// Seconds without a signature at the end of a run, and the interval that was promised.
    fn tail(&self, index: usize, number: usize, links: &Links<'_>) -> Option<(u64, u64)> {
        let (mut index, mut number) = (index, number);
        let mut tail_s = 0_u64;
        // Along streams that have no signature so far. There are no circles: `find` has cut them.
        loop {
            let run = self.streams[index].runs.get(number)?;
            tail_s = tail_s.saturating_add(run.tail_s());
            if let Some(interval_s) = run.interval_s {
                return Some((tail_s, interval_s));
            }
            index = links.before[index].filter(|_| number == 0 && run.first_seq == 1)?;
            number = self.streams[index].runs.len().checked_sub(1)?;
        }
    }

    /// What was purged is not missing.
    fn judge_missing(
        &self,
        index: usize,
        links: &Links<'_>,
        purged: &Purged,
        findings: &mut Vec<Finding>,
    ) {
        let stream = &self.streams[index];
        let name = stream.name();
        for missing in self.missing.iter().filter(|missing| missing.stream == index) {
            let of = |number| SegmentName { boot: missing.boot, number };
            let known = purged.range(of(missing.first)..=of(missing.last)).count() as u64;
            let all = u64::from(missing.last - missing.first) + 1;
            if known < all {
                let (first, last) = (of(missing.first), missing.last);
                let what = format!(
                    "{first} to {last:06}: {} segments are missing, and no signed record tells of \
                     their purge",
                    all - known
                );
                findings.push(Finding { stream: Some(name.clone()), ..Finding::incomplete(what) });
            }
        }
        let Some(previous) = &stream.previous else { return };
        let Some(run) = stream.runs.first() else { return };
        let boot = previous.stream.boot();
        let all = SegmentName { boot, number: 0 }..=SegmentName { boot, number: u32::MAX };
        // That some of its segments were purged does not tell that its last one was.
        let is_purged = purged.range(all).any(|(_, last)| *last >= Some(previous.seq));
        match links.named[index] {
            None if self.is_whole && !is_purged => {
                let what = format!("the stream before it, {}, is not here", previous.stream);
                findings.push(Finding::incomplete(what).at(&run.first).seq(&name, 1));
            }
            Some(before) => {
                let before = &self.streams[before];
                if !before.is_broken && before.last_seq() < previous.seq && !is_purged {
                    let what = format!(
                        "it ends at {}, and {name} tells of {} records",
                        before.last_seq(),
                        previous.seq
                    );
                    let finding = Finding::incomplete(what);
                    findings.push(finding.seq(&before.name(), before.last_seq() + 1));
                }
            }
            None => {}
        }
    }

    /// A replica has one first stream.
    fn judge_beginnings(&self, links: &Links<'_>, findings: &mut Vec<Finding>) {
        let mut beginnings: BTreeMap<String, usize> = BTreeMap::new();
        for (index, stream) in self.streams.iter().enumerate() {
            let Some(id) = stream.id.as_ref().filter(|_| links.named[index].is_none()) else {
                continue;
            };
            if let Some(first) = beginnings.insert(replica(id.as_str()), index) {
                let what = format!("nothing links it to {}", self.streams[first].name());
                let seq = stream.runs.first().map_or(1, |run| run.first_seq);
                findings.push(Finding::incomplete(what).seq(id.as_str(), seq));
            }
        }
    }
}

/// Which stream follows which.
struct Links<'l> {
    log: &'l Log,
    /// The stream that the first record names, whatever it says of it.
    named: Vec<Option<usize>>,
    /// The same, when what it says is right.
    before: Vec<Option<usize>>,
    next: Vec<Option<usize>>,
    findings: Vec<Vec<Finding>>,
}

impl<'l> Links<'l> {
    fn new(log: &'l Log) -> Self {
        let all = log.streams.len();
        Self {
            log,
            named: vec![None; all],
            before: vec![None; all],
            next: vec![None; all],
            findings: vec![Vec::new(); all],
        }
    }

    fn find(&mut self) {
        let streams = &self.log.streams;
        let by_name: BTreeMap<&str, usize> = (streams.iter().enumerate())
            .filter_map(|(index, stream)| Some((stream.id.as_ref()?.as_str(), index)))
            .collect();
        let mut named = BTreeSet::new();
        for (index, stream) in streams.iter().enumerate() {
            let (Some(previous), Some(run)) = (&stream.previous, stream.runs.first()) else {
                continue;
            };
            let refused =
                |what: &str| Finding::tampered(what).at(&run.first).seq(&stream.name(), 1);
            if !named.insert(&previous.stream) {
                let what = "another stream follows the same one";
                self.findings[index].push(refused(what));
            }
            let Some(&before) = by_name.get(previous.stream.as_str()) else { continue };
            self.named[index] = Some(before);
            if before >= index {
                // Streams stand in the order of their links, unless these go in a circle.
                self.findings[index].push(refused("it follows itself"));
                continue;
            }
            self.next[before] = Some(index);
            let earlier = &streams[before];
            let Some(last) = earlier.runs.last().filter(|_| !earlier.is_broken) else { continue };
            if last.last_seq > previous.seq {
                let what = format!("{} says that it ends at {}", stream.name(), previous.seq);
                let finding = Finding::tampered(what).at(&last.last);
                self.findings[before].push(finding.seq(&earlier.name(), previous.seq + 1));
            } else if last.last_seq == previous.seq && last.last_hash != previous.hash {
                let what = format!("{} names another last record", stream.name());
                let finding = Finding::tampered(what).at(&last.last);
                let first = (last.signed + 1).max(last.first_seq).min(previous.seq);
                self.findings[before]
                    .push(finding.seq(&earlier.name(), previous.seq).range(first, previous.seq));
            } else if last.last_seq == previous.seq {
                self.before[index] = Some(before);
            }
        }
    }

    /// What the first record of a stream follows, back to the last signature.
    fn earlier(&self, index: usize) -> Vec<Earlier> {
        let mut earlier = Vec::new();
        let mut index = index;
        while let Some(before) = self.before[index] {
            let stream = &self.log.streams[before];
            let Some(run) = stream.runs.last().filter(|run| run.signed < run.last_seq) else {
                break;
            };
            let range = ((run.signed + 1).max(run.first_seq), run.last_seq);
            earlier.push(Earlier { stream: stream.name(), range });
            if run.signed > 0 || run.first_seq > 1 {
                break;
            }
            index = before;
        }
        earlier
    }

    /// Whether a stream that follows has a signature over the last record of this one.
    fn is_covered(&self, index: usize) -> bool {
        let mut index = index;
        while let Some(next) = self.next[index].filter(|next| self.before[*next] == Some(index)) {
            let runs = &self.log.streams[next].runs;
            if runs.first().is_some_and(|run| run.first_seq == 1 && run.signed > 0) {
                return true;
            }
            if runs.len() != 1 {
                return false;
            }
            index = next;
        }
        false
    }
}

fn report(stream: &Stream, is_covered: bool) -> Option<StreamReport> {
    let (first, last) = (stream.runs.first()?, stream.runs.last()?);
    let signed = stream.runs.iter().map(|run| run.signed).max().unwrap_or(0);
    Some(StreamReport {
        stream: stream.name(),
        first_seq: first.first_seq,
        last_seq: last.last_seq,
        records: stream.records,
        signed_seq: if is_covered { last.last_seq } else { signed },
    })
}

/// `<deployment>/<replica>`
fn replica(stream: &str) -> String {
    stream.rsplit_once('/').map_or(stream, |(replica, _)| replica).to_owned()
}

/// Intervals that may pass without a signature.
const INTERVALS_MAX: u64 = 3;
