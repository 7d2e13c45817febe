//! IBM 3624: a natural PIN from the account, and the offset from it to the customer's own.

use super::SoftError;
use super::cipher::tdes_encrypt_block;
use super::pan::checked;

/// How an issuer makes natural PINs. All of it belongs to the key, never to a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// 16 decimal digits: what each nibble 0..F becomes.
    pub table: String,
    /// First PAN digit of the validation data, counted from 0.
    pub from: usize,
    /// How many PAN digits, up to 16.
    pub digits: usize,
    /// The hex digit that fills the validation data to 16.
    pub pad: char,
}

impl Rule {
    /// The 16 hex digits that are enciphered.
    ///
    /// # Errors
    /// `Pan`; `Validation` when the PAN has not the digits, or the pad is no hex digit.
    pub fn validation_data(&self, pan: &str) -> Result<String, SoftError> {
        let to = self.from.saturating_add(self.digits);
        let digits = checked(pan)?.get(self.from..to).ok_or(SoftError::Validation)?;
        if self.digits > 16 || !self.pad.is_ascii_hexdigit() {
            return Err(SoftError::Validation);
        }
        Ok(digits.chars().chain(std::iter::repeat(self.pad)).take(16).collect())
    }

    /// The PIN of this many digits that key and account give.
    ///
    /// # Errors
    /// `Length` unless 4 to 12 digits are asked for; `KeySize`; those of
    /// [`Rule::validation_data`]; `Validation` when the table is not 16 decimal digits.
    pub fn natural_pin(&self, pvk: &[u8], pan: &str, digits: usize) -> Result<String, SoftError> {
        if !(4..=12).contains(&digits) {
            return Err(SoftError::Length);
        }
        let decimal = self.table.bytes().all(|byte| byte.is_ascii_digit());
        if self.table.len() != 16 || !decimal {
            return Err(SoftError::Validation);
        }
        let mut block = [0; 8];
        hex::decode_to_slice(self.validation_data(pan)?, &mut block)
            .map_err(|_| SoftError::Validation)?;
        let nibbles = tdes_encrypt_block(pvk, block)?.map(|byte| [byte >> 4, byte & 0x0F]);
        let digit = |nibble: &u8| char::from(self.table.as_bytes()[usize::from(*nibble)]);
        Ok(nibbles.as_flattened().iter().map(digit).take(digits).collect())
    }

    /// PIN minus natural PIN, digit by digit modulo 10: as long as the PIN.
    ///
    /// # Errors
    /// `Digit`; those of [`Rule::natural_pin`].
    pub fn offset(&self, pvk: &[u8], pan: &str, pin: &str) -> Result<String, SoftError> {
        let natural = self.natural_pin(pvk, pan, pin.len())?;
        if !pin.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(SoftError::Digit);
        }
        let minus = |(pin, natural): (u8, u8)| char::from(b'0' + (10 + pin - natural) % 10);
        Ok(pin.bytes().zip(natural.bytes()).map(minus).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vectors::{self, Vector};

    const PVK: [u8; 16] = [0x31; 16];
    const PAN: &str = "4761737909457820";

    #[test]
    fn every_ibm_3624_vector_holds() {
        for v in vectors::load("ibm3624") {
            let (rule, pvk, pan, pin) = (rule_of(&v), v.hex("pvk"), v.text("pan"), v.text("pin"));

            let natural = rule.natural_pin(&pvk, pan, pin.len());
            let offset = rule.offset(&pvk, pan, pin);

            assert_eq!(rule.validation_data(pan).as_deref(), Ok(v.text("validation_data")), "{v}");
            assert_eq!(natural.as_deref(), Ok(v.text("natural_pin")), "{v}");
            assert_eq!(offset.as_deref(), Ok(v.text("offset")), "{v}");
        }
    }

    #[test]
    fn a_rule_that_does_not_fit_is_refused() {
        let good = Rule { table: "0123456789012345".into(), from: 4, digits: 11, pad: 'F' };
        let natural = |rule: &Rule| rule.natural_pin(&PVK, PAN, 4);
        assert!(natural(&good).is_ok());

        let bad = [
            Rule { table: "012345678901234".into(), ..good.clone() },
            Rule { table: "01234567890ABCDE".into(), ..good.clone() },
            Rule { from: 10, ..good.clone() },
            Rule { from: usize::MAX, ..good.clone() },
            Rule { pad: 'G', ..good.clone() },
        ];
        for rule in bad {
            assert_eq!(natural(&rule), Err(SoftError::Validation), "{rule:?}");
        }
        let long = Rule { from: 0, digits: 17, ..good };
        let refused = long.natural_pin(&PVK, "47617379094578201", 4);
        assert_eq!(refused, Err(SoftError::Validation));
    }

    #[test]
    fn a_pin_that_cannot_be_is_refused() {
        let rule = Rule { table: "0123456789012345".into(), from: 0, digits: 16, pad: 'F' };

        assert_eq!(rule.offset(&PVK, PAN, "123"), Err(SoftError::Length));
        assert_eq!(rule.offset(&PVK, PAN, "1234567890123"), Err(SoftError::Length));
        assert_eq!(rule.offset(&PVK, PAN, "12x4"), Err(SoftError::Digit));
        assert_eq!(rule.offset(&PVK, "1234567", "1234"), Err(SoftError::Pan));
        assert_eq!(rule.offset(&[0; 9], PAN, "1234"), Err(SoftError::KeySize { bytes: 9 }));
    }

    fn rule_of(v: &Vector) -> Rule {
        Rule {
            table: v.text("decimalization_table").into(),
            from: v.number("pan_verify_offset"),
            digits: v.number("pan_verify_length"),
            pad: v.text("pan_pad").parse().unwrap(),
        }
    }
}
