//! `[officers]`: how changes of keys wait for a second officer.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::within;

/// The `[officers]` section.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct OfficersConfig {
    /// How long a proposed change waits for a second officer before it expires. Hours; default 24.
    pub proposal_life_h: u32,
    /// Proposed changes that may wait at a time. Default 32.
    pub proposals_max: u32,
}

impl Default for OfficersConfig {
    fn default() -> Self {
        Self { proposal_life_h: 24, proposals_max: 32 }
    }
}

impl OfficersConfig {
    /// # Errors
    /// Names the key.
    pub fn check(&self) -> Result<(), String> {
        within("officers.proposal_life_h", self.proposal_life_h, 1..=720)?;
        within("officers.proposals_max", self.proposals_max, 1..=1_000)
    }

    /// How long a proposal waits.
    #[must_use]
    pub fn proposal_life(&self) -> Duration {
        Duration::from_secs(u64::from(self.proposal_life_h) * 3600)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proposal_waits_a_day_unless_another_bound_is_named() {
        let config: OfficersConfig = toml::from_str("").unwrap();
        let endless: OfficersConfig = toml::from_str("proposal_life_h = 721").unwrap();
        let closed: OfficersConfig = toml::from_str("proposals_max = 0").unwrap();

        assert_eq!(config.check(), Ok(()));
        assert_eq!(config.proposal_life(), Duration::from_secs(86_400));
        assert!(endless.check().unwrap_err().starts_with("officers.proposal_life_h"));
        assert!(closed.check().unwrap_err().starts_with("officers.proposals_max"));
    }
}
