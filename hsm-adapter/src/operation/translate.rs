//! PIN translation. Mode `in_worker`: decipher, check, encode, encipher; the other modes have files
//! of their own.
//!
//! Formats and keys are checked before any C_ call. After it, success and every failure make the
//! same calls: when a check has failed, a random block is enciphered and thrown away.

use cryptoki::mechanism::Mechanism;
use cryptoki::object::ObjectHandle;
use zeroize::Zeroizing;

use crate::clear::{ClearPinField, Fill};
use crate::error::{CkrClass, Failure};
use crate::operation::{translate_in_token, vendor};
use crate::register::KeyProfile;
use crate::vocabulary::{Mode, Pan, PinBlock, PinBlockFormat};
use crate::worker::keys::LoadedKey;
use crate::worker::token::TokenSession;

/// One side of a translation: a key and the format of the block under it.
pub(crate) struct Side<'k> {
    pub(crate) key: &'k LoadedKey,
    pub(crate) format: PinBlockFormat,
}

/// The block under the other key. Errors: `KeyNotForThis` for a forbidden cell or format,
/// `PinBlockRefused` for everything that is wrong with the block, and the token's own.
pub(crate) fn translate(
    session: &TokenSession,
    pan: &Pan,
    block: &PinBlock,
    from: &Side<'_>,
    to: &Side<'_>,
) -> Result<PinBlock, Failure> {
    if !from.format.may_become(to.format) {
        return Err(Failure::KeyNotForThis(format!("{} never becomes {}", from.format, to.format)));
    }
    for side in [from, to] {
        if !side.key.profile.formats.contains(&side.format) {
            let label = &side.key.profile.label;
            return Err(Failure::KeyNotForThis(format!("{label} carries no {}", side.format)));
        }
    }
    let [inbound, outbound] = [from, to].map(|side| (side.key.object, side.format));
    match (&from.key.profile, &to.key.profile) {
        (KeyProfile { mode: Mode::InWorker, .. }, KeyProfile { mode: Mode::InWorker, .. }) => {
            in_worker(session, pan, block, from, to)
        }
        (KeyProfile { mode: Mode::InToken, .. }, KeyProfile { mode: Mode::InToken, .. }) => {
            translate_in_token::translate(session, pan, block, inbound, outbound)
        }
        (KeyProfile { vendor: Some(vendor), .. }, KeyProfile { vendor: Some(_), .. }) => {
            vendor::translate(session, vendor, pan, block, inbound, outbound)
        }
        (from, to) => Err(Failure::KeyNotForThis(format!(
            "{} works in mode {}, {} in mode {}",
            from.label, from.mode, to.label, to.mode
        ))),
    }
}

fn in_worker(
    session: &TokenSession,
    pan: &Pan,
    block: &PinBlock,
    from: &Side<'_>,
    to: &Side<'_>,
) -> Result<PinBlock, Failure> {
    // The size is the caller's own input: refusing it early tells him nothing.
    if block.expose().len() != from.format.block_bytes() {
        return Err(Failure::PinBlockRefused);
    }
    let field = match decipher(session, from, pan, block.expose()) {
        Ok(deciphered) => ClearPinField::new(from.format, &deciphered, pan),
        Err(Failure::Token { class: CkrClass::Caller, .. }) => None,
        Err(failure) => return Err(failure),
    };
    // What does not decipher goes on as zeros, which are no PIN field in any format.
    let deciphered = field.is_some();
    let field = field
        .or_else(|| ClearPinField::new(from.format, &[0; 8], pan))
        .ok_or(Failure::PinBlockRefused)?;
    let fill = Fill::draw().map_err(|error| Failure::Token {
        function: "getrandom".into(),
        code: error.to_string(),
        class: CkrClass::Restart,
    })?;
    let (clear, good) = field.recode(from.format, to.format, pan, &fill);
    let enciphered = encipher(session, to, pan, clear.expose())?;
    if bool::from(good) & deciphered {
        PinBlock::new(enciphered).map_err(|_| Failure::PinBlockRefused)
    } else {
        Err(Failure::PinBlockRefused)
    }
}

/// The clear block (formats 0, 1, 3) or the PIN field (format 4).
fn decipher(
    session: &TokenSession,
    from: &Side<'_>,
    pan: &Pan,
    block: &[u8],
) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let key: ObjectHandle = from.key.object;
    match from.format {
        PinBlockFormat::Iso0 | PinBlockFormat::Iso1 | PinBlockFormat::Iso3 => {
            Ok(session.decrypt(&Mechanism::Des3Ecb, key, block)?)
        }
        PinBlockFormat::Iso4 => {
            let mut middle = session.decrypt(&Mechanism::AesEcb, key, block)?;
            xor(&mut middle, &pan.iso4_field());
            Ok(session.decrypt(&Mechanism::AesEcb, key, &middle)?)
        }
    }
}

fn encipher(
    session: &TokenSession,
    to: &Side<'_>,
    pan: &Pan,
    clear: &[u8],
) -> Result<Vec<u8>, Failure> {
    let key = to.key.object;
    let mut block = match to.format {
        PinBlockFormat::Iso0 | PinBlockFormat::Iso1 | PinBlockFormat::Iso3 => {
            session.encrypt(&Mechanism::Des3Ecb, key, clear)?
        }
        PinBlockFormat::Iso4 => {
            let mut middle = session.encrypt(&Mechanism::AesEcb, key, clear)?;
            xor(&mut middle, &pan.iso4_field());
            session.encrypt(&Mechanism::AesEcb, key, &middle)?
        }
    };
    Ok(std::mem::take(&mut *block))
}

fn xor(bytes: &mut [u8], other: &[u8]) {
    for (byte, other) in bytes.iter_mut().zip(other) {
        *byte ^= other;
    }
}
