//! The key register, `keys.toml`: what each key of the token is for.
//!
//! Role, formats, MAC algorithm, padding and lengths belong to the key (see `design` notes in
//! ARCHITECTURE.md): an order names a label, and everything else comes from here. Only the worker
//! reads this file. A key that the register does not name cannot be used.

mod algorithm;
mod modes;
mod pin_verification;
mod vendor;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

pub use self::algorithm::KeyAlgorithm;
pub use self::pin_verification::Ibm3624Profile;
pub use self::vendor::{
    VendorMechanism, VendorParameter, VendorPinTranslate, VendorRetailMac, VendorTable,
};
use crate::vocabulary::{
    Kcv, KcvMethod, KeyLabel, KeyRole, MacAlgorithm, MacPadding, Mode, PinBlockFormat, Pvki,
};

/// One version of one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyProfile {
    /// The name that clients use.
    pub label: KeyLabel,
    /// 1 when absent.
    #[serde(default = "first_version")]
    pub version: u32,
    /// At most one version of a label is active.
    #[serde(default)]
    pub state: KeyState,
    /// CKA_LABEL of the object on the token; `label@version` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_label: Option<String>,
    /// The one thing that the key does.
    pub role: KeyRole,
    /// The cipher family.
    pub algorithm: KeyAlgorithm,
    /// Where a clear PIN may be while this key is used. Keys of one operation have one mode.
    /// `in_worker` when absent.
    #[serde(default, skip_serializing_if = "is_in_worker")]
    pub mode: Mode,
    /// Until when a retired version still verifies and deciphers. Epoch seconds; no end when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usable_until_s: Option<i64>,
    /// PIN block formats that a zone PIN key, a base derivation key or a reference key may carry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub formats: Vec<PinBlockFormat>,
    /// For role `mac`, and for a base derivation key whose devices make MACs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacProfile>,
    /// For role `base-derivation` under AES: bits of the working keys, 128, 192 or 256, never more
    /// than the key itself has. 128 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_key_bits: Option<u16>,
    /// For role `pin-verification-pvv`: the indices that a card may name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pvki: Vec<Pvki>,
    /// For role `pin-verification-3624`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ibm3624: Option<Ibm3624Profile>,
    /// For role `mac`: the one half of it that the key may do; both when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac_use: Option<MacUse>,
    /// For role `key-block-protection` under TDES: opens blocks of versions A and C, whose binding
    /// is weak, and no others. Off.
    #[serde(default, skip_serializing_if = "is_off")]
    pub variant_blocks: bool,
    /// What the key block said of passing the key on. No key leaves through Tollgate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exportability: Option<Exportability>,
    /// The check value taken when the key was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kcv: Option<Kcv>,
    /// How that check value is computed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kcv_method: Option<KcvMethod>,
    /// The mechanism of a key in mode `vendor`: the register takes it from its `[vendor]` table.
    #[serde(skip)]
    pub vendor: Option<VendorMechanism>,
}

/// What a MAC key computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MacProfile {
    /// The algorithm.
    pub algorithm: MacAlgorithm,
    /// CBC-MAC and retail MAC only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub padding: Option<MacPadding>,
    /// Bytes of a MAC, the left-most ones. 4 to 32.
    pub length: u8,
    /// The shortest MAC that a generate order may ask for; `length` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length_min: Option<u8>,
    /// Whether an empty message has a MAC. Off.
    #[serde(default)]
    pub empty_message: bool,
}

/// Half of a MAC key's role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MacUse {
    /// Makes MACs, and verifies none.
    Generate,
    /// Verifies MACs, and makes none.
    Verify,
}

/// X9.143 exportability.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Exportability {
    /// E: under a trusted key.
    Trusted,
    /// S: under a key of the owner's choice.
    Sensitive,
    /// N: never.
    Never,
}

/// Whether a key version still protects.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyState {
    /// Imported, and used for nothing yet.
    Staged,
    /// Does all that its role allows.
    #[default]
    Active,
    /// Verifies and deciphers until `usable_until_s`, protects nothing new.
    Retired,
    /// Somebody else may know it: used for nothing any more.
    Compromised,
}

impl fmt::Display for KeyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Staged => "staged",
            Self::Active => "active",
            Self::Retired => "retired",
            Self::Compromised => "compromised",
        })
    }
}

impl KeyProfile {
    /// Version 1 of a key, active, in mode `in_worker`, with nothing that only some roles have.
    #[must_use]
    pub fn new(label: KeyLabel, role: KeyRole, algorithm: KeyAlgorithm) -> Self {
        Self {
            label,
            version: first_version(),
            state: KeyState::Active,
            token_label: None,
            role,
            algorithm,
            mode: Mode::InWorker,
            usable_until_s: None,
            formats: Vec::new(),
            mac: None,
            working_key_bits: None,
            pvki: Vec::new(),
            ibm3624: None,
            mac_use: None,
            variant_blocks: false,
            exportability: None,
            kcv: None,
            kcv_method: None,
            vendor: None,
        }
    }

    /// Whether this version does nothing any more, whatever comes: compromised, or retired and past
    /// its time. Epoch seconds.
    #[must_use]
    pub fn is_over(&self, now_s: i64) -> bool {
        match self.state {
            KeyState::Compromised => true,
            KeyState::Retired => self.usable_until_s.is_some_and(|until| until <= now_s),
            KeyState::Staged | KeyState::Active => false,
        }
    }

    /// `label@version`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}@{}", self.label, self.version)
    }

    /// CKA_LABEL on the token.
    #[must_use]
    pub fn object_label(&self) -> String {
        self.token_label.clone().unwrap_or_else(|| self.name())
    }

    /// CKA_LABEL of the second object that stands beside the key itself: K_L K_L K_L of a retail
    /// MAC key; of a TDES base derivation key its variant, which the token must encipher under and
    /// cannot make.
    #[must_use]
    pub fn left_object_label(&self) -> Option<String> {
        let retail = self.is_retail() && self.mode != Mode::Vendor;
        let derivation =
            self.role == KeyRole::BaseDerivation && self.algorithm == KeyAlgorithm::Tdes;
        let ending = if retail { "left" } else { "variant" };
        (retail || derivation).then(|| format!("{}.{ending}", self.object_label()))
    }

    fn is_retail(&self) -> bool {
        self.role == KeyRole::Mac
            && self.mac.is_some_and(|mac| mac.algorithm == MacAlgorithm::Retail)
    }

    fn check(&self) -> Result<(), String> {
        use KeyAlgorithm::{Aes, Hmac, Tdes};
        let cipher = matches!(self.algorithm, Tdes | Aes);
        let fits = match self.role {
            KeyRole::ZonePinIn | KeyRole::ZonePinOut | KeyRole::PinReference => cipher,
            KeyRole::Mac => cipher || self.algorithm == Hmac,
            KeyRole::BaseDerivation | KeyRole::KeyBlockProtection => cipher,
            KeyRole::PinVerificationPvv | KeyRole::PinVerification3624 => self.algorithm == Tdes,
            KeyRole::QueueKek => self.algorithm == Aes,
            KeyRole::AuditSigning => self.algorithm.is_pair(),
        };
        if !fits {
            return Err(format!("role {} does not go with this algorithm", self.role));
        }
        self.check_formats()?;
        self.check_mac()?;
        self.check_verification()?;
        if self.mac_use.is_some() && self.role != KeyRole::Mac {
            return Err("only a key of role mac has `mac_use`".into());
        }
        if self.variant_blocks
            && (self.role != KeyRole::KeyBlockProtection || self.algorithm != Tdes)
        {
            return Err("`variant_blocks` belongs to a TDES key block protection key".into());
        }
        self.check_mode()?;
        if self.kcv.is_some() != self.kcv_method.is_some() {
            return Err("`kcv` and `kcv_method` come together".into());
        }
        Ok(())
    }

    fn check_formats(&self) -> Result<(), String> {
        let role = self.role;
        let (allowed, needed) = match role {
            KeyRole::ZonePinIn | KeyRole::ZonePinOut | KeyRole::PinReference => (true, true),
            KeyRole::BaseDerivation => (true, false),
            KeyRole::Mac
            | KeyRole::PinVerificationPvv
            | KeyRole::PinVerification3624
            | KeyRole::KeyBlockProtection
            | KeyRole::QueueKek
            | KeyRole::AuditSigning => (false, false),
        };
        if self.formats.is_empty() && needed || !self.formats.is_empty() && !allowed {
            let rule = if needed { "needs" } else { "has no" };
            return Err(format!("a {role} key {rule} `formats`"));
        }
        let cipher = |format: &PinBlockFormat| match format {
            PinBlockFormat::Iso4 => KeyAlgorithm::Aes,
            PinBlockFormat::Iso0 | PinBlockFormat::Iso1 | PinBlockFormat::Iso3 => {
                KeyAlgorithm::Tdes
            }
        };
        if let Some(format) = self.formats.iter().find(|format| cipher(format) != self.algorithm) {
            return Err(format!(
                "role {role}: {format} does not go under this algorithm (iso4 under AES alone, \
                 iso0, iso1, iso3 under TDES alone)"
            ));
        }
        if role == KeyRole::ZonePinOut && self.formats.contains(&PinBlockFormat::Iso1) {
            return Err("iso1 is an input format only (PCI PIN 3-3)".into());
        }
        // A random fill would make two blocks of one PIN differ.
        if role == KeyRole::PinReference && self.formats != [PinBlockFormat::Iso0] {
            return Err("a reference block is iso0: the one format without random fill".into());
        }
        let bits = self.working_key_bits;
        if bits.is_some()
            && (role != KeyRole::BaseDerivation || self.algorithm != KeyAlgorithm::Aes)
        {
            return Err("`working_key_bits` belongs to an AES base derivation key".into());
        }
        if bits.is_some_and(|bits| !matches!(bits, 128 | 192 | 256)) {
            return Err("`working_key_bits` is 128, 192 or 256".into());
        }
        Ok(())
    }

    fn check_mac(&self) -> Result<(), String> {
        use KeyAlgorithm::{Aes, Hmac, Tdes};
        let Some(mac) = self.mac else {
            let missing = self.role == KeyRole::Mac;
            return if missing { Err("a MAC key needs `mac`".into()) } else { Ok(()) };
        };
        if !matches!(self.role, KeyRole::Mac | KeyRole::BaseDerivation) {
            return Err("only a key of role mac or base-derivation has `mac`".into());
        }
        let longest = match (mac.algorithm, self.algorithm) {
            (MacAlgorithm::CbcMac | MacAlgorithm::Retail | MacAlgorithm::Cmac, Tdes) => 8,
            (MacAlgorithm::CbcMac | MacAlgorithm::Cmac, Aes) => 16,
            (MacAlgorithm::HmacSha256, Hmac) => 32,
            _ => return Err(format!("{} does not run under this algorithm", mac.algorithm)),
        };
        let padded = matches!(mac.algorithm, MacAlgorithm::CbcMac | MacAlgorithm::Retail);
        if padded != mac.padding.is_some() {
            return Err("`padding` (1 or 2) belongs to a CBC-MAC or retail MAC key, and only \
                        there"
                .into());
        }
        let shortest = mac.length_min.unwrap_or(mac.length);
        if !(4..=longest).contains(&mac.length) || !(4..=mac.length).contains(&shortest) {
            return Err(format!("MAC lengths are 4 to {longest} bytes here, shortest first"));
        }
        Ok(())
    }
}

fn is_in_worker(mode: &Mode) -> bool {
    *mode == Mode::InWorker
}

fn is_off(switch: &bool) -> bool {
    !switch
}

/// Every key, checked, and the number of the last change that is in it.
#[derive(Debug, Clone)]
pub struct KeyRegister {
    change: u64,
    vendor: VendorTable,
    keys: BTreeMap<KeyLabel, Vec<KeyProfile>>,
}

impl KeyRegister {
    /// Reads and checks a register file.
    ///
    /// # Errors
    /// Names the file and the line or the key.
    pub fn read(path: &Path) -> Result<Self, RegisterError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| RegisterError::Read { path: path.display().to_string(), source })?;
        Self::parse(&text)
            .map_err(|why| RegisterError::Refused { path: path.display().to_string(), why })
    }

    /// # Errors
    /// Says which key breaks which rule.
    pub fn parse(text: &str) -> Result<Self, String> {
        let file: RegisterFile = toml::from_str(text).map_err(|error| error.to_string())?;
        Ok(Self { change: file.change, ..Self::with_vendor(file.vendor, file.key)? })
    }

    /// # Errors
    /// Says which key breaks which rule.
    pub fn new(profiles: Vec<KeyProfile>) -> Result<Self, String> {
        Self::with_vendor(VendorTable::default(), profiles)
    }

    /// # Errors
    /// Says which key, or what of the table, breaks which rule.
    pub fn with_vendor(vendor: VendorTable, profiles: Vec<KeyProfile>) -> Result<Self, String> {
        vendor.check()?;
        let mut keys: BTreeMap<KeyLabel, Vec<KeyProfile>> = BTreeMap::new();
        let mut objects = HashSet::new();
        for mut profile in profiles {
            let name = profile.name();
            profile.vendor = (profile.mode == Mode::Vendor).then(|| vendor.of(&profile)).flatten();
            profile.check().map_err(|why| format!("key {name}: {why}"))?;
            if !objects.insert(profile.object_label()) {
                return Err(format!("key {name}: its token object belongs to another key already"));
            }
            let versions = keys.entry(profile.label.clone()).or_default();
            if versions.iter().any(|other| other.version == profile.version) {
                return Err(format!("key {name} stands twice"));
            }
            versions.push(profile);
        }
        for (label, versions) in &keys {
            let active = versions.iter().filter(|key| key.state == KeyState::Active).count();
            if active > 1 {
                return Err(format!("key {label} has {active} active versions, one may be"));
            }
        }
        if let Some(why) = twins(keys.values().flatten()) {
            return Err(why);
        }
        Ok(Self { change: 0, vendor, keys })
    }

    /// This register with other keys in it, after the change of that number.
    ///
    /// # Errors
    /// Says which key breaks which rule.
    pub fn changed(&self, change: u64, profiles: Vec<KeyProfile>) -> Result<Self, String> {
        Ok(Self { change, ..Self::with_vendor(self.vendor.clone(), profiles)? })
    }

    /// The number of the last change that is in it; 0 before the first.
    #[must_use]
    pub fn change(&self) -> u64 {
        self.change
    }

    /// The modes that its keys have, each once.
    pub(crate) fn modes(&self) -> Vec<Mode> {
        let mut modes: Vec<Mode> = self.iter().map(|key| key.mode).collect();
        modes.sort_unstable();
        modes.dedup();
        modes
    }

    /// One version of one key.
    #[must_use]
    pub fn version(&self, label: &KeyLabel, version: u32) -> Option<&KeyProfile> {
        self.keys.get(label)?.iter().find(|key| key.version == version)
    }

    /// The register as a file.
    ///
    /// # Errors
    /// When a value has no TOML form, which no checked profile has.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        let (change, vendor) = (self.change, self.vendor.clone());
        toml::to_string(&RegisterFile { change, vendor, key: self.iter().cloned().collect() })
    }

    /// `[vendor]`.
    #[must_use]
    pub fn vendor(&self) -> &VendorTable {
        &self.vendor
    }

    /// The first key whose clear PINs are in the worker's memory, compromised ones aside.
    #[must_use]
    pub fn first_in_worker(&self) -> Option<&KeyProfile> {
        let mut living = self.living();
        living.find(|key| key.carries_pins() && key.mode == Mode::InWorker)
    }

    /// The keys that do something, or will: not the compromised, nor the retired whose time is over.
    pub(crate) fn living(&self) -> impl Iterator<Item = &KeyProfile> {
        let now_s = now_s();
        self.iter().filter(move |key| !key.is_over(now_s))
    }

    /// All keys in the order of their labels.
    pub fn iter(&self) -> impl Iterator<Item = &KeyProfile> {
        self.keys.values().flatten()
    }
}

/// Two partners with one zone PIN key read one another's PINs: the key of one of them was loaded
/// under the name of the other. The two directions of one zone may have one key.
fn twins<'k>(keys: impl Iterator<Item = &'k KeyProfile>) -> Option<String> {
    let mut seen: HashMap<(KeyRole, Kcv), &KeyProfile> = HashMap::new();
    for key in keys.filter(|key| matches!(key.role, KeyRole::ZonePinIn | KeyRole::ZonePinOut)) {
        let Some(kcv) = key.kcv else { continue };
        let other = seen.entry((key.role, kcv)).or_insert(key);
        if other.label != key.label {
            return Some(format!(
                "keys {} and {} have one check value, {kcv}: two zones with one key",
                other.name(),
                key.name()
            ));
        }
    }
    None
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RegisterFile {
    #[serde(default, skip_serializing_if = "is_none")]
    vendor: VendorTable,
    #[serde(default)]
    change: u64,
    #[serde(default)]
    key: Vec<KeyProfile>,
}

fn is_none(vendor: &VendorTable) -> bool {
    *vendor == VendorTable::default()
}

/// Epoch seconds, of the wall clock.
pub(crate) fn now_s() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn first_version() -> u32 {
    1
}

/// Why there is no register.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// The file.
    #[error("reading the key register {path}")]
    Read {
        /// Where.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Its content.
    #[error("the key register {path} is refused: {why}")]
    Refused {
        /// Where.
        path: String,
        /// Which key, which rule.
        why: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str, why: &str) {
        let error = KeyRegister::parse(text).unwrap_err();
        assert!(error.contains(why), "{error}");
    }

    #[test]
    fn a_register_names_keys_with_versions() {
        let text = r#"
            [[key]]
            label = "zpk.a"
            role = "zone-pin-in"
            algorithm = "tdes"
            formats = ["iso0", "iso1"]
            state = "retired"
            [[key]]
            label = "zpk.a"
            version = 2
            role = "zone-pin-in"
            algorithm = "tdes"
            formats = ["iso0"]
            kcv = "BF1D3F"
            kcv_method = "zeros"
        "#;
        let register = KeyRegister::parse(text).unwrap();
        let objects: Vec<_> = register.iter().map(KeyProfile::object_label).collect();
        assert_eq!(objects, ["zpk.a@1", "zpk.a@2"]);
        let again = KeyRegister::parse(&register.to_toml().unwrap()).unwrap();
        assert!(again.iter().eq(register.iter()));
    }

    #[test]
    fn a_rule_broken_names_the_key() {
        let zone = r#"[[key]]
            label = "zpk.a"
            role = "zone-pin-in"
        "#;
        refused(&format!("{zone} algorithm = \"aes\"\nformats = [\"iso0\"]"), "key zpk.a@1: role");
        refused(&format!("{zone} algorithm = \"tdes\""), "needs `formats`");
        refused(&format!("{zone} algorithm = \"tdes\"\nbogus = 1"), "bogus");
        let mac = "[[key]]\nlabel = \"zak.a\"\nrole = \"mac\"\nalgorithm = \"tdes\"\n";
        refused(&format!("{mac} mac = {{ algorithm = \"retail\", length = 8 }}"), "padding");
        refused(
            &format!("{mac} mac = {{ algorithm = \"retail\", padding = 3, length = 8 }}"),
            "1 or 2",
        );
        refused(&format!("{mac} mac = {{ algorithm = \"cmac\", length = 3 }}"), "4 to 8");
        refused(&format!("{mac} mac = {{ algorithm = \"hmac-sha256\", length = 8 }}"), "not run");
    }
}
