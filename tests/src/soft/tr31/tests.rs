//! Every key block vector, opened and sealed again, and what is wrong in one place.

use super::*;
use crate::soft::SoftError;
use crate::vectors::{self, Vector};

#[test]
fn every_good_block_opens_to_the_key_and_header_of_its_vector() {
    for v in good() {
        let (block, key) = KeyBlock::unwrap(&v.hex("kbpk"), v.text("key_block"))
            .unwrap_or_else(|refusal| panic!("{v}: {refusal}"));

        assert_eq!(key, v.hex("key"), "{v}");
        assert_eq!(block.version.to_string(), v.text("version_id"), "{v}");
        assert_eq!(block.usage, v.text("key_usage"), "{v}");
        assert_eq!(block.algorithm.to_string(), v.text("algorithm"), "{v}");
        assert_eq!(block.mode.to_string(), v.text("mode_of_use"), "{v}");
        assert_eq!(block.key_version, v.text("key_version"), "{v}");
        assert_eq!(block.exportability.to_string(), v.text("exportability"), "{v}");
        let optional = v.part("optional_blocks");
        let expected: Vec<_> =
            optional.names().map(|id| (id.to_owned(), optional.text(id).to_owned())).collect();
        // The vectors leave out the padding block.
        let kept: Vec<_> = block.optional.iter().filter(|(id, _)| id != "PB").cloned().collect();
        assert_eq!(kept, expected, "{v}");
    }
}

#[test]
fn every_good_block_sealed_again_is_the_same_text() {
    for v in good() {
        let (kbpk, text) = (v.hex("kbpk"), v.text("key_block"));

        let (block, payload) = KeyBlock::open(&kbpk, text).unwrap();
        let header = block.header(payload.len()).unwrap();

        assert_eq!(seal(block.version, &kbpk, &header, &payload).as_deref(), Ok(text), "{v}");
    }
}

#[test]
fn every_check_value_of_the_vectors_holds() {
    let vectors: Vec<_> = good().into_iter().filter(|v| v.has("kcv")).collect();
    assert_eq!(vectors.len(), 7, "check values in tr31.json");

    for v in vectors {
        let (block, key) = KeyBlock::unwrap(&v.hex("kbpk"), v.text("key_block")).unwrap();

        assert_eq!(block.kcv(&key).unwrap(), v.hex("kcv")[..3], "{v}");
    }
}

#[test]
fn every_bad_block_is_refused_for_the_reason_of_its_vector() {
    let bad = vectors::load("tr31").into_iter().filter(|v| v.text("result") == "error");
    let bad: Vec<_> = bad.collect();
    assert_eq!(bad.len(), 5, "refusals in tr31.json");

    for v in bad {
        let refusal = KeyBlock::unwrap(&v.hex("kbpk"), v.text("key_block")).unwrap_err();

        let expected = match v.text("error").split(' ').next() {
            Some("mac") => Refusal::Mac,
            Some("length") => Refusal::Length,
            Some("version") => Refusal::Version,
            other => panic!("{v}: unknown reason {other:?}"),
        };
        assert_eq!(refusal, expected, "{v}");
    }
}

#[test]
fn what_is_wrapped_comes_back_under_every_version_and_protection_key() {
    let sizes = [
        (Version::A, &[16, 24][..]),
        (Version::B, &[16, 24]),
        (Version::C, &[16, 24]),
        (Version::D, &[16, 24, 32]),
    ];
    let long = "x".repeat(300);

    for (version, kbpk_sizes) in sizes {
        for kbpk_bytes in kbpk_sizes {
            let kbpk: Vec<u8> = (1..).take(*kbpk_bytes).collect();
            for (key_bytes, data) in [(8, ""), (16, "1"), (24, "12345678"), (32, &long)] {
                let key = vec![0x5A; key_bytes];
                let mut block = KeyBlock::new(version, "P0", 'A', 'E');
                block.optional = vec![("KP".into(), data.into()), ("LB".into(), "zone".into())];

                let text = block.wrap(&kbpk, &key).unwrap();
                let (back, again) = KeyBlock::unwrap(&kbpk, &text).unwrap();

                assert_eq!(again, key, "{version} {kbpk_bytes} {key_bytes}");
                assert_eq!(back.optional[..2], block.optional, "{version}");
                assert!(back.optional[2..].iter().all(|(id, _)| id == "PB"), "{version}");
            }
        }
    }
}

#[test]
fn a_changed_character_anywhere_is_refused() {
    for version in [Version::A, Version::B, Version::C, Version::D] {
        let mut block = KeyBlock::new(version, "P0", 'T', 'B');
        block.optional = vec![("LB".into(), "zone".into())];
        let text = block.wrap(&[0x31; 16], &[0x5A; 16]).unwrap();

        for place in 0..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[place] = if changed[place] == b'1' { b'2' } else { b'1' };
            let changed = String::from_utf8(changed).unwrap();

            let answer = KeyBlock::unwrap(&[0x31; 16], &changed);

            assert!(answer.is_err(), "{version}: {place} of {text} may change");
        }
    }
}

#[test]
fn version_e_and_every_unknown_version_are_refused_by_name() {
    let text = KeyBlock::new(Version::D, "P0", 'A', 'B').wrap(&[1; 32], &[2; 16]).unwrap();

    for version in ["E", "Z", "a", "é"] {
        let other = format!("{version}{}", &text[1..]);
        assert_eq!(KeyBlock::unwrap(&[1; 32], &other), Err(Refusal::Version), "{version}");
    }
    assert_eq!(KeyBlock::unwrap(&[1; 32], ""), Err(Refusal::Version));
}

#[test]
fn a_header_that_lies_is_refused_though_its_mac_is_right() {
    let kbpk = [0x31; 32];
    let payload = payload(&[0x5A; 16], 16).unwrap();
    let header = KeyBlock::new(Version::D, "P0", 'A', 'B').header(payload.len()).unwrap();
    let sealed = |header: &str, payload: &[u8]| {
        KeyBlock::unwrap(&kbpk, &seal(Version::D, &kbpk, header, payload).unwrap())
    };
    assert!(sealed(&header, &payload).is_ok());

    let counted = |count: &str| format!("{}{count}{}", &header[..12], &header[14..]);
    assert_eq!(sealed(&counted("01"), &payload), Err(Refusal::Form), "no such optional block");
    assert_eq!(sealed(&counted("-1"), &payload), Err(Refusal::Form), "no number");
    assert_eq!(sealed("D9999P0AB00E0000", &payload), Err(Refusal::Length));
    assert_eq!(sealed("D+112P0AB00E0000", &payload), Err(Refusal::Length));
    // Whole blocks are what the optional blocks must fill.
    assert_eq!(sealed("D0120P0AB00E0100LB08zone", &payload), Err(Refusal::Form));
    // A block of no length would never end, one of 2 would bite into its own head.
    assert_eq!(sealed("D0128P0AB00E0100LB02567890123456", &payload), Err(Refusal::Form));
    assert_eq!(sealed("D0128P0AB00E0100LB00000000000000", &payload), Err(Refusal::Form));

    assert_eq!(sealed("D0128P0AB00E0100LB+4567890123456", &payload), Err(Refusal::Form));

    let lengths = [0, 1, 127, 129, 256, u16::MAX];
    for bits in lengths {
        let lying = [&bits.to_be_bytes()[..], &payload[2..]].concat();
        assert_eq!(sealed(&header, &lying), Err(Refusal::Payload), "{bits} bits");
    }
}

#[test]
fn small_letters_in_the_hex_are_refused() {
    let text = KeyBlock::new(Version::D, "P0", 'A', 'B').wrap(&[1; 32], &[2; 16]).unwrap();

    let small = format!("{}{}", &text[..16], text[16..].to_ascii_lowercase());

    assert_eq!(KeyBlock::unwrap(&[1; 32], &small), Err(Refusal::Form));
}

#[test]
fn a_protection_key_of_another_size_is_refused() {
    for (version, bytes) in [(Version::A, 8), (Version::B, 32), (Version::C, 17), (Version::D, 8)] {
        let refused = KeyBlock::new(version, "P0", 'T', 'B').wrap(&vec![1; bytes], &[2; 16]);

        assert_eq!(refused, Err(Refusal::Key(SoftError::KeySize { bytes })), "{version}");
    }
}

fn good() -> Vec<Vector> {
    let good: Vec<_> =
        vectors::load("tr31").into_iter().filter(|v| v.text("result") == "ok").collect();
    assert_eq!(good.len(), 26, "good blocks in tr31.json");
    good
}
