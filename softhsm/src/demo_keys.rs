//! The demo token: the made-up keys of `demo-keys.json`, and two keys that it makes itself.

use hsm_adapter::register::{Ibm3624Profile, KeyAlgorithm, KeyProfile, MacProfile};
use hsm_adapter::vocabulary::{
    Kcv, KcvMethod, KeyLabel, KeyRole, MacAlgorithm, MacPadding, PinBlockFormat, Pvki,
};
use serde::Deserialize;

use crate::TokenToolError;
use crate::plan::{PlannedKey, PlannedValue};

/// Anyone can compute the expected answers with other tools: the values stand in this file.
const DEMO_KEYS: &str = include_str!("../demo-keys.json");

/// The keys of the disposable token.
///
/// # Errors
/// When the compiled-in file is not what this module expects.
pub fn demo_plan() -> Result<Vec<PlannedKey>, TokenToolError> {
    let file: DemoFile =
        serde_json::from_str(DEMO_KEYS).map_err(|error| TokenToolError::Plan(error.to_string()))?;
    let mut plan = file.keys.into_iter().map(planned).collect::<Result<Vec<_>, _>>()?;
    for (label, role, algorithm) in [
        ("queue.kek", KeyRole::QueueKek, KeyAlgorithm::Aes),
        ("audit.signing", KeyRole::AuditSigning, KeyAlgorithm::Ec),
    ] {
        let profile = KeyProfile::new(parse(label)?, role, algorithm);
        plan.push(PlannedKey { profile, value: None });
    }
    Ok(plan)
}

#[derive(Deserialize)]
struct DemoFile {
    keys: Vec<DemoKey>,
}

#[derive(Deserialize)]
struct DemoKey {
    label: String,
    purpose: String,
    algorithm: KeyAlgorithm,
    /// X9.143 key usage.
    usage: String,
    value: PlannedValue,
    kcv: Option<Kcv>,
    kcv_method: Option<KcvMethod>,
    #[serde(default)]
    formats: Vec<PinBlockFormat>,
}

fn planned(key: DemoKey) -> Result<PlannedKey, TokenToolError> {
    let refused = || TokenToolError::Plan(format!("{}: usage {}", key.label, key.usage));
    let role = match key.usage.as_str() {
        "P0" if key.purpose.ends_with("inbound") => KeyRole::ZonePinIn,
        "P0" => KeyRole::ZonePinOut,
        "M3" | "M6" | "M7" => KeyRole::Mac,
        "B0" => KeyRole::BaseDerivation,
        "V2" => KeyRole::PinVerificationPvv,
        "V1" => KeyRole::PinVerification3624,
        "K1" => KeyRole::KeyBlockProtection,
        _ => return Err(refused()),
    };
    let algorithm = match key.usage.as_str() {
        "M3" => Some(MacAlgorithm::Retail),
        "M6" => Some(MacAlgorithm::Cmac),
        "M7" => Some(MacAlgorithm::HmacSha256),
        _ => None,
    };
    let mac = algorithm.map(|algorithm| MacProfile {
        algorithm,
        padding: (algorithm == MacAlgorithm::Retail).then_some(MacPadding::One),
        length: if algorithm == MacAlgorithm::HmacSha256 { 32 } else { 8 },
        length_min: Some(if algorithm == MacAlgorithm::HmacSha256 { 8 } else { 4 }),
        empty_message: false,
    });
    let base = KeyProfile::new(parse(&key.label)?, role, key.algorithm);
    let formats =
        if matches!(role, KeyRole::ZonePinIn | KeyRole::ZonePinOut | KeyRole::BaseDerivation) {
            key.formats
        } else {
            Vec::new()
        };
    let pvki = if role == KeyRole::PinVerificationPvv {
        (0..=6).filter_map(|index| Pvki::try_from(index).ok()).collect()
    } else {
        Vec::new()
    };
    // The whole PAN as validation data and the plain table: what the demo's issuer uses.
    let ibm3624 = (role == KeyRole::PinVerification3624).then(|| Ibm3624Profile {
        decimalisation_table: "0123456789012345".into(),
        pan_offset: 0,
        pan_digits: 16,
        pad: 'F',
    });
    let (kcv, kcv_method) = (key.kcv, key.kcv_method);
    let profile = KeyProfile { formats, mac, pvki, ibm3624, kcv, kcv_method, ..base };
    Ok(PlannedKey { profile, value: Some(key.value) })
}

fn parse(label: &str) -> Result<KeyLabel, TokenToolError> {
    KeyLabel::parse(label).map_err(|why| TokenToolError::Plan(format!("{label}: {why}")))
}

#[cfg(test)]
mod tests {
    use hsm_adapter::register::KeyRegister;

    use super::*;

    #[test]
    fn the_demo_plan_is_a_register() {
        let profiles = demo_plan().unwrap().into_iter().map(|key| key.profile).collect();

        let register = KeyRegister::new(profiles).unwrap();

        assert_eq!(register.iter().count(), 16);
    }
}
