//! Reads a log, an export or a proof, and says whether it is as it was written: offline, from the files alone.
//!
//! Nothing is believed because it is there. Bytes are under their record's hash, a record under the next one's,
//! all of them under a root, and a root under the signature of a key that was given. Tampered: a record, or what
//! binds it, was changed. Incomplete: something that must be there is not, or is under no signature.

mod anchors; // what others have kept
mod directory; // segments -> streams
mod file; // one file -> streams
mod links; // streams -> verdict
pub(crate) mod proof; // one record, without its log
pub(crate) mod record; // one line
mod report; // for people and programs
mod stream; // record after record
pub(crate) mod trust; // whose signatures count

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::{SignedNote, VerifierKey};
use anchors::Anchors;
use links::{Log, Purged};
use stream::Stream;
use trust::Trust;

pub use anchors::{NotAnchors, read_anchors};
pub use report::{Anchored, Earlier, Finding, KeyReport, Report, StreamReport, Verdict};
pub(crate) use stream::Start;

/// What to verify with.
#[derive(Default)]
pub struct Options<'o> {
    /// Keys whose signatures count. With none, the first that signs is taken from the files.
    pub keys: Vec<VerifierKey>,
    /// Notes that the log must still agree with.
    pub anchors: Vec<SignedNote>,
    /// The first and last record to judge, of a log that is one stream.
    pub range: Option<(u64, u64)>,
    /// Told now and then how many records were read.
    pub progress: Option<&'o mut dyn FnMut(u64)>,
}

impl fmt::Debug for Options<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("keys", &self.keys)
            .field("anchors", &self.anchors.len())
            .field("range", &self.range)
            .finish_non_exhaustive()
    }
}

/// Verifies the directory of a replica, a directory of exports, one export, one segment, or one proof.
///
/// # Errors
/// [`VerifyError`] when there is nothing to judge; what is wrong with a log is in the report.
pub fn verify(path: &Path, options: Options<'_>) -> Result<Report, VerifyError> {
    let mut reading = Reading::new(options);
    let is_directory = std::fs::metadata(path).map_err(read_error(path))?.is_dir();
    let mut logs = Vec::new();
    if is_directory {
        let listing = directory::Listing::read(path)?;
        let others = listing.others.clone();
        let mut exports = Vec::new();
        if !listing.has_segments() {
            for other in &others {
                if file::is_export(other)? {
                    exports.push(other);
                }
            }
        }
        if exports.is_empty() || exports.len() < others.len() {
            logs.push(listing.walk(&mut reading)?);
        } else {
            for export in exports {
                logs.push(file::walk_export(export, &mut reading)?);
            }
        }
    } else if let Some(report) = proof::verify_file(path, &mut reading.trust)? {
        return Ok(report);
    } else if file::is_export(path)? {
        logs.push(file::walk_export(path, &mut reading)?);
    } else {
        logs.push(file::walk_one(path, &mut reading)?);
    }
    if reading.range.is_some() && logs.len() != 1 {
        return Err(VerifyError::Range);
    }
    Ok(reading.conclude(&logs))
}

/// What is used while files are read.
struct Reading<'r> {
    trust: Trust,
    anchors: Anchors,
    range: Option<(u64, u64)>,
    /// Used again for each line.
    line: Vec<u8>,
    records: u64,
    progress: Option<&'r mut dyn FnMut(u64)>,
}

impl<'r> Reading<'r> {
    fn new(options: Options<'r>) -> Self {
        let mut trust = Trust::new(&options.keys);
        // Keys that a kept note vouches for count from the first record on.
        for note in &options.anchors {
            trust.judge(note);
        }
        Self {
            trust,
            anchors: Anchors::new(&options.anchors),
            range: options.range,
            line: Vec::new(),
            records: 0,
            progress: options.progress,
        }
    }

    fn count(&mut self) {
        self.records += 1;
        if self.records.is_multiple_of(PROGRESS_RECORDS)
            && let Some(progress) = &mut self.progress
        {
            progress(self.records);
        }
    }

    /// Whether all that was asked for is under a signature.
    fn is_done(&self, stream: &Stream) -> bool {
        let last = stream.runs.last();
        self.range.zip(last).is_some_and(|((_, to), run)| run.signed >= to)
    }

    fn conclude(mut self, logs: &[Log]) -> Report {
        let (mut findings, mut streams) = (Vec::new(), Vec::new());
        let (mut purged, mut earlier) = (Purged::new(), BTreeMap::new());
        for log in logs {
            let mut judgement = log.judge(self.range.is_some());
            findings.append(&mut judgement.findings);
            streams.append(&mut judgement.streams);
            purged.append(&mut judgement.purged);
            earlier.append(&mut judgement.earlier);
        }
        let all = || logs.iter().flat_map(|log| &log.streams);
        if streams.is_empty() && !all().any(|stream| stream.is_broken) {
            findings.push(Finding::incomplete("there is no record"));
        }
        if let Some((_, to)) = self.range
            && let Some(stream) = all().next()
            && !stream.is_broken
            && stream.last_seq() < to
        {
            let what = format!("it ends at {}, before {to}", stream.last_seq());
            findings.push(Finding::incomplete(what).seq(&stream.name(), stream.last_seq() + 1));
        }
        let last = |name: &str| {
            let here = all().filter(|stream| stream.name() == name);
            here.map(|one| if one.is_broken { u64::MAX } else { one.last_seq() }).max()
        };
        let is_purged = |name: &str| {
            let boot = name.rsplit('/').next().unwrap_or_default();
            purged.keys().any(|segment| segment.boot.to_string() == boot)
        };
        let (mut missed, mut remarks, anchors) =
            self.anchors.judge(&mut self.trust, last, is_purged);
        for finding in &mut missed {
            if let (Some((1, _)), Some(stream)) = (finding.range, &finding.stream) {
                finding.earlier = earlier.get(stream).cloned().unwrap_or_default();
            }
        }
        findings.append(&mut missed);
        let unsigned: u64 = streams
            .iter()
            .map(|one| one.last_seq.saturating_sub(one.signed_seq.max(one.first_seq - 1)))
            .sum();
        if unsigned > 0 {
            remarks.push(format!("{unsigned} records at the end are under no signature so far"));
        }
        // A stable sort: the first bad record stays first.
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.verdict));
        let verdict = findings.first().map_or(Verdict::Intact, |finding| finding.verdict);
        Report {
            verdict,
            findings,
            records: streams.iter().map(|one| one.records).sum(),
            streams,
            keys: key_reports(&self.trust),
            is_pinned: self.trust.is_pinned(),
            anchors,
            remarks,
        }
    }
}

pub(crate) fn key_reports(trust: &Trust) -> Vec<KeyReport> {
    let keys = trust.keys();
    keys.map(|(key, is_pinned)| KeyReport {
        key: key.to_string(),
        fingerprint: key.fingerprint(),
        is_pinned,
    })
    .collect()
}

/// Why there is no verdict.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each error text is the documentation")]
pub enum VerifyError {
    #[error("reading {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("a first and last record are asked for, and this is not one stream")]
    Range,
}

pub(crate) fn read_error(path: &Path) -> impl FnOnce(io::Error) -> VerifyError {
    let path = path.to_owned();
    move |source| VerifyError::Read { path, source }
}

const PROGRESS_RECORDS: u64 = 1 << 16;
