//! The files of a log: `audit-<boot>-<number>.jsonl`, sealed ones compressed as `….jsonl.gz`.
//!
//! One directory belongs to one replica. A boot is one stream; its segments are numbered from 1, and the
//! sealed ones are gzip members one after the other, of whole lines each.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use uuid::Uuid;

/// A segment by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    /// The boot that wrote it.
    pub boot: Uuid,
    /// From 1.
    pub number: u32,
}

impl SegmentName {
    /// The segment that a file name says, and whether it is compressed.
    #[must_use]
    pub fn parse(file: &str) -> Option<(Self, bool)> {
        let name = file.strip_prefix("audit-")?;
        let (name, is_sealed) = match name.strip_suffix(".jsonl.gz") {
            Some(name) => (name, true),
            None => (name.strip_suffix(".jsonl")?, false),
        };
        let (boot, number) = name.rsplit_once('-')?;
        let this = Self { boot: boot.parse().ok()?, number: number.parse().ok()? };
        let written = if is_sealed { this.sealed() } else { this.open() };
        (written == file && this.number > 0).then_some((this, is_sealed))
    }

    /// The name of the file while it is written.
    #[must_use]
    pub fn open(self) -> String {
        format!("{self}.jsonl")
    }

    /// The name of the file once it is sealed.
    #[must_use]
    pub fn sealed(self) -> String {
        format!("{self}.jsonl.gz")
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "audit-{}-{:06}", self.boot, self.number)
    }
}

/// A segment on disk.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Segment {
    /// Which.
    pub name: SegmentName,
    /// Where.
    pub path: PathBuf,
    /// Whether it is compressed.
    pub is_sealed: bool,
}

impl Segment {
    /// Reads its lines.
    ///
    /// # Errors
    /// What the system says.
    pub fn read(&self) -> io::Result<Box<dyn BufRead + Send>> {
        read(&self.path)
    }
}

/// Reads the lines of a file, compressed when its name ends in `.gz`.
///
/// # Errors
/// What the system says.
pub fn read(path: &Path) -> io::Result<Box<dyn BufRead + Send>> {
    let file = File::open(path)?;
    let is_gzip = path.extension().is_some_and(|extension| extension == "gz");
    Ok(if is_gzip {
        Box::new(BufReader::with_capacity(
            BUFFER_BYTES,
            MultiGzDecoder::new(BufReader::with_capacity(BUFFER_BYTES, file)),
        ))
    } else {
        Box::new(BufReader::with_capacity(BUFFER_BYTES, file))
    })
}

/// The segments of a directory and of `archive` below it, in the order of their names, which is that of time as
/// long as the clock was not set back. Of a segment that is there in both forms, as a crash may leave it, the one that was written first.
///
/// # Errors
/// What the system says.
pub fn segments(dir: &Path) -> io::Result<Vec<Segment>> {
    let mut found = Vec::new();
    list(dir, &mut found)?;
    match list(&dir.join(ARCHIVE), &mut found) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    found.sort_by_key(|segment| (segment.name, segment.is_sealed));
    found.dedup_by_key(|segment| segment.name);
    Ok(found)
}

fn list(dir: &Path, found: &mut Vec<Segment>) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let file = entry.file_name();
        if let Some((name, is_sealed)) = file.to_str().and_then(SegmentName::parse) {
            found.push(Segment { name, path: entry.path(), is_sealed });
        }
    }
    Ok(())
}

/// Where old segments go, below their directory.
pub const ARCHIVE: &str = "archive";
const BUFFER_BYTES: usize = 128 * 1024;

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use flate2::{Compression, write::GzEncoder};

    use super::*;

    #[test]
    fn only_segments_are_listed_and_each_once() {
        let dir = tempfile::tempdir().unwrap();
        let name = |number| SegmentName { boot: Uuid::nil(), number };
        for file in [
            name(2).open(),
            name(1).open(),
            name(1).sealed(),
            "lock".into(),
            "audit-x-000001.jsonl".into(),
            name(0).open(),
            name(3).open().replace("000003", "3"),
            name(4).sealed() + ".new",
        ] {
            std::fs::write(dir.path().join(file), "").unwrap();
        }

        let found = segments(dir.path()).unwrap();

        let names: Vec<_> = found.iter().map(|one| (one.name.number, one.is_sealed)).collect();
        assert_eq!(names, [(1, false), (2, false)]);
    }

    #[test]
    fn a_sealed_segment_reads_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(SegmentName { boot: Uuid::nil(), number: 1 }.sealed());
        let mut bytes = Vec::new();
        for member in ["one\n", "two\nthree\n"] {
            let mut encoder = GzEncoder::new(&mut bytes, Compression::default());
            encoder.write_all(member.as_bytes()).unwrap();
            encoder.finish().unwrap();
        }
        std::fs::write(&path, bytes).unwrap();

        let mut text = String::new();
        read(&path).unwrap().read_to_string(&mut text).unwrap();

        assert_eq!(text, "one\ntwo\nthree\n");
    }
}
