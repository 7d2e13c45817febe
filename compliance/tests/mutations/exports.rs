//! Exports, whole and of a range, and edits of them.

use std::path::Path;

use compliance::export::Format;
use compliance::{Verdict, write_set};
use jiff::Timestamp;

use crate::build::{Log, Random};
use crate::forge::{read, seq};
use crate::judge;

/// A range whose ends are times of the log.
fn range(log: &Log, random: &mut Random) -> (Option<Timestamp>, Option<Timestamp>) {
    let mut time = |log: &Log| {
        let segment = &log.segments[random.below(log.segments.len())];
        let record = read(&segment.lines[random.below(segment.lines.len())]);
        record["time"].as_str().unwrap().parse::<Timestamp>().unwrap()
    };
    let (one, other) = (time(log), time(log));
    match random.below(4) {
        0 => (None, None),
        1 => (Some(one), None),
        2 => (None, Some(one)),
        _ => (Some(one.min(other)), Some(one.max(other))),
    }
}

pub fn export(dir: &Path, log: &Log, random: &mut Random) -> Vec<u8> {
    let (from, to) = range(log, random);
    let mut bytes = Vec::new();
    write_set(dir, Format::Jsonl, from, to, &mut bytes).unwrap();
    bytes
}

pub fn clean(dir: &Path, log: &Log, random: &mut Random, state: u64) {
    let (from, to) = range(log, random);
    let path = dir.join("export");
    let mut bytes = Vec::new();
    let summary = write_set(dir, Format::Jsonl, from, to, &mut bytes).unwrap();
    std::fs::write(&path, &bytes).unwrap();

    let report = judge(&path, &log.keys, Vec::new());

    assert_eq!(report.records, summary.records);
    let name = format!("random {state} {from:?} {to:?} {summary:?}\n{report}");
    assert!(report.verdict == Verdict::Intact || !summary.is_covered, "{name}");
    assert_ne!(report.verdict, Verdict::Tampered, "{name}");
}

pub struct Edit {
    pub name: &'static str,
    pub bytes: Vec<u8>,
    /// The place that must be named.
    pub seq: Option<u64>,
}

pub fn edit(export: &[u8], random: &mut Random) -> Option<Edit> {
    let mut lines: Vec<Vec<u8>> =
        export.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    let at = random.below(lines.len());
    let is_record = lines[at].starts_with(b"{\"actor\"");
    let place = is_record.then(|| seq(&lines[at]));
    let (name, seq) = match random.below(12) {
        0 | 1 => {
            let byte = random.below(lines[at].len() - 1);
            lines[at][byte] ^= 1 << random.below(8);
            ("flip a bit", place)
        }
        2 => {
            lines.remove(at);
            // Without the last record, the end shows it: at the same place.
            ("drop a line", place.filter(|_| !is_header(lines.get(at))))
        }
        3 => {
            let line = lines[at].clone();
            lines.insert(at, line);
            ("duplicate a line", place.map(|seq| seq + 1))
        }
        4 if at + 1 < lines.len() && lines[at] != lines[at + 1] => {
            lines.swap(at, at + 1);
            ("reorder two lines", None)
        }
        5 => {
            lines.truncate(at);
            ("cut the tail", None)
        }
        6 => {
            let length = random.below(lines[at].len());
            lines[at].truncate(length);
            lines.truncate(at + 1);
            ("cut within a line", None)
        }
        7 => {
            let end = lines.len() - 1;
            lines[end] = b"{\"end\":{\"streams\":[]}}\n".to_vec();
            if end == 0 {
                return None;
            }
            ("an end that tells of nothing", None)
        }
        8 => {
            let header = lines.iter().position(|line| line.starts_with(b"{\"export\""))?;
            let mut value = read(&lines[header]);
            match random.below(4) {
                0 => {
                    value["export"]["first_seq"] =
                        (value["export"]["first_seq"].as_u64()? + 1).into()
                }
                1 => value["export"]["prev_hash"] = "11".repeat(32).into(),
                2 => {
                    let text = value["export"]["frontier"].as_str()?.to_owned();
                    let size = compliance::Frontier::parse(&text)?.size();
                    let mut tree = compliance::Frontier::default();
                    (0..size).for_each(|_| tree.push(compliance::Hash::ZERO));
                    value["export"]["frontier"] = tree.to_text().into();
                }
                _ => {
                    value["export"]["frontier"].as_str()?;
                    value["export"].as_object_mut()?.remove("frontier");
                }
            }
            lines[header] = format!("{value}\n").into_bytes();
            ("edit a header", None)
        }
        9 => {
            let end = lines.len() - 1;
            let mut value = read(&lines[end]);
            let stream = value["end"]["streams"].get_mut(0)?;
            stream["records"] = (stream["records"].as_u64()? + 1).into();
            lines[end] = format!("{value}\n").into_bytes();
            ("edit the end", None)
        }
        10 => {
            let line = lines[at].clone();
            lines.push(line);
            ("add a line after the end", None)
        }
        11 => {
            let last = lines.len() - 1;
            let byte = lines[last].len() - 1;
            lines[last][byte] ^= 1 << random.below(8);
            ("flip a bit of the last line feed", None)
        }
        _ => return None,
    };
    Some(Edit { name, bytes: lines.concat(), seq })
}

fn is_header(line: Option<&Vec<u8>>) -> bool {
    line.is_none_or(|line| line.starts_with(b"{\"export\""))
}
