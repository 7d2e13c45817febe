//! `[store]`: the embedded database file and how it is written.

use std::path::PathBuf;

use serde::Deserialize;

use super::within;

/// The `[store]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreConfig {
    /// The SQLite file; made with mode 0600 when absent, in a directory that exists, on a local
    /// file system. No default.
    pub path: PathBuf,
    /// Connections that read. Default 4.
    #[serde(default = "readers")]
    pub readers: u32,
    /// Orders that may wait for the writer before `busy` is answered. Default 4 096.
    #[serde(default = "writer_queue_max")]
    pub writer_queue_max: u32,
    /// Orders committed together at most. Default 256.
    #[serde(default = "group_rows_max")]
    pub group_rows_max: u32,
}

impl StoreConfig {
    /// Defaults around a file.
    #[must_use]
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            readers: readers(),
            writer_queue_max: writer_queue_max(),
            group_rows_max: group_rows_max(),
        }
    }

    /// Whether every value is within its bounds.
    ///
    /// # Errors
    /// Names the first key that is not, its value and the bounds.
    pub fn check(&self) -> Result<(), String> {
        if self.path.file_name().is_none() {
            return Err(format!("store.path = {:?}: must name a file", self.path));
        }
        within("store.readers", self.readers, 1..=64)?;
        within("store.writer_queue_max", self.writer_queue_max, 16..=65_536)?;
        within("store.group_rows_max", self.group_rows_max, 1..=1_024)
    }
}

fn readers() -> u32 {
    4
}

fn writer_queue_max() -> u32 {
    4_096
}

fn group_rows_max() -> u32 {
    256
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_all_that_must_be_said() {
        let config: StoreConfig = toml::from_str("path = \"var/tollgate.db\"").unwrap();

        assert_eq!(config.check(), Ok(()));
        assert_eq!(config.group_rows_max, 256);
    }

    #[test]
    fn a_directory_a_missing_path_and_no_readers_are_refused() {
        let directory: StoreConfig = toml::from_str("path = \"/\"").unwrap();
        let deaf: StoreConfig = toml::from_str("path = \"a.db\"\nreaders = 0").unwrap();

        assert!(directory.check().unwrap_err().starts_with("store.path"));
        assert_eq!(deaf.check().unwrap_err(), "store.readers = 0: must be from 1 to 64");
        assert!(toml::from_str::<StoreConfig>("readers = 2").is_err());
    }
}
