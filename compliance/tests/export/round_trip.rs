//! What the gateway writes comes back exactly, in every format and for every event type.

use compliance::export::{Format, MESSAGE_BYTES_MAX, NotARecord, message, write};
use compliance::{EventType, Label};
use serde_json::json;

use crate::sample::{found, full, line, smallest};
use crate::{projected, read};

#[test]
fn every_value_of_every_event_type_comes_back_in_every_format() {
    for event in EventType::ALL {
        for record in [full(event.as_str()), smallest(event.as_str())] {
            for format in Format::ALL {
                let text = projected(*format, &line(&record));

                assert_eq!(read(*format, &text), found(&record), "{format}: {text}");
            }
        }
    }
}

/// A newer gateway's record in an older exporter.
#[test]
fn an_event_type_that_is_not_known_yet_comes_back_too() {
    let mut record = full("tea.time");
    record["new"] = json!({"deep": [1]});
    for format in Format::ALL {
        let text = projected(*format, &line(&record));

        assert_eq!(read(*format, &text), found(&record), "{format}: {text}");
    }
}

/// For receivers that speak syslog and read another format.
#[test]
fn every_format_is_the_text_of_a_message_with_the_header_of_the_record() {
    for event in EventType::ALL {
        let record = line(&full(event.as_str()));
        let syslog = projected(Format::Syslog, &record);
        let (header, _) = syslog.split_once(" [").unwrap();
        for format in Format::ALL {
            let mut out = Vec::new();

            message(*format, record.as_bytes(), &mut out).unwrap();

            let text = String::from_utf8(out).unwrap();
            let expected = if *format == Format::Syslog {
                syslog.clone()
            } else {
                format!("{header} - {}", projected(*format, &record))
            };
            assert_eq!(text, expected);
            assert!(text.len() <= MESSAGE_BYTES_MAX);
        }
    }
    let mut out = b"before".to_vec();
    assert!(message(Format::Cef, b"{}", &mut out).is_err() && out == b"before");
}

#[test]
fn json_lines_are_the_stored_line_byte_for_byte() {
    let stored = line(&full("pin.verify")).replace("\"seq\":", " \"seq\" : ");

    assert_eq!(projected(Format::Jsonl, &stored), stored);
    assert_eq!(projected(Format::Jsonl, &format!("{stored}\n")), stored);
}

#[test]
fn what_is_no_record_is_exported_in_no_format() {
    for format in Format::ALL {
        let mut out = b"before".to_vec();

        let refusal = write(*format, b"{}", &mut out).unwrap_err();

        assert!(matches!(refusal, NotARecord::NotTheseFields { .. }));
        assert_eq!(out, b"before");
    }
}

#[test]
fn the_forms_are_these() {
    let record = line(&smallest("audit.start"));
    let expected = [
        concat!(
            "<110>1 1970-01-01T00:00:00.000001Z gateway-1 tollgate ",
            "01890a5d-ac96-774b-bcce-b302099a8057 audit.start [tollgate@32473 actor=\"tollgate\" "
        ),
        "CEF:0|Tollgate|Tollgate|0.1.0|audit.start|audit start|1|rt=0 suser=tollgate suid=tollgate ",
        concat!(
            "LEEF:2.0|Tollgate|Tollgate|0.1.0|audit.start|x09|devTime=1970-01-01T00:00:00.000Z\t",
            "devTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSX\tsev=1\tcat=audit\tusrName=tollgate\t"
        ),
        concat!(
            "{\"class_uid\":1008,\"category_uid\":1,\"activity_id\":6,\"type_uid\":100806,",
            "\"severity_id\":1,\"status_id\":1,\"status_code\":\"success\",\"time\":0,"
        ),
    ];

    for (format, expected) in Format::ALL[1..].iter().zip(expected) {
        let expected = expected.replace("0.1.0", env!("CARGO_PKG_VERSION"));
        let text = projected(*format, &record);
        assert!(text.starts_with(&expected), "{format}: {text}");
    }
    assert!(projected(Format::Syslog, &record).ends_with("] audit.start success"));
}

#[test]
fn an_ipv4_source_has_its_own_key_in_cef() {
    let mut record = full("pin.verify");
    record["src"]["ip"] = json!("192.0.2.1");

    let text = projected(Format::Cef, &line(&record));

    assert!(text.contains(" src=192.0.2.1 spt=65535 ") && !text.contains("c6a2"), "{text}");
    assert_eq!(read(Format::Cef, &text), found(&record));
}

/// The label took it out before; no encoder puts digits together that were apart.
#[test]
fn no_format_holds_a_run_of_digits_that_the_record_does_not() {
    let mut record = full("payment.accept");
    for pointer in ["/actor/id", "/resource/id", "/request_id", "/note", "/link", "/replica"] {
        let label = Label::new("4111111111111111 x 378282246310005");
        *record.pointer_mut(pointer).unwrap() = json!(label.as_str());
    }
    let stored = line(&record);
    let time = record["time"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let milliseconds = time.as_millisecond().to_string();

    for format in Format::ALL {
        let text = projected(*format, &stored);

        assert!(!text.contains("4111111111111111") && !text.contains("378282246310005"));
        for run in text.split(|character: char| !character.is_ascii_digit()) {
            let is_short = run.len() < 12;
            assert!(is_short || run == milliseconds || stored.contains(run), "{format}: {run}");
        }
    }
}

#[test]
fn a_format_is_called_by_its_name() {
    for format in Format::ALL {
        assert_eq!(format.as_str().parse(), Ok(*format));
        assert!(format.media_type().contains('/'));
    }
    assert!("csv".parse::<Format>().is_err() && "JSONL".parse::<Format>().is_err());
}
