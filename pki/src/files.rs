//! Files are replaced whole (temporary file, then rename), with their mode from the first byte on.
//!
//! That protects readers and survives a killed process. It does not sync: after a power cut an
//! authority for demo and CI is made anew.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::PkiError;

pub(crate) const PRIVATE: u32 = 0o600;
pub(crate) const PUBLIC: u32 = 0o644;

/// Replaces `path`. The caller holds the lock of the directory, which makes the temporary name ours.
pub(crate) fn replace(path: &Path, content: &str, mode: u32) -> Result<(), PkiError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = Path::new(&temporary);
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(temporary)?;
        file.write_all(content.as_bytes())?;
        fs::rename(temporary, path)
    };
    write().map_err(io("write", path))
}

pub(crate) fn read(path: &Path) -> Result<String, PkiError> {
    fs::read_to_string(path).map_err(io("read", path))
}

/// Waits until no other process or thread changes the directory of `path`; ends with the `File`.
pub(crate) fn lock(path: &Path) -> Result<File, PkiError> {
    let file = File::open(path).map_err(io("open", path))?;
    file.lock().map_err(io("lock", path))?;
    Ok(file)
}

pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> PkiError {
    move |source| PkiError::Io { doing, path: path.to_owned(), source }
}
