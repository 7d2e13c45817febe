//! The keys of one order: found by name and checked before any C_ call, then made ready, which for
//! a DUKPT key means derived.
//!
//! With a KSN a name means a base derivation key, without one a zone or MAC key; the other pairing is
//! `KeyNotForThis`. What protects takes the active version of a key, what deciphers or verifies any
//! version that still may.

use std::sync::Arc;

use cryptoki::mechanism::Mechanism;
use subtle::Choice;
use zeroize::Zeroizing;

use super::dukpt;
use crate::clear::{ClearPinBlock, ClearPinField, Fill};
use crate::error::{CkrClass, Failure};
use crate::protocol::PinKey;
use crate::register::KeyProfile;
use crate::vocabulary::{KeyName, KeyRole, Ksn, Mode, Pan, PinBlock, PinBlockFormat};
use crate::worker::keys::{KeyTable, LoadedKey};
use crate::worker::passing::PassingKey;
use crate::worker::token::TokenSession;

/// What a key is to do in one order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Deciphers a PIN block.
    PinIn,
    /// Enciphers a PIN block.
    PinOut,
    /// Makes a MAC.
    MacGenerate,
    /// Verifies a MAC.
    MacVerify,
}

impl Purpose {
    /// The role of a key of the token that does it.
    pub(crate) fn role(self) -> KeyRole {
        match self {
            Self::PinIn => KeyRole::ZonePinIn,
            Self::PinOut => KeyRole::ZonePinOut,
            Self::MacGenerate | Self::MacVerify => KeyRole::Mac,
        }
    }

    fn protects(self) -> bool {
        match self {
            Self::PinOut | Self::MacGenerate => true,
            Self::PinIn | Self::MacVerify => false,
        }
    }
}

/// A key as an order names it, found, of the right role and state.
pub(crate) struct NamedKey {
    key: Arc<LoadedKey>,
    ksn: Option<Ksn>,
    purpose: Purpose,
}

impl NamedKey {
    pub(crate) fn find(
        keys: &KeyTable,
        name: &KeyName,
        ksn: Option<&Ksn>,
        purpose: Purpose,
    ) -> Result<Self, Failure> {
        let role = if ksn.is_some() { KeyRole::BaseDerivation } else { purpose.role() };
        let key = if purpose.protects() {
            keys.active_of_role(name, role)?
        } else {
            keys.of_role(name, role)?
        };
        Ok(Self { key, ksn: ksn.copied(), purpose })
    }

    /// The zone or MAC key's, or the base derivation key's.
    pub(crate) fn profile(&self) -> &KeyProfile {
        &self.key.profile
    }

    /// Whether the KSN is of the key's family and its counter one that a device may use. True
    /// without a KSN.
    pub(crate) fn ksn_fits(&self) -> bool {
        self.ksn.is_none_or(|ksn| dukpt::fits(&self.key.profile, &ksn))
    }

    /// The key whose objects do the work: derived, and gone with the answer, when there is a KSN.
    pub(crate) fn ready<'s>(&self, session: &'s TokenSession) -> Result<ReadyKey<'s>, Failure> {
        Ok(match &self.ksn {
            None => ReadyKey::OfToken(Arc::clone(&self.key)),
            Some(ksn) => {
                let derived = dukpt::working_key(session, &self.key, ksn, self.purpose)?;
                ReadyKey::Derived(Box::new(derived))
            }
        })
    }
}

/// A key that works until it is dropped.
pub(crate) enum ReadyKey<'s> {
    OfToken(Arc<LoadedKey>),
    Derived(Box<PassingKey<'s>>),
}

impl ReadyKey<'_> {
    pub(crate) fn key(&self) -> &LoadedKey {
        match self {
            Self::OfToken(key) => key,
            Self::Derived(derived) => &derived.key,
        }
    }
}

/// One side of a PIN operation as an order names it.
pub(crate) struct NamedSide {
    pub(crate) key: NamedKey,
    pub(crate) format: PinBlockFormat,
}

impl NamedSide {
    /// Errors: `KeyNotForThis` for a key of another role, a format that the key does not carry, a
    /// KSN missing or too much.
    pub(crate) fn find(keys: &KeyTable, side: &PinKey, purpose: Purpose) -> Result<Self, Failure> {
        let key = NamedKey::find(keys, &side.key, side.ksn.as_ref(), purpose)?;
        let format = side.format;
        if !key.profile().formats.contains(&format) {
            let label = &key.profile().label;
            return Err(Failure::KeyNotForThis(format!("{label} carries no {format}")));
        }
        Ok(Self { key, format })
    }

    /// `PinBlockRefused` for a KSN that no device of this key has: the caller's own input, so that
    /// refusing it early tells him nothing.
    pub(crate) fn check_ksn(&self) -> Result<(), Failure> {
        if self.key.ksn_fits() { Ok(()) } else { Err(Failure::PinBlockRefused) }
    }
}

/// The mode that all keys of one PIN operation have.
pub(crate) fn one_mode(one: &KeyProfile, other: &KeyProfile) -> Result<Mode, Failure> {
    if one.mode == other.mode {
        return Ok(one.mode);
    }
    Err(Failure::KeyNotForThis(format!(
        "{} works in mode {}, {} in mode {}",
        one.label, one.mode, other.label, other.mode
    )))
}

/// One side of a PIN operation: a key ready for use and the format of the block under it.
pub(crate) struct Side<'k> {
    pub(crate) key: &'k LoadedKey,
    pub(crate) format: PinBlockFormat,
}

impl Side<'_> {
    /// The PIN field, and whether the token deciphered the block at all. What does not decipher
    /// becomes zeros, which are no PIN field in any format. Errors: `PinBlockRefused` for a block of
    /// another size, and the token's own.
    pub(crate) fn decipher(
        &self,
        session: &TokenSession,
        pan: &Pan,
        block: &PinBlock,
    ) -> Result<(ClearPinField, Choice), Failure> {
        // The size is the caller's own input: refusing it early tells him nothing.
        if block.expose().len() != self.format.block_bytes() {
            return Err(Failure::PinBlockRefused);
        }
        let field = match self.open(session, pan, block.expose()) {
            Ok(deciphered) => ClearPinField::new(self.format, &deciphered, pan),
            Err(Failure::Token { class: CkrClass::Caller, .. }) => None,
            Err(failure) => return Err(failure),
        };
        let deciphered = Choice::from(u8::from(field.is_some()));
        let field = field
            .or_else(|| ClearPinField::new(self.format, &[0; 8], pan))
            .ok_or(Failure::PinBlockRefused)?;
        Ok((field, deciphered))
    }

    /// The clear block (formats 0, 1, 3) or the PIN field (format 4).
    fn open(
        &self,
        session: &TokenSession,
        pan: &Pan,
        block: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let key = self.key.object;
        match self.format {
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

    /// The block of this side's format, from what [`ClearPinField`] made for it.
    pub(crate) fn encipher(
        &self,
        session: &TokenSession,
        pan: &Pan,
        clear: &ClearPinBlock,
    ) -> Result<Vec<u8>, Failure> {
        let key = self.key.object;
        let mut block = match self.format {
            PinBlockFormat::Iso0 | PinBlockFormat::Iso1 | PinBlockFormat::Iso3 => {
                session.encrypt(&Mechanism::Des3Ecb, key, clear.expose())?
            }
            PinBlockFormat::Iso4 => {
                let mut middle = session.encrypt(&Mechanism::AesEcb, key, clear.expose())?;
                xor(&mut middle, &pan.iso4_field());
                session.encrypt(&Mechanism::AesEcb, key, &middle)?
            }
        };
        Ok(std::mem::take(&mut *block))
    }
}

/// Random fill for one block.
pub(crate) fn fill() -> Result<Fill, Failure> {
    Fill::draw().map_err(|error| Failure::Token {
        function: "getrandom".into(),
        code: error.to_string(),
        class: CkrClass::Restart,
    })
}

/// A token that answers another size than it was given is not well.
pub(crate) fn one_block(answer: &[u8]) -> Result<&[u8; 8], Failure> {
    answer.try_into().map_err(|_| Failure::Token {
        function: "Encrypt".into(),
        code: format!("{} bytes where one block is 8", answer.len()),
        class: CkrClass::Restart,
    })
}

fn xor(bytes: &mut [u8], other: &[u8]) {
    for (byte, other) in bytes.iter_mut().zip(other) {
        *byte ^= other;
    }
}
