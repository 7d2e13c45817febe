//! How often each function was called: a file that another process may read at any time.
//!
//! The file is a row of 32-byte entries in the machine's own byte order: a name of 24 bytes,
//! filled with zeros, and a count of 8. Counting is one atomic addition in memory that the file
//! shares.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap};

#[repr(C)]
struct Entry {
    name: [u8; 24],
    count: AtomicU64,
}

/// The counters of this process.
pub(crate) struct Counts(&'static [Entry]);

impl Counts {
    /// Makes `<path>.<process id>`.
    pub(crate) fn create(path: &Path, names: &[&str]) -> std::io::Result<Self> {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{}", std::process::id()));
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        let mut file = options.open(Path::new(&name))?;
        let mut content = Vec::new();
        for name in names {
            content.extend_from_slice(name.as_bytes());
            content.resize(content.len().next_multiple_of(32), 0);
        }
        file.write_all(&content)?;
        let (read_write, shared) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: the kernel chooses the place, so that no memory of ours is replaced.
        let first =
            unsafe { mmap(std::ptr::null_mut(), content.len(), read_write, shared, &file, 0)? };
        // SAFETY: the mapping is page-aligned, as long as the entries, never unmapped, and any bytes
        // are a valid `Entry`. Only counts are ever written, and those by atomic operations.
        Ok(Self(unsafe { std::slice::from_raw_parts(first.cast(), names.len()) }))
    }

    pub(crate) fn count(&self, at: usize) {
        if let Some(entry) = self.0.get(at) {
            entry.count.fetch_add(1, Ordering::Relaxed);
        }
    }
}
