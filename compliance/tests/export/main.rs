//! What is exported comes back: read by parsers that were written from each format's rules and
//! share nothing with the writers.
#![forbid(unsafe_code)]
#![cfg(test)]

mod sample; // records, and what a reader must find of them
mod payloads; // texts that try to leave their place
mod rfc5424; // four readers
mod cef;
mod leef;
mod ocsf;
mod round_trip; // stories
mod injection;
mod bounds;

use std::collections::BTreeMap;

use compliance::export::{Format, write};

/// What a reader finds: the values under their syslog names. Only roles are more than one.
type Found = BTreeMap<String, Vec<String>>;

/// One projected record: one line, within its bound.
fn projected(format: Format, line: &str) -> String {
    let mut out = b"before".to_vec();
    write(format, line.as_bytes(), &mut out).unwrap();
    let text = String::from_utf8(out.split_off("before".len())).unwrap();
    assert_eq!(out, b"before", "{format} appends");
    assert!(text.len() <= compliance::export::BYTES_MAX, "{format}: {} bytes", text.len());
    assert!(!text.contains(['\n', '\r']), "{format}: {text:?}");
    text
}

/// Reads a projection back.
fn read(format: Format, text: &str) -> Found {
    match format {
        Format::Jsonl => sample::found(&serde_json::from_str(text).unwrap()),
        Format::Syslog => rfc5424::read(text),
        Format::Cef => cef::read(text),
        Format::Leef => leef::read(text),
        Format::Ocsf => ocsf::read(text),
    }
}

/// RFC 3986, 2.1, strictly: no `%` without two upper-case digits, nothing but UTF-8 behind it.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = [rest.next().unwrap(), rest.next().unwrap()];
        let digits = std::str::from_utf8(&digits).unwrap();
        assert_eq!(digits, digits.to_uppercase());
        bytes.push(u8::from_str_radix(digits, 16).unwrap());
    }
    String::from_utf8(bytes).unwrap()
}

/// A value, or the values between commas.
fn decoded(name: &str, value: &str) -> Vec<String> {
    if name == "roles" {
        return value.split(',').map(percent_decoded).collect();
    }
    vec![percent_decoded(value)]
}

/// Adds a value that must not have been there.
fn insert_new(found: &mut Found, name: &str, values: Vec<String>) {
    assert!(found.insert(name.to_owned(), values).is_none(), "{name} stands twice");
}
