//! TR-31 / X9.143 key blocks: what a block says of its key, and the key in it.
//!
//! The header is read strictly, and what is not known is refused by name. The keys that open a block
//! are derived in the token from the protection key. SoftHSM can do no more than that, so the key
//! itself passes through this process's memory, zeroized. Versions B and D have their MAC over the
//! clear key: it is deciphered, the MAC is compared in constant time, and only then is a bit of it
//! looked at. Every error names what is wrong and never a value.

mod header;
mod protection;

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

pub(crate) use self::header::{Block, Version};
use super::check_value::CheckValues;
use crate::error::Failure;
use crate::register::{KeyAlgorithm, KeyProfile, MacUse};
use crate::vocabulary::{KcvMethod, KeyRole, MacAlgorithm};
use crate::worker::keys::LoadedKey;
use crate::worker::token::TokenSession;

/// A key in the clear, on its way from a block to the token. Zeroized, and never printed.
pub(crate) struct ClearKey(Zeroizing<Vec<u8>>);

impl ClearKey {
    pub(crate) fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for ClearKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClearKey(redacted)")
    }
}

fn refused(why: impl Into<String>) -> Failure {
    Failure::KeyBlockRefused(why.into())
}

/// Whether the block's usage, algorithm and mode of use allow what the profile wants.
///
/// Errors: `KeyBlockRefused`.
pub(crate) fn fits(block: &Block<'_>, profile: &KeyProfile) -> Result<(), Failure> {
    if block.algorithm != profile.algorithm {
        return Err(refused("the profile names another algorithm than the block"));
    }
    let (role, usage, mode) = (profile.role, block.usage, block.mode);
    let wanted: &[char] = match (usage, role) {
        ("P0", KeyRole::ZonePinIn) => &['B', 'D'],
        ("P0", KeyRole::ZonePinOut | KeyRole::PinReference) => &['B', 'E'],
        ("M0" | "M1" | "M3" | "M6" | "M7", KeyRole::Mac) => {
            let algorithm = match usage {
                "M3" => MacAlgorithm::Retail,
                "M6" => MacAlgorithm::Cmac,
                "M7" => MacAlgorithm::HmacSha256,
                _ => MacAlgorithm::CbcMac,
            };
            if profile.mac.is_some_and(|mac| mac.algorithm != algorithm) {
                return Err(refused(format!("usage {usage} is for {algorithm} alone")));
            }
            match profile.mac_use {
                None => &['C'],
                Some(MacUse::Generate) => &['C', 'G'],
                Some(MacUse::Verify) => &['C', 'V'],
            }
        }
        ("B0", KeyRole::BaseDerivation) => &['X', 'N'],
        ("K1", KeyRole::KeyBlockProtection) => &['B', 'D', 'N'],
        ("V1", KeyRole::PinVerification3624) | ("V2", KeyRole::PinVerificationPvv) => {
            &['C', 'V', 'N']
        }
        _ => return Err(refused(format!("usage {usage} does not make a {role} key"))),
    };
    if wanted.contains(&mode) {
        return Ok(());
    }
    let remedy = if role == KeyRole::Mac && matches!(mode, 'G' | 'V') {
        "; a profile with `mac_use` may want one half"
    } else {
        ""
    };
    Err(refused(format!("its mode of use {mode} allows less than a {role} key does{remedy}")))
}

/// The key in the block. Nothing of it is used before the block's MAC has been found right.
///
/// Errors: `KeyBlockRefused`, `KeyNotForThis` for a protection key that does not open this version,
/// and the token's own.
pub(crate) fn open(
    session: &TokenSession,
    kbpk: &LoadedKey,
    block: &Block<'_>,
) -> Result<ClearKey, Failure> {
    let opened = match block.version {
        Version::D => protection::open_d(session, kbpk, block)?,
        Version::B => protection::open_b(session, kbpk, block)?,
        Version::A | Version::C => protection::open_variant(session, kbpk, block)?,
    };
    let key = clear_key(block.algorithm, &opened.payload)?;
    let strength = match block.algorithm {
        KeyAlgorithm::Tdes if block.version == Version::D => 0,
        // HMAC-SHA-256 is no stronger than its hash.
        KeyAlgorithm::Tdes | KeyAlgorithm::Aes | KeyAlgorithm::Hmac | KeyAlgorithm::Ec => {
            key.0.len().min(32)
        }
    };
    if opened.protection_bytes < strength {
        return Err(refused("the protection key is weaker than the key in the block"));
    }
    Ok(key)
}

/// The key of a payload: two bytes of length in bits, the key, padding up to the longest key of its
/// kind at most.
fn clear_key(algorithm: KeyAlgorithm, payload: &[u8]) -> Result<ClearKey, Failure> {
    let bits = payload.first_chunk().copied().map(u16::from_be_bytes).unwrap_or_default();
    let (bits, bytes) = (usize::from(bits), usize::from(bits) / 8);
    if bits == 64 && algorithm == KeyAlgorithm::Tdes {
        return Err(refused("its key is single DES"));
    }
    let (fits, longest) = match algorithm {
        KeyAlgorithm::Tdes => (matches!(bytes, 16 | 24), 24),
        KeyAlgorithm::Aes => (matches!(bytes, 16 | 24 | 32), 32),
        KeyAlgorithm::Hmac => (matches!(bytes, 16..=64), 64),
        KeyAlgorithm::Ec => (false, 0),
    };
    if !bits.is_multiple_of(8) || !fits {
        return Err(refused("its key has a length that its algorithm does not have"));
    }
    if payload.len() > (2_usize + longest).next_multiple_of(16) {
        return Err(refused("its padding is longer than any key of its algorithm"));
    }
    let key = payload.get(2..2 + bytes).ok_or_else(|| refused("its key is cut short"))?;
    let mut key = Zeroizing::new(key.to_vec());
    if algorithm == KeyAlgorithm::Tdes {
        adjust_parity(&mut key);
        let parts: Vec<&[u8]> = key.chunks(8).collect();
        if parts.windows(2).any(|pair| pair[0].ct_eq(pair[1]).into()) {
            return Err(refused("two parts of its key are equal: that is single DES"));
        }
    }
    Ok(ClearKey(key))
}

/// Odd parity in each byte, as DES has it: some tokens refuse anything else.
fn adjust_parity(key: &mut [u8]) {
    for byte in key {
        *byte ^= u8::from((*byte).count_ones().is_multiple_of(2));
    }
}

/// Compares the KC block, when there is one, with the check values of the key that came out.
///
/// Errors: `KeyBlockRefused`.
pub(crate) fn check_kc(block: &Block<'_>, values: &CheckValues) -> Result<(), Failure> {
    let Some(stated) = block.check_value("KC")? else { return Ok(()) };
    let found = values.by(stated.method);
    same_left(found, &stated.left, "KC")
}

/// A check value as KC and KP carry it: two hex digits of method, then 2 to 5 bytes in hex.
pub(crate) struct StatedValue {
    method: KcvMethod,
    left: Vec<u8>,
}

fn same_left(found: Option<&[u8]>, stated: &[u8], id: &str) -> Result<(), Failure> {
    let found = found.and_then(|found| found.get(..stated.len()));
    match found {
        Some(found) if bool::from(found.ct_eq(stated)) => Ok(()),
        Some(_) => Err(refused(format!("its {id} block states the check value of another key"))),
        None => {
            Err(refused(format!("its {id} block states a check value that cannot be compared")))
        }
    }
}
