//! How a key is named, what it is for, how it is told from another.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Malformed;

/// The name of a key without its version: `zpk.acquirer-a`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyLabel(String);

impl KeyLabel {
    /// # Errors
    /// [`Malformed::KeyLabel`] unless 1 to 64 of `a-z`, `0-9`, `.`, `-`.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-');
        if (1..=64).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Malformed::KeyLabel)
        }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for KeyLabel {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for KeyLabel {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// A key as an order names it: its label, and a version when not the active one is meant.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KeyName {
    /// The label.
    pub label: KeyLabel,
    /// `None` for the active version.
    pub version: Option<u32>,
}

impl From<KeyLabel> for KeyName {
    fn from(label: KeyLabel) -> Self {
        Self { label, version: None }
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.version {
            Some(version) => write!(f, "{}@{version}", self.label),
            None => self.label.fmt(f),
        }
    }
}

/// The one thing a key may do. One key, one role (X9.143 key usage).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyRole {
    /// P0, deciphers inbound PIN blocks.
    ZonePinIn,
    /// P0, enciphers outbound PIN blocks.
    ZonePinOut,
    /// M0, M1, M3, M6, M7: generates and verifies MACs.
    Mac,
    /// B0: DUKPT base derivation key.
    BaseDerivation,
    /// V2: Visa PVV key.
    PinVerificationPvv,
    /// V1: IBM 3624 key.
    #[serde(rename = "pin-verification-3624")]
    PinVerification3624,
    /// P0, enciphers the block that is compared with a reference block.
    PinReference,
    /// K1: key block protection key.
    KeyBlockProtection,
    /// Wraps the queue's data keys.
    QueueKek,
    /// Signs audit checkpoints.
    AuditSigning,
}

impl KeyRole {
    /// `zone-pin-in` and so on, as in `keys.toml`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ZonePinIn => "zone-pin-in",
            Self::ZonePinOut => "zone-pin-out",
            Self::Mac => "mac",
            Self::BaseDerivation => "base-derivation",
            Self::PinVerificationPvv => "pin-verification-pvv",
            Self::PinVerification3624 => "pin-verification-3624",
            Self::PinReference => "pin-reference",
            Self::KeyBlockProtection => "key-block-protection",
            Self::QueueKek => "queue-kek",
            Self::AuditSigning => "audit-signing",
        }
    }
}

impl fmt::Display for KeyRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a check value is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KcvMethod {
    /// Encipher a block of zeros, left 3 bytes (X9.24-1).
    Zeros,
    /// CMAC over a block of zeros, left 3 bytes (X9.143).
    Cmac,
    /// HMAC-SHA-256 over nothing, left 3 bytes: a convention of this project, for HMAC keys.
    #[serde(rename = "hmac-sha256")]
    HmacSha256,
}

/// A key check value: tells keys apart, authenticates nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kcv([u8; 3]);

impl Kcv {
    /// The left three bytes of `bytes`.
    ///
    /// # Errors
    /// [`Malformed::Kcv`] when there are fewer.
    pub fn from_left(bytes: &[u8]) -> Result<Self, Malformed> {
        bytes.first_chunk::<3>().map(|left| Self(*left)).ok_or(Malformed::Kcv)
    }

    /// # Errors
    /// [`Malformed::Kcv`] unless six hex digits.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let mut bytes = [0; 3];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| Malformed::Kcv)?;
        Ok(Self(bytes))
    }

    /// The three bytes.
    #[must_use]
    pub fn bytes(self) -> [u8; 3] {
        self.0
    }
}

impl fmt::Display for Kcv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode_upper(self.0))
    }
}

impl Serialize for Kcv {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_string().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Kcv {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}
