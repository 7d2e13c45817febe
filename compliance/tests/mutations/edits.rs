//! Edits of a directory.

use std::fs;
use std::path::Path;

use compliance::{Earlier, Finding, Report, SegmentName, SignedNote, Verdict};
use serde_json::json;

use crate::build::{self, Log, Random};
use crate::forge::{Notes, read, rehash, seal, seq};
use crate::signer::Signer;

pub struct Edit {
    pub name: &'static str,
    pub log: Log,
    pub files: Box<dyn Fn(&Path)>,
    pub anchors: Vec<SignedNote>,
    pub expected: Option<Expected>,
}

/// Where the first bad record is.
#[derive(Debug)]
pub struct Expected {
    stream: String,
    /// The place that must be named; or with a range, that must lie in it.
    seq: u64,
    /// Which line of its file.
    line: u64,
    verdict: Option<Verdict>,
}

impl Expected {
    pub fn is_met(&self, report: &Report) -> bool {
        // Of what is missing there is no first; of what was changed there is.
        let many = if report.verdict == Verdict::Incomplete { usize::MAX } else { 1 };
        report.findings.iter().take(many).any(|finding| self.is_named_by(finding))
            && self.verdict.is_none_or(|verdict| verdict == report.verdict)
    }

    fn is_named_by(&self, finding: &Finding) -> bool {
        if finding.range.is_none()
            && (finding.stream.is_none() || finding.seq.is_none())
            && finding.seq.is_none_or(|seq| seq == self.seq)
        {
            // The first line that is here of a stream: its file is all that is known.
            let boot = self.stream.rsplit('/').next().unwrap();
            return finding.file.as_ref().is_some_and(|file| file.contains(boot))
                && finding.line.is_some_and(|line| line == 1 || line == self.line);
        }
        let is_in = |(from, to)| (from..=to).contains(&self.seq);
        let is_there = finding.range.map_or(finding.seq == Some(self.seq), is_in);
        let is_earlier = |one: &Earlier| one.stream == self.stream && is_in(one.range);
        is_there && finding.stream.as_deref() == Some(&self.stream)
            || finding.earlier.iter().any(is_earlier)
    }
}

/// A line: index of its segment, and in it.
type At = (usize, usize);

fn line((segment, line): At, log: &Log) -> &Vec<u8> {
    &log.segments[segment].lines[line]
}

fn stream(line: &[u8]) -> String {
    read(line)["stream"].as_str().unwrap().into()
}

fn kind(line: &[u8]) -> String {
    read(line)["event"]["type"].as_str().unwrap().into()
}

/// Any record but the last, over which no signature lies.
fn any(log: &Log, random: &mut Random) -> At {
    loop {
        let segment = random.below(log.segments.len());
        let at = (segment, random.below(log.segments[segment].lines.len()));
        let last = log.segments.len() - 1;
        if at != (last, log.segments[last].lines.len() - 1) {
            return at;
        }
    }
}

fn checkpoints(log: &Log) -> Vec<At> {
    let segments = log.segments.iter().enumerate();
    let all = segments.flat_map(|(index, one)| (0..one.lines.len()).map(move |at| (index, at)));
    all.filter(|at| kind(line(*at, log)) == "audit.checkpoint").collect()
}

fn at(place: At, log: &Log) -> Expected {
    let line = line(place, log);
    Expected {
        stream: stream(line),
        seq: seq(line),
        line: place.1 as u64 + 1,
        verdict: Some(Verdict::Tampered),
    }
}

fn replace(record: &mut Vec<u8>, from: &str, to: &str) -> bool {
    let text = String::from_utf8(record.clone()).unwrap();
    let edited = text.replacen(from, to, 1);
    *record = edited.clone().into_bytes();
    edited != text
}

/// The numbers of the edits, and how many names they have.
const NUMBERS: usize = 38;
pub const KINDS: usize = 37;

/// One edit; `None` when this log has nothing to do it with.
#[expect(clippy::too_many_lines, reason = "a list of edits")]
pub fn edit(original: &Log, random: &mut Random) -> Option<Edit> {
    let mut log = original.clone();
    let mut files: Box<dyn Fn(&Path)> = Box::new(|_| {});
    let mut anchors = Vec::new();
    let place @ (segment, index) = any(&log, random);
    let mut expected = Some(at(place, &log));
    let boots = log.boots();
    let last_segment = log.segments.len() - 1;
    let is_last_line = index + 1 == log.segments[segment].lines.len();
    let boot = log.segments[segment].boot;
    let is_first_of_stream =
        index == 0 && log.segments[..segment].iter().all(|one| one.boot != boot);
    let record = &mut log.segments[segment].lines[index];
    let name = match random.below(NUMBERS) {
        0 => {
            let byte = random.below(record.len());
            record[byte] ^= 1 << random.below(8);
            "flip a bit"
        }
        1 => {
            let byte = random.below(record.len());
            record[byte] ^= random.between(1, 255) as u8;
            "change a byte"
        }
        2 => {
            log.segments[segment].lines.remove(index);
            // The last of a file may be missing as if it was not written.
            expected.as_mut()?.verdict = None;
            if log.segments[segment].lines.is_empty() && segment == last_segment {
                return None;
            }
            "drop a record"
        }
        3 => {
            let copy = record.clone();
            log.segments[segment].lines.insert(index + 1, copy);
            expected.as_mut()?.seq += 1;
            "duplicate a record"
        }
        4 if !is_last_line => {
            log.segments[segment].lines.swap(index, index + 1);
            "reorder two records"
        }
        5 => {
            let other = any(original, random);
            if other == place {
                return None;
            }
            *record = line(other, original).clone();
            "splice a record of this log"
        }
        6 => {
            let other = build::log(random, false);
            *record = line(any(&other, random), &other).clone();
            "splice a record of another log"
        }
        7 => {
            // All that comes after in the same boot goes too.
            let boot = log.segments[segment].boot;
            log.segments[segment].lines.truncate(index);
            let mut number = 0;
            log.segments.retain(|one| {
                number += 1;
                number - 1 <= segment || one.boot != boot
            });
            anchors = original.anchors();
            expected.as_mut()?.verdict = Some(Verdict::Incomplete);
            if is_first_of_stream {
                expected = None;
            }
            "cut the tail of a stream"
        }
        8 => {
            let length = random.below(record.len() - 1) + 1;
            log.segments[segment].rest = record[..length].to_vec();
            log.segments[segment].lines.truncate(index);
            anchors = original.anchors();
            expected.as_mut()?.verdict = None;
            if is_first_of_stream {
                expected = None;
            }
            "cut a file within a line"
        }
        9 => {
            let all = checkpoints(&log);
            let (one, other) = (all[random.below(all.len())], all[random.below(all.len())]);
            if one == other {
                return None;
            }
            let (first, second) = (line(one, original).clone(), line(other, original).clone());
            log.segments[one.0].lines[one.1] = second;
            log.segments[other.0].lines[other.1] = first;
            expected = Some(at(one.min(other), original));
            "swap two checkpoints"
        }
        10 => {
            let all = checkpoints(&log);
            let (one, other) = (all[random.below(all.len())], all[random.below(all.len())]);
            let notes = [one, other].map(|place| read(line(place, original))["checkpoint"].clone());
            if notes[0] == notes[1] {
                return None;
            }
            for (place, note) in [(one, &notes[1]), (other, &notes[0])] {
                let record = &mut log.segments[place.0].lines[place.1];
                let mut value = read(record);
                value["checkpoint"] = note.clone();
                *record = value.to_string().into_bytes();
            }
            rehash(&mut log, Notes::Keep);
            anchors = original.anchors();
            expected = None;
            "swap two notes, and hash anew"
        }
        11 => {
            let all = checkpoints(&log);
            let gone = all[random.below(all.len())];
            log.segments[gone.0].lines.remove(gone.1);
            if log.segments[gone.0].lines.is_empty() {
                return None;
            }
            rehash(&mut log, Notes::Strip);
            anchors = original.anchors();
            expected = None;
            // The last one says nothing that an anchor does not say too.
            if gone == *all.last()? {
                return None;
            }
            "remove a checkpoint, and hash anew"
        }
        12 => {
            // The whole directory as it was at some time.
            if segment == last_segment && is_last_line {
                return None;
            }
            log.segments.truncate(segment + 1);
            log.segments[segment].lines.truncate(index + 1);
            log.segments[segment].rest.clear();
            if segment == last_segment && index + 2 >= original.segments[segment].lines.len() {
                return None;
            }
            anchors = original.anchors();
            expected = None;
            "replay an older state"
        }
        13..=16 => {
            let mut value = read(record);
            value["outcome"] = "denied".into();
            *record = value.to_string().into_bytes();
            anchors = original.anchors();
            let other = Signer::ecdsa("tollgate");
            match random.below(3) {
                0 => {
                    rehash(&mut log, Notes::Keep);
                    "edit, and hash anew with the notes kept"
                }
                1 => {
                    rehash(&mut log, Notes::Strip);
                    "edit, and hash anew with the notes stripped"
                }
                _ => {
                    rehash(&mut log, Notes::Sign(&other));
                    expected = None;
                    "edit, and hash anew with the notes signed by another key"
                }
            }
        }
        17 => {
            let other = Signer::ed25519("tollgate");
            rehash(&mut log, Notes::SignAll(&other));
            expected = None;
            "sign everything with another key"
        }
        18 => {
            if segment == 0 || log.segments[segment].boot != log.segments[segment - 1].boot {
                return None;
            }
            let lines = log.segments[segment].lines.clone();
            log.segments[segment].lines = log.segments[segment - 1].lines.clone();
            log.segments[segment - 1].lines = lines;
            expected = None;
            "swap two segments"
        }
        19 => {
            let rotation = log
                .segments
                .iter()
                .position(|one| read(&one.lines[0]).get("frontier").is_some())?;
            let mut value = read(&log.segments[rotation].lines[0]);
            let text = value["frontier"].as_str()?.to_owned();
            let other = compliance::Frontier::parse(&text).map(|tree| {
                let mut other = compliance::Frontier::default();
                (0..tree.size()).for_each(|_| other.push(compliance::Hash::ZERO));
                other.to_text()
            });
            value["frontier"] = other?.into();
            seal(&mut value);
            log.segments[rotation].lines[0] = value.to_string().into_bytes();
            let mut expectation = at((rotation, 0), original);
            // With the segments before it purged, the next record shows it.
            expectation.seq += u64::from(rotation == 0);
            expected = (rotation > 0).then_some(expectation);
            "edit the tree of a rotation"
        }
        20 => {
            if !replace(record, "\"time\":\"2026", "\"time\":\"2025") {
                return None;
            }
            "rewrite a time"
        }
        21 => {
            let mut value = read(record);
            value["time"] = "2025-01-01T00:00:00.000000Z".into();
            *record = value.to_string().into_bytes();
            rehash(&mut log, Notes::Keep);
            "rewrite a time, and hash anew"
        }
        22 => {
            if !replace(record, "acquirer", "\\u0061cquirer") {
                return None;
            }
            "escape a letter"
        }
        23 => {
            if !replace(record, "acquirer", "acquire\u{301}r") {
                return None;
            }
            "add a combining accent"
        }
        24 => {
            let value = read(record);
            let members = value.as_object()?.iter().rev();
            let members: Vec<_> =
                members.map(|(key, value)| format!("{}:{value}", json!(key))).collect();
            *record = format!("{{{}}}", members.join(",")).into_bytes();
            "put the members in another order"
        }
        25 => {
            replace(record, "\":", "\": ");
            "add a space"
        }
        26 => {
            let number = "\"port\":50000";
            let other = ["5e4", "50000.0", "050000", "+50000"][random.below(4)];
            replace(record, number, &format!("\"port\":{other}"));
            "spell a number otherwise"
        }
        27 => {
            let hash = read(record)["hash"].as_str()?.to_owned();
            if !replace(record, &hash, &hash.to_uppercase()) {
                return None;
            }
            "spell a hash in upper case"
        }
        28 => {
            if segment == last_segment {
                return None;
            }
            log.segments.remove(segment);
            expected = None;
            "delete a segment"
        }
        29 => {
            let boot = boots[random.below(boots.len())];
            let is_last = Some(&boot) == boots.last();
            log.segments.retain(|one| one.boot != boot);
            if is_last {
                anchors = original.anchors();
            }
            expected = None;
            "delete a stream"
        }
        30 => {
            // More of the same, well chained, at the end of a stream that ended long ago.
            let end = log.segments.iter().rposition(|one| Some(&one.boot) != boots.last())?;
            let of = &mut log.segments[end];
            of.rest.clear();
            let before = read(of.lines.last()?);
            let mut value = before.clone();
            value
                .as_object_mut()?
                .retain(|name, _| name != "checkpoint" && name != "previous" && name != "frontier");
            value["event"]["type"] = "pin.translate".into();
            value["seq"] = (before["seq"].as_u64()? + 1).into();
            value["prev_hash"] = before["hash"].clone();
            seal(&mut value);
            of.lines.push(value.to_string().into_bytes());
            let place = (end, log.segments[end].lines.len() - 1);
            expected = Some(at(place, &log));
            "add a record to an old stream"
        }
        31 => {
            let (boot, number) = (log.segments[segment].boot, log.segments[segment].number);
            let sealed = log.segments[segment].is_sealed;
            let to = match random.below(3) {
                0 => SegmentName { boot, number: number + 7 },
                1 => SegmentName { boot: random.uuid(), number },
                _ => SegmentName { boot: boots[0], number: number + 100 },
            };
            let from = SegmentName { boot, number };
            files = Box::new(move |dir| {
                let name = |one: SegmentName| if sealed { one.sealed() } else { one.open() };
                fs::rename(dir.join(name(from)), dir.join(name(to))).unwrap();
            });
            expected = None;
            "rename a segment"
        }
        32 => {
            record.push(b'\r');
            "end a line with CR LF"
        }
        33 => {
            let start = *[b"\xEF\xBB\xBF".as_slice(), b"\n", b" "].get(random.below(3))?;
            *record = [start, record.as_slice()].concat();
            "put bytes before a line"
        }
        34 => {
            let other = Segment::other_form(&log, segment, index);
            files = other;
            expected = None;
            "put another segment of the same number beside it"
        }
        35 => {
            // A boot of the attacker's after one that has a next: a fork.
            if boots.len() < 2 {
                return None;
            }
            let end = log.segments.iter().position(|one| Some(&one.boot) == boots.last())?;
            let mut copy = log.segments[end].clone();
            let boot = random.uuid();
            let old = copy.boot.to_string();
            read(&copy.lines[0]).get("previous")?;
            for line in &mut copy.lines {
                let text = String::from_utf8(line.clone()).unwrap();
                *line = text.replacen(&old, &boot.to_string(), 1).into_bytes();
            }
            copy.boot = boot;
            copy.number = 1;
            log.segments.push(copy);
            for line in &mut log.segments.last_mut()?.lines {
                let mut value = read(line);
                let name = format!("tollgate/gateway-1/{boot}");
                value["stream"] = name.into();
                value["boot"] = boot.to_string().into();
                *line = value.to_string().into_bytes();
            }
            rehash_last(&mut log);
            expected = None;
            "fork the log"
        }
        36 => {
            let mut value = read(record);
            value["seq"] = (value["seq"].as_u64()? + 1).into();
            seal(&mut value);
            *record = value.to_string().into_bytes();
            if index == 0 {
                expected.as_mut()?.verdict = None;
            }
            "renumber a record"
        }
        37 => {
            if is_first_of_stream {
                return None;
            }
            let mut value = read(record);
            value["outcome"] = "denied".into();
            seal(&mut value);
            *record = value.to_string().into_bytes();
            // Its own hash is right: the next record shows it.
            expected.as_mut()?.seq += 1;
            if is_last_line {
                expected = None;
            }
            if kind(&log.segments[segment].lines[index]) == "audit.checkpoint" {
                expected = None
            }
            "edit, and hash one record anew"
        }
        _ => return None,
    };
    Some(Edit { name, log, files, anchors, expected })
}

/// Chains the last segment alone, and takes its notes away.
fn rehash_last(log: &mut Log) {
    let Some(segment) = log.segments.pop() else { return };
    let mut alone = Log { segments: vec![segment], ..log.clone() };
    rehash(&mut alone, Notes::Strip);
    log.segments.append(&mut alone.segments);
}

struct Segment;

impl Segment {
    /// The other form of a segment, without one of its records.
    fn other_form(log: &Log, segment: usize, index: usize) -> Box<dyn Fn(&Path)> {
        let mut other = log.segments[segment].clone();
        other.lines.remove(index);
        other.is_sealed = !other.is_sealed;
        let log = Log { segments: vec![other], ..log.clone() };
        Box::new(move |dir| log.write(dir))
    }
}
