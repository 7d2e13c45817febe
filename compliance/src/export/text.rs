//! Text that cannot leave its place.
//!
//! Syslog, CEF and LEEF escape the characters of their own grammar as their rules say. Their rules
//! say little of the others, so before that those which end lines, move a cursor, turn the
//! direction of writing or do not show are written as the percent-encoded bytes of their UTF-8
//! (RFC 3986, 2.1), and so is `%` itself. A space at either end of a value is too, because readers
//! trim. To read a value: undo the format's own escapes, then percent-decode.

use std::borrow::Cow;
use std::fmt;
use std::io::Write as _;
use std::ops::Deref;

use serde::de::{Deserialize, Deserializer, Error, Visitor};

use super::fields::Value;

/// A string of a record: a part of its line where it has no escapes there.
#[derive(Clone, PartialEq, Eq)]
pub struct Text<'a>(Cow<'a, str>);

impl Text<'_> {
    /// Whether it is a part of the line.
    #[must_use]
    pub const fn is_borrowed(&self) -> bool {
        matches!(self.0, Cow::Borrowed(_))
    }
}

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

// Serde borrows into a `Cow`, but not into an `Option<Cow>`.
impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Read)
    }
}

/// How long a value may be: characters as read, bytes as written. Then it ends in [`CUT`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Bound {
    chars: usize,
    bytes: usize,
}

impl Bound {
    pub(super) const fn chars(chars: usize) -> Self {
        Self { chars, bytes: usize::MAX }
    }

    pub(super) const fn bytes(bytes: usize) -> Self {
        Self { chars: usize::MAX, bytes }
    }
}

/// Writes the text, each character by `one`, cut at a whole character.
pub(super) fn cut(
    out: &mut Vec<u8>,
    text: &str,
    bound: Bound,
    one: impl Fn(usize, char, &mut Vec<u8>),
) {
    let start = out.len();
    // Most texts: short, and plain in every format.
    if text.len() <= bound.chars.min(bound.bytes) && text.bytes().all(is_plain) {
        out.extend_from_slice(text.as_bytes());
        return;
    }
    for (count, (at, character)) in text.char_indices().enumerate() {
        let before = out.len();
        if count < bound.chars {
            one(at, character, out);
        }
        if count == bound.chars || out.len() - start > bound.bytes {
            out.truncate(before);
            // Not at an end of the text, so that none of it is a space to be kept.
            CUT.chars().for_each(|character| one(1, character, out));
            return;
        }
    }
}

/// How a format keeps a value in its place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Escapes {
    /// What the format's own rule writes for this character.
    pub(super) native: fn(char) -> Option<&'static str>,
    /// What is percent-encoded because the format has no rule for it.
    pub(super) percent: fn(char) -> bool,
}

impl Escapes {
    /// Writes a value.
    pub(super) fn value(self, value: Value<'_>, bound: Bound, out: &mut Vec<u8>) {
        match value {
            Value::Text(text) => self.text(text, bound, out),
            Value::List(texts) => self.list(texts, bound, out),
            Value::Number(number) => push_number(number, out),
            Value::Time(time) => push_time(time, out),
        }
    }

    /// Writes a text.
    pub(super) fn text(self, text: &str, bound: Bound, out: &mut Vec<u8>) {
        self.part(text, bound, |_| false, out);
    }

    /// Writes texts with commas between them; a comma in one is percent-encoded.
    fn list(self, texts: &[Text<'_>], bound: Bound, out: &mut Vec<u8>) {
        for (count, text) in texts.iter().enumerate() {
            if count > 0 {
                out.push(b',');
            }
            if count == LIST || bound.chars == 0 {
                return self.text(CUT, Bound::chars(CUT.len()), out);
            }
            self.part(text, bound, |character| character == ',', out);
        }
    }

    fn part(self, text: &str, bound: Bound, more: fn(char) -> bool, out: &mut Vec<u8>) {
        cut(out, text, bound, |at, character, out| {
            let at_an_end = at == 0 || at + 1 == text.len();
            if let Some(escape) = (self.native)(character) {
                out.extend_from_slice(escape.as_bytes());
            } else if character == '%'
                || character == ' ' && at_an_end
                || is_hidden(character)
                || (self.percent)(character)
                || more(character)
            {
                push_percent(character, out);
            } else {
                push_char(character, out);
            }
        });
    }
}

/// Characters that a line or a terminal obeys, or that do not show: controls, line and paragraph
/// separators, directions of writing, joiners and marks of no width.
pub(super) const fn is_hidden(character: char) -> bool {
    matches!(
        character,
        '\0'..='\u{1f}'
            | '\u{7f}'..='\u{9f}'
            | '\u{ad}'
            | '\u{61c}'
            | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
    )
}

/// Plain in every format, wherever it stands.
const fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b':' | b'/' | b'@')
}

/// The character as it is.
pub(super) fn push_char(character: char, out: &mut Vec<u8>) {
    out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
}

fn push_percent(character: char, out: &mut Vec<u8>) {
    for byte in character.encode_utf8(&mut [0; 4]).bytes() {
        out.push(b'%');
        out.push(HEX[usize::from(byte >> 4)]);
        out.push(HEX[usize::from(byte & 15)]);
    }
}

/// Decimal digits.
pub(super) fn push_number(number: impl Into<i128>, out: &mut Vec<u8>) {
    // A `Vec` takes every write.
    let _ = write!(out, "{}", number.into());
}

/// RFC 3339 in UTC with six decimals, as the stored record has it.
pub(super) fn push_time(time: jiff::Timestamp, out: &mut Vec<u8>) {
    let _ = write!(out, "{time:.6}");
}

/// For headers and sentences, which have no escapes: graphic ASCII but `"` and `\` as it is, the
/// rest as `?`; what is longer than `bytes` is cut without a mark, and nothing becomes `-`. The exact text
/// stands elsewhere in the same record.
pub(super) fn push_plain(text: &str, bytes: usize, out: &mut Vec<u8>) {
    if text.is_empty() {
        out.push(b'-');
    }
    let plain = |character: char| match u8::try_from(character) {
        Ok(byte) if byte.is_ascii_graphic() && byte != b'"' && byte != b'\\' => byte,
        _ => b'?',
    };
    out.extend(text.chars().take(bytes).map(plain));
}

/// The mark of a value that was longer.
pub(super) const CUT: &str = "[cut]";
const LIST: usize = 8;
const HEX: &[u8; 16] = b"0123456789ABCDEF";
