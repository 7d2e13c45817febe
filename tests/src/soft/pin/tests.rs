//! Every PIN block vector, both ways, and the refusals.

use super::*;
use crate::soft::{dukpt_aes, dukpt_tdes};
use crate::vectors::{self, Vector};

#[test]
fn formats_0_1_and_3_encode_encipher_and_decode_as_every_vector_says() {
    let files = [
        ("pinblock_iso0", PinFormat::Iso0),
        ("pinblock_iso1", PinFormat::Iso1),
        ("pinblock_iso3", PinFormat::Iso3),
    ];

    for (file, format) in files {
        for v in vectors::load(file) {
            let (pin, pan, key) = (v.text("pin"), v.find("pan").unwrap_or(""), v.hex("key"));

            let clear = clear_block(format, pin, pan, v.find("fill").unwrap_or("")).unwrap();
            let block = encipher(format, &key, pan, &clear).unwrap();

            assert_eq!(clear, v.hex("clear_block"), "{v}");
            assert_eq!(block, v.hex("encrypted_block"), "{v}");
            assert_eq!(decipher(format, &key, pan, &block).unwrap(), clear, "{v}");
            assert_eq!(pin_of(format, pan, &clear).as_deref(), Ok(pin), "{v}");
        }
    }
}

#[test]
fn format_4_makes_both_aes_passes_as_every_vector_says() {
    for v in vectors::load("pinblock_iso4") {
        let (pin, pan, key) = (v.text("pin"), v.text("pan"), v.hex("key"));

        let field = clear_block(PinFormat::Iso4, pin, pan, v.text("random")).unwrap();
        let first = aes_encrypt_block(&key, sized(&field).unwrap()).unwrap();
        let block = encipher(PinFormat::Iso4, &key, pan, &field).unwrap();

        assert_eq!(field, v.hex("pin_field"), "{v}");
        assert_eq!(first[..], v.hex("intermediate_a"), "{v}");
        let mixed = xor(first, iso4_pan_field(pan).unwrap());
        assert_eq!(mixed[..], v.hex("intermediate_b"), "{v}");
        assert_eq!(block, v.hex("encrypted_block"), "{v}");
        assert_eq!(open_pin(PinFormat::Iso4, &key, pan, &block).as_deref(), Ok(pin), "{v}");
    }
}

#[test]
fn every_invalid_block_fails_the_check_that_its_vector_names() {
    for v in vectors::load("pinblock_invalid") {
        let clear = v.hex("clear_block");

        let refusal = pin_of(format_of(&v), v.find("pan").unwrap_or(""), &clear).unwrap_err();

        assert_eq!(refusal.check(), v.text("error"), "{v}");
    }
}

#[test]
fn every_translation_from_zone_key_or_terminal_gives_the_block_of_its_vector() {
    let good = |v: &Vector| v.text("result") == "ok";
    let vectors: Vec<_> = vectors::load("pin_translation").into_iter().filter(good).collect();
    assert_eq!(vectors.len(), 21, "translations in pin_translation.json");

    for v in vectors {
        let (from, to) = (v.part("in"), v.part("out"));
        let (pan_in, pan_out) = (from.find("pan").unwrap_or(""), to.text("pan"));
        let fill = to.find("fill").or(to.find("random")).unwrap_or("");

        let pin = open_pin(format_of(&from), &key_of(&from), pan_in, &from.hex("block"));
        let pin = pin.unwrap_or_else(|refusal| panic!("{v}: {refusal}"));
        let clear = clear_block(format_of(&to), &pin, pan_out, fill).unwrap();
        let block = encipher(format_of(&to), &to.hex("key"), pan_out, &clear).unwrap();

        assert_eq!(pin, v.text("clear_pin"), "{v}");
        assert_eq!(block, to.hex("block"), "{v}");
    }
}

#[test]
fn every_undecodable_translation_fails_the_check_that_its_vector_names() {
    let undecodable = |v: &Vector| v.find("error") == Some("pin_block_invalid");
    let vectors: Vec<_> =
        vectors::load("pin_translation").into_iter().filter(undecodable).collect();
    assert_eq!(vectors.len(), 3, "undecodable blocks in pin_translation.json");

    for v in vectors {
        let from = v.part("in");

        let refusal =
            open_pin(format_of(&from), &from.hex("key"), from.text("pan"), &from.hex("block"));

        assert_eq!(refusal.unwrap_err().check(), v.text("detail"), "{v}");
    }
}

#[test]
fn fresh_filler_decodes_in_every_format_and_length_and_differs_each_time() {
    let pan = "4761737909457820";

    for format in [PinFormat::Iso0, PinFormat::Iso1, PinFormat::Iso3, PinFormat::Iso4] {
        for digits in 4..=12 {
            let pin = &"123456789012"[..digits];
            let key = [0x5A; 16];

            let block = seal_pin(format, &key, pan, pin).unwrap();
            let again = seal_pin(format, &key, pan, pin).unwrap();

            assert_eq!(open_pin(format, &key, pan, &block).as_deref(), Ok(pin), "{format}");
            let fixed = format == PinFormat::Iso0 || digits > 10;
            assert!(fixed || block != again, "{format} with {digits} digits repeated its filler");
        }
    }
}

#[test]
fn an_impossible_pin_filler_or_format_is_refused() {
    let pan = "4761737909457820";
    let encode = |format, pin, fill| clear_block(format, pin, pan, fill).unwrap_err();

    assert_eq!(encode(PinFormat::Iso0, "123", ""), SoftError::Length);
    assert_eq!(encode(PinFormat::Iso0, "1234567890123", ""), SoftError::Length);
    assert_eq!(encode(PinFormat::Iso0, "12a4", ""), SoftError::Digit);
    assert_eq!(encode(PinFormat::Iso0, "1234", "FFFFFFFFFF"), SoftError::Filler);
    assert_eq!(encode(PinFormat::Iso1, "1234", "FFF"), SoftError::Filler);
    assert_eq!(encode(PinFormat::Iso3, "1234", "ABCDEF0123"), SoftError::Filler);
    assert_eq!(encode(PinFormat::Iso4, "1234", "00112233"), SoftError::Filler);
    assert_eq!("iso2".parse::<PinFormat>(), Err(SoftError::Format));
}

/// The zone key of a side, or the PIN key of its DUKPT transaction.
fn key_of(side: &Vector) -> Vec<u8> {
    if side.has("key") {
        return side.hex("key");
    }
    let dukpt = side.part("dukpt");
    let (bdk, ksn) = (dukpt.hex("bdk"), dukpt.text("ksn"));
    if dukpt.text("type") == "AES" {
        assert_eq!(dukpt.text("key_type"), "AES128", "{dukpt}");
        let (usage, size) = (dukpt_aes::Usage::PinEncryption, dukpt_aes::KeyType::Aes128);
        let ksn = dukpt_aes::ksn(ksn).unwrap();
        return dukpt_aes::working_key_of_bdk(&bdk, &ksn, usage, size).unwrap();
    }
    let ksn = dukpt_tdes::ksn(ksn).unwrap();
    let initial = dukpt_tdes::initial_key(&bdk.try_into().unwrap(), &ksn).unwrap();
    dukpt_tdes::pin_key(&dukpt_tdes::transaction_key(&initial, &ksn).unwrap()).to_vec()
}

fn format_of(v: &Vector) -> PinFormat {
    format!("iso{}", v.number("format")).parse().unwrap_or_else(|refusal| panic!("{v}: {refusal}"))
}
