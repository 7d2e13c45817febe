//! No text leaves its place: 200 and more payloads × every field × every format.

use compliance::export::Format;
use proptest::prelude::*;
use serde_json::Value;

use crate::sample::{POINTERS, found, full, line, put, smallest};
use crate::{payloads, projected, read};

/// Nothing that a terminal or a line reader obeys is left as it was.
fn assert_shows(format: Format, text: &str) {
    let tab = if format == Format::Leef { Some('\t') } else { None };
    let obeyed = |character: char| {
        character.is_control() && Some(character) != tab
            || matches!(character, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    assert!(format == Format::Jsonl || !text.contains(obeyed), "{format}: {text:?}");
}

#[test]
fn no_payload_in_any_field_changes_another_or_itself() {
    let payloads = payloads::all();
    assert!(payloads.len() >= 200, "{}", payloads.len());
    let kinds = ["pin.translate", "key.import", "tls.reject", "queue.hold", "config.change"];
    for (place, payload) in payloads.iter().enumerate() {
        assert!(payload.chars().count() <= 128);
        for (name, pointer) in POINTERS {
            let mut record = full(kinds[place % kinds.len()]);
            put(&mut record, pointer, payload);
            for format in Format::ALL {
                let text = projected(*format, &line(&record));

                assert_shows(*format, &text);
                assert_eq!(read(*format, &text), found(&record), "{format} {name} {payload:?}");
            }
        }
    }
}

#[test]
fn a_payload_in_every_field_at_once_comes_back() {
    for payload in payloads::all().iter().filter(|payload| payload.chars().count() <= 12) {
        let mut record = full("audit.start");
        POINTERS.iter().for_each(|(_, pointer)| put(&mut record, pointer, payload));
        for format in Format::ALL {
            let text = projected(*format, &line(&record));

            assert_eq!(read(*format, &text), found(&record), "{format} {payload:?}");
        }
    }
}

fn hostile() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>().prop_map(|text| text.chars().take(128).collect()),
        "[\\\\=|\"\\]\\[%\t\n\r ,^a-z]{0,128}",
        "[\u{0}-\u{2100}]{0,100}",
    ]
}

fn put_all(record: &mut Value, texts: &[String]) {
    for ((_, pointer), text) in POINTERS.iter().zip(texts) {
        if record.pointer(pointer).is_some() {
            put(record, pointer, text);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_text_in_any_field_comes_back(text in hostile(), place in 0..POINTERS.len()) {
        let mut record = full("hsm.mode");
        put(&mut record, POINTERS[place].1, &text);
        for format in Format::ALL {
            let projected = projected(*format, &line(&record));

            assert_shows(*format, &projected);
            prop_assert_eq!(read(*format, &projected), found(&record), "{}", format);
        }
    }

    /// However much of it: what does not fit is cut, and the six fields are not.
    #[test]
    fn any_texts_in_all_fields_keep_the_six(
        texts in prop::collection::vec(hostile(), POINTERS.len()),
        is_small in any::<bool>(),
    ) {
        let mut record = if is_small { smallest("audit.stop") } else { full("authz.deny") };
        put_all(&mut record, &texts);
        // The closed lists are the gateway's own.
        for (pointer, word) in [
            ("/event/type", "limit.exceeded"),
            ("/outcome", "abandoned"),
            ("/actor/type", "unknown"),
            ("/resource/type", "configuration"),
        ] {
            put(&mut record, pointer, word);
        }
        let stored = line(&record);
        prop_assume!(stored.len() <= compliance::export::BYTES_MAX);
        for format in Format::ALL {
            let text = projected(*format, &stored);

            let (read, found) = (read(*format, &text), found(&record));
            for name in ["actor", "eventType", "time", "outcome", "replica", "resource", "seq"] {
                prop_assert_eq!(&read[name], &found[name], "{} {}", format, name);
            }
        }
    }
}
