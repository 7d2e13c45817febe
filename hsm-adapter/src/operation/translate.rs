//! PIN translation. Mode `in_worker`: decipher, check, encode, encipher; the other modes have files
//! of their own.
//!
//! Success and every failure of a block make the same C_ calls: when a check has failed, a random
//! block is enciphered and thrown away.

use super::side::{NamedSide, Purpose, Side, fill, one_mode};
use super::{translate_in_token, vendor};
use crate::error::Failure;
use crate::protocol::PinKey;
use crate::vocabulary::{Mode, Pan, PinBlock};
use crate::worker::keys::KeyTable;
use crate::worker::token::TokenSession;

/// Both sides of a translation, checked before any C_ call. Errors: `KeyNotForThis`
/// for a forbidden cell, key, format or pair of modes, `PinBlockRefused` for a KSN that fits not.
pub(crate) fn sides(
    keys: &KeyTable,
    from: &PinKey,
    to: &PinKey,
) -> Result<(NamedSide, NamedSide), Failure> {
    if !from.format.may_become(to.format) {
        return Err(Failure::KeyNotForThis(format!("{} never becomes {}", from.format, to.format)));
    }
    let from = NamedSide::find(keys, from, Purpose::PinIn)?;
    let to = NamedSide::find(keys, to, Purpose::PinOut)?;
    one_mode(from.key.profile(), to.key.profile())?;
    from.check_ksn()?;
    to.check_ksn()?;
    Ok((from, to))
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
    let (inbound, outbound) = (&from.key.profile, &to.key.profile);
    let [from_key, to_key] = [from, to].map(|side| (side.key.object, side.format));
    match (one_mode(inbound, outbound)?, &inbound.vendor) {
        (Mode::InWorker, _) => in_worker(session, pan, block, from, to),
        (Mode::InToken, _) => translate_in_token::translate(session, pan, block, from_key, to_key),
        (Mode::Vendor, Some(vendor)) => {
            vendor::translate(session, vendor, pan, block, from_key, to_key)
        }
        (Mode::Vendor, None) => {
            Err(Failure::KeyNotForThis(format!("{} has no vendor mechanism", inbound.label)))
        }
    }
}

fn in_worker(
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
