//! DUKPT, the host's side: one key a transaction, from a base derivation key and a KSN.
//!
//! AES (X9.24-3): every step is a derivation of the token, of keys that may only derive and never
//! leave it. TDES (X9.24-1): the initial key and every register step pass through this process,
//! because no portable mechanism computes them; the block cipher itself is the token's, under
//! passing objects. Every object but the working key is destroyed before this returns, and the
//! working key with the answer that it is for.
//!
//! A device makes its MACs with its generation key (AES usage 2000) or request variant (TDES): an
//! order to verify uses these. The host's own MACs are made with the key that the device
//! verifies with: AES usage 2001, the TDES response variant.

use cryptoki::mechanism::Mechanism;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::side::{Purpose, one_block};
use crate::error::Failure;
use crate::register::{KeyAlgorithm, KeyProfile};
use crate::vocabulary::Ksn;
use crate::worker::attributes::{Part, variant};
use crate::worker::keys::LoadedKey;
use crate::worker::passing::{Passing, PassingKey, create, derive};
use crate::worker::token::TokenSession;

/// Whether the KSN is of the key's family and its counter one that a device may use.
pub(crate) fn fits(bdk: &KeyProfile, ksn: &Ksn) -> bool {
    let family = match ksn {
        Ksn::Tdes(_) => KeyAlgorithm::Tdes,
        Ksn::Aes(_) => KeyAlgorithm::Aes,
    };
    family == bdk.algorithm && ksn.is_usable()
}

/// The working key of this transaction, under the attribute set of a key of its purpose.
pub(crate) fn working_key<'s>(
    session: &'s TokenSession,
    bdk: &LoadedKey,
    ksn: &Ksn,
    purpose: Purpose,
) -> Result<PassingKey<'s>, Failure> {
    let profile = KeyProfile { role: purpose.role(), ..bdk.profile.clone() };
    match ksn {
        Ksn::Aes(bytes) => aes(session, bdk, bytes, ksn.counter(), purpose, profile),
        Ksn::Tdes(bytes) => tdes(session, bdk, bytes, ksn.counter(), purpose, profile),
    }
}

fn aes<'s>(
    session: &'s TokenSession,
    bdk: &LoadedKey,
    ksn: &[u8; 12],
    counter: u32,
    purpose: Purpose,
    profile: KeyProfile,
) -> Result<PassingKey<'s>, Failure> {
    let label = &bdk.profile.label;
    let key_bytes = session.raw.value_bytes(&session.session, bdk.object);
    let Some(key_bytes) = key_bytes.filter(|bytes| matches!(bytes, 16 | 24 | 32)) else {
        return Err(Failure::KeyNotForThis(format!("the token tells no length of {label}")));
    };
    let working_bytes = usize::from(bdk.profile.working_key_bits.unwrap_or(128)) / 8;
    if working_bytes > key_bytes {
        return Err(Failure::KeyNotForThis(format!(
            "{label} has {} bits, fewer than its `working_key_bits`",
            key_bytes * 8
        )));
    }
    let chain = |base, usage, context: [u8; 8]| {
        derive(session, base, &bdk.profile, key_bytes, &derivation(usage, key_bytes, context))
    };
    let [id @ .., _, _, _, _] = *ksn;
    let context = |counter: u32| {
        let [.., a, b, c, d] = id;
        let [e, f, g, h] = counter.to_be_bytes();
        [a, b, c, d, e, f, g, h]
    };
    let mut key = chain(bdk.object, USAGE_INITIAL_KEY, id)?;
    let mut reached = 0;
    for bit in one_bits(counter) {
        reached |= bit;
        key = chain(key.object, USAGE_KEY_DERIVATION, context(reached))?;
    }
    let usage = match purpose {
        Purpose::PinIn | Purpose::PinOut => USAGE_PIN,
        Purpose::MacVerify => USAGE_MAC_GENERATION,
        Purpose::MacGenerate => USAGE_MAC_VERIFICATION,
    };
    let data = derivation(usage, working_bytes, context(counter));
    let working = derive(session, key.object, &profile, working_bytes, &data)?;
    Ok(PassingKey::of(profile, working, None))
}

const USAGE_PIN: u16 = 0x1000;
const USAGE_MAC_GENERATION: u16 = 0x2000;
const USAGE_MAC_VERIFICATION: u16 = 0x2001;
const USAGE_KEY_DERIVATION: u16 = 0x8000;
const USAGE_INITIAL_KEY: u16 = 0x8001;

/// X9.24-3, 6.3.2: one block for each 16 bytes of the key, numbered; which key, for what, how long.
fn derivation(usage: u16, key_bytes: usize, context: [u8; 8]) -> Vec<u8> {
    let algorithm = match key_bytes {
        16 => 2u16,
        24 => 3,
        _ => 4,
    };
    let mut data = Vec::with_capacity(32);
    for number in 1..=key_bytes.div_ceil(16) {
        data.extend([1, number as u8]);
        data.extend(usage.to_be_bytes());
        data.extend(algorithm.to_be_bytes());
        data.extend((key_bytes as u16 * 8).to_be_bytes());
        data.extend(context);
    }
    data
}

/// The one-bits of a counter, highest first.
fn one_bits(counter: u32) -> impl Iterator<Item = u32> {
    (0..32).rev().map(|place| 1 << place).filter(move |bit| counter & bit != 0)
}

/// A double-length TDES key in worker memory, between two calls.
#[derive(Zeroize, ZeroizeOnDrop)]
struct ClearRegister(Box<[u8; 16]>);

fn tdes<'s>(
    session: &'s TokenSession,
    bdk: &LoadedKey,
    ksn: &[u8; 10],
    counter: u32,
    purpose: Purpose,
    profile: KeyProfile,
) -> Result<PassingKey<'s>, Failure> {
    let mut register = initial_key(session, bdk, ksn)?;
    // The right-most 8 bytes, counter cleared.
    let [_, _, id @ ..] = *ksn;
    let id = u64::from_be_bytes(id) & !0x1F_FFFF;
    let mut reached = 0;
    for bit in one_bits(counter) {
        reached |= bit;
        register = step(session, &bdk.profile, &register, id | u64::from(reached))?;
    }
    let (at, mask) = match purpose {
        Purpose::PinIn | Purpose::PinOut => (7, 0xFF),
        Purpose::MacVerify => (6, 0xFF),
        Purpose::MacGenerate => (4, 0xFF),
    };
    register.0[at] ^= mask;
    register.0[at + 8] ^= mask;
    Ok(PassingKey::create(session, profile, &odd_parity(&*register.0))?)
}

/// The key that was injected into the device: the left half of its KSN under the base key, and
/// under its variant, which the token holds beside it.
fn initial_key(
    session: &TokenSession,
    bdk: &LoadedKey,
    ksn: &[u8; 10],
) -> Result<ClearRegister, Failure> {
    let Some(variant) = bdk.left else {
        return Err(Failure::KeyNotForThis(format!("{} has no variant", bdk.profile.label)));
    };
    let [mut id @ .., _, _] = *ksn;
    id[7] &= 0xE0;
    let mut key = ClearRegister(Box::new([0; 16]));
    for (half, object) in key.0.chunks_exact_mut(8).zip([bdk.object, variant]) {
        half.copy_from_slice(one_block(&session.encrypt(&Mechanism::Des3Ecb, object, &id)?)?);
    }
    Ok(key)
}

/// One step of the non-reversible key generation: each half from the old right half and the crypto
/// register, under the old left half and, for the left one, under the variant of both.
fn step(
    session: &TokenSession,
    bdk: &KeyProfile,
    old: &ClearRegister,
    crypto_register: u64,
) -> Result<ClearRegister, Failure> {
    let masked = variant(&*old.0);
    let mut new = ClearRegister(Box::new([0; 16]));
    let (left, right) = new.0.split_at_mut(8);
    for (half, key) in [(right, &old.0[..]), (left, &masked[..])] {
        let (under, data) = key.split_at(8);
        let register = crypto_register.to_be_bytes();
        let input: Zeroizing<Vec<u8>> =
            Zeroizing::new(data.iter().zip(register).map(|(data, bit)| data ^ bit).collect());
        let single = single_des(session, bdk, under)?;
        let output = session.encrypt(&Mechanism::Des3Ecb, single.object, &input)?;
        for ((half, output), data) in half.iter_mut().zip(one_block(&output)?).zip(data) {
            *half = output ^ data;
        }
    }
    Ok(new)
}

/// DES as three times the same key: tokens have left single DES behind. It has the attributes of the
/// base key, which enciphers alone.
fn single_des<'s>(
    session: &'s TokenSession,
    bdk: &KeyProfile,
    key: &[u8],
) -> Result<Passing<'s>, Failure> {
    let key = odd_parity(key);
    let mut triple = Zeroizing::new(Vec::with_capacity(24));
    for _ in 0..3 {
        triple.extend_from_slice(&key);
    }
    Ok(create(session, bdk, Part::Whole, &triple)?)
}

/// DES does not look at the lowest bit of a byte, and some tokens refuse a key for it.
fn odd_parity(key: &[u8]) -> Zeroizing<Vec<u8>> {
    let odd = |byte: &u8| (byte & 0xFE) | ((byte >> 1).count_ones() as u8 + 1) & 1;
    Zeroizing::new(key.iter().map(odd).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_bits_come_highest_first_and_parity_is_odd() {
        assert_eq!(one_bits(0x1_0005).collect::<Vec<_>>(), [0x1_0000, 4, 1]);
        assert_eq!(*odd_parity(&[0x00, 0x01, 0xFE, 0xFF, 0x07]), [0x01, 0x01, 0xFE, 0xFE, 0x07]);
    }

    /// X9.24-3:2017, the supplement's first derivation data.
    #[test]
    fn a_key_longer_than_a_block_takes_two_numbered_blocks() {
        let id = [0x12, 0x34, 0x56, 0x78, 0x90, 0x12, 0x34, 0x56];
        let one = hex::encode(derivation(USAGE_INITIAL_KEY, 16, id));
        assert_eq!(one, "01018001000200801234567890123456");
        let two = hex::encode(derivation(USAGE_PIN, 24, id));
        let blocks = ["010110000003 00c01234567890123456", "010210000003 00c01234567890123456"];
        assert_eq!(two, blocks.concat().replace(' ', ""));
    }
}
