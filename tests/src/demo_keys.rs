//! The disposable token's keys in the clear: made up, printed in the repository, worth nothing.

use serde::Deserialize;

/// One key of `softhsm/demo-keys.json`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DemoKey {
    /// Label without version: `zpk.acquirer-a`.
    pub label: String,
    /// What it is for, in words.
    pub purpose: String,
    /// `tdes`, `aes` or `hmac`.
    pub algorithm: String,
    /// X9.143 key usage.
    pub usage: String,
    /// The key, hex.
    pub value: String,
    /// Left three bytes of its check value, hex; HMAC keys have none.
    pub kcv: Option<String>,
    /// `zeros` or `cmac`.
    pub kcv_method: Option<String>,
    /// PIN block formats of a PIN key.
    #[serde(default)]
    pub formats: Vec<String>,
}

/// All keys of the disposable token.
#[derive(Debug, Clone)]
pub struct DemoKeys(Vec<DemoKey>);

#[derive(Deserialize)]
struct KeyFile {
    keys: Vec<DemoKey>,
}

impl DemoKeys {
    /// The keys as they were when this package was built.
    ///
    /// # Panics
    /// When the file built in is not the form above: a defect that the first test finds.
    pub fn load() -> Self {
        let text = include_str!("../../softhsm/demo-keys.json");
        let file: KeyFile = serde_json::from_str(text)
            .unwrap_or_else(|error| panic!("softhsm/demo-keys.json: {error}"));
        Self(file.keys)
    }

    /// One key.
    ///
    /// # Panics
    /// When no key has the label.
    pub fn key(&self, label: &str) -> &DemoKey {
        let found = self.0.iter().find(|key| key.label == label);
        found.unwrap_or_else(|| panic!("softhsm/demo-keys.json has no key {label}"))
    }

    /// The bytes of one key.
    ///
    /// # Panics
    /// When no key has the label, or its value is not hex.
    pub fn value(&self, label: &str) -> Vec<u8> {
        let value = hex::decode(&self.key(label).value);
        value.unwrap_or_else(|error| panic!("softhsm/demo-keys.json: {label}: {error}"))
    }

    /// Every key, in the file's order.
    pub fn iter(&self) -> impl Iterator<Item = &DemoKey> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::soft::kcv::{KeyAlgorithm, kcv_cmac, kcv_zeros};

    #[test]
    fn every_demo_key_has_the_check_value_that_is_printed_beside_it() {
        let keys = DemoKeys::load();

        for key in keys.iter().filter(|key| key.kcv.is_some()) {
            let value = keys.value(&key.label);
            let algorithm = match key.algorithm.as_str() {
                "tdes" => KeyAlgorithm::Tdes,
                "aes" => KeyAlgorithm::Aes,
                other => panic!("{}: a check value under {other}", key.label),
            };
            let kcv = match key.kcv_method.as_deref() {
                Some("zeros") => kcv_zeros(algorithm, &value),
                Some("cmac") => kcv_cmac(algorithm, &value),
                other => panic!("{}: method {other:?}", key.label),
            };

            assert_eq!(kcv.map(hex::encode_upper).ok(), key.kcv, "{}", key.label);
        }
        assert_eq!(keys.iter().filter(|key| key.kcv.is_none()).count(), 1, "only the HMAC key");
    }

    #[test]
    #[should_panic(expected = "no key zpk.nobody")]
    fn an_unknown_label_is_named() {
        DemoKeys::load().value("zpk.nobody");
    }
}
