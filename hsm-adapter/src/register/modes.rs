//! Which modes a key can have.

use super::{KeyAlgorithm, KeyProfile};
use crate::vocabulary::{KeyRole, Mode, PinBlockFormat};

impl KeyProfile {
    /// Whether an operation with this key has a clear PIN somewhere.
    #[must_use]
    pub fn carries_pins(&self) -> bool {
        match self.role {
            KeyRole::ZonePinIn
            | KeyRole::ZonePinOut
            | KeyRole::PinVerificationPvv
            | KeyRole::PinVerification3624
            | KeyRole::PinReference => true,
            KeyRole::BaseDerivation => !self.formats.is_empty(),
            KeyRole::Mac
            | KeyRole::KeyBlockProtection
            | KeyRole::QueueKek
            | KeyRole::AuditSigning => false,
        }
    }

    /// Which modes a key can have. What a mode cannot do for a role is refused here; what a token
    /// cannot do is found by its known answers.
    pub(super) fn check_mode(&self) -> Result<(), String> {
        match (self.mode, self.role) {
            (Mode::InWorker, _) => Ok(()),
            (Mode::InToken, KeyRole::ZonePinIn | KeyRole::ZonePinOut) => {
                if self.formats.contains(&PinBlockFormat::Iso1) {
                    return Err("no iso1 in mode in_token: its fill is random and unknown to the \
                                host"
                        .into());
                }
                Ok(())
            }
            (Mode::InToken, KeyRole::BaseDerivation) if self.algorithm == KeyAlgorithm::Tdes => {
                Err("TDES DUKPT goes through worker memory: mode in_worker only".into())
            }
            (Mode::InToken, KeyRole::BaseDerivation) if self.carries_pins() => Ok(()),
            (Mode::InToken, KeyRole::PinVerification3624) => {
                Err("IBM 3624 cannot be verified inside a token by PKCS#11: decimalisation comes \
                     before the comparison value exists; mode in_worker only"
                    .into())
            }
            (Mode::InToken, KeyRole::PinVerificationPvv | KeyRole::PinReference) => {
                Err("PINs are verified in mode in_worker only: give it and the keys whose PINs it \
                     verifies that mode"
                    .into())
            }
            (Mode::Vendor, KeyRole::ZonePinIn | KeyRole::ZonePinOut) => {
                let Some(vendor) = &self.vendor else {
                    return Err("mode vendor needs [vendor.pin_translate]: mechanism, parameter \
                                and cells as the vendor's manual names them"
                        .into());
                };
                let inbound = self.role == KeyRole::ZonePinIn;
                let side = |(from, to)| if inbound { from } else { to };
                let covered = |format: &PinBlockFormat| {
                    vendor.cells.iter().any(|cell| side(*cell) == *format)
                };
                match self.formats.iter().find(|format| !covered(format)) {
                    Some(format) => Err(format!("no cell of [vendor.pin_translate] has {format}")),
                    None => Ok(()),
                }
            }
            (Mode::Vendor, KeyRole::Mac) if self.is_retail() => match &self.vendor {
                Some(_) => Ok(()),
                None => Err("mode vendor needs [vendor.retail_mac]: the mechanism's number".into()),
            },
            (
                mode @ (Mode::InToken | Mode::Vendor),
                role @ (KeyRole::Mac
                | KeyRole::BaseDerivation
                | KeyRole::PinVerificationPvv
                | KeyRole::PinVerification3624
                | KeyRole::PinReference
                | KeyRole::KeyBlockProtection
                | KeyRole::QueueKek
                | KeyRole::AuditSigning),
            ) => Err(format!("role {role} has no mode {mode}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::register::{KeyProfile, KeyRegister};

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
    fn a_role_has_the_modes_that_can_be_served_and_no_other() {
        let in_token = |role, algorithm, more| key(role, algorithm, "in_token", more);
        let iso0 = "formats = [\"iso0\"]";
        for good in [
            in_token("zone-pin-in", "tdes", iso0),
            in_token("zone-pin-out", "aes", "formats = [\"iso4\"]"),
            in_token("base-derivation", "aes", "formats = [\"iso4\"]"),
        ] {
            KeyRegister::parse(&good).unwrap();
        }
        let cbc = "mac = { algorithm = \"cmac\", length = 8 }";
        let table = "ibm3624 = { decimalisation_table = \"0123456789012345\", pan_offset = 0, \
                     pan_digits = 16, pad = \"0\" }";
        for (bad, why) in [
            (in_token("zone-pin-in", "tdes", "formats = [\"iso0\", \"iso1\"]"), "no iso1"),
            (in_token("base-derivation", "tdes", iso0), "TDES DUKPT goes through worker memory"),
            (in_token("pin-verification-pvv", "tdes", "pvki = [1]"), "in mode in_worker only"),
            (in_token("pin-reference", "tdes", iso0), "in mode in_worker only"),
            (in_token("pin-verification-3624", "tdes", table), "decimalisation comes"),
            (in_token("mac", "tdes", cbc), "role mac has no mode in_token"),
            (in_token("queue-kek", "aes", ""), "role queue-kek has no mode in_token"),
            (key("mac", "tdes", "vendor", cbc), "role mac has no mode vendor"),
            (key("zone-pin-in", "tdes", "vendor", iso0), "needs [vendor.pin_translate]"),
        ] {
            refused(&bad, why);
        }
    }

    #[test]
    fn the_first_key_with_clear_pins_in_the_worker_is_found() {
        let iso0 = "formats = [\"iso0\"]";
        let inside = key("zone-pin-in", "tdes", "in_token", iso0);
        let mac = "mac = { algorithm = \"cmac\", length = 8 }";
        let mac = key("mac", "tdes", "in_worker", mac).replace("k.a", "k.b");
        let worker = key("zone-pin-out", "tdes", "in_worker", iso0).replace("k.a", "k.c");
        let first = |text: &str| {
            let register = KeyRegister::parse(text).unwrap();
            register.first_in_worker().map(KeyProfile::name)
        };

        assert_eq!(first(&format!("{inside}{mac}")), None);
        assert_eq!(first(&format!("{inside}{mac}{worker}")), Some("k.c@1".into()));
        let gone = worker.replace("role", "state = \"compromised\"\nrole");
        assert_eq!(first(&format!("{inside}{gone}")), None);
    }
}
