//! The exact attribute set of each key role and mode. One key, one role.
//!
//! The ceremony makes keys with these sets; the worker reads every key back at start and refuses
//! anything else. A set that is wider than the role is a hole: WRAP beside DECRYPT reads keys out,
//! a settable flag is any flag.
//!
//! | role | `in_token` | `in_worker` | `vendor` |
//! |---|---|---|---|
//! | zone PIN in, TDES | UNWRAP {DES3_CBC}, UNWRAP_TEMPLATE | DECRYPT {DES3_ECB} | DECRYPT {number} |
//! | zone PIN in, AES | UNWRAP + DECRYPT {AES_CBC}, UNWRAP_TEMPLATE | DECRYPT {AES_ECB} | as above |
//! | zone PIN out, TDES | WRAP {DES3_CBC} | ENCRYPT {DES3_ECB} | ENCRYPT {number} |
//! | zone PIN out, AES | WRAP + ENCRYPT {AES_CBC} | ENCRYPT {AES_ECB} | as above |
//! | base derivation, AES | DERIVE {AES_ECB_ENCRYPT_DATA} | same | - |
//! | retail MAC | - | ENCRYPT, two objects | SIGN {number}, one object |
//! | audit signing | - | SIGN {ECDSA} or {EDDSA} | - |
//!
//! Other roles have one set. In the token everything runs by CBC, with an initial vector that is
//! zero, a constant or the PAN's field (`operation/translate_in_token.rs`): with one mechanism a
//! set is the same for every cell, and there is no second recipe to fall back to. An outbound AES
//! key has ENCRYPT for the outer layer of format 4, an inbound one DECRYPT: attributes cannot
//! enforce that these are used for nothing else.
//!
//! A token may not know ALLOWED_MECHANISMS, COPYABLE or UNWRAP_TEMPLATE: keys are made and read back
//! without them there (`traits.rs`), and a negative probe tells of each.
//!
//! Not set: TRUSTED and WRAP_WITH_TRUSTED (on SoftHSM the security officer alone can set TRUSTED,
//! and only for an object with PRIVATE false), and VALUE_LEN in the unwrap template (the length
//! check of a PIN unwraps its first byte alone).

use std::ptr;

use cryptoki::mechanism::MechanismType;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki_sys::{CK_ATTRIBUTE_TYPE, CK_ULONG, CKM_AES_ECB_ENCRYPT_DATA, CKM_DES3_CMAC};
use zeroize::Zeroizing;

use super::raw::mechanism_type;
use super::token::TokenSession;
use super::traits::UNWRAP_TEMPLATE;
use crate::error::TokenError;
use crate::register::{KeyAlgorithm, KeyProfile};
use crate::vocabulary::{KeyRole, MacAlgorithm, Mode};

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

/// The use flags and the mechanisms, in ascending order of their numbers.
fn uses(profile: &KeyProfile, part: Part) -> (Uses, Vec<MechanismType>) {
    use KeyAlgorithm::{Aes, Tdes};
    let (ecb, cbc) = match profile.algorithm {
        Aes => (MechanismType::AES_ECB, MechanismType::AES_CBC),
        Tdes | KeyAlgorithm::Hmac | KeyAlgorithm::Ec | KeyAlgorithm::Ed25519 => {
            (MechanismType::DES3_ECB, MechanismType::DES3_CBC)
        }
    };
    let aes = profile.algorithm == Aes;
    let none = Uses::default();
    let encrypt = Uses { encrypt: true, ..none };
    let decrypt = Uses { decrypt: true, ..none };
    let sign = Uses { sign: true, ..none };
    let derive = Uses { derive: true, ..none };
    let vendor = profile.vendor.as_ref().map(|vendor| mechanism_type(vendor.number));
    let (uses, mechanism) = match (profile.role, vendor) {
        (KeyRole::ZonePinIn, Some(number)) => (decrypt, number),
        (KeyRole::ZonePinOut, Some(number)) => (encrypt, number),
        (KeyRole::Mac, Some(number)) => (sign, number),
        (KeyRole::ZonePinIn, None) if profile.mode == Mode::InToken => {
            (Uses { unwrap: true, decrypt: aes, ..none }, cbc)
        }
        (KeyRole::ZonePinOut, None) if profile.mode == Mode::InToken => {
            (Uses { wrap: true, encrypt: aes, ..none }, cbc)
        }
        (KeyRole::ZonePinIn, None) => (decrypt, ecb),
        (
            KeyRole::ZonePinOut
            | KeyRole::PinVerificationPvv
            | KeyRole::PinVerification3624
            | KeyRole::PinReference,
            _,
        ) => (encrypt, ecb),
        (KeyRole::Mac, None) => match (profile.mac.map(|mac| mac.algorithm), profile.algorithm) {
            (Some(MacAlgorithm::HmacSha256), _) => (sign, MechanismType::SHA256_HMAC),
            (Some(MacAlgorithm::Cmac), Aes) => (sign, MechanismType::AES_CMAC),
            (Some(MacAlgorithm::Cmac), _) => (sign, mechanism_type(CKM_DES3_CMAC)),
            (Some(MacAlgorithm::CbcMac), _) => (encrypt, cbc),
            (Some(MacAlgorithm::Retail) | None, _) => match part {
                Part::Whole => (encrypt, MechanismType::DES3_ECB),
                Part::Left => (encrypt, MechanismType::DES3_CBC),
            },
        },
        // TDES DUKPT is built from single encipherments; AES DUKPT is a derivation of the token.
        (KeyRole::BaseDerivation, _) if profile.algorithm == Tdes => (encrypt, ecb),
        // One key, one binding: variants (A, C) and derived keys (B) never share a TDES key.
        (KeyRole::KeyBlockProtection, _) if profile.variant_blocks => {
            (derive, MechanismType::XOR_BASE_AND_DATA)
        }
        (KeyRole::KeyBlockProtection, _) if profile.algorithm == Tdes => {
            (sign, mechanism_type(CKM_DES3_CMAC))
        }
        (KeyRole::BaseDerivation | KeyRole::KeyBlockProtection, _) => {
            (derive, mechanism_type(CKM_AES_ECB_ENCRYPT_DATA))
        }
        (KeyRole::QueueKek, _) => {
            (Uses { wrap: true, unwrap: true, ..none }, MechanismType::AES_KEY_WRAP_PAD)
        }
        (KeyRole::AuditSigning, _) if profile.algorithm == KeyAlgorithm::Ed25519 => {
            (sign, MechanismType::EDDSA)
        }
        (KeyRole::AuditSigning, _) => (sign, MechanismType::ECDSA),
    };
    (uses, vec![mechanism])
}

/// What an inbound key of mode `in_token` makes of a PIN block: an object that can be wrapped and
/// nothing else. The call repeats it in full, for tokens that merge and for tokens that compare.
pub(crate) const PIN_OBJECT: [(AttributeType, bool); 13] = [
    (AttributeType::Token, false),
    (AttributeType::Private, true),
    (AttributeType::Sensitive, true),
    (AttributeType::Extractable, true),
    (AttributeType::Modifiable, false),
    (AttributeType::Copyable, false),
    (AttributeType::Encrypt, false),
    (AttributeType::Decrypt, false),
    (AttributeType::Sign, false),
    (AttributeType::Verify, false),
    (AttributeType::Wrap, false),
    (AttributeType::Unwrap, false),
    (AttributeType::Derive, false),
];

/// Whether the key has an unwrap template, which is then [`PIN_OBJECT`].
fn makes_pin_objects(profile: &KeyProfile) -> bool {
    profile.role == KeyRole::ZonePinIn && profile.mode == Mode::InToken
}

/// CKA_UNWRAP_TEMPLATE with [`PIN_OBJECT`], for which cryptoki has no name: the value is an array
/// of CK_ATTRIBUTE, whose pointers lead to the two flags below.
pub(super) fn unwrap_template() -> Attribute {
    static FLAGS: [u8; 2] = [0, 1];
    let mut array = Vec::new();
    for (kind, flag) in PIN_OBJECT {
        let value = ptr::from_ref(&FLAGS[usize::from(flag)]).expose_provenance() as CK_ULONG;
        for word in [number(kind), value, 1] {
            array.extend(word.to_ne_bytes());
        }
    }
    Attribute::VendorDefined((UNWRAP_TEMPLATE, array))
}

fn number(kind: AttributeType) -> CK_ATTRIBUTE_TYPE {
    kind.into()
}

/// What every key of a role has, besides its value, type, label and id.
pub(crate) fn template(profile: &KeyProfile, part: Part) -> Vec<Attribute> {
    let (uses, mechanisms) = uses(profile, part);
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
        Attribute::AllowedMechanisms(mechanisms),
    ];
    // A private key has none of these.
    if !profile.algorithm.is_pair() {
        template.extend([
            Attribute::Encrypt(uses.encrypt),
            Attribute::Verify(false),
            Attribute::Wrap(uses.wrap),
        ]);
    }
    if makes_pin_objects(profile) {
        template.push(unwrap_template());
    }
    template
}

/// The object's class.
pub(crate) fn class(profile: &KeyProfile) -> ObjectClass {
    if profile.algorithm.is_pair() { ObjectClass::PRIVATE_KEY } else { ObjectClass::SECRET_KEY }
}

/// Reads a key back. The names of attributes that are not as they must be; empty is good. What the
/// token does not hold is not asked for.
pub(crate) fn deviations(
    session: &TokenSession,
    object: ObjectHandle,
    profile: &KeyProfile,
    part: Part,
) -> Result<Vec<String>, TokenError> {
    let TokenSession { session, raw, traits, .. } = session;
    let mut wanted = traits.held(template(profile, part));
    // cryptoki cannot read these two.
    let by_hand = [AttributeType::AllowedMechanisms, UNWRAP_TEMPLATE];
    wanted.retain(|attribute| !by_hand.contains(&attribute.attribute_type()));
    let types: Vec<AttributeType> = wanted.iter().map(Attribute::attribute_type).collect();
    let found = session.get_attributes(object, &types)?;
    let missing = wanted.iter().filter(|attribute| !found.contains(attribute));
    let mut names: Vec<String> =
        missing.map(|attribute| attribute.attribute_type().to_string()).collect();
    let (_, mechanisms) = uses(profile, part);
    let found = raw.allowed_mechanisms(session, object).into_iter().map(mechanism_type);
    if traits.holds(AttributeType::AllowedMechanisms) && !found.eq(mechanisms) {
        names.push(AttributeType::AllowedMechanisms.to_string());
    }
    let mut template = match makes_pin_objects(profile) {
        true => PIN_OBJECT.map(|(kind, flag)| (number(kind), flag)).to_vec(),
        false => Vec::new(),
    };
    template.sort_unstable();
    let mut found = raw.unwrap_template(session, object);
    found.sort_unstable();
    if traits.holds(UNWRAP_TEMPLATE) && found != template {
        names.push("CKA_UNWRAP_TEMPLATE".into());
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
        KeyAlgorithm::Hmac | KeyAlgorithm::Ec | KeyAlgorithm::Ed25519 => {
            (KeyType::GENERIC_SECRET, value.to_vec())
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::register::{MacProfile, VendorMechanism};
    use crate::vocabulary::{KeyLabel, MacPadding};

    fn profile(role: KeyRole, algorithm: KeyAlgorithm, mode: Mode) -> KeyProfile {
        let base = KeyProfile::new(KeyLabel::parse("k").unwrap(), role, algorithm);
        let vendor = VendorMechanism { number: 0x8000_0201, cells: Vec::new() };
        let vendor = (mode == Mode::Vendor).then_some(vendor);
        KeyProfile { mode, vendor, ..base }
    }

    /// The flags that are true, by their first letters, and the mechanisms.
    fn set(profile: &KeyProfile) -> (String, Vec<MechanismType>) {
        let (uses, mechanisms) = uses(profile, Part::Whole);
        let flags = [
            (uses.encrypt, "E"),
            (uses.decrypt, "D"),
            (uses.sign, "S"),
            (uses.wrap, "W"),
            (uses.unwrap, "U"),
            (uses.derive, "V"),
        ];
        (flags.iter().filter(|(set, _)| *set).map(|(_, name)| *name).collect(), mechanisms)
    }

    /// The table of this module, cell by cell.
    #[test]
    fn a_zone_key_has_its_modes_set_and_no_more() {
        use KeyAlgorithm::{Aes, Ed25519, Tdes};
        use KeyRole::{ZonePinIn, ZonePinOut};
        let vendor = mechanism_type(0x8000_0201);
        for (role, algorithm, mode, flags, mechanism) in [
            (ZonePinIn, Tdes, Mode::InToken, "U", MechanismType::DES3_CBC),
            (ZonePinIn, Aes, Mode::InToken, "DU", MechanismType::AES_CBC),
            (ZonePinOut, Tdes, Mode::InToken, "W", MechanismType::DES3_CBC),
            (ZonePinOut, Aes, Mode::InToken, "EW", MechanismType::AES_CBC),
            (ZonePinIn, Tdes, Mode::InWorker, "D", MechanismType::DES3_ECB),
            (ZonePinIn, Aes, Mode::InWorker, "D", MechanismType::AES_ECB),
            (ZonePinOut, Tdes, Mode::InWorker, "E", MechanismType::DES3_ECB),
            (ZonePinOut, Aes, Mode::InWorker, "E", MechanismType::AES_ECB),
            (ZonePinIn, Tdes, Mode::Vendor, "D", vendor),
            (ZonePinOut, Aes, Mode::Vendor, "E", vendor),
            (KeyRole::PinVerificationPvv, Tdes, Mode::InWorker, "E", MechanismType::DES3_ECB),
            (KeyRole::AuditSigning, KeyAlgorithm::Ec, Mode::InWorker, "S", MechanismType::ECDSA),
            (KeyRole::AuditSigning, Ed25519, Mode::InWorker, "S", MechanismType::EDDSA),
        ] {
            let set = set(&profile(role, algorithm, mode));
            assert_eq!(set, (flags.to_owned(), vec![mechanism]), "{role} {algorithm:?} {mode}");
        }
    }

    #[test]
    fn a_vendors_retail_mac_key_is_one_object_that_signs() {
        let mut key = profile(KeyRole::Mac, KeyAlgorithm::Tdes, Mode::InWorker);
        let (algorithm, padding) = (MacAlgorithm::Retail, Some(MacPadding::One));
        let (length, length_min, empty_message) = (8, None, false);
        key.mac = Some(MacProfile { algorithm, padding, length, length_min, empty_message });
        assert_eq!(key.left_object_label(), Some("k@1.left".into()));
        assert_eq!(set(&key), ("E".to_owned(), vec![MechanismType::DES3_ECB]));

        key.mode = Mode::Vendor;
        key.vendor = Some(VendorMechanism { number: 0x8000_0135, cells: Vec::new() });

        assert_eq!(key.left_object_label(), None);
        assert_eq!(set(&key), ("S".to_owned(), vec![mechanism_type(0x8000_0135)]));
    }

    /// No key both wraps and deciphers: it could read out what it wraps.
    #[test]
    fn no_set_wraps_and_deciphers() {
        for role in [KeyRole::ZonePinIn, KeyRole::ZonePinOut, KeyRole::BaseDerivation] {
            for mode in Mode::ALL {
                for algorithm in [KeyAlgorithm::Tdes, KeyAlgorithm::Aes] {
                    let (uses, _) = uses(&profile(role, algorithm, mode), Part::Whole);
                    assert!(!(uses.wrap && uses.decrypt), "{role} {mode}");
                }
            }
        }
    }
}
