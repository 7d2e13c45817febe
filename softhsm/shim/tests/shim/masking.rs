//! A key says what was declared, whatever it is inside: in every process.

use cryptoki::error::RvError;
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};

use crate::bench::{Bench, alone, code, pin_object};

const USES: [AttributeType; 6] = [
    AttributeType::Encrypt,
    AttributeType::Decrypt,
    AttributeType::Wrap,
    AttributeType::Unwrap,
    AttributeType::Extractable,
    AttributeType::AllowedMechanisms,
];

fn label(name: &str) -> Attribute {
    Attribute::Label(name.as_bytes().to_vec())
}

fn zone_key(unwrap: bool) -> Vec<Attribute> {
    vec![
        Attribute::Token(true),
        Attribute::Unwrap(unwrap),
        Attribute::Wrap(!unwrap),
        Attribute::Extractable(false),
        Attribute::Modifiable(false),
        Attribute::Copyable(false),
        Attribute::AllowedMechanisms(vec![MechanismType::DES3_ECB]),
        Attribute::Id(b"id".to_vec()),
    ]
}

fn find(bench: &Bench, name: &str) -> ObjectHandle {
    let class = Attribute::Class(ObjectClass::SECRET_KEY);
    let template = [class, label(name), Attribute::Id(b"id".to_vec())];
    let found = bench.session.find_objects(&template).unwrap();
    assert_eq!(found.len(), 1, "{name}");
    found[0]
}

#[test]
fn a_token_key_is_what_was_declared_in_every_process() {
    let test = "masking::a_token_key_is_what_was_declared_in_every_process";
    alone(test, |bench| {
        let session = &bench.session;
        let value: Vec<u8> = (100..124).collect();
        if !Bench::is_again() {
            for (name, unwrap) in [("in", true), ("out", false)] {
                let mut uses = zone_key(unwrap);
                uses.push(label(name));
                bench.key(KeyType::DES3, &value, &uses);
            }
            bench.again(test);
        }
        let (inbound, outbound) = (find(bench, "in"), find(bench, "out"));

        for (key, unwrap) in [(inbound, true), (outbound, false)] {
            let said = session.get_attributes(key, &USES).unwrap();
            let declared = [
                Attribute::Encrypt(false),
                Attribute::Decrypt(false),
                Attribute::Wrap(!unwrap),
                Attribute::Unwrap(unwrap),
                Attribute::Extractable(false),
                Attribute::AllowedMechanisms(vec![MechanismType::DES3_ECB]),
            ];
            assert_eq!(said, declared);
            let (ecb, cbc) = (Mechanism::Des3Ecb, Mechanism::Des3Cbc([0; 8]));
            for way in [&ecb, &cbc] {
                let refused = RvError::KeyFunctionNotPermitted;
                assert_eq!(code(session.decrypt(way, key, &[0; 8])), refused);
                assert_eq!(code(session.encrypt(way, key, &[0; 8])), refused);
                assert_eq!(code(session.sign(way, key, &[0; 8])), refused);
            }
            let more = session.update_attributes(key, &[Attribute::Decrypt(true)]);
            assert!(matches!(code(more), RvError::AttributeReadOnly | RvError::ActionProhibited));
            let copy = session.copy_object(key, &[Attribute::Decrypt(true)]);
            assert!(matches!(code(copy), RvError::AttributeReadOnly | RvError::ActionProhibited));
        }
        let pin = session
            .unwrap_key(&Mechanism::Des3Ecb, inbound, &[7; 8], &pin_object(Some(8)))
            .unwrap();
        assert_eq!(session.wrap_key(&Mechanism::Des3Ecb, outbound, pin).unwrap(), [7; 8]);
    });
}

#[test]
fn a_generated_key_is_masked_and_a_key_that_needs_nothing_is_not() {
    alone("masking::a_generated_key_is_masked_and_a_key_that_needs_nothing_is_not", |bench| {
        let session = &bench.session;
        let generate = |more: &[Attribute]| {
            let mut template = vec![
                Attribute::Token(false),
                Attribute::ValueLen(16.into()),
                Attribute::Private(true),
                Attribute::Encrypt(false),
                Attribute::Decrypt(false),
                Attribute::Unwrap(false),
                Attribute::Extractable(false),
            ];
            template.extend_from_slice(more);
            session.generate_key(&Mechanism::AesKeyGen, &template).unwrap()
        };
        let said = |key, kind| session.get_attributes(key, &[kind]).unwrap();

        let wraps = generate(&[
            Attribute::Wrap(true),
            Attribute::AllowedMechanisms(vec![MechanismType::AES_ECB]),
        ]);
        let derives = generate(&[Attribute::Wrap(false), Attribute::Derive(true)]);
        let kek = generate(&[
            Attribute::Wrap(true),
            Attribute::AllowedMechanisms(vec![MechanismType::AES_KEY_WRAP_PAD]),
        ]);

        assert_eq!(said(wraps, AttributeType::Encrypt), [Attribute::Encrypt(false)]);
        assert_eq!(said(derives, AttributeType::Extractable), [Attribute::Extractable(false)]);
        let never = [Attribute::NeverExtractable(true)];
        assert_eq!(said(derives, AttributeType::NeverExtractable), never);
        assert!(said(derives, AttributeType::Value).is_empty());
        let open = bench.key(KeyType::AES, &[1; 16], &[Attribute::Wrap(true)]);
        let closed = session.wrap_key(&Mechanism::AesKeyWrapPad, open, derives);
        assert_eq!(code(closed), RvError::KeyUnextractable);
        let pin = bench.key(KeyType::GENERIC_SECRET, &[1; 16], &[Attribute::Extractable(true)]);
        assert!(session.wrap_key(&Mechanism::AesEcb, wraps, pin).is_ok());
        assert!(session.wrap_key(&Mechanism::AesKeyWrapPad, kek, pin).is_ok());
        let refused = session.wrap_key(&Mechanism::AesEcb, kek, pin);
        assert_eq!(code(refused), RvError::MechanismInvalid);
    });
}
