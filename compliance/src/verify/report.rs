//! What the verifier has found, for people and as JSON.

use std::fmt;

use serde::Serialize;

use crate::Hash;

/// The verdict on all that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Nothing was changed, and nothing is missing.
    Intact,
    /// Something is missing; what is there was not changed.
    Incomplete,
    /// Something was changed.
    Tampered,
}

impl Verdict {
    /// The code that the program ends with.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Intact => 0,
            Self::Tampered => 1,
            Self::Incomplete => 2,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Intact => "intact",
            Self::Incomplete => "incomplete",
            Self::Tampered => "tampered",
        })
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Tampered or incomplete.
    pub verdict: Verdict,
    /// In which file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// In which of its lines, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// In which stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    /// At which place of the stream: the number that the record there should have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// The id of the event there, where one can be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<String>,
    /// Where a root shows the change: the first and last record among which it must be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range: Option<(u64, u64)>,
    /// Or these: what the first record of the range's stream follows, and no signature covers by itself.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<Earlier>,
    /// What is wrong.
    pub what: String,
}

/// Records at the end of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Earlier {
    /// The stream.
    pub stream: String,
    /// The first and last of them.
    pub range: (u64, u64),
}

impl Finding {
    pub(crate) fn new(verdict: Verdict, what: impl Into<String>) -> Self {
        let what = what.into();
        Self {
            verdict,
            file: None,
            line: None,
            stream: None,
            seq: None,
            event: None,
            range: None,
            earlier: Vec::new(),
            what,
        }
    }

    pub(crate) fn tampered(what: impl Into<String>) -> Self {
        Self::new(Verdict::Tampered, what)
    }

    pub(crate) fn incomplete(what: impl Into<String>) -> Self {
        Self::new(Verdict::Incomplete, what)
    }

    pub(crate) fn at(self, spot: &Spot) -> Self {
        let line = (spot.line > 0).then_some(spot.line);
        Self { file: Some(spot.file.clone()), line, ..self }
    }

    pub(crate) fn seq(self, stream: &str, seq: u64) -> Self {
        // A stream is known by its first record.
        let stream = (!stream.is_empty()).then(|| stream.into());
        Self { stream, seq: Some(seq), ..self }
    }

    pub(crate) fn event(self, id: Option<String>) -> Self {
        Self { event: id, ..self }
    }

    pub(crate) fn range(self, first: u64, last: u64) -> Self {
        Self { range: Some((first, last)), ..self }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.verdict, self.what)?;
        if let Some((first, last)) = self.range {
            write!(f, "; the change is in the records {first} to {last}")?;
        }
        for Earlier { stream, range: (first, last) } in &self.earlier {
            write!(f, ", or in {first} to {last} of {stream}")?;
        }
        if let Some(stream) = &self.stream {
            write!(f, "\n    stream {stream}")?;
        }
        if let Some(seq) = self.seq {
            let before = if self.stream.is_some() { ", " } else { "\n    " };
            write!(f, "{before}seq {seq}")?;
        }
        if let Some(event) = &self.event {
            write!(f, ", event {event}")?;
        }
        if let Some(file) = &self.file {
            write!(f, "\n    file {file}")?;
        }
        if let Some(line) = self.line {
            write!(f, ", line {line}")?;
        }
        Ok(())
    }
}

/// Where a line stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Spot {
    pub(crate) file: String,
    /// From 1; 0 is the file as a whole.
    pub(crate) line: u64,
}

/// What was read of one stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StreamReport {
    /// `<deployment>/<replica>/<boot>`.
    pub stream: String,
    /// The first record that was read.
    pub first_seq: u64,
    /// The last one whose place is right.
    pub last_seq: u64,
    /// How many were read.
    pub records: u64,
    /// The last record that a signature covers, of this stream or of one that follows it; 0 for none.
    pub signed_seq: u64,
}

/// A key whose signatures count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyReport {
    /// As `--vkey` takes it.
    pub key: String,
    /// SHA-256 of the public key.
    pub fingerprint: Hash,
    /// Whether it was given, and not taken from the files.
    pub is_pinned: bool,
}

/// All that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The worst of the findings.
    pub verdict: Verdict,
    /// Tampered ones first, each kind in the order of the log.
    pub findings: Vec<Finding>,
    /// In the order of the log.
    pub streams: Vec<StreamReport>,
    /// Whose signatures counted.
    pub keys: Vec<KeyReport>,
    /// Whether a key was given: otherwise a log that was made anew with another key passes.
    pub is_pinned: bool,
    /// How many anchors were given, and how many of them lie on what was read.
    pub anchors: Anchored,
    /// Records read.
    pub records: u64,
    /// Remarks that change no verdict.
    pub remarks: Vec<String>,
}

/// Anchors given and met.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Anchored {
    /// Given.
    pub given: usize,
    /// Met: the log has their root at their size.
    pub met: usize,
}

impl Report {
    /// The finding to look at first.
    #[must_use]
    pub fn first(&self) -> Option<&Finding> {
        self.findings.first()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.streams.iter().map(|one| one.stream.len()).max().unwrap_or(0).max(6);
        writeln!(
            f,
            "{:width$}  {:>12}  {:>12}  {:>12}  {:>12}",
            "stream", "first seq", "last seq", "records", "signed to"
        )?;
        for one in &self.streams {
            writeln!(
                f,
                "{:width$}  {:>12}  {:>12}  {:>12}  {:>12}",
                one.stream, one.first_seq, one.last_seq, one.records, one.signed_seq
            )?;
        }
        writeln!(f)?;
        for key in &self.keys {
            let how = if key.is_pinned { "given" } else { "from the files" };
            writeln!(f, "key {} ({how}), sha256 {}", key.key, key.fingerprint)?;
        }
        if !self.is_pinned {
            writeln!(
                f,
                "no key was given: compare the fingerprint, or a log made anew with another key \
                 passes"
            )?;
        }
        if self.anchors.given > 0 {
            writeln!(f, "anchors: {} given, {} met", self.anchors.given, self.anchors.met)?;
        }
        for remark in &self.remarks {
            writeln!(f, "{remark}")?;
        }
        for finding in self.findings.iter().take(SHOWN_MAX) {
            writeln!(f, "{finding}")?;
        }
        if self.findings.len() > SHOWN_MAX {
            writeln!(f, "and {} more", self.findings.len() - SHOWN_MAX)?;
        }
        write!(f, "{}: {} records", self.verdict, self.records)
    }
}

const SHOWN_MAX: usize = 20;
