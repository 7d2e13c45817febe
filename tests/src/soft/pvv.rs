//! Visa PIN verification value: four digits that a PIN, a card and a key agree on.

use super::SoftError;
use super::cipher::tdes_encrypt_block;
use super::pan::checked;

/// The PVV of a card's PIN: four digits.
///
/// Only the first four PIN digits count. `pvki`, 0 to 6, says which key of the issuer's it is and
/// enters the computation.
///
/// # Errors
/// `KeySize` unless the key has 16 bytes; `Pan` unless it has 12 to 19 digits; `Length` or `Digit`
/// for the PIN; `Pvki`.
pub fn pvv(pvk: &[u8], pan: &str, pvki: u8, pin: &str) -> Result<String, SoftError> {
    if pvk.len() != 16 {
        return Err(SoftError::KeySize { bytes: pvk.len() });
    }
    let mut block = [0; 8];
    hex::decode_to_slice(security_parameter(pan, pvki, pin)?, &mut block)
        .map_err(|_| SoftError::Digit)?;
    let nibbles = hex::encode(tdes_encrypt_block(pvk, block)?);

    // Two scans: decimal digits as they come, then letters with a as 0.
    let decimal = nibbles.chars().filter(char::is_ascii_digit);
    let letters = nibbles.bytes().filter(u8::is_ascii_alphabetic);
    Ok(decimal.chain(letters.map(|letter| char::from(letter - b'a' + b'0'))).take(4).collect())
}

/// The transformed security parameter: 11 PAN digits, index, 4 PIN digits.
fn security_parameter(pan: &str, pvki: u8, pin: &str) -> Result<String, SoftError> {
    let body = &checked(pan)?[..pan.len() - 1];
    let account = body.len().checked_sub(11).map(|from| &body[from..]).ok_or(SoftError::Pan)?;
    if !(4..=12).contains(&pin.len()) {
        return Err(SoftError::Length);
    }
    if !pin.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(SoftError::Digit);
    }
    if pvki > 6 {
        return Err(SoftError::Pvki);
    }
    Ok(format!("{account}{pvki}{}", &pin[..4]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vectors;

    const PVK: [u8; 16] = [0x31; 16];
    const PAN: &str = "4761737909457820";

    #[test]
    fn every_pvv_vector_holds() {
        for v in vectors::load("pvv") {
            let (pan, pin) = (v.text("pan"), v.text("pin"));
            let pvki = v.text("pvki").parse().unwrap();

            let value = pvv(&v.hex("pvk"), pan, pvki, pin).unwrap();

            assert_eq!(security_parameter(pan, pvki, pin).as_deref(), Ok(v.text("tsp")), "{v}");
            assert_eq!(value, v.text("pvv"), "{v}");
        }
    }

    #[test]
    fn digits_after_the_fourth_do_not_count() {
        assert_eq!(pvv(&PVK, PAN, 1, "123456789012"), pvv(&PVK, PAN, 1, "1234"));
        assert_ne!(pvv(&PVK, PAN, 1, "1235"), pvv(&PVK, PAN, 1, "1234"));
        assert_ne!(pvv(&PVK, PAN, 2, "1234"), pvv(&PVK, PAN, 1, "1234"));
    }

    /// Few ciphertexts have less than four decimal digits (about one in 2 200): look for such.
    #[test]
    fn the_second_scan_takes_letters_from_zero_when_digits_run_out() {
        let mut seen = 0;
        for number in 0..10_000 {
            let pin = format!("{number:04}");
            let mut block = [0; 8];
            hex::decode_to_slice(security_parameter(PAN, 1, &pin).unwrap(), &mut block).unwrap();
            let text = hex::encode_upper(tdes_encrypt_block(&PVK, block).unwrap());
            let digits: String = text.chars().filter(char::is_ascii_digit).collect();
            if digits.len() >= 4 {
                continue;
            }

            let value = pvv(&PVK, PAN, 1, &pin).unwrap();

            seen += 1;
            let first = text.chars().find(char::is_ascii_alphabetic).unwrap();
            let place = "ABCDEF".find(first).unwrap();
            assert!(value.starts_with(&format!("{digits}{place}")), "{text} gave {value}");
            assert!(value.len() == 4 && value.bytes().all(|byte| byte.is_ascii_digit()));
        }
        assert!(seen > 0, "no PIN of this card needs the second scan");
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert_eq!(pvv(&[0; 24], PAN, 1, "1234"), Err(SoftError::KeySize { bytes: 24 }));
        assert_eq!(pvv(&PVK, "12345678901", 1, "1234"), Err(SoftError::Pan));
        assert_eq!(pvv(&PVK, PAN, 7, "1234"), Err(SoftError::Pvki));
        assert_eq!(pvv(&PVK, PAN, 1, "123"), Err(SoftError::Length));
        assert_eq!(pvv(&PVK, PAN, 1, "123x"), Err(SoftError::Digit));
    }
}
