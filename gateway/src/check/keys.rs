//! Whether every key that the configuration names is on the token and may do what is granted.

use hsm_adapter::protocol::{KeyFacts, Recipe};
use hsm_adapter::register::KeyState;
use hsm_adapter::vocabulary::{KeyLabel, KeyRole, Mode, PinBlockFormat};

use crate::config::Config;

/// What a key is named for.
struct Need<'a> {
    /// Who names it, and where.
    place: String,
    label: &'a KeyLabel,
    /// One of them. A base derivation key stands for the keys of its devices.
    roles: &'static [KeyRole],
    formats: &'a [PinBlockFormat],
    /// It protects: a version that only opens is not enough.
    active: bool,
}

/// One text for each key that is missing or wrong, with the place that names it.
pub(super) fn missing(config: &Config, keys: &[KeyFacts]) -> Vec<String> {
    needs(config).iter().filter_map(|need| lack(need, keys)).collect()
}

fn needs(config: &Config) -> Vec<Need<'_>> {
    let mut needs = Vec::new();
    let mut need = |place: String, label, roles, formats, active| {
        needs.push(Need { place, label, roles, formats, active });
    };
    need("hsm.queue_kek".into(), &config.hsm.queue_kek, &[KeyRole::QueueKek], &[], true);
    for biller in &config.biller {
        let place = |key: &str| format!("biller {:?}: {key}", biller.name);
        need(place("mac_key"), &biller.mac_key, &[KeyRole::Mac], &[], true);
        if let Some(key) = &biller.pin_key {
            let formats = biller.pin_format.as_slice();
            need(place("pin_key"), key, &[KeyRole::ZonePinOut], formats, true);
        }
    }
    for client in &config.client {
        let place = |key: &str| format!("client {:?}: {key}", client.id);
        for key in &client.grants.mac_generate {
            need(place("mac_generate"), key, MAC, &[], true);
        }
        for key in &client.grants.mac_verify {
            need(place("mac_verify"), key, MAC, &[], false);
        }
        if let Some(payments) = &client.grants.payments
            && let Some(key) = &payments.mac_key
        {
            need(place("payments.mac_key"), key, &[KeyRole::Mac], &[], payments.answer_mac);
        }
        for grant in &client.grants.translate {
            let from = &grant.from;
            need(place("translate.from"), &from.key, PIN_IN, &from.formats, false);
            for to in &grant.to {
                need(place("translate.to"), &to.key, PIN_OUT, &to.formats, true);
            }
        }
        for grant in &client.grants.verify {
            let from = &grant.from;
            need(place("verify.from"), &from.key, PIN_IN, &from.formats, false);
            for key in &grant.with {
                need(place("verify.with"), key, PIN_REFERENCE, &[], false);
            }
        }
    }
    needs
}

const MAC: &[KeyRole] = &[KeyRole::Mac, KeyRole::BaseDerivation];
const PIN_IN: &[KeyRole] = &[KeyRole::ZonePinIn, KeyRole::BaseDerivation];
const PIN_OUT: &[KeyRole] = &[KeyRole::ZonePinOut, KeyRole::BaseDerivation];
const PIN_REFERENCE: &[KeyRole] =
    &[KeyRole::PinVerificationPvv, KeyRole::PinVerification3624, KeyRole::PinReference];

fn lack(need: &Need<'_>, keys: &[KeyFacts]) -> Option<String> {
    let Need { place, label, roles, formats, active } = need;
    let told = |what: String| Some(format!("{place} = {:?}: {what}", label.as_str()));
    let mut found = keys.iter().filter(|key| key.label == **label).peekable();
    if found.peek().is_none() {
        return told("is not in the key register".into());
    }
    let mut of_role = found.filter(|key| roles.contains(&key.role)).peekable();
    if of_role.peek().is_none() {
        let roles: Vec<&str> = roles.iter().map(|role| role.name()).collect();
        return told(format!("is no {} key", roles.join(" or ")));
    }
    let serves = |key: &&KeyFacts| key.state == KeyState::Active || !active && key.is_usable();
    let Some(key) = of_role.find(serves) else {
        return told("has no active version".into());
    };
    if let Some(why) = &key.quarantined {
        return told(format!("is quarantined: {why}"));
    }
    if roles.contains(&KeyRole::Mac) && key.mac.is_none() && key.role == KeyRole::BaseDerivation {
        return told("has no MAC algorithm".into());
    }
    let format = formats.iter().find(|format| !key.formats.contains(format))?;
    told(format!("does not take {format}"))
}

/// For each pair of keys that a grant names: its mode, or why it cannot be served. A pair with a
/// missing key is not of this list.
pub(super) fn pairs(
    config: &Config,
    keys: &[KeyFacts],
    recipes: &[Recipe],
) -> Vec<Result<String, String>> {
    let mut pairs = Vec::new();
    for client in &config.client {
        for grant in &client.grants.translate {
            for to in &grant.to {
                let place = format!("client {:?}: {} to {}", client.id, grant.from.key, to.key);
                let from = grant.from.formats.iter();
                let mut cells = from.flat_map(|from| to.formats.iter().map(move |to| (*from, *to)));
                let labels = [&grant.from.key, &to.key];
                let [inbound, outbound] = labels.map(|label| modes_of(keys, label));
                let (Some(first), false) = (inbound.first().copied(), outbound.is_empty()) else {
                    continue;
                };
                let mut modes = inbound.iter().chain(&outbound);
                let told = if modes.any(|mode| *mode != first) {
                    Err("the keys of one operation have one mode".into())
                } else {
                    match cells.find(|cell| !is_served(first, *cell, recipes)) {
                        Some((from, to)) => Err(format!(
                            "{from} to {to} is not served in mode {first}: grant other formats, \
                             or give both keys another mode"
                        )),
                        None => Ok(first.to_string()),
                    }
                };
                let told = told.map(|mode| format!("{place}: {mode}"));
                pairs.push(told.map_err(|why: String| format!("{place}: {why}")));
            }
        }
    }
    pairs
}

/// The modes of every version that is used, or will be.
fn modes_of(keys: &[KeyFacts], label: &KeyLabel) -> Vec<Mode> {
    let living = keys.iter().filter(|key| key.state == KeyState::Staged || key.is_usable());
    living.filter(|key| key.label == *label).map(|key| key.mode).collect()
}

/// In the worker every cell of the standard is served; elsewhere what was proved.
fn is_served(mode: Mode, (from, to): (PinBlockFormat, PinBlockFormat), recipes: &[Recipe]) -> bool {
    let operation = format!("translate {from} to {to}");
    mode == Mode::InWorker && from.may_become(to)
        || recipes.iter().any(|recipe| recipe.mode == mode && recipe.operation == operation)
}

#[cfg(test)]
mod tests {
    use hsm_adapter::register::KeyAlgorithm;
    use hsm_adapter::vocabulary::MacAlgorithm;

    use super::*;

    fn key(label: &str, role: KeyRole, active: bool) -> KeyFacts {
        KeyFacts {
            label: KeyLabel::parse(label).unwrap(),
            version: 1,
            state: if active { KeyState::Active } else { KeyState::Retired },
            usable_until_s: None,
            role,
            algorithm: KeyAlgorithm::Aes,
            mode: Mode::InWorker,
            quarantined: None,
            formats: vec![PinBlockFormat::Iso4],
            mac: None,
            kcv: None,
            kcv_from_token: false,
        }
    }

    #[test]
    fn a_cell_is_served_in_the_worker_and_elsewhere_when_it_was_proved() {
        use PinBlockFormat::{Iso0, Iso1, Iso3, Iso4};
        let proved = [Recipe {
            operation: "translate iso0 to iso4".into(),
            mode: Mode::InToken,
            calls: String::new(),
        }];
        for (mode, cell, served) in [
            (Mode::InToken, (Iso0, Iso4), true),
            (Mode::InToken, (Iso0, Iso3), false),
            (Mode::Vendor, (Iso0, Iso4), false),
            (Mode::InWorker, (Iso1, Iso3), true),
            (Mode::InWorker, (Iso0, Iso1), false),
        ] {
            assert_eq!(is_served(mode, cell, &proved), served, "{mode} {cell:?}");
        }
    }

    #[test]
    fn a_key_is_missing_of_another_role_retired_or_of_another_format() {
        let label = KeyLabel::parse("zpk.b").unwrap();
        let (role, place) = (KeyRole::ZonePinOut, "client \"a\": translate.to".to_owned());
        let formats = [PinBlockFormat::Iso4];
        let roles = PIN_OUT;
        let need = Need { place, label: &label, roles, formats: &formats, active: true };
        let lack = |key| lack(&need, &[key]);
        let other = KeyFacts { formats: vec![PinBlockFormat::Iso0], ..key("zpk.b", role, true) };

        assert_eq!(lack(key("zpk.b", role, true)), None);
        for (key, told) in [
            (key("zpk.c", role, true), "is not in the key register"),
            (key("zpk.b", KeyRole::ZonePinIn, true), "is no zone-pin-out or base-derivation key"),
            (key("zpk.b", role, false), "has no active version"),
            (other, "does not take iso4"),
        ] {
            assert_eq!(lack(key), Some(format!("client \"a\": translate.to = \"zpk.b\": {told}")));
        }
    }

    #[test]
    fn a_base_derivation_key_makes_macs_only_when_its_profile_says_which() {
        let label = KeyLabel::parse("bdk.b").unwrap();
        let need =
            Need { place: "x".into(), label: &label, roles: MAC, formats: &[], active: true };
        let silent = key("bdk.b", KeyRole::BaseDerivation, true);
        let with_mac = KeyFacts { mac: Some(MacAlgorithm::Cmac), ..silent.clone() };

        assert_eq!(lack(&need, &[silent]), Some("x = \"bdk.b\": has no MAC algorithm".into()));
        assert_eq!(lack(&need, &[with_mac]), None);
    }
}
