//! The start-up known-answer test: every operation once, with throw-away keys whose results are
//! compiled in.
//!
//! Mechanism flags lie; bytes do not. The same code runs that serves orders, under the attribute
//! sets that real keys have. A worker that fails is not ready. The health probe runs it again.

use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, KeyType};

use super::attributes::{Part, creation_template, template};
use super::keys::LoadedKey;
use super::token::TokenSession;
use crate::error::{Failure, TokenError};
use crate::operation::side::Side;
use crate::operation::translate::translate;
use crate::operation::{mac, seal};
use crate::protocol::Recipe;
use crate::register::{KeyAlgorithm, KeyProfile, MacProfile};
use crate::vocabulary::{
    KeyLabel, KeyRole, MacAlgorithm, MacPadding, Malformed, Mode, Pan, PinBlock, PinBlockFormat,
};

/// The operations proved. Errors name the operation that gave wrong bytes or none.
pub(crate) fn run(session: &TokenSession) -> Result<Vec<Recipe>, SelfTestError> {
    let mut proved = Vec::new();
    let mut prove = |operation: &str, outcome: Result<bool, Failure>| match outcome {
        Ok(true) => {
            let (operation, mode, calls) = (operation.to_owned(), Mode::InWorker, String::new());
            proved.push(Recipe { operation, mode, calls });
            Ok(())
        }
        Ok(false) => Err(SelfTestError::WrongBytes { operation: operation.to_owned() }),
        Err(why) => Err(SelfTestError::Failed { operation: operation.to_owned(), why }),
    };
    for case in &TRANSLATIONS {
        prove(case.name, case.run(session))?;
    }
    for case in &MACS {
        prove(case.name, case.run(session))?;
    }
    prove("data key wrap and unwrap", data_key(session))?;
    prove("random", random(session))?;
    Ok(proved)
}

/// A known block to a known block, and back where the fill is random.
struct Translation {
    name: &'static str,
    from: (PinBlockFormat, &'static str, &'static str),
    to: (PinBlockFormat, &'static str, Option<&'static str>),
}

const PAN: &str = "4761737909457820";
const TDES_A: &str = "1C31AB64FB573D459EF12CBC4CD95DA2";
const TDES_B: &str = "B013E5DA4C043457836180AEBFA1543276B00B3DBAD3BA7A";
const AES_A: &str = "6CC1288ED5E7494CD11F0A8C1A54265A";
const BLOCK_ISO0_TDES_A: &str = "46CF9D38F2FDD392";
const BLOCK_ISO0_TDES_B: &str = "8930E12067D92AB9";
const BLOCK_ISO1_TDES_A: &str = "578E51A793CF601F";
const BLOCK_ISO4_AES_A: &str = "CCD0CC0784C3271FB42C1D80F1B21F7D";

/// tests/vectors/pin_translation.json, a001, a003, a006, and two with random fill.
const TRANSLATIONS: [Translation; 5] = [
    Translation {
        name: "translate iso0 to iso0",
        from: (PinBlockFormat::Iso0, TDES_A, BLOCK_ISO0_TDES_A),
        to: (PinBlockFormat::Iso0, TDES_B, Some(BLOCK_ISO0_TDES_B)),
    },
    Translation {
        name: "translate iso1 to iso0",
        from: (PinBlockFormat::Iso1, TDES_A, BLOCK_ISO1_TDES_A),
        to: (PinBlockFormat::Iso0, TDES_B, Some(BLOCK_ISO0_TDES_B)),
    },
    Translation {
        name: "translate iso4 to iso0",
        from: (PinBlockFormat::Iso4, AES_A, BLOCK_ISO4_AES_A),
        to: (PinBlockFormat::Iso0, TDES_A, Some(BLOCK_ISO0_TDES_A)),
    },
    Translation {
        name: "translate iso0 to iso4",
        from: (PinBlockFormat::Iso0, TDES_A, BLOCK_ISO0_TDES_A),
        to: (PinBlockFormat::Iso4, AES_A, None),
    },
    Translation {
        name: "translate iso0 to iso3",
        from: (PinBlockFormat::Iso0, TDES_A, BLOCK_ISO0_TDES_A),
        to: (PinBlockFormat::Iso3, TDES_B, None),
    },
];

impl Translation {
    fn run(&self, session: &TokenSession) -> Result<bool, Failure> {
        let (from_format, from_key, block) = self.from;
        let (to_format, to_key, wanted) = self.to;
        let pan = Pan::parse(PAN).map_err(compiled_in)?;
        let block = PinBlock::new(bytes(block)).map_err(compiled_in)?;
        let inbound = Throwaway::pin(session, KeyRole::ZonePinIn, from_format, from_key)?;
        let outbound = Throwaway::pin(session, KeyRole::ZonePinOut, to_format, to_key)?;
        let from = Side { key: &inbound.key, format: from_format };
        let to = Side { key: &outbound.key, format: to_format };
        let out = translate(session, &pan, &block, &from, &to)?;
        if let Some(wanted) = wanted {
            return Ok(out.expose() == bytes(wanted));
        }
        // Random fill: translate back to the format with none and compare there.
        let inbound = Throwaway::pin(session, KeyRole::ZonePinIn, to_format, to_key)?;
        let outbound = Throwaway::pin(session, KeyRole::ZonePinOut, PinBlockFormat::Iso0, TDES_B)?;
        let from = Side { key: &inbound.key, format: to_format };
        let to = Side { key: &outbound.key, format: PinBlockFormat::Iso0 };
        let back = translate(session, &pan, &out, &from, &to)?;
        Ok(back.expose() == bytes(BLOCK_ISO0_TDES_B))
    }
}

/// A known MAC.
struct Mac {
    name: &'static str,
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
        algorithm: MacAlgorithm::Retail,
        cipher: KeyAlgorithm::Tdes,
        key: "92CE1F7F29F70B6DCB266D0192F4918C",
        message: "3430313233343536373839303944393837",
        mac: "459D91B050EFF81D",
    },
    Mac {
        name: "AES CMAC",
        algorithm: MacAlgorithm::Cmac,
        cipher: KeyAlgorithm::Aes,
        key: "2B7E151628AED2A6ABF7158809CF4F3C",
        message: "6BC1BEE22E409F96E93D7E117393172AAE2D8A571E03AC9C9EB76FAC45AF8E51\
                  30C81C46A35CE411E5FBC1191A0A52EFF69F2445DF4F9B17AD2B417BE66C3710",
        mac: "51F0BEBF7E3B9D92FC49741779363CFE",
    },
    Mac {
        name: "TDES CMAC",
        algorithm: MacAlgorithm::Cmac,
        cipher: KeyAlgorithm::Tdes,
        key: "4CF15134A2850DD58A3D10BA80570D38",
        message: "6BC1BEE22E409F96E93D7E117393172AAE2D8A571E03AC9C9EB76FAC45AF8E51",
        mac: "31B1E431DABC4EB8",
    },
    Mac {
        name: "HMAC-SHA-256",
        algorithm: MacAlgorithm::HmacSha256,
        cipher: KeyAlgorithm::Hmac,
        key: "F7576A6B43DDC5817F9CDB449CF7B114B6951C946D2C47BD607ED9F806533AC8",
        message: "37",
        mac: "CE058A54E56C81DE832B68E06AAA57B8CAD78F6AB7FD455219A85AC47529B839",
    },
];

impl Mac {
    fn run(&self, session: &TokenSession) -> Result<bool, Failure> {
        let wanted = bytes(self.mac);
        let mut profile = profile(KeyRole::Mac, self.cipher);
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
struct Throwaway<'s> {
    session: &'s TokenSession,
    key: LoadedKey,
}

impl<'s> Throwaway<'s> {
    fn new(session: &'s TokenSession, profile: KeyProfile, value: &[u8]) -> Result<Self, Failure> {
        let create = |part| {
            let template = creation_template(&profile, part, value, false);
            session.session.create_object(&template).map_err(TokenError::from)
        };
        let object = create(Part::Whole)?;
        let mut made =
            Self { session, key: LoadedKey { profile: profile.clone(), object, left: None } };
        if profile.left_object_label().is_some() {
            made.key.left = Some(create(Part::Left)?);
        }
        Ok(made)
    }

    fn pin(
        session: &'s TokenSession,
        role: KeyRole,
        format: PinBlockFormat,
        value: &str,
    ) -> Result<Self, Failure> {
        let cipher = match format {
            PinBlockFormat::Iso4 => KeyAlgorithm::Aes,
            PinBlockFormat::Iso0 | PinBlockFormat::Iso1 | PinBlockFormat::Iso3 => {
                KeyAlgorithm::Tdes
            }
        };
        let mut profile = profile(role, cipher);
        profile.formats = vec![format];
        Self::new(session, profile, &bytes(value))
    }

    fn generated_kek(session: &'s TokenSession) -> Result<Self, Failure> {
        let profile = profile(KeyRole::QueueKek, KeyAlgorithm::Aes);
        let mut wanted = template(&profile, Part::Whole);
        wanted[0] = Attribute::Token(false);
        wanted.extend([Attribute::KeyType(KeyType::AES), Attribute::ValueLen(32.into())]);
        let object = session
            .session
            .generate_key(&Mechanism::AesKeyGen, &wanted)
            .map_err(TokenError::from)?;
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

fn profile(role: KeyRole, algorithm: KeyAlgorithm) -> KeyProfile {
    let label = KeyLabel::parse("self-test").expect("nine characters of the allowed set");
    KeyProfile::new(label, role, algorithm)
}

fn bytes(compiled_in: &str) -> Vec<u8> {
    hex::decode(compiled_in).expect("constants of this file, which its test decodes")
}

fn compiled_in(_: Malformed) -> Failure {
    Failure::PinBlockRefused
}

/// What the known-answer test found.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each error text is the documentation")]
pub enum SelfTestError {
    #[error("self-test of {operation}: the token gave wrong bytes; this operation is off")]
    WrongBytes { operation: String },
    #[error("self-test of {operation}: the token refused; this operation is off")]
    Failed {
        operation: String,
        #[source]
        why: Failure,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compiled_in_texts_are_hex() {
        for case in &MACS {
            assert!(!bytes(case.key).is_empty() && !bytes(case.mac).is_empty());
        }
        for case in &TRANSLATIONS {
            assert!(!bytes(case.from.1).is_empty() && !bytes(case.to.1).is_empty());
        }
    }
}
