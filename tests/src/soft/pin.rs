//! PIN blocks of ISO 9564-1 formats 0, 1, 3 and 4: encode, encipher, decipher, check.
//!
//! The clear form of format 4 is its PIN field; the PAN enters between the two AES passes. A
//! block whose PAN, key or format is not the sender's fails one of the checks, in the order of
//! [`SoftError`]'s variants.

use std::fmt;
use std::str::FromStr;

use super::SoftError;
use super::cipher::{
    aes_decrypt_block, aes_encrypt_block, tdes_decrypt_block, tdes_encrypt_block, xor,
};
use super::pan::{account_field, iso4_pan_field};

/// A PIN block format, written `iso0`, `iso1`, `iso3` or `iso4`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants are the standard's names")]
pub enum PinFormat {
    Iso0,
    Iso1,
    Iso3,
    Iso4,
}

impl PinFormat {
    /// The control nibble, which is also the format's number.
    pub fn number(self) -> u8 {
        match self {
            Self::Iso0 => 0,
            Self::Iso1 => 1,
            Self::Iso3 => 3,
            Self::Iso4 => 4,
        }
    }

    /// Fresh filler for a PIN of this many digits, as hex characters: what [`clear_block`] takes.
    ///
    /// # Panics
    /// When the operating system has no randomness to give.
    pub fn random_fill(self, pin_digits: usize) -> String {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes).unwrap_or_else(|error| panic!("no randomness: {error}"));
        self.fill_from(bytes, pin_digits)
    }

    /// The filler that these eight bytes make for a PIN of this many digits.
    pub(super) fn fill_from(self, bytes: [u8; 8], pin_digits: usize) -> String {
        let nibbles = hex::encode_upper(bytes);
        let wanted = 14_usize.saturating_sub(pin_digits);
        match self {
            Self::Iso0 => String::new(),
            Self::Iso1 => nibbles[..wanted].to_owned(),
            Self::Iso4 => nibbles,
            // A..F only. A simulator may let 16 values fall unevenly on six.
            Self::Iso3 => {
                let letter = |nibble| char::from(b'A' + nibble % 6);
                nibbles.bytes().take(wanted).map(letter).collect()
            }
        }
    }
}

impl FromStr for PinFormat {
    type Err = SoftError;

    fn from_str(name: &str) -> Result<Self, SoftError> {
        match name {
            "iso0" => Ok(Self::Iso0),
            "iso1" => Ok(Self::Iso1),
            "iso3" => Ok(Self::Iso3),
            "iso4" => Ok(Self::Iso4),
            _ => Err(SoftError::Format),
        }
    }
}

impl fmt::Display for PinFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "iso{}", self.number())
    }
}

/// The clear block: 8 bytes, or the 16 bytes of format 4's PIN field.
///
/// `fill` is hex characters: nothing for iso0, the rest of the block for iso1, the same from A..F
/// for iso3, 16 characters (the random half) for iso4. iso1 uses no PAN.
///
/// # Errors
/// `Length` or `Digit` for the PIN, `Filler` for a fill of another size or alphabet, `Pan`.
pub fn clear_block(
    format: PinFormat,
    pin: &str,
    pan: &str,
    fill: &str,
) -> Result<Vec<u8>, SoftError> {
    if !(4..=12).contains(&pin.len()) {
        return Err(SoftError::Length);
    }
    if !pin.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(SoftError::Digit);
    }
    let rest = 14 - pin.len();
    let letters = fill.bytes().all(|byte| (b'A'..=b'F').contains(&byte));
    let filler = match format {
        PinFormat::Iso0 => fill.is_empty().then(|| "F".repeat(rest)),
        PinFormat::Iso1 => (fill.len() == rest).then(|| fill.to_owned()),
        PinFormat::Iso3 => (fill.len() == rest && letters).then(|| fill.to_owned()),
        PinFormat::Iso4 => (fill.len() == 16).then(|| "A".repeat(rest) + fill),
    };
    let filler = filler.ok_or(SoftError::Filler)?;
    let nibbles = format!("{}{:X}{pin}{filler}", format.number(), pin.len());
    let field = hex::decode(nibbles).map_err(|_| SoftError::Filler)?;
    with_account(format, pan, field)
}

/// The PIN in a clear block.
///
/// # Errors
/// The first check that fails: `BlockSize`, `Control`, `Length`, `Digit`, `Filler`; or `Pan`.
pub fn pin_of(format: PinFormat, pan: &str, clear: &[u8]) -> Result<String, SoftError> {
    if clear.len() != block_bytes(format) {
        return Err(SoftError::BlockSize);
    }
    let field = hex::encode_upper(with_account(format, pan, clear.to_vec())?);
    let (head, rest) = field.split_at(2);
    if head.as_bytes()[0] != b'0' + format.number() {
        return Err(SoftError::Control);
    }
    let length = usize::from_str_radix(&head[1..], 16).map_err(|_| SoftError::Length)?;
    if !(4..=12).contains(&length) {
        return Err(SoftError::Length);
    }
    let (pin, filler) = rest[..14].split_at(length);
    if !pin.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(SoftError::Digit);
    }
    let right = |nibble: u8| match format {
        PinFormat::Iso0 => nibble == b'F',
        PinFormat::Iso1 => true,
        PinFormat::Iso3 => nibble.is_ascii_alphabetic(),
        PinFormat::Iso4 => nibble == b'A',
    };
    if filler.bytes().all(right) { Ok(pin.to_owned()) } else { Err(SoftError::Filler) }
}

/// Enciphers a clear block: TDES for iso0, iso1 and iso3, two AES passes for iso4.
///
/// # Errors
/// `BlockSize`, `KeySize`, `Pan`.
pub fn encipher(
    format: PinFormat,
    key: &[u8],
    pan: &str,
    clear: &[u8],
) -> Result<Vec<u8>, SoftError> {
    if format != PinFormat::Iso4 {
        return Ok(tdes_encrypt_block(key, sized(clear)?)?.to_vec());
    }
    let inner = aes_encrypt_block(key, sized(clear)?)?;
    Ok(aes_encrypt_block(key, xor(inner, iso4_pan_field(pan)?))?.to_vec())
}

/// Deciphers a block to its clear form, unchecked.
///
/// # Errors
/// `BlockSize`, `KeySize`, `Pan`.
pub fn decipher(
    format: PinFormat,
    key: &[u8],
    pan: &str,
    block: &[u8],
) -> Result<Vec<u8>, SoftError> {
    if format != PinFormat::Iso4 {
        return Ok(tdes_decrypt_block(key, sized(block)?)?.to_vec());
    }
    let outer = aes_decrypt_block(key, sized(block)?)?;
    Ok(aes_decrypt_block(key, xor(outer, iso4_pan_field(pan)?))?.to_vec())
}

/// [`clear_block`] with fresh filler, then [`encipher`].
///
/// # Errors
/// Those of both.
pub fn seal_pin(format: PinFormat, key: &[u8], pan: &str, pin: &str) -> Result<Vec<u8>, SoftError> {
    encipher(format, key, pan, &clear_block(format, pin, pan, &format.random_fill(pin.len()))?)
}

/// [`decipher`], then [`pin_of`].
///
/// # Errors
/// Those of both.
pub fn open_pin(
    format: PinFormat,
    key: &[u8],
    pan: &str,
    block: &[u8],
) -> Result<String, SoftError> {
    pin_of(format, pan, &decipher(format, key, pan, block)?)
}

fn block_bytes(format: PinFormat) -> usize {
    if format == PinFormat::Iso4 { 16 } else { 8 }
}

/// Formats 0 and 3 are mixed with the account field; doing it twice undoes it.
fn with_account(format: PinFormat, pan: &str, block: Vec<u8>) -> Result<Vec<u8>, SoftError> {
    match format {
        PinFormat::Iso0 | PinFormat::Iso3 => {
            Ok(xor::<8>(sized(&block)?, account_field(pan)?).to_vec())
        }
        PinFormat::Iso1 | PinFormat::Iso4 => Ok(block),
    }
}

fn sized<const N: usize>(bytes: &[u8]) -> Result<[u8; N], SoftError> {
    bytes.try_into().map_err(|_| SoftError::BlockSize)
}

#[cfg(test)]
mod tests;
