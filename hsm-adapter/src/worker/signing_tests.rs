//! Audit checkpoints signed on a real token, by both algorithms, and verified by another
//! implementation.

use std::path::Path;
use std::slice::from_ref;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ED25519, UnparsedPublicKey};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};

use super::keys::KeyTable;
use super::own_token::{self, with_own_token};
use super::perform::perform;
use super::token::TokenSession;
use super::{chain, lint, self_test};
use crate::error::Failure;
use crate::protocol::{Answer, Message, Order};
use crate::register::{KeyAlgorithm, KeyProfile, KeyRegister, KeyState, now_s};
use crate::vocabulary::{KeyLabel, KeyName, KeyRole, SignatureAlgorithm};

const BOTH: [(&str, KeyAlgorithm); 2] =
    [("audit.ec", KeyAlgorithm::Ec), ("audit.ed", KeyAlgorithm::Ed25519)];

const TEXT: &str =
    "log.example/gateway-1\n42\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\nmore\n";

/// A worker's side with its register in a file: of each audit key version 1 active, 2 staged, 3
/// compromised and not on the token, 4 retired and 5 retired and over; and a KEK.
struct Desk {
    session: TokenSession,
    keys: KeyTable,
}

impl Desk {
    fn new(home: &Path) -> Self {
        let name = |label: &str| KeyLabel::parse(label).unwrap();
        let mut profiles =
            vec![KeyProfile::new(name("queue.kek"), KeyRole::QueueKek, KeyAlgorithm::Aes)];
        for (label, algorithm) in BOTH {
            let key = KeyProfile::new(name(label), KeyRole::AuditSigning, algorithm);
            profiles.extend([
                key.clone(),
                KeyProfile { version: 2, state: KeyState::Staged, ..key.clone() },
                KeyProfile { version: 3, state: KeyState::Compromised, ..key.clone() },
                KeyProfile { version: 4, state: KeyState::Retired, ..key.clone() },
                KeyProfile {
                    version: 5,
                    state: KeyState::Retired,
                    usable_until_s: Some(now_s() - 1),
                    ..key
                },
            ]);
        }
        let register = KeyRegister::new(profiles).unwrap();
        let ceremony = own_token::ceremony();
        for profile in register.living() {
            ceremony.generate(profile).unwrap();
        }
        let path = home.join("keys.toml");
        std::fs::write(&path, register.to_toml().unwrap()).unwrap();
        let session = own_token::open().session().unwrap();
        let keys = KeyTable::load(&path, register, &session).unwrap();
        Self { session, keys }
    }

    fn give(&self, order: &Order) -> Result<Answer, Failure> {
        let outcome = perform(&self.session, &self.keys, order);
        assert!(
            outcome.as_ref().is_ok_and(|answer| order.is_answered_by(answer)) || outcome.is_err()
        );
        outcome
    }

    /// Signs and has another implementation verify. The version, and the public key.
    fn signed(&self, label: &str, version: Option<u32>) -> (u32, Vec<u8>) {
        let order = sign(label, version, TEXT);
        let Ok(Answer::CheckpointSigned { signature, public_key, algorithm, key_version }) =
            self.give(&order)
        else {
            panic!("{:?}", self.give(&order))
        };
        match algorithm {
            SignatureAlgorithm::EcdsaP256Sha256 => {
                assert_eq!(public_key.len(), 91);
                let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &public_key);
                key.verify(TEXT.as_bytes(), &signature).unwrap();
            }
            SignatureAlgorithm::Ed25519 => {
                assert_eq!((public_key.len(), signature.len()), (32, 64));
                let key = UnparsedPublicKey::new(&ED25519, &public_key);
                key.verify(TEXT.as_bytes(), &signature).unwrap();
            }
        }
        (key_version, public_key)
    }

    fn refused(&self, label: &str, version: Option<u32>) -> Failure {
        self.give(&sign(label, version, TEXT)).unwrap_err()
    }

    fn object(&self, class: ObjectClass, label: &str) -> ObjectHandle {
        let template = [Attribute::Class(class), Attribute::Label(label.into())];
        let found = self.session.session.find_objects(&template).unwrap();
        assert_eq!(found.len(), 1, "{label}");
        found[0]
    }
}

fn sign(label: &str, version: Option<u32>, text: &str) -> Order {
    let key = KeyName { label: KeyLabel::parse(label).unwrap(), version };
    Order::SignCheckpoint { key, text: Message(text.into()) }
}

fn activate(change: u64, label: &str, version: u32) -> Order {
    let key = KeyName { label: KeyLabel::parse(label).unwrap(), version: Some(version) };
    let (state, usable_until_s) = (KeyState::Active, Some(now_s() + 3600));
    Order::SetKeyState { change, key, state, usable_until_s }
}

fn says(failure: &Failure, words: &str) -> bool {
    matches!(failure, Failure::KeyNotForThis(why) if why.contains(words))
}

#[test]
fn a_checkpoint_is_signed_by_the_versions_that_may_and_no_other() {
    const TEST: &str =
        "worker::signing_tests::a_checkpoint_is_signed_by_the_versions_that_may_and_no_other";
    with_own_token(TEST, |home| {
        let desk = Desk::new(home);

        for (label, _) in BOTH {
            assert_eq!(desk.signed(label, None).0, 1);
            assert_eq!(desk.signed(label, Some(1)), desk.signed(label, None));
            assert_eq!(desk.signed(label, Some(4)).0, 4);
            assert!(says(&desk.refused(label, Some(2)), "staged"));
            assert!(says(&desk.refused(label, Some(3)), "compromised"));
            assert!(says(&desk.refused(label, Some(5)), "time is over"));
            assert_eq!(desk.refused(label, Some(9)), Failure::UnknownKey);
            for text in ["pay 100", "log\n1\nAAAA\n", &TEXT.replace("\nmore", "\n\nmore"), ""] {
                let refused = desk.give(&sign(label, None, text)).unwrap_err();
                assert!(matches!(refused, Failure::CheckpointRefused(_)), "{refused:?}");
                assert!(!refused.is_transient());
            }
        }
        assert!(says(&desk.refused("queue.kek", None), "is a queue-kek key"));
        let other = Order::GenerateMac {
            key: KeyLabel::parse("audit.ec").unwrap().into(),
            ksn: None,
            message: Message(TEXT.into()),
            length: None,
        };
        assert!(matches!(desk.give(&other), Err(Failure::KeyNotForThis(_))));
        assert!(desk.session.session.find_objects(&[Attribute::Token(false)]).unwrap().is_empty());
    });
}

#[test]
fn a_second_version_takes_over_and_both_sign_one_checkpoint() {
    const TEST: &str =
        "worker::signing_tests::a_second_version_takes_over_and_both_sign_one_checkpoint";
    with_own_token(TEST, |home| {
        let desk = Desk::new(home);

        for (change, (label, _)) in (1..).zip(BOTH) {
            let (_, old) = desk.signed(label, None);
            let Ok(Answer::Key(facts)) = desk.give(&activate(change, label, 2)) else {
                panic!("not activated")
            };

            assert_eq!((facts.version, facts.state), (2, KeyState::Active));
            let (version, new) = desk.signed(label, None);
            assert_eq!((version, new != old), (2, true));
            assert_eq!(desk.signed(label, Some(1)), (1, old));
            let register = desk.keys.register();
            let retired = register.version(&KeyLabel::parse(label).unwrap(), 1).unwrap();
            assert_eq!(retired.state, KeyState::Retired);
            assert!(retired.usable_until_s.is_some());
        }
    });
}

#[test]
fn a_private_key_signs_and_does_nothing_else_and_its_lint_is_clean() {
    const TEST: &str =
        "worker::signing_tests::a_private_key_signs_and_does_nothing_else_and_its_lint_is_clean";
    with_own_token(TEST, |home| {
        let desk = Desk::new(home);
        let session = &desk.session.session;
        let kek = desk.object(ObjectClass::SECRET_KEY, "queue.kek@1");

        for (label, algorithm) in BOTH {
            let key = desk.object(ObjectClass::PRIVATE_KEY, &format!("{label}@1"));
            let told = session.get_attributes(key, &[AttributeType::Value]).unwrap();
            let told = told.iter().any(|it| matches!(it, Attribute::Value(it) if !it.is_empty()));
            assert!(!told, "{label}");
            assert!(session.wrap_key(&Mechanism::AesKeyWrapPad, kek, key).is_err());
            for wanted in [
                Attribute::Extractable(true),
                Attribute::Sensitive(false),
                Attribute::Derive(true),
                Attribute::Decrypt(true),
            ] {
                assert!(session.update_attributes(key, from_ref(&wanted)).is_err(), "{wanted:?}");
            }
            assert!(session.copy_object(key, &[Attribute::Token(false)]).is_err());
            let is = |wanted: &[Attribute]| {
                let kinds: Vec<_> = wanted.iter().map(Attribute::attribute_type).collect();
                session.get_attributes(key, &kinds).unwrap() == wanted
            };
            let is_edwards = algorithm == KeyAlgorithm::Ed25519;
            let kind = if is_edwards { KeyType::EC_EDWARDS } else { KeyType::EC };
            assert!(is(&[
                Attribute::KeyType(kind),
                Attribute::Sign(true),
                Attribute::Sensitive(true),
                Attribute::AlwaysSensitive(true),
                Attribute::Extractable(false),
                Attribute::NeverExtractable(true),
                Attribute::Modifiable(false),
                Attribute::Local(true),
                Attribute::Decrypt(false),
                Attribute::Unwrap(false),
                Attribute::Derive(false),
            ]));
        }
        let report = lint::run(&desk.session, &desk.keys).unwrap();
        assert!(report.keys.iter().all(|row| row.deviations.is_empty()), "{:?}", report.keys);
        assert!(report.keys.iter().all(|row| row.role.is_some()), "{:?}", report.keys);
        assert_eq!((report.keys.len(), report.session_objects), (11, 0));
    });
}

#[test]
fn a_key_is_proved_with_the_public_key_beside_it() {
    const TEST: &str = "worker::signing_tests::a_key_is_proved_with_the_public_key_beside_it";
    with_own_token(TEST, |home| {
        let desk = Desk::new(home);
        let session = &desk.session.session;
        let proved = self_test::all(&desk.session, &desk.keys).unwrap();
        let told: Vec<_> =
            proved.iter().map(|it| (&*it.operation, it.mode.name(), &*it.calls)).collect();
        for signs in [
            ("sign checkpoint ECDSA", "in_token", "sign ECDSA, verify ECDSA"),
            ("sign checkpoint Ed25519", "in_token", "sign EDDSA, verify EDDSA"),
        ] {
            assert_eq!(told.iter().filter(|row| **row == signs).count(), 1, "{told:?}");
        }

        for (change, (label, _)) in (1..).zip(BOTH) {
            let mut kept = Vec::new();
            for version in [1, 2] {
                let object = desk.object(ObjectClass::PUBLIC_KEY, &format!("{label}@{version}"));
                let kinds = [
                    AttributeType::KeyType,
                    AttributeType::EcParams,
                    AttributeType::EcPoint,
                    AttributeType::Id,
                ];
                kept.push(session.get_attributes(object, &kinds).unwrap());
                session.destroy_object(object).unwrap();
            }
            let put = |name: &str, key: &[Attribute]| {
                let mut template = key.to_vec();
                template.extend([
                    Attribute::Class(ObjectClass::PUBLIC_KEY),
                    Attribute::Token(true),
                    Attribute::Private(false),
                    Attribute::Verify(true),
                    Attribute::Label(name.into()),
                ]);
                session.create_object(&template).unwrap()
            };

            assert!(says(&desk.refused(label, None), "one public key is wanted"));
            let refused = desk.give(&activate(change, label, 2)).unwrap_err();
            assert!(matches!(&refused, Failure::KeyChangeRefused(why) if why.contains("@2")));

            let another = put(&format!("{label}@1"), &kept[1]);
            assert!(says(&desk.refused(label, None), "another key's"));
            let error = self_test::all(&desk.session, &desk.keys).unwrap_err();
            let why = chain(&error);
            assert!(why.contains(&format!("{label}@1")) && why.contains("another key's"), "{why}");
            assert!(!error.is_final());
            session.destroy_object(another).unwrap();

            // With the vendor's tools a public key may have a label of its own.
            put("of its own", &kept[0]);
            assert_eq!(desk.signed(label, None).0, 1);
        }
    });
}
