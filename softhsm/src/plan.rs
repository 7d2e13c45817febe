//! What is to be on a token: profiles, and where each value comes from.

use std::fmt;

use hsm_adapter::register::KeyProfile;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

/// One key to make. As JSON: the fields of `keys.toml` and `value`, absent for a generated key.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PlannedKey {
    /// What the key is for.
    pub profile: KeyProfile,
    /// Its made-up value; generated in the token when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<PlannedValue>,
}

/// A clear key of the plan, hex in files.
#[derive(Clone)]
pub struct PlannedValue(pub Zeroizing<Vec<u8>>);

impl fmt::Debug for PlannedValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PlannedValue(redacted)")
    }
}

impl Serialize for PlannedValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        hex::encode_upper(&*self.0).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for PlannedValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        let value = hex::decode(&*text).map_err(serde::de::Error::custom)?;
        Ok(Self(Zeroizing::new(value)))
    }
}
