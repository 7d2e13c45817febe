//! Text that comes from outside: actor names, resource names, request ids.
//!
//! A label is 1 to 128 characters of printable ASCII without `"` and `\`, so that no format needs
//! to escape it and no terminal obeys it. Other characters become `?`.
//!
//! No type can tell a card number in a name that a client chose, so a label is searched for one:
//! 13 to 19 digits that pass the Luhn check become `[pan removed]`, also in the groups in which cards
//! show them. A run that touches a letter is left alone, as it is part of a hex serial; a UUID has no
//! such run and no such groups. This is the last line behind the types and not a reason to hand a PAN
//! to it.

use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};
use uuid::Uuid;

/// Short, printable, and without a card number. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label(Arc<str>);

impl Label {
    /// Makes any text fit: replaces, removes, then cuts. Nothing becomes `-`.
    #[must_use]
    pub fn new(text: &str) -> Self {
        if is_harmless(text) {
            return Self(text.into());
        }
        // A run that begins inside the bound must be seen whole, with the character behind it.
        let seen: Vec<u8> = text.chars().take(LENGTH_MAX + PAN_CHARS_MAX + 1).map(plain).collect();
        let mut label = without_pans(&seen);
        if seen.len() > LENGTH_MAX {
            // The cut may have parted digits from the letter that made them harmless.
            label.truncate(LENGTH_MAX);
            label = without_pans(label.as_bytes());
        }
        if label.is_empty() { Self("-".into()) } else { Self(label.into()) }
    }

    /// An id, which is no card number whatever its digits.
    #[must_use]
    pub fn uuid(id: Uuid) -> Self {
        Self((&*id.hyphenated().encode_lower(&mut [0; 36])).into())
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether the text stays as it is: most do, and need no search.
fn is_harmless(text: &str) -> bool {
    let is_plain = |byte: u8| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\';
    (1..=LENGTH_MAX).contains(&text.len())
        && text.bytes().all(is_plain)
        && text.bytes().filter(u8::is_ascii_digit).count() < PAN_MIN
}

/// Reads as far as runs begin inside the bound.
fn without_pans(seen: &[u8]) -> String {
    let mut label = String::with_capacity(seen.len());
    let mut at = 0;
    while at < seen.len().min(LENGTH_MAX) {
        let run = seen[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        let end = at + run.max(1);
        let pan = is_pan(seen, at, end).then_some(end).or_else(|| grouped_pan(seen, at, run));
        if let Some(end) = pan {
            label.push_str(REMOVED);
            at = end_of_track(seen, end);
        } else {
            label.extend(seen[at..end].iter().map(|&byte| char::from(byte)));
            at = end;
        }
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
    (PAN_MIN..=PAN_MAX).contains(&(end - at))
        && !touches_word(seen, at, end)
        && passes_luhn(&seen[at..end])
}

/// The end of a PAN in groups that begins at `at` with a run of so many digits: four by four, or as
/// American Express has it, with one space or one hyphen between.
fn grouped_pan(seen: &[u8], at: usize, run: usize) -> Option<usize> {
    let separator = *seen.get(at + run).filter(|byte| b" -".contains(byte))?;
    if run != 4 {
        return None;
    }
    let (mut digits, mut groups, mut end) = (Vec::with_capacity(PAN_MAX), Vec::new(), at);
    loop {
        let group = seen[end..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        digits.extend_from_slice(&seen[end..end + group]);
        groups.push(group);
        end += group;
        let goes_on =
            seen.get(end) == Some(&separator) && seen.get(end + 1).is_some_and(u8::is_ascii_digit);
        if !goes_on || groups.len() == GROUPS_MAX {
            break;
        }
        end += 1;
    }
    let is_shape = matches!(groups[..], [4, 4, 4, 1..=4] | [4, 4, 4, 4, 1..=3] | [4, 6, 5]);
    (is_shape && !touches_word(seen, at, end) && passes_luhn(&digits)).then_some(end)
}

/// Whether a word goes on at either end; the signs of a magnetic stripe's tracks are none.
fn touches_word(seen: &[u8], at: usize, end: usize) -> bool {
    let is_word = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let begins_track = seen[..at].ends_with(b"%B");
    let before = at.checked_sub(1).and_then(|before| seen.get(before));
    (is_word(before) && !begins_track) || (is_word(seen.get(end)) && end_of_track(seen, end) == end)
}

/// The end of the track that begins with a PAN (ISO/IEC 7813), which must not be kept either; `end` when it
/// is none.
fn end_of_track(seen: &[u8], end: usize) -> usize {
    let digits = |from: usize| {
        seen.get(from..)
            .map_or(0, |rest| rest.iter().take_while(|byte| byte.is_ascii_digit()).count())
    };
    match seen.get(end) {
        // Track 2, as it is read and as EMV has it: expiry, service code, discretionary data.
        Some(b'=' | b'D') if digits(end + 1) >= EXPIRY_DIGITS => end + 1 + digits(end + 1),
        // Track 1: the name, and the same.
        Some(b'^') => {
            let rest = seen[end..].iter().position(|byte| *byte == b'?');
            rest.map_or(seen.len(), |rest| end + rest)
        }
        _ => end,
    }
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
const GROUPS_MAX: usize = 5;
const EXPIRY_DIGITS: usize = 4;
/// Nineteen digits in five groups.
const PAN_CHARS_MAX: usize = PAN_MAX + GROUPS_MAX - 1;
/// Stands where a card number was.
pub(crate) const REMOVED: &str = "[pan removed]";

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
    fn a_card_number_in_groups_or_beside_a_hyphen_is_one_too() {
        for pan in [
            "4111 1111 1111 1111",
            "4111-1111-1111-1111",
            "3782-822463-10005",
            "4222 2222 2222 2",
            "6304 0000 0000 0000 000",
            "-4111111111111111",
        ] {
            let removed = label(&format!("card {pan}, lost"));
            assert!(removed.contains("[pan removed]") && !removed.contains("11"), "{removed}");
        }
    }

    #[test]
    fn a_track_goes_whole() {
        for (text, left) in [
            (";4111111111111111=29121010000098765432?", ";[pan removed]?"),
            ("4111111111111111D29121010000098765432F", "[pan removed]F"),
            ("%B4111111111111111^DOE/JOHN^29121010000098765432?", "%B[pan removed]?"),
            ("%B4111111111111111^DOE/JOHN^2912", "%B[pan removed]"),
            ("pan=4111111111111111=x", "pan=[pan removed]=x"),
        ] {
            assert_eq!(label(text), left);
        }
        assert_eq!(label("4111111111111111Dx"), "4111111111111111Dx");
    }

    #[test]
    fn digits_that_are_no_card_number_stay() {
        for text in [
            "4111111111111112",         // Luhn fails
            "411111111111",             // 12 digits
            "41111111111111111111",     // 20 digits
            "a4111111111111111",        // part of a word
            "4111111111111111f",        // part of a hex serial
            "4111-1111-1111-1111-1111", // too many groups
            "4111-1111-1111-1112",      // Luhn fails
            "4111-1111 1111-1111",      // two separators
            "41111111-11111111",        // not the groups of a card
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
