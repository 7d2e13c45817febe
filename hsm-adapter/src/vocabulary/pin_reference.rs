//! What the issuer keeps of a PIN: a PVV or an offset. Never returned, never stored, never printed.

use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::Malformed;

/// A Visa PIN verification value: four digits.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop, Serialize, Deserialize)]
pub struct Pvv([u8; 4]);

impl Pvv {
    /// # Errors
    /// [`Malformed::Pvv`] unless four decimal digits.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let digits: [u8; 4] = text.as_bytes().try_into().map_err(|_| Malformed::Pvv)?;
        if digits.iter().all(u8::is_ascii_digit) {
            Ok(Self(digits.map(|digit| digit - b'0')))
        } else {
            Err(Malformed::Pvv)
        }
    }

    /// Four values 0 to 9.
    #[must_use]
    pub fn expose(&self) -> &[u8; 4] {
        &self.0
    }
}

impl fmt::Debug for Pvv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pvv(redacted)")
    }
}

/// The index of a PVV key: card data, 0 to 6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Pvki(u8);

impl TryFrom<u8> for Pvki {
    type Error = Malformed;

    fn try_from(index: u8) -> Result<Self, Malformed> {
        if index <= 6 { Ok(Self(index)) } else { Err(Malformed::Pvki) }
    }
}

impl From<Pvki> for u8 {
    fn from(pvki: Pvki) -> Self {
        pvki.0
    }
}

/// An IBM 3624 offset: 4 to 12 digits, as many as the PIN has.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop, Serialize, Deserialize)]
pub struct PinOffset(Vec<u8>);

impl PinOffset {
    /// # Errors
    /// [`Malformed::PinOffset`] unless 4 to 12 decimal digits.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        if (4..=12).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit()) {
            Ok(Self(text.bytes().map(|byte| byte - b'0').collect()))
        } else {
            Err(Malformed::PinOffset)
        }
    }

    /// Values 0 to 9.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for PinOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PinOffset(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_digits_of_the_right_number_pass_and_nothing_is_printed() {
        assert_eq!(Pvv::parse("0123").unwrap().expose(), &[0, 1, 2, 3]);
        assert_eq!(PinOffset::parse("7710").unwrap().expose(), [7, 7, 1, 0]);
        for text in ["", "123", "12345", "12A4", "\u{ff11}"] {
            assert_eq!(Pvv::parse(text), Err(Malformed::Pvv), "{text:?}");
        }
        for text in ["", "123", "1234567890123", "12-4"] {
            assert_eq!(PinOffset::parse(text), Err(Malformed::PinOffset), "{text:?}");
        }
        assert_eq!(
            (Pvki::try_from(6).map(u8::from), Pvki::try_from(7)),
            (Ok(6), Err(Malformed::Pvki))
        );
        let shown = format!("{:?} {:?}", Pvv::parse("0123"), PinOffset::parse("7710"));
        assert!(!shown.contains("0123") && !shown.contains("7710"), "{shown}");
    }
}
