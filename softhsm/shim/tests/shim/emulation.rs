//! Unwrap, wrap and derive by mechanisms that SoftHSM lacks: known answers, and what a strict token
//! refuses.

use cryptoki::error::RvError;
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki_sys::{
    CK_KEY_DERIVATION_STRING_DATA, CKM_CONCATENATE_BASE_AND_DATA, CKM_CONCATENATE_BASE_AND_KEY,
    CKM_CONCATENATE_DATA_AND_BASE, CKM_EXTRACT_KEY_FROM_KEY, CKM_XOR_BASE_AND_DATA,
};
use serde_json::Value;

use crate::bench::{
    Bench, alone, bytes, code, mechanism_type, numbered, pan_field, pin_object, vectors, xor,
};

fn only(mechanism: MechanismType) -> Attribute {
    Attribute::AllowedMechanisms(vec![mechanism])
}

fn good(from: u64, to: u64) -> Vec<Value> {
    let mut found = vectors("pin_translation.json");
    let zone = |v: &Value| v["in"]["key"].is_string() && v["out"]["key"].is_string();
    let fits = |v: &Value| v["in"]["format"] == from && v["out"]["format"] == to;
    found.retain(|v| v["result"] == "ok" && zone(v) && fits(v));
    assert!(!found.is_empty());
    found
}

#[test]
fn iso_0_becomes_iso_0_by_unwrap_and_wrap_alone() {
    alone("emulation::iso_0_becomes_iso_0_by_unwrap_and_wrap_alone", |bench| {
        let ways = [
            (Mechanism::Des3Ecb, MechanismType::DES3_ECB),
            (Mechanism::Des3Cbc([0; 8]), MechanismType::DES3_CBC),
        ];
        for v in good(0, 0) {
            for (way, kind) in &ways {
                let (inside, outside) = (&v["in"], &v["out"]);
                let uses = [Attribute::Unwrap(true), only(*kind)];
                let inbound = bench.cipher_key(&bytes(&inside["key"]), true, &uses);
                let uses = [Attribute::Wrap(true), only(*kind)];
                let outbound = bench.cipher_key(&bytes(&outside["key"]), true, &uses);
                let block = bytes(&inside["block"]);

                let pin =
                    bench.session.unwrap_key(way, inbound, &block, &pin_object(None)).unwrap();
                let translated = bench.session.wrap_key(way, outbound, pin).unwrap();
                bench.session.destroy_object(pin).unwrap();

                assert_eq!(translated, bytes(&outside["block"]), "{}", v["id"]);
                let gone = code(bench.session.wrap_key(way, outbound, pin));
                assert!(matches!(gone, RvError::KeyHandleInvalid | RvError::ObjectHandleInvalid));
            }
        }
    });
}

/// Recipe 3.2: the outer layer by C_Decrypt and C_Encrypt, the inner one by unwrap and wrap.
#[test]
fn iso_4_becomes_iso_4_with_the_clear_field_in_an_object() {
    alone("emulation::iso_4_becomes_iso_4_with_the_clear_field_in_an_object", |bench| {
        for v in good(4, 4) {
            let (inside, outside) = (&v["in"], &v["out"]);
            let ecb = only(MechanismType::AES_ECB);
            let uses = [Attribute::Unwrap(true), Attribute::Decrypt(true), ecb.clone()];
            let inbound = bench.cipher_key(&bytes(&inside["key"]), false, &uses);
            let uses = [Attribute::Wrap(true), Attribute::Encrypt(true), ecb];
            let outbound = bench.cipher_key(&bytes(&outside["key"]), false, &uses);
            let field = pan_field(4, inside["pan"].as_str().unwrap());
            let session = &bench.session;
            let way = Mechanism::AesEcb;

            let outer = session.decrypt(&way, inbound, &bytes(&inside["block"])).unwrap();
            let template = pin_object(Some(16));
            let pin = session.unwrap_key(&way, inbound, &xor(&outer, &field), &template).unwrap();
            let inner = session.wrap_key(&way, outbound, pin).unwrap();
            let block = session.encrypt(&way, outbound, &xor(&inner, &field)).unwrap();

            let key = bench.cipher_key(&bytes(&outside["key"]), false, &[Attribute::Decrypt(true)]);
            let outer = session.decrypt(&way, key, &block).unwrap();
            let clear = hex::encode(session.decrypt(&way, key, &xor(&outer, &field)).unwrap());
            let digits = v["clear_pin"].as_str().unwrap();
            assert!(clear.starts_with(&format!("4{:x}{digits}a", digits.len())), "{}", v["id"]);
        }
    });
}

#[test]
fn a_value_is_cut_to_the_length_that_is_asked_for_and_filled_when_it_is_wrapped() {
    alone(
        "emulation::a_value_is_cut_to_the_length_that_is_asked_for_and_filled_when_it_is_wrapped",
        |bench| {
            let uses = [Attribute::Unwrap(true), Attribute::Wrap(true)];
            let key = bench.key(KeyType::AES, &[9; 16], &uses);
            let clear = bench.key(KeyType::AES, &[9; 16], &[Attribute::Decrypt(true)]);
            let (session, ecb) = (&bench.session, Mechanism::AesEcb);
            let iv = Mechanism::AesCbc([3; 16]);
            let whole = bench.key(
                KeyType::GENERIC_SECRET,
                b"0123456789abcdef",
                &[Attribute::Extractable(true)],
            );
            let wrapped = session.wrap_key(&ecb, key, whole).unwrap();

            for (length, wanted) in [(1, "0"), (8, "01234567"), (16, "0123456789abcdef")] {
                let template = pin_object(Some(length));
                let cut = session.unwrap_key(&ecb, key, &wrapped, &template).unwrap();
                let said = session.get_attributes(cut, &[AttributeType::ValueLen]).unwrap();
                let again = session.wrap_key(&iv, key, cut).unwrap();

                let filled = session.decrypt(&iv, clear, &again).unwrap();
                assert_eq!(said, [Attribute::ValueLen(length.into())]);
                assert_eq!(&filled[..wanted.len()], wanted.as_bytes());
                assert!(filled[wanted.len()..].iter().all(|byte| *byte == 0), "{filled:?}");
            }
            let long = session.unwrap_key(&ecb, key, &wrapped, &pin_object(Some(17)));
            assert_eq!(code(long), RvError::AttributeValueInvalid);
            let odd = session.unwrap_key(&ecb, key, &wrapped[1..], &pin_object(None));
            assert_eq!(code(odd), RvError::WrappedKeyLenRange);
        },
    );
}

#[test]
fn keys_are_derived_from_values_that_stay_inside() {
    alone("emulation::keys_are_derived_from_values_that_stay_inside", |bench| {
        let session = &bench.session;
        let uses = [Attribute::Derive(true), Attribute::Extractable(true)];
        let base = bench.key(KeyType::GENERIC_SECRET, b"01234567", &uses);
        let second = bench.key(KeyType::GENERIC_SECRET, b"SECOND", &[Attribute::Extractable(true)]);
        let mut text = *b"ABCDEFGH";
        let data = CK_KEY_DERIVATION_STRING_DATA { pData: text.as_mut_ptr(), ulLen: 8 };
        let handle = second.handle();
        let bit = 12_u64;
        let cases: [(Mechanism<'_>, Option<u64>, &[u8]); 6] = [
            (numbered(CKM_XOR_BASE_AND_DATA, Some(&data)), None, b"qsqwqsq\x7f"),
            (numbered(CKM_CONCATENATE_BASE_AND_DATA, Some(&data)), None, b"01234567ABCDEFGH"),
            (numbered(CKM_CONCATENATE_BASE_AND_DATA, Some(&data)), Some(9), b"01234567A"),
            (numbered(CKM_CONCATENATE_DATA_AND_BASE, Some(&data)), None, b"ABCDEFGH01234567"),
            (numbered(CKM_CONCATENATE_BASE_AND_KEY, Some(&handle)), None, b"01234567SECOND"),
            (numbered(CKM_EXTRACT_KEY_FROM_KEY, Some(&bit)), Some(2), &[0x13, 0x23]),
        ];
        for (mechanism, length, wanted) in cases {
            let derived = session.derive_key(&mechanism, base, &pin_object(length)).unwrap();

            assert_eq!(value(bench, derived)[..wanted.len()], *wanted, "{mechanism:?}");
        }
    });
}

#[test]
fn a_derived_key_is_not_more_open_than_its_base() {
    alone("emulation::a_derived_key_is_not_more_open_than_its_base", |bench| {
        let concatenate = mechanism_type(CKM_CONCATENATE_BASE_AND_KEY);
        let uses = [Attribute::Derive(true), Attribute::Extractable(false), only(concatenate)];
        let secret = bench.key(KeyType::GENERIC_SECRET, &[5; 16], &uses);
        let pin = bench.key(KeyType::GENERIC_SECRET, b"1234", &[Attribute::Extractable(true)]);
        let handle = pin.handle();
        let join = numbered(CKM_CONCATENATE_BASE_AND_KEY, Some(&handle));
        let derive = |extractable| {
            let template = [
                Attribute::Class(ObjectClass::SECRET_KEY),
                Attribute::KeyType(KeyType::GENERIC_SECRET),
                Attribute::Sensitive(true),
                Attribute::Extractable(extractable),
                Attribute::Sign(true),
                Attribute::Token(false),
            ];
            bench.session.derive_key(&join, secret, &template)
        };

        let open = code(derive(true));
        let closed = derive(false).unwrap();

        assert_eq!(open, RvError::TemplateInconsistent);
        let joined: Vec<u8> = [&[5; 16][..], b"1234"].concat();
        let joined = bench.key(KeyType::GENERIC_SECRET, &joined, &[Attribute::Sign(true)]);
        let mac = |key| code_or(bench.session.sign(&Mechanism::Sha256Hmac, key, b"pan"));
        assert_eq!(mac(closed), mac(joined));
        let data = 3_u64;
        let other = numbered(CKM_EXTRACT_KEY_FROM_KEY, Some(&data));
        let refused = bench.session.derive_key(&other, secret, &pin_object(Some(1)));
        assert_eq!(code(refused), RvError::MechanismInvalid);
    });
}

#[test]
fn what_a_strict_token_refuses_is_refused() {
    alone("emulation::what_a_strict_token_refuses_is_refused", |bench| {
        let (session, ecb) = (&bench.session, Mechanism::Des3Ecb);
        let value: Vec<u8> = (0..24).collect();
        let key = |more: &[Attribute]| bench.key(KeyType::DES3, &value, more);
        let ecb_only = only(MechanismType::DES3_ECB);
        let unwraps = key(&[Attribute::Unwrap(true), ecb_only.clone()]);
        let wraps = key(&[Attribute::Wrap(true), ecb_only.clone()]);
        let trusted = key(&[Attribute::Wrap(true), ecb_only.clone(), Attribute::Trusted(true)]);
        let none = key(std::slice::from_ref(&ecb_only));
        let pin = |more: &[Attribute]| bench.key(KeyType::GENERIC_SECRET, &[1; 8], more);
        let free = pin(&[Attribute::Extractable(true)]);
        let closed = pin(&[Attribute::Extractable(false)]);
        let guarded = pin(&[Attribute::Extractable(true), Attribute::WrapWithTrusted(true)]);
        let cbc = Mechanism::Des3Cbc([0; 8]);
        let unwrap = |by: &Mechanism<'_>, key: ObjectHandle| {
            code(session.unwrap_key(by, key, &[0; 8], &pin_object(None)))
        };
        let wrap = |by: &Mechanism<'_>, key, object| code(session.wrap_key(by, key, object));

        assert_eq!(unwrap(&ecb, none), RvError::KeyFunctionNotPermitted);
        assert_eq!(unwrap(&ecb, wraps), RvError::KeyFunctionNotPermitted);
        assert_eq!(unwrap(&cbc, unwraps), RvError::MechanismInvalid);
        assert_eq!(unwrap(&Mechanism::AesEcb, unwraps), RvError::MechanismInvalid);
        assert_eq!(wrap(&ecb, unwraps, free), RvError::KeyFunctionNotPermitted);
        assert_eq!(wrap(&cbc, wraps, free), RvError::MechanismInvalid);
        assert_eq!(wrap(&ecb, wraps, closed), RvError::KeyUnextractable);
        assert_eq!(wrap(&ecb, wraps, guarded), RvError::KeyNotWrappable);
        assert!(session.wrap_key(&ecb, wraps, free).is_ok());
        assert_eq!(
            session.wrap_key(&ecb, trusted, guarded).unwrap(),
            session.wrap_key(&ecb, wraps, free).unwrap()
        );
        let aes = bench.key(KeyType::AES, &value, &[Attribute::Wrap(true)]);
        assert_eq!(wrap(&ecb, aes, free), RvError::WrappingKeyTypeInconsistent);
    });
}

/// The value of an object that may be wrapped.
fn value(bench: &Bench, object: ObjectHandle) -> Vec<u8> {
    let both = [Attribute::Wrap(true), Attribute::Decrypt(true)];
    let key = bench.key(KeyType::AES, &[1; 16], &both);
    let wrapped = bench.session.wrap_key(&Mechanism::AesEcb, key, object).unwrap();
    bench.session.decrypt(&Mechanism::AesEcb, key, &wrapped).unwrap()
}

fn code_or(outcome: Result<Vec<u8>, cryptoki::error::Error>) -> Result<Vec<u8>, RvError> {
    outcome.map_err(|error| code(Err::<(), _>(error)))
}
