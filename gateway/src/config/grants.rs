//! What one client may ask for: operations, keys and key pairs. Everything else is refused.

use hsm_adapter::vocabulary::{KeyLabel, PinBlockFormat};
use serde::{Deserialize, Serialize};

/// `[client.grants]`. Absent means nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Grants {
    /// Pairs of zones between which PIN blocks may be translated.
    pub translate: Vec<TranslateGrant>,
    /// Zones whose PINs may be verified, and with which keys.
    pub verify: Vec<VerifyGrant>,
    /// MAC keys, or base derivation keys, with which the client may have MACs made.
    pub mac_generate: Vec<KeyLabel>,
    /// MAC keys, or base derivation keys, with which the client may have MACs verified.
    pub mac_verify: Vec<KeyLabel>,
    /// Payments, and with which key they are authenticated.
    pub payments: Option<PaymentGrant>,
}

/// One inbound zone and the zones that it may be translated to.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TranslateGrant {
    /// The inbound key and its formats.
    pub from: ZoneGrant,
    /// The outbound keys and their formats.
    pub to: Vec<ZoneGrant>,
}

/// One inbound zone and the keys that its PINs may be verified with.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct VerifyGrant {
    /// The inbound key and its formats.
    pub from: ZoneGrant,
    /// PVV keys, IBM 3624 keys, reference keys.
    pub with: Vec<KeyLabel>,
}

/// A zone PIN key, or a base derivation key, and the formats that may be used with it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ZoneGrant {
    /// The key.
    pub key: KeyLabel,
    /// The formats.
    pub formats: Vec<PinBlockFormat>,
}

/// Leave to make payments.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PaymentGrant {
    /// The key of the MAC that each payment must carry. Default none: the client certificate alone
    /// vouches for a payment, and nothing for its bytes once TLS has ended.
    #[serde(default)]
    pub mac_key: Option<KeyLabel>,
    /// The billers that may be paid.
    pub billers: Vec<String>,
    /// Whether the client's answers carry a MAC under the same key, if there is one. Default true.
    #[serde(default = "yes")]
    pub answer_mac: bool,
}

impl Grants {
    /// # Errors
    /// Names the pair of formats that no standard allows, or the biller that does not exist.
    pub fn check(&self, billers: &[&str]) -> Result<(), String> {
        for grant in &self.translate {
            for to in &grant.to {
                for from_format in &grant.from.formats {
                    for to_format in &to.formats {
                        if !from_format.may_become(*to_format) {
                            return Err(format!(
                                "grants.translate: {} to {} ({from_format} to {to_format}) is forbidden by \
                                 PCI PIN 3-3; take the format out",
                                grant.from.key, to.key
                            ));
                        }
                    }
                }
            }
        }
        let named = self.payments.iter().flat_map(|payments| &payments.billers);
        match named.into_iter().find(|name| !billers.contains(&name.as_str())) {
            Some(name) => Err(format!("grants.payments.billers: no [[biller]] is named {name:?}")),
            None => Ok(()),
        }
    }

    /// Whether this pair of keys and formats is granted.
    #[must_use]
    pub fn may_translate(
        &self,
        from: &KeyLabel,
        from_format: PinBlockFormat,
        to: &KeyLabel,
        to_format: PinBlockFormat,
    ) -> bool {
        from_format.may_become(to_format)
            && self.translate.iter().any(|grant| {
                grant.from.covers(from, from_format)
                    && grant.to.iter().any(|zone| zone.covers(to, to_format))
            })
    }

    /// Whether PINs of this zone may be verified with this key.
    #[must_use]
    pub fn may_verify(&self, from: &KeyLabel, format: PinBlockFormat, with: &KeyLabel) -> bool {
        let granted = |grant: &VerifyGrant| {
            grant.from.covers(from, format) && grant.with.iter().any(|key| key == with)
        };
        self.verify.iter().any(granted)
    }
}

impl ZoneGrant {
    fn covers(&self, key: &KeyLabel, format: PinBlockFormat) -> bool {
        self.key == *key && self.formats.contains(&format)
    }
}

fn yes() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grants(text: &str) -> Grants {
        toml::from_str(text).unwrap()
    }

    const PAIR: &str = r#"
        [[translate]]
        from = { key = "zpk.a", formats = ["iso0", "iso1"] }
        to = [{ key = "zpk.b", formats = ["iso0"] }, { key = "zpk.c", formats = ["iso4"] }]
    "#;

    /// All keys and formats of the example, cell by cell.
    #[test]
    fn only_the_named_pairs_are_granted() {
        use PinBlockFormat::{Iso0, Iso1, Iso4};
        let grants = grants(PAIR);
        let labels = ["zpk.a", "zpk.b", "zpk.c"].map(|label| KeyLabel::parse(label).unwrap());
        for from in &labels {
            for to in &labels {
                for from_format in PinBlockFormat::ALL {
                    for to_format in PinBlockFormat::ALL {
                        let cell = (from.as_str(), from_format, to.as_str(), to_format);
                        let wanted = matches!(
                            cell,
                            ("zpk.a", Iso0 | Iso1, "zpk.b", Iso0)
                                | ("zpk.a", Iso0 | Iso1, "zpk.c", Iso4)
                        );
                        let granted = grants.may_translate(from, from_format, to, to_format);
                        assert_eq!(granted, wanted, "{cell:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_pin_is_verified_only_with_a_key_that_goes_with_its_zone() {
        use PinBlockFormat::{Iso0, Iso3};
        let grants = grants(
            r#"verify = [{ from = { key = "zpk.a", formats = ["iso0"] }, with = ["pvk.a"] },
                         { from = { key = "zpk.b", formats = ["iso0"] }, with = ["pvk.b"] }]"#,
        );
        let label = |text| KeyLabel::parse(text).unwrap();

        for (from, format, with, wanted) in [
            ("zpk.a", Iso0, "pvk.a", true),
            ("zpk.a", Iso3, "pvk.a", false),
            ("zpk.a", Iso0, "pvk.b", false),
            ("zpk.b", Iso0, "pvk.b", true),
            ("pvk.a", Iso0, "zpk.a", false),
        ] {
            let granted = grants.may_verify(&label(from), format, &label(with));
            assert_eq!(granted, wanted, "{from} {format} {with}");
        }
    }

    #[test]
    fn nothing_is_granted_by_default() {
        let none = Grants::default();
        let label = KeyLabel::parse("zpk.a").unwrap();

        let granted =
            none.may_translate(&label, PinBlockFormat::Iso0, &label, PinBlockFormat::Iso0);

        assert!(!granted && none.payments.is_none() && none.mac_verify.is_empty());
    }

    #[test]
    fn a_grant_that_no_standard_allows_is_refused() {
        let text = PAIR.replace(r#"formats = ["iso4"]"#, r#"formats = ["iso1"]"#);
        assert!(grants(&text).check(&[]).unwrap_err().contains("PCI PIN 3-3"));
        let payments = grants("payments = { mac_key = \"zak.a\", billers = [\"pln\", \"x\"] }");
        assert!(payments.check(&["pln"]).unwrap_err().contains("\"x\""));
        assert_eq!(grants(PAIR).check(&[]), Ok(()));
    }
}
