//! `[vendor]` of the key register: the mechanisms that keys of mode `vendor` use.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use super::KeyProfile;
use crate::vocabulary::{KeyRole, PinBlockFormat};

/// A mechanism of the token's vendor, as far as a key needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VendorMechanism {
    /// The CKM number.
    pub number: u64,
    /// From and to: what it translates. Empty for a MAC.
    pub cells: Vec<(PinBlockFormat, PinBlockFormat)>,
}

/// `[vendor]`: mechanisms that PKCS#11 has no name for, one use each.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VendorTable {
    /// `[vendor.pin_translate]`: for zone PIN keys of mode `vendor`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin_translate: Option<VendorPinTranslate>,
    /// `[vendor.retail_mac]`: for retail MAC keys of mode `vendor`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retail_mac: Option<VendorRetailMac>,
}

/// One call that translates a PIN block inside the token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VendorPinTranslate {
    /// The CKM number, 0x80000000 or above.
    pub mechanism: u64,
    /// How its parameter lies in memory.
    pub parameter: VendorParameter,
    /// From and to: `[["iso0", "iso0"], ["iso0", "iso4"]]`. Each is proved at start.
    pub cells: Vec<(PinBlockFormat, PinBlockFormat)>,
}

/// The parameter layouts that are compiled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum VendorParameter {
    /// See `operation/vendor.rs`.
    #[serde(rename = "pin-translate-1")]
    PinTranslate1,
}

/// One C_Sign that makes a retail MAC; its parameter is one byte, the padding method.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VendorRetailMac {
    /// The CKM number, 0x80000000 or above.
    pub mechanism: u64,
}

impl VendorTable {
    pub(super) fn check(&self) -> Result<(), String> {
        let numbers = [
            self.pin_translate.as_ref().map(|table| table.mechanism),
            self.retail_mac.as_ref().map(|table| table.mechanism),
        ];
        if numbers.into_iter().flatten().any(|number| !VENDOR_NUMBERS.contains(&number)) {
            return Err("[vendor]: `mechanism` is 0x80000000 to 0xFFFFFFFF".into());
        }
        let Some(VendorPinTranslate { cells, .. }) = &self.pin_translate else { return Ok(()) };
        if cells.is_empty() {
            return Err("[vendor.pin_translate]: `cells` is empty".into());
        }
        match cells.iter().find(|(from, to)| !from.may_become(*to)) {
            Some((from, to)) => Err(format!("[vendor.pin_translate]: {from} never becomes {to}")),
            None => Ok(()),
        }
    }

    /// The mechanism that a key of mode `vendor` uses.
    pub(super) fn of(&self, profile: &KeyProfile) -> Option<VendorMechanism> {
        if profile.role == KeyRole::Mac {
            let number = self.retail_mac.as_ref()?.mechanism;
            return Some(VendorMechanism { number, cells: Vec::new() });
        }
        let VendorPinTranslate { mechanism, cells, .. } = self.pin_translate.clone()?;
        Some(VendorMechanism { number: mechanism, cells })
    }
}

/// CKM_VENDOR_DEFINED and above, four bytes.
const VENDOR_NUMBERS: RangeInclusive<u64> = 0x8000_0000..=0xFFFF_FFFF;

#[cfg(test)]
mod tests {
    use crate::register::{KeyRegister, VendorMechanism};
    use crate::vocabulary::PinBlockFormat;

    fn refused(text: &str, why: &str) {
        let error = KeyRegister::parse(text).unwrap_err();
        assert!(error.contains(why), "{error}");
    }

    fn key(role: &str, algorithm: &str, mode: &str, more: &str) -> String {
        format!(
            "[[key]]\nlabel = \"k.a\"\nrole = \"{role}\"\nalgorithm = \"{algorithm}\"\n\
             mode = \"{mode}\"\n{more}\n"
        )
    }

    #[test]
    fn a_vendors_mechanism_is_the_keys_and_survives_writing() {
        let table = "[vendor.pin_translate]\nmechanism = 0x80000201\n\
                     parameter = \"pin-translate-1\"\ncells = [[\"iso0\", \"iso4\"]]\n";
        let inbound = |format| key("zone-pin-in", "tdes", "vendor", format);
        let text = format!("{table}{}", inbound("formats = [\"iso0\"]"));
        let register = KeyRegister::parse(&text).unwrap();
        let again = KeyRegister::parse(&register.to_toml().unwrap()).unwrap();

        let found = again.iter().next().unwrap().vendor.as_ref().unwrap();
        let cells = vec![(PinBlockFormat::Iso0, PinBlockFormat::Iso4)];
        assert_eq!(*found, VendorMechanism { number: 0x8000_0201, cells });
        refused(&format!("{table}{}", inbound("formats = [\"iso3\"]")), "has iso3");
        refused(&table.replace("0x80000201", "0x121"), "0x80000000");
        refused(&table.replace("iso4", "iso1"), "never becomes iso1");
        refused(&table.replace("pin-translate-1", "pin-translate-9"), "pin-translate-9");
    }
}
