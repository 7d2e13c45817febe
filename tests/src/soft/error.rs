//! Why a value was refused. The order of the PIN block checks is the order of the variants.

use std::fmt;

/// What does not hold. Never carries the value itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SoftError {
    /// The key has a length that the algorithm does not know.
    KeySize {
        /// Bytes given.
        bytes: usize,
    },
    /// The PIN block has not the size of the format.
    BlockSize,
    /// The first nibble is not the format's.
    Control,
    /// The PIN has not 4 to 12 digits.
    Length,
    /// A PIN digit is not decimal.
    Digit,
    /// The filler is not the format's.
    Filler,
    /// The PAN has not 8 to 19 decimal digits.
    Pan,
    /// No such PIN block format.
    Format,
}

impl SoftError {
    /// The word that `vectors/pinblock_invalid.json` uses for a failed check.
    pub fn check(self) -> &'static str {
        match self {
            Self::KeySize { .. } => "key_size",
            Self::BlockSize => "block_size",
            Self::Control => "control",
            Self::Length => "length",
            Self::Digit => "digit",
            Self::Filler => "filler",
            Self::Pan => "pan",
            Self::Format => "format",
        }
    }
}

impl fmt::Display for SoftError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KeySize { bytes } => write!(f, "no such algorithm takes a key of {bytes} bytes"),
            Self::BlockSize => f.write_str("the PIN block has another size than its format"),
            Self::Control => f.write_str("the PIN block's first nibble names another format"),
            Self::Length => f.write_str("a PIN has 4 to 12 digits"),
            Self::Digit => f.write_str("a PIN digit is not decimal"),
            Self::Filler => f.write_str("the PIN block's filler is not its format's"),
            Self::Pan => f.write_str("a PAN has 8 to 19 decimal digits"),
            Self::Format => f.write_str("PIN block formats are iso0, iso1, iso3 and iso4"),
        }
    }
}

impl std::error::Error for SoftError {}
