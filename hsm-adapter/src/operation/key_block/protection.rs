//! The keys that open a block, derived from its protection key, and the block opened with them.
//!
//! KBEK deciphers and KBAK authenticates. Under AES (version D) both are derived inside the token
//! and never leave it; so are the variants of versions A and C. A TDES key (version B) has no
//! derivation in PKCS#11: the token computes their CMACs, which pass through this process.

use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, KeyType, ObjectClass};
use cryptoki_sys::CKM_DES3_CMAC;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::header::{Block, Version};
use super::{adjust_parity, refused, same_left};
use crate::error::{CkrClass, Failure, TokenError};
use crate::operation::check_value::{des3_cmac, subkey_one};
use crate::operation::derive;
use crate::register::KeyAlgorithm;
use crate::vocabulary::KcvMethod;
use crate::worker::keys::LoadedKey;
use crate::worker::passing::{Passing, derive_as};
use crate::worker::raw::mechanism_type;
use crate::worker::token::TokenSession;

/// What was in a block whose MAC is right.
pub(super) struct Opened {
    /// Length, key, padding.
    pub(super) payload: Zeroizing<Vec<u8>>,
    /// Bytes of the protection key.
    pub(super) protection_bytes: usize,
}

/// X9.143, derivation binding under AES.
pub(super) fn open_d(
    session: &TokenSession,
    kbpk: &LoadedKey,
    block: &Block<'_>,
) -> Result<Opened, Failure> {
    wants(kbpk, KeyAlgorithm::Aes, false, block.version)?;
    let bytes = session.raw.value_bytes(&session.session, kbpk.object).unwrap_or_default();
    let (algorithm, calls) = match bytes {
        16 => (2, 1),
        24 => (3, 2),
        32 => (4, 2),
        _ => {
            let name = kbpk.profile.name();
            return Err(Failure::KeyNotForThis(format!("the token tells no length of {name}")));
        }
    };
    let zeros = derive::readable_block(session, kbpk.object, &[0; 16])?;
    let one = subkey_one(&zeros);
    check_kp(kbpk, block, |method| match method {
        KcvMethod::Zeros => Ok(Some(zeros.clone())),
        KcvMethod::Cmac => derive::readable_block(session, kbpk.object, &one).map(Some),
        KcvMethod::HmacSha256 => Ok(None),
    })?;
    // CMAC of one block that is cut short: padded, xor K2, enciphered.
    let two = subkey_one(&one);
    let input = |purpose: u8| {
        let mut input = Zeroizing::new(Vec::with_capacity(32));
        for counter in 1..=calls {
            let [high, low] = (bytes as u16 * 8).to_be_bytes();
            let text = [counter, 0, purpose, 0, 0, algorithm, high, low, 0x80];
            input.extend((0..16).map(|at| text.get(at).unwrap_or(&0) ^ two[at]));
        }
        input
    };
    let derived = |purpose, uses, mechanism| {
        let mut template = passing(KeyType::AES, uses, mechanism);
        template.push(Attribute::ValueLen((bytes as u64).into()));
        derive_as(session, kbpk.object, &template, &input(purpose))
    };
    let kbek = derived(0, Uses::Decipher, MechanismType::AES_CBC)?;
    let kbak = derived(1, Uses::Sign, MechanismType::AES_CMAC)?;
    let iv = block.mac.as_slice().try_into().map_err(|_| wrong_mac())?;
    let payload = session.decrypt(&Mechanism::AesCbc(iv), kbek.object, &block.sealed)?;
    let right = session.sign(&Mechanism::AesCMac, kbak.object, &covered(block, &payload))?;
    if !bool::from(right.ct_eq(&block.mac)) {
        return Err(wrong_mac());
    }
    Ok(Opened { payload, protection_bytes: bytes })
}

/// X9.143, derivation binding under TDES. A token keeps a double-length key as K1 K2 K1, so that
/// nobody knows which length the sender derives for: both are tried, and the MAC says which.
pub(super) fn open_b(
    session: &TokenSession,
    kbpk: &LoadedKey,
    block: &Block<'_>,
) -> Result<Opened, Failure> {
    wants(kbpk, KeyAlgorithm::Tdes, false, block.version)?;
    check_kp(kbpk, block, |method| match method {
        KcvMethod::Cmac => {
            Ok(Some(Zeroizing::new(session.sign(&des3_cmac(), kbpk.object, &[0; 8])?)))
        }
        KcvMethod::Zeros | KcvMethod::HmacSha256 => Ok(None),
    })?;
    let iv = block.mac.as_slice().try_into().map_err(|_| wrong_mac())?;
    for (algorithm, bytes) in [(0, 16_usize), (1, 24)] {
        let derived = |purpose: u8, uses, mechanism| -> Result<Passing<'_>, TokenError> {
            let mut key = Zeroizing::new(Vec::with_capacity(24));
            for counter in 1..=(bytes / 8) as u8 {
                let input = [counter, 0, purpose, 0, 0, algorithm, 0, bytes as u8 * 8];
                let part = session.sign(&des3_cmac(), kbpk.object, &input)?;
                key.extend_from_slice(&Zeroizing::new(part));
            }
            if bytes == 16 {
                key.extend_from_within(..8);
            }
            adjust_parity(&mut key);
            let mut template = passing(KeyType::DES3, uses, mechanism);
            template.push(Attribute::Value(key.to_vec()));
            Ok(Passing { session, object: session.create_secret(template)? })
        };
        let kbek = derived(0, Uses::Decipher, MechanismType::DES3_CBC)?;
        let kbak = derived(1, Uses::Sign, mechanism_type(CKM_DES3_CMAC))?;
        let payload = session.decrypt(&Mechanism::Des3Cbc(iv), kbek.object, &block.sealed)?;
        let right = session.sign(&des3_cmac(), kbak.object, &covered(block, &payload))?;
        if bool::from(right.ct_eq(&block.mac)) {
            return Ok(Opened { payload, protection_bytes: bytes });
        }
    }
    Err(wrong_mac())
}

/// Variant binding, for peers that have nothing better: the MAC is 4 bytes of CBC-MAC over what is
/// enciphered, and the strength of the protection key is not bound.
pub(super) fn open_variant(
    session: &TokenSession,
    kbpk: &LoadedKey,
    block: &Block<'_>,
) -> Result<Opened, Failure> {
    wants(kbpk, KeyAlgorithm::Tdes, true, block.version)?;
    check_kp(kbpk, block, |_| Ok(None))?;
    let variant = |letter: u8, uses| {
        let template = passing(KeyType::DES3, uses, MechanismType::DES3_CBC);
        derive::xor(session, kbpk.object, &[letter; 24], &template).map_err(|error| {
            match error.class() {
                CkrClass::Configuration => refused(
                    "this token cannot make the key variants of versions A and C \
                     (XOR_BASE_AND_DATA): ask for version B or D",
                ),
                CkrClass::Transient
                | CkrClass::Refind
                | CkrClass::Relogin
                | CkrClass::Restart
                | CkrClass::Permanent
                | CkrClass::Caller
                | CkrClass::Answer
                | CkrClass::Benign => error.into(),
            }
        })
    };
    let kbak = variant(b'M', Uses::Encipher)?;
    let mut covered = [block.header.as_bytes(), &block.sealed].concat();
    covered.resize(covered.len().next_multiple_of(8), 0);
    let chain = session.encrypt(&Mechanism::Des3Cbc([0; 8]), kbak.object, &covered)?;
    let right = chain.len().checked_sub(8).and_then(|last| chain.get(last..last + 4));
    if !right.is_some_and(|right| bool::from(right.ct_eq(&block.mac))) {
        return Err(wrong_mac());
    }
    let kbek = variant(b'E', Uses::Decipher)?;
    let iv = block.header.as_bytes()[..8].try_into().map_err(|_| wrong_mac())?;
    let payload = session.decrypt(&Mechanism::Des3Cbc(iv), kbek.object, &block.sealed)?;
    tracing::warn!(key = kbpk.profile.name(), "a key block of variant binding was opened");
    Ok(Opened { payload, protection_bytes: 24 })
}

/// Whether a protection key opens blocks of this version. One key serves one binding.
fn wants(
    kbpk: &LoadedKey,
    algorithm: KeyAlgorithm,
    variant: bool,
    version: Version,
) -> Result<(), Failure> {
    let profile = &kbpk.profile;
    if profile.algorithm == algorithm && profile.variant_blocks == variant {
        return Ok(());
    }
    let needs = match version {
        Version::A | Version::C => {
            "a TDES key with `variant_blocks` on, which is off because that binding is weak"
        }
        Version::B => "a TDES key without `variant_blocks`",
        Version::D => "an AES key",
    };
    Err(refused(format!(
        "version {version:?} needs {needs} to open it; {} is none",
        profile.name()
    )))
}

fn wrong_mac() -> Failure {
    refused("its MAC is wrong: another protection key, or something was changed")
}

/// Header and clear payload: what the MAC of versions B and D is over.
fn covered(block: &Block<'_>, payload: &[u8]) -> Zeroizing<Vec<u8>> {
    Zeroizing::new([block.header.as_bytes(), payload].concat())
}

/// Compares the KP block, when there is one, with what the token computes of the protection key,
/// else with what the register says of it.
fn check_kp(
    kbpk: &LoadedKey,
    block: &Block<'_>,
    compute: impl Fn(KcvMethod) -> Result<Option<Zeroizing<Vec<u8>>>, TokenError>,
) -> Result<(), Failure> {
    let Some(stated) = block.check_value("KP")? else { return Ok(()) };
    if let Some(found) = compute(stated.method)? {
        return same_left(Some(&found), &stated.left, "KP");
    }
    let profile = &kbpk.profile;
    let known = profile.kcv.filter(|_| profile.kcv_method == Some(stated.method));
    let known = known.map(|kcv| kcv.bytes());
    let left = &stated.left[..stated.left.len().min(3)];
    same_left(known.as_ref().map(|bytes| bytes.as_slice()), left, "KP")
}

enum Uses {
    Decipher,
    Encipher,
    Sign,
}

/// A key that lives for one block, may do one thing and is read by nobody.
fn passing(key_type: KeyType, uses: Uses, mechanism: MechanismType) -> Vec<Attribute> {
    let (decrypt, encrypt, sign) = match uses {
        Uses::Decipher => (true, false, false),
        Uses::Encipher => (false, true, false),
        Uses::Sign => (false, false, true),
    };
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(key_type),
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Decrypt(decrypt),
        Attribute::Encrypt(encrypt),
        Attribute::Sign(sign),
        Attribute::Verify(false),
        Attribute::Wrap(false),
        Attribute::Unwrap(false),
        Attribute::Derive(false),
        Attribute::AllowedMechanisms(vec![mechanism]),
    ]
}
