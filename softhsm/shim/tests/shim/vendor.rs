//! The two mechanisms of a vendor.

use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeInfo, AttributeType, KeyType, ObjectHandle};
use serde_json::Value;

use crate::bench::{Bench, alone, bytes, code, mechanism_type, numbered, pan_field, vectors, xor};

const TRANSLATE: u64 = 0x8000_0201;
const RETAIL_MAC: u64 = 0x8000_0135;

/// Layout `pin-translate-1`, written anew from its description.
#[repr(C)]
struct Parameter {
    outbound: u64,
    from: u8,
    to: u8,
    length: u8,
    pan: [u8; 19],
    padding: [u8; 2],
}

impl Parameter {
    fn new(outbound: ObjectHandle, from: u64, to: u64, pan: &str) -> Self {
        let mut digits = [0; 19];
        digits[..pan.len()].copy_from_slice(pan.as_bytes());
        Self {
            outbound: outbound.handle(),
            from: from as u8,
            to: to as u8,
            length: pan.len() as u8,
            pan: digits,
            padding: [0; 2],
        }
    }
}

fn key(bench: &Bench, side: &Value) -> ObjectHandle {
    let only = Attribute::AllowedMechanisms(vec![mechanism_type(TRANSLATE)]);
    let tdes = side["key_algorithm"] == "TDES";
    bench.cipher_key(&bytes(&side["key"]), tdes, &[only])
}

fn translate(bench: &Bench, v: &Value) -> Result<Vec<u8>, Error> {
    let (inside, outside) = (&v["in"], &v["out"]);
    let format = |side: &Value| side["format"].as_u64().unwrap();
    let pan = outside["pan"].as_str().or(inside["pan"].as_str()).unwrap_or("4761737909457820");
    let parameter = Parameter::new(key(bench, outside), format(inside), format(outside), pan);
    let by = numbered(TRANSLATE, Some(&parameter));
    bench.session.decrypt(&by, key(bench, inside), &bytes(&inside["block"]))
}

/// The digits in a clear block, by the token's own deciphering.
fn opened(bench: &Bench, side: &Value, block: &[u8]) -> String {
    let format = side["format"].as_u64().unwrap();
    let tdes = format != 4;
    let way = if tdes { Mechanism::Des3Ecb } else { Mechanism::AesEcb };
    let key = bench.cipher_key(&bytes(&side["key"]), tdes, &[Attribute::Decrypt(true)]);
    let field = side["pan"].as_str().map(|pan| pan_field(format, pan)).unwrap_or(vec![0; 8]);
    let mut clear = bench.session.decrypt(&way, key, block).unwrap();
    clear = xor(&clear, &field);
    if !tdes {
        clear = bench.session.decrypt(&way, key, &clear).unwrap();
    }
    let text = hex::encode(clear);
    assert!(text.starts_with(&format.to_string()), "{text}");
    let length = usize::from_str_radix(&text[1..2], 16).unwrap();
    text[2..2 + length].to_owned()
}

#[test]
fn pin_blocks_are_translated_as_their_vectors_say() {
    alone("vendor::pin_blocks_are_translated_as_their_vectors_say", |bench| {
        let mut good = 0;
        for v in vectors("pin_translation.json") {
            // The others have DUKPT keys.
            if !(v["in"]["key"].is_string() && v["out"]["key"].is_string()) {
                continue;
            }
            let outcome = translate(bench, &v);
            match v["error"].as_str() {
                None => {
                    let block = outcome.unwrap_or_else(|error| panic!("{}: {error}", v["id"]));
                    if v["out"]["format"] == 0 {
                        assert_eq!(block, bytes(&v["out"]["block"]), "{}", v["id"]);
                    }
                    assert_eq!(opened(bench, &v["out"], &block), v["clear_pin"], "{}", v["id"]);
                    good += 1;
                }
                Some("format_not_allowed") => {
                    assert_eq!(code(outcome), RvError::MechanismParamInvalid, "{}", v["id"]);
                }
                Some("key_format_mismatch") => {
                    assert_eq!(code(outcome), RvError::KeyTypeInconsistent, "{}", v["id"]);
                }
                Some("pin_block_invalid") => {
                    assert_eq!(code(outcome), RvError::EncryptedDataInvalid, "{}", v["id"]);
                }
                // A parameter has one PAN: a change of it cannot be said.
                Some("pan_change") => {}
                Some(other) => panic!("{other}"),
            }
        }
        assert!(good >= 16, "{good}");
    });
}

#[test]
fn a_malformed_block_has_one_answer_and_the_session_goes_on() {
    alone("vendor::a_malformed_block_has_one_answer_and_the_session_goes_on", |bench| {
        let good = &vectors("pin_translation.json")[0];
        for last in 0..32_u8 {
            let mut v = good.clone();
            let mut block = bytes(&v["in"]["block"]);
            block[7] ^= last + 1;
            v["in"]["block"] = hex::encode(block).into();

            assert_eq!(code(translate(bench, &v)), RvError::EncryptedDataInvalid);
        }
        let mut short = good.clone();
        short["in"]["block"] = "46CF9D38F2FDD3".into();
        assert_eq!(code(translate(bench, &short)), RvError::EncryptedDataLenRange);
        assert_eq!(translate(bench, good).unwrap(), bytes(&good["out"]["block"]));
    });
}

#[test]
fn a_vendor_key_says_no_use_and_does_nothing_else() {
    alone("vendor::a_vendor_key_says_no_use_and_does_nothing_else", |bench| {
        let v = &vectors("pin_translation.json")[0];
        let session = &bench.session;
        let vendor = key(bench, &v["in"]);
        let plain = bench.cipher_key(&bytes(&v["in"]["key"]), true, &[Attribute::Decrypt(true)]);
        let said = [AttributeType::Encrypt, AttributeType::Decrypt];

        let uses = session.get_attributes(vendor, &said).unwrap();
        // cryptoki has no name for the number; its length says that it is one.
        let allowed = [AttributeType::AllowedMechanisms];
        let allowed = session.get_attribute_info(vendor, &allowed).unwrap();
        let direct = session.decrypt(&Mechanism::Des3Ecb, vendor, &[0; 8]);
        let parameter = Parameter::new(vendor, 0, 0, "4761737909457820");
        let by = numbered(TRANSLATE, Some(&parameter));
        let other = session.decrypt(&by, plain, &[0; 8]);

        assert_eq!(uses, [Attribute::Encrypt(false), Attribute::Decrypt(false)]);
        assert!(matches!(allowed[..], [AttributeInfo::Available(8)]), "{allowed:?}");
        assert_eq!(code(direct), RvError::KeyFunctionNotPermitted);
        assert_eq!(code(other), RvError::MechanismInvalid);
        assert_eq!(
            code(session.decrypt(&numbered::<u64>(TRANSLATE, None), vendor, &[0; 8])),
            RvError::MechanismParamInvalid
        );
    });
}

#[test]
fn retail_macs_are_those_of_the_vectors() {
    alone("vendor::retail_macs_are_those_of_the_vectors", |bench| {
        let all = vectors("mac_iso9797_alg3.json");
        for v in &all {
            let value = bytes(&v["key"]);
            let uses = [
                Attribute::Sign(true),
                Attribute::Extractable(false),
                Attribute::AllowedMechanisms(vec![mechanism_type(RETAIL_MAC)]),
            ];
            let key = bench.cipher_key(&value, true, &uses);
            let padding = v["padding"].as_u64().unwrap() as u8;
            let by = numbered(RETAIL_MAC, Some(&padding));

            let mac = bench.session.sign(&by, key, &bytes(&v["message"])).unwrap();

            assert_eq!(mac, bytes(&v["mac_full"]), "{}", v["id"]);
            let said = bench.session.get_attributes(key, &[AttributeType::Extractable]).unwrap();
            assert_eq!(said, [Attribute::Extractable(false)]);
        }
        let key = bench.key(
            KeyType::DES3,
            &[1; 24],
            &[Attribute::Sign(true), Attribute::AllowedMechanisms(vec![MechanismType::DES3_ECB])],
        );
        let by = numbered(RETAIL_MAC, Some(&1_u8));
        assert_eq!(code(bench.session.sign(&by, key, b"x")), RvError::MechanismInvalid);
    });
}
