//! MAC methods. `Mechanism` is PKCS#11's word; a MAC method is an algorithm.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How a MAC is computed. Bound to the key, never chosen by a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MacAlgorithm {
    /// ISO 9797-1 algorithm 1: CBC-MAC with TDES or AES, usage M1.
    CbcMac,
    /// ISO 9797-1 algorithm 3 with DES (X9.19), usage M3.
    Retail,
    /// SP 800-38B with TDES or AES, usage M6.
    Cmac,
    /// FIPS 198-1, usage M7.
    HmacSha256,
}

impl MacAlgorithm {
    /// `cbc-mac`, `retail`, `cmac`, `hmac-sha256`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::CbcMac => "cbc-mac",
            Self::Retail => "retail",
            Self::Cmac => "cmac",
            Self::HmacSha256 => "hmac-sha256",
        }
    }
}

impl fmt::Display for MacAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// ISO 9797-1 padding of algorithms 1 and 3. CMAC and HMAC have none to choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub enum MacPadding {
    /// Zero bits up to the block: ambiguous, because a message and the same with zeros appended share a MAC.
    One,
    /// `80 00..`, always added.
    Two,
}

impl TryFrom<u8> for MacPadding {
    type Error = &'static str;

    fn try_from(method: u8) -> Result<Self, Self::Error> {
        match method {
            1 => Ok(Self::One),
            2 => Ok(Self::Two),
            _ => Err("a padding method of ISO 9797-1 is 1 or 2"),
        }
    }
}

impl From<MacPadding> for u8 {
    fn from(padding: MacPadding) -> Self {
        match padding {
            MacPadding::One => 1,
            MacPadding::Two => 2,
        }
    }
}
