//! Where the audit log lives and how long an answer may wait for it.

use std::path::PathBuf;

use serde::Deserialize;

use super::within;

/// The audit log of this replica.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditConfig {
    /// Directory of the log, one a replica, on a disk that outlives the process. Made with mode
    /// 0700 when absent.
    pub dir: PathBuf,
    /// Milliseconds after which a batch goes to the disk even while records keep coming. A batch
    /// never waits for company: a record alone is written at once. Default 5.
    #[serde(default = "batch_ms_max")]
    pub batch_ms_max: u64,
    /// Records of one batch. Default 256.
    #[serde(default = "batch_records_max")]
    pub batch_records_max: usize,
    /// Milliseconds that an answer waits for its record before it is withheld. Default 2000.
    #[serde(default = "stall_ms_max")]
    pub stall_ms_max: u64,
    /// Bytes after which the log goes on in a new file. Default 67108864.
    #[serde(default = "segment_bytes_max")]
    pub segment_bytes_max: u64,
}

impl AuditConfig {
    /// A log in `dir` with every default.
    pub fn at(dir: PathBuf) -> Self {
        Self {
            dir,
            batch_ms_max: batch_ms_max(),
            batch_records_max: batch_records_max(),
            stall_ms_max: stall_ms_max(),
            segment_bytes_max: segment_bytes_max(),
        }
    }

    /// Checks every bound.
    ///
    /// # Errors
    /// The key and its bounds.
    pub fn check(&self) -> Result<(), String> {
        if self.dir.as_os_str().is_empty() {
            return Err("dir is empty: name a directory".into());
        }
        within("batch_ms_max", self.batch_ms_max, 1..=100)?;
        within("batch_records_max", self.batch_records_max, 1..=4_096)?;
        within("stall_ms_max", self.stall_ms_max, 100..=10_000)?;
        within("segment_bytes_max", self.segment_bytes_max, 65_536..=1_073_741_824)
    }
}

fn batch_ms_max() -> u64 {
    5
}
fn batch_records_max() -> usize {
    256
}
fn stall_ms_max() -> u64 {
    2_000
}
fn segment_bytes_max() -> u64 {
    64 << 20
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_alone_takes_every_default() {
        let read: AuditConfig = toml::from_str("dir = \"audit\"").unwrap();

        assert_eq!(read, AuditConfig::at("audit".into()));
        assert_eq!(read.check(), Ok(()));
    }

    #[test]
    fn no_stall_limit_is_not_a_choice() {
        let config = AuditConfig { stall_ms_max: 0, ..AuditConfig::at("audit".into()) };

        let error = config.check().unwrap_err();

        assert_eq!(error, "stall_ms_max = 0: must be from 100 to 10000");
    }
}
