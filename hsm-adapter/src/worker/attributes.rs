//! The exact attribute set of each key role, mode `in_worker`. One key, one role.
//!
//! The ceremony makes keys with these sets; the worker reads every key back at start and refuses
//! anything else. A set that is wider than the role is a hole: WRAP beside DECRYPT reads keys out,
//! a settable flag is any flag.

use cryptoki::mechanism::MechanismType;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use cryptoki_sys::{CKM_AES_ECB_ENCRYPT_DATA, CKM_DES3_CMAC};
use zeroize::Zeroizing;

use super::raw::{RawModule, mechanism_type};
use crate::error::TokenError;
use crate::register::{KeyAlgorithm, KeyProfile};
use crate::vocabulary::{KeyRole, MacAlgorithm};

/// Which object of a key is meant: a retail MAC key and a TDES base derivation key have two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// The key itself.
    Whole,
    /// K_L K_L K_L of a retail MAC key; of a TDES base derivation key the variant that makes the
    /// right half of an initial key (X9.24-1).
    Left,
}

/// The use flags, in the order in which they are read back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Uses {
    encrypt: bool,
    decrypt: bool,
    sign: bool,
    wrap: bool,
    unwrap: bool,
    derive: bool,
}

fn uses(profile: &KeyProfile, part: Part) -> (Uses, MechanismType) {
    use KeyAlgorithm::{Aes, Tdes};
    let ecb = match profile.algorithm {
        Aes => MechanismType::AES_ECB,
        Tdes | KeyAlgorithm::Hmac | KeyAlgorithm::Ec => MechanismType::DES3_ECB,
    };
    let none = Uses::default();
    let encrypt = Uses { encrypt: true, ..none };
    let sign = Uses { sign: true, ..none };
    let derive = Uses { derive: true, ..none };
    match profile.role {
        KeyRole::ZonePinIn => (Uses { decrypt: true, ..none }, ecb),
        KeyRole::ZonePinOut
        | KeyRole::PinVerificationPvv
        | KeyRole::PinVerification3624
        | KeyRole::PinReference => (encrypt, ecb),
        KeyRole::Mac => match (profile.mac.map(|mac| mac.algorithm), profile.algorithm) {
            (Some(MacAlgorithm::HmacSha256), _) => (sign, MechanismType::SHA256_HMAC),
            (Some(MacAlgorithm::Cmac), Aes) => (sign, MechanismType::AES_CMAC),
            (Some(MacAlgorithm::Cmac), _) => (sign, mechanism_type(CKM_DES3_CMAC)),
            (Some(MacAlgorithm::CbcMac), Aes) => (encrypt, MechanismType::AES_CBC),
            (Some(MacAlgorithm::CbcMac), _) => (encrypt, MechanismType::DES3_CBC),
            (Some(MacAlgorithm::Retail) | None, _) => match part {
                Part::Whole => (encrypt, MechanismType::DES3_ECB),
                Part::Left => (encrypt, MechanismType::DES3_CBC),
            },
        },
        // TDES DUKPT is built from single encipherments; AES DUKPT is a derivation of the token.
        KeyRole::BaseDerivation if profile.algorithm == Tdes => (encrypt, ecb),
        // One key, one binding: variants (A, C) and derived keys (B) never share a TDES key.
        KeyRole::KeyBlockProtection if profile.variant_blocks => {
            (derive, MechanismType::XOR_BASE_AND_DATA)
        }
        KeyRole::KeyBlockProtection if profile.algorithm == Tdes => {
            (sign, mechanism_type(CKM_DES3_CMAC))
        }
        KeyRole::BaseDerivation | KeyRole::KeyBlockProtection => {
            (derive, mechanism_type(CKM_AES_ECB_ENCRYPT_DATA))
        }
        KeyRole::QueueKek => {
            (Uses { wrap: true, unwrap: true, ..none }, MechanismType::AES_KEY_WRAP_PAD)
        }
        KeyRole::AuditSigning => (sign, MechanismType::ECDSA),
    }
}

/// What every key of a role has, besides its value, type, label and id.
pub(crate) fn template(profile: &KeyProfile, part: Part) -> Vec<Attribute> {
    let (uses, mechanism) = uses(profile, part);
    let mut template = vec![
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Modifiable(false),
        Attribute::Copyable(false),
        Attribute::Sign(uses.sign),
        Attribute::Decrypt(uses.decrypt),
        Attribute::Unwrap(uses.unwrap),
        Attribute::Derive(uses.derive),
        Attribute::AllowedMechanisms(vec![mechanism]),
    ];
    // A private key has none of these.
    if profile.algorithm != KeyAlgorithm::Ec {
        template.extend([
            Attribute::Encrypt(uses.encrypt),
            Attribute::Verify(false),
            Attribute::Wrap(uses.wrap),
        ]);
    }
    template
}

/// The object's class.
pub(crate) fn class(profile: &KeyProfile) -> ObjectClass {
    match profile.algorithm {
        KeyAlgorithm::Ec => ObjectClass::PRIVATE_KEY,
        KeyAlgorithm::Tdes | KeyAlgorithm::Aes | KeyAlgorithm::Hmac => ObjectClass::SECRET_KEY,
    }
}

/// Reads a key back. The names of attributes that are not as they must be; empty is good.
pub(crate) fn deviations(
    raw: RawModule,
    session: &Session,
    object: ObjectHandle,
    profile: &KeyProfile,
    part: Part,
) -> Result<Vec<String>, TokenError> {
    let mut wanted = template(profile, part);
    wanted.retain(|attribute| attribute.attribute_type() != AttributeType::AllowedMechanisms);
    let types: Vec<AttributeType> = wanted.iter().map(Attribute::attribute_type).collect();
    let found = session.get_attributes(object, &types)?;
    let missing = wanted.iter().filter(|attribute| !found.contains(attribute));
    let mut names: Vec<String> =
        missing.map(|attribute| attribute.attribute_type().to_string()).collect();
    let (_, mechanism) = uses(profile, part);
    let good =
        raw.allowed_mechanisms(session, object).into_iter().map(mechanism_type).eq([mechanism]);
    if !good {
        names.push(AttributeType::AllowedMechanisms.to_string());
    }
    Ok(names)
}

/// Everything that `C_CreateObject` needs for a key of known value. `token` is false for the
/// throw-away keys of the self-test.
///
/// A retail MAC key's left part gets K_L K_L K_L, that of a TDES base derivation key its variant; a
/// double-length TDES key becomes K1 K2 K1.
pub(crate) fn creation_template(
    profile: &KeyProfile,
    part: Part,
    value: &[u8],
    token: bool,
) -> Vec<Attribute> {
    let (key_type, value) = match profile.algorithm {
        KeyAlgorithm::Tdes => {
            let (first, rest) = value.split_at(value.len().min(8));
            let triple = match part {
                Part::Left if profile.role == KeyRole::BaseDerivation => {
                    return creation_template(profile, Part::Whole, &variant(value), token);
                }
                Part::Left => [first, first, first].concat(),
                Part::Whole if value.len() == 16 => [first, rest, first].concat(),
                Part::Whole => value.to_vec(),
            };
            (KeyType::DES3, triple)
        }
        KeyAlgorithm::Aes => (KeyType::AES, value.to_vec()),
        KeyAlgorithm::Hmac | KeyAlgorithm::Ec => (KeyType::GENERIC_SECRET, value.to_vec()),
    };
    let mut template = template(profile, part);
    template[0] = Attribute::Token(token);
    template.push(Attribute::Class(class(profile)));
    template.push(Attribute::KeyType(key_type));
    template.push(Attribute::Value(value));
    template
}

/// A TDES key xor C0C0C0C0 00000000 in each half: X9.24-1.
pub(crate) fn variant(key: &[u8]) -> Zeroizing<Vec<u8>> {
    let mask = [0xC0, 0xC0, 0xC0, 0xC0, 0, 0, 0, 0].into_iter().cycle();
    Zeroizing::new(key.iter().zip(mask).map(|(byte, mask)| byte ^ mask).collect())
}
