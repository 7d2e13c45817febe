//! The files of one boot, append-only, readable by the owner alone; names as in `compliance::SegmentName`.
//!
//! Room for a whole segment is reserved when it begins, and a little more: on a full disk the failure itself
//! can still be written. After each sync the name is looked up again. A file that was deleted, replaced or cut
//! under the process would otherwise go on "working" while what it proves is lost.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use compliance::SegmentName;
use rustix::fs::FallocateFlags;
use uuid::Uuid;

/// Why lines did not become durable.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    #[error("making the next audit file")]
    Create(#[source] io::Error),
    #[error("the disk has no room for the next audit file")]
    DiskFull,
    #[error("writing the audit file")]
    Write(#[source] io::Error),
    #[error("syncing the audit file")]
    Sync(#[source] io::Error),
    #[error("taking back what was written of a batch that failed")]
    TakeBack(#[source] io::Error),
    #[error("looking whether the audit file is still there")]
    Look(#[source] io::Error),
    #[error("the audit file was deleted")]
    Deleted,
    #[error("the audit file was replaced")]
    Replaced,
    #[error("the audit file has another size than what was written")]
    Resized,
}

impl StoreError {
    /// The cause as the failure record writes it.
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Self::Create(_) => "create",
            Self::DiskFull => "disk-full",
            Self::Write(_) => "write",
            Self::Sync(_) => "sync",
            Self::TakeBack(_) => "take-back",
            Self::Look(_) => "look",
            Self::Deleted => "deleted",
            Self::Replaced => "replaced",
            Self::Resized => "resized",
        }
    }
}

/// Where the writer puts its lines. A trait, so that tests can make a disk fail or hang.
pub(super) trait Store: Send + 'static {
    /// Makes whole lines durable, all of them or, as far as can be helped, none.
    fn append(&mut self, lines: &[u8]) -> Result<(), StoreError>;
    /// Whether everything that was written is still in its place.
    fn verify(&self) -> Result<(), StoreError>;
    /// Whether the next lines belong into a new file.
    fn is_full(&self) -> bool;
    /// Goes on in a new file, which is empty; whether it is another one than before.
    fn renew(&mut self) -> Result<bool, StoreError>;
    /// The file that is open.
    fn name(&self) -> SegmentName;
}

/// The files, of which one is open.
#[derive(Debug)]
pub(super) struct Segments {
    dir: PathBuf,
    bytes_max: u64,
    current: Segment,
    /// Held until the writer ends: one directory, one writer.
    _lock: File,
}

#[derive(Debug)]
struct Segment {
    name: SegmentName,
    file: File,
    path: PathBuf,
    identity: (u64, u64),
    bytes: u64,
    /// Whether there may be more in the file than `bytes`, of a batch that failed.
    has_remains: bool,
}

/// The directory, taken for this process until this is dropped.
#[derive(Debug)]
pub(super) struct Taken {
    dir: PathBuf,
    lock: File,
}

impl Taken {
    /// Takes the directory, and makes it when absent.
    ///
    /// # Errors
    /// `WouldBlock` when another process has it, else what the system says.
    pub(super) fn new(dir: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(dir.join("lock"))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => io::Error::from(io::ErrorKind::WouldBlock),
            TryLockError::Error(error) => error,
        })?;
        // What a killed process had reserved is given free.
        for left in compliance::segments(dir)?.iter().filter(|segment| !segment.is_sealed) {
            let file = OpenOptions::new().write(true).open(&left.path)?;
            file.set_len(file.metadata()?.len())?;
        }
        Ok(Self { dir: dir.to_owned(), lock })
    }

    /// Starts the first file of this boot.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn begin(self, boot: Uuid, bytes_max: u64) -> io::Result<Segments> {
        let Self { dir, lock } = self;
        let current = Segment::create(&dir, SegmentName { boot, number: 1 }, bytes_max)?;
        Ok(Segments { dir, bytes_max, current, _lock: lock })
    }
}

impl Store for Segments {
    fn append(&mut self, lines: &[u8]) -> Result<(), StoreError> {
        self.current.append(lines)
    }

    fn verify(&self) -> Result<(), StoreError> {
        self.current.verify()
    }

    fn is_full(&self) -> bool {
        self.current.bytes >= self.bytes_max
    }

    fn renew(&mut self) -> Result<bool, StoreError> {
        self.current.take_back()?;
        // On a full disk renewals come again and again: an empty file serves for all of them.
        if self.current.bytes == 0 && self.current.verify().is_ok() {
            return Ok(false);
        }
        let name = SegmentName { number: self.current.name.number + 1, ..self.current.name };
        let next = Segment::create(&self.dir, name, self.bytes_max);
        self.current = next.map_err(|error| {
            let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
            let is_full = full.contains(&error.kind());
            if is_full { StoreError::DiskFull } else { StoreError::Create(error) }
        })?;
        Ok(true)
    }

    fn name(&self) -> SegmentName {
        self.current.name
    }
}

impl Drop for Segment {
    /// Gives the room behind its last line free.
    fn drop(&mut self) {
        if self.verify().is_ok() || (self.has_remains && self.take_back().is_ok()) {
            let _ = self.file.set_len(self.bytes);
        }
    }
}

impl Segment {
    fn create(dir: &Path, name: SegmentName, bytes_max: u64) -> io::Result<Self> {
        let path = dir.join(name.open());
        let file = match OpenOptions::new().create_new(true).append(true).mode(0o600).open(&path) {
            Ok(file) => file,
            // Left by a renewal that failed half way. Empty, so no record is joined to another's.
            Err(error)
                if error.kind() == io::ErrorKind::AlreadyExists
                    && fs::metadata(&path)?.len() == 0 =>
            {
                OpenOptions::new().append(true).open(&path)?
            }
            Err(error) => return Err(error),
        };
        if let Err(error) = reserve(&file, bytes_max + RESERVE_BYTES) {
            fs::remove_file(&path)?;
            return Err(error);
        }
        let metadata = file.metadata()?;
        // The name itself must survive a crash too.
        File::open(dir)?.sync_all()?;
        let identity = (metadata.dev(), metadata.ino());
        Ok(Self { name, file, path, identity, bytes: 0, has_remains: false })
    }

    fn append(&mut self, lines: &[u8]) -> Result<(), StoreError> {
        self.take_back()?;
        if let Err(error) = self.write_and_sync(lines) {
            // Nobody got an answer for these lines, and their numbers are given again.
            self.has_remains = true;
            let _ = self.take_back();
            return Err(error);
        }
        let before = self.bytes;
        self.bytes += u64::try_from(lines.len()).unwrap_or(u64::MAX);
        self.verify().inspect_err(|_| {
            // They are not answered either, and must not be read.
            (self.bytes, self.has_remains) = (before, true);
        })
    }

    /// Until this is done no other file may begin: it would follow a record that counts no more.
    fn take_back(&mut self) -> Result<(), StoreError> {
        if self.has_remains && fs::metadata(&self.path).is_ok() {
            let cut = self.file.metadata().and_then(|metadata| {
                // Somebody else's cut is not made good with zeros.
                if metadata.len() > self.bytes {
                    self.file.set_len(self.bytes)?;
                }
                self.file.sync_all()
            });
            cut.map_err(StoreError::TakeBack)?;
        }
        self.has_remains = false;
        Ok(())
    }

    fn write_and_sync(&mut self, lines: &[u8]) -> Result<(), StoreError> {
        self.file.write_all(lines).map_err(StoreError::Write)?;
        self.file.sync_data().map_err(StoreError::Sync)
    }

    fn verify(&self) -> Result<(), StoreError> {
        let metadata = fs::metadata(&self.path).map_err(|error| {
            let gone = [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory];
            let is_gone = gone.contains(&error.kind());
            if is_gone { StoreError::Deleted } else { StoreError::Look(error) }
        })?;
        if (metadata.dev(), metadata.ino()) != self.identity {
            return Err(StoreError::Replaced);
        }
        if metadata.len() != self.bytes {
            return Err(StoreError::Resized);
        }
        Ok(())
    }
}

/// Has the disk keep room for the file, whose length stays as it is.
fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, 0, bytes) {
        // A file system that cannot: then a full disk is found at the first write.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(()),
        other => Ok(other?),
    }
}

/// Beyond a full segment: one batch, and what is to be said when there can be no next one.
const RESERVE_BYTES: u64 = 4 << 20;
