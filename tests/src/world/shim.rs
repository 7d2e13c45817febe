//! A world whose token stands behind the fault shim: see `softhsm/shim` for what can go wrong.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;

use super::{Link, World, module, program};

/// Longer than the shim takes to look at its control file again.
const SEEN_AFTER: Duration = Duration::from_millis(10);

/// The shim, as a PKCS#11 module.
pub(super) fn path() -> anyhow::Result<PathBuf> {
    program("libsofthsm_shim.so")
}

/// What the shim reads from the environment of a worker.
pub(super) fn environment(dir: &Path) -> anyhow::Result<[(&'static str, PathBuf); 3]> {
    Ok([
        ("TOLLGATE_SHIM_TARGET", module()?),
        ("TOLLGATE_SHIM_CONTROL", dir.join("shim-control")),
        ("TOLLGATE_SHIM_COUNTS", dir.join("shim-counts")),
    ])
}

impl World {
    /// Replaces the control file of the shim. Every C_ call that begins after the return sees it, in
    /// every worker; `""` ends all faults.
    ///
    /// # Errors
    /// The file system's.
    pub async fn shim_control(&self, text: &str) -> anyhow::Result<()> {
        self.shim_control_of(Link::Primary, text).await
    }

    /// The same for the shim of one link.
    ///
    /// # Errors
    /// The file system's.
    pub async fn shim_control_of(&self, link: Link, text: &str) -> anyhow::Result<()> {
        let folder = link.shim_folder(&self.dir);
        let (new, file) = (folder.join("shim-control.new"), folder.join("shim-control"));
        std::fs::write(&new, text).with_context(|| new.display().to_string())?;
        std::fs::rename(&new, &file).with_context(|| file.display().to_string())?;
        tokio::time::sleep(SEEN_AFTER).await;
        Ok(())
    }

    /// How often each C_ function was called through the shim, by its name without `C_`: by all
    /// workers since the world began, also by those that have ended. Questions for a length are not
    /// counted.
    ///
    /// # Errors
    /// When no worker has counted yet.
    pub fn shim_counts(&self) -> anyhow::Result<BTreeMap<String, u64>> {
        self.shim_counts_of(Link::Primary)
    }

    /// The same through the shim of one link.
    ///
    /// # Errors
    /// When none of its workers has counted yet.
    pub fn shim_counts_of(&self, link: Link) -> anyhow::Result<BTreeMap<String, u64>> {
        let folder = link.shim_folder(&self.dir);
        let mut counts = BTreeMap::new();
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            if !entry.file_name().to_string_lossy().starts_with("shim-counts.") {
                continue;
            }
            for entry in std::fs::read(entry.path())?.chunks_exact(32) {
                let (name, count) = entry.split_at(24);
                let name = String::from_utf8_lossy(name).trim_end_matches('\0').to_owned();
                *counts.entry(name).or_default() += u64::from_ne_bytes(count.try_into()?);
            }
        }
        anyhow::ensure!(!counts.is_empty(), "no shim counts in {}", folder.display());
        Ok(counts)
    }
}
