//! What a PAN lends to a PIN block. ISO 9564-1; Luhn is ISO/IEC 7812-1 annex B.

use super::SoftError;

/// The 12 right-most digits without the check digit; a shorter PAN is padded with zeros.
///
/// # Errors
/// `Pan` unless there are 8 to 19 decimal digits.
pub fn rightmost_12(pan: &str) -> Result<String, SoftError> {
    let body = &checked(pan)?[..pan.len() - 1];
    Ok(format!("{:0>12}", &body[body.len().saturating_sub(12)..]))
}

/// Account field of formats 0 and 3: four zeros and [`rightmost_12`].
///
/// # Errors
/// `Pan` unless there are 8 to 19 decimal digits.
pub fn account_field(pan: &str) -> Result<[u8; 8], SoftError> {
    packed(&format!("0000{}", rightmost_12(pan)?))
}

/// PAN field of format 4: length over 12, the whole PAN with its check digit, zeros.
///
/// # Errors
/// `Pan` unless there are 8 to 19 decimal digits.
pub fn iso4_pan_field(pan: &str) -> Result<[u8; 16], SoftError> {
    let over = checked(pan)?.len().saturating_sub(12);
    packed(&format!("{:0<32}", format!("{over}{pan:0>12}")))
}

/// The digit that makes `body` a PAN that Luhn accepts.
///
/// # Errors
/// `Pan` unless every character is a decimal digit.
pub fn check_digit(body: &str) -> Result<char, SoftError> {
    let mut sum = 0;
    for (place, character) in body.chars().rev().enumerate() {
        let digit = character.to_digit(10).ok_or(SoftError::Pan)?;
        sum += match (place % 2, digit * 2) {
            (0, doubled) if doubled > 9 => doubled - 9,
            (0, doubled) => doubled,
            _ => digit,
        };
    }
    char::from_digit((10 - sum % 10) % 10, 10).ok_or(SoftError::Pan)
}

/// Whether the last digit is the one that Luhn wants.
pub fn luhn_valid(pan: &str) -> bool {
    let Some(last) = pan.chars().last() else { return false };
    check_digit(&pan[..pan.len() - last.len_utf8()]).is_ok_and(|digit| digit == last)
}

pub(super) fn checked(pan: &str) -> Result<&str, SoftError> {
    let decimal = pan.bytes().all(|byte| byte.is_ascii_digit());
    if decimal && (8..=19).contains(&pan.len()) { Ok(pan) } else { Err(SoftError::Pan) }
}

fn packed<const N: usize>(digits: &str) -> Result<[u8; N], SoftError> {
    let mut bytes = [0; N];
    hex::decode_to_slice(digits, &mut bytes).map_err(|_| SoftError::Pan)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vectors;

    #[test]
    fn every_pan_vector_holds() {
        for v in vectors::load("pan") {
            let pan = v.text("pan");
            let digit = v.text("check_digit").chars().next();

            assert_eq!(luhn_valid(pan), v.flag("luhn_valid"), "{v}");
            assert_eq!(check_digit(&pan[..pan.len() - 1]).ok(), digit, "{v}");
            assert_eq!(
                rightmost_12(pan).as_deref(),
                Ok(v.text("rightmost_12_excluding_check_digit")),
                "{v}"
            );
            assert_eq!(account_field(pan).unwrap()[..], v.hex("account_field"), "{v}");
            assert_eq!(iso4_pan_field(pan).unwrap()[..], v.hex("iso4_pan_field"), "{v}");
        }
    }

    #[test]
    fn what_is_no_pan_is_refused() {
        for pan in ["", "1234567", "12345678901234567890", "411111111111111x", "４１１１１１１１"]
        {
            assert_eq!(account_field(pan), Err(SoftError::Pan), "{pan}");
            assert_eq!(iso4_pan_field(pan), Err(SoftError::Pan), "{pan}");
        }
    }
}
