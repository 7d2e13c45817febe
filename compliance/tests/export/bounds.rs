//! What is too long is cut where a character ends, and says so.

use compliance::export::{BYTES_MAX, Format, NotARecord, write};
use serde_json::{Value, json};

use crate::sample::{POINTERS, found, full, line, put, smallest};
use crate::{projected, read};

const PROJECTIONS: &[Format] = &[Format::Syslog, Format::Cef, Format::Leef, Format::Ocsf];

#[test]
fn a_long_value_is_cut_behind_128_whole_characters_with_a_mark() {
    for one in ["x", "é", "漢", "💳", "\u{202e}", "\"", "\\", "]", "|", "%", "\n"] {
        for (name, pointer) in [("note", "/note"), ("actor", "/actor/id"), ("reason", "/reason")] {
            for (length, is_cut) in [(128, false), (129, true), (500, true)] {
                let mut record = full("pin.verify");
                put(&mut record, pointer, &one.repeat(length));
                for format in PROJECTIONS {
                    let text = projected(*format, &line(&record));

                    let mark = if is_cut { "[cut]" } else { "" };
                    let expected = one.repeat(128) + mark;
                    assert_eq!(read(*format, &text)[name], [expected], "{format} {name} {one:?}");
                }
            }
        }
    }
}

#[test]
fn a_checkpoint_is_carried_whole() {
    let mut record = smallest("audit.checkpoint");
    record["checkpoint"] = json!("QUJD".repeat(1366));
    for format in Format::ALL {
        let text = projected(*format, &line(&record));

        assert_eq!(read(*format, &text), found(&record), "{format}");
    }
}

/// Labels of characters that take the most room, and as much of them elsewhere as a line holds.
fn heaviest(event_type: &str, one: &str) -> Value {
    let mut record = full(event_type);
    for pointer in ["/actor/id", "/replica", "/resource/id"] {
        put(&mut record, pointer, &one.repeat(128));
    }
    for (name, pointer) in POINTERS {
        let is_word = ["actorType", "eventType", "outcome", "resourceType"].contains(name);
        if is_word || ["actor", "replica", "resource"].contains(name) {
            continue;
        }
        let mut more = record.clone();
        put(&mut more, pointer, &one.repeat(600));
        if line(&more).len() <= BYTES_MAX {
            record = more;
        }
    }
    record
}

#[test]
fn the_six_fields_stay_whole_when_the_rest_cannot() {
    let six = ["actor", "actorType", "eventType", "time", "outcome", "replica", "resource", "seq"];
    for one in ["\u{202e}", "\u{2028}", "\\", "%", "💳", "x"] {
        for event in compliance::EventType::ALL {
            let record = heaviest(event.as_str(), one);
            for format in PROJECTIONS {
                let text = projected(*format, &line(&record));

                let read = read(*format, &text);
                for name in six {
                    assert_eq!(read[name], found(&record)[name], "{format} {name} {one:?}");
                }
            }
        }
    }
}

/// A hostile line that is a record has every form.
#[test]
fn whatever_fills_the_fields_there_is_room_for_a_cut_form() {
    for one in ["\u{202e}", "\\", "\"", "💳"] {
        for length in (1..=128).step_by(7) {
            let mut record = full("pin.verify");
            for (_, pointer) in POINTERS {
                let mut more = record.clone();
                put(&mut more, pointer, &one.repeat(length));
                if line(&more).len() <= BYTES_MAX {
                    record = more;
                }
            }
            for format in PROJECTIONS {
                let text = projected(*format, &line(&record));

                let read = read(*format, &text);
                assert_eq!(read["actor"], found(&record)["actor"], "{format} {length} {one:?}");
            }
        }
    }
}

/// What the gateway writes at its longest: labels of 128 plain characters in every field.
#[test]
fn the_longest_record_of_the_gateway_is_not_cut() {
    let mut record = full("pin.codebook_suspect");
    for (_, pointer) in POINTERS {
        let is_label = ["id", "issuer", "request_id", "link", "proposer", "approver", "note"]
            .iter()
            .any(|end| pointer.ends_with(end))
            && *pointer != "/event/id"
            || *pointer == "/replica";
        if is_label {
            put(&mut record, pointer, &"=".repeat(128));
        }
    }
    record["stream"] = json!(format!("{0}/{0}/{1}", "d".repeat(128), "b".repeat(36)));
    record["checkpoint"] = json!("QUJD".repeat(256));
    for format in Format::ALL {
        let text = projected(*format, &line(&record));

        assert_eq!(read(*format, &text), found(&record), "{format}");
    }
}

#[test]
fn more_roles_than_there_are_leave_a_mark() {
    let mut record = full("admin.read");
    record["actor"]["roles"] = json!(vec!["auditor"; 300]);
    for format in PROJECTIONS {
        let text = projected(*format, &line(&record));

        let roles = &read(*format, &text)["roles"];
        assert_eq!((roles.len(), roles[8].as_str()), (9, "[cut]"), "{format}");
    }
}

#[test]
fn a_line_above_the_bound_is_no_record() {
    let mut record = full("pin.verify");
    let room = BYTES_MAX - line(&record).len() + record["note"].as_str().unwrap().len();
    for format in Format::ALL {
        put(&mut record, "/note", &"x".repeat(room));
        projected(*format, &line(&record));

        put(&mut record, "/note", &"x".repeat(room + 1));
        let refusal = write(*format, line(&record).as_bytes(), &mut Vec::new());

        assert_eq!(refusal, Err(NotARecord::TooLong), "{format}");
    }
}
