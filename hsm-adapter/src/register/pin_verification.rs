//! What a PIN verification key must say of itself.

use serde::{Deserialize, Serialize};

use super::KeyProfile;
use crate::vocabulary::KeyRole;

/// What an IBM 3624 key is verified with. Bound to the key: a caller who may choose a
/// decimalisation table finds a PIN in about 15 guesses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ibm3624Profile {
    /// Sixteen decimal digits: what each of 0 to F becomes.
    pub decimalisation_table: String,
    /// The first PAN digit of the validation data, counted from 0.
    pub pan_offset: u8,
    /// PAN digits taken, 1 to 16; what is missing is padded.
    pub pan_digits: u8,
    /// The hex digit that fills the validation data up to 16.
    pub pad: char,
}

impl KeyProfile {
    pub(super) fn check_verification(&self) -> Result<(), String> {
        if (self.role == KeyRole::PinVerificationPvv) == self.pvki.is_empty() {
            return Err(
                "a PVV key, and only that, needs `pvki`: the indices its cards carry".into()
            );
        }
        let Some(rule) = &self.ibm3624 else {
            let missing = self.role == KeyRole::PinVerification3624;
            return if missing { Err("a 3624 key needs `ibm3624`".into()) } else { Ok(()) };
        };
        if self.role != KeyRole::PinVerification3624 {
            return Err("only a 3624 key has `ibm3624`".into());
        }
        let table = rule.decimalisation_table.as_bytes();
        if table.len() != 16 || !table.iter().all(u8::is_ascii_digit) {
            return Err("`decimalisation_table` has 16 decimal digits".into());
        }
        if !(1..=16).contains(&rule.pan_digits) || rule.pan_offset > 18 {
            return Err("`pan_digits` is 1 to 16 and `pan_offset` 0 to 18".into());
        }
        if !rule.pad.is_ascii_hexdigit() {
            return Err("`pad` is one hex digit".into());
        }
        Ok(())
    }
}
