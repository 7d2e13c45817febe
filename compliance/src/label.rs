//! Text that comes from outside: actor names, resource names, request ids.
//!
//! A label is 1 to 128 characters of printable ASCII without `"` and `\`, so that no format needs
//! to escape it and no terminal obeys it. Other characters become `?`.
//!
//! No type can tell a card number in a name that a client chose, so a label is searched for one:
//! 13 to 19 digits that pass the Luhn check become `[pan removed]`. A run that touches a letter or
//! a hyphen is left alone, as it is part of a hex serial, a UUID or a compound name. This is the
//! last line behind the types and not a reason to hand a PAN to it.

use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};

/// Short, printable, and without a card number. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label(Arc<str>);

impl Label {
    /// Makes any text fit: replaces, removes, then cuts. Nothing becomes `-`.
    #[must_use]
    pub fn new(text: &str) -> Self {
        // A run that begins inside the bound must be seen whole, with the character behind it.
        let seen: Vec<u8> = text.chars().take(LENGTH_MAX + PAN_MAX + 1).map(plain).collect();
        let mut label = without_pans(&seen);
        if seen.len() > LENGTH_MAX {
            // The cut may have parted digits from the letter that made them harmless.
            label.truncate(LENGTH_MAX);
            label = without_pans(label.as_bytes());
        }
        if label.is_empty() { Self("-".into()) } else { Self(label.into()) }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Reads as far as runs begin inside the bound.
fn without_pans(seen: &[u8]) -> String {
    let mut label = String::with_capacity(seen.len());
    let mut at = 0;
    while at < seen.len().min(LENGTH_MAX) {
        let run = seen[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        let end = at + run.max(1);
        if is_pan(seen, at, end) {
            label.push_str(REMOVED);
        } else {
            label.extend(seen[at..end].iter().map(|&byte| char::from(byte)));
        }
        at = end;
    }
    label
}

fn plain(character: char) -> u8 {
    match u8::try_from(character) {
        Ok(byte @ b' '..=b'~') if byte != b'"' && byte != b'\\' => byte,
        _ => b'?',
    }
}

/// Whether the digits from `at` to `end`, none before and none after, stand alone and are a PAN.
fn is_pan(seen: &[u8], at: usize, end: usize) -> bool {
    let touches =
        |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'-');
    (PAN_MIN..=PAN_MAX).contains(&(end - at))
        && !touches(at.checked_sub(1).and_then(|before| seen.get(before)))
        && !touches(seen.get(end))
        && passes_luhn(&seen[at..end])
}

/// ISO/IEC 7812-1, annex B, on ASCII digits.
fn passes_luhn(digits: &[u8]) -> bool {
    let weigh = |(place, digit): (usize, &u8)| {
        let digit = u32::from(digit - b'0');
        let doubled = if place % 2 == 1 { 2 * digit } else { digit };
        doubled / 10 + doubled % 10
    };
    digits.iter().rev().enumerate().map(weigh).sum::<u32>() % 10 == 0
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl Serialize for Label {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

const LENGTH_MAX: usize = 128;
const PAN_MIN: usize = 13;
const PAN_MAX: usize = 19;
const REMOVED: &str = "[pan removed]";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn label(text: &str) -> String {
        Label::new(text).as_str().to_owned()
    }

    #[test]
    fn ordinary_names_pass_unchanged() {
        for text in ["acquirer-a", "zpk.billing@2", "POST /v1/payments", "a > b, c: {d}"] {
            assert_eq!(label(text), text);
        }
    }

    #[test]
    fn what_a_log_could_misread_is_replaced() {
        assert_eq!(label("a\"b\\c\nd\0e\u{1b}[31mf"), "a?b?c?d?e?[31mf");
        assert_eq!(label("zürich 💳"), "z?rich ?");
        assert_eq!(label(""), "-");
    }

    #[test]
    fn a_card_number_is_removed_wherever_it_stands_alone() {
        // Test numbers of 13, 15, 16 and 19 digits that pass Luhn.
        for pan in ["4222222222222", "378282246310005", "4111111111111111", "6304000000000000000"] {
            assert_eq!(label(pan), "[pan removed]", "{pan}");
            assert_eq!(label(&format!("/v1/{pan}?x={pan}")), "/v1/[pan removed]?x=[pan removed]");
        }
    }

    #[test]
    fn digits_that_are_no_card_number_stay() {
        for text in [
            "4111111111111112",         // Luhn fails
            "411111111111",             // 12 digits
            "41111111111111111111",     // 20 digits
            "a4111111111111111",        // part of a word
            "4111111111111111f",        // part of a hex serial
            "req-4111111111111111",     // part of a compound name
            "4111-1111-1111-1111-1111", // groups
        ] {
            assert_eq!(label(text), text);
        }
    }

    #[test]
    fn uuids_and_hex_serials_are_never_touched() {
        for text in [
            "01890a5d-ac96-774b-bcce-b302099a8057",
            "41111111-1111-1111-1111-111111111111",
            "00000000-0000-0000-0000-000000000000",
            "49cb1f0de7a44111111111111111b0aa",
            "41111111111111111111111111111111",
        ] {
            assert_eq!(label(text), text);
        }
    }

    #[test]
    fn a_card_number_across_the_bound_leaves_no_part_of_itself() {
        let pan = "4111111111111111";
        for before in 100..=128 {
            let text = format!("{}{pan} {}", " ".repeat(before), "x".repeat(100));

            let label = label(&text);

            assert!(label.len() <= 128 && !label.contains('4'), "{before}: {label}");
            assert!(before == 128 || label.contains('['), "{before}: {label}");
        }
    }

    #[test]
    fn the_cut_makes_no_card_number_of_what_was_none() {
        for behind in ["x", "1111"] {
            let text = format!("{}4111111111111111{behind}", " ".repeat(128 - 16));

            let label = label(&text);

            assert!(label.ends_with(" [pan removed]"), "{behind}: {label}");
        }
    }

    #[test]
    fn many_card_numbers_draw_none_from_beyond_the_bound_in_half() {
        let text = ["6304000000000000000"; 20].join(" ");

        let label = label(&text);

        assert!(label.len() <= 128 && !label.contains("6304"), "{label}");
    }

    proptest! {
        #[test]
        fn any_text_becomes_a_label_and_stays_one(
            text in prop_oneof![any::<String>(), "[0-9]{0,220}", "[0-9 x-]{0,220}", "([0-9]{13,19} ){0,12}"],
        ) {
            let label = Label::new(&text);

            prop_assert!((1..=128).contains(&label.as_str().len()));
            let json = serde_json::to_string(&label).unwrap();
            prop_assert_eq!(json, format!("\"{}\"", label.as_str()), "nothing to escape");
            prop_assert_eq!(Label::new(label.as_str()), label);
        }

        #[test]
        fn a_card_number_between_other_characters_never_shows(
            body in "[0-9]{12,18}",
            before in "[ /=?.:,@]{0,130}",
            after in "[ /=?.:,@]{0,9}",
        ) {
            let check = (b'0'..=b'9').map(char::from);
            let mut whole = check.map(|digit| format!("{body}{digit}"));
            let pan = whole.find(|pan| passes_luhn(pan.as_bytes())).unwrap();

            let label = Label::new(&format!("{before}{pan}{after}"));

            prop_assert!(!label.as_str().bytes().any(|byte| byte.is_ascii_digit()));
        }

        #[test]
        fn any_uuid_stays(bytes in any::<[u8; 16]>(), digits in "[0-9]{8}-[0-9]{4}-[0-9]{4}-[0-9]{4}-[0-9]{12}") {
            let id = uuid::Uuid::from_bytes(bytes).to_string();

            prop_assert_eq!(label(&id), id);
            prop_assert_eq!(label(&digits), digits);
        }
    }
}
