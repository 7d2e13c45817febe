//! Key check values, and how the key in an object is told from another one.
//!
//! A value is recomputed on the token where the key's role allows it. A key that may only decipher
//! or wrap has no such call: its check value was taken when it was made and stands in the register.

use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::vendor_defined::VendorDefinedMechanism;
use cryptoki::object::{Attribute, KeyType, ObjectClass, ObjectHandle};
use cryptoki_sys::CKM_DES3_CMAC;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::derive;
use crate::error::TokenError;
use crate::register::{KeyAlgorithm, KeyProfile};
use crate::vocabulary::{Kcv, KcvMethod, KeyRole, MacAlgorithm, Mode};
use crate::worker::attributes::Part;
use crate::worker::keys::LoadedKey;
use crate::worker::passing::{Passing, create};
use crate::worker::raw::mechanism_type;
use crate::worker::token::TokenSession;

/// The check value and whether the token computed it just now.
pub(crate) fn of(
    session: &TokenSession,
    key: &LoadedKey,
) -> Result<(Option<Kcv>, bool), TokenError> {
    let profile = &key.profile;
    let Some(method) = profile.kcv_method else { return Ok((profile.kcv, false)) };
    let block = |input: &[u8]| enciphered(session, profile, key.object, input);
    let zeros = vec![0; block_bytes(profile.algorithm)];
    let value = match method {
        KcvMethod::Zeros => block(&zeros)?,
        KcvMethod::Cmac => match (signed(session, profile, key.object, &zeros)?, block(&zeros)?) {
            (Some(cmac), _) => Some(cmac),
            (None, Some(enciphered)) => block(&subkey_one(&enciphered))?,
            (None, None) => None,
        },
        KcvMethod::HmacSha256 => signed(session, profile, key.object, &[])?,
    };
    match value {
        Some(value) => Ok((Kcv::from_left(&value).ok(), true)),
        None => Ok((profile.kcv, false)),
    }
}

/// Whether this object holds this key: both answer alike, each in the one way that its role has.
/// `None` when the role has no answer that can be compared.
pub(crate) fn holds(
    session: &TokenSession,
    profile: &KeyProfile,
    part: Part,
    object: ObjectHandle,
    key: &[u8],
) -> Result<Option<bool>, TokenError> {
    let copy = create(session, profile, part, key)?;
    let answers =
        (witness(session, profile, part, object)?, witness(session, profile, part, copy.object)?);
    Ok(match answers {
        (Some(there), Some(here)) => Some(there.ct_eq(&here).into()),
        _ => None,
    })
}

fn witness(
    session: &TokenSession,
    profile: &KeyProfile,
    part: Part,
    object: ObjectHandle,
) -> Result<Option<Zeroizing<Vec<u8>>>, TokenError> {
    let zeros = vec![0; block_bytes(profile.algorithm)];
    if part == Part::Left {
        return session.encrypt(&Mechanism::Des3Cbc([0; 8]), object, &zeros).map(Some);
    }
    if profile.role == KeyRole::ZonePinIn && profile.mode == Mode::InWorker {
        let ecb = ecb(profile.algorithm);
        return session.decrypt(&ecb, object, &zeros).map(Some);
    }
    match enciphered(session, profile, object, &zeros)? {
        Some(block) => Ok(Some(block)),
        None => signed(session, profile, object, &zeros),
    }
}

/// One block under the key's cipher, where the role lets the token do it.
fn enciphered(
    session: &TokenSession,
    profile: &KeyProfile,
    object: ObjectHandle,
    block: &[u8],
) -> Result<Option<Zeroizing<Vec<u8>>>, TokenError> {
    use KeyAlgorithm::{Aes, Tdes};
    if profile.mode != Mode::InWorker {
        return Ok(None);
    }
    let mechanism = match (profile.role, profile.algorithm) {
        (
            KeyRole::ZonePinOut
            | KeyRole::PinVerificationPvv
            | KeyRole::PinVerification3624
            | KeyRole::PinReference,
            algorithm,
        ) => ecb(algorithm),
        (KeyRole::BaseDerivation, Tdes) => Mechanism::Des3Ecb,
        (KeyRole::BaseDerivation | KeyRole::KeyBlockProtection, Aes) => {
            return derive::readable_block(session, object, block).map(Some);
        }
        (KeyRole::Mac, algorithm) => match (profile.mac.map(|mac| mac.algorithm), algorithm) {
            (Some(MacAlgorithm::Retail), _) => Mechanism::Des3Ecb,
            (Some(MacAlgorithm::CbcMac), Aes) => Mechanism::AesCbc([0; 16]),
            (Some(MacAlgorithm::CbcMac), _) => Mechanism::Des3Cbc([0; 8]),
            (Some(MacAlgorithm::Cmac | MacAlgorithm::HmacSha256) | None, _) => return Ok(None),
        },
        (
            KeyRole::ZonePinIn
            | KeyRole::BaseDerivation
            | KeyRole::KeyBlockProtection
            | KeyRole::QueueKek
            | KeyRole::AuditSigning,
            _,
        ) => return Ok(None),
    };
    session.encrypt(&mechanism, object, block).map(Some)
}

/// A CMAC or HMAC, where that is what the key makes.
fn signed(
    session: &TokenSession,
    profile: &KeyProfile,
    object: ObjectHandle,
    message: &[u8],
) -> Result<Option<Zeroizing<Vec<u8>>>, TokenError> {
    let derives = profile.variant_blocks || profile.algorithm == KeyAlgorithm::Aes;
    let makes = match (profile.role, profile.mac.map(|mac| mac.algorithm)) {
        (KeyRole::KeyBlockProtection, _) if !derives => MacAlgorithm::Cmac,
        (KeyRole::Mac, Some(algorithm)) => algorithm,
        _ => return Ok(None),
    };
    let mechanism = match (makes, profile.algorithm) {
        (MacAlgorithm::Cmac, KeyAlgorithm::Aes) => Mechanism::AesCMac,
        (MacAlgorithm::Cmac, _) => des3_cmac(),
        (MacAlgorithm::HmacSha256, _) => Mechanism::Sha256Hmac,
        (MacAlgorithm::CbcMac | MacAlgorithm::Retail, _) => return Ok(None),
    };
    Ok(Some(Zeroizing::new(session.sign(&mechanism, object, message)?)))
}

/// The check values of a clear key, whole, computed by the token on a passing copy.
pub(crate) struct CheckValues {
    zeros: Option<Zeroizing<Vec<u8>>>,
    cmac: Option<Zeroizing<Vec<u8>>>,
    hmac: Option<Zeroizing<Vec<u8>>>,
}

impl CheckValues {
    pub(crate) fn of(
        session: &TokenSession,
        algorithm: KeyAlgorithm,
        key: &[u8],
    ) -> Result<Self, TokenError> {
        if algorithm == KeyAlgorithm::Hmac || algorithm.is_pair() {
            let copy = copy(session, KeyType::GENERIC_SECRET, Attribute::Sign(true), key)?;
            let hmac = session.sign(&Mechanism::Sha256Hmac, copy.object, &[])?;
            return Ok(Self { zeros: None, cmac: None, hmac: Some(Zeroizing::new(hmac)) });
        }
        let key_type = if algorithm == KeyAlgorithm::Aes { KeyType::AES } else { KeyType::DES3 };
        let triple = match (algorithm, key.len()) {
            (KeyAlgorithm::Tdes, 16) => Zeroizing::new([key, &key[..8]].concat()),
            _ => Zeroizing::new(key.to_vec()),
        };
        let copy = copy(session, key_type, Attribute::Encrypt(true), &triple)?;
        let block = |input: &[u8]| session.encrypt(&ecb(algorithm), copy.object, input);
        let zeros = block(&vec![0; block_bytes(algorithm)])?;
        let cmac = block(&subkey_one(&zeros))?;
        Ok(Self { zeros: Some(zeros), cmac: Some(cmac), hmac: None })
    }

    /// A whole block or MAC; `None` when the key has no such value.
    pub(crate) fn by(&self, method: KcvMethod) -> Option<&[u8]> {
        let value = match method {
            KcvMethod::Zeros => &self.zeros,
            KcvMethod::Cmac => &self.cmac,
            KcvMethod::HmacSha256 => &self.hmac,
        };
        value.as_ref().map(|value| value.as_slice())
    }

    pub(crate) fn kcv(&self, method: KcvMethod) -> Option<Kcv> {
        Kcv::from_left(self.by(method)?).ok()
    }
}

/// The method by which a key of this kind is checked when nobody says another.
pub(crate) fn usual(algorithm: KeyAlgorithm) -> KcvMethod {
    match algorithm {
        KeyAlgorithm::Tdes => KcvMethod::Zeros,
        KeyAlgorithm::Aes => KcvMethod::Cmac,
        KeyAlgorithm::Hmac | KeyAlgorithm::Ec | KeyAlgorithm::Ed25519 => KcvMethod::HmacSha256,
    }
}

fn copy<'s>(
    session: &'s TokenSession,
    key_type: KeyType,
    usage: Attribute,
    value: &[u8],
) -> Result<Passing<'s>, TokenError> {
    let template = vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(key_type),
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Value(value.to_vec()),
        usage,
    ];
    Ok(Passing { session, object: session.create_secret(template)? })
}

/// CKM_DES3_CMAC, which cryptoki has no name for.
pub(crate) fn des3_cmac() -> Mechanism<'static> {
    let number = mechanism_type(CKM_DES3_CMAC);
    Mechanism::VendorDefined(VendorDefinedMechanism::new::<()>(number, None))
}

fn ecb(algorithm: KeyAlgorithm) -> Mechanism<'static> {
    if algorithm == KeyAlgorithm::Aes { Mechanism::AesEcb } else { Mechanism::Des3Ecb }
}

fn block_bytes(algorithm: KeyAlgorithm) -> usize {
    if algorithm == KeyAlgorithm::Aes { 16 } else { 8 }
}

/// K1 of SP 800-38B: CMAC of one whole block of zeros is the encipherment of K1. Doubling it gives
/// K2.
pub(crate) fn subkey_one(enciphered_zeros: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut shifted: Zeroizing<Vec<u8>> =
        Zeroizing::new(enciphered_zeros.iter().map(|byte| byte << 1).collect());
    for at in 1..shifted.len() {
        shifted[at - 1] |= enciphered_zeros[at] >> 7;
    }
    let constant = if shifted.len() == 16 { 0x87 } else { 0x1B };
    if let (Some(last), Some(first)) = (shifted.last_mut(), enciphered_zeros.first()) {
        *last ^= constant * (first >> 7);
    }
    shifted
}
