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
    /// Data to chain is not whole blocks.
    Blocks,
    /// The key serial number has not the form of its scheme.
    Ksn,
    /// The transaction counter is zero or has more one-bits than its scheme uses.
    Counter,
    /// A working key would be longer than the key that it comes from.
    KeyType,
    /// No such PIN verification key index.
    Pvki,
    /// Decimalisation table, validation data or PIN do not fit each other.
    Validation,
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
            Self::Blocks => "blocks",
            Self::Ksn => "ksn",
            Self::Counter => "counter",
            Self::KeyType => "key_type",
            Self::Pvki => "pvki",
            Self::Validation => "validation",
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
            Self::Blocks => f.write_str("the data is not whole blocks"),
            Self::Ksn => f.write_str("a KSN has 16 to 20 hex digits under TDES, 24 under AES"),
            Self::Counter => {
                f.write_str("a DUKPT counter has 1 to 10 one-bits under TDES, 1 to 16 under AES")
            }
            Self::KeyType => f.write_str("a working key is never longer than its BDK"),
            Self::Pvki => f.write_str("a PIN verification key index is 0 to 6"),
            Self::Validation => {
                f.write_str("table, validation data and PIN of IBM 3624 do not fit each other")
            }
        }
    }
}

impl std::error::Error for SoftError {}
