//! The key officers' requests: bytes to orders, strictly. A key comes as a key block only; there is
//! no field that could hold a clear one.

use hsm_adapter::register::{Ibm3624Profile, KeyProfile, KeyRegister, KeyState, MacProfile};
use hsm_adapter::vocabulary::{Kcv, KeyBlockText, KeyLabel, KeyName, MacPadding, Mode, Pvki};

use super::object::Object;
use super::problem::Problem;
use super::reason::reason;

/// An import, parsed: the profile is checked, the block is not opened.
#[derive(Debug)]
pub(crate) struct ImportOrder {
    pub(crate) profile: KeyProfile,
    pub(crate) under: KeyName,
    pub(crate) block: KeyBlockText,
    pub(crate) reason: String,
}

impl ImportOrder {
    pub(crate) fn parse(body: &[u8]) -> Result<Self, Problem> {
        let mut object = Object::parse(body)?;
        let profile = profile(object.object("profile")?)?;
        let label = object.parsed("under", KeyLabel::parse)?;
        let under = KeyName { label, version: object.optional_bounded("under_version")? };
        let block = object.parsed("block", KeyBlockText::parse)?;
        let reason = reason(&mut object)?;
        object.end()?;
        // One key alone is a register: every rule of keys.toml that needs no other key holds.
        // The vendor's mechanisms stand in the worker's own register, which judges them.
        if profile.mode != Mode::Vendor {
            KeyRegister::new(vec![profile.clone()])
                .map_err(|rule| Problem::malformed(format!("profile: {rule}")))?;
        }
        Ok(Self { profile, under, block, reason })
    }
}

/// A change of a version's state, parsed.
#[derive(Debug)]
pub(crate) struct StateOrder {
    pub(crate) version: u32,
    pub(crate) overlap_s: Option<u32>,
    pub(crate) reason: String,
}

impl StateOrder {
    /// `overlaps`: whether a version retires by it, and may be used on for a time.
    pub(crate) fn parse(body: &[u8], overlaps: bool) -> Result<Self, Problem> {
        let mut object = Object::parse(body)?;
        let version = object.optional_bounded("version")?;
        let version = version.ok_or_else(|| Problem::malformed("missing field version"))?;
        let overlap_s = if overlaps { object.optional_bounded("overlap_s")? } else { None };
        let reason = reason(&mut object)?;
        object.end()?;
        Ok(Self { version, overlap_s, reason })
    }
}

/// A `[[key]]` of keys.toml, without what an import does not choose: state, token label, end.
fn profile(mut object: Object) -> Result<KeyProfile, Problem> {
    let label = object.parsed("label", KeyLabel::parse)?;
    let mut profile = KeyProfile::new(label, object.word("role")?, object.word("algorithm")?);
    profile.state = KeyState::Staged;
    profile.version = object.optional_bounded("version")?.unwrap_or(profile.version);
    profile.mode = object.optional_word("mode")?.unwrap_or(profile.mode);
    profile.formats = object.words("formats")?;
    profile.mac = object.optional_object("mac")?.map(mac).transpose()?;
    profile.mac_use = object.optional_word("mac_use")?;
    profile.variant_blocks = object.flag("variant_blocks")?;
    profile.working_key_bits = object.optional_bounded("working_key_bits")?;
    for index in object.numbers::<u8>("pvki")? {
        let known = Pvki::try_from(index);
        profile.pvki.push(known.map_err(|rule| object.wrong("pvki", &rule.to_string()))?);
    }
    profile.ibm3624 = object.optional_object("ibm3624")?.map(ibm3624).transpose()?;
    if let Some(kcv) = object.optional_text("kcv")? {
        let kcv = Kcv::parse(&kcv).map_err(|rule| object.wrong("kcv", &rule.to_string()))?;
        profile.kcv = Some(kcv);
    }
    profile.kcv_method = object.optional_word("kcv_method")?;
    object.end()?;
    Ok(profile)
}

fn mac(mut object: Object) -> Result<MacProfile, Problem> {
    let algorithm = object.word("algorithm")?;
    let padding = match object.optional_bounded::<u8>("padding")? {
        None => None,
        Some(method) => {
            Some(MacPadding::try_from(method).map_err(|rule| object.wrong("padding", rule))?)
        }
    };
    let length = required(&mut object, "length")?;
    let length_min = object.optional_bounded("length_min")?;
    let empty_message = object.flag("empty_message")?;
    object.end()?;
    Ok(MacProfile { algorithm, padding, length, length_min, empty_message })
}

fn ibm3624(mut object: Object) -> Result<Ibm3624Profile, Problem> {
    let rule = Ibm3624Profile {
        decimalisation_table: object.text("decimalisation_table")?,
        pan_offset: required(&mut object, "pan_offset")?,
        pan_digits: required(&mut object, "pan_digits")?,
        pad: object.word("pad")?,
    };
    object.end()?;
    Ok(rule)
}

fn required(object: &mut Object, name: &'static str) -> Result<u8, Problem> {
    object.optional_bounded(name)?.ok_or_else(|| object.wrong(name, "is missing"))
}

#[cfg(test)]
mod tests {
    use hsm_adapter::vocabulary::{KeyRole, PinBlockFormat};

    use super::*;

    fn import(profile: &str) -> Result<ImportOrder, String> {
        let body = format!(
            r#"{{"profile":{profile},"under":"kek.a","block":"D0112P0TE00N0000","reason":"new"}}"#
        );
        ImportOrder::parse(body.as_bytes())
            .map_err(|problem| problem.detail().unwrap_or_default().to_owned())
    }

    #[test]
    fn an_import_brings_a_whole_profile_staged() {
        let zone = r#"{"label":"zpk.a","version":2,"role":"zone-pin-in","algorithm":"tdes",
            "formats":["iso0","iso3"],"kcv":"BF1D3F","kcv_method":"zeros"}"#;
        let mac = r#"{"label":"zak.a","role":"mac","algorithm":"tdes","mac":{"algorithm":"retail",
            "padding":1,"length":8,"length_min":4,"empty_message":true}}"#;
        let pvv = r#"{"label":"pvk.a","role":"pin-verification-pvv","algorithm":"tdes",
            "pvki":[1,6]}"#;
        let offset = r#"{"label":"pvk.b","role":"pin-verification-3624","algorithm":"tdes",
            "ibm3624":{"decimalisation_table":"0123456789012345","pan_offset":0,"pan_digits":16,
            "pad":"F"}}"#;

        let zone = import(zone).unwrap();

        assert_eq!(
            (zone.profile.name().as_str(), zone.profile.state),
            ("zpk.a@2", KeyState::Staged)
        );
        assert_eq!(zone.profile.role, KeyRole::ZonePinIn);
        assert_eq!(zone.profile.formats, [PinBlockFormat::Iso0, PinBlockFormat::Iso3]);
        assert_eq!((zone.under.to_string().as_str(), zone.reason.as_str()), ("kek.a", "new"));
        assert!(import(mac).unwrap().profile.mac.unwrap().empty_message);
        assert_eq!(import(pvv).unwrap().profile.pvki.len(), 2);
        assert_eq!(import(offset).unwrap().profile.ibm3624.unwrap().pad, 'F');
    }

    #[test]
    fn what_is_wrong_is_named_and_never_repeated() {
        let aes = r#""role":"zone-pin-in","algorithm":"aes","formats":["iso4"]"#;
        for (profile, told) in [
            (format!(r#"{{"label":"ZPK",{aes}}}"#), "profile.label: "),
            (format!(r#"{{{aes}}}"#), "missing field profile.label"),
            (format!(r#"{{"label":"z",{aes},"value":"00112233"}}"#), "unknown field profile.value"),
            (format!(r#"{{"label":"z",{aes},"state":"active"}}"#), "unknown field profile.state"),
            (format!(r#"{{"label":"z",{aes},"version":4294967296}}"#), "profile.version: is too"),
            (format!(r#"{{"label":"z",{aes},"kcv":"ABCDEF"}}"#), "come together"),
            (r#"{"label":"z","role":"4111","algorithm":"aes"}"#.into(), "profile.role: is no word"),
            (r#"{"label":"z","role":"mac","algorithm":"aes"}"#.into(), "needs `mac`"),
        ] {
            let refused = import(&profile).unwrap_err();
            assert!(refused.contains(told), "{refused}");
            assert!(!refused.contains("4111") && !refused.contains("0011"), "{refused}");
        }
    }

    #[test]
    fn a_change_needs_its_version_and_a_reason() {
        let parse = |body: &str, overlaps| {
            StateOrder::parse(body.as_bytes(), overlaps)
                .map_err(|problem| problem.detail().unwrap_or_default().to_owned())
        };

        let good = parse(r#"{"version":2,"reason":"yearly","overlap_s":3600}"#, true).unwrap();

        assert_eq!((good.version, good.overlap_s, good.reason.as_str()), (2, Some(3600), "yearly"));
        for (body, overlaps, told) in [
            (r#"{"reason":"yearly"}"#, true, "missing field version"),
            (r#"{"version":2}"#, true, "missing field reason"),
            (r#"{"version":2,"reason":" "}"#, true, "reason: must be"),
            (r#"{"version":2,"reason":"a\nb"}"#, true, "reason: must be"),
            (r#"{"version":2,"reason":"x","overlap_s":9}"#, false, "unknown field overlap_s"),
        ] {
            let refused = parse(body, overlaps).unwrap_err();
            assert!(refused.starts_with(told), "{refused}");
        }
    }
}
