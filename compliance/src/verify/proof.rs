//! Proves that one record is in a log, to someone who has nothing of the log but this.
//!
//! ```text
//! {"proof":{"checkpoint":"…","format":"tollgate-audit-proof/1","key":"tollgate+…","path":["…"],
//!   "record":"{…}","seq":12,"stream":"tollgate/g-1/0189…"}}
//! ```
//!
//! `path` leads from the record's hash to the root in `checkpoint`, a signed note in base64 (RFC 9162, 2.1.3).

use std::path::Path;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::record::{Line, Record, event_id, next_line};
use super::report::{Anchored, Finding, Report, Spot, StreamReport, Verdict};
use super::trust::{Judged, Trust};
use super::{VerifyError, file, key_reports, read_error};
use crate::export_set::{HEADER_START, read_header};
use crate::{Frontier, Hash, SegmentName, SignedNote, VerifierKey, is_included, segments};

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    proof: Proof,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Proof {
    checkpoint: String,
    format: String,
    /// The key that has signed: to be compared with one that is known, and not believed.
    key: String,
    path: Vec<String>,
    record: String,
    seq: u64,
    stream: String,
}

/// The proof of the record of an event, as JSON, from a log or a file of it. With no `keys`, the signature is
/// one by a key that the note itself names.
///
/// # Errors
/// [`ProveError`] when the event is not there or under no signature, or its log was changed.
pub fn prove(path: &Path, event: Uuid, keys: &[VerifierKey]) -> Result<String, ProveError> {
    let mut search = Search {
        event: event.to_string(),
        trust: Trust::new(keys),
        tree: Frontier::default(),
        entries: Vec::new(),
        found: None,
        stream: None,
        is_readable: true,
    };
    let is_directory = std::fs::metadata(path).map_err(read_error(path))?.is_dir();
    let mut document = None;
    if is_directory {
        let mut boot: Option<Uuid> = None;
        for segment in segments(path).map_err(read_error(path))? {
            if boot != Some(segment.name.boot) {
                if search.found.is_some() {
                    break;
                }
                search.restart(None);
                boot = Some(segment.name.boot);
            }
            document = search.read(&segment.path, Some(segment.name))?;
            if document.is_some() {
                break;
            }
        }
    } else {
        document = search.read(path, None)?;
    }
    let Some(document) = document else {
        return Err(if search.found.is_some() {
            ProveError::Unsigned
        } else {
            ProveError::NotHere
        });
    };
    let mut text = serde_json::to_string(&document).map_err(|_| ProveError::Wrong)?;
    // What is handed out has passed what will be asked of it.
    let report = check(&text, &mut Trust::new(keys));
    if report.verdict != Verdict::Intact {
        return Err(ProveError::Wrong);
    }
    text.push('\n');
    Ok(text)
}

/// Why there is no proof.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each error text is the documentation")]
pub enum ProveError {
    #[error(transparent)]
    Read(#[from] VerifyError),
    #[error("no record is of this event")]
    NotHere,
    #[error("no checkpoint over the record is signed by a key that counts")]
    Unsigned,
    #[error("{file}, line {line}: {what}")]
    Tampered { file: String, line: u64, what: String },
    #[error("the proof that was made does not pass")]
    Wrong,
}

struct Search {
    event: String,
    trust: Trust,
    /// The tree before `entries`, the records from the beginning of a segment or of the stream on.
    tree: Frontier,
    entries: Vec<Hash>,
    found: Option<(String, u64)>,
    stream: Option<String>,
    /// Whether a tree is known at all: an export need not give one.
    is_readable: bool,
}

impl Search {
    fn restart(&mut self, tree: Option<Frontier>) {
        self.is_readable = tree.is_some();
        self.tree = tree.unwrap_or_default();
        self.entries.clear();
        self.stream = None;
    }

    /// Reads one file, until the proof is complete.
    fn read(
        &mut self,
        path: &Path,
        segment: Option<SegmentName>,
    ) -> Result<Option<Document>, ProveError> {
        let mut input = crate::read(path).map_err(read_error(path))?;
        let mut line = Vec::new();
        for number in 1.. {
            let next = next_line(&mut *input, &mut line).map_err(read_error(path))?;
            let refused = |what: &str| ProveError::Tampered {
                file: path.display().to_string(),
                line: number,
                what: what.into(),
            };
            match next {
                Line::Whole => {}
                Line::Partial | Line::End => break,
                Line::TooLong | Line::Damaged => return Err(refused("it cannot be read")),
            }
            if line.starts_with(HEADER_START) {
                if self.found.is_some() {
                    break;
                }
                let start = read_header(&line).ok_or_else(|| refused("a header that is none"))?;
                let first = (start.first_seq == 1).then(Frontier::default);
                self.restart(start.frontier.or(first));
                continue;
            }
            if line.starts_with(crate::export_set::END_START) {
                break;
            }
            let record = Record::read(&line).map_err(|fault| refused(&fault.to_string()))?;
            if segment.is_some_and(|name| name.boot.to_string() != record.boot)
                || self.stream.as_deref().is_some_and(|stream| stream != record.stream)
            {
                return Err(refused("a record of another stream"));
            }
            if let Some(document) = self.take(&record, &line).map_err(refused)? {
                return Ok(Some(document));
            }
        }
        Ok(None)
    }

    fn take(&mut self, record: &Record<'_>, line: &[u8]) -> Result<Option<Document>, &'static str> {
        self.stream.get_or_insert_with(|| record.stream.into());
        let held = self.tree.size() + self.entries.len() as u64;
        if self.found.is_none()
            && let Some(tree) = record.members.string("frontier").and_then(Frontier::parse)
            && tree.size() + 1 == record.seq
        {
            // Nothing before this segment is needed.
            (self.tree, self.is_readable) = (tree, true);
            self.entries.clear();
        } else if record.seq == 1 && held == 0 {
            self.is_readable = true;
        } else if self.is_readable && held + 1 != record.seq {
            return Err("a record is missing before it");
        }
        if self.found.is_none() && record.id == self.event {
            let text = String::from_utf8(line.to_vec()).map_err(|_| "it is no text")?;
            self.found = Some((text, record.seq));
        }
        if !self.is_readable {
            return Ok(None);
        }
        self.entries.push(record.hash);
        let Some((text, seq)) = &self.found else { return Ok(None) };
        let Some(checkpoint) = record.members.string("checkpoint") else { return Ok(None) };
        let note = SignedNote::from_base64(checkpoint).map_err(|_| "its checkpoint is none")?;
        let (size, root) = (note.checkpoint().size, note.checkpoint().root);
        if size < *seq || note.checkpoint().origin != record.stream {
            return Ok(None);
        }
        if self.trust.judge(&note) != Judged::Trusted {
            return Ok(None);
        }
        let path = self.tree.inclusion(&self.entries, *seq, size).ok_or("its size is not here")?;
        let entry = usize::try_from(*seq - self.tree.size() - 1).ok();
        let entry = entry.and_then(|index| self.entries.get(index)).ok_or("it is not here")?;
        if !is_included(*entry, *seq, size, &path, root) {
            return Err("the root of its checkpoint is not that of the records before it");
        }
        let key = self.trust.signer(&note).ok_or("nobody has signed its checkpoint")?;
        Ok(Some(Document {
            proof: Proof {
                checkpoint: checkpoint.into(),
                format: FORMAT.into(),
                key: key.to_string(),
                path: path.iter().map(ToString::to_string).collect(),
                record: text.clone(),
                seq: *seq,
                stream: record.stream.into(),
            },
        }))
    }
}

/// Judges a file if it is a proof.
pub(crate) fn verify_file(path: &Path, trust: &mut Trust) -> Result<Option<Report>, VerifyError> {
    let mut input = crate::read(path).map_err(read_error(path))?;
    // A proof is one line and longer than a record may be.
    let start = match input.fill_buf() {
        Ok(bytes) => bytes.starts_with(PROOF_START),
        // A damaged file is judged where files are read line by line.
        Err(_) => false,
    };
    if !start || file::is_export(path)? {
        return Ok(None);
    }
    let mut text = String::new();
    let read =
        std::io::Read::read_to_string(&mut std::io::Read::take(input, PROOF_BYTES_MAX), &mut text);
    let mut report = match read {
        Ok(_) => check(text.strip_suffix('\n').unwrap_or(&text), trust),
        Err(error) if error.kind() == std::io::ErrorKind::InvalidData => check("", trust),
        Err(error) => return Err(read_error(path)(error)),
    };
    let spot = Spot { file: path.display().to_string(), line: 0 };
    report.findings = report.findings.into_iter().map(|finding| finding.at(&spot)).collect();
    Ok(Some(report))
}

fn check(text: &str, trust: &mut Trust) -> Report {
    let mut streams = Vec::new();
    let judged = judge(text, trust, &mut streams);
    let findings: Vec<Finding> = judged.err().map(|finding| *finding).into_iter().collect();
    Report {
        verdict: findings.first().map_or(Verdict::Intact, |finding| finding.verdict),
        findings,
        records: streams.iter().map(|one: &StreamReport| one.records).sum(),
        streams,
        keys: key_reports(trust),
        is_pinned: trust.is_pinned(),
        anchors: Anchored::default(),
        remarks: vec!["a proof of one record: it says nothing of the rest of the log".into()],
    }
}

fn judge(
    text: &str,
    trust: &mut Trust,
    streams: &mut Vec<StreamReport>,
) -> Result<(), Box<Finding>> {
    let Ok(document) = serde_json::from_str::<Document>(text) else {
        return Err(Box::new(Finding::tampered("it is no proof")));
    };
    let proof = &document.proof;
    let refused = |what: &str| {
        let finding = Finding::tampered(what).seq(&proof.stream, proof.seq);
        Box::new(finding.event(event_id(proof.record.as_bytes())))
    };
    // One spelling: nothing beside what is checked.
    let is_spelled = serde_json::to_string(&document);
    if proof.format != FORMAT || is_spelled.ok().as_deref() != Some(text) {
        return Err(refused("it is not spelled as proofs are"));
    }
    let record = Record::read(proof.record.as_bytes())
        .map_err(|fault| refused(&format!("the record: {fault}")))?;
    if record.seq != proof.seq || record.stream != proof.stream {
        return Err(refused("the record is another one than the proof says"));
    }
    let note = SignedNote::from_base64(&proof.checkpoint)
        .map_err(|error| refused(&format!("the checkpoint: {error}")))?;
    let said = note.checkpoint();
    if said.origin != proof.stream {
        return Err(refused("the checkpoint is of another stream"));
    }
    let path: Option<Vec<Hash>> =
        proof.path.iter().map(|hash| Hash::parse(hash.as_bytes())).collect();
    let path = path.ok_or_else(|| refused("a hash that is none"))?;
    if !is_included(record.hash, record.seq, said.size, &path, said.root) {
        return Err(refused("the path does not lead from the record to the root"));
    }
    match trust.judge(&note) {
        Judged::Trusted => {}
        Judged::Wrong => return Err(refused("the signature of the checkpoint is wrong")),
        Judged::Unsigned => return Err(refused("nobody has signed the checkpoint")),
        Judged::Unvouched => {
            return Err(refused("the checkpoint is signed by a key that nothing vouches for"));
        }
    }
    let key: Option<VerifierKey> = proof.key.parse().ok();
    let is_signer = key.is_some_and(|key| note.signed_by([&key]) == crate::Signed::ByOne);
    if !is_signer {
        return Err(refused("the key is not the one that has signed"));
    }
    streams.push(StreamReport {
        stream: proof.stream.clone(),
        first_seq: proof.seq,
        last_seq: proof.seq,
        records: 1,
        signed_seq: proof.seq,
    });
    Ok(())
}

const FORMAT: &str = "tollgate-audit-proof/1";
const PROOF_START: &[u8] = b"{\"proof\":";
const PROOF_BYTES_MAX: u64 = 64 * 1024;
