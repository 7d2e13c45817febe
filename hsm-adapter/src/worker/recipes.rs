//! Which recipe runs for each translation and mode, proved by known answers.
//!
//! A mode has one recipe a cell: the attribute set of its keys allows exactly the mechanisms of
//! that one (`attributes.rs`), so there is nothing to fall back to, and never from one mode to
//! another. What the keys of the register can ask for is tried at start with throw-away keys under
//! the same attribute sets; when a mode does not give the right bytes, the worker does not start.

use super::self_test::{SelfTestError, Throwaway, bytes, compiled_in, profile};
use super::token::TokenSession;
use crate::error::Failure;
use crate::operation::side::Side;
use crate::operation::translate::translate;
use crate::operation::translate_in_token;
use crate::protocol::Recipe;
use crate::register::{KeyAlgorithm, KeyProfile, KeyRegister, MacProfile, VendorMechanism};
use crate::vocabulary::{KeyRole, MacAlgorithm, Mode, Pan, PinBlock, PinBlockFormat};

/// What the keys of a register can be asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    /// A PIN key of mode `in_worker`.
    in_worker: bool,
    /// Cells between keys of mode `in_token`.
    in_token: Vec<(PinBlockFormat, PinBlockFormat)>,
    /// A zone PIN key of mode `vendor`.
    vendor: Option<VendorMechanism>,
    /// A retail MAC key of mode `vendor`.
    pub(super) retail_mac: Option<VendorMechanism>,
    /// What kinds of keys there are.
    kinds: Vec<(KeyRole, KeyAlgorithm, Mode)>,
    /// What the keys make of messages, and under which cipher.
    macs: Vec<(MacAlgorithm, KeyAlgorithm)>,
}

impl Needs {
    pub(crate) fn of(register: &KeyRegister) -> Self {
        let vendor = |role: &dyn Fn(KeyRole) -> bool| {
            register.living().filter(|key| role(key.role)).find_map(|key| key.vendor.clone())
        };
        let carries = |out: bool, format: PinBlockFormat| {
            register.living().any(|key| {
                let side = match key.role {
                    KeyRole::ZonePinIn => !out,
                    KeyRole::ZonePinOut => out,
                    KeyRole::BaseDerivation => true,
                    KeyRole::Mac
                    | KeyRole::PinVerificationPvv
                    | KeyRole::PinVerification3624
                    | KeyRole::PinReference
                    | KeyRole::KeyBlockProtection
                    | KeyRole::QueueKek
                    | KeyRole::AuditSigning => false,
                };
                side && key.mode == Mode::InToken && key.formats.contains(&format)
            })
        };
        let all = || {
            let from = PinBlockFormat::ALL.into_iter();
            from.flat_map(|from| PinBlockFormat::ALL.map(|to| (from, to)))
        };
        let in_token = all().filter(|(from, to)| {
            translate_in_token::calls(*from, *to).is_some()
                && carries(false, *from)
                && carries(true, *to)
        });
        Self {
            in_worker: register
                .living()
                .any(|key| key.carries_pins() && key.mode == Mode::InWorker),
            in_token: in_token.collect(),
            vendor: vendor(&|role| matches!(role, KeyRole::ZonePinIn | KeyRole::ZonePinOut)),
            retail_mac: vendor(&|role| role == KeyRole::Mac),
            kinds: register.living().map(|key| (key.role, key.algorithm, key.mode)).collect(),
            macs: register.living().filter_map(made).collect(),
        }
    }

    /// Whether there is a key of this role and algorithm.
    pub(super) fn has(&self, role: KeyRole, algorithm: KeyAlgorithm) -> bool {
        !self.modes(role, algorithm).is_empty()
    }

    /// The modes of the keys of this role and algorithm, each once.
    pub(super) fn modes(&self, role: KeyRole, algorithm: KeyAlgorithm) -> Vec<Mode> {
        let has = |mode: &Mode| self.kinds.contains(&(role, algorithm, *mode));
        Mode::ALL.into_iter().filter(has).collect()
    }

    /// Whether there is a key that makes such MACs. Key blocks of versions D and B carry a CMAC.
    pub(super) fn has_mac(&self, algorithm: MacAlgorithm, cipher: KeyAlgorithm) -> bool {
        self.macs.contains(&(algorithm, cipher))
            || algorithm == MacAlgorithm::Cmac && self.has(KeyRole::KeyBlockProtection, cipher)
    }
}

/// What a key makes of messages by the token's own mechanisms.
fn made(key: &KeyProfile) -> Option<(MacAlgorithm, KeyAlgorithm)> {
    let MacProfile { algorithm, .. } = key.mac.filter(|_| key.vendor.is_none())?;
    let is_hmac = algorithm == MacAlgorithm::HmacSha256;
    Some((algorithm, if is_hmac { KeyAlgorithm::Hmac } else { key.algorithm }))
}

/// Proves every translation that is needed, in every mode that is.
pub(super) fn prove(session: &TokenSession, needs: &Needs) -> Result<Vec<Recipe>, SelfTestError> {
    let mut proved = Vec::new();
    let mut cell = |mode, vendor: Option<&VendorMechanism>, (from, to)| {
        let (mechanism, calls) = (vendor.map(|vendor| vendor.number), calls(mode, from, to));
        let calls = mechanism.map_or(calls, |number| format!("decrypt {number:#010X}"));
        let operation = format!("translate {from} to {to}");
        let recipe = Recipe { operation, mode, calls };
        match (Cell { mode, vendor, from, to }).run(session) {
            Ok(true) => proved.push(recipe),
            Ok(false) => return Err(SelfTestError::WrongBytes { recipe }),
            Err(why) => return Err(SelfTestError::Failed { recipe, why }),
        }
        Ok(())
    };
    for pair in IN_WORKER.into_iter().filter(|_| needs.in_worker) {
        cell(Mode::InWorker, None, pair)?;
    }
    for pair in &needs.in_token {
        cell(Mode::InToken, None, *pair)?;
    }
    if let Some(vendor) = &needs.vendor {
        for pair in &vendor.cells {
            cell(Mode::Vendor, Some(vendor), *pair)?;
        }
    }
    Ok(proved)
}

/// Every decipherment and encipherment of this mode: the other cells are made of the same calls.
const IN_WORKER: [(PinBlockFormat, PinBlockFormat); 5] = {
    use PinBlockFormat::{Iso0, Iso1, Iso3, Iso4};
    [(Iso0, Iso0), (Iso1, Iso0), (Iso4, Iso0), (Iso0, Iso4), (Iso0, Iso3)]
};

fn calls(mode: Mode, from: PinBlockFormat, to: PinBlockFormat) -> String {
    let ecb = |format| match format {
        PinBlockFormat::Iso4 => "AES_ECB twice",
        PinBlockFormat::Iso0 | PinBlockFormat::Iso1 | PinBlockFormat::Iso3 => "DES3_ECB",
    };
    match mode {
        Mode::InToken => translate_in_token::calls(from, to).unwrap_or_default().into(),
        Mode::InWorker => format!("decrypt {}, encrypt {}", ecb(from), ecb(to)),
        Mode::Vendor => String::new(),
    }
}

/// One translation with throw-away keys.
struct Cell<'v> {
    mode: Mode,
    vendor: Option<&'v VendorMechanism>,
    from: PinBlockFormat,
    to: PinBlockFormat,
}

/// A block whose PIN is known, as format 0 under another key.
struct Known {
    key: &'static str,
    block: &'static str,
    iso0_key: &'static str,
    iso0_block: &'static str,
    /// The same bytes under this key are no PIN block.
    wrong_key: &'static str,
}

const PAN: &str = "4761737909457820";
const TDES_A: &str = "1C31AB64FB573D459EF12CBC4CD95DA2";
const TDES_B: &str = "B013E5DA4C043457836180AEBFA1543276B00B3DBAD3BA7A";
const AES_A: &str = "6CC1288ED5E7494CD11F0A8C1A54265A";
const AES_B: &str = "1C894FC166729C854C78FA9C0627F8B6CDEDB12483D8A2A5156522B105881CDE";

/// tests/vectors/pin_translation.json: a001, a003, a002, a006.
fn known(format: PinBlockFormat) -> Known {
    let (key, block, iso0_key, iso0_block, wrong_key) = match format {
        PinBlockFormat::Iso0 => (TDES_A, "46CF9D38F2FDD392", TDES_B, "8930E12067D92AB9", TDES_B),
        PinBlockFormat::Iso1 => (TDES_A, "578E51A793CF601F", TDES_B, "8930E12067D92AB9", TDES_B),
        PinBlockFormat::Iso3 => (TDES_B, "AEEE1E084C5AB456", TDES_A, "52763B56A483E75C", TDES_A),
        PinBlockFormat::Iso4 => {
            (AES_A, "CCD0CC0784C3271FB42C1D80F1B21F7D", TDES_A, "46CF9D38F2FDD392", AES_B)
        }
    };
    Known { key, block, iso0_key, iso0_block, wrong_key }
}

impl Cell<'_> {
    /// The known block to the known block; where the fill is random, translated on to format 0 in
    /// this process, under throw-away keys of its own. Then the block under a key that it was not made
    /// under, which must be refused.
    fn run(&self, session: &TokenSession) -> Result<bool, Failure> {
        let known = known(self.from);
        let block = PinBlock::new(bytes(known.block)).map_err(compiled_in)?;
        let to_key = match self.to {
            PinBlockFormat::Iso4 => AES_B,
            PinBlockFormat::Iso0 | PinBlockFormat::Iso1 | PinBlockFormat::Iso3 => known.iso0_key,
        };
        let translated = self.translate(session, known.key, to_key, &block)?;
        let iso0 = if self.to == PinBlockFormat::Iso0 {
            translated
        } else {
            let (mode, vendor) = (Mode::InWorker, None);
            let back = Cell { mode, vendor, from: self.to, to: PinBlockFormat::Iso0 };
            back.translate(session, to_key, known.iso0_key, &translated)?
        };
        let refused = self.translate(session, known.wrong_key, to_key, &block);
        Ok(iso0.expose() == bytes(known.iso0_block) && refused == Err(Failure::PinBlockRefused))
    }

    fn translate(
        &self,
        session: &TokenSession,
        from_key: &str,
        to_key: &str,
        block: &PinBlock,
    ) -> Result<PinBlock, Failure> {
        let pan = Pan::parse(PAN).map_err(compiled_in)?;
        let from = self.key(KeyRole::ZonePinIn, self.from);
        let to = self.key(KeyRole::ZonePinOut, self.to);
        let from = Throwaway::new(session, from, &bytes(from_key))?;
        let to = Throwaway::new(session, to, &bytes(to_key))?;
        let from = Side { key: &from.key, format: self.from };
        let to = Side { key: &to.key, format: self.to };
        translate(session, &pan, block, &from, &to)
    }

    fn key(&self, role: KeyRole, format: PinBlockFormat) -> KeyProfile {
        let cipher = match format {
            PinBlockFormat::Iso4 => KeyAlgorithm::Aes,
            PinBlockFormat::Iso0 | PinBlockFormat::Iso1 | PinBlockFormat::Iso3 => {
                KeyAlgorithm::Tdes
            }
        };
        let (mode, vendor) = (self.mode, self.vendor.cloned());
        KeyProfile { mode, vendor, formats: vec![format], ..profile(role, cipher) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(label: &str, role: &str, algorithm: &str, mode: &str, format: &str) -> String {
        format!(
            "[[key]]\nlabel = \"{label}\"\nrole = \"{role}\"\nalgorithm = \"{algorithm}\"\n\
             mode = \"{mode}\"\nformats = [\"{format}\"]\n"
        )
    }

    #[test]
    fn needed_is_what_the_keys_of_a_mode_can_be_asked_for() {
        use PinBlockFormat::{Iso0, Iso4};
        let vendor = "[vendor.pin_translate]\nmechanism = 0x80000201\n\
                      parameter = \"pin-translate-1\"\ncells = [[\"iso0\", \"iso0\"]]\n";
        let in_token = key("a", "zone-pin-in", "tdes", "in_token", "iso0")
            + &key("b", "zone-pin-out", "aes", "in_token", "iso4")
            + &key("c", "zone-pin-out", "tdes", "in_token", "iso0");
        let needs = |text: &str| Needs::of(&KeyRegister::parse(text).unwrap());

        let found = needs(&in_token);
        assert_eq!(found.in_token, [(Iso0, Iso0), (Iso0, Iso4)]);
        assert!(!found.in_worker && found.vendor.is_none());
        let mixed = in_token + &key("d", "zone-pin-in", "tdes", "in_worker", "iso3");
        assert_eq!((needs(&mixed).in_token.len(), needs(&mixed).in_worker), (2, true));
        let own = key("e", "zone-pin-in", "tdes", "vendor", "iso0");
        let found = needs(&format!("{vendor}{mixed}{own}"));
        assert_eq!(found.vendor.unwrap().cells, [(Iso0, Iso0)]);
    }

    #[test]
    fn a_mac_is_needed_where_a_key_makes_it() {
        use KeyAlgorithm::{Aes, Hmac, Tdes};
        use MacAlgorithm::{Cmac, HmacSha256, Retail};
        let needs = |text: &str| Needs::of(&KeyRegister::parse(text).unwrap());
        let key = |label: &str, rest: &str| format!("[[key]]\nlabel = \"{label}\"\n{rest}\n");
        let mac = |algorithm: &str| {
            format!("role = \"mac\"\nalgorithm = \"tdes\"\nmac = {{ {algorithm}, length = 8 }}")
        };
        let retail = mac("algorithm = \"retail\", padding = 1");

        let found = needs(&key("a", &retail));
        assert!(found.has_mac(Retail, Tdes) && !found.has_mac(Cmac, Tdes));
        assert!(!found.has_mac(HmacSha256, Hmac) && !found.has(KeyRole::QueueKek, Aes));
        let vendor = "[vendor.retail_mac]\nmechanism = 0x80000135\n";
        let found = needs(&format!("{vendor}{}mode = \"vendor\"\n", key("a", &retail)));
        assert!(!found.has_mac(Retail, Tdes) && found.retail_mac.is_some());
        let found = needs(&key("k", "role = \"key-block-protection\"\nalgorithm = \"aes\""));
        assert!(found.has_mac(Cmac, Aes) && !found.has_mac(Cmac, Tdes));
    }

    #[test]
    fn compiled_in_texts_are_hex() {
        for format in PinBlockFormat::ALL {
            let known = known(format);
            for text in [known.key, known.block, known.iso0_key, known.iso0_block, known.wrong_key]
            {
                assert!(!bytes(text).is_empty());
            }
        }
    }
}
