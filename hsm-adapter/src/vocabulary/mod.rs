//! The field's nouns, parsed once: whoever holds one of these values holds a valid one.

mod key;
mod mac;
mod pan;
mod pin_block;

pub use key::{Kcv, KcvMethod, KeyLabel, KeyName, KeyRole};
pub use mac::{MacAlgorithm, MacPadding};
pub use pan::Pan;
pub use pin_block::{PinBlock, PinBlockFormat};

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
    /// A check value has three bytes.
    #[error("a key check value has three bytes, in hex")]
    Kcv,
}
