//! ArcSight Common Event Format, version 0: a header of seven fields between `|`, and an extension
//! of `key=value` with spaces between.

use crate::{Found, decoded, insert_new, percent_decoded};

/// The seven header fields and the extension, escapes undone.
pub(crate) fn parse(text: &str) -> (Vec<String>, Vec<(String, String)>) {
    let mut header = vec![String::new()];
    let mut characters = text.char_indices();
    let mut rest = "";
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => {
                let (_, escaped) = characters.next().unwrap();
                assert!(['|', '\\'].contains(&escaped), "\\{escaped} in the header");
                header.last_mut().unwrap().push(escaped);
            }
            '|' if header.len() == 7 => {
                rest = &text[at + 1..];
                break;
            }
            '|' => header.push(String::new()),
            _ => header.last_mut().unwrap().push(character),
        }
    }
    assert_eq!(header.len(), 7);
    (header, extension(rest))
}

/// A key is what stands before a `=` that is not escaped, back to the space before it.
fn extension(text: &str) -> Vec<(String, String)> {
    let mut equals = Vec::new();
    let mut is_escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'=' => equals.push(at),
            _ => {}
        }
    }
    let starts: Vec<usize> =
        equals.iter().map(|at| text[..*at].rfind(' ').map_or(0, |space| space + 1)).collect();
    assert_eq!(starts[0], 0, "text before the first key");
    let mut pairs = Vec::new();
    for (place, equal) in equals.iter().enumerate() {
        let key = &text[starts[place]..*equal];
        assert!(!key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{key}");
        let end = starts.get(place + 1).map_or(text.len(), |next| next - 1);
        let value = unescaped(&text[equal + 1..end]);
        assert!(!value.starts_with(' ') && !value.ends_with(' '), "a reader may trim {value:?}");
        pairs.push((key.to_owned(), value));
    }
    pairs
}

fn unescaped(text: &str) -> String {
    let mut value = String::new();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        if character != '\\' {
            value.push(character);
            continue;
        }
        value.push(match characters.next().unwrap() {
            'n' => '\n',
            'r' => '\r',
            escaped @ ('=' | '\\') => escaped,
            other => panic!("\\{other} in the extension"),
        });
    }
    value
}

/// The record's values, and no header that another value forged.
pub(crate) fn read(text: &str) -> Found {
    let (header, pairs) = parse(text);
    assert_eq!(header[..4], ["CEF:0", "Tollgate", "Tollgate", env!("CARGO_PKG_VERSION")]);
    let event_type = percent_decoded(&header[4]);
    assert_eq!(percent_decoded(&header[5]), event_type.replace(['.', '_'], " "));
    assert!(header[6].parse::<u8>().unwrap() <= 10);
    let mut all = Found::new();
    for (key, value) in &pairs {
        let name = if key == "TollgateRoles" { "roles" } else { "" };
        insert_new(&mut all, key, decoded(name, value));
    }
    let mut found = Found::from([("eventType".to_owned(), vec![event_type])]);
    for (key, name) in KEYS {
        if let Some(values) = all.remove(*key) {
            insert_new(&mut found, name, values);
        }
        if let Some(label) = all.remove(&format!("{key}Label")) {
            let expected = if *key == "c6a2" { "Source IPv6 Address" } else { name };
            assert_eq!(label, [expected]);
        }
    }
    assert_eq!(all.remove("suid").as_ref(), Some(&found["actor"]));
    let time: jiff::Timestamp = found["time"][0].parse().unwrap();
    assert_eq!(all.remove("rt").unwrap(), [time.as_millisecond().to_string()]);
    assert!(all.is_empty(), "keys of no value: {all:?}");
    found
}

const KEYS: &[(&str, &str)] = &[
    ("suser", "actor"),
    ("spriv", "actorType"),
    ("TollgateRoles", "roles"),
    ("TollgateCertSerial", "certSerial"),
    ("TollgateCertIssuer", "certIssuer"),
    ("TollgateCertSpki", "certSpki"),
    ("cs4", "eventId"),
    ("cs3", "time"),
    ("externalId", "seq"),
    ("outcome", "outcome"),
    ("reason", "reason"),
    ("src", "srcIp"),
    ("c6a2", "srcIp"),
    ("spt", "srcPort"),
    ("deviceInboundInterface", "listener"),
    ("dvchost", "replica"),
    ("TollgateBoot", "boot"),
    ("TollgateRequestId", "requestId"),
    ("cs2", "resourceType"),
    ("cs1", "resource"),
    ("destinationServiceName", "service"),
    ("app", "protocol"),
    ("TollgatePanLast4", "panLast4"),
    ("TollgateMode", "mode"),
    ("deviceOutboundInterface", "link"),
    ("cn1", "status"),
    ("TollgateProposer", "proposer"),
    ("TollgateApprover", "approver"),
    ("msg", "note"),
    ("deviceExternalId", "stream"),
    ("cs5", "prevHash"),
    ("cs6", "hash"),
    ("TollgateCheckpoint", "checkpoint"),
    ("TollgatePreviousStream", "previousStream"),
    ("TollgatePreviousSeq", "previousSeq"),
    ("TollgatePreviousHash", "previousHash"),
    ("TollgateQueueStore", "queueStore"),
    ("TollgateQueueEpoch", "queueEpoch"),
    ("TollgateQueueItemSeq", "queueItemSeq"),
    ("TollgateQueueDepth", "queueDepth"),
    ("TollgateDigestConfiguration", "digestConfiguration"),
    ("TollgateDigestKeys", "digestKeys"),
    ("TollgateDigestProgram", "digestProgram"),
];
