//! The files of one boot: `audit-<boot>-<number>.jsonl`, append-only, readable by the owner alone.
//!
//! After each sync the name is looked up again. A file that was deleted, replaced or cut under the
//! process would otherwise go on "working" while what it proves is lost.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use uuid::Uuid;

/// Why lines did not become durable.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    #[error("making the next audit file")]
    Create(#[source] io::Error),
    #[error("writing the audit file")]
    Write(#[source] io::Error),
    #[error("syncing the audit file")]
    Sync(#[source] io::Error),
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
            Self::Write(_) => "write",
            Self::Sync(_) => "sync",
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
    /// Goes on in a new file.
    fn renew(&mut self) -> Result<(), StoreError>;
}

/// The files, of which one is open.
#[derive(Debug)]
pub(super) struct Segments {
    dir: PathBuf,
    boot: Uuid,
    bytes_max: u64,
    number: u32,
    current: Segment,
    /// Held until the writer ends: one directory, one writer.
    _lock: File,
}

#[derive(Debug)]
struct Segment {
    file: File,
    path: PathBuf,
    identity: (u64, u64),
    bytes: u64,
}

impl Segments {
    /// Takes the directory, makes it when absent, and starts the first file of this boot.
    ///
    /// # Errors
    /// `WouldBlock` when another process has it, else what the system says.
    pub(super) fn open(dir: &Path, boot: Uuid, bytes_max: u64) -> io::Result<Self> {
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
        let number = 1;
        let current = Segment::create(dir, boot, number)?;
        Ok(Self { dir: dir.to_owned(), boot, bytes_max, number, current, _lock: lock })
    }
}

impl Store for Segments {
    fn append(&mut self, lines: &[u8]) -> Result<(), StoreError> {
        if self.current.bytes >= self.bytes_max {
            self.renew()?;
        }
        self.current.append(lines)
    }

    fn verify(&self) -> Result<(), StoreError> {
        self.current.verify()
    }

    fn renew(&mut self) -> Result<(), StoreError> {
        // On a full disk renewals come again and again: an empty file serves for all of them.
        if self.current.bytes == 0 && self.current.verify().is_ok() {
            return Ok(());
        }
        let number = self.number + 1;
        self.current = Segment::create(&self.dir, self.boot, number).map_err(StoreError::Create)?;
        self.number = number;
        Ok(())
    }
}

impl Segment {
    fn create(dir: &Path, boot: Uuid, number: u32) -> io::Result<Self> {
        let path = dir.join(format!("audit-{boot}-{number:06}.jsonl"));
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
        let metadata = file.metadata()?;
        // The name itself must survive a crash too.
        File::open(dir)?.sync_all()?;
        Ok(Self { file, path, identity: (metadata.dev(), metadata.ino()), bytes: 0 })
    }

    fn append(&mut self, lines: &[u8]) -> Result<(), StoreError> {
        let appended = self.write_and_sync(lines);
        if appended.is_err() {
            // Nobody got an answer for these lines and their numbers are given again: take back
            // what can be taken back. When this fails too, the next file still tells of it.
            let _ = self.file.set_len(self.bytes);
        }
        appended?;
        self.bytes += u64::try_from(lines.len()).unwrap_or(u64::MAX);
        self.verify()
    }

    fn write_and_sync(&mut self, lines: &[u8]) -> Result<(), StoreError> {
        self.file.write_all(lines).map_err(StoreError::Write)?;
        self.file.sync_data().map_err(StoreError::Sync)
    }

    fn verify(&self) -> Result<(), StoreError> {
        let metadata = fs::metadata(&self.path).map_err(|_| StoreError::Deleted)?;
        if (metadata.dev(), metadata.ino()) != self.identity {
            return Err(StoreError::Replaced);
        }
        if metadata.len() != self.bytes {
            return Err(StoreError::Resized);
        }
        Ok(())
    }
}
