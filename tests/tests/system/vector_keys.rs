//! The keys of the known-answer vectors, as a disposable token holds them.
//!
//! One key has one role, so a value that stands on both sides of translations becomes two keys.

use harness::vectors::{self, Vector};
use hsm_adapter::register::{KeyAlgorithm, KeyProfile, MacProfile};
use hsm_adapter::vocabulary::{KeyLabel, KeyRole, MacAlgorithm, MacPadding, PinBlockFormat};
use softhsm::{PlannedKey, PlannedValue};

/// One translation of `pin_translation.json`, and the keys' labels.
pub(crate) struct Translation {
    pub(crate) vector: Vector,
    pub(crate) from: String,
    pub(crate) to: String,
}

/// One MAC vector and its key's label.
pub(crate) struct MacCase {
    pub(crate) vector: Vector,
    pub(crate) key: String,
}

/// The keys that the cases need.
#[derive(Default)]
pub(crate) struct VectorKeys(pub(crate) Vec<PlannedKey>);

/// All translations.
pub(crate) fn translations(keys: &mut VectorKeys) -> Vec<Translation> {
    vectors::load("pin_translation")
        .into_iter()
        .map(|vector| {
            let (from, to) = (vector.part("in"), vector.part("out"));
            let from = if from.has("dukpt") {
                keys.base_derivation(from.part("dukpt").hex("bdk"), |_| {})
            } else {
                keys.zone(KeyRole::ZonePinIn, &from)
            };
            let to = keys.zone(KeyRole::ZonePinOut, &to);
            Translation { vector, from, to }
        })
        .collect()
}

/// All MACs of the five files.
pub(crate) fn macs(keys: &mut VectorKeys) -> Vec<MacCase> {
    let files = [
        ("mac_iso9797_alg1", MacAlgorithm::CbcMac, KeyAlgorithm::Tdes),
        ("mac_iso9797_alg3", MacAlgorithm::Retail, KeyAlgorithm::Tdes),
        ("mac_cmac_tdes", MacAlgorithm::Cmac, KeyAlgorithm::Tdes),
        ("mac_cmac_aes", MacAlgorithm::Cmac, KeyAlgorithm::Aes),
        ("mac_hmac_sha256", MacAlgorithm::HmacSha256, KeyAlgorithm::Hmac),
    ];
    let mut cases = Vec::new();
    for (file, algorithm, cipher) in files {
        for vector in vectors::load(file) {
            let padding = vector.has("padding").then(|| vector.number("padding") as u8);
            let mac = MacProfile {
                algorithm,
                padding: padding.map(|method| MacPadding::try_from(method).unwrap()),
                length: vector.number("mac_length") as u8,
                length_min: None,
                empty_message: true,
            };
            let cipher =
                if vector.find("cipher") == Some("AES") { KeyAlgorithm::Aes } else { cipher };
            let mut value = vector.hex("key");
            if cipher == KeyAlgorithm::Hmac {
                pad_hmac_key(&vector, &mut value);
            }
            // Single DES is TDES with three equal keys.
            if value.len() == 8 {
                value = value.repeat(3);
            }
            let key = keys.add(KeyRole::Mac, cipher, Vec::new(), Some(mac), value);
            cases.push(MacCase { vector, key });
        }
    }
    cases
}

/// SoftHSM refuses HMAC-SHA-256 keys under 32 bytes (CKR_KEY_SIZE_RANGE). FIPS 198-1, step 3, fills
/// a key with zeros to the hash's block of 64 bytes anyway: filled to 32, the key is another
/// object of the same MACs. The vectors that need it are named here, none is left out.
fn pad_hmac_key(vector: &Vector, value: &mut Vec<u8>) {
    const SHORT: [&str; 7] = ["a001", "a002", "a003", "a004", "a008", "a010", "a011"];
    let is_named = SHORT.iter().any(|id| vector.text("id").ends_with(id));
    assert_eq!(value.len() < 32, is_named, "{vector}: the list of short keys is not right");
    value.resize(value.len().max(32), 0);
}

impl VectorKeys {
    /// A zone key for these formats of its cipher: iso4 under AES, the others under TDES.
    pub(crate) fn zone(&mut self, role: KeyRole, side: &Vector) -> String {
        let algorithm = match side.text("key_algorithm") {
            "AES" => KeyAlgorithm::Aes,
            _ => KeyAlgorithm::Tdes,
        };
        self.zone_key(role, algorithm, side.hex("key"))
    }

    pub(crate) fn zone_key(
        &mut self,
        role: KeyRole,
        algorithm: KeyAlgorithm,
        value: Vec<u8>,
    ) -> String {
        use PinBlockFormat::{Iso0, Iso1, Iso3, Iso4};
        let formats = match (algorithm, role) {
            (KeyAlgorithm::Aes, _) => vec![Iso4],
            (_, KeyRole::ZonePinIn) => vec![Iso0, Iso1, Iso3],
            _ => vec![Iso0, Iso3],
        };
        self.add(role, algorithm, formats, None, value)
    }

    /// A base derivation key of the family that its length says; `with` adds what it has beside.
    pub(crate) fn base_derivation(
        &mut self,
        value: Vec<u8>,
        with: impl FnOnce(&mut KeyProfile),
    ) -> String {
        use PinBlockFormat::{Iso0, Iso3, Iso4};
        // The only values that both families could have are told apart by the published ones.
        let tdes = vectors::load("dukpt_tdes").iter().any(|vector| vector.hex("bdk") == value);
        let (algorithm, formats) = if tdes {
            (KeyAlgorithm::Tdes, vec![Iso0, Iso3])
        } else {
            (KeyAlgorithm::Aes, vec![Iso4])
        };
        self.plan(KeyRole::BaseDerivation, algorithm, value, |profile| {
            profile.formats = formats;
            with(profile);
        })
    }

    /// The label of such a key: that of an equal one, or a new one's.
    fn add(
        &mut self,
        role: KeyRole,
        algorithm: KeyAlgorithm,
        formats: Vec<PinBlockFormat>,
        mac: Option<MacProfile>,
        value: Vec<u8>,
    ) -> String {
        self.plan(role, algorithm, value, |profile| {
            profile.formats = formats;
            profile.mac = mac;
        })
    }

    /// The label of such a key: that of an equal one, or a new one's.
    pub(crate) fn plan(
        &mut self,
        role: KeyRole,
        algorithm: KeyAlgorithm,
        value: Vec<u8>,
        with: impl FnOnce(&mut KeyProfile),
    ) -> String {
        let label = KeyLabel::parse(&format!("vector.{}.{}", role.name(), self.0.len())).unwrap();
        let mut profile = KeyProfile::new(label.clone(), role, algorithm);
        with(&mut profile);
        let value = PlannedValue(value.into());
        let is_equal = |other: &&PlannedKey| {
            let renamed = KeyProfile { label: label.clone(), ..other.profile.clone() };
            renamed == profile && other.value.as_ref().is_some_and(|other| *other.0 == *value.0)
        };
        if let Some(equal) = self.0.iter().find(is_equal) {
            return equal.profile.label.to_string();
        }
        self.0.push(PlannedKey { profile, value: Some(value) });
        label.to_string()
    }
}
