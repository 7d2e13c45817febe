//! Every key, PIN block and MAC of the vectors, and the refusals.

use super::*;
use crate::soft::mac::cmac_aes;
use crate::soft::pin::{PinFormat, clear_block, encipher};
use crate::vectors::{self, Vector};

#[test]
fn every_published_initial_and_transaction_key_is_derived() {
    for v in vectors::load("dukpt_aes") {
        let ksn = ksn(v.text("ksn")).unwrap();

        let initial = initial_key(&v.hex("bdk"), &ksn).unwrap();

        assert_eq!(initial, v.hex("initial_key"), "{v}");
        if v.has("transaction_key") {
            let key = transaction_key(&initial, &ksn).unwrap();
            assert_eq!(key, v.hex("transaction_key"), "{v}");
        }
    }
}

#[test]
fn every_published_working_key_is_derived() {
    let mut compared = 0;

    for v in vectors::load("dukpt_aes").iter().filter(|v| v.has("working_keys")) {
        for w in v.list("working_keys") {
            let key = derived(v, usage_of(&w), key_type_of(&w));

            assert_eq!(key, w.hex("key"), "{w}");
            compared += 1;
        }
    }
    assert_eq!(compared, 143, "working keys in dukpt_aes.json");
}

#[test]
fn every_published_pin_block_and_mac_is_made_with_them() {
    for v in vectors::load("dukpt_aes") {
        if v.has("pin_block") {
            let p = v.part("pin_block");
            let (pin, pan) = (p.text("pin"), p.text("pan"));

            let key = derived(&v, Usage::PinEncryption, key_type_of(&p));
            let field = clear_block(PinFormat::Iso4, pin, pan, p.text("random")).unwrap();
            let block = encipher(PinFormat::Iso4, &key, pan, &field).unwrap();

            assert_eq!(block, p.hex("encrypted_block"), "{p}");
        }
        if v.has("cmac") {
            let c = v.part("cmac");

            let key = derived(&v, Usage::MacGeneration, key_type_of(&c));

            assert_eq!(cmac_aes(&key, &c.hex("message")).unwrap()[..], c.hex("mac"), "{c}");
        }
    }
}

#[test]
fn every_published_update_key_is_derived() {
    let vectors = vectors::load("dukpt_aes");
    let updates: Vec<_> = vectors.iter().filter(|v| v.has("update_key")).collect();
    assert_eq!(updates.len(), 2, "update keys in dukpt_aes.json");

    for v in updates {
        let ksn = ksn(v.text("ksn")).unwrap();
        assert_eq!(v.text("update_key_type"), "AES128", "{v}");

        let key = update_key(&v.hex("initial_key"), &ksn, KeyType::Aes128).unwrap();

        assert_eq!(key, v.hex("update_key"), "{v}");
    }
}

#[test]
fn a_counter_of_no_or_of_seventeen_one_bits_is_refused() {
    let derive = |text| transaction_key(&[7; 16], &ksn(text).unwrap());

    assert_eq!(derive("123456789012345600000000"), Err(SoftError::Counter));
    assert_eq!(derive("12345678901234560001FFFF"), Err(SoftError::Counter));
    assert_eq!(derive("1234567890123456FFFF8000"), Err(SoftError::Counter));
    assert!(derive("1234567890123456FFFF0000").is_ok());
}

#[test]
fn a_working_key_longer_than_its_bdk_is_refused() {
    let ksn = ksn("123456789012345600000001").unwrap();
    let derive = |bdk, key_type| working_key_of_bdk(bdk, &ksn, Usage::PinEncryption, key_type);

    assert_eq!(derive(&[7; 16], KeyType::Aes192), Err(SoftError::KeyType));
    assert_eq!(derive(&[7; 24], KeyType::Aes256), Err(SoftError::KeyType));
    assert_eq!(derive(&[7; 32], KeyType::Aes256).map(|key| key.len()), Ok(32));
    assert_eq!(derive(&[7; 15], KeyType::Aes128), Err(SoftError::KeySize { bytes: 15 }));
}

#[test]
fn a_serial_number_of_another_length_is_refused() {
    for text in ["", "1234567890123456000001", "FFFF9876543210E00001", "12345678901234560000000G"] {
        assert_eq!(ksn(text), Err(SoftError::Ksn), "{text:?}");
    }
}

fn derived(v: &Vector, usage: Usage, key_type: KeyType) -> Vec<u8> {
    working_key_of_bdk(&v.hex("bdk"), &ksn(v.text("ksn")).unwrap(), usage, key_type).unwrap()
}

fn usage_of(v: &Vector) -> Usage {
    match v.text("usage") {
        "pin" => Usage::PinEncryption,
        "mac_generation" => Usage::MacGeneration,
        "mac_verification" => Usage::MacVerification,
        "mac_both" => Usage::MacBoth,
        "data_encrypt" => Usage::DataEncryption,
        "data_decrypt" => Usage::DataDecryption,
        "data_both" => Usage::DataBoth,
        other => panic!("{v}: unknown usage {other}"),
    }
}

fn key_type_of(v: &Vector) -> KeyType {
    match v.text("key_type") {
        "AES128" => KeyType::Aes128,
        "AES192" => KeyType::Aes192,
        "AES256" => KeyType::Aes256,
        other => panic!("{v}: unknown key type {other}"),
    }
}
