//! A segment that is complete is compressed, and gets an index beside it by which it is searched.
//!
//! `audit-<boot>-<number>.jsonl.gz` has one gzip member for each thousand lines, so that few of them are read
//! for one record. The index, `….idx`, is made of the records and can be made again: it is no evidence.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::export::Record;
use crate::segments::Segment;

/// What a sealed segment holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    version: u16,
    /// Time of the oldest record. Microseconds since 1970.
    pub from_us: i64,
    /// Time of the newest.
    pub to_us: i64,
    /// Number of the first record.
    pub first_seq: u64,
    /// Number of the last.
    pub last_seq: u64,
    pub(crate) blocks: Vec<Block>,
}

/// A gzip member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Block {
    /// Where it begins in the file. Bytes.
    pub(crate) offset: u64,
    pub(crate) from_us: i64,
    pub(crate) to_us: i64,
    pub(crate) last_seq: u64,
    /// Which words are in it; a few others seem to be.
    words: Vec<u8>,
}

impl Index {
    /// The index of a sealed segment.
    ///
    /// # Errors
    /// What the system says; `InvalidData` for a file of another form.
    pub fn read(segment: &Segment) -> io::Result<Self> {
        let bytes = fs::read(index_path(&segment.path))?;
        let index: Self = postcard::from_bytes(&bytes).map_err(io::Error::other)?;
        if index.version == VERSION {
            Ok(index)
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidData, "an index of another version"))
        }
    }

    /// Made of a sealed segment's records, without its blocks: who searches reads all of it.
    ///
    /// # Errors
    /// What the system says.
    pub fn of(segment: &Segment) -> io::Result<Self> {
        let mut index = compress(&mut segment.read()?, &mut io::sink())?;
        // Where they are in the file only who wrote it knows.
        index.blocks.clear();
        Ok(index)
    }

    /// Puts it beside its segment.
    ///
    /// # Errors
    /// What the system says.
    pub fn write(&self, segment: &Segment) -> io::Result<()> {
        let path = index_path(&segment.path);
        let new = path.with_extension("idx.new");
        let mut file = File::create(&new)?;
        file.write_all(&postcard::to_allocvec(self).map_err(io::Error::other)?)?;
        file.sync_all()?;
        fs::rename(&new, &path)
    }

    fn new() -> Self {
        let (from_us, to_us) = (i64::MAX, i64::MIN);
        Self { version: VERSION, from_us, to_us, first_seq: 0, last_seq: 0, blocks: Vec::new() }
    }

    fn add(&mut self, record: &Record<'_>) {
        let us = record.time.as_microsecond();
        (self.from_us, self.to_us) = (self.from_us.min(us), self.to_us.max(us));
        if self.first_seq == 0 {
            self.first_seq = record.seq;
        }
        self.last_seq = record.seq;
        if let Some(block) = self.blocks.last_mut() {
            (block.from_us, block.to_us) = (block.from_us.min(us), block.to_us.max(us));
            block.last_seq = record.seq;
            words_of(record, |word| block.set(word));
        }
    }
}

impl Block {
    fn new(offset: u64) -> Self {
        let (from_us, to_us) = (i64::MAX, i64::MIN);
        Self { offset, from_us, to_us, last_seq: 0, words: vec![0; WORDS_BYTES] }
    }

    fn set(&mut self, word: Word) {
        for bit in word.bits() {
            self.words[bit / 8] |= 1 << (bit % 8);
        }
    }

    /// Whether the word may be in the block.
    pub(crate) fn may_hold(&self, word: Word) -> bool {
        word.bits()
            .all(|bit| self.words.get(bit / 8).is_some_and(|byte| byte >> (bit % 8) & 1 == 1))
    }
}

/// A value of a field that is searched by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Word(u64, u64);

impl Word {
    pub(crate) fn new(field: &str, value: &str) -> Self {
        let digest =
            Sha256::new_with_prefix(field).chain_update([0]).chain_update(value).finalize();
        let half = |at: usize| {
            digest[at..at + 8].iter().fold(0, |word, byte| word << 8 | u64::from(*byte))
        };
        Self(half(0), half(8))
    }

    /// Its places in a Bloom filter, by double hashing.
    fn bits(self) -> impl Iterator<Item = usize> {
        let bits = WORDS_BYTES as u64 * 8;
        (0..HASHES).map(move |n| {
            usize::try_from(self.0.wrapping_add(n.wrapping_mul(self.1)) % bits).unwrap_or(0)
        })
    }
}

/// By what records are found.
fn words_of(record: &Record<'_>, mut word: impl FnMut(Word)) {
    let kind = &*record.event.kind;
    word(Word::new("event", kind));
    if let Some((family, _)) = kind.split_once('.') {
        word(Word::new("family", family));
    }
    word(Word::new("event_id", &record.event.id));
    word(Word::new("actor", &record.actor.id));
    word(Word::new("outcome", &record.outcome));
    word(Word::new("resource", &record.resource.id));
    if let Some(request) = &record.request_id {
        word(Word::new("request_id", request));
    }
}

/// Compresses a complete segment in its directory and takes the open form away. Repeating it after a crash is
/// safe: the open form goes last. Gives the sealed one.
///
/// # Errors
/// What the system says.
pub fn seal(open: &Segment) -> io::Result<Segment> {
    let sealed = Segment {
        path: open.path.with_file_name(open.name.sealed()),
        is_sealed: true,
        ..open.clone()
    };
    let new = sealed.path.with_extension("new");
    let index = compress(&mut open.read()?, &mut File::create(&new)?)?;
    File::open(&new)?.sync_all()?;
    fs::set_permissions(&new, fs::metadata(&open.path)?.permissions())?;
    index.write(&sealed)?;
    fs::rename(&new, &sealed.path)?;
    sync_dir(&sealed.path)?;
    fs::remove_file(&open.path)?;
    sync_dir(&sealed.path)?;
    Ok(sealed)
}

/// Moves a sealed segment and its index into another directory, also of another disk.
///
/// # Errors
/// What the system says; the segment is then still in its place.
pub fn move_to(segment: &Segment, dir: &Path) -> io::Result<Segment> {
    let path = dir.join(segment.name.sealed());
    for (from, to) in
        [(index_path(&segment.path), index_path(&path)), (segment.path.clone(), path.clone())]
    {
        if fs::rename(&from, &to).is_ok() || (!from.exists() && to.exists()) {
            continue;
        }
        let new = to.with_extension("new");
        fs::copy(&from, &new)?;
        File::open(&new)?.sync_all()?;
        fs::rename(&new, &to)?;
        sync_dir(&to)?;
        fs::remove_file(&from)?;
    }
    sync_dir(&path)?;
    sync_dir(&segment.path)?;
    Ok(Segment { path, ..segment.clone() })
}

/// Takes a sealed segment and its index away for good.
///
/// # Errors
/// What the system says.
pub fn purge(segment: &Segment) -> io::Result<()> {
    fs::remove_file(&segment.path)?;
    match fs::remove_file(index_path(&segment.path)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    sync_dir(&segment.path)
}

/// Reads a segment's records from a block on.
pub(crate) fn block_reader(segment: &Segment, offset: u64) -> io::Result<impl BufRead + use<>> {
    use std::io::Seek as _;
    let mut file = BufReader::with_capacity(64 * 1024, File::open(&segment.path)?);
    file.seek(io::SeekFrom::Start(offset))?;
    Ok(BufReader::new(flate2::bufread::GzDecoder::new(file)))
}

/// Lines go into members of a thousand; what is no record goes along and is not found.
fn compress(lines: &mut dyn BufRead, out: &mut dyn Write) -> io::Result<Index> {
    let (mut index, mut offset, mut line) = (Index::new(), 0u64, Vec::new());
    loop {
        let mut member = GzEncoder::new(Vec::new(), Compression::default());
        let mut block = Block::new(offset);
        let mut held = 0;
        while held < BLOCK_LINES {
            line.clear();
            lines.read_until(b'\n', &mut line)?;
            // The end, or half a line as a crash leaves it: nobody was answered for it.
            if line.last() != Some(&b'\n') {
                break;
            }
            if held == 0 {
                index.blocks.push(std::mem::replace(&mut block, Block::new(0)));
            }
            member.write_all(&line)?;
            if let Ok(record) = Record::parse(&line) {
                index.add(&record);
            }
            held += 1;
        }
        if held == 0 {
            if offset == 0 {
                // An empty file is no gzip.
                out.write_all(&member.finish()?)?;
            }
            return Ok(index);
        }
        let bytes = member.finish()?;
        out.write_all(&bytes)?;
        offset += bytes.len() as u64;
    }
}

fn index_path(segment: &Path) -> PathBuf {
    let name = segment.file_name().unwrap_or_default().to_string_lossy();
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    segment.with_file_name(format!("{}.idx", name.strip_suffix(".jsonl").unwrap_or(name)))
}

fn sync_dir(of: &Path) -> io::Result<()> {
    of.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

const VERSION: u16 = 1;
const BLOCK_LINES: usize = 1_000;
/// Three or four words a record: ten bits for each keep what seems to be there and is not below 1 %.
const WORDS_BYTES: usize = 5 * 1024;
const HASHES: u64 = 7;
