//! RFC 5424, section 6, as its grammar says, for one message with one structured data element.

use crate::{Found, decoded, insert_new};

/// A message, its PARAM-VALUEs unescaped.
pub(crate) struct Message {
    pub(crate) pri: u8,
    pub(crate) timestamp: String,
    pub(crate) hostname: String,
    pub(crate) app_name: String,
    pub(crate) procid: String,
    pub(crate) msgid: String,
    pub(crate) sd_id: String,
    pub(crate) params: Vec<(String, String)>,
    pub(crate) msg: String,
}

pub(crate) fn parse(text: &str) -> Message {
    let rest = text.strip_prefix('<').unwrap();
    let (pri, rest) = rest.split_once('>').unwrap();
    assert!((1..=3).contains(&pri.len()) && pri.bytes().all(|byte| byte.is_ascii_digit()));
    assert!(pri == "0" || !pri.starts_with('0'), "PRI has no leading zeros");
    let pri: u8 = pri.parse().unwrap();
    assert!(pri <= 191);
    let rest = rest.strip_prefix("1 ").unwrap();
    let (timestamp, rest) = rest.split_once(' ').unwrap();
    check_timestamp(timestamp);
    let (hostname, rest) = header(rest, 255);
    let (app_name, rest) = header(rest, 48);
    let (procid, rest) = header(rest, 128);
    let (msgid, rest) = header(rest, 32);
    let rest = rest.strip_prefix('[').unwrap();
    let (sd_id, mut rest) = rest.split_at(rest.find([' ', ']']).unwrap());
    check_sd_name(sd_id);
    let mut params = Vec::new();
    while let Some(param) = rest.strip_prefix(' ') {
        let (name, value) = param.split_once("=\"").unwrap();
        check_sd_name(name);
        let (value, behind) = param_value(value);
        params.push((name.to_owned(), value));
        rest = behind;
    }
    // One element: what comes next is no second one, but the sentence.
    let msg = rest.strip_prefix("] ").unwrap();
    Message {
        pri,
        timestamp: timestamp.to_owned(),
        hostname,
        app_name,
        procid,
        msgid,
        sd_id: sd_id.to_owned(),
        params,
        msg: msg.to_owned(),
    }
}

/// The record's values, and no header that another value forged.
pub(crate) fn read(text: &str) -> Found {
    let message = parse(text);
    assert_eq!(message.pri / 8, 13, "log audit");
    assert_eq!(message.app_name, "tollgate");
    assert_eq!(message.sd_id, compliance::export::SD_ID);
    assert!(message.msg.bytes().all(|byte| matches!(byte, b' '..=b'~')), "{}", message.msg);
    assert!(!message.params.iter().any(|(_, value)| value.chars().any(char::is_control)));
    let mut found = Found::new();
    for (name, value) in &message.params {
        insert_new(&mut found, name, decoded(name, value));
    }
    assert_eq!(message.timestamp, found["time"][0]);
    for (header, name, longest) in [
        (&message.hostname, "replica", 255),
        (&message.procid, "boot", 128),
        (&message.msgid, "eventType", 32),
    ] {
        let value = &found[name][0];
        let is_whole = *header == plain(value, longest);
        // The header has a bound of its own.
        let is_longer = value
            .strip_suffix("[cut]")
            .is_some_and(|begin| header.starts_with(&plain(begin, longest)));
        assert!(is_whole || is_longer, "{header} {value}");
    }
    found
}

fn plain(text: &str, longest: usize) -> String {
    let plain = |character: char| match character {
        '"' | '\\' => '?',
        '!'..='~' => character,
        _ => '?',
    };
    if text.is_empty() { "-".into() } else { text.chars().take(longest).map(plain).collect() }
}

/// PRINTUSASCII, one to so many, and the space behind it.
fn header(text: &str, longest: usize) -> (String, &str) {
    let (field, rest) = text.split_once(' ').unwrap();
    assert!((1..=longest).contains(&field.len()), "{field}");
    assert!(field.bytes().all(|byte| (33..=126).contains(&byte)), "{field}");
    (field.to_owned(), rest)
}

/// SD-NAME: 1 to 32 PRINTUSASCII without `=`, space, `]`, `"`.
fn check_sd_name(name: &str) {
    assert!((1..=32).contains(&name.len()), "{name}");
    let fits = |byte: u8| (33..=126).contains(&byte) && !b"=]\"".contains(&byte);
    assert!(name.bytes().all(fits), "{name}");
}

/// Up to the closing quote; `"`, `\` and `]` stand only behind a `\`, and nothing else does.
fn param_value(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &text[at + 1..]),
            ']' => panic!("a ] that is not escaped"),
            '\\' => {
                let (_, escaped) = characters.next().unwrap();
                assert!(['"', '\\', ']'].contains(&escaped), "\\{escaped}");
                value.push(escaped);
            }
            _ => value.push(character),
        }
    }
    panic!("no closing quote");
}

/// FULL-DATE "T" FULL-TIME with at most six digits of a second, no leap second.
fn check_timestamp(text: &str) {
    let shape: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    let (shape, fraction) = shape.split_at("0000-00-00T00:00:00".len());
    assert_eq!(shape, "0000-00-00T00:00:00");
    let digits = fraction.strip_prefix('.').unwrap().strip_suffix('Z').unwrap();
    assert!((1..=6).contains(&digits.len()) && digits.bytes().all(|byte| byte == b'0'), "{text}");
    assert!(text.parse::<jiff::Timestamp>().is_ok());
}
