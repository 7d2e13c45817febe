//! The ledger's lines on the disk: appended, synced in groups, read again at the next start.
//!
//! A line that was cut short by a crash was never answered for, so it is removed. A line that
//! cannot be read before the last one means that the file was touched: the simulator refuses it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::Context as _;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// An append-only file of JSON lines.
#[derive(Debug)]
pub(crate) struct Journal {
    file: File,
    written: AtomicU64,
    synced: Mutex<u64>,
}

impl Journal {
    /// Opens or makes the file and gives back what it holds.
    pub(crate) fn open<L: DeserializeOwned>(path: &Path) -> anyhow::Result<(Self, Vec<L>)> {
        let mut file = OpenOptions::new()
            .create(true)
            .read(true)
            .append(true)
            .open(path)
            .with_context(|| format!("journal {} cannot be opened", path.display()))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).context("the journal cannot be read")?;

        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |place| place + 1);
        bytes.truncate(whole);
        let length = bytes.len() as u64;
        file.set_len(length).context("the journal's torn last line cannot be removed")?;

        let mut lines = Vec::new();
        for (number, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
            lines.push(serde_json::from_slice(line).with_context(|| {
                format!(
                    "journal {}, line {}: not ours; remove the file",
                    path.display(),
                    number + 1
                )
            })?);
        }
        let journal = Self { file, written: AtomicU64::new(length), synced: Mutex::new(0) };
        journal.sync(length).context("the journal cannot be synced")?;
        Ok((journal, lines))
    }

    /// Appends a line and says how far to sync for it. Callers come one at a time.
    pub(crate) fn append(&self, line: &impl Serialize) -> io::Result<u64> {
        let mut bytes = serde_json::to_vec(line)?;
        bytes.push(b'\n');
        let before = self.written.load(Ordering::Acquire);
        if let Err(error) = (&self.file).write_all(&bytes) {
            // Half a line would spoil the next one.
            self.file.set_len(before)?;
            return Err(error);
        }
        let end = before + bytes.len() as u64;
        self.written.store(end, Ordering::Release);
        Ok(end)
    }

    /// Returns when everything up to `end` is on the disk.
    ///
    /// Whoever waits for the lock finds that its predecessor's sync has served it too: a hundred
    /// payments at a time cost two syncs, not a hundred.
    pub(crate) fn sync(&self, end: u64) -> io::Result<()> {
        let mut synced = self.synced.lock().unwrap_or_else(PoisonError::into_inner);
        if *synced < end {
            let written = self.written.load(Ordering::Acquire);
            self.file.sync_data()?;
            *synced = written;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_last_line_is_removed_and_the_rest_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        std::fs::write(&path, "1\n2\n{\"torn").unwrap();

        let (journal, lines) = Journal::open::<u32>(&path).unwrap();
        let end = journal.append(&3).unwrap();
        journal.sync(end).unwrap();

        assert_eq!(lines, [1, 2]);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "1\n2\n3\n");
    }

    #[test]
    fn a_line_that_is_not_ours_is_named_and_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        std::fs::write(&path, "1\nnot a number\n3\n").unwrap();

        let refusal = Journal::open::<u32>(&path).unwrap_err();

        assert!(refusal.to_string().contains("line 2"), "{refusal}");
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let refusal = Journal::open::<u32>(Path::new("/nowhere/journal")).unwrap_err();

        assert!(refusal.to_string().contains("/nowhere/journal"), "{refusal}");
    }
}
