//! PIN blocks with one fault each, of the kinds that an answer must not tell apart.

use crate::soft::SoftError;
use crate::soft::pan::account_field;
use crate::soft::pin::{PinFormat, encipher, open_pin};
use crate::soft::random::Random;

/// What is wrong with a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Made under another key.
    Key,
    /// Another control nibble.
    Control,
    /// A PIN length that is none.
    Length,
    /// A PIN digit that is a letter.
    Digit,
    /// Filler that is none; format 1 has no such fault.
    Filler,
    /// Made for another card; format 1 has no such fault.
    Pan,
}

impl Fault {
    /// Every kind.
    pub const ALL: [Self; 6] =
        [Self::Key, Self::Control, Self::Length, Self::Digit, Self::Filler, Self::Pan];

    /// In a table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Control => "control",
            Self::Length => "length",
            Self::Digit => "digit",
            Self::Filler => "filler",
            Self::Pan => "PAN",
        }
    }
}

/// A block of a random PIN with this fault, or with none, as `soft` confirms.
///
/// # Errors
/// A PAN or a key that cannot be.
///
/// # Panics
/// When `soft` takes a hundred such blocks for good: the format has no such fault.
pub fn block(
    random: &mut Random,
    fault: Option<Fault>,
    format: PinFormat,
    key: &[u8],
    pan: &str,
) -> Result<Vec<u8>, SoftError> {
    for _ in 0..100 {
        let block = attempt(random, fault, format, key, pan)?;
        // By chance another key or another card makes a good block, about once in a million.
        if open_pin(format, key, pan, &block).is_ok() == fault.is_none() {
            return Ok(block);
        }
    }
    panic!("{format} has no fault {fault:?}, {random}")
}

fn attempt(
    random: &mut Random,
    fault: Option<Fault>,
    format: PinFormat,
    key: &[u8],
    pan: &str,
) -> Result<Vec<u8>, SoftError> {
    let pin = random.pin();
    let (own, wrong_filler) = match format {
        PinFormat::Iso0 => (b'F', b'0'),
        PinFormat::Iso1 => (b'0', b'0'),
        PinFormat::Iso3 => (b'A', b'9'),
        PinFormat::Iso4 => (b'A', b'F'),
    };
    let head = format!("{}{:X}{pin}", format.number(), pin.len());
    let mut nibbles = head.into_bytes();
    nibbles.resize(16, own);
    let mut key = key.to_vec();
    let mut other_pan = pan.to_owned();
    match fault {
        None => {}
        Some(Fault::Key) => {
            key = match format {
                PinFormat::Iso4 => random.bytes(key.len()),
                PinFormat::Iso0 | PinFormat::Iso1 | PinFormat::Iso3 => random.tdes_key().to_vec(),
            }
        }
        Some(Fault::Control) => {
            let other = (usize::from(format.number()) + random.between(1, 15)) % 16;
            nibbles[0] = b"0123456789ABCDEF"[other];
        }
        Some(Fault::Length) => nibbles[1] = random.pick(b"0123DEF"),
        Some(Fault::Digit) => {
            nibbles[2 + random.between(0, pin.len() - 1)] = random.pick(b"ABCDEF");
        }
        Some(Fault::Filler) => nibbles[random.between(2 + pin.len(), 15)] = wrong_filler,
        // Every digit another one, each time: some change no digit and no filler into a wrong one.
        Some(Fault::Pan) => {
            let other = |digit: u8, by: usize| char::from(b'0' + (digit - b'0' + by as u8) % 10);
            other_pan = pan.bytes().map(|digit| other(digit, random.between(1, 9))).collect();
        }
    }
    let mut clear = hex::decode(&nibbles).map_err(|_| SoftError::Format)?;
    match format {
        PinFormat::Iso0 | PinFormat::Iso3 => {
            let account = account_field(&other_pan)?;
            clear.iter_mut().zip(account).for_each(|(byte, account)| *byte ^= account);
        }
        PinFormat::Iso1 => {}
        PinFormat::Iso4 => clear.extend(random.bytes(8)),
    }
    encipher(format, &key, &other_pan, &clear)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::soft::pin::decipher;

    #[test]
    fn every_fault_is_the_one_that_soft_names() {
        let mut random = Random::fresh();
        for format in [PinFormat::Iso0, PinFormat::Iso3, PinFormat::Iso4] {
            for fault in Fault::ALL {
                let (key, pan) = (random.key_for(format), random.pan());
                let block = block(&mut random, Some(fault), format, &key, &pan).unwrap();

                let found = open_pin(format, &key, &pan, &block).unwrap_err();

                let expected = match fault {
                    Fault::Control => Some(SoftError::Control),
                    Fault::Length => Some(SoftError::Length),
                    Fault::Digit => Some(SoftError::Digit),
                    Fault::Filler => Some(SoftError::Filler),
                    Fault::Key | Fault::Pan => None,
                };
                assert!(expected.is_none_or(|wanted| wanted == found), "{fault:?}: {found:?}");
                assert_eq!(decipher(format, &key, &pan, &block).unwrap().len(), block.len());
            }
        }
    }

    #[test]
    fn a_block_without_fault_is_good() {
        let mut random = Random::fresh();
        let format = random.format();
        let (key, pan) = (random.key_for(format), random.pan());

        let block = block(&mut random, None, format, &key, &pan).unwrap();

        assert!(open_pin(format, &key, &pan, &block).is_ok(), "{random}");
    }
}
