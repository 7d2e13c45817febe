//! PIN verification, mode `in_worker`: Visa PVV, IBM 3624 offset, or a reference block.
//!
//! A right PIN, a wrong PIN and a block that is no PIN make the same C_ calls; whatever depends on
//! the PIN is computed and compared in constant time. Tables, indices and rules come from the key:
//! a caller who may choose a decimalisation table finds a PIN in about 15 guesses.

use std::sync::Arc;

use cryptoki::mechanism::Mechanism;
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq, ConstantTimeGreater};
use zeroize::Zeroizing;

use super::side::{Side, fill, one_block};
use crate::clear::NaturalPin;
use crate::error::Failure;
use crate::protocol::PinReference;
use crate::register::Ibm3624Profile;
use crate::vocabulary::{KeyRole, Pan, PinBlock, PinBlockFormat};
use crate::worker::keys::{KeyTable, LoadedKey};
use crate::worker::token::TokenSession;

/// The key that the reference names. Errors: `KeyNotForThis` for another role or a PVKI that the
/// key does not list.
pub(crate) fn reference_key(
    keys: &KeyTable,
    reference: &PinReference,
) -> Result<Arc<LoadedKey>, Failure> {
    let (name, role) = match reference {
        PinReference::Pvv { key, .. } => (key, KeyRole::PinVerificationPvv),
        PinReference::Ibm3624 { key, .. } => (key, KeyRole::PinVerification3624),
        PinReference::Block { key, .. } => (key, KeyRole::PinReference),
    };
    let key = keys.of_role(name, role)?;
    match reference {
        PinReference::Pvv { pvki, .. } if !key.profile.pvki.contains(pvki) => {
            Err(Failure::KeyNotForThis(format!("{name} has no such PVKI")))
        }
        PinReference::Pvv { .. } | PinReference::Ibm3624 { .. } | PinReference::Block { .. } => {
            Ok(key)
        }
    }
}

/// Whether the block holds the PIN. Errors: `PinBlockRefused` for a block that holds none, and the
/// token's own.
pub(crate) fn verify(
    session: &TokenSession,
    pan: &Pan,
    block: &PinBlock,
    from: &Side<'_>,
    key: &LoadedKey,
    reference: &PinReference,
) -> Result<bool, Failure> {
    let (field, deciphered) = from.decipher(session, pan, block)?;
    let encipher = |clear: &[u8]| session.encrypt(&Mechanism::Des3Ecb, key.object, clear);
    let (same, good) = match reference {
        PinReference::Pvv { pvki, pvv, .. } => {
            let (input, good) = field.pvv_input(from.format, pan, *pvki, &fill()?);
            let found = pvv_digits(one_block(&encipher(input.expose())?)?);
            (found.ct_eq(pvv.expose()), good)
        }
        PinReference::Ibm3624 { offset, .. } => {
            let (rule, table) = rule(key)?;
            let (first, count) = (usize::from(rule.pan_offset), usize::from(rule.pan_digits));
            let pad = rule.pad.to_digit(16).unwrap_or(0xF) as u8;
            let validation = pan.validation_data(first, count, pad);
            let natural = NaturalPin::decimalise(one_block(&encipher(&validation)?)?, table);
            field.is_natural_plus(from.format, &natural, offset)
        }
        PinReference::Block { block, .. } => {
            let to = Side { key, format: PinBlockFormat::Iso0 };
            let (clear, good) = field.recode(from.format, to.format, pan, &fill()?);
            (to.encipher(session, pan, &clear)?.ct_eq(block.expose()), good)
        }
    };
    if bool::from(good & deciphered) { Ok(same.into()) } else { Err(Failure::PinBlockRefused) }
}

/// What a 3624 key computes with; the register has checked it.
fn rule(key: &LoadedKey) -> Result<(&Ibm3624Profile, &[u8; 16]), Failure> {
    let rule = key.profile.ibm3624.as_ref();
    rule.and_then(|rule| Some((rule, rule.decimalisation_table.as_bytes().first_chunk()?)))
        .ok_or_else(|| Failure::KeyNotForThis(format!("{} has no 3624 rule", key.profile.label)))
}

/// The PVV of an enciphered input: its first four decimal digits, then, if there are fewer, its
/// letters A to F as 0 to 5. Every nibble is looked at twice, whatever was found.
fn pvv_digits(enciphered: &[u8; 8]) -> Zeroizing<[u8; 4]> {
    let mut pvv = Zeroizing::new([0; 4]);
    let mut found = 0u8;
    for letters in [0, 1] {
        for at in 0..16 {
            let byte = enciphered[at / 2];
            let nibble = if at % 2 == 0 { byte >> 4 } else { byte & 0x0F };
            let is_letter = nibble.ct_gt(&9);
            let taken = is_letter.ct_eq(&Choice::from(letters));
            let digit = u8::conditional_select(&nibble, &nibble.wrapping_sub(10), is_letter);
            for (place, wanted) in (0u8..).zip(pvv.iter_mut()) {
                wanted.conditional_assign(&digit, taken & found.ct_eq(&place));
            }
            found += taken.unwrap_u8();
        }
    }
    pvv
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_count_after_all_digits() {
        for (enciphered, pvv) in [
            ("123456789ABCDEF0", [1, 2, 3, 4]),
            ("ABCDEF1A2B3C4D5E", [1, 2, 3, 4]),
            ("A9BCDEFABCDEF8FF", [9, 8, 0, 1]),
            ("FEDCBAFEDCBAFEDC", [5, 4, 3, 2]),
            ("AAAAAAAAAAAAAAA7", [7, 0, 0, 0]),
        ] {
            let bytes: [u8; 8] = hex::decode(enciphered).unwrap().try_into().unwrap();
            assert_eq!(*pvv_digits(&bytes), pvv, "{enciphered}");
        }
    }
}
