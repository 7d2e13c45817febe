//! Key check values, recomputed on the token where the key's role allows it.
//!
//! A key that may only decipher, derive or wrap has no such call: its check value was taken when
//! it was made and stands in the register.

use cryptoki::mechanism::Mechanism;

use crate::error::TokenError;
use crate::register::KeyAlgorithm;
use crate::vocabulary::{Kcv, KcvMethod, KeyRole, MacAlgorithm, Mode};
use crate::worker::keys::LoadedKey;
use crate::worker::token::TokenSession;

/// The check value and whether the token computed it just now.
pub(crate) fn of(
    session: &TokenSession,
    key: &LoadedKey,
) -> Result<(Option<Kcv>, bool), TokenError> {
    let profile = &key.profile;
    let stated = (profile.kcv, false);
    let Some(method) = profile.kcv_method else { return Ok(stated) };
    let enciphers = match profile.role {
        KeyRole::ZonePinOut => profile.mode == Mode::InWorker,
        KeyRole::PinVerificationPvv | KeyRole::PinVerification3624 | KeyRole::PinReference => true,
        KeyRole::BaseDerivation => profile.algorithm == KeyAlgorithm::Tdes,
        KeyRole::Mac => key.left.is_some(),
        KeyRole::ZonePinIn
        | KeyRole::KeyBlockProtection
        | KeyRole::QueueKek
        | KeyRole::AuditSigning => false,
    };
    let makes_cmac = profile.mac.is_some_and(|mac| mac.algorithm == MacAlgorithm::Cmac);
    let bytes = match (method, profile.algorithm) {
        (KcvMethod::Zeros, KeyAlgorithm::Tdes) if enciphers => {
            session.encrypt(&Mechanism::Des3Ecb, key.object, &[0; 8])?
        }
        (KcvMethod::Cmac, KeyAlgorithm::Aes) if makes_cmac => {
            session.sign(&Mechanism::AesCMac, key.object, &[0; 16])?.into()
        }
        (KcvMethod::Cmac, KeyAlgorithm::Aes) if enciphers => {
            let zeros = session.encrypt(&Mechanism::AesEcb, key.object, &[0; 16])?;
            session.encrypt(&Mechanism::AesEcb, key.object, &subkey_one(&zeros))?
        }
        _ => return Ok(stated),
    };
    Ok((Kcv::from_left(&bytes).ok(), true))
}

/// K1 of SP 800-38B: CMAC of one whole block of zeros is the encipherment of K1.
pub(crate) fn subkey_one(enciphered_zeros: &[u8]) -> Vec<u8> {
    let mut shifted: Vec<u8> = enciphered_zeros.iter().map(|byte| byte << 1).collect();
    for at in 1..shifted.len() {
        shifted[at - 1] |= enciphered_zeros[at] >> 7;
    }
    if let (Some(last), Some(first)) = (shifted.last_mut(), enciphered_zeros.first()) {
        *last ^= 0x87 * (first >> 7);
    }
    shifted
}
