//! The cipher families that a key may belong to.

use serde::{Deserialize, Serialize};

use crate::vocabulary::SignatureAlgorithm;

/// The cipher family of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyAlgorithm {
    /// Double or triple length DES.
    Tdes,
    /// AES-128, 192 or 256.
    Aes,
    /// A secret for HMAC.
    Hmac,
    /// P-256. For role `audit-signing`.
    Ec,
    /// Curve 25519 in Edwards form (RFC 8032). For role `audit-signing`.
    Ed25519,
}

impl KeyAlgorithm {
    /// What a key of this family signs with; `None` for a secret key.
    #[must_use]
    pub fn signature(self) -> Option<SignatureAlgorithm> {
        match self {
            Self::Ec => Some(SignatureAlgorithm::EcdsaP256Sha256),
            Self::Ed25519 => Some(SignatureAlgorithm::Ed25519),
            Self::Tdes | Self::Aes | Self::Hmac => None,
        }
    }

    /// Whether a key of this family is a private key with its public one beside it.
    #[must_use]
    pub fn is_pair(self) -> bool {
        self.signature().is_some()
    }
}
