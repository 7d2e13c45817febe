//! Where the audit log lives and how long an answer may wait for it.

use std::path::PathBuf;

use compliance::{ARCHIVE, StreamId};
use hsm_adapter::vocabulary::KeyLabel;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{SinkConfig, sink, within};

/// The audit log of this replica.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct AuditConfig {
    /// Directory of the log, one a replica, on a disk that outlives the process. Made with mode
    /// 0700 when absent.
    pub dir: PathBuf,
    /// The name that all replicas share, in streams and signatures: letters, digits, `.`, `_`, `-`.
    /// Default `tollgate`.
    #[serde(default = "deployment")]
    pub deployment: String,
    /// Label of the key that signs checkpoints, role `audit-signing`. Default `audit.signing`.
    #[serde(default = "signing_key")]
    pub signing_key: KeyLabel,
    /// Seconds between two checkpoints, also when nothing happens. Default 5.
    #[serde(default = "checkpoint_s")]
    pub checkpoint_s: u64,
    /// Records after which a checkpoint comes earlier, though never within a second of the last one.
    /// Default 1000.
    #[serde(default = "checkpoint_records")]
    pub checkpoint_records: u64,
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
    /// Days that a segment stays in `dir`, where the admin API finds its records. Default 90.
    #[serde(default = "hot_days")]
    pub hot_days: u32,
    /// Days after which a segment is purged. Default 400.
    #[serde(default = "retention_days")]
    pub retention_days: u32,
    /// Where segments go after `hot_days`. `archive` below `dir` when absent.
    #[serde(default)]
    pub archive_dir: Option<PathBuf>,
    /// `[[audit.sink]]`: where each record is pushed to. At most 8; default none.
    #[serde(default)]
    pub sink: Vec<SinkConfig>,
}

impl AuditConfig {
    /// A log in `dir` with every default.
    pub fn at(dir: PathBuf) -> Self {
        Self {
            dir,
            deployment: deployment(),
            signing_key: signing_key(),
            checkpoint_s: checkpoint_s(),
            checkpoint_records: checkpoint_records(),
            batch_ms_max: batch_ms_max(),
            batch_records_max: batch_records_max(),
            stall_ms_max: stall_ms_max(),
            segment_bytes_max: segment_bytes_max(),
            hot_days: hot_days(),
            retention_days: retention_days(),
            archive_dir: None,
            sink: Vec::new(),
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
        StreamId::new(&self.deployment, "replica", Uuid::nil())
            .map_err(|error| format!("deployment: {error}"))?;
        within("checkpoint_s", self.checkpoint_s, 1..=60)?;
        within("checkpoint_records", self.checkpoint_records, 100..=1_000_000)?;
        within("batch_ms_max", self.batch_ms_max, 1..=100)?;
        within("batch_records_max", self.batch_records_max, 1..=4_096)?;
        within("stall_ms_max", self.stall_ms_max, 100..=10_000)?;
        within("segment_bytes_max", self.segment_bytes_max, 65_536..=1_073_741_824)?;
        within("hot_days", self.hot_days, 1..=3_650)?;
        within("retention_days", self.retention_days, self.hot_days..=36_500)?;
        sink::check(&self.sink)
    }

    /// What production must keep at least (PCI DSS 10.5.1).
    ///
    /// # Errors
    /// The key and its floor.
    pub fn check_production(&self) -> Result<(), String> {
        let floors = [
            ("hot_days", self.hot_days, HOT_DAYS_FLOOR),
            ("retention_days", self.retention_days, RETENTION_DAYS_FLOOR),
        ];
        for (key, days, floor) in floors {
            if days < floor {
                return Err(format!("{key} = {days}: production keeps at least {floor}"));
            }
        }
        Ok(())
    }

    /// Where segments go after `hot_days`.
    #[must_use]
    pub fn archive(&self) -> PathBuf {
        self.archive_dir.clone().unwrap_or_else(|| self.dir.join(ARCHIVE))
    }
}

fn deployment() -> String {
    "tollgate".into()
}
fn signing_key() -> KeyLabel {
    KeyLabel::parse("audit.signing").expect("thirteen characters of the allowed set")
}
fn checkpoint_s() -> u64 {
    5
}
fn checkpoint_records() -> u64 {
    1_000
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

fn hot_days() -> u32 {
    HOT_DAYS_FLOOR
}
fn retention_days() -> u32 {
    400
}

/// PCI DSS 10.5.1: three months at hand.
const HOT_DAYS_FLOOR: u32 = 90;
/// PCI DSS 10.5.1: twelve months in all.
const RETENTION_DAYS_FLOOR: u32 = 365;

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
    fn production_keeps_a_year_and_three_months_of_it_at_hand() {
        let config = AuditConfig::at("audit".into());
        let short = AuditConfig { hot_days: 89, ..config.clone() };
        let shorter = AuditConfig { retention_days: 364, ..config.clone() };

        assert_eq!(config.check_production(), Ok(()));
        assert_eq!((short.check(), shorter.check()), (Ok(()), Ok(())));
        let told = "hot_days = 89: production keeps at least 90";
        assert_eq!(short.check_production().unwrap_err(), told);
        let told = "retention_days = 364: production keeps at least 365";
        assert_eq!(shorter.check_production().unwrap_err(), told);
        let upside_down = AuditConfig { retention_days: 80, ..config };
        assert!(upside_down.check().is_err());
    }

    #[test]
    fn no_stall_limit_is_not_a_choice() {
        let config = AuditConfig { stall_ms_max: 0, ..AuditConfig::at("audit".into()) };

        let error = config.check().unwrap_err();

        assert_eq!(error, "stall_ms_max = 0: must be from 100 to 10000");
    }
}
