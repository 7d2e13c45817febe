//! Signature methods.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How a signature is made. Bound to the key, never chosen by a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SignatureAlgorithm {
    /// FIPS 186-5 ECDSA on P-256 over SHA-256. The signature is an ASN.1 DER `Ecdsa-Sig-Value`, the
    /// public key a DER SubjectPublicKeyInfo of 91 bytes.
    EcdsaP256Sha256,
    /// RFC 8032, pure. The signature is 64 bytes, the public key 32.
    Ed25519,
}

impl SignatureAlgorithm {
    /// `ecdsa-p256-sha256` or `ed25519`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::EcdsaP256Sha256 => "ecdsa-p256-sha256",
            Self::Ed25519 => "ed25519",
        }
    }
}

impl fmt::Display for SignatureAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_what_a_file_says() {
        for algorithm in [SignatureAlgorithm::EcdsaP256Sha256, SignatureAlgorithm::Ed25519] {
            let written = serde_json::to_value(algorithm).unwrap();
            assert_eq!(written, algorithm.to_string());
        }
    }
}
