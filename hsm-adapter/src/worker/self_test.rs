//! The start-up known-answer test: every operation that the register's keys can be asked for, once,
//! with throw-away keys whose results are compiled in.
//!
//! Mechanism flags lie; bytes do not. The same code runs that serves orders, under the attribute
//! sets that real keys have. A worker that fails is not ready. The health probe runs it again.

use cryptoki::object::{Attribute, KeyType};

use super::attributes::{Part, creation_template, template};
use super::keys::{KeyTable, LoadedKey};
use super::known_answers::{self, Proof};
use super::recipes::{self, Needs};
use super::token::TokenSession;
use crate::error::{CkrClass, Failure, TokenError};
use crate::operation::{checkpoint, mac, seal};
use crate::protocol::Recipe;
use crate::register::{KeyAlgorithm, KeyProfile, MacProfile, VendorMechanism};
use crate::vocabulary::{KeyLabel, KeyRole, MacAlgorithm, MacPadding, Malformed, Mode};

/// Whether one known MAC of a kind that the register uses is right, for a heartbeat: the cheapest
/// proof that the token computes what it should. A register without MAC keys has none.
///
/// # Errors
/// The token's.
pub(super) fn beat(session: &TokenSession, needs: &Needs) -> Result<bool, Failure> {
    let used = |case: &&Mac| needs.has_mac(case.algorithm, case.cipher);
    MACS.iter().find(used).map_or(Ok(true), |known| known.run(session, None))
}

/// What [`run`] and [`sign`] prove, of the keys that are there.
pub(crate) fn all(session: &TokenSession, keys: &KeyTable) -> Result<Vec<Recipe>, SelfTestError> {
    let mut proved = run(session, &keys.needs())?;
    for key in keys.signers() {
        let recipe = sign(session, &key)?;
        if !proved.contains(&recipe) {
            proved.push(recipe);
        }
    }
    Ok(proved)
}

/// That an audit signing key signs what the public key beside it verifies. A signature is never the
/// same twice, and a public key may be anybody's: so this is the key itself, with a text that is no
/// log's.
pub(super) fn sign(session: &TokenSession, key: &LoadedKey) -> Result<Recipe, SelfTestError> {
    checkpoint::prove(session, key)
        .map_err(|why| SelfTestError::Signer { key: key.profile.name(), why })
}

/// The operations proved: random numbers, and what the keys of the register can be asked for.
/// Errors name the operation that gave wrong bytes or none.
pub(crate) fn run(session: &TokenSession, needs: &Needs) -> Result<Vec<Recipe>, SelfTestError> {
    let mut proved = recipes::prove(session, needs)?;
    let mut prove = |operation: &str, mode, calls: String, outcome: Result<bool, Failure>| {
        let recipe = Recipe { operation: operation.to_owned(), mode, calls };
        match outcome {
            Ok(true) => proved.push(recipe),
            Ok(false) => return Err(SelfTestError::WrongBytes { recipe }),
            Err(why) => return Err(SelfTestError::Failed { recipe, why }),
        }
        Ok(())
    };
    for case in MACS.iter().filter(|case| needs.has_mac(case.algorithm, case.cipher)) {
        prove(case.name, Mode::InToken, case.calls.into(), case.run(session, None))?;
    }
    if let Some(vendor) = &needs.retail_mac {
        let calls = format!("sign {:#010X}", vendor.number);
        prove(MACS[0].name, Mode::Vendor, calls, MACS[0].run(session, Some(vendor)))?;
    }
    let asked = |role, algorithm| needs.modes(role, algorithm);
    for Proof { operation, mode, calls, outcome } in known_answers::run(session, asked) {
        prove(operation, mode, calls.into(), outcome)?;
    }
    let calls = "wrap and unwrap AES_KEY_WRAP_PAD".into();
    if needs.has(KeyRole::QueueKek, KeyAlgorithm::Aes) {
        prove("data key wrap and unwrap", Mode::InToken, calls, data_key(session))?;
    }
    prove("random", Mode::InToken, "generate random".into(), random(session))?;
    Ok(proved)
}

/// A known MAC.
struct Mac {
    name: &'static str,
    calls: &'static str,
    algorithm: MacAlgorithm,
    cipher: KeyAlgorithm,
    key: &'static str,
    message: &'static str,
    mac: &'static str,
}

/// tests/vectors/mac_iso9797_alg3.json a012, mac_cmac_aes.json a003 (SP 800-38B),
/// mac_cmac_tdes.json a005 (SP 800-38B), mac_hmac_sha256.json a006.
const MACS: [Mac; 4] = [
    Mac {
        name: "retail MAC",
        calls: "encrypt DES3_CBC, encrypt DES3_ECB",
        algorithm: MacAlgorithm::Retail,
        cipher: KeyAlgorithm::Tdes,
        key: "92CE1F7F29F70B6DCB266D0192F4918C",
        message: "3430313233343536373839303944393837",
        mac: "459D91B050EFF81D",
    },
    Mac {
        name: "AES CMAC",
        calls: "sign AES_CMAC",
        algorithm: MacAlgorithm::Cmac,
        cipher: KeyAlgorithm::Aes,
        key: "2B7E151628AED2A6ABF7158809CF4F3C",
        message: "6BC1BEE22E409F96E93D7E117393172AAE2D8A571E03AC9C9EB76FAC45AF8E51\
                  30C81C46A35CE411E5FBC1191A0A52EFF69F2445DF4F9B17AD2B417BE66C3710",
        mac: "51F0BEBF7E3B9D92FC49741779363CFE",
    },
    Mac {
        name: "TDES CMAC",
        calls: "sign DES3_CMAC",
        algorithm: MacAlgorithm::Cmac,
        cipher: KeyAlgorithm::Tdes,
        key: "4CF15134A2850DD58A3D10BA80570D38",
        message: "6BC1BEE22E409F96E93D7E117393172AAE2D8A571E03AC9C9EB76FAC45AF8E51",
        mac: "31B1E431DABC4EB8",
    },
    Mac {
        name: "HMAC-SHA-256",
        calls: "sign SHA256_HMAC",
        algorithm: MacAlgorithm::HmacSha256,
        cipher: KeyAlgorithm::Hmac,
        key: "F7576A6B43DDC5817F9CDB449CF7B114B6951C946D2C47BD607ED9F806533AC8",
        message: "37",
        mac: "CE058A54E56C81DE832B68E06AAA57B8CAD78F6AB7FD455219A85AC47529B839",
    },
];

impl Mac {
    fn run(
        &self,
        session: &TokenSession,
        vendor: Option<&VendorMechanism>,
    ) -> Result<bool, Failure> {
        let wanted = bytes(self.mac);
        let mut profile = profile(KeyRole::Mac, self.cipher);
        if let Some(vendor) = vendor {
            (profile.mode, profile.vendor) = (Mode::Vendor, Some(vendor.clone()));
        }
        profile.mac = Some(MacProfile {
            algorithm: self.algorithm,
            padding: (self.algorithm == MacAlgorithm::Retail).then_some(MacPadding::One),
            length: wanted.len() as u8,
            length_min: None,
            empty_message: false,
        });
        let key = Throwaway::new(session, profile, &bytes(self.key))?;
        let message = bytes(self.message);
        let mut wrong = wanted.clone();
        wrong[0] ^= 1;
        Ok(mac::generate(session, &key.key, &message, None)? == wanted
            && mac::verify(session, &key.key, &message, &wanted)?
            && !mac::verify(session, &key.key, &message, &wrong)?)
    }
}

/// RFC 5649 with a known KEK (value checked with OpenSSL's id-aes256-wrap-pad), then a round trip
/// under a KEK made in the token.
fn data_key(session: &TokenSession) -> Result<bool, Failure> {
    let kek = "000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F";
    let wrapped = "6D10EFA7EE3023460945C8A9886E7101353D66337100C5FF\
                   2BCB08BF790E9E202EAA28C31D721D87";
    let known = profile(KeyRole::QueueKek, KeyAlgorithm::Aes);
    let known = Throwaway::new(session, known, &bytes(kek))?;
    let opened = seal::open(session, &known.key, &bytes(wrapped))?;
    let wanted: Vec<u8> = (64..96).collect();

    let made = Throwaway::generated_kek(session)?;
    let (clear, wrapped) = seal::make(session, &made.key)?;
    let again = seal::open(session, &made.key, &wrapped)?;
    Ok(opened.expose() == wanted.as_slice() && clear.expose() == again.expose())
}

fn random(session: &TokenSession) -> Result<bool, Failure> {
    let mut draws = [[0u8; 32]; 2];
    for draw in &mut draws {
        session.session.generate_random_slice(draw).map_err(TokenError::from)?;
    }
    Ok(draws[0] != draws[1] && draws[0] != [0; 32])
}

/// Session keys that are destroyed on every way out.
pub(super) struct Throwaway<'s> {
    session: &'s TokenSession,
    pub(super) key: LoadedKey,
}

impl<'s> Throwaway<'s> {
    pub(super) fn new(
        session: &'s TokenSession,
        profile: KeyProfile,
        value: &[u8],
    ) -> Result<Self, Failure> {
        let create = |part| {
            let template = creation_template(&profile, part, value, false);
            session.create_secret(template)
        };
        let object = create(Part::Whole)?;
        let mut made =
            Self { session, key: LoadedKey { profile: profile.clone(), object, left: None } };
        if profile.left_object_label().is_some() {
            made.key.left = Some(create(Part::Left)?);
        }
        Ok(made)
    }

    fn generated_kek(session: &'s TokenSession) -> Result<Self, Failure> {
        let profile = profile(KeyRole::QueueKek, KeyAlgorithm::Aes);
        let mut wanted = template(&profile, Part::Whole);
        wanted[0] = Attribute::Token(false);
        wanted.extend([Attribute::KeyType(KeyType::AES), Attribute::ValueLen(32.into())]);
        let object = session.generate_aes(wanted)?;
        Ok(Self { session, key: LoadedKey { profile, object, left: None } })
    }
}

impl Drop for Throwaway<'_> {
    fn drop(&mut self) {
        for object in [Some(self.key.object), self.key.left].into_iter().flatten() {
            if let Err(error) = self.session.session.destroy_object(object) {
                tracing::warn!(%error, "destroying a throw-away key; it dies with its session");
            }
        }
    }
}

pub(super) fn profile(role: KeyRole, algorithm: KeyAlgorithm) -> KeyProfile {
    let label = KeyLabel::parse("self-test").expect("nine characters of the allowed set");
    KeyProfile::new(label, role, algorithm)
}

pub(super) fn bytes(compiled_in: &str) -> Vec<u8> {
    hex::decode(compiled_in).expect("constants of this file, which its test decodes")
}

pub(super) fn compiled_in(_: Malformed) -> Failure {
    Failure::PinBlockRefused
}

/// What the known-answer test found.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each error text is the documentation")]
pub enum SelfTestError {
    #[error(
        "self-test of {} in mode {} ({}): the token gave wrong bytes; {}",
        recipe.operation, recipe.mode, recipe.calls, remedy(recipe.mode)
    )]
    WrongBytes { recipe: Recipe },
    #[error(
        "self-test of {} in mode {} ({}): the token refused; {}",
        recipe.operation, recipe.mode, recipe.calls, remedy(recipe.mode)
    )]
    Failed {
        recipe: Recipe,
        #[source]
        why: Failure,
    },
    #[error(
        "self-test of the audit signing key {key}: put its own public key beside it, or activate \
         another version"
    )]
    Signer {
        key: String,
        #[source]
        why: Failure,
    },
}

impl SelfTestError {
    /// Whether the token is well and cannot do what the key register asks for: no other start helps.
    pub(super) fn is_final(&self) -> bool {
        match self {
            Self::WrongBytes { recipe } => recipe.mode != Mode::InWorker,
            Self::Failed { why: Failure::Token { class, .. }, .. }
            | Self::Signer { why: Failure::Token { class, .. }, .. } => {
                *class == CkrClass::Configuration
            }
            Self::Failed { .. } | Self::Signer { .. } => false,
        }
    }
}

fn remedy(mode: Mode) -> &'static str {
    match mode {
        Mode::InToken => {
            "this token lacks what the operation needs: ask its vendor for these calls, or give the \
             keys another mode in the key register"
        }
        Mode::Vendor => {
            "compare [vendor] of the key register with the vendor's manual, or give the keys another \
             mode"
        }
        Mode::InWorker => "ask the token's vendor for these calls",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compiled_in_texts_are_hex() {
        for case in &MACS {
            assert!(!bytes(case.key).is_empty() && !bytes(case.mac).is_empty());
        }
    }
}
