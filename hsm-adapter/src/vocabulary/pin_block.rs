//! Enciphered PIN blocks and their formats (ISO 9564-1).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Malformed;

/// How a PIN lies in its block. The set is closed: format 2, IBM 3624, Docutel and Diebold are not
/// online formats of this product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PinBlockFormat {
    /// Format 0: PIN xor PAN, 8 bytes, TDES.
    Iso0,
    /// Format 1: no PAN, random fill, 8 bytes, TDES. Input only.
    Iso1,
    /// Format 3: as format 0 with random fill, 8 bytes, TDES.
    Iso3,
    /// Format 4: bound to the whole PAN, 16 bytes, AES.
    Iso4,
}

impl PinBlockFormat {
    /// Every format.
    pub const ALL: [Self; 4] = [Self::Iso0, Self::Iso1, Self::Iso3, Self::Iso4];

    /// 8 or 16.
    #[must_use]
    pub fn block_bytes(self) -> usize {
        match self {
            Self::Iso0 | Self::Iso1 | Self::Iso3 => 8,
            Self::Iso4 => 16,
        }
    }

    /// Whether a block of this format may become one of `to`. The PAN never changes: an order has
    /// one. PCI PIN v3.1 requirement 3-3: 0, 3 and 4 among themselves, 1 to any of them, never to 1.
    #[must_use]
    pub fn may_become(self, to: Self) -> bool {
        match (self, to) {
            (Self::Iso0 | Self::Iso1 | Self::Iso3 | Self::Iso4, Self::Iso1) => false,
            (
                Self::Iso0 | Self::Iso1 | Self::Iso3 | Self::Iso4,
                Self::Iso0 | Self::Iso3 | Self::Iso4,
            ) => true,
        }
    }

    /// `iso0` and so on, as in the API.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Iso0 => "iso0",
            Self::Iso1 => "iso1",
            Self::Iso3 => "iso3",
            Self::Iso4 => "iso4",
        }
    }
}

impl fmt::Display for PinBlockFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for PinBlockFormat {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        Self::ALL.into_iter().find(|format| format.name() == text).ok_or(Malformed::PinBlockFormat)
    }
}

/// An enciphered PIN block of 8 or 16 bytes. Never printed: PCI counts it as PIN data.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinBlock(Vec<u8>);

impl PinBlock {
    /// # Errors
    /// [`Malformed::PinBlockSize`] unless there are 8 or 16 bytes.
    pub fn new(bytes: Vec<u8>) -> Result<Self, Malformed> {
        match bytes.len() {
            8 | 16 => Ok(Self(bytes)),
            _ => Err(Malformed::PinBlockSize),
        }
    }

    /// The bytes, for the wire and the token.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for PinBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PinBlock(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// PCI PIN v3.1, table of requirement 3-3, cell by cell.
    #[test]
    fn only_the_standards_cells_are_open() {
        use PinBlockFormat::{Iso0, Iso1, Iso3, Iso4};
        for from in PinBlockFormat::ALL {
            for to in PinBlockFormat::ALL {
                let open = matches!(to, Iso0 | Iso3 | Iso4);
                assert_eq!(from.may_become(to), open, "{from} to {to}");
            }
        }
        assert!(!Iso1.may_become(Iso1) && Iso1.may_become(Iso0) && Iso4.may_become(Iso3));
    }

    #[test]
    fn foreign_formats_and_sizes_are_refused() {
        for text in ["iso2", "ISO0", "0", "3624", "docutel", "diebold", ""] {
            assert!(text.parse::<PinBlockFormat>().is_err(), "{text:?}");
        }
        for size in [0, 7, 9, 15, 17, 24] {
            assert!(PinBlock::new(vec![0; size]).is_err(), "{size}");
        }
        assert_eq!(format!("{:?}", PinBlock::new(vec![1; 8]).unwrap()), "PinBlock(redacted)");
    }
}
