//! The field's nouns, parsed once: whoever holds one of these values holds a valid one.

mod key;
mod key_block;
mod ksn;
mod mac;
mod mode;
mod pan;
mod pin_block;
mod pin_reference;
mod signature;

pub use key::{Kcv, KcvMethod, KeyLabel, KeyName, KeyRole};
pub use key_block::KeyBlockText;
pub use ksn::Ksn;
pub use mac::{MacAlgorithm, MacPadding};
pub use mode::Mode;
pub use pan::Pan;
pub use pin_block::{PinBlock, PinBlockFormat};
pub use pin_reference::{PinOffset, Pvki, Pvv};
pub use signature::SignatureAlgorithm;

/// Why a text is not a value of this vocabulary. Names the rule, never the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A PAN has 8 to 19 decimal digits.
    #[error("a PAN has 8 to 19 decimal digits")]
    Pan,
    /// A PIN block has 8 or 16 bytes.
    #[error("a PIN block has 8 bytes (iso0, iso1, iso3) or 16 bytes (iso4)")]
    PinBlockSize,
    /// Formats are iso0, iso1, iso3, iso4.
    #[error("a PIN block format is one of iso0, iso1, iso3, iso4")]
    PinBlockFormat,
    /// Labels are 1 to 64 characters of a to z, 0 to 9, dot and hyphen.
    #[error("a key label has 1 to 64 characters of a-z, 0-9, '.', '-'")]
    KeyLabel,
    /// KSNs have 16 to 20 hex digits (TDES) or 24 (AES).
    #[error("a KSN has 16 to 20 hex digits (TDES DUKPT) or 24 (AES DUKPT)")]
    Ksn,
    /// A PVV has four decimal digits.
    #[error("a PVV has four decimal digits")]
    Pvv,
    /// A PVKI is 0 to 6.
    #[error("a PVKI is one digit, 0 to 6")]
    Pvki,
    /// An offset has 4 to 12 decimal digits.
    #[error("a PIN offset has 4 to 12 decimal digits")]
    PinOffset,
    /// A key block is printable, of 16 to 9992 characters.
    #[error("a key block has 16 to 9992 printable ASCII characters")]
    KeyBlock,
    /// A check value has three bytes.
    #[error("a key check value has three bytes, in hex")]
    Kcv,
}
