//! PIN translation, mode `in_worker`: decipher, check, encode, encipher.
//!
//! Success and every failure of a block make the same C_ calls: when a check has failed, a random
//! block is enciphered and thrown away.

use super::side::{NamedSide, Purpose, Side, fill, one_mode};
use crate::error::Failure;
use crate::protocol::PinKey;
use crate::vocabulary::{Mode, Pan, PinBlock};
use crate::worker::keys::KeyTable;
use crate::worker::token::TokenSession;

/// Both sides of a translation and their mode, checked before any C_ call. Errors: `KeyNotForThis`
/// for a forbidden cell, key, format or pair of modes, `PinBlockRefused` for a KSN that fits not.
pub(crate) fn sides(
    keys: &KeyTable,
    from: &PinKey,
    to: &PinKey,
) -> Result<(NamedSide, NamedSide, Mode), Failure> {
    if !from.format.may_become(to.format) {
        return Err(Failure::KeyNotForThis(format!("{} never becomes {}", from.format, to.format)));
    }
    let from = NamedSide::find(keys, from, Purpose::PinIn)?;
    let to = NamedSide::find(keys, to, Purpose::PinOut)?;
    let mode = one_mode(from.key.profile(), to.key.profile())?;
    from.check_ksn()?;
    to.check_ksn()?;
    Ok((from, to, mode))
}

/// The block under the other key. Errors: `PinBlockRefused` for everything that is wrong with the
/// block, and the token's own.
pub(crate) fn translate(
    session: &TokenSession,
    pan: &Pan,
    block: &PinBlock,
    from: &Side<'_>,
    to: &Side<'_>,
) -> Result<PinBlock, Failure> {
    let (field, deciphered) = from.decipher(session, pan, block)?;
    let (clear, good) = field.recode(from.format, to.format, pan, &fill()?);
    let enciphered = to.encipher(session, pan, &clear)?;
    if bool::from(good & deciphered) {
        PinBlock::new(enciphered).map_err(|_| Failure::PinBlockRefused)
    } else {
        Err(Failure::PinBlockRefused)
    }
}
