//! Where a clear PIN is while a PIN operation runs.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where a clear PIN is while a PIN operation runs. Chosen for each key, proved at start, never
/// silently exchanged.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Inside the token only: unwrapped and wrapped there, never in host memory.
    InToken,
    /// Inside the token only: its own translate mechanism.
    Vendor,
    /// In locked, zeroized memory of the worker process.
    #[default]
    InWorker,
}

impl Mode {
    /// Every mode.
    pub const ALL: [Self; 3] = [Self::InToken, Self::Vendor, Self::InWorker];

    /// `in_token`, `vendor`, `in_worker`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::InToken => "in_token",
            Self::Vendor => "vendor",
            Self::InWorker => "in_worker",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
