//! Key serial numbers of DUKPT: which device, which transaction.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Malformed;

/// A key serial number. The length tells the family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Ksn {
    /// X9.24-1: key set id and device in 59 bits, then a counter of 21 bits.
    Tdes([u8; 10]),
    /// X9.24-3: initial key id of 8 bytes (BDK id, derivation id), then a counter of 32 bits.
    Aes([u8; 12]),
}

impl Ksn {
    /// 24 hex digits are an AES KSN; 16 to 20 a TDES KSN, whose leading F may have been stripped by
    /// a peer and are put back.
    ///
    /// # Errors
    /// [`Malformed::Ksn`] for any other text.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        match text.len() {
            24 => {
                let mut bytes = [0; 12];
                hex::decode_to_slice(text, &mut bytes).map_err(|_| Malformed::Ksn)?;
                Ok(Self::Aes(bytes))
            }
            16..=20 => {
                let mut bytes = [0; 10];
                let whole = format!("{text:F>20}");
                hex::decode_to_slice(whole, &mut bytes).map_err(|_| Malformed::Ksn)?;
                Ok(Self::Tdes(bytes))
            }
            _ => Err(Malformed::Ksn),
        }
    }

    /// The transaction counter.
    #[must_use]
    pub fn counter(&self) -> u32 {
        match self {
            Self::Tdes(bytes) => {
                u32::from_be_bytes([0, bytes[7], bytes[8], bytes[9]]) & TDES_COUNTER_MASK
            }
            Self::Aes(bytes) => u32::from_be_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]),
        }
    }

    /// Whether the standard lets a device use this counter: not zero, at most 10 one-bits (TDES) or
    /// 16 (AES).
    #[must_use]
    pub fn is_usable(&self) -> bool {
        let ones_max = match self {
            Self::Tdes(_) => 10,
            Self::Aes(_) => 16,
        };
        (1..=ones_max).contains(&self.counter().count_ones())
    }

    /// The device: the KSN with its counter at zero.
    #[must_use]
    pub fn device(&self) -> Self {
        match *self {
            Self::Tdes(mut bytes) => {
                bytes[7] &= 0xE0;
                bytes[8] = 0;
                bytes[9] = 0;
                Self::Tdes(bytes)
            }
            Self::Aes(mut bytes) => {
                bytes[8..].fill(0);
                Self::Aes(bytes)
            }
        }
    }

    /// 10 or 12 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Tdes(bytes) => bytes,
            Self::Aes(bytes) => bytes,
        }
    }
}

const TDES_COUNTER_MASK: u32 = 0x001F_FFFF;

impl fmt::Display for Ksn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode_upper(self.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_tells_the_family_and_stripped_f_come_back() {
        let full = Ksn::parse("FFFF9876543210E00001").unwrap();
        assert_eq!(Ksn::parse("9876543210E00001").unwrap(), full);
        assert_eq!(
            (full.counter(), full.device().to_string().as_str()),
            (1, "FFFF9876543210E00000")
        );
        let aes = Ksn::parse("123456789012345600000003").unwrap();
        assert_eq!((aes.counter(), aes.device().counter()), (3, 0));
        for text in [
            "",
            "9876543210E0000",
            "9876543210E00001AAAAA",
            "12345678901234560000000",
            "X876543210E00001",
        ] {
            assert_eq!(Ksn::parse(text), Err(Malformed::Ksn), "{text:?}");
        }
    }

    #[test]
    fn counters_that_no_device_uses_are_not_usable() {
        for (text, usable) in [
            ("FFFF9876543210E00000", false),
            ("FFFF9876543210E003FF", true),
            ("FFFF9876543210E007FF", false),
            ("12345678901234560000FFFF", true),
            ("12345678901234560001FFFF", false),
            ("123456789012345600000000", false),
        ] {
            assert_eq!(Ksn::parse(text).unwrap().is_usable(), usable, "{text}");
        }
    }
}
