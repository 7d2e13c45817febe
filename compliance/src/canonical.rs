//! Reads one record as canonical JSON (RFC 8785) and nothing else: a text that says the same in other bytes is
//! refused. Of numbers only the integers that records have.

use std::ops::Range;

/// The members of the outermost object, in order: where each value stands.
#[derive(Debug, Default)]
pub struct Members<'t> {
    text: &'t [u8],
    members: Vec<(Range<usize>, Range<usize>)>,
}

/// The text is not canonical JSON, from this byte on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not canonical JSON at byte {0}")]
pub struct NotCanonical(pub usize);

impl<'t> Members<'t> {
    /// Reads one object that is the whole of `text`.
    ///
    /// # Errors
    /// [`NotCanonical`].
    pub fn read(&mut self, text: &'t [u8]) -> Result<(), NotCanonical> {
        self.text = text;
        self.members.clear();
        let mut reader = Reader { text, at: 0 };
        reader.object(0, &mut |key, value| self.members.push((key, value)))?;
        if reader.at == text.len() { Ok(()) } else { Err(NotCanonical(reader.at)) }
    }

    /// The value of a member as it stands, with the quotes of a string.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<&'t [u8]> {
        self.range(name).map(|range| &self.text[range])
    }

    /// The text of a string without escapes.
    #[must_use]
    pub fn string(&self, name: &str) -> Option<&'t str> {
        let inner = self.value(name)?.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
        std::str::from_utf8(inner).ok().filter(|inner| !inner.contains('\\'))
    }

    /// An integer.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<u64> {
        std::str::from_utf8(self.value(name)?).ok()?.parse().ok()
    }

    /// Where a value stands.
    #[must_use]
    pub fn range(&self, name: &str) -> Option<Range<usize>> {
        let found = self.members.iter().find(|(key, _)| &self.text[key.clone()] == name.as_bytes());
        found.map(|(_, value)| value.clone())
    }
}

struct Reader<'t> {
    text: &'t [u8],
    at: usize,
}

impl Reader<'_> {
    fn here<T>(&self) -> Result<T, NotCanonical> {
        Err(NotCanonical(self.at))
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn take(&mut self, byte: u8) -> Result<(), NotCanonical> {
        if self.peek() != Some(byte) {
            return self.here();
        }
        self.at += 1;
        Ok(())
    }

    fn value(&mut self, depth: u8) -> Result<(), NotCanonical> {
        match self.peek() {
            _ if depth > DEPTH_MAX => self.here(),
            Some(b'"') => self.string().map(drop),
            Some(b'{') => self.object(depth, &mut |_, _| {}),
            Some(b'[') => self.array(depth),
            Some(b'-' | b'0'..=b'9') => self.integer(),
            Some(b't') => self.word(b"true"),
            Some(b'f') => self.word(b"false"),
            Some(b'n') => self.word(b"null"),
            _ => self.here(),
        }
    }

    fn object(
        &mut self,
        depth: u8,
        member: &mut dyn FnMut(Range<usize>, Range<usize>),
    ) -> Result<(), NotCanonical> {
        self.take(b'{')?;
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(());
        }
        let mut last: Option<Range<usize>> = None;
        loop {
            let start = self.at;
            let key = self.string()?;
            let name = &self.text[key.clone()];
            // Among plain ASCII the order of bytes is that of UTF-16, which RFC 8785 asks for.
            let is_plain = name.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'\\');
            if !is_plain || last.is_some_and(|last| self.text[last] >= *name) {
                return Err(NotCanonical(start));
            }
            self.take(b':')?;
            let from = self.at;
            self.value(depth + 1)?;
            member(key.clone(), from..self.at);
            last = Some(key);
            if self.peek() == Some(b'}') {
                self.at += 1;
                return Ok(());
            }
            self.take(b',')?;
        }
    }

    fn array(&mut self, depth: u8) -> Result<(), NotCanonical> {
        self.take(b'[')?;
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.value(depth + 1)?;
            if self.peek() == Some(b']') {
                self.at += 1;
                return Ok(());
            }
            self.take(b',')?;
        }
    }

    /// Where the text between the quotes stands.
    fn string(&mut self) -> Result<Range<usize>, NotCanonical> {
        self.take(b'"')?;
        let start = self.at;
        loop {
            match self.peek() {
                Some(b'"') => break,
                Some(b'\\') => self.escape()?,
                Some(0..0x20) | None => return self.here(),
                Some(_) => self.at += 1,
            }
        }
        let range = start..self.at;
        let text = &self.text[range.clone()];
        if !text.is_ascii() && std::str::from_utf8(text).is_err() {
            return Err(NotCanonical(start));
        }
        self.at += 1;
        Ok(range)
    }

    /// Only what must be escaped, in its shortest form.
    fn escape(&mut self) -> Result<(), NotCanonical> {
        let rest = &self.text[self.at + 1..];
        let length = match rest {
            [b'"' | b'\\' | b'b' | b'f' | b'n' | b'r' | b't', ..] => 2,
            [b'u', b'0', b'0', high @ b'0'..=b'1', low @ (b'0'..=b'9' | b'a'..=b'f'), ..] => {
                let has_short_form =
                    *high == b'0' && matches!(low, b'8' | b'9' | b'a' | b'c' | b'd');
                if has_short_form {
                    return self.here();
                }
                6
            }
            _ => return self.here(),
        };
        self.at += length;
        Ok(())
    }

    fn integer(&mut self) -> Result<(), NotCanonical> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        let first = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        let digits = &self.text[first..self.at];
        let is_zero = digits == b"0" && first == start;
        let is_other = digits.first().is_some_and(|digit| *digit != b'0')
            && digits.len() <= INTEGER_DIGITS_MAX;
        if is_zero || is_other { Ok(()) } else { Err(NotCanonical(start)) }
    }

    fn word(&mut self, word: &[u8]) -> Result<(), NotCanonical> {
        if !self.text[self.at..].starts_with(word) {
            return self.here();
        }
        self.at += word.len();
        Ok(())
    }
}

const DEPTH_MAX: u8 = 8;
/// Above 2^53 RFC 8785 writes numbers otherwise; 15 digits are below it.
const INTEGER_DIGITS_MAX: usize = 15;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn is_read(text: &str) -> bool {
        Members::default().read(text.as_bytes()).is_ok()
    }

    #[test]
    fn one_spelling_is_read() {
        for text in [
            "{}",
            r#"{"a":1,"b":{"c":[true,false,null,"x"],"d":-5},"e":""}"#,
            r#"{"a":"\"\\\b\f\n\r\t\u0000\u001f","b":"é—💳","c":0}"#,
        ] {
            assert!(is_read(text), "{text}");
        }
        let deep = format!("{}1{}", "{\"a\":".repeat(8), "}".repeat(8));
        assert!(is_read(&deep));
    }

    #[test]
    fn every_other_is_refused() {
        for text in [
            "",
            "1",
            "[]",
            "{} ",
            " {}",
            "{}\n",
            "{}{}",
            "{",
            r#"{"a"}"#,
            r#"{"a":1,}"#,
            r#"{"a": 1}"#,
            r#"{"b":1,"a":2}"#,
            r#"{"a":1,"a":2}"#,
            r#"{"a":{"b":1,"b":1}}"#,
            r#"{"\u0061":1}"#,
            r#"{"é":1}"#,
            r#"{"a":"\u0061"}"#,
            r#"{"a":"\u000a"}"#,
            r#"{"a":"\u001F"}"#,
            r#"{"a":"\/"}"#,
            r#"{"a":"\"#,
            r#"{"a":01}"#,
            r#"{"a":-0}"#,
            r#"{"a":1.0}"#,
            r#"{"a":1e3}"#,
            r#"{"a":1234567890123456}"#,
            r#"{"a":-}"#,
            r#"{"a":tru}"#,
            r#"{"a":[1,]}"#,
            "{\"a\":\"\n\"}",
            "{\"a\":\"\t\"}",
        ] {
            assert!(!is_read(text), "{text}");
        }
        assert!(Members::default().read(b"{\"a\":\"\xff\"}").is_err());
        let deep = format!("{}1{}", "{\"a\":".repeat(10), "}".repeat(10));
        assert!(!is_read(&deep));
    }

    #[test]
    fn members_are_found_where_they_stand() {
        let mut members = Members::default();
        members.read(br#"{"a":{"hash":"no"},"hash":"yes","n":12,"x":"a\"b"}"#).unwrap();

        assert_eq!(members.string("hash"), Some("yes"));
        assert_eq!(members.number("n"), Some(12));
        assert_eq!(
            (members.string("x"), members.string("n"), members.value("b")),
            (None, None, None)
        );
    }

    proptest! {
        #[test]
        fn what_serde_reads_and_writes_again_in_order_is_read(
            text in any::<String>(), number in -999_999_999_999_999i64..999_999_999_999_999, list in any::<Vec<bool>>(),
        ) {
            let json = serde_json::json!({"b": {"y": text, "z": list}, "a": number, "c": text});

            prop_assert!(is_read(&json.to_string()));
        }

        #[test]
        fn whatever_is_read_is_json_that_is_written_so(text in "[{}\\[\\]\",:a-c0-9\\\\untrue -]{0,24}") {
            if is_read(&text) {
                let json: serde_json::Value = serde_json::from_str(&text).unwrap();
                prop_assert_eq!(json.to_string(), text);
            }
        }
    }
}
