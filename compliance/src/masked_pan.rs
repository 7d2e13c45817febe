//! What an event may hold of a card number: its last four digits.
//!
//! Never the first six beside them, and never a hash: the two together can be joined with other
//! records until the number is known (PCI DSS 3.5.1).

use serde::{Serialize, Serializer};

/// Exactly four digits. There is no room for a fifth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PanLastFour([u8; 4]); // ASCII digits

impl PanLastFour {
    /// # Errors
    /// [`NotFourDigits`] for anything but four decimal digits; a whole PAN is not cut, but refused.
    pub fn parse(text: &str) -> Result<Self, NotFourDigits> {
        let digits: [u8; 4] = text.as_bytes().try_into().map_err(|_| NotFourDigits)?;
        if digits.iter().all(u8::is_ascii_digit) { Ok(Self(digits)) } else { Err(NotFourDigits) }
    }
}

impl Serialize for PanLastFour {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!(
            "{}{}{}{}",
            char::from(self.0[0]),
            char::from(self.0[1]),
            char::from(self.0[2]),
            char::from(self.0[3])
        ))
    }
}

/// Says the rule, never the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an event keeps exactly the last four digits of a PAN")]
pub struct NotFourDigits;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_digits_are_written_as_they_are() {
        let last = PanLastFour::parse("0019").unwrap();

        assert_eq!(serde_json::to_string(&last).unwrap(), "\"0019\"");
    }

    #[test]
    fn more_or_less_or_other_than_four_digits_is_refused() {
        for text in
            ["", "123", "12345", "4111111111111111", "411111******1111", "12a4", "१२३४", "١٢"]
        {
            assert_eq!(PanLastFour::parse(text), Err(NotFourDigits), "{text:?}");
        }
    }
}
