//! Negative probes: calls that must fail, on throw-away session keys with the production templates.
//!
//! No probe makes an object that the token should refuse to make: SoftHSM leaves half an object behind
//! each C_CreateObject that fails.
//!
//! An attribute that reads back as it should is a promise of the token; a call that is refused is a
//! proof. A token that does what it must not is a red row, and in production no worker starts on it
//! unless the configuration accepts the probe by its name as a risk.

use cryptoki::error::Error as CryptokiError;
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::vendor_defined::VendorDefinedMechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki_sys::{
    CK_KEY_DERIVATION_STRING_DATA, CKM_AES_ECB_ENCRYPT_DATA, CKM_DES3_CMAC,
    CKM_DES3_ECB_ENCRYPT_DATA,
};

use super::attributes::Part;
use super::passing::{self, Passing};
use super::raw::mechanism_type;
use super::token::TokenSession;
use super::traits::UNWRAP_TEMPLATE;
use crate::error::{CkrClass, TokenError};
use crate::operation::translate_in_token::pin_template;
use crate::protocol::{ProbeOutcome, ProbeRow};
use crate::register::{KeyAlgorithm, KeyProfile};
use crate::vocabulary::{KeyLabel, KeyRole, Mode};

/// What came of one trial.
enum Trial {
    Refused(String),
    Done,
    NotTried(String),
}

/// A call that must fail.
struct Probe {
    name: &'static str,
    about: &'static str,
    run: fn(&Bench<'_>) -> Result<Trial, TokenError>,
}

/// Every probe, in the order of the report.
const PROBES: [Probe; 21] = [
    Probe {
        name: "encrypt",
        about: "encipher under a key that may only take PIN blocks in",
        run: |bench| {
            let key = bench.zone(KeyRole::ZonePinIn)?;
            tried(bench.call().encrypt(&bench.ecb(), key.object, &[0; 16]))
        },
    },
    Probe {
        name: "decrypt",
        about: "decipher under a key that may only give PIN blocks out",
        run: |bench| {
            let key = bench.zone(KeyRole::ZonePinOut)?;
            tried(bench.call().decrypt(&bench.ecb(), key.object, &[0; 16]))
        },
    },
    Probe {
        name: "sign",
        about: "make a MAC under a zone PIN key",
        run: |bench| {
            let key = bench.zone(KeyRole::ZonePinOut)?;
            let number = mechanism_type(CKM_DES3_CMAC);
            let mechanism = match bench.algorithm {
                KeyAlgorithm::Aes => Mechanism::AesCMac,
                KeyAlgorithm::Tdes
                | KeyAlgorithm::Hmac
                | KeyAlgorithm::Ec
                | KeyAlgorithm::Ed25519 => {
                    Mechanism::VendorDefined(VendorDefinedMechanism::new::<()>(number, None))
                }
            };
            tried(bench.call().sign(&mechanism, key.object, &[0; 16]))
        },
    },
    Probe {
        name: "derive",
        about: "derive from a zone PIN key",
        run: |bench| {
            let key = bench.zone(KeyRole::ZonePinIn)?;
            let mut data = [0; 16];
            let parameter = CK_KEY_DERIVATION_STRING_DATA { pData: data.as_mut_ptr(), ulLen: 16 };
            let number = mechanism_type(match bench.algorithm {
                KeyAlgorithm::Aes => CKM_AES_ECB_ENCRYPT_DATA,
                KeyAlgorithm::Tdes
                | KeyAlgorithm::Hmac
                | KeyAlgorithm::Ec
                | KeyAlgorithm::Ed25519 => CKM_DES3_ECB_ENCRYPT_DATA,
            });
            let mechanism = VendorDefinedMechanism::new(number, Some(&parameter));
            let mechanism = Mechanism::VendorDefined(mechanism);
            let mut template = bench.secret(false);
            template.push(Attribute::ValueLen(16.into()));
            bench.made(bench.call().derive_key(&mechanism, key.object, &template))
        },
    },
    Probe {
        name: "wrap",
        about: "wrap another key under a key that may only take PIN blocks in",
        run: |bench| {
            let key = bench.zone(KeyRole::ZonePinIn)?;
            let other = bench.create(&bench.secret(false), &[7; 16])?;
            tried(bench.call().wrap_key(&bench.ecb(), key.object, other.object))
        },
    },
    Probe {
        name: "unwrap",
        about: "unwrap under a key that may only give PIN blocks out",
        run: |bench| {
            let key = bench.zone(KeyRole::ZonePinOut)?;
            bench.made(bench.unwrap(&bench.ecb(), &key))
        },
    },
    Probe {
        name: "mechanism",
        about: "use a mechanism outside ALLOWED_MECHANISMS",
        run: |bench| {
            let key = bench.zone(KeyRole::ZonePinOut)?;
            // Inside the token everything runs by CBC, elsewhere by ECB.
            let other = if bench.mode == Mode::InToken { bench.ecb() } else { bench.cbc() };
            tried(bench.call().encrypt(&other, key.object, &[0; 16]))
        },
    },
    Probe {
        name: "set-decrypt",
        about: "set DECRYPT on a key that may only give PIN blocks out",
        run: |bench| {
            let key = bench.zone(KeyRole::ZonePinOut)?;
            tried(bench.call().update_attributes(key.object, &[Attribute::Decrypt(true)]))
        },
    },
    Probe {
        name: "set-extractable",
        about: "set EXTRACTABLE on a zone PIN key",
        run: |bench| {
            let key = bench.zone(KeyRole::ZonePinOut)?;
            tried(bench.call().update_attributes(key.object, &[Attribute::Extractable(true)]))
        },
    },
    Probe {
        name: "copy",
        about: "copy a zone PIN key",
        run: |bench| {
            let key = bench.zone(KeyRole::ZonePinIn)?;
            bench.made(bench.call().copy_object(key.object, &[Attribute::Token(false)]))
        },
    },
    Probe {
        name: "copy-with-decrypt",
        about: "copy a zone PIN key and set DECRYPT on the copy",
        run: |bench| {
            let key = bench.zone(KeyRole::ZonePinOut)?;
            let template = [Attribute::Token(false), Attribute::Decrypt(true)];
            bench.made(bench.call().copy_object(key.object, &template))
        },
    },
    Probe {
        name: "read-value",
        about: "read the value of a zone PIN key",
        run: |bench| bench.read(&bench.zone(KeyRole::ZonePinIn)?, AttributeType::Value),
    },
    Probe {
        name: "read-pin",
        about: "read the value of a PIN object",
        run: |bench| bench.read(&bench.pin()?, AttributeType::Value),
    },
    Probe {
        name: "read-unwrapped",
        about: "read the value of a PIN object that was unwrapped",
        run: |bench| {
            if bench.mode != Mode::InToken {
                return Ok(Trial::NotTried("no key of mode in_token".into()));
            }
            let key = bench.zone(KeyRole::ZonePinIn)?;
            let pin = bench.hold(bench.unwrap(&bench.cbc(), &key)?);
            bench.read(&pin, AttributeType::Value)
        },
    },
    Probe {
        name: "check-value",
        about: "read the check value of a PIN object, a dictionary of PINs",
        run: |bench| bench.read(&bench.pin()?, AttributeType::CheckValue),
    },
    Probe {
        name: "digest-key",
        about: "hash a PIN object, a dictionary of PINs",
        run: |bench| {
            let pin = bench.pin()?;
            bench.call().digest_init(&Mechanism::Sha256)?;
            let outcome = tried(bench.call().digest_key(pin.object));
            // An operation that is left open would refuse the next one.
            let _ = bench.call().digest_final();
            outcome
        },
    },
    Probe {
        name: "sign-with-pin",
        about: "make an HMAC keyed by a PIN object, a dictionary of PINs",
        run: |bench| {
            let pin = bench.pin()?;
            tried(bench.call().sign(&Mechanism::Sha256Hmac, pin.object, &[0; 16]))
        },
    },
    Probe {
        name: "wrap-untrusted",
        about: "wrap a PIN object under a key that is not trusted",
        run: |bench| {
            let (key, pin) = (bench.wrapper()?, bench.pin()?);
            // The same call with an object that any key may wrap shows that the call works at all.
            let free = bench.create(&bench.secret(true), &[7; 16])?;
            let cbc = Mechanism::AesCbc([0; 16]);
            for mechanism in [Mechanism::AesKeyWrapPad, cbc, Mechanism::AesEcb] {
                if bench.call().wrap_key(&mechanism, key.object, free.object).is_ok() {
                    return tried(bench.call().wrap_key(&mechanism, key.object, pin.object));
                }
            }
            Ok(Trial::NotTried("no mechanism wraps a secret under AES".into()))
        },
    },
    Probe {
        name: "holds-allowed-mechanisms",
        about: "make keys without CKA_ALLOWED_MECHANISMS, which is not enforced then",
        run: |bench| Ok(bench.holds(AttributeType::AllowedMechanisms)),
    },
    Probe {
        name: "holds-copyable",
        about: "make keys without CKA_COPYABLE, which is not enforced then",
        run: |bench| Ok(bench.holds(AttributeType::Copyable)),
    },
    Probe {
        name: "holds-unwrap-template",
        about: "make keys without CKA_UNWRAP_TEMPLATE, which is not enforced then",
        run: |bench| match bench.holds(UNWRAP_TEMPLATE) {
            Trial::Done if bench.mode != Mode::InToken => {
                Ok(Trial::NotTried("no key of mode in_token".into()))
            }
            trial @ (Trial::Done | Trial::Refused(_) | Trial::NotTried(_)) => Ok(trial),
        },
    },
];

/// The probes' names, which a configuration may accept as risks.
pub fn probe_names() -> impl Iterator<Item = &'static str> {
    PROBES.iter().map(|probe| probe.name)
}

/// Tries every probe with the templates of these modes.
///
/// # Errors
/// When the token is not there to refuse.
pub(super) fn run(session: &TokenSession, modes: &[Mode]) -> Result<Vec<ProbeRow>, TokenError> {
    let mut rows = Vec::new();
    for Probe { name, about, run } in &PROBES {
        let mut row = ProbeRow {
            probe: (*name).into(),
            about: (*about).into(),
            outcome: ProbeOutcome::NotTried,
            detail: String::new(),
        };
        for mode in modes {
            for algorithm in [KeyAlgorithm::Tdes, KeyAlgorithm::Aes] {
                let bench = Bench { session, mode: *mode, algorithm };
                let trial = match run(&bench) {
                    // The probe's own call was judged: this is what was to be made before it.
                    Err(error) => match judged(error)? {
                        Trial::Refused(why) => Trial::NotTried(why),
                        trial @ (Trial::Done | Trial::NotTried(_)) => trial,
                    },
                    Ok(trial) => trial,
                };
                add(&mut row, trial, &format!("{algorithm:?}, {mode}"));
            }
        }
        rows.push(row);
    }
    Ok(rows)
}

/// One trial that was done makes the row red; one that was refused makes it a proof.
fn add(row: &mut ProbeRow, trial: Trial, with: &str) {
    let (outcome, detail) = match trial {
        Trial::Done => (ProbeOutcome::Done, format!("the token did it ({with})")),
        Trial::Refused(why) => (ProbeOutcome::Refused, why),
        Trial::NotTried(why) => (ProbeOutcome::NotTried, why),
    };
    let replaces = match (row.outcome, outcome) {
        (ProbeOutcome::Done, _) => false,
        (_, ProbeOutcome::Done) | (ProbeOutcome::NotTried, ProbeOutcome::Refused) => true,
        (ProbeOutcome::NotTried, ProbeOutcome::NotTried) => row.detail.is_empty(),
        (ProbeOutcome::Refused, ProbeOutcome::Refused | ProbeOutcome::NotTried) => false,
    };
    if replaces {
        (row.outcome, row.detail) = (outcome, detail);
    }
}

/// A call that succeeded, or the refusal of one that did not.
fn tried<T>(outcome: Result<T, CryptokiError>) -> Result<Trial, TokenError> {
    match outcome {
        Ok(_) => Ok(Trial::Done),
        Err(error) => judged(error.into()),
    }
}

/// A refusal, unless the error says that there is nobody to refuse. Tokens have their own codes for
/// what they will not do, so that what is not known counts as a refusal.
fn judged(error: TokenError) -> Result<Trial, TokenError> {
    match error.class() {
        CkrClass::Transient | CkrClass::Relogin | CkrClass::Permanent => Err(error),
        // The handle was made just before: some tokens refuse a use by this code.
        CkrClass::Refind
        | CkrClass::Restart
        | CkrClass::Configuration
        | CkrClass::Caller
        | CkrClass::Answer
        | CkrClass::Benign => Ok(Trial::Refused(error.to_string())),
    }
}

/// Where one trial is made: keys of one mode and one algorithm.
struct Bench<'s> {
    session: &'s TokenSession,
    mode: Mode,
    algorithm: KeyAlgorithm,
}

impl<'s> Bench<'s> {
    fn call(&self) -> &'s cryptoki::session::Session {
        &self.session.session
    }

    /// A zone PIN key of no real value, with the template of a real one.
    fn zone(&self, role: KeyRole) -> Result<Passing<'s>, TokenError> {
        let label = KeyLabel::parse("probe").expect("five characters of the allowed set");
        let profile =
            KeyProfile { mode: self.mode, ..KeyProfile::new(label, role, self.algorithm) };
        let value: Vec<u8> = (1..=16).map(|byte| byte * 13).collect();
        passing::create(self.session, &profile, Part::Whole, &value)
    }

    /// A PIN object as the recipes make it, with a block that belongs to nobody.
    fn pin(&self) -> Result<Passing<'s>, TokenError> {
        let mut template = self.secret(true);
        template.push(Attribute::WrapWithTrusted(true));
        self.create(&template, &[0x45; 16])
    }

    /// An AES key that wraps, and that no security officer has called trusted.
    fn wrapper(&self) -> Result<Passing<'s>, TokenError> {
        self.create(
            &[
                Attribute::Class(ObjectClass::SECRET_KEY),
                Attribute::KeyType(KeyType::AES),
                Attribute::Token(false),
                Attribute::Private(true),
                Attribute::Sensitive(true),
                Attribute::Wrap(true),
            ],
            &[9; 16],
        )
    }

    /// A secret that may be used for nothing, and wrapped or not.
    fn secret(&self, extractable: bool) -> Vec<Attribute> {
        vec![
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::GENERIC_SECRET),
            Attribute::Token(false),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(extractable),
            Attribute::Sign(false),
            Attribute::Derive(false),
        ]
    }

    fn create(&self, template: &[Attribute], value: &[u8]) -> Result<Passing<'s>, TokenError> {
        let template = [template, &[Attribute::Value(value.to_vec())]].concat();
        Ok(self.hold(self.session.create_secret(template)?))
    }

    /// Two blocks that belong to nobody, unwrapped as the recipes do.
    fn unwrap(
        &self,
        mechanism: &Mechanism<'_>,
        key: &Passing<'_>,
    ) -> Result<ObjectHandle, CryptokiError> {
        let template = self.session.traits.unwrapped(pin_template(16));
        self.call().unwrap_key(mechanism, key.object, &[7; 16], &template)
    }

    /// Every template names the attribute: a token that does not hold it is given less.
    fn holds(&self, kind: AttributeType) -> Trial {
        match self.session.traits.holds(kind) {
            true => Trial::Refused("the token holds it".into()),
            false => Trial::Done,
        }
    }

    fn hold(&self, object: ObjectHandle) -> Passing<'s> {
        Passing { session: self.session, object }
    }

    /// Like [`tried`], for a call that makes an object when it is not refused.
    fn made(&self, outcome: Result<ObjectHandle, CryptokiError>) -> Result<Trial, TokenError> {
        tried(outcome.map(|object| self.hold(object)))
    }

    /// Whether an attribute that must not be told is told.
    fn read(&self, object: &Passing<'_>, what: AttributeType) -> Result<Trial, TokenError> {
        let found = self.call().get_attributes(object.object, &[what])?;
        let told = found.iter().any(|attribute| {
            matches!(attribute, Attribute::Value(bytes) | Attribute::CheckValue(bytes)
                if !bytes.is_empty())
        });
        Ok(if told { Trial::Done } else { Trial::Refused("it is not told".into()) })
    }

    fn ecb(&self) -> Mechanism<'static> {
        match self.algorithm {
            KeyAlgorithm::Aes => Mechanism::AesEcb,
            KeyAlgorithm::Tdes | KeyAlgorithm::Hmac | KeyAlgorithm::Ec | KeyAlgorithm::Ed25519 => {
                Mechanism::Des3Ecb
            }
        }
    }

    fn cbc(&self) -> Mechanism<'static> {
        match self.algorithm {
            KeyAlgorithm::Aes => Mechanism::AesCbc([0; 16]),
            KeyAlgorithm::Tdes | KeyAlgorithm::Hmac | KeyAlgorithm::Ec | KeyAlgorithm::Ed25519 => {
                Mechanism::Des3Cbc([0; 8])
            }
        }
    }
}
