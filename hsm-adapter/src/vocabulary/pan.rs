//! The primary account number (ISO/IEC 7812).

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::Malformed;

/// A PAN of 8 to 19 digits. Prints as `411111******1111`.
///
/// PANs shorter than 13 digits are left-padded in the account field, as ISO 9564-1 leaves open and
/// some peers refuse.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct Pan {
    digits: [u8; 19], // values 0 to 9
    length: u8,
}

impl Pan {
    /// # Errors
    /// [`Malformed::Pan`] unless `text` is 8 to 19 decimal digits.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let bytes = text.as_bytes();
        if !(8..=19).contains(&bytes.len()) || !bytes.iter().all(u8::is_ascii_digit) {
            return Err(Malformed::Pan);
        }
        let mut digits = [0; 19];
        for (digit, byte) in digits.iter_mut().zip(bytes) {
            *digit = byte - b'0';
        }
        Ok(Self { digits, length: bytes.len() as u8 })
    }

    fn digits(&self) -> &[u8] {
        &self.digits[..usize::from(self.length)]
    }

    /// Account field of formats 0 and 3: `0000` and the 12 right-most digits without the check
    /// digit, left-padded with zeros. ISO 9564-1.
    #[must_use]
    pub fn account_field(&self) -> [u8; 8] {
        let body = &self.digits()[..self.digits().len() - 1];
        let tail = &body[body.len().saturating_sub(12)..];
        let mut nibbles = [0u8; 16];
        nibbles[16 - tail.len()..].copy_from_slice(tail);
        pack(&nibbles)
    }

    /// PAN field of format 4: length nibble (PAN length - 12, 0 up to 12), the whole PAN (left-padded
    /// to 12 digits), zero fill. ISO 9564-1.
    #[must_use]
    pub fn iso4_field(&self) -> [u8; 16] {
        let digits = self.digits();
        let mut nibbles = [0u8; 32];
        nibbles[0] = (digits.len() as u8).saturating_sub(12);
        let start = 1 + 12usize.saturating_sub(digits.len());
        nibbles[start..start + digits.len()].copy_from_slice(digits);
        pack(&nibbles)
    }

    /// The 11 right-most digits without the check digit, left-padded with zeros: the front of a
    /// PVV's input. Values 0 to 9.
    #[must_use]
    pub fn pvv_digits(&self) -> [u8; 11] {
        let body = &self.digits()[..self.digits().len() - 1];
        let tail = &body[body.len().saturating_sub(11)..];
        let mut digits = [0; 11];
        digits[11 - tail.len()..].copy_from_slice(tail);
        digits
    }

    /// `count` digits from the one at `offset`, counted from the left, filled up to 16 with the
    /// nibble `pad`: IBM 3624 validation data.
    pub(crate) fn validation_data(&self, offset: usize, count: usize, pad: u8) -> [u8; 8] {
        let mut nibbles = [pad; 16];
        let taken = self.digits().iter().skip(offset).take(count);
        for (nibble, digit) in nibbles.iter_mut().zip(taken) {
            *nibble = *digit;
        }
        pack(&nibbles)
    }

    /// The last four digits, for records that may keep no more.
    #[must_use]
    pub fn last_four(&self) -> String {
        let digits = self.digits();
        text(&digits[digits.len() - 4..])
    }

    /// All digits. For the sealed payload and the backend only: nothing that this returns may be
    /// logged.
    #[must_use]
    pub fn expose(&self) -> String {
        text(self.digits())
    }
}

fn text(digits: &[u8]) -> String {
    digits.iter().map(|digit| char::from(b'0' + digit)).collect()
}

/// Two nibbles a byte.
fn pack<const N: usize>(nibbles: &[u8]) -> [u8; N] {
    std::array::from_fn(|at| nibbles[2 * at] << 4 | nibbles[2 * at + 1])
}

impl fmt::Display for Pan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.digits();
        // At least five digits stay hidden in the shortest PAN that shows any of its front.
        let front = if digits.len() >= 15 { 6 } else { 0 };
        f.write_str(&text(&digits[..front]))?;
        f.write_str(&"*".repeat(digits.len() - front - 4))?;
        f.write_str(&text(&digits[digits.len() - 4..]))
    }
}

impl fmt::Debug for Pan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Pan {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        zeroize::Zeroizing::new(self.expose()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Pan {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = zeroize::Zeroizing::new(String::deserialize(deserializer)?);
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_fields_come_out() {
        let file: serde_json::Value =
            serde_json::from_str(include_str!("../../../tests/vectors/pan.json")).unwrap();
        for vector in file["vectors"].as_array().unwrap() {
            let id = vector["id"].as_str().unwrap();
            let pan = vector["pan"].as_str().unwrap();
            let Ok(pan) = Pan::parse(pan) else { panic!("{id}: refused") };
            let field = |name: &str| vector[name].as_str().unwrap().to_owned();
            assert_eq!(hex::encode_upper(pan.account_field()), field("account_field"), "{id}");
            assert_eq!(hex::encode_upper(pan.iso4_field()), field("iso4_pan_field"), "{id}");
            assert_eq!(text(&pan.pvv_digits()), field("pvv_pan_digits"), "{id}");
        }
    }

    #[test]
    fn published_validation_data_come_out() {
        let file: serde_json::Value =
            serde_json::from_str(include_str!("../../../tests/vectors/ibm3624.json")).unwrap();
        for vector in file["vectors"].as_array().unwrap() {
            let number = |name: &str| vector[name].as_u64().unwrap() as usize;
            let pan = Pan::parse(vector["pan"].as_str().unwrap()).unwrap();

            let (offset, count) = (number("pan_verify_offset"), number("pan_verify_length"));
            let data = pan.validation_data(offset, count, 0xF);

            let wanted = vector["validation_data"].as_str().unwrap();
            assert_eq!(hex::encode_upper(data), wanted, "{}", vector["id"]);
        }
    }

    #[test]
    fn what_is_no_pan_is_refused() {
        for text in ["", "1234567", "12345678901234567890", "4111 1111", "411111111111111x"] {
            assert_eq!(Pan::parse(text).unwrap_err(), Malformed::Pan, "{text:?}");
        }
    }

    #[test]
    fn printing_hides_the_middle() {
        let pan = Pan::parse("4111111111111111").unwrap();
        assert_eq!(format!("{pan} {pan:?}"), "411111******1111 411111******1111");
        assert_eq!(Pan::parse("50780453838").unwrap().to_string(), "*******3838");
    }
}
