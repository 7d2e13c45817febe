//! Clear PINs: decoded, checked and encoded here, in constant time, and nowhere else.
//!
//! Every check of ISO 9564-1 is computed on every call without an early exit and the results are
//! joined to one bit, so that neither the answer nor the time says which check failed. The types
//! are private to this crate, boxed (moving an array leaves a copy behind), zeroized on drop, and
//! neither `Clone` nor `Serialize`.

use std::fmt;

use subtle::{Choice, ConditionallySelectable, ConstantTimeEq, ConstantTimeGreater};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::vocabulary::{Pan, PinBlockFormat, PinOffset, Pvki};

/// A deciphered block before it is checked: the PIN field of 8 bytes, the PAN already taken out.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(crate) struct ClearPinField(Box<[u8; 8]>);

/// A PIN field to be enciphered: 8 bytes, or 16 for format 4.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(crate) struct ClearPinBlock(Vec<u8>);

/// The PIN of one call, as nibbles. Only meaningful when the `Choice` beside it is true.
#[derive(Zeroize, ZeroizeOnDrop)]
struct ClearPin {
    digits: Box<[u8; 12]>,
    length: u8,
}

impl ClearPinField {
    /// From the deciphered block of 8 bytes (formats 0, 1, 3) or the deciphered PIN field of 16
    /// (format 4, whose second half is random).
    pub(crate) fn new(format: PinBlockFormat, deciphered: &[u8], pan: &Pan) -> Option<Self> {
        let mut field = Box::new(*deciphered.first_chunk::<8>()?);
        match format {
            PinBlockFormat::Iso0 | PinBlockFormat::Iso3 => {
                for (byte, account) in field.iter_mut().zip(pan.account_field()) {
                    *byte ^= account;
                }
            }
            PinBlockFormat::Iso1 | PinBlockFormat::Iso4 => {}
        }
        Some(Self(field))
    }

    fn nibble(&self, at: usize) -> u8 {
        let byte = self.0[at / 2];
        if at.is_multiple_of(2) { byte >> 4 } else { byte & 0x0F }
    }

    /// Control nibble, length 4 to 12, decimal digits, filler: all of them, always.
    fn decode(&self, format: PinBlockFormat) -> (ClearPin, Choice) {
        let control = match format {
            PinBlockFormat::Iso0 => 0,
            PinBlockFormat::Iso1 => 1,
            PinBlockFormat::Iso3 => 3,
            PinBlockFormat::Iso4 => 4,
        };
        let length = self.nibble(1);
        let mut good = self.nibble(0).ct_eq(&control);
        good &= length.ct_gt(&3) & !length.ct_gt(&12);
        let mut pin = ClearPin { digits: Box::new([0; 12]), length };
        for at in 0..14u8 {
            let nibble = self.nibble(usize::from(at) + 2);
            let is_digit = length.ct_gt(&at);
            let digit_good = !nibble.ct_gt(&9);
            let filler_good = match format {
                PinBlockFormat::Iso0 => nibble.ct_eq(&0xF),
                PinBlockFormat::Iso1 => Choice::from(1),
                PinBlockFormat::Iso3 => nibble.ct_gt(&9),
                PinBlockFormat::Iso4 => nibble.ct_eq(&0xA),
            };
            good &= Choice::conditional_select(&filler_good, &digit_good, is_digit);
            if let Some(digit) = pin.digits.get_mut(usize::from(at)) {
                *digit = nibble;
            }
        }
        (pin, good)
    }

    /// The block to encipher for `to`, and whether the field was good. When it was not, the block
    /// is random, so that the calls that follow are the same.
    pub(crate) fn recode(
        &self,
        from: PinBlockFormat,
        to: PinBlockFormat,
        pan: &Pan,
        random: &Fill,
    ) -> (ClearPinBlock, Choice) {
        let (pin, good) = self.decode(from);
        let mut block = pin.encode(to, pan, random);
        block.replace(random, !good);
        (block, good)
    }

    /// What a PVV key enciphers: 11 PAN digits, the key index, the first four PIN digits. Random,
    /// as in [`recode`](Self::recode), when the field was not good.
    pub(crate) fn pvv_input(
        &self,
        from: PinBlockFormat,
        pan: &Pan,
        pvki: Pvki,
        random: &Fill,
    ) -> (ClearPinBlock, Choice) {
        let (pin, good) = self.decode(from);
        let mut block = ClearPinBlock(vec![0; 8]);
        let front = pan.pvv_digits().into_iter().chain([pvki.into()]);
        for (at, nibble) in front.chain(pin.digits[..4].iter().copied()).enumerate() {
            block.0[at / 2] |= if at.is_multiple_of(2) { nibble << 4 } else { nibble };
        }
        block.replace(random, !good);
        (block, good)
    }

    /// Whether the PIN is the natural PIN plus the offset, digit by digit modulo 10, and as long
    /// as the offset; and whether the field was good.
    pub(crate) fn is_natural_plus(
        &self,
        from: PinBlockFormat,
        natural: &NaturalPin,
        offset: &PinOffset,
    ) -> (Choice, Choice) {
        let (pin, good) = self.decode(from);
        let offset = offset.expose();
        let mut same = pin.length.ct_eq(&(offset.len() as u8));
        for ((digit, natural), offset) in pin.digits.iter().zip(&natural.0[..]).zip(offset) {
            same &= digit.ct_eq(&((natural + offset) % 10));
        }
        (same, good)
    }
}

/// The PIN that an IBM 3624 key gives a card before its offset is added: 16 digits, of which the
/// left-most count.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(crate) struct NaturalPin(Box<[u8; 16]>);

impl NaturalPin {
    /// The enciphered validation data through the decimalisation table (sixteen ASCII digits). Every
    /// entry is read for every digit, so that no address says which one it is.
    pub(crate) fn decimalise(enciphered: &[u8; 8], table: &[u8; 16]) -> Self {
        let mut natural = Self(Box::new([0; 16]));
        for (at, digit) in natural.0.iter_mut().enumerate() {
            let byte = enciphered[at / 2];
            let nibble = if at.is_multiple_of(2) { byte >> 4 } else { byte & 0x0F };
            for (value, decimal) in (0u8..).zip(table) {
                digit.conditional_assign(&(decimal - b'0'), nibble.ct_eq(&value));
            }
        }
        natural
    }
}

impl ClearPin {
    /// The PIN field for `format`; for formats 0 and 3 with the account field in it.
    fn encode(&self, format: PinBlockFormat, pan: &Pan, random: &Fill) -> ClearPinBlock {
        let (control, bytes) = match format {
            PinBlockFormat::Iso0 => (0, 8),
            PinBlockFormat::Iso1 => (1, 8),
            PinBlockFormat::Iso3 => (3, 8),
            PinBlockFormat::Iso4 => (4, 16),
        };
        let mut block = ClearPinBlock(vec![0; bytes]);
        block.0[0] = control << 4 | self.length & 0x0F;
        for at in 0..14u8 {
            let fill = match format {
                PinBlockFormat::Iso0 => 0xF,
                PinBlockFormat::Iso1 => random.nibble(at),
                PinBlockFormat::Iso3 => 0xA + random.below_six(at),
                PinBlockFormat::Iso4 => 0xA,
            };
            // Digits 13 and 14 do not exist: a length over 12 has failed its check already.
            let digit = self.digits.get(usize::from(at)).copied().unwrap_or(0);
            let nibble = u8::conditional_select(&fill, &digit, self.length.ct_gt(&at));
            let shift = if at.is_multiple_of(2) { 4 } else { 0 };
            block.0[1 + usize::from(at) / 2] |= (nibble & 0x0F) << shift;
        }
        match format {
            PinBlockFormat::Iso0 | PinBlockFormat::Iso3 => {
                for (byte, account) in block.0.iter_mut().zip(pan.account_field()) {
                    *byte ^= account;
                }
            }
            PinBlockFormat::Iso4 => block.0[8..].copy_from_slice(&random.0[..8]),
            PinBlockFormat::Iso1 => {}
        }
        block
    }
}

impl ClearPinBlock {
    /// For the token's cipher only.
    pub(crate) fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Random bytes in the place of all of it, when `choice` says so. Taken from the fill's end:
    /// the front may stand in the block already.
    fn replace(&mut self, random: &Fill, choice: Choice) {
        for (byte, other) in self.0.iter_mut().zip(random.0.iter().rev()) {
            byte.conditional_assign(other, choice);
        }
    }
}

/// Random bytes for the fill of one block: fresh for each call, from the kernel's generator.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(crate) struct Fill(Box<[u8; 64]>);

impl Fill {
    pub(crate) fn draw() -> Result<Self, getrandom::Error> {
        let mut bytes = Box::new([0; 64]);
        getrandom::fill(&mut *bytes)?;
        Ok(Self(bytes))
    }

    fn nibble(&self, at: u8) -> u8 {
        self.0[usize::from(at)] & 0x0F
    }

    /// 0 to 5 from 32 random bits: the bias is below 2^-29.
    fn below_six(&self, at: u8) -> u8 {
        let at = usize::from(at) * 4;
        let word = [self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]];
        ((u64::from(u32::from_le_bytes(word)) * 6) >> 32) as u8
    }
}

impl fmt::Debug for ClearPinField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClearPinField(redacted)")
    }
}

impl fmt::Debug for ClearPinBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClearPinBlock(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMATS: [(&str, PinBlockFormat); 4] = [
        (include_str!("../../tests/vectors/pinblock_iso0.json"), PinBlockFormat::Iso0),
        (include_str!("../../tests/vectors/pinblock_iso1.json"), PinBlockFormat::Iso1),
        (include_str!("../../tests/vectors/pinblock_iso3.json"), PinBlockFormat::Iso3),
        (include_str!("../../tests/vectors/pinblock_iso4.json"), PinBlockFormat::Iso4),
    ];

    fn vectors(text: &str) -> Vec<serde_json::Value> {
        let file: serde_json::Value = serde_json::from_str(text).unwrap();
        file["vectors"].as_array().unwrap().clone()
    }

    fn text<'v>(vector: &'v serde_json::Value, name: &str) -> &'v str {
        vector[name].as_str().unwrap()
    }

    /// Every published clear block decodes to its PIN.
    #[test]
    fn published_blocks_decode() {
        for (file, format) in FORMATS {
            for vector in vectors(file) {
                let id = text(&vector, "id");
                let pan = vector["pan"].as_str().unwrap_or("41111111111111111");
                let pan = Pan::parse(pan).unwrap();
                let block =
                    if format == PinBlockFormat::Iso4 { "pin_field" } else { "clear_block" };
                let block = hex::decode(text(&vector, block)).unwrap();
                let field = ClearPinField::new(format, &block, &pan).unwrap();

                let (pin, good) = field.decode(format);

                assert!(bool::from(good), "{id}");
                let digits = &pin.digits[..usize::from(pin.length)];
                let digits: String = digits.iter().map(|d| char::from(b'0' + d)).collect();
                assert_eq!(digits, text(&vector, "pin"), "{id}");
            }
        }
    }

    #[test]
    fn published_bad_blocks_are_refused() {
        for vector in vectors(include_str!("../../tests/vectors/pinblock_invalid.json")) {
            let id = text(&vector, "id");
            let format = FORMATS
                .iter()
                .find(|(_, format)| format.name().ends_with(&vector["format"].to_string()))
                .unwrap()
                .1;
            let pan = Pan::parse(vector["pan"].as_str().unwrap_or("4111111111111111")).unwrap();
            let block = hex::decode(text(&vector, "clear_block")).unwrap();

            let field = ClearPinField::new(format, &block, &pan);

            let good = field.is_some_and(|field| field.decode(format).1.into());
            assert!(!good, "{id}");
        }
    }

    /// Whatever a block becomes decodes to the same PIN again, for every length and open cell.
    #[test]
    fn recoding_keeps_the_pin() {
        let pan = Pan::parse("4761737909457820").unwrap();
        for from in PinBlockFormat::ALL {
            for to in PinBlockFormat::ALL.into_iter().filter(|to| from.may_become(*to)) {
                for length in 4..=12u8 {
                    let digits = Box::new(std::array::from_fn(|at| (at as u8 * 7 + length) % 10));
                    let pin = ClearPin { digits, length };
                    let fill = Fill::draw().unwrap();
                    let start = pin.encode(from, &pan, &fill);
                    let field = ClearPinField::new(from, start.expose(), &pan).unwrap();

                    let (block, good) = field.recode(from, to, &pan, &Fill::draw().unwrap());

                    assert!(bool::from(good));
                    let end = ClearPinField::new(to, block.expose(), &pan).unwrap();
                    let (again, good) = end.decode(to);
                    assert!(bool::from(good), "{from} to {to}, {length} digits");
                    let used = usize::from(length);
                    assert_eq!(again.digits[..used], pin.digits[..used]);
                    assert_eq!(again.length, length);
                }
            }
        }
    }

    /// No header and no filler but the right one passes: all control and length nibbles, and each
    /// filler nibble of each format.
    #[test]
    fn every_wrong_nibble_is_refused() {
        let pan = Pan::parse("4761737909457820").unwrap();
        let pin = ClearPin { digits: Box::new([1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0]), length: 4 };
        for format in PinBlockFormat::ALL {
            let block = pin.encode(format, &pan, &Fill::draw().unwrap());
            let good = ClearPinField::new(format, block.expose(), &pan).unwrap();
            for at in 0..16 {
                for flip in 1..16u8 {
                    let mut field = good.0.clone();
                    field[at / 2] ^= if at % 2 == 0 { flip << 4 } else { flip };
                    let field = ClearPinField(field);
                    let nibble = field.nibble(at);
                    let accepted = match (at, format) {
                        (0, _) => false,
                        (1, PinBlockFormat::Iso1) => continue, // the fill may well be digits
                        (1, _) => false,
                        (2..=5, _) => nibble <= 9,
                        (_, PinBlockFormat::Iso1) => true,
                        (_, PinBlockFormat::Iso3) => nibble > 9,
                        (_, PinBlockFormat::Iso0 | PinBlockFormat::Iso4) => false,
                    };
                    let decoded = bool::from(field.decode(format).1);
                    assert_eq!(decoded, accepted, "{format}, nibble {at} = {nibble:X}");
                }
            }
        }
    }
}
